"""What no paper talks about, once: arguments, errors, loading, checkpoints, metrics, memory, progress, pictures.

The method files import this and stay free of it. Nothing here knows what distillation is.
"""

import argparse
import ast
import contextlib
import copy
import dataclasses
import difflib
import errno
import importlib.util
import inspect
import json
import logging
import math
import os
import random
import re
import resource
import shlex
import shutil
import signal
import socket
import sys
import tempfile
import textwrap
import time
import urllib.parse
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

# ============================================================================================ errors


class Mistake(Exception):
    """A user's mistake: one sentence that says what is wrong and what to do. Shown without a traceback, exit code 2."""


def require(condition, sentence):
    if not condition:
        raise Mistake(sentence)


def run(main):
    """Call a script's main; end with one sentence where the user, not the program, is at fault."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(AttributeError, ValueError):
            stream.reconfigure(errors="replace")  # a terminal that cannot show a character must not end a run
    if process()[0] > 0:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115  (one of several processes talks)
    try:
        main()
    except Mistake as e:
        print(f"error: {harmless(' '.join(str(e).split()))}", file=sys.stderr)  # it may quote a stranger's data
        sys.exit(2)
    except torch.OutOfMemoryError:
        print(
            "error: The GPU is out of memory; lower --micro_tokens, --max_new_tokens, --prompts or --samples, or choose smaller models. A run "
            "that had begun continues with --resume from its last checkpoint.",
            file=sys.stderr,
        )
        sys.exit(2)
    except OSError as e:
        if e.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO):
            raise
        print(f"error: {harmless(unwritable(e.filename or 'a file', e))}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("\nstopped", file=sys.stderr)
        sys.exit(130)


def unwritable(path, e):
    why = getattr(e, "strerror", None) or " ".join(str(e).split())[:120]
    return (
        f"Writing '{path}' failed ({why}). What was complete before is untouched; make room, then continue a run with --resume, an evaluation "
        "with the same command."
    )


# ============================================================================================ arguments


class Parser(argparse.ArgumentParser):
    """argparse, but a wrong flag gets one sentence, not the usage of forty others; and no abbreviations, which guess."""

    def __init__(self, description):
        super().__init__(description=description, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)

    def error(self, message):
        unknown = re.search(r"unrecognized arguments: (--[\w-]+)", message)
        near = difflib.get_close_matches(unknown[1], self._option_string_actions, 1) if unknown else []
        raise Mistake(message + (f"; did you mean {near[0]}?" if near else "; --help explains all flags."))


def parse_arguments(cls, description, argv=None):
    """Command line from a dataclass: one flag a field; its help is the string literal that stands under the field."""
    docs, body = {}, ast.parse(textwrap.dedent(inspect.getsource(cls))).body[0].body
    for line, following in zip(body, body[1:]):
        if isinstance(line, ast.AnnAssign) and isinstance(following, ast.Expr) and isinstance(following.value, ast.Constant):
            docs[line.target.id] = " ".join(following.value.value.split())
    parser = Parser(description)
    for f in dataclasses.fields(cls):
        named = f.type.__name__ if isinstance(f.type, type) else str(f.type)  # "int", or "int | None"
        kind = {"int": int, "float": float, "str": str, "bool": bool}[named.split(" |")[0]]
        shown = "" if f.default is None else f" (default {f.default})"  # where it depends, the sentence says so
        choices = f.metadata.get("choices")
        if kind is bool:
            parser.add_argument(
                f"--{f.name}", action=argparse.BooleanOptionalAction, default=f.default, help=docs[f.name].replace("%", "%%")
            )
        else:
            parser.add_argument(
                f"--{f.name}",
                type=kind,
                default=argparse.SUPPRESS,
                choices=choices,
                metavar=None if choices else kind.__name__.upper(),
                help=(docs[f.name] + shown).replace("%", "%%"),
            )
    given = vars(parser.parse_args(argv))
    args = cls(**given)
    args.given = set(given)  # what was said, as against what is a default
    return args


def recall(args, default_out):
    """With --resume, every flag that is not given is that of the run which is continued: `--resume --out FOLDER` is enough."""
    args.out = args.out or default_out
    path = Path(args.out) / "config.json"
    if args.resume and path.exists():
        before = read_json(path, "")
        for f in dataclasses.fields(args):
            if f.name in before and f.name not in args.given:
                setattr(args, f.name, before[f.name])


def choice(default, *options):
    return dataclasses.field(default=default, metadata={"choices": options})


# ============================================================================================ files


def write_text(path, text):
    """Under a temporary name, flushed to the disk, then renamed: a reader never sees half a file."""
    path = Path(path)
    temporary = path.with_name(path.name + ".tmp")
    try:
        with open(temporary, "w", encoding="utf-8") as f:
            f.write(text)
            f.flush()
            os.fsync(f.fileno())
        os.replace(temporary, path)
    except OSError:  # a full disk: what was there stays
        temporary.unlink(missing_ok=True)
        raise


def write_json(path, value):
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False) + "\n")


def read_json(path, missing):
    if not Path(path).exists():
        raise Mistake(missing or f"'{path}' is missing.")
    try:
        value = json.loads(Path(path).read_text(encoding="utf-8"))
        if isinstance(value, dict):
            return value
        raise ValueError
    except ValueError:
        raise Mistake(
            f"'{path}' is not the JSON object that a run writes; it was cut off or edited. Delete the folder or choose another one."
        ) from None


def read_jsonl(path, keys=(), drop_broken_end=False):
    """All objects of a JSONL file, each with `keys`. A process killed while writing leaves half a last line: drop it, but only the last."""
    rows, lines = [], Path(path).read_text(encoding="utf-8", errors="replace").split("\n")
    for i, line in enumerate(lines):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            if not isinstance(row, dict) or any(k not in row for k in keys):
                raise ValueError
            rows.append(row)
        except ValueError:
            if drop_broken_end and i >= len(lines) - 2:
                break
            raise Mistake(f"Line {i + 1} of '{path}' is not what was written there; delete that line or the file.") from None
    return rows


def make_folder(path):
    path = Path(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as e:
        raise Mistake(f"Cannot write into '{path}' ({e.strerror}); choose another folder with --out.") from None
    return path


# ============================================================================================ models


def quiet():
    """transformers and the hub announce loading and fallbacks in dozens of lines; the scripts say what matters themselves."""
    import transformers

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()


def reach_hub():
    """Before the first request: does the hub's name resolve? Without network every request would be retried for half a
    minute, aloud, before the sentence that matters. Behind a proxy names need not resolve here, so nothing is asked."""
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE or os.environ.get("HTTPS_PROXY") or os.environ.get("https_proxy"):
        return
    try:
        socket.getaddrinfo(urllib.parse.urlparse(constants.ENDPOINT).hostname, 443)
    except OSError:
        constants.HF_HUB_OFFLINE, os.environ["HF_HUB_OFFLINE"] = True, "1"
        if "datasets" in sys.modules:
            sys.modules["datasets"].config.HF_HUB_OFFLINE = True


def pick_device(name):
    if name == "auto":
        several = f":{os.environ.get('LOCAL_RANK', 0)}" if process()[1] > 1 else ""
        name = f"cuda{several}" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError):
        raise Mistake(
            f"There is no usable device '{name}' here; use --device cpu, or --device auto to let the script choose."
        ) from None
    return device


def compute_dtype(name, device):
    if name == "auto":
        name = "bfloat16" if device.type == "cuda" else "float32"
    return {"float32": torch.float32, "bfloat16": torch.bfloat16}[name]


def no_autocast():
    return contextlib.nullcontext()


def where(name):
    """toy/student means the repository's own, from whatever folder a script is started."""
    ours = Path(__file__).resolve().parent / name
    return str(ours) if str(name).startswith("toy/") and not Path(name).exists() and ours.exists() else str(name)


