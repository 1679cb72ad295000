"""The process of math-verify: it keeps its limit of CPU time whatever else the machine does, it
leaves no process behind, and it executes no text of a model."""
import json
import os
import select
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from conftest import ROOT
from test_grading import GRADED, box, timed

from common import judge
from common.arguments import Mistake
from common.grading import grade

TOWER = "9^{9^{9^{9}}}"  # sympy would compute this number forever
SQUARE = "(x+1)^2", "x^2+2x+1"
SLOW = TOWER, "x+y"
LINUX = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")


@pytest.fixture(scope="module", autouse=True)
def started():
    judge.warm_up(wait=True)


# Stands for math-verify where a test is about processes: it starts at once, and only a tower
# of exponents takes forever.
STUB = """
LatexExtractionConfig, parse = dict, lambda text, **_: text
def verify(gold, said, **_):
    while "9^{9^" in said:
        pass
    return "1)^2" in said
"""
IMPORT = "from math_verify import LatexExtractionConfig, parse, verify\n"


@pytest.fixture
def own_worker(monkeypatch):
    """A function that starts another worker. after_imports: code for its program, which is by
    default math-verify's stand-in."""
    assert judge.WORKER.count(IMPORT) == 1

    def start(after_imports="", real=False):
        program = judge.WORKER.replace(IMPORT, (IMPORT if real else STUB) + after_imports)
        return start_program(program)

    def start_program(program):
        monkeypatch.setattr(judge, "_worker", None)
        monkeypatch.setattr(judge, "WORKER", program)
        judge.warm_up(wait=True)
        return judge._worker

    start.program = start_program
    yield start
    judge._kill()


def ask(said, gold, seconds=1.5):
    return judge.math_verify(said, gold, judge.Budget(seconds))


def ask_in_thread(said, gold):
    """A started thread, and the list that will hold its verdict."""
    verdicts = []
    thread = threading.Thread(target=lambda: verdicts.append(ask(said, gold)))
    thread.start()
    return thread, verdicts


def session(leader):
    """The ids of all living processes in the session of a worker: itself and its children."""
    ids = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[3]) == leader and fields[0] != "Z":
            ids.append(int(stat.parent.name))
    return ids


def wait_until(condition, seconds=20):
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.01)
    assert condition()


# ======================================================================== the time limit


def test_many_slow_members_share_one_budget():
    slow, other = ", ".join([TOWER] * 8), ", ".join(f"x^{i}" for i in range(2, 10))
    tuples = box(f"({slow})"), f"({other})"
    for response, gold in ((box(slow), other), tuples):
        seconds, verdict = timed(grade, response, gold)
        assert seconds < 2 and verdict is False


def test_a_question_after_a_killed_one_is_answered():
    assert not ask(*SLOW, 0.3)
    seconds, verdict = timed(ask, *SQUARE)
    assert verdict and seconds < 1


def test_a_question_that_is_late_or_too_long_is_not_asked():
    assert ask("1+x", "x+1") is True
    assert ask("1+x", "x+1", seconds=0) is False
    assert ask("1+x" + "+0" * 150, "x+1") is False


def test_what_a_question_used_is_taken_from_the_budget():
    budget = judge.Budget(1.0)
    assert judge.math_verify(*SQUARE, budget)
    assert 0.5 < budget.seconds < 1
    assert not judge.math_verify(*SLOW, budget) and budget.seconds <= 0.05


@pytest.mark.parametrize("said,gold", [
    SQUARE, (r"\sqrt{18}", r"3\sqrt{2}"), (r"\frac{1}{1+\sqrt{2}}", r"\sqrt{2}-1"),
    (r"\begin{pmatrix}1&2\\3&4\end{pmatrix}", r"\begin{pmatrix}1&1+1\\3&4\end{pmatrix}"),
    (r"\{2,3\}", r"\{3,1+1\}"), ("[0,1)", r"[0,\frac{3}{3})"), (r"\cos(2x)", r"1-2\sin^2(x)")])
def test_the_first_question_of_a_kind_finds_everything_loaded(said, gold):
    # A child is forked for each question, so that each is the first one of its process.
    budget = judge.Budget()
    assert judge.math_verify(said, gold, budget)
    assert judge.SECONDS - budget.seconds < 0.3


