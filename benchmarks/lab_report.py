"""RESULTS.md and its pictures, from the lines in benchmarks/results/ alone.

    python benchmarks/lab.py --report

The rules of the verdicts are point 4 of the protocol at the head of lab.py. A number without its
runs is "not run yet": nothing is estimated.
"""

import statistics
import sys
import textwrap
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]
import lab  # noqa: E402

from common.evaluation import mean_interval  # noqa: E402
from common.files import read_jsonl, write_text  # noqa: E402

# ======================================================================== the claims


@dataclass
class Claim:
    """A is better than B. An arm may be the name of a control."""

    name: str
    text: str
    better: str
    worse: str
    paper: float | None = None  # the difference in points that the paper reports
    figure: str = ""  # its figures
    headline: bool = False
    harmless: bool = False  # the claim is that A does not hurt, compared with B


CLAIMS = [
    Claim("T5", "TOPD is better than OPD", "TOPD", "OPD", 4.4, "+4.4", headline=True),
    Claim("T4", "damping the low-D candidates costs less than damping as many high-D ones",
          "suppress low", "suppress high", 6.1, "+6.1"),
    Claim("T4a", "damping the low-D candidates does not hurt", "suppress low", "OPD", 0.4, "+0.4",
          harmless=True),
    Claim("T4b", "damping as many high-D candidates hurts", "OPD", "suppress high", 5.7, "+5.7"),
    Claim(
        "A1", "AR-OPD is better than Full OPD", "AR-OPD", "Full", 2.4, "+2.4 (average of seven)",
        headline=True,
    ),
    Claim("A1", "Full OPD is better than Partial OPD", "Full", "Partial", 2.7, "+2.7"),
    Claim("A1", "Partial OPD is better than SFT", "Partial", "SFT (A)", 2.8, "+2.8"),
    # The paper's best lambda on MATH500 is .8, and .6 on AMC23. Its default is .6.
    Claim("A6", "lambda .6 is better than 0 (Partial)", "AR-OPD", "Partial", 1.0, "+1.0 (MATH500)"),
    Claim("A6", "lambda .6 is better than .4", "AR-OPD", "AR-OPD, lam 0.4", 0.4, "+0.4 (MATH500)"),
    Claim("A6", "lambda .8 is better than 1", "AR-OPD, lam 0.8", "AR-OPD, lam 1.0", 2.8,
          "+2.8 (MATH500)"),
    Claim("A6", "lambda .6 is better than 1.2", "AR-OPD", "AR-OPD, lam 1.2", 2.6, "+2.6 (MATH500)"),
    Claim("H4", "HSD is better than GRPO", "HSD", "GRPO", 5.2, "+5.2 (MATH500)", headline=True),
    Claim(
        "H4", "HSD is better than self-distillation from the answer alone", "HSD", "answer only",
        2.7, "+2.7", headline=True,
    ),
    Claim("H4", "self-distillation from the answer is better than GRPO", "answer only", "GRPO", 2.5,
          "+2.5"),
    Claim("H4", "HSD is better than half GRPO, half answer", "HSD", "GRPO + answer", 1.7, "+1.7"),
    Claim("H4", "HSD without its fallback is better than GRPO", "HSD (mask)", "GRPO"),
    Claim("H6", "a uniform peer is better than the shortest", "HSD", "HSD, shortest peer", 0.3,
          "+0.3 (AIME25)"),
    Claim("H6", "a uniform peer is better than the least likely", "HSD", "HSD, high_ppl peer", 1.8,
          "+1.8 (AIME25)"),
    Claim("H6", "the most likely peer does not hurt, compared with a uniform one",
          "HSD, low_ppl peer", "HSD", 0.4, "+0.4 (AIME25)", harmless=True),
    Claim("H7", "the answer as fallback helps", "HSD", "HSD, no fallback"),
    Claim("H7", "the answer as fallback helps, both tuned", "HSD", "HSD (mask)"),
    Claim("H8", "beta .001 is better than 0 (in the paper late, in 1,500 updates)", "HSD",
          "HSD, beta 0", 1.8, "+1.8 (AIME25)"),
    Claim("H8", "beta .001 is better than .1", "HSD", "HSD, beta 0.1", 3.4, "+3.4 (AIME25)"),
]
# Questions of ours about the mechanism: does it matter WHAT is taught, and where?
QUESTIONS = [
    Claim("", "candidates by their loss, not at random", "TOPD", "random positions"),
    Claim("", "the divergent candidates, not every candidate", "TOPD", "every candidate"),
    Claim("", "the soft plan, not the exact one", "TOPD", "exact plan"),
    Claim("", "any plan, not hard targets position by position", "TOPD", "positional plan"),
    Claim("", "the plan, not the same weights on other tokens", "TOPD", "shuffled plan"),
    Claim("", "the teacher's window, not the student's own", "TOPD", "self target"),
    Claim("", "soft targets, not cross-entropy in the teacher's context", "TOPD", "forcing"),
    Claim("", "cross-entropy in the teacher's context, not OPD alone", "forcing", "OPD"),
    Claim("", "static, not contextual embeddings", "TOPD", "contextual"),
    Claim("", "a geometric, not an arithmetic mixture", "AR-OPD", "AR-OPD, arithmetic"),
    Claim("", "a clip at 5 nats, not at 1", "AR-OPD", "AR-OPD, clip 1"),
    Claim("", "a clip at 5 nats, not none", "AR-OPD", "AR-OPD, no clip"),
    Claim("", "a moving, not a frozen teacher", "AR-OPD", "AR-OPD, frozen"),
    Claim("", "a partial view without the answer", "AR-OPD", "AR-OPD, answer kept"),
    Claim("", "a frozen, not a moving teacher", "HSD", "HSD, moving teacher"),
    Claim("", "a frozen, not the current teacher", "HSD", "HSD, current teacher"),
    Claim("", "a right, not a wrong peer", "HSD", "HSD, wrong peer"),
    Claim("", "the same question's, not another's peer", "HSD", "HSD, other question's peer"),
    Claim("", "a peer with the answer, not without", "HSD", "HSD, peer without answer"),
    Claim("", "all rollouts, not failures only", "HSD", "HSD, failures only"),
]
# A claim or a question says why a control is there. The others are listed below the questions.
NEEDS = {
    "OPD": "a teacher", "TOPD": "a teacher", "forcing": "a teacher", "SFT (T)": "solutions",
    "AR-OPD": "solutions", "Full": "solutions", "Partial": "solutions", "SFT (A)": "solutions",
    "HSD": "a verifier, answers", "GRPO": "a verifier", "answer only": "answers",
    "GRPO + answer": "a verifier, answers", "SDPO's choices": "a verifier, answers",
    "DAPO": "a verifier", "HSD (mask)": "a verifier, answers",
}  # fmt: skip

# ======================================================================== numbers


def of_seeds(lines, name, which, *, start=None, pair=0, updates=lab.UPDATES):
    """{seed: line} of an arm, or of a control, at one of its two settings."""
    arm = lab.CONTROLS[name][0] if name in lab.CONTROLS else name
    if lab.pilots(lines, arm):
        return {}  # nothing is chosen yet
    setting = lab.chosen(lines, arm).get(which)
    others = lab.CONTROLS.keys() - lab.CLAIMED.keys()
    if name in others and setting != lab.chosen(lines, arm)["tuned"]:
        return {}  # they run at the tuned setting only
    wanted = dict(arm=arm, pair=pair, updates=updates, start=start or lab.ARMS[arm].start)
    wanted["control"] = name if name in lab.CONTROLS else ""
    return {
        x["seed"]: x
        for x in lines
        if "toy" in x
        and (x["knob"], x["rate"]) == setting
        and all(x[k] == v for k, v in wanted.items())
    }


