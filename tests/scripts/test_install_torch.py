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
    cuda = ["install", "torch==2.13.0+cu130", "--extra-index-url", f"{INDEX}cu130"]
    assert tool.calls == [cuda] and tool.REMEMBERED.read_text() == "cuda\n"
    assert "RTX 3060 (driver 581.29) was found" in capsys.readouterr().err
    # the next time nobody looks, and pip sees to it that another version is followed
    machine(tool, monkeypatch, WINDOWS)
    assert tool.main(["--remembered"]) == 0
    assert tool.calls == [cuda, cuda] and not capsys.readouterr().err


def test_the_usual_build_is_left_to_the_requirements(tool, monkeypatch, capsys):
    machine(tool, monkeypatch, LINUX)
    assert tool.main(["--remembered"]) == 0 and tool.main(["--remembered"]) == 0
    assert not tool.calls and tool.REMEMBERED.read_text() == "usual\n"
    assert "No GPU of NVIDIA was found" in capsys.readouterr().err


def test_another_build_takes_the_place_of_what_is_there(tool, monkeypatch):
    machine(tool, monkeypatch, WINDOWS, RTX)
    assert tool.main(["--remembered"]) == 0
    assert [call[0] for call in tool.calls] == ["uninstall", "install"], "the one for the CPU is what pip had found"
    tool.calls.clear()
    assert tool.main(["usual"]) == 0
    assert tool.calls == [["uninstall", "--yes", "--quiet", "torch"], ["install", "torch==2.13.0"]]
    assert tool.REMEMBERED.read_text() == "usual\n"


def test_who_sits_at_the_keyboard_is_asked(tool, monkeypatch, capsys):
    machine(tool, monkeypatch, LINUX, RTX)
    monkeypatch.setattr("sys.stdin", Keyboard("metal\nROCm\n"))
    assert tool.main(["--remembered"]) == 0
    assert tool.REMEMBERED.read_text() == "rocm\n" and tool.calls[-1][1] == "torch==2.13.0+rocm7.2"
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


def test_what_failed_is_not_remembered(tool, monkeypatch):
    machine(tool, monkeypatch, WINDOWS, RTX)
    monkeypatch.setattr(tool, "pip", lambda *arguments: 1)
    assert tool.main(["--remembered"]) == 1 and not tool.REMEMBERED.exists()


def test_the_pin_is_read(monkeypatch):
    spec = importlib.util.spec_from_file_location("install_torch", ROOT / "scripts" / "install_torch.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    assert f"torch=={script.wanted_version()}\n" in (ROOT / "requirements.txt").read_text(encoding="utf-8")
