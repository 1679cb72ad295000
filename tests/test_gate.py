"""common/gate.py: what a self-teacher can do with each view. Against brute force and numbers made
by hand."""
import random
from types import SimpleNamespace

import pytest
import torch
from conftest import ROOT
from helpers import CPU
from test_diagnostics import FACT, PROBLEM
from test_hindsight_sd import settings

from common import gate
from common.data import prompt_ids
from common.models import load_model, no_autocast
from toy import world

# ----------------------------------------------------------------------------- what is said


def test_other_rows_have_another_answer_if_there_is_one():
    rows = [{"answer": a} for a in "xxyx"]
    assert gate.other_rows(rows) == [2, 2, 3, 2]
    # all answers are the same: at least it is another row
    others = gate.other_rows([{"answer": "x"}] * 3)
    assert all(o % 3 != i for i, o in enumerate(others))


def gate_of(**accuracies):
    """What `gate` returns, with these accuracies and intervals of 5 points on both sides."""
    return {
        name.replace("_", " "): {"accuracy": a, "interval": [a - .05, a + .05], "n": 40}
        for name, a in accuracies.items()
    }


@pytest.mark.parametrize("right, wrong, warned", [
    (.60, .20, []),
    (.34, .20, ["hardly better"]),                                # .29 is not above .30
    (.60, .59, ["taken from another problem, helps as much"]),        # within 2 points
    (.30, .30, ["hardly better", "taken from another problem, helps as much"]),
])
def test_a_closed_gate_is_said(capsys, right, wrong, warned):
    answered = gate_of(nothing=.30, peer_and_answer=right, wrong_peer=wrong)
    names = "nothing", "peer and answer", "wrong peer", "a successful peer"
    gate.say_gate(answered, *names)
    printed = capsys.readouterr().out
    assert "generating, shown nothing: 30.0" in printed and "(greedy, 40 training" in printed
    warnings = [line for line in printed.splitlines() if line.startswith("warning: ")]
    assert len(warnings) == len(warned)
    assert all(w in line and names[3] in line for w, line in zip(warned, warnings))


def test_a_gate_without_two_solved_questions_says_that_there_is_hardly_a_peer(capsys):
    gate.say_gate({}, "", "", "", "")
    assert "hardly be a peer" in capsys.readouterr().out


# ----------------------------------------------------------------------------- peers


def test_the_wrong_peer_of_the_gate_answers_another_question():
    rows = [{"prompt": f"Q{i}.", "answer": f"A{i}"} for i in range(3)]
    users = gate.users_by_context(rows, ["P0", "P1", "P2"])
    assert list(users) == ["nothing", "answer", "peer", "peer and answer", "wrong peer"]
    for i in range(3):
        shown = {
            name: {w for w in ("A0", "A1", "A2", "P0", "P1", "P2") if w in turns[i]}
            for name, turns in users.items()
        }
        other = (i + 1) % 3
        assert all(turns[i].startswith(f"Q{i}.") for turns in users.values())
        assert shown["nothing"] == set() and users["nothing"][i] == f"Q{i}."
        assert shown["answer"] == {f"A{i}"} and shown["peer"] == {f"P{i}"}
        assert shown["peer and answer"] == {f"A{i}", f"P{i}"}
        assert shown["wrong peer"] == {f"A{other}", f"P{other}"}


def keep(name, monkeypatch):
    """A dictionary that will hold what this function of the gate returns. The function does its
    work as always: peer_gate only prints these numbers."""
    results, function = {}, getattr(gate, name)

    def called(*arguments):
        results.update(function(*arguments))
        return results

    monkeypatch.setattr(gate, name, called)
    return results


