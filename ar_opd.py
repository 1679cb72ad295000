"""AR-OPD, anchored residual on-policy distillation: learn from a copy of yourself that sees the
solution, but only what you could justify without it.

After Wenhao Zhang, "Beyond Absolute Imitation: Anchored Residual Guidance for Privileged
On-Policy Distillation" (arXiv 2606.10385). The idea. There is no larger model: the student
itself, with the worked solution in its prompt, scores the student's rollouts. But that teacher
knows the future. So it gives probability to tokens that nobody could justify at this point: it
skips steps, and it appeals to a solution that the student cannot see. Therefore the extra
information is split. A view of the FIRST HALF of the solution is the anchor, a target that the
student can reach. What the whole solution adds is the residual. Only a part of it is taken.

    y ~ p_S(. | x)                                   rollout from the plain prompt            (1)
    q_part = p_T(. | x, first half of z, y_<t)       two views of the same weights on the
    q_full = p_T(. | x, z, y_<t)                     same rollout; z is the solution          (2)
    r = clip( log q_full - log q_part, -5, 5 )       the residual                             (3)
    log q = log q_part + lambda r - C_t              the target; C_t normalises it            (4)
    L = mean over rollouts of the mean over tokens of KL( q || p_S(. | x, y_<t) )             (5)
    theta_T <- (1 - rate) theta_T + rate theta_S     the teacher: a moving average            (6)

x is the prompt, y a rollout, and y_<t its tokens before t. p_S and p_T are the next-token
distributions of student and teacher, theta_S and theta_T their weights. "First half" stands for
the share rho of the solution.

(4) in words. For 0 < lambda < 1, and without the clip, it is the normalised geometric mixture
q_part^(1 - lambda) q_full^lambda. So a token needs support in BOTH views. lambda = 0 is the
partial view. lambda = 1 without the clip is the full view. Only lambda > 1 extrapolates beyond
it, like classifier-free guidance.

[paper] stated there, [code] done by the trainer that the author released, [ours] our choice:
  [paper]     1. (2) to (4), and the forward KL of (5); clip at 5 nats; rho = 0.5, cut at a word;
              lambda = 0.6; the partial view does not contain the final answer.  2. a moving average
              as the teacher.
  [code]      3. a mean over the tokens of a rollout, then over rollouts. So a token of a short
              rollout weighs more.  4. rate 0.01. (The paper lists a "ref mixup" of 0.01 without an
              explanation; it is probably this rate.)  5. the same clip.  6. one rollout per prompt,
              temperature 1, no selection by reward, truncated rollouts are kept.  7. the first 3
              tokens of a rollout carry no loss (--skip_first 3).  8. the released data KEEP the
              answer in the partial view (--partial_answer keep).
  [ours]      9. no token is skipped, because the toy's answers are short.  10. a prompt is never
              cut. A row whose longest prompt does not fit is left out and counted. Cutting its END
              would remove the answer and the assistant's turn, more often in the longer full view.
              11. the partial view ends at the latest before the sentence with \\boxed, or without a
              box before the last sentence.  12. the learning rate and the lengths. (The paper: 2e-5
              with a cosine and 10 % warm-up, 1,024 tokens, and a prompt that asks for thinking.)

Run it:
    python ar_opd.py                  the toy, a few minutes; with a GPU: Qwen3-0.6B
    python ar_opd.py --target full    the baseline that imitates the full view (or partial, sft)
    python ar_opd.py --lam 1.2        beyond the full view
Before the first update it prints what each view sees, and how often the student is right when it
GENERATES under each view. If the student is no better with the full view than without it, that
view has nothing to teach. Which claims hold on the toy, and which do not: RESULTS.md and
benchmarks/README.md.
"""

# This comes first: from here on Ctrl-C gives no traceback, also while torch is loaded.
from common.arguments import choice, either, require, run_script

# isort: split
import math
import re
from dataclasses import dataclass

import torch

from common.batches import Collected, log_probabilities, rollout_statistics, states
from common.data import check_prompts, privileged_prompt, prompt_ids
from common.diagnostics import shortcut_share
from common.flags import Common, in_range, parse
from common.gate import solution_gate
from common.memory import within_memory
from common.run import Run
from common.sampler import draw
from common.views import print_views
from common.weights import adamw, clip_gradient, copy_of, follow


