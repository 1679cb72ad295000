"""What `evaluate.py --compare` does: find out which runs belong to one arm and which can be
compared at all, and make a table of arms over seeds. common/results.py reads the runs."""

import json
import math
import os
from pathlib import Path

from common import files
from common.arguments import harmless, require
from common.evaluation import bounded_interval, mean_interval, newcombe, wilson
from common.results import NEUTRAL, read_run, same_gold
from common.show import draw_arms

# What a reader must know if arms differ in it.
UNFAIR = {
    "steps": "they were not trained for the same number of updates",
    "eval_n": "their accuracies are of different problems",
}
PICTURES = (".png", ".pdf", ".svg", ".jpg")

# ======================================================================== can they be compared?


def compare(folders, out):
    """A table of arms over seeds, as text. Curves of training runs are drawn into `out`.

    An arm is all runs that differ in their seed only, or in what does not change a result (the
    device, what is printed, how a batch is cut). Each arm is compared to the first one
    in pairs: training runs with the same seed (they see the same prompts in the same
    order), and evaluations on the same problem. What both sides of a pair share cancels in
    the difference, and that is most of the noise.
    """
    _refuse_the_same_folder(folders)
    runs = [read_run(folder) for folder in folders]
    _refuse_what_differs(runs)
    training = runs[0].curve is not None
    if training:
        require(
            Path(out).suffix in PICTURES,
            f"--out is '{out}'; with --compare it names a picture and must end in "
            f"{', '.join(PICTURES[:-1])} or {PICTURES[-1]}.",
        )
        files.make_folder(Path(out).parent)
        files.check_writable(out, "--out")

    notes = [] if training else _keep_shared_problems(runs)
    notes += _mark_code(runs)
    if len({run.graded_by for run in runs}) > 1:
        notes.append(
            "different versions of the grading code graded these evaluations; give the commands "
            "that made them once more, and the stored responses are graded again"
        )
    if len({run.computed_in for run in runs if run.computed_in}) > 1:
        for run in runs:
            run.settings["computed_in"] = run.computed_in or "unknown"
    if len({run.trained_on for run in runs if run.trained_on}) > 1:
        notes.append("these runs were not all trained on the same problems")
    arms = {}  # {(script, its flags as JSON): runs}
    for run in runs:
        arms.setdefault((run.script, json.dumps(run.settings, sort_keys=True)), []).append(run)
    groups = list(arms.values())
    _refuse_the_same_seed(groups)
    names = arm_names(groups)
    notes += _differences_to_know(names, groups)

    width = max(len("arm"), *map(len, names))
    lines = [
        f"{'arm':<{width}} {'runs':>4} {'accuracy':>9} {'95 % interval':>17}   "
        "difference to the first (paired)"
    ]
    for name, group in zip(names, groups):
        mean, interval, note = arm_interval(group)
        difference = "" if group is groups[0] else paired_difference(group, groups[0])
        line = f"{name:<{width}} {len(group):>4} {100 * mean:>8.1f}% {interval:>17}   "
        lines.append((line + difference).rstrip())
        notes += [f"{name}: {note}"] if note else []
    lines += [harmless(f"note: {note}") for note in notes]
    if training:
        draw_arms({n: [run.curve for run in group] for n, group in zip(names, groups)}, Path(out))
        lines.append(f"curves: {out}")
    return "\n".join(lines)


def _refuse_the_same_folder(folders):
    """One run under two names (a link, another spelling) would count as two seeds."""
    seen = {}
    for folder in folders:
        if os.path.exists(folder):
            found = os.stat(folder)
            place = found.st_dev, found.st_ino
            sentence = f"'{seen.get(place)}' and '{folder}' are the same folder; name a run once."
            require(place not in seen, sentence)
            seen[place] = folder