@pytest.mark.slow
def test_the_gate_of_the_shipped_reader_is_open(toy, capsys, monkeypatch):
    tokenizer = toy[2]
    reader = load_model(str(ROOT / "toy/reader"), CPU, torch.float32, tokenizer)
    rows = [world.make_row(random.Random(i), 3) for i in range(40)]
    for r in rows:
        r.update(prompt=r["problem"], ids=prompt_ids(tokenizer, r["problem"]))
    args = settings(samples=6, max_new_tokens=160, eval_n=500)
    run = SimpleNamespace(
        args=args, rows=rows, tokenizer=tokenizer, autocast=no_autocast, check=world.check
    )
    answered, masses = keep("gate", monkeypatch), keep("masses_at_mistakes", monkeypatch)
    accuracies = gate.peer_gate(run, reader)
    assert list(answered) == ["nothing", "answer", "peer", "peer and answer", "wrong peer"]
    assert answered["nothing"]["n"] >= 8
    assert accuracies == {k: [v["accuracy"], *v["interval"]] for k, v in answered.items()}
    assert accuracies["peer and answer"][0] > accuracies["nothing"][0] + .2
    assert masses.keys() == answered.keys() and len({len(v) for v in masses.values()}) == 1
    assert len(masses["nothing"]) > 10
    mean = {k: sum(v) / len(v) for k, v in masses.items()}
    assert mean["peer and answer"] > mean["nothing"] + .1 > mean["wrong peer"]
    printed = capsys.readouterr().out
    assert "warning" not in printed and "generating, shown nothing: " in printed
    assert f"shown nothing: {mean['nothing']:.2f}, answer: {mean['answer']:.2f}, " in printed


def test_a_gate_without_a_solved_question_says_so(toy, capsys):
    student, _, tokenizer = toy
    row = world.make_row(random.Random(0), 3)
    row.update(prompt=row["problem"], ids=prompt_ids(tokenizer, row["problem"]), answer="none")
    args = settings(samples=2, max_new_tokens=8, eval_n=500)
    run = SimpleNamespace(
        args=args, rows=[row] * 2, tokenizer=tokenizer, autocast=no_autocast, check=world.check
    )
    assert gate.peer_gate(run, student) == {}
    assert "hardly be a peer" in capsys.readouterr().out


# ----------------------------------------------------------------------------- mistakes


def test_first_mistakes_name_the_token_that_would_be_right(toy):
    _, teacher, tokenizer = toy

    def encoded(text):
        return tokenizer(text, add_special_tokens=False)["input_ids"]

    wrong = f"k: 7 # 4 = {FACT}, 14 + {FACT} = {15 + FACT}."
    ids, good = encoded(wrong), encoded(wrong.replace(str(15 + FACT), str(14 + FACT)))
    row, check = {"problem": PROBLEM}, world.check
    [(k, at, right)] = gate.first_mistakes(tokenizer, [row], [ids], check)
    assert k == 0 and ids[:at] == good[:at] and right == good[at] != ids[at]
    # the first response has no mistake, and the second problem is not the toy's
    rows = [row, {"problem": "What is 2 + 2?"}]
    assert gate.first_mistakes(tokenizer, rows, [good, ids], check) == []
    [p] = gate.mass(teacher, [(prompt_ids(tokenizer, PROBLEM) + good[:at], right)])
    assert p > .9  # the teacher knows it


def test_masses_at_mistakes_are_those_of_the_right_token_in_each_view(toy, capsys):
    _, teacher, tokenizer = toy
    run = SimpleNamespace(tokenizer=tokenizer, check=world.check)
    # 15 instead of 14: an operand is wrong, and the right one stands only in the prompt
    wrong = f"k: 7 # 4 = {FACT}, 15 + {FACT} = {15 + FACT}."
    ids = tokenizer(wrong, add_special_tokens=False)["input_ids"]
    row = {"problem": PROBLEM}
    [(_, at, right)] = gate.first_mistakes(tokenizer, [row], [ids], world.check)
    # the failed rollout belongs to the second question of the gate
    other = PROBLEM.replace("14", "15")
    users = {"nothing": [other, PROBLEM], "other": [PROBLEM, other]}
    masses = gate.masses_at_mistakes(run, teacher, [(1, row, ids)], users)
    for name, user in (("nothing", PROBLEM), ("other", other)):
        case = prompt_ids(tokenizer, user) + ids[:at], right
        assert masses[name] == gate.mass(teacher, [case])
    assert masses["nothing"][0] > .9 > .5 > masses["other"][0]
    assert "(1 failed rollouts)" in capsys.readouterr().out
    # at most so many mistakes; without any failed rollout nothing is printed
    cases = [(1, row, ids)] * 3
    assert len(gate.masses_at_mistakes(run, teacher, cases, users, most=2)["other"]) == 2
    capsys.readouterr()
    nothing = {"nothing": [], "other": []}
    assert gate.masses_at_mistakes(run, teacher, [], users) == nothing
    run.check = None  # only the toy knows where a mistake is
    assert gate.masses_at_mistakes(run, teacher, cases, users) == {}
    assert capsys.readouterr().out == ""
