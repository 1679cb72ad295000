"""Every benchmark's loader on local rows with the real columns of the data set; prompts."""
import ast
import json
import math

import pytest
from conftest import ROOT

from common.arguments import Mistake
from common.data import (
    BENCHMARKS,
    check_prompts,
    checker,
    load_benchmark,
    privileged_prompt,
    prompt_ids,
)
from common.grading import grade

GSM = ("Natalia sold 48/2 = <<48/2=24>>24 clips in May.\n"
       "Natalia sold 48+24 = <<48+24=72>>72 clips altogether in April and May.\n#### 72")
# hub id, configuration, splits, one row with all its columns, an answer that must be accepted, one
# that must not
ROWS = {
    "gsm8k": ("openai/gsm8k", "main", ("train", "test"),
              {"question": "How many clips?", "answer": GSM}, "72", "24"),
    "math500": ("HuggingFaceH4/MATH-500", None, ("test",),
                {"problem": "Convert the point $(0,3)$.",
                 "solution": "We have \\boxed{(3,\\pi/2)}.",
                 "answer": "\\left( 3, \\frac{\\pi}{2} \\right)", "subject": "Precalculus",
                 "level": 2, "unique_id": "test/precalculus/807.json"},
                "(3,\\frac{\\pi}{2})", "(\\frac{\\pi}{2},3)"),
    "aime24": ("HuggingFaceH4/aime_2024", None, ("train",),
               {"id": 60, "problem": "Every morning ...", "solution": "...", "answer": "025",
                "url": "https://example.org", "year": "2024"}, "25", "52"),
    "aime25": ("math-ai/aime25", None, ("test",),
               {"problem": "Find the sum of ...", "answer": "70", "id": "0"}, "070", "7"),
    "hmmt25": ("MathArena/hmmt_feb_2025", None, ("train",),
               {"problem_idx": 1, "problem": "Compute ...", "answer": "\\frac{1}{576}",
                "problem_type": ["Number Theory"]}, "1/576", "576"),
    "amc23": ("math-ai/amc23", None, ("test",),
              {"id": 0, "answer": "27.0", "question": "Cities A and B ...",
               "url": "https://example.org"}, "27", "2.7"),
    "minerva": ("math-ai/minervamath", None, ("test",),
                {"question": "Each of the two Magellan telescopes ...", "answer": "1e11"},
                "10^{11}", "1.1e11"),
    "olympiad": ("Hothan/OlympiadBench", "OE_TO_maths_en_COMP", ("train",),
                 {"id": 1606, "question": "Find all ...", "solution": ["..."],
                  "final_answer": ["$2,3$", "$\\frac{1}{2}$"], "context": None,
                  "modality": "Text-only", "difficulty": "Competition",
                  "is_multiple_answer": True, "unit": None, "answer_type": "Numerical",
                  "error": None, "question_type": "Open-ended", "subfield": "Algebra",
                  "subject": "Math", "language": "English"}, "3, 0.5, 2", "2, 3"),
}


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    """A folder in which the data sets lie under their hub names. The package `datasets` takes a
    folder of that name for the data set."""
    import datasets
    folder = tmp_path_factory.mktemp("hub")
    for source, configuration, splits, row, *_ in ROWS.values():
        where = folder / source
        where.mkdir(parents=True)
        files = "\n".join(f"  - split: {s}\n    path: {s}.parquet" for s in splits)
        (where / "README.md").write_text(
            f"---\nconfigs:\n- config_name: {configuration or 'default'}\n"
            f"  data_files:\n{files}\n---\n")
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
    asked = "Please reason step by step, and put your final answer within \\boxed{}."
    assert rows[0]["problem"] == problem and rows[0]["prompt"] == f"{problem}\n{asked}"
    assert isinstance(rows[0]["answer"], str)
    assert grade(f"so \\boxed{{{right}}}", rows[0]["answer"])
    assert not grade(f"so \\boxed{{{wrong}}}", rows[0]["answer"])
    if name == "gsm8k":  # the training split has worked solutions, without the calculator's marks
        solution = load_benchmark(name, "train")[0]["solution"]
        assert "<<" not in solution and "####" not in solution and "48+24 = 72" in solution
        assert solution.endswith("The answer is \\boxed{72}.")
    else:
        with pytest.raises(Mistake, match="no training problems"):
            load_benchmark(name, "train")


def test_every_benchmark_is_covered_here():
    assert set(ROWS) | {"toy", "toy-heldout"} == set(BENCHMARKS)
    for name, (source, configuration, splits, *_) in ROWS.items():
        assert BENCHMARKS[name][:2] == (source, configuration)
        assert {s for s in BENCHMARKS[name][2:4] if s} == set(splits)


@pytest.mark.parametrize("columns, missing", [
    ({"prompt": "a", "answer": "1"}, "problem"),
    ({"Problem": "a", "Answer": "1"}, "problem and the answer"),
])
def test_a_data_set_whose_columns_changed_is_named(columns, missing, tmp_path, monkeypatch):
    import datasets
    (tmp_path / "math-ai/aime25").mkdir(parents=True)
    datasets.Dataset.from_list([columns]).to_parquet(tmp_path / "math-ai/aime25/test.parquet")
    monkeypatch.chdir(tmp_path)
    sentence = f"'math-ai/aime25' has no column for the {missing}; its columns are"
    with pytest.raises(Mistake, match=sentence):
        load_benchmark("aime25", "test")


