"""docs/ and FORKING.md: the pages are those that the files make, their links lead somewhere, their
line numbers are right, every equation has a line and a test; and the worked example runs."""
import html.parser
import importlib.util
import json
import math
import re
import shutil
import sys

import pytest
import torch
from conftest import ROOT

sys.path.insert(0, str(ROOT / "benchmarks"))
import lab
import lab_arms
import lab_report

import opd
from common.arguments import Mistake
from common.compare import compare
from common.files import read_json, read_jsonl
from common.flags import parse
from docs import pages
from docs.annotate import Source, cited, cited_notes, equations, notes

METHODS = pages.METHODS
HTML = [*METHODS, "index", "equations"]


class Page(html.parser.HTMLParser):
    """What a browser finds in a page: ids, links, its text, and the text of every line of code."""

    def __init__(self, path):
        super().__init__()
        self.ids, self.links, self.text, self.code, self.line = [], [], [], {}, None
        self.feed(path.read_text())

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.ids += [attributes["id"]] if "id" in attributes else []
        self.links += [attributes["href"]] if tag == "a" else []
        if attributes.get("class") == "l":
            self.line = attributes["id"]
            self.code[self.line] = ""

    def handle_data(self, data):
        self.text.append(data)
        if self.line:
            self.code[self.line] += data
            self.line = None if data.endswith("\n") else self.line


# ------------------------------------------------------------------------ up to date


@pytest.fixture(scope="module")
def made():
    return pages.files()


@pytest.mark.parametrize("name", [*(f"{n}.html" for n in HTML), "equations.md"])
def test_a_page_is_what_the_files_make_of_it(made, name):
    path = ROOT / "docs" / name
    # The lines alone: a difference of two whole pages says nothing to anybody.
    committed, wanted = path.read_text().splitlines(), made[path].splitlines()
    differ = [i for i, (a, b) in enumerate(zip(committed, wanted), 1) if a != b]
    differ += [min(len(committed), len(wanted))] * (len(committed) != len(wanted))
    assert not differ, (
        f"docs/{name} is not what the files make of it any more (from line {differ[0]} on); run "
        "`python docs/build.py` and commit docs/."
    )


# ------------------------------------------------------------------------ equations


@pytest.mark.parametrize("name", METHODS)
def test_every_equation_has_a_line_and_a_test(name):
    method, tests = Source(ROOT / f"{name}.py"), Source(ROOT / "tests" / f"test_{name}.py")
    numbers, lines, checks = list(method.equations), method.computed, tests.tests
    assert len(numbers) >= 3 and numbers == list(range(1, len(numbers) + 1))
    assert not set(lines) - set(numbers) and not set(checks) - set(numbers)
    without_line = [n for n in numbers if not lines.get(n)]
    assert not without_line, (
        f"no line of {name}.py says that it computes {without_line}; write the number, as in "
        '"# (7)", at the line that does.'
    )
    without_test = [n for n in numbers if not checks.get(n)]
    assert not without_test, (
        f"no test of tests/test_{name}.py says that it checks {without_test}; write the number, as "
        'in "# (7)", into the comment of the test that does.'
    )
    # A line that computes is code, and not the comment that says so.
    assert all(method.lines[i].strip()[0] not in '#"' for found in lines.values() for i in found)
    table = (ROOT / "docs/equations.md").read_text()
    assert all(f"### {name} ({n})\n" in table for n in numbers)
    # The page for the browser: the same lines and tests, as links into the page of the method.
    page = Page(ROOT / "docs/equations.html")
    assert [i for i in page.ids if i.startswith(f"{name}-")] == [f"{name}-{n}" for n in numbers]
    to = [f"{name}.html#L{i}" for n in numbers for i in lines[n]]
    to += [f"{name}.html#{t.name}" for n in numbers for t in checks[n]]
    assert set(to) <= set(page.links)


def test_all_notes_of_the_methods_are_found_and_claims_names_none_that_is_not_there():
    methods = {name: Source(ROOT / f"{name}.py") for name in METHODS}
    for name, method in methods.items():
        # In the docstring a note is a number with a full stop behind it. All of them, one by one:
        written = [int(n) for n in re.findall(r"(?<=  )(\d+)\. (?=\S)", method.head)]
        assert list(method.notes) == written == list(range(1, len(written) + 1)), name
        assert all(len(note.text) > 5 for note in method.notes.values())
    assert {note.tag for note in methods["ar_opd"].notes.values()} == {"paper", "code", "ours"}
    assert methods["topd"].notes[14].tag == "ours" and methods["topd"].notes[5].tag == "paper"
    claims = pages.read_claims()
    for (name, equation, *column), said in claims.items():
        assert equation == "all" or int(equation) in methods[name].equations
        if column:
            assert column[0] in ("paper", "code")
        else:
            assert {int(n) for n in said.split(",")} <= set(methods[name].notes)
    # A note that is added later has a place at an equation, or it is one of those about the whole.
    about_all = {"opd": [10, 11], "topd": [19], "ar_opd": [12], "hindsight_sd": [11], "grpo": []}
    for name, method in methods.items():
        placed = {k for n in method.equations for k in pages.about_equation(method, n, claims)}
        assert sorted(set(method.notes) - placed) == about_all[name], name


