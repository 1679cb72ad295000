"""Files: whole or not there, and a sentence about what cannot be read."""
import json
import os

import pytest

from common.arguments import Mistake
from common.files import make_folder, read_json, read_jsonl, write_json, write_text


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
        with pytest.raises(Mistake, match="cut off or edited. Delete the folder or choose another"):
            read_json(path)


def test_half_a_last_line_is_dropped_only_where_that_is_asked_for(tmp_path):
    path, rows = tmp_path / "metrics.jsonl", [{"step": 1}, {"step": 2}]
    whole = "".join(json.dumps(r) + "\n" for r in rows)
    path.write_text(whole + "\n")
    assert read_jsonl(path) == rows                     # an empty line is nothing
    for half in ('{"step": 3, "lo', '{"step": 3, "lo\n', '{"other": 3}\n', "[3]\n"):
        path.write_text(whole + half)
        assert read_jsonl(path, ["step"], drop_broken_end=True) == rows
        with pytest.raises(Mistake, match="Line 3 of .*; delete that line or the file"):
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
