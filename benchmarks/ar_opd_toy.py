"""The paper's claims about AR-OPD on the toy, with intervals over seeds. A1, A2 and so on
are the claims, see benchmarks/README.md.

    python benchmarks/ar_opd_toy.py diagnostics
        A4, A5, A7: where the views differ from the student, what predicts success; minutes
    python benchmarks/ar_opd_toy.py arms --jobs 2
        Base, SFT, Partial, Full, AR-OPD with four lambdas: table and picture; hours
    python benchmarks/ar_opd_toy.py controls --jobs 2
        clip, answer in the partial view, teacher; hours

The gate (accuracy when generating under each view) stands in toy/README.md, and every run
of ar_opd.py prints it first.
"""

import sys

import torch
from arms import (
    BENCHMARKS,
    ROOT,
    as_percent,
    by_level,
    courses,
    differences,
    entropy,
    final,
    folder,
    line,
    picture,
    run_all,
)

import ar_opd
from common import diagnostics
from common.arguments import Parser, run_script
from common.batches import prompts_of_step
from common.data import checker, load_benchmark, prompt_ids
from common.evaluation import mean_interval, pass_at_k
from common.files import read_jsonl
from common.flags import parse
from common.grading import grade
from common.models import load_model, load_tokenizer
from common.sampler import sample

# ======================================================================== arms and controls

# The rates are the script's defaults of that time. RESULTS.md has tuned ones.
BASE = ["ar_opd.py", "--lr", "3e-4", "--ema", "0.05"]
ARMS = {
    "Base": None,  # the start, without training
    "SFT": [*BASE, "--target", "sft"],
    "Partial": [*BASE, "--target", "partial"],
    "Full": [*BASE, "--target", "full"],
    **{f"AR-OPD {lam}": [*BASE, "--lam", str(lam)] for lam in (0.4, 0.6, 0.8, 1.2)},
}
CONTROLS = {
    "Full": ARMS["Full"],
    "AR-OPD 0.6": ARMS["AR-OPD 0.6"],
    "clip 1": [*BASE, "--clip", "1"],
    "no clip": [*BASE, "--clip", "0"],
    "answer in partial": [*BASE, "--partial_answer", "keep"],
    "Partial with answer": [*BASE, "--target", "partial", "--partial_answer", "keep"],
    "frozen teacher": [*BASE, "--teacher", "frozen"],
    "current teacher": [*BASE, "--teacher", "current"],
}


def arithmetic_target(partial_logp, full_logp, lam, clip):
    """A control for ar_opd.py's target: the mixture of the probabilities, not of their logarithms.
    Here a token needs support in EITHER view; in (4) it needs support in both."""
    weights = torch.tensor([1 - lam, lam]).log()
    both = torch.stack([partial_logp, full_logp], -1) + weights.to(partial_logp)
    return both.logsumexp(-1), torch.zeros(len(partial_logp)).to(partial_logp)  # [n, V], [n]


def shortcuts(runs, name):
    """A function (arm, seed) -> the share of the responses of a final evaluation that state
    a true value before the values that it is computed from."""
    rows, check = load_benchmark(BENCHMARKS[name]), checker(BENCHMARKS[name])

    def metric(arm, seed):
        records = read_jsonl(folder(runs, arm, seed) / name / "responses.jsonl")
        return diagnostics.shortcut_share(records, rows, check)

    return metric


def table(runs, arms, seeds, base):
    """Markdown: accuracy, differences to `base`, shortcuts, length and entropy."""
    heads = [f"{len(seeds)} seeds", "test", "held-out", f"test - {base}", f"held-out - {base}"]
    heads += ["shortcuts, test", "shortcuts, held-out", "tokens", "entropy"]
    lines = [line(heads), "|---" * len(heads) + "|"]
    accuracies = [final(runs, name) for name in ("test", "heldout")]
    shares = [shortcuts(runs, name) for name in ("test", "heldout")]
    tokens, nats = final(runs, "test", "mean_tokens"), entropy(runs)
    for arm in arms:
        cells = [arm, *(as_percent([metric(arm, s) for s in seeds]) for metric in accuracies)]
        for metric in accuracies:
            gaps = differences(runs, [arm], seeds, base, metric)
            cells.append("" if arm == base else as_percent(gaps[arm], True))
        cells += [as_percent([metric(arm, s) for s in seeds]) for metric in shares]
        cells.append(f"{sum(tokens(arm, s) for s in seeds) / len(seeds):.0f}")
        mean = sum(nats(arm, s) for s in seeds) / len(seeds)
        cells.append("" if mean != mean else f"{mean:.3f}")  # NaN without training
        lines.append(line(cells))
    return "\n".join(lines)


# ======================================================================== what the views know


