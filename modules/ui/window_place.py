"""Where the window stands when it is opened, and how small it can be made."""

import tkinter as tk

from modules.ui.screen_area import free_size, screen_area
from modules.ui.Theme import Theme
from modules.viewModel.UiSettings import fitting_geometry

import customtkinter as ctk

# in pixels at 100 %
SIZE, SMALLEST, LARGEST = (1280, 800), (640, 360), (20_000, 20_000)


def fitting_place(window: tk.Tk, theme: Theme, kept: str) -> str:
    """Where a window was left, if that is on a screen; otherwise the usual size, or as much of it as fits.

    Args:
        window: that has no size yet.
        theme: for the scale.
        kept: where it was left, as Tk writes it.

    Returns:
        the same for now.
    """
    area, free = screen_area(window), free_size(window)
    wide, high = min(theme.px(SIZE[0]), free[0]), min(theme.px(SIZE[1]), free[1])
    left, top = area[0] + (free[0] - wide) // 2, area[1] + (free[1] - high) // 3
    screens = (window.winfo_vrootx(), window.winfo_vrooty(), window.winfo_vrootwidth(), window.winfo_vrootheight())
    return fitting_geometry(kept, screens, f"{wide}x{high}+{left}+{top}", _smallest(window, theme))


def limit_size(window: ctk.CTk, theme: Theme) -> None:
    """Keeps a window from being made smaller than its parts need, as far as the screen has that much."""
    # customtkinter scales what it is told
    own = ctk.ScalingTracker.get_window_scaling(window)
    wide, high = _smallest(window, theme)
    window.minsize(round(wide / own), round(high / own))
    window.maxsize(*LARGEST)


def _smallest(window: tk.Tk, theme: Theme) -> tuple[int, int]:
    wide, high = free_size(window)
    return min(theme.px(SMALLEST[0]), wide), min(theme.px(SMALLEST[1]), high)
