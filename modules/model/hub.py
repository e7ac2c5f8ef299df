"""Models on the Hugging Face hub: found, pinned to one commit, and fetched file by file when they are needed.

Files are kept in the cache of huggingface_hub, in its layout, so that other programs share them. The few requests are
made here and not by that library's functions, which go on with no interrupted download (see `hub_transfer`).
"""

import os
import shutil
import time
from collections.abc import Callable, Iterable, Mapping
from difflib import get_close_matches
from pathlib import Path, PurePosixPath
from urllib.parse import quote

from modules.model.component_files import settings_of
from modules.model.hub_errors import hub_errors, is_unreachable
from modules.model.hub_library import library_download
from modules.model.hub_requests import HubFile, ask, ask_access, files_of, request_headers
from modules.model.hub_transfer import PAUSES, there_of, transfer
from modules.model.model_index import index_name
from modules.model.model_name import (
    UNREACHABLE,
    WEIGHT_ENDINGS,
    HubName,
    cache_folder,
    cached_commit,
    check_model_name,
    is_cached,
    offline_error,
    offline_reason,
    read_model_name,
    repository_folder,
)
from modules.util.config.TrainConfig import TrainConfig
from modules.util.config.whole_file import replacing
from modules.util.UserError import UserError

from huggingface_hub import constants
from huggingface_hub.errors import RevisionNotFoundError

# (what is done, bytes done, bytes in all)
Progress = Callable[[str, int, int], None]
# what files beside weights are called while they are fetched
SETTINGS = "the configuration"
# larger files are not given out by HTTP
LARGEST_OVER_HTTP = constants.MAX_HTTP_DOWNLOAD_SIZE
# seconds between two reports, so that a log of them stays small
REPORT_INTERVAL = 0.25


class Hub:
    """The hub as one run sees it: each repository stays at the commit at which it was first looked up.

    Args:
        config: read for `offline_mode`, `huggingface_cache_dir` and the token.
        progress: is told of every download.
        warn: gets a line where a copy in the cache is taken because the hub can't be asked.
        pins: commits to take, as `pins` of the run that goes on here.
        settings_only: no weights are fetched; a model whose weights would be is refused.

    Attributes:
        pins: name with revision -> commit, of all repositories that were looked up.
    """

    def __init__(
        self,
        config: TrainConfig,
        progress: Progress = lambda stage, done, total: None,
        warn: Callable[[str], None] = lambda text: None,
        pins: Mapping[str, str] | None = None,
        settings_only: bool = False,
    ) -> None:
        self.cache, self.token = cache_folder(config), config.secrets.huggingface_token.strip() or None
        self.offline, self.settings_only = offline_reason(config), settings_only
        self.progress, self.warn = progress, warn
        self.pins = dict(pins or {})
        self._snapshots: dict[HubName, Snapshot] = {}

    def snapshot(self, name: HubName, key: str) -> "Snapshot":
        """A repository at one commit, none of its files fetched yet.

        Args:
            name: on the hub.
            key: the option that names it.

        Raises:
            UserError: it can't be had, as far as that can be known by now.
        """
        whole = name.whole
        if whole not in self._snapshots:
            self._snapshots[whole] = self._look_up(name, key)
            self.pins[str(whole)] = self._snapshots[whole].commit
        return self._snapshots[whole]

    def place(self, name: str, key: str) -> "Path | Snapshot":
        """What a name of a config stands for: a path on this machine, or a repository. A file on the hub is fetched.

        Raises:
            UserError: it does not exist, or can't be had.
        """
        found = read_model_name(name, key)
        if isinstance(found, Path):
            return found
        snapshot = self.snapshot(found, key)
        return snapshot.fetch_file(found.file) if found.file else snapshot

    def _look_up(self, name: HubName, key: str) -> "Snapshot":
        whole = name.whole
        pinned = self.pins.get(str(whole))
        wanted = HubName(name.repo, pinned or name.revision)
        cached = cached_commit(wanted, self.cache)
        if self.offline:
            if cached is None:
                raise offline_error(name, key, self.offline, self.cache)
            return Snapshot(self, whole, key, cached, None, self.offline)
        try:
            info = ask(wanted, self.headers(), () if cached else PAUSES[:2])
        except Exception as error:
            if cached is not None and is_unreachable(error):
                self.warn(f"The hub can't be asked for {whole}; the copy in the cache is taken (commit {cached[:7]}).")
                return Snapshot(self, whole, key, cached, None, UNREACHABLE)
            if pinned and isinstance(error, RevisionNotFoundError):
                raise UserError(
                    f"{key}: the hub no more has the commit {pinned[:7]} of {whole}, with which the run began. Name "
                    f"another revision, such as {name.repo}@main."
                ) from error
            with hub_errors(name, key, self.token, self.cache):
                raise
        return Snapshot(self, whole, key, info["sha"], files_of(info), "")

    def headers(self) -> dict[str, str]:
        """Of every request."""
        return request_headers(self.token)


