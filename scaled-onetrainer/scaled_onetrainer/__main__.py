"""python -m scaled_onetrainer train|doctor|check|install|uninstall: see each with --help."""

import argparse
import os
import runpy
import sys
from pathlib import Path

from scaled_onetrainer import SWITCH, __version__
from scaled_onetrainer.command import CommandError, checkout_at


def parser() -> argparse.ArgumentParser:
    """What the command takes."""
    top = argparse.ArgumentParser(
        prog="python -m scaled_onetrainer",
        description="scaled-optim's optimizers and adapters inside an unmodified OneTrainer.",
        epilog=f"The environment variable {SWITCH}=0 switches the plugin off.",
    )
    top.add_argument("--version", action="version", version=f"scaled-onetrainer {__version__}")
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")

    train = commands.add_parser(
        "train",
        help="run OneTrainer's scripts/train.py with the plugin at work",
        description="Runs OneTrainer's scripts/train.py with the plugin at work, where the environment has no .pth of "
        "it. All other arguments go to the script.",
        usage="python -m scaled_onetrainer train [--onetrainer DIR] --config-path FILE [arguments of scripts/train.py]",
        allow_abbrev=False,
    )
    _checkout(train, "the current folder")
    doctor = commands.add_parser(
        "doctor",
        help="say what the plugin finds in a checkout, and try it",
        description="Says what the plugin finds in a checkout, and takes one step with each optimizer. Run it with the "
        "Python that OneTrainer runs with. Exit code 1: something is missing.",
    )
    _checkout(doctor, "the current folder")
    check = commands.add_parser(
        "check",
        help="look for everything that the plugin takes for granted of a checkout",
        description="Looks for everything that the plugin takes for granted of a checkout, by syntax trees: nothing of "
        "it is run. Exit code 1: something that training needs is missing.",
    )
    check.add_argument("folder", metavar="DIR", help="of the checkout")
    for name, text in (
        ("install", "install the plugin into the environment of a checkout"),
        ("uninstall", "take it away again"),
    ):
        command = commands.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}, with its own pip.")
        _checkout(command, "the current folder")
        command.add_argument("--python", metavar="FILE", help="of the environment; else it is found as OneTrainer does")
    return top


def _checkout(command: argparse.ArgumentParser, default: str) -> None:
    command.add_argument("--onetrainer", metavar="DIR", help=f"the folder of OneTrainer; without it {default}")


def main(arguments: list[str]) -> int:
    """Runs a command, and returns its exit code: 0 all went well, 1 something is missing, 2 it could not be done."""
    top = parser()
    options, rest = top.parse_known_args(arguments)
    if rest and options.command != "train":
        top.error(f"unknown arguments: {' '.join(rest)}")
    try:
        return _run(options, rest)
    except CommandError as error:
        print(f"scaled-onetrainer: {error}", file=sys.stderr)
        return 2


def _run(options: argparse.Namespace, rest: list[str]) -> int:
    if options.command == "check":
        # the table names every one of our options, which costs more than anything else here
        from scaled_onetrainer.assumptions import ASSUMPTIONS
        from scaled_onetrainer.contract import report

        if not Path(options.folder).is_dir():
            raise CommandError(f"{options.folder} is no folder.")
        return report(Path(options.folder).resolve(), ASSUMPTIONS)
    root = checkout_at(options.onetrainer)
    if options.command == "train":
        # as `python -m scaled_onetrainer.launch`: children know that name
        sys.argv = ["", str(root), *rest]
        runpy.run_module("scaled_onetrainer.launch", run_name="__main__", alter_sys=True)
        return 0
    if options.command == "doctor":
        from scaled_onetrainer.doctor import examine

        return examine(root)
    from scaled_onetrainer.install import install, python_of, uninstall

    python = python_of(root, os.environ, options.python)
    return install(root, python) if options.command == "install" else uninstall(root, python)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
