"""ar_opd.py: the anchored residual target and its identities, the two views, the update against
a direct computation, the moving average."""
import copy
import doctest
import math
import os
import random
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from conftest import ROOT, tiny_qwen3
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
from common.batches import fitting_prompts, log_probabilities
from common.data import prompt_ids
from common.weights import follow
from toy import world

ARGS = SimpleNamespace(
    target="anchored", lam=.6, clip=5., rho=.5, partial_answer="remove", teacher="frozen", ema=.1,
    skip_first=0, samples=1, max_new_tokens=12, seed=3, micro_tokens=10**6, chunk_logits=2**26,
)
ROWS = [
    {"plain": p, "partial": p + [40 + i, 41], "full": [44, 45] + p + [40 + i, 41, 46, 47][:2 + i]}
    for i, p in enumerate(PROMPTS)
]


def settings(**changed):
    return SimpleNamespace(**{**vars(ARGS), **changed})


def distributions(seed, n=6, V=30, scale=3.0):
    """Two random tables of log-probabilities, [n, V] each."""
    generator = torch.Generator().manual_seed(seed)
    return [(scale * torch.randn(n, V, generator=generator)).log_softmax(-1) for _ in range(2)]


# ----------------------------------------------------------------------------- the target


def test_lambda_0_is_the_partial_view_and_lambda_1_without_clip_the_full_view():
    # (4) at both ends.
    partial, full = distributions(0)
    assert torch.allclose(ar_opd.anchored_target(partial, full, 0.0, 5.0)[0], partial, atol=1e-5)
    assert torch.allclose(ar_opd.anchored_target(partial, full, 1.0, 0.0)[0], full, atol=1e-5)
    # with the clip it is not the full view
    clipped_target = ar_opd.anchored_target(partial, full, 1.0, 5.0)[0]
    assert not torch.allclose(clipped_target, full, atol=1e-2)


def test_between_0_and_1_it_is_the_geometric_mixture():
    # (4) between the ends.
    partial, full = distributions(1)
    for lam in (.25, .6):
        mixture = partial.exp() ** (1 - lam) * full.exp() ** lam
        mixture = mixture / mixture.sum(-1, keepdim=True)
        target = ar_opd.anchored_target(partial, full, lam, 0.0)[0].exp()
        assert torch.allclose(target, mixture, atol=1e-6)


def test_below_1_a_token_needs_support_in_both_views_and_above_1_the_target_extrapolates():
    partial = torch.tensor([[.98, .01, .01]]).log()
    full = torch.tensor([[.01, .01, .98]]).log()
    q = ar_opd.anchored_target(partial, full, .5, 0.0)[0].exp()[0]
    arithmetic = .5 * partial.exp()[0] + .5 * full.exp()[0]
    # a token that both views find equally unlikely keeps its place, relative to the others
    assert q[0] == pytest.approx(q[2].item()) and q[1] > 4 * arithmetic[1]
    partial = torch.tensor([[.5, .3, .2]]).log()
    full = torch.tensor([[.6, .3, .1]]).log()
    # lambda 1.5 goes further than the full view itself
    assert ar_opd.anchored_target(partial, full, 1.5, 0.0)[0].exp()[0, 0] > .6


def test_target_with_clip_against_brute_force():
    # (3) and (4), written out token by token.
    partial, full = distributions(2, n=3, V=5)
    target, clipped = ar_opd.anchored_target(partial, full, .8, 1.5)
    for i in range(3):
        pairs = list(zip(partial[i].tolist(), full[i].tolist()))
        raw = [math.exp(p + .8 * max(-1.5, min(1.5, f - p))) for p, f in pairs]
        normalised = [x / sum(raw) for x in raw]
        assert target[i].exp().tolist() == pytest.approx(normalised, abs=1e-6)
        outside = sum(math.exp(f) for p, f in pairs if abs(f - p) > 1.5)
        assert clipped[i].item() == pytest.approx(outside, abs=1e-6)
    assert torch.allclose(target.logsumexp(-1), torch.zeros(3), atol=1e-6)


