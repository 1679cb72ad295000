"""Arms over seeds: run what is missing, evaluate the final models, and put curves, paired differences and a table together.

The scripts beside this file say which arms; here is how they are compared. An arm is a command line without its seed. All arms of
one seed start from the same student and see the same problems in the same order, so differences are paired by seed. A run that
has its final model is never repeated, one that was interrupted is resumed: start the same command again.
"""

import os
import shlex
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
import plumbing  # noqa: E402
from evaluate import load_benchmark, mean_interval  # noqa: E402

BENCHMARKS = {"test": "toy", "heldout": "toy-heldout"}


def folder(runs, arm, seed):
    return Path(runs) / f"{arm.replace(' ', '-')}-{seed}"


def run_all(arms, seeds, runs, jobs, limit, benchmarks=BENCHMARKS, start="toy/student"):
    """All arms for all seeds, `jobs` at a time with one thread each: two threads on two busy cores are slower than one.
    benchmarks: name of the folder -> what stands behind --benchmark, further flags of evaluate.py included."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "NO_COLOR": "1"}
    said = threading.Lock()

    def call(command, log):
        with open(log, "a") as f:
            done = subprocess.run([sys.executable, *map(str, command)], cwd=ROOT, stdout=f, stderr=f, env=environment)
        if done.returncode:
            sys.exit(f"error: {' '.join(map(str, command))} ended with {done.returncode}; see {log}")

    def one(seed, arm):
        out = folder(runs, arm, seed)
        log = out.with_suffix(".log")
        if not (out / "final").exists() and arms[arm]:
            resume = ["--resume"] if (out / "config.json").exists() else []
            call([*arms[arm], "--seed", seed, "--out", out.resolve(), *resume], log)
        model = (out / "final").resolve() if arms[arm] else start
        for name, benchmark in benchmarks.items():
            if not (out / name / "summary.json").exists():
                (out / name).mkdir(parents=True, exist_ok=True)
                call(
                    [
                        "evaluate.py",
                        "--model",
                        model,
                        "--limit",
                        limit,
                        "--benchmark",
                        *shlex.split(benchmark),
                        "--out",
                        out / name,
                    ],
                    log,
                )
        with said:
            print(
                f"{arm}, seed {seed}: "
                + ", ".join(f"{n} {plumbing.percent(plumbing.read_json(out / n / 'summary.json', ''))}" for n in benchmarks),
                flush=True,
            )

    Path(runs).mkdir(parents=True, exist_ok=True)
    runs = Path(runs).resolve()
    with ThreadPoolExecutor(jobs) as pool:
        for future in [pool.submit(one, seed, arm) for seed in seeds for arm in arms]:
            future.result()


def curve(run, cost=1.0):
    """[(update, time so far, accuracy)] of a run's evaluations. Time is updates x cost; a cost is an update's time relative to that of
    the base, measured side by side. The seconds that a run noted also hold whatever else the machine did at the time."""
    return [
        (r["step"], r["step"] * cost, r["eval"]["accuracy"]) for r in plumbing.read_jsonl(run / "metrics.jsonl") if "eval" in r
    ]


def at(points, x, column):
    """Accuracy of a curve at update (column 0) or second (column 1) x, between two evaluations by a straight line."""
    for before, after in zip(points, points[1:]):
        if before[column] <= x <= after[column]:
            share = (x - before[column]) / max(1e-9, after[column] - before[column])
            return before[2] + share * (after[2] - before[2])
    return points[-1][2]


def said(values, signed=False):
    m, low, high = (100 * v for v in mean_interval(values))
    return f"{m:+.1f} [{low:+.1f}, {high:+.1f}]" if signed else f"{m:.1f} [{low:.1f}, {high:.1f}]"


def differences(runs, arms, seeds, base, metric):
    """Paired differences of every arm to `base`, {arm: [one a seed]}."""
    return {arm: [metric(arm, s) - metric(base, s) for s in seeds] for arm in arms if arm != base}


def final(runs, name, key="accuracy"):
    return lambda arm, seed: plumbing.read_json(folder(runs, arm, seed) / name / "summary.json", "")[key]


def table(runs, arms, seeds, base, costs=None):
    """Markdown: means over seeds with 95 % intervals (Student's t), and differences to `base`, paired by seed."""
    timed, curves = costs is not None, {}
    for a in arms:
        if timed and a in costs:
            curves |= {(a, s): curve(folder(runs, a, s), costs[a]) for s in seeds}
    lines = [
        f"| {len(seeds)} seeds | test | held-out | test - {base} | held-out - {base} |"
        + (f" at the time of {base} |" if timed else ""),
        "|---|---|---|---|---|" + ("---|" if timed else ""),
    ]
    for arm in arms:
        test, heldout = ([final(runs, n)(arm, s) for s in seeds] for n in ("test", "heldout"))
        cells = [said(test), said(heldout)]
        if arm == base:
            cells += ["", ""] + [""] * timed
        else:
            cells += [said(differences(runs, [arm], seeds, base, final(runs, n))[arm], True) for n in ("test", "heldout")]
            if timed and all((arm, s) in curves for s in seeds):
                cells.append(
                    said([at(curves[arm, s], curves[base, s][-1][1], 1) - curves[base, s][-1][2] for s in seeds], True)
                )
            elif timed:
                cells.append("")
        lines.append(f"| {arm} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def entropy(runs):
    """Mean entropy of the student's next token on its rollouts, over the last 20 updates."""

    def metric(arm, seed):
        path = folder(runs, arm, seed) / "metrics.jsonl"
        rows = [r for r in plumbing.read_jsonl(path) if "student_entropy" in r] if path.exists() else []
        return sum(r["student_entropy"] for r in rows[-20:]) / max(1, len(rows[-20:])) if rows else float("nan")

    return metric


def courses(runs, arms, seeds):
    """Mean over seeds of every evaluation along the way, a line an arm: accuracy, and pass@1 and pass@8 where they were measured."""
    for arm in arms:
        if not arms[arm]:
            continue  # a start that was not trained
        runs_of = [[r for r in plumbing.read_jsonl(folder(runs, arm, s) / "metrics.jsonl") if "eval" in r] for s in seeds]
        keys = [k for k in ("accuracy", "pass@1", "pass@8") if k in runs_of[0][0]["eval"]]
        for k in keys:
            means = [(same[0]["step"], 100 * sum(r["eval"][k] for r in same) / len(same)) for same in zip(*runs_of)]
            print(f"{arm + ', ' + k:<28} " + "  ".join(f"{step}: {mean:.1f}" for step, mean in means))


def by_level(runs, arm, base, seeds, benchmarks):
    """Difference of `arm` to `base` by the number of steps of the problems, paired by seed."""
    for name, benchmark in benchmarks.items():
        levels = [r["level"] for r in load_benchmark(benchmark)]
        for level in sorted(set(levels)):
            per = {}
            for which in (arm, base):
                for s in seeds:
                    rights = [
                        r["correct"]
                        for r in plumbing.read_jsonl(folder(runs, which, s) / name / "responses.jsonl")
                        if levels[r["index"]] == level
                    ]
                    per[which, s] = sum(rights) / len(rights)
            gap = said([per[arm, s] - per[base, s] for s in seeds], True)
            print(f"{level} steps: {arm} - {base} {gap}; {base} alone {said([per[base, s] for s in seeds])}")


def picture(runs, arms, seeds, base, path, title, costs=None):
    """Curves over updates and over seconds (mean of the seeds, thin lines the seeds), and the final differences with intervals."""
    timed = costs is not None
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    trained = [a for a in arms if arms[a]]
    figure, axes = plt.subplots(
        1,
        3 if timed else 2,
        figsize=(13 if timed else 10, 4.2),
        layout="constrained",
        width_ratios=[1.1, 1.1, 1] if timed else None,
    )
    colours = {a: f"C{i % 10}" for i, a in enumerate(arms)}
    for column, axis in zip((0, 1) if timed else (0,), axes):
        for arm in trained if column == 0 else [a for a in trained if a in costs]:
            curves = [curve(folder(runs, arm, s), costs[arm] if column else 1.0) for s in seeds]
            for c in curves:
                axis.plot([p[column] for p in c], [100 * p[2] for p in c], color=colours[arm], alpha=0.18, linewidth=0.8)
            rows = list(zip(*curves))
            axis.plot(
                [sum(p[column] for p in r) / len(r) for r in rows],
                [100 * sum(p[2] for p in r) / len(r) for r in rows],
                color=colours[arm],
                label=arm,
            )
        axis.set(xlabel=("update", f"time, in updates of {base}")[column], ylabel="accuracy (%)")
    axes[0].legend(frameon=False, fontsize=9)
    axis, others = axes[-1], [a for a in arms if a != base]
    for y, arm in enumerate(reversed(others)):
        for shift, name, marker in ((0.12, "test", "o"), (-0.12, "heldout", "s")):
            values = differences(runs, [arm], seeds, base, final(runs, name))[arm]
            m, low, high = (100 * v for v in mean_interval(values))
            axis.plot([low, high], [y + shift] * 2, color=colours[arm])
            axis.plot(
                m,
                y + shift,
                marker,
                color=colours[arm],
                fillstyle="full" if name == "test" else "none",
                label=name if y == 0 else None,
            )
    axis.axvline(0, color="#888", linewidth=0.8)
    axis.set_yticks(range(len(others)), list(reversed(others)))
    axis.set(xlabel=f"difference to {base}, points (paired, 95 %)", title="after the last update")
    legend = axis.legend(frameon=False, fontsize=8)
    for handle in legend.legend_handles:
        handle.set_color("#444")
    figure.suptitle(title)
    figure.savefig(path, dpi=110)
    plt.close(figure)
