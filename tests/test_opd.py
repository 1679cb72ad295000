"""One update of opd.py: boundaries of the loss, independence of how the batch is cut, precision, data order, off-policy shares."""
import copy
import math
from types import SimpleNamespace

import pytest
import torch
from conftest import tiny_qwen3

import opd
import plumbing

ARGS = SimpleNamespace(temperature=1.0, divergence="reverse", beta=0.5, estimator="full", top_k=4, chunk_logits=2**26, micro_tokens=10**6,
                       samples=2, max_new_tokens=12, seed=3, off_policy=0.0, off_policy_data="reference")
CPU = torch.device("cpu")
PROMPTS = [[5, 6, 7], [8], [9, 10, 11, 12], [5, 5, 8, 9, 9]]
RESPONSES = [[3, 4, 1], [20, 21, 22, 23, 24, 1], [1], [30, 31]]             # the last one truncated: no end token


def gradient(student, teacher, prompts=PROMPTS, responses=RESPONSES, **changed):
    """Gradient of one update, caught in front of the optimiser."""
    student, caught = copy.deepcopy(student), {}

    class Catch(torch.optim.SGD):
        def step(self):
            caught.update({n: p.grad.clone() for n, p in student.named_parameters()})
    optimiser = Catch(student.parameters(), lr=1.0)
    old = plumbing.torch.nn.utils.clip_grad_norm_
    batch = prompts, responses, [False] * len(prompts), [False] * len(prompts)
    clock = plumbing.Clock(CPU)
    clock.start()
    plumbing.torch.nn.utils.clip_grad_norm_ = lambda parameters, clip: old(parameters, 1e9)     # unclipped, to compare the gradient itself
    try:
        metrics, kls = opd.update(student, teacher, optimiser, batch, SimpleNamespace(**{**vars(ARGS), **changed}), clock,
                                  plumbing.autocaster(CPU, torch.float32), 50)
    finally:
        plumbing.torch.nn.utils.clip_grad_norm_ = old
    return caught, metrics, kls


def close(a, b, tolerance=1e-6):
    return all(torch.allclose(a[n], b[n], atol=tolerance, rtol=1e-4) for n in a)


STUDENT, TEACHER = tiny_qwen3(seed=1), tiny_qwen3(seed=2, width=48)


def test_loss_and_gradient_against_a_direct_computation():
    # one row at a time, no padding, no chunks, no micro-batches, the loss written out once more
    student, total, tokens = copy.deepcopy(STUDENT), 0.0, 0
    for p, r in zip(PROMPTS, RESPONSES):
        ids = torch.tensor([p + r])
        s = student(ids).logits[0, len(p) - 1:-1].log_softmax(-1)           # predicts exactly the tokens of r
        with torch.no_grad():
            t = TEACHER(ids).logits[0, len(p) - 1:-1].log_softmax(-1)
        assert len(s) == len(r)
        total, tokens = total + (s.exp() * (s - t)).sum(), tokens + len(r)
    (total / tokens).backward()
    caught, metrics, _ = gradient(STUDENT, TEACHER)
    assert abs(metrics["loss"] - (total / tokens).item()) < 1e-5 and metrics["tokens"] == 12
    assert close(caught, {n: p.grad for n, p in student.named_parameters()})
    assert caught["model.embed_tokens.weight"].abs().max() > 1e-3


def test_micro_batches_and_chunks_change_nothing():
    whole, metrics, kls = gradient(STUDENT, TEACHER)
    for changed in (dict(micro_tokens=8), dict(micro_tokens=20), dict(chunk_logits=50), dict(chunk_logits=150, micro_tokens=12)):
        cut, other, other_kls = gradient(STUDENT, TEACHER, **changed)
        assert close(whole, cut), changed
        assert abs(metrics["loss"] - other["loss"]) < 1e-6 and abs(metrics["student_entropy"] - other["student_entropy"]) < 1e-6
        assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(kls, other_kls))         # and rollouts keep their places


def test_order_of_rows_and_padding_change_nothing():
    whole, _, _ = gradient(STUDENT, TEACHER)
    order = [2, 0, 3, 1]
    shuffled, _, _ = gradient(STUDENT, TEACHER, [PROMPTS[i] for i in order], [RESPONSES[i] for i in order])
    assert close(whole, shuffled)


def test_token_mean_over_the_step_not_over_sequences():
    _, metrics, kls = gradient(STUDENT, TEACHER)
    every_token = torch.cat(kls)
    assert len(every_token) == 12
    assert abs(metrics["loss"] - every_token.mean().item()) < 1e-6
    assert abs(metrics["loss"] - torch.stack([k.mean() for k in kls]).mean().item()) > 1e-3


