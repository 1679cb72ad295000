"""topd.py: transport against POT, windows against token-by-token decoding, guidance against a dense soft target, the update as a whole."""
import copy
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import tiny_qwen3
from test_opd import CPU, PROMPTS, RESPONSES, STUDENT, TEACHER, close
from test_opd import gradient as opd_gradient
from torch.utils._python_dispatch import TorchDispatchMode

import plumbing
import topd
from evaluate import eos_ids, prompt_ids, uniforms
from toy import world

ARGS = SimpleNamespace(guidance="on", lam=0.1, window_size=4, candidate_share=0.1, drop_share=0.3, plan="sinkhorn", epsilon=0.05, window="rollout",
                       embedding="static", teacher_decoding="greedy", suppress="none", probe_every=0, seed=3, micro_tokens=10**6, chunk_logits=2**26)
LONG = [[3, 4, 20, 21, 22, 7, 9, 33, 12, 41, 5, 6, 1], [20, 21, 22, 23, 24, 25, 26, 27, 28, 40, 41, 42, 43, 44, 30, 31, 32, 33, 34, 1], [9, 1],
        [30, 31, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17]]          # of different lengths; the last one truncated


def settings(**changed):
    return SimpleNamespace(**{**vars(ARGS), **changed})


def update(student, teacher, responses=LONG, step=1, **changed):
    """One update; returns the unclipped gradient, metrics, points."""
    student, caught = copy.deepcopy(student), {}

    class Catch(torch.optim.SGD):
        def step(self):
            caught.update({n: p.grad.clone() for n, p in student.named_parameters()})
    old, clock = plumbing.torch.nn.utils.clip_grad_norm_, plumbing.Clock(CPU)
    clock.start()
    plumbing.torch.nn.utils.clip_grad_norm_ = lambda parameters, clip: old(parameters, 1e9)
    try:
        metrics, losses, points = topd.update(student, teacher, Catch(student.parameters(), lr=1.0), (PROMPTS, responses, [False] * 4), settings(**changed),
                                              step, clock, plumbing.autocaster(CPU, torch.float32), 50, {1})
    finally:
        plumbing.torch.nn.utils.clip_grad_norm_ = old
    return caught, metrics, points


# ------------------------------------------------------------------------------------------------ transport


def problems(seed, shapes):
    generator = torch.Generator().manual_seed(seed)
    return [torch.rand(n, m, generator=generator) for n, m in shapes]


SHAPES = [(8, 8), (12, 12), (12, 11), (7, 12), (3, 8), (1, 5), (17, 16), (50, 49), (50, 50)]


def test_the_exact_plan_is_pots():
    import ot
    for cost in problems(0, SHAPES):
        n, m = cost.shape
        plan = topd.exact_plan(cost)
        theirs = ot.emd2(np.full(n, 1 / n), np.full(m, 1 / m), cost.double().numpy())
        assert abs((plan * cost).sum().item() - theirs) < 1e-5, (n, m)
        assert (plan.sum(1) - 1 / n).abs().max() < 1e-5 and (plan.sum(0) - 1 / m).abs().max() < 1e-5 and plan.min() > -1e-9
    square = topd.exact_plan(problems(1, [(9, 9)])[0])
    assert ((square * 9).round() - square * 9).abs().max() < 1e-5       # equal lengths: a permutation


