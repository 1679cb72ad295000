"""Every benchmark's loader on local rows with the real columns of the data set; prompts."""
import ast
import json
import math
import time

import pytest
from conftest import ROOT

from common.arguments import Mistake
from common.data import (
    BENCHMARKS,
    INSTRUCTION,
    ask_in_known_words,
    check_name,
    check_prompts,
    checker,
    load_benchmark,
    opened_thinking,
    privileged_prompt,
    prompt_ids,
    training_and_tests,
)
from common.grading import grade
from common.models import load_tokenizer
from common.origin import hash_of
from common.tables import read_json_rows

GSM = ("Natalia sold 48/2 = <<48/2=24>>24 clips in May.\n"
       "Natalia sold 48+24 = <<48+24=72>>72 clips altogether in April and May.\n#### 72")
# hub id, configuration, splits, one row with all its columns, an answer that must be accepted, one
# that must not
ROWS = {
    "gsm8k": ("openai/gsm8k", "main", ("train", "test"),
              {"question": "How many clips?", "answer": GSM}, "72", "24"),
    "math500": ("HuggingFaceH4/MATH-500", None, ("test",),
                {"problem": "Convert the point $(0,3)$.",
                 "solution": "We have $r = \\sqrt{0^2 + 3^2} = 3.$  The line to $(0,3)$ makes an angle of "
                             "$\\frac{\\pi}{2}$ with the $x$-axis.\n\nTherefore, the polar coordinates "
                             "are $\\boxed{\\left( 3, \\frac{\\pi}{2} \\right)}.$",
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
                 {"id": 1606, "question": "Find all ...",
                  "solution": ["First, $x > 0$.", "So the values are $2, 3, \\frac{1}{2}$."],
                  "final_answer": ["$2,3$", "$\\frac{1}{2}$"], "context": None,
                  "modality": "Text-only", "difficulty": "Competition",
                  "is_multiple_answer": True, "unit": None, "answer_type": "Numerical",
                  "error": None, "question_type": "Open-ended", "subfield": "Algebra",
                  "subject": "Math", "language": "English"}, "3, 0.5, 2", "2, 3"),
}


def put_data_set(folder, name, rows_of):
    """Write a benchmark's data set under its hub name. rows_of(split): its rows."""
    import datasets
    source, configuration, splits, *_ = ROWS[name]
    where = folder / source
    where.mkdir(parents=True)
    files = "\n".join(f"  - split: {s}\n    path: {s}.parquet" for s in splits)
    (where / "README.md").write_text(
        f"---\nconfigs:\n- config_name: {configuration or 'default'}\n  data_files:\n{files}\n---\n")
    for s in splits:
        datasets.Dataset.from_list(rows_of(s)).to_parquet(where / f"{s}.parquet")


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    """A folder in which the data sets lie under their hub names. The package `datasets` takes a
    folder of that name for the data set."""
    import datasets
    folder = tmp_path_factory.mktemp("hub")
    for name, (_, _, _, row, *_) in ROWS.items():
        put_data_set(folder, name, lambda _, row=row: [row, row])
    # Otherwise the package gives back what an earlier run of the tests stored under these names.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", folder / "cache")
        yield folder


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
    assert set(ROWS) | {"toy", "toy-heldout", "toy-validation"} == set(BENCHMARKS)
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
    for name, split in (("toy", "train"), *((n, "test") for n in ("toy", "toy-heldout", "toy-validation"))):
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
    if row["solution"]:
        assert name in ("gsm8k", "math500", "aime24", "olympiad")
        kept = ar_opd.views(row, ar_opd.Args(partial_answer="keep"))["partial"]
        assert f"The final answer is {gold}." in kept and "####" not in kept and "<<" not in kept


@pytest.mark.parametrize("found, read", [
    (["First, $x > 0$.", "So $x = 2$."], "First, $x > 0$.\n\nSo $x = 2$."),
    (["only one"], "only one"),
    (["a", None, " "], "a"),                            # Parquet fills gaps with null
    ([], None), (["", "  "], None), ([None], None), ("", None), (" \n", None), (None, None),
    (math.nan, None), (7, None), (True, None), ({"text": "a"}, None), ([{"text": "a"}], None),
    ([["a"]], None),
])
def test_a_solution_is_text_or_there_is_none(found, read, tmp_path):
    row = {"problem": "q", "answer": "7", "solution": found}
    for name in ("own.jsonl", "own.parquet"):
        assert load_benchmark(written(tmp_path, name, [row]), "train")[0]["solution"] == read


def test_steps_of_a_solution_that_end_in_the_gold(tmp_path):
    row = {"problem": "q", "solution": ["3 + 4 is", "\\boxed{7}."]}
    row = load_benchmark(written(tmp_path, "own.jsonl", [row]), "train")[0]
    assert (row["solution"], row["answer"]) == ("3 + 4 is\n\n\\boxed{7}.", "7")


@pytest.mark.parametrize("bad, said", [
    ({"problem": ["q", "r"]}, "Row 1 of .*no text as its problem"),
    ({"problem": [{"role": "user", "content": "q"}]}, "Row 1 of .*no text as its problem"),
    ({"answer": []}, "empty answer"), ({"answer": [None]}, "empty answer"),
    ({"answer": [["7"]]}, "empty answer"), ({"answer": [{"value": "7"}]}, "empty answer"),
])
def test_a_problem_or_an_answer_of_another_type_is_refused(bad, said, tmp_path):
    path = written(tmp_path, "own.jsonl", [{"problem": "q", "answer": "7", **bad}])
    with pytest.raises(Mistake, match=said):
        load_benchmark(path, "train")


def test_a_file_in_the_format_of_gsm8k_has_golds_too(tmp_path):
    file = tmp_path / "mine.jsonl"
    file.write_text(json.dumps({"question": "How many clips?", "answer": GSM}) + "\n")
    row = load_benchmark(str(file), "train")[0]
    assert row["answer"] == "72" and row["solution"].endswith("The answer is \\boxed{72}.")


# ------------------------------------------------------------------------ a user's own data

OWN = [{"problem": "one?", "answer": "1"}, {"problem": "half,\nor \"0.5\"?", "answer": "0.50"}]


def written(folder, name, rows):
    """The rows as a file in the format that its name says."""
    import datasets
    path = folder / name
    table, suffix = datasets.Dataset.from_list(rows), path.suffix
    if suffix == ".parquet":
        table.to_parquet(path)
    elif suffix in (".csv", ".tsv"):
        table.to_csv(path, sep="," if suffix == ".csv" else "\t", index=False)
    else:
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        path.write_text(json.dumps(rows) if suffix == ".json" else lines)
    return str(path)


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv", "a.tsv", "a.parquet", "a.txt"])
def test_every_format_gives_the_same_rows(name, tmp_path):
    rows = load_benchmark(written(tmp_path, name, OWN), "train")
    # A gold stays as it was typed. As a number, 0.50 would become 0.5, and 1 would become 1.0.
    assert [(r["problem"], r["answer"]) for r in rows] == [(r["problem"], r["answer"]) for r in OWN]
    assert rows[0]["prompt"] == f"one?\n{INSTRUCTION}"


@pytest.mark.parametrize("columns, gold, solution", [
    (dict(question="q", answer="7"), "7", None),
    (dict(prompt="q", final_answer="7"), "7", None),
    (dict(problem="q", solution="3 + 4 = \\boxed{7}, done."), "7", "3 + 4 = \\boxed{7}, done."),
    (dict(problem="q", answer="3 + 4 = \\boxed{7}."), "7", "3 + 4 = \\boxed{7}."),
    (dict(problem="q", answer="\\boxed{7}"), "7", None),
    (dict(problem="q", answer="7", solution="my \\boxed{8}"), "7", "my \\boxed{8}"),
    (dict(problem="q", answer="\\boxed{7}", solution="mine"), "7", "mine"),
    (dict(prompt="q", solution="3 + 4 = <<3+4=7>>7\n#### 7"), "7",
     "3 + 4 = 7\nThe answer is \\boxed{7}."),
    (dict(problem="p", question="other", gold=7, prompt="no"), "7", None),
    (dict(problem="q", answer="#### 5"), "5", None),
])
def test_columns_that_are_understood(columns, gold, solution, tmp_path):
    """The gold is never a whole worked solution: an arm that is told the answer only would be told
    everything."""
    row = load_benchmark(written(tmp_path, "own.jsonl", [columns]), "train")[0]
    assert row["problem"] == ("p" if columns.get("problem") == "p" else "q")
    assert (row["answer"], row.get("solution")) == (gold, solution)


@pytest.mark.parametrize("column", ["answer", "solution"])
@pytest.mark.parametrize("text, gold", [
    ("We get \\boxed{7}.\n#### Remark\nThis also follows by symmetry.", "7"),
    ("#### Step 1\nAdd: 2+3=5.\n#### Conclusion\nSo the answer is \\boxed{5}.", "5"),
    ("#### Step 1\n2+3=5\n#### 5", "5"), ("#### Step 1\n2+3=5\n#### \\boxed{}\n#### 5", "5"),
    ("Not \\boxed{3}.\n#### 24", "24"), ("We write \\boxed for the box.\n#### 24", "24"),
    ("So \\boxed{7}.\n#### Done", "7"),
])
def test_headings_are_no_gold(text, gold, column, tmp_path):
    """#### begins a heading in Markdown. Only a last line with it is GSM8K's gold."""
    row = load_benchmark(written(tmp_path, "own.jsonl", [{"problem": "q", column: text}]), "train")[0]
    assert row["answer"] == gold
    if not text.endswith(f"#### {gold}"):
        assert row["solution"] == text
    else:
        assert row["solution"] == f"{text.removesuffix(f'#### {gold}').strip()}\nThe answer is \\boxed{{{gold}}}."


@pytest.mark.parametrize("text", ["48/2=24 ####  ", "#### Remark\nIt is so.\n#### Proof\nClear."])
def test_a_mark_without_a_gold_is_refused(text, tmp_path):
    with pytest.raises(Mistake, match="Row 1 of .*without a final answer"):
        load_benchmark(written(tmp_path, "own.jsonl", [{"problem": "q", "answer": text}]), "train")


@pytest.mark.parametrize("name", ["a.jsonl", "a.json"])
@pytest.mark.parametrize("typed, golds", [
    (['5', '"x+1"'], ["5", "x+1"]),                     # numbers and texts in one column
    (['9007199254740993', '2.5'], ["9007199254740993", "2.5"]),
    (['12345678901234567890123', '0.10'], ["12345678901234567890123", "0.10"]),
    (['"2024-01-05"', '"2024-01-06"'], ["2024-01-05", "2024-01-06"]),
])
def test_a_gold_of_json_stays_as_it_was_typed(typed, golds, name, tmp_path):
    lines = [f'{{"problem": "q{i}", "answer": {x}}}' for i, x in enumerate(typed)]
    text = "\n".join(lines) if name == "a.jsonl" else f"[{', '.join(lines)}]"
    (tmp_path / name).write_text(text)
    assert [r["answer"] for r in load_benchmark(str(tmp_path / name))] == golds


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.data"])
@pytest.mark.parametrize("text", [
    '[{"problem": "p", "answer": "1"}, {"problem": "q", "answer": "2"}]',
    '[\n{"problem": "p",\n"answer": "1"},\n{"problem": "q", "answer": "2"}\n]\n',
    '{\n"problem": "p",\n"answer": "1"\n}\n{"problem": "q", "answer": "2"}',
    '{"problem": "p", "answer": "1"} {"problem": "q", "answer": "2"}\n\n',
])
def test_json_in_every_layout(text, name, tmp_path):
    (tmp_path / name).write_text(text)
    assert [r["answer"] for r in load_benchmark(str(tmp_path / name))] == ["1", "2"]


def test_a_gold_of_csv_that_looks_like_nothing_is_a_gold(tmp_path):
    (tmp_path / "a.csv").write_text("problem,answer\na,NA\nb,None\nc,nan\n")
    assert [r["answer"] for r in load_benchmark(str(tmp_path / "a.csv"))] == ["NA", "None", "nan"]


def test_only_text_is_a_problem_or_a_solution(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"problem": "p", "answer": ' + "1" * 400 + ', "solution": 2.5}')
    (row,) = load_benchmark(str(tmp_path / "a.jsonl"))
    assert row["answer"] == "1" * 400 and row["solution"] is None
    for line, said in (('{"problem": 2.5, "answer": 1}', "no text as its problem"),
                       ('{"problem": "p \\ud83d", "answer": 1}', "UTF-8"),
                       ('{"problem": "p", "answer": 1, "answer": 2}', "twice"),
                       ('{"problem": "p", "answer": Infinity}', "neither text nor a number")):
        (tmp_path / "a.jsonl").write_text(line)
        with pytest.raises(Mistake, match=said):
            load_benchmark(str(tmp_path / "a.jsonl"))


def test_a_column_that_nobody_needs_may_hold_anything(tmp_path):
    rows = [{"problem": "q", "answer": "1", "meta": 3}, {"problem": "r", "answer": "2", "meta": {"a": []}},
            {"problem": "s", "answer": "3"}]
    assert len(load_benchmark(written_lines(tmp_path / "a.jsonl", rows))) == 3


def written_lines(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.mark.parametrize("suffix", ["jsonl", "json", "csv", "parquet"])
@pytest.mark.parametrize("name", ["m[1]", "x [old]/m", "m*", "m{1,2}"])
def test_a_file_name_is_no_pattern(name, suffix, tmp_path):
    (tmp_path / "x [old]").mkdir()
    written(tmp_path, f"m1.{suffix}", [{"problem": "other", "answer": "0"}])
    rows = load_benchmark(written(tmp_path, f"{name}.{suffix}", [{"problem": "q", "answer": "1"}]))
    assert [r["problem"] for r in rows] == ["q"]


def test_a_date_is_no_answer(tmp_path):
    import datetime

    import datasets
    path = tmp_path / "a.parquet"
    rows = [{"problem": "q", "answer": datetime.datetime(2024, 1, 5)}]
    datasets.Dataset.from_list(rows).to_parquet(path)
    with pytest.raises(Mistake, match="neither text nor a number"):
        load_benchmark(str(path))


def test_a_solution_without_a_final_answer_is_no_gold(tmp_path):
    rows = [{"problem": "q", "solution": "so \\boxed{7}"}, {"problem": "r", "solution": "thus 7."}]
    with pytest.raises(Mistake, match=r"Row 2 of .*boxed.*add a column answer"):
        load_benchmark(written(tmp_path, "own.jsonl", rows), "train")
    rows = [{"problem": "q", "answer": "so \\boxed{7"}]
    with pytest.raises(Mistake, match="Row 1 of .*boxed"):
        load_benchmark(written(tmp_path, "own.jsonl", rows), "train")


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv", "a.parquet"])
def test_other_columns_are_listed(name, tmp_path):
    path = written(tmp_path, name, [{"text": "q", "label": "1"}])
    with pytest.raises(Mistake, match="no column for the problem and the answer; its columns are "
                                      "text, label. .*problem, question or prompt.*final_answer"):
        load_benchmark(path, "train")


@pytest.mark.parametrize("name, content, said", [
    ("a.csv", b"problem,answer\na,1\nb,2,3,4\n", "Row 2 of .* has 4 fields, and the first line names 2"),
    ("a.csv", b"problem,answer\nWhat?,1,7\nAnd?,2,7\n", "Row 1 of .* has 3 fields.*double quotes"),
    ("a.tsv", b"problem\tanswer\na\t1\t\n", "Row 1 of .* has 3 fields"),
    ("a.csv", "problem,answer\n\u00e4,1\n".encode("latin-1"), "in UTF-8"),
    ("a.csv", b"problem,answer\n", "no data"),
    ("a.csv", b"problem,answer\na,1\nb,\n", "Row 2 of .* has an empty answer"),
    ("a.parquet", b"nonsense", "Could not load the file .*Parquet"),
    ("a.jsonl", b'{"problem": "a", "answ', "one JSON object a line"),
    ("a.jsonl", b'{"problem": "a", "answer": "1"}\n[1, 2]\n', "line 2.*one JSON object a line"),
    ("a.jsonl", "{\"problem\": \"\u00e4\", \"answer\": \"1\"}".encode("latin-1"), "in UTF-8"),
    ("a.json", b'{"problem": "a"', "Could not load the file"),
    ("a.json", b'[1, 2]', "Could not load the file"),
    ("a.jsonl", b"\n\n", "no data"),
    ("a.parquet", b"", "is empty"),
])
def test_files_that_cannot_be_read(name, content, said, tmp_path):
    # A row with one field too many: the package takes the first column for the names of the rows,
    # and the answer became the problem.
    (tmp_path / name).write_bytes(content)
    with pytest.raises(Mistake, match=said):
        load_benchmark(str(tmp_path / name), "train")


@pytest.mark.parametrize("row, behind", [
    (r'{"problem": "\frac{1}{2} of 6", "answer": "3"}', r"rac.1"), (r'{"problem": "p", "answer": "1\times 2"}', "imes"),
    (r'{"problem": "p", "answer": "1", "solution": "so \boxed{1}"}', "oxed"), (r'{"problem": "\right)", "answer": "1"}', "ight"),
    (r'{"problem": "p", "solution": "so \\boxed{\text{no}}"}', "ext")])
def test_backslashes_that_were_not_escaped_are_refused(row, behind, tmp_path):
    (tmp_path / "a.jsonl").write_text(row)
    with pytest.raises(Mistake, match=f"Row 1 .*front of '{behind}.*was not escaped. JSON writes"):
        load_benchmark(str(tmp_path / "a.jsonl"))


def test_other_control_characters_are_no_backslashes(tmp_path):
    rows = [{"problem": "a\tb\n\tif x:\r\nneither\tText\f", "answer": r"\\frac{1}{2}"}]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) for row in rows))
    assert len(load_benchmark(str(tmp_path / "a.jsonl"))) == 1


