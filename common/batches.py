"""Batches: which prompts an update takes, how rollouts are packed into tensors, and how the work
is cut so that it fits into memory.

    token ids         prompt                 response                padding
                      5   6   7              3   4   1               0   0
    predicts          .   .   x              x   x   .               .   .
    targets                                  3   4   1

A position predicts the NEXT token. So the first token of the response (3) is predicted at the
last token of the prompt (7), and the end-of-turn token (1) is predicted at the token before it.
What the end-of-turn token itself predicts is not part of the loss.
"""

import contextlib
import random
import time

import torch
from torch.utils.checkpoint import checkpoint

from common.arguments import require
from common.models import autocaster
from common.processes import everyones, process
from common.weights import LossScale

# ======================================================================== prompts


def prompts_of_step(step, size, total, seed):
    """Row numbers of update `step` (the first is 1). The rows are shuffled once per epoch.

    The result is a function of (seed, step), so a resumed run needs no position in the data.
    """
    chosen = []
    for place in range((step - 1) * size, step * size):
        epoch, index = divmod(place, total)
        if not chosen or index == 0:
            order = random.Random(f"order-{seed}-{epoch}").sample(range(total), total)
        chosen.append(order[index])
    return chosen


def context_of(config):
    """The most tokens of one text, from a model's config. Without a config there is no limit.

    "longrope" (Phi-3) computes every position otherwise where a batch has a longer text than the
    original context. So there the original context is the limit.
    """
    rope = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    longest = getattr(config, "max_position_embeddings", None) or 1 << 30
    if "longrope" in (rope.get("rope_type"), rope.get("type")):
        original = rope.get("original_max_position_embeddings")
        original = original or getattr(config, "original_max_position_embeddings", None)
        longest = min(longest, original or longest)
    return longest


def fitting_prompts(rows, encode, models, max_new_tokens, what="prompts"):
    """The rows whose prompt and response fit into the context of all models, the prompt's ids in
    row["ids"]. The others are left out, and their number is printed.

    No prompt is ever cut: without its end it has lost the question.
    """
    context = min(context_of(model.config) for model in models)
    for row in rows:
        row["ids"] = encode(row)
    kept = [r for r in rows if len(r["ids"]) + max_new_tokens <= context]
    require(
        kept,
        f"No {what.removesuffix('s')} fits: the model's context is {context} tokens, the shortest "
        f"prompt has {min(len(r['ids']) for r in rows)} and --max_new_tokens is {max_new_tokens}; "
        "lower --max_new_tokens.",
    )
    if len(kept) < len(rows):
        print(
            f"{len(rows) - len(kept)} of {len(rows)} {what} are too long for the context of "
            f"{context} tokens and are left out"
        )
    return kept


# ======================================================================== micro-batches

FULL = 2048  # so many tokens keep a device busy; more of them only save the start of a pass


def micro_batches(lengths, budget, deal=False):
    """Indices in groups. The padded size of a group is at most `budget` tokens.
    deal: only the share of this process.

    Texts of similar length go together, because a group is padded to its longest text. With one
    large group a third of the toy's tokens was padding. So a group that has FULL tokens takes no
    further text that would turn more than a sixteenth of the group into padding.
    """
    order = sorted(range(len(lengths)), key=lambda i: lengths[i])
    if deal:
        which, of = process()
        order = order[which::of]
    groups, real = [], 0  # real: tokens of the last group, without padding
    for i in order:
        padded_size = lengths[i] * (len(groups[-1]) + 1) if groups else 0  # with this text
        wasteful = real >= FULL and padded_size - real - lengths[i] > padded_size / 16
        if not groups or padded_size > budget or wasteful:
            groups.append([])
            real = 0
        groups[-1].append(i)
        real += lengths[i]
    return groups


def padded(lengths, groups):
    """Tokens of all groups together, padding included."""
    return sum(len(group) * max(lengths[i] for i in group) for group in groups)


