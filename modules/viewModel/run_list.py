"""All runs that are known: those of the window, those of its queue, and those that lie in folders. Loads no torch."""

import json
import os
import socket
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from modules.run.RunControl import EVENTS
from modules.run.RunProcess import PROCESS, RunProcess
from modules.trainer.backup_order import CONFIG, list_backups
from modules.util.config.errors import ConfigError
from modules.util.config.read_json import read_json
from modules.util.texts import tr
from modules.viewModel.paths import is_folder
from modules.viewModel.run_summary import Summaries, Summary
from modules.viewModel.run_words import family_name, method_name, output_name

import psutil

RECORDS, REPORT, HOLDER = "record", "run.json", "run-holder.json"
RUNNING, FINISHED, STOPPED, FAILED, WAITING, GONE = "running", "finished", "stopped", "failed", "waiting", "gone"
# how far below a folder workspaces are looked for, and in how many folders
DEPTH, MOST_FOLDERS = 3, 2000
# seconds after which a run on another machine, which can't be asked, counts as ended without a word
SILENT = 600.0


@dataclass(frozen=True)
class ListedRun:
    """A run in a list.

    Attributes:
        key: tells it from all others.
        name: of its output, or of its folder.
        state: one of the words above.
        reason: why it failed, or what there is to say.
        family, method: for people; empty where its config is not known.
        summary: its numbers.
        workspace: its folder; None where that is not known.
        config: file; None where there is none.
        events: files, the oldest first; none where the workspace alone tells of it.
    """

    key: str
    name: str
    state: str
    reason: str = ""
    family: str = ""
    method: str = ""
    summary: Summary = Summary()
    workspace: Path | None = None
    config: Path | None = None
    events: tuple[Path, ...] = ()


def find_runs(
    runs: Path, root: Path, folders: Sequence[Path], summaries: Summaries, waiting: Sequence[tuple[str, str]] = ()
) -> list[ListedRun]:
    """All runs, the newest first. Reads many files; not for a window's own thread.

    Args:
        runs: folder of what runs leave behind for the window.
        root: from where relative paths in configs count.
        folders: that are searched, or that runs have used; one that is missing is listed as gone.
        summaries: what is known already.
        waiting: name and config of what waits in the queue.
    """
    found = _sessions(runs, root, summaries)
    workspaces = {place: None for folder in folders for place in find_workspaces(folder)}
    told = {run.key for run in found}
    used = {run.workspace for run in found if run.workspace is not None}
    for workspace in workspaces:
        records = [path.parent for path in sorted((workspace / RECORDS).glob(f"*/{EVENTS}"))]
        found += [_of_record(path, workspace, summaries) for path in records if str(path) not in told]
        if not records and workspace not in used:
            found.append(_of_workspace(workspace, summaries))
    listed = [run for run in found if run is not None]
    gone = [ListedRun(str(path), path.name, GONE, workspace=path) for path in folders if not is_folder(path)]
    queued = [_waiting(name, Path(config), summaries) for name, config in waiting]
    return [*queued, *sorted(listed, key=lambda run: run.summary.began, reverse=True), *gone]


def find_workspaces(folder: Path) -> Iterator[Path]:
    """The workspaces of runs in a folder and below it, which may be one itself."""
    layer, seen = [folder], 0
    for _ in range(DEPTH + 1):
        below: list[Path] = []
        for place in layer:
            seen += 1
            if seen > MOST_FOLDERS:
                return
            try:
                inside = {entry.name: entry for entry in os.scandir(place)}
            except (OSError, ValueError):
                continue
            if _is_workspace(inside):
                yield place
            else:
                below += [
                    place / name for name, entry in sorted(inside.items())
                    if not name.startswith(".") and entry.is_dir(follow_symlinks=False)
                ]  # fmt: skip
        layer = below


def _is_workspace(inside: dict[str, os.DirEntry]) -> bool:
    return RECORDS in inside or REPORT in inside or ("backup" in inside and "tensorboard" in inside)


def _sessions(runs: Path, root: Path, summaries: Summaries) -> list[ListedRun]:
    """What the window has started. Sessions that went on with one run are one."""
    folders = [path for pattern in ("run *", "queue/run *") for path in runs.glob(pattern) if path.is_dir()]
    known: dict[str, list[tuple[Path, Summary]]] = {}
    for folder in sorted(folders, key=lambda path: path.name):
        summary = summaries.of(folder / EVENTS)
        known.setdefault(summary.record or str(folder), []).append((folder, summary))
    return [_of_sessions(key, sessions, root, summaries) for key, sessions in known.items()]


