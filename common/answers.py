r"""Whether two answers are equal: numbers, words, lists, sets, intervals, matrices, formulas.

Numbers are compared exactly, words letter by letter, lists and sets in any order, tuples
and intervals with their brackets. Formulas are written out (`common/expressions.py`), and
math-verify compares what is left (`common/judge.py`).

`equal` goes through the kinds of answers. Its two texts come from `common/notation.py`.
"""

import re

from common import expressions, judge
from common.notation import RELATION, THOUSANDS, UNIT, number
from common.ranges import ALL_NUMBERS, IN_BRACKETS, UNEQUAL, ranges, split

# An answer with its name: x = 5, f(x) = 2x, (x, y) = (1, 2), x \in [0, 1].
NAME = r"(?:[A-Za-z]|\\[a-z]+)(?:_(?:\w|\{[^{}]*\}))?(?:\([a-z]\))?|\([a-z](?:, ?[a-z])+\)"
NAMED = rf"({NAME}) ?(?:=|\\in(?![a-z])) ?(.+)"
ABOUT = r"[A-Za-z](?:_\w)? ?\\approx(?![a-z]) ?(.+)"  # v \approx 5
IN_BRACES = r"\\\{(.*)\\\}"  # a set
BASED = r"\(?(?=[A-F]*\d)([\dA-F]+)\)? ?_ ?(?:\{ ?\(?(\d+)\)? ?\}|(\d+))"  # 52_8  2A_{16}
# Words for a base: 101_{\text{two}}  52\text{ (base 8)}
BASE_IN_WORDS = r"_ ?\{? ?\\text ?\{ ?([a-z]+) ?\} ?\}?| ?\\text ?\{ ?\(?base (\w+)\)? ?\}"
BASES = {"two": 2, "three": 3, "four": 4, "five": 5, "six": 6, "seven": 7, "eight": 8, "nine": 9}
MATRIX = r"[(\[]? ?\\begin\{([pb]?matrix|array)\}(?:\{[lcr|]*\})?(.*)\\end\{\1\} ?[)\]]?"
DEEPEST = 4  # how often a comparison may look into an answer, as into a list of pairs
MOST_MEMBERS = 20  # of a list or set, of those that are not written as in the gold


def equal(said, gold, budget, depth=0):
    """Whether two tidied answers are equal.

    budget: the CPU time that math-verify may use, a judge.Budget.
    depth: how many comparisons this one stands in.
    """
    # Numbers are compared exactly. math-verify would round, and 0.333333 is not 1/3.
    said_number, gold_number = number(said), number(gold)
    if said_number is not None and gold_number is not None:
        return said_number == gold_number

    # The same characters are the same answer, whatever they mean.
    if _packed(said) == _packed(gold):
        return True

    # The limit on the depth keeps hostile text from taking long.
    if depth > DEEPEST or not said or not gold:
        return False

    def deeper(a, b):
        return equal(a, b, budget, depth + 1)

    # Each step knows some kinds of answers. It returns True or False, or None if the two
    # answers are of no such kind. The order matters: a step relies on those before it.
    for step in (
        _compare_words, _compare_bases, _compare_ratios, _compare_ranges, _compare_rewritten,
        _compare_lists, _compare_brackets, _compare_matrices,
    ):  # fmt: skip
        verdict = step(said, gold, deeper)
        if verdict is not None:
            return verdict

    # What is left is an expression. Only computer algebra knows that \sin(\pi/6) is 1/2.
    verdict = expressions.compare(*map(_without_separators, (said, gold)))
    # math-verify adds numbers that stand side by side: for it 2 3 is 5, and not only 2 1/2.
    if verdict is None and re.search(r"(?<![_^\w])\d+ \d+(?![\d ]*/)", said):
        return False
    return judge.math_verify(said, gold, budget) if verdict is None else verdict


def _packed(text):
    """The text without spaces, except between two digits: 1 2 is not 12."""
    return re.sub(r"(?<!\d) | (?!\d)", "", text)


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
        "\\text" in gold
        or gold_word.casefold() in ("yes", "no")
        or max(map(len, re.findall("[A-Za-z]+", gold_word))) >= 4
    )
    # A to E are choices if both sides are such a letter, or one says so by \text. Brackets do
    # not count. What stands behind a choice is its value: (B) 12.
    if re.fullmatch("[A-E]", gold_word.strip("()")):
        said_word = re.sub(r"^(\([A-E]\)) .+", r"\1", said_word)
    letters = [re.fullmatch(r"\(?[A-Ea-e]\)?", word) for word in (said_word, gold_word)]
    is_choice = letters[1] and (letters[0] or "\\text" in gold + said)
    if is_word or is_choice:
        return said_word.strip("()").casefold() == gold_word.strip("()").casefold()
    return None


