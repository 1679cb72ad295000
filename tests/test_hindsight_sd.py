"""hindsight_sd.py: peers and contexts, the divergences, the update against a direct computation."""
import copy
import math
import random
from types import SimpleNamespace

import pytest
import torch
from conftest import tiny_qwen3
from helpers import (
    PROMPTS,
    RESPONSES,
    STUDENT,
    TEACHER,
    Largest,
    assert_no_step,
    catch,
    close,
    compute,
    gradient_of,
    spoiled,
    unclipped,
    weights,
)

import ar_opd
import grpo
import hindsight_sd
from common.batches import fitting_prompts
from common.data import prompt_ids
from common.grading import verify
from common.sampler import Completion
from hindsight_sd import Contexts
from toy import world

ARGS = SimpleNamespace(
    context="peer", peer="uniform", fallback="answer", train="all", divergence="forward",
    teacher="current", ema=.1, beta=0.0, rl_weight=0.0, samples=2, max_new_tokens=12, seed=3,
    micro_tokens=10**6, chunk_logits=2**26,
)
DRAWN = [Completion(r, False, [-1.0] * len(r)) for r in RESPONSES]
# two questions with two rollouts each
ROWS = [{"ids": PROMPTS[0], "level": 3}, {"ids": PROMPTS[1], "level": 4}]
RIGHT, PEERS = [True, False, False, True], [None, 0, 3, None]
SHOWN = [  # token ids of the teacher's prompts
    PROMPTS[0] + [40, 41], PROMPTS[0] + [42], PROMPTS[1] + [43, 44, 45], PROMPTS[1] + [46],
]
START = tiny_qwen3(seed=9)  # pi_0


def settings(**changed):
    return SimpleNamespace(**{**vars(ARGS), **changed})


# ----------------------------------------------------------------------------- peers and coverage


def test_a_rollout_is_never_its_own_peer_and_every_other_success_is_equally_likely():
    # (2): which peer.
    right, scores = [True, False, True, True, False, True], [(9, -1.0)] * 6
    for i in range(6):
        counts = [0] * 6
        for k in range(3000):
            counts[hindsight_sd.choose_peer(i, right, scores, "uniform", (0, k, 0, i))] += 1
        others = [j for j in range(6) if right[j] and j != i]
        assert sum(counts[j] for j in others) == 3000 and counts[i] == 0
        for j in others:
            assert abs(counts[j] - 3000 / len(others)) < 5 * math.sqrt(3000 / len(others))


def test_groups_with_none_one_and_all_right():
    def peers(right):
        scores, key = [(5, -1.0)] * 3, (0, 0, 0, 0)
        return [hindsight_sd.choose_peer(i, right, scores, "uniform", key) for i in range(3)]

    assert peers([False] * 3) == [None] * 3
    assert peers([False, True, False]) == [1, None, 1]  # the only success has no peer
    assert all(peer not in (i, None) for i, peer in enumerate(peers([True] * 3)))


def test_peer_rules():
    right = [True, True, True, False, True]
    scores = [(9, -.1), (5, -.5), (7, -.05), (2, -.01), (6, -.9)]
    for rule, expected in (("shortest", 1), ("low_ppl", 2), ("high_ppl", 4)):
        assert hindsight_sd.choose_peer(3, right, scores, rule, (0,)) == expected
    # rollout 1 itself would be shorter still
    assert hindsight_sd.choose_peer(1, right, scores, "shortest", (0,)) == 4


# ----------------------------------------------------------------------------- contexts


@pytest.fixture(scope="module")
def group(toy):
    """Two toy questions with four rollouts each: (rows, drawn, texts). Of the first question two
    rollouts are right, of the second none."""
    tokenizer, rows, drawn, texts = toy[2], [], [], []
    for q in range(2):
        rng = random.Random(q)
        problem = world.make_problem(rng, 3)
        answer = str(problem.answer)
        rows.append({
            "problem": problem.text, "prompt": problem.text, "answer": answer, "level": 3,
            "ids": prompt_ids(tokenizer, problem.text), "solution": world.solve(problem, rng),
        })
        for j in range(4):
            text = world.solve(problem, rng, "student")
            if j >= 2 or q == 1:
                text = text.replace(f"\\boxed{{{answer}}}", "\\boxed{98}")
            ids = tokenizer(text, add_special_tokens=False)["input_ids"]
            ids = ids + [tokenizer.eos_token_id]
            drawn.append(Completion(ids, False, [-.5] * len(ids)))
            texts.append(text)
    assert len(set(texts)) == 8
    return rows, drawn, texts


