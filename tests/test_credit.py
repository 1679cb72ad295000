"""common/credit.py: where the credit of hindsight self-distillation falls, against direct
computations and numbers made by hand."""
import copy
import math
import random

import pytest
import torch

from common import credit
from common.data import privileged_prompt, prompt_ids
from common.sampler import Completion
from toy import world


def test_failures_are_failed_rollouts_that_leave_a_peer():
    ids = [1, 2, 3, 9], [1, 2, 4, 5, 9], [1, 2, 3, 9], [7, 9]
    drawn = [Completion(x, False, []) for x in ids]
    assert credit.leaves([1, 2, 3], [1, 5, 3]) == 1
    assert credit.leaves([1, 2], [1, 2, 3]) is None
    # rollout 2 wrote the same text as its peer
    failed = credit.failures(drawn, [True, False, False, False], [None, 0, 0, 0], 4)
    assert failed == [(0, ids[1], ids[0], 2), (0, ids[3], ids[0], 0)]
    assert credit.failures(drawn, [False] * 4, [None] * 4, 2) == []


def test_a_copier_expects_the_peer_until_it_loses_the_place_and_finds_it_again():
    peer = [1, 2, 3, 4, 5, 6, 7, 8]
    assert credit.expected([1, 2, 3, 4], peer) == [1, 2, 3, 4]
    # 4 5 6 also stands in the peer, so the copier finds the place again
    found_again = [1, 2, 3, None, None, None, 7]
    assert credit.expected([1, 2, 9, 4, 5, 6, 0], peer) == found_again
    assert credit.expected([9, 9], peer) == [1, None] and credit.expected([5], []) == [None]
    # after the end of the peer there is nothing to copy
    assert credit.expected([1, 2, 3, 4, 5], [1, 2, 3])[3:] == [None, None]


def test_copying_teacher_in_closed_form():
    student_logp = torch.tensor([.97, .97, .5, .97]).log()
    credits = credit.copying_teacher(student_logp, [1, 2, 9, 4], [1, 2, 3, 4])
    floor = math.log(.05 * .97 + .95) - math.log(.97)
    assert credits.tolist() == pytest.approx([floor, floor, math.log(.05), 0.0], abs=1e-5)
    # small everywhere except where the rollout leaves the peer: the paper's shape, although this
    # teacher understands nothing
    assert floor < .04


def test_profile_and_shares_by_hand():
    found = [
        {"tau": 2, "credit": {"peer": torch.tensor([.1, -.1, -2.0, .5])}},
        {"tau": 0, "credit": {"peer": torch.tensor([1.0, .2])}},
    ]
    d, mean, count = credit.profile(found, "peer", before=2, after=2)
    assert d == [-2, -1, 0, 1, 2] and count == [1, 1, 2, 2, 0]
    assert mean[:4] == pytest.approx([.1, .1, 1.5, .35]) and math.isnan(mean[4])
    shares = [credit.share_within(found, "peer", width, 2, 2) for width in (0, 1, 2)]
    assert shares == pytest.approx([3.0 / 3.9, 3.8 / 3.9, 1])


def test_credits_against_a_direct_computation(toy):
    student, teacher, tokenizer = toy

    def logp_after(model, user, ids):
        """Log-probabilities [N, V] at the positions that predict `ids`."""
        prompt = prompt_ids(tokenizer, user)
        with torch.no_grad():
            logits = model(torch.tensor([prompt + ids])).logits[0]  # [L, V]
        return logits[len(prompt) - 1:-1, :len(tokenizer)].log_softmax(-1)

    rows, failed = [], []
    for q in range(3):
        rng = random.Random(q)
        problem = world.make_problem(rng, 3)
        texts = [world.solve(problem, rng, voice) for voice in ("teacher", "student")]
        encoded = [tokenizer(t, add_special_tokens=False)["input_ids"] for t in texts]
        peer, ids = (x + [tokenizer.eos_token_id] for x in encoded)
        rows.append({
            "problem": problem.text, "prompt": problem.text, "answer": str(problem.answer),
        })
        failed.append((q, ids, peer, credit.leaves(ids, peer)))
    found = credit.credits(student, teacher, tokenizer, rows, failed, micro_tokens=300)
    for (q, ids, peer, tau), f in zip(failed, found):
        row, peer_text = rows[q], tokenizer.decode(peer[:-1])
        users = {
            "peer": privileged_prompt(row["problem"], peer_text, row["answer"]),
            "answer": privileged_prompt(row["problem"], answer=row["answer"]),
        }
        logp = logp_after(student, row["problem"], ids)
        plain = logp[range(len(ids)), ids]
        assert torch.allclose(f["student"], plain, atol=1e-4)
        assert f["there"]["student"] == pytest.approx(logp[tau, peer[tau]].exp().item(), abs=1e-4)
        for name, user in users.items():
            logp = logp_after(teacher, user, ids)
            expected = logp[range(len(ids)), ids] - plain
            assert torch.allclose(f["credit"][name], expected, atol=1e-4)
            there = logp[tau, peer[tau]].exp().item()
            assert f["there"][name] == pytest.approx(there, abs=1e-4)
        assert set(f["credit"]) == {"peer", "answer", "copying"} and f["tau"] == tau
        assert all(len(c) == len(ids) for c in f["credit"].values())


def test_continuations_show_which_token_is_to_blame(toy):
    _, teacher, tokenizer = toy
    problem = (
        "a: starts with 14 coins. d: finds 5 coins. f: doubles the coins. k: loses 2 coins. "
        "How many coins at the end? Answer briefly."
    )
    good = "d: 14 + 5 = 19. f: 19 * 2 = 38. k: 38 - 2 = 36. The answer is \\boxed{36}."
    wrong = good.replace("19", "18").replace("38", "36").replace("= 36. The", "= 34. The")
    wrong, words = wrong.replace("{36}", "{34}"), good.replace("14 + 5 =", "14 + 5 makes")

    def encoded(text):
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids + [tokenizer.eos_token_id]

    peer = encoded(good)
    failed = [(0, ids, peer, credit.leaves(ids, peer)) for ids in map(encoded, (wrong, words))]
    rows = [{"prompt": problem, "answer": "36"}]
    own_token, peers_token = credit.continuations(teacher, tokenizer, rows, failed, n=16)
    assert peers_token[0] > .7 > .3 > own_token[0]
    assert abs(own_token[1] - peers_token[1]) < .3  # another word is no mistake


def test_continuations_inside_opened_thinking_have_no_answer(toy):
    """The template opens the thinking, and these texts never close it: see `opened`."""
    _, teacher, tokenizer = toy
    tokenizer = copy.deepcopy(tokenizer)
    problem = "a: starts with 14 coins. d: finds 5 coins. How many coins at the end? Answer briefly."
    ids = tokenizer("d: 14 + 5 = 19.", add_special_tokens=False)["input_ids"]
    failed, rows = [(0, ids, ids, 5)], [{"prompt": problem, "answer": "19"}]
    assert sum(sum(x) for x in credit.continuations(teacher, tokenizer, rows, failed, n=4)) > 0
    decode, asked = tokenizer.decode, prompt_ids(tokenizer, "1 + 1")
    tokenizer.decode = lambda ids, **more: "<think>" if ids == asked else decode(ids, **more)
    assert credit.continuations(teacher, tokenizer, rows, failed, n=4) == ([0.0], [0.0])
