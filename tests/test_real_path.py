"""The whole way with Qwen3's own tokenizer and chat template, on a randomly initialised Qwen3:
what a model from the hub would go through."""
import importlib
import json
import math

import datasets
import pytest
import torch
from conftest import ROOT, run_script, tiny_qwen3
from test_data import ROWS, hub, put_data_set  # noqa: F401

import ar_opd
import hindsight_sd
import opd
from common.data import load_benchmark, prompt_ids
from common.files import read_jsonl
from common.models import eos_ids, know, load_model, load_tokenizer
from common.sampler import Completion, sample

CPU = torch.device("cpu")
SHOWN = "gsm8k", "math500", "olympiad"      # tests/shown/ holds what is shown of these
PLAIN = "every student, every teacher of opd.py and topd.py, evaluate.py"
FULL = "ar_opd.py, full; hindsight_sd.py --context reference"


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
    for name in SHOWN:          # files with the real columns of the data sets
        for part, numbers in (("problems", range(6)), ("tests", range(6, 12))):
            lines = [json.dumps(numbered(name, i)) + "\n" for i in numbers]
            (folder / f"{name}-{part}.jsonl").write_text("".join(lines))
    return folder, tokenizer


def numbered(name, i):
    """A row of a data set with a problem of its own."""
    row = ROWS[name][3]
    problem = "problem" if "problem" in row else "question"
    return {**row, problem: f"{row[problem]} ({i})"}


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


# ------------------------------------------------------------------------ what the models are shown


def all_views(tokenizer, row):
    """{name: all that a model is given, as text}, for every method, from the methods' own code."""
    end, decode = tokenizer.eos_token_id, tokenizer.decode

    def view(user, **more):
        return decode(prompt_ids(tokenizer, user, **more))

    def hindsight(**flags):
        """The teacher's prompts of a right rollout and of a wrong one, which has a peer."""
        texts = [f"A rollout. So the answer is \\boxed{{{answer}}}." for answer in (row["answer"], 17)]
        drawn = [Completion([*tokenizer(t)["input_ids"], end], False, [-1.0] * 99) for t in texts]
        args = hindsight_sd.Args(samples=2, **flags)
        contexts = hindsight_sd.build_contexts([row], drawn, tokenizer, args, 1)
        assert contexts.right == [True, False]
        return [decode(ids) for ids in contexts.prompts]

    plain = {**row, "ids": prompt_ids(tokenizer, row["prompt"])}
    one = dict(samples=1, max_new_tokens=999)
    model = know(tiny_qwen3(vocabulary=151936), tokenizer)
    off_policy = opd.rollouts(model, tokenizer, [plain], opd.Args(off_policy=1.0, **one), 1)
    sft = ar_opd.rollouts(model, tokenizer, [row], ar_opd.Args(target="sft", **one), 1)
    assert off_policy[1] == sft
    views, kept = (ar_opd.views(row, ar_opd.Args(partial_answer=x)) for x in ("remove", "keep"))
    alone, peer = hindsight()
    assert hindsight(context="answer") == [alone, alone]
    reference = hindsight(context="reference")
    assert reference[0] == reference[1] == view(views["full"])
    assert view(views["plain"]) == decode(off_policy[0][0])
    return {
        PLAIN: view(views["plain"]),
        "evaluate.py --thinking": view(row["prompt"], thinking=True),
        "ar_opd.py, partial": view(views["partial"]),
        "ar_opd.py, partial, --partial_answer keep": view(kept["partial"]),
        FULL: view(views["full"]),
        "hindsight_sd.py, peer and answer": peer,
        "hindsight_sd.py, answer alone": alone,
        "the response of opd.py --off_policy 1 and ar_opd.py --target sft": decode(sft[0]),
    }


def stored_views(name):
    """tests/shown/NAME.txt as {name: text}."""
    text = (ROOT / f"tests/shown/{name}.txt").read_text(encoding="utf-8")
    return dict(part.split(" ====\n", 1) for part in text.split("==== ")[1:])


@pytest.mark.parametrize("name", SHOWN)
def test_what_every_model_is_shown_as_a_person_has_read_it(name, qwen3_tokenizer_folder, hub, monkeypatch, tmp_path):  # noqa: F811
    tokenizer = load_tokenizer(qwen3_tokenizer_folder)
    monkeypatch.chdir(hub)
    row = load_benchmark(name, "train" if name == "gsm8k" else "test")[0]
    views = {k: f"{v}\n" for k, v in all_views(tokenizer, row).items()}
    new = tmp_path / f"{name}.txt"
    new.write_text("".join(f"==== {k} ====\n{v}" for k, v in views.items()), encoding="utf-8")
    assert views == stored_views(name), f"read {new}; if it is right, copy it to tests/shown/"


# One data set each, as commands. The other pairs follow below.
RUNS = {
    "opd.py": ("gsm8k", ["--off_policy", 0.5]),
    "topd.py": ("math500", ["--window_size", 6]),
    "ar_opd.py": ("olympiad", []),
    "hindsight_sd.py": ("olympiad", ["--context", "reference"]),
    "grpo.py": ("math500", ["--beta", 0]),
}


