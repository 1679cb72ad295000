"""common/diagnostics.py: coverage, shortcuts, and how far the views are from the student. Against
brute force and numbers made by hand."""
import doctest
import math
import random

import pytest
import torch
from conftest import tiny_qwen3
from helpers import RESPONSES
from test_ar_opd import ROWS, predicted

import hindsight_sd
from common import diagnostics
from common.diagnostics import shortcut
from toy import world

# ----------------------------------------------------------------------------- how far is a view?


def test_gaps_against_brute_force():
    generator = torch.Generator().manual_seed(0)
    view, student = (
        (2 * torch.randn(5, 30, generator=generator)).log_softmax(-1) for _ in range(2)
    )
    gaps = diagnostics.gaps(view, student, top=4, tau=.02)
    for n in range(5):
        q, p = view[n].exp().tolist(), student[n].exp().tolist()
        best_q, best_p = (sorted(range(30), key=lambda v: -x[v])[:4] for x in (q, p))
        expected = [
            1 - len(set(best_q) & set(best_p)) / 4,
            sum(q[v] for v in best_q if v not in best_p),
            sum(q[v] for v in range(30) if p[v] < .02),
            sum(a * math.log(a / b) for a, b in zip(q, p)),
        ]
        assert gaps[n].tolist() == pytest.approx(expected, abs=1e-5)
    same = diagnostics.gaps(student, student, tau=0.)
    assert same.abs().max() < 1e-6


def test_scores_are_those_of_full_forward_passes_however_the_batch_is_cut():
    student, teacher = tiny_qwen3(seed=1), tiny_qwen3(seed=2)
    for cut in ({}, dict(micro_tokens=12, chunk_logits=100)):
        scored = diagnostics.score_views(student, teacher, ROWS, RESPONSES, **cut)
        for row, response, s in zip(ROWS, RESPONSES, scored):
            places = range(len(response)), response
            plain = predicted(student, row["plain"], response)
            assert torch.allclose(s["own"]["student"], plain[places], atol=1e-4)
            for name in ("partial", "full"):
                view = predicted(teacher, row[name], response)
                assert torch.allclose(s["own"][name], view[places], atol=1e-4)
                gaps = diagnostics.gaps(view, plain)
                assert torch.allclose(s["gaps"][name], gaps, atol=1e-3)


def made(values):
    """A scored rollout with gaps that are all `values`, [N]."""
    return {"gaps": {"full": torch.tensor(values)[:, None].repeat(1, 4)}, "own": {}}


def test_fifths_and_lengths():
    scored = [made([0., 0., 1., 1., 2., 2., 3., 3., 4., 4.]), made([0., 1., 2., 3., 4.])]
    assert diagnostics.by_fifths(scored, "full")[:, 0].tolist() == [0, 1, 2, 3, 4]
    scored = [made([1.]), made([5., 5., 5.]), made([2.])]
    groups = diagnostics.by_length(scored, [30, 10, 20], "full", groups=3)
    assert [(a, b, m[0].item()) for a, b, m in groups] == [
        (10, 10, 5.), (20, 20, 2.), (30, 30, 1.),
    ]


def test_advantages_add_up():
    logp = {"student": [-1., -2.], "partial": [-.5, -1.], "full": [-.1, -.2]}
    scored = [{"own": {name: torch.tensor(values) for name, values in logp.items()}}]
    sums = {name: values[0] for name, values in diagnostics.advantages(scored).items()}
    assert sums == pytest.approx({"total": 2.7, "partial": 1.5, "marginal": 1.2})


def test_auc_is_the_probability_of_the_right_order():
    assert diagnostics.auc([1, 2, 3, 4], [False, False, True, True]) == 1
    assert diagnostics.auc([1, 1], [True, False]) == .5
    assert math.isnan(diagnostics.auc([1, 2], [True, True]))
    generator = torch.Generator().manual_seed(0)
    scores = torch.randint(0, 6, (60,), generator=generator).tolist()
    labels = (torch.rand(60, generator=generator) < .4).tolist()
    positive = [s for s, label in zip(scores, labels) if label]
    negative = [s for s, label in zip(scores, labels) if not label]
    pairs = [(a > b) + .5 * (a == b) for a in positive for b in negative]
    assert diagnostics.auc(scores, labels) == pytest.approx(sum(pairs) / len(pairs))


# ----------------------------------------------------------------------------- groups


