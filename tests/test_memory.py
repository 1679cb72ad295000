"""Memory: the parts of a prediction counted by hand, the README's cards, out of memory."""
import copy
from types import SimpleNamespace

import pytest
import torch
from conftest import ROOT, run_script, tiny_qwen3
from helpers import PROMPTS, RESPONSES, STUDENT, TEACHER, close, compute, weights

import opd
import topd
from common import memory
from common.arguments import Mistake
from common.batches import Compute
from common.memory import Setup, Shape, human, memory_budget, moment_bytes, within_memory
from common.models import load_model
from common.weights import adapt, copy_of, trainable

CPU = torch.device("cpu")
# tiny_qwen3: an embedding of 50 x 32, which is the head, too. Two layers: queries and output
# 32 x 32, keys and values 32 x 16, an MLP of 3 x 32 x 64, norms of 16, 16, 32 and 32. A last norm.
WEIGHTS = 50 * 32 + 2 * (2 * 32 * 32 + 2 * 32 * 16 + 3 * 32 * 64 + 16 + 16 + 32 + 32) + 32
HEAD = 4 * 50 * 32                              # bytes of the head's gradient
SHAPE = Shape(rollouts=4, prompt_tokens=10, completion_tokens=20, micro_tokens=120, chunk=30)
HALVES = Shape(rollouts=4, prompt_tokens=10, completion_tokens=20, micro_tokens=60, chunk=30)
LOGITS = 5 * 4 * 30 * 50 + HEAD
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
    assert total == HELD - 2 * WEIGHTS + saved + LOGITS + HEAD


def test_on_a_card_the_cache_takes_half_of_what_is_free_but_one_rollout_at_least(models):
    def cache(**more):
        setup = Setup(torch.float32, checkpointing=True, **more)
        return memory_budget(*models, SHAPE, setup)[0]["KV cache while sampling"]
    whole = cache()
    assert cache(room=HELD + 20_000) == 10_000 < whole
    assert cache(room=HELD + 2**30) == whole
    assert cache(room=HELD // 2) == whole // 4
    assert cache(engine=2**20) == 0             # vLLM has it inside its own share


def test_other_models_and_a_teacher_that_keeps_its_cache_are_counted(models):
    setup = Setup(torch.float32, checkpointing=True)
    plain, _ = memory_budget(*models, HALVES, setup)
    parts, _ = memory_budget(*models, HALVES, setup, more=[models[1]], teacher_cache=True)
    added = {"other weights": 4 * WEIGHTS,
             "teacher's cache of a micro-batch": 60 * 2 * 2 * 16 * 4 * 3 // 2}
    assert parts == {**plain, **added}
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
    card = SimpleNamespace(total_memory=2**30)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: card)
    memory.check_memory(2**30, torch.device("cuda"), "--prompts")
    said = "needs about 2.0 GiB and the GPU has 1.0 GiB; lower --prompts"
    with pytest.raises(Mistake, match=said):
        memory.check_memory(2**31, torch.device("cuda"), "--prompts")


def test_sizes_for_people_and_measured_memory():
    sizes = (5, 1536, 3 * 2**20, 2**30, 5000 * 2**30)
    assert [human(x) for x in sizes] == ["5 B", "1.5 KiB", "3.0 MiB", "1.0 GiB", "5000.0 GiB"]
    # a process with torch is larger than 50 MiB; measured anew, since pages come and go
    assert 50 * 2**20 < memory.resident_memory(CPU) <= 1.1 * memory.peak_memory(CPU)


def failing(weight, fits, step_first=False):
    """An update that runs out of memory while a micro-batch has more than `fits` tokens."""
    def update(student, optimizer, compute):
        attempts.append(compute.args.micro_tokens)
        assert weight.grad is None              # nothing is left of the attempt before
        (weight * 2).sum().backward()
        if step_first:
            optimizer.step()
        if compute.args.micro_tokens > fits:
            raise torch.OutOfMemoryError("CUDA out of memory")
        optimizer.step()
        return "done"
    attempts = []
    return update, attempts


def test_out_of_memory_halves_the_flag_of_the_run(capsys):
    weight = torch.nn.Parameter(torch.ones(3))
    compute = Compute(SimpleNamespace(micro_tokens=4096), CPU, torch.float32, 50)
    optimizer = torch.optim.SGD([weight], lr=.5)
    update, attempts = failing(weight, fits=1024)
    assert within_memory(update, None, optimizer, compute) == "done"
    assert attempts == [4096, 2048, 1024] and compute.args.micro_tokens == 1024
    assert torch.equal(weight.detach(), torch.zeros(3))             # one step, one gradient
    assert capsys.readouterr().out.count("the same update again with --micro_tokens") == 2


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


def test_the_readme_shows_the_cards_as_they_are_predicted():
    done = run_script("benchmarks/memory.py", "--cards", fresh=True)
    assert done.returncode == 0, done.stderr
    rows = [line for line in done.stdout.splitlines() if line.startswith("|")]
    readme = (ROOT / "README.md").read_text()
    missing = [row for row in rows if row not in readme]
    assert len(rows) > 10 and not missing, missing
    # nothing is recommended that would fill a card to the brim
    assert not any(row.endswith("! |") for row in rows)
