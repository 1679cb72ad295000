"""The weights that learn: all of a model's, or low-rank adapters. Their optimizer, their
average, and how they are stored."""

import copy
import logging
import math
import warnings

import torch
from safetensors.torch import save_file

from common.arguments import Mistake, require
from common.files import read_json, write_json
from common.processes import add_up, process

# ======================================================================== which weights learn


def trainable(model):
    return [p for p in model.parameters() if p.requires_grad]


def adapt(model, rank):
    """Freeze the model and put a low-rank adapter beside every linear layer except the head."""
    # peft imports it where it is installed, and it prints a line about its kernels.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError:
        raise Mistake("--lora needs the package peft: pip install peft.") from None
    model.requires_grad_(False)
    # The adapters are injected into the model instead of wrapping it. So it is still a
    # Qwen3ForCausalLM with a base_model and a head, which the methods use by these names.
    modules = model.base_model.named_modules()
    linear = sorted({n.split(".")[-1] for n, m in modules if isinstance(m, torch.nn.Linear)})
    with warnings.catch_warnings():  # PEFT warns of patterns for experts that it sets itself
        warnings.filterwarnings("ignore", ".*_pattern keys did not match", RuntimeWarning)
        inject_adapter_in_model(
            LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=linear), model
        )
    # A mixture of experts can have its experts in one tensor, to which PEFT adds its adapters in
    # another way. Such a model could not be put together again.
    require(
        not any(type(m).__name__ == "ParamWrapper" for m in model.modules()),
        "--lora cannot adapt the experts of this model; leave --lora out.",
    )
    for p in trainable(model):
        p.data = p.data.float()  # a small step on a bfloat16 number would be rounded to nothing
    return model


def copy_of(model):
    """A frozen copy, for a teacher that starts as the student. Weights that never change (with
    --lora, all but the adapters) are shared, so they take no memory twice."""
    frozen = {id(p): p for p in model.parameters() if not p.requires_grad}
    return copy.deepcopy(model, frozen).requires_grad_(False)


@torch.no_grad()
def follow(average, model, rate):
    """Moving average: average <- (1 - rate) average + rate model. The average must be float32,
    because a hundredth of a small difference is lost in bfloat16."""
    for a, p in zip(average.parameters(), model.parameters()):
        if a is not p:  # with --lora both models share the weights that do not change
            a.lerp_(p, rate)


# ======================================================================== the optimizer


def adamw(model, lr, bits=32, betas=(0.9, 0.999)):
    """AdamW on the weights that learn, without weight decay: only the loss moves a weight.

    bits 8: the moments are stored in blocks of 256 numbers of one byte with one scale per block
    (Dettmers et al., arXiv 2110.02861). The embedding's moments stay in 32 bits, as the authors
    advise: its gradients are the most uneven, because a rare word seldom gets one.
    """
    if bits == 32:  # fused: on a GPU PyTorch's default copies all weights in every step
        fused = model.device.type == "cuda"
        weights = trainable(model)
        return torch.optim.AdamW(weights, lr=lr, betas=betas, weight_decay=0.0, fused=fused)
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    from bitsandbytes.optim import AdamW8bit, GlobalOptimManager

    manager, whole = GlobalOptimManager.get_instance(), {"optim_bits": 32}
    manager.register_module_override(model.get_input_embeddings(), "weight", whole)
    return AdamW8bit(trainable(model), lr=lr, betas=betas, weight_decay=0.0)


class LossScale:
    """In float16 the loss is multiplied by `factor` before the backward pass.

    float16 has nothing between 0 and 6e-8, and nothing above 65,504. The loss is a mean over
    thousands of tokens, so numbers of its gradient can be below 6e-8: without the factor they
    would be 0. If the gradient is not finite, the factor was too large: the update makes no step,
    and the factor is halved. After PATIENCE steps in a row it is doubled. All factors are powers
    of two, so they round nothing.

    torch.amp.GradScaler has the same rule, but it makes the optimizer's step itself. So a method
    would not show why it makes a step or none. Here the norm decides. It is taken after the
    gradients of all processes are added up, so they all find the same factor.
    """

    START, PATIENCE = 2.0**12, 100  # at the start numbers between 1.5e-11 and 16 have room

    def __init__(self):
        self.factor, self.good = self.START, 0  # good: steps since the factor changed

    def adapt(self, norm):
        """norm: of the gradient."""
        self.good += 1
        if not math.isfinite(norm):
            self.factor, self.good = self.factor / 2, 0
        elif self.good == self.PATIENCE:
            self.factor, self.good = self.factor * 2, 0


