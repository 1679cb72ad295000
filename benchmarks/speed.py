"""Seconds an update, ours and TRL's, in turn in one process: same models, prompts, batch, lengths and threads.

    pip install trl
    python benchmarks/speed.py                     the toy pair, 64 rollouts of at most 96 tokens, one thread
    python benchmarks/speed.py --updates 20 --threads 2

An update is everything: sampling, both models' scores, loss, backward, clipping, AdamW. TRL's trainer is built as a user would build it and driven
through its own `training_step`; both students start from the same weights and take steps of the same size. Medians over the updates and their
ratio, ours with its phases. Whatever else the machine does hits both: compare the ratio, not the seconds.
"""

import argparse
import os
import statistics as st
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
import torch  # noqa: E402

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
import opd  # noqa: E402
import plumbing  # noqa: E402
from evaluate import load_benchmark, prompt_ids  # noqa: E402


def ours(args, device):
    """A function of the step that makes one update and returns the number of tokens it sampled."""
    flags = ["--data", "toy", "--prompts", args.rollouts // 4, "--samples", 4, "--max_new_tokens", args.max_new_tokens]
    settings = opd.settle(plumbing.parse_arguments(opd.Args, "", list(map(str, flags))))
    tokenizer = plumbing.load_tokenizer(settings.student)
    student, teacher = (plumbing.load_model(name, device, torch.float32) for name in (settings.student, settings.teacher))
    teacher.requires_grad_(False)
    rows = load_benchmark("toy", "train")
    for r in rows:
        r["ids"] = prompt_ids(tokenizer, r["prompt"])
    optimiser, clock = torch.optim.AdamW(student.parameters(), lr=1e-4, weight_decay=0.0), plumbing.Clock(device)

    def update(step):
        clock.start()
        chosen = [rows[i] for i in plumbing.prompts_of_step(step, settings.prompts, len(rows), 0)]
        with clock.phase("sample"):
            batch = opd.rollouts(student, teacher, tokenizer, chosen, settings, step)
        opd.update(student, teacher, optimiser, batch, settings, clock, plumbing.no_autocast, len(tokenizer))
        return sum(map(len, batch[1])), clock.stop()

    return update


def trls(args, device):
    from datasets import Dataset
    from trl import DistillationConfig, DistillationTrainer

    tokenizer = plumbing.load_tokenizer("toy/student")
    student, teacher = (plumbing.load_model(f"toy/{name}", device, torch.float32) for name in ("student", "teacher"))
    rows = load_benchmark("toy", "train")
    config = DistillationConfig(
        output_dir=tempfile.mkdtemp(),
        beta=1.0,
        per_device_train_batch_size=args.rollouts,
        gradient_accumulation_steps=1,
        max_completion_length=args.max_new_tokens,
        report_to=[],
        use_cpu=device.type == "cpu",
        bf16=False,
        gradient_checkpointing=False,
        logging_steps=10**9,
    )
    trainer = DistillationTrainer(
        model=student,
        teacher_model=teacher,
        args=config,
        train_dataset=Dataset.from_list([{"prompt": [{"role": "user", "content": "x"}]}] * args.rollouts),
        processing_class=tokenizer,
    )
    optimiser, model = torch.optim.AdamW(student.parameters(), lr=1e-4, weight_decay=0.0), trainer.model
    trainer.current_gradient_accumulation_steps = 1

    def update(step):
        chosen = [rows[i] for i in plumbing.prompts_of_step(step, args.rollouts // 4, len(rows), 0) for _ in range(4)]
        inputs = [{"prompt": [{"role": "user", "content": r["prompt"]}]} for r in chosen]
        began = time.perf_counter()
        trainer.training_step(model, inputs, None)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        tokens = trainer._metrics["train"]["completions/mean_length"][-1] * args.rollouts
        return round(tokens), {"total": time.perf_counter() - began}

    return update


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--updates", type=int, default=12, help="of each, after two to warm up (default 12)")
    p.add_argument("--rollouts", type=int, default=64, help="an update (default 64)")
    p.add_argument("--max_new_tokens", type=int, default=96, help="longest rollout (default 96)")
    p.add_argument("--threads", type=int, default=1, help="of PyTorch (default 1)")
    args = p.parse_args()
    try:
        import trl
    except ImportError:
        raise plumbing.Mistake("TRL is not installed, and only this benchmark needs it: pip install trl") from None
    torch.set_num_threads(args.threads)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    arms = {"ours": ours(args, device), "TRL": trls(args, device)}
    times, tokens, phases = {a: [] for a in arms}, {a: 0 for a in arms}, []
    for step in range(1, args.updates + 3):
        for arm, update in arms.items():
            count, seconds = update(step)
            if step > 2:
                times[arm].append(seconds["total"])
                tokens[arm] += count
                if arm == "ours":
                    phases.append(seconds)
    print(
        f"{device}, {args.threads} thread(s), torch {torch.__version__}, TRL {trl.__version__}; {args.updates} updates of {args.rollouts} rollouts"
    )
    for arm in arms:
        print(f"{arm:<5} {st.median(times[arm]):.3f} s an update (median), {tokens[arm] / args.updates:.0f} tokens an update")
    print("ours by phase: " + ", ".join(f"{k} {st.median(x[k] for x in phases):.3f} s" for k in phases[0] if k != "total"))
    pairs = [a / b for a, b in zip(times["ours"], times["TRL"])]
    print(
        f"ratio of the medians {st.median(times['ours']) / st.median(times['TRL']):.2f}; update by update from {min(pairs):.2f} to {max(pairs):.2f}"
    )


if __name__ == "__main__":
    plumbing.run(main)
