r"""What counts as the answer of a response, and whether that answer is the gold.

An answer is
* the content of the last \boxed{...} or \fbox{...};
* if there is no box, the rest of the line after the last "####" (the marker of GSM8K);
* if there is neither, and the gold is a number, the last number of the response.

Nothing else counts. A box in the thinking is not an answer. If the last box was cut off,
there is no answer, whatever stands before it. A grader that searched the text for the gold
would reward a list of guesses.

Numbers are compared exactly, words letter by letter, lists and sets in any order, tuples
and intervals with their brackets. math-verify compares what is left (`common/judge.py`).
The text of a model is never executed.

The file follows the data: response -> extract -> tidy -> number, equal -> grade -> verify.
"""

import re
import time
from fractions import Fraction

from common import judge

# No gold has more characters than this. Every step below takes at most linear time in it.
LONGEST_ANSWER = 1000
# The time that one comparison may take. `grade` promises two seconds for everything.
SECONDS = 1.5


def extract(response):
    """The answer of a response, exactly as it stands there, or None.

    >>> extract(r"First \\boxed{3}, no: \\boxed{\\frac{1}{2}}.")
    '\\\\frac{1}{2}'
    """
    # The <think> may stand in the prompt, so only the last </think> tells where the answer
    # begins. A <think> after it is unfinished thinking.
    text = _after_thinking(response)
    if "<think>" in text:
        return None

    # The last box wins: a model that corrects itself writes a second one.
    box = max(text.rfind("\\boxed"), text.rfind("\\fbox"))
    if box >= 0:
        return _in_braces(text[box : box + LONGEST_ANSWER].split("box", 1)[1].removeprefix("ed"))
    if "####" in text:
        line = text.rpartition("####")[2][:LONGEST_ANSWER].strip().split("\n")[0].strip()
        return line.rstrip(".") or None
    return None


def _after_thinking(response):
    return response.rpartition("</think>")[2]


def _in_braces(text):
    r"""What stands behind \boxed in balanced braces, or one token if it has no braces."""
    text = text.lstrip()
    if not text.startswith("{"):
        token = re.match(r"\\?\w+|\S", text)
        return token.group() if token else None
    depth, i = 0, 0
    while i < len(text):
        if text[i] == "\\":  # \{ and \} are the braces of a set: they group nothing
            i += 2
            continue
        depth += (text[i] == "{") - (text[i] == "}")
        if depth == 0:
            return text[1:i].strip() or None
        i += 1
    return None  # the braces never close: the box was cut off


def tidy(text):
    """The answer without spacing, sizes, dollar signs, wrappers of text and a full stop."""
    text = text.strip().strip("$").strip()
    # Spacing and sizes: \left( is (, and \, is a space.
    spacing = r"(?<!\\)\\(?:(?:left|right|displaystyle|quad|qquad)(?![a-zA-Z])|[,!;: ])"
    text = re.sub(spacing, " ", text)
    # All fractions become \frac{1}{2}: from \dfrac, \tfrac and \cfrac, and from \frac12.
    text = re.sub(r"\\[dtc]frac(?![a-zA-Z])", r"\\frac", text)
    part = r"(\d|\\[a-zA-Z]+|[a-zA-Z])"
    text = re.sub(rf"\\frac ?{part} ?{part}", r"\\frac{\1}{\2}", text)
    # All wrappers of words become \text{...}.
    wrapper = r"\\(?:text|textbf|mathrm|mathbf|textrm|mbox)\s*\{([^{}]*)\}"
    text = re.sub(wrapper, r" \\text{\1} ", text)
    # Currencies are units. A Unicode minus is a minus.
    text = re.sub(r"\\?\$|[£€]", "", text).replace("−", "-")
    # The empty set has three signs.
    text = re.sub(r"\\varnothing(?![a-zA-Z])|\\\{ *\\\}", r"\\emptyset", text)
    # "3 and 5", "3 or 5" and "3; 5" are lists: 3, 5.
    joined = r";|\\text\{ *(?:and|or) *\}|(?<=[\d)}]) (?:and|or) (?=[-\d(\\])"
    text = re.sub(joined, ",", text)
    # Degrees are a unit, and so is percent: 50\% is 50 and never 0.5. Accepting both would
    # accept an error by a factor of 100.
    text = re.sub(r"\^\s*(?:\\circ|\{\s*\\circ\s*\})|°|\\degree", "", text)
    text = re.sub(r"\\?%", "", text)
    return re.sub(r"\s+", " ", text).strip().rstrip(".").strip()


