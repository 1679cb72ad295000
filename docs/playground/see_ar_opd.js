// The section of ar_opd.py: three views of one rollout, and the target between them.

const AR_OPD = new Rollouts(
  "ar_opd",
  (problem) => {
    const users = ar_opd.views(problem.text, problem.solution, S.rho); // (2)
    return Object.entries(users).map(([key, user]) => {
      return { key, who: "reader", prompt: TOKENS.prompt_ids(user) };
    });
  },
  (rollout) => {
    const sizes = residuals_of(rollout).map(Math.abs);
    const asks = rollout.fault >= 0 && sizes[rollout.fault] > 0.3;
    return asks ? rollout.fault : sizes.indexOf(Math.max(...sizes));
  },
  (final) => show_ar_opd(final),
);

const clip_now = () => (S.clip >= CLIP_OFF ? 0 : S.clip);

// (3) of the written tokens, without the clip.
function residuals_of(rollout) {
  const { partial, full } = rollout.logp;
  return rollout.ids.map((y, t) => ar_opd.residual(partial[t], full[t], y, 0));
}

// (5) of every token.
function ar_opd_losses(rollout) {
  const { plain, partial, full } = rollout.logp;
  return rollout.ids.map((_, t) => {
    const [target] = ar_opd.anchored_target(partial[t], full[t], S.lam, clip_now());
    return ar_opd.forward_kl(target, plain[t]);
  });
}

// ======================================================================== the rollout

function show_ar_opd(final) {
  const b = AR_OPD.rollout;
  if (!b) return;
  const done = final && !b.writing;
  if (done && AR_OPD.rho !== S.rho) return change_rho(); // it was moved during the writing
  const residuals = residuals_of(b);
  const by_loss = S.ar_kind === "loss";
  const values = by_loss ? ar_opd_losses(b) : residuals;
  const paint = (i) => {
    const y = b.ids[i];
    const classes = [];
    if (done && i === AR_OPD.at) classes.push("on");
    if (done && i === b.fault) classes.push("fault");
    if (b.from?.t === i) classes.push("fork");
    if (done && b.shortcuts.has(i)) classes.push("shortcut");
    const chances = ["plain", "partial", "full"].map((view) => {
      return `${view} ${Math.exp(b.logp[view][i][y]).toFixed(2)}`;
    });
    const title = `${bare(y)}: residual ${residuals[i].toFixed(2)}; ${chances.join(", ")}`;
    const cool = !by_loss && values[i] > 0;
    return { heat: heat(values[i]), cool, classes: classes.join(" "), title };
  };
  show_tokens($("#ar_opd-text"), b.ids, paint, !done);
  const marks = done && b.fault >= 0 ? { [b.fault]: "var(--bad)" } : {};
  const chosen = done ? AR_OPD.at : null;
  show_strip($("#ar_opd-strip"), values, chosen, { is_signed: !by_loss, marks });
  const what = by_loss
    ? "loss of the token"
    : "less (red) or more (green) likely once the rest of the solution is seen";
  show_legend($("#ar_opd-legend"), !by_loss, what);
  if (!done) {
    say($("#ar_opd-says"), "writing …");
    return;
  }
  show_branches($("#ar_opd-branches"), AR_OPD);
  say_ar_opd();
  look_ar_opd();
  remember_section(AR_OPD);
  show_speed();
}

function say_ar_opd() {
  const b = AR_OPD.rollout;
  const limit = S.clip >= CLIP_OFF ? "∞" : S.clip;
  $("#clip-limits").textContent = `−${limit}, ${limit}`; // in (3) above
  const shortcut = b.shortcuts.size
    ? " A dotted line marks a shortcut: a true value before what it is computed from."
    : "";
  say(
    $("#ar_opd-says"),
    `${verdict(b)}<b>L = ${mean(ar_opd_losses(b)).toFixed(3)}</b> nats at this λ, the mean over ` +
      `${b.ids.length} tokens.${shortcut}`,
  );
}

// ======================================================================== one token

