"""TOPD, trajectory-aware on-policy distillation: where student and teacher would continue
differently, learn the teacher's next sentence, not only its next token.

After Jiang and Ferraro, "Bridging Reasoning Trajectories in On-Policy Distillation via
Near-Future Guidance" (arXiv 2606.00305). The idea. On-policy distillation (opd.py, read it
first) repairs one token at a time, where its loss is high. But many high-loss tokens are false
alarms: the loss is high, but student and teacher go on with the same step. And where the future
really differs, repairing the one token does not repair the tokens after it. So TOPD looks ahead
from the high-loss positions: it compares the next K tokens of the student with the K tokens that
the teacher would write there. Positions where they differ least are left out. At the others the
student also learns the teacher's tokens.

    l_t    = KL( p_S(. | x, y_<t) || p_T(. | x, y_<t) )   at every token of the rollout y
    L_OPD  = mean of l_t over all tokens of the batch                                         (1)
    c      = { t : l_t among the highest of the rollout }          the candidates             (2)
    W_T, W_S = K tokens of the teacher, K of the student, both after (x, y_<t)                (3)
    C_ji   = 1 - cos( E(W_T[j]), E(W_S[i]) )                       ground cost, teacher first (4)
    D_t    = min over plans gamma of <gamma, C>                    distance of the futures    (5)
    d      = the candidates without those of the lowest D_t        the divergent points       (6)
    q_i    = sum_j gamma_ji onehot( W_T[j] ), normalised           target of position t + i   (7)
    L_traj(t) = mean over i of KL( q_i || p_S(. | x, y_<t+i) )     in the student's context   (8)
    L      = L_OPD + lambda * mean over d of L_traj(t)                                        (9)

x is the prompt, y the rollout, y_<t its tokens before t. p_S and p_T are the next-token
distributions of student and teacher. E gives a token a vector. t, i and j count from 0.
A plan gamma [n, m] says how much of the teacher's token j moves to the student's position i. Its
rows sum to a = 1/n each and its columns to b = 1/m each. Here n = m always (note 17). The code
keeps both letters to show the order: [n, m] is teacher x student, [m, n] is student x teacher.
<gamma, C> is the sum of gamma_ji C_ji, the mean cost of these moves. So D_t is 0 if both futures
have the same tokens, in any order, and large if they have little in common (note 11). With lambda
= 0 this file is opd.py. A larger lambda makes the student copy more of the teacher's future, also
where it does not fit the student's own tokens (the metric target_agreement).

[paper] stated there, [inferred] follows from what is stated, [ours] our choice where it is silent:
  [paper]     1. four rollouts per prompt, temperature 1, no top-p. (1) is a reverse KL on the
              student's own states. The candidates (2) are the positions of the highest losses.
              2. a divergent point (6) has high loss AND high D.  3. both windows START AT t and
              have K = 50 tokens.  4. embeddings and optimal transport.  5. (7), (8) and the sum in
              (9), with a stop-gradient on the target; AdamW, 5 % warm-up, a clip of the gradient at
              1; thinking is off in both models.
  [inferred]  6. (1) over the whole vocabulary, then a token mean over the batch. The gradient goes
              through p_S at each state, and not through the choice of the tokens.  7. the
              candidates are the top 2.25 % of a rollout (the paper counts 218 of 9,688 tokens).
              8. W_S is the next K tokens of the rollout: no new text, no further reading. (Read
              literally, the paper lets the student write them anew.)  9. a column of gamma sums to
              1/m. We scale it to the sum 1 and take the mean over i. The paper sums the unscaled
              columns. Both have one factor 1/m, so the gradient is the same.  10. where windows
              overlap, their losses add up.
  [ours]      11. E: the teacher's input embeddings. If those of different tokens are nearly
              orthogonal, D is about the share of tokens that the windows do not have in common, in
              any order. Then D is high also if one window says the same as the other in synonyms.
              This is a weakness of this E. (The toy's synonyms are close to each other, see
              benchmarks/README.md.) A token that stands in both windows is mostly matched to
              itself. Then its target is the student's own token.  12. a and b are uniform.  13. two
              plans. D is a minimum, so (5) takes the exact plan. As a target this plan would be
              hard: one token for each position. So (7) takes a softer plan, by Sinkhorn's algorithm
              with epsilon 0.05.  14. "the lowest" in (6): 30 % of the batch's candidates.  15. the
              teacher decodes greedily.  16. the mean in (9) is over the divergent points of the
              whole batch. lambda = 0.1, on the toy 0.03 (the paper gives no value).  17. the
              student's window ends with the rollout, the teacher's where the teacher writes an end
              token. Both are cut to the shorter one. (The D of a short window is a mean over few
              tokens. So it is more often very high or very low.) No candidate has fewer than K/2
              tokens left, its own included. The next highest loss takes its place.  18. a rollout
              has at least 2 candidates, or 1 below 20 tokens, if note 17 leaves so many.  19. the
              learning rate, the batch and the length. (The paper: 2e-6, 4 and 8,000 tokens.) The
              paper's student was first trained on 20,000 answers of the teacher. Ours was not.

Run it:
    python topd.py            the toy, three minutes; with a GPU: Qwen3-0.6B learns from Qwen3-4B
    python topd.py --guidance off --suppress low    the paper's ablation: damp false alarms only
    python look.py topd       see the candidates, the windows and the plans before you train
Which claims hold on the toy, and which do not: RESULTS.md and benchmarks/README.md. TOPD is not
clearly better than OPD there, and at temperature 1 it is worse.
"""

