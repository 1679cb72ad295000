"""What happens to a run of hours: kill -9 at any moment, SIGTERM, a full disk, a damaged
checkpoint. Nothing may be lost but time.

Each script is killed at KILLS random moments (default 3; the long version is
`KILLS=20 python -m pytest tests/test_faults.py`), and it is continued each time. At the end every
file is the same as in an undisturbed run.
"""
import hashlib
import json
import os
import random
import time

import pytest
import torch
from conftest import ended

from common.checkpoints import latest_checkpoint
from common.files import read_jsonl

pytestmark = pytest.mark.slow

KILLS = int(os.environ.get("KILLS", 3))
TINY = ["--data", "toy", "--prompts", 2, "--samples", 2, "--eval_n", 4, "--steps", 5,
        "--save_every", 1, "--eval_every", 2, "--max_new_tokens", 60, "--device", "cpu"]
READER = ["--student", "toy/reader", *TINY]
SCRIPTS = {
    "opd.py": TINY,
    "topd.py": TINY,
    "ar_opd.py": READER,
    "hindsight_sd.py": [*READER, "--teacher", "ema"],
    "grpo.py": [*READER, "--reuse", 2],
    "evaluate.py": ["--model", "toy/student", "--benchmark", "toy", "--limit", 24, "--n", 2,
                    "--temperature", 1, "--batch", 4, "--max_new_tokens", 60, "--device", "cpu"],
}
ONE_UPDATE = ["opd.py", *TINY, "--eval_n", 1, "--steps", 1]
CLOCK = ("seconds", "tokens_per_second", "peak_memory")


def flat(x):
    """A value in which every tensor is replaced by a hash of its bytes."""
    if isinstance(x, torch.Tensor):
        content = hashlib.sha256(x.contiguous().numpy().tobytes()).hexdigest()
        return str(x.dtype), tuple(x.shape), content
    if isinstance(x, dict):
        return [(k, flat(v)) for k, v in x.items()]
    return [flat(v) for v in x] if isinstance(x, (list, tuple)) else x