def load_tokenizer(name):
    from transformers import AutoTokenizer

    quiet()
    name = where(name)
    if not Path(name).exists():
        reach_hub()
    try:
        return AutoTokenizer.from_pretrained(name, trust_remote_code=False)
    except Exception as e:
        raise Mistake(missing_model(name, "tokenizer", e)) from None


def load_model(name, device, dtype):
    """A causal language model from a folder or the hub: safetensors only (a pickle can run code), never code from the hub."""
    from transformers import AutoModelForCausalLM

    quiet()
    name = where(name)
    if not Path(name).exists():
        reach_hub()
    try:
        model = AutoModelForCausalLM.from_pretrained(
            name, dtype=dtype, attn_implementation="sdpa", use_safetensors=True, trust_remote_code=False
        )
    except Exception as e:
        raise Mistake(missing_model(name, "model", e)) from None
    model = model.to(device).eval()
    # The methods run the backbone first and the head on chunks of positions. That is the model's own output only if
    # there is nothing behind the head (some families scale or cap their logits) and no layer with a window of its own.
    kinds = set(getattr(model.config, "layer_types", None) or ["full_attention"])
    require(
        kinds == {"full_attention"},
        f"'{name}' has layers of kind {', '.join(sorted(kinds))}; only models with full attention work here "
        "(Qwen3, Qwen2.5, Llama, SmolLM2 ...).",
    )
    with torch.no_grad():
        ids = torch.arange(4, device=device)[None]
        ours = model.get_output_embeddings()(model.base_model(input_ids=ids).last_hidden_state)
        require(
            torch.allclose(ours, model(input_ids=ids).logits, rtol=1e-3, atol=1e-5),
            f"'{name}' does more to its logits than a linear head; it is not supported.",
        )
    return model


def load_student(args, resumed, device, dtype):
    """The model that learns: all weights in float32, or, with --lora, the weights as they are, frozen, and small adapters in float32."""
    if not args.lora:
        return load_model(resumed or args.student, device, torch.float32)
    torch.manual_seed(args.seed)  # adapters begin at random numbers times zero
    model = adapt(load_model(args.student, device, dtype), args.lora)
    if resumed:
        try:
            load_trained(model, load_file(resumed / "adapter.safetensors"))
        except Exception as e:
            raise Mistake(missing_model(resumed, "adapter", e)) from None
    return model.eval()


def adapt(model, rank):
    """Freeze the model and put a low-rank adapter beside every linear layer but the head."""
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError:
        raise Mistake("--lora needs the package peft: pip install peft.") from None
    model.requires_grad_(False)
    # Injected, not wrapped: the model stays a Qwen3ForCausalLM with base_model and head, which the methods use by name.
    linear = sorted({n.split(".")[-1] for n, m in model.base_model.named_modules() if isinstance(m, torch.nn.Linear)})
    inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=linear), model)
    for p in trainable(model):
        p.data = p.data.float()  # as for full weights: a small step on a bfloat16 number rounds to nothing
    return model


def trainable(model):
    return [p for p in model.parameters() if p.requires_grad]


def copy_of(model):
    """A teacher that starts as the student and goes its own way. What never changes under --lora is shared, not copied."""
    frozen = {id(p): p for p in model.parameters() if not p.requires_grad}
    return copy.deepcopy(model, frozen).requires_grad_(False)


def trained(model):
    """What training changes of a model, or of a copy of it: its adapters, if it has any, else everything."""
    everything = model.state_dict()
    return {k: v for k, v in everything.items() if "lora_" in k} or everything


def load_trained(model, state):
    wanted = trained(model)
    if wanted.keys() != state.keys():
        raise ValueError("it belongs to another model")
    model.load_state_dict(state, strict=False)


def save_model(model, folder, merged):
    """As an ordinary model folder. Adapters are merged into the weights for the end, and kept apart in a checkpoint."""
    adapters = {n: m for n, m in model.named_modules() if hasattr(m, "lora_A")}
    if not adapters:
        model.save_pretrained(folder)
        return
    folder.mkdir()
    if not merged:
        save_file({k: v.contiguous() for k, v in trained(model).items()}, folder / "adapter.safetensors")
        return
    whole = {k: v.float().cpu() for k, v in ordinary_weights(model)}  # in bfloat16 small changes would be lost in the sum
    model.save_pretrained(folder, state_dict=whole)
    config = read_json(folder / "config.json", "")
    write_json(folder / "config.json", {**config, "dtype": "float32"})


@torch.no_grad()
def ordinary_weights(model, head=False):
    """(name, tensor) as in the model's own files: adapters are added to the weights beside which they stand. head: also a head that is the embedding."""
    adapters = {f"{n}.weight": m for n, m in model.named_modules() if hasattr(m, "lora_A")}
    for name, value in model.state_dict().items():
        if "lora_" in name or (name == "lm_head.weight" and model.config.tie_word_embeddings and not head):
            continue
        name = name.replace(".base_layer.", ".")
        yield name, value.float() + adapters[name].get_delta_weight("default").float() if name in adapters else value


