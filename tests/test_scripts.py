"""Each script as a user runs it: tiny budgets, every switch, interruptions, --help."""
import csv
import importlib
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import warnings
from dataclasses import fields

import pytest
import torch
from conftest import ROOT, ended, run_script, warm
from safetensors.torch import load_file

from common.checkpoints import latest_checkpoint
from common.files import read_jsonl
from common.flags import GROUPS, Common

RUN = ["--data", "toy", "--prompts", 2, "--samples", 2, "--eval_n", 20, "--device", "cpu",
       "--show_every", 0]
TINY = ["--student", "toy/student", "--teacher", "toy/teacher", *RUN]
ALONE = ["--student", "toy/reader", *RUN]               # methods without a second model
# Enough attempts for groups with right and wrong ones.
GROUPS_OF_SIX = [*ALONE, "--prompts", 3, "--samples", 6, "--lr", 1e-3]
METHODS = {
    "opd.py": TINY,
    "topd.py": [*TINY, "--suppress", "high"],
    "ar_opd.py": ALONE,
    # Three groups may hold no success. With the answer as fallback there is always something to learn.
    "hindsight_sd.py": [*GROUPS_OF_SIX, "--fallback", "answer", "--teacher", "ema", "--rl_weight", .2],
    "grpo.py": [*GROUPS_OF_SIX, "--reuse", 2],
}
SAVING = ["--gradient_checkpointing", "--dtype", "bfloat16"]
CUT = [*SAVING, "--micro_tokens", 300, "--chunk_logits", 5000]


def test_a_warning_is_an_error_in_what_a_test_starts():
    forked = warm().Process(target=warnings.warn, args=("an old call",))
    forked.start()
    forked.join()
    fresh = [sys.executable, "-c", "import warnings; warnings.warn('an old call')"]
    done = subprocess.run(fresh, capture_output=True, text=True)
    assert forked.exitcode == done.returncode == 1 and "UserWarning: an old call" in done.stderr


def rows_of(folder):
    """metrics.jsonl without what the clock and the machine decide."""
    rows = read_jsonl(folder / "metrics.jsonl")
    for r in rows:
        for k in ("seconds", "tokens_per_second", "peak_memory"):
            r.pop(k, None)
    return rows


def same_weights(a, b):
    x, y = load_file(a / "model.safetensors"), load_file(b / "model.safetensors")
    return x.keys() == y.keys() and all(torch.equal(x[k], y[k]) for k in x)


# ------------------------------------------------------------------------ a whole run


@pytest.fixture(scope="module", params=list(METHODS))
def undisturbed(request, tmp_path_factory):
    """A short run of every method: (folder, process, the command without --out)."""
    out = tmp_path_factory.mktemp("runs") / "whole"
    often = ["--steps", 6, "--save_every", 2, "--eval_every", 2]
    command = [request.param, *METHODS[request.param], *often]
    done = run_script(*command, "--out", out)
    assert done.returncode == 0, done.stderr
    return out, done, command


def check_update(script, r):
    """One line of metrics.jsonl about an update."""
    assert {"loss", "student_entropy", "length", "truncated", "grad_norm", "changed", "seconds",
            "tokens_per_second", "peak_memory"} <= r.keys()
    seconds = r["seconds"]
    assert {"total", "sample", "student", "step"} <= seconds.keys()
    if script != "grpo.py":
        assert "kl" in r and "teacher" in seconds
        assert "teacher_entropy" in r or "target_entropy" in r
    if script in ("grpo.py", "hindsight_sd.py"):
        assert {"reward", "signal", "groups", "kl_start"} <= r.keys() and sum(r["groups"]) == 3
    if script == "topd.py":
        assert {"opd", "traj", "candidates", "divergent", "distance"} <= r.keys()
        assert {"windows", "transport"} <= seconds.keys() and r["divergent"] <= r["candidates"]
    assert seconds["total"] >= sum(v for k, v in seconds.items() if k != "total") - 1e-3
    if script == "ar_opd.py":
        assert {"clipped", "target_entropy", "kl_partial", "kl_full", "residual"} <= r.keys()
        assert 0 < r["kl"]
    # GRPO has few groups with a signal, and many gradients are below the rounding.
    assert r["changed"] > (.5 if script == "grpo.py" else .9)


