"""look.py: what it prints, its pages, forks, and that no text of a stranger gets through. What a
page does in a browser: test_look_page.py."""
import copy
import re
from types import SimpleNamespace

import pytest
import torch
from conftest import ROOT, run_script

import look
import topd
from common import page, seen
from common.arguments import Mistake
from common.data import prompt_ids
from common.sampler import Completion
from common.show import paint

EVIL = "</script><img src=x onerror=alert(1)>\x1b[2J"
METHODS = ["opd", "topd", "ar_opd", "hindsight_sd", "grpo"]


def look_at(method, *more, **options):
    done = run_script("look.py", method, "--device", "cpu", *more, **options)
    assert done.returncode == 0, done.stderr
    return done.stdout


def page_of(method, folder, *more):
    """The page that look.py writes. It has one script of ours, and loads nothing from outside."""
    path = folder / "page.html"
    assert look_at(method, *more, "--html", path) == f"wrote {path}\n"
    text = path.read_text()
    assert text.count("<script") == 2 and "://" not in text and "default-src 'none'" in text
    return text


def panes(text, method):
    """The part of every rollout that one method shows."""
    return re.findall(rf'<section class="pane" data-method="{method}">(.*?)</section>', text, re.S)


# ------------------------------------------------------------------------ each method


def test_look_opd():
    text = look_at("opd", "--n", 2, fresh=True)
    assert text.count("gold") == 2 and "\x1b[" not in text and text.count("lie on words") == 2
    assert "\x1b[48;5;" in look_at("opd", "--n", 2, env={"FORCE_COLOR": "1"})


def test_look_topd_shows_both_futures():
    text = look_at("topd", "--n", 3)
    divergent = text.count("  (1) D ") + text.count("  (2) D ")
    assert divergent >= 3 and "(1)" in text and "_" in text
    labels = [text.count(f"      {name} ") for name in ("teacher ", "student ", "drawn to")]
    assert labels[0] == labels[1] == labels[2] > divergent      # wrapped windows keep them
    assert "\x1b[4m" in look_at("topd", env={"FORCE_COLOR": "1"})


def test_look_ar_opd_shows_the_views():
    text = look_at("ar_opd", "--n", 2)
    assert text.count("residual ") >= 10 and "partial 0." in text and "full 0." in text
    assert text.count("\nsolution: ") == 2


def test_look_hindsight_sd_shows_a_failure_above_its_peer():
    text = look_at("hindsight_sd", "--n", 2)
    assert text.count("\npeer (right): ") == text.count("\nfailed: ") == 2
    assert text.count(">>>") == 5  # once in the legend, then in both texts of each pair
    assert text.count("16 samples each") == 2 and text.count(": wrong") == 2


def test_look_grpo_shows_the_group_and_its_advantages():
    text = look_at("grpo", "--n", 2, "--samples", 6)
    assert text.count("of 6 rollouts of its group are right") == 2
    groups = re.findall(r"^    [> ] ([+-]\d\.\d\d) (right|wrong)  ", text, re.M)
    assert len(groups) == 12
    for group in (groups[:6], groups[6:]):
        assert sum(float(a) for a, _ in group) == pytest.approx(0, abs=0.06)
        assert all((float(a) > 0) == (said == "right") for a, said in group if float(a))


def test_a_page_shows_the_same_rollouts_as_all_methods_see_them(tmp_path):
    text = page_of("topd", tmp_path, "--n", 3)
    assert re.findall(r'type="radio" name="method" value="(\w+)"', text) == METHODS
    assert re.findall(r'value="(\w+)" checked', text) == ["topd"]
    texts = []
    for method in METHODS:
        parts = panes(text, method)
        assert len(parts) == 3
        rollouts = [re.search(r'<p class="rollout".*?</p>', part, re.S)[0] for part in parts]
        rollouts = [re.sub(r"<sup>.*?</sup>", "", rollout) for rollout in rollouts]
        texts.append([re.sub("<[^>]*>", "", rollout) for rollout in rollouts])
    assert all(t == texts[0] for t in texts) and min(map(len, texts[0])) > 20
    whole = {method: "".join(panes(text, method)) for method in METHODS}
    assert whole["topd"].count("<svg") >= 3 and whole["opd"].count("<svg") == 0
    assert whole["topd"].count("<line") > 15 and 'class="t hot marked' in whole["topd"]
    assert whole["ar_opd"].count("residual") > 50
    assert whole["hindsight_sd"].count("with the answer alone") > 50
    assert whole["grpo"].count("<li>") == 24 and whole["grpo"].count("(this one)") == 3
    assert len(re.findall('<a href="#r[123]">', text)) == 3