def fingerprint(folder, damaged=False):
    """A hash of every file. What depends on the clock or on the folder's name is left out."""
    hashes = {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        data = path.read_bytes()
        if path.name == "metrics.jsonl":
            rows = [json.loads(line) for line in data.decode().splitlines()]
            rows = [{k: v for k, v in r.items() if k not in CLOCK} for r in rows]
            data = json.dumps(rows).encode()
        elif path.name in ("config.json", "summary.json") and path.parent == folder:
            kept = {k: v for k, v in json.loads(data).items() if k not in ("out", "seconds")}
            data = json.dumps(kept, sort_keys=True).encode()
        elif path.name == "state.pt" and not damaged:
            # Pickle writes equal values differently when they are the same object.
            data = repr(flat(torch.load(path, weights_only=True))).encode()
        hashes[str(path.relative_to(folder))] = hashlib.sha256(data).hexdigest()
    return hashes


def again(command, out):
    """The command that continues what is in `out`. It is the same for an evaluation. For a run it
    has --resume, if the run has begun."""
    begun = command[0] != "evaluate.py" and (out / "config.json").exists()
    return [*command, "--out", out, *(["--resume"] if begun else [])]


def finish(start, command, log):
    code, said = ended(start(command, log), log)
    assert code == 0 and "Traceback" not in said, said


# ------------------------------------------------------------------------ killed


@pytest.fixture(scope="module", params=list(SCRIPTS))
def whole(request, start, tmp_path_factory):
    """(command, folder of an undisturbed run, how long it took)"""
    folder, script = tmp_path_factory.mktemp("whole"), request.param
    command, log = [script, *SCRIPTS[script]], folder / "log"
    # A first short run brings the files into the cache, so that the time of the second is right.
    short = "--steps" if script != "evaluate.py" else "--limit"
    start([*command, short, 1, "--out", folder / "first"], log).join()
    begun = time.time()
    finish(start, [*command, "--out", folder / "run"], log)
    return command, folder / "run", time.time() - begun


def test_killed_at_random_moments_and_continued_it_ends_as_if_nothing_had_been(
    whole, start, tmp_path
):
    command, undisturbed, seconds = whole
    expected, rng, kills, turn = fingerprint(undisturbed), random.Random(command[0]), 0, 0
    while kills < KILLS:
        out, log, turn = tmp_path / f"run{turn}", tmp_path / f"log{turn}", turn + 1
        while True:
            process = start(again(command, out), log)
            process.join(rng.uniform(0, seconds))
            if process.exitcode is not None or kills == KILLS:
                break
            process.kill()
            process.join()
            kills += 1
        code, said = ended(process, log)
        assert code == 0 and "Traceback" not in said, said
        assert fingerprint(out) == expected, f"after {kills} kills"
        if command[0] != "evaluate.py":
            rows = read_jsonl(out / "metrics.jsonl")
            assert [r["step"] for r in rows if "eval" not in r] == [1, 2, 3, 4, 5]


def test_killed_at_every_file_operation_of_a_run(start, tmp_path):
    # Every third flush, rename or removal of a file, also those in the middle of writing a
    # checkpoint. With KILLS=20 every one.
    least = ["--prompts", 1, "--samples", 1, "--eval_n", 1, "--max_new_tokens", 8]
    command = ["opd.py", *TINY, "--steps", 2, "--eval_every", 0, *least]
    finish(start, [*command, "--out", tmp_path / "whole"], tmp_path / "log")
    expected, moment = fingerprint(tmp_path / "whole"), 0
    while True:
        out, log = tmp_path / f"run{moment}", tmp_path / f"log{moment}"
        code, said = ended(start([*command, "--out", out], log, die_at=moment), log)
        if code == 0:
            break
        assert code == -9, said
        for path in out.rglob("*.json"):                # what has its final name is whole
            if ".tmp" not in str(path):
                json.loads(path.read_text())
        finish(start, again(command, out), log)
        assert fingerprint(out) == expected, moment
        moment += 1 if KILLS >= 20 else 3
    assert moment > 20


def test_sigterm_saves_and_the_run_goes_on(start, tmp_path):
    command, out, log = ["opd.py", *TINY, "--save_every", 0], tmp_path / "run", tmp_path / "log"
    finish(start, [*command, "--out", tmp_path / "whole"], log)
    process, metrics = start([*command, "--out", out], log), out / "metrics.jsonl"
    while process.is_alive() and not (metrics.exists() and '"step": 1' in metrics.read_text()):
        time.sleep(0.01)
    process.terminate()
    code, said = ended(process, log)
    assert code == 0 and "continue with" in said and latest_checkpoint(out), said
    finish(start, again(command, out), log)
    assert fingerprint(out) == fingerprint(tmp_path / "whole")


# ------------------------------------------------------------------------ a full disk


@pytest.mark.parametrize("script, room", [
    ("opd.py", 2_000_000),
    ("opd.py", 900_000),
    ("opd.py", 2000),
    ("evaluate.py", 3000),
])
def test_a_full_disk_ends_with_one_sentence_and_loses_nothing(start, tmp_path, script, room):
    command, out, log = [script, *SCRIPTS[script]], tmp_path / "run", tmp_path / "log"
    finish(start, [*command, "--out", tmp_path / "whole"], log)
    full = tmp_path / "full"
    code, said = ended(start([*command, "--out", out], full, largest_file=room), full)
    errors = [line for line in said.split("\n") if line.startswith("error: ")]
    assert code == 2 and len(errors) == 1 and "make room" in errors[0], said
    assert "Traceback" not in said, said
    assert not [p for p in out.rglob("*") if ".tmp" in p.name]
    assert not (out / "final").exists() and not (out / "summary.json").exists()
    finish(start, again(command, out), log)
    assert fingerprint(out) == fingerprint(tmp_path / "whole")


# ------------------------------------------------------------------------ damaged, or worse


@pytest.mark.parametrize("name, damage", [
    ("model.safetensors", "cut"),
    ("state.pt", "cut"),
    ("state.pt", "missing"),
    ("config.json", "cut"),
])
def test_a_damaged_checkpoint_is_named_with_the_way_out(start, tmp_path, name, damage):
    out, log = tmp_path / "run", tmp_path / "damaged"
    finish(start, [*ONE_UPDATE, "--out", out], tmp_path / "log")
    file = out / "checkpoint-000001" / name
    if damage == "missing":
        file.unlink()
    else:
        file.write_bytes(file.read_bytes()[:file.stat().st_size // 2])
    before = fingerprint(out, damaged=True)
    code, said = ended(start(["opd.py", "--out", out, "--resume"], log), log)
    assert code == 2 and "Traceback" not in said, said
    assert "checkpoint-000001' could not be loaded" in said, said
    assert "move that folder away" in said and "delete" not in said, said
    assert fingerprint(out, damaged=True) == before


def test_a_checkpoint_cannot_carry_code(start, tmp_path):
    out, log, canary = tmp_path / "run", tmp_path / "evil", tmp_path / "executed"
    finish(start, [*ONE_UPDATE, "--out", out], tmp_path / "log")
    state = out / "checkpoint-000001/state.pt"

    class Evil:
        def __reduce__(self):
            return (open, (str(canary), "w"))
    torch.save({**torch.load(state, weights_only=True), "optimizer": Evil()}, state)
    code, said = ended(start(["opd.py", "--out", out, "--resume"], log), log)
    assert code == 2 and "could not be loaded (UnpicklingError)" in said and not canary.exists(), said


def test_names_from_strangers_runs_do_not_reach_the_terminal_as_they_are(start, tmp_path):
    run, log = tmp_path / "run", tmp_path / "log"
    run.mkdir()
    config = {"script": "\x1b[2Jopd.py\u202e", "seed": 0}
    (run / "config.json").write_text(json.dumps(config))
    row = {"step": 0, "eval": {"accuracy": .5, "interval": [0, 1], "n": 10}}
    (run / "metrics.jsonl").write_text(json.dumps(row) + "\n")
    finish(start, ["evaluate.py", "--compare", run, "--out", tmp_path / "c.png"], log)
    said = log.read_text()
    assert "\x1b" not in said and "\u202e" not in said and "\\x1b[2Jopd.py" in said, said
