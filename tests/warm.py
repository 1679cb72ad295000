"""A script's main in a child process that is forked from one in which everything is imported already: it starts in milliseconds, so that
a test can afford to kill it twenty times. See `start` in conftest.py."""
import os
import shutil
import signal
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import datasets  # noqa: E402, F401
import matplotlib.pyplot  # noqa: E402, F401
import torch  # noqa: E402
from transformers import AutoModelForCausalLM, AutoTokenizer, Qwen3ForCausalLM  # noqa: E402, F401

import ar_opd  # noqa: E402
import evaluate  # noqa: E402
import grpo  # noqa: E402
import hindsight_sd  # noqa: E402
import look  # noqa: E402
import opd  # noqa: E402
import topd  # noqa: E402
from common.arguments import run_script  # noqa: E402

MAINS = {f"{m.__name__}.py": m.main for m in (opd, topd, ar_opd, hindsight_sd, grpo, evaluate, look)}


def child(command, log, die_at=None, largest_file=None, errors=None, env=None):
    """Runs `command`, output into the file `log` (errors into `errors`, if given). die_at: SIGKILL itself just before the so-many-th flush, rename or removal of a file.
    largest_file: no file can grow beyond so many bytes, which is what a full disk looks like to a program."""
    torch.set_num_threads(1)  # two beside anything else are ten times slower than one
    os.environ.update(env or {})
    out, err = (os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND) for file in (log, errors or log))
    os.dup2(out, 1), os.dup2(err, 2)
    sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w")
    sys.argv = [str(x) for x in command]
    if die_at is not None:
        left = [die_at]

        def deadly(call):
            def called(*arguments, **more):
                left[0] -= 1
                if left[0] < 0:
                    os.kill(os.getpid(), signal.SIGKILL)
                return call(*arguments, **more)
            return called
        os.replace, os.fsync, shutil.rmtree = deadly(os.replace), deadly(os.fsync), deadly(shutil.rmtree)
    if largest_file is not None:
        import resource
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, largest_file))
    try:
        run_script(lambda: MAINS[sys.argv[0]](sys.argv[1:]))
        code = 0
    except SystemExit as e:
        code = e.code or 0
    except BaseException:
        import traceback
        traceback.print_exc()
        code = 1
    sys.stdout.flush(), sys.stderr.flush()
    os._exit(code)
