"""Evaluate a model on a benchmark, or compare runs.

    python evaluate.py --model toy/student --benchmark toy          # a minute on a CPU
    python evaluate.py --model Qwen/Qwen3-0.6B --benchmark gsm8k --out runs/gsm8k-base
    python evaluate.py --model runs/opd-0/final --benchmark aime24 \\
        --n 16 --temperature 0.7 --top_p 0.8 --top_k 20 --k 8
    python evaluate.py --compare runs/opd-0 runs/opd-1 runs/topd-0 runs/topd-1

An evaluation writes responses.jsonl (one line per sample) and summary.json. If it is
interrupted, the same command continues it. config.json holds a hash of the model's weights, so
responses of other weights are never continued, and a hash of the grading code, so responses that
other code has graded are graded again. --compare prints a table of arms over seeds,
each compared to the first one. For training runs it also draws one picture.

Most disagreements between published scores are not about models. They are about five
things. Training uses the same code for each of them:

    data and prompts   common/data.py        which problems, which text, which template
    sampling           common/sampler.py     exact samples, whatever the batch is
    grading            common/grading.py     what counts as the answer of a response, and
                       common/judge.py       whether that answer is the gold
    statistics         common/evaluation.py  intervals, avg@n, pass@k, majority vote, and
                       common/compare.py     what can be compared with what

This file is the command line. Other scripts can import the main functions of these files
from here (`__all__`).
"""

# This comes first: from here on Ctrl-C gives no traceback, also while torch is loaded.
from common.arguments import Mistake, Parser, require, run_script

# isort: split
import contextlib
import json
import re
from pathlib import Path

from common import files, models
from common.batches import context_of
from common.compare import compare
from common.data import (
    BENCHMARKS,
    HELD_OUT,
    ask_in_known_words,
    check_prompts,
    hold_out,
    is_toy,
    load_benchmark,
    privileged_prompt,
    prompt_ids,
)
from common.evaluation import evaluate, majority, mean_interval, pass_at_k, summarise, wilson
from common.flags import check_packages
from common.grading import extract, grade, verify
from common.hub import read_config
from common.origin import TRAINED_ON, fingerprint, grading_hash, hash_of
from common.processes import process
from common.results import read_run
from common.run import attach_vllm
from common.sampler import Completion, sample, uniforms
from common.stored import as_jsonl, check_origin, check_same_prompts, grade_again, resume_records

# What other scripts and notebooks may import from here.
__all__ = [
    "BENCHMARKS", "load_benchmark", "privileged_prompt", "prompt_ids",
    "Completion", "sample", "uniforms",
    "extract", "grade", "verify",
    "evaluate", "majority", "mean_interval", "pass_at_k", "summarise", "wilson",
    "compare", "read_run",
]

# ======================================================================== summary and length


def as_text(summary):
    """Two lines: the accuracy with its interval, then all other numbers."""
    low, high = summary["interval"]
    first = (
        f"accuracy {100 * summary['accuracy']:.1f} %  [{100 * low:.1f}, {100 * high:.1f}]"
        f"  ({summary['n']} problems x {summary['samples']} samples)"
    )
    there = ("accuracy", "interval", "n", "samples")
    others = [
        f"{k} {v:.3f}" if isinstance(v, float) else f"{k} {v}"
        for k, v in summary.items()
        if k not in there
    ]
    return f"{first}\n{'  '.join(others)}"


def longest_response(args, out, tokenizer, rows):
    """--max_new_tokens, or its default. Beyond the model's context it would write noise."""
    config = out / "config.json"
    before = files.read_json(config).get("max_new_tokens") if config.exists() else None
    wanted = args.max_new_tokens or before
    context = context_of(read_config(args.model))
    longest = max(len(prompt_ids(tokenizer, r["prompt"], args.thinking)) for r in rows)
    room = context - longest
    most = f"The model's context is {context} tokens, and the longest prompt has {longest}; "
    if wanted and wanted == before:  # an evaluation goes on as it began
        if wanted > room:
            print(f"warning: {most}a response of {wanted} tokens would go beyond that")
        return wanted
    require(room > 0, f"{most}choose another model, or leave that problem out.")
    require(
        not wanted or wanted <= room,
        f"{most}--max_new_tokens is {wanted} and can be {room} at most.",
    )
    default = 256 if is_toy(args.benchmark) else 4096
    if not wanted and room < default:
        print(f"{most}--max_new_tokens is {room}")
    return wanted or min(default, room)


# ======================================================================== flags


