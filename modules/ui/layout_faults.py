"""What is cut, covered or squeezed in a window, found from the places and sizes of its widgets.

For tests and for the script that draws the window: a person sees such a fault at once, a picture that nobody looks at
does not tell of it.
"""

import tkinter as tk
from collections.abc import Iterator
from dataclasses import dataclass
from tkinter import font as tk_font
from tkinter import ttk

from modules.ui.screen_area import free_size, screen_area
from modules.ui.ScrollFrame import ScrollFrame

Box = tuple[int, int, int, int]
# pixels by which rounding may move an edge
TOLERANCE = 2
# a field that is narrower shows nothing of what stands in it, in pixels at 100 %
LEAST_FIELD = 30
EVERYWHERE = (-(10**6), -(10**6), 10**6, 10**6)


@dataclass(frozen=True)
class _Seen:
    """A widget that is shown, where it stands on the screen, and what its parents leave of that.

    Attributes:
        scrolled: the innermost frame that scrolls it, None if none does.
        room: in which it must lie to be seen, now or after scrolling.
    """

    widget: tk.Misc
    box: Box
    seen: Box
    room: Box
    scrolled: tk.Misc | None

    @property
    def name(self) -> str:
        """What a person calls it: its text, and its kind."""
        return _name(self.widget)


def layout_faults(window: tk.Misc, on_screen: bool = True) -> list[str]:
    """Sentences on what is cut, covered, squeezed or outside; empty where all can be seen, or reached by scrolling.

    A widget may have `least_size`, width and height in pixels below which it shows nothing of use.

    Args:
        window: a window that is shown; windows that it has opened are not looked into.
        on_screen: whether it must stand on the screen, with room for its title bar and a taskbar.
    """
    window.update_idletasks()
    theme = getattr(window.nametowidget("."), "theme", None)
    scale = theme.scale if theme is not None else 1.0
    faults = _of_window(window) if on_screen else []
    found: list[_Seen] = []
    for one in _walk(window, _box(window), EVERYWHERE, None, faults):
        found.append(one)
        faults += _of_place(one)
        faults += _of_size(one, scale)
        faults += _of_text(one)
    return list(dict.fromkeys(faults + _covered(found)))


def _walk(
    widget: tk.Misc, seen: Box, room: Box, scrolled: tk.Misc | None, faults: list[str]
) -> Iterator[_Seen]:  # fmt: skip
    """All that is shown below a widget. What is placed, but got no room at all, is told of in `faults`."""
    own = _box(widget)
    inner, inner_seen = _common(room, own), _common(seen, own)
    if isinstance(widget, tk.Canvas) and isinstance(widget.master, ScrollFrame):
        # whatever it shows can be scrolled up and down
        inner, scrolled = (inner[0], EVERYWHERE[1], inner[2], EVERYWHERE[3]), widget
    for child in widget.winfo_children():
        if isinstance(child, (tk.Toplevel, tk.Tk)) or not child.winfo_manager():
            continue
        if not child.winfo_ismapped():
            # a canvas takes away what is scrolled out of sight, and other pages of the same place are not shown either
            if isinstance(widget, tk.Canvas) or not _is_shown_by(child):
                continue
            faults.append(f"{_name(child)} has no room at all")
            continue
        box = _box(child)
        yield _Seen(child, box, _common(inner_seen, box), inner, scrolled)
        yield from _walk(child, inner_seen, inner, scrolled, faults)


def _is_shown_by(child: tk.Misc) -> bool:
    """Whether what arranges a widget is itself seen."""
    info = {"pack": "pack_info", "grid": "grid_info", "place": "place_info"}.get(child.winfo_manager())
    inside = getattr(child, info)().get("in") if info else None
    return bool((inside or child.master).winfo_viewable())


def _of_window(window: tk.Misc) -> list[str]:
    box, area, faults = _box(window), screen_area(window), []
    for side, (name, outside) in enumerate((
        ("left", area[0] - box[0]), ("top", area[1] - box[1]), ("right", box[2] - area[2]),
        ("bottom", box[3] - area[3]),
    )):  # fmt: skip
        if outside > 0:
            faults.append(f"the window stands {outside} pixels beyond the {name} edge of the screen, at {box[side]}")
    bare = isinstance(window, tk.Toplevel) and window.overrideredirect()
    if not bare:
        for name, size, room in zip(
            ("wide", "high"), (box[2] - box[0], box[3] - box[1]), free_size(window), strict=True
        ):
            if size > room:
                faults.append(f"the window is {size} pixels {name}; {room} are left beside title bar and taskbar")
    return faults


