// What tests/test_playground.py runs inside docs/playground.html: it uses the functions of the
// page, and hands over what they computed.
//
// numbers(): twenty cases, to be computed again in Python. click_through(): everything is touched,
// and something has to change. at_a_bad_moment(): the same while something else is being written.
// open_link() and restore_a_link(): views that an address describes. refused(): what the editor
// says of a problem. nameless(): elements that a screen reader could not name, or that no key
// reaches. sticking_out(): buttons and fields beyond the edge of the text.
"use strict";

const CASES = 20;
const SAMPLED_ROWS = 8; // the logits of every eighth token are handed over

const until = async (is_true, what) => {
  for (let k = 0; !is_true(); k++) {
    if (k > 12000) throw new Error(`waited for ${what} in vain`);
    await new Promise((resolve) => setTimeout(resolve, 5));
  }
};

// ======================================================================== numbers

const rounded = (x) => Array.from(x, (value) => Number(value.toPrecision(9)));

// The logits of a text at every eighth position, from a model that reads it from nothing.
function read_anew(who, prompt, ids) {
  const read = new Stem(model(who)).push([...prompt, ...ids]);
  const rows = [];
  for (let t = 0; t < ids.length; t += SAMPLED_ROWS)
    rows.push(rounded(read.logits(prompt.length + t)));
  const logp = ids.map((_, t) => read.logp(prompt.length + t));
  return { rows, logp };
}

function write(who, prompt, seed, stream = 0) {
  const writer = new Stem(model(who)).push(prompt);
  const ids = [];
  while (ids.length < LONGEST_ROLLOUT && ids.at(-1) !== TOKENS.end) {
    ids.push(next_token(writer, prompt.length, { seed, stream }));
    writer.push([ids.at(-1)]);
  }
  return ids;
}

// opd.py and topd.py: losses, candidates, both windows, D and q.
function case_of_teacher(row, seed) {
  const prompt = TOKENS.prompt_ids(row.problem);
  const ids = write("student", prompt, seed);
  const student = read_anew("student", prompt, ids);
  const teacher = read_anew("teacher", prompt, ids);
  const losses = (kind) => {
    return rounded(ids.map((_, t) => opd.divergence(student.logp[t], teacher.logp[t], kind)));
  };
  STEMS["opd teacher"] = new Stem(model("teacher"));
  const logp = { student: student.logp, teacher: teacher.logp };
  const rollout = { problem: { ids: prompt }, ids, logp };
  const { points } = topd_points(rollout);
  return {
    ids,
    student: student.rows,
    teacher: teacher.rows,
    reverse: losses("reverse"),
    forward: losses("forward"),
    jsd: losses("jsd"),
    points: points.map((p) => ({
      t: p.t,
      teacher: p.teacher,
      student: p.student,
      D: p.distance,
      dropped: p.dropped,
      q: topd.soft_targets(p.plan).map(rounded),
      guidance: mean(targets_of(rollout, p).positions.map((x) => x.kl)),
    })),
  };
}

// ar_opd.py: three views, the target and the loss.
function case_of_views(row, seed) {
  const users = ar_opd.views(row.problem, row.solution, S.rho);
  const ids = write("reader", TOKENS.prompt_ids(users.plain), seed);
  const views = {};
  for (const name in users) views[name] = read_anew("reader", TOKENS.prompt_ids(users[name]), ids);
  const rollout = { ids, logp: {} };
  for (const name in views) rollout.logp[name] = views[name].logp;
  const targets = [];
  for (let t = 0; t < ids.length; t += SAMPLED_ROWS) {
    const [target] = ar_opd.anchored_target(
      views.partial.logp[t],
      views.full.logp[t],
      S.lam,
      S.clip,
    );
    targets.push(rounded(target));
  }
  return {
    ids,
    part: ar_opd.first_part(row.solution, S.rho),
    plain: views.plain.rows,
    partial: views.partial.rows,
    full: views.full.rows,
    targets,
    losses: rounded(ar_opd_losses(rollout)),
  };
}

