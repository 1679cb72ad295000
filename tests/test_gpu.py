"""benchmarks/gpu.py without a GPU: the dry run, the parts one by one with tiny models, their
processes, and which models it would take on cards of several sizes."""
import copy
import importlib.util
import json
import multiprocessing.connection
import os
import sys
import time
from types import SimpleNamespace

import pytest
import torch
from conftest import ROOT, run_script, tiny_qwen3
from helpers import PROMPTS

import common.vllm
from benchmarks import gpu
from common import recorded
from common.arguments import Mistake
from common.sampler import Completion, sample

UPDATES = list(gpu.SCRIPTS)
GIB = 2**30
# From Python 3.12 on a fork of a process with threads is warned of.
forks = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")


@pytest.fixture(autouse=True)
def as_before(monkeypatch):
    """What the part `decode` changes stays as it is for the other tests."""
    monkeypatch.setattr(recorded, "Replay", recorded.Replay)
    monkeypatch.setattr(recorded, "RECORDS", recorded.RECORDS)
    monkeypatch.setattr(recorded.Replay, "state", {"use": True, "unchecked": 3})


def found_by(name):
    found = {}
    for more in gpu.PARTS[name](gpu.Place(True, 600)):
        found.update(more)
    return found


# ------------------------------------------------------------------------ the parts


@pytest.mark.slow
def test_a_dry_run_goes_through_all_parts(tmp_path):
    began = os.times()
    flags = ["--dry_run", "--minutes", 30, "--out", tmp_path]
    done = run_script("benchmarks/gpu.py", *flags, fresh=True, timeout=1200)
    assert done.returncode == 0, done.stderr
    # Seconds of the processor: another program beside it makes no difference.
    assert os.times().children_user - began.children_user < 40
    record = json.loads((tmp_path / "dry-run.json").read_text())
    assert list(record["parts"]) == ["machine", "decode", *UPDATES, "vllm", "trl"]
    ended = {name: part["status"] for name, part in record["parts"].items()}
    for name in ("vllm", "trl"):
        if not importlib.util.find_spec(name):
            assert ended.pop(name) == "left out: not installed"
    assert set(ended.values()) == {"done"}, ended
    assert record["card"] == "dry run" and record["versions"]["torch"] == torch.__version__
    lines = done.stdout.splitlines()
    assert [line.split()[0] for line in lines[3:12]] == list(record["parts"])
    assert str(tmp_path / "dry-run.json") in lines[-1]


@pytest.mark.parametrize("method", UPDATES)
def test_an_update_is_predicted_and_measured(method):
    found = found_by(method)
    # The larger batch was made, too, because there was time.
    assert (found["rollouts"], found["new_tokens"], found["student"]) == (8, 12, "tiny")
    assert found["teacher"] == ("tiny" if method in ("opd", "topd") else "")
    assert 0 < found["predicted_bytes"] < found["measured_bytes"]  # here with the libraries
    seconds = found["seconds"]
    assert {"total", "sample", "student", "step"} < set(seconds)
    assert sum(seconds.values()) <= 2.01 * seconds["total"]
    assert ("flop" in found) == (method == "opd")


def test_without_time_only_the_small_batch_is_measured():
    found = {}
    for more in gpu.PARTS["opd"](gpu.Place(True, 0)):
        found.update(more)
    assert (found["rollouts"], found["new_tokens"]) == (8, 6)


def test_the_machine_is_measured():
    found = found_by("machine")
    assert found["dtype"] == "float32" and found["flop_per_second"] > 1e6
    assert min(found["read_bytes_per_second"], found["copied_bytes_per_second"]) > 1e6


def test_recorded_steps_are_compared_with_plain_ones():
    found = found_by("decode")
    assert found["rows"] == found["equal_texts"] == 8
    for way in ("plain", "recorded"):
        assert found[way]["tokens_per_second"] > 0 and found[way]["away"] < 1e-4


def test_a_recording_that_is_wrong_is_no_result(monkeypatch):
    monkeypatch.setattr(gpu.Stand, "__call__", lambda self, *inputs: self.step(*self.inputs))
    with pytest.raises(Mistake, match="differs from the step itself"):
        found_by("decode")


