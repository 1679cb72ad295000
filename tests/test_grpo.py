"""grpo.py: advantages, clip and normalisation in closed form, the update against a direct
computation, resampling, long rollouts."""
import copy
import math
import random
from types import SimpleNamespace

import pytest
import torch
from conftest import tiny_qwen3
from helpers import (
    PROMPTS,
    STUDENT,
    Catch,
    Largest,
    assert_no_step,
    close,
    compute,
    spoiled,
    unclipped,
    weights,
)

import grpo
from common.batches import prompts_of_step
from common.data import prompt_ids
from common.diagnostics import signal_statistics
from common.flags import parse
from common.sampler import Completion
from toy import world

ARGS = SimpleNamespace(
    advantage="std", norm="sequence", clip_low=.2, clip_high=.2, no_signal="keep", max_rounds=4,
    overlong="none", overlong_share=.25, beta=0.0, reuse=1, prompts=2, samples=2, max_new_tokens=8,
    seed=3, micro_tokens=10**6, chunk_logits=2**26,
)
RESPONSES = [[3, 4, 1], [20, 21, 22, 23, 24, 25, 26, 27], [30, 1], [31, 32, 33, 1]]
DRAWN = [Completion(r, len(r) == 8, [-1.0] * len(r)) for r in RESPONSES]
ROWS, RIGHT = [{"ids": PROMPTS[0]}, {"ids": PROMPTS[1]}], [True, False, False, True]
START = tiny_qwen3(seed=9)  # pi_0


def settings(**changed):
    return SimpleNamespace(**{**vars(ARGS), **changed})


# ----------------------------------------------------------------------------- advantages


def test_advantages_of_binary_rewards_in_closed_form():
    # (2)
    for k in range(1, 8):
        p, rewards = k / 8, [1.0] * k + [0.0] * (8 - k)
        std = math.sqrt(p * (1 - p))
        scaled, centred = (grpo.advantages(rewards, 8, kind) for kind in ("std", "mean"))
        expected = [(1 - p) / std] * k + [-p / std] * (8 - k)
        assert scaled.tolist() == pytest.approx(expected, abs=1e-5)
        assert centred.tolist() == pytest.approx([1 - p] * k + [-p] * (8 - k), abs=1e-6)
        assert abs(scaled.sum()) < 1e-5


def test_groups_without_differences_give_exactly_nothing():
    # (2): no division by a deviation of 0.
    for value in (0.0, 1.0, 1 / 3):
        for kind in ("std", "mean"):
            rewards = [value] * 4 + [1.0, 0.0, 0.0, 0.0]
            assert grpo.advantages(rewards, 4, kind)[:4].abs().max() < 1e-6
    # the rounding error of the mean is not a signal
    assert grpo.advantages([1 / 3] * 3, 3, "std").tolist() == [0.0] * 3


def test_groups_do_not_see_each_other():
    one, two = [1.0, 0.0, 0.0], [0.0, 1.0, 1.0]
    both = grpo.advantages(one + two, 3, "std")
    alone = [grpo.advantages(rewards, 3, "std") for rewards in (one, two)]
    assert torch.equal(both, torch.cat(alone))


# ----------------------------------------------------------------------------- the clip


@pytest.mark.parametrize("ratio, advantage, loss, stopped", [
    (1.0, 2.0, -2.0, False), (1.0, -2.0, 2.0, False),
    (1.5, 1.0, -1.28, True),      # moved far enough up already: stopped at 1 + high
    (1.25, 1.0, -1.25, False),    # between 1 + low and 1 + high: the higher clip leaves it room
    (0.5, 1.0, -0.5, False),      # moved in the wrong direction: always gets its gradient
    (0.5, -1.0, 0.8, True),       # moved far enough down already: stopped at 1 - low
    (1.5, -1.0, 1.5, False),      # moved in the wrong direction
])
def test_clip_in_closed_form(ratio, advantage, loss, stopped):
    # (3)
    logp = torch.tensor([math.log(ratio) - 2.0], requires_grad=True)
    old_logp, gain = torch.tensor([-2.0]), torch.tensor([advantage])
    value, is_stopped = grpo.clipped_loss(logp, old_logp, gain, .2, .28)
    value.sum().backward()
    assert value.item() == pytest.approx(loss, abs=1e-5) and is_stopped.item() is stopped
    expected = 0.0 if stopped else -ratio * advantage
    assert logp.grad.item() == pytest.approx(expected, abs=1e-5)


# ----------------------------------------------------------------------------- the weights


