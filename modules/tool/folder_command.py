"""What the command lines of a `FolderTool` share. It loads no torch: a wrong command line should not wait for that."""

import argparse
import os
import signal
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from modules.util.config.errors import ConfigError
from modules.util.UserError import UserError

if TYPE_CHECKING:
    from modules.tool.FolderTool import FolderTool


def folder_parser(doc: str, models: Iterable[str], prompt: str) -> argparse.ArgumentParser:
    """A parser with the folder, the model and the prompt.

    Args:
        doc: of the script.
        models: some that are known to do.
        prompt: help.
    """
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, metavar="FOLDER")
    parser.add_argument("--model", required=True, help=f"such as {', '.join(models)}")
    parser.add_argument("--prompt", default="", metavar="TEXT", help=prompt)
    return parser


def add_machine(parser: argparse.ArgumentParser) -> None:
    """The options that say where the model is found, and where it works."""
    parser.add_argument("--device", help="cuda, cuda:1, mps, cpu; the best one there is if not given")
    parser.add_argument(
        "--config", type=Path, metavar="JSON", help="a preset or config: its device, hub cache, token and offline mode"
    )


def shared_wishes(args: argparse.Namespace) -> dict[str, Any]:
    """What `FolderWishes` takes of any of these command lines as it is."""
    return {name: getattr(args, name) for name in ("folder", "model", "subfolders", "config", "device")}


def run_tool(tool: "FolderTool") -> int:
    """Runs a tool; returns the exit status, 3 if some pictures were left out. A stop is told in words."""
    try:
        tool.run()
    except KeyboardInterrupt:
        done = f"{tool.written} {tool.what}s are done"
        raise KeyboardInterrupt(f"Stopped; {done}. The same command goes on.") from None
    return 3 if tool.left_out else 0


def run_command(run: Callable[[argparse.Namespace], int], args: argparse.Namespace, what: str) -> int:
    """Does what a command line asks for; returns the exit status, 1 after an error, 130 after Ctrl+C.

    Args:
        run: does it.
        args: the command line.
        what: is written beside each picture, for people.
    """
    # transformers recommends packages for image processors that are not used here
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    try:
        return run(args)
    except (ConfigError, UserError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
    except KeyboardInterrupt as stopped:
        print(str(stopped) or f"Stopped before the first {what}.", file=sys.stderr)
        return 130
    return 1


def stop_on_term() -> None:
    """SIGTERM is taken as Ctrl+C, so that nothing half written stays behind when the window ends the script."""

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, stop)
