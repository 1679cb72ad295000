"""The weights that learn: steps in float32, clipping, the moving average, moments of 8 bits,
adapters, and how weights are named when they are stored."""
import copy
import math
from types import SimpleNamespace

import pytest
import torch
from conftest import ROOT, tiny_qwen3
from helpers import (
    CPU,
    PROMPTS,
    RESPONSES,
    STUDENT,
    TEACHER,
    catch,
    close,
    compute,
    gradient_of,
    weights,
)
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import AutoConfig, AutoModelForCausalLM

import opd
import topd
from common import weights as learning
from common.arguments import Mistake
from common.memory import moment_bytes
from common.models import load_model
from common.weights import (
    adamw,
    adapt,
    checkpoint_layers,
    clip_gradient,
    copy_of,
    first_numbers,
    follow,
    load_trained,
    ordinary_weights,
    save_model,
    share_changed,
    trainable,
    trained,
)

# ------------------------------------------------------------------------ one step


def test_a_step_in_float32_changes_the_weights_where_bfloat16_would_not():
    student = tiny_qwen3(seed=1)
    optimizer, numbers, before = adamw(student, 1e-6), first_numbers(student), weights(student)
    for p in student.parameters():
        p.grad = torch.ones_like(p)
    norm = clip_gradient(student, 1.0)
    optimizer.step()
    assert share_changed(student, numbers) > 0.6 and norm > 1
    rounded = [
        (p.detach().bfloat16() != before[n].bfloat16()).float().mean()
        for n, p in student.named_parameters()
    ]
    assert max(rounded) < 0.05


def test_share_changed_counts_numbers_and_not_tensors():
    model = torch.nn.Linear(100, 50, bias=False)            # 5,000 numbers: the first 4,096 count
    frozen = torch.nn.Linear(4, 4, bias=False).requires_grad_(False)
    model = torch.nn.Sequential(model, frozen)
    before = first_numbers(model)
    assert share_changed(model, before) == 0
    with torch.no_grad():
        model[0].weight.view(-1)[:1024] += 1.0
        model[0].weight.view(-1)[4096:] += 1.0
        model[1].weight += 1.0                              # it does not learn: not counted
    assert share_changed(model, before) == 0.25


def test_the_gradient_is_scaled_to_the_limit_and_never_up():
    for factor in (0.01, 5.0):
        model = tiny_qwen3(seed=1)
        generator = torch.Generator().manual_seed(0)
        for p in model.parameters():
            p.grad = factor * torch.randn(p.shape, generator=generator)
        before = {n: p.grad.clone() for n, p in model.named_parameters()}
        length = math.sqrt(sum((g.double() ** 2).sum().item() for g in before.values()))
        norm = clip_gradient(model, 2.0)
        assert norm == pytest.approx(length, rel=1e-5)      # the norm before it was scaled
        scale = min(1.0, 2.0 / length)
        assert (scale < 1) == (factor == 5.0)
        now = {n: p.grad for n, p in model.named_parameters()}
        assert close(now, {n: scale * g for n, g in before.items()})


class Made(TorchDispatchMode):
    """A list of the tensors that operations made, without those that were changed in place."""

    def __init__(self):
        super().__init__()
        self.tensors = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        given = {id(x) for x in tree_leaves((args, kwargs))}
        self.tensors += [x for x in tree_leaves(out) if torch.is_tensor(x) and id(x) not in given]
        return out


def test_clipping_copies_no_gradient_and_none_is_in_double_precision():
    model = copy.deepcopy(STUDENT)
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    with Made() as made:
        assert clip_gradient(model, 0.5) > 1
    assert made.tensors and all(x.numel() <= len(trainable(model)) for x in made.tensors)
    assert not [x for x in made.tensors if x.dtype == torch.float64 and x.numel() > 1]
    with Made() as made:                # a copy would be seen
        next(model.parameters()).grad.double()
    assert made.tensors[0].dtype == torch.float64


