"""What a run has made, and what is done with it next."""

import filecmp
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from modules.tool.ComfyGraph import workflow_place
from modules.util.config.errors import ConfigError
from modules.util.config.read_json import read_json
from modules.util.config.whole_file import replacing
from modules.util.enum.TrainingMethod import TrainingMethod
from modules.util.texts import tr
from modules.util.UserError import UserError
from modules.viewModel.RunModel import RunModel
from modules.viewModel.ToolProcess import ROOT, ToolProcess

LORAS = Path("models") / "loras"
CHUNK = 1 << 22


@dataclass(frozen=True)
class RunResult:
    """What a run has saved last.

    Attributes:
        path: file or folder, absolute.
        config: file with the config of the run.
        is_adapter: whether it is an adapter, which other programs load beside a base model.
    """

    path: Path
    config: Path
    is_adapter: bool

    @property
    def workflow(self) -> Path:
        """Where its workflow for ComfyUI is written."""
        return workflow_place(self.path)

    @property
    def page(self) -> Path:
        """Where the page of its run is written."""
        return self.path.with_name(f"{self.path.stem} run.html")


def result_of(model: RunModel) -> RunResult | None:
    """What a run that has ended has made; None if nothing of it is there."""
    if model.run is None or model.state != "ended" or model.saved is None:
        return None
    path, config = ROOT / model.saved, model.run.folder / "config.json"
    if not path.exists():
        return None
    try:
        method = read_json(config).get("training_method")
    except ConfigError:
        return None
    return RunResult(path, config, path.is_file() and method in (None, TrainingMethod.LORA))


def write_workflow(result: RunResult, overwrite: bool, process: ToolProcess) -> str:
    """Writes a workflow for ComfyUI beside an adapter; returns what is to be done by hand.

    Raises:
        UserError: ComfyUI can't draw with the model, or the file exists and is not to be replaced.
    """
    arguments = [str(result.config), "--adapter", str(result.path), "--output", str(result.workflow)]
    arguments += ["--overwrite"] if overwrite else []
    return process.run_script("comfy_workflow.py", *arguments, target=result.workflow)


def write_page(result: RunResult, overwrite: bool, process: ToolProcess) -> str:
    """Writes the run as one HTML file beside what it has saved; returns what the script says.

    Raises:
        UserError: the file exists and is not to be replaced.
    """
    arguments = [str(result.config.parent), "--output", str(result.page), *(["--overwrite"] if overwrite else [])]
    return process.run_script("run_page.py", *arguments, target=result.page)


def comfy_loras(folder: Path) -> Path:
    """Where a ComfyUI looks for adapters.

    Args:
        folder: of ComfyUI, or that of its adapters.

    Raises:
        UserError: it is neither.
    """
    for place in (folder / LORAS, folder):
        if place.name == LORAS.name and place.is_dir():
            return place
    text = tr(
        "{folder}: found no {below} in it, expected the folder of ComfyUI. Choose that.", folder=folder, below=LORAS
    )
    raise UserError(text)


def other_in_comfy(result: RunResult, folder: Path) -> Path | None:
    """A file of another content that has the adapter's name there; None if there is none.

    Raises:
        UserError: as `comfy_loras`.
    """
    there = comfy_loras(folder) / result.path.name
    return there if there.exists() and not filecmp.cmp(result.path, there, shallow=False) else None


def copy_to_comfy(result: RunResult, folder: Path, replace: bool) -> Path:
    """Copies an adapter to where ComfyUI looks for it; returns the copy.

    Args:
        result: the adapter.
        folder: see `comfy_loras`.
        replace: whether a file of its name is replaced; otherwise the copy gets a number behind its name.

    Raises:
        UserError: as `comfy_loras`.
        OSError: it can't be read or written.
    """
    target, number = comfy_loras(folder) / result.path.name, 1
    while not replace and target.exists():
        if filecmp.cmp(result.path, target, shallow=False):
            return target
        number += 1
        target = target.with_name(f"{result.path.stem}-{number}{result.path.suffix}")
    # whole, or not there at all: ComfyUI may be looking
    with result.path.open("rb") as source, replacing(target, ".partial") as file:
        while chunk := source.read(CHUNK):
            file.write(chunk)
    return target


def show_in_folder(path: Path) -> str:
    """Opens the folder of a file in the system's own program; returns what is to be said if it can't be."""
    folder = path if path.is_dir() else path.parent
    try:
        if sys.platform == "win32":
            os.startfile(folder)
        else:
            opener = "open" if sys.platform == "darwin" else "xdg-open"
            subprocess.Popen([opener, str(folder)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    except OSError:
        return tr("No program is known that shows folders. It is {folder}", folder=folder)
    return ""
