"""float16, for cards without bfloat16: the gradient, the factor of the loss, skipped steps."""
import contextlib
import copy
import math
import shutil
from types import SimpleNamespace

import pytest
import torch
from conftest import ROOT, tiny_qwen3
from helpers import (
    CPU,
    PROMPTS,
    RESPONSES,
    STUDENT,
    TEACHER,
    Catch,
    assert_no_step,
    catch,
    gradient_of,
    weights,
)
from safetensors.torch import load_file

import ar_opd
import grpo
import hindsight_sd
import opd
import topd
from common import models, show
from common import weights as room
from common.arguments import Mistake
from common.batches import Compute, log_probabilities
from common.checkpoints import Metrics
from common.files import read_json, read_jsonl, write_json
from common.models import compute_dtype, load_model
from common.sampler import Completion
from common.weights import LossScale, adamw, clip_gradient

HALF = torch.float16

# ------------------------------------------------------------------------ which type


@pytest.mark.parametrize("device, native, dtype", [
    ("cuda", True, torch.bfloat16),         # A100, RTX 3060
    ("cuda:1", False, torch.float16),       # T4
    ("cpu", None, torch.float32),
    ("mps", None, torch.float32),           # what the test of `pick_device` has compared
])
def test_auto_takes_what_the_device_computes_itself(device, native, dtype, monkeypatch):
    asked, current = [], []

    @contextlib.contextmanager
    def on_card(device):
        current.append(str(device))
        yield
        current.pop()

    def supported(including_emulation=True):
        asked.append((current[-1], including_emulation))
        return native or including_emulation    # PyTorch counts emulation as support by default

    monkeypatch.setattr(torch.cuda, "device", on_card)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", supported)
    assert compute_dtype("auto", torch.device(device)) == dtype
    assert asked == ([(device, False)] if "cuda" in device else [])
    for name in ("float16", "bfloat16", "float32"):     # a given flag wins
        assert compute_dtype(name, torch.device(device)) == getattr(torch, name)