def test_adamw_moves_nothing_without_a_gradient():
    # PyTorch's default has weight decay. Here only the loss moves a weight.
    model = tiny_qwen3(seed=1)
    optimizer, before = adamw(model, 0.1), weights(model)
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step()
    assert all(torch.equal(p, before[n]) for n, p in model.named_parameters())


@pytest.mark.parametrize("method", ["opd", "topd"])
def test_gradient_checkpointing_changes_nothing(method):
    args = SimpleNamespace(
        temperature=1.0, divergence="reverse", beta=0.5, estimator="full", micro_tokens=10**6,
        chunk_logits=2**26, guidance="on", lam=0.1, window_size=4, candidate_share=0.1,
        drop_share=0.3, epsilon=0.05, embedding="static", suppress="none", seed=3,
    )
    responses = [[3, 4, 20, 21, 22, 7, 9, 33, 12, 41, 5, 6, 1]] * 2 + RESPONSES[2:]
    if method == "opd":
        update, arguments = opd.update, [(PROMPTS, responses, [False] * 4), args]
    else:
        update, arguments = topd.update, [(PROMPTS, responses), args, 1]
    plain, _ = gradient_of(update, STUDENT, TEACHER, catch, *arguments, compute(args))
    student = copy.deepcopy(STUDENT)
    checkpoint_layers(student)
    passes = []                                             # of the first layer
    student.model.layers[0].mlp.register_forward_pre_hook(lambda *_: passes.append(1))
    student.train()
    saving, _ = gradient_of(update, student, TEACHER, catch, *arguments, compute(args))
    assert close(plain, saving)
    assert len(passes) == (2 if method == "opd" else 3)     # it was indeed computed again


def test_a_family_that_cannot_compute_again_is_refused_with_the_flag_that_helps():
    model = copy.deepcopy(STUDENT)
    model.supports_gradient_checkpointing = False           # such as JetMoe
    with pytest.raises(Mistake, match="family qwen3 cannot .* use --no-gradient_checkpointing"):
        checkpoint_layers(model)


# ------------------------------------------------------------------------ the moving average


def test_the_moving_average_follows_at_its_rate():
    average, model = tiny_qwen3(seed=1), tiny_qwen3(seed=2)
    start, target = weights(average), weights(model)
    follow(average, model, 0.1)
    assert close(weights(average), {n: 0.9 * start[n] + 0.1 * target[n] for n in start})
    follow(average, model, 0.1)
    assert close(weights(average), {n: 0.81 * start[n] + 0.19 * target[n] for n in start})
    assert all(torch.equal(p, target[n]) for n, p in model.named_parameters())


def test_the_ends_of_the_rate():
    average, model = tiny_qwen3(seed=1), tiny_qwen3(seed=2)
    start, target = weights(average), weights(model)
    follow(average, model, 0.0)
    assert all(torch.equal(p, start[n]) for n, p in average.named_parameters())
    follow(average, model, 1.0)
    assert close(weights(average), target)


def test_why_the_average_is_float32():
    # The model differs by the smallest step of bfloat16 at 1. A hundredth of it is rounded away.
    step = 2**-7
    ends = []
    for dtype in (torch.float32, torch.bfloat16):
        average, model = (torch.nn.Linear(8, 8, bias=False, dtype=dtype) for _ in range(2))
        with torch.no_grad():
            average.weight.fill_(1.0)
            model.weight.fill_(1.0 + step)
        for _ in range(100):
            follow(average, model, 0.01)
        ends.append(average.weight.float().mean().item())
    assert ends[0] == pytest.approx(1.0 + step * (1 - 0.99**100), abs=1e-5)
    assert ends[1] == 1.0


# ------------------------------------------------------------------------ storing