# A unit behind a number or an expression, as `tidy` leaves it: \text{cm}^2.
UNIT = r"\s*\\text\{[^{}]*\}(?:\s?\^\s?\{?[23]\}?)?$"
# A unit in plain letters: 5 cm, 5 km/h, 5 apples. 5 x and 5 pi are products.
WORDS = r"(?!pi\b|sqrt\b)[A-Za-z]{2,}(?:\s+[A-Za-z]+)*"
PLAIN_UNIT = rf"(?<=[\d}}])\s+{WORDS}(?:/[a-z]+)?(?:\^\{{?[23]\}}?)?$"
# A number with more characters is not read: it would cost time, and no gold is so long.
LONGEST_NUMBER = 80

SEPARATED = r"[-+]?\d{1,3}(?:(?:,\d{3})+|(?: \d{3})+)(?:\.\d+)?"  # 1,234.5   1 234.5
PERIODIC = r"(\d*)\.(\d*)\\overline ?\{ ?(\d+) ?\}"  # 0.1\overline{6}
POWER = r" ?(?:\\times|\\cdot|\*) ?10\^\{?([-+]?\d{1,3})\}?"  # \times 10^{3}
DECIMAL = rf"(\d*\.?\d*)(?:[eE]([-+]?\d{{1,3}})|{POWER})?"  # 27   27.0   .5   1e11
SLASHED = r"(?:(\d+) )?(\d+) ?/ ?(\d+)"  # 3/4   1 3/4
FRACTION = r"(\d+)? ?\\frac ?\{ ?(-?\d+) ?\} ?\{ ?(-?\d+) ?\}"  # \frac{3}{4}   1\frac{3}{4}


def number(text):
    r"""The exact value of a plain number as a Fraction, or None for any other text.

    It reads 025, 27.0, 1,234, -3/4, \frac{3}{4}, 3\frac{1}{2}, 1e11 and 5 cm.
    """
    # Take the number out of its wrapper and away from its unit.
    text = re.sub(r"^\\text\{([^{}]*)\}$", r"\1", text.strip()).strip()
    text = re.sub(PLAIN_UNIT, "", re.sub(UNIT, "", text))
    if len(text) > LONGEST_NUMBER:
        return None

    # Thousands may be separated by commas or spaces. 10,00 and 1 2 are not such numbers.
    text = text.replace("{,}", ",")
    if re.fullmatch(SEPARATED, text):
        text = text.replace(",", "").replace(" ", "")

    # The sign belongs to the whole of a mixed number: -1\frac{1}{2} is -1.5 and not -0.5.
    negative = text.startswith("-")
    sign = -1 if negative else 1
    body = text[1:].strip() if negative else text.removeprefix("+").strip()
    body = re.sub(r"^10 ?\^", "1*10^", body)

    # 0.1\overline{6} repeats its 6 forever: it is (1 + 6/9) / 10.
    if m := re.fullmatch(PERIODIC, body):
        fixed, period = int(m[1] + m[2] or 0), Fraction(int(m[3]), 10 ** len(m[3]) - 1)
        return sign * (fixed + period) / 10 ** len(m[2])

    # A decimal, with or without a power of ten. It needs a digit: "." is not a number.
    if m := re.fullmatch(DECIMAL, body):
        if not re.search(r"\d", m[1]):
            return None
        return sign * Fraction(m[1].removesuffix(".")) * Fraction(10) ** int(m[2] or m[3] or 0)

    # A fraction, perhaps with a whole number before it. A division by zero is not a number.
    if m := re.fullmatch(SLASHED, body) or re.fullmatch(FRACTION, body):
        whole, above, below = int(m[1] or 0), int(m[2]), int(m[3])
        return sign * (whole + Fraction(above, below)) if below else None
    return None