# This comes first: from here on Ctrl-C gives no traceback, also while torch is loaded.
from common.arguments import choice, either, harmless, require, run_script

# isort: split
import math
from dataclasses import dataclass

import torch
from scipy.optimize import linear_sum_assignment

from common.batches import Collected, log_probabilities, rollout_statistics, states
from common.branches import continuations, read
from common.diagnostics import quartiles
from common.flags import Common, in_range, parse
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
    """model that scores the rollouts and writes the windows; its tokenizer must be the student's"""
    prompts: int = 16
    """prompts per update"""
    samples: int = 4
    """rollouts per prompt; the batch is prompts x samples"""
    max_new_tokens: int = either(160, 512)
    """a rollout is cut after so many tokens"""
    lr: float = either(1e-3, 1e-5)
    """AdamW's learning rate, after a linear warm-up over the first 5 % of the updates"""
    guidance: str = choice("on", "on", "off")
    """off: no L_traj; together with --suppress none this is opd.py"""
    # The toy's lambda, and its learning rate above: "All pilots" in RESULTS.md.
    lam: float = either(0.03, 0.1)
    """lambda of (9), the weight of L_traj"""
    window_size: int = either(12, 50)
    """K, tokens of a window"""
    candidate_share: float = 0.0225
    """share of a rollout's tokens that are candidates; at least 2, or 1 below 20 tokens, if so
    many have half a window behind them"""
    drop_share: float = 0.3
    """share of the candidates that is dropped, those with the lowest D (0: all are used)"""
    epsilon: float = 0.05
    """weight of the plan's entropy in (7): towards 0 the targets become hard, large values spread
    each target over the window"""
    embedding: str = choice("static", "static", "contextual")
    """E of (4): the teacher's input embeddings, or its last hidden states after each token"""
    suppress: str = choice("none", "none", "low", "high")
    """the paper's ablation. low: scale down the loss of the candidates with the lowest D. high: do
    the same to as many of the other candidates, drawn at random"""


def check(args):
    """Refuse what cannot work before anything is loaded."""
    fits = "a window must fit into a rollout, see --max_new_tokens"
    in_range(args, "window_size", f"[2, {args.max_new_tokens}]", fits)
    in_range(args, "lam", "[0, inf)", "it is the weight of a loss")
    in_range(args, "candidate_share", "(0, 0.1]", "it is a share of the tokens")
    in_range(args, "drop_share", "[0, 1)", "it is a share of the candidates")
    in_range(args, "epsilon", "[0.01, 10]", "below it Sinkhorn's algorithm ends too early")
    require(
        args.suppress == "none" or args.drop_share > 0,
        "--suppress scales down as many candidates as --drop_share drops; with 0 there are none.",
    )
    require(
        args.suppress != "high" or args.drop_share < 0.5,
        "--suppress high scales down as many other candidates as --drop_share drops; so "
        "--drop_share must be below 0.5.",
    )
    return args