def clip_gradient(model, limit, loss_scale=None):
    """Scale the gradient down to the norm `limit` if it is larger. Returns the norm before that.

    With several processes each has the gradient of its own rollouts. They are added up first.
    loss_scale: of the loss whose gradient this is, or None. Its factor is divided out first.
    """
    if process()[1] > 1:
        for p in trainable(model):
            p.grad = add_up([torch.zeros_like(p) if p.grad is None else p.grad])[0]
    parameters = [p for p in model.parameters() if p.grad is not None]
    if loss_scale:
        for p in parameters:
            p.grad /= loss_scale.factor
    norm = torch.nn.utils.clip_grad_norm_(parameters, limit).item()
    if loss_scale:
        loss_scale.adapt(norm)
    return norm


def first_numbers(model):
    """A copy of the first 4,096 numbers of every tensor that learns: does a step move them?"""
    return [p.detach().flatten()[:4096].clone() for p in trainable(model)]


def share_changed(model, before):
    """The share of these numbers that differ now. Far below 1, the steps are too small for the
    precision of the weights."""
    after = [p.detach().flatten()[:4096] for p in trainable(model)]
    # All are added on the device. Each number that is read back would wait for the device.
    changed = torch.stack([(a != b).sum() for a, b in zip(after, before)]).sum().item()
    return changed / sum(b.numel() for b in before)


def checkpoint_layers(model):
    """Gradient checkpointing: keep only each layer's input, and compute the rest again in the
    backward pass."""
    require(
        getattr(model, "supports_gradient_checkpointing", True),
        f"Models of the family {model.config.model_type} cannot compute their activations again in "
        "the backward pass; use --no-gradient_checkpointing.",
    )
    # Newer versions of transformers have another name for it and warn about the old one.
    new = getattr(model, "activation_checkpointing_enable", None)
    (new or model.gradient_checkpointing_enable)({"use_reentrant": False})


# ======================================================================== storing them


def trained(model):
    """{name: tensor} of what training changes in this model, or in a copy of it: its adapters if
    it has any, else everything."""
    everything = model.state_dict()
    return {k: v for k, v in everything.items() if "lora_" in k} or everything


def load_trained(model, state):
    wanted = trained(model)
    if wanted.keys() != state.keys():
        raise ValueError("it belongs to another model")
    model.load_state_dict(state, strict=False)


@torch.no_grad()
def ordinary_weights(model, head=False):
    """(name, tensor) as in the model's own files. Each adapter is added to its weight.
    head: also yield a head that is the same tensor as the embedding."""
    adapters = {f"{n}.weight": m for n, m in model.named_modules() if hasattr(m, "lora_A")}
    for name, value in model.state_dict().items():
        tied = name == "lm_head.weight" and model.config.tie_word_embeddings
        if "lora_" in name or (tied and not head):
            continue
        name = name.replace(".base_layer.", ".")
        if name in adapters:
            value = value.float() + adapters[name].get_delta_weight("default").float()
        yield name, value


def save_model(model, folder, merged):
    """Save as an ordinary model folder. merged: adapters are added to the weights, which is for
    the end of a run. Otherwise only the adapters are saved, which is for a checkpoint."""
    if not any(hasattr(m, "lora_A") for m in model.modules()):
        model.save_pretrained(folder)
        return
    folder.mkdir()
    if not merged:
        state = {k: v.contiguous() for k, v in trained(model).items()}
        save_file(state, folder / "adapter.safetensors")
        return
    # In float32: a small change would be lost in a bfloat16 sum.
    whole = {k: v.float().cpu() for k, v in ordinary_weights(model)}
    model.save_pretrained(folder, state_dict=whole)
    config = read_json(folder / "config.json")
    write_json(folder / "config.json", {**config, "dtype": "float32"})
