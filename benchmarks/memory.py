"""Peak memory of one update with Qwen3's real vocabulary of 151,936 tokens: ours and TRL's,
in fresh processes, on the same token ids.

    pip install trl
    python benchmarks/memory.py
        completions of 256 to 4,096 tokens; on a GPU if there is one
    python benchmarks/memory.py --chunk_logits 16777216
        ours with another chunk
    python benchmarks/memory.py --cards
        what the scripts choose on cards of 8 to 24 GB, as predicted; writes it into the README;
        needs no GPU and no weights
    python benchmarks/memory.py --budget
        predicted (what a script prints before it starts) against measured, for a few shapes

The models are two random Qwen3, small inside (width 128, two layers), so that head and
logits are what counts. There is one rollout. Measured is the peak during one update
(scoring, loss, backward pass, AdamW) above what the process held just before it. A short
update before that creates the optimizer's state and the buffers of the libraries. On a CPU
the number is resident memory, on a GPU it is what PyTorch allocated.
"""

import argparse
import importlib
import json
import os
import random
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
import opd  # noqa: E402
from benchmarks.shapes import WORDS, Size, random_qwen3  # noqa: E402
from common import fits  # noqa: E402
from common.arguments import Parser, run_script  # noqa: E402
from common.batches import Compute  # noqa: E402
from common.files import write_text  # noqa: E402
from common.flags import parse  # noqa: E402
from common.memory import Setup, Shape, memory_budget  # noqa: E402
from common.models import load_tokenizer  # noqa: E402
from common.weights import adamw, checkpoint_layers  # noqa: E402

# ======================================================================== --cards


CARDS = (8, 12, 16, 24)  # GB
FREE = 0.9  # of a card: a screen takes some, and a T4 "of 16 GB" has 14.6
SCRIPTS = ("opd", "topd", "ar_opd", "hindsight_sd", "grpo")
MARKS = "<!-- cards -->", "<!-- end of cards -->"


def cards():
    """The table of the README, a row for each script without flags and a column for each card: what
    common/fits.py chooses when peft and bitsandbytes are installed, and the predicted peak."""
    heads = ["", *[f"{gigabytes} GB" for gigabytes in CARDS]]
    table = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for script in SCRIPTS:
        method, cells = importlib.import_module(script), [f"`{script}.py`"]
        for gigabytes in CARDS:
            free = FREE * gigabytes * 2**30
            args = method.check(parse(method.Args, "", ["--data", "gsm8k"], script))
            row, peak, _ = fits.largest(args, torch.device("cuda"), torch.bfloat16, free)
            cells.append(f"{shortened(row)}: {peak / 2**30:.1f}")
        table.append(f"| {' | '.join(cells)} |")
    return "\n".join(table)


def shortened(row):
    """A setting in a few words: 1.7B, LoRA, 8k."""
    said = fits.words(row).split()
    flags = dict(zip(said[::2], said[1::2]))
    parts = [flags["--teacher"].rpartition("-")[2]] if "--teacher" in flags else []
    parts += ["LoRA"] * ("--lora" in flags) + ["8-bit"] * ("--adam_bits" in flags)
    return ", ".join([*parts, f"{int(flags['--micro_tokens']) // 1024}k"])


def show_cards():
    """Print the table, and put it into the README."""
    readme = ROOT / "README.md"
    before, rest = readme.read_text(encoding="utf-8").split(MARKS[0])
    after = rest.split(MARKS[1])[1]
    table = cards()
    print(table)
    write_text(readme, f"{before}{MARKS[0]}\n{table}\n{MARKS[1]}{after}")


# ======================================================================== measured


class Peak:
    """Peak memory above what was held at the start of the block, in bytes."""

    def __init__(self, device):
        self.on_gpu = device == "cuda"

    def __enter__(self):
        if self.on_gpu:
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
            self.before = torch.cuda.memory_allocated()
        else:
            Path("/proc/self/clear_refs").write_text("5")  # Linux: forget the peak so far
            self.before = self.status("VmRSS")
        return self

    def status(self, field):
        text = Path("/proc/self/status").read_text()
        return 1024 * int(re.search(rf"{field}:\s+(\d+) kB", text)[1])

    def __exit__(self, *_):
        peak = torch.cuda.max_memory_allocated() if self.on_gpu else self.status("VmHWM")
        self.bytes = peak - self.before


