// The state of the page: what is chosen, the address that restores it, the models, the problem.

const LONGEST_ROLLOUT = 160; // tokens, --max_new_tokens of the toy
const GROUP = 8; // G, rollouts in a group
const SPARE = 16; // tokens of the words around a solution that is shown

const $ = (selector, from = document) => from.querySelector(selector);
const $$ = (selector, from = document) => [...from.querySelectorAll(selector)];

// ======================================================================== what is chosen

// Everything that a link restores. A value stands in the address only if it is not the default.
const DEFAULTS = {
  tab: "opd",
  problem: -1, // number of the problem; -1: the first example of the tab
  own: "", // a problem that the visitor wrote
  // OPD and TOPD
  seed: 14,
  temperature: 1,
  kind: "reverse",
  beta: 0.5,
  candidate_share: 0.0225,
  K: 12,
  drop_share: 0.3,
  plan: "sinkhorn",
  epsilon: 0.05,
  candidate: -1, // position of the chosen candidate
  position: -1, // the chosen position of its window
  // AR-OPD
  ar_seed: 11,
  ar_kind: "residual",
  lam: 0.6,
  clip: 5, // CLIP_OFF: no clip
  rho: 0.5,
  // HSD and GRPO
  group_seed: 3,
  rollout: -1, // the chosen one of the group
  peer: "", // what its teacher is shown: a number, "answer" or "other"
  variant: "grpo",
  ratio: 1,
  flipped: "", // numbers of rollouts whose verdict was turned over
  // Of the tab that is shown
  at: -1, // the chosen token
  path: "", // exchanged tokens, "position:token" of each branch from the root on
};
const CLIP_OFF = 6.5;
const S = { ...DEFAULTS };

// What a link may say. Of numbers that have a slider or a field, that one knows the limits.
const WORDS = {
  tab: (x) => Object.hasOwn(EXAMPLES, x),
  kind: (x) => ["reverse", "forward", "jsd"].includes(x),
  plan: (x) => ["sinkhorn", "exact"].includes(x),
  ar_kind: (x) => ["residual", "loss"].includes(x),
  variant: (x) => Object.hasOwn(grpo.VARIANTS, x),
  peer: (x) => /^(\d|answer|other|)$/.test(x),
  flipped: (x) => x === "" || x.split(",").every((i) => /^\d$/.test(i) && i < GROUP),
  path: (x) => /^(\d+:\d+(,|$))*$/.test(x),
  own: () => true, // read_own looks at it
};

function number_of_link(name, x) {
  const whole = { min: -1, max: 1e4, step: 1 }; // numbers of tokens, rollouts and problems
  const most = { problem: DATA.problems.length - 1, rollout: GROUP - 1 };
  if (name === "epsilon") return Math.max(0.001, Math.min(1, x));
  const field = $(`#${name}[type]`) || { ...whole, max: most[name] ?? whole.max };
  const [min, max, step] = [field.min, field.max, field.step].map(Number);
  const steps = Math.round((Math.max(min, Math.min(max, x)) - min) / step);
  return Number((min + steps * step).toFixed(4));
}

let address; // as it was read or written last

function read_address() {
  address = location.hash;
  Object.assign(S, DEFAULTS);
  for (const [name, text] of new URLSearchParams(location.hash.slice(1))) {
    if (!Object.hasOwn(DEFAULTS, name)) continue;
    const x = Number(text);
    if (typeof DEFAULTS[name] === "number") {
      if (text !== "" && Number.isFinite(x)) S[name] = number_of_link(name, x);
    } else if (WORDS[name](text)) S[name] = text;
  }
}

let remembering;
function remember() {
  clearTimeout(remembering); // a slider that is dragged would change the address at each step
  remembering = setTimeout(() => {
    if (location.hash !== address) return; // another link is about to be opened
    const changed = new URLSearchParams();
    for (const name in DEFAULTS) if (S[name] !== DEFAULTS[name]) changed.set(name, S[name]);
    try {
      history.replaceState(null, "", `#${changed}`);
      address = location.hash;
    } catch {
      // A strict browser forbids this for a file. The page works without it.
    }
  }, 200);
}

