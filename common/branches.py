"""Texts with many continuations: a model reads whole texts once, and then goes on after several
prefixes of each of them. topd.py looks ahead with it."""

import torch

from common.batches import log_probabilities
from common.cache import RowCache, advance


def read(model, ids, room):
    """Last hidden states [B, L, width] of texts [B, L], padded on the right, and the cache of
    their keys and values. room: how many tokens may be added to the cache later.

    Scoring reads the rollouts anyway. The cache is kept, so the continuations are cheap.
    """
    out = model.base_model(input_ids=ids, use_cache=True)
    cache = RowCache(ids.shape[1] + room, model.config.num_hidden_layers - 1)
    # New versions of transformers have renamed it.
    own = out["cache"] if "cache" in out else out["past_key_values"]
    for i, layer in enumerate(own.layers):
        cache.layers[i] = [layer.keys, layer.values]
    cache.length = ids.shape[1]
    return out.last_hidden_state, cache


def continuations(model, hidden, cache, places, K, contextual=False, size=64):
    """The model's next K tokens, greedily, after many prefixes of texts that it has read.

    places: (row, length of the prefix) of every window. Returns the windows, each cut behind its
    first end token. With `contextual` also the last hidden states after their tokens, [n, width]
    each.
    size: how many windows have logits at once.

    All windows are written at the same time. The prefixes are neither read again nor copied. The
    windows of a row are branches on one stem, the cache of that row:

        stem       x1 x2 y1 y2 y3 y4 y5
        branch A         '- a1 a2        sees x1 x2 y1 a1 a2
        branch B               '- b1 b2  sees x1 x2 y1 y2 y3 b1 b2

    Step k adds token k of every branch to the cache: a1 b1, then a2 b2, and so on. So there are K
    small steps for ALL windows, instead of K steps and a prompt for each of them. Texts are
    padded on the right. So no prefix contains padding, and reading needs no mask.
    """
    if not places:  # a micro-batch of short rollouts can have none
        return [], None
    device = hidden.device
    rows, prefix = torch.tensor(places, device=device).T  # [P] each
    branch, windows_in_row = [], {}  # branch: the number of each window in its row
    for row, _ in places:
        branch.append(windows_in_row.get(row, 0))
        windows_in_row[row] = branch[-1] + 1
    B, L, most = hidden.shape[0], hidden.shape[1], max(windows_in_row.values())
    branch = torch.tensor(branch, device=device)  # [P]

    # Rows with fewer windows get unused branches, with one token of the stem. They make all rows
    # alike. What they write is never read.
    length = torch.ones(B, most, dtype=torch.long, device=device)
    length[rows, branch] = prefix
    sees_stem = torch.arange(L, device=device) < length[:, :, None]  # [B, most, L]: y_<t only
    itself = torch.eye(most, dtype=torch.bool, device=device).expand(B, most, most)

    # The state that predicts the first token of a window is known from reading.
    last = hidden[rows, prefix - 1]  # [P, width]
    written, after = [], []  # one tensor per step: tokens [P], states after them [P, width]
    for k in range(K):
        best = [log_probabilities(model, h).argmax(-1) for h in last.split(size)]
        written.append(torch.cat(best))  # [P]
        if k == K - 1 and not contextual:  # nobody needs the state after the last token
            break
        tokens = torch.zeros(B, most, dtype=torch.long, device=device)
        tokens[rows, branch] = written[-1]
        # Each step adds `most` columns to the cache, one per branch. A branch sees its own only.
        mask = torch.cat([sees_stem, *[itself] * (k + 1)], 2)  # [B, most, L + most * (k + 1)]
        position = length + k  # as if the branch stood directly behind its prefix
        hidden = advance(model, cache, tokens, position, mask)  # [B, most, width]
        last = hidden[rows, branch]  # [P, width]
        after.append(last)
    windows = torch.stack(written, 1).tolist()  # P lists of K ids
    # The length of each window up to its first end token, which is included.
    ends = [next((i + 1 for i, y in enumerate(w) if y in model.ends), K) for w in windows]
    vectors = [v[:end] for v, end in zip(torch.stack(after, 1), ends)] if contextual else None
    return [w[:end] for w, end in zip(windows, ends)], vectors
