"""Every benchmark's loader on local rows with the data set's real columns; and the statistics against closed forms and simulation."""
import math

import pytest
import torch
from conftest import ROOT, run_script

import evaluate
from evaluate import BENCHMARKS, grade, load_benchmark

GSM = "Natalia sold 48/2 = <<48/2=24>>24 clips in May.\nNatalia sold 48+24 = <<48+24=72>>72 clips altogether in April and May.\n#### 72"
# hub id, configuration, split, one row with all its columns, the answer that must be accepted, one that must not
ROWS = {
    "gsm8k": ("openai/gsm8k", "main", ("train", "test"), {"question": "How many clips?", "answer": GSM}, "72", "24"),
    "math500": ("HuggingFaceH4/MATH-500", None, ("test",), {"problem": "Convert the point $(0,3)$.", "solution": "We have \\boxed{(3,\\pi/2)}.",
                "answer": "\\left( 3, \\frac{\\pi}{2} \\right)", "subject": "Precalculus", "level": 2, "unique_id": "test/precalculus/807.json"}, "(3,\\frac{\\pi}{2})", "(\\frac{\\pi}{2},3)"),
    "aime24": ("HuggingFaceH4/aime_2024", None, ("train",), {"id": 60, "problem": "Every morning ...", "solution": "...", "answer": "025", "url": "https://example.org", "year": "2024"},
               "25", "52"),
    "aime25": ("math-ai/aime25", None, ("test",), {"problem": "Find the sum of ...", "answer": "70", "id": "0"}, "070", "7"),
    "hmmt25": ("MathArena/hmmt_feb_2025", None, ("train",), {"problem_idx": 1, "problem": "Compute ...", "answer": "\\frac{1}{576}", "problem_type": ["Number Theory"]}, "1/576", "576"),
    "amc23": ("math-ai/amc23", None, ("test",), {"id": 0, "answer": "27.0", "question": "Cities A and B ...", "url": "https://example.org"}, "27", "2.7"),
    "minerva": ("math-ai/minervamath", None, ("test",), {"question": "Each of the two Magellan telescopes ...", "answer": "1e11"}, "10^{11}", "1.1e11"),
    "olympiad": ("Hothan/OlympiadBench", "OE_TO_maths_en_COMP", ("train",), {
        "id": 1606, "question": "Find all ...", "solution": ["..."], "final_answer": ["$2,3$", "$\\frac{1}{2}$"], "context": None, "modality": "Text-only", "difficulty": "Competition",
        "is_multiple_answer": True, "unit": None, "answer_type": "Numerical", "error": None, "question_type": "Open-ended", "subfield": "Algebra", "subject": "Math",
        "language": "English"}, "3, 0.5, 2", "2, 3"),
}


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    """A folder in which the data sets lie under their hub names: `datasets` takes a folder of that name for the data set."""
    import datasets
    folder = tmp_path_factory.mktemp("hub")
    for source, configuration, splits, row, *_ in ROWS.values():
        where = folder / source
        where.mkdir(parents=True)
        files = "\n".join(f"  - split: {s}\n    path: {s}.parquet" for s in splits)
        (where / "README.md").write_text(f"---\nconfigs:\n- config_name: {configuration or 'default'}\n  data_files:\n{files}\n---\n")
        for s in splits:
            datasets.Dataset.from_list([row, row]).to_parquet(where / f"{s}.parquet")
    return folder


@pytest.mark.parametrize("name", ROWS)
def test_loader_on_rows_with_the_real_columns(name, hub, monkeypatch):
    monkeypatch.chdir(hub)
    *_, row, right, wrong = ROWS[name]
    rows = load_benchmark(name, "test")
    assert len(rows) == 2 and len(load_benchmark(name, "test", 1)) == 1
    problem = row.get("problem", row.get("question"))
    assert rows[0]["problem"] == problem and rows[0]["prompt"] == f"{problem}\nPlease reason step by step, and put your final answer within \\boxed{{}}."
    assert isinstance(rows[0]["answer"], str)
    assert grade(f"so \\boxed{{{right}}}", rows[0]["answer"]) and not grade(f"so \\boxed{{{wrong}}}", rows[0]["answer"])
    if name == "gsm8k":             # the training split carries a worked solution without the calculator's marks
        solution = load_benchmark(name, "train")[0]["solution"]
        assert "<<" not in solution and "####" not in solution and solution.endswith("The answer is \\boxed{72}.") and "48+24 = 72" in solution
    else:
        with pytest.raises(evaluate.Mistake, match="no training problems"):
            load_benchmark(name, "train")


def test_every_benchmark_is_covered_here():
    assert set(ROWS) | {"toy", "toy-heldout"} == set(BENCHMARKS)
    for name, (source, configuration, splits, *_) in ROWS.items():
        assert BENCHMARKS[name][:2] == (source, configuration) and {s for s in BENCHMARKS[name][2:4] if s} == set(splits)


@pytest.mark.parametrize("columns, missing", [({"prompt": "a", "answer": "1"}, "problem"), ({"Problem": "a", "Answer": "1"}, "problem and the answer")])
def test_a_data_set_whose_columns_changed_is_named(columns, missing, tmp_path, monkeypatch):
    import datasets
    (tmp_path / "math-ai/aime25").mkdir(parents=True)
    datasets.Dataset.from_list([columns]).to_parquet(tmp_path / "math-ai/aime25/test.parquet")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(evaluate.Mistake, match=f"'math-ai/aime25' has no column for the {missing}; its columns are"):
        load_benchmark("aime25", "test")


# ---- statistics


