"""Opens the window: pick options, press start, watch it learn."""

import argparse
import os
import sys
from pathlib import Path

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

    try:
        window = App(ROOT)
    except tkinter.TclError as error:
        print(f"error: no window can be opened here: {error}. Train without one: scripts/train.py.", file=sys.stderr)
        return 1
    window.mainloop()
    return 0


if __name__ == "__main__":
    sys.exit(main())
