"""Hindsight self-distillation (HSD): a failed rollout learns from the same model that has seen a successful one.

After Yu Li, Shu Hong and Tian Lan, "Localizing Credit at the Divergence: Path-Conditioned Self-Distillation for LLM Reasoning"
(arXiv 2606.15576). The idea in five sentences. A verifier says of a whole response that it is right or wrong, and no token knows its part in it.
The same model, shown more than the problem, is a teacher for every token. Shown the final answer alone, that teacher has little to
say in the middle of a long solution. Shown the whole text of a PEER, a successful rollout of the same group, which costs no further sampling, it
disagrees where the failed rollout leaves the peer's path. So the loss is just that disagreement; no reward enters it, only the choice of peers.

    o_1 .. o_G ~ pi(. | q),   R_i in {0, 1}                             a group of rollouts, verified                          (1)
    c_i = (a*, o_j),  j uniform among the OTHER successful rollouts of the group; the answer a* alone if there is none         (2)
    p_t = stopgrad pi(. | q, c_i, o_i,<t),   s_t = pi(. | q, o_i,<t)    the same current weights, with and without the context (3)
    l_it = sum_v p_t(v) [log p_t(v) - log s_t(v)]                       KL(teacher || student), whole vocabulary               (4)
    L = mean over questions of (1/G) sum_i (1/|o_i|) sum_t l_it  +  beta KL(pi || pi_0)                                        (5)

The name: (4) is KL(teacher || student), what everyone else calls the forward KL. The paper calls it "reverse". Here it is --divergence forward.

What is whose (the same tags stand in the code):
  [paper]     1. (1)-(5); G = 8; all rollouts are trained, the successful ones too; beta = 1e-3; AdamW .9 / .95.  2. the teacher is the
              CURRENT model, no average and no frozen copy.  3. a rollout that was cut without an answer fails.
  [inferred]  4. the peer is drawn anew for each rollout.  5. one step a batch: exactly on-policy, so no ratio and no clip. The position of the
              divergence is used nowhere in training; that credit concentrates there is only MEASURED (diagnostics.py).
  [ours]      6. temperature 1 and no top-p (the paper: .95), so that a peer is an exact sample of the policy.  7. the beta term is the exact
              KL at the rollout's states, mean per rollout (--beta_norm sequence: the sum).  8. a rollout weighs 1 / (questions x G) whether or not
              others count (--train failures, --fallback mask).  9. a context is never cut: a question whose longest possible context does not
              fit is left out at the start and counted.
  The paper's table of the best coverage f* = max_p f(p, G) falls with G; its formula, `coverage` below, rises. The formula is right (tests).

Run it:
    python hindsight_sd.py                      without a GPU: the built-in toy, a few minutes; with one: Qwen3-0.6B on GSM8K
    python hindsight_sd.py --context answer     the baseline without peers (the paper's OPSD)
    python hindsight_sd.py --context answer --rl_weight 0.5                                        the half-and-half hybrid with GRPO
    python hindsight_sd.py --divergence jsd --teacher ema --fallback mask                          the choices of SDPO (2601.20802)
    python grpo.py                              the baseline without any teacher
Before the first update it shows what each context does to the student's accuracy when GENERATING: if a right peer does not help there, or a
wrong one helps as much, it has nothing to teach. What held on the toy and what did not: benchmarks/README.md.
"""

import math
from dataclasses import dataclass

import torch
from torch.utils.checkpoint import checkpoint

import diagnostics
import plumbing
from evaluate import check_name, eos_ids, evaluate, load_benchmark, privileged_prompt, prompt_ids, sample, uniforms, verify
from plumbing import choice, pack, require, states

# Two complete settings; a flag that is given wins. Without a GPU, or with toy models or data, the first. The toy's learning rate is a tenth
# of ar_opd.py's: a teacher that moves with every step feeds its own drift back, and at 1e-4 it ends at 0 % (benchmarks/README.md).
# fmt: off
TOY = dict(student="toy/reader", data="toy", steps=120, max_new_tokens=160, lr=3e-5, ema=0.05, eval_n=500, eval_every=20)
HUB = dict(student="Qwen/Qwen3-0.6B", data="gsm8k", steps=200, max_new_tokens=512, lr=1e-6, ema=0.05, eval_n=200, eval_every=50)
# fmt: on


# ============================================================================================ arguments


