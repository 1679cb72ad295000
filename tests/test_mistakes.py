"""A table of what people get wrong. Each ends within seconds with exit code 2 and ONE sentence that names the thing and the way out, and changes
nothing that was there."""
import hashlib
import json
import shutil

import pytest
from conftest import ROOT, ended, tiny_qwen3


def altered(tmp, name, edit, of="teacher"):
    """A copy of a toy model in which `edit(folder)` spoils something."""
    folder = tmp / name
    shutil.copytree(ROOT / "toy" / of, folder)
    edit(folder)
    return folder


def change(file, **values):
    def edit(folder):
        path = folder / file
        path.write_text(json.dumps({**json.loads(path.read_text()), **values}))
    return edit


def swap_two_words(folder):
    """Another id map of the same size: the mistake that a comparison of widths does not see."""
    path = folder / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    words = tokenizer["model"]["vocab"]
    a, b = list(words)[-2:]
    words[a], words[b] = words[b], words[a]
    path.write_text(json.dumps(tokenizer))


def narrow_head(folder):
    vocabulary = json.loads((folder / "config.json").read_text())["vocab_size"]
    tiny_qwen3(vocabulary=vocabulary // 2).save_pretrained(folder)


def pickled(folder):
    import torch
    torch.save({}, folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def write(path, *rows, encoding="utf-8"):
    path.write_text("".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in rows), encoding=encoding)
    return path


def mistakes(tmp):
    row = {"problem": "a", "answer": "5"}
    empty, columns = write(tmp / "empty.jsonl"), write(tmp / "columns.jsonl", {"text": "a", "label": "b"})
    broken, hollow = write(tmp / "broken.jsonl", '{"problem": "a", "answ'), write(tmp / "hollow.jsonl", {"problem": "a", "answer": ""})
    words = write(tmp / "words.jsonl", {"problem": "A train leaves Chicago at noon.", "answer": "5"})
    (tmp / "file").write_text("")
    (tmp / "odd").mkdir()
    (tmp / "odd/config.json").write_text("{}")
    (tmp / "run").mkdir()
    (tmp / "run/config.json").write_text(json.dumps({"script": "opd.py", "seed": 5, "steps": 9}))
    for name, config in (("cut", '{"script": "op'), ("list", "[1, 2]")):
        (tmp / name).mkdir()
        (tmp / name / "config.json").write_text(config)
    settings = {k: v for k, v in evaluation().items()}
    for name, benchmark, lines in (("other", "toy-heldout", []), ("truncated", "toy", ['{"index": 0, "sam', "{}", "{}"]), ("foreign", "toy", [json.dumps(
            {"index": 0, "sample": 0, "response": "", "gold": "1e9", "extracted": None, "correct": False, "tokens": 1, "truncated": False})])):
        (tmp / name).mkdir()
        (tmp / name / "config.json").write_text(json.dumps({**settings, "benchmark": benchmark}))
        write(tmp / name / "responses.jsonl", *lines)
    (tmp / "half").mkdir()
    (tmp / "half/config.json").write_text(json.dumps({"script": "opd.py"}))
    write(tmp / "half/metrics.jsonl", '{"step": 1, "lo', '{"step": 2}', '{"step": 3}')
    out, pair = ["--out", tmp / "never"], ["--student", "toy/student", "--teacher", "toy/teacher"]
    judge = ["evaluate.py", "--model", "toy/student", "--benchmark"]
    return [
        (["opd.py", "--student", tmp / "nothing", *out], "no such folder"),
        (["opd.py", "--student", tmp / "odd", *out], "holds no"),
        (["opd.py", "--steps", -3, *out], "--steps is -3"),
        (["opd.py", "--lr", 0, *out], "--lr"),
        (["opd.py", "--temperature", 0, *out], "--temperature"),
        (["opd.py", "--vllm_memory", 0, *out], "--vllm_memory is 0"),
        (["evaluate.py", "--model", "toy/student", "--benchmark", "toy", "--vllm_memory", 2, *out], "--vllm_memory is 2"),
        (["opd.py", "--off_policy", 1.5, *out], "--off_policy"),
        (["opd.py", "--divergence", "jsd", "--beta", 1, *out], "--beta"),
        (["opd.py", "--estimator", "sampled", "--divergence", "forward", *out], "reverse KL"),
        (["opd.py", "--divergence", "sideways", *out], "invalid choice"),
        (["opd.py", "--data", "nowhere", *out], "no benchmark and no file"),
        (["opd.py", "--data", "math500", *out], "no training problems"),
        (["opd.py", *pair, "--data", empty, *out], "is empty"),
        (["opd.py", *pair, "--data", columns, *out], "no column for the problem and the answer"),
        (["opd.py", *pair, "--data", broken, *out], "Could not load"),
        (["opd.py", *pair, "--data", hollow, *out], "Row 1 of"),
        (["opd.py", *pair, "--data", words, *out], "toy's language"),
        (["opd.py", "--data", "toy", "--max_new_tokens", 5000, *out], "context"),
        (["opd.py", "--data", "toy", "--out", tmp / "file/below"], "Cannot write"),
        (["opd.py", "--data", "toy", "--out", tmp / "run"], "already holds a run"),
        (["opd.py", "--data", "toy", "--steps", 7, "--out", tmp / "run", "--resume"], "other settings"),
        (["opd.py", "--data", "toy", "--resume", *out], "nothing to resume"),
        (["opd.py", "--data", "toy", "--device", "cuda:9", *out], "no usable device"),
        (["topd.py", "--window_size", 1, *out], "--window_size is 1"),
        (["topd.py", "--data", "toy", "--window_size", 200, *out], "--window_size is 200"),
        (["topd.py", "--lam", -1, *out], "--lam is -1"),
        (["topd.py", "--candidate_share", 0.5, *out], "--candidate_share"),
        (["topd.py", "--drop_share", 1, *out], "--drop_share"),
        (["topd.py", "--epsilon", 0, *out], "--plan exact"),
        (["topd.py", "--out", tmp / "run"], "already holds a run"),
        (["ar_opd.py", "--lam", 9, *out], "--lam is 9"),
        (["ar_opd.py", "--rho", 1, *out], "--target full"),
        (["ar_opd.py", "--ema", 0, *out], "--teacher frozen"),
        (["ar_opd.py", "--clip", -1, *out], "--clip is -1"),
        (["ar_opd.py", "--skip_first", 900, "--data", "toy", *out], "--skip_first"),
        (["ar_opd.py", "--student", "toy/student", "--data", words, *out], "without a solution"),
        (["hindsight_sd.py", "--samples", 1, *out], "its own peer"),
        (["hindsight_sd.py", "--beta", -1, *out], "--beta is -1"),
        (["hindsight_sd.py", "--rl_weight", 1, *out], "python grpo.py"),
        (["hindsight_sd.py", "--context", "none", *out], "nothing to learn"),
        (["hindsight_sd.py", "--teacher", "ema", "--ema", 2, *out], "--teacher frozen"),
        (["hindsight_sd.py", "--data", "toy", "--max_new_tokens", 480, *out], "No prompt fits"),
        (["hindsight_sd.py", "--student", "toy/student", "--data", words, "--context", "reference", *out], "without a solution"),
        (["grpo.py", "--samples", 1, *out], "at least 2"),
        (["grpo.py", "--clip_low", 1.5, *out], "--clip_low"),
        (["grpo.py", "--clip_high", 0, *out], "--clip_high"),
        (["grpo.py", "--reuse", 0, *out], "--reuse is 0"),
        (["grpo.py", "--variant", "dapo", "--overlong_share", 0, *out], "--overlong_share"),
        (["evaluate.py"], "--model"),
        (["evaluate.py", "--model", "toy/student", "--benchmark", "nope"], "no benchmark and no file"),
        (["evaluate.py", "--model", tmp / "nothing", "--benchmark", "toy", *out], "no such folder"),
        (["evaluate.py", "--model", "toy/student", "--benchmark", columns], "no column"),
        (["evaluate.py", "--model", "toy/student", "--benchmark", "toy", "--n", 4], "greedy"),
        (["evaluate.py", "--model", "toy/student", "--benchmark", "toy", "--k", 4], "pass@k"),
        (["evaluate.py", "--model", "toy/student", "--benchmark", "toy", "--limit", -1], "--limit"),
        (["evaluate.py", "--model", "toy/student", "--benchmark", "toy", "--out", tmp / "run"], "another"),
        (["evaluate.py", "--model", "toy/student", "--benchmark", "math500", *out], "Without network"),
        (["evaluate.py", "--compare", tmp / "nothing"], "not a run"),
        (["look.py", "opd", "--n", 0], "--n is 0"),
        (["look.py", "topd", "--window_size", 1], "--window_size is 1"),
        (["look.py", "ar_opd", "--rho", 2], "--rho is 2"),
        (["look.py", "ar_opd", "--data", words], "without a solution"),
        (["look.py", "opd", "--html", tmp / "no/such/page.html"], "no folder"),
        # models and tokenizers
        (["opd.py", "--student", "toy/student", "--teacher", altered(tmp, "swapped", swap_two_words), "--data", "toy", *out], "different tokenizers (2 of"),
        (["topd.py", "--student", "toy/student", "--teacher", tmp / "swapped", "--data", "toy", *out], "different tokenizers (2 of"),
        (["look.py", "opd", "--teacher", tmp / "swapped"], "different tokenizers (2 of"),
        (["opd.py", "--teacher", altered(tmp, "end", change("tokenizer_config.json", eos_token="<|pad|>")), "--data", "toy", *out], "end a turn with different tokens"),
        (["ar_opd.py", "--student", altered(tmp, "narrow", narrow_head), "--data", "toy", *out], "they do not belong together"),
        (["evaluate.py", "--model", tmp / "narrow", "--benchmark", "toy", *out], "they do not belong together"),
        (["grpo.py", "--student", altered(tmp, "untold", lambda f: (f / "chat_template.jinja").unlink()), "--data", "toy", *out], "no chat template"),
        (["grpo.py", "--student", altered(tmp, "pickled", pickled), "--data", "toy", *out], "holds no model"),
        (["opd.py", "--student", altered(tmp, "windows", change("config.json", use_sliding_window=True, sliding_window=8, max_window_layers=0, layer_types=None)),
          "--data", "toy", *out], "sliding_attention"),
        (["hindsight_sd.py", "--student", altered(tmp, "strange", change("config.json", model_type="mine", auto_map={"AutoModelForCausalLM": "evil.Model"})),
          "--data", "toy", *out], "that transformers can load"),
        (["opd.py", "--student", "toy/student", "--teacher", "toy/student", "--data", "toy", *out], "learn nothing from itself"),
        (["topd.py", "--student", "toy/teacher", "--teacher", "toy/teacher", "--data", "toy", *out], "learn nothing from itself"),
        (["opd.py", *pair, "--student", "Qwen/Qwen3-600B", "--data", "toy", *out], "no such folder, and the model hub did not give it"),
        (["evaluate.py", "--model", tmp / "file", "--benchmark", "toy", *out], "holds no"),
        # data
        (["opd.py", *pair, "--data", write(tmp / "list.jsonl", {"problem": ["a"], "answer": "5"}), *out], "no text as its problem"),
        (["opd.py", *pair, "--data", write(tmp / "flag.jsonl", {"problem": "a", "answer": True}), *out], "neither text nor a number"),
        (["opd.py", *pair, "--data", write(tmp / "null.jsonl", row, {"problem": "b", "answer": None}), *out], "Row 2 of"),
        (["opd.py", *pair, "--data", write(tmp / "blank.jsonl", {"problem": "  ", "answer": "5"}), *out], "no text as its problem"),
        ([*judge, write(tmp / "twice.jsonl", row, {"problem": "b", "answer": "1"}, row), *out], "Rows 1 and 3 of"),
        (["grpo.py", "--student", "toy/reader", "--data", write(tmp / "contrary.jsonl", row, {**row, "answer": "6"}), *out], "different answers ('5', '6')"),
        ([*judge, write(tmp / "latin.jsonl", '{"problem": "\u00e4", "answer": "5"}', encoding="latin-1"), *out], "in UTF-8"),
        ([*judge, write(tmp / "utf16.jsonl", row, encoding="utf-16"), *out], "in UTF-8"),
        ([*judge, write(tmp / "table.jsonl", "problem,answer", "a,5"), *out], "one JSON object a line"),
        ([*judge, tmp, *out], "no benchmark and no file"),
        (["opd.py", *pair, "--data", "toy", "--benchmark", "nowhere", *out], "no benchmark and no file"),
        (["ar_opd.py", "--student", "toy/reader", "--data", "toy", "--max_new_tokens", 1020, *out], "No prompt fits"),
        # folders
        (["opd.py", "--data", "toy", "--out", tmp / "file"], "Cannot write"),
        (["grpo.py", "--resume", "--out", tmp / "cut"], "cut off or edited"),
        (["opd.py", "--resume", "--out", tmp / "list"], "cut off or edited"),
        (["grpo.py", "--data", "toy", "--resume", "--steps", 9, "--seed", 5, "--out", tmp / "run"], "--script opd.py"),
        ([*judge, "toy", "--out", tmp / "other"], "another evaluation (benchmark: toy-heldout"),
        ([*judge, "toy", "--out", tmp / "truncated"], "Line 1 of"),
        ([*judge, "toy", "--out", tmp / "foreign"], "other problems"),
        ([*judge, "toy", "--max_new_tokens", 17, "--out", tmp / "foreign"], "max_new_tokens: 256"),
        (["evaluate.py", "--compare", tmp / "half"], "Line 1 of"),
        (["evaluate.py", "--compare", tmp / "foreign", tmp / "whole"], "not both at once"),
        (["evaluate.py", "--compare", tmp / "odd"], "neither metrics.jsonl nor responses.jsonl"),
        # flags
        (["opd.py", "--divergance", "forward", *out], "did you mean --divergence?"),
        (["topd.py", "--samp", 4, *out], "did you mean --samples?"),
        (["ar_opd.py", "--steps", "many", *out], "invalid int value: 'many'"),
        (["ar_opd.py", "--lam", "nan", *out], "--lam is nan"),
        (["opd.py", "--lr", "inf", *out], "--lr is inf"),
        (["opd.py", "--temperature", "inf", *out], "--temperature is inf"),
        (["grpo.py", "--save_every", -1, *out], "--save_every is -1"),
        (["grpo.py", "--chunk_logits", 0, *out], "--chunk_logits is 0"),
        (["hindsight_sd.py", "--peer", "best", *out], "invalid choice: 'best'"),
        (["hindsight_sd.py", "--device", "gpu", *out], "no usable device 'gpu'"),
        ([*judge, "toy", "--temperature", -1, *out], "--temperature is -1"),
        ([*judge, "toy", "--top_p", 0, *out], "--top_p is 0"),
        ([*judge, "toy", "--top_k", -2, *out], "--top_k is -2"),
        ([*judge, "toy", "--n", 0, *out], "--n is 0"),
        ([*judge, "toy", "--batch", 0, *out], "--batch is 0"),
        ([*judge, "toy", "--max_new_tokens", 0, *out], "--max_new_tokens is 0"),
        (["look.py", "sft"], "invalid choice: 'sft'"),
    ]


def evaluation():
    """What evaluate.py writes into config.json for `--model toy/student --benchmark toy`."""
    return {"model": "toy/student", "benchmark": "toy", "n": 1, "temperature": 0.0, "top_p": 1.0, "top_k": 0, "max_new_tokens": 256, "thinking": False, "seed": 0,
            "dtype": "auto"}


def contents(folder):
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() if p.is_file() else None for p in sorted(folder.rglob("*")) if "said-" not in p.name}


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    tmp = tmp_path_factory.mktemp("mistakes")
    (tmp / "whole").mkdir()
    (tmp / "whole/config.json").write_text(json.dumps({"script": "opd.py", "seed": 0}))
    write(tmp / "whole/metrics.jsonl", {"step": 0, "eval": {"accuracy": .5, "interval": [0, 1], "n": 10}})
    return tmp, mistakes(tmp)