def missing_model(name, what, e):
    why = " ".join(str(e).split())[:160]
    if Path(name, "state.pt").exists():
        return f"The checkpoint '{name}' is damaged ({type(e).__name__}: {why}); delete that folder, and --resume starts from the beginning."
    if Path(name).exists():
        return f"The folder '{name}' holds no {what} that transformers can load ({type(e).__name__}: {why})."
    return (
        f"There is no {what} '{name}': no such folder, and the model hub did not give it ({type(e).__name__}). "
        "Check the spelling, the network, or pass the path of a downloaded model folder."
    )


def same_tokenizer(student, teacher):
    """Student and teacher must mean the same by the same id. Equal width is not enough, and unequal heads are no problem.

    (Qwen2.5's 1.5B has 151,936 output rows and its 7B 152,064 with one tokenizer: the rows beyond it are padding.)
    """
    ours, theirs = student.get_vocab(), teacher.get_vocab()
    if ours != theirs:
        differing = [t for t in set(ours) | set(theirs) if ours.get(t) != theirs.get(t)]
        example = min(differing, key=lambda t: ours.get(t, 1 << 40))
        raise Mistake(
            f"Student and teacher have different tokenizers ({len(differing)} of {len(set(ours) | set(theirs))} tokens differ; for example "
            f"{example!r} is {ours.get(example)} for the student and {theirs.get(example)} for the teacher): the teacher would score other "
            "words than the student wrote. Choose two models of one family."
        )
    require(
        student.eos_token_id == teacher.eos_token_id,
        f"Student and teacher end a turn with different tokens ({student.eos_token!r} and {teacher.eos_token!r}); choose two instruct models of one family.",
    )


def check_packages(args):
    """Before anything is loaded: is there what --sampler and --adam_bits ask for?"""
    require(
        0 < args.vllm_memory < 1,
        f"--vllm_memory is {args.vllm_memory}; it is a share of the GPU's memory and must lie between 0 and 1.",
    )
    if args.sampler == "vllm":
        require(
            importlib.util.find_spec("vllm"), "--sampler vllm needs the package vllm, which is not installed: pip install vllm."
        )
        heat = getattr(args, "temperature", 1.0)
        require(heat <= 2, f"--temperature is {heat}; vLLM allows 2 at most, --sampler own any.")
        require(process()[1] == 1, "--sampler vllm works with one process; with several use --sampler own.")
    require(
        getattr(args, "adam_bits", 32) == 32 or importlib.util.find_spec("bitsandbytes"),
        "--adam_bits 8 needs the package bitsandbytes, which is not installed: pip install bitsandbytes.",
    )


def attach_vllm(model, tokenizer, args, dtype):
    print("starting vLLM, which takes a while ...")
    from vllm_sampler import attach  # nobody else needs it

    try:
        attach(model, tokenizer, args, dtype)
    except Mistake:
        raise
    except Exception as e:  # too little memory, a model it does not know, no kernel for this machine ...
        raise Mistake(f"vLLM could not be started ({type(e).__name__}: {shorten(e, 200)}); use --sampler own.") from None


def check_head(tokenizer, models):
    """Wider heads than the tokenizer are common (padding rows, cut off everywhere); a narrower one belongs to another tokenizer."""
    for name, model in models:
        width = model.get_output_embeddings().weight.shape[0]
        require(
            len(tokenizer) <= width,
            f"The tokenizer has {len(tokenizer)} tokens and the head of '{name}' only {width} rows: they do not belong together.",
        )


def check_prompts(tokenizer, prompts, data):
    """Words that a tokenizer does not have become <unk>: then the model is asked something else than the data says."""
    if tokenizer.unk_token_id is None:
        return
    for prompt in prompts:
        ids = tokenizer(prompt, add_special_tokens=False)["input_ids"]
        require(
            tokenizer.unk_token_id not in ids,
            f"The tokenizer of '{tokenizer.name_or_path}' does not know the words of '{data}' "
            f"({shorten(prompt, 60)}); the toy's models only speak the toy's language (--data toy, --benchmark toy).",
        )


def shorten(text, width):
    text = " ".join(str(text).split())
    return text if len(text) <= width else text[: width - 3] + "..."


# ============================================================================================ checkpoints
# One folder a checkpoint: the model as safetensors (fp32 masters), everything else that training depends on in state.pt.
# Written as checkpoint-N.tmp and renamed: a checkpoint that has its name is complete. Sampling and data order are
# functions of (seed, step), so there is no position in the data to store beyond the step; the random states of torch and
# Python are stored all the same, since a fork may come to use them.


def save_checkpoint(out, step, model, tokenizer, optimiser, extra=None):
    final = Path(out) / f"checkpoint-{step:06d}"
    if final.exists() or process()[0] > 0:
        return final
    state = {
        "step": step,
        "optimiser": optimiser.state_dict(),
        "torch_rng": torch.get_rng_state(),
        "cuda_rng": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "python_rng": _flat(random.getstate()),
        **(extra or {}),
    }
    _write_folder(final, model, tokenizer, state)
    _prune(out)  # only now: the new one is complete
    return final


