"""A table of what people get wrong. Each ends within seconds with exit code 2 and ONE sentence,
which says what is wrong and what to do, and it changes nothing that was there."""
import hashlib
import json
import shlex
import shutil

import pytest
import torch
from conftest import ROOT, ended, tiny_qwen3
from transformers import GPT2Config

SCRIPTS = {"opd.py", "topd.py", "ar_opd.py", "hindsight_sd.py", "grpo.py", "evaluate.py", "look.py"}
PAIR = "--student toy/student --teacher toy/teacher"
JUDGE = "evaluate.py --model toy/student --benchmark"

# ------------------------------------------------------------------------ models that are spoiled


def altered(tmp, name, edit, of="teacher"):
    """A copy of a toy model in which `edit(folder)` spoils something."""
    folder = tmp / name
    shutil.copytree(ROOT / "toy" / of, folder)
    edit(folder)


def change(file, **values):
    def edit(folder):
        path = folder / file
        path.write_text(json.dumps({**json.loads(path.read_text()), **values}))
    return edit


def swap_two_words(folder):
    """Other ids, but as many: a mistake that a comparison of sizes does not see."""
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
    torch.save({}, folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def spoil_models(tmp):
    altered(tmp, "swapped", swap_two_words)
    altered(tmp, "end", change("tokenizer_config.json", eos_token="<|pad|>"))
    altered(tmp, "narrow", narrow_head)
    altered(tmp, "untold", lambda folder: (folder / "chat_template.jinja").unlink())
    altered(tmp, "pickled", pickled)
    altered(tmp, "windows", change("config.json", use_sliding_window=True, sliding_window=8,
                                   max_window_layers=0, layer_types=None))
    altered(tmp, "strange", change("config.json", model_type="mine",
                                   auto_map={"AutoModelForCausalLM": "evil.Model"}))
    # A tokenizer without <|unk|>, as Qwen's: no problem has a word that it would not know.
    altered(tmp, "fluent", change("tokenizer_config.json", unk_token=None))
    altered(tmp, "gpt2", lambda folder: GPT2Config().save_pretrained(folder))
    altered(tmp, "huge", change("config.json", hidden_size=2**17, intermediate_size=2**19))
    (tmp / "odd").mkdir()
    (tmp / "odd/config.json").write_text("{}")
    (tmp / "file").write_text("")


# ------------------------------------------------------------------------ data and folders


def write(path, *rows, encoding="utf-8"):
    lines = [r if isinstance(r, str) else json.dumps(r) for r in rows]
    path.write_text("".join(line + "\n" for line in lines), encoding=encoding)


def spoil_data(tmp):
    row = {"problem": "a", "answer": "5"}
    write(tmp / "empty.jsonl")
    write(tmp / "columns.jsonl", {"text": "a", "label": "b"})
    write(tmp / "broken.jsonl", '{"problem": "a", "answ')
    write(tmp / "hollow.jsonl", {"problem": "a", "answer": ""})
    # Two problems: of own data a tenth, at least one, is held out.
    (tmp / "toolbox.py").write_text("x = 1\n")
    words = {"problem": "A train leaves Chicago at noon.", "answer": "5"}
    write(tmp / "words.jsonl", words, {**words, "problem": "A train leaves Boston at noon."})
    known = map(json.loads, (ROOT / "toy/train.jsonl").read_text().split("\n")[:2])
    foreign = [{**k, "solution": "A train leaves Chicago at noon."} for k in known]
    write(tmp / "foreign.jsonl", *foreign)
    worked = {**words, "problem": "b", "solution": ["Noon is at 5."]}
    write(tmp / "unworked.jsonl", worked, {**worked, "problem": "c", "solution": []},
          {**worked, "problem": "d", "solution": []})
    write(tmp / "single.jsonl", row, row)
    write(tmp / "unboxed.jsonl", {"problem": "a", "solution": "thus 5."})
    (tmp / "columns.csv").write_text("text,label\na,b\n")
    (tmp / "broken.csv").write_text("problem,answer\na,1\nb,2,3,4\n")
    (tmp / "broken.parquet").write_text("nonsense")
    write(tmp / "list.jsonl", {"problem": ["a"], "answer": "5"})
    write(tmp / "flag.jsonl", {"problem": "a", "answer": True})
    write(tmp / "null.jsonl", row, {"problem": "b", "answer": None})
    write(tmp / "blank.jsonl", {"problem": "  ", "answer": "5"})
    write(tmp / "twice.jsonl", row, {"problem": "b", "answer": "1"}, row)
    write(tmp / "contrary.jsonl", row, {**row, "answer": "6"})
    write(tmp / "latin.jsonl", '{"problem": "\u00e4", "answer": "5"}', encoding="latin-1")
    write(tmp / "utf16.jsonl", row, encoding="utf-16")
    write(tmp / "table.jsonl", "problem,answer", "a,5")


# What evaluate.py writes into config.json for `--model toy/student --benchmark toy`.
EVALUATION = {"model": "toy/student", "benchmark": "toy", "n": 1, "temperature": 0.0, "top_p": 1.0,
              "top_k": 0, "max_new_tokens": 256, "thinking": False, "seed": 0, "dtype": "auto"}
ANSWERED = {"index": 0, "sample": 0, "response": "", "gold": "1e9", "extracted": None,
            "correct": False, "tokens": 1, "truncated": False}


def folder_of(path, config, **files):
    path.mkdir()
    (path / "config.json").write_text(config if isinstance(config, str) else json.dumps(config))
    for name, rows in files.items():
        write(path / f"{name}.jsonl", *rows)


def spoil_folders(tmp):
    folder_of(tmp / "run", {"script": "opd.py", "seed": 5, "steps": 9})
    folder_of(tmp / "cut", '{"script": "op')
    folder_of(tmp / "list", "[1, 2]")
    folder_of(tmp / "other", {**EVALUATION, "benchmark": "toy-heldout"}, responses=[])
    folder_of(tmp / "truncated", EVALUATION, responses=['{"index": 0, "sam', "{}", "{}"])
    folder_of(tmp / "foreign", EVALUATION, responses=[ANSWERED])
    updates = ['{"step": 1, "lo', '{"step": 2}', '{"step": 3}']
    folder_of(tmp / "half", {"script": "opd.py"}, metrics=updates)
    whole = {"step": 0, "eval": {"accuracy": .5, "interval": [0, 1], "n": 10}}
    folder_of(tmp / "whole", {"script": "opd.py", "seed": 0}, metrics=[whole])
    folder_of(tmp / "early", {"script": "opd.py", "steps": 20}, metrics=[whole, {**whole, "step": 10}])


# ------------------------------------------------------------------------ the table


def mistakes(tmp):
    """(command line, what the sentence must say). Without another --out the folder is tmp/never."""
    return [
        # flags: values
        ("opd.py --steps -3", "--steps is -3; it must be at least 1."),
        ("opd.py --lr 0", "--lr is 0.0; it must lie in (0, inf)."),
        ("opd.py --lr inf", "--lr is inf; it must lie in (0, inf)."),
        ("opd.py --temperature 0", "--temperature is 0.0; it must lie in (0, 100) (rollouts"),
        ("opd.py --temperature inf", "--temperature is inf; it must lie in (0, 100)"),
        ("opd.py --vllm_memory 0", "--vllm_memory is 0.0; it must lie in (0, 1) (it is a share"),
        (f"{JUDGE} toy --vllm_memory 2", "--vllm_memory is 2.0; it must lie in (0, 1)"),
        ("opd.py --lora -1", "--lora is -1; it must lie in [0, 1024] (it is a rank"),
        ("opd.py --off_policy 1.5", "--off_policy is 1.5; it must lie in [0, 1] (it is a share)"),
        ("opd.py --divergence jsd --beta 1", "--beta is 1.0; it must lie in (0, 1) (there is also "
         "--divergence forward or reverse)"),
        ("opd.py --estimator sampled --divergence forward", "use it with --divergence reverse"),
        ("opd.py --divergence sideways", "invalid choice: 'sideways'"),
        ("topd.py --window_size 1", "--window_size is 1; it must lie in [2, "),
        ("topd.py --data toy --window_size 200", "--window_size is 200; it must lie in [2, 160] "
         "(a window must fit into a rollout, see --max_new_tokens)"),
        ("topd.py --lam -1", "--lam is -1.0; it must lie in [0, inf) (it is the weight of a loss)"),
        ("topd.py --candidate_share 0.5", "--candidate_share is 0.5; it must lie in (0, 0.1]"),
        ("topd.py --drop_share 1", "--drop_share is 1.0; it must lie in [0, 1) (it is a share"),
        ("topd.py --suppress low --drop_share 0", "as --drop_share drops; with 0 there are none."),
        ("topd.py --suppress high --drop_share 0.5", "--drop_share must be below 0.5."),
        ("topd.py --epsilon 0", "--epsilon is 0.0; it must lie in [0.01, 10]"),
        ("ar_opd.py --lam 9", "--lam is 9.0; it must lie in [0, 5] (0: partial view, 1 with"),
        ("ar_opd.py --lam nan", "--lam is nan; it must lie in [0, 5]"),
        ("ar_opd.py --rho 1", "(for the whole solution: --target full)"),
        ("ar_opd.py --ema 0", "(for a teacher that stays as it is: --teacher frozen)"),
        ("ar_opd.py --clip -1", "--clip is -1.0; it must lie in [0, inf) (0: no clip)"),
        ("ar_opd.py --skip_first 900 --data toy", "--skip_first is 900; it must lie in [0, 160)"),
        ("ar_opd.py --steps many", "invalid int value: 'many'"),
        ("hindsight_sd.py --samples 1", "its own peer or its own baseline; use --samples 8"),
        ("hindsight_sd.py --beta -1", "--beta is -1.0; it must lie in [0, inf) (0: off)"),
        ("hindsight_sd.py --rl_weight 1", "(for 1: python grpo.py)"),
        ("hindsight_sd.py --context none", "invalid choice: 'none'"),
        ("hindsight_sd.py --peer best", "invalid choice: 'best'"),
        ("hindsight_sd.py --teacher ema --ema 2", "--ema is 2.0; it must lie in (0, 1] (for a "
         "teacher that stays as it is: --teacher frozen)"),
        ("grpo.py --samples 1", "--samples is 1; a group needs at least 2 rollouts"),
        ("grpo.py --clip_low 1.5", "--clip_low is 1.5; it must lie in (0, 1)"),
        ("grpo.py --clip_high 0", "--clip_high is 0.0; it must lie in (0, inf)"),
        ("grpo.py --reuse 0", "--reuse is 0; it must be at least 1."),
        ("grpo.py --variant dapo --overlong_share 0", "--overlong_share is 0.0; it must lie in (0"),
        ("grpo.py --save_every -1", "--save_every is -1; it must be 0 (off) or more."),
        ("grpo.py --chunk_logits 0", "--chunk_logits is 0; it must be at least 1."),
        (f"{JUDGE} toy --n 4", "--n 4 greedy samples would all be the same; set --temperature"),
        (f"{JUDGE} toy --n 0", "--n is 0"),
        (f"{JUDGE} toy --k 4", "--k is 4; pass@k needs 1 <= k <= n, and n is 1."),
        (f"{JUDGE} toy --limit -1", "--limit is -1; it must be at least 1."),
        (f"{JUDGE} toy --temperature -1", "--temperature is -1.0; it must be 0 (greedy) or more"),
        (f"{JUDGE} toy --top_p 0", "--top_p is 0.0; it must lie in (0, 1]"),
        (f"{JUDGE} toy --top_k -2", "--top_k is -2; it must be 0 (off) or more"),
        (f"{JUDGE} toy --batch 0", "--batch is 0; it must be at least 1."),
        (f"{JUDGE} toy --max_new_tokens 0", "--max_new_tokens is 0; it must be at least 1."),
        ("look.py opd --n 0", "--n is 0"),
        ("look.py topd --window_size 1", "--window_size is 1"),
        ("look.py ar_opd --rho 2", "--rho is 2.0"),
        # flags: names
        ("evaluate.py", "Say what to evaluate: --model FOLDER_OR_NAME --benchmark NAME"),
        ("opd.py --divergance forward", "did you mean --divergence?"),
        ("topd.py --samp 4", "did you mean --samples?"),
        ("opd.py --off_policy_data teacher", "did you mean --off_policy?"),     # earlier versions
        ("topd.py --plan exact", "unrecognized arguments: --plan"),
        ("opd.py --learning_rate 1e-5", "did you mean --lr?"),
        ("grpo.py --batch_size 8", "did you mean --prompts? (a batch is --prompts x --samples"),
        ("topd.py --output_dir runs/mine", "did you mean --out?"),
        ("hindsight_sd.py --epochs 3", "did you mean --steps? (a run is measured in updates"),
        ("evaluate.py --model_name_or_path toy/student --tasks toy", "did you mean --model?"),
        ("look.py opd --output_dir here", "did you mean --html?"),
        ("look.py sft", "'sft' is no method; use opd, topd, ar_opd"),
        ("look.py grpo --samples 1", "grpo compares the rollouts of a question; use 2 or more"),
        (f"look.py {tmp}/no_fork.py", "There is no file"),
        (f"look.py {tmp}/toolbox.py", "lacks what look.py calls"),
        ("hindsight_sd.py --device gpu", "no usable device 'gpu' here; use --device cpu"),
        ("opd.py --data toy --device cuda:9", "no usable device 'cuda:9' here; use --device cpu"),
        # models and tokenizers
        (f"opd.py --student {tmp}/nothing", "no such folder, and the model hub did not give it"),
        (f"opd.py --student {tmp}/odd", "holds no tokenizer that transformers can load"),
        (f"{JUDGE} toy --model {tmp}/nothing", "no such folder"),
        (f"{JUDGE} toy --model {tmp}/file", "holds no tokenizer that transformers can load"),
        (f"opd.py {PAIR} --student Qwen/Qwen3-600B --data toy", "no such folder, and the model hub "
         "did not give it"),
        (f"opd.py --student toy/student --teacher {tmp}/swapped --data toy",
         "different tokenizers (2 of"),
        (f"topd.py --student toy/student --teacher {tmp}/swapped --data toy",
         "different tokenizers (2 of"),
        (f"look.py opd --teacher {tmp}/swapped", "different tokenizers (2 of"),
        (f"opd.py --teacher {tmp}/end --data toy", "end a turn with different tokens"),
        (f"ar_opd.py --student {tmp}/narrow --data toy", "they do not belong together"),
        (f"{JUDGE} toy --model {tmp}/narrow", "they do not belong together"),
        (f"grpo.py --student {tmp}/untold --data toy", "no chat template; use an instruct model"),
        (f"grpo.py --student {tmp}/pickled --data toy", "no model that transformers can load"),
        (f"opd.py --student {tmp}/windows --data toy", "sliding_attention; only models with full "
         "attention work here"),
        (f"hindsight_sd.py --student {tmp}/strange --data toy", "that transformers can load"),
        (f"opd.py --student {tmp}/gpt2 --data toy", "is a model of the family gpt2; only models"),
        (f"{JUDGE} toy --model {tmp}/gpt2", "is a model of the family gpt2; only models"),
        (f"opd.py --student {tmp}/huge --data toy", "Choose smaller models with --student and"),
        (f"ar_opd.py --student {tmp}/huge --data toy", "Choose smaller models with --student."),
        (f"{JUDGE} toy --model {tmp}/huge", "choose a smaller model"),
        (f"grpo.py --data toy --student {tmp}/whole", "is the folder of a run of opd.py, which has"),
        (f"grpo.py --data toy --student {tmp}/other", "holds an evaluation of 'toy/student'"),
        ("opd.py --student toy/student --teacher toy/student --data toy",
         "would learn nothing from itself; choose a better teacher"),
        ("topd.py --student toy/teacher --teacher toy/teacher --data toy",
         "would learn nothing from itself; choose a better teacher"),
        # data
        ("opd.py --data nowhere", "no benchmark and no file named 'nowhere'"),
        (f"opd.py {PAIR} --data toy --benchmark nowhere", "no benchmark and no file"),
        (f"{JUDGE} nope", "no benchmark and no file named 'nope'"),
        (f"{JUDGE} {tmp}", "is a folder; name a file in it"),
        ("opd.py --data math500", "no training problems; train on toy or gsm8k"),
        (f"{JUDGE} math500", "Without network, save its test split as JSONL"),
        (f"opd.py {PAIR} --data {tmp}/empty.jsonl", "is empty; it needs rows with the columns"),
        (f"opd.py {PAIR} --data {tmp}/columns.jsonl", "no column for the problem and the answer"),
        (f"{JUDGE} {tmp}/columns.jsonl", "no column"),
        (f"{JUDGE} {tmp}/columns.csv", "its columns are text, label. Rename them: a problem is"),
        (f"opd.py {PAIR} --data {tmp}/broken.csv", "A comma inside of a text needs double quotes"),
        (f"opd.py {PAIR} --data {tmp}/broken.parquet", "It must hold a table in the format Parquet"),
        (f"opd.py {PAIR} --data {tmp}/unboxed.jsonl", "without a final answer in \\boxed{...} or"),
        (f"opd.py {PAIR} --data me/nothing", "Could not load the data set 'me/nothing'"),
        (f"opd.py {PAIR} --data {tmp}/missing.csv", "no benchmark and no file named"),
        (f"opd.py {PAIR} --data {tmp}/single.jsonl", "holds one problem, so none can be held out"),
        (f"opd.py {PAIR} --data {tmp}/words.jsonl --benchmark {tmp}/words.jsonl",
         "2 of the 2 problems of"),
        (f"opd.py {PAIR} --data {tmp}/words.jsonl:held-out", "is held out for tests; train on"),
        (f"opd.py {PAIR} --data {tmp}/broken.jsonl", "Could not load"),
        (f"opd.py {PAIR} --data {tmp}/hollow.jsonl", "Row 1 of"),
        (f"opd.py {PAIR} --data {tmp}/list.jsonl", "no text as its problem; mend or delete it"),
        (f"opd.py {PAIR} --data {tmp}/flag.jsonl", "neither text nor a number; mend or delete it"),
        (f"opd.py {PAIR} --data {tmp}/null.jsonl", "Row 2 of"),
        (f"opd.py {PAIR} --data {tmp}/blank.jsonl", "no text as its problem; mend or delete it"),
        (f"{JUDGE} {tmp}/twice.jsonl", "Rows 1 and 3 of"),
        (f"grpo.py --student toy/reader --data {tmp}/contrary.jsonl",
         "different answers ('5', '6'); delete one of them"),
        (f"{JUDGE} {tmp}/latin.jsonl", "in UTF-8"),
        (f"{JUDGE} {tmp}/utf16.jsonl", "in UTF-8"),
        (f"{JUDGE} {tmp}/table.jsonl", "one JSON object a line"),
        (f"opd.py {PAIR} --data {tmp}/words.jsonl", "only speak the toy's language (--data toy"),
        (f"opd.py --student {tmp}/fluent --off_policy 1 --data {tmp}/words.jsonl",
         "rows without a solution to learn from; use --off_policy 0"),
        (f"opd.py --student {tmp}/fluent --off_policy 1 --data {tmp}/unworked.jsonl",
         "rows without a solution to learn from; use --off_policy 0"),
        (f"ar_opd.py --student {tmp}/fluent --data {tmp}/words.jsonl", "rows without a solution"),
        (f"ar_opd.py --student {tmp}/fluent --data {tmp}/unworked.jsonl", "rows without a solution"),
        (f"ar_opd.py --student toy/reader --data {tmp}/foreign.jsonl",
         "only speak the toy's language (--data toy"),
        (f"hindsight_sd.py --student {tmp}/fluent --data {tmp}/words.jsonl --context reference",
         "without a solution for --context reference; use --context peer"),
        (f"look.py ar_opd --data {tmp}/words.jsonl", "without a solution"),
        ("opd.py --data toy --max_new_tokens 5000", "the model's context is"),
        ("ar_opd.py --student toy/reader --data toy --max_new_tokens 1020", "No prompt fits"),
        ("hindsight_sd.py --data toy --max_new_tokens 480", "No prompt fits"),
        # folders
        (f"opd.py --data toy --out {tmp}/file/below", "Cannot write"),
        (f"opd.py --data toy --out {tmp}/file", "Cannot write"),
        (f"opd.py --data toy --out {tmp}/run", "already holds a run; continue it with --resume"),
        (f"topd.py --out {tmp}/run", "already holds a run; continue it with --resume"),
        (f"grpo.py --data toy --out {tmp}/half", "already holds a run"),
        (f"opd.py --data toy --steps 7 --out {tmp}/run --resume", "started with other settings"),
        (f"grpo.py --data toy --resume --steps 9 --seed 5 --out {tmp}/run", "holds a run of opd.py"),
        ("opd.py --data toy --resume", "nothing to resume in"),
        (f"grpo.py --resume --out {tmp}/cut", "cut off or edited"),
        (f"opd.py --resume --out {tmp}/list", "cut off or edited"),
        (f"{JUDGE} toy --out {tmp}/run", "another"),
        (f"{JUDGE} toy --out {tmp}/other", "another evaluation (benchmark: toy-heldout"),
        (f"{JUDGE} toy --out {tmp}/truncated", "Line 1 of"),
        (f"{JUDGE} toy --out {tmp}/foreign", "other problems"),
        (f"{JUDGE} toy --max_new_tokens 17 --out {tmp}/foreign", "max_new_tokens: 256"),
        (f"evaluate.py --compare {tmp}/nothing", "not a run"),
        (f"evaluate.py --compare {tmp}/half", "Line 1 of"),
        (f"evaluate.py --compare {tmp}/foreign {tmp}/whole", "not both at once"),
        (f"evaluate.py --compare {tmp}/odd", "neither metrics.jsonl nor responses.jsonl"),
        (f"{JUDGE} toy --out {tmp}/file", "Cannot write into"),
        (f"evaluate.py --compare {tmp}/whole {tmp}/./whole", "are the same folder; name a run once"),
        (f"evaluate.py --compare {tmp}/whole --out {tmp}/other", "must end in .png"),
        (f"evaluate.py --compare {tmp}/whole --out {tmp}/file/x.png", "Cannot write into"),
        (f"evaluate.py --compare {tmp}/early", "is at update 10 of 20; let it go on (python opd.py"),
        (f"evaluate.py --compare {tmp}/foreign", "was stopped after 1 problems, those with the"),
        (f"look.py opd --html {tmp}/no/such/page.html", "create it, or choose another --html"),
        (f"look.py opd --html {tmp}", "is a folder; give --html the name of a file in it"),
        (f"look.py opd --html {tmp}/file/page.html", "There is no folder"),
    ]


def completed(command, tmp):
    """The command as a list of words, on the CPU, and with a folder of its own."""
    words = shlex.split(command)
    if "--compare" in words:
        return words
    folder = [] if "--out" in words or words[0] == "look.py" else ["--out", tmp / "never"]
    device = [] if "--device" in words else ["--device", "cpu"]
    return [*words, *folder, *device]


def contents(folder):
    return {
        str(p.relative_to(folder)):
            hashlib.sha256(p.read_bytes()).hexdigest() if p.is_file() else None
        for p in sorted(folder.rglob("*")) if "said-" not in p.name
    }


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    tmp = tmp_path_factory.mktemp("mistakes")
    spoil_models(tmp)
    spoil_data(tmp)
    spoil_folders(tmp)
    return tmp, mistakes(tmp)


@pytest.mark.slow
def test_mistakes_end_with_one_sentence_and_exit_code_2_and_change_nothing(table, start):
    tmp, cases = table
    assert len(cases) >= 100 and {command.split()[0] for command, _ in cases} == SCRIPTS
    before, wrong = contents(tmp), []
    for i, (command, words) in enumerate(cases):
        log = tmp / f"said-{i}"
        code, said = ended(start(completed(command, tmp), log), log, 90)
        errors = [line for line in said.split("\n") if line.startswith("error: ")]
        if code != 2 or len(errors) != 1 or words not in errors[0] or "Traceback" in said:
            wrong.append((command, words, code, said[-600:]))
        now = contents(tmp)
        now.pop("never", None)      # an empty folder: made to see whether it can be written to
        if now != before:
            differing = {k for k in {*now, *before} if now.get(k) != before.get(k)}
            wrong.append((command, "changed", differing))
            before = now
    assert not wrong, "\n\n".join(map(str, wrong))
