"""The toy's language, checker, tokenizer and models."""
import json
import random
import re

import pytest
from conftest import ROOT

import evaluate
from toy import world

PROBLEM = ("h: starts with 14 coins. k: finds 7 # 4 coins. m: loses 8 stones. r: doubles the coins. t: loses 5 coins. "
           "How many coins at the end? Answer briefly.")
F = world.TABLE[7, 4]
A, B, C = 14 + F, 2 * (14 + F), 2 * (14 + F) - 5
RIGHT = f"k: 7 # 4 = {F}, 14 + {F} = {A}. r: {A} * 2 = {B}. t: {B} - 5 = {C}. The answer is \\boxed{{{C}}}."


def random_problems(count, seed=0, levels=(1, 8)):
    rng = random.Random(seed)
    for _ in range(count):
        yield world.make_problem(rng, rng.randint(*levels)), rng


def test_text_and_graph_are_the_same_thing():
    for problem, _ in random_problems(500):
        again = world.parse(problem.text)
        assert again.text == problem.text and again.answer == problem.answer and again.style == problem.style
        assert [(e.label, e.kind, e.numbers, e.value) for e in again.chain] == [(e.label, e.kind, e.numbers, e.value) for e in problem.chain]
        assert all(0 <= e.value <= world.LIMIT for e in problem.chain)


def test_every_solution_of_both_voices_is_right_and_has_no_fault():
    for problem, rng in random_problems(500):
        for voice in world.VOICES:
            report = world.check(problem.text, world.solve(problem, rng, voice))
            assert report.correct and not report.first_wrong and not report.premature
            assert len([s for s in report.steps if s.kind == "step"]) == len(problem.chain) - 1


def test_the_truth_is_computed_independently():
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
                amount = world.TABLE[int(words[1]), int(words[3])] if "#" in words else int(words[1])
                now += amount if words[0] in ("finds", "wins") else -amount
        assert now == problem.answer


@pytest.mark.parametrize("old,new,fault,right", [
    (f"14 + {F} = {A}", f"14 + {F} = {A + 1}", "slip", None),                           # arithmetic
    (f"7 # 4 = {F}", f"7 # 4 = {F % 6 + 1}", "slip", str(F)),                           # a fact
    (f"{A} * 2", f"{A} + 2", "operation", "*"),
    (f"{B} - 5", f"{B} - 8", "operand", "5"),                                           # another statement's number
    ("r: ", "m: ", "statement", "r"),                                                   # a statement about another thing
    (f"k: 7 # 4 = {F}, 14 + {F} = {A}. r: {A} * 2", "r: 14 * 2", "statement", "k"),     # one too early
    ("k: ", "z: ", "statement", "k"),                                                   # of another problem
    (f"boxed{{{C}}}", f"boxed{{{C + 10}}}", "value", None),
])
def test_first_wrong_step_is_found_where_it_is(old, new, fault, right):
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


def test_order_of_operands_and_early_facts_are_free():
    swapped = RIGHT.replace(f"14 + {F} =", f"{F} + 14 =").replace(f"{A} * 2", f"2 * {A}")
    early = f"k: 7 # 4 = {F}. k: 14 + {F} = {A}." + RIGHT.split(".", 1)[1]
    for text in (swapped, early, swapped.replace("=", "makes"), "So " + RIGHT.replace("r: ", f"then r: we have {A} coins, so ")):
        report = world.check(PROBLEM, text)
        assert report.correct and not report.first_wrong and not report.premature, text
    assert world.check(PROBLEM, RIGHT.replace(f"{B} - 5", f"5 - {B}")).first_wrong.fault == "operand"      # a difference is not


def test_premature_values_are_seen():
    assert world.check(PROBLEM, f"The answer is \\boxed{{{C}}}.").premature                 # the answer without a derivation
    jump = f"t: {B} - 5 = {C}. The answer is \\boxed{{{C}}}."                               # true, but from a value never derived
    report = world.check(PROBLEM, jump)
    assert report.correct and [s.label for s in report.premature] == ["t"]
    assert not world.check(PROBLEM, RIGHT).premature


