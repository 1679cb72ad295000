"""The table of mutants fits the code. (To run them takes minutes: python benchmarks/mutants.py.)"""

import sys

import pytest
from conftest import ROOT

sys.path.insert(0, str(ROOT / "benchmarks"))
import mutants

NAMES = sorted({m[0] for m in mutants.MUTANTS})


@pytest.mark.parametrize("name", NAMES)
def test_every_mutant_is_one_changed_line_that_python_can_read(name):
    source = (ROOT / name).read_text()
    for _, right, wrong, files in [m for m in mutants.MUTANTS if m[0] == name]:
        assert right in source and right != wrong, right
        changed = source.replace(right, wrong, 1)
        compile(changed, name, "exec")
        assert all((ROOT / f"tests/test_{f}.py").exists() for f in files.split())


def test_there_are_enough_of_them():
    methods = {"opd.py", "topd.py", "ar_opd.py", "hindsight_sd.py", "grpo.py"}
    assert len(set(mutants.MUTANTS)) == len(mutants.MUTANTS) >= 60 and methods <= set(NAMES)