def _compare_bases(said, gold, deeper):
    """Numbers with a base, digit by digit. A problem that asks for 52_8 names its base, so an
    answer may leave it out, as it may leave out a unit. But 42, which is the same number in
    base 10, is not that answer. Where the gold has no base, it is written in base 10. A base may
    be a word: 101_{\\text{two}}."""
    said, gold = (
        re.sub(BASE_IN_WORDS, lambda m: f"_{BASES.get(m[1] or m[2], m[2] or m[1])}", text)
        for text in (said, gold)
    )
    said_match, gold_match = re.fullmatch(BASED, said), re.fullmatch(BASED, gold)
    if gold_match:
        digits, base = (said_match[1], said_match[2] or said_match[3]) if said_match else (said, "")
        return digits == gold_match[1] and base in ("", gold_match[2] or gold_match[3])
    if said_match:
        return (said_match[2] or said_match[3]) == "10" and deeper(said_match[1], gold)
    return None


def _compare_ratios(said, gold, deeper):
    """Ratios of three parts or more: 2:4:6 is 1:2:3. Of two parts they may be times: 3:30."""
    said_parts, gold_parts = (re.split(" ?: ?", text) for text in (said, gold))
    if min(len(said_parts), len(gold_parts)) < 3 or re.search(r"[<>=|]|\\[{m]", said + gold):
        return None
    values = [list(map(number, parts)) for parts in (said_parts, gold_parts)]
    if None in values[0] + values[1]:
        return _same_parts(said_parts, gold_parts, deeper, ordered=True)
    shares = [[v / sum(side) for v in side] if sum(side) else side for side in values]
    return shares[0] == shares[1]


def _compare_rewritten(said, gold, deeper):
    """Answers that say the same in more words: with a name, with a unit, with two signs."""
    # x = 5 for 5: the name of the unknown stands before one of the two answers.
    said_named, gold_named = re.fullmatch(NAMED, said), re.fullmatch(NAMED, gold)
    if said_named and "=" not in gold:
        return deeper(said_named[2], gold)
    if gold_named and "=" not in said and len(split(gold)) == 1:
        return deeper(said, gold_named[2])
    if (about := re.fullmatch(ABOUT, said)) and number(gold) is not None:
        return deeper(about[1], gold)
    # 18\pi \text{cm}^2 for 18\pi: a unit stands behind one of the two answers.
    bare = [re.sub(UNIT, "", text) for text in (said, gold)]
    if all(bare) and bare != [said, gold]:
        return deeper(*bare)
    # \pm 2 for 2, -2: write out both signs, then compare two lists or two sets.
    if "\\pm" in said + gold:
        return deeper(*map(_with_both_signs, (said, gold)))
    return None


def _with_both_signs(text):
    r"""3 \pm 2, 7 as "3 + 2, 3 - 2, 7". The sign \mp goes the other way."""
    if inside := re.fullmatch(IN_BRACES, text):
        return rf"\{{{_with_both_signs(inside[1].strip())}\}}"
    parts = []
    for part in split(text):
        for pm, mp in ("+-", "-+") if "\\pm" in part else ("  ",):
            signed = re.sub(r"\\mp(?![a-z])", mp, re.sub(r"\\pm(?![a-z])", pm, part))
            parts.append(signed.strip().removeprefix("+").strip())
    return ", ".join(parts)


def _compare_ranges(said, gold, deeper):
    """Intervals, unions and inequalities: -2 <= x < 7 is [-2, 7)."""
    # Two simple pairs of brackets may be points. `_compare_brackets` knows them.
    signs = rf"\\cup(?![a-z])|{ALL_NUMBERS}|{RELATION}|{UNEQUAL}"
    if not any(re.search(signs, text) for text in (said, gold)):
        return None
    said_ranges, gold_ranges = ranges(said), ranges(gold)
    if not said_ranges or not gold_ranges:
        return None
    # Another letter is another unknown. An interval has none.
    letters = [{letter for letter, _ in side if letter} for side in (said_ranges, gold_ranges)]
    if max(map(len, letters)) > 1:  # a >= 1, b <= 2 is a list
        return None
    parts = [[interval for _, interval in side] for side in (said_ranges, gold_ranges)]
    return len(set.union(*letters)) <= 1 and _same_parts(*parts, deeper, ordered=False)


