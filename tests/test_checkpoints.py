"""The folder of a run: metrics.jsonl with updates that are not finite, and what a resumed run
keeps of it."""
import importlib.util
import math
import os
import runpy
import shutil
import sys

import pytest
import torch
from conftest import tiny_qwen3
from helpers import CPU

import opd
from common import files
from common.arguments import Mistake
from common.checkpoints import (
    Metrics,
    check_problems,
    latest_checkpoint,
    load_state,
    open_run,
    recall,
    save_checkpoint,
    save_final,
    write_config,
)
from common.files import read_json, read_jsonl
from common.models import load_tokenizer
from common.origin import source_hash
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


# ------------------------------------------------------------------------ the folder of a run


SCRIPT = '''"""A method."""
from dataclasses import dataclass


@dataclass
class Args:
    out: str | None = None
    """folder"""
    seed: int = 0
    """seed"""
    resume: bool = False
    """go on"""


def loss(x):
    return x  # the loss
'''


def arguments(folder, source=SCRIPT, **flags):
    """The Args of a script with this source."""
    folder.mkdir(exist_ok=True)
    path = folder / "mine.py"
    path.write_text(source)
    spec = importlib.util.spec_from_file_location(f"mine_{folder.name}", path)
    sys.modules[spec.name] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    args = module.Args(**flags)
    args.given = set(flags)
    return args


def test_a_run_is_resumed_under_every_name_of_its_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    args = arguments(tmp_path / "code", out="runs/x")
    write_config(open_run(args, "mine.py")[0], args, "mine.py")
    files.unlock("runs/x")
    for out in ("runs/x/", "./runs/x", str(tmp_path / "runs/x"), "runs/../runs/x"):
        args = arguments(tmp_path / "code", out=out, resume=True)
        recall(args, "mine")
        assert args.out == out and open_run(args, "mine.py")[1] is None
        files.unlock(out)
    shutil.move("runs/x", "runs/mine-0")                # moved, and not even named
    args = arguments(tmp_path / "code", resume=True)
    recall(args, "mine")
    assert args.out == "runs/mine-0" and open_run(args, "mine.py")[0].name == "mine-0"
    args = arguments(tmp_path / "code", resume=True, seed=1, out="runs/mine-0")
    recall(args, "mine")
    with pytest.raises(Mistake, match="started with other settings .--seed 0"):
        open_run(args, "mine.py")
    with pytest.raises(Mistake, match="'runs/mine-0' holds a run of mine.py; continue it with"):
        recall(arguments(tmp_path / "code", resume=True, out="runs/mine-0"), "opd")


def test_the_config_knows_the_code_of_its_script(tmp_path):
    first = arguments(tmp_path / "a", out=str(tmp_path / "run"))
    write_config(open_run(first, "mine.py")[0], first, "mine.py")
    config = read_json(tmp_path / "run/config.json")
    assert config["source"] == source_hash(first) and len(config["source"]) == 16
    # Comments and texts are not code. So an arm does not fall apart when one is mended.
    text = SCRIPT.replace("# the loss", "# the same loss").replace("folder", "a folder")
    assert source_hash(arguments(tmp_path / "b", text)) == config["source"]
    assert source_hash(arguments(tmp_path / "c", SCRIPT.replace("x  #", "2 * x  #"))) not in (
        None, config["source"])
    # A class that was typed into an interpreter has no file.
    assert source_hash(type("Args", (), {"__module__": "nowhere"})()) is None


def test_a_fork_that_imports_its_flags_has_a_hash_of_its_own(tmp_path, monkeypatch):
    """It had the hash of the script from which it took the flags, whatever it changed."""
    hashes = []
    for name, factor in (("a", 1), ("b", 2), ("c", 2)):
        path = tmp_path / f"{name}.py"
        path.write_text("from common.flags import parse\nfrom opd import Args\n"
                        f"def loss(x):\n    return {factor} * x  # {name}\n"
                        'args = parse(Args, "", [], "mine")\n')
        hashes.append(source_hash(runpy.run_path(str(path))["args"]))
    assert hashes[1] == hashes[2] != hashes[0] and None not in hashes
    # What is typed into an interpreter has no file, so nobody knows what it does.
    space = {}
    exec("from common.flags import parse\nfrom opd import Args\nargs = parse(Args, '', [], 'opd')", space)
    assert source_hash(space["args"]) is None
    # Args of the file itself: one file, one hash.
    assert source_hash(opd.Args()) not in hashes


