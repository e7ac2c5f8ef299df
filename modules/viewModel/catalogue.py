"""All texts that the window can show, gathered from the code: the template of its catalogues, and what these lack."""

import ast
import importlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from string import Formatter

from modules.util.config.BaseConfig import BaseConfig
from modules.util.config.field_type import option_of
from modules.util.enum.OptionGroup import OptionGroup
from modules.util.texts import LANGUAGES
from modules.viewModel.value_names import NAMES

import polib

TEMPLATE = LANGUAGES / "texts.pot"
# calls whose texts are gathered: so many of the first arguments, None: all, with the named ones
CALLS = {"tr": 1, "later": 1, "tr_n": 2, "Tab": 1, "Tool": None}
_CALL = re.compile(rf"\b({'|'.join(CALLS)})\(")
HEAD = {"MIME-Version": "1.0", "Content-Type": "text/plain; charset=UTF-8", "Content-Transfer-Encoding": "8bit"}
PLACE = "declared options"
MODULES = LANGUAGES.parent
# in which options are declared
ROOMS = ("util/config", "viewModel")


@dataclass(frozen=True)
class Text:
    """A text of the window.

    Attributes:
        one: in English, its key.
        many: for any other number than one; empty if no number decides.
        place: file below the project's folder, or `PLACE`.
    """

    one: str
    many: str
    place: str


def gather(root: Path) -> list[Text]:
    """Every text once: those of calls by file and line, then those that options, their groups and values declare."""
    found: dict[str, Text] = {}
    for path in sorted((root / "modules").rglob("*.py")):
        code, place = path.read_text(encoding="utf-8"), path.relative_to(root).as_posix()
        # most files have none, and trees take a while
        for one, many in _called(ast.parse(code)) if _CALL.search(code) else ():
            known = found.get(one)
            if known is None or (many and not known.many):
                found[one] = Text(one, many, place if known is None else known.place)
    for text in _declared():
        found.setdefault(text, Text(text, "", PLACE))
    return list(found.values())


def template(texts: list[Text]) -> polib.POFile:
    """The catalogue without translations, that a new language begins with."""
    file = polib.POFile(wrapwidth=110)
    file.metadata = HEAD | {"Language": "", "X-Name": "", "Plural-Forms": "nplurals=2; plural=(n != 1);"}
    for text in texts:
        plural = {"msgid_plural": text.many, "msgstr_plural": {0: "", 1: ""}} if text.many else {}
        file.append(polib.POEntry(msgid=text.one, occurrences=[(text.place, "")], **plural))
    return file


def update(path: Path, new: polib.POFile) -> bool:
    """Brings a catalogue to what the template has: new texts come without translation, stale ones go. True: it changed.

    Args:
        path: of the template itself, or of a language.
        new: made by `template`.
    """
    before = path.read_text(encoding="utf-8") if path.is_file() else ""
    made = polib.POFile(wrapwidth=110)
    made.metadata, made.header = dict(new.metadata), ""
    if before and path.suffix == ".po":
        known = polib.pofile(str(path), encoding="utf-8")
        made.metadata, made.header = known.metadata, known.header
        translated = {entry.msgid: entry for entry in known if not entry.obsolete}
    else:
        translated = {}
    for entry in new:
        old = translated.get(entry.msgid)
        if old is not None and bool(old.msgid_plural) == bool(entry.msgid_plural):
            entry.msgstr, entry.msgstr_plural, entry.tcomment = old.msgstr, old.msgstr_plural, old.tcomment
        made.append(entry)
    after = f"{str(made).rstrip()}\n"
    if after == before:
        return False
    path.write_text(after, encoding="utf-8")
    return True


def update_all(root: Path) -> dict[str, bool]:
    """Brings the template and every language to what the code says. File name -> whether it changed."""
    texts = gather(root)
    paths = [TEMPLATE, *sorted(LANGUAGES.glob("*.po"))]
    return {path.name: update(path, template(texts)) for path in paths}


def faults(catalogue: polib.POFile) -> list[str]:
    """What keeps texts of a catalogue from being shown: none given, or other names in braces than in English."""
    found = []
    for entry in catalogue:
        given = list(entry.msgstr_plural.values()) if entry.msgid_plural else [entry.msgstr]
        # a form of the plural may do without its number
        wanted = _names(entry.msgid) | (_names(entry.msgid_plural) if entry.msgid_plural else set())
        for text in given:
            if not text or entry.fuzzy:
                found.append(f"{entry.msgid!r}: not translated")
            elif (_names(text) | {"n"} if entry.msgid_plural else _names(text)) != wanted:
                found.append(f"{entry.msgid!r}: other names in braces: {text!r}")
    return found


def _names(text: str) -> set[str]:
    """Names in braces; none where the braces are no names."""
    try:
        return {name for _, name, _, _ in Formatter().parse(text) if name}
    except ValueError:
        return set()


def _called(tree: ast.AST) -> Iterator[tuple[str, str]]:
    """Literal texts of the calls, in the order of the file, and of those with a number the second text."""
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)]
    for call in sorted(calls, key=lambda node: (node.lineno, node.col_offset)):
        name = call.func.id
        if name not in CALLS:
            continue
        given = call.args[: CALLS[name]]
        if CALLS[name] is None:
            given += [keyword.value for keyword in call.keywords]
        texts = [
            one.value for one in given if isinstance(one, ast.Constant) and isinstance(one.value, str) and one.value
        ]
        if name == "tr_n":
            yield from [tuple(texts)] if len(texts) == 2 else []
        else:
            yield from ((text, "") for text in texts)


def _declared() -> Iterator[str]:
    """Titles, help and units of all options, headings of their groups, and names of values."""
    for room in ROOMS:
        for path in sorted((MODULES / room).rglob("*.py")):
            importlib.import_module(".".join(path.relative_to(MODULES.parent).with_suffix("").parts))
    yield from (group.value for group in OptionGroup)
    for config_class in _config_classes():
        for name in config_class.model_fields:
            option = option_of(config_class, name)
            # of a sibling that holds the unit, that is its key
            unit = "" if option.unit.endswith("_unit") else option.unit
            yield from filter(None, (option.title, option.help, unit))
    for names in NAMES.values():
        yield from names.values()


def _config_classes() -> list[type[BaseConfig]]:
    """Every class of options of the program, of which tests may have more."""
    found, left = [], [BaseConfig]
    while left:
        left += left[0].__subclasses__()
        found.append(left.pop(0))
    own = [one for one in dict.fromkeys(found) if one.__module__.startswith("modules.")]
    return sorted(own, key=lambda one: (one.__module__, one.__qualname__))