def runs(lines, name, which, *, split="toy", measure="accuracy", **where):
    """{seed: accuracy in per cent}: greedy, or with the measure pass@1 at temperature 1."""
    found = of_seeds(lines, name, which, **where)
    return {seed: 100 * x[split][measure] for seed, x in found.items()}


def paired(a, b):
    return [a[seed] - b[seed] for seed in sorted(a.keys() & b.keys())]


def p_value(gaps):
    """Of the paired t test, two-sided."""
    from scipy.stats import ttest_1samp

    return float(ttest_1samp(gaps, 0).pvalue) if len(gaps) > 1 and len(set(gaps)) > 1 else 1.0


def holm(ps):
    """Holm's correction of a family of p values, in their order."""
    order, corrected, most = sorted(range(len(ps)), key=lambda i: ps[i]), [0.0] * len(ps), 0.0
    for rank, i in enumerate(order):
        most = max(most, min(1.0, (len(ps) - rank) * ps[i]))
        corrected[i] = most
    return corrected


def verdict(gaps, claim, corrected=1.0):
    """Point 4 of the protocol."""
    eight = claim.headline or claim.worse in lab.EIGHT_SEEDS
    needed = len(lab.SEEDS) if eight else len(lab.FEW)
    if len(gaps) < needed:
        return f"{len(gaps)} of {needed} seeds" if gaps else "not run yet"
    _, low, high = mean_interval(gaps)
    edge = -1.0 if claim.harmless else 0.0
    if low > edge and (corrected < 0.05 or not claim.headline):
        return "holds"
    large = 0.0 if claim.harmless else claim.paper / 2 if claim.paper else 1.0
    if high < large:
        opposite = high < 0 and not claim.harmless  # there `does not hold` already says it
        return "does not hold; the opposite does" if opposite else "does not hold"
    if low > edge:  # only the correction for being several forbids it
        return f"cannot be told (corrected p = {corrected:.2f})"
    return f"cannot be told (±{(high - low) / 2:.1f})"


def interval(values, signed=False):
    if not values:
        return "not run yet"
    m, low, high = mean_interval(list(values))
    if len(values) == 1:
        return f"{m:+.1f} (1 seed)" if signed else f"{m:.1f} (1 seed)"
    if signed:
        return f"{m:+.1f} [{low:+.1f}, {high:+.1f}] ({len(values)})"
    return f"{m:.1f} [{low:.1f}, {high:.1f}]"


def counted(values):
    """The interval with the number of seeds behind it."""
    return interval(values) + (f" ({len(values)})" if len(values) > 1 else "")


def table(heads, rows):
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    return "\n".join([*lines, *[f"| {' | '.join(map(str, r))} |" for r in rows]])


# ======================================================================== sections


def judged(lines, which):
    """[(differences by seed, verdict)] of all claims at one of the two settings. The p values of
    the headline family are corrected together. A claim that was not run yet counts as one of it."""
    gaps = [paired(runs(lines, c.better, which), runs(lines, c.worse, which)) for c in CLAIMS]
    family = [i for i, c in enumerate(CLAIMS) if c.headline]
    whole = len(lab.SEEDS)
    ps = holm([p_value(gaps[i]) if len(gaps[i]) == whole else 1.0 for i in family])
    corrected = dict(zip(family, ps))
    found = []
    for i, (g, c) in enumerate(zip(gaps, CLAIMS)):
        idle = [n for n in (c.better, c.worse) if g and stands_still(lines, n, which)]
        also = f"; {' and '.join(idle)} hardly learns" if idle else ""
        other = other_verdicts(lines, c, which)
        if g and other < 1:
            also += f"; nearly the same models, they differ on {other:.1f} % of the problems"
        found.append((g, verdict(g, c, corrected.get(i, 1.0)) + also))
    return found


def other_verdicts(lines, claim, which):
    """On how many problems, in per cent, one arm is right and the other one is not."""
    a, b = (of_seeds(lines, name, which) for name in (claim.better, claim.worse))
    shares = [
        (int(a[s]["toy"]["right"], 16) ^ int(b[s]["toy"]["right"], 16)).bit_count()
        / a[s]["toy"]["n"]
        for s in a.keys() & b.keys()
    ]
    return 100 * lab.mean(shares) if shares else 100.0


def table_of_claims(lines):
    rows = []
    for c, *both in zip(CLAIMS, judged(lines, "paper"), judged(lines, "tuned")):
        cells = []
        for gaps, said in both:
            cells += [interval(gaps, signed=True), said]
        rows.append([c.name, c.text, f"{c.better} - {c.worse}", c.figure, *cells])
    heads = ["", "claim", "difference", "paper", "at the paper's setting", "verdict", "tuned"]
    heads.append("verdict")
    return table(heads, rows)


def table_of_other_measures(lines):
    """The differences of the claims at temperature 1, and on the longer problems."""
    sampled, longer = dict(measure="pass@1"), dict(split="toy-heldout")
    rows = []
    for c in CLAIMS:
        cells, found = [], False
        for how in (sampled, longer):
            for which in ("paper", "tuned"):
                a, b = (runs(lines, name, which, **how) for name in (c.better, c.worse))
                cells.append(interval(paired(a, b), signed=True))
                found |= bool(paired(a, b))
        if found:
            rows.append([c.name, f"{c.better} - {c.worse}", *cells])
    heads = ["temperature 1, paper's", "temperature 1, tuned", "longer, paper's", "longer, tuned"]
    return table(["", "", *heads], rows) if rows else "Not run yet."


def what_temperature_changes(lines):
    """Two sentences before that table: what to look for."""
    said = []
    for c in [c for c in CLAIMS if c.headline]:
        greedy, sampled = (
            paired(*(runs(lines, n, "tuned", measure=m) for n in (c.better, c.worse)))
            for m in ("accuracy", "pass@1")
        )
        if len(sampled) > 1:
            said.append(
                f"{c.better} - {c.worse} {interval(greedy, signed=True)} greedy and "
                f"{interval(sampled, signed=True)} at temperature 1"
            )
    return f" At the tuned setting: {'; '.join(said)}." if said else ""


def without_a_peer(lines):
    """Why the fallback matters: how many of HSD's rollouts have the answer alone."""
    found = [x["course"] for x in of_seeds(lines, "HSD", "tuned").values()]
    if not found or not all("coverage" in course for course in found):
        return []
    shares = [1 - a - b for c in found for a, b in zip(c["reward"], c["coverage"])]
    start = before(lines, "HSD")
    ends = {which: runs(lines, "HSD", which).values() for which in ("paper", "tuned")}
    gains = {w: interval([x - start for x in of], signed=True) for w, of in ends.items() if start}
    also = ""
    if gains:
        also = (
            f" Against its start HSD gains {gains['paper']} at the paper's setting and "
            f"{gains['tuned']} at the tuned one. Where an arm has hardly moved, a verdict on a "
            "part of it says little."
        )
    return [
        f"Of HSD's rollouts {100 * lab.mean(shares):.0f} % fail without a peer. With the fallback "
        "they learn from a teacher that sees the answer alone, and that one hardly reads it here. "
        "\"HSD (mask)\" has no fallback: these rollouts carry no distillation loss. It has pilots "
        "of its own, so HSD has had two sets of them, and every other arm one (point 12 of the "
        f"protocol).{also}"
    ]


