"""What a run shows: the progress bar, the text before and after a run, coloured tokens, pictures.

Texts from models and data are written by strangers. Here they are printed through `harmless`,
so that no control character of theirs reaches the terminal.
"""

import math
import os
import sys
import textwrap
from pathlib import Path

import torch

from common import fits
from common.arguments import harmless
from common.data import prompt_ids
from common.files import replace
from common.memory import memory_budget, peak_memory, resident_memory, room_for_the_run
from common.models import check_head
from common.processes import process
from common.size import human

# ======================================================================== the bar, colours, numbers


def progress(total, label, unit="step", show=None, initial=0):
    """A tqdm bar. show: False hides it, None shows it only on a terminal. Of several processes
    only the first one shows a bar."""
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


# Backgrounds of a terminal with 256 colours: none, yellow, orange, red.
SHADES = [None, 230, 228, 222, 216, 210, 203, 196]


def paint(pieces, values, top):
    """The tokens as one text. The background of a token shows its value: none at 0, over yellow
    to red at `top` and above."""
    painted = []
    for piece, value in zip(pieces, values):
        value = value if math.isfinite(value) else top
        shade = SHADES[min(len(SHADES) - 1, max(0, int(len(SHADES) * value / top)))]
        piece = harmless(piece)
        # Black letters (16), because a terminal's own could be too pale for these backgrounds.
        painted.append(
            piece if shade is None else f"\x1b[48;5;{shade}m\x1b[38;5;16m{piece}\x1b[0m"
        )
    return "".join(painted)


def colours_wanted():
    """NO_COLOR and FORCE_COLOR are conventions that many programs follow."""
    return "NO_COLOR" not in os.environ and (sys.stdout.isatty() or "FORCE_COLOR" in os.environ)


def percent(summary):
    """An accuracy with its 95 % interval."""
    low, high = summary["interval"]
    return f"{100 * summary['accuracy']:.1f} % [{100 * low:.1f}, {100 * high:.1f}]"