def _compare_lists(said, gold, deeper):
    """Several answers side by side. Without brackets they may stand in any order."""
    said_parts, gold_parts = split(said), split(gold)
    # 1,024 is a number, and not 1 and 24.
    if number(said) is not None and ",0" in said:
        said_parts = [said]

    # 5, 6 for x = 5, y = 6: in this order only, because the names are missing. For x = 5,
    # x = 6 in any order.
    if len(gold_parts) > 1 and "=" not in said:
        named = [re.fullmatch(NAMED, part) for part in gold_parts]
        if all(named):
            names, values = zip(*(match.groups() for match in named))
            one_name = len(set(names)) == 1
            # x \in \{5, 6\} for x = 5, x = 6.
            members = re.fullmatch(rf"(?:({NAME}) ?\\in ?)?{IN_BRACES}", said)
            if one_name and members and members[1] in (None, names[0]):
                said_parts = split(members[2])
            return _same_parts(said_parts, values, deeper, ordered=not one_name)

    # 1, 2 for \{1, 2\}: the braces of a set may be left out, on either side.
    said_set, gold_set = re.fullmatch(IN_BRACES, said), re.fullmatch(IN_BRACES, gold)
    if gold_set and not said_set and len(said_parts) > 1:
        return deeper(said, gold_set[1].strip())
    if said_set and not gold_set and len(gold_parts) > 1:
        return deeper(said_set[1].strip(), gold)

    # A list has its parts in any order. 1,234 is a number and not a list.
    if len(gold_parts) > 1 and number(gold) is None:
        # 6,764, 10,945 is two numbers if it is no list of four.
        if len(said_parts) != len(gold_parts):
            said_parts, gold_parts = map(_with_thousands, (said_parts, gold_parts), (said, gold))
        return _same_parts(said_parts, gold_parts, deeper, ordered=False)
    # 1,024-256\pi is one answer and not two.
    if len(said_parts) > 1 and len(split(joined := _without_separators(said))) == 1:
        return deeper(joined, gold)
    # Several answers are wrong where the gold has one. Otherwise guessing would pay.
    return False if len(said_parts) > 1 else None


def _with_thousands(parts, text):
    """The parts between commas with a space behind them, if all of these are numbers."""
    wide = text.split(", ")
    return wide if len(wide) > 1 and all(number(part) is not None for part in wide) else parts


def _without_separators(text):
    return re.sub(THOUSANDS, lambda m: m[0].replace(",", ""), text)


def _compare_brackets(said, gold, deeper):
    """Sets, tuples and intervals. The kind of bracket matters: (0,1] is not [0,1]. Only the
    members of a set may stand in any order."""
    said_match, gold_match = re.fullmatch(IN_BRACKETS, said), re.fullmatch(IN_BRACKETS, gold)
    said_parts, gold_parts = (split(m[2]) if m else [] for m in (said_match, gold_match))
    if said_match and len(gold_parts) > 1:
        if said_match.group(1, 3) != gold_match.group(1, 3):
            return False
        return _same_parts(said_parts, gold_parts, deeper, ordered=gold_match[1] != "\\{")
    # A tuple is not equal to a single value, with or without brackets.
    return False if len(said_parts) > 1 or len(gold_parts) > 1 else None


def _compare_matrices(said, gold, deeper):
    """Matrices and vectors, entry by entry. The kind of bracket does not matter."""
    matches = [re.fullmatch(MATRIX, text) for text in (said, gold)]
    if not all(matches):
        return None
    said_rows, gold_rows = (
        [
            [cell.strip() for cell in row.split("&")]
            for row in match[2].strip().removesuffix("\\\\").split("\\\\")
        ]
        for match in matches
    )
    if list(map(len, said_rows)) != list(map(len, gold_rows)):
        return False
    return _same_parts(sum(said_rows, []), sum(gold_rows, []), deeper, ordered=True)


def _same_parts(said_parts, gold_parts, deeper, ordered):
    """Whether each part has an equal part on the other side, and none is used twice."""
    if len(said_parts) != len(gold_parts):
        return False
    if ordered:
        return all(map(deeper, said_parts, gold_parts))
    # Parts that are written the same go first. Each of the others may have to be compared
    # with all others, so a hostile list must not be long.
    unmatched, others = list(gold_parts), []
    packed = list(map(_packed, gold_parts))
    for part in said_parts:
        if _packed(part) in packed:
            i = packed.index(_packed(part))
            del packed[i], unmatched[i]
        else:
            others.append(part)
    if len(others) > MOST_MEMBERS:
        return False
    for part in others:
        match = next((other for other in unmatched if deeper(part, other)), None)
        if match is None:
            return False
        unmatched.remove(match)
    return True
