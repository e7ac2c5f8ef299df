import re
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Self

from modules.util.config.errors import ConfigError
from modules.util.config.read_json import read_json
from modules.util.config.write_json import write_json

THEMES = ("system", "light", "dark")
SCALES = (80, 90, 100, 110, 125, 150, 175, 200)
BASIC, ALL = "basic", "all"

# as Tk writes it; on a screen left of the first one, x is "+-1500"
_GEOMETRY = re.compile(r"(\d+)x(\d+)\+(-?\d+)\+(-?\d+)")
# so much of a window must be on a screen for a person to get hold of it
_IN_SIGHT = 100


def fitting_geometry(kept: str, screens: tuple[int, int, int, int], usual: str, smallest: tuple[int, int]) -> str:
    """Where a window was left, if that can still be seen; otherwise `usual`, which is its size and where it stands.

    Args:
        kept: as Tk writes it; may be anything.
        screens: left, top, width and height of all screens together, in pixels.
        usual: "WxH+X+Y".
        smallest: width and height that a window must have.
    """
    found = _GEOMETRY.fullmatch(kept)
    if found is None:
        return usual
    wide, high, x, y = map(int, found.groups())
    left, top, width, height = screens
    in_sight = left <= x < left + width - _IN_SIGHT and top <= y < top + height - _IN_SIGHT
    return kept if in_sight and wide >= smallest[0] and high >= smallest[1] else usual


@dataclass
class UiSettings:
    """How the window looks and where it was left.

    Attributes:
        theme: one of THEMES.
        scale: of everything in the window, in percent; one of SCALES.
        view: BASIC or ALL options.
        preset: the name of the preset that was open last.
        tab: the tab that was open last.
        geometry: of the window, as Tk writes it.
        comfy: folder of ComfyUI, into which adapters were copied last; empty: none yet.
        run_folders: folders that are searched for runs, as the person has added them.
        workspaces: those that runs have used, the newest first.
    """

    theme: str = "system"
    scale: int = 100
    view: str = BASIC
    preset: str = ""
    tab: str = "general"
    geometry: str = ""
    comfy: str = ""
    run_folders: list[str] = field(default_factory=list)
    workspaces: list[str] = field(default_factory=list)

    @classmethod
    def load(cls, path: Path) -> Self:
        """Settings of a file. What is missing or can't be used has its default: a window must open in any case."""
        try:
            data = read_json(path)
        except ConfigError:
            return cls()
        allowed: dict[str, tuple[Any, ...]] = {"theme": THEMES, "scale": SCALES, "view": (BASIC, ALL)}
        settings = cls()
        for one in fields(cls):
            value = data.get(one.name)
            if isinstance(value, list) and isinstance(getattr(settings, one.name), list):
                setattr(settings, one.name, [text for text in value if isinstance(text, str)])
            elif type(value) is type(one.default) and value in allowed.get(one.name, (value,)):
                setattr(settings, one.name, value)
        return settings

    def save(self, path: Path) -> None:
        """Writes the file.

        Raises:
            ConfigError: it can't be written.
        """
        write_json(path, asdict(self))