def counted(number, noun):
    """1 update, 2 updates."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


# ======================================================================== before a run


def announce(script, run, teacher=None, more=(), teacher_cache=False):
    """Print what is about to happen: models, data, device, memory, and one prompt.

    A user sees here that a wrong model or a wrong data set was chosen, before the first update.
    teacher: None if the student teaches itself.  more: other models that the run keeps.
    teacher_cache: see `memory_budget`.  Sets run.predicted_memory, which `conclude` prints.
    """
    announce_models(script, run, teacher)
    announce_data(run)
    announce_memory(run, teacher, more, teacher_cache)
    # The student's prompt as it sees it, with the special tokens of the chat template.
    ids = prompt_ids(run.tokenizer, run.rows[0]["prompt"])
    print(f"a prompt {harmless(run.tokenizer.decode(ids))!r}")


def announce_models(script, run, teacher):
    """Who learns from whom. Refuses models that do not belong to the tokenizer."""
    args = run.args
    models = [(args.student, run.student)]
    print(f"{script}: student {described(args.student, run.student)}")
    if hasattr(args, "teacher"):  # grpo.py has none: there a checker of answers is the teacher
        print(f"{' ' * len(script)}  teacher {described(args.teacher, teacher)}")
        models += [(args.teacher, teacher)] if teacher is not None else []
    check_head(run.tokenizer, models)


def described(name, model):
    if model is None:  # self-distillation from the weights that are being trained
        return f"{name}  the student itself"
    c, parameters = model.config, sum(p.numel() for p in model.parameters())
    layers = f"{c.num_hidden_layers} layers x {c.hidden_size}"
    # Some heads are padded. What belongs to no token is cut off, wherever logits are computed.
    unused = model.get_output_embeddings().weight.shape[0] - model.vocabulary
    cut = f", {unused} rows of its head are no tokens and are left out" if unused > 0 else ""
    return f"{name}  {c.model_type}, {parameters:,} parameters, {layers}{cut}"


def announce_data(run):
    """How much is learned from what, and on which device."""
    args = run.args
    sizes = {"update": args.steps, "prompt": args.prompts, "rollout": args.samples}
    product = " x ".join(counted(number, noun) for noun, number in sizes.items())
    print(
        f"data     {args.data}: {counted(len(run.rows), 'problem')}; {product} of at most "
        f"{args.max_new_tokens} tokens"
    )
    print(
        f"device   {run.student.device}, {str(run.dtype).split('.')[1]}; folder {args.out}; "
        "--help says how to choose other models and other data"
    )


def announce_memory(run, teacher, more, teacher_cache):
    """The predicted memory of an update. Refuses a run that cannot fit on the GPU."""
    student, device = run.student, run.student.device
    # Nine of ten prompts are no longer than this. The longest one may be an exception.
    prompt = sorted(len(row["ids"]) for row in run.rows)[len(run.rows) * 9 // 10]
    shape = fits.batch_shape(run.args, prompt, student.config.vocab_size)
    room = room_for_the_run(device)
    setup = fits.memory_setup(run.args, student, device, run.dtype, room)
    columns = fits.window_columns(run.args) if teacher_cache else 0
    parts, total = memory_budget(student, teacher, shape, setup, more, columns)
    libraries = 0
    if device.type == "cpu":  # there the process's whole memory is measured, so add the rest of it
        libraries = libraries_bytes(device, (student, teacher, *more))
    run.predicted_memory = total + libraries

    print("memory   " + ", ".join(f"{name} {human(size)}" for name, size in parts.items() if size))
    of_libraries = f", {human(libraries)} of it Python and libraries" if libraries else ""
    print(f"         predicted peak about {human(run.predicted_memory)}{of_libraries}")
    fits.check_memory(
        run.predicted_memory, device, "--prompts, --samples, --max_new_tokens or --micro_tokens"
    )


def libraries_bytes(device, models):
    """Memory in use now without the weights: Python, the libraries, the data."""
    weights = {id(p): p for m in models if m is not None for p in m.parameters()}  # shared: once
    loaded = sum(p.numel() * p.element_size() for p in weights.values())
    return max(0, (resident_memory(device) or 0) - loaded)


def warn_small_gap(student, teacher):
    """Warn if two accuracies are close: the student can gain only what the teacher knows better.
    It is better to say so now than after an hour."""
    if teacher - student < 0.05:
        print(
            "warning: the teacher is hardly better than the student on these problems; "
            "expect a small gain or none"
        )


# ======================================================================== during and after a run


def show_rollout(bar, step, tokenizer, ids, values, top=2.0, what="KL"):
    """Print one decoded rollout. The background of a token shows its value in nats: see `paint`.
    Without colours, tokens above half of `top` stand in brackets. what: the name of the values."""
    pieces, values = [tokenizer.decode([i]) for i in ids], values.tolist()
    if colours_wanted():
        how = f"coloured by {what} from 0 to {top:g} nats:"
        text = paint(pieces, values, top)
    else:
        how = f"tokens with {what} above {top / 2:g} nats in [ ]:"
        text = harmless("".join(f"[{p}]" if v > top / 2 else p for p, v in zip(pieces, values)))
    bar.write(f"--- a rollout of update {step}, {how}")
    bar.write(text)


def conclude(run, baseline):
    """Print accuracy before and after, time, memory, where the files are, and how to compare."""
    rows, args = run.metrics.rows, run.args
    evals, steps = [r for r in rows if "eval" in r], [r for r in rows if "loss" in r]
    first, last = evals[0], evals[-1]
    # Only updates with a loss are counted in tokens. An update that was skipped took time, too.
    seconds = sum(r["seconds"]["total"] for r in rows if "seconds" in r)
    speed = sum(r["tokens"] for r in steps) / max(seconds, 1e-9)
    teacher = ""
    if "teacher_accuracy" in first:
        teacher = f"; teacher {100 * first['teacher_accuracy']:.1f} %"
    print(
        f"before:  {percent(first['eval'])}   after {counted(last['step'], 'update')}:  "
        f"{percent(last['eval'])}   (greedy, {last['eval']['n']} problems of {args.benchmark}"
        f"{teacher})"
    )
    print(
        f"{seconds:.0f} s of training, {speed:,.0f} tokens/s; "
        f"memory: predicted about {human(run.predicted_memory)}, "
        f"measured {human(peak) if (peak := peak_memory(run.device)) else 'not here'}"
    )
    skipped = sum("grad_norm" in r and r["grad_norm"] is None for r in rows)
    if skipped > len(steps) / 20:
        way = "--dtype float32" if run.dtype == torch.float16 else "a lower --lr"
        print(
            f"warning: {skipped} of {len(steps)} updates made no step, because their gradient was "
            f"not finite; {way} may help"
        )
    out = Path(run.out)
    print(
        f"picture: {out / 'curve.png'}   numbers: {out / 'metrics.jsonl'}   model: {out / 'final'}"
    )
    # One run says little: its accuracy has an interval, and another seed ends elsewhere.
    print(
        f"compare: make runs of `{baseline}` with the same flags and a few seeds of both, then: "
        f"python evaluate.py --compare {out} FOLDER ..."
    )


# ======================================================================== pictures


def pyplot():
    """matplotlib's pyplot, drawing into files: a machine without a screen has no windows."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    return plt


