"""Windows and macOS, as far as a Linux machine can tell: encodings, commands, and which device is
taken. See also test_windows.py, test_devices.py (no float64 on MPS) and test_judge.py."""
import ast
import ctypes
import struct
import sys
from types import SimpleNamespace

import pytest
import torch
from conftest import ROOT

import opd
from common import checkpoints, fits, hub, memory, models, size
from common.arguments import Mistake
from common.flags import parse

CPU, GIB = torch.device("cpu"), 2**30
SCRIPTS = [ROOT / f"{m}.py" for m in ("opd", "topd", "ar_opd", "hindsight_sd", "grpo", "evaluate", "look")]
RUNTIME = [*SCRIPTS, *sorted((ROOT / "common").glob("*.py")), *sorted((ROOT / "toy").glob("*.py"))]
RUNTIME += [ROOT / f"benchmarks/{name}.py" for name in ("gpu", "shapes", "speed")]      # to measure a card


# ------------------------------------------------------------------------ by reading

# These read what the Linux kernel writes, digits only, and expect that the file may be missing.
KERNEL = {"common/memory.py", "common/size.py"}


def without_encoding(source):
    """Lines that open a text without naming its encoding. On Windows that would be cp1252."""
    lines = []
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call):
            continue
        name = getattr(node.func, "attr", getattr(node.func, "id", ""))
        is_os = getattr(getattr(node.func, "value", None), "id", "") == "os"
        named = {k.arg for k in node.keywords}
        words = [a.value for a in node.args if isinstance(a, ast.Constant) and isinstance(a.value, str)]
        opens = name == "open" and not is_os and not any("b" in w for w in words[-1:] if len(w) <= 3)
        path_text = name in ("read_text", "write_text") and isinstance(node.func, ast.Attribute)
        path_text &= getattr(getattr(node.func, "value", None), "id", "") != "files"
        piped = any(k.arg in ("text", "universal_newlines") for k in node.keywords)
        if (opens or path_text or piped) and "encoding" not in named:
            lines.append(node.lineno)
    return lines


def test_how_a_missing_encoding_is_found():
    source = "open(p)\nopen(p, 'rb')\np.read_text()\nopen(p, 'w', encoding='utf-8')\nos.open(p, 1)\n"
    source += "files.write_text(p, t)\nrun(c, text=True)\np.write_text(t, encoding='utf-8')\n"
    assert without_encoding(source) == [1, 3, 7]


@pytest.mark.parametrize("file", RUNTIME, ids=lambda f: str(f.relative_to(ROOT)))
def test_every_text_is_opened_with_a_named_encoding(file):
    if file.relative_to(ROOT).as_posix() not in KERNEL:
        assert without_encoding(file.read_text(encoding="utf-8")) == []


# ------------------------------------------------------------------------ names and commands


def test_the_command_to_resume_can_be_pasted_into_a_shell_of_windows(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["opd.py", "--data", "my data.jsonl", "--out", "runs\\mine"])
    args = type("Args", (), {"out": "runs\\mine"})()
    monkeypatch.setattr(checkpoints.sys, "platform", "win32")
    line = checkpoints.resume_command("opd.py", args)
    assert line == 'python opd.py --data "my data.jsonl" --out runs\\mine --resume'
    monkeypatch.setattr(checkpoints.sys, "platform", "linux")
    line = checkpoints.resume_command("opd.py", args)
    assert line == "python opd.py --data 'my data.jsonl' --out 'runs\\mine' --resume"


def test_the_toy_is_found_from_another_folder_with_backslashes(monkeypatch, tmp_path):
    from pathlib import PureWindowsPath
    monkeypatch.chdir(tmp_path)
    assert hub.where(PureWindowsPath("toy/student")) == str(ROOT / "toy/student")
    assert hub.where("toy/student") == str(ROOT / "toy/student")
    assert hub.where("Qwen/Qwen3-0.6B") == "Qwen/Qwen3-0.6B"


# ------------------------------------------------------------------------ MPS


@pytest.fixture
def a_mac(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)


def test_auto_takes_mps_if_its_two_steps_are_those_of_the_cpu(a_mac, monkeypatch, capsys):
    real = models.two_steps
    monkeypatch.setattr(models, "two_steps", lambda device: real(torch.device("cpu")))
    assert models.pick_device("auto") == torch.device("mps") and capsys.readouterr().out == ""


def test_auto_takes_the_cpu_if_mps_fails_and_says_why(a_mac, capsys):
    # Here PyTorch has no MPS at all, so the self-test really fails.
    assert models.pick_device("auto") == torch.device("cpu")
    said = capsys.readouterr().out
    assert said.startswith("MPS is not used (") and said.endswith("): the CPU computes\n")


