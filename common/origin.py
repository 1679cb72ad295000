"""What made a result: hashes of the script's code, of the grading code, of the problems and of the
weights, and the versions of the packages. They stand in config.json, because names stay when
contents change."""

import ast
import hashlib
import importlib.metadata
import inspect
import sys
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parent.parent
OURS = ("common", "toy")  # what all methods share
# The rooms of common/ that decide whether a response is right.
GRADING = "grading answers ranges notation expressions algebra judge"


def source_hash(args):
    """A hash of the script that parsed `args`, or None if there is no file. A fork may import its
    flags from the script that it comes from, or its loss from a file beside it. Then these count.

    Comments and texts are left out. So two runs have the same hash if the same code made them,
    and a changed loss shows even in a script with the old name.
    """
    try:
        flags = inspect.getsourcefile(type(args))
        files = _with_imports([flags, getattr(args, "script", flags)])
        codes = list(map(_hash_of_code, files))
    except (TypeError, OSError, SyntaxError):
        return None
    return codes[0] if len(codes) == 1 else _hash_of_text(" ".join(sorted(codes)))


def _with_imports(files):
    """The files, and what they import from their own folders or from that of this repository.
    common/ and toy/ do not count: they hold no method."""
    found, left = [], [Path(file).resolve() for file in files]
    while left:
        file = left.pop()
        if file in found:
            continue
        found.append(file)
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom):
                names = [node.module or "", *(f"{node.module}.{x.name}" for x in node.names)]
            for name in (n.replace(".", "/") for n in names if n.split(".")[0] not in OURS):
                beside = (folder / f"{name}.py" for folder in (file.parent, ROOT))
                left += [path.resolve() for path in beside if path.is_file()]
    return sorted(found)


def grading_hash():
    """A hash of the code that decides whether a response is right, and of math-verify's version."""
    here = Path(__file__).parent
    codes = [_hash_of_code(here / f"{room}.py") for room in GRADING.split()]
    text = " ".join([*codes, importlib.metadata.version("math-verify")])
    return _hash_of_text(text)


def _hash_of_text(text):
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _hash_of_code(path):
    tree = ast.parse(Path(path).read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list):  # a lambda has a body, too: one expression
            node.body = [x for x in body if not _is_text(x)] or [ast.Pass()]
    return _hash_of_text(ast.unparse(tree))


def fingerprint(model):
    """A hash of all weights of a model, in the precision in which they are used."""
    digest = hashlib.sha256()
    for name, weight in model.named_parameters():
        digest.update(f"{name} {weight.dtype} {tuple(weight.shape)}".encode())
        digest.update(weight.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()[:16]


def _is_text(node):
    """A docstring, or the help text under a flag."""
    value = getattr(node, "value", None)
    return isinstance(node, ast.Expr) and isinstance(getattr(value, "value", None), str)


TRAINED_ON = ("problem", "answer", "solution")  # the columns that a run's training can use


def hash_of(rows, columns=("problem", "answer")):
    """A hash of what is asked, or also of what is shown. A data file can be edited under its old
    name."""
    return _hash_of_text(repr([[row[c] for c in columns] for row in rows]))


def versions():
    import transformers

    return {
        "python": sys.version.split()[0],
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }
