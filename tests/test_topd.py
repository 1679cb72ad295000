"""topd.py: transport against POT and brute force, guidance against a dense soft target, and the update as a whole."""
import copy
import itertools
import math
import random
import re
import weakref
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import tiny_qwen3
from helpers import (
    CPU,
    LONG,
    PROMPTS,
    RESPONSES,
    STUDENT,
    TEACHER,
    Largest,
    assert_no_step,
    catch,
    close,
    compute,
    gradient_of,
    slowly,
    spoiled,
    weights,
    with_ends,
)

import opd
import topd
from common import batches
from common.arguments import Mistake
from common.batches import pack
from common.data import prompt_ids
from common.flags import parse
from common.sampler import sample
from toy import world

ARGS = SimpleNamespace(
    guidance="on", lam=0.1, window_size=4, candidate_share=0.1, drop_share=0.3, epsilon=0.05,
    embedding="static", suppress="none", seed=3, micro_tokens=10**6, chunk_logits=2**26,
)
# Three candidates per rollout, some of them near the end.
LONGER = [[random.Random(i).randrange(2, 50) for _ in range(30)] for i in range(4)]


def settings(**changed):
    return SimpleNamespace(**{**vars(ARGS), **changed})


def update(student, teacher, responses=LONG, step=1, **changed):
    """One update. Returns the unclipped gradient, metrics, points."""
    args = settings(**changed)
    caught, (metrics, _, points) = gradient_of(
        topd.update, student, teacher, catch, (PROMPTS, responses), args, step, compute(args)
    )
    return caught, metrics, points


def opd_gradient(student, teacher, responses):
    args = settings(temperature=1.0, divergence="reverse", beta=0.5, estimator="full")
    batch = PROMPTS, responses, [False] * len(PROMPTS)
    caught, (metrics, _) = gradient_of(
        opd.update, student, teacher, catch, batch, args, compute(args)
    )
    return caught, metrics


# ------------------------------------------------------------------------ transport


def problems(seed, sizes):
    generator = torch.Generator().manual_seed(seed)
    return [torch.rand(n, n, generator=generator) for n in sizes]


def uniform(n):
    return np.full(n, 1 / n)


SIZES = [8, 12, 7, 3, 1, 17, 16, 49, 50]


def test_the_exact_plan_is_pots():
    # (5), against another implementation.
    import ot
    for cost in problems(0, SIZES):
        n = len(cost)
        plan = topd.exact_plan(cost)
        distance = ot.emd2(uniform(n), uniform(n), cost.double().numpy())
        assert abs((plan * cost).sum().item() - distance) < 1e-5, n
        assert (plan.sum(1) - 1 / n).abs().max() < 1e-5
        assert (plan.sum(0) - 1 / n).abs().max() < 1e-5 and plan.min() >= 0
        assert ((plan * n).round() - plan * n).abs().max() < 1e-5           # a permutation


def test_the_exact_plan_is_the_best_of_all_permutations():
    # (5): no plan is cheaper.
    for seed in range(5):
        for cost in problems(seed, [1, 2, 4, 5]):
            n, plan = len(cost), topd.exact_plan(cost)
            best = min(
                sum(cost[j, i].item() for j, i in enumerate(p)) / n
                for p in itertools.permutations(range(n))
            )
            assert (plan * cost).sum().item() == pytest.approx(best, abs=1e-6)


def test_sinkhorn_becomes_pots_exact_distance_as_epsilon_goes_to_zero():
    import ot
    costs = [c.double() for c in problems(2, SIZES[:7])]    # padded together, as in training
    for epsilon in (0.3, 0.1, 0.05):
        exact = [ot.emd2(uniform(len(c)), uniform(len(c)), c.numpy()) for c in costs]
        plans = topd.sinkhorn(costs, epsilon, iterations=3000, tolerance=1e-6)
        for plan, cost in zip(plans, costs):
            assert plan.shape == cost.shape
            assert (plan.sum(1) - 1 / len(cost)).abs().max() < 1e-5
            assert (plan.sum(0) - 1 / len(cost)).abs().max() < 1e-5
            # A plan [n, n] has an entropy between log n (a permutation) and 2 log n. So the plan
            # with entropy costs at most epsilon log n more than the exact one.
            gap = (plan * cost).sum().item() - exact.pop(0)
            assert -1e-6 < gap <= epsilon * np.log(len(cost)) + 1e-6


