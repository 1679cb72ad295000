"""evaluate.py as a user runs it: an evaluation that can be interrupted, and that never mixes the
responses of different models or loses those that are there."""
import json
import re
import shutil
from types import SimpleNamespace

import pytest
import torch
from conftest import ROOT, run_script, tiny_qwen3
from safetensors.torch import load_file, save_file
from test_files import holder

import evaluate
from common.arguments import Mistake
from common.data import training_and_tests
from common.files import read_jsonl
from common.origin import GRADING, TRAINED_ON, grading_hash, hash_of

COMMAND = ["evaluate.py", "--model", "toy/student", "--benchmark", "toy", "--device", "cpu",
           "--max_new_tokens", 40]


def test_help_of_evaluation():
    text = run_script("evaluate.py", "--help").stdout
    flags = ("--model", "--benchmark", "--n ", "--temperature", "--k ", "--limit", "--out",
             "--compare")
    assert all(flag in text for flag in flags)


def test_what_others_import_from_here_is_there():
    assert all(hasattr(evaluate, name) for name in evaluate.__all__)


@pytest.mark.slow
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


def answered(folder):
    return [(r["index"], r["sample"]) for r in read_jsonl(folder / "responses.jsonl")]


@pytest.mark.slow
def test_a_smaller_limit_removes_nothing(tmp_path):
    out = tmp_path / "e"
    assert run_script(*COMMAND, "--limit", 8, "--out", out).returncode == 0
    before = (out / "responses.jsonl").read_text(), (out / "summary.json").read_text()
    done = run_script(*COMMAND, "--limit", 3, "--out", out)
    assert done.returncode == 0 and "3 of 3 samples are there" in done.stdout, done.stderr
    assert "(3 problems x 1 samples)" in done.stdout and "it is about more problems" in done.stdout
    assert ((out / "responses.jsonl").read_text(), (out / "summary.json").read_text()) == before
    # And the other way round: what is there is used, what is missing is added.
    records = (out / "responses.jsonl").read_text().splitlines(keepends=True)
    (out / "responses.jsonl").write_text("".join(records[5:] + records[:1]))
    done = run_script(*COMMAND, "--limit", 2, "--out", out)
    assert done.returncode == 0 and "1 of 2 samples are there" in done.stdout, done.stderr
    assert (out / "responses.jsonl").read_text() == "".join(records[:2] + records[5:])
    done = run_script(*COMMAND, "--limit", 9, "--out", out)
    assert done.returncode == 0 and "5 of 9 samples are there" in done.stdout, done.stderr
    assert answered(out) == [(i, 0) for i in range(9)]
    assert json.loads((out / "summary.json").read_text())["n"] == 9


def test_responses_that_other_code_has_graded_are_graded_again(tmp_path, capsys, monkeypatch):
    out = tmp_path / "e"
    command = [*map(str, COMMAND[1:]), "--limit", "2", "--out", str(out)]
    evaluate.main(command)
    config, whole = ((out / name).read_text() for name in ("config.json", "responses.jsonl"))
    records = read_jsonl(out / "responses.jsonl")
    assert json.loads(config)["graded_by"] == grading_hash() and records[0]["asked"] != records[1]["asked"]
    capsys.readouterr()
    evaluate.main(command)
    assert "graded again" not in capsys.readouterr().out
    # A version that said the opposite.
    old = [{**r, "correct": not r["correct"], "extracted": "?"} for r in records]
    for code in ({"graded_by": "0" * 16}, {}):
        config = {k: v for k, v in json.loads(config).items() if k != "graded_by"} | code
        (out / "config.json").write_text(json.dumps(config))
        (out / "responses.jsonl").write_text(evaluate.as_jsonl(old))
        evaluate.main([*command[:-4], "--limit", "1", "--out", str(out)])    # one of them, and a further one
        assert "graded its 2 responses, so they are graded again; 2 verdicts ch" in capsys.readouterr().out
        assert (out / "responses.jsonl").read_text() == whole
        assert json.loads((out / "config.json").read_text())["graded_by"] == grading_hash()
        config = (out / "config.json").read_text()
    # A summary of more problems than are asked now would keep the old verdicts.
    (out / "config.json").write_text(json.dumps(json.loads(config) | {"graded_by": "0" * 16}))
    (out / "responses.jsonl").write_text(evaluate.as_jsonl(old))
    before = json.loads((out / "summary.json").read_text())
    (out / "summary.json").write_text(json.dumps(before | {"n": 2, "accuracy": 7}))
    evaluate.main([*command[:-4], "--limit", "1", "--out", str(out)])
    assert "all 2 responses were counted again" in capsys.readouterr().out
    after = json.loads((out / "summary.json").read_text())
    assert after["n"] == 2 and after["accuracy"] == sum(r["correct"] for r in records) / 2