# ======================================================================== flags
@dataclass
class Args(Common):
    student: str = either("toy/reader", "Qwen/Qwen3-0.6B")
    """model that learns from itself: a folder or a hub name; the data need a column solution"""
    prompts: int = 64
    """prompts per update"""
    samples: int = 1
    """rollouts per prompt; the batch is prompts x samples"""
    max_new_tokens: int = either(160, 512)
    """a rollout is cut after so many tokens"""
    # The toy's rate, chosen together with the rate of (6): "All pilots" in RESULTS.md.
    lr: float = either(1e-3, 1e-5)
    """AdamW's learning rate, after a linear warm-up over the first 5 % of the updates"""
    target: str = choice("anchored", "anchored", "partial", "full", "sft")
    """anchored: (4); partial or full: imitate one view; sft: cross-entropy on the solution itself,
    without rollouts"""
    lam: float = 0.6
    """lambda of (4), the share of the residual; 0: partial view; 1 with --clip 0: full view"""
    clip: float = 5.0
    """the residual is clipped to so many nats in both directions (0: no clip)"""
    rho: float = 0.5
    """share of the solution in the partial view, from its start, cut at a word. Above about 0.85
    this part can hold the last step, and with it the answer's value"""
    partial_answer: str = choice("remove", "remove", "keep")
    """is the final answer in the partial view? The paper removes it, its released data keep it"""
    teacher: str = choice("ema", "ema", "frozen", "current")
    """the teacher's weights. ema: a moving average of the student's; frozen: those of the start;
    current: the student's own of this update"""
    ema: float = 0.01
    """rate of (6), the moving average"""
    skip_first: int = 0
    """so many first tokens of every rollout carry no loss (the released trainer: 3)"""


def check(args):
    """Refuse what cannot work before anything is loaded."""
    in_range(args, "lam", "[0, 5]", "0: partial view, 1 with --clip 0: full view")
    in_range(args, "clip", "[0, inf)", "0: no clip")
    in_range(args, "rho", "(0, 1)", "for the whole solution: --target full")
    in_range(args, "ema", "(0, 1]", "for a teacher that stays as it is: --teacher frozen")
    in_range(args, "skip_first", f"[0, {args.max_new_tokens})", "below --max_new_tokens")
    if args.target == "sft":
        args.teacher = "current"  # SFT asks no teacher, so no copy is made
    return args


# ======================================================================== 1. what each view sees
def first_part(solution, rho):
    """The first `rho` of a solution, cut at a word [paper]. It ends before the sentence of the
    answer: the one with a box, or else the last one. The student could not follow a teacher that
    knows the answer.

    >>> solution = "1 + 2 = 3. 3 + 4 = 7. So \\\\boxed{7}."
    >>> first_part(solution, 0.5)
    '1 + 2 = 3. 3'
    """
    word_ends = [m.end() for m in re.finditer(r"\S+", solution)]
    end = word_ends[max(1, int(len(word_ends) * rho)) - 1]
    box = solution.find("\\boxed")
    # The last sentence of this text is the one with the answer.
    before = solution[:box] if box >= 0 else solution.rstrip()
    starts = [m.end() for m in re.finditer(r"[.!?]\s+|\n\s*", before)]
    # A solution of one sentence shows what stands before the box.
    return solution[: min(end, starts[-1] if starts else len(before))].rstrip()


def views(row, args):
    """(2): the user's turn in the three prompts. Both privileged views have the same wording around
    the solution. So they differ in what they show, and in nothing else."""
    shown_answer = row["answer"] if args.partial_answer == "keep" else None
    half = first_part(row["solution"], args.rho)
    return {
        "plain": row["prompt"],
        "partial": privileged_prompt(row["prompt"], half, shown_answer),
        "full": privileged_prompt(row["prompt"], row["solution"]),
    }


# ======================================================================== 2. rollouts
def rollouts(student, tokenizer, rows, args, step):
    """(1): responses to the PLAIN prompts, lists of token ids, row by row. With --target sft the
    response is the worked solution."""
    if args.target == "sft":
        texts = [r["solution"] for r in rows for _ in range(args.samples)]
        ids = [tokenizer(t, add_special_tokens=False)["input_ids"] for t in texts]
        # The end-of-turn token belongs to the text. Without it the student never learns to end.
        return [[*x, student.turn_end][: args.max_new_tokens] for x in ids]
    drawn = draw(student, [r["plain"] for r in rows], args, step)  # (1)
    return [c.ids for c in drawn]