@LINUX
def test_a_machine_that_does_not_get_to_it_makes_nothing_wrong():
    # The worker stands still for longer than the limit. It uses no CPU time meanwhile.
    worker = judge._worker
    os.kill(worker.pid, signal.SIGSTOP)
    thread, verdicts = ask_in_thread(*SQUARE)
    time.sleep(judge.SECONDS + 0.5)
    os.kill(worker.pid, signal.SIGCONT)
    thread.join()
    assert verdicts == [True] and judge._worker is worker


def test_patience_has_an_end(own_worker, monkeypatch):
    worker = own_worker()
    monkeypatch.setattr(judge, "PATIENCE", -0.5)
    os.kill(worker.pid, signal.SIGSTOP)
    assert ask(*SQUARE) is False and worker.poll() is not None
    monkeypatch.setattr(judge, "PATIENCE", 30)
    assert ask(*SQUARE) is True


# ======================================================================== no fork, no limits

NO_FORK = "for name in ('fork', 'waitpid', 'getppid'): delattr(os, name)\n"
NO_LIMITS = "sys.modules['resource'] = sys.modules['ctypes'] = None\n"


def test_a_system_without_fork(own_worker, monkeypatch):
    # On Windows, select knows sockets only. Neither process may need it.
    monkeypatch.setattr(select, "select", None)
    worker = own_worker(NO_FORK + NO_LIMITS + "select.select = None\n", real=True)
    assert judge._worker.ready == "ready without fork"
    assert ask(*SQUARE) is True and ask("x+2", "x+1") is False and judge._worker is worker


@LINUX
def test_a_question_that_hangs_on_a_system_without_fork(own_worker, monkeypatch):
    worker = own_worker(NO_FORK + NO_LIMITS)
    # The worker that hangs is killed, and the next question starts another.
    monkeypatch.setattr(judge, "PATIENCE_WITHOUT_FORK", -0.5)
    assert ask(*SLOW) is False and session(worker.pid) == []
    monkeypatch.setattr(judge, "PATIENCE_WITHOUT_FORK", 6)
    assert ask(*SQUARE) is True and judge._worker is not worker


@LINUX
def test_a_worker_without_fork_ends_with_the_process_that_asks(own_worker):
    worker = own_worker(NO_FORK + NO_LIMITS)
    worker.stdin.write(json.dumps([*SLOW, 1.5, 6]) + "\n")
    worker.stdin.close()
    wait_until(lambda: worker.poll() is not None and not session(worker.pid))


def test_a_system_with_fork_but_without_resource(own_worker):
    worker = own_worker(NO_LIMITS)
    assert ask(*SQUARE) is True
    assert ask(*SLOW, 0.3) is False and ask(*SQUARE) is True
    assert judge._worker is worker and worker.poll() is None


# ======================================================================== death


def test_a_dead_worker_is_replaced(own_worker):
    own_worker()
    judge._worker.kill()
    judge._worker.wait()
    assert ask(*SQUARE)


def test_a_worker_that_dies_during_a_question_is_asked_again(own_worker):
    worker = own_worker()
    os.kill(worker.pid, signal.SIGSTOP)
    thread, verdicts = ask_in_thread(*SQUARE)
    time.sleep(0.2)
    worker.kill()
    thread.join()
    assert verdicts == [True] and judge._worker is not worker


def test_a_question_that_kills_every_worker_is_asked_twice(own_worker, tmp_path):
    program = f"import os\nprint('ready', flush=True)\ninput()\nopen({str(tmp_path)!r} + '/'"
    own_worker.program(program + " + str(os.getpid()), 'w')\n")
    assert ask(*SQUARE) is False
    assert len(list(tmp_path.iterdir())) == 2


def test_an_interrupted_question_leaves_no_verdict_for_the_next(own_worker, monkeypatch):
    own_worker()

    def interrupt(*args, **more):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(judge._worker.lines, "get", interrupt)
        ask("x+2", "x+1")
    assert ask(*SQUARE) is True