class Snapshot:
    """A repository at one commit. Its files come into `folder` when they are asked for.

    Attributes:
        name: as the user wrote it, without a file.
        key: the option that names it.
        commit: 40 hexadecimal digits.
        folder: on this machine, laid out like the repository.
    """

    def __init__(
        self, hub: Hub, name: HubName, key: str, commit: str, files: Mapping[str, HubFile] | None, closed: str
    ) -> None:
        self.name, self.key, self.commit, self._hub, self._files = name, key, commit, hub, files
        # why nothing can be fetched; empty if it can
        self._closed = closed
        self._repository = repository_folder(hub.cache, name.repo)
        self.folder = self._repository / "snapshots" / commit

    def __str__(self) -> str:
        return str(self.name)

    def names(self, folder: str = "") -> list[str]:
        """Paths of all files below a folder of the repository, as seen from there."""
        if self._files is not None:
            every = list(self._files)
        else:
            # of a copy in the cache no more is known than what is there
            every = [path.relative_to(self.folder).as_posix() for path in self.folder.rglob("*") if path.is_file()]
        start = f"{folder}/" if folder else ""
        return sorted(name.removeprefix(start) for name in every if name.startswith(start))

    def fetch_file(self, file: str) -> Path:
        """A file of weights, with the folder beside it that may describe them (see `single_file`), on this machine.

        Raises:
            UserError: it can't be had.
        """
        place = PurePosixPath(file)
        for beside in (place.with_name(f"{place.stem}.config"), place.with_suffix("")):
            self.fetch([f"{beside}/{name}" for name in settings_of(self.names(str(beside)))], SETTINGS)
        self.fetch([file], place.name)
        return self.folder / file

    def fetch(self, files: Iterable[str], what: str) -> None:
        """Sees to it that files are there.

        Args:
            files: paths in the repository.
            what: they are, for people.

        Raises:
            UserError: one of them does not exist, can't be had, or the disk is full.
        """
        wanted = [file for file in files if not (self.folder / file).exists()]
        if not wanted:
            return
        for file in wanted:
            self.check_file(file)
        sizes = {file: self._files[file].size or 0 for file in wanted}
        report = _Report(f"downloading {what} of {self.name.repo}", sum(sizes.values()), self._hub.progress)
        self._check_space(sum(max(0, size - there_of(self._blob(file))) for file, size in sizes.items()))
        for file in wanted:
            with hub_errors(HubName(self.name.repo, self.name.revision, file), self.key, self._hub.token, self.folder):
                self._fetch(file, report)
            report.next_file(sizes[file])
        with hub_errors(self.name, self.key, self._hub.token, self.folder):
            self._note_revision()

    def lack(self, what: str, words: str) -> UserError:
        """What to say when something is not there.

        Args:
            what: is missing in a copy in the cache that may not be completed.
            words: to say otherwise, without the name of the model.
        """
        if self._closed:
            return offline_error(self.name, self.key, self._closed, self._hub.cache, what)
        return UserError(f"{self.key}: {self.name} {words}")

    def check_file(self, file: str) -> None:
        """Raises UserError if the repository has no such file, or it may not be fetched. Asks nobody."""
        if self._files is None:
            raise self.lack(file, "")
        if file not in self._files:
            near = get_close_matches(file, self._files, n=1)
            weights = [name for name in self._files if name.endswith(WEIGHT_ENDINGS)]
            hint = f"; did you mean {near[0]}?" if near else f". It has {some(weights)}." if weights else "."
            raise UserError(f"{self.key}: {self.name} has no file {file}{hint}")
        if self._hub.settings_only and file.endswith((*WEIGHT_ENDINGS, ".bin")):
            raise UserError(f"{self.key}: {self.name} is known by its weights in {file} only, which are not fetched.")

    def _blob(self, file: str) -> Path:
        """Where the content of a file is kept."""
        return self._repository / "blobs" / (self._files[file].etag or "unknown")

    def _check_space(self, size: int) -> None:
        with hub_errors(self.name, self.key, self._hub.token, self._repository):
            self._repository.mkdir(parents=True, exist_ok=True)
            free = shutil.disk_usage(self._repository).free
        if free < size:
            raise UserError(
                f"{self.key}: {self.name} needs {size / 1e9:.1f} GB in {self._hub.cache}, and only {free / 1e9:.1f} "
                "are free. Make room, or choose another disk by `huggingface_cache_dir`."
            )

    def _fetch(self, file: str, report: "_Report") -> None:
        known, target = self._files[file], self.folder / file
        if not known.etag or known.size is None or known.size > LARGEST_OVER_HTTP:
            library_download(self.name.repo, file, self.commit, self._hub.cache, self._hub.token, report.at)
            return
        blob = self._blob(file)
        blob.parent.mkdir(parents=True, exist_ok=True)
        url = f"{constants.ENDPOINT}/{self.name.repo}/resolve/{self.commit}/{quote(file)}"
        lock = self._hub.cache / ".locks" / self._repository.name / f"{known.etag}.lock"
        transfer(url, blob, lock, known.size, known.sha256, self._hub.headers(), report.at)
        link(blob, target)

    def _note_revision(self) -> None:
        """Lets others find the commit by the revision's name without the network."""
        if self.name.revision == self.commit:
            return
        note = self._repository / "refs" / self.name.revision
        with replacing(note, f".{os.getpid()}.tmp", durable=False) as file:
            file.write(self.commit.encode())


