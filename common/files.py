"""Reading and writing files so that a killed process never leaves half a file behind."""

import json
import os
import tempfile
from pathlib import Path

from common.arguments import Mistake


def write_text(path, text):
    """Write under a temporary name, flush to the disk, rename. No reader sees half a file."""
    path = Path(path)
    temporary = path.with_name(path.name + ".tmp")
    try:
        with open(temporary, "w", encoding="utf-8") as f:
            f.write(text)
            f.flush()
            os.fsync(f.fileno())
        os.replace(temporary, path)
    except OSError:  # for example a full disk: the old file stays as it is
        temporary.unlink(missing_ok=True)
        raise


def write_json(path, value):
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False) + "\n")


def read_json(path, missing=""):
    """The JSON object in a file. `missing` is the sentence for a file that does not exist."""
    if not Path(path).exists():
        raise Mistake(missing or f"'{path}' is missing.")
    try:
        value = json.loads(Path(path).read_text(encoding="utf-8"))
        if isinstance(value, dict):
            return value
        raise ValueError
    except ValueError:
        raise Mistake(
            f"'{path}' is not the JSON object that a run writes; it was cut off or edited. "
            "Delete the folder or choose another one."
        ) from None


def read_jsonl(path, keys=(), drop_broken_end=False):
    """All objects of a JSONL file; each must have `keys`.

    A process that was killed while writing leaves half a last line. `drop_broken_end` ignores a
    broken last line, and only the last.
    """
    rows, lines = [], Path(path).read_text(encoding="utf-8", errors="replace").split("\n")
    for i, line in enumerate(lines):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            if not isinstance(row, dict) or any(k not in row for k in keys):
                raise ValueError
            rows.append(row)
        except ValueError:
            if drop_broken_end and i >= len(lines) - 2:
                break
            raise Mistake(
                f"Line {i + 1} of '{path}' is not what was written there; "
                "delete that line or the file."
            ) from None
    return rows


def make_folder(path):
    """Create a folder, and make sure before any work that files can be written into it."""
    path = Path(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        raise Mistake(
            f"Cannot write into '{path}' ({error.strerror}); choose another folder with --out."
        ) from None
    return path
