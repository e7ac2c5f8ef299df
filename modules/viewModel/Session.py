from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from modules.util.config.errors import ConfigError
from modules.util.config.load import load_train_config
from modules.util.config.read_json import read_json
from modules.util.config.SecretsConfig import SecretsConfig
from modules.util.config.write_json import write_json
from modules.util.texts import tr
from modules.viewModel.field_text import text_of
from modules.viewModel.PresetLibrary import Preset, PresetLibrary
from modules.viewModel.TrainForm import TrainForm
from modules.viewModel.UiSettings import UiSettings

BUILT_IN, OWN, SETTINGS, SECRETS = "training_presets", "user_presets", "ui_settings.json", "secrets.json"
RUNS = "ui_runs"
FIRST_PRESET = "Tiny/tiny LoRA"
LONGEST = 40


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
        # by what is kept, as it is in its file
        self._kept: dict[str, dict[str, Any]] = {"tokens": {}}
        self._broken_secrets = ""

    def restore(self, warn: Callable[[str], None]) -> None:
        """Opens what was open last, with what had been changed; the first time, a preset that can be tried at once."""
        preset = self.presets.find(self.settings.preset) or self.presets.find(FIRST_PRESET)
        if preset is not None:
            self.open(preset, warn)
        if (last := self.presets.last_session()) is not None:
            self.form.replace(last)
        self._read_secrets(warn)
        self._kept = self._now()

    def open(self, preset: Preset, warn: Callable[[str], None]) -> bool:
        """Opens a preset. False, and `warn` is told why, if it can't be read; then nothing changes."""
        try:
            config = self.presets.open(preset, warn)
        except ConfigError as error:
            warn(str(error))
            return False
        if config.secrets != SecretsConfig():
            warn(tr("{preset} has access tokens in it. They are not used; yours stay.", preset=preset.name))
        self.settings.preset = preset.key
        self.form.replace(config)
        return True

    def open_config(self, path: Path, warn: Callable[[str], None]) -> None:
        """Edits the config of a file that is no preset, as that of a run. It is saved under a name of its own.

        Raises:
            ConfigError: naming what is wrong with it; then nothing changes.
        """
        config = load_train_config(path, warn=warn)
        self.presets.leave(config)
        self.settings.preset = ""
        self.form.replace(config)

    @property
    def name(self) -> str:
        """Of the open preset."""
        return self.presets.current.name if self.presets.current else tr("no preset")

    @property
    def title(self) -> str:
        """The same, with a mark if it has been changed."""
        return f"{self.name} •" if self.is_modified else self.name

    @property
    def is_modified(self) -> bool:
        """Whether the config differs from the preset, or something was typed that it refused."""
        return self.form.has_refused_texts or self.presets.is_modified(self.form.config)

    @property
    def secrets(self) -> dict[str, Any]:
        """The user's access tokens, as JSON."""
        return self.form.config.secrets.to_dict(secrets=True, sparse=True)

    def refused(self) -> list[str]:
        """For each field whose text is not in the config: what the config keeps there, and why."""
        found = []
        for path, one in self.form.fields.items():
            if error := self.form.error(path):
                value = tr("what it was") if one.declared.secret else text_of(self.form.value(path)) or tr("nothing")
                value = value if len(value) <= LONGEST else f"{value[:LONGEST]}…"
                found.append(
                    tr(
                        "“{option}” keeps {value}: {why}",
                        option=self.form.title(path), value=value, why=" ".join(error.split()),
                    )
                )  # fmt: skip
        return found

    def keep(self) -> list[str]:
        """Keeps for the next time what has changed since the last time. Returns what could not be kept, for people."""
        troubles, now = [], self._now()
        for what, write in (
            ("settings", lambda: self.settings.save(self._settings_path)),
            ("config", lambda: self.presets.keep_session(self.form.config)),
            ("tokens", self._write_secrets),
        ):
            if self._kept.get(what) == now[what]:
                continue
            try:
                write()
                self._kept[what] = now[what]
            except (ConfigError, OSError) as error:
                troubles.append(str(error))
        return troubles

    def close(self) -> list[str]:
        """The same for all of it; what was typed and refused is kept nowhere."""
        self._kept = {"tokens": self._kept["tokens"]}
        return [*self.keep(), *self.refused()]

    def _now(self) -> dict[str, dict[str, Any]]:
        config = self.form.config.to_dict(sparse=True)
        return {"settings": asdict(self.settings), "config": config, "tokens": self.secrets}

    def _read_secrets(self, warn: Callable[[str], None]) -> None:
        if not self.secrets_path.exists():
            return
        try:
            self.form.config.secrets = SecretsConfig.from_dict(read_json(self.secrets_path), SECRETS)
        except ConfigError as error:
            self._broken_secrets = str(error)
            warn(str(error))
        else:
            self.form.changed("")

    def _write_secrets(self) -> None:
        if self._broken_secrets and self.secrets_path.exists():
            text = tr(
                "access tokens, as their file must be mended or removed first: {error}", error=self._broken_secrets
            )
            raise ConfigError(text)
        write_json(self.secrets_path, self.secrets, private=True)
