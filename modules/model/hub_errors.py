"""What goes wrong between this machine and the Hugging Face hub, in words for people."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from modules.model.model_name import HubName
from modules.util.atomic_file import write_failure
from modules.util.UserError import UserError

from huggingface_hub import constants

# huggingface_hub's name for the base of all errors of its HTTP library, which it has changed before
from huggingface_hub.errors import (
    DisabledRepoError,
    EntryNotFoundError,
    FileMetadataError,
    GatedRepoError,
    HfHubHTTPError,
    HTTPError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

# answers that may be others a moment later
_PASSING = (408, 429, 500, 502, 503, 504)
_TOKEN_PLACE = "Secrets › Hugging Face token (`secrets.huggingface_token`) or the variable HF_TOKEN"
_OTHER_WAYS = (
    "Try again, what was fetched so far is kept; or name a folder on this machine. A model that is in the hub's cache "
    "is used without the network, too; with `offline_mode` on, the hub is never asked."
)


class CutError(Exception):
    """An answer that ended too early, or is not what was asked for."""


def is_passing(error: Exception) -> bool:
    """Whether the same request may succeed a moment later."""
    if isinstance(error, HfHubHTTPError):
        return error.response.status_code in _PASSING
    return isinstance(error, (HTTPError, CutError))


def is_unreachable(error: Exception) -> bool:
    """Whether the hub could not be asked, or could not answer; then a copy in the cache is the best there is."""
    return is_passing(error) or isinstance(error, OfflineModeIsEnabled)


@contextmanager
def hub_errors(name: HubName, key: str, token: str | None, target: Path) -> Iterator[None]:
    """Says in one line what went wrong in its block, and what to do.

    Args:
        name: what was asked for.
        key: the option that names it.
        token: that of the config, if there is one.
        target: where something was to be written.
    """
    try:
        yield
    except UserError:
        raise
    except (HTTPError, CutError, OfflineModeIsEnabled, EntryNotFoundError, FileMetadataError) as error:
        raise UserError(f"{key}: {_words(error, name, token)}") from error
    except OSError as error:
        raise write_failure(target, error) from error


def _words(error: Exception, name: HubName, token: str | None) -> str:
    repo, page = name.repo, f"{constants.HUGGINGFACE_CO_URL_HOME}{name.repo}"
    source = "your Hugging Face token" if token else "the Hugging Face token of HF_TOKEN or of your login"
    # the first is a kind of the second
    if isinstance(error, GatedRepoError):
        return (
            f"{repo} is gated: its owners let in only who has accepted their terms. Open {page}, accept the licence, "
            f"and put a token of that account that may read gated repositories into {_TOKEN_PLACE}."
        )
    if isinstance(error, RepositoryNotFoundError):
        inside = f", nor is there a file {name} here" if name.file and name.revision == "main" else ""
        return (
            f"the hub has no repository {repo}, or it is private{inside}. Check the name at {page}; for a private one "
            f"put a token that may read it into {_TOKEN_PLACE}."
        )
    if isinstance(error, RevisionNotFoundError):
        return (
            f"{repo} has no revision {name.revision}. Its branches and tags are listed at {page}/tree/main; without "
            "@ and what follows, the newest version is taken."
        )
    if isinstance(error, EntryNotFoundError):
        return f"{repo} has no file {name.file} in this revision. See {page}/tree/{name.revision}."
    if isinstance(error, DisabledRepoError):
        return f"the hub gives out {repo} no more. Name another model."
    if isinstance(error, HfHubHTTPError):
        return _status_words(error.response.status_code, repo, source)
    reason = (str(error).strip() or type(error).__name__).splitlines()[0][:200].rstrip(".")
    return (
        f"{repo} can't be fetched from the hub at {constants.ENDPOINT}: {reason}. Check the connection. {_OTHER_WAYS}"
    )


def _status_words(status: int, repo: str, source: str) -> str:
    if status == 401:
        return (
            f"the hub refuses {source}. Make a new one at {constants.HUGGINGFACE_CO_URL_HOME}settings/tokens and put "
            f"it into {_TOKEN_PLACE}."
        )
    if status == 403:
        return (
            f"{source} may not read {repo}. Give it that right at "
            f"{constants.HUGGINGFACE_CO_URL_HOME}settings/tokens, or put another one into {_TOKEN_PLACE}."
        )
    if status == 429:
        return (
            f"the hub gets too many requests from here to answer for {repo}. Wait some minutes, or put a token into "
            f"{_TOKEN_PLACE}."
        )
    return f"the hub answers for {repo} with the error {status}. {_OTHER_WAYS}"