def spread_of_four(lines):
    """Four differences give a poor estimate of their spread. A sentence with the pooled one."""
    said = []
    for family in lab_families():
        groups = []
        for c in [*CLAIMS, *QUESTIONS]:
            name = lab.CONTROLS[c.better][0] if c.better in lab.CONTROLS else c.better
            if lab.ARMS[name].family == family:
                gaps = paired(runs(lines, c.better, "tuned"), runs(lines, c.worse, "tuned"))
                groups += [gaps] if len(gaps) == len(lab.FEW) else []
        if len(groups) > 1:
            degrees = sum(len(g) - 1 for g in groups)
            squares = sum(statistics.variance(g) * (len(g) - 1) for g in groups)
            from scipy.stats import t

            half = t.ppf(0.975, degrees) * (squares / degrees / len(lab.FEW)) ** 0.5
            said.append(f"±{half:.1f} in family {family} ({len(groups)} rows)")
    if not said:
        return []
    return [
        "Four seeds give a poor estimate of how much a difference varies, so some of these "
        "intervals are too narrow and others too wide. With one variance for all rows of a family, "
        f"each would be {', '.join(said)}. (T: OPD and TOPD, A: AR-OPD, H: HSD and GRPO.)"
    ]


def lab_families():
    return dict.fromkeys(arm.family for arm in lab.ARMS.values())


def error_of_problems(lines):
    """A sentence: how much other test problems would change a headline difference."""
    errors = []
    for c in [c for c in CLAIMS if c.headline]:
        a, b = (of_seeds(lines, name, "tuned") for name in (c.better, c.worse))
        seeds = sorted(a.keys() & b.keys())
        if len(seeds) < len(lab.SEEDS):
            continue
        n = a[seeds[0]]["toy"]["n"]
        gaps = [0] * n  # by problem, summed over the seeds
        for of, sign in ((a, 1), (b, -1)):
            for seed in seeds:
                bits = int(of[seed]["toy"]["right"], 16)
                gaps = [g + sign * (bits >> i & 1) for i, g in enumerate(gaps)]
        errors.append(100 * statistics.stdev(gaps) / len(seeds) / n**0.5)
    if not errors:
        return ""
    return (
        " An interval says how much other seeds would change, and not how much other problems "
        f"would. The standard error over problems is {min(errors):.1f} to {max(errors):.1f} points "
        "in the headline differences."
    )


def answer_at_the_setting_of_hsd(lines):
    """What is not isolated: the peer at the setting at which HSD is best."""
    if lab.pilots(lines, "HSD") or lab.pilots(lines, "answer only"):
        return ""
    knob, rate = tuned = lab.chosen(lines, "HSD")["tuned"]
    if tuned in lab.settings(lines, "answer only"):
        return ""
    return (
        f" At HSD's tuned setting ({knob}, {rate:g}) the answer alone was not run, because its own "
        "pilots went to smaller rates."
    )


def what_controls_can_show(lines):
    """Two sentences that one must know before one reads the table of controls."""
    gaps = paired(runs(lines, "TOPD", "tuned"), runs(lines, "OPD", "tuned"))
    said = (
        "A positive difference favours the arm's own choice. These verdicts are not corrected for "
        "being many. A control keeps the rate that was tuned for its arm. So it can lose because "
        "this rate does not fit it."
    )
    if gaps and mean_interval(gaps)[1] <= 0:
        said += (
            f" TOPD itself has no certain gain over OPD here ({interval(gaps, signed=True)}), so a "
            "control of it can show what makes it worse, and not where a gain comes from."
        )
    return said + own_rates(lines) + wrong_peers(lines)


def own_rates(lines):
    """HSD's two teachers, each at its own best rate. At the other's rate one of them collapses."""
    if not of_seeds(lines, "HSD", "paper"):
        return ""
    two = [lab.chosen(lines, "HSD")[which] for which in ("tuned", "paper")]
    if [knob for knob, _ in two] != ["frozen", "current"]:
        return ""
    gaps = paired(runs(lines, "HSD", "tuned"), runs(lines, "HSD", "paper"))
    return (
        f" With the frozen teacher's rate ({two[0][1]:g}) the current teacher breaks the model. "
        f"Each at its own best rate, frozen - current is {interval(gaps, signed=True)}."
    )


def wrong_peers(lines):
    """The controls with a wrong peer against the start: does it harm, or only not help?"""
    start, said = before(lines, "HSD"), []
    for name in lab.EIGHT_SEEDS:
        ends = runs(lines, name, "tuned").values()
        if start is not None and len(ends) >= len(lab.FEW):
            gap = interval([x - start for x in ends], signed=True)
            said.append(f"\"{name.removeprefix('HSD, ')}\" {gap}")
    return f" Against the start, HSD's controls gain: {', '.join(said)}." if said else ""


# The commits with the older rule of topd.py's candidates.
OLD_RULE = set(
    "14f3de5471 184b3b1bbb 294b6863af 548b932968 9258d49694 9b309d525a aea6e64599 afc980e305 "
    "c19fa80a83 e39ddb46bd".split()
)


def of_old_rule(line):
    return OLD_RULE & set(line["commit"].split("+")) and not line.get("again")


def made_again(lines):
    """How many runs of TOPD were made again after its rule had changed, and what that changed."""
    both = [of_seeds(lines, "TOPD", which) for which in ("paper", "tuned")]
    again = [{s: x for s, x in of.items() if x.get("again")} for of in both]
    said = (
        f"Of TOPD's runs in this table {len(again[0])} at lambda .1 and {len(again[1])} at the "
        "tuned one were made again with the new rule. Their older lines stay in T.jsonl."
    )
    # The newest line of a run counts. Here the older ones are read once more.
    file, opd = lab.RESULTS / "T.jsonl", runs(lines, "OPD", "tuned")
    lines_of_file = read_jsonl(file) if again[1] and file.exists() else []
    older = {
        x["seed"]: 100 * x["toy"]["accuracy"]
        for x in reversed(lines_of_file)
        if x["key"] in {y["key"] for y in again[1].values()} and not x.get("again")
    }
    if len(older) > 1:
        said += f" With these TOPD - OPD, tuned, was {interval(paired(older, opd), signed=True)}."
    names = "suppress low", "suppress high"
    if all(x.get("again") for n in names for x in of_seeds(lines, n, "tuned").values()):
        before_it = [
            {x["seed"]: 100 * x["toy"]["accuracy"] for x in lines_of_file
             if x["control"] == n and not x.get("again")}
            for n in names
        ]  # fmt: skip
        if all(before_it):
            gaps = interval(paired(*before_it), signed=True)
            said += f" T4's were made again, too. Its difference was {gaps} before."
    left = sum(bool(of_old_rule(x)) for n in names for x in of_seeds(lines, n, "tuned").values())
    first = sum(bool(of_old_rule(x)) for x in both[0].values())
    if left or first:
        said += (
            f" Still of the old rule are {first} runs at lambda .1 and {left} of T4, and TOPD's "
            "pilots. Their verdicts are provisional."
        )
    else:
        said += " TOPD's pilots are of the old rule."
    return said


