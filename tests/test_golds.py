"""Every gold of tests/golds.py is accepted in all its typesettings and in none of its near misses.
So is every gold of MATH-500, AIME 24 and 25, AMC 23, HMMT 25, Minerva and OlympiadBench, and the
first 300 of GSM8K."""
import json
import re
from pathlib import Path

import pytest
from golds import CHANGES, GOLDS, RESPONSES, boxed, near_misses, nearest, typesettings

from common import judge
from common.grading import grade


@pytest.fixture(scope="module", autouse=True)
def started():
    judge.warm_up(wait=True)


@pytest.fixture
def asked(monkeypatch):
    """The pairs that went to math-verify."""
    pairs, real = [], judge.math_verify

    def counted(said, gold, budget):
        pairs.append((said, gold))
        return real(said, gold, budget)

    monkeypatch.setattr(judge, "math_verify", counted)
    return pairs


def test_the_table_is_large_and_every_rule_applies_to_it():
    assert len(set(GOLDS)) == len(GOLDS) >= 150
    assert all(len(typesettings(gold)) >= 10 for gold in GOLDS)
    used = {rule for gold in GOLDS for rule, _ in typesettings(gold)}
    assert used == {*CHANGES, *RESPONSES}


def test_a_gold_is_accepted_in_every_typesetting(asked):
    pairs = [(gold, rule, response) for gold in GOLDS for rule, response in typesettings(gold)]
    assert [pair for pair in pairs if not grade(pair[2], pair[0])] == []
    # Most are decided here. Those that go to math-verify take a hundred times as long.
    assert len(asked) < 0.02 * len(pairs)


# Two expressions with these that look different may be equal. Only math-verify can tell.
OPEN = [g for g in GOLDS if re.search(r"log|cos|cot|ln|ceil|floor|binom|arcsin|exp|I\(|f\(", g)]
KNOWN = [gold for gold in GOLDS if gold not in OPEN]


def misses(golds, step=1):
    """[(gold, rule, response)]. step: take only one of so many."""
    return [(gold, *miss) for gold in golds for miss in near_misses(gold)][::step]


def neighbours(golds):
    return [(gold, "nearest", boxed(nearest(gold, GOLDS))) for gold in golds]


def accepted(pairs):
    return [pair for pair in pairs if grade(pair[2], pair[0])]


def test_no_near_miss_of_a_gold_is_accepted(asked):
    pairs = misses(KNOWN) + neighbours(KNOWN)
    assert len(KNOWN) >= 150 and len(pairs) >= 900
    assert accepted(pairs) == []
    assert len(asked) < 0.02 * len(pairs)


def test_no_near_miss_of_an_expression_that_only_math_verify_knows_is_accepted(asked):
    assert accepted(misses(OPEN, step=15)) == [] and len(asked) >= 3


@pytest.mark.slow
def test_no_near_miss_of_any_expression_is_accepted():
    assert accepted(misses(OPEN) + neighbours(OPEN)) == []


@pytest.mark.slow
def test_no_two_golds_of_the_table_have_one_form(monkeypatch):
    # What is not decided here would cost an hour of math-verify.
    monkeypatch.setattr(judge, "math_verify", lambda said, gold, budget: False)
    pairs = [(said, gold) for said in GOLDS for gold in GOLDS if said != gold]
    assert [pair for pair in pairs if grade(boxed(pair[0]), pair[1])] == []


# ================================================================ the golds of the benchmarks

LINES = (Path(__file__).parent / "benchmark_golds.txt").read_text(encoding="utf-8").splitlines()
BENCHMARK_GOLDS = list(dict.fromkeys(line for line in LINES if not line.startswith("#")))
# A sentence with formulas in it. Its words cannot be turned around or lose their spaces.
SENTENCE = next(g for g in BENCHMARK_GOLDS if "where $b$ is an arbitrary integer" in g)
# Golds of different problems that are the same answer, typed in two ways.
SAME = [
    ("x=5", "5"), ("1,-2", "-2,1"), ("\\frac{4}{9}", "$\\frac{4}{9}$"), ("10,\\!080", "10080"),
    ("(2,4)", "$(2,4)$"), ("2 \\sqrt{5}", "2\\sqrt{5}"), ("\\$36", "36"), ("+2", "2"),
    ("$2n$", "$2 n$"), ("2,3,4", "2,4,3"), ("5,600", "5600"),
]


def test_the_golds_of_the_benchmarks_are_all_there():
    sizes = [int(line.rpartition(":")[2]) for line in LINES if line.startswith("## ")]
    assert sizes == [500, 30, 30, 40, 30, 272, 675, 300]
    assert sum(not line.startswith("#") for line in LINES) == sum(sizes)
    assert len(BENCHMARK_GOLDS) > 1100


@pytest.mark.slow
def test_every_gold_of_the_benchmarks_is_accepted_in_every_typesetting():
    pairs = [(gold, *pair) for gold in BENCHMARK_GOLDS for pair in typesettings(gold)]
    assert len(pairs) > 19_000
    refused = [pair for pair in pairs if not grade(pair[2], pair[0])]
    assert [(gold, rule) for gold, rule, _ in refused] == [
        (SENTENCE, "no spaces"), (SENTENCE, "reversed list")
    ]


@pytest.mark.slow
def test_no_near_miss_of_a_gold_of_the_benchmarks_is_accepted(monkeypatch):
    # What is not decided here, 361 pairs, would cost many minutes of math-verify.
    monkeypatch.setattr(judge, "math_verify", lambda said, gold, budget: False)
    pairs = misses(BENCHMARK_GOLDS)
    other = [(gold, boxed(nearest(gold, BENCHMARK_GOLDS))) for gold in BENCHMARK_GOLDS]
    assert len(pairs) > 6000 and accepted(pairs) == []
    same = {(a, boxed(b)) for pair in SAME for a, b in (pair, pair[::-1])}
    assert {(gold, said) for gold, said in other if grade(said, gold)} <= same


# ================================================================ responses that somebody else wrote

# 240 responses with verdicts, half of them wrong, by somebody who had not seen the grader. `grade`
# says otherwise in these: {end of the response: why}.
OTHERWISE = {
    "\\boxed{10\\text{ m}}$.": "units are ignored, and the gold is 10 cm",
    "The answer is Friday.": "no box",
    "The answer is −2/15.": "no box",
    "The answer is $(6, 31, -1)$.": "no box",
    "The answer is 5√7.": "no box",
    "\\boxed{\\text{an ellipse}}$.": "the article",
}


def test_responses_that_somebody_else_wrote():
    lines = (Path(__file__).parent / "other_grading.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    assert len(rows) == 240 and sum(r["right"] for r in rows) == 120
    otherwise = [r["response"] for r in rows if grade(r["response"], r["gold"]) != r["right"]]
    assert len(otherwise) == len(OTHERWISE)
    assert all(any(r.endswith(end) for r in otherwise) for end in OTHERWISE)
