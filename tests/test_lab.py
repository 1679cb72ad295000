"""The laboratory's machinery: the order of the queue, what is chosen, and what a report says. The
runs themselves are invented here, except for the committed lines."""

import copy
import json
import math
import os
import random
import re
import statistics
import sys
from dataclasses import asdict

import pytest
import torch
from conftest import ROOT

sys.path.insert(0, str(ROOT / "benchmarks"))
import lab
import lab_report

from common.files import read_jsonl

COMMITTED = lab.all_lines()


def accuracy_of(job):
    """An invented world. The best learning rate is 1e-3 for all arms, and TOPD is better by 5."""
    value = 0.5 - 0.1 * abs(math.log10(job.rate or 1e-3) + 3) + 0.05 * (job.arm == "TOPD")
    value += 0.02 * job.knob.endswith(("0.3", "frozen")) - 0.1 * (job.control != "")
    return value + random.Random(job.key).gauss(0, 0.004)


def line_of(job):
    line = {"key": job.key, **asdict(job), "commit": "abc", "course": {}}
    line["curve"] = [[0, 0.2], [80, 0.5]]
    if job.stage in lab.PILOTS:
        return line | {"toy-validation": {"accuracy": accuracy_of(job)}}
    value = accuracy_of(job) if job.stage != "start" else 0.25
    bits = (1 << round(value * 2001)) - 1
    found = {"accuracy": value, "right": f"{bits:x}", "n": 2001, "mean_tokens": 70.0}
    if job.arm in ("AR-OPD", "HSD"):
        line |= {"health": [{"step": s, "right": 0.9, "wrong": 0.2} for s in (0, 80)]}
        line["course"] = {"loss": [0.2, 0.1]}
    line |= {"toy-validation": {"accuracy": 0.25}} if job.stage == "start" else {}
    return line | {"toy": found | {"pass@1": 0.2, "pass@8": 0.6}, "toy-heldout": found | {"shortcuts": 0.01}}


@pytest.fixture(scope="module")
def all_runs():
    """The lines after the whole queue."""
    lines = []
    while len(lines) < 1000:
        jobs = list(lab.missing(lines))
        if not jobs:
            return lines
        lines.append(line_of(jobs[0]))
    raise AssertionError("the queue has no end")


def test_the_queue_has_an_end_and_makes_no_run_twice(all_runs):
    assert len({x["key"] for x in all_runs}) == len(all_runs) > 300
    for arm in lab.ARMS:
        of_arm = [x for x in all_runs if x["arm"] == arm and x["stage"] == "pilot"]
        first = [x for x in of_arm if x["seed"] == lab.PILOT_SEEDS[0]]
        assert 3 <= len(first) <= 10 and len(of_arm) - len(first) <= 3


def test_the_best_pilot_does_not_lie_at_the_edge_of_the_rates(all_runs):
    one = lab.PILOT_SEEDS[0]
    for arm in lab.ARMS:
        found = {s: of[one] for s, of in lab.settings(all_runs, arm).items() if one in of}
        knob, rate = max(found, key=found.get)
        beside = {(knob, lab.next_rate(rate, -1)), (knob, lab.next_rate(rate, 1))}
        assert beside <= set(found) or len(found) == 10, arm
        assert lab.chosen(all_runs, arm)["tuned"][1] == 1e-3, arm
        for knob, rate in lab.chosen(all_runs, arm).values():  # after the second seed
            beside = {(knob, lab.next_rate(rate, -1)), (knob, lab.next_rate(rate, 1))}
            assert beside <= set(found) or len(found) == 10, arm


def test_a_control_is_compared_at_the_setting_at_which_it_ran(all_runs):
    """HSD's tuned setting has a frozen teacher here, and the paper's has not."""
    two = lab.chosen(all_runs, "HSD")
    assert two["tuned"][0] == "frozen" and two["paper"][0] == "current"
    two = ("tuned", "paper")
    # A paper's claim is judged at both settings. Questions of ours are asked at the tuned one.
    assert [len(lab_report.runs(all_runs, "HSD, beta 0", w)) for w in two] == [4, 4]
    assert [len(lab_report.runs(all_runs, "HSD, failures only", w)) for w in two] == [4, 0]
    assert [len(lab_report.runs(all_runs, "HSD, wrong peer", w)) for w in two] == [8, 0]
    line = next(x for x in lab_report.table_of_claims(all_runs).splitlines() if "beta .001 is better than 0" in x)
    assert line.count("] (4) | holds |") == 2


