"""On-policy distillation (OPD): a student learns from a teacher on the text that the student itself writes.

The idea in five sentences. Ordinary distillation trains the student on the teacher's text, so the student never sees
the states that its own mistakes lead to. Here the student writes the responses, and the teacher reads them: at every
position both models say how likely each next token is. The loss is how much they disagree there, and its gradient moves
the student towards the teacher at exactly the states it will meet again. The teacher grades every token, where a
verifier would give one bit for a whole response. No reward, no advantage, no critic: a supervised loss on sampled states.

    y ~ p_S(. | x)                                        the student's rollout, temperature 1, nothing filtered      (1)
    l_t = KL( p_S(. | x, y_<t) || p_T(. | x, y_<t) )      reverse KL over the whole vocabulary, at every state        (2)
    L   = sum of l_t over all tokens of the batch / number of these tokens                                            (3)

After Agarwal et al., "On-policy distillation of language models" (GKD, arXiv 2306.13649), Gu et al., "MiniLLM"
(2306.08543) and the on-policy stage of the Qwen3 report (2505.09388). What is left out or chosen, and why:

  1. (2) is differentiated through p_S at each state, not through the choice of the states: it ignores what today's token
     does to tomorrow's prefix. The full gradient of the sequence KL adds a return-to-go term of high variance.
  2. Reverse KL (mode seeking) is the default; --divergence has forward KL and the generalised Jensen-Shannon of GKD.
  3. The sum over the vocabulary is exact. --estimator sampled uses the sampled token alone (as RL code bases do),
     --estimator topk the k largest with everything else in one bucket.
  4. --off_policy 1 --off_policy_data reference is plain SFT, the baseline; fractions in between mix.
  5. One optimiser step a batch of rollouts: exactly on-policy, so no importance ratio and no clipping of it.

Run it:
    python opd.py                     without a GPU: the built-in toy, about two minutes; with one: Qwen3-0.6B <- Qwen3-4B on GSM8K
    python opd.py --student toy/student --teacher toy/teacher --data toy      the toy, wherever you are
    python opd.py --student Qwen/Qwen3-0.6B --teacher Qwen/Qwen3-4B --data gsm8k --out runs/mine
    python opd.py --resume --out runs/mine                                    continue it, bit for bit on a CPU

Read it from top to bottom: the functions stand in the order in which the data meets them. Loading, checkpoints and
pictures are in plumbing.py; prompts, the sampler and grading, which evaluation shares, are in evaluate.py.
"""

import math
from dataclasses import dataclass

import torch
from torch.utils.checkpoint import checkpoint

import plumbing
from evaluate import check_name, eos_ids, evaluate, load_benchmark, prompt_ids, sample, uniforms
from plumbing import choice, pack, require, states

# Two complete settings; a flag that is given wins. Without a GPU, or with toy models or data, the first.
# fmt: off
TOY = dict(student="toy/student", teacher="toy/teacher", data="toy", steps=120, max_new_tokens=160, lr=1e-3, eval_n=500, eval_every=20)
HUB = dict(student="Qwen/Qwen3-0.6B", teacher="Qwen/Qwen3-4B", data="gsm8k", steps=200, max_new_tokens=512, lr=1e-5, eval_n=200, eval_every=50)
# fmt: on


# ============================================================================================ arguments


