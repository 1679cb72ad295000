"""What the laboratory compares: the arms with what is tuned about each of them, the controls, and
the dials. lab.py runs them, lab_swaps.py has the functions that some of them replace."""

from dataclasses import dataclass

# ======================================================================== the arms


@dataclass
class Arm:
    """A method with what is tuned about it."""

    family: str  # T, A or H: a table and a file of results
    script: str
    start: str  # the student: student, reader or reader2
    flags: list  # what makes it this arm
    rates: list  # the learning rates of the pilots
    knobs: dict  # {label: flags}
    paper: str | None = None  # the label of the paper's own value; None: no paper has this arm
    swap: str | None = None  # a function of the script is replaced, see SWAPS


FAST, MIDDLE, SLOW = [3e-4, 1e-3, 3e-3], [1e-4, 3e-4, 1e-3], [3e-5, 1e-4, 3e-4]


def values(flag, *numbers):
    return {f"{flag} {n}": [f"--{flag}", str(n)] for n in numbers}


EMA = values("ema", 0.003, 0.01, 0.03)
TEACHER = {
    "current": ["--teacher", "current"],
    "ema 0.01": ["--teacher", "ema", "--ema", "0.01"],
    "frozen": ["--teacher", "frozen"],
}
HSD = "hindsight_sd.py"
ARMS = {
    # The student learns from a stronger model.
    "OPD": Arm(
        "T", "opd.py", "student", [], FAST, paper="reverse",
        knobs={d: ["--divergence", d] for d in ("reverse", "forward", "jsd")},
    ),
    "TOPD": Arm(
        "T", "topd.py", "student", [], FAST, values("lam", 0.03, 0.1, 0.3), paper="lam 0.1"
    ),
    # Control and rival at once: plain cross-entropy on the same windows of the teacher, in the
    # teacher's own context.
    "forcing": Arm(
        "T", "topd.py", "student", [], FAST, values("lam", 0.1, 0.3, 1), swap="forcing"
    ),
    "SFT (T)": Arm(  # one solution each of 32 problems: four of the same would teach nothing more
        "T", "opd.py", "student", ["--off_policy", "1", "--prompts", "32", "--samples", "1"], FAST,
        {"": []}, paper="",
    ),
    # The student learns from itself, with a worked solution in view.
    "AR-OPD": Arm("A", "ar_opd.py", "reader", [], FAST, EMA, paper="ema 0.01"),
    "Full": Arm("A", "ar_opd.py", "reader", ["--target", "full"], FAST, EMA, paper="ema 0.01"),
    "Partial": Arm(
        "A", "ar_opd.py", "reader", ["--target", "partial"], FAST, EMA, paper="ema 0.01"
    ),
    "SFT (A)": Arm("A", "ar_opd.py", "reader", ["--target", "sft"], FAST, {"": []}, paper=""),
    # The student learns from a verifier, and from itself with a successful rollout in view.
    "HSD": Arm("H", HSD, "reader2", ["--fallback", "answer"], SLOW, TEACHER, paper="current"),
    "GRPO": Arm(
        "H", "grpo.py", "reader2", [], MIDDLE, values("beta", 0.0, 0.001, 0.01),
        paper="beta 0.001",
    ),
    "answer only": Arm(
        "H", HSD, "reader2", ["--context", "answer"], SLOW, TEACHER, paper="current"
    ),
    "GRPO + answer": Arm(
        "H", HSD, "reader2", ["--context", "answer", "--rl_weight", "0.5"], SLOW, TEACHER,
        paper="current",
    ),
    # HSD's other choice: a rollout without a peer has no distillation loss. See point 12.
    "HSD (mask)": Arm(
        "H", HSD, "reader2", ["--fallback", "mask"], SLOW, TEACHER, paper="current"
    ),
    "SDPO's choices": Arm(
        "H", HSD, "reader2", ["--divergence", "jsd", "--fallback", "mask"], MIDDLE,
        {"ema 0.05": ["--teacher", "ema", "--ema", "0.05"], **dict(list(TEACHER.items())[1:])},
        paper="ema 0.05",
    ),
    "DAPO": Arm(
        "H", "grpo.py", "reader2", ["--variant", "dapo"], MIDDLE, values("reuse", 1, 2, 4),
        paper="reuse 1",
    ),
}
# The arms of the headline claims come first in the queue.
HEADLINE = ["AR-OPD", "Full", "HSD", "GRPO", "TOPD", "OPD", "answer only", "forcing", "HSD (mask)"]

# Beside equal updates these are compared at equal time: (an arm, its base).
EQUAL_TIME = [
    ("TOPD", "OPD"), ("forcing", "OPD"), ("AR-OPD", "Full"),
]  # fmt: skip