def test_a_gold_that_would_not_accept_itself_is_named(tmp_path, capsys):
    rows = [("a", "5"), ("b", r"\frac{1}{2"), ("c", "%"), ("d", r"\{1, 2\}"), ("e", r"so \boxed{2}"), ("f", "yes")]
    text = "".join(json.dumps({"problem": p, "answer": a}) + "\n" for p, a in rows)
    (tmp_path / "a.jsonl").write_text(text)
    load_benchmark(str(tmp_path / "a.jsonl"))
    said = capsys.readouterr().out
    assert "warning: 2 of the 6 answers" in said and "frac{1}{2' in row 2" in said
    (tmp_path / "a.jsonl").write_text(text.splitlines()[0])
    load_benchmark(str(tmp_path / "a.jsonl"))
    assert capsys.readouterr().out == ""


def test_a_template_can_open_the_thinking_in_the_prompt():
    tokenizer = load_tokenizer("toy/student")
    assert opened_thinking(tokenizer) == "" == opened_thinking(object())
    tokenizer.decode = lambda ids: "<user> 1 + 1 <assistant><think>\n"
    assert opened_thinking(tokenizer) == "<think>"
    tokenizer.decode = lambda ids: "<assistant><think>\n\n</think>\n\n"
    assert opened_thinking(tokenizer) == ""


