"""Backups: a folder that is written beside, synced and renamed, with a checksum of every file in it."""

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, BinaryIO

from modules.trainer.backup_order import (
    CONFIG,
    EXTRA,
    FILES,
    MANIFEST,
    OPTIMIZER,
    PROGRESS,
    UNFINISHED,
    UNREADABLE,
    VERSION,
    WEIGHTS,
    backup_number,
    list_backups,
    own_checksum,
    read_manifest,
)  # fmt: skip
from modules.trainer.TrainProgress import TrainProgress
from modules.util.atomic_file import write_failure, write_safetensors
from modules.util.config.file_kind import special_kind
from modules.util.config.whole_file import sync_folder
from modules.util.out_of_memory import is_out_of_memory
from modules.util.UserError import UserError

import torch

from safetensors.torch import load_file


@dataclass
class Backup:
    """What a resumed run starts from. Of one that was read, tensors stay on disk until they are used.

    Attributes:
        tensors: trained weights, raw.
        optimizer: the optimizer's `state_dict()`.
        extra: states of the gradient scaler and the EMA, by name.
        progress: `TrainProgress.to_dict()`.
        config: the run's full config as JSON, without secrets.
        run: name of the run, kept over resumes.
        path: where it was read from.
    """

    tensors: Mapping[str, torch.Tensor]
    optimizer: Mapping[str, Any]
    extra: Mapping[str, Any]
    progress: dict[str, Any]
    config: dict[str, Any]
    run: str
    path: Path | None = None


def _checksum(path: Path) -> str:
    if kind := special_kind(path):
        raise OSError(errno.ENXIO, f"it is {kind}")
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class _Sink:
    """A file for `torch.save`, whose writer hides why a disk refused: the first error is kept, the rest is dropped."""

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        self.error: OSError | None = None

    def write(self, data: bytes | memoryview) -> int:
        if self.error is None:
            try:
                self.file.write(data)
            except OSError as error:
                self.error = error
        return len(data)

    def flush(self) -> None:
        """Nothing: the file is synced when it is closed."""


def _write_torch(path: Path, value: Mapping[str, Any]) -> None:
    """`torch.save`, but an OSError says what the disk said."""
    with path.open("wb") as file:
        sink = _Sink(file)
        torch.save(dict(value), sink)
    if sink.error is not None:
        raise sink.error


def _sync_file(path: Path) -> None:
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def write_backup(folder: Path, backup: Backup) -> Path:
    """Writes a backup below `folder` and returns its path. A torn one never bears a backup's name.

    Each has a number, one more than any other in the folder: clocks are set back, and at least once a year in autumn.
    The folder belongs to one run at a time, see `HeldFolder`.

    Raises:
        UserError: if the disk is full or the folder can't be written; nothing that was there is touched.
    """
    step, epoch = backup.progress["step"], backup.progress["epoch"]
    name = f"{datetime.now():%Y-%m-%d_%H-%M-%S}-backup-{step}-{epoch}"
    target, work = folder / name, folder / f"{UNFINISHED}{name}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for torn in folder.glob(f"{UNFINISHED}*"):
            # left by a run that was killed
            shutil.rmtree(torn, ignore_errors=True)
        work.mkdir()
        write_safetensors(work / WEIGHTS, backup.tensors)
        _write_torch(work / OPTIMIZER, backup.optimizer)
        _write_torch(work / EXTRA, backup.extra)
        (work / PROGRESS).write_text(json.dumps(backup.progress), encoding="utf-8")
        (work / CONFIG).write_text(json.dumps(backup.config, indent=4), encoding="utf-8")
        known = (backup_number(path) for path in list_backups(folder))
        number = 1 + int(max((one for one in known if one < UNREADABLE), default=0))
        files = {name: _checksum(work / name) for name in sorted(FILES)}
        manifest = {"version": VERSION, "run": backup.run, "number": number, "step": step, "files": files}
        manifest["checksum"] = own_checksum(manifest)
        (work / MANIFEST).write_text(json.dumps(manifest, indent=4), encoding="utf-8")
        for file in work.iterdir():
            _sync_file(file)
        sync_folder(work)
        while target.exists():
            target = target.with_name(target.name + "+")
        os.replace(work, target)
        sync_folder(folder)
    except OSError as error:
        raise write_failure(target, error) from error
    finally:
        # after the rename there is nothing left to remove
        shutil.rmtree(work, ignore_errors=True)
    return target


