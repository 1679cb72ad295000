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

import functools
import hashlib
import inspect
import sys
from dataclasses import dataclass

import torch
from torch.nn.functional import pad

from common.arguments import shorten
from common.memory import rows_that_fit
from common.processes import gather, process


@dataclass
class Completion:
    """What a model wrote after a prompt. `ids` includes the end token, if there is one."""

    ids: list
    truncated: bool  # the response reached max_new_tokens without an end token
    logprobs: list  # log-probability of each token under the distribution it was drawn from


@torch.no_grad()
def sample(
    model, prompts, *, n=1, max_new_tokens, keys=None, temperature=1.0, top_p=1.0, top_k=0, rows=256
):
    """`n` Completions for every prompt (a list of token ids), in the order of the prompts.

    keys: one hashable value per completion. With temperature > 0 the tokens of a completion
    depend on its key and its prompt only, so a single rollout can be reproduced alone.
    rows: the largest number of completions that are written at the same time.
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
    per_batch = max(1, min(rows, rows_that_fit(model, longest)) // n)  # prompts
    # Each process draws its share of the prompts. Then every process gets all completions.
    which, of = process()
    order, mine = order[which::of], {}
    for first in range(0, len(order), per_batch):
        chosen = order[first : first + per_batch]
        numbers = [i * n + j for i in chosen for j in range(n)]
        batch_keys = [keys[k] for k in numbers] if temperature > 0 else None
        batch = [prompts[i] for i in chosen]
        mine.update(zip(numbers, sample_batch(model, batch, n, batch_keys, max_new_tokens, rule)))
    model.train(was_training)
    completions = {k: c for part in gather(mine) for k, c in part.items()}
    return [completions[k] for k in range(len(prompts) * n)]


def key_seed(key):
    return int.from_bytes(hashlib.blake2b(repr(key).encode(), digest_size=7).digest(), "big")


def uniforms(key, count):
    """`count` numbers in [0, 1) from `key` alone, not from the batch or earlier draws."""
    generator = torch.Generator().manual_seed(key_seed(key))
    return torch.rand(count, dtype=torch.float64, generator=generator)


# ======================================================================== one batch


@dataclass
class Rows:
    """The R rows that the batch still holds. R starts at P * n and falls when rows end."""

    number: torch.Tensor  # [R] which of the P * n completions a row is
    cache: "RowCache"
    prompt_length: torch.Tensor  # [R] without padding
    visible: torch.Tensor  # [R, columns] what a new token may attend to: all but padding
    ended: torch.Tensor  # [R] bool
    token: torch.Tensor = None  # [R] the newest token

    def keep(self, rows):
        self.cache.select(rows)
        for name in ("number", "prompt_length", "visible", "ended", "token"):
            setattr(self, name, getattr(self, name)[rows])


def sample_batch(model, prompts, n, keys, max_new_tokens, rule):
    """`n` Completions for each of a few prompts. `rule`: temperature, top_p and top_k."""
    device, total = model.device, len(prompts) * n
    ends = torch.tensor(model.ends, device=device)
    hidden, rows = read_prompts(model, prompts, n, max_new_tokens)  # hidden [R, width]
    tokens = torch.zeros(total, max_new_tokens, dtype=torch.long, device=device)
    logprobs = torch.zeros(total, max_new_tokens, device=device)
    if keys is not None:  # one random number per token: [P * n, max_new_tokens]
        draws = torch.stack([uniforms(k, max_new_tokens) for k in keys]).to(device)
    recorded = RecordedSteps(model, rows) if device.type in RECORDS else None
    # Counting ended rows means waiting for the GPU, so it is done every few tokens. Until
    # then an ended row continues and writes tokens behind its end, which `cut` removes.
    count_every = 1 if device.type == "cpu" else 8
    few = 0.5 if recorded else 0.75  # dropping copies the cache, or even costs a new recording
    for t in range(max_new_tokens):
        uniform = draws[rows.number, t] if keys is not None else None  # [R]
        rows.token, logprob = choose(model, hidden, uniform, **rule)  # [R], [R]
        tokens[rows.number, t], logprobs[rows.number, t] = rows.token, logprob
        rows.ended = rows.ended | torch.isin(rows.token, ends)
        if t + 1 == max_new_tokens or (t % count_every == 0 and drop_ended(rows, few) == 0):
            break
        hidden = recorded(t) if recorded else decode(model, rows, t)  # [R, width]
    return [cut(*row, model.ends) for row in zip(tokens.tolist(), logprobs.tolist())]


def read_prompts(model, prompts, n, max_new_tokens):
    """(last hidden state of every row [R, width], Rows), with R = P * n."""
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
    # Each prompt is read once. Its n samples start from copies of its cache.
    prompt_of = torch.arange(len(prompts), device=device).repeat_interleave(n)  # [R]
    cache.select(prompt_of)
    number = torch.arange(len(prompt_of), device=device)  # [R]
    ended = torch.zeros(len(prompt_of), dtype=torch.bool, device=device)  # [R]
    prompt_length = real.sum(1)[prompt_of]  # [R]
    return hidden[prompt_of], Rows(number, cache, prompt_length, real[prompt_of], ended)


def advance(model, cache, ids, position, mask):
    """The model reads ids [R, T] behind what its cache holds: hidden states [R, T, width].
    mask [R, T, columns] says what each of them may attend to."""
    more = {cache_parameter(type(model.base_model)): cache}
    out = model.base_model(
        input_ids=ids, attention_mask=mask[:, None], position_ids=position, use_cache=True, **more
    )
    return out.last_hidden_state


@functools.cache
def cache_parameter(backbone):
    """The name of the cache in a backbone's forward: transformers 5 has renamed it."""
    names = inspect.signature(backbone.forward).parameters
    return "cache" if "cache" in names else "past_key_values"


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
            # Invert the cumulative sum in float64: one uniform number gives one exact draw.
            cumulative = logp.double().exp().cumsum(-1)  # [r, V]
            target = uniform[part, None] * cumulative[:, -1:]  # [r, 1]
            token = torch.searchsorted(cumulative, target, right=True).clamp(max=logp.shape[1] - 1)
        else:
            logp = logits.float().log_softmax(-1)  # [r, V]
            token = logp.argmax(-1, keepdim=True)  # [r, 1]
        chosen.append((token.squeeze(1), logp.gather(1, token).squeeze(1)))
    return [torch.cat(parts) for parts in zip(*chosen)]


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


