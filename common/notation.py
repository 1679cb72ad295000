r"""One way to write each thing: `tidy` undoes what is only typesetting, `number` reads numbers.

\dfrac12 and \frac{1}{2} look different and say the same. What is left different after
`tidy` is compared in `common/answers.py`.
"""

import re
from fractions import Fraction

# No gold has more characters than this. Every step below takes at most linear time in it.
LONGEST_ANSWER = 1000

# Signs of Unicode, and the LaTeX that means the same.
SIGNS = {
    "−": "-", "–": "-", "×": r"\times ", "·": r"\cdot ", "±": r"\pm ", "≤": r"\le ", "≥": r"\ge ",
    "≠": r"\ne ", "∞": r"\infty ", "π": r"\pi ", "√": r"\sqrt ", "∪": r"\cup ",
    "∈": r"\in ", "°": r"^\circ ", "∅": r"\emptyset ", "≈": r"\approx ", "½": r"\frac{1}{2}",
    "~": " ",
}  # fmt: skip
UNICODE = str.maketrans(SIGNS)
RAISED = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻", "0123456789-")  # 10⁵
# Separators that can stand between thousands only: 12,\!345 and 12{,}345 and 12\,345.
SURE_SEPARATOR = r"(?<=\d)(?:,\\!|\{,\}|\\,) *(?=\d{3}(?!\d))"
# Some set only a part of a number like that: 1,234{,}567.
SEPARATORS = r"(?<!\d)\d{1,3}(?:(?:,\\!|\{,\}|\\,|,)\d{3})+(?!\d)"
# A number in digits or as a word.
COUNT = r"\d[\d.,]*|(?:one|two|three|four|five|six|seven|eight|nine|ten|eleven|twelve)\b"
# Names of functions, which some write without their backslash.
FUNCTIONS = "sqrt|pi|sin|cos|tan|arcsin|arccos|arctan|ln|log|exp"
BARE_NAMES = rf"(?<![\\a-zA-Z])(?:np\.)?({FUNCTIONS})(?![a-zA-Z])"


