"""The sampler: frequencies, log-probabilities, padding, reproducibility, end tokens."""
import contextlib
import importlib
import inspect
import math

import pytest
import torch
from conftest import tiny_qwen3
from torch.utils._python_dispatch import TorchDispatchMode

from common import cache, recorded, sampler
from common.arguments import Mistake
from common.evaluation import evaluate
from common.flags import parse
from common.models import eos_ids
from common.sampler import filtered, sample, uniforms

PROMPTS = [[5, 6, 7], [8], [9, 10, 11, 12, 13, 14], [5, 5]]


def tiny(vocabulary=50, ends=(1, 2)):
    model = tiny_qwen3()
    model.vocabulary, model.ends, model.engine = vocabulary, list(ends), None
    return model


MODEL = tiny()


def draw(prompts=PROMPTS, n=3, vocabulary=50, ends=(1, 2), **more):
    MODEL.vocabulary, MODEL.ends = vocabulary, list(ends)
    keys = more.pop("keys", [(i, j) for i in range(len(prompts)) for j in range(n)])
    return sample(MODEL, prompts, n=n, **{**dict(max_new_tokens=20, keys=keys), **more})


def full_forward(prompt, completion, temperature=1.0):
    with torch.no_grad():
        logits = MODEL(torch.tensor([prompt + completion])).logits[0]  # [L, V]
    logprobs = (logits / temperature).log_softmax(-1)[len(prompt) - 1:-1]  # [N, V]
    return logprobs.gather(1, torch.tensor(completion)[:, None]).squeeze(1)  # [N]


def close(completion, logprobs):
    return torch.allclose(torch.tensor(completion.logprobs), logprobs, atol=1e-4)


def all_ids(completions):
    return [c.ids for c in completions]