def test_the_end_token_is_inside_the_loss_and_what_follows_is_not():
    ids, predicts, targets = opd.pack(PROMPTS, RESPONSES, CPU)
    assert targets.tolist() == [t for r in RESPONSES for t in r]
    for row, (p, r) in enumerate(zip(PROMPTS, RESPONSES)):
        where = predicts[row].nonzero().squeeze(1).tolist()
        assert where == list(range(len(p) - 1, len(p) + len(r) - 1))
        assert [ids[row, i + 1].item() for i in where] == r
    # a pad id that equals the end token must not matter: masks come from lengths
    assert predicts.sum() == len(targets)


def test_nothing_behind_a_response_can_be_seen():
    hidden = opd.states(STUDENT, *opd.pack(PROMPTS, RESPONSES, CPU)[:2])
    rows = [opd.states(STUDENT, *opd.pack([p], [r], CPU)[:2]) for p, r in zip(PROMPTS, RESPONSES)]
    assert torch.allclose(hidden, torch.cat(rows), atol=1e-5)


def test_teacher_gets_no_gradient_and_does_not_change():
    before = {n: p.clone() for n, p in TEACHER.named_parameters()}
    gradient(STUDENT, TEACHER)
    assert all(p.grad is None and torch.equal(p, before[n]) for n, p in TEACHER.named_parameters())


def test_identical_models_have_zero_loss_and_gradient():
    caught, metrics, _ = gradient(STUDENT, STUDENT)
    assert abs(metrics["kl"]) < 1e-6 and max(g.abs().max() for g in caught.values()) < 1e-5


def test_heads_of_unequal_width_are_cut_to_the_tokenizer():
    # a teacher with 14 padding rows in its head, as Qwen2.5's larger models have
    wide = tiny_qwen3(seed=2, width=48, vocabulary=64)
    narrow = copy.deepcopy(wide)
    narrow.resize_token_embeddings(50)
    a, b = gradient(STUDENT, wide)[0], gradient(STUDENT, narrow)[0]
    assert close(a, b)


def test_a_step_in_float32_changes_the_weights_where_bfloat16_would_not():
    student = tiny_qwen3(seed=1)
    optimiser = torch.optim.AdamW(student.parameters(), lr=1e-6)
    for p in student.parameters():
        p.grad = torch.ones_like(p)
    before = {n: p.detach().clone() for n, p in student.named_parameters()}
    norm, changed = plumbing.clip_and_step(student, optimiser, clip=1.0)
    assert changed > 0.6 and norm > 1
    rounded = [(p.detach().bfloat16() != before[n].bfloat16()).float().mean() for n, p in student.named_parameters()]
    assert max(rounded) < 0.05


def test_a_gradient_that_is_not_finite_changes_no_weight():
    student = tiny_qwen3(seed=1)
    optimiser = torch.optim.AdamW(student.parameters(), lr=1e-3)
    before = {n: p.detach().clone() for n, p in student.named_parameters()}
    for p in student.parameters():
        p.grad = torch.full_like(p, float("nan"))
    norm, changed = plumbing.clip_and_step(student, optimiser, clip=1.0)
    assert changed == 0 and norm != norm and all(torch.equal(p, before[n]) for n, p in student.named_parameters())


def test_prompts_of_a_step_are_permutations_and_stateless():
    seen = [i for step in range(1, 6) for i in plumbing.prompts_of_step(step, 4, 10, seed=0)]
    assert sorted(seen[:10]) == list(range(10)) and sorted(seen[10:20]) == list(range(10)) and seen[:10] != seen[10:20]
    assert plumbing.prompts_of_step(3, 4, 10, seed=0) == seen[8:12]
    assert plumbing.prompts_of_step(1, 4, 10, seed=1) != seen[:4]
    assert len(plumbing.prompts_of_step(1, 25, 10, seed=0)) == 25


def test_micro_batches_cover_everything_within_the_budget():
    lengths = [3, 50, 7, 7, 20, 1, 90]
    groups = plumbing.micro_batches(lengths, 60)
    assert sorted(i for g in groups for i in g) == list(range(7))
    assert all(len(g) == 1 or max(lengths[i] for i in g) * len(g) <= 60 for g in groups)


