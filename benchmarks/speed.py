"""Seconds per update, ours and TRL's, in turn in one process: same models, prompts, batch,
lengths and threads. And how far ours is from the limits of the machine.

    pip install trl
    python benchmarks/speed.py
        the toy pair, 64 rollouts of at most 96 tokens, one thread
    python benchmarks/speed.py --updates 20 --threads 2
    python benchmarks/speed.py --shape 0.6B --teacher 4B --tokenizer Qwen/Qwen3-0.6B
        random models of real shapes
    python benchmarks/speed.py --profile
        which operators take the time, how much of what is scored is padding; needs no TRL
    python benchmarks/speed.py --limits --shape 0.6B
        tokens/s of sampling against the memory bandwidth, FLOP/s of training against the
        peak; needs no TRL

An update is everything: sampling, the scores of both models, loss, backward pass, clipping,
AdamW. TRL's trainer is built as a user would build it, and driven through its own
`training_step`. On the toy both students start from the same weights and take steps of the
same size. Random models never end a turn, so all their rollouts have the same length
whatever the weights are. Both arms then train the very same student, because memory is
short.

Printed are medians over the updates and their ratio, and ours by phases. Whatever else the
machine does slows both. So compare the ratio, not the seconds.
"""

import os
import statistics as st
import sys
import tempfile
import time
from pathlib import Path

