"""Every notebook runs from top to bottom, in time, and is shipped with its outputs. Its first cell
gets the repository where it is missing."""
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from conftest import ROOT

import topd
from common.arguments import Mistake
from common.fits import predicted_peak
from common.flags import parse

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


# 90 seconds on a quiet core of a machine whose unit takes 0.15 seconds.
MOST_UNITS = 600


def unit(student):
    """CPU seconds of a forward and a backward pass over 4,096 tokens: how fast is this machine, with
    whatever else it does?"""
    ids = torch.arange(64)[:, None].add(torch.arange(64)).remainder(100)
    seconds = []
    for _ in range(5):
        began = time.process_time()
        student(input_ids=ids, labels=ids).loss.backward()
        seconds.append(time.process_time() - began)
    return min(seconds)


def children():
    """CPU seconds of all child processes that have ended."""
    times = os.times()
    return times.children_user + times.children_system


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.name)
def test_notebook(path: Path, toy, monkeypatch):
    # The kernel warns of its own affairs, and NumPy of every tensor that matplotlib draws.
    monkeypatch.setenv("PYTHONWARNINGS", "default")
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    notebook = nbformat.read(path, as_version=4)
    code = [c for c in notebook.cells if c.cell_type == "code"]
    assert all(c.execution_count for c in code) and any("image/png" in o.get("data", {}) for c in code for o in c.outputs)
    begun, before = children(), unit(toy[0])
    nbclient.NotebookClient(notebook, timeout=900, kernel_name="python3", resources={"metadata": {"path": str(path.parent)}}).execute()
    units = (children() - begun) / max(before, unit(toy[0]))
    print(f"{path.name}: {children() - begun:.0f} s of CPU, {units:.0f} units")
    assert 10 < units < MOST_UNITS
    errors = [o for c in notebook.cells if c.cell_type == "code" for o in c.outputs if o.output_type == "error"]
    assert not errors


def test_there_are_notebooks():
    assert [p.name[:2] for p in NOTEBOOKS] == ["00", "01", "02", "03", "04", "05"]


def test_the_notebook_of_forks_counts_its_signals_right():
    """And each of them has a source: a formula that is only our reading of an abstract has no place."""
    cells = json.loads(NOTEBOOKS[5].read_text(encoding="utf-8"))["cells"]
    text, code = ("\n".join("".join(c["source"]) for c in cells if c["cell_type"] == kind) for kind in ("markdown", "code"))
    rows = re.findall(r"^\| (?!signal|---)(.+?) \| .+ \| (.+) \|$", text, re.M)
    of_2026 = [name for name, source in rows if re.search(r"\b26\d\d\.\d{5}", source)]
    assert len(rows) == 12 and "a dozen token signals" in text and "The twelve signals" in text
    assert len(of_2026) == 8 and "eight of them after papers of 2026" in text
    assert len(re.findall(r"= signal\(", code)) == 8 and "Eight are forks of the harness" in text
    assert not re.search("our (reading|choice|way to)", "".join(source for _, source in rows))


# ------------------------------------------------------------------------ the first cell


def code_of(path):
    """The texts of all code cells."""
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return ["".join(c["source"]) for c in cells if c["cell_type"] == "code"]


FIRST = code_of(NOTEBOOKS[0])[0]


def test_the_first_cell_is_the_same_in_all_notebooks():
    assert FIRST.splitlines()[3].startswith("REPOSITORY = ")
    assert [code_of(path)[0] for path in NOTEBOOKS] == [FIRST] * len(NOTEBOOKS)


@pytest.mark.parametrize("folder", (ROOT, ROOT / "notebooks"))
def test_beside_the_repository_the_first_cell_does_nothing(folder, monkeypatch):
    monkeypatch.chdir(folder)
    monkeypatch.setattr(subprocess, "run", None)
    exec(FIRST, {})
    assert Path.cwd() == folder


def test_the_first_cell_asks_for_an_address(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(subprocess, "run", None)
    if "OWNER/NAME" in FIRST.splitlines()[3]:
        with pytest.raises(ValueError, match="REPOSITORY has no address yet"):
            exec(FIRST, {})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="this copy of the repository has no history")
