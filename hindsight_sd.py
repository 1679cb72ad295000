"""Hindsight self-distillation (HSD): a model learns on its own rollouts. Its teacher is the same
model after it has seen a successful rollout.

After Yu Li, Shu Hong and Tian Lan, "Localizing Credit at the Divergence: Path-Conditioned
Self-Distillation for LLM Reasoning" (arXiv 2606.15576). The idea. A verifier says only that a
whole response is right or wrong. It does not say which token was at fault. But the same model,
with more than the problem in its prompt, can be a teacher for every token. If it sees only the
final answer, that teacher says little in the middle of a long solution. A PEER is another, right
rollout of the same question, so it costs no further sampling. With the peer's text in its prompt
the teacher disagrees where the failed rollout leaves the peer's path. This disagreement is the
loss. By default the rewards only choose the peers.

    o_1 .. o_G ~ pi(. | q),   R_i in {0, 1}              a group of rollouts, verified        (1)
    c_i = (a*, o_j), j uniform among the OTHER successful rollouts of the group;
          the answer a* alone if there is none                                                (2)
    p_t = stopgrad pi(. | q, c_i, o_i,<t)                teacher: with the context
    s_t = pi(. | q, o_i,<t)                              student: the same weights, without   (3)
    l_it = sum_v p_t(v) [ log p_t(v) - log s_t(v) ]      KL(teacher || student)               (4)
    L = mean over questions of (1/G) sum_i (1/|o_i|) sum_t l_it  +  beta KL(pi || pi_0)       (5)

q is the question and a* its answer. A group is the G rollouts of one question. R_i is 1 if rollout
o_i is right. |o_i| is its number of tokens, and o_i,<t are those before t. pi is the model, and
pi_0 a frozen copy of it from the start.

A name to be careful with: (4) is KL(teacher || student), the forward KL of the literature. The
paper calls it "reverse". Here it is --divergence forward.

[paper] stated there, [inferred] follows from what is stated, [ours] our choice where it is silent:
  [paper]     1. (1) to (5), with the exact sum over the vocabulary in (4), because the authors
              found the estimate from the sampled token unstable; G = 8; successful rollouts are
              trained, too; beta = 1e-3; AdamW with betas .9 and .95 and without weight decay.
              2. the teacher has the CURRENT weights, not an average and not a frozen copy.  3. a
              rollout that was cut without an answer has failed.
  [inferred]  4. the peer is drawn anew for each rollout.  5. one optimizer step per batch, so it is
              exactly on-policy, without ratio and clip. Where a rollout leaves its peer is not used
              in training; `python benchmarks/hindsight_toy.py` measures the credit there.
  [ours]      6. temperature 1 and no top-p (the paper: top-p .95), so a peer is an exact sample of
              the policy's successes.  7. the beta term is the exact KL at the rollout's states, as
              a mean over its tokens.  8. rollouts without the distillation loss (--train failures,
              --fallback mask) still count in the mean.  9. a prompt is never cut. A question whose
              longest possible prompt does not fit is left out at the start and counted.  10. on the
              toy a rollout without a peer has no distillation loss (--fallback answer: the
              paper's), and the teacher is a slow average of the student (--teacher current: the
              paper's).  11. updates of 8 questions, a warm-up, a clip of the gradient at 1, and on
              the toy a rate of 1e-4. (The paper: 128 questions, no warm-up, a rate of 1e-6.)

Run it:
    python hindsight_sd.py                       the toy, minutes; with a GPU: Qwen3-0.6B
    python hindsight_sd.py --context answer      the baseline without peers, the paper's "OPSD"
    python hindsight_sd.py --context reference --teacher frozen      close to OPSD (2601.18734)
    python hindsight_sd.py --context answer --rl_weight 0.5      the paper's "GRPO + OPSD"
    python hindsight_sd.py --divergence jsd --teacher ema --ema 0.05 --fallback mask
                                                 three choices of SDPO (2601.20802; it also
                                                 has a clip and other peers)
    python grpo.py                               the baseline without any teacher
Before the first update it prints how often the student is right when it GENERATES with each
context. If the student is no better with a right peer than without one, the teacher has nothing
to teach. If another question's peer helps as much, the student ignores what the peer says. Which
claims hold on the toy, and which do not: RESULTS.md and benchmarks/README.md.
"""

