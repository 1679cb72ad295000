"""The process that runs math-verify, which decides whether two expressions are equal.

math-verify computes with sympy, and sympy can take minutes or gigabytes on a tower of
exponents. math-verify's own time limit is a signal, and a signal works in the main thread
only. So math-verify runs in a process of its own, the worker:

    this process  --[answer, gold, seconds]-->  worker  --fork-->  child, one per question
                  <-- [verdict, seconds] -----          <- 1 or 0 -

The worker starts once and loads sympy, which takes a second or two. Then it forks a child
for each question. The time limit of a question is CPU time of its child, because on a busy
machine a right answer takes long on the clock too. So the two seconds that `grade` promises
are CPU seconds. A child beyond its limit is killed, and the worker answers the next question
at once.

Nothing outlives a question. The kernel kills a child with too much CPU time, and on Linux
also a child whose worker has died. The worker ends itself and its child when this process
has died. The worker has a session of its own, so that Ctrl-C does not reach it.

The text of a model is never executed. math-verify has two ways to read an expression. The
worker uses only `LatexExtractionConfig`, which parses LaTeX by a grammar. The other way is
sympy's `parse_expr`, which is Python's `eval`. It is never called on a model's text.
"""

import atexit
import json
import os
import queue
import subprocess
import sys
import threading
from dataclasses import dataclass

from common.arguments import Mistake

# No gold of a benchmark comes near this many characters. More would take seconds to parse.
LONGEST_EXPRESSION = 300
# The CPU time that math-verify may take for one answer. `grade` promises two seconds.
SECONDS = 1.5
# The longest wait on the clock for one question, on however busy a machine.
PATIENCE = 30
# The same on a system without fork (Windows), where nothing else limits a question.
PATIENCE_WITHOUT_FORK = 6

# The worker's program. It writes "ready" when sympy is loaded. Then each line of its input
# is a question, and it answers with a line: [verdict, CPU seconds].
WORKER = r"""
import json, os, queue, select, signal, sys, threading, time
from math_verify import LatexExtractionConfig, parse, verify

READ_LATEX = [LatexExtractionConfig(boxed_match_priority=0)]

def read(text):
    # The time limits of math-verify are off: the worker has its own, which kills.
    text = "\\boxed{" + text + "}"
    return parse(text, extraction_config=READ_LATEX, parsing_timeout=None)

def judge(said, gold):
    both = read(gold), read(said)
    return bool(verify(*both, timeout_seconds=None)) and as_close(*both)

def as_close(gold, said):
    # math-verify rounds numbers to six decimals. So any two tiny numbers are equal for it. Here
    # they must also be close in proportion: in a hundred digits, or in six if one is a decimal.
    numbers = [x[0] for x in (gold, said) if x and getattr(x[0], "is_number", False)]
    if len(numbers) < 2:
        return True
    from sympy import Float, Rational
    digits = 6 if any(n.has(Float) for n in numbers) else 100
    a, b = (n.evalf(120) for n in numbers)
    if not all(n.is_number and n.is_finite for n in (a, b)):
        return True
    return bool(abs(a - b) <= Rational(1, 10**digits) * max(abs(a), abs(b)))

def judge_within_memory(said, gold):
    # Two gigabytes are the limit. A system without such a limit goes on without it.
    try:
        import resource
        resource.setrlimit(resource.RLIMIT_AS, (2 << 30, 2 << 30))
    except Exception:
        pass
    # Whatever goes wrong with the text of a model, it was not the gold.
    try:
        return judge(said, gold)
    except BaseException:
        return False

def limit_this_child(seconds, worker):
    # After so much CPU time the kernel sends SIGPROF, which ends a process.
    signal.setitimer(signal.ITIMER_PROF, seconds)
    # The same once more in whole seconds. A system without it has the first limit.
    try:
        import resource
        resource.setrlimit(resource.RLIMIT_CPU, (int(seconds) + 1, int(seconds) + 1))
    except Exception:
        pass
    # On Linux the kernel kills this child when its worker dies: 1 is PR_SET_PDEATHSIG.
    try:
        import ctypes
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)
    except Exception:
        pass
    # The worker may have died before that.
    if os.getppid() != worker:
        os._exit(1)

def ask_child(said, gold, seconds, patience):
    worker = os.getpid()
    reading_end, writing_end = os.pipe()
    child = os.fork()
    if child == 0:
        limit_this_child(seconds, worker)
        os.write(writing_end, b"1" if judge_within_memory(said, gold) else b"0")
        os._exit(0)
    os.close(writing_end)

    # Wait for the verdict. A child that was killed closes the pipe without one. The input
    # of the worker has something to read only if the process that asks has died.
    readable = select.select([reading_end, sys.stdin], [], [], patience)[0]
    verdict = os.read(reading_end, 1) if reading_end in readable else b"0"
    os.close(reading_end)

    # Kill the child in any case, and wait for its end, so that no dead children pile up.
    before = os.times()
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    after = os.times()
    used = after.children_user - before.children_user
    used += after.children_system - before.children_system
    return verdict == b"1", used if readable else seconds

def lines_until_the_end():
    # A worker without fork computes in its main thread, and could not see the end of its
    # input there. So another thread reads the input, and ends the process with it.
    lines = queue.Queue()
    def watch():
        for line in sys.stdin:
            lines.put(line)
        os._exit(0)
    threading.Thread(target=watch, daemon=True).start()
    while True:
        yield lines.get()

# The first question of each kind is slow, because sympy loads the rest of itself for it.
# All children inherit what is loaded here.
for said, gold in (
    ("x+1", "1+x"),
    ("(x+1)^2", "x^2+2x+1"),
    (r"\frac{1}{\sqrt{2}}", r"\frac{\sqrt{2}}{2}"),
    (r"\sin(2x)", r"2\sin(x)\cos(x)"),
    (r"\begin{pmatrix}1\\2\end{pmatrix}", r"\begin{pmatrix}1\\1+1\end{pmatrix}"),
    (r"\{1,\frac{2}{2}+1\}", r"\{1,2\}"),
    (r"(0,1]\cup[2,\infty)", r"(0,\frac{2}{2}]\cup[2,\infty)"),
    ("2x=y", "y=2x"),
    ("3<x", "x>3"),
):
    judge(said, gold)

forks = hasattr(os, "fork")
print("ready" if forks else "ready without fork", flush=True)

for line in sys.stdin if forks else lines_until_the_end():
    said, gold, seconds, patience = json.loads(line)
    if forks:
        verdict, used = ask_child(said, gold, seconds, patience)
    else:
        begun = time.process_time()
        verdict, used = judge_within_memory(said, gold), time.process_time() - begun
    print(json.dumps([verdict, used]), flush=True)
"""

