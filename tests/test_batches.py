"""Batches: the order of the prompts, micro-batches, packing, log-probabilities, chunks, and what
an update collects."""
import math
from types import SimpleNamespace

import pytest
import torch
from conftest import tiny_qwen3
from helpers import CPU, PROMPTS, RESPONSES, STUDENT, compute
from torch.utils._python_dispatch import TorchDispatchMode

from common import batches
from common.arguments import Mistake
from common.batches import (
    Clock,
    Collected,
    fitting_prompts,
    log_probabilities,
    micro_batches,
    pack,
    padded,
    prompts_of_step,
    rollout_statistics,
    states,
)

ARGS = SimpleNamespace(micro_tokens=10**6, chunk_logits=2**26)

# ------------------------------------------------------------------------ prompts


def test_prompts_of_a_step_are_permutations_and_stateless():
    taken = [i for step in range(1, 6) for i in prompts_of_step(step, 4, 10, seed=0)]
    assert sorted(taken[:10]) == list(range(10)) and sorted(taken[10:20]) == list(range(10))
    assert taken[:10] != taken[10:20]
    assert prompts_of_step(3, 4, 10, seed=0) == taken[8:12]
    assert prompts_of_step(1, 4, 10, seed=1) != taken[:4]
    assert len(prompts_of_step(1, 25, 10, seed=0)) == 25


def test_prompts_that_do_not_fit_are_left_out_and_counted(capsys):
    model = SimpleNamespace(config=SimpleNamespace(max_position_embeddings=20))
    rows = [{"n": n} for n in (5, 12, 13, 8)]
    kept = fitting_prompts(rows, lambda row: list(range(row["n"])), [model], 8)
    assert [len(r["ids"]) for r in kept] == [5, 12, 8]      # 12 + 8 tokens are exactly the context
    assert "1 of 4 prompts are too long" in capsys.readouterr().out
    with pytest.raises(Mistake, match="No prompt fits.*lower --max_new_tokens"):
        fitting_prompts(rows, lambda row: list(range(row["n"])), [model], 16)


def test_the_smallest_context_of_all_models_decides(capsys):
    models = [SimpleNamespace(config=SimpleNamespace(max_position_embeddings=n)) for n in (40, 20)]
    rows = [{"n": n} for n in (5, 13)]
    assert len(fitting_prompts(rows, lambda row: list(range(row["n"])), models, 8)) == 1


def test_longrope_has_the_original_context():
    rope = {"rope_type": "longrope", "original_max_position_embeddings": 4096}
    long = SimpleNamespace(max_position_embeddings=131072, rope_parameters=rope)
    assert batches.context_of(long) == 4096
    older = SimpleNamespace(max_position_embeddings=131072, rope_scaling={"type": "longrope"},
                            original_max_position_embeddings=4096)
    assert batches.context_of(older) == 4096
    yarn = SimpleNamespace(max_position_embeddings=131072, rope_parameters=rope | {"rope_type": "yarn"})
    assert batches.context_of(yarn) == 131072


# ------------------------------------------------------------------------ micro-batches


def test_micro_batches_cover_everything_within_the_budget():
    lengths = [3, 50, 7, 7, 20, 1, 90]
    groups = micro_batches(lengths, 60)
    assert sorted(i for g in groups for i in g) == list(range(7))
    assert all(len(g) == 1 or max(lengths[i] for i in g) * len(g) <= 60 for g in groups)


def test_micro_batches_waste_little_on_padding():
    lengths = [80 + i % 81 for i in range(400)]
    one, cut = [list(range(400))], micro_batches(lengths, 10**6)
    assert sorted(i for g in cut for i in g) == list(range(400))
    assert padded(lengths, one) == 400 * 160
    assert padded(lengths, cut) < 1.07 * sum(lengths)
    assert all(sum(lengths[i] for i in g) >= batches.FULL for g in cut[:-1])
    # Texts of equal length need no padding, so there is no reason to cut.
    assert micro_batches([100] * 400, 10**6) == one
    # Two texts are too little to keep a device busy. Padding costs less than another pass.
    assert len(micro_batches([1, 1000], 10**4)) == 1


