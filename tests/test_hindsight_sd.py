"""hindsight_sd.py: peers and contexts, coverage, the divergences, the update against a direct computation, the gate."""
import copy
import math
import random
from types import SimpleNamespace

import pytest
import torch
from conftest import ROOT, tiny_qwen3
from test_opd import CPU, PROMPTS, STUDENT, TEACHER, close
from torch.utils._python_dispatch import TorchDispatchMode

import ar_opd
import diagnostics
import grpo
import hindsight_sd
import plumbing
from evaluate import Completion, prompt_ids, verify
from toy import world

ARGS = SimpleNamespace(context="peer", peer="uniform", fallback="answer", train="all", divergence="forward", teacher="current", ema=.1, beta=0.0, beta_norm="token",
                       rl_weight=0.0, samples=2, max_new_tokens=12, seed=3, micro_tokens=10**6, chunk_logits=2**26)
RESPONSES = [[3, 4, 1], [20, 21, 22, 23, 24, 1], [1], [30, 31]]
DRAWN = [Completion(r, False, [-1.0] * len(r)) for r in RESPONSES]
ROWS = [{"ids": PROMPTS[0], "level": 3}, {"ids": PROMPTS[1], "level": 4}]            # two questions, two rollouts each
CONTEXTS = [PROMPTS[0] + [40, 41], PROMPTS[0] + [42], PROMPTS[1] + [43, 44, 45], PROMPTS[1] + [46]]
RIGHT, PEERS = [True, False, False, True], [None, 0, 3, None]
FIRST = tiny_qwen3(seed=9)


def settings(**changed):
    return SimpleNamespace(**{**vars(ARGS), **changed})


# ------------------------------------------------------------------------------------------------ peers and coverage


def test_coverage_follows_the_formula_in_simulation():
    generator, G, groups = random.Random(0), 8, 4000
    for p in (.05, .257, .6, .95):
        covered = 0
        for g in range(groups):
            right = [generator.random() < p for _ in range(G)]
            covered += sum(not right[i] and hindsight_sd.choose_peer(i, right, [(1, 0)] * G, "uniform", (g, i)) is not None for i in range(G))
        share, expected = covered / (groups * G), hindsight_sd.coverage(p, G)
        assert abs(share - expected) < 4 * math.sqrt(.25 / groups), (p, share, expected)       # rollouts of a group are dependent: count groups


def test_best_coverage_rises_with_the_group_against_the_papers_table():
    best = []
    for G in (2, 4, 8, 16, 32):
        grid = max((hindsight_sd.coverage(p / 1000, G), p / 1000) for p in range(1001))
        peak = 1 - G ** (-1 / (G - 1))
        assert grid[1] == pytest.approx(peak, abs=2e-3) and grid[0] == pytest.approx(hindsight_sd.coverage(peak, G), abs=1e-5)
        best.append(grid[0])
    assert best == sorted(best) and best[2] == pytest.approx(.650, abs=1e-3)
    assert hindsight_sd.coverage(0, 8) == hindsight_sd.coverage(1, 8) == 0


def test_a_rollout_is_never_its_own_peer_and_every_other_success_is_equally_likely():
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
    scores, key = [(5, -1.0)] * 3, (0, 0, 0, 0)
    assert [hindsight_sd.choose_peer(i, [False] * 3, scores, "uniform", key) for i in range(3)] == [None] * 3
    assert [hindsight_sd.choose_peer(i, [False, True, False], scores, "uniform", key) for i in range(3)] == [1, None, 1]      # the only success has no peer
    assert all(hindsight_sd.choose_peer(i, [True] * 3, scores, "uniform", key) not in (i, None) for i in range(3))


def test_peer_rules():
    right, scores = [True, True, True, False, True], [(9, -.1), (5, -.5), (7, -.05), (2, -.01), (6, -.9)]
    for rule, expected in (("shortest", 1), ("low_ppl", 2), ("high_ppl", 4)):
        assert hindsight_sd.choose_peer(3, right, scores, rule, (0,)) == expected
    assert hindsight_sd.choose_peer(1, right, scores, "shortest", (0,)) == 4                # itself would be shorter still


# ------------------------------------------------------------------------------------------------ contexts


