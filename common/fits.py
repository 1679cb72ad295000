"""Does a run fit? Of the settings below, the largest that fits into the free memory is chosen. A
run that cannot fit into the memory or onto the disk is refused.

The first setting is the default. Where its predicted peak is too large the next one is tried, and
so on. A flag that is given stays as it is. The toy fits everywhere, so nothing is chosen there.
"""

import functools
import shutil
from dataclasses import fields, replace
from importlib.util import find_spec

import torch

from common.arguments import Mistake, require
from common.data import is_toy
from common.hub import on_the_hub
from common.memory import (
    MOST_ROWS,
    Setup,
    Shape,
    count,
    free_memory,
    memory_budget,
    moment_bytes,
    room_for_the_run,
)
from common.processes import gather
from common.size import human, machine_memory, model_shape, parameter_count
from common.weights import adapt, copy_of, trainable

# ======================================================================== the table

# From the largest to the smallest. A smaller teacher comes before an adapter (--lora), because no
# learning rate of an adapter was measured here. A script without a second model has no --teacher.
# --max_new_tokens is not among the flags: it hardly changes the peak, because of longer texts the
# sampler writes fewer at once (`rows_that_fit`).
SETTINGS = (
    {"teacher": "Qwen/Qwen3-4B"},
    {"teacher": "Qwen/Qwen3-4B", "adam_bits": 8},
    {"teacher": "Qwen/Qwen3-1.7B"},
    {"teacher": "Qwen/Qwen3-1.7B", "adam_bits": 8},
    {"teacher": "Qwen/Qwen3-4B", "lora": 32},
    {"teacher": "Qwen/Qwen3-1.7B", "lora": 32},
)
# With each of them, the largest of these that fits. It changes the speed and never the result.
MICRO_TOKENS = (16384, 8192, 4096, 2048)

MARGIN = 0.9  # of the free memory; the rest is for libraries and for gaps between tensors
PROMPT = 200  # tokens, for the choice: the data are not loaded yet. GSM8K's prompts are shorter.
PACKAGES = {"lora": "peft", "adam_bits": "bitsandbytes"}


def settings(args):
    """The settings of this script around the flags that are given: [{flag: value}]."""
    flags, rows = {f.name: f for f in fields(args)}, []
    for setting in SETTINGS:
        open_flags = {k: v for k, v in setting.items() if k in flags and k not in args.given}
        if not teacher_is_a_model(args):
            open_flags.pop("teacher", None)
        if open_flags.get("lora", args.lora) and "lr" not in args.given:
            # Adapters need a larger rate. Ten times is a common rule; it was not measured here.
            open_flags["lr"] = float(f"{10 * flags['lr'].metadata['either'][1]:.0e}")
        sizes = [args.micro_tokens] if "micro_tokens" in args.given else MICRO_TOKENS
        rows += [{**open_flags, "micro_tokens": size} for size in sizes]
    return [row for i, row in enumerate(rows) if row not in rows[:i]]


def teacher_is_a_model(args):
    """False where the student is its own teacher: there --teacher is a choice like "ema"."""
    return any(f.name == "teacher" and "choices" not in f.metadata for f in fields(args))


# ======================================================================== the choice


