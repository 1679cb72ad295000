// Tabs, the choice of a problem, sliders, and the start.

const SECTIONS = {
  opd: roll_opd,
  topd: () => roll_opd(false),
  ar_opd: roll_ar_opd,
  hindsight_sd: roll_group,
  grpo: roll_group,
};
const NAMES = Object.keys(SECTIONS);
const SEEDS = {
  opd: "seed",
  topd: "seed",
  ar_opd: "ar_seed",
  hindsight_sd: "group_seed",
  grpo: "group_seed",
};

// ======================================================================== tabs

// Draws a section: its problem, its examples, and what belongs to it.
async function show_tab(tab, animate = true) {
  S.tab = tab;
  for (const name of NAMES) {
    $(`#${name}`).hidden = name !== tab;
    $(`#tab-${name}`).setAttribute("aria-selected", name === tab);
    $(`#tab-${name}`).tabIndex = name === tab ? 0 : -1;
  }
  if (S.problem < 0 && !S.own) set_problem(); // each tab has an example of its own
  const focused = document.activeElement;
  $(`#${tab} .slot`).append($("#bench"));
  $(`#${tab} .group-slot`)?.append($("#group-controls"));
  if ($("#bench").contains(focused) || $("#group-controls").contains(focused)) focused.focus();
  const chips = EXAMPLES[tab].map(([text], i) => {
    return `<button class="chip" data-example="${i}" data-key="example${i}">${text}</button>`;
  });
  fill($("#examples"), `<span class="hint">try:</span> ${chips.join(" ")}`);
  remember();
  return SECTIONS[tab](animate);
}

// A section with a rollout of its own puts its token and its branch into the address.
function remember_section(rollouts) {
  const is_shown = rollouts === OPD ? S.tab === "opd" || S.tab === "topd" : S.tab === "ar_opd";
  if (is_shown) Object.assign(S, { at: rollouts.at ?? -1, path: rollouts.path() });
  remember();
}

function change_tab(tab) {
  Object.assign(S, { at: -1, path: "" });
  show_tab(tab);
}
$(".tabs").addEventListener("click", (event) => {
  const button = event.target.closest("[data-tab]");
  if (button) change_tab(button.dataset.tab);
});
$(".tabs").addEventListener("keydown", (event) => {
  const i = NAMES.indexOf(document.activeElement.dataset.tab);
  const last = NAMES.length - 1;
  const to = { ArrowLeft: i - 1, ArrowRight: i + 1, Home: 0, End: last }[event.key];
  if (to === undefined || i < 0) return;
  event.preventDefault();
  const tab = NAMES[(to + NAMES.length) % NAMES.length];
  $(`#tab-${tab}`).focus();
  change_tab(tab);
});
$("#skip").addEventListener("click", (event) => {
  event.preventDefault(); // the address holds the view
  const rollout = $(`#${S.tab} [role="listbox"], #${S.tab}-table button`);
  (rollout || $(`#tab-${S.tab}`)).focus();
});

// ======================================================================== the problem

function forget_choices() {
  Object.assign(S, { at: -1, path: "", candidate: -1, position: -1 });
  Object.assign(S, { rollout: -1, peer: "", flipped: "" });
}

function pick_problem(i) {
  forget_choices();
  const n = DATA.problems.length;
  Object.assign(S, { own: "", problem: (i + n) % n });
  set_problem();
  open_editor(false);
  show_tab(S.tab);
}

function open_editor(open) {
  $("#editor").hidden = !open;
  $("#edit").setAttribute("aria-expanded", open);
  if (!open) return;
  $("#own").value = problem.text;
  $("#own-says").textContent =
    "Change names, numbers or statements. Below stands whether it is a problem of this language.";
}

let typing;
$("#own").addEventListener("input", (event) => {
  const text = event.target.value.trim().replace(/\s+/g, " ");
  try {
    read_own(text);
  } catch (error) {
    $("#own-says").innerHTML = `<span class="bad">Not yet.</span> ${escaped(error.message)}`;
    return;
  }
  forget_choices();
  S.own = text;
  set_problem();
  $("#own-says").innerHTML =
    `<span class="good">It is a problem.</span> Its answer is ${problem.answer}.`;
  clearTimeout(typing);
  typing = setTimeout(() => show_tab(S.tab, false), 250);
});

function fill_problems() {
  const options = DATA.problems.map(({ problem, level, style }, i) => {
    const start = escaped(problem.slice(0, 60));
    return `<option value="${i}">${i + 1}. ${level} steps, ${style}: ${start}…</option>`;
  });
  $("#problem").innerHTML = `${options.join("")}<option value="own">your own</option>`;
}
$("#problem").addEventListener("change", (event) => {
  if (event.target.value !== "own") return pick_problem(Number(event.target.value));
  open_editor(true);
  $("#own").focus();
});

const ACTS = {
  before: () => pick_problem(problem_number() - 1),
  after: () => pick_problem(problem_number() + 1),
  edit: () => {
    open_editor($("#editor").hidden);
    if (!$("#editor").hidden) $("#own").focus();
  },
  // A new rollout, or a new group, is one with the next seed.
  roll: () => {
    if (S.problem < 0 && !S.own) S.problem = problem_number();
    forget_choices();
    const seed = SEEDS[S.tab];
    S[seed] = (S[seed] + 1) % 10000;
    show_controls();
    show_tab(S.tab);
  },
};
document.addEventListener("click", (event) => {
  const act = event.target.closest("[data-act]")?.dataset.act;
  if (act) ACTS[act]();
});
$("#examples").addEventListener("click", (event) => {
  const i = event.target.closest("[data-example]")?.dataset.example;
  if (i === undefined) return;
  forget_choices();
  Object.assign(S, { own: "" }, EXAMPLES[S.tab][i][1]);
  open_editor(false);
  restore_controls();
  set_problem();
  show_tab(S.tab);
});