def test_compute_cuts_by_the_length_of_prompt_and_response():
    # lengths 6, 7, 5, 7
    work = compute(SimpleNamespace(micro_tokens=14, chunk_logits=2**26))
    groups = work.micro_batches(PROMPTS, RESPONSES)
    assert groups == [[2, 0], [1, 3]]
    ids, predicts, targets = work.pack(PROMPTS, RESPONSES, groups[0])
    again = pack([PROMPTS[2], PROMPTS[0]], [RESPONSES[2], RESPONSES[0]], CPU)
    assert all(torch.equal(a, b) for a, b in zip((ids, predicts, targets), again))


# ------------------------------------------------------------------------ packing


def test_the_end_token_is_inside_the_loss_and_what_follows_is_not():
    ids, predicts, targets = pack(PROMPTS, RESPONSES, CPU)
    assert targets.tolist() == [t for r in RESPONSES for t in r]
    for row, (p, r) in enumerate(zip(PROMPTS, RESPONSES)):
        where = predicts[row].nonzero().squeeze(1).tolist()
        assert where == list(range(len(p) - 1, len(p) + len(r) - 1))
        assert [ids[row, i + 1].item() for i in where] == r
    # A pad id that equals the end token must not matter: masks come from lengths.
    assert predicts.sum() == len(targets)


def test_a_response_may_contain_the_pad_id():
    ids, predicts, targets = pack([[5, 0]], [[0, 3, 0]], CPU)
    assert ids.tolist() == [[5, 0, 0, 3, 0]] and targets.tolist() == [0, 3, 0]
    assert predicts.tolist() == [[False, True, True, True, False]]


def test_nothing_behind_a_response_can_be_seen():
    hidden = states(STUDENT, *pack(PROMPTS, RESPONSES, CPU)[:2])
    rows = [states(STUDENT, *pack([p], [r], CPU)[:2]) for p, r in zip(PROMPTS, RESPONSES)]
    assert torch.allclose(hidden, torch.cat(rows), atol=1e-5)


# ------------------------------------------------------------------------ log-probabilities


def head_of(vocabulary):
    """A model of which only the head is asked. It returns the hidden states as logits."""
    return SimpleNamespace(get_output_embeddings=lambda: lambda h: h, vocabulary=vocabulary)


def test_log_probabilities_are_normalised_over_the_tokenizer_s_tokens():
    logits = 3 * torch.randn(6, 12, generator=torch.Generator().manual_seed(0))
    logp = log_probabilities(head_of(9), logits)            # the head has three rows too many
    assert logp.shape == (6, 9)
    assert torch.allclose(logp.exp().sum(-1), torch.ones(6), atol=1e-6)
    expected = logits[:, :9].exp() / logits[:, :9].exp().sum(-1, keepdim=True)
    assert torch.allclose(logp.exp(), expected, atol=1e-6)


def test_temperature_divides_the_logits():
    logits = 3 * torch.randn(6, 12, generator=torch.Generator().manual_seed(0))
    for temperature in (0.5, 2.0):
        expected = (logits / temperature).exp()
        expected = expected / expected.sum(-1, keepdim=True)
        logp = log_probabilities(head_of(12), logits, temperature)
        assert torch.allclose(logp.exp(), expected, atol=1e-6)


def test_log_probabilities_are_float32_whatever_the_logits_are():
    logits = (3 * torch.randn(6, 12, generator=torch.Generator().manual_seed(0))).bfloat16()
    for temperature in (1.0, 2.0):
        logp = log_probabilities(head_of(12), logits, temperature)
        assert logp.dtype == torch.float32
        # In bfloat16 the sum would be wrong by up to a hundredth.
        assert torch.allclose(logp.exp().sum(-1), torch.ones(6), atol=1e-6)
    model = tiny_qwen3().bfloat16()
    hidden = states(model, *pack(PROMPTS, RESPONSES, CPU)[:2])
    assert hidden.dtype == torch.bfloat16
    assert log_probabilities(model, hidden).dtype == torch.float32


