"""opd.py: its update against a direct computation, however the batch is cut; off-policy shares;
gradients that are not finite. (Its divergences: test_divergence.py.)"""
import copy
import math
from types import SimpleNamespace

import pytest
import torch
from conftest import tiny_qwen3
from helpers import (
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
    spoiled,
    weights,
)

import opd

ARGS = SimpleNamespace(
    temperature=1.0, divergence="reverse", beta=0.5, estimator="full", top_k=4, chunk_logits=2**26,
    micro_tokens=10**6, samples=2, max_new_tokens=12, seed=3, off_policy=0.0,
)


def settings(**changed):
    return SimpleNamespace(**{**vars(ARGS), **changed})


def gradient(student, teacher, prompts=PROMPTS, responses=RESPONSES, off_policy=None, **changed):
    """(unclipped gradient of one update, metrics, KL of every token of each rollout)"""
    args = settings(**changed)
    batch = prompts, responses, off_policy or [False] * len(prompts)
    caught, (metrics, kl) = gradient_of(
        opd.update, student, teacher, catch, batch, args, compute(args)
    )
    return caught, metrics, kl


def directly(student, teacher, temperature=1.0):
    """For each rollout the log-probabilities [n, V] of both models at the positions that predict
    its tokens: one row at a time, so without padding, chunks and micro-batches."""
    for p, r in zip(PROMPTS, RESPONSES):
        ids = torch.tensor([p + r])
        student_logits = student(ids).logits[0, len(p) - 1:-1] / temperature
        with torch.no_grad():
            teacher_logits = teacher(ids).logits[0, len(p) - 1:-1] / temperature
        assert len(student_logits) == len(r)
        yield student_logits.log_softmax(-1), teacher_logits.log_softmax(-1)


# ------------------------------------------------------------------------ loss and gradient


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_loss_and_gradient_against_a_direct_computation(temperature):
    # (2) and (3), value and gradient.
    # One temperature for both distributions. The loss is written out once more.
    student, total = copy.deepcopy(STUDENT), 0.0
    for s, t in directly(student, TEACHER, temperature):
        total = total + (s.exp() * (s - t)).sum()
    (total / 12).backward()
    caught, metrics, _ = gradient(STUDENT, TEACHER, temperature=temperature)
    assert abs(metrics["loss"] - (total / 12).item()) < 1e-5 and metrics["tokens"] == 12
    assert close(caught, {n: p.grad for n, p in student.named_parameters()})
    assert caught["model.embed_tokens.weight"].abs().max() > 1e-3


def test_off_policy_rollouts_are_learnt_by_cross_entropy():
    student, total, off = copy.deepcopy(STUDENT), 0.0, [True, False, False, True]
    for (s, t), r, is_off in zip(directly(student, TEACHER), RESPONSES, off):
        written = s.gather(1, torch.tensor(r)[:, None])
        total = total + (-written.sum() if is_off else (s.exp() * (s - t)).sum())
    (total / 12).backward()
    caught, metrics, _ = gradient(STUDENT, TEACHER, off_policy=off)
    assert abs(metrics["loss"] - (total / 12).item()) < 1e-5
    assert close(caught, {n: p.grad for n, p in student.named_parameters()})
    assert not close(caught, gradient(STUDENT, TEACHER)[0])


def test_statistics_are_the_reverse_kl_and_both_entropies_whatever_the_loss_is():
    # (2) at every token.
    with torch.no_grad():
        pairs = list(directly(STUDENT, TEACHER))
    _, metrics, kl = gradient(STUDENT, TEACHER, divergence="forward")
    for (s, t), tokens in zip(pairs, kl):
        assert not tokens.requires_grad
        assert torch.allclose(tokens, (s.exp() * (s - t)).sum(-1), atol=1e-5)
    for name, which in (("student_entropy", 0), ("teacher_entropy", 1)):
        entropy = torch.cat([-(x[which].exp() * x[which]).sum(-1) for x in pairs])
        assert metrics[name] == pytest.approx(entropy.mean().item(), abs=1e-5)
    assert metrics["kl"] == pytest.approx(torch.cat(kl).mean().item(), abs=1e-6)
    assert abs(metrics["loss"] - metrics["kl"]) > 0.01      # the loss is the forward KL
    assert (metrics["tokens"], metrics["length"], metrics["truncated"]) == (12, 3.0, 0.25)


