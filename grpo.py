"""GRPO, group relative policy optimisation, with Dr. GRPO and DAPO as variants: reinforcement
learning, without a teacher.

After Shao et al., "DeepSeekMath" (GRPO, arXiv 2402.03300), Liu et al., "Understanding R1-Zero-like
training" (Dr. GRPO, 2503.20783) and Yu et al., "DAPO" (2503.14476). The idea. The student writes
a group of responses to one question, and a verifier says which are right. A response that is
better than the mean of its group becomes likelier, a worse one less likely. The mean of the group
is the baseline, so no value model is needed. Every token of a response gets the same credit,
because a verifier gives one number per response. A group in which all are right, or all are
wrong, says nothing. Distillation (opd.py, hindsight_sd.py) gives each token its own credit.

    o_1 .. o_G ~ pi_old(. | q),   R_i in {0, 1}             a group of rollouts, verified     (1)
    GRPO and DAPO:  A_i = (R_i - mean R) / std R
    Dr. GRPO:       A_i =  R_i - mean R                                                       (2)
    rho_it = pi(o_it) / pi_old(o_it)
    l_it = - min( rho_it A_i, clip(rho_it, 1 - low, 1 + high) A_i )                           (3)
    GRPO:      L = mean over rollouts of (1/|o_i|) sum_t l_it  +  beta KL(pi || pi_0)
               (a token of a long rollout weighs less)
    DAPO:      L = sum of all l_it / number of all tokens
               (every token weighs the same)
    Dr. GRPO:  L = sum of all l_it / (rollouts x max_new_tokens)
               (the divisor does not depend on the lengths)                                   (4)

q is the question. R_i is 1 if rollout o_i is right. |o_i| is its number of tokens, and o_it the
one at position t. pi is the student now, pi_old the student that wrote the rollouts, and pi_0 a
frozen copy of the start. low and high are --clip_low and --clip_high.

--variant sets six flags at once. A flag that is given by itself wins:

    | variant | --advantage | --norm   | --clip_high | --no_signal | --overlong | --beta |
    | grpo    | std         | sequence | 0.2         | keep        | none       | 1e-3   |
    | dr_grpo | mean        | constant | 0.2         | keep        | none       | 0      |
    | dapo    | std         | token    | 0.28        | resample    | soft       | 0      |

[paper] stated in the paper of the variant, [code] done by GRPOTrainer of the package TRL, [ours]
our choice:
  [paper]     1. GRPO: the advantages and the mean per rollout of (4), and a KL to the start.
              2. Dr. GRPO does not divide by the deviation. That division weighs a question by
              1 / deviation: most if it is nearly always or nearly never solved. Dr. GRPO does not
              divide by |o_i| either. Divided by |o_i|, long wrong responses are punished least per
              token, and the model learns to write long when it is wrong. It has no KL.
              3. DAPO: a higher upper clip, a mean over tokens, a penalty for rollouts near the
              limit, and no KL. It draws further questions until enough groups have a signal.
              4. the beta term of GRPO is an estimate from the sampled token (k3).
  [code]      5. the deviation is computed with 1 / (G - 1). This makes all advantages smaller by
              one factor.  6. TRL's default is DAPO's mean over tokens, with beta 0.
  [ours]      7. the deviation is computed with 1 / G.  8. with --reuse 1, the default, rho is
              exactly 1, nothing is clipped, and (3) is the plain policy gradient. From the second
              step on, log pi_old comes from the FIRST forward pass of training. The sampler's log p
              rounds differently, and that would look like a ratio.  9. the beta term is the exact
              KL over all tokens at the rollout's states, always a mean per rollout; --beta adds it
              to the other variants, too. (The gradient of k3 is in expectation that of
              KL(pi_0 || pi), the other direction.)  10. DAPO's penalty is half of the paper's. Its
              rewards are +1 and -1, ours are 1 and 0, and only the penalty's share of that gap
              matters. The penalty is added to R_i before (2). So with --overlong soft also a group
              that is all wrong has a signal, unless --no_signal resample replaces it.  11. DAPO
              draws at most --max_rounds times. That costs rollouts, and the metric `drawn` counts
              all of them. So compare it at equal rollouts or equal time, too.  12. DAPO's (4) is
              over all tokens of the batch. (The paper: over those of a group, then over questions.)

Run it:
    python grpo.py                    the toy, a few minutes; with a GPU: Qwen3-0.6B
    python grpo.py --variant dapo
    python grpo.py --reuse 4 --clip_high 0.28
"""

