"""Memory: the parts of a prediction counted by hand, out of memory."""
import copy
import dataclasses
from types import SimpleNamespace

import pytest
import torch
from conftest import ROOT, tiny_qwen3
from helpers import PROMPTS, RESPONSES, STUDENT, TEACHER, close, compute, weights

import opd
import topd
from common import memory
from common.arguments import Mistake
from common.batches import Compute
from common.fits import check_memory
from common.memory import Setup, Shape, memory_budget, moment_bytes, within_memory
from common.models import load_model
from common.size import human
from common.weights import adapt, copy_of, trainable

CPU = torch.device("cpu")
# tiny_qwen3: an embedding of 50 x 32, which is the head, too. Two layers: queries and output
# 32 x 32, keys and values 32 x 16, an MLP of 3 x 32 x 64, norms of 16, 16, 32 and 32. A last norm.
WEIGHTS = 50 * 32 + 2 * (2 * 32 * 32 + 2 * 32 * 16 + 3 * 32 * 64 + 16 + 16 + 32 + 32) + 32
HEAD = 4 * 50 * 32                              # bytes of the head's gradient
SHAPE = Shape(rollouts=4, prompt_tokens=10, completion_tokens=20, micro_tokens=120, chunk=30)
HALVES = Shape(rollouts=4, prompt_tokens=10, completion_tokens=20, micro_tokens=60, chunk=30)
LOGITS = 5 * 4 * 30 * 50
CHOICE = 4 * 50 * (4 + 4 + 3 * 8)               # four texts: logits, log-probabilities, sums
HELD = (4 + 8 + 4) * WEIGHTS                    # the student, two moments, a teacher in float32


@pytest.fixture(scope="module")
def models():
    return tiny_qwen3(), tiny_qwen3(seed=1).requires_grad_(False)


def test_every_part_is_what_a_count_by_hand_gives(models):
    assert sum(p.numel() for p in models[0].parameters()) == WEIGHTS
    parts, total = memory_budget(*models, SHAPE, Setup(torch.float32, checkpointing=False))
    saved = 120 * 2 * (25.5 * 32 + 16 * 32 + 16 * 16 + 17 * 64)     # tokens x layers x bytes
    assert parts == {
        "student weights": 4 * WEIGHTS,
        "AdamW moments": 8 * WEIGHTS,
        "teacher weights": 4 * WEIGHTS,
        "other weights": 0,
        "vLLM": 0,
        "KV cache while sampling": 4 * 30 * 2 * 2 * 16 * 4,         # tokens x layers x K, V x 16
        "logits while sampling": CHOICE,
        "student gradients": 4 * WEIGHTS,
        "activations of a micro-batch": saved,
        "logits of a chunk": LOGITS,
    }
    # the worst moment: the logits of a chunk beside all that was saved, and the head's gradient
    assert total == HELD + saved + LOGITS + HEAD


def test_with_checkpointing_one_layer_is_saved_and_the_inputs_of_all(models):
    parts, total = memory_budget(*models, HALVES, Setup(torch.float32, checkpointing=True))
    inputs, layer = 4 * 32 * 2 * 60, 60 * (25.5 * 32 + 16 * 32 + 16 * 16 + 17 * 64)
    assert parts["activations of a micro-batch"] == inputs + layer
    # the worst moment: a layer is computed again, and the gradients of the first half are there
    assert total == HELD + inputs + layer + 4 * WEIGHTS


def test_autocast_keeps_copies_of_the_weights_and_halves_the_cache(models):
    half = Setup(torch.bfloat16, checkpointing=False)
    parts, total = memory_budget(models[0], models[1].to(torch.bfloat16), SHAPE, half)
    models[1].float()
    saved = 120 * 2 * (28.5 * 32 + 10 * 32 + 11 * 16 + 8 * 64) + 2 * WEIGHTS
    assert parts["activations of a micro-batch"] == saved
    assert parts["teacher weights"] == 2 * WEIGHTS
    assert parts["KV cache while sampling"] == 4 * 30 * 2 * 2 * 16 * 2
    copy_of_the_head = 2 * 50 * 32
    assert parts["logits of a chunk"] == LOGITS + copy_of_the_head
    assert total == HELD - 2 * WEIGHTS + saved + LOGITS + copy_of_the_head + HEAD


