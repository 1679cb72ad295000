"""Flags of a run: defaults on the toy and elsewhere, and what is refused before any loading."""
import importlib
import importlib.util
import re
from dataclasses import dataclass, fields
from types import SimpleNamespace

import pytest
import torch
from conftest import ROOT

from common.arguments import Mistake, Parser, either, help_texts
from common.data import MOST, SHARE
from common.files import write_json
from common.flags import Common, at_least, check_packages, in_range, parse
from common.synonyms import NOTES, SYNONYMS, meant


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


@dataclass
class WithTeacher(Args):
    teacher: str = either("toy/teacher", "larger")
    """model that scores"""


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


def test_the_teacher_of_a_self_teacher_is_a_word_and_no_model(monkeypatch):
    import hindsight_sd
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    args = parse(hindsight_sd.Args, "", [], "hindsight_sd")
    assert (args.student, args.fallback, args.lr) == ("toy/reader2", "mask", 1e-4)
    assert (args.teacher, args.ema) == ("ema", 0.01)
    args = parse(hindsight_sd.Args, "", ["--teacher", "frozen"], "hindsight_sd")
    assert (args.student, args.teacher, args.lr) == ("toy/reader2", "frozen", 1e-4)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    args = parse(hindsight_sd.Args, "", [], "hindsight_sd")
    assert (args.teacher, args.ema, args.fallback) == ("current", 0.05, "answer")