def test_micro_batches_and_chunks_change_nothing():
    whole, metrics, kl = gradient(STUDENT, TEACHER)
    for changed in (
        dict(micro_tokens=8),
        dict(micro_tokens=20),
        dict(chunk_logits=50),
        dict(chunk_logits=150, micro_tokens=12),
    ):
        cut, other, other_kl = gradient(STUDENT, TEACHER, **changed)
        assert close(whole, cut), changed
        assert abs(metrics["loss"] - other["loss"]) < 1e-6
        assert abs(metrics["student_entropy"] - other["student_entropy"]) < 1e-6
        # Rollouts keep their places.
        assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(kl, other_kl))


def test_micro_batches_keep_off_policy_rollouts_apart():
    off = [True, False, False, True]
    whole, metrics, _ = gradient(STUDENT, TEACHER, off_policy=off)
    for changed in (dict(micro_tokens=8), dict(chunk_logits=150, micro_tokens=14)):
        cut, other, _ = gradient(STUDENT, TEACHER, off_policy=off, **changed)
        assert close(whole, cut), changed
        assert abs(metrics["loss"] - other["loss"]) < 1e-6


def test_order_of_rows_and_padding_change_nothing():
    whole, _, _ = gradient(STUDENT, TEACHER)
    order = [2, 0, 3, 1]
    prompts, responses = [PROMPTS[i] for i in order], [RESPONSES[i] for i in order]
    shuffled, _, _ = gradient(STUDENT, TEACHER, prompts, responses)
    assert close(whole, shuffled)


def test_token_mean_over_the_batch_and_not_over_rollouts():
    # (3): which mean it is.
    _, metrics, kl = gradient(STUDENT, TEACHER)
    every_token = torch.cat(kl)
    assert len(every_token) == 12
    assert abs(metrics["loss"] - every_token.mean().item()) < 1e-6
    assert abs(metrics["loss"] - torch.stack([k.mean() for k in kl]).mean().item()) > 1e-3


def test_teacher_gets_no_gradient_and_does_not_change():
    before = weights(TEACHER)
    gradient(STUDENT, TEACHER)
    assert all(p.grad is None and torch.equal(p, before[n]) for n, p in TEACHER.named_parameters())


def test_identical_models_have_zero_loss_and_gradient():
    caught, metrics, _ = gradient(STUDENT, STUDENT)
    assert abs(metrics["kl"]) < 1e-6 and max(g.abs().max() for g in caught.values()) < 1e-5


def test_no_distribution_is_longer_than_a_chunk():
    V, size = 5000, 2
    student, teacher = (tiny_qwen3(seed=s, vocabulary=V, width=16) for s in (1, 2))
    args = settings(chunk_logits=size * V)
    optimizer = torch.optim.SGD(student.parameters(), lr=.1)
    batch = PROMPTS, RESPONSES, [False] * len(PROMPTS)
    with Largest(V, 16) as largest:
        opd.update(student, teacher, optimizer, batch, args, compute(args, V))
    assert 1 <= largest.rows <= size


def test_heads_of_unequal_width_are_cut_to_the_tokenizer():
    # A teacher with 14 padding rows in its head, as Qwen2.5's larger models have them.
    wide = tiny_qwen3(seed=2, width=48, vocabulary=64)
    narrow = copy.deepcopy(wide)
    narrow.resize_token_embeddings(50)
    wide.vocabulary = narrow.vocabulary = 50
    assert wide.get_output_embeddings().weight.shape[0] == 64
    assert close(gradient(STUDENT, wide)[0], gradient(STUDENT, narrow)[0])


# ------------------------------------------------------------------------ the step


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_gradient_that_is_not_finite_changes_no_weight(value):
    student = spoiled(STUDENT, value)
    optimizer, before = torch.optim.AdamW(student.parameters(), lr=0.1), weights(student)
    batch = PROMPTS, RESPONSES, [False] * 4
    metrics, _ = opd.update(student, TEACHER, optimizer, batch, ARGS, compute(ARGS))
    assert_no_step(student, optimizer, before, metrics["grad_norm"])
    assert math.isfinite(metrics["loss"])