def test_sinkhorn_becomes_pots_exact_distance_as_epsilon_goes_to_zero():
    import ot
    costs = problems(2, SHAPES[:7])
    N, M = 17, 16
    cost, a, b = torch.zeros(len(costs), N, M).double(), torch.zeros(len(costs), N).double(), torch.zeros(len(costs), M).double()
    for p, c in enumerate(costs):                                       # padded together, as in training
        cost[p, :c.shape[0], :c.shape[1]], a[p, :c.shape[0]], b[p, :c.shape[1]] = c.double(), 1 / c.shape[0], 1 / c.shape[1]
    exact = [ot.emd2(np.full(len(c), 1 / len(c)), np.full(c.shape[1], 1 / c.shape[1]), c.double().numpy()) for c in costs]
    errors = []
    for epsilon in (0.1, 0.02, 0.0004):
        plan = topd.sinkhorn(cost, a, b, epsilon, iterations=50000, tolerance=1e-8)
        assert (plan.sum(2) - a).abs().max() < 1e-5 and (plan.sum(1) - b).abs().max() < 1e-5
        assert all(plan[p, c.shape[0]:].abs().max() == 0 for p, c in enumerate(costs) if c.shape[0] < N)     # padding carries no mass
        errors.append(max(abs((plan[p] * cost[p]).sum().item() - e) for p, e in enumerate(exact)))
    assert errors[0] > errors[1] > errors[2] and errors[2] < 1e-4, errors


def test_sinkhorn_is_pots_sinkhorn():
    import ot
    cost = problems(3, [(9, 9)])[0]
    theirs = ot.sinkhorn(np.full(9, 1 / 9), np.full(9, 1 / 9), cost.double().numpy(), 0.05, numItermax=20000, stopThr=1e-12)
    ours = topd.plans([cost], settings())[0]
    assert np.abs(ours.numpy() - theirs).max() < 1e-5
    assert (ours.sum(1) - 1 / 9).abs().max() < 1e-5 and (ours.sum(0) - 1 / 9).abs().max() < 1e-5      # at the default number of iterations


def test_plans_of_different_lengths_do_not_disturb_each_other():
    costs = problems(4, [(12, 12), (5, 12), (12, 3)])
    for kind in ("sinkhorn", "exact"):
        together, alone = topd.plans(costs, settings(plan=kind)), [topd.plans([c], settings(plan=kind))[0] for c in costs]
        assert all(torch.allclose(x, y, atol=1e-5) for x, y in zip(together, alone))
    assert topd.plans([], settings()) == []


def points_of(pairs):
    return [topd.Point(i, 0, 1.0, teacher=list(w), student=list(s)) for i, (w, s) in enumerate(pairs)]


class Orthogonal(torch.nn.Module):      # a teacher of which only the embeddings are asked
    device = CPU

    def get_input_embeddings(self):
        return torch.nn.Embedding.from_pretrained(torch.eye(50))


def test_distance_of_identical_disjoint_and_half_shared_windows():
    points = points_of([((5, 6, 7, 8), (5, 6, 7, 8)), ((5, 6, 7, 8), (8, 5, 7, 6)), ((5, 6, 7, 8), (15, 16, 17, 18)), ((5, 6, 7, 8), (5, 16, 7, 18)),
                        ((5, 6, 1), (5, 6, 7, 8, 9, 10)), ((1,), (1, 5, 6))])
    topd.measure(points, Orthogonal())
    distances = [round(p.distance, 5) for p in points]
    assert distances[:4] == [0, 0, 1, .5]                               # the order inside a window does not matter to transport
    assert distances[4] == pytest.approx(2 / 3, abs=1e-4)               # 5 and 6 of the student's six take 1/6 each, from 1/3 each
    assert distances[5] == pytest.approx(2 / 3, abs=1e-4)               # an end of text inside a window


def test_the_plan_is_transposed():
    # teacher's window a cyclic shift of the student's: the plan is not symmetric, so a forgotten transpose gives other targets
    student, shifted = [5, 6, 7, 8, 9], [7, 8, 9, 5, 6]
    for kind in ("exact", "sinkhorn"):
        point = points_of([(shifted, student)])[0]
        topd.measure([point], Orthogonal())
        topd.soft_targets([point], settings(plan=kind))
        assert [shifted[j] for j in point.weights.argmax(1).tolist()] == student      # position i is drawn to ITS token
        assert torch.allclose(point.weights.sum(1), torch.ones(5), atol=1e-5)
        wrong = topd.plans([point.cost], settings(plan=kind))[0].argmax(1).tolist()
        assert [shifted[j] for j in wrong] != student


