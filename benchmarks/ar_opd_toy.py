"""The paper's claims about AR-OPD on the toy, with intervals over seeds.

    python benchmarks/ar_opd_toy.py diagnostics               where the views differ from the student, what predicts success; minutes
    python benchmarks/ar_opd_toy.py arms --jobs 2             Base, SFT, Partial, Full, AR-OPD at four lambdas: table and picture; hours
    python benchmarks/ar_opd_toy.py controls --jobs 2         clip, answer in the partial view, teacher; hours

The gate (accuracy when generating under each view) stands in toy/README.md, and every run of ar_opd.py prints it first.
"""

import argparse
import sys

import torch
from arms import BENCHMARKS, ROOT, by_level, courses, differences, entropy, final, folder, picture, run_all, said

import ar_opd
import diagnostics
import plumbing
from evaluate import eos_ids, grade, load_benchmark, mean_interval, pass_at_k, prompt_ids, sample

ARMS = {
    "Base": None,
    "SFT": ["ar_opd.py", "--target", "sft"],
    "Partial": ["ar_opd.py", "--target", "partial"],
    "Full": ["ar_opd.py", "--target", "full"],
    **{f"AR-OPD {lam}": ["ar_opd.py", "--lam", str(lam)] for lam in (0.4, 0.6, 0.8, 1.2)},
}
CONTROLS = {
    "Full": ARMS["Full"],
    "AR-OPD 0.6": ARMS["AR-OPD 0.6"],
    "clip 1": ["ar_opd.py", "--clip", "1"],
    "no clip": ["ar_opd.py", "--clip", "0"],
    "answer in partial": ["ar_opd.py", "--partial_answer", "keep"],
    "Partial with answer": ["ar_opd.py", "--target", "partial", "--partial_answer", "keep"],
    "frozen teacher": ["ar_opd.py", "--teacher", "frozen"],
    "current teacher": ["ar_opd.py", "--teacher", "current"],
}


def shortcuts(runs, name):
    """Share of responses of a final evaluation that state a true value before what it depends on."""
    problems = [r["problem"] for r in load_benchmark({"test": "toy", "heldout": "toy-heldout"}[name])]

    def metric(arm, seed):
        rows = plumbing.read_jsonl(folder(runs, arm, seed) / name / "responses.jsonl")
        return sum(ar_opd.shortcut(problems[r["index"]], r["response"]) for r in rows) / len(rows)

    return metric