function ar_opd_row(v, { plain, partial, full, target, y }) {
  const distributions = { plain, partial, full };
  const chances = Object.entries(distributions).map(([view, logp]) => {
    return `${view} ${Math.exp(logp[v]).toFixed(3)}`;
  });
  const residual = (full[v] - partial[v]).toFixed(2);
  const said = v === y ? "the model wrote this" : `go on from ${bare(v)}`;
  const q = Math.exp(target[v]);
  const title = `${said}; ${chances.join(", ")}, target ${q.toFixed(3)}; residual ${residual}`;
  return `
    <button class="row narrow ${v === y ? "written" : ""}" data-v="${v}" data-key="v${v}"
      title="${escaped(title)}" aria-label="${escaped(`${bare(v)}: ${title}`)}">
      <span class="name">${named(v)}${v === y ? "<small>written</small>" : ""}</span>
      <span class="bars">${bar(Math.exp(plain[v]), "s", "thin")}
        ${bar(Math.exp(partial[v]), "partial", "thin")}${bar(Math.exp(full[v]), "full", "thin")}
        ${bar(q, "target", "thick")}</span>
      <span class="chances"><span class="s">${chance(plain[v])}</span>
        <span class="q">→ ${percent(q)}</span></span></button>`;
}

function look_ar_opd() {
  if (!AR_OPD.ready || AR_OPD.at === null) return;
  const b = AR_OPD.rollout;
  const t = AR_OPD.at;
  const y = b.ids[t];
  const [plain, partial, full] = ["plain", "partial", "full"].map((view) => b.logp[view][t]);
  const [target, clipped] = ar_opd.anchored_target(partial, full, S.lam, clip_now());
  const rows = likeliest([plain, partial, full, target], 7, [y]);
  const whole = full[y] - partial[y];
  const r = ar_opd.residual(partial, full, y, clip_now());
  const C = partial[y] + S.lam * r - target[y];
  const held = r === whole ? "" : ` (clipped: ${signed(r)})`;
  fill(
    $("#ar_opd-head"),
    `${token_head(b.ids, t)}
    <div class="live">r(${named(y)}) = <span class="numbers">log
      <span class="full">${chance(full[y])}</span> − log
      <span class="partial">${chance(partial[y])}</span> = <b>${signed(whole)}</b>${held}</span><br>
      log q = <span class="numbers"><span class="partial">${nats(partial[y])}</span> +
      ${S.lam.toFixed(2)} × ${in_brackets(r)} − <span title="C makes q sum to 1">
      ${in_brackets(C)}</span>, so q = <b>${chance(target[y])}</b></span></div>`,
  );
  const distance = (logp) => nats(ar_opd.forward_kl(logp, plain));
  const lost = `<span>clipped: ${percent(clipped)} of the full view's mass</span>`;
  const colours = key([
    ["s", "plain"],
    ["partial", "partial"],
    ["full", "full"],
    ["target", "target q"],
  ]);
  const of_row = { plain, partial, full, target, y };
  const html = `
    ${colours}<div class="rows">${rows.map((v) => ar_opd_row(v, of_row)).join("")}</div>
    <div class="key">
      <span>KL(q ‖ ${P_S}) = <b class="ink">${distance(target)}</b></span>
      <span>to partial alone: <b class="partial">${distance(partial)}</b></span>
      <span>to full alone: <b class="full">${distance(full)}</b></span>
      ${clipped > 0.001 ? lost : ""}</div>
    ${lambda_chart(rows, partial, full, y)}
    <p class="note">The target q as λ grows: drag the line, or move the slider. Choose a word
      above, and the model goes on from it.</p>`;
  fill($("#ar_opd-look"), html);
}

// ======================================================================== q against lambda

const CHART = { width: 440, height: 178, left: 30, right: 62, top: 8, bottom: 30, most: 1.5 };

