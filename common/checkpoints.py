"""The folder of a run: its settings, metrics, checkpoints and final model.

A checkpoint is one folder. It holds the model as safetensors (float32) and everything else that
training depends on in state.pt. It is written as checkpoint-N.tmp and then renamed, so a
checkpoint with its final name is complete. The order of the data and the samples are functions
of (seed, step), so the step is all that they need. The random states of torch and Python are
stored as well, because a fork may use them.
"""

import dataclasses
import json
import math
import random
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import torch

from common.arguments import Mistake, is_out_of_memory, require, unwritable
from common.files import (
    flush_to_disk,
    lock,
    make_folder,
    places,
    read_json,
    read_jsonl,
    replace,
    unlock,
    write_json,
    write_text,
)
from common.origin import source_hash, versions
from common.processes import gather, process
from common.weights import save_model

# ======================================================================== checkpoints


def save_checkpoint(out, step, model, tokenizer, optimizer, extra=None):
    final = Path(out) / f"checkpoint-{step:06d}"
    if final.exists() or process()[0] > 0:
        return final
    version, internal, gauss = random.getstate()
    state = {
        "step": step,
        "optimizer": optimizer.state_dict(),
        "torch_rng": torch.get_rng_state(),
        "cuda_rng": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "processes": process()[1],
        "python_rng": [version, list(internal), gauss],
        **(extra or {}),
    }
    _write_folder(final, model, tokenizer, state)
    _prune(out)  # only now, when the new one is complete
    return final


def save_final(out, model, tokenizer):
    if process()[0] > 0:
        return
    _write_folder(Path(out) / "final", model, tokenizer)
    # A run that was killed just after its last checkpoint has not yet removed the one before.
    _prune(out)
    unlock(out)  # the run is done: nothing more is written into its folder


