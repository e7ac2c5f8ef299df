"""The way of docs/first_lora.md through the real window, from photos to a picture and a workflow for ComfyUI.

`python -m tests.ui.walk --output FOLDER` draws its steps on virtual screens: the pictures of the documentation.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from modules.run import RunProcess
from modules.util.config.write_json import write_json
from modules.util.texts import ENGLISH
from modules.viewModel import RunResult, ToolProcess
from modules.viewModel.RunController import backups_of
from modules.viewModel.Session import SETTINGS
from tests.tool.tiny_captioners import make_blip
from tests.ui.conftest import User, wait_until

from PIL import Image, ImageGrab

ROOT = Path(__file__).resolve().parents[2]
PRESET, WORD = "Tiny/tiny LoRA", "lumo"
PHOTOS, CONCEPTS, OUTPUT, WORKSPACE = (
    "photos/lumo",
    "training_concepts/lumo.json",
    "models/lumo.safetensors",
    "workspace/lumo",
)
PROMPTS = ("a red lumo on a green background", "a red circle on a blue background")
PIXELS = 64
# of libraries that load, and of runs
LONG = 300
# a short training, which shows the window and no learning
SHORT = {"epochs": "2", "sample_after": "1", "validation": "false", "learning_rate_warmup_steps": "2"}
# the preset validates on concepts of its own, which the walk has not
WHOLE = {"validation": "false"}
# seconds until help over the window is gone and pictures stand
SETTLE = 1.0
COLORS = 256
# pixels of a screen that the system's own bars take
BARS = 60


@contextmanager
def installation(folder: Path) -> Iterator[None]:
    """A folder in which the program is as it is when it has been installed, and in which it is at work."""
    for name in ("models", "training_concepts"):
        (folder / name).mkdir(parents=True)
    own = ("training_concepts/tiny_concept", "training_concepts/tiny_concept.json")
    for name in ("scripts", "training_presets", "models/tiny_sd", *own):
        (folder / name).symlink_to(ROOT / name)
    # whichever of them other tests have loaded
    before, roots = Path.cwd(), [(module, module.ROOT) for module in (RunProcess, ToolProcess, RunResult)]
    os.chdir(folder)
    for module, _ in roots:
        module.ROOT = folder
    try:
        yield
    finally:
        os.chdir(before)
        for module, root in roots:
            module.ROOT = root


class Walk:
    """Goes the way step by step, in the folder that the program was started in.

    Args:
        app: the window, as it is when it is opened for the first time.
        look: is given each step's name and the window that shows it, when all of it is there.
        options: of the training beside the preset's: path -> text.
        photos: how many of the tiny concept's pictures are taken at most.
    """

    def __init__(self, app, look: Callable[[str, object], None], options: dict[str, str], photos: int) -> None:
        self.app, self._look, self.options, self.photos, self.user = app, look, options, photos, User()

    def until(self, done: Callable[[], bool]) -> None:
        """Lets the window work until something is so."""
        wait_until(self.app, done, LONG)

    def look(self, name: str, window=None) -> None:
        """The step as it is, when nothing is under way any more."""
        self.until(lambda: not self.app.worker.busy)
        settled = time.monotonic() + 0.4
        self.until(lambda: time.monotonic() > settled)
        self._look(name, window if window is not None else self.app)

    def go(self) -> None:
        """The whole way; AssertionError where it does not lead on."""
        self.look("start")
        self.describe_photos()
        self.choose_preset()
        self.add_photos()
        self.write_prompts()
        self.train()
        self.try_a_prompt()
        self.leave_for_comfyui()

    def describe_photos(self) -> None:
        """Captions by a model; first a few that are shown, then all."""
        source = ROOT / "training_concepts" / "tiny_concept" / "lumo"
        folder = Path(PHOTOS)
        folder.mkdir(parents=True)
        taken = sorted(source.glob("*.png"))[: self.photos]
        for path in taken:
            shutil.copy(path, folder)
        self.app.show_tab("tools")
        page = self._tool("captions")
        self._fill(page, folder=PHOTOS, model=str(make_blip(Path("models/tiny_blip"))), start=f"{WORD},")
        self._work(page)
        assert f"{WORD}, " in page.text.text and not list(folder.glob("*.txt"))
        self.look("captions", self.app)
        self._fill(page, preview="")
        self._work(page)
        assert len(list(folder.glob("*.txt"))) == len(taken)
        self.correct_captions(source)

    def correct_captions(self, source: Path) -> None:
        """What a person writes over what a small random model says, from one picture to the next."""
        self.app.views["tools"][1].read_button.invoke()
        window = self.app.picture_window
        self.until(lambda: bool(window.pictures.pictures) and not window.look.is_busy)
        for picture in list(window.pictures.shown):
            wanted = (source / picture.name).with_suffix(".txt").read_text(encoding="utf-8").strip()
            box = window.caption.caption
            box.delete("1.0", "end")
            box.insert("insert", wanted)
            window.update()
            window.tiles.go("Right")
        window.save()
        self.look("pictures", window)
        window.destroy()
        for path in Path(PHOTOS).glob("*.txt"):
            assert path.read_text(encoding="utf-8").strip() == (source / path.name).read_text(encoding="utf-8").strip()

    def choose_preset(self) -> None:
        """A preset, with an output and folders of its own."""
        app = self.app
        app.preset_actions.open(PRESET)
        for path, text in {
            "concept_file_name": CONCEPTS, "output_model_destination": OUTPUT, "workspace_dir": WORKSPACE,
            "cache_dir": "workspace-cache/lumo", **self.options,
        }.items():  # fmt: skip
            assert not app.form.set_text(path, text), path
        app.show_tab("model")
        self.look("model")

    def add_photos(self) -> None:
        """The folder as a concept, looked at and checked."""
        app = self.app
        app.show_tab("concepts")
        concepts = app.views["concepts"][1]
        concepts.add_folders([Path(PHOTOS)])
        self.until(lambda: len(concepts.list.items) == 1)
        self.look("concepts")
        concepts.edit(0)
        window = concepts.window
        self.until(lambda: window.preview is not None)
        self.look("concept", window)
        window.tabs.buttons["dataset check"].invoke()
        window.check_button.invoke()
        self.look("check", window)
        window.destroy()

    def write_prompts(self) -> None:
        """What is drawn during the training."""
        app = self.app
        samples = [
            {"prompt": prompt, "width": PIXELS, "height": PIXELS, "cfg_scale": 1.5, "seed": seed}
            for seed, prompt in enumerate(PROMPTS, 1)
        ]
        from modules.util.config.load import train_config_from_dict

        app.form.replace(train_config_from_dict({**app.form.config.to_dict(), "samples": samples}))
        app.show_tab("sampling")
        self.look("sampling")
        app.show_tab("training")
        self.look("training")

    def train(self) -> None:
        """Starts, looks in the middle and at the end."""
        app, model = self.app, self.app.runs.controller.model
        app.problems.start.invoke()
        assert app.tabs.current == "run"
        self.until(lambda: len(model.losses) > 1 or model.state == "ended")
        self.look("running")
        self.until(lambda: model.state == "ended")
        assert model.outcome == "finished", model.reason
        assert Path(OUTPUT).is_file() and backups_of(Path(WORKSPACE))
        self.until(lambda: app.views["run"][1].samples.picture is not None)
        self.look("finished")

    def try_a_prompt(self) -> None:
        """With the new adapter, beside the model alone."""
        app = self.app
        app.views["run"][1].result.buttons["Try a prompt"].invoke()
        page = app.views["tools"][1].pages["try a prompt"]
        assert Path(page.form.config.adapter).resolve() == Path(OUTPUT).resolve()
        size = {"width": str(PIXELS), "height": str(PIXELS)}
        self._fill(page, prompt=PROMPTS[0], strengths="0 0.5 1", count="2", **size)
        self._work(page)
        assert page.result.picture is not None
        with Image.open(page.result.picture) as picture:
            assert picture.width >= 3 * PIXELS
        self.look("try")

    def leave_for_comfyui(self) -> None:
        """A workflow beside the adapter, and the adapter in ComfyUI's folder."""
        app = self.app
        loras = Path("ComfyUI/models/loras")
        loras.mkdir(parents=True)
        app.settings.comfy = "ComfyUI"
        app.show_tab("run")
        result = app.views["run"][1].result
        result.buttons["Copy to ComfyUI …"].invoke()
        assert (loras / Path(OUTPUT).name).read_bytes() == Path(OUTPUT).read_bytes()
        result.buttons["ComfyUI workflow"].invoke()
        self.until(lambda: "workflow.json" in app.problems.news)
        graph = json.loads(Path("models/lumo workflow.json").read_text(encoding="utf-8"))
        assert any(Path(OUTPUT).name in node["widgets_values"] for node in graph["nodes"])
        self.look("workflow")
        app.show_tab("runs")
        self.until(lambda: bool(app.views["runs"][1].model.rows) and not app.views["runs"][1].model.reads)
        self.look("runs")

    def _tool(self, name: str):
        view = self.app.views["tools"][1]
        view.tabs.buttons[name].invoke()
        return view.pages[name]

    def _fill(self, page, **texts: str) -> None:
        self.app.update()
        for path, text in texts.items():
            self.user.set(page.view.rows[path], text)

    def _work(self, page) -> None:
        page.button.invoke()
        self.until(lambda: page.process is None)
        assert page.note.cget("text") == "", page.note.cget("text")