def _write_folder(final, model, tokenizer, state=None):
    """Model, tokenizer and state under a temporary name; renamed when all of it is on the disk."""
    temporary = final.with_suffix(".tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        save_model(model, temporary, merged=state is None)
        tokenizer.save_pretrained(temporary)
        if state is not None:
            torch.save(state, temporary / "state.pt")
        for file in temporary.iterdir():
            with open(file, "rb") as f:
                os.fsync(f.fileno())
        shutil.rmtree(final, ignore_errors=True)
        os.replace(temporary, final)
    except (OSError, RuntimeError, SafetensorError) as e:  # a full disk has all three of these names
        shutil.rmtree(temporary, ignore_errors=True)
        raise Mistake(unwritable(final, e)) from None


def latest_checkpoint(out):
    found = [p for p in Path(out).glob("checkpoint-*") if re.fullmatch(r"checkpoint-\d{6,}", p.name)]
    return max(found, key=lambda p: int(p.name.split("-")[1]), default=None)


def _prune(out):
    newest = latest_checkpoint(out)
    for old in Path(out).glob("checkpoint-*"):
        if old != newest:
            shutil.rmtree(old, ignore_errors=True)


def load_state(checkpoint, optimiser, device):
    """Everything but the weights (those are loaded like any model). Returns the stored dictionary."""
    try:
        state = torch.load(checkpoint / "state.pt", map_location="cpu", weights_only=True)  # never code from a file
        optimiser.load_state_dict(state["optimiser"])
        torch.set_rng_state(state["torch_rng"])
        if device.type == "cuda" and state["cuda_rng"]:
            torch.cuda.set_rng_state_all(state["cuda_rng"])
        version, internal, gauss = state["python_rng"]
        random.setstate((version, tuple(internal), gauss))
    except Exception as e:
        raise Mistake(
            f"The checkpoint '{checkpoint}' is damaged ({type(e).__name__}); delete that folder, and --resume starts from the beginning."
        ) from None
    return state


def _flat(state):
    return [state[0], list(state[1]), state[2]]


def save_final(out, model, tokenizer):
    if process()[0] > 0:
        return
    _write_folder(Path(out) / "final", model, tokenizer)
    _prune(out)  # a run that was killed between writing its last checkpoint and removing the one before never came to it


def open_run(args, script, free=("resume", "device", "save_every", "eval_every", "show_every", "vllm_memory")):
    """The folder of a run. Returns (folder, checkpoint to resume from or None).

    A folder that holds a run is never overwritten, and resuming with other settings is refused: the result would be
    neither of the two runs. Only settings without influence on the weights are `free`.
    """
    out = make_folder(args.out)
    random.seed(args.seed)  # nothing here draws from the global states, but a fork may, and they are part of a checkpoint
    torch.manual_seed(args.seed)
    config = {"script": script, **{k: v for k, v in dataclasses.asdict(args).items() if k not in ("resume",)}}
    held = (out / "config.json").exists()
    if not args.resume:
        require(not held, f"'{out}' already holds a run; continue it with --resume, or choose another --out.")
        require(
            not (out / "metrics.jsonl").exists() and not (out / "responses.jsonl").exists(),
            f"'{out}' holds something else; choose another --out.",
        )
        return out, None
    require(held, f"There is nothing to resume in '{out}'; start without --resume.")
    before = read_json(out / "config.json", "")
    defaults = {f.name: f.default for f in dataclasses.fields(args)}  # a flag that was not there yet when the run began
    changed = [k for k in config if k not in free and before.get(k, defaults.get(k)) != config[k]]
    require(
        not changed,
        f"'{out}' was started with other settings ({', '.join(f'--{k} {before.get(k)}' for k in changed[:4])}); "
        "resume with those, or choose another --out.",
    )
    checkpoint = latest_checkpoint(out)
    if checkpoint is None:
        print(f"no checkpoint in {out} yet: starting from the beginning")
    return out, checkpoint


def write_config(out, args, script):
    """When nothing can be refused any more, and before anything else is written: a run that was refused leaves a folder that can
    be used again, and one that was killed a folder that can be resumed."""
    gather(None)  # all processes have seen the folder as it was
    if process()[0] == 0 and not (Path(out) / "config.json").exists():
        config = {k: v for k, v in dataclasses.asdict(args).items() if k != "resume"}
        write_json(Path(out) / "config.json", {"script": script, **config, "versions": versions()})


def resume_command(script, args):
    """The whole command: the settings that were given stand in config.json, but a command that can be pasted is better."""
    given = [a for a in sys.argv[1:] if a != "--resume"] if Path(sys.argv[0]).name == script else []
    return " ".join(
        [
            "python",
            script,
            *map(shlex.quote, given),
            *([] if "--out" in given else ["--out", shlex.quote(args.out)]),
            "--resume",
        ]
    )


def versions():
    import transformers

    return {"python": sys.version.split()[0], "torch": torch.__version__, "transformers": transformers.__version__}


# ============================================================================================ several GPUs
# `accelerate launch opd.py ...` starts the same script once for every GPU. Prompts to sample and rollouts to score are dealt out
# like cards; what comes of it is exchanged, so that every process knows the whole batch, counts the same tokens and takes the same
# step. Hence nothing in the methods' formulas changes. The first process alone writes files and talks.


def process():
    """(which, of how many)"""
    return int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))


def gather(mine):
    """What every process has, in their order; [mine] if there is one."""
    if process()[1] == 1:
        return [mine]
    try:
        from accelerate import PartialState
        from accelerate.utils import gather_object
    except ImportError:
        raise Mistake(
            "Several processes need the package accelerate: pip install accelerate, then accelerate launch ..."
        ) from None

    PartialState(cpu=not torch.cuda.is_available())  # the first call joins the processes
    return gather_object([mine])


def everyones(by_rollout, *sums):
    """A list that each process filled for its own rollouts, whole; and sums, added up over the processes."""
    device = next((x.device for x in by_rollout if x is not None), None)
    parts = gather(([None if x is None else x.cpu() for x in by_rollout], sums)) if process()[1] > 1 else [(by_rollout, sums)]
    whole = [next((x for x in same if x is not None), None) for same in zip(*(p[0] for p in parts))]
    return [x if x is None or device is None else x.to(device) for x in whole], *(sum(s) for s in zip(*(p[1] for p in parts)))


def add_up(tensors):
    """Every tensor summed over the processes."""
    if process()[1] == 1:
        return tensors
    from accelerate.utils import reduce

    return [reduce(t, "sum") for t in tensors]


# ============================================================================================ data and batches


def prompts_of_step(step, size, total, seed):
    """Rows of update `step` (from 1): one permutation of all rows after another, a function of (seed, step) and so no state."""
    chosen = []
    for place in range((step - 1) * size, step * size):
        epoch, index = divmod(place, total)
        if not chosen or index == 0:
            order = random.Random(f"order-{seed}-{epoch}").sample(range(total), total)
        chosen.append(order[index])
    return chosen


def fitting_prompts(rows, encode, model, max_new_tokens):
    """Rows with their prompt's `ids`; those that do not fit the context are left out, counted and said. Nothing is ever cut:
    a prompt without its end has lost its question."""
    context = getattr(model.config, "max_position_embeddings", None) or 1 << 30
    for row in rows:
        row["ids"] = encode(row)
    kept = [r for r in rows if len(r["ids"]) + max_new_tokens <= context]
    require(
        kept,
        f"No prompt fits: the model's context is {context} tokens, the shortest prompt has {min(len(r['ids']) for r in rows)} and "
        f"--max_new_tokens is {max_new_tokens}; lower --max_new_tokens.",
    )
    if len(kept) < len(rows):
        print(
            f"{len(rows) - len(kept)} of {len(rows)} prompts are too long for the context of {context} tokens and are left out"
        )
    return kept


