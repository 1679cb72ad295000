"""extract and grade: every kind of answer that the benchmarks hold, the traps, and hostile text."""
import random
import threading
import time
from pathlib import Path

import pytest

from evaluate import extract, grade, number, warm_up


def box(answer):
    return f"Adding up, we get \\boxed{{{answer}}}."


EXTRACTED = [
    (r"a \boxed{3} b", "3", "plain"),
    (r"\boxed{3}, no, \boxed{4}", "4", "the last box wins"),
    (r"\boxed{\frac{1}{2}}", r"\frac{1}{2}", "nested braces"),
    (r"\boxed{\{1,2\}}", r"\{1,2\}", "escaped braces are no grouping"),
    (r"\boxed 5.", "5", "a box without braces"),
    (r"\fbox{7}", "7", "the other box"),
    (r"\boxed{ 8 }", "8", "stripped"),
    (r"\boxed{3} and \boxed{4", None, "the last box was cut off: what came before is not the answer"),
    (r"\boxed{}", None, "an empty box"),
    ("so 9\n#### 18", "18", "GSM8K's marker"),
    ("#### 1\n#### 1,800.", "1,800", "the last marker, without a full stop"),
    (r"#### 3 then \boxed{4}", "4", "a box before a marker"),
    ("the answer is 12", None, "a bare number is not extracted"),
    ("", None, "nothing"),
    ("<think>\\boxed{1}", None, "a box in unfinished thinking"),
    ("<think>\\boxed{1}</think> so \\boxed{2}", "2", "after the thinking"),
    ("thinking \\boxed{1}</think> no box", None, "the template opened <think> in the prompt"),
    ("<think>\\boxed{1}</think><think>\\boxed{2}", None, "thinking again, unfinished"),
]

