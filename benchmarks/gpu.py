"""What a card does with these scripts: one command, less than ten minutes, no network.

    python benchmarks/gpu.py
        prints a table and writes benchmarks/cards/NAME-OF-THE-CARD.json
    python benchmarks/gpu.py --minutes 4
        with less time more is left out
    python benchmarks/gpu.py --dry_run
        the same steps with tiny models on a CPU; its figures say nothing

The models have the shapes of Qwen3 and random weights, so nothing has to be downloaded. Their
texts are token ids and never words. The largest models are taken whose predicted memory is
below nine tenths of what is free on the card. Below 16 GB that is a Qwen3-0.6B only with
8 bits (pip install bitsandbytes) or with adapters (pip install peft), else a smaller shape.

    machine         bytes/s of reading and copying memory, FLOP/s of a large matrix product
    decode          tokens/s of the sampler with and without recorded steps, against what the
                    bandwidth allows; do both give the model's own log-probabilities?
    opd ... grpo    an update of each script: its memory, predicted and measured, and seconds
    vllm            is vLLM's text the student's after every update? (if vllm is installed)
    trl             seconds of an update, ours and TRL's (if trl is installed)

Each part has a process of its own. So the next part finds an empty card, and a part that fails,
or takes longer than its share of the time, is only a line in the table. The file is written after
every part, so Ctrl-C keeps what is done.
"""

import contextlib
import datetime
import importlib.metadata
import importlib.util
import io
import itertools
import multiprocessing
import os
import platform
import re
import subprocess
import sys
import time
from functools import cache, partial
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

if __name__ == "__main__":
    os.environ["HF_HUB_OFFLINE"] = "1"
import torch  # noqa: E402

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
import ar_opd  # noqa: E402
import grpo  # noqa: E402
import hindsight_sd  # noqa: E402
import opd  # noqa: E402
import topd  # noqa: E402
from benchmarks import speed  # noqa: E402
from benchmarks.shapes import SHAPES, random_qwen3  # noqa: E402
from common import recorded  # noqa: E402
from common.arguments import Mistake, Parser, require, run_script, shorten  # noqa: E402
from common.batches import Compute, log_probabilities, pack, states  # noqa: E402
from common.files import make_folder, write_json  # noqa: E402
from common.flags import parse  # noqa: E402
from common.memory import Setup, Shape, memory_budget, peak_memory  # noqa: E402
from common.models import autocaster, compute_dtype, load_tokenizer  # noqa: E402
from common.sampler import sample  # noqa: E402
from common.size import human  # noqa: E402
from common.weights import adamw, adapt, checkpoint_layers, copy_of  # noqa: E402

SCRIPTS = {
    "opd": opd, "topd": topd, "ar_opd": ar_opd, "hindsight_sd": hindsight_sd, "grpo": grpo
}
TEXT = dict(capture_output=True, encoding="utf-8", errors="replace")  # of another program
SAMPLES = {"opd": 4, "topd": 4, "ar_opd": 1, "hindsight_sd": 8, "grpo": 8}  # their defaults

# ======================================================================== how much work


class Work(NamedTuple):
    """How large the work may be. A batch is (rollouts, tokens of a response)."""

    students: list  # shapes, the largest first
    teachers: list
    prompt: int  # tokens of a prompt
    batches: list  # the first is always measured, of the others the largest for which time is left
    decode: tuple  # a batch that is only sampled
    numbers: int  # that are read to measure the bandwidth
    matrix: int  # width of the matrices that are multiplied to measure FLOP/s


ON_A_CARD = Work(
    ["0.6B", "0.1B"], ["4B", "1.7B", "0.6B", "0.1B"], 128,
    [(16, 128), (64, 256), (64, 512)], (64, 128), 2**28, 8192,
)
DRY = Work(["tiny"], ["tiny"], 8, [(8, 6), (8, 12)], (8, 12), 2**20, 128)


