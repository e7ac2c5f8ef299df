import tkinter as tk

Area = tuple[int, int, int, int]
# of a window's title bar, and of a taskbar or panel, in pixels at the scale of the system: usual ones have 28 to 48
TITLE_BAR, TASKBAR = 40, 48
USUAL_DPI = 96


def screen_area(widget: tk.Misc) -> Area:
    """Left, top, right and bottom of the screen that a widget is on, in pixels.

    Tk knows the first screen, and all screens together. What stands on the first one stays there; anywhere else, all of
    them together count. Under X11 Tk has several monitors as one screen.
    """
    first = (0, 0, widget.winfo_screenwidth(), widget.winfo_screenheight())
    left, top = widget.winfo_vrootx(), widget.winfo_vrooty()
    every = (left, top, left + widget.winfo_vrootwidth(), top + widget.winfo_vrootheight())
    window = widget.winfo_toplevel()
    x, y = window.winfo_rootx() + window.winfo_width() // 2, window.winfo_rooty() + window.winfo_height() // 2
    return first if first[0] <= x < first[2] and first[1] <= y < first[3] else every


def free_size(widget: tk.Misc) -> tuple[int, int]:
    """Width and height that the inside of a window may have on its screen, beside its title bar and a taskbar."""
    left, top, right, bottom = screen_area(widget)
    return right - left, bottom - top - _dots(widget, TITLE_BAR + TASKBAR)


def title_bar(widget: tk.Misc) -> int:
    """Height of a window's title bar, in pixels, as is usual."""
    return _dots(widget, TITLE_BAR)


def _dots(widget: tk.Misc, size: int) -> int:
    """Pixels for a size on a screen that is not scaled."""
    return round(size * max(1.0, widget.winfo_fpixels("1i") / USUAL_DPI))


def kept_inside(area: Area, left: int, top: int, size: tuple[int, int]) -> tuple[int, int]:
    """Where a window of a size stands so that it is within an area, as near to a place as can be."""
    return (
        max(area[0], min(left, area[2] - size[0])),
        max(area[1], min(top, area[3] - size[1])),
    )  # fmt: skip


def place_beside(anchor: Area, area: Area, size: tuple[int, int], gap: int = 4) -> tuple[int, int]:
    """Left and top of a small window below a field, above it, or to its right or left: where it does not cover it.

    Args:
        anchor: left, top, right and bottom of the field.
        area: of the screen, in which it must lie.
        size: width and height of the small window.
        gap: pixels between the two.
    """
    left, _ = kept_inside(area, anchor[0], anchor[1], size)
    if anchor[3] + gap + size[1] <= area[3]:
        return left, anchor[3] + gap
    if anchor[1] - gap - size[1] >= area[1]:
        return left, anchor[1] - gap - size[1]
    _, top = kept_inside(area, anchor[0], anchor[1], size)
    if anchor[2] + gap + size[0] <= area[2]:
        return anchor[2] + gap, top
    if anchor[0] - gap - size[0] >= area[0]:
        return anchor[0] - gap - size[0], top
    # larger than what is left on any side: where there is most, and what does not fit is over the edge
    below = area[3] - anchor[3] >= anchor[1] - area[1]
    return left, anchor[3] + gap if below else anchor[1] - gap - size[1]
