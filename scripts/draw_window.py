"""Draws the window's tabs, the optimizer's and a concept's window into PNG files, for the documentation.

Needs a screen, or Xvfb. With --run FOLDER the run tab shows that run, and the runs tab its workspace: a folder below
ui_runs/, or one of scripts/train.py --control.

With --screens, all that the window can show is drawn on virtual screens of these sizes (which needs Xvfb), at each of
--scales, and what is cut, covered or squeezed is listed: then the exit status is 1. --only-check draws nothing.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from modules.run.RunControl import EVENTS
from modules.run.RunProcess import RunProcess
from modules.ui.App import App
from modules.ui.layout_faults import layout_faults
from modules.ui.tabs import TABS
from modules.ui.window_scenes import scenes
from modules.util.config.write_json import write_json
from modules.util.texts import ENGLISH, languages
from modules.viewModel.run_summary import Summaries
from modules.viewModel.Session import BUILT_IN, SETTINGS
from modules.viewModel.tools.try_prompt import TRY

from PIL import Image, ImageGrab

# seconds in which pictures and lists that other threads make have come, and those that a library may take to load
SETTLE, PATIENCE = 1.5, 120
COLORS = 256
# elsewhere Pillow asks the system instead of X11
SCREEN = "" if sys.platform == "linux" else None
TRIED_PRESET = "Tiny/tiny LoRA"
TRIED = {
    "prompt": "a red lumo on a blue background",
    "strengths": "0 0.5 1",
    "width": "64",
    "height": "64",
    "count": "2",
}
OPTIMIZER_PRESET = "Tiny/tiny LoRA ADAMW_ADV"


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The command line; exits with 2 if it makes no sense."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, metavar="FOLDER", help="where the pictures go")
    parser.add_argument("--sizes", nargs="+", default=["1280x800"], metavar="WxH", help="of the window, in pixels")
    parser.add_argument("--view", choices=["basic", "all"], default="basic", help="how many options are shown")
    parser.add_argument("--theme", choices=["light", "dark"], default="light", help="of the window")
    parser.add_argument("--scale", type=int, default=100, metavar="PERCENT", help="of the window")
    parser.add_argument("--language", choices=[*languages()], default=ENGLISH, help="of the window")
    parser.add_argument("--screens", nargs="+", metavar="WxH", help="virtual ones, instead of --sizes of the window")
    parser.add_argument("--scales", nargs="+", type=int, default=[100, 150, 200], metavar="PERCENT", help="on each")
    parser.add_argument("--only-check", action="store_true", help="with --screens, draws no pictures")
    parser.add_argument("--whole-screen", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--run", type=Path, metavar="FOLDER", help="run that the run tab shows")
    parser.add_argument("--adapter", type=Path, metavar="FILE", help="of the tiny base, with which a prompt is tried")
    args = parser.parse_args(arguments)
    for name in ("sizes", "screens"):
        try:
            setattr(args, name, [tuple(int(side) for side in size.split("x")) for size in getattr(args, name) or ()])
        except ValueError:
            parser.error(f"--{name}: found {getattr(args, name)}, expected sizes such as 1280x800")
    if args.run is not None and not (args.run / EVENTS).is_file():
        parser.error(f"--run: found no {EVENTS} in {args.run}, expected the folder of `train.py --control`")
    return args


class Painter:
    """Takes pictures of a window and of those that it opens.

    Args:
        app: the window.
        output: folder of the pictures.
    """

    def __init__(self, app, output: Path) -> None:
        self.app, self.output = app, output

    def wait(self, done: Callable[[], bool], seconds: float) -> None:
        """Lets the window work until something is so, at most for so long."""
        end = time.monotonic() + seconds
        while time.monotonic() < end and not done():
            self.app.update()
            time.sleep(0.02)

    def draw(self, window, name: str) -> None:
        """Writes a picture of a window as it is when all is there."""
        # no help over what is drawn
        window.event_generate("<Motion>", warp=True, x=2, y=2)
        self.wait(lambda: not self.app.worker.busy, PATIENCE)
        self.wait(lambda: False, SETTLE)
        self.grab(window, name)

    def grab(self, window, name: str) -> None:
        """Writes a picture of a window as it is."""
        x, y = window.winfo_rootx(), window.winfo_rooty()
        picture = ImageGrab.grab((x, y, x + window.winfo_width(), y + window.winfo_height()), xdisplay=SCREEN)
        path = self.output / f"{name}.png"
        # few colours, which a window has anyway, make a small file
        picture.quantize(COLORS, dither=Image.Dither.NONE).save(path, optimize=True)
        print(path)

    def draw_tabs(self, width: int, height: int) -> None:
        """Every tab, with the window in one size."""
        self.app.geometry(f"{width}x{height}+0+0")
        for tab in TABS:
            self.app.show_tab(tab.name)
            self.draw(self.app, f"{tab.name}_{width}")

    def draw_trial(self, width: int, adapter: Path) -> None:
        """A prompt that is tried with an adapter of the tiny base."""
        app = self.app
        app.preset_actions.open(TRIED_PRESET)
        app.show_tab("tools")
        view = app.views["tools"][1]
        view.take_adapter(TRY, adapter)
        page = view.pages[TRY]
        for path, text in TRIED.items():
            page.form.set_text(path, text)
        view.run(TRY)
        self.wait(lambda: page.process is None, PATIENCE)
        self.draw(app, f"try_{width}")

    def check_scenes(self, draws: bool) -> int:
        """All that the window can show on its screen, each drawn and checked; returns how many faults there are."""
        count = 0
        for name, window in scenes(self.app, lambda done: self.wait(done, PATIENCE)):
            self.wait(lambda: False, 0.4)
            if draws:
                self.grab(window, name.replace(" ", "_").replace(",", ""))
            faults = layout_faults(window)
            for fault in faults:
                print(f"{name}: {fault}", flush=True)
            count += len(faults)
        return count

    def draw_windows(self) -> None:
        """The windows of an optimizer with many options, and of the first concept."""
        app = self.app
        app.preset_actions.open(OPTIMIZER_PRESET)
        app.open_optimizer()
        self.wait(lambda: app.optimizer_window is not None, PATIENCE)
        assert app.optimizer_window is not None, "the optimizers' options did not load"
        self.draw(app.optimizer_window, "optimizer_window")
        app.optimizer_window.destroy()
        app.show_tab("concepts")
        concepts = app.views["concepts"][1]
        # a list in a file would be asked about
        concepts.list.take_into_config()
        concepts.edit(0)
        self.wait(lambda: concepts.window.preview is not None, PATIENCE)
        self.draw(concepts.window, "concept_window")
        concepts.window.destroy()


def on_screens(args: argparse.Namespace) -> int:
    """Runs this script on a virtual screen of each size; returns 1 if there is a fault on any."""
    program = shutil.which("Xvfb")
    if program is None:
        print("--screens needs Xvfb (Debian, Ubuntu: apt install xvfb)", file=sys.stderr)
        return 2
    status = 0
    for wide, high in args.screens:
        read, write = os.pipe()
        server = subprocess.Popen(
            [program, "-displayfd", str(write), "-screen", "0", f"{wide}x{high}x24", "-nolisten", "tcp"],
            pass_fds=[write],
        )  # fmt: skip
        os.close(write)
        try:
            with os.fdopen(read) as numbers:
                display = f":{numbers.readline().strip()}"
            for scale in args.scales:
                folder = args.output / f"{wide}x{high}_{scale}"
                command = [sys.executable, __file__, "--output", str(folder), "--scale", str(scale), "--whole-screen"]
                command += ["--view", args.view, "--theme", args.theme, *(["--only-check"] if args.only_check else [])]
                command += ["--language", args.language]
                command += ["--run", str(args.run.resolve())] if args.run else []
                print(f"{wide} x {high} at {scale} %", flush=True)
                status |= subprocess.run(command, env=os.environ | {"DISPLAY": display}, check=False).returncode
        finally:
            server.terminate()
            server.wait()
    return status


def show_run(app, run: Path) -> None:
    """Shows a run in its tab, and its workspace in the list of runs."""
    app.runs.controller.model.follow(RunProcess(run))
    if record := Summaries().of(run / EVENTS).record:
        app.settings.run_folders.append(str(Path(record).parents[1]))


def draw(args: argparse.Namespace, root: Path) -> int:
    """Draws all that is asked for, with a window that keeps what it knows in a folder; returns its exit status."""
    output, run = args.output.resolve(), args.run.resolve() if args.run else None
    os.chdir(ROOT)
    output.mkdir(parents=True, exist_ok=True)
    shutil.copytree(ROOT / BUILT_IN, root / BUILT_IN)
    # not what the machine that it is drawn on would choose
    settings: dict[str, object] = {"language": args.language}
    if args.whole_screen:
        # as somebody finds it who has chosen this scale
        settings |= {"scale": args.scale, "theme": args.theme, "view": args.view}
    write_json(root / SETTINGS, settings)
    app = App(root)
    app.show_view(args.view)
    app.show_theme(args.theme, args.scale)
    painter = Painter(app, output)
    app.catalog.load()
    painter.wait(lambda: app.form.checks is not None, PATIENCE)
    if run is not None:
        show_run(app, run)
        painter.wait(lambda: app.runs.controller.model.state == "ended", PATIENCE)
    if args.whole_screen:
        count = painter.check_scenes(not args.only_check)
        app.destroy()
        return int(count > 0)
    for width, height in args.sizes:
        painter.draw_tabs(width, height)
        if args.adapter is not None:
            painter.draw_trial(width, args.adapter)
    painter.draw_windows()
    app.destroy()
    return 0


def main(arguments: list[str] | None = None) -> int:
    """Runs the command line; returns its exit status."""
    args = parse(arguments)
    if args.screens:
        return on_screens(args)
    # not where whoever works here has presets and settings
    with tempfile.TemporaryDirectory() as root:
        return draw(args, Path(root))


if __name__ == "__main__":
    sys.exit(main())