# This comes first: from here on Ctrl-C gives no traceback, also while torch is loaded.
from common.arguments import choice, either, require, run_script

# isort: split
import math
from dataclasses import dataclass

import torch

from common.batches import Collected, log_probabilities, prompts_of_step, rollout_statistics, states
from common.diagnostics import signal_statistics
from common.evaluation import verdicts
from common.flags import Common, at_least, in_range, parse
from common.memory import within_memory
from common.run import Run
from common.sampler import draw
from common.weights import adamw, clip_gradient

FLAGS = ("advantage", "norm", "clip_high", "no_signal", "overlong", "beta")
VARIANTS = {
    "grpo": ("std", "sequence", 0.2, "keep", "none", 1e-3),
    "dr_grpo": ("mean", "constant", 0.2, "keep", "none", 0.0),
    "dapo": ("std", "token", 0.28, "resample", "soft", 0.0),
}

# ======================================================================== flags
@dataclass
class Args(Common):
    student: str = either("toy/reader2", "Qwen/Qwen3-0.6B")
    """model that learns: a folder or a hub name"""
    prompts: int = 8
    """questions per update"""
    samples: int = 8
    """G: rollouts per question"""
    max_new_tokens: int = either(160, 512)
    """a rollout is cut after so many tokens"""
    # The toy's rate: "All pilots" in RESULTS.md.
    lr: float = either(1e-4, 1e-6)
    """AdamW's learning rate, after a linear warm-up over the first 5 % of the updates"""
    variant: str = choice("grpo", "grpo", "dr_grpo", "dapo")
    """sets the six flags that have the default "by --variant", see the table above"""
    advantage: str | None = choice(None, "std", "mean")
    """(2). std: divided by the standard deviation of the group; mean: not divided (default: by
    --variant)"""
    norm: str | None = choice(None, "sequence", "token", "constant")
    """(4): the divisor of the loss (default: by --variant)"""
    clip_low: float = 0.2
    """the lower limit of the ratio is 1 - this"""
    clip_high: float | None = None
    """the upper limit of the ratio is 1 + this; a high value lets unlikely tokens grow (default:
    by --variant)"""
    no_signal: str | None = choice(None, "keep", "resample")
    """groups that are all right or all wrong. keep: they stay in the batch; resample: other
    questions are drawn in their place (default: by --variant)"""
    max_rounds: int = 4
    """of resample: draw at most so many batches of --prompts questions per update"""
    overlong: str | None = choice(None, "none", "mask", "soft")
    """rollouts near --max_new_tokens. none: as they are; mask: no policy gradient if they are cut
    (the KL to the start stays); soft: a penalty that grows with their length (default: by
    --variant)"""
    overlong_share: float = 0.2
    """of soft: the penalty covers this last share of --max_new_tokens"""
    beta: float | None = None
    """weight of KL(student || frozen start); 0: off, and no copy of the start is in memory
    (default: by --variant)"""
    reuse: int = 1
    """optimizer steps on one batch of rollouts; from the second on, ratio and clip matter"""


