"""How large things are: the memory of the machine, and a model before it is loaded."""

import contextlib
import ctypes
import os
import sys
from dataclasses import fields
from pathlib import Path
from typing import NamedTuple

import torch

from common.arguments import Mistake, require
from common.hub import read_config


def human(size):
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024 or unit == "GiB":
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024


# ======================================================================== the machine

# Where a container's limit stands on Linux (control groups, versions 2 and 1).
CONTAINER_LIMITS = (
    Path("/sys/fs/cgroup/memory.max"),
    Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"),
)


class WindowsMemory(ctypes.Structure):
    """What Windows fills in: its MEMORYSTATUSEX."""

    _fields_ = [
        ("size", ctypes.c_uint32),  # bytes of this structure
        ("load", ctypes.c_uint32),
        ("total", ctypes.c_uint64),  # bytes of memory
        ("available", ctypes.c_uint64),  # bytes that no program uses
        ("others", ctypes.c_uint64 * 5),  # of the page file, and addresses
    ]


def windows_memory():
    """The memory of a machine with Windows. None: another system, or no answer."""
    if sys.platform != "win32":
        return None
    found = WindowsMemory(size=ctypes.sizeof(WindowsMemory))
    answered = ctypes.windll.kernel32.GlobalMemoryStatusEx(ctypes.byref(found))
    return found if answered else None


def machine_memory():
    """Bytes of memory of this machine, or of the container around this process. None: unknown."""
    windows = windows_memory()
    sizes = [windows.total] if windows else []
    with contextlib.suppress(AttributeError, ValueError, OSError):
        sizes.append(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    for file in CONTAINER_LIMITS:
        with contextlib.suppress(OSError, ValueError):  # "max": no limit
            sizes.append(int(file.read_text()))
    return min(sizes, default=None)


# ======================================================================== a model


WORDS = 151936  # rows of Qwen3's head; its tokenizer has 151,669 tokens


class Size(NamedTuple):
    """What decides the shape of a Qwen3."""

    width: int  # of the hidden states
    mlp: int  # width of the MLP
    layers: int
    heads: int  # of the queries
    keys: int  # heads of keys and values
    tied: bool = True  # is the head the embedding?
    head_dim: int = 128
    words: int = WORDS


# The default models. So their sizes are known before anything is downloaded.
QWEN3 = {
    "0.6B": Size(1024, 3072, 28, 16, 8),
    "1.7B": Size(2048, 6144, 28, 16, 8),
    "4B": Size(2560, 9728, 36, 32, 8),
    "8B": Size(4096, 12288, 36, 32, 8, tied=False),
}
OWNER = "Qwen/Qwen3-"


def qwen3_config(size, **more):
    """The configuration of a Qwen3 of this Size. `more` goes into it as it is."""
    from transformers import Qwen3Config

    return Qwen3Config(
        vocab_size=size.words,
        hidden_size=size.width,
        intermediate_size=size.mlp,
        head_dim=size.head_dim,
        num_hidden_layers=size.layers,
        num_attention_heads=size.heads,
        num_key_value_heads=size.keys,
        tie_word_embeddings=size.tied,
        **{"max_position_embeddings": 40960, **more},
    )


def model_shape(name, dtype=torch.float32):
    """A model of which every weight has a shape and no numbers (PyTorch's meta device), so it
    takes no memory and no time to load. None: its configuration cannot be read."""
    from transformers import AutoModelForCausalLM

    known = QWEN3.get(name.removeprefix(OWNER)) if name.startswith(OWNER) else None
    config = qwen3_config(known) if known else read_config(name)
    with contextlib.suppress(Exception), torch.device("meta"):
        return AutoModelForCausalLM.from_config(config, trust_remote_code=False).to(dtype)


def parameter_count(name):
    """The number of weights of a model that is not loaded yet. None: unknown."""
    model = model_shape(name)
    return model and sum(p.numel() for p in model.parameters())


LONG = 10**9  # bytes that take so long to load that a user wonders what is going on


def say_loading(name, device, dtype):
    """Name a large model before it is loaded. On a CPU, refuse one that cannot fit."""
    size = (parameter_count(name) or 0) * torch.empty(0, dtype=dtype).element_size()
    room = machine_memory() if device.type == "cpu" else None
    halved = dtype == torch.float32 and size / 2 <= (room or 0)
    require(
        room is None or size <= room,
        f"'{name}' takes {human(size)} and this machine has {human(room or 0)} of memory; choose a "
        f"smaller model{', or --dtype bfloat16, which halves it' if halved else ''}.",
    )
    if size >= LONG:
        print(f"loading {name} ({size / 1e9:.1f} GB) ...", flush=True)


# ======================================================================== a run


def check_machine(args, device, dtype):
    """On a CPU: refuse a run before anything is loaded if not even the weights, gradients and
    moments fit into the machine's memory. A system out of memory kills a process without a word.
    """
    room = machine_memory()
    # A self-teacher's --teacher is a choice like "ema" and names no model.
    models = [f for f in fields(args) if f.name in ("student", "teacher")]
    names = [f.name for f in models if "choices" not in f.metadata]
    sizes = {n: parameter_count(getattr(args, n)) for n in names} if device.type == "cpu" else {}
    if room is None or not sizes.get("student"):
        return

    def needed(half, lora):
        """{name: bytes} with --dtype bfloat16, with --lora. Adapters are small beside the rest."""
        width = 2 if half else 4
        # All weights learn: weight, gradient and moments, and the copies that autocast makes.
        learning = 8 + (8 if args.adam_bits == 32 else 2) + (2 if half else 0)
        each = {"student": width if lora else learning, "teacher": width}
        return {name: each[name] * size for name, size in sizes.items() if size}

    now = dtype != torch.float32, args.lora > 0
    parts = needed(*now)
    if sum(parts.values()) <= room:
        return
    ways = []
    for half, lora in ((True, now[1]), (now[0], True), (True, True)):
        total = sum(needed(half, lora).values())
        if total <= room:
            flags = " ".join(["--dtype bfloat16"] * half + ["--lora 32"] * lora)
            ways.append(f"{flags} needs {human(total)}; or choose")
    what = ", ".join(f"{n} {getattr(args, n)} {human(size)}" for n, size in parts.items())
    raise Mistake(
        f"This run needs at least {human(sum(parts.values()))} ({what}) and this machine has "
        f"{human(room)} of memory. {ways[0] if ways else 'Choose'} smaller models with "
        f"{' and '.join(f'--{name}' for name in parts)}."
    )
