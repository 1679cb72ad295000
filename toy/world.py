"""The toy's language: word problems about a purse, their worked solutions, and a checker.

A problem with three steps. Statement r is about another thing, so it does not matter. What
p finds stands in a table (`TABLE`):

    n: starts with 14 coins. p: finds 7 # 4 coins. r: loses 8 stones. t: doubles the coins.
    w: loses 5 coins. How many coins at the end? Answer briefly.

A solution of it:

    p: 7 # 4 = 2, 14 + 2 = 16. t: 16 * 2 = 32. w: 32 - 5 = 27. The answer is \\boxed{27}.

Three properties of a language matter for on-policy distillation. This language has them on
purpose:

* Real forks. At every step a solver can take the wrong statement (one about another thing,
  one too early, one a second time), a wrong operand or a wrong operation, or can make a
  mistake in the arithmetic. `check` says which of these it is, and where the text first
  leaves the truth.
* Variety of the surface. The same step can be said in dozens of ways ("So p: we have 14
  coins, thus 2 + 14 makes 16."), and facts may be looked up early or late. Two voices
  prefer different ways. So two models disagree about words in many places. `token_kinds`
  tells words from substance.
* Skill and knowledge. It is easy to add 5, and hard to add 27 or to triple: that is a
  skill. `7 # 4` is looked up in a fixed table that follows no rule: that is knowledge. It
  must come from outside, from a teacher or from a hint that shows it.

Every statement begins with its own label. A small transformer learns to look up what stands
behind a label. It does not learn within minutes to find a statement by its meaning.

Nothing here imports torch. Every function depends only on its arguments, one of which may
be a `random.Random`.
"""

import random
import re
from dataclasses import dataclass, field

# The labels come in families, and a problem takes its labels from one family. So the
# solution of another problem mostly talks about unknown labels, and a reader can see that
# it does not belong here. (A right hint must be distinguishable from a wrong one.)
FAMILIES = ["abcdefghijkl", "mnopqrstuvwxyz", "ABCDEFGHIJKL", "MNOPQRSTUVWXYZ"]
LABELS = "".join(FAMILIES)
THINGS = ["coins", "stones", "shells", "beads"]
STYLES = {"terse": "Answer briefly.", "verbose": "Explain each step."}
LIMIT = 99  # every value lies in 0..99, so it has at most two digits

# The table of `#`: 81 facts without a rule, the same in every problem. A fact has one
# digit, so it is one token. There are six possible values, so a solver who does not know a
# fact is right once in six times.
_table_rng = random.Random(20606)
TABLE = {(a, b): _table_rng.randint(1, 6) for a in range(1, 10) for b in range(1, 10)}


@dataclass
class Event:
    """One statement. kind: start, plus, minus, mix (a number from the table is added),
    times or half."""

    label: str
    thing: str
    kind: str
    numbers: tuple = ()  # the constants of the statement
    fact: int = -1  # of a mix: the number in the table
    value: int = -1  # how many there are after this event; -1 if it is about another thing


@dataclass
class Problem:
    events: list  # in the order of the text
    thing: str  # what is asked for; events about another thing do not matter
    style: str
    phrasing: list = field(default_factory=list)  # the way in which each event is said

    def __getitem__(self, label):
        return next((e for e in self.events if e.label == label), None)

    @property
    def chain(self):
        """The events that matter. Each of them needs the value of the one before it."""
        return [e for e in self.events if e.thing == self.thing]

    @property
    def answer(self):
        return self.chain[-1].value

    def before(self, event):
        return self.chain[self.chain.index(event) - 1]

    def statement(self, event):
        """The words of an event, without its label."""
        way = self.phrasing[self.events.index(event)]
        times = TIMES.get(event.numbers)
        return STATEMENTS[event.kind][way].format(o=event.thing, d=event.numbers, t=times)

    @property
    def text(self):
        said = " ".join(f"{e.label}: {self.statement(e)}" for e in self.events)
        return f"{said} How many {self.thing} at the end? {STYLES[self.style]}"


