"""Two processes (gloo on a CPU) take the steps of one: the same global batch, the same parameters, the same metrics, also after a resume."""
import os
import shutil
import socket
import subprocess
import sys

import pytest
import torch
from conftest import ROOT, ended
from safetensors.torch import load_file

import plumbing

TINY = ["--data", "toy", "--prompts", 3, "--samples", 3, "--eval_n", 5, "--steps", 3, "--save_every", 1, "--eval_every", 0, "--max_new_tokens", 60, "--device", "cpu", "--lr", 1e-4]
READER = ["--student", "toy/reader", *TINY]
SCRIPTS = {
    "opd.py": [*TINY, "--micro_tokens", 500], "topd.py": [*TINY, "--probe_every", 1], "ar_opd.py": READER, "hindsight_sd.py": [*READER, "--teacher", "ema", "--rl_weight", .2],
    # few groups have a signal, most gradients are near zero, and AdamW makes full steps of their rounding: a smaller step
    "grpo.py": [*READER, "--reuse", 2, "--samples", 6, "--max_new_tokens", 120, "--lr", 1e-5],
}


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def two(start, command, folder):
    port, logs = free_port(), [folder / f"log{i}" for i in range(2)]
    running = [start(command, log, env={"RANK": str(i), "LOCAL_RANK": str(i), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)})
               for i, log in enumerate(logs)]
    return [ended(p, log) for p, log in zip(running, logs)]


def alike(a, b, learner="toy/student"):
    x, y, start = (load_file(f / "model.safetensors") for f in (a / "final", b / "final", ROOT / learner))
    assert max((x[k] - y[k]).abs().max().item() for k in x) < 1e-5 and max((x[k] - start[k]).abs().max().item() for k in x) > 1e-5
    # stronger, since AdamW's steps have one size whatever the gradient's: the moments, which are means of gradients
    moments = [torch.load(f / "checkpoint-000003/state.pt", weights_only=True)["optimiser"]["state"] for f in (a, b)]
    for key in ("exp_avg", "exp_avg_sq"):
        p, q = (torch.cat([m[i][key].flatten() for i in sorted(m)]) for m in moments)
        assert (p - q).norm() < 1e-4 * p.norm() and p.norm() > 0
    rows = [plumbing.read_jsonl(f / "metrics.jsonl") for f in (a, b)]
    assert [r["step"] for r in rows[0]] == [r["step"] for r in rows[1]]
    for p, q in zip(*rows):
        assert p.keys() == q.keys()
        for k in p.keys() - {"seconds", "tokens_per_second", "peak_memory", "changed"}:
            assert p[k] == (pytest.approx(q[k], rel=1e-3, abs=1e-5) if isinstance(q[k], (int, float)) else q[k]), k


@pytest.mark.parametrize("script", SCRIPTS)
def test_two_processes_take_the_steps_of_one(script, start, tmp_path):
    command = [script, *SCRIPTS[script]]
    code, said = ended(start([*command, "--out", tmp_path / "one"], tmp_path / "log"), tmp_path / "log")
    assert code == 0, said
    (first, talk), (second, quiet) = two(start, [*command, "--out", tmp_path / "two"], tmp_path)
    assert first == second == 0 and "before:" in talk and "Traceback" not in talk + quiet, talk + quiet
    assert "before:" not in quiet
    alike(tmp_path / "one", tmp_path / "two", "toy/reader" if "toy/reader" in command else "toy/student")


def test_two_processes_resumed(start, tmp_path):
    command = ["opd.py", *SCRIPTS["opd.py"], "--eval_every", 1]
    code, said = ended(start([*command, "--out", tmp_path / "one"], tmp_path / "log"), tmp_path / "log")
    assert code == 0, said
    part = tmp_path / "part"
    code, said = ended(start([*command, "--steps", 2, "--out", part], tmp_path / "log"), tmp_path / "log")
    assert code == 0, said
    shutil.rmtree(part / "final")
    config = plumbing.read_json(part / "config.json", "")
    plumbing.write_json(part / "config.json", {**config, "steps": 3})
    # as if it had been killed after the second update; the first two were made by one process, the third by two
    (first, talk), (second, quiet) = two(start, ["opd.py", "--resume", "--out", part], tmp_path)
    assert first == second == 0, talk + quiet
    alike(tmp_path / "one", part)


def test_accelerate_launch(tmp_path):
    command = [sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes", "2", "--num_cpu_threads_per_process", "1", "--main_process_port", str(free_port())]
    done = subprocess.run([*command, "opd.py", *map(str, SCRIPTS["opd.py"]), "--steps", "1", "--out", str(tmp_path / "run")], cwd=ROOT, capture_output=True, text=True, timeout=300,
                          env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"})
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("before:  student") == 1 and (tmp_path / "run/final/model.safetensors").exists()
    assert [r["step"] for r in plumbing.read_jsonl(tmp_path / "run/metrics.jsonl")] == [0, 1, 1]


def test_a_share_of_everything_and_nothing_twice(monkeypatch):
    lengths = [5, 3, 9, 1, 7, 2, 8]
    dealt = []
    for which in range(3):
        monkeypatch.setenv("RANK", str(which))
        monkeypatch.setenv("WORLD_SIZE", "3")
        groups = plumbing.micro_batches(lengths, 10, deal=True)
        assert all(max(lengths[i] for i in g) * len(g) <= 10 for g in groups if len(g) > 1)
        dealt += [i for g in groups for i in g]
    assert sorted(dealt) == list(range(7))
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert plumbing.everyones([torch.ones(2), None], 3.0, 1)[1:] == (3.0, 1) and plumbing.gather("x") == ["x"]