def pack(prompts, responses, device):
    """ids [B, L], predicts [B, L] and targets [N]: see the picture at the top of this file.

    Prompt and response are joined as ids. If the text were decoded and tokenized again, it could
    be cut into other tokens. `predicts` is made from lengths and never from pad ids, because pad
    and end-of-turn can be the same id. Padding is on the right and needs no attention mask: no
    position attends to what comes after it.
    """
    longest = max(len(p) + len(r) for p, r in zip(prompts, responses))
    ids = torch.zeros(len(prompts), longest, dtype=torch.long)  # [B, L]
    predicts = torch.zeros(len(prompts), longest, dtype=torch.bool)  # [B, L]
    for i, (p, r) in enumerate(zip(prompts, responses)):
        ids[i, : len(p) + len(r)] = torch.tensor(p + r)
        predicts[i, len(p) - 1 : len(p) + len(r) - 1] = True
    targets = torch.tensor([token for r in responses for token in r])  # [N], row by row
    return ids.to(device), predicts.to(device), targets.to(device)


# ======================================================================== from ids to log p


def states(model, ids, predicts):
    """Last hidden states at the predicting positions, [N, width].

    The head comes later, on a few positions at a time. With Qwen3's 151,936 tokens the logits of
    a whole batch would be the largest tensor of the run by far.
    """
    return model.base_model(input_ids=ids, use_cache=False).last_hidden_state[predicts]


def log_probabilities(model, hidden, temperature=1.0):
    """[n, V] from hidden states [n, width]. Always in float32, always normalised.

    A head can have more rows than the tokenizer has tokens. The rest is cut off in all models.
    """
    logits = apply_head(model.get_output_embeddings(), hidden)  # [n, rows of the head]
    logits = logits[:, : model.vocabulary].float()  # [n, V]
    return (logits if temperature == 1 else logits / temperature).log_softmax(-1)


# Heads in half precision, {id of the weight: its copy}, of the call of `Compute.in_chunks` that is
# at work. None: there is no such call, and autocast makes the copy.
_copies = None


def apply_head(head, hidden):
    """head(hidden). In half precision all chunks of a loss share one copy of a float32 head.

    Autocast alone would cast a head without gradient again for every chunk. That of Qwen3-0.6B
    has 155 million numbers.
    """
    weight, kind = getattr(head, "weight", None), hidden.device.type
    if _copies is None or weight is None or not torch.is_autocast_enabled(kind):
        return head(hidden)
    dtype = torch.get_autocast_dtype(kind)
    if weight.dtype == dtype:
        return head(hidden)
    if id(weight) not in _copies:
        _copies[id(weight)] = weight.detach().to(dtype)
    logits = HeadProduct.apply(hidden.to(dtype), weight, _copies[id(weight)])
    return logits if getattr(head, "bias", None) is None else logits + head.bias


class HeadProduct(torch.autograd.Function):
    """hidden [n, width] times the copy of a head [rows, width]: logits [n, rows].

    The gradient of the head is a sum over chunks. The product of each chunk is computed from
    numbers in half precision, and its result is rounded to half precision, as autocast does it.
    Then it is made float32, and the chunks are added in float32. So each chunk is rounded once,
    and the sum is not. Autocast would add them in its copy's type. In bfloat16 a small number that
    is added to a large sum is rounded away, and more chunks lose more (tests/test_batches.py).
    """

    @staticmethod
    def forward(ctx, hidden, weight, copy):
        ctx.save_for_backward(hidden, copy)
        return hidden @ copy.T

    @staticmethod
    def backward(ctx, gradient):  # [n, rows]
        hidden, copy = ctx.saved_tensors
        of_weight = (gradient.T @ hidden).float() if ctx.needs_input_grad[1] else None
        return gradient @ copy, of_weight, None


# ======================================================================== the work of an update


class Clock:
    """Seconds of each phase of an update. On a GPU the clock waits for the device. Without that
    every phase would seem to take no time."""

    def __init__(self, device):
        self.device, self.seconds = device, {}
        self.begun = self._now()

    def start(self):
        self.seconds, self.begun = {}, self._now()

    def stop(self):
        phases = {k: round(v, 4) for k, v in self.seconds.items()}
        return {"total": round(self._now() - self.begun, 4), **phases}

    def _now(self):
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        elif self.device.type == "mps":
            torch.mps.synchronize()
        return time.perf_counter()

    @contextlib.contextmanager
    def phase(self, name):
        begun = self._now()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + self._now() - begun


