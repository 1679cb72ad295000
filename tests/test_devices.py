"""A pretended accelerator: what would go wrong on a GPU or on a Mac, seen on a CPU.

All tensors really are on the CPU. Two modes of PyTorch keep a list of those that would be on the
accelerator: what was made or moved there by name, and every result of such tensors. Python code
that asks one of them for its device is told "mps", a device type of which this machine has none.
So nothing here can be right by accident: a forgotten `.to(device)` is a mix of both sides.
"""
import copy
import traceback
from collections import Counter
from types import SimpleNamespace

import pytest
import torch
import torch.utils.checkpoint
from conftest import ROOT, tiny_qwen3
from helpers import PROMPTS
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._python_dispatch import _disable_current_modes as notes_off
from torch.utils._pytree import tree_leaves, tree_map

import ar_opd
import grpo
import hindsight_sd
import opd
import topd
from common import recorded
from common.batches import Compute
from common.sampler import Completion, sample
from common.weights import adamw, first_numbers, follow, share_changed

THERE = torch.device("mps")
# Operations whose result has a size that depends on numbers: the CPU waits for the accelerator.
WAITING = ("_local_scalar_dense", "nonzero", "masked_select", "unique", "equal", "is_nonzero",
           "repeat_interleave.Tensor")


def place():
    """The line of the project that is at work, "file.py function"."""
    frames = [f for f in traceback.extract_stack() if f.filename.startswith(str(ROOT))]
    inside = [f for f in frames if "/tests/" not in f.filename and "/.venv/" not in f.filename]
    last = inside[-1] if inside else frames[-1]
    return f"{last.filename.removeprefix(str(ROOT) + '/')} {last.name}: {last.line}"


class Accelerator(TorchDispatchMode):
    """Knows which tensors are there, and writes down what is forbidden or slow."""

    def __init__(self):
        super().__init__()
        self.storages = {}      # address of a storage -> weak reference, which keeps the address
        self.mixes, self.doubles, self.reads = [], [], Counter()
        self.names = Names(self)

    def __enter__(self):
        self.names.__enter__()
        return super().__enter__()

    def __exit__(self, *error):
        super().__exit__(*error)
        self.names.__exit__(*error)

    def has(self, x):
        return self._address(x) in self.storages

    def _address(self, x):
        with torch._C.DisableTorchFunction():
            while torch._C._functorch.is_functorch_wrapped_tensor(x):   # inside of vmap
                x = torch._C._functorch.get_unwrapped(x)
            return x.untyped_storage()._cdata

    def put(self, x):
        """From now on this tensor is there, with everything that shares its storage."""
        with torch._C.DisableTorchFunction():
            while torch._C._functorch.is_functorch_wrapped_tensor(x):
                x = torch._C._functorch.get_unwrapped(x)
            self.storages[self._address(x)] = StorageWeakRef(x.untyped_storage())
            if x.dtype == torch.float64:
                self.doubles.append(place())
        return x

    def put_model(self, model):
        model = copy.deepcopy(model)
        for x in [*model.parameters(), *model.buffers()]:
            self.put(x)
        return model

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs, name = kwargs or {}, str(function).removeprefix("aten.")
        tensors = [x for x in tree_leaves((args, kwargs)) if torch.is_tensor(x)]
        there = [self.has(x) for x in tensors]
        if any(there):
            host = [x for x, t in zip(tensors, there) if not t and x.ndim > 0]
            if name.startswith("copy_"):
                if not there[0]:
                    self.reads[place()] += 1
            elif host:
                self.mixes.append(f"{name} {[tuple(x.shape) for x in host]} at {place()}")
            masks = name.startswith("index") and any(x.dtype == torch.bool for x in tensors[1:])
            if name.startswith(WAITING) or masks:
                self.reads[place()] += 1
        out = function(*args, **kwargs)
        if any(there) and not name.startswith("copy_"):
            for x in tree_leaves(out):
                if torch.is_tensor(x):
                    self.put(x)
        return out