# response, gold, verdict, why
GRADED = [
    # numbers
    (box("18"), "18", True, "equal"), (box("18"), "19", False, "not equal"), (box("025"), "25", True, "leading zero (AIME)"),
    (box("25"), "025", True, "leading zero in the gold"), (box("27"), "27.0", True, "AMC's floats"), (box("27.0"), "27", True, "and the other way"),
    (box("27.1"), "27.0", False, "another float"), (box("1,234"), "1234", True, "thousands separator"), (box("276000"), "so #### 276,000", True, "GSM8K's gold"),
    (box("1{,}234"), "1234", True, "LaTeX's thousands separator"), (box("-5"), "-5", True, "negative"), (box("−5"), "-5", True, "a Unicode minus"),
    (box("5"), "-5", False, "sign"), (box("+5"), "5", True, "plus sign"), (box("1e11"), "100000000000", True, "Minerva's exponents"),
    (box(r"10^{11}"), "1e11", True, "power of ten"), (box(r"3.5 \times 10^{3}"), "3500", True, "scientific"), (box("1e-3"), "0.001", True, "negative exponent"),
    (box(".5"), "0.5", True, "no leading zero"), (box("5."), "5", True, "full stop"), (box("0.50"), "0.5", True, "trailing zero"),
    (box("1234567890123456789"), "1234567890123456789", True, "longer than a float"), (box("1234567890123456788"), "1234567890123456789", False, "floats would agree"),
    # fractions
    (box(r"\frac{14}{3}"), r"\dfrac{14}{3}", True, "display size"), (box("14/3"), r"\frac{14}{3}", True, "slash"), (box(r"\frac{28}{6}"), r"\frac{14}{3}", True, "not reduced"),
    (box(r"\frac12"), "0.5", True, "fraction without braces, against a decimal"), (box(r"4\frac{2}{3}"), r"\frac{14}{3}", True, "mixed number"),
    (box("4 2/3"), r"\frac{14}{3}", True, "mixed number with a slash"), (box(r"-\frac{1}{2}"), "-0.5", True, "negative fraction"),
    (box("0.33"), r"\frac{1}{3}", False, "rounded is not equal"), (box("0.333333"), "1/3", False, "however long"), (box(r"\frac{1}{0}"), "1", False, "division by zero"),
    (box(r"\frac\pi2"), r"\frac{\pi}{2}", True, "braces left out"),
    # units, dollars, percent, degrees
    (box("18 dollars"), "18", True, "a unit in words"), (box(r"18\text{ cm}"), "18", True, "a unit in \\text"), (box(r"\$18"), "18", True, "dollars"),
    (box("$18$"), "18", True, "math mode"), (box(r"50\%"), "50", True, "percent is a unit"), (box("50"), r"50\%", True, "also in the gold"),
    (box("0.5"), r"50\%", False, "never a factor of 100"), (box("5000"), r"50\%", False, "in either direction"), (box(r"90^\circ"), "90", True, "degrees"),
    (box(r"90^{\circ}"), "90", True, "degrees with braces"), (box("5x"), "5", False, "a letter is no unit"), (box("5 m n"), "5", False, "nor are letters"),
    # no box
    ("the answer is 12 or 13.", "13", True, "the last number, for a numeric gold"), ("13, no, 12", "13", False, "the last one only"),
    ("we get 1,300.", "1300", True, "with separator"), ("it is -4", "-4", True, "with sign"), ("x is 5", "x", False, "not for other golds"),
    ("17\n#### 18", "18", True, "the marker before the last number"), ("I give up", "5", False, "no number"), ("<think>so 13", "13", False, "unfinished thinking"),
    ("13 </think> 14", "14", True, "after the thinking"), ("so \\boxed{13", "13", False, "a box that was cut off"),
    # words
    (box(r"\text{Evelyn}"), r"\text{Evelyn}", True, "a name"), (box("evelyn"), r"\text{Evelyn}", True, "case does not matter"),
    (box("nylevE"), "Evelyn", False, "no product of letters"), (box(r"\text{(B)}"), "B", True, "a choice in brackets"), (box("C"), r"\text{C}", True, "a choice"),
    (box("B"), r"\text{C}", False, "another choice"), (box(r"\text{even}"), "odd", False, "words differ"), (box(r"\textbf{Monday}"), "Monday", True, "bold"),
    # lists, sets, tuples, intervals
    (box("2,-3"), "-3, 2", True, "several answers in any order"), (box("2"), "-3, 2", False, "one of two"), (box("2,-3,4"), "-3, 2", False, "one too many"),
    (box("2, 2"), "2, 3", False, "one answer twice"), (box("(2,-3)"), "(2, -3)", True, "a pair"), (box("(-3,2)"), "(2,-3)", False, "a pair is ordered"),
    (box(r"\{1,2\}"), r"\{2, 1\}", True, "a set is not"), (box(r"\{1,2\}"), "(1,2)", False, "a set is no pair"), (box(r"(0,1]"), "(0,1]", True, "an interval"),
    (box("(0,1]"), "[0,1]", False, "brackets matter"), (box("(0,1)"), "(0,1]", False, "at both ends"), (box(r"\left( 3, \infty \right)"), r"(3,\infty)", True, "sized brackets"),
    (box(r"(-\infty,2)\cup(3,\infty)"), r"(-\infty, 2) \cup (3, \infty)", True, "a union"), (box(r"(3,\frac{\pi}{2})"), r"\left( 3, \frac{\pi}{2} \right)", True, "MATH-500"),
    (box(r"x \in [0,1]"), "[0,1]", True, "with its letter"), (box("5"), "(5,6)", False, "one coordinate"), (box("(1/2, 2)"), "(0.5, 2)", True, "members are compared as numbers"),
    # expressions
    (box("x = 5"), "5", True, "with its letter"), (box("y=x+1"), "y = 1 + x", True, "an equation"), (box("-q+p"), "p - q", True, "order of terms"),
    (box("q-p"), "p - q", False, "other sign"), (box("x^2+2x+1"), "(x+1)^2", True, "expanded"), (box("x^2+2x"), "(x+1)^2", False, "not equal"),
    (box(r"\sqrt2/2"), r"\frac{\sqrt{2}}{2}", True, "root without braces"), (box(r"\frac{1}{\sqrt{2}}"), r"\frac{\sqrt{2}}{2}", True, "not rationalised"),
    (box(r"2\sqrt{3}"), r"\sqrt{12}", True, "root taken out"), (box("3.14"), r"\pi", False, "no rounding to two digits"), (box(r"2\pi"), r"\pi", False, "twice"),
    (box("6-5i"), "6 - 5i", True, "complex"), (box("6+5i"), "6 - 5i", False, "conjugate"), (box(r"2^{10}"), "1024", True, "a power"), (box(r"\log_2 8"), "3", True, "a logarithm"),
    (box(r"\binom{5}{2}"), "10", True, "binomial"), (box("a+b"), "a-b", False, "sign in the middle"), (box(r"\sin x"), r"\cos x", False, "another function"),
    (box(r"\begin{pmatrix}1&2\\3&4\end{pmatrix}"), r"\begin{pmatrix} 1 & 2 \\ 3 & 4 \end{pmatrix}", True, "a matrix"),
    (box(r"\begin{pmatrix}1&2\\3&5\end{pmatrix}"), r"\begin{pmatrix} 1 & 2 \\ 3 & 4 \end{pmatrix}", False, "another matrix"),
    # golds in other shapes
    (box("72"), "Natalia sold 48/2 = <<48/2=24>>24 clips.\n#### 72", True, "a worked GSM8K solution"), (box("24"), "48/2 = <<48/2=24>>24.\n#### 72", False, "not a number on the way"),
    (box("3"), r"so the answer is \boxed{3}", True, "a worked MATH solution"), (box(r"\frac{9}{4}"), r"$\frac{9}{4}$", True, "OlympiadBench's dollars"),
    (box("5"), "", False, "an empty gold"), (box(""), "5", False, "an empty answer"),
]