def test_normalisations_in_closed_form():
    # (4)
    def token_weights(counted, **changed):
        return grpo.token_weights(DRAWN, counted, settings(**changed))

    lengths, every = [len(r) for r in RESPONSES], [True] * 4
    assert lengths == [3, 8, 2, 4]
    assert token_weights(every) == pytest.approx([1 / (4 * n) for n in lengths])
    assert token_weights(every, norm="token") == pytest.approx([1 / 17] * 4)
    assert token_weights(every, norm="constant") == pytest.approx([1 / (4 * 8)] * 4)
    without = [True, False, True, True]
    expected = [1 / 9, 0, 1 / 9, 1 / 9]
    assert token_weights(without, norm="token") == pytest.approx(expected)
    assert token_weights(without) == pytest.approx([1 / 12, 0, 1 / 8, 1 / 16])
    # all rollouts were cut: no weight at all, and no division by 0
    assert token_weights([False] * 4, norm="token") == [0.0] * 4


def test_the_divisor_of_dr_grpo_does_not_depend_on_the_lengths():
    # (4): that of Dr. GRPO.
    # --max_new_tokens is 20, and no rollout is so long. The weight must not change if the longest
    # rollout is left out, or if all rollouts are short.
    args = settings(norm="constant", max_new_tokens=20)
    assert max(len(c.ids) for c in DRAWN) == 8
    for drawn in (DRAWN, [DRAWN[0], DRAWN[2], DRAWN[2], DRAWN[3]]):
        assert grpo.token_weights(drawn, [True] * 4, args) == pytest.approx([1 / (4 * 20)] * 4)


def test_overlong_penalty():
    args = settings(max_new_tokens=100, overlong_share=.2)
    penalties = [grpo.penalty(n, args) for n in (1, 80, 90, 100, 130)]
    assert penalties == pytest.approx([0, 0, -.25, -.5, -.5])


def test_variants_set_what_their_papers_say_and_a_given_flag_wins():
    def flags(names, *argv):
        args = grpo.check(parse(grpo.Args, "", ["--data", "toy", *argv], "grpo"))
        return [getattr(args, name) for name in names.split()]

    six = "advantage norm clip_high no_signal overlong beta"
    assert flags(six) == ["std", "sequence", .2, "keep", "none", 1e-3]
    assert flags(six, "--variant", "dr_grpo") == ["mean", "constant", .2, "keep", "none", 0]
    assert flags(six, "--variant", "dapo") == ["std", "token", .28, "resample", "soft", 0]
    mixed = "--variant", "dapo", "--norm", "sequence", "--beta", "0.5"
    assert flags("norm beta clip_high", *mixed) == ["sequence", .5, .28]


# ----------------------------------------------------------------------------- the update


class Recorder(Catch):
    """An optimizer that keeps the gradient of every step, and makes the step (plain SGD)."""

    def __init__(self, model, lr):
        super().__init__(model)
        self.param_groups[0]["lr"] = lr

    def step(self):
        super().step()
        torch.optim.SGD.step(self)


def run(lr=1e-12, right=RIGHT, **changed):
    """(gradients of every optimizer step, metrics, the trained model)"""
    student, args = copy.deepcopy(STUDENT), settings(**changed)
    optimizer = Recorder(student, lr)
    with unclipped():
        batch = ROWS, DRAWN, right
        metrics, _ = grpo.update(student, START, optimizer, batch, args, compute(args))
    return optimizer.gradients, metrics, student


def predicted(model, prompt, response):
    """Log-probabilities [N, V] at the positions that predict the response."""
    logits = model(torch.tensor([prompt + response])).logits[0]  # [L, V]
    return logits[len(prompt) - 1:-1, :50].log_softmax(-1)


