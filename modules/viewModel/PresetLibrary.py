import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from modules.util.config.errors import ConfigError
from modules.util.config.load import load_train_config, train_config_from_dict
from modules.util.config.read_json import read_json
from modules.util.config.TrainConfig import TrainConfig
from modules.util.config.write_json import write_json

# what no file system of ours can hold in a name
_FORBIDDEN = re.compile(r'[<>:"|?*\\\x00-\x1f]')
LAST_SESSION = ".last_session.json"


@dataclass(frozen=True)
class Preset:
    """A config that a person can pick.

    Attributes:
        name: for lists: folders and file without ending, and without the # that OneTrainer's own begin with.
        path: of the file.
        built_in: whether it came with the program, and is never written to.
    """

    name: str
    path: Path
    built_in: bool


class PresetTakenError(ConfigError):
    """There is an own preset of this name already."""


class PresetLibrary:
    """The presets that came with the program, and the user's own.

    Args:
        built_in: folder of the first, only read.
        own: folder of the second; made when something is saved.

    Attributes:
        current: the preset that is open, None for none.
    """

    def __init__(self, built_in: Path, own: Path) -> None:
        self._built_in, self._own = built_in, own
        self.current: Preset | None = None
        self._opened = TrainConfig()

    def presets(self) -> list[Preset]:
        """All of them, the own ones first, each kind by name."""
        return [*_in_folder(self._own, False), *_in_folder(self._built_in, True)]

    def find(self, name: str) -> Preset | None:
        """The preset of a name, the user's own before one that came with the program."""
        return next((preset for preset in self.presets() if preset.name == name), None)

    def open(self, preset: Preset, warn: Callable[[str], None]) -> TrainConfig:
        """Reads a preset, which is the current one from now on.

        Args:
            warn: gets a line if there are keys without effect.

        Raises:
            ConfigError: naming every wrong key, or why the file can't be read. The current preset stays.
        """
        config = load_train_config(preset.path, warn=warn)
        self.current, self._opened = preset, config.model_copy(deep=True)
        return config

    def is_modified(self, config: TrainConfig) -> bool:
        """Whether a config differs from the preset as it was opened or saved last."""
        # tokens are in no preset; and comparing takes a hundredth of the time of writing both as JSON
        return config.model_copy(update={"secrets": self._opened.secrets}) != self._opened

    @property
    def can_save(self) -> bool:
        """Whether the current preset may be written to."""
        return self.current is not None and not self.current.built_in

    def save(self, config: TrainConfig) -> Preset:
        """Writes the current preset, which must be the user's own, without tokens.

        Raises:
            ConfigError: it is not, or the file can't be written.
        """
        if self.current is None or self.current.built_in:
            raise ConfigError("this preset came with the program and stays as it is; save it under another name")
        return self._write(self.current.name, self.current.path, config)

    def save_as(self, name: str, config: TrainConfig, replace: bool = False) -> Preset:
        """Writes an own preset, which is the current one from now on.

        Args:
            name: may have folders, with / between.
            replace: whether one of the same name is replaced.

        Raises:
            PresetTakenError: there is one, and it is not to be replaced.
            ConfigError: a name that no file can have, or the file can't be written.
        """
        parts = [part.strip() for part in name.strip().removesuffix(".json").split("/")]
        if not all(parts) or any(part.startswith(".") or _FORBIDDEN.search(part) for part in parts):
            raise ConfigError(
                f'{name!r} cannot be a file name: it is empty, begins with a dot or has one of < > : " | ? * \\'
            )
        path = self._own.joinpath(*parts[:-1], f"{parts[-1]}.json")
        if path.exists() and not replace:
            raise PresetTakenError(f"there is a preset {'/'.join(parts)!r} already")
        return self._write("/".join(parts), path, config)

    def delete(self, preset: Preset) -> None:
        """Removes an own preset.

        Raises:
            ConfigError: it came with the program, or can't be removed.
        """
        if preset.built_in:
            raise ConfigError(f"{preset.name}: it came with the program and stays")
        try:
            preset.path.unlink()
        except OSError as error:
            raise ConfigError(f"cannot be removed: {error.strerror}", str(preset.path)) from None
        if self.current == preset:
            self.current = None

    def keep_session(self, config: TrainConfig) -> None:
        """Stores what is being edited, so that the next window begins where this one ended.

        Raises:
            ConfigError: it can't be written.
        """
        write_json(self._own / LAST_SESSION, config.to_dict(sparse=True))

    def last_session(self) -> TrainConfig | None:
        """What `keep_session` stored; None if there is nothing, or nothing that can be used."""
        try:
            return train_config_from_dict(read_json(self._own / LAST_SESSION), warn=lambda _: None)
        except ConfigError:
            return None

    def _write(self, name: str, path: Path, config: TrainConfig) -> Preset:
        config.save(path, sparse=True)
        self.current, self._opened = Preset(name, path, False), config.model_copy(deep=True)
        return self.current


def _in_folder(folder: Path, built_in: bool) -> list[Preset]:
    found = []
    for path in sorted(folder.rglob("*.json")) if folder.is_dir() else ():
        parts = path.relative_to(folder).with_suffix("").parts
        if not any(part.startswith(".") for part in parts):
            found.append(Preset("/".join(part.lstrip("#") for part in parts), path, built_in))
    return sorted(found, key=lambda preset: preset.name.lower())