def test_the_distance_of_log_probabilities():
    model, place = tiny_qwen3(), gpu.Place(True, 60)
    keys = [(i,) for i in range(len(PROMPTS))]
    drawn = sample(model, PROMPTS, max_new_tokens=9, keys=keys)
    assert gpu.away(model, PROMPTS, drawn, place) < 1e-5
    wrong = [Completion(c.ids, c.truncated, [x - 0.5 for x in c.logprobs]) for c in drawn]
    assert gpu.away(model, PROMPTS, wrong, place) == pytest.approx(0.5, abs=1e-5)


class Copy:
    """In vLLM's place: it draws from a copy of the student."""

    def __init__(self, student, fresh):
        self.student, self.fresh, self.copied = student, fresh, None

    def __deepcopy__(self, memo):
        return None

    def sample(self, prompts, *, n, max_new_tokens, keys, **rule):
        if self.fresh or self.copied is None:
            self.copied = copy.deepcopy(self.student)
        return sample(self.copied, prompts, n=n, max_new_tokens=max_new_tokens, keys=keys, **rule)


@pytest.mark.parametrize("fresh", [True, False])
def test_old_weights_in_vllm_are_seen(monkeypatch, fresh):
    def attach(student, *_):
        student.engine = Copy(student, fresh)
    monkeypatch.setattr(common.vllm, "attach", attach)
    if fresh:
        found = found_by("vllm")  # and it does not hold for updates that change next to nothing
        monkeypatch.setattr(gpu, "one_update", lambda *_: {"sample": 1.0})
        with pytest.raises(Mistake, match="hardly moved the student"):
            found_by("vllm")
        assert len(found["away"]) == 3 and max(found["away"]) < 1e-3 < 0.2 < min(found["moved"])
    else:
        with pytest.raises(Mistake, match="is not the student's"):
            found_by("vllm")


def test_what_only_a_card_can_tell(monkeypatch):
    """The lines for a GPU, with its answers made up. The numbers are still the CPU's."""
    card = SimpleNamespace(name="Card X", total_memory=8 * GIB, major=8, minor=6)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda *_: card)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda: None)
    monkeypatch.setattr(torch.cuda, "max_memory_reserved", lambda: 5 * GIB)
    place, found = gpu.Place(True, 600), {}
    place.on_gpu = True
    for more in gpu.machine(place):
        found.update(more)
    assert (found["name"], found["capability"], found["total_bytes"]) == ("Card X", "8.6", 8 * GIB)
    assert "driver" in found
    *_, found = gpu.update("opd", place)
    assert found["reserved_bytes"] == 5 * GIB and found["new_tokens"] == 12
    # With gradient checkpointing the layers make a second forward pass.
    assert found["flop"]["student"] > found_by("opd")["flop"]["student"]


# ------------------------------------------------------------------------ which models


def place_of(gigabytes):
    """A card with so much memory, of which nine tenths are free."""
    place = gpu.Place(True, 600)
    place.on_gpu, place.work, place.dtype = True, gpu.ON_A_CARD, torch.bfloat16
    place.room = round(0.9 * gigabytes * 1e9)
    return place


@pytest.mark.parametrize("method, packages", [("opd", False), ("hindsight_sd", True)])
def test_each_card_gets_the_largest_models_that_fit(monkeypatch, method, packages):
    util = SimpleNamespace(find_spec=lambda name: packages)
    monkeypatch.setattr(gpu, "importlib", SimpleNamespace(util=util))
    largest, ways = gpu.ON_A_CARD.batches[-1], []
    for gigabytes in (8, 12, 24, 80):
        place = place_of(gigabytes)
        way = gpu.choose(method, place, largest)
        models = gpu.models_of(method, way, torch.bfloat16, "meta")
        assert gpu.predicted(method, models, way, place, largest) <= 0.9 * place.room
        ways.append(way)
    # On 8 and 12 GB a Qwen3-0.6B learns only with 8 bits or with adapters.
    for small in ways[:2]:
        assert small.student == ("0.6B" if packages else "0.1B")
        assert (small.adam_bits == 8 or small.lora > 0) == packages
    for large in ways[2:]:
        assert (large.student, large.adam_bits, large.lora) == ("0.6B", 32, 0)
    assert ways[-1].teacher == ("4B" if method == "opd" else "")
    with pytest.raises(Mistake, match="Not even the smallest models"):
        gpu.choose(method, place_of(1), largest)