def draw_curve(rows, path, title, what, key="kl"):
    """curve.png of a run: on the left accuracy with its interval, on the right `key` of the
    metrics, both over updates. what: the title of the right half."""
    if process()[0] > 0:
        return
    plt = pyplot()
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.7), layout="constrained")
    draw_accuracy(left, rows)
    steps = [r for r in rows if "loss" in r]
    if steps:
        # null in the metrics is a number that was not finite: a gap in the line.
        values = [math.nan if r[key] is None else r[key] for r in steps]
        right.plot([r["step"] for r in steps], values, color="#c0392b")
        unit, top = ("share", 1) if key == "reward" else ("nats per token", None)
        right.set(xlabel="update", ylabel=unit, ylim=(0, top), title=what)
    whole_updates(left)
    whole_updates(right)
    figure.suptitle(title)
    figure.legend(loc="outside lower left", frameon=False, ncols=3)
    # Renamed when it is complete: a viewer that is open never reads half a picture.
    temporary = Path(path).with_suffix(".tmp.png")
    figure.savefig(temporary, dpi=110)
    plt.close(figure)
    try:
        replace(temporary, path)
    except PermissionError:  # on Windows: a viewer has the old picture open
        print(f"'{path}' is open in another program; the new picture is '{temporary}'")


def whole_updates(axis):
    """Ticks at whole numbers only: there is no update 2.5."""
    axis.xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)


def draw_accuracy(axis, rows):
    """The student's accuracy with its interval, and the teacher's. The names stand below the plot:
    inside of it they would cover a curve that rises late."""
    evals = [r for r in rows if "eval" in r]
    updates, blue = [r["step"] for r in evals], "#1f6fb4"
    accuracy = [100 * r["eval"]["accuracy"] for r in evals]
    low = [100 * r["eval"]["interval"][0] for r in evals]
    high = [100 * r["eval"]["interval"][1] for r in evals]
    axis.fill_between(
        updates, low, high, alpha=0.2, color=blue, linewidth=0, label="95 % interval"
    )
    axis.plot(updates, accuracy, "o-", color=blue, label="student, greedy")
    teacher = next((100 * r["teacher_accuracy"] for r in rows if "teacher_accuracy" in r), None)
    if teacher is not None:
        axis.axhline(teacher, color="#888", linestyle="--", label="teacher, greedy")
    axis.set(
        xlabel="update", ylabel="accuracy (%)", ylim=(0, 100), title="accuracy on the benchmark"
    )


def draw_arms(arms, path):
    """Learning curves of several arms: the mean over seeds, and pale lines for the seeds.
    arms: {name: one list of (update, accuracy) per seed}."""
    plt = pyplot()
    # The names stand below the plot, where they cover no curve, and each makes it higher.
    names = [textwrap.fill(name, 90) for name in arms]
    height = 4.2 + 0.2 * sum(name.count("\n") + 1 for name in names)
    figure, axis = plt.subplots(figsize=(7, height), layout="constrained")
    for i, curves in enumerate(arms.values()):
        colour = f"C{i % 10}"
        for curve in curves:
            updates, accuracy = [s for s, _ in curve], [100 * a for _, a in curve]
            axis.plot(updates, accuracy, color=colour, alpha=0.25, linewidth=0.8)
        # A mean only where all seeds were evaluated: elsewhere the line would jump.
        shared = sorted(set.intersection(*({s for s, _ in curve} for curve in curves)))
        mean = [100 * sum(dict(curve)[s] for curve in curves) / len(curves) for s in shared]
        label = names[i] + (f" ({len(curves)} seeds)" if len(curves) > 1 else "")
        axis.plot(shared, mean, "o-", color=colour, label=label)
    axis.set(xlabel="update", ylabel="accuracy (%)")
    whole_updates(axis)
    figure.legend(loc="outside lower left", frameon=False, fontsize="small")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    plt.close(figure)
