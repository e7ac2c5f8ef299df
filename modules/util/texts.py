"""What the window says, in the language that was chosen: English texts are the keys of the catalogues.

A catalogue is a PO file of gettext in `LANGUAGES`, named by its language: `de.po`. `texts.pot` there is the template.
"""

import gettext
import io
import re
from collections.abc import Sequence
from functools import reduce
from pathlib import Path

from modules.util.system_language import best_language, wanted_languages

LANGUAGES = Path(__file__).parent.parent / "languages"
ENGLISH = "en"
# stands for the language of the system, English if there is no catalogue of it
SYSTEM = "system"
# what a language is called by those who speak it, in the head of its file
_NAME = re.compile(r'"X-Name: ([^"\\]+)')
_HEAD = 8192


class _Language:
    """The language of now.

    It is a state of this module, as every model and view asks for texts, in places that otherwise need no state. Only
    `choose_language` changes it, and only the window calls that, on its own thread before views are built. In
    other processes texts are English.
    """

    code = ENGLISH
    catalogue = gettext.NullTranslations()


def languages(folder: Path = LANGUAGES) -> dict[str, str]:
    """The languages that can be chosen: code -> what those who speak it call it. English comes first."""
    found = {ENGLISH: "English"}
    for path in sorted(folder.glob("*.po")):
        try:
            name = _NAME.search(path.read_bytes()[:_HEAD].decode("utf-8", "replace"))
        except OSError:
            continue
        found[path.stem] = name[1].strip() if name else path.stem
    return found


def language() -> str:
    """The code of the language of now."""
    return _Language.code


def system_language(folder: Path = LANGUAGES) -> str:
    """The code of the language that `SYSTEM` stands for on this machine."""
    return best_language(wanted_languages(), list(languages(folder)), ENGLISH)


def choose_language(code: str, folder: Path = LANGUAGES) -> str:
    """Takes another language for all texts from now on; what is shown already stays as it is.

    Args:
        code: of a file in the folder, `ENGLISH` or `SYSTEM`.

    Returns:
        Why the language is English all the same; empty if it is the wished one.
    """
    _Language.code, _Language.catalogue = ENGLISH, gettext.NullTranslations()
    if code == SYSTEM:
        code = system_language(folder)
    if code == ENGLISH:
        return ""
    path = folder / f"{code}.po"
    if not path.is_file():
        return f"The texts stay English: {path} is missing."
    import polib

    try:
        binary = polib.pofile(str(path), encoding="utf-8").to_binary()
        catalogue = gettext.GNUTranslations(io.BytesIO(binary))
    # polib and gettext raise almost anything on damaged files
    except Exception as error:
        return f"The texts stay English: {path} cannot be read: {error}"
    _Language.code, _Language.catalogue = code, catalogue
    return ""


def tr(text: str, /, **values: object) -> str:
    """A text of the window in its language; in English if the catalogue has none, or a broken one.

    Args:
        text: in English, a literal wherever this is called, as the catalogue is gathered from the calls and from
            those of `later`. Names of `values` stand in braces: "{count} of {all} pictures".
        values: for the names in braces, after the translation. Without any, braces are plain characters.
    """
    # the empty text is the key of the catalogue's head
    known = _Language.catalogue.gettext(text) if text else ""
    return _filled(known, text, values)


def tr_n(one: str, many: str, n: int, /, **values: object) -> str:
    """The same for a number of things, which is "{n}" in both texts.

    Args:
        one: for a single one.
        many: for any other number.
        n: the number.
        values: for other names in braces.
    """
    known = _Language.catalogue.ngettext(one, many, n)
    return _filled(known, one if n == 1 else many, {"n": n, **values})


def later(text: str) -> str:
    """The text itself: it is a key, and whoever shows it calls `tr` on it. So the catalogue has it, too."""
    return text


def all_of(texts: Sequence[str]) -> str:
    """Texts with "and" between them."""
    return reduce(lambda some, one: tr("{some} and {one}", some=some, one=one), texts) if texts else ""


def any_of(texts: Sequence[str]) -> str:
    """Texts with "or" between them."""
    return reduce(lambda some, one: tr("{some} or {one}", some=some, one=one), texts) if texts else ""


def _filled(text: str, english: str, values: dict[str, object]) -> str:
    if not values:
        return text
    try:
        return text.format(**values)
    except (LookupError, ValueError, AttributeError):
        return english.format(**values)