TIMES = {(2,): "doubles", (3,): "triples"}
STATEMENTS = {  # two ways to say each kind of event
    "start": ["starts with {d[0]} {o}.", "begins with {d[0]} {o}."],
    "plus": ["finds {d[0]} {o}.", "wins {d[0]} {o}."],
    "minus": ["loses {d[0]} {o}.", "drops {d[0]} {o}."],
    "mix": ["finds {d[0]} # {d[1]} {o}.", "wins {d[0]} # {d[1]} {o}."],
    "times": ["{t} the {o}.", "{t} all {o}."],
    "half": ["halves the {o}.", "halves all {o}."],
}


def apply(kind, before, number):
    """The value after a step. None if the result is not allowed: negative, above 99, or
    half of an odd number."""
    if kind == "half":
        return before // 2 if before % 2 == 0 else None
    result = {
        "plus": before + number,
        "mix": before + number,
        "minus": before - number,
        "times": before * number,
    }[kind]
    return result if 0 <= result <= LIMIT else None


def expression(event, before):
    """Left operand, operator and right operand of a step, in the order of the statement."""
    operator = {"plus": "+", "mix": "+", "minus": "-", "times": "*", "half": "/"}[event.kind]
    constant = event.numbers[0] if event.numbers else None
    return before, operator, {"half": 2, "mix": event.fact}.get(event.kind, constant)


def is_hard(event):
    """Hard is a two-digit operand, a product or a half. A mix is neither easy nor hard: its
    fact is known or it is not."""
    two_digits = event.kind in ("plus", "minus") and event.numbers[0] >= 10
    return event.kind in ("times", "half") or two_digits


# ======================================================================== problems

# How often each kind of step occurs in the problems of the benchmark.
MIXTURE = {"easy": 0.42, "hard": 0.33, "mix": 0.25}


def make_problem(rng, level, style=None, mixture=MIXTURE, believe=None, distractors=2):
    """A random problem with `level` steps.

    believe(event, before): may replace the truth of a step: the fact of a mix, the value of
    any other step. None keeps the truth. build.py needs such FALSE problems for two
    purposes. If a shown solution has random results, a model can only be right by copying
    them. So it learns to read hints, and no arithmetic from them. And a student that shall
    not know a fact sees it with random results.
    distractors: the largest number of statements about another thing.
    """
    while True:
        problem = _try_problem(rng, level, style, mixture, believe, distractors)
        if problem:
            return problem


def _try_problem(rng, level, style, mixture, believe, distractors):
    """A random problem, or None if a value left the range 0..LIMIT."""
    thing, other = rng.sample(THINGS, 2)
    now = rng.randint(3, 60)
    events = [Event("", thing, "start", (now,), value=now)]
    for _ in range(level):
        event = _random_event(rng, thing, mixture)
        belief = believe(event, now) if believe else None
        if belief is not None and event.kind == "mix":
            event.fact = belief
        left, _, right = expression(event, now)
        event.value = apply(event.kind, left, right)
        if event.value is None:
            return None
        if belief is not None and event.kind != "mix":
            event.value = belief
        now = event.value
        events.append(event)
    # Events about another thing stand anywhere except at the beginning.
    for _ in range(rng.randint(0, distractors)):
        kind = rng.choice(["plus", "minus", "start"])
        place = rng.randint(1, len(events))
        events.insert(place, Event("", other, kind, (rng.randint(1, 29),)))
    # Labels stand in the order of the family, with gaps. So "the next label" is not "the
    # next letter".
    family = rng.choice(FAMILIES)
    for event, label in zip(events, sorted(rng.sample(family, len(events)))):
        event.label = label
    style = style or rng.choice(list(STYLES))
    return Problem(events, thing, style, [rng.randrange(2) for _ in events])


def _random_event(rng, thing, mixture):
    """A step of a random kind, still without label and value."""
    draw = rng.choices(list(mixture), list(mixture.values()))[0]
    if draw == "easy":
        return Event("", thing, rng.choice(["plus", "minus"]), (rng.randint(1, 9),))
    if draw == "hard":
        kind = rng.choice(["plus", "plus", "minus", "minus", "times", "half"])
        # All numbers are drawn for every kind, so that the stream of random numbers stays
        # the same.
        numbers = {"times": (rng.choice([2, 3]),), "half": ()}
        return Event("", thing, kind, numbers.get(kind, (rng.randint(10, 29),)))
    event = Event("", thing, "mix", (rng.randint(1, 9), rng.randint(1, 9)))
    event.fact = TABLE[event.numbers]
    return event


