"""Backups: what is damaged is recognised, what is not this run's is left alone."""

import io
import json
import os
import shutil
from datetime import datetime
from pathlib import Path

from modules.trainer.backup import (
    MANIFEST,
    UNFINISHED,
    Backup,
    list_backups,
    newest_backup,
    prune_backups,
    read_backup,
    write_backup,
)
from modules.trainer.TrainProgress import TrainProgress
from modules.util.UserError import UserError

import torch

import pytest

FILES = ("weights.safetensors", "optimizer.pt", "extra.pt", "progress.json", "config.json", MANIFEST)


def backup(step: int = 1, run: str = "run") -> Backup:
    tensors = {"unet.layer.lora_down.weight": torch.full((2, 3), float(step))}
    optimizer = {"state": {0: {"exp_avg": torch.ones(2, 3), "step": torch.tensor(1.0)}}, "param_groups": [{"lr": 0.1}]}
    progress = TrainProgress(step=step, losses=[0.1] * step).to_dict()
    return Backup(tensors, optimizer, {"scaler": {}}, progress, {"seed": 42}, run)


@pytest.fixture
def warnings() -> list[str]:
    return []


def test_round_trip(tmp_path):
    path = write_backup(tmp_path / "backup", backup(7))
    assert {file.name for file in path.iterdir()} == set(FILES)
    found = read_backup(path)
    assert torch.equal(found.tensors["unet.layer.lora_down.weight"], torch.full((2, 3), 7.0))
    assert torch.equal(found.optimizer["state"][0]["exp_avg"], torch.ones(2, 3))
    assert (found.progress["step"], found.config, found.run, found.path) == (7, {"seed": 42}, "run", path)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", ["missing", "cut", "flipped"])
def test_any_damage_makes_the_one_before_the_newest(tmp_path, warnings, name, damage):
    write_backup(tmp_path, backup(1))
    file = write_backup(tmp_path, backup(2)) / name
    data = file.read_bytes()
    if damage == "missing":
        file.unlink()
    elif damage == "cut":
        file.write_bytes(data[: len(data) // 2])
    else:
        # one bit in the middle; in the manifest that is inside of a checksum
        file.write_bytes(data[: len(data) // 2] + bytes([data[len(data) // 2] ^ 1]) + data[len(data) // 2 + 1 :])
    assert newest_backup(tmp_path, warnings.append).progress["step"] == 1
    assert len(warnings) == 1 and "is passed over" in warnings[0] and "\n" not in warnings[0]


def test_another_version_is_passed_over(tmp_path, warnings):
    write_backup(tmp_path, backup(1))
    manifest = write_backup(tmp_path, backup(2)) / MANIFEST
    manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "version": 99}))
    assert newest_backup(tmp_path, warnings.append).progress["step"] == 1
    assert "its version is 99, expected 2" in warnings[0]


def edited(change):
    """Edits a manifest, as a person does who means well."""

    def edit(path: Path) -> None:
        manifest = json.loads((path / MANIFEST).read_text())
        change(manifest)
        (path / MANIFEST).write_text(json.dumps(manifest))

    return edit


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: (path / MANIFEST).write_text(""), lambda path: (path / MANIFEST).write_text("{}"),
        lambda path: (path / MANIFEST).write_text("[]"), lambda path: (path / MANIFEST).write_text("null"),
        lambda path: (path / MANIFEST).write_text("[" * 100_000), lambda path: (path / MANIFEST).write_bytes(b"\xff"),
        edited(lambda own: own.update(step=3)), edited(lambda own: own.update(files={})),
        edited(lambda own: own.update(run="other")), edited(lambda own: own.update(number=99)),
        edited(lambda own: own["files"].pop("optimizer.pt")), edited(lambda own: own.pop("checksum")),
        edited(lambda own: own.update(version=1, files={})), edited(lambda own: own.update(version=1, files=[])),
        edited(lambda own: own.update(version=1, files={"../../outside": "x"})),
        lambda path: ((path / MANIFEST).unlink(), (path / MANIFEST).mkdir()),
    ],
)  # fmt: skip
def test_an_empty_or_edited_manifest_is_not_intact(tmp_path, warnings, damage):
    write_backup(tmp_path, backup(1))
    damage(write_backup(tmp_path, backup(2)))
    assert newest_backup(tmp_path, warnings.append).progress["step"] == 1
    assert len(warnings) == 1 and "is passed over" in warnings[0]


@pytest.mark.parametrize(
    "progress",
    [
        {"step": 2}, {"step": -1, "losses": []}, {"step": 2, "losses": []}, {"epoch": -1}, {"seen": 1.5}, {"step": "2"},
        {"losses": {}}, {"validation": 5}, {"validation": [[1]]}, {"samples": [{}]}, {"last": []}, {"seconds": "a"},
        {"more": 1}, {"epoch": True},
    ],
)  # fmt: skip
def test_progress_that_makes_no_sense_is_not_intact(tmp_path, warnings, progress):
    write_backup(tmp_path, backup(1))
    wrong = backup(1)
    wrong.progress = {**wrong.progress, **progress}
    path = write_backup(tmp_path, wrong)
    with pytest.raises(ValueError, match="progress makes no sense"):
        read_backup(path)
    assert newest_backup(tmp_path, warnings.append).progress == backup(1).progress


