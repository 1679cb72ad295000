"""Models and tokenizers: how they are loaded, and what must be true before they are used."""

import contextlib
import os
from pathlib import Path

import torch

from common.arguments import Mistake, require, shorten
from common.hub import from_the_hub, missing_model, quiet, read_config, refuse_run, where
from common.processes import gather, process
from common.size import say_loading

# ======================================================================== device and precision


def pick_device(name):
    if name == "auto":
        card = f":{os.environ.get('LOCAL_RANK', 0)}" if process()[1] > 1 else ""
        name = f"cuda{card}" if torch.cuda.is_available() else "cpu"
        # A Mac has one MPS device, and several processes cannot exchange results through it.
        if name == "cpu" and torch.backends.mps.is_available() and process()[1] == 1:
            trouble = what_is_wrong_with_mps()
            if not trouble:
                return torch.device("mps")
            print(f"MPS is not used ({trouble}): the CPU computes")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError):
        raise Mistake(
            f"There is no usable device '{name}' here; use --device cpu, or --device auto to let "
            "the script choose."
        ) from None
    return device


def what_is_wrong_with_mps():
    """"" if two small steps of training give the CPU's numbers on a Mac's GPU, else the reason.
    Old versions of PyTorch and macOS lack operations there, and some compute wrong numbers."""
    try:
        here, there = (two_steps(torch.device(name)) for name in ("cpu", "mps"))
    except Exception as error:
        return shorten(error, 100)
    return "" if torch.allclose(here, there, atol=1e-3) else "its numbers are not those of the CPU"