def tidy(text):
    """The answer without spacing, sizes, dollar signs, wrappers of text and a full stop."""
    # **42** is bold in Markdown.
    text = re.sub(r"^\*\*(.*)\*\*$", r"\1", text.strip(), flags=re.DOTALL).strip("$").strip()
    text = in_latex(text)
    # 12{,}345 is 12345. 12,345 may also be two numbers, and so may 1,234{,}567.
    text = re.sub(SEPARATORS, _like_its_commas, text)
    text = re.sub(SURE_SEPARATOR, "", text)
    text = re.sub(r"(?<!\\)\\! *", "", text).replace("{,}", ",")
    # Spacing and sizes: \left( is (, and \, is a space.
    size = "left|right|displaystyle|quad|qquad|[bB]igg?[lr]?"
    text = re.sub(rf"(?<!\\)\\(?:(?:{size})(?![a-zA-Z])|[,;:> ]|$)", " ", text)
    # Bold, large and coloured is the same answer. So are rows of a matrix that are further apart.
    style = r"\\(?:boldsymbol|bm|bf|large|Large|LARGE|huge|Huge)(?![a-zA-Z])"
    text = re.sub(rf"{style}|\\(?:text)?color ?\{{\w+\}}", "", text)
    text = re.sub(r"\\\\ ?\[ ?[\d.]+ ?[a-z]{2} ?\]", r"\\\\", text)
    text = re.sub(r"^\s*\{([^{}]*)\}\s*$", r"\1", text)  # these braces cannot be seen
    # One name for each sign. An upright e is a number and no unit. An answer may be "about" 5.
    text = re.sub(r"\\mathrm ?\{ ?([ei]) ?\}", r" \1", text)
    text = re.sub(r"^\s*\\(?:approx|simeq)(?![a-z])", "", text)
    text = re.sub(r"\^ ?(?:\{ ?((?:\\prime ?)+)\}|(\\prime)(?![a-z]))", _primes, text)
    text = re.sub(r"(?<=[\d.])\\bar ?(?=\{)", r"\\overline", text)
    text = re.sub(r"\\leq(?:slant)?(?![a-zA-Z])|<=", r"\\le ", text)
    text = re.sub(r"\\geq(?:slant)?(?![a-zA-Z])|>=", r"\\ge ", text)
    text = re.sub(r"\\neq(?![a-zA-Z])", r"\\ne ", text)
    text = re.sub(r"\\lt(?![a-zA-Z])", "<", re.sub(r"\\gt(?![a-zA-Z])", ">", text))
    # All wrappers of words become \text{...}. The unit \mathrm{m s^{-1}} has braces in it.
    wrapper = r"\\(?:text|textbf|textit|mathrm|mathbf|textrm|mbox|operatorname)\s*\{"
    for _ in range(4):
        text = re.sub(rf"([\d}})]\s*{wrapper}[^{{}}]*)\^ ?\{{ ?(-?\d) ?\}}", r"\1^\2", text)
    text = re.sub(rf"{wrapper}([^{{}}]*)\}}", r" \\text{\1} ", text)
    # A wrapper may hold several answers: 5 \text{ or 6}, \text{A, C}.
    text = re.sub(r"\\text\{ *([A-Z](?:, *[A-Z])+) *\}", r"\1", text)
    second = rf"\\text\{{([^{{}}]*)\b(?:and|or) +({COUNT})([^{{}}]*)\}}"
    text = re.sub(second, r"\\text{\1}, \2 \\text{\3}", text)
    if "\\text" not in text:
        text = re.sub(BARE_NAMES, r"\\\1 ", text)
    # All fractions become \frac{1}{2}: from \dfrac, \tfrac and \cfrac, from \frac12 and
    # \frac1{2}. All roots become \sqrt{2}.
    text = re.sub(r"\\[dtc]frac(?![a-zA-Z])", r"\\frac", text)
    part = r"(\d|\\[a-zA-Z]+(?![a-zA-Z{ ])|[a-zA-Z])"
    text = re.sub(rf"(\\frac|\\sqrt) ?{part}", r"\1{\2}", text)
    text = re.sub(rf"(\\frac ?\{{[^{{}}]*\}}) ?{part}", r"\1{\2}", text)
    # Between inequalities and equations the signs of logic are words.
    if re.search(r"[<>=]|\\[lg]e(?![a-z])", text):
        text = re.sub(r"\\(?:lor|vee)(?![a-zA-Z])", r"\\text{or}", text)
        text = re.sub(r"\\(?:land|wedge)(?![a-zA-Z])", r"\\text{and}", text)
    # Currencies are units.
    text = re.sub(r"\\?\$|[£€]", "", text)
    # The empty set has three signs.
    text = re.sub(r"\\varnothing(?![a-zA-Z])|\\\{ *\\\}", r"\\emptyset", text)
    # "3 and 5", "3 or 5" and "3; 5" are lists: 3, 5. So is "3, 5, and 7", with a comma before.
    text = re.sub(r", *(?:\\text\{ *(?:and|or) *\}|(?:and|or) )", ", ", text)
    begin = r"(?=[-\d(\\\[]|[a-zA-Z] ?[=<>\\])"
    joined = rf";|\\text\{{ *(?:and|or) *\}}|(?<=[\d)}}\]]) (?:and|or) {begin}"
    text = re.sub(joined, ", ", _both_hold(text))
    # Behind a letter they join only inequalities: 2 < x or -6 > x.
    text = re.sub(rf"((?:[<>]|\\[lg]e) *[a-zA-Z]) (?:and|or) {begin}", r"\1, ", text)
    # Degrees are a unit, and so is percent: 50\% is 50 and never 0.5. Accepting both would
    # accept an error by a factor of 100.
    text = re.sub(r"\^\s*(?:\\circ|\{\s*\\circ\s*\})|\\degree", "", text)
    text = re.sub(r"\\?%", "", text)
    return re.sub(r"\s+", " ", text).strip().rstrip(".").strip()


def in_latex(text):
    """The text with LaTeX for the signs of Unicode."""
    text = re.sub(r"[⁰¹²³⁴⁵⁶⁷⁸⁹⁻]+", lambda m: f"^{{{m[0].translate(RAISED)}}}", text)
    return text.translate(UNICODE)


def _like_its_commas(match):
    """1,234{,}567 as 1,234,567. A number without a plain comma stays as it is."""
    plain = re.search(r",(?=\d)", match[0])
    return re.sub(r",\\!|\{,\}|\\,", ",", match[0]) if plain else match[0]


def _primes(match):
    return "'" * match[0].count("prime")


# The direction of an inequality, seen from its other side.
FLIPPED = {"<": ">", ">": "<", "\\le": "\\ge", "\\ge": "\\le"}
RELATION = r" ?(<|>|\\le(?![a-z])|\\ge(?![a-z])) ?"


