// The section of hindsight_sd.py: verdicts, a peer, and the credit of each token.

// ======================================================================== the context

// What the teacher of the chosen rollout is shown: { key, text, answer, ids, name }.
function shown_peer() {
  const { list } = GROUP_NOW;
  if (S.peer === "other") {
    // The control of the file: the peer and the answer of another question.
    const row = DATA.problems[(Math.max(0, problem_number()) + 1) % DATA.problems.length];
    const name = "the solution of another problem";
    return { key: "other", text: row.solution, answer: row.answer, ids: null, name };
  }
  const chosen = Number(S.peer);
  const is_peer = S.peer !== "" && list[chosen] && chosen !== S.rollout;
  if (!is_peer && S.peer !== "answer") {
    // (2): uniform among the OTHER successful rollouts; the answer alone if there is none.
    const u = uniform(S.group_seed, 99, S.rollout);
    S.peer = String(hindsight_sd.choose_peer(S.rollout, right_ones(), u) ?? "answer");
  }
  const { answer } = chosen_rollout().problem;
  if (S.peer === "answer") {
    return { key: "answer", text: null, answer, ids: null, name: "the answer alone" };
  }
  const peer = list[Number(S.peer)];
  const name = `${peer.right ? "peer" : "a WRONG one:"} ${Number(S.peer) + 1}`;
  return { key: S.peer, text: peer.text.trim(), answer, ids: peer.ids, name };
}

// (3): the distributions of the same model after it has seen the context, at every token.
function with_context(rollout, shown) {
  if (!rollout.seen[shown.key]) {
    const user = hindsight_sd.context(rollout.problem.text, shown.text, shown.answer);
    const prompt = TOKENS.prompt_ids(user);
    const read = stem("hindsight_sd teacher", "reader").read([...prompt, ...rollout.ids]);
    const teacher = rollout.ids.map((_, t) => read.logp(prompt.length + t));
    const student = rollout.logp;
    rollout.seen[shown.key] = {
      name: shown.name,
      teacher,
      credit: rollout.ids.map((y, t) => hindsight_sd.credit(teacher[t], student[t], y)),
      losses: rollout.ids.map((_, t) => hindsight_sd.divergence(teacher[t], student[t])), // (4)
    };
  }
  return rollout.seen[shown.key];
}

// ======================================================================== the group

function show_cards() {
  const cards = GROUP_NOW.list.map((b, i) => {
    const classes = `one ${b.right ? "right" : "wrong"} ${S.peer === String(i) ? "ispeer" : ""}`;
    return `
      <button class="${classes}" data-one="${i}" data-key="one${i}"
        aria-pressed="${S.rollout === i}">
        <span class="mark">${i + 1} ${b.right ? "✓" : "✗"} ${escaped(b.said ?? "–")}</span>
        <span>${escaped(b.text.trim())}</span></button>`;
  });
  fill($("#hindsight_sd-group"), cards.join(""));
}

function show_peers(shown) {
  const { list } = GROUP_NOW;
  const others = list.map((_, j) => j).filter((j) => j !== S.rollout);
  const chip = (key, text) => {
    return (
      `<button class="chip" data-peer="${key}" data-key="peer${key}" ` +
      `aria-pressed="${key === shown.key}">${text}</button>`
    );
  };
  const mark = (j) =>
    list[j].right ? '<span class="good">✓</span>' : '<span class="bad">✗</span>';
  const right = others
    .filter((j) => list[j].right)
    .map((j) => chip(String(j), `${mark(j)} ${j + 1}`));
  const wrong = others
    .filter((j) => !list[j].right)
    .map((j) => chip(String(j), `${mark(j)} ${j + 1}`));
  const html =
    '<span class="hint">shown to its teacher: a peer</span>' +
    (right.join("") || '<span class="hint">(there is none)</span>') +
    chip("answer", "the answer alone") +
    (wrong.length ? `<span class="hint">or a wrong one</span>${wrong.join("")}` : "") +
    chip("other", "another problem's");
  fill($("#hindsight_sd-peers"), html);
}

// ======================================================================== the chosen rollout

function show_hindsight_sd() {
  say_group();
  show_cards();
  if (!group_is_ready() || !one_is_chosen()) return;
  const b = chosen_rollout();
  const shown = shown_peer();
  show_cards(); // now with the peer
  const { credit, losses } = with_context(b, shown);
  const tau = shown.ids ? hindsight_sd.leaves(b.ids, shown.ids) : null;
  const peak = losses.indexOf(Math.max(...losses));
  if (!(S.at >= 0 && S.at < b.ids.length)) S.at = b.fault >= 0 ? b.fault : peak;
  show_peers(shown);
  $("#hindsight_sd-peer-label").textContent = shown.text ? `shown: ${shown.name}` : "";
  show_peer_text(shown, tau);
  $("#hindsight_sd-failed-label").textContent =
    `response ${S.rollout + 1} (${b.right ? "right" : "failed"}), read again by the model that ` +
    `has seen ${shown.name}`;
  const paint = (i) => {
    const classes = [];
    if (i === S.at) classes.push("on");
    if (i === b.fault) classes.push("fault");
    if (i === tau) classes.push("fork");
    const title = `${bare(b.ids[i])}: credit ${credit[i].toFixed(2)}, loss ${losses[i].toFixed(2)}`;
    return { heat: heat(credit[i]), cool: credit[i] > 0, classes: classes.join(" "), title };
  };
  show_tokens($("#hindsight_sd-text"), b.ids, paint);
  const marks = {};
  if (tau !== null) marks[tau] = "var(--teacher)";
  if (b.fault >= 0) marks[b.fault] = "var(--bad)";
  show_strip($("#hindsight_sd-strip"), credit, S.at, { is_signed: true, marks });
  const what = "credit A: less (red) or more (green) likely after seeing it";
  show_legend($("#hindsight_sd-legend"), true, what);
  const parts = `<b class="t">▾</b> marks token ${tau + 1}, where the two texts part. `;
  say(
    $("#hindsight_sd-says"),
    `${verdict(b)}${tau === null ? "" : parts}The loss peaks at token ${peak + 1}, with ` +
      `<b>${nats(losses[peak])}</b> nats. Its mean is <b>${nats(mean(losses), 3)}</b>.`,
  );
  show_watched(b, shown);
  look_hindsight_sd(b, shown, tau);
  remember();
  show_speed();
}