def choose(args, device, dtype):
    """Set the flags that are not given to the largest setting that fits, and say so."""
    names = [str(getattr(args, name, "")) for name in ("data", "student", "teacher")]
    # A resumed run goes on as it began, even if another amount of memory is free now.
    toy = any(is_toy(name) for name in names if name) and not on_the_hub(args.student)
    if args.resume or toy:
        return
    require(
        not all(too_small(row, args) for row in settings(args)),
        f"--student {args.student} has no fewer weights than {SETTINGS[0]['teacher']}, the largest "
        "teacher that is chosen without a flag; name a better one with --teacher.",
    )
    # Several processes must choose alike: the one with the least memory decides.
    free = min(gather(free_memory(device) or 0))
    found = largest(args, device, dtype, free) if free else None
    if found is None:  # the memory or the shape of a model is not known
        return
    row, peak, missing = found
    hint = "".join(f"; pip install {package} would allow more" for package in missing)
    if peak > free:
        way = what_helps(replace(args, **row), device, dtype, free)
        raise Mistake(
            f"The smallest setting ({words(row)}) needs about {human(peak)} and {human(free)} "
            f"{'of the GPU' if device.type == 'cuda' else 'of memory'} are free; {way}choose "
            f"smaller models, or end other programs that take memory{hint}."
        )
    best, needed = settings(args)[0], free
    while predicted_peak(replace(args, **best), device, dtype, needed) > MARGIN * needed:
        needed += 2**30
    more = f"with {human(needed)} free it would be: {words(best)}"
    print(f"chosen   {words(row)}; about {human(peak)} of the {human(free)} that are free")
    print(f"         {'this is the largest setting' if needed == free else more}{hint}")
    for flag, value in row.items():
        setattr(args, flag, value)


def largest(args, device, dtype, free):
    """(setting, its predicted peak, packages without which larger ones were left out): the first
    setting that fits into `free` bytes, or else the last one. None: nothing can be predicted."""
    found, missing = None, []
    for row in settings(args):
        absent = [PACKAGES[f] for f in PACKAGES.keys() & row if not find_spec(PACKAGES[f])]
        # bitsandbytes is made for GPUs. A teacher must be larger than its student.
        if (row.get("adam_bits") == 8 and device.type != "cuda") or too_small(row, args):
            continue
        missing += [package for package in absent if package not in missing]
        if absent:
            continue
        peak = predicted_peak(replace(args, **row), device, dtype, free)
        if peak is None:
            return None
        found = row, peak, missing
        if peak <= MARGIN * free:
            break
    return found


def too_small(row, args):
    """Has the teacher of this setting no more weights than the student?"""
    return "teacher" in row and size_of(row["teacher"]) <= (size_of(args.student) or 0)


def what_helps(args, device, dtype, free):
    """The smallest change that makes this setting fit, as a part of a sentence. On a GPU both of
    these flags are on by default."""
    recompute, half = replace(args, gradient_checkpointing=True), torch.bfloat16
    ways = {
        "--gradient_checkpointing": (recompute, dtype),
        "--dtype bfloat16": (args, half),
        "--dtype bfloat16 --gradient_checkpointing": (recompute, half),
    }
    for flags, (changed, precision) in ways.items():
        if predicted_peak(changed, device, precision, free) <= free:
            return f"add {flags}, with which it fits, "
    return ""


def words(row):
    """The setting as it would stand on the command line."""
    texts = {k: f"{v:.0e}".replace("e-0", "e-") if k == "lr" else v for k, v in row.items()}
    return " ".join(f"--{flag} {text}" for flag, text in texts.items())


# ======================================================================== the prediction


def predicted_peak(args, device, dtype, room):
    """Bytes of an update with these flags, from the shapes of the models alone. room: bytes that
    the run can have. None: the shape of a model is not known."""
    student = shape(args.student, dtype if args.lora else torch.float32, args.lora)
    teacher, more = kept(args, student, dtype) if student is not None else (None, [])
    if student is None or (teacher is None and teacher_is_a_model(args)):
        return None
    batch = batch_shape(args, PROMPT, student.config.vocab_size)
    setup = memory_setup(args, student, device, dtype, room)
    return memory_budget(student, teacher, batch, setup, more, window_columns(args))[1]


def window_columns(args):
    """Columns that the windows of topd.py add to the teacher's cache: those of the rollout with the
    most candidates. 0 for other methods."""
    if not hasattr(args, "window_size"):
        return 0
    return max(2, round(args.candidate_share * args.max_new_tokens)) * args.window_size


@functools.cache
def shape(name, dtype, lora=0):
    model = model_shape(name, dtype)
    if not lora or model is None:
        return model
    with torch.device("meta"):
        return adapt(model, lora)


# A setting is tried with several --micro_tokens, and its models stay the same.
size_of, copied = functools.cache(parameter_count), functools.cache(copy_of)