def table(runs, arms, seeds, base):
    lines = [
        f"| {len(seeds)} seeds | test | held-out | test - {base} | held-out - {base} | shortcuts, test | shortcuts, held-out | tokens | entropy |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    metrics = {n: final(runs, n) for n in ("test", "heldout")} | {f"s-{n}": shortcuts(runs, n) for n in ("test", "heldout")}
    for arm in arms:
        cells = [said([metrics[n](arm, s) for s in seeds]) for n in ("test", "heldout")]
        for n in ("test", "heldout"):
            cells.append("" if arm == base else said(differences(runs, [arm], seeds, base, metrics[n])[arm], True))
        cells += [said([metrics[f"s-{n}"](arm, s) for s in seeds]) for n in ("test", "heldout")]
        cells.append(f"{sum(final(runs, 'test', 'mean_tokens')(arm, s) for s in seeds) / len(seeds):.0f}")
        values = [entropy(runs)(arm, s) for s in seeds]
        cells.append("" if values[0] != values[0] else f"{sum(values) / len(values):.3f}")
        lines.append(f"| {arm} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def look_at_views(seeds, count):
    """A4, A5, A7 on the student before any training: gaps by fifths and by length of the context, AUC of advantages, pass@4 of each view."""
    cpu = torch.device("cpu")
    student, tokenizer = plumbing.load_model("toy/reader", cpu, torch.float32), plumbing.load_tokenizer("toy/reader")
    args = ar_opd.settle(plumbing.parse_arguments(ar_opd.Args, "", ["--data", "toy"]))
    tests, per, fifths, length_rows = load_benchmark("toy", "test"), [], [], []
    for seed in seeds:
        rows = [tests[i] for i in plumbing.prompts_of_step(1, count, len(tests), seed)]
        for r in rows:
            r.update({name: prompt_ids(tokenizer, user) for name, user in ar_opd.views(r, args).items()})
        args.seed = seed
        responses, _ = ar_opd.rollouts(student, tokenizer, rows, args, 1)
        scored = diagnostics.score_views(student, student, rows, responses, len(tokenizer))
        right = [grade(tokenizer.decode(y, skip_special_tokens=True), r["answer"]) for r, y in zip(rows, responses)]
        row = {f"AUC, {k} advantage": diagnostics.auc(v, right) for k, v in diagnostics.advantages(scored).items()}
        fifths.append({v: diagnostics.by_fifths(scored, v) for v in ("partial", "full")})
        lengths = [len(r["full"]) - len(r["plain"]) for r in rows]
        length_rows.append({v: diagnostics.by_length(scored, lengths, v) for v in ("partial", "full")})
        order = sorted(range(len(rows)), key=lambda i: lengths[i])
        for view in ("plain", "partial", "full"):
            drawn = sample(
                student,
                [r[view] for r in rows],
                n=4,
                max_new_tokens=256,
                eos=eos_ids(student, tokenizer),
                vocabulary=len(tokenizer),
                keys=[("pass", seed, view, i, j) for i in range(len(rows)) for j in range(4)],
            )
            hits = [
                sum(grade(tokenizer.decode(c.ids, skip_special_tokens=True), r["answer"]) for c in drawn[4 * i : 4 * i + 4])
                for i, r in enumerate(rows)
            ]
            for g, name in enumerate(("short", "middle", "long")):
                part = order[g * len(rows) // 3 : (g + 1) * len(rows) // 3]
                row[f"pass@4, {view}, {name} context"] = sum(pass_at_k(4, hits[i], 4) for i in part) / len(part)
                row[f"pass@1, {view}, {name} context"] = sum(hits[i] / 4 for i in part) / len(part)
        per.append(row)
        print(f"seed {seed} done", file=sys.stderr)
    print(f"{count} rollouts a seed, {len(seeds)} seeds; mean over seeds [95 % interval]")
    for key in per[0]:
        m, low, high = mean_interval([r[key] for r in per])
        print(f"  {key:<34} {m:.3f} [{low:.3f}, {high:.3f}]")
    for title, of, labels in (
        ("fifth of the rollout", fifths, range(1, 6)),
        ("length of the context", None, ("short", "middle", "long")),
    ):
        print(f"\n  by {title}: " + ", ".join(f"{g} (partial / full)" for g in diagnostics.GAPS))
        for k, label in enumerate(labels):
            cells = []
            for g in range(4):
                pair = []
                for view in ("partial", "full"):
                    values = [(f[view][k][g] if of else length_rows[i][view][k][2][g]).item() for i, f in enumerate(fifths)]
                    m, low, high = mean_interval(values)
                    pair.append(f"{m:.3f} ±{(high - low) / 2:.3f}")
                cells.append(" / ".join(pair))
            print(f"  {label!s:<8} " + "   ".join(cells))


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("what", choices=["diagnostics", "arms", "controls"])
    p.add_argument("--seeds", type=int, default=5, help="seeds 0 .. n-1 (default 5)")
    p.add_argument("--rollouts", type=int, default=300, help="of diagnostics, a seed (default 300)")
    p.add_argument("--jobs", type=int, default=1, help="runs at a time, one thread each (default 1)")
    p.add_argument("--limit", type=int, default=1000, help="problems of the final evaluations (default 1000 each)")
    p.add_argument("--runs", default="runs/ar_opd-toy", help="folder of the runs (default runs/ar_opd-toy)")
    args = p.parse_args()
    torch.set_num_threads(1)
    seeds = list(range(args.seeds))
    if args.what == "diagnostics":
        look_at_views(seeds, args.rollouts)
        return
    arms = ARMS if args.what == "arms" else CONTROLS
    run_all(arms, seeds, args.runs, args.jobs, args.limit, start="toy/reader")
    print(table(args.runs, arms, seeds, "Full"))
    courses(args.runs, arms, seeds)
    if args.what == "arms":
        by_level(args.runs, "AR-OPD 0.6", "Full", seeds, BENCHMARKS)
    name = "ar_opd-toy.png" if args.what == "arms" else "ar_opd-controls-toy.png"
    title = "AR-OPD on the toy" if args.what == "arms" else "AR-OPD's controls on the toy"
    picture(args.runs, arms, seeds, "Full", ROOT / "benchmarks" / name, f"{title}, {len(seeds)} seeds")
    print(f"picture: benchmarks/{name}")


if __name__ == "__main__":
    plumbing.run(main)
