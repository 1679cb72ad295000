"""What privileged self-teachers know, and where: diagnostics of views on rollouts, without any training.

Used by look.py, the notebooks and benchmarks/; the method files do not need it. A "view" is the same model with something more in
its prompt (ar_opd.py: the first part of a solution, the whole solution). All numbers are taken on the student's own rollouts,
token by token, and come from one pass of each view over each rollout.
"""

import torch

import plumbing
from evaluate import eos_ids, privileged_prompt, prompt_ids, sample, verify
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
    student, teacher, rows, responses, vocabulary, names=("partial", "full"), micro_tokens=16384, chunk_logits=2**24
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


# ============================================================================================ where credit falls (hindsight_sd.py)

BEFORE, AFTER = 30, 50  # tokens of the profile around the divergence


def leaves(ids, peer):
    """tau: index of the first token at which a rollout differs from its peer; None if one is the beginning of the other."""
    return next((t for t, (a, b) in enumerate(zip(ids, peer)) if a != b), None)


def failures(drawn, right, peers, G):
    """Failing rollouts with a peer that they leave: [(question, token ids, the peer's token ids, tau)]."""
    found = []
    for i, (ok, p) in enumerate(zip(right, peers)):
        if not ok and p is not None:
            tau = leaves(drawn[i].ids, drawn[p].ids)
            if tau is not None:
                found.append((i // G, drawn[i].ids, drawn[p].ids, tau))
    return found


def expected(ids, peer, least=3):
    """What a reader who copies the peer expects at every position: [N] token ids, or None where it has lost the place.

    It knows its place at the beginning, and wherever the last `least` tokens stand in the peer too; of several places, the longest match.
    """
    if not peer:
        return [None] * len(ids)
    best, agree = [], [0] * (len(peer) + 1)
    for t, token in enumerate(ids):
        # agree[j]: how many tokens just before position t of the rollout and position j of the peer are the same
        j = max(range(len(peer)), key=lambda j: (agree[j], -j))
        best.append(peer[j] if agree[j] >= least or agree[j] == t == j else None)
        agree = [0] + [agree[j] + 1 if token == peer[j] else 0 for j in range(len(peer))]
    return best


def copying_teacher(own, ids, peer, share=0.95):
    """The credit log p(o_t) - log s(o_t) of a simulated teacher that understands nothing: where it expects a token of the peer it mixes `share` of
    that token into the student's distribution. The reference line of the profile: what mere copying looks like. own: log s(o_t), [N]."""
    credit = torch.zeros_like(own)
    for t, (token, wanted) in enumerate(zip(ids, expected(ids, peer))):
        if wanted is not None:
            p = (1 - share) * own[t].exp() + share * (token == wanted)
            credit[t] = p.log() - own[t]
    return credit


@torch.no_grad()
def credits(student, teacher, tokenizer, rows, failed, micro_tokens=16384):
    """Credit of every token of failing rollouts under contexts: a list of dictionaries, one a failure,

    tau; student: log s(o_t), [N]; credit: {context: [N]}, A_t = log p(o_t) - log s(o_t), for the contexts "peer" (with the answer), "answer" and
    "copying" (simulated); there: {"student" | context: probability of the PEER's token at tau}.
    """
    V, found = len(tokenizer), [{"tau": tau, "credit": {}, "there": {}} for *_, tau in failed]
    users = {
        "student": [rows[q]["prompt"] for q, *_ in failed],
        "peer": [
            privileged_prompt(rows[q]["prompt"], tokenizer.decode(peer, skip_special_tokens=True).strip(), rows[q]["answer"])
            for q, _, peer, _ in failed
        ],
        "answer": [privileged_prompt(rows[q]["prompt"], answer=rows[q]["answer"]) for q, *_ in failed],
    }
    student.eval()
    for name, prompts in users.items():
        prompts, model = [prompt_ids(tokenizer, u) for u in prompts], student if name == "student" else teacher
        for chosen in plumbing.micro_batches([len(p) + len(f[1]) for p, f in zip(prompts, failed)], micro_tokens):
            after = [failed[i][1] for i in chosen]
            ids, predicts, _ = pack([prompts[i] for i in chosen], after, student.device)
            hidden = states(model, ids, predicts).split([len(y) for y in after])
            for i, h in zip(chosen, hidden):  # one rollout's logits at a time
                _, y, peer, tau = failed[i]
                logp = log_probabilities(model, h, V)  # [N, V]
                own = logp.gather(1, torch.tensor(y, device=h.device)[:, None]).squeeze(1).cpu()  # [N]
                found[i]["there"][name] = logp[tau, peer[tau]].exp().item()
                if name == "student":
                    found[i]["student"] = own
                else:
                    found[i]["credit"][name] = own - found[i]["student"]
    for f, (_, y, peer, _) in zip(found, failed):
        f["credit"]["copying"] = copying_teacher(f["student"], y, peer)
    return found


def profile(found, context, before=BEFORE, after=AFTER):
    """Mean |A| at tau + d for d = -before .. after: ([d], [mean], [how many rollouts reach there])."""
    total, count = [0.0] * (before + after + 1), [0] * (before + after + 1)
    for f in found:
        credit = f["credit"][context].abs().tolist()
        for d in range(-before, after + 1):
            if 0 <= f["tau"] + d < len(credit):
                total[d + before] += credit[f["tau"] + d]
                count[d + before] += 1
    return list(range(-before, after + 1)), [t / c if c else float("nan") for t, c in zip(total, count)], count


def share_within(found, context, width, before=BEFORE, after=AFTER):
    """Share of all |A| in the profile's window that lies within `width` tokens of the divergence."""
    near = whole = 0.0
    for f in found:
        credit = f["credit"][context].abs()
        place = torch.arange(len(credit)) - f["tau"]
        inside = (place >= -before) & (place <= after)
        whole += credit[inside].sum().item()
        near += credit[inside & (place.abs() <= width)].sum().item()
    return near / whole if whole else float("nan")


def continuations(model, tokenizer, rows, failed, n=8, max_new_tokens=256, seed=0):
    """Is tau causal? Success probability of going on, by n samples each from the plain prompt, with the failed rollout's token at tau, and with
    the peer's: ([share of right ones with its own token], [... with the peer's token]), one number a failure."""
    ends, found = set(eos_ids(model, tokenizer)), []
    for which in (1, 2):  # the place of the rollout, and of the peer, in a failure
        starts = [f[1][: f[3]] + [f[which][f[3]]] for f in failed]
        drawn = sample(
            model,
            [prompt_ids(tokenizer, rows[f[0]]["prompt"]) + s for f, s in zip(failed, starts)],
            n=n,
            max_new_tokens=max_new_tokens,
            eos=sorted(ends),
            vocabulary=len(tokenizer),
            keys=[("continue", seed, which, i, j) for i in range(len(failed)) for j in range(n)],
        )
        shares = []
        for i, (f, s) in enumerate(zip(failed, starts)):
            verdicts = []
            for c in drawn[n * i : n * i + n]:
                ids = s if s[-1] in ends else s + c.ids  # a rollout may leave its peer by ending
                verdicts.append(verify(tokenizer.decode(ids, skip_special_tokens=True), rows[f[0]]["answer"], c.truncated))
            shares.append(sum(verdicts) / n)
        found.append(shares)
    return tuple(found)
