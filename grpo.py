"""GRPO, group relative policy optimisation, with Dr. GRPO and DAPO as switches: the baseline without a teacher.

After Shao et al., "DeepSeekMath" (GRPO, arXiv 2402.03300), Liu et al., "Understanding R1-Zero-like training" (Dr. GRPO, 2503.20783) and Yu et
al., "DAPO" (2503.14476). The idea in five sentences. The student writes a group of responses to one question, and a verifier says which are
right. A response that did better than its group's mean is made likelier, one that did worse less likely; the group stands in for a critic. Every
token of a response gets the same credit: one number a response is all that a verifier knows. A group in which all are right or all
are wrong says nothing. Distillation (opd.py, hindsight_sd.py) gives each token its own credit; this is what it has to beat.

    o_1 .. o_G ~ pi_old(. | q),   R_i in {0, 1}                                                                             (1)
    A_i = (R_i - mean R) / std R                     GRPO, DAPO         A_i = R_i - mean R         Dr. GRPO                   (2)
    rho_it = pi(o_it) / pi_old(o_it),   l_it = - min( rho A_i, clip(rho, 1 - low, 1 + high) A_i )                             (3)
    L = mean over rollouts of (1/|o_i|) sum_t l_it       GRPO: a token of a long response weighs less                         (4)
        sum of all l_it / number of all tokens           DAPO: every token weighs the same
        sum of all l_it / (rollouts x max_new_tokens)    Dr. GRPO: the same, and the divisor knows nothing of the lengths
      + beta KL(pi || pi_0)                              GRPO; the other two have none

--variant sets six switches at once; each can also be given by itself, and a switch that is given wins:

    | variant | --advantage | --norm   | --clip_high | --no_signal | --overlong | --beta |
    | grpo    | std         | sequence | 0.2         | keep        | none       | 1e-3   |
    | dr_grpo | mean        | constant | 0.2         | keep        | none       | 0      |
    | dapo    | std         | token    | 0.28        | resample    | soft       | 0      |

What is chosen, and why:
  1. Why Dr. GRPO drops the deviation: dividing by it makes questions that are almost always or almost never solved weigh most.
     Why it drops 1/|o_i|: among wrong responses the long ones are then punished least per token, and the model learns to ramble when wrong.
  2. The deviation is that of the group itself (divisor G). Code bases divide by G - 1: all advantages smaller by sqrt((G-1)/G), nothing else.
  3. --reuse 1: one step a batch. Then rho is exactly 1, nothing is clipped, and (3) is the plain policy gradient. From the second step on the same batch on,
     pi_old is what the student said in the FIRST forward pass of training: the sampler computes the same numbers in another order of
     summation, and its rounding would look like a ratio.
  4. beta: the exact KL at the rollout's states. The papers' k3 estimator, differentiated, has in expectation the gradient of the OTHER direction.
  5. DAPO's overlong penalty is half of the paper's: its rewards are +1 and -1, ours 1 and 0, and only the proportion matters.
  6. DAPO's resampling draws further questions until enough groups have a signal, at most --max_rounds times: it costs rollouts. The metric `drawn`
     counts all of them; compare at equal rollouts or time, too.

Run it:
    python grpo.py                              without a GPU: the built-in toy, a few minutes; with one: Qwen3-0.6B on GSM8K
    python grpo.py --variant dapo
    python grpo.py --reuse 4 --clip_high 0.28
"""

import math
from dataclasses import dataclass

import torch
from torch.utils.checkpoint import checkpoint

import plumbing
from evaluate import check_name, eos_ids, evaluate, load_benchmark, prompt_ids, sample, verify
from plumbing import choice, pack, require, states

# Two complete settings; a flag that is given wins. Without a GPU, or with toy models or data, the first.
# fmt: off
TOY = dict(student="toy/reader", data="toy", steps=120, max_new_tokens=160, lr=3e-4, eval_n=500, eval_every=20)
HUB = dict(student="Qwen/Qwen3-0.6B", data="gsm8k", steps=200, max_new_tokens=512, lr=1e-6, eval_n=200, eval_every=50)
VARIANTS = {
    "grpo":    dict(advantage="std",  norm="sequence", clip_high=0.2,  no_signal="keep",     overlong="none", beta=1e-3),
    "dr_grpo": dict(advantage="mean", norm="constant", clip_high=0.2,  no_signal="keep",     overlong="none", beta=0.0),
    "dapo":    dict(advantage="std",  norm="token",    clip_high=0.28, no_signal="resample", overlong="soft", beta=0.0),
}
# fmt: on