def test_a_page_of_hindsight_sd_shows_failures_and_their_peers(tmp_path):
    text = page_of("hindsight_sd", tmp_path, "--n", 2)
    shown = "".join(panes(text, "hindsight_sd"))
    assert shown.count('class="rollout"') == shown.count('class="beside"') == 2
    assert shown.count("framed") == 4 and shown.count("16 samples each") == 2
    assert text.count('<article class="wrong"') == 2


def test_a_method_says_what_a_row_lacks(tmp_path):
    data = tmp_path / "own.jsonl"
    problem = "a: begins with 8 shells. b: finds 9 shells. How many shells at the end? Answer briefly."
    data.write_text('{"problem": "%s", "answer": "17"}\n' % problem)
    text = page_of("opd", tmp_path, "--n", 1, "--samples", 1, "--data", data)
    assert "needs a worked solution to show, and this row has none" in panes(text, "ar_opd")[0]
    assert "has no peer" in panes(text, "hindsight_sd")[0]
    assert "compares the rollouts of a group" in panes(text, "grpo")[0]
    case = SimpleNamespace()
    nobody = SimpleNamespace(teacher=None)
    for see in (look.see_opd, look.see_topd):
        assert see(None, [case, case], nobody) == [look.NO_TEACHER] * 2


# ------------------------------------------------------------------------ forks


def fork(folder, method, old, new, name="mine.py"):
    """A copy of a method with one changed line."""
    source = (ROOT / f"{method}.py").read_text()
    assert source.count(old) == 1
    path = folder / name
    path.write_text(source.replace(old, new))
    return path


def test_a_fork_is_seen_with_its_own_loss(tmp_path):
    path = fork(tmp_path, "opd", "    return torch.where(off_policy, -written, loss)",
                "    return torch.where(off_policy, -written, 0 * loss + 0.75)")
    text = page_of(path, tmp_path, "--n", 1)
    assert re.findall(r'value="(\w+)" checked', text) == ["mine"]
    losses = re.findall(r"loss ([\d.]+) nats", panes(text, "mine")[0])
    assert set(losses) == {"0.75"} and len(losses) > 20
    assert len(set(re.findall(r"loss ([\d.]+) nats", panes(text, "opd")[0]))) > 10


def test_a_fork_of_every_method_is_recognised(tmp_path):
    for method in METHODS:
        name = f"fork_of_{method}"
        path = fork(tmp_path, method, f'parse(Args, __doc__, argv, "{method}")',
                    f'parse(Args, __doc__, argv, "{name}")', f"{name}.py")
        assert look.load_fork(str(path))[::2] == (name, method)
        assert f"\n    {method:<13} {', '.join(look.METHODS[method][2].split())}\n" in look.__doc__


def test_a_method_can_also_be_named_by_a_flag(tmp_path):
    assert look.parse(["--method", "topd"]) == look.parse(["topd"])
    assert look.parse(["--n", "1", "--method=topd"]) == look.parse(["topd", "--n", "1"])
    path = fork(tmp_path, "opd", 'argv, "opd"', 'argv, "named"', "named_by_a_flag.py")
    assert look.parse(["--method", str(path)]).method == "named_by_a_flag"
    for wrong in ([], ["opd", "--method", "topd"]):
        with pytest.raises(Mistake, match="--method"):
            look.parse(wrong)


def test_what_no_fork_can_be(tmp_path):
    (tmp_path / "empty.py").write_text("")
    (tmp_path / "opd.py").write_text("")
    for name, said in (("empty.py", "lacks what look.py calls"), ("opd.py", "There is another 'opd' already"),
                       ("nothing.py", "There is no file")):
        with pytest.raises(Mistake, match=said):
            look.main([str(tmp_path / name)])


# ------------------------------------------------------------------------ texts of strangers


def point(**more):
    """A divergent point with windows of two tokens."""
    weights = torch.tensor([[0.9, 0.1], [0.1, 0.9]])
    windows = dict(teacher=[3, 4], student=[4, 3])
    return topd.Point(0, 0, 1.0, cost=None, distance=0.5, weights=weights, **windows, **more)


def evil_rollouts():
    """{method: Rollouts}. Every text in them is a stranger's."""
    verdict = look.answer_verdict({"answer": EVIL}, f"\\boxed{{{EVIL}}}", True)
    windows = [EVIL, EVIL], [EVIL, EVIL]
    pictures = look.windows_as_text(1, point(), *windows), look.windows_as_svg(1, point(), *windows)
    lines = [(True, "+0.50 right", EVIL)]
    group = look.group_as_text(lines), look.group_as_html(lines)
    found = {}
    for name, more in (("topd", [pictures]), ("ar_opd", []), ("grpo", [group])):
        s = seen.Seen([1.5], [EVIL], {"student": [[(EVIL, 0.5, True)]]}, 0, {0}, {0: 1}, more=more)
        s.beside, s.said = [("solution", [EVIL], 0)], [verdict]
        found[name] = [seen.Rollout(EVIL, [EVIL], False, verdict, {name: s})]
    return found


