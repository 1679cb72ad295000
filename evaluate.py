"""Evaluate a model on a benchmark, or compare runs.

    python evaluate.py --model toy/student --benchmark toy          # a minute on a CPU
    python evaluate.py --model Qwen/Qwen3-0.6B --benchmark gsm8k --out runs/gsm8k-base
    python evaluate.py --model runs/opd-0/final --benchmark aime24 \\
        --n 16 --temperature 0.7 --top_p 0.8 --top_k 20 --k 8
    python evaluate.py --compare runs/opd-0 runs/opd-1 runs/topd-0 runs/topd-1

An evaluation writes responses.jsonl (one line per sample) and summary.json. If it is
interrupted, the same command continues it. --compare prints a table of arms over seeds,
each compared to the first one, and draws one picture.

Most disagreements between published scores are not about models. They are about five
things, and each of them is in one file that training uses, too:

    data and prompts   common/data.py        which problems, which text, which template
    sampling           common/sampler.py     exact samples, whatever the batch is
    grading            common/grading.py     what counts as the answer of a response, and
                       common/judge.py       whether that answer is the gold
    statistics         common/evaluation.py  intervals, avg@n, pass@k, majority vote

This file is the command line. Other scripts can also import the functions above from here.
"""

import json
import math
import re
from dataclasses import dataclass
from pathlib import Path

from common import files, models
from common.arguments import Mistake, Parser, harmless, require, run_script
from common.data import (
    BENCHMARKS,
    ask_in_known_words,
    check_prompts,
    load_benchmark,
    privileged_prompt,
    prompt_ids,
)
from common.evaluation import evaluate, majority, mean_interval, pass_at_k, summarise, wilson
from common.flags import check_packages
from common.grading import extract, grade, verify
from common.processes import process
from common.run import attach_vllm
from common.sampler import Completion, sample, uniforms
from common.show import draw_arms

# What other scripts and notebooks may import from here.
__all__ = [
    "BENCHMARKS", "load_benchmark", "privileged_prompt", "prompt_ids",
    "Completion", "sample", "uniforms",
    "extract", "grade", "verify",
    "evaluate", "majority", "mean_interval", "pass_at_k", "summarise", "wilson",
    "compare", "read_run",
]

# ======================================================================== --compare: one run

# Flags that not all versions have, each with the value that means the same as no flag. So a
# run with this value and a run without the flag belong to the same arm.
NEUTRAL = {
    "sampler": "own", "adam_bits": 32, "lora": 0,  # the first versions did not have these
    "off_policy_data": "reference", "beta_norm": "token",  # only the first versions had these
}
# These differ between runs of one arm, or say nothing about what a run computes.
NOT_COMPARED = ("seed", "out", "resume", "model", "script", "versions", "vllm_memory")


@dataclass
class Result:
    """What --compare takes from the folder of a training run or of an evaluation."""

    script: str  # of an evaluation: its model
    settings: dict  # the flags that all runs of an arm share
    seed: int | None
    final: float  # accuracy at the end
    curve: list | None = None  # training run: [(update, accuracy)]
    scores: dict | None = None  # evaluation: {problem: share of right samples}
    benchmark: str | None = None  # evaluation


def read_run(folder):
    """The Result of a training run, or of an evaluation."""
    folder = Path(folder)
    missing = f"'{folder}' is not a run: it has no config.json."
    config = files.read_json(folder / "config.json", missing)
    settings = {
        k: v
        for k, v in config.items()
        if k not in NOT_COMPARED and not (k in NEUTRAL and NEUTRAL[k] == v)
    }
    if (folder / "metrics.jsonl").exists():
        metrics = files.read_jsonl(folder / "metrics.jsonl", ["step"])
        curve = [(m["step"], m["eval"]["accuracy"]) for m in metrics if "eval" in m]
        require(curve, f"'{folder}' has no evaluation yet; let it run to its first one.")
        return Result(
            script=config.get("script", "run"),
            settings=settings,
            seed=config.get("seed"),
            final=curve[-1][1],
            curve=curve,
        )
    if (folder / "responses.jsonl").exists():
        by_problem = {}
        for r in files.read_jsonl(folder / "responses.jsonl", ["index", "correct"]):
            by_problem.setdefault(r["index"], []).append(r["correct"])
        require(by_problem, f"'{folder}' has no responses yet; let the evaluation go on.")
        scores = {i: sum(v) / len(v) for i, v in by_problem.items()}
        return Result(
            script=str(config.get("model")),
            settings={**settings, "model": config.get("model")},
            seed=config.get("seed"),
            final=sum(scores.values()) / len(scores),
            scores=scores,
            benchmark=config.get("benchmark"),
        )
    raise Mistake(f"'{folder}' is not a run: it has neither metrics.jsonl nor responses.jsonl.")


