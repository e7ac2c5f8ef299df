import copy
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import wait as wait_for
from pathlib import Path
from typing import Any

from modules.trainer.backup import Backup, prune_backups, write_backup
from modules.trainer.events import TrainEvents
from modules.util.free_memory import free_memory
from modules.util.out_of_memory import is_out_of_memory
from modules.util.UserError import UserError

from torch import Tensor

# bytes of memory that stay free beside the copy of a backup
RESERVE = 1 << 30


class BackupWriter:
    """Writes the backups of a run in a thread, while training goes on.

    `write` copies every tensor to the host's memory, which takes as many bytes as the backup has, until it is on disk.
    So the backup is that of its step, whatever is trained meanwhile. Where there is too little memory for that,
    training waits until the backup is written. One backup is written at a time.

    A backup is told, and counts for pruning, when it is on disk; what went wrong is raised at the next call. All
    methods are for the thread that trains.

    Args:
        folder: gets the backups.
        keep: backups of this run that stay; None: all of them.
        events: are told `backup`, and warnings.

    Attributes:
        last: the newest backup of the run that is on disk, also one that it was resumed from.
        last_step: its step.

    Raises (write, poll, wait): UserError, if a backup can't be written.
    """

    def __init__(self, folder: Path, keep: int | None, events: TrainEvents) -> None:
        self.folder, self.keep, self.events = folder, keep, events
        self.last: Path | None = None
        self.last_step = 0
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="backup")
        self._writing: tuple[Future[Path], str, int] | None = None
        self._told_of_memory = False

    def write(self, backup: Backup, at_once: bool = False) -> None:
        """Writes a backup.

        Args:
            backup: its tensors may be those that are trained.
            at_once: return when it is on disk. That an earlier one failed is then only told, after this is written.
        """
        if at_once:
            self._write_at_once(backup)
            return
        self.wait()
        own = self._snapshot(backup)
        if own is None:
            self._written(write_backup(self.folder, backup), backup.run, backup.progress["step"])
        else:
            # the thread alone holds the copies, and frees them when it is done
            future = self._thread.submit(write_backup, self.folder, own)
            self._writing = future, backup.run, backup.progress["step"]

    def poll(self) -> None:
        """Tells of a backup that has come to its end since the last call, good or bad."""
        if self._writing is not None and self._writing[0].done():
            self.wait()

    def wait(self) -> None:
        """Returns when no backup is being written any more."""
        if self._writing is None:
            return
        future, run, step = self._writing
        # where the user interrupts it, there is still something to wait for
        wait_for([future])
        self._writing = None
        self._written(future.result(), run, step)

    def close(self) -> None:
        """Waits at the end of a run that may have failed; an error of the last backup is only told."""
        try:
            self._tell_failed(self._failed())
        finally:
            self._thread.shutdown()

    def resumed(self, backup: Backup) -> None:
        """Takes note of the backup that the run goes on from."""
        self.last, self.last_step = backup.path, backup.progress["step"]

    def note(self) -> str:
        """Where a run that ended at once can go on, as the end of a sentence."""
        if self.last is None:
            return "there is no backup of this run."
        return f"its last backup is {self.last}, after step {self.last_step}."

    def _write_at_once(self, backup: Backup) -> None:
        earlier = self._failed()
        try:
            self._written(write_backup(self.folder, backup), backup.run, backup.progress["step"])
        finally:
            self._tell_failed(earlier)

    def _failed(self) -> Exception | None:
        """Waits; what went wrong with the backup that was being written."""
        try:
            self.wait()
        except Exception as error:  # whatever it is, it must not take the place of what matters more
            return error
        return None

    def _tell_failed(self, error: Exception | None) -> None:
        if isinstance(error, UserError):
            self._warn(str(error))
        elif error is not None:
            self._warn(f"A backup could not be written: {type(error).__name__}: {error}")

    def _written(self, path: Path, run: str, step: int) -> None:
        self.last, self.last_step = path, step
        if self.keep is not None:
            prune_backups(self.folder, run, self.keep, self._warn)
        self.events.emit("backup", step=step, path=str(path))

    def _snapshot(self, backup: Backup) -> Backup | None:
        """The backup with tensors of its own; None where there is too little memory for them."""
        kept = [dict(backup.tensors), backup.optimizer, backup.extra, backup.progress, backup.config]
        size = held_bytes(kept)
        if free_memory() >= size + RESERVE:
            try:
                return Backup(*snapshot(kept), backup.run, backup.path)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
        if not self._told_of_memory:
            self._told_of_memory = True
            self._warn(
                f"There is too little memory to copy the backup of {size / 1e9:.1f} GB: training waits while backups "
                "are written."
            )
        return None

    def _warn(self, text: str) -> None:
        self.events.emit("warning", text=text)


def snapshot(value: Any) -> Any:
    """The same value, which nothing that is trained can change: tensors are copied to the host, containers made anew.

    A tensor that occurs twice is copied once.
    """
    return _copied(value, {})


def held_bytes(value: Any) -> int:
    """Bytes of all tensors inside, those that occur twice once."""
    found: dict[int, Tensor] = {}
    _find(value, found)
    return sum(tensor.nbytes for tensor in found.values())


def _copied(value: Any, known: dict[int, Tensor]) -> Any:
    if isinstance(value, Tensor):
        if id(value) not in known:
            known[id(value)] = value.detach().to("cpu", copy=True)
        return known[id(value)]
    if isinstance(value, dict):
        made = copy.copy(value)
        made.update((key, _copied(item, known)) for key, item in value.items())
        return made
    if type(value) in (list, tuple):
        return type(value)(_copied(item, known) for item in value)
    return copy.deepcopy(value)


def _find(value: Any, found: dict[int, Tensor]) -> None:
    if isinstance(value, Tensor):
        found[id(value)] = value
    elif isinstance(value, (dict, list, tuple)):
        for item in value.values() if isinstance(value, dict) else value:
            _find(item, found)