def _write_folder(final, model, tokenizer, state=None):
    """Model, tokenizer and state under a temporary name, renamed when all of it is written."""
    temporary = final.with_suffix(".tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        save_model(model, temporary, merged=state is None)
        tokenizer.save_pretrained(temporary)
        if state is not None:
            torch.save(state, temporary / "state.pt")
        for file in temporary.rglob("*"):  # several chat templates lie in a folder of their own
            if file.is_file():
                flush_to_disk(file)
        shutil.rmtree(final, ignore_errors=True)
        replace(temporary, final)
    except Exception as error:  # a full disk raises four kinds, and one of them is Exception
        shutil.rmtree(temporary, ignore_errors=True)
        raise Mistake(unwritable(final, error)) from None


def latest_checkpoint(out):
    name = r"checkpoint-\d{6,}"
    folders = [p for p in Path(out).glob("checkpoint-*") if re.fullmatch(name, p.name)]
    return max(folders, key=lambda p: int(p.name.split("-")[1]), default=None)


def _prune(out):
    newest = latest_checkpoint(out)
    for folder in Path(out).glob("checkpoint-*"):
        if folder != newest:
            shutil.rmtree(folder, ignore_errors=True)


def load_state(checkpoint, optimizer, device):
    """Everything except the weights, which are loaded like any model. Returns the dictionary."""
    try:
        # weights_only: a file with code in it is refused.
        state = torch.load(checkpoint / "state.pt", map_location="cpu", weights_only=True)
        saved = state.get("optimizer") or state["optimiser"]  # its name in older versions
        optimizer.load_state_dict(saved)
        torch.set_rng_state(state["torch_rng"])
        if device.type == "cuda" and state["cuda_rng"]:  # there may be fewer GPUs than before
            torch.cuda.set_rng_state_all(state["cuda_rng"][: torch.cuda.device_count()])
        version, internal, gauss = state["python_rng"]
        random.setstate((version, tuple(internal), gauss))
    except Exception as error:
        if is_out_of_memory(error):  # nothing is wrong with the checkpoint
            raise
        raise Mistake(
            f"The checkpoint '{checkpoint}' could not be loaded ({type(error).__name__}). If it is "
            "damaged, move that folder away, and --resume starts from the beginning."
        ) from None
    _say_where_it_was_written(state, device)
    return state


def _say_where_it_was_written(state, device):
    """Print if the run had another number of processes or GPUs when the checkpoint was written.
    It goes on all the same: however many processes there are, they take the steps of one."""
    cards = len(state["cuda_rng"]) if device.type == "cuda" else 0
    cards_here = torch.cuda.device_count() if device.type == "cuda" else 0
    here = process()[1]
    before = state.get("processes", here)  # older versions did not write it down
    if (before, cards) != (here, cards_here):
        written = " with ".join(_counted(before, cards))
        now = " and ".join(_counted(here, cards_here))
        print(
            f"the checkpoint was written by {written}; it goes on with {now}: the same updates, up "
            "to rounding"
        )


def _counted(processes, cards):
    """["4 processes", "1 GPU"]; without GPUs only the first."""
    words = [f"{processes} process{'' if processes == 1 else 'es'}"]
    return words + [f"{cards} GPU{'' if cards == 1 else 's'}"] * (cards > 0)


# ======================================================================== the folder of a run

# These settings have no influence on the weights but for rounding, so a resumed run may change
# them. Some take less memory: a run that ran out of it must be able to go on. `out` is one of
# them: the same folder has many names (runs/x, ./runs/x/), and it may have been moved.
FREE = (
    "resume", "out", "device", "save_every", "eval_every", "show_every", "vllm_memory",
    "micro_tokens", "chunk_logits", "gradient_checkpointing",
)  # fmt: skip


# This may change, too, because both draw from the same distribution. But the rollouts are others,
# so --compare keeps such runs apart.
MAY_CHANGE = (*FREE, "sampler")


def recall(args, script):
    """With --resume, each flag that is not given is taken from the run that is continued. So
    `--resume --out FOLDER` is enough. script: its name without .py."""
    args.out = args.out or f"runs/{script}-{args.seed}"
    path = Path(args.out) / "config.json"
    if args.resume and path.exists():
        before = read_json(path)
        other = before.get("script", f"{script}.py")
        require(
            other == f"{script}.py",
            f"'{args.out}' holds a run of {other}; continue it with that script, or choose another "
            "--out.",
        )
        for f in dataclasses.fields(args):
            # `out` is where the run lies now, and not where it began: it may have been moved.
            if f.name in before and f.name not in {"out", *args.given}:
                setattr(args, f.name, before[f.name])


def settings(args):
    return {k: v for k, v in dataclasses.asdict(args).items() if k != "resume"}


def open_run(args, script):
    """(folder of the run, checkpoint to continue from or None).

    A folder that holds a run is never overwritten. A run is not continued with other settings,
    because the result would be neither of the two runs.
    """
    out = make_folder(args.out)
    _lock(out)
    # Nothing here draws from the global random states, but a fork may.
    random.seed(args.seed)
    torch.manual_seed(args.seed)
    has_run = (out / "config.json").exists()
    if not args.resume:
        require(
            not has_run,
            f"'{out}' already holds a run; continue it with --resume, or choose another --out.",
        )
        foreign = (out / "metrics.jsonl").exists() or (out / "responses.jsonl").exists()
        require(not foreign, f"'{out}' holds something else; choose another --out.")
        return out, None
    require(has_run, f"There is nothing to resume in '{out}'; start without --resume.")
    before = places(read_json(out / "config.json"))
    # A flag that did not exist when the run began had the value that is its default now.
    defaults = {f.name: f.default for f in dataclasses.fields(args)}
    now = places({"script": script, **settings(args)})
    changed = [k for k in now if k not in MAY_CHANGE and before.get(k, defaults.get(k)) != now[k]]
    flags = ", ".join(f"--{k} {before.get(k)}" for k in changed[:4])
    require(
        not changed,
        f"'{out}' was started with other settings ({flags}); resume with those, or choose another "
        "--out.",
    )
    checkpoint = latest_checkpoint(out)
    if checkpoint is None:
        print(f"no checkpoint in {out} yet: starting from the beginning")
    return out, checkpoint


def _lock(out):
    """Lock the folder for this run. Of several processes the first one does it for all."""
    sentence = None
    if process()[0] == 0:
        try:
            lock(out)
        except Mistake as mistake:
            sentence = str(mistake)
    sentence = gather(sentence)[0]  # so all of them end, and none waits for another
    require(sentence is None, sentence)


def check_problems(out, hashes):
    """Refuse to go on if a data file was edited since the run began. The order of the problems
    would be another one, and some that were trained on could be among the tests."""
    path = Path(out) / "config.json"
    before = read_json(path) if path.exists() else {}
    changed = [k for k, value in hashes.items() if before.get(k, value) != value]
    require(
        not changed,
        f"The problems of --data or --benchmark are not those with which this run began: the file "
        f"was edited. Bring it back as it was, or start a new run with another --out than '{out}'.",
    )


def write_config(out, args, script, more=None):
    """Called when nothing can be refused any more and before anything else is written. So a
    refused run leaves a folder that can be used again, and a killed run one that can be resumed."""
    gather(None)  # wait until all processes have looked into the folder
    path, source = Path(out) / "config.json", source_hash(args)
    if process()[0] > 0:
        return
    if not path.exists():
        about = {"source": source, "versions": versions(), **(more or {})}
        write_json(path, {"script": script, **settings(args), **about})
        return
    # What may change on the way is written down: a further --resume goes on with it. Older
    # versions did not write all of what is known about a run.
    before = read_json(path)
    now = {k: v for k, v in settings(args).items() if k in MAY_CHANGE}
    after = {**(more or {}), **before, **now}
    for key in ("computed_in", "sampled_by"):  # a run that changed on the way is neither of the two
        known = before[key].split("+") if key in before else []  # older versions have none
        if more and known and more.get(key) not in [None, *known]:
            after[key] = "+".join([*known, more[key]])
        elif key not in before:
            after.pop(key, None)
    known = str(before.get("source")).split("+")
    if source is not None and before.get("source") is not None and source not in known:
        # The result is neither the old script's nor the new one's, and --compare must see that.
        print(f"warning: {script} has changed since this run began; the run goes on with it as it "
              "is now, and --compare will count it as an arm of its own")
        after["source"] = "+".join([*known, source])
    if after != before:
        write_json(path, after)


def resume_command(script, args):
    """The whole command that continues a run, ready to be pasted."""
    given = [a for a in sys.argv[1:] if a != "--resume"] if Path(sys.argv[0]).name == script else []
    out = [] if "--out" in given else ["--out", args.out]
    words = ["python", script, *given, *out, "--resume"]
    # The shells of Windows know no single quotes.
    return subprocess.list2cmdline(words) if sys.platform == "win32" else shlex.join(words)


# ======================================================================== metrics


class Metrics:
    """metrics.jsonl: one line per update and one per evaluation. A resumed run forgets what came
    after its checkpoint.

    A number that is not finite is written as null. An update whose gradient is not finite takes
    no step and is marked "skipped". Three of them in a row end the run. In float16 they do so only
    if a smaller scale of the loss (common/weights.py) cannot help.
    """

    def __init__(self, out, resumed_step=None):
        self.path = Path(out) / "metrics.jsonl"
        self.rows = []
        if resumed_step is not None and self.path.exists():
            rows = read_jsonl(self.path, ["step"], drop_broken_end=True)
            self.rows = [r for r in rows if r["step"] <= resumed_step]
            gather(None)  # wait until all processes have read it
            if process()[0] == 0:
                write_text(self.path, "".join(json.dumps(r) + "\n" for r in self.rows))

    def add(self, row):
        if not math.isfinite(row.get("grad_norm", 0.0)):
            row = {**row, "skipped": True}
        row = {k: _short(v) if isinstance(v, float) else v for k, v in row.items()}
        self.rows.append(row)
        if process()[0] == 0:
            with open(self.path, "a", encoding="utf-8") as f:
                f.write(json.dumps(row) + "\n")
        last = [r for r in self.rows if "grad_norm" in r][-3:]
        if "grad_norm" in row and len(last) == 3 and all(map(_hopeless, last)):
            checkpoint = latest_checkpoint(self.path.parent) or "not written yet"
            raise Mistake(
                "The gradient was not finite in three updates in a row "
                f"({last[0]['step']} to {last[-1]['step']}); all three were skipped and the "
                f"weights are unharmed. The last checkpoint is '{checkpoint}'; start again with "
                f"{'--dtype float32 or ' if 'loss_scale' in row else ''}a lower --lr, and look at "
                "loss and length of the updates before in metrics.jsonl."
            )


def _hopeless(row):
    """A skipped update, but not one of float16 with a finite loss: there the scale was too large
    and was halved. (Below 1 the gradient itself is too large.)"""
    halved = row.get("loss") is not None and row.get("loss_scale", 0) >= 1
    return row["grad_norm"] is None and not halved


def _short(number):
    return float(f"{number:.6g}") if math.isfinite(number) else None