class Place:
    """Where a part computes, how large its work may be, and until when."""

    def __init__(self, dry_run, seconds):
        self.on_gpu, self.work = not dry_run, DRY if dry_run else ON_A_CARD
        self.device = torch.device("cpu" if dry_run else "cuda")
        self.dtype = compute_dtype("auto", self.device)
        self.autocast = autocaster(self.device, self.dtype)
        self.room = torch.cuda.mem_get_info()[0] if self.on_gpu else 2**28  # free bytes
        self.end = time.monotonic() + seconds

    def left(self):
        return self.end - time.monotonic()


class Way(NamedTuple):
    """The models of an update, and what makes them fit."""

    student: str
    teacher: str
    adam_bits: int = 32
    lora: int = 0
    micro_tokens: int = 16384


def choose(method, place, batch, engine=0, whole=False):
    """The largest way whose predicted memory fits. engine: bytes of vLLM. whole: all weights
    learn, with 32 bits, as in TRL."""
    optimizers = [(32, 0)]
    if not whole:
        optimizers += [(8, 0)] if importlib.util.find_spec("bitsandbytes") else []
        optimizers += [(32, 32)] if importlib.util.find_spec("peft") else []
    teachers = place.work.teachers if method in ("opd", "topd") else [""]
    sizes = [16384, 8192, 4096]
    for student, (bits, lora), teacher, micro in itertools.product(
        place.work.students, optimizers, teachers, sizes
    ):
        way = Way(student, teacher, bits, lora, micro)
        models = models_of(method, way, place.dtype, "meta")
        if predicted(method, models, way, place, batch, engine) <= 0.9 * place.room:
            return way
    raise Mistake(
        f"Not even the smallest models fit into the {human(place.room)} that are free; close "
        "other programs that use the card."
    )


def model_of(shape, dtype, device, seed, lora=0):
    model = random_qwen3(SHAPES[shape], seed, device, dtype)
    if lora:
        with torch.device(device):
            adapt(model, lora)
    return model


sketch = cache(model_of)  # on PyTorch's device "meta" a model has shapes and no numbers


def models_of(method, way, dtype, device):
    """(student, teacher or None, frozen start or None), as the scripts load them."""
    build, teacher, start = sketch if device == "meta" else model_of, None, None
    student = build(way.student, dtype if way.lora else torch.float32, device, 0, way.lora)
    if way.teacher:
        teacher = build(way.teacher, dtype, device, 1).requires_grad_(False)
    if method == "ar_opd":
        teacher = copy_of(student)
    if method in ("hindsight_sd", "grpo"):
        start = build(way.student, dtype, device, 2).requires_grad_(False)
    return student, teacher, start


