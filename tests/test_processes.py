"""Two processes (gloo on a CPU) take the steps of one: the same batch, the same parameters, the
same metrics, also after a resume. Nothing is done twice or left out."""
import functools
import os
import shutil
import socket
import subprocess
import sys

import pytest
import torch
from conftest import ROOT, ended
from safetensors.torch import load_file

from common.arguments import Mistake
from common.batches import micro_batches
from common.files import read_json, read_jsonl, write_json
from common.processes import add_up, everyones, gather, process

pytestmark = pytest.mark.slow

TINY = ["--data", "toy", "--prompts", 3, "--samples", 3, "--eval_n", 5, "--steps", 3,
        "--save_every", 1, "--eval_every", 0, "--max_new_tokens", 60, "--device", "cpu",
        "--lr", 1e-4]
READER = ["--student", "toy/reader", *TINY]
SCRIPTS = {
    "opd.py": [*TINY, "--micro_tokens", 500],
    "topd.py": TINY,
    "ar_opd.py": READER,
    "hindsight_sd.py": [*READER, "--teacher", "ema", "--rl_weight", .2],
    # Few groups have a signal, so most gradients are near zero, and AdamW makes full steps of
    # their rounding. A lower learning rate keeps these steps small.
    "grpo.py": [*READER, "--reuse", 2, "--samples", 6, "--max_new_tokens", 120, "--lr", 1e-5],
}


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def alone(start, command, folder):
    code, said = ended(start(command, folder / "log"), folder / "log")
    assert code == 0, said


def two(start, command, folder):
    """[(exit code, what it said)] of two processes that work together."""
    logs = [folder / f"log{i}" for i in range(2)]
    address = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    running = [
        start(command, log, env={"RANK": str(i), "LOCAL_RANK": str(i), **address})
        for i, log in enumerate(logs)
    ]
    return [ended(p, log) for p, log in zip(running, logs)]


def learnt_by(command):
    return "toy/reader" if "toy/reader" in command else "toy/student"


def alike(a, b, learner):
    """Both runs of three updates, started from `learner`, have learnt the same."""
    x, y, before = (load_file(f / "model.safetensors")
                    for f in (a / "final", b / "final", ROOT / learner))
    assert max((x[k] - y[k]).abs().max().item() for k in x) < 1e-5
    assert max((x[k] - before[k]).abs().max().item() for k in x) > 1e-5
    # The moments are means of gradients. They are a stronger test, because a step of AdamW has
    # the same size whatever the size of the gradient is.
    states = [torch.load(f / "checkpoint-000003/state.pt", weights_only=True) for f in (a, b)]
    moments = [s["optimizer"]["state"] for s in states]
    for key in ("exp_avg", "exp_avg_sq"):
        p, q = (torch.cat([m[i][key].flatten() for i in sorted(m)]) for m in moments)
        assert (p - q).norm() < 1e-4 * p.norm() and p.norm() > 0
    rows = [read_jsonl(f / "metrics.jsonl") for f in (a, b)]
    assert [r["step"] for r in rows[0]] == [r["step"] for r in rows[1]]
    for p, q in zip(*rows):
        assert p.keys() == q.keys()
        for k in p.keys() - {"seconds", "tokens_per_second", "peak_memory", "changed"}:
            number = isinstance(q[k], (int, float))
            assert p[k] == (pytest.approx(q[k], rel=1e-3, abs=1e-5) if number else q[k]), k


# ------------------------------------------------------------------------ whole runs


@pytest.mark.parametrize("script", SCRIPTS)
def test_two_processes_take_the_steps_of_one(script, start, tmp_path):
    command = [script, *SCRIPTS[script]]
    alone(start, [*command, "--out", tmp_path / "one"], tmp_path)
    (first, talk), (second, quiet) = two(start, [*command, "--out", tmp_path / "two"], tmp_path)
    said = talk + quiet
    assert first == second == 0 and "before:" in talk and "Traceback" not in said, said
    assert "before:" not in quiet
    alike(tmp_path / "one", tmp_path / "two", learnt_by(command))