def test_shapes_of_targets_with_unequal_windows():
    points = points_of([((5, 6, 1), (5, 6, 7, 8, 9, 10))])
    topd.measure(points, Orthogonal())
    topd.soft_targets(points, settings())
    assert points[0].cost.shape == (3, 6) and points[0].weights.shape == (6, 3)
    assert torch.allclose(points[0].weights.sum(1), torch.ones(6), atol=1e-5)


# ------------------------------------------------------------------------------------------------ windows


def slowly(model, prefix, K, ends, draw=None):
    """K tokens after a prefix, one full forward a token."""
    ids, found, hidden = list(prefix), [], []
    for k in range(K):
        logits = model(torch.tensor([ids])).logits[0, -1, :50]
        if draw is None:
            token = logits.argmax().item()
        else:
            cumulative = logits.double().softmax(-1).cumsum(-1)
            token = min(int(torch.searchsorted(cumulative, draw[k] * cumulative[-1], right=True)), 49)
        ids.append(token)
        found.append(token)
        hidden.append(model.base_model(torch.tensor([ids])).last_hidden_state[0, -1])
        if token in ends:
            break
    return found, torch.stack(hidden)


@pytest.mark.parametrize("sampled", [False, True])
@torch.no_grad()
def test_windows_of_all_prefixes_at_once_equal_decoding_one_by_one(sampled):
    model, K = tiny_qwen3(seed=2, width=48, layers=3), 6
    ids, _, _ = plumbing.pack(PROMPTS, LONG, CPU)
    places = [(0, 3), (0, 9), (1, 2), (1, 20), (1, 11), (3, 5), (3, 17), (2, 5), (1, 21)]       # different rows, several a row, unordered
    draws = torch.stack([uniforms(("w", i), K) for i in range(len(places))]) if sampled else None
    ends = {1, 30}
    slow = [slowly(model, (PROMPTS[r] + LONG[r])[:n], K, ends, draws[i] if sampled else None) for i, (r, n) in enumerate(places)]
    hidden, cache = topd.read(model, ids, 3 * K)
    for size in (100, 2):
        hidden, cache = topd.read(model, ids, 3 * K)
        windows, states = topd.continuations(model, hidden, cache, places, K, ends, 50, size, draws, deep=True)
        assert windows == [w for w, _ in slow]
        assert all(torch.allclose(a, b, atol=1e-4) for a, (_, b) in zip(states, slow))
    assert len({tuple(w) for w in windows}) > 4 and any(len(w) < K for w in windows) == any(w[-1] in ends and len(w) < K for w in windows)


@torch.no_grad()
def test_an_end_of_text_ends_a_window():
    model = tiny_qwen3(seed=2, width=48)
    ids, _, _ = plumbing.pack(PROMPTS, LONG, CPU)
    hidden, cache = topd.read(model, ids, 40)
    long, _ = topd.continuations(model, hidden, cache, [(0, 6), (1, 9)], 8, set(), 50, 10)
    end = long[0][3]
    hidden, cache = topd.read(model, ids, 40)
    cut, _ = topd.continuations(model, hidden, cache, [(0, 6), (1, 9)], 8, {end}, 50, 10)
    assert cut[0] == long[0][:long[0].index(end) + 1]                   # the end itself belongs to the window
    assert topd.continuations(model, hidden, cache, [], 8, {end}, 50, 10) == ([], [])


def test_a_prefix_is_never_read_twice():
    # the work of the windows does not grow with the length of the prefixes: every pass after reading has one token a branch
    model, seen = tiny_qwen3(seed=2), []
    ids, _, _ = plumbing.pack(PROMPTS, LONG, CPU)
    with torch.no_grad():
        hidden, cache = topd.read(model, ids, 40)
        handle = model.base_model.register_forward_pre_hook(lambda module, args, kwargs: seen.append(tuple(kwargs["input_ids"].shape)), with_kwargs=True)
        topd.continuations(model, hidden, cache, [(0, 6), (1, 9), (1, 12)], 5, set(), 50, 10)
        handle.remove()
    assert seen == [(4, 2)] * 4                                         # 4 rows, at most 2 branches, K - 1 steps: the first token was known


