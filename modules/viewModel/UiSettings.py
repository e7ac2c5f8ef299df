import re
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Self

from modules.util.config.errors import ConfigError
from modules.util.config.read_json import read_json
from modules.util.config.write_json import write_json
from modules.util.texts import SYSTEM, languages, later

THEMES = (later("system"), later("light"), later("dark"))
SCALES = (80, 90, 100, 110, 125, 150, 175, 200)
BASIC, ALL = later("basic"), later("all")

# as Tk writes it; on a screen left of the first one, x is "+-1500"
_GEOMETRY = re.compile(r"(\d+)x(\d+)\+(-?\d+)\+(-?\d+)")
# so much of a window must be on a screen for a person to get hold of it
_IN_SIGHT = 100
# height of the lowest title bar, which Tk does not count
_LEAST_TITLE = 20


def fitting_geometry(kept: str, screens: tuple[int, int, int, int], usual: str, smallest: tuple[int, int]) -> str:
    """Where a window was left, if that can still be seen; otherwise `usual`, which is its size and where it stands.

    One whose foot is under the edge of the screen is not where a person would have left it: the screen is another one.

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
    fits = smallest[0] <= wide <= width and smallest[1] <= high and y + high + _LEAST_TITLE <= top + height
    return kept if in_sight and fits else usual


def share_within(place: float, room: int, least: tuple[int, int]) -> float:
    """A place between two panes that leaves each what it needs; where there is too little for both, in the same ratio.

    Args:
        place: from the first pane's beginning, in pixels.
        room: of both panes together.
        least: of the first and of the second.
    """
    if sum(least) >= room:
        return room * least[0] / max(1, sum(least))
    return max(least[0], min(place, room - least[1]))


def _is_share(value: Any) -> bool:
    return isinstance(value, float) and 0 < value < 1


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
        language: of the texts, one of `languages()`, or SYSTEM.
        panes: name of two panes beside each other -> the share of the first one.
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
    language: str = SYSTEM
    comfy: str = ""
    panes: dict[str, float] = field(default_factory=dict)
    run_folders: list[str] = field(default_factory=list)
    workspaces: list[str] = field(default_factory=list)

    @classmethod
    def load(cls, path: Path) -> Self:
        """Settings of a file. What is missing or can't be used has its default: a window must open in any case."""
        try:
            data = read_json(path)
        except ConfigError:
            return cls()
        allowed: dict[str, tuple[Any, ...]] = {
            "theme": THEMES, "scale": SCALES, "view": (BASIC, ALL), "language": (SYSTEM, *languages()),
        }  # fmt: skip
        settings = cls()
        for one in fields(cls):
            value = data.get(one.name)
            if isinstance(value, list) and isinstance(getattr(settings, one.name), list):
                setattr(settings, one.name, [text for text in value if isinstance(text, str)])
            elif type(value) is type(getattr(settings, one.name)) and value in allowed.get(one.name, (value,)):
                setattr(settings, one.name, value)
        settings.panes = {name: share for name, share in settings.panes.items() if _is_share(share)}
        return settings

    def save(self, path: Path) -> None:
        """Writes the file.

        Raises:
            ConfigError: it can't be written.
        """
        write_json(path, asdict(self))
