"""The responses in the folder of an evaluation: what is there is never removed. It is continued
only if it answers the same problems, with the same weights, in the same words."""

import json

from common import files
from common.arguments import require
from common.data import prompt_ids
from common.evaluation import graded_again
from common.results import NEUTRAL, same_gold


def as_jsonl(records):
    return "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in records)


def resume_records(out, config, rows, limited):
    """(records of these rows, records of further rows) of an evaluation in `out` that was
    interrupted, or that was made with a larger --limit.

    A last line that was half written is dropped. A folder with another evaluation or with a
    training run is refused.
    """
    responses, metrics = out / "responses.jsonl", out / "metrics.jsonl"
    if not (out / "config.json").exists():
        require(
            not metrics.exists() and not responses.exists(),
            f"'{out}' holds another run; choose another --out.",
        )
        return [], []
    before = files.places({**NEUTRAL, **files.read_json(out / "config.json")})
    now = files.places(config)
    changed = [k for k in now if before.get(k) != now[k]]
    first_changed = ", ".join(f"{k}: {before.get(k)}" for k in changed[:3])
    require(
        not changed and not metrics.exists(),
        f"'{out}' holds another evaluation ({first_changed}); choose another --out.",
    )
    if not responses.exists():
        return [], []
    fields = "index sample response gold extracted correct tokens truncated".split()
    records = files.read_jsonl(responses, fields, drop_broken_end=True)
    done = [r for r in records if r["index"] < len(rows)]
    further = [r for r in records if r["index"] >= len(rows)]
    require(
        all(same_gold(r["gold"], rows[r["index"]]["answer"]) for r in done)
        and (limited or not further),
        f"'{out}' holds responses to other problems; choose another --out.",
    )
    return done, further


def check_origin(out, weights, records):
    """Refuse to continue responses that other weights wrote: a model that was trained again has
    the old name."""
    if not records:
        return
    before = files.read_json(out / "config.json").get("weights")
    require(
        before is not None,
        f"'{out}' does not say which weights wrote its responses: an older version made it. They "
        "cannot be continued; choose another --out.",
    )
    require(
        before == weights,
        f"'{out}' holds responses of other weights than this model's, or of the same weights in "
        "another precision; choose another --out.",
    )


def check_same_prompts(out, tokenizer, rows, records, thinking):
    """Refuse to continue responses to other problems with the same golds, or in another chat
    template."""
    for r in records:
        prompt = tokenizer.decode(prompt_ids(tokenizer, rows[r["index"]]["prompt"], thinking))
        require(
            r["prompt"] == prompt,
            f"'{out}' holds responses to other prompts: the problems or the model's chat template "
            "have changed; choose another --out.",
        )


def grade_again(out, graded_by, done, further):
    """The stored records, with new verdicts if another version of the grading code gave the old
    ones."""
    before, records = out / "config.json", done + further
    if not records or files.read_json(before).get("graded_by") == graded_by:
        return done, further
    again = graded_again(records)
    changed = sum(new["correct"] != old["correct"] for new, old in zip(again, records))
    print(
        f"{out}: another version of the grading code graded its {len(records)} responses, so they "
        f"are graded again; {changed} verdicts changed"
    )
    # Before config.json names this version: whoever is interrupted here grades them once more.
    files.write_text(out / "responses.jsonl", as_jsonl(again))
    return again[: len(done)], again[len(done) :]
