"""Every divergence and estimator of opd.py against sums written out by hand, closed forms, and
gradients in expectation."""
import math
from types import SimpleNamespace

import pytest
import torch

import opd

V = 7


def settings(**changed):
    defaults = dict(divergence="reverse", beta=0.5, estimator="full", top_k=3)
    return SimpleNamespace(**{**defaults, **changed})


def pair(n=5, seed=0):
    """Logits [n, V] of a student and of a teacher."""
    g = torch.Generator().manual_seed(seed)
    return [2 * torch.randn(n, V, generator=g, dtype=torch.float64) for _ in range(2)]


def log_pair(n=5, seed=0):
    return [x.log_softmax(-1) for x in pair(n, seed)]


def kl(p, q):
    """KL(p || q) of two lists of probabilities, term by term."""
    return sum(a * math.log(a / b) for a, b in zip(p, q) if a > 0)


def by_hand(student_logp, teacher_logp, kind, beta):
    values = []
    for s, t in zip(student_logp.exp().tolist(), teacher_logp.exp().tolist()):
        m = [beta * b + (1 - beta) * a for a, b in zip(s, t)]
        if kind == "reverse":
            values.append(kl(s, t))
        elif kind == "forward":
            values.append(kl(t, s))
        else:
            values.append(beta * kl(t, m) + (1 - beta) * kl(s, m))
    return torch.tensor(values, dtype=torch.float64)


# ------------------------------------------------------------------------ the divergences


CASES = [("reverse", 0.5), ("forward", 0.5), ("jsd", 0.5), ("jsd", 0.1), ("jsd", 0.9)]


@pytest.mark.parametrize("kind, beta", CASES)
def test_divergence_equals_the_sum_written_out(kind, beta):
    student_logp, teacher_logp = log_pair()
    values = opd.divergence(student_logp, teacher_logp, kind, beta)
    assert torch.allclose(values, by_hand(student_logp, teacher_logp, kind, beta), atol=1e-12)
    assert (values > 0).all()
    assert opd.divergence(student_logp, student_logp, kind, beta).abs().max() < 1e-12


@pytest.mark.parametrize("kind, beta", CASES)
def test_the_loss_of_a_token_is_the_divergence_that_was_asked_for(kind, beta):
    student_logp, teacher_logp = log_pair()
    targets, off = torch.zeros(5, dtype=torch.long), torch.zeros(5, dtype=torch.bool)
    args = settings(divergence=kind, beta=beta)
    loss = opd.token_loss(student_logp, teacher_logp, targets, off, args)
    assert torch.allclose(loss, by_hand(student_logp, teacher_logp, kind, beta), atol=1e-12)


def test_reverse_is_student_first_on_an_asymmetric_pair():
    # p = (.9, .1), q = (.5, .5): KL(p || q) = .368 and KL(q || p) = .511. Swapped arguments would
    # swap the numbers.
    p, q = torch.tensor([[.9, .1]]).log(), torch.tensor([[.5, .5]]).log()
    reverse = .9 * math.log(1.8) + .1 * math.log(.2)
    forward = .5 * math.log(5 / 9) + .5 * math.log(5)
    assert opd.divergence(p, q, "reverse").item() == pytest.approx(reverse, abs=1e-6)
    assert opd.divergence(p, q, "forward").item() == pytest.approx(forward, abs=1e-6)


def test_jsd_tends_to_both_kls_at_its_ends():
    student_logp, teacher_logp = log_pair()
    small = opd.divergence(student_logp, teacher_logp, "jsd", 1e-6) / 1e-6
    large = opd.divergence(student_logp, teacher_logp, "jsd", 1 - 1e-6) / 1e-6
    forward = opd.divergence(student_logp, teacher_logp, "forward")
    reverse = opd.divergence(student_logp, teacher_logp, "reverse")
    assert torch.allclose(small, forward, rtol=1e-3)
    assert torch.allclose(large, reverse, rtol=1e-3)


def test_closed_form_gradient_of_the_reverse_kl():
    # d KL(p || q) / d logit_v = p_v (log p_v - log q_v - KL)
    student, teacher = pair()
    student.requires_grad_()
    value = opd.divergence(student.log_softmax(-1), teacher.log_softmax(-1))
    value.sum().backward()
    p, difference = student.softmax(-1), student.log_softmax(-1) - teacher.log_softmax(-1)
    assert torch.allclose(student.grad, p * (difference - value[:, None]), atol=1e-12)


# ------------------------------------------------------------------------ --estimator sampled


def expected_gradient(args, student, teacher):
    """The gradient of token_loss with respect to the logits, in expectation over y ~ p_S: every
    token once, weighted by its probability."""
    total = torch.zeros_like(student)
    off = torch.zeros(len(student), dtype=torch.bool)
    for y in range(V):
        logits = student.clone().requires_grad_()
        targets = torch.full((len(student),), y)
        loss = opd.token_loss(
            logits.log_softmax(-1), teacher.log_softmax(-1), targets, off, args
        )
        loss.sum().backward()
        total += student.softmax(-1)[:, y:y + 1] * logits.grad
    return total


