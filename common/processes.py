"""Several processes: `accelerate launch opd.py ...` starts the same script once per GPU.

Prompts to sample and rollouts to score are dealt out like cards. Then the results are
exchanged. So every process knows the whole batch, counts the same tokens and takes the same
step, and no formula of a method changes. Only the first process writes files and talks.
With one process every function here returns its input.
"""

import atexit
import contextlib
import functools
import operator
import os

import torch

from common.arguments import Mistake


def process():
    """(number of this process, number of processes)."""
    return int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))


def connect(device):
    """Connect the processes of a run. Without this the first `gather` would do it, and on a machine
    with GPUs it would not know of --device cpu."""
    if process()[1] > 1:
        with contextlib.suppress(ImportError):  # `gather` says what to install
            _connected(device.type == "cpu")


@functools.cache
def _connected(cpu):
    """Connect the processes: the first call does it. When the script ends they are disconnected.
    Otherwise the threads of the CPU's connection can abort a process on its way out ("terminate
    called without an active exception"), and a run that has succeeded counts as failed.

    GPUs stay connected: their end may wait for another process, which may wait for this one."""
    from accelerate import PartialState

    PartialState(cpu=cpu)
    if cpu:
        atexit.register(_disconnect)


def _disconnect():
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def gather(mine):
    """A list of what every process has, in the order of the processes."""
    if process()[1] == 1:
        return [mine]
    try:
        from accelerate.utils import gather_object
    except ImportError:
        raise Mistake(
            "Several processes need the package accelerate: pip install accelerate, "
            "then accelerate launch ..."
        ) from None

    _connected(not torch.cuda.is_available())
    return gather_object([mine])


def dealt(function, items):
    """[function(*item) for item in items]. Each item is computed by ONE process, and all get its
    result.

    Grading needs this. It has a time limit, so two processes could find different verdicts on the
    same answer. Then they would build different batches, and one would wait for the other for ever.
    """
    which, of = process()
    shares = gather([function(*item) for item in items[which::of]])
    return [shares[i % of][i // of] for i in range(len(items))]


def everyones(by_rollout, *sums):
    """(whole list, *total sums). Each process has filled the entries of its own rollouts in the
    list and left None in the others. The sums (numbers or lists) are added over the processes. A
    process without any rollout passes no sums."""
    device = next((x.device for x in by_rollout if x is not None), None)
    parts = [(by_rollout, sums)]
    if process()[1] > 1:
        parts = gather(([None if x is None else x.cpu() for x in by_rollout], sums))
    lists = zip(*(filled for filled, _ in parts))
    whole = [next((x for x in same if x is not None), None) for same in lists]
    whole = [x if x is None or device is None else x.to(device) for x in whole]
    totals = zip(*(sums for _, sums in parts if sums))
    return whole, *(functools.reduce(operator.add, same) for same in totals)


def add_up(tensors):
    """Every tensor, summed over the processes."""
    if process()[1] == 1:
        return tensors
    from accelerate.utils import reduce

    return [reduce(t, "sum") for t in tensors]
