"""TOPD, trajectory-aware on-policy distillation: where the futures part, learn the teacher's next sentence, not its next token.

After Jiang and Ferraro, "Bridging Reasoning Trajectories in On-Policy Distillation via Near-Future Guidance" (arXiv 2606.00305).
The idea in five sentences. On-policy distillation (opd.py, read it first) repairs one token at a time, where its loss is high. But
many high-loss tokens are false alarms: another wording that leads to the same place. And where the future really differs,
repairing the forked token alone does not repair the tokens after it. So TOPD looks ahead: from a high-loss position it compares the
next K tokens of the student with the K tokens that the teacher would write there. If they differ, these positions are also trained
towards the teacher's future.

    l_t    = KL( p_S(. | x, y_<t) || p_T(. | x, y_<t) )           on the student's rollout y; L_OPD = mean over all tokens   (1)
    c      = { t : l_t among the highest of the rollout }         the candidates                                              (2)
    W_T, W_S = K tokens of the teacher, of the student, both after (x, y_<t)                                                  (3)
    C_ji   = 1 - cos( E(W_T[j]), E(W_S[i]) )                      ground cost, teacher first                                  (4)
    D_t    = min over plans gamma with marginals a, b of <gamma, C>    optimal transport: how far the futures are apart       (5)
    d      = the candidates without those of the lowest D_t       the divergent points                                        (6)
    q_i    = sum_j gamma_ji onehot( W_T[j] )  (rows normalised)   soft target of the student's position t + i                 (7)
    L_traj(t) = mean over i of KL( q_i || p_S(. | x, y_<t+i) )    the student's own context, the teacher's future             (8)
    L      = L_OPD + lambda * mean over d of L_traj(t)                                                                        (9)

What is whose (the same tags stand in the code):
  [paper]     1. four rollouts a prompt, temperature 1, no filter.  2. high loss AND high D makes a divergent point.  3. both windows
              START AT t; K = 50.  4. embeddings, optimal transport.  5. (7), (8), (9) with a stop-gradient on the target; AdamW.
  [inferred]  6. (1) over the whole vocabulary, a token mean over the batch.  7. the candidates are the top 2.25 % of a rollout (218 of
              9,688 tokens).  8. W_S is the rollout itself: no generation, and its logits are there.  9. normalising the rows of gamma and
              averaging over i has the gradient of the paper's unnormalised sum.  10. overlapping windows add up.
  [ours]      11. E = the teacher's input embeddings, frozen, so D is about 1 - share of common tokens.  12. a, b uniform.  13. D by the
              exact plan, q by Sinkhorn with epsilon 0.05.  14. "the lowest" of (6): 30 % of the batch's candidates.  15. the teacher
              decodes greedily.  16. lambda = 0.1 (the paper gives none; watch grad_norm_opd and grad_norm_traj).  17. an end of text shortens
              a window; a candidate with fewer than K/2 tokens left is skipped.  18. short rollouts: at least 2 candidates, at most 10 %.

Run it:
    python topd.py                     without a GPU: the built-in toy, three minutes; with one: Qwen3-0.6B <- Qwen3-4B on GSM8K
    python topd.py --guidance off --suppress low        the paper's ablation: damp the loss of false alarms, nothing else
    python look.py topd                see the candidates, the windows and the plans before you train
What held on the toy and what did not: benchmarks/README.md. Differences of this method are small; read them with their intervals.
"""

import math
from dataclasses import dataclass, field

import torch
from scipy.optimize import linear_sum_assignment, linprog
from scipy.sparse import eye, kron, vstack
from scipy.stats import pearsonr, spearmanr
from torch.utils.checkpoint import checkpoint

import plumbing
from evaluate import RowCache, check_name, eos_ids, evaluate, load_benchmark, prompt_ids, sample, uniforms
from plumbing import choice, pack, require, states

# Two complete settings; a flag that is given wins. Without a GPU, or with toy models or data, the first.
# fmt: off
TOY = dict(student="toy/student", teacher="toy/teacher", data="toy", steps=120, max_new_tokens=160, lr=1e-3, eval_n=500, eval_every=20, window_size=12)
HUB = dict(student="Qwen/Qwen3-0.6B", teacher="Qwen/Qwen3-4B", data="gsm8k", steps=200, max_new_tokens=512, lr=1e-5, eval_n=200, eval_every=50, window_size=50)
# fmt: on


# ============================================================================================ arguments