def test_a_fork_whose_loss_stands_in_a_file_beside_it_has_a_hash_of_both(tmp_path, monkeypatch):
    """Two methods would be one arm if the file of the loss did not count."""
    hashes = []
    for name, factor in (("a", 1), ("b", 2), ("c", 2)):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "my_losses.py").write_text(f"def loss(x):\n    return {factor} * x  # {name}\n")
        monkeypatch.syspath_prepend(str(folder))
        sys.modules.pop("my_losses", None)
        source = SCRIPT + "\n\nfrom my_losses import loss\nfrom common import data\n"
        hashes.append(source_hash(arguments(folder, source)))
    assert hashes[1] == hashes[2] != hashes[0] and None not in hashes
    sys.modules.pop("my_losses", None)


def test_a_place_is_the_same_under_all_its_names(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs/x").mkdir(parents=True)
    (tmp_path / "own.jsonl").write_text("")
    for name in ("runs/x/", "./runs/x", str(tmp_path / "runs/x"), "runs/../runs/x"):
        assert files.place(name) == os.path.join("runs", "x")
    for name in ("own.jsonl", "./own.jsonl", str(tmp_path / "own.jsonl")):
        assert files.place(name) == "own.jsonl"
        assert files.place(name + ":held-out") == "own.jsonl:held-out"
    # What is no path here is a name on the hub, or nothing that is here.
    for name in ("Qwen/Qwen3-0.6B", "gsm8k", "./nowhere", None, 3):
        assert files.place(name) == name


def test_a_run_is_resumed_under_every_name_of_its_files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own.jsonl").write_text("")
    source = SCRIPT.replace("    seed: int = 0", '    data: str = "toy"\n    """data"""\n    seed: int = 0')
    args = arguments(tmp_path / "code", source, out="runs/x", data="./own.jsonl")
    write_config(open_run(args, "mine.py")[0], args, "mine.py")
    for name in ("own.jsonl", str(tmp_path / "own.jsonl")):
        files.unlock("runs/x")
        args = arguments(tmp_path / "code", source, out="runs/x", resume=True, data=name)
        assert open_run(args, "mine.py")[1] is None
    (tmp_path / "other.jsonl").write_text("")
    files.unlock("runs/x")
    args = arguments(tmp_path / "code", source, out="runs/x", resume=True, data="other.jsonl")
    with pytest.raises(Mistake, match="was started with other settings .--data own.jsonl"):
        open_run(args, "mine.py")


def test_an_error_of_the_tokenizer_s_package_leaves_no_half_a_model(tmp_path):
    """On a full disk it raises a bare Exception."""
    class Full:
        def save_pretrained(self, folder):
            raise Exception("File too large (os error 27)")
    with pytest.raises(Mistake, match="File too large"):
        save_final(str(tmp_path), tiny_qwen3(), Full())
    assert list(tmp_path.iterdir()) == []


def test_a_run_that_goes_on_with_another_script_is_neither_of_the_two(tmp_path, capsys):
    out = str(tmp_path / "run")
    first = arguments(tmp_path / "a", out=out)
    write_config(open_run(first, "mine.py")[0], first, "mine.py")
    changed = arguments(tmp_path / "b", SCRIPT.replace("x  #", "2 * x  #"), out=out, resume=True)
    write_config(open_run(changed, "mine.py")[0], changed, "mine.py")
    both = f"{source_hash(first)}+{source_hash(changed)}"
    assert read_json(tmp_path / "run/config.json")["source"] == both
    assert "mine.py has changed since this run began" in capsys.readouterr().out
    write_config(open_run(changed, "mine.py")[0], changed, "mine.py")
    assert read_json(tmp_path / "run/config.json")["source"] == both        # once is enough


def test_two_runs_in_one_folder(tmp_path):
    from test_files import holder
    (tmp_path / "run").mkdir()
    process = holder(tmp_path / "run")
    try:
        for resume in (False, True):
            args = arguments(tmp_path / "a", out=str(tmp_path / "run"), resume=resume)
            with pytest.raises(Mistake, match="Another process works in"):
                open_run(args, "mine.py")
    finally:
        process.kill()
        process.wait()
        process.stdin.close(), process.stdout.close()
    args = arguments(tmp_path / "a", out=str(tmp_path / "run"))
    out, _ = open_run(args, "mine.py")
    save_final(out, tiny_qwen3(), load_tokenizer("toy/student"))
    process = holder(out)                               # a run that is done has no lock
    process.kill()
    process.wait()
    process.stdin.close(), process.stdout.close()


def test_a_tokenizer_with_several_chat_templates_is_saved(tmp_path):
    """transformers writes the others into a folder beside the files."""
    tokenizer, model = load_tokenizer("toy/student"), tiny_qwen3()
    tokenizer.chat_template = {"default": tokenizer.chat_template, "tool_use": "x"}
    folder = save_checkpoint(tmp_path, 1, model, tokenizer, adamw(model, 1e-3))
    assert (folder / "state.pt").exists()
    assert load_tokenizer(str(folder)).chat_template == tokenizer.chat_template


@pytest.mark.parametrize("flag, value", [("micro_tokens", 512), ("chunk_logits", 4096), ("gradient_checkpointing", True)])
def test_a_run_that_is_short_of_memory_is_resumed_with_less(flag, value, tmp_path):
    """These flags never change the result, and the sentences for too little memory name them."""
    from opd import Args
    args = Args(out=str(tmp_path / "run"), seed=3)
    write_config(open_run(args, "opd.py")[0], args, "opd.py")
    files.unlock(tmp_path / "run")
    again = Args(out=str(tmp_path / "run"), seed=3, resume=True, **{flag: value})
    assert open_run(again, "opd.py")[1] is None
    files.unlock(tmp_path / "run")


def test_what_changed_on_the_way_is_remembered(tmp_path):
    """A run goes on with smaller pieces. The next --resume must not take the old ones again."""
    from opd import Args

    def start(given, more, **flags):
        args = Args(out=str(tmp_path / "run"), **flags)
        args.given = given
        recall(args, "opd")
        write_config(open_run(args, "opd.py")[0], args, "opd.py", more)
        files.unlock(tmp_path / "run")
        return args
    start(set(), None, seed=0)
    start({"micro_tokens"}, {"tested_on": "a"}, resume=True, micro_tokens=2048)
    assert start(set(), None, resume=True).micro_tokens == 2048
    config = read_json(tmp_path / "run/config.json")
    assert config["micro_tokens"] == 2048 and config["tested_on"] == "a"    # an older version had none
    with pytest.raises(Mistake, match="not those with which this run began"):
        check_problems(tmp_path / "run", {"tested_on": "b"})
    check_problems(tmp_path / "run", {"tested_on": "a", "trained_on": "new"})


def test_a_run_whose_vllm_fails_goes_on_with_the_own_sampler(tmp_path):
    from opd import Args
    args = Args(out=str(tmp_path / "run"), sampler="vllm")
    write_config(open_run(args, "opd.py")[0], args, "opd.py")
    files.unlock(tmp_path / "run")
    again = Args(out=str(tmp_path / "run"), resume=True)
    assert open_run(again, "opd.py")[1] is None
    files.unlock(tmp_path / "run")


def test_a_run_with_two_samplers_or_two_precisions_is_neither(tmp_path):
    from common.results import read_run
    from opd import Args

    def start(about, **flags):
        args = Args(out=str(tmp_path / "run"), steps=120, **flags)
        write_config(open_run(args, "opd.py")[0], args, "opd.py", about)
        files.unlock(tmp_path / "run")
    start({"computed_in": "bfloat16", "sampled_by": "vllm"}, sampler="vllm")
    for _ in range(2):
        start({"computed_in": "float32", "sampled_by": "own"}, resume=True)
    config = read_json(tmp_path / "run/config.json")
    assert config["computed_in"] == "bfloat16+float32" and config["sampled_by"] == "vllm+own"
    assert config["sampler"] == "own"               # with which a further --resume goes on
    (tmp_path / "run/metrics.jsonl").write_text('{"step": 120, "eval": {"accuracy": 0.5, "n": 9}}\n')
    run = read_run(tmp_path / "run")
    assert run.settings["sampler"] == "vllm+own" and run.computed_in == "bfloat16+float32"


def test_a_run_of_an_older_version_that_is_resumed_stays_in_its_arm(tmp_path):
    from opd import Args
    args = Args(out=str(tmp_path / "run"), steps=1)
    write_config(open_run(args, "opd.py")[0], args, "opd.py")           # nothing is known about how
    files.unlock(tmp_path / "run")
    again = Args(out=str(tmp_path / "run"), steps=1, resume=True)
    write_config(open_run(again, "opd.py")[0], again, "opd.py", {"computed_in": "float32", "sampled_by": "own"})
    files.unlock(tmp_path / "run")
    assert not {"computed_in", "sampled_by"} & read_json(tmp_path / "run/config.json").keys()