def test_differences_at_temperature_1_stand_beside_the_greedy_ones(all_runs):
    lines = copy.deepcopy(all_runs)
    for x in lines:
        if x["arm"] == "TOPD" and x["stage"] == "confirm":
            x["toy"]["pass@1"] = 0.1
    table = lab_report.table_of_other_measures(lines).splitlines()
    topd = next(x for x in table if "| TOPD - OPD |" in x)
    assert topd.count("| -10.0 [-10.0, -10.0] (8) |") == 1 and "longer" in table[0]
    assert any("| AR-OPD - Full | +0.0 [+0.0, +0.0] (8) |" in x for x in table)
    assert lab_report.table_of_other_measures([]) == "Not run yet."


def test_equal_settings_are_read_from_the_pilots(all_runs):
    rows = lab_report.table_of_equal_settings(all_runs).splitlines()[2:]
    two = [lab.settings(all_runs, arm) for arm in ("HSD", "answer only")]
    assert len(rows) == len(two[0].keys() & two[1].keys()) >= 5
    for knob, rate in two[0].keys() & two[1].keys():
        first = [f"{100 * of[knob, rate][lab.PILOT_SEEDS[0]]:.1f}" for of in two]
        assert any(x.startswith(f"| {knob} | {rate:g} | {first[0]}") and first[1] in x for x in rows)
    assert lab_report.start_of_pilots(all_runs, "HSD") == "; the start has 25.0 %"


def test_sft_stands_beside_the_method_that_learns_from_the_same_solutions(all_runs):
    said, = lab_report.against_sft(all_runs)
    ours, sft = (lab_report.runs(all_runs, arm, "tuned") for arm in ("AR-OPD", "SFT (A)"))
    gaps = lab_report.interval(lab_report.paired(ours, sft), signed=True)
    assert len(sft) == 4 and f"AR-OPD - SFT is {gaps}, on the longer problems" in said
    assert "SFT on AR-OPD's solutions ends at" in " ".join(
        lab_report.caption_for_the_readme(all_runs).split())
    assert lab_report.against_sft([]) == []


def test_the_report_counts_the_pilots(all_runs):
    found = lab.settings(all_runs, "OPD").values()
    first, second = (sum(s in of for of in found) for s in lab.PILOT_SEEDS)
    said = lab_report.counts_of_pilots(all_runs)
    assert said.startswith(f"Made were: OPD {first} + {second}, ") and "more than that" not in said
    # One arm more than the protocol allows.
    extra = [{**x, "knob": f"{i}"} for x in all_runs if (x["stage"], x["arm"]) == ("pilot", "OPD")
             for i in range(4) if x["seed"] == lab.PILOT_SEEDS[1]]
    assert "OPD made more than that, see point 2." in lab_report.counts_of_pilots([*all_runs, *extra])


def test_the_report_says_which_runs_were_made_again(all_runs):
    chosen = lab.chosen(all_runs, "TOPD")["tuned"]
    lines = [{**x, "again": True} if (x["stage"], x["arm"], x["seed"]) == ("confirm", "TOPD", 101)
             and (x["knob"], x["rate"]) == chosen and not x["pair"] else x for x in all_runs]
    assert "1 at the tuned one were made again" in lab_report.made_again(lines)
    assert " 0 at the tuned one were made again" in lab_report.made_again(all_runs)


def test_the_error_of_the_problems_by_hand(monkeypatch):
    """Two seeds, four problems: TOPD - OPD of each problem, summed over the seeds, is 2, 0, 1, -1."""
    def line(right):
        return {"toy": {"n": 4, "right": hex(right)}}
    found = {"TOPD": {101: line(0b0101), 102: line(0b0001)}, "OPD": {101: line(0), 102: line(0b1000)}}
    monkeypatch.setattr(lab_report, "of_seeds", lambda lines, name, which: found.get(name, {}))
    monkeypatch.setattr(lab, "SEEDS", [101, 102])
    error = 100 * statistics.stdev([2, 0, 1, -1]) / 2 / 2
    assert f"is {error:.1f} to {error:.1f} points" in lab_report.error_of_problems([])


