"""The house itself: how long lines and files are, how much is explained, which way the imports
run, and whether every equation that a method states is computed somewhere below."""
import ast
import io
import json
import re
import tokenize
from pathlib import Path

import pytest
from conftest import ROOT

METHODS = ["opd", "topd", "ar_opd", "hindsight_sd", "grpo"]
ROOMS = sorted(p for p in (ROOT / "common").glob("*.py") if p.name != "__init__.py")
FILES = [*(ROOT / f"{m}.py" for m in METHODS), ROOT / "evaluate.py", ROOT / "look.py", *ROOMS]


# The tests of a room stand in tests/test_ROOM.py. These rooms are tested where they are used.
TESTED_IN = {
    "algebra": "grading", "answers": "grading", "notation": "grading", "ranges": "grading",
    "cache": "sampler", "recorded": "sampler", "hub": "models", "tables": "data",
    "origin": "evaluate", "stored": "evaluate", "results": "compare", "run": "scripts",
    "page": "look_page", "seen": "look", "size": "fits", "synonyms": "flags",
}  # fmt: skip


def name_of(path):
    """common/show.py is the module common.show."""
    return ".".join(Path(path).relative_to(ROOT).with_suffix("").parts)


def comments(source):
    """[(line, text)] of all comments, also of those behind code."""
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    return [(t.start[0], t.string) for t in tokens if t.type == tokenize.COMMENT]


def is_text(node):
    """A string that is a statement: a docstring, or the text below a field of a dataclass."""
    value = getattr(node, "value", None)
    return isinstance(node, ast.Expr) and isinstance(getattr(value, "value", None), str)


def test_the_house_has_rooms_and_methods():
    # The other tests would also pass if there were nothing to look at.
    assert len(ROOMS) >= 15 and all(f.exists() for f in FILES)


# ------------------------------------------------------------------------ lines and files


@pytest.mark.parametrize("file", FILES, ids=name_of)
def test_no_line_is_longer_than_100_columns(file):
    lines = file.read_text().splitlines()
    assert [(i, len(line)) for i, line in enumerate(lines, 1) if len(line) > 100] == []


@pytest.mark.parametrize("file", ROOMS, ids=name_of)
def test_a_room_has_at_most_350_lines_and_says_what_lives_in_it(file):
    source = file.read_text()
    assert len(source.splitlines()) <= 350
    first = (ast.get_docstring(ast.parse(source)) or "").strip()
    assert len(first.split()) >= 5


@pytest.mark.parametrize("file", [*ROOMS, *(ROOT / f"{m}.py" for m in METHODS)], ids=name_of)
def test_a_room_and_a_method_have_a_file_of_tests(file):
    name = TESTED_IN.get(file.stem, file.stem)
    assert (ROOT / f"tests/test_{name}.py").exists()
    # A room with tests of its own needs no other place.
    assert name == file.stem or not (ROOT / f"tests/test_{file.stem}.py").exists()


def explained(source):
    """(lines that explain, all lines). A line explains if it has a comment or is part of a
    docstring or of the text below a field."""
    lines = {line for line, _ in comments(source)}
    for node in ast.walk(ast.parse(source)):
        if is_text(node):
            lines.update(range(node.lineno, node.end_lineno + 1))
    return len(lines), len(source.splitlines())


def test_how_explained_lines_are_counted():
    source = '"""One\ntwo."""\n\n\nclass A:\n    x: int = 1\n    """A field."""\n'
    source += 'y = """no\ndocstring"""  # but a comment\n# and one more\nz = "# none"\n'
    assert explained(source) == (5, 11)


@pytest.mark.parametrize("method", METHODS)
def test_a_third_of_the_lines_of_a_method_explain_it(method):
    lines, of = explained((ROOT / f"{method}.py").read_text())
    assert lines >= of / 3, f"{lines} of {of} lines"


@pytest.mark.parametrize("method", METHODS)
def test_a_function_of_a_method_has_at_most_seven_parameters(method):
    counts = {}
    for node in ast.walk(ast.parse((ROOT / f"{method}.py").read_text())):
        if isinstance(node, ast.FunctionDef):
            counts[node.name] = len([*node.args.args, *node.args.kwonlyargs])
    assert counts["update"] >= 5
    assert {name: n for name, n in counts.items() if n > 7} == {}


@pytest.mark.parametrize("file", sorted((ROOT / "notebooks").glob("0[0-5]*.ipynb")), ids=lambda f: f.stem)
def test_a_notebook_fits_a_page_and_says_what_its_figures_show(file):
    """A page shows 88 columns of code, and 9 inches of a figure at 96 dots per inch."""
    cells = json.loads(file.read_text(encoding="utf-8"))["cells"]
    figures = 0
    for i, cell in enumerate(cells):
        source = "".join(cell["source"])
        if cell["cell_type"] == "code":
            assert [line for line in source.splitlines() if len(line) > 88] == []
        for output in cell.get("outputs", []):
            if "image/png" in output.get("data", {}):
                width = re.search(r"<Figure size ([\d.]+)x", "".join(output["data"]["text/plain"]))[1]
                assert float(width) <= 9 * 96, source
                assert "".join(cells[i + 1]["source"]).startswith("*What you see:*"), source
                figures += 1
    assert figures >= (1 if file.stem == "00_your_gpu" else 4)