def test_a_file_of_a_spreadsheet_has_a_mark_at_its_start(tmp_path):
    path = tmp_path / "a.csv"
    path.write_bytes("\ufeffproblem,answer\r\none?,1\r\n".encode())
    assert load_benchmark(str(path), "train")[0]["answer"] == "1"


@pytest.fixture
def own_hub(tmp_path, monkeypatch):
    """A function own_hub(name, **splits) that puts a data set where the hub's would be found."""
    import datasets

    def put(name, **splits):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "README.md").write_text("A data set.")
        for split, rows in splits.items():
            datasets.Dataset.from_list(rows).to_parquet(tmp_path / name / f"{split}.parquet")
        return name
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    return put


def test_a_data_set_of_the_hub_that_is_no_benchmark(own_hub):
    more = [{"problem": f"more {i}", "answer": str(i)} for i in range(3)]
    both = own_hub("me/both", train=OWN, test=more)
    assert [r["answer"] for r in load_benchmark(both, "train")] == ["1", "0.50"]
    assert [r["answer"] for r in load_benchmark(both, "test")] == ["0", "1", "2"]
    assert load_benchmark(both, "test")[0]["prompt"] == f"more 0\n{INSTRUCTION}"
    one = own_hub("me/one", train=OWN)
    assert len(load_benchmark(one, "test")) == len(load_benchmark(one, "train")) == 2
    two = own_hub("me/two", validation=OWN, test=more)
    with pytest.raises(Mistake, match="'me/two' has no split train; it has validation, test"):
        load_benchmark(two, "train")
    with pytest.raises(Mistake, match="Could not load the data set 'me/nothing'"):
        load_benchmark("me/nothing", "train")