def test_micro_batches_waste_little_on_padding():
    lengths = [80 + i % 81 for i in range(400)]
    one, cut = [list(range(400))], plumbing.micro_batches(lengths, 10**6)
    assert sorted(i for g in cut for i in g) == list(range(400)) and plumbing.padded(lengths, one) == 400 * 160
    assert plumbing.padded(lengths, cut) < 1.07 * sum(lengths) and all(sum(lengths[i] for i in g) >= plumbing.FULL for g in cut[:-1])
    assert plumbing.micro_batches([100] * 400, 10**6) == one               # equal lengths pad nothing: no reason to cut
    assert len(plumbing.micro_batches([1, 1000], 10**4)) == 1              # too little to keep a device busy: padding costs less than a pass


class Words:                            # a tokenizer of single digits, enough for rollouts()
    eos_token_id = 1

    def __len__(self):
        return 50

    def __call__(self, text, add_special_tokens):
        return {"input_ids": [int(c) + 10 for c in text]}


def test_shares_of_off_policy_text():
    rows = [{"ids": [5, 6, i], "solution": "123"} for i in range(20)]
    def batch(**changed):
        return opd.rollouts(STUDENT, TEACHER, Words(), rows, SimpleNamespace(**{**vars(ARGS), **changed}), step=1)
    prompts, responses, truncated, off = batch(off_policy=1.0)
    assert all(off) and all(r == [11, 12, 13, 1] for r in responses) and prompts[2] == prompts[3] == rows[1]["ids"]
    _, own, _, none = batch()
    assert not any(none)
    _, mixed, _, some = batch(off_policy=0.5)
    assert 8 <= sum(some) <= 32
    assert all(m == ([11, 12, 13, 1] if s else o) for m, o, s in zip(mixed, own, some))     # the rest are the same rollouts
    _, taught, _, _ = batch(off_policy=1.0, off_policy_data="teacher")
    assert taught != own and all(len(r) <= 12 for r in taught)


def test_updates_that_are_not_finite_are_skipped_marked_and_stop_the_run_at_three(tmp_path):
    student = tiny_qwen3(seed=4)
    optimiser, before = torch.optim.AdamW(student.parameters(), lr=.1), {n: p.clone() for n, p in student.named_parameters()}
    for p in student.parameters():
        p.grad = torch.full_like(p, math.nan)
    norm, changed = plumbing.clip_and_step(student, optimiser, 1.0)
    assert not math.isfinite(norm) and changed == 0 and all(torch.equal(p, before[n]) for n, p in student.named_parameters()) and not optimiser.state
    metrics, bad, good = plumbing.Metrics(tmp_path), {"loss": math.nan, "grad_norm": math.nan}, {"loss": 1.0, "grad_norm": 1.0}
    metrics.add({"step": 0, "eval": {"accuracy": .5}})
    for step, row in enumerate((bad, bad, good, bad, bad), 1):
        metrics.add({"step": step, **row})
    metrics.add({"step": 5, "eval": {"accuracy": .5}})
    with pytest.raises(plumbing.Mistake, match="three updates in a row .4 to 6.*lower --lr"):
        metrics.add({"step": 6, **bad})
    text = (tmp_path / "metrics.jsonl").read_text()
    assert "NaN" not in text and [r.get("skipped", False) for r in plumbing.read_jsonl(tmp_path / "metrics.jsonl")] == [False, True, True, False, True, True, False, True]


def test_out_of_memory_halves_the_micro_batch_and_repeats_the_same_update(monkeypatch, capsys):
    prompts, responses = PROMPTS * 64, RESPONSES * 64
    batch, real = (prompts, responses, [False] * 256, [False] * 256), opd.states

    def trained(room, micro_tokens):
        """A GPU that holds `room` tokens at once; fails in the middle of an update, when gradients have begun to add up."""
        args, clock = SimpleNamespace(**{**vars(ARGS), "micro_tokens": micro_tokens}), plumbing.Clock(CPU)

        def states(model, ids, predicts):
            if ids.numel() > room and model is student:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return real(model, ids, predicts)
        monkeypatch.setattr(opd, "states", states)
        student = copy.deepcopy(STUDENT)
        optimiser = torch.optim.AdamW(student.parameters(), lr=1e-2)
        clock.start()
        plumbing.within_memory(opd.update, student, TEACHER, optimiser, batch, args, clock, plumbing.no_autocast, 50)
        return student, args.micro_tokens
    plain, _ = trained(10**9, 2400)
    halved, size = trained(700, 2400)
    assert size == 600
    said = capsys.readouterr().out
    assert "the same update again with --micro_tokens 1200" in said and "--micro_tokens 600" in said
    assert close(dict(plain.named_parameters()), dict(halved.named_parameters()), 1e-5)
    with pytest.raises(plumbing.Mistake, match="out of memory"):
        trained(5, 1200)