def test_a_comparison_with_an_arm_that_stands_still_says_so(all_runs, monkeypatch):
    monkeypatch.setattr(lab_report, "stands_still", lambda lines, name, which: name == "answer only")
    rows = [x for x in lab_report.table_of_claims(all_runs).splitlines() if "answer only hardly learns" in x]
    assert len(rows) == 2 and all("answer" in x.split("|")[2] for x in rows)


def test_every_control_has_a_place_in_the_report(all_runs, tmp_path):
    text = lab_report.text(all_runs, tmp_path)
    named = {name for c in [*lab_report.CLAIMS, *lab_report.QUESTIONS] for name in (c.better, c.worse)}
    for name in lab.CONTROLS:
        assert name in named or f"| {name} |" in text, name


def test_equal_time_is_measured_by_runs_of_that_length(all_runs):
    table = lab_report.table_at_equal_time(all_runs)
    updates = lab.fitting_updates("TOPD", "OPD")
    assert updates == round(80 * lab.known_times()["OPD"] / lab.known_times()["TOPD"]) < 80
    line = next(x for x in table.splitlines() if x.startswith("| TOPD - OPD"))
    low, high = (round(80 / x) for x in reversed(lab.known_times("ranges")["TOPD"]))
    assert line.startswith(f"| TOPD - OPD | {updates} ({low} to {high}) |") and low < updates < high
    assert line.count("(8)") == 3


def test_seeds_of_pilots_and_of_verdicts_are_different(all_runs):
    pilots = {x["seed"] for x in all_runs if x["stage"] in lab.PILOTS}
    assert not pilots & {x["seed"] for x in all_runs if x["stage"] not in (*lab.PILOTS, "start")}


@pytest.mark.parametrize("lines", ["committed", "invented"])
def test_nothing_is_chosen_on_the_test_set(lines, all_runs):
    for x in {"committed": COMMITTED, "invented": all_runs}[lines]:
        tests = {"toy", "toy-heldout"} & set(x)
        assert tests == (set() if x["stage"] in lab.PILOTS else {"toy", "toy-heldout"}), x["key"]
        assert ("toy-validation" in x) == (x["stage"] in (*lab.PILOTS, "start")), x["key"]
        if lines == "committed" and x["stage"] != "start":
            assert "--benchmark toy-validation" in x["command"]


def test_next_rate():
    assert [lab.next_rate(r, 1) for r in (3e-5, 1e-4, 3e-4)] == [1e-4, 3e-4, 1e-3]
    assert [lab.next_rate(r, -1) for r in (1e-4, 3e-4, 1e-3)] == [3e-5, 1e-4, 3e-4]


def test_shares_of_several_machines_are_all_runs_and_none_twice():
    whole = [j.key for j in lab.missing([])]
    parts = [[j.key for j in lab.missing([], (k, 3))] for k in (1, 2, 3)]
    assert sorted(sum(parts, [])) == sorted(whole) and all(parts)


def test_a_command_is_what_the_script_accepts():
    import importlib

    from common.flags import parse

    lines = []
    for arm, spec in lab.ARMS.items():
        for knob in spec.knobs:
            lines.append(lab.Job("confirm", arm, knob, 1e-3, 1, spec.start))
    for name, (arm, flags, _) in lab.CONTROLS.items():
        spec = lab.ARMS[arm]
        knob = next(iter(spec.knobs))
        lines.append(lab.Job("control", arm, knob, 1e-3, 1, spec.start, control=name, flags=flags))
    for job in lines:
        script, flags = lab.command(job)
        module = importlib.import_module(script.removesuffix(".py"))
        args = module.check(parse(module.Args, "", flags, module.__name__))
        assert args.lr == 1e-3 and args.student == f"toy/{job.start}" and args.data == (
                job.flags[1] if "--data" in job.flags else "toy")


