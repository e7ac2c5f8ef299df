import tkinter as tk
from tkinter import ttk
from typing import TYPE_CHECKING

from modules.ui.SearchField import SearchField
from modules.ui.SelectControl import SelectControl
from modules.ui.TabBar import TabBar
from modules.viewModel.FieldHints import Choice
from modules.viewModel.UiSettings import ALL, BASIC, SCALES, THEMES

if TYPE_CHECKING:
    from modules.ui.App import App

OPTIONS = ("model_type", "training_method")
# how the room is shared: preset, save, save as, model family, method, search, basic or all, looks
SHARES = (22, 0, 0, 22, 13, 26, 0, 0)
NARROW = 9


class TopBar(ttk.Frame):
    """Presets, model family, training method, search, and what is shown how.

    Attributes:
        preset: the button that opens the list of presets; its text is the open one, with • if it has been changed.
        options: path -> control.
        search: the search field.
        views: basic or all options.
    """

    def __init__(self, parent: tk.Misc, app: "App") -> None:
        super().__init__(parent, style="Window.TFrame")
        self._app = app
        px, tools = app.theme.px, app.tools
        self.preset = ttk.Button(self, style="Window.Select.TButton", width=NARROW, command=self._list_presets)
        self.preset.bind("<Down>", lambda _: self._list_presets())
        tools.tooltip.attach(self.preset, lambda: f"Preset: {app.session.title}")
        self.save = ttk.Button(self, text="Save", style="Window.TButton", command=app.save)
        tools.tooltip.attach(self.save, lambda: "Writes the preset (Ctrl+S). Those that came with the program stay.")
        self.save_as = ttk.Button(self, text="Save as …", style="Window.TButton", command=app.save_as)
        self.options: dict[str, SelectControl] = {}
        for path in OPTIONS:
            one = app.form.fields[path]
            control = self.options[path] = SelectControl(
                self, one, app.hints, tools, lambda text, path=path: app.form.set_text(path, text)
            )
            control.button.configure(width=NARROW, style="Window.Select.TButton")
            tools.tooltip.attach(control.button, lambda path=path: f"{path}\n{app.hints.help(path)}")
        self._looks = ttk.Button(self, text="⚙", style="Window.TButton", width=3, command=self._list_looks)
        tools.tooltip.attach(self._looks, lambda: "Light or dark, and the size of everything")
        self.views = TabBar(self, app.theme, (BASIC, ALL), app.show_view)
        self.search = SearchField(self, tools, app.form, app.go_to)
        controls = (control.frame for control in self.options.values())
        row = (self.preset, self.save, self.save_as, *controls, self.search, self.views, self._looks)
        for place, (widget, share) in enumerate(zip(row, SHARES, strict=True)):
            widget.grid(row=0, column=place, sticky="we", padx=(0, px(6) if place < len(row) - 1 else 0))
            self.grid_columnconfigure(place, weight=share)
        self.refresh()

    def refresh(self) -> None:
        """Shows the preset, the model family and the method as they are."""
        self.preset.configure(text=self._app.session.title)
        self.save.state(["!disabled" if self._app.session.is_modified else "disabled"])
        for path, control in self.options.items():
            control.show(self._app.form.text(path), False)
        self.views.mark(self._app.settings.view)

    def _list_presets(self) -> None:
        presets = self._app.presets.presets()
        choices = [
            Choice(preset.name, preset.name if preset.built_in else f"{preset.name} (own)") for preset in presets
        ]
        if not choices:
            choices = [Choice("", "There are no presets.", "Save one with Save as …")]
        current = self._app.presets.current
        self._app.tools.popup.open(self.preset, choices, current.name if current else "", self._app.open_preset)

    def _list_looks(self) -> None:
        settings = self._app.settings
        choices = [Choice(f"theme {name}", f"{'✓ ' if name == settings.theme else '    '}{name}") for name in THEMES]
        choices += [Choice(f"scale {size}", f"{'✓ ' if size == settings.scale else '    '}{size} %") for size in SCALES]
        self._app.tools.popup.open(self._looks, choices, f"theme {settings.theme}", self._take_looks)

    def _take_looks(self, text: str) -> None:
        what, _, value = text.partition(" ")
        if what == "theme":
            self._app.show_theme(value, self._app.settings.scale)
        else:
            self._app.show_theme(self._app.settings.theme, int(value))