def test_the_next_update_is_not_harmed_by_the_one_before():
    # The gradient of a skipped update must be forgotten. The gradient of a step, too.
    def trained(student, count):
        optimizer = torch.optim.SGD(student.parameters(), lr=0.1)
        for _ in range(count):
            batch = PROMPTS, RESPONSES, [False] * 4
            opd.update(student, TEACHER, optimizer, batch, ARGS, compute(ARGS))
        return weights(student)

    skipped, plain = copy.deepcopy(STUDENT), copy.deepcopy(STUDENT)
    hook = skipped.get_input_embeddings().weight.register_hook(lambda g: g * math.nan)
    trained(skipped, 1)
    hook.remove()
    once = trained(plain, 1)
    assert close(trained(skipped, 1), once)
    assert not close(trained(plain, 1), once)


# ------------------------------------------------------------------------ rollouts


class Words:
    """A tokenizer of single digits, enough for rollouts()."""

    eos_token_id = 1

    def __call__(self, text, add_special_tokens):
        return {"input_ids": [int(c) + 10 for c in text]}


def test_shares_of_off_policy_text():
    rows = [{"ids": [5, 6, i], "solution": "123"} for i in range(20)]

    def batch(**changed):
        return opd.rollouts(STUDENT, Words(), rows, settings(**changed), step=1)

    prompts, responses, off = batch(off_policy=1.0)
    assert all(off) and all(r == [11, 12, 13, 1] for r in responses)
    assert prompts[2] == prompts[3] == rows[1]["ids"]
    _, drawn, none = batch()
    assert not any(none)
    _, mixed, some = batch(off_policy=0.5)
    assert 8 <= sum(some) <= 32
    # The rest are the same rollouts as without off-policy text.
    assert all(m == ([11, 12, 13, 1] if s else r) for m, r, s in zip(mixed, drawn, some))


def test_a_solution_that_is_too_long_is_cut_like_a_rollout():
    rows = [{"ids": [5, 6], "solution": "1234567890"}]
    whole = [*range(11, 20), 10, 1]                         # ten digits and the end token
    for longest, expected in ((12, whole), (11, whole), (10, whole[:10]), (3, whole[:3])):
        args = settings(off_policy=1.0, max_new_tokens=longest)
        assert opd.rollouts(STUDENT, Words(), rows, args, step=1)[1] == [expected] * 2
    other = SimpleNamespace(turn_end=7)     # it comes from the chat template
    args = settings(off_policy=1.0, max_new_tokens=12)
    assert opd.rollouts(other, Words(), rows, args, step=1)[1] == [[*whole[:-1], 7]] * 2


def test_rollouts_depend_on_seed_step_prompt_and_sample_only():
    # (1): one rollout never depends on another one.
    rows = [{"ids": [5, 6, i], "solution": "123"} for i in range(4)]

    def responses(rows, step=1, **changed):
        return opd.rollouts(STUDENT, Words(), rows, settings(**changed), step)[1]

    whole = responses(rows)
    assert responses(rows) == whole
    assert responses(rows[:2]) == whole[:4]                 # other rows have no influence
    assert responses(rows, step=2) != whole and responses(rows, seed=4) != whole
    assert whole[0] != whole[1]                             # two samples of one prompt


def test_rollouts_are_drawn_at_the_temperature_of_the_flag(toy):
    from common.data import load_benchmark, prompt_ids
    student, _, tokenizer = toy
    rows = load_benchmark("toy", "train", 2)
    for row in rows:
        row["ids"] = prompt_ids(tokenizer, row["prompt"])

    def drawn(temperature):
        args = settings(temperature=temperature, samples=4, max_new_tokens=24)
        return opd.rollouts(student, tokenizer, rows, args, 1)[1]
    cold, warm = drawn(0.01), drawn(1.0)
    for i in (0, 4):        # nearly greedy: all samples of a prompt are one text
        assert cold[i : i + 4] == [cold[i]] * 4 and len(set(map(tuple, warm[i : i + 4]))) > 1