def test_clipping_logits_would_give_another_target():
    # (3): what is clipped.
    # The logits of one view are moved by a constant. That is the same distribution, so the
    # target must not change. A clip of raw logits would change it.
    generator = torch.Generator().manual_seed(3)
    partial, full = (3 * torch.randn(1, 20, generator=generator) for _ in range(2))
    shifted = full + 4.0
    partial_logp = partial.log_softmax(-1)
    targets = [
        ar_opd.anchored_target(partial_logp, x.log_softmax(-1), .6, 2.0)[0] for x in (full, shifted)
    ]
    of_logits = [
        (partial + .6 * (x - partial).clamp(-2, 2)).log_softmax(-1) for x in (full, shifted)
    ]
    assert torch.allclose(*targets, atol=1e-5)
    assert (of_logits[0] - of_logits[1]).abs().max() > .5
    # log_probabilities() normalises, so the update never clips raw logits
    head = SimpleNamespace(get_output_embeddings=lambda: lambda hidden: hidden, vocabulary=20)
    plain, moved = log_probabilities(head, full), log_probabilities(head, shifted)
    assert torch.allclose(plain, moved, atol=1e-5)


def test_direction_of_the_divergence():
    # (5): the target comes first.
    target, student = distributions(4, n=2, V=4)
    brute = [
        sum(math.exp(t) * (t - s) for t, s in zip(a, b))
        for a, b in zip(target.tolist(), student.tolist())
    ]
    forward = ar_opd.forward_kl(target, student)
    assert forward.tolist() == pytest.approx(brute, abs=1e-5)
    assert not torch.allclose(forward, ar_opd.forward_kl(student, target), atol=1e-2)


# ----------------------------------------------------------------------------- the update


def gradient(student, teacher, responses=RESPONSES, rows=ROWS, **changed):
    """(gradient, metrics, token losses) of one update on a copy of the student."""
    args = settings(**changed)
    arguments = copy.deepcopy(teacher), catch, rows, responses, args, compute(args)
    caught, (metrics, losses) = gradient_of(ar_opd.update, student, *arguments)
    return caught, metrics, losses


def predicted(model, prompt, response):
    """Log-probabilities [N, V] at the positions that predict the response."""
    logits = model(torch.tensor([prompt + response])).logits[0]  # [L, V]
    return logits[len(prompt) - 1:-1, :50].log_softmax(-1)


@pytest.mark.parametrize("changed", [
    {}, dict(lam=1.2, clip=1.), dict(target="partial"), dict(target="full"), dict(target="sft"),
    dict(skip_first=2),
])
def test_loss_and_gradient_against_a_direct_computation(changed):
    # (2) to (5), value and gradient.
    args, student, total, sequences = settings(**changed), copy.deepcopy(STUDENT), 0.0, 0
    for row, response in zip(ROWS, RESPONSES):
        if len(response) <= args.skip_first:
            continue
        student_logp = predicted(student, row["plain"], response)
        with torch.no_grad():
            partial = predicted(TEACHER, row["partial"], response)
            full = predicted(TEACHER, row["full"], response)
        if args.target == "sft":
            losses = -student_logp[range(len(response)), response]
        else:
            mixed = partial + args.lam * (full - partial).clamp(-args.clip, args.clip)
            anchored = mixed - mixed.logsumexp(-1, keepdim=True)
            target = {"partial": partial, "full": full}.get(args.target, anchored)
            losses = (target.exp() * (target - student_logp)).sum(-1)
        total, sequences = total + losses[args.skip_first:].mean(), sequences + 1
    (total / sequences).backward()
    caught, metrics, _ = gradient(STUDENT, TEACHER, **changed)
    assert metrics["loss"] == pytest.approx((total / sequences).item(), abs=1e-5)
    # No metric of what this target does not have: a cross-entropy is no KL.
    found = {k for k in metrics if k.startswith("kl") or k in ("cross_entropy", "clipped")}
    assert found == {"sft": {"cross_entropy"}, "anchored": {"kl", "kl_partial", "kl_full", "clipped"}}.get(
        args.target, {"kl"})
    assert close(caught, {n: p.grad for n, p in student.named_parameters()}, 2e-6)
    assert max(g.abs().max() for g in caught.values()) > 1e-3


