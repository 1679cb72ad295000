"""ar_opd.py: the anchored residual target and its identities, the two views, the update against a direct computation, the moving average."""
import copy
import math
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from conftest import ROOT, tiny_qwen3
from test_opd import CPU, PROMPTS, STUDENT, TEACHER, close
from torch.utils._python_dispatch import TorchDispatchMode

import ar_opd
import plumbing
from evaluate import prompt_ids
from toy import world

ARGS = SimpleNamespace(target="anchored", lam=.6, clip=5., rho=.5, partial_answer="remove", teacher="frozen", ema=.1, skip_first=0, samples=1, max_new_tokens=12,
                       seed=3, micro_tokens=10**6, chunk_logits=2**26)
RESPONSES = [[3, 4, 1], [20, 21, 22, 23, 24, 1], [1], [30, 31]]
ROWS = [{"plain": p, "partial": p + [40 + i, 41], "full": [44, 45] + p + [40 + i, 41, 46, 47][:2 + i]} for i, p in enumerate(PROMPTS)]


def settings(**changed):
    return SimpleNamespace(**{**vars(ARGS), **changed})


def distributions(seed, n=6, V=30, scale=3.0):
    generator = torch.Generator().manual_seed(seed)
    return [(scale * torch.randn(n, V, generator=generator)).log_softmax(-1) for _ in range(2)]


# ------------------------------------------------------------------------------------------------ the target


def test_lambda_0_is_the_partial_view_and_lambda_1_without_clip_the_full_view():
    partial, full = distributions(0)
    assert torch.allclose(ar_opd.anchored_target(partial, full, 0.0, 5.0)[0], partial, atol=1e-5)
    assert torch.allclose(ar_opd.anchored_target(partial, full, 1.0, 0.0)[0], full, atol=1e-5)
    assert not torch.allclose(ar_opd.anchored_target(partial, full, 1.0, 5.0)[0], full, atol=1e-2)     # with the clip it is not


def test_between_0_and_1_it_is_the_geometric_mixture():
    partial, full = distributions(1)
    for lam in (.25, .6):
        mixture = partial.exp() ** (1 - lam) * full.exp() ** lam
        mixture = mixture / mixture.sum(-1, keepdim=True)
        assert torch.allclose(ar_opd.anchored_target(partial, full, lam, 0.0)[0].exp(), mixture, atol=1e-6)


def test_support_in_both_views_is_needed_below_1_and_beyond_1_it_extrapolates():
    partial = torch.tensor([[.98, .01, .01]]).log()
    full = torch.tensor([[.01, .01, .98]]).log()
    q = ar_opd.anchored_target(partial, full, .5, 0.0)[0].exp()[0]
    arithmetic = .5 * partial.exp()[0] + .5 * full.exp()[0]
    assert q[0] == pytest.approx(q[2].item()) and q[1] > 4 * arithmetic[1]          # what both find equally unlikely is kept, relatively
    mild = torch.tensor([[.5, .3, .2]]).log()
    told = torch.tensor([[.6, .3, .1]]).log()
    assert ar_opd.anchored_target(mild, told, 1.5, 0.0)[0].exp()[0, 0] > .6         # further than the full view itself


def test_brute_force_with_clip():
    partial, full = distributions(2, n=3, V=5)
    target, clipped = ar_opd.anchored_target(partial, full, .8, 1.5)
    for i in range(3):
        raw = [math.exp(p + .8 * max(-1.5, min(1.5, f - p))) for p, f in zip(partial[i].tolist(), full[i].tolist())]
        assert target[i].exp().tolist() == pytest.approx([x / sum(raw) for x in raw], abs=1e-6)
        outside = sum(math.exp(f) for p, f in zip(partial[i].tolist(), full[i].tolist()) if abs(f - p) > 1.5)
        assert clipped[i].item() == pytest.approx(outside, abs=1e-6)
    assert torch.allclose(target.logsumexp(-1), torch.zeros(3), atol=1e-6)


