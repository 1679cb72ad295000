"""evaluate.py as a user runs it: an evaluation that can be interrupted, and --compare."""
import json

import pytest
from conftest import run_script

import evaluate
from common.arguments import Mistake


def test_help_of_evaluation():
    text = run_script("evaluate.py", "--help").stdout
    flags = ("--model", "--benchmark", "--n ", "--temperature", "--k ", "--limit", "--out",
             "--compare")
    assert all(flag in text for flag in flags)


def test_what_others_import_from_here_is_there():
    assert all(hasattr(evaluate, name) for name in evaluate.__all__)


def test_evaluation_reports_and_continues_where_it_stopped(tmp_path):
    command = ["evaluate.py", "--model", "toy/student", "--benchmark", "toy", "--limit", 12,
               "--n", 3, "--temperature", 1, "--k", 2, "--device", "cpu"]
    assert run_script(*command, "--out", tmp_path / "whole", fresh=True).returncode == 0
    whole = json.loads((tmp_path / "whole/summary.json").read_text())
    assert whole["n"] == 12 and whole["samples"] == 3
    assert {"accuracy", "interval", "avg@3", "pass@1", "pass@2", "majority", "truncated",
            "no_answer", "seconds"} <= whole.keys()
    assert abs(whole["pass@1"] - whole["accuracy"]) < 1e-12 and whole["pass@2"] >= whole["pass@1"]
    lines = (tmp_path / "whole/responses.jsonl").read_text().splitlines(keepends=True)
    assert len(lines) == 36
    assert {"prompt", "response", "gold", "extracted", "correct"} <= json.loads(lines[0]).keys()
    # as if killed in the middle of a line, with another batch size afterwards
    cut = tmp_path / "cut"
    cut.mkdir()
    (cut / "config.json").write_bytes((tmp_path / "whole/config.json").read_bytes())
    (cut / "responses.jsonl").write_text("".join(lines[5:20]) + lines[20][:40])
    done = run_script(*command, "--out", cut, "--batch", 4)
    assert done.returncode == 0 and "15 of 36 samples are there" in done.stdout, done.stderr
    assert (cut / "responses.jsonl").read_text() == "".join(lines)
    again = json.loads((cut / "summary.json").read_text())
    assert {**again, "seconds": 0} == {**whole, "seconds": 0}


# ---- --compare


def fake_run(folder, config, *accuracies):
    """A training run: accuracies at the updates 0, 10, 20 ..."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"script": "opd.py", **config}))
    rows = [{"step": 10 * i, "eval": {"accuracy": a, "interval": [0, 1], "n": 10}}
            for i, a in enumerate(accuracies)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))


def fake_evaluation(folder, verdicts, model="m", benchmark="toy", seed=0):
    """verdicts: {problem: verdicts of its samples}."""
    folder.mkdir()
    config = {"model": model, "benchmark": benchmark, "seed": seed}
    (folder / "config.json").write_text(json.dumps(config))
    rows = [{"index": i, "correct": v} for i, values in verdicts.items() for v in values]
    (folder / "responses.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))


def test_compare_pairs_by_seed(tmp_path):
    for seed, a, b in ((0, .50, .55), (1, .60, .66), (2, .40, .45)):
        for arm, final, lr in (("a", a, 1e-3), ("b", b, 2e-3)):
            folder = tmp_path / f"{arm}{seed}"
            fake_run(folder, {"seed": seed, "out": str(folder), "lr": lr}, .2, final)
    folders = [tmp_path / f"{arm}{seed}" for arm in "ab" for seed in range(3)]
    text = evaluate.compare(folders, tmp_path / "picture.png")
    first, second = [line for line in text.split("\n") if line.startswith("opd.py")]
    assert "50.0%" in first and "55.3%" in second
    # differences .05 .06 .05: mean .0533, standard error .00333, t(2) = 4.303
    assert "+5.3 [+3.9, +6.8] over 3 seeds" in second
    assert (tmp_path / "picture.png").stat().st_size > 5000
    with pytest.raises(Mistake):
        evaluate.compare([tmp_path], tmp_path / "x.png")


def test_runs_of_another_version_are_the_same_arm(tmp_path):
    """Flags that came later (sampler, adam_bits, lora) or went (off_policy_data) do not tear an
    arm apart. What was really set differently still does."""
    new = {"lr": 1e-3, "sampler": "own", "adam_bits": 32, "lora": 0, "vllm_memory": .3}
    fake_run(tmp_path / "old", {"lr": 1e-3, "off_policy_data": "reference", "seed": 0}, .5)
    fake_run(tmp_path / "new", {**new, "seed": 1}, .6)
    fake_run(tmp_path / "eight0", {**new, "adam_bits": 8, "seed": 0}, .6)
    fake_run(tmp_path / "eight1", {**new, "adam_bits": 8, "seed": 1}, .7)
    folders = [tmp_path / name for name in ("old", "new", "eight0", "eight1")]
    lines = evaluate.compare(folders, tmp_path / "x.png").split("\n")
    arms = [line.split() for line in lines if line.startswith("opd.py")]
    assert len(arms) == 2 and arms[0][:3] == ["opd.py", "2", "55.0%"], lines
    assert arms[1][:4] == ["opd.py", "adam_bits=8", "2", "65.0%"], lines
    assert "+10.0" in arms[1] and arms[1][-2:] == ["2", "seeds"]


def test_compare_pairs_evaluations_by_problem(tmp_path):
    fake_evaluation(tmp_path / "a", {0: [True, False], 1: [False, False], 2: [True, True]}, "base")
    fake_evaluation(tmp_path / "b", {0: [True, True], 1: [False, True], 2: [True, True]}, "tuned")
    text = evaluate.compare([tmp_path / "a", tmp_path / "b"], tmp_path / "x.png")
    _, first, second = text.split("\n")
    assert first.split()[:3] == ["base", "1", "50.0%"]
    assert second.split()[:3] == ["tuned", "1", "83.3%"]
    # differences .5 .5 0: mean .333, standard error .1667, t(2) = 4.303
    assert "+33.3 [-38.4, +105.0] over 3 problems" in second
    assert not (tmp_path / "x.png").exists()  # there are no curves to draw
    fake_evaluation(tmp_path / "c", {0: [True]}, benchmark="gsm8k")
    with pytest.raises(Mistake, match="different benchmarks: gsm8k, toy"):
        evaluate.compare([tmp_path / "a", tmp_path / "c"], tmp_path / "x.png")


def test_an_evaluation_with_fewer_problems_counts_on_the_shared_ones(tmp_path):
    """With --limit, or stopped: a problem that was not asked is not a wrong answer."""
    fake_evaluation(tmp_path / "whole", {0: [True], 1: [True], 2: [False]}, "base", seed=0)
    fake_evaluation(tmp_path / "part", {0: [True], 1: [True]}, "base", seed=1)
    fake_evaluation(tmp_path / "other", {0: [True], 1: [True], 2: [True]}, "tuned")
    for folders in (("whole", "part", "other"), ("part", "whole", "other")):
        text = evaluate.compare([tmp_path / f for f in folders], tmp_path / "x.png")
        _, first, second = text.split("\n")
        assert first.split()[:3] == ["base", "2", "100.0%"]
        assert "+0.0 [+0.0, +0.0] over 2 problems" in second


def test_an_evaluation_that_was_stopped_before_its_first_batch_is_named(tmp_path):
    fake_evaluation(tmp_path / "none", {})
    with pytest.raises(Mistake, match="has no responses yet"):
        evaluate.compare([tmp_path / "none"], tmp_path / "x.png")
