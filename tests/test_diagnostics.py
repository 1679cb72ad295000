"""diagnostics.py and the comparison of arms: against brute force and numbers made by hand."""
import json
import math
import sys

import pytest
import torch
from conftest import ROOT, tiny_qwen3
from test_ar_opd import RESPONSES, ROWS, predicted

import diagnostics
from evaluate import Completion, privileged_prompt, prompt_ids
from toy import world

sys.path.insert(0, str(ROOT / "benchmarks"))
import arms


def test_gaps_against_brute_force():
    generator = torch.Generator().manual_seed(0)
    view, student = ((2 * torch.randn(5, 30, generator=generator)).log_softmax(-1) for _ in range(2))
    found = diagnostics.gaps(view, student, top=4, tau=.02)
    for n in range(5):
        q, p = view[n].exp().tolist(), student[n].exp().tolist()
        best_q, best_p = (sorted(range(30), key=lambda v: -x[v])[:4] for x in (q, p))
        expected = [1 - len(set(best_q) & set(best_p)) / 4, sum(q[v] for v in best_q if v not in best_p), sum(q[v] for v in range(30) if p[v] < .02),
                    sum(a * math.log(a / b) for a, b in zip(q, p))]
        assert found[n].tolist() == pytest.approx(expected, abs=1e-5)
    same = diagnostics.gaps(student, student, tau=0.)
    assert same.abs().max() < 1e-6


def test_scores_are_those_of_full_forwards_whatever_the_batch():
    student, teacher = tiny_qwen3(seed=1), tiny_qwen3(seed=2)
    for cut in ({}, dict(micro_tokens=12, chunk_logits=100)):
        scored = diagnostics.score_views(student, teacher, ROWS, RESPONSES, 50, **cut)
        for row, response, s in zip(ROWS, RESPONSES, scored):
            plain = predicted(student, row["plain"], response)
            assert torch.allclose(s["own"]["student"], plain[range(len(response)), response], atol=1e-4)
            for name in ("partial", "full"):
                view = predicted(teacher, row[name], response)
                assert torch.allclose(s["own"][name], view[range(len(response)), response], atol=1e-4)
                assert torch.allclose(s["gaps"][name], diagnostics.gaps(view, plain), atol=1e-3)


def made(values):
    """A scored rollout whose gaps are all `values` [N]."""
    return {"gaps": {"full": torch.tensor(values)[:, None].repeat(1, 4)}, "own": {}}


def test_fifths_and_lengths():
    fifths = diagnostics.by_fifths([made([0., 0., 1., 1., 2., 2., 3., 3., 4., 4.]), made([0., 1., 2., 3., 4.])], "full")
    assert fifths[:, 0].tolist() == [0, 1, 2, 3, 4]
    groups = diagnostics.by_length([made([1.]), made([5., 5., 5.]), made([2.])], [30, 10, 20], "full", groups=3)
    assert [(a, b, m[0].item()) for a, b, m in groups] == [(10, 10, 5.), (20, 20, 2.), (30, 30, 1.)]


def test_advantages_add_up_and_auc_is_the_probability_of_the_right_order():
    scored = [{"own": {"student": torch.tensor([-1., -2.]), "partial": torch.tensor([-.5, -1.]), "full": torch.tensor([-.1, -.2])}}]
    found = diagnostics.advantages(scored)
    assert found["total"][0] == pytest.approx(2.7) and found["partial"][0] == pytest.approx(1.5) and found["marginal"][0] == pytest.approx(1.2)
    assert diagnostics.auc([1, 2, 3, 4], [False, False, True, True]) == 1 and diagnostics.auc([1, 1], [True, False]) == .5
    assert math.isnan(diagnostics.auc([1, 2], [True, True]))
    generator = torch.Generator().manual_seed(0)
    scores, labels = torch.randint(0, 6, (60,), generator=generator).tolist(), (torch.rand(60, generator=generator) < .4).tolist()
    pairs = [(a > b) + .5 * (a == b) for a, x in zip(scores, labels) if x for b, y in zip(scores, labels) if not y]
    assert diagnostics.auc(scores, labels) == pytest.approx(sum(pairs) / len(pairs))


