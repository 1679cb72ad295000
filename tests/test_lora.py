"""--lora: only adapters learn, what is frozen is shared and never written, `final/` is an ordinary merged model, resume is bit for bit."""
import pytest
import torch
from conftest import ROOT, ended, tiny_qwen3

import plumbing

CPU = torch.device("cpu")
TINY = ["--data", "toy", "--prompts", 3, "--samples", 6, "--eval_n", 4, "--steps", 4, "--save_every", 2, "--eval_every", 0, "--max_new_tokens", 60, "--device", "cpu", "--lr", 1e-2,
        "--lora", 4]
READER = ["--student", "toy/reader", *TINY]
SCRIPTS = {"opd.py": TINY, "topd.py": [*TINY, "--probe_every", 2], "ar_opd.py": READER, "hindsight_sd.py": [*READER, "--teacher", "ema"], "grpo.py": [*READER, "--max_new_tokens", 120]}


class Args:
    lora, seed, student = 4, 0, str(ROOT / "toy/student")


@pytest.fixture
def adapted():
    torch.manual_seed(0)
    model = plumbing.load_student(Args, None, CPU, torch.bfloat16)
    return model


def test_a_fresh_adapter_changes_nothing_and_only_adapters_learn(adapted):
    plain = plumbing.load_model(Args.student, CPU, torch.bfloat16)
    ids = torch.arange(5, 25)[None]
    with torch.no_grad():
        assert torch.equal(plain(ids).logits, adapted(ids).logits)
    names = {n for n, p in adapted.named_parameters() if p.requires_grad}
    assert names and all("lora_" in n for n in names) and all(p.dtype == torch.float32 for p in plumbing.trainable(adapted))
    layers = adapted.config.num_hidden_layers
    assert len(names) == 2 * 7 * layers             # A and B beside q, k, v, o, gate, up and down
    assert {p.dtype for p in adapted.parameters() if not p.requires_grad} == {torch.bfloat16}


def test_a_copy_shares_what_is_frozen_and_has_adapters_of_its_own(adapted):
    teacher = plumbing.copy_of(adapted)
    for (name, t), s in zip(teacher.named_parameters(), adapted.parameters()):
        assert (t is s) == ("lora_" not in name) and not t.requires_grad
    import ar_opd
    with torch.no_grad():
        for p in plumbing.trainable(adapted):
            p.add_(1.0)
    before = {n: p.clone() for n, p in adapted.named_parameters()}
    old = {n: p.clone() for n, p in teacher.named_parameters()}
    with torch.no_grad():
        ar_opd.follow(teacher, adapted, .25)
    for n, p in teacher.named_parameters():
        assert torch.allclose(p, old[n] + .25 * (before[n] - old[n]) if "lora_" in n else old[n])
    assert all(torch.equal(p, before[n]) for n, p in adapted.named_parameters())
    full = tiny_qwen3()
    other = plumbing.copy_of(full)
    assert all(a is not b and torch.equal(a, b) for a, b in zip(full.parameters(), other.parameters()))


def test_the_merged_model_says_what_the_adapted_one_says(adapted, tmp_path):
    adapted = adapted.float()
    with torch.no_grad():
        for p in plumbing.trainable(adapted):
            p.normal_(0, .1)
    plumbing.save_model(adapted, tmp_path / "final", merged=True)
    from transformers import AutoModelForCausalLM
    whole = AutoModelForCausalLM.from_pretrained(tmp_path / "final").eval()
    plain = plumbing.load_model(Args.student, CPU, torch.float32)
    ids = torch.arange(5, 45)[None]
    with torch.no_grad():
        assert whole.dtype == torch.float32 and torch.allclose(whole(ids).logits, adapted(ids).logits, atol=1e-4)
        assert not torch.allclose(whole(ids).logits, plain(ids).logits, atol=1e-2)
    assert {n for n, _ in whole.named_parameters()} == {n for n, _ in plain.named_parameters()}


def test_the_budget_counts_adapters_alone(adapted):
    common = dict(rollouts=4, prompt_tokens=10, completion_tokens=20, micro_tokens=60, chunk=20, dtype=torch.bfloat16, checkpointing=True)
    own, learning = sum(p.numel() for p in adapted.parameters()), sum(p.numel() for p in plumbing.trainable(adapted))
    parts, total = plumbing.memory_budget(adapted, plumbing.copy_of(adapted), **common)
    assert parts["AdamW moments"] == 8 * learning and parts["student gradients"] == 4 * learning
    assert parts["student weights"] == 2 * (own - learning) + 4 * learning and parts["teacher weights"] == 4 * learning
    full = plumbing.load_model(Args.student, CPU, torch.float32)
    assert total < plumbing.memory_budget(full, plumbing.copy_of(full), **common)[1] / 2


@pytest.mark.parametrize("script", SCRIPTS)
def test_every_method_with_adapters_and_resumed(script, start, tmp_path):
    out, log, command = tmp_path / "whole", tmp_path / "log", [script, *SCRIPTS[script]]
    code, said = ended(start([*command, "--out", out], log), log)
    assert code == 0 and "Traceback" not in said, said
    from safetensors.torch import load_file
    adapter = load_file(out / "checkpoint-000004/adapter.safetensors")
    assert not (out / "checkpoint-000004/model.safetensors").exists() and all("lora_" in k for k in adapter)
    assert any(v.abs().max() > 0 for k, v in adapter.items() if "lora_B" in k)
    name = "toy/reader" if "--student" in command else "toy/student"
    before, after = load_file(ROOT / name / "model.safetensors"), load_file(out / "final/model.safetensors")
    changed = {k for k in before if not torch.equal(before[k].float(), after[k])}
    assert changed and all("_proj" in k for k in changed) and before.keys() == after.keys()
    # stop after two updates, continue: the same adapters and the same merged weights
    part = tmp_path / "part"
    process = start([*command, "--out", part], log)
    while process.is_alive() and not (part / "checkpoint-000002").exists():
        process.join(.02)
    process.kill()
    process.join()
    code, said = ended(start([script, "--resume", "--out", part], log), log)
    assert code == 0, said
    again = load_file(part / "final/model.safetensors")
    assert all(torch.equal(after[k], again[k]) for k in after)
    rows = plumbing.read_jsonl(part / "metrics.jsonl")
    assert [r["step"] for r in rows if "eval" not in r] == [1, 2, 3, 4]