@pytest.mark.parametrize("wrong", [lambda x: x * 1.01, lambda x: x * float("nan")])
def test_auto_takes_the_cpu_if_mps_computes_something_else(a_mac, monkeypatch, capsys, wrong):
    real = models.two_steps

    def two_steps(device):
        found = real(torch.device("cpu"))
        return wrong(found) if device.type == "mps" else found

    monkeypatch.setattr(models, "two_steps", two_steps)
    assert models.pick_device("auto") == torch.device("cpu")
    assert "its numbers are not those of the CPU" in capsys.readouterr().out


@pytest.mark.parametrize("owner, name", [
    *((torch, name) for name in ("searchsorted", "isin")), (torch.nn.functional, "pad"),
    *((torch.Tensor, name) for name in ("cumsum", "tril", "index_select", "nonzero", "argmax", "gather")),
])
def test_auto_takes_the_cpu_if_mps_lacks_an_operation(a_mac, monkeypatch, capsys, owner, name):
    real = models.two_steps

    def lacking(*_, **more):
        raise NotImplementedError(f"The operator 'aten::{name}' is not implemented for the MPS device")

    def two_steps(device):
        with monkeypatch.context() as there:
            if device.type == "mps":
                there.setattr(owner, name, lacking)
            return real(CPU)

    monkeypatch.setattr(models, "two_steps", two_steps)
    assert models.pick_device("auto") == CPU
    assert f"MPS is not used (The operator 'aten::{name}' is not" in capsys.readouterr().out


def test_the_self_test_takes_two_steps_and_draws():
    found = models.two_steps(CPU)
    drawn = models.a_draw(CPU)
    start, end = found[: -len(drawn)].chunk(2)
    assert end.isfinite().all() and 0 < (end - start).abs().max() < 1
    assert torch.equal(found[-len(drawn) :], drawn) and len(drawn.unique()) > 6


def test_several_processes_never_share_mps(a_mac, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert models.pick_device("auto") == torch.device("cpu")


# ------------------------------------------------------------------------ memory


def test_memory_is_unknown_where_the_system_does_not_say(monkeypatch):
    monkeypatch.setitem(sys.modules, "resource", None)      # as on Windows: no such module
    assert memory.peak_memory(CPU) is None


@pytest.fixture
def laptop(monkeypatch):
    """laptop(total, available): a machine with Windows and so much memory. A total of 0: Windows
    does not answer."""
    def start(total, available):
        def fill(pointer):
            """As Windows does it: it looks at the first number, and writes behind it."""
            place = ctypes.addressof(pointer._obj)
            size, = struct.unpack("<L", ctypes.string_at(place, 4))
            assert size == ctypes.sizeof(pointer._obj) == 64        # of MEMORYSTATUSEX
            others = [9 * GIB] * 5              # the page file, and addresses
            ctypes.memmove(place, struct.pack("<LL7Q", size, 50, total, available, *others), size)
            return int(total > 0)

        kernel32 = SimpleNamespace(GlobalMemoryStatusEx=fill)
        monkeypatch.setattr(ctypes, "windll", SimpleNamespace(kernel32=kernel32), raising=False)

    # For this file only: libraries that are imported now would look for the rest of Windows.
    monkeypatch.setattr(size, "sys", SimpleNamespace(platform="win32"))
    monkeypatch.setattr(size, "os", SimpleNamespace())      # without sysconf
    monkeypatch.setattr(size, "CONTAINER_LIMITS", ())
    monkeypatch.setattr(memory, "resident_memory", lambda device: None)
    return start


def test_windows_is_asked_for_its_memory(laptop, monkeypatch):
    laptop(GIB // 2, GIB // 8)
    assert size.machine_memory() == GIB // 2
    assert memory.free_memory(CPU) == memory.room_for_the_run(CPU) == GIB // 8
    fits.check_memory(GIB // 2, CPU, "--prompts")
    with pytest.raises(Mistake, match="512.0 MiB is all that this machine has"):
        fits.check_memory(GIB // 2 + 2**20, CPU, "--prompts")
    laptop(0, 0)
    assert size.machine_memory() is None and memory.free_memory(CPU) is None


def test_on_a_small_laptop_with_windows_a_large_run_is_refused(laptop):
    laptop(8 * GIB, GIB // 4)
    args = opd.check(parse(opd.Args, "", ["--data", "gsm8k"], "opd"))
    with pytest.raises(Mistake, match="and 256.0 MiB of memory are free"):
        fits.choose(args, CPU, torch.float32)
