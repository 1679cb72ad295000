"""The toy's language: multi-step word problems about a purse, their worked solutions, and a checker that knows the truth.

A problem (three steps; statement r is about another thing; what p finds must be looked up in a table):

    n: starts with 14 coins. p: finds 7 # 4 coins. r: loses 8 stones. t: doubles the coins. w: loses 5 coins.
    How many coins at the end? Answer briefly.

and a solution of it:

    p: 7 # 4 = 3, 14 + 3 = 17. t: 17 * 2 = 34. w: 34 - 5 = 29. The answer is \\boxed{29}.

What the language has on purpose, because on-policy distillation is about just this:

* Genuine forks. At every step a solver can take the wrong statement (another thing, one too early, one again), a wrong
  operand or operation, or can slip in the arithmetic. `check` says which, and where the text first left the truth.
* Surface variety. The same step can be said in dozens of ways ("So p: we have 14 coins, thus 3 + 14 makes 17."), and
  facts may be looked up early or late. Two voices prefer different ways, so that much of the disagreement between two
  models is about words. `token_kinds` tells words from substance.
* Skill and knowledge. Adding 5 is easy, adding 27 or tripling is hard: a skill. `7 # 4` is looked up in a fixed table
  that cannot be derived from anything: knowledge, which must come from outside (a teacher, or a hint that shows it).

Every statement begins with a label of its own, because a small transformer learns to look up what stands behind a
label, and does not learn within minutes to bind by meaning. Nothing here imports torch; everything is a pure function
of its arguments and of the `random.Random` that is passed in.
"""

import random
import re
from dataclasses import dataclass, field

# Labels come in families and a problem draws from one family only. Another problem's solution therefore mostly talks
# about unknown labels, so that a reader can see that it does not belong here (hints must be told from wrong hints).
FAMILIES = ["abcdefghijkl", "mnopqrstuvwxyz", "ABCDEFGHIJKL", "MNOPQRSTUVWXYZ"]
LABELS = "".join(FAMILIES)
THINGS = ["coins", "stones", "shells", "beads"]
STYLES = {"terse": "Answer briefly.", "verbose": "Explain each step."}
LIMIT = 99  # every value lies in 0..99: two digits at most

# The table of `#`: 81 facts without a rule behind them, the same in every problem of this world. One digit, so that a
# fact is one token; six possible values, so that a solver who does not know the fact is right once in six times.
_table_rng = random.Random(20606)
TABLE = {(a, b): _table_rng.randint(1, 6) for a in range(1, 10) for b in range(1, 10)}


@dataclass
class Event:
    """One statement. kind: start | plus | minus | mix (a looked-up number is added) | times | half."""

    label: str
    thing: str
    kind: str
    numbers: tuple = ()  # constants of the statement
    fact: int = -1  # of a mix: what the table says
    value: int = -1  # how many there are after this event (of the asked thing; -1 for another thing)


@dataclass
class Problem:
    events: list  # in the order of the text
    thing: str  # what is asked for; events of another thing do not matter
    style: str
    phrasing: list = field(default_factory=list)

    def __getitem__(self, label):
        return next((e for e in self.events if e.label == label), None)

    @property
    def chain(self):  # the events that matter: each needs the value of the one before it (the dependency graph)
        return [e for e in self.events if e.thing == self.thing]

    @property
    def answer(self):
        return self.chain[-1].value

    def before(self, event):
        return self.chain[self.chain.index(event) - 1]

    @property
    def text(self):
        said = [
            f"{e.label}: " + STATEMENTS[e.kind][way].format(o=e.thing, d=e.numbers, t=TIMES.get(e.numbers))
            for e, way in zip(self.events, self.phrasing)
        ]
        return " ".join(said) + f" How many {self.thing} at the end? {STYLES[self.style]}"


