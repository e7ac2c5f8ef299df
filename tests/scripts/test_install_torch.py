"""`scripts/install_torch.py`: what it asks, what it has pip do, what it remembers."""

import importlib.util
import io
from pathlib import Path

from modules.util.torch_build import LINUX, MACOS, WINDOWS, Gpu, Machine

import pytest

ROOT = Path(__file__).resolve().parents[2]
RTX = Gpu("NVIDIA GeForce RTX 3060", "581.29", 8.6)
INDEX = "https://download.pytorch.org/whl/"


class Keyboard(io.StringIO):
    """Lines that are typed."""

    def isatty(self) -> bool:
        return True


@pytest.fixture
def tool(tmp_path, monkeypatch):
    """The script, with a record of pip's calls instead of pip."""
    spec = importlib.util.spec_from_file_location("install_torch", ROOT / "scripts" / "install_torch.py")
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    found.calls, found.version = [], "2.13.0"
    monkeypatch.setattr(found, "REMEMBERED", tmp_path / "torch-build")
    monkeypatch.setattr(found, "pip", lambda *arguments: found.calls.append(list(arguments)) or 0)
    monkeypatch.setattr(found, "wanted_version", lambda: "2.13.0")
    monkeypatch.setattr(found, "installed_version", lambda: found.version)
    monkeypatch.setattr("sys.stdin", io.StringIO())
    return found


def machine(tool, monkeypatch, system, *gpus):
    monkeypatch.setattr(tool, "this_machine", lambda: Machine(system, gpus))


def test_windows_gets_cuda_and_keeps_it(tool, monkeypatch, capsys):
    machine(tool, monkeypatch, WINDOWS, RTX)
    tool.version = None
    assert tool.main(["--remembered"]) == 0
    cuda = ["torch==2.13.0+cu130", "--extra-index-url", f"{INDEX}cu130"]
    assert tool.calls == [["install", *cuda]] and tool.REMEMBERED.read_text() == "cuda\n"
    assert "RTX 3060 (driver 581.29) was found" in capsys.readouterr().err
    # the next time nobody looks for a GPU, and what is right stays
    machine(tool, monkeypatch, WINDOWS)
    tool.version = "2.13.0+cu130"
    assert tool.main(["--remembered"]) == 0 and len(tool.calls) == 1 and not capsys.readouterr().err
    # requirements.txt names another version
    tool.version = "2.12.0+cu130"
    assert tool.main(["--remembered"]) == 0 and tool.calls[1] == ["install", "--force-reinstall", *cuda]


def test_what_is_right_already_is_only_remembered(tool, monkeypatch):
    machine(tool, monkeypatch, WINDOWS, RTX)
    tool.version = "2.13.0+cu130"
    assert tool.main(["--remembered"]) == 0 and not tool.calls and tool.REMEMBERED.read_text() == "cuda\n"


def test_the_usual_build_is_left_to_the_requirements(tool, monkeypatch, capsys):
    machine(tool, monkeypatch, LINUX)
    assert tool.main(["--remembered"]) == 0 and tool.main(["--remembered"]) == 0
    assert not tool.calls and tool.REMEMBERED.read_text() == "usual\n"
    assert "No GPU of NVIDIA was found" in capsys.readouterr().err


def test_another_build_takes_the_place_of_what_is_there(tool, monkeypatch):
    machine(tool, monkeypatch, WINDOWS, RTX)
    stamp = tool.REMEMBERED.with_name("installed-requirements.txt")
    stamp.write_text("as it was")
    assert tool.main(["--remembered"]) == 0
    assert tool.calls[0][:3] == ["install", "--force-reinstall", "torch==2.13.0+cu130"]
    assert not stamp.exists(), "the pins of the other packages are looked at again"
    assert tool.main(["usual"]) == 0
    assert tool.calls[1] == ["install", "--force-reinstall", "torch==2.13.0"]
    assert tool.REMEMBERED.read_text() == "usual\n"


def test_who_asks_for_the_usual_build_gets_it(tool, monkeypatch):
    """As where one without CUDA is in its place, and where there is none."""
    machine(tool, monkeypatch, LINUX, RTX)
    tool.REMEMBERED.write_text("usual\n")
    for there, more in (("2.13.0+cpu", ["--force-reinstall"]), (None, [])):
        tool.calls.clear()
        tool.version = there
        assert tool.main(["usual"]) == 0 and tool.calls == [["install", *more, "torch==2.13.0"]]


def test_who_sits_at_the_keyboard_is_asked(tool, monkeypatch, capsys):
    machine(tool, monkeypatch, LINUX, RTX)
    monkeypatch.setattr("sys.stdin", Keyboard("metal\nROCm\n"))
    assert tool.main(["--remembered"]) == 0
    assert tool.REMEMBERED.read_text() == "rocm\n" and "torch==2.13.0+rocm7.2" in tool.calls[-1]
    told = capsys.readouterr().err
    assert " * usual:" in told and told.count("or Enter for usual") == 2
    monkeypatch.setattr("sys.stdin", Keyboard("\n"))
    assert tool.main([]) == 0 and tool.REMEMBERED.read_text() == "usual\n"


def test_nobody_is_asked_where_there_is_no_choice(tool, monkeypatch, capsys):
    machine(tool, monkeypatch, MACOS)
    monkeypatch.setattr("sys.stdin", Keyboard("cuda\n"))
    assert tool.main(["--remembered"]) == 0 and tool.REMEMBERED.read_text() == "usual\n"
    assert "Which build" not in capsys.readouterr().err


def test_a_build_that_does_not_exist_here_is_refused(tool, monkeypatch, capsys):
    machine(tool, monkeypatch, WINDOWS, RTX)
    assert tool.main(["rocm"]) == 2 and not tool.calls and not tool.REMEMBERED.exists()
    assert "rocm does not exist for Windows; expected one of usual, cuda, cuda126, cpu" in capsys.readouterr().err


def test_what_failed_is_not_remembered_and_takes_nothing_away(tool, monkeypatch):
    machine(tool, monkeypatch, WINDOWS, RTX)
    monkeypatch.setattr(tool, "pip", lambda *arguments: tool.calls.append(arguments) or 1)
    assert tool.main(["--remembered"]) == 1 and not tool.REMEMBERED.exists()
    assert {call[0] for call in tool.calls} == {"install"}, "pip removes what was there when it has the other one"


def test_the_pin_is_read(monkeypatch):
    spec = importlib.util.spec_from_file_location("install_torch", ROOT / "scripts" / "install_torch.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    assert f"torch=={script.wanted_version()}\n" in (ROOT / "requirements.txt").read_text(encoding="utf-8")
