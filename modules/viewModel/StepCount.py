import json
import time
from collections.abc import Callable
from pathlib import Path

from modules.dataLoader.plan import samples_per_epoch
from modules.util.config.ConceptConfig import ConceptConfig
from modules.util.config.errors import ConfigError
from modules.util.config.load import resolve_concepts
from modules.util.config.TrainConfig import TrainConfig
from modules.util.enum.ConceptType import ConceptType
from modules.util.texts import tr
from modules.viewModel.ConceptModel import look_into
from modules.viewModel.ExactSteps import ImageSizes, exact_steps
from modules.viewModel.RunModel import duration
from modules.viewModel.StepTime import ALIKE, StepTime, card_of, last_step_time
from modules.viewModel.Worker import Worker

# seconds after which a folder is looked into again: people add images while the window is open
OLD = 30.0
COUNTED = (*ALIKE, "epochs", "seed", "aspect_ratio_bucketing", "train_device")
Key = tuple[str, bool]
Counted = tuple[int, StepTime | None]


class StepCount:
    """How many steps a config is, and how long they took in an earlier run of the same kind.

    At first images times epochs over what a step takes; then, where that is asked for, the count that the run itself
    makes, from the sizes of all pictures.

    Args:
        worker: looks into folders, which may be large, or far away.
        done: called when more is known.
        runs: folders of earlier runs.

    Attributes:
        steps: how many; 0 as long as it is not known, or where there is nothing to train on.
        text: for people; empty for 0.
        detail: the same with what it is made of.
    """

    def __init__(self, worker: Worker, done: Callable[[], None], runs: tuple[Path, ...] = ()) -> None:
        self._worker, self._done, self._runs = worker, done, runs
        self._known: dict[Key, tuple[float, int]] = {}
        self._looking = False
        self._sizes = ImageSizes()
        # of the last config that was counted exactly: what that depends on, when, and the count; None while it is not
        self._exact: tuple[str, float, Counted | None] = ("", 0.0, None)
        self._counting = False
        self.steps = 0
        self.text = self.detail = ""

    def show(self, config: TrainConfig, exactly: bool = False) -> None:
        """Counts for this config, at once if its folders are known; otherwise `done` is called when they are.

        Args:
            config: of the run.
            exactly: whether torch may be loaded for it; then `done` is called when the exact number is known, too.
        """
        try:
            concepts = resolve_concepts(config, warn=lambda text: None)
        except (ConfigError, OSError):
            # which is told as a problem
            concepts = []
        trained = [one for one in concepts if one.enabled and one.type != ConceptType.VALIDATION]
        old = time.monotonic() - OLD
        missing = {
            _key(one): one.model_copy(deep=True) for one in trained if self._known.get(_key(one), (old, 0))[0] <= old
        }
        if missing:
            self._look(missing)
        if all(_key(one) in self._known for one in trained):
            counts = [self._known[_key(one)][1] for one in trained]
            key = _signature(config, trained, counts)
            self._count(config, trained, counts, self._exact[2] if self._exact[0] == key else None)
            if exactly and any(counts):
                self._count_exactly(key, config, trained)
        else:
            # what stands there is another config's
            self.steps, self.text, self.detail = 0, "", ""

    def _count(
        self, config: TrainConfig, trained: list[ConceptConfig], counts: list[int], exact: Counted | None
    ) -> None:  # fmt: skip
        samples = sum(samples_per_epoch(one, count) for one, count in zip(trained, counts, strict=True))
        taken = config.batch_size * config.gradient_accumulation_steps
        self.steps, known = (-(-samples * config.epochs // taken), None) if exact is None else exact
        about = tr("about {steps} steps", steps=f"{self.steps:,}")
        self.text = (about if exact is None else tr("{steps} steps", steps=f"{self.steps:,}")) if self.steps else ""
        self.detail = tr(
            "{images} images give {samples} samples to an epoch; {epochs} epochs, {taken} in a step.",
            images=f"{sum(counts):,}", samples=f"{samples:,}", epochs=f"{config.epochs:,}", taken=f"{taken:,}",
        )  # fmt: skip
        if exact is None:
            self.detail += " " + tr(
                "Batches of one size each and files that are left out make it a little more or less."
            )
            return
        self.detail += " " + tr("Batches have pictures of one size each, which makes some of them smaller.")
        if known is not None and self.steps:
            took = duration(known.seconds * self.steps)
            self.text += f" · {tr('about {time}', time=took)}"
            self.detail += "\n" + tr(
                "A step took {seconds} s in {run}, with the same model, method, batch and resolution on {device}. "
                "Samples, backups and the start are not counted.",
                seconds=f"{known.seconds:.3g}", run=known.run, device=known.device,
            )  # fmt: skip

    def _count_exactly(self, key: str, config: TrainConfig, trained: list[ConceptConfig]) -> None:
        """Begins to count, unless that is under way, or was done for the same a moment ago."""
        if self._counting or (self._exact[0] == key and self._exact[1] > time.monotonic() - OLD):
            return
        self._counting = True
        config, trained = config.model_copy(deep=True), [one.model_copy(deep=True) for one in trained]

        def work() -> Counted:
            return exact_steps(config, trained, self._sizes), last_step_time(self._runs, config, card_of(config))

        def take(found: Counted | None) -> None:
            self._counting = False
            self._exact = key, time.monotonic(), found
            self._done()

        # what cannot be counted keeps the rough number
        self._worker.run(work, take, lambda error: take(None))

    def _look(self, missing: dict[Key, ConceptConfig]) -> None:
        if self._looking:
            return
        self._looking = True

        def take(found: dict[Key, int]) -> None:
            self._looking = False
            now = time.monotonic()
            self._known |= {key: (now, count) for key, count in found.items()}
            self._done()

        def give_up(error: Exception) -> None:
            self._looking = False

        self._worker.run(lambda: {key: look_into(one).count for key, one in missing.items()}, take, give_up)


def _key(concept: ConceptConfig) -> Key:
    return concept.path, concept.include_subdirectories


def _signature(config: TrainConfig, trained: list[ConceptConfig], counts: list[int]) -> str:
    """What the number of steps depends on, and the time of one."""
    options = config.to_dict()
    parts = [options[name] for name in COUNTED if name in options]
    return json.dumps([parts, [one.to_dict() for one in trained], counts], default=str)
