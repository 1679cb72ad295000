"""The process of math-verify: it keeps its time limit and executes no text of a model."""
import threading
import time
from pathlib import Path

import pytest
from test_grading import GRADED, box, timed

from common import judge
from common.arguments import Mistake
from common.grading import grade

TOWER = "9^{9^{9^{9}}}"  # sympy would compute this number forever


@pytest.fixture(scope="module", autouse=True)
def started():
    judge.warm_up(wait=True)


def test_many_slow_members_share_one_clock():
    slow, other = ", ".join([TOWER] * 8), ", ".join(f"x^{i}" for i in range(2, 10))
    tuples = box(f"({slow})"), f"({other})"
    for response, gold in ((box(slow), other), (box(other), slow), tuples):
        seconds, verdict = timed(grade, response, gold)
        assert seconds < 2 and verdict is False


def test_a_question_after_a_killed_one_is_answered():
    assert not grade(box(TOWER), "x")
    seconds, verdict = timed(grade, box("(x+1)^2"), "x^2+2x+1")
    assert verdict and seconds < 1


def test_a_dead_worker_is_replaced():
    judge._worker.kill()
    judge._worker.wait()
    assert judge.math_verify("(x+1)^2", "x^2+2x+1", time.monotonic() + 1.5)


def test_a_question_that_is_late_or_too_long_is_not_asked():
    assert judge.math_verify("1+x", "x+1", time.monotonic() + 1.5) is True
    assert judge.math_verify("1+x", "x+1", time.monotonic()) is False
    assert judge.math_verify("1+x" + "+0" * 150, "x+1", time.monotonic() + 1.5) is False


def test_a_missing_math_verify_is_a_mistake(monkeypatch):
    monkeypatch.setattr(judge, "_worker", None)
    monkeypatch.setattr(judge, "WORKER", "import no_such_package")
    with pytest.raises(Mistake, match="math-verify could not be loaded"):
        judge.warm_up(wait=True)


def test_nothing_is_executed(tmp_path):
    target = tmp_path / "executed"
    codes = (
        f"__import__('os').system('touch {target}')",
        f"open('{target}','w')",
        f"().__class__.__base__.__subclasses__() or open('{target}','w')",
        f"exec(\"open('{target}','w')\")",
        f"\\text{{}}__import__('pathlib').Path('{target}').touch()",
        f"eval(compile(\"open('{target}','w')\",'','exec'))",
    )
    for code in codes:
        for response, gold in ((box(code), "1"), (box(code), "x"), (box("x"), code), (code, "3")):
            assert grade(response, gold) is False
    assert not Path(target).exists()


def test_verdicts_do_not_depend_on_order_or_threads():
    verdicts = {}

    def work(part):
        for i in part:
            response, gold, *_ = GRADED[i]
            verdicts[i] = grade(response, gold)

    threads = [threading.Thread(target=work, args=(range(k, len(GRADED), 3),)) for k in range(3)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert [verdicts[i] for i in range(len(GRADED))] == [case[2] for case in GRADED]
