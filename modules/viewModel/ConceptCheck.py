from collections.abc import Callable

from modules.util.config.ConceptConfig import ConceptConfig
from modules.util.config.TrainConfig import TrainConfig
from modules.util.texts import tr
from modules.viewModel.ConceptModel import CheckResult, check_concept


class ConceptCheck:
    """The dataset check of one concept: what goes on, what it found, and whether that still holds.

    Attributes:
        is_begun: whether it was ever asked for.
        is_busy: whether it goes on.
        is_stale: whether options have changed since.
        result: what it found last; None before, and if it could not be done.
        trouble: why it could not be done, empty if it could.
    """

    def __init__(self) -> None:
        self.is_begun = self.is_busy = self.is_stale = False
        self.result: CheckResult | None = None
        self.trouble = ""
        self._of: tuple[dict, dict] | None = None

    @property
    def heading(self) -> str:
        """What stands above its lines."""
        if self.is_busy:
            return tr("Checking …")
        found = self.trouble or (self.result.heading if self.result else tr("Reads every image and caption."))
        return tr("Options have changed; check again. Before: {found}", found=found) if self.is_stale else found

    @property
    def lines(self) -> tuple[str, ...]:
        """What it found."""
        return self.result.lines if self.result else ()

    def begin(self, config: TrainConfig, concept: ConceptConfig) -> Callable[[], CheckResult]:
        """What checks, on a worker's thread.

        Args:
            config, concept: that nobody else changes meanwhile.
        """
        assert not self.is_busy
        self.is_begun, self.is_busy, self.is_stale = True, True, False
        self.result, self.trouble, self._of = None, "", _relevant(config, concept)
        return lambda: check_concept(config, concept)

    def take(self, found: CheckResult | Exception) -> None:
        """Keeps what it found, or why it could not be done."""
        self.is_busy = False
        if isinstance(found, CheckResult):
            self.result = found
        else:
            self.trouble = str(found)

    def compare(self, config: TrainConfig, concept: ConceptConfig) -> None:
        """Finds out whether what was checked is still so."""
        self.is_stale = self._of is not None and self._of != _relevant(config, concept)


def _relevant(config: TrainConfig, concept: ConceptConfig) -> tuple[dict, dict]:
    """What the check may depend on: all options but the list that the concept itself stands in, and names."""
    run, own = config.to_dict(), concept.to_dict()
    return {key: run[key] for key in run.keys() - {"concepts", "samples"}}, {**own, "name": ""}
