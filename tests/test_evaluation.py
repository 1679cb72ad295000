"""The statistics against closed forms and simulation; evaluation does not depend on batches."""
import doctest
import math
from itertools import combinations

import pytest
import torch
from scipy import stats

from common import evaluation, grading
from common.data import load_benchmark
from common.evaluation import (
    bounded_interval,
    evaluate,
    graded_again,
    graded_record,
    majority,
    mean_interval,
    newcombe,
    pass_at_k,
    summarise,
    verdicts,
    wilson,
)
from common.sampler import Completion


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


@pytest.mark.parametrize("n", (2, 3, 5, 31, 32, 61, 500))
def test_the_quantiles_of_t_are_exact_for_any_number_of_values(n):
    values = [i / 7 for i in range(n)]
    mean, low, high = mean_interval(values)
    found = stats.t.interval(.95, n - 1, loc=stats.tmean(values), scale=stats.sem(values))
    assert (low, high) == pytest.approx(found, rel=1e-12) and mean == pytest.approx((low + high) / 2)


def test_one_value_has_no_interval():
    assert mean_interval([.5]) == (.5, -math.inf, math.inf)
    assert bounded_interval([.5]) == (.5, 0, 1)


@pytest.mark.parametrize("n", (2, 30, 500))
def test_an_interval_without_any_variance_has_a_width(n):
    for right in (0, n):            # all wrong, all right: Wilson's interval
        values = [float(right > 0)] * n
        assert bounded_interval(values)[1:] == pytest.approx(wilson(right, n), abs=1e-12)
    _, low, high = bounded_interval([.5] * n)
    assert 0 < low < .5 < high < 1
    # Differences without any variance: the score interval of Tango (1998), which can be solved in
    # closed form if no pair of verdicts differs, or if all of them do.
    z2 = 1.959964**2
    _, low, high = bounded_interval([0.0] * n, -1, 1)
    assert (low, high) == pytest.approx((-z2 / (n + z2), z2 / (n + z2)), abs=1e-6)
    _, low, high = bounded_interval([1.0] * n, -1, 1)
    assert (low, high) == pytest.approx(((n - z2) / (n + z2), 1), abs=1e-6)


def test_a_bounded_interval_stays_inside_and_is_student_s_where_that_is_wide_enough():
    assert bounded_interval([1, .5, 0])[1:] == (0, 1)
    assert bounded_interval([1.0, -1.0, 1.0], -1, 1)[1:] == (-1, 1)
    values = [0, .3, .4, .5, 1] * 10
    assert bounded_interval(values) == pytest.approx(mean_interval(values))


@pytest.mark.parametrize("hard", (.02, .1, .5))
def test_bounded_intervals_cover_where_most_problems_are_easy(hard):
    """avg@8: most problems are always right, and a few are right at one time of ten. Student's
    interval alone covers far less if 30 problems hold none of the hard ones."""
    g, hits, students, trials, truth = torch.Generator().manual_seed(9), 0, 0, 2000, 1 - .9 * hard
    p = torch.where(torch.rand(trials, 30, generator=g) < hard, .1, 1.0)
    shares = (torch.rand(trials, 30, 8, generator=g) < p[..., None]).double().mean(2).tolist()
    for values in shares:
        _, low, high = bounded_interval(values)
        hits += low <= truth <= high
        _, low, high = mean_interval(values)
        students += low - 1e-12 <= truth <= high + 1e-12
    assert hits >= students and hits / trials >= .93
    assert hard != .02 or students / trials < .6


def test_newcombe_against_his_table():
    # Newcombe (1998), Statistics in Medicine 17, 873-890, Table II: method 10, 56/70 - 48/80
    low, high = newcombe(56 / 70, 70, 48 / 80, 80)
    assert (low, high) == pytest.approx((.0524, .3339), abs=1e-4)
    low, high = newcombe(1, 10, 0, 10)
    assert 0 < low < 1 and high == 1
    assert newcombe(1, 500, 1, 500) == pytest.approx((-.00762, .00762), abs=1e-5)


def test_two_ways_to_write_a_number_share_their_votes():
    right = [True, True, False, False, False]
    assert majority(["72", "72.0", "5", "5", "8"], right) == .5       # two against two
    assert majority(["72", "72.00", "5", "8", "9"], right) == 1
    wrong = [True, True, False, False, False]
    assert majority(["72", "72", "5", "5.0", r"\frac{10}{2}"], wrong) == 0


def test_wrong_answers_share_their_votes_however_they_are_typed(monkeypatch):
    monkeypatch.setattr("common.judge._ask", lambda *_: pytest.fail("math-verify was asked"))
    right = [False, False, False, True, True]
    assert majority(["1,000", "1000", r"\$1000", "5", "5"], right) == 0
    assert majority(["x=2", "2", "2 cm", "5", "5"], right) == 0
    assert majority(["1, 2", "2, 1", r"\{1, 2\}", "5", "5"], right) == 0
    assert majority([r"\sin x", r"\cos(90^\circ - x)", "7", "5", "5"], right) == 1


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


@pytest.mark.slow
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


class Words:
    """A tokenizer whose tokens are the words of a text."""

    def __init__(self, *texts):
        self.texts = texts

    def decode(self, ids, skip_special_tokens=False):
        return self.texts[ids[0]]


def test_what_was_graded_is_the_answer_of_a_record():
    """An answer may be the last number of a response. It then has a vote, and it is an answer."""
    said = ["so it is 7", "it is 8", "therefore 7", "I do not know", "\\boxed{8}", "7 or"]
    tokenizer = Words(*said)
    found = [
        {"index": 0, "sample": j,
         **graded_record(tokenizer, [0], Completion([j], j == 5, []), "7")}
        for j in range(len(said))
    ]
    assert [r["extracted"] for r in found] == ["7", "8", "7", None, "8", None]
    assert [r["correct"] for r in found] == [True, False, True, False, False, False]
    summary = summarise(found)
    assert summary["no_answer"] == pytest.approx(2 / 6) and summary["majority"] == .5
    # Nor is a box in thinking that the chat template has opened in the prompt.
    for said, verdict in (("so \\boxed{7}", False), ("so </think> \\boxed{7}", True)):
        tokenizer = Words("<user> 3 + 4 <assistant><think>\n", said)
        record = graded_record(tokenizer, [0], Completion([1], False, []), "7")
        assert record["correct"] is verdict and (record["extracted"] == "7") is verdict
        assert record["response"] == said
        assert graded_again([{**record, "correct": 2, "extracted": 2}]) == [record]
    # The last number of a response is no answer where the gold is no number.
    record = graded_record(tokenizer, [0], Completion([0], False, []), "x + 1")
    assert record["extracted"] is None and not record["correct"]


def test_a_box_in_thinking_that_the_prompt_has_opened_is_no_answer():
    class Tokenizer:
        chat_template = name_or_path = "x"
        texts = ["<user> 3 + 4 <assistant><think>\n", "so \\boxed{7}", "ok </think> \\boxed{7}"]

        def get_chat_template(self):
            return self.chat_template

        def apply_chat_template(self, *_, **more):
            return {"input_ids": [0]}

        def decode(self, ids, skip_special_tokens=False):
            return self.texts[ids[0]]

    drawn = [Completion([i], False, [0.0]) for i in (1, 2)]
    texts, right = verdicts(Tokenizer(), [{"answer": "7"}] * 2, drawn, 1)
    assert texts == Tokenizer.texts[1:] and right == [False, True]