def test_with_few_logits_the_gradient_of_the_head_counts(models):
    """Qwen3-0.6B's head has 155 million numbers, and a chunk of logits 17 million."""
    few = dataclasses.replace(SHAPE, chunk=1)

    def logits(teacher, dtype):
        return memory_budget(models[0], teacher, few, Setup(dtype, False))[0]["logits of a chunk"]
    assert logits(models[1], torch.float32) == 3 * 4 * 50 + HEAD
    # Copies of the heads that have float32 weights, and the gradient before it is float32.
    half = HEAD // 2
    assert logits(None, torch.bfloat16) == 3 * 4 * 50 + HEAD + 2 * half     # its own teacher
    assert logits(models[1], torch.bfloat16) == 3 * 4 * 50 + HEAD + 3 * half
    of_halves = copy.deepcopy(models[1]).to(torch.bfloat16)
    assert logits(of_halves, torch.bfloat16) == 3 * 4 * 50 + HEAD + 2 * half


def test_on_a_card_the_cache_takes_half_of_what_is_free_but_one_rollout_at_least(models):
    def cache(**more):
        setup = Setup(torch.float32, checkpointing=True, **more)
        return memory_budget(*models, SHAPE, setup)[0]["KV cache while sampling"]
    whole = cache()
    assert cache(room=HELD + 20_000) == 10_000 < whole
    assert cache(room=HELD + 2**30) == whole
    assert cache(room=HELD // 2) == whole // 4
    assert cache(engine=2**20) == 0             # vLLM has it inside its own share


def test_the_texts_of_an_evaluation_are_counted_and_so_is_the_teacher_that_writes_them():
    student, teacher = tiny_qwen3(), tiny_qwen3(layers=3).requires_grad_(False)
    setup = Setup(torch.float32, checkpointing=True)

    def cache(teacher, shape, **more):
        parts = memory_budget(student, teacher, shape, dataclasses.replace(setup, **more))[0]
        return parts["KV cache while sampling"], parts["logits while sampling"]

    of_a_text = 30 * 2 * 16 * 4                  # tokens x K, V x 16 x bytes, in each layer
    probes = dataclasses.replace(SHAPE, probes=100)
    assert cache(None, SHAPE) == (4 * 2 * of_a_text, CHOICE)
    assert cache(None, probes) == (100 * 2 * of_a_text, 25 * CHOICE)
    assert cache(teacher, probes) == (100 * 3 * of_a_text, 25 * CHOICE)
    # vLLM writes the student's texts inside its own share, but not the teacher's
    assert cache(None, probes, engine=1)[0] == 0
    assert cache(teacher, probes, engine=1)[0] == 100 * 3 * of_a_text
    # never more than the sampler writes at once
    many = dataclasses.replace(SHAPE, rollouts=1000)
    assert cache(None, many) == (256 * 2 * of_a_text, 64 * CHOICE)


def test_where_memory_is_short_fewer_texts_are_written_at_once_on_a_cpu_too(monkeypatch):
    model, of_a_text = tiny_qwen3(), 100 * 2 * 2 * 16 * 4
    monkeypatch.setattr(memory, "machine_memory", lambda: None)
    assert memory.rows_that_fit(model, 100) == 256
    monkeypatch.setattr(memory, "free_memory", lambda device: 20 * of_a_text)
    assert memory.rows_that_fit(model, 100) == 10       # half of the free memory
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert memory.rows_that_fit(model, 100) == 20
    assert memory.rows_that_fit(model, 10**6) == 1


def test_free_memory_is_what_neither_this_process_nor_another_one_uses(monkeypatch):
    used = memory.resident_memory(CPU)
    monkeypatch.setattr(memory, "machine_memory", lambda: used + 2**20)
    assert 0 <= memory.free_memory(CPU) < 2**20 + 2**26     # pages come and go
    assert memory.room_for_the_run(CPU) < used + 2**27
    monkeypatch.setattr(memory, "machine_memory", lambda: 2**50)
    assert 0 < memory.free_memory(CPU) < 2**50 - used       # Linux knows what others use
    monkeypatch.setattr(memory, "machine_memory", lambda: None)
    assert memory.free_memory(CPU) is None and memory.room_for_the_run(CPU) is None


def test_other_models_and_a_teacher_that_keeps_its_cache_are_counted(models):
    setup = Setup(torch.float32, checkpointing=True)
    plain, _ = memory_budget(*models, HALVES, setup)
    parts, _ = memory_budget(*models, HALVES, setup, more=[models[1]], teacher_cache=15)
    added = {"other weights": 4 * WEIGHTS,
             "teacher's cache of a micro-batch": 60 * 2 * 2 * 16 * 4 * 3 // 2}
    assert parts == {**plain, **added}
    # A text of 30 tokens: with 15 more the cache has 45 columns, with 16 it grows to 67.
    more, _ = memory_budget(*models, HALVES, setup, teacher_cache=16)
    assert more["teacher's cache of a micro-batch"] == 60 * 2 * 2 * 16 * 4 * 67 / 30
    # the student itself is the teacher: no second copy of the weights
    assert memory_budget(models[0], None, HALVES, setup)[0]["teacher weights"] == 0


def test_with_adapters_only_they_are_counted_for_learning():
    pytest.importorskip("peft")
    half = Setup(torch.bfloat16, checkpointing=True)
    adapted = adapt(load_model(str(ROOT / "toy/student"), CPU, torch.bfloat16), 4)
    whole = sum(p.numel() for p in adapted.parameters())
    learning = sum(p.numel() for p in trainable(adapted))
    parts, total = memory_budget(adapted, copy_of(adapted), HALVES, half)
    assert parts["AdamW moments"] == 8 * learning and parts["student gradients"] == 4 * learning
    assert parts["student weights"] == 2 * (whole - learning) + 4 * learning
    assert parts["teacher weights"] == 4 * learning         # the frozen weights are shared
    full = load_model(str(ROOT / "toy/student"), CPU, torch.float32)
    assert total < memory_budget(full, copy_of(full), HALVES, half)[1] / 2


def test_moments_of_eight_bits_are_for_large_matrices_other_than_the_embedding():
    model = tiny_qwen3(width=96)
    whole = sum(p.numel() for p in model.parameters())
    small = 2 * 3 * 96 * 192                    # the MLPs; all else has fewer than 4,096 numbers
    assert model.get_input_embeddings().weight.numel() > 4096
    assert moment_bytes(model, 32) == 8 * whole
    assert moment_bytes(model, 8) == 8 * (whole - small) + 2 * small + 8 * small // 256


def test_a_run_that_cannot_fit_is_refused(monkeypatch):
    gpu = torch.device("cuda")
    # 8 GiB are free, 1 GiB is in use by this run, and PyTorch keeps a further one for it.
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (8 * 2**30, 24 * 2**30))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 2 * 2**30)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 2**30)
    assert memory.free_memory(gpu) == 9 * 2**30
    check_memory(10 * 2**30, gpu, "--prompts")
    said = "needs about 11.0 GiB and 10.0 GiB of the GPU's memory are free for it; lower --prompts"
    with pytest.raises(Mistake, match=said):
        check_memory(11 * 2**30, gpu, "--prompts")