def test_names_are_checked_without_reading_anything(tmp_path):
    assert check_name("toy", "train") is False and check_name("me/mine", "train") is True
    assert check_name(written(tmp_path, "a.csv", OWN) + ":held-out", "test") is True
    with pytest.raises(Mistake, match="is a folder; name a file in it"):
        check_name(str(tmp_path), "test")
    for name in ("nowhere", "me/mine.jsonl", "a/b/c", "toy:held-out", "gsm8k:main"):
        with pytest.raises(Mistake, match="no benchmark and no file named"):
            check_name(name, "test")
    with pytest.raises(Mistake, match="held out for tests; train on "):
        check_name(written(tmp_path, "a.csv", OWN) + ":held-out", "train")


def test_a_folder_of_the_hub_that_cannot_be_written_does_not_matter_for_files(tmp_path, monkeypatch):
    import datasets
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "file/below")
    assert len(load_benchmark("toy", "test", 3)) == 3
    assert len(load_benchmark(written(tmp_path, "a.csv", OWN), "train")) == 2
    monkeypatch.setenv("HF_HOME", str(tmp_path / "file"))
    with pytest.raises(Mistake, match="HF_HOME"):       # where something must be stored
        (tmp_path / "me/own").mkdir(parents=True)
        (tmp_path / "me/own/README.md").write_text("A data set.")
        datasets.Dataset.from_list(OWN).to_parquet(tmp_path / "me/own/train.parquet")
        monkeypatch.chdir(tmp_path)
        load_benchmark("me/own", "train")


