"""The sampler: exact draws from softmax(logits / T). Each can be reproduced alone.

`model.generate` is not used. It silently obeys a checkpoint's generation_config (Qwen ships
top_k 20, top_p 0.8, sometimes a repetition penalty). Then the sampled distribution is not
the one in the loss. Here temperature 1 means softmax(logits) and nothing else (tested).

Prompts are padded on the left, so all rows write their next token into the same column.
P = 2 prompts with n = 2 samples each give R = 4 rows:

    prompt     | new tokens     L = 5 columns hold the prompts
    . . a b c  | x x x x        . is padding: no other position attends to it
    . . a b c  | x E            E is an end token: the row leaves, and R falls to 3
    d e f g h  | x x x x
    d e f g h  | x x x x
    0 0 0 1 2    3 4 5 6        position ids of the first row: padding is not counted
"""

import hashlib
import sys
from collections import Counter
from dataclasses import dataclass

import torch
from torch.nn.functional import pad

from common import recorded
from common.arguments import is_out_of_memory, require
from common.cache import RowCache, advance
from common.memory import MOST_ROWS, rows_that_fit
from common.processes import gather, process


@dataclass
class Completion:
    """What a model wrote after a prompt. `ids` includes the end token, if there is one."""

    ids: list
    truncated: bool  # the response reached max_new_tokens without an end token
    logprobs: list  # log-probability of each token under the distribution it was drawn from


