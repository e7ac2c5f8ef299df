from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Self

from modules.util.config.errors import ConfigError
from modules.util.config.read_json import read_json
from modules.util.config.write_json import write_json

THEMES = ("system", "light", "dark")
SCALES = (80, 90, 100, 110, 125, 150, 175, 200)
BASIC, ALL = "basic", "all"


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
    """

    theme: str = "system"
    scale: int = 100
    view: str = BASIC
    preset: str = ""
    tab: str = "general"
    geometry: str = ""

    @classmethod
    def load(cls, path: Path) -> Self:
        """Settings of a file. What is missing or can't be used has its default: a window must open in any case."""
        try:
            data = read_json(path)
        except ConfigError:
            return cls()
        allowed: dict[str, tuple[Any, ...]] = {"theme": THEMES, "scale": SCALES, "view": (BASIC, ALL)}
        settings = cls()
        for field in fields(cls):
            value = data.get(field.name)
            if type(value) is type(field.default) and value in allowed.get(field.name, (value,)):
                setattr(settings, field.name, value)
        return settings

    def save(self, path: Path) -> None:
        """Writes the file.

        Raises:
            ConfigError: it can't be written.
        """
        write_json(path, asdict(self))
