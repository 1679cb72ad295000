"""Every divergence and estimator of opd.py against sums written out by hand, closed forms and gradients in expectation."""
import math
from types import SimpleNamespace

import pytest
import torch

import opd

torch.manual_seed(0)
V = 7


def settings(**changed):
    return SimpleNamespace(**{**dict(temperature=1.0, divergence="reverse", beta=0.5, estimator="full", top_k=3, chunk_logits=10**9), **changed})


def pair(n=5, seed=0):
    g = torch.Generator().manual_seed(seed)
    return 2 * torch.randn(n, V, generator=g, dtype=torch.float64), 2 * torch.randn(n, V, generator=g, dtype=torch.float64)


def kl(p, q):
    """KL(p || q) of two lists of probabilities, term by term."""
    return sum(a * math.log(a / b) for a, b in zip(p, q) if a > 0)


def by_hand(student, teacher, kind, beta):
    found = []
    for s, t in zip(student.softmax(-1).tolist(), teacher.softmax(-1).tolist()):
        m = [beta * b + (1 - beta) * a for a, b in zip(s, t)]
        found.append({"reverse": lambda: kl(s, t), "forward": lambda: kl(t, s), "jsd": lambda: beta * kl(t, m) + (1 - beta) * kl(s, m)}[kind]())
    return torch.tensor(found, dtype=torch.float64)


@pytest.mark.parametrize("kind,beta", [("reverse", .5), ("forward", .5), ("jsd", .5), ("jsd", .1), ("jsd", .9)])
def test_divergence_equals_the_sum_written_out(kind, beta):
    student, teacher = pair()
    ours = opd.divergence(student.log_softmax(-1), teacher.log_softmax(-1), kind, beta)
    assert torch.allclose(ours, by_hand(student, teacher, kind, beta), atol=1e-12)
    assert (ours > 0).all()
    assert opd.divergence(student.log_softmax(-1), student.log_softmax(-1), kind, beta).abs().max() < 1e-12


def test_reverse_is_student_first_on_an_asymmetric_pair():
    # p = (.9, .1), q = (.5, .5): KL(p||q) = .368, KL(q||p) = .511. Swapping the arguments would swap the numbers.
    p, q = torch.tensor([[.9, .1]]).log(), torch.tensor([[.5, .5]]).log()
    assert opd.divergence(p, q, "reverse").item() == pytest.approx(.9 * math.log(1.8) + .1 * math.log(.2), abs=1e-6)
    assert opd.divergence(p, q, "forward").item() == pytest.approx(.5 * math.log(5 / 9) + .5 * math.log(5), abs=1e-6)


def test_jsd_tends_to_the_kls_at_its_ends():
    student, teacher = (x.log_softmax(-1) for x in pair())
    small = opd.divergence(student, teacher, "jsd", 1e-6) / 1e-6
    large = opd.divergence(student, teacher, "jsd", 1 - 1e-6) / 1e-6
    assert torch.allclose(small, opd.divergence(student, teacher, "forward"), rtol=1e-3)
    assert torch.allclose(large, opd.divergence(student, teacher, "reverse"), rtol=1e-3)


def test_closed_form_gradient_of_the_reverse_kl():
    # d KL(p||q) / d logit_v = p_v (log p_v - log q_v - KL)
    student, teacher = pair()
    student.requires_grad_()
    value = opd.divergence(student.log_softmax(-1), teacher.log_softmax(-1))
    value.sum().backward()
    p, difference = student.softmax(-1), student.log_softmax(-1) - teacher.log_softmax(-1)
    assert torch.allclose(student.grad, p * (difference - value[:, None]), atol=1e-12)


def expected_gradient(args, student, teacher):
    """Gradient of token_loss in expectation over y ~ p_S: every token once, weighted by its probability."""
    total = torch.zeros_like(student)
    for y in range(V):
        leaf = student.clone().requires_grad_()
        targets = torch.full((len(student),), y)
        loss, _ = opd.token_loss(leaf, teacher, targets, torch.zeros(len(student), dtype=torch.bool), args)
        loss.sum().backward()
        total += student.softmax(-1)[:, y:y + 1] * leaf.grad
    return total