SMALL, PROMPT = Size(128, 256, 2, 4, 2, head_dim=32), 64


def models(device):
    torch.set_num_threads(1)
    ends = dict(eos_token_id=1, pad_token_id=0)
    return [random_qwen3(SMALL, seed, **ends).to(device) for seed in (0, 1)]


def token_ids(length):
    """A prompt and a response of this length."""
    rng = random.Random(length)
    return [[rng.randrange(5, 151000) for _ in range(n)] for n in (PROMPT, length)]


def settings(*flags):
    """The flags of opd.py, as its command line would give them."""
    return opd.check(parse(opd.Args, "", ["--data", "toy", *map(str, flags)], "opd"))


def our_peak(length, device, chunk_logits):
    student, teacher = models(device)
    teacher.requires_grad_(False)
    args = settings("--chunk_logits", chunk_logits) if chunk_logits else settings()
    optimizer = adamw(student, 1e-5)
    compute = Compute(args, torch.device(device), torch.float32, WORDS)

    def update(n):
        prompt, response = token_ids(n)
        batch = [prompt], [response], [False]
        opd.update(student, teacher, optimizer, batch, args, compute)

    update(16)
    with Peak(device) as peak:
        update(length)
    return peak.bytes


def trl_peak(length, device, chunk_logits):
    from datasets import Dataset
    from trl import DistillationConfig, DistillationTrainer

    student, teacher = models(device)
    with tempfile.TemporaryDirectory() as folder:
        config = DistillationConfig(
            output_dir=folder,
            beta=1.0,
            per_device_train_batch_size=1,
            report_to=[],
            use_cpu=device == "cpu",
            bf16=False,
            gradient_checkpointing=False,
        )
        trainer = DistillationTrainer(
            model=student,
            teacher_model=teacher,
            args=config,
            train_dataset=Dataset.from_list([{"prompt": [{"role": "user", "content": "x"}]}]),
            processing_class=load_tokenizer("toy/student"),
        )
    optimizer, model = adamw(trainer.model, 1e-5), trainer.model.train()

    def update(n):
        prompt, response = (torch.tensor([x], device=device) for x in token_ids(n))
        inputs = {
            "prompt_ids": prompt,
            "prompt_mask": torch.ones_like(prompt),
            "completion_ids": response,
            "completion_mask": torch.ones_like(response),
        }
        loss, *_ = trainer._compute_loss(model, inputs, torch.tensor(float(n), device=device))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    update(16)
    with Peak(device) as peak:
        update(length)
    return peak.bytes


PEAKS = {"ours": our_peak, "TRL": trl_peak}

# ======================================================================== --budget


class Case(NamedTuple):
    """An update for which the prediction is compared with the measured peak."""

    size: Size
    rows: int = 4  # rollouts
    response: int = 960  # tokens; a prompt has 64
    checkpointing: bool = False
    autocast: bool = False  # float32 weights that compute in bfloat16
    log_chunk: int = 22  # log2 of --chunk_logits
    parts: int = 1  # micro-batches


# Widths, layers, heads and vocabulary are varied one by one.
BASE = Size(256, 768, 8, 4, 2, head_dim=64, words=5000)
MANY_WORDS = BASE._replace(layers=4, words=60000)
CASES = {
    "base": Case(BASE),
    "checkpointing": Case(BASE, checkpointing=True),
    "wider": Case(BASE._replace(width=512, mlp=1536, head_dim=128, layers=4)),
    "more heads": Case(BASE._replace(heads=8)),
    "more MLP": Case(BASE._replace(width=128, mlp=1024, head_dim=32)),
    "words": Case(MANY_WORDS, rows=2, log_chunk=24),
    "words, checkp.": Case(MANY_WORDS, rows=2, log_chunk=24, checkpointing=True),
    "bfloat16": Case(BASE, rows=2, response=448, autocast=True),
    "bf16, checkp.": Case(
        BASE._replace(words=60000),
        rows=2,
        response=448,
        log_chunk=24,
        checkpointing=True,
        autocast=True,
    ),
    "several micro": Case(BASE, rows=8, response=448, parts=4),
}


