"""Flags of a run: defaults on the toy and elsewhere, and what is refused before any loading."""
import importlib.util
from dataclasses import dataclass
from types import SimpleNamespace

import pytest
import torch

from common.arguments import Mistake, either
from common.files import write_json
from common.flags import Common, at_least, check_packages, in_range, parse


@dataclass
class Args(Common):
    student: str = either("toy/student", "large")
    """model that learns"""
    prompts: int = 16
    """prompts per update"""
    samples: int = 4
    """rollouts per prompt"""
    max_new_tokens: int = either(160, 512)
    """a rollout is cut after so many tokens"""
    lr: float = either(1e-3, 1e-5)
    """learning rate"""


def parsed(*words):
    return parse(Args, "a script", [str(w) for w in words], "opd")


# ------------------------------------------------------------------------ defaults


def test_without_a_gpu_the_toy_is_the_default(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    args = parsed()
    assert (args.student, args.data, args.benchmark) == ("toy/student", "toy", "toy")
    assert (args.steps, args.eval_every, args.eval_n, args.lr) == (120, 20, 500, 1e-3)
    assert args.out == "runs/opd-0" and parsed("--seed", 7).out == "runs/opd-7"
    assert args.given == set()


def test_the_defaults_follow_the_data_then_the_student_then_the_device(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert (parsed().student, parsed().data, parsed().max_new_tokens) == ("large", "gsm8k", 512)
    assert parsed("--device", "cpu").student == "toy/student"
    assert parsed("--student", "toy/reader").data == "toy"
    assert parsed("--data", "toy").student == "toy/student"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    args = parsed("--student", "Qwen/Qwen3-0.6B")
    assert (args.student, args.data, args.lr) == ("Qwen/Qwen3-0.6B", "gsm8k", 1e-5)
    # What is given stays. A default does not depend on it.
    args = parsed("--data", "gsm8k", "--lr", 1, "--benchmark", "toy")
    assert (args.student, args.lr, args.benchmark, args.steps) == ("large", 1.0, "toy", 200)


def test_a_resumed_run_keeps_its_flags(tmp_path):
    before = {"lr": 0.5, "steps": 9, "data": "toy", "prompts": 3, "gradient_checkpointing": True}
    write_json(tmp_path / "config.json", before)
    args = parsed("--out", tmp_path, "--resume", "--steps", 12)
    assert (args.lr, args.steps, args.prompts, args.samples) == (0.5, 12, 3, 4)
    assert args.gradient_checkpointing is True          # a flag without a value, too
    args = parsed("--out", tmp_path, "--resume", "--no-gradient_checkpointing")
    assert args.gradient_checkpointing is False
    assert parsed("--out", tmp_path).lr == 1e-3         # without --resume nothing is recalled


# ------------------------------------------------------------------------ refused


@pytest.mark.parametrize("interval, inside, outside", [
    ("[0, 1)", (0, .999), (-.001, 1, float("nan"))),
    ("(0, 1]", (.001, 1), (0, 1.001)),
    ("(0, inf)", (1e-30, 1e30), (0, float("inf"), float("nan"))),
    ("[2, 160]", (2, 160), (1, 161)),
])
def test_a_round_bracket_leaves_its_end_out(interval, inside, outside):
    for value in inside:
        in_range(SimpleNamespace(x=value), "x", interval)
    for value in outside:
        with pytest.raises(Mistake) as refused:
            in_range(SimpleNamespace(x=value), "x", interval)
        assert str(refused.value) == f"--x is {value}; it must lie in {interval}."
    with pytest.raises(Mistake, match=r"must lie in .* \(it is a share\)\.$"):
        in_range(SimpleNamespace(x=outside[0]), "x", interval, "it is a share")


def test_a_flag_has_a_smallest_value():
    args = SimpleNamespace(steps=1, save_every=0)
    at_least(args, 1, "steps")
    at_least(args, 0, "steps save_every")
    with pytest.raises(Mistake, match="^--save_every is 0; it must be at least 1.$"):
        at_least(args, 1, "steps save_every")
    args.save_every = -1
    with pytest.raises(Mistake, match=r"^--save_every is -1; it must be 0 \(off\) or more.$"):
        at_least(args, 0, "save_every")


@pytest.mark.parametrize("flag", ["steps", "prompts", "samples", "max_new_tokens", "eval_n",
                                  "micro_tokens", "chunk_logits"])
def test_nothing_can_be_done_zero_times(flag):
    with pytest.raises(Mistake, match=f"--{flag} is 0; it must be at least 1"):
        parsed(f"--{flag}", 0)


PLAIN = dict(adam_bits=32, sampler="own", vllm_memory=.3)


@pytest.mark.parametrize("asked, package", [
    (dict(adam_bits=8), "bitsandbytes"),
    (dict(sampler="vllm"), "vllm"),
])
def test_a_missing_package_is_named_before_anything_is_loaded(monkeypatch, asked, package):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(Mistake, match=f"pip install {package}"):
        check_packages(SimpleNamespace(**{**PLAIN, **asked}))
    check_packages(SimpleNamespace(**PLAIN))


def test_what_vllm_cannot_do_is_said_before_it_starts(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)     # it is installed
    asked = {**PLAIN, "sampler": "vllm"}
    check_packages(SimpleNamespace(**asked, temperature=2.0))
    with pytest.raises(Mistake, match="--temperature is 2.5; vLLM allows 2 at most"):
        check_packages(SimpleNamespace(**asked, temperature=2.5))
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(Mistake, match="with several use --sampler own"):
        check_packages(SimpleNamespace(**asked))