# ------------------------------------------------------------------------ processes and time


def two_then_sleep(place):
    yield {"a": 1}
    yield {"b": 2}
    time.sleep(600)


def refused(place):
    yield {"a": 1}
    raise Mistake("Close other programs.")


def broken(place):
    raise RuntimeError(f"no kernel in {os.path.expanduser('~')}/lib")
    yield


def killed(place):
    yield {"a": 1}
    os._exit(3)


@forks
@pytest.mark.skipif(not hasattr(os, "fork"), reason="these parts are not in the module")
@pytest.mark.parametrize("part, seconds, expected", [
    (two_then_sleep, 2, {"a": 1, "b": 2, "status": "left out: time, it takes more than 2 s"}),
    (refused, 60, {"a": 1, "status": "failed: Close other programs."}),
    (broken, 60, {"status": "failed: RuntimeError: no kernel in ~/lib"}),
    (killed, 60, {"a": 1, "status": "failed: its process ended with code 3"}),
])
def test_how_a_part_ends(monkeypatch, part, seconds, expected):
    monkeypatch.setitem(gpu.PARTS, "decode", part)
    found = gpu.run_part("decode", True, seconds)
    assert found.pop("part_seconds") < 50 and found == expected


@forks
@pytest.mark.skipif(not hasattr(os, "fork"), reason="the part is not in the module")
def test_on_windows_a_dead_part_breaks_the_pipe(monkeypatch):
    def poll(*_):
        raise BrokenPipeError(109, "The pipe has been ended")
    monkeypatch.setattr(multiprocessing.connection.Connection, "poll", poll)
    monkeypatch.setitem(gpu.PARTS, "decode", killed)
    assert gpu.run_part("decode", True, 60)["status"] == "failed: its process ended with code 3"


def test_what_is_done_is_kept_when_ctrl_c_ends_the_rest(monkeypatch, tmp_path):
    def run_part(name, dry_run, seconds):
        if name == "opd":
            raise KeyboardInterrupt
        return {"status": "done"}
    monkeypatch.setattr(gpu, "run_part", run_part)
    monkeypatch.setattr(sys, "argv", ["gpu.py", "--dry_run", "--out", str(tmp_path)])
    with pytest.raises(KeyboardInterrupt):
        gpu.main()
    record = json.loads((tmp_path / "dry-run.json").read_text(encoding="utf-8"))
    assert list(record["parts"]) == ["machine", "decode"] and record["card"] == "dry run"
    # The next run has a file of its own, one for all its parts.
    monkeypatch.setattr(gpu, "run_part", lambda *_: {"status": "done"})
    gpu.main()
    assert sorted(f.name for f in tmp_path.iterdir()) == ["dry-run-2.json", "dry-run.json"]
    record = json.loads((tmp_path / "dry-run-2.json").read_text(encoding="utf-8"))
    assert list(record) == ["card", *gpu.about(), "parts"] and list(record["parts"]) == list(gpu.PARTS)


def test_the_time_is_shared(monkeypatch):
    now, limits = [0.0], {}

    def run_part(name, dry_run, seconds):
        limits[name] = seconds
        now[0] += seconds if name in ("machine", "opd") else 1
        return {"status": "done"}
    monkeypatch.setattr(gpu, "run_part", run_part)
    monkeypatch.setattr(gpu, "time", SimpleNamespace(monotonic=lambda: now[0]))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name == "vllm")
    *_, parts = gpu.run_parts(True, 9)
    assert limits["machine"] == pytest.approx(2 * 540 / 9) and now[0] < 540
    assert limits["decode"] == pytest.approx(2 * 420 / 8)
    assert limits["grpo"] > limits["topd"]  # what the others have not used
    assert parts["trl"] == {"status": "left out: not installed"} and "trl" not in limits
    now[0], limits = 0.0, {}
    *_, parts = gpu.run_parts(True, 0.05)
    assert parts["machine"]["status"] == "left out: time" and now[0] <= 3


# ------------------------------------------------------------------------ record and table