def test_sizes_for_people_and_measured_memory():
    sizes = (5, 1536, 3 * 2**20, 2**30, 5000 * 2**30)
    assert [human(x) for x in sizes] == ["5 B", "1.5 KiB", "3.0 MiB", "1.0 GiB", "5000.0 GiB"]
    # a process with torch is larger than 50 MiB; measured anew, since pages come and go
    assert 50 * 2**20 < memory.resident_memory(CPU) <= 1.1 * memory.peak_memory(CPU)


CUDA_FULL = torch.OutOfMemoryError("CUDA out of memory")
MPS_FULL = RuntimeError("MPS backend out of memory (MPS allocated: 17.4 GB, other allocations: 1 GB)")


def failing(weight, fits, step_first=False, error=CUDA_FULL):
    """An update that runs out of memory while a micro-batch has more than `fits` tokens."""
    def update(student, optimizer, compute):
        attempts.append(compute.args.micro_tokens)
        assert weight.grad is None              # nothing is left of the attempt before
        (weight * 2).sum().backward()
        if step_first:
            optimizer.step()
        if compute.args.micro_tokens > fits:
            raise error
        optimizer.step()
        return "done"
    attempts = []
    return update, attempts


@pytest.mark.parametrize("error", [CUDA_FULL, MPS_FULL])
def test_out_of_memory_halves_the_flag_of_the_run(error, capsys):
    weight = torch.nn.Parameter(torch.ones(3))
    compute = Compute(SimpleNamespace(micro_tokens=4096), CPU, torch.float32, 50)
    optimizer = torch.optim.SGD([weight], lr=.5)
    update, attempts = failing(weight, fits=1024, error=error)
    assert within_memory(update, None, optimizer, compute) == "done"
    assert attempts == [4096, 2048, 1024] and compute.args.micro_tokens == 1024
    assert torch.equal(weight.detach(), torch.zeros(3))             # one step, one gradient
    assert capsys.readouterr().out.count("the same update again with --micro_tokens") == 2


