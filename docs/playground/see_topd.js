// The section of topd.py: candidates, both windows, the plan, the distance, and the targets.

const LONGEST_WINDOW = 24; // the largest K of the slider
const LINK = 0.15; // a link of the plan is drawn from this weight on
const SYNONYM = 0.1; // the most that a synonym costs in the toy
const TOPD = { points: [] };

// ======================================================================== the points

// (3): what the teacher writes after y_<t, as many tokens as the longest window may want.
function future_of(rollout, t) {
  rollout.futures ??= {};
  if (!rollout.futures[t]) {
    const prompt = rollout.problem.ids;
    const read = stem("opd teacher", "teacher").read([...prompt, ...rollout.ids]);
    const branch = read.fork(prompt.length + t);
    rollout.futures[t] = topd.continuation(branch, LONGEST_WINDOW, TOKENS.end);
  }
  return rollout.futures[t];
}

// The candidates of the rollout as points: (2) to (6). In training the share is dropped over a
// whole batch of rollouts, here over one.
function topd_points(rollout) {
  const { student, teacher } = rollout.logp;
  const losses = rollout.ids.map((_, t) => topd.reverse_kl(student[t], teacher[t])); // (1)
  const points = topd.candidates(losses, S.candidate_share, S.K).map((t) => {
    const theirs = future_of(rollout, t).slice(0, S.K);
    const own = rollout.ids.slice(t, t + S.K); // W_S is in the rollout
    // Both windows are cut to the shorter one. Otherwise a teacher that ends its text at once
    // would make its end token the target of all K positions.
    const n = Math.min(theirs.length, own.length);
    const point = { t, loss: losses[t], teacher: theirs.slice(0, n), student: own.slice(0, n) };
    point.cost = topd.ground_cost(model("teacher"), point.teacher, point.student); // (4)
    point.exact = topd.exact_plan(point.cost); // (5)
    point.distance = topd.distance(point.exact, point.cost);
    return point;
  });
  const [kept, dropped] = topd.divergent(points, S.drop_share); // (6)
  for (const group of [kept, dropped]) {
    // As in training, the plans of all points that guide are solved together.
    const plans = topd.sinkhorn(
      group.map((p) => p.cost),
      S.epsilon,
    );
    group.forEach((p, i) => {
      p.plan = plans[i];
      p.dropped = group === dropped;
    });
  }
  points.filter((p) => !p.dropped).forEach((p, i) => (p.number = i + 1));
  return { losses, points, kept };
}

// The targets of a point: (7), and (8) at every position.
function targets_of(rollout, point) {
  const weights = topd.soft_targets(S.plan === "exact" ? point.exact : point.plan); // [m][n]
  const positions = weights.map((row, i) => {
    const target = topd.target_of(row, point.teacher);
    return { target, kl: topd.guidance(target, rollout.logp.student[point.t + i]) };
  });
  return { weights, positions };
}

// ======================================================================== the rollout

function choose_point(points, kept) {
  if (points.some((p) => p.t === S.candidate)) return;
  const highest = [...(kept.length ? kept : points)].sort((a, b) => b.loss - a.loss)[0];
  S.candidate = highest ? highest.t : -1;
  S.position = -1;
}

function show_topd(final) {
  const b = OPD.rollout;
  if (!b) return;
  if (!final || b.writing) {
    show_tokens($("#topd-text"), b.ids, () => null, true);
    return;
  }
  const { losses, points, kept } = topd_points(b);
  TOPD.points = points;
  choose_point(points, kept);
  const point = points.find((p) => p.t === S.candidate);
  const at = new Map(points.map((p) => [p.t, p]));
  const paint = (i) => {
    const here = at.get(i);
    const classes = [];
    if (here) classes.push("candidate");
    if (here?.dropped) classes.push("dropped");
    if (i === S.candidate) classes.push("on");
    if (i === b.fault) classes.push("fault");
    if (point && i > point.t && i < point.t + point.student.length) classes.push("inside");
    const distance = here ? `; candidate, distance ${here.distance.toFixed(2)}` : "";
    return {
      heat: heat(losses[i]),
      classes: classes.join(" "),
      title: `${bare(b.ids[i])}: loss ${losses[i].toFixed(2)}${distance}`,
      after: here && !here.dropped ? `<sup class="number">${here.number}</sup>` : "",
    };
  };
  show_tokens($("#topd-text"), b.ids, paint);
  const marks = points.map((p) => [p.t, p.dropped ? "var(--soft)" : "var(--full)"]);
  const chosen = S.candidate >= 0 ? S.candidate : null;
  show_strip($("#topd-strip"), losses, chosen, { marks: Object.fromEntries(marks) });
  const told = points.length
    ? `${points.length} candidates of ${b.ids.length} tokens, ${kept.length} kept. (In training ` +
      "the share is dropped over a whole batch.)"
    : "No candidate has half a window behind it.";
  say($("#topd-says"), verdict(b) + told);
  look_topd(point);
  show_windows(point);
  remember_section(OPD);
  show_speed();
}