def test_states_and_log_probabilities_are_the_model_s_own():
    ids, predicts, targets = pack(PROMPTS, RESPONSES, CPU)
    with torch.no_grad():
        logp = log_probabilities(STUDENT, states(STUDENT, ids, predicts))
        expected = STUDENT(ids).logits[predicts].log_softmax(-1)
    assert logp.shape == (len(targets), 50) and torch.allclose(logp, expected, atol=1e-5)


# ------------------------------------------------------------------------ chunks


def test_chunks_have_the_sum_the_statistics_and_the_gradient_of_the_whole():
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(7, 4, generator=generator)
    weight = torch.rand(7, generator=generator)
    head = torch.randn(4, 50, generator=generator)
    sizes = []

    def results(chunk_logits):
        sizes.clear()
        h, w = hidden.clone().requires_grad_(), head.clone().requires_grad_()

        def loss(h, nothing, weight):
            assert nothing is None                          # a tensor may be None
            sizes.append(len(h))
            logp = (h @ w).log_softmax(-1)
            return (weight * logp[:, 3]).sum(), torch.stack([logp[:, 3].detach(), weight], 1)

        work = compute(SimpleNamespace(chunk_logits=chunk_logits))
        total, stats = work.in_chunks(loss, h, None, weight)
        forward = list(sizes)
        total.backward()
        return forward, list(sizes), total.item(), stats, h.grad, w.grad

    whole = results(2**26)
    assert whole[:2] == ([7], [7])                          # one chunk alone is not computed twice
    for positions, expected in ((3, [3, 3, 1]), (1, [1] * 7), (7, [7])):
        cut = results(50 * positions + 49)                  # 50 tokens; 49 are no further position
        assert cut[0] == expected
        # Several chunks are computed once more in the backward pass, so that none is kept.
        assert len(cut[1]) == (1 if len(expected) == 1 else 2 * len(expected))
        assert cut[2] == pytest.approx(whole[2], abs=1e-5)
        assert torch.allclose(cut[3], whole[3], atol=1e-6)  # every position keeps its place
        assert torch.allclose(cut[4], whole[4], atol=1e-6)
        assert torch.allclose(cut[5], whole[5], atol=1e-5)
    assert results(1)[0] == [1] * 7                         # at least one position at a time


# ------------------------------------------------------------------------ the head in half precision


class Casts(TorchDispatchMode):
    """Counts how often a float32 matrix of one shape is made into another type."""

    def __init__(self, weight):
        super().__init__()
        self.shape, self.count = weight.shape, 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        if "_to_copy" in str(function) and args[0].dtype == torch.float32 != out.dtype:
            self.count += args[0].shape == self.shape
        return out


def half():
    return torch.autocast("cpu", dtype=torch.bfloat16)


def written_logp(model):
    """A loss for in_chunks: minus the log-probability of the written tokens."""

    def loss(hidden, targets):
        logp = log_probabilities(model, hidden).gather(1, targets[:, None]).squeeze(1)
        return -logp.sum(), logp.detach()[:, None]

    return loss


def positions(count, width=32):
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(count, width, generator=generator)
    return hidden, torch.randint(0, 50, (count,), generator=generator)


@pytest.mark.parametrize("chunks", [128, 512])
def test_the_gradient_of_the_head_is_summed_over_chunks_in_float32(chunks):
    model = tiny_qwen3()
    head, (hidden, targets) = model.get_output_embeddings().weight, positions(2 * chunks)
    loss, expected = written_logp(model), torch.zeros_like(head)
    for first in range(0, len(hidden), 2):                  # a pass of its own for every chunk
        with half():
            value, _ = loss(hidden[first : first + 2], targets[first : first + 2])
        expected += torch.autograd.grad(value, head)[0]
    work = compute(SimpleNamespace(chunk_logits=2 * 50))
    with half():
        value, _ = work.in_chunks(loss, hidden, targets)
    value.backward()
    assert head.grad.dtype == torch.float32
    assert (head.grad - expected).norm() < 0.002 * expected.norm()


