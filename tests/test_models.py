"""Models and tokenizers: what is written down on a model, and what is refused before it is used."""
import copy
import json
from dataclasses import dataclass

import pytest
import torch
from conftest import ROOT, tiny_qwen3
from helpers import CPU
from safetensors.torch import load_file, save_file

from common import hub, size
from common.arguments import Mistake, choice, either
from common.branches import read
from common.fits import check_memory
from common.flags import Common
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
from common.size import check_machine, machine_memory, parameter_count


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


def test_the_end_of_the_assistants_turn_is_an_end(toy):
    """A pretrained model with a chat template: its end token is another one."""
    _, _, tokenizer = toy
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_end|>", "<|im"]})
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    for template, ends in (("{{ m.content }}<|im_end|>\n", {end}), ("{{ m.content }} and on", set()),
                           ("{{ raise_exception('no') }}", set()), ("{{ m.content }}", set())):
        tokenizer.chat_template = f"{{% for m in messages %}}{template}{{% endfor %}}"
        model = know(tiny_qwen3(vocabulary=200), tokenizer)
        assert set(model.ends) == {1, tokenizer.eos_token_id} | ends
        # A solution that is learnt ends as the template ends a turn.
        assert model.turn_end == (end if ends else tokenizer.eos_token_id)


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
    with pytest.raises(Mistake, match=f"{len(tokenizer)} ids and the head of 'tiny' only 20"):
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
    _, cache = read(tiny_qwen3(), ids, 0)
    stored = sum(x.nbytes for layer in cache.layers.values() for x in layer)
    assert stored == 3 * cache_bytes(config, torch.float32)


@pytest.fixture
def without_network(monkeypatch):
    """No name can be resolved. The names that were asked for."""
    from huggingface_hub import constants
    asked = []

    def unknown(host, port):
        asked.append(host)
        raise OSError("no name")
    monkeypatch.setattr(hub.socket, "getaddrinfo", unknown)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    for name in ("HTTPS_PROXY", "https_proxy"):
        monkeypatch.delenv(name, raising=False)
    return asked


def test_the_hub_is_left_alone_where_its_name_cannot_be_resolved(without_network, monkeypatch):
    from huggingface_hub import constants
    asked = without_network
    monkeypatch.setenv("HTTPS_PROXY", "http://localhost:1")
    hub.reach_hub()                                  # behind a proxy names need not resolve
    assert not asked and not constants.HF_HUB_OFFLINE
    monkeypatch.delenv("HTTPS_PROXY")
    monkeypatch.setitem(hub.sys.modules, "datasets", __import__("datasets"))
    monkeypatch.setattr(hub.sys.modules["datasets"].config, "HF_HUB_OFFLINE", False)
    hub.reach_hub()
    assert len(asked) == 1 and constants.HF_HUB_OFFLINE
    assert hub.sys.modules["datasets"].config.HF_HUB_OFFLINE


def test_a_misspelt_model_without_a_network_is_no_long_wait(without_network):
    from huggingface_hub import constants
    asked = without_network
    assert hub.read_config("nobody/misspelt") is None and asked and constants.HF_HUB_OFFLINE
    asked.clear()
    assert hub.read_config("toy/student") is not None and not asked


# ------------------------------------------------------------------------ what is not a model


def tell(path, **config):
    """A folder that holds a config.json."""
    path.mkdir(exist_ok=True)
    (path / "config.json").write_text(json.dumps(config))
    return str(path)