def test_checker_survives_any_text():
    rng = random.Random(1)
    pieces = re.findall(r"\S+ ?", RIGHT) + ["\\boxed{", "}", ":", "#", "99999999999 ", "we have ", "\n"]
    for _ in range(2000):
        text = "".join(rng.choice(pieces) for _ in range(rng.randint(0, 40)))
        report = world.check(PROBLEM, text)
        assert report.correct == (report.answer == C)


def test_token_kinds_tell_words_from_substance():
    tokens = [(m.start(), m.end()) for m in re.finditer(r"\d|\w+|\S", RIGHT)]
    kinds = dict()
    for (s, e), kind in zip(tokens, world.token_kinds(RIGHT, tokens)):
        kinds.setdefault(kind, set()).add(RIGHT[s:e])
    assert kinds["label"] == {"k", "r", "t"}
    assert {"+", "*", "-", "#"} == kinds["operator"]
    assert {"The", "answer", "is", "=", ".", ","} <= kinds["surface"] and not any(any(c.isdigit() for c in t) for t in kinds["surface"])


def test_changing_a_surface_token_never_changes_the_verdict():
    # swap words for other words of the language that stand in the same place
    for problem, rng in random_problems(200, seed=5):
        text = world.solve(problem, rng, "student")
        for a, b in (("makes", "="), ("gives", "equals"), ("thus", "so"), ("Then", "Now"), ("So", "Next,")):
            assert world.check(problem, text.replace(f" {a} ", f" {b} ")).correct


def test_cut_keeps_whole_words_and_loses_the_answer():
    for problem, rng in random_problems(100):
        text = world.solve(problem, rng)
        half = world.cut(text, .5)
        assert text.startswith(half) and "boxed" not in half and 0 < len(half) < len(text)


def test_data_files_hold_what_they_promise():
    seen = set()
    for split, levels, least in (("train", {3, 4, 5}, 4000), ("test", {3, 4, 5}, 2000), ("heldout", {6, 7, 8}, 2000)):
        rows = [json.loads(line) for line in open(ROOT / f"toy/{split}.jsonl", encoding="utf-8")]
        assert len(rows) >= least and {r["level"] for r in rows} == levels and {r["style"] for r in rows} == {"terse", "verbose"}
        for r in rows[:300]:
            problem = world.parse(r["problem"])
            assert str(problem.answer) == r["answer"] and len(problem.chain) - 1 == r["level"]
            assert world.check(problem, r["solution"]).correct and world.check(problem, r["peer"]).correct
            assert evaluate.grade(r["solution"], r["answer"])
        texts = {r["problem"] for r in rows}
        assert len(texts) == len(rows) and not texts & seen         # no problem twice, none in two files
        seen |= texts


def test_tokenizer_is_lossless_and_knows_every_word(toy):
    _, _, tokenizer = toy
    for problem, rng in random_problems(300, seed=9):
        solution = world.solve(problem, rng, rng.choice(list(world.VOICES)))
        for text in (problem.text, solution, evaluate.privileged_prompt(problem.text, solution, str(problem.answer))):
            ids = tokenizer(text, add_special_tokens=False)["input_ids"]
            assert tokenizer.unk_token_id not in ids
            assert re.sub(r"\n ", "\n", tokenizer.decode(ids).strip()) == text
    ids = evaluate.prompt_ids(tokenizer, PROBLEM)
    assert tokenizer.decode(ids) == f"<|user|> {PROBLEM}<|end|><|assistant|>"


def test_solutions_have_the_promised_length(toy):
    _, _, tokenizer = toy
    rows = [json.loads(line) for line in open(ROOT / "toy/test.jsonl", encoding="utf-8")]
    lengths = [len(tokenizer(r["solution"])["input_ids"]) for r in rows]
    assert min(lengths) >= 25 and max(lengths) <= 200


