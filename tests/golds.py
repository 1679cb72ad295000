r"""Golds in every form that the benchmarks use, other ways to typeset them, and near misses.

Whoever grades must accept a gold in all its typesettings, and none of its near misses. The table
is of our own making: it has the forms of MATH-500, AIME, AMC, HMMT, Minerva, OlympiadBench and
GSM8K, and none of their problems. `python benchmarks/fuzz_grading.py --golds FILE` does the same
with the golds of a file. No two golds differ in their unit alone: `grade` ignores units, so that it
takes 8 m for 8 %.
"""
import difflib
import re

GOLDS = [gold for kind in {
    "integers": ["0", "7", "42", "-3", "025", "204", "70000", "1000003", "-12345", "+2"],
    "thousands": ["2,125", "48,\\!500", "11,\\! 222,\\! 333,\\! 400", "1{,}024", "\\$32,\\!348"],
    "decimals": ["0.15", ".0000672", "3.21", "-0.875", "27.0", "671.02", ".35625", "0.10", "-3./2"],
    "scientific": ["4.5e33", "1e-8", "2.7778e-6", "1.7 \\times 10^{-5}", "10^{100}",
                   "6.5 \\cdot 10^{3}", "7e37"],
    "fractions": ["\\frac{14}{3}", "\\dfrac{17}{50}", "-\\frac{35}{9}", "\\frac43", "\\frac 59",
                  "\\frac9{19}", "1/91", "-1./3", "\\frac{-1}{1997}", "\\frac{2025}{101}"],
    "mixed numbers": ["1\\frac{4}{5}", "137 \\frac{1}{2}"],
    "radicals": ["\\sqrt{51}", "3\\sqrt{13}", "11\\sqrt2", "70 \\sqrt{2}", "\\frac{3\\sqrt{3}}{4}",
                 "\\frac{\\sqrt{21}}{5}", "\\sqrt{23}-2 \\sqrt{7}", "14+4\\sqrt{37}",
                 "\\frac{2}{7} \\sqrt{53}", "\\frac{8}{\\sqrt[3]{7}}", "5 \\sqrt[3]{4}",
                 "\\sqrt{\\frac{95}{24}}", "\\frac{-1+\\sqrt{17}}{2}", "\\frac{sqrt{7} + 2}{5}"],
    "powers": ["2^{1009}", "\\frac{1}{2^{98}}", "2^{25} \\cdot 26!", "\\frac{100!}{2^{50}}",
               "2^{-2 / 3}", "\\frac{2016}{2017^{2}}", "\\frac{4 \\cdot 999^{4}}{27}",
               "2021 \\cdot 505 \\cdot 337", "3^{\\frac{1}{4}}"],
    "pi and e": ["\\pi", "288 \\pi", "18+2\\pi", "-\\frac{\\pi}{6}", "\\frac{20000}{\\pi}",
                 "1-\\frac{2}{\\pi}", "4 \\pi^{2}-1", "\\frac{5 \\pi}{4} \\sqrt{17}", "e^{-100}",
                 "5\\pi + 6\\sqrt{3}"],
    "complex": ["6 - 5i", "-2 + 7i", "1+\\sqrt{3} i", "\\ln 2 + i\\pi / 3"],
    "logarithms": ["\\frac{\\log 2}{\\log 2-\\log 3}", "2-\\log_{10} 250", "-\\tau \\ln \\Delta"],
    "polynomials": ["x^5 - x^4 + x^3 - x^2 + x - 1", "(a+5)(b+2)", "6r^2-4r-24", "5r^5", "3R^2",
                    "2 n^{2}-2 n+1", "-13x+3", "n(n-1)", "2RC+R+C"],
    "formulas": ["\\frac{11+9a}{20}", "\\frac{n(n+1)(2 n+1)}{6}", "(n-2) 2^{n}+1", "2^{k-n}",
                 "\\binom{2n}{n}", "\\lceil n / 2\\rceil+1", "m n-\\lfloor m / 2\\rfloor",
                 "\\frac{1}{4-\\omega^{2}}", "\\frac{\\cos (2 t)}{15}+C_{1} e^{t}", "\\cot x",
                 "\\sqrt{2} \\cos (2 t-\\pi / 4)", "I(0) e^{-\\frac{t}{R C}}", "np.arcsin(10/13)",
                 "\\frac{1}{2a}(\\exp{a*t} - \\exp{-a*t})", "-\\frac{1}{2} X^{-\\frac{1}{2}}"],
    "named": ["x=5", "k=-1", "m_{\\max }=n^{2}-n-1", "f(x)=x+22", "M=2^{N-2}+1",
              "X_{d}=125-1.25 P"],
    "equations": ["y = 2x + 3", "5x - 7y + 11z + 4 = 0", "x^2+y^2=9", "MR=SRMC"],
    "points": ["\\left( 3, \\frac{\\pi}{2} \\right)", "(-2,1)", "(1,-16,-4,43)", "(312,123,231)",
               "(\\frac{1}{4}, \\frac{1}{27})", "(4, \\log _{10} 2)", "(10^{3}, 10^{-2})"],
    "intervals": ["(3,4]", "(-\\infty, 0]", "(5,\\infty)", "(-\\sqrt{3}, \\sqrt{3})",
                  "\\left[ \\frac{\\pi^2}{8}, \\frac{5 \\pi^2}{4} \\right]", "x \\in [-2,7]",
                  "[\\frac{1}{2}, 8]"],
    "unions": ["(0,9) \\cup (9,36)", "(-\\infty, 2) \\cup [3, \\infty)",
               "$(-\\infty, 0) \\cup\\{1\\}$."],
    "inequalities": ["x < -5", "k \\geqslant 2", "-3 \\le x < 8"],
    "sets": ["\\{1,3,9\\}", "\\{1\\pm\\sqrt{5},-2\\}", "\\{0\\}", "\\emptyset"],
    "lists": ["1,-2", "3, 5, 7", "10,11,12,-2,-1", "$100,\\frac{1}{100}$", "1 \\pm \\sqrt{19}",
              "\\frac{1+\\sqrt{5}}{2}, \\frac{1-\\sqrt{5}}{2}", "$a=2$, $a=-6-4 \\sqrt{2}$",
              "$f(x)=-1$,$f(x)=x+1$", "$(1,8,19), (2,7,13), (4,5,7)$", "$1.68,0.45$",
              "$\\frac{1}{6} \\pi, \\frac{5}{6} \\pi$", "2400, 1350, 864", "(7,5),(1,1),(9,3)",
              ",".join(f"{k * k}" for k in range(2, 26))],
    "matrices": ["\\begin{pmatrix} -1/3 \\\\ 2/3 \\\\ 5/3 \\end{pmatrix}",
                 "\\begin{pmatrix} -1 & 0 \\\\ 2 & -1 \\end{pmatrix}",
                 "\\begin{bmatrix} 7 \\\\ 16 \\\\ 5 \\end{bmatrix}"],
    "bases": ["52_8", "4210_{5}", "1101_2", "2A_{16}"],
    "units": ["\\frac{270}7\\text{ degrees}", "864 \\mbox{ inches}^2", "5.4 \\text{ cents}",
              "19 \\mathrm{~m}", "15\\mbox{ cm}^2", "20\\pi \\text{ cm}", "1900 km/h"],
    "degrees": ["90^\\circ", "145^{\\circ}", "$(45^{\\circ}, 60^{\\circ})$", "18.8°"],
    "percent": ["62.5\\%", "8 \\%", "17%"],
    "dollars": ["\\$36", "\\$18.90", "$\\frac{1}{2 n+2}$"],
    "words": ["\\text{Evelyn}", "\\text{even}", "\\text{ellipse}", "\\text{(C)}", "\\text{Yes}",
              "\\text{Monday}", "no solution"],
}.values() for gold in kind]  # fmt: skip