def test_the_folder_of_a_run_is_not_its_model(tmp_path):
    """Its config.json has the flag "dtype": "auto", which transformers takes for a type of torch:
    module 'torch' has no attribute 'auto'."""
    run = tell(tmp_path / "run", script="opd.py", student="toy/student", dtype="auto", seed=0)
    (tmp_path / "run/checkpoint-000020").mkdir()
    for load in (load_tokenizer, lambda name: load_model(name, CPU, torch.float32)):
        with pytest.raises(Mistake, match="'.*/run' is the folder of a run of opd.py.* its last "
                                          "checkpoint is '.*/run/checkpoint-000020'") as refused:
            load(run)
        assert "auto" not in str(refused.value)
        (tmp_path / "run/final").mkdir(exist_ok=True)
        with pytest.raises(Mistake, match="its model is in '.*/run/final'"):
            load(run)
        (tmp_path / "run/final").rmdir()
    (tmp_path / "run/checkpoint-000020").rmdir()
    with pytest.raises(Mistake, match="folder of a run of opd.py.*has no model yet"):
        load_tokenizer(run)
    result = tell(tmp_path / "eval", model="toy/student", benchmark="toy", dtype="auto", n=1)
    with pytest.raises(Mistake, match="holds an evaluation of 'toy/student' and no model"):
        load_tokenizer(result)


def test_a_checkpoint_that_cannot_be_read_is_never_to_be_deleted(tmp_path):
    (tmp_path / "state.pt").write_text("")
    said = hub.missing_model(tmp_path, "model", OSError("cut off"))
    assert "delete" not in said and "move that folder away" in said and "cut off" in said


@pytest.mark.parametrize("family, more", [("gpt2", {}), ("opt", {}), ("mamba", {})])
def test_a_family_without_what_is_needed_is_refused_before_it_is_loaded(family, more, tmp_path):
    from transformers import AutoConfig
    AutoConfig.for_model(family, **more).save_pretrained(tmp_path)
    sentence = f"is a model of the family {family}; .*Qwen3, Qwen2.5, Llama, SmolLM2"
    with pytest.raises(Mistake, match=sentence):
        load_model(str(tmp_path), CPU, torch.float32)   # there are no weights in the folder


def test_a_folder_of_the_hub_that_cannot_be_written_is_named(monkeypatch):
    from huggingface_hub import constants
    monkeypatch.setattr(constants, "HF_HOME", "/read/only")
    error = OSError("wrapped")
    error.__cause__ = PermissionError(13, "Permission denied", "/read/only/hub")
    said = hub.missing_model("me/model", "model", error)
    assert "'/read/only'" in said and "HF_HOME" in said
    assert "HF_HOME" not in hub.missing_model("me/model", "model", OSError("404"))


# ------------------------------------------------------------------------ size, before loading

FOUR_BILLION = dict(
    model_type="qwen3", vocab_size=151936, hidden_size=2560, intermediate_size=9728, head_dim=128,
    num_hidden_layers=36, num_attention_heads=32, num_key_value_heads=8, tie_word_embeddings=True)
SMALL = {**FOUR_BILLION, "hidden_size": 1024, "intermediate_size": 3072, "num_hidden_layers": 28,
         "num_attention_heads": 16}
GIB = 2**30


def test_parameters_are_counted_without_any_weights(tmp_path, toy):
    assert parameter_count(tell(tmp_path / "large", **FOUR_BILLION)) == 4_022_468_096
    assert parameter_count(tell(tmp_path / "small", **SMALL)) == 596_049_920
    assert parameter_count("toy/student") == sum(p.numel() for p in toy[0].parameters())
    assert parameter_count(tell(tmp_path / "odd", nothing=1)) is None
    assert parameter_count(str(tmp_path / "nowhere")) is None


def test_a_model_that_takes_long_to_come_is_announced(tmp_path, monkeypatch, capsys):
    large = tell(tmp_path / "large", **FOUR_BILLION)
    monkeypatch.setattr(size, "machine_memory", lambda: 64 * GIB)
    with pytest.raises(Mistake, match="holds no model that transformers can load"):
        load_model(large, CPU, torch.float32)
    assert capsys.readouterr().out == f"loading {large} (16.1 GB) ...\n"
    with pytest.raises(Mistake, match="holds no model"):
        load_model(large, CPU, torch.bfloat16)
    assert "(8.0 GB)" in capsys.readouterr().out
    load_model("toy/student", CPU, torch.float32)
    assert capsys.readouterr().out == ""
    monkeypatch.setattr(size, "machine_memory", lambda: 14 * GIB)
    with pytest.raises(Mistake, match="'.*large' takes 15.0 GiB and this machine has 14.0 GiB.*"
                                      "--dtype bfloat16"):
        load_model(large, CPU, torch.float32)


