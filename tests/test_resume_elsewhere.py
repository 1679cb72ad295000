"""A checkpoint that was written on another machine: with more GPUs, or by more processes."""
import random

import pytest
import torch
from conftest import tiny_qwen3

from common import checkpoints
from common.arguments import Mistake
from common.checkpoints import load_state, save_checkpoint
from common.models import load_tokenizer
from common.weights import adamw

CUDA, CPU = torch.device("cuda"), torch.device("cpu")
STATES = [torch.ByteTensor([i]) for i in range(4)]


@pytest.fixture
def written(tmp_path, monkeypatch):
    """A function: the checkpoint of a run with so many GPUs and processes, and its optimizer."""
    def write(cards, processes):
        model = tiny_qwen3()
        optimizer = adamw(model, 1e-3)
        with monkeypatch.context() as there:
            there.setattr(torch.cuda, "is_available", lambda: cards > 0)
            there.setattr(torch.cuda, "get_rng_state_all", lambda: STATES[:cards])
            there.setattr(checkpoints, "process", lambda: (0, processes))
            return save_checkpoint(tmp_path, 3, model, load_tokenizer("toy/student"), optimizer), \
                optimizer
    return write


@pytest.mark.parametrize("cards, processes, cards_here, processes_here, said", [
    (4, 4, 1, 1, "written by 4 processes with 4 GPUs; it goes on with 1 process and 1 GPU"),
    (2, 1, 1, 1, "written by 1 process with 2 GPUs; it goes on with 1 process and 1 GPU"),
    (1, 1, 2, 2, "written by 1 process with 1 GPU; it goes on with 2 processes and 2 GPUs"),
    (2, 2, 2, 2, ""),
])
def test_with_fewer_or_more_gpus_a_run_goes_on_and_says_so(
        cards, processes, cards_here, processes_here, said, written, monkeypatch, capsys):
    """torch refuses more random states than there are GPUs. The checkpoint was called damaged, and
    the user was told to delete it."""
    checkpoint, optimizer = written(cards, processes)
    restored = []

    def restore(states):                                # as torch does it
        for i, state in enumerate(states):
            if i >= cards_here:
                raise RuntimeError("invalid device ordinal")
            restored.append(state.item())
    monkeypatch.setattr(torch.cuda, "device_count", lambda: cards_here)
    monkeypatch.setattr(torch.cuda, "set_rng_state_all", restore)
    monkeypatch.setattr(checkpoints, "process", lambda: (0, processes_here))
    assert load_state(checkpoint, optimizer, CUDA)["step"] == 3
    assert restored == list(range(min(cards, cards_here)))
    out = capsys.readouterr().out
    assert (said in out and out.count("\n") == 1) if said else out == ""


def test_a_checkpoint_of_processes_on_a_cpu_goes_on_with_one(written, capsys):
    checkpoint, optimizer = written(0, 2)
    load_state(checkpoint, optimizer, CPU)
    assert "written by 2 processes; it goes on with 1 process" in capsys.readouterr().out


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA"), RuntimeError("MPS backend out of memory")])
def test_no_memory_for_a_checkpoint_is_no_damage(error, written, monkeypatch):
    checkpoint, optimizer = written(0, 1)

    def full(state):
        raise error
    monkeypatch.setattr(optimizer, "load_state_dict", full)
    with pytest.raises(type(error), match=str(error)):         # run_script says what to lower
        load_state(checkpoint, optimizer, CPU)


def test_nobody_is_told_to_delete_a_checkpoint(written):
    checkpoint, optimizer = written(0, 1)
    before = random.getstate(), torch.get_rng_state()
    (checkpoint / "state.pt").write_bytes(b"half")
    with pytest.raises(Mistake, match="If it is damaged, move that folder away") as refused:
        load_state(checkpoint, optimizer, CPU)
    assert "delete that" not in str(refused.value)
    assert random.getstate() == before[0] and torch.equal(torch.get_rng_state(), before[1])
