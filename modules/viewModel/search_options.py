"""Finds options by their name, title or help."""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache

from modules.viewModel.form_tabs import tab_of
from modules.viewModel.FormModel import FormModel


@dataclass(frozen=True)
class Found:
    """An option that a search found.

    Attributes:
        path: of the option.
        title: as the form shows it.
        place: tab and section, for people.
        tab: in which it stands; "optimizer" for the optimizer window.
        missing: what would have to be otherwise for it to matter, empty if it matters.
    """

    path: str
    title: str
    place: str
    tab: str
    missing: str


def search_options(form: FormModel, query: str, limit: int = 30) -> list[Found]:
    """Options that hold every word of `query` in key, title, section or help, the nearest first.

    Whoever knows the name of an option finds it on top: an equal name or title comes before one that begins so, that
    before one that holds it, and words of the help come last. Options that matter now come before others.
    """
    words = _plain(query).split()
    if not words:
        return []
    ranked = []
    for section in form.sections:
        for place, one in enumerate(section.fields):
            declared = one.declared
            names = (_plain(one.name), _plain(declared.title), _plain(one.path))
            rank = _rank(words, names, _plain(section.title), _plain(declared.help))
            if rank is not None:
                missing = form.needs(one.path)
                tab = tab_of(section.group)
                places = [tab, section.title, *one.parent.split(".")[1:]]
                found = Found(one.path, declared.title, " › ".join(places), tab, missing)
                ranked.append(((rank, bool(missing), place), found))
    ranked.sort(key=lambda pair: pair[0])
    return [found for _, found in ranked[:limit]]


def _rank(words: list[str], names: Iterable[str], section: str, help: str) -> int | None:
    """0 is best; None: not found."""
    phrase, names = " ".join(words), tuple(names)
    if phrase in names:
        return 0
    if any(name.startswith(phrase) for name in names):
        return 1
    if any(phrase in name for name in names):
        return 2
    if all(any(word in name for name in names) for word in words):
        return 3
    everywhere = " ".join((*names, section))
    if all(word in everywhere for word in words):
        return 4
    return 5 if all(word in everywhere or word in help for word in words) else None


@cache
def _plain(text: str) -> str:
    return text.lower().replace("_", " ").replace("-", " ").replace(".", " ")
