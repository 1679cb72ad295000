"""Memory: what an update will take, what it took, and what happens when it does not fit.

`memory_budget` predicts the peak of one update before the run starts, so that a run that cannot
fit is refused at once, and not after an hour. `within_memory` makes an update and, if the GPU
runs out of memory all the same, makes it again in smaller pieces.
"""

import contextlib
import os
import re
import sys
from dataclasses import dataclass
from pathlib import Path

import torch

from common.arguments import is_out_of_memory, require
from common.cache import grown_columns
from common.models import cache_bytes
from common.processes import process
from common.size import machine_memory, windows_memory
from common.weights import trainable

# ======================================================================== measured


def peak_memory(device):
    """Bytes at the highest point so far. On a GPU: what PyTorch allocated. On a CPU: the resident
    memory of the process. None where the system does not say (Windows)."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        import resource
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # macOS counts bytes, Linux KiB


def resident_memory(device):
    """Bytes in use now, counted as in `peak_memory`."""
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device)
    with contextlib.suppress(OSError, ValueError, IndexError):
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")
    return peak_memory(device)  # no /proc here: the peak is the nearest number there is


def free_memory(device):
    """Bytes that are free for more tensors now. None: unknown. What other programs use is counted
    on a GPU, on Linux and on Windows, but not on macOS."""
    if device.type == "cuda":
        # PyTorch keeps memory that its tensors no longer need, and uses it again.
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + kept
    machine = machine_memory()
    if machine is None:
        return None
    free = [max(0, machine - (resident_memory(device) or 0))]
    with contextlib.suppress(OSError, TypeError):
        available = re.search(r"MemAvailable: +(\d+) kB", Path("/proc/meminfo").read_text())
        free.append(1024 * int(available[1]))
    windows = windows_memory()
    if windows:
        free.append(windows.available)
    return min(free)


def room_for_the_run(device):
    """Bytes that this process can have in all: what it has now, and what is free. None: unknown."""
    free = free_memory(device)
    return None if free is None else free + (resident_memory(device) or 0)


# ======================================================================== predicted: the parts


@dataclass
class Shape:
    """The numbers of a batch that decide how much memory its update takes."""

    rollouts: int  # per update: prompts x samples
    prompt_tokens: int  # of one prompt
    completion_tokens: int  # of one response, at most
    micro_tokens: int  # that go through a model at once
    chunk: int  # positions whose logits exist at once
    probes: int = 0  # texts that an evaluation writes at once, also with the teacher

    @property
    def tokens(self):
        return self.rollouts * (self.prompt_tokens + self.completion_tokens)


@dataclass
class Setup:
    """How and where the run computes."""

    dtype: torch.dtype  # of the computation; float16 and bfloat16 mean autocast for a student
    checkpointing: bool  # gradient checkpointing: keep each layer's input, compute the rest again
    adam_bits: int = 32  # of AdamW's two moments per weight
    engine: int = 0  # bytes that vLLM takes (0: common/sampler.py draws the rollouts)
    room: int | None = None  # bytes that the run can have (None: unknown)


def weight_bytes(model, shared_with=None):
    """Bytes of a model's weights as loaded. With --lora a copy shares with the student all
    weights that do not change. What it shares takes no memory twice, so it is left out."""
    shared = set() if shared_with is None else {id(p) for p in shared_with.parameters()}
    return sum(p.numel() * p.element_size() for p in model.parameters() if id(p) not in shared)


def count(parameters):
    return sum(p.numel() for p in parameters)


def all_learn(model):
    """False with --lora: there the weights are stored in the type of the computation, only the
    adapters learn, and the head gets no gradient."""
    return count(trainable(model)) == count(model.parameters())


def moment_bytes(model, bits):
    """Bytes that AdamW keeps: two moments per weight that learns.

    With 8 bits a moment takes one byte, and each block of 256 has a scale of 4 bytes.
    bitsandbytes keeps 32 bits for tensors below 4,096 numbers, and `adamw` for the embedding.
    """
    learning, embedding = trainable(model), model.get_input_embeddings().weight
    whole = count(p for p in learning if bits == 32 or p.numel() < 4096 or p is embedding)
    return 8 * whole + round((2 + 8 / 256) * (count(learning) - whole))


def autocast_copies(student, setup):
    """Under autocast a copy of every float32 weight is made, 2 bytes per weight, and kept until
    the context ends."""
    return 2 * count(student.parameters()) if is_half(setup) and all_learn(student) else 0


def is_half(setup):
    return setup.dtype != torch.float32


MOST_ROWS = 256  # texts that common/sampler.py writes at once, at most


def sampling_cache(student, teacher, shape, setup, held):
    """Keys and values of all texts that are written at once: the rollouts, or the answers of an
    evaluation, in which the teacher writes, too. held: bytes that are there always.

    The sampler takes fewer texts at once where the whole cache would not fit in half of the free
    memory (`rows_that_fit`), but at least one.
    """
    own = cache_bytes(student.config, setup.dtype)
    largest = own if teacher is None else max(own, cache_bytes(teacher.config, setup.dtype))
    # vLLM keeps the student's keys and values inside the share that it takes at the start.
    rollouts = 0 if setup.engine else min(shape.rollouts, MOST_ROWS)
    probes = 0 if setup.engine and teacher is None else shape.probes
    each = shape.prompt_tokens + shape.completion_tokens
    whole = each * max(rollouts * own, probes * largest)
    if setup.room is None:
        return whole
    return min(whole, max(each * own, int(setup.room - held) // 2))


def choice_bytes(student, shape):
    """The logits from which tokens are drawn, for a part of the texts (`sampler.choose`): two
    float32 matrices, and their probabilities, which are summed in float64, three times 8 bytes."""
    words = student.config.vocab_size
    rows = min(max(1, 2**24 // words), max(shape.rollouts, shape.probes), MOST_ROWS)
    return (2 * 4 + 3 * 8) * rows * words


def saved_in_layer(config, shape, setup):
    """Bytes that autograd saves in one layer for a micro-batch.

    The factors were fitted to measured peaks of random Qwen3 models (benchmarks/memory.py
    --budget). Per token they are a sum over the hidden width, the query heads, the key heads and
    the width of the MLP.
    """
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    queries, keys = config.num_attention_heads * head, config.num_key_value_heads * head
    width, mlp = config.hidden_size, config.intermediate_size
    if is_half(setup):
        per_token = 28.5 * width + 10 * queries + 11 * keys + 8 * mlp
    else:
        per_token = 25.5 * width + 16 * queries + 16 * keys + 17 * mlp
    return shape.micro_tokens * per_token


def activation_bytes(student, shape, setup):
    """Bytes that are kept from the forward pass of a micro-batch for its backward pass.

    With checkpointing these are 4 bytes per hidden number for every layer's input, and what
    autograd saves in the one layer that is being recomputed. Without, they are what autograd
    saves in all layers, and the copies of the weights that autocast made.
    """
    config = student.config
    layer = saved_in_layer(config, shape, setup)
    if setup.checkpointing:
        inputs = 4 * config.hidden_size * config.num_hidden_layers * shape.micro_tokens
        return round(inputs + layer)
    return round(layer * config.num_hidden_layers + autocast_copies(student, setup))


def head_gradient(student):
    """Bytes of the gradient of the head, which is a float32 matrix."""
    config = student.config
    return 4 * config.hidden_size * config.vocab_size if all_learn(student) else 0


def logit_bytes(student, teacher, shape, setup):
    """Bytes at the worst moment of a chunk. First there are five float32 matrices of logits (the
    logits of both models, their softmaxes, and a gradient). Then the head gets its gradient, which
    every chunk makes anew before it is added, and three of them are still there.

    In half precision there are also copies of the heads with float32 weights (`apply_head` of
    common/batches.py), and the head's gradient comes as a product in half precision.
    """
    matrix = 4 * shape.chunk * student.config.vocab_size
    copies, gradient = 0, head_gradient(student)
    if is_half(setup):
        heads = [m.get_output_embeddings().weight for m in (student, teacher) if m is not None]
        copies = sum(2 * head.numel() for head in heads if head.dtype == torch.float32)
        gradient += gradient // 2
    return copies + max(5 * matrix, 3 * matrix + gradient)


# ======================================================================== predicted: the peak

CACHE, LOOK_AHEAD = "KV cache while sampling", "teacher's cache of a micro-batch"
CHOICE = "logits while sampling"
ACTIVATIONS, LOGITS = "activations of a micro-batch", "logits of a chunk"


def memory_budget(student, teacher, shape, setup, more=(), teacher_cache=0):
    """(bytes of each part, predicted peak of one update in bytes).

    teacher: None if the student teaches itself.  more: other models that the run keeps.
    teacher_cache: as in topd.py, the teacher keeps the keys and values of a micro-batch, and adds
    so many columns to them. 0: it does not.
    The weights of all models and AdamW's moments are there always. The other parts come and go,
    so the peak is not their sum: see `highest_moment`.
    """
    held = {
        "student weights": weight_bytes(student),
        "AdamW moments": moment_bytes(student, setup.adam_bits),
        "teacher weights": 0 if teacher is None else weight_bytes(teacher, shared_with=student),
        "other weights": sum(weight_bytes(m) for m in more),
        "vLLM": setup.engine,
    }
    always = sum(held.values())
    parts = {
        **held,
        CACHE: sampling_cache(student, teacher, shape, setup, always),
        CHOICE: choice_bytes(student, shape),
        "student gradients": 4 * count(trainable(student)),
        ACTIVATIONS: activation_bytes(student, shape, setup),
        LOGITS: logit_bytes(student, teacher, shape, setup),
    }
    if teacher_cache:
        longest = shape.prompt_tokens + shape.completion_tokens
        columns = grown_columns(longest, teacher_cache)
        per_token = cache_bytes(teacher.config, setup.dtype)
        parts[LOOK_AHEAD] = round(shape.micro_tokens * per_token * columns / longest)
    return parts, round(always + highest_moment(parts, student, shape, setup))


def highest_moment(parts, student, shape, setup):
    """Bytes at the worst moment of an update, above what is there always."""
    gradients, activations, logits = parts["student gradients"], parts[ACTIVATIONS], parts[LOGITS]
    # With several micro-batches the gradients of the first one are there during the second.
    several = shape.micro_tokens < shape.tokens
    earlier = gradients if several else 0
    # With checkpointing no layer has been recomputed yet when the loss is computed.
    layer = saved_in_layer(student.config, shape, setup) if setup.checkpointing else 0
    return max(
        # Sampling. It is over before training begins, so only the larger of the two counts.
        parts[CACHE] + parts[CHOICE] + autocast_copies(student, setup),
        # The loss comes first in the backward pass: the logits of a chunk are there together
        # with everything that was saved. The gradient of the head is the first to be stored.
        activations - layer + logits + (gradients if several else head_gradient(student)),
        # The layers follow: their gradients come into being while what was saved goes. With
        # checkpointing the first layer is recomputed last, when the other gradients are there.
        activations + (gradients if several or setup.checkpointing else 0),
        # The optimizer's step.
        gradients,
        # topd.py: the teacher looks ahead from the micro-batch that it has just scored.
        parts.get(LOOK_AHEAD, 0) + logits + earlier,
    )


# ======================================================================== when it is not enough


def rows_that_fit(model, tokens):
    """How many texts of `tokens` tokens can be sampled at once. Their cache may take half
    of the free memory, because it is copied when it grows."""
    free, kind = free_memory(model.device), model.device.type
    if free is None:
        return MOST_ROWS
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else model.dtype
    return max(1, int(free / 2 // (tokens * cache_bytes(model.config, dtype))))


def within_memory(update, *arguments):
    """Call update(*arguments). If the GPU runs out of memory, halve --micro_tokens and make the
    same update again.

    How a batch is cut into micro-batches never changes the result, so only time is lost. Each
    halving is printed. The smaller size stays for the rest of the run.
    """
    from tqdm import tqdm

    optimizer = next(a for a in arguments if isinstance(a, torch.optim.Optimizer))
    # The flags are one of the arguments, or belong to one (`Compute` has them as `.args`).
    candidates = [*arguments, *(a.args for a in arguments if hasattr(a, "args"))]
    args = next(a for a in candidates if hasattr(a, "micro_tokens"))
    while True:
        before = steps_taken(optimizer)
        try:
            return update(*arguments)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            # Once the optimizer has made its step, the same update would be made twice. With
            # several processes the others would wait for this one.
            again = steps_taken(optimizer) == before and process()[1] == 1
            require(
                args.micro_tokens > 512 and again,
                "The GPU is out of memory; lower --micro_tokens or --chunk_logits and go on with "
                "--resume, or start a new run with a lower --max_new_tokens, --prompts or "
                "--samples, or with smaller models.",
            )
        # Not inside the except block: there the traceback still holds the tensors of the failed
        # attempt, and no memory would become free.
        optimizer.zero_grad(set_to_none=True)
        if before == 0:  # the moments may have been made for a part of the weights only
            optimizer.state.clear()
        args.micro_tokens //= 2
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        tqdm.write(
            f"out of memory: the same update again with --micro_tokens {args.micro_tokens}"
        )


def steps_taken(optimizer):
    """Steps that the optimizer has made; 0 before its first one, when it has no state yet."""
    return float(next((s["step"] for s in optimizer.state.values() if "step" in s), 0))
