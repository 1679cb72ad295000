"""Does a run fit? What the scripts choose on simulated cards of 8 to 24 GB, what a given flag does
to it, and what is refused: for lack of memory, of a package, or of room on the disk."""
import contextlib
import functools
import importlib
from collections import namedtuple
from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch
from conftest import ROOT, tiny_qwen3

import opd
from benchmarks import memory as benchmark
from benchmarks.shapes import QWEN3, WORDS, random_qwen3
from common import checkpoints, fits, models
from common.arguments import Mistake
from common.flags import parse
from common.memory import Setup, Shape, memory_budget
from common.size import parameter_count
from common.weights import adamw, adapt, copy_of, trained

# Imported here: bitsandbytes looks for a GPU when it is imported, and some tests pretend one.
for package in ("bitsandbytes", "peft"):
    pytest.importorskip(package)

CPU, GPU, GIB = torch.device("cpu"), torch.device("cuda"), 2**30
SCRIPTS = ("opd", "topd", "ar_opd", "hindsight_sd", "grpo")
HALF = torch.bfloat16


def flags(script, *words):
    method = importlib.import_module(script)
    return method.check(parse(method.Args, "", ["--data", "gsm8k", *map(str, words)], script))


def chosen(script, free, *words, device=GPU, dtype=HALF):
    """The flags that are chosen where `free` GiB are free."""
    return fits.largest(flags(script, *words), device, dtype, free * GIB)[0]


class Started(Exception):
    """Raised where a script would load its tokenizer: it has made its choice by then."""


@pytest.fixture
def started(monkeypatch):
    """started(script, free, *flags): the flags of a script that was started on a simulated card."""
    seen, choose = [], fits.choose

    def watched(args, *more):
        seen.append(args)
        choose(args, *more)

    def no_tokenizer(name):
        raise Started

    monkeypatch.setattr(fits, "choose", watched)
    monkeypatch.setattr(models, "pick_device", lambda name: GPU)
    monkeypatch.setattr(models, "load_tokenizer", no_tokenizer)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device", lambda device: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: True)
    for name in ("memory_reserved", "memory_allocated"):
        monkeypatch.setattr(torch.cuda, name, lambda device: 0)

    def start(script, free, *words):
        info = round(free * GIB), 96 * GIB      # much of it is in use by others
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: info)
        with pytest.raises(Started):
            importlib.import_module(script).main([str(w) for w in words])
        return seen[-1]
    return start


# ------------------------------------------------------------------------ simulated cards


@functools.cache
def qwen(size, dtype, lora=0):
    model = random_qwen3(QWEN3[size], device="meta", dtype=dtype)
    with torch.device("meta"):
        return adapt(model, lora) if lora else model