def without_dollars(text):
    return re.sub(r"(?<!\\)\$", "", text)


def boxed(text):
    return f"Adding up, we get \\boxed{{{text}}}."


# ================================================================ typesettings of the whole answer

# Each of these is a response for any gold.
RESPONSES = {
    "box": boxed,
    "mathematics in the box": lambda g: boxed(f"${without_dollars(g)}$"),
    "another box": lambda g: f"So \\fbox{{{g}}}",
    "inline": lambda g: f"Hence the answer is \\(\\boxed{{{without_dollars(g)}}}\\).",
    "displayed": lambda g: f"Hence\n\\[\\boxed{{{without_dollars(g)}}}.\\]\nThis was 1 of 2 ways.",
    "full stop": lambda g: boxed(g.rstrip(".") + "."),
    "line ends": lambda g: f"**Answer**\n\n$$\\boxed{{\n{without_dollars(g)}\n}}$$",
    "spaces": lambda g: boxed(f"\\, {g} \\ "),
    "displaystyle": lambda g: boxed("\\displaystyle " + without_dollars(g)),
    "after thinking": lambda g: f"<think>\\boxed{{1}} or 2?</think>\n\\boxed{{{g}}}\n",
    "second box": lambda g: f"First \\boxed{{99991}}. No: {boxed(g)}",
    "GSM8K": lambda g: f"We add 3 and 4.\n#### {g}",
    "Minerva": lambda g: "Final Answer: The final answer is "
                         f"${without_dollars(g)}$. I hope it is correct.",
    "bold": lambda g: f"**Final Answer:** \\boxed{{{g}}}",
}  # fmt: skip