@pytest.mark.slow
@pytest.mark.parametrize("script", RUNS)
def test_training_and_evaluation_as_a_user_runs_them(qwen, tmp_path, script):
    from transformers import AutoModelForCausalLM, AutoTokenizer
    (folder, tokenizer), (name, more) = qwen, RUNS[script]
    out, data, tests = tmp_path / "run", *(folder / f"{name}-{p}.jsonl" for p in ("problems", "tests"))
    teacher = ["--teacher", folder / "teacher"] if script in ("opd.py", "topd.py") else []
    done = run_script(
        script, *more, "--student", folder / "student", *teacher, "--data", data, "--benchmark",
        tests, "--steps", 3, "--prompts", 2, "--samples", 2, "--max_new_tokens", 12, "--eval_n", 4,
        "--lr", 1e-3, "--out", out, "--show_every", 1, "--device", "cpu", "--chunk_logits",
        151669 * 5)
    assert done.returncode == 0, done.stderr
    problem = ROWS[name][3].get("problem") or ROWS[name][3]["question"]
    # A run prints the student's prompt, not the longer one of a self-teacher.
    plain = stored_views(name)[PLAIN].removesuffix("\n")
    assert f"a prompt {plain.replace(problem, f'{problem} (0)')!r}\n" in done.stdout
    updates = [r for r in read_jsonl(out / "metrics.jsonl") if "loss" in r]
    assert [r["step"] for r in updates] == [1, 2, 3]
    # A random model solves nothing. So GRPO has no signal, and the model stays as it is.
    if script != "grpo.py":
        kl = [r["kl"] for r in updates]
        assert all(0 <= x < 50 for x in kl) and max(kl) > 0
    final = AutoModelForCausalLM.from_pretrained(out / "final")
    assert final.config.vocab_size == 151936
    assert len(AutoTokenizer.from_pretrained(out / "final")) == len(tokenizer)
    first = AutoModelForCausalLM.from_pretrained(folder / "student")
    unchanged = torch.equal(final.model.embed_tokens.weight, first.model.embed_tokens.weight)
    assert unchanged == (script == "grpo.py")
    if script != "opd.py":  # the models of all scripts are evaluated alike
        return
    done = run_script(
        "evaluate.py", "--model", out / "final", "--benchmark", data, "--max_new_tokens", 8,
        "--n", 2, "--temperature", 1, "--k", 2, "--out", tmp_path / "eval", "--device", "cpu")
    assert done.returncode == 0, done.stderr
    summary = json.loads((tmp_path / "eval/summary.json").read_text())
    assert summary["n"] == 6 and "pass@2" in summary and summary["truncated"] > 0.5
    responses = read_jsonl(tmp_path / "eval/responses.jsonl")
    assert {r["prompt"] for r in responses} == {
        plain.replace(problem, f"{problem} ({i})") for i in range(6)}


@pytest.fixture
def gsm8k(tmp_path, monkeypatch):
    """GSM8K under its hub name, as in test_data.hub, with problems that differ."""
    numbers = {"train": range(6), "test": range(6, 12)}
    put_data_set(tmp_path, "gsm8k", lambda split: [numbered("gsm8k", i) for i in numbers[split]])
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.chdir(tmp_path)


OTHER_RUNS = [(script, name) for script in RUNS for name in SHOWN if RUNS[script][0] != name]


@pytest.mark.slow
@pytest.mark.parametrize("script, name", OTHER_RUNS)
def test_every_method_learns_from_every_data_set(qwen, gsm8k, tmp_path, capsys, script, name):
    """The pairs that the test above leaves out. --data gsm8k is the default with a real model."""
    (folder, _), module = qwen, importlib.import_module(script.removesuffix(".py"))
    files = [folder / f"{name}-{part}.jsonl" for part in ("problems", "tests")]
    data = ["gsm8k"] if name == "gsm8k" else [files[0], "--benchmark", files[1]]
    teacher = ["--teacher", folder / "teacher"] if script in ("opd.py", "topd.py") else []
    flags = ["--student", folder / "student", *teacher, "--data", *data, "--steps", 3, "--prompts", 2,
             "--samples", 2, "--max_new_tokens", 8, "--eval_n", 2, "--lr", 1e-3, "--device", "cpu",
             "--out", tmp_path / "run", *(["--window_size", 4] if script == "topd.py" else [])]
    module.main([str(x) for x in flags])
    problem = ROWS[name][3].get("problem") or ROWS[name][3]["question"]
    plain = stored_views(name)[PLAIN].removesuffix("\n").replace(problem, f"{problem} (0)")
    assert f"a prompt {plain!r}\n" in capsys.readouterr().out
    updates = [r for r in read_jsonl(tmp_path / "run/metrics.jsonl") if "loss" in r]
    assert [r["step"] for r in updates] == [1, 2, 3]
    assert all(math.isfinite(r["loss"]) and r["grad_norm"] < 100 for r in updates)


def test_toy_models_refuse_a_qwen_teacher(qwen):
    folder, _ = qwen
    done = run_script("opd.py", "--student", "toy/student", "--teacher", folder / "teacher",
                      "--data", "toy", "--device", "cpu", "--out", folder / "refused")
    assert done.returncode == 2 and "different tokenizers" in done.stderr
    assert "Traceback" not in done.stderr