@dataclass
class Args:
    student: str | None = None
    """model that learns from itself: a folder or a hub name (default: toy/reader, with a GPU Qwen/Qwen3-0.6B)"""
    data: str | None = None
    """training problems: toy, gsm8k, or a JSONL file with the columns problem and answer (default: toy, with a GPU gsm8k)"""
    benchmark: str | None = None
    """test problems for the evaluations along the way (default: the test split of --data)"""
    steps: int | None = None
    """updates (default: 120 on the toy, else 200)"""
    prompts: int = 8
    """questions an update"""
    samples: int = 8
    """G: rollouts a question, the group in which peers are found"""
    max_new_tokens: int | None = None
    """a rollout is cut after so many tokens (default: 160 on the toy, else 512)"""
    lr: float | None = None
    """AdamW's learning rate, after a linear warm-up over the first 5 % of the updates (default: 3e-5 on the toy, else 1e-6, the paper's)"""
    context: str = choice("peer", "peer", "answer", "reference", "none")
    """what the teacher sees: answer and a peer; the answer alone; the data's worked solution; nothing"""
    peer: str = choice("uniform", "uniform", "shortest", "low_ppl", "high_ppl")
    """which of the other successful rollouts: any, the shortest, the one the student finds most or least likely per token"""
    fallback: str = choice("answer", "answer", "mask")
    """a rollout without a peer: learn from the answer alone, or not at all (SDPO)"""
    train: str = choice("all", "all", "failures")
    """rollouts that carry the distillation loss"""
    divergence: str = choice("forward", "forward", "reverse", "jsd")
    """forward: KL(teacher || student), the paper's; reverse: KL(student || teacher); jsd: Jensen-Shannon, half and half (SDPO)"""
    teacher: str = choice("current", "current", "ema", "frozen")
    """the self-teacher's weights: the student's own of this update, a moving average of them (SDPO), or those of the start (OPSD)"""
    ema: float | None = None
    """rate of the moving average after every update (default: 0.05, SDPO's)"""
    beta: float = 1e-3
    """weight of KL(student || frozen start); 0: off, and no copy of the start is kept in memory"""
    beta_norm: str = choice("token", "token", "sequence")
    """that KL as a mean over a rollout's tokens, or as their sum"""
    rl_weight: float = 0.0
    """w: loss = (1 - w) x distillation + w x GRPO's policy gradient; 0.5 is the half-and-half hybrid"""
    seed: int = 0
    """everything random follows from it: order of the data, rollouts, peers"""
    out: str | None = None
    """folder for metrics, picture, checkpoints and the final model (default: runs/hindsight_sd-SEED)"""
    eval_every: int | None = None
    """evaluate every so many updates, and before the first and after the last (default: 20 on the toy, else 50; 0: only those two)"""
    eval_n: int | None = None
    """test problems of each evaluation, greedy; a fifth of them also with G samples (default: 500 on the toy, else 200)"""
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
    plumbing.recall(args, f"runs/hindsight_sd-{args.seed}")
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
    require(
        args.samples >= 2 or (args.context != "peer" and args.rl_weight == 0),
        "--samples is 1, and a rollout cannot be its own peer or its own baseline; use --samples 8, or --context answer without --rl_weight.",
    )
    require(args.beta >= 0 and math.isfinite(args.beta), f"--beta is {args.beta}; it must be 0 (off) or more.")
    require(0 <= args.rl_weight < 1, f"--rl_weight is {args.rl_weight}; it must lie in [0, 1) (for 1: python grpo.py).")
    require(0 < args.ema <= 1, f"--ema is {args.ema}; it is a rate and must lie in (0, 1] (for no update: --teacher frozen).")
    require(
        args.context != "none" or args.teacher != "current" or args.rl_weight > 0,
        "--context none with --teacher current compares the student with itself: there is nothing to learn; choose another --context.",
    )
    return args


# ============================================================================================ 1. a group of rollouts, verified


def rollouts(student, tokenizer, rows, args, step):
    """(1): G responses for every question, row by row. Which tokens are drawn depends on (seed, step, question, sample) only."""
    return sample(
        student,
        [r["ids"] for r in rows],
        n=args.samples,
        max_new_tokens=args.max_new_tokens,
        eos=eos_ids(student, tokenizer),
        vocabulary=len(tokenizer),
        keys=[(args.seed, step, i, j) for i in range(len(rows)) for j in range(args.samples)],
    )


