import tkinter as tk

from modules.ui.screen_area import free_size, kept_inside, screen_area, title_bar

# of the other window that can be seen around one as large as there is room for
MARGIN = (40, 60)


def place_over(
    window: tk.Tk | tk.Toplevel, over: tk.Misc, size: tuple[int, int] | None = None, smallest: tuple[int, int] = (0, 0),
    beside: tuple[int, int] | None = None,
) -> None:  # fmt: skip
    """Shows a window in the middle of another one, a little higher than that, or beside a row of it; on the screen.

    Args:
        window: that is shown.
        over: the other one.
        size: width and height in pixels, or less where screen or other window are too small for it; None: as large as
            what is in the window.
        smallest: width and height; the window can't be made smaller later, either, unless the screen is.
        beside: top and bottom, on the screen, of what should still be seen; None: nothing in particular.
    """
    # laid out first, so that it is not seen elsewhere before
    window.withdraw()
    window.update_idletasks()
    area, free, room = screen_area(over), free_size(over), (over.winfo_width(), over.winfo_height())
    wide, high = window.winfo_reqwidth(), window.winfo_reqheight()
    if size is not None:
        smallest = min(smallest[0], free[0]), min(smallest[1], free[1])
        # of the window itself: customtkinter's own scales
        tk.Wm.wm_minsize(window, *smallest)
        wide, high = (
            min(screen, max(least, min(one, most - margin)))
            for least, one, most, margin, screen in zip(smallest, size, room, MARGIN, free, strict=True)
        )
    left, top = over.winfo_rootx() + (room[0] - wide) // 2, over.winfo_rooty() + (room[1] - high) // 3
    title = title_bar(over)
    if beside is not None:
        top, high = _beside(beside, (area[1], area[3]), (smallest[1], high), title) or (top, high)
    # what is told to Tk is where the title bar begins
    left, top = kept_inside(area, left, top, (wide, high + title))
    sides = "" if size is None else f"{wide}x{high}"
    # customtkinter's own geometry() scales, which is wrong for places on the screen
    window.wm_geometry(f"{sides}+{left}+{top}")
    window.deiconify()


def _beside(
    row: tuple[int, int], area: tuple[int, int], heights: tuple[int, int], title: int
) -> tuple[int, int] | None:  # fmt: skip
    """Top and height of a window below or above a row, where there is most room; None where there is too little.

    Args:
        row, area: top and bottom of each.
        heights: the smallest and the wished one, without the title bar.
        title: height of that.
    """
    below, above = area[1] - row[1], row[0] - area[0]
    high = min(heights[1], max(below, above) - title)
    if high < heights[0]:
        return None
    return (row[1] if below >= above else row[0] - high - title), high
