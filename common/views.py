"""What each model is shown, side by side, before the first update; and how much more a teacher
knows than its student.

A self-teacher differs from its student in its prompt alone. That prompt may show too much (the
whole solution in place of the answer) or too little. Then every number of the run means
something else, and nothing else in the run shows it.
"""

import shutil
import textwrap

import torch

from common.arguments import harmless
from common.batches import Collected, log_probabilities, states

FIRST, LAST = 6, 4  # lines of a long view that are printed: its beginning, and its end
SOLUTIONS = 64  # worked solutions on which two models are compared


def print_views(row, **shown):
    """Print what the models are shown for one row.  shown: {model: the user's turn, or None if it
    is shown nothing}.  Models that are shown the same share a column."""
    width = min(120, shutil.get_terminal_size().columns) - 1
    for line in side_by_side(row, shown, width):
        print(line)


def side_by_side(row, shown, width):
    """The lines: the prompt and the gold, then one column per view, cut to the width."""
    columns = {}  # {user's turn: the models that are shown it}
    for model, text in shown.items():
        columns.setdefault(text, []).append(model.replace("_", " "))
    lines = [
        f"shown    prompt  {in_the_middle(harmless(row['prompt']), width - 17)}",
        f"         gold    {in_the_middle(harmless(row['answer']), width - 17)}",
    ]
    if len(columns) == 1:
        return [*lines, f"         {' and '.join(*columns.values())}: the prompt and nothing else"]
    wide = (width - 9) // len(columns) - 3
    blocks = []
    for text, models in columns.items():
        heading = in_the_middle(", ".join(models), wide)
        blocks.append([heading, "-" * len(heading), *wrapped(text, row["prompt"], wide)])
    for i in range(max(map(len, blocks))):
        cells = [block[i] if i < len(block) else "" for block in blocks]
        lines.append("         " + " | ".join(f"{cell:<{wide}}" for cell in cells).rstrip())
    return lines


def wrapped(text, prompt, wide):
    """The lines of a column. The prompt is known already. So it is only named."""
    if text is None:
        return ["(nothing: it is", "left out)"]
    paragraphs = harmless(text.replace(prompt, "(the prompt)", 1)).split("\n")
    lines = [line for p in paragraphs for line in textwrap.wrap(p, wide) if line.strip()]
    if len(lines) > FIRST + LAST + 1:
        lines = [*lines[:FIRST], "...", *lines[-LAST:]]
    return lines


def in_the_middle(text, width):
    """The text on one line of at most `width` characters, cut in its middle: the beginning says
    what it is about, and the end is where an instruction stands."""
    text = " ".join(text.split())
    if len(text) <= width:
        return text
    tail = (width - 5) // 3
    return f"{text[: width - 5 - tail]} ... {text[len(text) - tail :]}"


# ======================================================================== what the teacher knows


def say_margin(run, student, teacher):
    """Print how much likelier the teacher finds the tokens of worked solutions. Where that is
    little, there is little to learn from it. For data without solutions nothing is printed."""
    rows = [r for r in run.rows[:SOLUTIONS] if (r.get("solution") or "").strip()]
    if not rows:
        return
    prompts, longest = [r["ids"] for r in rows], run.args.max_new_tokens
    texts = [run.tokenizer(r["solution"], add_special_tokens=False)["input_ids"] for r in rows]
    solutions = [ids[:longest] for ids in texts]
    means = [mean_logp(run, model, prompts, solutions) for model in (student, teacher)]
    print(
        f"margin   log p of a token of {len(rows)} worked solutions: student {means[0]:.3f}, "
        f"teacher {means[1]:.3f}, so the teacher is {means[1] - means[0]:.3f} nats ahead"
    )


@torch.no_grad()
def mean_logp(run, model, prompts, responses):
    """The mean log-probability that a model gives the tokens of all responses."""
    compute, collected = run.compute, Collected(responses)

    def of_positions(hidden, targets):
        logp = log_probabilities(model, hidden)  # [n, V]
        return 0.0, logp.gather(1, targets[:, None])  # [n, 1]

    for chosen in compute.micro_batches(prompts, responses):
        ids, predicts, targets = compute.pack(prompts, responses, chosen)
        with compute.autocast():
            hidden = states(model, ids, predicts)  # [N, width]
            _, logp = compute.in_chunks(of_positions, hidden, targets)
        collected.add(chosen, logp)
    (by_rollout,) = collected.everyone()
    return torch.cat(by_rollout).mean().item()