function look_topd(point) {
  const most = Math.max(RED_FROM, ...TOPD.points.map((p) => p.loss));
  const rows = TOPD.points.map((p) => {
    const name = named(OPD.rollout.ids[p.t]);
    const role = p.dropped ? "dropped" : `<sup class="number">${p.number}</sup> guides`;
    return `
      <tr class="${p === point ? "on" : ""}" data-t="${p.t}">
        <td><button class="plain" data-key="t${p.t}" aria-pressed="${p === point}">${p.t + 1}:
          <b>${name}</b></button></td>
        <td>${bar(p.loss / most, "hot")}${nats(p.loss)}</td>
        <td>${bar(p.distance, "full")}${nats(p.distance)}</td><td>${role}</td></tr>`;
  });
  const html = `
    <table class="candidates"><thead><tr><th>token</th><th>loss</th><th>distance D</th><th></th>
      </tr></thead><tbody>${rows.join("")}</tbody></table>
    <p class="note"><i>D</i> is 0 for two equal windows, and up to about the share of tokens that
      have no counterpart. A synonym counts little. Dropped are the candidates of the lowest
      <i>D</i> of this rollout, whatever their <i>D</i> is.</p>`;
  fill($("#topd-look"), html);
}

// ======================================================================== the windows

function show_windows(point) {
  const element = $("#topd-windows");
  if (!point) {
    const text = "There is nothing to compare. Draw another rollout, or shorten the window.";
    element.innerHTML = `<p class="note">${text}</p>`;
    return;
  }
  const b = OPD.rollout;
  const { weights, positions } = targets_of(b, point);
  if (!(S.position >= 0 && S.position < positions.length)) {
    const kls = positions.map((p) => p.kl);
    S.position = kls.indexOf(Math.max(...kls)); // where the target pulls most
  }
  const traj = nats(mean(positions.map((p) => p.kl)));
  const what = point.dropped
    ? "<b>Dropped</b>: this window would not be learnt."
    : `L<sub>traj</sub> = ${traj}.`;
  const html = `
    <div class="two"><div>
      <p class="note"><b class="ink">From token ${point.t + 1} on: D = ${nats(point.distance)}.</b>
        A line is a weight of q (7): the student's token is drawn to the teacher's. Weak lines are
        hidden.
        <span class="cool-text">Green</span> goes to the same word or to a synonym, and costs
        nothing or little. <span class="hot-text">Red</span> goes to another word, and costs up to
        about 1. ${what}</p>
      <div class="windows"></div>
      <div class="controls inside">
        <div class="field"><span class="label" id="plan-label">Plan</span>
          <div class="choice" id="plan" role="radiogroup" aria-labelledby="plan-label">
            <button role="radio" data-choice="sinkhorn" data-key="sinkhorn">with entropy</button>
            <button role="radio" data-choice="exact" data-key="exact">exact</button></div></div>
        <div class="field" ${S.plan === "exact" ? "hidden" : ""}>
          <label for="epsilon">ε <output>${S.epsilon}</output></label>
          <input type="range" id="epsilon" data-key="epsilon" min="-3" max="0" step="0.1"
            value="${Math.log10(S.epsilon).toFixed(2)}"
            aria-valuetext="${S.epsilon}"></div></div></div>
      <div>${position_panel(point, positions)}</div></div>`;
  fill(element, html);
  mark_choice($("#plan"), S.plan);
  draw_plan($(".windows", element), point, weights);
}

