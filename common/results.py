"""Results on disk: what `evaluate.py --compare` takes from the folder of a training run or of an
evaluation."""

from dataclasses import dataclass
from pathlib import Path

from common import files
from common.arguments import Mistake, require
from common.checkpoints import FREE
from common.notation import plain_number

# Flags that not all versions have, each with the value that means the same as no flag. So a
# run with this value and a run without the flag belong to the same arm.
NEUTRAL = {
    "sampler": "own", "adam_bits": 32, "lora": 0,  # the first versions did not have these
    "off_policy_data": "reference", "beta_norm": "token",  # only the first versions had these
}
# What a training run writes down beside its flags: hashes of its problems, the type of its numbers,
# and the sampler, the last two with "+" if they changed on the way.
ABOUT = ("trained_on", "tested_on", "computed_in", "sampled_by")
# These differ between runs of one arm, or say nothing about what a run computes.
NOT_COMPARED = (
    "script", "versions", "source", "weights", "graded_by", "model", "seed", *ABOUT, *FREE,
)  # fmt: skip


@dataclass
class Result:
    """What --compare takes from the folder of a training run or of an evaluation."""

    folder: str
    script: str  # of an evaluation: its model
    settings: dict  # the flags that all runs of an arm share
    source: str | None  # hash of the script's code, of an evaluation: of the model's weights
    seed: int | None
    benchmark: str | None
    final: float  # accuracy at the end
    problems: int  # how many problems it is of
    trained_on: str | None = None  # hashes of the problems
    tested_on: str | None = None
    computed_in: str | None = None  # the type of its numbers; --dtype can be auto
    sampled_by: str | None = None
    unfinished: str = ""  # why it cannot be compared yet
    curve: list | None = None  # training run: [(update, accuracy)]
    scores: dict | None = None  # evaluation: {problem: share of right samples}
    golds: dict | None = None  # evaluation: {problem: gold answer}
    asked: dict | None = None  # evaluation: {problem: hash of its text, None in old ones}
    graded_by: str | None = None  # evaluation: hash of the grading code


def same_gold(gold, other):
    """Two golds of one problem. A number may be typed in two ways: an older version wrote 5.0 for
    a 5."""
    values = [plain_number(str(text)) for text in (gold, other)]
    return gold == other or (values[0] is not None and values[0] == values[1])


def read_run(folder):
    """The Result of a training run, or of an evaluation."""
    folder = Path(folder)
    way_out = "name the folder that a training script or evaluate.py wrote (its --out)."
    no_config = f"'{folder}' is not a run: it has no config.json; {way_out}"
    config = files.places(files.read_json(folder / "config.json", no_config))
    settings = {
        k: v
        for k, v in config.items()
        if k not in NOT_COMPARED and not (k in NEUTRAL and NEUTRAL[k] == v)
    }
    # A run that went on with another sampler is neither of the two.
    if "+" in str(config.get("sampled_by")):
        settings["sampler"] = config["sampled_by"]
    shared = {k: config.get(k) for k in ("seed", "benchmark", *ABOUT)}
    shared["folder"] = str(folder)
    if (folder / "metrics.jsonl").exists():
        return _training(folder, config, settings, shared)
    if (folder / "responses.jsonl").exists():
        return _evaluation(folder, config, settings, shared)
    raise Mistake(
        f"'{folder}' is not a run: it has neither metrics.jsonl nor responses.jsonl; {way_out}"
    )


def _training(folder, config, settings, shared):
    metrics = files.read_jsonl(folder / "metrics.jsonl", ["step"])
    evaluations = [m for m in metrics if "eval" in m]
    require(evaluations, f"'{folder}' has no evaluation yet; let it run to its first one.")
    curve = [(m["step"], m["eval"]["accuracy"]) for m in evaluations]
    script, steps = config.get("script", "run"), config.get("steps", curve[-1][0])
    unfinished = (
        f"'{folder}' is at update {metrics[-1]['step']} of {steps}; let it go on (python {script} "
        f"--resume --out {folder}), or leave it out."
    )
    return Result(
        **shared, script=script, settings=settings, source=config.get("source"),
        final=curve[-1][1], problems=evaluations[-1]["eval"]["n"], curve=curve,
        unfinished=unfinished if curve[-1][0] < steps else "",
    )


def _evaluation(folder, config, settings, shared):
    """An evaluation asks the problems with the shortest prompts first. So one that was stopped
    has answered the easiest problems, and only summary.json says that it is complete."""
    by_problem, golds, asked, complete = {}, {}, {}, folder / "summary.json"
    for r in files.read_jsonl(folder / "responses.jsonl", ["index", "correct"]):
        by_problem.setdefault(r["index"], []).append(r["correct"])
        golds[r["index"]], asked[r["index"]] = r.get("gold"), r.get("asked")
    require(by_problem, f"'{folder}' has no responses yet; let the evaluation go on.")
    problems = files.read_json(complete).get("n", 0) if complete.exists() else 0
    unfinished = ""
    if not problems or any(i not in by_problem for i in range(problems)):
        problems = len(by_problem)
        unfinished = (
            f"'{folder}' was stopped after {problems} problems, those with the shortest prompts; "
            "give the command that began it once more, which continues it, or leave it out."
        )
    else:  # beyond these, an evaluation of more problems may have been stopped
        by_problem = {i: by_problem[i] for i in range(problems)}
    scores = {i: sum(v) / len(v) for i, v in by_problem.items()}
    return Result(
        **shared, script=str(config.get("model")), settings=settings,
        source=config.get("weights"), final=sum(scores.values()) / len(scores),
        problems=problems, unfinished=unfinished, scores=scores, golds=golds, asked=asked,
        graded_by=config.get("graded_by"),
    )