@pytest.mark.slow
def test_a_run_leaves_what_it_promises(undisturbed):
    out, done, (script, *_) = undisturbed
    names = {p.name for p in out.iterdir()}
    assert names == {"config.json", "metrics.jsonl", "curve.png", "final", "checkpoint-000006"}
    assert (out / "curve.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    rows = read_jsonl(out / "metrics.jsonl")
    evaluations = [r for r in rows if "eval" in r]
    assert [r["step"] for r in rows if "loss" in r] == [1, 2, 3, 4, 5, 6]
    assert [r["step"] for r in evaluations] == [0, 2, 4, 6]
    for r in evaluations:
        low, high = r["eval"]["interval"]
        assert low <= r["eval"]["accuracy"] <= high and r["eval"]["n"] == 20
    for r in rows:
        if "eval" not in r:
            check_update(script, r)
    if script == "ar_opd.py":                           # what each view sees, and the gate
        assert re.search(r"plain +\| partial +\| full", done.stdout)
        assert "This is an example" in done.stdout and "(the prompt)" in done.stdout
        assert rows[0]["gate"].keys() == {"plain", "partial", "full", "wrong"}
        assert all("shortcuts" in r["eval"] for r in evaluations)
    if script in ("grpo.py", "hindsight_sd.py"):        # does it still try different ways?
        variety = {"pass@1", "pass@6", "distinct", "distinct_right"}
        assert all(variety <= r["eval"].keys() for r in evaluations)
    if script == "hindsight_sd.py":
        assert re.search(r"student +\| with peer +\| alone", done.stdout)
        assert "(a right rollout)" in done.stdout and "generating, shown nothing" in done.stdout
        assert any(r.get("coverage") for r in rows)
    if script in ("ar_opd.py", "hindsight_sd.py"):
        # The moving average is part of the checkpoint. It is neither the start nor the student.
        name = "model.embed_tokens.weight"
        state = torch.load(out / "checkpoint-000006/state.pt", weights_only=True)
        for other in (out / "final", ROOT / "toy/reader"):
            assert not torch.equal(state["teacher"][name],
                                   load_file(other / "model.safetensors")[name])
    if script in ("opd.py", "topd.py"):
        assert "student and teacher: the prompt and nothing else" in done.stdout
    for words in ("predicted peak about", "a prompt", "parameters", "before:", "  gold  "):
        assert words in done.stdout
    from transformers import AutoModelForCausalLM, AutoTokenizer
    assert AutoModelForCausalLM.from_pretrained(out / "final").dtype == torch.float32
    assert AutoTokenizer.from_pretrained(out / "final").chat_template


@pytest.mark.slow
def test_ctrl_c_saves_and_says_how_to_go_on(undisturbed, tmp_path):
    out, command = tmp_path / "stopped", undisturbed[2]
    process = subprocess.Popen(
        [sys.executable, *map(str, command), "--out", str(out)], cwd=ROOT, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, env={**os.environ, "OMP_NUM_THREADS": "1"})
    metrics, until = out / "metrics.jsonl", time.time() + 120
    while time.time() < until and not (metrics.exists() and '"step": 1' in metrics.read_text()):
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    said, _ = process.communicate(timeout=120)
    assert process.returncode == 0 and "--resume" in said and latest_checkpoint(out)
    resume = said.split("continue with: python ")[1].split("\n")[0].split()
    done = run_script(*resume)
    assert done.returncode == 0, done.stderr
    assert same_weights(undisturbed[0] / "final", out / "final")
    assert rows_of(undisturbed[0]) == rows_of(out)


# ------------------------------------------------------------------------ switches


def switched(tmp_path, script, flags, cases):
    """Two updates with the switches of every case: the metrics of these updates, for each case."""
    for i, switches in enumerate(cases):
        out = tmp_path / str(i)
        done = run_script(script, *flags, "--steps", 2, "--eval_every", 0, *switches, "--out", out)
        assert done.returncode == 0, done.stderr
        rows = [r for r in read_jsonl(out / "metrics.jsonl") if "eval" not in r]
        assert [r["step"] for r in rows] == [1, 2]
        yield rows


@pytest.mark.slow
def test_sft_and_other_switches_run(tmp_path):
    cases = (
        ["--off_policy", 1.0],
        ["--divergence", "jsd", "--beta", .3],
        ["--estimator", "sampled"],
        ["--estimator", "topk", "--top_k", 4],
        ["--off_policy", .5, "--divergence", "forward", *SAVING],
    )
    for rows in switched(tmp_path, "opd.py", TINY, cases):
        assert all(math.isfinite(r["loss"]) for r in rows)


@pytest.mark.slow
def test_topd_switches_run(tmp_path):
    cases = (
        ["--guidance", "off", "--suppress", "low"],
        ["--embedding", "contextual"],
        ["--drop_share", 0, *CUT],
    )
    for i, rows in enumerate(switched(tmp_path, "topd.py", TINY, cases)):
        assert all(math.isfinite(r["loss"]) and (r["traj"] > 0) == (i > 0) for r in rows)


@pytest.mark.slow
def test_ar_opd_switches_run(tmp_path):
    cases = (
        ["--target", "sft"],
        ["--target", "full", "--teacher", "current", "--samples", 2],
        ["--lam", 1.2, "--clip", 0, "--skip_first", 3],
        ["--target", "partial", "--partial_answer", "keep", "--teacher", "frozen", *CUT],
    )
    for rows in switched(tmp_path, "ar_opd.py", ALONE, cases):
        assert all(math.isfinite(r["loss"]) and r["loss"] > 0 for r in rows)


@pytest.mark.slow
def test_hindsight_sd_switches_run(tmp_path):
    cases = (
        ["--divergence", "jsd", "--teacher", "ema", "--fallback", "mask"],
        ["--context", "answer", "--rl_weight", .5, "--beta", 0],
        ["--context", "reference", "--teacher", "frozen", "--samples", 2, "--train", "failures",
         *CUT],
        ["--peer", "low_ppl", "--fallback", "answer"],
    )
    for rows in switched(tmp_path, "hindsight_sd.py", [*GROUPS_OF_SIX, "--eval_n", 10], cases):
        assert all(math.isfinite(r["loss"]) and r["kl"] >= 0 for r in rows)
        assert any(r["kl"] > 0 for r in rows)


@pytest.mark.slow
def test_grpo_switches_run(tmp_path):
    cases = (
        ["--variant", "dapo", "--max_rounds", 2],
        ["--variant", "dr_grpo", "--reuse", 3, "--overlong", "mask", "--max_new_tokens", 40],
        CUT,
    )
    for rows in switched(tmp_path, "grpo.py", [*GROUPS_OF_SIX, "--eval_n", 10], cases):
        assert all(r["drawn"] >= 18 for r in rows)


def test_grpo_without_any_signal_skips_and_says_so(tmp_path):
    # After three tokens no rollout has an answer. So no group has a signal, whatever is drawn.
    out, short = tmp_path / "run", ["--max_new_tokens", 3, "--eval_n", 4]
    done = run_script("grpo.py", *GROUPS_OF_SIX, "--steps", 2, "--variant", "dapo", "--max_rounds",
                      2, *short, "--out", out)
    said = done.stdout + done.stderr
    assert done.returncode == 0 and "no group with a signal in 36 rollouts: skipped" in said, said
    rows = read_jsonl(out / "metrics.jsonl")
    assert [r["drawn"] for r in rows if r.get("skipped")] == [36, 36]
    assert same_weights(out / "final", ROOT / "toy/reader")


# ------------------------------------------------------------------------ what learns less


def killed_and_resumed(start, command, folder):
    """Runs the command, kills it after its checkpoint of update 2, and lets it continue. Returns
    the folder of the run."""
    out, log = folder / "part", folder / "log"
    process = start([*command, "--out", out], log)
    while process.is_alive() and not (out / "checkpoint-000002").exists():
        process.join(.02)
    process.kill()
    process.join()
    code, said = ended(start([command[0], "--resume", "--out", out], log), log)
    assert code == 0, said
    return out


FOUR = ["--data", "toy", "--eval_n", 4, "--steps", 4, "--save_every", 2, "--eval_every", 0,
        "--max_new_tokens", 60, "--device", "cpu", "--prompts", 3, "--lr", 1e-2]
LORA = [*FOUR, "--samples", 6, "--lora", 4]
LORA_READER = ["--student", "toy/reader", *LORA]
ADAPTED = {
    "opd.py": LORA,
    "topd.py": LORA,
    "ar_opd.py": LORA_READER,
    "hindsight_sd.py": [*LORA_READER, "--teacher", "ema"],
    "grpo.py": [*LORA_READER, "--max_new_tokens", 120],
}


@pytest.mark.slow
@pytest.mark.parametrize("script", ADAPTED)
def test_every_method_with_adapters_and_resumed(script, start, tmp_path):
    out, log, command = tmp_path / "whole", tmp_path / "log", [script, *ADAPTED[script]]
    code, said = ended(start([*command, "--out", out], log), log)
    assert code == 0 and "Traceback" not in said, said
    adapter = load_file(out / "checkpoint-000004/adapter.safetensors")
    assert not (out / "checkpoint-000004/model.safetensors").exists()
    assert all("lora_" in k for k in adapter)
    assert any(v.abs().max() > 0 for k, v in adapter.items() if "lora_B" in k)
    name = "toy/reader" if "--student" in command else "toy/student"
    before = load_file(ROOT / name / "model.safetensors")
    after = load_file(out / "final/model.safetensors")
    changed = {k for k in before if not torch.equal(before[k].float(), after[k])}
    assert changed and all("_proj" in k for k in changed) and before.keys() == after.keys()
    # Killed after two updates and resumed: the same adapters, and the same merged weights.
    part = killed_and_resumed(start, command, tmp_path)
    assert same_weights(out / "final", part / "final")
    rows = read_jsonl(part / "metrics.jsonl")
    assert [r["step"] for r in rows if "eval" not in r] == [1, 2, 3, 4]


@pytest.mark.slow
def test_moments_of_eight_bits_are_resumed_bit_for_bit(start, tmp_path):
    pytest.importorskip("bitsandbytes")
    out, log = tmp_path / "whole", tmp_path / "log"
    command = ["opd.py", *FOUR, "--samples", 4, "--adam_bits", 8]
    code, said = ended(start([*command, "--out", out], log), log)
    assert code == 0 and "Traceback" not in said, said
    part = killed_and_resumed(start, command, tmp_path)
    assert same_weights(out / "final", part / "final")


# ------------------------------------------------------------------------ --help


PAPERS = {"opd": "2306.13649", "topd": "2606.00305", "ar_opd": "2606.10385",
          "hindsight_sd": "2606.15576", "grpo": "2402.03300"}


@pytest.mark.parametrize("script", PAPERS)
def test_help_explains_every_flag(script):
    done = run_script(f"{script}.py", "--help")
    text = done.stdout
    assert done.returncode == 0 and "usage" in text, done.stderr
    assert PAPERS[script] in text
    # First the flags of the script itself, then those that all scripts share.
    headings = ["flags of this script", *GROUPS]
    places = [text.index(f"\n{heading}:\n") for heading in headings]
    assert places == sorted(places) and headings[1:] == ["the run", "device, memory and speed"]
    sections = {h: text[a:b] for h, a, b in zip(headings, places, [*places[1:], None])}
    shared = {f.name for f in fields(Common)}
    assert shared == {name for names in GROUPS.values() for name in names}
    for f in fields(importlib.import_module(script).Args):
        own = [h for h, names in GROUPS.items() if f.name in names]
        section = sections[own[0] if f.name in shared else headings[0]]
        # From this flag to the next one, without the name of the flag and of its values.
        entry = re.search(rf"\n  --{f.name}[ ,](.*?)(?=\n  --|\Z)", section, re.DOTALL)[1]
        assert len(entry.split()) > 5 and len(" ".join(entry.split())) > 30, f.name


# ------------------------------------------------------------------------ own data


def test_own_problems_in_the_toys_language_from_training_to_evaluation(tmp_path):
    """A table of a spreadsheet, the toy's model, no --benchmark: what is held out is tested."""
    rows = read_jsonl(ROOT / "toy/train.jsonl")[:40]
    with open(tmp_path / "mine.csv", "w", newline="") as f:
        table = csv.writer(f)
        table.writerow(["question", "solution"])
        table.writerows([r["problem"], r["solution"]] for r in rows)
    out, own = tmp_path / "run", tmp_path / "mine.csv"
    done = run_script("ar_opd.py", *ALONE, "--data", own, "--steps", 1, "--seed", 3, "--out", out)
    assert done.returncode == 0, done.stderr
    assert "held out 4 of its 40 problems (10 %, at most 500; the same for every" in done.stdout
    assert "36 problems" in done.stdout and f"4 problems of {own}:held-out" in done.stdout
    assert "put your final answer" not in done.stdout       # the toy does not have these words
    before = read_jsonl(out / "metrics.jsonl")[0]["eval"]
    done = run_script("evaluate.py", "--model", "toy/reader", "--benchmark", f"{own}:held-out",
                      "--device", "cpu", "--max_new_tokens", 256, "--out", tmp_path / "eval")
    assert done.returncode == 0, done.stderr
    summary = json.loads((tmp_path / "eval/summary.json").read_text())
    assert summary["n"] == before["n"] == 4 and summary["accuracy"] == before["accuracy"]


@pytest.mark.slow
def test_a_folder_of_the_hub_that_cannot_be_written_does_not_end_a_run_on_the_toy(tmp_path):
    (tmp_path / "file").write_text("")
    done = run_script("evaluate.py", "--model", "toy/student", "--benchmark", "toy", "--limit", 2,
                      "--device", "cpu", "--out", tmp_path / "eval", fresh=True,
                      env={"HF_HOME": str(tmp_path / "file/below")})
    assert done.returncode == 0 and "accuracy" in done.stdout, done.stderr


def own_problems(folder, count, name="mine.jsonl"):
    """Own problems in the toy's language: those of its training file."""
    rows = (ROOT / "toy/train.jsonl").read_text().splitlines(keepends=True)[:count]
    (folder / name).write_text("".join(rows))
    return folder / name


@pytest.mark.slow
def test_a_data_file_that_was_edited_is_noticed_on_resume(tmp_path):
    """Other problems would be held out: some of those that were trained on."""
    data, out = own_problems(tmp_path, 60), tmp_path / "run"
    command = ["opd.py", *TINY, "--data", data, "--out", out]
    assert run_script(*command, "--steps", 2).returncode == 0
    config = json.loads((out / "config.json").read_text())
    shutil.rmtree(out / "final")
    (out / "config.json").write_text(json.dumps({**config, "steps": 3}))
    own_problems(tmp_path, 80)
    done = run_script("opd.py", "--resume", "--out", out)
    assert done.returncode == 2 and "are not those with which this run began" in done.stderr
    own_problems(tmp_path, 60)
    assert run_script("opd.py", "--resume", "--out", out).returncode == 0


@pytest.mark.slow
def test_a_foreign_word_is_found_in_the_last_test_problem(tmp_path):
    data, tests = own_problems(tmp_path, 60), own_problems(tmp_path, 200, "tests.jsonl")
    rows = [json.loads(line) for line in tests.read_text().splitlines()[100:160]]
    rows[-1]["problem"] = rows[-1]["problem"].replace("How many", "How much")
    tests.write_text("".join(json.dumps(r) + "\n" for r in rows))
    done = run_script("opd.py", *TINY, "--data", data, "--benchmark", tests, "--eval_n", 60, "--out", tmp_path / "a")
    assert done.returncode == 2 and "does not know the words" in done.stderr, done.stderr
    done = run_script("evaluate.py", "--model", "toy/student", "--benchmark", tests, "--device", "cpu", "--out", tmp_path / "b")
    assert done.returncode == 2 and "does not know the words" in done.stderr, done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("command", [["opd.py", "--off_policy", 1], ["ar_opd.py", "--target", "sft"], ["ar_opd.py"]])
def test_a_foreign_word_is_found_in_the_last_solution(command, tmp_path):
    data = own_problems(tmp_path, 70)
    rows = [json.loads(line) for line in data.read_text().splitlines()]
    for row in rows[60:]:
        row["solution"] = row["solution"].replace("answer", "result")
    data.write_text("".join(json.dumps(r) + "\n" for r in rows))
    done = run_script(*command, *(TINY if command[0] == "opd.py" else ALONE), "--data", data, "--out", tmp_path / "a")
    assert done.returncode == 2 and "does not know the words" in done.stderr, done.stderr


@pytest.mark.slow
def test_no_response_goes_beyond_the_context(tmp_path):
    shutil.copytree(ROOT / "toy/student", tmp_path / "short")
    config = json.loads((tmp_path / "short/config.json").read_text())
    (tmp_path / "short/config.json").write_text(json.dumps({**config, "max_position_embeddings": 200}))
    command = ["evaluate.py", "--model", tmp_path / "short", "--benchmark", "toy", "--limit", 5, "--device", "cpu"]
    done = run_script(*command, "--out", tmp_path / "a")            # the default becomes what fits
    assert done.returncode == 0 and "context is 200 tokens" in done.stdout, done.stderr
    done = run_script(*command, "--max_new_tokens", 190, "--out", tmp_path / "b")
    assert done.returncode == 2 and "can be 1" in done.stderr, done.stderr
    # An evaluation that an older version began goes on as it began.
    old = json.loads((tmp_path / "a/config.json").read_text())
    (tmp_path / "a/config.json").write_text(json.dumps({**old, "max_new_tokens": 256}))
    assert run_script(*command, "--out", tmp_path / "a").returncode == 0
    # In training, too long problems are left out, of the test problems as well.
    (tmp_path / "short/config.json").write_text(json.dumps({**config, "max_position_embeddings": 95}))
    done = run_script("opd.py", "--student", tmp_path / "short", "--teacher", "toy/teacher", *RUN, "--steps", 1,
                      "--max_new_tokens", 40, "--eval_n", 200, "--out", tmp_path / "c")
    assert done.returncode == 0 and "of 200 test prompts are too long" in done.stdout, done.stderr