class RowCache:
    """Keys and values of all layers in preallocated tensors. Whole rows can be dropped.

    The models call only `update` and `get_seq_length`. transformers' DynamicCache is copied
    as a whole at every token, because it concatenates. Its StaticCache cannot drop rows.
    """

    def __init__(self, room, last_layer):
        self.layers, self.length, self.room, self.last_layer = {}, 0, room, last_layer
        self.slot = None  # with static shapes (see below): a tensor [1], the next token's column

    def get_seq_length(self, layer_idx=0):
        return self.length

    def update(self, key, value, layer_idx, *args, **kwargs):  # [R, heads, T, head_dim], T new
        # Under autocast their norm makes keys float32: every token would cast the cache.
        key = key.to(value.dtype)
        if self.slot is not None:  # return all columns: the mask hides those not written yet
            for stored, x in zip(self.layers[layer_idx], (key, value)):
                stored.index_copy_(2, self.slot, x)
            return tuple(self.layers[layer_idx])
        stop = self.length + key.shape[2]
        if layer_idx not in self.layers or self.layers[layer_idx][0].shape[2] < stop:
            # The cache grows by a half each time, so that it is rarely copied.
            length = min(max(stop + stop // 2, 128), max(stop, self.room))
            old = self.layers.get(layer_idx, (key[:, :, :0], value[:, :, :0]))
            self.layers[layer_idx] = [self._moved(x, length) for x in old]
        for stored, x in zip(self.layers[layer_idx], (key, value)):
            stored[:, :, self.length : stop] = x
        if layer_idx == self.last_layer:  # now all layers have stored the new tokens
            self.length = stop
        return tuple(stored[:, :, :stop] for stored in self.layers[layer_idx])

    def _moved(self, x, length):  # into a longer tensor
        longer = x.new_zeros(x.shape[0], x.shape[1], length, x.shape[3])
        longer[:, :, : self.length] = x[:, :, : self.length]
        return longer

    def resize(self, length):
        for i, kv in self.layers.items():  # layer by layer: never two whole caches at once
            self.layers[i] = [self._moved(x, length) for x in kv]

    def select(self, rows):
        for i, kv in self.layers.items():  # index_select copies whole rows, x[rows] single numbers
            self.layers[i] = [x.index_select(0, rows) for x in kv]


# ======================================================================== CUDA graphs

# Only for speed on a GPU. One token through 28 layers is hundreds of small kernels, and a
# fast GPU runs them faster than a CPU can launch them. A CUDA graph is a recording of one
# step that is launched as a whole. Its shapes and addresses are fixed: the cache grows by
# GROWTH columns at a time, and the mask hides the columns that are still empty.
GROWTH, RECORDS = 256, ("cuda",)  # RECORDS: on which devices steps are recorded


class Replay:
    """A recorded step of decoding. It costs one step to warm up and one to record."""

    state = {"use": True, "unchecked": 3}  # so many replays are still compared with the step

    def __init__(self, step, inputs):
        self.inputs, self.graph = [x.clone() for x in inputs], torch.cuda.CUDAGraph()
        with torch.cuda.device(inputs[0].device):
            side = torch.cuda.Stream()
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):  # allocates workspaces and autocast's copies of weights
                step(*self.inputs)
            torch.cuda.current_stream().wait_stream(side)
            with torch.cuda.graph(self.graph):
                self.out = step(*self.inputs)

    def __call__(self, *inputs):
        for x, new in zip(self.inputs, inputs):
            x.copy_(new)
        self.graph.replay()
        return self.out


class RecordedSteps:
    """Replaces `decode` on a GPU: static shapes, and recorded steps where possible."""

    def __init__(self, model, rows):
        self.model, self.rows, self.replay = model, rows, None

    def __call__(self, t):
        rows, cache = self.rows, self.rows.cache
        if cache.length == rows.visible.shape[1]:  # the cache is full, or this is the first step
            columns = min(cache.length + GROWTH, cache.room)
            rows.visible = pad(rows.visible, (0, columns - cache.length))  # [R, columns]
            cache.resize(columns)
        rows.visible[:, cache.length] = True  # the new token may attend to itself
        position = rows.prompt_length + t  # [R]
        slot = torch.full((1,), cache.length, device=position.device)
        inputs = rows.token[:, None], position[:, None], rows.visible[:, None], slot
        hidden = self.recorded(inputs) if Replay.state["use"] else None
        hidden = self.step(*inputs) if hidden is None else hidden  # [R, width]
        cache.length += 1
        return hidden

    def step(self, token, position, visible, slot):
        self.rows.cache.slot = slot
        return advance(self.model, self.rows.cache, token, position, visible)[:, -1]

    def recorded(self, inputs):
        """The step from its recording. None if that fails; then none is recorded again."""
        try:
            if self.replay and self.replay.inputs[2].shape != inputs[2].shape:
                self.replay = None  # rows have left or the cache has grown: record again
            self.replay = self.replay or Replay(self.step, inputs)
            hidden = self.replay(*inputs)  # [R, width]
            if Replay.state["unchecked"]:
                Replay.state["unchecked"] -= 1
                # A step can be made twice: it writes the same numbers into the same column.
                plain = self.step(*inputs)
                far = 0.05 * plain.abs().max().item()
                if not torch.allclose(plain, hidden, rtol=0.05, atol=far):
                    raise RuntimeError("a recorded step differs from the step itself")
            return hidden
        except RuntimeError as error:
            Replay.state["use"], self.replay = False, None
            why = shorten(error, 100)
            print(f"CUDA graphs are not used ({why}): sampling is only slower", file=sys.stderr)
