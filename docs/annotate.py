"""Reads a method file, or a file of tests, as somebody reads it who has the paper beside it:
equations, notes, and chunks of prose with the code that they are about.

Nothing here knows a method. What it relies on is how the files are written: an equation is a line
of the module's docstring that is indented and ends in its number, as in "(7)". A note is numbered
below [paper], [code], [inferred] or [ours]. And the number of an equation stands again in the
comment or docstring at the line that computes it.
"""

import ast
import io
import keyword
import re
import textwrap
import tokenize
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

TAGS = {
    "paper": "stated in the paper",
    "code": "done by released code; the file says whose",
    "inferred": "follows from what is stated",
    "ours": "our choice",
}
NUMBER = r"\((\d{1,2})\)"
# A citation that says "this is computed here" stands at the start of a text. Behind a line of code
# shapes may stand before it, as in "# [n, V], (4)".
HERE = re.compile(rf"({NUMBER}(, | and | to )?)+")
BEHIND = re.compile(rf"(?:^|[,;] ){NUMBER}")


@dataclass
class Equation:
    lines: list  # as they stand in the file, without their number
    formula: list  # the same lines without what is written beside them
    gloss: str  # what is written beside them, in one line


@dataclass
class Note:
    tag: str
    text: str


@dataclass
class Chunk:
    """Prose, and the lines of code that it stands at. title: a chunk that is only a heading."""

    title: str = ""
    prose: list = field(default_factory=list)  # lines; "" separates paragraphs
    code: list = field(default_factory=list)  # line numbers
    comments: str = ""  # of the lines of code


def cited(text):
    """Numbers of the equations in a text, in their order. "(2) to (5)" names four."""
    numbers = []
    for first, last in re.findall(rf"{NUMBER}(?: to {NUMBER})?", text):
        numbers += range(int(first), int(last or first) + 1)
    return list(dict.fromkeys(numbers))


def cited_notes(text):
    pairs = re.findall(r"\bnotes? (\d+)(?: and (\d+))?", text)
    return list(dict.fromkeys(int(n) for pair in pairs for n in pair if n))


def is_text(node):
    """A string that is a statement: a docstring, or the text below a field of a dataclass."""
    value = getattr(node, "value", None)
    return isinstance(node, ast.Expr) and isinstance(getattr(value, "value", None), str)


class Source:
    """A file: its lines, its equations and notes (of a method file), and its chunks."""

    def __init__(self, path):
        self.path, self.text = Path(path), Path(path).read_text(encoding="utf-8")
        self.lines = [""] + self.text.splitlines()  # lines[1] is line 1
        self.tree = ast.parse(self.text)
        self.head = ast.get_docstring(self.tree) or ""
        self.equations, self.notes = equations(self.head), notes(self.head)
        self.colours, self.comments = colours(self.text)
        self.texts, self.begins, self.bodies = {}, set(), set()
        self._find_texts()

    def _find_texts(self):
        """texts: {first line of a docstring: (last line, its text, the line that it is about)}.
        begins: lines at which a function, a class or a field with a text begins. bodies: the
        first line below each "def" or "class"."""
        for node in ast.walk(self.tree):
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
                self.begins.add(min([node.lineno, *(d.lineno for d in node.decorator_list)]))
                first = node.body[0].lineno
                while self.is_comment(first - 1):
                    first -= 1
                self.bodies.add(first)
            body = getattr(node, "body", None)
            for i, x in enumerate(body if isinstance(body, list) else []):
                if is_text(x):
                    about = body[i - 1].lineno if i else getattr(node, "lineno", x.lineno)
                    self.texts[x.lineno] = x.end_lineno, x.value.value, about
                    self.begins |= {about} if i else set()

    def is_comment(self, i):
        """Does the line consist of a comment only? (A word to a tool, "# isort: off", is code.)"""
        tool = re.match(r"(isort|fmt|noqa|ruff|type)\b ?:", self.comments.get(i, ""))
        return i in self.comments and not tool and self.lines[i].lstrip().startswith("#")

    @cached_property
    def computed(self):
        """{equation: the lines that compute it}"""
        found = []  # (line, text that cites equations)
        for i, (_, text, about) in self.texts.items():
            if i > 1 and "def " in self.lines[about] and (m := HERE.match(text.strip())):
                found.append((about, m[0]))
        for i, text in self.comments.items():
            if not self.is_comment(i):
                found.append((i, " ".join(m[0] for m in BEHIND.finditer(text))))
            elif m := HERE.match(text):
                found.append((self.next_code(i), m[0]))
        numbers = sorted({n for _, text in found for n in cited(text)})
        return {n: sorted({i for i, text in found if n in cited(text)}) for n in numbers}

    def next_code(self, i):
        return next(k for k in range(i, len(self.lines)) if not self.is_comment(k))

    @cached_property
    def tests(self):
        """{equation: the tests that cite it}, as nodes of a file of tests. A citation stands in a
        comment or docstring of the test, or in a comment directly above it."""
        found = {}
        for node in self.tree.body:
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
                texts = [self.comments.get(i, "") for i in self.lines_of(node)]
                texts.append(ast.get_docstring(node) or "")
                for n in cited("\n".join(texts)):
                    found.setdefault(n, []).append(node)
        return found

    def lines_of(self, node):
        """The lines of a function, with decorators and the comment directly above."""
        first = min([node.lineno, *(d.lineno for d in node.decorator_list)])
        while self.is_comment(first - 1):
            first -= 1
        return range(first, node.end_lineno + 1)

    def chunks(self, lines=None):
        """The chunks of these lines (default: all below the module's docstring)."""
        lines = lines or range(self.texts[1][0] + 1, len(self.lines))
        chunks, skip_to = [Chunk()], 0
        for i in lines:
            here = chunks[-1]
            if i <= skip_to:
                continue
            if self.is_comment(i) and "=====" in self.comments[i]:
                chunks += [Chunk(title=re.sub(r"^=+ ", "", self.comments[i])), Chunk()]
            elif i in self.texts:  # belongs to the function or field above it
                skip_to, text, _ = self.texts[i]
                margin = len(self.lines[i]) - len(self.lines[i].lstrip())
                first, *rest = text.strip().split("\n")
                here.prose += [first.strip(), *(line[margin:] for line in rest), ""]
            else:
                # A comment begins a chunk, unless it goes on or stands directly below a "def".
                goes_on = self.is_comment(i - 1) or i in self.bodies
                new = i in self.begins or (self.is_comment(i) and not goes_on)
                if new and any(self.lines[k].strip() for k in here.code):
                    chunks.append(here := Chunk())
                if self.is_comment(i):
                    here.prose.append(self.comments[i])
                else:
                    here.code.append(i)
        for c in chunks:
            while c.code and not self.lines[c.code[0]].strip():
                del c.code[0]
            while c.code and not self.lines[c.code[-1]].strip():
                del c.code[-1]
            c.comments = "\n".join(self.comments.get(i, "") for i in c.code)
        return [c for c in chunks if c.title or c.code or any(c.prose)]