function lambda_chart(rows, partial, full, y) {
  const { width, height, left, right, top, bottom, most } = CHART;
  const x_of = (lam) => left + ((width - left - right) * lam) / most;
  const y_of = (p) => top + (height - top - bottom) * (1 - p);
  const grid = Array.from({ length: 31 }, (_, i) => i * 0.05);
  const targets = grid.map((lam) => ar_opd.anchored_target(partial, full, lam, clip_now())[0]);
  const highest = (v) => Math.max(...targets.map((q) => q[v]));
  const lines = [...rows].sort((a, b) => highest(b) - highest(a)).slice(0, 5);
  const colour = (v) => (v === y ? "var(--student)" : "var(--ink)");
  const others = lines.filter((v) => v !== y);
  const dashes = (v) => ["", "6 3", "2 3", "8 3 2 3", "1 4"][others.indexOf(v)] || "";

  const curves = lines.map((v) => {
    const points = grid.map((lam, i) => {
      return `${x_of(lam).toFixed(1)},${y_of(Math.exp(targets[i][v])).toFixed(1)}`;
    });
    const dot = (lam, logp, name) => {
      const place = `cx="${x_of(lam)}" cy="${y_of(Math.exp(logp))}"`;
      return `<circle ${place} r="3.5" fill="var(--${name})"/>`;
    };
    return (
      `<polyline fill="none" stroke="${colour(v)}" stroke-width="2" ` +
      `stroke-dasharray="${dashes(v)}" points="${points.join(" ")}"/>` +
      dot(0, partial[v], "partial") +
      dot(1, full[v], "full")
    );
  });
  // The names stand at the ends of the curves. They are moved apart where they would overlap.
  const names = lines.map((v) => ({ v, at: y_of(Math.exp(targets.at(-1)[v])) }));
  names.sort((a, b) => a.at - b.at);
  let lowest = height - bottom;
  for (const name of [...names].reverse()) {
    name.at = Math.min(name.at, lowest);
    lowest = name.at - 14;
  }
  const labels = names.map(({ v, at }) => {
    const place = `x="${width - right + 7}" y="${at + 4}"`;
    return `<text ${place} class="bold" style="fill:${colour(v)}">${escaped(bare(v))}</text>`;
  });
  const levels = [0, 0.5, 1].map((p) => {
    return (
      `<line x1="${left}" x2="${width - right}" y1="${y_of(p)}" y2="${y_of(p)}" ` +
      `stroke="var(--line)"/>` +
      `<text x="${left - 6}" y="${y_of(p) + 4}" text-anchor="end">${p}</text>`
    );
  });
  const ticks = [
    [0, "0: partial"],
    [0.5, ".5"],
    [1, "1: full"],
    [1.5, "1.5"],
  ];
  const below = ticks.map(([lam, text]) => {
    return `<text x="${x_of(lam)}" y="${height - 8}" text-anchor="middle">${text}</text>`;
  });
  const now = x_of(S.lam);
  return `
    <svg class="chart" id="lambda" viewBox="0 0 ${width} ${height}" role="img"
      aria-label="target probability of the likeliest words against lambda">
      <rect x="${x_of(1)}" y="${top}" width="${x_of(most) - x_of(1)}"
        height="${height - top - bottom}" fill="var(--track)"/>
      ${levels.join("")}${below.join("")}${curves.join("")}${labels.join("")}
      <line x1="${now}" x2="${now}" y1="${top - 4}" y2="${height - bottom + 4}"
        stroke="var(--target)" stroke-width="2"/>
      <circle cx="${now}" cy="${height - bottom + 4}" r="6" fill="var(--target)"/></svg>`;
}

function set_lambda(lam) {
  S.lam = Math.round(20 * Math.max(0, Math.min(CHART.most, lam))) / 20;
  show_control("lam");
  if (!AR_OPD.ready) return;
  if (S.ar_kind === "loss") return show_ar_opd(true); // the colours change, too
  say_ar_opd();
  look_ar_opd();
  remember();
}

// ======================================================================== what it is shown

function show_shown() {
  const part = ar_opd.first_part(problem.solution, S.rho);
  const rest = problem.solution.slice(part.length);
  $("#ar_opd-solution").innerHTML =
    `<span class="partial">${escaped(part)}</span><span class="full">${escaped(rest)}</span>`;
  const counted = problem.gate?.[S.rho];
  if (!counted) {
    $("#ar_opd-gate").innerHTML =
      '<button class="button tiny" data-do="gate">Does the view help?</button>' +
      `<span>${CONTINUATIONS} rollouts written under each</span>`;
    return;
  }
  const words = counted.map(({ view, right }) => {
    const share = right === null ? "…" : `${right}/${CONTINUATIONS}`;
    return `<span class="${view === "plain" ? "s" : view}">${view} <b>${share}</b></span>`;
  });
  $("#ar_opd-gate").innerHTML = `<span>right when it <i>writes</i>:</span> ${words.join(" ")}`;
}