@pytest.fixture(scope="module")
def group(toy):
    """Two toy questions with four rollouts each: (rows, drawn, texts); of the first, two are right, of the second none."""
    tokenizer, rows, drawn, texts = toy[2], [], [], []
    for q in range(2):
        rng = random.Random(q)
        problem = world.make_problem(rng, 3)
        rows.append({"problem": problem.text, "prompt": problem.text, "answer": str(problem.answer), "level": 3, "ids": prompt_ids(tokenizer, problem.text),
                     "solution": world.solve(problem, rng)})
        for j in range(4):
            text = world.solve(problem, rng, "student")
            if j >= 2 or q == 1:
                text = text.replace(f"\\boxed{{{problem.answer}}}", "\\boxed{98}")
            ids = tokenizer(text, add_special_tokens=False)["input_ids"] + [tokenizer.eos_token_id]
            drawn.append(Completion(ids, False, [-.5] * len(ids)))
            texts.append(text)
    assert len(set(texts)) == 8
    return rows, drawn, texts


def test_contexts_hold_the_peer_and_nothing_of_the_rollout_itself(toy, group):
    (rows, drawn, texts), tokenizer = group, toy[2]
    right, peers, prompts = hindsight_sd.build_contexts(rows, drawn, tokenizer, settings(samples=4), 1)
    assert right == [True, True, False, False] + [False] * 4
    assert peers[0] == 1 and peers[1] == 0 and all(p in (0, 1) for p in peers[2:4]) and peers[4:] == [None] * 4
    for i in range(8):
        said = tokenizer.decode(prompts[i])
        assert rows[i // 4]["problem"] in said and f"The final answer is {rows[i // 4]['answer']}." in said
        assert all((texts[j] in said) == (j == peers[i]) for j in range(8))                  # the peer, and no other rollout's text
        assert said.count("<|end|>") == 1 and said.endswith("<|end|><|assistant|>")          # re-framed: one user turn, one opened answer
    masked = hindsight_sd.build_contexts(rows, drawn, tokenizer, settings(samples=4, fallback="mask"), 1)[2]
    assert masked[4:] == [None] * 4 and masked[:4] == prompts[:4]


def test_other_contexts(group):
    row = group[0][0]
    assert hindsight_sd.context(row, "PEER", settings(context="none")) == row["prompt"]
    for peer in ("PEER", None):
        answer = hindsight_sd.context(row, peer, settings(context="answer"))
        assert "PEER" not in answer and row["answer"] in answer and hindsight_sd.context(row, None, settings()) == answer
        reference = hindsight_sd.context(row, peer, settings(context="reference"))
        assert "PEER" not in reference and row["solution"] in reference


def test_peers_are_drawn_anew_for_every_rollout_and_update(toy, group):
    (rows, drawn, _), tokenizer = group, toy[2]
    drawn = [drawn[0], drawn[1]] * 4                                                       # eight right rollouts of one question
    seen = {tuple(hindsight_sd.build_contexts(rows[:1], drawn, tokenizer, settings(samples=8), step)[1]) for step in range(6)}
    assert len(seen) == 6 and all(len(set(peers)) > 2 for peers in seen)
    again = hindsight_sd.build_contexts(rows[:1], drawn, tokenizer, settings(samples=8), 3)[1]
    assert again == hindsight_sd.build_contexts(rows[:1], drawn, tokenizer, settings(samples=8), 3)[1]


def test_a_cut_rollout_without_an_answer_fails_even_if_its_last_number_is_the_gold():
    assert verify("so far we have 29", "29", False) and not verify("so far we have 29", "29", True)
    assert verify("The answer is \\boxed{29}. And then", "29", True) and not verify("The answer is \\boxed{28}.", "29", False)


def test_questions_whose_longest_context_does_not_fit_are_left_out_and_counted(toy, group, capsys):
    student, _, tokenizer = toy
    rows = copy.deepcopy(group[0])
    rows[1]["prompt"] = " ".join([rows[1]["prompt"]] * 18)                        # the plain prompt fits, the prompt with a peer does not
    assert len(prompt_ids(tokenizer, rows[1]["prompt"])) + 160 < 1024
    args = settings(max_new_tokens=160)
    kept = plumbing.fitting_prompts(rows, lambda r: hindsight_sd.longest_context(r, tokenizer, args), student, 160)
    assert kept == rows[:1] and "1 of 2 prompts are too long" in capsys.readouterr().out
    peer = " 7" * 160                                                      # the bound holds for a peer of the greatest length
    real = prompt_ids(tokenizer, hindsight_sd.context(rows[0], peer, args))
    assert len(real) <= len(hindsight_sd.longest_context(rows[0], tokenizer, args)) + 1


# ------------------------------------------------------------------------------------------------ divergences and advantages


def test_divergences_against_brute_force():
    generator = torch.Generator().manual_seed(0)
    p, s = ((2 * torch.randn(5, 7, generator=generator)).log_softmax(-1) for _ in range(2))
    for kind in ("forward", "reverse", "jsd"):
        expected = []
        for a, b in zip(p.exp().tolist(), s.exp().tolist()):
            def kl(x, y):
                return sum(u * math.log(u / v) for u, v in zip(x, y))
            m = [(u + v) / 2 for u, v in zip(a, b)]
            expected.append({"forward": kl(a, b), "reverse": kl(b, a), "jsd": (kl(a, m) + kl(b, m)) / 2}[kind])
        assert hindsight_sd.divergence(p, s, kind).tolist() == pytest.approx(expected, abs=1e-5)
    assert torch.allclose(hindsight_sd.divergence(p, s, "forward"), ar_opd.forward_kl(p, s))
    assert not torch.allclose(hindsight_sd.divergence(p, s, "forward"), hindsight_sd.divergence(p, s, "reverse"), atol=1e-2)
    assert torch.allclose(hindsight_sd.divergence(p, s, "jsd"), hindsight_sd.divergence(s, p, "jsd"), atol=1e-6)
    far = torch.tensor([[1 - 2e-7, 1e-7, 1e-7]]).log(), torch.tensor([[1e-7, 1e-7, 1 - 2e-7]]).log()
    assert hindsight_sd.divergence(*far, "jsd").item() == pytest.approx(math.log(2), abs=1e-4)


def test_advantages_in_closed_form():
    for k in range(1, 8):
        p = k / 8
        got = hindsight_sd.advantages([True] * k + [False] * (8 - k), 8).tolist()
        assert got == pytest.approx([(1 - p) / math.sqrt(p * (1 - p))] * k + [-p / math.sqrt(p * (1 - p))] * (8 - k), abs=1e-5)
    assert hindsight_sd.advantages([True] * 4 + [False] * 4, 4).tolist() == [0.0] * 8                # two groups without differences


# ------------------------------------------------------------------------------------------------ the update


def gradient(student=STUDENT, teacher=TEACHER, first=FIRST, rows=ROWS, drawn=DRAWN, found=(RIGHT, PEERS, CONTEXTS), same=False, vocabulary=50, **changed):
    """(gradient, metrics, losses) of one update; same: the teacher is the very module that is trained."""
    student, caught = copy.deepcopy(student), {}
    teacher = student if same else copy.deepcopy(teacher)

    class Catch(torch.optim.SGD):
        def step(self):
            caught.update({n: p.grad.clone() for n, p in student.named_parameters()})
    old, clock = plumbing.torch.nn.utils.clip_grad_norm_, plumbing.Clock(CPU)
    clock.start()
    plumbing.torch.nn.utils.clip_grad_norm_ = lambda parameters, clip: old(parameters, 1e9)
    try:
        metrics, losses = hindsight_sd.update(student, teacher, first, Catch(student.parameters(), lr=1.0), rows, drawn, found, settings(**changed), clock,
                                              plumbing.autocaster(CPU, torch.float32), vocabulary)
    finally:
        plumbing.torch.nn.utils.clip_grad_norm_ = old
    return caught, metrics, losses


def predicted(model, prompt, response):
    return model(torch.tensor([prompt + response])).logits[0, len(prompt) - 1:-1, :50].log_softmax(-1)


@pytest.mark.parametrize("changed", [{}, dict(divergence="reverse"), dict(divergence="jsd"), dict(train="failures"), dict(beta=.3), dict(beta=.3, beta_norm="sequence"),
                                     dict(rl_weight=.5), dict(rl_weight=.25, beta=.1, divergence="jsd")])
def test_loss_and_gradient_against_a_direct_computation(changed):
    args, student = settings(**changed), copy.deepcopy(STUDENT)
    gain, means = hindsight_sd.advantages(RIGHT, 2), []
    for q in range(2):                                              # as (5) is written: a mean over questions of a mean over the group of a mean over tokens
        group = []
        for i in (2 * q, 2 * q + 1):
            ours = predicted(student, ROWS[q]["ids"], RESPONSES[i])
            with torch.no_grad():
                theirs, start = predicted(TEACHER, CONTEXTS[i], RESPONSES[i]), predicted(FIRST, ROWS[q]["ids"], RESPONSES[i])
            far = hindsight_sd.divergence(theirs, ours, args.divergence)
            drift = (ours.exp() * (ours - start)).sum(-1)
            own = ours[range(len(RESPONSES[i])), RESPONSES[i]]
            one = (1 - args.rl_weight) * far.mean() * (args.train == "all" or not RIGHT[i])
            one = one + args.beta * (drift.mean() if args.beta_norm == "token" else drift.sum()) - args.rl_weight * gain[i] * own.mean()
            group.append(one)
        means.append(sum(group) / 2)
    loss = sum(means) / 2
    loss.backward()
    caught, metrics, _ = gradient(**changed)
    assert metrics["loss"] == pytest.approx(loss.item(), abs=1e-5)
    assert close(caught, {n: p.grad for n, p in student.named_parameters()}, 2e-6)
    assert max(g.abs().max() for g in caught.values()) > 1e-3


def test_micro_batches_and_chunks_change_nothing():
    whole, metrics, losses = gradient(beta=.1, rl_weight=.3)
    for cut in (dict(micro_tokens=12), dict(chunk_logits=50), dict(micro_tokens=24, chunk_logits=150)):
        again, other, others = gradient(beta=.1, rl_weight=.3, **cut)
        assert close(whole, again) and all(abs(metrics[k] - other[k]) < 1e-5 for k in ("loss", "kl", "kl_start", "credit", "teacher_entropy"))
        assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(losses, others))


