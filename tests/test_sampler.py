"""The sampler: exact frequencies, exact log-probabilities, padding, reproducibility, ends."""
import math

import pytest
import torch
from conftest import tiny_qwen3
from torch.utils._python_dispatch import TorchDispatchMode

import evaluate
from evaluate import eos_ids, filtered, sample, uniforms

MODEL = tiny_qwen3()
PROMPTS = [[5, 6, 7], [8], [9, 10, 11, 12, 13, 14], [5, 5]]


def draw(prompts=PROMPTS, n=3, **more):
    keys = more.pop("keys", [(i, j) for i in range(len(prompts)) for j in range(n)])
    return sample(MODEL, prompts, n=n, **{**dict(max_new_tokens=20, eos=[1, 2], vocabulary=50, keys=keys), **more})


def full_forward(prompt, completion, temperature=1.0):
    with torch.no_grad():
        logprobs = (MODEL(torch.tensor([prompt + completion])).logits[0] / temperature).log_softmax(-1)
    return logprobs[len(prompt) - 1:-1].gather(1, torch.tensor(completion)[:, None]).squeeze(1)


def test_log_probabilities_equal_a_full_forward_pass():
    # mixed prompt lengths (left padding), the cache, rows that leave the batch: none of it may change a probability
    for i, c in enumerate(draw()):
        assert torch.allclose(torch.tensor(c.logprobs), full_forward(PROMPTS[i // 3], c.ids), atol=1e-4)
    lengths = {len(c.ids) for c in draw()}
    assert len(lengths) > 2


def test_temperature_is_the_one_asked_for():
    for i, c in enumerate(draw(temperature=0.5)):
        assert torch.allclose(torch.tensor(c.logprobs), full_forward(PROMPTS[i // 3], c.ids, 0.5), atol=1e-4)


def test_frequencies_are_softmax_of_the_logits():
    # whatever the checkpoint's generation_config says: Qwen ships top_k 20 and more, which `generate` would obey
    MODEL.generation_config.top_k, MODEL.generation_config.temperature, MODEL.generation_config.repetition_penalty = 2, 0.1, 2.0
    n, prompt = 20000, [3, 4, 5]
    drawn = sample(MODEL, [prompt], n=n, max_new_tokens=1, eos=[1], vocabulary=50, keys=[("f", i) for i in range(n)], rows=n)
    counts = torch.bincount(torch.tensor([c.ids[0] for c in drawn]), minlength=50).double()
    with torch.no_grad():
        expected = MODEL(torch.tensor([prompt])).logits[0, -1].double().softmax(-1) * n
    common = expected >= 5
    chi = ((counts - expected)[common] ** 2 / expected[common]).sum().item()
    freedom = int(common.sum()) - 1
    assert chi < freedom + 4 * math.sqrt(2 * freedom), (chi, freedom)       # about one false alarm in 30,000, with a fixed seed none
    assert common.sum() > 10


def test_a_completion_depends_on_its_key_and_prompt_only():
    whole = draw()
    alone = draw([PROMPTS[2]], n=3, keys=[(2, 0), (2, 1), (2, 2)])
    assert [c.ids for c in whole[6:9]] == [c.ids for c in alone]
    assert [c.ids for c in draw(rows=2)] == [c.ids for c in whole]          # another batch size
    shuffled = draw(list(reversed(PROMPTS)), keys=[(i, j) for i in (3, 2, 1, 0) for j in range(3)])
    assert [c.ids for c in shuffled[9:]] == [c.ids for c in whole[:3]]
    assert [c.ids for c in draw(keys=[("other", i) for i in range(12)])] != [c.ids for c in whole]
    torch.manual_seed(123)
    assert [c.ids for c in draw()] == [c.ids for c in whole]                # and not on the global random state


def test_every_end_token_ends_a_row_and_belongs_to_it():
    for c in draw(n=30, max_new_tokens=60):
        ends = [i for i, token in enumerate(c.ids) if token in (1, 2)]
        assert c.truncated == (not ends)
        assert not ends or ends == [len(c.ids) - 1]
        assert not c.truncated or len(c.ids) == 60
        assert len(c.logprobs) == len(c.ids)
    ended_by = {c.ids[-1] for c in draw(n=30, max_new_tokens=60) if not c.truncated}
    assert ended_by == {1, 2}


def test_padding_rows_of_the_head_are_never_drawn():
    drawn = draw(n=50, vocabulary=30, max_new_tokens=8)
    assert max(max(c.ids) for c in drawn) < 30


def test_greedy_is_argmax_at_every_position():
    for prompt, c in zip(PROMPTS, draw(n=1, temperature=0.0, keys=None)):
        ids = prompt + c.ids
        with torch.no_grad():
            best = MODEL(torch.tensor([ids])).logits[0].argmax(-1)
        assert best[len(prompt) - 1:-1].tolist() == c.ids


def test_filters_by_hand():
    logits = torch.tensor([[.5, .3, .15, .05]]).log()
    assert torch.allclose(filtered(logits, 1.0, 1.0, 2).exp(), torch.tensor([[.625, .375, 0, 0]]))
    assert torch.allclose(filtered(logits, 1.0, 0.7, 0).exp(), torch.tensor([[.625, .375, 0, 0]]))
    assert torch.allclose(filtered(logits, 1.0, 0.81, 0).exp(), torch.tensor([[.5, .3, .15, 0]]) / .95)
    assert torch.equal(filtered(logits, 1.0, 1.0, 0), logits.log_softmax(-1))


def test_uniforms_are_reproducible_and_uniform():
    assert torch.equal(uniforms(("a", 1), 5), uniforms(("a", 1), 9)[:5])
    many = torch.cat([uniforms(("u", i), 10) for i in range(2000)])
    assert abs(many.mean() - .5) < .01 and abs((many < .1).double().mean() - .1) < .01
    assert abs(torch.corrcoef(torch.stack([many[:-1], many[1:]]))[0, 1]) < .03


def test_end_ids_come_from_tokenizer_and_model():
    class Tokenizer:
        eos_token_id = 7
    MODEL.generation_config.eos_token_id = [1, 2]
    assert eos_ids(MODEL, Tokenizer) == [1, 2, 7]


def test_the_models_mode_is_put_back():
    MODEL.train()
    draw(n=1)
    assert MODEL.training
    MODEL.eval()


def frozen(monkeypatch, grain):
    monkeypatch.setattr(evaluate, "frozen_shapes", lambda device: True)
    monkeypatch.setattr(evaluate, "FROZEN", grain)


def test_frozen_shapes_draw_the_same(monkeypatch):
    """What runs on a GPU, where a step of decoding is recorded: whole cache with a mask, places as tensors. The recording itself needs the GPU."""
    whole, greedy = draw(max_new_tokens=40), draw(max_new_tokens=40, temperature=0)
    for grain in (256, 8, 1):
        frozen(monkeypatch, grain)
        for before, after in zip(whole + greedy, draw(max_new_tokens=40) + draw(max_new_tokens=40, temperature=0)):
            assert before.ids == after.ids and torch.allclose(torch.tensor(before.logprobs), torch.tensor(after.logprobs), atol=1e-4)
    assert len({len(c.ids) for c in whole}) > 2                                # rows have left, so it was more than one shape


def test_a_frozen_step_can_be_recorded(monkeypatch):
    """A recording holds kernels and addresses. So between two changes of shape: the same kernels with the same sizes at every step, the cache where
    it was, and nothing read back by the CPU."""
    frozen(monkeypatch, 16)
    steps, plain = [], type(MODEL.base_model).forward

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            out = function(*args, **(kwargs or {}))
            shapes = [tuple(x.shape) for x in [*args, out] if torch.is_tensor(x)]
            if function._schema.is_mutable:
                shapes += [x.data_ptr() for x in args[:1] if torch.is_tensor(x)]
            steps[-1].append((str(function), shapes))
            return out

    def forward(self, *args, **kwargs):
        if kwargs["input_ids"].shape[1] > 1:
            return plain(self, *args, **kwargs)
        steps.append([])
        with Watch():
            return plain(self, *args, **kwargs)
    monkeypatch.setattr(type(MODEL.base_model), "forward", forward)
    draw([PROMPTS[0]], n=2, max_new_tokens=40, eos=[], vocabulary=50)
    assert len(steps) == 39
    for step in steps:
        assert not {name for name, _ in step} & {"aten._local_scalar_dense.default", "aten.nonzero.default", "aten.is_nonzero.default", "aten.lift_fresh.default"}
    changes = [i for i in range(1, 39) if steps[i] != steps[i - 1]]
    assert changes == [16, 32], changes                                         # only where the cache has grown
    index = [shapes for name, shapes in steps[5] if name == "aten.index_copy_.default"]
    assert len(index) == 2 * MODEL.config.num_hidden_layers


def test_a_frozen_step_makes_nothing_on_the_cpu():
    """On a device without data (meta), where the model and all inputs are: what is made elsewhere would have to be sent over at every step."""
    seen = set()

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            out = function(*args, **(kwargs or {}))
            seen.update((x.device.type, str(function)) for x in [out] if torch.is_tensor(x))
            return out
    model, there = tiny_qwen3().to("meta"), dict(device="meta")
    cache = evaluate.RowCache(64, model.config.num_hidden_layers - 1)
    cache.layers = {i: [torch.zeros(3, 1, 32, 16, **there), torch.zeros(3, 1, 32, 16, **there)] for i in range(2)}
    cache.length, cache.slot = 9, torch.zeros(1, dtype=torch.long, **there)
    with Watch(), torch.no_grad():
        out = model.base_model(input_ids=torch.zeros(3, 1, dtype=torch.long, **there), attention_mask=torch.ones(3, 1, 1, 32, dtype=torch.bool, **there),
                               position_ids=torch.zeros(3, 1, dtype=torch.long, **there), past_key_values=cache, use_cache=True)
    assert out.last_hidden_state.shape == (3, 1, 32)
    assert {device for device, _ in seen} == {"meta"}, seen


def test_without_a_recording_sampling_goes_on(monkeypatch, capsys):
    whole = draw(max_new_tokens=40)
    frozen(monkeypatch, 16)
    monkeypatch.setattr(evaluate, "recordable", lambda device: evaluate.Replay.state["use"])
    monkeypatch.setattr(evaluate.Replay, "state", {"use": True, "unchecked": 3})
    if torch.cuda.is_available():
        monkeypatch.setattr(torch.cuda, "CUDAGraph", None)
    assert [c.ids for c in draw(max_new_tokens=40)] == [c.ids for c in whole] and not evaluate.Replay.state["use"]
    assert capsys.readouterr().err.count("CUDA graphs are not used") == 1


def test_a_recording_that_went_wrong_is_noticed(monkeypatch, capsys):
    class Stale(evaluate.Replay):                       # its inputs never reach it: what a number baked into a recording would do
        state = {"use": True, "unchecked": 3}

        def __init__(self, step, inputs):
            self.step, self.inputs = step, [x.clone() for x in inputs]

        def __call__(self, *inputs):
            return self.step(*self.inputs)
    whole = draw(max_new_tokens=40)
    frozen(monkeypatch, 16)
    monkeypatch.setattr(evaluate, "Replay", Stale)
    monkeypatch.setattr(evaluate, "recordable", lambda device: Stale.state["use"])
    assert [c.ids for c in draw(max_new_tokens=40)] == [c.ids for c in whole] and not Stale.state["use"]
    assert "differs from the step itself" in capsys.readouterr().err


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU to record on")
@pytest.mark.parametrize("half", [False, True])
def test_recorded_steps_draw_the_same(monkeypatch, half):
    model, keys = tiny_qwen3().to("cuda"), [(i, j) for i in range(4) for j in range(3)]

    def drawn(use):
        monkeypatch.setattr(evaluate.Replay, "state", {"use": use, "unchecked": 3})
        with torch.autocast("cuda", dtype=torch.bfloat16, enabled=half):
            found = sample(model, PROMPTS, n=3, max_new_tokens=300, eos=[1, 2], vocabulary=50, keys=keys)
        assert evaluate.Replay.state["use"] == use and evaluate.Replay.state["unchecked"] == (0 if use else 3)       # used, and never given up
        return found
    for plain, recorded in zip(drawn(False), drawn(True)):
        assert plain.ids == recorded.ids and torch.allclose(torch.tensor(plain.logprobs), torch.tensor(recorded.logprobs), atol=1e-3)
