"""What other processes of the checks do. Nothing here imports the plugin: it has to be there by itself."""

import json
import sys
from pathlib import Path
from typing import Any


def list_members(_: int, path: str) -> None:
    """Writes the names of OneTrainer's optimizers into a file."""
    from modules.util.enum.Optimizer import Optimizer

    Path(path).write_text(json.dumps([str(one) for one in Optimizer]))


class _Hiding:
    """A finder that finds no plugin."""

    def find_spec(self, name: str, *_: Any) -> None:
        if name.partition(".")[0] == "scaled_onetrainer":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


def hide() -> None:
    """As if the plugin was not installed."""
    sys.meta_path[:] = [finder for finder in sys.meta_path if type(finder).__name__ != "HookFinder"]
    for name in [name for name in sys.modules if name.partition(".")[0] == "scaled_onetrainer"]:
        del sys.modules[name]
    sys.meta_path.insert(0, _Hiding())
