// The section of opd.py: a rollout, both distributions at a token, and where the loss pushes.

const OPD = new Rollouts(
  "opd",
  (problem) => [
    { key: "student", who: "student", prompt: problem.ids },
    { key: "teacher", who: "teacher", prompt: problem.ids },
  ],
  (rollout) => {
    if (rollout.fault >= 0) return rollout.fault;
    const losses = opd_losses(rollout);
    return losses.indexOf(Math.max(...losses));
  },
  (final) => (S.tab === "topd" ? show_topd(final) : show_opd(final)),
);

let descent = null; // logits that follow the gradient: { rollout, t, logits, steps }
const is_moving = () => descent && descent.rollout === OPD.rollout && descent.t === OPD.at;
let held = false; // a button of the panel is being pressed

// (2) of every token. They are kept until the divergence is another one.
function opd_losses(rollout) {
  const name = S.kind === "jsd" ? `jsd ${S.beta}` : S.kind;
  const { student, teacher } = rollout.logp;
  if (rollout.losses_of !== name || rollout.losses.length !== rollout.ids.length) {
    rollout.losses_of = name;
    rollout.losses = rollout.ids.map((_, t) => {
      return opd.divergence(student[t], teacher[t], S.kind, S.beta);
    });
  }
  return rollout.losses;
}

// ======================================================================== the equation

function fraction(above, below) {
  return `<span class="fraction"><span>${above}</span><span>${below}</span></span>`;
}

function show_opd_equation() {
  const loss = "ℓ<sub>t</sub>";
  const both = (a, b) => `${loss} = KL(${a} ‖ ${b}) = ∑<sub>v</sub> ${a}(v) log`;
  const [formula, note] = {
    reverse: [
      `${both(P_S, P_T)} ${fraction(`${P_S}(v)`, `${P_T}(v)`)}`,
      "the student pays for mass where the teacher has little",
    ],
    forward: [
      `${both(P_T, P_S)} ${fraction(`${P_T}(v)`, `${P_S}(v)`)}`,
      "the student pays for what it does not cover",
    ],
    jsd: [
      `${loss} = β KL(${P_T} ‖ M) + (1 − β) KL(${P_S} ‖ M)`,
      `M = β ${P_T} + (1 − β) ${P_S}: both are compared with their mixture; never more than log 2`,
    ],
  }[S.kind];
  $("#opd-equation").innerHTML =
    `<p><span>${formula}</span><a href="opd.html#eq2">(2)</a></p><small>${note}</small>`;
}

// ======================================================================== the rollout

function show_opd(final) {
  const b = OPD.rollout;
  if (!b) return;
  const done = final && !b.writing;
  const losses = opd_losses(b);
  const { student, teacher } = b.logp;
  const paint = (i) => {
    const y = b.ids[i];
    const classes = [];
    if (done && i === OPD.at) classes.push("on");
    if (done && i === b.fault) classes.push("fault");
    if (b.from?.t === i) classes.push("fork");
    const title =
      `${bare(y)}: loss ${losses[i].toFixed(2)}; student ${Math.exp(student[i][y]).toFixed(2)}, ` +
      `teacher ${Math.exp(teacher[i][y]).toFixed(2)}`;
    return { heat: heat(losses[i]), classes: classes.join(" "), title };
  };
  show_tokens($("#opd-text"), b.ids, paint, !done);
  const marks = done && b.fault >= 0 ? { [b.fault]: "var(--bad)" } : {};
  show_strip($("#opd-strip"), losses, done ? OPD.at : null, { marks });
  if (!done) {
    say($("#opd-says"), "writing …");
    return;
  }
  show_branches($("#opd-branches"), OPD);
  const total = sum_over(losses.length, (i) => losses[i]);
  const on_words = sum_over(losses.length, (i) => (b.kinds[i] === "surface" ? losses[i] : 0));
  const share = Math.round((100 * on_words) / (total || 1));
  const inherited = b.from
    ? ' The loss at <b class="t">▾</b> is that of the text it comes from: it belongs to the ' +
      "state, not to the word that was taken."
    : "";
  say(
    $("#opd-says"),
    `${verdict(b)}<b>L = ${mean(losses).toFixed(3)}</b> nats, the mean over ${b.ids.length} ` +
      `tokens. ${share} % of it lies on words, the rest on numbers, labels and signs.${inherited}`,
  );
  look_opd();
  remember_section(OPD);
  show_speed();
}