# This comes first: from here on Ctrl-C gives no traceback, also while torch is loaded.
from common.arguments import choice, either, require, run_script

# isort: split
import math
from dataclasses import dataclass

import torch

from common.batches import Collected, log_probabilities, rollout_statistics, states
from common.data import privileged_prompt, prompt_ids
from common.diagnostics import group_statistics
from common.evaluation import verdicts
from common.flags import Common, in_range, parse
from common.gate import peer_gate
from common.memory import within_memory
from common.run import Run
from common.sampler import draw, uniforms
from common.views import print_views
from common.weights import adamw, clip_gradient, copy_of, follow


# ======================================================================== flags
@dataclass
class Args(Common):
    student: str = either("toy/reader2", "Qwen/Qwen3-0.6B")
    """model that learns from itself: a folder or a hub name"""
    prompts: int = 8
    """questions per update"""
    samples: int = 8
    """G: rollouts per question, the group in which peers are found"""
    max_new_tokens: int = either(160, 512)
    """a rollout is cut after so many tokens"""
    # The toy's rate, fallback and teacher: "The scripts as they are" in RESULTS.md.
    lr: float = either(1e-4, 1e-6)
    """AdamW's learning rate, after a linear warm-up over the first 5 % of the updates"""
    context: str = choice("peer", "peer", "answer", "reference")
    """what the teacher sees. peer: the answer and a peer; answer: the answer alone; reference: the
    data's solution"""
    peer: str = choice("uniform", "uniform", "shortest", "low_ppl", "high_ppl")
    """which of the other successful rollouts. uniform: any; shortest: the shortest; low_ppl,
    high_ppl: the one whose tokens the student finds most likely, or least likely"""
    # The paper's fallback: the answer. On the toy a teacher with the answer alone hardly reads it,
    # and HSD learns more without it: H7 in RESULTS.md.
    fallback: str = either("mask", "answer", "answer", "mask")
    """what happens to a rollout without a peer. answer: its teacher sees the answer alone; mask: it
    carries no distillation loss (SDPO)"""
    train: str = choice("all", "all", "failures")
    """the rollouts that carry the distillation loss"""
    divergence: str = choice("forward", "forward", "reverse", "jsd")
    """forward: KL(teacher || student), the paper's; reverse: KL(student || teacher); jsd:
    Jensen-Shannon, half and half (SDPO)"""
    # The paper's teacher: current. In the toy's pilots of this script a slow average teaches more.
    teacher: str = either("ema", "current", "current", "ema", "frozen")
    """the teacher's weights. current: the student's own of this update; ema: a moving average of
    them (SDPO); frozen: those of the start (OPSD)"""
    ema: float = either(0.01, 0.05)
    """rate of the moving average after every update (SDPO: 0.05)"""
    beta: float = 1e-3
    """weight of KL(student || frozen start); 0: off, and no copy of the start is kept for it"""
    rl_weight: float = 0.0
    """w in (1 - w) x distillation + w x GRPO's policy gradient; 0.5 is half and half"""


def check(args):
    """Refuse what cannot work before anything is loaded."""
    require(
        args.samples >= 2 or (args.context != "peer" and args.rl_weight == 0),
        "--samples is 1, and a rollout cannot be its own peer or its own baseline; use --samples "
        "8, or --context answer without --rl_weight.",
    )
    in_range(args, "beta", "[0, inf)", "0: off")
    in_range(args, "rl_weight", "[0, 1)", "for 1: python grpo.py")
    in_range(args, "ema", "(0, 1]", "for a teacher that stays as it is: --teacher frozen")
    return args


# ======================================================================== 1. a group of rollouts
def rollouts(student, rows, args, step):
    """(1): G = --samples responses to every question, row by row, as Completions."""
    return draw(student, [r["ids"] for r in rows], args, step)  # (1)


# ======================================================================== 2. contexts
def choose_peer(i, right, scores, rule, key):
    """(2): the number of the peer of rollout i in its group, or None.

    right: [G] verdicts. scores: [G] pairs (length, mean log p). A rollout is never its own peer:
    a teacher that has just read these very tokens would only confirm them. (Another rollout with
    the same tokens can be its peer. The paper does not exclude that.)
    """
    others = [j for j, ok in enumerate(right) if ok and j != i]
    if not others:
        return None
    if rule == "uniform":
        return others[int(uniforms(("peer", *key), 1).item() * len(others))]
    cost = {
        "shortest": lambda j: scores[j][0],
        "low_ppl": lambda j: -scores[j][1],
        "high_ppl": lambda j: scores[j][1],
    }[rule]
    return min(others, key=lambda j: (cost(j), j))