def table_of_equal_settings(lines):
    """HSD and its control, the answer alone, at the same teacher and the same rate: pilots."""
    two = [lab.settings(lines, arm) for arm in ("HSD", "answer only")]
    rows = []
    for knob, rate in sorted(two[0].keys() & two[1].keys()):
        cells = [
            ", ".join(f"{100 * of[knob, rate][s]:.1f}" for s in sorted(of[knob, rate]))
            for of in two
        ]
        rows.append([knob, f"{rate:g}", *cells])
    return table(["teacher", "learning rate", "HSD", "answer only"], rows)


def before(lines, arm):
    """The accuracy of the arm's start on the shipped models, in per cent, or None."""
    place = "start", lab.ARMS[arm].start, 0
    made = [x for x in lines if (x["stage"], x["start"], x["pair"]) == place]
    return 100 * made[0]["toy"]["accuracy"] if made else None


def with_range(arm, times):
    """The time of an update, and the smallest and the largest one of the rounds."""
    if arm not in times:
        return "not measured yet"
    low, high = lab.known_times("ranges").get(arm, (1.0, 1.0))
    return f"{times[arm]:.2f}" + (f" ({low:.2f} to {high:.2f})" if low < high else "")


def table_of_methods(lines, times):
    rows = []
    for arm, spec in lab.ARMS.items():
        start = before(lines, arm)
        cells = ["not run yet" if start is None else f"{start:.1f}"]
        for which in ("paper", "tuned"):
            none = which == "paper" and spec.paper is None
            cells.append("-" if none else counted(runs(lines, arm, which).values()))
        gains = [] if start is None else [a - start for a in runs(lines, arm, "tuned").values()]
        cells.append(interval(gains, signed=True))
        cells.append(counted(runs(lines, arm, "tuned", split="toy-heldout").values()))
        cells.append(with_range(arm, times))
        needs = NEEDS.get(arm, {"T": "a teacher", "A": "solutions", "H": "a verifier"}[spec.family])
        rows.append([arm, needs, f"toy/{spec.start}", *cells])
    heads = ["arm", "needs", "start", "before", "after, paper's setting", "after, tuned"]
    return table([*heads, "gain, tuned", "longer problems, tuned", "time of an update"], rows)


# The README's table: (arm, the arm whose update takes the time 1, file, method, what it needs).
METHODS = [
    ("OPD", "OPD", "opd.py", "on-policy distillation (GKD 2306.13649, MiniLLM 2306.08543, Qwen3 "
     "2505.09388)", "a teacher"),
    ("TOPD", "OPD", "topd.py", "OPD with near-future guidance (2606.00305)", "a teacher"),
    ("AR-OPD", "Full", "ar_opd.py", "anchored residual OPD (2606.10385)", "worked solutions"),
    ("HSD", "GRPO", "hindsight_sd.py", "hindsight self-distillation (2606.15576)",
     "a verifier, answers"),
    ("GRPO", "GRPO", "grpo.py", "GRPO (2402.03300), Dr. GRPO (2503.20783), DAPO (2503.14476)",
     "a verifier"),
]  # fmt: skip


def table_for_the_readme(lines, times):
    """Method, what it needs, accuracy before and after at the tuned setting, time, the claim."""
    rows, claims = [], list(zip(CLAIMS, judged(lines, "tuned")))
    seconds = lab.known_times("seconds")
    for arm, base, file, method, needs in METHODS:
        start = before(lines, arm)
        # The script's default on the toy is HSD without the fallback.
        shown = "HSD (mask)" if arm == "HSD" and runs(lines, "HSD (mask)", "tuned") else arm
        after = list(runs(lines, shown, "tuned").values())
        change = "not run yet"
        if start is not None and len(after) >= 4:
            change = f"{start:.1f} -> {interval(after)}, {len(after)} seeds"
        cost = f"{seconds[arm]:.2f} s" if arm in seconds else "not measured yet"
        cost += f", {with_range(arm, times)} x {base}" if arm in times and arm != base else ""
        cost += " (with the fallback)" if shown != arm else ""  # that one was timed
        held = []
        for c, (gaps, said) in claims:
            own = c.better == shown != arm
            # A comparison with an arm that stands still is no test, see RESULTS.md.
            headline = c.headline and c.better == arm
            if own or (headline and not stands_still(lines, c.worse, "tuned")):
                found = f"{interval(gaps, signed=True)}: " if gaps else ""
                other = "" if own or arm == shown else ", with the paper's fallback"
                held.insert(0 if own else len(held), f"than {c.worse}{other}: {found}{said}")
        rows.append([f"[`{file}`]({file})", method, needs, change, cost, "; ".join(held)])
    heads = ["file", "method, paper", "needs", "toy: before -> after", "time per update"]
    return table([*heads, "better? (toy)"], rows)


def as_it_is(lines, arm):
    """{label of the defaults: runs of the script with them}, those of today first."""
    found = {lab.script_chosen(lines) if arm == "HSD" else "as it is": []}
    for x in lines:
        if (x["stage"], x["arm"]) == ("script", arm):
            found.setdefault(x["knob"], []).append(x)
    return found


def caption_for_the_readme(lines):
    """What the README says below that table."""
    ends = []
    for arm in ("AR-OPD", "HSD", "GRPO"):
        made = next(iter(as_it_is(lines, arm).values()))
        if len(made) == len(lab.SEEDS):
            after = interval([100 * x["toy"]["accuracy"] for x in made])
            own = " (own pilots)" if arm == "HSD" else ""
            ends.append(f"`{lab.ARMS[arm].script}`{own} {after} %")
    more = f": {', '.join(ends)} (eight seeds)" if ends else ""
    sft = runs(lines, "SFT (A)", "tuned").values()
    also = ""
    if len(sft) >= len(lab.FEW):
        also = f" SFT on AR-OPD's solutions ends at {interval(sft)} % ({len(sft)} seeds)."
    numbers = (
        "Greedy accuracy on 2,001 test problems after 80 updates of 32 rollouts, at settings "
        "chosen on validation problems (HSD's from two sets of pilots); 95 % intervals over seeds. "
        "The students: `toy/student`, "
        "twice; `toy/reader`; `toy/reader2`, twice. Last row: GRPO."
        f"{also} Scripts without flags make 120 updates of 64{more}."
    )
    verdicts = (
        "Times: one CPU core, medians over rounds, and the range of the ratio. Better: it holds if "
        "the interval lies above 0, also when corrected for four claims, and does not hold if it "
        "lies below half of the paper's difference. All claims: [RESULTS.md](RESULTS.md)."
    )
    wrapped = [
        textwrap.fill(text, 119, break_long_words=False, break_on_hyphens=False)
        for text in (numbers, verdicts)
    ]
    return "\n\n".join(f"<sub>{text}</sub>" for text in wrapped)


def write_readme(lines, times, path):
    """Replace what stands between the two marks of README.md."""
    before, mark, rest = path.read_text(encoding="utf-8").partition("<!-- methods -->\n")
    _, end, after = rest.partition("<!-- end of methods -->")
    assert mark and end, "README.md has lost a mark"
    parts = table_for_the_readme(lines, times), caption_for_the_readme(lines)
    write_text(path, before + mark + "\n\n".join(parts) + f"\n{end}{after}")