# ======================================================================== solutions

# Two voices say the same sentences with other habits. No habit has probability zero in
# either of them. So each model has read the other's way of talking, and it judges the
# arithmetic and not the words. Numbers are relative frequencies; `swap` and `early` are
# probabilities. swap: the operands of a sum or product change places. early: a fact is
# looked up before the first step.
VOICES = {
    "teacher": dict(
        connective={"Next,": 4, "Now": 3, "": 2, "Then": 1, "So": 1},
        equals={"=": 7, "equals": 2, "makes": 1, "gives": 1},
        lead={
            "{s}, so ": 4,
            "we have {b} {o}, so ": 1,
            "{s}, thus ": 1,
            "we have {b} {o}, thus ": 1,
            "": 2,
        },
        swap=0.1,
        early=0.1,
        close={"The answer is": 5, "Answer:": 1, "So the answer is": 1},
    ),
    "student": dict(
        connective={"Then": 4, "So": 4, "Now": 1, "Next,": 1, "": 2},
        equals={"makes": 5, "gives": 3, "=": 1, "equals": 1},
        lead={
            "{s}, so ": 1,
            "we have {b} {o}, so ": 1,
            "{s}, thus ": 1,
            "we have {b} {o}, thus ": 4,
            "": 3,
        },
        swap=0.5,
        early=0.3,
        close={"So the answer is": 4, "Answer:": 3, "The answer is": 1},
    ),
}


def pick(rng, weights):
    """A random key of {key: weight}."""
    return rng.choices(list(weights), list(weights.values()))[0]


def solve(problem, rng, voice="teacher"):
    """A right solution in the words of this voice. Two calls differ in words, and in where
    facts are looked up."""
    habits, sentences, looked_up = VOICES[voice], [], set()

    def sentence(event, body):
        connective = pick(rng, habits["connective"]) if problem.style == "verbose" else ""
        sentences.append(f"{connective} {event.label}: {body}.".strip())

    def fact(event):
        equals = pick(rng, habits["equals"])
        return f"{event.numbers[0]} # {event.numbers[1]} {equals} {event.fact}"

    for event in problem.chain[1:]:
        if event.kind == "mix" and rng.random() < habits["early"]:
            sentence(event, fact(event))
            looked_up.add(event.label)
    for event in problem.chain[1:]:
        before = problem.before(event).value
        left, operator, right = expression(event, before)
        if operator in "+*" and rng.random() < habits["swap"]:
            left, right = right, left
        body = f"{left} {operator} {right} {pick(rng, habits['equals'])} {event.value}"
        if event.kind == "mix" and event.label not in looked_up:
            body = f"{fact(event)}, {body}"
        if problem.style == "verbose":
            statement = problem.statement(event).removesuffix(".")
            lead = pick(rng, habits["lead"])
            body = lead.format(s=statement, b=before, o=event.thing) + body
        sentence(event, body)
    return f"{' '.join(sentences)} {pick(rng, habits['close'])} \\boxed{{{problem.answer}}}."


def cut(text, share):
    """The first `share` of a text, cut at a word. This is the partial view of AR-OPD. The
    answer stands at the end, so it is not in the part."""
    words = text.split(" ")
    return " ".join(words[: max(1, int(len(words) * share))])


# ======================================================================== reading

_STATEMENT = {
    "start": [r"starts with (\d+) (\w+)", r"begins with (\d+) (\w+)"],
    "plus": [r"finds (\d+) (\w+)", r"wins (\d+) (\w+)"],
    "minus": [r"loses (\d+) (\w+)", r"drops (\d+) (\w+)"],
    "mix": [r"finds (\d+) # (\d+) (\w+)", r"wins (\d+) # (\d+) (\w+)"],
    "times": [r"(doubles|triples) the (\w+)", r"(doubles|triples) all (\w+)"],
    "half": [r"halves the (\w+)", r"halves all (\w+)"],
}


