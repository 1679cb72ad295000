"""Extreme rollouts: all of them end at once, all of them are cut, or the context has hardly any
room. Every metric is defined, what happened is counted, and no method breaks."""
import json
import shutil

import pytest
import torch
from conftest import ROOT, ended, tiny_qwen3

from common.data import load_benchmark, prompt_ids
from common.files import read_jsonl
from common.models import load_tokenizer

pytestmark = pytest.mark.slow

SCRIPTS = {
    "opd.py": [], "topd.py": ["--window_size", 4], "ar_opd.py": [],
    "hindsight_sd.py": ["--rl_weight", .3], "grpo.py": [],
}
WITH_TEACHER = "opd.py", "topd.py"
STUDENT = ROOT / "toy/student"


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Models with the toy's tokenizer. `mute` ends every response with its first token, `endless`
    never ends one, `other` is a teacher."""
    folder, end = tmp_path_factory.mktemp("models"), load_tokenizer(str(STUDENT)).eos_token_id
    vocabulary = json.loads((STUDENT / "config.json").read_text())["vocab_size"]
    for name, push, seed in (("mute", 60., 0), ("endless", -60., 1), ("other", 0., 2)):
        model = tiny_qwen3(
            vocabulary=vocabulary, seed=seed, tie_word_embeddings=False, eos_token_id=end,
            pad_token_id=0, max_position_embeddings=400,
        )
        with torch.no_grad():
            # The first hidden number is always large. So the first column of the head is a bias.
            model.model.embed_tokens.weight[:, 0] = 20.
            for layer in model.model.layers:
                layer.self_attn.o_proj.weight.mul_(.01)
                layer.mlp.down_proj.weight.mul_(.01)
            model.lm_head.weight[:, 0] = 0.
            model.lm_head.weight[end] = 0.
            model.lm_head.weight[end, 0] = push
        model.save_pretrained(folder / name)
        for file in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
            shutil.copy(STUDENT / file, folder / name)
    return folder


def command(models, script, student, out):
    teacher = ["--teacher", models / "other"] if script in WITH_TEACHER else []
    return [
        script, *SCRIPTS[script], "--student", models / student, *teacher, "--data", "toy",
        "--prompts", 2, "--samples", 2, "--device", "cpu", "--out", out,
    ]


@pytest.mark.parametrize("script", SCRIPTS)
@pytest.mark.parametrize("name, length, truncated", [("mute", 1, 0), ("endless", 7, 1)])
def test_all_rollouts_empty_or_all_cut_off(
    models, start, tmp_path, script, name, length, truncated
):
    out, log = tmp_path / "run", tmp_path / "log"
    more = ["--steps", 2, "--eval_n", 4, "--max_new_tokens", 7, "--show_every", 1]
    code, said = ended(start([*command(models, script, name, out), *more], log), log)
    assert code == 0 and "Traceback" not in said, said
    rows = read_jsonl(out / "metrics.jsonl")
    evals, updates = [r["eval"] for r in rows if "eval" in r], [r for r in rows if "loss" in r]
    assert evals and all(e["accuracy"] == 0 and e["truncated"] == truncated for e in evals)
    assert len(updates) == 2
    for r in updates:
        assert r["length"] == length and r["truncated"] == truncated
        assert r["loss"] == r["loss"] and not r.get("skipped")
        if script in ("grpo.py", "hindsight_sd.py"):
            # no right rollout: no peer and no signal, and it is counted
            assert r["reward"] == 0 and r["signal"] == 0 and r["groups"] == [2, 0, 0]
        if script == "topd.py" and name == "mute":
            # after the last token there is no room for a window
            assert r["divergent"] == 0 and r["traj"] == 0
    if script in ("opd.py", "topd.py", "ar_opd.py"):
        # the KL of two equal distributions is 0 up to rounding
        assert all(r["kl"] > -1e-6 for r in updates)


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_context_with_hardly_any_room_leaves_long_prompts_out_and_says_so(
    models, start, tmp_path, script
):
    # 400 positions: the shorter prompts of the toy fit beside these responses, the longer do not
    tokenizer, problems = load_tokenizer(str(STUDENT)), load_benchmark("toy", "train")
    lengths = sorted(len(prompt_ids(tokenizer, r["prompt"])) for r in problems)
    room = 400 - lengths[3] - (4 if script == "topd.py" else 0)
    out, log = tmp_path / "run", tmp_path / "log"
    more = ["--steps", 1, "--eval_n", 2, "--max_new_tokens", room]
    code, said = ended(start([*command(models, script, "mute", out), *more], log), log)
    if script in ("ar_opd.py", "hindsight_sd.py"):
        # their prompts also hold a solution: none fits
        assert code == 2 and "No prompt fits: the model's context is 400 tokens" in said, said
        assert not (out / "metrics.jsonl").exists()
    else:
        left_out = sum(n > lengths[3] for n in lengths)
        counted = f"{left_out} of {len(lengths)} prompts are too long"
        assert code == 0 and f"{counted} for the context of 400 tokens" in said, said