@pytest.mark.skipif(not importlib.util.find_spec("pip"), reason="needs pip")
def test_the_first_cell_gets_the_repository_into_an_empty_folder(tmp_path):
    cell = re.sub("REPOSITORY = .*", f"REPOSITORY = {ROOT.as_uri()!r}", FIRST, count=1)
    cell += "\nprint(os.getcwd())"
    # No index: what requirements.txt names is installed here, and nothing else may be wanted. pip
    # warns of packages that it holds itself.
    environment = {**os.environ, "PIP_NO_INDEX": "1", "PIP_DISABLE_PIP_VERSION_CHECK": "1",
                   "PYTHONWARNINGS": "default"}

    def run():
        return subprocess.run([sys.executable, "-c", cell], cwd=tmp_path, env=environment,
                              capture_output=True, text=True)
    first = run()
    assert first.returncode == 0, first.stderr
    assert first.stdout.strip() == str(tmp_path / "distillation")
    assert (tmp_path / "distillation/notebooks" / NOTEBOOKS[0].name).exists()
    # After a restart of the kernel it is there already, and may have been changed.
    (tmp_path / "distillation/opd.py").write_text("mine")
    assert run().stdout == first.stdout
    assert (tmp_path / "distillation/opd.py").read_text() == "mine"


# ------------------------------------------------------------------------ the address

BADGE = r"\(https://colab\.research\.google\.com/github/([\w.-]+/[\w.-]+)/blob/main/notebooks/(.+?)\)"


def addresses(folder):
    """[(notebook, the address of its first cell, that of its badge, the notebook of its badge)]"""
    found = []
    for path in sorted(folder.glob("*.ipynb")):
        first = "".join(json.loads(path.read_text(encoding="utf-8"))["cells"][0]["source"])
        cell = re.search('REPOSITORY = "https://github.com/(.+?)"', code_of(path)[0])[1]
        found.append((path.name, cell, *re.search(BADGE, first).groups()))
    return found


def test_every_notebook_has_a_badge_with_the_address_of_its_first_cell():
    found = addresses(ROOT / "notebooks")
    assert len(found) == 6 and len({cell for _, cell, _, _ in found}) == 1
    assert all(name == opened and cell == badge for name, cell, badge, opened in found)


def test_an_address_is_written_into_all_notebooks_and_nothing_else_changes(tmp_path, capsys):
    from notebooks import address
    for path in NOTEBOOKS:
        shutil.copy(path, tmp_path)
    before = {p.name: p.read_text(encoding="utf-8") for p in NOTEBOOKS}
    for given in ("someone/a.fork-2", "https://github.com/someone/a.fork-2/",
                  "https://github.com/someone/a.fork-2.git"):
        address.main([given], tmp_path)
        assert {x[1:3] for x in addresses(tmp_path)} == {("someone/a.fork-2",) * 2}
    address.main([addresses(ROOT / "notebooks")[0][1]], tmp_path)
    assert {p.name: p.read_text(encoding="utf-8") for p in tmp_path.iterdir()} == before
    with pytest.raises(Mistake, match="write OWNER/NAME"):
        address.main(["mine"], tmp_path)


# ------------------------------------------------------------------------ 00_your_gpu


@pytest.mark.slow
def test_the_settings_for_a_t4_fit_by_prediction():
    text = NOTEBOOKS[0].read_text(encoding="utf-8")
    cell = next(c for c in code_of(NOTEBOOKS[0]) if "settings = " in c)
    real = re.sub("else:.*?\nsettings", "settings", cell, flags=re.S)
    words = " ".join(re.findall(r"settings \+?= \"(.*)\"", real)).split()
    flags = ["--data", "gsm8k", "--student", "Qwen/Qwen3-0.6B", "--teacher", "Qwen/Qwen3-1.7B", *words]
    args = parse(topd.Args, "", flags, "topd")
    room = round(14.56 * 2**30)                         # what a program finds free of a T4's 16 GB
    peak = predicted_peak(args, torch.device("cuda"), torch.float16, room)
    assert peak < 0.9 * room and f"predicted peak is {peak / 2**30:.1f} GiB" in text