def test_micro_batches_chunks_and_order_change_nothing():
    whole, metrics, losses = gradient(STUDENT, TEACHER)
    names = "loss", "kl", "clipped", "kl_full", "residual"
    cuts = (
        dict(micro_tokens=12), dict(chunk_logits=50), dict(micro_tokens=24, chunk_logits=150),
    )
    for cut in cuts:
        again, other, others = gradient(STUDENT, TEACHER, **cut)
        assert close(whole, again)
        assert all(abs(metrics[k] - other[k]) < 1e-5 for k in names)
        assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(losses, others))
    order = [2, 0, 3, 1]
    responses, rows = [RESPONSES[i] for i in order], [ROWS[i] for i in order]
    assert close(whole, gradient(STUDENT, TEACHER, responses, rows)[0])


def test_identities_hold_for_the_whole_update():
    partial = gradient(STUDENT, TEACHER, target="partial")[0]
    full = gradient(STUDENT, TEACHER, target="full")[0]
    assert close(gradient(STUDENT, TEACHER, lam=0.)[0], partial)
    assert close(gradient(STUDENT, TEACHER, lam=1., clip=0.)[0], full)
    assert not close(gradient(STUDENT, TEACHER, lam=.5)[0], full)


def test_without_privilege_the_self_teacher_teaches_nothing():
    rows = [{k: r["plain"] for k in r} for r in ROWS]
    caught, metrics, _ = gradient(STUDENT, STUDENT, rows=rows)
    assert abs(metrics["loss"]) < 1e-6 and metrics["residual"] < 1e-5
    assert max(g.abs().max() for g in caught.values()) < 1e-5


def test_a_teacher_that_is_the_student_itself_gets_no_gradient_through_the_target():
    # --teacher current: student and teacher are the same module. The gradient must be the one
    # that a frozen copy gives.
    frozen, _, _ = gradient(STUDENT, STUDENT)
    student, args = copy.deepcopy(STUDENT), settings(teacher="current")
    optimizer = catch(student)
    with unclipped():
        ar_opd.update(student, student, optimizer, ROWS, RESPONSES, args, compute(args))
    assert close(frozen, optimizer.gradient)


def test_several_samples_of_a_prompt_share_its_views():
    doubled = [r for r in RESPONSES for _ in range(2)]
    one, metrics, _ = gradient(STUDENT, TEACHER)
    two, others, _ = gradient(STUDENT, TEACHER, doubled, samples=2)
    assert close(one, two) and metrics["loss"] == pytest.approx(others["loss"], abs=1e-6)


def test_moving_average():
    # (6)
    teacher, student = tiny_qwen3(seed=1), tiny_qwen3(seed=2)
    new = dict(student.named_parameters())
    expected = {n: .9 * p + .1 * new[n] for n, p in teacher.named_parameters()}
    follow(teacher, student, .1)
    assert close(dict(teacher.named_parameters()), expected)
    optimizer = torch.optim.SGD(student.parameters(), lr=.1)
    for kind in ("frozen", "ema"):
        before, args = weights(teacher), settings(teacher=kind)
        ar_opd.update(student, teacher, optimizer, ROWS, RESPONSES, args, compute(args))
        same = all(torch.equal(p, before[n]) for n, p in teacher.named_parameters())
        assert same == (kind == "frozen")
    # the average takes the student's weights AFTER the optimizer's step
    after = {n: .9 * before[n] + .1 * p for n, p in student.named_parameters()}
    assert close(dict(teacher.named_parameters()), after)


