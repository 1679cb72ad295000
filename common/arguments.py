"""Command lines, and sentences for users: flags from a dataclass, mistakes without tracebacks.

A script writes its flags as the fields of a dataclass. The help text of a flag is the string
under the field, so the code and `--help` cannot disagree.

Scripts import this module before all others, because `common/__init__.py` takes care of Ctrl-C
while they are loaded. So this module does not import torch.
"""

import argparse
import ast
import contextlib
import dataclasses
import errno
import inspect
import os
import re
import sys
import textwrap

from common.synonyms import meant

SUPPRESS = argparse.SUPPRESS  # with this default argparse leaves out every flag that is not given

# ======================================================================== a user's mistake


class Mistake(Exception):
    """A user's mistake: one sentence that says what is wrong and what to do.

    `run_script` prints the sentence without a traceback and exits with code 2.
    """


def require(condition, sentence):
    if not condition:
        raise Mistake(sentence)


def harmless(text):
    """The text without control characters. Models and data are written by strangers, and a
    control character could rewrite what the terminal shows."""
    return "".join(c if c.isprintable() or c == "\n" else f"\\x{ord(c):02x}" for c in text)


def shorten(text, width):
    """The text on one line of at most `width` characters."""
    text = " ".join(str(text).split())
    return text if len(text) <= width else text[: width - 3] + "..."


def unwritable(path, error):
    """The sentence for a full disk and similar errors of the system."""
    why = getattr(error, "strerror", None) or shorten(error, 120)
    return (
        f"Writing '{path}' failed ({why}). All complete files are unchanged; if the disk is full, "
        "make room, then continue a run with --resume, or an evaluation with the same command."
    )


OUT_OF_MEMORY = (
    "The GPU is out of memory; lower --micro_tokens or --chunk_logits: with them a run that had "
    "begun continues with --resume from its last checkpoint. For a new run there are also "
    "--max_new_tokens, --prompts, --samples and smaller models."
)
# On a Mac's GPU: all memory is taken, or one tensor is too large. It is a plain RuntimeError.
MPS_IS_FULL = "MPS backend out of memory", "Invalid buffer size"
DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO)
READER_HAS_GONE = (errno.EPIPE, errno.EINVAL)  # the second one is what Windows says


def is_out_of_memory(error):
    """Does the error say that the memory of a GPU is full?"""
    if isinstance(error, getattr(sys.modules.get("torch"), "OutOfMemoryError", ())):
        return True
    return isinstance(error, RuntimeError) and str(error).startswith(MPS_IS_FULL)


class Printer:
    """stdout or stderr of a script. If the reader has gone, as in `python opd.py | head -1`, the
    rest is printed to nobody. Without this, the next line would end a training of hours."""

    def __init__(self, stream):
        self.stream = stream
        with contextlib.suppress(AttributeError, ValueError):
            # A terminal that cannot show a character must not end a run. In a pipe a line
            # arrives when it is printed: `python opd.py | tee log`.
            stream.reconfigure(errors="replace", line_buffering=True)

    def write(self, text):
        try:
            return self.stream.write(text)
        except OSError as error:
            self._discard(error)
            return len(text)

    def flush(self):
        try:
            self.stream.flush()
        except OSError as error:
            self._discard(error)

    def _discard(self, error):
        if error.errno not in READER_HAS_GONE:
            raise error
        # When Python flushes the stream's buffer at the end, the rest goes to the null device, too.
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self.stream.fileno())
        os.close(nowhere)

    def __getattr__(self, name):
        return getattr(self.stream, name)


def run_script(main, out_of_memory=OUT_OF_MEMORY):
    """Call a script's main. If the user can mend what went wrong, end with one sentence.
    out_of_memory: the sentence for a full GPU, with the script's own flags."""
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = map(Printer, before)
    try:
        _run(main, out_of_memory)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        sys.stdout, sys.stderr = before