def arguments(argv):
    parser = Parser(__doc__)
    add = parser.add_argument
    add("--model", help="folder or hub name of the model to evaluate")
    add("--benchmark",
        help=f"{', '.join(BENCHMARKS)}, or a file (JSONL, CSV, Parquet) or a data set of the hub "
        "with the columns problem and answer")
    add("--n", type=int, default=1, help="samples per problem (default 1)")
    add("--temperature", type=float, default=0.0,
        help="0 is greedy (default); Qwen3 without thinking: 0.7 with --top_p 0.8 --top_k 20")
    add("--top_p", type=float, default=1.0,
        help="sample from the smallest set of tokens with this much mass (default 1: all)")
    add("--top_k", type=int, default=0, help="sample from the k likeliest tokens (default 0: all)")
    add("--k", type=int, default=1, help="also report pass@k, for k up to n (default 1)")
    add("--limit", type=int,
        help="only the first so many problems; results of further ones in the folder are kept")
    add("--max_new_tokens", type=int,
        help="longest response (default: 256 on the toy, 4096 elsewhere, or less if the model's "
        "context ends before)")
    add("--thinking", action="store_true",
        help="let the model think (its chat template decides what that means)")
    add("--seed", type=int, default=0, help="seed of the samples; greedy decoding needs none")
    add("--batch", type=int,
        help="samples drawn at once (default: 256 on a CPU and on the toy, 64 on a GPU)")
    add("--device", default="auto", help="auto, cpu, cuda, cuda:1 ...")
    add("--dtype", default="auto", choices=["auto", "float32", "bfloat16", "float16"],
        help="auto: on a GPU bfloat16, or float16 if the card only emulates bfloat16; elsewhere "
        "float32")
    add("--sampler", default="own", choices=["own", "vllm"],
        help="own: common/sampler.py; vllm: the package vllm (common/vllm.py)")
    add("--vllm_memory", type=float, default=0.8,
        help="share of the GPU's memory for --sampler vllm (default 0.8)")
    add("--out",
        help="folder for responses.jsonl and summary.json (default runs/eval-MODEL-BENCHMARK); "
        "what is there is continued. With --compare: the picture (default compare.png)")
    add("--compare", nargs="+", metavar="RUN", help="compare folders of runs, evaluate nothing")
    return parser.parse_args(argv)


def check(args):
    """Refuse flags that make no sense, before anything is loaded."""

    def at_least_one(flag):
        value = getattr(args, flag)
        text = f"--{flag} is {value}; it must be at least 1."
        require(value is None or value >= 1, text)

    require(
        args.model and args.benchmark,
        "Say what to evaluate: --model FOLDER_OR_NAME --benchmark NAME (or --compare RUN RUN "
        "...); --help explains all flags.",
    )
    at_least_one("n")
    require(
        0 <= args.temperature < 100,
        f"--temperature is {args.temperature}; it must be 0 (greedy) or more.",
    )
    require(
        args.n == 1 or args.temperature > 0,
        f"--n {args.n} greedy samples would all be the same; set --temperature above 0.",
    )
    require(0 < args.top_p <= 1, f"--top_p is {args.top_p}; it must lie in (0, 1].")
    require(args.top_k >= 0, f"--top_k is {args.top_k}; it must be 0 (off) or more.")
    require(
        1 <= args.k <= args.n,
        f"--k is {args.k}; pass@k needs 1 <= k <= n, and n is {args.n}.",
    )
    at_least_one("limit")
    at_least_one("batch")
    at_least_one("max_new_tokens")
    check_packages(args)
    require(
        process()[1] == 1,
        "evaluate.py runs in one process; start it with python, not with a launcher.",
    )


def model_folder(name):
    """The model that is meant by the folder of a training run: its final one."""
    folder = Path(name)
    config = folder / "config.json"
    if (folder / "adapter.safetensors").exists():
        raise Mistake(
            f"'{folder}' holds adapters and no whole model (--lora); let the run end, and "
            f"evaluate {folder.parent / 'final'}."
        )
    is_run = config.exists() and "script" in files.read_json(config)
    if not is_run or not (folder / "final").is_dir():
        return name  # a run without a final model is refused when the model is loaded
    print(f"'{folder}' is a run: evaluating its final model, {folder / 'final'}")
    return str(folder / "final")


def warn_if_trained_on(args):
    """A user's own file is one set of problems. A run holds a part of it out for testing, and its
    model has seen the others. If the file grows, some of those can be held out now."""
    whole = args.benchmark.removesuffix(HELD_OUT)
    for folder in (Path(args.model), Path(args.model).parent):
        config = {}
        with contextlib.suppress(OSError, ValueError):
            config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        data = config.get("data") if "script" in config else None
        if not data or data in BENCHMARKS or files.place(data) != files.place(whole):
            continue
        if whole == args.benchmark:
            print(
                f"warning: this model was trained on problems of '{data}'. For those that it has "
                f"never seen: --benchmark {args.benchmark}{HELD_OUT}"
            )
        elif "trained_on" in config:
            rows, _ = hold_out(load_benchmark(whole, "train"), whole)
            if hash_of(rows, TRAINED_ON) != config["trained_on"]:
                print(
                    f"warning: '{data}' has changed since this model was trained. It may have "
                    "been trained on some of the problems that are held out now"
                )


