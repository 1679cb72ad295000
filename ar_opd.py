"""AR-OPD, anchored residual on-policy distillation: learn from oneself, shown the solution, but only what can be justified here.

After Wenhao Zhang, "Beyond Absolute Imitation: Anchored Residual Guidance for Privileged On-Policy Distillation" (arXiv 2606.10385).
The idea in five sentences. No larger model teaches: the student itself, shown the worked solution, scores the student's rollouts
(a self-teacher with privilege). But that teacher knows the future, so it puts mass on tokens that nobody could justify at this
point: it skips steps and appeals to a solution that the student cannot see. So the privilege is split. A view of the FIRST
HALF of the solution is the anchor, a target within reach; what the whole solution adds is a residual, and only a part of it is taken.

    y ~ p_S(. | x)                                                  rollout from the plain prompt                              (1)
    q_part = p_T(. | x, first half of z, y_<t),  q_full = p_T(. | x, z, y_<t)      two views, the same weights, the same text   (2)
    r = clip( log q_full - log q_part, -5, 5 )                      the residual, from NORMALISED log-probabilities             (3)
    log q = log q_part + lambda r - C_t                             the anchored residual target; C_t normalises                (4)
    L = mean over rollouts of mean over tokens of KL( q || p_S(. | x, y_<t) )      forward KL, the target is detached           (5)
    theta_T <- (1 - rate) theta_T + rate theta_S                    the teacher is a moving average of the student              (6)

What (4) is, said plainly: for 0 < lambda < 1 (and no clip) it is the normalised geometric mixture q_part^(1-lambda) q_full^lambda, so a token
needs support in BOTH views. lambda = 0 is the partial view, lambda = 1 without clip the full view; only lambda > 1 extrapolates,
like classifier-free guidance.

What is whose (the same tags stand in the code; "code" is the trainer that the author released):
  [paper]     1. (2)-(5); rho = 0.5, cut at a word; lambda = 0.6; the partial view has no final answer.  2. EMA teacher.
  [code]      3. token mean per sequence, then mean over sequences: a token of a short answer weighs more.  4. rate 0.01.  5. clip at 5 nats.
              6. one rollout a prompt, temperature 1, no filter by reward, truncated rollouts are kept.  7. the first 3 tokens of a
              rollout carry no loss (--skip_first 3).  8. its data KEEP the answer in the partial view (--partial_answer keep).
  [ours]      9. no token is skipped (toy answers are short).  10. a privileged prompt is never cut: one that does not fit is left out and
              counted. A cap that cuts the END takes the answer and the assistant's turn away, and more often from the full view.

Run it:
    python ar_opd.py                     without a GPU: the built-in toy, a few minutes; with one: Qwen3-0.6B on GSM8K
    python ar_opd.py --target full       the baseline: imitate the view with everything (also: partial, sft)
    python ar_opd.py --lam 1.2           beyond the full view
Before the first update it prints what each view sees, and how often the student is right when it GENERATES under each: if the
full view does not help there, it has nothing to teach. What held on the toy and what did not: benchmarks/README.md.
"""

import math
import re
from dataclasses import dataclass

import torch
from torch.utils.checkpoint import checkpoint

import plumbing
from evaluate import check_name, eos_ids, evaluate, load_benchmark, privileged_prompt, prompt_ids, sample
from plumbing import choice, pack, require, states
from toy import world

# Two complete settings; a flag that is given wins. Without a GPU, or with toy models or data, the first.
# fmt: off
TOY = dict(student="toy/reader", data="toy", steps=120, max_new_tokens=160, lr=3e-4, ema=0.05, eval_n=500, eval_every=20)
HUB = dict(student="Qwen/Qwen3-0.6B", data="gsm8k", steps=200, max_new_tokens=512, lr=1e-5, ema=0.01, eval_n=200, eval_every=50)
# fmt: on


# ============================================================================================ arguments


