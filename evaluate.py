"""What training and evaluation must do identically: data, prompts, sampling, answer extraction, grading. And the evaluation itself.

    python evaluate.py --model toy/student --benchmark toy                                  # a minute on a CPU
    python evaluate.py --model Qwen/Qwen3-0.6B --benchmark gsm8k --out runs/gsm8k-base
    python evaluate.py --model runs/opd-0/final --benchmark aime24 --n 16 --temperature 0.7 --top_p 0.8 --top_k 20 --k 8
    python evaluate.py --compare runs/opd-0 runs/opd-1 runs/topd-0 runs/topd-1              # table of arms over seeds, one picture

Most disagreements between published scores are not about models but about the five things in this file. So they are
here once, the method files import them, and the file is written to be read from top to bottom:

    1. data        where each benchmark comes from, which columns hold what
    2. prompts     the chat template, thinking off unless asked; prompts that show a solution
    3. sampling    exact samples from softmax(logits / T), reproducible one by one
    4. grading     which part of a response is its answer, and whether that equals the gold
    5. statistics  intervals, avg@n, pass@k, majority vote
    6. evaluate    all of it together, resumable
    7. compare     runs over seeds, paired
"""

import atexit
import hashlib
import json
import math
import os
import re
import select
import subprocess
import sys
import threading
import time
from collections import Counter
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import torch

import plumbing
from plumbing import Mistake

ROOT = Path(__file__).resolve().parent

# ============================================================================================ 1. data

# One line a benchmark: hub id (or a local file with {split}), configuration, the hub's name for our train and test
# split, the columns of problem and gold. Qwen3's own wording of the instruction is used everywhere but on the toy,
# whose small vocabulary does not have the words.
INSTRUCTION = "Please reason step by step, and put your final answer within \\boxed{}."
# fmt: off
BENCHMARKS = {
    # name          hub id or file                        configuration          train    test     problem     gold
    "toy":         ("toy/{split}.jsonl",                  None,                  "train", "test",  "problem",  "answer"),
    "toy-heldout": ("toy/heldout.jsonl",                  None,                  None,    "test",  "problem",  "answer"),
    "gsm8k":       ("openai/gsm8k",                       "main",                "train", "test",  "question", "answer"),
    "math500":     ("HuggingFaceH4/MATH-500",             None,                  None,    "test",  "problem",  "answer"),
    "aime24":      ("HuggingFaceH4/aime_2024",            None,                  None,    "train", "problem",  "answer"),
    "aime25":      ("math-ai/aime25",                     None,                  None,    "test",  "problem",  "answer"),
    "hmmt25":      ("MathArena/hmmt_feb_2025",            None,                  None,    "train", "problem",  "answer"),
    "amc23":       ("math-ai/amc23",                      None,                  None,    "test",  "question", "answer"),
    "minerva":     ("math-ai/minervamath",                None,                  None,    "test",  "question", "answer"),
    "olympiad":    ("Hothan/OlympiadBench",               "OE_TO_maths_en_COMP", None,    "train", "question", "final_answer"),
}
# fmt: on
PROBLEM_COLUMNS, ANSWER_COLUMNS = ("problem", "question"), ("answer", "final_answer", "gold")  # of a file of one's own


def check_name(name, split):
    """Whether `name` is a local file (True) or a benchmark (False); a Mistake if it is neither. Costs nothing, so it comes first."""
    if name.endswith((".jsonl", ".json")) or name not in BENCHMARKS:
        if not Path(name).is_file():
            raise Mistake(
                f"There is no benchmark and no file named '{name}'. Benchmarks: {', '.join(BENCHMARKS)}; or the path of a "
                "JSONL file with the columns problem and answer."
            )
        return True
    if BENCHMARKS[name][2 if split == "train" else 3] is None:
        raise Mistake(
            f"'{name}' has no training problems; train on toy or gsm8k, or pass a JSONL file with the columns problem and answer."
        )
    return False


def load_benchmark(name, split="test", limit=None):
    """Rows of a benchmark or of a local JSONL file, each with `problem`, `prompt` (the user turn), `answer`, and what else it has."""
    import datasets

    datasets.disable_progress_bars()
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)  # its errors come as exceptions, too: said once, by us
    local = check_name(name, split)
    source, configuration, train, test, problem_column, answer_column = (
        (name, None, None, None, None, None) if local else BENCHMARKS[name]
    )
    hub_split = {"train": train, "test": test}[split]
    try:
        if local or source.startswith("toy/"):
            file = source if local else str(ROOT / source.format(split=split))
            if os.path.getsize(file) == 0:
                raise Mistake(
                    f"The data file '{file}' is empty; it needs one JSON object a line with the columns problem and answer."
                )
            data = datasets.load_dataset("json", data_files=file, split="train")
        else:
            plumbing.reach_hub()
            data = datasets.load_dataset(source, configuration, split=hub_split)
    except Mistake:
        raise
    except Exception as e:  # datasets raises a dozen kinds; all mean: the rows could not be had
        what = " ".join(str(e).split())[:200]
        raise Mistake(
            f"Could not load {'the file' if local else 'the data set'} '{source}' ({type(e).__name__}: {what}). "
            + (
                "It must hold one JSON object a line, in UTF-8."
                if local
                else f"Without network, save its {hub_split} split as JSONL and pass that file's path instead of '{name}'."
            )
        ) from None
    if local:
        problem_column = next((c for c in PROBLEM_COLUMNS if c in data.column_names), None)
        answer_column = next((c for c in ANSWER_COLUMNS if c in data.column_names), None)
    missing = [c for c, found in (("problem", problem_column), ("answer", answer_column)) if found not in data.column_names]
    if missing:
        raise Mistake(
            f"'{source}' has no column for the {' and the '.join(missing)}; its columns are {', '.join(data.column_names)}. "
            "Rename them, or pass a JSONL file with the columns problem and answer."
        )
    if len(data) == 0:
        raise Mistake(f"'{source}' holds no rows.")
    rows, asked = [], {}
    try:
        table = list(data.select(range(min(limit or len(data), len(data)))))
    except UnicodeDecodeError:
        raise Mistake(f"'{source}' holds text that is not in UTF-8; save it in that encoding.") from None
    for i, row in enumerate(table):
        problem, answer = row[problem_column], row[answer_column]
        answer = ", ".join(map(str, answer)) if isinstance(answer, list) else answer  # OlympiadBench: a list of golds
        if not isinstance(problem, str) or not problem.strip():
            raise Mistake(f"Row {i + 1} of '{source}' has no text as its problem; mend or delete it.")
        if answer is None or isinstance(answer, (bool, dict)) or answer != answer or not str(answer).strip():
            raise Mistake(
                f"Row {i + 1} of '{source}' has an empty answer, or one that is neither text nor a number; mend or delete it."
            )
        if local:  # twice the same problem: counted twice it narrows the interval; with two answers one of them is wrong
            j, before = asked.setdefault(problem, (i, str(answer)))
            if before != str(answer) or (j < i and split == "test"):
                raise Mistake(
                    f"Rows {j + 1} and {i + 1} of '{source}' hold the same problem"
                    + (f" with different answers ({before!r}, {str(answer)!r})" if before != str(answer) else "")
                    + "; delete one of them."
                )
        toy = not local and source.startswith("toy/")
        if name == "gsm8k":  # its answers are worked solutions with calculator marks: 48/2 = <<48/2=24>>24 ... #### 72
            solution, _, final = re.sub(r"<<[^>]*>>", "", answer).rpartition("####")
            row["solution"] = f"{solution.strip()}\nThe answer is \\boxed{{{final.strip()}}}."
        rows.append(
            {**row, "problem": problem, "answer": str(answer), "prompt": problem if toy else f"{problem}\n{INSTRUCTION}"}
        )
    return rows


