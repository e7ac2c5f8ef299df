"""Installs the build of torch that fits this machine: CUDA, ROCm, or the CPU alone. Asks once and remembers the answer.

The first ./run-cmd.sh of an environment calls it. Called by hand it changes the build: ./run-cmd.sh install_torch rocm.
It needs nothing but Python, as nothing is installed yet.
"""

import argparse
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from modules.util.torch_build import BUILDS, Choice, Machine, TorchBuild, offered, suggested, this_machine

REQUIREMENTS = ROOT / "requirements.txt"
REMEMBERED = Path(sys.prefix) / "torch-build"


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The command line; exits with 2 if it makes no sense."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("build", nargs="?", choices=list(BUILDS), help="what to install; asked for if not given")
    parser.add_argument(
        "--remembered", action="store_true", help="what was chosen before, or ask, as ./run-cmd.sh does"
    )
    args = parser.parse_args(arguments)
    if args.build and args.remembered:
        parser.error("--remembered takes no build beside it")
    return args


def main(arguments: list[str] | None = None) -> int:
    """Runs the command line; returns its exit status."""
    args = parse(arguments)
    if sys.prefix == sys.base_prefix:
        print("error: this Python is no environment of its own; call it as ./run-cmd.sh install_torch", file=sys.stderr)
        return 2
    before = remembered()
    if args.remembered and before is not None:
        return bring(before) if before.tag else 0
    machine = this_machine()
    choice = suggested(machine)
    ask = sys.stdin.isatty() and len(offered(machine)) > 1
    build = BUILDS[args.build] if args.build else asked(machine, choice) if ask else choice.build
    if machine.system not in build.systems:
        names = ", ".join(own.name for own in offered(machine))
        print(f"error: {build.name} does not exist for {machine.system}; expected one of {names}", file=sys.stderr)
        return 2
    print(f"torch: {choice.why} Build: {build.name} ({build.about}).", file=sys.stderr)
    # ./run-cmd.sh installs requirements.txt next, and with it the usual build where there is none
    status = 0 if args.remembered and not build.tag else bring(build)
    if status == 0:
        REMEMBERED.write_text(f"{build.name}\n", encoding="utf-8")
    return status


def remembered() -> TorchBuild | None:
    """The build that was chosen for this environment before; None: none was, or its name is not known any more."""
    try:
        return BUILDS.get(REMEMBERED.read_text(encoding="utf-8").strip())
    except OSError:
        return None


def asked(machine: Machine, choice: Choice) -> TorchBuild:
    """What the user at the keyboard wants; an empty line takes the suggested build."""
    found = offered(machine)
    print(f"Which build of torch? {choice.why}", file=sys.stderr)
    for build in found:
        mark = "*" if build == choice.build else " "
        print(f" {mark} {build.name}: {build.about}", file=sys.stderr)
    while True:
        print(f"Name, or Enter for {choice.build.name}: ", end="", file=sys.stderr, flush=True)
        line = sys.stdin.readline()
        name = line.strip().lower()
        if not name:
            return choice.build
        if name in (build.name for build in found):
            return BUILDS[name]


def bring(build: TorchBuild) -> int:
    """Brings a build into this environment, if it is not there; returns pip's exit status.

    What is there is replaced only when the other one has been downloaded. The libraries that it needs come anew, as
    those of several builds have files of the same names.
    """
    there, version = installed_version(), wanted_version()
    if build.tag and there == f"{version}+{build.tag}":
        return 0
    requirement = build.requirement(version)
    if there is None:
        return pip("install", *requirement)
    status = pip("install", "--force-reinstall", *requirement)
    # other packages may have got other versions than requirements.txt pins; the next call of run-cmd mends that
    for stamp in REMEMBERED.parent.glob("installed-*"):
        stamp.unlink()
    return status


def wanted_version() -> str:
    """The version that requirements.txt pins."""
    found = re.search(r"^torch==(\S+)$", REQUIREMENTS.read_text(encoding="utf-8"), re.MULTILINE)
    assert found, "requirements.txt pins torch"
    return found[1]


def installed_version() -> str | None:
    """As "2.13.0+cu130"; None: torch is not installed."""
    try:
        return metadata.version("torch")
    except metadata.PackageNotFoundError:
        return None


def pip(*arguments: str) -> int:
    """Runs pip of this environment; returns its exit status."""
    return subprocess.run(
        [sys.executable, "-m", "pip", "--disable-pip-version-check", *arguments], check=False
    ).returncode


if __name__ == "__main__":
    sys.exit(main())