// One position of the student's window: its own distribution and the target.
function position_panel(point, positions) {
  const i = S.position;
  const { target, kl } = positions[i];
  const s = OPD.rollout.logp.student[point.t + i];
  const targets = s.map((_, v) => Math.log(target.get(v) || 1e-12));
  const rows = likeliest([s, targets], 5).map((v) => {
    const q = target.get(v) || 0;
    const written = v === point.student[i];
    return `
      <div class="row narrow ${written ? "written" : ""}">
        <span class="name">${named(v)}${written ? "<small>written</small>" : ""}</span>
        <span class="bars">${bar(Math.exp(s[v]), "s")}${bar(q, "full")}</span>
        <span class="chances"><span class="s">${chance(s[v])}</span>
          <span class="full">${percent(q)}</span></span></div>`;
  });
  const last = positions.length - 1;
  const button = (to, sign, label) => {
    return (
      `<button class="button tiny" data-to="${to}" data-key="${label}" ` +
      `aria-label="${label}" ${to < 0 || to > last ? "disabled" : ""}>${sign}</button>`
    );
  };
  return `
    <div class="head">${button(i - 1, "◀", "position before")}
      <span class="what">position ${i + 1} of ${last + 1}
        <b class="word">${named(point.student[i])}</b></span>
      ${button(i + 1, "▶", "position after")}</div>
    <p class="note">The student, in its own context, is drawn to the target
      <b class="full">q<sub>${i + 1}</sub></b>: KL(<i class="full">q<sub>${i + 1}</sub></i> ‖
      ${P_S}) = <b class="ink">${nats(kl)}</b></p>
    ${key([
      ["s", "student"],
      ["full", "target q"],
    ])}<div class="rows">${rows.join("")}</div>`;
}

// The links of a plan that are strong enough to be drawn: [student's position, teacher's, weight].
function links_of(weights) {
  return weights.flatMap((row, i) => {
    const least = Math.max(LINK, 0.5 * Math.max(...row));
    return row.flatMap((weight, j) => (weight >= least ? [[i, j, weight]] : []));
  });
}

// Where the tokens of the two windows stand. On a narrow screen the windows run downwards, side
// by side. Returns { width, height, place(row, i), wide(text) }.
function plan_layout(rows, room) {
  const wide = (text) => Math.max(20, 8.6 * text.length + 14);
  if (room < 620) {
    const width = Math.max(280, room);
    return {
      upright: true,
      width,
      height: 34 + 30 * rows[0].length,
      place: (row, i) => [row ? 60 : width - 60, 44 + 30 * i],
      wide: () => 68,
    };
  }
  const sizes = rows.map((row) => sum_over(row.length, (i) => wide(row[i])));
  const free = (room - 84 - Math.max(...sizes)) / rows[0].length;
  const gap = Math.max(4, Math.min(18, free));
  const centres = rows.map((row) => {
    let at = 72;
    return row.map((text) => {
      at += wide(text) + gap;
      return at - gap - wide(text) / 2;
    });
  });
  const width = 78 + Math.max(...sizes) + gap * rows[0].length;
  return { width, height: 172, place: (row, i) => [centres[row][i], row ? 144 : 28], wide };
}

