from enum import StrEnum


class TagDropoutSpecialTagsMode(StrEnum):
    """Whether the special tags are the ones never dropped (whitelist) or the only ones dropped (blacklist)."""

    NONE = "NONE"
    BLACKLIST = "BLACKLIST"
    WHITELIST = "WHITELIST"