def test_log_probabilities_equal_a_full_forward_pass():
    # Prompts of different lengths (left padding), the cache and rows that leave the batch must not
    # change a probability.
    for i, c in enumerate(draw()):
        assert close(c, full_forward(PROMPTS[i // 3], c.ids))
    lengths = {len(c.ids) for c in draw()}
    assert len(lengths) > 2


def test_temperature_is_the_one_asked_for():
    for i, c in enumerate(draw(temperature=0.5)):
        assert close(c, full_forward(PROMPTS[i // 3], c.ids, 0.5))


@pytest.mark.parametrize("script", ["opd", "topd", "ar_opd", "hindsight_sd", "grpo"])
def test_every_method_draws_at_temperature_1_without_a_filter(script, monkeypatch):
    """The loss is about the full softmax. A filtered sampler would visit other states."""
    module, asked = importlib.import_module(script), []

    def recorder(*given, **named):
        asked.append(inspect.signature(sample).bind(*given, **named))
        asked[-1].apply_defaults()
        return [sampler.Completion([3], False, [0.0])] * (len(given[1]) * named["n"])

    monkeypatch.setattr(sampler, "sample", recorder)
    args = parse(module.Args, "", ["--data", "toy", "--samples", "2"], script)
    rows = [{"ids": [5, 6], "plain": [5, 6], "solution": "x"}] * 3
    tokenizer = [None] if script in ("opd", "ar_opd") else []
    module.rollouts(MODEL, *tokenizer, rows, args, 1)
    assert len(asked) == 1
    found = asked[0].arguments
    assert [found[k] for k in ("temperature", "top_p", "top_k")] == [1.0, 1.0, 0]
    assert found["n"] == 2 and len(set(found["keys"])) == 6


def test_rows_that_have_ended_leave_the_batch_and_nothing_is_decoded_behind_the_last_end():
    seen = []
    hook = MODEL.base_model.register_forward_pre_hook(
        lambda _, given, named: seen.append(tuple(named["input_ids"].shape)), with_kwargs=True)
    try:
        lengths = [len(c.ids) for c in draw(ends=range(1, 20))]
    finally:
        hook.remove()
    # After each token the rows that have ended go, if at most three quarters of all rows stay.
    expected, n = [], len(lengths)
    for t in range(1, max(lengths)):
        left = sum(length > t for length in lengths)
        n = left if left <= 0.75 * n else n
        expected.append((n, 1))
    assert seen == [(4, 6), *expected]  # the prompts are read once, padded
    assert expected[-1][0] < 6 and max(lengths) < 20


def test_frequencies_are_softmax_of_the_logits():
    # The checkpoint's generation_config must not matter. Qwen ships top_k 20 and more, and
    # `generate` would obey it.
    config = MODEL.generation_config
    config.top_k, config.temperature, config.repetition_penalty = 2, 0.1, 2.0
    n, prompt = 20000, [3, 4, 5]
    keys = [("f", i) for i in range(n)]
    drawn = draw([prompt], n=n, max_new_tokens=1, ends=[1], keys=keys, rows=n)
    counts = torch.bincount(torch.tensor([c.ids[0] for c in drawn]), minlength=50).double()  # [V]
    with torch.no_grad():
        expected = MODEL(torch.tensor([prompt])).logits[0, -1].double().softmax(-1) * n  # [V]
    common = expected >= 5
    chi = ((counts - expected)[common] ** 2 / expected[common]).sum().item()
    freedom = int(common.sum()) - 1
    # With random seeds this would be one false alarm in about 30,000. The seed is fixed.
    assert chi < freedom + 4 * math.sqrt(2 * freedom), (chi, freedom)
    assert common.sum() > 10


def test_a_completion_depends_on_its_key_and_prompt_only():
    whole = draw()
    alone = draw([PROMPTS[2]], n=3, keys=[(2, 0), (2, 1), (2, 2)])
    assert all_ids(whole[6:9]) == all_ids(alone)
    # not on the size of the batch
    assert all_ids(draw(rows=2)) == all_ids(whole)
    # not on the order of the prompts
    keys = [(i, j) for i in (3, 2, 1, 0) for j in range(3)]
    assert all_ids(draw(list(reversed(PROMPTS)), keys=keys)[9:]) == all_ids(whole[:3])
    assert all_ids(draw(keys=[("other", i) for i in range(12)])) != all_ids(whole)
    # not on the global random state
    torch.manual_seed(123)
    assert all_ids(draw()) == all_ids(whole)


def test_every_end_token_ends_a_row_and_belongs_to_it():
    drawn = draw(n=30, max_new_tokens=60)
    for c in drawn:
        ends = [i for i, token in enumerate(c.ids) if token in (1, 2)]
        assert c.truncated == (not ends)
        assert not ends or ends == [len(c.ids) - 1]
        assert not c.truncated or len(c.ids) == 60
        assert len(c.logprobs) == len(c.ids)
    assert {c.ids[-1] for c in drawn if not c.truncated} == {1, 2}


def test_padding_rows_of_the_head_are_never_drawn():
    drawn = draw(n=50, vocabulary=30, max_new_tokens=8)
    assert max(max(c.ids) for c in drawn) < 30


def test_greedy_is_argmax_at_every_position():
    for prompt, c in zip(PROMPTS, draw(n=1, temperature=0.0, keys=None)):
        ids = prompt + c.ids
        with torch.no_grad():
            best = MODEL(torch.tensor([ids])).logits[0].argmax(-1)  # [L]
        assert best[len(prompt) - 1:-1].tolist() == c.ids


def test_filters_by_hand():
    logits = torch.tensor([[.5, .3, .15, .05]]).log()
    best_two, best_three = [[.625, .375, 0, 0]], torch.tensor([[.5, .3, .15, 0]]) / .95
    assert torch.allclose(filtered(logits, 1.0, 1.0, 2).exp(), torch.tensor(best_two))
    assert torch.allclose(filtered(logits, 1.0, 0.7, 0).exp(), torch.tensor(best_two))
    assert torch.allclose(filtered(logits, 1.0, 0.81, 0).exp(), best_three)
    assert torch.equal(filtered(logits, 1.0, 1.0, 0), logits.log_softmax(-1))


def test_uniforms_are_reproducible_and_uniform():
    assert torch.equal(uniforms(("a", 1), 5), uniforms(("a", 1), 9)[:5])
    many = torch.cat([uniforms(("u", i), 10) for i in range(2000)])
    assert abs(many.mean() - .5) < .01 and abs((many < .1).double().mean() - .1) < .01
    assert abs(torch.corrcoef(torch.stack([many[:-1], many[1:]]))[0, 1]) < .03


def test_a_device_without_float64_draws_the_same_and_never_what_has_no_probability(monkeypatch):
    many = dict(n=200, max_new_tokens=5, ends=[])
    whole = draw(**many)
    monkeypatch.setattr(sampler, "exact_type", lambda device: torch.float32)
    # A draw could only differ if a random number fell within 1e-7 of a border: 1 in 1,000 times
    # for these 4,000 tokens.
    assert all_ids(draw(**many)) == all_ids(whole)
    # The largest random number there is, and a last token that must not be drawn.
    top = sampler.on_device(torch.full((1,), 1 - 2**-53, dtype=torch.float64), torch.device("cpu"))
    assert top.dtype == torch.float32 and top < 1
    logp = torch.randn(1, 150_000, generator=torch.Generator().manual_seed(0)).log_softmax(-1)
    logp[:, 149_000:] = -math.inf
    sums = sampler.cumulative_sums(logp)
    assert sums.dtype == torch.float32
    assert torch.searchsorted(sums, top * sums[:, -1:], right=True) < 149_000


class OnACard(torch.Tensor):
    """A tensor that says that it is on a GPU."""

    device = torch.device("cuda")


def test_on_a_gpu_only_the_sum_is_in_double_precision():
    logp = torch.randn(2, 150_000, generator=torch.Generator().manual_seed(0)).log_softmax(-1)
    sums = sampler.cumulative_sums(logp.as_subclass(OnACard)).as_subclass(torch.Tensor)
    assert sums.dtype == torch.float64
    assert torch.equal(sums, logp.exp().double().cumsum(-1))
    assert not torch.equal(sums, logp.double().exp().cumsum(-1))        # a CPU's rule
    assert not torch.equal(sums, logp.exp().cumsum(-1).double())        # a Mac's rule
    assert torch.equal(sampler.cumulative_sums(logp), logp.double().exp().cumsum(-1))


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


# ======================================================================== recorded steps


def static_shapes(monkeypatch, growth, use=False):
    """On the CPU, too, decode with static shapes, as on a GPU. use: try to record the steps."""
    monkeypatch.setattr(recorded, "RECORDS", ("cpu", "cuda"))
    monkeypatch.setattr(recorded, "GROWTH", growth)
    monkeypatch.setattr(recorded.Replay, "state", {"use": use, "unchecked": 3})


def test_static_shapes_draw_the_same(monkeypatch):
    """A GPU uses the whole cache with a mask, and tensors as places. Only the recording itself
    needs the GPU."""
    whole, greedy = draw(max_new_tokens=40), draw(max_new_tokens=40, temperature=0)
    for growth in (256, 8, 1):
        static_shapes(monkeypatch, growth)
        after = draw(max_new_tokens=40) + draw(max_new_tokens=40, temperature=0)
        for a, b in zip(whole + greedy, after):
            assert a.ids == b.ids and close(a, torch.tensor(b.logprobs))
    assert len({len(c.ids) for c in whole}) > 2  # rows have left, so there were several shapes


def test_a_static_step_can_be_recorded(monkeypatch):
    """A recording holds kernels and addresses. So between two changes of shape each step must
    call the same kernels with the same sizes, the cache must stay where it is, and the CPU must
    not read anything back."""
    static_shapes(monkeypatch, 16)
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
    draw([PROMPTS[0]], n=2, max_new_tokens=40, ends=[])
    assert len(steps) == 39
    reads = ("_local_scalar_dense", "nonzero", "is_nonzero", "lift_fresh")
    for step in steps:
        assert not {name for name, _ in step} & {f"aten.{name}.default" for name in reads}
    changes = [i for i in range(1, 39) if steps[i] != steps[i - 1]]
    assert changes == [16, 32], changes  # only where the cache has grown
    index = [shapes for name, shapes in steps[5] if name == "aten.index_copy_.default"]
    assert len(index) == 2 * MODEL.config.num_hidden_layers


def test_a_static_step_makes_nothing_on_the_cpu(monkeypatch):
    """The model and all inputs are on a device without data (meta). A tensor that is made on
    another device would have to be sent to the GPU at every step."""
    # Before version 5.6 transformers asks whether there is autocast on meta, which is an error.
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda *_: False)
    seen = set()

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            out = function(*args, **(kwargs or {}))
            seen.update((x.device.type, str(function)) for x in [out] if torch.is_tensor(x))
            return out
    model, there = tiny_qwen3().to("meta"), dict(device="meta")
    rows = cache.RowCache(64, model.config.num_hidden_layers - 1)
    rows.layers = {i: [torch.zeros(3, 1, 32, 16, **there) for _ in range(2)] for i in range(2)}
    rows.length, rows.slot = 9, torch.zeros(1, dtype=torch.long, **there)
    column = torch.zeros(3, 1, dtype=torch.long, **there)  # [R, 1]
    mask = torch.ones(3, 1, 1, 32, dtype=torch.bool, **there)  # [R, 1, 1, columns]
    with Watch(), torch.no_grad():
        out = model.base_model(input_ids=column, attention_mask=mask, position_ids=column.clone(),
                               use_cache=True, **{cache.cache_parameter(type(model.base_model)): rows})
    assert out.last_hidden_state.shape == (3, 1, 32)
    assert {device for device, _ in seen} == {"meta"}, seen


def test_without_a_recording_sampling_goes_on(monkeypatch, capsys):
    def no_graph():
        raise RuntimeError("no graphs here")
    whole = draw(max_new_tokens=40)
    static_shapes(monkeypatch, 16, use=True)
    if torch.cuda.is_available():
        monkeypatch.setattr(torch.cuda, "CUDAGraph", no_graph)
    assert all_ids(draw(max_new_tokens=40)) == all_ids(whole) and not recorded.Replay.state["use"]
    assert capsys.readouterr().err.count("CUDA graphs are not used") == 1


class StandIn(recorded.Replay):
    """A recording without a GPU: it makes the step with its own inputs."""

    def __init__(self, step, inputs):
        self.step, self.inputs = step, [x.clone() for x in inputs]
        self.made.append(tuple(self.inputs[2].shape))

    def __call__(self, *inputs):
        for x, new in zip(self.inputs, inputs):
            x.copy_(new)
        return self.step(*self.inputs)


def test_every_shape_gets_a_recording_of_its_own(monkeypatch):
    whole, made = draw(max_new_tokens=40), []
    static_shapes(monkeypatch, 16)
    monkeypatch.setattr(recorded, "Replay", StandIn)
    monkeypatch.setattr(StandIn, "state", {"use": True, "unchecked": 3})
    monkeypatch.setattr(StandIn, "made", made, raising=False)
    for before, after in zip(whole, draw(max_new_tokens=40)):
        assert before.ids == after.ids and close(before, torch.tensor(after.logprobs))
    assert StandIn.state == {"use": True, "unchecked": 0}
    # Rows have left and the cache has grown. No shape was recorded twice.
    assert len({rows for rows, _, _ in made}) > 1 and len({columns for _, _, columns in made}) > 1
    assert len(made) == len(set(made))


def test_a_recording_that_went_wrong_is_noticed(monkeypatch, capsys):
    class Stale(StandIn):
        """Its inputs never arrive, as if a number had been fixed in the recording."""
        state, made = {"use": True, "unchecked": 3}, []

        def __call__(self, *inputs):
            return self.step(*self.inputs)
    whole = draw(max_new_tokens=40)
    static_shapes(monkeypatch, 16)
    monkeypatch.setattr(recorded, "Replay", Stale)
    assert all_ids(draw(max_new_tokens=40)) == all_ids(whole) and not Stale.state["use"]
    assert "differs from the step itself" in capsys.readouterr().err


@pytest.mark.parametrize("noise, noticed", [(0.0, False), (0.045, True), (math.nan, True)])
def test_a_recording_may_not_change_the_probabilities(monkeypatch, capsys, noise, noticed):
    """Hidden states that are 4 % off look harmless, but this takes half a nat from the best token."""
    class Noisy(StandIn):
        state, made = {"use": True, "unchecked": 3}, []

        def __call__(self, *inputs):
            hidden, head = super().__call__(*inputs), MODEL.get_output_embeddings().weight
            best = (hidden @ head.T).argmax(-1)
            return hidden - noise * hidden.abs().max() * head[best].sign()
    static_shapes(monkeypatch, 16)
    monkeypatch.setattr(recorded, "Replay", Noisy)
    draw(max_new_tokens=40)
    assert Noisy.state["use"] != noticed
    assert ("differs from the step itself" in capsys.readouterr().err) == noticed


def test_rounding_in_half_precision_is_no_wrong_recording(monkeypatch):
    class Rounded(StandIn):
        state, made = {"use": True, "unchecked": 3}, []

        def __call__(self, *inputs):
            return super().__call__(*inputs).bfloat16().float()
    static_shapes(monkeypatch, 16)
    monkeypatch.setattr(recorded, "Replay", Rounded)
    draw(max_new_tokens=40)
    assert Rounded.state == {"use": True, "unchecked": 0}


def test_a_failed_recording_leaves_the_stream_that_was_current(monkeypatch):
    """PyTorch's own torch.cuda.graph does not put the stream back if the end of the recording
    fails. Everything that follows would then run on the stream of the recording."""
    current = ["main"]

    class Stream:
        def wait_stream(self, other):
            pass

    class Using:
        def __init__(self, stream):
            self.stream = stream

        def __enter__(self):
            self.before, current[0] = current[0], self.stream

        def __exit__(self, *_):
            current[0] = self.before

    class Graph:
        def capture_begin(self, **_):
            pass

        def capture_end(self):
            raise RuntimeError("operation failed due to a previous error during capture")

    class Main(Stream):
        def __eq__(self, other):
            return other == "main"
    for name, fake in {
        "Stream": Stream, "stream": Using, "CUDAGraph": Graph, "synchronize": lambda: None,
        "empty_cache": lambda: None, "current_stream": lambda: current[0] if current[0] != "main" else Main(),
        "set_stream": lambda stream: current.__setitem__(0, stream),
        "device": lambda _: contextlib.nullcontext(),
    }.items():
        monkeypatch.setattr(torch.cuda, name, fake)
    monkeypatch.setattr(torch._C, "_host_emptyCache", lambda: None, raising=False)
    monkeypatch.setattr(torch.cuda.graph, "default_capture_stream", None)
    with pytest.raises(RuntimeError, match="previous error"):
        recorded.Replay(lambda x: x, [torch.zeros(1)])
    assert isinstance(current[0], Main) or current[0] == "main"


# ======================================================================== too little memory


CUDA_FULL = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB.")
MPS_FULL = RuntimeError("MPS backend out of memory (MPS allocated: 17.4 GB, other allocations: 1 GB)")


def little_memory(monkeypatch, most, error=CUDA_FULL):
    """A device on which at most `most` rows go through the model at once. Returns the numbers of
    rows that were tried."""
    tried, plain = [], sampler.advance

    def advance(model, cache, ids, position, mask):
        if not tried or tried[-1] != len(ids):
            tried.append(len(ids))
        if len(ids) > most:
            raise error
        return plain(model, cache, ids, position, mask)
    monkeypatch.setattr(sampler, "advance", advance)
    monkeypatch.setattr(MODEL, "most_tokens", None, raising=False)
    return tried


@pytest.mark.parametrize("most, error", [*((most, CUDA_FULL) for most in (1, 2, 3, 5, 11)), (3, MPS_FULL)])
def test_without_memory_fewer_rows_are_drawn_at_once_and_nothing_else_changes(monkeypatch, capsys, most, error):
    whole, greedy = draw(), draw(n=1, temperature=0.0, keys=None)
    tried = little_memory(monkeypatch, most, error)
    assert all_ids(draw()) == all_ids(whole)
    assert max(tried) > most
    said = capsys.readouterr().err
    assert "out of memory while sampling" in said and "Traceback" not in said
    # The smaller number is kept for the rest of the run.
    tried.clear()
    assert all_ids(draw()) == all_ids(whole) and max(tried) <= most
    assert all_ids(draw(n=1, temperature=0.0, keys=None)) == all_ids(greedy)
    assert not MODEL.training


def test_another_error_while_sampling_is_not_hidden(monkeypatch):
    little_memory(monkeypatch, 3, RuntimeError("shapes cannot be multiplied"))
    with pytest.raises(RuntimeError, match="shapes"):
        draw()


def test_when_not_even_one_row_fits_the_run_ends_with_a_sentence(monkeypatch):
    little_memory(monkeypatch, 0)
    with pytest.raises(Mistake, match="out of memory.*one text.*--max_new_tokens"):
        draw()


def test_an_evaluation_goes_on_without_memory(monkeypatch, toy):
    student, _, tokenizer = toy
    rows = [{"prompt": "a: starts with 5 shells. How many shells at the end?", "answer": "5"}] * 6

    def responses():
        return [r["response"] for r in evaluate(student, tokenizer, rows, max_new_tokens=8, bar=False)[1]]
    whole = responses()
    tried = little_memory(monkeypatch, 2)
    monkeypatch.setattr(student, "most_tokens", None, raising=False)
    assert responses() == whole and max(tried) > 2


def test_a_recording_without_memory_is_not_the_end_of_recordings(monkeypatch, capsys):
    whole = draw(max_new_tokens=40)

    class Large(StandIn):
        state, made = {"use": True, "unchecked": 3}, []

        def __init__(self, step, inputs):
            if len(inputs[0]) > 3:
                raise torch.OutOfMemoryError("CUDA out of memory.")
            super().__init__(step, inputs)
    static_shapes(monkeypatch, 16)
    monkeypatch.setattr(recorded, "Replay", Large)
    monkeypatch.setattr(MODEL, "most_tokens", None, raising=False)
    assert all_ids(draw(max_new_tokens=40)) == all_ids(whole)
    assert Large.state["use"] and Large.made


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU to record on")
@pytest.mark.parametrize("half", [False, True])
def test_recorded_steps_draw_the_same(monkeypatch, half):
    model, keys = tiny().to("cuda"), [(i, j) for i in range(4) for j in range(3)]

    def drawn(use):
        monkeypatch.setattr(recorded.Replay, "state", {"use": use, "unchecked": 3})
        with torch.autocast("cuda", dtype=torch.bfloat16, enabled=half):
            completions = sample(model, PROMPTS, n=3, max_new_tokens=300, keys=keys)
        # Recorded steps were used, and never given up.
        assert recorded.Replay.state == {"use": use, "unchecked": 0 if use else 3}
        return completions
    for plain, replayed in zip(drawn(False), drawn(True)):
        assert plain.ids == replayed.ids
        assert torch.allclose(torch.tensor(plain.logprobs), torch.tensor(replayed.logprobs),
                              atol=1e-3)


def test_the_uniform_number_zero_draws_no_token_of_probability_zero():
    # It occurs once in 2^53 draws. Without `right=True` it would draw token 0, whatever that is.
    from common.sampler import choose
    model = tiny_qwen3(vocabulary=20)
    hidden = torch.randn(6, 32, generator=torch.Generator().manual_seed(1))
    best = model.get_output_embeddings()(hidden).argmax(-1)
    assert (best != 0).any()
    zero = torch.zeros(6, dtype=torch.double)
    drawn, _ = choose(model, hidden, zero, temperature=1.0, top_p=1.0, top_k=1)
    assert torch.equal(drawn, best)