def kept(args, student, dtype):
    """(teacher, other models) that a script keeps beside its student: what it passes to `begin`."""
    if teacher_is_a_model(args):  # opd.py, topd.py
        return shape(args.teacher, dtype), []
    kind, start = getattr(args, "teacher", "current"), None
    if hasattr(args, "beta") and (args.beta or kind == "frozen"):  # hindsight_sd.py, grpo.py
        start = shape(args.student, dtype)
    if kind == "current":
        teacher = None
    else:  # ar_opd.py, hindsight_sd.py
        teacher = start if kind == "frozen" and start is not None else copied(student)
    return teacher, [start] if start is not None and start is not teacher else []


def batch_shape(args, prompt, vocabulary):
    """prompt: tokens of a prompt. vocabulary: rows of the student's head."""
    rollouts, length = args.prompts * args.samples, prompt + args.max_new_tokens
    return Shape(
        rollouts=rollouts,
        prompt_tokens=prompt,
        completion_tokens=args.max_new_tokens,
        # A text that is longer than --micro_tokens goes through the model alone and whole.
        micro_tokens=min(max(args.micro_tokens, length), rollouts * length),
        chunk=min(max(1, args.chunk_logits // vocabulary), rollouts * args.max_new_tokens),
        # Evaluations answer --eval_n problems, or a part of them --samples times.
        probes=min(MOST_ROWS, args.eval_n * args.samples),
    )


def memory_setup(args, student, device, dtype, room):
    engine = 0
    if args.sampler == "vllm" and device.type == "cuda":
        engine = round(args.vllm_memory * torch.cuda.get_device_properties(device).total_memory)
    elif args.sampler == "vllm":
        # Without a GPU vLLM holds a copy of the weights, and 1 GiB for keys and values: that
        # size is set in common/vllm.py.
        engine = 2**30 + count(student.parameters()) * dtype.itemsize
    return Setup(dtype, with_checkpointing(args, device), args.adam_bits, engine, room)


def with_checkpointing(args, device):
    """Are activations computed again in the backward pass? On a GPU they are by default."""
    wanted = args.gradient_checkpointing
    return device.type == "cuda" if wanted is None else wanted


# ======================================================================== what is refused


def check_memory(total, device, flags):
    """Refuse what cannot fit before an hour is spent on it. flags: what the user can lower."""
    if device.type == "cuda":
        room = room_for_the_run(device)
        what, more = "of the GPU's memory are free for it", ""
    else:
        room = machine_memory()
        what, more = "is all that this machine has", ", add --gradient_checkpointing"
    require(
        room is None or total <= room,
        f"This run needs about {human(total)} and {human(room or 0)} {what}; lower {flags}{more}, "
        "or choose smaller models. A run that is resumed can only change --micro_tokens, "
        "--chunk_logits and --gradient_checkpointing.",
    )


def file_bytes(student, adam_bits, average=None):
    """Bytes of a checkpoint, and of final/. average: it is stored in checkpoints, too."""
    learning = 4 * count(trainable(student))  # float32
    checkpoint = learning * (1 if average is None else 2) + moment_bytes(student, adam_bits)
    return checkpoint, 4 * count(student.parameters())  # float32, with the adapters added


def check_disk(out, student, adam_bits, average=None):
    """Refuse a run whose files cannot fit onto the disk. A checkpoint is removed when the next one
    is complete. A run that was killed between the two has both of them, and if it had no update
    left, it writes final/ beside them when it is resumed."""
    checkpoint, final = file_bytes(student, adam_bits, average)
    there = sum(f.stat().st_size for f in out.rglob("*") if f.is_file())  # of a resumed run
    more = 2 * checkpoint + final - there
    free = gather(shutil.disk_usage(out).free)[0]  # the first process writes for all
    require(
        more <= free,
        f"Two checkpoints and the final model need about {human(more)} and the disk of '{out}' has "
        f"{human(free)} free; make room, choose an --out on another disk, or add --adam_bits 8 or "
        "--lora 32, which make checkpoints smaller.",
    )
