import time
from collections.abc import Callable

from modules.dataLoader.plan import samples_per_epoch
from modules.util.config.ConceptConfig import ConceptConfig
from modules.util.config.errors import ConfigError
from modules.util.config.load import resolve_concepts
from modules.util.config.TrainConfig import TrainConfig
from modules.util.enum.ConceptType import ConceptType
from modules.util.texts import tr
from modules.viewModel.ConceptModel import look_into
from modules.viewModel.Worker import Worker

# seconds after which a folder is looked into again: people add images while the window is open
OLD = 30.0
Key = tuple[str, bool]


class StepCount:
    """How many steps a config is: images times epochs over what a step takes. Files that are left out count, too.

    Args:
        worker: looks into folders, which may be large, or far away.
        done: called when more is known.

    Attributes:
        text: for people; empty as long as it is not known, or where there is nothing to train on.
        detail: the same with what it is made of.
    """

    def __init__(self, worker: Worker, done: Callable[[], None]) -> None:
        self._worker, self._done = worker, done
        self._known: dict[Key, tuple[float, int]] = {}
        self._looking = False
        self.text = self.detail = ""

    def show(self, config: TrainConfig) -> None:
        """Counts for this config, at once if its folders are known; otherwise `done` is called when they are."""
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
            self._count(config, trained)
        else:
            # what stands there is another config's
            self.text = self.detail = ""

    def _count(self, config: TrainConfig, trained: list[ConceptConfig]) -> None:
        images = sum(self._known[_key(one)][1] for one in trained)
        samples = sum(samples_per_epoch(one, self._known[_key(one)][1]) for one in trained)
        taken = config.batch_size * config.gradient_accumulation_steps
        steps = -(-samples * config.epochs // taken)
        self.text = tr("about {steps:,} steps", steps=steps) if steps else ""
        self.detail = tr(
            "{images:,} images give {samples:,} samples to an epoch; {epochs:,} epochs, {taken:,} in a step. Batches "
            "of one size each and files that are left out make it a little more or less.",
            images=images, samples=samples, epochs=config.epochs, taken=taken,
        )  # fmt: skip

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