// Places worth seeing. Until a problem is chosen, every tab begins with its first one.
const EXAMPLES = {
  opd: [
    ["a slip in arithmetic", { problem: 9, seed: 14, temperature: 1, kind: "reverse" }],
    ["a fact it never learnt", { problem: 21, seed: 2, temperature: 1, kind: "forward" }],
    ["only words", { problem: 2, seed: 1, temperature: 1, kind: "reverse" }],
  ],
  topd: [
    ["a slip", { problem: 9, seed: 14, temperature: 1, candidate_share: 0.0225 }],
    ["a low distance", { problem: 2, seed: 1, temperature: 1, candidate: 38 }],
    ["many candidates", { problem: 21, seed: 2, temperature: 1, candidate_share: 0.1 }],
  ],
  ar_opd: [
    ["the full view knows", { problem: 19, ar_seed: 11, rho: 0.5, lam: 0.6 }],
    ["a slip in the second half", { problem: 14, ar_seed: 1, rho: 0.5, lam: 0.6 }],
    ["the same, the part reaches it", { problem: 14, ar_seed: 1, rho: 0.8, lam: 0.6 }],
  ],
  hindsight_sd: [
    ["credit on the slip", { problem: 8, group_seed: 3 }],
    ["another group", { problem: 3, group_seed: 4 }],
  ],
  grpo: [
    ["some are right", { problem: 8, group_seed: 3, variant: "grpo" }],
    ["one verdict turned over", { problem: 8, group_seed: 3, flipped: "0" }],
  ],
};

// ======================================================================== models

const TOKENS = new Tokenizer(DATA.vocabulary);
const MODELS = {};
const STEMS = {};
const TIMES = { load: 0, write: 0, written: 0 }; // milliseconds, and tokens

// A model is unpacked when it is needed first.
function model(name) {
  if (!MODELS[name]) {
    const start = performance.now();
    const blob = $(`#weights-${name}`);
    MODELS[name] = new Model(name, DATA.configs[name], bytes_of(blob.textContent));
    blob.remove();
    TIMES.load += performance.now() - start;
  }
  return MODELS[name];
}

// The stem of a name is kept, so what it has read already is not read again.
function stem(name, who) {
  STEMS[name] ??= new Stem(model(who));
  return STEMS[name];
}

// Let the browser draw. A page in the background gets no frames, so there is a timer, too.
function frame() {
  return new Promise((resolve) => {
    requestAnimationFrame(resolve);
    setTimeout(resolve, 50);
  });
}

const CALM = matchMedia("(prefers-reduced-motion: reduce)").matches;

// ======================================================================== the problem

let problem; // { text, solution, answer, parsed, ids }

function problem_number() {
  return S.problem >= 0 ? S.problem : EXAMPLES[S.tab][0][1].problem;
}

function set_problem() {
  const row = S.own ? read_own(S.own) : DATA.problems[problem_number()];
  const parsed = world.parse(row.problem, DATA.table);
  problem = {
    text: row.problem,
    parsed,
    answer: row.answer,
    solution: row.solution,
    ids: TOKENS.prompt_ids(row.problem),
  };
  show_problem();
}

// A problem that a visitor wrote, as a row of the data. An error says why it can be none.
function read_own(text) {
  const parsed = world.parse(text, DATA.table);
  const unknown = TOKENS.pieces(text).find((piece) => !Object.hasOwn(TOKENS.id, piece));
  if (unknown) throw new Error(`The models do not know the word "${unknown.trim()}".`);
  const row = { problem: text, answer: String(parsed.answer), solution: world.solve(parsed) };
  // The longest text that a model reads: the problem, what it is shown, and a rollout.
  const shown = Math.max(TOKENS.encode(row.solution).length, LONGEST_ROLLOUT);
  const around = TOKENS.prompt_ids(privileged_prompt(text, "", row.answer)).length;
  const most = DATA.configs.reader.longest;
  const over = around + shown + LONGEST_ROLLOUT + SPARE - most;
  if (over > 0) {
    throw new Error(
      `It is too long, by about ${over} tokens: with a solution and a rollout it must fit into ` +
        `the ${most} tokens that a model can read.`,
    );
  }
  return row;
}

function show_problem() {
  const { parsed, text, answer } = problem;
  const statements = parsed.events.map((event) => {
    const off = event.thing === parsed.thing ? "" : "off"; // it does not matter
    return `<span class="${off}"><b>${event.label}:</b> ${escaped(event.text)}.</span> `;
  });
  const question = text.slice(text.indexOf(" How many ") + 1);
  $("#asked").innerHTML =
    `${statements.join("")}${escaped(question)} <span class="gold">[right: ${answer}]</span>`;
  $("#problem").value = S.own ? "own" : problem_number();
}

function escaped(text) {
  const names = { "&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;" };
  return String(text).replace(/[&<>"]/g, (c) => names[c]);
}