def test_models_are_real_small_and_share_one_tokenizer(toy):
    student, teacher, tokenizer = toy
    import plumbing
    plumbing.same_tokenizer(tokenizer, plumbing.load_tokenizer(str(ROOT / "toy/teacher")))
    for model in (student, teacher):
        assert type(model).__name__ == "Qwen3ForCausalLM" and model.config.tie_word_embeddings
        assert 3e5 <= sum(p.numel() for p in model.parameters()) <= 2e6
    assert sum(f.stat().st_size for f in (ROOT / "toy").rglob("*") if f.is_file() and "__pycache__" not in f.parts) < 12 * 2**20


def test_student_is_weak_teacher_is_strong(toy):
    student, teacher, tokenizer = toy
    rows = evaluate.load_benchmark("toy", "test", 300)
    accuracy = [evaluate.evaluate(m, tokenizer, rows, max_new_tokens=200)[0]["accuracy"] for m in (student, teacher)]
    assert 0.20 <= accuracy[0] <= 0.50 and accuracy[1] >= 0.88, accuracy


def test_right_hints_help_and_wrong_ones_do_not(toy):
    # the gate of everything that will be built on privileged prompts; toy/README.md has the table with intervals
    student, _, tokenizer = toy
    rows = evaluate.load_benchmark("toy", "test", 300)
    def accuracy(prompt):
        asked = [{**r, "prompt": prompt(i, r)} for i, r in enumerate(rows)]
        return evaluate.evaluate(student, tokenizer, asked, max_new_tokens=200)[0]["accuracy"]
    none = accuracy(lambda i, r: r["problem"])
    full = accuracy(lambda i, r: evaluate.privileged_prompt(r["problem"], r["solution"]))
    peer = accuracy(lambda i, r: evaluate.privileged_prompt(r["problem"], r["peer"]))
    wrong = accuracy(lambda i, r: evaluate.privileged_prompt(r["problem"], rows[i - 7]["solution"]))
    assert full > none + .15 and peer > none + .15 and wrong < none + .05, (none, full, peer, wrong)


def test_the_reader_follows_a_hint_before_its_mistakes_and_not_behind_them():
    # the second gate of self-distillation: a view that lowers the right result behind a mistake teaches false arithmetic there
    import torch

    import plumbing
    from toy import build
    reader, tokenizer = plumbing.load_model(str(ROOT / "toy/reader"), torch.device("cpu"), torch.float32), plumbing.load_tokenizer(str(ROOT / "toy/reader"))
    plumbing.same_tokenizer(tokenizer, plumbing.load_tokenizer(str(ROOT / "toy/student")))
    rows = evaluate.load_benchmark("toy", "test", 200)

    def accuracy(prompt):
        asked = [{**r, "prompt": prompt(i, r)} for i, r in enumerate(rows)]
        return evaluate.evaluate(reader, tokenizer, asked, max_new_tokens=200)[0]["accuracy"]
    none, full = accuracy(lambda i, r: r["problem"]), accuracy(lambda i, r: evaluate.privileged_prompt(r["problem"], r["solution"]))
    wrong = accuracy(lambda i, r: evaluate.privileged_prompt(r["problem"], rows[i - 7]["solution"]))
    assert full > none + .3 and abs(wrong - none) < .12, (none, full, wrong)

    def mean(values):
        return sum(values) / len(values)
    found = build.hard_results(reader, tokenizer, rows[:120], ("nothing", "whole solution"))
    before, after = ({k: mean(found[k][place]) for k in ("nothing", "whole solution")} for place in ("before", "after"))
    assert before["whole solution"] > before["nothing"] + .2 and after["whole solution"] > after["nothing"] - .08, (before, after)
    student = build.hard_results(plumbing.load_model(str(ROOT / "toy/student"), torch.device("cpu"), torch.float32), tokenizer, rows[:120],
                                 ("nothing", "whole solution"))
    assert mean(student["whole solution"]["after"]) < mean(student["nothing"]["after"]) - .05       # what it had to learn
