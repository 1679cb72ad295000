"""The flags that every training script has, and the checks that are done before any loading."""

import dataclasses
import importlib.util
import sys
from dataclasses import dataclass
from pathlib import Path

import torch

from common.arguments import choice, either, parse_arguments, require
from common.checkpoints import recall
from common.data import check_name, default_benchmark, is_toy
from common.hub import on_the_hub
from common.processes import process


@dataclass
class Common:
    """The flags that mean the same in every script. The Args of each script inherit them."""

    data: str = either("toy", "gsm8k")
    """training problems: toy, gsm8k, a file (.jsonl, .json, .csv, .tsv, .parquet) with the columns
    problem and answer, or a data set of the hub as OWNER/NAME or OWNER/NAME:CONFIGURATION"""
    benchmark: str | None = None
    """test problems of the evaluations during training (default: the test split of --data; of your
    own --data, 10 % of the problems are held out, at least 1 and at most 500, the same ones for
    every seed)"""
    steps: int = either(120, 200)
    """number of updates"""
    seed: int = 0
    """everything random follows from it: the order of the data and the rollouts"""
    out: str | None = None
    """folder for metrics, picture, checkpoints and the final model (default runs/SCRIPT-SEED)"""
    resume: bool = False
    """continue the run in --out from its last checkpoint"""
    eval_every: int = either(20, 50)
    """evaluate every so many updates, and before the first and after the last (0: only those
    two)"""
    eval_n: int = either(500, 200)
    """number of test problems in each evaluation; they are answered greedily"""
    save_every: int = 20
    """write a checkpoint every so many updates (0: only on Ctrl-C and at the end)"""
    show_every: int = 20
    """print one rollout with coloured tokens every so many updates (0: never)"""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1 ..."""
    dtype: str = choice("auto", "auto", "float32", "bfloat16", "float16")
    """precision of the computation (auto: on a GPU bfloat16, or float16 if the card only emulates
    bfloat16, as a T4; elsewhere float32); weights that learn are always float32"""
    micro_tokens: int = 16384
    """tokens, padding included, that go through a model at once; it changes memory and speed,
    never the result. Models of the hub get fewer where memory is short, see common/fits.py"""
    chunk_logits: int = 2**24
    """logits of one model that exist at once in the loss; 2^24 of them take 64 MiB"""
    gradient_checkpointing: bool | None = None
    """compute activations again in the backward pass: less memory, a third more time (default: on
    a GPU)"""
    lora: int = 0
    """rank of low-rank adapters (package peft); only they learn (0: all weights learn). With models
    of the hub they get ten times the script's --lr, a common rule; no rate was measured here"""
    adam_bits: int = choice(32, 32, 8)
    """bits of each of AdamW's two moments; 8 needs the package bitsandbytes and saves 6 bytes per
    weight outside the embedding"""
    sampler: str = choice("own", "own", "vllm")
    """what draws the rollouts: common/sampler.py, or the package vllm with the student's weights"""
    vllm_memory: float = 0.3
    """share of the GPU's memory for --sampler vllm"""


GROUPS = {  # the order of --help, after the script's own flags
    "the run": (
        "data benchmark steps seed out resume eval_every eval_n save_every show_every"
    ).split(),
    "device, memory and speed": (
        "device dtype micro_tokens chunk_logits gradient_checkpointing lora adam_bits sampler "
        "vllm_memory"
    ).split(),
}


def parse(cls, text, argv, script):
    """The command line as an object of `cls`. What cannot work is refused before any loading."""
    args = parse_arguments(cls, text, argv, GROUPS)
    # The file that called this function, or None for what is typed into an interpreter.
    caller = Path(sys._getframe(1).f_code.co_filename).resolve()
    args.script = str(caller) if caller.is_file() else None
    recall(args, script)
    # Without a GPU, or with a toy model or toy data, the toy's defaults apply.
    on_gpu = args.device != "cpu" and torch.cuda.is_available()
    open_flags = [f for f in dataclasses.fields(args) if "either" in f.metadata]
    # A self-teacher's --teacher is a choice like "ema" and names no model.
    names = [f.name for f in open_flags if "choices" not in f.metadata]
    named = [getattr(args, name) for name in ("data", "student", "teacher") if name in names]
    named = [name for name in named if name]
    toy = any(map(is_toy, named)) if named else not on_gpu
    # A large model on the toy's problems keeps its own rates and teacher: the toy's are for models
    # of half a million weights.
    large = args.student is not None and on_the_hub(args.student)
    for f in open_flags:
        if getattr(args, f.name) is None:
            small = toy and not (large and f.name in ("lr", "lam", "teacher"))
            setattr(args, f.name, f.metadata["either"][0 if small else 1])
    require(
        "teacher" not in names or args.student != args.teacher,
        f"--student and --teacher are both '{args.student}': it would learn nothing from itself; "
        "choose a better teacher.",
    )
    args.benchmark = args.benchmark or default_benchmark(args.data)
    check_name(args.data, "train")
    check_name(args.benchmark, "test")
    at_least(args, 1, "steps prompts samples max_new_tokens eval_n micro_tokens chunk_logits")
    at_least(args, 0, "eval_every save_every show_every")
    check_packages(args)
    in_range(args, "lora", "[0, 1024]", "it is a rank; 0: all weights learn")
    in_range(args, "lr", "(0, inf)")
    return args


def at_least(args, least, names):
    """Refuse a flag below its smallest value."""
    for name in names.split():
        text = f"at least {least}" if least else "0 (off) or more"
        value = getattr(args, name)
        require(value >= least, f"--{name} is {value}; it must be {text}.")


def in_range(args, name, interval, hint=""):
    """Refuse a flag outside of an interval like "[0, 1)": a round bracket excludes its end."""
    value = getattr(args, name)
    low, high = (float(x) for x in interval[1:-1].split(","))
    inside = low <= value if interval[0] == "[" else low < value
    inside = inside and (value <= high if interval[-1] == "]" else value < high)
    hint = f" ({hint})" if hint else ""
    require(inside, f"--{name} is {value}; it must lie in {interval}{hint}.")


def check_packages(args):
    """Refuse --sampler vllm and --adam_bits 8 where they cannot work: packages that are missing,
    temperatures that vLLM does not have, several processes."""
    in_range(args, "vllm_memory", "(0, 1)", "it is a share of the GPU's memory")
    if args.sampler == "vllm":
        require(
            importlib.util.find_spec("vllm"),
            "--sampler vllm needs the package vllm, which is not installed: pip install vllm.",
        )
        heat = getattr(args, "temperature", 1.0)
        require(
            heat <= 2,
            f"--temperature is {heat}; vLLM allows 2 at most, --sampler own allows any.",
        )
        device = getattr(args, "device", "auto")
        require(
            device in ("auto", "cpu", "cuda", "cuda:0"),
            f"--device is {device}, and --sampler vllm takes the first GPU that it sees; set "
            "CUDA_VISIBLE_DEVICES to the number of yours and use --device cuda.",
        )
        require(
            process()[1] == 1,
            "--sampler vllm works with one process; with several use --sampler own.",
        )
    require(
        getattr(args, "adam_bits", 32) == 32 or importlib.util.find_spec("bitsandbytes"),
        "--adam_bits 8 needs the package bitsandbytes, which is not installed: "
        "pip install bitsandbytes.",
    )