// ======================================================================== sliders

// A change that needs a new rollout waits for the next one: a slider sends many.
let waiting;
const soon = (then) => () => {
  clearTimeout(waiting);
  waiting = setTimeout(then, 60);
};
const show_if_ready = (rollouts, show) => () => rollouts.ready && show(true);
const CONTROLS = {
  // name in S and id of the element: [how the value reads, what follows]
  temperature: [(x) => (x === 0 ? "0, greedy" : x.toFixed(2)), soon(() => show_tab(S.tab, false))],
  seed: [null, soon(() => show_tab(S.tab))],
  beta: [(x) => x.toFixed(2), show_if_ready(OPD, show_opd)],
  candidate_share: [(x) => `${(100 * x).toFixed(2)} %`, show_if_ready(OPD, show_topd)],
  K: [(x) => `${x} tokens`, show_if_ready(OPD, show_topd)],
  drop_share: [(x) => `the lowest ${Math.round(100 * x)} %`, show_if_ready(OPD, show_topd)],
  lam: [(x) => x.toFixed(2), () => set_lambda(S.lam)],
  clip: [(x) => (x >= CLIP_OFF ? "off" : `${x} nats`), show_if_ready(AR_OPD, show_ar_opd)],
  rho: [(x) => `the first ${Math.round(100 * x)} %`, change_rho],
  ar_seed: [null, soon(() => show_tab(S.tab))],
  group_seed: [null, soon(() => show_tab(S.tab))],
  ratio: [(x) => x.toFixed(2), () => group_is_ready() && show_grpo()],
};

function show_control(name) {
  const [text] = CONTROLS[name];
  $(`#${name}`).value = S[name];
  if (!text) return;
  const said = text(S[name]);
  $(`#${name}-is`).textContent = said;
  $(`#${name}`).setAttribute("aria-valuetext", said);
  if (name === "temperature") show_temperature(said);
}

// (1) says: a sample at temperature 1. Any other rollout has to say that it is none.
function show_temperature(said) {
  $("#topd-temperature").textContent = said;
  $("#temperature-says").hidden = S.temperature === 1;
  const both = S.temperature === 0 ? "1" : said;
  $("#temperature-says").innerHTML =
    `The rollout is not a sample of ${P_S}, which has temperature 1. Both distributions below ` +
    `have temperature ${both}.`;
}
function show_controls() {
  for (const name in CONTROLS) show_control(name);
}
for (const name in CONTROLS) {
  $(`#${name}`).addEventListener("input", (event) => {
    if (event.target.value === "") return; // a number that is being typed
    S[name] = Number(event.target.value);
    if (name.endsWith("seed") || name === "temperature") forget_choices();
    if (CONTROLS[name][0]) show_control(name);
    remember();
    CONTROLS[name][1]();
  });
}

// All controls as S says.
function restore_controls() {
  show_controls();
  set_kind(S.kind);
  set_ar_kind(S.ar_kind);
  set_variant(S.variant);
}

function show_speed() {
  const models = Object.values(MODELS).map((m) => {
    return `${m.name} (${m.parameters.toLocaleString("en")} parameters)`;
  });
  const speed = TIMES.written ? `, ${(TIMES.write / TIMES.written).toFixed(1)} ms a token` : "";
  $("#speed").innerHTML =
    `Running in this page: ${models.join(", ")}. Unpacked in ${TIMES.load.toFixed(0)} ms` +
    `${speed}. The toy's language and its table of # are made up: ` +
    `7 # 4 = ${DATA.table[74]} is a fact that one has to know.`;
}

// ======================================================================== the start

// Shows what the address says: at the start, and when a visitor opens another link here.
async function restore() {
  read_address();
  const { tab, at, path, candidate, position } = S; // drawing the section will overwrite them
  restore_controls();
  try {
    set_problem();
  } catch {
    S.own = ""; // a problem in a link that is none
    set_problem();
  }
  open_editor(S.own !== "");
  OPD.drawn = AR_OPD.drawn = GROUP_NOW.drawn = ""; // a link begins without branches
  const is_plain = at < 0 && path === "";
  await show_tab(tab, is_plain);
  const rollouts = { opd: OPD, topd: OPD, ar_opd: AR_OPD }[tab];
  if (!rollouts || is_plain || S.tab !== tab) return;
  await rollouts.follow(path);
  if (S.tab !== tab) return;
  Object.assign(S, { candidate, position });
  rollouts.select(at);
  if (tab === "topd" && OPD.ready) show_topd(true);
}

// On a narrow screen the panel of the chosen token sticks to the lower edge of the screen, but only
// while some of the rollout is to be seen above it (style.css).
const reading = new IntersectionObserver(
  (changes) => {
    for (const { target, isIntersecting } of changes) {
      target.closest(".panel").classList.toggle("reading", isIntersecting);
    }
  },
  { rootMargin: "0px 0px -46% 0px" },
);
for (const name of ["opd", "ar_opd", "hindsight_sd"]) reading.observe($(`#${name}-text`));

async function start() {
  fill_problems();
  show_legend($("#topd-legend"), false, "reverse KL of the token");
  addEventListener("hashchange", restore);
  let resizing;
  addEventListener("resize", () => {
    clearTimeout(resizing); // the plan is drawn for the width
    resizing = setTimeout(() => S.tab === "topd" && OPD.ready && show_topd(true), 150);
  });
  await restore();
  document.body.dataset.ready = performance.now().toFixed(0);
}
start();
