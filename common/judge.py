"""The process that runs math-verify, which decides whether two expressions are equal.

math-verify computes with sympy, and sympy can take minutes or gigabytes on a tower of
exponents. math-verify's own time limit is a signal, and a signal works in the main thread
only. So math-verify runs in a process of its own, the worker:

    this process  --[answer, gold, seconds]-->  worker  --fork-->  child, one per question
                  <-------- true or false -----         <- 1 or 0 -

The worker starts once and loads sympy, which takes a second or two. Then it forks a child
for each question. A child that takes too long is killed, and the worker answers the next
question at once.

The text of a model is never executed. math-verify has two ways to read an expression. The
worker uses only `LatexExtractionConfig`, which parses LaTeX by a grammar. The other way is
sympy's `parse_expr`, which is Python's `eval`. It is never called on a model's text.
"""

import atexit
import json
import os
import select
import subprocess
import sys
import threading
import time

from common.arguments import Mistake

# No gold of a benchmark comes near this many characters. More would take seconds to parse.
LONGEST_EXPRESSION = 300
# The time limit of a question that had to wait for the start of the worker.
SECONDS = 1.5
# A worker that is late by more seconds than this is broken, and is killed.
GRACE = 0.3

# The worker's program. It writes "ready" when sympy is loaded. Then each line of its input
# is a question, and it answers with a line: true or false.
WORKER = r"""
import json, os, select, signal, sys
from math_verify import LatexExtractionConfig, parse, verify

READ_LATEX = [LatexExtractionConfig(boxed_match_priority=0)]

def read(text):
    # The time limits of math-verify are off: the worker has its own, which kills.
    text = "\\boxed{" + text + "}"
    return parse(text, extraction_config=READ_LATEX, parsing_timeout=None)

def judge(said, gold):
    return bool(verify(read(gold), read(said), timeout_seconds=None))

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

# The first question is the slow one: sympy loads the rest of itself.
judge("x+1", "1+x")
print("ready", flush=True)

for line in sys.stdin:
    said, gold, seconds = json.loads(line)

    # A system without fork has no child that could be killed. The worker answers itself.
    if not hasattr(os, "fork"):
        print(json.dumps(judge_within_memory(said, gold)), flush=True)
        continue

    reading_end, writing_end = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading_end)
        os.write(writing_end, b"1" if judge_within_memory(said, gold) else b"0")
        os._exit(0)
    os.close(writing_end)

    # Wait for the verdict, at most as long as the question may take. Too late means False.
    answered = select.select([reading_end], [], [], seconds)[0]
    verdict = os.read(reading_end, 1) if answered else b"0"
    os.close(reading_end)

    # Kill the child in any case, and wait for its end, so that no dead children pile up.
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    print(json.dumps(verdict == b"1"), flush=True)
"""

# All threads share one worker. The lock gives each thread the verdict on its own question.
_worker, _worker_lock = None, threading.Lock()


def _is_ready():
    """Whether the worker has loaded sympy and is alive."""
    return _worker is not None and _worker.ready and _worker.poll() is None


def warm_up(wait=False):
    """Start the worker if none is alive. `evaluate` does this while it samples.

    wait: return only when the worker can answer questions.
    """
    global _worker
    if _worker is None or _worker.poll() is not None:
        worker = subprocess.Popen(
            [sys.executable, "-c", WORKER],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            encoding="utf-8",
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        worker.ready = False
        atexit.register(worker.kill)
        _worker = worker

    if wait and not _worker.ready:
        if _worker.stdout.readline().strip() != "ready":
            raise Mistake(
                "math-verify could not be loaded; "
                "install the requirements: pip install -r requirements.txt"
            )
        _worker.ready = True


def math_verify(said, gold, until):
    """Whether math-verify finds two expressions equal. Too late or too long means False.

    until: the value of time.monotonic() at which the verdict must be there.
    """
    if len(said) > LONGEST_EXPRESSION or len(gold) > LONGEST_EXPRESSION:
        return False

    with _worker_lock:
        # The answer must not pay for the start of the worker. So a question that had to
        # wait for the start gets the full time.
        was_ready = _is_ready()
        warm_up(wait=True)
        seconds = until - time.monotonic() if was_ready else SECONDS
        if seconds <= 0:
            return False

        try:
            _worker.stdin.write(json.dumps([said, gold, seconds]) + "\n")
            _worker.stdin.flush()
            if not select.select([_worker.stdout], [], [], seconds + GRACE)[0]:
                # The worker itself hangs. Kill it; the next question starts a new one.
                _worker.kill()
                _worker.wait()
                return False
            # An empty line means that the worker has died.
            return json.loads(_worker.stdout.readline() or "false")
        except (OSError, ValueError):
            # The worker died while it was asked. The next question starts a new one.
            return False