def test_a_script_as_it_is_has_its_own_defaults(all_runs):
    from hindsight_sd import Args
    from opd import parse
    job = next(j for j in lab.queue(all_runs) if (j.stage, j.arm) == ("script", "HSD"))
    script, flags = lab.command(job)
    args, plain = (parse(Args, "", f, "hindsight_sd") for f in (flags, ["--device", "cpu"]))
    looks = ("seed", "out", "given", "benchmark", "eval_every", "eval_n", "show_every")
    assert {k: v for k, v in vars(args).items() if k not in looks} == {
        k: v for k, v in vars(plain).items() if k not in looks
    }
    assert job.updates == plain.steps and args.seed == job.seed
    assert script == "hindsight_sd.py" and job.knob == lab.script_chosen(all_runs)


def test_the_defaults_of_hindsight_sd_are_those_that_its_pilots_chose():
    from hindsight_sd import Args
    from opd import parse
    label = lab.script_chosen(COMMITTED)
    rate, flags = lab.SCRIPT_PILOTS[label]
    plain = parse(Args, "", ["--device", "cpu"], "hindsight_sd")
    said = dict(zip(flags[::2], flags[1::2]))
    assert plain.lr == rate and plain.fallback == said["--fallback"]
    assert plain.teacher == said["--teacher"] and str(plain.ema) == said.get("--ema", str(plain.ema))


def test_a_pilot_of_a_script_has_the_budget_of_the_script_and_sees_no_test_problem():
    first, *_ = jobs = lab.script_pilots([])
    assert len(jobs) == len(lab.SCRIPT_PILOTS) and {j.seed for j in jobs} == {lab.PILOT_SEEDS[0]}
    script, flags = lab.command(first)
    assert "--steps" not in flags and "--prompts" not in flags and "--samples" not in flags
    assert flags[flags.index("--benchmark") + 1] == "toy-validation"
    assert first.key.startswith("validation / ") and first.updates == lab.DEFAULT_UPDATES


def test_the_best_two_pilots_of_a_script_get_a_second_seed_and_the_mean_decides():
    one, two = lab.PILOT_SEEDS

    def line(job, value):
        return {**asdict(job), "key": job.key, "toy-validation": {"accuracy": value}}

    jobs = lab.script_pilots([])
    lines = [line(j, 0.3 + 0.01 * i) for i, j in enumerate(jobs)]
    assert lab.script_chosen(lines[:-1]) is None and lab.script_chosen(lines) is None
    second = [j for j in lab.script_pilots(lines) if j.seed == two]
    assert [j.knob for j in second] == [j.knob for j in jobs[-2:]]
    # The last one was ahead with the first seed, and falls behind with the second.
    lines += [line(second[0], 0.36), line(second[1], 0.31)]
    assert lab.script_chosen(lines) == jobs[-2].knob
    assert all(j.key in {x["key"] for x in lines} for j in lab.script_pilots(lines))
    shown = lab_report.table_of_script_pilots(lines).splitlines()
    assert [x.endswith("| chosen |") for x in shown[2:]] == [False] * 4 + [True, False]


def test_the_second_set_of_models_has_a_row_for_each_setting_of_each_claim(all_runs):
    """One row where the tuned setting is the paper's: the runs are the same."""
    lines = [x for x in all_runs if x["stage"] != "control"]
    rows = [x.split(" | ")[1:3] for x in lab_report.table_of_pairs(lines).splitlines()[2:]]
    found = {}
    for name, setting in rows:
        found.setdefault(name, []).append(setting)
    assert found["AR-OPD - Full"] in (["both"], ["paper", "tuned"]) and len(found) > 8
    for name, settings in found.items():
        same = all(len(set(lab.chosen(lines, arm).values())) == 1 for arm in name.split(" - "))
        assert settings == (["both"] if same else ["paper", "tuned"]), name
    assert {"both", "tuned"} <= {s for settings in found.values() for s in settings}


def test_the_table_of_scripts_counts_eight_seeds_of_each(all_runs):
    rows = lab_report.table_of_scripts(all_runs).splitlines()[2:]
    assert len(rows) == 3 and all(row.count("(8)") == 2 for row in rows)
    # Runs of hindsight_sd.py with other defaults have a row of their own, below.
    older = {**next(x for x in all_runs if (x["stage"], x["arm"]) == ("script", "HSD")), "knob": "x"}
    rows = lab_report.table_of_scripts([*all_runs, older]).splitlines()[2:]
    assert [row.count("(8)") for row in rows] == [2, 2, 0, 2] and "| x |" in rows[2]


