"""The small requests to the Hugging Face hub: what a repository holds, and who may have it."""

import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from modules.model.hub_errors import CutError, is_passing
from modules.model.model_name import HubName, is_commit, is_segment

from huggingface_hub import constants, get_token
from huggingface_hub.utils import get_session, hf_raise_for_status

_NO_HUB = "what answers there is no hub"
# what is a file's name in the cache must lead nowhere else
_ETAG = re.compile(r"[\w-]*", re.ASCII)


@dataclass(frozen=True)
class HubFile:
    """A file in a repository.

    Attributes:
        size: in bytes; None if the hub does not say.
        etag: by which the cache knows its content; empty if the hub does not say.
        sha256: of its content, of large files; empty for others.
    """

    size: int | None
    etag: str
    sha256: str


def request_headers(token: str | None) -> dict[str, str]:
    """Of every request: the token of the config, else that of the library's own places."""
    token = token or (None if constants.HF_HUB_DISABLE_IMPLICIT_TOKEN else get_token())
    return {"user-agent": "scaled-trainer", **({"authorization": f"Bearer {token}"} if token else {})}


def ask(name: HubName, headers: Mapping[str, str], pauses: Sequence[float] = ()) -> dict[str, Any]:
    """What the hub says of a repository at a revision: `sha`, `gated`, `siblings` …

    Args:
        name: of the repository.
        headers: of `request_headers`.
        pauses: seconds before each new attempt where the hub can't answer.
    """
    for pause in (*pauses, None):
        try:
            return _ask(name, headers)
        except Exception as error:
            if pause is None or not is_passing(error):
                raise
            time.sleep(pause)
    raise AssertionError("the last attempt returns or raises")


def _ask(name: HubName, headers: Mapping[str, str]) -> dict[str, Any]:
    answer = _get(f"api/models/{name.repo}/revision/{quote(name.revision, safe='')}?blobs=true", headers)
    try:
        info = answer.json()
        files_of(info)
        if is_commit(info["sha"]):
            return info
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CutError(_NO_HUB) from error
    raise CutError(_NO_HUB)


def ask_access(name: HubName, headers: Mapping[str, str]) -> None:
    """Raises GatedRepoError if this account has no access to the files of a gated repository."""
    _get(f"api/models/{name.repo}/auth-check", headers)


def _get(path: str, headers: Mapping[str, str]) -> Any:
    answer = get_session().get(
        f"{constants.ENDPOINT}/{path}", headers=dict(headers), timeout=constants.HF_HUB_ETAG_TIMEOUT,
        follow_redirects=True,
    )  # fmt: skip
    hf_raise_for_status(answer)
    return answer


def files_of(info: Mapping[str, Any]) -> dict[str, HubFile]:
    """Path -> file, of what `ask` returns."""
    files = {}
    for entry in info["siblings"]:
        large = entry.get("lfs") or {}
        sha256 = large.get("sha256") or ""
        etag = sha256 or entry.get("blobId") or ""
        if all(is_segment(segment) for segment in entry["rfilename"].split("/")) and _ETAG.fullmatch(etag):
            files[entry["rfilename"]] = HubFile(large.get("size", entry.get("size")), etag, sha256)
    return files