function show_peer_text(shown, tau) {
  const element = $("#hindsight_sd-peer");
  const ids = shown.ids || (shown.text ? TOKENS.encode(shown.text) : []);
  show_tokens(element, ids, (i) => ({ classes: i === tau ? "fork" : "" }));
}

// Every context that was shown to this rollout's teacher, so that they can be compared.
function show_watched(b, shown) {
  const rows = Object.entries(b.seen).map(([key, { name, credit, losses }]) => {
    const peak = losses.indexOf(Math.max(...losses));
    const at_fault = b.fault >= 0 ? `<td>${signed(credit[b.fault])}</td>` : "";
    return `
      <tr class="${key === shown.key ? "on" : ""}"><td>${escaped(name)}</td>${at_fault}
        <td>${nats(mean(losses), 3)}</td>
        <td>${peak + 1}: ${named(b.ids[peak])}</td></tr>`;
  });
  const fault = b.fault >= 0 ? "<th>A at ✗</th>" : "";
  $("#hindsight_sd-watched").innerHTML = `
    <table class="candidates"><caption class="small">watched so far for response
      ${S.rollout + 1}</caption>
      <thead><tr><th>shown</th>${fault}<th>mean loss</th><th>it peaks at</th></tr></thead>
      <tbody>${rows.join("")}</tbody></table>`;
}

// ======================================================================== one token

function look_hindsight_sd(b, shown, tau) {
  const t = S.at;
  const y = b.ids[t];
  const s = b.logp[t];
  const { teacher, credit, losses } = with_context(b, shown);
  const p = teacher[t];
  const stakes = b.stakes?.[t];
  const theirs = t === tau ? shown.ids[t] : null; // what the peer wrote here
  const rows = likeliest([s, p], 8, [y]).map((v) => {
    const note = v === y ? "written" : v === theirs ? "the peer's" : "";
    return `
      <div class="row narrow ${v === y ? "written" : ""}">
        <span class="name">${named(v)}${note ? `<small>${note}</small>` : ""}
          ${stake(stakes, v)}</span>
        <span class="bars">${bar(Math.exp(s[v]), "s")}${bar(Math.exp(p[v]), "full")}</span>
        <span class="chances"><span class="s">${chance(s[v])}</span>
          <span class="full">${chance(p[v])}</span></span></div>`;
  });
  const seen = shown.text ? "p: has seen the response" : "p: has seen the answer";
  const html = `
    ${token_head(b.ids, t)}
    <div class="live">A(${named(y)}) = <span class="numbers">log
      <span class="full">${chance(p[y])}</span> − log <span class="s">${chance(s[y])}</span> =
      <b>${signed(credit[t])}</b></span><br>ℓ<sub>t</sub> = KL(<i class="full">p<sub>t</sub></i> ‖
      <i class="s">s<sub>t</sub></i>) = <span class="numbers"><b>${nats(losses[t])}</b></span></div>
    ${key([
      ["s", "s: the problem alone"],
      ["full", seen],
    ])}<div class="rows">${rows.join("")}</div>
    <div class="foot"><button class="button tiny" data-do="worth" data-key="worth">What is a word
      worth here?</button><span>${CONTINUATIONS} continuations from each</span></div>`;
  fill($("#hindsight_sd-look"), html);
}

// ======================================================================== what a click does

$("#hindsight_sd-look").addEventListener("click", async (event) => {
  if (!group_is_ready()) return;
  const b = chosen_rollout();
  const t = S.at;
  const step = event.target.closest("[data-step]");
  if (step) {
    S.at = Math.max(0, Math.min(b.ids.length - 1, t + Number(step.dataset.step)));
    show_hindsight_sd();
  }
  if (event.target.closest("[data-do]")) {
    const { teacher } = with_context(b, shown_peer());
    const tokens = likeliest([b.logp[t], teacher[t]], 3, [b.ids[t]]).slice(0, 4);
    const is_stale = () => S.tab !== "hindsight_sd" || chosen_rollout() !== b || S.at !== t;
    await find_stakes("group worth", "reader", b, t, tokens, is_stale, () => {
      if (!is_stale()) show_hindsight_sd();
    });
  }
});
// A right one becomes the peer of a failed one that is chosen. Any other one is chosen itself.
$("#hindsight_sd-group").addEventListener("click", (event) => {
  const card = event.target.closest("[data-one]");
  if (!card || !group_is_ready()) return;
  const i = Number(card.dataset.one);
  if (GROUP_NOW.list[i].right && !chosen_rollout().right) S.peer = String(i);
  else Object.assign(S, { rollout: i, peer: "", at: -1 });
  show_hindsight_sd();
});
$("#hindsight_sd-peers").addEventListener("click", (event) => {
  const chip = event.target.closest("[data-peer]");
  if (!chip) return;
  S.peer = chip.dataset.peer;
  show_hindsight_sd();
});
make_pickable(
  $("#hindsight_sd-text"),
  $("#hindsight_sd-strip"),
  () => (group_is_ready() ? chosen_rollout().ids.length : 0),
  () => S.at,
  (i) => {
    S.at = i;
    show_hindsight_sd();
  },
);
