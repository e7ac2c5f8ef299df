"""Which loggers a run has, and what each needs."""

from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec

from modules.trainer.Logger import Logger
from modules.trainer.RecordLogger import RecordLogger
from modules.trainer.TensorBoardLogger import TensorBoardLogger
from modules.trainer.TrackioLogger import TrackioLogger
from modules.trainer.WandbLogger import WandbLogger
from modules.util.config.errors import Problem, Remedy
from modules.util.config.TrainConfig import TrainConfig
from modules.util.enum.RunLogger import RunLogger


@dataclass(frozen=True)
class OptionalLogger:
    """A logger whose library is not installed with this program.

    Attributes:
        make: makes it; its library is imported when a run begins.
        package: the library, as it is imported and as pip knows it.
        version: with which it was tried.
    """

    make: Callable[[], Logger]
    package: str
    version: str


OPTIONAL = {
    RunLogger.WANDB: OptionalLogger(WandbLogger, "wandb", "0.31.0"),
    RunLogger.TRACKIO: OptionalLogger(TrackioLogger, "trackio", "0.43.0"),
}


def make_loggers(config: TrainConfig) -> list[Logger]:
    """The loggers of a run, in the process that leads."""
    chosen = OPTIONAL.get(config.logger)
    return [TensorBoardLogger(), RecordLogger(), *([chosen.make()] if chosen else [])]


def logger_problems(config: TrainConfig) -> list[Problem]:
    """What is missing for the chosen logger. It is looked for, not imported."""
    chosen = OPTIONAL.get(config.logger)
    if chosen is None or find_spec(chosen.package) is not None:
        return []
    text = (
        f"{config.logger} needs the package {chosen.package}, which is not installed. Install: python -m pip install "
        f"{chosen.package}=={chosen.version}. Or set it to NONE"
    )
    return [Problem("logger", text, (Remedy.of({"logger": RunLogger.NONE}),))]