# ======================================================================== 1. rollouts
def rollouts(student, rows, args, step):
    """Prompts and responses, both lists of token ids."""
    prompts = [r["ids"] for r in rows]
    drawn = draw(student, prompts, args, step)
    return [p for p in prompts for _ in range(args.samples)], [c.ids for c in drawn]


# ======================================================================== 2. candidates
def reverse_kl(student_logp, teacher_logp):
    """l_t of (1): KL(student || teacher) at every state, [n], from log-probabilities [n, V].

    The sum is written out, because the order of F.kl_div is easily confused: F.kl_div(log_p, q) is
    KL(q || p).
    """
    return (student_logp.exp() * (student_logp - teacher_logp)).sum(-1)  # l_t


def candidates(losses, args):
    """(2): the positions of the highest losses in one rollout, from its token losses [N].

    It is a share of the tokens, not a threshold like "mean + 2 standard deviations". With a
    threshold the number of candidates would depend on the tail of the losses.
    """
    N = len(losses)
    count = min(max(2, round(args.candidate_share * N)), max(1, N // 10))  # notes 7 and 18
    # Near the end too little future is left to be compared. So only positions at which the
    # student's window has at least half of its tokens can be candidates (note 17).
    early = losses[: max(0, math.floor(N - args.window_size / 2) + 1)]
    return sorted(early.topk(min(count, len(early))).indices.tolist())  # (2)


# ======================================================================== 3. the two futures
@dataclass
class Point:
    """A candidate: a position at which the two futures are compared."""

    row: int  # number of the rollout in the batch
    t: int  # position in the response; both windows start AT it, not behind it
    loss: float  # l_t
    teacher: list  # token ids of W_T
    student: list  # token ids of W_S; as many
    cost: torch.Tensor  # C [n, m] = teacher x student
    distance: float  # D_t
    weights: torch.Tensor = None  # q [m, n] = student x teacher; None: this point has no target


def embed(teacher, windows):
    """E of (4): a vector for every token, [P, n, width], padded. The teacher's embeddings are
    used because they never change. With the student's, D would drift during training."""
    padded = torch.nn.utils.rnn.pad_sequence([torch.tensor(w) for w in windows], True)  # [P, n]
    return teacher.get_input_embeddings()(padded.to(teacher.device))


# ======================================================================== 4. optimal transport
def ground_cost(teacher_vectors, student_vectors):
    """(4): C [P, n, m] of P pairs of windows, from [P, n, width] and [P, m, width]. With static
    vectors the same token costs 0."""
    u = torch.nn.functional.normalize(teacher_vectors.float(), dim=-1)
    v = torch.nn.functional.normalize(student_vectors.float(), dim=-1)
    cost = (1 - u @ v.transpose(1, 2)).clamp(min=0)  # (4)
    # If a float16 state overflows, the loss is not finite and no step is made. Still, the plan
    # needs finite costs.
    return cost.nan_to_num(1.0)


def exact_plan(cost):
    """(5): the best plan [n, m] for one cost matrix [n, m], n = m, with uniform marginals.

    Between windows of equal length some best plan is a permutation (times 1/n). So the problem
    is an assignment of the teacher's tokens to the student's positions.
    """
    j, i = linear_sum_assignment(cost.double().numpy())
    plan = torch.zeros(cost.shape)
    plan[torch.as_tensor(j), torch.as_tensor(i)] = 1 / len(cost)
    return plan


def sinkhorn(costs, epsilon, device="cpu", iterations=500, tolerance=0.01):
    """The plans of (7), a list of [n, m], for a list of cost matrices [n, m], n = m. Each of them
    minimises <gamma, C> - epsilon H(gamma) between uniform marginals; H is the entropy. All
    windows are solved together, on `device`.

    It works with logarithms, because exp(-C / epsilon) underflows for a small epsilon. Padding
    has no mass. Each iteration scales the rows first and then the columns, the student's side. So
    the columns sum to 1/m up to rounding, and every position gets its full target. The iterations
    end when every row, the teacher's side, sums to 1/n with a relative error of at most
    `tolerance`. A very small epsilon needs more than `iterations`, so `check` refuses it.
    """
    if not costs:
        return []
    size = max(len(c) for c in costs)
    log_kernel = costs[0].new_zeros(len(costs), size, size)  # [P, size, size]
    log_mass = costs[0].new_full((len(costs), size), -math.inf)  # [P, size]: log a, and log b
    for p, c in enumerate(costs):
        n = len(c)
        log_kernel[p, :n, :n], log_mass[p, :n] = -c / epsilon, -math.log(n)
    log_kernel, log_mass = log_kernel.to(device), log_mass.to(device)
    mass = log_mass.exp()
    # log gamma_ji = f_j + log_kernel_ji + g_i. Each line makes one of both marginals right.
    g = torch.zeros_like(log_mass).masked_fill(log_mass.isinf(), -math.inf)
    for k in range(iterations):
        f = log_mass - (log_kernel + g[:, None, :]).logsumexp(2)  # [P, size], the rows
        g = log_mass - (log_kernel + f[:, :, None]).logsumexp(1)  # [P, size], the columns
        if k % 10 == 9:  # the columns are right now: are the rows, too?
            rows = (log_kernel + f[:, :, None] + g[:, None, :]).exp().sum(2)  # [P, size]
            if ((rows - mass).abs() <= tolerance * mass).all():
                break
    plans = (log_kernel + f[:, :, None] + g[:, None, :]).exp().cpu()  # [P, size, size]
    return [plan[: len(c), : len(c)] for plan, c in zip(plans, costs)]


def divergent(points, args):
    """(6): (kept, dropped) of the candidates. Those with the lowest D are dropped.

    It is a share, not a threshold, because the scale of D depends on the embedding. It is a share
    of the whole batch. With a share per rollout, a short one would always lose one of its two
    candidates, even if both are divergent.
    """
    order = sorted(points, key=lambda p: p.distance)
    count = int(args.drop_share * len(order) + 0.5)
    return order[count:], order[:count]  # (6)


# ======================================================================== 5. targets and scales
def soft_targets(points, args, device="cpu"):
    """(7): sets point.weights, [m, n]: for each of m student positions n weights, which lie on
    the n token ids of the teacher's window.

    The cost is written teacher first. A target belongs to a student position. So the plan is
    TRANSPOSED here. Nothing warns if this is forgotten: n = m, so all shapes fit, and the sums are
    right, too. Only the targets are wrong. In the picture A is the same word as a, B as b, and C
    as c:

        teacher writes  b c a    gamma  to A   B   C
        student wrote   A B C    from b    0  1/3  0
                                      c    0   0  1/3
                                      a   1/3  0   0

        gamma.T  from b   c   a
        A             0   0  1/3     so the target of A is a,
        B            1/3  0   0      of B is b,
        C             0  1/3  0      of C is c
    """
    plans = sinkhorn([p.cost for p in points], args.epsilon, device)
    for point, gamma in zip(points, plans):
        per_student = gamma.T  # [m, n]
        point.weights = per_student / per_student.sum(1, keepdim=True)  # (7)


def target_tensors(points, lengths):
    """The targets of all points as tensors: for each rollout token ids and weights, [N, S] each.

    S is the largest number of targets at one position of the batch. Where windows overlap, their
    targets stand side by side, so they add up (note 10). The weights are divided by m for the
    mean over i in (8). The one-hot vectors of (7) are never built: their token ids are enough.
    """
    ids, weights = ([[[] for _ in range(n)] for n in lengths] for _ in range(2))
    for p in points:
        for i, row in enumerate((p.weights / len(p.weights)).tolist()):
            ids[p.row][p.t + i].extend(p.teacher)
            weights[p.row][p.t + i].extend(row)
    S = max((len(x) for rollout in ids for x in rollout), default=0) or 1

    def tensors(lists, dtype):
        return [torch.tensor([x + [0] * (S - len(x)) for x in r], dtype=dtype) for r in lists]

    return tensors(ids, torch.long), tensors(weights, torch.float)


def negative_entropy(point):
    """sum over i and tokens v of q_i(v) log q_i(v). The KL in (8) is the cross-entropy plus this.
    It is a constant, and only the metric `traj` needs it."""
    ids = torch.tensor(point.teacher)
    same = (ids[:, None] == ids[None, :]).float()  # [n, n]
    # A token that stands twice in the teacher's window collects both weights.
    mass = point.weights @ same  # [m, n]: q_i at the token of every j
    return (point.weights * mass.clamp(min=1e-30).log()).sum().item()


def scales(losses, kept, dropped, args, step):
    """The paper's ablation: factors of the token losses, [N] per rollout, nearly all of them 1.
    The loss of a chosen candidate is scaled down to the median of its rollout.

    low: the candidates with the lowest D, the false alarms if D measures what we hope. high: as
    many others, drawn at random from those with a higher D. (1) then is the mean of factor x l_t,
    also in the metric `opd`. The factor, median / l_t, is a constant. With a gradient through it,
    factor x l_t would be just the median: no gradient for this token.
    """
    factors = [torch.ones(len(x)) for x in losses]
    order = uniforms(("suppress", args.seed, step), len(kept)).argsort().tolist()
    others = [kept[i] for i in order[: len(dropped)]]
    for p in {"none": [], "low": dropped, "high": others}[args.suppress]:
        ratio = losses[p.row].median() / losses[p.row][p.t].clamp(min=1e-12)
        factors[p.row][p.t] = min(1.0, ratio.item())
    return factors


# ======================================================================== 6. look ahead
def compare(spots, pairs, teacher, vectors=None):
    """Points from candidates and their two windows: (4), (5).

    spots: (rollout, t, l_t) of every candidate. pairs: its two windows, teacher's and student's,
    of equal length. vectors: E of both (default: `embed`).
    """
    if not spots:
        return []
    vectors = vectors or [embed(teacher, windows) for windows in zip(*pairs)]
    costs = ground_cost(*vectors).cpu()  # (4), [P, n, m], padded
    points = []
    for (i, t, loss), (w_t, w_s), cost in zip(spots, pairs, costs):
        cost = cost[: len(w_t), : len(w_s)].clone()  # [n, m]
        distance = (exact_plan(cost) * cost).sum().item()  # (5)
        points.append(Point(i, t, loss, w_t, w_s, cost, distance))
    return points


@torch.no_grad()
def look_ahead(student, teacher, batch, args, compute):
    """Everything that is decided before the loss, without any gradient. Returns the candidates
    as Points, the token losses of every rollout, and the teacher's states of every micro-batch."""
    prompts, responses = batch
    K, contextual = args.window_size, args.embedding == "contextual"
    collected, teacher_states = Collected(responses), []
    # No gradient is needed here, so gradient checkpointing would be of no use.
    student.eval()

    def token_losses(student_hidden, teacher_hidden):
        student_logp = log_probabilities(student, student_hidden)  # [n, V]
        teacher_logp = log_probabilities(teacher, teacher_hidden)  # [n, V]
        return 0.0, reverse_kl(student_logp, teacher_logp)  # no sum is needed; [n], l_t

    for chosen in compute.micro_batches(prompts, responses):
        ids, predicts, _ = compute.pack(prompts, responses, chosen)

        # The teacher reads the rollouts once: for the scores, the windows and the update.
        with compute.phase("teacher"):
            # Room in the cache for the windows. No rollout has more candidates than a tenth of
            # its tokens, or one. One more is a reserve.
            most_candidates = max(len(responses[i]) for i in chosen) // 10 + 2
            hidden, cache = read(teacher, ids, most_candidates * K)  # [B, L, teacher's width]
            teacher_states.append(hidden[predicts])  # [N, teacher's width]

        # The token losses l_t only say where to look here. The update computes them again.
        with compute.phase("student"), compute.autocast():
            student_hidden = states(student, ids, predicts)  # [N, student's width]
            # The first result is a sum, the second one is joined: [N].
            _, losses = compute.in_chunks(token_losses, student_hidden, teacher_states[-1])
        losses, spots = losses.cpu(), []  # [N], all rollouts of the micro-batch
        for i, x in zip(chosen, losses.split([len(responses[i]) for i in chosen])):
            spots += [(i, t, x[t].item()) for t in candidates(x, args)]  # (2)

        # The teacher continues the prompt and y_<t of every candidate.
        with compute.phase("windows"):
            places = [(chosen.index(i), len(prompts[i]) + t) for i, t, _ in spots]
            written = continuations(teacher, hidden, cache, places, K, contextual, compute.chunk)
            teacher_windows, after = written  # (3); after: states after their tokens, or None
        student_windows = [responses[i][t : t + K] for i, t, _ in spots]  # (3): in the rollout
        # Both are cut to the shorter one. Otherwise a teacher that ends its text at once would
        # make its end token the target of all K positions.
        both = list(zip(teacher_windows, student_windows))
        sizes = [min(len(w_t), len(w_s)) for w_t, w_s in both]
        pairs = [(w_t[:n], w_s[:n]) for (w_t, w_s), n in zip(both, sizes)]

        with compute.phase("transport"):
            vectors = None
            if contextual and spots:  # the teacher's states after its own tokens, and after y_t ..
                after_y = [hidden[row, at : at + n] for (row, at), n in zip(places, sizes)]
                lists = [[v[:n] for v, n in zip(after, sizes)], after_y]
                vectors = [torch.nn.utils.rnn.pad_sequence(x, True) for x in lists]
            points = compare(spots, pairs, teacher, vectors)
        collected.add(chosen, losses, points)
        # Without this line two caches would be in memory while the next one is filled.
        del hidden, cache
    losses, points = collected.everyone()
    # A fixed order, however the batch was cut. It decides between equal D, and what `scales` draws.
    return sorted(points, key=lambda p: (p.row, p.t)), losses, teacher_states


# ======================================================================== 7. one update
# What is measured at every token. The means go into metrics.jsonl.
STATISTICS = "kl", "student_entropy", "teacher_entropy", "target_agreement"


def update(student, teacher, optimizer, batch, args, step, compute):
    """One optimizer step along the gradient of (9). Returns metrics, token losses and points."""
    prompts, responses = batch
    lengths = [len(r) for r in responses]
    # Tokens and divergent points are counted over the whole batch, before the first micro-batch.
    # Otherwise the result would depend on how the batch is cut.
    points, losses, teacher_states = look_ahead(student, teacher, batch, args, compute)
    kept, dropped = divergent(points, args)  # (6)
    guiding = kept if args.guidance == "on" else []
    # The targets are known before the loss. They are constants: no gradient goes through a plan.
    with compute.phase("transport"):
        soft_targets(guiding, args, student.device)  # (7)
        target_ids, target_weights = target_tensors(guiding, lengths)
    # Factors of l_t in (1), for --suppress.
    factors = scales(losses, kept, dropped, args, step)
    tokens, count = sum(lengths), max(1, len(guiding))  # without guidance: 0 / 1, not 0 / 0
    collected = Collected(responses)

    def loss_of_positions(student_hidden, teacher_hidden, factor, target_ids, target_weights):
        """For a few positions at a time: the sums of (1) and (8)."""
        with torch.no_grad():
            teacher_logp = log_probabilities(teacher, teacher_hidden)  # [n, V]
        student_logp = log_probabilities(student, student_hidden)  # [n, V]
        kl = reverse_kl(student_logp, teacher_logp)  # [n], l_t of (1)
        # (8) uses the log p_S of (1), so guidance needs no second product with the head. This sum
        # is the cross-entropy to q. Its gradient is that of the KL, because the entropy of q is a
        # constant. The mean over i is already in the weights (`target_tensors`).
        at_targets = student_logp.gather(1, target_ids)  # [n, S]
        traj = -(target_weights * at_targets).sum()  # (8)
        with torch.no_grad():  # only to be looked at
            entropies = [-(x.exp() * x).sum(-1) for x in (student_logp, teacher_logp)]  # [n] each
            # How likely does the teacher itself find the targets, in the STUDENT's context? Where
            # it finds them unlikely, L_traj and L_OPD pull in different directions.
            agreement = (target_weights * teacher_logp.gather(1, target_ids).exp()).sum(-1)  # [n]
            columns = torch.stack([kl.detach(), *entropies, agreement], 1)  # [n, 4], as STATISTICS
        return torch.stack([(kl * factor).sum(), traj]), columns

    student.train()  # gradient checkpointing works in this mode only; there is no dropout
    # The same micro-batches as in look_ahead: they depend on the lengths only.
    micro_batches = compute.micro_batches(prompts, responses)
    for chosen, teacher_hidden in zip(micro_batches, teacher_states):
        ids, predicts, _ = compute.pack(prompts, responses, chosen)
        # Factors and targets in the order of the packed tokens: rollout after rollout.
        per_rollout = factors, target_ids, target_weights
        per_token = [torch.cat([x[i] for i in chosen]).to(ids.device) for x in per_rollout]
        # The student reads the rollouts once more, now with a gradient.
        with compute.phase("student"):
            with compute.autocast():
                student_hidden = states(student, ids, predicts)  # [N, student's width]
                tensors = student_hidden, teacher_hidden, *per_token
                (opd, traj), stats = compute.in_chunks(loss_of_positions, *tensors)
            # The two divisions make the mean of (1) over all tokens and the mean of (9) over d.
            # They use counts of the whole batch, so the gradients of micro-batches add up.
            compute.backward(opd / tokens + args.lam / count * traj)  # (1), (9)
        collected.add(chosen, stats, opd.item(), traj.item())
    stats, opd, traj = collected.everyone()

    # One step. The norm of the gradient is cut at 1, so one odd batch cannot ruin the student.
    with compute.phase("step"):
        norm = clip_gradient(student, 1.0, compute.loss_scale)
        if math.isfinite(norm):  # a step along NaN would destroy the weights for good
            optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    opd, stats = opd / tokens, torch.cat(stats)  # stats [N, 4]
    traj = (traj + sum(negative_entropy(p) / len(p.weights) for p in guiding)) / count
    means = dict(zip(STATISTICS, stats.mean(0).tolist()))
    # The mean over d and i of sum_v q_i(v) p_T(v | x, y_<t+i), not over all tokens.
    means["target_agreement"] = stats[:, 3].sum().item() / count if guiding else None
    metrics = {
        "loss": opd + args.lam * traj,
        "opd": opd,
        "traj": traj,
        **means,
        "candidates": len(points) / len(responses),
        "divergent": len(kept) / len(responses),
        "distance": quartiles([p.distance for p in points]),
        "grad_norm": norm,
    }
    return metrics | rollout_statistics(responses, student.ends), losses, points


# ======================================================================== training
def windows_of(points, tokenizer):
    """The futures of up to two divergent points of the first rollout, as text."""
    for p in [p for p in points if p.row == 0 and p.weights is not None][:2]:
        w_s, w_t = (harmless(tokenizer.decode(w)) for w in (p.student, p.teacher))
        yield f"  divergent, D {p.distance:.2f}: student  {w_s}\n{' ' * 21}teacher  {w_t}"


def main(argv=None):
    args = check(parse(Args, __doc__, argv, "topd"))
    run = Run(args, "topd")  # device, folder, tokenizer, problems, checkpoint to continue from
    student, teacher = run.load_student(), run.load(args.teacher)
    teacher.ends = sorted({*teacher.ends, *student.ends})  # end tokens of both end a window
    optimizer = adamw(student, args.lr, args.adam_bits)
    # margin: a window of the teacher can begin near the end of a rollout and go beyond it.
    run.begin(student, optimizer, teacher=teacher, margin=args.window_size, teacher_cache=True)
    run.compare_with_teacher(student, teacher)  # before the first update

    for step in run.updates():  # sets the learning rate, and saves checkpoints
        with run.phase("sample"), run.autocast():
            batch = rollouts(student, run.problems(step), args, step)
        metrics, losses, points = within_memory(
            update, student, teacher, optimizer, batch, args, step, run.compute
        )
        run.log(step, **metrics)
        notes = windows_of(points, run.tokenizer)
        run.show(step, batch[1][0], losses[0], notes=notes)
        if run.evaluates(step):
            run.log(step, eval=run.accuracy(student))
            run.draw(f"topd.py: {args.student} learns from {args.teacher} on {args.data}")
    is_opd = args.suppress == "none" and (args.guidance == "off" or args.lam == 0)
    run.finish(baseline=f"python {'topd.py' if is_opd else 'opd.py'}")


if __name__ == "__main__":
    run_script(main)
