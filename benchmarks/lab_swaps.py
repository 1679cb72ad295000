"""The functions that the laboratory puts in place of a method's own, one at a time.

So this file also shows how to change a method without copying it: what is replaced is one function
of a method file, and everything else stays.
"""

import contextlib
import copy
import functools
import sys
from dataclasses import replace
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
import ar_opd  # noqa: E402
import hindsight_sd  # noqa: E402
import opd  # noqa: E402
import topd  # noqa: E402
from common.batches import Collected, log_probabilities, states  # noqa: E402
from common.data import privileged_prompt, prompt_ids  # noqa: E402
from common.models import load_model, load_tokenizer  # noqa: E402
from common.sampler import uniforms  # noqa: E402


@contextlib.contextmanager
def swapped(module, functions):
    """Inside of the block, functions of a module (or of a class) are replaced."""
    before = {name: getattr(module, name) for name in functions}
    for name, function in functions.items():
        setattr(module, name, function)
    try:
        yield
    finally:
        for name, function in before.items():
            setattr(module, name, function)


@functools.cache
def frozen(name):
    """A model as it is in its folder, whatever the run does to its own copy."""
    tokenizer = load_tokenizer(name)
    return load_model(name, torch.device("cpu"), torch.float32, tokenizer).requires_grad_(False)


# ======================================================================== OPD


def rollouts_of_the_start(student, tokenizer, rows, args, step):
    """Rollouts of the student as it was before the first update: they are not live."""
    return ORIGINAL["rollouts"](frozen(args.student), tokenizer, rows, args, step)


def text_of_the_teacher(student, tokenizer, rows, args, step):
    """The teacher writes, and the student learns the text by cross-entropy: two changes."""
    prompts, responses, _ = ORIGINAL["rollouts"](
        frozen(args.teacher), tokenizer, rows, args, step
    )
    return prompts, responses, [True] * len(responses)


# ======================================================================== TOPD


def comparison(losses, count, args, key):
    """As many positions at random, and as many of the lowest loss, for a comparison."""
    room = max(0, int(len(losses) - args.window_size / 2) + 1)  # half a window must be left
    random = uniforms(key, room).argsort()[:count].tolist()
    lowest = losses[:room].topk(min(count, room), largest=False).indices.tolist()
    return sorted(random), sorted(lowest)


def random_positions(losses, args):
    """As many positions as there would be candidates, anywhere in the rollout. Of these, those
    with the lowest D are dropped as ever."""
    count = len(ORIGINAL["candidates"](losses, args))
    key = ("random positions", args.seed, round(losses.sum().item(), 4))
    return comparison(losses, count, args, key)[0]


def exact_plans(costs, epsilon, device="cpu"):
    """The plan that D is measured with. It is a permutation, so the targets are hard."""
    return [topd.exact_plan(cost) for cost in costs]


def positional_plan(costs, epsilon, device="cpu"):
    """The identity: position i learns the teacher's token i, whatever stands there. So the targets
    are hard, too."""
    return [torch.eye(len(c)) / len(c) for c in costs]


def shuffled_plan(costs, epsilon, device="cpu"):
    """The true plan with the teacher's positions in random order: the same weights, on the
    wrong tokens."""
    generator = torch.Generator().manual_seed(round(sum(c.sum().item() for c in costs) * 1e4))
    plans = ORIGINAL["sinkhorn"](costs, epsilon, device)
    return [plan[torch.randperm(len(plan), generator=generator)] for plan in plans]


def self_targets(points, args, device="cpu"):
    """The student's own tokens as its target. This sharpens it, without a teacher."""
    for p in points:
        p.teacher, p.weights = p.student, torch.eye(len(p.student))


def forcing_update(student, teacher, optimizer, batch, args, step, compute):
    """Cross-entropy on the teacher's window in the TEACHER's context: ordinary distillation
    on a few windows. topd.py has (8) only in the student's context, so this is an update of
    its own.

    It computes the gradient of its own L_traj. Then `topd.update` without guidance adds the
    gradient of L_OPD to it, clips the sum and makes the step. Both have the same look ahead.
    """
    prompts, responses = batch
    ahead = points, losses, _ = topd.look_ahead(student, teacher, batch, args, compute)
    kept, _ = topd.divergent(points, args)
    before = [prompts[p.row] + responses[p.row][: p.t] for p in kept]  # x, y_<t
    windows = [p.teacher for p in kept]
    lengths, collected = torch.tensor([len(w) for w in windows]), Collected(windows)

    def loss_of_positions(hidden, targets, length):
        logp = log_probabilities(student, hidden)  # [n, V]
        loss = -logp.gather(1, targets[:, None]).squeeze(1)  # [n]
        return (loss / length).sum(), loss.detach()  # the mean over the tokens of a window

    student.train()
    for chosen in compute.micro_batches(before, windows):
        ids, predicts, targets = compute.pack(before, windows, chosen)
        length = compute.per_token(lengths, windows, chosen)  # [N]
        with compute.phase("student"):
            with compute.autocast():
                hidden = states(student, ids, predicts)  # [N, width]
                traj, stats = compute.in_chunks(loss_of_positions, hidden, targets, length)
            compute.backward(args.lam / len(kept) * traj)  # (9): lambda and the mean over d
        collected.add(chosen, stats, traj.item())
    _, *traj = collected.everyone()
    traj = sum(traj) / max(1, len(kept))
    unguided = copy.copy(args)
    unguided.guidance = "off"
    with swapped(topd, {"look_ahead": lambda *_: ahead}):
        metrics, *_ = ORIGINAL["update"](
            student, teacher, optimizer, batch, unguided, step, compute
        )
    for p in kept:
        p.weights = torch.eye(len(p.teacher))  # a point with weights is shown as a divergent one
    metrics |= {"traj": traj, "loss": metrics["opd"] + args.lam * traj}
    return metrics, losses, points


