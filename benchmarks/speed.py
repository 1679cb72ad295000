"""Seconds per update, ours and TRL's, in turn in one process: same models, prompts, batch, lengths
and threads. And how far ours is from the limits of the machine.

    pip install trl
    python benchmarks/speed.py              the toy pair, 64 rollouts of at most 96 tokens, one
                                            thread
    python benchmarks/speed.py --updates 20 --threads 2
    python benchmarks/speed.py --shape 0.6B --teacher 4B --tokenizer Qwen/Qwen3-0.6B
                                            random models of real shapes
    python benchmarks/speed.py --profile    which operators take the time, and how much of what is
                                            scored is padding; needs no TRL
    python benchmarks/speed.py --limits --shape 0.6B    tokens/s of sampling against the memory
                                            bandwidth, FLOP/s of training against the peak; needs
                                            no TRL

An update is everything: sampling, the scores of both models, loss, backward pass, clipping, AdamW.
TRL's trainer is built as a user would build it, and driven through its own `training_step`. On the
toy both students start from the same weights and take steps of the same size. Random models never
end a turn, so all their rollouts have the same length whatever the weights are. Without a GPU,
where memory is short, both arms then train the very same student.

Printed are medians over the updates and their ratio, and ours by phases. Whatever else the machine
does slows both. So compare the ratio, not the seconds.
"""

import os
import statistics as st
import sys
import tempfile
import time
from pathlib import Path

# The toy needs nothing from the hub. Real shapes need Qwen3's tokenizer.
if "--shape" not in " ".join(sys.argv):
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
import torch  # noqa: E402

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
import opd  # noqa: E402
from benchmarks.shapes import QWEN3, random_qwen3  # noqa: E402
from common.arguments import Mistake, Parser, require, run_script  # noqa: E402
from common.batches import Compute, micro_batches, padded, prompts_of_step  # noqa: E402
from common.data import load_benchmark, prompt_ids  # noqa: E402
from common.flags import parse  # noqa: E402
from common.models import (  # noqa: E402
    cache_bytes,
    compute_dtype,
    know,
    load_model,
    load_tokenizer,
    pick_device,
)
from common.sampler import sample  # noqa: E402
from common.show import progress  # noqa: E402
from common.weights import adamw, checkpoint_layers  # noqa: E402

# ======================================================================== what all share


class Bench:
    """The flags of this script, the tokenizer, and where the models compute."""

    def __init__(self, args):
        self.args, self.rollouts = args, args.rollouts
        self.device = pick_device("auto")
        self.dtype = compute_dtype("auto", self.device)
        self.on_gpu = self.device.type == "cuda"
        self.tokenizer = load_tokenizer(args.tokenizer if args.shape else "toy/student")

    def pair(self):
        """Student (float32, because it learns) and teacher (in the type of the computation)."""
        args = self.args
        if not args.shape:
            student = load_model("toy/student", self.device, torch.float32, self.tokenizer)
            teacher = load_model("toy/teacher", self.device, self.dtype, self.tokenizer)
            return student, teacher.requires_grad_(False)
        student = random_qwen3(QWEN3[args.shape], 0, self.device)
        teacher = random_qwen3(QWEN3[args.teacher], 1, self.device, self.dtype)
        for model in (student, teacher):
            for config in (model.config, model.generation_config):
                config.eos_token_id = self.tokenizer.eos_token_id
                config.pad_token_id = self.tokenizer.pad_token_id
            know(model, self.tokenizer)
        return student, teacher.requires_grad_(False)

    def compute(self, *flags):
        """Where and how opd.py computes; its `args` are the flags of opd.py."""
        flags = ["--data", "toy", *map(str, flags)]
        args = opd.check(parse(opd.Args, "", flags, "opd"))
        return Compute(args, self.device, self.dtype, len(self.tokenizer))

    def rows(self):
        rows = load_benchmark("toy", "train")
        for row in rows:
            row["ids"] = prompt_ids(self.tokenizer, row["prompt"])
        return rows

    def optimizer(self, student, lr):
        if self.on_gpu:  # the default of opd.py there
            checkpoint_layers(student)
        return adamw(student, lr)

    def now(self):
        if self.on_gpu:
            torch.cuda.synchronize()
        return time.perf_counter()


# ======================================================================== ours and TRL's


