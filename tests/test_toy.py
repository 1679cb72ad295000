"""The toy's language, checker, tokenizer and models."""
import json
import random
import re

import pytest
import torch
from conftest import ROOT
from helpers import CPU

from common.data import load_benchmark, privileged_prompt, prompt_ids
from common.evaluation import evaluate
from common.grading import grade
from common.models import load_model, load_tokenizer, same_tokenizer
from toy import build, world

# Three steps. The statement m is about another thing.
PROBLEM = (
    "h: starts with 14 coins. k: finds 7 # 4 coins. m: loses 8 stones. r: doubles the coins. "
    "t: loses 5 coins. How many coins at the end? Answer briefly."
)
F = world.TABLE[7, 4]
A, B, C = 14 + F, 2 * (14 + F), 2 * (14 + F) - 5
RIGHT = (
    f"k: 7 # 4 = {F}, 14 + {F} = {A}. r: {A} * 2 = {B}. t: {B} - 5 = {C}. "
    f"The answer is \\boxed{{{C}}}."
)


def random_problems(count, seed=0, levels=(1, 8)):
    rng = random.Random(seed)
    for _ in range(count):
        yield world.make_problem(rng, rng.randint(*levels)), rng


# ----------------------------------------------------------------------------- the language


def test_text_and_graph_are_the_same_thing():
    def events(problem):
        return [(e.label, e.kind, e.numbers, e.value) for e in problem.chain]

    for problem, _ in random_problems(500):
        again = world.parse(problem.text)
        assert again.text == problem.text
        assert again.answer == problem.answer and again.style == problem.style
        assert events(again) == events(problem)
        assert all(0 <= e.value <= world.LIMIT for e in problem.chain)


def test_every_solution_of_both_voices_is_right_and_has_no_fault():
    for problem, rng in random_problems(500):
        for voice in world.VOICES:
            report = world.check(problem.text, world.solve(problem, rng, voice))
            assert report.correct and not report.first_wrong and not report.premature
            steps = [s for s in report.steps if s.kind == "step"]
            assert len(steps) == len(problem.chain) - 1


def test_the_truth_against_an_independent_computation():
    for problem, _ in random_problems(300):
        now = None
        for sentence in problem.text.split(" How many ")[0].rstrip(".").split(". "):
            words = sentence.split(": ")[1].split()
            if words[-1] != problem.thing:
                continue
            if words[0] in ("starts", "begins"):
                now = int(words[2])
            elif words[0] in ("doubles", "triples"):
                now *= {"doubles": 2, "triples": 3}[words[0]]
            elif words[0] == "halves":
                now //= 2
            else:
                fact = world.TABLE[int(words[1]), int(words[3])] if "#" in words else None
                amount = int(words[1]) if fact is None else fact
                now += amount if words[0] in ("finds", "wins") else -amount
        assert now == problem.answer


# ----------------------------------------------------------------------------- the checker


@pytest.mark.parametrize("old, new, fault, right", [
    (f"14 + {F} = {A}", f"14 + {F} = {A + 1}", "slip", None),           # arithmetic
    (f"7 # 4 = {F}", f"7 # 4 = {F % 6 + 1}", "slip", str(F)),           # a fact
    (f"{A} * 2", f"{A} + 2", "operation", "*"),
    (f"{B} - 5", f"{B} - 8", "operand", "5"),                           # another statement's number
    ("r: ", "m: ", "statement", "r"),                                   # about another thing
    (f"k: 7 # 4 = {F}, 14 + {F} = {A}. r: {A} * 2", "r: 14 * 2", "statement", "k"),  # too early
    ("k: ", "z: ", "statement", "k"),                                   # of another problem
    (f"boxed{{{C}}}", f"boxed{{{C + 10}}}", "value", None),
])
def test_the_first_wrong_step_is_found_where_it_is(old, new, fault, right):
    text = RIGHT.replace(old, new)
    assert text != RIGHT
    wrong = world.check(PROBLEM, text).first_wrong
    assert wrong.fault == fault
    # up to that character the text is a right one; there it leaves the truth
    common = next(i for i, (a, b) in enumerate(zip(text, RIGHT)) if a != b)
    assert abs(wrong.wrong_at - common) <= 1
    if right is not None:
        assert wrong.right == right
    elif wrong.right:
        assert RIGHT[wrong.wrong_at] == wrong.right