def context(row, peer, args):
    """(2): the user's turn in the teacher's prompt, or None if the rollout is masked.

    The peer's text stands inside the user's turn. If it stood behind the problem with its own
    end-of-turn token, the model would read a finished conversation.
    """
    if args.context == "reference":
        return privileged_prompt(row["prompt"], row["solution"])
    if args.context == "peer" and peer is not None:
        return privileged_prompt(row["prompt"], peer, row["answer"])
    if args.context == "peer" and args.fallback == "mask":
        return None
    return privileged_prompt(row["prompt"], answer=row["answer"])


@dataclass
class Contexts:
    """What the verifier and the choice of peers decided, one entry per rollout.

        group of q, G = 4   A right  B wrong  C wrong  D right
        peer                D        A or D   A or D   A
        teacher of B reads  q, text of A (or D), a*; then B
    """

    right: list  # R_i
    peers: list  # number of the peer in the batch, or None
    prompts: list  # token ids of the teacher's prompt, or None for a masked rollout


def build_contexts(rows, drawn, tokenizer, args, step):
    """(1) and (2) for the whole batch."""
    G = args.samples
    # The verdicts come first: only right rollouts can be peers.
    texts, right = verdicts(tokenizer, rows, drawn, G)  # (1): R_i
    # Length and mean log p, for the rules of --peer other than uniform.
    scores = [(len(c.ids), sum(c.logprobs) / len(c.ids)) for c in drawn]
    peers, prompts = [], []
    for i in range(len(drawn)):
        q, own = divmod(i, G)  # the question, and the rollout's number in its group
        group = slice(q * G, (q + 1) * G)
        # The key makes the choice a function of (seed, step, question, rollout). Each rollout
        # draws its own peer, so one lucky solution does not teach the whole group.
        key = args.seed, step, q, own
        in_group = choose_peer(own, right[group], scores[group], args.peer, key)  # (2)
        peer = None if in_group is None else q * G + in_group
        # The texts have lost their end-of-turn token in `verdicts`. Otherwise the prompt would
        # contain the end of another conversation.
        user = context(rows[q], None if peer is None else texts[peer], args)
        peers.append(peer)
        prompts.append(None if user is None else prompt_ids(tokenizer, user))
    return Contexts(right, peers, prompts)


def longest_context(row, tokenizer, args):
    """A list as long as the teacher's longest prompt for this question: with a peer of
    --max_new_tokens tokens. Only its length is used."""
    peer_tokens = args.max_new_tokens if args.context == "peer" else 0
    return prompt_ids(tokenizer, context(row, " ", args)) + [0] * peer_tokens


# ======================================================================== 3. the loss
def divergence(teacher_logp, student_logp, kind):
    """(4): [n], from log-probabilities [n, V]; a sum over the vocabulary. The TEACHER comes first,
    as in (4)."""
    if kind == "forward":  # the paper's: large where the teacher has mass that the student lacks
        return (teacher_logp.exp() * (teacher_logp - student_logp)).sum(-1)  # (4)
    if kind == "reverse":
        return (student_logp.exp() * (student_logp - teacher_logp)).sum(-1)
    mixture_logp = torch.logaddexp(teacher_logp, student_logp) - math.log(2)  # [n, V]
    teacher_part = (teacher_logp.exp() * (teacher_logp - mixture_logp)).sum(-1)
    student_part = (student_logp.exp() * (student_logp - mixture_logp)).sum(-1)
    return 0.5 * (teacher_part + student_part)


def advantages(right, G):
    """The advantages of GRPO, used with --rl_weight: (R - mean) / standard deviation within the
    group, [n]. In a group where all rollouts are right, or all wrong, they are 0."""
    R = torch.tensor(right, dtype=torch.float32).view(-1, G)  # [questions, G]
    spread = R.std(1, correction=0, keepdim=True)  # [questions, 1]
    scaled = (R - R.mean(1, keepdim=True)) / spread.clamp(min=1e-6)
    return torch.where(spread > 0, scaled, torch.zeros_like(R)).flatten()