# ------------------------------------------------------------------------ rows that are held out


def numbered(n, start=0):
    return [{"problem": f"What is {i} + {i}?", "answer": str(2 * i)} for i in range(start, start + n)]


def problems(rows):
    return [r["problem"] for r in rows]


@pytest.mark.parametrize("n, held", [(2, 1), (4, 1), (26, 3), (100, 10), (5100, 500)])
def test_own_rows_are_held_out_for_testing(n, held, tmp_path, capsys):
    path = written(tmp_path, "mine.jsonl", numbered(n))
    rows, tests = training_and_tests(path, f"{path}:held-out")
    assert len(tests) == held and len(rows) == n - held
    assert {*problems(rows), *problems(tests)} == set(problems(numbered(n)))
    said = capsys.readouterr().out
    assert said.count("\n") == 1 and f"{held} of its {n} problems" in said, said
    # They are the same for every seed, every method and evaluate.py, in whatever order they lie.
    again = written(tmp_path, "again.jsonl", numbered(n)[::-1])
    assert problems(load_benchmark(f"{again}:held-out")) == problems(tests)
    assert problems(load_benchmark(f"{again}:held-out", "test", 2)) == problems(tests)[:2]
    # They are drawn from everywhere, and so are the first ones of them.
    if n > 100:
        places = [problems(numbered(n)).index(p) / n for p in problems(tests)[:100]]
        assert .4 < sum(places) / 100 < .6