def predicted(method, models, way, place, batch, engine=0):
    """Bytes at the peak of an update, as the scripts predict them before they start."""
    (student, teacher, start), (rollouts, new) = models, batch
    # What a self-teacher reads before the response: a solution, or another rollout.
    privileged = {"ar_opd": place.work.prompt, "hindsight_sd": new}.get(method, 0)
    prompt = place.work.prompt + privileged
    shape = Shape(
        rollouts=rollouts,
        prompt_tokens=prompt,
        completion_tokens=new,
        micro_tokens=min(way.micro_tokens, rollouts * (prompt + new)),
        chunk=min(max(1, 2**24 // student.vocabulary), rollouts * new),
    )
    room = place.room if place.on_gpu else None
    setup = Setup(place.dtype, place.on_gpu, way.adam_bits, engine, room)
    more = [] if start is None else [start]
    return memory_budget(student, teacher, shape, setup, more, method == "topd")[1]


# ======================================================================== the parts


def machine(place):
    """The card, and what it can do at most."""
    yield {"name": platform.processor() or "cpu", "free_bytes": place.room}
    if place.on_gpu:
        card = torch.cuda.get_device_properties(0)
        yield {
            "name": card.name,
            "total_bytes": card.total_memory,
            "capability": f"{card.major}.{card.minor}",
            "driver": driver(),
        }
    yield {"dtype": str(place.dtype).removeprefix("torch.")}
    work = place.work
    read, peak = speed.machine(place.device, place.dtype, work.numbers, work.matrix)
    a, b = (torch.ones(work.numbers, device=place.device) for _ in range(2))
    copied = 2 * a.numel() * 4 / speed.fastest(place.device, lambda: a.copy_(b))
    yield {"read_bytes_per_second": read, "copied_bytes_per_second": copied}
    yield {"flop_per_second": peak}


def driver():
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        said = subprocess.run(command, **TEXT, timeout=20).stdout
        return said.strip().split("\n")[0] or None


class Stand(recorded.Replay):
    """A dry run has no card that records. It makes the step where a recording would run."""

    def __init__(self, step, inputs):
        self.step, self.inputs = step, [x.clone() for x in inputs]

    def __call__(self, *inputs):
        for x, new in zip(self.inputs, inputs):
            x.copy_(new)
        return self.step(*self.inputs)


def token_ids(rows, length, seed, vocabulary):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(vocabulary, (rows, length), generator=generator).tolist()


def decode(place):
    """Tokens/s of decoding with and without recorded steps, and whose log-probabilities they
    report."""
    work, (rows, new) = place.work, place.work.decode
    name = choose("opd", place, work.batches[0]).student
    student = random_qwen3(SHAPES[name], 0, place.device)
    prompts = token_ids(rows // 4, work.prompt, 0, student.vocabulary)
    step = speed.bytes_of_a_step(student, rows, work.prompt + new / 2, place.dtype)
    yield {"student": name, "rows": rows, "new_tokens": new, "bytes_per_step": step}
    if not place.on_gpu:
        recorded.Replay = Stand
    texts = {}
    for way, devices in (("plain", ()), ("recorded", (place.device.type,))):
        recorded.RECORDS = devices
        recorded.Replay.state.update(use=True, unchecked=3)
        said = io.StringIO()  # why a recording failed
        with contextlib.redirect_stderr(said):
            with place.autocast():
                keys = [(i,) for i in range(rows)]
                drawn = sample(student, prompts, n=4, max_new_tokens=new, keys=keys)
            seconds = speed.decode_seconds(student, prompts, 4, new, place.autocast)
        require(recorded.Replay.state["use"], said.getvalue().strip())
        texts[way] = [c.ids for c in drawn]
        distance = away(student, prompts, drawn[::4], place)
        yield {way: {"tokens_per_second": rows * (new - 1) / seconds, "away": distance}}
    yield {"equal_texts": sum(a == b for a, b in zip(*texts.values()))}


@torch.no_grad()
def away(model, prompts, drawn, place):
    """Mean distance, in nats a token, between the log-probabilities that a sampler reports and
    those of one pass over the whole text. drawn: a Completion for each prompt."""
    distances = []
    for prompt, completion in list(zip(prompts, drawn))[:8]:
        with place.autocast():
            ids, predicts, targets = pack([prompt], [completion.ids], place.device)
            logp = log_probabilities(model, states(model, ids, predicts))  # [N, V]
        logp = logp.gather(1, targets[:, None]).squeeze(1).cpu()  # [N]
        distances.append((logp - torch.tensor(completion.logprobs)).abs())
    return torch.cat(distances).mean().item()


# ======================================================================== an update


def settings(method, way, batch):
    """The flags of the script, as its command line would give them."""
    rollouts, new = batch
    flags = {
        "data": "toy",
        "prompts": rollouts // SAMPLES[method],
        "samples": SAMPLES[method],
        "max_new_tokens": new,
        "micro_tokens": way.micro_tokens,
    }
    if method == "topd":
        flags["window_size"] = max(2, min(50, new // 4))
    argv = [x for name, value in flags.items() for x in (f"--{name}", str(value))]
    return SCRIPTS[method].check(parse(SCRIPTS[method].Args, "", argv, method))


def one_update(method, models, optimizer, way, place, batch, step):
    """Rollouts, and an update on them. Returns the seconds of the phases."""
    (student, teacher, start), vocabulary = models, models[0].vocabulary
    args = settings(method, way, batch)
    compute, length = Compute(args, place.device, place.dtype, vocabulary), place.work.prompt
    rows = []
    for ids in token_ids(args.prompts, 2 * length, step, vocabulary):
        plain = ids[:length]
        rows.append({"ids": plain, "plain": plain, "partial": ids[: length * 3 // 2], "full": ids})
    compute.clock.start()
    with compute.phase("sample"), compute.autocast():
        draw = SCRIPTS[method].rollouts
        # The tokenizer is only asked for worked solutions, and there are none.
        drawn = draw(student, *([None] if method in ("opd", "ar_opd") else []), rows, args, step)
    # No random text is right. So every other verdict is made up.
    right = [i % 2 == 0 for i in range(len(drawn))]
    if method == "opd":
        opd.update(student, teacher, optimizer, drawn, args, compute)
    elif method == "topd":
        topd.update(student, teacher, optimizer, drawn, args, step, compute)
    elif method == "ar_opd":
        ar_opd.update(student, teacher, optimizer, rows, drawn, args, compute)
    elif method == "hindsight_sd":
        batch = rows, drawn, peers(rows, drawn, right, args.samples)
        hindsight_sd.update(student, student, start, optimizer, batch, args, compute)
    else:
        grpo.update(student, start, optimizer, (rows, drawn, right), args, compute)
    return compute.clock.stop()


def peers(rows, drawn, right, G):
    """Contexts in which every rollout has a peer: the first or the third of its group."""
    numbers = [i // G * G + (2 if i % G == 0 else 0) for i in range(len(drawn))]
    prompts = [rows[i // G]["ids"] + drawn[peer].ids for i, peer in enumerate(numbers)]
    return hindsight_sd.Contexts(right, numbers, prompts)


def update(method, place):
    """Memory and seconds of an update."""
    batches, left = place.work.batches, place.left
    way = choose(method, place, batches[-1])
    models = models_of(method, way, place.dtype, place.device)
    if place.on_gpu:  # the scripts' default there
        checkpoint_layers(models[0])
    optimizer = adamw(models[0], 1e-6, way.adam_bits)
    yield way._asdict()

    def measured(batch, step):
        if place.on_gpu:
            torch.cuda.reset_peak_memory_stats()
        seconds = one_update(method, models, optimizer, way, place, batch, step)
        found = {
            "rollouts": batch[0],
            "prompt_tokens": place.work.prompt,
            "new_tokens": batch[1],
            "predicted_bytes": predicted(method, models, way, place, batch),
            # Without a GPU this is the whole process, its libraries included.
            "measured_bytes": peak_memory(place.device),
            "seconds": seconds,
        }
        if place.on_gpu:  # what other programs see, with the gaps between tensors
            found["reserved_bytes"] = torch.cuda.max_memory_reserved()
        if method == "opd":
            chunk = 2**24 // models[0].vocabulary
            work = *batch[:1], place.work.prompt, *batch[1:], chunk, place.on_gpu
            found["flop"] = speed.work(*models[:2], *work)
        return found

    # The first update loads kernels and makes the optimizer's moments.
    one_update(method, models, optimizer, way, place, batches[0], 1)
    small = measured(batches[0], 2)
    yield small

    def expected(batch):  # seconds; a larger batch is rather faster per token
        tokens, of = (n * (place.work.prompt + new) for n, new in (batch, batches[0]))
        return small["seconds"]["total"] * tokens / of

    within = [batch for batch in batches[1:] if expected(batch) < left()]
    if within:
        yield measured(within[-1], 3)


# ======================================================================== beside other packages


def vllm(place):
    """After each of three updates: are vLLM's log-probabilities the student's? `moved` is how far
    the update took the student from the text that it had written before. It has to be far, or
    old weights would pass as new ones."""
    from common.vllm import TOLERANCE, attach

    share, batch, step_size = 0.3, place.work.batches[0], 1e-2
    total = torch.cuda.get_device_properties(0).total_memory if place.on_gpu else 0
    way = choose("opd", place, batch, engine=round(share * total))
    models = models_of("opd", way, place.dtype, place.device)
    student = models[0]
    if place.on_gpu:
        checkpoint_layers(student)
    with torch.no_grad():  # random weights find all tokens alike; now some are likely
        student.base_model.norm.weight.mul_(4)
    optimizer = adamw(student, step_size, way.adam_bits)
    args = SimpleNamespace(vllm_memory=share, max_new_tokens=batch[1])
    attach(student, load_tokenizer(str(ROOT / "toy/student")), args, place.dtype)
    yield {**way._asdict(), "rollouts": batch[0], "new_tokens": batch[1]}
    prompts = token_ids(8, place.work.prompt, 0, student.vocabulary)

    def draw():
        keys = [(i,) for i in range(len(prompts))]
        return sample(student, prompts, max_new_tokens=batch[1], keys=keys)

    found, before = {"away": [], "moved": [], "sample_seconds": []}, draw()
    for step in range(1, 4):
        seconds = one_update("opd", models, optimizer, way, place, batch, step)
        found["sample_seconds"].append(seconds["sample"])
        found["moved"].append(away(student, prompts, before, place))
        before = draw()
        found["away"].append(away(student, prompts, before, place))
        yield found
    distances = ", ".join(f"{x:.2f}" for x in found["away"])
    right = all(x <= TOLERANCE for x in found["away"])  # also False if one is NaN
    require(right, f"vLLM's text is not the student's: {distances} nats a token away.")
    require(
        min(found["moved"]) > TOLERANCE,
        "An update hardly moved the student, so old weights in vLLM would not have been noticed.",
    )


def trl(place):
    """Seconds of an update, ours and TRL's in turn, with the same models."""
    batch = place.work.batches[0]
    way = choose("opd", place, batch, whole=True)
    args = SimpleNamespace(
        shape=way.student,
        teacher=way.teacher,
        rollouts=batch[0],
        max_new_tokens=batch[1],
        updates=3,
        tokenizer=str(ROOT / "toy/student"),  # only its prompts are tokenized
    )
    yield {"student": way.student, "teacher": way.teacher, "rollouts": batch[0]}
    times, _, _ = speed.in_turn(speed.Bench(args, place.device))
    yield {"new_tokens": batch[1], "seconds": {arm: sorted(x)[1] for arm, x in times.items()}}


PARTS = {
    "machine": machine,
    "decode": decode,
    **{method: partial(update, method) for method in SCRIPTS},
    "vllm": vllm,
    "trl": trl,
}

# ======================================================================== one process for each


def child(pipe, name, dry_run, seconds):
    """Send what a part finds, as soon as it is found, and how it ended."""
    try:
        for found in PARTS[name](Place(dry_run, seconds)):
            pipe.send(found)
        pipe.send({"status": "done"})
    except Exception as error:
        kind = "" if isinstance(error, Mistake) else f"{type(error).__name__}: "
        why = str(error).replace(str(Path.home()), "~")  # the file is made to be shown to others
        pipe.send({"status": f"failed: {kind}{shorten(why, 200)}"})


def run_part(name, dry_run, seconds):
    """What a part found, and under "status" how it ended: done, failed, or left out."""
    # A forked process finds all packages loaded already. But it could not use a GPU.
    fork = dry_run and "fork" in multiprocessing.get_all_start_methods()
    if fork:
        importlib.import_module("transformers.models.qwen3.modeling_qwen3")
    context = multiprocessing.get_context("fork" if fork else "spawn")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=child, args=(theirs, name, dry_run, seconds))
    began, found = time.monotonic(), {}
    process.start()
    theirs.close()
    try:
        while "status" not in found:
            if ours.poll(max(0, began + seconds - time.monotonic())):
                found.update(ours.recv())
            else:
                found["status"] = f"left out: time, it takes more than {seconds:.0f} s"
    # The system ended it, for example because memory was short. Windows has its own error for that.
    except (EOFError, OSError):
        process.join(10)
        found["status"] = f"failed: its process ended with code {process.exitcode}"
    finally:
        process.join(10 if found.get("status") == "done" else 0)
        process.kill()
        process.join()
    return {**found, "part_seconds": round(time.monotonic() - began, 1)}


def run_parts(dry_run, minutes):
    """{part: what it found}, after each part. A part may take twice its share of the time that is
    left."""
    end, parts = time.monotonic() + 60 * minutes, {}
    for i, name in enumerate(PARTS):
        left = end - time.monotonic()
        limit = min(left, 2 * left / (len(PARTS) - i))
        if name in ("vllm", "trl") and not importlib.util.find_spec(name):
            parts[name] = {"status": "left out: not installed"}
        elif limit < 1:
            parts[name] = {"status": "left out: time"}
        else:
            print(f"{name} ...", file=sys.stderr, flush=True)
            parts[name] = run_part(name, dry_run, limit)
        yield parts


# ======================================================================== the record, the table


def about():
    """When, and with which code and packages."""

    def git(*command):
        with contextlib.suppress(OSError, subprocess.SubprocessError):
            done = subprocess.run(["git", *command], **TEXT, cwd=ROOT)
            return done.stdout.strip() if done.returncode == 0 else None

    versions = {"python": platform.python_version(), "system": platform.system()}
    for package in ("torch", "transformers", "triton", "bitsandbytes", "peft", "trl", "vllm"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[package] = importlib.metadata.version(package)
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "commit": git("rev-parse", "HEAD"),
        "changed_files": git("diff", "HEAD", "--name-only"),
        "cuda": torch.version.cuda,
        "versions": versions,
    }


def add_shares(parts):
    """How near each part comes to what the machine can do."""
    limits, sampled, learnt = (parts.get(n, {}) for n in ("machine", "decode", "opd"))
    reads = [limits[k] for k in limits if k.endswith("_bytes_per_second")]
    for way in ("plain", "recorded"):
        if reads and way in sampled:
            most = sampled["rows"] * max(reads) / sampled["bytes_per_step"]
            sampled[way]["of_bandwidth"] = sampled[way]["tokens_per_second"] / most
    if "flop" in learnt:
        seconds = learnt["seconds"]
        learnt["flop_per_second"] = {k: n / seconds[k] for k, n in learnt["flop"].items()}
        if "flop_per_second" in limits:
            peak = limits["flop_per_second"]
            learnt["of_peak"] = {k: n / peak for k, n in learnt["flop_per_second"].items()}


COLUMNS = "predicted measured total sample teacher student step other".split()


def table(record):
    """The lines of the table. An update's seconds are total, and then by phase."""
    parts, versions = record["parts"], record["versions"]
    packages = ", ".join(f"{k} {v}" for k, v in versions.items())
    lines = [f"{record['card']}; {packages}; commit {str(record['commit'])[:10]}"]
    lines += ["GiB at the peak of an update; seconds of its phases"]
    lines += [f"{'part':<13}" + "".join(f"{c:>10}" for c in COLUMNS) + "  "]
    for name, found in parts.items():
        numbers = [""] * len(COLUMNS)
        if "predicted_bytes" in found:
            sizes = found["predicted_bytes"], found["measured_bytes"]
            phases = found["seconds"]
            other = sum(v for k, v in phases.items() if k not in COLUMNS)
            seconds = [*(phases.get(c, 0.0) for c in COLUMNS[2:-1]), other]
            numbers = ["" if x is None else f"{x / 2**30:.2f}" for x in sizes]
            numbers += [f"{x:.2f}" for x in seconds]
        status = [] if found["status"] == "done" else [found["status"]]
        text = "; ".join([*remarks(name, found), *status])
        lines.append(f"{name:<13}" + "".join(f"{x:>10}" for x in numbers) + f"  {text}")
    return [line.rstrip() for line in lines]


def remarks(name, found):
    """What the table says about a part beside the numbers of an update."""
    said = []
    if "flop_per_second" in found and name == "machine":
        copied, read = (found[f"{k}_bytes_per_second"] / 1e9 for k in ("copied", "read"))
        peak = found["flop_per_second"] / 1e12
        said += [f"{read:.0f} GB/s read, {copied:.0f} copied, {peak:.1f} TFLOP/s {found['dtype']}"]
    if "rollouts" in found:
        way = found["student"] + (f" <- {found['teacher']}" if found.get("teacher") else "")
        way += " adam 8 bits" if found.get("adam_bits") == 8 else ""
        way += f" lora {found['lora']}" if found.get("lora") else ""
        said += [f"{way}, {found['rollouts']} x {found.get('new_tokens', '?')} tokens"]
    for phase, share in found.get("of_peak", {}).items():
        said += [f"{phase} {100 * share:.0f} % of the peak FLOP/s"]
    for way in ("plain", "recorded"):
        if way in found:
            x = found[way]
            limit = f" ({100 * x['of_bandwidth']:.0f} %)" if "of_bandwidth" in x else ""
            speed_of = f"{x['tokens_per_second']:,.0f} tokens/s{limit}"
            said += [f"{way} {speed_of}, {x['away']:.4f} nats away"]
    if "recorded" in found:
        ratio = found["recorded"]["tokens_per_second"] / found["plain"]["tokens_per_second"]
        said += [f"recorded / plain {ratio:.2f}"]
    if name == "vllm" and "away" in found:
        pairs = zip(found["away"], found["moved"])
        said += [f"away {a:.3f} nats where the update moved {m:.2f}" for a, m in pairs]
    if name == "trl" and "seconds" in found:
        x = found["seconds"]
        ratio = x["ours"] / x["TRL"]
        said += [f"ours {x['ours']:.2f} s, TRL {x['TRL']:.2f} s, ratio {ratio:.2f}"]
    return said


def free_file(folder, card):
    """A file for this card that does not exist yet: earlier figures are kept."""
    slug = re.sub("[^a-z0-9]+", "-", card.lower()).strip("-") or "card"
    names = itertools.chain([slug], (f"{slug}-{i}" for i in itertools.count(2)))
    return next(f for n in names if not (f := folder / f"{n}.json").exists())


def main():
    p = Parser(__doc__)
    p.add_argument("--minutes", type=float, default=9, help="time for all parts (default 9)")
    p.add_argument("--dry_run", action="store_true", help="tiny models on a CPU")
    p.add_argument("--out", help="folder (default benchmarks/cards; of a dry run: runs/gpu)")
    args = p.parse_args()
    require(args.minutes > 0, f"--minutes is {args.minutes}; it must be above 0.")
    require(
        args.dry_run or torch.cuda.is_available(),
        "There is no GPU that PyTorch can use here; --dry_run goes through the same steps with "
        "tiny models on a CPU.",
    )
    folder = make_folder(args.out or ROOT / ("runs/gpu" if args.dry_run else "benchmarks/cards"))
    file = None
    for parts in run_parts(args.dry_run, args.minutes):
        add_shares(parts)
        card = "dry run" if args.dry_run else parts["machine"].get("name", "unknown card")
        record = {"card": card, **about(), "parts": parts}
        file = file or free_file(folder, card)
        write_json(file, record)  # after every part: Ctrl-C loses the part in progress only
    print("\n".join(table(record)))
    print(f"written to {file}")


if __name__ == "__main__":
    run_script(main)
