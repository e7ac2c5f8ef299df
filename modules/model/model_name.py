"""What the name of a model in a config means: a place on this machine, or one on the Hugging Face hub.

Nothing here asks the network or opens a file. Forms of names on the hub: `owner/name`, `owner/name@revision`,
`owner/name/folder/file.safetensors`, `owner/name@revision/file.safetensors`, and the addresses of their web pages.
"""

import difflib
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

from modules.model.model_index import INDEX, MODULAR_INDEX
from modules.util.config.errors import Remedy
from modules.util.config.TrainConfig import TrainConfig
from modules.util.UserError import UserError

from huggingface_hub import constants

# endings of the files that models are read from
WEIGHT_ENDINGS = (".safetensors", ".gguf", ".ckpt", ".pt", ".pth")
# a name of two segments that ends so is that of a file
_FILE_ENDINGS = (*WEIGHT_ENDINGS, ".bin", ".sft")
_PATH_STARTS = ("/", ".", "~", "models/")
_DRIVE = re.compile(r"[A-Za-z]:[\\/]")
_WORD = re.compile(r"\w(?:[\w.-]*\w)?", re.ASCII)
_HOSTS = ("huggingface.co", "www.huggingface.co", "hf.co")
_NO_MODELS = ("datasets", "spaces", "collections", "papers", "docs", "api")
# revisions of these folders have three segments, as refs/pr/1
_REFS = "refs"
_COMMIT = re.compile(r"[0-9a-f]{40}")
# what the hub's main branch is called everywhere
MAIN = "main"
# why nothing is fetched -> what to do
OFFLINE = "offline_mode is on"
OFFLINE_VARIABLE = "the variable HF_HUB_OFFLINE is set"
UNREACHABLE = "the hub can't be asked"
_WAYS_OUT = {
    OFFLINE: "Switch it off for one run to download it",
    OFFLINE_VARIABLE: "Unset it for one run to download it",
    UNREACHABLE: "Check the connection",
}


@dataclass(frozen=True)
class HubName:
    """A repository on the hub, or a file in it.

    Attributes:
        repo: `owner/name`.
        revision: branch, tag or commit.
        file: path in the repository, with `/`; empty for the repository itself.
    """

    repo: str
    revision: str = MAIN
    file: str = ""

    def __str__(self) -> str:
        at = "" if self.revision == MAIN else f"@{self.revision}"
        return f"{self.repo}{at}" + (f"/{self.file}" if self.file else "")

    @property
    def whole(self) -> "HubName":
        """The repository without the file."""
        return HubName(self.repo, self.revision)


def read_model_name(name: str, key: str = "base_model_name") -> Path | HubName:
    """What a name means: a path that exists, else a place on the hub.

    Args:
        name: as a user wrote it.
        key: the option it comes from, for messages.

    Raises:
        UserError: it is neither; says which similar path there is.
    """
    text = name.strip()
    if not text:
        raise UserError(f"{key}: is empty. {_expected()}")
    if (address := _address(text)) is not None:
        return _read_address(address, text, key)
    if "://" in text:
        raise UserError(
            f"{key}: {text} is no address on the Hugging Face hub. Download the file yourself and name it here."
        )
    path = _expanded(text)
    if path is not None and _exists(path):
        return path
    found = None if _looks_like_path(text) else _read_repository(text.rstrip("/"))
    if found is None:
        near = "" if path is None else _nearest(path)
        raise UserError(f"{key}: {text} does not exist{near}. {_expected()}")
    return found


def check_model_name(name: str, key: str, config: TrainConfig) -> None:
    """What is certain about a named model without the network and without opening it.

    Args:
        name: of a model; of a component it may be empty, which means that of the base model.
        key: the option it comes from.
        config: read for `offline_mode` and `huggingface_cache_dir`.

    Raises:
        UserError: there is no such path; or it is on the hub, which may not be asked, and not in the cache.
    """
    if not name and key != "base_model_name":
        return
    found = read_model_name(name, key)
    reason = offline_reason(config)
    if isinstance(found, HubName) and reason and not is_cached(found, cache_folder(config)):
        raise offline_error(found, key, reason, cache_folder(config))


