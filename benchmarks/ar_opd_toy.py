"""The paper's claims about the two views on the toy, before any training, with intervals over
seeds. A4, A5 and A7: where the views differ from the student, and what predicts success. What
AR-OPD does to learning: lab.py.

    python benchmarks/ar_opd_toy.py         minutes

The gate (accuracy when generating under each view) stands in toy/README.md, and every run
of ar_opd.py prints it first.
"""

import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import ar_opd
from common import diagnostics
from common.arguments import Parser, run_script
from common.batches import prompts_of_step
from common.data import load_benchmark, prompt_ids
from common.evaluation import mean_interval, pass_at_k
from common.flags import at_least, parse
from common.grading import grade
from common.models import load_model, load_tokenizer
from common.sampler import sample

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
    p.add_argument("--seeds", type=int, default=5, help="seeds 0 .. n-1 (default 5)")
    p.add_argument("--rollouts", type=int, default=300, help="per seed (default 300)")
    args = p.parse_args()
    at_least(args, 1, "seeds")
    at_least(args, 20, "rollouts")
    torch.set_num_threads(1)
    look_at_views(list(range(args.seeds)), args.rollouts)


if __name__ == "__main__":
    run_script(main)
