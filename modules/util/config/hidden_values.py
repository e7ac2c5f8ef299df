"""Values that look like access tokens or passwords: they go into nothing that is written beside a model."""

import re
from collections.abc import Mapping
from typing import Any

_KEY = re.compile(
    r"(^|[^a-z])(secrets?|passwor[dt]s?|passwd|passphrase|credentials?|authorization|"
    r"(api|access|private|secret|ssh)[_\- ]*keys?)$",
    re.IGNORECASE,
)
# words have tokens, too: "trigger_token" and "pad_token" are none of these
_TOKEN = re.compile(
    r"(^|[^a-z])(hf|hub|hugging[_\- ]?face|api|access|auth|bearer|refresh|wandb|github|civitai|replicate)"
    r"[_\- ]*tokens?$",
    re.IGNORECASE,
)
_ANY_TOKEN = re.compile(r"(^|[^a-z])(token|^tokens)$", re.IGNORECASE)
# that a word or a mark may have, where an access token is longer
_SHORT = 16
# of Hugging Face, GitHub, OpenAI and its kin, AWS, Replicate, Slack; a name and password in an address; "Bearer …"
_VALUE = re.compile(
    r"\b(hf_[A-Za-z0-9]{20,}|gh[pousr]_[A-Za-z0-9]{20,}|github_pat_\w{20,}|sk-[\w-]{20,}|AKIA[0-9A-Z]{16}|r8_\w{20,}|"
    r"xox[abprs]-[\w-]{10,})|://[^/\s:@]+:[^/\s@]+@|\bbearer\s+[\w.~+/-]{16,}",
    re.IGNORECASE,
)


def is_hidden(key: Any, value: Any) -> bool:
    """Whether a key that no option was declared for, or its value, looks like a secret."""
    if isinstance(key, str) and isinstance(value, (str, list, dict)) and value:
        name = _snake(key)
        if _KEY.search(name) or _TOKEN.search(name):
            return True
        if _ANY_TOKEN.search(name) and isinstance(value, str):
            return len(value) >= _SHORT and " " not in value
    return isinstance(value, str) and bool(_VALUE.search(value))


def without_hidden(value: Any) -> Any:
    """A copy of JSON without what looks like a secret; in lists it becomes null, so that others keep their place."""
    if isinstance(value, Mapping):
        return {key: without_hidden(item) for key, item in value.items() if not is_hidden(key, item)}
    if isinstance(value, list):
        return [None if is_hidden("", item) else without_hidden(item) for item in value]
    return value


def has_hidden(value: Any) -> bool:
    """Whether `without_hidden` would leave something out."""
    if isinstance(value, Mapping):
        return any(is_hidden(key, item) or has_hidden(item) for key, item in value.items())
    if isinstance(value, list):
        return any(is_hidden("", item) or has_hidden(item) for item in value)
    return False


def _snake(key: str) -> str:
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", key)