def test_clipping_logits_would_give_another_target():
    # one view's logits moved by a constant: the same distribution, so the target must not change. A clip of raw logits would.
    generator = torch.Generator().manual_seed(3)
    partial, full = (3 * torch.randn(1, 20, generator=generator) for _ in range(2))
    shifted = full + 4.0
    ours = [ar_opd.anchored_target(partial.log_softmax(-1), x.log_softmax(-1), .6, 2.0)[0] for x in (full, shifted)]
    raw = [(partial + .6 * (x - partial).clamp(-2, 2)).log_softmax(-1) for x in (full, shifted)]
    assert torch.allclose(*ours, atol=1e-5) and (raw[0] - raw[1]).abs().max() > .5
    # and log_probabilities() is what guarantees it
    head = SimpleNamespace(get_output_embeddings=lambda: lambda h: h)
    assert torch.allclose(ar_opd.log_probabilities(head, full, 20), ar_opd.log_probabilities(head, shifted, 20), atol=1e-5)


def test_direction_of_the_divergence():
    target, student = distributions(4, n=2, V=4)
    brute = [sum(math.exp(t) * (t - s) for t, s in zip(a, b)) for a, b in zip(target.tolist(), student.tolist())]
    assert ar_opd.forward_kl(target, student).tolist() == pytest.approx(brute, abs=1e-5)
    assert not torch.allclose(ar_opd.forward_kl(target, student), ar_opd.forward_kl(student, target), atol=1e-2)


# ------------------------------------------------------------------------------------------------ the update


def gradient(student, teacher, responses=RESPONSES, rows=ROWS, **changed):
    student, teacher, caught = copy.deepcopy(student), copy.deepcopy(teacher), {}

    class Catch(torch.optim.SGD):
        def step(self):
            caught.update({n: p.grad.clone() for n, p in student.named_parameters()})
    old, clock = plumbing.torch.nn.utils.clip_grad_norm_, plumbing.Clock(CPU)
    clock.start()
    plumbing.torch.nn.utils.clip_grad_norm_ = lambda parameters, clip: old(parameters, 1e9)
    try:
        metrics, losses = ar_opd.update(student, teacher, Catch(student.parameters(), lr=1.0), rows, (responses, [False] * len(responses)), settings(**changed),
                                        clock, plumbing.autocaster(CPU, torch.float32), 50)
    finally:
        plumbing.torch.nn.utils.clip_grad_norm_ = old
    return caught, metrics, losses


def predicted(model, prompt, response):
    return model(torch.tensor([prompt + response])).logits[0, len(prompt) - 1:-1, :50].log_softmax(-1)


@pytest.mark.parametrize("changed", [{}, dict(lam=1.2, clip=1.), dict(target="partial"), dict(target="full"), dict(target="sft"), dict(skip_first=2)])
def test_loss_and_gradient_against_a_direct_computation(changed):
    args, student, total, sequences = settings(**changed), copy.deepcopy(STUDENT), 0.0, 0
    for row, response in zip(ROWS, RESPONSES):
        if len(response) <= args.skip_first:
            continue
        ours = predicted(student, row["plain"], response)
        with torch.no_grad():
            partial, full = predicted(TEACHER, row["partial"], response), predicted(TEACHER, row["full"], response)
        if args.target == "sft":
            losses = -ours[range(len(response)), response]
        else:
            mixed = partial + args.lam * (full - partial).clamp(-args.clip, args.clip)
            target = {"partial": partial, "full": full}.get(args.target, mixed - mixed.logsumexp(-1, keepdim=True))
            losses = (target.exp() * (target - ours)).sum(-1)
        total, sequences = total + losses[args.skip_first:].mean(), sequences + 1
    (total / sequences).backward()
    caught, metrics, _ = gradient(STUDENT, TEACHER, **changed)
    assert metrics["loss"] == pytest.approx((total / sequences).item(), abs=1e-5)
    assert close(caught, {n: p.grad for n, p in student.named_parameters()}, 2e-6)
    assert max(g.abs().max() for g in caught.values()) > 1e-3


