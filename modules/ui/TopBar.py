import tkinter as tk
from collections.abc import Callable
from tkinter import ttk

from modules.ui.PresetActions import PresetActions
from modules.ui.SearchField import SearchField
from modules.ui.SelectControl import SELECT_ROOM, SelectControl
from modules.ui.ShortLabel import ShortButton
from modules.ui.TabBar import TabBar
from modules.ui.widgets import enable
from modules.ui.WindowTools import WindowTools
from modules.util.texts import SYSTEM, language, languages, system_language, tr
from modules.viewModel.FieldHints import Choice
from modules.viewModel.Session import Session
from modules.viewModel.TrainHints import TrainHints
from modules.viewModel.UiSettings import ALL, BASIC, SCALES, THEMES

OPTIONS = ("model_type", "training_method")
# how the room is shared: preset, save, save as, model family, method; search, basic or all, looks
LEFT_SHARES, RIGHT_SHARES = (22, 0, 0, 22, 13), (1, 0, 0)
# where there is less room than this, the search has a line of its own, so that names can be read
ONE_LINE_WIDTH = 1100
NARROW = 9
# no preset can be called so
DELETE = ":delete"


class TopBar(ttk.Frame):
    """Presets, model family, training method, search, and what is shown how.

    Args:
        show_view: shows basic or all options.
        show_theme: takes other colours and another size of everything, in percent.
        go_to: shows an option, by its path.
        show_language: takes the texts of another language, by its code.

    Attributes:
        preset: the button that opens the list of presets; its text is the open one, with • if it has been changed.
        options: path -> control.
        search: the search field.
        views: basic or all options.
    """

    def __init__(
        self,
        parent: tk.Misc,
        tools: WindowTools,
        session: Session,
        hints: TrainHints,
        presets: PresetActions,
        show_view: Callable[[str], None],
        show_theme: Callable[[str, int], None],
        go_to: Callable[[str], None],
        show_language: Callable[[str], None],
    ) -> None:
        super().__init__(parent, style="Window.TFrame")
        self._tools, self._session, self._presets, self._show_theme = tools, session, presets, show_theme
        self._show_language = show_language
        form, theme = session.form, tools.theme
        left, right = (ttk.Frame(self, style="Window.TFrame") for _ in range(2))
        self.preset = ShortButton(left, "", self._list_presets, "Window.Select.TButton", theme.px(SELECT_ROOM), NARROW)
        self.preset.bind("<Down>", lambda _: self._list_presets())
        tools.tooltip.attach(self.preset, lambda: tr("Preset: {preset}", preset=session.title))
        self.save = ttk.Button(left, text=tr("Save"), style="Window.TButton", command=presets.save)
        tools.tooltip.attach(
            self.save, lambda: tr("Writes the preset (Ctrl+S). Those that came with the program stay.")
        )
        self.save_as = ttk.Button(left, text=tr("Save as …"), style="Window.TButton", command=presets.save_as)
        self.options: dict[str, SelectControl] = {}
        for path in OPTIONS:
            one = form.fields[path]
            control = self.options[path] = SelectControl(
                left, one, hints, tools, lambda text, path=path: form.set_text(path, text)
            )
            control.button.configure(width=NARROW, style="Window.Select.TButton")
            tools.tooltip.attach(control.button, lambda path=path: f"{path}: {form.text(path)}\n{hints.help(path)}")
        self._looks = ttk.Button(right, text="⚙", style="Window.TButton", width=3, command=self._list_looks)
        tools.tooltip.attach(self._looks, lambda: tr("Light or dark, the size of everything, and the language"))
        self.views = TabBar(right, theme, (BASIC, ALL), show_view)
        self.search = SearchField(right, tools, form, go_to)
        controls = (control.frame for control in self.options.values())
        self._lay(left, (self.preset, self.save, self.save_as, *controls), LEFT_SHARES)
        self._lay(right, (self.search, self.views, self._looks), RIGHT_SHARES)
        self._halves, self._lines = (left, right), 0
        self._arrange(ONE_LINE_WIDTH)
        self.bind("<Configure>", lambda event: self._arrange(event.width / theme.scale))
        self.refresh()

    def refresh(self) -> None:
        """Shows the preset, the model family and the method as they are."""
        self.preset.show(self._session.title)
        enable(self.save, self._session.is_modified)
        for path, control in self.options.items():
            control.show(self._session.form.text(path), False)
        self.views.mark(self._session.settings.view)

    def _lay(self, line: ttk.Frame, widgets: tuple[tk.Widget, ...], shares: tuple[int, ...]) -> None:
        for place, (widget, share) in enumerate(zip(widgets, shares, strict=True)):
            widget.grid(row=0, column=place, sticky="we", padx=(self._tools.theme.px(6) if place else 0, 0))
            line.grid_columnconfigure(place, weight=share)

    def _arrange(self, room: float) -> None:
        lines, (left, right), gap = 1 if room >= ONE_LINE_WIDTH else 2, self._halves, self._tools.theme.px(6)
        if lines == self._lines:
            return
        self._lines = lines
        left.grid(row=0, column=0, sticky="we")
        right.grid(
            row=lines - 1, column=2 - lines, sticky="we", padx=(gap * (2 - lines), 0), pady=(gap * (lines - 1), 0)
        )
        self.grid_columnconfigure(0, weight=57)
        self.grid_columnconfigure(1, weight=26 if lines == 1 else 0)

    def _list_presets(self) -> None:
        library = self._session.presets
        choices = [Choice(preset.key, preset.title) for preset in library.presets()]
        if not choices:
            choices = [Choice("", tr("There are no presets."), tr("Save one with Save as …"))]
        current = library.current
        if current is not None and library.can_save:
            choices.append(Choice(DELETE, tr("Delete the preset {preset} …", preset=current.name)))
        self._tools.popup.open(self.preset, choices, current.key if current else "", self._take_preset)

    def _take_preset(self, key: str) -> None:
        if key == DELETE:
            self._presets.delete()
        else:
            self._presets.open(key)

    def _list_looks(self) -> None:
        settings = self._session.settings
        looks = [("theme", name, tr(name), name == settings.theme) for name in THEMES]
        looks += [("scale", size, f"{size} %", size == settings.scale) for size in SCALES]
        known = languages()
        follows = settings.language == SYSTEM
        looks += [("language", SYSTEM, tr("System ({language})", language=known[system_language()]), follows)]
        looks += [("language", code, name, not follows and code == language()) for code, name in known.items()]
        choices = [Choice(f"{what} {value}", f"{'✓ ' if now else '    '}{name}") for what, value, name, now in looks]
        self._tools.popup.open(self._looks, choices, f"theme {settings.theme}", self._take_looks)

    def _take_looks(self, text: str) -> None:
        what, _, value = text.partition(" ")
        if what == "language":
            self._show_language(value)
        elif what == "theme":
            self._show_theme(value, self._session.settings.scale)
        else:
            self._show_theme(self._session.settings.theme, int(value))