def table_of_questions(lines):
    rows = []
    for c in QUESTIONS:
        gaps = paired(runs(lines, c.better, "tuned"), runs(lines, c.worse, "tuned"))
        rows.append([c.text, c.better, c.worse, interval(gaps, signed=True), verdict(gaps, c)])
    heads = ["the arm's choice is better", "arm", "control", "arm - control", "verdict"]
    return table(heads, rows)


def table_of_other_controls(lines):
    """Every control that no claim and no question names."""
    named = {name for c in [*CLAIMS, *QUESTIONS] for name in (c.better, c.worse)}
    rows = []
    for name, (arm, _, _) in lab.CONTROLS.items():
        if name not in named:
            gaps = paired(runs(lines, name, "tuned"), runs(lines, arm, "tuned"))
            rows.append([name, arm, interval(gaps, signed=True)])
    return table(["control", "its arm", "control - arm"], rows)


def table_of_pilots(lines):
    rows = []
    for arm in lab.ARMS:
        found = lab.settings(lines, arm)
        done = bool(found) and not lab.pilots(lines, arm)
        two = lab.chosen(lines, arm) if done else {}
        order = list(lab.ARMS[arm].knobs)
        for knob, rate in sorted(found, key=lambda s: (order.index(s[0]), s[1])):
            seeds = [f"{100 * found[knob, rate][s]:.1f}" for s in sorted(found[knob, rate])]
            marks = [name for name, setting in two.items() if setting == (knob, rate)]
            rows.append([arm, knob, f"{rate:g}", ", ".join(seeds), ", ".join(marks)])
    return table(["arm", "knob", "learning rate", "validation accuracy", ""], rows)


def counts_of_pilots(lines):
    """How many runs of each pilot seed every arm has made."""
    cells, above = [], []
    for arm in lab.ARMS:
        found = lab.settings(lines, arm).values()
        numbers = [sum(seed in of for of in found) for seed in lab.PILOT_SEEDS]
        if found:
            cells.append(f"{arm} {numbers[0]} + {numbers[1]}")
            if numbers[0] > 10 or numbers[1] > 3:
                above.append(arm)
    said = f" {' and '.join(above)} made more than that, see point 2." if above else ""
    return f"Made were: {', '.join(cells)}.{said}" if cells else "None was made yet."


def knobs_at_an_edge(lines):
    """The protocol looks beyond the best learning rate, and not beyond the best value of a knob."""
    edges = []
    for arm, spec in lab.ARMS.items():
        if lab.pilots(lines, arm):
            continue
        tuned, order = lab.chosen(lines, arm)["tuned"][0], list(spec.knobs)
        words = {tuple(label.split()[:-1]) for label in order}  # ("lam",): the values are numbers
        one_number = len(words) == 1 and () not in words
        if one_number and len(order) > 2 and tuned in (order[0], order[-1]):
            edges.append(f"{arm} ({tuned})")
    said = " The best value of the knob is the smallest or the largest one that was tried: "
    return f"{said}{', '.join(edges)}." if edges else ""


def start_of_pilots(lines, arm):
    """Where the pilots of an arm began, as words: the start on the same problems."""
    place = "start", lab.ARMS[arm].start, 0
    for x in lines:
        if (x["stage"], x["start"], x["pair"]) == place and "toy-validation" in x:
            return f"; the start has {100 * lab.accuracy(x):.1f} %"
    return ""


def own_setting(lines, arm):
    """Has the arm a tuned setting that is not the paper's?"""
    two = {} if lab.pilots(lines, arm) else lab.chosen(lines, arm)
    return len(set(two.values())) > 1


def table_of_pairs(lines):
    """The second set of models: start and ends, and the difference greedy and at temperature 1."""
    rows = []
    starts = {x["start"]: 100 * x["toy"]["accuracy"] for x in lines if x["stage"] == "start"
              and x["pair"] == 1}  # fmt: skip
    for c in [c for c in CLAIMS if {c.better, c.worse} <= set(lab.ARMS)]:
        two = [own_setting(lines, name) for name in (c.better, c.worse)]
        for which in ("paper", "tuned") if any(two) else ("tuned",):
            both = [runs(lines, name, which, pair=1) for name in (c.better, c.worse)]
            sampled = [
                runs(lines, name, which, pair=1, measure="pass@1") for name in (c.better, c.worse)
            ]
            start = starts.get(lab.ARMS[c.better].start)
            ends = " and ".join(interval(of.values()) for of in both) if all(both) else "-"
            shown = c.name, f"{c.better} - {c.worse}", which if any(two) else "both"
            rows.append([
                *shown, "-" if start is None else f"{start:.1f}",
                ends, interval(paired(*both), signed=True), interval(paired(*sampled), signed=True),
            ])  # fmt: skip
    heads = ["", "difference", "setting", "before", "after", "greedy", "temperature 1"]
    return table(heads, rows)


def table_of_long_runs(lines):
    """Each arm, and each claimed difference, on the seeds that have the long budget."""
    rows, budgets = [], (lab.UPDATES, 3 * lab.UPDATES)
    found = {
        arm: [runs(lines, arm, "tuned", updates=n) for n in budgets] for arm in lab.LONG
    }
    for arm, (short, long) in found.items():
        both = [{s: v for s, v in short.items() if s in long}, long]
        rows.append([arm, *[counted(of.values()) for of in both]])
    for c in [c for c in CLAIMS if {c.better, c.worse} <= set(found)]:
        (a, long_a), (b, long_b) = found[c.better], found[c.worse]
        a = {s: v for s, v in a.items() if s in long_a and s in long_b}
        gaps = [paired(a, b), paired(long_a, long_b)]
        rows.append([f"{c.better} - {c.worse}", *[interval(g, signed=True) for g in gaps]])
    return table(["", *[f"{n} updates" for n in budgets]], rows)


def stands_still(lines, name, which):
    """Do all runs of an arm end within 0.2 points, because its rate is the smallest that was
    tried? Then its weights hardly move."""
    ends = list(runs(lines, name, which).values())
    if name not in lab.ARMS or len(ends) < 2 or max(ends) - min(ends) >= 0.2:
        return False
    rate, tried = lab.chosen(lines, name)[which][1], lab.settings(lines, name)
    return rate == min(r for _, r in tried)


def standing_still(lines):
    """A sentence on each of these arms: an interval without a width needs a reason."""
    return [
        f"All {len(runs(lines, arm, 'tuned'))} tuned runs of \"{arm}\" end within 0.2 points: its "
        f"best rate, {lab.chosen(lines, arm)['tuned'][1]:g}, is the smallest that was tried, and "
        "the weights hardly move. So a comparison with it is nearly one with the start."
        f"{what_it_reads(lines, arm)}"
        for arm in lab.ARMS
        if stands_still(lines, arm, "tuned")
    ]


def what_it_reads(lines, arm):
    """Does the self-teacher of an arm read what it is shown?"""
    found = [x for x in of_seeds(lines, arm, "tuned").values() if "health" in x]
    if not found:
        return ""
    right, wrong = (100 * lab.mean(x["health"][0][v] for x in found) for v in ("right", "wrong"))
    if right - wrong > 5:  # it reads the answer
        return ""
    return (
        f" Its teacher solves {right:.0f} % when it is shown the answer, and {wrong:.0f} % when it "
        "is shown another problem's answer. So this teacher hardly reads the answer, and the "
        "comparison is no test of the paper's claim."
    )