# ============================================================================================ arguments


@dataclass
class Args:
    student: str | None = None
    """model that learns: a folder or a hub name (default: toy/reader, with a GPU Qwen/Qwen3-0.6B)"""
    data: str | None = None
    """training problems: toy, gsm8k, or a JSONL file with the columns problem and answer (default: toy, with a GPU gsm8k)"""
    benchmark: str | None = None
    """test problems for the evaluations along the way (default: the test split of --data)"""
    steps: int | None = None
    """batches of rollouts (default: 120 on the toy, else 200)"""
    prompts: int = 8
    """questions a batch"""
    samples: int = 8
    """G: rollouts a question"""
    max_new_tokens: int | None = None
    """a rollout is cut after so many tokens (default: 160 on the toy, else 512)"""
    lr: float | None = None
    """AdamW's learning rate, after a linear warm-up over the first 5 % of the updates (default: 3e-4 on the toy, else 1e-6)"""
    variant: str = choice("grpo", "grpo", "dr_grpo", "dapo")
    """sets the six switches below, see the table in the file"""
    advantage: str | None = choice(None, "std", "mean")
    """(2): divided by the group's standard deviation, or not (default: by --variant)"""
    norm: str | None = choice(None, "sequence", "token", "constant")
    """(4): what the loss is a mean over (default: by --variant)"""
    clip_low: float = 0.2
    """the ratio is clipped below 1 - this"""
    clip_high: float | None = None
    """... and above 1 + this; higher leaves unlikely tokens room to grow (default: by --variant)"""
    no_signal: str | None = choice(None, "keep", "resample")
    """groups that are all right or all wrong: keep them (they add nothing), or draw other questions (default: by --variant)"""
    max_rounds: int = 4
    """of resample: at most so many times --prompts questions an update"""
    overlong: str | None = choice(None, "none", "mask", "soft")
    """rollouts near --max_new_tokens: as they are, without loss when cut, or with a growing penalty (default: by --variant)"""
    overlong_share: float = 0.2
    """of soft: the penalty begins this share of --max_new_tokens before the end"""
    beta: float | None = None
    """weight of KL(student || frozen start); 0: off, and no copy of the start is kept in memory (default: by --variant)"""
    reuse: int = 1
    """optimiser steps on one batch of rollouts; from the second on, the ratio and its clip matter"""
    seed: int = 0
    """everything random follows from it: order of the data, rollouts"""
    out: str | None = None
    """folder for metrics, picture, checkpoints and the final model (default: runs/grpo-SEED)"""
    eval_every: int | None = None
    """evaluate every so many updates, and before the first and after the last (default: 20 on the toy, else 50; 0: only those two)"""
    eval_n: int | None = None
    """test problems of each evaluation, greedy; a fifth of them also with G samples (default: 500 on the toy, else 200)"""
    save_every: int = 20
    """write a checkpoint every so many updates (0: only on Ctrl-C)"""
    show_every: int = 20
    """print one rollout, its tokens coloured by surprise (-log p), every so many updates (0: never)"""
    resume: bool = False
    """continue the run in --out from its last checkpoint"""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1 ..."""
    dtype: str = choice("auto", "auto", "float32", "bfloat16")
    """of the computation (auto: bfloat16 on a GPU, float32 on a CPU); the student's weights are float32 always"""
    micro_tokens: int = 16384
    """tokens, padding included, that go through the model at once; changes memory and speed, never the result"""
    chunk_logits: int = 2**24
    """logits of one model that may exist at once, in the loss; 2^24 are 64 MiB in float32"""
    sampler: str = choice("own", "own", "vllm")
    """what draws the rollouts: evaluate.sample, or the package vllm, given the student's weights before every update (vllm_sampler.py)"""
    vllm_memory: float = 0.3
    """share of the GPU's memory for --sampler vllm"""
    lora: int = 0
    """rank of low-rank adapters (package peft): only they learn, the weights stay as they are; takes some ten times the --lr (0: all weights learn)"""
    adam_bits: int = choice(32, 32, 8)
    """of AdamW's two moments a weight; 8 needs the package bitsandbytes and saves 6 bytes a weight outside the embedding"""
    gradient_checkpointing: bool | None = None
    """recompute activations in the backward pass: less memory, a third more time (default: on a GPU)"""