@dataclass
class Args:
    student: str | None = None
    """model that learns: a folder or a hub name (default: toy/student, with a GPU Qwen/Qwen3-0.6B)"""
    teacher: str | None = None
    """model that scores and looks ahead; its tokenizer must be the student's (default: toy/teacher, with a GPU Qwen/Qwen3-4B)"""
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
    guidance: str = choice("on", "on", "off")
    """off: no L_traj; with --suppress none that is opd.py"""
    lam: float = 0.1
    """lambda of (9), the weight of L_traj"""
    window_size: int | None = None
    """K, tokens of a window (default: 12 on the toy, else 50)"""
    candidate_share: float = 0.0225
    """share of a rollout's tokens that are candidates, those with the highest loss; at least 2 tokens, at most 10 %"""
    drop_share: float = 0.3
    """share of the candidates that is dropped for the lowest D; 0 keeps every candidate"""
    plan: str = choice("sinkhorn", "sinkhorn", "exact")
    """of the soft targets: sinkhorn spreads a target over several tokens, exact gives a permutation, so hard targets"""
    epsilon: float = 0.05
    """entropic regularisation of --plan sinkhorn; towards 0 it becomes exact, large values spread every target over the window"""
    window: str = choice("rollout", "rollout", "regenerate")
    """the student's window: what it wrote, or K tokens sampled anew (dearer: another pass for the loss on them)"""
    embedding: str = choice("static", "static", "contextual")
    """of the ground cost: the teacher's input embeddings, or its last hidden states after each token"""
    teacher_decoding: str = choice("greedy", "greedy", "sample")
    """how the teacher writes its window"""
    suppress: str = choice("none", "none", "low", "high")
    """scale down the loss of the candidates with the lowest D (low), or of as many others at random (high): the paper's ablation"""
    probe_every: int = 20
    """every so many updates also measure D at random and at low-loss positions, and both gradient norms (0: never)"""
    seed: int = 0
    """everything random follows from it: order of the data, rollouts"""
    out: str | None = None
    """folder for metrics, picture, checkpoints and the final model (default: runs/topd-SEED)"""
    eval_every: int | None = None
    """evaluate every so many updates, and before the first and after the last (default: 20 on the toy, else 50; 0: only those two)"""
    eval_n: int | None = None
    """test problems of each evaluation, greedy (default: 500 on the toy, else 200)"""
    save_every: int = 20
    """write a checkpoint every so many updates (0: only on Ctrl-C)"""
    show_every: int = 20
    """print one rollout, its tokens coloured by loss, every so many updates (0: never)"""
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
    plumbing.recall(args, f"runs/topd-{args.seed}")
    say = args.data or args.student or ("hub" if args.device != "cpu" and torch.cuda.is_available() else "toy")
    for name, value in (TOY if say.startswith("toy") else HUB).items():
        if getattr(args, name) is None:
            setattr(args, name, value)
    args.benchmark = args.benchmark or args.data
    check_name(args.data, "train")
    check_name(args.benchmark, "test")
    for name in ("steps", "prompts", "samples", "max_new_tokens", "eval_n", "micro_tokens", "chunk_logits"):
        require(getattr(args, name) >= 1, f"--{name} is {getattr(args, name)}; it must be at least 1.")
    for name in ("eval_every", "save_every", "show_every", "probe_every"):
        require(getattr(args, name) >= 0, f"--{name} is {getattr(args, name)}; it must be 0 (off) or more.")
    plumbing.check_packages(args)
    require(0 <= args.lora <= 1024, f"--lora is {args.lora}; it is a rank and must lie in [0, 1024] (0: all weights learn).")
    require(args.lr > 0 and math.isfinite(args.lr), f"--lr is {args.lr}; it must be positive.")
    require(
        args.student != args.teacher,
        f"--student and --teacher are both '{args.student}': it would learn nothing from itself; choose a better teacher.",
    )
    require(
        args.lam >= 0 and math.isfinite(args.lam), f"--lam is {args.lam}; it is the weight of a loss and must be 0 or more."
    )
    require(
        2 <= args.window_size <= args.max_new_tokens,
        f"--window_size is {args.window_size}; a window needs at least 2 tokens and must fit into a rollout of at most "
        f"{args.max_new_tokens} (--max_new_tokens).",
    )
    require(
        0 < args.candidate_share <= 0.1,
        f"--candidate_share is {args.candidate_share}; it is a share of the tokens and must lie in (0, 0.1].",
    )
    require(
        0 <= args.drop_share < 1,
        f"--drop_share is {args.drop_share}; it is a share of the candidates and must lie in [0, 1).",
    )
    require(
        0.001 <= args.epsilon <= 10,
        f"--epsilon is {args.epsilon}; it must lie in [0.001, 10] (for a plan without entropy use --plan exact).",
    )
    return args


# ============================================================================================ 1. what the student wrote


def rollouts(student, tokenizer, rows, args, step):
    """`samples` responses for every row. Returns prompts, responses (both lists of token ids), truncated.

    Temperature 1 and no filter [paper]. Which tokens are drawn depends on (seed, step, prompt, sample) only.
    """
    drawn = sample(
        student,
        [r["ids"] for r in rows],
        n=args.samples,
        max_new_tokens=args.max_new_tokens,
        eos=eos_ids(student, tokenizer),
        vocabulary=len(tokenizer),
        keys=[(args.seed, step, i, j) for i in range(len(rows)) for j in range(args.samples)],
    )
    prompts = [r["ids"] for r in rows for _ in range(args.samples)]
    return prompts, [c.ids for c in drawn], [c.truncated for c in drawn]


# ============================================================================================ 2. token losses and candidates


def reverse_kl(student, teacher):
    """(1) at every state, [n], from log-probabilities [n, V]: KL(student || teacher), the expectation under the student.
    (F.kl_div(a, b) would be KL(b || a); hence it is written out.)"""
    return (student.exp() * (student - teacher)).sum(-1)


def log_probabilities(model, hidden, vocabulary):
    """[n, V] in float32. Heads may be wider than the tokenizer (padding rows): cut, in both models alike."""
    return model.get_output_embeddings()(hidden)[:, :vocabulary].float().log_softmax(-1)


