"""common/branches.py: the continuations of many prefixes at once against decoding token by token."""
import torch
from conftest import tiny_qwen3
from helpers import CPU, LONG, PROMPTS, slowly, with_ends

from common.batches import pack
from common.branches import continuations, read


@torch.no_grad()
def test_windows_of_all_prefixes_at_once_equal_decoding_one_by_one():
    # (3): W_T, against plain greedy decoding.
    model, K = tiny_qwen3(seed=2, width=48, layers=3), 6
    model.ends = [1, 30]
    ids, _, _ = pack(PROMPTS, LONG, CPU)
    # different rows, several windows per row, without any order
    places = [(0, 3), (0, 9), (1, 2), (1, 20), (1, 11), (3, 5), (3, 17), (2, 5), (1, 21)]
    slow = [slowly(model, (PROMPTS[r] + LONG[r])[:n], K, model.ends) for r, n in places]
    # At most 2**24 logits exist at once: those of all windows, or of two.
    for vocabulary in (50, 2**23):
        model.vocabulary = vocabulary
        hidden, cache = read(model, ids, 3 * K)
        windows, states = continuations(model, hidden, cache, places, K, contextual=True)
        assert windows == [w for w, _ in slow]
        assert all(torch.allclose(a, b, atol=1e-4) for a, (_, b) in zip(states, slow))
        hidden, cache = read(model, ids, 3 * K)
        assert continuations(model, hidden, cache, places, K) == (windows, None)
    assert len({tuple(w) for w in windows}) > 4
    assert all(len(w) == K or w[-1] in model.ends for w in windows)


@torch.no_grad()
def test_an_end_of_text_ends_a_window():
    model = with_ends(tiny_qwen3(seed=2, width=48))
    ids, _, _ = pack(PROMPTS, LONG, CPU)
    places = [(0, 6), (1, 9)]
    hidden, cache = read(model, ids, 40)
    free, _ = continuations(model, hidden, cache, places, 8)
    assert [len(w) for w in free] == [8, 8]
    model.ends = [free[0][3]]
    hidden, cache = read(model, ids, 40)
    cut, vectors = continuations(model, hidden, cache, places, 8, contextual=True)
    end = free[0].index(model.ends[0])
    assert cut[0] == free[0][:end + 1]                      # the end itself belongs to the window
    assert [len(v) for v in vectors] == [len(w) for w in cut]


def test_a_prefix_is_never_read_twice():
    # The work of the windows does not grow with the length of the prefixes: after reading, every
    # pass has one token per branch.
    model, shapes = with_ends(tiny_qwen3(seed=2)), []
    ids, _, _ = pack(PROMPTS, LONG, CPU)
    with torch.no_grad():
        hidden, cache = read(model, ids, 40)
        handle = model.base_model.register_forward_pre_hook(
            lambda module, args, kwargs: shapes.append(tuple(kwargs["input_ids"].shape)),
            with_kwargs=True,
        )
        continuations(model, hidden, cache, [(0, 6), (1, 9), (1, 12)], 5)
        handle.remove()
    # 4 rows, at most 2 branches, K - 1 steps: the first token was known.
    assert shapes == [(4, 2)] * 4


@torch.no_grad()
def test_the_cache_has_the_name_that_this_version_of_transformers_gives_it():
    # conftest.py: an old name is an error.
    ids, _, _ = pack(PROMPTS, LONG, CPU)
    model = with_ends(tiny_qwen3(seed=2))
    hidden, cache = read(model, ids, 40)
    continuations(model, hidden, cache, [(0, 6)], 3)
