import tkinter as tk
from collections.abc import Callable
from functools import partial
from tkinter import font as tk_font
from tkinter import ttk

import customtkinter as ctk
from PIL import Image, ImageDraw, ImageTk

COLORS = {
    # name: (light, dark)
    "window": ("#e9ebee", "#1f2124"),
    "card": ("#f8f9fa", "#2a2d31"),
    "line": ("#cfd4da", "#3d4248"),
    "field": ("#ffffff", "#35393e"),
    "field_line": ("#a3abb4", "#5c646d"),
    "disabled": ("#eceef0", "#2e3135"),
    "text": ("#1b1f24", "#e3e8ee"),
    "muted": ("#59626c", "#a4adb8"),
    "faint": ("#858e97", "#828b95"),
    "accent": ("#2f7fc1", "#2f7cc0"),
    "accent_hover": ("#276da6", "#3b8bd2"),
    "on_accent": ("#ffffff", "#ffffff"),
    "button": ("#dfe3e8", "#3a3f45"),
    "button_hover": ("#d2d8de", "#474d54"),
    "error": ("#b3261e", "#ff8a80"),
    "error_field": ("#fdecea", "#4a2b2b"),
    "warning": ("#7a5200", "#e5b567"),
    "flash": ("#fff3c4", "#57491a"),
    "tooltip": ("#2a2d31", "#e3e8ee"),
    "on_tooltip": ("#f1f4f7", "#1b1f24"),
}
SIZES = {"normal": 13, "small": 12, "heading": 15, "bold": 13, "mono": 12}
WEIGHTS = {"heading": "bold", "bold": "bold"}
FONTS = {
    "normal": "TkDefaultFont",
    "small": "AppSmall",
    "heading": "AppHeading",
    "bold": "AppBold",
    "mono": "TkFixedFont",
}
# shapes are drawn this much larger and scaled down, which smooths their edges
OVERSAMPLE = 4
# between two looks at whether the system is light or dark
SYSTEM_LOOK_MS = 2000