def peak_of(script, args, free, prompt=200):
    """The predicted peak of a script's update, put together here by hand. prompt: its tokens."""
    student = qwen("0.6B", HALF if args.lora else torch.float32, args.lora)
    teacher, more = None, []
    if script in ("opd", "topd"):
        teacher = qwen(args.teacher.removeprefix("Qwen/Qwen3-"), HALF)
    elif script == "ar_opd":
        teacher = copy_of(student)
    else:
        more = [qwen("0.6B", HALF)] if args.beta else []
    assert args.prompts * args.samples == 64
    probes = min(256, 200 * args.samples)
    shape = Shape(64, prompt, args.max_new_tokens, args.micro_tokens, 2**24 // WORDS, probes)
    setup = Setup(HALF, True, args.adam_bits, room=free)
    return memory_budget(student, teacher, shape, setup, more, fits.window_columns(args))[1]


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_script_without_flags_starts_on_small_cards_with_a_peak_below_the_limit(
    script, started, tmp_path, capsys
):
    before = None
    for gigabytes in (24, 16, 12, 8):
        free = 0.9 * gigabytes * GIB
        args = started(script, free / GIB, "--out", tmp_path / str(gigabytes))
        peak = peak_of(script, args, free)
        assert peak <= fits.MARGIN * free
        # The contexts of ar_opd.py and hindsight_sd.py hold a solution or a rollout.
        longer = peak_of(script, args, free, prompt=1000)
        assert longer <= fits.MARGIN * free
        fits.check_memory(longer, GPU, "--prompts")     # what the script does later
        with pytest.raises(Mistake, match="of the GPU's memory are free for it"):
            fits.check_memory(round(free) + 1, GPU, "--prompts")
        first, second, *rest = capsys.readouterr().out.splitlines()
        assert not rest and first.startswith("chosen   --")
        assert f"about {peak / GIB:.1f} GiB of the {free / GIB:.1f} GiB that are free" in first
        assert f"--micro_tokens {args.micro_tokens};" in first
        for flag, neutral in (("lora", 0), ("adam_bits", 32)):
            value = getattr(args, flag)
            assert (f"--{flag} {value}" in first) == (value != neutral)
        is_largest = not args.lora and args.adam_bits == 32 and args.micro_tokens == 16384
        is_largest = is_largest and getattr(args, "teacher", "") != "Qwen/Qwen3-1.7B"
        assert ("this is the largest setting" in second) == is_largest
        assert ("GiB free it would be: --" in second) != is_largest
        if script in ("opd", "topd"):
            assert f"--teacher {args.teacher} " in first
        # a smaller card never gets more
        size = (args.lora, -args.adam_bits, -args.micro_tokens)
        assert before is None or args.lora or size >= before
        before = size


def test_what_a_larger_card_is_said_to_get_it_gets(started, tmp_path, capsys):
    started("opd", 7.2, "--out", tmp_path / "a")
    second = capsys.readouterr().out.splitlines()[1]
    free, words = second.split("with ")[1].split(" GiB free it would be: ")
    assert words == "--teacher Qwen/Qwen3-4B --micro_tokens 16384"
    assert fits.words(chosen("opd", float(free) + 0.1)) == words
    assert fits.words(chosen("opd", float(free) - 1.1)) != words


@pytest.mark.parametrize("script", SCRIPTS)
def test_shorter_responses_would_hardly_save_anything(script):
    """So --max_new_tokens is not chosen. Of longer texts the sampler writes fewer at once."""
    free = 0.9 * 8 * GIB
    args = replace(flags(script), **chosen(script, free / GIB))
    assert args.max_new_tokens == 512
    shorter = replace(args, max_new_tokens=256)

    def peaks(room):
        return [fits.predicted_peak(x, GPU, HALF, room) for x in (shorter, args)]

    short, long = peaks(free)
    assert short == pytest.approx(long, rel=0.02)
    short, long = peaks(None)       # if it always wrote all texts at once
    assert short < 0.8 * long


def test_the_readme_has_the_table_that_the_command_makes(monkeypatch, tmp_path):
    readme = (ROOT / "README.md").read_text()
    before, after = readme.split(benchmark.MARKS[0])[0], readme.split(benchmark.MARKS[1])[1]
    copy = tmp_path / "README.md"
    copy.write_text(f"{before}{benchmark.MARKS[0]}\nan old table\n{benchmark.MARKS[1]}{after}")
    monkeypatch.setattr(benchmark, "ROOT", tmp_path)
    benchmark.show_cards()
    assert copy.read_text() == readme, "run `python benchmarks/memory.py --cards`"
    table = readme.split(benchmark.MARKS[0])[1]
    assert "| 8 GB | 12 GB | 16 GB | 24 GB |" in table and all(f"| `{s}.py` |" in table for s in SCRIPTS)


# ------------------------------------------------------------------------ flags that are given


def test_a_given_flag_wins_and_the_others_are_chosen_around_it():
    assert "teacher" not in chosen("opd", 10.8, "--teacher", "Qwen/Qwen3-4B")
    assert chosen("opd", 14, "--teacher", "Qwen/Qwen3-4B")["lora"] == 32
    assert chosen("opd", 14, "--lora", 0)["teacher"] == "Qwen/Qwen3-1.7B"
    assert "lora" not in chosen("opd", 7, "--lora", 0)
    assert {*chosen("grpo", 10.8, "--adam_bits", 32)} == {"lora", "lr", "micro_tokens"}
    assert "micro_tokens" not in {
        k for k, v in chosen("opd", 7.2, "--micro_tokens", 512).items() if v != 512
    }
    assert "lr" not in chosen("opd", 7.2, "--lr", 3e-5)


def test_adapters_get_ten_times_the_scripts_rate_unless_one_is_given():
    for script in SCRIPTS:
        args = flags(script, "--lora", 8)
        own = next(f for f in fields(args) if f.name == "lr").metadata["either"][1]
        assert chosen(script, 60, "--lora", 8)["lr"] == pytest.approx(10 * own)
        assert "lr" not in chosen(script, 60, "--lora", 8, "--lr", 5e-5)
        assert "lr" not in chosen(script, 60)


def test_a_teacher_is_never_chosen_that_is_no_larger_than_the_student():
    for free in (60, 12, 3):
        row = chosen("opd", free, "--student", "Qwen/Qwen3-1.7B")
        assert row["teacher"] == "Qwen/Qwen3-4B"


def test_the_toy_is_left_alone_and_so_is_a_model_that_nobody_can_look_into(monkeypatch, capsys):
    monkeypatch.setattr(fits, "free_memory", lambda device: 1000)
    unknown = flags("grpo", "--student", "/nowhere/model")
    small = flags("opd", "--data", "toy"), flags("opd", "--student", "toy/student"), unknown
    for args in small:
        before = dict(vars(args))
        fits.choose(args, GPU, HALF)
        assert vars(args) == before
    monkeypatch.setattr(fits, "free_memory", lambda device: None)
    fits.choose(flags("opd"), GPU, HALF)
    assert capsys.readouterr().out == ""


def test_a_resumed_run_takes_what_it_began_with_however_much_is_free(started, tmp_path, capsys):
    out = tmp_path / "run"
    args = started("opd", 7.2, "--out", out)
    checkpoints.write_config(out, args, "opd.py")
    checkpoints.unlock(out)
    capsys.readouterr()
    again = started("opd", 90, "--out", out, "--resume")
    assert again.lora == 32 and again.lr == 1e-4 and "chosen" not in capsys.readouterr().out
    assert checkpoints.settings(again) == checkpoints.settings(args)


def test_processes_choose_for_the_one_with_the_least_memory(monkeypatch):
    monkeypatch.setattr(fits, "free_memory", lambda device: 90 * GIB)
    alone, together = flags("grpo"), flags("grpo")
    fits.choose(alone, GPU, HALF)
    monkeypatch.setattr(fits, "gather", lambda mine: [mine, 14 * GIB])
    fits.choose(together, GPU, HALF)
    assert alone.micro_tokens == 16384 and together.micro_tokens < 16384


def test_a_student_without_a_larger_teacher_in_the_table_is_refused(monkeypatch):
    """Otherwise Qwen3-8B would learn from the default teacher, which has half of its weights."""
    monkeypatch.setattr(fits, "free_memory", lambda device: 900 * GIB)
    with pytest.raises(Mistake, match="no fewer weights than Qwen/Qwen3-4B, .* with --teacher"):
        fits.choose(flags("topd", "--student", "Qwen/Qwen3-8B"), GPU, HALF)
    named = flags("topd", "--student", "Qwen/Qwen3-8B", "--teacher", "Qwen/Qwen3-4B")
    fits.choose(named, GPU, HALF)   # somebody's own choice
    assert named.micro_tokens == 16384
    alone = flags("grpo", "--student", "Qwen/Qwen3-8B")
    fits.choose(alone, GPU, HALF)
    assert alone.micro_tokens == 16384


# ------------------------------------------------------------------------ packages


def test_what_needs_a_missing_package_is_not_chosen_and_the_package_is_named(monkeypatch, capsys):
    monkeypatch.setattr(fits, "free_memory", lambda device: 21.6 * GIB)
    monkeypatch.setattr(fits, "find_spec", lambda name: None if name == "bitsandbytes" else name)
    args = flags("opd")
    fits.choose(args, GPU, HALF)
    assert (args.teacher, args.adam_bits, args.lora) == ("Qwen/Qwen3-1.7B", 32, 0)
    assert "pip install bitsandbytes would allow more" in capsys.readouterr().out
    monkeypatch.setattr(fits, "free_memory", lambda device: 7.2 * GIB)
    monkeypatch.setattr(fits, "find_spec", lambda name: None)
    with pytest.raises(Mistake) as refused:
        fits.choose(flags("opd"), GPU, HALF)
    said = str(refused.value)
    assert "needs about 13" in said and "7.2 GiB of the GPU are free" in said
    assert "pip install peft would allow more" in said


# ------------------------------------------------------------------------ on a CPU


def test_on_a_cpu_a_run_that_needs_more_than_the_memory_is_refused_with_what_helps(monkeypatch):
    """The models are known by name: nothing is asked of the hub."""
    monkeypatch.setattr("common.size.read_config", lambda name: pytest.fail(name))
    assert parameter_count("Qwen/Qwen3-4B") == 4_022_468_096
    monkeypatch.setattr(fits, "free_memory", lambda device: 14.4 * GIB)
    with pytest.raises(Mistake, match="14.4 GiB of memory are free; add --gradient_checkpointing"):
        fits.choose(flags("opd"), CPU, torch.float32)
    monkeypatch.setattr(fits, "free_memory", lambda device: 7.2 * GIB)
    with pytest.raises(Mistake, match="add --dtype bfloat16 --gradient_checkpointing, with which"):
        fits.choose(flags("opd"), CPU, torch.float32)
    monkeypatch.setattr(fits, "free_memory", lambda device: 2 * GIB)
    with pytest.raises(Mistake, match="are free; choose smaller models"):
        fits.choose(flags("opd"), CPU, torch.float32)
    # what was said to help does help, and nobody is sent to a package for GPUs
    args = flags("opd", "--gradient_checkpointing")
    row, peak, missing = fits.largest(args, CPU, torch.float32, 14.4 * GIB)
    assert peak < 14.4 * GIB and "adam_bits" not in row and missing == []


# ------------------------------------------------------------------------ as the scripts do it


CASES = [
    "opd", "topd", "ar_opd", "ar_opd --teacher frozen", "ar_opd --teacher current",
    "ar_opd --lora 4", "hindsight_sd", "hindsight_sd --beta 0", "hindsight_sd --teacher ema",
    "hindsight_sd --teacher frozen", "hindsight_sd --teacher frozen --beta 0",
    "hindsight_sd --teacher ema --beta 0 --lora 4", "grpo", "grpo --beta 0.1",
    "grpo --variant dapo --adam_bits 8", "opd --lora 4 --no-gradient_checkpointing",
]


@pytest.mark.parametrize("case", CASES)
def test_the_models_that_are_counted_are_those_that_the_script_keeps(case, monkeypatch, tmp_path):
    script, *words = case.split()
    method, kept = importlib.import_module(script), {}

    def begin(run, student, optimizer, *, teacher=None, more=(), teacher_cache=False, **_):
        columns = fits.window_columns(run.args) if teacher_cache else 0
        kept.update(args=run.args, models=(student, teacher), more=(list(more), columns))
        raise Started

    monkeypatch.setattr(method.Run, "begin", begin)
    with pytest.raises(Started):
        method.main([*words, "--data", "toy", "--device", "cpu", "--out", str(tmp_path / "run")])
    args, (student, teacher) = kept["args"], kept["models"]
    shape = fits.batch_shape(args, fits.PROMPT, student.config.vocab_size)
    setup = fits.memory_setup(args, student, CPU, torch.float32, None)
    counted = memory_budget(student, teacher, shape, setup, *kept["more"])[1]
    assert fits.predicted_peak(args, CPU, torch.float32, None) == counted


def test_the_shape_of_a_batch_and_the_share_of_vllm():
    args = flags("opd", "--prompts", 2, "--samples", 4, "--max_new_tokens", 20, "--eval_n", 5)
    args.micro_tokens, args.chunk_logits = 1000, 2000
    shape = fits.batch_shape(args, 10, 50)
    # no more at once than there is
    assert (shape.prompt_tokens, shape.micro_tokens, shape.chunk) == (10, 8 * 30, 40)
    assert shape.rollouts == 8 and shape.probes == 20
    args.micro_tokens, args.chunk_logits, args.eval_n = 64, 10, 500
    shape = fits.batch_shape(args, 10, 50)
    assert (shape.micro_tokens, shape.chunk, shape.probes) == (64, 1, 256)
    # a text is never cut: one that is longer than --micro_tokens goes through the model alone
    assert fits.batch_shape(args, 100, 50).micro_tokens == 120
    args.sampler, model = "vllm", tiny_qwen3()
    assert fits.memory_setup(args, model, CPU, torch.float32, None).engine == 2**30 + 4 * 20256


# ------------------------------------------------------------------------ the disk


class Tokenizer:
    def save_pretrained(self, folder):
        pass


@pytest.mark.parametrize("lora", [0, 4])
@pytest.mark.parametrize("averaged", [False, True])
def test_the_predicted_files_are_those_that_are_written(lora, averaged, tmp_path):
    student = tiny_qwen3(vocabulary=2000, width=96)
    if lora:
        student = adapt(student, lora)
    average, optimizer = copy_of(student) if averaged else None, adamw(student, 1e-3)
    student(input_ids=torch.arange(5)[None]).logits.sum().backward()
    optimizer.step()
    extra = {"teacher": trained(average)} if averaged else {}
    written = checkpoints.save_checkpoint(tmp_path, 1, student, Tokenizer(), optimizer, extra)
    checkpoints.save_final(tmp_path, student, Tokenizer())
    sizes = [sum(f.stat().st_size for f in p.iterdir()) for p in (written, tmp_path / "final")]
    predicted = fits.file_bytes(student, 32, average)
    # Names, random states and settings take some further KiB.
    assert all(p * 0.95 < size < p * 1.05 + 60_000 for p, size in zip(predicted, sizes))


def test_final_can_lie_beside_two_checkpoints(monkeypatch, tmp_path):
    """A run that was killed when its last checkpoint was complete, and is continued."""
    for name in ("checkpoint-000001", "checkpoint-000002"):
        (tmp_path / name).mkdir()
    beside, prune = [], checkpoints._prune
    monkeypatch.setattr(checkpoints, "_prune", lambda out: (beside.extend(out.iterdir()), prune(out)))
    checkpoints.save_final(tmp_path, tiny_qwen3(), Tokenizer())
    assert {p.name for p in beside} == {"checkpoint-000001", "checkpoint-000002", "final"}
    assert {p.name for p in tmp_path.iterdir()} == {"checkpoint-000002", "final"}


def test_a_run_whose_files_do_not_fit_onto_the_disk_is_refused(monkeypatch, tmp_path):
    student, usage = tiny_qwen3(), namedtuple("usage", "total used free")
    checkpoint, final = fits.file_bytes(student, 32)
    assert checkpoint == 12 * 20256 and final == 4 * 20256

    def disk(free):
        monkeypatch.setattr(fits.shutil, "disk_usage", lambda path: usage(10**12, 0, free))
        fits.check_disk(tmp_path, student, 32)

    disk(2 * checkpoint + final)
    with pytest.raises(Mistake, match="need about 553.9 KiB and the disk of .* 553.9 KiB free"):
        disk(2 * checkpoint + final - 1)
    # of a resumed run one checkpoint is on the disk already
    (tmp_path / "checkpoint-000001").mkdir()
    Path(tmp_path, "checkpoint-000001", "state.pt").write_bytes(bytes(checkpoint))
    disk(checkpoint + final)


def test_a_script_on_a_full_disk_says_so_before_its_first_update(monkeypatch, tmp_path):
    import opd
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(fits.shutil, "disk_usage", lambda path: usage(10**12, 0, 1000))
    out = tmp_path / "run"
    with pytest.raises(Mistake, match="Two checkpoints and the final model need"):
        opd.main(["--data", "toy", "--device", "cpu", "--out", str(out)])
    assert not (out / "config.json").exists()       # the folder can be used again


def test_a_package_that_would_not_be_used_is_not_missing(monkeypatch):
    """bitsandbytes is for GPUs. On a CPU it would change nothing."""
    monkeypatch.setattr(fits, "find_spec", lambda name: None if name == "bitsandbytes" else True)
    args = parse(opd.Args, "", ["--device", "cpu", "--student", "Qwen/Qwen3-0.6B", "--teacher", "Qwen/Qwen3-4B",
                                "--data", "gsm8k"], "opd")
    _, _, missing = fits.largest(args, torch.device("cpu"), torch.float32, 8 * 2**30)
    assert missing == []