def parse(text):
    """The Problem that a text describes. Raises ValueError if it is not in this language, or if a
    value leaves its rules: then nothing is known about the truth."""
    body, _, tail = text.partition(" How many ")
    asked = re.fullmatch(r"(\w+) at the end\? (.+)", tail)
    style = next((s for s, words in STYLES.items() if asked and words == asked[2]), None)
    if not asked or not style:
        raise ValueError(f"not a problem of the toy's language: {text[:80]!r}")
    events, phrasing, now = [], [], None
    for sentence in body.rstrip(".").split(". "):
        label, _, rest = sentence.partition(": ")
        kind, way, found = _parse_statement(rest)
        if not found:
            raise ValueError(f"not a statement of the toy's language: {sentence[:80]!r}")
        if label in {event.label for event in events}:
            raise ValueError(f"two statements have the label {label}")
        *numbers, thing = found.groups()
        numbers = tuple({"doubles": 2, "triples": 3}.get(n) or int(n) for n in numbers)
        event = Event(label, thing, kind, numbers)
        if kind == "mix":
            if numbers not in TABLE:
                raise ValueError(f"the toy has no fact {numbers[0]} # {numbers[1]}")
            event.fact = TABLE[numbers]
        if event.thing == asked[1]:
            if (kind == "start") != (now is None):
                raise ValueError(f"a thing starts once, and first: {sentence[:80]!r}")
            if kind == "start":
                now = numbers[0]
            else:
                left, _, right = expression(event, now)
                now = apply(kind, left, right)
            if now is None or now > LIMIT:
                raise ValueError(f"a value that the toy's rules do not allow: {sentence[:80]!r}")
            event.value = now
        events.append(event)
        phrasing.append(way)
    if now is None:
        raise ValueError(f"no statement is about {asked[1]}")
    return Problem(events, asked[1], style, phrasing)


def _parse_statement(rest):
    """(kind, number of the way it is said, match) of a statement without its label."""
    for kind, ways in _STATEMENT.items():
        for way, pattern in enumerate(ways):
            found = re.fullmatch(pattern, rest)
            if found:
                return kind, way, found
    return None, None, None


_PIECE = re.compile(
    r"(?<!\w)(?P<label>[A-Za-z]):"
    r"|(?P<left>\d+) (?P<op>[-+*/#]) (?P<right>\d+) (?:=|makes|gives|equals) (?P<value>\d+)(?!\d)"
    r"|we have (?P<have>\d+)(?!\d)"
    r"|\\boxed\{(?P<box>\d+)\}"
)


def claims(text):
    """The claims of a solution in their order: (match of the label that they stand under,
    kind, match of the claim). kind: fact, step, recall or answer."""
    label = None
    for m in _PIECE.finditer(text):
        if m["label"]:
            label = m
        elif m["op"]:
            yield label, "fact" if m["op"] == "#" else "step", m
        else:
            yield label, "recall" if m["have"] else "answer", m


# ======================================================================== the checker


@dataclass
class Step:
    """One claim of a solution. Its kinds, in the example at the top of this file:
    "7 # 4 = 2" is a fact, "14 + 2 = 16" a step, "we have 14" a recall, and "\\boxed{27}"
    the answer.

    fault: "" or what is wrong: statement (wrong, unknown or missing label), operand,
    operation, slip (a wrong result) or value.
    """

    kind: str
    label: str | None
    start: int  # characters of the claim in the text
    end: int
    fault: str = ""
    premature: bool = False  # stands in the text before the value that it needs
    true: bool = False  # the value that it states is right, whatever its operands are
    repeated: bool = False  # the value of this label stands in the text before
    wrong_at: int = -1  # the character at which the text first leaves the truth
    right: str = ""  # what should stand there; "" if more than one text is right


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
        """True values that stand in the text before the values that they are computed from.
        The solver knew them and did not derive them. So it imitates somebody who has seen
        the solution. (A wrong premature value is a mistake and no shortcut.)"""
        return [s for s in self.steps if s.premature and s.true]


