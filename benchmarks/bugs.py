"""Five famous bugs of distillation, switched on one at a time: what do their curves look like?

    python benchmarks/bugs.py --seeds 0 1        some minutes on one core for each seed

Each bug is a copy of opd.py with one line changed. It is trained next to the right code with the
same flags, seeds and problems, so both see the same rollouts until the bug has moved the student.
The curves go to notebooks/bugs.json. notebooks/05_fork_it.ipynb shows them as a riddle.
"""

import importlib.util
import json
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
from common.arguments import Parser, require, run_script  # noqa: E402
from common.files import read_jsonl, write_text  # noqa: E402

# ======================================================================== a fork of opd.py


def fork(name, changes, folder):
    """The module `name`: a copy of opd.py in `folder`, with every (before, after) replaced."""
    text = (ROOT / "opd.py").read_text(encoding="utf-8")
    for before, after in changes:
        count = text.count(before)
        require(
            count == 1,
            f"this text stands in opd.py {count} times, and a change needs a text that stands "
            f"there once; copy it from opd.py, with the line above or below it:\n{before}",
        )
        text = text.replace(before, after)
    path = Path(folder) / f"{name}.py"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # where a dataclass looks for the module that it stands in
    spec.loader.exec_module(module)
    return module


# ======================================================================== the bugs

FULL, TOPK, SAMPLED = [], ["--estimator", "topk", "--top_k", "1"], ["--estimator", "sampled"]

# {arm: (flags, line of opd.py, line in its place)}
ARMS = {
    "right full": (FULL, None, None),
    "wrong direction": (
        FULL,
        "loss = divergence(student_logp, teacher_logp, args.divergence, args.beta)  # (2)",
        "loss = divergence(teacher_logp, student_logp, args.divergence, args.beta)",
    ),
    "right sampled": (SAMPLED, None, None),
    "missing detach": (
        SAMPLED,
        "advantage = (teacher_written - written).detach()  # [n]",
        "advantage = teacher_written - written",
    ),
    # Pad and end of turn are one id in many models. So a mask made from ids drops the end, too.
    "mask from pad ids": (
        FULL,
        "loss = token_loss(student_logp, teacher_logp, targets, off, args)  # [n]",
        "loss = token_loss(student_logp, teacher_logp, targets, off, args)\n"
        "        loss = loss * (targets != min(student.ends))",
    ),
    "right topk": (TOPK, None, None),
    "renormalised top-k": (
        TOPK,
        "pair.append(torch.cat([logp.gather(1, chosen), rest], 1))  # [n, k + 1]",
        "pair.append(logp.gather(1, chosen).log_softmax(1))",
    ),
    "batch-dependent mean": (
        FULL,
        "compute.backward(loss / tokens)",
        "compute.backward(loss / len(targets))",
    ),
}
# Of each update: the reverse KL to the teacher, and what else tells the bugs apart.
KEPT = ("kl", "student_entropy", "grad_norm", "length")
# So few tokens go through a model at once that a batch is cut into several micro-batches. The
# evaluations are not looked at, so they are of one problem.
COMMON = "--device cpu --prompts 16 --samples 1 --micro_tokens 512 --save_every 0 --show_every 0"
COMMON += " --eval_every 0 --eval_n 1"


def train(arm, seed, steps, runs):
    """The curves of one run, {name: values}. A run that is there is not repeated."""
    flags, before, after = ARMS[arm]
    name = arm.replace(" ", "_").replace("-", "_")
    out = Path(runs) / f"{name}-{steps}-{seed}"
    if not (out / "final").exists():
        module = fork(name, [] if before is None else [(before, after)], runs)
        argv = [*COMMON.split(), *flags, "--steps", str(steps), "--seed", str(seed)]
        resume = ["--resume"] if (out / "config.json").exists() else []
        module.main([*argv, "--out", str(out), *resume])
    updates = [line for line in read_jsonl(out / "metrics.jsonl") if "kl" in line]
    return {key: [round(update[key], 4) for update in updates] for key in KEPT}


def main(argv=None):
    parser = Parser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--steps", type=int, default=30, help="updates of each run")
    parser.add_argument("--runs", default="runs/bugs", help="folder of the runs")
    parser.add_argument("--out", default=str(ROOT / "notebooks/bugs.json"))
    args = parser.parse_args(argv)
    curves = {}
    for seed in args.seeds:
        for arm in ARMS:
            curves.setdefault(arm, []).append(train(arm, seed, args.steps, args.runs))
    seeds = " ".join(map(str, args.seeds))
    command = f"python benchmarks/bugs.py --steps {args.steps} --seeds {seeds}"
    write_text(args.out, json.dumps({"command": command, "curves": curves}) + "\n")


if __name__ == "__main__":
    run_script(main)
