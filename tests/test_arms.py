"""benchmarks/arms.py: the comparison of arms over seeds, against numbers made by hand."""
import json
import sys

import pytest
from conftest import ROOT

sys.path.insert(0, str(ROOT / "benchmarks"))
import arms  # noqa: E402


def test_arms_are_paired_by_seed_and_compared_at_equal_time(tmp_path):
    # Two arms with three seeds. An update of the second arm takes twice as long.
    for arm, finals in (("A", (.50, .60, .40)), ("B", (.56, .65, .47))):
        for seed, accuracy in enumerate(finals):
            run = tmp_path / f"{arm}-{seed}"
            for name in ("test", "heldout"):
                (run / name).mkdir(parents=True)
                summary = json.dumps({"accuracy": accuracy, "interval": [0, 1]})
                (run / name / "summary.json").write_text(summary)
            rows = [
                {"step": 0, "eval": {"accuracy": .2}}, {"step": 3, "loss": 1.},
                {"step": 10, "eval": {"accuracy": accuracy}},
            ]
            (run / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    costs, both, seeds = {"A": 1., "B": 2.}, {"A": ["a"], "B": ["b"]}, [0, 1, 2]
    assert arms.curve(tmp_path / "B-0", 2.) == [(0, 0, .2), (10, 20, .56)]
    accuracy = arms.final(tmp_path, "test")
    differences = arms.differences(tmp_path, ["A", "B"], seeds, "A", accuracy)
    assert differences == {"B": pytest.approx([.06, .05, .07])}
    # +6 points on average; the standard error is 1 / sqrt(3), and t(2) = 4.303. At the time of
    # A's 10 updates B is half-way up from 20 %.
    text = arms.table(tmp_path, both, seeds, "A", costs)
    assert "| B | 56.0 [" in text and "+6.0 [+3.5, +8.5]" in text and "-12.0 [" in text
    points = [(0, 0, .2), (10, 20, .56)]
    assert arms.at(points, 10, 1) == pytest.approx(.38) and arms.at(points, 99, 1) == .56
    picture = tmp_path / "x.png"
    arms.picture(tmp_path, both, seeds, "A", picture, "title", costs)
    assert picture.read_bytes()[:4] == b"\x89PNG"
