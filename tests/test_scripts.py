"""Each script as a user runs it: tiny budgets, interruptions, mistakes."""
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from conftest import ROOT, run_script

import plumbing

TINY = ["--student", "toy/student", "--teacher", "toy/teacher", "--data", "toy", "--prompts", 2, "--samples", 2, "--eval_n", 20, "--device", "cpu", "--show_every", 0]


def rows_of(folder):
    """metrics.jsonl without what depends on the machine's mood."""
    rows = plumbing.read_jsonl(folder / "metrics.jsonl")
    for r in rows:
        for k in ("seconds", "tokens_per_second", "peak_memory"):
            r.pop(k, None)
    return rows


def same_weights(a, b):
    from safetensors.torch import load_file
    x, y = load_file(a / "model.safetensors"), load_file(b / "model.safetensors")
    return x.keys() == y.keys() and all(torch.equal(x[k], y[k]) for k in x)


ALONE = ["--student", "toy/reader", *TINY[4:]]           # methods without a second model
GROUPS = [*ALONE, "--prompts", 3, "--samples", 6, "--lr", 1e-3]         # enough attempts for groups with right and wrong ones
METHODS = {"opd.py": TINY, "topd.py": [*TINY, "--probe_every", 2, "--suppress", "high"], "ar_opd.py": ALONE,
           "hindsight_sd.py": [*GROUPS, "--teacher", "ema", "--rl_weight", .2], "grpo.py": [*GROUPS, "--reuse", 2]}


@pytest.fixture(scope="module", params=list(METHODS))
def undisturbed(request, tmp_path_factory):
    """A short run of every method: (folder, process, the command without --out)."""
    out = tmp_path_factory.mktemp("runs") / "whole"
    command = [request.param, *METHODS[request.param], "--steps", 6, "--save_every", 2, "--eval_every", 2]
    done = run_script(*command, "--out", out)
    assert done.returncode == 0, done.stderr
    return out, done, command