def token_weights(drawn, contexts, args):
    """(5): one [n_i, 3] per rollout, the weight of each of its tokens in the distillation, in the
    KL to the start, and in the policy gradient.

    Every group has G rollouts. So the two outer means of (5) are one division by the number of
    rollouts, n. A token of a long rollout weighs less than one of a short rollout.
    """
    n, weights = len(drawn), []
    gain = advantages(contexts.right, args.samples) if args.rl_weight else torch.zeros(n)
    for i, c in enumerate(drawn):
        token = 1 / (n * len(c.ids))  # (5)
        masked = contexts.prompts[i] is None or (args.train == "failures" and contexts.right[i])
        distil = 0.0 if masked else (1 - args.rl_weight) * token
        row = [distil, args.beta * token, args.rl_weight * gain[i].item() * token]
        weights.append(torch.tensor([row]).expand(len(c.ids), 3))
    return weights


# ======================================================================== 4. one update
# What is measured at every token, masked or not. The means go into metrics.jsonl.
STATISTICS = "distance", "kl", "kl_start", "credit", "student_entropy", "teacher_entropy"


def update(student, teacher, start, optimizer, batch, args, compute):
    """One optimizer step along the gradient of (5). start: the frozen pi_0, or None. batch:
    questions, rollouts, contexts. Returns metrics, and the loss (4) of every token."""
    rows, drawn, contexts = batch
    G, responses = args.samples, [c.ids for c in drawn]
    plain = [rows[i // G]["ids"] for i in range(len(drawn))]
    # A masked rollout has no distillation loss. It is scored with its plain prompt, so that the
    # code below has no special case.
    prompts = [p if p is not None else q for p, q in zip(contexts.prompts, plain)]
    # All weights are known before the first micro-batch. So the result does not depend on how
    # the batch is cut.
    weights, collected = token_weights(drawn, contexts, args), Collected(responses)

    def loss_of_positions(student_hidden, teacher_hidden, start_hidden, targets, weight):
        """(sum of the loss, statistics [n, 6]) of a few positions at a time. Three distributions
        over all positions, [N, V] each, would not fit into memory."""
        student_logp = log_probabilities(student, student_hidden)  # [n, V], log s_t
        written_logp = student_logp.gather(1, targets[:, None]).squeeze(1)  # [n], log s_t(o_t)
        with torch.no_grad():  # the stopgrad of (3): the teacher can be the student itself
            teacher_logp = log_probabilities(teacher, teacher_hidden)  # [n, V], log p_t
            teacher_written = teacher_logp.gather(1, targets[:, None]).squeeze(1)  # [n]
        distance = divergence(teacher_logp, student_logp, args.divergence)  # [n], (4)
        drift = torch.zeros_like(distance)
        if start_hidden is not None:
            with torch.no_grad():
                start_logp = log_probabilities(start, start_hidden)  # [n, V]
            # The KL(pi || pi_0) of (5), exact over the vocabulary.
            drift = (student_logp.exp() * (student_logp - start_logp)).sum(-1)  # [n]
        # (5), and GRPO's policy gradient. On-policy, GRPO's ratio is 1 and never clipped. Its
        # gradient is that of advantage x log s.
        loss = weight[:, 0] * distance + weight[:, 1] * drift - weight[:, 2] * written_logp
        with torch.no_grad():  # only to be looked at
            kl = divergence(teacher_logp, student_logp, "forward")  # [n]
            credit = (teacher_written - written_logp).abs()  # [n], |log p_t(o_t) - log s_t(o_t)|
            entropies = [-(x.exp() * x).sum(-1) for x in (student_logp, teacher_logp)]  # [n] each
            columns = [distance, kl, drift, credit, *entropies]
            stats = torch.stack(columns, 1)  # [n, 6], as STATISTICS
        return loss.sum(), stats

    student.train()  # gradient checkpointing works in this mode only; there is no dropout
    # Micro-batches are cut for the teacher's prompts, because these are longer.
    for chosen in compute.micro_batches(prompts, responses):
        # The rollout's token ids stand behind the teacher's prompt as they are. Tokenized again,
        # the text could be cut differently, and (4) would compare other positions.
        with compute.phase("teacher"), torch.no_grad(), compute.autocast():
            ids, predicts, _ = compute.pack(prompts, responses, chosen)
            teacher_hidden = states(teacher, ids, predicts)  # [N, width], (3): with the context
            # pi_0 reads what the student reads, without the context: (5) compares these two.
            ids, predicts, targets = compute.pack(plain, responses, chosen)
            start_hidden = states(start, ids, predicts) if args.beta else None  # [N, width]
        weight = torch.cat([weights[i] for i in chosen]).to(ids.device)  # [N, 3]
        # The student sees the plain prompt only, as at test time.
        with compute.phase("student"):
            with compute.autocast():
                student_hidden = states(student, ids, predicts)  # [N, width], (3): without it
                tensors = student_hidden, teacher_hidden, start_hidden, targets, weight
                loss, stats = compute.in_chunks(loss_of_positions, *tensors)
            # The weights hold all means, so gradients of micro-batches add up.
            compute.backward(loss)
        collected.add(chosen, stats, loss.item())
    stats, loss = collected.everyone()

    # One step. The norm of the gradient is cut at 1, so one odd batch cannot ruin the student.
    with compute.phase("step"):
        norm = clip_gradient(student, 1.0, compute.loss_scale)
        if math.isfinite(norm):  # a step along NaN would destroy the weights for good
            optimizer.step()
            if args.teacher == "ema":  # after the step, so that the next update sees it
                follow(teacher, student, args.ema)
        optimizer.zero_grad(set_to_none=True)
    means = dict(zip(STATISTICS, torch.cat(stats).mean(0).tolist()))
    del means["distance"]  # the names of a rollout's colours; "loss" is its weighted sum
    if not args.beta:
        del means["kl_start"]  # it was not measured
    metrics = {"loss": loss, **means, "grad_norm": norm}
    metrics |= group_statistics(rows, contexts.right, contexts.peers, G)
    metrics |= rollout_statistics(responses, student.ends)
    return metrics, [s[:, 0] for s in stats]


# ======================================================================== training
def main(argv=None):
    args = check(parse(Args, __doc__, argv, "hindsight_sd"))
    run = Run(args, "hindsight_sd")  # device, folder, tokenizer, problems, checkpoint
    require(
        args.context != "reference" or all(r["solution"] for r in run.rows),
        f"'{args.data}' has rows without a solution for --context reference; use --context peer, "
        "or a file with the column solution.",
    )
    if args.context == "reference":
        run.check_words("solution")
    student = run.load_student()
    # A resumed run needs the same pi_0. So it comes from --student, not from the checkpoint.
    keep_start = args.beta > 0 or args.teacher == "frozen"
    start = run.load(args.student) if keep_start else None
    average = copy_of(student) if args.teacher == "ema" else None
    teacher = {"current": student, "ema": average, "frozen": start}[args.teacher]
    optimizer = adamw(student, args.lr, args.adam_bits, betas=(0.9, 0.95))
    run.begin(
        student,
        optimizer,
        teacher=None if teacher is student else teacher,
        more=[start] if start is not None and start is not teacher else [],
        longest=lambda row: longest_context(row, run.tokenizer, args),
        average=average,
    )
    for row in run.rows:
        row["ids"] = prompt_ids(run.tokenizer, row["prompt"])
    with_peer, alone = (context(run.rows[0], p, args) for p in ("(a right rollout)", None))
    print_views(run.rows[0], student=run.rows[0]["prompt"], with_peer=with_peer, alone=alone)
    if run.fresh:
        accuracies = peer_gate(run, student)  # what can each context teach?
        run.log(0, eval=run.accuracy_and_variety(student), gate=accuracies)

    for step in run.updates():  # sets the learning rate, and saves checkpoints
        rows = run.problems(step)
        with run.phase("sample"), run.autocast():
            drawn = rollouts(student, rows, args, step)
        with run.phase("verify"):
            contexts = build_contexts(rows, drawn, run.tokenizer, args, step)
        batch = rows, drawn, contexts
        metrics, losses = within_memory(
            update, student, teacher, start, optimizer, batch, args, run.compute
        )
        run.log(step, **metrics)
        run.show(step, drawn[0].ids, losses[0], "loss")
        if run.evaluates(step):
            run.log(step, eval=run.accuracy_and_variety(student))
            title = f"hindsight_sd.py: {args.student} learns from itself on {args.data}"
            run.draw(f"{title} ({args.context})", "KL(teacher || student) on own rollouts")
    run.finish(baseline=f"python {'grpo.py' if args.context == 'peer' else 'hindsight_sd.py'}")


if __name__ == "__main__":
    run_script(main)
