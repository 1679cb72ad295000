"""The folder of a run: metrics.jsonl with updates that are not finite, and what a resumed run
keeps of it."""
import math

import pytest
import torch
from conftest import tiny_qwen3
from helpers import CPU

from common.arguments import Mistake
from common.checkpoints import Metrics, latest_checkpoint, load_state, save_checkpoint
from common.files import read_jsonl
from common.models import load_tokenizer
from common.weights import adamw


def test_updates_that_are_not_finite_are_marked_and_stop_the_run_at_three(tmp_path):
    # That they change no weight is tested with each method's own update.
    metrics = Metrics(tmp_path)
    bad, good = {"loss": math.nan, "grad_norm": math.nan}, {"loss": 1.0, "grad_norm": 1.0}
    metrics.add({"step": 0, "eval": {"accuracy": 0.5}})
    for step, row in enumerate((bad, bad, good, bad, bad), 1):
        metrics.add({"step": step, **row})
    metrics.add({"step": 5, "eval": {"accuracy": 0.5}})     # an evaluation does not count
    with pytest.raises(Mistake, match="three updates in a row .4 to 6.*lower --lr"):
        metrics.add({"step": 6, **bad})
    assert "NaN" not in (tmp_path / "metrics.jsonl").read_text()
    rows = read_jsonl(tmp_path / "metrics.jsonl")
    skipped = [r.get("skipped", False) for r in rows]
    assert skipped == [False, True, True, False, True, True, False, True]
    assert all(r["loss"] is None and r["grad_norm"] is None for r in rows if r.get("skipped"))


def test_an_infinite_gradient_is_not_finite_either(tmp_path):
    metrics = Metrics(tmp_path)
    metrics.add({"step": 1, "loss": 1.0, "grad_norm": math.inf})
    assert read_jsonl(tmp_path / "metrics.jsonl") == [
        {"step": 1, "loss": 1.0, "grad_norm": None, "skipped": True}
    ]


def test_the_message_names_the_last_checkpoint(tmp_path):
    metrics = Metrics(tmp_path)
    (tmp_path / "checkpoint-000002").mkdir()
    bad = {"loss": math.nan, "grad_norm": math.nan}
    metrics.add({"step": 3, **bad})
    metrics.add({"step": 4, **bad})
    with pytest.raises(Mistake, match="3 to 5.*weights are unharmed.*checkpoint-000002"):
        metrics.add({"step": 5, **bad})


def test_a_resumed_run_forgets_what_came_after_its_checkpoint(tmp_path):
    first = Metrics(tmp_path)
    for step in range(1, 6):
        first.add({"step": step, "loss": step / 3, "grad_norm": 1.0})
    with open(tmp_path / "metrics.jsonl", "a") as f:
        f.write('{"step": 6, "lo')                          # killed in the middle of a line
    again = Metrics(tmp_path, resumed_step=3)
    assert again.rows == read_jsonl(tmp_path / "metrics.jsonl") == first.rows[:3]
    again.add({"step": 4, "loss": 9.0, "grad_norm": 1.0})
    losses = [r["loss"] for r in read_jsonl(tmp_path / "metrics.jsonl")]
    assert losses == [0.333333, 0.666667, 1.0, 9.0]


def test_the_latest_checkpoint_is_the_highest_complete_one(tmp_path):
    assert latest_checkpoint(tmp_path) is None
    for name in ("checkpoint-000002", "checkpoint-1000000", "checkpoint-999999",
                 "checkpoint-2000000.tmp", "checkpoint-best"):
        (tmp_path / name).mkdir()
    assert latest_checkpoint(tmp_path).name == "checkpoint-1000000"


def test_a_checkpoint_of_an_older_version_can_be_read(tmp_path):
    model, out = tiny_qwen3(), tmp_path / "checkpoint-000003"
    optimizer = adamw(model, 1e-3)
    model(torch.arange(5)[None]).logits.sum().backward()
    optimizer.step()
    save_checkpoint(tmp_path, 3, model, load_tokenizer("toy/student"), optimizer)
    state = torch.load(out / "state.pt", weights_only=True)
    state["optimiser"] = state.pop("optimizer")             # as it was spelled there
    torch.save(state, out / "state.pt")
    fresh = adamw(model, 1e-3)
    assert load_state(out, fresh, CPU)["step"] == 3
    for p in model.parameters():
        assert torch.equal(fresh.state[p]["exp_avg"], optimizer.state[p]["exp_avg"])