def test_the_same_weights_as_teacher_get_no_gradient_through_the_target():
    same, _, _ = gradient(same=True)
    frozen, _, _ = gradient(teacher=STUDENT)
    assert close(same, frozen) and max(g.abs().max() for g in same.values()) > 1e-3


def test_without_a_context_the_student_teaches_itself_nothing():
    found = RIGHT, PEERS, [ROWS[i // 2]["ids"] for i in range(4)]
    caught, metrics, _ = gradient(found=found, same=True)
    assert abs(metrics["loss"]) < 1e-6 and metrics["credit"] < 1e-6 and max(g.abs().max() for g in caught.values()) < 1e-5


def test_masked_rollouts_carry_no_loss_and_the_others_keep_their_weight():
    # mask everything but rollout 1: the gradient is the share of rollout 1 in the whole, not more
    only = gradient(found=(RIGHT, PEERS, [None, CONTEXTS[1], None, None]))[0]
    alone = gradient(found=([True, False, True, True], PEERS, CONTEXTS), train="failures")[0]
    assert close(only, alone) and max(g.abs().max() for g in only.values()) > 1e-4
    parts = [gradient(found=(RIGHT, PEERS, [CONTEXTS[j] if i == j else None for j in range(4)]))[0] for i in range(4)]
    total = {n: sum(p[n] for p in parts) for n in only}
    assert close(total, gradient()[0])
    none, metrics, _ = gradient(found=(RIGHT, PEERS, [None] * 4))
    assert metrics["loss"] == 0 and max(g.abs().max() for g in none.values()) == 0


def test_the_hybrid_is_half_distillation_and_half_grpo():
    # against grpo.py itself, one step on the same rollouts
    both = gradient(rl_weight=.5)[0]
    student, caught, clock = copy.deepcopy(STUDENT), {}, plumbing.Clock(CPU)

    class Catch(torch.optim.SGD):
        def step(self):
            caught.update({n: p.grad.clone() for n, p in student.named_parameters()})
    old = plumbing.torch.nn.utils.clip_grad_norm_
    clock.start()
    plumbing.torch.nn.utils.clip_grad_norm_ = lambda parameters, clip: old(parameters, 1e9)
    try:
        args = SimpleNamespace(samples=2, overlong="none", advantage="std", norm="sequence", reuse=1, clip_low=.2, clip_high=.2, beta=0.0, max_new_tokens=12,
                               micro_tokens=10**6, chunk_logits=2**26)
        grpo.update(student, None, Catch(student.parameters(), lr=1.0), ROWS, DRAWN, RIGHT, args, clock, plumbing.autocaster(CPU, torch.float32), 50)
    finally:
        plumbing.torch.nn.utils.clip_grad_norm_ = old
    distilled = gradient()[0]
    assert close(both, {n: .5 * caught[n] + .5 * distilled[n] for n in caught}, 2e-6)


def test_moving_average_and_frozen_teacher():
    teacher, student = tiny_qwen3(seed=1), tiny_qwen3(seed=2)
    optimiser, clock = torch.optim.SGD(student.parameters(), lr=.1), plumbing.Clock(CPU)
    clock.start()
    for kind in ("frozen", "ema"):
        before = {n: p.clone() for n, p in teacher.named_parameters()}
        hindsight_sd.update(student, teacher, None, optimiser, ROWS, DRAWN, (RIGHT, PEERS, CONTEXTS), settings(teacher=kind), clock,
                            plumbing.autocaster(CPU, torch.float32), 50)
        assert all(torch.equal(p, before[n]) for n, p in teacher.named_parameters()) == (kind == "frozen")
    assert close(dict(teacher.named_parameters()), {n: .9 * before[n] + .1 * p for n, p in student.named_parameters()})


def test_no_distribution_is_longer_than_a_chunk():
    student, V, size = tiny_qwen3(seed=1, vocabulary=5000, width=16), 5000, 2

    class Largest(TorchDispatchMode):
        rows = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            for x in out if isinstance(out, (tuple, list)) else [out]:
                if torch.is_tensor(x) and x.ndim and x.shape[-1] == V and x.shape[:-1] != (16,):        # (16, V) is the head's own transpose
                    self.rows = max(self.rows, x.numel() // V)
            return out
    with Largest() as largest:
        gradient(student=student, teacher=tiny_qwen3(seed=2, vocabulary=V, width=16), first=tiny_qwen3(seed=3, vocabulary=V, width=16), chunk_logits=size * V,
                 vocabulary=V, beta=.1, rl_weight=.2)
    assert 1 <= largest.rows <= size


def test_group_statistics():
    rows = [{"level": 3}, {"level": 4}, {"level": 4}]
    right = [True, False, False] + [False] * 3 + [True] * 3
    found = hindsight_sd.group_statistics(rows, right, [None, 0, 0, None, None, None, 7, 8, 6], 3)
    assert found == {"reward": pytest.approx(4 / 9), "signal": pytest.approx(1 / 3), "coverage": pytest.approx(2 / 9),
                     "coverage_by_level": {"3": pytest.approx(2 / 3), "4": 0.0}, "groups": [1, 1, 0, 1]}


# ------------------------------------------------------------------------------------------------ the gate


def test_first_mistakes_name_the_token_that_would_be_right(toy):
    tokenizer = toy[2]
    problem = ("h: starts with 14 coins. k: finds 7 # 4 coins. m: loses 8 stones. r: doubles the coins. t: loses 5 coins. How many coins at the end? Answer briefly.")
    fact = world.TABLE[7, 4]
    wrong = f"k: 7 # 4 = {fact}, 14 + {fact} = {15 + fact}."
    ids = tokenizer(wrong, add_special_tokens=False)["input_ids"]
    [(k, at, right)] = diagnostics.first_mistakes(tokenizer, [{"problem": problem}], [ids])
    good = tokenizer(wrong.replace(str(15 + fact), str(14 + fact)), add_special_tokens=False)["input_ids"]
    assert k == 0 and ids[:at] == good[:at] and right == good[at] != ids[at]
    assert diagnostics.first_mistakes(tokenizer, [{"problem": problem}, {"problem": "What is 2 + 2?"}], [good, ids]) == []       # none wrong; not the toy's
    p = diagnostics.mass(toy[1], [(prompt_ids(tokenizer, problem) + good[:at], good[at])])[0]
    assert p > .9                                                         # the teacher knows


def test_gate_of_the_shipped_reader_is_open_and_a_closed_one_is_said(toy, capsys):
    reader, tokenizer = plumbing.load_model(str(ROOT / "toy/reader"), CPU, torch.float32), toy[2]
    rows = [world.make_row(random.Random(i), 3) for i in range(40)]
    for r in rows:
        r.update(prompt=r["problem"], ids=prompt_ids(tokenizer, r["problem"]))
    shown, masses = hindsight_sd.gate(reader, tokenizer, rows, settings(samples=6, max_new_tokens=160), plumbing.no_autocast)
    assert list(shown) == ["nothing", "answer", "peer", "peer and answer", "wrong peer"] and shown["nothing"]["n"] >= 8
    assert shown["peer and answer"]["accuracy"] > shown["nothing"]["accuracy"] + .2
    assert len({len(v) for v in masses.values()}) == 1 and len(masses["nothing"]) > 10
    mean = {k: sum(v) / len(v) for k, v in masses.items()}
    assert mean["peer and answer"] > mean["nothing"] + .1 > mean["wrong peer"]
    hindsight_sd.say_gate(shown, masses)
    assert "warning" not in capsys.readouterr().out
    closed = {k: {**shown["nothing"]} for k in shown}
    hindsight_sd.say_gate(closed, {})
    said = capsys.readouterr().out
    assert "hardly better with a successful peer" in said and "another question's peer helps as much" in said
    hindsight_sd.say_gate({}, {})
    assert "hardly be a peer" in capsys.readouterr().out


def test_worked_examples():
    import doctest
    found = doctest.testmod(hindsight_sd)
    assert found.attempted >= 1 and found.failed == 0
