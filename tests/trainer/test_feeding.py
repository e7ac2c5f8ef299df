"""Runs whose batches are read ahead: the bytes of runs that read each batch in its step, and no thread afterwards."""

import threading
from collections import Counter

from modules.dataLoader.TrainingData import TrainingData
from modules.util.UserError import UserError

import pytest


class Unfed:
    """Reads a batch in the step that asks for it."""

    def __init__(self, data, planned, end, threads, device, stride):
        self._data, self._planned, self.waited = data, planned, 0.0

    def batch(self, number):
        return self._data.load(self._planned(number))

    def close(self):
        pass


def data_threads():
    return [thread for thread in threading.enumerate() if thread.name.startswith("data")]


@pytest.mark.parametrize(
    "options",
    [
        {"dataloader_threads": 3, "data_memory": 0.0},
        {"gradient_accumulation_steps": 3, "masked_training": True, "text_encoder": {"dropout_probability": 0.3}},
        {"latent_caching": False, "epochs": 1},
    ],
)
def test_the_adapter_is_that_of_a_run_that_reads_in_its_steps(make_run, monkeypatch, options):
    fed, unfed = make_run("fed"), make_run("unfed")
    fed.train(**options)
    monkeypatch.setattr("modules.trainer.Trainer.Feed", Unfed)
    unfed.train(**options)
    assert fed.digest() == unfed.digest() and not data_threads()


def test_a_run_tells_how_long_it_waited(mini_run):
    report = mini_run.train(epochs=1)
    steps = mini_run.of_kind("step")
    assert all(0 <= values["data_wait"] <= values["seconds"] for values in steps)
    assert report["data_wait_seconds"] == sum(values["data_wait"] for values in steps) > 0
    assert report["data_wait_share"] == report["data_wait_seconds"] / sum(values["seconds"] for values in steps) < 1


def test_the_next_epoch_is_planned_once_while_this_one_ends(mini_run, monkeypatch):
    plan, planned = TrainingData.plan, []
    monkeypatch.setattr(TrainingData, "plan", lambda self, epoch: planned.append(epoch) or plan(self, epoch))
    mini_run.train(epochs=5, backup_before_save=False)
    assert set(planned) == set(range(5)) and Counter(planned).most_common(1)[0][1] == 1


def test_no_thread_outlives_a_run_that_is_stopped_or_fails(make_run, monkeypatch):
    make_run("stopped").train(stop_after=2)
    assert not data_threads()

    def broken(self, *place):
        raise UserError("a.png: the file changed after the dataset check; start again")

    failing = make_run("failing")
    trainer = failing.trainer(latent_caching=False)
    trainer.events.listeners.append(
        lambda kind, values: (
            kind == "step" and monkeypatch.setattr("modules.dataLoader.ImageSource.ImageSource.pixels", broken)
        )
    )
    with pytest.raises(UserError, match="a.png"):
        trainer.run()
    assert len(failing.of_kind("step")) >= 1 and not data_threads()