def budget(name):
    """(predicted, measured) bytes of an update above what is held between updates."""
    case, words = CASES[name], CASES[name].size.words
    torch.set_num_threads(1)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = torch.bfloat16 if case.autocast else torch.float32
    student, teacher = (random_qwen3(case.size, seed).to(device) for seed in (0, 1))
    teacher = teacher.to(dtype).requires_grad_(False)
    if case.checkpointing:
        checkpoint_layers(student)
    micro_tokens = case.rows * (PROMPT + case.response) // case.parts
    args = settings("--chunk_logits", 2**case.log_chunk, "--micro_tokens", micro_tokens)
    optimizer, compute = adamw(student, 1e-5), Compute(args, device, dtype, words)
    rng = random.Random(0)

    def update(rows, prompt, response):
        prompts, responses = (
            [[rng.randrange(words) for _ in range(n)] for _ in range(rows)]
            for n in (prompt, response)
        )
        batch = prompts, responses, [False] * rows
        opd.update(student, teacher, optimizer, batch, args, compute)

    update(1, 8, 8)
    with Peak(device.type) as peak:
        update(case.rows, PROMPT, case.response)
    chunk = min(2**case.log_chunk // words, micro_tokens)
    shape = Shape(case.rows, PROMPT, case.response, micro_tokens, chunk)
    parts, total = memory_budget(student, teacher, shape, Setup(dtype, case.checkpointing))
    held = sum(parts[k] for k in ("student weights", "AdamW moments", "teacher weights"))
    return total - held, peak.bytes


# ======================================================================== fresh processes


def in_fresh_process(what, *arguments):
    """The numbers that this file prints when it is called with these arguments."""
    # glibc keeps freed blocks of a few MiB for itself, and that would count as use. With a
    # fixed threshold it gives them back.
    fixed = {"MALLOC_MMAP_THRESHOLD_": "65536", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, __file__, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **fixed})
    if done.returncode:
        sys.exit(f"error: {what}: {done.stderr.strip().splitlines()[-1]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def show_budget():
    print(f"{'shape':>16} {'predicted':>9} {'measured':>9} {'ratio':>6}")
    for name in CASES:
        predicted, measured = in_fresh_process(name, "--shape", name)
        ratio = predicted / measured
        print(
            f"{name:>16} {predicted / 2**20:9.0f} {measured / 2**20:9.0f} {ratio:6.2f}", flush=True
        )


def show_peaks(lengths, device, chunk_logits):
    print(f"{'completion':>10} {'ours':>8} {'TRL':>8} {'ratio':>6}")
    for length in lengths:
        peaks = [
            in_fresh_process(
                f"{who} at {length} tokens",
                *("--worker", who, length, device, "--chunk_logits", chunk_logits),
            )
            for who in PEAKS
        ]
        ours, trl = (peak / 2**20 for peak in peaks)
        print(f"{length:10d} {ours:8.0f} {trl:8.0f} {ours / trl:6.2f}", flush=True)


def main():
    p = Parser(__doc__)
    p.add_argument(
        "--lengths",
        default="256,512,1024,2048,4096",
        help="completion lengths (default 256,512,1024,2048,4096)",
    )
    p.add_argument(
        "--chunk_logits", type=int, default=0, help="of ours (default: that of opd.py)"
    )
    p.add_argument("--budget", action="store_true", help="predicted against measured instead")
    p.add_argument(
        "--cards",
        action="store_true",
        help="what the scripts choose on cards of 8 to 24 GB, for the README, instead",
    )
    # These two are for the fresh processes. --worker: ours or TRL, length, device.
    p.add_argument("--shape", choices=CASES, help=argparse.SUPPRESS)
    p.add_argument("--worker", nargs=3, help=argparse.SUPPRESS)
    args = p.parse_args()
    if args.worker:
        who, length, device = args.worker
        print(json.dumps(PEAKS[who](int(length), device, args.chunk_logits)))
        return
    if args.shape:
        print(json.dumps(budget(args.shape)))
        return
    if args.cards:
        show_cards()
        return
    device = "cuda" if torch.cuda.is_available() else "cpu"
    print(f"{device}, torch {torch.__version__}; MiB above what was held before the update")
    if args.budget:
        show_budget()
    else:
        show_peaks(map(int, args.lengths.split(",")), device, args.chunk_logits)


if __name__ == "__main__":
    run_script(main)