class Names(TorchFunctionMode):
    """Translates the names of devices: what Python code says and hears about them."""

    def __init__(self, accelerator):
        super().__init__()
        self.accelerator = accelerator

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs, accelerator = dict(kwargs or {}), self.accelerator
        name = getattr(function, "__name__", "")
        if name == "__get__" and getattr(function, "__self__", None) is torch.Tensor.device:
            return THERE if accelerator.has(args[0]) else function(*args, **kwargs)
        if name == "backward":      # else this mode would be off during the whole backward pass
            run, one = torch.autograd.Variable._execution_engine.run_backward, torch.ones_like(args[0])
            with self:
                return run((args[0],), (one,), False, False, (), allow_unreachable=True, accumulate_grad=True)
        if name in ("tolist", "numpy", "__array__") and accelerator.has(args[0]):
            accelerator.reads[place()] += 1
            return function(*args, **kwargs)
        if name in ("to", "cpu"):
            return self.moved(function, name, args, kwargs)
        if name == "pad_sequence" and any(map(accelerator.has, args[0])):
            # It makes its result by itself, from nothing that the other mode would know.
            assert all(map(accelerator.has, args[0]))
            with notes_off():
                out = function(*args, **kwargs)
            return accelerator.put(out)
        wanted = kwargs.get("device")
        if wanted is not None and torch.device(wanted).type == THERE.type:
            out = function(*args, **{**kwargs, "device": "cpu"})
            return tree_map(lambda x: accelerator.put(x) if torch.is_tensor(x) else x, out)
        return function(*args, **kwargs)

    def moved(self, function, name, args, kwargs):
        x, accelerator = args[0], self.accelerator
        named = [a for a in (*args[1:], kwargs.get("device"))
                 if isinstance(a, (str, torch.device)) or torch.is_tensor(a)]
        target = torch.device("cpu") if name == "cpu" else None
        for a in named:
            of_tensor = torch.is_tensor(a)
            target = (THERE if accelerator.has(a) else a.device) if of_tensor else torch.device(a)
            # The type of the other tensor counts too, but no code here asks for it.
            assert not of_tensor
        if target is None:                                  # only another type
            return function(*args, **kwargs)
        rest = [a for a in args[1:] if not any(a is b for b in named)]
        kwargs.pop("device", None)
        changed = x.to(*rest, **kwargs) if rest or kwargs else x
        goes, comes = target.type == THERE.type, accelerator.has(x)
        if goes == comes:
            return changed
        if comes:
            accelerator.reads[place()] += 1
        new = changed.clone() if changed is x else changed
        if not goes:            # `clone` and `to` of what is there are there
            with notes_off():
                new = changed.detach().clone()
        return accelerator.put(new) if goes else new


# ------------------------------------------------------------------------ does it see anything?


def test_the_pretended_accelerator_sees_what_a_real_one_refuses():
    with Accelerator() as a:
        host, there = torch.ones(3), torch.ones(3).to(THERE)
        assert there.device == THERE and host.device.type == "cpu"
        assert (there + 1).device == there[1:].device == torch.zeros(2, device=THERE).device == THERE
        assert there.cpu().device.type == "cpu" and a.reads.total() == 1
        there * 2 + torch.tensor(3.0)                       # a number of the host is allowed
        assert a.mixes == [] and a.doubles == []
        there + host
        assert len(a.mixes) == 1
        host.double() + 1
        assert a.doubles == []
        there.double(), host.double().to(THERE)
        assert len(a.doubles) == 2
        before = a.reads.total()
        there.sum().item(), there.tolist(), there.nonzero(), there[there > 0], bool(there[0])
        assert a.reads.total() == before + 5
        host.tolist(), host[host > 0]
        assert a.reads.total() == before + 5


def test_the_pretended_accelerator_follows_the_backward_pass():
    with Accelerator() as a:
        weight = torch.ones(3).to(THERE).requires_grad_()
        (weight * weight).sum().backward()
        assert weight.grad.device == THERE and a.mixes == []
        forgotten = torch.ones(3)

        class Bad(torch.autograd.Function):
            @staticmethod
            def forward(ctx, x):
                return x * 2

            @staticmethod
            def backward(ctx, gradient):
                return gradient * forgotten
        Bad.apply(weight).sum().backward()
        assert len(a.mixes) == 1


# ------------------------------------------------------------------------ the updates

STUDENT, TEACHER = tiny_qwen3(seed=1), tiny_qwen3(seed=2, width=48)
ARGS = dict(
    micro_tokens=10**6, chunk_logits=2**24, temperature=1.0, divergence="reverse", beta=0.5,
    estimator="full", top_k=4, seed=0, samples=2, max_new_tokens=200, guidance="on", lam=0.1,
    window_size=6, candidate_share=0.1, drop_share=0.3, epsilon=0.05, embedding="static",
    suppress="none", target="anchored", clip=1.0, skip_first=1, teacher="ema", ema=0.1,
    rl_weight=0.3, train="all", context="peer", advantage="std", norm="sequence", clip_low=0.2,
    clip_high=0.28, overlong="soft", overlong_share=0.2, reuse=2,
)