# ------------------------------------------------------------------------------------------------ candidates, selection, scales


def test_candidates_are_the_highest_losses_that_have_half_a_window_left():
    generator = torch.Generator().manual_seed(0)
    losses = torch.rand(400, generator=generator)
    args = settings(candidate_share=0.0225, window_size=12)
    assert topd.candidates(losses, args) == sorted(t for t in losses.argsort(descending=True)[:9].tolist() if 400 - t >= 6)
    late = torch.zeros(400)
    late[[100, 394, 395]] = torch.tensor([1., 2., 3.])
    found = topd.candidates(late, args)
    assert 100 in found and 394 in found and 395 not in found           # 6 tokens left are half of 12, 5 are not
    for n, most in ((68, 2), (19, 1), (30, 2), (5, 1), (1, 1), (1000, 22)):
        assert len(topd.candidates(torch.arange(n, 0, -1).float(), settings(candidate_share=0.0225, window_size=2))) <= most
    assert len(topd.candidates(torch.arange(68, 0, -1).float(), args)) == 2
    assert topd.candidates(torch.ones(3), args) == []                   # a rollout shorter than half a window has none


def test_a_planted_high_loss_is_always_a_candidate():
    # whatever the other losses are: a threshold of mean + 2 standard deviations would miss it on short rollouts
    for seed in range(50):
        losses = torch.rand(20 + seed, generator=torch.Generator().manual_seed(seed))
        losses[7] = 1.01
        assert 7 in topd.candidates(losses, settings(window_size=4, candidate_share=0.0225))


def test_divergent_points_keep_the_highest_distances():
    points = points_of([((5,), (6,))] * 10)
    for i, p in enumerate(points):
        p.distance = (7 * i % 10) / 10
    kept, dropped = topd.divergent(points, settings(drop_share=0.3))
    assert sorted(p.distance for p in dropped) == [0, .1, .2] and len(kept) == 7
    assert topd.divergent(points, settings(drop_share=0))[1] == [] and topd.divergent([], settings()) == ([], [])


def test_suppression_scales_to_the_median_and_matches_in_number():
    losses = [torch.tensor([.1, .2, .3, 4., 5.]), torch.tensor([1., 1., 8., 1., .5])]
    points = [topd.Point(0, 3, 4., distance=.1), topd.Point(0, 4, 5., distance=.9), topd.Point(1, 2, 8., distance=.8), topd.Point(1, 4, .5, distance=.05)]
    kept, dropped = topd.divergent(points, settings(drop_share=.5))
    low = topd.scales(losses, kept, dropped, settings(suppress="low"), "key")
    assert low[0][3] == pytest.approx(.3 / 4) and low[0].sum() == pytest.approx(4 + .3 / 4)
    assert low[1][4] == 1                                               # below the median: never scaled UP
    high = topd.scales(losses, kept, dropped, settings(suppress="high"), "key")
    assert high[0][4] == pytest.approx(.3 / 5) and high[1][2] == pytest.approx(1 / 8) and high[0][3] == 1
    one = topd.scales(losses, kept, dropped[:1], settings(suppress="high"), "key")
    assert sum((x < 1).sum().item() for x in one) == 1
    assert not any(x.requires_grad for x in low + high)


# ------------------------------------------------------------------------------------------------ the update


def test_without_guidance_and_suppression_it_is_opd():
    for responses in (RESPONSES, LONG):
        ours, metrics, _ = update(STUDENT, TEACHER, responses, guidance="off", window_size=4)
        theirs, expected, _ = opd_gradient(STUDENT, TEACHER, responses=responses)
        assert all((ours[n] - theirs[n]).abs().max() <= 1e-6 for n in theirs)
        assert metrics["loss"] == metrics["opd"] == pytest.approx(expected["loss"], abs=1e-6)
    guided, _, _ = update(STUDENT, TEACHER)
    assert max((guided[n] - ours[n]).abs().max() for n in ours) > 1e-3