class Compute:
    """Where an update computes (device, precision) and how much of it at once.

    It cuts the work in two ways. Neither of them changes the result, because every loss here is
    a sum over positions. Micro-batches: so many rollouts go through a model at once. Chunks: so
    many positions have logits at once.
    """

    def __init__(self, args, device, dtype, vocabulary):
        self.args, self.device, self.dtype, self.vocabulary = args, device, dtype, vocabulary
        self.autocast, self.clock = autocaster(device, dtype), Clock(device)
        # The other types have the range of float32, so they need no factor.
        self.loss_scale = LossScale() if dtype == torch.float16 else None

    def backward(self, loss):
        """The backward pass. In float16 it is that of a multiple of the loss, see LossScale, and
        `clip_gradient` divides the factor out again."""
        (self.loss_scale.factor * loss if self.loss_scale else loss).backward()

    def phase(self, name):
        return self.clock.phase(name)

    def micro_batches(self, prompts, responses):
        """Lists of rollout numbers; together at most --micro_tokens tokens each."""
        lengths = [len(p) + len(r) for p, r in zip(prompts, responses)]
        return micro_batches(lengths, self.args.micro_tokens, deal=True)

    def pack(self, prompts, responses, chosen):
        """ids [B, L], predicts [B, L], targets [N] of the chosen rollouts."""
        return pack([prompts[i] for i in chosen], [responses[i] for i in chosen], self.device)

    def per_token(self, values, responses, chosen):
        """[N, ...]: the value of each chosen rollout, repeated for all its tokens."""
        lengths = torch.tensor([len(responses[i]) for i in chosen])
        values = torch.stack([values[i] for i in chosen])
        return values.repeat_interleave(lengths, 0).to(self.device)

    @property
    def chunk(self):
        """So many positions have logits at once (--chunk_logits)."""
        return max(1, self.args.chunk_logits // self.vocabulary)

    def in_chunks(self, loss, *tensors):
        """(sum of the loss over all positions, statistics of all positions [N, k]).

        `loss` gets a few positions of each tensor at a time, so many that their logits stay
        below --chunk_logits. It returns (sum of the loss, statistics). The backward pass computes
        the logits of a chunk again, so they are never kept. A tensor may be None.
        """
        size, N = self.chunk, len(tensors[0])
        total, statistics, loss = 0.0, [], sharing_copies(loss)
        for first in range(0, N, size):
            piece = [x if x is None else x[first : first + size] for x in tensors]
            # One chunk alone is kept: to compute it twice would save nothing.
            if N <= size:
                values, stats = loss(*piece)
            else:
                values, stats = checkpoint(loss, *piece, use_reentrant=False)
            total, statistics = total + values, statistics + [stats]
        return total, torch.cat(statistics)


def sharing_copies(loss):
    """The same loss. All its calls share one copy of each head, also those of the backward pass.
    They are freed with the loss. So the next update copies the weights that it finds then."""
    copies = {}

    def sharing(*tensors):
        global _copies
        before, _copies = _copies, copies
        try:
            return loss(*tensors)
        finally:
            _copies = before

    return sharing


def rollout_statistics(responses, ends):
    """What metrics.jsonl keeps of the rollouts: number of tokens, mean length, and the share that
    was cut at --max_new_tokens, that is, has no end token."""
    tokens, truncated = sum(map(len, responses)), sum(r[-1] not in ends for r in responses)
    count = len(responses)
    return {"tokens": tokens, "length": tokens / count, "truncated": truncated / count}


class Collected:
    """Statistics of a batch, put together from its micro-batches, rollout by rollout."""

    def __init__(self, responses):
        self.lengths = [len(r) for r in responses]
        self.by_rollout, self.sums = [None] * len(responses), None

    def add(self, chosen, stats, *sums):
        """stats: [N, k] of all tokens of the chosen rollouts. sums: numbers to be added up, or
        lists to be joined."""
        for i, s in zip(chosen, stats.split([self.lengths[i] for i in chosen])):
            self.by_rollout[i] = s
        before = self.sums or [type(x)() for x in sums]
        self.sums = [a + b for a, b in zip(before, sums)]

    def everyone(self):
        """([n, k] of every rollout, *sums). With several processes the others' are included."""
        return everyones(self.by_rollout, *(self.sums or []))  # None: this one had no rollout