// hindsight_sd.py and grpo.py: verdicts, a peer, the credit, the advantages.
function case_of_group(row, seed) {
  const prompt = TOKENS.prompt_ids(row.problem);
  const group = Array.from({ length: 4 }, (_, j) => {
    const rollout = { ids: write("reader", prompt, seed, j), seen: {} };
    const parsed = world.parse(row.problem, DATA.table);
    rollout.problem = { text: row.problem, parsed, answer: row.answer };
    judge(rollout);
    return rollout;
  });
  const right = group.map((b) => b.right);
  const i = Math.max(0, right.indexOf(false));
  const j = hindsight_sd.choose_peer(i, right, uniform(seed, 99, i));
  const text = j === null ? null : group[j].text.trim();
  group[i].logp = read_anew("reader", prompt, group[i].ids).logp;
  const shown = { key: "selftest", text, answer: row.answer, name: "" };
  const { credit, losses } = with_context(group[i], shown);
  const rewards = right.map(Number);
  const lengths = group.map((b) => b.ids.length);
  const norms = ["sequence", "token", "constant"];
  return {
    ids: group.map((b) => b.ids),
    right,
    chosen: i,
    peer: j,
    tau: j === null ? null : hindsight_sd.leaves(group[i].ids, group[j].ids),
    credit: rounded(credit),
    losses: rounded(losses),
    std: rounded(grpo.advantages(rewards, "std")),
    mean: rounded(grpo.advantages(rewards, "mean")),
    weights: norms.map((norm) => rounded(grpo.token_weights(lengths, norm, LONGEST_ROLLOUT))),
    clipped: [0.5, 0.9, 1.1, 1.5].flatMap((ratio) => {
      return [-1.2, 0.7].map((A) => grpo.clipped_loss(ratio, A, CLIP_LOW, 0.28));
    }),
  };
}

// ======================================================================== clicks

const visible = (selector) => $$(selector).filter((e) => e.offsetParent !== null);

// A click on what a visitor can see. `changes` is an element whose content has to be another one.
async function click(selector, changes, which = 0) {
  const found = visible(selector);
  const target = found.at(which);
  if (!target) throw new Error(`there is no ${selector} to click`);
  const before = $(changes).innerHTML;
  target.dispatchEvent(new MouseEvent("click", { bubbles: true, cancelable: true }));
  await until(() => $(changes).innerHTML !== before, `${changes} after a click on ${selector}`);
}

async function slide(id, value, changes) {
  const before = $(changes).innerHTML;
  const slider = $(`#${id}`);
  slider.value = value;
  for (const kind of ["input", "change"]) slider.dispatchEvent(new Event(kind, { bubbles: true }));
  await until(() => $(changes).innerHTML !== before, `${changes} after #${id} = ${value}`);
}

async function press(selector, key, changes) {
  const before = $(changes).innerHTML;
  $(selector).focus();
  const event = new KeyboardEvent("keydown", { key, bubbles: true, cancelable: true });
  document.activeElement.dispatchEvent(event);
  await until(() => $(changes).innerHTML !== before, `${changes} after ${key} on ${selector}`);
}

const settled = () => until(() => OPD.ready || !OPD.list.length, "the rollout");