def rollouts(length):
    """Four responses of about this length."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(2, 50, (4, length), generator=generator).tolist()
    return [r[: length - i] + [1] for i, r in enumerate(ids)]


def update_of(method, args, student, teacher, responses, compute):
    """One update of a method. Student and teacher are on the accelerator."""
    optimizer = adamw(student, 1e-3)
    drawn = [Completion(r, False, [-1.0] * len(r)) for r in responses]
    if method == "opd":
        batch = PROMPTS, responses, [False, True, False, False]
        opd.update(student, teacher, optimizer, batch, args, compute)
    elif method == "topd":
        topd.update(student, teacher, optimizer, (PROMPTS, responses), args, 1, compute)
    elif method == "ar_opd":
        rows = [{"plain": p, "partial": p + [7], "full": p + [8, 9]} for p in PROMPTS[:2]]
        ar_opd.update(student, copy_there(student), optimizer, rows, responses, args, compute)
    elif method == "hindsight_sd":
        args.divergence = "forward"
        rows = [{"ids": p} for p in PROMPTS[:2]]
        prompts = [PROMPTS[0] + [4], None, PROMPTS[1] + [5], PROMPTS[1]]
        contexts = hindsight_sd.Contexts([True, False, False, True], [1, 0, 3, None], prompts)
        pair = copy_there(student), copy_there(student)
        batch = rows, drawn, contexts
        hindsight_sd.update(student, *pair, optimizer, batch, args, compute)
    else:
        rows = [{"ids": p} for p in PROMPTS[:2]]
        right, start = [True, False, False, True], copy_there(student)
        grpo.update(student, start, optimizer, (rows, drawn, right), args, compute)


def copy_there(student):
    return WATCHED[0].put_model(student).requires_grad_(False)


WATCHED = []        # the accelerator of the running test, for copy_there


def watched(monkeypatch, method, length, half, **flags):
    """The accelerator's notes about one update on rollouts of this length."""
    args = SimpleNamespace(**{**ARGS, **flags})
    monkeypatch.setattr(torch.mps, "synchronize", lambda: None)
    compute = Compute(args, THERE, torch.float32, 50)
    if half:        # the real autocast is the CPU's, because the tensors are there
        enabled, dtype = torch.is_autocast_enabled, torch.get_autocast_dtype
        compute.autocast = lambda: torch.autocast("cpu", dtype=torch.bfloat16)
        monkeypatch.setattr(torch, "is_autocast_enabled", lambda kind="cpu": enabled("cpu"))
        monkeypatch.setattr(torch, "get_autocast_dtype", lambda kind: dtype("cpu"))
    # Checkpointing compares the devices of both passes. Inside of an operation the names are not
    # translated, so it would hear two names of the same device.
    meta = {"default": lambda x: {"shape": x.shape, "dtype": x.dtype}}
    monkeypatch.setattr(torch.utils.checkpoint, "_allowed_determinism_checks_to_fns", meta)
    with Accelerator() as accelerator:
        WATCHED[:] = [accelerator]
        student = accelerator.put_model(STUDENT)
        teacher = accelerator.put_model(TEACHER).requires_grad_(False)
        before = first_numbers(student)
        update_of(method, args, student, teacher, rollouts(length), compute)
        assert student.device == THERE and 0.9 < share_changed(student, before) <= 1
    return accelerator


def per_place(accelerator):
    """Read-backs by place, without those of Sinkhorn: it looks every ten iterations whether it
    has converged, however many tokens or windows there are."""
    return {k: n for k, n in accelerator.reads.items() if " sinkhorn:" not in k}


METHODS = ["opd", "topd", "ar_opd", "hindsight_sd", "grpo"]