@pytest.mark.parametrize("kind", ["ema", "current"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_gradient_that_is_not_finite_changes_neither_the_weights_nor_the_average(kind, value):
    # The average has other weights than the student, so that a step towards it would be seen.
    student, average, args = spoiled(STUDENT, value), tiny_qwen3(seed=2), settings(teacher=kind)
    teacher = average if kind == "ema" else student
    optimizer = torch.optim.AdamW(student.parameters(), lr=.1)
    before, before_average = weights(student), weights(average)
    metrics, _ = ar_opd.update(student, teacher, optimizer, ROWS, RESPONSES, args, compute(args))
    assert_no_step(student, optimizer, before, metrics["grad_norm"])
    assert math.isfinite(metrics["loss"])
    now = weights(average)
    assert all(torch.equal(now[n], before_average[n]) for n in now)


@pytest.mark.parametrize("target", ["anchored", "partial", "sft"])
def test_what_is_only_measured_keeps_no_graph(target, monkeypatch):
    real, kept = ar_opd.Collected.add, []

    def add(collected, chosen, stats, *sums):
        kept.append(stats)
        real(collected, chosen, stats, *sums)
    monkeypatch.setattr(ar_opd.Collected, "add", add)
    gradient(STUDENT, TEACHER, target=target)
    assert kept and not any(stats.requires_grad for stats in kept)


# ----------------------------------------------------------------------------- memory


def test_no_view_is_longer_than_a_chunk_on_qwen3s_head():
    V, size = 151936, 2
    student, teacher = (tiny_qwen3(seed=s, vocabulary=V, width=16) for s in (1, 2))
    optimizer = torch.optim.SGD(student.parameters(), lr=.1)
    args = settings(chunk_logits=size * V)
    with Largest(V, 16) as largest:
        ar_opd.update(student, teacher, optimizer, ROWS, RESPONSES, args, compute(args, V))
    assert 1 <= largest.rows <= size


PEAK = """
import sys, resource
sys.path[:0] = [{root!r}, {root!r} + "/tests"]
import torch; torch.set_num_threads(1)
from conftest import tiny_qwen3
from helpers import compute
from test_ar_opd import settings
import ar_opd
V = 151936
student, teacher = (tiny_qwen3(seed=s, vocabulary=V, width=16) for s in (1, 2))
rows = [dict(plain=[5, 6], partial=[5, 6, 7], full=[5, 6, 7, 8])]
args = settings(chunk_logits=8 * V)
optimizer = torch.optim.SGD(student.parameters(), lr=.1)
def update(tokens):
    ar_opd.update(student, teacher, optimizer, rows, [[9] * tokens], args, compute(args, V))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
update(8); first = update(24)
print(update(300) - first)
"""


@pytest.mark.slow
def test_peak_memory_does_not_grow_with_the_length():
    # One view of 300 tokens over 151,936 columns takes 174 MiB in float32. There are two views, a
    # target and a student. (glibc keeps freed blocks of a few MiB for itself, which looks like
    # growth. With a fixed threshold it gives them back.)
    done = subprocess.run(
        [sys.executable, "-c", PEAK.format(root=str(ROOT))], capture_output=True, text=True,
        timeout=300, env={**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"},
    )
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 30, done.stdout


# ----------------------------------------------------------------------------- views

SOLUTION = "a: 1 + 2 = 3. b: 3 + 4 = 7. c: 7 - 1 = 6. The answer is \\boxed{6}."


def test_the_first_part_is_cut_at_a_word_and_never_holds_the_sentence_of_the_answer():
    # (2): the first half of z.
    assert ar_opd.first_part(SOLUTION, .5) == "a: 1 + 2 = 3. b: 3 + 4 ="
    for rho in (.01, .3, .5, .7, .9, .99):
        part = ar_opd.first_part(SOLUTION, rho)
        assert part and SOLUTION.startswith(part) and "boxed" not in part
        assert len(part) == len(SOLUTION) or SOLUTION[len(part)] in " ."
    lines = "First 2 + 2 = 4.\nThen 4 + 4 = 8\n\n#### so \\boxed{8}"
    assert ar_opd.first_part(lines, .6).startswith("First 2 + 2 = 4.\nThen")
    assert "boxed" not in ar_opd.first_part(lines, .95)
    assert "boxed" not in ar_opd.first_part("\\boxed{5}", .5)
    # It never reaches INTO the answer's sentence, and without a box that is the last sentence.
    assert ar_opd.first_part(SOLUTION, .85) == "a: 1 + 2 = 3. b: 3 + 4 = 7. c: 7 - 1 = 6."
    assert ar_opd.first_part("3 + 4 = 7\n#### 7", .95) == "3 + 4 = 7"
    assert ar_opd.first_part("First 3 + 4 = 7. Then 7 + 1 = 8. It is 8. ", .95) == "First 3 + 4 = 7. Then 7 + 1 = 8."
    # One sentence: what stands before the box, and without a box its first words.
    assert ar_opd.first_part("As x = 1.5 we get \\boxed{3} at once", .9) == "As x = 1.5 we get"
    assert ar_opd.first_part("x is 3 and y is 4", .5) == "x is 3"
    for i in range(50):
        # the toy's own solutions are cut where the toy's training documents are cut
        row = world.make_row(random.Random(i), 4)
        assert ar_opd.first_part(row["solution"], .5) == world.cut(row["solution"], .5)


def test_views_differ_in_what_they_show_and_in_nothing_else():
    # (2): what each view sees.
    row = {"problem": "P", "prompt": "P", "answer": "6", "solution": SOLUTION}
    shown, half = ar_opd.views(row, settings()), ar_opd.first_part(SOLUTION, .5)
    assert shown["plain"] == "P"
    assert shown["full"].replace(SOLUTION, "Z") == shown["partial"].replace(half, "Z")
    assert "6" not in shown["partial"] and "\\boxed{6}" in shown["full"]
    kept = ar_opd.views(row, settings(partial_answer="keep"))
    assert "The final answer is 6." in kept["partial"] and kept["full"] == shown["full"]


def test_privileged_prompts_are_never_cut_but_left_out_and_counted(toy, capsys):
    student, _, tokenizer = toy
    rows = [world.make_row(random.Random(i), 4) for i in range(3)]
    for r in rows:
        r["prompt"] = r["problem"]
    rows[1]["solution"] = " ".join([rows[1]["solution"]] * 20)  # longer than the context

    def longest(row):
        return prompt_ids(tokenizer, ar_opd.views(row, settings())["full"])

    kept = fitting_prompts(rows, longest, [student], 160)
    assert kept == [rows[0], rows[2]] and "1 of 3 prompts are too long" in capsys.readouterr().out
    for r in kept:
        text = tokenizer.decode(r["ids"])
        assert r["answer"] in text.split("boxed")[-1]
        assert text.endswith("Now answer with your own response.<|end|><|assistant|>")


# ----------------------------------------------------------------------------- rollouts


def test_rollouts_come_from_the_plain_prompt():
    # (1)
    # The privileged prompts may be anything: the student writes what it would write without them.
    args = settings(samples=2)
    written = ar_opd.rollouts(STUDENT, None, ROWS, args, 1)
    others = [{**r, "partial": [9], "full": [9, 9]} for r in ROWS]
    assert ar_opd.rollouts(STUDENT, None, others, args, 1) == written
    moved = [{**r, "plain": [9]} for r in ROWS]
    assert ar_opd.rollouts(STUDENT, None, moved, args, 1) != written
    assert len(written) == 8 and all(1 <= len(r) <= 12 for r in written)
    assert ar_opd.rollouts(STUDENT, None, ROWS, args, 2) != written  # other tokens in each update


def test_with_sft_the_response_is_the_solution_with_its_end_token(toy):
    student, _, tokenizer = toy
    rows = [world.make_row(random.Random(i), 3) for i in range(2)]
    args = settings(target="sft", samples=2, max_new_tokens=500)
    responses = ar_opd.rollouts(student, tokenizer, rows, args, 1)
    assert [tokenizer.decode(r[:-1]).strip() for r in responses] == [
        r["solution"] for r in rows for _ in range(2)
    ]
    assert all(r[-1] == tokenizer.eos_token_id for r in responses)
    cut = ar_opd.rollouts(student, tokenizer, rows, settings(target="sft", max_new_tokens=9), 1)
    assert cut == [responses[0][:9], responses[2][:9]]
    # In a pretrained model the end of a turn and the tokenizer's end token are two tokens.
    other = SimpleNamespace(turn_end=7)
    assert [r[-1] for r in ar_opd.rollouts(other, tokenizer, rows, args, 1)] == [7] * 4


def test_worked_examples():
    result = doctest.testmod(ar_opd)
    assert result.attempted >= 1 and result.failed == 0