# ======================================================================== --compare: all runs


def compare(folders, out):
    """A table of arms over seeds, as text. Curves of training runs are drawn into `out`.

    An arm is all runs that differ in their seed only. Each arm is compared to the first one
    in pairs: training runs with the same seed (they see the same prompts in the same
    order), and evaluations on the same problem. What both sides of a pair share cancels in
    the difference, and that is most of the noise.
    """
    runs = [read_run(folder) for folder in folders]
    require(
        len({run.curve is None for run in runs}) == 1,
        "Compare training runs with training runs, or evaluations with evaluations, not both at "
        "once.",
    )
    benchmarks = {str(run.benchmark) for run in runs}
    require(
        len(benchmarks) == 1,
        f"These evaluations are of different benchmarks: {', '.join(sorted(benchmarks))}.",
    )
    arms = {}  # {(script, its flags as JSON): runs}
    for run in runs:
        arms.setdefault((run.script, json.dumps(run.settings, sort_keys=True)), []).append(run)
    names, groups = arm_names(arms), list(arms.values())

    lines = [
        f"{'arm':<44} {'runs':>4} {'accuracy':>9} {'95 % interval':>17}   "
        "difference to the first (paired)"
    ]
    for name, group in zip(names, groups):
        mean, low, high = mean_interval(arm_values(group))
        interval = f"{100 * low:5.1f} .. {100 * high:5.1f}"
        if low == -math.inf:  # a single value has no interval
            interval = "one run: none"
        difference = "" if group is groups[0] else paired_difference(group, groups[0])
        lines.append(
            f"{name:<44} {len(group):>4} {100 * mean:>8.1f}% {interval:>17}   {difference}"
        )
    if runs[0].curve:
        draw_arms({n: [run.curve for run in group] for n, group in zip(names, groups)}, Path(out))
        lines.append(f"curves: {out}")
    return "\n".join(lines)


def arm_names(keys):
    """The name of an arm: its script, and the flags that are not the same in all arms."""
    settings = [json.loads(text) for _, text in keys]
    flags = dict.fromkeys(flag for s in settings for flag in s)  # a set that keeps the order
    varying = [f for f in flags if len({json.dumps(s.get(f)) for s in settings}) > 1]
    names = []
    for (script, _), s in zip(keys, settings):
        shown = [f"{f}={s[f]}" for f in varying if f in s and f != "model"]
        # The text comes from the files of the runs, which can be a stranger's.
        names.append(harmless(" ".join([script, *shown])))
    return names


def arm_values(group):
    """The independent values of an arm: one per training run, or one per problem."""
    if group[0].scores is None:
        return [run.final for run in group]
    return list(mean_scores(group).values())


def mean_scores(group):
    """{problem: mean score over the evaluations of an arm}.

    Only problems count that all these evaluations have. An evaluation has fewer problems
    than the others if it ran with --limit or was stopped.
    """
    shared = [i for i in group[0].scores if all(i in run.scores for run in group)]
    require(shared, f"The evaluations of '{group[0].script}' have no problem in common.")
    return {i: sum(run.scores[i] for run in group) / len(group) for i in shared}


def paired_difference(group, first):
    """The mean difference between an arm and the first arm, with its interval, as text."""
    if group[0].scores is None:
        unit, by_seed = "seeds", {run.seed: run.final for run in first}
        differences = [run.final - by_seed[run.seed] for run in group if run.seed in by_seed]
    else:
        unit, scores, first_scores = "problems", mean_scores(group), mean_scores(first)
        differences = [scores[i] - first_scores[i] for i in scores if i in first_scores]
    if not differences:
        return ""
    mean, low, high = mean_interval(differences)
    interval = f"[{100 * low:+.1f}, {100 * high:+.1f}]"
    if low == -math.inf:
        interval = "(one pair: no interval)"
    return f"{100 * mean:+.1f} {interval} over {len(differences)} {unit}"


# ======================================================================== records and summary


def as_jsonl(records):
    return "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in records)


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