@dataclass
class Args:
    student: str | None = None
    """model that learns: a folder or a hub name (default: toy/student, with a GPU Qwen/Qwen3-0.6B)"""
    teacher: str | None = None
    """model that scores; its tokenizer must be the student's (default: toy/teacher, with a GPU Qwen/Qwen3-4B)"""
    data: str | None = None
    """training problems: toy, gsm8k, or a JSONL file with the columns problem and answer (default: toy, with a GPU gsm8k)"""
    benchmark: str | None = None
    """test problems for the evaluations along the way (default: the test split of --data)"""
    steps: int | None = None
    """updates (default: 120 on the toy, else 200)"""
    prompts: int = 16
    """prompts an update"""
    samples: int = 4
    """rollouts a prompt; prompts x samples is the batch"""
    max_new_tokens: int | None = None
    """a rollout is cut after so many tokens (default: 160 on the toy, else 512)"""
    lr: float | None = None
    """AdamW's learning rate, after a linear warm-up over the first 5 % of the updates (default: 1e-3 on the toy, else 1e-5)"""
    temperature: float = 1.0
    """of the rollouts AND of both distributions in the loss: with two different ones the rollouts are off-policy"""
    divergence: str = choice("reverse", "reverse", "forward", "jsd")
    """reverse: KL(student || teacher); forward: KL(teacher || student); jsd: between them, see --beta"""
    beta: float = 0.5
    """of jsd: beta KL(T || M) + (1 - beta) KL(S || M) with M = beta T + (1 - beta) S; small beta is like forward KL"""
    estimator: str = choice("full", "full", "topk", "sampled")
    """full: exact sum over the vocabulary; topk: --top_k tokens and one bucket for the rest; sampled: the sampled token only"""
    top_k: int = 16
    """tokens that keep a bucket of their own with --estimator topk"""
    off_policy: float = 0.0
    """share of rollouts replaced by text the student did not write; such text is learnt by cross-entropy (1 = SFT)"""
    off_policy_data: str = choice("reference", "reference", "teacher")
    """where that text comes from: the data's worked solutions, or samples of the teacher"""
    seed: int = 0
    """everything random follows from it: order of the data, rollouts"""
    out: str | None = None
    """folder for metrics, picture, checkpoints and the final model (default: runs/opd-SEED)"""
    eval_every: int | None = None
    """evaluate every so many updates, and before the first and after the last (default: 20 on the toy, else 50; 0: only those two)"""
    eval_n: int | None = None
    """test problems of each evaluation, greedy (default: 500 on the toy, else 200)"""
    save_every: int = 20
    """write a checkpoint every so many updates (0: only on Ctrl-C)"""
    show_every: int = 20
    """print one rollout, its tokens coloured by KL, every so many updates (0: never)"""
    resume: bool = False
    """continue the run in --out from its last checkpoint"""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1 ..."""
    dtype: str = choice("auto", "auto", "float32", "bfloat16")
    """of the computation (auto: bfloat16 on a GPU, float32 on a CPU); the student's weights are float32 always"""
    micro_tokens: int = 16384
    """tokens, padding included, that go through the models at once; changes memory and speed, never the result"""
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
    plumbing.recall(args, f"runs/opd-{args.seed}")
    say = args.data or args.student or ("hub" if args.device != "cpu" and torch.cuda.is_available() else "toy")
    for name, value in (TOY if say.startswith("toy") else HUB).items():
        if getattr(args, name) is None:
            setattr(args, name, value)
    args.benchmark = args.benchmark or args.data
    check_name(args.data, "train")
    check_name(args.benchmark, "test")
    for name in ("steps", "prompts", "samples", "max_new_tokens", "eval_n", "top_k", "micro_tokens", "chunk_logits"):
        require(getattr(args, name) >= 1, f"--{name} is {getattr(args, name)}; it must be at least 1.")
    for name in ("eval_every", "save_every", "show_every"):
        require(getattr(args, name) >= 0, f"--{name} is {getattr(args, name)}; it must be 0 (off) or more.")
    plumbing.check_packages(args)
    require(0 <= args.lora <= 1024, f"--lora is {args.lora}; it is a rank and must lie in [0, 1024] (0: all weights learn).")
    require(args.lr > 0 and math.isfinite(args.lr), f"--lr is {args.lr}; it must be positive.")
    require(0 < args.temperature < 100, f"--temperature is {args.temperature}; rollouts are sampled, so it must be above 0.")
    require(
        0 < args.beta < 1,
        f"--beta is {args.beta}; it must lie between 0 and 1 (use --divergence forward or reverse for the ends).",
    )
    require(
        args.student != args.teacher,
        f"--student and --teacher are both '{args.student}': it would learn nothing from itself; choose a better teacher.",
    )
    require(0 <= args.off_policy <= 1, f"--off_policy is {args.off_policy}; it is a share and must lie in [0, 1].")
    require(
        args.estimator != "sampled" or args.divergence == "reverse",
        "--estimator sampled estimates the reverse KL; use it with --divergence reverse.",
    )
    return args


# ============================================================================================ 1. what the student wrote


