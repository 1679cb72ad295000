"""The sampler: exact frequencies, exact log-probabilities, padding, reproducibility, ends."""
import math

import torch
from conftest import tiny_qwen3

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