@dataclass
class Args:
    student: str | None = None
    """model that learns from itself: a folder or a hub name (default: toy/reader, with a GPU Qwen/Qwen3-0.6B)"""
    data: str | None = None
    """training problems with worked solutions: toy, gsm8k, or a JSONL file with problem, answer and solution (default: toy, with a GPU gsm8k)"""
    benchmark: str | None = None
    """test problems for the evaluations along the way (default: the test split of --data)"""
    steps: int | None = None
    """updates (default: 120 on the toy, else 200)"""
    prompts: int = 64
    """prompts an update"""
    samples: int = 1
    """rollouts a prompt; prompts x samples is the batch"""
    max_new_tokens: int | None = None
    """a rollout is cut after so many tokens (default: 160 on the toy, else 512)"""
    lr: float | None = None
    """AdamW's learning rate, after a linear warm-up over the first 5 % of the updates (default: 3e-4 on the toy, else 1e-5)"""
    target: str = choice("anchored", "anchored", "partial", "full", "sft")
    """anchored: (4); partial, full: imitate one view; sft: cross-entropy on the solution itself, no rollouts"""
    lam: float = 0.6
    """lambda of (4): share of the residual; 0 is the partial view, 1 (without clip) the full view, above 1 extrapolates"""
    clip: float = 5.0
    """the residual is clipped to so many nats in both directions (0: not at all)"""
    rho: float = 0.5
    """share of the solution that the partial view shows, from its start, cut at a word"""
    partial_answer: str = choice("remove", "remove", "keep")
    """whether the partial view is told the final answer; the paper removes it, its released data keep it"""
    teacher: str = choice("ema", "ema", "frozen", "current")
    """the self-teacher's weights: a moving average of the student's, those of the start, or the student's own of this update"""
    ema: float | None = None
    """rate of the moving average after every update (default: 0.05 on the toy, where 0.01 would keep 30 % of the start, else 0.01)"""
    skip_first: int = 0
    """so many first tokens of every rollout carry no loss (the released trainer: 3)"""
    seed: int = 0
    """everything random follows from it: order of the data, rollouts"""
    out: str | None = None
    """folder for metrics, picture, checkpoints and the final model (default: runs/ar_opd-SEED)"""
    eval_every: int | None = None
    """evaluate every so many updates, and before the first and after the last (default: 20 on the toy, else 50; 0: only those two)"""
    eval_n: int | None = None
    """test problems of each evaluation, greedy (default: 500 on the toy, else 200)"""
    save_every: int = 20
    """write a checkpoint every so many updates (0: only on Ctrl-C)"""
    show_every: int = 20
    """print one rollout, its tokens coloured by loss, every so many updates (0: never)"""
    resume: bool = False
    """continue the run in --out from its last checkpoint, moving average included"""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1 ..."""
    dtype: str = choice("auto", "auto", "float32", "bfloat16")
    """of the computation (auto: bfloat16 on a GPU, float32 on a CPU); weights of student and moving average are float32 always"""
    micro_tokens: int = 16384
    """tokens, padding included, that go through the model at once; changes memory and speed, never the result"""
    chunk_logits: int = 2**24
    """logits of one view that may exist at once, in the loss; 2^24 are 64 MiB in float32"""
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
    plumbing.recall(args, f"runs/ar_opd-{args.seed}")
    say = args.data or args.student or ("hub" if args.device != "cpu" and torch.cuda.is_available() else "toy")
    for name, value in (TOY if say.startswith("toy") else HUB).items():
        if getattr(args, name) is None:
            setattr(args, name, value)
    args.benchmark = args.benchmark or args.data
    check_name(args.data, "train")
    check_name(args.benchmark, "test")
    for name in ("steps", "prompts", "samples", "max_new_tokens", "eval_n", "micro_tokens", "chunk_logits"):
        require(getattr(args, name) >= 1, f"--{name} is {getattr(args, name)}; it must be at least 1.")
    for name in ("eval_every", "save_every", "show_every"):
        require(getattr(args, name) >= 0, f"--{name} is {getattr(args, name)}; it must be 0 (off) or more.")
    plumbing.check_packages(args)
    require(0 <= args.lora <= 1024, f"--lora is {args.lora}; it is a rank and must lie in [0, 1024] (0: all weights learn).")
    require(args.lr > 0 and math.isfinite(args.lr), f"--lr is {args.lr}; it must be positive.")
    require(0 <= args.lam <= 5, f"--lam is {args.lam}; it must lie in [0, 5] (0 the partial view, 1 the full one).")
    require(args.clip >= 0 and math.isfinite(args.clip), f"--clip is {args.clip}; it must be 0 (no clip) or more.")
    require(
        0 < args.rho < 1, f"--rho is {args.rho}; it is a share and must lie in (0, 1) (for the whole solution: --target full)."
    )
    require(0 < args.ema <= 1, f"--ema is {args.ema}; it is a rate and must lie in (0, 1] (for no update: --teacher frozen).")
    require(
        0 <= args.skip_first < args.max_new_tokens,
        f"--skip_first is {args.skip_first}; it must be at least 0 and below --max_new_tokens ({args.max_new_tokens}).",
    )
    return args


# ============================================================================================ 1. who sees what


def first_part(solution, rho):
    """The first `rho` of a solution, cut at a word [paper], without its final answer: a cut behind the box goes back before it.

    >>> first_part("a: 1 + 2 = 3. b: 3 + 4 = 7. The answer is \\\\boxed{7}.", 0.5)
    'a: 1 + 2 = 3. b: 3'
    """
    ends = [m.end() for m in re.finditer(r"\S+", solution)]
    part = solution[: ends[max(1, int(len(ends) * rho)) - 1]]
    if "\\boxed" in part:
        part = re.split(r"(?<=[.!?])\s|\n", part[: part.index("\\boxed")])
        part = " ".join(part[:-1]) or part[0]
    return part


def views(row, args):
    """The three user turns: plain, partial, full. One wording for both privileged views, so that they differ in what they show
    and in nothing else."""
    told = row["answer"] if args.partial_answer == "keep" else None
    return {
        "plain": row["prompt"],
        "partial": privileged_prompt(row["prompt"], first_part(row["solution"], args.rho), told),
        "full": privileged_prompt(row["prompt"], row["solution"]),
    }


def gate(model, tokenizer, rows, args, autocast):
    """Accuracy when GENERATING under each view and under another problem's solution, greedy. A teacher that cannot use what it is
    shown has nothing to teach; one that is as good with a wrong solution is not reading it."""
    shown = {name: [{**r, "prompt": views(r, args)[name]} for r in rows] for name in ("plain", "partial", "full")}
    others = [next((o for o in rows[i + 1 :] + rows[:i] if o["answer"] != r["answer"]), r) for i, r in enumerate(rows)]
    shown["wrong"] = [{**r, "prompt": privileged_prompt(r["prompt"], o["solution"])} for r, o in zip(rows, others)]
    most = max(256, args.max_new_tokens)
    return {k: evaluate(model, tokenizer, v, max_new_tokens=most, autocast=autocast())[0] for k, v in shown.items()}


# ============================================================================================ 2. what the student wrote


def rollouts(student, tokenizer, rows, args, step):
    """(1): responses to the PLAIN prompts. Returns responses (lists of token ids) and truncated, row by row, sample by sample.
    With --target sft the response is the worked solution."""
    if args.target == "sft":
        ids = [
            tokenizer(r["solution"], add_special_tokens=False)["input_ids"] + [tokenizer.eos_token_id]
            for r in rows
            for _ in range(args.samples)
        ]
        return [x[: args.max_new_tokens] for x in ids], [len(x) > args.max_new_tokens for x in ids]
    drawn = sample(
        student,
        [r["plain"] for r in rows],
        n=args.samples,
        max_new_tokens=args.max_new_tokens,
        eos=eos_ids(student, tokenizer),
        vocabulary=len(tokenizer),
        keys=[(args.seed, step, i, j) for i in range(len(rows)) for j in range(args.samples)],
    )
    return [c.ids for c in drawn], [c.truncated for c in drawn]


# ============================================================================================ 3. the target and the loss


def log_probabilities(model, hidden, vocabulary):
    """[n, V] in float32, NORMALISED: (3) is a difference of log-probabilities. Clipping a difference of logits clips something that has
    an arbitrary constant per position in it, and gives another target."""
    return model.get_output_embeddings()(hidden)[:, :vocabulary].float().log_softmax(-1)


def anchored_target(partial, full, lam, clip):
    """(3) and (4): log q, [n, V], from the log-probabilities of the two views, [n, V] each; and the clipped share, [n]."""
    residual = full - partial  # [n, V]
    beyond = residual.abs() > clip if clip else torch.zeros_like(residual, dtype=torch.bool)
    if clip:
        residual = residual.clamp(-clip, clip)
    # C_t is the log-sum-exp. Without it q would not sum to 1, and the KL of (5) would be no divergence.
    return (partial + lam * residual).log_softmax(-1), (full.exp() * beyond).sum(-1)


def forward_kl(target, student):
    """KL(target || student), [n], from log-probabilities [n, V]: the student pays wherever the target has mass and it has not."""
    return (target.exp() * (target - student)).sum(-1)


def chunked_loss(student, teacher, hidden, partial_hidden, full_hidden, targets, weight, args, vocabulary):
    """Weighted sum of (5) over N positions, and what one wants to see, [N, 7]. Views, target and student exist for one chunk of positions at
    a time and are recomputed in the backward pass: exact, since the loss is a sum over positions."""

    def one(h, hp, hf, y, w):
        ours = log_probabilities(student, h, vocabulary)  # [n, V]
        own = ours.gather(1, y[:, None]).squeeze(1)  # [n], log p_S(y_t)
        with torch.no_grad():
            zero = torch.zeros_like(w)
            partial = log_probabilities(teacher, hp, vocabulary) if hp is not None else None
            full = log_probabilities(teacher, hf, vocabulary) if hf is not None else None
            clipped = zero
            if args.target == "anchored":
                target, clipped = anchored_target(partial, full, args.lam, args.clip)
            else:
                target = {"partial": partial, "full": full, "sft": None}[args.target]
        losses = -own if target is None else forward_kl(target, ours)  # [n]
        with torch.no_grad():
            entropy = -(ours.exp() * ours).sum(-1)
            seen = [losses, entropy, clipped]
            seen += [zero if target is None else -(target.exp() * target).sum(-1)]
            seen += [zero if view is None else forward_kl(view, ours) for view in (partial, full)]
            both = partial is not None and full is not None
            seen += [(full - partial).gather(1, y[:, None]).squeeze(1).abs() if both else zero]
        return (losses * w).sum(), torch.stack(seen, 1)

    size, total, seen = max(1, args.chunk_logits // vocabulary), 0.0, []
    for first in range(0, len(targets), size):
        pieces = [x if x is None else x[first : first + size] for x in (hidden, partial_hidden, full_hidden, targets, weight)]
        loss, stats = one(*pieces) if len(targets) <= size else checkpoint(one, *pieces, use_reentrant=False)
        total, seen = total + loss, seen + [stats]
    return total, torch.cat(seen)


# ============================================================================================ 4. one update


def update(student, teacher, optimiser, rows, batch, args, clock, autocast, vocabulary):
    """Scores a batch of rollouts under the views, takes one step along the gradient of (5), moves the teacher (6)."""
    responses, truncated = batch
    rows = [r for r in rows for _ in range(args.samples)]
    counted = [max(0, len(r) - args.skip_first) for r in responses]
    sequences = max(1, sum(c > 0 for c in counted))
    # Mean per rollout, then over rollouts [code]: all weights are known before the first micro-batch, so the result does not depend
    # on how the batch is cut. A token of a rollout of 30 tokens weighs four times one of a rollout of 120.
    weights = [
        torch.tensor([0.0] * (len(r) - c) + [1 / (sequences * c)] * c if c else [0.0] * len(r))
        for r, c in zip(responses, counted)
    ]
    needed = {"anchored": ("partial", "full"), "partial": ("partial",), "full": ("full",), "sft": ()}[args.target]
    seen, loss_sum = [None] * len(rows), 0.0
    longest = [len(r["full"]) + len(y) for r, y in zip(rows, responses)]
    student.train()
    for chosen in plumbing.micro_batches(longest, args.micro_tokens, deal=True):
        after = [responses[i] for i in chosen]
        with clock.phase("teacher"), torch.no_grad(), autocast():
            # The completion's token ids stand behind each privileged prompt as they are: text that was decoded and tokenized
            # again could be cut differently, and the positions of the views would no longer be those of the student.
            hidden_of = {}
            for view in needed:
                ids, predicts, _ = pack([rows[i][view] for i in chosen], after, student.device)
                hidden_of[view] = states(teacher, ids, predicts)  # [N, width]
        ids, predicts, targets = pack([rows[i]["plain"] for i in chosen], after, student.device)
        weight = torch.cat([weights[i] for i in chosen]).to(student.device)  # [N]
        with clock.phase("student"):
            with autocast():
                hidden = states(student, ids, predicts)  # [N, width]
                views_of = hidden_of.get("partial"), hidden_of.get("full")
                total, stats = chunked_loss(student, teacher, hidden, *views_of, targets, weight, args, vocabulary)
            total.backward()
        loss_sum += total.item()
        for i, s in zip(chosen, stats.split([len(responses[i]) for i in chosen])):
            seen[i] = s
    seen, loss_sum = plumbing.everyones(seen, loss_sum)  # with several GPUs, what the others scored
    with clock.phase("step"):
        norm, changed = plumbing.clip_and_step(student, optimiser, clip=1.0)
        if args.teacher == "ema" and math.isfinite(norm):
            follow(teacher, student, args.ema)
    means = torch.cat(seen).mean(0).tolist()
    tokens = sum(map(len, responses))
    found = dict(
        zip(("token_loss", "student_entropy", "clipped", "target_entropy", "kl_partial", "kl_full", "residual"), means)
    )
    return {
        "loss": loss_sum,
        "kl": found.pop("token_loss"),
        **found,
        "length": tokens / len(responses),
        "truncated": sum(truncated) / len(truncated),
        "grad_norm": norm,
        "changed": changed,
        "tokens": tokens,
    }, [s[:, 0] for s in seen]


@torch.no_grad()
def follow(teacher, student, rate):
    """(6), in float32: a hundredth of a small difference is lost in bfloat16."""
    for t, s in zip(teacher.parameters(), student.parameters()):
        if t is not s:  # under --lora they share what does not change
            t.lerp_(s, rate)


# ============================================================================================ shortcuts


# Words with which a text appeals to a solution that its reader cannot see.
APPEALS = re.compile(
    r"\b(example (response|solution)|given (response|solution)|provided (response|solution|answer)|(response|solution) above|as shown above)\b",
    re.IGNORECASE,
)


def shortcut(problem, response):
    """Does this response use what only the privileged teacher saw? On the toy the checker decides it exactly: a true value stands
    there before the values that it is computed from. Elsewhere, like the paper, by words: it appeals to an unseen solution, or it states
    an answer with no derivation at all."""
    try:
        return bool(world.check(problem, response).shortcuts)
    except ValueError:
        before = response.split("\\boxed")[0]
        return bool(APPEALS.search(response)) or ("\\boxed" in response and len(before.split()) < 8)


# ============================================================================================ main


def main(argv=None):
    args = settle(plumbing.parse_arguments(Args, __doc__, argv))
    device = plumbing.pick_device(args.device)
    out, resumed = plumbing.open_run(args, "ar_opd.py")
    dtype = plumbing.compute_dtype(args.dtype, device)
    tokenizer = plumbing.load_tokenizer(args.student)
    rows, tests = load_benchmark(args.data, "train"), load_benchmark(args.benchmark, "test", args.eval_n)
    require(
        all(str(r.get("solution") or "").strip() for r in rows),
        f"'{args.data}' has rows without a solution, and the self-teacher needs one to look at; use toy, gsm8k, or a JSONL file with the "
        "columns problem, answer and solution.",
    )
    plumbing.check_prompts(tokenizer, [views(r, args)["full"] for r in rows[:50]], args.data)
    student = plumbing.load_student(args, resumed, device, dtype)
    teacher = student if args.teacher == "current" else plumbing.copy_of(student)
    checkpointing = args.gradient_checkpointing or (args.gradient_checkpointing is None and device.type == "cuda")
    if checkpointing:
        plumbing.checkpoint_layers(student)
    # The full view is the longest prompt: what it fits into, all fit into. Nothing is ever cut.
    rows = plumbing.fitting_prompts(rows, lambda r: prompt_ids(tokenizer, views(r, args)["full"]), student, args.max_new_tokens)
    for row in rows:
        row.update({name: prompt_ids(tokenizer, user) for name, user in views(row, args).items()})
    optimiser = plumbing.adamw(student, args.lr, args.adam_bits)  # without weight decay: nothing but the loss moves a weight
    start = 0
    if resumed:
        state = plumbing.load_state(resumed, optimiser, device)
        start = state["step"]
        if args.teacher != "current":  # one that restarted from the student would be another teacher, and nothing would say so
            plumbing.load_trained(teacher, state["teacher"])
    metrics, clock = plumbing.Metrics(out, start if args.resume else None), plumbing.Clock(device)
    autocast = plumbing.autocaster(device, dtype)

    def accuracy(model):  # greedy, on the same test problems every time, from the plain prompt
        summary, records = evaluate(model, tokenizer, tests, max_new_tokens=max(256, args.max_new_tokens), autocast=autocast())
        events = sum(shortcut(tests[r["index"]]["problem"], r["response"]) for r in records)
        return {k: summary[k] for k in ("accuracy", "interval", "n", "truncated", "mean_tokens")} | {
            "shortcuts": events / len(records)
        }

    # ---- what is about to happen
    plumbing.announce(
        "ar_opd.py", args, student, None if teacher is student else teacher, rows, tokenizer, dtype, checkpointing
    )
    for name in ("plain", "partial", "full"):
        print(f"{name:<8} {plumbing.harmless(tokenizer.decode(rows[0][name]))!r}")
    if args.sampler == "vllm":
        plumbing.attach_vllm(student, tokenizer, args, dtype)
    plumbing.write_config(out, args, "ar_opd.py")
    if start == 0 and not metrics.rows:
        first = accuracy(student)
        shown = gate(student, tokenizer, rows[: min(len(rows), args.eval_n, 200)], args, autocast)
        metrics.add({"step": 0, "eval": first, "gate": {k: [v["accuracy"], *v["interval"]] for k, v in shown.items()}})
        print(
            "generating, shown "
            + ", ".join(f"{k}: {plumbing.percent(v)}" for k, v in shown.items())
            + f"   (greedy, {shown['plain']['n']} training problems)"
        )
        if shown["full"]["interval"][0] <= shown["plain"]["accuracy"]:
            print(
                "warning: the student is hardly better with the whole solution than without; expect no gain from teaching itself"
            )
        if shown["wrong"]["accuracy"] >= shown["full"]["accuracy"] - 0.02:
            print(
                "warning: a wrong problem's solution helps as much as the right one: the model does not read what it is shown"
            )

    # ---- training
    with plumbing.Stopper() as stopper, plumbing.progress(args.steps, "ar_opd", "update", initial=start) as bar:
        for step in range(start + 1, args.steps + 1):
            clock.start()
            chosen = [rows[i] for i in plumbing.prompts_of_step(step, args.prompts, len(rows), args.seed)]
            with clock.phase("sample"), autocast():
                batch = rollouts(student, tokenizer, chosen, args, step)
            for group in optimiser.param_groups:
                group["lr"] = args.lr * min(1.0, step / max(1, round(0.05 * args.steps)))
            result, losses = plumbing.within_memory(
                update, student, teacher, optimiser, chosen, batch, args, clock, autocast, len(tokenizer)
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
                f"loss {result['loss']:.3f}, length {result['length']:.0f}, {result['tokens'] / seconds['total']:,.0f} tokens/s"
            )
            bar.update()
            if args.show_every and step % args.show_every == 0:
                plumbing.show_rollout(bar, step, tokenizer, batch[0][0], losses[0])
            last = step == args.steps
            if last or (args.eval_every and step % args.eval_every == 0):
                metrics.add({"step": step, "eval": accuracy(student)})
                found = metrics.rows[-1]["eval"]
                bar.write(
                    f"update {step:4d}  accuracy {plumbing.percent(found)}  loss {result['loss']:.3f}  "
                    f"shortcuts {100 * found['shortcuts']:.1f} %"
                )
                title, what = f"ar_opd.py: {args.student} learns from itself on {args.data}", "KL(target || student)"
                plumbing.draw_curve(metrics.rows, out / "curve.png", f"{title} ({args.target})", what)
            stop = stopper.asked()
            if last or stop or (args.save_every and step % args.save_every == 0):
                extra = {} if teacher is student else {"teacher": plumbing.trained(teacher)}
                plumbing.save_checkpoint(out, step, student, tokenizer, optimiser, extra)
            if stop and not last:
                bar.close()
                print(f"stopped after update {step}; continue with: {plumbing.resume_command('ar_opd.py', args)}")
                return

    # ---- what came of it
    plumbing.save_final(out, student, tokenizer)
    plumbing.conclude(out, metrics.rows, args, device)


if __name__ == "__main__":
    plumbing.run(main)