def test_ordinary_weights_of_a_plain_model_are_its_own():
    model = tiny_qwen3(seed=1)                              # its head is its embedding
    expected = {n: v for n, v in model.state_dict().items() if n != "lm_head.weight"}
    stored = dict(ordinary_weights(model))
    assert stored.keys() == expected.keys()
    assert all(torch.equal(stored[n], expected[n]) for n in expected)
    with_head = dict(ordinary_weights(model, head=True))
    assert with_head.keys() == {*expected, "lm_head.weight"}
    assert torch.equal(with_head["lm_head.weight"], expected["model.embed_tokens.weight"])
    untied = tiny_qwen3(seed=1, tie_word_embeddings=False)
    assert dict(ordinary_weights(untied)).keys() == {*expected, "lm_head.weight"}


def test_ordinary_weights_of_a_model_with_adapters_are_the_sums():
    pytest.importorskip("peft")
    plain = tiny_qwen3(seed=1)
    adapted = adapt(copy.deepcopy(plain), 4)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for n, p in adapted.named_parameters():
            if "lora_" in n:
                p.copy_(0.1 * torch.randn(p.shape, generator=generator))
    parts, expected = dict(adapted.named_parameters()), dict(ordinary_weights(plain))
    stored = dict(ordinary_weights(adapted))
    assert stored.keys() == expected.keys()
    for name, value in stored.items():
        short = name.removesuffix(".weight")
        if "_proj" in name:                                 # alpha / rank is 2
            low_rank = (parts[f"{short}.lora_{x}.default.weight"] for x in "BA")
            change = 2 * torch.matmul(*low_rank)
            assert torch.allclose(value, expected[name] + change, atol=1e-6)
            assert change.abs().max() > 0.01
        else:
            assert torch.equal(value, expected[name])


def test_trained_weights_are_loaded_into_the_same_kind_of_model_only():
    pytest.importorskip("peft")
    first, second = (adapt(tiny_qwen3(seed=1), 4) for _ in range(2))
    with torch.no_grad():
        for p in first.parameters():
            p.add_(1.0)
    before = weights(second)
    load_trained(second, trained(first))
    for n, p in second.named_parameters():
        if "lora_" in n:
            assert torch.equal(p, dict(first.named_parameters())[n])
        else:
            assert torch.equal(p, before[n])
    with pytest.raises(ValueError, match="another model"):
        load_trained(tiny_qwen3(seed=1), trained(first))


# ------------------------------------------------------------------------ --adam_bits 8


def test_bytes_that_adamw_keeps_are_counted_and_learning_goes_the_same_way():
    pytest.importorskip("bitsandbytes")
    generator, ways = torch.Generator().manual_seed(0), {}
    ids = torch.randint(0, 300, (8, 20), generator=generator)
    for bits in (32, 8):
        model = tiny_qwen3(vocabulary=300, width=96)
        before, optimizer = weights(model), adamw(model, 1e-3, bits)
        for _ in range(20):
            numbers = first_numbers(model)
            model(ids, labels=ids).loss.backward()
            assert clip_gradient(model, 1.0) > 0
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            assert share_changed(model, numbers) > .5
        ways[bits] = torch.cat([(p - before[n]).flatten() for n, p in model.named_parameters()])
        kept = sum(
            value.numel() * value.element_size()
            for state in optimizer.state.values() for name, value in state.items()
            if torch.is_tensor(value) and name != "step" and "qmap" not in name
        )
        assert kept == pytest.approx(moment_bytes(model, bits), rel=.01)
        if bits == 8:
            state = optimizer.state[model.get_input_embeddings().weight]
            assert state["state1"].dtype == torch.float32           # the embedding's stay whole
            state = optimizer.state[model.model.layers[0].mlp.up_proj.weight]
            assert state["state1"].dtype == torch.uint8
            assert kept < .6 * 8 * sum(p.numel() for p in model.parameters())
    assert torch.nn.functional.cosine_similarity(ways[8], ways[32], 0) > .98
    assert .9 < ways[8].norm() / ways[32].norm() < 1.1


# ------------------------------------------------------------------------ --lora


STUDENT_FOLDER = str(ROOT / "toy/student")


@pytest.fixture
def adapted():
    """The toy's student in bfloat16 with adapters of rank 4."""
    pytest.importorskip("peft")
    torch.manual_seed(0)
    return adapt(load_model(STUDENT_FOLDER, CPU, torch.bfloat16), 4).eval()


def test_a_fresh_adapter_changes_nothing_and_only_adapters_learn(adapted):
    plain, ids = load_model(STUDENT_FOLDER, CPU, torch.bfloat16), torch.arange(5, 25)[None]
    with torch.no_grad():
        assert torch.equal(plain(ids).logits, adapted(ids).logits)
    names = {n for n, p in adapted.named_parameters() if p.requires_grad}
    assert names and all("lora_" in n for n in names)
    assert all(p.dtype == torch.float32 for p in trainable(adapted))
    # A and B beside q, k, v, o, gate, up and down
    assert len(names) == 2 * 7 * adapted.config.num_hidden_layers
    frozen = {p.dtype for p in adapted.parameters() if not p.requires_grad}
    assert frozen == {torch.bfloat16}


def test_a_copy_shares_what_is_frozen_and_has_adapters_of_its_own(adapted):
    teacher = copy_of(adapted)
    for (name, t), s in zip(teacher.named_parameters(), adapted.parameters()):
        assert (t is s) == ("lora_" not in name) and not t.requires_grad
    with torch.no_grad():
        for p in trainable(adapted):
            p.add_(1.0)
    student, start = weights(adapted), weights(teacher)
    follow(teacher, adapted, .25)
    for n, p in teacher.named_parameters():
        expected = start[n] + .25 * (student[n] - start[n]) if "lora_" in n else start[n]
        assert torch.allclose(p, expected)
    assert all(torch.equal(p, student[n]) for n, p in adapted.named_parameters())
    whole = tiny_qwen3()                                    # without adapters all is copied
    pairs = list(zip(whole.parameters(), copy_of(whole).parameters()))
    assert all(a is not b and torch.equal(a, b) for a, b in pairs)


def test_the_merged_model_says_what_the_adapted_one_says(adapted, tmp_path):
    from transformers import AutoModelForCausalLM
    adapted = adapted.float()
    with torch.no_grad():
        for p in trainable(adapted):
            p.normal_(0, .1)
    save_model(adapted, tmp_path / "final", merged=True)
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "final").eval()
    plain, ids = load_model(STUDENT_FOLDER, CPU, torch.float32), torch.arange(5, 45)[None]
    with torch.no_grad():
        logits = merged(ids).logits
        assert merged.dtype == torch.float32
        assert torch.allclose(logits, adapted(ids).logits, atol=1e-4)
        assert not torch.allclose(logits, plain(ids).logits, atol=1e-2)
    assert weights(merged).keys() == weights(plain).keys()


@pytest.mark.parametrize("family, whole", [("deepseek_v3", False), ("qwen3_moe", True)])
def test_lora_refuses_a_mixture_of_experts_that_it_could_not_put_together_again(family, whole):
    pytest.importorskip("peft")
    sizes = dict(vocab_size=50, hidden_size=16, intermediate_size=16, moe_intermediate_size=8, num_hidden_layers=2)
    heads = dict(num_attention_heads=2, num_key_value_heads=2, head_dim=8, q_lora_rank=8, kv_lora_rank=8)
    parts = dict(qk_rope_head_dim=4, qk_nope_head_dim=4, v_head_dim=8, n_group=1, topk_group=1, num_experts=4)
    more = dict(n_routed_experts=4, num_experts_per_tok=2, first_k_dense_replace=1)
    config = AutoConfig.for_model(family, **sizes, **heads, **parts, **more)
    model = AutoModelForCausalLM.from_config(config)
    if whole:
        assert learning.trainable(learning.adapt(model, 2))
    else:
        with pytest.raises(Mistake, match="cannot adapt the experts"):
            learning.adapt(model, 2)