def settle(args):
    """Fill in what was not said, and refuse what cannot work before anything is loaded."""
    plumbing.recall(args, f"runs/grpo-{args.seed}")
    say = args.data or args.student or ("hub" if args.device != "cpu" and torch.cuda.is_available() else "toy")
    for name, value in [*(TOY if say.startswith("toy") else HUB).items(), *VARIANTS[args.variant].items()]:
        if getattr(args, name) is None:
            setattr(args, name, value)
    args.benchmark = args.benchmark or args.data
    check_name(args.data, "train")
    check_name(args.benchmark, "test")
    for name in ("steps", "prompts", "max_new_tokens", "eval_n", "micro_tokens", "chunk_logits", "reuse", "max_rounds"):
        require(getattr(args, name) >= 1, f"--{name} is {getattr(args, name)}; it must be at least 1.")
    for name in ("eval_every", "save_every", "show_every"):
        require(getattr(args, name) >= 0, f"--{name} is {getattr(args, name)}; it must be 0 (off) or more.")
    require(args.samples >= 2, f"--samples is {args.samples}; a group needs at least 2 rollouts, since they are compared.")
    plumbing.check_packages(args)
    require(0 <= args.lora <= 1024, f"--lora is {args.lora}; it is a rank and must lie in [0, 1024] (0: all weights learn).")
    require(args.lr > 0 and math.isfinite(args.lr), f"--lr is {args.lr}; it must be positive.")
    require(args.beta >= 0 and math.isfinite(args.beta), f"--beta is {args.beta}; it must be 0 (off) or more.")
    require(0 < args.clip_low < 1, f"--clip_low is {args.clip_low}; it must lie between 0 and 1.")
    require(args.clip_high > 0 and math.isfinite(args.clip_high), f"--clip_high is {args.clip_high}; it must be positive.")
    require(0 < args.overlong_share <= 1, f"--overlong_share is {args.overlong_share}; it is a share and must lie in (0, 1].")
    return args


# ============================================================================================ 1. groups of rollouts, verified


def rollouts(student, tokenizer, rows, args, step, first=0):
    """(1): G responses for every question, row by row. Which tokens are drawn depends on (seed, step, question, sample) only."""
    return sample(
        student,
        [r["ids"] for r in rows],
        n=args.samples,
        max_new_tokens=args.max_new_tokens,
        eos=eos_ids(student, tokenizer),
        vocabulary=len(tokenizer),
        keys=[(args.seed, step, first + i, j) for i in range(len(rows)) for j in range(args.samples)],
    )