def test_contexts_hold_the_peer_and_nothing_of_the_rollout_itself(toy, group):
    # (1) and (2): verdicts, and what the teacher reads.
    (rows, drawn, texts), tokenizer = group, toy[2]
    args = settings(samples=4)
    contexts = hindsight_sd.build_contexts(rows, drawn, tokenizer, args, 1)
    peers, prompts = contexts.peers, contexts.prompts
    assert contexts.right == [True, True, False, False] + [False] * 4
    assert peers[0] == 1 and peers[1] == 0 and peers[4:] == [None] * 4
    assert all(p in (0, 1) for p in peers[2:4])
    for i in range(8):
        shown, row = tokenizer.decode(prompts[i]), rows[i // 4]
        assert row["problem"] in shown and f"The final answer is {row['answer']}." in shown
        # the text of the peer, and of no other rollout
        assert all((texts[j] in shown) == (j == peers[i]) for j in range(8))
        # one turn of the user, and the assistant's turn is open
        assert shown.count("<|end|>") == 1 and shown.endswith("<|end|><|assistant|>")
    args.fallback = "mask"
    masked = hindsight_sd.build_contexts(rows, drawn, tokenizer, args, 1).prompts
    assert masked[4:] == [None] * 4 and masked[:4] == prompts[:4]


def test_other_contexts(group):
    row = group[0][0]
    without_peer = hindsight_sd.context(row, None, settings())
    for peer in ("PEER", None):
        answer = hindsight_sd.context(row, peer, settings(context="answer"))
        assert "PEER" not in answer and row["answer"] in answer and without_peer == answer
        reference = hindsight_sd.context(row, peer, settings(context="reference"))
        assert "PEER" not in reference and row["solution"] in reference


def test_peers_are_drawn_anew_for_every_rollout_and_update(toy, group):
    # (2), with note 4.
    (rows, drawn, _), tokenizer = group, toy[2]
    drawn = [drawn[0], drawn[1]] * 4  # eight right rollouts of one question
    args = settings(samples=8)

    def peers(step):
        return tuple(hindsight_sd.build_contexts(rows[:1], drawn, tokenizer, args, step).peers)

    of_steps = {peers(step) for step in range(6)}
    assert len(of_steps) == 6 and all(len(set(chosen)) > 2 for chosen in of_steps)
    assert peers(3) == peers(3)


def test_a_cut_rollout_without_an_answer_fails_even_if_its_last_number_is_the_gold(toy):
    # (1): R_i, with note 3.
    assert verify("so far we have 29", "29", False) and not verify("so far we have 29", "29", True)
    assert verify("The answer is \\boxed{29}. And then", "29", True)
    assert not verify("The answer is \\boxed{28}.", "29", False)
    # The verifier is told that a rollout was cut.
    tokenizer = toy[2]
    ids = tokenizer("so we have 29", add_special_tokens=False)["input_ids"]
    drawn = [Completion(ids, truncated, []) for truncated in (False, True)]
    rows, texts = [{"answer": "29"}], ["so we have 29"] * 2
    assert hindsight_sd.verdicts(tokenizer, rows, drawn, 2) == (texts, [True, False])


def test_questions_without_room_for_their_longest_context_are_left_out_and_counted(
    toy, group, capsys
):
    student, _, tokenizer = toy
    rows, args = copy.deepcopy(group[0]), settings(max_new_tokens=160)
    # the plain prompt fits, the prompt with a peer does not
    rows[1]["prompt"] = " ".join([rows[1]["prompt"]] * 18)
    assert len(prompt_ids(tokenizer, rows[1]["prompt"])) + 160 < 1024

    def longest(row):
        return hindsight_sd.longest_context(row, tokenizer, args)

    kept = fitting_prompts(rows, longest, [student], 160)
    assert kept == rows[:1] and "1 of 2 prompts are too long" in capsys.readouterr().out
    # a peer of the greatest possible length does not exceed the bound
    real = prompt_ids(tokenizer, hindsight_sd.context(rows[0], " 7" * 160, args))
    assert len(real) <= len(longest(rows[0])) + 1


# ----------------------------------------------------------------------------- closed forms


def test_divergences_against_brute_force():
    # (4), and the divergences that can take its place.
    generator = torch.Generator().manual_seed(0)
    p, s = ((2 * torch.randn(5, 7, generator=generator)).log_softmax(-1) for _ in range(2))

    def kl(x, y):
        return sum(u * math.log(u / v) for u, v in zip(x, y))

    for kind in ("forward", "reverse", "jsd"):
        expected = []
        for a, b in zip(p.exp().tolist(), s.exp().tolist()):
            m = [(u + v) / 2 for u, v in zip(a, b)]
            of_kind = {"forward": kl(a, b), "reverse": kl(b, a), "jsd": (kl(a, m) + kl(b, m)) / 2}
            expected.append(of_kind[kind])
        assert hindsight_sd.divergence(p, s, kind).tolist() == pytest.approx(expected, abs=1e-5)
    forward, reverse = (hindsight_sd.divergence(p, s, kind) for kind in ("forward", "reverse"))
    assert torch.allclose(forward, ar_opd.forward_kl(p, s))
    assert not torch.allclose(forward, reverse, atol=1e-2)
    both = hindsight_sd.divergence(p, s, "jsd"), hindsight_sd.divergence(s, p, "jsd")
    assert torch.allclose(*both, atol=1e-6)
    far = [torch.tensor([x]).log() for x in ([1 - 2e-7, 1e-7, 1e-7], [1e-7, 1e-7, 1 - 2e-7])]
    largest = hindsight_sd.divergence(*far, "jsd").item()
    assert largest == pytest.approx(math.log(2), abs=1e-4)


def test_advantages_in_closed_form():
    for k in range(1, 8):
        p = k / 8
        std = math.sqrt(p * (1 - p))
        advantages = hindsight_sd.advantages([True] * k + [False] * (8 - k), 8).tolist()
        expected = [(1 - p) / std] * k + [-p / std] * (8 - k)
        assert advantages == pytest.approx(expected, abs=1e-5)
    # two groups without differences
    assert hindsight_sd.advantages([True] * 4 + [False] * 4, 4).tolist() == [0.0] * 8


# ----------------------------------------------------------------------------- the update


def gradient(
    student=STUDENT, teacher=TEACHER, start=START, contexts=None, vocabulary=50, **changed
):
    """(gradient, metrics, token losses) of one update on a copy of the student. teacher None:
    the very module that is trained."""
    student, args = copy.deepcopy(student), settings(**changed)
    optimizer = catch(student)
    models = student, teacher or student, start
    batch = ROWS, DRAWN, contexts or Contexts(RIGHT, PEERS, SHOWN)
    with unclipped():
        metrics, losses = hindsight_sd.update(
            *models, optimizer, batch, args, compute(args, vocabulary)
        )
    return optimizer.gradient, metrics, losses


def predicted(model, prompt, response):
    """Log-probabilities [N, V] at the positions that predict the response."""
    logits = model(torch.tensor([prompt + response])).logits[0]  # [L, V]
    return logits[len(prompt) - 1:-1, :50].log_softmax(-1)


@pytest.mark.parametrize("changed", [
    {}, dict(divergence="reverse"), dict(divergence="jsd"), dict(train="failures"), dict(beta=.3),
    dict(rl_weight=.5), dict(rl_weight=.25, beta=.1, divergence="jsd"),
])
def test_loss_and_gradient_against_a_direct_computation(changed):
    # (3) to (5), value and gradient.
    args, student = settings(**changed), copy.deepcopy(STUDENT)
    gain, w = hindsight_sd.advantages(RIGHT, 2), args.rl_weight
    means = []
    # as (5) is written: a mean over questions of a mean over the group of a mean over tokens
    for q in range(2):
        group = []
        for i in (2 * q, 2 * q + 1):
            student_logp = predicted(student, ROWS[q]["ids"], RESPONSES[i])
            with torch.no_grad():
                teacher_logp = predicted(TEACHER, SHOWN[i], RESPONSES[i])
                start_logp = predicted(START, ROWS[q]["ids"], RESPONSES[i])
            distance = hindsight_sd.divergence(teacher_logp, student_logp, args.divergence)
            drift = (student_logp.exp() * (student_logp - start_logp)).sum(-1)
            written = student_logp[range(len(RESPONSES[i])), RESPONSES[i]]
            distilled = distance.mean() * (args.train == "all" or not RIGHT[i])
            reinforced = gain[i] * written.mean()
            group.append((1 - w) * distilled + args.beta * drift.mean() - w * reinforced)
        means.append(sum(group) / 2)
    loss = sum(means) / 2
    loss.backward()
    caught, metrics, _ = gradient(**changed)
    assert metrics["loss"] == pytest.approx(loss.item(), abs=1e-5)
    assert close(caught, {n: p.grad for n, p in student.named_parameters()}, 2e-6)
    assert max(g.abs().max() for g in caught.values()) > 1e-3


def test_the_kl_to_the_start_is_named_only_if_it_was_measured():
    for beta in (0.0, 0.1):
        _, metrics, _ = gradient(beta=beta)
        assert ("kl_start" in metrics) == (beta > 0)


def test_micro_batches_and_chunks_change_nothing():
    names = "loss", "kl", "kl_start", "credit", "teacher_entropy"
    whole, metrics, losses = gradient(beta=.1, rl_weight=.3)
    cuts = (
        dict(micro_tokens=12), dict(chunk_logits=50), dict(micro_tokens=24, chunk_logits=150),
    )
    for cut in cuts:
        again, other, others = gradient(beta=.1, rl_weight=.3, **cut)
        assert close(whole, again)
        assert all(abs(metrics[k] - other[k]) < 1e-5 for k in names)
        assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(losses, others))