# ------------------------------------------------------------------------ pages


@pytest.mark.parametrize("name", METHODS)
def test_line_numbers_match_and_nothing_of_the_file_is_lost(name):
    page, method = Page(ROOT / "docs" / f"{name}.html"), Source(ROOT / f"{name}.py")
    tests = Source(ROOT / "tests" / f"test_{name}.py")
    shown = {i: text for i, text in page.code.items()}
    assert len([i for i in shown if i[0] == "L"]) > 100 and any(i[0] == "T" for i in shown)
    for i, text in shown.items():
        number, source = int(i[1:]), method if i[0] == "L" else tests
        assert text == f"{number}{source.lines[number]}\n"
    # What is not code is prose: every word of it stands on the page.
    words = {w for text in page.text for w in re.findall(r"\w+", text)}
    assert set(re.findall(r"\w+", method.text)) - words - {"docstring"} == set()


@pytest.mark.parametrize("name", METHODS)
def test_wherever_an_equation_is_cited_it_stands_beside(name):
    method = Source(ROOT / f"{name}.py")
    checks = Source(ROOT / "tests" / f"test_{name}.py").tests
    seen = set()
    for chunk in method.chunks():
        row = pages.row(chunk, method, method, checks)
        left, right = row.split('<pre class="code">')
        mentions = cited("\n".join(chunk.prose + chunk.comments))
        for n in mentions:
            assert f'class="number">({n})</a>' in left
            assert pages.escape(method.equations[n].formula[0]) in left
        assert left.count('class="eq"') == len(mentions)
        seen.update(mentions)
    assert seen == set(method.equations)


def anchors():
    return {f"{n}.html": set(Page(ROOT / "docs" / f"{n}.html").ids) for n in HTML}


def test_links_resolve():
    there, followed = anchors(), 0
    for name in HTML:
        page = Page(ROOT / "docs" / f"{name}.html")
        assert len(page.ids) == len(set(page.ids))
        for to in page.links:
            if to.startswith("https://arxiv.org/abs/"):
                continue
            file, _, anchor = to.partition("#")
            file = file or f"{name}.html"
            if file == "playground.html":  # is built by itself
                continue
            assert (ROOT / "docs" / file).exists(), to
            assert not anchor or anchor in there[file], to
            followed += 1
    assert followed > 1000
    markdown = (ROOT / "docs/equations.md").read_text()
    links = re.findall(r"\[[^]]+\]\(([^)#]+)(?:#L(\d+))?\)", markdown)
    assert len(links) > 80
    for file, line in links:
        text = (ROOT / "docs" / file).read_text().splitlines()
        assert not line or text[int(line) - 1].strip(), (file, line)
    for file in re.findall(r"\]\(([^)]+)\)", (ROOT / "FORKING.md").read_text()):
        assert (ROOT / file).exists(), file


def test_the_page_of_the_equations_says_what_the_table_in_markdown_says():
    """Row by row, and the index leads to the page: a browser shows no links in Markdown."""
    table = (ROOT / "docs/equations.md").read_text()
    rows = re.findall(r"^\| (\w[^|]*) \| (.+) \|$", table, re.M)
    page = (ROOT / "docs/equations.html").read_text()
    shown = re.findall(r'<tr><th scope="row">(.+?)</th><td>(.+?)</td></tr>', page)
    assert len(rows) == len(shown) > 100
    for (name, said), (label, text) in zip(rows, shown):
        assert name == label
        # Without what only Markdown needs, and without the tag and number of a note.
        plain = re.sub(r"\[([^]]+)\]\([^)]+\)|\(\w+, note \d+\)|`|\\(?=\|)|<br>", r"\1", said)
        text = html.unescape(re.sub(r"<b .*?</b> note <a.*?</a>: |<[^>]+>", "", text))
        assert re.sub(r"\W", "", text) == re.sub(r"\W", "", plain)
    assert "equations.html" in Page(ROOT / "docs/index.html").links


def test_the_table_says_where_released_code_was_not_compared():
    """"-" would leave open whether there is no code, or whether nobody has looked."""
    table = (ROOT / "docs/equations.md").read_text()
    column = re.findall(r"^\| released code does \| (.+) \|$", table, re.M)
    assert len(column) == sum(len(Source(ROOT / f"{m}.py").equations) for m in METHODS)
    assert "-" not in column and column.count("not compared") == 3
    assert column[1].startswith("`DistillationTrainer` of TRL")


