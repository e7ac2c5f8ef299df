from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import ClassVar, Protocol

from modules.model.BaseModel import BaseModel
from modules.trainer.TrainedSet import TrainedSet
from modules.util.config.errors import Problem, Remedy
from modules.util.config.TrainConfig import TrainConfig
from modules.util.config.TrainModelPartConfig import TrainModelPartConfig
from modules.util.enum.TimeUnit import TimeUnit
from modules.util.enum.TrainingMethod import TrainingMethod
from modules.util.UserError import UserError

Warn = Callable[[str], None]


class SetOptions(Protocol):
    """What a config says about one trained set. `learning_rate` None: the run's."""

    learning_rate: float | None
    stop_training_after: int | None
    stop_training_after_unit: TimeUnit


class Method(ABC):
    """A way to train: what a run makes trainable, and what it writes. A new one is a subclass and a line in `METHODS`.

    `training_method` is the config's value by which it is chosen; None for what runs beside another method.
    """

    training_method: ClassVar[TrainingMethod | None] = None
    # whether the model beside what is trained stays as it was, so that it can be asked without it; see `TrainedSet`
    keeps_model: ClassVar[bool] = False

    def applies(self, config: TrainConfig) -> bool:
        """Whether a run of this config trains by it."""
        return config.training_method == self.training_method

    @abstractmethod
    def check(self, config: TrainConfig, family: type[BaseModel], warn: Warn) -> list[Problem]:
        """Everything that would stop the run later, as far as config and family tell. No model is opened.

        Args:
            warn: gets a line for what the user should know.
        """

    @abstractmethod
    def check_output(self, model: BaseModel, config: TrainConfig, warn: Warn) -> None:
        """Raises UserError if the result can't be written for this model, none of whose weights are loaded yet."""

    def add_placeholders(self, model: BaseModel, config: TrainConfig) -> None:  # noqa: B027
        """Lets captions have as many tokens as with the words that the method adds. No weights are read for that.

        Raises:
            UserError: it can't be said how many these are.
        """

    def prepare(  # noqa: B027 - most ways to train change nothing here
        self, model: BaseModel, config: TrainConfig, captions: Sequence[str], warn: Warn
    ) -> None:
        """Changes what captions mean to the model, where the method does so. Called before any is encoded.

        Args:
            captions: all of the run's, as they stand in their files.
        """

    def writes_folder(self, config: TrainConfig) -> bool:
        """Whether `output_model_destination` is a folder."""
        return False

    def planned_sets(self, config: TrainConfig, family: type[BaseModel]) -> list[str]:
        """Names of the sets that `make` will make."""
        return trained_components(config, family.trainable_components)

    @abstractmethod
    def trains_text(self, config: TrainConfig, trainable: Sequence[str]) -> bool:
        """Whether captions are encoded anew in each step, with gradient."""

    @abstractmethod
    def make(self, model: BaseModel, config: TrainConfig, warn: Warn) -> dict[str, TrainedSet]:
        """What it trains, in training mode, by a name that is unique in the run: the component's, if there is one."""

    def options(self, config: TrainConfig, name: str) -> SetOptions | None:
        """The options of a set of this name; None if it makes none of this name."""
        found = getattr(config, name, None)
        return found if isinstance(found, TrainModelPartConfig) else None

    @abstractmethod
    def save(
        self, path: Path, sets: Mapping[str, TrainedSet], model: BaseModel, config: TrainConfig, warn: Warn
    ) -> None:
        """Writes its own of the run's `sets`; what is at `path` is set aside.

        Args:
            path: the run's output, or a model that is saved on the way.
        """


def trained_components(config: TrainConfig, trainable: Sequence[str]) -> list[str]:
    """The components of the family that the config trains."""
    return [component for component in trainable if getattr(config, component).train]


def check_trained(config: TrainConfig, trainable: Sequence[str]) -> None:
    """Raises UserError if the config trains no component at all."""
    if not trained_components(config, trainable):
        names = " or ".join(f"{component}.train" for component in trainable)
        raise UserError(
            f"{trainable[0]}.train: nothing is trained: switch on {names}.", Remedy.of({f"{trainable[0]}.train": True})
        )


def trains_text_encoder(config: TrainConfig, trainable: Sequence[str]) -> bool:
    """Whether a text encoder is among the trained components."""
    return any(component.startswith("text_encoder") for component in trained_components(config, trainable))
