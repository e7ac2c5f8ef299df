"""Downloads by huggingface_hub itself, for what plain HTTP does not give out. They begin anew if they are cut."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from huggingface_hub import hf_hub_download
from huggingface_hub.errors import LocalEntryNotFoundError
from tqdm import tqdm


def library_download(
    repo: str, file: str, commit: str, cache: Path, token: str | None, on_bytes: Callable[[int], None]
) -> None:
    """Fetches a file into its place in the cache.

    Args:
        repo, file, commit: of the file.
        cache: the hub's folder on this machine.
        token: None takes the library's own.
        on_bytes: is told how many bytes are there.
    """

    class Bar(tqdm):
        """Draws nothing and tells what it is told."""

        def __init__(self, *args: Any, **options: Any) -> None:
            options.pop("name", None)
            super().__init__(*args, **{**options, "disable": True})
            self.bytes = options.get("initial", 0)

        def update(self, n: float | None = 1) -> None:
            self.bytes += int(n or 0)
            on_bytes(self.bytes)

        def update_transfer(self, n: float) -> None:
            """Nothing: those are bytes of the same file on their way, packed."""

        def set_transfer_postfix_str(self, text: str, refresh: bool = True) -> None:
            """Nothing."""

    try:
        hf_hub_download(repo, file, revision=commit, cache_dir=cache, token=token, tqdm_class=Bar)
    except LocalEntryNotFoundError as error:
        # what stands behind it says more
        raise error.__cause__ or error from None
