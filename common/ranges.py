r"""Ranges of numbers: inequalities, intervals, unions and sets with a condition, all as intervals.

-2 <= x < 7 is [-2, 7), and x \ne 0 is (-\infty, 0) and (0, \infty). The texts come from `tidy` of
`common/notation.py`. `common/answers.py` compares the intervals.
"""

import re

from common.notation import FLIPPED, RELATION, plain_number

IN_BRACKETS = r"(\\\{|\(|\[)(.*)(\\\}|\)|\])"  # a set, a tuple or an interval
# \{x \mid x > 3\} and x \in (3, \infty): the set behind the words.
SET_OF = r"\\\{ ?[A-Za-z] ?(?:\\in ?\\mathbb ?\{?R\}? ?)?(?:\\mid|\||:)(.*)\\\}"
ALL_NUMBERS = r"\\mathbb ?(?:R|\{ ?R ?\})"
LETTER = r"[A-Za-z]|\\theta|\\alpha|\\lambda"
UNEQUAL = r"\\ne(?![a-z])"
IN_A_SET = rf"({LETTER}) ?\\in(?![a-z]) ?(.*)"
# All numbers but some: \mathbb{R} \setminus \{0\}.
LEFT_OUT = rf"{ALL_NUMBERS} ?\\(?:setminus|backslash) ?\\\{{(.*)\\\}}"


def split(text):
    """The parts of a text between its commas. Commas inside brackets do not count."""
    parts, depth, start = [], 0, 0
    for i, c in enumerate(text):
        depth += (c in "([{") - (c in ")]}")
        if c == "," and depth == 0:
            parts.append(text[start:i].strip())
            start = i + 1
    return [*parts, text[start:].strip()]


def ranges(text):
    """[(letter, interval)] for the parts of a union, or None for any other text."""
    if "\\pm" in text:  # both signs are written out first, in `_compare_rewritten`
        return None
    if inside := re.fullmatch(SET_OF, text):
        text = inside[1].strip()
    letter = ""
    if match := re.fullmatch(IN_A_SET, text):
        letter, text = match.groups()
    # x \ne 1, x \ne 2 are all numbers but two.
    unequal = [re.fullmatch(rf"({LETTER}) ?{UNEQUAL} ?(.+)", part) for part in split(text)]
    if all(unequal) and len({match[1] for match in unequal}) == 1:
        letter, left_out = unequal[0][1], [match[2] for match in unequal]
    else:
        left_out = split(inside[1]) if (inside := re.fullmatch(LEFT_OUT, text)) else []
    if left_out:
        return [(letter, interval) for interval in _between(left_out)] or None
    # "or" has become a comma. Between inequalities, and beside an interval without an end, a comma
    # is a union. (1,2), (3,4) can be two points.
    pieces = re.split(r"\\cup(?![a-z])", text)
    if len(pieces) == 1 and re.search(rf"{RELATION}|\\infty", text):
        pieces = split(text)
    found = [_range(piece.strip(), letter) for piece in pieces]
    return None if None in found else found


def _range(piece, letter):
    """(letter, interval) of one interval, inequality or single point, or None."""
    if match := re.fullmatch(IN_A_SET, piece):
        letter, piece = match.groups()
    sides = re.split(RELATION, piece)
    match = re.fullmatch(IN_BRACKETS, piece)
    if match and len(sides) == 1:
        points = split(match[2])
        if match[1] == "\\{" and len(points) == 1:
            return letter, f"[{points[0]},{points[0]}]"
        return (letter, piece) if match[1] != "\\{" and len(points) == 2 else None
    if point := re.fullmatch(rf"({LETTER}) ?= ?([^=]+)", piece):
        return point[1], f"[{point[2]},{point[2]}]"
    if re.fullmatch(ALL_NUMBERS, piece):
        return letter, r"(-\infty,\infty)"

    # 3 > x is x < 3.
    if len(sides) == 3 and re.fullmatch(LETTER, sides[2]):
        sides = [sides[2], FLIPPED[sides[1]], sides[0]]
    if len(sides) == 3 and re.fullmatch(LETTER, sides[0]):
        letter, sign, end = sides
        closing = "]" if "e" in sign else ")"
        if sign in ("<", "\\le"):
            return letter, rf"(-\infty,{end}{closing}"
        return letter, rf"{'[' if 'e' in sign else '('}{end},\infty)"

    # 7 > x \ge -2 is -2 \le x < 7.
    if len(sides) == 5 and sides[1] in (">", "\\ge"):
        sides = [sides[4], FLIPPED[sides[3]], sides[2], FLIPPED[sides[1]], sides[0]]
    if len(sides) == 5 and re.fullmatch(LETTER, sides[2]) and {sides[1], sides[3]} <= {"<", "\\le"}:
        low, first, letter, second, high = sides
        return letter, f"{'[' if 'e' in first else '('}{low},{high}{']' if 'e' in second else ')'}"
    return None


def _between(points):
    """The intervals between these points, or none where their order is not known."""
    values = list(map(plain_number, points))
    if len(points) > 1 and None in values:
        return []
    points = [point for _, point in sorted(dict(zip(values, points)).items())]
    ends = [r"-\infty", *points, r"\infty"]
    return [f"({low},{high})" for low, high in zip(ends, ends[1:])]
