import tkinter as tk
from collections.abc import Callable

from modules.ui.AskWindow import AskWindow
from modules.ui.WindowTools import WindowTools
from modules.util.config.errors import ConfigError
from modules.viewModel.PresetLibrary import Preset, PresetChangedError, PresetTakenError
from modules.viewModel.Session import Session


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
            question = f"{self._session.name} has been changed. Open {name} and lose the changes?"
            if AskWindow(self._window, self._tools, "Open a preset", question, ("Cancel", "Open")).ask() != "Open":
                return
        news: list[str] = []
        if self._session.open(preset, news.append):
            news = news or [f"{preset.name} is open."]
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
        buttons = ("Save as …", "Replace", "Cancel")
        answer = AskWindow(self._window, self._tools, "Save", f"{error}. Replace what it is now?", buttons).ask()
        if answer == "Save as …":
            self.save_as()
        elif answer == "Replace":
            try:
                self._tell_saved(self._presets.save(self._session.form.config, replace=True))
            except ConfigError as trouble:
                self._say(str(trouble))

    def _tell_saved(self, preset: Preset) -> None:
        """With what stands in fields and was not saved, as it is wrong."""
        self._session.settings.preset = preset.key
        refused = self._session.refused()
        self._say(f"{preset.name} is saved{', but ' if refused else ''}{'; '.join(refused)}.")

    def save_as(self) -> None:
        """Asks for a name and writes an own preset; asks again before one is replaced."""
        window = AskWindow(
            self._window, self._tools, "Save as", "Name of the preset, with / between folders:",
            ("Save", "Replace", "Cancel"), self._presets.suggestion, self._try_to_save,
        )  # fmt: skip
        window.buttons["Replace"].pack_forget()
        self.asking = window
        window.ask()
        self._refresh()

    def _try_to_save(self, answer: str, text: str) -> str:
        if answer == "Cancel":
            return ""
        try:
            self._tell_saved(self._presets.save_as(text, self._session.form.config, replace=answer == "Replace"))
        except PresetTakenError as error:
            self.asking.buttons["Replace"].pack(side="left", padx=(self._tools.theme.px(8), 0))
            return f"{error}; replace it, or give another name"
        except ConfigError as error:
            return str(error)
        return ""

    def delete(self) -> None:
        """Removes the open preset, which must be the user's own, if that is really wanted."""
        preset = self._presets.current
        assert preset is not None
        question = f"Delete the preset {preset.name}? Its file is removed; the options stay as they are shown."
        if AskWindow(self._window, self._tools, "Delete a preset", question, ("Cancel", "Delete")).ask() != "Delete":
            return
        try:
            self._presets.delete(preset)
        except ConfigError as error:
            self._say(str(error))
        else:
            self._session.settings.preset = ""
            self._say(f"{preset.name} is deleted.")
        self._refresh()
