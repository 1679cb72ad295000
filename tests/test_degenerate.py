"""Rollouts at the edge: every one ended at once, every one cut off, a context with room for hardly anything. Defined, counted, and no method breaks."""
import json
import shutil

import pytest
import torch
from conftest import ROOT, ended, tiny_qwen3

import plumbing

SCRIPTS = {"opd.py": [], "topd.py": ["--window_size", 4, "--probe_every", 1], "ar_opd.py": [], "hindsight_sd.py": ["--rl_weight", .3], "grpo.py": []}


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Models with the toy's tokenizer: `mute` ends every response with its first token, `endless` never does, `other` is a teacher."""
    folder = tmp_path_factory.mktemp("models")
    vocabulary, end = json.loads((ROOT / "toy/student/config.json").read_text())["vocab_size"], plumbing.load_tokenizer(str(ROOT / "toy/student")).eos_token_id
    for name, push, seed in (("mute", 60., 0), ("endless", -60., 1), ("other", 0., 2)):
        model = tiny_qwen3(vocabulary=vocabulary, seed=seed, tie_word_embeddings=False, eos_token_id=end, pad_token_id=0, max_position_embeddings=400)
        with torch.no_grad():           # the first hidden number is always large: what stands there in the head is a bias
            model.model.embed_tokens.weight[:, 0] = 20.
            for layer in model.model.layers:
                layer.self_attn.o_proj.weight.mul_(.01), layer.mlp.down_proj.weight.mul_(.01)
            model.lm_head.weight[:, 0] = 0.
            model.lm_head.weight[end] = 0.
            model.lm_head.weight[end, 0] = push
        model.save_pretrained(folder / name)
        for file in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
            shutil.copy(ROOT / "toy/student" / file, folder / name)
    return folder


@pytest.mark.parametrize("script", SCRIPTS)
@pytest.mark.parametrize("name, length, truncated", [("mute", 1, 0), ("endless", 7, 1)])
def test_all_rollouts_empty_or_all_cut_off(models, start, tmp_path, script, name, length, truncated):
    out, log = tmp_path / "run", tmp_path / "log"
    teacher = ["--teacher", models / "other"] if script in ("opd.py", "topd.py") else []
    code, said = ended(start([script, *SCRIPTS[script], "--student", models / name, *teacher, "--data", "toy", "--prompts", 2, "--samples", 2, "--steps", 2, "--eval_n", 4,
                              "--max_new_tokens", 7, "--device", "cpu", "--show_every", 1, "--out", out], log), log)
    assert code == 0 and "Traceback" not in said, said
    rows = plumbing.read_jsonl(out / "metrics.jsonl")
    evals, updates = [r["eval"] for r in rows if "eval" in r], [r for r in rows if "loss" in r]
    assert len(updates) == 2 and all(e["accuracy"] == 0 and e["truncated"] == truncated for e in evals)
    for r in updates:
        assert r["length"] == length and r["truncated"] == truncated and r["loss"] == r["loss"] and not r.get("skipped")
        if script in ("grpo.py", "hindsight_sd.py"):                # no right rollout: no peer, no signal, and it is counted
            assert r["reward"] == 0 and r["signal"] == 0 and r["groups"] == [2, 0, 0]
        if script == "topd.py" and name == "mute":                  # no room for a window behind a last token
            assert r["divergent"] == 0 and r["traj"] == 0
    if script in ("opd.py", "topd.py", "ar_opd.py"):
        assert all(r["kl"] > -1e-6 for r in updates)             # two equal distributions differ by rounding


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_context_with_hardly_any_room_leaves_long_prompts_out_and_says_so(models, start, tmp_path, script):
    # 400 positions: the shorter prompts of the toy fit beside these responses, the longer ones do not
    from evaluate import load_benchmark, prompt_ids
    lengths = sorted(len(prompt_ids(plumbing.load_tokenizer(str(ROOT / "toy/student")), r["prompt"])) for r in load_benchmark("toy", "train"))
    out, log, room = tmp_path / "run", tmp_path / "log", 400 - lengths[3] - (4 if script == "topd.py" else 0)
    teacher = ["--teacher", models / "other"] if script in ("opd.py", "topd.py") else []
    code, said = ended(start([script, *SCRIPTS[script], "--student", models / "mute", *teacher, "--data", "toy", "--prompts", 2, "--samples", 2, "--steps", 1, "--eval_n", 2,
                              "--max_new_tokens", room, "--device", "cpu", "--out", out], log), log)
    if script in ("ar_opd.py", "hindsight_sd.py"):                  # their prompts hold a solution besides: none fits
        assert code == 2 and "No prompt fits: the model's context is 400 tokens" in said and not (out / "metrics.jsonl").exists(), said
    else:
        kept = sum(n <= lengths[3] for n in lengths)
        assert code == 0 and f"{len(lengths) - kept} of {len(lengths)} prompts are too long for the context of 400 tokens" in said, said
