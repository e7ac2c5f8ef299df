import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from modules.util.config.errors import ConfigError
from modules.util.config.load import load_train_config, train_config_from_dict
from modules.util.config.read_json import read_json
from modules.util.config.TrainConfig import TrainConfig
from modules.util.config.write_json import write_json
from modules.util.texts import tr

# what no file system of ours can hold in a name
_FORBIDDEN = re.compile(r'[<>:"|?*\\\x00-\x1f]')
_OF_WINDOWS = re.compile(r"(con|prn|aux|nul|com[0-9¹²³]|lpt[0-9¹²³])(\..*)?", re.IGNORECASE)
# bytes of a part of a name; with ending and the marks of a temporary file it has to stay below 255
_LONGEST = 220
LAST_SESSION = ".last_session.json"


@dataclass(frozen=True)
class Preset:
    """A config that a person can pick.

    Attributes:
        name: for people: folders and file without ending, and without the # that those of the program begin with.
        path: of the file.
        built_in: whether it came with the program, and is never written to.
    """

    name: str
    path: Path
    built_in: bool

    @property
    def key(self) -> str:
        """What tells it from all others."""
        return self.name if self.built_in else f"{self.name} (own)"

    @property
    def title(self) -> str:
        """The same for people."""
        return self.name if self.built_in else tr("{name} (own)", name=self.name)


class PresetTakenError(ConfigError):
    """There is an own preset of this name already."""


class PresetChangedError(ConfigError):
    """Its file is not what it was when it was opened."""


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
        self._on_disk = b""

    def presets(self) -> list[Preset]:
        """All of them, the own ones first, each kind by name."""
        return [*_in_folder(self._own, False), *_in_folder(self._built_in, True)]

    def find(self, key: str) -> Preset | None:
        """The preset of a key; where there is none, the user's own of that name."""
        presets = self.presets()
        return next((preset for preset in presets if preset.key == key), None) or next(
            (preset for preset in presets if preset.name == key), None
        )

    def open(self, preset: Preset, warn: Callable[[str], None]) -> TrainConfig:
        """Reads a preset, which is the current one from now on.

        Args:
            warn: gets a line if there are keys without effect.

        Raises:
            ConfigError: naming every wrong key, or why the file can't be read. The current preset stays.
        """
        # first: what changes while it is read counts as changed
        on_disk = _content(preset.path)
        config = load_train_config(preset.path, warn=warn)
        self.current, self._opened, self._on_disk = preset, config.model_copy(deep=True), on_disk
        return config

    def leave(self, config: TrainConfig) -> None:
        """No preset is open from now on; a config from elsewhere counts as not changed."""
        self.current, self._opened, self._on_disk = None, config.model_copy(deep=True), b""

    def is_modified(self, config: TrainConfig) -> bool:
        """Whether a config differs from the preset as it was opened or saved last."""
        # tokens are in no preset; and comparing takes a hundredth of the time of writing both as JSON
        return config.model_copy(update={"secrets": self._opened.secrets}) != self._opened

    @property
    def can_save(self) -> bool:
        """Whether the current preset may be written to."""
        return self.current is not None and not self.current.built_in

    @property
    def suggestion(self) -> str:
        """A name to save under: that of the current preset, or, if it came with the program, one beside it."""
        if self.current is None:
            return ""
        return tr("{name} mine", name=self.current.name) if self.current.built_in else self.current.name

    def save(self, config: TrainConfig, replace: bool = False) -> Preset:
        """Writes the current preset, which must be the user's own, without tokens.

        Args:
            replace: whether a file that others changed meanwhile is replaced.

        Raises:
            PresetChangedError: others did, and it is not to be replaced.
            ConfigError: it is not, or the file can't be written.
        """
        if self.current is None or self.current.built_in:
            raise ConfigError(tr("this preset came with the program and stays as it is; save it under another name"))
        if not replace and _content(self.current.path) not in (self._on_disk, b""):
            text = tr("{name} has been changed by another program since it was opened", name=self.current.name)
            raise PresetChangedError(text)
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
        parts = name.strip().removesuffix(".json").split("/")
        if reason := next(filter(None, map(_why_no_name, parts)), ""):
            raise ConfigError(tr("{name!r} cannot be a file name: {reason}", name=name, reason=reason))
        path = self._own.joinpath(*parts[:-1], f"{parts[-1]}.json")
        if path.exists() and not replace:
            raise PresetTakenError(tr("there is a preset {name!r} already", name="/".join(parts)))
        return self._write("/".join(parts), path, config)

    def delete(self, preset: Preset) -> None:
        """Removes an own preset.

        Raises:
            ConfigError: it came with the program, or can't be removed.
        """
        if preset.built_in:
            raise ConfigError(tr("{name}: it came with the program and stays", name=preset.name))
        try:
            preset.path.unlink()
        except OSError as error:
            raise ConfigError(tr("cannot be removed: {error}", error=error.strerror), str(preset.path)) from None
        if self.current == preset:
            self.current = None

    def keep_session(self, config: TrainConfig) -> None:
        """Stores what is being edited, so that the next window begins where this one ended.

        Raises:
            ConfigError: it can't be written.
        """
        self._check_folder()
        write_json(self._own / LAST_SESSION, config.to_dict(sparse=True))

    def last_session(self) -> TrainConfig | None:
        """What `keep_session` stored; None if there is nothing, or nothing that can be used."""
        try:
            return train_config_from_dict(read_json(self._own / LAST_SESSION), warn=lambda _: None)
        except ConfigError:
            return None

    def _write(self, name: str, path: Path, config: TrainConfig) -> Preset:
        self._check_folder()
        config.save(path, sparse=True)
        self.current, self._opened = Preset(name, path, False), config.model_copy(deep=True)
        self._on_disk = _content(path)
        return self.current

    def _check_folder(self) -> None:
        if self._own.exists() and not self._own.is_dir():
            text = tr("is a file, expected a folder, for presets and what was open last")
            raise ConfigError(text, str(self._own))


def _content(path: Path) -> bytes:
    """Of a file; nothing if it can't be read, which is told by those who need it."""
    try:
        return path.read_bytes()
    except OSError:
        return b""


def _why_no_name(part: str) -> str:
    """Why a file or folder cannot have a name, on this machine or on one that presets may be taken to."""
    if not part.strip():
        return tr("it is empty, or a part of it is")
    if part.startswith("."):
        return tr("{part!r} begins with a dot", part=part)
    if part.endswith("."):
        return tr("{part!r} ends with a dot", part=part)
    if part != part.strip():
        return tr("{part!r} begins or ends with a blank", part=part)
    if found := _FORBIDDEN.search(part):
        return tr("{part!r} has {what!r} in it", part=part, what=found[0])
    if _OF_WINDOWS.fullmatch(part):
        return tr("{part!r} is a name that Windows keeps for itself", part=part)
    if len(part.encode(errors="replace")) > _LONGEST:
        return tr("it is longer than {count} bytes", count=_LONGEST)
    return ""


def _in_folder(folder: Path, built_in: bool) -> list[Preset]:
    found = []
    for path in sorted(folder.rglob("*.json")) if folder.is_dir() else ():
        parts = path.relative_to(folder).with_suffix("").parts
        if not any(part.startswith(".") for part in parts):
            found.append(Preset("/".join(part.lstrip("#") if built_in else part for part in parts), path, built_in))
    return sorted(found, key=lambda preset: preset.name.lower())
