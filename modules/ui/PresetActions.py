import tkinter as tk
from collections.abc import Callable

from modules.ui.AskWindow import AskWindow
from modules.ui.WindowTools import WindowTools
from modules.util.config.errors import ConfigError
from modules.util.texts import later, tr
from modules.viewModel.PresetLibrary import Preset, PresetChangedError, PresetTakenError
from modules.viewModel.Session import Session

SAVE, SAVE_AS, REPLACE = later("Save"), later("Save as …"), later("Replace")
OPEN, DELETE, CANCEL = later("Open"), later("Delete"), later("Cancel")


class PresetActions:
    """Opens, saves and deletes presets, and asks first wherever something would be lost.

    Args:
        window: over which it asks.
        session: whose presets they are.
        say: shows a line.
        refresh: shows what preset is open, after a change of it.

    Attributes:
        asking: the window that asked last for a name.
    """

    def __init__(
        self,
        window: tk.Misc,
        tools: WindowTools,
        session: Session,
        say: Callable[[str], None],
        refresh: Callable[[], None],
    ) -> None:
        self._window, self._tools, self._say, self._refresh = window, tools, say, refresh
        self._session, self._presets = session, session.presets
        self.asking: AskWindow | None = None

    def open(self, name: str) -> None:
        """Opens a preset; changes that would be lost are asked about."""
        preset = self._presets.find(name)
        if preset is None:
            return
        if self._session.is_modified:
            question = tr(
                "{preset} has been changed. Open {other} and lose the changes?",
                preset=self._session.name, other=preset.title,
            )  # fmt: skip
            if AskWindow(self._window, self._tools, tr("Open a preset"), question, (CANCEL, OPEN)).ask() != OPEN:
                return
        news: list[str] = []
        if self._session.open(preset, news.append):
            news = news or [tr("{preset} is open.", preset=preset.name)]
        self._say(" ".join(news))

    def save(self) -> None:
        """Writes the preset; one that came with the program gets another name."""
        if not self._presets.can_save:
            self.save_as()
            return
        try:
            self._tell_saved(self._presets.save(self._session.form.config))
        except PresetChangedError as error:
            self._ask_about(error)
        except ConfigError as error:
            self._say(str(error))
        self._refresh()

    def _ask_about(self, error: PresetChangedError) -> None:
        """What is to become of a preset that another program has changed."""
        buttons = (SAVE_AS, REPLACE, CANCEL)
        question = tr("{error}. Replace what it is now?", error=error)
        answer = AskWindow(self._window, self._tools, tr(SAVE), question, buttons).ask()
        if answer == SAVE_AS:
            self.save_as()
        elif answer == REPLACE:
            try:
                self._tell_saved(self._presets.save(self._session.form.config, replace=True))
            except ConfigError as trouble:
                self._say(str(trouble))

    def _tell_saved(self, preset: Preset) -> None:
        """With what stands in fields and was not saved, as it is wrong."""
        self._session.settings.preset = preset.key
        refused = self._session.refused()
        if refused:
            self._say(tr("{preset} is saved, but {refused}.", preset=preset.name, refused="; ".join(refused)))
        else:
            self._say(tr("{preset} is saved.", preset=preset.name))

    def save_as(self) -> None:
        """Asks for a name and writes an own preset; asks again before one is replaced."""
        window = AskWindow(
            self._window, self._tools, tr("Save as"), tr("Name of the preset, with / between folders:"),
            (SAVE, REPLACE, CANCEL), self._presets.suggestion, self._try_to_save,
        )  # fmt: skip
        window.buttons[REPLACE].pack_forget()
        self.asking = window
        window.ask()
        self._refresh()

    def _try_to_save(self, answer: str, text: str) -> str:
        if answer == CANCEL:
            return ""
        try:
            self._tell_saved(self._presets.save_as(text, self._session.form.config, replace=answer == REPLACE))
        except PresetTakenError as error:
            self.asking.buttons[REPLACE].pack(side="left", padx=(self._tools.theme.px(8), 0))
            return tr("{error}; replace it, or give another name", error=error)
        except ConfigError as error:
            return str(error)
        return ""

    def delete(self) -> None:
        """Removes the open preset, which must be the user's own, if that is really wanted."""
        preset = self._presets.current
        assert preset is not None
        question = tr(
            "Delete the preset {preset}? Its file is removed; the options stay as they are shown.", preset=preset.name
        )
        if AskWindow(self._window, self._tools, tr("Delete a preset"), question, (CANCEL, DELETE)).ask() != DELETE:
            return
        try:
            self._presets.delete(preset)
        except ConfigError as error:
            self._say(str(error))
        else:
            self._session.settings.preset = ""
            self._say(tr("{preset} is deleted.", preset=preset.name))
        self._refresh()
