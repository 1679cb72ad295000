"""Files: whole or not there, and a sentence about what cannot be read."""
import errno
import json
import os
import subprocess
import sys

import pytest
from conftest import ROOT

from common import files
from common.arguments import Mistake
from common.files import check_writable, make_folder, read_json, read_jsonl, write_json, write_text


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "config.json"
    write_json(path, {"a": "\u00e4"})
    assert read_json(path) == {"a": "\u00e4"} and "\u00e4" in path.read_text(encoding="utf-8")

    def full(_):
        raise OSError("no room")
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="no room"):
        write_text(path, "new")
    assert read_json(path) == {"a": "\u00e4"}
    assert [p.name for p in tmp_path.iterdir()] == ["config.json"]


def test_a_missing_file_and_a_spoiled_one_are_named(tmp_path):
    path = tmp_path / "config.json"
    with pytest.raises(Mistake, match="config.json' is missing"):
        read_json(path)
    with pytest.raises(Mistake, match="^not a run$"):
        read_json(path, "not a run")
    for text in ('{"a": 1', "[1, 2]", ""):
        path.write_text(text)
        with pytest.raises(Mistake, match="cut off or edited. Mend it, or choose another"):
            read_json(path)


def test_half_a_last_line_is_dropped_only_where_that_is_asked_for(tmp_path):
    path, rows = tmp_path / "metrics.jsonl", [{"step": 1}, {"step": 2}]
    whole = "".join(json.dumps(r) + "\n" for r in rows)
    path.write_text(whole + "\n")
    assert read_jsonl(path) == rows                     # an empty line is nothing
    for half in ('{"step": 3, "lo', '{"step": 3, "lo\n', '{"other": 3}\n', "[3]\n"):
        path.write_text(whole + half)
        assert read_jsonl(path, ["step"], drop_broken_end=True) == rows
        with pytest.raises(Mistake, match="Line 3 of .*; mend or delete that line"):
            read_jsonl(path, ["step"])
    path.write_text('{"step": 1, "lo\n' + whole)        # not the last one
    with pytest.raises(Mistake, match="Line 1 of"):
        read_jsonl(path, ["step"], drop_broken_end=True)


def test_a_folder_is_tried_before_any_work(tmp_path):
    assert make_folder(tmp_path / "a/b").is_dir() and make_folder(tmp_path / "a/b").is_dir()
    assert list((tmp_path / "a/b").iterdir()) == []
    (tmp_path / "file").write_text("")
    for name in ("file", "file/below"):
        with pytest.raises(Mistake, match="Cannot write into .*choose another folder with --out"):
            make_folder(tmp_path / name)


def test_a_file_that_cannot_be_written_is_refused_before_any_work(tmp_path):
    check_writable(tmp_path / "page.html", "--html")
    assert list(tmp_path.iterdir()) == []               # nothing is left behind
    (tmp_path / "page.html").write_text("old")
    check_writable(tmp_path / "page.html", "--html")
    assert (tmp_path / "page.html").read_text() == "old"
    for name, sentence in (
        ("", "is a folder; give --html the name of a file"),
        ("no/such/page.html", "There is no folder .*create it, or choose another --html"),
        (300 * "x", "Cannot write .*choose another --html"),
    ):
        with pytest.raises(Mistake, match=sentence):
            check_writable(tmp_path / name, "--html")


def test_a_file_is_flushed_through_a_handle_that_may_write(tmp_path, monkeypatch):
    """Windows refuses to flush a file that is open for reading only."""
    fcntl = pytest.importorskip("fcntl")
    path, modes = tmp_path / "weights", []
    path.write_bytes(b"abc")
    monkeypatch.setattr(os, "fsync", lambda fd: modes.append(fcntl.fcntl(fd, fcntl.F_GETFL)))
    files.flush_to_disk(path)
    assert len(modes) == 1 and modes[0] & os.O_ACCMODE == os.O_RDWR
    assert path.read_bytes() == b"abc"


def held(monkeypatch, times):
    """os.replace as on Windows while another program has the file open. Returns the waits."""
    real, waits, left = os.replace, [], [times]

    def replace(*paths):
        left[0] -= 1
        if left[0] >= 0:
            raise PermissionError(errno.EACCES, "Access is denied")
        real(*paths)
    monkeypatch.setattr(os, "replace", replace)
    monkeypatch.setattr(files.time, "sleep", waits.append)
    return waits


def test_a_file_that_another_program_holds_for_a_moment_is_replaced(tmp_path, monkeypatch):
    path = tmp_path / "config.json"
    write_text(path, "old")
    waits = held(monkeypatch, 5)
    write_text(path, "new")
    assert path.read_text() == "new" and 2 < sum(waits) < 4


def test_a_file_that_another_program_keeps_open_stays_as_it_is(tmp_path, monkeypatch):
    path = tmp_path / "config.json"
    write_text(path, "old")
    held(monkeypatch, 1000)
    with pytest.raises(PermissionError):
        write_text(path, "new")
    assert path.read_text() == "old" and [f.name for f in tmp_path.iterdir()] == ["config.json"]


# ------------------------------------------------------------------------ the lock

HOLD = """
import sys
sys.path.insert(0, sys.argv[1])
from common.files import lock
lock(sys.argv[2])
print("locked", flush=True)
sys.stdin.read()
"""


def holder(folder):
    """A process that has locked the folder."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(ROOT), str(folder)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )
    if process.stdout.readline() != "locked\n":         # refused: it has ended
        process.wait()
        process.stdin.close(), process.stdout.close()
        raise AssertionError("not locked")
    return process


@pytest.mark.parametrize("by_file", (False, True))
def test_a_folder_is_locked_until_its_process_is_dead(tmp_path, monkeypatch, by_file):
    if by_file:     # as on Windows, and on file systems that cannot lock a folder
        monkeypatch.setattr(files, "_open_lock", files._open_lock_file)
        monkeypatch.setattr(sys.modules[__name__], "HOLD", HOLD.replace(
            "lock(sys", "import common.files as f; f._open_lock = f._open_lock_file; lock(sys"))
    process = holder(tmp_path)
    try:
        with pytest.raises(Mistake, match="Another process works in .*; wait until it has ended"):
            files.lock(tmp_path)
        with pytest.raises(Mistake, match="Another process works in"):
            files.lock(tmp_path / ".." / tmp_path.name)
    finally:
        process.kill()
        process.wait()
        process.stdin.close(), process.stdout.close()
    # The killed process has left nothing that would have to be deleted.
    files.lock(tmp_path)
    files.lock(tmp_path)                                # twice in one process is one lock
    with pytest.raises(AssertionError):
        holder(tmp_path)
    files.unlock(tmp_path)
    process = holder(tmp_path)
    process.kill()
    process.wait()
    process.stdin.close(), process.stdout.close()
    if not by_file:
        assert list(tmp_path.iterdir()) == []