# ======================================================================== 3. target and loss
def anchored_target(partial_logp, full_logp, lam, clip):
    """(3) and (4): log q [n, V] from the log-probabilities of both views, [n, V] each. Also the
    mass of the full view on clipped tokens, [n].

    Both inputs must be NORMALISED. Logits have an arbitrary constant at each position. With logits,
    this constant would decide what is clipped.
    """
    residual = full_logp - partial_logp  # [n, V], (3)
    is_clipped = torch.zeros_like(residual, dtype=torch.bool)  # [n, V]
    if clip:
        is_clipped = residual.abs() > clip
        residual = residual.clamp(-clip, clip)  # (3)
    # (4): log_softmax subtracts C_t. Without it q does not sum to 1, and (5) is no divergence.
    target_logp = (partial_logp + lam * residual).log_softmax(-1)  # [n, V]
    return target_logp, (full_logp.exp() * is_clipped).sum(-1)


def forward_kl(target_logp, student_logp):
    """KL(target || student) of (5), [n], from log-probabilities [n, V]. The student pays wherever
    the target has mass that the student lacks."""
    return (target_logp.exp() * (target_logp - student_logp)).sum(-1)


def token_weights(responses, skip_first):
    """(5): the weight of every token, one tensor per rollout: 1 / (number of rollouts x number of
    this rollout's tokens). The first `skip_first` tokens of a rollout have weight 0 and are not
    counted. A rollout of at most `skip_first` tokens is left out of the mean."""
    counted = [max(0, len(r) - skip_first) for r in responses]
    sequences, weights = max(1, sum(c > 0 for c in counted)), []
    for r, c in zip(responses, counted):
        weight = 1 / (sequences * c) if c else 0.0
        weights.append(torch.tensor([0.0] * (len(r) - c) + [weight] * c))
    return weights


VIEWS_OF = {"anchored": ("partial", "full"), "partial": ("partial",), "full": ("full",), "sft": ()}
# What metrics.jsonl keeps beside the loss. One view has no residual, SFT has no target.
ONE_VIEW = ("kl", "student_entropy", "target_entropy")
TWO_VIEWS = (*ONE_VIEW, "clipped", "kl_partial", "kl_full", "residual")
STATISTICS = {
    "anchored": TWO_VIEWS, "partial": ONE_VIEW, "full": ONE_VIEW,
    "sft": ("cross_entropy", "student_entropy"),
}  # fmt: skip


# ======================================================================== 4. one update
def update(student, teacher, optimizer, rows, responses, args, compute):
    """One optimizer step along the gradient of (5), then (6). Returns metrics and token losses."""
    # One row per rollout: all samples of a prompt share its views.
    rows = [r for r in rows for _ in range(args.samples)]
    prompts = {name: [r[name] for r in rows] for name in ("plain", "partial", "full")}
    # The tokens' weights are known before the first micro-batch. So the result does not depend on
    # how the batch is cut.
    weights, collected = token_weights(responses, args.skip_first), Collected(responses)

    def loss_of_positions(student_hidden, partial_hidden, full_hidden, targets, weight):
        """(sum of the loss, STATISTICS [n, k]) of a few positions at a time. Four distributions
        over all positions, [N, V] each, would not fit into memory."""
        student_logp = log_probabilities(student, student_hidden)  # [n, V]
        written_logp = student_logp.gather(1, targets[:, None]).squeeze(1)  # [n], log p_S(y_t)
        view_logp = {}
        with torch.no_grad():  # the target is a constant: no gradient flows into the teacher
            if partial_hidden is not None:
                view_logp["partial"] = log_probabilities(teacher, partial_hidden)  # [n, V], (2)
            if full_hidden is not None:
                view_logp["full"] = log_probabilities(teacher, full_hidden)  # [n, V], (2)
            # partial, full: the view is the target. anchored: see below. sft: there is none.
            target_logp = view_logp.get(args.target)
            if args.target == "anchored":
                pair = view_logp["partial"], view_logp["full"]
                target_logp, clipped = anchored_target(*pair, args.lam, args.clip)
        sft = target_logp is None
        loss = -written_logp if sft else forward_kl(target_logp, student_logp)  # [n], (5)
        with torch.no_grad():  # only to be looked at
            stats = [loss.detach(), -(student_logp.exp() * student_logp).sum(-1)]  # [n] each
            if not sft:
                stats += [-(target_logp.exp() * target_logp).sum(-1)]  # [n]
            if args.target == "anchored":
                kl_partial, kl_full = (forward_kl(logp, student_logp) for logp in pair)  # [n] each
                written = [logp.gather(1, targets[:, None]).squeeze(1) for logp in pair]  # [n] each
                residual = (written[1] - written[0]).abs()  # [n], of y_t, before the clip
                stats += [clipped, kl_partial, kl_full, residual]
        return (loss * weight).sum(), torch.stack(stats, 1)  # [n, k], as STATISTICS

    student.train()  # gradient checkpointing works in this mode only; there is no dropout
    # Micro-batches are cut for the full view, because its prompt is mostly the longest.
    for chosen in compute.micro_batches(prompts["full"], responses):
        # The rollout's token ids stand behind each privileged prompt as they are. Tokenized again,
        # the text could be cut differently, and the views would score other positions.
        with compute.phase("teacher"), torch.no_grad(), compute.autocast():
            hidden_of = {}
            for name in VIEWS_OF[args.target]:
                ids, predicts, _ = compute.pack(prompts[name], responses, chosen)
                hidden_of[name] = states(teacher, ids, predicts)  # [N, width]
        # The student sees the plain prompt only, as at test time.
        ids, predicts, targets = compute.pack(prompts["plain"], responses, chosen)
        weight = torch.cat([weights[i] for i in chosen]).to(ids.device)  # [N]
        with compute.phase("student"):
            with compute.autocast():
                student_hidden = states(student, ids, predicts)  # [N, width]
                both = hidden_of.get("partial"), hidden_of.get("full")
                tensors = student_hidden, *both, targets, weight
                loss, stats = compute.in_chunks(loss_of_positions, *tensors)
            compute.backward(loss)  # (5): the weights hold both means
        collected.add(chosen, stats, loss.item())
    stats, loss = collected.everyone()

    # One step. The norm of the gradient is cut at 1, so one odd batch cannot ruin the student.
    with compute.phase("step"):
        norm = clip_gradient(student, 1.0, compute.loss_scale)
        if math.isfinite(norm):  # a step along NaN would destroy the weights for good
            optimizer.step()
            if args.teacher == "ema":
                follow(teacher, student, args.ema)  # (6), after the step
        optimizer.zero_grad(set_to_none=True)
    # "loss" is (5), a mean over rollouts. The others are means over all tokens.
    means = zip(STATISTICS[args.target], torch.cat(stats).mean(0).tolist())
    metrics = {"loss": loss, **dict(means), "grad_norm": norm}
    metrics |= rollout_statistics(responses, student.ends)
    return metrics, [s[:, 0] for s in stats]


# ======================================================================== training
def main(argv=None):
    args = check(parse(Args, __doc__, argv, "ar_opd"))
    run = Run(args, "ar_opd")  # device, folder, tokenizer, problems, checkpoint to continue from
    require(
        all(r["solution"] for r in run.rows),
        f"'{args.data}' has rows without a solution, and the self-teacher needs one to look at; "
        "use toy, gsm8k, or a file with the columns problem, answer and solution.",
    )
    run.check_words("solution")
    check_prompts(run.tokenizer, [views(run.rows[0], args)["full"]], args.data)
    student = run.load_student()
    teacher = student if args.teacher == "current" else copy_of(student)
    optimizer = adamw(student, args.lr, args.adam_bits)

    def longest(row):
        """Keeps the ids of the three prompts in the row. If the longest fits, all fit."""
        row.update({k: prompt_ids(run.tokenizer, v) for k, v in views(row, args).items()})
        return max((row[k] for k in ("plain", "partial", "full")), key=len)

    copied = None if teacher is student else teacher  # stored in checkpoints, frozen or not
    run.begin(student, optimizer, teacher=copied, longest=longest, average=copied)
    print_views(run.rows[0], **views(run.rows[0], args))

    def accuracy():
        summary, records = run.evaluate(student)
        return run.kept(summary) | {"shortcuts": shortcut_share(records, run.tests, run.check)}

    if run.fresh:
        accuracies = solution_gate(run, student, lambda row: views(row, args))
        run.log(0, eval=accuracy(), gate=accuracies)

    for step in run.updates():  # sets the learning rate, and saves checkpoints
        rows = run.problems(step)
        with run.phase("sample"), run.autocast():
            responses = rollouts(student, run.tokenizer, rows, args, step)
        metrics, losses = within_memory(
            update, student, teacher, optimizer, rows, responses, args, run.compute
        )
        run.log(step, **metrics)
        run.show(step, responses[0], losses[0], "loss")
        if run.evaluates(step):
            run.log(step, eval=accuracy())
            title = f"ar_opd.py: {args.student} learns from itself on {args.data} ({args.target})"
            kl = "KL(target || student) on own rollouts", "kl"
            sft = "cross-entropy on the solutions", "cross_entropy"
            run.draw(title, *(sft if args.target == "sft" else kl))
    run.finish(baseline=f"python ar_opd.py{'' if args.target == 'full' else ' --target full'}")


if __name__ == "__main__":
    run_script(main)
