"""Finds options by their name, title or help."""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache

from modules.util.config.BaseConfig import BaseConfig
from modules.util.config.ConceptConfig import ConceptConfig
from modules.util.config.SampleConfig import SampleConfig
from modules.util.config.TrainEmbeddingConfig import TrainEmbeddingConfig
from modules.util.texts import later, tr
from modules.viewModel.form_tabs import tab_of
from modules.viewModel.FormModel import FormModel
from modules.viewModel.option_titles import BETWEEN


@dataclass(frozen=True)
class Found:
    """An option that a search found.

    Attributes:
        path: of the option.
        title: as the form shows it.
        place: tab and section, for people.
        missing: what would have to be otherwise for it to matter, empty if it matters.
    """

    path: str
    title: str
    place: str
    missing: str


@dataclass(frozen=True)
class ItemOption:
    """An option of each item of a list.

    Attributes:
        tab: where the list stands.
        each: "each of the concepts".
        section: in the window of an item.
        title: of the option.
    """

    tab: str
    each: str
    section: str
    title: str


LISTS: tuple[tuple[str, str, str, type[BaseConfig]], ...] = (
    ("concepts", "concepts", later("each of the concepts"), ConceptConfig),
    ("samples", "sampling", later("each of the samples"), SampleConfig),
    ("additional_embeddings", "embeddings", later("each of the embeddings"), TrainEmbeddingConfig),
)
"""Key, tab and name of each list of configs, and the class of its items."""
EACH = ".*."
"""Stands in a path between the key of a list and an option of each of its items."""


@cache
def _item_form(key: str) -> FormModel:
    return FormModel(next(config_class for name, _, _, config_class in LISTS if name == key)())


def place_in_items(path: str) -> ItemOption | None:
    """Where an option of each item of a list stands; None for the path of another option."""
    key, each, inner = path.partition(EACH)
    if not each:
        return None
    form, (tab, each) = _item_form(key), next((tab, each) for name, tab, each, _ in LISTS if name == key)
    section = next(section for section in form.sections if form.fields[inner] in section.fields)
    return ItemOption(tab, each, section.title, form.fields[inner].declared.title)


def tab_of_list(path: str) -> str:
    """The tab in which a list of configs is edited, of the path of the list or of anything in it; "" of others."""
    key = path.partition(".")[0]
    return next((tab for name, tab, _, _ in LISTS if name == key), "")


def search_options(form: FormModel, query: str, limit: int = 30) -> list[Found]:
    """Options that hold every word of `query` in key, title, section or help, the nearest first; those of concepts,
    samples and embeddings, too, with `EACH` in their path. English words find them in any language.

    Whoever knows the name of an option finds it on top: an equal name or title comes before one that begins so, that
    before one that holds it, and words of the help come last. Options that matter now come before others.
    """
    words = _plain(query).split()
    if not words:
        return []
    ranked = []
    places = [(section, "", tab_of(section.group), "") for section in form.sections]
    for key, tab, each, _ in LISTS:
        places += [(section, f"{key}{EACH}", tab, each) for section in _item_form(key).sections]
    for section, prefix, tab, each in places:
        for place, one in enumerate(section.fields):
            declared = one.declared
            names = (_plain(one.name), *_both(declared.title), _plain(one.path))
            rank = _rank(words, names, " ".join(_both(section.title)), " ".join(_both(declared.help)))
            # what means nothing where it stands is for those who ask for just that
            idle = not prefix and form.is_unused(one.path) and not form.is_modified(one.path)
            if rank is not None and not (idle and " ".join(words) != names[-1]):
                missing = "" if prefix else form.needs(one.path)
                where = [tr(text) for text in (tab, each, section.title) if text]
                where += [] if each else one.parent.split(".")[1:]
                found = Found(f"{prefix}{one.path}", tr(declared.title), BETWEEN.join(where), missing)
                # options of the run come before equal ones of its lists
                ranked.append(((rank, bool(missing), bool(prefix), place), found))
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


def _both(text: str) -> tuple[str, str]:
    """A text in the language of the window, and in English."""
    return _plain(tr(text)), _plain(text)


@cache
def _plain(text: str) -> str:
    return text.lower().replace("_", " ").replace("-", " ").replace(".", " ")
