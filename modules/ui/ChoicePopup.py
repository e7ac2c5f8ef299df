import tkinter as tk
from collections.abc import Callable, Sequence
from tkinter import ttk

from modules.ui.screen_area import place_beside, screen_area
from modules.ui.Theme import Theme, screen_position
from modules.viewModel.FieldHints import Choice

MOST_ROWS = 14
# in pixels at 100 %
REASON_ROOM = 40


class ChoicePopup:
    """The list that opens below a field. What can't be chosen is grey, and says why when it is reached.

    Arrows move, letters jump, Return takes, Escape or a click elsewhere closes. One serves all fields.

    Args:
        root: the window.
        theme: for colours and fonts.

    Attributes:
        listbox: while it is open, the list.
    """

    def __init__(self, root: tk.Misc, theme: Theme) -> None:
        self._root, self._theme = root, theme
        self._window: tk.Toplevel | None = None
        self.listbox: tk.Listbox | None = None
        self._choices: Sequence[Choice] = ()
        self._picked: Callable[[str], None] = lambda text: None
        self._back: tk.Misc | None = None
        self._typed, self._typed_at = "", 0
        self._at = (0, 0, 0, 0), (0, 0, 0, 0)

    @property
    def is_open(self) -> bool:
        """Whether it is shown."""
        return self._window is not None

    def open(self, below: tk.Misc, choices: Sequence[Choice], current: str, picked: Callable[[str], None]) -> None:
        """Shows choices.

        Args:
            below: the widget under which it opens, and which gets the focus back.
            choices: what is shown.
            current: text of the one that is marked at first.
            picked: gets the text of what is taken.
        """
        self.close()
        theme = self._theme
        self._choices, self._picked, self._back = choices, picked, below
        window = self._window = tk.Toplevel(below, background=theme.color("field_line"), borderwidth=1)
        window.withdraw()
        window.overrideredirect(True)
        window.attributes("-topmost", True)
        inside = tk.Frame(window, background=theme.color("field"))
        inside.pack(fill="both", expand=True, padx=1, pady=1)
        box = self.listbox = tk.Listbox(
            inside, font=theme.font("normal"), background=theme.color("field"), foreground=theme.color("text"),
            selectbackground=theme.color("accent"), selectforeground=theme.color("on_accent"), borderwidth=0,
            highlightthickness=0, activestyle="none", height=min(len(choices), MOST_ROWS), exportselection=False,
            width=max((len(choice.label) for choice in choices), default=1) + 2,
        )  # fmt: skip
        for place, choice in enumerate(choices):
            box.insert("end", f" {choice.label} ")
            if choice.why_not:
                box.itemconfigure(place, foreground=theme.color("faint"), selectbackground=theme.color("button"),
                                  selectforeground=theme.color("muted"))  # fmt: skip
        box.grid(row=0, column=0, sticky="nswe")
        inside.grid_columnconfigure(0, weight=1)
        self._bar = ttk.Scrollbar(inside, command=box.yview)
        box.configure(yscrollcommand=self._bar.set)
        self._reason = tk.Label(
            inside, font=theme.font("small"), background=theme.color("field"), foreground=theme.color("error"),
            justify="left", anchor="w", padx=6,
        )  # fmt: skip
        texts = [choice.text for choice in choices]
        self._place(below)
        self._mark(texts.index(current) if current in texts else 0)
        self._bind_keys(box, len(choices))
        window.bind("<ButtonPress>", self._click_outside)
        box.focus_force()
        window.update_idletasks()
        try:
            window.grab_set()
        except tk.TclError:
            # another program holds the pointer; then a click elsewhere does not close it, Escape does
            pass

    def _bind_keys(self, box: tk.Listbox, count: int) -> None:
        for keys, action in (
            (("<Return>", "<KP_Enter>", "<ButtonRelease-1>"), self.take),
            (("<Escape>", "<Tab>"), self.close),
        ):
            for key in keys:
                box.bind(key, lambda _, action=action: action())
        box.bind("<Motion>", lambda event: self._mark(box.nearest(event.y), False))
        box.bind("<<ListboxSelect>>", lambda _: self._mark(self._place_now()))
        for key, move in (("<Up>", -1), ("<Down>", 1), ("<Prior>", -MOST_ROWS), ("<Next>", MOST_ROWS)):
            box.bind(key, lambda _, move=move: self._move(move))
        for key, move in (("<Home>", -count), ("<End>", count)):
            box.bind(key, lambda _, move=move: self._move(move))
        box.bind("<Key>", self._jump)

    def choose(self, text: str) -> None:
        """Moves to a choice and takes it, as a click does."""
        self._mark([choice.text for choice in self._choices].index(text))
        self.take()

    def take(self) -> None:
        """Takes the marked choice; one that can't be chosen stays."""
        place = self._place_now()
        if not self.is_open or not 0 <= place < len(self._choices) or self._choices[place].why_not:
            return
        text, picked = self._choices[place].text, self._picked
        self.close()
        picked(text)

    def close(self) -> None:
        """Closes it, and gives the focus back."""
        window, self._window, self.listbox = self._window, None, None
        if window is not None:
            window.grab_release()
            window.destroy()
            if self._back is not None and self._back.winfo_exists():
                self._back.focus_force()

    def _place(self, below: tk.Misc) -> None:
        """Below the field, or above it; a list that has room on neither side gets fewer rows."""
        assert self._window is not None and self.listbox is not None
        anchor, area = screen_position(below), screen_area(below)
        # what the reason of a choice takes, too
        room = max(area[3] - anchor[3], anchor[1] - area[1]) - self._theme.px(REASON_ROOM)
        self._window.update_idletasks()
        row = max(1, self.listbox.winfo_reqheight() // int(self.listbox.cget("height")))
        rows = max(2, min(int(self.listbox.cget("height")), room // row))
        self.listbox.configure(height=rows)
        if rows < len(self._choices):
            self._bar.grid(row=0, column=1, sticky="ns")
        self._window.update_idletasks()
        wide = min(max(self._window.winfo_reqwidth(), anchor[2] - anchor[0]), area[2] - area[0])
        high = self._window.winfo_reqheight()
        self._at = anchor, area
        left, top = place_beside(anchor, area, (wide, high), 2)
        self._window.geometry(f"{wide}x{high}+{left}+{top}")
        self._window.deiconify()
        self._window.lift()

    def _place_now(self) -> int:
        selected = self.listbox.curselection() if self.listbox is not None else ()
        return selected[0] if selected else -1

    def _move(self, by: int) -> str:
        self._mark(max(0, min(len(self._choices) - 1, self._place_now() + by)))
        return "break"

    def _mark(self, place: int, scroll: bool = True) -> None:
        box = self.listbox
        if box is None or not 0 <= place < len(self._choices):
            return
        box.selection_clear(0, "end")
        box.selection_set(place)
        if scroll:
            box.see(place)
        reason = self._choices[place].why_not
        assert self._window is not None
        if reason:
            self._reason.configure(text=reason, wraplength=max(200, box.winfo_width()))
            self._reason.grid(row=1, column=0, columnspan=2, sticky="we", pady=(0, 4))
        elif self._reason.winfo_ismapped():
            self._reason.grid_remove()
        else:
            return
        self._window.update_idletasks()
        size = self._window.winfo_width(), self._window.winfo_reqheight()
        left, top = place_beside(*self._at, size, 2)
        self._window.geometry(f"{size[0]}x{size[1]}+{left}+{top}")

    def _jump(self, event: tk.Event) -> str | None:
        if not event.char or not event.char.isprintable():
            return None
        typing = event.time - self._typed_at < 1000
        # a space belongs to what is being typed; alone it takes what is marked
        if event.char == " " and not (typing and self._typed):
            self.take()
            return "break"
        self._typed = (self._typed if typing else "") + event.char.lower()
        self._typed_at = event.time
        for place, choice in enumerate(self._choices):
            if choice.label.lower().lstrip(" ✓").startswith(self._typed):
                self._mark(place)
                break
        return "break"

    def _click_outside(self, event: tk.Event) -> None:
        if self._window is None:
            return
        left, top, right, bottom = screen_position(self._window)
        if not (left <= event.x_root < right and top <= event.y_root < bottom):
            self.close()