def test_group_statistics():
    rows = [{"level": 3}, {"level": 4}, {"level": 4}]
    right = [True, False, False] + [False] * 3 + [True] * 3
    peers = [None, 0, 0, None, None, None, 7, 8, 6]
    assert diagnostics.group_statistics(rows, right, peers, 3) == {
        "reward": pytest.approx(4 / 9),
        "signal": pytest.approx(1 / 3),
        "coverage": pytest.approx(2 / 9),
        "coverage_by_level": {"3": pytest.approx(2 / 3), "4": 0.0},
        "groups": [1, 1, 0, 1],
    }


def test_coverage_follows_the_formula_in_simulation():
    generator, G, groups = random.Random(0), 8, 4000
    for p in (.05, .257, .6, .95):
        covered = 0
        for g in range(groups):
            right, scores = [generator.random() < p for _ in range(G)], [(1, 0)] * G
            peers = [
                hindsight_sd.choose_peer(i, right, scores, "uniform", (g, i)) for i in range(G)
            ]
            covered += sum(not ok and peer is not None for ok, peer in zip(right, peers))
        share, expected = covered / (groups * G), diagnostics.coverage(p, G)
        # the rollouts of a group depend on each other, so the error is that of `groups` draws
        assert abs(share - expected) < 4 * math.sqrt(.25 / groups), (p, share, expected)


def test_best_coverage_rises_with_the_group_against_the_papers_table():
    best = []
    for G in (2, 4, 8, 16, 32):
        grid = max((diagnostics.coverage(p / 1000, G), p / 1000) for p in range(1001))
        peak = 1 - G ** (-1 / (G - 1))
        assert grid[1] == pytest.approx(peak, abs=2e-3)
        assert grid[0] == pytest.approx(diagnostics.coverage(peak, G), abs=1e-5)
        best.append(grid[0])
    assert best == sorted(best) and best[2] == pytest.approx(.650, abs=1e-3)
    assert diagnostics.coverage(0, 8) == diagnostics.coverage(1, 8) == 0


# ----------------------------------------------------------------------------- shortcuts

PROBLEM = (
    "h: starts with 14 coins. k: finds 7 # 4 coins. m: loses 8 stones. r: doubles the coins. "
    "t: loses 5 coins. How many coins at the end? Answer briefly."
)
FACT = world.TABLE[7, 4]


def test_shortcuts_are_true_values_before_what_they_depend_on():
    def is_shortcut(response):
        return shortcut(PROBLEM, response, world.check)

    k, r, t = 14 + FACT, 2 * (14 + FACT), 2 * (14 + FACT) - 5
    derived = (
        f"k: 7 # 4 = {FACT}, 14 + {FACT} = {k}. r: {k} * 2 = {r}. t: {r} - 5 = {t}. "
        f"The answer is \\boxed{{{t}}}."
    )
    assert world.check(PROBLEM, derived).correct and not is_shortcut(derived)
    early = f"k: 7 # 4 = {FACT}. " + derived.replace(f"7 # 4 = {FACT}, ", "")
    assert not is_shortcut(early)  # a fact needs nothing before it
    assert is_shortcut(f"The answer is \\boxed{{{t}}}.")  # the answer without a derivation
    # a value of the unseen half
    assert is_shortcut(f"t: {r} - 5 = {t}. The answer is \\boxed{{{t}}}.")
    # one step is left out, and its result is used
    assert is_shortcut(derived.replace(f"r: {k} * 2 = {r}. ", ""))
    # a wrong value is a mistake and no shortcut
    assert not is_shortcut(f"The answer is \\boxed{{{t + 1}}}.")
    assert not is_shortcut(f"t: 14 - 5 = 9. The answer is \\boxed{{{t + 1}}}.")


@pytest.mark.parametrize("check", [None, world.check])
def test_shortcuts_in_other_texts_by_words(check):
    # world.check does not know this problem, so the words decide with it, too
    def is_shortcut(response):
        return shortcut("What is 2+2?", response, check)

    assert is_shortcut("As the example response says, we add and get \\boxed{4}.")
    assert is_shortcut("\\boxed{4}")
    assert not is_shortcut(
        "First we take two and add another two, which makes four, so the answer is \\boxed{4}."
    )


def test_share_of_shortcuts_in_an_evaluation():
    rows = [{"problem": "What is 2+2?"}, {"problem": PROBLEM}]
    answer = f"The answer is \\boxed{{{2 * (14 + FACT) - 5}}}."
    records = [
        {"index": 1, "response": answer},            # true, without a derivation
        {"index": 1, "response": answer[:-3] + "}"},  # false: one digit is missing
        {"index": 0, "response": "Nothing to say."},
    ]
    assert diagnostics.shortcut_share(records, rows, world.check) == pytest.approx(1 / 3)


def test_worked_examples():
    result = doctest.testmod(diagnostics)
    assert result.attempted >= 2 and result.failed == 0
