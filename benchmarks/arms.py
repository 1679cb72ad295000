"""Arms over seeds: make the runs that are missing, evaluate their final models, and compare
the arms in curves, in paired differences and in a table.

The scripts beside this file define the arms. This file compares them. An arm is a command
line without its seed. All arms of a seed start from the same student and see the same
problems in the same order, so differences are paired by seed. A run that has its final
model is never repeated. An interrupted run is continued when the same command is started
again.
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
from common.data import load_benchmark  # noqa: E402
from common.evaluation import mean_interval  # noqa: E402
from common.files import read_json, read_jsonl  # noqa: E402
from common.show import percent  # noqa: E402

BENCHMARKS = {"test": "toy", "heldout": "toy-heldout"}


def folder(runs, arm, seed):
    return Path(runs) / f"{arm.replace(' ', '-')}-{seed}"


# ======================================================================== the runs


def run_all(arms, seeds, runs, jobs, limit, benchmarks=BENCHMARKS, start="toy/student"):
    """All arms with all seeds: train, and evaluate the final model.

    jobs: so many runs at a time, with one thread each. (Two threads on two busy cores are
    slower than one.) limit: problems of each final evaluation. benchmarks: {name of the
    folder: what stands behind --benchmark, which may hold further flags of evaluate.py}.
    start: the model that is evaluated for an arm without training.
    """
    Path(runs).mkdir(parents=True, exist_ok=True)
    runs, printing = Path(runs).resolve(), threading.Lock()

    def one(seed, arm):
        out = folder(runs, arm, seed)
        log = out.with_suffix(".log")
        if arms[arm] and not (out / "final").exists():
            resume = ["--resume"] if (out / "config.json").exists() else []
            call([*arms[arm], "--seed", seed, "--out", out, *resume], log)
        model = out / "final" if arms[arm] else start
        for name, benchmark in benchmarks.items():
            if not (out / name / "summary.json").exists():
                (out / name).mkdir(parents=True, exist_ok=True)
                command = ["evaluate.py", "--model", model, "--limit", limit, "--benchmark"]
                call([*command, *shlex.split(benchmark), "--out", out / name], log)
        summaries = {name: read_json(out / name / "summary.json") for name in benchmarks}
        with printing:
            results = ", ".join(f"{name} {percent(s)}" for name, s in summaries.items())
            print(f"{arm}, seed {seed}: {results}", flush=True)

    with ThreadPoolExecutor(jobs) as pool:
        for future in [pool.submit(one, seed, arm) for seed in seeds for arm in arms]:
            future.result()


def call(command, log):
    """Run a script of this repository, and write what it prints to `log`."""
    command = [str(x) for x in command]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "NO_COLOR": "1"}
    with open(log, "a", encoding="utf-8") as f:
        done = subprocess.run(
            [sys.executable, *command], cwd=ROOT, stdout=f, stderr=f, env=environment
        )
    if done.returncode:
        sys.exit(f"error: {' '.join(command)} ended with {done.returncode}; see {log}")


# ======================================================================== numbers of the runs


def curve(run, cost=1.0):
    """[(update, time so far, accuracy)] of the evaluations during a run.

    Time is the number of updates times `cost`: the time of an update relative to the base
    arm, measured side by side. The seconds that a run noted are not used, because they also
    hold what else the machine did at that time.
    """
    rows = [r for r in read_jsonl(run / "metrics.jsonl") if "eval" in r]
    return [(r["step"], r["step"] * cost, r["eval"]["accuracy"]) for r in rows]


def at(points, x, column):
    """The accuracy of a curve at update (column 0) or time (column 1) x. Between two
    evaluations it lies on the straight line."""
    for before, after in zip(points, points[1:]):
        if before[column] <= x <= after[column]:
            share = (x - before[column]) / max(1e-9, after[column] - before[column])
            return before[2] + share * (after[2] - before[2])
    return points[-1][2]


def final(runs, name, key="accuracy"):
    """A function (arm, seed) -> a number of the final evaluation `name`."""
    return lambda arm, seed: read_json(folder(runs, arm, seed) / name / "summary.json")[key]


def entropy(runs):
    """A function (arm, seed) -> the mean entropy of the student's next token on its
    rollouts, over the last 20 updates. NaN for an arm without training."""

    def metric(arm, seed):
        path = folder(runs, arm, seed) / "metrics.jsonl"
        rows = read_jsonl(path) if path.exists() else []
        last = [r["student_entropy"] for r in rows if "student_entropy" in r][-20:]
        return sum(last) / len(last) if last else float("nan")

    return metric


def differences(runs, arms, seeds, base, metric):
    """Paired differences of every arm to `base`: {arm: [one per seed]}."""
    return {arm: [metric(arm, s) - metric(base, s) for s in seeds] for arm in arms if arm != base}


# ======================================================================== texts


def as_percent(values, signed=False):
    """Mean over seeds, and its 95 % interval, in per cent."""
    m, low, high = (100 * v for v in mean_interval(values))
    if signed:
        return f"{m:+.1f} [{low:+.1f}, {high:+.1f}]"
    return f"{m:.1f} [{low:.1f}, {high:.1f}]"


def line(cells):
    return f"| {' | '.join(cells)} |"


def table(runs, arms, seeds, base, costs=None):
    """Markdown: means over seeds with 95 % intervals (Student's t), and differences to
    `base`, paired by seed.

    costs: {arm: time of an update relative to the base arm}. With them the last column
    compares the arms at the time at which the base arm has made all its updates.
    """
    heads = [f"{len(seeds)} seeds", "test", "held-out", f"test - {base}", f"held-out - {base}"]
    if costs is not None:
        heads.append(f"at the time of {base}")
    lines = [line(heads), "|---" * len(heads) + "|"]
    metrics = [final(runs, name) for name in ("test", "heldout")]
    for arm in arms:
        cells = [arm, *(as_percent([metric(arm, s) for s in seeds]) for metric in metrics)]
        for metric in metrics:
            gaps = differences(runs, [arm], seeds, base, metric)
            cells.append("" if arm == base else as_percent(gaps[arm], True))
        if costs is not None:
            timed = arm != base and arm in costs and base in costs
            gaps = gaps_at_equal_time(runs, arm, seeds, base, costs) if timed else []
            cells.append(as_percent(gaps, True) if timed else "")
        lines.append(line(cells))
    return "\n".join(lines)


def gaps_at_equal_time(runs, arm, seeds, base, costs):
    """Differences to `base`, one per seed, when `base` has made all its updates."""
    gaps = []
    for seed in seeds:
        _, time, accuracy = curve(folder(runs, base, seed), costs[base])[-1]
        gaps.append(at(curve(folder(runs, arm, seed), costs[arm]), time, 1) - accuracy)
    return gaps


def courses(runs, arms, seeds):
    """Print the mean over seeds of every evaluation during the runs, one line per arm:
    accuracy, and also pass@1 and pass@8 if they were measured."""
    for arm in arms:
        if not arms[arm]:
            continue  # it was not trained
        paths = [folder(runs, arm, s) / "metrics.jsonl" for s in seeds]
        rows_of = [[r for r in read_jsonl(path) if "eval" in r] for path in paths]
        measured = rows_of[0][0]["eval"]
        for key in ("accuracy", "pass@1", "pass@8"):
            if key not in measured:
                continue
            means = [
                f"{same[0]['step']}: {100 * sum(r['eval'][key] for r in same) / len(same):.1f}"
                for same in zip(*rows_of)
            ]
            print(f"{arm + ', ' + key:<28} {'  '.join(means)}")


def by_level(runs, arm, base, seeds, benchmarks):
    """Print the difference of `arm` to `base` for each number of steps of the problems."""
    for name, benchmark in benchmarks.items():
        levels = [r["level"] for r in load_benchmark(benchmark)]
        for level in sorted(set(levels)):

            def metric(which, seed, name=name, levels=levels, level=level):
                records = read_jsonl(folder(runs, which, seed) / name / "responses.jsonl")
                verdicts = [r["correct"] for r in records if levels[r["index"]] == level]
                return sum(verdicts) / len(verdicts)

            gaps = differences(runs, [arm], seeds, base, metric)[arm]
            alone = as_percent([metric(base, s) for s in seeds])
            print(f"{level} steps: {arm} - {base} {as_percent(gaps, True)}; {base} alone {alone}")


# ======================================================================== the picture


def picture(runs, arms, seeds, base, path, title, costs=None):
    """Curves over updates (means over seeds, with thin lines for the seeds), and the final
    differences with their intervals. With costs also curves over time."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    timed = costs is not None
    colours = {arm: f"C{i % 10}" for i, arm in enumerate(arms)}
    widths = [1.1, 1.1, 1] if timed else None
    figure, axes = plt.subplots(
        1,
        3 if timed else 2,
        figsize=(13 if timed else 10, 4.2),
        layout="constrained",
        width_ratios=widths,
    )
    trained = {arm: 1.0 for arm in arms if arms[arm]}
    draw_curves(axes[0], runs, trained, seeds, colours, column=0)
    axes[0].set(xlabel="update", ylabel="accuracy (%)")
    axes[0].legend(frameon=False, fontsize=9)
    if timed:
        measured = {arm: costs[arm] for arm in trained if arm in costs}
        draw_curves(axes[1], runs, measured, seeds, colours, column=1)
        axes[1].set(xlabel=f"time, in updates of {base}", ylabel="accuracy (%)")
    draw_differences(axes[-1], runs, arms, seeds, base, colours)
    figure.suptitle(title)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def draw_curves(axis, runs, costs, seeds, colours, column):
    """column: 0 for accuracy over updates, 1 for accuracy over time."""
    for arm, cost in costs.items():
        curves = [curve(folder(runs, arm, s), cost) for s in seeds]
        for points in curves:
            x, y = [p[column] for p in points], [100 * p[2] for p in points]
            axis.plot(x, y, color=colours[arm], alpha=0.18, linewidth=0.8)
        together = list(zip(*curves))  # for each evaluation the points of all seeds
        x = [sum(p[column] for p in points) / len(points) for points in together]
        y = [100 * sum(p[2] for p in points) / len(points) for points in together]
        axis.plot(x, y, color=colours[arm], label=arm)


def draw_differences(axis, runs, arms, seeds, base, colours):
    others = [arm for arm in reversed(list(arms)) if arm != base]  # matplotlib counts upwards
    for shift, name, marker, fill in ((0.12, "test", "o", "full"), (-0.12, "heldout", "s", "none")):
        gaps = differences(runs, others, seeds, base, final(runs, name))
        for y, arm in enumerate(others):
            m, low, high = (100 * v for v in mean_interval(gaps[arm]))
            colour, label = colours[arm], name if y == 0 else None
            axis.plot([low, high], [y + shift] * 2, color=colour)
            axis.plot(m, y + shift, marker, color=colour, fillstyle=fill, label=label)
    axis.axvline(0, color="#888", linewidth=0.8)
    axis.set_yticks(range(len(others)), others)
    label = f"difference to {base}, points (paired, 95 %)"
    axis.set(xlabel=label, title="after the last update")
    legend = axis.legend(frameon=False, fontsize=8)
    for handle in legend.legend_handles:
        handle.set_color("#444")