def check_hub_name(name: str, key: str, config: TrainConfig) -> None:
    """Whether a named model can be had, by asking the hub for its description: one or two small requests.

    Args:
        name: of a model; of a component it may be empty, which means that of the base model.
        key: the option it comes from.
        config: read for `offline_mode`, `huggingface_cache_dir` and the token.

    Raises:
        UserError: it can't be had, or it is no model. Not if the hub can't be asked and the cache has it.
    """
    check_model_name(name, key, config)
    if not name or not isinstance(found := read_model_name(name, key), HubName):
        return
    token = config.secrets.huggingface_token.strip() or None
    if offline_reason(config):
        return
    headers, cache = request_headers(token), cache_folder(config)
    try:
        info = ask(found.whole, headers, () if is_cached(found, cache) else PAUSES[:2])
        if info.get("gated"):
            ask_access(found, headers)
    except Exception as error:
        if is_unreachable(error) and is_cached(found, cache):
            return
        with hub_errors(found, key, token, cache):
            raise
    snapshot = Snapshot(Hub(config), found.whole, key, info["sha"], files_of(info), "")
    if found.file:
        snapshot.check_file(found.file)
    elif key == "base_model_name":
        check_is_model(snapshot)
    else:
        component_folder(snapshot, key.partition(".")[0])


def check_is_model(snapshot: Snapshot) -> None:
    """UserError if a repository is no model in diffusers' layout."""
    names = snapshot.names()
    if index_name(names):
        return
    weights = [name for name in names if name.endswith(WEIGHT_ENDINGS) and "/" not in name]
    hint = f"Name a single file of it: {snapshot}/{weights[0]}." if weights else "Name another one."
    words = f"has no model_index.json, so it is no model in diffusers' layout. {hint}"
    raise snapshot.lack("model_index.json", words)


def component_folder(snapshot: Snapshot, component: str) -> str:
    """Where a component is in a repository: in a folder of its name, else it is the repository itself, "".

    Raises:
        UserError: it is neither.
    """
    if snapshot.names(component):
        return component
    if "config.json" in snapshot.names():
        return ""
    raise snapshot.lack(
        f"the component {component}",
        f"has neither a folder {component} nor a config.json of its own. Name a model with such a component, or the "
        "component's own repository or file.",
    )


def link(blob: Path, target: Path) -> None:
    """Lets a file of a snapshot be that of the cache; where the disk has no links it is moved."""
    target.parent.mkdir(parents=True, exist_ok=True)
    target.unlink(missing_ok=True)
    try:
        if constants.HF_HUB_DISABLE_SYMLINKS:
            raise OSError("links are switched off")
        os.symlink(os.path.relpath(blob, target.parent), target)
    except OSError:
        os.replace(blob, target)


def some(names: Iterable[str]) -> str:
    """The first names of many."""
    names = list(names)
    return ", ".join(names[:3]) + (" …" if len(names) > 3 else "")


class _Report:
    """Adds up the bytes of several files and reports them now and then, in any case the first and the last."""

    def __init__(self, stage: str, total: int, progress: Progress) -> None:
        self._stage, self._total, self._progress = stage, total, progress
        self._before, self._last = 0, float("-inf")

    def at(self, done: int) -> None:
        """So many bytes of the current file are there."""
        done, now = self._before + done, time.monotonic()
        # the last one is that of `next_file`, when the file is in its place
        if now - self._last >= REPORT_INTERVAL and done < self._total:
            self._last = now
            self._progress(self._stage, done, self._total)

    def next_file(self, size: int) -> None:
        """The current file of so many bytes is done."""
        self._before += size
        if self._before >= self._total:
            self._progress(self._stage, self._total, self._total)