def offline_error(name: HubName, key: str, reason: str, cache: Path, missing: str = "") -> UserError:
    """What to say of a model, or of a file that it misses, when the hub may not be asked.

    Args:
        name: of the model.
        key: the option it comes from.
        reason: one of `_WAYS_OUT`.
        cache: of `cache_folder`.
        missing: of the model; empty: all of it.
    """
    what = f"lacks {missing} in" if missing else "is not in"
    remedies = [Remedy.of({"offline_mode": False})] if reason == OFFLINE else []
    return UserError(
        f"{key}: {name} {what} the hub's cache {cache}, and {reason}. {_WAYS_OUT[reason]}, or name a folder on this "
        "machine.",
        *remedies,
    )


def short_name(name: str) -> str:
    """What a model is called beside its place: the last part of a path, of a repository's name, or of a file in it."""
    try:
        found = read_model_name(name)
    except UserError:
        # no longer there
        found = Path(name)
    return found.name if isinstance(found, Path) else Path(found.file or found.repo).name


def named_models(config: TrainConfig, components: Iterable[str]) -> dict[str, str]:
    """Option -> name, of the base model and of those components that come from elsewhere.

    Args:
        config: of a run.
        components: components of its family.
    """
    names = {f"{component}.model_name": getattr(config, component).model_name for component in components}
    return {"base_model_name": config.base_model_name, **{key: name for key, name in names.items() if name}}


# -- the hub's cache on this machine ----------------------------------------------------------------------------------


def offline_reason(config: TrainConfig) -> str:
    """Why the network may not be asked; empty if it may."""
    if config.offline_mode:
        return OFFLINE
    return OFFLINE_VARIABLE if constants.is_offline_mode() else ""


def cache_folder(config: TrainConfig) -> Path:
    """The folder that keeps what comes from the hub."""
    return Path(config.huggingface_cache_dir or constants.HF_HUB_CACHE).expanduser()


def repository_folder(cache: Path, repo: str) -> Path:
    """The folder of one repository in the cache; holds `blobs`, `refs` and `snapshots`, as the library lays them."""
    return cache / f"models--{repo.replace('/', '--')}"


def cached_commit(name: HubName, cache: Path) -> str | None:
    """The commit that a revision was when it was last fetched; None if nothing of it is in the cache."""
    folder = repository_folder(cache, name.repo)
    try:
        commit = (folder / "refs" / name.revision).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError):
        commit = name.revision
    return commit if is_commit(commit) and (folder / "snapshots" / commit).is_dir() else None


def is_commit(revision: str) -> bool:
    """Whether a revision is the full name of a commit."""
    return bool(_COMMIT.fullmatch(revision))


def is_cached(name: HubName, cache: Path) -> bool:
    """Whether the cache has the file, or of a whole repository its description. Weights may be missing."""
    commit = cached_commit(name, cache)
    if commit is None:
        return False
    folder = repository_folder(cache, name.repo) / "snapshots" / commit
    if name.file:
        return (folder / name.file).exists()
    return any((folder / file).exists() for file in (INDEX, MODULAR_INDEX, "config.json"))


# -- reading ----------------------------------------------------------------------------------------------------------


def _expected() -> str:
    return (
        "Expected a folder in diffusers' layout, a .safetensors or .ckpt file, or a name on the Hugging Face hub such "
        "as owner/name."
    )


def _expanded(text: str) -> Path | None:
    try:
        return Path(text).expanduser()
    except RuntimeError:
        # ~nobody
        return None


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):
        # too long, or with a zero byte
        return False


def _looks_like_path(text: str) -> bool:
    if text.startswith(_PATH_STARTS) or "\\" in text or _DRIVE.match(text):
        return True
    segments = text.split("/")
    if len(segments) == 2:
        return text.lower().endswith(_FILE_ENDINGS) and "@" not in text
    # a folder of two names that is here holds no such file
    return len(segments) > 2 and Path(*segments[:2]).is_dir()


