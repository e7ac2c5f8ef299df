"""Backups: a folder that is written beside, synced and renamed, with a checksum of every file in it."""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, BinaryIO

from modules.util.atomic_file import sync_folder, write_failure, write_safetensors
from modules.util.UserError import UserError

import torch

from safetensors.torch import load_file

VERSION = 1
MANIFEST = "backup.json"
UNFINISHED = ".unfinished-"


@dataclass
class Backup:
    """What a resumed run starts from.

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
        write_safetensors(work / "weights.safetensors", backup.tensors)
        _write_torch(work / "optimizer.pt", backup.optimizer)
        _write_torch(work / "extra.pt", backup.extra)
        (work / "progress.json").write_text(json.dumps(backup.progress), encoding="utf-8")
        (work / "config.json").write_text(json.dumps(backup.config, indent=4), encoding="utf-8")
        files = {file.name: _checksum(file) for file in sorted(work.iterdir())}
        manifest = {"version": VERSION, "run": backup.run, "step": step, "files": files}
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
    """The manifest of an intact backup; ValueError with the reason otherwise."""
    try:
        manifest = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
        files = manifest["files"]
        if manifest["version"] != VERSION:
            raise ValueError(f"its version is {manifest['version']}, expected {VERSION}")
        for name, checksum in files.items():
            if _checksum(path / name) != checksum:
                raise ValueError(f"{name} is damaged")
    except FileNotFoundError as error:
        raise ValueError(f"{Path(error.filename).name} is missing") from error
    except (OSError, UnicodeDecodeError, json.JSONDecodeError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{MANIFEST} can't be read ({type(error).__name__})") from error
    return manifest


def read_backup(path: Path) -> Backup:
    """Reads one backup; ValueError with the reason if it is not intact."""
    manifest = _verified_manifest(path)
    return Backup(
        tensors=load_file(path / "weights.safetensors"),
        optimizer=torch.load(path / "optimizer.pt", weights_only=True, map_location="cpu"),
        extra=torch.load(path / "extra.pt", weights_only=True, map_location="cpu"),
        progress=json.loads((path / "progress.json").read_text(encoding="utf-8")),
        config=json.loads((path / "config.json").read_text(encoding="utf-8")),
        run=manifest["run"],
        path=path,
    )


def list_backups(folder: Path) -> list[Path]:
    """Folders that bear a backup's name, newest first."""
    if not folder.is_dir():
        return []
    found = [path for path in folder.iterdir() if "-backup-" in path.name and not path.name.startswith(UNFINISHED)]
    # by name: it starts with the time, and unlike the file's own time it survives copying
    return sorted(found, key=_age_key, reverse=True)


def _age_key(path: Path) -> tuple[str, int, str]:
    stamp, _, rest = path.name.partition("-backup-")
    step = rest.split("-")[0]
    return stamp, int(step) if step.isdigit() else -1, path.name


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
            manifest = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        if manifest.get("run") == run:
            own.append(path)
    for path in own[keep:]:
        try:
            # renamed first: a removal that is cut off must not leave half a backup under a backup's name
            doomed = path.with_name(UNFINISHED + path.name)
            os.replace(path, doomed)
            shutil.rmtree(doomed)
        except OSError as error:
            warn(f"The old backup {path} could not be removed: {error.strerror}.")