MACHINE = {"read_bytes_per_second": 9e11, "copied_bytes_per_second": 1e12, "dtype": "bfloat16",
           "flop_per_second": 1e14, "status": "done"}
DECODE = {"student": "0.6B", "rows": 64, "new_tokens": 128, "bytes_per_step": 2e9,
          "plain": {"tokens_per_second": 4000.0, "away": 0.004},
          "recorded": {"tokens_per_second": 16000.0, "away": 0.004}, "status": "done"}
OPD = {"student": "0.6B", "teacher": "1.7B", "adam_bits": 8, "lora": 0, "rollouts": 64,
       "new_tokens": 512, "predicted_bytes": 10 * GIB, "measured_bytes": 9 * GIB,
       "seconds": {"total": 10.0, "sample": 5.0, "teacher": 1.0, "student": 3.0, "step": 0.25},
       "flop": {"teacher": 2e13, "student": 1.5e14}, "status": "done"}


def test_the_table_says_how_near_the_limits_are():
    parts = copy.deepcopy({
        "machine": MACHINE, "decode": DECODE, "opd": OPD,
        "topd": {"student": "0.6B", "teacher": "1.7B", "status": "failed: OutOfMemoryError: x"},
        "vllm": {"away": [0.01], "moved": [3.2], "status": "done"},
        "trl": {"seconds": {"ours": 1.5, "TRL": 3.0}, "status": "done"},
    })
    gpu.add_shares(parts)
    # 64 rows, and a step that cannot be faster than 2 ms.
    assert parts["decode"]["recorded"]["of_bandwidth"] == pytest.approx(0.5)
    assert parts["opd"]["of_peak"] == pytest.approx({"teacher": 0.2, "student": 0.5})
    record = {"card": "Card X", "commit": "abc", "versions": {"torch": "2"}, "parts": parts}
    lines = {line.split()[0]: line for line in gpu.table(record)}
    assert "Card" in lines and set(parts) < set(lines)
    numbers = "10.00 9.00 10.00 5.00 1.00 3.00 0.25 0.00".split()
    assert lines["opd"].split()[1:9] == numbers
    assert "0.6B <- 1.7B adam 8 bits, 64 x 512 tokens" in lines["opd"]
    assert "student 50 % of the peak FLOP/s" in lines["opd"]
    assert "recorded 16,000 tokens/s (50 %)" in lines["decode"]
    assert "recorded / plain 4.00" in lines["decode"]
    assert lines["topd"].endswith("failed: OutOfMemoryError: x")
    assert "away 0.010 nats where the update moved 3.20" in lines["vllm"]
    assert "ratio 0.50" in lines["trl"] and "100.0 TFLOP/s bfloat16" in lines["machine"]


def test_a_table_of_parts_that_were_left_out():
    parts = {name: {"status": "left out: time"} for name in gpu.PARTS}
    gpu.add_shares(parts)
    parts["decode"] = {k: DECODE[k] for k in ("student", "rows", "plain", "status")}
    record = {"card": "unknown card", "commit": None, "versions": {}, "parts": parts}
    assert len(gpu.table(record)) == 3 + len(parts)


def test_earlier_figures_of_a_card_are_kept(tmp_path):
    name = "NVIDIA GeForce RTX 3060 (Laptop)"
    first = gpu.free_file(tmp_path, name)
    assert first.name == "nvidia-geforce-rtx-3060-laptop.json"
    first.write_text("{}")
    second = gpu.free_file(tmp_path, name)
    second.write_text("{}")
    assert second.name == "nvidia-geforce-rtx-3060-laptop-2.json"
    assert gpu.free_file(tmp_path, name).name == "nvidia-geforce-rtx-3060-laptop-3.json"


def test_without_a_gpu_one_sentence(monkeypatch, tmp_path):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for flags, words in ([], "--dry_run"), (["--dry_run", "--minutes", "0"], "--minutes is 0"):
        monkeypatch.setattr(sys, "argv", ["gpu.py", *flags, "--out", str(tmp_path / "cards")])
        with pytest.raises(Mistake, match=words):
            gpu.main()
    assert not (tmp_path / "cards").exists() and (ROOT / "benchmarks/cards/README.md").exists()