def verdicts(tokenizer, rows, drawn, G):
    """R_i: [n], by evaluate.verify: a rollout that was cut without an answer fails."""
    texts = [tokenizer.decode(c.ids, skip_special_tokens=True).strip() for c in drawn]
    return [verify(t, rows[i // G]["answer"], c.truncated) for i, (t, c) in enumerate(zip(texts, drawn))]


def gather(student, tokenizer, rows, args, step):
    """A batch: questions, rollouts, verdicts, and how many rollouts it took. With --no_signal resample, groups that are all right or all
    wrong make room for further questions, until --prompts groups have a signal or --max_rounds are over."""
    kept, drawn, right, total, G = [], [], [], 0, args.samples
    for turn in range(args.max_rounds if args.no_signal == "resample" else 1):
        # The first round's questions are those of every other method with this seed.
        order = args.seed if turn == 0 else f"{args.seed}, round {turn}"
        asked = [rows[i] for i in plumbing.prompts_of_step(step, args.prompts, len(rows), order)]
        fresh = rollouts(student, tokenizer, asked, args, step, turn * args.prompts)
        found, total = verdicts(tokenizer, asked, fresh, G), total + len(fresh)
        for q, row in enumerate(asked):
            mine = slice(q * G, (q + 1) * G)
            signal = 0 < sum(found[mine]) < G
            if (signal or args.no_signal == "keep") and len(kept) < args.prompts:
                kept, drawn, right = kept + [row], drawn + fresh[mine], right + found[mine]
        if len(kept) == args.prompts:
            break
    return kept, drawn, right, total


# ============================================================================================ 2. advantages


def penalty(length, args):
    """DAPO's soft punishment of rollouts near the limit: 0 until (1 - share) of it, then linearly down to -1/2 (note 5)."""
    buffer = args.overlong_share * args.max_new_tokens
    return -0.5 * max(0.0, min(1.0, (length - (args.max_new_tokens - buffer)) / buffer))


def advantages(rewards, G, kind):
    """(2): [n], from rewards [n] in groups of G. A group without differences has nothing to say: exactly 0, not 0/0."""
    R = torch.as_tensor(rewards, dtype=torch.float32).view(-1, G)
    centred = R - R.mean(1, keepdim=True)
    if kind == "std":
        spread = R.std(1, correction=0, keepdim=True)
        centred = torch.where(spread > 1e-6, centred / spread.clamp(min=1e-6), torch.zeros_like(R))
    return centred.flatten()


# ============================================================================================ 3. the loss


def clipped(logp, old, advantage, low, high):
    """(3): loss of every token, [n], and whether the clip held it, [n].

    The min makes it a pessimist: a token that has already moved far enough in the direction of its advantage gets no more gradient;
    one that moved the wrong way always gets it.
    """
    ratio = (logp - old).exp()  # [n]
    plain, bounded = ratio * advantage, ratio.clamp(1 - low, 1 + high) * advantage
    return -torch.minimum(plain, bounded), bounded < plain


def chunked_loss(student, first, hidden, first_hidden, targets, old, advantage, weights, args, vocabulary):
    """Weighted sum over N positions, and what one wants to see, [N, 4]: log p, clipped, KL to the start, entropy. old: [N], or None in the
    first pass over a batch, where the policy is the old one. weights: [N, 2], of (3) and of the KL. Logits live for one chunk."""

    def one(h, fh, y, before, a, w):
        ours = student.get_output_embeddings()(h)[:, :vocabulary].float().log_softmax(-1)  # [n, V]
        own = ours.gather(1, y[:, None]).squeeze(1)  # [n], log pi(o_t)
        loss, held = clipped(own, own.detach() if before is None else before, a, args.clip_low, args.clip_high)
        drift = torch.zeros_like(own)
        if fh is not None:
            with torch.no_grad():
                start = first.get_output_embeddings()(fh)[:, :vocabulary].float().log_softmax(-1)  # [n, V]
            drift = (ours.exp() * (ours - start)).sum(-1)  # [n], KL(pi || pi_0)
        with torch.no_grad():
            seen = torch.stack([own, held.float(), drift, -(ours.exp() * ours).sum(-1)], 1)
        return (w[:, 0] * loss + w[:, 1] * drift).sum(), seen

    size, total, seen = max(1, args.chunk_logits // vocabulary), 0.0, []
    for at in range(0, len(targets), size):
        pieces = [x if x is None else x[at : at + size] for x in (hidden, first_hidden, targets, old, advantage, weights)]
        loss, stats = one(*pieces) if len(targets) <= size else checkpoint(one, *pieces, use_reentrant=False)
        total, seen = total + loss, seen + [stats]
    return total, torch.cat(seen)


# ============================================================================================ 4. one update


def token_weights(drawn, counted, args):
    """(4): weight of every token of each rollout, a number a rollout. counted: False = carries no loss (--overlong mask)."""
    lengths, n = [len(c.ids) for c in drawn], len(drawn)
    if args.norm == "sequence":
        return [ok / (n * length) for ok, length in zip(counted, lengths)]
    if args.norm == "token":
        total = sum(length for ok, length in zip(counted, lengths) if ok)
        return [ok / max(1, total) for ok in counted]
    return [ok / (n * args.max_new_tokens) for ok in counted]


def update(student, first, optimiser, rows, drawn, right, args, clock, autocast, vocabulary):
    """--reuse optimiser steps along the gradient of (4) on one batch. Returns metrics and -log p by rollout."""
    G, n = args.samples, len(drawn)
    plain = [rows[i // G]["ids"] for i in range(n)]
    rewards = [float(ok) + (penalty(len(c.ids), args) if args.overlong == "soft" else 0.0) for ok, c in zip(right, drawn)]
    gain = advantages(rewards, G, args.advantage)  # [n]
    counted = [not (args.overlong == "mask" and c.truncated) for c in drawn]
    weight = token_weights(drawn, counted, args)
    old, losses = [None] * n, []  # old: log-probabilities of the first pass
    student.train()
    for again in range(args.reuse):
        loss_sum, seen = 0.0, [None] * n
        for chosen in plumbing.micro_batches([len(p) + len(c.ids) for p, c in zip(plain, drawn)], args.micro_tokens, deal=True):
            ids, predicts, targets = pack([plain[i] for i in chosen], [drawn[i].ids for i in chosen], student.device)
            lengths = torch.tensor([len(drawn[i].ids) for i in chosen])
            a = gain[chosen].repeat_interleave(lengths).to(student.device)  # [N]
            w = torch.tensor([[weight[i], args.beta / (n * len(drawn[i].ids))] for i in chosen])
            w = w.repeat_interleave(lengths, 0).to(student.device)  # [N, 2]
            with clock.phase("start"), torch.no_grad(), autocast():
                first_hidden = states(first, ids, predicts) if args.beta else None  # [N, width]
            with clock.phase("student"):
                with autocast():
                    hidden = states(student, ids, predicts)  # [N, width]
                    before = torch.cat([old[i] for i in chosen]) if again else None  # [N]
                    total, stats = chunked_loss(student, first, hidden, first_hidden, targets, before, a, w, args, vocabulary)
                total.backward()
            loss_sum += total.item()
            for i, s in zip(chosen, stats.split(lengths.tolist())):
                seen[i] = s
        seen, loss_sum = plumbing.everyones(seen, loss_sum)  # with several GPUs, what the others scored
        if again == 0:
            old = [s[:, 0].clone() for s in seen]
        with clock.phase("step"):
            norm, changed = plumbing.clip_and_step(student, optimiser, clip=1.0)
        losses.append(loss_sum)
    _, held, drift, entropy = torch.cat(seen).mean(0).tolist()
    counts = [sum(right[q * G : (q + 1) * G]) for q in range(len(rows))]
    return {
        "loss": losses[0],
        "kl_start": drift,
        "clipped": held,
        "student_entropy": entropy,
        "reward": sum(right) / n,
        "signal": sum(0 < k < G for k in counts) / len(counts),
        "groups": [counts.count(k) for k in range(G + 1)],
        "length": sum(len(c.ids) for c in drawn) / n,
        "truncated": sum(c.truncated for c in drawn) / n,
        "grad_norm": norm,
        "changed": changed,
    }, [-x for x in old]


# ============================================================================================ main


def main(argv=None):
    args = settle(plumbing.parse_arguments(Args, __doc__, argv))
    device = plumbing.pick_device(args.device)
    out, resumed = plumbing.open_run(args, "grpo.py")
    dtype = plumbing.compute_dtype(args.dtype, device)
    tokenizer = plumbing.load_tokenizer(args.student)
    rows, tests = load_benchmark(args.data, "train"), load_benchmark(args.benchmark, "test", args.eval_n)
    plumbing.check_prompts(tokenizer, [r["prompt"] for r in rows[:50]], args.data)
    student = plumbing.load_student(args, resumed, device, dtype)
    # The start is the start also after a resume: it comes from --student, never from the checkpoint.
    first = plumbing.load_model(args.student, device, dtype).requires_grad_(False) if args.beta else None
    checkpointing = args.gradient_checkpointing or (args.gradient_checkpointing is None and device.type == "cuda")
    if checkpointing:
        plumbing.checkpoint_layers(student)
    rows = plumbing.fitting_prompts(rows, lambda r: prompt_ids(tokenizer, r["prompt"]), student, args.max_new_tokens)
    optimiser = plumbing.adamw(student, args.lr, args.adam_bits, betas=(0.9, 0.95))  # without weight decay
    start = plumbing.load_state(resumed, optimiser, device)["step"] if resumed else 0
    metrics, clock = plumbing.Metrics(out, start if args.resume else None), plumbing.Clock(device)
    autocast = plumbing.autocaster(device, dtype)

    def measure(model):  # greedy on all test problems; and G samples on a fifth of them: does it still try different ways?
        most = dict(max_new_tokens=max(256, args.max_new_tokens), autocast=autocast())
        summary, _ = evaluate(model, tokenizer, tests, **most)
        sampled, _ = evaluate(
            model, tokenizer, tests[: max(1, len(tests) // 5)], n=args.samples, k=args.samples, temperature=1.0, **most
        )
        return {k: summary[k] for k in ("accuracy", "interval", "n", "truncated", "mean_tokens")} | {
            k: sampled[k] for k in ("pass@1", f"pass@{args.samples}", "distinct", "distinct_right")
        }

    # ---- what is about to happen
    more = [] if first is None else [first]
    plumbing.announce("grpo.py", args, student, None, rows, tokenizer, dtype, checkpointing, more=more)
    if args.sampler == "vllm":
        plumbing.attach_vllm(student, tokenizer, args, dtype)
    plumbing.write_config(out, args, "grpo.py")
    if start == 0 and not metrics.rows:
        metrics.add({"step": 0, "eval": measure(student)})
        e = metrics.rows[-1]["eval"]
        print(f"before:  {plumbing.percent(e)}   (greedy, {e['n']} problems of {args.benchmark})")
        if e[f"pass@{args.samples}"] < 0.05:
            print(f"warning: hardly any question is solved once in {args.samples} attempts; most groups will have no signal")

    # ---- training
    with plumbing.Stopper() as stopper, plumbing.progress(args.steps, "grpo", "update", initial=start) as bar:
        for step in range(start + 1, args.steps + 1):
            clock.start()
            with clock.phase("sample"), autocast():
                chosen, drawn, right, total = gather(student, tokenizer, rows, args, step)
            for group in optimiser.param_groups:
                group["lr"] = args.lr * min(1.0, step / max(1, round(0.05 * args.steps)))
            if not chosen:  # no group with a signal in all rounds: nothing to learn from, said and counted
                bar.write(f"update {step:4d}  no group with a signal among {total} rollouts: skipped")
                metrics.add({"step": step, "skipped": True, "drawn": total, "seconds": clock.stop()})
                losses = []
            else:
                result, losses = plumbing.within_memory(
                    update, student, first, optimiser, chosen, drawn, right, args, clock, autocast, len(tokenizer)
                )
                seconds, tokens = clock.stop(), sum(len(c.ids) for c in drawn)
                metrics.add(
                    {
                        "step": step,
                        **result,
                        "drawn": total,
                        "tokens": tokens,
                        "lr": group["lr"],
                        "seconds": seconds,
                        "tokens_per_second": tokens / seconds["total"],
                        "peak_memory": plumbing.peak_memory(device),
                    }
                )
                bar.set_postfix_str(
                    f"right {100 * result['reward']:.0f} %, signal {100 * result['signal']:.0f} %, length {result['length']:.0f}"
                )
            bar.update()
            if losses and args.show_every and step % args.show_every == 0:
                plumbing.show_rollout(bar, step, tokenizer, drawn[0].ids, losses[0])
            last = step == args.steps
            if last or (args.eval_every and step % args.eval_every == 0):
                metrics.add({"step": step, "eval": measure(student)})
                e = metrics.rows[-1]["eval"]
                bar.write(
                    f"update {step:4d}  accuracy {plumbing.percent(e)}  at temperature 1: "
                    + ", ".join(f"{k} {100 * v:.0f} %" for k, v in e.items() if k.startswith("pass@") or k == "distinct")
                )
                title = f"grpo.py ({args.variant}): {args.student} on {args.data}"
                plumbing.draw_curve(metrics.rows, out / "curve.png", title, "right rollouts in training", "reward")
            stop = stopper.asked()
            if last or stop or (args.save_every and step % args.save_every == 0):
                plumbing.save_checkpoint(out, step, student, tokenizer, optimiser)
            if stop and not last:
                bar.close()
                print(f"stopped after update {step}; continue with: {plumbing.resume_command('grpo.py', args)}")
                return

    # ---- what came of it
    plumbing.save_final(out, student, tokenizer)
    plumbing.conclude(out, metrics.rows, args, device)


if __name__ == "__main__":
    plumbing.run(main)