def test_the_same_weights_as_teacher_get_no_gradient_through_the_target():
    # (3): the stopgrad.
    same, _, _ = gradient(teacher=None)
    frozen, _, _ = gradient(teacher=copy.deepcopy(STUDENT))
    assert close(same, frozen) and max(g.abs().max() for g in same.values()) > 1e-3


def test_without_a_context_the_student_teaches_itself_nothing():
    # (3): the context is the only difference.
    contexts = Contexts(RIGHT, PEERS, [ROWS[i // 2]["ids"] for i in range(4)])
    caught, metrics, _ = gradient(contexts=contexts, teacher=None)
    assert abs(metrics["loss"]) < 1e-6 and metrics["credit"] < 1e-6
    assert max(g.abs().max() for g in caught.values()) < 1e-5


def test_masked_rollouts_carry_no_loss_and_the_others_keep_their_weight():
    # (5), with note 8.
    def only_some(kept):
        prompts = [p if i in kept else None for i, p in enumerate(SHOWN)]
        return gradient(contexts=Contexts(RIGHT, PEERS, prompts))

    # everything but rollout 1 is masked: the gradient is the share of rollout 1 in the whole
    only = only_some([1])[0]
    failed = Contexts([True, False, True, True], PEERS, SHOWN)
    alone = gradient(contexts=failed, train="failures")[0]
    assert close(only, alone) and max(g.abs().max() for g in only.values()) > 1e-4
    parts = [only_some([i])[0] for i in range(4)]
    total = {n: sum(p[n] for p in parts) for n in only}
    assert close(total, gradient()[0])
    none, metrics, _ = only_some([])
    assert metrics["loss"] == 0 and max(g.abs().max() for g in none.values()) == 0


def test_the_hybrid_is_half_distillation_and_half_grpo():
    # against grpo.py itself: one step on the same rollouts
    both, distilled = gradient(rl_weight=.5)[0], gradient()[0]
    args = SimpleNamespace(
        samples=2, overlong="none", advantage="std", norm="sequence", reuse=1, clip_low=.2,
        clip_high=.2, beta=0.0, max_new_tokens=12, micro_tokens=10**6, chunk_logits=2**26,
    )
    arguments = None, catch, (ROWS, DRAWN, RIGHT), args, compute(args)
    reinforced, _ = gradient_of(grpo.update, STUDENT, *arguments)
    assert close(both, {n: .5 * reinforced[n] + .5 * distilled[n] for n in both}, 2e-6)


def test_moving_average_and_frozen_teacher():
    teacher, student = tiny_qwen3(seed=1), tiny_qwen3(seed=2)
    optimizer = torch.optim.SGD(student.parameters(), lr=.1)
    batch = ROWS, DRAWN, Contexts(RIGHT, PEERS, SHOWN)
    for kind in ("frozen", "ema"):
        before, args = weights(teacher), settings(teacher=kind)
        hindsight_sd.update(student, teacher, None, optimizer, batch, args, compute(args))
        same = all(torch.equal(p, before[n]) for n, p in teacher.named_parameters())
        assert same == (kind == "frozen")
    # the average takes the student's weights AFTER the optimizer's step
    after = {n: .9 * before[n] + .1 * p for n, p in student.named_parameters()}
    assert close(dict(teacher.named_parameters()), after)


@pytest.mark.parametrize("kind", ["ema", "current"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_gradient_that_is_not_finite_changes_neither_the_weights_nor_the_average(kind, value):
    # The average has other weights than the student, so that a step towards it would be seen.
    student, average = spoiled(STUDENT, value), tiny_qwen3(seed=2)
    args = settings(teacher=kind, beta=.1)
    batch = ROWS, DRAWN, Contexts(RIGHT, PEERS, SHOWN)
    models = student, average if kind == "ema" else student, START
    optimizer = torch.optim.AdamW(student.parameters(), lr=.1)
    before, before_average = weights(student), weights(average)
    metrics, _ = hindsight_sd.update(*models, optimizer, batch, args, compute(args))
    assert_no_step(student, optimizer, before, metrics["grad_norm"])
    assert math.isfinite(metrics["loss"])
    now = weights(average)
    assert all(torch.equal(now[n], before_average[n]) for n in now)


def test_no_distribution_is_longer_than_a_chunk():
    V, size = 5000, 2
    student, teacher, start = (tiny_qwen3(seed=s, vocabulary=V, width=16) for s in (1, 2, 3))
    with Largest(V, 16) as largest:
        gradient(
            student, teacher, start, vocabulary=V, chunk_logits=size * V, beta=.1, rl_weight=.2
        )
    assert 1 <= largest.rows <= size
