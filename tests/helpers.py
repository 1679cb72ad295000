"""What the tests of several methods share: tiny models, a small batch, and the gradient of an
update."""
import contextlib
import copy
import math

import torch
from conftest import tiny_qwen3
from torch.utils._python_dispatch import TorchDispatchMode

from common.batches import Compute

CPU = torch.device("cpu")
PROMPTS = [[5, 6, 7], [8], [9, 10, 11, 12], [5, 5, 8, 9, 9]]
# 1 is the end token. The last response has none, so it was cut at --max_new_tokens.
RESPONSES = [[3, 4, 1], [20, 21, 22, 23, 24, 1], [1], [30, 31]]
# Responses of different lengths. The last one is truncated.
LONG = [
    [3, 4, 20, 21, 22, 7, 9, 33, 12, 41, 5, 6, 1],
    [20, 21, 22, 23, 24, 25, 26, 27, 28, 40, 41, 42, 43, 44, 30, 31, 32, 33, 34, 1],
    [9, 1],
    [30, 31, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17],
]
STUDENT, TEACHER = tiny_qwen3(seed=1), tiny_qwen3(seed=2, width=48)


def compute(args, vocabulary=50):
    """A new Compute on the CPU, in float32. args needs .micro_tokens and .chunk_logits."""
    return Compute(args, CPU, torch.float32, vocabulary)


def close(a, b, tolerance=1e-6):
    """Are two dictionaries {name: tensor} equal up to rounding? Both must have the same names."""
    assert a.keys() == b.keys() and a
    return all(torch.allclose(a[n], b[n], atol=tolerance, rtol=1e-4) for n in a)


def weights(model):
    """{name: copy} of all weights of a model."""
    return {n: p.detach().clone() for n, p in model.named_parameters()}


class Catch(torch.optim.SGD):
    """An optimizer that keeps the gradient in `.gradient`, {name: tensor}, and makes no step.

    `.gradients` has one dictionary per step, for an update that makes several.
    """

    def __init__(self, model):
        super().__init__([p for p in model.parameters() if p.requires_grad], lr=1.0)
        self.model, self.gradients = model, []

    @property
    def gradient(self):
        return self.gradients[-1]

    def step(self):
        learning = [(n, p) for n, p in self.model.named_parameters() if p.requires_grad]
        self.gradients.append({n: p.grad.clone() for n, p in learning})


def catch(model):
    """An optimizer for `model` that catches the gradient in front of its step."""
    return Catch(model)


@contextlib.contextmanager
def unclipped():
    """Inside this context the gradient is not clipped, so that the gradient itself can be
    compared. Its norm is measured as always."""
    clip = torch.nn.utils.clip_grad_norm_
    torch.nn.utils.clip_grad_norm_ = lambda parameters, limit: clip(parameters, 1e9)
    try:
        yield
    finally:
        torch.nn.utils.clip_grad_norm_ = clip


def gradient_of(update, student, *arguments):
    """(unclipped gradient, what the update returned) of `update(student, teacher, optimizer, ...)`.

    `arguments` are those of the update in their order, without the student and with `catch` in
    the optimizer's place:  gradient_of(opd.update, STUDENT, TEACHER, catch, batch, args, compute)
    The update is made on a copy of the student, so STUDENT stays as it is.
    """
    student = copy.deepcopy(student)
    optimizer = catch(student)
    with unclipped():
        result = update(student, *[optimizer if x is catch else x for x in arguments])
    return optimizer.gradient, result


def spoiled(model, value=math.nan):
    """A copy of the model. One number of its gradient becomes `value` in every backward pass. Its
    weights are finite, and so is its loss."""
    model = copy.deepcopy(model)

    def spoil(gradient):
        gradient = gradient.clone()
        gradient.view(-1)[0] = value
        return gradient

    next(p for p in model.parameters() if p.requires_grad).register_hook(spoil)
    return model


def assert_no_step(student, optimizer, before, grad_norm):
    """After an update along a gradient that is not finite: no weight has changed, the optimizer
    has no moments of it, and no gradient is left for the next update."""
    assert not math.isfinite(grad_norm)
    now = weights(student)
    assert all(torch.equal(now[n], before[n]) for n in before)
    assert not optimizer.state
    assert all(p.grad is None for p in student.parameters())


class Largest(TorchDispatchMode):
    """The largest number of rows of any tensor that is as wide as the vocabulary V. head: the width
    of the models. [head, V] is the head itself, transposed."""

    def __init__(self, V, head):
        super().__init__()
        self.V, self.head, self.rows = V, head, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for x in out if isinstance(out, (tuple, list)) else [out]:
            wide = torch.is_tensor(x) and x.ndim and x.shape[-1] == self.V
            if wide and x.shape[:-1] != (self.head,):
                self.rows = max(self.rows, x.numel() // self.V)
        return out


def with_ends(model, *ends):
    """A copy of the model that ends its text at these tokens."""
    model = copy.deepcopy(model)
    model.ends = list(ends)
    return model


def slowly(model, prefix, K, ends):
    """(K tokens after a prefix, last hidden states after them), with one full forward pass per
    token."""
    ids, tokens, hidden = list(prefix), [], []
    for _ in range(K):
        token = model(torch.tensor([ids])).logits[0, -1, :50].argmax().item()
        ids.append(token)
        tokens.append(token)
        hidden.append(model.base_model(torch.tensor([ids])).last_hidden_state[0, -1])
        if token in ends:
            break
    return tokens, torch.stack(hidden)