@pytest.mark.parametrize("stage, pair, looks", [
    ("pilot", 0, ("20", "0")), ("confirm", 0, ("300", "20")), ("confirm", 1, ("20", "0")),
    ("control", 0, ("20", "0")), ("time", 0, ("20", "0")), ("long", 0, ("300", "20")),
])
def test_only_runs_with_a_curve_look_at_many_problems(stage, pair, looks):
    _, flags = lab.command(lab.Job(stage, "HSD", "frozen", 3e-4, 101, "reader2", pair))
    assert (flags[flags.index("--eval_n") + 1], flags[flags.index("--eval_every") + 1]) == looks


@pytest.fixture
def two_updates(tmp_path, monkeypatch):
    """Makes a job with two small updates, and returns its folder."""
    def make(stage, arm, control="", **more):
        import importlib
        spec = lab.ARMS[arm]
        flags = lab.CONTROLS[control][1] if control else []
        knob = spec.paper if spec.paper in spec.knobs else next(iter(spec.knobs))
        job = lab.Job(stage, arm, knob, 1e-4, 5, spec.start, updates=2, control=control, flags=flags)
        script, command = lab.command(job)
        small = ["--prompts", "3", "--eval_n", "6", "--max_new_tokens", "40", "--eval_every", "0"]
        module = importlib.import_module(script.removesuffix(".py"))
        out = tmp_path / "run"
        with lab.prepared(module, job):
            module.main([*command, *small, "--out", str(out)])
        return out
    monkeypatch.chdir(ROOT)
    return make


# The others only have other flags, see test_a_command_is_what_the_script_accepts.
SWAPPED = [name for name, (_, _, swap) in lab.CONTROLS.items() if swap]


@pytest.mark.slow
@pytest.mark.parametrize("control", SWAPPED)
def test_every_control_that_replaces_a_function_makes_updates(control, two_updates):
    rows = read_jsonl(two_updates("pilot", lab.CONTROLS[control][0], control) / "metrics.jsonl")
    losses = [r["loss"] for r in rows if "loss" in r]
    assert len(losses) == 2 and all(math.isfinite(x) for x in losses)


def test_what_a_control_replaces_is_there_and_comes_back():
    import lab_swaps
    for module, functions in lab_swaps.SWAPS.values():
        with lab_swaps.swapped(module, functions):
            assert all(getattr(module, name) is f for name, f in functions.items())
        assert all(getattr(module, n) is lab_swaps.ORIGINAL[n] is not f for n, f in functions.items())


def test_every_control_that_replaces_something_is_known():
    import lab_swaps
    used = {swap for _, _, swap in lab.CONTROLS.values()} | {a.swap for a in lab.ARMS.values()}
    assert used - {None} == set(lab_swaps.SWAPS)


@pytest.mark.slow
@pytest.mark.parametrize("arm, keys", [("AR-OPD", {"step", "right", "wrong"}), ("HSD", {"step", "right", "wrong"})])
def test_the_health_of_a_self_teacher_is_written_down(arm, keys, two_updates, monkeypatch):
    monkeypatch.setattr(lab, "HEALTH", 6)
    found = read_jsonl(two_updates("confirm", arm) / "health.jsonl")
    assert [x["step"] for x in found] == [0, 2] and all(set(x) == keys for x in found)
    # Shown the solution of its own problem, the teacher is right more often than with another's.
    assert found[0]["right"] > found[0]["wrong"]


@pytest.mark.slow
def test_pilots_are_not_watched(two_updates):
    assert not (two_updates("pilot", "AR-OPD") / "health.jsonl").exists()