def against_sft(lines):
    """Sentences on the plainest way to learn from the same solutions. No claim of the paper
    compares it with AR-OPD, but a reader who has solutions must know it."""
    tuned = [runs(lines, arm, "tuned") for arm in ("AR-OPD", "SFT (A)")]
    gaps = paired(*tuned)
    if len(gaps) < len(lab.FEW):
        return []
    longer = paired(*(runs(lines, a, "tuned", split="toy-heldout") for a in ("AR-OPD", "SFT (A)")))
    said = (
        "SFT learns the same solutions by cross-entropy, without rollouts. On the test problems "
        f"AR-OPD - SFT is {interval(gaps, signed=True)}, on the longer problems "
        f"{interval(longer, signed=True)}."
    )
    if mean_interval(gaps)[2] < 0:
        said += (
            " The toy's solutions are short, are written by rules, and have words that the student "
            "knows, so they are easy to imitate. A toy cannot say how that is with the solutions "
            "that people write."
        )
    return [said]


def table_of_scripts(lines):
    """What somebody sees who types `python ar_opd.py`, for example."""
    rows = []
    for arm in ("AR-OPD", "HSD", "GRPO"):
        for label, made in as_it_is(lines, arm).items():
            after, start = [100 * x["toy"]["accuracy"] for x in made], before(lines, arm)
            gains = [] if start is None else [a - start for a in after]
            shown = "not run yet" if start is None else f"{start:.1f}"
            cells = [shown, counted(after), interval(gains, signed=True)]
            rows.append([f"`python {lab.ARMS[arm].script}`", label or "not chosen yet", *cells])
    return table(["command", "defaults", "before", "after", "gain"], rows)


def table_of_script_pilots(lines):
    found, chosen = lab.script_settings(lines), lab.script_chosen(lines)
    rows = [
        [label, ", ".join(f"{100 * v:.1f}" for _, v in sorted(found.get(label, {}).items())) or "-",
         "chosen" if label == chosen else ""]
        for label in lab.SCRIPT_PILOTS
    ]
    return table(["fallback, teacher, learning rate", "validation accuracy", ""], rows)


def agreement(lines):
    """What TOPD's targets ask for, in numbers of its runs."""
    found = of_seeds(lines, "TOPD", "tuned").values()
    shares = [x["course"]["target_agreement"] for x in found if "target_agreement" in x["course"]]
    if not shares:
        return "Not run yet."
    first, last = (100 * lab.mean(s[i] for s in shares) for i in (0, -1))
    return (
        "L_traj asks the student for the teacher's tokens in the STUDENT's context. There the "
        f"teacher itself gives them a probability of {first:.0f} % on average in the first sixth "
        f"of a run, and {last:.0f} % in the last one ({len(shares)} runs, `target_agreement`). "
        "Where it finds them unlikely, L_traj and L_OPD pull in different directions."
        f"{flatter(lines)}"
    )


def flatter(lines):
    """What guidance does to the student's distributions."""
    found = {"OPD": of_seeds(lines, "OPD", "tuned")}
    for which in ("tuned", "paper"):
        found[lab.chosen(lines, "TOPD")[which][0]] = of_seeds(lines, "TOPD", which)
    rows = [
        (
            name,
            lab.mean(x["course"]["student_entropy"][-1] for x in of.values()),
            100 * lab.mean(x["toy"]["accuracy"] for x in of.values()),
            100 * lab.mean(x["toy"]["pass@1"] for x in of.values()),
        )
        for name, of in found.items()
        if of and all("student_entropy" in x["course"] for x in of.values())
    ]
    if len(rows) < 2:
        return ""
    said = "; ".join(
        f"{name}: {entropy:.2f} nats, {greedy:.1f} % greedy, {sampled:.1f} % at temperature 1"
        for name, entropy, greedy, sampled in rows
    )
    said = f"\n\nThe student's entropy in the last sixth of a run, and its accuracy: {said}."
    if all(row[1] > rows[0][1] for row in rows[1:]):
        said += " So guidance makes the student less sure of its tokens."
    return said


# Claims that need no training, judged before any: (claim, what it says, verdict, where it stands).
# They do not come from lines: benchmarks/README.md has the commands and the numbers.
BEFORE_TRAINING = [
    ("T1", "median D: high loss > random > low loss", "in part: high loss has the largest D, but "
     "random positions have the smallest", "topd_toy.py claims"),
    ("T2", "loss and D correlate, weakly", "holds", "topd_toy.py claims"),
    ("T3", "many tokens with a high loss have a low D", "holds", "topd_toy.py claims"),
    ("T6", "a few updates at one point lower D, more with guidance", "holds, but most of it is "
     "OPD's", "topd_toy.py local"),
    ("A4", "the full view moves away from the student near the end", "does not hold",
     "ar_opd_toy.py"),
    ("A5", "the full view gets unreliable as the solution gets longer", "weakly", "ar_opd_toy.py"),
    ("A7", "partial advantage predicts as well as total, marginal less", "does not hold",
     "ar_opd_toy.py"),
    ("H1", "the answer alone is nearly silent, a path is not", "in part: a path gives 2.6 times as "
     "much credit as the answer, in the paper 10 to 23 times", "hindsight_toy.py"),
    ("H2", "credit peaks where the texts part", "does not hold; it peaks at the first mistake",
     "hindsight_toy.py"),
    ("H3", "coverage follows f(p, G)", "holds", "hindsight_toy.py"),
]  # fmt: skip


def table_of_other_claims(lines, times):
    """What is no difference of accuracies between two arms."""
    from lab_curves import gains, tests_with

    rows = [[*row[:3], f"[`{row[3]}`](benchmarks/README.md)"] for row in BEFORE_TRAINING]

    def add(name, text, gaps, unit, sign=1, paper=None):
        said = verdict([sign * g for g in gaps], Claim(name, text, "", "", paper))
        found = f"{interval(gaps, signed=True)}: {said}" if gaps else said
        rows.append([name, text, found, unit])

    shares = [
        {s: 100 * x["toy-heldout"]["shortcuts"] for s, x in of_seeds(lines, arm, "tuned").items()
         if "shortcuts" in x["toy-heldout"]}
        for arm in ("AR-OPD", "Full")
    ]  # fmt: skip
    rates = ""
    if all(shares):
        both = [lab.mean(of.values()) for of in shares]
        rates = f" ({both[0]:.2f} - {both[1]:.2f}; the paper: 0.36 - 0.46)"
    add("A2", "AR-OPD makes fewer shortcuts than Full", paired(*shares),
        f"per cent of the responses to long problems, AR-OPD - Full{rates}", sign=-1, paper=0.10)
    start = before(lines, "SFT (A)")
    sft = runs(lines, "SFT (A)", "tuned").values()
    add("A1", "SFT is better than the start", [x - start for x in sft] if start else [],
        "points, after - before")
    three, five = (gains(lines, "AR-OPD", "Full", tests_with(level=n)) for n in (3, 5))
    add("A3", "its advantage grows with the length of a problem",
        [b - a for a, b in zip(three, five)], "gain with 5 steps minus gain with 3")
    terse, wordy = (
        gains(lines, "HSD", "GRPO", tests_with(style=s)) for s in ("terse", "verbose")
    )
    add("H5", "HSD's advantage is larger where the answer is terse",
        [a - b for a, b in zip(terse, wordy)], "gain on terse problems minus gain on verbose ones")
    rows.insert(4, ["T7", "OPD repairs the forked token, not the tokens after it", "not run: the "
                    "paper shows it in one example, without a number", ""])
    for name, arm, base, paper in (("T8", "TOPD", "OPD", 1.41), ("H10", "HSD", "GRPO", 2.15)):
        found = with_range(arm, times)
        rows.append([name, f"an update costs {paper} times {base}'s", found, "`lab.py --times`"])
    rows.append(["H9", "the sampled-token estimator is unstable", "not run: hindsight_sd.py sums "
                 "over the vocabulary only", ""])  # fmt: skip
    return table(["", "claim", "here", "where, or in what"], rows)