def main(arguments: list[str] | None = None) -> int:
    """Runs the command line; returns its exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, required=True, metavar="FOLDER", help="where the pictures go")
    parser.add_argument("--screens", nargs="+", default=["1280x800"], metavar="WxH", help="sizes of virtual screens")
    parser.add_argument("--scales", nargs="+", type=int, default=[100], metavar="PERCENT", help="of the window")
    parser.add_argument("--short", action="store_true", help="train for a few steps only")
    parser.add_argument("--here", action="store_true", help="use the screen that is there")
    args = parser.parse_args(arguments)
    if args.here:
        draw_here(args.output.resolve(), args.scales[0], SHORT if args.short else WHOLE)
        return 0
    failed = 0
    for screen in args.screens:
        for scale in args.scales:
            target = args.output / f"{screen} {scale}"
            print(target, flush=True)
            command = [
                "xvfb-run", "-a", "-s", f"-screen 0 {screen}x24", sys.executable, "-m", "tests.ui.walk", "--here",
                "--output", target, "--scales", str(scale), *(["--short"] if args.short else []),
            ]  # fmt: skip
            failed |= subprocess.run(command, cwd=ROOT).returncode
    return failed


def draw_here(output: Path, scale: int, options: dict[str, str]) -> None:
    """Goes the way in a window as large as the screen, but for the system's bars, and draws each step."""
    from modules.ui.App import App

    output.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder, installation(Path(folder) / "trainer"):
        # not what the machine that it is drawn on would choose
        write_json(Path.cwd() / SETTINGS, {"language": ENGLISH})
        app = App(Path.cwd())
        app.geometry(f"{app.winfo_screenwidth()}x{app.winfo_screenheight() - BARS}+0+0")
        app.show_theme("light", scale)
        app.catalog.load()
        wait_until(app, lambda: app.form.catalog is not None and app.form.checks is not None, LONG)
        number = 0

        def draw(name: str, window) -> None:
            nonlocal number
            number += 1
            window.event_generate("<Motion>", warp=True, x=2, y=2)
            end = time.monotonic() + SETTLE
            wait_until(app, lambda: time.monotonic() > end)
            x, y = window.winfo_rootx(), window.winfo_rooty()
            box = (x, y, x + window.winfo_width(), y + window.winfo_height())
            picture = ImageGrab.grab(box, xdisplay="" if sys.platform == "linux" else None)
            # few colours, which a window has anyway, make a small file
            picture.quantize(COLORS, dither=Image.Dither.NONE).save(output / f"{number:02} {name}.png", optimize=True)

        Walk(app, draw, options, photos=12).go()
        app.destroy()


if __name__ == "__main__":
    sys.exit(main())
