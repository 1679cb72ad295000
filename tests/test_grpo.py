"""grpo.py: advantages, clipping and normalisation in closed form, the update against a direct computation, resampling, overlong rollouts."""
import copy
import math
from types import SimpleNamespace

import pytest
import torch
from conftest import tiny_qwen3
from test_opd import CPU, PROMPTS, STUDENT, close

import grpo
import plumbing
from evaluate import Completion, prompt_ids
from toy import world

ARGS = SimpleNamespace(advantage="std", norm="sequence", clip_low=.2, clip_high=.2, no_signal="keep", max_rounds=4, overlong="none", overlong_share=.25, beta=0.0,
                       reuse=1, prompts=2, samples=2, max_new_tokens=8, seed=3, micro_tokens=10**6, chunk_logits=2**26)
RESPONSES = [[3, 4, 1], [20, 21, 22, 23, 24, 25, 26, 27], [30, 1], [31, 32, 33, 1]]
DRAWN = [Completion(r, len(r) == 8, [-1.0] * len(r)) for r in RESPONSES]
ROWS, RIGHT, FIRST = [{"ids": PROMPTS[0]}, {"ids": PROMPTS[1]}], [True, False, False, True], tiny_qwen3(seed=9)


def settings(**changed):
    return SimpleNamespace(**{**vars(ARGS), **changed})


# ------------------------------------------------------------------------------------------------ advantages


def test_advantages_of_binary_rewards_in_closed_form():
    for k in range(1, 8):
        p, rewards = k / 8, [1.0] * k + [0.0] * (8 - k)
        std = math.sqrt(p * (1 - p))
        assert grpo.advantages(rewards, 8, "std").tolist() == pytest.approx([(1 - p) / std] * k + [-p / std] * (8 - k), abs=1e-5)
        assert grpo.advantages(rewards, 8, "mean").tolist() == pytest.approx([1 - p] * k + [-p] * (8 - k), abs=1e-6)
        assert abs(grpo.advantages(rewards, 8, "std").sum()) < 1e-5


def test_groups_without_differences_give_exactly_nothing():
    for value in (0.0, 1.0, 1 / 3):
        for kind in ("std", "mean"):
            assert grpo.advantages([value] * 4 + [1.0, 0.0, 0.0, 0.0], 4, kind)[:4].abs().max() < 1e-6
    assert grpo.advantages([1 / 3] * 3, 3, "std").tolist() == [0.0] * 3                       # rounding of the mean is not a signal


def test_groups_do_not_see_each_other():
    one, two = [1.0, 0.0, 0.0], [0.0, 1.0, 1.0]
    both = grpo.advantages(one + two, 3, "std")
    assert torch.equal(both, torch.cat([grpo.advantages(one, 3, "std"), grpo.advantages(two, 3, "std")]))


# ------------------------------------------------------------------------------------------------ the clip


@pytest.mark.parametrize("ratio, advantage, loss, held", [
    (1.0, 2.0, -2.0, False), (1.0, -2.0, 2.0, False),
    (1.5, 1.0, -1.28, True),            # already moved far enough up: held at 1 + high
    (1.25, 1.0, -1.25, False),          # between 1 + low and 1 + high: the higher clip leaves it room
    (0.5, 1.0, -0.5, False),            # moved the wrong way: always gets its gradient
    (0.5, -1.0, 0.8, True),             # already moved far enough down: held at 1 - low
    (1.5, -1.0, 1.5, False)])           # moved the wrong way
def test_clip_in_closed_form(ratio, advantage, loss, held):
    logp = torch.tensor([math.log(ratio) - 2.0], requires_grad=True)
    value, at = grpo.clipped(logp, torch.tensor([-2.0]), torch.tensor([advantage]), .2, .28)
    value.sum().backward()
    assert value.item() == pytest.approx(loss, abs=1e-5) and at.item() is held
    assert logp.grad.item() == pytest.approx(0.0 if held else -ratio * advantage, abs=1e-5)


# ------------------------------------------------------------------------------------------------ the weights


def test_normalisations_in_closed_form():
    lengths = [len(r) for r in RESPONSES]                           # 3, 8, 2, 4
    every = [True] * 4
    assert grpo.token_weights(DRAWN, every, settings()) == pytest.approx([1 / (4 * n) for n in lengths])
    assert grpo.token_weights(DRAWN, every, settings(norm="token")) == pytest.approx([1 / 17] * 4)
    assert grpo.token_weights(DRAWN, every, settings(norm="constant")) == pytest.approx([1 / (4 * 8)] * 4)
    without = [True, False, True, True]
    assert grpo.token_weights(DRAWN, without, settings(norm="token")) == pytest.approx([1 / 9, 0, 1 / 9, 1 / 9])
    assert grpo.token_weights(DRAWN, without, settings()) == pytest.approx([1 / 12, 0, 1 / 8, 1 / 16])
    assert grpo.token_weights(DRAWN, [False] * 4, settings(norm="token")) == [0.0] * 4         # only cut rollouts: nothing, not 0/0