# ================================================================ typesettings of parts

ARGUMENT = r"\{((?:[^{}]|\{[^{}]*\})*)\}"
TEXT = r"\\(?:text|mbox|mathrm)\s*\{[^{}]*\}(?:\^\{?\d\}?)?|[a-z]+/h"
RANGE = r"([(\[])([^,()\[\]]+),([^,()\[\]]+)([)\]])"


def outside_words(pattern, new, text):
    """re.sub, but not in \\text{...}, and not in \\begin{...}."""
    kept = rf"({TEXT}|\\(?:begin|end)\{{\w+\}})"
    return "".join(part if re.fullmatch(kept, part) else re.sub(pattern, new, part)
                   for part in re.split(kept, text) if part)


def as_quotient(text):
    r"""\frac{a}{b} as (a)/(b). A fraction before a letter would then be read in two ways."""
    return re.sub(rf"(?<![\d ])\\[dt]?frac{ARGUMENT}{ARGUMENT}(?![ \w\\(])", r"(\1)/(\2)", text)


def thousands(separator):
    def change(text):
        if "_" in text or "!" in text.replace("\\!", "") or re.search(r"\d\$?,\$?\d", text):
            return text  # 6764,10945 would become 6,764,10,945
        return re.sub(r"(?<![\d.,])\d{4,}(?![\d.,])",
                      lambda m: f"{int(m[0]):,}".replace(",", separator), text)
    return change


def reversed_list(text):
    parts = split(without_dollars(text))
    if len(parts) == 1 or is_thousands(text):
        return text
    return ", ".join(reversed(parts))


def is_thousands(text):
    return re.fullmatch(r"(\\\$)?\d{1,3}((,|\{,\}|,\\! ?)\d{3})+", text) is not None


def split(text):
    parts, depth = [""], 0
    for c in text:
        depth += (c in "([{") - (c in ")]}")
        if c == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += c
    return [part.strip() for part in parts]


def as_inequality(text):
    pieces = re.split(r"\s*\\cup\s*", text.removeprefix("x \\in "))
    sizes = re.compile(r"\\left|\\right")
    matches = [re.fullmatch(RANGE, sizes.sub("", piece).replace(" ", "")) for piece in pieces]
    if not all(matches) or not is_interval(text):
        return text
    return " \\text{ or } ".join(one_inequality(*m.groups()) for m in matches)


def one_inequality(opening, low, high, closing):
    first, second = ("\\leq" if bracket in "[]" else "<" for bracket in (opening, closing))
    if low == "-\\infty":
        return f"x {second} {high}"
    if high == "\\infty":
        return f"{low} {first} x"
    return f"{low} {first} x {second} {high}"


def is_interval(text):
    """Whether brackets with two parts are surely an interval and not a point."""
    return any(sign in text for sign in ("\\infty", "[", "]", "\\cup"))


def both_signs(text):
    if "\\pm" not in text:
        return text
    inside = re.fullmatch(r"\\\{(.*)\\\}", text)
    parts = [part.replace("\\pm", sign) for part in split(inside[1] if inside else text)
             for sign in ("+-" if "\\pm" in part else "+")]
    return f"\\{{{', '.join(parts)}\\}}" if inside else ", ".join(parts)