def test_a_repeated_problem_lies_on_one_side_and_is_tested_once(tmp_path):
    twice = numbered(40) + [{**r, "problem": r["problem"].replace(" ", "  ") + "\n"}
                            for r in numbered(40)]
    path = written(tmp_path, "mine.jsonl", twice)
    rows, tests = training_and_tests(path, f"{path}:held-out")
    assert len(tests) == 4 and len(rows) == 72
    in_tests = {" ".join(p.split()) for p in problems(tests)}
    assert len(in_tests) == 4
    assert not in_tests & {" ".join(p.split()) for p in problems(rows)}


def test_a_single_problem_cannot_be_divided(tmp_path):
    path = written(tmp_path, "mine.jsonl", numbered(1) * 3)
    with pytest.raises(Mistake, match="one problem.*pass other problems with --benchmark"):
        training_and_tests(path, f"{path}:held-out")


def test_problems_of_the_training_are_no_test(tmp_path, own_hub, capsys):
    mine = written(tmp_path, "mine.jsonl", numbered(50))
    apart = written(tmp_path, "apart.jsonl", numbered(10, 50))
    rows, tests = training_and_tests(mine, apart)
    assert (len(rows), len(tests)) == (50, 10)
    mixed = numbered(8, 50) + [{"problem": " What is 7 +\n7? ", "answer": "14"},
                               {"problem": "What is 9 + 9?", "answer": "18"}]
    mixed = written(tmp_path, "mixed.jsonl", mixed)
    with pytest.raises(Mistake, match=r"^2 of the 10 problems of '.*mixed.jsonl' .* are also in "
                       r"'.*mine.jsonl' .*'What is 7 \+ 7\?'.*remove them.*leave out --benchmark"):
        training_and_tests(mine, mixed)
    with pytest.raises(Mistake, match="50 of the 50 problems"):
        training_and_tests(mine, mine)
    hub = own_hub("me/mine", train=numbered(50))
    with pytest.raises(Mistake, match="2 of the 10 problems of .*are also in 'me/mine'"):
        training_and_tests(hub, mixed)
    # A run of an earlier version goes on, and says so.
    capsys.readouterr()
    rows, tests = training_and_tests(mine, mixed, resumed=True)
    assert len(rows) == 50 and "warning: 2 of the 10 problems" in capsys.readouterr().out