TIMES = {(2,): "doubles", (3,): "triples"}
# fmt: off
STATEMENTS = {      # two ways to say each thing
    "start": ["starts with {d[0]} {o}.", "begins with {d[0]} {o}."],
    "plus": ["finds {d[0]} {o}.", "wins {d[0]} {o}."],
    "minus": ["loses {d[0]} {o}.", "drops {d[0]} {o}."],
    "mix": ["finds {d[0]} # {d[1]} {o}.", "wins {d[0]} # {d[1]} {o}."],
    "times": ["{t} the {o}.", "{t} all {o}."],
    "half": ["halves the {o}.", "halves all {o}."],
}
# fmt: on


def apply(kind, before, number):
    """The value after a step; None where the result leaves the world (negative, over 99, an odd half)."""
    if kind == "half":
        return before // 2 if before % 2 == 0 else None
    result = {"plus": before + number, "mix": before + number, "minus": before - number, "times": before * number}[kind]
    return result if 0 <= result <= LIMIT else None


def expression(event, before):
    """Left operand, operator, right operand of a step, in the order of the statement."""
    operator = {"plus": "+", "mix": "+", "minus": "-", "times": "*", "half": "/"}[event.kind]
    return before, operator, {"half": 2, "mix": event.fact}.get(event.kind, event.numbers[0] if event.numbers else None)


def is_hard(event):
    """Hard = a two-digit operand, a product or a half. (A mix is neither: its fact is known or it is not.)"""
    return event.kind in ("times", "half") or (event.kind in ("plus", "minus") and event.numbers[0] >= 10)


# ---------------------------------------------------------------------------------------------------- problems

# How often each kind of step occurs in the benchmark's problems.
MIXTURE = {"easy": 0.42, "hard": 0.33, "mix": 0.25}


def make_problem(rng, level, style=None, mixture=MIXTURE, believe=None, distractors=2):
    """A random problem of `level` steps.

    `believe(event, before)` may replace the truth of a step (a mix's fact, otherwise the value) by another one (None =
    keep the truth). build.py needs such FALSE problems: where a shown solution has random results, copying is the only
    way to be right, so a model learns to read hints and learns no arithmetic from them; and a student that is not to
    know a fact sees it with random results.
    """
    while True:
        problem = _try_problem(rng, level, style, mixture, believe, distractors)
        if problem:
            return problem


def _try_problem(rng, level, style, mixture, believe, distractors):
    thing, other = rng.sample(THINGS, 2)
    now = rng.randint(3, 60)
    events = [Event("", thing, "start", (now,), value=now)]
    for _ in range(level):
        draw = rng.choices(list(mixture), list(mixture.values()))[0]
        if draw == "easy":
            event = Event("", thing, rng.choice(["plus", "minus"]), (rng.randint(1, 9),))
        elif draw == "hard":
            kind = rng.choice(["plus", "plus", "minus", "minus", "times", "half"])
            event = Event("", thing, kind, {"times": (rng.choice([2, 3]),), "half": ()}.get(kind, (rng.randint(10, 29),)))
        else:
            event = Event("", thing, "mix", (rng.randint(1, 9), rng.randint(1, 9)))
            event.fact = TABLE[event.numbers]
        belief = believe(event, now) if believe else None
        if belief is not None and event.kind == "mix":
            event.fact = belief
        event.value = apply(event.kind, *expression(event, now)[::2])
        if event.value is None:  # left the world: draw the problem again
            return None
        if belief is not None and event.kind != "mix":
            event.value = belief
        now = event.value
        events.append(event)
    for _ in range(rng.randint(0, distractors)):  # events of another thing, anywhere but in front
        kind = rng.choice(["plus", "minus", "start"])
        events.insert(rng.randint(1, len(events)), Event("", other, kind, (rng.randint(1, 29),)))
    # Labels in the family's order, with gaps: "the next label" is not "the next letter".
    family = rng.choice(FAMILIES)
    for event, label in zip(events, sorted(rng.sample(family, len(events)))):
        event.label = label
    return Problem(events, thing, style or rng.choice(list(STYLES)), [rng.randrange(2) for _ in events])


