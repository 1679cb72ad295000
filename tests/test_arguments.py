"""Command lines from a dataclass, and how a user's mistake ends a script."""
import errno
import os
import subprocess
import sys
from dataclasses import dataclass
from types import SimpleNamespace

import pytest
import torch
from conftest import ROOT

from common.arguments import (
    Mistake,
    Printer,
    choice,
    either,
    harmless,
    is_out_of_memory,
    parse_arguments,
    require,
    run_script,
    shorten,
)


@dataclass
class Shared:
    seed: int = 0
    """everything random follows from it"""
    fast: bool = False
    """less time,
    more memory"""


@dataclass
class Args(Shared):
    kind: str = choice("forward", "forward", "reverse")
    """which way"""
    lr: float = either(1e-3, 1e-5)
    """learning rate; 5 % of the updates are a warm-up"""
    size: int = either(12, 12)
    """tokens of a window"""
    name: str | None = None
    """a name, if there is one"""


GROUPS = {"the run": ["seed"], "speed": ["fast"]}

# ------------------------------------------------------------------------ flags


def test_types_defaults_and_what_was_given():
    args = parse_arguments(Args, "text", [])
    assert (args.kind, args.seed, args.fast, args.name) == ("forward", 0, False, None)
    assert args.lr is None and args.given == set()      # which default applies is not known yet
    words = "--lr 0.5 --seed 3 --fast --name x --kind reverse".split()
    args = parse_arguments(Args, "text", words, GROUPS)
    assert (args.lr, args.seed, args.name, args.kind) == (0.5, 3, "x", "reverse")
    assert args.fast is True and {"lr", "seed", "name", "kind"} <= args.given
    assert args.given.isdisjoint({"size"})
    assert parse_arguments(Args, "text", ["--no-fast"]).fast is False


@pytest.mark.parametrize("words, sentence", [
    ("--kid forward", "unrecognized arguments: --kid forward; did you mean --kind?"),
    ("--zzz", "unrecognized arguments: --zzz; --help explains all flags."),
    ("--see 3", "did you mean --seed?"),                # no abbreviations
    ("--kind sideways", "invalid choice: 'sideways'"),
    ("--lr much", "invalid float value: 'much'; --help explains all flags."),
    ("--seed", "expected one argument"),
])
def test_a_wrong_flag_is_one_sentence(words, sentence):
    with pytest.raises(Mistake) as refused:
        parse_arguments(Args, "text", words.split(), GROUPS)
    assert sentence in str(refused.value) and "usage" not in str(refused.value)


def test_help_has_the_script_s_own_flags_first_then_the_groups(capsys):
    with pytest.raises(SystemExit) as ended:
        parse_arguments(Args, "what it\n  does", ["--help"], GROUPS)
    text = capsys.readouterr().out
    assert ended.value.code == 0 and "what it\n  does" in text      # the description as it is
    parts = ["flags of this script:", "--kind", "--lr", "--size", "--name", "the run:", "--seed",
             "speed:", "--fast"]
    text = text[text.index(parts[0]):]
    places = [text.index(part) for part in parts]
    assert places == sorted(places)
    said = " ".join(text.split())
    assert "which way (default forward)" in said and "{forward,reverse}" in said
    assert "5 % of the updates are a warm-up (default 0.001 on the toy, else 1e-05)" in said
    assert "tokens of a window (default 12)" in said
    assert "less time, more memory" in said and "if there is one speed:" not in said
    assert "a name, if there is one the run:" in said               # no default to be named


# ------------------------------------------------------------------------ texts of strangers


def test_control_characters_are_spelled_out():
    assert harmless("a\x1b[2J\r\u202eb\n\u00e4") == "a\\x1b[2J\\x0d\\x202eb\n\u00e4"


def test_a_long_text_is_cut_to_one_line():
    assert shorten("a\n  b", 10) == "a b"
    assert shorten("abcdefghij", 10) == "abcdefghij"
    assert shorten("abcdefghijk", 10) == "abcdefg..."


# ------------------------------------------------------------------------ the end of a script


def full_disk():
    raise OSError(errno.ENOSPC, "No space left on device", "runs/x")


def out_of_memory():
    raise torch.OutOfMemoryError("CUDA out of memory")


def full_mac():
    raise RuntimeError("MPS backend out of memory (MPS allocated: 17.4 GB, other allocations: 1 GB)")


def mistaken():
    require(True, "not said")
    require(False, "two\nlines \x1b[2J")


@pytest.mark.parametrize("main, sentence", [
    (mistaken, "error: two lines \\x1b[2J\n"),
    (full_disk, "error: Writing 'runs/x' failed (No space left on device). All complete files "),
    (out_of_memory, "error: The GPU is out of memory; lower --micro_tokens "),
    (full_mac, "error: The GPU is out of memory; lower --micro_tokens "),
])
def test_what_the_user_can_mend_ends_with_one_sentence_and_code_2(main, sentence, capsys):
    with pytest.raises(SystemExit) as ended:
        run_script(main)
    said = capsys.readouterr()
    assert ended.value.code == 2 and said.err.startswith(sentence) and said.out == ""
    assert said.err.count("\n") == 1 and "Traceback" not in said.err