def test_pass_at_k_is_the_probability_that_a_draw_of_k_holds_a_right_one():
    from itertools import combinations
    for n in range(1, 8):
        for c in range(n + 1):
            for k in range(1, n + 1):
                draws = list(combinations([1] * c + [0] * (n - c), k))
                assert evaluate.pass_at_k(n, c, k) == pytest.approx(sum(map(any, draws)) / len(draws), abs=1e-12)
    assert evaluate.pass_at_k(1024, 1, 512) == pytest.approx(.5) and evaluate.pass_at_k(4096, 4000, 64) == pytest.approx(1)        # without overflow


@pytest.mark.parametrize("p, total", [(.3, 300), (.5, 500), (.05, 500), (.9, 200)])
def test_intervals_of_proportions_cover_what_they_promise(p, total):
    g = torch.Generator().manual_seed(7)
    counts = torch.distributions.Binomial(total, torch.tensor(p)).log_prob(torch.arange(total + 1.)).exp()      # exactly, not by simulation
    inside = [low <= p <= high for low, high in (evaluate.wilson(c, total) for c in range(total + 1))]
    assert .94 <= (counts * torch.tensor(inside)).sum() <= .96
    hits = [low <= p <= high for low, high in (evaluate.wilson(int(c), total) for c in (torch.rand(20000, total, generator=g) < p).sum(1))]
    assert sum(hits) / len(hits) == pytest.approx((counts * torch.tensor(inside)).sum().item(), abs=.006)


def test_intervals_of_means_cover_95_percent():
    g = torch.Generator().manual_seed(8)
    for size in (3, 5, 10):             # seeds
        hits = [low <= 0 <= high for _, low, high in map(evaluate.mean_interval, torch.randn(20000, size, generator=g, dtype=torch.float64).tolist())]
        assert .94 <= sum(hits) / len(hits) <= .96
    # avg@8 over 100 problems of very unequal difficulty: the problems are independent, their samples are not
    hits, truth = 0, .5
    for _ in range(3000):
        difficulty = torch.rand(100, generator=g) < .5
        p = torch.where(difficulty, torch.tensor(.9), torch.tensor(.1))
        rights = (torch.rand(100, 8, generator=g) < p[:, None]).double().mean(1).tolist()
        _, low, high = evaluate.mean_interval(rights)
        hits += low <= truth <= high
    assert .94 <= hits / 3000 <= .96


def test_majority_shares_a_tie_and_nobody_votes_with_no_answer():
    assert evaluate.majority(["1", "2", "2", None], [True, False, False, False]) == 0
    assert evaluate.majority(["1", "2"], [True, False]) == .5 and evaluate.majority([None], [False]) == 0
    assert evaluate.majority(["a", "b", "c", "a", "b", "c"], [True, False, False, True, False, False]) == pytest.approx(1 / 3)
    assert evaluate.majority(["2", "1", "2"], [False, True, False]) == evaluate.majority(["1", "2", "2"], [True, False, False])      # order does not matter


def records(rights, n=4):
    return [{"index": i, "sample": j, "correct": j < c, "extracted": str(j < c), "tokens": 5 + i, "truncated": False, "response": f"{j} + 1"}
            for i, c in enumerate(rights) for j in range(n)]


def test_summary_by_hand():
    found = evaluate.summarise(records([4, 2, 0]), k=2)
    assert found["accuracy"] == found["avg@4"] == pytest.approx(.5) and found["n"] == 3 and found["samples"] == 4
    assert found["pass@1"] == pytest.approx(.5) and found["pass@2"] == pytest.approx((1 + (1 - 1 / 6) + 0) / 3)
    m, low, high = evaluate.mean_interval([1, .5, 0])
    assert found["interval"] == [max(0, low), min(1, high)] and high - low == pytest.approx(2 * 4.303 * math.sqrt(.25 / 3), abs=1e-3)
    assert found["mean_tokens"] == 6 and found["max_tokens"] == 7 and found["majority"] == pytest.approx((1 + .5 + 0) / 3)
    one = evaluate.summarise(records([1, 0, 1], n=1))
    assert one["accuracy"] == pytest.approx(2 / 3) and one["interval"] == evaluate.wilson(2, 3)
    shuffled = records([4, 2, 0])[::-1]
    assert evaluate.summarise(shuffled, k=2) == found           # the order in which samples came does not matter


def test_the_same_samples_whatever_the_batch_and_after_any_interruption(toy):
    student, _, tokenizer = toy
    rows = load_benchmark("toy", "test", 6)
    more = dict(n=3, temperature=1.0, max_new_tokens=60, k=2, bar=False)
    whole, first = evaluate.evaluate(student, tokenizer, rows, batch=256, **more)
    for batch, done in ((1, []), (3, first[:7]), (4, first[5:6] + first[11:]), (256, first[::2])):
        again, second = evaluate.evaluate(student, tokenizer, rows, batch=batch, done=done, **more)
        assert second == first and {k: v for k, v in again.items() if k != "seconds"} == {k: v for k, v in whole.items() if k != "seconds"}
    other, third = evaluate.evaluate(student, tokenizer, rows, batch=256, seed=1, **more)
    assert [r["response"] for r in third] != [r["response"] for r in first]


def test_the_readme_shows_the_cards_as_they_are_predicted():
    done = run_script("benchmarks/memory.py", "--cards", fresh=True)
    assert done.returncode == 0, done.stderr
    rows = [line for line in done.stdout.splitlines() if line.startswith("|")]
    readme = (ROOT / "README.md").read_text()
    assert len(rows) > 10 and all(row in readme for row in rows), [row for row in rows if row not in readme]
    assert not any(row.endswith("! |") for row in rows)         # nothing is recommended that would fill a card to the brim
