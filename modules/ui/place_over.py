import tkinter as tk

# of the other window that can be seen around one as large as there is room for
MARGIN = (40, 60)


def place_over(
    window: tk.Tk | tk.Toplevel, over: tk.Misc, size: tuple[int, int] | None = None, smallest: tuple[int, int] = (0, 0)
) -> None:
    """Shows a window in the middle of another one, a little higher than that.

    Args:
        window: that is shown.
        over: the other one.
        size: width and height in pixels, or less where the other one is too small for it; None: as large as what is in
            the window.
        smallest: width and height; the window can't be made smaller later, either.
    """
    # laid out first, so that it is not seen elsewhere before
    window.withdraw()
    window.update_idletasks()
    room = (over.winfo_width(), over.winfo_height())
    wide, high = window.winfo_reqwidth(), window.winfo_reqheight()
    if size is not None:
        window.minsize(*smallest)
        wide, high = (
            max(least, min(one, most - margin))
            for least, one, most, margin in zip(smallest, size, room, MARGIN, strict=True)
        )
    left, top = over.winfo_rootx() + (room[0] - wide) // 2, over.winfo_rooty() + (room[1] - high) // 3
    sides = "" if size is None else f"{wide}x{high}"
    # customtkinter's own geometry() scales, which is wrong for places on the screen
    window.wm_geometry(f"{sides}+{max(0, left)}+{max(0, top)}")
    window.deiconify()