def test_overlong_penalty():
    args = settings(max_new_tokens=100, overlong_share=.2)
    assert [grpo.penalty(n, args) for n in (1, 80, 90, 100, 130)] == pytest.approx([0, 0, -.25, -.5, -.5])


def test_variants_set_what_their_papers_say_and_a_given_switch_wins():
    def parsed(*flags):
        return grpo.settle(plumbing.parse_arguments(grpo.Args, "", ["--data", "toy", *flags]))
    a, d, p = parsed(), parsed("--variant", "dr_grpo"), parsed("--variant", "dapo")
    assert (a.advantage, a.norm, a.clip_high, a.no_signal, a.overlong, a.beta) == ("std", "sequence", .2, "keep", "none", 1e-3)
    assert (d.advantage, d.norm, d.beta) == ("mean", "constant", 0) and (p.norm, p.clip_high, p.no_signal, p.overlong, p.beta) == ("token", .28, "resample", "soft", 0)
    mixed = parsed("--variant", "dapo", "--norm", "sequence", "--beta", "0.5")
    assert (mixed.norm, mixed.beta, mixed.clip_high) == ("sequence", .5, .28)


# ------------------------------------------------------------------------------------------------ the update


class Recorder(torch.optim.SGD):
    def __init__(self, model, lr):
        super().__init__(model.parameters(), lr=lr)
        self.model, self.caught = model, []

    def step(self):
        self.caught.append({n: p.grad.clone() for n, p in self.model.named_parameters()})
        super().step()


def run(lr=1e-12, right=RIGHT, **changed):
    """(gradients of every optimiser step, metrics, the trained model)"""
    student, clock = copy.deepcopy(STUDENT), plumbing.Clock(CPU)
    optimiser, old = Recorder(student, lr), plumbing.torch.nn.utils.clip_grad_norm_
    clock.start()
    plumbing.torch.nn.utils.clip_grad_norm_ = lambda parameters, clip: old(parameters, 1e9)
    try:
        metrics, _ = grpo.update(student, FIRST, optimiser, ROWS, DRAWN, right, settings(**changed), clock, plumbing.autocaster(CPU, torch.float32), 50)
    finally:
        plumbing.torch.nn.utils.clip_grad_norm_ = old
    return optimiser.caught, metrics, student


def predicted(model, prompt, response):
    return model(torch.tensor([prompt + response])).logits[0, len(prompt) - 1:-1, :50].log_softmax(-1)