// ======================================================================== one token

// The sum (2) in numbers: its two largest terms.
function opd_sum(rows, s, t) {
  const terms = rows.map((v) => [v, opd.share(s, t, v, S.kind, S.beta)]);
  terms.sort((a, b) => Math.abs(b[1]) - Math.abs(a[1]));
  const [first, second] = S.kind === "reverse" ? ["s", "t"] : ["t", "s"];
  const told = terms.slice(0, 2).map(([v, term]) => {
    if (S.kind === "jsd") return `${nats(term)} <small>(${named(v)})</small>`;
    const [a, b] = S.kind === "reverse" ? [s[v], t[v]] : [t[v], s[v]];
    const above = `<span class="${first}">${chance(a)}</span>`;
    return `${above} log(${above}/<span class="${second}">${chance(b)}</span>)`;
  });
  const sum = nats(opd.divergence(s, t, S.kind, S.beta));
  return `ℓ<sub>t</sub> = <span class="numbers">${told.join(" + ")} + … = <b>${sum}</b></span>`;
}

function opd_row(v, { s, t, y, start, pushed, strongest, stakes }) {
  const width = Math.min(50, (Math.abs(pushed) / strongest) * 50).toFixed(1);
  const tick = start ? Math.exp(start[v]) : null; // where the student stood before the descent
  const said = v === y ? "the student wrote this" : `go on from ${bare(v)}`;
  const gives = opd.share(s, t, v, S.kind, S.beta).toFixed(3);
  const chances = `student ${Math.exp(s[v]).toFixed(3)}, teacher ${Math.exp(t[v]).toFixed(3)}`;
  const title = `${said}; ${chances}; adds ${gives} to the loss; pushed by ${pushed.toFixed(3)}`;
  return `
    <button class="row ${v === y ? "written" : ""}" data-v="${v}" data-key="v${v}"
      title="${escaped(title)}" aria-label="${escaped(`${bare(v)}: ${title}`)}">
      <span class="name">${named(v)}${v === y ? "<small>written</small>" : ""}
        ${stake(stakes, v)}</span>
      <span class="bars">${bar(Math.exp(s[v]), "s", "", tick)}${bar(Math.exp(t[v]), "t")}</span>
      <span class="chances"><span class="s">${chance(s[v])}</span>
        <span class="t">${chance(t[v])}</span></span>
      <span class="push"><i class="${pushed >= 0 ? "up" : "down"}" style="width:${width}%"></i>
      </span></button>`;
}

function look_opd() {
  const b = OPD.rollout;
  const at = OPD.at;
  const y = b.ids[at];
  const drawn = b.logp.student[at];
  const t = b.logp.teacher[at];
  const moving = is_moving();
  const s = moving ? log_softmax(descent.logits) : drawn;
  const pushes = opd.push(s, t, S.kind, S.beta);
  const strongest = Math.max(0.02, ...opd.push(drawn, t, S.kind, S.beta).map(Math.abs));
  const rows = likeliest([drawn, t], 8, [y]);
  const of_row = { s, t, y, strongest, stakes: b.stakes?.[at], start: moving ? drawn : null };
  const kinds = { reverse: "reverse", forward: "forward", jsd: "JSD" };
  const values = Object.entries(kinds).map(([kind, word]) => {
    return `<span>${word}: <b class="ink">${nats(opd.divergence(s, t, kind, S.beta))}</b></span>`;
  });
  const rest = (d) => percent(Math.max(0, 1 - sum_over(rows.length, (i) => Math.exp(d[rows[i]]))));
  const told = rows.map((v) => opd_row(v, { ...of_row, pushed: pushes[v] }));
  const html = `
    ${token_head(b.ids, at)}
    <div class="live">${opd_sum(rows, s, t)}</div>
    <div class="key">${values.join("")}<span>entropy: <b class="s">${entropy(s).toFixed(2)}</b>
      <b class="t">${entropy(t).toFixed(2)}</b></span></div>
    <div class="row headline"><span></span>${key([
      ["s", "student"],
      ["t", "teacher"],
    ])}<span></span>
      <span class="centre">gradient</span></div>
    <div class="rows">${told.join("")}</div>
    <div class="foot">all others: <b class="s">${rest(s)}</b> <b class="t">${rest(t)}</b></div>
    <div class="foot">
      <button class="button tiny" data-do="worth" data-key="worth">
        What is a word worth here?</button>
      <button class="button tiny" data-do="descend" data-key="descend">
        ${moving ? `step ${descent.steps}: back` : "Follow the gradient"}</button></div>
    <p class="note">Choose a word: it replaces the token, and the student goes on. Last column:
      where one step on this loss pushes each word.</p>`;
  fill($("#opd-look"), html);
}