def test_sampled_estimator_has_the_gradient_of_the_reverse_kl_in_expectation():
    student, teacher = pair()
    exact = expected_gradient(settings(), student, teacher)
    sampled = expected_gradient(settings(estimator="sampled"), student, teacher)
    assert torch.allclose(sampled, exact, atol=1e-6)
    assert exact.abs().max() > 0.01


def test_why_k1_itself_must_not_be_differentiated():
    # The famous mistake: log p_S(y) - log p_T(y) as a loss has zero gradient in expectation.
    student, teacher = pair()
    total = torch.zeros_like(student)
    for y in range(V):
        logits = student.clone().requires_grad_()
        (logits.log_softmax(-1)[:, y] - teacher.log_softmax(-1)[:, y]).sum().backward()
        total += student.softmax(-1)[:, y:y + 1] * logits.grad
    assert total.abs().max() < 1e-12


@pytest.mark.parametrize("estimate", ["k2", "k3"])
def test_the_other_estimates_of_a_kl_and_the_gradients_that_they_really_have(estimate):
    """As a loss, k2 has the gradient of KL(student || other), and k3 that of KL(other || student):
    what grpo.py says of GRPO's beta term. Both in expectation over y ~ p_S."""
    student, other = pair()
    total = torch.zeros_like(student)
    for y in range(V):
        logits = student.clone().requires_grad_()
        difference = (other.log_softmax(-1) - logits.log_softmax(-1))[:, y]  # log of other / student
        k = {"k2": difference ** 2 / 2, "k3": difference.exp() - 1 - difference}[estimate]
        k.sum().backward()
        total += student.softmax(-1)[:, y:y + 1] * logits.grad
    kind = "reverse" if estimate == "k2" else "forward"
    exact = expected_gradient(settings(divergence=kind), student, other)
    assert torch.allclose(total, exact, atol=1e-9) and exact.abs().max() > 0.01


# ------------------------------------------------------------------------ --estimator topk


def test_top_k_with_a_bucket_is_a_divergence_between_zero_and_the_full_one():
    student_logp, teacher_logp = log_pair(50)
    full = opd.divergence(student_logp, teacher_logp)
    ones, before = torch.ones(50, dtype=torch.float64), torch.zeros(50, dtype=torch.float64)
    for k in range(1, V):
        a, b = opd.buckets(student_logp, teacher_logp, k, "reverse")
        assert a.shape == b.shape == (50, k + 1)
        assert torch.allclose(a.exp().sum(-1), ones) and torch.allclose(b.exp().sum(-1), ones)
        value = opd.divergence(a, b)
        # Finer buckets never lower it.
        assert (value <= full + 1e-12).all() and (value >= before - 1e-12).all()
        before = value
    whole = opd.buckets(student_logp, teacher_logp, V, "reverse")
    assert torch.allclose(opd.divergence(*whole), full)


def test_top_k_by_hand_with_k_1():
    student_logp, teacher_logp = log_pair(1)
    s, t = student_logp.exp()[0], teacher_logp.exp()[0]
    # The largest token of the distribution under which the expectation is.
    for kind, best in (("reverse", s.argmax()), ("forward", t.argmax())):
        two = [s[best], 1 - s[best]], [t[best], 1 - t[best]]
        expected = kl(*two) if kind == "reverse" else kl(*reversed(two))
        value = opd.divergence(*opd.buckets(student_logp, teacher_logp, 1, kind), kind).item()
        assert value == pytest.approx(float(expected), abs=1e-12) and value > 0
    assert s.argmax() != t.argmax()


def test_the_estimator_topk_is_the_divergence_of_the_buckets():
    student_logp, teacher_logp = log_pair()
    targets, off = torch.zeros(5, dtype=torch.long), torch.zeros(5, dtype=torch.bool)
    for kind in ("reverse", "forward", "jsd"):
        args = settings(estimator="topk", divergence=kind, beta=0.3)
        loss = opd.token_loss(student_logp, teacher_logp, targets, off, args)
        expected = by_hand(*opd.buckets(student_logp, teacher_logp, 3, kind), kind, 0.3)
        assert torch.allclose(loss, expected, atol=1e-12)


# ------------------------------------------------------------------------ off-policy text


@pytest.mark.parametrize("estimator", ["full", "topk", "sampled"])
def test_off_policy_tokens_carry_cross_entropy_only(estimator):
    student_logp, teacher_logp = log_pair(4)
    targets, off = torch.tensor([0, 1, 2, 3]), torch.tensor([True, False, True, False])
    args, none = settings(estimator=estimator), torch.zeros(4, dtype=torch.bool)
    loss = opd.token_loss(student_logp, teacher_logp, targets, off, args)
    on_policy = opd.token_loss(student_logp, teacher_logp, targets, none, args)
    assert torch.allclose(loss[off], -student_logp[off, targets[off]], atol=1e-12)
    assert torch.equal(loss[~off], on_policy[~off])
    assert (loss[off] - on_policy[off]).abs().min() > 1e-3
    if estimator == "full":
        expected = by_hand(student_logp, teacher_logp, "reverse", 0.5)
        assert torch.allclose(loss[~off], expected[~off], atol=1e-12)