def test_the_hubs_progress_bars_are_shown_while_something_is_downloaded(monkeypatch):
    from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars
    disable_progress_bars()
    load_model("toy/student", CPU, torch.float32)
    assert are_progress_bars_disabled()                 # nothing to download
    with pytest.raises(Mistake, match="There is no model 'me/nothing'"):
        load_model("me/nothing", CPU, torch.float32)
    assert not are_progress_bars_disabled()
    disable_progress_bars()


def test_what_the_machine_has(tmp_path, monkeypatch):
    assert GIB // 4 < machine_memory() < 2**50
    limit = tmp_path / "memory.max"
    monkeypatch.setattr(size, "CONTAINER_LIMITS", (tmp_path / "none", limit))
    whole = machine_memory()
    limit.write_text("max\n")
    assert machine_memory() == whole
    limit.write_text(f"{GIB // 8}\n")
    assert machine_memory() == GIB // 8


@dataclass
class Pair(Common):
    student: str = either("toy/student", "small")
    teacher: str = either("toy/teacher", "large")


@dataclass
class Alone(Common):
    student: str = either("toy/reader", "small")
    teacher: str = choice("ema", "ema", "frozen")


def test_a_run_on_a_cpu_that_cannot_fit_is_refused_before_loading(tmp_path, monkeypatch):
    args = Pair(student=tell(tmp_path / "s", **SMALL), teacher=tell(tmp_path / "t", **FOUR_BILLION))
    # Counted once: this test asks a dozen times.
    counts = {name: parameter_count(name) for name in (args.student, args.teacher)}
    monkeypatch.setattr(size, "parameter_count", counts.get)

    def refused(room, dtype=torch.float32, device=CPU):
        monkeypatch.setattr(size, "machine_memory", lambda: room and round(room * GIB))
        try:
            check_machine(args, device, dtype)
        except Mistake as mistake:
            return str(mistake)
        return None
    # 596 million x 16 bytes (weights, gradients, two moments), 4,022 million x 4 bytes.
    said = refused(16)
    assert "needs at least 23.9 GiB" in said and f"student {args.student} 8.9 GiB" in said
    assert f"teacher {args.teacher} 15.0 GiB" in said and "this machine has 16.0 GiB" in said
    assert "--dtype bfloat16 --lora 32 needs 8.6 GiB" in said and "--teacher" in said
    assert refused(23.8) and not refused(24)
    assert "--dtype bfloat16 needs 17.5 GiB" in refused(18)     # the smallest change that is enough
    assert "--lora 32 needs 17.2 GiB" in refused(17.3)
    said = refused(4)
    assert "needs" not in said.split("this machine has")[1] and "Choose smaller models" in said
    assert refused(None) is None                        # nobody knows how much there is
    assert refused(1, device=torch.device("cuda")) is None
    args.lora = 32
    assert not refused(17.3) and "needs at least 17.2 GiB" in refused(17)
    args = Alone(student=args.student)                  # its teacher is no model
    assert f"needs at least 8.9 GiB (student {args.student} 8.9 GiB) and" in refused(8)
    args.student = str(tmp_path / "nowhere")            # loading will say what is wrong
    assert refused(1) is None


def test_the_predicted_peak_is_refused_on_a_cpu_too(monkeypatch):
    monkeypatch.setattr("common.fits.machine_memory", lambda: GIB)
    check_memory(GIB, CPU, "--prompts")
    with pytest.raises(Mistake, match="needs about 2.0 GiB and 1.0 GiB is all that this machine "
                                      "has; lower --prompts.*--gradient_checkpointing"):
        check_memory(2 * GIB, CPU, "--prompts")
    monkeypatch.setattr("common.fits.machine_memory", lambda: None)
    check_memory(2**50, CPU, "--prompts")