def test_the_worker_outlives_the_thread_that_started_it(own_worker):
    thread = threading.Thread(target=own_worker)
    thread.start()
    thread.join()
    worker = judge._worker
    assert ask(*SQUARE) is True and judge._worker is worker


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_process_does_not_read_the_verdicts_of_its_parent():
    worker = judge._worker
    child = os.fork()
    if child == 0:
        os._exit(0 if not judge._alive() else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert judge._worker is worker and ask(*SQUARE) is True


# A process that starts a worker, prints its id, and survives Ctrl-C.
ASKING = """
import signal, sys
from common import judge
signal.signal(signal.SIGINT, lambda *_: None)
judge.warm_up(wait=True)
print(judge._worker.pid, flush=True)
for line in sys.stdin:
    verdict = judge.math_verify(*line.split(), judge.Budget())
    print(verdict, judge._worker.pid, flush=True)
"""


@pytest.fixture
def other():
    """Such a process. Whatever the test finds, nothing of it stays."""
    process = subprocess.Popen([sys.executable, "-c", ASKING], cwd=ROOT, text=True,
                               stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                               start_new_session=True)
    process.workers = []
    with process:
        yield process
        process.kill()
    for left in [pid for worker in process.workers for pid in session(worker)]:
        os.kill(left, signal.SIGKILL)


@LINUX
def test_control_c_does_not_reach_the_worker_and_nothing_outlives_a_question(other):
    def send(said, gold):
        print(said, gold, file=other.stdin, flush=True)

    first = int(other.stdout.readline())
    other.workers.append(first)
    assert os.getpgid(first) != other.pid
    os.killpg(other.pid, signal.SIGINT)
    send(*SQUARE)
    assert other.stdout.readline() == f"True {first}\n"

    # The worker is killed during a question. Its child is stopped, so it uses no CPU time
    # and never reaches its limit: it ends because its worker has died.
    send(*SLOW)
    stop_child_of(first)
    os.kill(first, signal.SIGKILL)
    wait_until(lambda: not session(first))
    # The question was asked again of another worker, and had its time there.
    verdict, second = other.stdout.readline().split()
    second = int(second)
    other.workers.append(second)
    assert verdict == "False" and second != first and session(second) == [second]

    # The process is killed during a question.
    send(*SLOW)
    stop_child_of(second)
    other.kill()
    wait_until(lambda: not session(second))


def stop_child_of(worker):
    wait_until(lambda: len(session(worker)) == 2)
    [child] = [process for process in session(worker) if process != worker]
    # It has set its limits when it computes: not in its first moments.
    wait_until(lambda: user_ticks(child) > 0.2 * os.sysconf("SC_CLK_TCK"))
    os.kill(child, signal.SIGSTOP)


def user_ticks(process):
    stat = Path(f"/proc/{process}/stat").read_text()
    return int(stat.rpartition(")")[2].split()[11])


# It uses all CPU time that it gets, until its parent has died, or two minutes are over.
SPINNING = """
import os, time
os.nice(1)
parent, end = os.getppid(), time.monotonic() + 120
print(flush=True)
while os.getppid() == parent and time.monotonic() < end:
    pass
"""


@pytest.fixture
def busy_machine():
    """Two processes that compute beside the test, and end with it."""
    command = [sys.executable, "-c", SPINNING]
    spinning = [subprocess.Popen(command, stdout=subprocess.PIPE) for _ in range(2)]
    for process in spinning:
        process.stdout.readline()
    yield
    running = [process.poll() is None for process in spinning]
    for process in spinning:
        process.kill()
        process.communicate()
    assert running == [True, True]


@LINUX
def test_hostile_questions_leave_no_process(busy_machine):
    worker = judge._worker.pid
    for said in (TOWER, r"\binom{10^9}{10^8}", "(10!)!", r"\int_0^{9^9} x^{x^x} dx"):
        ask(said, "x+y", 0.2)
        assert session(worker) == [worker]
    assert ask(*SQUARE) is True and judge._worker.pid == worker
    limits = subprocess.run([sys.executable, "-c", CHILD_LIMITS], cwd=ROOT, text=True,
                            capture_output=True, check=True)
    assert json.loads(limits.stdout) == [True, [3, 3]]


# What a child is limited to, by the worker's own function.
CHILD_LIMITS = """
import json, resource
from common import judge
before, _, after = judge.WORKER.partition("# The first question of each kind")
exec(before)
limit_this_child(2, os.getppid())
print(json.dumps([0 < signal.getitimer(signal.ITIMER_PROF)[0] <= 2.01,
                  resource.getrlimit(resource.RLIMIT_CPU)]))
"""


# ======================================================================== the rest


def test_a_missing_math_verify_is_a_mistake(own_worker):
    with pytest.raises(Mistake, match="math-verify could not be loaded"):
        own_worker.program("import no_such_package")


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