// How often is it right when it writes under each view? If the full view does not help here, it
// has nothing to teach.
let gate_run = 0;
async function gate() {
  const run = ++gate_run;
  const asked = problem;
  const { rho, ar_seed: seed } = S;
  const views = AR_OPD.views(asked);
  const counted = views.map(({ key, prompt }) => ({ view: key, prompt, right: null }));
  (asked.gate ??= {})[rho] = counted;
  const is_stale = () => run !== gate_run || asked !== problem;
  show_shown();
  for (const row of counted) {
    const name = `ar_opd gate ${row.view}`;
    const writer = { name, who: "reader", seed, first_stream: 200 };
    row.right = await continuations_right(writer, row.prompt, [], asked.answer, is_stale);
    if (row.right === null) {
      delete asked.gate[rho];
      return;
    }
    if (S.rho === rho) show_shown();
  }
}

function change_rho() {
  show_shown();
  if (!AR_OPD.ready) return;
  AR_OPD.rho = S.rho;
  for (const b of AR_OPD.list) b.logp.partial = []; // only this view has changed
  AR_OPD.read(AR_OPD.rollout);
  show_ar_opd(true);
}

// ======================================================================== what a click does

$("#ar_opd .side").addEventListener("click", (event) => {
  if (!AR_OPD.ready) return;
  const { ids } = AR_OPD.rollout;
  const step = event.target.closest("[data-step]");
  const row = event.target.closest("[data-v]");
  if (step) {
    AR_OPD.select(Math.max(0, Math.min(ids.length - 1, AR_OPD.at + Number(step.dataset.step))));
  }
  if (row && Number(row.dataset.v) !== ids[AR_OPD.at]) {
    AR_OPD.branch(AR_OPD.at, Number(row.dataset.v));
  }
});
$("#ar_opd-branches").addEventListener("click", (event) => {
  const chip = event.target.closest("[data-branch]");
  if (chip) AR_OPD.turn_to(Number(chip.dataset.branch));
});
$("#ar_opd-gate").addEventListener("click", (event) => {
  if (event.target.closest("[data-do]")) gate();
});
make_pickable(
  $("#ar_opd-text"),
  $("#ar_opd-strip"),
  () => (AR_OPD.ready ? AR_OPD.rollout.ids.length : 0),
  () => AR_OPD.at,
  (i) => AR_OPD.select(i),
);

let dragging = false;
function drag(event) {
  const box = $("#lambda").getBoundingClientRect();
  const { width, left, right, most } = CHART;
  const x = ((event.clientX - box.left) / box.width) * width; // in the units of the chart
  set_lambda(((x - left) / (width - left - right)) * most);
}
$("#ar_opd-look").addEventListener("pointerdown", (event) => {
  if (!event.target.closest("#lambda")) return;
  dragging = true;
  event.preventDefault();
  drag(event);
});
addEventListener("pointermove", (event) => dragging && drag(event));
addEventListener("pointerup", () => (dragging = false));
addEventListener("pointercancel", () => (dragging = false));

async function roll_ar_opd(animate) {
  const drawn = `${problem.text} ${S.ar_seed}`;
  show_shown();
  if (AR_OPD.drawn === drawn && AR_OPD.list.length) {
    if (AR_OPD.rho !== S.rho) return change_rho(); // an example or a link has another part
    return AR_OPD.show(!AR_OPD.rollout.writing);
  }
  AR_OPD.drawn = drawn;
  AR_OPD.rho = S.rho;
  $("#ar_opd-branches").innerHTML = "";
  $("#ar_opd-look").innerHTML = "";
  $("#ar_opd-head").innerHTML =
    '<p class="note">The model writes, and reads along under two more prompts.</p>';
  return AR_OPD.roll(S.ar_seed, 1, animate && !CALM);
}

function set_ar_kind(kind) {
  S.ar_kind = kind;
  mark_choice($("#ar_kind"), kind);
  remember();
  if (AR_OPD.ready && S.tab === "ar_opd") show_ar_opd(true);
}
make_choice($("#ar_kind"), set_ar_kind);