def check(args):
    """Fill in the flags of the variant. Refuse what cannot work before anything is loaded."""
    for name, value in zip(FLAGS, VARIANTS[args.variant]):
        if getattr(args, name) is None:
            setattr(args, name, value)
    require(
        args.samples >= 2,
        f"--samples is {args.samples}; a group needs at least 2 rollouts, since they are compared.",
    )
    at_least(args, 1, "reuse max_rounds")
    in_range(args, "beta", "[0, inf)", "0: off")
    in_range(args, "clip_low", "(0, 1)")
    in_range(args, "clip_high", "(0, inf)")
    in_range(args, "overlong_share", "(0, 1]")
    return args


# ======================================================================== 1. groups of rollouts
def rollouts(student, rows, args, step, first=0):
    """(1): G = --samples responses to every question, row by row, as Completions. first: the
    number of the first question. The random numbers depend on it."""
    return draw(student, [r["ids"] for r in rows], args, step, first=first)  # (1)


def collect(student, tokenizer, rows, args, step):
    """A batch: questions, rollouts, verdicts. And the verdicts of all rollouts that were drawn.

    With --no_signal resample, groups that are all right or all wrong are replaced by those of a
    further draw, until --prompts groups have a signal or --max_rounds are over. So the batch can be
    smaller than --prompts groups, or empty. (Each draw has an order of its own. So a question can
    come twice.)
    """
    kept, chosen, right, all_right, G = [], [], [], [], args.samples
    for turn in range(args.max_rounds if args.no_signal == "resample" else 1):
        # The questions of the first round are the same as in every other method with this seed.
        seed = args.seed if turn == 0 else f"{args.seed}, round {turn}"
        asked = [rows[i] for i in prompts_of_step(step, args.prompts, len(rows), seed)]
        fresh = rollouts(student, asked, args, step, turn * args.prompts)
        _, verdict = verdicts(tokenizer, asked, fresh, G)  # (1): R_i
        all_right += verdict
        for q, row in enumerate(asked):
            group = slice(q * G, (q + 1) * G)
            has_signal = 0 < sum(verdict[group]) < G
            if (has_signal or args.no_signal == "keep") and len(kept) < args.prompts:
                kept, chosen, right = kept + [row], chosen + fresh[group], right + verdict[group]
        if len(kept) == args.prompts:
            break
    return kept, chosen, right, all_right


# ======================================================================== 2. advantages
def penalty(length, args):
    """DAPO's penalty for a rollout near the limit: 0 up to (1 - share) x --max_new_tokens, then
    linearly down to -1/2 (note 10)."""
    buffer = args.overlong_share * args.max_new_tokens
    return -0.5 * max(0.0, min(1.0, (length - (args.max_new_tokens - buffer)) / buffer))


def advantages(rewards, G, kind):
    """(2): [n], from rewards [n] in groups of G. With std a group without differences gets 0. Its
    deviation is about 0, and dividing by it would give NaN or noise."""
    R = torch.as_tensor(rewards, dtype=torch.float32).view(-1, G)  # [questions, G]
    centred = R - R.mean(1, keepdim=True)  # (2)
    if kind == "std":
        spread = R.std(1, correction=0, keepdim=True)  # [questions, 1]
        scaled = centred / spread.clamp(min=1e-6)  # (2)
        centred = torch.where(spread > 1e-6, scaled, torch.zeros_like(R))
    return centred.flatten()


# ======================================================================== 3. the loss
def clipped_loss(logp, old_logp, advantage, low, high):
    """(3): the loss of every token, [n], and whether the clip stopped its gradient, [n].

    Through the min, a token that has already moved far enough in the direction of its advantage
    gets no more gradient. A token that moved in the wrong direction always gets it.
    """
    ratio = (logp - old_logp).exp()  # [n], rho
    free, bounded = ratio * advantage, ratio.clamp(1 - low, 1 + high) * advantage  # [n] each
    return -torch.minimum(free, bounded), bounded < free  # (3)