def dense(student, points, prompts=PROMPTS, responses=LONG):
    """Mean over the points of (8), with dense soft targets [m, V] and one full forward a point."""
    total = 0.0
    for p in points:
        m = len(p.student)
        target = torch.zeros(m, 50)
        for i in range(m):
            for j, token in enumerate(p.teacher):
                target[i, token] += p.weights[i, j]
        before = prompts[p.row] + responses[p.row][:p.t]
        after = responses[p.row][p.t:p.t + m] if p.context is None else p.context
        ours = student(torch.tensor([before + after])).logits[0, len(before) - 1:-1].log_softmax(-1)
        assert len(ours) == m
        total = total + (torch.xlogy(target, target) - target * ours).sum() / m
    return total / len(points)


@pytest.mark.parametrize("changed", [{}, dict(plan="exact"), dict(window="regenerate"), dict(embedding="contextual"), dict(teacher_decoding="sample"),
                                     dict(window="regenerate", embedding="contextual"), dict(window_size=9, candidate_share=.1, drop_share=0.)])
def test_loss_and_gradient_against_dense_soft_targets(changed):
    caught, metrics, points = update(STUDENT, TEACHER, lam=.7, **changed)
    plain, opd, _ = update(STUDENT, TEACHER, guidance="off")
    guiding = [p for p in points if p.weights is not None]
    assert len(guiding) >= 2 and metrics["divergent"] * 4 == len(guiding)
    student = copy.deepcopy(STUDENT)
    expected = dense(student, guiding)
    expected.backward()
    assert metrics["traj"] == pytest.approx(expected.item(), abs=1e-4) and metrics["traj"] > 0
    assert metrics["loss"] == pytest.approx(opd["loss"] + .7 * expected.item(), abs=1e-4)
    assert close(caught, {n: plain[n] + .7 * p.grad for n, p in student.named_parameters()}, 2e-5)
    if changed.get("window_size") == 9:                                 # this case has windows that overlap: they add up
        covered = [(p.row, p.t + i) for p in guiding for i in range(len(p.student))]
        assert len(covered) > len(set(covered))


def test_the_papers_unnormalised_sum_has_the_same_gradient():
    # sum_i of cross-entropies with rows of gamma as they are (mass 1/m each) = mean over i with rows normalised
    point = points_of([((5, 6, 1), (5, 7, 8, 9))])[0]
    topd.measure([point], Orthogonal())
    gamma = topd.plans([point.cost], settings())[0].T
    topd.soft_targets([point], settings())
    logits = torch.randn(4, 50, generator=torch.Generator().manual_seed(0), requires_grad=True)
    ours = logits.log_softmax(-1)[:, point.teacher]
    paper, = torch.autograd.grad(-(gamma * ours).sum(), logits, retain_graph=True)
    here, = torch.autograd.grad(-(point.weights * ours).sum(1).mean(), logits)
    assert torch.allclose(paper, here, atol=1e-6) and here.abs().max() > .01


def test_negative_entropy_merges_equal_tokens():
    point = topd.Point(0, 0, 1., teacher=[5, 6, 5], weights=torch.tensor([[.2, .5, .3], [0., 1., 0.]]))
    assert topd.negative_entropy(point) == pytest.approx(2 * .5 * np.log(.5), abs=1e-6)     # {5: .5, 6: .5} and {6: 1}


