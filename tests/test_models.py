"""Models and tokenizers: what is written down on a model, and what is refused before it is used."""
import copy

import pytest
import torch
from conftest import ROOT, tiny_qwen3
from helpers import CPU

from common import models
from common.arguments import Mistake
from common.models import (
    autocaster,
    cache_bytes,
    check_architecture,
    check_head,
    compute_dtype,
    know,
    load_model,
    load_tokenizer,
    no_autocast,
    pick_device,
    same_tokenizer,
    where,
)


def test_a_model_knows_its_vocabulary_and_its_ends(toy):
    student, _, tokenizer = toy
    assert (student.vocabulary, student.engine) == (len(tokenizer), None)
    assert student.ends == [tokenizer.eos_token_id]
    # Without a tokenizer nothing is written down.
    plain = load_model("toy/student", CPU, torch.float32)
    assert not hasattr(plain, "vocabulary") and not plain.training
    # Every end counts: the tokenizer's, the configuration's, and those for generation.
    wide = tiny_qwen3(vocabulary=200)
    wide.generation_config.eos_token_id = [7, 3]
    know(wide, tokenizer)
    assert wide.vocabulary == len(tokenizer) < 200
    assert wide.ends == sorted({1, 3, 7, tokenizer.eos_token_id})


def test_toy_models_are_found_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert where("toy/student") == str(ROOT / "toy/student")
    assert len(load_tokenizer("toy/student")) > 100
    for name in ("toy/nothing", "other/student"):
        assert where(name) == name
    (tmp_path / "toy/student").mkdir(parents=True)      # a folder of the user goes first
    assert where("toy/student") == "toy/student"


def test_a_model_whose_logits_are_more_than_a_linear_head_is_refused():
    class Scaled(type(tiny_qwen3())):
        def forward(self, *args, **more):
            out = super().forward(*args, **more)
            out.logits = out.logits / 16
            return out
    model = tiny_qwen3()
    check_architecture(model, "plain")
    model.__class__ = Scaled
    with pytest.raises(Mistake, match="'scaled' does more to its logits than a linear head"):
        check_architecture(model, "scaled")


def test_a_tokenizer_must_fit_its_partner_and_its_head(toy):
    student, teacher, tokenizer = toy
    same_tokenizer(tokenizer, load_tokenizer("toy/teacher"))
    check_head(tokenizer, [("student", student), ("wide", tiny_qwen3(vocabulary=500))])
    with pytest.raises(Mistake, match=f"{len(tokenizer)} tokens and the head of 'tiny' only 20"):
        check_head(tokenizer, [("student", student), ("tiny", tiny_qwen3(vocabulary=20))])
    longer = copy.deepcopy(tokenizer)
    longer.add_tokens(["another"])
    with pytest.raises(Mistake, match="1 of .* tokens differ; for example 'another' is None for"):
        same_tokenizer(tokenizer, longer)
    other_end = copy.deepcopy(tokenizer)
    other_end.eos_token = tokenizer.pad_token
    with pytest.raises(Mistake, match="end a turn with different tokens"):
        same_tokenizer(tokenizer, other_end)


def test_device_and_precision(monkeypatch):
    assert pick_device("cpu") == CPU
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert pick_device("auto") == CPU
    with pytest.raises(Mistake, match="no usable device 'cuda:99' here; use --device cpu"):
        pick_device("cuda:99")
    assert compute_dtype("auto", CPU) == compute_dtype("float32", CPU) == torch.float32
    assert compute_dtype("auto", torch.device("cuda")) == torch.bfloat16
    assert compute_dtype("bfloat16", CPU) == torch.bfloat16
    x = torch.ones(2, 2)
    with autocaster(CPU, torch.bfloat16)():
        assert (x @ x).dtype == torch.bfloat16
    for context in (autocaster(CPU, torch.float32), no_autocast):
        with context():
            assert (x @ x).dtype == torch.float32


def test_bytes_of_the_cache_of_one_token():
    config = tiny_qwen3().config                        # two layers, one key head of 16 numbers
    assert cache_bytes(config, torch.float32) == 2 * 2 * 16 * 4
    assert cache_bytes(config, torch.bfloat16) == 2 * 2 * 16 * 2
    ids = torch.arange(3)[None]
    cache = tiny_qwen3()(ids, use_cache=True).past_key_values
    stored = sum(x.nbytes for layer in cache.layers for x in (layer.keys, layer.values))
    assert stored == 3 * cache_bytes(config, torch.float32)


def test_the_hub_is_left_alone_where_its_name_cannot_be_resolved(monkeypatch):
    from huggingface_hub import constants
    asked = []

    def unknown(host, port):
        asked.append(host)
        raise OSError("no name")
    monkeypatch.setattr(models.socket, "getaddrinfo", unknown)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    for name in ("HTTPS_PROXY", "https_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HTTPS_PROXY", "http://localhost:1")
    models.reach_hub()                                  # behind a proxy names need not resolve
    assert not asked and not constants.HF_HUB_OFFLINE
    monkeypatch.delenv("HTTPS_PROXY")
    monkeypatch.setitem(models.sys.modules, "datasets", __import__("datasets"))
    monkeypatch.setattr(models.sys.modules["datasets"].config, "HF_HUB_OFFLINE", False)
    models.reach_hub()
    assert len(asked) == 1 and constants.HF_HUB_OFFLINE
    assert models.sys.modules["datasets"].config.HF_HUB_OFFLINE