def token_weights(drawn, counted, args):
    """(4): one number per rollout, the weight of each of its tokens. counted: False for a rollout
    without loss (--overlong mask). It still counts in the divisors of GRPO and Dr. GRPO. DAPO's
    divisor is the number of tokens with a loss."""
    lengths, n = [len(c.ids) for c in drawn], len(drawn)
    if args.norm == "sequence":  # GRPO
        return [ok / (n * length) for ok, length in zip(counted, lengths)]  # (4)
    if args.norm == "token":  # DAPO
        total = sum(length for ok, length in zip(counted, lengths) if ok)
        return [ok / max(1, total) for ok in counted]  # (4)
    return [ok / (n * args.max_new_tokens) for ok in counted]  # (4), Dr. GRPO


# ======================================================================== 4. one update
# What is measured at every token. The means go into metrics.jsonl.
STATISTICS = "log_probability", "kl_start", "clipped", "student_entropy"


def update(student, start, optimizer, batch, args, compute):
    """--reuse optimizer steps along the gradient of (4) on one batch. start: the frozen pi_0, or
    None. batch: questions, rollouts, verdicts. Returns metrics, and -log p of every token."""
    rows, drawn, right = batch  # with --no_signal resample only what was kept
    G, n, responses = args.samples, len(drawn), [c.ids for c in drawn]
    prompts = [rows[i // G]["ids"] for i in range(n)]
    # A reward is 1 or 0, less the penalty of a rollout near the limit.
    soft = args.overlong == "soft"
    rewards = [ok + (penalty(len(r), args) if soft else 0.0) for ok, r in zip(right, responses)]
    advantage = advantages(rewards, G, args.advantage)  # [n], (2)
    # All weights are known before the first micro-batch. So the result does not depend on how the
    # batch is cut.
    counted = [not (args.overlong == "mask" and c.truncated) for c in drawn]
    weights = token_weights(drawn, counted, args)
    kl_weights = [args.beta / (n * len(r)) for r in responses]  # (4): always a mean per rollout
    weights = torch.tensor(list(zip(weights, kl_weights)))  # [n, 2]: of l_it, of the KL

    def loss_of_positions(student_hidden, start_hidden, targets, old_logp, advantage, weight):
        """(sum of the loss, statistics [n, 4]) of n positions of a micro-batch. The logits of all
        its N positions at once, [N, V], would be too large."""
        all_logp = log_probabilities(student, student_hidden)  # [n, V]
        logp = all_logp.gather(1, targets[:, None]).squeeze(1)  # [n], log pi(o_t)
        # In the first pass over a batch the policy is the old one: rho is 1, and its gradient is
        # that of log pi. In the later passes ratio and clip of (3) matter.
        old_logp = logp.detach() if old_logp is None else old_logp
        loss, stopped = clipped_loss(logp, old_logp, advantage, args.clip_low, args.clip_high)
        drift = torch.zeros_like(logp)
        if start_hidden is not None:
            with torch.no_grad():
                start_logp = log_probabilities(start, start_hidden)  # [n, V]
            drift = (all_logp.exp() * (all_logp - start_logp)).sum(-1)  # [n], KL(pi || pi_0), (4)
        with torch.no_grad():  # metrics; logp is also kept as log pi_old for the later steps
            entropy = -(all_logp.exp() * all_logp).sum(-1)  # [n]
            columns = [logp, drift, stopped.float(), entropy]
            stats = torch.stack(columns, 1)  # [n, 4], as STATISTICS
        # The sums of all chunks and micro-batches add up to (4), and so do their gradients.
        return (weight[:, 0] * loss + weight[:, 1] * drift).sum(), stats  # (4)

    old_logp, first_loss = None, None  # of the first step: log pi_old, and (4)
    student.train()  # gradient checkpointing works in this mode only; there is no dropout
    for _ in range(args.reuse):
        collected = Collected(responses)
        for chosen in compute.micro_batches(prompts, responses):
            ids, predicts, targets = compute.pack(prompts, responses, chosen)
            # Advantage and weights of a rollout, for each of its tokens: [N], [N, 2].
            per_token = [compute.per_token(x, responses, chosen) for x in (advantage, weights)]
            old = torch.cat([old_logp[i] for i in chosen]) if old_logp else None  # [N]
            # pi_0 reads the rollouts for the KL. It never gets a gradient.
            with compute.phase("start"), torch.no_grad(), compute.autocast():
                start_hidden = states(start, ids, predicts) if args.beta else None  # [N, width]
            with compute.phase("student"):
                with compute.autocast():
                    student_hidden = states(student, ids, predicts)  # [N, width]
                    tensors = student_hidden, start_hidden, targets, old, *per_token
                    loss, stats = compute.in_chunks(loss_of_positions, *tensors)
                compute.backward(loss)
            collected.add(chosen, stats, loss.item())
        stats, loss = collected.everyone()
        if old_logp is None:  # after the first pass
            old_logp, first_loss = [s[:, 0].clone() for s in stats], loss
        # The norm of the gradient is cut at 1, so one odd batch cannot ruin the policy.
        with compute.phase("step"):
            norm = clip_gradient(student, 1.0, compute.loss_scale)
            if math.isfinite(norm):  # a step along NaN would destroy the weights for good
                optimizer.step()
            optimizer.zero_grad(set_to_none=True)
    # Means of the last step, where rho is furthest from 1. "loss" is of the first step. There the
    # advantages of a group add up to 0, so in GRPO only beta KL is left. The gradient is not 0.
    means = dict(zip(STATISTICS, torch.cat(stats).mean(0).tolist()))
    del means["log_probability"]  # it was kept as log pi_old
    if not args.beta:
        del means["kl_start"]  # it was not measured
    metrics = {"loss": first_loss, **means, "grad_norm": norm}
    metrics |= rollout_statistics(responses, student.ends)
    return metrics, [-logp for logp in old_logp]


# ======================================================================== training
def main(argv=None):
    args = check(parse(Args, __doc__, argv, "grpo"))
    run = Run(args, "grpo")  # device, folder, tokenizer, problems, checkpoint to continue from
    student = run.load_student()
    # A resumed run needs the same pi_0. So it comes from --student, not from the checkpoint.
    start = run.load(args.student) if args.beta else None
    optimizer = adamw(student, args.lr, args.adam_bits, betas=(0.9, 0.95))
    run.begin(student, optimizer, more=[] if start is None else [start])
    if run.fresh:
        accuracy = run.accuracy_and_variety(student)
        run.log(0, eval=accuracy)
        if accuracy[f"pass@{args.samples}"] < 0.05:
            print(
                f"warning: hardly any question is solved once in {args.samples} attempts; most "
                "groups will have no signal"
            )

    for step in run.updates():  # sets the learning rate, and saves checkpoints
        with run.phase("sample"), run.autocast():
            *batch, all_right = collect(student, run.tokenizer, run.rows, args, step)
        # Of all rollouts, also of groups that were replaced: those that are kept are half right.
        about = {**signal_statistics(all_right, args.samples), "drawn": len(all_right)}
        if batch[0]:
            metrics, surprise = within_memory(
                update, student, start, optimizer, batch, args, run.compute
            )
            run.log(step, **metrics, **about)
            run.show(step, batch[1][0].ids, surprise[0], "-log p")
        else:  # no group with a signal in all rounds: nothing to learn from
            drawn = len(all_right)
            run.bar.write(f"update {step:4d}  no group with a signal in {drawn} rollouts: skipped")
            run.log(step, skipped=True, **about)
        if run.evaluates(step):
            run.log(step, eval=run.accuracy_and_variety(student))
            title = f"grpo.py ({args.variant}): {args.student} on {args.data}"
            run.draw(title, "right rollouts in training", "reward")
    run.finish(baseline=f"python {'hindsight_sd.py' if args.variant == 'grpo' else 'grpo.py'}")


if __name__ == "__main__":
    run_script(main)
