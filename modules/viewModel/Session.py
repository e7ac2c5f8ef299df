import json
import os
from collections.abc import Callable
from pathlib import Path

from modules.util.config.errors import ConfigError
from modules.util.config.read_json import read_json
from modules.util.config.SecretsConfig import SecretsConfig
from modules.viewModel.PresetLibrary import Preset, PresetLibrary
from modules.viewModel.TrainForm import TrainForm
from modules.viewModel.UiSettings import UiSettings

BUILT_IN, OWN, SETTINGS, SECRETS = "training_presets", "user_presets", "ui_settings.json", "secrets.json"
FIRST_PRESET = "Tiny/tiny LoRA"


class Session:
    """What a window works on: the config, the presets, its settings, and the files that keep them for the next time.

    Args:
        root: folder that holds the presets and those files.

    Attributes:
        form: the config that is being edited.
        presets: the library.
        settings: how the window looks.
        secrets_path: where tokens are kept, apart from every config.
    """

    def __init__(self, root: Path) -> None:
        self._settings_path, self.secrets_path = root / SETTINGS, root / SECRETS
        self.form = TrainForm()
        self.presets = PresetLibrary(root / BUILT_IN, root / OWN)
        self.settings = UiSettings.load(self._settings_path)

    def restore(self, warn: Callable[[str], None]) -> None:
        """Opens what was open last, with what had been changed; the first time, a preset that can be tried at once."""
        preset = self.presets.find(self.settings.preset) or self.presets.find(FIRST_PRESET)
        if preset is not None:
            self.open(preset, warn)
        if self.settings.preset and (last := self.presets.last_session()) is not None:
            self.form.replace(last)
        self._read_secrets(warn)

    def open(self, preset: Preset, warn: Callable[[str], None]) -> bool:
        """Opens a preset. False, and `warn` is told why, if it can't be read; then nothing changes."""
        try:
            config = self.presets.open(preset, warn)
        except ConfigError as error:
            warn(str(error))
            return False
        self.settings.preset = preset.name
        self.form.replace(config)
        return True

    @property
    def title(self) -> str:
        """The open preset, with a mark if it has been changed."""
        name = self.presets.current.name if self.presets.current else "no preset"
        return f"{name} •" if self.is_modified else name

    @property
    def is_modified(self) -> bool:
        """Whether the config differs from the preset."""
        return self.presets.is_modified(self.form.config)

    def close(self) -> list[str]:
        """Keeps everything for the next time. Returns what could not be kept, for people."""
        troubles = []
        for keep in (
            lambda: self.settings.save(self._settings_path),
            lambda: self.presets.keep_session(self.form.config),
            self._write_secrets,
        ):
            try:
                keep()
            except (ConfigError, OSError) as error:
                troubles.append(str(error))
        return troubles

    def _read_secrets(self, warn: Callable[[str], None]) -> None:
        if not self.secrets_path.exists():
            return
        try:
            self.form.config.secrets = SecretsConfig.from_dict(read_json(self.secrets_path), SECRETS)
        except ConfigError as error:
            warn(str(error))
        else:
            self.form.changed("")

    def _write_secrets(self) -> None:
        secrets = self.form.config.secrets.to_dict(secrets=True, sparse=True)
        if secrets or self.secrets_path.exists():
            # nobody else on this machine may read it, from its first byte on
            os.close(os.open(self.secrets_path, os.O_CREAT | os.O_WRONLY, 0o600))
            self.secrets_path.chmod(0o600)
            with self.secrets_path.open("w", encoding="utf-8") as file:
                json.dump(secrets, file, indent=4)