def test_rollouts_of_the_start_do_not_follow_the_student(toy):
    import lab_swaps

    import opd
    from common.data import load_benchmark, prompt_ids
    student, _, tokenizer = toy
    rows = load_benchmark("toy", "train", 2)
    for row in rows:
        row["ids"] = prompt_ids(tokenizer, row["prompt"])
    args = opd.Args(student="toy/student", max_new_tokens=30, samples=1)
    moved = copy.deepcopy(student)
    with torch.no_grad():
        for p in moved.parameters():
            p.mul_(1.05)
    start = lab_swaps.rollouts_of_the_start(moved, tokenizer, rows, args, 1)
    assert start == opd.rollouts(student, tokenizer, rows, args, 1)
    assert start != opd.rollouts(moved, tokenizer, rows, args, 1)


@pytest.mark.slow
def test_a_run_that_was_killed_goes_on_and_names_both_commits(tmp_path, monkeypatch):
    from common.arguments import Mistake
    job = lab.Job("pilot", "SFT (A)", "", 1e-4, 7, "reader", updates=2, flags=["--prompts", "2"])
    monkeypatch.setattr(lab.Job, "folder", tmp_path / "run")
    monkeypatch.setattr(lab, "ORIGIN", lab.ORIGIN | {"commit": "first"})
    monkeypatch.setattr(lab, "final_accuracy", lambda folder, split: {"accuracy": 0.25})

    def killed(*args, **more):
        raise KeyboardInterrupt
    import ar_opd
    with monkeypatch.context() as patch:
        patch.setattr(ar_opd.Run, "finish", killed)
        with pytest.raises((KeyboardInterrupt, SystemExit, Mistake)):
            lab.execute(job)
    monkeypatch.setattr(lab, "ORIGIN", lab.ORIGIN | {"commit": "second"})
    line = lab.execute(job)
    assert line["commit"] == "first+second"


def test_a_run_is_claimed_by_one_process_and_free_when_that_is_killed(tmp_path, monkeypatch):
    import subprocess
    monkeypatch.setattr(lab, "ROOT", tmp_path)
    job = lab.Job("pilot", "OPD", "reverse", 1e-3, 1, "student")
    other = (
        "import sys, lab, pathlib, time; lab.ROOT = pathlib.Path(sys.argv[1])\n"
        "print(lab.claim(lab.Job('pilot', 'OPD', 'reverse', 1e-3, 1, 'student')), flush=True)\n"
        "time.sleep(60)"
    )
    command = [sys.executable, "-c", other, str(tmp_path)]
    path = {"PYTHONPATH": str(ROOT / "benchmarks")}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ, **path}) as process:
        assert process.stdout.readline() == "True\n"
        assert not lab.claim(job)
        process.kill()
    assert lab.claim(job)
    lab.unlock(job.folder / "claimed")


def test_verdicts():
    from lab_report import Claim, verdict
    claim, main = Claim("", "", "A", "B", 4.4), Claim("", "", "A", "B", 4.4, headline=True)
    assert verdict([2.0, 3.0, 2.5, 2.2], claim) == "holds"
    assert verdict([0.1, -0.2, 0.0, 0.2], claim) == "does not hold"
    assert verdict([5.0, -5.0, 8.0, 1.0], claim).startswith("cannot be told")
    assert verdict([2.0, 3.0, 2.5], claim) == "3 of 4 seeds" and verdict([], claim) == "not run yet"
    # A headline claim waits for all its seeds, and needs the corrected p value.
    assert verdict([2.0, 3.0, 2.5, 2.2] * 2, main, corrected=0.01) == "holds"
    assert verdict([2.0, 3.0, 2.5, 2.2] * 2, main, corrected=0.2).startswith("cannot be told")
    assert verdict([2.0, 3.0, 2.5, 2.2], main, corrected=0.01) == "4 of 8 seeds"
    # A difference of nothing, known exactly, does no harm.
    harmless = Claim("", "", "A", "B", 0.4, harmless=True)
    assert verdict([0.1, -0.2, 0.0, 0.2], harmless) == "holds"
    assert verdict([-2.1, -2.2, -2.0, -2.2], harmless) == "does not hold"
    assert verdict([-3.0, 2.0, 1.0, -1.0], harmless).startswith("cannot be told")
    # Less than nothing is more than "does not hold".
    assert verdict([-2.1, -2.2, -2.0, -2.2], claim) == "does not hold; the opposite does"
    eight = Claim("", "", "HSD", lab.EIGHT_SEEDS[0])
    assert verdict([4.0, 5.0, 4.5, 4.2], eight) == "4 of 8 seeds"


