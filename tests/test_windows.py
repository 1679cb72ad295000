"""The scripts once more on a Linux machine that plays Windows: tests/windows/sitecustomize.py takes
away what Windows does not have. This is a simulation. Nothing here ran on Windows itself."""
import importlib.util
import json
import os
import subprocess
import sys

import pytest
from conftest import ROOT
from test_judge import IMPORT, SLOW, SQUARE, STUB, wait_until
from test_scripts import METHODS

from common import judge
from common.data import load_benchmark
from common.files import read_jsonl

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="played on Linux")

# A console of Western Europe: it can show neither Greek letters nor arrows.
ENVIRONMENT = {"PYTHONPATH": str(ROOT / "tests/windows"), "PYTHONIOENCODING": "cp1252",
               "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "NO_COLOR": "1"}


def on_windows(*command, folder=ROOT, timeout=600):
    """A finished process of python that sees what it would see on Windows."""
    return subprocess.run(
        [sys.executable, *map(str, command)], cwd=folder, timeout=timeout, capture_output=True,
        text=True, encoding="cp1252", env={**os.environ, **ENVIRONMENT})


def program(text, *arguments, folder=ROOT):
    """What a program prints as JSON. It may import from common."""
    done = on_windows("-c", f"import sys; sys.path.insert(0, {str(ROOT)!r})\n{text}", *arguments, folder=folder)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


# ------------------------------------------------------------------------ how Windows is played

MISSING = """
import json, multiprocessing, os, select, signal, subprocess
def error(call):
    try:
        call()
    except Exception as e:
        return type(e).__name__
def load(name):
    exec(f"import {name}")
found = [error(lambda name=name: load(name)) for name in ("fcntl", "resource", "pwd")]
found += [hasattr(os, name) for name in ("fork", "killpg", "sysconf", "setsid", "getuid", "getppid")]
found += [hasattr(signal, name) for name in ("SIGKILL", "SIGPROF", "setitimer", "SIGTERM", "SIGINT")]
found += [error(lambda: select.select([os.pipe()[0]], [], [], 0)), error(lambda: os.kill(os.getpid(), 0))]
found += [multiprocessing.get_all_start_methods(), multiprocessing.get_context().get_start_method()]
found += [error(lambda: multiprocessing.get_context("fork"))]
# The libraries still find what they need: this one starts a process and kills it.
child = subprocess.Popen(["sleep", "60"])
child.kill()
print(json.dumps([*found, child.wait()]))
"""


def test_what_is_missing_is_missing_for_this_project_only():
    modules, names = ["ModuleNotFoundError"] * 3, [False] * 5 + [True]
    signals = [False] * 3 + [True] * 2
    starts = [["spawn"], "spawn", "ValueError"]
    assert program(MISSING) == [*modules, *names, *signals, "OSError", "AssertionError", *starts, -9]


REFUSED = """
import json, os, shutil
from pathlib import Path
def error(call):
    try:
        call()
    except OSError as e:
        return type(e).__name__
Path("folder").mkdir(), Path("empty").mkdir()
Path("folder/a").write_text("one\\ntwo"), Path("folder/b").write_text("b")
found = [Path("folder/a").read_bytes().decode()]
found += [error(lambda: os.open("folder", os.O_RDONLY))]
found += [error(lambda: os.replace("folder", "empty"))]
with open("folder/a", "rb") as file:
    found += [error(lambda: os.fsync(file.fileno())), error(lambda: os.unlink("folder/a"))]
    found += [error(lambda: os.replace("folder/b", "folder/a")), error(lambda: os.rename("folder", "new"))]
    found += [error(lambda: shutil.rmtree("folder"))]
found += [error(lambda: Path(name).mkdir()) for name in ("a:b", "what?", "end.")]
found += [error(lambda: open("a|b", "w"))]
os.rename("folder", "new"), shutil.rmtree("new")
print(json.dumps([found, os.listdir(".")]))
"""


def test_what_the_file_system_of_windows_refuses_is_refused(tmp_path):
    denied = "PermissionError"
    refused = [denied, denied, "OSError", denied, denied, denied, denied, *["OSError"] * 4]
    assert program(REFUSED, folder=tmp_path) == [["one\r\ntwo", *refused], ["empty"]]


# ------------------------------------------------------------------------ files


LOCKS = """
import json, subprocess, sys
from common import files
from common.arguments import Mistake
def take():
    try:
        files.lock("run")
        return "locked"
    except Mistake as mistake:
        return str(mistake)[:31]
if len(sys.argv) > 1:
    print(take(), flush=True)
    sys.stdin.read()
else:
    import os
    os.mkdir("run")
    again = [sys.executable, "-c", sys.orig_argv[2], "child"]
    child = subprocess.Popen(again, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    found = [child.stdout.readline().strip(), take()]
    child.kill(), child.wait()
    found += [take(), take()]
    files.unlock("run")
    print(json.dumps([files.fcntl is None, *found]))
"""


def test_a_folder_is_locked_through_a_file_in_it(tmp_path):
    taken = "Another process works in '" + str(tmp_path)[:5]
    assert program(LOCKS, folder=tmp_path) == [True, "locked", taken, "locked", "locked"]


# ------------------------------------------------------------------------ math-verify

JUDGE = """
import json
from common import judge
stub, slow, square = json.loads(sys.argv[1])
if stub:
    judge.WORKER = judge.WORKER.replace(*stub)
judge.PATIENCE_WITHOUT_FORK = 1 if stub else 6
judge.warm_up(wait=True)
first, ready = judge._worker, judge._worker.ready
verdicts = [judge.math_verify(*question, judge.Budget()) for question in (square, slow, square)]
print(json.dumps([ready, *verdicts, first.poll() is not None, judge._worker is not first]))
"""


@pytest.mark.parametrize("real", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_question_that_hangs_ends_its_process_and_the_next_one_is_answered(real):
    # A stand-in for math-verify starts at once. In the slow test it is math-verify itself.
    asked = json.dumps([None if real else (IMPORT, STUB), SLOW, SQUARE])
    assert program(JUDGE, asked) == ["ready without fork", True, False, True, True, True]


def test_the_worker_s_program_fits_into_a_command_line_of_windows():
    assert len(subprocess.list2cmdline([sys.executable, "-c", judge.WORKER])) < 32767


# ------------------------------------------------------------------------ the scripts

SHORT = ["--steps", 2, "--save_every", 1, "--eval_every", 1, "--eval_n", 4, "--max_new_tokens", 60,
         "--show_every", 1]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("windows")


@pytest.mark.slow
@pytest.mark.parametrize("script", ["opd.py", "ar_opd.py"])  # without and with a moving average
def test_a_run_is_killed_and_continued(script, folder):
    out = folder / script.removesuffix(".py")
    command = [script, *METHODS[script], *SHORT, "--out", out]
    environment = {**os.environ, **ENVIRONMENT}
    with open(folder / "log", "w", encoding="utf-8") as log:
        run = subprocess.Popen([sys.executable, *map(str, command)], cwd=ROOT, env=environment,
                               stdout=log, stderr=log)
        wait_until(lambda: (out / "checkpoint-000001").exists() or run.poll() is not None, 600)
        run.kill()
        run.wait()
    done = on_windows(*command, "--resume")
    assert done.returncode == 0, done.stderr + (folder / "log").read_text()
    rows = read_jsonl(out / "metrics.jsonl")
    assert [r["step"] for r in rows if "seconds" in r] == [1, 2]
    assert all(r["peak_memory"] is None for r in rows if "peak_memory" in r)
    if script == "opd.py":
        # A finished run is finished once more: its final model is replaced. The checkpoint from
        # which the run before was continued goes only now: its weights were mapped into memory.
        assert on_windows(*command, "--resume").returncode == 0
        names = {p.name for p in out.iterdir()}
        assert names == {".lock", "config.json", "metrics.jsonl", "curve.png", "final", "checkpoint-000002"}


@pytest.mark.slow
@pytest.mark.parametrize("script", ["topd.py", "hindsight_sd.py", "grpo.py"])   # the other methods
def test_a_run_from_the_first_update_to_the_final_model(script, folder):
    out = folder / f"whole-{script.removesuffix('.py')}"
    done = on_windows(script, *METHODS[script], *SHORT, "--out", out)
    assert done.returncode == 0, done.stderr
    rows = read_jsonl(out / "metrics.jsonl")
    assert [r["step"] for r in rows if "seconds" in r and "tokens" in r] == [1, 2]
    assert {"curve.png", "final", "checkpoint-000002"} < {p.name for p in out.iterdir()}


@pytest.mark.slow
def test_own_problems_are_trained_on_and_evaluated(folder):
    rows = [json.dumps({"problem": r["problem"], "answer": r["answer"]}) for r in load_benchmark("toy", "test", 30)]
    (folder / "mine.jsonl").write_text("\r\n".join(rows), encoding="utf-8", newline="")
    run = on_windows(ROOT / "opd.py", *METHODS["opd.py"], *SHORT, "--data", "mine.jsonl", "--out", "own",
                     folder=folder)
    assert run.returncode == 0, run.stderr
    evaluate = [ROOT / "evaluate.py", "--model", "own", "--benchmark", "mine.jsonl:held-out",
                "--max_new_tokens", 60]
    for limit in (1, 3):        # the second one continues the first one
        done = on_windows(*evaluate, "--limit", limit, folder=folder)
        assert done.returncode == 0, done.stderr
    responses = folder / "runs/eval-own-final-mine-held-out/responses.jsonl"
    assert len(read_jsonl(responses)) == 3


@pytest.mark.slow
@pytest.mark.parametrize("method", ("opd", "topd", "ar_opd", "hindsight_sd"))
def test_look(method, folder):
    # The page holds all characters of the text. The console shows what it can.
    more = ["--html", folder / "look.html"] if method == "topd" else []
    done = on_windows("look.py", method, "--n", 1, "--max_new_tokens", 60, *more)
    assert done.returncode == 0, done.stderr
    text = (folder / "look.html").read_text(encoding="utf-8") if more else done.stdout
    assert len(text) > 200


@pytest.mark.slow
def test_a_card_is_measured_in_processes_that_are_not_forked(folder):
    done = on_windows("benchmarks/gpu.py", "--dry_run", "--minutes", 30, "--out", folder / "card",
                      timeout=1800)
    assert done.returncode == 0, done.stderr
    record = json.loads((folder / "card/dry-run.json").read_text(encoding="utf-8"))
    ended = {name: part["status"] for name, part in record["parts"].items()}
    for name in ("vllm", "trl"):
        if not importlib.util.find_spec(name):
            assert ended.pop(name) == "left out: not installed"
    assert len(ended) >= 7 and set(ended.values()) == {"done"}, ended
    assert "dry-run.json" in done.stdout.splitlines()[-1]