FULL = 2048  # tokens that keep a device busy: a group that has them grows only where that costs no padding


def micro_batches(lengths, budget, deal=False):
    """Indices in groups whose padded size stays within `budget` tokens; neighbours in length together, so little is padding.
    deal: only this process's share of them.

    One large group is padded to the longest of all texts, which on the toy made 31 % of it padding (benchmarks/speed.py --profile). So from FULL
    tokens on, a group takes no text that would turn more than a sixteenth of it into padding.
    """
    order, groups, real = sorted(range(len(lengths)), key=lambda i: lengths[i]), [], 0
    which, of = process()
    for i in order[which::of] if deal else order:
        size = lengths[i] * (len(groups[-1]) + 1) if groups else 0  # with this text, padding included
        if not groups or size > budget or (real >= FULL and size - real - lengths[i] > size / 16):
            groups.append([])
            real = 0
        groups[-1].append(i)
        real += lengths[i]
    return groups


def padded(lengths, groups):
    """Tokens of all groups together, padding included."""
    return sum(len(group) * max(lengths[i] for i in group) for group in groups)


def pack(prompts, responses, device):
    """Token ids of prompt + response, padded on the right, and where the response is predicted.

    Prompt and response are joined as ids; decoding and tokenizing again could cut the text differently. A position
    predicts the NEXT token, so the first prediction is made at the prompt's last token and the last one before the
    response's last: its end-of-turn token is inside the loss, what stands behind it is not. From lengths, never from pad ids,
    since pad and end-of-turn can be one id. Padding on the right needs no attention mask: no position sees what follows.
    """
    longest = max(len(p) + len(r) for p, r in zip(prompts, responses))
    ids = torch.zeros(len(prompts), longest, dtype=torch.long)  # [B, L]
    predicts = torch.zeros(len(prompts), longest, dtype=torch.bool)  # [B, L]
    for i, (p, r) in enumerate(zip(prompts, responses)):
        ids[i, : len(p) + len(r)] = torch.tensor(p + r)
        predicts[i, len(p) - 1 : len(p) + len(r) - 1] = True
    targets = torch.tensor([token for r in responses for token in r])  # [N], row by row like predicts
    return ids.to(device), predicts.to(device), targets.to(device)


def states(model, ids, predicts):
    """Last hidden states at the predicting positions, [N, width]. The head comes later, chunk by chunk: N x 151,936
    logits of prompt and response would be the largest tensor of the whole run by far."""
    return model.base_model(input_ids=ids, use_cache=False).last_hidden_state[predicts]


# ============================================================================================ steps


def autocaster(device, dtype):
    """A function that makes the context in which the float32 student computes in `dtype`."""
    if dtype == torch.float32:
        return contextlib.nullcontext
    return lambda: torch.autocast(device.type, dtype=dtype)


def checkpoint_layers(model):
    """Keep each layer's input only, and make the rest again in the backward pass."""
    new = getattr(model, "activation_checkpointing_enable", None)  # its name in newer transformers, where the old one warns
    (new or model.gradient_checkpointing_enable)({"use_reentrant": False})


def adamw(model, lr, bits=32, betas=(0.9, 0.999)):
    """AdamW on what learns. With 8 bits the moments are stored in blocks of 256 numbers with one scale each (Dettmers et al., arXiv 2110.02861);
    those of the embedding stay whole, as its authors advise: its gradients are the most uneven, a rare word's come seldom."""
    if bits == 32:  # fused: without the copy of all weights that PyTorch's default makes on a GPU in every step
        return torch.optim.AdamW(trainable(model), lr=lr, betas=betas, weight_decay=0.0, fused=model.device.type == "cuda")
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    from bitsandbytes.optim import AdamW8bit, GlobalOptimManager

    GlobalOptimManager.get_instance().register_module_override(model.get_input_embeddings(), "weight", {"optim_bits": 32})
    return AdamW8bit(trainable(model), lr=lr, betas=betas, weight_decay=0.0)


def moment_bytes(model, bits):
    """Bytes that AdamW keeps: two moments a weight. bitsandbytes leaves tensors below 4,096 numbers and the embedding whole."""
    learning = trainable(model)
    whole = sum(p.numel() for p in learning if bits == 32 or p.numel() < 4096 or p is model.get_input_embeddings().weight)
    return 8 * whole + round((2 + 8 / 256) * (sum(p.numel() for p in learning) - whole))


def clip_and_step(model, optimiser, clip):
    """Clip, step, forget the gradient. Returns the norm before clipping and the share of weights that changed.

    The share is measured on the first 4,096 numbers of every tensor. If it is far below 1, the step is too small for the
    precision of the weights. An update with a norm that is not finite is skipped: it would destroy the weights for good.
    """
    if process()[1] > 1:
        for p in trainable(model):
            p.grad = add_up([torch.zeros_like(p) if p.grad is None else p.grad])[0]
    parameters = [p for p in model.parameters() if p.grad is not None]
    norm = torch.nn.utils.clip_grad_norm_(parameters, clip).item()
    before = [p.detach().flatten()[:4096].clone() for p in parameters]
    if math.isfinite(norm):
        optimiser.step()
    optimiser.zero_grad(set_to_none=True)
    after = [p.detach().flatten()[:4096] for p in parameters]
    return norm, sum((a != b).sum().item() for a, b in zip(after, before)) / sum(b.numel() for b in before)


def within_memory(update, *arguments):
    """Call update(*arguments); if the GPU runs out of memory, halve --micro_tokens and make the same update again. How a batch is cut never changes its
    result, so nothing is lost but time. Said each time it happens; the smaller size stays for the rest of the run."""
    from tqdm import tqdm

    optimiser = next(a for a in arguments if isinstance(a, torch.optim.Optimizer))
    args = next(a for a in arguments if hasattr(a, "micro_tokens"))
    while True:

        def taken():  # steps that the optimiser has made; 0 before its first
            return float(next((s["step"] for s in optimiser.state.values() if "step" in s), 0))

        before = taken()
        try:
            return update(*arguments)
        except torch.OutOfMemoryError:
            require(
                args.micro_tokens > 512 and taken() == before and process()[1] == 1,
                "The GPU is out of memory; lower --max_new_tokens, --prompts or --samples, choose smaller models, and continue with --resume.",
            )
        # Outside of the except block: there the traceback would still hold the tensors of the failed attempt.
        optimiser.zero_grad(set_to_none=True)
        args.micro_tokens //= 2
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        tqdm.write(f"out of memory: the same update again with --micro_tokens {args.micro_tokens}")