def test_models_that_hardly_differ_are_called_so(monkeypatch):
    def lines(right):
        return {s: {"toy": {"right": f"{right:x}", "n": 1000, "accuracy": 0.5}} for s in (1, 2, 3, 4)}
    claim = lab_report.Claim("", "", "a", "b")
    for other, share in ((0b1111, 0.0), (0b1110, 0.1), (0, 0.4), ((1 << 500) - 1, 49.6)):
        found = {"a": lines(0b1111), "b": lines(other)}
        monkeypatch.setattr(lab_report, "of_seeds", lambda _, name, which, found=found: found[name])
        assert lab_report.other_verdicts([], claim, "tuned") == pytest.approx(share)


def test_the_spread_of_rows_with_four_seeds_is_pooled(monkeypatch):
    one, two = {1: 0.0, 2: 2.0, 3: 0.0, 4: 2.0}, {1: 0.0, 2: 4.0, 3: 0.0, 4: 4.0}
    ends = {"AR-OPD": one, "Full": dict.fromkeys(one, 0.0), "Partial": two}
    claims = [lab_report.Claim("", "", a, "Full") for a in ("AR-OPD", "Partial")]
    monkeypatch.setattr(lab_report, "CLAIMS", claims)
    monkeypatch.setattr(lab_report, "QUESTIONS", [])
    monkeypatch.setattr(lab_report, "runs", lambda lines, name, which: ends[name])
    # variances 4/3 and 16/3, three degrees of freedom each: 10/3; t with six degrees is 2.447
    half = 2.4469 * (10 / 3 / 4) ** 0.5
    assert f"±{half:.1f} in family A (2 rows)" in lab_report.spread_of_four([])[0]


def test_accuracy_on_a_part_of_the_problems():
    import lab_curves
    line = {"toy": {"right": f"{0b00101:x}", "n": 5}}
    assert lab_curves.share(line, [True] * 5) == 40
    assert lab_curves.share(line, [False, False, True, False, True]) == 100
    assert lab_curves.share(line, [True, True, False, False, True]) == pytest.approx(100 / 3)


def test_the_height_of_a_curve_between_its_points():
    curve = [[0, 0.2], [40, 0.4], [80, 0.5]]
    heights = [lab_report.at(curve, step) for step in (0, 20, 40, 60, 80, 99)]
    assert heights == pytest.approx([0.2, 0.3, 0.4, 0.45, 0.5, 0.5])


def test_holm():
    # the smallest is multiplied by 3, the next by 2, and none falls below the one before it
    assert lab_report.holm([0.03, 0.01, 0.04]) == pytest.approx([0.06, 0.03, 0.06])
    assert lab_report.holm([]) == []


def test_both_tables_have_the_corrected_verdict(all_runs, monkeypatch):
    """A difference with p = .02 is not enough for one of four headline claims."""
    gaps = [1.0, 3.0, 0.5, 4.0, 0.1, 2.0, -1.0, 3.0]

    def runs(lines, name, which, **where):
        return {s: 50 + (g if name == "TOPD" else 0.0) for s, g in enumerate(gaps)}

    monkeypatch.setattr(lab_report, "runs", runs)
    assert 0.0125 < lab_report.p_value(gaps) < 0.05 and lab_report.mean_interval(gaps)[1] > 0
    claims, readme = lab_report.table_of_claims(all_runs), lab_report.table_for_the_readme(all_runs, {})
    for table, words in ((claims, "TOPD is better than OPD"), (readme, "| than OPD: ")):
        line = next(x for x in table.splitlines() if words in x)
        assert "cannot be told" in line and "holds" not in line