def test_the_hash_of_the_grading_code_sees_every_room_and_no_comment(tmp_path, monkeypatch):
    rooms = GRADING.split()
    # What the room of grading imports, and what that imports.
    needed, seen = ["grading"], {"arguments"}  # of arguments it needs an exception only
    while needed:
        seen.add(room := needed.pop())
        text = (ROOT / f"common/{room}.py").read_text()
        named = re.findall(r"^from common\.(\w+) import|^from common import (.+)", text, re.MULTILINE)
        found = {name.strip() for one, many in named for name in [one, *many.split(",")] if name.strip()}
        needed += found - seen
    assert seen == {*rooms, "arguments"}
    for room in rooms:
        shutil.copy(ROOT / f"common/{room}.py", tmp_path)
    monkeypatch.setattr("common.origin.__file__", str(tmp_path / "origin.py"))
    found = {grading_hash()}
    for room in rooms:
        path = tmp_path / f"{room}.py"
        path.write_text(path.read_text() + "# a comment\n")
        assert len(found | {grading_hash()}) == len(found)
        path.write_text(path.read_text() + "x = 1\n")
        found.add(grading_hash())
    assert len(found) == 1 + len(rooms)


def copied_model(folder):
    shutil.copytree(ROOT / "toy/student", folder)
    return folder


@pytest.mark.slow
def test_responses_of_other_weights_are_never_continued(tmp_path):
    """Trained again into the same folder, evaluated into the same default folder: the name of the
    model is the old one, and its weights are not."""
    model, out = copied_model(tmp_path / "m/final"), tmp_path / "e"
    command = [*COMMAND, "--limit", 3, "--out", out, "--model"]
    assert run_script(*command, model).returncode == 0
    before = (out / "responses.jsonl").read_bytes(), (out / "config.json").read_bytes()
    done = run_script(*command, tmp_path / "m/../m/final/")     # the same model by another name
    assert done.returncode == 0 and "3 of 3 samples are there" in done.stdout, done.stderr
    weights = load_file(model / "model.safetensors")
    name = sorted(weights)[-1]
    weights[name].view(-1)[0] += 1e-3                           # one number of one tensor
    save_file(weights, model / "model.safetensors", metadata={"format": "pt"})
    done = run_script(*command, model)
    assert done.returncode == 2 and "holds responses of other weights" in done.stderr
    assert (out / "responses.jsonl").read_bytes() == before[0]
    # Also if none of the problems asked for has been answered yet.
    (out / "responses.jsonl").write_bytes(before[0].splitlines(keepends=True)[-1])
    done = run_script(*command, model, "--limit", 2)
    assert done.returncode == 2 and "holds responses of other weights" in done.stderr
    (out / "responses.jsonl").write_bytes(before[0])
    config = json.loads(before[1])
    del config["weights"]                                       # as an older version wrote it
    (out / "config.json").write_text(json.dumps(config))
    done = run_script(*command, model)
    assert done.returncode == 2 and "does not say which weights wrote its resp" in done.stderr
    assert (out / "responses.jsonl").read_bytes() == before[0]


def test_the_fingerprint_sees_every_number_its_place_and_its_precision():
    model, other = tiny_qwen3(seed=1), tiny_qwen3(seed=1)
    found = {evaluate.fingerprint(model)}
    assert found == {evaluate.fingerprint(other)}
    with torch.no_grad():
        for p in other.parameters():
            flat = p.view(-1)
            last = flat[-1].item()
            flat[-1] = last + 1
            found.add(evaluate.fingerprint(other))
            flat[-1] = last
        a, b = other.model.layers[0].mlp.gate_proj, other.model.layers[0].mlp.up_proj
        a.weight.data, b.weight.data = b.weight.data, a.weight.data
        found.add(evaluate.fingerprint(other))
    found.add(evaluate.fingerprint(tiny_qwen3(seed=1).bfloat16()))
    assert len(found) == 3 + len(list(other.parameters()))


