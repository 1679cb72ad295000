// The toy's language (toy/world.py): what a page needs of it.
//
// It reads a problem that a visitor wrote, compares a solution with the truth, claim by claim,
// and says which tokens are words and which are substance.

const world = (() => {
  const STYLES = { terse: "Answer briefly.", verbose: "Explain each step." };
  const STATEMENTS = {
    start: /^(?:starts|begins) with (\d+) (\w+)$/,
    plus: /^(?:finds|wins) (\d+) (\w+)$/,
    minus: /^(?:loses|drops) (\d+) (\w+)$/,
    mix: /^(?:finds|wins) (\d+) # (\d+) (\w+)$/,
    times: /^(doubles|triples) (?:the|all) (\w+)$/,
    half: /^halves (?:the|all) (\w+)$/,
  };
  const TIMES = { doubles: 2, triples: 3 };
  const OPERATOR = { plus: "+", mix: "+", minus: "-", times: "*", half: "/" };
  const LIMIT = 99; // every value lies in 0..99

  // The claims of a solution: a label, an equation, a recalled value, or the answer.
  const PIECE = new RegExp(
    String.raw`(?<!\w)(?<label>[A-Za-z]):` +
      String.raw`|(?<left>\d+) (?<op>[-+*\/#]) (?<right>\d+)` +
      String.raw` (?:=|makes|gives|equals) (?<value>\d+)(?!\d)` +
      String.raw`|we have (?<have>\d+)(?!\d)` +
      String.raw`|\\boxed\{(?<box>\d+)\}`,
    "dg",
  );

  // ====================================================================== a problem

  // The value after a step, or null if it is not allowed: negative, above the limit, or half of
  // an odd number.
  function apply(kind, before, number) {
    if (kind === "half") return before % 2 ? null : before / 2;
    const result = {
      plus: before + number,
      mix: before + number,
      minus: before - number,
      times: before * number,
    }[kind];
    return result >= 0 && result <= LIMIT ? result : null;
  }

  // The right operand of a step.
  function operand(event) {
    if (event.kind === "half") return 2;
    return event.kind === "mix" ? event.fact : event.numbers[0];
  }

  function parse_statement(sentence, table) {
    const colon = sentence.indexOf(": ");
    const [label, text] = [sentence.slice(0, colon), sentence.slice(colon + 2)];
    const kind = Object.keys(STATEMENTS).find((k) => STATEMENTS[k].test(text));
    if (!kind || !/^[A-Za-z]$/.test(label)) {
      throw new Error(`"${sentence}" is no statement of the toy's language.`);
    }
    const found = STATEMENTS[kind].exec(text).slice(1);
    const thing = found.pop();
    const numbers = found.map((x) => TIMES[x] ?? parseInt(x));
    const event = { label, kind, numbers, thing, text, value: -1 };
    if (kind === "mix") {
      event.fact = table[numbers.join("")];
      if (event.fact === undefined) {
        const fact = numbers.join(" # ");
        throw new Error(`"${sentence}": there is no fact ${fact}, # takes digits from 1 to 9.`);
      }
    }
    return event;
  }

  // The problem that a text describes. An error says what is not of this language.
  function parse(text, table) {
    const [body, ...tails] = text.split(" How many ");
    if (tails.length > 1) throw new Error('"How many" must stand there once: it is the question.');
    const asked = /^(\w+) at the end\? (.+)$/.exec(tails[0] || "");
    const style = Object.keys(STYLES).find((s) => asked && STYLES[s] === asked[2]);
    if (!style) {
      throw new Error('It must end like "How many coins at the end? Answer briefly."');
    }
    const thing = asked[1];
    const sentences = body.replace(/\.+$/, "").split(". ");
    const events = sentences.map((sentence) => parse_statement(sentence, table));
    const chain = events.filter((e) => e.thing === thing); // the events that matter
    if (chain.length < 2) throw new Error("There must be at least one step.");
    if (chain[0].kind !== "start") {
      throw new Error(`The first statement about ${thing} must say how many there are.`);
    }
    if (new Set(events.map((e) => e.label)).size < events.length) {
      throw new Error("Every statement needs a label of its own.");
    }
    let now = null;
    for (const event of chain) {
      const said = `"${event.label}: ${event.text}"`;
      if (event.kind === "start" && now !== null) {
        throw new Error(`${said} is a second start of ${thing}: they start once, and first.`);
      }
      now = event.kind === "start" ? event.numbers[0] : apply(event.kind, now, operand(event));
      if (now === null || now > LIMIT) {
        throw new Error(`${said} leaves the world: values are whole numbers from 0 to ${LIMIT}.`);
      }
      event.value = now;
    }
    return { events, chain, style, thing, answer: now };
  }

  // A worked solution in the teacher's most usual words, for problems that a visitor wrote.
  function solve(problem) {
    const sentences = problem.chain.slice(1).map((event, i) => {
      const before = problem.chain[i].value;
      const [a, b] = event.numbers;
      const fact = event.kind === "mix" ? `${a} # ${b} = ${event.fact}, ` : "";
      const step = `${before} ${OPERATOR[event.kind]} ${operand(event)} = ${event.value}.`;
      const body = fact + step;
      if (problem.style === "terse") return `${event.label}: ${body}`;
      return `Next, ${event.label}: ${event.text}, so ${body}`;
    });
    return `${sentences.join(" ")} The answer is \\boxed{${problem.answer}}.`;
  }

  // ====================================================================== the checker

  const NOTHING = { fault: "", at: -1, right: "" };

  // Where a number first leaves the truth: at which digit, and which digit is right.
  function compare_numbers(fault, said, start, truth) {
    truth = String(truth);
    if (said === truth) return NOTHING;
    for (let i = 0; i < truth.length; i++) {
      if (said[i] !== truth[i]) return { fault, at: start + i, right: truth[i] };
    }
    return { fault, at: start + truth.length, right: "" };
  }

  // An equation is compared with every order of the operands that is right. The order that agrees
  // longest says what should stand at the first difference.
  function compare(match, truths) {
    const pieces = ["left", "op", "right", "value"];
    const agreed = (truth) => {
      const i = pieces.findIndex((p, k) => match.groups[p] !== truth[k]);
      return i < 0 ? pieces.length : i;
    };
    const truth = truths.reduce((a, b) => (agreed(b) > agreed(a) ? b : a));
    const i = agreed(truth);
    if (i === pieces.length) return NOTHING;
    const start = match.indices.groups[pieces[i]][0];
    if (pieces[i] === "op") return { fault: "operation", at: start, right: truth[i] };
    const fault = pieces[i] === "value" ? "slip" : "operand";
    return compare_numbers(fault, match.groups[pieces[i]], start, truth[i]);
  }

  // Compare an equation with the step that its label demands.
  function check_step(match, event, before) {
    const [left, right, value] = [before.value, operand(event), event.value].map(String);
    const operator = OPERATOR[event.kind];
    const orders = [[left, operator, right, value]];
    if ("+*".includes(operator)) orders.push([right, operator, left, value]);
    return compare(match, orders);
  }

  // Compare a solution with the truth, claim by claim. The kinds of claims: "7 # 4 = 2" is a fact,
  // "14 + 2 = 16" a step, "we have 14" a recall, and the box the answer.
  function check(problem, response) {
    const { chain, events } = problem;
    const stated = new Set([chain[0].label]); // labels whose value the text has stated so far
    const steps = [];
    let label = null; // the match of the label that a claim stands under
    let answer = null;
    for (const match of response.matchAll(PIECE)) {
      const said = match.groups;
      if (said.label) {
        label = match;
        continue;
      }
      const start = (group) => match.indices.groups[group][0];
      const due = chain.find((e) => !stated.has(e.label)); // to be computed next
      const event = label ? events.find((e) => e.label === label.groups.label) : null;
      const place = chain.indexOf(event);
      const step = { start: match.index, end: match.index + match[0].length };
      // premature: it stands in the text before the value that it needs. true: the value that it
      // states is right, whatever its operands are.
      Object.assign(step, NOTHING, { premature: false, true: false });
      if (said.box) {
        step.kind = "answer";
        answer = parseInt(said.box);
        step.premature = !stated.has(chain.at(-1).label);
        step.true = answer === problem.answer;
        Object.assign(step, compare_numbers("value", said.box, start("box"), problem.answer));
      } else if (said.have) {
        step.kind = "recall"; // how many there are before the event that it stands under
        if (place > 0) {
          const before = chain[place - 1];
          step.premature = !stated.has(before.label);
          Object.assign(step, compare_numbers("value", said.have, start("have"), before.value));
          step.true = !step.fault;
        }
      } else {
        step.kind = said.op === "#" ? "fact" : "step";
        if (place < 1 || (step.kind === "fact" && event.kind !== "mix")) {
          const at = label ? label.index : match.index;
          Object.assign(step, { fault: "statement", at, right: due ? due.label : "" });
        } else if (step.kind === "fact") {
          const [a, b] = event.numbers;
          Object.assign(step, compare(match, [[`${a}`, "#", `${b}`, `${event.fact}`]]));
        } else {
          step.true = parseInt(said.value) === event.value;
          step.premature = !stated.has(chain[place - 1].label);
          Object.assign(step, check_step(match, event, chain[place - 1]));
          // The mistake is that this statement was taken now.
          if (step.fault && step.premature) {
            Object.assign(step, { fault: "statement", at: label.index, right: due.label });
          }
          stated.add(event.label);
        }
      }
      steps.push(step);
    }
    return {
      steps,
      answer,
      correct: answer === problem.answer,
      first_wrong: steps.find((s) => s.fault) || null,
      // True values before those that they are computed from: the solver knew them, and did not
      // derive them.
      shortcuts: steps.filter((s) => s.premature && s.true),
    };
  }

  // ====================================================================== verdicts and words

  // common/grading.py, for answers that are whole numbers: the last box counts. Words behind the
  // number and a full stop change nothing: "5 coins." is 5.
  const WHOLE = /^(\d+)(?:\s+[A-Za-z]{2,}(?:\s+[A-Za-z]+)*)?\.*$/;
  const NUMBERS = /-?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?/g; // -12 is another number than 12

  function extract(text) {
    const at = text.lastIndexOf("\\boxed");
    if (at < 0) return null;
    return /^\\boxed\s*\{([^{}]*)\}/.exec(text.slice(at))?.[1].trim() || null;
  }

  function verify(text, gold, truncated) {
    const boxed = extract(text);
    if (boxed !== null) return parseInt(WHOLE.exec(boxed)?.[1]) === parseInt(gold);
    if (truncated || text.includes("\\boxed")) return false;
    const last = (text.match(NUMBERS) || [""]).at(-1);
    return last !== "" && Number(last.replaceAll(",", "")) === Number(gold);
  }

  // The kind of every token: label, operand, operator, value, answer or surface. offsets: the
  // [start, end] of each token in the response. All but `surface` is substance.
  function token_kinds(response, offsets) {
    const kind = Array(response.length + 1).fill("surface");
    const groups = { label: "label", left: "operand", op: "operator", right: "operand" };
    for (const m of response.matchAll(/\d+/g)) kind.fill("value", m.index, m.index + m[0].length);
    for (const m of response.matchAll(PIECE)) {
      for (const [group, what] of Object.entries(groups)) {
        if (m.groups[group]) kind.fill(what, ...m.indices.groups[group]);
      }
      if (m.groups.box) kind.fill("answer", m.index, m.index + m[0].length);
    }
    return offsets.map(([start, end]) => {
      return (
        kind
          .slice(start, end)
          .filter((k) => k !== "surface")
          .at(-1) || "surface"
      );
    });
  }

  return { parse, solve, check, extract, verify, token_kinds };
})();