# An answer with its name: x = 5, f(x) = 2x, (x, y) = (1, 2), x \in [0, 1].
NAMED = r"(?:[A-Za-z](?:\([a-z]\))?|\([a-z](?:, ?[a-z])+\)) ?(?:=|\\in(?![a-z])) ?(.+)"
IN_BRACES = r"\\\{(.*)\\\}"  # a set
IN_BRACKETS = r"(\\\{|\(|\[)(.*)(\\\}|\)|\])"  # a set, a tuple or an interval
DEEPEST = 3  # how often a comparison may look into an answer, as into a list of pairs
MOST_MEMBERS = 20


def equal(said, gold, until, depth=0):
    """Whether two tidied answers are equal.

    until: the value of time.monotonic() at which the verdict must be there.
    depth: how many comparisons this one stands in.
    """
    # Numbers are compared exactly. math-verify would round, and 0.333333 is not 1/3.
    said_number, gold_number = number(said), number(gold)
    if said_number is not None and gold_number is not None:
        return said_number == gold_number

    # The same characters are the same answer, whatever they mean. Spaces count only between
    # two digits: 1 2 is not 12.
    said_packed, gold_packed = (re.sub(r"(?<!\d) | (?!\d)", "", text) for text in (said, gold))
    if said_packed == gold_packed:
        return True

    # The limit on the depth keeps hostile text from taking long.
    if depth > DEEPEST or not said or not gold:
        return False

    def deeper(a, b):
        return equal(a, b, until, depth + 1)

    # Each step knows some kinds of answers. It returns True or False, or None if the two
    # answers are of no such kind. The order matters: a step relies on those before it.
    for step in (_compare_words, _compare_rewritten, _compare_lists, _compare_brackets):
        verdict = step(said, gold, deeper)
        if verdict is not None:
            return verdict

    # What is left is an expression. Only computer algebra knows that (x+1)^2 is x^2+2x+1.
    return judge.math_verify(said, gold, until)


def _compare_words(said, gold, deeper):
    """Words, choices and names of points, letter by letter. math-verify would read a word
    as a product of its letters, and then "tea" equals "eat"."""
    # AB and BA are names of segments or angles.
    if re.fullmatch(r"[A-Z]{2,}", said) and re.fullmatch(r"[A-Z]{2,}", gold):
        return said == gold

    said_word, gold_word = (
        re.sub(r"\\text\{([^{}]*)\}", r"\1", text).strip().rstrip(".") for text in (said, gold)
    )
    # A gold of letters is a word if it says so by \text, or has four letters in a row.
    # Shorter ones may be products: xy.
    is_word = re.fullmatch(r"[A-Za-z][A-Za-z' -]*", gold_word) and (
        "\\text" in gold or max(map(len, re.findall("[A-Za-z]+", gold_word))) >= 4
    )
    # A to E are choices if one of the two sides says so by \text. Brackets do not count.
    is_choice = re.fullmatch(r"\(?[A-E]\)?", gold_word) and "\\text" in gold + said
    if is_word or is_choice:
        return said_word.strip("()").casefold() == gold_word.strip("()").casefold()
    return None


def _compare_rewritten(said, gold, deeper):
    """Answers that say the same in more words: with a name, with a unit, with two signs."""
    # x = 5 for 5: the name of the unknown stands before the answer.
    if "=" not in gold and (m := re.fullmatch(NAMED, said)):
        return deeper(m[1], gold)
    # 18\pi \text{cm}^2 for 18\pi: a unit stands behind the answer.
    if "\\text" not in gold and (bare := re.sub(UNIT, "", said)) not in (said, ""):
        return deeper(bare, gold)
    # \pm 2 for 2, -2: write out both signs, then compare two lists.
    if "\\pm" in said + gold:
        return deeper(*(",".join(map(_both_signs, _split(text))) for text in (said, gold)))
    return None


def _both_signs(text):
    r"""3 \pm 2 as "3 + 2, 3 - 2". The sign \mp goes the other way."""
    if "\\pm" not in text:
        return text
    upper, lower = (
        re.sub(r"\\pm(?![a-z])", pm, re.sub(r"\\mp(?![a-z])", mp, text)).strip()
        for pm, mp in (("+", "-"), ("-", "+"))
    )
    return f"{upper.removeprefix('+').strip()}, {lower}"