def test_the_benchmarks_of_the_repository_do_not_overlap(capsys):
    train = set(problems(load_benchmark("toy", "train")))
    for name in ("toy", "toy-heldout", "toy-validation"):
        rows, tests = training_and_tests("toy", name)
        assert not train & set(problems(tests)) and len(rows) == len(load_benchmark("toy", "train"))
    assert capsys.readouterr().out == ""


def test_two_answers_to_one_problem_are_found_through_other_spaces(tmp_path):
    rows = [{"problem": "a  b", "answer": "1"}, {"problem": "a b ", "answer": "2"}]
    with pytest.raises(Mistake, match="Rows 1 and 2 .*different answers"):
        load_benchmark(written(tmp_path, "own.jsonl", rows), "train")


# ------------------------------------------------------------------------ the toy's language


def test_own_problems_in_the_toys_language_are_asked_in_its_words(toy, tmp_path, capsys):
    *_, tokenizer = toy
    known = [{k: r[k] for k in ("problem", "answer")} for r in load_benchmark("toy", "test", 60)]
    path = written(tmp_path, "own.jsonl", known)
    rows = load_benchmark(path, "test")
    assert all(r["prompt"].endswith(INSTRUCTION) for r in rows)
    ask_in_known_words(tokenizer, rows)
    assert all(r["prompt"] == r["problem"] for r in rows)
    check_prompts(tokenizer, [r["prompt"] for r in rows], path)

    class Fluent:                                       # Qwen's tokenizer has no unknown token
        unk_token_id = None
    rows = load_benchmark(path, "test")
    ask_in_known_words(Fluent(), rows)
    assert all(r["prompt"].endswith(INSTRUCTION) for r in rows)
    # A word that the toy does not have is still refused, wherever it stands.
    strange = [*known, {"problem": "A train leaves Chicago.", "answer": "5"}]
    rows = load_benchmark(written(tmp_path, "own.jsonl", strange), "test")
    ask_in_known_words(tokenizer, rows)
    with pytest.raises(Mistake, match="does not know the words of"):
        check_prompts(tokenizer, [r["prompt"] for r in rows], path)