def test_arms_are_paired_by_seed_and_compared_at_equal_time(tmp_path):
    # two arms, three seeds; the second arm's update takes twice as long
    for arm, finals in (("A", (.50, .60, .40)), ("B", (.56, .65, .47))):
        for seed, accuracy in enumerate(finals):
            run = tmp_path / f"{arm}-{seed}"
            for name in ("test", "heldout"):
                (run / name).mkdir(parents=True)
                (run / name / "summary.json").write_text(json.dumps({"accuracy": accuracy, "interval": [0, 1]}))
            rows = [{"step": 0, "eval": {"accuracy": .2}}, {"step": 3, "loss": 1.}, {"step": 10, "eval": {"accuracy": accuracy}}]
            (run / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    costs = {"A": 1., "B": 2.}
    assert arms.curve(tmp_path / "B-0", 2.) == [(0, 0, .2), (10, 20, .56)]
    assert arms.differences(tmp_path, ["A", "B"], [0, 1, 2], "A", arms.final(tmp_path, "test")) == {"B": pytest.approx([.06, .05, .07])}
    text = arms.table(tmp_path, {"A": ["a"], "B": ["b"]}, [0, 1, 2], "A", costs)
    # +6 points on average; standard error 1 / sqrt(3), t(2) = 4.303. At the time of A's 10 updates B is half-way up from 20 %
    assert "| B | 56.0 [" in text and "+6.0 [+3.5, +8.5]" in text and "-12.0 [" in text
    assert arms.at([(0, 0, .2), (10, 20, .56)], 10, 1) == pytest.approx(.38) and arms.at([(0, 0, .2), (10, 20, .56)], 99, 1) == .56
    arms.picture(tmp_path, {"A": ["a"], "B": ["b"]}, [0, 1, 2], "A", tmp_path / "x.png", "title", costs)
    assert (tmp_path / "x.png").read_bytes()[:4] == b"\x89PNG"


# ------------------------------------------------------------------------------------------------ where credit falls


def test_failures_are_failing_rollouts_that_leave_a_peer():
    drawn = [Completion(ids, False, []) for ids in ([1, 2, 3, 9], [1, 2, 4, 5, 9], [1, 2, 3, 9], [7, 9])]
    assert diagnostics.leaves([1, 2, 3], [1, 5, 3]) == 1 and diagnostics.leaves([1, 2], [1, 2, 3]) is None
    found = diagnostics.failures(drawn, [True, False, False, False], [None, 0, 0, 0], 4)
    assert found == [(0, [1, 2, 4, 5, 9], [1, 2, 3, 9], 2), (0, [7, 9], [1, 2, 3, 9], 0)]          # the third wrote the peer's own text
    assert diagnostics.failures(drawn, [False] * 4, [None] * 4, 2) == []


def test_a_copier_expects_the_peer_until_it_loses_the_place_and_finds_it_again():
    peer = [1, 2, 3, 4, 5, 6, 7, 8]
    assert diagnostics.expected([1, 2, 3, 4], peer) == [1, 2, 3, 4]
    assert diagnostics.expected([1, 2, 9, 4, 5, 6, 0], peer) == [1, 2, 3, None, None, None, 7]     # 4 5 6 stands in the peer: the place is found
    assert diagnostics.expected([9, 9], peer) == [1, None] and diagnostics.expected([5], []) == [None]
    assert diagnostics.expected([1, 2, 3, 4, 5], [1, 2, 3])[3:] == [None, None]                     # behind its end there is nothing to copy


def test_copying_teacher_in_closed_form():
    own = torch.tensor([.97, .97, .5, .97]).log()
    credit = diagnostics.copying_teacher(own, [1, 2, 9, 4], [1, 2, 3, 4])
    floor = math.log(.05 * .97 + .95) - math.log(.97)
    assert credit.tolist() == pytest.approx([floor, floor, math.log(.05), 0.0], abs=1e-5) and floor < .04      # the paper's shape, and no understanding


def test_profile_and_shares_by_hand():
    found = [{"tau": 2, "credit": {"peer": torch.tensor([.1, -.1, -2.0, .5])}}, {"tau": 0, "credit": {"peer": torch.tensor([1.0, .2])}}]
    d, mean, count = diagnostics.profile(found, "peer", before=2, after=2)
    assert d == [-2, -1, 0, 1, 2] and count == [1, 1, 2, 2, 0]
    assert mean[:4] == pytest.approx([.1, .1, 1.5, .35]) and math.isnan(mean[4])
    assert diagnostics.share_within(found, "peer", 0, 2, 2) == pytest.approx(3.0 / 3.9)
    assert diagnostics.share_within(found, "peer", 1, 2, 2) == pytest.approx(3.8 / 3.9) and diagnostics.share_within(found, "peer", 2, 2, 2) == pytest.approx(1)


def test_credits_against_a_direct_computation(toy):
    student, teacher, tokenizer = toy
    import random
    rows, failed = [], []
    for q in range(3):
        rng = random.Random(q)
        problem = world.make_problem(rng, 3)
        peer, own = (tokenizer(world.solve(problem, rng, v), add_special_tokens=False)["input_ids"] + [tokenizer.eos_token_id] for v in ("teacher", "student"))
        rows.append({"problem": problem.text, "prompt": problem.text, "answer": str(problem.answer)})
        failed.append((q, own, peer, diagnostics.leaves(own, peer)))
    found = diagnostics.credits(student, teacher, tokenizer, rows, failed, micro_tokens=300)
    for (q, own, peer, tau), f in zip(failed, found):
        shown = privileged_prompt(rows[q]["problem"], tokenizer.decode(peer[:-1]), rows[q]["answer"])
        for name, model, user in (("student", student, rows[q]["problem"]), ("peer", teacher, shown)):
            prompt = prompt_ids(tokenizer, user)
            with torch.no_grad():
                logp = model(torch.tensor([prompt + own])).logits[0, len(prompt) - 1:-1, :len(tokenizer)].log_softmax(-1)
            direct = logp[range(len(own)), own]
            if name == "student":
                plain = direct
                assert torch.allclose(f["student"], direct, atol=1e-4)
            else:
                assert torch.allclose(f["credit"]["peer"], direct - plain, atol=1e-4)
            assert f["there"][name] == pytest.approx(logp[tau, peer[tau]].exp().item(), abs=1e-4)
        assert set(f["credit"]) == {"peer", "answer", "copying"} and all(len(c) == len(own) for c in f["credit"].values())


def test_continuations_see_which_token_is_to_blame(toy):
    _, teacher, tokenizer = toy
    problem = "a: starts with 14 coins. d: finds 5 coins. f: doubles the coins. k: loses 2 coins. How many coins at the end? Answer briefly."
    good = "d: 14 + 5 = 19. f: 19 * 2 = 38. k: 38 - 2 = 36. The answer is \\boxed{36}."
    wrong, words = good.replace("19", "18").replace("38", "36").replace("= 36. The", "= 34. The").replace("{36}", "{34}"), good.replace("14 + 5 =", "14 + 5 makes")
    ids = {k: tokenizer(t, add_special_tokens=False)["input_ids"] + [tokenizer.eos_token_id] for k, t in (("good", good), ("wrong", wrong), ("words", words))}
    failed = [(0, ids[k], ids["good"], diagnostics.leaves(ids[k], ids["good"])) for k in ("wrong", "words")]
    own, peers = diagnostics.continuations(teacher, tokenizer, [{"prompt": problem, "answer": "36"}], failed, n=16)
    assert peers[0] > .7 > .3 > own[0] and abs(own[1] - peers[1]) < .3                              # another word is no mistake
