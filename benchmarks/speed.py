"""Seconds an update, ours and TRL's, in turn in one process: same models, prompts, batch, lengths and threads; and how far ours is from the machine's limits.

    pip install trl
    python benchmarks/speed.py                          the toy pair, 64 rollouts of at most 96 tokens, one thread
    python benchmarks/speed.py --updates 20 --threads 2
    python benchmarks/speed.py --shape 0.6B --teacher 4B --tokenizer Qwen/Qwen3-0.6B        random models of real shapes
    python benchmarks/speed.py --profile                which operators take the time, and how much of what is scored is padding; needs no TRL
    python benchmarks/speed.py --limits --shape 0.6B    tokens/s of sampling against memory bandwidth, FLOP/s of training against the peak; needs no TRL

An update is everything: sampling, both models' scores, loss, backward, clipping, AdamW. TRL's trainer is built as a user would build it and driven
through its own `training_step`. On the toy both students start from the same weights and take steps of the same size. Random models never end a
turn, so there all rollouts have the same length whatever the weights are, and without a GPU, where memory is short, both arms train the very same
student. Medians over the updates and their ratio, ours with its phases. Whatever else the machine does hits both: compare the ratio, not the seconds.
"""

import argparse
import os
import statistics as st
import sys
import tempfile
import time
from pathlib import Path

if "--shape" not in " ".join(sys.argv):  # the toy needs nothing from the hub; real shapes need Qwen3's tokenizer
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
import torch  # noqa: E402

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
import opd  # noqa: E402
import plumbing  # noqa: E402
from benchmarks.shapes import QWEN3, qwen3  # noqa: E402
from evaluate import load_benchmark, prompt_ids, sample  # noqa: E402


def pair(args, device, dtype):
    """Student (float32, it learns) and teacher (in the computation's type)."""
    if args.shape:
        student = qwen3(*QWEN3[args.shape], seed=0, device=device)
        teacher = qwen3(*QWEN3[args.teacher], seed=1, device=device, dtype=dtype)
        ends = args.words.eos_token_id
        for model in (student, teacher):
            model.config.eos_token_id = model.generation_config.eos_token_id = ends
            model.config.pad_token_id = model.generation_config.pad_token_id = args.words.pad_token_id
    else:
        student = plumbing.load_model("toy/student", device, torch.float32)
        teacher = plumbing.load_model("toy/teacher", device, dtype)
    return student, teacher.requires_grad_(False)


