"""Backups that are written in a thread: those of their step, told when they are on disk, and never lost in silence."""

import threading
from collections import OrderedDict

from modules.trainer import BackupWriter as module
from modules.trainer.backup import list_backups, newest_backup, read_backup, write_backup
from modules.trainer.BackupWriter import BackupWriter, held_bytes, snapshot
from modules.trainer.events import TrainEvents
from modules.util.UserError import UserError
from tests.trainer.test_backup import backup

import torch

import pytest

FULL = UserError("Cannot write there: the disk is full; free some space or choose another place.")


class Gate:
    """`write_backup`, which waits until the test opens it, and may fail."""

    def __init__(self) -> None:
        self.open, self.entered, self.threads, self.error = threading.Event(), 0, [], None

    def __call__(self, folder, own):
        self.entered += 1
        self.threads.append(threading.current_thread())
        assert self.open.wait(30)
        if self.error is not None:
            raise self.error
        return write_backup(folder, own)


@pytest.fixture
def gate(monkeypatch) -> Gate:
    made = Gate()
    monkeypatch.setattr(module, "write_backup", made)
    yield made
    made.open.set()


@pytest.fixture
def told() -> list[tuple[str, dict]]:
    return []


@pytest.fixture
def writer(tmp_path, told):
    made = BackupWriter(tmp_path / "backup", None, TrainEvents([lambda kind, values: told.append((kind, values))]))
    yield made
    made.close()


def test_it_is_that_of_its_step_and_told_when_it_is_there(writer, gate, told):
    own = backup(3)
    writer.write(own)
    # training goes on
    own.tensors["unet.layer.lora_down.weight"].zero_()
    own.optimizer["state"][0]["exp_avg"].zero_()
    own.progress["losses"].append(1.0)
    writer.poll()
    assert (
        not told and writer.last is None and "there is no backup" in writer.note() and not list_backups(writer.folder)
    )
    gate.open.set()
    writer.wait()
    (path,) = list_backups(writer.folder)
    assert told == [("backup", {"step": 3, "path": str(path)})] and (writer.last, writer.last_step) == (path, 3)
    assert gate.threads[0] is not threading.current_thread() and f"{path}, after step 3" in writer.note()
    found = read_backup(path)
    assert torch.equal(found.tensors["unet.layer.lora_down.weight"], torch.full((2, 3), 3.0))
    assert torch.equal(found.optimizer["state"][0]["exp_avg"], torch.ones(2, 3)) and len(found.progress["losses"]) == 3


def test_it_is_told_at_the_next_step(writer, gate, told):
    gate.open.set()
    writer.write(backup(1))
    future = writer._writing[0]
    future.result(30)
    writer.poll()
    assert [kind for kind, _ in told] == ["backup"]
    writer.poll()
    assert len(told) == 1


@pytest.mark.parametrize("call", ["poll", "wait", "write"])
def test_a_full_disk_is_told_at_the_next_call_and_once(writer, gate, told, call):
    gate.error = FULL
    gate.open.set()
    writer.write(backup(1))
    writer._writing[0].exception(30)
    with pytest.raises(UserError, match="the disk is full"):
        writer.write(backup(2)) if call == "write" else getattr(writer, call)()
    gate.error = None
    writer.write(backup(3), at_once=True)
    assert [values["step"] for _, values in told] == [3]


@pytest.mark.parametrize(
    ("error", "text"), [(FULL, str(FULL)), (TypeError("x"), "A backup could not be written: TypeError: x")]
)
def test_a_run_that_fails_anyhow_only_tells_of_it(writer, gate, told, error, text):
    gate.error = error
    gate.open.set()
    writer.write(backup(1))
    writer.close()
    assert told == [("warning", {"text": text})]


def test_an_earlier_one_that_failed_does_not_keep_the_last_one_from_being_written(writer, gate, told):
    gate.error = FULL
    gate.open.set()
    writer.write(backup(1))
    writer._writing[0].exception(30)
    gate.error = None
    writer.write(backup(2), at_once=True)
    assert [kind for kind, _ in told] == ["backup", "warning"] and told[0][1]["step"] == 2
    assert told[1] == ("warning", {"text": str(FULL)})
    writer.wait()


def test_the_next_one_waits(writer, gate):
    writer.write(backup(1))
    second = threading.Thread(target=writer.write, args=(backup(2),))
    second.start()
    second.join(0.2)
    assert second.is_alive() and gate.entered == 1
    gate.open.set()
    second.join(30)
    writer.wait()
    assert [read_backup(path).progress["step"] for path in list_backups(writer.folder)] == [2, 1]


