from collections.abc import Callable

import pytest


class Interrupted(Exception):
    pass


@pytest.fixture
def interrupted(monkeypatch):
    """interrupted(training) runs it until its average was renewed three times, as if it had been stopped there."""
    from torch.optim.swa_utils import AveragedModel

    average = AveragedModel.update_parameters

    def stop_after_three(self, model) -> None:
        average(self, model)
        if self.n_averaged == 3:
            raise Interrupted

    def run(training: Callable[[], object]) -> None:
        with monkeypatch.context() as patched:
            patched.setattr(AveragedModel, "update_parameters", stop_after_three)
            with pytest.raises(Interrupted):
                training()

    return run
