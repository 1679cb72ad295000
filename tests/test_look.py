"""look.py: what it prints, its pages, and that no text of a stranger gets through."""
from types import SimpleNamespace

import pytest
import torch
from conftest import run_script

import look
import topd
from common import page
from common.show import paint

EVIL = "<img src=x onerror=alert(1)>\x1b[2J"
ARGS = SimpleNamespace(student="<s>", teacher="<t>", method="topd")


class EvilTokenizer:
    def decode(self, ids):
        return "</svg><script>\x1b[2J"


def look_at(method, *more, **options):
    done = run_script("look.py", method, "--device", "cpu", *more, **options)
    assert done.returncode == 0, done.stderr
    return done.stdout


def page_of(method, folder, *more):
    """The page that look.py writes. It has no script and loads nothing from outside."""
    path = folder / "page.html"
    assert look_at(method, *more, "--html", path) == f"wrote {path}\n"
    text = path.read_text()
    assert "<script" not in text and "http" not in text
    return text


# ------------------------------------------------------------------------ each method


def test_look_prints_and_writes_a_page(tmp_path):
    text = look_at("opd", "--n", 2, fresh=True)
    assert text.count("gold") == 2 and "\x1b[" not in text
    assert "\x1b[48;5;" in look_at("opd", "--n", 2, env={"FORCE_COLOR": "1"})
    assert page_of("opd", tmp_path, "--n", 2).count('class="rollout"') == 2


def test_look_topd_shows_both_futures(tmp_path):
    text = look_at("topd", "--n", 3)
    divergent = text.count("  (1) D ") + text.count("  (2) D ")
    assert divergent >= 3 and "(1)" in text and "_" in text
    assert text.count("      teacher ") >= divergent and text.count("drawn to ") > divergent
    assert "\x1b[4m" in look_at("topd", env={"FORCE_COLOR": "1"})
    text = page_of("topd", tmp_path, "--n", 3)
    assert text.count("<svg") == divergent and text.count("<line") > 5 * divergent
    assert 'class="candidate"' in text


def test_look_ar_opd_shows_the_views(tmp_path):
    text = look_at("ar_opd", "--n", 2)
    assert text.count("residual ") >= 4 and "partial 0." in text and "full 0." in text
    text = page_of("ar_opd", tmp_path, "--n", 2)
    assert text.count('class="rollout"') == 2 and text.count("residual") > 50


def test_look_hindsight_sd_shows_a_failure_above_its_peer(tmp_path):
    text = look_at("hindsight_sd", "--n", 2)
    assert text.count("\npeer: ") == text.count("\nfailed: ") == 2
    assert text.count(">>>") == 5  # once in the legend, then in both texts of each pair
    assert text.count("16 samples each") == 2 and text.count(": wrong") == 2
    text = page_of("hindsight_sd", tmp_path, "--n", 2)
    assert text.count('class="rollout"') == 4 and text.count("class=wrong") == 4
    assert text.count("with the answer alone") > 50


# ------------------------------------------------------------------------ texts of strangers


def point(**more):
    """A divergent point with windows of two tokens."""
    weights = torch.tensor([[0.9, 0.1], [0.1, 0.9]])
    windows = dict(teacher=[3, 4], student=[4, 3])
    return topd.Point(0, 0, 1.0, cost=None, distance=0.5, weights=weights, **windows, **more)


def evil_of_every_method():
    """(text for a terminal, page) of every method. Every text in them is a stranger's."""
    tokenizer, row = EvilTokenizer(), {"problem": EVIL, "solution": EVIL, "answer": EVIL}
    verdict = look.answer_verdict(row, f"\\boxed{{{EVIL}}}", True)
    token = {"text": EVIL, "kl": 1.5, "student": 0.1, "teacher": 0.2}
    token |= {"favourites": [(f'">{EVIL}', 0.3)], "residual": -1.5, "partial": 0.2, "full": 0.3}
    token |= {"credit": -1.5, "answer": 0.1}
    rollout = [look.Rollout(EVIL, [token], verdict, 0, [point()])]
    viewed = [look.Viewed(row, [token], verdict, {0})]
    failure = [look.Failure(row, [token], [EVIL], 0, verdict, "note")]
    return {
        "topd": (
            look.rollouts_as_text(rollout, tokenizer),
            look.rollouts_as_page(rollout, ARGS, tokenizer),
        ),
        "ar_opd": (look.views_as_text(viewed), look.views_as_page(viewed, ARGS)),
        "hindsight_sd": (look.credit_as_text(failure), look.credit_as_page(failure, ARGS)),
    }


@pytest.mark.parametrize("colours", [False, True])
def test_texts_of_strangers_are_harmless(colours, monkeypatch):
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.delenv("FORCE_COLOR", raising=False)
    monkeypatch.setattr(look, "colours_wanted", lambda: colours)
    for method, (text, written) in evil_of_every_method().items():
        assert "\x1b[2J" not in text and ("\x1b" in text) == colours, method
        for part in ("<img", "<script", "\x1b", "<s>", "<t>"):
            assert part not in written, (method, part)
    assert "\x1b[2J" not in paint(["\x1b[2J"], [0.0], 2.0)


def test_the_gold_of_a_stranger_is_harmless_in_the_terminal():
    verdict = look.answer_verdict({"answer": "5\x1b[2J"}, "\\boxed{6\x1b[2J}", False)
    assert "\x1b" not in verdict
    assert verdict == "answer 6\\x1b[2J, gold 5\\x1b[2J: wrong"


def test_windows_of_strangers_are_harmless():
    for draw in (look.windows_as_svg, look.windows_as_text):
        assert "\x1b" not in draw(1, point(), EvilTokenizer())
    assert "<script" not in look.windows_as_svg(1, point(), EvilTokenizer())


# ------------------------------------------------------------------------ the drawing


def test_columns_go_on_below_where_the_line_is_full():
    text = page.columns_as_text([("a", "bb"), ("ccc", "d"), ("e", "f")], width=16, indent=2)
    assert text == "  a   ccc  e\n  bb  d    f"
    text = page.columns_as_text([("a", "bb"), ("ccc", "d"), ("e", "f")], width=12, indent=2)
    assert text == "  a   ccc\n  bb  d\n  e\n  f"


def test_colours_grow_with_the_value_and_stop_at_the_top():
    assert page.signed(0.0) is None and page.shade(0.0) == ""
    assert page.signed(page.RED_FROM) == page.signed(100.0) != page.signed(1.0)
    assert page.shade(page.RED_FROM) == page.shade(100.0) == page.background(page.signed(-9.0))
    (red, green, _), (pale_red, pale_green, _) = page.signed(-2.0), page.signed(2.0)
    assert red > green and pale_green > pale_red
