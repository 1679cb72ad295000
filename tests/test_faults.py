"""What happens to a run of hours: kill -9 at any moment, SIGTERM, a full disk, a damaged checkpoint. Nothing may be lost but time.

Each script is killed at KILLS random moments (default 5; `KILLS=20 python -m pytest tests/test_faults.py` for the long version), and
continued each time; at the end every file is the one of an undisturbed run.
"""
import hashlib
import json
import os
import random
import time

import pytest
import torch
from conftest import ended

import plumbing

KILLS = int(os.environ.get("KILLS", 5))
TINY = ["--data", "toy", "--prompts", 2, "--samples", 2, "--eval_n", 4, "--steps", 5, "--save_every", 1, "--eval_every", 2, "--max_new_tokens", 60, "--device", "cpu"]
READER = ["--student", "toy/reader", *TINY]
SCRIPTS = {
    "opd.py": TINY, "topd.py": [*TINY, "--probe_every", 2], "ar_opd.py": READER, "hindsight_sd.py": [*READER, "--teacher", "ema"], "grpo.py": [*READER, "--reuse", 2],
    "evaluate.py": ["--model", "toy/student", "--benchmark", "toy", "--limit", 24, "--n", 2, "--temperature", 1, "--batch", 4, "--max_new_tokens", 60, "--device", "cpu"],
}


def flat(x):
    if isinstance(x, torch.Tensor):
        return str(x.dtype), tuple(x.shape), hashlib.sha256(x.contiguous().numpy().tobytes()).hexdigest()
    if isinstance(x, dict):
        return [(k, flat(v)) for k, v in x.items()]
    return [flat(v) for v in x] if isinstance(x, (list, tuple)) else x