def test_a_template_that_prints_the_date_always_prints_the_same_one():
    """Otherwise an evaluation could not be continued on the next day, and a resumed run would go on
    with other prompts."""
    tokenizer = load_tokenizer("toy/student")
    tokenizer.chat_template = "{{ strftime_now('%d %b %Y') }} {{ messages[0]['content'] }}"
    expected = tokenizer("26 Jul 2024 a : 5", add_special_tokens=False)["input_ids"]
    assert prompt_ids(tokenizer, "a : 5") == expected
    tokenizer.chat_template = '{{ strftime_now("%d") }} {{ messages[0]["content"] }}'
    assert prompt_ids(tokenizer, "a : 5") == tokenizer("26 a : 5", add_special_tokens=False)["input_ids"]
    tokenizer.chat_template = {"default": tokenizer.chat_template, "tool_use": "x"}
    assert len(prompt_ids(tokenizer, "a : 5")) == len(tokenizer("26 a : 5")["input_ids"])


def test_the_hash_of_problems_sees_what_is_asked_and_what_is_shown():
    row = {"problem": "q", "answer": "1", "solution": "s", "prompt": "p", "other": 3}
    shown = ("problem", "answer", "solution")
    first = hash_of([row], shown)
    assert first == hash_of([{**row, "prompt": "other", "other": 4}], shown) and len(first) == 16
    for changed in ([{**row, "problem": "r"}], [{**row, "answer": "2"}], [{**row, "solution": None}], [row, row], []):
        assert hash_of(changed, shown) != first
    assert hash_of([row]) == hash_of([{**row, "solution": None}])


def test_a_large_file_of_json_is_read_in_linear_time(tmp_path):
    row = json.dumps({"problem": "x" * 400, "answer": "1"}) + "\n"
    (tmp_path / "a.jsonl").write_text(row * 20000)
    begun = time.process_time()
    assert len(read_json_rows(tmp_path / "a.jsonl")) == 20000 and time.process_time() - begun < 3


def test_a_long_text_in_a_csv_is_read_whole(tmp_path):
    (tmp_path / "a.csv").write_text(f"problem,answer\n{'a ' * 100_000}b,1\n")
    assert len(load_benchmark(str(tmp_path / "a.csv"), "train")[0]["problem"]) == 200_001


def test_a_folder_is_no_name_of_the_hub(tmp_path, monkeypatch):
    """data/mine looks like OWNER/NAME. Read as a data set, its gold 007 became 7.0."""
    (tmp_path / "data/mine").mkdir(parents=True)
    (tmp_path / "data/mine/train.csv").write_text("problem,answer\na,007\n")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(Mistake, match="'data/mine' is a folder; name a file in it."):
        check_name("data/mine", "train")
    assert check_name("data/mine/train.csv", "train") and check_name("data/other", "train")