async function click_through() {
  await show_tab("opd");
  await settled();
  await click('#kind [data-choice="forward"]', "#opd-strip");
  await click('#kind [data-choice="jsd"]', "#opd-equation");
  await slide("beta", 0.2, "#opd-look");
  await press('#kind [data-choice="jsd"]', "ArrowRight", "#opd-equation");
  await click("#opd-text .token", "#opd-look", 3);
  await press("#opd-text", "ArrowRight", "#opd-look");
  await click('#opd-look [data-step="1"]', "#opd-look");
  await click("#opd-look .row:not(.written)[data-v]", "#opd-branches");
  await settled();
  await click("#opd-branches [data-branch]", "#opd-text");
  await click('#opd-look [data-do="worth"]', "#opd-look");
  await until(() => !$("#opd-look").textContent.includes("…/"), "the worth of the words");
  await click('#opd-look [data-do="descend"]', "#opd-look");
  await until(() => descent, "the descent");
  const next = $('#opd-look [data-step="1"]');
  next.dispatchEvent(new PointerEvent("pointerdown", { bubbles: true }));
  await new Promise((resolve) => setTimeout(resolve, 200));
  if (!next.isConnected) throw new Error("a button went away below the pointer");
  next.dispatchEvent(new PointerEvent("pointerup", { bubbles: true }));
  await click('#opd-look [data-do="descend"]', "#opd-look");
  await click('#opd-look [data-do="descend"]', "#opd-look");
  await click('#opd-look [data-step="1"]', "#opd-look");
  await click('#opd-look [data-do="descend"]', "#opd-look"); // of another token, at the first click
  if (!is_moving()) throw new Error("the first click did not start the descent");
  await click('#opd-look [data-do="descend"]', "#opd-look");
  await slide("temperature", 0.5, "#opd-text");
  await settled();
  await slide("seed", 5, "#opd-text");
  await settled();
  await click('#opd [data-act="after"]', "#asked");
  await settled();

  await click("#tab-topd", "#topd-text");
  await slide("candidate_share", 0.1, "#topd-look");
  await slide("K", 7, "#topd-windows");
  await slide("drop_share", 0.9, "#topd-look");
  await slide("drop_share", 0.2, "#topd-look");
  await click("#topd-look tr[data-t]", "#topd-windows", -1);
  await press("#topd-text", "ArrowLeft", "#topd-windows");
  await click("#topd-windows .position", "#topd-windows", -1);
  await click('#topd-windows [data-choice="exact"]', "#topd-windows");
  await press("#plan [data-choice=exact]", "ArrowLeft", "#topd-windows");
  await slide("epsilon", -0.5, "#topd-windows");
  await click('#topd [data-act="roll"]', "#topd-text");
  await settled();

  await click("#tab-ar_opd", "#ar_opd-text");
  await until(() => AR_OPD.ready, "the rollout of AR-OPD");
  await slide("lam", 1.2, "#ar_opd-look");
  await slide("clip", 0.5, "#ar_opd-look");
  await slide("rho", 0.8, "#ar_opd-solution");
  await click('#ar_kind [data-choice="loss"]', "#ar_opd-strip");
  await click("#ar_opd-text .token", "#ar_opd-head", 2);
  await click("#ar_opd-look .row:not(.written)[data-v]", "#ar_opd-branches");
  await until(() => AR_OPD.ready, "the branch of AR-OPD");
  await click('#ar_opd-gate [data-do="gate"]', "#ar_opd-gate");
  await until(() => !$("#ar_opd-gate").textContent.includes("…"), "the gate");
  const chart = $("#lambda").getBoundingClientRect();
  const start = { clientX: chart.left + chart.width / 4, bubbles: true, cancelable: true };
  const lam = S.lam;
  $("#lambda").dispatchEvent(new PointerEvent("pointerdown", start));
  dispatchEvent(new PointerEvent("pointerup", start));
  if (S.lam === lam) throw new Error("dragging the line did not change lambda");

  S.problem = 8;
  set_problem();
  await click("#tab-hindsight_sd", "#hindsight_sd-group");
  await until(group_is_ready, "the group");
  await until(() => $("#hindsight_sd-look").innerHTML, "the token of the group");
  await click('#hindsight_sd-peers [data-peer="answer"]', "#hindsight_sd-text");
  await click("#hindsight_sd-peers [data-peer]", "#hindsight_sd-watched");
  await click('#hindsight_sd-peers [data-peer="other"]', "#hindsight_sd-watched");
  await click("#hindsight_sd-peers .bad", "#hindsight_sd-watched"); // a wrong peer
  await click("#hindsight_sd-text .token", "#hindsight_sd-look", 2);
  await click('#hindsight_sd-look [data-step="1"]', "#hindsight_sd-look");
  await click("#hindsight_sd-group .one.wrong", "#hindsight_sd-text", -1);

  await click("#tab-grpo", "#grpo-table");
  await click('#variant [data-choice="dapo"]', "#grpo-mean");
  await click('#variant [data-choice="dr_grpo"]', "#grpo-mean");
  await click("#grpo-table [data-flip]", "#grpo-says");
  await click("#grpo-table tr[data-one]:not(.on)", "#grpo-text", -1);
  await slide("ratio", 1.5, "#grpo-look");
  await click('#grpo [data-act="roll"]', "#grpo-table");
  await until(group_is_ready, "the second group");

  await click("#tab-opd", "#opd-text");
  await click('#opd [data-act="edit"]', "#own-says");
  $("#own").value = "a: starts with 5 coins. c: doubles the coins. How many coins at the end?";
  $("#own").dispatchEvent(new Event("input"));
  const refused = $("#own-says").textContent;
  $("#own").value += " Answer briefly.";
  $("#own").dispatchEvent(new Event("input"));
  await until(() => OPD.drawn.startsWith("a: starts with 5") && OPD.ready, "an own problem");
  await click("#examples [data-example]", "#opd-text", 1);
  await settled();
  await click_all_examples();
  return { refused, accepted: $("#own-says").textContent };
}