def rollouts(student, teacher, tokenizer, rows, args, step):
    """(1): `samples` responses for every row. Returns prompts, responses (both lists of token ids), truncated, off_policy.

    Which tokens are drawn depends on (seed, step, prompt, sample) only, so any rollout can be drawn again alone.
    """
    prompts = [r["ids"] for r in rows for _ in range(args.samples)]
    keys = [(args.seed, step, i, j) for i in range(len(rows)) for j in range(args.samples)]
    common = dict(
        n=args.samples,
        max_new_tokens=args.max_new_tokens,
        eos=eos_ids(student, tokenizer),
        vocabulary=len(tokenizer),
        keys=keys,
        temperature=args.temperature,
    )
    off_policy = [args.off_policy > 0 and uniforms(("off-policy", *key), 1).item() < args.off_policy for key in keys]
    # No top-p, no top-k: a filtered sampler with the full softmax in the loss would train at states it never visits.
    drawn = sample(student, [r["ids"] for r in rows], **common) if not all(off_policy) else [None] * len(keys)
    other = [None] * len(keys)
    if any(off_policy) and args.off_policy_data == "teacher":
        other = sample(teacher, [r["ids"] for r in rows], **common)
    responses, truncated = [], []
    for i, off in enumerate(off_policy):
        if off and args.off_policy_data == "reference":  # the end-of-turn token belongs to the text: it is learnt, too
            ids = tokenizer(rows[i // args.samples]["solution"], add_special_tokens=False)["input_ids"] + [
                tokenizer.eos_token_id
            ]
            responses.append(ids[: args.max_new_tokens])
            truncated.append(len(ids) > args.max_new_tokens)
        else:
            completion = other[i] if off else drawn[i]
            responses.append(completion.ids)
            truncated.append(completion.truncated)
    return prompts, responses, truncated, off_policy


# ============================================================================================ 2. how much they disagree


def divergence(student, teacher, kind="reverse", beta=0.5):
    """(2): divergence at every state, [n], from log-probabilities [n, V]. Summed over the vocabulary, never averaged over it.

    Note that F.kl_div(a, b) is KL(b || a): its FIRST argument is the second distribution. Hence no F.kl_div here.
    """
    if kind == "reverse":  # expectation under the student: it pays for its own mass where the teacher has none
        return (student.exp() * (student - teacher)).sum(-1)
    if kind == "forward":  # expectation under the teacher: it pays for the teacher's mass that it does not cover
        return (teacher.exp() * (teacher - student)).sum(-1)
    mixture = torch.logaddexp(teacher + math.log(beta), student + math.log(1 - beta))  # [n, V]
    return beta * (teacher.exp() * (teacher - mixture)).sum(-1) + (1 - beta) * (student.exp() * (student - mixture)).sum(-1)


def coarse(student, teacher, k, kind):
    """Log-probabilities [n, k+1]: k tokens of their own and one bucket with all other mass.

    With the bucket it is a divergence (of coarser distributions, so never larger than the full one). Renormalising the k
    would ignore the mass outside (k = 1 is always 0), and a bare partial sum can be negative and rewards moving mass out.
    """
    if k >= student.shape[-1]:
        return student, teacher
    chosen = (student if kind == "reverse" else teacher).detach().topk(k).indices  # [n, k], where the weights are
    rest = torch.zeros_like(student, dtype=torch.bool).scatter(1, chosen, True)
    return tuple(
        torch.cat([x.gather(1, chosen), x.masked_fill(rest, -math.inf).logsumexp(-1, keepdim=True)], 1)
        for x in (student, teacher)
    )


def token_loss(student_logits, teacher_logits, targets, off_policy, args):
    """Loss of every token, [n], and what one wants to see of it, [n, 3]: reverse KL, entropy of student and of teacher."""
    student = (student_logits.float() / args.temperature).log_softmax(-1)  # [n, V], always in float32
    teacher = (teacher_logits.float() / args.temperature).log_softmax(-1)  # [n, V]
    own = student.gather(1, targets[:, None]).squeeze(1)  # [n], log p_S(y_t)
    if args.estimator == "full":
        loss = divergence(student, teacher, args.divergence, args.beta)
    elif args.estimator == "topk":
        loss = divergence(*coarse(student, teacher, args.top_k, args.divergence), args.divergence, args.beta)
    else:
        # k1 = log p_S(y) - log p_T(y) is an unbiased estimate of (2), but differentiating IT gives zero in expectation:
        # it must be a detached advantage in front of log p_S (the score function). Not z-scored: its zero point means
        # "as likely as the teacher thinks".
        advantage = (teacher.gather(1, targets[:, None]).squeeze(1) - own).detach()  # [n]
        loss = -advantage * own
    if off_policy.any():  # text the student did not write: cross-entropy
        loss = torch.where(off_policy, -own, loss)
    with torch.no_grad():
        seen = torch.stack(
            [divergence(student, teacher), -(student.exp() * student).sum(-1), -(teacher.exp() * teacher).sum(-1)], 1
        )
    return loss, seen


def chunked_loss(student, teacher, hidden, teacher_hidden, targets, off_policy, args, vocabulary):
    """Sum of token_loss over all tokens, computed in chunks whose logits are recomputed in the backward pass.

    Exact, since the loss is a sum over tokens: a chunk's gradient with respect to hidden states and head does not depend
    on the other chunks. Heads may be wider than the tokenizer (padding rows) and differ in width: both are cut to it.
    """

    def one(h, th, y, off):
        with torch.no_grad():
            teacher_logits = teacher.get_output_embeddings()(th)[:, :vocabulary]  # [n, V]
        return token_loss(student.get_output_embeddings()(h)[:, :vocabulary], teacher_logits, y, off, args)

    size, total, seen = max(1, args.chunk_logits // vocabulary), 0.0, []
    for pieces in zip(*(x.split(size) for x in (hidden, teacher_hidden, targets, off_policy))):
        # One chunk alone is kept: recomputing it would save nothing.
        loss, stats = one(*pieces) if len(targets) <= size else checkpoint(one, *pieces, use_reentrant=False)
        total, seen = total + loss.sum(), seen + [stats]
    return total, torch.cat(seen)  # scalar, [N, 3]


# ============================================================================================ 3. one update


def update(student, teacher, optimiser, batch, args, clock, autocast, vocabulary):
    """Scores a batch of rollouts, adds up the gradient of (3) over micro-batches, takes one step. Returns metrics, KL by rollout."""
    prompts, responses, truncated, off_policy = batch
    tokens = sum(map(len, responses))  # counted FIRST, over the whole step: the result must not depend on how the
    seen, loss_sum = [None] * len(prompts), 0.0  # batch is cut, as it would with a mean of micro-batch means
    student.train()
    for chosen in plumbing.micro_batches([len(p) + len(r) for p, r in zip(prompts, responses)], args.micro_tokens, deal=True):
        ids, predicts, targets = pack([prompts[i] for i in chosen], [responses[i] for i in chosen], student.device)
        lengths = [len(responses[i]) for i in chosen]
        off = torch.tensor([off_policy[i] for i in chosen]).repeat_interleave(torch.tensor(lengths)).to(student.device)  # [N]
        with clock.phase("teacher"), torch.no_grad():
            teacher_hidden = states(teacher, ids, predicts)  # [N, teacher's width]
        with clock.phase("student"):
            with autocast():
                hidden = states(student, ids, predicts)  # [N, student's width]
                total, stats = chunked_loss(student, teacher, hidden, teacher_hidden, targets, off, args, vocabulary)
            (total / tokens).backward()  # (3), summed over micro-batches
        loss_sum += total.item()
        for i, s in zip(chosen, stats.split(lengths)):
            seen[i] = s
    seen, loss_sum = plumbing.everyones(seen, loss_sum)  # with several GPUs, what the others scored
    with clock.phase("step"):
        norm, changed = plumbing.clip_and_step(student, optimiser, clip=1.0)
    kl, own_entropy, teacher_entropy = torch.cat(seen).mean(0).tolist()
    return {
        "loss": loss_sum / tokens,
        "kl": kl,
        "student_entropy": own_entropy,
        "teacher_entropy": teacher_entropy,
        "length": tokens / len(responses),
        "truncated": sum(truncated) / len(truncated),
        "grad_norm": norm,
        "changed": changed,
        "tokens": tokens,
    }, [s[:, 0] for s in seen]


# ============================================================================================ main


def main(argv=None):
    args = settle(plumbing.parse_arguments(Args, __doc__, argv))
    device = plumbing.pick_device(args.device)
    out, resumed = plumbing.open_run(args, "opd.py")
    dtype = plumbing.compute_dtype(args.dtype, device)
    tokenizer = plumbing.load_tokenizer(args.student)
    plumbing.same_tokenizer(tokenizer, plumbing.load_tokenizer(args.teacher))
    rows, tests = load_benchmark(args.data, "train"), load_benchmark(args.benchmark, "test", args.eval_n)
    require(
        args.off_policy == 0 or args.off_policy_data == "teacher" or all("solution" in r for r in rows),
        f"'{args.data}' has no column solution to learn from; use --off_policy_data teacher, or --off_policy 0.",
    )
    plumbing.check_prompts(tokenizer, [r["prompt"] for r in rows[:50]], args.data)
    # The student's weights are float32 even where it computes in bfloat16: a step of 1e-6 on a bfloat16 weight mostly
    # rounds to nothing. The teacher never changes and can be small.
    student = plumbing.load_student(args, resumed, device, dtype)
    teacher = plumbing.load_model(args.teacher, device, dtype).requires_grad_(False)
    checkpointing = args.gradient_checkpointing or (args.gradient_checkpointing is None and device.type == "cuda")
    if checkpointing:
        plumbing.checkpoint_layers(student)
    rows = plumbing.fitting_prompts(rows, lambda r: prompt_ids(tokenizer, r["prompt"]), student, args.max_new_tokens)
    optimiser = plumbing.adamw(student, args.lr, args.adam_bits)  # without weight decay: nothing but the loss moves a weight
    start = plumbing.load_state(resumed, optimiser, device)["step"] if resumed else 0
    metrics, clock = plumbing.Metrics(out, start if args.resume else None), plumbing.Clock(device)
    autocast = plumbing.autocaster(device, dtype)

    def measure(model, **more):  # greedy accuracy on the same test problems every time
        summary, _ = evaluate(model, tokenizer, tests, max_new_tokens=max(256, args.max_new_tokens), autocast=autocast())
        return {k: summary[k] for k in ("accuracy", "interval", "n", "truncated", "mean_tokens")} | more

    # ---- what is about to happen
    plumbing.announce("opd.py", args, student, teacher, rows, tokenizer, dtype, checkpointing)
    if args.sampler == "vllm":
        plumbing.attach_vllm(student, tokenizer, args, dtype)
    plumbing.write_config(out, args, "opd.py")
    if start == 0 and not metrics.rows:
        first, ceiling = measure(student), measure(teacher)
        metrics.add({"step": 0, "eval": first, "teacher_accuracy": ceiling["accuracy"]})
        print(
            f"before:  student {plumbing.percent(first)}   teacher {plumbing.percent(ceiling)}   (greedy, {first['n']} problems of {args.benchmark})"
        )
        plumbing.warn_small_gap(first, ceiling)

    # ---- training
    with plumbing.Stopper() as stopper, plumbing.progress(args.steps, "opd", "update", initial=start) as bar:
        for step in range(start + 1, args.steps + 1):
            clock.start()
            chosen = [rows[i] for i in plumbing.prompts_of_step(step, args.prompts, len(rows), args.seed)]
            with clock.phase("sample"), autocast():
                batch = rollouts(student, teacher, tokenizer, chosen, args, step)
            for group in optimiser.param_groups:
                group["lr"] = args.lr * min(1.0, step / max(1, round(0.05 * args.steps)))
            result, kls = plumbing.within_memory(
                update, student, teacher, optimiser, batch, args, clock, autocast, len(tokenizer)
            )
            seconds = clock.stop()
            metrics.add(
                {
                    "step": step,
                    **result,
                    "lr": group["lr"],
                    "seconds": seconds,
                    "tokens_per_second": result["tokens"] / seconds["total"],
                    "peak_memory": plumbing.peak_memory(device),
                }
            )
            bar.set_postfix_str(
                f"loss {result['loss']:.3f}, kl {result['kl']:.3f}, length {result['length']:.0f}, {result['tokens'] / seconds['total']:,.0f} tokens/s"
            )
            bar.update()
            if args.show_every and step % args.show_every == 0:
                plumbing.show_rollout(bar, step, tokenizer, batch[1][0], kls[0])
            last = step == args.steps
            if last or (args.eval_every and step % args.eval_every == 0):
                metrics.add({"step": step, "eval": measure(student)})
                bar.write(f"update {step:4d}  accuracy {plumbing.percent(metrics.rows[-1]['eval'])}  kl {result['kl']:.3f}")
                plumbing.draw_curve(
                    metrics.rows, out / "curve.png", f"opd.py: {args.student} learns from {args.teacher} on {args.data}"
                )
            stop = stopper.asked()
            if last or stop or (args.save_every and step % args.save_every == 0):
                plumbing.save_checkpoint(out, step, student, tokenizer, optimiser)
            if stop and not last:
                bar.close()
                print(f"stopped after update {step}; continue with: {plumbing.resume_command('opd.py', args)}")
                return

    # ---- what came of it
    plumbing.save_final(out, student, tokenizer)
    plumbing.conclude(out, metrics.rows, args, device)


if __name__ == "__main__":
    plumbing.run(main)
