"""What no paper talks about: sampling, tensors, runs, data, grading.

This file runs before everything else that a script imports. Loading torch takes seconds. Ctrl-C in
this time is no mistake, and needs no traceback.
"""

import sys


def _stopped_early(kind, error, trace):
    """What Python calls for an error that nobody caught. (`run_script` catches Ctrl-C later.)"""
    if issubclass(kind, KeyboardInterrupt):
        print("\nstopped", file=sys.stderr)
    else:
        _show_error(kind, error, trace)


_show_error, sys.excepthook = sys.excepthook, _stopped_early
