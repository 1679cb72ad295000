"""benchmarks/words.py: the word problems and their worked solutions, the order of the queue, and
what is chosen. The runs themselves need a package with a model, and hours."""
import json
import random
import re
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import ROOT

sys.path.insert(0, str(ROOT / "benchmarks"))
import lab_report
import words

from common.arguments import Mistake
from common.grading import verify


def problems(count=400):
    rng = random.Random(0)
    return [words.problem(rng) for _ in range(count)]


def test_every_step_of_a_worked_solution_is_true_and_the_last_one_is_the_answer():
    operators = {"+": int.__add__, "-": int.__sub__, "*": int.__mul__}
    counts = set()
    for row in problems():
        steps = re.findall(r"(\d+) ([-+*]) (\d+) = (\d+)", row["solution"])
        for a, sign, b, result in steps:
            assert operators[sign](int(a), int(b)) == int(result) > 0, row
        for (*_, before), (a, *_) in zip(steps, steps[1:]):
            assert a == before                      # the second step begins where the first ended
        assert steps[-1][3] == row["answer"] and verify(row["solution"], row["answer"], False)
        counts.add(len(steps))
    assert counts == {1, 2}


def test_a_problem_has_the_numbers_of_its_solution_and_not_its_results():
    for row in problems():
        steps = re.findall(r"(\d+) ([-+*]) (\d+) = (\d+)", row["solution"])
        given = re.findall(r"\d+", row["problem"])
        assert given[0] in steps[0] and (row["answer"] not in given or len(given) > 1)


def test_no_two_problems_are_equal_up_to_the_name_and_the_things(tmp_path):
    twins = [f"{name} has 25 {thing} and finds 7 more." for name, thing in (("Tom", "cards"), ("Mia", "coins"))]
    assert len({words.shape(text) for text in [*twins, twins[0].replace("7", "8")]}) == 2
    words.write_problems(tmp_path)
    splits = {s: [json.loads(x)["problem"] for x in (tmp_path / f"{s}.jsonl").read_text().splitlines()]
              for s in words.SIZES}
    assert {s: len(rows) for s, rows in splits.items()} == words.SIZES
    every = [p for rows in splits.values() for p in rows]
    assert len(set(map(words.shape, every))) == len(every)


def line(stage, arm, rate, seed, accuracy=0.3):
    return {"key": words.key(stage, arm, rate, seed), "stage": stage, "arm": arm, "rate": rate, "seed": seed,
            "accuracy": accuracy, "pass@4": 0.5, "dtype": "auto"}


def test_a_learning_rate_is_chosen_when_all_of_them_were_tried():
    lines = [line("pilot", "OPD", 1e-5, words.PILOT, 0.4), line("pilot", "OPD", 3e-5, words.PILOT, 0.5)]
    assert words.chosen(lines, "OPD") is None
    lines.append(line("pilot", "OPD", 1e-4, words.PILOT, 0.5))
    assert words.chosen(lines, "OPD") == 3e-5        # of two equal ones the smaller
    assert words.chosen(lines, "TOPD") is None


def test_the_queue_ends_and_finishes_one_seed_of_all_arms_before_the_next():
    lines = []
    while words.queue(lines):
        lines.append(line(*words.queue(lines)[0]))
    assert len(lines) == 2 + len(words.ARMS) * (len(words.RATES) + len(words.SEEDS))
    assert len({x["key"] for x in lines}) == len(lines)
    first = [x for x in lines if x["stage"] == "test" and x["arm"] not in words.LAST]
    assert [x["seed"] for x in first] == sorted(x["seed"] for x in first) and len(first) == 24
    # These two arms come behind the tests of all others, also their pilots.
    rest = lines[lines.index(first[-1]) + 1 :]
    assert {x["arm"] for x in rest} == set(words.LAST)
    assert not {x["arm"] for x in lines[: -len(rest)]} & set(words.LAST)
    pilots, tests = ({x["seed"] for x in lines if x["stage"] == s} for s in ("pilot", "test"))
    assert not pilots & tests


@pytest.mark.parametrize("some", [0, 44])
def test_the_table_of_the_report(some, tmp_path, monkeypatch):
    lines = []
    for _ in range(some):
        lines.append(line(*words.queue(lines)[0]))
    monkeypatch.setattr(words, "LINES", tmp_path / "words.jsonl")
    if lines:
        words.LINES.write_text("".join(json.dumps(x) + "\n" for x in lines))
    text = lab_report.table_of_words()
    assert text.startswith("No test yet, 0 pilots") if not some else "| OPD | 1e-05 | 30.0" in text and "| GRPO" in text


