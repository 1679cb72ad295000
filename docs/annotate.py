"""Reads a method file, or a file of tests, as somebody reads it who has the paper beside it:
equations, notes, and chunks of prose with the code that they are about.

Nothing here knows a method. What it relies on is how the files are written: an equation is a line
of the module's docstring that is indented and ends in its number, as in "(7)". A note is numbered
below [paper], [code], [inferred] or [ours]. And the number of an equation stands again in the
comment or docstring at the line that computes it.
"""

import ast
import io
import re
import textwrap
import tokenize
from collections import defaultdict, namedtuple
from functools import cached_property

TAGS = {
    "paper": "stated in the paper",
    "code": "done by released code; the file says whose",
    "inferred": "follows from what is stated",
    "ours": "our choice",
}
NUMBER = r"\((\d{1,2})\)"
# A citation that says "this is computed here" stands at the start of a text. Only shapes may
# stand before it, as in "# [n, V], (4)".
HERE = re.compile(rf"(?:[^(\n]*\], )?((?:{NUMBER}(?:, | and | to )?)*)")

# lines: as they stand in the file, without their number. formula: the same lines without what is
# written beside them. gloss: what is written beside them, in one line.
Equation = namedtuple("Equation", "lines formula gloss")
Note = namedtuple("Note", "tag text")
# Prose, and the code that it stands at. title: a chunk that is only a heading. prose: lines, where
# "" separates paragraphs. code: numbers of lines. comments: of the lines of code.
Chunk = namedtuple("Chunk", "title prose code comments")


def cited(text):
    """Numbers of the equations in a text, in their order. "(2) to (5)" names four."""
    pairs = re.findall(rf"{NUMBER}(?: to {NUMBER})?", text)
    numbers = [n for a, b in pairs for n in range(int(a), int(b or a) + 1)]
    return list(dict.fromkeys(numbers))


def cited_notes(text):
    pairs = re.findall(r"\bnotes? (\d+)(?: and (\d+))?", text)
    return list(dict.fromkeys(int(n) for pair in pairs for n in pair if n))


class Source:
    """A file: its lines, its equations and notes (of a method file), and its chunks."""

    def __init__(self, path):
        self.path, self.text = path, path.read_text("utf-8")
        self.lines = ["", *self.text.splitlines()]  # lines[1] is line 1
        self.tree = ast.parse(self.text)
        self.head = ast.get_docstring(self.tree) or ""
        self.title = " ".join(self.head.split("\n\n")[0].split())
        self.equations, self.notes = equations(self.head), notes(self.head)
        self.functions = [x for x in ast.walk(self.tree) if isinstance(x, ast.FunctionDef)]
        tokens = tokenize.generate_tokens(io.StringIO(self.text).readline)
        comments = {t.start[0]: t.string for t in tokens if t.type == tokenize.COMMENT}
        self.comments = {i: text.lstrip("# ") for i, text in comments.items()}
        # Lines with a comment and nothing else. A word to a tool, "# isort: off", is code.
        alone = re.compile(r"\s*#(?! ?(isort|fmt|noqa|ruff|type)\b)")
        self.alone = {i for i in self.comments if alone.match(self.lines[i])}
        # texts: {line of a docstring, or of the text below a field: the prose that begins there}.
        # begins: lines at which a function, a class or a field with a text begins.
        self.texts, self.begins = {}, set()
        for node in ast.walk(self.tree):
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
                self.begins.add(min(x.lineno for x in [node, *node.decorator_list]))
                for k, x in enumerate(node.body):
                    if self.lines[x.lineno].lstrip(" r").startswith('"""'):
                        text = textwrap.dedent(" " * x.col_offset + x.value.value.strip())
                        self.texts |= {i: [] for i in range(x.lineno, x.end_lineno + 1)}
                        self.texts[x.lineno] = [*text.split("\n"), ""]
                        self.begins |= {node.body[k - 1].lineno} if k else set()

    @cached_property
    def computed(self):
        """{equation: the lines that compute it}"""
        texts = [(x.lineno, ast.get_docstring(x) or "") for x in self.functions]
        for i, text in self.comments.items():
            while i in self.alone:  # it is about the code below it
                i += 1
            texts.append((i, text))
        found = defaultdict(list)
        for i, text in texts:
            for n in cited(HERE.match(text)[1]):
                found[n] = sorted({*found[n], i})
        return found

    @cached_property
    def tests(self):
        """{equation: the tests that cite it in a comment or docstring}, as nodes of the file."""
        found = defaultdict(list)
        for node in self.functions:
            texts = [line for c in self.chunks(node) for line in c.prose + c.comments]
            for n in cited("\n".join(texts)):
                found[n] += [node] if node.name.startswith("test_") else []
        return found

    def chunks(self, function=None):
        """The chunks of a function, or of all that stands below the module's docstring."""
        chunks = [Chunk("", [], [], [])]
        lines = range(self.tree.body[0].end_lineno + 1, len(self.lines))
        if function:
            first = min(x.lineno for x in [function, *function.decorator_list])
            while first - 1 in self.alone:  # a comment directly above
                first -= 1
            lines = range(first, function.end_lineno + 1)
        for i in lines:
            here, comment = chunks[-1], self.comments.get(i, "")
            if i in self.texts:  # belongs to the function or field above it
                here.prose.extend([""] * bool(here.prose and self.texts[i]) + self.texts[i])
            elif i in self.alone and "=====" in comment:
                chunks += [Chunk(comment.lstrip("= "), [], [], []), Chunk("", [], [], [])]
            else:
                # A comment begins a chunk, unless it goes on or stands directly below a "def".
                goes_on = i - 1 in self.alone or re.match(r" *(def |class |\))", self.lines[i - 1])
                if here.code and (i in self.begins or (i in self.alone and not goes_on)):
                    chunks.append(here := Chunk("", [], [], []))
                if i in self.alone:
                    here.prose.append(comment)
                elif self.lines[i].strip() or here.code:
                    here.code.append(i)
                    here.comments.append(comment)
        for c in chunks:
            while c.code and not self.lines[c.code[-1]].strip():
                c.code.pop()
        return [c for c in chunks if c.title or c.code or c.prose]


def equations(head):
    """{number: Equation} from the indented lines of a docstring. Lines without a number belong to
    the next number below them, unless an empty line comes between."""
    found = {}
    for text, number in re.findall(rf"^((?: {{4}}.*\n)*? {{4}}.*?)\s*{NUMBER}$", head, re.M):
        lines, formula, gloss = textwrap.dedent(text).split("\n"), [], []
        for line in lines:
            # Beside a formula stands what it is, after three spaces or more.
            left, _, right = line.rpartition("   ")
            if not left.strip() or "=" in right:
                left, right = line, ""
            # Spaces that only align the formula with others are left out.
            formula.append(re.sub(r"(?<=\S ) +|(?<=^ {4}) +", "", left.rstrip()))
            gloss += [right] if right else []
        found[int(number)] = Equation(lines, formula, " ".join(gloss))
    return found


def notes(head):
    """{number: Note} from the list of what the paper says and what we chose."""
    found = {}
    for tag, text in re.findall(r"^  \[(\w+)\](.+?)(?=^  \[|^$|\Z)", head, re.M | re.S):
        # Two spaces or more stand before the number of a note.
        for number, said in re.findall(r"  (\d{1,2})\. (.+?)(?=  \d{1,2}\. |\Z)", text, re.S):
            found[int(number)] = Note(tag, " ".join(said.split()))
    return found