def written(model, i):
    """Log-probabilities [N] of the tokens of rollout i."""
    response = RESPONSES[i]
    return predicted(model, ROWS[i // 2]["ids"], response)[range(len(response)), response]


def direct(student, old, changed):
    """The loss as (2) to (4) say it, in plain Python loops. old: log-probabilities by rollout."""
    args, lengths, parts, drifts = settings(**changed), [len(r) for r in RESPONSES], [], []
    counted = [not (args.overlong == "mask" and c.truncated) for c in DRAWN]
    penalties = [grpo.penalty(n, args) if args.overlong == "soft" else 0 for n in lengths]
    for i, response in enumerate(RESPONSES):
        group = [float(RIGHT[j]) + penalties[j] for j in (i // 2 * 2, i // 2 * 2 + 1)]
        mean = sum(group) / 2
        a = group[i % 2] - mean
        if args.advantage == "std":
            a /= math.sqrt(sum((x - mean) ** 2 for x in group) / 2)
        student_logp = predicted(student, ROWS[i // 2]["ids"], response)
        ratio = (student_logp[range(len(response)), response] - old[i]).exp()
        bounded = ratio.clamp(1 - args.clip_low, 1 + args.clip_high)
        parts.append(-torch.minimum(ratio * a, bounded * a) * counted[i])
        with torch.no_grad():
            start_logp = predicted(START, ROWS[i // 2]["ids"], response)
        drifts.append((student_logp.exp() * (student_logp - start_logp)).sum(-1).mean())
    if args.norm == "sequence":
        loss = sum(x.mean() for x in parts) / 4
    elif args.norm == "token":
        loss = torch.cat(parts).sum() / sum(n for n, ok in zip(lengths, counted) if ok)
    else:
        loss = torch.cat(parts).sum() / (4 * args.max_new_tokens)
    return loss + args.beta * sum(drifts) / 4


@pytest.mark.parametrize("changed", [
    {}, dict(advantage="mean", norm="constant"), dict(norm="token", clip_high=.28, overlong="soft"),
    dict(norm="token", overlong="mask"), dict(beta=.3), dict(overlong="mask"),
    dict(advantage="mean", norm="constant", max_new_tokens=20),  # no rollout is so long
])
def test_loss_and_gradient_against_a_direct_computation(changed):
    # (2) to (4), value and gradient.
    student = copy.deepcopy(STUDENT)
    with torch.no_grad():
        old = [written(student, i) for i in range(4)]
    loss = direct(student, old, changed)
    loss.backward()
    [caught], metrics, _ = run(**changed)
    assert metrics["loss"] == pytest.approx(loss.item(), abs=1e-5) and metrics["clipped"] == 0
    assert close(caught, {n: p.grad for n, p in student.named_parameters()}, 2e-6)
    assert max(g.abs().max() for g in caught.values()) > 1e-3


def test_one_step_is_exactly_on_policy():
    # With one step per batch the clip has no effect, however narrow it is. The gradient is that
    # of - sum A log pi.
    [narrow], _, _ = run(clip_low=1e-6, clip_high=1e-6)
    [wide], _, _ = run()
    assert close(narrow, wide)
    student = copy.deepcopy(STUDENT)
    gain = grpo.advantages([float(ok) for ok in RIGHT], 2, "std")
    loss = sum(-gain[i] * written(student, i).mean() for i in range(4)) / 4
    loss.backward()
    assert close(wide, {n: p.grad for n, p in student.named_parameters()}, 2e-6)


def test_several_steps_use_the_ratio_to_the_first():
    # (3): rho, with note 8.
    lr, changed = .05, dict(clip_low=.01, clip_high=.01)
    caught, metrics, _ = run(lr=lr, reuse=3, **changed)
    student = copy.deepcopy(STUDENT)
    with torch.no_grad():
        old = [written(student, i) for i in range(4)]
    assert len(caught) == 3
    for k in range(3):  # the same three steps by hand
        student.zero_grad()
        direct(student, old, changed).backward()
        grads = {n: p.grad.clone() for n, p in student.named_parameters()}
        assert close(caught[k], grads, 5e-5), k
        with torch.no_grad():
            for n, p in student.named_parameters():
                p -= lr * grads[n]
    assert metrics["clipped"] > 0  # otherwise this test says nothing about the clip


def test_micro_batches_and_chunks_change_nothing():
    [whole], metrics, _ = run(beta=.2, norm="token")
    cuts = (
        dict(micro_tokens=14), dict(chunk_logits=50), dict(micro_tokens=25, chunk_logits=150),
    )
    for cut in cuts:
        [again], other, _ = run(beta=.2, norm="token", **cut)
        assert close(whole, again)
        assert all(abs(metrics[k] - other[k]) < 1e-5 for k in ("loss", "kl_start"))


def test_no_distribution_is_longer_than_a_chunk():
    V, size = 5000, 2
    student, start = (tiny_qwen3(seed=s, vocabulary=V, width=16) for s in (1, 2))
    args = settings(chunk_logits=size * V, beta=.1)
    optimizer = torch.optim.SGD(student.parameters(), lr=.1)
    with Largest(V, 16) as largest:
        grpo.update(student, start, optimizer, (ROWS, DRAWN, RIGHT), args, compute(args, V))
    assert 1 <= largest.rows <= size


def test_the_kl_to_the_start_is_named_only_if_it_was_measured():
    for beta in (0.0, 0.1):
        _, metrics, _ = run(beta=beta)
        assert ("kl_start" in metrics) == (beta > 0)


def test_without_any_signal_nothing_moves():
    [caught], _, _ = run(right=[True, True, False, False])
    assert max(g.abs().max() for g in caught.values()) == 0


def test_a_right_answer_becomes_likelier_and_a_wrong_one_less_likely():
    _, _, after = run(lr=.05)
    for i in range(4):
        with torch.no_grad():
            change = written(after, i).mean() - written(STUDENT, i).mean()
        assert (change > 0) == RIGHT[i]


@pytest.mark.parametrize("reuse", [1, 2])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_gradient_that_is_not_finite_changes_no_weight(reuse, value):
    student, args = spoiled(STUDENT, value), settings(reuse=reuse, beta=.1)
    optimizer = torch.optim.AdamW(student.parameters(), lr=.1)
    before, before_start = weights(student), weights(START)
    batch = ROWS, DRAWN, RIGHT
    metrics, _ = grpo.update(student, START, optimizer, batch, args, compute(args))
    assert_no_step(student, optimizer, before, metrics["grad_norm"])
    assert math.isfinite(metrics["loss"])
    assert all(torch.equal(p, before_start[n]) for n, p in weights(START).items())


# ----------------------------------------------------------------------------- resampling


def toy_rows(tokenizer, count):
    rows = [world.make_row(random.Random(i), 3) for i in range(count)]
    for r in rows:
        r["ids"] = prompt_ids(tokenizer, r["problem"])
    return rows


def test_resampling_keeps_groups_with_a_signal_and_counts_the_rest(toy):
    # (1): groups and their verdicts, with notes 3 and 11.
    student, _, tokenizer = toy
    rows = toy_rows(tokenizer, 40)
    args = settings(samples=4, prompts=3, max_new_tokens=120, no_signal="resample")
    kept, drawn, right, everything = grpo.collect(student, tokenizer, rows, args, 1)
    counts = [sum(right[4 * q:4 * q + 4]) for q in range(len(kept))]
    assert len(drawn) == len(right) == 4 * len(kept) and 0 < len(kept) <= 3
    assert all(0 < c < 4 for c in counts)
    assert len(everything) % 12 == 0 and len(everything) > len(drawn)
    # Some of what was replaced was all right, or all wrong.
    assert signal_statistics(everything, 4)["signal"] < 1 == signal_statistics(right, 4)["signal"]

    # the first round is that of --no_signal keep
    args.no_signal = "keep"
    plain, few, verdicts, one = grpo.collect(student, tokenizer, rows, args, 1)
    assert len(plain) == 3 and one == verdicts and len(one) == 12 == len(few)
    signal = [q for q in range(3) if 0 < sum(verdicts[4 * q:4 * q + 4]) < 4]
    assert [k["ids"] for k in kept][:len(signal)] == [plain[q]["ids"] for q in signal]
    of_first_round = [few[4 * q + j].ids for q in signal for j in range(4)]
    assert [c.ids for c in drawn][:len(of_first_round)] == of_first_round

    # the batch is a function of (seed, step)
    args.no_signal = "resample"
    again = grpo.collect(student, tokenizer, rows, args, 1)
    assert [c.ids for c in again[1]] == [c.ids for c in drawn] and again[3] == everything

    # if no group ever has a signal, --max_rounds ends it
    for row in rows:
        row["answer"] = "no such answer"
    assert grpo.collect(student, tokenizer, rows, args, 1) == ([], [], [], [False] * 4 * 12)


def test_further_rounds_ask_other_questions(toy):
    # No question of the first round has a signal, because its answer is never right. So whatever
    # is kept comes from a further round, and must be another question.
    student, _, tokenizer = toy
    rows = toy_rows(tokenizer, 40)
    args = settings(samples=4, prompts=3, max_new_tokens=120, no_signal="resample")
    first_round = prompts_of_step(1, 3, 40, args.seed)
    for i in first_round:
        rows[i]["answer"] = "no such answer"
    kept, _, _, everything = grpo.collect(student, tokenizer, rows, args, 1)
    assert kept and len(everything) > 12
    assert not {k["problem"] for k in kept} & {rows[i]["problem"] for i in first_round}


def test_further_rounds_draw_other_tokens_for_the_same_question(toy):
    # (1): the key of a draw.
    # There is only one question, so every round asks it again. Rounds with the first round's
    # random numbers would never find a signal that the first round did not find.
    student, _, tokenizer = toy
    args = settings(samples=2, prompts=1, max_new_tokens=120, no_signal="resample")
    found = False
    for row in toy_rows(tokenizer, 12):
        args.max_rounds = 1
        one, drawn, *_ = grpo.collect(student, tokenizer, [row], args, 1)
        args.max_rounds = 4
        more, redrawn, *_ = grpo.collect(student, tokenizer, [row], args, 1)
        # what the first round found is kept
        assert not one or [c.ids for c in redrawn] == [c.ids for c in drawn]
        found = bool(more) and not one
        if found:
            break
    assert found