def table_at_equal_time(lines):
    """Point 5 of the protocol, at the tuned setting."""
    rows = []
    for better, worse in lab.EQUAL_TIME:
        updates, gaps = lab.fitting_updates(better, worse), [[], []]
        two = [of_seeds(lines, name, "tuned") for name in (better, worse)]
        for seed in sorted(two[0].keys() & two[1].keys()):
            end = two[1][seed]["curve"][-1][1]
            for of, step in zip(gaps, (lab.UPDATES, updates)):
                if step:
                    of.append(100 * (at(two[0][seed]["curve"], step) - end))
        test = paired(runs(lines, better, "tuned", updates=updates), runs(lines, worse, "tuned"))
        cells = [interval(g, signed=True) for g in (*gaps, test)]
        rows.append([f"{better} - {worse}", with_its_range(better, worse, updates), *cells])
    heads = ["", "updates", "equal updates, validation", "equal time, validation"]
    return table([*heads, "equal time, test"], rows)


def with_its_range(better, worse, updates):
    """The number of updates, and what it would be at the ends of the ratio's range."""
    times, ranges = lab.known_times(), lab.known_times("ranges")
    if not updates or better not in ranges:
        return updates or "not measured yet"
    low, high = (round(lab.UPDATES * times[worse] / x) for x in reversed(ranges[better]))
    return f"{updates} ({low} to {high})"


def at(curve, step):
    """The height of a curve [[update, accuracy], ...] at an update between its points. Behind its
    last point: that of the last point."""
    for (x0, y0), (x1, y1) in zip(curve, curve[1:]):
        if x0 <= step <= x1:
            return y0 + (y1 - y0) * (step - x0) / (x1 - x0)
    return curve[-1][1]


def table_of_health(lines):
    rows = []
    for arm in lab.ARMS:
        for which in ("paper", "tuned"):
            found = list(of_seeds(lines, arm, which).values())
            if not found:
                continue
            cells = [f"{arm}, {which}: {found[0]['knob']}"]
            for view in ("right", "wrong"):
                if "health" not in found[0]:  # it has no teacher
                    cells.append("-")
                    continue
                ends = [100 * lab.mean(x["health"][i][view] for x in found) for i in (0, -1)]
                cells.append(f"{ends[0]:.0f} -> {ends[1]:.0f}")
            ends = [100 * lab.mean(x["curve"][i][1] for x in found) for i in (0, -1)]
            cells.append(f"{ends[0]:.0f} -> {ends[1]:.0f}")
            cells.append(f"{lab.mean(x['toy']['mean_tokens'] for x in found):.0f}")
            for measure in ("pass@8", "distinct"):
                known = [x["toy"][measure] for x in found if measure in x["toy"]]
                cells.append(f"{100 * lab.mean(known):.0f}" if known else "-")
            for names in (("student_entropy",), ("kl", "kl_full")):
                name = next((k for k in names if k in found[0]["course"]), None)
                # GRPO and SFT have no teacher: SFT's `kl` was the cross-entropy in older lines.
                alone = "health" not in found[0] and lab.ARMS[arm].family != "T"
                if name is None or ("kl" in names and alone):
                    cells.append("-")
                    continue
                ends = [lab.mean(x["course"][name][i] for x in found) for i in (0, -1)]
                cells.append(f"{ends[0]:.3f} -> {ends[1]:.3f}")
            rows.append(cells)
    heads = ["arm", "teacher, own view", "teacher, another's", "student", "tokens", "pass@8"]
    heads += ["distinct", "student's entropy", "KL to the target"]
    return table(heads, rows) if rows else "Not run yet."


def table_of_words():
    """SmolLM2-135M on word problems in English: benchmarks/words.py."""
    import words

    lines = read_jsonl(words.LINES) if words.LINES.exists() else []
    if not any(x["stage"] == "test" for x in lines):
        pilots = [x for x in lines if x["stage"] == "pilot"]
        rows = [[x["arm"], f"{x['rate']:g}", f"{100 * x['accuracy']:.1f}"] for x in pilots]
        said = f"No test yet, {len(pilots)} pilots: `python benchmarks/words.py` goes on with them."
        start = {x["arm"]: 100 * x["accuracy"] for x in lines if x["stage"] == "start"}
        if {"student", "teacher"} <= start.keys() and pilots:
            said += (
                " One seed, 200 validation problems, no intervals. On the 300 test problems the "
                f"student begins at {start['student']:.1f} %, and the teacher has "
                f"{start['teacher']:.1f} %."
            )
        return said + ("\n\n" + table(["arm", "learning rate", "validation"], rows) if rows else "")
    before = {x["arm"]: x for x in lines if x["stage"] == "start"}
    rows = [
        [f"{name}, before", "", f"{100 * x['accuracy']:.1f}", f"{100 * x['pass@4']:.0f}", ""]
        for name, x in before.items()
    ]
    for arm in words.ARMS:
        found = [x for x in lines if x["stage"] == "test" and x["arm"] == arm]
        if found:
            values = [100 * x["accuracy"] for x in found]
            variety = 100 * lab.mean(x["pass@4"] for x in found)
            rate = f"{found[0]['rate']:g}"
            rows.append([arm, rate, interval(values), f"{variety:.0f}", len(found)])
    heads = ["SmolLM2-135M-Instruct", "learning rate", "test accuracy", "pass@4", "seeds"]
    return table(heads, rows) + (
        "\n\nThe protocol stands at the head of `benchmarks/words.py`. Three seeds of so few "
        "updates can tell a method that works from one that breaks the model, and a gain of ten "
        "points from none. They cannot rank methods that lie a few points apart."
    )


# ======================================================================== the file

TITLES = {
    "T": "A student learns from a stronger model: OPD, TOPD",
    "A": "A student learns from itself with a solution in view: AR-OPD",
    "H": "A student learns from a verifier and its own successes: HSD, GRPO",
}