@pytest.mark.parametrize("config", ["MistralConfig", "Phi3Config", "MixtralConfig", "Starcoder2Config"])
def test_sliding_windows_without_a_list_of_layers_are_refused(config):
    """These families have no layer_types. Their forward takes a window if the config names one."""
    import transformers
    made = getattr(transformers, config)(
        vocab_size=20, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, sliding_window=4, pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )
    model = transformers.AutoModelForCausalLM.from_config(made)
    with pytest.raises(Mistake, match="sliding window"):
        check_architecture(model, "a model")


def test_a_window_that_is_switched_off_is_no_window():
    import transformers
    made = transformers.Qwen2Config(
        vocab_size=20, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, sliding_window=4, use_sliding_window=False,
    )
    check_architecture(transformers.AutoModelForCausalLM.from_config(made), "a model")
    made = transformers.MistralConfig(
        vocab_size=20, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, sliding_window=None,
    )
    check_architecture(transformers.AutoModelForCausalLM.from_config(made), "a model")
    made = transformers.Phi3Config(
        vocab_size=20, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, sliding_window=64, max_position_embeddings=64, pad_token_id=0,
    )       # no text is longer than this window
    check_architecture(transformers.AutoModelForCausalLM.from_config(made), "a model")


def test_the_highest_id_belongs_to_the_vocabulary():
    """Ids can have gaps. Their number is then smaller than the highest id, often an end token."""
    from types import SimpleNamespace
    tokenizer = SimpleNamespace(get_vocab=lambda: {"a": 0, "b": 1, "<end>": 3}, eos_token_id=3, __len__=None)
    model = SimpleNamespace(config=SimpleNamespace(eos_token_id=3))
    assert know(model, tokenizer).vocabulary == 4


def test_a_model_has_no_dropout_in_training_either(tmp_path):
    model = tiny_qwen3()
    model.config.attention_dropout = 0.5
    model.save_pretrained(tmp_path)
    loaded, ids = load_model(str(tmp_path), CPU, torch.float32), torch.arange(20)[None]
    assert loaded.config.attention_dropout == 0.5
    with torch.no_grad():
        calm, training = (loaded.train(mode)(ids).logits for mode in (False, True))
        assert torch.equal(calm, training)
        # Only the look at the modules makes that so.
        loaded.model.layers[0].self_attn.attention_dropout = 0.5
        assert not torch.equal(calm, loaded(ids).logits)


def test_weights_that_are_missing_in_the_files_are_refused(tmp_path):
    # transformers would make them at random, other ones each time, and only warn.
    tiny_qwen3().save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    tensors = load_file(file)
    save_file({k: v for k, v in tensors.items() if "layers.0.mlp" not in k}, file, {"format": "pt"})
    with pytest.raises(Mistake, match="lacks 3 of the weights .* such as model.layers.0.mlp.down_proj.weight"):
        load_model(str(tmp_path), CPU, torch.float32)
    save_file({f"_orig_mod.{k}": v for k, v in tensors.items()}, file, {"format": "pt"})
    with pytest.raises(Mistake, match="lacks .* of the weights"):
        load_model(str(tmp_path), CPU, torch.float32)


def test_settings_for_sampling_do_not_stop_a_model_from_being_saved(tmp_path):
    tiny_qwen3().save_pretrained(tmp_path)
    (tmp_path / "generation_config.json").write_text(json.dumps({"temperature": 0.6, "top_p": 0.9}))
    model = load_model(str(tmp_path), CPU, torch.float32)
    assert model.generation_config.do_sample and model.generation_config.temperature == 0.6
    model.save_pretrained(tmp_path / "again")


def test_a_model_that_draws_at_random_in_training_is_refused(tmp_path, monkeypatch):
    tiny_qwen3().save_pretrained(tmp_path)
    kind = type(tiny_qwen3().model.layers[0].mlp)
    plain = kind.forward
    monkeypatch.setattr(kind, "forward", lambda self, x: torch.nn.functional.dropout(
        plain(self, x), 0.5, training=self.training))
    with pytest.raises(Mistake, match="other numbers in training than in sampling"):
        load_model(str(tmp_path), CPU, torch.float32)


def test_an_adapter_is_no_whole_model(tmp_path):
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(Mistake, match="is an adapter and no whole model; merge it"):
        load_model(str(tmp_path), CPU, torch.float32)
