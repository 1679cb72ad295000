"""What a self-teacher knows, and at which tokens. Nothing here trains.

A "view" is the student itself with more in its prompt: the first part of a solution, a whole
solution, a successful rollout. All numbers are taken on the student's own rollouts, token by
token, in one pass of each view over each rollout. What a view can do when it generates is measured
in `gate.py`.

Functions that need the truth about a response take it as `check`. Only the toy has one:
`common.data.checker`.
"""

import re

import torch

from common import batches
from common.batches import log_probabilities, pack, states

# ======================================================================== groups and distances


def quartiles(values):
    if not values:
        return None
    return torch.tensor(values).quantile(torch.tensor([0.25, 0.5, 0.75])).tolist()


def signal_statistics(right, G):
    """reward: share of right rollouts. signal: share of groups with right and wrong rollouts.
    groups: how many groups have 0, 1, .. G right ones."""
    counts = [sum(right[first : first + G]) for first in range(0, len(right), G)]
    return {
        "reward": sum(right) / len(right),
        "signal": sum(0 < k < G for k in counts) / len(counts),
        "groups": [counts.count(k) for k in range(G + 1)],
    }


def group_statistics(rows, right, peers, G):
    """`signal_statistics`, and coverage: the share of rollouts that fail and have a peer, also by
    level of difficulty if the data know it."""
    covered = [not ok and p is not None for ok, p in zip(right, peers)]
    by_level = {}
    for q, row in enumerate(rows):
        if "level" in row:
            by_level.setdefault(str(row["level"]), []).extend(covered[q * G : (q + 1) * G])
    return {
        **signal_statistics(right, G),
        "coverage": sum(covered) / len(covered),
        "coverage_by_level": {k: sum(v) / len(v) for k, v in sorted(by_level.items())},
    }


# ======================================================================== shortcuts

# Words with which a text appeals to a solution that its reader cannot see.
APPEALS = re.compile(
    r"\b(example (response|solution)|given (response|solution)"
    r"|provided (response|solution|answer)|(response|solution) above|as shown above)\b",
    re.IGNORECASE,
)


def shortcut(problem, response, check=None):
    """Does this response use what only the privileged teacher saw?

    On the toy `check` decides it exactly: a true value stands in the response before the values
    that it is computed from. For other data the words decide, as in the AR-OPD paper: the
    response appeals to an unseen solution, or it states an answer without any derivation.
    """
    if check is not None:
        try:
            return bool(check(problem, response).shortcuts)
        except ValueError:  # this problem is not in the toy's language
            pass
    before = response.split("\\boxed")[0]
    return bool(APPEALS.search(response)) or ("\\boxed" in response and len(before.split()) < 8)


def shortcut_share(records, rows, check):
    """The share of an evaluation's responses that are shortcuts."""
    events = [shortcut(rows[r["index"]]["problem"], r["response"], check) for r in records]
    return sum(events) / len(events)


# ======================================================================== how far is a view?

TOP = 16  # k of the overlap
TAU = 0.01  # a token below this probability is outside of the student's support
GAPS = ("disagreement", "no_overlap", "support_gap", "kl")


def gaps(view_logp, student_logp, top=TOP, tau=TAU):
    """How far a view is from the student at every state, [n, 4], from log-probabilities [n, V]:

    disagreement    1 - |tokens that are in the top k of both| / k
    no_overlap      the view's mass on its top-k tokens that are not in the student's top k
    support_gap     the view's mass on tokens that the student finds less likely than tau
    kl              KL(view || student)
    """
    k = min(top, view_logp.shape[-1])
    view_top, student_top = view_logp.topk(k).indices, student_logp.topk(k).indices  # [n, k]
    shared = (view_top[:, :, None] == student_top[:, None, :]).any(-1)  # [n, k]
    mass = view_logp.exp()
    return torch.stack(
        [
            1 - shared.float().mean(-1),
            (mass.gather(1, view_top) * ~shared).sum(-1),
            (mass * (student_logp.exp() < tau)).sum(-1),
            (mass * (view_logp - student_logp)).sum(-1),
        ],
        1,
    )