# ------------------------------------------------------------------------ equations

NUMBER = re.compile(r"\((\d{1,2})\)")


def stated(source):
    """Numbers of the equations in the module's docstring: lines that are indented by four spaces
    or more and end in "(n)"."""
    lines = ast.get_docstring(ast.parse(source), clean=False).splitlines()
    matches = [re.fullmatch(r" {4}.*\((\d{1,2})\)", line) for line in lines]
    return [int(m[1]) for m in matches if m]


def cited(source):
    """Numbers that stand in a comment, or in the docstring of a function or class, on or above a
    line of code."""
    tree, texts = ast.parse(source), [text for _, text in comments(source)]
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            texts.append(ast.get_docstring(node) or "")
    return {int(n) for text in texts for n in NUMBER.findall(text)}


def mentioned(source):
    """Numbers that stand anywhere in prose: in all comments, docstrings and texts of fields."""
    texts = [text for _, text in comments(source)]
    texts += [node.value.value for node in ast.walk(ast.parse(source)) if is_text(node)]
    return {int(n) for text in texts for n in NUMBER.findall(text)}


def test_how_equations_are_found():
    source = '"""A method.\n\n    a = b      (1)\n    c =\n          d    (2)\n'
    source += 'as in (4)\n  e (5)\n"""\n'
    source += "# (1): first\nx = f(3)\n\n\ndef f(x):\n    '''(2)'''\n    return x  # see (6)\n"
    assert stated(source) == [1, 2] and cited(source) == {1, 2, 6}
    assert mentioned(source) == {1, 2, 4, 5, 6}


@pytest.mark.parametrize("method", METHODS)
def test_every_equation_stands_at_the_code_that_computes_it(method):
    source = (ROOT / f"{method}.py").read_text()
    numbers = stated(source)
    assert len(numbers) >= 3 and numbers == list(range(1, len(numbers) + 1))
    assert sorted(set(numbers) - cited(source)) == []       # stated, but not at any code
    assert sorted(mentioned(source) - set(numbers)) == []   # mentioned, but not stated


# ------------------------------------------------------------------------ imports


def imports(source):
    """Names of all modules that a file imports, also inside its functions. `from common import x`
    counts as common.x, because the rooms are modules."""
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: a relative import"
            if node.module == "common":
                names.update(f"common.{alias.name}" for alias in node.names)
            else:
                names.add(node.module)
    return names


def test_how_imports_are_found():
    source = "import os\nfrom common import show, data\nfrom common.run import Run as R\n"
    source += "def f():\n    import toy.world as w\n    from evaluate import grade\n"
    expected = {"os", "common.show", "common.data", "common.run", "toy.world", "evaluate"}
    assert imports(source) == expected


@pytest.mark.parametrize("file", ROOMS, ids=name_of)
def test_no_room_imports_what_is_above_it(file):
    above = {*METHODS, "evaluate", "look", "toy", "tests", "benchmarks", "notebooks"}
    assert {name.split(".")[0] for name in imports(file.read_text())} & above == set()


@pytest.mark.parametrize("method", METHODS)
def test_no_method_imports_another_method_or_the_toy(method):
    others = {*METHODS, "look", "toy", "tests", "benchmarks", "notebooks"}
    names = imports((ROOT / f"{method}.py").read_text())
    assert {name.split(".")[0] for name in names} & others == set()


def circle(arrows):
    """One circle in {module: modules that it imports}, as a list of modules, or None."""
    done = set()

    def visit(module, path):
        if module in path:
            return path[path.index(module):] + [module]
        if module in done:
            return None
        for other in sorted(arrows.get(module, ())):
            found = visit(other, [*path, module])
            if found:
                return found
        done.add(module)
        return None

    return next((found for found in (visit(m, []) for m in sorted(arrows)) if found), None)


def test_how_a_circle_is_found():
    assert circle({"a": {"b", "c"}, "b": {"c"}, "c": set()}) is None
    assert circle({"a": {"b"}, "b": {"c"}, "c": {"d", "b"}, "d": set()}) == ["b", "c", "b"]
    assert circle({"a": {"a"}}) == ["a", "a"]


def test_the_imports_of_the_rooms_have_no_circle():
    rooms = {name_of(file): imports(file.read_text()) for file in ROOMS}
    arrows = {room: names & rooms.keys() for room, names in rooms.items()}
    assert sum(map(len, arrows.values())) > 20
    assert circle(arrows) is None
    # Every room that is imported exists.
    wanted = {n for names in rooms.values() for n in names if n.startswith("common.")}
    assert wanted <= rooms.keys()
