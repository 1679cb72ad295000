// Rollouts and their branches: who writes, who reads along, and what the checker says of them.

const CONTINUATIONS = 16; // rollouts from which the worth of a token is estimated

const FAULTS = {
  statement: "it takes a statement that is not due",
  operand: "a wrong operand",
  operation: "a wrong operation",
  slip: "a slip in the arithmetic",
  value: "a wrong value",
};

// ======================================================================== judging

// The [start, end] of every token in the text.
function offsets(ids) {
  let at = 0;
  return ids.map((id) => {
    const start = at;
    at += id < TOKENS.first_word ? 0 : TOKENS.text[id].length;
    return [start, at];
  });
}

// Right or wrong, and where the text first leaves the truth.
function judge(rollout) {
  const { ids, problem } = rollout;
  const text = TOKENS.decode(ids);
  const places = offsets(ids);
  const report = world.check(problem.parsed, text);
  const wrong = report.first_wrong;
  const truncated = ids.at(-1) !== TOKENS.end;
  const covers =
    (step) =>
    ([start, end]) =>
      start < step.end && step.start < end;
  Object.assign(rollout, {
    text,
    truncated,
    wrong,
    said: world.extract(text),
    right: world.verify(text.trim(), problem.answer, truncated),
    fault: wrong ? places.findIndex(([s, e]) => s <= wrong.at && wrong.at < e) : -1,
    kinds: world.token_kinds(text, places),
    shortcuts: new Set(),
  });
  for (const step of report.shortcuts) {
    places.forEach((place, i) => covers(step)(place) && rollout.shortcuts.add(i));
  }
}

// One or two sentences about a judged rollout.
function verdict(rollout) {
  const { said, right, wrong, fault, truncated, problem } = rollout;
  const answer = escaped(said ?? (truncated ? "none, it was cut off" : "none"));
  const mark = right
    ? '<span class="good">right</span>'
    : `<span class="bad">wrong (${problem.answer} is right)</span>`;
  let text = `Its answer: <b>${answer}</b>, ${mark}. `;
  if (wrong && fault >= 0) {
    const is_fact = wrong.kind === "fact" && wrong.fault === "slip";
    const what = is_fact ? "a wrong fact of the # table" : FAULTS[wrong.fault];
    const should = wrong.right ? `; <b>${escaped(wrong.right)}</b> would be right` : "";
    text += `It first leaves the truth at <b>✗</b>, token ${fault + 1}: ${what}${should}. `;
  }
  return text;
}

// ======================================================================== writing

// A rollout and its branches. views(problem): who reads it, [{ key, who, prompt }]; the first one
// writes. The problem is that of the rollout: another tab may set another one meanwhile.
// first(rollout): the token that is looked at first. show(final): draws the section.
class Rollouts {
  constructor(place, views, first, show) {
    Object.assign(this, { place, views, first, show });
    this.list = []; // the rollout, then its branches
    this.now = 0; // the one that is shown
    this.at = null; // the token that is looked at
    this.run = 0; // a newer run stops an older one
    this.drawn = ""; // what the rollout was drawn for
  }

  get rollout() {
    return this.list[this.now];
  }

  // Is there something that can be clicked?
  get ready() {
    return this.list.length > 0 && !this.rollout.writing;
  }

  async roll(seed, temperature, animate) {
    const run = ++this.run;
    const rollout = { problem, ids: [], logp: {}, from: null, writing: true };
    Object.assign(this, { seed, temperature, list: [rollout], now: 0, at: null });
    return this.grow(rollout, run, animate);
  }

  // Take token v at position t instead of the written one, and let the text go on.
  async branch(t, v, animate = !CALM) {
    const parent = this.rollout;
    const run = ++this.run;
    this.list = this.list.filter((b) => !b.writing);
    const known = this.list.findIndex(
      (b) => b.from?.parent === parent && b.from.t === t && b.ids[t] === v,
    );
    this.at = t;
    if (known >= 0) {
      this.now = known;
      this.read(this.rollout); // a view may have changed since
      this.show(true);
      return true;
    }
    const logp = {}; // up to t nothing has changed
    for (const name in parent.logp) logp[name] = parent.logp[name].slice(0, t + 1);
    const ids = [...parent.ids.slice(0, t), v];
    const from = { parent, t, was: parent.ids[t] };
    this.list.push({ problem: parent.problem, ids, logp, from, writing: true });
    this.now = this.list.length - 1;
    return this.grow(this.rollout, run, animate);
  }

  stem_of(view, ids) {
    return stem(`${this.place} ${view.key}`, view.who).read([...view.prompt, ...ids]);
  }

  // The distributions of all views at every position that has none yet.
  read(rollout) {
    for (const view of this.views(rollout.problem)) {
      const known = (rollout.logp[view.key] ??= []);
      if (known.length >= rollout.ids.length) continue;
      const read = this.stem_of(view, rollout.ids);
      while (known.length < rollout.ids.length) {
        known.push(read.logp(view.prompt.length + known.length, this.temperature || 1));
      }
    }
  }