class Stopper:
    """Ctrl-C and SIGTERM end a run after the update in progress, with a checkpoint. A second Ctrl-C ends it at once."""

    def __enter__(self):
        self.noticed = False
        self.before = {s: signal.signal(s, self._ask) for s in (signal.SIGINT, signal.SIGTERM)}
        return self

    def _ask(self, number, frame):
        if self.noticed:
            raise KeyboardInterrupt
        self.noticed = True
        print("\nfinishing this update, then saving (press Ctrl-C again to leave at once, without saving)", file=sys.stderr)

    def asked(self):
        """Once an update: a signal may come between two looks, and to one process only."""
        return any(gather(self.noticed))

    def __exit__(self, *_):
        for s, handler in self.before.items():
            signal.signal(s, handler)


# ============================================================================================ metrics


class Metrics:
    """metrics.jsonl: one object a step, and one an evaluation. Resuming forgets what came after the checkpoint.

    A number that is not finite is written as null. An update whose gradient is not finite was skipped (clip_and_step) and is marked; three
    in a row end the run: it would only go on doing nothing.
    """

    def __init__(self, out, resumed_step=None):
        self.path = Path(out) / "metrics.jsonl"
        self.rows = []
        if resumed_step is not None and self.path.exists():
            self.rows = [r for r in read_jsonl(self.path, ["step"], drop_broken_end=True) if r["step"] <= resumed_step]
            gather(None)  # all processes have read it
            if process()[0] == 0:
                write_text(self.path, "".join(json.dumps(r) + "\n" for r in self.rows))

    def add(self, row):
        if not math.isfinite(row.get("grad_norm", 0.0)):
            row = {**row, "skipped": True}
        row = {k: (float(f"{v:.6g}") if math.isfinite(v) else None) if isinstance(v, float) else v for k, v in row.items()}
        self.rows.append(row)
        if process()[0] == 0:
            with open(self.path, "a", encoding="utf-8") as f:
                f.write(json.dumps(row) + "\n")
        last = [r for r in self.rows if "grad_norm" in r][-3:]
        if "grad_norm" in row and len(last) == 3 and all(r["grad_norm"] is None for r in last):
            raise Mistake(
                f"The gradient was not finite in three updates in a row ({last[0]['step']} to {last[-1]['step']}); all three were skipped and the "
                f"weights are unharmed. The last checkpoint is '{latest_checkpoint(self.path.parent) or 'not written yet'}'; start again with a "
                "lower --lr, and look at loss and length of the updates before in metrics.jsonl."
            )


class Clock:
    """Seconds by phase of an update. On a GPU the clock waits for the device, or every phase would take no time."""

    def __init__(self, device):
        self.device, self.seconds, self.total = device, {}, 0.0

    def start(self):
        self.seconds, self.begun = {}, self._now()

    def stop(self):
        self.total = self._now() - self.begun
        return {"total": round(self.total, 4), **{k: round(v, 4) for k, v in self.seconds.items()}}

    def _now(self):
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()

    @contextlib.contextmanager
    def phase(self, name):
        begun = self._now()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + self._now() - begun


def progress(total, label, unit="step", show=None, initial=0):
    """One tqdm bar; `show` False hides it, None shows it on a terminal only."""
    from tqdm import tqdm

    return tqdm(
        total=total,
        desc=label,
        unit=unit,
        initial=initial,
        disable=True if process()[0] else None if show is None else not show,
        dynamic_ncols=True,
        leave=False,
        smoothing=0.1,
        file=sys.stderr,
    )


# ============================================================================================ memory