@pytest.mark.parametrize("script", ["opd.py", "topd.py"])
def test_a_process_without_any_rollout_takes_the_step_of_the_other(script, start, tmp_path):
    command = [script, *TINY, "--prompts", 1, "--samples", 1]
    alone(start, [*command, "--out", tmp_path / "one"], tmp_path)
    (first, talk), (second, quiet) = two(start, [*command, "--out", tmp_path / "two"], tmp_path)
    assert first == second == 0, talk + quiet
    alike(tmp_path / "one", tmp_path / "two", learnt_by(command))


def test_two_processes_resumed(start, tmp_path):
    command, part = ["opd.py", *SCRIPTS["opd.py"], "--eval_every", 1], tmp_path / "part"
    alone(start, [*command, "--out", tmp_path / "one"], tmp_path)
    alone(start, [*command, "--steps", 2, "--out", part], tmp_path)
    # As if it had been killed after the second update. The first two updates were made by one
    # process, the third is made by two.
    shutil.rmtree(part / "final")
    write_json(part / "config.json", {**read_json(part / "config.json"), "steps": 3})
    (first, talk), (second, quiet) = two(start, ["opd.py", "--resume", "--out", part], tmp_path)
    assert first == second == 0, talk + quiet
    alike(tmp_path / "one", part, "toy/student")


def test_accelerate_launch(tmp_path):
    out, launch = tmp_path / "run", [sys.executable, "-m", "accelerate.commands.launch", "--cpu"]
    launch += ["--num_processes", "2", "--num_cpu_threads_per_process", "1"]
    launch += ["--main_process_port", str(free_port())]
    command = ["opd.py", *map(str, SCRIPTS["opd.py"]), "--steps", "1", "--out", str(out)]
    done = subprocess.run(
        [*launch, *command], cwd=ROOT, capture_output=True, text=True, timeout=300,
        env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"})
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("before:  student") == 1
    assert (out / "final/model.safetensors").exists()
    assert [r["step"] for r in read_jsonl(out / "metrics.jsonl")] == [0, 1, 1]


# ------------------------------------------------------------------------ dealing and adding up


def test_a_share_of_everything_and_nothing_twice(monkeypatch):
    lengths, dealt = [5, 3, 9, 1, 7, 2, 8], []
    monkeypatch.setenv("WORLD_SIZE", "3")
    for which in range(3):
        monkeypatch.setenv("RANK", str(which))
        assert process() == (which, 3)
        groups = micro_batches(lengths, 10, deal=True)
        assert all(max(lengths[i] for i in g) * len(g) <= 10 for g in groups if len(g) > 1)
        dealt += [i for g in groups for i in g]
    assert sorted(dealt) == list(range(7))


def test_one_process_gets_back_what_it_has(monkeypatch):
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "1")
    mine, tensors = [torch.ones(2), None], [torch.ones(2), torch.zeros(3)]
    assert everyones(mine, 3.0, 1)[1:] == (3.0, 1) and everyones(mine, 3.0)[0] == mine
    assert gather("x") == ["x"] and add_up(tensors) is tensors


SHARES = """
import torch
from common.batches import Collected
from common.processes import add_up, process
which, of = process()
collected = Collected([[7], [8, 9], [1, 1, 1]])
for chosen, stats, loss, names in [
    ([([2], torch.full((3, 1), 2.0), 1.5, ["c"]), ([0], torch.zeros(1, 1), 1.0, ["a"])]),
    ([([1], torch.ones(2, 1), 4.0, ["b"])]),
    (),
][which]:
    collected.add(chosen, stats, loss, names)
stats, loss, names = collected.everyone()
[total] = add_up([torch.tensor([1.0, 10.0]) * which])
print([s.flatten().tolist() for s in stats], loss, names, total.tolist())
"""


def said_by(program, count):
    """What each of `count` processes prints that run this program together."""
    address = {"WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "OMP_NUM_THREADS": "1",
               "MASTER_PORT": str(free_port())}
    running = [
        subprocess.Popen([sys.executable, "-c", program], cwd=ROOT, stdout=subprocess.PIPE,
                         stderr=subprocess.PIPE, text=True,
                         env={**os.environ, **address, "RANK": str(i), "LOCAL_RANK": str(i)})
        for i in range(count)
    ]
    said = [p.communicate(timeout=200) for p in running]
    assert all(p.returncode == 0 for p in running), said
    return [out.strip() for out, _ in said]


