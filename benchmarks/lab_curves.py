"""The pictures of RESULTS.md: accuracy along the runs, and the dials: the gain of a method over its
base, along its own premise."""

import math

import lab
import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402
from lab_report import interval, of_seeds, paired, table  # noqa: E402

from common.evaluation import mean_interval  # noqa: E402
from common.files import read_jsonl  # noqa: E402

# ======================================================================== along the run


def curves(lines, family, path):
    """Validation accuracy along the runs, mean over the seeds, the tuned setting."""
    figure, axis = plt.subplots(figsize=(8, 4.2), layout="constrained")
    ends = []
    for i, (arm, spec) in enumerate(lab.ARMS.items()):
        if spec.family != family or lab.pilots(lines, arm):
            continue
        chosen = [x["curve"] for x in of_seeds(lines, arm, "tuned").values()]
        if not chosen:
            continue
        points = [
            (same[0][0], 100 * lab.mean(p[1] for p in same)) for same in zip(*chosen, strict=True)
        ]
        axis.plot(*zip(*points), color=f"C{i % 10}")
        ends.append((points[-1], arm, f"C{i % 10}"))
    if not ends:
        plt.close(figure)
        return None
    # The name of a curve stands at its end, and no two names on top of each other.
    height, (low, high) = -math.inf, axis.get_ylim()
    spread = high - low
    for (x, y), arm, colour in sorted(ends):
        height = max(y, height + 0.06 * spread)
        axis.annotate(arm, (x, y), xytext=(x * 1.02, height), color=colour, va="center")
    axis.set(xlabel="update", ylabel="validation accuracy (%)", xlim=(0, ends[0][0][0] * 1.25))
    axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=110, metadata={"Software": None})
    plt.close(figure)
    return path.name


# ======================================================================== along a premise


def tests_with(**wanted):
    """[True or False] for each test problem: has it these values?"""
    rows = read_jsonl(lab.ROOT / "toy" / "test.jsonl")
    return [all(r[k] == v for k, v in wanted.items()) for r in rows]


def share(line, wanted):
    """Accuracy in per cent on a part of the test problems. wanted: [True or False] for each."""
    bits = f"{int(line['toy']['right'], 16):0{line['toy']['n']}b}"
    chosen = [bit for bit, yes in zip(bits, wanted, strict=True) if yes]
    return 100 * chosen.count("1") / len(chosen)


def gains(lines, better, worse, wanted=None, **where):
    """Paired differences, on a part of the test problems or on all of them."""
    def accuracies(name):
        found = of_seeds(lines, name, "tuned", **where)
        if wanted is None:
            return {s: 100 * x["toy"]["accuracy"] for s, x in found.items()}
        return {s: share(x, wanted) for s, x in found.items()}

    return paired(accuracies(better), accuracies(worse))


def all_gains(lines):
    """[(title, [(value of the dial, paired differences)])]. The more to the right, the better the
    premise of the method holds."""
    starts = {
        x["start"]: x["toy"]["pass@1"] for x in lines if x["stage"] == "start" and not x["pair"]
    }
    names = sorted((s for s in starts if s.startswith("reader")), key=starts.get)
    trained = [
        (style, gains(lines, f"TOPD{more}", f"OPD{more}"))
        for style, more in (("terse", ", terse only"), ("both", ""), ("verbose", ", verbose only"))
    ]
    tested = [
        (style, gains(lines, "TOPD", "OPD", tests_with(style=style)))
        for style in ("terse", "verbose")
    ]
    rho = [
        (f"rho {rho}", gains(lines, f"AR-OPD{more}", "Full"))
        for rho, more in ((0.75, ", rho 0.75"), (0.5, ""), (0.25, ", rho 0.25"))
    ]
    steps = [
        (f"{n} steps", gains(lines, "AR-OPD", "Full", tests_with(level=n)))
        for n in (3, 4, 5)
    ]
    begun = {
        arm: [(f"{100 * starts[s]:.0f} % right", gains(lines, arm, "GRPO", start=s)) for s in names]
        for arm in ("HSD", "HSD (mask)")
    }
    return [
        ("TOPD - OPD, trained on problems that are", trained),
        ("TOPD - OPD, tested on problems that are", tested),
        ("AR-OPD - Full, with an anchor of", rho),
        ("AR-OPD - Full, tested on problems with", steps),
        *((f"{arm} - GRPO, from a start that is right so often (100 problems x 8)", of)
          for arm, of in begun.items()),
    ]


def dials(lines, folder):
    """The parts of the text: a table, and a picture where there is something to draw."""
    found = all_gains(lines)
    rows = [
        [title, value, interval(gaps, signed=True)] for title, of in found for value, gaps in of
    ]
    parts = [table(["gain", "premise", "difference"], rows)]
    drawn = [(title, [(v, g) for v, g in of if len(g) > 1]) for title, of in found]
    drawn = [(title, of) for title, of in drawn if len(of) > 1]
    if drawn:
        figure, axes = plt.subplots(
            1, len(drawn), figsize=(3 * len(drawn), 3.2), layout="constrained", squeeze=False
        )
        for axis, (title, of) in zip(axes[0], drawn):
            found = [mean_interval(gaps) for _, gaps in of]
            middles = [m for m, _, _ in found]
            sizes = [(m - low, high - m) for m, low, high in found]
            axis.errorbar(range(len(of)), middles, list(zip(*sizes)), marker="o", capsize=3)
            axis.axhline(0, color="0.6", linewidth=0.8)
            axis.set_xticks(range(len(of)), [value for value, _ in of])
            axis.set_title(title.replace(", ", ",\n", 1), fontsize=9)
            axis.margins(x=0.2)
            axis.spines[["top", "right"]].set_visible(False)
        axes[0][0].set_ylabel("points")
        figure.savefig(folder / "lab-dials.png", dpi=110, metadata={"Software": None})
        plt.close(figure)
        parts.append("![gains along the dials](benchmarks/results/lab-dials.png)")
    return parts