def _read_repository(text: str) -> HubName | None:
    """`owner/name`, with a revision and a file if they are there; None if it is no such text."""
    owner, _, rest = text.partition("/")
    first, *tail = rest.split("/")
    name, at, revision = first.partition("@")
    if not _is_repository(owner, name):
        return None
    segments = [revision, *tail] if at else tail
    if not all(is_segment(segment) for segment in segments):
        return None
    if not segments:
        return HubName(f"{owner}/{name}")
    is_file = segments[-1].lower().endswith(WEIGHT_ENDINGS)
    if not at:
        return HubName(f"{owner}/{name}", file="/".join(segments)) if is_file else None
    count = _revision_segments(segments) if is_file else len(segments)
    return HubName(f"{owner}/{name}", "/".join(segments[:count]), "/".join(segments[count:]))


def _is_repository(owner: str, name: str) -> bool:
    whole = f"{owner}/{name}"
    fits = _WORD.fullmatch(owner) and _WORD.fullmatch(name) and len(whole) <= 96
    return bool(fits) and "--" not in whole and ".." not in whole and not name.endswith(".git")


def is_segment(text: str) -> bool:
    """Whether a text can be a name in the path of a file or revision, and leads nowhere else."""
    return text not in ("", ".", "..") and text.isprintable() and not set(text) & set('\\:*?"<>|')


def _revision_segments(segments: list[str]) -> int:
    return min(3, len(segments)) if segments[0] == _REFS else 1


def _address(text: str) -> str | None:
    """The path of an address on the hub, without what follows `?` or `#`; None if it is none."""
    try:
        given = urlsplit(text if "://" in text else f"https://{text}")
    except ValueError:
        # brackets, which an address has only around numbers
        return None
    hosts = (*_HOSTS, urlsplit(constants.ENDPOINT).netloc.lower())
    return given.path if given.scheme in ("https", "http") and given.netloc.lower() in hosts else None


def _read_address(address: str, text: str, key: str) -> HubName:
    segments = [unquote(segment) for segment in address.split("/") if segment]
    if len(segments) < 2 or segments[0] in _NO_MODELS or not _is_repository(*segments[:2]):
        raise UserError(
            f"{key}: {text} is not the address of a model. Expected one such as https://huggingface.co/owner/name."
        )
    repo, kind, rest = "/".join(segments[:2]), segments[2] if len(segments) > 2 else "", segments[3:]
    if not kind:
        return HubName(repo)
    count = _revision_segments(rest) if rest else 0
    revision, inside = "/".join(rest[:count]), "/".join(rest[count:])
    if revision and all(is_segment(segment) for segment in f"{revision}/{inside}".strip("/").split("/")):
        if kind == "tree" and not inside or kind == "commit":
            return HubName(repo, revision)
        if kind in ("blob", "resolve", "raw") and inside.lower().endswith(WEIGHT_ENDINGS):
            return HubName(repo, revision, inside)
    raise UserError(
        f"{key}: {text} is neither a repository nor a file of weights in it ({', '.join(WEIGHT_ENDINGS)}). "
        f"Name the repository: {repo}."
    )


def _nearest(path: Path) -> str:
    """ "; did you mean …?" with a path that exists, or nothing: names that are wrong are replaced by similar ones."""
    missing = path
    while not _exists(missing.parent) and missing.parent != missing:
        missing = missing.parent
    found, segments = missing.parent, [missing.name, *path.relative_to(missing).parts]
    for count, segment in enumerate(segments):
        near = segment if _exists(found / segment) else _similar(found, segment)
        if near is None:
            # a folder of which the rest is not known may still be what was meant
            return f"; did you mean a folder or file in {found}?" if count else ""
        found = found / near
    return f"; did you mean {found}?"


def _similar(folder: Path, name: str) -> str | None:
    try:
        there = {entry.lower(): entry for entry in sorted(os.listdir(folder), reverse=True)}
    except OSError:
        return None
    near = difflib.get_close_matches(name.lower(), sorted(there), n=1, cutoff=0.6)
    return there[near[0]] if near else None
