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


def source_hash(args):
    """A hash of the script in which the class of `args` is written, or None if there is no file.

    Comments and texts are left out. So two runs have the same hash if the same code made them,
    and a changed loss shows even in a script with the old name.
    """
    try:
        return _hash_of_code(inspect.getsourcefile(type(args)))
    except (TypeError, OSError):
        return None


def grading_hash():
    """A hash of the code that decides whether a response is right, and of math-verify's version."""
    here, rooms = Path(__file__).parent, "grading answers notation expressions algebra judge"
    codes = [_hash_of_code(here / f"{room}.py") for room in rooms.split()]
    text = " ".join([*codes, importlib.metadata.version("math-verify")])
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _hash_of_code(path):
    tree = ast.parse(Path(path).read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list):  # a lambda has a body, too: one expression
            node.body = [x for x in body if not _is_text(x)] or [ast.Pass()]
    return hashlib.sha256(ast.unparse(tree).encode()).hexdigest()[:16]


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


def hash_of(rows, columns=("problem", "answer")):
    """A hash of what is asked, or also of what is shown. A data file can be edited under its old
    name."""
    text = repr([[row[c] for c in columns] for row in rows])
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def versions():
    import transformers

    return {
        "python": sys.version.split()[0],
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }
