"""The device and the places that a run needs, tried before anything is loaded."""

import os
import platform
from collections.abc import Callable
from pathlib import Path

from modules.modelSaver.output import set_aside
from modules.trainer.devices import resolve_device
from modules.trainer.RecordLogger import tell_moved
from modules.trainer.trained import methods_of
from modules.util.config.TrainConfig import TrainConfig
from modules.util.torch_build import WINDOWS, Machine, nvidia_gpus, suggested
from modules.util.UserError import UserError
from modules.util.write_place import check_file_place, check_folder_place

import torch


def idle_gpu_note(config: TrainConfig) -> str:
    """What to tell of a run that falls to the CPU although a GPU of NVIDIA is there; empty where nothing is wrong."""
    hidden = "CUDA_VISIBLE_DEVICES" in os.environ
    if hidden or config.train_device != "auto" or resolve_device(config).type != "cpu":
        return ""
    gpus = nvidia_gpus()
    if not gpus:
        return ""
    system = platform.system()
    command = f"{'run-cmd.bat' if system == WINDOWS else './run-cmd.sh'} install_torch"
    command += f" {suggested(Machine(system, gpus)).build.name}"
    if torch.version.cuda is None:
        why = f"torch {torch.__version__} has no CUDA; {command} brings one that has"
    else:
        why = f"torch {torch.__version__} can't use it; update its driver, or try {command}"
    return (
        f"THIS RUN USES THE CPU, which takes far longer, although {gpus[0].name} (driver "
        f"{gpus[0].driver}) is here: {why}. With train_device cpu this is not said."
    )


def check_writable(path: Path, key: str, is_folder: bool) -> None:
    """Raises UserError if a file or folder can't be written, before hours are spent on what would go there."""
    (check_folder_place if is_folder else check_file_place)(path, key)
    folder = path if is_folder else path.parent
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".writable-{os.getpid()}"
        probe.write_bytes(b"x")
        probe.unlink()
    except OSError as error:
        raise UserError(f"{key}: {path} can't be written: {error.strerror}. Choose another place.") from error


def make_places(config: TrainConfig) -> None:
    """Makes the folders that a run writes into, and tries whether it can. Raises UserError if not."""
    check_writable(Path(config.workspace_dir), "workspace_dir", is_folder=True)
    check_writable(Path(config.cache_dir), "cache_dir", is_folder=True)
    output = Path(config.output_model_destination)
    if any(method.writes_folder(config) for method in methods_of(config)):
        # its parent: the folder itself is made at the end
        check_writable(output.parent, "output_model_destination", is_folder=True)
    else:
        check_writable(output, "output_model_destination", is_folder=False)


def set_aside_older_run(workspace: Path, warn: Callable[[str], None]) -> None:
    """A run from the beginning would write over the pictures and the report of the one before it."""
    samples = workspace / "samples"
    older = [samples] if samples.is_dir() and any(samples.iterdir()) else []
    try:
        moved = set_aside([*older, workspace / "run.json", *workspace.glob("before_after.*")], warn)
        if samples in moved:
            tell_moved(workspace, samples, moved[samples])
    except OSError as error:
        warn(f"The records of earlier runs can't be told where their pictures are now: {error}")
    except UserError as error:
        # where a picture is open in another program on Windows
        warn(f"{error} Pictures of the same steps are written over.")