# Each of these changes a gold, or leaves it as it is where it does not apply.
CHANGES = {
    "dfrac": lambda g: re.sub(r"\\frac(?=[ {\d])", r"\\dfrac", g),
    "tfrac": lambda g: re.sub(r"\\d?frac(?=[ {\d])", r"\\tfrac", g),
    "quotient": as_quotient,
    "sized brackets": lambda g: re.sub(r"(?<![\\\w])([(\[])", r"\\left\1 ",
                                       re.sub(r"([)\]])", r" \\right\1", g))
    if "left" not in g and not re.search(r"(?<=[\\\w])[(\[]", g) else g,
    "unsized brackets": lambda g: g.replace("\\left", "").replace("\\right", ""),
    "space around signs": lambda g: outside_words(r"(?<=[\w})!]) ?([-+=<]) ?(?=[\w\\(])", r" \1 ", g)
    if not re.search(r"\de-?\d", g) else g,
    "thin spaces": lambda g: outside_words(r", ?(?!\\!)(?=[^ ])", ",\\\\, ", g)
    if not is_thousands(g) else g,
    "no spaces": lambda g: outside_words(r"(?<![\d\w\\]) | (?![\d\w\\&])", "", g),
    "braces": lambda g: f"{{{without_dollars(g)}}}" if re.fullmatch(r"[\d.]+|\\d?frac[^,=]*", g) else g,
    "braces around exponents": lambda g: re.sub(r"\^(\w)", r"^{\1}", g),
    "no braces around exponents": lambda g: re.sub(r"\^\{(\w)\}", r"^\1", g),
    "no braces around roots": lambda g: re.sub(r"\\sqrt\{(\d)\}", r"\\sqrt\1", g),
    "commas": thousands(","),
    "commas in braces": thousands("{,}"),
    "thin commas": thousands("\\,"),
    "commas without space": thousands(",\\!"),
    "plain thousands": lambda g: re.sub(r"\D", "", g) if is_thousands(g) else g,
    "negative with a long sign": lambda g: re.sub(r"^-", "−", g),
    "zero in front": lambda g: re.sub(r"^\.", "0.", g),
    "zero behind": lambda g: g + "0" if re.fullmatch(r"-?\d*\.\d+", g) else g,
    "as a decimal": lambda g: g + ".0" if re.fullmatch(r"-?[1-9]\d{0,2}", g) else g,
    "power of ten": lambda g: re.sub(r"(?<=\d)e(-?\d+)$", r" \\times 10^{\1}", g),
    "reversed list": reversed_list,
    "reversed set": lambda g: re.sub(r"^\\\{(.*)\\\}$",
                                     lambda m: f"\\{{{reversed_list(m[1])}\\}}", g),
    "and": lambda g: without_dollars(g).replace(", ", " \\text{ and } ")
    if len(split(without_dollars(g))) == 2 and not is_thousands(g) else g,
    "both signs": both_signs,
    "inequality": as_inequality,
    "interval": lambda g: {"x < -5": "(-\\infty,-5)", "k \\geqslant 2": "[2, \\infty)",
                           "-3 \\le x < 8": "[-3,8)"}.get(g, g),
    "other side": lambda g: {"x < -5": "-5 > x", "k \\geqslant 2": "2 \\leq k",
                             "-3 \\le x < 8": "8 > x \\geq -3"}.get(g, g),
    "membership": lambda g: f"x \\in {g}" if is_interval(g) and g[0] in "([\\" and "," in g
    and "begin" not in g and "frac{" not in g[:6] and "sqrt[" not in g else g,
    "plus infinity": lambda g: re.sub(r", ?\\infty", r", +\\infty", g),
    "named": lambda g: f"x = {g}" if re.fullmatch(r"[-\d.]+|\\d?frac.*|\\sqrt\{\d+\}", g)
    and "," not in g and "=" not in g else g,
    "unnamed": lambda g: re.sub(r"^[a-zA-Z](?:_\{\w+\})?(?:\(x\))? ?= ?", "", g)
    if g.count("=") == 1 and g[:2] != "MR" else g,
    "unnamed list": lambda g: re.sub(r"[a-z](?:\(x\))?=", "", g) if g.count("=") == 2 else g,
    "index in braces": lambda g: re.sub(r"_(\w)$", r"_{\1}", g),
    "index without braces": lambda g: re.sub(r"_\{(\w)\}", r"_\1", g),
    "without base": lambda g: re.sub(r"^(\w+)_\{?\d+\}?$", r"\1", g),
    "mathrm": lambda g: re.sub(r"\\(?:text|mbox) ?\{", r"\\mathrm{", g),
    "text": lambda g: re.sub(r"\\(?:mbox|mathrm) ?\{", r"\\text{", g),
    "no text": lambda g: re.sub(r"^\\text\{(.*)\}$", r"\1", g),
    "bold": lambda g: re.sub(r"^\\text\{", r"\\textbf{", g),
    "no unit": lambda g: re.sub(r"(?<=.) ?\\(?:text|mbox|mathrm) ?\{[^{}]*\}(\^2)?$", "", g),
    "no degrees": lambda g: re.sub(r"\^\{?\\circ\}?|°", "", g),
    "degree sign": lambda g: re.sub(r"\^\{?\\circ\}?", "°", g),
    "no percent": lambda g: re.sub(r" ?\\?%", "", g),
    "percent": lambda g: re.sub(r" ?\\?%", r"\\%", g),
    "no dollar": lambda g: g.replace("\\$", ""),
    "dots": lambda g: g.replace("\\times", "\\cdot"),
    "crosses": lambda g: g.replace("\\cdot", "\\times"),
    "Greek": lambda g: re.sub(r"\\pi ?(?![a-z])", "π", g),
    "leq": lambda g: re.sub(r"\\le(?![a-z])", r"\\leq", re.sub(r"\\geqslant", r"\\ge", g)),
    "square brackets": lambda g: g.replace("pmatrix", "bmatrix"),
    "round brackets": lambda g: g.replace("bmatrix", "pmatrix"),
    "fractions in matrices": lambda g: re.sub(r"(\d+)/(\d+)", r"\\frac{\1}{\2}", g)
    if "matrix" in g else g,
    "capitals": lambda g: g.upper() if re.fullmatch(r"[a-z ]{4,}", g) else g,
    "not reduced": lambda g: re.sub(r"^(-?)\\d?frac\{(\d+)\}\{(\d+)\}$", lambda m:
                                    f"{m[1]}\\frac{{{3 * int(m[2])}}}{{{3 * int(m[3])}}}", g),
    "exponent as a fraction": lambda g: re.sub(r"\^\{-?(\d) ?/ ?(\d)\}", lambda m: m[0].replace(
        m[0].strip("^{}-"), f"\\frac{{{m[1]}}}{{{m[2]}}}"), g),
    "exponent as a quotient": lambda g: re.sub(r"\^\{(-?)\\frac\{(\w)\}\{(\w)\}\}", r"^{\1\2/\3}", g),
}  # fmt: skip