def test_the_toys_models_keep_the_toys_defaults_on_own_data(monkeypatch, tmp_path):
    """A user's own problems in the toy's language: no other model can read them, and none of the
    other defaults may be one of a large model."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    own = tmp_path / "mine.jsonl"
    own.write_text('{"problem": "a", "answer": "1"}')
    args = parsed("--data", own, "--student", "toy/reader")
    assert (args.lr, args.max_new_tokens, args.steps) == (1e-3, 160, 120)
    args = parse(WithTeacher, "", ["--data", str(own), "--teacher", "toy/teacher"], "opd")
    assert args.student == "toy/student"
    assert parse(WithTeacher, "", ["--teacher", "Qwen/Qwen3-4B"], "opd").student == "large"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert parse(WithTeacher, "", [], "opd").teacher == "toy/teacher"
    assert parse(WithTeacher, "", ["--data", str(own)], "opd").teacher == "larger"


def test_own_data_are_tested_on_what_is_held_out(tmp_path):
    own = tmp_path / "mine.csv"
    own.write_text("problem,answer\na,1\n")
    assert parsed("--data", own).benchmark == f"{own}:held-out"
    assert parsed("--data", own, "--benchmark", own).benchmark == str(own)      # refused later
    assert parsed("--data", "me/mine:main").benchmark == "me/mine:main:held-out"
    assert parsed("--data", own, "--benchmark", "math500").benchmark == "math500"
    with pytest.raises(Mistake, match="held out for tests; train on"):
        parsed("--data", f"{own}:held-out")
    for words in ("10 % of the problems are held out", "at most 500", "the same ones for every"):
        assert words in " ".join(help_texts(Common)["benchmark"].split())
    assert SHARE == .1 and MOST == 500


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
    check_packages(SimpleNamespace(**asked, device="cuda:0"))
    with pytest.raises(Mistake, match="--device is cuda:1, .*CUDA_VISIBLE_DEVICES"):
        check_packages(SimpleNamespace(**asked, device="cuda:1"))
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(Mistake, match="with several use --sampler own"):
        check_packages(SimpleNamespace(**asked))


# ------------------------------------------------------------------------ names of other programs


@pytest.mark.parametrize("script, given, flag", [
    ("opd", "--learning_rate", "--lr"),
    ("opd", "--learning-rate", "--lr"),
    ("opd", "--batch_size", "--prompts"),
    ("opd", "--per_device_train_batch_size", "--prompts"),
    ("opd", "--output_dir", "--out"),
    ("opd", "--epochs", "--steps"),
    ("grpo", "--num_train_epochs", "--steps"),
    ("grpo", "--num_generations", "--samples"),
    ("topd", "--model", "--student"),
    ("opd", "--teacher_model_name_or_path", "--teacher"),
    ("opd", "--dataset", "--data"),
    ("opd", "--max_length", "--max_new_tokens"),
    ("opd", "--max-new-tokens", "--max_new_tokens"),
    ("opd", "--gradient_accumulation_steps", "--micro_tokens"),
    ("hindsight_sd", "--kl_coef", "--beta"),
    ("opd", "--bf16", "--dtype"),
    ("opd", "--divergance", "--divergence"),
    ("evaluate", "--batch_size", "--batch"),
    ("evaluate", "--model_name_or_path", "--model"),
    ("evaluate", "--tasks", "--benchmark"),
    ("evaluate", "--output_dir", "--out"),
    ("evaluate", "--num_samples", "--n"),
])
def test_names_of_other_programs_get_the_right_flag(script, given, flag):
    module = importlib.import_module(script)
    with pytest.raises(Mistake) as refused:
        module.main([given, "1"])
    assert f"unrecognized arguments: {given} 1; did you mean {flag}?" in str(refused.value)


def test_what_nobody_can_know_gets_no_hint_and_every_hint_is_a_flag():
    assert meant("--frobnicate", {"--lr", "--out"}) == ""
    with pytest.raises(Mistake, match="--frobnicate; --help explains all flags"):
        Parser("text").parse_args(["--frobnicate"])
    flags = {"evaluate": "model benchmark n limit batch out".split(), "look": ["html"]}
    for script in ("opd", "topd", "ar_opd", "hindsight_sd", "grpo"):
        flags[script] = [f.name for f in fields(importlib.import_module(script).Args)]
    everywhere = {name for names in flags.values() for name in names}
    here = {name for names in SYNONYMS for name in names.split()}
    assert here <= everywhere and {n.removeprefix("--") for n in NOTES} <= everywhere
    # A name that is a flag itself is never reached.
    elsewhere = [name for names in SYNONYMS.values() for name in names.split()]
    assert len(elsewhere) == len(set(elsewhere))
    assert not set(elsewhere) & set(flags["opd"])
    assert "a batch is --prompts x --samples" in meant("--batch_size", {"--prompts", "--samples"})


# ------------------------------------------------------------------------ rates for adapters


def test_a_rate_for_adapters_is_ten_times_the_scripts_own_wherever_one_is_recommended():
    """The README recommended 1e-4 for Hindsight SD, a hundred times its own rate."""
    from common import fits
    for script in ("opd", "topd", "ar_opd", "hindsight_sd", "grpo"):
        method = importlib.import_module(script)
        own = {f.name: f for f in fields(method.Args)}["lr"].metadata["either"][1]
        rows = fits.settings(parse(method.Args, "", ["--data", "gsm8k"], script))
        rates = {row["lr"] for row in rows if "lora" in row}
        assert len(rates) == 1 and rates.pop() == pytest.approx(10 * own), script
    readme = " ".join((ROOT / "README.md").read_text().split())
    assert not re.search(r"--lora \d+ --lr", readme)  # nothing that this test does not see
    assert ("With `--lora` the learning rate is ten times the script's own, a common rule, not "
            "measured here.") in readme


@pytest.mark.parametrize("words", [
    ("--student", "large", "--data", "toy_math.jsonl"), ("--student", "large", "--data", "toys/x.jsonl"),
    ("--student", "toy-model", "--data", "gsm8k"), ("--student", "toys/model", "--data", "gsm8k"),
    ("--student", "toy/mine", "--data", "gsm8k"),
])
def test_a_name_that_only_begins_like_the_toy_is_not_the_toy(words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "toys").mkdir()
    for name in ("toy_math.jsonl", "toys/x.jsonl"):
        (tmp_path / name).write_text('{"problem": "1 + 1", "answer": "2"}\n')
    assert parsed(*words).lr == 1e-5


@pytest.mark.parametrize("words", [
    ("--student", "toy/student"), ("--data", "toy"), ("--student", ROOT / "toy/reader", "--data", "gsm8k"),
    ("--student", "./toy/student", "--data", "toy/train.jsonl"),
])
def test_what_is_the_toy(words, monkeypatch):
    monkeypatch.chdir(ROOT)
    assert parsed(*words).lr == 1e-3


def test_a_large_model_on_the_toys_problems_keeps_its_own_rate_and_teacher(tmp_path, monkeypatch):
    """The toy's rate is a hundred times as high: it is for models of half a million weights."""
    args = parse(WithTeacher, "", ["--student", "Qwen/Qwen3-0.6B", "--data", "toy"], "opd")
    assert (args.lr, args.teacher, args.steps) == (1e-5, "larger", 120)
    own = tmp_path / "mine"     # a folder can hold a model that was trained on the toy
    own.mkdir()
    assert parsed("--student", own, "--data", "toy").lr == 1e-3