def read_back(tokenizer, completion):
    """A response as text, without its end-of-turn token: this is graded, and this is what a peer is shown as."""
    return tokenizer.decode(completion.ids, skip_special_tokens=True).strip()


def coverage(p, G):
    """Expected share of rollouts that fail AND have a successful peer, at success probability p: the share that learns from a path.

    Largest at p = 1 - G^(-1/(G-1)).
    >>> round(coverage(.257, 8), 3), round(coverage(1 - 16 ** (-1 / 15), 16), 3)
    (0.65, 0.779)
    """
    return (1 - p) * (1 - (1 - p) ** (G - 1))


# ============================================================================================ 2. what the teacher sees


def choose_peer(i, right, scores, rule, key):
    """(2): index of the peer of rollout i within its group, None without one. right: [G] verdicts; scores: [G] (length, mean log p).

    Never the rollout itself: shown its own text, the teacher would only say yes. [inferred] drawn for each rollout anew.
    """
    others = [j for j, ok in enumerate(right) if ok and j != i]
    if not others:
        return None
    if rule == "uniform":
        return others[int(uniforms(("peer", *key), 1).item() * len(others))]
    best = {"shortest": lambda j: scores[j][0], "low_ppl": lambda j: -scores[j][1], "high_ppl": lambda j: scores[j][1]}[rule]
    return min(others, key=lambda j: (best(j), j))


def context(row, peer, args):
    """The user turn of the teacher; None: it has nothing to say (masked). The peer's text is framed by the chat template like any other
    user turn: pasted behind the problem with its own end-of-turn token it would read as a finished conversation."""
    if args.context == "reference":
        return privileged_prompt(row["prompt"], row["solution"])
    if args.context == "none":
        return row["prompt"]
    if args.context == "peer" and peer is not None:
        return privileged_prompt(row["prompt"], peer, row["answer"])
    if args.context == "peer" and args.fallback == "mask":
        return None
    return privileged_prompt(row["prompt"], answer=row["answer"])