def fingerprint(folder, damaged=False):
    """A hash of every file, whatever depends on the clock or on the folder's name left out."""
    found = {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        data = path.read_bytes()
        if path.name == "metrics.jsonl":
            rows = [json.loads(line) for line in data.decode().splitlines()]
            data = json.dumps([{k: v for k, v in r.items() if k not in ("seconds", "tokens_per_second", "peak_memory")} for r in rows]).encode()
        elif path.name in ("config.json", "summary.json") and path.parent == folder:
            data = json.dumps({k: v for k, v in json.loads(data).items() if k not in ("out", "seconds")}, sort_keys=True).encode()
        elif path.name == "state.pt" and not damaged:           # pickle writes equal values differently when they are the same object
            data = repr(flat(torch.load(path, weights_only=True))).encode()
        found[str(path.relative_to(folder))] = hashlib.sha256(data).hexdigest()
    return found


def again(command, out):
    """The command that continues what is in `out`: the same for an evaluation; --resume for a run, if it has begun."""
    resume = ["--resume"] if command[0] != "evaluate.py" and (out / "config.json").exists() else []
    return [*command, "--out", out, *resume]


@pytest.fixture(scope="module", params=list(SCRIPTS))
def whole(request, start, tmp_path_factory):
    """(command, folder of an undisturbed run, how long it took)"""
    folder, command = tmp_path_factory.mktemp("whole"), [request.param, *SCRIPTS[request.param]]
    start([*command, "--steps" if request.param != "evaluate.py" else "--limit", 1, "--out", folder / "first"], folder / "log").join()      # files into the cache
    begun = time.time()
    code, said = ended(start([*command, "--out", folder / "run"], folder / "log"), folder / "log")
    assert code == 0, said
    return command, folder / "run", time.time() - begun


def test_killed_at_random_moments_and_continued_it_ends_as_if_nothing_had_been(whole, start, tmp_path):
    command, undisturbed, seconds = whole
    expected, rng, kills, round_ = fingerprint(undisturbed), random.Random(command[0]), 0, 0
    while kills < KILLS:
        out, log, round_ = tmp_path / f"run{round_}", tmp_path / f"log{round_}", round_ + 1
        while True:
            process = start(again(command, out), log)
            process.join(rng.uniform(0, seconds))
            if process.exitcode is None and kills < KILLS:
                process.kill()
                process.join()
                kills += 1
                continue
            code, said = ended(process, log)
            assert code == 0 and "Traceback" not in said, said
            break
        assert fingerprint(out) == expected, f"after {kills} kills"
        if command[0] != "evaluate.py":
            steps = [r["step"] for r in plumbing.read_jsonl(out / "metrics.jsonl") if "eval" not in r]
            assert steps == [1, 2, 3, 4, 5]


def test_killed_at_every_file_operation_of_a_run(start, tmp_path):
    # flushes, renames and removals, among them all those in the middle of writing a checkpoint: every third, with KILLS=20 every one
    command = ["opd.py", *TINY, "--steps", 2, "--eval_every", 0, "--prompts", 1, "--samples", 1, "--eval_n", 1, "--max_new_tokens", 8]
    code, said = ended(start([*command, "--out", tmp_path / "whole"], tmp_path / "log"), tmp_path / "log")
    assert code == 0, said
    expected, moment = fingerprint(tmp_path / "whole"), 0
    while True:
        out, log = tmp_path / f"run{moment}", tmp_path / f"log{moment}"
        code, said = ended(start([*command, "--out", out], log, die_at=moment), log)
        if code == 0:
            break
        assert code == -9, said
        for path in (p for p in out.rglob("*.json") if ".tmp" not in str(p)):        # what has its name is whole
            json.loads(path.read_text())
        code, said = ended(start(again(command, out), log), log)
        assert code == 0 and fingerprint(out) == expected, (moment, said)
        moment += 1 if KILLS >= 20 else 3
    assert moment > 20


def test_sigterm_saves_and_the_run_goes_on(start, tmp_path):
    command, out, log = ["opd.py", *TINY, "--save_every", 0], tmp_path / "run", tmp_path / "log"
    code, said = ended(start([*command, "--out", tmp_path / "whole"], log), log)
    assert code == 0, said
    process = start([*command, "--out", out], log)
    while process.is_alive() and not ((out / "metrics.jsonl").exists() and '"step": 1' in (out / "metrics.jsonl").read_text()):
        time.sleep(0.01)
    process.terminate()
    code, said = ended(process, log)
    assert code == 0 and "continue with" in said and plumbing.latest_checkpoint(out), said
    code, said = ended(start(again(command, out), log), log)
    assert code == 0 and fingerprint(out) == fingerprint(tmp_path / "whole"), said


@pytest.mark.parametrize("script, room", [("opd.py", 2_000_000), ("opd.py", 900_000), ("opd.py", 2000), ("evaluate.py", 3000)])
def test_a_full_disk_ends_with_one_sentence_and_loses_nothing(start, tmp_path, script, room):
    command, out, log = [script, *SCRIPTS[script]], tmp_path / "run", tmp_path / "log"
    code, said = ended(start([*command, "--out", tmp_path / "whole"], log), log)
    assert code == 0, said
    code, said = ended(start([*command, "--out", out], tmp_path / "full", largest_file=room), tmp_path / "full")
    errors = [line for line in said.split("\n") if line.startswith("error: ")]
    assert code == 2 and len(errors) == 1 and "make room" in errors[0] and "Traceback" not in said, said
    assert not [p for p in out.rglob("*") if ".tmp" in p.name] and not (out / "final").exists() and not (out / "summary.json").exists()
    code, said = ended(start(again(command, out), log), log)
    assert code == 0 and fingerprint(out) == fingerprint(tmp_path / "whole"), said


@pytest.mark.parametrize("name, damage", [("model.safetensors", "cut"), ("state.pt", "cut"), ("state.pt", "missing"), ("config.json", "cut")])
def test_a_damaged_checkpoint_is_named_with_the_way_out(start, tmp_path, name, damage):
    out, log = tmp_path / "run", tmp_path / "log"
    code, said = ended(start(["opd.py", *TINY, "--eval_n", 1, "--steps", 1, "--out", out], log), log)
    assert code == 0, said
    file = out / "checkpoint-000001" / name
    if damage == "missing":
        file.unlink()
    else:
        file.write_bytes(file.read_bytes()[:file.stat().st_size // 2])
    before = fingerprint(out, damaged=True)
    code, said = ended(start(["opd.py", "--out", out, "--resume"], tmp_path / "damaged"), tmp_path / "damaged")
    assert code == 2 and "checkpoint-000001' is damaged" in said and "delete that folder" in said and "Traceback" not in said, said
    assert fingerprint(out, damaged=True) == before


def test_a_checkpoint_cannot_carry_code(start, tmp_path):
    out, log, canary = tmp_path / "run", tmp_path / "log", tmp_path / "executed"
    code, said = ended(start(["opd.py", *TINY, "--eval_n", 1, "--steps", 1, "--out", out], log), log)
    assert code == 0, said

    class Evil:
        def __reduce__(self):
            return (open, (str(canary), "w"))
    torch.save({"step": 1, "optimiser": Evil()}, out / "checkpoint-000001/state.pt")
    code, said = ended(start(["opd.py", "--out", out, "--resume"], tmp_path / "evil"), tmp_path / "evil")
    assert code == 2 and "is damaged" in said and not canary.exists(), said


def test_names_from_strangers_runs_do_not_reach_the_terminal_as_they_are(start, tmp_path):
    run, log = tmp_path / "run", tmp_path / "log"
    run.mkdir()
    (run / "config.json").write_text(json.dumps({"script": "\x1b[2Jopd.py\u202e", "seed": 0}))
    (run / "metrics.jsonl").write_text(json.dumps({"step": 0, "eval": {"accuracy": .5, "interval": [0, 1], "n": 10}}) + "\n")
    code, said = ended(start(["evaluate.py", "--compare", run, "--out", tmp_path / "c.png"], log), log)
    assert code == 0 and "\x1b" not in said and "\u202e" not in said and "\\x1b[2Jopd.py" in said, said
