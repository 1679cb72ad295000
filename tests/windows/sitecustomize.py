"""A Linux machine that plays Windows, as far as it can. See tests/test_windows.py.

Python imports this file by itself at its start if the folder stands in PYTHONPATH, also in the
processes that a script starts. What is missing on Windows is missing for the project's own code
only: the libraries have versions for Windows, and those cannot be tested here. What the file
system of Windows refuses is refused to everybody.
"""
import builtins
import errno
import fcntl
import io
import multiprocessing
import os
import select
import shutil
import signal
import socket
import sys
import types
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def own(file):
    """Whether a file is the project's own. A program of `python -c` is, too."""
    return file == "<string>" or (file.startswith(f"{ROOT}/") and "site-packages" not in file)


def refuse(number, path):
    raise OSError(number, os.strerror(number), str(path))       # EACCES is a PermissionError


# ------------------------------------------------------------------------ modules that are missing

MISSING = {"fcntl", "resource", "pwd", "grp", "termios", "tty", "pty", "syslog"}
real_import = builtins.__import__


def import_as_on_windows(name, globals=None, *more, **named):
    # A program of `python -c` has no file.
    if globals is not None and own(globals.get("__file__", "<string>")):
        if name in MISSING:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        if name == "msvcrt":
            return msvcrt
    return real_import(name, globals, *more, **named)


def locking(handle, mode, size):
    """One process at a time, as msvcrt.locking with LK_NBLCK. Folders cannot be opened there."""
    fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB, size)


# Only the project's own code gets this module: the libraries would take it for a sign of Windows.
msvcrt = types.ModuleType("msvcrt")
msvcrt.LK_NBLCK, msvcrt.locking = 2, locking
builtins.__import__ = import_as_on_windows

# ------------------------------------------------------------------------ calls that are missing

WITHOUT = {
    os: "fork forkpty register_at_fork killpg getpgid getpgrp setpgid setsid getsid getuid geteuid "
        "getgid getegid sysconf confstr statvfs fstatvfs uname nice getpriority setpriority wait "
        "getloadavg sched_getaffinity sched_setaffinity chown lchown mkfifo mknod chroot pread "
        "pwrite readv writev sendfile WNOHANG WIFEXITED WEXITSTATUS O_CLOEXEC O_NONBLOCK O_SYNC "
        "O_DIRECTORY O_NOFOLLOW",
    signal: "SIGKILL SIGSTOP SIGCONT SIGHUP SIGQUIT SIGPIPE SIGALRM SIGVTALRM SIGPROF SIGUSR1 "
            "SIGUSR2 SIGCHLD SIGXCPU SIGXFSZ alarm pause setitimer getitimer ITIMER_REAL "
            "ITIMER_VIRTUAL ITIMER_PROF sigwait pthread_kill pthread_sigmask siginterrupt",
    select: "poll epoll",
}


def take_away(module, names):
    hidden = {name: vars(module).pop(name) for name in names.split() if hasattr(module, name)}

    def hidden_name(name):
        if name not in hidden or own(sys._getframe(1).f_code.co_filename):
            raise AttributeError(f"module {module.__name__!r} has no attribute {name!r}")
        return hidden[name]

    module.__getattr__ = hidden_name


def for_own_code(module, name):
    """The decorated function replaces module.name where the project's own code calls it."""
    real = getattr(module, name)

    def decorate(stand_in):
        def called(*arguments, **more):
            mine = own(sys._getframe(1).f_code.co_filename)
            return (stand_in if mine else real)(*arguments, **more)
        setattr(module, name, called)
        return real
    return decorate


@for_own_code(select, "select")
def real_select(*lists):
    """Windows can wait for sockets only."""
    for item in [x for several in lists[:3] for x in several]:
        if not isinstance(item, socket.socket):
            refuse(errno.ENOTSOCK, item)
    return real_select(*lists)


@for_own_code(os, "fsync")
def real_fsync(handle):
    """Windows refuses to flush what is open for reading only."""
    if fcntl.fcntl(handle, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY:
        refuse(errno.EBADF, handle)
    real_fsync(handle)


@for_own_code(os, "kill")
def real_kill(process, number):
    """On Windows os.kill(process, 0) does not ask: it ends the process."""
    raise AssertionError("os.kill ends a process on Windows, whatever the signal")


@for_own_code(multiprocessing, "get_all_start_methods")
def real_start_methods():
    return ["spawn"]


@for_own_code(multiprocessing, "get_context")
def real_get_context(method=None):
    if method not in (None, "spawn"):
        raise ValueError(f"cannot find context for {method!r}")
    return real_get_context("spawn")


# ------------------------------------------------------------------------ the file system

real_open, real_os_open, real_mkdir = io.open, os.open, os.mkdir


def in_use(path):
    """Whether this process has a file open or mapped into memory, or one below a folder."""
    path, used = os.path.realpath(path), []
    for number in os.listdir("/proc/self/fd"):
        try:
            used.append(os.readlink(f"/proc/self/fd/{number}"))
        except OSError:
            pass                                                # closed meanwhile
    with real_open("/proc/self/maps") as maps:
        used += [line.split(maxsplit=5)[5].strip() for line in maps if "/" in line]
    return any(name == path or name.startswith(path + "/") for name in used)


def check_name(path):
    """Windows refuses these characters, and a name that ends in a dot or a blank."""
    for name in Path(os.fsdecode(path)).parts[1 if os.path.isabs(path) else 0:]:
        if set(name) & set('<>:"|?*\\') or (name not in (".", "..") and name[-1] in ". "):
            refuse(errno.EINVAL, path)


def open_as_on_windows(file, mode="r", buffering=-1, encoding=None, errors=None, newline=None,
                       closefd=True, opener=None):
    if not isinstance(file, int):
        if os.fsdecode(file).startswith(("/proc/", "/sys/")):
            refuse(errno.ENOENT, file)
        if set(mode) & set("wax+"):
            check_name(file)
    if newline is None and "b" not in mode and set(mode) & set("wax+"):
        newline = "\r\n"
    return real_open(file, mode, buffering, encoding, errors, newline, closefd, opener)


def os_open_as_on_windows(path, flags, mode=0o777, **more):
    if os.path.isdir(path) and not more and not flags & getattr(os, "O_TMPFILE", 0):
        refuse(errno.EACCES, path)
    return real_os_open(path, flags, mode, **more)


def mkdir_as_on_windows(path, *arguments, **more):
    check_name(path)
    real_mkdir(path, *arguments, **more)


def refused_in_use(name):
    """os.replace, os.unlink and so on: a file that is open is neither moved nor removed."""
    real = getattr(os, name)

    def called(path, *others, **more):
        for each in (path, *others):
            if not more and os.path.exists(each) and in_use(each):
                refuse(errno.EACCES, each)
        # A folder is never replaced, not even by a folder.
        if others and os.path.isdir(others[0]):
            refuse(errno.EACCES, others[0])
        return real(path, *others, **more)
    setattr(os, name, called)


builtins.open = io.open = open_as_on_windows
os.open, os.mkdir = os_open_as_on_windows, mkdir_as_on_windows
for call in ("replace", "rename", "unlink", "remove", "rmdir"):
    refused_in_use(call)
shutil._use_fd_functions = False        # without these, rmtree calls os.unlink with whole paths
for module, names in WITHOUT.items():
    take_away(module, names)
