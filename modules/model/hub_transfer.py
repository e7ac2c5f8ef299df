"""Fetches one file from the hub over HTTP and goes on where an earlier attempt was cut.

huggingface_hub goes on within one call only: it throws away what it has when that fails or is interrupted.
"""

import hashlib
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from modules.model.hub_errors import CutError, is_passing

from huggingface_hub import constants
from huggingface_hub.utils import WeakFileLock, get_session, hf_raise_for_status

# seconds before each new attempt, counted anew whenever an attempt has brought something
PAUSES = (1.0, 2.0, 4.0, 8.0)
PARTIAL = ".incomplete"


def transfer(
    url: str,
    target: Path,
    lock: Path,
    size: int,
    sha256: str,
    headers: Mapping[str, str],
    on_bytes: Callable[[int], None],
) -> None:
    """Fetches a file to `target`; until it is whole it is called `<target>.incomplete`.

    Args:
        url: of the file; must always give the same bytes.
        target: in a folder that exists. Nothing is done if it is there.
        lock: file by which other processes are kept from fetching the same.
        size: of the file in bytes.
        sha256: of the file, checked if it was fetched in pieces; empty if it is not known.
        headers: of the request.
        on_bytes: is told how many bytes are there.

    Raises:
        CutError, HTTPError, OSError: it can't be had, or not written. What was fetched so far is kept.
    """
    lock.parent.mkdir(parents=True, exist_ok=True)
    with WeakFileLock(lock):
        if target.exists():
            on_bytes(size)
            return
        partial = target.with_name(target.name + PARTIAL)
        for _ in range(2):
            pieces = _receive_all(url, partial, size, headers, on_bytes)
            if pieces == 1 or not sha256 or _sha256(partial) == sha256:
                os.replace(partial, target)
                return
            # the pieces do not belong together
            partial.unlink()
        raise CutError(f"{target.name} arrives damaged")


def _receive_all(
    url: str, partial: Path, size: int, headers: Mapping[str, str], on_bytes: Callable[[int], None]
) -> int:
    """Receives until the file is whole; returns of how many pieces it is made, one more if it had begun."""
    best, attempts = _size(partial), 0
    pieces = 1 if best else 0
    while True:
        pieces += 1
        try:
            _receive(url, partial, size, headers, on_bytes)
            return pieces
        except Exception as error:
            if not is_passing(error):
                raise
            if (there := _size(partial)) > best:
                best, attempts = there, 0
            if attempts == len(PAUSES):
                raise
            time.sleep(PAUSES[attempts])
            attempts += 1


def _receive(url: str, partial: Path, size: int, headers: Mapping[str, str], on_bytes: Callable[[int], None]) -> None:
    """One request, from where the partial file ends."""
    have = _size(partial)
    if have > size:
        partial.unlink()
        have = 0
    on_bytes(have)
    if have == size:
        partial.touch()
        return
    # compressed answers have no ranges
    asked = {**headers, "accept-encoding": "identity", **({"range": f"bytes={have}-"} if have else {})}
    with get_session().stream(
        "GET", url, headers=asked, timeout=constants.HF_HUB_DOWNLOAD_TIMEOUT, follow_redirects=True
    ) as answer:
        # a server may give the whole file all the same
        goes_on = answer.status_code == 206
        if answer.status_code == 416 or goes_on and not answer.headers["content-range"].startswith(f"bytes {have}-"):
            partial.unlink()
            raise CutError("the server has another file than it said")
        hf_raise_for_status(answer)
        with partial.open("ab" if goes_on else "wb") as file:
            have = have if goes_on else 0
            for piece in answer.iter_bytes():
                file.write(piece)
                have += len(piece)
                on_bytes(min(have, size))
    if have != size:
        raise CutError(f"the answer ended after {have} of {size} bytes")


def there_of(target: Path) -> int:
    """Bytes of a file that are here already."""
    return _size(target) or _size(target.with_name(target.name + PARTIAL))


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