@pytest.mark.parametrize("half", [False, True], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("method", METHODS)
def test_an_update_stays_on_the_accelerator(method, half, monkeypatch):
    short = watched(monkeypatch, method, 16, half)
    assert short.mixes == [] and short.doubles == []
    # Three times as many tokens, and four positions in a chunk: no further wait.
    long = watched(monkeypatch, method, 48, half, chunk_logits=200)
    assert long.mixes == [] and long.doubles == []
    assert per_place(long) == per_place(short)


def not_moved(plain):
    return lambda *x: plain(*x) * torch.ones(len(x[0]))


def in_double(plain):
    return lambda *x: plain(x[0].double(), *x[1:])


def asked(plain):
    return lambda *x: plain(*x) * (1.0 if x[0].sum().item() else 0.0)


@pytest.mark.parametrize("spoil", [not_moved, in_double, asked])
def test_a_mistake_in_a_loss_is_seen(spoil, monkeypatch):
    monkeypatch.setattr(opd, "divergence", spoil(opd.divergence))
    short = watched(monkeypatch, "opd", 16, False)
    long = watched(monkeypatch, "opd", 48, False, chunk_logits=200)
    assert bool(short.mixes) == (spoil is not_moved)
    assert bool(short.doubles) == (spoil is in_double)
    assert (per_place(long) != per_place(short)) == (spoil is asked)


def test_contextual_windows_stay_on_the_accelerator(monkeypatch):
    short, long = (watched(monkeypatch, "topd", n, False, embedding="contextual") for n in (16, 48))
    assert long.mixes == short.mixes == [] and long.doubles == short.doubles == []
    assert per_place(long) == per_place(short)


def sinkhorns(accelerator):
    """How often the CPU waited for Sinkhorn. It asks whether it has converged: where it computes on
    the CPU, nobody waits."""
    return sum(n for place, n in accelerator.reads.items() if " sinkhorn:" in place)


def test_sinkhorn_computes_on_the_device_that_it_is_given(monkeypatch):
    generator = torch.Generator().manual_seed(0)
    costs = [torch.rand(n, n, generator=generator) for n in (6, 4)]
    here = topd.sinkhorn(costs, 0.05)
    with Accelerator() as accelerator:
        again = topd.sinkhorn(costs, 0.05)
        assert sinkhorns(accelerator) == 0
        there = topd.sinkhorn(costs, 0.05, THERE)
        assert sinkhorns(accelerator) > 0 and not accelerator.mixes
        assert all(plan.device.type == "cpu" for plan in there)
    for plans in (again, there):
        assert all(torch.equal(a, b) for a, b in zip(plans, here))
    # In an update that is the student's.
    assert sinkhorns(watched(monkeypatch, "topd", 48, False)) > 0


@pytest.mark.parametrize("estimator", ["topk", "sampled"])
def test_the_estimators_of_opd_stay_on_the_accelerator(monkeypatch, estimator):
    short, long = (watched(monkeypatch, "opd", n, False, estimator=estimator) for n in (16, 48))
    assert long.mixes == short.mixes == [] and long.doubles == short.doubles == []
    assert per_place(long) == per_place(short)


def test_the_moving_average_waits_for_nothing():
    with Accelerator() as accelerator:
        average, student = (accelerator.put_model(STUDENT) for _ in range(2))
        follow(average, student, 0.1)
    assert accelerator.mixes == [] and accelerator.doubles == [] and not accelerator.reads


def test_how_many_numbers_changed_is_asked_once():
    with Accelerator() as accelerator:
        student = accelerator.put_model(STUDENT)
        assert share_changed(student, first_numbers(student)) == 0
    assert accelerator.mixes == [] and accelerator.reads.total() == 1


# ------------------------------------------------------------------------ the sampler


def drawn_there(length, ends, **rule):
    with Accelerator() as accelerator:
        model = accelerator.put_model(STUDENT)
        model.vocabulary, model.ends, model.engine = 50, ends, None
        keys = [(i, j) for i in range(4) for j in range(3)]
        drawn = sample(model, PROMPTS, n=3, max_new_tokens=length, keys=keys, **rule)
    return accelerator, [c.ids for c in drawn]


def drawn_here(length, ends, **rule):
    model = copy.deepcopy(STUDENT)
    model.vocabulary, model.ends, model.engine = 50, ends, None
    keys = [(i, j) for i in range(4) for j in range(3)]
    drawn = sample(model, PROMPTS, n=3, max_new_tokens=length, keys=keys, **rule)
    return [c.ids for c in drawn]


RULES = {"plain": {}, "greedy": {"temperature": 0.0}, "static": {},
         "filtered": {"temperature": 0.7, "top_p": 0.9, "top_k": 20}}


@pytest.mark.parametrize("name", RULES)
def test_the_sampler_stays_on_the_accelerator(name, monkeypatch):
    rule, static = RULES[name], name == "static"
    if static:      # the steps that would be recorded, without the recording
        monkeypatch.setattr(recorded, "RECORDS", ("mps",))
        monkeypatch.setattr(recorded, "GROWTH", 16)
        monkeypatch.setattr(recorded.Replay, "state", {"use": False, "unchecked": 3})
    reads = {}
    for length in (9, 33):
        accelerator, ids = drawn_there(length, [], **rule)
        assert accelerator.mixes == [] and accelerator.doubles == []
        assert ids == drawn_here(length, [], **rule)
        reads[length] = accelerator.reads.total()
    # Whether all rows have ended is asked once in eight tokens, and nothing else is asked.
    assert reads[33] - reads[9] == (33 - 9) // 8 and reads[9] <= 4
    accelerator, ids = drawn_there(24, [1, 2, 3], **rule)   # rows end and leave
    assert accelerator.mixes == [] and ids == drawn_here(24, [1, 2, 3], **rule)