  async grow(rollout, run, animate) {
    const views = this.views(rollout.problem);
    this.read(rollout);
    const stems = views.map((view) => this.stem_of(view, rollout.ids));
    const { ids } = rollout;
    let drawn = performance.now();
    while (ids.length < LONGEST_ROLLOUT && ids.at(-1) !== TOKENS.end) {
      const start = performance.now();
      const sampling = { temperature: this.temperature, seed: this.seed };
      const token = next_token(stems[0], views[0].prompt.length, sampling);
      views.forEach((view, k) => {
        const n = view.prompt.length + ids.length;
        rollout.logp[view.key].push(stems[k].logp(n, this.temperature || 1));
      });
      for (const s of stems) s.push([token]);
      ids.push(token);
      TIMES.write += performance.now() - start;
      TIMES.written++;
      // With or without animation the page must not freeze. But a frame for every token would
      // take a second for a rollout, so several tokens appear at once.
      if (performance.now() - drawn > 30) {
        if (animate) this.show(false);
        await frame();
        drawn = performance.now();
        if (run !== this.run) return false;
      }
    }
    rollout.writing = false;
    judge(rollout);
    if (this.at === null) this.at = this.first(rollout);
    this.show(true);
    return true;
  }

  select(i) {
    if (!this.ready || !(i >= 0 && i < this.rollout.ids.length)) return;
    this.at = i;
    this.show(true);
  }

  // Show another branch.
  turn_to(number) {
    if (!this.ready || !this.list[number]) return;
    this.now = number;
    this.read(this.rollout);
    const place = this.rollout.from ? this.rollout.from.t : this.at;
    this.at = Math.min(place, this.rollout.ids.length - 1);
    this.show(true);
  }

  // The exchanged tokens from the root to the branch that is shown, for the address.
  path() {
    const steps = [];
    for (let b = this.rollout; b?.from; b = b.from.parent) {
      steps.unshift(`${b.from.t}:${b.ids[b.from.t]}`);
    }
    return steps.join(",");
  }

  // Make the branches of a path again. What does not fit is left out.
  async follow(path) {
    for (const step of path.split(",").filter(Boolean)) {
      const [t, v] = step.split(":").map(Number);
      const fits = t >= 0 && t < this.rollout.ids.length && v >= 0 && v < TOKENS.size;
      if (!fits || !(await this.branch(t, v, false))) return;
    }
  }
}

// ======================================================================== what a token is worth

// Of CONTINUATIONS texts that a model writes from here, how many end right? null: stale.
// writer: { name, who, seed, first_stream }, the name of its stem and its random numbers.
async function continuations_right(writer, prompt, start, answer, is_stale) {
  const { name, who, seed, first_stream } = writer;
  const text = stem(name, who);
  let right = 0;
  for (let k = 0; k < CONTINUATIONS; k++) {
    const ids = [...start];
    text.read([...prompt, ...ids]);
    while (ids.length < LONGEST_ROLLOUT && ids.at(-1) !== TOKENS.end) {
      const token = next_token(text, prompt.length, { seed, stream: first_stream + k });
      text.push([token]);
      ids.push(token);
    }
    const truncated = ids.at(-1) !== TOKENS.end;
    right += world.verify(TOKENS.decode(ids).trim(), answer, truncated);
    if (k % 2) await frame();
    if (is_stale()) return null;
  }
  return right;
}

// Fills stakes {token: right continuations} of a few tokens at position t, one after the other.
async function find_stakes(name, who, rollout, t, tokens, is_stale, show) {
  const { problem } = rollout;
  const writer = { name, who, seed: 7, first_stream: 100 };
  const stakes = Object.fromEntries(tokens.map((v) => [v, null]));
  (rollout.stakes ??= {})[t] = stakes;
  show();
  for (const v of tokens) {
    const start = [...rollout.ids.slice(0, t), v];
    const right = await continuations_right(writer, problem.ids, start, problem.answer, is_stale);
    if (right === null) {
      delete rollout.stakes[t];
      return;
    }
    stakes[v] = right;
    show();
  }
}

// ======================================================================== branches as buttons

function branch_label(b) {
  const mark = b.right ? '<span class="good">✓</span>' : '<span class="bad">✗</span>';
  const { from } = b;
  const what = from ? `${from.t + 1}: ${named(from.was)} → ${named(b.ids[from.t])}` : "rollout";
  return `${mark} ${what} · ${escaped(b.said ?? "–")}`;
}

function show_branches(element, rollouts) {
  const buttons = rollouts.list.map((b, i) => {
    const on = i === rollouts.now;
    return (
      `<button class="chip" data-branch="${i}" data-key="branch${i}" ` +
      `aria-pressed="${on}">${branch_label(b)}</button>`
    );
  });
  fill(element, buttons.length < 2 ? "" : buttons.join(""));
}