def _refuse_what_differs(runs):
    require(
        len({run.curve is None for run in runs}) == 1,
        "Compare training runs with training runs, or evaluations with evaluations, not both at "
        "once.",
    )
    unfinished = [run.unfinished for run in runs if run.unfinished]
    require(not unfinished, " ".join(unfinished))
    benchmarks = sorted({str(run.benchmark) for run in runs if run.benchmark is not None})
    require(
        len(benchmarks) <= 1,
        f"These runs were tested on different benchmarks: {', '.join(benchmarks)}. Evaluate their "
        "final models on one benchmark: python evaluate.py --model RUN/final --benchmark NAME.",
    )
    asked = {}  # {number of test problems: their hashes}
    for run in runs:
        asked.setdefault(run.settings.get("eval_n"), set()).add(run.tested_on)
    require(
        all(len(hashes - {None}) <= 1 for hashes in asked.values()),
        f"These runs were tested on different problems, though all are called "
        f"'{', '.join(benchmarks)}' (the file was edited). Evaluate their final models on one of "
        "the files: python evaluate.py --model RUN/final --benchmark FILE.",
    )


def _refuse_the_same_seed(groups):
    """A run that was made twice, or copied, is no second seed: its values are not independent."""
    for group in groups:
        by_seed = {}
        for run in group:
            same = by_seed.setdefault(run.seed, run)
            sentence = f"'{same.folder}' and '{run.folder}' have the same settings and seed "
            sentence += f"({run.seed}), so they are one run made twice; leave one of them out."
            require(same is run or run.seed is None, sentence)


def _keep_shared_problems(runs):
    """Evaluations are compared on the problems that all of them have. Returns notes."""
    shared = set.intersection(*(set(run.scores) for run in runs))
    golds, asked = {}, {}
    for run in runs:
        for i in shared:
            gold, folder = golds.setdefault(i, (run.golds[i], run.folder))
            sentence = f"'{folder}' and '{run.folder}' have different golds for problem {i}, so "
            sentence += "they are of different problems; evaluate both models on the same ones."
            require(same_gold(gold, run.golds[i]), sentence)
            if run.asked[i] is not None:  # older evaluations do not know it
                text, folder = asked.setdefault(i, (run.asked[i], run.folder))
                sentence = f"'{folder}' and '{run.folder}' have the same gold for problem {i} and "
                sentence += "ask something else; evaluate both models on the same problems."
                require(text == run.asked[i], sentence)
    most = max(run.problems for run in runs)
    for run in runs:
        run.scores = {i: run.scores[i] for i in sorted(shared)}
    if len(shared) == most:
        return []
    return [f"only the {len(shared)} problems count that all evaluations have, of up to {most}"]


def _mark_code(runs):
    """The code of a script belongs to the identity of an arm: a changed loss is another method,
    also under the old name. For an evaluation it is the weights. Returns notes."""
    notes, flag = [], "code" if runs[0].curve is not None else "weights"
    for script in dict.fromkeys(run.script for run in runs):
        same = [run for run in runs if run.script == script]
        known = {run.source for run in same if run.source is not None}
        unknown = [run.folder for run in same if run.source is None]
        if len(known) > 1:
            for run in same:
                parts = "unknown" if run.source is None else str(run.source)
                run.settings[flag] = "+".join(part[:7] for part in parts.split("+"))
            notes.append(f"{script}: these runs do not all have the same {flag}, so they are "
                         "separate arms")
        elif known and unknown:
            notes.append(f"{', '.join(unknown)}: written by an older version, so it is not known "
                         f"whether it has the same {flag} as the other runs of {script}")
    return notes


# ======================================================================== names


def _values(flag, groups):
    """{value of the flag as text: number of the first group that has it}"""
    found = {}
    for i, group in enumerate(groups):
        value = group[0].settings.get(flag, NEUTRAL.get(flag))
        found.setdefault(json.dumps(value), i)
    return found


