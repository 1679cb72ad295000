"""What a run prints and draws: harmless, complete, and without colours where none can be shown."""
import io
import math
import sys
from types import SimpleNamespace

import pytest
import torch
from conftest import tiny_qwen3

from common import show
from common.arguments import Mistake
from common.models import load_tokenizer
from common.size import human

EVIL = "\x1b[2J\x07\rhidden"
SUMMARY = {"accuracy": .5, "interval": [.401, .599], "n": 100}
ROWS = [
    {"step": 0, "eval": {**SUMMARY, "accuracy": .25}, "teacher_accuracy": .9},
    {"step": 1, "loss": .5, "kl": .25, "reward": .5, "tokens": 300, "seconds": {"total": 1.0}},
    {"step": 2, "seconds": {"total": 1.0}},                         # skipped: it took time, too
    {"step": 3, "loss": .5, "kl": None, "reward": .5, "tokens": 300, "seconds": {"total": 1.0}},
    {"step": 3, "eval": SUMMARY},
]


class Tokenizer:
    """Tokens that try to clear the screen."""

    def __len__(self):
        return 50

    def get_vocab(self):
        return {str(i): i for i in range(50)}

    name_or_path, chat_template = "tiny", "{{ messages }}"

    def get_chat_template(self):
        return self.chat_template

    def apply_chat_template(self, messages, **more):
        return {"input_ids": [1, 2]}

    def decode(self, ids):
        return EVIL


def a_run(**more):
    args = SimpleNamespace(
        student="tiny", data="toy", benchmark="toy", steps=3, prompts=2, samples=4, seed=0,
        max_new_tokens=20, micro_tokens=1000, chunk_logits=2000, adam_bits=32, out="runs/x",
        sampler="own", vllm_memory=.3, eval_n=5, gradient_checkpointing=None, **more,
    )
    return SimpleNamespace(
        args=args, student=tiny_qwen3(), rows=[{"ids": [1] * n, "prompt": "p"} for n in range(1, 11)],
        tokenizer=Tokenizer(), dtype=torch.float32, device=torch.device("cpu"),
        out="runs/x", metrics=SimpleNamespace(rows=ROWS),
    )