def _run(main, out_of_memory):
    if int(os.environ.get("RANK", 0)) > 0:  # of several processes, only the first one talks
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115

    def stop(sentence):
        print(f"error: {harmless(' '.join(str(sentence).split()))}", file=sys.stderr)
        sys.exit(2)

    try:
        main()
    except Mistake as mistake:
        stop(mistake)
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        stop(out_of_memory)
    except OSError as error:
        if error.errno not in DISK_ERRORS:
            raise
        stop(unwritable(error.filename or "a file", error))
    except KeyboardInterrupt:
        print("\nstopped", file=sys.stderr)
        sys.exit(130)


# ======================================================================== flags


def choice(default, *options):
    """A flag that takes one of a few words."""
    return dataclasses.field(default=default, metadata={"choices": options})


def either(toy, hub, *options):
    """A flag with two defaults: one on the built-in toy, one for models and data from the hub.
    options: the words that it may be (default: anything).

    The field is None until `common.flags.parse` knows which of the two applies.
    """
    metadata = {"either": (toy, hub)} | ({"choices": options} if options else {})
    return dataclasses.field(default=None, metadata=metadata)


class Parser(argparse.ArgumentParser):
    """argparse with two changes. A wrong flag gets one sentence instead of the usage of forty
    flags. Flags cannot be abbreviated, because an abbreviation is a guess."""

    def __init__(self, description):
        layout = argparse.RawDescriptionHelpFormatter
        super().__init__(description=description, formatter_class=layout, allow_abbrev=False)

    def error(self, message):
        unknown = re.search(r"unrecognized arguments: (--[\w-]+)", message)
        flags = self._option_string_actions
        hint = meant(unknown[1], flags) if unknown else ""
        raise Mistake(f"{message}; {hint or '--help explains all flags.'}")


def help_texts(cls):
    """{field: help text} of a dataclass and its parents: the string under each field."""
    texts = {}
    for parent in cls.__mro__[:-1]:
        body = ast.parse(textwrap.dedent(inspect.getsource(parent))).body[0].body
        for line, below in zip(body, body[1:]):
            documented = isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant)
            if isinstance(line, ast.AnnAssign) and documented:
                texts.setdefault(line.target.id, " ".join(below.value.value.split()))
    return texts


def default_text(field):
    """What --help says about a default."""
    if "either" in field.metadata:
        toy, hub = field.metadata["either"]
        return f" (default {toy} on the toy, else {hub})" if toy != hub else f" (default {toy})"
    return "" if field.default is None else f" (default {field.default})"


def parse_arguments(cls, description, argv=None, groups=None):
    """The command line as an object of the dataclass `cls`: one flag per field.

    groups: {heading: names of flags}, the flags that all scripts share. --help shows a script's own
    flags first, and then these groups.
    The set `args.given` holds the names of the flags that were really given.
    """
    texts, parser, places = help_texts(cls), Parser(description), {}
    own = parser.add_argument_group("flags of this script")
    for heading, names in (groups or {}).items():
        places |= dict.fromkeys(names, parser.add_argument_group(heading))
    # The script's own flags come first in the usage, too.
    for field in sorted(dataclasses.fields(cls), key=lambda field: field.name in places):
        # The type is written as in the source: "int", or "int | None".
        written = field.type.__name__ if isinstance(field.type, type) else str(field.type)
        kind = {"int": int, "float": float, "str": str, "bool": bool}[written.split(" |")[0]]
        text = texts[field.name].replace("%", "%%")
        place = places.get(field.name, own)
        if kind is bool:
            action = argparse.BooleanOptionalAction
            place.add_argument(f"--{field.name}", action=action, default=SUPPRESS, help=text)
            continue
        choices = field.metadata.get("choices")
        place.add_argument(
            f"--{field.name}",
            type=kind,
            default=SUPPRESS,
            choices=choices,
            metavar=None if choices else kind.__name__.upper(),
            help=text + default_text(field).replace("%", "%%"),
        )
    given = vars(parser.parse_args(argv))
    args = cls(**given)
    args.given = set(given)
    return args