def test_micro_batches_chunks_and_order_change_nothing():
    whole, metrics, losses = gradient(STUDENT, TEACHER)
    for cut in (dict(micro_tokens=12), dict(chunk_logits=50), dict(micro_tokens=24, chunk_logits=150)):
        again, other, others = gradient(STUDENT, TEACHER, **cut)
        assert close(whole, again) and all(abs(metrics[k] - other[k]) < 1e-5 for k in ("loss", "kl", "clipped", "kl_full", "residual"))
        assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(losses, others))
    order = [2, 0, 3, 1]
    assert close(whole, gradient(STUDENT, TEACHER, [RESPONSES[i] for i in order], [ROWS[i] for i in order])[0])


def test_identities_hold_for_the_whole_update():
    assert close(gradient(STUDENT, TEACHER, lam=0.)[0], gradient(STUDENT, TEACHER, target="partial")[0])
    assert close(gradient(STUDENT, TEACHER, lam=1., clip=0.)[0], gradient(STUDENT, TEACHER, target="full")[0])
    assert not close(gradient(STUDENT, TEACHER, lam=.5)[0], gradient(STUDENT, TEACHER, target="full")[0])


def test_without_privilege_the_self_teacher_teaches_nothing():
    rows = [{k: r["plain"] for k in r} for r in ROWS]
    caught, metrics, _ = gradient(STUDENT, STUDENT, rows=rows)
    assert abs(metrics["loss"]) < 1e-6 and max(g.abs().max() for g in caught.values()) < 1e-5 and metrics["residual"] < 1e-5


def test_the_teacher_that_is_the_student_itself_gets_no_gradient_through_the_target():
    # --teacher current: the same module on both sides. Its gradient is that of a frozen copy.
    frozen, _, _ = gradient(STUDENT, copy.deepcopy(STUDENT))
    student, caught, clock = copy.deepcopy(STUDENT), {}, plumbing.Clock(CPU)

    class Catch(torch.optim.SGD):
        def step(self):
            caught.update({n: p.grad.clone() for n, p in student.named_parameters()})
    clock.start()
    old = plumbing.torch.nn.utils.clip_grad_norm_
    plumbing.torch.nn.utils.clip_grad_norm_ = lambda parameters, clip: old(parameters, 1e9)
    try:
        ar_opd.update(student, student, Catch(student.parameters(), lr=1.0), ROWS, (RESPONSES, [False] * 4), settings(teacher="current"), clock,
                      plumbing.autocaster(CPU, torch.float32), 50)
    finally:
        plumbing.torch.nn.utils.clip_grad_norm_ = old
    assert close(frozen, caught)


def test_several_samples_a_prompt_share_its_views():
    doubled = [r for r in RESPONSES for _ in range(2)]
    one, metrics, _ = gradient(STUDENT, TEACHER)
    two, others, _ = gradient(STUDENT, TEACHER, doubled, samples=2)
    assert close(one, two) and metrics["loss"] == pytest.approx(others["loss"], abs=1e-6)


def test_moving_average():
    teacher, student = tiny_qwen3(seed=1), tiny_qwen3(seed=2)
    expected = {n: .9 * p + .1 * dict(student.named_parameters())[n] for n, p in teacher.named_parameters()}
    ar_opd.follow(teacher, student, .1)
    assert close(dict(teacher.named_parameters()), expected)
    optimiser, clock = torch.optim.SGD(student.parameters(), lr=.1), plumbing.Clock(CPU)
    clock.start()
    for kind in ("frozen", "ema"):
        before = {n: p.clone() for n, p in teacher.named_parameters()}
        ar_opd.update(student, teacher, optimiser, ROWS, (RESPONSES, [False] * 4), settings(teacher=kind), clock, plumbing.autocaster(CPU, torch.float32), 50)
        assert all(torch.equal(p, before[n]) for n, p in teacher.named_parameters()) == (kind == "frozen")
    after = {n: .9 * before[n] + .1 * p for n, p in student.named_parameters()}            # AFTER the optimiser's step
    assert close(dict(teacher.named_parameters()), after)