def look_at_views(seeds, count):
    """A4, A5 and A7 on the student before any training: gaps by fifths of the rollout and
    by length of the context, AUC of the advantages, and pass@4 of each view."""
    tokenizer = load_tokenizer("toy/reader")
    student = load_model("toy/reader", torch.device("cpu"), torch.float32, tokenizer)
    args = ar_opd.check(parse(ar_opd.Args, "", ["--data", "toy"], "ar_opd"))
    tests, per_seed, fifths, thirds = load_benchmark("toy", "test"), [], [], []
    for seed in seeds:
        args.seed = seed
        rows = [tests[i] for i in prompts_of_step(1, count, len(tests), seed)]
        for r in rows:
            r.update({k: prompt_ids(tokenizer, user) for k, user in ar_opd.views(r, args).items()})
        responses = ar_opd.rollouts(student, tokenizer, rows, args, 1)
        scored = diagnostics.score_views(student, student, rows, responses)
        right = [is_right(tokenizer, y, r) for y, r in zip(responses, rows)]
        sums = diagnostics.advantages(scored)
        numbers = {f"AUC, {k} advantage": diagnostics.auc(v, right) for k, v in sums.items()}
        lengths = [len(r["full"]) - len(r["plain"]) for r in rows]
        for name in ("plain", "partial", "full"):
            numbers |= generate(student, tokenizer, rows, name, lengths, seed)
        per_seed.append(numbers)
        views = ("partial", "full")
        fifths.append({v: diagnostics.by_fifths(scored, v) for v in views})  # [5, 4] each
        by_length = {v: diagnostics.by_length(scored, lengths, v) for v in views}
        thirds.append({v: [mean for *_, mean in by_length[v]] for v in views})  # three [4] each
        print(f"seed {seed} done", file=sys.stderr)
    print(f"{count} rollouts per seed, {len(seeds)} seeds; mean over seeds [95 % interval]")
    for key in per_seed[0]:
        m, low, high = mean_interval([numbers[key] for numbers in per_seed])
        print(f"  {key:<34} {m:.3f} [{low:.3f}, {high:.3f}]")
    show_gaps("fifth of the rollout", range(1, 6), fifths)
    show_gaps("length of the context", ("short", "middle", "long"), thirds)


def is_right(tokenizer, ids, row):
    return grade(tokenizer.decode(ids, skip_special_tokens=True), row["answer"])


def generate(student, tokenizer, rows, view, lengths, seed):
    """pass@1 and pass@4 when generating with the prompt of a view, for three groups of rows
    by length of the context."""
    keys = [("pass", seed, view, i, j) for i in range(len(rows)) for j in range(4)]
    drawn = sample(student, [r[view] for r in rows], n=4, max_new_tokens=256, keys=keys)
    hits = []
    for i, row in enumerate(rows):
        hits.append(sum(is_right(tokenizer, c.ids, row) for c in drawn[4 * i : 4 * i + 4]))
    order, numbers = sorted(range(len(rows)), key=lambda i: lengths[i]), {}
    for g, name in enumerate(("short", "middle", "long")):
        part = order[g * len(rows) // 3 : (g + 1) * len(rows) // 3]
        of_four = sum(pass_at_k(4, hits[i], 4) for i in part) / len(part)
        numbers[f"pass@4, {view}, {name} context"] = of_four
        numbers[f"pass@1, {view}, {name} context"] = sum(hits[i] / 4 for i in part) / len(part)
    return numbers


def show_gaps(title, labels, per_seed):
    """per_seed: one {view: the four gaps for each label} per seed."""
    heads = ", ".join(f"{gap} (partial / full)" for gap in diagnostics.GAPS)
    print(f"\n  by {title}: {heads}")
    for k, label in enumerate(labels):
        cells = []
        for g in range(len(diagnostics.GAPS)):
            pair = []
            for view in ("partial", "full"):
                m, low, high = mean_interval([s[view][k][g].item() for s in per_seed])
                pair.append(f"{m:.3f} ±{(high - low) / 2:.3f}")
            cells.append(" / ".join(pair))
        print(f"  {label!s:<8} {'   '.join(cells)}")


# ======================================================================== main


def main():
    p = Parser(__doc__)
    p.add_argument("what", choices=["diagnostics", "arms", "controls"])
    p.add_argument("--seeds", type=int, default=5, help="seeds 0 .. n-1 (default 5)")
    p.add_argument(
        "--rollouts", type=int, default=300, help="of diagnostics, per seed (default 300)"
    )
    p.add_argument(
        "--jobs", type=int, default=1, help="runs at a time, one thread each (default 1)"
    )
    p.add_argument(
        "--limit",
        type=int,
        default=1000,
        help="problems of the final evaluations (default 1000 each)",
    )
    p.add_argument(
        "--runs", default="runs/ar_opd-toy", help="folder of the runs (default runs/ar_opd-toy)"
    )
    args = p.parse_args()
    torch.set_num_threads(1)
    seeds = list(range(args.seeds))
    if args.what == "diagnostics":
        look_at_views(seeds, args.rollouts)
        return
    controls = args.what == "controls"
    arms = CONTROLS if controls else ARMS
    run_all(arms, seeds, args.runs, args.jobs, args.limit, start="toy/reader")
    print(table(args.runs, arms, seeds, "Full"))
    courses(args.runs, arms, seeds)
    if not controls:
        by_level(args.runs, "AR-OPD 0.6", "Full", seeds, BENCHMARKS)
    name = f"ar_opd-{'controls-' if controls else ''}toy.png"
    title = f"{'The controls of AR-OPD' if controls else 'AR-OPD'} on the toy, {len(seeds)} seeds"
    picture(args.runs, arms, seeds, "Full", ROOT / "benchmarks" / name, title)
    print(f"picture: benchmarks/{name}")


if __name__ == "__main__":
    run_script(main)