// The section is drawn, and something of it is chosen.
const is_drawn = () => {
  const rollouts = { opd: OPD, topd: OPD, ar_opd: AR_OPD }[S.tab];
  const is_chosen = rollouts ? rollouts.ready : group_is_ready() && one_is_chosen();
  return is_chosen && $(`#${S.tab}-look`).children.length > 0;
};

// Every example of every tab, twice. The second click asks for what is there already.
async function click_all_examples() {
  for (const tab of NAMES) {
    change_tab(tab);
    await until(is_drawn, tab);
    for (let k = 0; k < 2 * EXAMPLES[tab].length; k++) {
      const chip = visible("#examples [data-example]")[Math.floor(k / 2)];
      chip.dispatchEvent(new MouseEvent("click", { bubbles: true }));
      await until(is_drawn, `example ${k / 2} of ${tab}`);
      const tokens = visible(`#${tab}-text .token`);
      tokens[1].dispatchEvent(new MouseEvent("click", { bubbles: true }));
      if (tab === "hindsight_sd") await click(`#${tab}-text .token`, `#${tab}-look`, 4);
    }
  }
}

// ======================================================================== bad moments

const texts_of = (list) => [...new Set(list.map((b) => b.problem.text))];
const wait = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

// Clicks that come while something is being written, or after it was changed elsewhere.
async function at_a_bad_moment() {
  // Each tab has a problem of its own, and the tab is left while the group is written.
  await open_link("#tab=opd");
  change_tab("hindsight_sd");
  await until(() => GROUP_NOW.list.length > 1, "the start of a group");
  change_tab("opd");
  await wait(30);
  change_tab("hindsight_sd");
  await until(is_drawn, "the group");
  const group = texts_of(GROUP_NOW.list);
  const of_one_problem = group.length === 1 && group[0] === problem.text;
  change_tab("opd");
  await until(is_drawn, "the rollout");
  change_tab("hindsight_sd");
  await until(is_drawn, "the group that is there already");

  // The choice of a rollout is forgotten, and the group is there already.
  await open_link("#tab=hindsight_sd&problem=9");
  await until(is_drawn, "the group of problem 9");
  change_tab("opd");
  ACTS.roll();
  await until(is_drawn, "a new rollout");
  change_tab("hindsight_sd");
  await until(is_drawn, "the group of problem 9, again");

  // The worth of a word is counted, and the tab is left.
  await open_link("#tab=opd");
  const b = OPD.rollout;
  $('#opd-look [data-do="worth"]').click();
  await wait(30);
  change_tab("ar_opd");
  await until(() => !b.stakes[OPD.at], "the end of the count");
  const is_counted = $("#opd-look").textContent.includes(`/${CONTINUATIONS} right`);

  // rho is moved while AR-OPD writes, and between two branches.
  await until(is_drawn, "AR-OPD");
  ACTS.roll();
  await slide("rho", 0.8, "#ar_opd-solution");
  await until(is_drawn, "AR-OPD");
  const rho = AR_OPD.rho;
  const [t, v] = [3, TOKENS.id[" 7"]];
  const logp = AR_OPD.rollout.logp.partial[t];
  const anew = read_anew("reader", AR_OPD.views(problem)[1].prompt, AR_OPD.rollout.ids).logp[t];
  const is_off = Math.max(...logp.map((x, i) => Math.abs(x - anew[i])));
  await AR_OPD.branch(t, v, false);
  AR_OPD.turn_to(0);
  await slide("rho", 0.3, "#ar_opd-solution");
  await AR_OPD.branch(t, v, false);
  return { of_one_problem, is_counted, rho, is_off, branches: AR_OPD.list.length };
}