# ---------------------------------------------------------------------------------------------------- solutions

# Two voices: the same sentences, other habits. No habit has probability zero in either, so that each model has read the
# other's way of talking and judges its arithmetic, not its manners. `early`: look facts up before the step that needs them.
# fmt: off
VOICES = {
    "teacher": dict(connective={"Next,": 4, "Now": 3, "": 2, "Then": 1, "So": 1}, equals={"=": 7, "equals": 2, "makes": 1, "gives": 1},
                    lead={"{s}, so ": 4, "we have {b} {o}, so ": 1, "{s}, thus ": 1, "we have {b} {o}, thus ": 1, "": 2},
                    swap=.1, early=.1, close={"The answer is": 5, "Answer:": 1, "So the answer is": 1}),
    "student": dict(connective={"Then": 4, "So": 4, "Now": 1, "Next,": 1, "": 2}, equals={"makes": 5, "gives": 3, "=": 1, "equals": 1},
                    lead={"{s}, so ": 1, "we have {b} {o}, so ": 1, "{s}, thus ": 1, "we have {b} {o}, thus ": 4, "": 3},
                    swap=.5, early=.3, close={"So the answer is": 4, "Answer:": 3, "The answer is": 1}),
}
# fmt: on


def _pick(rng, weights):
    return rng.choices(list(weights), list(weights.values()))[0]


def solve(problem, rng, voice="teacher"):
    """A right solution as this voice would write it; two calls differ in words and in where facts are looked up."""
    v, said, looked_up = VOICES[voice], [], set()

    def sentence(event, body):
        connective = _pick(rng, v["connective"]) if problem.style == "verbose" else ""
        said.append(f"{connective} {event.label}: {body}.".strip())

    def fact(event):
        return f"{event.numbers[0]} # {event.numbers[1]} {_pick(rng, v['equals'])} {event.fact}"

    for event in problem.chain[1:]:
        if event.kind == "mix" and rng.random() < v["early"]:
            sentence(event, fact(event))
            looked_up.add(event.label)
    for event in problem.chain[1:]:
        before = problem.before(event).value
        left, operator, right = expression(event, before)
        if operator in "+*" and rng.random() < v["swap"]:
            left, right = right, left
        body = f"{left} {operator} {right} {_pick(rng, v['equals'])} {event.value}"
        if event.kind == "mix" and event.label not in looked_up:
            body = f"{fact(event)}, {body}"
        if problem.style == "verbose":
            way = problem.phrasing[problem.events.index(event)]
            statement = STATEMENTS[event.kind][way].format(o=event.thing, d=event.numbers, t=TIMES.get(event.numbers))[:-1]
            body = _pick(rng, v["lead"]).format(s=statement, b=before, o=event.thing) + body
        sentence(event, body)
    return " ".join(said) + f" {_pick(rng, v['close'])} \\boxed{{{problem.answer}}}."


def cut(text, share):
    """The first `share` of a text, cut at a word: the partial view of AR-OPD. The answer stands at the end and goes."""
    words = text.split(" ")
    return " ".join(words[: max(1, int(len(words) * share))])


# ---------------------------------------------------------------------------------------------------- reading

_STATEMENT = {
    "start": [r"starts with (\d+) (\w+)", r"begins with (\d+) (\w+)"],
    "plus": [r"finds (\d+) (\w+)", r"wins (\d+) (\w+)"],
    "minus": [r"loses (\d+) (\w+)", r"drops (\d+) (\w+)"],
    "mix": [r"finds (\d+) # (\d+) (\w+)", r"wins (\d+) # (\d+) (\w+)"],
    "times": [r"(doubles|triples) the (\w+)", r"(doubles|triples) all (\w+)"],
    "half": [r"halves the (\w+)", r"halves all (\w+)"],
}


