import json
import platform
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from modules.run.RunControl import EVENTS
from modules.run.RunProcess import read_event
from modules.util.config.TrainConfig import TrainConfig
from modules.util.torch_build import nvidia_gpus

CONFIG = "config.json"
ALIKE = (
    "model_type", "base_model_name", "training_method", "peft_type", "resolution", "batch_size",
    "gradient_accumulation_steps", "train_dtype", "device_indexes", "multi_gpu",
)  # fmt: skip
"""Options on which the time of a step depends most. Ranks, optimizers and layers count less."""

# of the end of a run's events, where its report stands
TAIL_BYTES = 1 << 18


@dataclass(frozen=True)
class StepTime:
    """How long a step took in an earlier run that is like the present one.

    Attributes:
        seconds: of a step, the median, without samples, backups and validation.
        run: name of that run's folder.
        device: on which it ran.
    """

    seconds: float
    run: str
    device: str


def last_step_time(folders: Iterable[Path], config: TrainConfig, device: str) -> StepTime | None:
    """The time of the newest run that has ended, with the same family, base, method, batch and resolution.

    Args:
        folders: in which the folders of runs are, as the window keeps them.
        config: of the present run.
        device: name of the card that it would run on; the other run must have had the same.

    Returns:
        None if there is no such run.
    """
    wanted = {name: value for name, value in config.to_dict().items() if name in ALIKE}
    runs = [path for folder in folders if folder.is_dir() for path in folder.iterdir() if (path / EVENTS).is_file()]
    for run in sorted(runs, key=lambda path: (path / EVENTS).stat().st_mtime, reverse=True):
        own = _options(run / CONFIG)
        if own is None or {name: own.get(name, value) for name, value in wanted.items()} != wanted:
            continue
        report = _report(run / EVENTS)
        if report is not None and report.get("seconds_per_step") and report.get("device") == device:
            return StepTime(float(report["seconds_per_step"]), run.name, device)
    return None


def card_of(config: TrainConfig) -> str:
    """Name of what a run computes on, as its report has it, found without taking memory of a card.

    May start a program that takes a moment: call it on a worker's thread.
    """
    kind, _, number = config.train_device.partition(":")
    gpus = nvidia_gpus() if kind in ("auto", "cuda") else ()
    if gpus:
        place = int(number) if number.isdigit() else 0
        return gpus[place].name if place < len(gpus) else ""
    return platform.processor() or "cpu"


def _options(path: Path) -> dict | None:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def _report(path: Path) -> dict | None:
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - TAIL_BYTES))
            lines = file.read().splitlines()
    except OSError:
        return None
    events = [event for line in lines if (event := read_event(line)) is not None and event[0] == "finished"]
    report = events[-1][1].get("report") if events else None
    return report if isinstance(report, dict) else None