def test_the_order_of_operands_and_early_facts_are_free():
    swapped = RIGHT.replace(f"14 + {F} =", f"{F} + 14 =").replace(f"{A} * 2", f"2 * {A}")
    early = f"k: 7 # 4 = {F}. k: 14 + {F} = {A}." + RIGHT.split(".", 1)[1]
    in_words = "So " + RIGHT.replace("r: ", f"then r: we have {A} coins, so ")
    for text in (swapped, early, swapped.replace("=", "makes"), in_words):
        report = world.check(PROBLEM, text)
        assert report.correct and not report.first_wrong and not report.premature, text
    # the operands of a difference must not change places
    difference = RIGHT.replace(f"{B} - 5", f"5 - {B}")
    assert world.check(PROBLEM, difference).first_wrong.fault == "operand"


def test_premature_values_are_noticed():
    # the answer without a derivation
    assert world.check(PROBLEM, f"The answer is \\boxed{{{C}}}.").premature
    # true, but computed from a value that was never derived
    jump = f"t: {B} - 5 = {C}. The answer is \\boxed{{{C}}}."
    report = world.check(PROBLEM, jump)
    assert report.correct and [s.label for s in report.premature] == ["t"]
    assert not world.check(PROBLEM, RIGHT).premature


def test_the_checker_survives_any_text():
    rng = random.Random(1)
    more = ["\\boxed{", "}", ":", "#", "99999999999 ", "we have ", "\n"]
    pieces = re.findall(r"\S+ ?", RIGHT) + more
    for _ in range(2000):
        text = "".join(rng.choice(pieces) for _ in range(rng.randint(0, 40)))
        report = world.check(PROBLEM, text)
        assert report.correct == (report.answer == C)


def test_token_kinds_tell_words_from_substance():
    tokens = [(m.start(), m.end()) for m in re.finditer(r"\d|\w+|\S", RIGHT)]
    kinds = {}
    for (start, end), kind in zip(tokens, world.token_kinds(RIGHT, tokens)):
        kinds.setdefault(kind, set()).add(RIGHT[start:end])
    assert kinds["label"] == {"k", "r", "t"}
    assert kinds["operator"] == {"+", "*", "-", "#"}
    assert {"The", "answer", "is", "=", ".", ","} <= kinds["surface"]
    assert not any(c.isdigit() for token in kinds["surface"] for c in token)


def test_changing_a_surface_token_never_changes_the_verdict():
    # words are replaced by other words of the language that can stand in the same place
    swaps = (
        ("makes", "="), ("gives", "equals"), ("thus", "so"), ("Then", "Now"), ("So", "Next,"),
    )
    for problem, rng in random_problems(200, seed=5):
        text = world.solve(problem, rng, "student")
        for a, b in swaps:
            assert world.check(problem, text.replace(f" {a} ", f" {b} ")).correct


EQUATION = r"(\d+) ([-+*/#]) (\d+) (?:=|makes|gives|equals) (\d+)"


@pytest.mark.parametrize("text", [world.__doc__, (ROOT / "toy/README.md").read_text()])
def test_the_examples_of_the_texts_are_true(text):
    text = " ".join(text.split())
    problem = re.search(r"n: starts with .*? Answer briefly\.", text)[0]
    solution = re.search(r"p: 7 # .*? The answer is \\boxed\{\d+\}\.", text)[0]
    report = world.check(problem, solution)
    assert report.correct and not report.first_wrong and not report.premature
    assert len(report.steps) == 5  # a fact, three steps and the answer
    equations = re.findall(EQUATION, text)
    assert len(equations) >= 4
    for left, op, right, value in equations:
        a, b = int(left), int(right)
        truth = world.TABLE[a, b] if op == "#" else build.result_of(a, op, b)
        assert truth == int(value), (left, op, right, value)


def test_the_examples_of_a_step_are_claims_of_the_example():
    example = re.search(r"p: 7 # .*?\}\.", world.__doc__)[0]
    fact, step, recall, answer = re.findall(r'"([^"]+)"', world.Step.__doc__)[:4]
    assert fact in example and step in example and answer in example
    text = f"p: {fact}, {recall} coins, so {step}. {answer}"
    assert [kind for _, kind, _ in world.claims(text)] == ["fact", "recall", "step", "answer"]
    start = world.parse(re.search(r"n: starts .*?briefly\.", " ".join(world.__doc__.split()))[0])
    report = world.check(start, text)
    assert [s.true for s in report.steps if s.kind in ("step", "recall")] == [True, True]


def test_cut_keeps_whole_words_and_loses_the_answer():
    for problem, rng in random_problems(100):
        text = world.solve(problem, rng)
        half = world.cut(text, .5)
        assert text.startswith(half) and "boxed" not in half and 0 < len(half) < len(text)


