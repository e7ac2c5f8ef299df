"""What a run tells in English of where it is, in the language of the window."""

import re
from functools import cache
from string import Formatter

from modules.util.texts import later, tr

# as the trainer emits them as status, and the stages of downloads; the first that fits counts
FORMS = (
    later("Checking the images"),
    later("Loading {model}"),
    later("Continuing {backup} after step {step}"),
    later("The cache is complete."),
    later("Stopped before the first step; what was downloaded so far is kept."),
    later("Stopped before the first step; there is nothing to save."),
    later("Downloading the configuration of {repository}"),
    later("Downloading {file} of {repository}"),
)


def run_text(text: str) -> str:
    """A text of a run: one of `FORMS`, or what is in the catalogue; any other one as it is."""
    for form, pattern in _patterns():
        if found := pattern.fullmatch(text):
            return tr(form, **found.groupdict())
    return tr(text)


@cache
def _patterns() -> tuple[tuple[str, re.Pattern[str]], ...]:
    return tuple((form, _pattern(form)) for form in FORMS)


def _pattern(form: str) -> re.Pattern[str]:
    parts = (re.escape(words) + (f"(?P<{name}>.+)" if name else "") for words, name, _, _ in Formatter().parse(form))
    return re.compile("".join(parts), re.DOTALL)