# ============================================================================================ 2. prompts


def privileged_prompt(problem, solution=None, answer=None):
    """The user turn of a model that may see more than the problem: a solution (whole or part), the answer, or both.

    One wording for all views, so that views differ in what they show and in nothing else.
    """
    parts = [problem]
    if solution:
        parts.append(f"This is an example response:\n{solution}")
    if answer is not None:
        parts.append(f"The final answer is {answer}.")
    return "\n\n".join([*parts, "Now answer with your own response."])


def prompt_ids(tokenizer, user, thinking=False):
    """Token ids of one user turn and the opened assistant turn.

    Thinking is switched off explicitly: Qwen3's template thinks by default, and a student that is sampled with one
    template and scored or evaluated with another is measured on text it was never asked for.
    """
    if not tokenizer.chat_template:
        raise Mistake(f"The tokenizer of '{tokenizer.name_or_path}' has no chat template; use an instruct model.")
    ids = tokenizer.apply_chat_template(
        [{"role": "user", "content": user}],
        add_generation_prompt=True,
        tokenize=True,
        enable_thinking=thinking,
        return_dict=True,
    )["input_ids"]
    return list(ids)


def eos_ids(model, tokenizer):
    """Every id that ends a response. Qwen3 lists two, and a sampler that knows one of them runs on past the other."""
    found = {tokenizer.eos_token_id}
    for config in (model.config, getattr(model, "generation_config", None)):
        ids = getattr(config, "eos_token_id", None)
        found |= set(ids) if isinstance(ids, (list, tuple)) else {ids}
    return sorted(i for i in found if i is not None)


# ============================================================================================ 3. sampling


@dataclass
class Completion:
    """What a model wrote after a prompt. `ids` includes the end-of-turn token, if the response reached one."""

    ids: list
    truncated: bool  # ran into max_new_tokens without ending
    logprobs: list  # log-probability of each token under the distribution it was drawn from