def test_what_must_be_there_now_is_there_now(writer, gate, told):
    gate.open.set()
    writer.write(backup(1), at_once=True)
    assert gate.threads == [threading.current_thread()] and len(told) == 1


def test_older_ones_are_removed_when_the_new_one_is_there(tmp_path, gate):
    writer = BackupWriter(tmp_path, 1, TrainEvents([]))
    gate.open.set()
    writer.write(backup(1), at_once=True)
    gate.open.clear()
    writer.write(backup(2))
    assert newest_backup(tmp_path, pytest.fail).progress["step"] == 1
    gate.open.set()
    writer.close()
    assert [read_backup(path).progress["step"] for path in list_backups(tmp_path)] == [2]


@pytest.mark.parametrize("how", ["none free", "none given"])
def test_with_too_little_memory_training_waits(writer, gate, told, monkeypatch, how):
    def refused(value):
        raise MemoryError

    if how == "none free":
        monkeypatch.setattr(module, "free_memory", lambda: module.RESERVE)
    else:
        monkeypatch.setattr(module, "snapshot", refused)
    gate.open.set()
    for step in (1, 2):
        writer.write(backup(step))
    assert gate.threads == [threading.current_thread()] * 2
    assert [kind for kind, _ in told] == ["warning", "backup", "backup"] and "too little memory" in told[0][1]["text"]


def test_a_snapshot_shares_nothing_and_keeps_what_is_shared_inside():
    tensor = torch.arange(6.0).view(2, 3).t()
    value = OrderedDict(a=[tensor, (tensor, 1)], b={"c": [1, 2]}, d=torch.nn.Parameter(torch.ones(2)))
    own = snapshot(value)
    assert type(own) is OrderedDict and own["a"][0] is own["a"][1][0] and not own["d"].requires_grad
    expected = tensor.clone()
    tensor.zero_()
    value["b"]["c"].append(3)
    assert torch.equal(own["a"][0], expected) and own["b"]["c"] == [1, 2]
    assert held_bytes(value) == held_bytes(own) == 4 * 8


def test_a_run_whose_disk_fills_up_ends_with_the_same_words(mini_run, monkeypatch):
    trainer = mini_run.trainer(epochs=3, backup_after=1, backup_after_unit="STEP")
    real, calls = module.write_backup, []

    def second_fails(folder, own):
        calls.append(own.progress["step"])
        if len(calls) == 2:
            raise FULL
        return real(folder, own)

    monkeypatch.setattr(module, "write_backup", second_fails)
    with pytest.raises(UserError, match="the disk is full"):
        trainer.run()
    assert calls == [1, 2] and trainer.progress.step in (2, 3) and "after step 1." in trainer.backup_note()
    assert newest_backup(mini_run.workspace / "backup", pytest.fail).progress["step"] == 1
    assert not mini_run.output.exists(), "a run that ended in its middle"


@pytest.mark.parametrize(
    ("options", "failing", "steps"),
    [
        ({}, [3], [1, 2, 3, 4]), ({"backup_before_save": False}, [3], [1, 2, 3, 4]),
        ({}, [4], [1, 2, 3, 4]), ({"stop_after": 2}, [2], [1, 2]),
    ],
    ids=["earlier one", "earlier one, no last one asked for", "last one", "stopped"],
)  # fmt: skip
def test_a_training_that_is_over_is_saved_though_a_backup_fails(mini_run, monkeypatch, options, failing, steps):
    trainer = mini_run.trainer(epochs=1, backup_after=1, backup_after_unit="STEP", **options)
    real, calls = module.write_backup, []

    def some_fail(folder, own):
        calls.append(own.progress["step"])
        if calls[-1] in failing:
            assert calls[-1] == steps[-1] or last_step.wait(30)
            raise FULL
        return real(folder, own)

    last_step, step = threading.Event(), trainer._step

    def stepped():
        step()
        if trainer.progress.step == steps[-1]:
            last_step.set()

    monkeypatch.setattr(module, "write_backup", some_fail)
    monkeypatch.setattr(trainer, "_step", stepped)
    if failing[-1] == steps[-1]:
        with pytest.raises(UserError, match="the disk is full"):
            trainer.run()
    else:
        trainer.run()
        assert ("warning", {"text": str(FULL)}) in mini_run.events
        assert newest_backup(mini_run.workspace / "backup", pytest.fail).progress["step"] == steps[-1]
    assert calls == steps and mini_run.output.is_file() and not trainer.backups._writing
