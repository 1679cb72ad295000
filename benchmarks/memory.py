"""Peak memory of one update with Qwen3's real vocabulary of 151,936 tokens: ours and TRL's, in fresh processes, on the same token ids.

    pip install trl
    python benchmarks/memory.py                          completions of 256 to 4,096 tokens; on a GPU if there is one
    python benchmarks/memory.py --chunk_logits 16777216  ours with another chunk
    python benchmarks/memory.py --cards                  which models fit on cards of 8 to 24 GB, as predicted; needs no GPU and no weights
    python benchmarks/memory.py --budget                 predicted (what a script prints before it starts) against measured, over shapes

A randomly initialised Qwen3, small inside (width 128, two layers), so that head and logits are what counts; a teacher of the same shape; one rollout. What
is measured is the peak during one update (scoring, loss, backward, AdamW) above what the process held just before, after a short warm-up
update that brings the optimiser's state and the libraries' buffers into being. On a CPU that is resident memory, on a GPU what PyTorch allocated.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
from benchmarks.shapes import QWEN3, qwen3  # noqa: E402
from benchmarks.shapes import WORDS as V  # noqa: E402

PROMPT = 64

# What the budget is tried on. Widths, layers, heads and vocabulary are varied one by one; `auto` is float32 weights computing in bfloat16.
# fmt: off
SHAPES = {
    #                 width  MLP  head layers heads keys vocabulary rows prompt response checkpointing auto  log2(chunk)
    "base":           (256,  768,  64, 8,     4,    2,   5000,      4,   64,    960,     False,        False, 22),
    "checkpointing":  (256,  768,  64, 8,     4,    2,   5000,      4,   64,    960,     True,         False, 22),
    "wider":          (512, 1536, 128, 4,     4,    2,   5000,      4,   64,    960,     False,        False, 22),
    "more heads":     (256,  768,  64, 8,     8,    2,   5000,      4,   64,    960,     False,        False, 22),
    "more MLP":       (128, 1024,  32, 8,     4,    2,   5000,      4,   64,    960,     False,        False, 22),
    "words":          (256,  768,  64, 4,     4,    2,   60000,     2,   64,    960,     False,        False, 24),
    "words, checkp.": (256,  768,  64, 4,     4,    2,   60000,     2,   64,    960,     True,         False, 24),
    "bfloat16":       (256,  768,  64, 8,     4,    2,   5000,      2,   64,    448,     False,        True,  22),
    "bf16, checkp.":  (256,  768,  64, 8,     4,    2,   60000,     2,   64,    448,     True,         True,  24),
    "several micro":  (256,  768,  64, 8,     4,    2,   5000,      8,   64,    448,     False,        False, 22),
}

# GB, script, student, teacher (None: the student itself), prompts x samples, max_new_tokens, micro_tokens, rank of --lora, --adam_bits
CARDS = [
    (8, "opd.py", "0.6B", "1.7B", 64, 512, 4096, 32, 32),
    (8, "hindsight_sd.py", "0.6B", None, 64, 512, 8192, 32, 32),
    (12, "opd.py", "0.6B", "4B", 64, 512, 4096, 32, 32),
    (12, "hindsight_sd.py --beta 0", "0.6B", None, 64, 512, 2048, 0, 32),
    (12, "hindsight_sd.py", "0.6B", None, 64, 512, 4096, 0, 8),
    (16, "opd.py", "0.6B", "1.7B", 64, 512, 8192, 0, 32),
    (16, "opd.py", "0.6B", "1.7B", 64, 512, 16384, 0, 8),
    (16, "opd.py", "1.7B", "4B", 64, 512, 4096, 32, 32),
    (24, "opd.py", "0.6B", "4B", 64, 512, 16384, 0, 32),
    (24, "grpo.py --variant dapo", "1.7B", None, 64, 512, 8192, 0, 8),
    (24, "opd.py", "1.7B", "8B", 64, 1024, 4096, 32, 32),
    (24, "ar_opd.py", "4B", None, 64, 1024, 8192, 32, 32),
]
# fmt: on


def cards():
    """The README's table: predicted peaks of Qwen3 models that exist as shapes only (PyTorch's meta device)."""
    import torch

    import plumbing

    def shape(name, dtype, rank=0):
        model = qwen3(*QWEN3[name], device="meta", dtype=dtype)
        with torch.device("meta"):
            return plumbing.adapt(model, rank) if rank else model

    print("| card | script | student | teacher | flags | predicted peak |")
    for gigabytes, script, name, other, rollouts, new, micro, rank, bits in CARDS:
        room = gigabytes * 2**30
        student = shape(name, torch.bfloat16 if rank else torch.float32, rank)
        teacher = shape(other, torch.bfloat16) if other else None
        more = [shape(name, torch.bfloat16)] if script == "hindsight_sd.py" else []  # the frozen start
        if script == "ar_opd.py":
            teacher = plumbing.copy_of(student)
        _, total = plumbing.memory_budget(
            student,
            teacher,
            rollouts=rollouts,
            prompt_tokens=200,
            completion_tokens=new,
            micro_tokens=micro,
            chunk=2**24 // V,
            dtype=torch.bfloat16,
            checkpointing=True,
            more=more,
            room=room * 0.9,
            adam_bits=bits,
        )
        flags = f"`--micro_tokens {micro} --max_new_tokens {new}" + (
            f" --lora {rank} --lr 1e-4`" if rank else " --adam_bits 8`" if bits == 8 else "`"
        )
        said = "none, a verifier" if script.startswith("grpo") else "itself" if other is None else f"Qwen3-{other}"
        print(
            f"| {gigabytes} GB | `{script}` | Qwen3-{name} | {said} | {flags} | {total / 2**30:.1f} GiB{' !' * (total > 0.9 * room)} |"
        )


def models(device):
    import torch

    torch.set_num_threads(1)
    more = dict(head_dim=32, eos_token_id=1, pad_token_id=0)
    return [qwen3(128, 256, 2, 4, 2, seed=seed, **more).to(device) for seed in (0, 1)]


class Peak:
    """Peak memory above what was held at the start of the block, in bytes."""

    def __init__(self, device):
        self.device = device

    def __enter__(self):
        import torch

        if self.device == "cuda":
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
            self.before = torch.cuda.memory_allocated()
        else:
            Path("/proc/self/clear_refs").write_text("5")  # Linux: forget the peak so far
            self.before = self.status("VmRSS")
        return self

    def status(self, field):
        return 1024 * int(re.search(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text())[1])

    def __exit__(self, *_):
        import torch

        peak = torch.cuda.max_memory_allocated() if self.device == "cuda" else self.status("VmHWM")
        self.bytes = peak - self.before


def token_ids(length):
    import random

    rng = random.Random(length)
    return [rng.randrange(5, 151000) for _ in range(PROMPT)], [rng.randrange(5, 151000) for _ in range(length)]


def ours(length, device, chunk):
    import torch

    import opd
    import plumbing

    student, teacher = models(device)
    teacher.requires_grad_(False)
    flags = ["--data", "toy"] + (["--chunk_logits", str(chunk)] if chunk else [])
    args = opd.settle(plumbing.parse_arguments(opd.Args, "", flags))
    optimiser, clock = torch.optim.AdamW(student.parameters(), lr=1e-5, weight_decay=0.0), plumbing.Clock(torch.device(device))

    def update(n):
        prompt, response = token_ids(n)
        clock.start()
        opd.update(student, teacher, optimiser, ([prompt], [response], [False], [False]), args, clock, plumbing.no_autocast, V)

    update(16)
    with Peak(device) as peak:
        update(length)
    return peak.bytes


def trls(length, device, chunk):
    import torch
    from datasets import Dataset
    from trl import DistillationConfig, DistillationTrainer

    import plumbing

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
        data = Dataset.from_list([{"prompt": [{"role": "user", "content": "x"}]}])
        trainer = DistillationTrainer(
            model=student,
            teacher_model=teacher,
            args=config,
            train_dataset=data,
            processing_class=plumbing.load_tokenizer("toy/student"),
        )
    optimiser, model = torch.optim.AdamW(trainer.model.parameters(), lr=1e-5, weight_decay=0.0), trainer.model.train()

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
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)

    update(16)
    with Peak(device) as peak:
        update(length)
    return peak.bytes


def budget(name):
    """(predicted, measured) bytes of an update above what is held between updates."""
    import random

    import torch

    import opd
    import plumbing

    width, mlp, head, layers, heads, keys, vocabulary, rows, prompt, response, checkpointing, auto, chunk = SHAPES[name]
    torch.set_num_threads(1)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = torch.bfloat16 if auto else torch.float32
    made = [qwen3(width, mlp, layers, heads, keys, head_dim=head, words=vocabulary, seed=seed).to(device) for seed in (0, 1)]
    student, teacher = made[0], made[1].to(dtype).requires_grad_(False)
    if checkpointing:
        plumbing.checkpoint_layers(student)
    micro = rows * (prompt + response) // (4 if name == "several micro" else 1)
    flags = ["--data", "toy", "--chunk_logits", str(2**chunk), "--micro_tokens", str(micro)]
    args = opd.settle(plumbing.parse_arguments(opd.Args, "", flags))
    optimiser = torch.optim.AdamW(student.parameters(), lr=1e-5, weight_decay=0.0, fused=device.type == "cuda")
    clock, autocast, rng = plumbing.Clock(device), plumbing.autocaster(device, dtype), random.Random(0)

    def update(rows, prompt, response):
        prompts, responses = ([[rng.randrange(vocabulary) for _ in range(n)] for _ in range(rows)] for n in (prompt, response))
        clock.start()
        batch = (prompts, responses, [False] * rows, [False] * rows)
        opd.update(student, teacher, optimiser, batch, args, clock, autocast, vocabulary)

    update(1, 8, 8)
    with Peak(device.type) as peak:
        update(rows, prompt, response)
    parts, total = plumbing.memory_budget(
        student,
        teacher,
        rollouts=rows,
        prompt_tokens=prompt,
        completion_tokens=response,
        micro_tokens=micro,
        chunk=min(2**chunk // vocabulary, micro),
        dtype=dtype,
        checkpointing=checkpointing,
    )
    held = sum(parts[k] for k in ("student weights", "AdamW moments", "teacher weights"))
    return total - held, peak.bytes


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--lengths", default="256,512,1024,2048,4096", help="completion lengths (default 256,512,1024,2048,4096)")
    p.add_argument("--chunk_logits", type=int, default=0, help="of ours (default: that of opd.py)")
    p.add_argument("--budget", action="store_true", help="predicted against measured instead")
    p.add_argument("--cards", action="store_true", help="predicted peaks of Qwen3 models on cards of 8 to 24 GB instead")
    p.add_argument("--shape", help=argparse.SUPPRESS)
    p.add_argument("--worker", nargs=3, metavar=("WHO", "LENGTH", "DEVICE"), help=argparse.SUPPRESS)
    args = p.parse_args()
    if args.worker:
        who, length, device = args.worker
        print(json.dumps({"ours": ours, "TRL": trls}[who](int(length), device, args.chunk_logits)))
        return
    if args.cards:
        cards()
        return
    if args.shape:
        print(json.dumps(budget(args.shape)))
        return
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    # glibc keeps freed blocks of a few MiB for itself, and that looks like use; with a fixed threshold it gives them back.
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    print(f"{device}, torch {torch.__version__}; MiB above what was held before the update")
    if args.budget:
        print(f"{'shape':>16} {'predicted':>9} {'measured':>9} {'ratio':>6}")
        for name in SHAPES:
            done = subprocess.run([sys.executable, __file__, "--shape", name], capture_output=True, text=True, env=environment)
            if done.returncode:
                sys.exit(f"error: {name}: {done.stderr.strip().splitlines()[-1]}")
            predicted, measured = json.loads(done.stdout.strip().splitlines()[-1])
            print(f"{name:>16} {predicted / 2**20:9.0f} {measured / 2**20:9.0f} {predicted / measured:6.2f}", flush=True)
        return
    print(f"{'completion':>10} {'ours':>8} {'TRL':>8} {'ratio':>6}")
    for length in map(int, args.lengths.split(",")):
        found = {}
        for who in ("ours", "TRL"):
            command = [sys.executable, __file__, "--worker", who, str(length), device, "--chunk_logits", str(args.chunk_logits)]
            done = subprocess.run(command, capture_output=True, text=True, env=environment)
            if done.returncode:
                sys.exit(f"error: {who} at {length} tokens: {done.stderr.strip().splitlines()[-1]}")
            found[who] = int(done.stdout.strip().splitlines()[-1])
        print(
            f"{length:10d} {found['ours'] / 2**20:8.0f} {found['TRL'] / 2**20:8.0f} {found['ours'] / found['TRL']:6.2f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