# ======================================================================== the docstring of a method


def equations(head):
    """{number: Equation} from the indented lines of a docstring. Lines without a number belong to
    the next number below them, unless an empty line comes between."""
    found, lines = {}, []
    for line in head.split("\n"):
        m = re.fullmatch(rf"( {{4}}.*?)(?:\s*{NUMBER})?", line)
        lines = [*lines, m[1]] if m else []
        if m and m[2]:
            lines, rows = [], textwrap.dedent("\n".join(lines)).split("\n")
            parts = [formula_and_gloss(row) for row in rows]
            gloss = " ".join(g for _, g in parts if g)
            found[int(m[2])] = Equation(rows, [f for f, _ in parts], gloss)
    return found


def formula_and_gloss(line):
    """Beside a formula stands what it is, after three spaces or more. Spaces that only align the
    formula with others are left out."""
    m = re.fullmatch(r"(.*\S)\s{3,}([^=]+)", line)
    formula = re.sub(r"(?<=\S) +", " ", m[1] if m else line.rstrip())
    return re.sub(r"^ {4,}", "    ", formula), m[2] if m else ""


def notes(head):
    """{number: Note} from the list of what the paper says and what we chose. In a file without
    tags all notes are ours."""
    found, tag, number = {}, "ours", 0
    for line in head.split("\n"):
        m = re.fullmatch(r"  +(?:\[(\w+)\] +)?(.*)", line)
        if not m:
            number = 0 if not line.strip() else number
            continue
        tag = m[1] if m[1] in TAGS else tag
        # A note begins at its number, which is one more than the last; two spaces stand before it.
        for k, part in enumerate(re.split(r"(?:^|(?<=  ))(?=\d{1,2}\. )", m[2])):
            begin = re.match(r"(\d{1,2})\. (.*)", part)
            if begin and int(begin[1]) == len(found) + 1:
                number = int(begin[1])
                found[number] = Note(tag, begin[2].strip())
            elif number and k == 0 and part.strip():
                found[number].text += " " + part.strip()
    return found


# ======================================================================== colours


def colours(text):
    """({line: [(first column, last column, class)]}, {line: its comment without "# "}).

    From Python 3.12 on an f-string is many tokens. Here it is one, as before, so that the pages do
    not depend on the version that builds them.
    """
    spans, comments, before, depth, begin = {}, {}, "", 0, None
    starts, ends = (getattr(tokenize, f"FSTRING_{x}", None) for x in ("START", "END"))
    for t in tokenize.generate_tokens(io.StringIO(text).readline):
        kind, first = None, t.start
        if t.type == starts:
            begin, depth = begin if depth else t.start, depth + 1
        elif t.type == ends:
            depth -= 1
            kind, first = (None, None) if depth else ("s", begin)
        elif depth:
            continue
        elif t.type == tokenize.COMMENT:
            kind, comments[t.start[0]] = "c", t.string.lstrip("#").strip()
        elif t.type == tokenize.NAME:
            kind = "k" if keyword.iskeyword(t.string) else None
            kind = "f" if before in ("def", "class") else kind
        else:
            kind = {tokenize.STRING: "s", tokenize.NUMBER: "n"}.get(t.type)
        if kind:
            for line in range(first[0], t.end[0] + 1):
                last = t.end[1] if line == t.end[0] else None  # None: to the end of the line
                spans.setdefault(line, []).append((first[1] if line == first[0] else 0, last, kind))
        before = t.string
    return spans, comments
