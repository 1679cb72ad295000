"""diagnostics.py and the comparison of arms: against brute force and numbers made by hand."""
import json
import math
import sys

import pytest
import torch
from conftest import ROOT, tiny_qwen3
from test_ar_opd import RESPONSES, ROWS, predicted

import diagnostics

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
