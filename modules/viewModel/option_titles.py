"""What a form calls its options, for texts that name them by their keys in the JSON."""

import re
from collections.abc import Iterator
from functools import cache

from modules.util.config.BaseConfig import BaseConfig
from modules.util.config.errors import ConfigError, Problem
from modules.util.config.field_type import field_type, option_of
from modules.util.texts import language, tr
from modules.viewModel.field_text import in_form_words
from modules.viewModel.FormField import form_fields

BETWEEN = " › "
# what stands in quotes, as it may be a person's own word; a marked word; a word with a dot, an underscore or a number
# in it that is no part of a path or of a longer word
_WORD = re.compile(
    r"""(?P<quoted>(?<!\w)'[^'\n]*'(?!\w)|"[^"\n]*"|“[^”\n]*”|„[^“\n]*“)"""
    r"|`(?P<marked>[\w.]+)`"
    r"|(?<![\w.\\/-])(?P<key>[A-Za-z]+(?:[._]\w+|\d\w*)+)(?![\w\\/-]|\.\w)"
)


def title_of_path(config_class: type[BaseConfig], path: str) -> str:
    """The titles along a path: "U-Net › Learning rate" of `unet.learning_rate`, "Concepts › 1 › Folder" of
    `concepts.0.path`. A path that leads to no option stays as it is.
    """
    titles = list(_titles(config_class, path.split(".")))
    return path if not path or "" in titles else BETWEEN.join(titles)


def in_titles(config_class: type[BaseConfig], text: str) -> str:
    """A text for people who see a form and no JSON: keys become titles in quotes, null an empty field."""
    titles = _known(config_class, language())

    def named(match: re.Match[str]) -> str:
        key = match["marked"] or match["key"]
        return match[0] if key not in titles else tr("“{option}”", option=titles[key])

    return in_form_words(_WORD.sub(named, text))


def problem_line(config_class: type[BaseConfig], problem: Problem) -> str:
    """What is wrong, and with which option."""
    text = in_titles(config_class, problem.text)
    return f"{title_of_path(config_class, problem.path)}: {text}" if problem.path else text


def list_lines(config_class: type[BaseConfig], key: str, error: ConfigError) -> list[str]:
    """What is wrong with a list of configs that stands in a file of its own, or with the file, a line for each problem.

    Args:
        config_class: the config that the list belongs to.
        key: of the list there.
        error: what reading it raised.
    """
    item = field_type(config_class, key).item
    assert item is not None
    where = f"{error.source!r}: " if error.source else ""
    lines = []
    for problem in error.problems:
        inside = f"{title_of_path(config_class, f'{key}.{problem.path}')}: " if problem.path[:1].isdigit() else ""
        lines.append(f"{where}{inside}{in_titles(item, problem.text)}")
    return lines


def _titles(config_class: type[BaseConfig], keys: list[str]) -> Iterator[str]:
    """ "" among them: there is no such option."""
    if not keys:
        return
    name, *rest = keys
    if name not in config_class.model_fields:
        yield ""
        return
    yield tr(option_of(config_class, name).title)
    kind = field_type(config_class, name)
    if kind.kind in (list, dict) and rest:
        # people count from 1
        yield str(int(rest[0]) + 1) if rest[0].isdigit() else rest[0]
        if kind.item is not None:
            yield from _titles(kind.item, rest[1:])
    elif kind.is_config:
        yield from _titles(kind.kind, rest)
    elif rest:
        yield ""


@cache
def _known(config_class: type[BaseConfig], code: str) -> dict[str, str]:
    """Titles in the language of now, which is `code`, by path and by name.

    The option of the run counts first; a name of many meanings has no title.
    """
    fields = list(form_fields(config_class))
    titles = {one.path: title_of_path(config_class, one.path) for one in fields}
    for name in {one.name for one in fields} - titles.keys():
        meanings = {tr(one.declared.title) for one in fields if one.name == name}
        if len(meanings) == 1:
            titles[name] = meanings.pop()
    return titles