def _verified_manifest(path: Path) -> dict[str, Any]:
    """The manifest of a backup whose files are those that it names; ValueError with the reason otherwise."""
    manifest = read_manifest(path)
    for name, checksum in manifest["files"].items():
        try:
            sound = _checksum(path / name) == checksum
        except FileNotFoundError:
            raise ValueError(f"{name} is missing") from None
        except OSError as error:
            raise ValueError(f"{name} can't be read ({error.strerror})") from error
        if not sound:
            raise ValueError(f"{name} is damaged")
    return manifest


def _read_torch(path: Path) -> Any:
    """`torch.load` of a file that holds tensors alone; they stay on disk where the file system lets them."""
    try:
        return torch.load(path, weights_only=True, map_location="cpu", mmap=True)
    except (RuntimeError, OSError):
        return torch.load(path, weights_only=True, map_location="cpu")


def read_backup(path: Path) -> Backup:
    """Compares one backup with its checksums, and maps it.

    Whoever takes its tensors over copies them, and lets go of them: as long as one is held, Windows can't remove the
    file, and a file that is cut off meanwhile ends the process.

    Raises:
        ValueError: it is not intact, with the reason.
        UserError: it is, but can't be read now.
        MemoryError, RuntimeError: there is too little memory for it.
    """
    manifest = _verified_manifest(path)
    try:
        backup = Backup(
            tensors=load_file(path / WEIGHTS),
            optimizer=_read_torch(path / OPTIMIZER),
            extra=_read_torch(path / EXTRA),
            progress=json.loads((path / PROGRESS).read_text(encoding="utf-8")),
            config=json.loads((path / CONFIG).read_text(encoding="utf-8")),
            run=manifest["run"],
            path=path,
        )
    except OSError as error:
        raise UserError(f"The backup {path} can't be read: {error.strerror or error}.") from error
    # the checksums are right, so that whoever wrote the files meant something else; readers fail in many ways at that
    except Exception as error:
        if is_out_of_memory(error):
            raise
        raise ValueError(f"its files hold something else ({type(error).__name__})") from error
    if not (isinstance(backup.optimizer, dict) and isinstance(backup.extra, dict) and "scaler" in backup.extra):
        raise ValueError("its files hold something else")
    if reason := TrainProgress.problem_of(backup.progress, manifest["step"]):
        raise ValueError(f"its progress makes no sense: {reason}")
    return backup


def newest_backup(folder: Path, warn: Callable[[str], None]) -> Backup | None:
    """The newest intact backup. Damaged ones are named and passed over.

    Raises:
        UserError: if there are backups, but none of them is intact.
    """
    backups = list_backups(folder)
    for path in backups:
        try:
            return read_backup(path)
        except ValueError as error:
            warn(f"The backup {path} is passed over: {error}.")
    if backups:
        raise UserError(f"None of the {len(backups)} backups in {folder} is intact; set continue_last_backup to false.")
    return None


def prune_backups(folder: Path, run: str, keep: int, warn: Callable[[str], None]) -> None:
    """Removes the oldest intact backups of this run beyond `keep`. Other runs' backups are not touched."""
    own = []
    for path in list_backups(folder):
        try:
            manifest = read_manifest(path)
        except ValueError:
            continue
        if manifest["run"] == run:
            own.append(path)
    for path in own[keep:]:
        try:
            # renamed first: a removal that is cut off must not leave half a backup under a backup's name
            doomed = path.with_name(UNFINISHED + path.name)
            os.replace(path, doomed)
            shutil.rmtree(doomed)
        except OSError as error:
            warn(f"The old backup {path} could not be removed: {error.strerror}.")