def text(lines, folder):
    from lab_curves import curves, dials  # they need matplotlib

    times = lab.known_times()
    commits = {commit for x in lines for commit in x["commit"].split("+")}
    trained = sum(x["stage"] != "start" for x in lines)
    pair = "" if (lab.ROOT / "toy" / "pair1").is_dir() else (
        ", and for other models after `python toy/build.py --seed 2 --out toy/pair1`"
    )
    parts = [
        "# Results of the laboratory",
        "Made by `python benchmarks/lab.py --report` from the lines in `benchmarks/results/`. The "
        "protocol, with the rules of the verdicts, stands at the head of `benchmarks/lab.py` and "
        "was committed before the first line; what was added later has its date. Numbers are "
        "accuracies in per cent on the toy's test set, greedy. Intervals are 95 % (Student's t "
        "over seeds); a number in brackets behind them counts the seeds. Differences are paired by "
        f"seed.{error_of_problems(lines)}",
        f"{trained} runs so far, and {len(lines) - trained} measurements of models before any "
        f"training, made at {len(commits)} commits. Every line names its own. "
        "\"Not run yet\" means just that: the queue goes on with `python benchmarks/lab.py`"
        f"{pair}.",
        "## What holds and what does not",
        "The column \"difference\" says which accuracy is subtracted from which. *Holds*: the "
        "whole interval lies above 0. *Does not hold*: the whole interval lies below half of the "
        "paper's difference, or below 1 point where the paper has no number. So a small gain can "
        "still exist. *Cannot be told*: otherwise; behind it stands half the width of the "
        "interval. That something does not hurt holds above -1 point, and does not hold below 0. "
        "*The opposite does*: the whole interval lies below 0. "
        "Where the tuned setting is the paper's, both columns are the same runs.",
        table_of_claims(lines),
        "The four headline claims (T5, the first A1, the first two H4) are corrected for being "
        "four, by Holm's method. The others are not corrected: on average one of twenty intervals "
        "misses the truth. TOPD's paper gives no lambda. Its "
        "\"paper's setting\" is 0.1 here, the default of `topd.py` for large models; on the toy "
        "the default is the tuned 0.03. T4b alone says little where T4a does not hold: then any "
        "damping hurts, and T4 is the paper's point.",
        *spread_of_four(lines),
        *without_a_peer(lines),
        "On 29 November `topd.py` changed one rule: a position too near the end of a rollout gives "
        "its place among the candidates to the next highest loss. The controls of TOPD further "
        f"below were made after that. {made_again(lines)}",
        "### The same differences, measured otherwise",
        "The verdicts above are on greedy accuracy, as the protocol says. TOPD's paper samples at "
        "temperature 0.6. At temperature 1 the first 100 test problems have 8 samples each. The "
        "longer problems (the first 1,002 of toy-heldout; greedy) are longer than those of the "
        "training. No verdict "
        f"rests on these columns: nobody had planned them.{what_temperature_changes(lines)}",
        table_of_other_measures(lines),
        "### HSD and the answer alone, at equal settings",
        "The pilots in which both had the same teacher and the same rate: validation "
        f"accuracy, the first seed and the second{start_of_pilots(lines, 'HSD')}."
        f"{answer_at_the_setting_of_hsd(lines)}",
        table_of_equal_settings(lines),
        "## Other claims",
        "Rows that name a script of benchmarks/ are read from its table, by no rule.",
        table_of_other_claims(lines, times),
        "## The methods",
        table_of_methods(lines, times),
        "The time of an update is relative to OPD's (arms of the first group), Full's (second) and "
        "GRPO's (third): the median of several rounds in which all arms made a few updates in "
        "turn, and in brackets the smallest and the largest one.",
        *standing_still(lines),
        *against_sft(lines),
        "### The scripts as they are",
        "With twice the rollouts in an update and half as many updates again:",
        table_of_scripts(lines),
        "`python hindsight_sd.py` has had three defaults. They were first taken from HSD's pilots, "
        "then from those of HSD (mask). Both have 80 updates of 32 rollouts, so it got pilots with "
        "its own budget, see point 16 of the protocol. The first pilot seed, and for the best two "
        f"the second{start_of_pilots(lines, 'HSD')}. `python grpo.py` has no such pilots.",
        table_of_script_pilots(lines),
        "## What TOPD asks for",
        agreement(lines),
    ]
    for family, title in TITLES.items():
        picture = curves(lines, family, folder / f"lab-{family}.png")
        if picture:
            parts += [f"## {title}", f"![learning curves](benchmarks/results/{picture})"]
            parts.append("Validation accuracy, always the same 300 problems, so not the test "
                         "accuracy of the tables: tuned setting, mean over the seeds.")
    parts += [
        "## At equal time",
        "The first arm makes as many updates as fit into the time of 80 updates of the second one. "
        "Validation: read from the curves, between two evaluations that are 20 updates apart, on "
        "300 of the problems on which the settings were chosen. Test: runs of that length. The "
        "ratio of the times has a range (see The methods), so the number of updates has one, too. "
        "HSD has no row here: it is behind GRPO at equal updates, and its updates take longer.",
        table_at_equal_time(lines),
        "## When does it help? The gain of a method over its base, along its own premise",
        *dials(lines, folder),
        "## Controls: which part has the effect?",
        what_controls_can_show(lines),
        table_of_questions(lines),
        "The other controls, without a verdict:",
        table_of_other_controls(lines),
        "## The health of the self-teachers",
        "Accuracy on 100 training problems when the teacher's weights GENERATE: shown what they "
        "are shown in the run (AR-OPD and Full: the whole solution; Partial: its first half; HSD: "
        "the answer and a right solution from the data file in the place of a successful rollout; "
        "answer only and GRPO + answer: the answer), or the same of another problem, at the start "
        "and at the end. A teacher that falls under its own view has less to teach. One that is as "
        "good with another problem's solution does not read it.",
        "Beside it the student: its greedy accuracy on 300 validation problems; at the end, on "
        "test problems, tokens per answer, share of problems with a success in 8 samples (pass@8) "
        "and different ways among them (distinct, both of 100 problems); and in the first and the "
        "last sixth of the run its entropy, and the KL that it minimises. SFT's entropy is that on "
        "the solutions, the others' on their own rollouts.",
        table_of_health(lines),
        "## Other models",
        "toy/pair1 was trained independently. The settings are those that were tuned on the "
        "shipped models. Its student is stronger than theirs, see point 3 of the protocol. Both: "
        "the tuned setting is the paper's.",
        table_of_pairs(lines),
        "## Three times the budget",
        table_of_long_runs(lines),
        "## All pilots",
        "Validation accuracy after the last update, for the first and the second pilot seed. The "
        "last column says which setting was chosen as the tuned one and as the paper's. The "
        f"protocol allows ten runs and three. {counts_of_pilots(lines)}{knobs_at_an_edge(lines)}",
        table_of_pilots(lines),
        "## Real words",
        table_of_words(),
        "## What a toy cannot say",
        "Its students have 0.4 million weights and its teacher 0.7 million, its language has 136 "
        "words, its problems are of one kind. What holds here may fail with a large model, and the "
        "other way round. It can say whether an "
        "implementation does what its equations say, which parts of a method matter where its "
        "premise is true, and how many seeds a difference needs.",
    ]
    return "\n\n".join(parts) + "\n"


def report(lines=None, path=ROOT / "RESULTS.md", folder=lab.RESULTS, readme=ROOT / "README.md"):
    lines = sorted(lab.all_lines() if lines is None else lines, key=lambda x: x["key"])
    folder.mkdir(parents=True, exist_ok=True)
    write_text(path, text(lines, folder))
    write_readme(lines, lab.known_times(), readme)
    print(f"wrote {path}, its pictures and the table of {readme}")