def test_the_smallest_epsilon_that_is_allowed_needs_no_more_iterations_than_there_are():
    with pytest.raises(Mistake) as refused:
        topd.check(parse(topd.Args, "", ["--epsilon", "0"], "topd"))
    smallest = float(re.search(r"lie in \[([\d.]+), 10\]", str(refused.value))[1])
    # Windows of 50 random tokens. Many stand in both, and few numbers tell them apart.
    for seed in range(3):
        generator = torch.Generator().manual_seed(seed)
        vectors = torch.randn(136, 8, generator=generator)
        windows = [vectors[torch.randint(136, (4, 50), generator=generator)] for _ in range(2)]
        for plan in topd.sinkhorn(list(topd.ground_cost(*windows)), smallest):
            assert (50 * plan.sum(1) - 1).abs().max() < 0.0101 and (50 * plan.sum(0) - 1).abs().max() < 1e-4


def test_sinkhorn_is_pots_sinkhorn():
    # (7): gamma, against another implementation.
    import ot
    cost = problems(3, [9])[0]
    pots = ot.sinkhorn(
        uniform(9), uniform(9), cost.double().numpy(), 0.05, numItermax=20000, stopThr=1e-12
    )
    plan = topd.sinkhorn([cost], 0.05, tolerance=1e-5)[0]
    assert np.abs(plan.numpy() - pots).max() < 1e-5
    assert (plan.sum(1) - 1 / 9).abs().max() < 1e-5 and (plan.sum(0) - 1 / 9).abs().max() < 1e-5


def test_sinkhorn_reaches_its_tolerance_with_the_papers_windows():
    # 50 tokens of which about a third stands in both windows, elsewhere nearly orthogonal
    generator = torch.Generator().manual_seed(0)
    vectors = torch.randn(90, 256, generator=generator)
    costs = []
    for _ in range(8):
        w_t, w_s = torch.randint(90, (2, 50), generator=generator)
        costs.append(topd.ground_cost(vectors[w_t][None], vectors[w_s][None])[0])
    for plan in topd.sinkhorn(costs, 0.05):
        assert (plan.sum(1) * 50 - 1).abs().max() <= 0.0101
        assert (plan.sum(0) * 50 - 1).abs().max() < 1e-4


def test_states_that_overflowed_give_a_plan_and_no_error():
    """In float16. The loss of such an update is no number either, so it makes no step."""
    vectors = torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(1))
    vectors[0, 2] = math.inf
    cost = topd.ground_cost(vectors[:1], vectors[1:])[0]
    assert cost[2].tolist() == [1.0] * 5 and cost.isfinite().all()
    assert topd.exact_plan(cost).sum().item() == pytest.approx(1.0)


def test_plans_of_different_sizes_do_not_disturb_each_other():
    costs = problems(4, [12, 5, 3, 1])
    together = topd.sinkhorn(costs, 0.05, tolerance=1e-5)
    alone = [topd.sinkhorn([c], 0.05, tolerance=1e-5)[0] for c in costs]
    assert all(torch.allclose(x, y, atol=1e-5) for x, y in zip(together, alone))
    assert topd.sinkhorn([], 0.05) == []


class Orthogonal(torch.nn.Module):
    """A teacher of which only the embeddings are asked. Two different tokens are orthogonal."""

    device = CPU

    def get_input_embeddings(self):
        return torch.nn.Embedding.from_pretrained(torch.eye(50))


def points_of(pairs):
    """Points from pairs (teacher's window, student's window)."""
    found = [(i, 0, 1.0) for i in range(len(pairs))]
    return topd.compare(found, [(list(w), list(s)) for w, s in pairs], Orthogonal())


def test_distance_of_identical_disjoint_and_half_shared_windows():
    # (4) and (5), where the result is known.
    points = points_of([
        ((5, 6, 7, 8), (5, 6, 7, 8)),
        ((5, 6, 7, 8), (8, 5, 7, 6)),       # transport does not care about the order in a window
        ((5, 6, 7, 8), (15, 16, 17, 18)),
        ((5, 6, 7, 8), (5, 16, 7, 18)),
        ((5, 6, 1), (5, 6, 7)),             # an end of text, beside longer windows
        ((1,), (5,)),
    ])
    distances = [p.distance for p in points]
    assert distances == pytest.approx([0, 0, 1, 0.5, 1 / 3, 1], abs=1e-5)
    assert [tuple(p.cost.shape) for p in points] == [(4, 4)] * 4 + [(3, 3), (1, 1)]