def direct(student, old, changed):
    """The loss as (2)-(4) say it, with plain Python loops; old: log-probabilities by rollout."""
    args, lengths, parts, drifts = settings(**changed), [len(r) for r in RESPONSES], [], []
    for i, response in enumerate(RESPONSES):
        group = [float(RIGHT[j]) + (grpo.penalty(lengths[j], args) if args.overlong == "soft" else 0) for j in (i // 2 * 2, i // 2 * 2 + 1)]
        mean = sum(group) / 2
        a = group[i % 2] - mean
        if args.advantage == "std":
            a /= math.sqrt(sum((x - mean) ** 2 for x in group) / 2)
        ours = predicted(student, ROWS[i // 2]["ids"], response)
        ratio = (ours[range(len(response)), response] - old[i]).exp()
        parts.append(-torch.minimum(ratio * a, ratio.clamp(1 - args.clip_low, 1 + args.clip_high) * a) * (not (args.overlong == "mask" and DRAWN[i].truncated)))
        with torch.no_grad():
            start = predicted(FIRST, ROWS[i // 2]["ids"], response)
        drifts.append((ours.exp() * (ours - start)).sum(-1).mean())
    if args.norm == "sequence":
        loss = sum(x.mean() for x in parts) / 4
    elif args.norm == "token":
        loss = torch.cat(parts).sum() / sum(n for n, c in zip(lengths, DRAWN) if not (args.overlong == "mask" and c.truncated))
    else:
        loss = torch.cat(parts).sum() / (4 * args.max_new_tokens)
    return loss + args.beta * sum(drifts) / 4


@pytest.mark.parametrize("changed", [{}, dict(advantage="mean", norm="constant"), dict(norm="token", clip_high=.28, overlong="soft"), dict(norm="token", overlong="mask"),
                                     dict(beta=.3), dict(overlong="mask")])
def test_loss_and_gradient_against_a_direct_computation(changed):
    student = copy.deepcopy(STUDENT)
    with torch.no_grad():
        old = [predicted(student, ROWS[i // 2]["ids"], r)[range(len(r)), r] for i, r in enumerate(RESPONSES)]
    loss = direct(student, old, changed)
    loss.backward()
    [caught], metrics, _ = run(**changed)
    assert metrics["loss"] == pytest.approx(loss.item(), abs=1e-5) and metrics["clipped"] == 0
    assert close(caught, {n: p.grad for n, p in student.named_parameters()}, 2e-6)
    assert max(g.abs().max() for g in caught.values()) > 1e-3


def test_one_step_is_exactly_on_policy():
    # with one step a batch the clip cannot matter, however narrow it is, and the gradient is that of - sum A log pi
    narrow, _, _ = run(clip_low=1e-6, clip_high=1e-6)
    wide, _, _ = run()
    assert close(narrow[0], wide[0])
    student = copy.deepcopy(STUDENT)
    gain = grpo.advantages([float(r) for r in RIGHT], 2, "std")
    loss = sum(-gain[i] * predicted(student, ROWS[i // 2]["ids"], r)[range(len(r)), r].mean() for i, r in enumerate(RESPONSES)) / 4
    loss.backward()
    assert close(wide[0], {n: p.grad for n, p in student.named_parameters()}, 2e-6)


def test_several_steps_use_the_ratio_to_the_first():
    lr, changed = .05, dict(clip_low=.01, clip_high=.01)
    caught, metrics, _ = run(lr=lr, reuse=3, **changed)
    student = copy.deepcopy(STUDENT)
    with torch.no_grad():
        old = [predicted(student, ROWS[i // 2]["ids"], r)[range(len(r)), r] for i, r in enumerate(RESPONSES)]
    for k in range(3):                      # the same three steps by hand
        student.zero_grad()
        direct(student, old, changed).backward()
        grads = {n: p.grad.clone() for n, p in student.named_parameters()}
        assert close(caught[k], grads, 5e-5), k
        with torch.no_grad():
            for n, p in student.named_parameters():
                p -= lr * grads[n]
    assert metrics["clipped"] > 0           # the test says something about the clip


def test_micro_batches_and_chunks_change_nothing():
    [whole], metrics, _ = run(beta=.2, norm="token")
    for cut in (dict(micro_tokens=14), dict(chunk_logits=50), dict(micro_tokens=25, chunk_logits=150)):
        [again], other, _ = run(beta=.2, norm="token", **cut)
        assert close(whole, again) and abs(metrics["loss"] - other["loss"]) < 1e-5 and abs(metrics["kl_start"] - other["kl_start"]) < 1e-5


def test_without_any_signal_nothing_moves():
    [caught], metrics, _ = run(right=[True, True, False, False])
    assert metrics["signal"] == 0 and metrics["groups"] == [1, 0, 1] and max(g.abs().max() for g in caught.values()) == 0


def test_a_right_answer_becomes_likelier_and_a_wrong_one_less_likely():
    _, _, after = run(lr=.05)
    for i, r in enumerate(RESPONSES):
        with torch.no_grad():
            change = sum((predicted(m, ROWS[i // 2]["ids"], r)[range(len(r)), r].mean() * s).item() for m, s in ((after, 1), (STUDENT, -1)))
        assert (change > 0) == RIGHT[i]


# ------------------------------------------------------------------------------------------------ resampling


def test_resampling_keeps_groups_with_a_signal_and_counts_the_rest(toy):
    student, _, tokenizer = toy
    import random
    rows = [world.make_row(random.Random(i), 3) for i in range(40)]
    for r in rows:
        r["ids"] = prompt_ids(tokenizer, r["problem"])
    args = settings(samples=4, prompts=3, max_new_tokens=120, no_signal="resample")
    kept, drawn, right, total = grpo.gather(student, tokenizer, rows, args, 1)
    counts = [sum(right[4 * q:4 * q + 4]) for q in range(len(kept))]
    assert len(drawn) == len(right) == 4 * len(kept) and all(0 < c < 4 for c in counts) and 0 < len(kept) <= 3 and total % 12 == 0 and total > len(drawn)
    plain, few, verdicts, one = grpo.gather(student, tokenizer, rows, settings(samples=4, prompts=3, max_new_tokens=120), 1)
    assert len(plain) == 3 and one == 12 == len(few)
    first = [r["ids"] for q, r in enumerate(plain) if 0 < sum(verdicts[4 * q:4 * q + 4]) < 4]      # round one is that of --no_signal keep
    assert [k["ids"] for k in kept][:len(first)] == first
    again = grpo.gather(student, tokenizer, rows, args, 1)
    assert [c.ids for c in again[1]] == [c.ids for c in drawn] and again[3] == total              # a function of (seed, step)
    assert all(k["ids"] in first for k, c in zip(kept, counts) if k["ids"] in first)
    for row in rows:
        row["answer"] = "no such answer"                                                         # no group ever has a signal
    assert grpo.gather(student, tokenizer, rows, args, 1) == ([], [], [], 4 * 12)
