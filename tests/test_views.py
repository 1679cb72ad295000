"""What each model is shown at the start of a run: texts that a person has read."""
import shutil
from types import SimpleNamespace

import pytest
import torch
from helpers import compute
from test_data import ROWS, hub  # noqa: F401

import ar_opd
import hindsight_sd
from common.data import load_benchmark, prompt_ids
from common.views import in_the_middle, print_views, say_margin, side_by_side


def shown(row, width, **views):
    lines = side_by_side(row, views, width)
    assert max(map(len, lines)) <= width
    return "\n".join(lines)


@pytest.fixture
def gsm8k(hub, monkeypatch):  # noqa: F811
    monkeypatch.chdir(hub)
    return load_benchmark("gsm8k", "train")[0]


AR_OPD = """\
shown    prompt  How many clips? Please reason step by st ... wer within \\boxed{}.
         gold    72
         plain                 | partial               | full
         -----                 | -------               | ----
         (the prompt)          | (the prompt)          | (the prompt)
                               | This is an example    | This is an example
                               | response:             | response:
                               | Natalia sold 48/2 =   | Natalia sold 48/2 =
                               | 24 clips in May.      | 24 clips in May.
                               | Natalia sold 48+24    | Natalia sold 48+24 =
                               | Now answer with your  | ...
                               | own response.         | The answer is
                               |                       | \\boxed{72}.
                               |                       | Now answer with your
                               |                       | own response."""


def test_ar_opd_on_gsm8k_as_a_person_has_read_it(gsm8k):
    """The partial view has no answer, the full one has the worked solution without the data set's
    calculator marks, and the gold is a number."""
    assert shown(gsm8k, 82, **ar_opd.views(gsm8k, ar_opd.Args())) == AR_OPD


HINDSIGHT = """\
shown    prompt  How many clips? Please reason step by st ... wer within \\boxed{}.
         gold    72
         student               | teacher with a peer   | teacher alone
         -------               | -------------------   | -------------
         (the prompt)          | (the prompt)          | (the prompt)
                               | This is an example    | The final answer is
                               | response:             | 72.
                               | a right rollout       | Now answer with your
                               | The final answer is   | own response.
                               | 72.                   |
                               | Now answer with your  |
                               | own response.         |"""


def test_hindsight_on_gsm8k_as_a_person_has_read_it(gsm8k):
    """The teacher that is told the answer was told the whole worked solution."""
    peer, alone = (hindsight_sd.context(gsm8k, peer, hindsight_sd.Args())
                   for peer in ("a right rollout", None))
    views = dict(student=gsm8k["prompt"], teacher_with_a_peer=peer, teacher_alone=alone)
    assert shown(gsm8k, 82, **views) == HINDSIGHT


@pytest.mark.parametrize("name", ROWS)
def test_no_view_of_an_answer_holds_more_than_the_gold(name, hub, monkeypatch):  # noqa: F811
    monkeypatch.chdir(hub)
    row = load_benchmark(name, "test")[0]
    told = hindsight_sd.context(row, None, hindsight_sd.Args())
    text = shown(row, 100, student=row["prompt"], teacher=told)
    assert "The final answer is" in text and "####" not in text and "<<" not in text
    assert f"gold    {row['answer']}" in text


def test_models_that_are_shown_the_same_are_named_together(gsm8k):
    prompt = gsm8k["prompt"]
    said = shown(gsm8k, 80, student=prompt, teacher=prompt).split("\n")
    assert said[-1] == "         student and teacher: the prompt and nothing else"
    assert len(said) == 3
    said = shown(gsm8k, 80, student=prompt, start=prompt, teacher=f"{prompt} 72", masked=None)
    assert "student, start" in said and "(nothing: it is" in said


def test_the_width_is_the_terminals_and_texts_from_strangers_do_no_harm(gsm8k, monkeypatch, capsys):
    from os import terminal_size
    row = {"prompt": "a\x1b[2J" + "long " * 50, "answer": "\x1b[31m5\r"}
    for width in (40, 80, 300):
        monkeypatch.setattr(shutil, "get_terminal_size", lambda w=width: terminal_size((w, 24)))
        views = dict(student=row["prompt"], teacher=row["prompt"] + "\n\nmore \x1b[2J " + "x" * 500)
        print_views(row, **views, other="nothing")
        out = capsys.readouterr().out
        assert "\x1b" not in out and "\r" not in out
        assert max(map(len, out.split("\n"))) <= min(width, 120)
    assert in_the_middle("abc  def", 8) == "abc def"
    assert in_the_middle("a" * 50 + "z" * 50, 20) == "a" * 10 + " ... " + "z" * 5


# ------------------------------------------------------------------------ what the teacher knows


def test_the_margin_is_the_difference_of_both_log_probabilities_of_worked_solutions(toy, capsys):
    student, teacher, tokenizer = toy
    rows = load_benchmark("toy", "train", 3)
    for row in rows:
        row["ids"] = prompt_ids(tokenizer, row["prompt"])
    # Chunks of 5 positions and micro-batches of one or two rows.
    args = SimpleNamespace(micro_tokens=200, chunk_logits=5 * student.vocabulary, max_new_tokens=60)
    run = SimpleNamespace(rows=rows, tokenizer=tokenizer, args=args,
                          compute=compute(args, student.vocabulary))
    say_margin(run, student, teacher)
    said = capsys.readouterr().out
    means = []
    for model in (student, teacher):
        logps = []
        for row in rows:
            solution = tokenizer(row["solution"], add_special_tokens=False)["input_ids"][:60]
            with torch.no_grad():
                logits = model(torch.tensor([row["ids"] + solution])).logits[0]  # [L, V]
            logp = logits[len(row["ids"]) - 1:-1].log_softmax(-1)
            logps += logp.gather(1, torch.tensor(solution)[:, None]).flatten().tolist()
        means.append(sum(logps) / len(logps))
    assert means[0] < means[1]
    assert f"3 worked solutions: student {means[0]:.3f}, teacher {means[1]:.3f}, so" in said
    assert f"is {means[1] - means[0]:.3f} nats ahead" in said
    run.rows = [{**row, "solution": ""} for row in rows]
    say_margin(run, student, teacher)
    assert capsys.readouterr().out == ""