# The toy needs nothing from the hub. Real shapes need Qwen3's tokenizer.
if __name__ == "__main__" and "--shape" not in " ".join(sys.argv):
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
import torch  # noqa: E402

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
import opd  # noqa: E402
from benchmarks.shapes import QWEN3, SHAPES, random_qwen3  # noqa: E402
from common.arguments import Mistake, Parser, require, run_script  # noqa: E402
from common.batches import Compute, micro_batches, padded, prompts_of_step  # noqa: E402
from common.data import load_benchmark, prompt_ids  # noqa: E402
from common.flags import parse  # noqa: E402
from common.models import (  # noqa: E402
    cache_bytes,
    compute_dtype,
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

    def __init__(self, args, device="auto"):
        self.args, self.rollouts = args, args.rollouts
        self.device = pick_device(device)
        self.dtype = compute_dtype("auto", self.device)
        self.on_gpu = self.device.type == "cuda"
        self.tokenizer = load_tokenizer(args.tokenizer if args.shape else "toy/student")

    def pair(self):
        """Student (float32, because it learns) and teacher (in the computation's type)."""
        args = self.args
        if not args.shape:
            student = load_model("toy/student", self.device, torch.float32, self.tokenizer)
            teacher = load_model("toy/teacher", self.device, self.dtype, self.tokenizer)
            return student, teacher.requires_grad_(False)
        # All rows of the head are tokens to us, as they are to TRL, whatever the tokenizer has.
        student = random_qwen3(SHAPES[args.shape], 0, self.device)
        teacher = random_qwen3(SHAPES[args.teacher], 1, self.device, self.dtype)
        for model in (student, teacher):
            for config in (model.config, model.generation_config):
                config.eos_token_id = self.tokenizer.eos_token_id
                config.pad_token_id = self.tokenizer.pad_token_id
        return student, teacher.requires_grad_(False)

    def compute(self, *flags):
        """Where and how opd.py computes; its `args` are the flags of opd.py."""
        flags = ["--data", "toy", *map(str, flags)]
        args = opd.check(parse(opd.Args, "", flags, "opd"))
        shape = self.args.shape
        vocabulary = SHAPES[shape].words if shape else len(self.tokenizer)
        return Compute(args, self.device, self.dtype, vocabulary)

    def rows(self):
        rows = load_benchmark("toy", "train")
        for row in rows:
            row["ids"] = prompt_ids(self.tokenizer, row["prompt"])
        return rows

    def checkpoint(self, student):
        """Gradient checkpointing on a GPU, as it is opd.py's default there."""
        if self.on_gpu:
            checkpoint_layers(student)


# ======================================================================== ours and TRL's, in turn


def our_update(bench, student, teacher, optimizer):
    """A function of the step that makes one update. It returns the number of tokens that it
    sampled, and the seconds of its phases."""
    new, prompts = bench.args.max_new_tokens, bench.rollouts // 4
    compute = bench.compute("--prompts", prompts, "--samples", 4, "--max_new_tokens", new)
    rows = bench.rows()
    bench.checkpoint(student)

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
        fp16=bench.dtype == torch.float16,
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
    if bench.dtype != torch.float32:
        # `train()` would do this. Without it the student would compute in float32.
        trainer.model_wrapped = model = trainer.accelerator.prepare_model(model)
    trainer.current_gradient_accumulation_steps = 1

    def update(step):
        chosen = prompts_of_step(step, bench.rollouts // 4, len(rows), 0)
        users = [rows[i]["prompt"] for i in chosen for _ in range(4)]
        inputs = [{"prompt": [{"role": "user", "content": user}]} for user in users]
        began = now(bench.device)
        trainer.training_step(model, inputs, None)
        torch.nn.utils.clip_grad_norm_(student.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        seconds = now(bench.device) - began
        tokens = trainer._metrics["train"]["completions/mean_length"][-1] * bench.rollouts
        return round(tokens), {"total": seconds}

    return update


def in_turn(bench):
    """Ours and TRL's updates in turn: {arm: seconds of every update}, {arm: tokens of all
    updates}, and the seconds of our phases."""
    args, update_of, models = bench.args, {}, None
    for arm, build in (("ours", our_update), ("TRL", trl_update)):
        # Random models are shared by both arms: two students and teachers may not fit.
        if models is None or not args.shape:
            student, teacher = bench.pair()
            models = student, teacher, adamw(student, 1e-4)
        update_of[arm] = build(bench, *models)
    times, tokens, phases = {a: [] for a in update_of}, {a: 0 for a in update_of}, []
    warm = 1 if args.shape else 2
    with progress(2 * (args.updates + warm), "updates", "update") as bar:
        for step in range(1, args.updates + warm + 1):
            for arm, update in update_of.items():
                count, seconds = update(step)
                bar.set_postfix_str(f"{arm} {seconds['total']:.2f} s")
                bar.update()
                if step <= warm:
                    continue
                times[arm].append(seconds["total"])
                tokens[arm] += count
                if arm == "ours":
                    phases.append(seconds)
    return times, tokens, phases


def against_trl(bench):
    try:
        import trl
    except ImportError:
        raise Mistake(
            "TRL is not installed, and only the benchmarks need it: pip install trl."
        ) from None
    args, (times, tokens, phases) = bench.args, in_turn(bench)
    print(
        f"TRL {trl.__version__}; {args.updates} updates of {bench.rollouts} rollouts of at most "
        f"{args.max_new_tokens} tokens"
    )
    for arm in times:
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


# ======================================================================== --profile


def profile(bench):
    """Shares of the operators, by PyTorch's profiler, in sampling and in the rest of an
    update; and the share of padding in its micro-batches."""
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as profiler

    student, teacher = bench.pair()
    optimizer, prompts = adamw(student, 0.0), bench.rollouts // 4
    compute = bench.compute("--prompts", prompts, "--max_new_tokens", bench.args.max_new_tokens)
    rows, kept = bench.rows()[:prompts], {}
    bench.checkpoint(student)

    def draw(step):
        with compute.autocast():
            kept["batch"] = opd.rollouts(student, bench.tokenizer, rows, compute.args, step)

    def learn(step):
        opd.update(student, teacher, optimizer, kept["batch"], compute.args, compute)

    activity = ProfilerActivity.CUDA if bench.on_gpu else ProfilerActivity.CPU
    for name, part in (("sampling", draw), ("scoring and learning", learn)):
        part(1)  # warm up
        with profiler(activities=[activity]) as profiled:
            part(2)
        spent = {
            e.key: e.self_device_time_total if bench.on_gpu else e.self_cpu_time_total
            for e in profiled.key_averages()
        }
        total, most = sum(spent.values()), sorted(spent, key=spent.get, reverse=True)[:6]
        shares = [f"{k.removeprefix('aten::')} {100 * spent[k] / total:.0f} %" for k in most]
        print(f"{name}: {', '.join(shares)}")
    lengths = [len(p) + len(r) for p, r in zip(*kept["batch"][:2])]
    groups = micro_batches(lengths, compute.args.micro_tokens)
    together = [list(range(len(lengths)))]
    wasted, as_one = (100 * (1 - sum(lengths) / padded(lengths, g)) for g in (groups, together))
    print(
        f"padding: {wasted:.0f} % of what is scored, in {len(groups)} micro-batches; as one it "
        f"would be {as_one:.0f} %"
    )


# ======================================================================== --limits


def now(device):
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def fastest(device, function, times=3):
    """Seconds of a call: the fastest of a few. A limit is what the machine can do."""
    found = []
    for _ in range(times + 1):
        began = now(device)
        function()
        found.append(now(device) - began)
    return min(found[1:])


def machine(device, dtype, numbers, width):
    """Bytes/s of reading so many float32 numbers, and FLOP/s of the product of two matrices of
    this width, both measured now."""
    big = torch.ones(numbers, device=device)
    bandwidth = big.numel() * 4 / fastest(device, lambda: big.sum())
    a, b = (torch.randn(width, width, device=device, dtype=dtype) for _ in range(2))
    return bandwidth, 2 * width**3 / fastest(device, lambda: a @ b)


def decode_seconds(student, prompts, n, new, autocast, times=2):
    """Seconds of writing all but the first of `new` tokens: without reading the prompts."""
    calls = iter(range(10**6))

    def of(tokens):
        def call():
            keys = [(next(calls), i) for i in range(n * len(prompts))]
            with autocast():
                sample(student, prompts, n=n, max_new_tokens=tokens, keys=keys, rows=len(keys))

        return fastest(student.device, call, times)

    return of(new) - of(1)


def bytes_of_a_step(model, rows, tokens, dtype):
    """Bytes that one step of decoding has to read: the weights once, and keys and values of
    every row. tokens: mean length of a row so far."""
    weights = sum(p.numel() for p in model.parameters()) * dtype.itemsize
    return weights + rows * tokens * cache_bytes(model.config, dtype)


PROMPT = 64  # tokens of every prompt below


def limits(bench):
    """For each token, decoding has to read every weight, and the keys and values of every
    row. So the bandwidth bounds its tokens/s. Scoring and learning are matrix products. So
    the peak FLOP/s bounds them."""
    student, teacher = bench.pair()
    student.ends = []  # nothing ends a row, so the amount of work is known
    large = (2**28, 8192) if bench.on_gpu else (2**26, 2048)
    bandwidth, peak = machine(bench.device, bench.dtype, *large)
    dtype = str(bench.dtype).split(".")[1]
    print(
        f"this machine: {bandwidth / 1e9:.1f} GB/s read, {peak / 1e12:.3f} TFLOP/s in {dtype}"
    )
    prompts = [
        [10 + (7 * i + j) % 90 for j in range(PROMPT)] for i in range(bench.rollouts // 4)
    ]
    limit_of_sampling(bench, student, prompts, bandwidth)
    limit_of_learning(bench, student, teacher, prompts, peak)
    gigabytes = sum(p.numel() for p in student.parameters()) * 4 / 2**30
    print(
        f"student weights {gigabytes:.1f} GiB; the loss (softmax, KL) is inside the student's "
        "seconds and counted as no work"
    )


def limit_of_sampling(bench, student, prompts, bandwidth):
    new, rollouts = bench.args.max_new_tokens, bench.rollouts
    steps, compute = new - 1, bench.compute()
    spent = decode_seconds(student, prompts, 4, new, compute.autocast)
    # A response is half as long on average as at its end.
    step = bytes_of_a_step(student, rollouts, PROMPT + new / 2, bench.dtype)
    speed, most = rollouts * steps / spent, rollouts * bandwidth / step
    print(
        f"sampling {rollouts} rows of {new} tokens: {speed:,.0f} tokens/s, "
        f"{1000 * spent / steps:.2f} ms per step"
    )
    print(
        f"          the limit by bandwidth is {most:,.0f} tokens/s: "
        f"{100 * speed / most:.0f} % of it"
    )

    from transformers import GenerationConfig

    # All prompts have one length, so `generate` needs no padding.
    ids = torch.tensor([p for p in prompts for _ in range(4)], device=bench.device)

    def generate(tokens, cache):
        wanted = GenerationConfig(
            do_sample=True,
            top_k=0,
            max_new_tokens=tokens,
            min_new_tokens=tokens,
            cache_implementation=cache,
            pad_token_id=0,
        )

        def call():
            mask = torch.ones_like(ids)
            with compute.autocast():
                student.generate(ids, attention_mask=mask, generation_config=wanted)

        return fastest(bench.device, call, 2)

    # The static cache comes with transformers' own compiled graphs.
    for cache in ["dynamic", *(["static"] if bench.on_gpu else [])]:
        spent = generate(new, cache) - generate(1, cache)
        speed = rollouts * steps / spent
        print(f"          transformers' generate, {cache} cache: {speed:,.0f} tokens/s")


def limit_of_learning(bench, student, teacher, prompts, peak):
    new, rollouts = bench.args.max_new_tokens, bench.rollouts
    compute, optimizer = bench.compute(), adamw(student, 0.0)
    bench.checkpoint(student)
    texts = [p for p in prompts for _ in range(4)]
    responses = [[10 + i % 100] * new for i in range(rollouts)]
    batch, phases = (texts, responses, [False] * rollouts), []
    for _ in range(3):
        compute.clock.start()
        opd.update(student, teacher, optimizer, batch, compute.args, compute)
        phases.append(compute.clock.stop())
    flop_of = work(student, teacher, rollouts, PROMPT, new, compute.chunk, bench.on_gpu)
    for name, flop in flop_of.items():
        spent = st.median(p[name] for p in phases[1:])  # the first one warms up
        print(
            f"{name}: {flop / 1e12:.2f} TFLOP in {spent:.3f} s, {flop / spent / 1e12:.3f} "
            f"TFLOP/s: {100 * flop / spent / peak:.0f} % of the peak"
        )


def work(student, teacher, rollouts, prompt, new, chunk, checkpointing):
    """FLOP of the phases of an update of opd.py. prompt, new: tokens of a prompt and of a
    response. chunk: positions that have logits at once.

    A weight takes 2 FLOP per token in the forward pass and 4 in the backward pass. With
    checkpointing the layers make a second forward pass. The head sees the response only.
    Where it has more than one chunk, it makes a second forward pass, too, also the
    teacher's. Attention takes 4 FLOP per pair of positions and number of a query, and half
    of the pairs are masked.
    """
    total, answers = rollouts * (prompt + new), rollouts * new  # tokens

    def forward(model):
        c = model.config
        head = c.hidden_size * model.vocabulary
        named = model.named_parameters()
        layers = sum(p.numel() for n, p in named if "embed" not in n and "lm_head" not in n)
        queries = c.num_hidden_layers * c.num_attention_heads * c.head_dim
        attention = 2 * queries * (prompt + new) * total
        return 2 * layers * total + attention, 2 * head * answers

    (layers, head), (teacher_layers, teacher_head) = forward(student), forward(teacher)
    again = answers > chunk  # more than one chunk
    student_work = layers * (4 if checkpointing else 3) + head * (4 if again else 3)
    return {
        "teacher": teacher_layers,
        "student": student_work + teacher_head * (2 if again else 1),
    }


# ======================================================================== main


def main():
    p = Parser(__doc__)
    p.add_argument(
        "--updates",
        type=int,
        default=12,
        help="of each, after one or two that warm up (default 12)",
    )
    p.add_argument(
        "--rollouts", type=int, default=64, help="per update, four per prompt (default 64)"
    )
    p.add_argument("--max_new_tokens", type=int, default=96, help="longest rollout (default 96)")
    p.add_argument("--threads", type=int, default=1, help="of PyTorch (default 1)")
    p.add_argument(
        "--shape", choices=QWEN3, help="random models of this Qwen3 shape instead of the toy"
    )
    p.add_argument(
        "--teacher",
        choices=QWEN3,
        help="with --shape: the teacher's shape (default: the student's)",
    )
    p.add_argument(
        "--tokenizer",
        default="Qwen/Qwen3-0.6B",
        help="with --shape: folder or hub name of Qwen3's tokenizer",
    )
    p.add_argument(
        "--limits",
        action="store_true",
        help="ours against bandwidth and peak FLOP/s instead of TRL",
    )
    p.add_argument(
        "--profile",
        action="store_true",
        help="shares of the operators in one update of ours instead of TRL",
    )
    args = p.parse_args()
    args.teacher = args.teacher or args.shape
    require(
        args.rollouts >= 4 and args.rollouts % 4 == 0,
        f"--rollouts is {args.rollouts}; it must be a multiple of 4.",
    )
    torch.set_num_threads(args.threads)
    bench = Bench(args)
    name, what = f"cpu, {args.threads} thread(s)", "the toy pair"
    if bench.on_gpu:
        name = torch.cuda.get_device_name(bench.device)
    if args.shape:
        what = f"Qwen3-{args.shape} <- Qwen3-{args.teacher}, random weights"
    print(f"{name}, torch {torch.__version__}; {what}")
    (limits if args.limits else profile if args.profile else against_trl)(bench)


if __name__ == "__main__":
    run_script(main)
