from collections.abc import Callable

from modules.util.texts import tr
from modules.viewModel.OptimizerCatalog import OptimizerCatalog
from modules.viewModel.TrainForm import Checks, TrainForm
from modules.viewModel.Worker import Worker


class CatalogLoader:
    """Finds out for a form, beside everything else, what the optimizers take and what would stop a run.

    For that torch is imported, which takes seconds.

    Args:
        form: gets it as `catalog` and `checks`.
        worker: on whose threads it is found out.
        known: is called when the form has got something.
        say: shows a line.
    """

    def __init__(
        self, form: TrainForm, worker: Worker, known: Callable[[], None], say: Callable[[str], None]
    ) -> None:  # fmt: skip
        self._form, self._worker, self._known, self._say = form, worker, known, say
        self._waiting: list[Callable[[], None]] = []
        self._loading = False

    def load(self) -> None:
        """Begins, unless it has begun before."""
        if self._loading or self._form.catalog is not None:
            return
        self._loading = True
        self._worker.run(OptimizerCatalog.load, self._loaded, self._failed)

    def load_for(self, action: Callable[[], None]) -> None:
        """Calls `action` as soon as it is known what the optimizers take."""
        self._say(tr("Loading what the optimizers take …"))
        self._waiting.append(action)
        self.load()

    def _loaded(self, catalog: OptimizerCatalog) -> None:
        self._loading, self._form.catalog = False, catalog
        self._say("")
        self._known()
        waiting, self._waiting = self._waiting, []
        for action in waiting:
            action()
        # takes longer, and nothing waits for it
        self._worker.run(self._form.load_checks, self._checks_loaded, self._failed)

    def _checks_loaded(self, checks: Checks) -> None:
        self._form.checks = checks
        self._known()

    def _failed(self, error: Exception) -> None:
        self._loading = False
        self._waiting.clear()
        self._say(tr("What the trainer takes cannot be read: {error}", error=error))