def our_update(bench, student, teacher, optimizer):
    """A function of the step that makes one update. It returns the number of tokens that it
    sampled, and the seconds of its phases."""
    new, prompts = bench.args.max_new_tokens, bench.rollouts // 4
    compute = bench.compute("--prompts", prompts, "--samples", 4, "--max_new_tokens", new)
    rows = bench.rows()

    def update(step):
        compute.clock.start()
        chosen = [rows[i] for i in prompts_of_step(step, prompts, len(rows), 0)]
        with compute.phase("sample"), compute.autocast():
            batch = opd.rollouts(student, bench.tokenizer, chosen, compute.args, step)
        opd.update(student, teacher, optimizer, batch, compute.args, compute)
        return sum(map(len, batch[1])), compute.clock.stop()

    return update


def trl_update(bench, student, teacher, optimizer):
    """The same with TRL."""
    from datasets import Dataset
    from trl import DistillationConfig, DistillationTrainer

    args, rows = bench.args, load_benchmark("toy", "train")
    config = DistillationConfig(
        output_dir=tempfile.mkdtemp(),
        beta=1.0,
        per_device_train_batch_size=bench.rollouts,
        gradient_accumulation_steps=1,
        max_completion_length=args.max_new_tokens,
        report_to=[],
        use_cpu=not bench.on_gpu,
        bf16=bench.dtype == torch.bfloat16,
        gradient_checkpointing=bench.on_gpu,  # as ours
        chat_template_kwargs={"enable_thinking": False} if args.shape else None,
        logging_steps=10**9,
    )
    data = [{"prompt": [{"role": "user", "content": "x"}]}] * bench.rollouts
    trainer = DistillationTrainer(
        model=student,
        teacher_model=teacher,
        args=config,
        train_dataset=Dataset.from_list(data),
        processing_class=bench.tokenizer,
    )
    model = trainer.model
    if bench.dtype == torch.bfloat16:
        # `train()` would do this. Without it the student would compute in float32.
        trainer.model_wrapped = model = trainer.accelerator.prepare_model(model)
    trainer.current_gradient_accumulation_steps = 1

    def update(step):
        chosen = prompts_of_step(step, bench.rollouts // 4, len(rows), 0)
        users = [rows[i]["prompt"] for i in chosen for _ in range(4)]
        inputs = [{"prompt": [{"role": "user", "content": user}]} for user in users]
        began = bench.now()
        trainer.training_step(model, inputs, None)
        torch.nn.utils.clip_grad_norm_(student.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        seconds = bench.now() - began
        tokens = trainer._metrics["train"]["completions/mean_length"][-1] * bench.rollouts
        return round(tokens), {"total": seconds}

    return update


def against_trl(bench):
    """Ours and TRL's updates in turn."""
    try:
        import trl
    except ImportError:
        raise Mistake(
            "TRL is not installed, and only the benchmarks need it: pip install trl."
        ) from None
    args, update_of, models = bench.args, {}, None
    for arm, build in (("ours", our_update), ("TRL", trl_update)):
        # Random models on a CPU are shared by both arms.
        if models is None or not args.shape or bench.on_gpu:
            student, teacher = bench.pair()
            models = student, teacher, bench.optimizer(student, 1e-4)
        update_of[arm] = build(bench, *models)
    times, tokens, phases = {a: [] for a in update_of}, {a: 0 for a in update_of}, []
WARM
    print(
        f"TRL {trl.__version__}; {args.updates} updates of {bench.rollouts} rollouts of at most "
        f"{args.max_new_tokens} tokens"
    )
    for arm in update_of:
        print(
            f"{arm:<5} {st.median(times[arm]):.3f} s per update (median), "
            f"{tokens[arm] / args.updates:.0f} tokens per update"
        )
    names = [name for name in phases[0] if name != "total"]
    of_ours = [f"{name} {st.median(p[name] for p in phases):.3f} s" for name in names]
    print(f"ours by phase: {', '.join(of_ours)}")
    ratio = st.median(times["ours"]) / st.median(times["TRL"])
    ratios = [a / b for a, b in zip(times["ours"], times["TRL"])]
    print(
        f"ratio of the medians {ratio:.2f}; update by update from {min(ratios):.2f} to "
        f"{max(ratios):.2f}"
    )