@pytest.mark.parametrize("changed", [{}, dict(suppress="low"), dict(suppress="high", guidance="off"), dict(window="regenerate"), dict(embedding="contextual")])
def test_micro_batches_chunks_and_checkpointing_change_nothing(changed, monkeypatch):
    whole, metrics, points = update(STUDENT, TEACHER, **changed)
    for cut in (dict(micro_tokens=30), dict(micro_tokens=8, chunk_logits=150), dict(chunk_logits=50)):
        again, other, others = update(STUDENT, TEACHER, **changed, **cut)
        assert close(whole, again, 2e-6), cut
        assert [(p.row, p.t, p.teacher, p.student) for p in points] == [(p.row, p.t, p.teacher, p.student) for p in others]
        assert all(other[k] == pytest.approx(metrics[k], abs=1e-5) for k in ("loss", "opd", "traj", "kl", "divergent"))
    monkeypatch.setattr(plumbing, "FULL", 8)                           # several micro-batches whose graphs are all kept
    again, other, _ = update(STUDENT, TEACHER, **changed)
    assert close(whole, again, 2e-6) and other["loss"] == pytest.approx(metrics["loss"], abs=1e-5)
    if "suppress" in changed:
        plain, _, _ = update(STUDENT, TEACHER, **{**changed, "suppress": "none"})
        assert not close(whole, plain)


def test_no_gradient_through_targets_plans_or_selection():
    teacher = copy.deepcopy(TEACHER).requires_grad_(True)               # even a teacher that could learn gets nothing
    _, _, points = update(STUDENT, teacher, probe_every=1)
    assert all(p.grad is None for p in teacher.parameters())
    guiding = [p for p in points if p.weights is not None]
    assert guiding and not any(p.weights.requires_grad or p.cost.requires_grad for p in guiding)


def test_both_gradient_norms():
    # they are those of the two losses apart, and together they make the whole
    caught, metrics, points = update(STUDENT, TEACHER, probe_every=1)
    plain, _, _ = update(STUDENT, TEACHER, guidance="off")
    assert metrics["grad_norm_opd"] == pytest.approx(topd.norm(plain.values()), rel=1e-4)
    assert metrics["grad_norm_traj"] == pytest.approx(topd.norm([caught[n] - plain[n] for n in plain]), rel=1e-3)
    unprobed, _, _ = update(STUDENT, TEACHER)
    assert close(caught, unprobed)                                      # looking changes nothing
    assert {p.kind for p in points} == {"high", "random", "low"} and all(p.weights is None for p in points if p.kind != "high")
    assert {"distance_high", "distance_random", "distance_low", "pearson_high", "spearman_pooled", "high_below_low"} <= metrics.keys()