def _compare_lists(said, gold, deeper):
    """Several answers side by side. Without brackets they may stand in any order."""
    said_parts, gold_parts = _split(said), _split(gold)

    # 5, 6 for x = 5, y = 6: in this order only, because the names are missing.
    if len(gold_parts) > 1 and "=" not in said:
        names = [re.fullmatch(NAMED, part) for part in gold_parts]
        if all(names):
            return _same_parts(said_parts, [m[1] for m in names], deeper, ordered=True)

    # A union has its parts in any order.
    if "\\cup" in said and "\\cup" in gold:
        said_union, gold_union = (
            [part.strip() for part in re.split(r"\\cup(?![a-z])", text)] for text in (said, gold)
        )
        return _same_parts(said_union, gold_union, deeper, ordered=False)

    # 1, 2 for \{1, 2\}: the braces of a set may be left out, on either side.
    said_set, gold_set = re.fullmatch(IN_BRACES, said), re.fullmatch(IN_BRACES, gold)
    if gold_set and not said_set and len(said_parts) > 1:
        return deeper(said, gold_set[1].strip())
    if said_set and not gold_set and len(gold_parts) > 1:
        return deeper(said_set[1].strip(), gold)

    # A list has its parts in any order. 1,234 is a number and not a list.
    if len(gold_parts) > 1 and number(gold) is None:
        return _same_parts(said_parts, gold_parts, deeper, ordered=False)
    # Several answers are wrong where the gold has one. Otherwise guessing would pay.
    return False if len(said_parts) > 1 else None


def _compare_brackets(said, gold, deeper):
    """Sets, tuples and intervals. The kind of bracket matters: (0,1] is not [0,1]. Only the
    members of a set may stand in any order."""
    said_match, gold_match = re.fullmatch(IN_BRACKETS, said), re.fullmatch(IN_BRACKETS, gold)
    said_parts, gold_parts = (_split(m[2]) if m else [] for m in (said_match, gold_match))
    if said_match and len(gold_parts) > 1:
        if said_match.group(1, 3) != gold_match.group(1, 3):
            return False
        return _same_parts(said_parts, gold_parts, deeper, ordered=gold_match[1] != "\\{")
    # A tuple is not equal to a single value, with or without brackets.
    return False if len(said_parts) > 1 or len(gold_parts) > 1 else None


def _split(text):
    """The parts of a text between its commas. Commas inside brackets do not count."""
    parts, depth, start = [], 0, 0
    for i, c in enumerate(text):
        depth += (c in "([{") - (c in ")]}")
        if c == "," and depth == 0:
            parts.append(text[start:i].strip())
            start = i + 1
    return [*parts, text[start:].strip()]


def _same_parts(said_parts, gold_parts, deeper, ordered):
    """Whether each part has an equal part on the other side, and none is used twice."""
    if len(said_parts) != len(gold_parts):
        return False
    if ordered:
        return all(map(deeper, said_parts, gold_parts))
    unmatched = gold_parts[:MOST_MEMBERS]
    for part in said_parts[:MOST_MEMBERS]:
        match = next((other for other in unmatched if deeper(part, other)), None)
        if match is None:
            return False
        unmatched.remove(match)
    return not unmatched


def grade(response, gold):
    """Whether the answer of a response is the gold.

    It returns within two seconds, whatever the text, except if it has to start math-verify.
    """
    response, gold = str(response), tidy(_gold_answer(str(gold)))
    said = extract(response)
    if said is None and number(gold) is not None:
        said = _last_number(response)
    return said is not None and gold != "" and equal(tidy(said), gold, time.monotonic() + SECONDS)


def _gold_answer(gold):
    r"""The answer in a gold, which may be a whole worked solution with "####" or \boxed."""
    answer = gold.rpartition("####")[2]
    boxed = extract(answer) if "\\boxed" in answer else None
    return answer[:LONGEST_ANSWER] if boxed is None else boxed


def _last_number(response):
    """The last number of a response, or None if its thinking or a box was cut off."""
    text = _after_thinking(response)
    end = text[-LONGEST_ANSWER:]
    if "<think>" in text or "\\boxed" in end:
        return None
    numbers = re.findall(r"-?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?", end)
    return numbers[-1] if numbers else None


def verify(response, gold, truncated):
    """Whether a rollout is right. If it was cut off, its last number is not an answer: that
    number may be the gold by chance."""
    return bool(grade(response, gold)) and not (truncated and extract(response) is None)
