"""On-policy distillation (OPD): a student learns from a teacher on text that the student wrote.

The idea. Ordinary distillation trains the student on the teacher's text. So the student never
sees the states that its own mistakes lead to. Here the student writes the responses and the
teacher reads them: at every position both models say how likely each next token is. The loss is
how much they disagree there, so the student learns at the states that it reaches itself. The
teacher grades every token. A verifier would say only right or wrong for the whole response. There
is no reward and no critic.

    y ~ p_S(. | x)                                     the student's rollout, temperature 1   (1)
    l_t = KL( p_S(. | x, y_<t) || p_T(. | x, y_<t) )   reverse KL, whole vocabulary           (2)
    L   = sum of l_t over all tokens of the batch / number of these tokens                    (3)

x is the prompt, y the response, and y_<t its tokens before t. p_S and p_T are the next-token
distributions of student and teacher. A response that the student has sampled is called a rollout.
A state is the prompt with the tokens so far.

Sources: Agarwal et al., "On-policy distillation of language models" (GKD, arXiv 2306.13649);
Gu et al., "MiniLLM" (2306.08543); the on-policy stage of the Qwen3 report (2505.09388).

[paper] stated in GKD, [code] done by GKDTrainer of the package TRL, [ours] our choice:
  [paper]     1. rollouts at temperature 1. A share of the batch can be text of the data instead,
              with the same divergence.  2. the gradient of (2) goes through p_S at each state, and
              not through the sampling: that a token changes the later states is ignored.  3. the
              divergence is a choice: reverse KL, forward KL, or a Jensen-Shannon divergence between
              them (--divergence, --beta).  4. a mean over the tokens of a rollout, then over
              rollouts.
  [code]      5. (3), a mean over all tokens of the batch: a token weighs the same in every rollout.
  [ours]      6. (3) as in note 5.  7. reverse KL is the default. It is mode seeking: the student
              may leave out some of what the teacher does, and it avoids what the teacher does not
              do.  8. the sum over the vocabulary in (2) is exact. --estimator sampled uses only the
              sampled token, as RL code bases do, and --estimator topk the k largest ones.  9. one
              optimizer step per batch of rollouts. So the rollouts are on-policy (without
              --off_policy), and neither an importance ratio nor its clipping is needed.  10. with
              --off_policy a share of the rollouts is replaced by worked solutions of the data. They
              are learnt by cross-entropy, so a share of 1 is supervised fine-tuning (SFT).  11. the
              gradient of a KL between whole texts has one more term for each t: the sum of the
              later losses times the gradient of log p_S(y_t). Its variance is high. Note 2 says
              that it is left out.

Run it:
    python opd.py             the toy, two minutes; with a GPU: Qwen3-0.6B learns from Qwen3-4B
    python opd.py --student Qwen/Qwen3-0.6B --teacher Qwen/Qwen3-4B --data gsm8k --out runs/mine
    python opd.py --resume --out runs/mine             continue it, bit for bit on a CPU
"""

# This comes first: from here on Ctrl-C gives no traceback, also while torch is loaded.
from common.arguments import choice, either, require, run_script

# isort: split
import math
from dataclasses import dataclass

import torch

from common.batches import Collected, log_probabilities, rollout_statistics, states
from common.flags import Common, at_least, in_range, parse
from common.memory import within_memory
from common.run import Run
from common.sampler import draw, uniforms
from common.weights import adamw, clip_gradient