def peak_memory(device):
    """Bytes at the highest point so far: the allocator's on a GPU, the process's resident memory on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def resident_memory(device):
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device)
    with contextlib.suppress(OSError, ValueError, IndexError):
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return peak_memory(device)


def rows_that_fit(model, tokens):
    """How many texts of `tokens` can be sampled at once: keys and values in half of the GPU's free memory (growing needs room, too)."""
    if model.device.type != "cuda":
        return 256
    free = (
        torch.cuda.mem_get_info(model.device)[0]
        + torch.cuda.memory_reserved(model.device)
        - torch.cuda.memory_allocated(model.device)
    )
    dtype = torch.get_autocast_dtype("cuda") if torch.is_autocast_enabled("cuda") else model.dtype
    return max(1, int(free / 2 // (tokens * cache_bytes(model.config, dtype))))


def cache_bytes(config, dtype):
    """Bytes of the keys and values of one token in all layers."""
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return 2 * config.num_key_value_heads * head_dim * config.num_hidden_layers * torch.tensor([], dtype=dtype).element_size()


def memory_budget(
    student,
    teacher,
    *,
    rollouts,
    prompt_tokens,
    completion_tokens,
    micro_tokens,
    chunk,
    dtype,
    checkpointing,
    teacher_cache=False,
    more=(),
    room=None,
    engine=0,
    adam_bits=32,
):
    """Predicted peak of one update, by part, in bytes. Sampling and training peak at different times: the larger one counts.

    Kept all the time: 4 bytes a weight of the student (fp32 masters), AdamW (moment_bytes), the teacher and other models (`more`) as loaded. With
    --lora the student's weights are as loaded, too, and AdamW and gradients concern the adapters alone.
    While sampling: keys and values of all rollouts. While training: 4 bytes a weight for gradients; what autograd saves for a micro-batch;
    the logits of a chunk (five fp32 copies: of both models, their softmaxes and a gradient) and the head's gradient, which every chunk makes
    anew. What autograd saves of a token in a layer was fitted to measured peaks of random Qwen3 models (benchmarks/memory.py --budget): a
    sum over hidden width, query heads, key heads and MLP width. With checkpointing that is needed for one layer, and 4 bytes a hidden number
    for every layer's input; without, and under autocast, bfloat16 copies of all weights live until the backward pass is through.
    """
    half = dtype != torch.float32
    c = student.config
    count, learning = sum(p.numel() for p in student.parameters()), sum(p.numel() for p in trainable(student))
    head_dim = getattr(c, "head_dim", None) or c.hidden_size // c.num_attention_heads
    queries, keys, layers = c.num_attention_heads * head_dim, c.num_key_value_heads * head_dim, c.num_hidden_layers
    if half:
        saved = 28.5 * c.hidden_size + 10 * queries + 11 * keys + 8 * c.intermediate_size
    else:
        saved = 25.5 * c.hidden_size + 16 * queries + 16 * keys + 17 * c.intermediate_size
    several = micro_tokens < rollouts * (
        prompt_tokens + completion_tokens
    )  # then gradients of the first are there in the second
    inputs = 4 * c.hidden_size * layers * micro_tokens if checkpointing else 0
    full = learning == count  # not with --lora: there the weights lie in the computation's type, and the head gets no gradient
    cast = 2 * count if half and full and not checkpointing else 0
    head = 4 * c.hidden_size * c.vocab_size if full else 0
    own = {id(p) for p in student.parameters()}  # a copy under --lora shares what does not change
    parts = {
        "student weights": sum(p.numel() * p.element_size() for p in student.parameters()),
        "AdamW moments": moment_bytes(student, adam_bits),
        "teacher weights": sum(p.numel() * p.element_size() for p in teacher.parameters() if id(p) not in own)
        if teacher is not None
        else 0,
        "other weights": sum(p.numel() * p.element_size() for m in more for p in m.parameters()),
        "vLLM": engine,  # takes its share at once, the keys and values of the rollouts inside it
        "KV cache while sampling": 0 if engine else rollouts * (prompt_tokens + completion_tokens) * cache_bytes(c, dtype),
        "student gradients": 4 * learning,
        "activations of a micro-batch": round(inputs + micro_tokens * saved * (1 if checkpointing else layers) + cast),
        "logits of a chunk": 5 * 4 * chunk * c.vocab_size + head,
    }
    if teacher_cache:  # TOPD keeps the keys and values of the texts that the teacher has just scored
        parts["teacher's cache of a micro-batch"] = micro_tokens * cache_bytes(teacher.config, dtype) * 3 // 2
    held = sum(parts[k] for k in ("student weights", "AdamW moments", "teacher weights", "other weights", "vLLM"))
    if room is not None:  # the sampler takes fewer rollouts at once where they would not fit (rows_that_fit), one at least
        key = "KV cache while sampling"
        parts[key] = min(parts[key], max(parts[key] // rollouts, int(room - held) // 2))
    # The loss comes first in the backward pass: the logits of its chunks meet all that was saved. Later the layers' gradients come into
    # being while what was saved goes.
    first = parts["activations of a micro-batch"] - (micro_tokens * saved if checkpointing else 0) + parts["logits of a chunk"]
    later = parts["activations of a micro-batch"]
    gradients = parts["student gradients"]
    total = held + max(
        parts["KV cache while sampling"] + (2 * count if half and full else 0),
        first + (gradients if several else head),
        later + (gradients if several or checkpointing else 0),
        gradients,
        parts.get("teacher's cache of a micro-batch", 0) + parts["logits of a chunk"] + (gradients if several else 0),
    )
    return parts, round(total)


def human(size):
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024 or unit == "GiB":
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024


def check_memory(parts, total, device, out_of):
    """Refuse what cannot fit before an hour is spent on it."""
    if device.type == "cuda":
        room = torch.cuda.get_device_properties(device).total_memory
        require(
            total <= room,
            f"This run needs about {human(total)} and the GPU has {human(room)}; lower {out_of}, or choose smaller models.",
        )


# ============================================================================================ colours and pictures


def harmless(text):
    """Model text and data are strangers' text: no control character of theirs reaches the terminal."""
    return "".join(c if c.isprintable() or c == "\n" else f"\\x{ord(c):02x}" for c in text)


def paint(pieces, values, top):
    """Tokens on backgrounds from none (0) over yellow to red (`top` and above), for a terminal with 256 colours."""
    shades = [None, 230, 228, 222, 216, 210, 203, 196]
    said = []
    for piece, value in zip(pieces, values):
        shade = shades[min(len(shades) - 1, max(0, int(len(shades) * value / top)))]
        piece = harmless(piece)
        said.append(piece if shade is None else f"\x1b[48;5;{shade}m\x1b[38;5;16m{piece}\x1b[0m")
    return "".join(said)


def colours_wanted():
    return "NO_COLOR" not in os.environ and (sys.stdout.isatty() or "FORCE_COLOR" in os.environ)


def percent(summary):
    low, high = summary["interval"]
    return f"{100 * summary['accuracy']:.1f} % [{100 * low:.1f}, {100 * high:.1f}]"


def announce(script, args, student, teacher, rows, tokenizer, dtype, checkpointing=False, teacher_cache=False, more=()):
    """Say what is about to happen: models, sizes, memory, and one prompt as the model sees it."""

    def described(name, model):
        if model is None:  # self-distillation from the very weights that are trained
            return f"{name}  the student itself"
        c = model.config
        return f"{name}  {c.model_type}, {sum(p.numel() for p in model.parameters()):,} parameters, {c.num_hidden_layers} layers x {c.hidden_size}"

    check_head(
        tokenizer,
        [(args.student, student), *([(args.teacher, teacher)] if hasattr(args, "teacher") and teacher is not None else [])],
    )
    rollouts = args.prompts * args.samples
    print(f"{script}: student {described(args.student, student)}")
    if hasattr(args, "teacher"):
        print(f"{' ' * len(script)}  teacher {described(args.teacher, teacher)}")
    print(
        f"data     {args.data}: {len(rows)} problems; {args.steps} updates x {args.prompts} prompts x {args.samples} rollouts"
        f" of at most {args.max_new_tokens} tokens"
    )
    print(
        f"device   {student.device}, {str(dtype).split('.')[1]}; folder {args.out}; "
        "other models and data: --student NAME --teacher NAME --data NAME (see --help)"
    )
    prompt = sorted(len(r["ids"]) for r in rows)[len(rows) * 9 // 10]
    card = torch.cuda.get_device_properties(student.device).total_memory if student.device.type == "cuda" else None
    engine = 0
    if args.sampler == "vllm":  # without a GPU: a copy of the weights, and the room for keys and values of vllm_sampler.py
        width = torch.tensor([], dtype=dtype).element_size()
        engine = round(args.vllm_memory * card) if card else 2**30 + sum(p.numel() for p in student.parameters()) * width
    parts, total = memory_budget(
        student,
        teacher,
        rollouts=rollouts,
        prompt_tokens=prompt,
        completion_tokens=args.max_new_tokens,
        micro_tokens=min(args.micro_tokens, rollouts * (prompt + args.max_new_tokens)),
        chunk=min(max(1, args.chunk_logits // student.config.vocab_size), rollouts * args.max_new_tokens),
        dtype=dtype,
        checkpointing=checkpointing,
        teacher_cache=teacher_cache,
        more=more,
        room=card,
        engine=engine,
        adam_bits=args.adam_bits,
    )
    libraries = 0
    if student.device.type == "cpu":  # Python, libraries, data: what is held now, but for the models
        kept = {id(p): p.numel() * p.element_size() for m in (student, teacher, *more) if m is not None for p in m.parameters()}
        libraries = max(0, resident_memory(student.device) - sum(kept.values()))
    total += libraries
    print("memory   " + ", ".join(f"{k} {human(v)}" for k, v in parts.items() if v))
    print(
        f"         predicted peak about {human(total)}"
        + (f", {human(libraries)} of it Python and libraries" if libraries else "")
    )
    check_memory(parts, total, student.device, "--prompts, --samples, --max_new_tokens or --micro_tokens")
    args.predicted_memory = total
    print(f"a prompt {harmless(tokenizer.decode(rows[0]['ids']))!r}")


def warn_small_gap(student, teacher):
    """What the teacher can add is bounded by what it knows more: better said now than after an hour."""
    if teacher["accuracy"] - student["accuracy"] < 0.05:
        print("warning: the teacher is hardly better than the student on these problems; expect a small gain or none")


def show_rollout(bar, step, tokenizer, ids, values, top=2.0):
    """One decoded rollout, tokens coloured by `values` (nats; red from `top` on). Without colours: the worst tokens marked."""
    pieces = [tokenizer.decode([i]) for i in ids]
    bar.write(
        f"--- a rollout of update {step}, "
        + (f"coloured by KL from 0 to {top:g} nats:" if colours_wanted() else f"tokens above {top / 2:g} nats in [ ]:")
    )
    bar.write(
        paint(pieces, values.tolist(), top)
        if colours_wanted()
        else harmless("".join(f"[{p}]" if v > top / 2 else p for p, v in zip(pieces, values.tolist())))
    )


def conclude(out, rows, args, device):
    """The numbers one waited for, and where everything lies."""
    evals, steps = [r for r in rows if "eval" in r], [r for r in rows if "loss" in r]
    first, last = evals[0], evals[-1]
    seconds = sum(r["seconds"]["total"] for r in rows if "seconds" in r)  # updates that were skipped took time, too
    print(
        f"before:  {percent(first['eval'])}   after {last['step']} updates:  {percent(last['eval'])}   "
        f"(greedy, {last['eval']['n']} problems of {args.benchmark}"
        + (f"; teacher {100 * first['teacher_accuracy']:.1f} %)" if "teacher_accuracy" in first else ")")
    )
    print(
        f"{seconds:.0f} s of training, {sum(r['tokens'] for r in steps) / max(seconds, 1e-9):,.0f} tokens/s; "
        f"memory: predicted about {human(args.predicted_memory)}, measured {human(peak_memory(device))}"
    )
    print(f"picture: {Path(out) / 'curve.png'}   numbers: {Path(out) / 'metrics.jsonl'}   model: {Path(out) / 'final'}")


def _axes():
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    return plt


def draw_curve(rows, path, title, divergence="KL(student || teacher)", key="kl"):
    """curve.png of one run: accuracy with its interval, and beside it `key` of the metrics, over updates."""
    if process()[0] > 0:
        return
    plt = _axes()
    evals, steps = [r for r in rows if "eval" in r], [r for r in rows if "loss" in r]
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
    x, y = [r["step"] for r in evals], [100 * r["eval"]["accuracy"] for r in evals]
    low = [100 * r["eval"]["interval"][0] for r in evals]
    high = [100 * r["eval"]["interval"][1] for r in evals]
    left.fill_between(x, low, high, alpha=0.2, color="#1f6fb4", linewidth=0, label="95 % interval")
    left.plot(x, y, "o-", color="#1f6fb4", label="student, greedy")
    teacher = next((100 * r["teacher_accuracy"] for r in rows if "teacher_accuracy" in r), None)
    if teacher is not None:
        left.axhline(teacher, color="#888", linestyle="--", label="teacher, greedy")
    left.set(xlabel="update", ylabel="accuracy (%)", ylim=(0, 100), title="accuracy on the benchmark")
    left.legend(loc="lower right", frameon=False)
    if steps:
        right.plot([r["step"] for r in steps], [math.nan if r[key] is None else r[key] for r in steps], color="#c0392b")
        unit, top = ("nats a token", None) if key == "kl" else ("share", 1)
        right.set(
            xlabel="update", ylabel=unit, ylim=(0, top), title=f"{divergence} on own rollouts" if key == "kl" else divergence
        )
    figure.suptitle(title)
    temporary = Path(path).with_suffix(".tmp.png")
    figure.savefig(temporary, dpi=110)
    plt.close(figure)
    os.replace(temporary, path)


def draw_arms(arms, path):
    """Learning curves of several arms: the mean over seeds, the seeds themselves in the background."""
    plt = _axes()
    figure, axis = plt.subplots(figsize=(7, 4.2), layout="constrained")
    for i, (name, curves) in enumerate(arms.items()):
        colour = f"C{i % 10}"
        for curve in curves:
            axis.plot([s for s, _ in curve], [100 * a for _, a in curve], color=colour, alpha=0.25, linewidth=0.8)
        shared = sorted(set.intersection(*({s for s, _ in c} for c in curves)))
        mean = [100 * sum(dict(c)[s] for c in curves) / len(curves) for s in shared]
        axis.plot(shared, mean, "o-", color=colour, label=f"{name} ({len(curves)} seeds)" if len(curves) > 1 else name)
    axis.set(xlabel="update", ylabel="accuracy (%)")
    axis.legend(frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    plt.close(figure)