def build_contexts(rows, drawn, tokenizer, args, step):
    """Verdicts [n], peers [n] (index into `drawn`, or None) and the teacher's prompts [n] (token ids, or None) of all rollouts."""
    texts, G = [read_back(tokenizer, c) for c in drawn], args.samples
    right = [verify(t, rows[i // G]["answer"], c.truncated) for i, (t, c) in enumerate(zip(texts, drawn))]
    scores = [(len(c.ids), sum(c.logprobs) / len(c.ids)) for c in drawn]
    peers, prompts = [], []
    for i in range(len(drawn)):
        q, j = divmod(i, G)
        group = slice(q * G, (q + 1) * G)
        found = choose_peer(j, right[group], scores[group], args.peer, (args.seed, step, q, j))
        peers.append(None if found is None else q * G + found)
        # One peer's text never holds another conversation's end: read_back has taken the end-of-turn token away.
        user = context(rows[q], None if found is None else texts[q * G + found], args)
        prompts.append(None if user is None else prompt_ids(tokenizer, user))
    return right, peers, prompts


def longest_context(row, tokenizer, args):
    """Token ids of the longest prompt that the teacher could be shown for this question: a peer of --max_new_tokens tokens."""
    if args.context == "peer":
        filler = tokenizer(" 1", add_special_tokens=False)["input_ids"][-1:]
        return prompt_ids(tokenizer, privileged_prompt(row["prompt"], " ", row["answer"])) + filler * args.max_new_tokens
    return prompt_ids(tokenizer, context(row, None, args) or row["prompt"])


def gate(model, tokenizer, rows, args, autocast):
    """What can each context teach? On questions that the model solves at least once in G: greedy accuracy when GENERATING with
    nothing, the answer, a peer, both, and both of another question. On the toy also the probability of the right token at the first wrong step
    of its own failing rollouts. Returns ({context: summary}, {context: [probabilities]})."""
    with autocast():
        drawn = rollouts(model, tokenizer, rows, args, 0)
    texts, G = [read_back(tokenizer, c) for c in drawn], args.samples
    right = [verify(t, rows[i // G]["answer"], c.truncated) for i, (t, c) in enumerate(zip(texts, drawn))]
    peer = {i // G: texts[i] for i in reversed(range(len(drawn))) if right[i]}
    asked = sorted(peer)
    if len(asked) < 2:
        return {}, {}
    other = {
        q: next((o for o in asked[k + 1 :] + asked[:k] if rows[o]["answer"] != rows[q]["answer"]), asked[k - 1])
        for k, q in enumerate(asked)
    }
    users = {
        "nothing": {q: rows[q]["prompt"] for q in asked},
        "answer": {q: privileged_prompt(rows[q]["prompt"], answer=rows[q]["answer"]) for q in asked},
        "peer": {q: privileged_prompt(rows[q]["prompt"], peer[q]) for q in asked},
        "peer and answer": {q: privileged_prompt(rows[q]["prompt"], peer[q], rows[q]["answer"]) for q in asked},
        "wrong peer": {q: privileged_prompt(rows[q]["prompt"], peer[other[q]], rows[other[q]]["answer"]) for q in asked},
    }
    most = max(256, args.max_new_tokens)
    found = {}
    for name, of in users.items():
        shown = [{**rows[q], "prompt": of[q]} for q in asked]
        found[name] = evaluate(model, tokenizer, shown, max_new_tokens=most, autocast=autocast())[0]
    failed = [i for i in range(len(drawn)) if not right[i] and i // G in peer]
    cases = diagnostics.first_mistakes(tokenizer, [rows[i // G] for i in failed], [drawn[i].ids for i in failed])[:300]
    masses = {
        name: diagnostics.mass(
            model, [(prompt_ids(tokenizer, of[failed[k] // G]) + drawn[failed[k]].ids[:at], token) for k, at, token in cases]
        )
        for name, of in users.items()
    }
    return found, masses


# ============================================================================================ 3. the loss


def divergence(teacher, student, kind):
    """(4): [n], from log-probabilities [n, V], summed over the vocabulary. Gradients flow into the student alone."""
    if kind == "forward":  # the paper's: the student pays wherever the teacher has mass and it has not
        return (teacher.exp() * (teacher - student)).sum(-1)
    if kind == "reverse":
        return (student.exp() * (student - teacher)).sum(-1)
    mixture = torch.logaddexp(teacher, student) - math.log(2)  # [n, V]
    return 0.5 * ((teacher.exp() * (teacher - mixture)).sum(-1) + (student.exp() * (student - mixture)).sum(-1))


def advantages(right, G):
    """GRPO's, for --rl_weight: (R - mean) / standard deviation within the group; 0 where all agree, since there is nothing to compare."""
    R = torch.tensor(right, dtype=torch.float32).view(-1, G)
    spread = R.std(1, correction=0, keepdim=True)
    return torch.where(spread > 0, (R - R.mean(1, keepdim=True)) / spread.clamp(min=1e-6), torch.zeros_like(R)).flatten()  # [n]


def log_probabilities(model, hidden, vocabulary):
    return model.get_output_embeddings()(hidden)[:, :vocabulary].float().log_softmax(-1)  # [n, V], always in float32


def chunked_loss(student, teacher, first, hidden, teacher_hidden, first_hidden, targets, weights, args, vocabulary):
    """Weighted sum of the three terms over N positions, and what one wants to see, [N, 6]. weights: [N, 3], of the distillation, of the KL to
    the start, of the policy gradient. The distributions exist for one chunk of positions at a time and are recomputed in the backward pass:
    exact, since the loss is a sum over positions."""

    def one(h, th, fh, y, w):
        ours = log_probabilities(student, h, vocabulary)  # [n, V], s_t
        own = ours.gather(1, y[:, None]).squeeze(1)  # [n], log s_t(o_t)
        with torch.no_grad():
            theirs = log_probabilities(teacher, th, vocabulary)  # [n, V], p_t: a target, never differentiated
            start = log_probabilities(first, fh, vocabulary) if fh is not None else None
        far = divergence(theirs, ours, args.divergence)  # [n], (4)
        drift = (ours.exp() * (ours - start)).sum(-1) if start is not None else torch.zeros_like(far)  # [n], KL(pi || pi_0)
        # Exactly on-policy the ratio of GRPO is 1 and is never clipped; its gradient is that of A log s.
        loss = w[:, 0] * far + w[:, 1] * drift - w[:, 2] * own
        with torch.no_grad():
            credit = (
                theirs.gather(1, y[:, None]).squeeze(1) - own
            )  # [n], A_t = log p(o_t) - log s(o_t); in no loss, only looked at
            entropy = [-(x.exp() * x).sum(-1) for x in (ours, theirs)]
            seen = [far, divergence(theirs, ours, "forward"), drift, credit.abs(), *entropy]
        return loss.sum(), torch.stack(seen, 1)

    size, total, seen = max(1, args.chunk_logits // vocabulary), 0.0, []
    for at in range(0, len(targets), size):
        pieces = [x if x is None else x[at : at + size] for x in (hidden, teacher_hidden, first_hidden, targets, weights)]
        loss, stats = one(*pieces) if len(targets) <= size else checkpoint(one, *pieces, use_reentrant=False)
        total, seen = total + loss, seen + [stats]
    return total, torch.cat(seen)


# ============================================================================================ 4. one update


def update(student, teacher, first, optimiser, rows, drawn, found, args, clock, autocast, vocabulary):
    """Scores a batch of rollouts with and without their contexts, takes one step along the gradient of (5)."""
    right, peers, prompts = found
    G, n = args.samples, len(drawn)
    plain = [rows[i // G]["ids"] for i in range(n)]
    taught = [p is not None and (args.train == "all" or not ok) for p, ok in zip(prompts, right)]
    gain = advantages(right, G) if args.rl_weight else torch.zeros(n)
    # Mean over the tokens of a rollout, then over the group, then over questions: all weights are known before the first micro-batch, so
    # the result does not depend on how the batch is cut. Every group has G rollouts: the two outer means are one division by n.
    weights = []
    for i, c in enumerate(drawn):
        token = 1 / (n * len(c.ids))
        drift = args.beta * (token if args.beta_norm == "token" else 1 / n)
        w = [(1 - args.rl_weight) * token * taught[i], drift, args.rl_weight * gain[i].item() * token]
        weights.append(torch.tensor([w]).expand(len(c.ids), 3))
    # A masked rollout has weight 0 and is scored with its plain prompt, which keeps the code below without special cases.
    prompts = [p if p is not None else plain[i] for i, p in enumerate(prompts)]
    seen, loss_sum = [None] * n, 0.0
    student.train()
    for chosen in plumbing.micro_batches([len(p) + len(c.ids) for p, c in zip(prompts, drawn)], args.micro_tokens, deal=True):
        after = [drawn[i].ids for i in chosen]
        with clock.phase("teacher"), torch.no_grad(), autocast():
            # The rollout's token ids stand behind the teacher's prompt as they are: decoded and tokenized again they could be cut
            # differently, and (4) would compare different positions.
            ids, predicts, _ = pack([prompts[i] for i in chosen], after, student.device)
            teacher_hidden = states(teacher, ids, predicts)  # [N, width]
            ids, predicts, targets = pack([plain[i] for i in chosen], after, student.device)
            first_hidden = states(first, ids, predicts) if args.beta else None  # [N, width]
        with clock.phase("student"):
            with autocast():
                hidden = states(student, ids, predicts)  # [N, width]
                weight = torch.cat([weights[i] for i in chosen]).to(student.device)  # [N, 3]
                total, stats = chunked_loss(
                    student, teacher, first, hidden, teacher_hidden, first_hidden, targets, weight, args, vocabulary
                )
            total.backward()
        loss_sum += total.item()
        for i, s in zip(chosen, stats.split([len(y) for y in after])):
            seen[i] = s
    seen, loss_sum = plumbing.everyones(seen, loss_sum)  # with several GPUs, what the others scored
    with clock.phase("step"):
        norm, changed = plumbing.clip_and_step(student, optimiser, clip=1.0)
        if args.teacher == "ema" and math.isfinite(norm):
            follow(teacher, student, args.ema)
    _, kl, drift, credit, entropy, teacher_entropy = torch.cat(seen).mean(0).tolist()
    tokens = sum(len(c.ids) for c in drawn)
    return {
        "loss": loss_sum,
        "kl": kl,
        "kl_start": drift,
        "credit": credit,
        "student_entropy": entropy,
        "teacher_entropy": teacher_entropy,
        **group_statistics(rows, right, peers, G),
        "length": tokens / n,
        "truncated": sum(c.truncated for c in drawn) / n,
        "grad_norm": norm,
        "changed": changed,
        "tokens": tokens,
    }, [s[:, 0] for s in seen]


def group_statistics(rows, right, peers, G):
    """reward: share of right rollouts. signal: share of groups with right and wrong ones. coverage: share of rollouts that fail and have a
    peer, also by level of difficulty where the data knows it. groups: how many groups have 0, 1, .. G right ones."""
    counts = [sum(right[q * G : (q + 1) * G]) for q in range(len(rows))]
    covered = [not ok and p is not None for ok, p in zip(right, peers)]
    by_level = {}
    for q, row in enumerate(rows):
        if "level" in row:
            by_level.setdefault(str(row["level"]), []).extend(covered[q * G : (q + 1) * G])
    return {
        "reward": sum(right) / len(right),
        "signal": sum(0 < k < G for k in counts) / len(counts),
        "coverage": sum(covered) / len(covered),
        "coverage_by_level": {k: sum(v) / len(v) for k, v in sorted(by_level.items())},
        "groups": [counts.count(k) for k in range(G + 1)],
    }


@torch.no_grad()
def follow(teacher, student, rate):
    """theta_T <- (1 - rate) theta_T + rate theta_S, in float32: a twentieth of a small difference is lost in bfloat16."""
    for t, s in zip(teacher.parameters(), student.parameters()):
        if t is not s:  # under --lora they share what does not change
            t.lerp_(s, rate)


# ============================================================================================ main


def main(argv=None):
    args = settle(plumbing.parse_arguments(Args, __doc__, argv))
    device = plumbing.pick_device(args.device)
    out, resumed = plumbing.open_run(args, "hindsight_sd.py")
    dtype = plumbing.compute_dtype(args.dtype, device)
    tokenizer = plumbing.load_tokenizer(args.student)
    rows, tests = load_benchmark(args.data, "train"), load_benchmark(args.benchmark, "test", args.eval_n)
    require(
        args.context != "reference" or all(str(r.get("solution") or "").strip() for r in rows),
        f"'{args.data}' has rows without a solution for --context reference; use --context peer, or a file with the column solution.",
    )
    plumbing.check_prompts(tokenizer, [r["prompt"] for r in rows[:50]], args.data)
    student = plumbing.load_student(args, resumed, device, dtype)
    # The start is the start also after a resume: it comes from --student, never from the checkpoint.
    keep_start = args.beta > 0 or args.teacher == "frozen"
    first = plumbing.load_model(args.student, device, dtype).requires_grad_(False) if keep_start else None
    teacher = first if args.teacher == "frozen" else student
    if args.teacher == "ema":
        teacher = plumbing.copy_of(student)
    checkpointing = args.gradient_checkpointing or (args.gradient_checkpointing is None and device.type == "cuda")
    if checkpointing:
        plumbing.checkpoint_layers(student)
    rows = plumbing.fitting_prompts(rows, lambda r: longest_context(r, tokenizer, args), student, args.max_new_tokens)
    for row in rows:
        row["ids"] = prompt_ids(tokenizer, row["prompt"])
    optimiser = plumbing.adamw(student, args.lr, args.adam_bits, betas=(0.9, 0.95))  # without weight decay
    start = 0
    if resumed:
        state = plumbing.load_state(resumed, optimiser, device)
        start = state["step"]
        if args.teacher == "ema":  # a moving average that restarted from the student would be another teacher
            plumbing.load_trained(teacher, state["teacher"])
    metrics, clock = plumbing.Metrics(out, start if args.resume else None), plumbing.Clock(device)
    autocast = plumbing.autocaster(device, dtype)

    def measure(model):  # greedy on all test problems; and G samples on a fifth of them: does it still try different ways?
        most = dict(max_new_tokens=max(256, args.max_new_tokens), autocast=autocast())
        summary, _ = evaluate(model, tokenizer, tests, **most)
        G = max(2, args.samples)
        sampled, _ = evaluate(model, tokenizer, tests[: max(1, len(tests) // 5)], n=G, k=G, temperature=1.0, **most)
        return {k: summary[k] for k in ("accuracy", "interval", "n", "truncated", "mean_tokens")} | {
            k: sampled[k] for k in ("pass@1", f"pass@{G}", "distinct", "distinct_right")
        }

    # ---- what is about to happen
    own = None if teacher is student else teacher
    more = [first] if first is not None and first is not teacher else []
    plumbing.announce("hindsight_sd.py", args, student, own, rows, tokenizer, dtype, checkpointing, more=more)
    print(f"context  {plumbing.harmless(context(rows[0], '(a successful rollout)', args))!r}")
    if args.sampler == "vllm":
        plumbing.attach_vllm(student, tokenizer, args, dtype)
    plumbing.write_config(out, args, "hindsight_sd.py")
    if start == 0 and not metrics.rows:
        initial = measure(student)
        shown, masses = gate(student, tokenizer, rows[: min(200, max(2, args.eval_n // 2))], args, autocast)
        metrics.add({"step": 0, "eval": initial, "gate": {k: [v["accuracy"], *v["interval"]] for k, v in shown.items()}})
        print(f"before:  {plumbing.percent(initial)}   (greedy, {initial['n']} problems of {args.benchmark})")
        say_gate(shown, masses)

    # ---- training
    with plumbing.Stopper() as stopper, plumbing.progress(args.steps, "hindsight_sd", "update", initial=start) as bar:
        for step in range(start + 1, args.steps + 1):
            clock.start()
            chosen = [rows[i] for i in plumbing.prompts_of_step(step, args.prompts, len(rows), args.seed)]
            with clock.phase("sample"), autocast():
                drawn = rollouts(student, tokenizer, chosen, args, step)
            with clock.phase("verify"):
                found = build_contexts(chosen, drawn, tokenizer, args, step)
            for group in optimiser.param_groups:
                group["lr"] = args.lr * min(1.0, step / max(1, round(0.05 * args.steps)))
            result, losses = plumbing.within_memory(
                update, student, teacher, first, optimiser, chosen, drawn, found, args, clock, autocast, len(tokenizer)
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
                f"loss {result['loss']:.3f}, right {100 * result['reward']:.0f} %, covered {100 * result['coverage']:.0f} %, length {result['length']:.0f}"
            )
            bar.update()
            if args.show_every and step % args.show_every == 0:
                plumbing.show_rollout(bar, step, tokenizer, drawn[0].ids, losses[0])
            last = step == args.steps
            if last or (args.eval_every and step % args.eval_every == 0):
                metrics.add({"step": step, "eval": measure(student)})
                e = metrics.rows[-1]["eval"]
                bar.write(
                    f"update {step:4d}  accuracy {plumbing.percent(e)}  loss {result['loss']:.3f}  at temperature 1: "
                    + ", ".join(f"{k} {100 * v:.0f} %" for k, v in e.items() if k.startswith("pass@") or k == "distinct")
                )
                title = f"hindsight_sd.py: {args.student} learns from itself on {args.data} ({args.context})"
                plumbing.draw_curve(metrics.rows, out / "curve.png", title, "KL(teacher || student)")
            stop = stopper.asked()
            if last or stop or (args.save_every and step % args.save_every == 0):
                extra = {"teacher": plumbing.trained(teacher)} if args.teacher == "ema" else {}
                plumbing.save_checkpoint(out, step, student, tokenizer, optimiser, extra)
            if stop and not last:
                bar.close()
                print(f"stopped after update {step}; continue with: {plumbing.resume_command('hindsight_sd.py', args)}")
                return

    # ---- what came of it
    plumbing.save_final(out, student, tokenizer)
    plumbing.conclude(out, metrics.rows, args, device)


def say_gate(shown, masses):
    """The gate in words, with a warning where the contexts cannot teach."""
    if not shown:
        print("warning: fewer than two of the first questions were solved even once; there will hardly be a peer to learn from")
        return
    print(
        "generating, shown "
        + ", ".join(f"{k}: {plumbing.percent(v)}" for k, v in shown.items())
        + f"   (greedy, the {shown['nothing']['n']} questions solved at least once)"
    )
    if masses.get("nothing"):
        means = {k: sum(v) / len(v) for k, v in masses.items()}
        print(
            "probability of the right token at the first mistake, shown "
            + ", ".join(f"{k}: {v:.2f}" for k, v in means.items())
            + f"   ({len(masses['nothing'])} failing rollouts)"
        )
    if shown["peer and answer"]["interval"][0] <= shown["nothing"]["accuracy"]:
        print(
            "warning: the student is hardly better with a successful peer in view than without; expect no gain from teaching itself"
        )
    if shown["wrong peer"]["accuracy"] >= shown["peer and answer"]["accuracy"] - 0.02:
        print("warning: another question's peer helps as much as the right one: the model does not read what it is shown")


if __name__ == "__main__":
    plumbing.run(main)