def test_mistakes_end_with_one_sentence_and_exit_code_2_and_change_nothing(table, start):
    tmp, cases = table
    assert len(cases) >= 100 and {c[0][0] for c in cases} == {"opd.py", "topd.py", "ar_opd.py", "hindsight_sd.py", "grpo.py", "evaluate.py", "look.py"}
    before, wrong = contents(tmp), []
    for i, (command, words) in enumerate(cases):
        log = tmp / f"said-{i}"
        device = [] if command[0] == "evaluate.py" and "--compare" in command or "--device" in command else ["--device", "cpu"]
        code, said = ended(start([*command, *device], log), log, 20)
        errors = [line for line in said.split("\n") if line.startswith("error: ")]
        if code != 2 or len(errors) != 1 or words not in errors[0] or "Traceback" in said:
            wrong.append((command, words, code, said[-600:]))
        now = contents(tmp)
        now.pop("never", None)          # an empty folder that was made to see whether one can write there
        if now != before:
            wrong.append((command, "changed", {k for k in {*now, *before} if now.get(k) != before.get(k)}))
            before = now
    assert not wrong, "\n\n".join(map(str, wrong))


def test_what_looks_wrong_and_is_not(tmp_path, start):
    # numbers as answers, columns beyond the two, a UTF-8 mark, Windows line ends, a problem that occurs twice in the training data
    lines = [{"problem": "q = 3 . q ?", "answer": 3, "source": "x"}, {"problem": "q = 4 . q ?", "answer": 4, "source": None}]
    from evaluate import load_benchmark
    path = tmp_path / "mine.jsonl"
    path.write_bytes("\r\n".join(map(json.dumps, lines)).encode())
    assert [r["answer"] for r in load_benchmark(str(path))] == ["3", "4"]
    write(path, *lines, lines[0])
    assert len(load_benchmark(str(path), "train")) == 3
    code, said = ended(start(["opd.py", "--help"], tmp_path / "help"), tmp_path / "help")
    assert code == 0 and "usage" in said