def token_losses(student, teacher, hidden, teacher_hidden, vocabulary, size):
    """(1) without gradient, [N], in chunks of `size` positions: it only decides where to look."""
    pieces = zip(hidden.split(size), teacher_hidden.split(size))
    return torch.cat(
        [reverse_kl(log_probabilities(student, h, vocabulary), log_probabilities(teacher, th, vocabulary)) for h, th in pieces]
    )


def candidates(losses, args):
    """(2): positions of the highest losses of one rollout [paper]; how many, and which are skipped: see 7, 17 and 18 above.

    A share, not "mean + 2 standard deviations": among n values no z-score exceeds sqrt(n - 1), so on few values such a
    threshold can never fire, and on long rollouts its count would depend on the tail.
    """
    n = len(losses)
    count = min(max(2, round(args.candidate_share * n)), max(1, n // 10))
    best = losses.topk(min(count, n)).indices.tolist()
    return sorted(t for t in best if n - t >= args.window_size / 2)


def comparison(losses, count, args, key):
    """As many positions at random, and as many of the lowest loss, to judge D at the candidates against (claim: high > random > low)."""
    room = max(0, int(len(losses) - args.window_size / 2) + 1)
    drawn = uniforms(key, room).argsort()[:count].tolist()
    return sorted(drawn), sorted(losses[:room].topk(min(count, room), largest=False).indices.tolist())


# ============================================================================================ 3. the two futures


@dataclass
class Point:
    """A position where the two futures are compared."""

    row: int  # which rollout
    t: int  # position in the response; both windows start AT it, not behind it
    loss: float  # l_t
    kind: str = "high"  # high: a candidate; random and low only for comparison
    teacher: list = field(default_factory=list)  # token ids of W_T, at most K
    student: list = field(default_factory=list)  # token ids of W_S, at most K
    cost: torch.Tensor = None  # [n, m] = teacher x student, (4)
    distance: float = 0.0  # D_t, (5)
    weights: torch.Tensor = None  # [m, n] = student x teacher: (7) as n weights on n token ids for each of m positions
    context: list = None  # None: the loss is on the rollout's own positions; else on these tokens after (x, y_<t)


def read(model, ids, room):
    """One pass over whole texts: last hidden states [B, L, width], and a cache that can be continued from ANY position.

    Scoring has to read the rollouts anyway; keeping its keys and values is what makes the windows cheap.
    """
    out = model.base_model(input_ids=ids, use_cache=True)
    cache = RowCache(ids.shape[1] + room, model.config.num_hidden_layers - 1)
    cache.layers = {i: [layer.keys, layer.values] for i, layer in enumerate(out.past_key_values.layers)}
    cache.length = ids.shape[1]
    return out.last_hidden_state, cache


def continuations(model, hidden, cache, places, K, ends, vocabulary, size, draws=None, deep=False):
    """(3): the model's next K tokens after many prefixes of the texts that it has just read, all at once.

    places: (row, length of the prefix) of every window. Prefixes are neither read again nor copied: all windows of a row hang
    on its one cache like branches on a stem. In each step every window adds one token; the mask lets it see the stem up to
    its own prefix, and its own branch. So K small steps for ALL windows, instead of K steps and a prompt for each.
    Returns the windows, cut behind an end of text, and with `deep` the last hidden state after each of their tokens.
    """
    if not places:
        return [], []
    rows, prefix = torch.tensor(places, device=hidden.device).T  # [P], [P]
    slot, branches = [], {}
    for r, _ in places:  # which branch of its row
        slot.append(branches.get(r, 0))
        branches[r] = slot[-1] + 1
    B, L, C = hidden.shape[0], hidden.shape[1], max(slot) + 1
    slot = torch.tensor(slot, device=hidden.device)
    start = torch.ones(B, C, dtype=torch.long, device=hidden.device)  # an empty slot continues the first token, unread
    start[rows, slot] = prefix
    stem = torch.arange(L, device=hidden.device) < start[:, :, None]  # [B, C, L]: y_<t and nothing behind it
    branch = torch.eye(C, dtype=torch.bool, device=hidden.device).expand(B, C, C)
    last = hidden[rows, prefix - 1]  # [P, width]: the state that predicts the first token is known from reading
    written, after = [], []
    for k in range(K):
        picked = []
        for i, h in enumerate(last.split(size)):
            logprobs = log_probabilities(model, h, vocabulary)  # [at most size, V]
            if draws is None:
                picked.append(logprobs.argmax(-1))
            else:
                cumulative = logprobs.double().exp().cumsum(-1)
                u = draws[i * size : i * size + len(h), k, None] * cumulative[:, -1:]
                picked.append(torch.searchsorted(cumulative, u, right=True).squeeze(1).clamp(max=vocabulary - 1))
        written.append(torch.cat(picked))  # [P]
        if k == K - 1 and not deep:
            break
        grid = torch.zeros(B, C, dtype=torch.long, device=hidden.device)
        grid[rows, slot] = written[-1]
        out = model.base_model(
            input_ids=grid,  # [B, C]: one token of every branch
            attention_mask=torch.cat([stem, *[branch] * (k + 1)], 2)[:, None],  # [B, 1, C, L + C (k+1)]
            position_ids=start + k,
            past_key_values=cache,
            use_cache=True,
        )
        last = out.last_hidden_state[rows, slot]  # [P, width]
        after.append(last)
    windows = torch.stack(written, 1).tolist()  # P lists of K ids
    cut = [next((i + 1 for i, token in enumerate(w) if token in ends), K) for w in windows]  # the end token is in the window
    return [w[:c] for w, c in zip(windows, cut)], [torch.stack(after, 1)[i, :c] for i, c in enumerate(cut)] if deep else []


# ============================================================================================ 4. optimal transport


def ground_cost(teacher_vectors, student_vectors):
    """(4): [P, n, m] from [P, n, width] and [P, m, width]. Equal tokens cost 0, and nearly orthogonal ones nearly 1."""
    u = torch.nn.functional.normalize(teacher_vectors.float(), dim=-1)
    v = torch.nn.functional.normalize(student_vectors.float(), dim=-1)
    return (1 - u @ v.transpose(1, 2)).clamp(min=0)


def exact_plan(cost):
    """(5): an optimal plan [n, m] between uniform marginals, for one cost matrix [n, m].

    Equal lengths: some optimal plan is a permutation, so an assignment. Unequal lengths: cut both sides into pieces of equal mass
    and assign those; only where that makes too many pieces the linear program is solved as one.
    """
    n, m = cost.shape
    cost = cost.double().numpy()
    pieces = math.lcm(n, m)
    if pieces <= 256:
        j, i = linear_sum_assignment(cost.repeat(pieces // n, 0).repeat(pieces // m, 1))
        plan = torch.zeros(n, m, dtype=torch.float64)
        at = torch.as_tensor(j * n // pieces), torch.as_tensor(i * m // pieces)
        return plan.index_put_(at, torch.tensor(1 / pieces, dtype=torch.float64), accumulate=True).float()
    sums = vstack([kron(eye(n), [[1] * m]), kron([[1] * n], eye(m))]).tocsr()  # row sums, column sums
    solved = linprog(cost.ravel(), A_eq=sums, b_eq=[1 / n] * n + [1 / m] * m, method="highs")
    return torch.tensor(solved.x, dtype=torch.float32).view(n, m)


def sinkhorn(cost, a, b, epsilon, iterations=500, tolerance=1e-6):
    """Entropic plans [P, n, m] for costs [P, n, m] and marginals a [P, n], b [P, m]: the minimum of <gamma, C> - epsilon H(gamma).

    In the log domain: exp(-C / epsilon) itself underflows for small epsilon. Entries of zero mass are padding and stay zero.
    The last half-step is the students' side, so its marginals are exact: every student position gets its full target.
    """
    kernel = -cost / epsilon  # [P, n, m]
    log_a, log_b = a.log(), b.log()
    g = torch.zeros_like(b).masked_fill(b == 0, -math.inf)
    for k in range(iterations):
        f = log_a - (kernel + g[:, None, :]).logsumexp(2)  # [P, n]
        g = log_b - (kernel + f[:, :, None]).logsumexp(1)  # [P, m]
        if k % 10 == 9 and ((kernel + f[:, :, None] + g[:, None, :]).exp().sum(2) - a).abs().max() < tolerance:
            break
    return (kernel + f[:, :, None] + g[:, None, :]).exp()


def plans(costs, args):
    """Plans for a list of cost matrices [n, m], of whatever lengths: a list of [n, m]."""
    if args.plan == "exact":
        return [exact_plan(c) for c in costs]
    if not costs:
        return []
    N, M = max(c.shape[0] for c in costs), max(c.shape[1] for c in costs)
    cost, a, b = torch.zeros(len(costs), N, M), torch.zeros(len(costs), N), torch.zeros(len(costs), M)
    for p, c in enumerate(costs):  # padded, all windows of the update together
        cost[p, : c.shape[0], : c.shape[1]], a[p, : c.shape[0]], b[p, : c.shape[1]] = c, 1 / c.shape[0], 1 / c.shape[1]
    return [g[: c.shape[0], : c.shape[1]] for g, c in zip(sinkhorn(cost, a, b, args.epsilon), costs)]


def divergent(points, args):
    """(6): (kept, dropped). High loss made them candidates; of these the lowest D are dropped, over the whole batch: on two
    candidates a rollout, a share per rollout would be a coin. A share, not a threshold: D's scale depends on K and on the embedding."""
    order = sorted(points, key=lambda p: p.distance)
    count = int(args.drop_share * len(order) + 0.5)
    return order[count:], order[:count]


# ============================================================================================ 5. targets and scales


def soft_targets(points, args):
    """(7): for every divergent point, m student positions x n weights on the teacher's n token ids. Never a [positions, V] tensor.

    The cost is written teacher-first and a target belongs to a student position, so the plan is TRANSPOSED here. For equal
    lengths the mistake would go unnoticed: every marginal and the loss's scale would be as before, only the targets wrong.
    """
    for point, gamma in zip(points, plans([p.cost for p in points], args)):
        per_student = gamma.T  # [m, n]
        point.weights = per_student / per_student.sum(1, keepdim=True)
        point.context = point.student if args.window == "regenerate" else None


def negative_entropy(point):
    """sum_i sum_v q_i(v) log q_i(v) of the targets. A token that stands twice in the teacher's window collects both weights."""
    ids = torch.tensor(point.teacher)
    same = (ids[:, None] == ids[None, :]).float()  # [n, n]
    mass = point.weights @ same  # [m, n]: q_i at the token of every j
    return (point.weights * mass.clamp(min=1e-30).log()).sum().item()


def scales(losses, kept, dropped, args, key):
    """The paper's ablation: [N] for every rollout, 1 nearly everywhere; a chosen candidate's loss is scaled down to its rollout's median.

    low: the candidates with the lowest D (false alarms, if D is right). high: as many of the others, at random. No gradient
    goes through a scale; with one, a token could lower its loss by raising it.
    """
    found = [torch.ones(len(x)) for x in losses]
    chosen = {"none": [], "low": dropped}.get(args.suppress)
    if args.suppress == "high":
        chosen = [kept[i] for i in uniforms(key, len(kept)).argsort()[: len(dropped)].tolist()]
    for p in chosen:
        found[p.row][p.t] = min(1.0, (losses[p.row].median() / losses[p.row][p.t].clamp(min=1e-12)).item())
    return found


# ============================================================================================ 6. one update: look


@torch.no_grad()
def look_ahead(student, teacher, batch, args, step, clock, autocast, vocabulary, ends, probe=False, detect=True):
    """Everything that is decided before the loss, all of it without gradient: token losses, candidates, windows, distances.

    Returns the points and, for the loss, the micro-batches with the teacher's states of each: the teacher reads once.
    """
    prompts, responses, _ = batch
    size, K, deep = max(1, args.chunk_logits // vocabulary), args.window_size, args.embedding == "contextual"
    points, losses, scored, regenerate = [], [None] * len(prompts), [], args.window == "regenerate"
    lengths = [len(p) + len(r) for p, r in zip(prompts, responses)]
    groups = plumbing.micro_batches(lengths, args.micro_tokens, deal=True)
    # If all micro-batches together are no larger than one may be, the student's states are kept for the loss, graph included, and it
    # reads once. Otherwise their graphs would pile up here: it reads again when their turn comes.
    keep = plumbing.padded(lengths, groups) <= args.micro_tokens and not regenerate
    student.train(keep)  # in train mode gradient checkpointing is active, which has no cache
    for chosen in groups:
        ids, predicts, _ = pack([prompts[i] for i in chosen], [responses[i] for i in chosen], teacher.device)
        with clock.phase("teacher"):
            most = max(len(responses[i]) for i in chosen) // 10 + 2  # candidates of a rollout, times 3 with the comparisons
            teacher_states, cache = read(teacher, ids, most * (3 if probe else 1) * K if detect else 0)  # [B, L, width]
        teacher_hidden, hidden = teacher_states[predicts], None  # [N, width]
        if detect:
            with clock.phase("student"), autocast():
                if regenerate:
                    student_states, student_cache = read(student, ids, most * (3 if probe else 1) * K)
                    hidden = student_states[predicts]  # [N, width]
                else:
                    with torch.set_grad_enabled(keep):
                        hidden = states(student, ids, predicts)  # [N, width]
                found = token_losses(student, teacher, hidden, teacher_hidden, vocabulary, size).cpu()
        scored.append((chosen, ids, predicts, teacher_hidden, hidden if keep else None))
        if not detect:
            continue
        here = []
        for i, loss in zip(chosen, found.split([len(responses[i]) for i in chosen])):
            losses[i] = loss
            classes = {"high": candidates(loss, args)}
            if probe:
                classes["random"], classes["low"] = comparison(
                    loss, len(classes["high"]), args, ("probe", args.seed, step, i, args.window_size)
                )
            here += [Point(i, t, loss[t].item(), kind) for kind, positions in classes.items() for t in positions]
        places = [(chosen.index(p.row), len(prompts[p.row]) + p.t) for p in here]  # prefix: the prompt and y_<t

        def draws(who, here=here):  # one row of random numbers a window, a function of the place alone
            return torch.stack([uniforms((who, args.seed, step, p.row, p.t), K) for p in here]).to(teacher.device)

        with clock.phase("windows"):
            sampled = draws("teacher") if args.teacher_decoding == "sample" and here else None
            theirs, their_states = continuations(
                teacher, teacher_states, cache, places, K, ends, vocabulary, size, sampled, deep
            )
            if regenerate:
                with autocast():
                    ours, _ = continuations(
                        student,
                        student_states,
                        student_cache,
                        places,
                        K,
                        ends,
                        vocabulary,
                        size,
                        draws("student") if here else None,
                    )
            else:
                ours = [responses[p.row][p.t : p.t + K] for p in here]
        with clock.phase("transport"):
            for p, w, o in zip(here, theirs, ours):
                p.teacher, p.student = w, o
            if deep and regenerate:  # the regenerated text has to be read by the teacher, too
                our_states = [
                    read(
                        teacher, torch.tensor([prompts[p.row] + responses[p.row][: p.t] + p.student], device=teacher.device), 0
                    )[0][0, -len(p.student) :]
                    for p in here
                ]
            elif deep:
                our_states = [teacher_states[r, at : at + len(p.student)] for (r, at), p in zip(places, here)]
            measure(here, teacher, their_states if deep else None, our_states if deep else None)
        points += here
    points = sum(plumbing.gather(points), [])  # with several GPUs each looked at its share: what is dropped depends on all
    return sorted(points, key=lambda p: (p.row, p.t)), plumbing.everyones(losses)[0], scored


def measure(points, teacher, their_states=None, our_states=None):
    """(4) and (5) for many points: fills in `cost` and `distance`. Without states the teacher's input embeddings are used:
    the teacher's, since they never move; the student's would make D drift with the very thing that it measures."""
    if not points:
        return
    pad = torch.nn.utils.rnn.pad_sequence
    if their_states is None:
        table, device = teacher.get_input_embeddings(), teacher.device
        their_states = table(pad([torch.tensor(p.teacher) for p in points], True).to(device))  # [P, n, width]
        our_states = table(pad([torch.tensor(p.student) for p in points], True).to(device))  # [P, m, width]
    else:
        their_states, our_states = pad(their_states, True), pad(our_states, True)
    for p, c in zip(points, ground_cost(their_states, our_states).cpu()):
        p.cost = c[: len(p.teacher), : len(p.student)].clone()
        p.distance = (exact_plan(p.cost) * p.cost).sum().item()


# ============================================================================================ 7. one update: learn


def chunked_loss(student, teacher, hidden, teacher_hidden, scale, entries, vocabulary, size):
    """Over N positions: sum of scale * l_t, sum of the guidance's cross-entropies, and what one wants to see, [N, 3].

    entries: (position, token, weight), sorted by position: the soft targets of all windows, overlapping ones added up. They are read off
    the very log-probabilities that (1) needs, so guidance costs a few gathers and not another head. Chunks of positions
    are recomputed in the backward pass: exact, since both losses are sums over positions.
    """

    def one(h, th, s, position, token, weight):
        with torch.no_grad():
            theirs = log_probabilities(teacher, th, vocabulary)  # [n, V]
        ours = log_probabilities(student, h, vocabulary)  # [n, V]
        losses = reverse_kl(ours, theirs)  # [n], (1)
        follow = -(weight * ours[position, token]).sum()  # (8) without the targets' own entropy, which is constant
        with torch.no_grad():
            seen = torch.stack([losses, -(ours.exp() * ours).sum(-1), -(theirs.exp() * theirs).sum(-1)], 1)
        return (losses * s).sum(), follow, seen

    position, token, weight = entries
    opd, guided, seen = hidden.new_zeros(()), hidden.new_zeros(()), []
    for first in range(0, len(hidden), size):
        low, high = torch.searchsorted(position, torch.tensor([first, first + size], device=position.device)).tolist()
        pieces = (x[first : first + size] for x in (hidden, teacher_hidden, scale))
        pieces = (*pieces, position[low:high] - first, token[low:high], weight[low:high])
        total, follow, stats = one(*pieces) if len(hidden) <= size else checkpoint(one, *pieces, use_reentrant=False)
        opd, guided, seen = opd + total, guided + follow, seen + [stats]
    return opd, guided, torch.cat(seen)


def sparse_targets(points, first, device):
    """Soft targets as (position, token, weight), sorted by position; a window's weights sum to 1 (its mean over m positions).
    first: for every point the position in the batch at which its window begins."""
    position, token, weight = [torch.zeros(0, dtype=torch.long)], [torch.zeros(0, dtype=torch.long)], [torch.zeros(0)]
    for p, at in zip(points, first):
        m, n = p.weights.shape
        position.append(torch.arange(at, at + m).repeat_interleave(n))
        token.append(torch.tensor(p.teacher).repeat(m))
        weight.append(p.weights.flatten() / m)
    order = torch.cat(position).argsort(stable=True)
    return tuple(torch.cat(x)[order].to(device) for x in (position, token, weight))


def update(student, teacher, optimiser, batch, args, step, clock, autocast, vocabulary, ends):
    """One batch of rollouts, one step along the gradient of (9). Returns metrics, the token losses of every rollout, the points."""
    prompts, responses, truncated = batch
    tokens = sum(map(len, responses))  # counted first, over the whole step, like the divergent points below: the result
    probe = args.probe_every > 0 and step % args.probe_every == 0  # must not depend on how the batch is cut
    guide, size = args.guidance == "on", max(1, args.chunk_logits // vocabulary)
    points, losses, scored = look_ahead(
        student, teacher, batch, args, step, clock, autocast, vocabulary, ends, probe, guide or probe or args.suppress != "none"
    )
    kept, dropped = divergent([p for p in points if p.kind == "high"], args)
    guiding = kept if guide else []
    with clock.phase("transport"):
        soft_targets(guiding, args)
    scale = [torch.ones(len(r)) for r in responses]
    if args.suppress != "none":
        scale = scales(losses, kept, dropped, args, ("suppress", args.seed, step))
    share = args.lam / max(1, len(guiding))  # (9): lambda, and the mean over the divergent points of the batch
    parameters, apart, seen = plumbing.trainable(student), None, [None] * len(prompts)
    opd_sum = guided_sum = 0.0

    def backward(opd, guided):
        nonlocal apart, opd_sum, guided_sum
        if probe and torch.is_tensor(guided) and guided.requires_grad:  # the guidance's own gradient, to see its size
            own = torch.autograd.grad(share * guided, parameters, retain_graph=True, materialize_grads=True)
            apart = own if apart is None else [a + b for a, b in zip(apart, own)]
        (opd / tokens + share * guided).backward()
        opd_sum, guided_sum = opd_sum + float(opd.detach()), guided_sum + float(guided.detach())

    student.train()
    for chosen, ids, predicts, teacher_hidden, hidden in scored:
        lengths = [len(responses[i]) for i in chosen]
        begins = dict(zip(chosen, [sum(lengths[:k]) for k in range(len(lengths))]))
        own = [p for p in guiding if p.row in begins and p.context is None]
        entries = sparse_targets(own, [begins[p.row] + p.t for p in own], ids.device)
        with clock.phase("student"):
            with autocast():
                hidden = states(student, ids, predicts) if hidden is None else hidden  # [N, student's width]
                scaled = torch.cat([scale[i] for i in chosen]).to(ids.device)  # [N]
                opd, guided, stats = chunked_loss(student, teacher, hidden, teacher_hidden, scaled, entries, vocabulary, size)
            backward(opd, guided)
        for i, s in zip(chosen, stats.split(lengths)):
            seen[i] = s
    # Windows that are not the rollout's own text (--window regenerate) need a pass of their own.
    others = [p for p in guiding if p.context is not None]
    before = [prompts[p.row] + responses[p.row][: p.t] for p in others]
    for chosen in plumbing.micro_batches(
        [len(x) + len(p.context) for x, p in zip(before, others)], args.micro_tokens, deal=True
    ):
        ids, predicts, _ = pack([before[i] for i in chosen], [others[i].context for i in chosen], student.device)
        lengths = [len(others[i].context) for i in chosen]
        firsts = [sum(lengths[:k]) for k in range(len(lengths))]
        entries = sparse_targets([others[i] for i in chosen], firsts, ids.device)
        with clock.phase("student"):
            with autocast():
                guided = guidance_only(student, states(student, ids, predicts), entries, vocabulary, size)
            backward(torch.zeros(()), guided)
    seen, opd_sum, guided_sum = plumbing.everyones(seen, opd_sum, guided_sum)
    result = {}
    if probe:
        result = statistics(points)
        total = plumbing.add_up([torch.zeros_like(p) if p.grad is None else p.grad for p in parameters])
        apart = plumbing.add_up(apart or [torch.zeros_like(p) for p in parameters])
        result["grad_norm_opd"] = norm([g - a for g, a in zip(total, apart)])
        result["grad_norm_traj"] = norm(apart)  # of lambda * L_traj: what really enters the step
    with clock.phase("step"):
        grad_norm, changed = plumbing.clip_and_step(student, optimiser, clip=1.0)
    kl, own_entropy, teacher_entropy = torch.cat(seen).mean(0).tolist()
    opd = opd_sum / tokens
    traj = (guided_sum + sum(negative_entropy(p) / len(p.weights) for p in guiding)) / max(1, len(guiding))
    return (
        {
            "loss": opd + args.lam * traj,
            "opd": opd,
            "traj": traj,
            "kl": kl,
            "student_entropy": own_entropy,
            "teacher_entropy": teacher_entropy,
            "candidates": (len(kept) + len(dropped)) / len(responses),
            "divergent": len(kept) / len(responses),
            "distance": quartiles([p.distance for p in kept + dropped]),
            "length": tokens / len(responses),
            "truncated": sum(truncated) / len(truncated),
            "grad_norm": grad_norm,
            "changed": changed,
            "tokens": tokens,
            **result,
        },
        [s[:, 0] for s in seen],
        points,
    )


def guidance_only(student, hidden, entries, vocabulary, size):
    """Cross-entropy of the soft targets at states of their own, [N, width]; in chunks like chunked_loss."""

    def one(h, position, token, weight):
        return -(weight * log_probabilities(student, h, vocabulary)[position, token]).sum()

    position, token, weight = entries
    total = 0.0
    for first in range(0, len(hidden), size):
        low, high = torch.searchsorted(position, torch.tensor([first, first + size], device=position.device)).tolist()
        pieces = hidden[first : first + size], position[low:high] - first, token[low:high], weight[low:high]
        total = total + checkpoint(one, *pieces, use_reentrant=False)
    return total


# ============================================================================================ what one wants to see


def norm(gradients):
    return math.sqrt(sum(g.double().pow(2).sum().item() for g in gradients))


def quartiles(values):
    return torch.tensor(values).quantile(torch.tensor([0.25, 0.5, 0.75])).tolist() if values else None


def statistics(points):
    """The paper's own questions about D: by class, against the loss, and how many high-loss tokens are false alarms."""
    kinds = {kind: [p for p in points if p.kind == kind] for kind in ("high", "random", "low")}
    found = {f"distance_{kind}": quartiles([p.distance for p in of]) for kind, of in kinds.items()}
    for name, of in (("high", kinds["high"]), ("pooled", points)):
        x, y = [p.loss for p in of], [p.distance for p in of]
        varied = len(of) > 2 and min(x) < max(x) and min(y) < max(y)
        found[f"pearson_{name}"] = float(pearsonr(x, y).statistic) if varied else None
        found[f"spearman_{name}"] = float(spearmanr(x, y).statistic) if varied else None
    if kinds["high"] and kinds["low"]:
        upper = found["distance_low"][2]
        found["high_below_low"] = sum(p.distance < upper for p in kinds["high"]) / len(kinds["high"])
    return found


# ============================================================================================ main


def main(argv=None):
    args = settle(plumbing.parse_arguments(Args, __doc__, argv))
    device = plumbing.pick_device(args.device)
    out, resumed = plumbing.open_run(args, "topd.py")
    dtype = plumbing.compute_dtype(args.dtype, device)
    tokenizer = plumbing.load_tokenizer(args.student)
    plumbing.same_tokenizer(tokenizer, plumbing.load_tokenizer(args.teacher))
    rows, tests = load_benchmark(args.data, "train"), load_benchmark(args.benchmark, "test", args.eval_n)
    plumbing.check_prompts(tokenizer, [r["prompt"] for r in rows[:50]], args.data)
    # The student's weights are float32 even where it computes in bfloat16: a step of 1e-6 on a bfloat16 weight mostly
    # rounds to nothing. The teacher never changes and can be small.
    student = plumbing.load_student(args, resumed, device, dtype)
    teacher = plumbing.load_model(args.teacher, device, dtype).requires_grad_(False)
    checkpointing = args.gradient_checkpointing or (args.gradient_checkpointing is None and device.type == "cuda")
    if checkpointing:
        plumbing.checkpoint_layers(student)
    rows = plumbing.fitting_prompts(
        rows, lambda r: prompt_ids(tokenizer, r["prompt"]), student, args.max_new_tokens + args.window_size
    )
    optimiser = plumbing.adamw(student, args.lr, args.adam_bits)  # without weight decay: nothing but the loss moves a weight
    start = plumbing.load_state(resumed, optimiser, device)["step"] if resumed else 0
    metrics, clock = plumbing.Metrics(out, start if args.resume else None), plumbing.Clock(device)
    autocast = plumbing.autocaster(device, dtype)
    ends = set(eos_ids(teacher, tokenizer)) | set(eos_ids(student, tokenizer))

    def accuracy(model):  # greedy, on the same test problems every time
        summary, _ = evaluate(model, tokenizer, tests, max_new_tokens=max(256, args.max_new_tokens), autocast=autocast())
        return {k: summary[k] for k in ("accuracy", "interval", "n", "truncated", "mean_tokens")}

    # ---- what is about to happen
    plumbing.announce("topd.py", args, student, teacher, rows, tokenizer, dtype, checkpointing, teacher_cache=True)
    if args.sampler == "vllm":
        plumbing.attach_vllm(student, tokenizer, args, dtype)
    plumbing.write_config(out, args, "topd.py")
    if start == 0 and not metrics.rows:
        first, ceiling = accuracy(student), accuracy(teacher)
        metrics.add({"step": 0, "eval": first, "teacher_accuracy": ceiling["accuracy"]})
        print(
            f"before:  student {plumbing.percent(first)}   teacher {plumbing.percent(ceiling)}   (greedy, {first['n']} problems of {args.benchmark})"
        )
        plumbing.warn_small_gap(first, ceiling)

    # ---- training
    with plumbing.Stopper() as stopper, plumbing.progress(args.steps, "topd", "update", initial=start) as bar:
        for step in range(start + 1, args.steps + 1):
            clock.start()
            chosen = [rows[i] for i in plumbing.prompts_of_step(step, args.prompts, len(rows), args.seed)]
            with clock.phase("sample"), autocast():
                batch = rollouts(student, tokenizer, chosen, args, step)
            for group in optimiser.param_groups:
                group["lr"] = args.lr * min(1.0, step / max(1, round(0.05 * args.steps)))
            result, losses, points = plumbing.within_memory(
                update, student, teacher, optimiser, batch, args, step, clock, autocast, len(tokenizer), ends
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
            speed = f"{result['tokens'] / seconds['total']:,.0f} tokens/s"
            bar.set_postfix_str(
                f"opd {result['opd']:.3f}, traj {result['traj']:.2f}, {result['divergent']:.1f} divergent points a rollout, {speed}"
            )
            bar.update()
            if args.show_every and step % args.show_every == 0:
                plumbing.show_rollout(bar, step, tokenizer, batch[1][0], losses[0])
                for p in [p for p in points if p.row == 0 and p.weights is not None][:2]:
                    theirs, own = (plumbing.harmless(tokenizer.decode(w)) for w in (p.teacher, p.student))
                    bar.write(f"  divergent, D {p.distance:.2f}: student  {own}\n{' ' * 21}teacher  {theirs}")
            last = step == args.steps
            if last or (args.eval_every and step % args.eval_every == 0):
                metrics.add({"step": step, "eval": accuracy(student)})
                bar.write(f"update {step:4d}  accuracy {plumbing.percent(metrics.rows[-1]['eval'])}  kl {result['kl']:.3f}")
                plumbing.draw_curve(
                    metrics.rows, out / "curve.png", f"topd.py: {args.student} learns from {args.teacher} on {args.data}"
                )
            stop = stopper.asked()
            if last or stop or (args.save_every and step % args.save_every == 0):
                plumbing.save_checkpoint(out, step, student, tokenizer, optimiser)
            if stop and not last:
                bar.close()
                print(f"stopped after update {step}; continue with: {plumbing.resume_command('topd.py', args)}")
                return

    # ---- what came of it
    plumbing.save_final(out, student, tokenizer)
    plumbing.conclude(out, metrics.rows, args, device)


if __name__ == "__main__":
    plumbing.run(main)
