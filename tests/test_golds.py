"""Every gold of tests/golds.py is accepted in all its typesettings and in none of its near
misses."""
import re

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