def _of_sessions(key: str, sessions: list[tuple[Path, Summary]], root: Path, summaries: Summaries) -> ListedRun:
    folder, last = sessions[-1]
    file = _config_file(folder)
    config = summaries.config(file)
    state, reason = (last.state, last.reason) if last.state else _unfinished(folder)
    record = Path(last.record) if last.record else None
    files, numbers = tuple(path / EVENTS for path, _ in sessions), last
    if record is not None and (record / EVENTS).is_file():
        files, numbers = (record / EVENTS,), summaries.of(record / EVENTS)
    workspace = record.parent.parent if record is not None else _workspace(config, root)
    if workspace is not None and not workspace.is_dir() and state != RUNNING:
        reason = reason or tr("Its workspace is gone.")
    began = sessions[0][1].began or folder.stat().st_ctime
    numbers = Summary(began, numbers.changed, numbers.steps, numbers.total, numbers.loss, numbers.best)
    return _listed(key, state, reason, config, folder.name, numbers, workspace, file, files)


def _unfinished(folder: Path) -> tuple[str, str]:
    run = RunProcess.find(folder)
    if run is None:
        return FAILED, tr("It could not be started.")
    if run.running:
        return RUNNING, ""
    run.events()
    return run.outcome()


def _of_record(folder: Path, workspace: Path, summaries: Summaries) -> ListedRun:
    """A run that something else has started, as a command line."""
    summary, file = summaries.of(folder / EVENTS), folder / CONFIG
    state = summary.state or (RUNNING if _is_held(workspace, summary) else FAILED)
    reason = "" if summary.state or state == RUNNING else tr("The run ended without a word.")
    return _listed(
        str(folder), state, reason, summaries.config(file), workspace.name, summary, workspace, file, (folder / EVENTS,)
    )


def _of_workspace(workspace: Path, summaries: Summaries) -> ListedRun | None:
    """A run from before there were records: its report, and the config of its newest backup."""
    try:
        report = read_json(workspace / REPORT)
        when = (workspace / REPORT).stat().st_mtime
    except (ConfigError, OSError):
        report, when = {}, 0.0
    backups = list_backups(workspace / "backup")
    file = backups[0] / CONFIG if backups else None
    if not report and file is None:
        return None
    when = when or file.stat().st_mtime
    best = min((one["loss"] for one in report.get("validation", ())), default=None)
    summary = Summary(when, when, report.get("steps", 0), 0, report.get("final_loss"), best)
    state = {True: FINISHED, False: STOPPED}.get(report.get("finished"), FAILED)
    config = summaries.config(file) if file is not None else {}
    return _listed(str(workspace), state, "", config, workspace.name, summary, workspace, file, ())


def _waiting(name: str, file: Path, summaries: Summaries) -> ListedRun:
    config = summaries.config(file)
    return ListedRun(str(file), name, WAITING, "", family_name(config), method_name(config), config=file)


def _listed(
    key: str, state: str, reason: str, config: dict[str, Any], name: str, summary: Summary, workspace: Path | None,
    file: Path | None, events: tuple[Path, ...],
) -> ListedRun:  # fmt: skip
    if not config:
        return ListedRun(key, name, state, reason, "", "", summary, workspace, None, events)
    return ListedRun(
        key, output_name(config) or name, state, reason, family_name(config), method_name(config), summary, workspace,
        file, events,
    )  # fmt: skip


def _config_file(folder: Path) -> Path:
    """The config of a session; until lately, that of a queue stood beside its folder."""
    own = folder / CONFIG
    if own.is_file():
        return own
    try:
        return Path(json.loads((folder / PROCESS).read_text(encoding="utf-8"))["config"])
    except (OSError, ValueError, KeyError, TypeError):
        return own


def _workspace(config: dict[str, Any], root: Path) -> Path | None:
    place = config.get("workspace_dir")
    return root / place if isinstance(place, str) and place else None


def _is_held(workspace: Path, summary: Summary) -> bool:
    """Whether a process is at work there; one on another machine counts as long as it says something."""
    try:
        holder = json.loads((workspace / HOLDER).read_text(encoding="utf-8"))
        if holder["host"] == socket.gethostname():
            return psutil.pid_exists(int(holder["pid"]))
    except (OSError, ValueError, KeyError, TypeError):
        return False
    return time.time() - summary.changed < SILENT