# ======================================================================== flags
@dataclass
class Args(Common):
    student: str = either("toy/student", "Qwen/Qwen3-0.6B")
    """model that learns: a folder or a hub name"""
    teacher: str = either("toy/teacher", "Qwen/Qwen3-4B")
    """model that scores; its tokenizer must be the student's"""
    prompts: int = 16
    """prompts per update"""
    samples: int = 4
    """rollouts per prompt; the batch is prompts x samples"""
    max_new_tokens: int = either(160, 512)
    """a rollout is cut after so many tokens"""
    # The toy's rate: "All pilots" in RESULTS.md.
    lr: float = either(1e-3, 1e-5)
    """AdamW's learning rate, after a linear warm-up over the first 5 % of the updates"""
    temperature: float = 1.0
    """temperature of the rollouts AND of the distributions in the loss; if they differed, the
    rollouts would be off-policy"""
    divergence: str = choice("reverse", "reverse", "forward", "jsd")
    """reverse: KL(student || teacher); forward: KL(teacher || student); jsd: see --beta"""
    beta: float = 0.5
    """of jsd: beta KL(T || M) + (1 - beta) KL(S || M) with M = beta T + (1 - beta) S; for a small
    beta it is about beta times the forward KL"""
    estimator: str = choice("full", "full", "topk", "sampled")
    """full: exact sum over the vocabulary; topk: --top_k tokens and one bucket for the rest;
    sampled: the sampled token only (each needs the logits of the whole vocabulary, so topk saves no
    memory here)"""
    top_k: int = 16
    """of --estimator topk: tokens with a bucket of their own"""
    off_policy: float = 0.0
    """probability that a rollout is replaced by the data's solution, which is learnt by
    cross-entropy (1: SFT)"""


def check(args):
    """Refuse what cannot work before anything is loaded."""
    in_range(args, "temperature", "(0, 100)", "rollouts are sampled, so it is above 0")
    in_range(args, "beta", "(0, 1)", "there is also --divergence forward or reverse")
    in_range(args, "off_policy", "[0, 1]", "it is a share")
    at_least(args, 1, "top_k")
    require(
        args.estimator != "sampled" or args.divergence == "reverse",
        "--estimator sampled estimates the reverse KL; use it with --divergence reverse.",
    )
    return args