def test_what_the_index_says_is_true_on_a_narrow_screen_too():
    text = " ".join(Page(ROOT / "docs/index.html").text)
    assert "on the left" not in text and "on the right" not in text


def test_a_link_to_a_test_leads_to_its_first_line():
    table = (ROOT / "docs/equations.md").read_text()
    links = re.findall(r"\[(test_\w+)\]\(\.\./tests/(\w+\.py)#L(\d+)\)", table)
    assert len(links) > 40
    for name, file, line in links:
        text = (ROOT / "tests" / file).read_text().splitlines()
        assert text[int(line) - 1].startswith(f"def {name}(")


# ------------------------------------------------------------------------ reading a file

HEAD = """A method.

    x = y + 1                         what x is           (1)
    A:   z = 2
           (beside it)
    B:   z = 3                                            (2)

[paper] stated, [ours] chosen:
  [paper]     1. (1) to (2); no 2. here.  2. a second
              one.  3. three
  [ours]      4. of note 1 and more.

Run it:
    python x.py  1. not a note
"""


def test_how_equations_and_notes_are_read():
    found = equations(HEAD)
    assert found[1].formula == ["x = y + 1"] and found[1].gloss == "what x is"
    assert found[2].formula == ["A: z = 2", "    (beside it)", "B: z = 3"]
    assert found[2].gloss == "" and list(found) == [1, 2]
    assert [(n.tag, n.text) for n in notes(HEAD).values()] == [
        ("paper", "(1) to (2); no 2. here."), ("paper", "a second one."), ("paper", "three"),
        ("ours", "of note 1 and more."),
    ]
    assert cited("(3), (1) to (4), f(x), (123)") == [3, 1, 2, 4]
    assert cited_notes("note 3, notes 7 and 18, footnote 9") == [3, 7, 18]


METHOD = '''"""Head."""
import os  # (1) at the start


def f(x):
    """(2) and (3): both.

        a picture
    """
    # (4): the next line
    # goes on
    y = f"{x} (5)"  # [n], (6): shape first
    # not here: of (7)
    return y  # and (8) is only mentioned
'''


def test_how_lines_and_chunks_are_read(tmp_path):
    (tmp_path / "m.py").write_text(METHOD)
    source = Source(tmp_path / "m.py")
    assert source.computed == {1: [2], 2: [5], 3: [5], 4: [12], 6: [12]}
    chunks = [(c.prose, c.code) for c in source.chunks()]
    assert chunks == [
        ([], [2]),
        (["(2) and (3): both.", "", "    a picture", ""], [5]),
        (["(4): the next line", "goes on"], [12]),
        (["not here: of (7)"], [14]),
    ]


@pytest.mark.parametrize("text", [
    'x = f"a {b!r:>{w}} c"  # d\n', "def f(a=1.5):\n    return None\n", 'x = """a\n  b\n"""\n',
])
def test_colours_are_the_same_in_all_versions_of_python(text, tmp_path):
    """From 3.12 on an f-string is many tokens. One colour covers it, as in older versions."""
    lines = pages.coloured(text)
    pieces = re.findall(r'<i class="(.)">(.*?)</i>', "\n".join(lines))
    found = {kind: html.unescape(piece) for kind, piece in pieces}
    if "f\"" in text:
        (tmp_path / "m.py").write_text(text)
        assert found == {"s": 'f"a {b!r:>{w}} c"', "c": "# d"}
        assert Source(tmp_path / "m.py").comments == {1: "d"}
    elif "def" in text:
        assert found == {"k": "None", "f": "f", "n": "1.5"}
    else:
        assert lines[:3] == ['x = <i class="s">"""a</i>', '<i class="s">  b</i>', '<i class="s">"""</i>']


# ------------------------------------------------------------------------ FORKING.md

FORKING = (ROOT / "FORKING.md").read_text()


def blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```$", FORKING, re.S | re.M)


def load(path):
    """The module in this file, as if it stood in the repository."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module     # where dataclasses look for it
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def skew(tmp_path_factory):
    """The example of FORKING.md: a copy of opd.py with its changes."""
    path = tmp_path_factory.mktemp("fork") / "skew.py"
    shutil.copy(ROOT / "opd.py", path)
    text, changes = path.read_text(), blocks("diff")
    assert len(changes) == 7
    for change in changes:
        lines = change.splitlines(keepends=True)
        before = "".join(line[1:] for line in lines if line[0] in " -")
        after = "".join(line[1:] for line in lines if line[0] in " +")
        assert text.count(before) == 1, (
            "opd.py has changed, and this block of FORKING.md does not fit it any more; take the "
            f"lines with a minus or a space from opd.py:\n{change}"
        )
        text = text.replace(before, after)
    path.write_text(text)
    yield load(path)
    del sys.modules["skew"]


def test_the_fork_does_what_its_equation_says(skew):
    example, = blocks("python")
    names = {"skew": skew, "math": math, "torch": torch, "pytest": pytest}
    exec(example, names)
    names["test_the_loss_is_the_kl_to_the_mixture"]()
    # With a small alpha it is opd.py, and the loss of a token is at most -log alpha.
    generator = torch.Generator().manual_seed(0)
    logp = [(4 * torch.randn(6, 9, generator=generator)).log_softmax(-1) for _ in range(2)]
    more = torch.zeros(6, dtype=torch.long), torch.zeros(6, dtype=torch.bool)
    plain = opd.token_loss(*logp, *more, opd.Args())
    small = skew.token_loss(*logp, *more, skew.Args(skew=1e-7))
    assert torch.allclose(plain, small, atol=1e-4) and plain.max() > math.log(10)
    assert skew.token_loss(*logp, *more, skew.Args(skew=0.1)).max() < math.log(10)


@pytest.mark.slow
def test_the_fork_trains_and_is_an_arm_of_its_own(skew, tmp_path, capsys):
    for name, count in (("train", 20), ("test", 2)):    # few problems, to be fast
        lines = (ROOT / f"toy/{name}.jsonl").read_text().splitlines(keepends=True)
        (tmp_path / f"{name}.jsonl").write_text("".join(lines[:count]))
    tiny = "--device cpu --prompts 1 --samples 2 --max_new_tokens 12 --show_every 0 --steps 1"
    tiny = [*tiny.split(), "--student", "toy/student", "--teacher", "toy/teacher"]
    tiny += ["--data", str(tmp_path / "train.jsonl"), "--benchmark", str(tmp_path / "test.jsonl")]
    configs, updates = [], []
    for module in (opd, skew):
        out = tmp_path / f"{module.__name__}-0"
        module.main([*tiny, "--out", str(out)])
        configs.append(read_json(out / "config.json"))
        updates.append(read_jsonl(out / "metrics.jsonl")[1])
    capsys.readouterr()
    assert [c["script"] for c in configs] == ["opd.py", "skew.py"] and configs[1]["skew"] == 0.1
    # The same rollouts and the same metric, and another loss.
    assert updates[0]["kl"] == updates[1]["kl"] and 0 < updates[1]["loss"] < updates[0]["loss"]

    def again(name, config, **changed):
        """A run like the first one of this arm, as another seed would have made it."""
        shutil.copytree(tmp_path / f"{config['script'][:-3]}-0", tmp_path / name)
        (tmp_path / name / "config.json").write_text(json.dumps({**config, **changed}))

    def table(*names):
        return compare([str(tmp_path / n) for n in names], tmp_path / "compare.png")

    again("opd-1", configs[0], seed=1)
    again("skew-1", configs[1], seed=1)
    arms = table("opd-0", "opd-1", "skew-0", "skew-1").splitlines()[1:3]
    assert [line.split()[:2] for line in arms] == [["opd.py", "2"], ["skew.py", "2"]]
    # The same name with other code is another arm.
    again("skew-2", configs[1], seed=2, source="another")
    arms = table("opd-0", "skew-0", "skew-1", "skew-2")
    assert len(re.findall(r"^skew\.py code=\w{7} ", arms, re.M)) == 2


def test_the_fork_refuses_what_would_silently_do_nothing(skew):
    for flags in (["--estimator", "topk"], ["--skew", "0"], ["--skew", "1"]):
        with pytest.raises(Mistake, match="python opd.py"):
            skew.check(parse(skew.Args, skew.__doc__, flags, "skew"))


def test_the_fork_fits_into_the_laboratory(skew, monkeypatch):
    entry, = blocks("py")
    for name, arm in eval(f"{{{entry}}}", vars(lab_arms)).items():
        monkeypatch.setitem(lab.ARMS, name, arm)
    assert name == "skewed" and name in FORKING.split("--only")[1].split("\n")[0]
    wanted = lab.pilots([], name)
    assert [rate for _, rate, _ in wanted] == lab_arms.FAST and wanted[0][0] == "skew 0.03"
    for knob, rate, seed in wanted:
        script, flags = lab.command(lab.Job("pilot", name, knob, rate, seed, arm.start))
        args = skew.check(parse(skew.Args, skew.__doc__, flags, "skew"))
        assert script == "skew.py" and (args.skew, args.lr, args.seed) == (0.03, rate, seed)
    assert "| skewed | a teacher |" in lab_report.table_of_methods([], {})
