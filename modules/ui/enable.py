from tkinter import ttk


def enable(button: ttk.Widget, is_enabled: bool) -> None:
    """Lets a button be pressed, or not."""
    button.state(["!disabled" if is_enabled else "disabled"])
