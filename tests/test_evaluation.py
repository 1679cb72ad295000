"""The statistics against closed forms and simulation; evaluation does not depend on batches."""
import doctest
import math
from itertools import combinations

import pytest
import torch

from common import evaluation, grading
from common.data import load_benchmark
from common.evaluation import evaluate, majority, mean_interval, pass_at_k, summarise, wilson


def test_worked_examples_in_docstrings():
    for module, least in ((evaluation, 2), (grading, 1)):
        result = doctest.testmod(module)
        assert result.attempted >= least and result.failed == 0, module.__name__


def test_pass_at_k_is_the_probability_that_a_draw_of_k_holds_a_right_one():
    for n in range(1, 8):
        for c in range(n + 1):
            for k in range(1, n + 1):
                draws = list(combinations([1] * c + [0] * (n - c), k))
                share = sum(map(any, draws)) / len(draws)
                assert pass_at_k(n, c, k) == pytest.approx(share, abs=1e-12)
    # large numbers do not overflow
    assert pass_at_k(1024, 1, 512) == pytest.approx(.5)
    assert pass_at_k(4096, 4000, 64) == pytest.approx(1)


@pytest.mark.parametrize("p, total", [(.3, 300), (.5, 500), (.05, 500), (.9, 200)])
def test_intervals_of_proportions_cover_what_they_promise(p, total):
    def covers(interval):
        return interval[0] <= p <= interval[1]

    # exactly: the probability of each count, and whether the interval of that count holds p
    counts = torch.arange(total + 1.)
    probability = torch.distributions.Binomial(total, torch.tensor(p)).log_prob(counts).exp()
    inside = torch.tensor([covers(wilson(c, total)) for c in range(total + 1)])
    exact = (probability * inside).sum()
    assert .94 <= exact <= .96
    # and by simulation
    g = torch.Generator().manual_seed(7)
    drawn = (torch.rand(20000, total, generator=g) < p).sum(1)
    hits = [covers(wilson(int(c), total)) for c in drawn]
    assert sum(hits) / len(hits) == pytest.approx(exact.item(), abs=.006)


def test_intervals_of_means_cover_95_percent():
    g = torch.Generator().manual_seed(8)
    for size in (3, 5, 10):  # seeds
        samples = torch.randn(20000, size, generator=g, dtype=torch.float64).tolist()
        hits = [low <= 0 <= high for _, low, high in map(mean_interval, samples)]
        assert .94 <= sum(hits) / len(hits) <= .96
    # avg@8 over 100 problems of very unequal difficulty: the problems are independent, their
    # samples are not
    hits, truth = 0, .5
    for _ in range(3000):
        difficulty = torch.rand(100, generator=g) < .5
        p = torch.where(difficulty, torch.tensor(.9), torch.tensor(.1))
        rights = (torch.rand(100, 8, generator=g) < p[:, None]).double().mean(1).tolist()
        _, low, high = mean_interval(rights)
        hits += low <= truth <= high
    assert .94 <= hits / 3000 <= .96


def test_majority_shares_a_tie_and_nobody_votes_with_no_answer():
    assert majority(["1", "2", "2", None], [True, False, False, False]) == 0
    assert majority(["1", "2"], [True, False]) == .5 and majority([None], [False]) == 0
    three = majority(["a", "b", "c", "a", "b", "c"], [True, False, False, True, False, False])
    assert three == pytest.approx(1 / 3)
    # order does not matter
    first = majority(["2", "1", "2"], [False, True, False])
    assert first == majority(["1", "2", "2"], [True, False, False])


def records(rights, n=4):
    """rights: for each problem, how many of its n samples are right."""
    return [{"index": i, "sample": j, "correct": j < c, "extracted": str(j < c), "tokens": 5 + i,
             "truncated": False, "response": f"{j} + 1"}
            for i, c in enumerate(rights) for j in range(n)]


def test_summary_by_hand():
    found = summarise(records([4, 2, 0]), k=2)
    assert found["accuracy"] == found["avg@4"] == pytest.approx(.5)
    assert found["n"] == 3 and found["samples"] == 4
    assert found["pass@1"] == pytest.approx(.5)
    assert found["pass@2"] == pytest.approx((1 + (1 - 1 / 6) + 0) / 3)
    m, low, high = mean_interval([1, .5, 0])
    assert found["interval"] == [max(0, low), min(1, high)]
    assert high - low == pytest.approx(2 * 4.303 * math.sqrt(.25 / 3), abs=1e-3)
    assert found["mean_tokens"] == 6 and found["max_tokens"] == 7
    assert found["majority"] == pytest.approx((1 + .5 + 0) / 3)
    one = summarise(records([1, 0, 1], n=1))
    assert one["accuracy"] == pytest.approx(2 / 3) and one["interval"] == wilson(2, 3)
    shuffled = records([4, 2, 0])[::-1]
    assert summarise(shuffled, k=2) == found  # the order of the samples does not matter


def test_variety_counts_numbers_and_operators_and_no_words():
    said = ["we have 1 + 2", "1 + 2 makes 3", "so 1 + 2", "1 * 2"]  # the first and the third agree
    found = summarise([{**r, "response": said[r["sample"]]} for r in records([3, 0])])
    assert found["distinct"] == pytest.approx(3 / 4)  # three ways among four samples, twice
    assert found["distinct_right"] == pytest.approx((2 + 0) / 2)


def without_seconds(summary):
    return {k: v for k, v in summary.items() if k != "seconds"}


def test_the_same_samples_whatever_the_batch_and_after_any_interruption(toy):
    student, _, tokenizer = toy
    rows = load_benchmark("toy", "test", 6)
    more = dict(n=3, temperature=1.0, max_new_tokens=60, k=2, bar=False)
    whole, first = evaluate(student, tokenizer, rows, batch=256, **more)
    interrupted = ((3, first[:7]), (4, first[5:6] + first[11:]), (256, first[::2]))
    for batch, done in ((1, []), *interrupted):
        again, second = evaluate(student, tokenizer, rows, batch=batch, done=done, **more)
        assert second == first and without_seconds(again) == without_seconds(whole)
    other, third = evaluate(student, tokenizer, rows, batch=256, seed=1, **more)
    assert [r["response"] for r in third] != [r["response"] for r in first]


def test_only_new_samples_are_handed_on(toy):
    student, _, tokenizer = toy
    rows, handed = load_benchmark("toy", "test", 3), []
    more = dict(n=2, temperature=1.0, max_new_tokens=20, batch=2, bar=False)
    _, whole = evaluate(student, tokenizer, rows, each=handed.extend, **more)
    assert sorted(handed, key=lambda r: (r["index"], r["sample"])) == whole
    handed.clear()
    evaluate(student, tokenizer, rows, done=whole[:3], each=handed.extend, **more)
    assert sorted((r["index"], r["sample"]) for r in handed) == [(1, 1), (2, 0), (2, 1)]