HOSTILE = ["9^{9^{9^{9}}}", "10**10**10", "100000!!!!", "{" * 100_000, "}" * 100_000, "(" * 250, "\\sqrt{" * 100 + "}" * 100, "1" * 1_000_000, "x" * 280,
           "\\frac{1}{" * 40 + "2" + "}" * 40, "\\int_0^{9^9} x^{x^x} dx", "\\binom{10^9}{10^8}", "99999999^{99999999}", "\x00\x1b[31m", "-" * 5000 + "1",
           "1/" * 120, "2^{" * 60 + "2" + "}" * 60, ",".join("1" * 150), "\\boxed{" * 3000, "<think>" * 10000, "1e999999", "\\text{" * 60, "٣", "𝟙𝟚",
           "\\begin{pmatrix}" + "1&" * 100 + "1\\end{pmatrix}", "1 " * 100_000, "a" * 100 + "(" * 100, "\\lim_{x\\to 0}" * 20, "x^{" + "9" * 200 + "}"]


@pytest.fixture(scope="module", autouse=True)
def started():
    warm_up(wait=True)


@pytest.mark.parametrize("response,answer,why", EXTRACTED, ids=[c[2] for c in EXTRACTED])
def test_extract(response, answer, why):
    assert extract(response) == answer


@pytest.mark.parametrize("response,gold,verdict,why", GRADED, ids=[f"{i}: {c[3]}" for i, c in enumerate(GRADED)])
def test_grade(response, gold, verdict, why):
    assert grade(response, gold) is verdict


def test_every_gold_accepts_itself():
    for _, gold, _, why in GRADED:
        if gold and "####" not in gold and "boxed" not in gold:
            assert grade(box(gold), gold), why


def test_numbers_are_exact():
    assert number("1/3") * 3 == 1 and number("0.1") + number("0.2") == number("0.3") and number("5 cm") == 5
    assert [number(t) for t in ("", "x", "1/0", "1e9999", "--5", "1.2.3", "5x", "1" * 100)] == [None] * 8


def timed(function, *arguments):
    begun = time.perf_counter()
    result = function(*arguments)
    return time.perf_counter() - begun, result


@pytest.mark.parametrize("text", HOSTILE, ids=[repr(t[:20]) for t in HOSTILE])
def test_hostile_text_is_graded_within_two_seconds(text):
    for response, gold in ((box(text), "7x"), (text, "7"), (box("x+y^2"), text)):
        seconds, verdict = timed(grade, response, gold)
        assert seconds < 2 and verdict is False
    assert timed(extract, text)[0] < 0.5


def test_many_slow_members_share_one_clock():
    slow, other = ", ".join(["9^{9^{9^{9}}}"] * 8), ", ".join(f"x^{i}" for i in range(2, 10))
    for response, gold in ((box(slow), other), (box(other), slow), (box(f"({slow})"), f"({other})")):
        seconds, verdict = timed(grade, response, gold)
        assert seconds < 2 and verdict is False


def test_a_million_characters():
    rng = random.Random(0)
    text = "".join(rng.choice("0123456789{}\\()^,. xfrac#$") for _ in range(1_000_000))
    for response in (text, text + "\\boxed{" + text, "\\boxed{" * 100_000 + text, text + box("5")):
        seconds, verdict = timed(grade, response, "5")
        assert seconds < 2 and verdict is (response.endswith(box("5")))


def test_nothing_is_executed(tmp_path):
    target = tmp_path / "executed"
    for code in (f"__import__('os').system('touch {target}')", f"open('{target}','w')", f"().__class__.__base__.__subclasses__() or open('{target}','w')",
                 f"exec(\"open('{target}','w')\")", f"\\text{{}}__import__('pathlib').Path('{target}').touch()", f"eval(compile(\"open('{target}','w')\",'','exec'))"):
        for response, gold in ((box(code), "1"), (box(code), "x"), (box("x"), code), (code, "3")):
            assert grade(response, gold) is False
    assert not Path(target).exists()


def test_verdicts_do_not_depend_on_order_or_threads():
    cases = [(r, g, v) for r, g, v, _ in GRADED]
    found = {}

    def work(part):
        for i in part:
            found[i] = grade(*cases[i][:2])
    threads = [threading.Thread(target=work, args=(range(k, len(cases), 3),)) for k in range(3)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert [found[i] for i in range(len(cases))] == [v for *_, v in cases]


def test_a_question_after_a_killed_one_is_answered():
    assert not grade(box("9^{9^{9^{9}}}"), "x")
    seconds, verdict = timed(grade, box("(x+1)^2"), "x^2+2x+1")
    assert verdict and seconds < 1