@torch.no_grad()
def score_views(
    student, teacher, rows, responses, names=("partial", "full"), micro_tokens=16384,
    chunk_logits=2**24,
):
    """Score every rollout with the plain prompt and with every view. One dictionary per rollout:

    own     {"student": [N], view: [N]}     log-probability of the written token
    gaps    {view: [N, 4]}                  see `gaps`
    rows[i] holds token ids of the prompts under "plain" and under each view's name.
    """
    student.eval()
    scored = [{"own": {}, "gaps": {}} for _ in rows]
    size = max(1, chunk_logits // student.vocabulary)
    prompts = ("plain", *names)
    lengths = [max(len(r[n]) for n in prompts) + len(y) for r, y in zip(rows, responses)]
    for chosen in batches.micro_batches(lengths, micro_tokens):
        after, hidden = [responses[i] for i in chosen], {}
        for name in prompts:
            ids, predicts, targets = pack([rows[i][name] for i in chosen], after, student.device)
            model = student if name == "plain" else teacher
            hidden[name] = states(model, ids, predicts)  # [N, width]
        own, far = {n: [] for n in prompts}, {n: [] for n in names}
        for first in range(0, len(targets), size):
            piece = slice(first, first + size)
            student_logp = log_probabilities(student, hidden["plain"][piece])  # [n, V]
            own["plain"].append(student_logp.gather(1, targets[piece, None]).squeeze(1))
            for name in names:
                view_logp = log_probabilities(teacher, hidden[name][piece])  # [n, V]
                own[name].append(view_logp.gather(1, targets[piece, None]).squeeze(1))
                far[name].append(gaps(view_logp, student_logp))
        counts = [len(y) for y in after]
        for name in prompts:
            for i, values in zip(chosen, torch.cat(own[name]).cpu().split(counts)):
                scored[i]["own"]["student" if name == "plain" else name] = values
        for name in names:
            for i, values in zip(chosen, torch.cat(far[name]).cpu().split(counts)):
                scored[i]["gaps"][name] = values
    return scored


def by_fifths(scored, view):
    """Mean of every gap in each fifth of the rollouts: [5, 4]. Token t of N belongs to fifth
    floor(5 t / N)."""
    values = torch.cat([s["gaps"][view] for s in scored])  # [tokens, 4]
    counts = [len(s["gaps"][view]) for s in scored]
    fifth = torch.cat([(5 * torch.arange(n)) // n for n in counts])
    return torch.stack([values[fifth == k].mean(0) for k in range(5)])


def by_length(scored, lengths, view, groups=3):
    """Mean of every gap by length of the privileged prompt, in `groups` of equally many rollouts:
    [(shortest, longest, [4])]."""
    order = sorted(range(len(scored)), key=lambda i: lengths[i])
    found = []
    for g in range(groups):
        part = order[g * len(order) // groups : (g + 1) * len(order) // groups]
        if part:
            mean = torch.cat([scored[i]["gaps"][view] for i in part]).mean(0)
            found.append((lengths[part[0]], lengths[part[-1]], mean))
    return found


def advantages(scored):
    """Three numbers per rollout, sums of log-probability ratios over its tokens. total: the full
    view against the student. partial: the partial view against the student. marginal: the full
    view against the partial one."""
    sums = [{k: v.sum().item() for k, v in s["own"].items()} for s in scored]
    total = [s["full"] - s["student"] for s in sums]
    partial = [s["partial"] - s["student"] for s in sums]
    return {
        "total": total,
        "partial": partial,
        "marginal": [a - b for a, b in zip(total, partial)],
    }


def auc(scores, labels):
    """ROC-AUC: the probability that a positive has the higher score. Ties count half. NaN if
    there is only one class."""
    scores = torch.tensor(scores, dtype=torch.float64)
    labels = torch.tensor(labels, dtype=torch.bool)
    positive, negative = scores[labels], scores[~labels]
    if not len(positive) or not len(negative):
        return float("nan")
    together = torch.cat([positive, negative])
    _, inverse, counts = together.unique(return_inverse=True, return_counts=True)
    rank = (counts.cumsum(0) - (counts - 1) / 2)[inverse]  # equal scores share their mean rank
    u = rank[: len(positive)].sum() - len(positive) * (len(positive) + 1) / 2
    return (u / (len(positive) * len(negative))).item()


def coverage(p, G):
    """f(p, G): expected share of rollouts that fail AND have a successful peer, if a rollout is
    right with probability p. (One that succeeds can have a peer, too.) It is a formula to compare
    the metric `coverage` with. It is largest at p = 1 - G^(-1/(G-1)). This maximum grows with
    G. In the paper's table it falls with G, which contradicts the paper's formula.

    >>> round(coverage(.257, 8), 3)
    0.65
    >>> round(coverage(1 - 16 ** (-1 / 15), 16), 3)
    0.779
    """
    return (1 - p) * (1 - (1 - p) ** (G - 1))