def test_other_problems_under_the_same_name_are_refused(tmp_path):
    data, out = tmp_path / "mine.jsonl", tmp_path / "e"
    rows = [json.loads(x) for x in (ROOT / "toy/test.jsonl").read_text().splitlines()[:3]]
    data.write_text("".join(json.dumps(r) + "\n" for r in rows))
    command = [*COMMAND, "--benchmark", data, "--out", out]
    assert run_script(*command).returncode == 0
    before = (out / "responses.jsonl").read_bytes()
    # Other problems with the old golds; other golds; fewer problems.
    problems = [{**r, "answer": old["answer"]} for r, old in zip(reversed(rows), rows)]
    golds = [{**r, "answer": "12345"} for r in rows]
    for changed, sentence in ((problems, "other prompts"), (golds, "other problems"),
                              (rows[:2], "other problems")):
        data.write_text("".join(json.dumps(r) + "\n" for r in changed))
        done = run_script(*command)
        assert done.returncode == 2 and f"holds responses to {sentence}" in done.stderr
        assert (out / "responses.jsonl").read_bytes() == before


def test_a_second_evaluation_into_the_same_folder_is_refused(tmp_path):
    process = holder(tmp_path)
    try:
        done = run_script(*COMMAND, "--limit", 1, "--out", tmp_path)
    finally:
        process.kill()
        process.wait()
        process.stdin.close(), process.stdout.close()
    assert done.returncode == 2 and "Another process works in" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_model_that_is_tested_on_its_own_training_problems_says_so(tmp_path, capsys):
    own, run = tmp_path / "mine.jsonl", tmp_path / "run"
    own.write_text("")
    (run / "final").mkdir(parents=True)

    def said(data, model, benchmark):
        (run / "config.json").write_text(json.dumps({"script": "opd.py", "data": str(data)}))
        evaluate.warn_if_trained_on(SimpleNamespace(model=str(model), benchmark=str(benchmark)))
        return capsys.readouterr().out
    for model in (run, run / "final"):
        assert f"never seen: --benchmark {own}:held-out" in said(own, model, own)
    assert said(own, run, f"{own}:held-out") == said("toy", run, "toy") == said("gsm8k", run, "gsm8k") == ""
    assert said(tmp_path / "other.jsonl", run, own) == said(own, tmp_path, own) == ""
    names = [evaluate.default_folder(SimpleNamespace(model=str(run), benchmark=b))
             for b in ("mine.jsonl", "mine.jsonl:held-out")]
    assert names[0] != names[1] and names[1].endswith("run-mine-held-out")


def test_a_file_that_has_grown_since_the_training_says_so(tmp_path, capsys):
    own, run = tmp_path / "mine.jsonl", tmp_path / "run"
    rows = [{"problem": f"Twice {i}?", "answer": str(2 * i)} for i in range(30)]
    run.mkdir()

    def said(rows):
        own.write_text("".join(json.dumps(r) + "\n" for r in rows))
        evaluate.warn_if_trained_on(SimpleNamespace(model=str(run), benchmark=f"{own}:held-out"))
        return capsys.readouterr().out
    own.write_text("".join(json.dumps(r) + "\n" for r in rows[:20]))
    trained, tests = training_and_tests(str(own), f"{own}:held-out")
    about = {"script": "opd.py", "data": str(own), "trained_on": hash_of(trained, TRAINED_ON)}
    (run / "config.json").write_text(json.dumps(about))
    capsys.readouterr()
    assert said(rows[:20]) == ""
    assert "has changed since this model was trained" in said(rows)
    # The reason: a problem of the training is held out now.
    _, now = training_and_tests(str(own), f"{own}:held-out")
    before = {r["problem"] for r in trained}
    assert len(now) > len(tests) and any(r["problem"] in before for r in now)


def test_the_folder_of_a_run_stands_for_its_final_model(tmp_path, capsys):
    run = tmp_path / "run"
    run.mkdir()
    assert evaluate.model_folder("toy/student") == "toy/student"
    assert evaluate.model_folder("Qwen/Qwen3-0.6B") == "Qwen/Qwen3-0.6B"
    (run / "config.json").write_text('{"script": "opd.py"}')
    copied_model(run / "checkpoint-000020")
    done = run_script(*COMMAND, "--model", run, "--out", tmp_path / "e")
    assert done.returncode == 2 and "its last checkpoint is" in done.stderr
    assert evaluate.model_folder(run / "checkpoint-000020") == run / "checkpoint-000020"
    copied_model(run / "final")
    assert evaluate.model_folder(run) == str(run / "final")
    assert f"evaluating its final model, {run}/final" in capsys.readouterr().out
    (run / "checkpoint-000020/adapter.safetensors").write_bytes(b"")
    with pytest.raises(Mistake, match="holds adapters and no whole model"):
        evaluate.model_folder(run / "checkpoint-000020")