@pytest.mark.parametrize("name", ["optimizer.pt", "extra.pt", "weights.safetensors", "progress.json", "config.json"])
def test_what_a_stranger_put_together_runs_no_code_and_is_not_intact(tmp_path, name, monkeypatch):
    class Evil:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "ran",))

    monkeypatch.setattr("modules.trainer.backup._checksum", lambda path: "same")
    path = write_backup(tmp_path, backup(1))
    torch.save({"state": Evil(), "scaler": Evil()}, path / name)
    with pytest.raises(ValueError, match="hold something else"):
        read_backup(path)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("error", [MemoryError(), OSError(5, "Input/output error"), RuntimeError("out of memory")])
def test_one_that_can_not_be_read_now_is_not_passed_over(tmp_path, warnings, monkeypatch, error):
    """The older one would be continued, and the newer one removed in its turn."""
    write_backup(tmp_path, backup(1))
    write_backup(tmp_path, backup(2))

    def fail(*arguments, **named):
        raise error

    monkeypatch.setattr("modules.trainer.backup.load_file", fail)
    with pytest.raises((MemoryError, RuntimeError, UserError), match="|can't be read: Input/output error"):
        newest_backup(tmp_path, warnings.append)
    assert not warnings


@pytest.mark.parametrize("name", FILES)
def test_a_pipe_in_the_place_of_a_file_is_not_waited_for(tmp_path, warnings, name):
    write_backup(tmp_path, backup(1))
    path = write_backup(tmp_path, backup(2))
    (path / name).unlink()
    os.mkfifo(path / name)
    assert newest_backup(tmp_path, warnings.append).progress["step"] == 1
    assert "a pipe" in warnings[0] or "can't be read" in warnings[0]
    prune_backups(tmp_path, "run", 1, warnings.append)
    assert write_backup(tmp_path, backup(3)).is_dir()


def test_the_window_lists_them_in_the_same_order(tmp_path, monkeypatch):
    from modules.viewModel.RunController import backups_of

    folder = tmp_path / "backup"
    written = [write_backup(folder, backup(step)) for step in range(1, 4)]
    # the clock was set back before the last one
    last = written[2].rename(folder / "2001-01-01_00-00-00-backup-3-0")
    (written[0] / MANIFEST).write_text("")
    assert [path for _, path in backups_of(tmp_path)] == [last, written[1], written[0]]


def test_none_intact_is_an_error_not_a_fresh_start(tmp_path, warnings):
    (write_backup(tmp_path, backup(1)) / "optimizer.pt").unlink()
    with pytest.raises(UserError, match="None of the 1 backups .* is intact"):
        newest_backup(tmp_path, warnings.append)


def test_no_backup_is_none(tmp_path, warnings):
    assert newest_backup(tmp_path / "missing", warnings.append) is None
    (tmp_path / "notes.txt").write_text("mine")
    assert newest_backup(tmp_path, warnings.append) is None and not warnings


def test_torn_folders_are_no_backups_and_are_cleaned_up(tmp_path):
    torn = tmp_path / f"{UNFINISHED}2020-01-01_00-00-00-backup-3-0"
    torn.mkdir()
    (torn / "weights.safetensors").write_bytes(b"half")
    assert list_backups(tmp_path) == []
    write_backup(tmp_path, backup(1))
    assert not torn.exists() and len(list_backups(tmp_path)) == 1


def test_the_newest_counts_by_time_then_by_step(tmp_path, warnings):
    source = write_backup(tmp_path / "source", backup(1))
    names = ["2026-01-02_10-00-00-backup-9-1", "2026-01-02_10-00-00-backup-10-1", "2025-12-31_23-59-59-backup-500-9"]
    for name in names:
        shutil.copytree(source, tmp_path / "all" / name)
    assert [path.name for path in list_backups(tmp_path / "all")] == [names[1], names[0], names[2]]


def test_a_clock_that_is_set_back_changes_no_order(tmp_path, monkeypatch, warnings):
    class Clock(datetime):
        hour = 12

        @classmethod
        def now(cls, tz=None):
            Clock.hour -= 1
            return cls(2026, 10, 25, Clock.hour)

    monkeypatch.setattr("modules.trainer.backup.datetime", Clock)
    paths = [write_backup(tmp_path, backup(step)) for step in range(1, 7)]
    assert list_backups(tmp_path) == paths[::-1]
    assert newest_backup(tmp_path, warnings.append).progress["step"] == 6
    prune_backups(tmp_path, "run", 2, warnings.append)
    assert list_backups(tmp_path) == paths[:3:-1] and not warnings
    # gone on from an older one: what was written last counts, whatever its step
    write_backup(tmp_path, backup(3))
    assert newest_backup(tmp_path, warnings.append).progress["step"] == 3


