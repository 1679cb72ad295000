"""Reading and writing files so that a killed process never leaves half a file behind. The lock
of a folder, so that two processes never write into the same one."""

import contextlib
import errno
import json
import os
import tempfile
import time
from pathlib import Path

from common.arguments import Mistake, require

try:
    import fcntl
except ImportError:  # Windows has no fcntl, and msvcrt instead
    fcntl = None
    import msvcrt

# ======================================================================== names

PATHS = ("model", "student", "teacher", "data", "benchmark")  # flags that can name a path
HELD_OUT = ":held-out"  # behind a path: the problems in it that no run trains on


def place(name):
    """One spelling for each place: runs/x for ./runs/x/ and for its absolute path. A name that is
    no path here, such as a name on the hub, stays as it is."""
    path, mark, part = str(name).partition(HELD_OUT)
    if not isinstance(name, str) or not os.path.exists(path):
        return name
    real, here = os.path.realpath(path), os.path.realpath(".")
    inside = real.startswith(here + os.sep)
    return (os.path.relpath(real, here) if inside else real) + mark + part


def places(settings):
    """The settings with one spelling for each place."""
    return {k: place(v) if k in PATHS else v for k, v in settings.items()}


# ======================================================================== reading and writing


def write_text(path, text):
    """Write under a temporary name, flush to the disk, rename. No reader sees half a file."""
    path = Path(path)
    temporary = path.with_name(path.name + ".tmp")
    try:
        with open(temporary, "w", encoding="utf-8") as f:
            f.write(text)
            f.flush()
            os.fsync(f.fileno())
        replace(temporary, path)
    except OSError:  # for example a full disk: the old file stays as it is
        temporary.unlink(missing_ok=True)
        raise


def replace(source, target):
    """os.replace. Windows refuses it while another program, such as a virus scanner, has one of
    the two open. That mostly lasts for a moment, so it is tried for three seconds."""
    for seconds in (0.1, 0.2, 0.4, 0.8, 1.5):
        with contextlib.suppress(PermissionError):
            return os.replace(source, target)
        time.sleep(seconds)
    return os.replace(source, target)


def flush_to_disk(path):
    """Wait until a file that another library wrote is on the disk."""
    # Windows refuses to flush a file that is open for reading only, hence "r+b".
    with open(path, "r+b") as f:
        os.fsync(f.fileno())


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
            "Mend it, or choose another folder."
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
                "mend or delete that line."
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


def check_writable(path, flag):
    """Refuse a file that cannot be written, before any work. flag: what its name was given by."""
    path = Path(os.path.abspath(path))
    require(not os.path.isdir(path), f"'{path}' is a folder; give {flag} the name of a file in it.")
    require(
        os.path.isdir(path.parent),
        f"There is no folder '{path.parent}' to write into; create it, or choose another {flag}.",
    )
    was_there = os.path.exists(path)  # False also for a name that is too long
    try:
        with open(path, "ab"):
            pass
    except OSError as error:
        raise Mistake(
            f"Cannot write '{path}' ({error.strerror}); choose another {flag}."
        ) from None
    if not was_there:
        path.unlink()


# ======================================================================== the lock of a folder

_locks = {}  # {folder: the open file that holds its lock}
# What a system says about a file that another process has locked.
TAKEN = (errno.EAGAIN, errno.EACCES, errno.EDEADLK)


def lock(folder):
    """Refuse a folder in which another process works. Two runs in one folder would both write
    their lines into its files, and both would seem to succeed.

    The system takes the lock back when this process ends, however it ends. So a killed run leaves
    nothing behind that would have to be deleted.
    """
    folder = Path(folder).resolve()
    if folder in _locks:
        return
    handle = _open_lock(folder)
    require(
        handle is not None,
        f"Another process works in '{folder}'; wait until it has ended, or choose another --out.",
    )
    _locks[folder] = handle


def unlock(folder):
    handle = _locks.pop(Path(folder).resolve(), None)
    if handle is not None:
        os.close(handle)


def _open_lock(folder):
    """The open folder, locked, or None if another process has locked it."""
    if fcntl is not None:
        handle = os.open(folder, os.O_RDONLY)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return handle
        except OSError as error:
            os.close(handle)
            if error.errno in TAKEN:
                return None
    # Windows and some network file systems can lock files only.
    return _open_lock_file(folder)


def _open_lock_file(folder):
    """The same with a lock on an empty file in the folder. The file stays, and does no harm."""
    handle = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT)
    try:
        if fcntl is not None:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        else:
            msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)
    except OSError as error:  # any other error: this file system has no locks, so go on without
        if error.errno in TAKEN:
            os.close(handle)
            return None
    return handle


@contextlib.contextmanager
def locked(folder):
    """Holds the lock of a folder inside a with statement."""
    lock(folder)
    try:
        yield
    finally:
        unlock(folder)
