"""--adam_bits 8: moments of a byte each, the same direction of learning, counted right, resumed bit for bit."""
import importlib.util
from types import SimpleNamespace

import pytest
import torch
from conftest import ended, tiny_qwen3

import plumbing

TINY = ["opd.py", "--data", "toy", "--prompts", 3, "--samples", 4, "--eval_n", 4, "--steps", 4, "--save_every", 2, "--eval_every", 0, "--max_new_tokens", 60, "--device", "cpu",
        "--lr", 1e-2, "--adam_bits", 8]


@pytest.mark.parametrize("asked, package", [(dict(adam_bits=8), "bitsandbytes"), (dict(sampler="vllm"), "vllm")])
def test_a_missing_package_is_named_before_anything_is_loaded(monkeypatch, asked, package):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(plumbing.Mistake, match=f"pip install {package}"):
        plumbing.check_packages(SimpleNamespace(**{**dict(adam_bits=32, sampler="own", vllm_memory=.3), **asked}))
    plumbing.check_packages(SimpleNamespace(adam_bits=32, sampler="own", vllm_memory=.3))


def test_bytes_that_adamw_keeps_are_counted_and_learning_goes_the_same_way():
    pytest.importorskip("bitsandbytes")
    ways, ids = {}, torch.randint(0, 300, (8, 20), generator=torch.Generator().manual_seed(0))
    for bits in (32, 8):
        model = tiny_qwen3(vocabulary=300, width=96)
        before = {n: p.detach().clone() for n, p in model.named_parameters()}
        optimiser = plumbing.adamw(model, 1e-3, bits)
        for _ in range(20):
            model(ids, labels=ids).loss.backward()
            norm, changed = plumbing.clip_and_step(model, optimiser, 1.0)
            assert norm > 0 and changed > .5
        ways[bits] = torch.cat([(p - before[n]).flatten() for n, p in model.named_parameters()])
        kept = sum(v.numel() * v.element_size() for s in optimiser.state.values() for k, v in s.items() if torch.is_tensor(v) and k != "step" and "qmap" not in k)
        assert kept == pytest.approx(plumbing.moment_bytes(model, bits), rel=.01)
        if bits == 8:
            state = optimiser.state[model.get_input_embeddings().weight]
            assert state["state1"].dtype == torch.float32                       # the embedding's moments stay whole
            assert optimiser.state[model.model.layers[0].mlp.up_proj.weight]["state1"].dtype == torch.uint8
            assert kept < .6 * 8 * sum(p.numel() for p in model.parameters())
    assert torch.nn.functional.cosine_similarity(ways[8], ways[32], 0) > .98
    assert .9 < ways[8].norm() / ways[32].norm() < 1.1


def test_resumed_bit_for_bit(start, tmp_path):
    pytest.importorskip("bitsandbytes")
    from safetensors.torch import load_file
    log, whole, part = tmp_path / "log", tmp_path / "whole", tmp_path / "part"
    code, said = ended(start([*TINY, "--out", whole], log), log)
    assert code == 0 and "Traceback" not in said, said
    process = start([*TINY, "--out", part], log)
    while process.is_alive() and not (part / "checkpoint-000002").exists():
        process.join(.02)
    process.kill()
    process.join()
    code, said = ended(start(["opd.py", "--resume", "--out", part], log), log)
    assert code == 0, said
    one, other = load_file(whole / "final/model.safetensors"), load_file(part / "final/model.safetensors")
    assert all(torch.equal(one[k], other[k]) for k in one)
