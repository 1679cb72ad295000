"""The whole way with Qwen3's own tokenizer and chat template, on a randomly initialised Qwen3:
what a model from the hub would go through."""
import json

import pytest
import torch
from conftest import run_script, tiny_qwen3

from common.data import prompt_ids
from common.files import read_jsonl
from common.models import eos_ids, load_model, load_tokenizer
from common.sampler import sample

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def qwen(qwen3_tokenizer_folder, tmp_path_factory):
    """Folders of a student and a (wider) teacher with Qwen3's real vocabulary of 151,936 rows; the
    tokenizer has fewer tokens."""
    folder, tokenizer = tmp_path_factory.mktemp("models"), load_tokenizer(qwen3_tokenizer_folder)
    ids = dict(eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id)
    for name, width, seed in (("student", 32, 1), ("teacher", 64, 2)):
        model = tiny_qwen3(vocabulary=151936, width=width, seed=seed, **ids)
        generation = model.generation_config
        generation.eos_token_id = [151645, 151643]      # as Qwen3's own
        generation.top_k, generation.top_p, generation.do_sample = 20, 0.95, True
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    for name, first in (("problems", 0), ("tests", 6)):
        lines = []
        for i in range(first, first + 6):
            question = f"Tom has {i} apples and buys {i + 2} more. How many apples does he have?"
            solution = f"{i} + {i + 2} = {2 * i + 2}. The answer is \\boxed{{{2 * i + 2}}}."
            row = {"question": question, "answer": str(2 * i + 2), "solution": solution}
            lines.append(json.dumps(row) + "\n")
        (folder / f"{name}.jsonl").write_text("".join(lines))
    return folder, tokenizer


@pytest.fixture
def student(qwen):
    folder, tokenizer = qwen
    return load_model(str(folder / "student"), CPU, torch.float32, tokenizer)


def test_prompt_is_qwen3s_own_with_thinking_off(qwen):
    _, tokenizer = qwen
    asked, opened = "<|im_start|>user\nWhat is 2 + 2?<|im_end|>\n", "<|im_start|>assistant\n"
    ids = prompt_ids(tokenizer, "What is 2 + 2?")
    assert tokenizer.decode(ids) == f"{asked}{opened}<think>\n\n</think>\n\n"
    ids = prompt_ids(tokenizer, "What is 2 + 2?", thinking=True)
    assert tokenizer.decode(ids).endswith(opened)


def test_both_end_tokens_count_and_padding_rows_are_never_drawn(qwen, student):
    _, tokenizer = qwen
    assert eos_ids(student, tokenizer) == student.ends == [151643, 151645]
    assert student.vocabulary == len(tokenizer) < 151936
    prompt = prompt_ids(tokenizer, "Hi")
    drawn = sample(student, [prompt], n=8, max_new_tokens=5, keys=list(range(8)))
    assert max(max(c.ids) for c in drawn) < len(tokenizer)


def test_generate_would_have_obeyed_the_generation_config_and_the_sampler_does_not(qwen, student):
    _, tokenizer = qwen
    prompt = prompt_ids(tokenizer, "Hi")
    keys = list(range(400))
    drawn = sample(student, [prompt], n=400, max_new_tokens=1, keys=keys, rows=400)
    with torch.no_grad():
        logits = student(torch.tensor([prompt])).logits[0, -1]
    best = set(logits.topk(20).indices.tolist())
    assert any(c.ids[0] not in best for c in drawn)


@pytest.mark.slow
@pytest.mark.parametrize("script, more", [
    ("opd.py", []),
    ("topd.py", ["--window_size", 6]),
    ("ar_opd.py", []),
    ("hindsight_sd.py", []),
    ("grpo.py", ["--beta", 0]),
])
def test_training_and_evaluation_as_a_user_runs_them(qwen, tmp_path, script, more):
    from transformers import AutoModelForCausalLM, AutoTokenizer
    folder, tokenizer = qwen
    out, data, tests = tmp_path / "run", folder / "problems.jsonl", folder / "tests.jsonl"
    teacher = ["--teacher", folder / "teacher"] if script in ("opd.py", "topd.py") else []
    done = run_script(
        script, *more, "--student", folder / "student", *teacher, "--data", data, "--benchmark",
        tests, "--steps", 2, "--prompts", 2, "--samples", 2, "--max_new_tokens", 12, "--eval_n", 4,
        "--lr", 1e-3, "--out", out, "--show_every", 1, "--device", "cpu", "--chunk_logits",
        151669 * 5)
    assert done.returncode == 0, done.stderr
    assert "<think>\\n\\n</think>" in done.stdout
    assert "put your final answer within" in done.stdout
    updates = [r for r in read_jsonl(out / "metrics.jsonl") if "loss" in r]
    assert [r["step"] for r in updates] == [1, 2]
    kl = [r["kl_start" if script == "grpo.py" else "kl"] for r in updates]
    # A random model solves nothing. So GRPO has no signal, and the model stays as it is.
    assert all(0 <= x < 50 for x in kl) and (max(kl) > 0 or script == "grpo.py")
    final = AutoModelForCausalLM.from_pretrained(out / "final")
    assert final.config.vocab_size == 151936
    assert len(AutoTokenizer.from_pretrained(out / "final")) == len(tokenizer)
    first = AutoModelForCausalLM.from_pretrained(folder / "student")
    unchanged = torch.equal(final.model.embed_tokens.weight, first.model.embed_tokens.weight)
    assert unchanged == (script == "grpo.py")
    done = run_script(
        "evaluate.py", "--model", out / "final", "--benchmark", data, "--max_new_tokens", 8,
        "--n", 2, "--temperature", 1, "--k", 2, "--out", tmp_path / "eval", "--device", "cpu")
    assert done.returncode == 0, done.stderr
    summary = json.loads((tmp_path / "eval/summary.json").read_text())
    assert summary["n"] == 6 and "pass@2" in summary and summary["truncated"] > 0.5
    responses = read_jsonl(tmp_path / "eval/responses.jsonl")
    assert all("<|im_start|>" in r["prompt"] for r in responses)


def test_toy_models_refuse_a_qwen_teacher(qwen):
    folder, _ = qwen
    done = run_script("opd.py", "--student", "toy/student", "--teacher", folder / "teacher",
                      "--data", "toy", "--device", "cpu", "--out", folder / "refused")
    assert done.returncode == 2 and "different tokenizers" in done.stderr
    assert "Traceback" not in done.stderr