# All threads share one worker. The lock gives each thread the verdict on its own question.
_worker, _worker_lock = None, threading.Lock()


@dataclass
class Budget:
    """The CPU seconds that are left for one answer. All of its comparisons share them."""

    seconds: float = SECONDS


def _alive():
    """Whether this process has a worker. A forked process must not use that of its parent:
    the two would read each other's verdicts."""
    return _worker is not None and _worker.owner == os.getpid() and _worker.poll() is None


@atexit.register
def _stop():
    if _alive():
        _kill()


def warm_up(wait=False):
    """Start the worker if none is alive. `evaluate` does this while it samples.

    wait: return only when the worker can answer questions.
    """
    global _worker
    if not _alive():
        if _worker is not None and _worker.owner == os.getpid():
            _kill()  # it is dead; this closes its pipes
        worker = subprocess.Popen(
            # A warning of sympy is no verdict, whatever PYTHONWARNINGS says.
            [sys.executable, "-W", "ignore", "-c", WORKER],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            encoding="utf-8",
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            # Ctrl-C goes to all processes of a group. So the worker gets a session of its
            # own, or on Windows a group.
            start_new_session=True,
            creationflags=getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0),
        )
        worker.ready, worker.owner, worker.lines = None, os.getpid(), queue.Queue()
        # A thread reads, because Windows cannot wait for a pipe with a time limit.
        worker.reader = threading.Thread(target=_read_lines, args=(worker,), daemon=True)
        worker.reader.start()
        _worker = worker

    if wait and _worker.ready is None:
        first = _worker.lines.get().strip()
        if not first.startswith("ready"):
            raise Mistake(
                "math-verify could not be loaded; "
                "install the requirements: pip install -r requirements.txt"
            )
        _worker.ready = first


def _read_lines(worker):
    for line in worker.stdout:
        worker.lines.put(line)
    worker.lines.put("")  # it has died


def math_verify(said, gold, budget):
    """Whether math-verify finds two expressions equal. Too late or too long means False.

    budget: the CPU time that may be used. What was used is taken from it.
    """
    if len(said) > LONGEST_EXPRESSION or len(gold) > LONGEST_EXPRESSION:
        return False

    with _worker_lock:
        # A worker that died, of whatever cause, says nothing about the answer. So the
        # question is asked once more.
        for _ in range(2):
            if budget.seconds <= 0:
                return False
            reply = _ask(said, gold, budget)
            if reply is not None:
                return reply
    return False


def _ask(said, gold, budget):
    """True or False, or None if the worker has died."""
    warm_up(wait=True)
    patience = PATIENCE if _worker.ready == "ready" else PATIENCE_WITHOUT_FORK
    try:
        _worker.stdin.write(json.dumps([said, gold, budget.seconds, patience]) + "\n")
        _worker.stdin.flush()
        # The worker itself gives up after its patience. One second later it is broken.
        line = _worker.lines.get(timeout=patience + 1)
        if line:
            verdict, used = json.loads(line)
            budget.seconds -= used
            return verdict
    except OSError:
        pass
    except queue.Empty:
        # The worker hangs. The next question starts a new one.
        budget.seconds = 0
        _kill()
        return False
    except BaseException:
        # Ctrl-C, for example. The verdict is still to come, and the next question would
        # take it for its own.
        _kill()
        raise
    # The worker has closed its pipes. Wait until it is dead, so that nobody asks it again.
    _kill()
    return None


def _kill():
    _worker.kill()
    _worker.wait()
    # The reader ends with the pipe. Then both pipes can be closed.
    _worker.reader.join(timeout=1)
    try:
        _worker.stdout.close()
        _worker.stdin.close()
    except OSError:
        pass  # a question was still in the pipe