class RowCache:
    """Keys and values of all layers in preallocated tensors, with whole rows that can be dropped.

    The models only call `update` and `get_seq_length`, so this is all a cache needs to be. transformers' DynamicCache
    concatenates at every token, that is, copies the whole cache for each of them; its StaticCache cannot drop rows.
    """

    def __init__(self, room, last_layer):
        self.layers, self.length, self.room, self.last_layer = {}, 0, room, last_layer
        self.slot = None  # with frozen shapes (below): a tensor [1], the place of the next token

    def get_seq_length(self, layer_idx=0):
        return self.length

    def update(self, key, value, layer_idx, *args, **kwargs):  # [R, heads, T, head_dim], T new positions
        # Under autocast the norm of the keys makes them float32, and attention would cast the whole cache at every token.
        key = key.to(value.dtype)
        if self.slot is not None:  # everything is handed out, and the mask hides what is not written yet
            for stored, x in zip(self.layers[layer_idx], (key, value)):
                stored.index_copy_(2, self.slot, x)
            return tuple(self.layers[layer_idx])
        new, stop = key.shape[2], self.length + key.shape[2]
        if layer_idx not in self.layers or self.layers[layer_idx][0].shape[2] < stop:
            length = min(max(stop + stop // 2, 128), max(stop, self.room))  # by half again, so that copying stays rare
            old = self.layers.get(layer_idx, (key[:, :, :0], value[:, :, :0]))
            self.layers[layer_idx] = [self._moved(x, length) for x in old]
        for stored, x in zip(self.layers[layer_idx], (key, value)):
            stored[:, :, self.length : stop] = x
        keys, values = (stored[:, :, :stop] for stored in self.layers[layer_idx])
        if layer_idx == self.last_layer:  # all layers have seen the new positions
            self.length += new
        return keys, values

    def _moved(self, x, length):  # into a longer tensor
        fresh = x.new_zeros(x.shape[0], x.shape[1], length, x.shape[3])
        fresh[:, :, : self.length] = x[:, :, : self.length]
        return fresh

    def resize(self, length):
        for i, kv in self.layers.items():  # layer by layer: never two whole caches at once
            self.layers[i] = [self._moved(x, length) for x in kv]

    def select(self, rows):
        for i, kv in self.layers.items():  # index_select copies whole rows, x[rows] number by number
            self.layers[i] = [x.index_select(0, rows) for x in kv]


class Replay:
    """A step of decoding as a CUDA graph: recorded once, then started as one piece.

    One token through 28 layers is hundreds of small kernels, and a fast GPU runs them faster than a CPU can launch them one by one.
    A recording has fixed shapes and addresses: other rows or a longer cache need a new one, that is, one step to warm up and one to
    record.
    """

    state = {"use": True, "unchecked": 3}

    def __init__(self, step, inputs):
        self.inputs, self.graph = [x.clone() for x in inputs], torch.cuda.CUDAGraph()
        with torch.cuda.device(inputs[0].device):
            side = torch.cuda.Stream()
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(
                side
            ):  # once without recording: workspaces are allocated, autocast makes its copies of the weights
                step(*self.inputs)
            torch.cuda.current_stream().wait_stream(side)
            with torch.cuda.graph(self.graph):
                self.out = step(*self.inputs)

    def __call__(self, *inputs):
        for x, new in zip(self.inputs, inputs):
            x.copy_(new)
        self.graph.replay()
        return self.out

    @classmethod
    def give_up(cls, why):
        cls.state["use"] = False
        print(f"CUDA graphs are not used ({why}): sampling works as before, only slower", file=sys.stderr)


FROZEN = 256  # with frozen shapes the cache grows by so many positions at a time


def frozen_shapes(device):
    return device.type == "cuda"


def recordable(device):
    return device.type == "cuda" and Replay.state["use"]


def key_seed(key):
    return int.from_bytes(hashlib.blake2b(repr(key).encode(), digest_size=7).digest(), "big")


def uniforms(key, count):
    """`count` random numbers in [0, 1) that depend on `key` alone, not on what else is in the batch or was drawn before."""
    return torch.rand(count, dtype=torch.float64, generator=torch.Generator().manual_seed(key_seed(key)))


def filtered(logits, temperature, top_p, top_k):
    """log-probabilities [R, V] of the distribution that is sampled. With T = 1 and no filter: log softmax, nothing else."""
    logprobs = (logits.float() / temperature).log_softmax(-1)
    if top_k:
        logprobs = logprobs.masked_fill(logprobs < logprobs.topk(min(top_k, logprobs.shape[-1])).values[:, -1:], -math.inf)
    if top_p < 1:
        best, order = logprobs.softmax(-1).sort(descending=True, dim=-1)
        outside = torch.zeros_like(logprobs, dtype=torch.bool).scatter(1, order, best.cumsum(-1) - best >= top_p)
        logprobs = logprobs.masked_fill(outside, -math.inf)
    return logprobs.log_softmax(-1) if top_k or top_p < 1 else logprobs


ELSEWHERE = {}  # models whose samples another engine draws (vllm_sampler.py); empty unless asked for


@torch.no_grad()
def sample(model, prompts, *, n=1, max_new_tokens, eos, vocabulary, keys=None, temperature=1.0, top_p=1.0, top_k=0, rows=256):
    """`n` completions for every prompt (a list of token ids): a list of len(prompts) * n Completions, in prompt order.

    model.generate is not used: it obeys the checkpoint's generation_config silently (Qwen ships top_k 20, top_p 0.8,
    sometimes a repetition penalty), and then the sampler's distribution is not the one in the loss. Here temperature 1
    means softmax(logits) and nothing else (tested by frequencies).

    keys: one hashable a completion; with temperature > 0 its tokens depend on the key and the prompt only, so that one
    rollout can be reproduced alone. vocabulary: logits beyond it are padding rows of the head and are never drawn.
    """
    assert keys or temperature == 0, "samples without keys would all be the same"
    if model in ELSEWHERE:
        more = dict(eos=eos, keys=keys, temperature=temperature, top_p=top_p, top_k=top_k)
        return ELSEWHERE[model].sample(prompts, n=n, max_new_tokens=max_new_tokens, **more)
    was_training = model.training
    model.eval()  # gradient checkpointing (active in train mode) would switch the cache off
    found, order = [None] * (len(prompts) * n), sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    rows = min(rows, plumbing.rows_that_fit(model, max(map(len, prompts)) + max_new_tokens))
    per_batch = max(1, rows // n)
    which, of = plumbing.process()
    order = order[which::of]  # with several GPUs each draws its share, and all get all
    for first in range(0, len(order), per_batch):  # neighbours in length share a batch: little padding
        chosen = order[first : first + per_batch]
        done = _sample_batch(
            model,
            [prompts[i] for i in chosen],
            n,
            [keys[i * n + j] if keys else None for i in chosen for j in range(n)],
            max_new_tokens,
            eos,
            vocabulary,
            temperature,
            top_p,
            top_k,
        )
        for row, completion in enumerate(done):
            found[chosen[row // n] * n + row % n] = completion
    model.train(was_training)
    if of > 1:
        for part in plumbing.gather({i: c for i, c in enumerate(found) if c is not None}):
            for i, c in part.items():
                found[i] = c
    return found


def _sample_batch(model, prompts, n, keys, max_new_tokens, eos, vocabulary, temperature, top_p, top_k):
    device, longest = model.device, max(map(len, prompts))
    cache = RowCache(longest + max_new_tokens, model.config.num_hidden_layers - 1)
    ids = torch.zeros(len(prompts), longest, dtype=torch.long)  # [P, L], padded on the left
    real = torch.zeros(len(prompts), longest, dtype=torch.bool)  # from lengths, never from pad ids
    for i, prompt in enumerate(prompts):
        ids[i, longest - len(prompt) :], real[i, longest - len(prompt) :] = torch.tensor(prompt), True
    ids, real = ids.to(device), real.to(device)
    # A padding position may see itself: with nothing to see its attention is 0/0, and NaN spreads through masked sums.
    causal = torch.ones(longest, longest, dtype=torch.bool, device=device).tril()
    mask = (causal & real[:, None, :]) | torch.eye(longest, dtype=torch.bool, device=device)  # [P, L, L]
    out = model.base_model(
        input_ids=ids,
        attention_mask=mask[:, None],
        position_ids=(real.cumsum(1) - 1).clamp(min=0),
        past_key_values=cache,
        use_cache=True,
    )
    # Each prompt is read once; its n samples start from copies of its cache.
    repeat = torch.arange(len(prompts), device=device).repeat_interleave(n)  # [R], R = P * n
    cache.select(repeat)
    hidden, real, position = out.last_hidden_state[:, -1][repeat], real[repeat], real.sum(1)[repeat]  # [R, width]
    total = len(prompts) * n
    draws = torch.stack([uniforms(k, max_new_tokens) for k in keys]).to(device) if temperature > 0 else None  # [R, max_new]
    tokens = torch.zeros(total, max_new_tokens, dtype=torch.long, device=device)
    logprobs = torch.zeros(total, max_new_tokens, device=device)
    ends, alive = torch.tensor(eos, device=device), torch.arange(total, device=device)
    ended = torch.zeros(total, dtype=torch.bool, device=device)  # of the rows still in the batch
    frozen, replay, seen = frozen_shapes(device), None, real  # seen [R, positions]: what a new token may look at

    def step(token, position, seen, slot=None):
        """One more token of every row: the last hidden states, [R, width]."""
        cache.slot = slot
        return model.base_model(
            input_ids=token[:, None],
            attention_mask=seen[:, None, None, :],
            position_ids=position[:, None],
            past_key_values=cache,
            use_cache=True,
        ).last_hidden_state[:, -1]

    for t in range(max_new_tokens):
        # A hundred rows of 151,936 logits at once, not all of them: in double precision they would be the largest tensor of the run.
        parts = hidden.split(max(1, 2**24 // vocabulary))
        pieces = []
        for h, u in zip(parts, (draws[alive, t] if temperature > 0 else hidden[:, 0]).split(len(parts[0]))):
            logits = model.get_output_embeddings()(h)[:, :vocabulary]  # [r, V]
            if temperature > 0:
                chosen_from = filtered(logits, temperature, top_p, top_k)  # [r, V]
                # The inverse of the cumulative distribution, in double precision: one uniform number, one exact draw.
                cumulative = chosen_from.double().exp().cumsum(-1)
                best = torch.searchsorted(cumulative, u[:, None] * cumulative[:, -1:], right=True).clamp(
                    max=vocabulary - 1
                )  # [r, 1]
            else:
                chosen_from = logits.float().log_softmax(-1)
                best = chosen_from.argmax(-1, keepdim=True)
            pieces.append((best.squeeze(1), chosen_from.gather(1, best).squeeze(1)))
        token, logprob = (torch.cat(x) for x in zip(*pieces))  # [R]
        tokens[alive, t], logprobs[alive, t] = token, logprob
        ended = ended | torch.isin(token, ends)
        if t + 1 == max_new_tokens:
            break
        # Ended rows leave the batch. Looking costs a wait for the device, so it is done every few tokens; a row that
        # runs on meanwhile writes tokens behind its end, which are cut off below.
        if t % (1 if device.type == "cpu" else 8) == 0:
            left = int((~ended).sum())
            if left == 0:
                break
            if left <= (0.5 if frozen else 0.75) * len(alive):  # a new recording costs two steps
                keep = (~ended).nonzero().squeeze(1)
                cache.select(keep)
                alive, ended, token, position, seen = alive[keep], ended[keep], token[keep], position[keep], seen[keep]
                replay = None
        if not frozen:
            seen = torch.cat([seen, seen.new_ones(len(alive), 1)], 1)  # [R, L + t + 1]
            hidden = step(token, position + t, seen)
            continue
        if cache.length == seen.shape[1]:  # full, or the first time
            more = min(cache.length + FROZEN, longest + max_new_tokens) - cache.length
            seen, replay = torch.cat([seen, seen.new_zeros(len(alive), more)], 1), None
            cache.resize(seen.shape[1])
        seen[:, cache.length] = True
        inputs = token, position + t, seen, torch.full((1,), cache.length, device=device)
        if replay is None and recordable(device):
            try:
                replay = Replay(step, inputs)
            except RuntimeError as e:
                Replay.give_up(" ".join(str(e).split())[:100])
        hidden = replay(*inputs) if replay else step(*inputs)
        if replay and Replay.state["unchecked"]:  # the first few of a run against the step itself, which may be made twice
            Replay.state["unchecked"] -= 1
            plain = step(*inputs)
            if not torch.allclose(plain, hidden, rtol=0.05, atol=0.05 * plain.abs().max().item()):
                Replay.give_up("a recorded step differs from the step itself")
                hidden, replay = plain, None
        cache.length += 1
    written, ends = [], set(eos)
    for row, values in zip(tokens.tolist(), logprobs.tolist()):
        stop = next((i + 1 for i, token in enumerate(row) if token in ends), None)
        written.append(Completion(row[:stop], stop is None, values[:stop]))
    return written


# ============================================================================================ 4. grading

# An answer is what stands in the last \boxed{}, else behind the last "####" (GSM8K), else, for a numeric gold only, the
# last number of the response. Nothing else counts: a grader that searches for the gold in the text rewards guessing lists.

LONGEST_ANSWER = 1000  # characters; no gold is longer, and everything below is at most linear in this


def extract(response):
    """The answer of a response as it stands there, or None.

    >>> extract(r"First \\boxed{3}, no: \\boxed{\\frac{1}{2}}.")
    '\\\\frac{1}{2}'
    """
    # A box inside unfinished thinking is no answer. Later thinking models open <think> in the prompt, so only the last
    # </think> says where the answer begins.
    text = response.rpartition("</think>")[2]
    if "<think>" in text:
        return None
    at = max(text.rfind("\\boxed"), text.rfind("\\fbox"))
    if at >= 0:
        return _braced(text[at : at + LONGEST_ANSWER].split("box", 1)[1].removeprefix("ed"))
    if "####" in text:
        line = text.rpartition("####")[2][:LONGEST_ANSWER].strip().split("\n")[0].strip()
        return line.rstrip(".") or None
    return None


def _braced(text):
    """What follows \\boxed: {...} with balanced braces, or one token without. An unbalanced box was cut off: no answer."""
    text = text.lstrip()
    if not text.startswith("{"):
        token = re.match(r"\\?\w+|\S", text)
        return token.group() if token else None
    depth, i = 0, 0
    while i < len(text):
        if text[i] == "\\":  # \{ and \} are set braces, not grouping
            i += 2
            continue
        depth += (text[i] == "{") - (text[i] == "}")
        if depth == 0:
            return text[1:i].strip() or None
        i += 1
    return None


def grade(response, gold):
    """Is the response's answer the gold? Exact for numbers; by math-verify for other mathematics; never by executing text.

    Returns within two seconds, whatever the input (after the first call that needs math-verify has started it).
    """
    response, gold = str(response), str(gold)
    wanted = gold.rpartition("####")[2] if "####" in gold else gold
    boxed = extract(wanted) if "\\boxed" in wanted else None
    wanted = _tidy(boxed if boxed is not None else wanted[:LONGEST_ANSWER])
    said = extract(response)
    if said is None and number(wanted) is not None:
        text = response.rpartition("</think>")[2][-LONGEST_ANSWER:]
        if (
            "<think>" in response.rpartition("</think>")[2] or "\\boxed" in text
        ):  # unfinished thinking, or a box that was cut off
            return False
        found = re.findall(r"-?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?", text)
        said = found[-1] if found else None
    return said is not None and wanted != "" and _equal(_tidy(said), wanted, time.monotonic() + 1.5)


def verify(response, gold, truncated):
    """The verdict on a rollout: right, and, where it was cut off, with an answer that was given as one. The last number of an
    unfinished text is no answer, though it may happen to be the gold."""
    return bool(grade(response, gold)) and not (truncated and extract(response) is None)


def _tidy(text):
    """Drop what carries no mathematics: dollars, spacing, \\left and \\right, display sizes, text wrappers, a full stop."""
    text = text.strip().strip("$").strip()
    text = re.sub(r"(?<!\\)\\(?:(?:left|right|displaystyle|quad|qquad)(?![a-zA-Z])|[,!;: ])", " ", text)
    text = re.sub(r"\\[dtc]frac(?![a-zA-Z])", r"\\frac", text)
    text = re.sub(r"\\frac ?(\d|\\[a-zA-Z]+|[a-zA-Z]) ?(\d|\\[a-zA-Z]+|[a-zA-Z])", r"\\frac{\1}{\2}", text)  # \frac12
    text = re.sub(r"\\(?:text|textbf|mathrm|mathbf|textrm|mbox)\s*\{([^{}]*)\}", r" \\text{\1} ", text)
    text = re.sub(r"\\?\$|[£€]", "", text).replace("−", "-")
    text = re.sub(r"\\varnothing(?![a-zA-Z])|\\\{ *\\\}", r"\\emptyset", text)
    # "3 and 5", "3 or 5", "3; 5" are lists
    text = re.sub(r";|\\text\{ *(?:and|or) *\}|(?<=[\d)}]) (?:and|or) (?=[-\d(\\])", ",", text)
    text = re.sub(r"\^\s*(?:\\circ|\{\s*\\circ\s*\})|°|\\degree", "", text)
    # A percent sign is a unit like any other: 50\% is 50, and never 0.5. Accepting both would accept a factor of 100.
    text = re.sub(r"\\?%", "", text)
    return re.sub(r"\s+", " ", text).strip().rstrip(".").strip()


UNIT = r"\s*\\text\{[^{}]*\}(?:\s?\^\s?\{?[23]\}?)?$"  # behind a number or an expression


def number(text):
    """The exact value of a plain number as a Fraction, or None: 025, 27.0, 1,234, -3/4, \\frac{3}{4}, 3\\frac{1}{2}, 1e11, 5 cm."""
    text = re.sub(r"^\\text\{([^{}]*)\}$", r"\1", text.strip()).strip()
    text = re.sub(UNIT, "", text)
    text = re.sub(r"(?<=[\d}])\s+(?!pi\b|sqrt\b)[A-Za-z]{2,}(?:\s+[A-Za-z]+)*(?:/[a-z]+)?(?:\^\{?[23]\}?)?$", "", text)
    if len(text) > 80:
        return None
    text = text.replace("{,}", ",")
    if re.fullmatch(r"[-+]?\d{1,3}(?:(?:,\d{3})+|(?: \d{3})+)(?:\.\d+)?", text):  # 1,234 and 1 234
        text = text.replace(",", "").replace(" ", "")
    sign, body = (-1, text[1:].strip()) if text.startswith("-") else (1, text.removeprefix("+").strip())
    body = re.sub(r"^10 ?\^", "1*10^", body)
    if m := re.fullmatch(r"(\d*)\.(\d*)\\overline ?\{ ?(\d+) ?\}", body):  # 0.1\overline{6}: a period
        fixed, period = Fraction(int(m[1] + m[2] or 0), 10 ** len(m[2])), Fraction(int(m[3]), 10 ** len(m[3]) - 1)
        return sign * (fixed + period / 10 ** len(m[2]))
    if m := re.fullmatch(r"(\d*\.?\d*)(?:[eE]([-+]?\d{1,3})| ?(?:\\times|\\cdot|\*) ?10\^\{?([-+]?\d{1,3})\}?)?", body):
        if not re.search(r"\d", m[1] or ""):
            return None
        return sign * Fraction(m[1] if not m[1].endswith(".") else m[1][:-1]) * Fraction(10) ** int(m[2] or m[3] or 0)
    if m := re.fullmatch(r"(?:(\d+) )?(\d+) ?/ ?(\d+)", body) or re.fullmatch(
        r"(\d+)? ?\\frac ?\{ ?(-?\d+) ?\} ?\{ ?(-?\d+) ?\}", body
    ):
        return sign * (int(m[1] or 0) + Fraction(int(m[2]), int(m[3]))) if int(m[3]) else None
    return None


def _split(text):
    """Parts between commas that stand outside all brackets."""
    parts, depth, start = [], 0, 0
    for i, c in enumerate(text):
        depth += (c in "([{") - (c in ")]}")
        if c == "," and depth == 0:
            parts.append(text[start:i].strip())
            start = i + 1
    return [*parts, text[start:].strip()]


def _equal(said, wanted, until, depth=0):
    """Compare two tidied answers: numbers exactly, words by letters, lists as sets, brackets with their kind, the rest by math-verify."""
    a, b = number(said), number(wanted)
    if a is not None and b is not None:
        return a == b
    if re.sub(r"(?<!\d) | (?!\d)", "", said) == re.sub(r"(?<!\d) | (?!\d)", "", wanted):  # 1 2 is not 12
        return True
    if depth > 3 or not said or not wanted:
        return False
    # Words: sympy would read them as products of letters, in which "tea" equals "eat".
    plain = [re.sub(r"\\text\{([^{}]*)\}", r"\1", t).strip().rstrip(".") for t in (said, wanted)]
    letters = re.fullmatch(r"[A-Za-z][A-Za-z' -]*", plain[1]) and (
        "\\text" in wanted or max(map(len, re.findall("[A-Za-z]+", plain[1]))) >= 4
    )
    if re.fullmatch(r"[A-Z]{2,}", said) and re.fullmatch(r"[A-Z]{2,}", wanted):  # names of segments and angles
        return said == wanted
    if letters or re.fullmatch(r"\(?[A-E]\)?", plain[1]) and "\\text" in wanted + said:
        return plain[0].strip("()").casefold() == plain[1].strip("()").casefold()
    named = r"(?:[A-Za-z](?:\([a-z]\))?|\([a-z](?:, ?[a-z])+\)) ?(?:=|\\in(?![a-z])) ?(.+)"
    if "=" not in wanted and (m := re.fullmatch(named, said)):  # x = 5 for 5
        return _equal(m[1], wanted, until, depth + 1)
    if "\\text" not in wanted and (bare := re.sub(UNIT, "", said)) not in (said, ""):  # 18\pi cm^2 for 18\pi
        return _equal(bare, wanted, until, depth + 1)
    if "\\pm" in said + wanted:  # both signs written out
        ours, theirs = (",".join(_both_signs(p) for p in _split(t)) for t in (said, wanted))
        return _equal(ours, theirs, until, depth + 1)
    # Lists without brackets: the same answers in any order. With brackets the kind of bracket matters: (0,1] is not [0,1],
    # and only a set is unordered.
    ours, theirs = _split(said), _split(wanted)
    if len(theirs) > 1 and "=" not in said and all(re.fullmatch(named, p) for p in theirs):  # 5, 6 for x=5, y=6: in this order
        return len(ours) == len(theirs) and all(
            _equal(p, re.fullmatch(named, q)[1], until, depth + 1) for p, q in zip(ours, theirs)
        )
    if "\\cup" in said and "\\cup" in wanted:  # a union in any order
        ours, theirs = ([p.strip() for p in re.split(r"\\cup(?![a-z])", t)] for t in (said, wanted))
        return len(ours) == len(theirs) and _same_members(ours, theirs, until, depth)
    braces = r"\\\{(.*)\\\}"  # a set of which the braces were left out
    if len(ours) > 1 and (m := re.fullmatch(braces, wanted)) and not re.fullmatch(braces, said):
        return _equal(said, m[1].strip(), until, depth + 1)
    if len(theirs) > 1 and (m := re.fullmatch(braces, said)) and not re.fullmatch(braces, wanted):
        return _equal(m[1].strip(), wanted, until, depth + 1)
    if len(theirs) > 1 and number(wanted) is None:
        return len(ours) == len(theirs) and _same_members(ours, theirs, until, depth)
    if len(ours) > 1:  # several answers where one was asked for
        return False
    opened = r"(\\\{|\(|\[)(.*)(\\\}|\)|\])"
    x, y = re.fullmatch(opened, said), re.fullmatch(opened, wanted)
    if x and y and len(_split(y[2])) > 1:
        if (x[1], x[3]) != (y[1], y[3]):
            return False
        ours, theirs = _split(x[2]), _split(y[2])
        if x[1] == "\\{":
            return len(ours) == len(theirs) and _same_members(ours, theirs, until, depth)
        return len(ours) == len(theirs) and all(_equal(p, q, until, depth + 1) for p, q in zip(ours, theirs))
    if y and len(_split(y[2])) > 1 or x and len(_split(x[2])) > 1:  # a bracketed tuple against something else
        return False
    return _math_verify(said, wanted, until)


def _both_signs(text):
    """3 \\pm 2 as "3 + 2, 3 - 2"; \\mp goes the other way."""
    if "\\pm" not in text:
        return text
    one, two = (re.sub(r"\\pm(?![a-z])", a, re.sub(r"\\mp(?![a-z])", b, text)).strip() for a, b in (("+", "-"), ("-", "+")))
    return f"{one.removeprefix('+').strip()}, {two}"


def _same_members(ours, theirs, until, depth):
    left = list(theirs)[:20]
    for part in ours[:20]:
        match = next((t for t in left if _equal(part, t, until, depth + 1)), None)
        if match is None:
            return False
        left.remove(match)
    return not left


# math-verify decides whether two expressions are equal, with sympy, which can take minutes or gigabytes on a tower of
# exponents; its own guard is a signal, which works in the main thread only. So it runs in a process of its own, started
# once: that process loads sympy and then forks a child for every question, so that a hanging child can be killed and the
# next question is answered at once. Only LatexExtractionConfig is used: it parses by a grammar. math-verify's other
# extractor goes through sympy's parse_expr, which is eval: it is never called on a model's text.
WORKER = r"""
import json, os, select, signal, sys
from math_verify import LatexExtractionConfig, parse, verify
def judge(said, gold):
    read = lambda text: parse("\\boxed{" + text + "}", extraction_config=[LatexExtractionConfig(boxed_match_priority=0)], parsing_timeout=None)
    return bool(verify(read(gold), read(said), timeout_seconds=None))
def limited(said, gold):
    try:
        import resource
        resource.setrlimit(resource.RLIMIT_AS, (2 << 30, 2 << 30))
    except Exception:
        pass
    try:
        return judge(said, gold)
    except BaseException:
        return False
judge("x+1", "1+x")
print("ready", flush=True)
for line in sys.stdin:
    said, gold, seconds = json.loads(line)
    if not hasattr(os, "fork"):
        print(json.dumps(limited(said, gold)), flush=True)
        continue
    r, w = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(r)
        os.write(w, b"1" if limited(said, gold) else b"0")
        os._exit(0)
    os.close(w)
    answer = os.read(r, 1) if select.select([r], [], [], seconds)[0] else b"0"
    os.close(r)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    print(json.dumps(answer == b"1"), flush=True)
"""
_worker, _worker_lock = None, threading.Lock()


def warm_up(wait=False):
    """Start the process that runs math-verify, which takes a second or two; evaluate() does so while it samples."""
    global _worker
    if _worker is None or _worker.poll() is not None:
        _worker = subprocess.Popen(
            [sys.executable, "-c", WORKER],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            encoding="utf-8",
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        atexit.register(_worker.kill)
        _worker.ready = False
    if wait and not _worker.ready:
        if _worker.stdout.readline().strip() != "ready":
            raise Mistake("math-verify could not be loaded; install the requirements: pip install -r requirements.txt")
        _worker.ready = True


def _math_verify(said, gold, until):
    if len(said) > 300 or len(gold) > 300:  # no gold of the benchmarks comes near; the grammar takes seconds there
        return False
    with _worker_lock:
        was_ready = _worker is not None and getattr(_worker, "ready", False) and _worker.poll() is None
        warm_up(wait=True)
        seconds = until - time.monotonic() if was_ready else 1.5  # its start is not the answer's fault
        if seconds <= 0:
            return False
        try:
            _worker.stdin.write(json.dumps([said, gold, seconds]) + "\n")
            _worker.stdin.flush()
            if not select.select([_worker.stdout], [], [], seconds + 0.3)[0]:
                _worker.kill()  # the next question starts a new one
                _worker.wait()
                return False
            return json.loads(_worker.stdout.readline() or "false")
        except (OSError, ValueError):
            return False


# ============================================================================================ 5. statistics


def wilson(successes, total):
    """95 % interval of a proportion (Wilson's score interval): unlike +-1.96 s it is right near 0 and 1 and for small counts.

    >>> [round(x, 3) for x in wilson(5, 10)]
    [0.237, 0.763]
    """
    if total == 0:
        return [0.0, 1.0]
    z, p = 1.959964, successes / total
    centre, half = p + z * z / (2 * total), z * math.sqrt(p * (1 - p) / total + z * z / (4 * total * total))
    return [max(0.0, (centre - half) / (1 + z * z / total)), min(1.0, (centre + half) / (1 + z * z / total))]


# fmt: off
T975 = [12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131, 2.120,
        2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042]
# fmt: on


def mean_interval(values):
    """Mean and 95 % interval (Student's t) of independent values: seeds, or problems. One value has no interval: (m, -inf, inf)."""
    m = sum(values) / len(values)
    if len(values) < 2:
        return m, -math.inf, math.inf
    error = math.sqrt(sum((v - m) ** 2 for v in values) / (len(values) - 1) / len(values))
    half = (T975[len(values) - 2] if len(values) - 1 <= len(T975) else 1.96) * error
    return m, m - half, m + half


def pass_at_k(n, correct, k):
    """Probability that at least one of k samples is right, given `correct` right ones of n: 1 - C(n-c, k) / C(n, k).

    Unbiased. "Any of the first k" has the same mean and much more noise; 1 - (1 - c/n)^k is biased.

    >>> pass_at_k(4, 1, 2)
    0.5
    """
    return 1 - math.comb(n - correct, k) / math.comb(n, k)


def majority(answers, verdicts):
    """Share of right answers among the most frequent ones (1 or 0 without a tie). No answer does not vote."""
    votes = Counter(a for a in answers if a is not None)
    if not votes:
        return 0.0
    most = max(votes.values())
    winners = [a for a, count in votes.items() if count == most]
    return sum(verdicts[answers.index(a)] for a in winners) / len(winners)


def summarise(records, k=1):
    """Numbers of an evaluation from its records (one a sample, see `evaluate`)."""
    problems = {}
    for r in records:
        problems.setdefault(r["index"], []).append(r)
    n = max(map(len, problems.values()))
    rights = [sum(r["correct"] for r in group) for group in problems.values()]
    if n == 1:
        accuracy, interval = sum(rights) / len(rights), wilson(sum(rights), len(rights))
    else:  # samples of one problem are not independent: the problems are
        accuracy, low, high = mean_interval([c / n for c in rights])
        interval = [max(0.0, low), min(1.0, high)]
    lengths = sorted(r["tokens"] for r in records)
    result = {
        "accuracy": accuracy,
        "interval": interval,
        "n": len(problems),
        "samples": n,
        f"avg@{n}": accuracy,
        **{f"pass@{j}": sum(pass_at_k(n, c, j) for c in rights) / len(rights) for j in sorted({1, k}) if j <= n},
        "majority": sum(majority([r["extracted"] for r in g], [r["correct"] for r in g]) for g in problems.values())
        / len(problems),
        "truncated": sum(r["truncated"] for r in records) / len(records),
        "no_answer": sum(r["extracted"] is None for r in records) / len(records),
        "mean_tokens": sum(lengths) / len(lengths),
        "median_tokens": lengths[len(lengths) // 2],
        "max_tokens": lengths[-1],
    }
    if n > 1:  # does the model still try different ways? A way is the sequence of numbers and operators, whatever the words
        ways = [[(re.findall(r"\d+|[-+*/#^]", r["response"]), r["correct"]) for r in g] for g in problems.values()]
        result["distinct"] = sum(len({tuple(w) for w, _ in g}) / n for g in ways) / len(ways)  # of all samples, a share
        result["distinct_right"] = sum(len({tuple(w) for w, ok in g if ok}) for g in ways) / len(ways)  # right ones a problem
    return result


# ============================================================================================ 6. evaluate


def evaluate(
    model,
    tokenizer,
    rows,
    *,
    n=1,
    temperature=0.0,
    top_p=1.0,
    top_k=0,
    max_new_tokens,
    seed=0,
    k=1,
    batch=256,
    thinking=False,
    done=(),
    each=None,
    bar=None,
    autocast=None,
):
    """Sample, grade, count. Returns (summary, records); a record is one sample: index, sample, prompt, response, verdict ...

    done: records of an earlier, interrupted evaluation. Its samples are not drawn again, and since a sample depends on
    (seed, problem, sample) alone, the result is the one of an undisturbed run. each(records): called after every batch.
    """
    warm_up()
    began, records, have = time.time(), list(done), {(r["index"], r["sample"]) for r in done}
    missing = [i for i in range(len(rows)) if any((i, j) not in have for j in range(n))]
    prompts = {i: prompt_ids(tokenizer, rows[i]["prompt"], thinking) for i in missing}
    missing.sort(key=lambda i: len(prompts[i]))
    ends, per_batch = eos_ids(model, tokenizer), max(1, batch // n)
    with plumbing.progress(len(missing), "evaluating", "problem", show=bar) as shown:
        for first in range(0, len(missing), per_batch):
            chosen = missing[first : first + per_batch]
            with autocast or plumbing.no_autocast():
                completions = sample(
                    model,
                    [prompts[i] for i in chosen],
                    n=n,
                    max_new_tokens=max_new_tokens,
                    eos=ends,
                    vocabulary=len(tokenizer),
                    keys=[("evaluate", seed, i, j) for i in chosen for j in range(n)],
                    temperature=temperature,
                    top_p=top_p,
                    top_k=top_k,
                    rows=batch,
                )
            fresh = []
            for c, (i, j) in zip(completions, [(i, j) for i in chosen for j in range(n)]):
                if (i, j) in have:
                    continue
                # Only new tokens are decoded: a prompt can hold a box, or the gold itself.
                response = tokenizer.decode(c.ids, skip_special_tokens=True).strip()
                fresh.append(
                    {
                        "index": i,
                        "sample": j,
                        "prompt": tokenizer.decode(prompts[i]),
                        "response": response,
                        "gold": rows[i]["answer"],
                        "extracted": extract(response),
                        "correct": verify(response, rows[i]["answer"], c.truncated),
                        "tokens": len(c.ids),
                        "truncated": c.truncated,
                    }
                )
            records += fresh
            if each:
                each(fresh)
            shown.update(len(chosen))
    records.sort(key=lambda r: (r["index"], r["sample"]))
    return {**summarise(records, k), "seconds": round(time.time() - began, 2)}, records


# ============================================================================================ 7. compare


# Flags that older runs did not have, with the value that means what they did.
LATER = {"sampler": "own", "adam_bits": 32, "lora": 0}


def read_run(folder):
    """A training run (metrics.jsonl) or an evaluation (responses.jsonl) as {name, seed, curve, final, problems}."""
    folder = Path(folder)
    config = plumbing.read_json(folder / "config.json", f"'{folder}' is not a run: it has no config.json.")
    apart = ("seed", "out", "resume", "model", "script", "versions", "vllm_memory")
    same = {k: v for k, v in config.items() if k not in apart and not (k in LATER and LATER[k] == v)}
    if (folder / "metrics.jsonl").exists():
        metrics = plumbing.read_jsonl(folder / "metrics.jsonl", ["step"])
        curve = [(m["step"], m["eval"]["accuracy"]) for m in metrics if "eval" in m]
        if not curve:
            raise Mistake(f"'{folder}' has no evaluation yet; let it run to its first one.")
        return {
            "script": config.get("script", "run"),
            "arm": same,
            "seed": config.get("seed"),
            "curve": curve,
            "final": curve[-1][1],
            "pairs": None,
        }
    if (folder / "responses.jsonl").exists():
        per = {}
        for r in plumbing.read_jsonl(folder / "responses.jsonl", ["index", "correct"]):
            per.setdefault(r["index"], []).append(r["correct"])
        scores = {i: sum(v) / len(v) for i, v in per.items()}
        return {
            "script": str(config.get("model")),
            "arm": {**same, "model": config.get("model")},
            "seed": config.get("seed"),
            "curve": None,
            "final": sum(scores.values()) / len(scores),
            "pairs": scores,
            "benchmark": config.get("benchmark"),
        }
    raise Mistake(f"'{folder}' is not a run: it has neither metrics.jsonl nor responses.jsonl.")


def compare(folders, out):
    """A table of arms over seeds, each against the first arm, paired; curves into one PNG. Returns the table as text.

    An arm is all runs that differ in their seed alone. Training runs are paired by seed (same prompts in the same
    order); evaluations are paired by problem. Pairing removes what both arms share, which is most of the noise.
    """
    runs = [read_run(f) for f in folders]
    kinds = {r["curve"] is None for r in runs}
    if len(kinds) > 1:
        raise Mistake("Compare training runs with training runs, or evaluations with evaluations, not both at once.")
    if runs[0]["pairs"] is not None and len({r["benchmark"] for r in runs}) > 1:
        raise Mistake(
            f"These evaluations are of different benchmarks: {', '.join(sorted({str(r['benchmark']) for r in runs}))}."
        )
    arms = {}
    for r in runs:
        arms.setdefault((r["script"], json.dumps(r["arm"], sort_keys=True)), []).append(r)
    keys = list(arms)
    # An arm is named by its script and by what is set differently somewhere.
    settings = [json.loads(k[1]) for k in keys]
    varying = [f for f in dict.fromkeys(f for s in settings for f in s) if len({json.dumps(s.get(f)) for s in settings}) > 1]
    names = [" ".join([k[0], *(f"{f}={s[f]}" for f in varying if f in s and (f != "model"))]) for k, s in zip(keys, settings)]
    names = [plumbing.harmless(n) for n in names]  # they come from the runs' files, which may be a stranger's
    lines = [f"{'arm':<44} {'runs':>4} {'accuracy':>9} {'95 % interval':>17}   difference to the first (paired)"]
    base = arms[keys[0]]
    for key, name in zip(keys, names):
        group = arms[key]
        if group[0]["pairs"] is None:
            m, low, high = mean_interval([r["final"] for r in group])
            by_seed = {r["seed"]: r["final"] for r in base}
            differences = [r["final"] - by_seed[r["seed"]] for r in group if r["seed"] in by_seed]
        else:
            per = {i: sum(r["pairs"][i] for r in group) / len(group) for i in group[0]["pairs"]}
            other = {i: sum(r["pairs"].get(i, 0) for r in base) / len(base) for i in base[0]["pairs"]}
            m, low, high = mean_interval(list(per.values()))
            differences = [per[i] - other[i] for i in per if i in other]
        interval = f"{100 * low:5.1f} .. {100 * high:5.1f}" if low > -math.inf else "one run: none"
        text = ""
        if key != keys[0] and differences:
            d, dl, dh = mean_interval(differences)
            text = (
                f"{100 * d:+.1f} [{100 * dl:+.1f}, {100 * dh:+.1f}]"
                if dl > -math.inf
                else f"{100 * d:+.1f} (one pair: no interval)"
            )
            text += f" over {len(differences)} {'seeds' if group[0]['pairs'] is None else 'problems'}"
        lines.append(f"{name:<44} {len(group):>4} {100 * m:>8.1f}% {interval:>17}   {text}")
    if runs[0]["curve"]:
        plumbing.draw_arms({name: [r["curve"] for r in arms[key]] for key, name in zip(keys, names)}, Path(out))
        lines.append(f"curves: {out}")
    return "\n".join(lines)


# ============================================================================================ main


def arguments(argv):
    p = plumbing.Parser(__doc__)
    p.add_argument("--model", help="folder or hub name of the model to evaluate")
    p.add_argument(
        "--benchmark", help=f"{', '.join(BENCHMARKS)}, or the path of a JSONL file with the columns problem and answer"
    )
    p.add_argument("--n", type=int, default=1, help="samples a problem (default 1)")
    p.add_argument(
        "--temperature",
        type=float,
        default=0.0,
        help="0 is greedy (default); Qwen3 without thinking: 0.7 with --top_p 0.8 --top_k 20",
    )
    p.add_argument(
        "--top_p", type=float, default=1.0, help="sample from the smallest set of tokens with this much mass (default 1: all)"
    )
    p.add_argument("--top_k", type=int, default=0, help="sample from the k likeliest tokens (default 0: all)")
    p.add_argument("--k", type=int, default=1, help="also report pass@k, for k up to n (default 1)")
    p.add_argument("--limit", type=int, help="only the first so many problems")
    p.add_argument("--max_new_tokens", type=int, help="longest response (default: 256 on the toy, 4096 elsewhere)")
    p.add_argument("--thinking", action="store_true", help="let the model think (its chat template decides what that means)")
    p.add_argument("--seed", type=int, default=0, help="seed of the samples; greedy needs none")
    p.add_argument("--batch", type=int, help="samples drawn at once (default: 256 on a CPU and on the toy, 64 on a GPU)")
    p.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1 ...")
    p.add_argument(
        "--dtype", default="auto", choices=["auto", "float32", "bfloat16"], help="auto: bfloat16 on a GPU, float32 on a CPU"
    )
    p.add_argument(
        "--sampler",
        default="own",
        choices=["own", "vllm"],
        help="own: this file's; vllm: the package vllm (vllm_sampler.py)",
    )
    p.add_argument("--vllm_memory", type=float, default=0.8, help="share of the GPU's memory for --sampler vllm (default 0.8)")
    p.add_argument(
        "--out",
        help="folder for responses.jsonl and summary.json (default runs/eval-MODEL-BENCHMARK); continues what it finds there",
    )
    p.add_argument("--compare", nargs="+", metavar="RUN", help="compare folders of runs instead of evaluating")
    return p, p.parse_args(argv)


def main(argv=None):
    parser, args = arguments(argv)
    if args.compare:
        print(compare(args.compare, args.out or "compare.png"))
        return
    if not args.model or not args.benchmark:
        raise Mistake(
            "Say what to evaluate: --model FOLDER_OR_NAME --benchmark NAME (or --compare RUN RUN ...); --help explains all flags."
        )
    plumbing.require(args.n >= 1, f"--n is {args.n}; it must be at least 1.")
    plumbing.require(0 <= args.temperature < 100, f"--temperature is {args.temperature}; it must be 0 (greedy) or more.")
    plumbing.require(
        args.n == 1 or args.temperature > 0, f"--n {args.n} greedy samples would all be the same; set --temperature above 0."
    )
    plumbing.require(0 < args.top_p <= 1, f"--top_p is {args.top_p}; it must lie in (0, 1].")
    plumbing.require(args.top_k >= 0, f"--top_k is {args.top_k}; it must be 0 (off) or more.")
    plumbing.require(1 <= args.k <= args.n, f"--k is {args.k}; pass@k needs 1 <= k <= n, and n is {args.n}.")
    plumbing.require(args.limit is None or args.limit >= 1, f"--limit is {args.limit}; it must be at least 1.")
    plumbing.require(args.batch is None or args.batch >= 1, f"--batch is {args.batch}; it must be at least 1.")
    plumbing.require(
        args.max_new_tokens is None or args.max_new_tokens >= 1,
        f"--max_new_tokens is {args.max_new_tokens}; it must be at least 1.",
    )
    plumbing.check_packages(args)
    plumbing.require(plumbing.process()[1] == 1, "evaluate.py runs in one process; start it with python, not with a launcher.")
    rows = load_benchmark(args.benchmark, "test", args.limit)
    device = plumbing.pick_device(args.device)
    toy = args.benchmark.startswith("toy")
    if args.max_new_tokens is None:
        args.max_new_tokens = 256 if toy else 4096
    if args.batch is None:
        args.batch = 256 if toy or device.type == "cpu" else 64
    name = re.sub(
        r"[^\w.-]+",
        "-",
        f"{Path(args.model).name if not Path(args.model).exists() else '-'.join(Path(args.model).parts[-2:])}-{Path(args.benchmark).stem}",
    )
    out = plumbing.make_folder(args.out or f"runs/eval-{name}")
    config = {
        k: v for k, v in vars(args).items() if k not in ("out", "compare", "batch", "device", "limit", "k", "vllm_memory")
    }
    done = resume_records(out, config, rows, args.n)
    tokenizer = plumbing.load_tokenizer(args.model)
    model = plumbing.load_model(args.model, device, plumbing.compute_dtype(args.dtype, device))
    plumbing.check_head(tokenizer, [(args.model, model)])
    plumbing.check_prompts(tokenizer, [r["prompt"] for r in rows[:50]], args.benchmark)
    if args.sampler == "vllm":
        plumbing.attach_vllm(model, tokenizer, args, plumbing.compute_dtype(args.dtype, device))
    plumbing.write_json(out / "config.json", config)
    if done:
        print(f"continuing {out}: {len(done)} of {len(rows) * args.n} samples are there")
    with open(out / "responses.jsonl", "a", encoding="utf-8") as f:

        def each(records):
            f.writelines(json.dumps(r, ensure_ascii=False) + "\n" for r in records)
            f.flush()

        summary, records = evaluate(
            model,
            tokenizer,
            rows,
            n=args.n,
            temperature=args.temperature,
            top_p=args.top_p,
            top_k=args.top_k,
            max_new_tokens=args.max_new_tokens,
            seed=args.seed,
            k=args.k,
            batch=args.batch,
            thinking=args.thinking,
            done=done,
            each=each,
            bar=True,
        )
    # Written in the order of the problems, whatever the order of the batches or of interruptions was.
    plumbing.write_text(out / "responses.jsonl", "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in records))
    plumbing.write_json(out / "summary.json", {"model": args.model, "benchmark": args.benchmark, **summary})
    low, high = summary["interval"]
    print(
        f"{args.model} on {args.benchmark}: accuracy {100 * summary['accuracy']:.1f} %  [{100 * low:.1f}, {100 * high:.1f}]"
        f"  ({summary['n']} problems x {summary['samples']} samples)"
    )
    print(
        "  ".join(
            f"{key} {value:.3f}" if isinstance(value, float) else f"{key} {value}"
            for key, value in summary.items()
            if key not in ("accuracy", "interval", "n", "samples")
        )
    )
    print(f"responses and summary: {out}/")


def resume_records(out, config, rows, n):
    """Records of an interrupted evaluation in `out`; a Mistake if the folder holds another one. A half-written last line is dropped."""
    if not (out / "config.json").exists():
        plumbing.require(
            not (out / "metrics.jsonl").exists() and not (out / "responses.jsonl").exists(),
            f"'{out}' holds another run; choose another --out.",
        )
        return []
    before = {**LATER, **plumbing.read_json(out / "config.json", "")}
    changed = [k for k in config if before.get(k) != config[k]]
    plumbing.require(
        not changed and (out / "metrics.jsonl").exists() is False,
        f"'{out}' holds another evaluation ({', '.join(f'{k}: {before.get(k)}' for k in changed[:3])}); choose another --out or delete it.",
    )
    if not (out / "responses.jsonl").exists():
        return []
    fields = ["index", "sample", "response", "gold", "extracted", "correct", "tokens", "truncated"]
    records = plumbing.read_jsonl(out / "responses.jsonl", fields, drop_broken_end=True)
    records = [r for r in records if r["index"] < len(rows) and r["sample"] < n]
    plumbing.require(
        all(r["gold"] == rows[r["index"]]["answer"] for r in records),
        f"'{out}' holds responses to other problems; choose another --out or delete it.",
    )
    plumbing.write_text(out / "responses.jsonl", "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in records))
    return records


if __name__ == "__main__":
    plumbing.run(main)