# ------------------------------------------------------------------------------------------------ memory


def test_no_view_is_longer_than_a_chunk_on_qwen3s_head():
    student, teacher, V, size = tiny_qwen3(seed=1, vocabulary=151936, width=16), tiny_qwen3(seed=2, vocabulary=151936, width=16), 151936, 2

    class Largest(TorchDispatchMode):
        rows = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            for x in out if isinstance(out, (tuple, list)) else [out]:
                if torch.is_tensor(x) and x.ndim and x.shape[-1] == V and x.shape[:-1] != (16,):        # (16, V) is the head's own transpose
                    self.rows = max(self.rows, x.numel() // V)
            return out
    optimiser, clock = torch.optim.SGD(student.parameters(), lr=.1), plumbing.Clock(CPU)
    clock.start()
    with Largest() as largest:
        ar_opd.update(student, teacher, optimiser, ROWS, (RESPONSES, [False] * 4), settings(chunk_logits=size * V), clock,
                      plumbing.autocaster(CPU, torch.float32), V)
    assert 1 <= largest.rows <= size


PEAK = """
import sys, resource
sys.path[:0] = [{root!r}, {root!r} + "/tests"]
import torch; torch.set_num_threads(1)
from conftest import tiny_qwen3
from test_ar_opd import settings, CPU
import ar_opd, plumbing
V = 151936
student, teacher = tiny_qwen3(seed=1, vocabulary=V, width=16), tiny_qwen3(seed=2, vocabulary=V, width=16)
rows = [dict(plain=[5, 6], partial=[5, 6, 7], full=[5, 6, 7, 8])]
optimiser, clock = torch.optim.SGD(student.parameters(), lr=.1), plumbing.Clock(CPU)
def update(tokens):
    clock.start()
    ar_opd.update(student, teacher, optimiser, rows, ([[9] * tokens], [False]), settings(chunk_logits=8 * V), clock, plumbing.autocaster(CPU, torch.float32), V)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
update(8); first = update(24)
print(update(300) - first)
"""


def test_peak_memory_does_not_grow_with_the_length():
    # one view of 300 tokens over 151,936 columns is 174 MiB in float32, and there are two of them, a target and a student
    # (glibc keeps freed blocks of a few MiB for itself, which looks like growth; with a fixed threshold it gives them back)
    done = subprocess.run([sys.executable, "-c", PEAK.format(root=str(ROOT))], capture_output=True, text=True, timeout=300,
                          env={**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"})
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 30, done.stdout


# ------------------------------------------------------------------------------------------------ views


def test_the_first_part_is_cut_at_a_word_and_never_holds_the_answer():
    text = "a: 1 + 2 = 3. b: 3 + 4 = 7. c: 7 - 1 = 6. The answer is \\boxed{6}."
    assert ar_opd.first_part(text, .5) == "a: 1 + 2 = 3. b: 3 + 4 ="
    for rho in (.01, .3, .5, .7, .9, .99):
        part = ar_opd.first_part(text, rho)
        assert part and text.startswith(part) and "boxed" not in part and (len(part) == len(text) or text[len(part)] in " .")
    lines = "First 2 + 2 = 4.\nThen 4 + 4 = 8\n\n#### so \\boxed{8}"
    assert ar_opd.first_part(lines, .6).startswith("First 2 + 2 = 4.\nThen") and "boxed" not in ar_opd.first_part(lines, .95)
    assert ar_opd.first_part("\\boxed{5}", .5) == "" or "boxed" not in ar_opd.first_part("\\boxed{5}", .5)
    for i in range(50):                 # the toy's own solutions: what is cut is what the toy's documents cut
        row = world.make_row(__import__("random").Random(i), 4)
        assert ar_opd.first_part(row["solution"], .5) == world.cut(row["solution"], .5)


def test_views_differ_in_what_they_show_and_in_nothing_else():
    row = {"problem": "P", "prompt": "P", "answer": "6", "solution": "a: 1 + 2 = 3. b: 3 + 4 = 7. c: 7 - 1 = 6. The answer is \\boxed{6}."}
    seen = ar_opd.views(row, settings())
    assert seen["plain"] == "P" and seen["full"].replace(row["solution"], "Z") == seen["partial"].replace(ar_opd.first_part(row["solution"], .5), "Z")
    assert "6" not in seen["partial"] and "\\boxed{6}" in seen["full"]
    kept = ar_opd.views(row, settings(partial_answer="keep"))
    assert "The final answer is 6." in kept["partial"] and kept["full"] == seen["full"]


def test_privileged_prompts_are_never_cut_but_left_out_and_counted(toy, capsys):
    student, _, tokenizer = toy
    rows = [{**world.make_row(__import__("random").Random(i), 4)} for i in range(3)]
    for r in rows:
        r["prompt"] = r["problem"]
    rows[1]["solution"] = " ".join([rows[1]["solution"]] * 20)                              # longer than the context
    kept = plumbing.fitting_prompts(rows, lambda r: prompt_ids(tokenizer, ar_opd.views(r, settings())["full"]), student, 160)
    assert kept == [rows[0], rows[2]] and "1 of 3 prompts are too long" in capsys.readouterr().out
    for r in kept:
        text = tokenizer.decode(r["ids"])
        assert r["answer"] in text.split("boxed")[-1] and text.endswith("Now answer with your own response.<|end|><|assistant|>")


# ------------------------------------------------------------------------------------------------ shortcuts


PROBLEM = ("h: starts with 14 coins. k: finds 7 # 4 coins. m: loses 8 stones. r: doubles the coins. t: loses 5 coins. "
           "How many coins at the end? Answer briefly.")


def test_shortcuts_are_true_values_before_what_they_depend_on():
    fact = world.TABLE[7, 4]
    k, r, t = 14 + fact, 2 * (14 + fact), 2 * (14 + fact) - 5
    derived = f"k: 7 # 4 = {fact}, 14 + {fact} = {k}. r: {k} * 2 = {r}. t: {r} - 5 = {t}. The answer is \\boxed{{{t}}}."
    assert world.check(PROBLEM, derived).correct and not ar_opd.shortcut(PROBLEM, derived)
    early = f"k: 7 # 4 = {fact}. " + derived.replace(f"7 # 4 = {fact}, ", "")
    assert not ar_opd.shortcut(PROBLEM, early)                                              # a fact needs nothing before it
    assert ar_opd.shortcut(PROBLEM, f"The answer is \\boxed{{{t}}}.")                       # the answer with no derivation
    assert ar_opd.shortcut(PROBLEM, f"t: {r} - 5 = {t}. The answer is \\boxed{{{t}}}.")     # a value of the unseen half
    assert ar_opd.shortcut(PROBLEM, derived.replace(f"r: {k} * 2 = {r}. ", ""))             # one step left out, and the right operand known
    wrong = t + 1
    assert not ar_opd.shortcut(PROBLEM, f"The answer is \\boxed{{{wrong}}}.")               # a wrong one is a mistake, not a shortcut
    assert not ar_opd.shortcut(PROBLEM, f"t: 14 - 5 = 9. The answer is \\boxed{{{wrong}}}.")


def test_shortcuts_in_other_texts_by_words():
    assert ar_opd.shortcut("What is 2+2?", "As the example response says, we add and get \\boxed{4}.")
    assert ar_opd.shortcut("What is 2+2?", "\\boxed{4}")
    assert not ar_opd.shortcut("What is 2+2?", "First we take two and add another two, which makes four, so the answer is \\boxed{4}.")


def test_worked_examples():
    import doctest
    found = doctest.testmod(ar_opd)
    assert found.attempted >= 1 and found.failed == 0