// Gradient descent on the logits of this one token, until both distributions are the same.
async function follow_gradient(rollout, t) {
  const start = Float64Array.from(rollout.logp.student[t]);
  const mine = { rollout, t, logits: start, steps: 0 };
  descent = mine;
  const teacher = rollout.logp.teacher[t];
  while (descent === mine && is_moving() && mine.steps < 400) {
    if (held) {
      await frame(); // a button that was replaced now would miss its click
      continue;
    }
    for (let k = 0; k < 2; k++, mine.steps++) {
      const step = opd.push(log_softmax(mine.logits), teacher, S.kind, S.beta);
      mine.logits = mine.logits.map((z, v) => z + 0.5 * step[v]);
    }
    look_opd();
    await frame();
    if (kl(log_softmax(mine.logits), teacher) < 0.01) break;
  }
}

// ======================================================================== what a click does

$("#opd-look").addEventListener("click", async (event) => {
  if (!OPD.ready) return;
  const b = OPD.rollout;
  const at = OPD.at;
  const step = event.target.closest("[data-step]");
  const row = event.target.closest("[data-v]");
  const what = event.target.closest("[data-do]")?.dataset.do;
  if (step) OPD.select(Math.max(0, Math.min(b.ids.length - 1, at + Number(step.dataset.step))));
  if (row && Number(row.dataset.v) !== b.ids[at]) {
    descent = null;
    await OPD.branch(at, Number(row.dataset.v));
  }
  if (what === "worth") {
    const tokens = likeliest([b.logp.student[at], b.logp.teacher[at]], 3, [b.ids[at]]).slice(0, 4);
    const is_stale = () => {
      const is_away = S.tab !== "opd" || problem.text !== b.problem.text;
      return is_away || OPD.rollout !== b || OPD.at !== at;
    };
    await find_stakes("opd worth", "student", b, at, tokens, is_stale, () => {
      if (!is_stale() && OPD.ready) look_opd();
    });
  }
  if (what === "descend") {
    if (!is_moving()) return follow_gradient(b, at);
    descent = null;
    look_opd();
  }
});
for (const kind of ["pointerdown", "keydown"]) {
  $("#opd-look").addEventListener(kind, () => (held = true));
}
for (const kind of ["pointerup", "pointercancel", "keyup", "blur"]) {
  addEventListener(kind, () => (held = false));
}
$("#opd-branches").addEventListener("click", (event) => {
  const chip = event.target.closest("[data-branch]");
  if (chip) OPD.turn_to(Number(chip.dataset.branch));
});
make_pickable(
  $("#opd-text"),
  $("#opd-strip"),
  () => (OPD.ready ? OPD.rollout.ids.length : 0),
  () => OPD.at,
  (i) => {
    descent = null;
    OPD.select(i);
  },
);

// TOPD looks at the same rollout.
async function roll_opd(animate) {
  const drawn = `${problem.text} ${S.seed} ${S.temperature}`;
  if (OPD.drawn === drawn && OPD.list.length) return OPD.show(!OPD.rollout.writing);
  OPD.drawn = drawn;
  descent = null;
  $("#opd-look").innerHTML = '<p class="note">The student writes, and the teacher reads along.</p>';
  $("#opd-branches").innerHTML = "";
  return OPD.roll(S.seed, S.temperature, animate && !CALM);
}

function set_kind(kind) {
  S.kind = kind;
  descent = null;
  mark_choice($("#kind"), kind);
  $("#beta-field").hidden = kind !== "jsd";
  show_opd_equation();
  show_legend($("#opd-legend"), false, "loss of the token");
  remember();
  if (OPD.ready && S.tab === "opd") show_opd(true);
}
make_choice($("#kind"), set_kind);