// The plan as a picture: the teacher's window above (or on the right), the student's below.
function draw_plan(element, point, weights) {
  const rows = [point.teacher, point.student].map((window) => window.map(bare));
  const { upright, width, height, place, wide } = plan_layout(rows, element.clientWidth);
  const out = [];
  const told = []; // the same for a screen reader
  for (const [i, j, weight] of links_of(weights)) {
    const [x1, y1] = place(1, i);
    const [x2, y2] = place(0, j);
    const curve = upright
      ? `M${x1 + 36} ${y1} C ${x1 + 90} ${y1}, ${x2 - 90} ${y2}, ${x2 - 36} ${y2}`
      : `M${x1} ${y1 - 16} C ${x1} ${y1 - 60}, ${x2} ${y2 + 60}, ${x2} ${y2 + 14}`;
    const colour = point.cost[j][i] < SYNONYM ? "var(--cool)" : "var(--hot)";
    const strength = ((S.position === i ? 1 : 0.5) * (0.25 + 0.7 * weight)).toFixed(2);
    const text = `${rows[1][i]} to ${rows[0][j]}: ${weight.toFixed(2)}`;
    told.push(text);
    out.push(
      `<path d="${curve}" fill="none" stroke="rgb(${colour} / ${strength})" ` +
        `stroke-width="${(0.8 + 4 * weight).toFixed(1)}"><title>${escaped(text)}</title></path>`,
    );
  }
  rows.forEach((row, k) => {
    row.forEach((text, i) => {
      const [x, y] = place(k, i);
      const on = k === 1 && i === S.position;
      const alone = rows[1 - k].includes(text) ? "" : "alone"; // the other window lacks it
      out.push(
        `<g class="${k ? "position" : ""}" ${k ? `data-to="${i}"` : ""}>` +
          `<rect x="${x - wide(text) / 2}" y="${y - 15}" width="${wide(text)}" height="27" ` +
          `rx="5" fill="var(--${on ? "track" : "card"})" stroke="var(--${on ? "ink" : "line"})"/>` +
          `<text class="${alone}" x="${x}" y="${y + 4}" text-anchor="middle">${escaped(text)}` +
          `</text></g>`,
      );
    });
  });
  const heads = upright
    ? [
        [place(1, 0)[0], 18],
        [place(0, 0)[0], 18],
      ]
    : [
        [30, 148],
        [30, 32],
      ];
  ["student", "teacher"].forEach((who, k) => {
    const [x, y] = heads[k];
    out.push(`<text class="who" x="${x}" y="${y}" text-anchor="middle">${who}</text>`);
  });
  const label = `plan between the two windows, student to teacher. ${told.join("; ")}`;
  element.innerHTML =
    `<svg width="${width}" height="${height}" viewBox="0 0 ${width} ${height}" role="img" ` +
    `aria-label="${escaped(label)}">${out.join("")}</svg>`;
}

// ======================================================================== what a click does

function choose_candidate(t) {
  S.candidate = t;
  S.position = -1;
  show_topd(true);
}

$("#topd-look").addEventListener("click", (event) => {
  const row = event.target.closest("[data-t]");
  if (row && OPD.ready) choose_candidate(Number(row.dataset.t));
});
$("#topd-windows").addEventListener("click", (event) => {
  const position = event.target.closest("[data-to]");
  const plan = event.target.closest("[data-choice]");
  if (position) S.position = Number(position.dataset.to);
  if (plan) S.plan = plan.dataset.choice;
  if (position || plan) show_topd(true);
});
$("#topd-windows").addEventListener("keydown", (event) => {
  if (!event.target.closest("#plan") || !event.key.startsWith("Arrow")) return;
  event.preventDefault();
  S.plan = S.plan === "exact" ? "sinkhorn" : "exact";
  show_topd(true);
  $(`#plan [data-choice="${S.plan}"]`).focus();
});
$("#topd-windows").addEventListener("input", (event) => {
  if (event.target.id !== "epsilon") return;
  S.epsilon = Number(Math.pow(10, Number(event.target.value)).toPrecision(2));
  $("#topd-windows output").textContent = S.epsilon;
  event.target.setAttribute("aria-valuetext", S.epsilon);
});
// The picture is drawn when the slider is let go. If it was replaced before, a finger would lose
// it.
$("#topd-windows").addEventListener("change", (event) => {
  if (event.target.id === "epsilon") show_topd(true);
});
make_pickable(
  $("#topd-text"),
  $("#topd-strip"),
  () => (OPD.ready ? OPD.rollout.ids.length : 0),
  () => S.candidate,
  (i) => {
    // The nearest candidate, in the direction of the arrow key.
    const ahead = (p) =>
      i > S.candidate ? p.t > S.candidate : i < S.candidate ? p.t < S.candidate : true;
    const near = TOPD.points.filter(ahead).sort((a, b) => Math.abs(a.t - i) - Math.abs(b.t - i));
    if (near.length) choose_candidate(near[0].t);
  },
);