def test_texts_of_strangers_cannot_steer_the_terminal(capsys, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert show.paint([EVIL], [0.0], 2.0) == "\\x1b[2J\\x07\\x0dhidden"
    bar = SimpleNamespace(write=print)
    show.show_rollout(bar, 3, Tokenizer(), [7, 8], torch.tensor([0.0, 5.0]))
    coloured = capsys.readouterr().out
    assert "\x1b[48;5;196m" in coloured and "\x1b[2J" not in coloured and "\x07" not in coloured
    monkeypatch.setenv("NO_COLOR", "1")
    show.show_rollout(bar, 3, Tokenizer(), [7, 8], torch.tensor([0.0, 5.0]))
    show.announce("opd.py", a_run())
    plain = capsys.readouterr().out
    assert "\x1b" not in plain and "\x07" not in plain and "\r" not in plain
    assert plain.count("hidden]") == 1          # the token with 5 nats stands in brackets


def test_colours_only_on_a_terminal(monkeypatch):
    for name in ("NO_COLOR", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(sys, "stdout", io.StringIO())
    assert not show.colours_wanted()
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert show.colours_wanted()
    monkeypatch.setenv("NO_COLOR", "1")         # the stronger wish
    assert not show.colours_wanted()


def test_backgrounds_go_from_none_to_red():
    shades = [show.paint(["x"], [v], 2.0) for v in (-1.0, 0.0, .3, 1.0, 2.0, 50.0)]
    assert shades[:2] == ["x", "x"] and "230" in shades[2] and "216" in shades[3]
    assert shades[4] == shades[5] == "\x1b[48;5;196m\x1b[38;5;16mx\x1b[0m"


def test_one_is_no_plural():
    assert [show.counted(n, "update") for n in (0, 1, 2)] == ["0 updates", "1 update", "2 updates"]


def test_percent_has_its_interval():
    assert show.percent(SUMMARY) == "50.0 % [40.1, 59.9]"


def test_announce_says_who_learns_what_where_with_how_much_memory(capsys):
    run, teacher = a_run(teacher="larger"), tiny_qwen3(width=48)
    show.announce("opd.py", run, teacher, more=[tiny_qwen3()])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "opd.py: student tiny  qwen3, 20,256 parameters, 2 layers x 32"
    assert lines[1].startswith("        teacher larger  qwen3, ") and "2 layers x 48" in lines[1]
    assert lines[2].startswith("data     toy: 10 problems; 3 updates x 2 prompts x 4 rollouts")
    assert lines[3].startswith("device   cpu, float32; folder runs/x")
    assert lines[4].startswith("memory   student weights 79.1 KiB, AdamW moments 158.2 KiB")
    assert "other weights 79.1 KiB" in lines[4] and "vLLM" not in lines[4]
    assert human(run.predicted_memory) in lines[5] and "Python and libraries" in lines[5]
    assert lines[6].startswith("a prompt ") and len(lines) == 7


def test_the_teacher_can_be_the_student_itself_or_missing(capsys):
    show.announce("ar_opd.py", a_run(teacher="current"))
    assert "teacher current  the student itself" in capsys.readouterr().out
    show.announce("grpo.py", a_run())
    assert "teacher" not in capsys.readouterr().out


def test_a_head_that_is_too_narrow_is_refused_before_the_run():
    run = a_run()
    run.tokenizer = load_tokenizer("toy/student")
    run.student = tiny_qwen3(vocabulary=20)
    run.student.vocabulary = 136
    with pytest.raises(Mistake, match="head of 'tiny' only 20 rows"):
        show.announce("opd.py", run)


def test_a_small_gap_is_a_warning(capsys):
    show.warn_small_gap(.5, .9)
    assert capsys.readouterr().out == ""
    show.warn_small_gap(.5, .52)
    assert "hardly better than the student" in capsys.readouterr().out


def test_the_end_of_a_run(capsys):
    run = a_run()
    run.predicted_memory = 3 * 2**20
    show.conclude(run, "python mine.py")
    said = capsys.readouterr().out
    assert "before:  25.0 % [40.1, 59.9]   after 3 updates:  50.0 % [40.1, 59.9]" in said
    assert "100 problems of toy; teacher 90.0 %)" in said
    assert "3 s of training, 200 tokens/s; memory: predicted about 3.0 MiB, measured" in said
    assert "runs/x/curve.png" in said and "runs/x/metrics.jsonl" in said and "runs/x/final" in said
    assert "make runs of `python mine.py`" in said and "evaluate.py --compare runs/x FOLDER" in said


@pytest.mark.parametrize("key", ("kl", "reward"))
def test_the_curve_is_written_whole_with_whole_updates(key, tmp_path, monkeypatch):
    plt, ticks = show.pyplot(), []
    real = plt.close
    monkeypatch.setattr(plt, "close", lambda figure: ticks.extend(
        t for axis in figure.axes for t in axis.get_xticks()) or real(figure))
    show.draw_curve(ROWS, tmp_path / "curve.png", "a title", "what it is", key)
    assert (tmp_path / "curve.png").read_bytes()[1:4] == b"PNG"
    assert [f.name for f in tmp_path.iterdir()] == ["curve.png"]
    assert ticks and all(t == round(t) for t in ticks)


def measured(monkeypatch):
    """The boxes of every figure when it is closed: [(its legend, its axes, itself)]."""
    plt, boxes = show.pyplot(), []
    real = plt.close

    def measure(figure):
        figure.canvas.draw()
        parts = figure.legends[0], *figure.axes, figure
        boxes.append([x.get_window_extent() for x in parts])
        real(figure)
    monkeypatch.setattr(plt, "close", measure)
    return boxes


def test_the_legend_of_a_curve_covers_no_curve(tmp_path, monkeypatch):
    boxes = measured(monkeypatch)
    show.draw_curve(ROWS, tmp_path / "curve.png", "a title", "what")
    (legend, left, right, figure), = boxes
    assert not legend.overlaps(left) and not legend.overlaps(right)
    assert figure.x0 <= legend.x0 and legend.x1 <= figure.x1 and figure.y0 <= legend.y0
    assert left.height > 150 and right.height > 150


def test_a_picture_that_is_open_in_a_viewer_of_windows_does_not_end_a_run(
        tmp_path, monkeypatch, capsys):
    def refused(*_):
        raise PermissionError
    monkeypatch.setattr(show, "replace", refused)
    (tmp_path / "curve.png").write_text("old")
    show.draw_curve(ROWS, tmp_path / "curve.png", "a title", "what")
    assert (tmp_path / "curve.png").read_text() == "old"
    assert (tmp_path / "curve.tmp.png").read_bytes()[1:4] == b"PNG"
    assert "curve.png' is open in another program; the new picture is" in capsys.readouterr().out


def test_a_curve_before_the_first_update_and_of_a_second_process(tmp_path, monkeypatch):
    show.draw_curve(ROWS[:1], tmp_path / "first.png", "a title", "what")
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    show.draw_curve(ROWS, tmp_path / "second.png", "a title", "what")
    assert [f.name for f in tmp_path.iterdir()] == ["first.png"]


def test_arms_with_several_seeds_and_unequal_lengths(tmp_path):
    arms = {"one": [[(0, .1), (20, .5)], [(0, .2), (20, .4), (40, .6)]], "other": [[(0, .1)]]}
    show.draw_arms(arms, tmp_path / "new" / "arms.png")
    assert (tmp_path / "new" / "arms.png").stat().st_size > 1000


@pytest.mark.parametrize("names", [
    ["opd.py", "topd.py"],
    [f"topd.py window_size={n} lam=0.1 candidate_share=0.05 embedding=static rho={n / 7}"
     for n in range(12)],
])
def test_the_legend_of_arms_covers_no_curve(tmp_path, monkeypatch, names):
    boxes = measured(monkeypatch)
    # Curves that fill the whole plot: a legend inside could only lie on one of them.
    arms = {name: [[(0, .05 * i), (20, 1 - .05 * i)]] for i, name in enumerate(names)}
    show.draw_arms(arms, tmp_path / "arms.png")
    (legend, axis, figure), = boxes
    assert not legend.overlaps(axis)
    assert figure.x0 <= legend.x0 and legend.x1 <= figure.x1 and figure.y0 <= legend.y0
    assert axis.height > 200                            # there is still a plot to be seen


def test_the_bar_is_hidden_where_it_should_be(monkeypatch, capsys):
    with show.progress(3, "opd", "update", show=True) as bar:
        bar.update()
    assert "opd" in capsys.readouterr().err
    with show.progress(3, "opd", "update", show=False) as bar:
        bar.update()
    monkeypatch.setenv("RANK", "1")             # of several processes only the first one talks
    with show.progress(3, "opd", "update", show=True) as bar:
        bar.update()
    assert capsys.readouterr().err == ""


def test_a_loss_that_is_not_finite_has_the_strongest_colour():
    paint = show.paint
    red = paint(["a"], [9.0], 2.0)
    assert paint(["a"], [math.nan], 2.0) == paint(["a"], [math.inf], 2.0) == red != paint(["a"], [0.0], 2.0)
