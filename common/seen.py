"""What methods see in rollouts: as data, and as text for a terminal. No method is named here:
look.py fills the data, and common/page.py makes a page of it.

Texts from models and data are written by strangers. What is printed goes through `harmless`.
"""

import shutil
from dataclasses import dataclass, field

import torch

from common.arguments import harmless
from common.batches import log_probabilities, pack, states
from common.show import colours_wanted, paint

RED_FROM = 2.0  # nats at which a token is fully red, or fully green

# ======================================================================== the data


@dataclass
class View:
    """How one method shows a rollout."""

    about: str  # what is to be seen, for the top of a page
    value: str  # what the number of a token is, "KL(student || teacher)"
    signed: bool = False  # the number can be negative; then green is above 0, and red below
    marked: str = ""  # what an underlined token is
    framed: str = "where the text first goes wrong (toy only)"  # what the frame, or >>>, is


@dataclass
class Seen:
    """What one method sees in one rollout. values, notes and each reader have an entry per
    token."""

    values: list  # the number of a token, which is its colour
    notes: list  # one line about a token
    readers: dict  # {model or prompt: [(word, probability, was it written?) of its favourites]}
    framed: int | None = None  # number of a token
    marked: set = field(default_factory=set)
    numbers: dict = field(default_factory=dict)  # {number of a token: what stands behind it}
    beside: list = field(default_factory=list)  # (name, tokens, framed) of texts to compare with
    said: list = field(default_factory=list)  # lines below the rollout
    more: list = field(default_factory=list)  # and below them: (for a terminal, HTML)


@dataclass
class Rollout:
    problem: str
    tokens: list  # texts
    right: bool
    verdict: str  # one line
    seen: dict  # {method: its Seen, or a sentence that says why it sees nothing here}


# ======================================================================== what a model finds likely


@torch.no_grad()
def score(model, prompt, ids):
    """Log-probabilities [N, V] in front of every token of the rollout."""
    packed, predicts, _ = pack([prompt], [ids], model.device)
    return log_probabilities(model, states(model, packed, predicts))


def of_written(logp, ids):
    """Log-probabilities of the tokens of the rollout: [N], from [N, V]."""
    return logp.gather(1, torch.tensor(ids, device=logp.device)[:, None]).squeeze(1)


def favourites(tokenizer, logp, ids, count=5):
    """The likeliest tokens in front of every token of the rollout, and the one that was written:
    a list of (word, probability, was it written?) per token."""
    best, lists = logp.topk(min(count, logp.shape[1])).indices.tolist(), []  # [N, count]
    for row, y, near in zip(logp, ids, best):
        near = near if y in near else [*near, y]
        words = zip([tokenizer.decode([v]) for v in near], row[near].exp().tolist())
        lists.append([(word, p, v == y) for (word, p), v in zip(words, near)])
    return lists


def offsets(texts):
    """(start, end) of every token in the joined text. Tokens are decoded one by one, which
    is exact for the toy and nearly exact for others."""
    places, end = [], 0
    for text in texts:
        start, end = end, end + len(text)
        places.append((start, end))
    return places


# ======================================================================== colours


def share(nats):
    """How strong the colour of a number is: from -1 to 1, and 0 near 0."""
    strength = max(-1.0, min(1.0, nats / RED_FROM))
    return strength if abs(strength) >= 0.05 else 0.0


def signed(nats):
    """The colour of a number that can be negative, as (red, green, blue): green above 0,
    red below 0, None near 0."""
    strength = share(nats)
    if strength == 0:
        return None
    if strength < 0:
        return 255, 255 - int(150 * -strength), 255 - int(190 * -strength)
    return 255 - int(150 * strength), 255 - int(20 * strength), 255 - int(150 * strength)


# ======================================================================== in a terminal


def as_text(view, name, rollouts):
    """The rollouts as one method sees them."""
    colours = colours_wanted()
    lines = [legend(view, colours)]
    for r in rollouts:
        seen = r.seen[name]
        lines.append(f"\n{harmless(r.problem)}")
        if isinstance(seen, str):
            lines.append(f"  {seen}")
            continue
        for label, tokens, framed in seen.beside:
            line = "".join(in_frame(t) if i == framed else t for i, t in enumerate(tokens))
            lines.append(f"{label}: {harmless(line)}")
        line = ""
        for i, (text, value) in enumerate(zip(r.tokens, seen.values)):
            text = in_frame(text) if i == seen.framed else text
            text += f"({seen.numbers[i]})" if i in seen.numbers else ""
            show = signed_as_text if view.signed else kl_as_text
            line += show(text, value, colours, i in seen.marked)
        label = ("right: " if r.right else "failed: ") if seen.beside else ""
        lines += [label + line, *(f"  {harmless(text)}" for text in (r.verdict, *seen.said))]
        lines += [text for text, _ in seen.more if text]
    return "\n".join(lines)


def in_frame(text):
    return f" >>>{text.strip()}"


def legend(view, colours):
    """What the colours, or the brackets, say."""
    half = f"{RED_FROM / 2:g}"
    if colours:
        how = "green above 0, red below" if view.signed else f"red from {RED_FROM:g} nats"
        text = f"tokens coloured by {view.value}: {how}"
    elif view.signed:
        text = f"[+token+] where {view.value} is above {half}, [-token-] where below -{half}"
    else:
        text = f"tokens in [ ] where {view.value} is above {half} nats"
    if view.marked:
        text += f"; {'underlined' if colours else 'between _ _'}: {view.marked}"
    return f"{text}; >>>: {view.framed}"


def kl_as_text(text, kl, colours, marked=False):
    """A token on a background from yellow to red. Without colours it stands in brackets if
    its KL is above half of RED_FROM. A marked token is underlined, or stands in _ _."""
    if colours:
        return ("\x1b[4m" if marked else "") + paint([text], [kl], RED_FROM) + "\x1b[0m"
    text = harmless(f"[{text}]" if kl > RED_FROM / 2 else text)
    return f"_{text}_" if marked else text


def signed_as_text(text, nats, colours, marked=False):
    """A token on a green or a red background. Without colours, and if it is beyond half of
    RED_FROM, it is written as [+token+] or [-token-]. A marked token: see `kl_as_text`."""
    text, colour = harmless(text), signed(nats)
    if colours:
        # Black letters (16): a terminal's own could be too pale for these backgrounds.
        start = "\x1b[38;5;16m\x1b[48;2;{};{};{}m".format(*colour) if colour else ""
        return ("\x1b[4m" if marked else "") + start + text + "\x1b[0m"
    sign = "-" if nats < -RED_FROM / 2 else "+" if nats > RED_FROM / 2 else ""
    text = f"[{sign}{text}{sign}]" if sign else text
    return f"_{text}_" if marked else text


def columns_as_text(names, columns, width=None, indent=6):
    """Columns of words side by side, behind a column with the names of the rows. If the line is
    full, the next columns stand below it, behind the names again.
    names, columns: lists of equally many words. width: of a line (default: the terminal's)."""
    width = width or min(110, shutil.get_terminal_size((110, 24)).columns) - indent
    blocks, used = [], width
    for column in columns:
        size = max(map(len, column)) + 2
        if used + size > width:
            room = max(map(len, names)) + 2
            blocks.append([" " * indent + name.ljust(room) for name in names])
            used = indent + room
        blocks[-1] = [line + word.ljust(size) for line, word in zip(blocks[-1], column)]
        used += size
    return "\n".join(line.rstrip() for block in blocks for line in block)