def test_the_plan_is_transposed():
    # (7): the order of the indices.
    # The teacher's window is a cyclic shift of the student's. So the plan is not symmetric, and a
    # forgotten transpose gives other targets.
    student, shifted = [5, 6, 7, 8, 9], [7, 8, 9, 5, 6]
    point, = points_of([(shifted, student)])
    topd.soft_targets([point], settings())
    # Position i is drawn to its own token.
    assert [shifted[j] for j in point.weights.argmax(1).tolist()] == student
    assert torch.allclose(point.weights.sum(1), torch.ones(5), atol=1e-5)
    wrong = topd.sinkhorn([point.cost], 0.05)[0].argmax(1).tolist()
    assert [shifted[j] for j in wrong] != student


def test_the_picture_of_soft_targets():
    # (7): the picture in the docstring of soft_targets.
    # teacher b c a, student A B C: the target of A is a, of B is b, of C is c
    point, = points_of([((6, 7, 5), (5, 6, 7))])
    topd.soft_targets([point], settings(epsilon=0.01))
    expected = torch.tensor([[0.0, 0.0, 1.0], [1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
    assert torch.allclose(point.weights, expected, atol=1e-5)


# ------------------------------------------------------------------------ windows of equal length


def points_with(teacher, responses=LONGER, **changed):
    """{(row, t): point} of all candidates, with their targets."""
    args = settings(**{"window_size": 6, "drop_share": 0.0, **changed})
    points, _, _ = topd.look_ahead(STUDENT, teacher, (PROMPTS, responses), args, compute(args))
    topd.soft_targets(points, args)
    return {(p.row, p.t): p for p in points}


@torch.no_grad()
def test_windows_of_equal_length_are_not_cut():
    teacher = with_ends(TEACHER)                            # it never ends
    points = points_with(teacher)
    whole = {place: p for place, p in points.items() if p.t + 6 <= 30}
    assert len(whole) > 5
    for (row, t), p in whole.items():
        assert p.teacher == slowly(teacher, PROMPTS[row] + LONGER[row][:t], 6, [])[0]
        assert p.student == LONGER[row][t:t + 6]
        assert p.cost.shape == p.weights.shape == (6, 6)
    # An end token that no window has changes nothing either.
    absent = next(i for i in range(50) if all(i not in p.teacher for p in points.values()))
    for place, p in points_with(with_ends(TEACHER, absent)).items():
        assert (p.teacher, p.student) == (points[place].teacher, points[place].student)
        assert torch.equal(p.cost, points[place].cost) and p.distance == points[place].distance
        assert torch.equal(p.weights, points[place].weights)


@torch.no_grad()
def test_both_windows_are_cut_to_the_shorter_one():
    # (3), with note 17.
    free = points_with(with_ends(TEACHER))
    seen = set()
    for end in sorted({token for p in free.values() for token in p.teacher}):
        cut = points_with(with_ends(TEACHER, end))
        assert cut.keys() == free.keys()                    # the candidates do not depend on it
        for place, p in cut.items():
            before = free[place]
            left = 30 - p.t
            assert len(before.teacher) == len(before.student) == min(6, left)
            n = min(6, left)
            if end in before.teacher:
                n = before.teacher.index(end) + 1
            assert p.teacher == before.teacher[:n] and p.student == LONGER[p.row][p.t:p.t + n]
            assert torch.allclose(p.cost, before.cost[:n, :n], atol=1e-6)
            best = topd.exact_plan(before.cost[:n, :n]) * before.cost[:n, :n]
            assert p.distance == pytest.approx(best.sum().item(), abs=1e-5)
            assert p.weights.shape == (n, n)
            seen.add("at once" if n == 1 else "whole" if n == 6 else "later")
            if n == left < 6:
                seen.add("the rollout ends first")
    assert seen == {"at once", "later", "whole", "the rollout ends first"}


def test_a_teacher_that_ends_at_once_is_the_target_of_one_position_only():
    free = points_with(with_ends(TEACHER))
    # The end token is the first token of some window.
    place, first = next((at, p.teacher[0]) for at, p in free.items() if at[1] + 6 <= 30)
    teacher = with_ends(TEACHER, first)
    changed = dict(window_size=6, drop_share=0.0, lam=0.7)
    caught, metrics, points = update(STUDENT, teacher, LONGER, **changed)
    point = next(p for p in points if (p.row, p.t) == place)
    assert (point.teacher, point.student) == ([first], LONGER[point.row][point.t:point.t + 1])
    assert point.weights.tolist() == [[1.0]]

    # Of its K positions only the first one has a target. The others were targets of the same
    # end token before the windows were cut.
    _, target_weights = topd.target_tensors([point], [30] * 4)
    assert [w.sum().item() for w in target_weights] == [float(row == place[0]) for row in range(4)]
    assert target_weights[place[0]][place[1]].sum() == 1

    # The loss, too: the mean over ONE position of -log p_S(end).
    row, t = place
    ids = torch.tensor([PROMPTS[row] + LONGER[row][:t]])
    alone = -STUDENT(ids).logits[0, -1].log_softmax(-1)[first].item()
    assert dense(STUDENT, [point], LONGER).item() == pytest.approx(alone, abs=1e-5)
    plain, opd_metrics, _ = update(STUDENT, teacher, LONGER, guidance="off", **changed)
    student = copy.deepcopy(STUDENT)
    expected = dense(student, points, LONGER)
    expected.backward()
    assert metrics["loss"] == pytest.approx(opd_metrics["loss"] + 0.7 * expected.item(), abs=1e-4)
    whole = {n: plain[n] + 0.7 * p.grad for n, p in student.named_parameters()}
    assert close(caught, whole, 2e-5)


def test_never_two_caches_at_once(monkeypatch):
    """A micro-batch's cache is gone before the next one is filled."""
    real, caches = topd.read, []

    def read(*args):
        assert [c for c in caches if c() is not None] == []
        hidden, cache = real(*args)
        caches.append(weakref.ref(cache))
        return hidden, cache
    monkeypatch.setattr(topd, "read", read)
    args = settings(micro_tokens=1)
    topd.look_ahead(STUDENT, TEACHER, (PROMPTS, LONG), args, compute(args))
    assert len(caches) == len(LONG)


@torch.no_grad()
def test_contextual_vectors_are_the_teacher_s_states_after_each_token():
    # (4): the other E.
    free = points_with(with_ends(TEACHER))
    end = next(p.teacher[2] for at, p in free.items() if at[1] + 6 <= 30)
    teacher = with_ends(TEACHER, end)
    points = points_with(teacher, embedding="contextual", micro_tokens=70)
    assert len({len(p.teacher) for p in points.values()}) > 1
    for (row, t), p in points.items():
        prefix, n = PROMPTS[row] + LONGER[row][:t], len(p.teacher)
        tokens, after = slowly(teacher, prefix, n, [end])
        assert tokens == p.teacher
        read = teacher.base_model(torch.tensor([prefix + p.student])).last_hidden_state[0, -n:]
        cost = topd.ground_cost(after[None], read[None])[0]
        assert torch.allclose(p.cost, cost, atol=1e-5)


# ------------------------------------------------------------------------ candidates, selection


def test_candidates_are_the_highest_losses_that_have_half_a_window_left():
    # (2), with notes 7 and 17.
    losses = torch.rand(400, generator=torch.Generator().manual_seed(0))
    args = settings(candidate_share=0.0225, window_size=12)
    highest = [t for t in losses.argsort(descending=True).tolist() if 400 - t >= 6]
    assert topd.candidates(losses, args) == sorted(highest[:9])
    late = torch.arange(400, 0, -1).float() / 1000
    late[[100, 394, 395]] = torch.tensor([1.0, 2.0, 3.0])
    # 6 tokens left are half of 12, and 5 are not: then the next highest loss takes the place.
    assert topd.candidates(late, args) == [0, 1, 2, 3, 4, 5, 6, 100, 394]
    # Half a window can be half a token more: 12 of 13 are 6.5, so 7 must be left.
    assert topd.candidates(late, settings(candidate_share=0.0225, window_size=13)) == [*range(8), 100]
    short = settings(candidate_share=0.0225, window_size=2)
    for n, most in ((68, 2), (19, 1), (30, 2), (5, 1), (1, 1), (1000, 22)):
        assert len(topd.candidates(torch.arange(n, 0, -1).float(), short)) <= most
    assert len(topd.candidates(torch.arange(68, 0, -1).float(), args)) == 2
    # Two candidates of these 30 tokens, although the share asks for one.
    few = settings(window_size=4, candidate_share=0.0225)
    assert len(topd.candidates(torch.arange(30, 0, -1).float(), few)) == 2
    assert topd.candidates(torch.ones(3), args) == []       # shorter than half a window: none


def test_a_planted_high_loss_is_always_a_candidate():
    # (2)
    # Whatever the other losses are. A threshold of mean + 2 standard deviations would miss it on
    # short rollouts.
    for seed in range(50):
        losses = torch.rand(20 + seed, generator=torch.Generator().manual_seed(seed))
        losses[7] = 1.01
        assert 7 in topd.candidates(losses, settings(window_size=4, candidate_share=0.0225))


def point(row, t, loss, distance):
    """A candidate whose windows do not matter."""
    return topd.Point(row, t, loss, [5], [6], torch.ones(1, 1), distance)


def test_divergent_points_keep_the_highest_distances():
    # (6)
    points = [point(i, 0, 1.0, (7 * i % 10) / 10) for i in range(10)]
    kept, dropped = topd.divergent(points, settings(drop_share=0.3))
    assert sorted(p.distance for p in dropped) == [0, 0.1, 0.2] and len(kept) == 7
    assert topd.divergent(points, settings(drop_share=0))[1] == []
    assert topd.divergent([], settings()) == ([], [])


def test_the_share_that_is_dropped_is_rounded_to_the_nearest_number():
    points = [point(i, 0, 1.0, i / 10) for i in range(6)]
    for share, dropped in ((0.3, 2), (0.2, 1), (0.25, 2)):     # of 1.8, 1.2 and 1.5 points
        assert len(topd.divergent(points, settings(drop_share=share))[1]) == dropped


def test_a_window_ends_at_an_end_token_of_either_model(tmp_path, monkeypatch):
    # A teacher that does not know the student's end would write on behind it.
    import json
    import shutil

    from conftest import ROOT
    student = tmp_path / "student"
    shutil.copytree(ROOT / "toy/student", student)
    config = json.loads((student / "generation_config.json").read_text())
    config["eos_token_id"] = [config["eos_token_id"], 9]
    (student / "generation_config.json").write_text(json.dumps(config))

    class Seen(Exception):
        pass

    def update(student, teacher, *_):
        raise Seen(teacher.ends, student.ends)
    monkeypatch.setattr(topd, "update", update)
    flags = "--steps 1 --prompts 1 --samples 1 --eval_n 1 --max_new_tokens 16 --device cpu".split()
    with pytest.raises(Seen) as seen:
        topd.main(["--data", "toy", "--student", str(student), "--teacher", str(ROOT / "toy/teacher"),
                   *flags, "--out", str(tmp_path / "run")])
    assert seen.value.args == ([4, 9], [4, 9])


@pytest.mark.parametrize("n", range(1, 12))
def test_the_largest_share_that_is_allowed_leaves_as_many_others(n):
    points = [point(0, t, 1.0, t / n) for t in range(n)]
    kept, dropped = topd.divergent(points, settings(drop_share=0.4999))
    assert len(dropped) <= len(kept)
    # With 0.5 one of three would have no partner: 2 are dropped and 1 is kept.
    kept, dropped = topd.divergent(points, settings(drop_share=0.5))
    assert (len(dropped) > len(kept)) == (n % 2 == 1)


def test_suppression_scales_to_the_median_and_matches_in_number():
    losses = [torch.tensor([0.1, 0.2, 0.3, 4.0, 5.0]), torch.tensor([1.0, 1.0, 8.0, 1.0, 0.5])]
    points = [
        point(0, 3, 4.0, 0.1), point(0, 4, 5.0, 0.9), point(1, 2, 8.0, 0.8), point(1, 4, 0.5, 0.05)
    ]
    kept, dropped = topd.divergent(points, settings(drop_share=0.5))
    low = topd.scales(losses, kept, dropped, settings(suppress="low"), step=1)
    assert low[0][3] == pytest.approx(0.3 / 4) and low[0].sum() == pytest.approx(4 + 0.3 / 4)
    assert low[1][4] == 1                                   # below the median: never scaled UP
    high = topd.scales(losses, kept, dropped, settings(suppress="high"), step=1)
    assert high[0][4] == pytest.approx(0.3 / 5) and high[1][2] == pytest.approx(1 / 8)
    assert high[0][3] == 1
    chosen = set()
    for step in range(1, 9):
        one = topd.scales(losses, kept, dropped[:1], settings(suppress="high"), step)
        assert sum((x < 1).sum().item() for x in one) == 1  # as many as were dropped
        chosen.add(int(one[1][2] < 1))
    assert chosen == {0, 1}                                 # at random, a new one in every step
    none = topd.scales(losses, kept, dropped, settings(), step=1)
    assert all(torch.equal(x, torch.ones(5)) for x in none)
    assert not any(x.requires_grad for x in low + high)


# ------------------------------------------------------------------------ targets


def test_targets_stand_side_by_side_where_windows_overlap():
    first, second, third = points_of([((5, 6), (7, 8)), ((9, 10), (11, 12)), ((13,), (14,))])
    first.row, first.t, first.weights = 0, 1, torch.tensor([[0.25, 0.75], [1.0, 0.0]])
    second.row, second.t, second.weights = 0, 2, torch.tensor([[0.5, 0.5], [0.0, 1.0]])
    third.row, third.t, third.weights = 1, 0, torch.tensor([[1.0]])
    ids, given = topd.target_tensors([first, second, third], [5, 2])
    assert [tuple(x.shape) for x in ids] == [(5, 4), (2, 4)]        # four targets at one position

    def targets(row, t):
        pairs = zip(ids[row][t].tolist(), given[row][t].tolist())
        return {token: weight for token, weight in pairs if weight}

    # Each weight is divided by m, the length of its window.
    assert targets(0, 0) == {} and targets(0, 4) == {}
    assert targets(0, 1) == {5: 0.125, 6: 0.375}
    assert targets(0, 2) == {5: 0.5, 9: 0.25, 10: 0.25}
    assert targets(0, 3) == {10: 0.5}
    assert targets(1, 0) == {13: 1.0} and targets(1, 1) == {}


def test_targets_without_any_point():
    ids, given = topd.target_tensors([], [3, 1])
    assert [tuple(x.shape) for x in ids] == [tuple(x.shape) for x in given] == [(3, 1), (1, 1)]
    assert all((x == 0).all() for x in given)


def test_the_papers_unnormalised_sum_has_the_same_gradient():
    # (8), with note 9.
    # A sum over i of cross-entropies, with the columns of gamma as they are (mass 1/m each), is
    # the mean over i with normalised columns.
    one, = points_of([((5, 6, 1, 7), (5, 7, 8, 9))])
    gamma = topd.sinkhorn([one.cost], 0.05)[0].T
    topd.soft_targets([one], settings())
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(4, 50, generator=generator, requires_grad=True)
    logp = logits.log_softmax(-1)[:, one.teacher]
    paper, = torch.autograd.grad(-(gamma * logp).sum(), logits, retain_graph=True)
    here, = torch.autograd.grad(-(one.weights * logp).sum(1).mean(), logits)
    assert torch.allclose(paper, here, atol=1e-6) and here.abs().max() > 0.01


def test_negative_entropy_merges_equal_tokens():
    one, = points_of([((5, 6, 5), (7, 8, 9))])
    one.weights = torch.tensor([[0.2, 0.5, 0.3], [0.0, 1.0, 0.0], [0.5, 0.0, 0.5]])
    # q is {5: .5, 6: .5}, {6: 1} and {5: 1}
    assert topd.negative_entropy(one) == pytest.approx(2 * 0.5 * np.log(0.5), abs=1e-6)


# ------------------------------------------------------------------------ the update


def test_without_guidance_and_suppression_it_is_opd():
    # (1): L_OPD is the loss of opd.py.
    for responses in (RESPONSES, LONG):
        plain, metrics, _ = update(STUDENT, TEACHER, responses, guidance="off", window_size=4)
        expected, of_opd = opd_gradient(STUDENT, TEACHER, responses)
        assert all((plain[n] - expected[n]).abs().max() <= 1e-6 for n in expected)
        assert metrics["loss"] == metrics["opd"] == pytest.approx(of_opd["loss"], abs=1e-6)
        same = "kl", "student_entropy", "teacher_entropy", "tokens", "length", "truncated"
        assert all(metrics[k] == pytest.approx(of_opd[k], abs=1e-6) for k in same)
    guided, _, _ = update(STUDENT, TEACHER)
    assert max((guided[n] - plain[n]).abs().max() for n in plain) > 1e-3


def dense(student, points, responses=LONG, agreement=False):
    """The mean over the points of (8), with dense soft targets [m, V] and one full forward pass
    per point. agreement: the probability that `student` gives the targets, instead of (8)."""
    total = 0.0
    for p in points:
        m = len(p.student)
        target = torch.zeros(m, 50)
        for i in range(m):
            for j, token in enumerate(p.teacher):
                target[i, token] += p.weights[i, j]
        before = PROMPTS[p.row] + responses[p.row][:p.t]
        after = responses[p.row][p.t:p.t + m]
        assert after == p.student and len(p.teacher) == m
        logits = student(torch.tensor([before + after])).logits[0, len(before) - 1:-1]
        logp = logits.log_softmax(-1)
        assert len(logp) == m
        if agreement:
            total = total + (target * logp.exp()).sum().item() / m
        else:
            total = total + (torch.xlogy(target, target) - target * logp).sum() / m
    return total / len(points)


@pytest.mark.parametrize("changed", [
    {},
    dict(embedding="contextual"),
    dict(epsilon=0.5),
    dict(window_size=9, candidate_share=0.1, drop_share=0.0),
    dict(suppress="low", drop_share=0.5),
])
def test_loss_and_gradient_against_dense_soft_targets(changed):
    # (1), (8) and (9), value and gradient.
    caught, metrics, points = update(STUDENT, TEACHER, lam=0.7, **changed)
    plain, opd_metrics, _ = update(STUDENT, TEACHER, guidance="off", **changed)
    guiding = [p for p in points if p.weights is not None]
    assert len(guiding) >= 2 and metrics["divergent"] * 4 == len(guiding)
    assert metrics["candidates"] * 4 == len(points)
    quartiles = np.quantile([p.distance for p in points], [0.25, 0.5, 0.75])
    assert metrics["distance"] == pytest.approx(quartiles.tolist(), abs=1e-5)
    student = copy.deepcopy(STUDENT)
    expected = dense(student, guiding)
    expected.backward()
    assert metrics["traj"] == pytest.approx(expected.item(), abs=1e-4) and metrics["traj"] > 0
    agreement = dense(TEACHER, guiding, agreement=True)     # the teacher in the student's context
    assert metrics["target_agreement"] == pytest.approx(agreement, abs=1e-4) and agreement > 0
    assert metrics["loss"] == pytest.approx(opd_metrics["loss"] + 0.7 * expected.item(), abs=1e-4)
    whole = {n: plain[n] + 0.7 * p.grad for n, p in student.named_parameters()}
    assert close(caught, whole, 2e-5)
    if changed.get("window_size") == 9:     # here are windows that overlap: they add up
        covered = [(p.row, p.t + i) for p in guiding for i in range(len(p.student))]
        assert len(covered) > len(set(covered))


@pytest.mark.parametrize("changed", [
    {},
    dict(suppress="low"),
    dict(suppress="high", guidance="off"),
    dict(embedding="contextual"),
])
def test_micro_batches_and_chunks_change_nothing(changed, monkeypatch):
    def same_points(points, others):
        a, b = ([(p.row, p.t, p.teacher, p.student) for p in x] for x in (points, others))
        return a == b

    whole, metrics, points = update(STUDENT, TEACHER, **changed)
    for cut in (
        dict(micro_tokens=30), dict(micro_tokens=8, chunk_logits=150), dict(chunk_logits=50)
    ):
        again, other, others = update(STUDENT, TEACHER, **changed, **cut)
        assert close(whole, again, 2e-6), cut
        assert same_points(points, others)
        for k in ("loss", "opd", "traj", "kl", "divergent"):
            assert other[k] == pytest.approx(metrics[k], abs=1e-5)
    monkeypatch.setattr(batches, "FULL", 8)                 # cut because of padding
    args = settings(**changed)
    assert len(compute(args).micro_batches(PROMPTS, LONG)) > 1
    again, other, others = update(STUDENT, TEACHER, **changed)
    assert close(whole, again, 2e-6) and same_points(points, others)
    assert other["loss"] == pytest.approx(metrics["loss"], abs=1e-5)
    if "suppress" in changed:
        plain, _, _ = update(STUDENT, TEACHER, **{**changed, "suppress": "none"})
        assert not close(whole, plain)


def test_no_gradient_through_targets_plans_or_selection():
    # Even a teacher that could learn gets nothing.
    teacher = copy.deepcopy(TEACHER).requires_grad_(True)
    before = weights(teacher)
    _, _, points = update(STUDENT, teacher)
    assert all(p.grad is None and torch.equal(p, before[n]) for n, p in teacher.named_parameters())
    guiding = [p for p in points if p.weights is not None]
    assert guiding and not any(p.weights.requires_grad or p.cost.requires_grad for p in guiding)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_gradient_that_is_not_finite_changes_no_weight(value):
    student = spoiled(STUDENT, value)
    optimizer, before = torch.optim.AdamW(student.parameters(), lr=0.1), weights(student)
    metrics, _, points = topd.update(
        student, TEACHER, optimizer, (PROMPTS, LONG), ARGS, 1, compute(ARGS)
    )
    assert_no_step(student, optimizer, before, metrics["grad_norm"])
    assert math.isfinite(metrics["loss"]) and points


def test_no_tensor_of_positions_times_vocabulary_longer_than_a_chunk():
    # A head of 4,000 columns and chunks of 5 positions: neither the losses nor the soft targets
    # may ever be larger.
    V, size = 4000, 5
    student, teacher = tiny_qwen3(seed=1, vocabulary=V), tiny_qwen3(seed=2, vocabulary=V)
    optimizer = torch.optim.SGD(student.parameters(), lr=0.1)
    args = settings(chunk_logits=size * V)
    with Largest(V, 32) as largest:
        metrics, _, points = topd.update(
            student, teacher, optimizer, (PROMPTS, LONG), args, 1, compute(args, V)
        )
    assert 1 <= largest.rows <= size
    assert metrics["traj"] > 0 and points


def test_rollouts_without_candidates_are_an_opd_update():
    short = [[3, 1], [1], [9, 1], [30]]
    plain, metrics, points = update(STUDENT, TEACHER, short, window_size=8, suppress="low")
    expected, _ = opd_gradient(STUDENT, TEACHER, short)
    assert points == [] and metrics["traj"] == 0 and metrics["distance"] is None
    assert metrics["candidates"] == metrics["divergent"] == 0
    assert all((plain[n] - expected[n]).abs().max() <= 1e-6 for n in expected)
    # with contextual vectors, too
    again, _, _ = update(STUDENT, TEACHER, short, window_size=8, embedding="contextual")
    assert close(plain, again)


# ------------------------------------------------------------------------ does it find forks?


def written(model, prompt):
    return sample(model, [prompt], max_new_tokens=120, temperature=0)[0].ids


def planted(toy, kind, count):
    """Right solutions in the teacher's own words with one planted change. The teacher itself
    writes on from there, so that nothing else differs.

    fork: a wrong value is planted, and everything after it follows from it.
    paraphrase: another way to say the same.
    Returns (prompt, response, position of the planted token).
    """
    _, teacher, tokenizer = toy
    generator, cases = random.Random(5), []
    while len(cases) < count:
        problem = world.make_problem(generator, 4, "terse")
        prompt = prompt_ids(tokenizer, problem.text)
        solution = written(teacher, prompt)
        if not world.check(problem.text, tokenizer.decode(solution[:-1])).correct:
            continue
        words = [tokenizer.decode([i]).strip() for i in solution]
        says_equal = ("=", "makes", "gives", "equals")
        equal = [i for i, w in enumerate(words) if w in says_equal and i + 1 < len(words)]
        at = equal[len(equal) // 2]
        if kind == "fork":
            at += 1
            word = f" {(int(words[at]) + 4) % 10}"
        else:
            word = " equals" if words[at] == "=" else " ="
        new = tokenizer.encode(word, add_special_tokens=False)[-1]
        if new == solution[at]:
            continue
        begin = solution[:at] + [new]
        cases.append((prompt, begin + written(teacher, prompt + begin), at))
    return cases


@pytest.mark.slow
@torch.no_grad()
def test_it_finds_planted_forks_and_not_planted_paraphrases(toy):
    # Both kinds have the same high loss in the same kind of text. Only the distance can tell them
    # apart.
    teacher = toy[1]
    texts = planted(toy, "fork", 20) + planted(toy, "paraphrase", 20)
    ids, _, _ = pack([p for p, _, _ in texts], [r for _, r, _ in texts], CPU)
    args = settings(window_size=12, candidate_share=0.0225, drop_share=0.5)
    found = []
    for row, (_, r, at) in enumerate(texts):
        losses = torch.full((len(r),), 0.01)
        losses[at] = 3.0
        assert at in topd.candidates(losses, args)
        found.append((row, at, 3.0))
    hidden, cache = topd.read(teacher, ids, 12)
    places = [(row, len(texts[row][0]) + t) for row, t, _ in found]
    windows, _ = topd.continuations(teacher, hidden, cache, places, 12)
    pairs = []
    for w, (row, t, _) in zip(windows, found):
        rollout = texts[row][1][t:t + 12]
        n = min(len(w), len(rollout))
        pairs.append((w[:n], rollout[:n]))
    points = topd.compare(found, pairs, teacher)
    kept, dropped = topd.divergent(points, args)
    right = sum(p.row < 20 for p in kept)
    forks, paraphrases = points[:20], points[20:]
    auc = np.mean([
        (a.distance > b.distance) + 0.5 * (a.distance == b.distance)
        for a in forks for b in paraphrases
    ])
    assert right >= 18 and auc > 0.95, (right, auc)