def test_a_run_leaves_what_it_promises(undisturbed):
    out, done, command = undisturbed
    names = {p.name for p in out.iterdir()}
    assert {"config.json", "metrics.jsonl", "curve.png", "final", "checkpoint-000006"} == names
    assert (out / "curve.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    rows = plumbing.read_jsonl(out / "metrics.jsonl")
    assert [r["step"] for r in rows if "loss" in r] == [1, 2, 3, 4, 5, 6]
    assert [r["step"] for r in rows if "eval" in r] == [0, 2, 4, 6]
    for r in rows:
        if "eval" in r:
            low, high = r["eval"]["interval"]
            assert low <= r["eval"]["accuracy"] <= high and r["eval"]["n"] == 20
        else:
            assert {"loss", "student_entropy", "length", "truncated", "grad_norm", "changed", "seconds", "tokens_per_second", "peak_memory"} <= r.keys()
            assert {"total", "sample", "student", "step"} <= r["seconds"].keys()
            if command[0] != "grpo.py":
                assert "kl" in r and "teacher" in r["seconds"] and ("teacher_entropy" in r or "target_entropy" in r)
            if command[0] in ("grpo.py", "hindsight_sd.py"):
                assert {"reward", "signal", "groups", "kl_start"} <= r.keys() and sum(r["groups"]) == 3
            if command[0] == "topd.py":
                assert {"opd", "traj", "candidates", "divergent", "distance"} <= r.keys() and {"windows", "transport"} <= r["seconds"].keys()
                assert r["divergent"] <= r["candidates"] and ("grad_norm_traj" in r) == (r["step"] % 2 == 0) == ("distance_random" in r)
            assert r["seconds"]["total"] >= sum(v for k, v in r["seconds"].items() if k != "total") - 1e-3
            if command[0] == "ar_opd.py":
                assert {"clipped", "target_entropy", "kl_partial", "kl_full", "residual"} <= r.keys() and 0 < r["kl"]
            assert r["changed"] > (.5 if command[0] == "grpo.py" else .9)       # few groups with a signal: many gradients below rounding
    if command[0] == "ar_opd.py":           # what each view sees, and the gate
        assert all(f"{view} " in done.stdout for view in ("plain", "partial", "full")) and "This is an example response" in done.stdout
        assert rows[0]["gate"].keys() == {"plain", "partial", "full", "wrong"} and all("shortcuts" in r["eval"] for r in rows if "eval" in r)
    if command[0] in ("grpo.py", "hindsight_sd.py"):            # does it still try different ways?
        assert all({"pass@1", "pass@6", "distinct", "distinct_right"} <= r["eval"].keys() for r in rows if "eval" in r)
    if command[0] == "hindsight_sd.py":
        assert "a successful rollout" in done.stdout and "generating, shown nothing" in done.stdout and any(r.get("coverage") for r in rows)
    if command[0] in ("ar_opd.py", "hindsight_sd.py"):          # the moving average is part of the checkpoint: it is neither the start nor the student
        from safetensors.torch import load_file
        average = torch.load(out / "checkpoint-000006/state.pt", weights_only=True)["teacher"]["model.embed_tokens.weight"]
        for other in (out / "final", ROOT / "toy/reader"):
            assert not torch.equal(average, load_file(other / "model.safetensors")["model.embed_tokens.weight"])
    assert "predicted peak about" in done.stdout and "a prompt" in done.stdout and "parameters" in done.stdout and "before:" in done.stdout
    from transformers import AutoModelForCausalLM, AutoTokenizer
    assert AutoModelForCausalLM.from_pretrained(out / "final").dtype == torch.float32
    assert AutoTokenizer.from_pretrained(out / "final").chat_template


def test_ctrl_c_saves_and_says_how_to_go_on(undisturbed, tmp_path):
    out, command = tmp_path / "stopped", undisturbed[2]
    process = subprocess.Popen([sys.executable, *map(str, command), "--out", str(out)], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                               env={**os.environ, "OMP_NUM_THREADS": "1"})
    until = time.time() + 120
    while time.time() < until and not ((out / "metrics.jsonl").exists() and '"step": 1' in (out / "metrics.jsonl").read_text()):
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    said, _ = process.communicate(timeout=120)
    assert process.returncode == 0 and "--resume" in said and plumbing.latest_checkpoint(out)
    resume = said.split("continue with: python ")[1].split("\n")[0].split()
    done = run_script(*resume)
    assert done.returncode == 0, done.stderr
    assert same_weights(undisturbed[0] / "final", out / "final") and rows_of(undisturbed[0]) == rows_of(out)


def test_sft_and_other_switches_run(tmp_path):
    for i, switches in enumerate((["--off_policy", 1.0], ["--divergence", "jsd", "--beta", .3], ["--estimator", "sampled"], ["--estimator", "topk", "--top_k", 4],
                                  ["--off_policy", .5, "--off_policy_data", "teacher", "--divergence", "forward", "--gradient_checkpointing", "--dtype", "bfloat16"])):
        out = tmp_path / str(i)
        done = run_script("opd.py", *TINY, "--steps", 2, "--eval_every", 0, *switches, "--out", out)
        assert done.returncode == 0, done.stderr
        losses = [r["loss"] for r in plumbing.read_jsonl(out / "metrics.jsonl") if "loss" in r]
        assert len(losses) == 2 and all(x == x for x in losses)


def test_topd_switches_run(tmp_path):
    for i, switches in enumerate((["--guidance", "off"], ["--window", "regenerate", "--embedding", "contextual"],
                                  ["--plan", "exact", "--teacher_decoding", "sample", "--drop_share", 0, "--gradient_checkpointing", "--dtype", "bfloat16",
                                   "--micro_tokens", 300, "--chunk_logits", 5000])):
        out = tmp_path / str(i)
        done = run_script("topd.py", *TINY, "--steps", 2, "--eval_every", 0, "--probe_every", 1, *switches, "--out", out)
        assert done.returncode == 0, done.stderr
        rows = [r for r in plumbing.read_jsonl(out / "metrics.jsonl") if "loss" in r]
        assert len(rows) == 2 and all(r["loss"] == r["loss"] and (r["traj"] > 0) == (i > 0) for r in rows)


def test_ar_opd_switches_run(tmp_path):
    for i, switches in enumerate((["--target", "sft"], ["--target", "full", "--teacher", "current", "--samples", 2], ["--lam", 1.2, "--clip", 0, "--skip_first", 3],
                                  ["--target", "partial", "--partial_answer", "keep", "--teacher", "frozen", "--gradient_checkpointing", "--dtype", "bfloat16",
                                   "--micro_tokens", 300, "--chunk_logits", 5000])):
        out = tmp_path / str(i)
        done = run_script("ar_opd.py", *ALONE, "--steps", 2, "--eval_every", 0, *switches, "--out", out)
        assert done.returncode == 0, done.stderr
        rows = [r for r in plumbing.read_jsonl(out / "metrics.jsonl") if "loss" in r]
        assert len(rows) == 2 and all(r["loss"] == r["loss"] and r["loss"] > 0 for r in rows)


def test_hindsight_sd_switches_run(tmp_path):
    few = [*GROUPS, "--steps", 2, "--eval_every", 0, "--eval_n", 10]
    for i, switches in enumerate((["--divergence", "jsd", "--teacher", "ema", "--fallback", "mask"], ["--context", "answer", "--rl_weight", .5, "--beta", 0],
                                  ["--context", "reference", "--teacher", "frozen", "--samples", 2, "--train", "failures", "--gradient_checkpointing", "--dtype",
                                   "bfloat16", "--micro_tokens", 300, "--chunk_logits", 5000], ["--peer", "low_ppl", "--beta_norm", "sequence"])):
        out = tmp_path / str(i)
        done = run_script("hindsight_sd.py", *few, *switches, "--out", out)
        assert done.returncode == 0, done.stderr
        rows = [r for r in plumbing.read_jsonl(out / "metrics.jsonl") if "loss" in r]
        assert len(rows) == 2 and all(r["loss"] == r["loss"] and r["kl"] >= 0 for r in rows) and any(r["kl"] > 0 for r in rows)


def test_grpo_switches_run(tmp_path):
    few = [*GROUPS, "--steps", 2, "--eval_every", 0, "--eval_n", 10]
    for i, switches in enumerate((["--variant", "dapo", "--max_rounds", 2], ["--variant", "dr_grpo", "--reuse", 3, "--overlong", "mask", "--max_new_tokens", 40],
                                  ["--gradient_checkpointing", "--dtype", "bfloat16", "--micro_tokens", 300, "--chunk_logits", 5000])):
        out = tmp_path / str(i)
        done = run_script("grpo.py", *few, *switches, "--out", out)
        assert done.returncode == 0, done.stderr
        rows = [r for r in plumbing.read_jsonl(out / "metrics.jsonl") if "step" in r and "eval" not in r]
        assert [r["step"] for r in rows] == [1, 2] and all(r["drawn"] >= 18 for r in rows)


def test_grpo_without_any_signal_skips_and_says_so(tmp_path):
    # after three tokens no rollout has an answer: no group has a signal, whatever is drawn
    done = run_script("grpo.py", *GROUPS, "--steps", 2, "--variant", "dapo", "--max_rounds", 2, "--max_new_tokens", 3, "--eval_n", 4, "--out", tmp_path / "run")
    assert done.returncode == 0 and "no group with a signal among 36 rollouts" in done.stdout + done.stderr, done.stderr
    rows = plumbing.read_jsonl(tmp_path / "run/metrics.jsonl")
    assert [r["drawn"] for r in rows if r.get("skipped")] == [36, 36]
    assert same_weights(tmp_path / "run/final", ROOT / "toy/reader")


@pytest.mark.parametrize("script, paper", [("opd", "2306.13649"), ("topd", "2606.00305"), ("ar_opd", "2606.10385"), ("hindsight_sd", "2606.15576"),
                                           ("grpo", "2402.03300")])
def test_help_explains_every_flag(script, paper):
    import importlib
    from dataclasses import fields
    text = run_script(f"{script}.py", "--help").stdout
    for f in fields(importlib.import_module(script).Args):
        entry = text.split(f"--{f.name} " if f"--{f.name} " in text else f"--{f.name},")[1]
        assert len(" ".join(entry.split())) > 30, f.name
    assert paper in text


def test_look_prints_and_writes_a_harmless_page(tmp_path):
    done = run_script("look.py", "opd", "--n", 2, "--device", "cpu", fresh=True)
    assert done.returncode == 0 and "gold" in done.stdout and "\x1b[" not in done.stdout, done.stderr
    assert "\x1b[48;5;" in run_script("look.py", "opd", "--n", 2, "--device", "cpu", env={"FORCE_COLOR": "1"}).stdout
    page = tmp_path / "page.html"
    assert run_script("look.py", "opd", "--n", 2, "--html", page, "--device", "cpu").returncode == 0
    text = page.read_text()
    assert text.count('class="rollout"') == 2 and "<script" not in text and "http" not in text
    import look
    evil = [{"text": "<img src=x onerror=alert(1)>\x1b[2J", "kl": 1.0, "student": .1, "teacher": .2, "favourites": [('"><script>', .3)]}]
    page = look.as_page([("<b>", evil, "said", None, None)], type("A", (), {"student": "s", "teacher": "t", "method": "opd"}), None)
    assert "<img" not in page and "<script" not in page and "\x1b" not in page and "<b>" not in page
    assert "\x1b[2J" not in plumbing.paint(["\x1b[2J"], [0.0], 2.0)


def test_look_topd_shows_both_futures(tmp_path):
    done = run_script("look.py", "topd", "--n", 3, "--device", "cpu")
    assert done.returncode == 0, done.stderr
    divergent = done.stdout.count("  (1) D ") + done.stdout.count("  (2) D ")
    assert divergent >= 3 and done.stdout.count("      teacher ") >= divergent and done.stdout.count("drawn to ") > divergent
    assert "(1)" in done.stdout and "_" in done.stdout and "\x1b[4m" in run_script("look.py", "topd", "--device", "cpu", env={"FORCE_COLOR": "1"}).stdout
    page = tmp_path / "page.html"
    assert run_script("look.py", "topd", "--n", 3, "--html", page, "--device", "cpu").returncode == 0
    text = page.read_text()
    assert text.count("<svg") == divergent and text.count("<line") > 5 * divergent and 'class="candidate"' in text
    assert "<script" not in text and "http" not in text


def test_look_ar_opd_shows_the_views(tmp_path):
    done = run_script("look.py", "ar_opd", "--n", 2, "--device", "cpu")
    assert done.returncode == 0 and done.stdout.count("residual ") >= 4 and "partial 0." in done.stdout and "full 0." in done.stdout, done.stderr
    page = tmp_path / "page.html"
    assert run_script("look.py", "ar_opd", "--n", 2, "--html", page, "--device", "cpu").returncode == 0
    text = page.read_text()
    assert text.count('class="rollout"') == 2 and text.count("residual") > 50 and "<script" not in text and "http" not in text
    import look
    row = {"problem": "<b>", "solution": "<i>"}
    token = {"text": "<img src=x>\x1b[2J", "residual": -1.5, "student": .1, "partial": .2, "full": .3}
    evil = look.views_page([(row, [token], "<u>", {0})], type("A", (), {"student": "s"}))
    assert not any(x in evil for x in ("<img", "<i>", "<u>", "\x1b", "<b>"))


def test_look_hindsight_sd_shows_a_failure_above_its_peer(tmp_path):
    page = tmp_path / "page.html"
    done = run_script("look.py", "hindsight_sd", "--n", 2, "--device", "cpu")
    assert done.returncode == 0 and done.stdout.count("\npeer: ") == done.stdout.count("\nfailed: ") == 2 and done.stdout.count(">>>") == 5, done.stderr
    assert done.stdout.count("16 samples each") == 2 and done.stdout.count(": wrong") == 2
    assert run_script("look.py", "hindsight_sd", "--n", 2, "--html", page, "--device", "cpu").returncode == 0
    text = page.read_text()
    assert text.count('class="rollout"') == 4 and text.count("class=wrong") == 4 and text.count("with the answer alone") > 50 and "<script" not in text
    import look
    token = {"text": "<img src=x>\x1b[2J", "credit": -1.5, "answer": .1}
    evil = look.credit_page([({"problem": "<b>"}, [token], ["<i>\x1b"], 0, "<u>", "<s>")], type("A", (), {"student": "s"}))
    assert not any(x in evil for x in ("<img", "<i>", "<u>", "<s>", "\x1b", "<b>"))


def test_windows_of_strangers_are_harmless():
    import look
    import topd

    class Evil:
        def decode(self, ids):
            return "</svg><script>\x1b[2J"
    point = topd.Point(0, 0, 1.0, teacher=[3, 4], student=[4, 3], weights=torch.tensor([[.9, .1], [.1, .9]]))
    for text in (look.windows_as_svg(1, point, Evil()), look.windows_in_terminal(1, point, Evil())):
        assert "\x1b" not in text
    assert "<script" not in look.windows_as_svg(1, point, Evil())