@pytest.mark.parametrize("learns", [True, False])
def test_the_head_is_cast_once_for_all_chunks(learns):
    # A head without a gradient: that of a moving average, or of a frozen float32 teacher.
    model, (hidden, targets) = tiny_qwen3().requires_grad_(learns), positions(40)
    hidden.requires_grad_()
    work = compute(SimpleNamespace(chunk_logits=2 * 50))
    with Casts(model.get_output_embeddings().weight) as casts:
        with half():
            value, _ = work.in_chunks(written_logp(model), hidden, targets)
        value.backward()                                    # computes every chunk once more
    assert casts.count == 1
    assert hidden.grad.abs().sum() > 0


def test_a_head_that_has_learnt_is_cast_again():
    # The copy belongs to one call of in_chunks. The weights that follow a step are other ones.
    model, (hidden, targets) = tiny_qwen3(), positions(40)
    work, values = compute(SimpleNamespace(chunk_logits=2 * 50)), []
    for _ in range(2):
        with half(), torch.no_grad():
            values.append(work.in_chunks(written_logp(model), hidden, targets)[0].item())
            # `.data` raises no version counter, and neither does a fused optimizer.
            model.get_output_embeddings().weight.data.zero_()
    uniform = 40 * math.log(50)
    assert values[1] == pytest.approx(uniform) and abs(values[0] - uniform) > 1


def test_logits_in_half_precision_are_those_of_the_head_itself():
    model, hidden = tiny_qwen3(), positions(40)[0]
    with half(), torch.no_grad():
        expected = model.get_output_embeddings()(hidden).float().log_softmax(-1)
        found = []
        work = compute(SimpleNamespace(chunk_logits=2 * 50))
        work.in_chunks(lambda h: (0.0, found.append(log_probabilities(model, h)) or h), hidden)
    assert torch.equal(torch.cat(found), expected)


# ------------------------------------------------------------------------ what is collected


def test_a_value_per_rollout_is_repeated_for_its_tokens():
    work = compute(ARGS)
    flags = torch.tensor([False, True, False, True])
    # responses of 3, 6, 1 and 2 tokens
    assert work.per_token(flags, RESPONSES, [1, 2]).tolist() == [True] * 6 + [False]
    pairs = torch.tensor([[0.0, 1.0], [2.0, 3.0], [4.0, 5.0], [6.0, 7.0]])
    assert work.per_token(pairs, RESPONSES, [3, 2]).tolist() == [[6, 7], [6, 7], [4, 5]]


def test_collected_puts_rollouts_back_in_their_places_and_adds_up():
    collected = Collected(RESPONSES)
    collected.add([2, 1], torch.arange(14.0).view(7, 2), 1.5, ["a"])
    collected.add([3, 0], torch.arange(14.0, 24.0).view(5, 2), 2.0, ["b", "c"])
    stats, total, names = collected.everyone()
    assert [len(s) for s in stats] == [3, 6, 1, 2]
    assert stats[2].tolist() == [[0, 1]] and stats[1][0].tolist() == [2, 3]
    assert stats[3][0].tolist() == [14, 15] and stats[0].tolist() == [[18, 19], [20, 21], [22, 23]]
    assert total == 3.5 and names == ["a", "b", "c"]


def test_statistics_of_rollouts():
    counted = rollout_statistics(RESPONSES, [1])
    assert counted == {"tokens": 12, "length": 3.0, "truncated": 0.25}
    # With two end tokens the last response is not truncated.
    assert rollout_statistics(RESPONSES, [1, 31])["truncated"] == 0
    # An end token at the last place allowed is an end, not a cut.
    assert rollout_statistics([[5, 6, 7, 1]], [1])["truncated"] == 0


def test_the_clock_adds_up_the_times_of_a_phase(monkeypatch):
    now = iter([0.0, 10.0, 11.0, 13.0, 14.0, 15.5, 20.0])
    monkeypatch.setattr(batches.time, "perf_counter", lambda: next(now))
    clock = Clock(CPU)
    clock.start()                                           # at 10
    for _ in range(2):
        with clock.phase("student"):                        # 11 to 13, then 14 to 15.5
            pass
    assert clock.stop() == {"total": 10.0, "student": 3.5}