def test_everyone_knows_the_whole_batch_and_the_sums_also_a_process_without_a_share():
    expected = "[[0.0], [1.0, 1.0], [2.0, 2.0, 2.0]] 6.5 ['c', 'a', 'b'] [3.0, 30.0]"
    assert said_by(SHARES, 3) == [expected] * 3


ENDS = """
import atexit
import torch
from common.processes import gather, process
# What is registered first is called last: after everything that this project does at the end.
atexit.register(lambda: print("connected:", torch.distributed.is_initialized()))
print(gather(process()[0]), torch.distributed.is_initialized())
"""


def test_processes_are_disconnected_when_they_end():
    """Without this a process was aborted in 6 of 25 trials, after it had done all of its work."""
    assert said_by(ENDS, 2) == ["[0, 1] True\nconnected: False"] * 2


# ------------------------------------------------------------------------ verdicts

# Grading has a time limit, so two processes can find different verdicts on the same answer. Here
# they always do: the first finds everything right, the second everything wrong.
VERDICTS = """
from types import SimpleNamespace
import grpo, hindsight_sd
from common import evaluation
from common.processes import dealt, process
from common.sampler import Completion

asked = []
def verify(response, gold, truncated):
    asked.append(response)
    return process()[0] == 0
evaluation.verify = verify

class Tokenizer:
    def decode(self, ids, skip_special_tokens=False):
        return str(ids)
drawn = [Completion([i], False, [0.0]) for i in range(5)]
rows = [{"answer": "7", "prompt": "p"}] * 5
print(dealt(lambda x, y: (process()[0], x + y), [(i, 10) for i in range(5)]))
print(dealt(lambda x: x, []), dealt(lambda x: x, [(8,)]))
print(grpo.verdicts(Tokenizer(), rows, drawn, 1)[1], len(asked))
print(hindsight_sd.verdicts(Tokenizer(), rows, drawn, 1)[1], len(asked))
evaluation.warm_up = lambda: None
evaluation.prompt_ids = lambda *_: [5]
evaluation.sample = lambda model, prompts, **more: drawn
_, records = evaluation.evaluate(None, Tokenizer(), rows, max_new_tokens=1, bar=False)
print([r["correct"] for r in records], len(asked))
"""


def test_an_answer_is_graded_once_and_all_processes_take_that_verdict():
    first, second = (said.split("\n") for said in said_by(VERDICTS, 2))
    shares = "[(0, 10), (1, 11), (0, 12), (1, 13), (0, 14)]"
    verdicts = "[True, False, True, False, True]"
    # The first process has graded three of five answers in each of the three places.
    assert first == [shares, "[] [8]", *(f"{verdicts} {3 * n}" for n in (1, 2, 3))]
    assert second == [shares, "[] [8]", *(f"{verdicts} {2 * n}" for n in (1, 2, 3))]


def test_processes_on_a_cpu_are_connected_as_such_beside_gpus(monkeypatch):
    """With --device cpu on a machine with GPUs tensors of the CPU are added up, which only the
    CPU's connection can do."""
    import accelerate

    from common import processes
    from common.processes import connect
    calls = []
    # Connections that other tests have made are forgotten inside of this one.
    fresh = functools.cache(processes._connected.__wrapped__)
    monkeypatch.setattr(processes, "_connected", fresh)
    monkeypatch.setattr(accelerate, "PartialState", lambda **how: calls.append(how))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setenv("WORLD_SIZE", "1")
    connect(torch.device("cpu"))
    assert calls == []
    monkeypatch.setenv("WORLD_SIZE", "2")
    connect(torch.device("cpu"))
    connect(torch.device("cuda:1"))
    assert calls == [{"cpu": True}, {"cpu": False}]


def test_a_run_connects_its_processes_before_it_gathers_anything(monkeypatch):
    from common import run as room
    calls = []

    def stop(*any):
        calls.append("open")
        raise Mistake("enough")
    monkeypatch.setattr(room, "connect", lambda device: calls.append(device.type))
    monkeypatch.setattr(room.checkpoints, "open_run", stop)
    from opd import Args
    with pytest.raises(Mistake, match="enough"):
        room.Run(Args(device="cpu"), "opd")
    assert calls == ["cpu", "open"]
