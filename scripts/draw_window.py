"""Draws every tab of the window into PNG files, for the documentation. Needs a screen, or Xvfb.

With --run FOLDER the run tab shows that run (a folder below ui_runs/, or one of scripts/train.py --control).
"""

import argparse
import os
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

# seconds in which pictures and lists that other threads make have come
PATIENCE = 1.5
COLORS = 96


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The command line; exits with 2 if it makes no sense."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, metavar="FOLDER", help="where the pictures go")
    parser.add_argument("--sizes", nargs="+", default=["1280x800"], metavar="WxH", help="of the window, in pixels")
    parser.add_argument("--view", choices=["basic", "all"], default="basic", help="how many options are shown")
    parser.add_argument("--run", type=Path, metavar="FOLDER", help="run that the run tab shows")
    args = parser.parse_args(arguments)
    try:
        args.sizes = [tuple(int(side) for side in size.split("x")) for size in args.sizes]
    except ValueError:
        parser.error(f"--sizes: found {args.sizes}, expected sizes such as 1280x800")
    return args


def main(arguments: list[str] | None = None) -> int:
    """Runs the command line; returns its exit status."""
    args = parse(arguments)
    output, folder = args.output.resolve(), args.run.resolve() if args.run else None
    os.chdir(ROOT)
    from modules.trainer.RunProcess import RunProcess
    from modules.ui.App import App
    from modules.ui.tabs import TABS

    from PIL import Image, ImageGrab

    output.mkdir(parents=True, exist_ok=True)
    app = App(ROOT)
    app.show_view(args.view)
    if folder is not None:
        app.runs.controller.model.follow(RunProcess(folder))
    for width, height in args.sizes:
        app.geometry(f"{width}x{height}+0+0")
        for tab in TABS:
            app.show_tab(tab.name)
            end = time.monotonic() + PATIENCE
            while time.monotonic() < end:
                app.update()
                time.sleep(0.02)
            x, y = app.winfo_rootx(), app.winfo_rooty()
            picture = ImageGrab.grab((x, y, x + app.winfo_width(), y + app.winfo_height()), xdisplay="")
            # few colours, which a window has anyway, make a small file
            picture.quantize(COLORS, dither=Image.Dither.NONE).save(output / f"{tab.name}_{width}.png", optimize=True)
            print(output / f"{tab.name}_{width}.png")
    app.destroy()
    return 0


if __name__ == "__main__":
    sys.exit(main())