def test_one_card_without_bfloat16_is_enough_for_float16(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device", lambda device: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: True)
    monkeypatch.setattr(models, "gather", lambda mine: [mine, False])  # of two processes
    assert compute_dtype("auto", torch.device("cuda")) == HALF


def test_other_types_have_no_scale():
    for dtype in (torch.float32, torch.bfloat16):
        assert Compute(None, CPU, dtype, 50).loss_scale is None
    assert Compute(None, CPU, HALF, 50).loss_scale.factor == LossScale.START


# ------------------------------------------------------------------------ the gradient

ARGS = dict(
    micro_tokens=30, chunk_logits=200, temperature=1.0, divergence="reverse", beta=0.5,
    estimator="full", top_k=4, seed=0, samples=2, max_new_tokens=200, guidance="on", lam=0.1,
    window_size=4, candidate_share=0.1, drop_share=0.3, epsilon=0.05, embedding="static",
    suppress="none", target="anchored", clip=1.0, skip_first=1, teacher="ema", ema=0.1,
    rl_weight=0.3, train="all", context="peer", advantage="std", norm="sequence", clip_low=0.2,
    clip_high=0.28, overlong="soft", overlong_share=0.2, reuse=1,
)
LONG = [[3, 4, 20, 21, 22, 7, 9, 33, 12, 41, 5, 6, 1]] * 2 + RESPONSES[2:]
METHODS = ["opd", "topd", "ar_opd", "hindsight_sd", "grpo"]


def call(method, dtype):
    """(update, its arguments without the student, its Compute). Frozen models have this type."""
    args = SimpleNamespace(**ARGS)
    compute = Compute(args, CPU, dtype, 50)
    teacher, start = (copy.deepcopy(m).to(dtype).requires_grad_(False) for m in (TEACHER, STUDENT))
    average = copy.deepcopy(STUDENT).requires_grad_(False)
    with torch.no_grad():
        for p in (*average.parameters(), *start.parameters()):
            p += 0.02           # else teacher and student would be equal
    rows = [{"ids": p, "plain": p, "partial": p + [7], "full": p + [8, 9]} for p in PROMPTS[:2]]
    right = [True, False, False, True]
    drawn = [Completion(r, False, [-1.0] * len(r)) for r in RESPONSES]
    if method == "opd":
        batch = PROMPTS, RESPONSES, [False, True, False, False]
        return opd.update, [teacher, catch, batch, args, compute], compute
    if method == "topd":
        return topd.update, [teacher, catch, (PROMPTS, LONG), args, 1, compute], compute
    if method == "ar_opd":
        return ar_opd.update, [average, catch, rows, RESPONSES, args, compute], compute
    if method == "hindsight_sd":
        args.divergence = "forward"
        prompts = [PROMPTS[0] + [4], None, PROMPTS[1] + [5], PROMPTS[1]]
        contexts = hindsight_sd.Contexts(right, [1, 0, 3, None], prompts)
        arguments = [average, start, catch, (rows, drawn, contexts), args, compute]
        return hindsight_sd.update, arguments, compute
    return grpo.update, [start, catch, (rows, drawn, right), args, compute], compute


def flat(gradient):
    return torch.cat([g.flatten() for g in gradient.values()])


@pytest.mark.parametrize("method", METHODS)
def test_the_gradient_is_that_of_float32_up_to_rounding(method):
    found = {}
    for dtype in (torch.float32, HALF):
        update, arguments, compute = call(method, dtype)
        gradient, (metrics, *_) = gradient_of(update, STUDENT, *arguments)
        found[dtype] = flat(gradient), metrics
    (exact, metrics), (half, half_metrics) = found.values()
    # Measured: 0.13 to 0.24 %.
    assert (half - exact).norm() < 0.01 * exact.norm() and half.dtype == torch.float32
    assert half_metrics["loss"] == pytest.approx(metrics["loss"], rel=0.01, abs=1e-3)
    assert half_metrics["grad_norm"] == pytest.approx(metrics["grad_norm"], rel=0.01)
    assert not torch.equal(half, exact)                 # it did compute in float16


def test_small_numbers_vanish_without_the_factor():
    compute, found = Compute(SimpleNamespace(), CPU, HALF, 50), {}
    for factor in (1.0, LossScale.START):
        compute.loss_scale.factor = factor
        layer = torch.nn.Linear(4, 3, bias=False)
        with compute.autocast():
            output = layer(torch.ones(2, 4))  # [2, 3]
        assert output.dtype == HALF
        compute.backward(output.float().sum() / 10**8)
        clip_gradient(layer, 1.0, compute.loss_scale)
        found[factor] = layer.weight.grad
    assert (found[1.0] == 0).all()
    exact = torch.full((3, 4), 2e-8)
    assert torch.allclose(found[LossScale.START], exact, rtol=1e-2, atol=0)


def test_log_probabilities_and_transport_are_float32():
    student, teacher = (copy.deepcopy(m).to(HALF) for m in (STUDENT, TEACHER))
    hidden = torch.randn(5, 32, generator=torch.Generator().manual_seed(0)).to(HALF)
    head = student.get_output_embeddings()
    for model in (student, STUDENT):        # frozen in float16; learning, and cast by autocast
        with torch.autocast("cpu", dtype=HALF):
            logp = log_probabilities(model, hidden)
        assert logp.dtype == torch.float32
        assert torch.allclose(logp, head(hidden).float().log_softmax(-1), atol=1e-6)
    _, (_, _, _, args, _, compute), _ = call("topd", HALF)
    points, losses, _ = topd.look_ahead(STUDENT, teacher, (PROMPTS, LONG), args, compute)
    topd.soft_targets(points, args)
    assert points and all(x.dtype == torch.float32 for x in losses)
    for p in points:
        assert p.cost.dtype == p.weights.dtype == torch.float32
        assert torch.allclose(p.weights.sum(1), torch.ones(len(p.weights)))


# ------------------------------------------------------------------------ overflow


@pytest.mark.parametrize("method", METHODS)
def test_an_overflow_makes_no_step_and_halves_the_factor(method):
    update, arguments, compute = call(method, HALF)
    student = copy.deepcopy(STUDENT)
    optimizer, before = adamw(student, 1e-3), weights(student)
    arguments = [optimizer if x is catch else x for x in arguments]
    compute.loss_scale.factor = 2.0**40     # so that numbers really overflow
    metrics, *_ = update(student, *arguments)
    assert math.isfinite(metrics["loss"])
    assert_no_step(student, optimizer, before, metrics["grad_norm"])
    assert compute.loss_scale.factor == 2.0**39
    compute.loss_scale.factor = LossScale.START
    metrics, *_ = update(student, *arguments)
    assert math.isfinite(metrics["grad_norm"]) and compute.loss_scale.factor == LossScale.START
    assert not all(torch.equal(p, before[n]) for n, p in student.named_parameters())


def test_the_factor_falls_until_the_gradient_fits():
    update, arguments, compute = call("opd", HALF)
    optimizer = Catch(copy.deepcopy(STUDENT))
    arguments = [optimizer if x is catch else x for x in arguments]
    compute.loss_scale.factor = factor = 2.0**24
    while not optimizer.gradients:
        assert compute.loss_scale.factor == factor
        update(optimizer.model, *arguments)
        factor /= 2
    assert compute.loss_scale.factor == 2 * factor and 2.0**10 < factor < 2.0**20


def test_the_factor_is_doubled_after_a_while(monkeypatch):
    monkeypatch.setattr(LossScale, "PATIENCE", 3)
    scale, factors = LossScale(), []
    for norm in (1, 1, math.inf, 1, 1, 1, 1, 1, math.nan, 1):
        scale.adapt(norm)
        factors.append(scale.factor / LossScale.START)
    assert factors == [1, 1, .5, .5, .5, 1, 1, 1, .5, .5]


def test_all_processes_find_the_same_factor(monkeypatch):
    # The gradient here is 2 in all places. Only the other process has an overflow, or none.
    monkeypatch.setattr(room, "process", lambda: (0, 2))
    layer = torch.nn.Linear(2, 2, bias=False)
    for there, norm, factor in ((math.inf, math.inf, .5), (8 * LossScale.START, 20, 1)):
        monkeypatch.setattr(room, "add_up", lambda tensors, more=there: [t + more for t in tensors])
        layer.weight.grad, scale = torch.full((2, 2), 2 * LossScale.START), LossScale()
        assert clip_gradient(layer, 100.0, scale) == norm
        assert scale.factor == factor * LossScale.START
    assert torch.equal(layer.weight.grad, torch.full((2, 2), 10.0))


def test_a_frozen_model_that_overflows_is_refused(tmp_path):
    model = tiny_qwen3()
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight.mul_(1e3)
        model.model.layers[0].mlp.down_proj.weight.mul_(1e4)
    model.save_pretrained(tmp_path)
    with pytest.raises(Mistake, match="too large for float16; use --dtype bfloat16"):
        load_model(str(tmp_path), CPU, HALF)
    for dtype in (torch.float32, torch.bfloat16):
        assert load_model(str(tmp_path), CPU, dtype).dtype == dtype
    tiny_qwen3().save_pretrained(tmp_path)
    assert load_model(str(tmp_path), CPU, HALF).dtype == HALF


# ------------------------------------------------------------------------ a run


def test_a_run_goes_on_while_a_smaller_factor_helps(tmp_path):
    def bad(loss, scale, name="run"):
        (tmp_path / name).mkdir(exist_ok=True)
        metrics = Metrics(tmp_path / name)
        for step in range(1, 4):
            metrics.add(dict(step=step, loss=loss, grad_norm=math.inf, loss_scale=scale))
        return metrics

    assert [r["skipped"] for r in bad(0.5, 2.0**10).rows] == [True] * 3
    advice = "start again with --dtype float32 or a lower --lr"
    with pytest.raises(Mistake, match=advice):      # the forward pass itself overflows
        bad(math.nan, 2.0**10)
    with pytest.raises(Mistake, match=advice):      # the gradient overflows without a factor
        bad(0.5, 0.5)


@pytest.mark.parametrize("skipped, dtype, said", [
    (1, HALF, None),
    (2, HALF, "2 of 20 updates made no step, because their gradient was not finite; --dtype fl"),
    (3, torch.float32, "3 of 20 updates made no step"),
])
def test_many_skipped_updates_are_said_at_the_end(skipped, dtype, said, capsys):
    rows = [{"step": 0, "eval": {"accuracy": .5, "interval": [.4, .6], "n": 100}}]
    for step in range(20):
        norm = None if step < skipped else 1.0
        rows.append(dict(step=step, loss=.5, tokens=9, seconds={"total": 1.0}, grad_norm=norm))
    rows.append({"step": 20, "skipped": True, "seconds": {"total": 1.0}})   # grpo.py: no signal
    run = SimpleNamespace(
        args=SimpleNamespace(benchmark="toy"), metrics=SimpleNamespace(rows=rows), out="x",
        device=CPU, dtype=dtype, predicted_memory=1,
    )
    show.conclude(run, "python opd.py")
    printed = capsys.readouterr().out
    assert (said in printed) if said else ("warning" not in printed)


@pytest.mark.slow
def test_a_resumed_run_is_bit_equal(tmp_path, monkeypatch):
    monkeypatch.setattr(LossScale, "PATIENCE", 2)
    command = ["--student", str(ROOT / "toy/student"), "--teacher", str(ROOT / "toy/teacher")]
    command += "--data toy --dtype float16 --device cpu --prompts 2 --samples 1 --eval_n 1".split()
    command += "--max_new_tokens 8 --eval_every 0 --show_every 0 --save_every 0".split()
    whole, part = tmp_path / "whole", tmp_path / "part"
    opd.main([*command, "--steps", "2", "--out", str(whole)])
    opd.main([*command, "--steps", "1", "--out", str(part)])
    shutil.rmtree(part / "final")       # as if it had been killed after the first update
    write_json(part / "config.json", {**read_json(part / "config.json"), "steps": 2})
    opd.main(["--resume", "--out", str(part)])

    for folder in (whole, part):        # the second step in a row doubles the factor
        rows = [r for r in read_jsonl(folder / "metrics.jsonl") if "loss" in r]
        assert [r["loss_scale"] for r in rows] == [LossScale.START, 2 * LossScale.START]
    a, b = (load_file(x / "final/model.safetensors") for x in (whole, part))
    assert a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)
    state = torch.load(part / "checkpoint-000002/state.pt", weights_only=True)
    assert state["loss_scale"] == (2 * LossScale.START, 0)