# ======================================================================== AR-OPD


def arithmetic_target(partial_logp, full_logp, lam, clip):
    """A control for ar_opd.py's target: the mixture of the probabilities, not of their logarithms.
    Here a token needs support in EITHER view; in (4) it needs support in both."""
    weights = torch.tensor([1 - lam, lam]).log()
    both = torch.stack([partial_logp, full_logp], -1) + weights.to(partial_logp)
    return both.logsumexp(-1), torch.zeros(len(partial_logp)).to(partial_logp)  # [n, V], [n]


def views_of_equal_length(row, args):
    """The partial view shows its half twice. So it is about as long as the whole solution, and
    tells no more than before."""
    half = ar_opd.first_part(row["solution"], args.rho)
    return ORIGINAL["views"](row, args) | {
        "partial": privileged_prompt(row["prompt"], f"{half} {half}")
    }


# ======================================================================== HSD


def wrong_peer(i, right, scores, rule, key):
    """A FAILED other rollout as the peer, with the right answer beside it, where HSD would show a
    successful one. (Where no other rollout failed, the answer alone is shown.)"""
    if not any(ok for j, ok in enumerate(right) if j != i):
        return None
    others = [j for j, ok in enumerate(right) if not ok and j != i]
    return others[int(uniforms(("peer", *key), 1).item() * len(others))] if others else None


def other_contexts(rows, drawn, tokenizer, args, step):
    """Where a rollout would see a peer, it sees a successful rollout of ANOTHER question of
    the batch, beside the right answer to its own question. (Where no other question was solved,
    the answer alone is shown.)"""
    contexts = ORIGINAL["build_contexts"](rows, drawn, tokenizer, args, step)
    G = args.samples
    texts, _ = hindsight_sd.verdicts(tokenizer, rows, drawn, G)
    prompts = list(contexts.prompts)
    for i, peer in enumerate(contexts.peers):
        strangers = [j for j, ok in enumerate(contexts.right) if ok and j // G != i // G]
        if peer is not None:
            draw = uniforms(("stranger", args.seed, step, i), 1).item()
            text = texts[strangers[int(draw * len(strangers))]] if strangers else None
            user = privileged_prompt(rows[i // G]["prompt"], text, rows[i // G]["answer"])
            prompts[i] = prompt_ids(tokenizer, user)
    return replace(contexts, prompts=prompts)


def context_without_answer(row, peer, args):
    if peer is None:
        return ORIGINAL["context"](row, peer, args)
    return privileged_prompt(row["prompt"], peer)


def successes_only(rows, drawn, tokenizer, args, step):
    """Failed rollouts carry no loss: a context of None means that."""
    contexts = ORIGINAL["build_contexts"](rows, drawn, tokenizer, args, step)
    prompts = [p if ok else None for p, ok in zip(contexts.prompts, contexts.right)]
    return replace(contexts, prompts=prompts)


# ======================================================================== their names

SWAPS = {  # {name: (method, {function: its replacement})}
    "start's rollouts": (opd, {"rollouts": rollouts_of_the_start}),
    "teacher's text": (opd, {"rollouts": text_of_the_teacher}),
    "random": (topd, {"candidates": random_positions}),
    "exact": (topd, {"sinkhorn": exact_plans}),
    "positional": (topd, {"sinkhorn": positional_plan}),
    "shuffled": (topd, {"sinkhorn": shuffled_plan}),
    "self": (topd, {"soft_targets": self_targets}),
    "forcing": (topd, {"update": forcing_update}),
    "arithmetic": (ar_opd, {"anchored_target": arithmetic_target}),
    "equal lengths": (ar_opd, {"views": views_of_equal_length}),
    "wrong": (hindsight_sd, {"choose_peer": wrong_peer}),
    "other": (hindsight_sd, {"build_contexts": other_contexts}),
    "no_answer": (hindsight_sd, {"context": context_without_answer}),
    "successes": (hindsight_sd, {"build_contexts": successes_only}),
}
ORIGINAL = {name: getattr(m, name) for m, functions in SWAPS.values() for name in functions}