// ======================================================================== links and own problems

// What a link chooses.
async function open_link(link) {
  history.replaceState(null, "", link);
  await restore();
  await until(is_drawn, link);
  return { ...S };
}

// What the editor says of a problem; "" if it takes it.
function refused(text) {
  try {
    read_own(text);
    return "";
  } catch (error) {
    return error.message;
  }
}

// A link restores what is seen: a branch, a token, a divergence.
async function restore_a_link() {
  const views = [];
  const hash = `#tab=opd&problem=4&seed=3&kind=forward&at=6&path=6:${TOKENS.id[" 7"]}`;
  for (const link of ["#tab=grpo&problem=8&variant=dapo&flipped=1&rollout=2", hash]) {
    location.hash = link;
    const ready = () => (link === hash ? OPD.ready && OPD.list.length === 2 : group_is_ready());
    await until(() => S.tab === (link === hash ? "opd" : "grpo") && ready(), `the view ${link}`);
    await new Promise((resolve) => setTimeout(resolve, 300)); // the address follows
    views.push({ link, now: location.hash });
  }
  return { views, at: OPD.at, branches: OPD.list.length, kind: S.kind };
}

// Elements that a visitor can use without a mouse need a name that can be read aloud.
function nameless() {
  const labelled = (e) => e.labels?.length || e.getAttribute("aria-label") || e.textContent.trim();
  const named_by = (e) => e.getAttribute("aria-labelledby");
  const all = $$("button, input, select, textarea, [tabindex], [role=img], [role=listbox]");
  const out_of_reach = (e) => e.matches("[role=listbox]:not([tabindex])");
  const wrong = all.filter((e) => (!labelled(e) && !named_by(e)) || out_of_reach(e));
  return wrong.map((e) => e.outerHTML.slice(0, 80));
}

// Buttons and fields that reach beyond the edge that the other texts keep.
function sticking_out() {
  const main = $("#main");
  const edge = main.getBoundingClientRect().right - parseFloat(getComputedStyle(main).paddingRight);
  const all = visible("button, input, select").filter((e) => !e.closest(".tabs"));
  const out = all.filter((e) => e.getBoundingClientRect().right > edge + 1);
  return out.map((e) => e.outerHTML.slice(0, 80));
}

function numbers() {
  const flags = ["rho", "lam", "clip", "K", "candidate_share", "drop_share", "epsilon"];
  const before = { ...S };
  Object.assign(S, DEFAULTS);
  const cases = Array.from({ length: CASES }, (_, i) => {
    const row = DATA.problems[i];
    return {
      ...row,
      teacher: case_of_teacher(row, i),
      views: case_of_views(row, i),
      group: case_of_group(row, i),
    };
  });
  const used = Object.fromEntries(flags.map((name) => [name, S[name]]));
  Object.assign(S, before);
  for (const name in STEMS) delete STEMS[name];
  return { flags: used, cases };
}

// Seconds until a new rollout is drawn and scored.
async function seconds_of_a_rollout() {
  const start = performance.now();
  await OPD.roll(1, 1, true);
  return (performance.now() - start) / 1000;
}