def default_folder(args):
    """runs/eval-MODEL-BENCHMARK. MODEL is the last two names of the model's folder, because
    the last name alone is mostly "final"."""
    model = Path(args.model)
    name = "-".join(model.parts[-2:]) if model.exists() else model.name
    tested = Path(args.benchmark).stem + (HELD_OUT if args.benchmark.endswith(HELD_OUT) else "")
    return "runs/eval-" + re.sub(r"[^\w.-]+", "-", f"{name}-{tested}")


# ======================================================================== main


def main(argv=None):
    args = arguments(argv)
    if args.compare:
        print(compare(args.compare, args.out or "compare.png"))
        return
    check(args)
    args.model = model_folder(args.model)
    warn_if_trained_on(args)
    rows = load_benchmark(args.benchmark, "test", args.limit)
    device = models.pick_device(args.device)
    if args.batch is None:
        args.batch = 256 if is_toy(args.benchmark) or device.type == "cpu" else 64
    out = files.make_folder(args.out or default_folder(args))
    with files.locked(out):
        evaluate_into(out, args, rows, device)


def evaluate_into(out, args, rows, device):
    """Evaluate into a folder, and continue what is there."""
    tokenizer = models.load_tokenizer(args.model)
    ask_in_known_words(tokenizer, rows)
    checked = rows[:50] if args.benchmark in BENCHMARKS else rows
    check_prompts(tokenizer, [r["prompt"] for r in checked], args.benchmark)
    args.max_new_tokens = longest_response(args, out, tokenizer, rows)
    # config.json holds what the samples depend on. With other values of these flags the
    # samples in the folder cannot be continued. The other flags may change.
    free = ("out", "compare", "batch", "device", "limit", "k", "vllm_memory")
    config = {k: v for k, v in vars(args).items() if k not in free}
    done, further = resume_records(out, config, rows, args.limit is not None)

    dtype = models.compute_dtype(args.dtype, device)
    model = models.load_model(args.model, device, dtype, tokenizer)
    models.check_head(tokenizer, [(args.model, model)])
    config["weights"], config["graded_by"] = fingerprint(model), grading_hash()
    check_origin(out, config["weights"], done + further)
    check_same_prompts(out, tokenizer, rows, done, args.thinking)
    stored = done + further
    done, further = grade_again(out, config["graded_by"], done, further)
    regraded = done + further != stored
    if args.sampler == "vllm":
        attach_vllm(model, tokenizer, args, dtype)

    files.write_json(out / "config.json", config)
    # Written again without a line that was cut off. What is there is never removed.
    files.write_text(out / "responses.jsonl", as_jsonl(done + further))
    if done:
        print(f"continuing {out}: {len(done)} of {len(rows) * args.n} samples are there")
    with open(out / "responses.jsonl", "a", encoding="utf-8") as f:

        def each(records):
            f.write(as_jsonl(records))
            f.flush()

        summary, records = evaluate(
            model,
            tokenizer,
            rows,
            n=args.n,
            temperature=args.temperature,
            top_p=args.top_p,
            top_k=args.top_k,
            max_new_tokens=args.max_new_tokens,
            seed=args.seed,
            k=args.k,
            batch=args.batch,
            thinking=args.thinking,
            done=done,
            each=each,
            bar=True,
        )
    # The file is written again in the order of the problems. So it does not depend on the
    # batches or on interruptions.
    further.sort(key=lambda r: (r["index"], r["sample"]))
    files.write_text(out / "responses.jsonl", as_jsonl(records + further))
    print(f"{args.model} on {args.benchmark}: {as_text(summary)}")
    about = {"model": args.model, "benchmark": args.benchmark}
    path = out / "summary.json"
    more = path.exists() and files.read_json(path).get("n", 0) > len(rows)
    if more and not regraded:
        print(f"{path} stays as it is: it is about more problems")
    elif more:  # its verdicts are not those of the responses any more
        files.write_json(path, {**about, **summarise(records + further, args.k)})
        print(f"{path}: all {len(records + further)} responses were counted again")
    else:
        files.write_json(path, {**about, **summary})
    print(f"responses and summary: {out}/")


OUT_OF_MEMORY = (
    "The GPU is out of memory; lower --batch or --max_new_tokens, or choose a smaller model. With "
    "the same --max_new_tokens the same command goes on with the responses that are there."
)

if __name__ == "__main__":
    run_script(main, OUT_OF_MEMORY)
