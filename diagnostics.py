"""What privileged self-teachers know, and where: diagnostics of views on rollouts, without any training.

Used by look.py, the notebooks and benchmarks/; the method files do not need it. A "view" is the same model with something more in
its prompt (ar_opd.py: the first part of a solution, the whole solution). All numbers are taken on the student's own rollouts,
token by token, and come from one pass of each view over each rollout.
"""

import torch

import plumbing
from plumbing import pack, states
from toy import world

TOP = 16  # k of the overlap
TAU = 0.01  # a token below this probability is outside the student's support


def gaps(view, student, top=TOP, tau=TAU):
    """How far a view is from the student, at every state; from log-probabilities [n, V]. Returns [n, 4]:

    disagreement    1 - |top-k of the view and of the student in common| / k
    no_overlap      the view's mass on those of its top-k that are not among the student's
    support_gap     the view's mass on tokens that the student finds less likely than tau
    kl              KL(view || student)
    """
    k = min(top, view.shape[-1])
    theirs, ours = view.topk(k).indices, student.topk(k).indices  # [n, k]
    shared = (theirs[:, :, None] == ours[:, None, :]).any(-1)  # [n, k]
    mass = view.exp()
    return torch.stack(
        [
            1 - shared.float().mean(-1),
            (mass.gather(1, theirs) * ~shared).sum(-1),
            (mass * (student.exp() < tau)).sum(-1),
            (mass * (view - student)).sum(-1),
        ],
        1,
    )


GAPS = ("disagreement", "no_overlap", "support_gap", "kl")


@torch.no_grad()
def score_views(
    student, teacher, rows, responses, vocabulary, names=("partial", "full"), micro_tokens=16384, chunk_logits=2**26
):
    """Every rollout under the plain prompt and under every view: a list with one dictionary a rollout,

    own     {"student": [N], view: [N]}     log-probability of the written token
    gaps    {view: [N, 4]}                  see `gaps`
    rows[i] holds token ids of the prompts under "plain" and under each view's name.
    """
    student.eval()
    found = [{"own": {}, "gaps": {}} for _ in rows]
    size = max(1, chunk_logits // vocabulary)
    lengths = [max(len(r[n]) for n in ("plain", *names)) + len(y) for r, y in zip(rows, responses)]
    for chosen in plumbing.micro_batches(lengths, micro_tokens):
        after = [responses[i] for i in chosen]
        hidden = {}
        for name in ("plain", *names):
            ids, predicts, targets = pack([rows[i][name] for i in chosen], after, student.device)
            hidden[name] = states(student if name == "plain" else teacher, ids, predicts)  # [N, width]
        own, far = {n: [] for n in ("plain", *names)}, {n: [] for n in names}
        for first in range(0, len(targets), size):
            piece = slice(first, first + size)
            ours = log_probabilities(student, hidden["plain"][piece], vocabulary)  # [n, V]
            own["plain"].append(ours.gather(1, targets[piece, None]).squeeze(1))
            for name in names:
                theirs = log_probabilities(teacher, hidden[name][piece], vocabulary)
                own[name].append(theirs.gather(1, targets[piece, None]).squeeze(1))
                far[name].append(gaps(theirs, ours))
        counts = [len(y) for y in after]
        for name in ("plain", *names):
            for i, values in zip(chosen, torch.cat(own[name]).cpu().split(counts)):
                found[i]["own"]["student" if name == "plain" else name] = values
        for name in names:
            for i, values in zip(chosen, torch.cat(far[name]).cpu().split(counts)):
                found[i]["gaps"][name] = values
    return found


def log_probabilities(model, hidden, vocabulary):
    return model.get_output_embeddings()(hidden)[:, :vocabulary].float().log_softmax(-1)


def by_fifths(scored, view):
    """Mean of every gap in each fifth of the rollouts: [5, 4]. Token t of N belongs to fifth floor(5 t / N)."""
    values = torch.cat([s["gaps"][view] for s in scored])  # [tokens, 4]
    fifth = torch.cat([(5 * torch.arange(len(s["gaps"][view]))) // len(s["gaps"][view]) for s in scored])
    return torch.stack([values[fifth == k].mean(0) for k in range(5)])


def by_length(scored, lengths, view, groups=3):
    """Mean of every gap by length of the privileged context, in `groups` of equally many rollouts: [(shortest, longest, [4])]."""
    order = sorted(range(len(scored)), key=lambda i: lengths[i])
    found = []
    for g in range(groups):
        part = order[g * len(order) // groups : (g + 1) * len(order) // groups]
        if part:
            mean = torch.cat([scored[i]["gaps"][view] for i in part]).mean(0)
            found.append((lengths[part[0]], lengths[part[-1]], mean))
    return found


def advantages(scored):
    """Sums over the rollout of log-probability ratios, one number a rollout each: what a view finds more or less likely than the
    student. total: full against student; partial: partial against student; marginal: full against partial."""
    total = [(s["own"]["full"] - s["own"]["student"]).sum().item() for s in scored]
    partial = [(s["own"]["partial"] - s["own"]["student"]).sum().item() for s in scored]
    return {"total": total, "partial": partial, "marginal": [a - b for a, b in zip(total, partial)]}


def auc(scores, labels):
    """ROC-AUC: the probability that a positive has the higher score; ties count half. NaN if there is only one class."""
    scores, labels = torch.tensor(scores, dtype=torch.float64), torch.tensor(labels, dtype=torch.bool)
    positive, negative = scores[labels], scores[~labels]
    if not len(positive) or not len(negative):
        return float("nan")
    order = torch.cat([positive, negative])
    values, inverse, counts = order.unique(return_inverse=True, return_counts=True)
    rank = (counts.cumsum(0) - (counts - 1) / 2)[inverse]  # midranks: no table of all pairs
    u = rank[: len(positive)].sum() - len(positive) * (len(positive) + 1) / 2
    return (u / (len(positive) * len(negative))).item()


# ============================================================================================ the first mistake (toy only)


def token_at(tokenizer, ids, character):
    """Index of the token of `ids` that holds the character of the decoded text."""
    end = 0
    for i, token in enumerate(ids):
        end += len(tokenizer.decode([token]))
        if character < end:
            return i
    return len(ids) - 1


def first_mistakes(tokenizer, rows, responses):
    """Where failing responses first leave the truth: [(index of the response, index of the token, the token that would be right)].
    Only the toy's checker knows; responses to other problems, and mistakes without a single right token, are left out."""
    cases = []
    for k, (row, ids) in enumerate(zip(rows, responses)):
        text = tokenizer.decode(ids)
        try:
            wrong = world.check(row["problem"], text).first_wrong
        except ValueError:  # not the toy's language
            continue
        if wrong is None or not wrong.right:
            continue
        at = token_at(tokenizer, ids, wrong.wrong_at)
        space = " " if text[wrong.wrong_at - 1 : wrong.wrong_at] == " " else ""
        right = tokenizer.convert_tokens_to_ids(space + wrong.right)
        if right not in (None, tokenizer.unk_token_id, ids[at]):
            cases.append((k, at, right))
    return cases


@torch.no_grad()
def mass(model, cases):
    """Probability of a token behind a text, for every (ids, token)."""
    model.eval()
    found = []
    for ids, token in cases:
        logits = model(torch.tensor([ids], device=model.device), logits_to_keep=1).logits[0, -1].float()
        found.append(logits.softmax(-1)[token].item())
    return found