def test_sampled_estimator_has_the_gradient_of_the_reverse_kl_in_expectation():
    student, teacher = pair()
    exact = expected_gradient(settings(), student, teacher)
    assert torch.allclose(expected_gradient(settings(estimator="sampled"), student, teacher), exact, atol=1e-6)
    assert exact.abs().max() > 0.01


def test_why_k1_itself_must_not_be_differentiated():
    # the famous mistake: log p_S(y) - log p_T(y) as a loss has zero gradient in expectation
    student, teacher = pair()
    total = torch.zeros_like(student)
    for y in range(V):
        leaf = student.clone().requires_grad_()
        (leaf.log_softmax(-1)[:, y] - teacher.log_softmax(-1)[:, y]).sum().backward()
        total += student.softmax(-1)[:, y:y + 1] * leaf.grad
    assert total.abs().max() < 1e-12


def test_top_k_with_tail_is_a_divergence_between_zero_and_the_full_one():
    student, teacher = (x.log_softmax(-1) for x in pair(50))
    full = opd.divergence(student, teacher)
    before = torch.zeros(50, dtype=torch.float64)
    for k in range(1, V):
        a, b = opd.coarse(student, teacher, k, "reverse")
        assert a.shape == (50, k + 1)
        assert torch.allclose(a.exp().sum(-1), torch.ones(50, dtype=torch.float64)) and torch.allclose(b.exp().sum(-1), torch.ones(50, dtype=torch.float64))
        value = opd.divergence(a, b)
        assert (value <= full + 1e-12).all() and (value >= before - 1e-12).all()    # finer buckets never lower it
        before = value
    assert torch.allclose(opd.divergence(*opd.coarse(student, teacher, V, "reverse")), full)


def test_top_k_by_hand_with_k_1():
    student, teacher = pair(1)
    s, t = student.softmax(-1)[0], teacher.softmax(-1)[0]
    best = s.argmax()
    expected = kl([s[best], 1 - s[best]], [t[best], 1 - t[best]])
    ours = opd.divergence(*opd.coarse(student.log_softmax(-1), teacher.log_softmax(-1), 1, "reverse"))
    assert ours.item() == pytest.approx(float(expected), abs=1e-12) and ours.item() > 0


def test_off_policy_tokens_carry_cross_entropy_only():
    student, teacher = pair(4)
    targets, off = torch.tensor([0, 1, 2, 3]), torch.tensor([True, False, True, False])
    loss, _ = opd.token_loss(student, teacher, targets, off, settings())
    assert torch.allclose(loss[off].double(), -student.log_softmax(-1)[off, targets[off]], atol=1e-5)
    assert torch.allclose(loss[~off].double(), by_hand(student, teacher, "reverse", .5)[~off], atol=1e-5)


def test_one_temperature_for_both_distributions():
    student, teacher = pair()
    loss, _ = opd.token_loss(student, teacher, torch.zeros(5, dtype=torch.long), torch.zeros(5, dtype=torch.bool), settings(temperature=2.0))
    assert torch.allclose(loss.double(), by_hand(student / 2, teacher / 2, "reverse", .5), atol=1e-5)


def test_statistics_are_kl_and_both_entropies_and_carry_no_gradient():
    student, teacher = pair()
    student.requires_grad_()
    _, seen = opd.token_loss(student, teacher, torch.zeros(5, dtype=torch.long), torch.zeros(5, dtype=torch.bool), settings(divergence="forward"))
    p, q = student.softmax(-1), teacher.softmax(-1)
    assert not seen.requires_grad
    assert torch.allclose(seen[:, 0].double(), by_hand(student.detach(), teacher, "reverse", .5), atol=1e-5)
    assert torch.allclose(seen[:, 1].double(), -(p * p.log()).sum(-1), atol=1e-5)
    assert torch.allclose(seen[:, 2].double(), -(q * q.log()).sum(-1), atol=1e-5)


def test_the_loss_is_computed_in_float32_whatever_the_logits_are():
    student, teacher = pair()
    loss, _ = opd.token_loss(student.bfloat16(), teacher.bfloat16(), torch.zeros(5, dtype=torch.long), torch.zeros(5, dtype=torch.bool), settings())
    assert loss.dtype == torch.float32
