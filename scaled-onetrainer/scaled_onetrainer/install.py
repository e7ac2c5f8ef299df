"""Installs the plugin into the environment that OneTrainer's own scripts run it in, and takes it away again."""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

from scaled_onetrainer import SWITCH, __version__
from scaled_onetrainer.command import CommandError

DISTRIBUTIONS = ("scaled-optim", "scaled-onetrainer")
# what the environment says after the plugin was installed: its version, and whether its torch is new enough
PROBE = """
import sys
from importlib.metadata import version
try:
    print("torch", version("torch"))
except Exception:
    print("torch none")
print("plugin", version("scaled-onetrainer"))
import scaled_optim
started = any(type(finder).__name__ == "HookFinder" for finder in sys.meta_path)
print("starts", "yes" if started else "no")
"""


def python_of(root: Path, environment: Mapping[str, str], named: str | None = None) -> Path:
    """The Python of a checkout's environment.

    OneTrainer's scripts take the folder `OT_PYTHON_VENV` (venv), or `OT_CONDA_ENV` (conda_env) where `OT_PREFER_VENV`
    is not true; both may be relative to the checkout.

    Args:
        root: of the checkout.
        environment: its variables.
        named: the file of a Python, which is taken as it is.

    Raises:
        CommandError: there is none; the message says where it was looked for.
    """
    if named is not None:
        found = shutil.which(named)
        if found is None:
            raise CommandError(f"{named} is no Python that can be started.")
        return Path(found)
    venv = root / environment.get("OT_PYTHON_VENV", "venv")
    conda = root / environment.get("OT_CONDA_ENV", "conda_env")
    prefer_venv = environment.get("OT_PREFER_VENV", "true") == "true"
    places = [place for folder in ([venv, conda] if prefer_venv else [conda, venv]) for place in _pythons(folder)]
    for place in places:
        if place.is_file():
            return place
    raise CommandError(
        f"{root} has no environment yet: there is no Python in {venv} or {conda}. Run OneTrainer's install script "
        "first, or name the Python that it runs with: --python FILE."
    )


def _pythons(folder: Path) -> tuple[Path, ...]:
    """Where the Python of a venv or of a conda environment may be."""
    return folder / "bin" / "python", folder / "Scripts" / "python.exe", folder / "python.exe"


def sources() -> list[Path] | None:
    """The folders of both distributions, if this runs from them; None: from an installed wheel."""
    home = Path(__file__).resolve().parents[1]
    folders = [home.parent / "scaled-optim", home]
    return folders if all((folder / "pyproject.toml").is_file() for folder in folders) else None


def install(root: Path, python: Path) -> int:
    """Installs both distributions, nothing else, and says what was done and how to leave; returns the exit code."""
    folders = sources()
    with tempfile.TemporaryDirectory() as folder:
        if folders is None:
            what = [f"scaled-optim=={__version__}", f"scaled-onetrainer=={__version__}"]
        else:
            # a build leaves files beside what it builds
            ignored = shutil.ignore_patterns("*.egg-info", "build", "__pycache__")
            what = [str(shutil.copytree(source, Path(folder) / source.name, ignore=ignored)) for source in folders]
        # without their needs: OneTrainer's torch stays as it is
        code = _pip(python, "install", "--no-deps", "--force-reinstall", *what)
    if code:
        return code
    probe = subprocess.run([str(python), "-c", PROBE], capture_output=True, text=True, cwd=root)
    facts = dict(line.split(None, 1) for line in probe.stdout.splitlines() if " " in line)
    print(f"Installed into {python}: scaled-onetrainer {facts.get('plugin', '')} with scaled-optim, nothing else.")
    if probe.returncode:
        reason = probe.stderr.strip().splitlines()[-1:] or ["no reason given"]
        print(f"Python can't load scaled-optim there: {reason[0]}. torch: {facts.get('torch', 'none')}, needed: 2.6.")
        return 1
    print(f"It is at work the next time that OneTrainer starts in {root}. Nothing of OneTrainer was changed.")
    print(f"Off for one start: {SWITCH}=0. To leave: {python} -m pip uninstall {' '.join(reversed(DISTRIBUTIONS))}")
    if facts.get("starts") == "no":
        print(f"It is off now, as {SWITCH} says so.")
    return 0


def uninstall(root: Path, python: Path) -> int:
    """Takes both distributions away and says so; returns the exit code."""
    code = _pip(python, "uninstall", "--yes", *reversed(DISTRIBUTIONS))
    if not code:
        print(f"Taken away from {python}. Configs that were saved in {root} with one of its optimizers stop there now.")
    return code


def _pip(python: Path, *arguments: str) -> int:
    command = [str(python), "-m", "pip", arguments[0], "--disable-pip-version-check", *arguments[1:]]
    print(" ".join(command), flush=True)
    # what is only on the path of this run is no part of the environment
    kept = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    code = subprocess.run(command, env=kept).returncode
    if code:
        print(f"scaled-onetrainer: pip ended with code {code}; what it says above is the reason.", file=sys.stderr)
    return code
