"""The distribution in an environment of its own: it starts with Python, costs little, and leaves nothing behind."""

import os
import shutil
import subprocess
import sys
import venv
from pathlib import Path

from tests.onetrainer.inside import DISTRIBUTIONS, ROOT, STAND_IN

import pytest

PIP = [sys.executable, "-m", "pip"]
LOOK = "import sys; print([type(finder).__name__ for finder in sys.meta_path].count('HookFinder'))"
LOADED = "import sys; print(*sys.modules)"


class Environment:
    """A venv without pip, into which ours installs; torch and what it needs are those of this one."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        venv.create(folder, with_pip=False, symlinks=True)
        self.python = next(path for path in (folder / "bin/python", folder / "Scripts/python.exe") if path.exists())
        self.packages = Path(self.run("import sysconfig; print(sysconfig.get_path('purelib'))").strip())

    def run(self, code: str, folder: Path | None = None, **variables: str) -> str:
        """What Python says on both outputs, without the folders that variables name."""
        kept = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "SCALED_ONETRAINER")}
        done = subprocess.run(
            [str(self.python), "-c", code],
            capture_output=True,
            text=True,
            cwd=folder or self.folder,
            env={**kept, **variables},
            timeout=300,
        )
        assert done.returncode == 0, done.stderr[-2000:]
        return done.stdout + done.stderr

    def pip(self, *arguments: str) -> None:
        command = [*PIP, "--python", str(self.python), "--disable-pip-version-check", "--quiet", *arguments]
        subprocess.run(command, check=True, timeout=580)

    def files(self) -> set[str]:
        return {path.relative_to(self.packages).as_posix() for path in self.packages.rglob("*")}


@pytest.fixture(scope="module")
def wheels(tmp_path_factory) -> list[Path]:
    folder = tmp_path_factory.mktemp("wheels")
    for source in DISTRIBUTIONS:
        # a build leaves files beside what it builds
        ignored = shutil.ignore_patterns("*.egg-info", "build", "__pycache__")
        copy = shutil.copytree(source, folder / "sources" / source.name, ignore=ignored)
        command = [*PIP, "wheel", "--quiet", "--disable-pip-version-check", "--no-deps", "-w", str(folder), str(copy)]
        subprocess.run(command, check=True, timeout=580, cwd=folder)
    found = sorted(folder.glob("*.whl"))
    assert [path.name.split("-")[0] for path in found] == ["scaled_onetrainer", "scaled_optim"]
    return found


@pytest.fixture(scope="module")
def empty(tmp_path_factory) -> Environment:
    return Environment(tmp_path_factory.mktemp("environment") / "venv")


@pytest.fixture(scope="module")
def installed(empty, wheels) -> Environment:
    empty.before, empty.loaded_before = empty.files(), set(empty.run(LOADED).split())
    empty.pip("install", "--no-deps", *map(str, wheels))
    return empty


def test_the_starter_lies_where_python_reads_it(installed):
    assert "scaled_onetrainer.pth" in installed.files() - installed.before
    assert (installed.packages / "scaled_onetrainer.pth").read_text() == "import scaled_onetrainer.startup\n"
    source = ROOT / "scaled-onetrainer" / "scaled_onetrainer"
    wanted = {path.relative_to(source.parent).as_posix() for end in ("py", "json") for path in source.rglob(f"*.{end}")}
    assert wanted <= installed.files() and any("/presets/" in name for name in wanted)


def test_it_starts_with_python(installed):
    assert installed.run(LOOK) == "1\n"
    for value in ("0", "off", "FALSE", " no "):
        assert installed.run(LOOK, SCALED_ONETRAINER=value) == "0\n"
    assert installed.run(LOOK, SCALED_ONETRAINER="1") == "1\n"


def test_it_costs_little(installed):
    """Three small modules of ours and one of Python's: every start of Python pays for what is loaded here."""
    new = set(installed.run(LOADED).split()) - installed.loaded_before
    assert new == {"scaled_onetrainer", "scaled_onetrainer.startup", "scaled_onetrainer.HookFinder", "__future__"}


def test_our_own_modules_are_not_touched(installed):
    look = "import modules.util.enum.Optimizer as found; print(type(found.__spec__.loader).__name__, found.__file__)"
    ours = str(ROOT / "modules" / "util" / "enum" / "Optimizer.py")
    assert installed.run(look, folder=ROOT).split() == ["SourceFileLoader", ours]
    # and those of the stand-in are; the hook needs torch, which is not there
    named = "import importlib.util as u; print(type(u.find_spec('modules.util.enum.Optimizer').loader).__name__)"
    assert installed.run(named, folder=STAND_IN) == "HookedLoader\n"
    assert installed.run(named, folder=STAND_IN, SCALED_ONETRAINER="0") == "SourceFileLoader\n"


def test_the_command_runs_without_torch(installed):
    code = "import sys; from scaled_onetrainer.__main__ import main; sys.exit(main(['--version']))"
    assert installed.run(code).startswith("scaled-onetrainer 0.")


def test_uninstalled_nothing_is_left(installed):
    # with what Python wrote beside the modules
    installed.run("import scaled_onetrainer.__main__, scaled_onetrainer.doctor, scaled_onetrainer.install")
    assert any("scaled_onetrainer/__pycache__/" in name for name in installed.files())
    installed.pip("uninstall", "--yes", "scaled-onetrainer", "scaled-optim")
    assert installed.files() == installed.before
    assert installed.run(LOOK) == "0\n"