def _of_place(one: _Seen) -> list[str]:
    if not _is_leaf(one.widget):
        return []
    outside = [
        f"{amount} pixels beyond the {side} edge of what holds it"
        for side, amount in (
            ("left", one.room[0] - one.box[0]), ("top", one.room[1] - one.box[1]),
            ("right", one.box[2] - one.room[2]), ("bottom", one.box[3] - one.room[3]),
        )
        if amount > TOLERANCE
    ]  # fmt: skip
    return [f"{one.name} is cut: {', '.join(outside)}"] if outside else []


def _of_size(one: _Seen, scale: float) -> list[str]:
    widget, (wide, high) = one.widget, (one.box[2] - one.box[0], one.box[3] - one.box[1])
    least = getattr(widget, "least_size", None)
    if least is not None and (wide < least[0] - TOLERANCE or high < least[1] - TOLERANCE):
        return [f"{one.name} is {wide} x {high} pixels, at least {least[0]} x {least[1]} are needed"]
    if not _is_leaf(widget):
        return []
    needed = widget.winfo_reqheight()
    if isinstance(widget, tk.Text):
        # it scrolls: a line must be seen
        needed = min(needed, 12 + tk_font.nametofont(str(widget.cget("font")), widget).metrics("linespace"))
    elif isinstance(widget, (tk.Listbox, tk.Canvas, ttk.Scrollbar)):
        needed = 0
    faults = [f"{one.name} is {high} pixels high, {needed} are needed"] if high < needed - TOLERANCE else []
    if isinstance(widget, (ttk.Entry, tk.Text)) and wide < LEAST_FIELD * scale:
        faults.append(f"{one.name} is {wide} pixels wide, {round(LEAST_FIELD * scale)} are needed")
    return faults


def _of_text(one: _Seen) -> list[str]:
    """A text that is wider than its widget, unless it wraps or is shortened with a mark."""
    widget = one.widget
    if not isinstance(widget, (ttk.Label, ttk.Button, ttk.Radiobutton, tk.Label)):
        return []
    text = str(widget.cget("text"))
    if not text or getattr(widget, "is_shortened", False):
        return []
    if isinstance(widget, (ttk.Label, tk.Label)) and int(str(widget.cget("wraplength") or 0) or 0) > 0:
        return []
    font = tk_font.nametofont(_font(widget), widget)
    needed, wide = max(font.measure(line) for line in text.split("\n")), one.box[2] - one.box[0]
    return [f"{one.name} is cut: {wide} pixels for a text of {needed}"] if wide < needed - TOLERANCE else []


def _covered(found: list[_Seen]) -> list[str]:
    """Pairs of widgets of which one stands over the other without being inside it."""
    leaves = [one for one in found if _is_leaf(one.widget) and not isinstance(one.widget, ttk.Scrollbar)]
    faults = []
    for place, one in enumerate(leaves):
        for other in leaves[place + 1 :]:
            same = one.scrolled is other.scrolled
            first, second = (one.box, other.box) if same else (one.seen, other.seen)
            wide = min(first[2], second[2]) - max(first[0], second[0])
            high = min(first[3], second[3]) - max(first[1], second[1])
            if wide > TOLERANCE and high > TOLERANCE and not _is_inside(one.widget, other.widget):
                faults.append(f"{one.name} and {other.name} stand over each other, by {wide} x {high} pixels")
    return faults


def _is_leaf(widget: tk.Misc) -> bool:
    return isinstance(
        widget, (
            ttk.Label, ttk.Button, ttk.Radiobutton, ttk.Checkbutton, ttk.Entry, ttk.Scrollbar, tk.Label, tk.Text,
            tk.Listbox,
        ),
    ) or hasattr(widget, "least_size")  # fmt: skip


def _is_inside(one: tk.Misc, other: tk.Misc) -> bool:
    first, second = str(one), str(other)
    return first.startswith(f"{second}.") or second.startswith(f"{first}.")


def _box(widget: tk.Misc) -> Box:
    left, top = widget.winfo_rootx(), widget.winfo_rooty()
    return left, top, left + widget.winfo_width(), top + widget.winfo_height()


def _common(one: Box, other: Box) -> Box:
    return max(one[0], other[0]), max(one[1], other[1]), min(one[2], other[2]), min(one[3], other[3])


def _font(widget: tk.Misc) -> str:
    own = str(widget.cget("font")) if "font" in widget.keys() else ""  # noqa: SIM118
    if own or not isinstance(widget, ttk.Widget):
        return own
    return str(ttk.Style(widget).lookup(str(widget.cget("style")) or widget.winfo_class(), "font"))


def _name(widget: tk.Misc) -> str:
    text = ""
    if "text" in (widget.keys() or ()):
        text = " ".join(str(widget.cget("text")).split())
    kind = type(widget).__name__
    if text:
        return f"{kind} “{text[:40]}{'…' if len(text) > 40 else ''}”"
    return f"{kind} {str(widget).rpartition('.!')[0][-60:]}.{str(widget).rpartition('.!')[2]}"