@pytest.mark.parametrize("colours", [False, True])
def test_texts_of_strangers_are_harmless(colours, monkeypatch):
    monkeypatch.setattr(seen, "colours_wanted", lambda: colours)
    for method, rollouts in evil_rollouts().items():
        view = look.VIEWS[method]
        text = seen.as_text(view, method, rollouts)
        assert "\x1b[2J" not in text and ("\x1b" in text) == colours, method
        written = page.document("Rollouts of <s>", {method: view}, rollouts, method)
        for part in ("<img", "\x1b", "<s>"):
            assert part not in written, (method, part)
        assert written.count("<script") == written.count("</script") == 2
    assert "\x1b[2J" not in paint(["\x1b[2J"], [0.0], 2.0)


def test_the_gold_of_a_stranger_is_harmless_in_the_terminal():
    verdict = look.answer_verdict({"answer": "5\x1b[2J"}, "\\boxed{6\x1b[2J}", False)
    assert "\x1b" not in verdict
    assert verdict == "answer 6\\x1b[2J, gold 5\\x1b[2J: wrong"


def test_words_of_strangers_are_harmless_in_the_lists():
    class EvilTokenizer:
        def decode(self, ids):
            return EVIL

    logp = torch.tensor([[0.7, 0.2, 0.1]]).log()
    words, = seen.favourites(EvilTokenizer(), logp, [2], 2)
    assert [(round(p, 3), y) for _, p, y in words] == [(0.7, False), (0.2, False), (0.1, True)]
    s = seen.Seen([0.0], [""], {"student": [words]})
    written = page.as_json(page.lists(seen.Rollout("", [""], True, "", {"opd": s})))
    assert "<" not in written and "\x1b" not in written and "\\u003c/script>" in written


# ------------------------------------------------------------------------ the drawing


def test_columns_go_on_below_where_the_line_is_full_and_keep_their_names():
    columns = [("a", "bb"), ("ccc", "d"), ("e", "f")]
    text = seen.columns_as_text(("T", "S"), columns, width=17, indent=2)
    assert text == "  T  a   ccc  e\n  S  bb  d    f"
    text = seen.columns_as_text(("T", "S"), columns, width=15, indent=2)
    assert text == "  T  a   ccc\n  S  bb  d\n  T  e\n  S  f"


def test_colours_grow_with_the_value_and_stop_at_the_top():
    assert seen.signed(0.0) is None and seen.share(0.0) == 0.0
    assert seen.signed(seen.RED_FROM) == seen.signed(100.0) != seen.signed(1.0)
    assert seen.share(-100.0) == -1.0 < seen.share(-1.0) < 0 < seen.share(1.0) < 1.0
    (red, green, _), (pale_red, pale_green, _) = seen.signed(-2.0), seen.signed(2.0)
    assert red > green and pale_green > pale_red
    both, one = look.VIEWS["grpo"], look.VIEWS["opd"]
    looks = [page.look_of(view, x) for view, x in ((both, 9.0), (both, -9.0), (one, 1), (one, -9))]
    assert [re.search('class="t (.*?) "', text)[1] for text in looks] == ["good", "hot", "hot", ""]
    assert [re.search("--v:(.*)\"", text)[1] for text in looks] == ["1.00", "1.00", "0.50", "0.00"]


@pytest.mark.parametrize("name", ["look.css", "look.js"])
def test_no_line_is_longer_than_100_columns(name):
    lines = (ROOT / "common" / name).read_text("utf-8").splitlines()
    assert [i for i, line in enumerate(lines, 1) if len(line) > 100] == [] and len(lines) < 150


def test_a_text_in_opened_thinking_is_judged_as_the_scripts_judge_it(toy):
    """The template opens the thinking, and this text never closes it: see `opened`."""
    student, _, tokenizer = toy
    tokenizer = copy.deepcopy(tokenizer)
    row = {"problem": "p", "prompt": "p", "answer": "19"}
    ids = tokenizer("d: 14 + 5 = 19. The answer is \\boxed{19}.", add_special_tokens=False)["input_ids"]
    group = [Completion(ids, False, [])]

    def verdict():
        setting = look.Setting(student, None, tokenizer, None)
        return look.as_rollout(look.case_of(row, group, 0, setting), {}).right
    assert verdict()
    decode, asked = tokenizer.decode, prompt_ids(tokenizer, "1 + 1")
    tokenizer.decode = lambda ids, **more: "<think>" if ids == asked else decode(ids, **more)
    assert not verdict()