def ours(args, device, dtype, student, teacher, optimiser):
    """A function of the step that makes one update and returns the number of tokens it sampled."""
    flags = ["--data", "toy", "--prompts", args.rollouts // 4, "--samples", 4, "--max_new_tokens", args.max_new_tokens]
    settings = opd.settle(plumbing.parse_arguments(opd.Args, "", list(map(str, flags))))
    rows = load_benchmark("toy", "train")
    for r in rows:
        r["ids"] = prompt_ids(args.words, r["prompt"])
    clock, autocast = plumbing.Clock(device), plumbing.autocaster(device, dtype)
    if device.type == "cuda":  # the default there
        plumbing.checkpoint_layers(student)

    def update(step):
        clock.start()
        chosen = [rows[i] for i in plumbing.prompts_of_step(step, settings.prompts, len(rows), 0)]
        with clock.phase("sample"), autocast():
            batch = opd.rollouts(student, teacher, args.words, chosen, settings, step)
        opd.update(student, teacher, optimiser, batch, settings, clock, autocast, len(args.words))
        return sum(map(len, batch[1])), clock.stop()

    return update


def trls(args, device, dtype, student, teacher, optimiser):
    from datasets import Dataset
    from trl import DistillationConfig, DistillationTrainer

    rows = load_benchmark("toy", "train")
    config = DistillationConfig(
        output_dir=tempfile.mkdtemp(),
        beta=1.0,
        per_device_train_batch_size=args.rollouts,
        gradient_accumulation_steps=1,
        max_completion_length=args.max_new_tokens,
        report_to=[],
        use_cpu=device.type == "cpu",
        bf16=dtype == torch.bfloat16,
        gradient_checkpointing=device.type == "cuda",  # as ours
        chat_template_kwargs={"enable_thinking": False} if args.shape else None,
        logging_steps=10**9,
    )
    trainer = DistillationTrainer(
        model=student,
        teacher_model=teacher,
        args=config,
        train_dataset=Dataset.from_list([{"prompt": [{"role": "user", "content": "x"}]}] * args.rollouts),
        processing_class=args.words,
    )
    model = trainer.model
    if dtype == torch.bfloat16:  # what `train()` would do: without it the student would compute in float32
        trainer.model_wrapped = model = trainer.accelerator.prepare_model(model)
    trainer.current_gradient_accumulation_steps = 1

    def update(step):
        chosen = [rows[i] for i in plumbing.prompts_of_step(step, args.rollouts // 4, len(rows), 0) for _ in range(4)]
        inputs = [{"prompt": [{"role": "user", "content": r["prompt"]}]} for r in chosen]
        if device.type == "cuda":
            torch.cuda.synchronize()
        began = time.perf_counter()
        trainer.training_step(model, inputs, None)
        torch.nn.utils.clip_grad_norm_(student.parameters(), 1.0)
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        if device.type == "cuda":
            torch.cuda.synchronize()
        tokens = trainer._metrics["train"]["completions/mean_length"][-1] * args.rollouts
        return round(tokens), {"total": time.perf_counter() - began}

    return update


def against(args, device, dtype):
    """Ours and TRL's updates in turn."""
    try:
        import trl
    except ImportError:
        raise plumbing.Mistake("TRL is not installed, and only this benchmark needs it: pip install trl") from None
    shared = bool(args.shape) and device.type == "cpu"
    arms, made = {}, None
    for arm, build in (("ours", ours), ("TRL", trls)):
        if made is None or not shared:
            student, teacher = pair(args, device, dtype)
            optimiser = torch.optim.AdamW(student.parameters(), lr=1e-4, weight_decay=0.0, fused=device.type == "cuda")
            made = student, teacher, optimiser
        arms[arm] = build(args, device, dtype, *made)
    times, tokens, phases = {a: [] for a in arms}, {a: 0 for a in arms}, []
    warm = 1 if args.shape else 2
    with plumbing.progress(2 * (args.updates + warm), "updates", "update") as bar:
        for step in range(1, args.updates + warm + 1):
            for arm, update in arms.items():
                count, seconds = update(step)
                bar.set_postfix_str(f"{arm} {seconds['total']:.2f} s")
                bar.update()
                if step > warm:
                    times[arm].append(seconds["total"])
                    tokens[arm] += count
                    if arm == "ours":
                        phases.append(seconds)
    print(f"TRL {trl.__version__}; {args.updates} updates of {args.rollouts} rollouts of at most {args.max_new_tokens} tokens")
    for arm in arms:
        print(f"{arm:<5} {st.median(times[arm]):.3f} s an update (median), {tokens[arm] / args.updates:.0f} tokens an update")
    print("ours by phase: " + ", ".join(f"{k} {st.median(x[k] for x in phases):.3f} s" for k in phases[0] if k != "total"))
    pairs = [a / b for a, b in zip(times["ours"], times["TRL"])]
    print(
        f"ratio of the medians {st.median(times['ours']) / st.median(times['TRL']):.2f}; update by update from {min(pairs):.2f} to {max(pairs):.2f}"
    )


# ============================================================================================ where the time goes


def profile(args, device, dtype):
    """Shares of the operators, by PyTorch's profiler, in sampling and in the rest of one update; and the padding of its micro-batches."""
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as profiler

    student, teacher = pair(args, device, dtype)
    optimiser = torch.optim.AdamW(student.parameters(), lr=0.0, fused=device.type == "cuda")
    flags = ["--data", "toy", "--prompts", args.rollouts // 4, "--max_new_tokens", args.max_new_tokens]
    settings = opd.settle(plumbing.parse_arguments(opd.Args, "", list(map(str, flags))))
    rows, clock, autocast = (
        load_benchmark("toy", "train")[: args.rollouts // 4],
        plumbing.Clock(device),
        plumbing.autocaster(device, dtype),
    )
    for r in rows:
        r["ids"] = prompt_ids(args.words, r["prompt"])
    if device.type == "cuda":
        plumbing.checkpoint_layers(student)
    gpu = device.type == "cuda"
    kept = {}

    def draw(step):
        with autocast():
            kept["batch"] = opd.rollouts(student, teacher, args.words, rows, settings, step)

    def learn(step):
        clock.start()
        opd.update(student, teacher, optimiser, kept["batch"], settings, clock, autocast, len(args.words))

    for name, part in (("sampling", draw), ("scoring and learning", learn)):
        part(1)  # warm
        with profiler(activities=[ProfilerActivity.CUDA if gpu else ProfilerActivity.CPU]) as seen:
            part(2)
        spent = {e.key: e.self_device_time_total if gpu else e.self_cpu_time_total for e in seen.key_averages()}
        top = sorted(spent, key=spent.get, reverse=True)[:6]
        print(f"{name}: " + ", ".join(f"{k.removeprefix('aten::')} {100 * spent[k] / sum(spent.values()):.0f} %" for k in top))
    lengths = [len(p) + len(r) for p, r in zip(*kept["batch"][:2])]
    groups = plumbing.micro_batches(lengths, settings.micro_tokens)
    one = [list(range(len(lengths)))]
    waste = [100 * (1 - sum(lengths) / plumbing.padded(lengths, g)) for g in (groups, one)]
    print(f"padding: {waste[0]:.0f} % of what is scored, in {len(groups)} micro-batches; as one it would be {waste[1]:.0f} %")


# ============================================================================================ limits of the machine


def seconds(function, device, times=3):
    """Of one call, the fastest of a few: limits are about what the machine can do."""
    found = []
    for _ in range(times + 1):
        if device.type == "cuda":
            torch.cuda.synchronize()
        began = time.perf_counter()
        function()
        if device.type == "cuda":
            torch.cuda.synchronize()
        found.append(time.perf_counter() - began)
    return min(found[1:])


def machine(device, dtype):
    """Bytes/s of reading memory and FLOP/s of a large matrix product, both measured here and now."""
    big = torch.ones(2**28 if device.type == "cuda" else 2**26, device=device)
    bandwidth = big.numel() * 4 / seconds(lambda: big.sum(), device)
    n = 8192 if device.type == "cuda" else 2048
    a, b = (torch.randn(n, n, device=device, dtype=dtype) for _ in range(2))
    return bandwidth, 2 * n**3 / seconds(lambda: a @ b, device)


def limits(args, device, dtype):
    """Decoding has to read every weight and all keys and values for each step, so bandwidth bounds its tokens/s; scoring and learning are matrix products,
    so the peak FLOP/s bounds them."""
    student, teacher = pair(args, device, dtype)
    bandwidth, peak = machine(device, dtype)
    print(f"this machine: {bandwidth / 1e9:.1f} GB/s read, {peak / 1e12:.3f} TFLOP/s in {str(dtype).split('.')[1]}")
    vocabulary, prompt, new = len(args.words), 64, args.max_new_tokens
    prompts = [[10 + (7 * i + j) % 90 for j in range(prompt)] for i in range(args.rollouts // 4)]
    count = sum(p.numel() for p in student.parameters())
    width = torch.tensor([], dtype=dtype).element_size()
    autocast, tick = plumbing.autocaster(device, dtype), iter(range(10**6))

    def decode(tokens):
        def call():
            keys = [(next(tick), i) for i in range(args.rollouts)]
            with autocast():  # nothing ends a row, so the work is known
                sample(
                    student,
                    prompts,
                    n=4,
                    max_new_tokens=tokens,
                    eos=[],
                    vocabulary=vocabulary,
                    keys=keys,
                    rows=args.rollouts,
                )

        return seconds(call, device, 2)

    steps = new - 1
    spent = decode(new) - decode(1)  # without reading the prompts
    # bytes of a step: the weights once; keys and values of every row, at half of the way on average
    read = count * width + args.rollouts * (prompt + new / 2) * plumbing.cache_bytes(student.config, dtype)
    got, most = args.rollouts * steps / spent, args.rollouts * bandwidth / read
    print(f"sampling {args.rollouts} rows of {new} tokens: {got:,.0f} tokens/s, {1000 * spent / steps:.2f} ms a step")
    print(f"          the limit by bandwidth is {most:,.0f} tokens/s: {100 * got / most:.0f} % of it")

    from transformers import GenerationConfig

    ids = torch.tensor([p for p in prompts for _ in range(4)], device=device)  # of one length, so nothing has to be padded

    def generate(tokens, cache):
        wanted = GenerationConfig(
            do_sample=True, top_k=0, max_new_tokens=tokens, min_new_tokens=tokens, cache_implementation=cache, pad_token_id=0
        )
        with autocast():
            student.generate(ids, attention_mask=torch.ones_like(ids), generation_config=wanted)

    for cache in ["dynamic", *(["static"] if device.type == "cuda" else [])]:  # static: with transformers' own compiled graphs
        spent = seconds(lambda c=cache: generate(new, c), device, 2) - seconds(lambda c=cache: generate(1, c), device, 2)
        print(f"          transformers' generate, {cache} cache: {args.rollouts * steps / spent:,.0f} tokens/s")

    settings = opd.settle(plumbing.parse_arguments(opd.Args, "", ["--data", "toy"]))
    optimiser, clock = torch.optim.AdamW(student.parameters(), lr=0.0, fused=device.type == "cuda"), plumbing.Clock(device)
    if device.type == "cuda":
        plumbing.checkpoint_layers(student)
    texts = [p for p in prompts for _ in range(4)]
    batch = (texts, [[10 + i % 100] * new for i in range(args.rollouts)], [False] * args.rollouts, [False] * args.rollouts)
    phases = []
    for _ in range(3):
        clock.start()
        opd.update(student, teacher, optimiser, batch, settings, clock, autocast, vocabulary)
        phases.append(clock.stop())
    # 2 FLOP a weight and token forward, 4 backward, and with checkpointing the layers forward once more; the head sees the response alone
    # (and its chunks are recomputed, too, where there is more than one); attention: 4 FLOP a pair of positions and query number, half of them masked.
    total, answers, most = args.rollouts * (prompt + new), args.rollouts * new, phases[1:]

    def forward(model):
        c = model.config
        head = c.hidden_size * vocabulary
        layers = sum(p.numel() for n, p in model.named_parameters() if "embed" not in n and "lm_head" not in n)
        attention = 2 * c.num_hidden_layers * c.num_attention_heads * c.head_dim * (prompt + new) * total
        return 2 * layers * total + attention, 2 * head * answers

    (layers, head), (their_layers, their_head) = forward(student), forward(teacher)
    chunks = (
        answers > settings.chunk_logits // vocabulary
    )  # the head's chunks are made anew in the backward pass, the teacher's included
    work = {
        "teacher": their_layers,
        "student": layers * (4 if device.type == "cuda" else 3)
        + head * (4 if chunks else 3)
        + their_head * (2 if chunks else 1),
    }
    for name, flop in work.items():
        spent = st.median(p[name] for p in most)
        print(
            f"{name}: {flop / 1e12:.2f} TFLOP in {spent:.3f} s, {flop / spent / 1e12:.3f} TFLOP/s: {100 * flop / spent / peak:.0f} % of the peak"
        )
    print(
        f"student weights {count * 4 / 2**30:.1f} GiB; the loss (softmax, KL) is inside the student's seconds and counted as no work"
    )


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--updates", type=int, default=12, help="of each, after one or two to warm up (default 12)")
    p.add_argument("--rollouts", type=int, default=64, help="an update, four a prompt (default 64)")
    p.add_argument("--max_new_tokens", type=int, default=96, help="longest rollout (default 96)")
    p.add_argument("--threads", type=int, default=1, help="of PyTorch (default 1)")
    p.add_argument("--shape", choices=QWEN3, help="random models of this Qwen3 shape instead of the toy")
    p.add_argument("--teacher", choices=QWEN3, help="with --shape: the teacher's shape (default: the student's)")
    p.add_argument("--tokenizer", default="Qwen/Qwen3-0.6B", help="with --shape: folder or hub name of Qwen3's tokenizer")
    p.add_argument("--limits", action="store_true", help="ours against bandwidth and peak FLOP/s instead of TRL")
    p.add_argument("--profile", action="store_true", help="shares of the operators in one update of ours instead of TRL")
    args = p.parse_args()
    args.teacher = args.teacher or args.shape
    plumbing.require(
        args.rollouts >= 4 and args.rollouts % 4 == 0, f"--rollouts is {args.rollouts}; it must be a multiple of 4."
    )
    torch.set_num_threads(args.threads)
    device = plumbing.pick_device("auto")
    dtype = plumbing.compute_dtype("auto", device)
    args.words = plumbing.load_tokenizer(args.tokenizer if args.shape else "toy/student")
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"cpu, {args.threads} thread(s)"
    what = f"Qwen3-{args.shape} <- Qwen3-{args.teacher}, random weights" if args.shape else "the toy pair"
    print(f"{name}, torch {torch.__version__}; {what}")
    (limits if args.limits else profile if args.profile else against)(args, device, dtype)


if __name__ == "__main__":
    plumbing.run(main)