# ======================================================================== 1. rollouts
def rollouts(student, tokenizer, rows, args, step):
    """(1): `samples` responses to every row. Returns prompts, responses (lists of token ids), and
    for each response whether it is off-policy."""
    prompts = [r["ids"] for r in rows for _ in range(args.samples)]
    keys = [(args.seed, step, i, j) for i in range(len(rows)) for j in range(args.samples)]
    off_policy = [uniforms(("off-policy", *key), 1).item() < args.off_policy for key in keys]
    drawn = [None] * len(keys)
    # With a share between 0 and 1 those that are replaced are drawn, too. So the batches of the
    # sampler, and with them its rounding, do not depend on the share.
    if not all(off_policy):
        # No top-p and no top-k: the loss uses the full softmax, and a filtered sampler would visit
        # other states.
        drawn = draw(student, [r["ids"] for r in rows], args, step, args.temperature)  # (1)
    responses = []
    for i, off in enumerate(off_policy):
        if off:
            # The end-of-turn token belongs to the text. Without it the student never learns to end.
            text = rows[i // args.samples]["solution"]
            ids = tokenizer(text, add_special_tokens=False)["input_ids"]
            responses.append([*ids, student.turn_end][: args.max_new_tokens])
        else:
            responses.append(drawn[i].ids)
    return prompts, responses, off_policy


# ======================================================================== 2. divergence
def divergence(student_logp, teacher_logp, kind="reverse", beta=0.5):
    """(2): the divergence at every state, [n], from log-probabilities [n, V]. It is a sum over the
    vocabulary. A mean over the vocabulary would be V times smaller.

    F.kl_div is not used, because it is easy to swap its arguments: F.kl_div(log_p, q) is
    KL(q || p).
    """
    if kind == "reverse":
        # Expectation under the student: high where the student has mass and the teacher has not.
        return (student_logp.exp() * (student_logp - teacher_logp)).sum(-1)  # (2)
    if kind == "forward":
        # Expectation under the teacher: high where the teacher has mass and the student has not.
        return (teacher_logp.exp() * (teacher_logp - student_logp)).sum(-1)
    mixture_logp = torch.logaddexp(  # [n, V], M = beta T + (1 - beta) S
        teacher_logp + math.log(beta), student_logp + math.log(1 - beta)
    )
    teacher_part = (teacher_logp.exp() * (teacher_logp - mixture_logp)).sum(-1)
    student_part = (student_logp.exp() * (student_logp - mixture_logp)).sum(-1)
    return beta * teacher_part + (1 - beta) * student_part


def buckets(student_logp, teacher_logp, k, kind):
    """Both distributions over k single tokens and one bucket with all other mass: [n, k + 1].

    With the bucket these are true distributions, so their divergence is never negative and never
    above the full one. Without it there are two known mistakes. If the k probabilities are
    renormalised, the loss ignores the other tokens (with k = 1 the loss is always 0). If they are
    not, the sum can be negative. Then the student is rewarded for moving mass out of the k tokens
    (reverse KL), or into them (forward KL).
    """
    if k >= student_logp.shape[-1]:
        return student_logp, teacher_logp
    # The k tokens that matter most: the likeliest ones of the distribution that weighs the sum.
    # (In jsd both do. The teacher's tokens are taken.)
    weights = student_logp if kind == "reverse" else teacher_logp
    chosen = weights.detach().topk(k).indices  # [n, k]
    is_chosen = torch.zeros_like(student_logp, dtype=torch.bool).scatter(1, chosen, True)  # [n, V]
    pair = []
    for logp in (student_logp, teacher_logp):
        rest = logp.masked_fill(is_chosen, -math.inf).logsumexp(-1, keepdim=True)  # [n, 1]
        pair.append(torch.cat([logp.gather(1, chosen), rest], 1))  # [n, k + 1]
    return pair


def token_loss(student_logp, teacher_logp, targets, off_policy, args):
    """The loss of every token, [n], from log-probabilities [n, V] and the tokens [n]."""
    written = student_logp.gather(1, targets[:, None]).squeeze(1)  # [n], log p_S(y_t)
    if args.estimator == "full":
        loss = divergence(student_logp, teacher_logp, args.divergence, args.beta)  # (2)
    elif args.estimator == "topk":
        pair = buckets(student_logp, teacher_logp, args.top_k, args.divergence)
        loss = divergence(*pair, args.divergence, args.beta)
    else:
        # log p_S(y) - log p_T(y) is an unbiased estimate of (2). But its own gradient is zero in
        # expectation. The right one is that of a score function: this difference, detached, times
        # the gradient of log p_S. (So this loss estimates the gradient of (2), and not the value of
        # (2).) The advantage, minus the difference, is not normalised over the batch. It is 0 where
        # both models find the token equally likely, and subtracting a mean would change that.
        teacher_written = teacher_logp.gather(1, targets[:, None]).squeeze(1)  # [n], log p_T(y_t)
        advantage = (teacher_written - written).detach()  # [n]
        loss = -advantage * written
    # Off-policy text is learnt by cross-entropy (note 10). (2) could be used there, too, as in GKD.
    return torch.where(off_policy, -written, loss)


# ======================================================================== 3. one update
# What is measured at every token. The means go into metrics.jsonl.
STATISTICS = "kl", "student_entropy", "teacher_entropy"


def update(student, teacher, optimizer, batch, args, compute):
    """One optimizer step along the gradient of (3). Returns metrics, and the KL of every token."""
    prompts, responses, off_policy = batch
    # The tokens of the whole batch are counted before the first micro-batch. A mean of the means
    # of micro-batches would depend on how the batch is cut.
    tokens = sum(map(len, responses))
    off_policy, collected = torch.tensor(off_policy), Collected(responses)

    def loss_of_positions(student_hidden, teacher_hidden, targets, off):
        """(sum of the loss, statistics [n, 3]) of a few positions at a time. The logits of all
        positions, [N, V], would be the largest tensor of the run."""
        with torch.no_grad():
            teacher_logp = log_probabilities(teacher, teacher_hidden, args.temperature)  # [n, V]
        student_logp = log_probabilities(student, student_hidden, args.temperature)  # [n, V]
        loss = token_loss(student_logp, teacher_logp, targets, off, args)  # [n]
        with torch.no_grad():  # only to be looked at
            kl = divergence(student_logp, teacher_logp)  # [n]
            entropies = [-(x.exp() * x).sum(-1) for x in (student_logp, teacher_logp)]  # [n] each
        return loss.sum(), torch.stack([kl, *entropies], 1)  # [n, 3], as STATISTICS

    student.train()  # gradient checkpointing works in this mode only; there is no dropout
    for chosen in compute.micro_batches(prompts, responses):
        ids, predicts, targets = compute.pack(prompts, responses, chosen)
        off = compute.per_token(off_policy, responses, chosen)  # [N]
        # The teacher reads the responses. It writes nothing, and it never gets a gradient. It was
        # loaded in the type of the computation, so it needs no autocast.
        with compute.phase("teacher"), torch.no_grad():
            teacher_hidden = states(teacher, ids, predicts)  # [N, teacher's width]
        # The student reads the same tokens, with a gradient.
        with compute.phase("student"):
            with compute.autocast():
                student_hidden = states(student, ids, predicts)  # [N, student's width]
                tensors = student_hidden, teacher_hidden, targets, off
                loss, stats = compute.in_chunks(loss_of_positions, *tensors)
            # Divided by the tokens of the batch, so gradients of micro-batches add up.
            compute.backward(loss / tokens)  # (3)
        collected.add(chosen, stats, loss.item())
    stats, loss = collected.everyone()

    # One step. The norm of the gradient is cut at 1, so one odd batch cannot ruin the student.
    with compute.phase("step"):
        norm = clip_gradient(student, 1.0, compute.loss_scale)
        if math.isfinite(norm):  # a step along NaN would destroy the weights for good
            optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    means = dict(zip(STATISTICS, torch.cat(stats).mean(0).tolist()))
    metrics = {"loss": loss / tokens, **means, "grad_norm": norm}
    metrics |= rollout_statistics(responses, student.ends)
    return metrics, [s[:, 0] for s in stats]


# ======================================================================== training
def main(argv=None):
    args = check(parse(Args, __doc__, argv, "opd"))
    run = Run(args, "opd")  # device, folder, tokenizer, problems, checkpoint to continue from
    require(
        args.off_policy == 0 or all(r["solution"] for r in run.rows),
        f"'{args.data}' has rows without a solution to learn from; use --off_policy 0.",
    )
    if args.off_policy:
        run.check_words("solution")
    student, teacher = run.load_student(), run.load(args.teacher)
    optimizer = adamw(student, args.lr, args.adam_bits)
    run.begin(student, optimizer, teacher=teacher)
    run.compare_with_teacher(student, teacher)  # before the first update

    for step in run.updates():  # sets the learning rate, and saves checkpoints
        with run.phase("sample"), run.autocast():
            batch = rollouts(student, run.tokenizer, run.problems(step), args, step)
        metrics, kl_of_tokens = within_memory(
            update, student, teacher, optimizer, batch, args, run.compute
        )
        run.log(step, **metrics)
        run.show(step, batch[1][0], kl_of_tokens[0])
        if run.evaluates(step):
            run.log(step, eval=run.accuracy(student))
            texts = {0: "own rollouts", 1: "solutions"}.get(args.off_policy, "both kinds of text")
            title = f"opd.py: {args.student} learns from {args.teacher} on {args.data}"
            run.draw(title, f"KL(student || teacher) on {texts}")
    # SFT needs solutions. And a run of SFT is not compared with itself.
    other = "opd.py --off_policy 1" if all(r["solution"] for r in run.rows) else "topd.py"
    run.finish(baseline=f"python {'opd.py' if args.off_policy == 1 else other}")


if __name__ == "__main__":
    run_script(main)