# Point 16 of the protocol: {label: (learning rate, flags)} of python hindsight_sd.py. The first is
# what its defaults were, the second what they are since point 14.
SCRIPT_PILOTS = {
    f"{fallback}, {teacher}, {rate:g}": (
        rate, ["--fallback", fallback, "--teacher", teacher.split()[0],
               *(["--ema", "0.01"] if teacher == "ema 0.01" else [])],
    )
    for fallback, teacher, rate in (
        ("answer", "frozen", 3e-4), ("mask", "current", 1e-4), ("mask", "current", 3e-5),
        ("mask", "ema 0.01", 1e-4), ("mask", "frozen", 1e-4), ("mask", "frozen", 3e-4),
    )
}  # fmt: skip

# See point 15 of the protocol: with three times the updates, and from other starts.
LONG = [arm for arm in HEADLINE if arm != "answer only"]
STARTS = ["HSD", "GRPO", "HSD (mask)"]

# Controls: (the arm whose setting they take, flags, swapped function). They change one thing.
# Those that a paper's claim names run at both settings of their arm, the others at the tuned one.
CLAIMED = {
    "suppress low": ("OPD", ["--guidance", "off", "--suppress", "low"], None),
    "suppress high": ("OPD", ["--guidance", "off", "--suppress", "high"], None),
    **{f"AR-OPD, lam {x}": ("AR-OPD", ["--lam", str(x)], None) for x in (0.4, 1.2, 0.8, 1.0)},
    "HSD, no fallback": ("HSD", ["--fallback", "mask"], None),
    **{f"HSD, {p} peer": ("HSD", ["--peer", p], None) for p in ("shortest", "high_ppl", "low_ppl")},
    **{f"HSD, beta {b}": ("HSD", ["--beta", b], None) for b in ("0", "0.1")},
}
# What is taught, and where?
CONTROLS = {
    **CLAIMED,
    "random positions": ("TOPD", [], "random"),
    "every candidate": ("TOPD", ["--drop_share", "0"], None),
    "exact plan": ("TOPD", [], "exact"),
    "positional plan": ("TOPD", [], "positional"),
    "shuffled plan": ("TOPD", [], "shuffled"),
    "self target": ("TOPD", [], "self"),
    "contextual": ("TOPD", ["--embedding", "contextual"], None),
    "TOPD and suppress low": ("TOPD", ["--suppress", "low"], None),
    "AR-OPD, frozen": ("AR-OPD", ["--teacher", "frozen"], None),
    "AR-OPD, clip 1": ("AR-OPD", ["--clip", "1"], None),
    "AR-OPD, no clip": ("AR-OPD", ["--clip", "0"], None),
    "AR-OPD, arithmetic": ("AR-OPD", [], "arithmetic"),
    "AR-OPD, answer kept": ("AR-OPD", ["--partial_answer", "keep"], None),
    "AR-OPD, equal lengths": ("AR-OPD", [], "equal lengths"),
    "HSD, moving teacher": ("HSD", ["--teacher", "ema", "--ema", "0.01"], None),
    "HSD, current teacher": ("HSD", ["--teacher", "current"], None),
    "HSD, wrong peer": ("HSD", [], "wrong"),
    "HSD, other question's peer": ("HSD", [], "other"),
    "HSD, peer without answer": ("HSD", [], "no_answer"),
    "HSD, failures only": ("HSD", ["--train", "failures"], None),
    "HSD, successes only": ("HSD", [], "successes"),
    # Are live rollouts needed at all?
    "OPD, the start's rollouts": ("OPD", [], "start's rollouts"),
    "OPD, SFT on the teacher's text": ("OPD", [], "teacher's text"),
}

# HSD gains little here, so four seeds could not see that a wrong hint teaches as well.
EIGHT_SEEDS = ["HSD, wrong peer", "HSD, other question's peer"]

# Dials: the gain of a method over its base, at three values of its own premise. They are made like
# controls. A third value is the arm itself, or another start (STARTS).
# TOPD: the share of tokens with a high loss that are only words. Terse problems have few of them.
DIALS = {
    f"{arm}, {style} only": (arm, ["--data", f"runs/lab/{style}.jsonl"], None)
    for style in ("terse", "verbose")
    for arm in ("OPD", "TOPD")
}
# AR-OPD: how much the whole view knows that the anchor does not.
DIALS |= {
    f"AR-OPD, rho {rho}": ("AR-OPD", ["--rho", str(rho)], None)
    for rho in (0.25, 0.75)
}
CONTROLS |= DIALS