def test_which_errors_say_that_the_memory_is_full():
    full = [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("MPS backend out of memory (MPS")]
    full += [RuntimeError("Invalid buffer size: 9.75 GiB")]      # one tensor that is too large for a Mac
    others = [RuntimeError("mat1 and mat2 shapes cannot be multiplied"), ValueError("MPS backend out of memory")]
    assert [is_out_of_memory(error) for error in full + others] == [True] * 3 + [False] * 2


def test_a_mistake_of_the_program_keeps_its_traceback():
    def wrong():
        raise FileNotFoundError(errno.ENOENT, "No such file", "x")
    with pytest.raises(FileNotFoundError):              # not a full disk: not the user's to mend
        run_script(wrong)
    with pytest.raises(ZeroDivisionError):
        run_script(lambda: 1 / 0)


def test_ctrl_c_before_the_first_update_is_no_traceback(capsys):
    def stopped():
        raise KeyboardInterrupt
    with pytest.raises(SystemExit) as ended:
        run_script(stopped)
    assert ended.value.code == 130 and capsys.readouterr().err == "\nstopped\n"


# ------------------------------------------------------------------------ a reader that has gone


PRINTS = """
import sys
from common.arguments import run_script
def main():
    for i in range(20000):
        print("line", i)
    print("errors, too", file=sys.stderr)
    open(sys.argv[1], "w").write("done")
run_script(main)
"""


@pytest.mark.parametrize("both", (False, True))
def test_a_reader_that_has_gone_does_not_end_a_script(tmp_path, both):
    """python opd.py | head -1: the rest is printed to nobody, and the training goes on."""
    process = subprocess.Popen(
        [sys.executable, "-c", PRINTS, str(tmp_path / "file")], cwd=ROOT, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT if both else subprocess.PIPE,
    )
    assert process.stdout.readline() == "line 0\n"
    process.stdout.close()
    said = ""
    if not both:
        said = process.stderr.read()
        process.stderr.close()
    assert process.wait(20) == 0 and (tmp_path / "file").read_text() == "done"
    assert said == ("" if both else "errors, too\n")


def test_a_few_lines_to_a_reader_that_has_gone(tmp_path):
    """They are still in the buffer when the script ends."""
    code = PRINTS.replace("20000", "3").replace("    for i", "    sys.stdin.readline()\n    for i")
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path / "file")], cwd=ROOT, text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )
    process.stdout.close()
    process.stdin.close()
    assert process.stderr.read() == "errors, too\n" and process.wait(20) == 0
    process.stderr.close()


def test_windows_has_another_error_for_a_reader_that_has_gone(tmp_path):
    """Here for both errors, and for one that is none of the two."""
    for number in (errno.EPIPE, errno.EINVAL, errno.ENOSPC):
        with open(tmp_path / "pipe", "w", encoding="utf-8") as file:
            stream = SimpleNamespace(write=refusal(number), flush=refusal(number), fileno=file.fileno)
            for call in (lambda out: out.write("text"), lambda out: out.flush()):
                if number == errno.ENOSPC:
                    with pytest.raises(OSError, match="No space left"):
                        call(Printer(stream))
                else:
                    assert call(Printer(stream)) in (4, None)
                    assert os.fstat(file.fileno()).st_rdev == os.stat(os.devnull).st_rdev


def refusal(number):
    """A function that always raises this error of the system."""
    def refused(*_):
        raise OSError(number, os.strerror(number))
    return refused


def test_lines_reach_a_pipe_at_once(tmp_path):
    """python opd.py | tee log shows a line when it is printed, not when 8 KB are full."""
    code = PRINTS.replace("20000", "1").replace("    print(\"err", "    sys.stdin.readline()\n#")
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "file")], cwd=ROOT,
                               text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdout.readline() == "line 0\n" and process.poll() is None
    process.stdin.close()
    process.stdout.close()
    assert process.wait(20) == 0


def test_the_streams_are_as_before_after_a_script():
    before = sys.stdout, sys.stderr
    run_script(lambda: print("x"))
    assert (sys.stdout, sys.stderr) == before


@pytest.mark.parametrize("module", ("torch", "argparse"))
@pytest.mark.parametrize("script", ("opd", "topd", "ar_opd", "hindsight_sd", "grpo", "evaluate",
                                    "look"))
def test_ctrl_c_while_modules_are_loaded_is_no_traceback(script, module, tmp_path):
    """Loading torch takes seconds. A script handles Ctrl-C before it begins to load anything."""
    # A module that is interrupted while it loads, as by Ctrl-C.
    (tmp_path / f"{module}.py").write_text("raise KeyboardInterrupt\n")
    done = subprocess.run(
        [sys.executable, ROOT / f"{script}.py", "--help"], capture_output=True, text=True,
        env={**os.environ, "PYTHONPATH": str(tmp_path)}, timeout=20,
    )
    assert done.stderr == "\nstopped\n" and done.returncode in (130, -2)