def test_another_error_is_no_reason_to_halve():
    weight = torch.nn.Parameter(torch.ones(3))
    compute = Compute(SimpleNamespace(micro_tokens=4096), CPU, torch.float32, 50)
    update, attempts = failing(weight, 1024, error=RuntimeError("shapes cannot be multiplied"))
    with pytest.raises(RuntimeError, match="shapes"):
        within_memory(update, None, torch.optim.SGD([weight], lr=.5), compute)
    assert attempts == [4096]


def test_no_second_step_and_no_endless_halving():
    for fits, step_first, expected in ((0, False, [1024, 512]), (512, True, [1024])):
        weight = torch.nn.Parameter(torch.ones(3))
        compute = Compute(SimpleNamespace(micro_tokens=1024), CPU, torch.float32, 50)
        update, attempts = failing(weight, fits, step_first)
        with pytest.raises(Mistake, match="out of memory"):
            within_memory(update, None, torch.optim.AdamW([weight]), compute)
        assert attempts == expected


# ------------------------------------------------------------------------ with a real update

LONG = [3, 4, 20, 21, 22, 7, 9, 33, 12, 41, 5, 6, 1]


@pytest.mark.parametrize("method", [opd, topd])
def test_out_of_memory_repeats_the_same_update_of_a_method(method, monkeypatch, capsys):
    responses, real = [*RESPONSES[:3], LONG] * 64, method.states
    flags = dict(
        temperature=1.0, divergence="reverse", beta=0.5, estimator="full", chunk_logits=2**26,
        guidance="on", lam=0.1, window_size=4, candidate_share=0.1, drop_share=0.3, epsilon=0.05,
        embedding="static", suppress="none", seed=3,
    )

    def trained(room, micro_tokens):
        """A GPU that can hold what the backward pass needs of `room` tokens. It fails at the long
        responses, in the middle of an update: the short ones have already left a gradient."""
        args = SimpleNamespace(micro_tokens=micro_tokens, **flags)

        def states(model, ids, predicts):
            long = model is student and torch.is_grad_enabled() and ids.shape[1] > 10
            if long and ids.numel() > room:
                assert student.model.norm.weight.grad is not None
                raise torch.OutOfMemoryError("CUDA out of memory")
            return real(model, ids, predicts)

        monkeypatch.setattr(method, "states", states)
        student = copy.deepcopy(STUDENT)
        optimizer = torch.optim.AdamW(student.parameters(), lr=1e-2)
        more = [[False] * 256] if method is opd else []
        arguments = [(PROMPTS * 64, responses, *more), args, *([1] if method is topd else [])]
        within_memory(method.update, student, TEACHER, optimizer, *arguments, compute(args))
        return weights(student), args.micro_tokens

    plain, _ = trained(10**9, 2400)
    halved, size = trained(700, 2400)
    assert size == 600
    said = capsys.readouterr().out
    assert "the same update again with --micro_tokens 1200" in said
    assert "--micro_tokens 600" in said
    assert close(plain, halved, 1e-5)
    assert not close(plain, weights(STUDENT), 1e-3)
    with pytest.raises(Mistake, match="out of memory"):
        trained(5, 1200)


def test_memory_that_ends_in_the_first_step_leaves_no_half_made_moments(monkeypatch):
    """AdamW writes down its step before it makes its moments."""
    import torch.optim.adamw
    layer = torch.nn.Linear(4, 4)
    optimizer = torch.optim.AdamW(layer.parameters())
    compute = Compute(SimpleNamespace(micro_tokens=4096), CPU, torch.float32, 50)
    true_zeros, calls = torch.zeros_like, []

    def zeros_like(*args, **more):
        calls.append(1)
        if len(calls) == 1:
            raise torch.OutOfMemoryError("no memory for the moments")
        return true_zeros(*args, **more)

    def update(optimizer, compute):
        layer(torch.ones(1, 4)).sum().backward()
        monkeypatch.setattr(torch, "zeros_like", zeros_like)
        optimizer.step()
        return "done"
    assert within_memory(update, optimizer, compute) == "done" and compute.args.micro_tokens == 2048
    assert all({"step", "exp_avg", "exp_avg_sq"} <= state.keys() for state in optimizer.state.values())