def typesettings(gold):
    """[(rule, response)]: responses that are right, each by one rule."""
    result = [(name, respond(gold)) for name, respond in RESPONSES.items()]
    for name, change in CHANGES.items():
        changed = change(gold)
        if changed != gold:
            result.append((name, boxed(changed)))
    return result


# ================================================================ near misses


def near_misses(gold):
    """[(rule, response)]: responses that are wrong, each by one change."""
    text, result = without_dollars(gold), []
    words = [m.span() for m in re.finditer(TEXT, text)]

    def add(rule, changed):
        if changed != text:
            result.append((rule, boxed(changed)))

    for i, c in enumerate(text):
        if any(start <= i < end for start, end in words):
            continue
        before, after = text[:i], text[i + 1 :]
        if c in "0123456789":
            add(f"digit {i}", before + str((int(c) + 1) % 10) + after)
        if c in "+-" and not after.startswith("\\infty"):
            add(f"sign {i}", before + ("-" if c == "+" else "+") + after)
        if c == "^" and "circ" not in after[:7] and "prime" not in after[:8]:
            add(f"no exponent {i}", before + re.sub(r"^(\{[^{}]*\}|.)", "", after))
        if c in "([" and "," in after and not before.endswith("\\sqrt"):
            add(f"bracket {i}", before + ("[" if c == "(" else "(") + after)
        if c in ")]" and "," in before and "sqrt[3" not in before[-7:]:
            add(f"bracket {i}", before + ("]" if c == ")" else ")") + after)
        if c == "<":
            add("not strict", before + "\\le " + after)
    add("other direction", text.replace("<", ">"))
    add("strict", re.sub(r"\\(le|ge)(q|qslant)?(?![a-z])",
                         lambda m: "<" if m[1] == "le" else ">", text))
    if not re.match(r"-|\+|\\text|\\emptyset|[a-z ]{4}|[a-zA-Z]\b[^,]*(=|<|\\ge|\\in)", text):
        add("negative", f"-{text}" if re.fullmatch(r"[^-+,=\\(]+|\\d?frac[^-+]*", text) and
            not re.fullmatch(r"0+(\.0*)?|.*[+-].*", text) and "_" not in text else text)
    if re.fullmatch(r"-?\\d?frac\{[^{}]*\}\{[^{}]*\}", text):
        add("upside down", re.sub(r"(\{[^{}]*\})(\{[^{}]*\})", r"\2\1", text))
    parts = split(text)
    if len(parts) > 1 and not is_thousands(text):
        add("one less", ", ".join(parts[1:]))
        add("one more", ", ".join([*parts, "77"]))
    add("factor pi", text + "\\pi" if re.fullmatch(r"\d+", text) and text.strip("0") else text)
    add("member", re.sub(r"^\\\{", r"\\{77,", text))
    add("word", re.sub(r"^\\text\{\(?(\w)", lambda m: m[0][:-1] + ("B" if m[1] == "A" else "A"), text))
    return result


def nearest(gold, golds):
    """The gold that looks most like this one."""
    others = [other for other in golds if other != gold]
    return max(others, key=lambda o: difflib.SequenceMatcher(None, gold, o, False).quick_ratio())