def test_no_tensor_of_positions_times_vocabulary_longer_than_a_chunk():
    # a head of 4,000 columns, chunks of 5 positions: neither the losses nor the soft targets may ever be larger
    student, teacher, V, size = tiny_qwen3(seed=1, vocabulary=4000), tiny_qwen3(seed=2, vocabulary=4000), 4000, 5

    class Largest(TorchDispatchMode):
        rows = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            for x in out if isinstance(out, (tuple, list)) else [out]:
                if torch.is_tensor(x) and x.ndim and x.shape[-1] == V and not (x.ndim == 2 and x.shape[0] == 32):
                    self.rows = max(self.rows, x.numel() // V)
            return out
    optimiser, clock = torch.optim.SGD(student.parameters(), lr=.1), plumbing.Clock(CPU)
    clock.start()
    for window in ("rollout", "regenerate"):
        with Largest() as largest:
            topd.update(student, teacher, optimiser, (PROMPTS, LONG, [False] * 4), settings(chunk_logits=size * V, probe_every=1, window=window), 1, clock,
                        plumbing.autocaster(CPU, torch.float32), V, {1})
        assert 1 <= largest.rows <= size


def test_rollouts_without_candidates_are_an_opd_update():
    short = [[3, 1], [1], [9, 1], [30]]
    ours, metrics, points = update(STUDENT, TEACHER, short, window_size=8, suppress="low", probe_every=1)
    theirs, _, _ = opd_gradient(STUDENT, TEACHER, responses=short)
    assert points == [] and metrics["traj"] == 0 and metrics["distance"] is None and metrics["grad_norm_traj"] == 0
    assert all((ours[n] - theirs[n]).abs().max() <= 1e-6 for n in theirs)


def test_statistics():
    points = [topd.Point(0, i, float(i), distance=d) for i, d in enumerate([.1, .2, .4, .8])]
    points += [topd.Point(0, i, 0., "random", distance=.3) for i in range(4)] + [topd.Point(0, i, -1., "low", distance=d) for i, d in enumerate([0, .1, .2, .3])]
    found = topd.statistics(points)
    assert found["distance_high"] == pytest.approx([.175, .3, .5], abs=1e-6) and found["spearman_high"] == pytest.approx(1)
    assert found["pearson_high"] == pytest.approx(np.corrcoef([0, 1, 2, 3], [.1, .2, .4, .8])[0, 1])
    assert found["high_below_low"] == .5                                # upper quartile of the low class: .225
    assert topd.statistics([]) ["pearson_high"] is None and topd.statistics(points[4:8])["distance_high"] is None


# ------------------------------------------------------------------------------------------------ does it fire where it should?


def planted(toy, kind, count):
    """Right solutions in the teacher's own words with one planted change, written on by the teacher itself, so that nothing else differs.

    fork: a wrong value is planted, and everything after it follows from it. paraphrase: another way to say the same.
    Returns (prompt, response, position of the planted token).
    """
    _, teacher, tokenizer = toy
    rng, found = __import__("random").Random(5), []
    ends = eos_ids(teacher, tokenizer)
    with torch.no_grad():
        while len(found) < count:
            problem = world.make_problem(rng, 4, "terse")
            prompt = prompt_ids(tokenizer, problem.text)
            own, _ = write(teacher, prompt, ends)
            text = tokenizer.decode(own[:-1])
            if not world.check(problem.text, text).correct:
                continue
            words = [tokenizer.decode([i]).strip() for i in own]
            equal = [i for i, w in enumerate(words) if w in ("=", "makes", "gives", "equals") and i + 1 < len(words)]
            at = equal[len(equal) // 2]
            if kind == "fork":
                at += 1
                new = tokenizer.encode(f" {(int(words[at]) + 4) % 10}", add_special_tokens=False)[-1]
            else:
                new = tokenizer.encode(" equals" if words[at] == "=" else " =", add_special_tokens=False)[-1]
            if new == own[at]:
                continue
            rest, _ = write(teacher, prompt + own[:at] + [new], ends)
            found.append((prompt, own[:at] + [new] + rest, at))
    return found


def write(model, prompt, ends):
    from evaluate import sample
    c = sample(model, [prompt], max_new_tokens=120, eos=ends, vocabulary=model.config.vocab_size, temperature=0)[0]
    return c.ids, c.truncated


@torch.no_grad()
def test_it_finds_planted_forks_and_not_planted_paraphrases(toy):
    # both kinds have the same high loss in the same kind of text: only the distance can tell them apart
    _, teacher, tokenizer = toy
    forks, paraphrases = planted(toy, "fork", 20), planted(toy, "paraphrase", 20)
    texts = forks + paraphrases
    ids, _, _ = plumbing.pack([p for p, _, _ in texts], [r for _, r, _ in texts], CPU)
    args = settings(window_size=12, candidate_share=.0225, drop_share=.5)
    points = []
    for row, (_, r, at) in enumerate(texts):
        losses = torch.full((len(r),), .01)
        losses[at] = 3.0
        assert at in topd.candidates(losses, args)
        points.append(topd.Point(row, at, 3.0, student=r[at:at + 12]))
    hidden, cache = topd.read(teacher, ids, 12)
    windows, _ = topd.continuations(teacher, hidden, cache, [(p.row, len(texts[p.row][0]) + p.t) for p in points], 12, {tokenizer.eos_token_id},
                                    len(tokenizer), 1000)
    for p, w in zip(points, windows):
        p.teacher = w
    topd.measure(points, teacher)
    kept, dropped = topd.divergent(points, args)
    right = sum(p.row < 20 for p in kept)
    auc = np.mean([(a.distance > b.distance) + .5 * (a.distance == b.distance) for a in points[:20] for b in points[20:]])
    assert right >= 18 and auc > .95, (right, auc)
