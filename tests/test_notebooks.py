"""Every notebook runs from top to bottom, in time, and is shipped with its outputs."""
import time
from pathlib import Path

import pytest
from conftest import ROOT

pytestmark = pytest.mark.slow

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.name)
def test_notebook(path: Path):
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    notebook = nbformat.read(path, as_version=4)
    code = [c for c in notebook.cells if c.cell_type == "code"]
    assert all(c.execution_count for c in code) and any("image/png" in o.get("data", {}) for c in code for o in c.outputs)
    begun = time.time()
    nbclient.NotebookClient(notebook, timeout=180, kernel_name="python3", resources={"metadata": {"path": str(path.parent)}}).execute()
    assert time.time() - begun < 90 * 1.5       # 90 seconds on two quiet cores; half as much again on busy ones
    errors = [o for c in notebook.cells if c.cell_type == "code" for o in c.outputs if o.output_type == "error"]
    assert not errors


def test_there_is_a_notebook():
    assert [p.name for p in NOTEBOOKS][:1] == ["01_on_policy_distillation.ipynb"]
