"""Where the credit of hindsight self-distillation falls. Nothing here trains.

The credit of a token is A_t = log p(o_t) - log s(o_t): how much likelier the same model finds
the token when an answer or a peer is in its prompt. tau is the position at which a failed
rollout leaves its peer.
"""

import torch

from common import batches
from common.batches import log_probabilities, pack, states
from common.data import opened_thinking, privileged_prompt, prompt_ids
from common.grading import verify
from common.sampler import sample

BEFORE, AFTER = 30, 50  # tokens of the profile before and after tau


def leaves(ids, peer):
    """tau: number of the first token at which a rollout differs from its peer. None if one of
    them is the beginning of the other."""
    return next((t for t, (a, b) in enumerate(zip(ids, peer)) if a != b), None)


def failures(drawn, right, peers, G):
    """Failed rollouts that leave their peer: [(question, token ids, peer's token ids, tau)]."""
    found = []
    for i, (ok, p) in enumerate(zip(right, peers)):
        if not ok and p is not None:
            tau = leaves(drawn[i].ids, drawn[p].ids)
            if tau is not None:
                found.append((i // G, drawn[i].ids, drawn[p].ids, tau))
    return found


def expected(ids, peer, least=3):
    """What a reader who only copies the peer expects at every position: [N] token ids, or None
    where this reader cannot say.

    The reader knows where it is in the peer at the beginning, and wherever the last `least`
    tokens also stand in the peer. If they stand there several times, the longest match counts.
    """
    if not peer:
        return [None] * len(ids)
    best, agree = [], [0] * (len(peer) + 1)
    for t, token in enumerate(ids):
        # agree[j]: how many tokens before position t of the rollout and before position j of the
        # peer are the same.
        j = max(range(len(peer)), key=lambda j: (agree[j], -j))
        best.append(peer[j] if agree[j] >= least or agree[j] == t == j else None)
        agree = [0] + [agree[j] + 1 if token == peer[j] else 0 for j in range(len(peer))]
    return best


def copying_teacher(own, ids, peer, share=0.95):
    """The credit of a simulated teacher that understands nothing. Where it expects a token of the
    peer, it mixes `share` of that token into the student's distribution. This is the reference
    line of the profile: what copying alone looks like. own: log s(o_t), [N]."""
    credit = torch.zeros_like(own)
    for t, (token, wanted) in enumerate(zip(ids, expected(ids, peer))):
        if wanted is not None:
            p = (1 - share) * own[t].exp() + share * (token == wanted)
            credit[t] = p.log() - own[t]
    return credit


@torch.no_grad()
def credits(student, teacher, tokenizer, rows, failed, micro_tokens=16384):
    """The credit of every token of failed rollouts. One dictionary per failure:

    tau; student: log s(o_t), [N]; credit: {context: [N]} for the contexts "peer" (with the
    answer), "answer" and "copying" (simulated); there: {"student" or context: probability of the
    PEER's token at tau}.
    """
    found = [{"tau": tau, "credit": {}, "there": {}} for *_, tau in failed]

    def text(peer):
        return tokenizer.decode(peer, skip_special_tokens=True).strip()

    asked = [(rows[q]["prompt"], text(peer), rows[q]["answer"]) for q, _, peer, _ in failed]
    users = {
        "student": [problem for problem, _, _ in asked],
        "peer": [privileged_prompt(*both) for both in asked],
        "answer": [privileged_prompt(problem, answer=answer) for problem, _, answer in asked],
    }
    student.eval()
    for name, turns in users.items():
        prompts = [prompt_ids(tokenizer, turn) for turn in turns]
        model = student if name == "student" else teacher
        lengths = [len(p) + len(f[1]) for p, f in zip(prompts, failed)]
        for chosen in batches.micro_batches(lengths, micro_tokens):
            after = [failed[i][1] for i in chosen]
            ids, predicts, _ = pack([prompts[i] for i in chosen], after, student.device)
            hidden = states(model, ids, predicts).split([len(y) for y in after])
            for i, h in zip(chosen, hidden):  # the logits of one rollout at a time
                _, y, peer, tau = failed[i]
                logp = log_probabilities(model, h)  # [N, V]
                y = torch.tensor(y, device=h.device)
                written = logp.gather(1, y[:, None]).squeeze(1).cpu()  # [N]
                found[i]["there"][name] = logp[tau, peer[tau]].exp().item()
                if name == "student":
                    found[i]["student"] = written
                else:
                    found[i]["credit"][name] = written - found[i]["student"]
    for f, (_, y, peer, _) in zip(found, failed):
        f["credit"]["copying"] = copying_teacher(f["student"], y, peer)
    return found


def profile(found, context, before=BEFORE, after=AFTER):
    """Mean |A| at tau + d for d = -before .. after: ([d], [mean], [number of rollouts there])."""
    total, count = [0.0] * (before + after + 1), [0] * (before + after + 1)
    for f in found:
        credit = f["credit"][context].abs().tolist()
        for d in range(-before, after + 1):
            if 0 <= f["tau"] + d < len(credit):
                total[d + before] += credit[f["tau"] + d]
                count[d + before] += 1
    means = [t / c if c else float("nan") for t, c in zip(total, count)]
    return list(range(-before, after + 1)), means, count


def share_within(found, context, width, before=BEFORE, after=AFTER):
    """The share of all |A| in the profile's window that lies within `width` tokens of tau."""
    near = whole = 0.0
    for f in found:
        credit = f["credit"][context].abs()
        place = torch.arange(len(credit)) - f["tau"]
        inside = (place >= -before) & (place <= after)
        whole += credit[inside].sum().item()
        near += credit[inside & (place.abs() <= width)].sum().item()
    return near / whole if whole else float("nan")


def continuations(model, tokenizer, rows, failed, n=8, max_new_tokens=256, seed=0):
    """Is the token at tau the cause? The share of right solutions when the model goes on from the
    failed rollout's token at tau, and from the peer's token there. n samples each, from the plain
    prompt: ([share with its own token], [share with the peer's token]), one per failure."""
    shares, begun = [], opened_thinking(tokenizer)  # see `opened` of common/grading.py
    for which in (1, 2):  # the place of the rollout, and of its peer, in a failure
        starts = [f[1][: f[3]] + [f[which][f[3]]] for f in failed]
        prompts = [prompt_ids(tokenizer, rows[f[0]]["prompt"]) for f in failed]
        keys = [("continue", seed, which, i, j) for i in range(len(failed)) for j in range(n)]
        texts = [p + s for p, s in zip(prompts, starts)]
        drawn = sample(model, texts, n=n, max_new_tokens=max_new_tokens, keys=keys)
        right = []
        for i, (f, s) in enumerate(zip(failed, starts)):
            answer, verdicts = rows[f[0]]["answer"], []
            for c in drawn[n * i : n * i + n]:
                ids = s if s[-1] in model.ends else s + c.ids  # the token at tau may end the text
                text = begun + tokenizer.decode(ids, skip_special_tokens=True)
                verdicts.append(verify(text, answer, c.truncated))
            right.append(sum(verdicts) / n)
        shares.append(right)
    return tuple(shares)