# ----------------------------------------------------------------------------- data and tokenizer


def read_rows(split):
    with open(ROOT / f"toy/{split}.jsonl", encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def test_data_files_hold_what_they_promise():
    earlier = set()
    splits = (
        ("train", {3, 4, 5}, 4000), ("test", {3, 4, 5}, 2000), ("heldout", {6, 7, 8}, 2000),
    )
    for split, levels, least in splits:
        rows = read_rows(split)
        assert len(rows) >= least and {r["level"] for r in rows} == levels
        assert {r["style"] for r in rows} == {"terse", "verbose"}
        for r in rows[:300]:
            problem = world.parse(r["problem"])
            assert str(problem.answer) == r["answer"] and len(problem.chain) - 1 == r["level"]
            assert world.check(problem, r["solution"]).correct
            assert world.check(problem, r["peer"]).correct
            assert grade(r["solution"], r["answer"])
        texts = {r["problem"] for r in rows}
        # no problem stands twice in a file, and none stands in two files
        assert len(texts) == len(rows) and not texts & earlier
        earlier |= texts


def test_the_tokenizer_loses_nothing_and_knows_every_word(toy):
    _, _, tokenizer = toy
    for problem, rng in random_problems(300, seed=9):
        solution = world.solve(problem, rng, rng.choice(list(world.VOICES)))
        prompt = privileged_prompt(problem.text, solution, str(problem.answer))
        for text in (problem.text, solution, prompt):
            ids = tokenizer(text, add_special_tokens=False)["input_ids"]
            assert tokenizer.unk_token_id not in ids
            assert re.sub(r"\n ", "\n", tokenizer.decode(ids).strip()) == text
    ids = prompt_ids(tokenizer, PROBLEM)
    assert tokenizer.decode(ids) == f"<|user|> {PROBLEM}<|end|><|assistant|>"


def test_solutions_have_the_promised_length(toy):
    _, _, tokenizer = toy
    lengths = [len(tokenizer(r["solution"])["input_ids"]) for r in read_rows("test")]
    assert min(lengths) >= 25 and max(lengths) <= 200


# ----------------------------------------------------------------------------- the models


def test_models_are_real_and_small_and_share_one_tokenizer(toy):
    student, teacher, tokenizer = toy
    same_tokenizer(tokenizer, load_tokenizer(str(ROOT / "toy/teacher")))
    for model in (student, teacher):
        assert type(model).__name__ == "Qwen3ForCausalLM" and model.config.tie_word_embeddings
        assert 3e5 <= sum(p.numel() for p in model.parameters()) <= 2e6
    files = [f for f in (ROOT / "toy").rglob("*") if f.is_file() and "__pycache__" not in f.parts]
    of_pair1 = [f for f in files if "pair1" in f.parts]
    sizes = [sum(f.stat().st_size for f in some) for some in (files, of_pair1)]
    assert sizes[0] - sizes[1] < 15 * 2**20 and sizes[1] < 8 * 2**20


def test_the_second_pair_is_another_one_with_the_same_tokenizer():
    tokenizer = load_tokenizer("toy/student")
    for name in ("student", "teacher", "reader", "reader2"):
        folders = [ROOT / "toy" / name, ROOT / "toy/pair1" / name]
        same_tokenizer(tokenizer, load_tokenizer(str(folders[1])))
        first, second = (load_model(str(f), CPU, torch.float32, tokenizer) for f in folders)
        assert first.config.hidden_size == second.config.hidden_size
        assert not torch.equal(first.lm_head.weight, second.lm_head.weight)


@pytest.mark.slow
def test_the_models_of_the_second_pair_are_what_their_names_say():
    tokenizer, rows = load_tokenizer("toy/student"), load_benchmark("toy", "test", 200)
    found = {}
    for name in ("student", "teacher", "reader", "reader2"):
        model = load_model(f"toy/pair1/{name}", CPU, torch.float32, tokenizer)
        found[name] = accuracy(model, tokenizer, rows, lambda _, row: row["prompt"])
    assert found["teacher"] > 0.93 and 0.2 < found["student"] < 0.5
    assert 0.15 < found["reader"] < 0.45 and found["reader2"] > found["reader"] + 0.1


def accuracy(model, tokenizer, rows, prompt):
    """Greedy accuracy if row i is asked with the user's turn prompt(i, row)."""
    asked = [{**r, "prompt": prompt(i, r)} for i, r in enumerate(rows)]
    return evaluate(model, tokenizer, asked, max_new_tokens=200)[0]["accuracy"]


@pytest.mark.slow
def test_the_student_is_weak_and_the_teacher_is_strong(toy):
    student, teacher, tokenizer = toy
    rows = load_benchmark("toy", "test", 300)
    weak, strong = (
        evaluate(m, tokenizer, rows, max_new_tokens=200)[0]["accuracy"] for m in (student, teacher)
    )
    assert 0.20 <= weak <= 0.50 and strong >= 0.88, (weak, strong)


@pytest.mark.slow
def test_right_hints_help_and_wrong_ones_do_not(toy):
    # Everything that uses privileged prompts depends on this. toy/README.md has the table with
    # intervals.
    student, _, tokenizer = toy
    rows = load_benchmark("toy", "test", 300)

    def shown(hint):
        return accuracy(student, tokenizer, rows, hint)

    none = shown(lambda i, r: r["problem"])
    full = shown(lambda i, r: privileged_prompt(r["problem"], r["solution"]))
    peer = shown(lambda i, r: privileged_prompt(r["problem"], r["peer"]))
    wrong = shown(lambda i, r: privileged_prompt(r["problem"], rows[i - 7]["solution"]))
    right = full > none + .15 and peer > none + .15
    assert right and wrong < none + .05, (none, full, peer, wrong)


def mean(values):
    return sum(values) / len(values)


@pytest.mark.slow
def test_the_reader_follows_a_hint_before_its_mistakes_and_not_behind_them():
    # The second gate of self-distillation. If a view lowers the right result behind a mistake, it
    # teaches false arithmetic there.
    tokenizer = load_tokenizer(str(ROOT / "toy/reader"))
    same_tokenizer(tokenizer, load_tokenizer(str(ROOT / "toy/student")))
    reader, student = (
        load_model(str(ROOT / "toy" / name), CPU, torch.float32, tokenizer)
        for name in ("reader", "student")
    )
    rows = load_benchmark("toy", "test", 200)

    def shown(hint):
        return accuracy(reader, tokenizer, rows, hint)

    none = shown(lambda i, r: r["problem"])
    full = shown(lambda i, r: privileged_prompt(r["problem"], r["solution"]))
    wrong = shown(lambda i, r: privileged_prompt(r["problem"], rows[i - 7]["solution"]))
    assert full > none + .3 and abs(wrong - none) < .12, (none, full, wrong)

    def results(model):
        """{place: (mean with nothing, mean with the whole solution)} of the right results."""
        kinds = "nothing", "whole solution"
        masses = build.hard_results(model, tokenizer, rows[:120], kinds)
        return {
            place: [mean(masses[kind][place]) for kind in kinds] for place in ("before", "after")
        }

    of_reader, of_student = results(reader), results(student)
    nothing, solution = of_reader["before"]
    assert solution > nothing + .2, of_reader
    nothing, solution = of_reader["after"]
    assert solution > nothing - .08, of_reader
    # the reader had to learn this: the student's result behind a mistake gets worse
    nothing, solution = of_student["after"]
    assert solution < nothing - .05, of_student


@pytest.mark.parametrize("text", [
    "a: starts with 60 coins. b: doubles the coins.", "a: finds 4 coins. b: loses 2 coins.",
    "a: starts with 5 coins. b: finds 10 # 4 coins.", "a: starts with 5 shells.", "a: starts with 5 coins. b: loses 9 coins.",
    "a: starts with 5 coins. b: halves the coins. c: finds 3 coins.",
])
def test_a_problem_that_leaves_the_rules_of_the_toy_is_refused(text):
    """Somebody's own problem in the toy's language. The checker has no truth about it, and says so."""
    style = next(iter(world.STYLES.values()))
    good = f"a: starts with 5 coins. b: finds 4 coins. How many coins at the end? {style}"
    assert world.parse(good).answer == 9
    with pytest.raises(ValueError):
        world.check(f"{text} How many coins at the end? {style}", "")


def test_a_model_has_its_name_only_when_it_is_complete(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        with build.moved_to(tmp_path / "student") as half:
            half.mkdir()
            raise KeyboardInterrupt
    assert not (tmp_path / "student").exists()
    for text in ("old", "new"):
        with build.moved_to(tmp_path / "student") as half:
            half.mkdir()
            (half / "x").write_text(text)
    assert (tmp_path / "student/x").read_text() == "new" and len(list(tmp_path.iterdir())) == 1