def parse(text):
    """Read a problem's text back into its events. Raises ValueError where the text is not of this language."""
    body, _, tail = text.partition(" How many ")
    asked = re.fullmatch(r"(\w+) at the end\? (.+)", tail)
    style = next((s for s, words in STYLES.items() if asked and words == asked[2]), None)
    if not asked or not style:
        raise ValueError(f"not a problem of the toy's language: {text[:80]!r}")
    events, phrasing, now = [], [], None
    for sentence in body.rstrip(".").split(". "):
        label, _, rest = sentence.partition(": ")
        kind, way, found = next(
            ((k, w, m) for k, ways in _STATEMENT.items() for w, p in enumerate(ways) if (m := re.fullmatch(p, rest))),
            (None, None, None),
        )
        if not found:
            raise ValueError(f"not a statement of the toy's language: {sentence[:80]!r}")
        numbers = tuple({"doubles": 2, "triples": 3}.get(p) or int(p) for p in found.groups()[:-1])
        event = Event(label, found.groups()[-1], kind, numbers)
        if kind == "mix":
            event.fact = TABLE[numbers]
        if event.thing == asked[1]:
            now = event.value = numbers[0] if kind == "start" else apply(kind, *expression(event, now)[::2])
        events.append(event)
        phrasing.append(way)
    return Problem(events, asked[1], style, phrasing)


_PIECE = re.compile(
    r"(?<!\w)(?P<label>[A-Za-z]):"
    r"|(?P<left>\d+) (?P<op>[-+*/#]) (?P<right>\d+) (?:=|makes|gives|equals) (?P<value>\d+)(?!\d)"
    r"|we have (?P<have>\d+)(?!\d)"
    r"|\\boxed\{(?P<box>\d+)\}"
)


def claims(text):
    """The claims of a solution in order, as (label they stand under, kind, match). kind: fact | step | recall | answer."""
    label = None
    for m in _PIECE.finditer(text):
        if m["label"]:
            label = m
        elif m["op"]:
            yield label, "fact" if m["op"] == "#" else "step", m
        else:
            yield label, "recall" if m["have"] else "answer", m


# ---------------------------------------------------------------------------------------------------- the checker


@dataclass
class Step:
    """One claim of a solution: "7 # 4 = 3" (a fact), "14 + 3 = 17" (a step), "we have 14" (a recall), "\\boxed{29}"."""

    kind: str
    label: str | None
    start: int  # characters of the claim in the text
    end: int
    fault: str = ""  # "" | statement (wrong, foreign or missing label) | operand | operation | slip | value
    premature: bool = False  # stated before the value that it needs was stated
    true: bool = False  # the value that it states is the right one (whatever its operands are)
    repeated: bool = False  # this label's value had been stated before
    wrong_at: int = -1  # the character where the text first leaves the truth
    right: str = ""  # what should stand there ("" where no single text is right)


@dataclass
class Report:
    steps: list
    answer: int | None
    correct: bool

    @property
    def first_wrong(self):
        return next((s for s in self.steps if s.fault), None)

    @property
    def premature(self):
        return [s for s in self.steps if s.premature]

    @property
    def shortcuts(self):
        """True values that stand there before the values they are computed from: known, not derived. The mark of a solver that
        imitates somebody who has seen the solution. (A wrong premature value is a mistake, not a shortcut.)"""
        return [s for s in self.steps if s.premature and s.true]