def test_backups_of_version_1_are_older_than_all_with_a_number(tmp_path, warnings):
    for step in (1, 2):
        path = write_backup(tmp_path, backup(step))
        edited(lambda own: (own.update(version=1), own.pop("number"), own.pop("checksum")))(path)
        # as the clock said
        path.rename(tmp_path / f"2026-11-0{3 - step}_10-00-00-backup-{step}-0")
    assert newest_backup(tmp_path, warnings.append).progress["step"] == 1
    write_backup(tmp_path, backup(5)).rename(tmp_path / "2001-01-01_10-00-00-backup-5-0")
    assert newest_backup(tmp_path, warnings.append).progress["step"] == 5 and not warnings


def test_two_of_one_second_and_step_both_stay(tmp_path):
    paths = {write_backup(tmp_path, backup(4)) for _ in range(3)}
    assert len(paths) == 3 and len(list_backups(tmp_path)) == 3


def test_pruning_keeps_the_newest_of_this_run_and_all_of_others(tmp_path, warnings):
    other = write_backup(tmp_path, backup(1, run="other"))
    own = [write_backup(tmp_path, backup(step)) for step in range(2, 7)]
    (tmp_path / "2026-01-01_00-00-00-backup-of-my-own").mkdir()
    prune_backups(tmp_path, "run", 2, warnings.append)
    assert [path.exists() for path in own] == [False, False, False, True, True]
    assert other.exists() and (tmp_path / "2026-01-01_00-00-00-backup-of-my-own").exists() and not warnings


def test_a_failed_write_leaves_nothing_half_and_the_old_one_alone(tmp_path, monkeypatch):
    old = write_backup(tmp_path, backup(1))

    class Full(io.BytesIO):
        def write(self, data: bytes) -> int:
            raise OSError(28, "No space left on device")

    opened = Path.open

    def open_full(path: Path, mode: str = "r", *rest, **named):
        return Full() if (path.name, mode) == ("optimizer.pt", "wb") else opened(path, mode, *rest, **named)

    monkeypatch.setattr(Path, "open", open_full)
    with pytest.raises(UserError, match="the disk is full"):
        write_backup(tmp_path, backup(2))
    assert list(tmp_path.iterdir()) == [old] and read_backup(old).progress["step"] == 1


def test_an_old_backup_that_cannot_be_removed_is_a_warning(tmp_path, monkeypatch, warnings):
    write_backup(tmp_path, backup(1))
    write_backup(tmp_path, backup(2))

    def refuse(source: object, target: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "replace", refuse)
    prune_backups(tmp_path, "run", 1, warnings.append)
    assert len(warnings) == 1 and "could not be removed: Permission denied" in warnings[0]


def mapped(folder: Path) -> list[str]:
    """The files below a folder on which memory of this process stands, where the system tells."""
    maps = Path("/proc/self/maps")
    lines = maps.read_text(encoding="utf-8").splitlines() if maps.exists() else []
    return sorted({Path(line.split(maxsplit=5)[-1]).name for line in lines if str(folder) in line})


def test_tensors_stay_on_disk_until_they_are_used(tmp_path, monkeypatch):
    large = torch.arange(1 << 16, dtype=torch.float32)
    optimizer, extra = {"state": {0: {"exp_avg": large}}, "param_groups": []}, {"scaler": {}, "ema": {"0": large}}
    path = write_backup(tmp_path, Backup({"unet.x": large}, optimizer, extra, backup().progress, {}, "run"))
    found = read_backup(path)
    if Path("/proc/self/maps").exists():
        assert mapped(path) == ["extra.pt", "optimizer.pt", "weights.safetensors"]
    read = found.tensors["unet.x"], found.optimizer["state"][0]["exp_avg"], found.extra["ema"]["0"]
    assert all(torch.equal(tensor, large) for tensor in read)
    del found, read
    assert not mapped(path)
    # some network disks can't be mapped
    load = torch.load

    def refuse(*arguments, mmap=None, **options):
        if mmap:
            raise RuntimeError("unable to mmap")
        return load(*arguments, **options)

    monkeypatch.setattr(torch, "load", refuse)
    assert torch.equal(read_backup(path).optimizer["state"][0]["exp_avg"], large)


def test_a_resumed_run_lets_go_of_its_backup(mini_run):
    mini_run.train(stop_after=2, ema="CPU", optimizer={"optimizer": "ADAMW"})
    (path,) = mini_run.backups()
    held = []
    trainer = mini_run.trainer(3, ema="CPU", optimizer={"optimizer": "ADAMW"}, continue_last_backup=True)
    trainer.events.listeners.append(lambda kind, values: held.append(mapped(path)) if kind == "step" else None)
    trainer.run()
    assert held == [[]] and trainer.progress.step == 3