class Theme:
    """Colours, fonts and the looks of ttk's widgets, light or dark, at any scale.

    customtkinter's widgets take 7 to 10 ms each to make, ttk's a fiftieth of that; a form has a hundred. So fields are
    ttk widgets drawn like customtkinter's, from small pictures that are stretched between their corners.

    Args:
        root: the window.

    Attributes:
        dark: whether it is dark now.
        scale: of everything in the window; 1 is 100 %.
    """

    def __init__(self, root: ctk.CTk) -> None:
        self._root, self._style = root, ttk.Style(root)
        self._images: dict[str, list[ImageTk.PhotoImage]] = {}
        self._listeners: list[tuple[tk.Misc, Callable[[], None]]] = []
        self.dark, self.scale, self._percent = False, 1.0, 100
        _adopt_colors()
        # on Linux each look starts a program; customtkinter looks 33 times a second
        ctk.AppearanceModeTracker.update_loop_interval = SYSTEM_LOOK_MS
        family = ctk.ThemeManager.theme["CTkFont"]["family"]
        existing = tk_font.names(root)
        # a font that Python forgets is gone from Tk, too
        self._own_fonts = [tk_font.Font(root, name=name) for name in FONTS.values() if name not in existing]
        for name in ("TkDefaultFont", "TkTextFont", "TkMenuFont", "AppSmall", "AppHeading", "AppBold"):
            tk_font.nametofont(name, root).configure(family=family)

    def color(self, name: str) -> str:
        """A colour by its name in COLORS, as it is now."""
        return COLORS[name][self.dark]

    def font(self, name: str) -> str:
        """Name of a Tk font, which follows the scale: normal, small, heading, bold or mono."""
        return FONTS[name]

    def px(self, size: float) -> int:
        """Pixels on the screen for a size at 100 %."""
        return max(1, round(size * self.scale))

    def paint(self, box: tk.Text, place: str, ink: str = "text") -> None:
        """Gives a field of many lines the colours of now.

        Args:
            box: the field.
            place, ink: names of the colours behind the text and of it.
        """
        color = self.color
        box.configure(
            background=color(place), foreground=color(ink), insertbackground=color("text"),
            selectbackground=color("accent"), selectforeground=color("on_accent"),
            inactiveselectbackground=color("accent"), highlightbackground=color("field_line"),
            highlightcolor=color("accent"),
        )  # fmt: skip

    def listen(self, widget: tk.Misc, listener: Callable[[], None]) -> None:
        """Calls `listener` after colours or scale have changed, until a widget is gone; for what ttk does not draw."""
        self._listeners = [(one, call) for one, call in self._listeners if one.winfo_exists()]
        self._listeners.append((widget, listener))

    def apply(self, theme: str, percent: int) -> None:
        """Takes a theme ("system", "light" or "dark") and a scale in percent."""
        ctk.set_appearance_mode(theme)
        if percent != self._percent:
            ctk.set_widget_scaling(percent / 100)
            self._percent = percent
        self.dark = ctk.get_appearance_mode() == "Dark"
        # the factor that customtkinter uses itself, with what a screen of many pixels asks for
        self.scale = ctk.ScalingTracker.get_widget_scaling(self._root)
        for name, size in SIZES.items():
            tk_font.nametofont(FONTS[name], self._root).configure(
                size=-self.px(size), weight=WEIGHTS.get(name, "normal")
            )
        for name in ("TkTextFont", "TkMenuFont"):
            tk_font.nametofont(name, self._root).configure(size=-self.px(SIZES["normal"]))
        name = f"{'dark' if self.dark else 'light'}-{self.scale:g}"
        if name not in self._style.theme_names():
            self._style.theme_create(name, "clam")
            self._style.theme_use(name)
            self._images[name] = []
            self._draw(name)
        self._style.theme_use(name)
        self._root.configure(fg_color=self.color("window"))
        for widget, listener in list(self._listeners):
            if widget.winfo_exists():
                listener()

    def follow_system(self, theme: str) -> None:
        """Takes the colours that the system has changed to since; customtkinter's own widgets have them already."""
        if (ctk.get_appearance_mode() == "Dark") != self.dark:
            self.apply(theme, self._percent)

    def _draw(self, name: str) -> None:
        """Makes the pictures and styles of a ttk theme."""
        style, c = self._style, self.color
        style.configure(
            ".", background=c("card"), foreground=c("text"), font=FONTS["normal"], borderwidth=0, focuscolor=c("card"),
            troughcolor=c("card"), insertcolor=c("text"), selectbackground=c("accent"), selectforeground=c("on_accent"),
        )  # fmt: skip
        for place in ("window", "card"):
            prefix = "Window." if place == "window" else ""
            style.configure(f"{prefix}TFrame", background=c(place))
            style.configure(f"{prefix}TLabel", background=c(place))
            style.configure(f"{prefix}TPanedwindow", background=c(place))
            for kind, color, font in (
                ("Muted", "muted", "small"), ("Error", "error", "small"), ("Heading", "text", "heading"),
                ("Bold", "text", "bold"), ("Small", "text", "small"), ("Note", "warning", "small"),
            ):  # fmt: skip
                style.configure(f"{kind}.{prefix}TLabel", background=c(place), foreground=c(color), font=FONTS[font])
        style.configure("Flash.TLabel", background=c("flash"))
        style.configure("Hint.TLabel", background=c("field"), foreground=c("faint"))
        style.configure("Off.TLabel", foreground=c("faint"))
        style.configure("Line.TFrame", background=c("line"))
        style.configure(
            "Sash", sashthickness=self.px(8), gripcount=6, background=c("window"), bordercolor=c("window"),
            lightcolor=c("field_line"), darkcolor=c("window"),
        )  # fmt: skip

        style.layout("Card.TFrame", [("Card", {"sticky": "nswe"})])
        self._element(name, "Card", self._box("card", "line", 8, behind="window"), 8)
        style.configure("Card.TFrame", background=c("card"))
        for prefix, behind in (("", "card"), ("Window.", "window")):
            self._draw_fields(name, prefix, behind)
            self._draw_buttons(name, prefix, behind)
            self._draw_scrollbars(name, prefix, behind)
        self._draw_switch(name)
        self._draw_tabs(name)
        self._draw_table()

    def _draw_fields(self, theme: str, prefix: str, behind: str) -> None:
        """What can be typed into or opens a list."""
        style, c, px = self._style, self.color, self.px
        box = partial(self._box, behind=behind)
        states = (
            ("disabled", box("disabled", "line", 6)),
            ("invalid", "focus", box("error_field", "error", 6, 2)),
            ("invalid", box("error_field", "error", 6)),
            ("focus", box("field", "accent", 6, 2)),
        )
        self._element(theme, f"{prefix}Field", box("field", "field_line", 6), 6, *states)
        text = _nest("Entry.padding", "Entry.textarea")
        style.layout(f"{prefix}TEntry", [(f"{prefix}Field", {"sticky": "nswe", "children": text})])
        style.configure(f"{prefix}TEntry", padding=(px(4), px(2)), background=c(behind))
        style.map(f"{prefix}TEntry", foreground=[("disabled", c("faint"))])

        disabled = self._arrow("line", "disabled")
        self._element(theme, f"{prefix}Arrow", self._arrow("muted", "field"), 0, ("disabled", disabled))
        label = [
            (f"{prefix}Arrow", {"side": "right", "sticky": ""}),
            ("Button.label", {"side": "left", "expand": "1", "sticky": "we"}),
        ]
        inner = [("Button.padding", {"sticky": "nswe", "children": label})]
        select = f"{prefix}Select.TButton"
        style.layout(select, [(f"{prefix}Field", {"sticky": "nswe", "children": inner})])
        style.configure(select, padding=(px(4), px(2)), anchor="w", background=c("field"))
        style.map(select, foreground=[("disabled", c("faint"))], background=[("disabled", c("disabled"))])

    def _draw_buttons(self, theme: str, prefix: str, behind: str) -> None:
        """Buttons with a face, and those that show one only under the pointer."""
        style, c, px = self._style, self.color, self.px
        box = partial(self._box, behind=behind)
        label = _nest("Button.padding", "Button.label")
        for kind, face, hover, color in (
            ("", "button", "button_hover", "text"),
            ("Accent.", "accent", "accent_hover", "on_accent"),
        ):
            element, button = f"{prefix}{kind}Face", f"{prefix}{kind}TButton"
            states = (
                ("disabled", box("disabled", "line", 6)),
                ("focus", box(hover, "text", 6, 2)),
                ("pressed", box(hover, hover, 6)),
                ("active", box(hover, hover, 6)),
            )
            self._element(theme, element, box(face, face, 6), 6, *states)
            style.layout(button, [(element, {"sticky": "nswe", "children": label})])
            style.configure(button, padding=(px(8), px(2)), foreground=c(color), anchor="center", background=c(face))
            style.map(
                button, foreground=[("disabled", c("faint"))],
                background=[("disabled", c("disabled")), ("focus", c(hover)), ("active", c(hover))],
            )  # fmt: skip
        element = f"{prefix}Clear"
        states = (("focus", box(behind, "accent", 6, 2)), ("active", box("button", "button", 6)))
        self._element(theme, element, box(behind, behind, 6), 3, *states)
        for kind, color, anchor, font in (("Clear", "muted", "center", "normal"), ("Line", "error", "w", "small")):
            button = f"{prefix}{kind}.TButton"
            style.layout(button, [(element, {"sticky": "nswe", "children": label})])
            style.configure(
                button, padding=(px(2), 0), foreground=c(color), anchor=anchor, font=FONTS[font], background=c(behind)
            )
            style.map(
                button, foreground=[("disabled", c("line"))],
                background=[("focus", c(behind)), ("active", c("button"))],
            )  # fmt: skip

    def _draw_scrollbars(self, theme: str, prefix: str, behind: str) -> None:
        style, c = self._style, self.color
        box = partial(self._box, radius=4, size=10, behind=behind)
        for way, sticky in (("Vertical", "ns"), ("Horizontal", "we")):
            thumb, bar = f"{prefix}{way}.thumb", f"{prefix}{way}.TScrollbar"
            states = (("disabled", box(behind, behind)), ("active", box("muted", "muted")))
            self._element(theme, thumb, box("field_line", "field_line"), 4, *states)
            trough = [(thumb, {"expand": "1", "sticky": "nswe"})]
            style.layout(bar, [(f"{way}.Scrollbar.trough", {"sticky": sticky, "children": trough})])
            style.configure(bar, relief="flat", troughrelief="flat", borderwidth=0)
            faces = ("troughcolor", "background", "bordercolor", "lightcolor", "darkcolor")
            style.configure(bar, **{face: c(behind) for face in faces})

    def _draw_switch(self, theme: str) -> None:
        style, c, px = self._style, self.color, self.px
        self._element(
            theme, "Switch", self._switch("field_line", 0), 0,
            ("disabled", "selected", self._switch("line", 1)), ("disabled", self._switch("line", 0)),
            ("selected", "focus", self._switch("accent", 1, True)), ("selected", self._switch("accent", 1)),
            ("focus", self._switch("field_line", 0, True)),
        )  # fmt: skip
        text = ("Checkbutton.padding", {"side": "left", "sticky": "nswe", "children": [("Checkbutton.label", {})]})
        style.layout("Switch.TCheckbutton", [("Switch", {"side": "left", "sticky": ""}), text])
        style.configure("Switch.TCheckbutton", padding=(px(6), 0), background=c("card"))
        style.map("Switch.TCheckbutton", background=[], foreground=[("disabled", c("faint"))])

    def _draw_tabs(self, theme: str) -> None:
        style, c, px = self._style, self.color, self.px
        for prefix, behind in (("", "window"), ("Card.", "card")):
            box = partial(self._box, behind=behind)
            states = (
                ("selected", "focus", box("accent", "text", 6, 2)),
                ("selected", box("accent", "accent", 6)),
                ("focus", box("button", "accent", 6, 2)),
                ("active", box("button", "button", 6)),
            )
            self._element(theme, f"{prefix}TabFace", box(behind, behind, 6), 6, *states)
            label, name = _nest("Radiobutton.padding", "Radiobutton.label"), f"{prefix}Tab.TRadiobutton"
            style.layout(name, [(f"{prefix}TabFace", {"sticky": "nswe", "children": label})])
            style.configure(name, padding=(px(6), px(2)), background=c(behind))
            faces = [("selected", c("accent")), ("focus", c("button")), ("active", c("button"))]
            style.map(name, foreground=[("selected", c("on_accent"))], background=faces)

    def _draw_table(self) -> None:
        """Rows and columns, of which rows can be chosen."""
        style, c, px = self._style, self.color, self.px
        faces = ("bordercolor", "lightcolor", "darkcolor")
        style.configure(
            "Treeview", background=c("card"), fieldbackground=c("card"), foreground=c("text"), font=FONTS["normal"],
            rowheight=px(24), borderwidth=0, relief="flat", **dict.fromkeys(faces, c("card")),
        )  # fmt: skip
        style.map("Treeview", background=[("selected", c("button"))], foreground=[("selected", c("text"))])
        style.configure(
            "Treeview.Heading", background=c("card"), foreground=c("muted"), font=FONTS["small"], relief="flat",
            borderwidth=0, padding=(px(4), px(2)), **dict.fromkeys(faces, c("card")),
        )  # fmt: skip
        style.map("Treeview.Heading", background=[("active", c("button"))])
        style.configure("TPanedwindow", background=c("window"))
        style.configure("Sash", sashthickness=px(8), gripcount=0, **dict.fromkeys(faces, c("window")))

    def _element(
        self, theme: str, name: str, image: ImageTk.PhotoImage, border: int, *states: tuple[object, ...]
    ) -> None:
        pictures = [image, *(state[-1] for state in states)]
        self._images[theme] += pictures
        edge = self.px(border) if border else 0
        # a stretched picture must not ask for room of its own
        size = {"width": 2 * edge, "height": 2 * edge} if border else {}
        self._style.element_create(name, "image", image, *states, border=edge, sticky="nswe", **size)

    def _box(
        self, fill: str, line: str, radius: int, width: int = 1, size: int = 60, behind: str = "card"
    ) -> ImageTk.PhotoImage:
        """A rectangle with round corners, whose middle is repeated to any size.

        It has no transparent pixels: under X11 each piece with one is read back from the screen, which takes seconds.
        """
        edge, k = max(self.px(size), 2 * self.px(radius) + 2), OVERSAMPLE
        picture = Image.new("RGB", (edge * k, edge * k), self.color(behind))
        ImageDraw.Draw(picture).rounded_rectangle(
            (0, 0, edge * k - 1, edge * k - 1), self.px(radius) * k, self.color(fill), self.color(line),
            self.px(width) * k,
        )  # fmt: skip
        return self._photo(picture, edge, edge)

    def _switch(self, track: str, on: int, ring: bool = False) -> ImageTk.PhotoImage:
        """A switch with its knob left (0) or right (1)."""
        k, high, gap = OVERSAMPLE, self.px(18) * OVERSAMPLE, self.px(3) * OVERSAMPLE
        wide = self.px(34) * k
        picture = Image.new("RGB", (wide, high), self.color("card"))
        draw = ImageDraw.Draw(picture)
        line = self.color("text") if ring else self.color(track)
        draw.rounded_rectangle((0, 0, wide - 1, high - 1), high // 2, self.color(track), line, self.px(2) * k)
        left = wide - high if on else 0
        draw.ellipse((left + gap, gap, left + high - gap - 1, high - gap - 1), self.color("on_accent"))
        return self._photo(picture, wide // k, high // k)

    def _arrow(self, color: str, behind: str) -> ImageTk.PhotoImage:
        k, edge = OVERSAMPLE, self.px(14) * OVERSAMPLE
        picture = Image.new("RGB", (edge, edge), self.color(behind))
        points = [(edge * 0.22, edge * 0.38), (edge * 0.5, edge * 0.66), (edge * 0.78, edge * 0.38)]
        ImageDraw.Draw(picture).line(points, self.color(color), round(1.6 * self.scale * k), "curve")
        return self._photo(picture, edge // k, edge // k)

    def _photo(self, picture: Image.Image, wide: int, high: int) -> ImageTk.PhotoImage:
        return ImageTk.PhotoImage(picture.resize((wide, high), Image.Resampling.LANCZOS), master=self._root)


def _nest(outer: str, inner: str) -> list:
    """A ttk layout of one element around another."""
    return [(outer, {"sticky": "nswe", "children": [(inner, {"sticky": "nswe"})]})]


def _adopt_colors() -> None:
    """Gives customtkinter's own widgets the same colours."""
    theme = ctk.ThemeManager.theme
    changes = {
        "CTk": {"fg_color": "window"},
        "CTkToplevel": {"fg_color": "window"},
        "CTkFrame": {"fg_color": "card", "top_fg_color": "card", "border_color": "line"},
        "CTkButton": {"fg_color": "accent", "hover_color": "accent_hover", "text_color": "on_accent"},
        "CTkLabel": {"text_color": "text"},
        "CTkEntry": {"fg_color": "field", "border_color": "field_line", "text_color": "text"},
        "CTkTextbox": {"fg_color": "field", "border_color": "field_line", "text_color": "text"},
        "CTkSegmentedButton": {
            "fg_color": "button", "unselected_color": "button", "unselected_hover_color": "button_hover",
            "selected_color": "accent", "selected_hover_color": "accent_hover", "text_color": "text",
        },
        "CTkProgressBar": {"fg_color": "line", "progress_color": "accent"},
        "CTkScrollableFrame": {"label_fg_color": "card"},
    }  # fmt: skip
    for widget, values in changes.items():
        theme[widget].update({key: list(COLORS[name]) for key, name in values.items()})


def screen_position(widget: tk.Misc) -> tuple[int, int, int, int]:
    """Left, top, right and bottom of a widget on the screen."""
    left, top = widget.winfo_rootx(), widget.winfo_rooty()
    return left, top, left + widget.winfo_width(), top + widget.winfo_height()