def resume_records(out, config, rows, n):
    """The records of an evaluation in `out` that was interrupted.

    A last line that was half written is dropped. A folder with another evaluation or with a
    training run is refused.
    """
    responses, metrics = out / "responses.jsonl", out / "metrics.jsonl"
    if not (out / "config.json").exists():
        require(
            not metrics.exists() and not responses.exists(),
            f"'{out}' holds another run; choose another --out.",
        )
        return []
    before = {**NEUTRAL, **files.read_json(out / "config.json")}
    changed = [k for k in config if before.get(k) != config[k]]
    first_changed = ", ".join(f"{k}: {before.get(k)}" for k in changed[:3])
    require(
        not changed and not metrics.exists(),
        f"'{out}' holds another evaluation ({first_changed}); choose another --out or delete it.",
    )
    if not responses.exists():
        return []
    fields = "index sample response gold extracted correct tokens truncated".split()
    records = files.read_jsonl(responses, fields, drop_broken_end=True)
    # A smaller --limit takes a part of the records.
    records = [r for r in records if r["index"] < len(rows) and r["sample"] < n]
    require(
        all(r["gold"] == rows[r["index"]]["answer"] for r in records),
        f"'{out}' holds responses to other problems; choose another --out or delete it.",
    )
    files.write_text(responses, as_jsonl(records))
    return records


# ======================================================================== flags


def arguments(argv):
    parser = Parser(__doc__)
    add = parser.add_argument
    add("--model", help="folder or hub name of the model to evaluate")
    add("--benchmark",
        help=f"{', '.join(BENCHMARKS)}, or the path of a JSONL file with the columns problem and "
        "answer")
    add("--n", type=int, default=1, help="samples per problem (default 1)")
    add("--temperature", type=float, default=0.0,
        help="0 is greedy (default); Qwen3 without thinking: 0.7 with --top_p 0.8 --top_k 20")
    add("--top_p", type=float, default=1.0,
        help="sample from the smallest set of tokens with this much mass (default 1: all)")
    add("--top_k", type=int, default=0, help="sample from the k likeliest tokens (default 0: all)")
    add("--k", type=int, default=1, help="also report pass@k, for k up to n (default 1)")
    add("--limit", type=int, help="only the first so many problems")
    add("--max_new_tokens", type=int,
        help="longest response (default: 256 on the toy, 4096 elsewhere)")
    add("--thinking", action="store_true",
        help="let the model think (its chat template decides what that means)")
    add("--seed", type=int, default=0, help="seed of the samples; greedy decoding needs none")
    add("--batch", type=int,
        help="samples drawn at once (default: 256 on a CPU and on the toy, 64 on a GPU)")
    add("--device", default="auto", help="auto, cpu, cuda, cuda:1 ...")
    add("--dtype", default="auto", choices=["auto", "float32", "bfloat16"],
        help="auto: bfloat16 on a GPU, float32 on a CPU")
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


def default_folder(args):
    """runs/eval-MODEL-BENCHMARK. MODEL is the last two names of the model's folder, because
    the last name alone is mostly "final"."""
    model = Path(args.model)
    name = "-".join(model.parts[-2:]) if model.exists() else model.name
    return "runs/eval-" + re.sub(r"[^\w.-]+", "-", f"{name}-{Path(args.benchmark).stem}")


# ======================================================================== main


def main(argv=None):
    args = arguments(argv)
    if args.compare:
        print(compare(args.compare, args.out or "compare.png"))
        return
    check(args)
    rows = load_benchmark(args.benchmark, "test", args.limit)
    device = models.pick_device(args.device)
    toy = args.benchmark.startswith("toy")
    if args.max_new_tokens is None:
        args.max_new_tokens = 256 if toy else 4096
    if args.batch is None:
        args.batch = 256 if toy or device.type == "cpu" else 64

    # config.json holds what the samples depend on. With other values of these flags the
    # samples in the folder cannot be continued. The other flags may change.
    free = ("out", "compare", "batch", "device", "limit", "k", "vllm_memory")
    config = {k: v for k, v in vars(args).items() if k not in free}
    out = files.make_folder(args.out or default_folder(args))
    done = resume_records(out, config, rows, args.n)

    dtype = models.compute_dtype(args.dtype, device)
    tokenizer = models.load_tokenizer(args.model)
    model = models.load_model(args.model, device, dtype, tokenizer)
    models.check_head(tokenizer, [(args.model, model)])
    ask_in_known_words(tokenizer, rows)
    check_prompts(tokenizer, [r["prompt"] for r in rows[:50]], args.benchmark)
    if args.sampler == "vllm":
        attach_vllm(model, tokenizer, args, dtype)

    files.write_json(out / "config.json", config)
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
    files.write_text(out / "responses.jsonl", as_jsonl(records))
    about = {"model": args.model, "benchmark": args.benchmark}
    files.write_json(out / "summary.json", {**about, **summary})
    print(f"{args.model} on {args.benchmark}: {as_text(summary)}")
    print(f"responses and summary: {out}/")


if __name__ == "__main__":
    run_script(main)