def two_steps(device):
    """Weights of a tiny attention layer before and after two steps, one after the other. The steps
    use what an update needs: an embedding, attention, log-probabilities, a choice by a mask. Behind
    the weights stand the numbers of `a_draw`."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(16, 8, generator=generator).to(device).requires_grad_()  # [V, width]
    start = weight.detach().cpu().clone()  # on a CPU `cpu()` alone is the weight itself
    ids = torch.arange(12, device=device).view(2, 6)  # [B, L]
    # SGD: a step of AdamW has the size of its rate, even if the gradient is wrong.
    optimizer = torch.optim.SGD([weight], lr=0.01)
    for _ in range(2):
        x = torch.nn.functional.embedding(ids, weight)[:, None]  # [B, 1, L, width]
        attend = torch.nn.functional.scaled_dot_product_attention
        hidden = attend(x, x, x, is_causal=True)[:, 0]  # [B, L, width]
        logp = (hidden[ids % 3 > 0] @ weight.T).log_softmax(-1)  # [N, V]
        loss = -logp.gather(1, ids[ids % 3 > 0][:, None]).sum()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return torch.cat([start.flatten(), weight.detach().cpu().flatten(), a_draw(device)])


def a_draw(device):
    """Numbers from the operations with which common/sampler.py draws a token and drops rows."""
    mask = torch.ones(6, 6, dtype=torch.bool, device=device).tril()  # [R, L]
    position = mask.cumsum(1) - 1  # [R, L]
    sums = position.float().softmax(-1).cumsum(-1, dtype=torch.float32)  # [R, L]
    token = torch.searchsorted(sums, 0.4 * sums[:, -1:], right=True)  # [R, 1]
    ended = torch.isin(token.squeeze(1), torch.tensor([2, 5], device=device))  # [R]
    left = (~ended).nonzero().squeeze(1)  # [r], here 3 of the 6 rows
    visible = torch.nn.functional.pad(mask, (0, 1), value=True)[left]  # [r, L + 1]
    token[left, 0] = sums.argmax(-1)[left]
    found = position, token, visible, sums.index_select(0, left)
    return torch.cat([x.flatten().float().cpu() for x in found])


def compute_dtype(name, device):
    if name == "auto" and device.type == "cuda":
        # Cards before Ampere (T4, V100, RTX 20) only emulate bfloat16, which is slow.
        with torch.cuda.device(device):  # the question is about the current card
            native = torch.cuda.is_bf16_supported(including_emulation=False)
        # Several processes add their gradients up. So all of them take the same type.
        name = "bfloat16" if all(gather(native)) else "float16"
    return torch.float32 if name == "auto" else getattr(torch, name)  # auto: a CPU, a Mac


def no_autocast():
    return contextlib.nullcontext()


def autocaster(device, dtype):
    """A function that makes the context in which a float32 model computes in `dtype`."""
    if dtype == torch.float32:
        return no_autocast
    return lambda: torch.autocast(device.type, dtype=dtype)


# ======================================================================== loading


def load_tokenizer(name):
    from transformers import AutoTokenizer

    quiet()
    name = where(name)
    refuse_run(name)
    if not Path(name).exists():
        from_the_hub()
    try:
        return AutoTokenizer.from_pretrained(name, trust_remote_code=False)
    except Exception as error:
        raise Mistake(missing_model(name, "tokenizer", error)) from None


def load_model(name, device, dtype, tokenizer=None):
    """A causal language model from a folder or from the hub.

    Only safetensors files are loaded, because a pickle can run code. Code from the hub is never
    run. With a tokenizer the model also gets the attributes that `know` sets.
    """
    from transformers import AutoModelForCausalLM

    quiet()
    name = where(name)
    refuse_run(name)
    if not Path(name).exists():
        from_the_hub()
    check_family(name)
    say_loading(name, device, dtype)
    try:
        model, about = AutoModelForCausalLM.from_pretrained(
            name,
            dtype=dtype,
            attn_implementation="sdpa",
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
        )
    except Exception as error:
        raise Mistake(missing_model(name, "model", error)) from None
    # What is missing in the files would be random, and other numbers each time.
    lost = sorted({*about["missing_keys"], *(key for key, *_ in about["mismatched_keys"])})
    require(
        not lost,
        f"'{name}' lacks {len(lost)} of the weights that its config.json asks for, such as "
        f"{(lost or [''])[0]}; save the whole model again, adapters merged, under its own names.",
    )
    # Settings for sampling without do_sample are refused when the model is saved.
    generation = model.generation_config
    if generation is not None and any(
        getattr(generation, key, None) not in (None, 1.0, 50)
        for key in ("temperature", "top_p", "top_k")
    ):
        generation.do_sample = True
    model = model.to(device).eval()
    without_dropout(model)
    check_architecture(model, name)
    return model if tokenizer is None else know(model, tokenizer)


def without_dropout(model):
    """No dropout in training either. The sampler has none, so with it the rollouts would be those
    of another model, and a model that is its own teacher would differ from itself."""
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        if isinstance(getattr(module, "attention_dropout", None), float):
            module.attention_dropout = 0.0


NEEDED = (
    "vocab_size hidden_size intermediate_size num_hidden_layers num_attention_heads "
    "num_key_value_heads"
).split()


def check_family(name):
    """Refuse a family that lacks what the sampler and the memory's prediction need, before its
    weights are loaded."""
    require(
        not Path(name, "adapter_config.json").exists() or Path(name, "config.json").exists(),
        f"'{name}' is an adapter and no whole model; merge it with its base model first "
        "(merge_and_unload of the package peft) and save that.",
    )
    config = read_config(name)
    lacking = [field for field in NEEDED if config is not None and not hasattr(config, field)]
    require(
        not lacking,
        f"'{name}' is a model of the family {getattr(config, 'model_type', '?')}; only models like "
        "Qwen3, Qwen2.5, Llama, SmolLM2 work here (its config.json has no "
        f"{', '.join(lacking)}).",
    )


def check_architecture(model, name):
    """The methods run the backbone first and then the head, on a few positions at a time.

    That equals the model's own output only if nothing comes after the head (some families scale
    or cap their logits) and if no layer attends to a sliding window only.
    """
    # Some families have no list of layer types. With them a window in the config is one for all.
    window = getattr(model.config, "sliding_window", None)
    context = getattr(model.config, "max_position_embeddings", None) or 0
    if not getattr(model.config, "use_sliding_window", True) or (window or 0) >= context > 0:
        window = None  # it is switched off, or never shorter than a text
    alike = "sliding window attention" if window else "full_attention"
    kinds = set(getattr(model.config, "layer_types", None) or [alike])
    require(
        kinds == {"full_attention"},
        f"'{name}' has layers of kind {', '.join(sorted(kinds))}; only models with full attention "
        "work here (Qwen3, Qwen2.5, Llama, SmolLM2 ...).",
    )
    with torch.no_grad():
        ids = torch.arange(4, device=model.device)[None]  # [1, 4]
        hidden = model.base_model(input_ids=ids).last_hidden_state  # [1, 4, width]
        logits = model.get_output_embeddings()(hidden)  # [1, 4, V]
        require(
            model.dtype != torch.float16 or logits.isfinite().all(),
            f"'{name}' computes numbers that are too large for float16; use --dtype bfloat16, "
            "which old cards only emulate, or --dtype float32.",
        )
        calm = model(input_ids=ids).logits
        require(
            torch.allclose(logits, calm, rtol=1e-3, atol=1e-5),
            f"'{name}' does more to its logits than a linear head; it is not supported.",
        )
        training = [model.train()(input_ids=ids).logits for _ in range(2)]
        model.eval()
        require(
            all(torch.allclose(calm, x, rtol=1e-2, atol=1e-2) for x in training),
            f"'{name}' computes other numbers in training than in sampling (it draws at random "
            "there); it is not supported.",
        )


def know(model, tokenizer):
    """Write down on the model what sampler and losses need to know about it.

    vocabulary: one more than the tokenizer's highest id. Heads can be wider, because rows are added
    to make the matrix product faster. Logits beyond the vocabulary are always cut off.
    ends: the ids that end a response.  turn_end: the one that ends a solution to be learnt.
    engine: what draws samples instead of common/sampler.py.
    """
    model.vocabulary, model.ends = vocabulary_size(tokenizer), eos_ids(model, tokenizer)
    behind = end_of_turn(tokenizer)
    model.turn_end = tokenizer.eos_token_id if behind is None else behind
    model.engine = None
    return model


def vocabulary_size(tokenizer):
    """One more than the highest id. Ids can have gaps, so the number of tokens can be smaller, and
    the highest id is often an end token."""
    return max(tokenizer.get_vocab().values()) + 1


def eos_ids(model, tokenizer):
    """Every id that ends a response. Qwen3 lists two of them. A sampler that knows only one of
    them does not stop at the other."""
    found = {tokenizer.eos_token_id, end_of_turn(tokenizer)}
    for config in (model.config, getattr(model, "generation_config", None)):
        ids = getattr(config, "eos_token_id", None)
        found |= set(ids) if isinstance(ids, (list, tuple)) else {ids}
    return sorted(i for i in found if i is not None)


def end_of_turn(tokenizer):
    """The special token that the chat template puts behind the assistant's turn, or None. In models
    that were only pretrained it can be <|im_end|>, while their end token is <|endoftext|>."""
    turns = [{"role": "user", "content": "1"}, {"role": "assistant", "content": "the response"}]
    try:
        text = tokenizer.apply_chat_template(turns, tokenize=False)
    except Exception:  # no template, or one for other conversations: `prompt_ids` says so
        return None
    behind = text.rpartition("the response")[2].strip()
    for i, token in tokenizer.added_tokens_decoder.items():
        if token.special and behind.startswith(token.content):
            return i
    return None


# ======================================================================== do they fit together?


def same_tokenizer(student, teacher):
    """Refuse two tokenizers that give different ids to the same text.

    Equal size is not enough: two tokenizers can have the same number of tokens in another order.
    Unequal heads are no problem. (Qwen2.5-1.5B has 151,936 output rows and Qwen2.5-7B has
    152,064, with one tokenizer. The rows beyond its tokens are padding.)
    """
    ids, teacher_ids = student.get_vocab(), teacher.get_vocab()
    if ids != teacher_ids:
        tokens = set(ids) | set(teacher_ids)
        differing = [t for t in tokens if ids.get(t) != teacher_ids.get(t)]
        example = min(differing, key=lambda t: ids.get(t, 1 << 40))
        raise Mistake(
            f"Student and teacher have different tokenizers ({len(differing)} of {len(tokens)} "
            f"tokens differ; for example {example!r} is {ids.get(example)} for the student and "
            f"{teacher_ids.get(example)} for the teacher): the teacher would score other words "
            "than the student wrote. Choose two models of one family."
        )
    require(
        student.eos_token_id == teacher.eos_token_id,
        f"Student and teacher end a turn with different tokens ({student.eos_token!r} and "
        f"{teacher.eos_token!r}); choose two instruct models of one family.",
    )


def check_head(tokenizer, models):
    """Refuse a head that is narrower than the tokenizer: it belongs to another tokenizer.
    models: [(name, model)]."""
    for name, model in models:
        width = model.get_output_embeddings().weight.shape[0]
        require(
            vocabulary_size(tokenizer) <= width,
            f"The tokenizer has {vocabulary_size(tokenizer)} ids and the head of '{name}' only "
            f"{width} rows: they do not belong together.",
        )


def cache_bytes(config, dtype):
    """Bytes of the keys and values of one token in all layers."""
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    per_layer = 2 * config.num_key_value_heads * head_dim  # keys and values
    return per_layer * config.num_hidden_layers * torch.tensor([], dtype=dtype).element_size()