def arm_names(groups):
    """The name of an arm: its script, and the flags in which arms of this script differ. Between
    two scripts all their own flags differ, and these say nothing to a reader."""
    names = []
    for group in groups:
        script = group[0].script
        same = [g for g in groups if g[0].script == script]
        flags = dict.fromkeys(f for g in same for f in g[0].settings)  # a set that keeps the order
        settings = group[0].settings
        shown = [
            f"{f}={settings[f]}" for f in flags if f in settings and len(_values(f, same)) > 1
        ]
        # The text comes from the files of the runs, which can be a stranger's.
        names.append(harmless(" ".join([script, *shown])))
    return names


def _differences_to_know(names, groups):
    """Notes on flags that all arms have, but not with the same value, and on what makes a
    comparison unfair."""
    notes, more = [], []
    settings = [g[0].settings for g in groups]
    # A flag with its neutral value is not written down. So an arm can have it all the same.
    flags = dict.fromkeys(flag for of in settings for flag in of)
    for flag in [f for f in flags if f in NEUTRAL or all(f in of for of in settings)]:
        values = _values(flag, groups)
        if len(values) == 1 or flag == "code":
            continue
        told = ", ".join(f"{names[i]}: {json.loads(value)}" for value, i in values.items())
        if flag in UNFAIR:
            notes.append(f"the arms differ in {flag} ({told}): {UNFAIR[flag]}")
        elif not all(f"{flag}={of.get(flag)}" in n or flag not in of
                     for n, of in zip(names, settings)):
            more.append(f"{flag} ({told})")
    return notes + ([f"the arms also differ in {', '.join(more)}"] if more else [])


# ======================================================================== numbers


def _equal(values):
    return max(values) - min(values) < 1e-12


def arm_interval(group):
    """(mean, its interval as text, note) of an arm, over seeds or over problems."""
    if group[0].scores is not None:
        values = list(mean_scores(group).values())
        mean, low, high = bounded_interval(values)
        if set(values) <= {0.0, 1.0}:
            low, high = wilson(sum(values), len(values))
        return mean, f"{100 * low:5.1f} .. {100 * high:5.1f}", ""
    values, note = [run.final for run in group], ""
    mean, low, high = mean_interval(values)
    if len(values) == 1:
        return mean, "one run: none", ""
    if _equal(values):
        low, high = wilson(mean * group[0].problems, group[0].problems)
        note = f"all seeds ended alike, so the interval is over the {group[0].problems} problems"
    return mean, f"{100 * max(0.0, low):5.1f} .. {100 * min(1.0, high):5.1f}", note


def mean_scores(group):
    """{problem: mean score over the evaluations of an arm}"""
    return {i: sum(run.scores[i] for run in group) / len(group) for i in group[0].scores}


def paired_difference(group, first):
    """The mean difference between an arm and the first arm, with its interval, as text."""
    if group[0].scores is not None:
        first_scores = mean_scores(first)
        differences = [score - first_scores[i] for i, score in mean_scores(group).items()]
        found = bounded_interval(differences, -1.0, 1.0)
        return _difference(*found, f"{len(differences)} problems")
    problems, first_problems = group[0].problems, first[0].problems
    if problems != first_problems:
        return f"none: {problems} problems here, {first_problems} there"
    by_seed = {run.seed: run.final for run in first}
    pairs = [(run.final, by_seed[run.seed]) for run in group if run.seed in by_seed]
    if not pairs:
        return "none: no seed in common"
    differences = [a - b for a, b in pairs]
    mean, low, high = mean_interval(differences)
    if low == -math.inf:
        return f"{100 * mean:+.1f} (one pair of seeds: no interval)"
    if _equal(differences):  # no variance over seeds: what is left is the choice of the problems
        here, there = (sum(values) / len(pairs) for values in zip(*pairs))
        low, high = newcombe(here, problems, there, problems)
        return _difference(mean, low, high, f"{problems} problems (equal for {len(pairs)} seeds)")
    return _difference(mean, low, high, f"{len(pairs)} seeds")


def _difference(mean, low, high, over):
    low, high = max(-1.0, low), min(1.0, high)
    return f"{100 * mean:+.1f} [{100 * low:+.1f}, {100 * high:+.1f}] over {over}"