def test_the_toy_is_asked_in_its_own_words_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, split in (("toy", "train"), ("toy", "test"), ("toy-heldout", "test")):
        rows = load_benchmark(name, split, 3)
        assert len(rows) == 3
        assert all(r["prompt"] == r["problem"] and isinstance(r["answer"], str) for r in rows)


def test_only_the_toy_has_a_checker():
    from toy import world
    assert checker("toy") is checker("toy-heldout") is world.check
    assert all(checker(name) is None for name in ROWS)
    # A user's file may hold the toy's problems. The check itself knows which are not its own.
    assert checker(str(ROOT / "toy/test.jsonl")) is checker("mine.jsonl") is world.check
    with pytest.raises(ValueError):
        checker("mine.jsonl")("What is 2 + 2?", "4")


def test_no_room_imports_the_toy_or_anything_from_the_top():
    """Arrows run downwards: what is shared knows nothing of those who share it."""
    top = {p.stem for p in ROOT.glob("*.py")} | {"toy", "benchmarks", "tests"}
    for room in (ROOT / "common").glob("*.py"):
        for node in ast.walk(ast.parse(room.read_text())):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            above = {name.split(".")[0] for name in names} & top
            assert not above, f"{room.name}, line {node.lineno}, imports {', '.join(above)}"


def test_what_looks_wrong_in_a_file_and_is_not(tmp_path):
    """Numbers as answers, columns beyond the two, Windows' line ends, and, for training, a
    problem that occurs twice."""
    lines = [{"problem": "q = 3 . q ?", "answer": 3, "source": "x"},
             {"problem": "q = 4 . q ?", "answer": 4, "source": None}]
    path = tmp_path / "mine.jsonl"
    path.write_bytes("\r\n".join(map(json.dumps, lines)).encode())
    assert [r["answer"] for r in load_benchmark(str(path))] == ["3", "4"]
    path.write_text("".join(json.dumps(row) + "\n" for row in [*lines, lines[0]]))
    assert len(load_benchmark(str(path), "train")) == 3


def test_an_answer_that_is_not_a_number_in_the_file_is_refused(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"problem": "a", "answer": 1.5}\n{"problem": "b", "answer": NaN}\n')
    with pytest.raises(Mistake, match="Row 2 of .* has an empty answer"):
        load_benchmark(str(path))
    assert math.isclose(float(load_benchmark(str(path), limit=1)[0]["answer"]), 1.5)


def test_views_differ_only_in_what_they_show():
    plain, solution = privileged_prompt("P"), privileged_prompt("P", "S")
    assert plain == "P\n\nNow answer with your own response."
    assert solution == "P\n\nThis is an example response:\nS\n\nNow answer with your own response."
    assert "The final answer is 0." in privileged_prompt("P", answer=0)
    both = privileged_prompt("P", "S", "7")
    assert both.index("P") < both.index("S") < both.index("The final answer is 7.")


def test_prompts_of_a_tokenizer_that_cannot_ask_are_refused(toy):
    *_, tokenizer = toy
    check_prompts(tokenizer, [r["prompt"] for r in load_benchmark("toy", "test", 5)], "toy")
    with pytest.raises(Mistake, match="does not know the words of 'mine'"):
        check_prompts(tokenizer, ["Find all primes below 10."], "mine")

    class Base:
        chat_template, name_or_path = None, "base"
    with pytest.raises(Mistake, match="'base' has no chat template"):
        prompt_ids(Base(), "Hi")


@pytest.mark.parametrize("name", ROWS)
def test_a_teacher_is_told_the_gold_and_never_the_solution(name, hub, monkeypatch):
    """GSM8K's answer column holds the whole worked solution. If it was the gold, the arms that are
    told only the final answer would be told everything."""
    import ar_opd
    import hindsight_sd
    monkeypatch.chdir(hub)
    row = load_benchmark(name, "test")[0]
    golds = {"gsm8k": "72", "olympiad": "$2,3$, $\\frac{1}{2}$"}
    gold = golds.get(name, str(ROWS[name][3].get("answer")))
    assert row["answer"] == gold
    only_answer = hindsight_sd.context(row, None, hindsight_sd.Args(context="answer"))
    assert only_answer == f"{row['prompt']}\n\nThe final answer is {gold}.\n\nNow answer with your own response."
    with_peer = hindsight_sd.context(row, "a peer", hindsight_sd.Args())
    assert f"a peer\n\nThe final answer is {gold}." in with_peer and "<<" not in with_peer
    solution = row.get("solution")
    if isinstance(solution, str):
        kept = ar_opd.views(row, ar_opd.Args(partial_answer="keep"))["partial"]
        assert f"The final answer is {gold}." in kept and "####" not in kept and "<<" not in kept


def test_a_file_in_the_format_of_gsm8k_has_golds_too(tmp_path):
    file = tmp_path / "mine.jsonl"
    file.write_text(json.dumps({"question": "How many clips?", "answer": GSM}) + "\n")
    row = load_benchmark(str(file), "train")[0]
    assert row["answer"] == "72" and row["solution"].endswith("The answer is \\boxed{72}.")