def check(problem, response):
    """Compare a solution with the truth, claim by claim. `problem` is a Problem or its
    text."""
    problem = parse(problem) if isinstance(problem, str) else problem
    chain, steps, answer = problem.chain, [], None
    stated = {problem.chain[0].label}  # labels whose value the text has stated so far
    for label, kind, m in claims(response):
        event = problem[label["label"]] if label else None
        # The event whose value should be computed next.
        due = next((e for e in chain if e.label not in stated), None)
        step = Step(kind, event.label if event else None, m.start(), m.end())
        if kind == "answer":
            answer = int(m["box"])
            step.premature, step.true = chain[-1].label not in stated, answer == problem.answer
            _record(step, _compare_numbers("value", m, "box", problem.answer))
        elif kind == "recall":  # how many there are before the event that it stands under
            if event in chain[1:]:
                before = problem.before(event)
                step.premature = before.label not in stated
                _record(step, _compare_numbers("value", m, "have", before.value))
                step.true = not step.fault
        elif event not in chain[1:] or (kind == "fact" and event.kind != "mix"):
            place = label.start("label") if label else m.start()
            _record(step, ("statement", place, due.label if due else ""))
        elif kind == "fact":
            truth = (event.numbers[0], "#", event.numbers[1], event.fact)
            _record(step, _compare(m, [truth]))
        else:
            _check_step(step, m, problem, event, stated)
            if step.fault and step.premature:  # the mistake is that this statement was taken now
                _record(step, ("statement", label.start("label"), due.label))
            stated.add(event.label)
        steps.append(step)
    return Report(steps, answer, answer == problem.answer)


def _check_step(step, m, problem, event, stated):
    """Compare an equation with the step that its label demands."""
    before = problem.before(event)
    step.true = int(m["value"]) == event.value
    step.repeated, step.premature = event.label in stated, before.label not in stated
    left, operator, right = expression(event, before.value)
    orders = [(left, operator, right, event.value)]
    if operator in "+*":
        orders.append((right, operator, left, event.value))
    _record(step, _compare(m, orders))


def _record(step, finding):
    step.fault, step.wrong_at, step.right = finding


def _compare(m, truths):
    """(fault, character, what is right) of an equation. It is compared piece by piece with
    every order of the operands that is right. The order that agrees longest says what
    should stand at the first difference."""
    pieces = ["left", "op", "right", "value"]
    truths = [tuple(map(str, t)) for t in truths]

    def agreed(truth):
        return next((i for i, p in enumerate(pieces) if m[p] != truth[i]), len(pieces))

    truth = max(truths, key=agreed)
    i = agreed(truth)
    if i == len(pieces):
        return "", -1, ""
    if pieces[i] == "op":
        return "operation", m.start("op"), truth[i]
    fault = "slip" if pieces[i] == "value" else "operand"
    return _compare_numbers(fault, m, pieces[i], truth[i])


def _compare_numbers(fault, m, group, truth):
    """(fault, character, right digit) at the first digit in which two numbers differ. With
    27 for 25 it is the second digit, and 5 is right. If a number only goes on too long,
    there is no single right character."""
    said, truth = m[group], str(truth)
    if said == truth:
        return "", -1, ""
    for i, digit in enumerate(truth):
        if i >= len(said) or said[i] != digit:
            return fault, m.start(group) + i, digit
    return fault, m.start(group) + len(truth), ""


def token_kinds(response, offsets):
    """The kind of every token: label, operand, operator, value, answer or surface. offsets:
    the (start, end) of each token in `response`.

    Everything except `surface` is substance: with another token there, it is another
    solution, or a wrong one. The operands of a sum may change places. So an operand is the
    one kind that can be exchanged without harm.
    """
    kind = ["surface"] * (len(response) + 1)

    def mark(span, what):
        kind[span[0] : span[1]] = [what] * (span[1] - span[0])

    for m in re.finditer(r"\d+", response):  # also numbers outside of any well-formed claim
        mark(m.span(), "value")
    of_group = {"label": "label", "left": "operand", "op": "operator", "right": "operand"}
    for m in _PIECE.finditer(response):
        for group, what in of_group.items():
            if m[group]:
                mark(m.span(group), what)
        if m["box"]:
            mark(m.span(), "answer")
    kinds = []
    for start, end in offsets:
        inside = [k for k in kind[start:end] if k != "surface"]
        kinds.append(inside[-1] if inside else "surface")
    return kinds


# ======================================================================== data sets


def make_row(rng, level, style=None):
    """One row of a data file: the problem, a worked solution, the solution of another
    solver (a peer), and the answer."""
    problem = make_problem(rng, level, style)
    return {
        "problem": problem.text,
        "solution": solve(problem, rng, "teacher"),
        "peer": solve(problem, rng, "student"),
        "answer": str(problem.answer),
        "level": level,
        "style": problem.style,
    }