def _both_hold(text):
    """2 < x < 5 for x > 2 and x < 5. Where no number is both, "and" was meant as "or"."""
    parts = [re.split(RELATION, part.strip()) for part in re.split(r"\\text\{ *and *\}|and", text)]
    if len(parts) != 2 or [len(sides) for sides in parts] != [3, 3]:
        return text
    letters, ends = set(), {}  # {is it the lower end: (its sign, read from the lower end; the end)}
    for letter, sign, end in parts:
        if not re.fullmatch("[a-zA-Z]", letter):  # 2 < x is x > 2
            letter, sign, end = end, FLIPPED[sign], letter
        letters.add(letter)
        ends[sign in (">", "\\ge")] = ("<" if sign in "<>" else "\\le", end)
    values = [plain_number(ends[lower][1]) if lower in ends else None for lower in (True, False)]
    if len(letters) != 1 or None in values or values[0] >= values[1]:
        return text
    return f"{ends[True][1]} {ends[True][0]} {letter} {ends[False][0]} {ends[False][1]}"


# A unit behind a number or an expression, as `tidy` leaves it: \text{cm}^2, \text{J}/\text{mol},
# \mu \text{m}.
# (Two ways to read the same spaces would make the search exponential.)
RAISED_UNIT = r"(?: ?\^ ?(?:\{ ?-?\d ?\}|-?\d))?"
UNIT_WORD = rf"(?:\\mu ?)?\\text\{{[^{{}}]*\}}{RAISED_UNIT}"
UNIT = rf"\s*{UNIT_WORD}(?: ?(?:(?:/|\\cdot) ?)?{UNIT_WORD})*$"
# A unit in plain letters: 5 cm, 5 km/h, 5 apples, 5 m/s. 5 x is a product, and 5 or six are two
# answers.
WORDS = r"(?!(?:and|or) )[A-Za-z]{2,}(?:\s+[A-Za-z]+)*"
QUOTIENT = r"(?:[mgJNVWCLK]|mol)/(?:s|m|h|kg|g|mol|K|L|C)"
PLAIN_UNIT = (
    rf"(?:(?<=[\d}}])\s+(?:{WORDS}(?:/[a-z]+)?|{QUOTIENT})|(?<=[\d}}])\s*\\Omega){RAISED_UNIT}$"
)
# Words behind a number that are a factor: 5 million dollars.
SCALES = {"hundred": 100, "thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12}
# A number with more characters is not read: it would cost time, and no gold is so long.
LONGEST_NUMBER = 80

THOUSANDS = r"(?<![\d.,])\d{1,3}(?:,\d{3})+(?![\d,])"  # 1,234 in an expression
SEPARATED = r"[-+]?\d{1,3}(?:(?:,\d{3})+|(?: \d{3})+)(?:\.\d+)?"  # 1,234.5   1 234.5
PERIODIC = r"(\d*)\.(\d*)\\overline ?\{ ?(\d+) ?\}"  # 0.1\overline{6}
POWER = r" ?(?:\\times|\\cdot|\*) ?10 ?\^ ?\{? ?([-+]?\d{1,3}) ?\}?"  # \times 10^{3}
DECIMAL = rf"(\d*\.?\d*)(?:[eE]([-+]?\d{{1,3}})|{POWER})?"  # 27   27.0   .5   1e11
SLASHED = r"(?:(\d+) )?(\d+) ?/ ?(\d+)"  # 3/4   1 3/4
FRACTION = r"(\d+)? ?\\frac ?\{ ?(-?\d+) ?\} ?\{ ?(-?\d+) ?\}"  # \frac{3}{4}   1\frac{3}{4}


def unit_and_scale(text):
    """(the answer without its unit, factor): 5 million dollars is 5 and a factor of 10^6."""
    factor = 1
    for pattern in (UNIT, PLAIN_UNIT):
        if match := re.search(pattern, text):
            for word in re.findall("[a-z]+", match[0].lower().replace("\\text", " ")):
                scale = SCALES.get(word) or SCALES.get(word.removesuffix("s"))
                if scale is None:
                    break
                factor *= scale
            text = text[: match.start()]
    return text, factor


def number(text):
    r"""The exact value of a plain number as a Fraction, or None for any other text.

    It reads what `plain_number` reads, and 5 cm and 5 million.
    """
    # Take the number out of its wrapper and away from its unit.
    text, factor = unit_and_scale(re.sub(r"^\\text\{([^{}]*)\}$", r"\1", text.strip()).strip())
    value = plain_number(text)
    return None if value is None else value * factor


def plain_number(text):
    r"""A number without a unit: 025, 27.0, 1,234, -3/4, \frac{3}{4}, 3\frac{1}{2}, 1e11."""
    text = text.strip()
    if len(text) > LONGEST_NUMBER:
        return None

    # Thousands may be separated by commas or spaces. 10,00 and 1 2 are not such numbers.
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
