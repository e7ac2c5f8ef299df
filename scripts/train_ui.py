"""Opens the window: pick options, press start, watch it learn."""

import argparse
import os
import signal
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))


def main() -> int:
    """Opens the window and waits until it is closed; returns the exit status."""
    argparse.ArgumentParser(description=__doc__).parse_args()
    # relative paths in configs count from here, as they do for the runs that the window starts
    os.chdir(ROOT)
    try:
        import tkinter
    except ImportError:
        print(
            "error: this Python has no tkinter. Install it (Debian, Ubuntu: apt install python3-tk; Fedora: "
            "dnf install python3-tkinter; macOS: brew install python-tk), or train without a window: scripts/train.py.",
            file=sys.stderr,
        )
        return 1
    from modules.ui.App import App
    from modules.viewModel.Session import RUNS
    from modules.viewModel.window_lock import take_window

    try:
        if other := take_window(ROOT / RUNS):
            print(f"The window is open already (process {other}). Work in that one.", file=sys.stderr)
            return 1
    except OSError as error:
        print(f"error: nothing can be written here: {error}.", file=sys.stderr)
        return 1
    try:
        window = App(ROOT)
    except tkinter.TclError as error:
        print(f"error: no window can be opened here: {error}. Train without one: scripts/train.py.", file=sys.stderr)
        return 1
    # not at once, as the window may be amid something
    _on_signals(lambda *_: window.after_idle(window.leave))
    window.mainloop()
    _on_signals(signal.SIG_DFL)
    return 0


def _on_signals(action: Any) -> None:
    """What is done when the system or Ctrl+C wants the window to close."""
    for name in ("SIGINT", "SIGTERM", "SIGHUP"):
        # Windows has not all of them
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), action)


if __name__ == "__main__":
    sys.exit(main())