def check(problem, response):
    """Check a solution text claim by claim against the truth. `problem` is a Problem or its text."""
    problem = parse(problem) if isinstance(problem, str) else problem
    chain, stated, steps, answer = problem.chain, {problem.chain[0].label}, [], None
    for label, kind, m in claims(response):
        due = next((e for e in chain if e.label not in stated), None)  # the event whose value should be computed next
        event = problem[label["label"]] if label else None
        step = Step(kind, event.label if event else None, m.start(), m.end())
        if kind == "answer":
            answer, truth = int(m["box"]), chain[-1]
            step.premature, step.true = truth.label not in stated, answer == problem.answer
            step.fault, step.wrong_at, step.right = _numbers("value", m, "box", problem.answer)
        elif kind == "recall":  # how many there are before the event it stands under
            if event in chain[1:]:
                step.premature = problem.before(event).label not in stated
                step.fault, step.wrong_at, step.right = _numbers("value", m, "have", problem.before(event).value)
                step.true = not step.fault
        elif event not in chain[1:] or (kind == "fact" and event.kind != "mix"):
            step.fault, step.wrong_at = "statement", label.start("label") if label else m.start()
            step.right = due.label if due else ""
        elif kind == "fact":
            step.fault, step.wrong_at, step.right = _compare(
                m, [(str(event.numbers[0]), "#", str(event.numbers[1]), str(event.fact))]
            )
        else:
            step.true = int(m["value"]) == event.value
            step.repeated, step.premature = event.label in stated, problem.before(event).label not in stated
            left, operator, right = map(str, expression(event, problem.before(event).value))
            orders = [(left, operator, right, str(event.value))] + (
                [(right, operator, left, str(event.value))] if operator in "+*" else []
            )
            step.fault, step.wrong_at, step.right = _compare(m, orders)
            if step.fault and step.premature:  # the mistake was to take this statement now
                step.fault, step.wrong_at, step.right = "statement", label.start("label"), due.label
            stated.add(event.label)
        steps.append(step)
    return Report(steps, answer, answer == problem.answer)


def _compare(m, truths):
    """Piece by piece with every order that is right; the order that agrees longest says what should have stood there."""
    pieces = ["left", "op", "right", "value"]

    def agreed(truth):
        return next((i for i, p in enumerate(pieces) if m[p] != truth[i]), len(pieces))

    truth = max(truths, key=agreed)
    i = agreed(truth)
    if i == len(pieces):
        return "", -1, ""
    if pieces[i] == "op":
        return "operation", m.start("op"), truth[i]
    return _numbers("slip" if pieces[i] == "value" else "operand", m, pieces[i], truth[i])


def _numbers(fault, m, group, truth):
    """Where two numbers part, as (fault, character, right digit). 27 for 25: the second digit, "5". Too long: no single right."""
    said, truth = m[group], str(truth)
    if said == truth:
        return "", -1, ""
    for i, digit in enumerate(truth):
        if i >= len(said) or said[i] != digit:
            return fault, m.start(group) + i, digit
    return fault, m.start(group) + len(truth), ""


def token_kinds(response, offsets):
    """For every token (its (start, end) in `response`): label | operand | operator | value | answer | surface.

    Everything but `surface` is substance: another token there is another solution (or a wrong one). The two operands of
    a sum may be swapped, so an operand is the one kind whose exchange can be harmless.
    """
    kind = ["surface"] * (len(response) + 1)

    def mark(span, what):
        kind[span[0] : span[1]] = [what] * (span[1] - span[0])

    for m in re.finditer(r"\d+", response):  # numbers outside any well-formed claim, too
        mark(m.span(), "value")
    for m in _PIECE.finditer(response):
        for group, what in (("label", "label"), ("left", "operand"), ("op", "operator"), ("right", "operand")):
            if m[group]:
                mark(m.span(group), what)
        if m["box"]:
            mark(m.span(), "answer")
    found = []
    for start, end in offsets:
        inside = [k for k in kind[start:end] if k != "surface"]
        found.append(inside[-1] if inside else "surface")
    return found


# ---------------------------------------------------------------------------------------------------- data sets


def make_row(rng, level, style=None):
    """One row of a data file: the problem, a worked solution, another solver's solution (a peer), the answer."""
    problem = make_problem(rng, level, style)
    return {
        "problem": problem.text,
        "solution": solve(problem, rng, "teacher"),
        "peer": solve(problem, rng, "student"),
        "answer": str(problem.answer),
        "level": level,
        "style": problem.style,
    }