@pytest.mark.parametrize("updates, folder", [(words.UPDATES, "runs"), (60, "runs-60")])
@pytest.mark.parametrize("stage", ["pilot", "test"])
def test_a_run_makes_so_many_updates_and_its_line_names_the_card(stage, updates, folder, tmp_path, monkeypatch):
    asked = []

    def script(flags):      # in the place of opd.py
        asked.append(dict(zip(flags, flags[1:])))
        out = Path(asked[-1]["--out"])
        (out / "final").mkdir(parents=True)
        (out / "checkpoint-000030").mkdir()
        first = {"step": 0, "eval": {}, "gate": {"plain": [0.3, 0.2, 0.4]}}
        row = {"step": 1, "tokens": 9, "loss": 0.5, "length": 3.0, "seconds": {"total": 1.5}}
        last = {"step": 1, "eval": {"accuracy": 0.25, "n": 20}}
        text = "".join(json.dumps(x) + "\n" for x in (first, row, last))
        (out / "metrics.jsonl").write_text(text, encoding="utf-8")

    monkeypatch.setattr(words, "HOME", tmp_path)
    monkeypatch.setattr(words.importlib, "import_module", lambda name: SimpleNamespace(main=script))
    monkeypatch.setattr(words, "accuracy", lambda *place, **more: {"accuracy": 0.5})
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: f"Card X at {device}")
    found = words.execute((stage, "OPD", 1e-5, 1), "cuda", "auto", updates, eval_every=7)
    assert found["updates"] == updates and asked[0]["--steps"] == str(updates)
    assert Path(asked[0]["--out"]).parent == tmp_path / folder
    assert not Path(asked[0]["--out"]).exists()         # two gigabytes a run would fill the disk
    assert asked[0]["--lora"] == "0" and asked[0]["--adam_bits"] == "32"
    assert found["card"] == "Card X at cuda" and found["gate"] == {"plain": [0.3, 0.2, 0.4]}
    assert found["first"] == found["last"] == {"step": 1, "tokens": 9, "loss": 0.5, "length": 3.0}
    assert found["curve"] == [[1, 0.5]] and found["evaluations"] == [[1, 0.25]]
    assert asked[0]["--eval_every"] == "7"
    assert not {"card", "curve"} & words.execute(("start", "student", 0.0, 0), "cpu", "auto", updates).keys()


@pytest.mark.parametrize("updates, kept", [(4, [1, 2, 4]), (65, [*range(3, 64, 3), 65])])
def test_a_curve_has_some_twenty_points_and_the_last_update(updates, kept):
    rows = [{"step": 0, "eval": {"accuracy": 0.3}}]
    for step in range(1, updates + 1):
        rows.append({"step": step, "tokens": 9, "loss": step / 100})
    rows[3]["loss"] = None                          # an update without a step: its gradient was not finite
    rows.append({"step": updates, "eval": {"accuracy": 0.4}})
    kept = [step for step in kept if step != 3]
    assert words.curves(rows, updates) == {
        "curve": [[step, step / 100] for step in kept], "evaluations": [[0, 0.3], [updates, 0.4]]}


def test_curves_change_no_report_and_are_drawn_where_there_are_any(tmp_path, monkeypatch):
    file, picture = tmp_path / "words.jsonl", tmp_path / "words-curves.png"
    lines = [json.loads(x) for x in words.LINES.read_text(encoding="utf-8").splitlines()]
    before = lab_report.table_of_words()
    words.draw_curves(lines[:2], picture)           # lines of models as they are
    assert not picture.exists()
    more = {"curve": [[1, 0.5], [20, 0.4]], "evaluations": [[0, 0.3], [20, 0.4]]}
    new = [x | more if x["stage"] != "start" else x for x in lines]
    file.write_text("".join(json.dumps(x) + "\n" for x in new), encoding="utf-8")
    monkeypatch.setattr(words, "LINES", file)
    assert lab_report.table_of_words() == before
    words.draw_curves([*lines, *new, new[-1] | {"stage": "test", "evaluations": []}], picture)
    assert picture.read_bytes()[:4] == b"\x89PNG"


def test_other_numbers_of_updates_have_their_own_lines(tmp_path, monkeypatch):
    monkeypatch.setattr(words, "LINES", tmp_path / "words.jsonl")
    monkeypatch.setattr(words, "HOME", tmp_path)
    (tmp_path / "expert/final").mkdir(parents=True)
    monkeypatch.setattr(words, "execute", lambda job, *run: line(*job) | {
        "seconds": 1, "run": run, **({"curve": [[1, 0.5]], "evaluations": []} if run[2] == 60 else {})})
    monkeypatch.setattr(words, "ARMS", {"student": None})
    monkeypatch.setattr(words, "RATES", (0.0,))
    for flags in ([], ["--updates", "60", "--eval_every", "5"]):
        monkeypatch.setattr(sys, "argv", ["words.py", "--most", "1", *flags])
        words.main()
    rows = [json.loads((tmp_path / name).read_text()) for name in ("words.jsonl", "words-60.jsonl")]
    assert [r["run"] for r in rows] == [["cpu", "auto", words.UPDATES, 0], ["cpu", "auto", 60, 5]]
    assert rows[0]["key"] == rows[1]["key"]
    assert [p.name for p in tmp_path.glob("*.png")] == ["words-60-curves.png"]


def test_a_number_below_zero_is_refused(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["words.py", "--status", "--eval_every", "-1"])
    with pytest.raises(Mistake, match="--eval_every is -1; it must be at least 0"):
        words.main()


@pytest.mark.parametrize("flags", [["--dtype", "bfloat16"], ["--device", "cuda"]])
def test_lines_of_another_precision_or_device_are_not_gone_on_with(flags, tmp_path, monkeypatch):
    monkeypatch.setattr(words, "LINES", tmp_path / "words.jsonl")
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Card X")
    words.LINES.write_text(json.dumps(line("start", "student", 0.0, 0)) + "\n")
    monkeypatch.setattr(sys, "argv", ["words.py", *flags])
    with pytest.raises(Mistake, match="another --dtype or on another device"):
        words.main()
