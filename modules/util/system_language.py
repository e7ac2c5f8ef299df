"""In which languages whoever uses this machine wants to read."""

import locale
import os
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence

# of gettext: a list with ":" between, and those of which the first that is set counts
LIST, VARIABLES = "LANGUAGE", ("LC_ALL", "LC_MESSAGES", "LANG")
# languages of programs that nobody has translated, which is English here
UNTRANSLATED = ("C", "POSIX")
# what macOS has in its settings, where a program that was not started in a terminal finds no variables
MACOS = ("defaults", "read", "-g", "AppleLanguages")
MACOS_SECONDS = 5


def wanted_languages(variables: Mapping[str, str] = os.environ, system: str = sys.platform) -> list[str]:
    """Languages as the system names them, such as de_DE.UTF-8 or de-DE, the most wanted first; may be empty.

    Args:
        variables: of the environment. Windows has its own setting; only a list in `LIST` counts before that.
        system: as `sys.platform` names it.
    """
    told = next((variables[name] for name in VARIABLES if variables.get(name)), "")
    if system == "win32":
        told = ""
    if _bare(told) in UNTRANSLATED:
        return [told]
    if listed := [one for one in variables.get(LIST, "").split(":") if one]:
        return listed
    if told:
        return [told]
    return {"win32": _of_windows, "darwin": _of_macos}.get(system, list)()


def best_language(wanted: Sequence[str], known: Sequence[str], otherwise: str) -> str:
    """The first wanted language that there is.

    Args:
        wanted: see `wanted_languages`.
        known: codes such as de or pt_BR. That of a country counts before that of the language alone.
        otherwise: where there is none, which is also what untranslated programs have.
    """
    codes = {code.lower(): code for code in known}
    for one in wanted:
        name = _bare(one)
        if name in UNTRANSLATED:
            break
        whole = name.replace("-", "_").lower()
        found = codes.get(whole) or codes.get(whole.split("_")[0])
        if found:
            return found
    return otherwise


def _bare(name: str) -> str:
    """A locale's name without its encoding and variant."""
    return re.split("[.@]", name)[0]


def _of_windows() -> list[str]:
    import ctypes

    # the language of menus; that of numbers and dates may be another one
    code = ctypes.windll.kernel32.GetUserDefaultUILanguage()
    return [locale.windows_locale[code]] if code in locale.windows_locale else []


def _of_macos() -> list[str]:
    try:
        told = subprocess.run(MACOS, capture_output=True, text=True, timeout=MACOS_SECONDS, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return []
    # a list in brackets, in which names with a hyphen stand in quotes
    return re.findall(r"[\w-]+", told)
