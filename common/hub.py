"""Where models and data sets come from: a folder, or the hub. And the sentences for a user whose
model or data set was not found."""

import contextlib
import errno
import json
import os
import socket
import sys
import urllib.parse
from pathlib import Path

from common.arguments import Mistake, require, shorten

ROOT = Path(__file__).resolve().parent.parent

# ======================================================================== folders and the hub


def where(name):
    """toy/student is a folder of this repository, in whatever folder a script is started."""
    here = ROOT / name
    is_toy = Path(name).parts[:1] == ("toy",)  # toy\student on Windows
    in_repository = is_toy and not Path(name).exists() and here.exists()
    return str(here) if in_repository else str(name)


def on_the_hub(name):
    """Is it a model that has to be downloaded? Then it is a large one."""
    return not Path(where(name)).exists()


def read_config(name):
    """The model's config.json as an object, or None if there is none that transformers can read.
    From the hub it is a small file that comes before the weights."""
    from transformers import AutoConfig

    if not Path(where(name)).exists():
        reach_hub()  # a misspelt name without a network: not half a minute of silence
    with contextlib.suppress(Exception):  # loading the model will say what is wrong
        return AutoConfig.from_pretrained(where(name), trust_remote_code=False)


def quiet():
    """transformers prints dozens of lines while it loads. The scripts say what matters."""
    import transformers

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()


def reach_hub():
    """Switch the hub off if its name cannot be resolved.

    Without a network the hub's client repeats every request for half a minute, and prints each
    failure, before the user sees the sentence that matters. Behind a proxy names need not
    resolve on this machine, so then nothing is tested.
    """
    from huggingface_hub import constants

    proxy = os.environ.get("HTTPS_PROXY") or os.environ.get("https_proxy")
    if constants.HF_HUB_OFFLINE or proxy:
        return
    try:
        socket.getaddrinfo(urllib.parse.urlparse(constants.ENDPOINT).hostname, 443)
    except OSError:
        constants.HF_HUB_OFFLINE, os.environ["HF_HUB_OFFLINE"] = True, "1"
        if "datasets" in sys.modules:
            sys.modules["datasets"].config.HF_HUB_OFFLINE = True


def from_the_hub():
    """Show the hub's progress bars, because a download can take half an hour."""
    from huggingface_hub import constants
    from huggingface_hub.utils import enable_progress_bars

    reach_hub()
    if not constants.HF_HUB_DISABLE_PROGRESS_BARS:  # a user who switched them off wants none
        enable_progress_bars()


# ======================================================================== what is said

UNWRITABLE = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR)


def hub_folder(error):
    """A sentence for a folder of the hub's packages that cannot be written to, else ""."""
    from huggingface_hub import constants

    while error is not None:
        if isinstance(error, OSError) and error.errno in UNWRITABLE:
            return (
                f" The hub's packages store what they load in '{constants.HF_HOME}', and that "
                "folder cannot be written to; set the environment variable HF_HOME to another one."
            )
        error = error.__cause__ or error.__context__
    return ""


def missing_model(name, what, error):
    """The sentence for a model, a tokenizer or an adapter that could not be loaded."""
    why = shorten(error, 160)
    if Path(name, "state.pt").exists():
        return (
            f"The checkpoint '{name}' could not be loaded ({type(error).__name__}: {why}). If it "
            "is damaged, move that folder away, and --resume starts from the beginning."
        )
    if Path(name).exists():
        return (
            f"The folder '{name}' holds no {what} that transformers can load "
            f"({type(error).__name__}: {why})."
        )
    return (
        f"There is no {what} '{name}': no such folder, and the model hub did not give it "
        f"({type(error).__name__}).{hub_folder(error)} Check the spelling and the network, or pass "
        "the path of a downloaded model folder."
    )


def refuse_run(name):
    """Refuse the folder of a run or of an evaluation: its config.json holds flags, and its model
    lies further below or somewhere else."""
    config = {}
    with contextlib.suppress(OSError, ValueError):
        config = json.loads(Path(name, "config.json").read_text(encoding="utf-8"))
    if not isinstance(config, dict) or "model_type" in config:
        return
    if "script" in config:
        final, checkpoints = Path(name, "final"), sorted(Path(name).glob("checkpoint-*[0-9]"))
        way = "which has no model yet; let the run go on with --resume."
        if final.exists():
            way = f"and its model is in '{final}'."
        elif checkpoints:
            way = f"which is not finished; its last checkpoint is '{checkpoints[-1]}'."
        raise Mistake(f"'{name}' is the folder of a run of {config['script']}, {way}")
    require(
        not {"model", "benchmark"} <= config.keys(),
        f"'{name}' holds an evaluation of '{config.get('model')}' and no model.",
    )