@torch.no_grad()
def sample(
    model, prompts, *, n=1, max_new_tokens, keys=None, temperature=1.0, top_p=1.0, top_k=0,
    rows=MOST_ROWS,
):
    """`n` Completions for every prompt (a list of token ids), in the order of the prompts.

    keys: one hashable value per completion. With temperature > 0 the tokens of a completion
    depend on its key and its prompt only, so a single rollout can be reproduced alone.
    rows: the largest number of completions that are written at the same time. On a GPU with too
    little memory they are fewer. This changes no completion, since keys decide what is drawn.
    """
    assert keys or temperature == 0, "samples without keys would all be the same"
    rule = dict(temperature=temperature, top_p=top_p, top_k=top_k)
    if model.engine is not None:  # --sampler vllm: see common/vllm.py
        return model.engine.sample(prompts, n=n, max_new_tokens=max_new_tokens, keys=keys, **rule)
    # In train mode gradient checkpointing is active and would switch the cache off.
    was_training = model.training
    model.eval()
    # Prompts of similar length share a batch, which keeps the padding short.
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    longest = max(map(len, prompts)) + max_new_tokens
    at_once = max(1, min(rows, rows_that_fit(model, longest), rows_that_fitted(model, longest)))
    # Each process draws its share of the prompts. Then every process gets all completions.
    which, of = process()
    waiting, mine = [i * n + j for i in order[which::of] for j in range(n)], {}
    while waiting:
        # Whole prompts where that is possible: each is read once for all its samples.
        numbers = waiting[: at_once // n * n or at_once]
        batch_keys = [keys[k] for k in numbers] if temperature > 0 else None
        samples = Counter(k // n for k in numbers)  # of each prompt, in this batch
        batch, drawn = [(prompts[i], count) for i, count in samples.items()], None
        try:
            drawn = sample_batch(model, batch, batch_keys, max_new_tokens, rule)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
        if drawn is None:
            at_once = fewer_rows(model, len(numbers), longest)
            continue
        mine.update(zip(numbers, drawn))
        waiting = waiting[len(numbers) :]
    model.train(was_training)
    completions = {k: c for part in gather(mine) for k, c in part.items()}
    return [completions[k] for k in range(len(prompts) * n)]


def draw(student, prompts, args, step, temperature=1.0, first=0):
    """The rollouts of an update: --samples Completions for every prompt, prompt by prompt.

    The random numbers depend only on (seed, step, prompt, sample). So every rollout can be drawn
    again alone. first: the number of the first prompt.
    """
    numbers = range(first, first + len(prompts))
    keys = [(args.seed, step, i, j) for i in numbers for j in range(args.samples)]
    lengths = dict(n=args.samples, max_new_tokens=args.max_new_tokens)
    return sample(student, prompts, keys=keys, temperature=temperature, **lengths)


def rows_that_fitted(model, tokens):
    """How many texts of `tokens` tokens this model could write at once after it had run out of
    memory. Without such an event there is no limit."""
    most = getattr(model, "most_tokens", None)
    return most // tokens if most else sys.maxsize


def fewer_rows(model, rows, tokens):
    """Half of the rows, after these rows were too many. The model remembers it for the next call,
    because every attempt that fails costs time."""
    require(
        rows > 1,
        "The GPU is out of memory with one text at a time; lower --max_new_tokens, or choose "
        "smaller models.",
    )
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    model.most_tokens = rows // 2 * tokens
    print(f"out of memory while sampling: {rows // 2} texts at a time from here", file=sys.stderr)
    return rows // 2


def key_seed(key):
    return int.from_bytes(hashlib.blake2b(repr(key).encode(), digest_size=7).digest(), "big")


def uniforms(key, count):
    """`count` numbers in [0, 1) from `key` alone, not from the batch or earlier draws."""
    generator = torch.Generator().manual_seed(key_seed(key))
    return torch.rand(count, dtype=torch.float64, generator=generator)


# ======================================================================== one batch


@dataclass
class Rows:
    """The R rows that the batch still holds. R falls when rows end."""

    number: torch.Tensor  # [R] which of the batch's completions a row is
    cache: RowCache
    prompt_length: torch.Tensor  # [R] without padding
    visible: torch.Tensor  # [R, columns] what a new token may attend to: all but padding
    ended: torch.Tensor  # [R] bool
    token: torch.Tensor = None  # [R] the newest token

    def keep(self, rows):
        self.cache.select(rows)
        for name in ("number", "prompt_length", "visible", "ended", "token"):
            setattr(self, name, getattr(self, name)[rows])


def sample_batch(model, prompts, keys, max_new_tokens, rule):
    """Completions of a few prompts. prompts: (token ids, number of samples) of each. `rule`:
    temperature, top_p and top_k."""
    device, total = model.device, sum(count for _, count in prompts)
    ends = torch.tensor(model.ends, device=device)
    hidden, rows = read_prompts(model, prompts, max_new_tokens)  # hidden [R, width]
    tokens = torch.zeros(total, max_new_tokens, dtype=torch.long, device=device)
    logprobs = torch.zeros(total, max_new_tokens, device=device)
    if keys is not None:  # one random number per token: [total, max_new_tokens]
        draws = on_device(torch.stack([uniforms(k, max_new_tokens) for k in keys]), device)
    steps = recorded.RecordedSteps(model, rows) if device.type in recorded.RECORDS else None
    # Counting ended rows means waiting for the GPU, so it is done every few tokens. Until
    # then an ended row continues and writes tokens behind its end, which `cut` removes.
    count_every = 1 if device.type == "cpu" else 8
    few = 0.5 if steps else 0.75  # dropping copies the cache, or even costs a new recording
    for t in range(max_new_tokens):
        uniform = draws[rows.number, t] if keys is not None else None  # [R]
        rows.token, logprob = choose(model, hidden, uniform, **rule)  # [R], [R]
        tokens[rows.number, t], logprobs[rows.number, t] = rows.token, logprob
        rows.ended = rows.ended | torch.isin(rows.token, ends)
        if t + 1 == max_new_tokens or (t % count_every == 0 and drop_ended(rows, few) == 0):
            break
        hidden = steps(t) if steps else decode(model, rows, t)  # [R, width]
    return [cut(*row, model.ends) for row in zip(tokens.tolist(), logprobs.tolist())]


def read_prompts(model, prompts, max_new_tokens):
    """(last hidden state of every row [R, width], Rows), with one row for every sample."""
    prompts, counts = zip(*prompts)
    device, longest = model.device, max(map(len, prompts))
    # `real` is False on padding. It is made from lengths: a prompt may contain the pad id.
    real = torch.arange(longest) >= longest - torch.tensor([[len(p)] for p in prompts])  # [P, L]
    ids = torch.zeros(len(prompts), longest, dtype=torch.long)  # [P, L]
    ids[real] = torch.tensor([token for prompt in prompts for token in prompt])
    ids, real = ids.to(device), real.to(device)
    # Padding attends to itself: attention to nothing is 0/0, and NaN spreads through sums.
    causal = torch.ones(longest, longest, dtype=torch.bool, device=device).tril()  # [L, L]
    mask = (causal & real[:, None]) | torch.eye(longest, device=device).bool()  # [P, L, L]
    position = (real.cumsum(1) - 1).clamp(min=0)  # [P, L], 0 at the first real token
    cache = RowCache(longest + max_new_tokens, model.config.num_hidden_layers - 1)
    hidden = advance(model, cache, ids, position, mask)[:, -1]  # [P, width]
    # Each prompt is read once. Its samples start from copies of its cache.
    prompt_of = torch.arange(len(prompts)).repeat_interleave(torch.tensor(counts)).to(device)  # [R]
    cache.select(prompt_of)
    number = torch.arange(len(prompt_of), device=device)  # [R]
    ended = torch.zeros(len(prompt_of), dtype=torch.bool, device=device)  # [R]
    prompt_length = real.sum(1)[prompt_of]  # [R]
    return hidden[prompt_of], Rows(number, cache, prompt_length, real[prompt_of], ended)


def filtered(logits, temperature, top_p, top_k):
    """Log-probabilities [R, V] of what is sampled. T = 1 without filter: log softmax."""
    logprobs = (logits.float() / temperature).log_softmax(-1)
    if top_k:
        kth = logprobs.topk(min(top_k, logprobs.shape[-1])).values[:, -1:]  # [R, 1]
        logprobs = logprobs.masked_fill(logprobs < kth, -torch.inf)
    if top_p < 1:
        best, order = logprobs.softmax(-1).sort(descending=True, dim=-1)  # [R, V]
        late = best.cumsum(-1) - best >= top_p  # the more probable tokens already reach top_p
        outside = torch.zeros_like(logprobs, dtype=torch.bool).scatter(1, order, late)
        logprobs = logprobs.masked_fill(outside, -torch.inf)
    return logprobs.log_softmax(-1) if top_k or top_p < 1 else logprobs


def choose(model, hidden, uniform, *, temperature, top_p, top_k):
    """The next token of every row and its log-probability: [R] and [R]."""
    # In double precision the logits of all rows would be the largest tensor of the run.
    size, chosen = max(1, 2**24 // model.vocabulary), []
    for first in range(0, len(hidden), size):
        part = slice(first, first + size)
        # Logits beyond the vocabulary are padding rows of the head. They are never drawn.
        logits = model.get_output_embeddings()(hidden[part])[:, : model.vocabulary]  # [r, V]
        if temperature > 0:
            logp = filtered(logits, temperature, top_p, top_k)  # [r, V]
            # Invert the cumulative sum: one uniform number gives one exact draw.
            cumulative = cumulative_sums(logp)  # [r, V]
            target = uniform[part, None] * cumulative[:, -1:]  # [r, 1]
            token = torch.searchsorted(cumulative, target, right=True).clamp(max=logp.shape[1] - 1)
        else:
            logp = logits.float().log_softmax(-1)  # [r, V]
            token = logp.argmax(-1, keepdim=True)  # [r, 1]
        chosen.append((token.squeeze(1), logp.gather(1, token).squeeze(1)))
    return [torch.cat(parts) for parts in zip(*chosen)]


def cumulative_sums(logp):
    """Sums of the probabilities up to each token, [r, V], from log-probabilities [r, V].

    In float64, because 150,000 small numbers are added. On a GPU only the sum is: graphics cards
    are slow in float64. Apple's cards have no float64. There a token's share can be wrong by some
    1e-7.
    """
    logp = logp.double() if logp.device.type == "cpu" else logp
    return logp.exp().cumsum(-1, dtype=exact_type(logp.device))


def exact_type(device):
    return torch.float32 if device.type == "mps" else torch.float64


def on_device(uniform, device):
    """Random numbers of [0, 1), moved to the device. Rounded to float32 some would become 1, and
    that would draw a token behind the last one that has a probability."""
    if exact_type(device) == torch.float32:
        uniform = uniform.clamp(max=1 - 2**-20).float()
    return uniform.to(device)


def drop_ended(rows, few):
    """Drop ended rows if at most the share `few` stays. Returns how many have not ended."""
    left = int((~rows.ended).sum())
    if 0 < left <= few * len(rows.ended):
        rows.keep((~rows.ended).nonzero().squeeze(1))
    return left


def decode(model, rows, t):
    """The model reads the newest token of every row. Returns hidden states [R, width]."""
    rows.visible = pad(rows.visible, (0, 1), value=True)  # [R, L + t + 1], also the new token
    position = rows.prompt_length[:, None] + t  # [R, 1]
    hidden = advance(model, rows.cache, rows.token[:, None], position, rows.visible[:, None])
    return hidden[:, -1]


def cut(ids, logprobs, ends):
    """One row as a Completion that stops behind its first end token."""
    stop = next((i + 1 for i, token in enumerate(ids) if token in ends), None)
    return Completion(ids[:stop], stop is None, logprobs[:stop])