def test_a_report_of_the_whole_queue(all_runs, tmp_path, capsys):
    for name in ("a", "b"):
        (tmp_path / "README.md").write_text((ROOT / "README.md").read_text())
        lab_report.report(all_runs, tmp_path / name, tmp_path / "pictures", tmp_path / "README.md")
        random.Random(1).shuffle(all_runs)
    capsys.readouterr()
    text = (tmp_path / "a").read_text()
    assert text == (tmp_path / "b").read_text()             # whatever the order of the lines
    claims = text[text.index("## What holds"):text.index("## The methods")]
    assert "not run yet" not in claims
    table = (tmp_path / "README.md").read_text().partition("<!-- methods -->")[2]
    assert "8 seeds" in table and re.search(r"\| than OPD: \+[^|;]*: holds", table)
    first = next(x for x in claims.splitlines() if x.startswith("| T5"))
    assert "TOPD is better" in first and first.count("| holds") == 2
    assert all((tmp_path / "pictures" / f"lab-{f}.png").stat().st_size > 5000 for f in "TAH")


def test_the_committed_report_is_what_the_lines_say(tmp_path, capsys):
    (tmp_path / "README.md").write_text((ROOT / "README.md").read_text())
    lab_report.report(path=tmp_path / "RESULTS.md", folder=tmp_path, readme=tmp_path / "README.md")
    for name in ("RESULTS.md", "README.md"):
        assert (tmp_path / name).read_text() == (ROOT / name).read_text(), \
            "run: python benchmarks/lab.py --report"


def test_the_bits_of_a_line_are_its_accuracy():
    for x in COMMITTED:
        for split in {"toy", "toy-heldout", "toy-validation"} & set(x):
            found = x[split]
            right = bin(int(found["right"], 16)).count("1")
            assert right / found["n"] == pytest.approx(found["accuracy"], abs=1e-5)


def test_every_committed_line_is_json_on_one_line():
    for path in lab.RESULTS.glob("*.jsonl"):
        for line in path.read_text().splitlines():
            assert json.loads(line)["key"]


def test_runs_that_all_end_alike_get_a_sentence(all_runs, monkeypatch):
    assert lab_report.standing_still(all_runs) == []
    monkeypatch.setattr(lab_report, "runs", lambda lines, arm, which: (
        {101: 33.0, 102: 33.1} if arm == "GRPO" else {101: 33.0, 102: 40.0}))
    monkeypatch.setattr(lab, "settings", lambda lines, arm: {("", 1e-3): {}, ("", 3e-3): {}})
    monkeypatch.setattr(lab, "chosen", lambda lines, arm: {"tuned": ("", 1e-3)})
    (said,) = lab_report.standing_still(all_runs)
    assert said.startswith('All 2 tuned runs of "GRPO"') and "rate, 0.001, is" in said


def test_lines_of_another_benchmark_beside_them_are_not_read(tmp_path):
    for name in ("A", "words", "words-20"):
        (tmp_path / f"{name}.jsonl").write_text(json.dumps({"key": name, "stage": "pilot", "arm": "OPD"}) + "\n")
    assert [x["key"] for x in lab.all_lines(tmp_path)] == ["A"]


def test_a_pair_counts_when_all_of_its_models_are_there(tmp_path, monkeypatch):
    monkeypatch.setattr(lab, "ROOT", tmp_path)
    for name in ("student", "teacher", "reader", "reader2"):
        assert not lab.complete(1) and lab.starts() == []
        (tmp_path / "toy/pair1" / name).mkdir(parents=True)
    assert lab.complete(1) and (1, "teacher") in lab.starts() and (1, "reader3") not in lab.starts()


def test_the_time_of_an_update_is_a_median_of_rounds_with_its_range(all_runs, tmp_path, monkeypatch):
    found = lab.summary_of_times({"OPD": [1.0, 2.0, 1.0], "TOPD": [1.5, 2.0, 2.0], "GRPO": [3.0] * 3})
    assert found["times"] == {"OPD": 1.0, "TOPD": 1.5, "GRPO": 1.0}
    assert found["ranges"]["TOPD"] == [1.0, 2.0] and found["ranges"]["OPD"] == [1.0, 1.0]
    assert found["seconds"] == {"OPD": 1.0, "TOPD": 2.0, "GRPO": 3.0}
    monkeypatch.setattr(lab, "RESULTS", tmp_path)
    (tmp_path / "times.json").write_text(json.dumps(found))
    assert lab_report.with_range("TOPD", found["times"]) == "1.50 (1.00 to 2.00)"
    assert lab_report.with_range("OPD", found["times"]) == "1.00"
    assert lab_report.with_range("DAPO", found["times"]) == "not measured yet"
