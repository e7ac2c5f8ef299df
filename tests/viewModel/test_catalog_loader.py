"""What the optimizers take is loaded beside the window."""

from modules.util.config.TrainConfig import TrainConfig
from modules.viewModel.CatalogLoader import CatalogLoader
from modules.viewModel.OptimizerCatalog import OptimizerCatalog
from modules.viewModel.TrainForm import TrainForm
from modules.viewModel.Worker import Worker
from tests.viewModel.finish import finish


def test_who_waits_is_called_when_it_is_known_and_a_failure_is_told(monkeypatch):
    form, worker, said, called = TrainForm(TrainConfig()), Worker(), [], []
    monkeypatch.setattr(form, "load_checks", lambda: list)
    loader = CatalogLoader(form, worker, lambda: called.append(form.checks), said.append)

    def fail() -> None:
        raise OSError("no disk")

    monkeypatch.setattr(OptimizerCatalog, "load", fail)
    loader.load_for(lambda: called.append("too early"))
    finish(worker)
    assert form.catalog is None and not called and said[-1] == "What the trainer takes cannot be read: no disk"
    tries = []
    monkeypatch.setattr(OptimizerCatalog, "load", lambda: tries.append(None) or "catalog")
    loader.load_for(lambda: called.append(form.catalog))
    loader.load()
    finish(worker)
    loader.load()
    assert len(tries) == 1 and called == [None, "catalog", list] and form.checks is list and said[-1] == ""
