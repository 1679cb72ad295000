"""Writes docs/playground.html: one file with the toy's three models and the page that runs them.

    python docs/build_playground.py

The page is made of docs/playground/: page.html, style.css and the scripts in SCRIPTS, put one
behind the other. It loads nothing, so it opens by a double click. The same files always make the
same page, byte for byte. So a test can tell when the page is out of date.

Weights: every matrix as whole numbers of three bytes with one float32 scale for each row. With two
bytes the reverse KL of some tokens was 3.5e-3 away from that of the original weights.
"""

import base64
import json
import sys
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
SOURCE, PAGE = HERE / "playground", HERE / "playground.html"
MODELS = ("student", "teacher", "reader")
# A script may use what stands in the scripts before it.
SCRIPTS = """
    engine opd topd ar_opd hindsight_sd grpo world
    state parts rollouts see_opd see_topd see_ar_opd see_group see_hindsight_sd see_grpo
    main
""".split()
PER_LEVEL = 10  # problems of each number of steps, 3 to 5
LARGEST = 6_000_000  # bytes of the page
MOST = 2**23 - 1  # the largest whole number of three bytes

# ======================================================================== weights


def quantised(w):
    """(whole numbers q [rows, columns], scale [rows]) with w ~ q * scale."""
    scale = (np.abs(w).max(1) / MOST).astype(np.float32)
    return np.rint(w / scale[:, None]).clip(-MOST, MOST).astype("<i4"), scale


def tensor_names(layers):
    """The tensors in the order in which engine.js reads them."""
    parts = """
        input_layernorm self_attn.q_proj self_attn.k_proj self_attn.v_proj self_attn.q_norm
        self_attn.k_norm self_attn.o_proj post_attention_layernorm mlp.gate_proj mlp.up_proj
        mlp.down_proj
    """.split()
    inside = [f"model.layers.{i}.{part}.weight" for i in range(layers) for part in parts]
    return ["model.embed_tokens.weight", *inside, "model.norm.weight"]


def packed(folder):
    """(what engine.js must know of a model, its weights as bytes)."""
    c = json.loads((folder / "config.json").read_text())
    tensors = load_file(folder / "model.safetensors")
    assert c["model_type"] == "qwen3" and c["tie_word_embeddings"], "engine.js knows nothing else"
    assert not c["attention_bias"] and not c["use_sliding_window"], "engine.js knows nothing else"
    names, out = tensor_names(c["num_hidden_layers"]), b""
    assert set(names) == set(tensors), set(names) ^ set(tensors)
    for name in names:
        w = tensors[name].astype(np.float32)
        if w.ndim == 1:
            out += w.tobytes()
        else:
            q, scale = quantised(w)
            three = q[..., None].view(np.uint8)[..., :3]  # the low bytes stand first
            out += scale.tobytes() + three.tobytes()
        assert len(out) % 4 == 0, "a tensor has to start where a float32 can"
    return {
        "V": c["vocab_size"],
        "D": c["hidden_size"],
        "F": c["intermediate_size"],
        "H": c["num_attention_heads"],
        "G": c["num_key_value_heads"],
        "d": c["head_dim"],
        "layers": c["num_hidden_layers"],
        "eps": c["rms_norm_eps"],
        "theta": c["rope_parameters"]["rope_theta"],
        "longest": c["max_position_embeddings"],
    }, out


# ======================================================================== data


def problems():
    """The first ones of the test set of each number of steps, easy and hard as they come."""
    lines = (ROOT / "toy/test.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    chosen = [[r for r in rows if r["level"] == level][:PER_LEVEL] for level in (3, 4, 5)]
    columns = ("problem", "solution", "answer", "level", "style")
    return [{c: r[c] for c in columns} for level in chosen for r in level]


def data():
    """What the scripts know of the toy, apart from the weights."""
    sys.path.insert(0, str(ROOT))
    from toy import world

    texts = {m: (ROOT / f"toy/{m}/tokenizer.json").read_text() for m in MODELS}
    assert len(set(texts.values())) == 1, "the page has one tokenizer for all models"
    vocabulary = json.loads(texts["student"])["model"]["vocab"]
    table = {f"{a}{b}": v for (a, b), v in world.TABLE.items()}
    return {"vocabulary": vocabulary, "table": table, "problems": problems()}


# ======================================================================== the page


def page():
    """The whole file, as text."""
    configs, weights = {}, []
    for name in MODELS:
        configs[name], blob = packed(ROOT / "toy" / name)
        text = base64.b64encode(blob).decode()
        weights.append(f'<script type="text/plain" id="weights-{name}">{text}</script>')
    known = json.dumps({**data(), "configs": configs}, separators=(",", ":"))
    known = known.replace("</", "<\\/")  # no text inside a script element may close it
    code = "\n".join((SOURCE / f"{name}.js").read_text(encoding="utf-8") for name in SCRIPTS)
    assert "</script" not in code, "this would close the script element"
    parts = {
        "/*STYLE*/": (SOURCE / "style.css").read_text(encoding="utf-8"),
        "<!--WEIGHTS-->": "\n".join(weights),
        "/*DATA*/": f"const DATA = {known};",
        "/*CODE*/": code,
    }
    html = (SOURCE / "page.html").read_text(encoding="utf-8")
    for mark, content in parts.items():
        assert html.count(mark) == 1, f"page.html must have {mark} once"
        html = html.replace(mark, content)
    return html


def main():
    html = page()
    size = len(html.encode())
    assert size < LARGEST, f"the page has {size:,} bytes"
    PAGE.write_bytes(html.encode())  # bytes: the same line ends on every system
    print(f"wrote {PAGE.relative_to(ROOT)}: {size:,} bytes")


if __name__ == "__main__":
    main()
