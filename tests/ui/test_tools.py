"""The tab tools, with files of the miniature: each tool finds what it should, can be ended, and tells what is wrong.

Processes of tools are forked, but for the inspector's, which is started as users do it.
"""

import json
import re
import subprocess
import sys
import urllib.request
import webbrowser
from pathlib import Path

from modules.modelSaver.adapter_metadata import AdapterDescription
from modules.modelSaver.AdapterFile import read_adapter
from modules.modelSaver.save_adapter import save_adapter
from modules.module.AdapterSet import AdapterSet
from modules.util.config.load import train_config_from_dict
from modules.util.config.TrainConfig import TrainConfig
from modules.util.enum.ModelFormat import ModelFormat
from tests.tool.tiny_captioners import make_blip
from tests.tool.tiny_maskers import make_matting

import torch

import psutil
import pytest
from PIL import Image, ImageColor, ImageGrab
from safetensors.torch import load_file

LONG = 120
RANK, ALPHA = 4, 3.0


@pytest.fixture(scope="module")
def base(mini_base):
    """The miniature with weights; tests must not change it."""
    # imported here, because that takes seconds
    from modules.model.reference_naming import load_base

    return load_base(mini_base)


@pytest.fixture(scope="module")
def adapter(base, tmp_path_factory) -> Path:
    """A LoRA for the miniature; tests must not change it."""
    path = tmp_path_factory.mktemp("adapter") / "some lora.safetensors"
    made = AdapterSet("unet", base.components["unet"], TrainConfig(lora_rank=RANK, lora_alpha=ALPHA))
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.1)
    save_adapter(path, {"unet": made}, ModelFormat.KOHYA_LORA, base.naming, AdapterDescription(title="some"))
    return path


@pytest.fixture
def make_view(app, mini_run, monkeypatch):
    """make_view() -> the tab as it is in a window that has just been opened, on a config of the miniature."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")

    def make():
        app.kept.pop("forms of tools", None)
        app._rebuild()
        app.form.replace(train_config_from_dict(mini_run.options()))
        app.show_tab("tools")
        app.update()
        return app.views["tools"][1]

    yield make
    app._rebuild()


@pytest.fixture
def view(make_view):
    return make_view()


@pytest.fixture
def fill(app, user):
    """fill(page, path=text …) types into the form of a tool."""

    def fill(page, **texts: object) -> None:
        app.update()
        for path, text in texts.items():
            user.set(page.view.rows[path], str(text))

    return fill


@pytest.fixture
def work(app, until):
    """work(page) presses the button and waits for the end; returns what the page's note said meanwhile."""

    def work(page) -> list[str]:
        page.button.invoke()
        assert page.process is not None
        notes: list[str] = []

        def ended() -> bool:
            notes.append(page.note.cget("text"))
            return page.process is None

        until(app, ended, LONG)
        return notes

    return work


def page_of(view, name: str):
    view.tabs.buttons[name].invoke()
    return view.pages[name]


def started(page):
    return lambda: page.process is not None and page.process.pid is not None


def pixels(widget) -> list[tuple[int, tuple[int, int, int]]]:
    """(count, colour) of what is seen of a widget on the screen."""
    widget.update()
    left, top = widget.winfo_rootx(), widget.winfo_rooty()
    box = (left, top, left + widget.winfo_width(), top + widget.winfo_height())
    return ImageGrab.grab(box, xdisplay="").convert("RGB").getcolors(1 << 24)


@pytest.mark.usefixtures("forked_scripts")
def test_a_prompt_is_tried_beside_the_model_alone(app, view, adapter, fill, work, mini_run):
    page = page_of(view, "try a prompt")
    work(page)
    assert page.note.cget("text") == "Write a prompt first."
    fill(page, adapter=adapter, prompt="a red shape", steps=2, width=32, height=32)
    work(page)
    assert page.note.cget("text") == "" and page.picture.winfo_viewable()
    kept = sorted((mini_run.workspace / "images").iterdir())
    assert [path.name for path in kept] == [
        "a red shape strengths-42.png", "a red shape-42-2.png", "a red shape-42.png",
    ]  # fmt: skip
    assert page.result.picture == kept[0] and not page.result.plot
    fill(page, strengths="0 one")
    work(page)
    assert "Strengths" in page.note.cget("text") and "invalid float value" in page.note.cget("text")


@pytest.mark.usefixtures("forked_scripts")
def test_captions_are_shown_first_and_written_then(app, view, fill, work, until, tmp_path):
    page, folder = page_of(view, "captions"), tmp_path / "photos"
    work(page)
    assert page.note.cget("text") == "Choose a folder of images first."
    folder.mkdir()
    for name in ("a.png", "b.png"):
        Image.new("RGB", (40, 30), "red").save(folder / name)
    (folder / "b.txt").write_text("mine")
    fill(page, folder=folder, model=make_blip(tmp_path / "blip"), start="ohwx,")
    work(page)
    assert page.note.cget("text") == "" and "a.png: ohwx, " in page.text.text
    assert sorted(path.name for path in folder.iterdir()) == ["a.png", "b.png", "b.txt"]
    fill(page, preview="")
    page.button.invoke()
    until(app, started(page), LONG)
    page.button.invoke()
    until(app, lambda: page.process is None, LONG)
    assert page.note.cget("text") == "Cancelled." and not list(folder.glob(".*.new"))
    work(page)
    assert "1 caption written." in page.text.text and (folder / "a.txt").read_text().startswith("ohwx, ")
    assert (folder / "b.txt").read_text() == "mine"


@pytest.mark.usefixtures("forked_scripts")
def test_masks_are_shown_first_and_written_then(app, view, fill, work, tmp_path):
    page, folder = page_of(view, "masks"), tmp_path / "photos"
    folder.mkdir()
    for name in ("a.png", "b.png"):
        image = Image.new("RGB", (48, 32), "blue")
        image.paste("red", (8, 8, 40, 24))
        image.save(folder / name)
    Image.new("L", (48, 32), 77).save(folder / "b-masklabel.png")
    fill(page, folder=folder, model=make_matting(tmp_path / "net.onnx"), prompt="a person")
    work(page)
    assert "What to find: " in page.note.cget("text") and "can't be asked anything" in page.note.cget("text")
    fill(page, prompt="", grow=-2)
    work(page)
    assert page.note.cget("text") == "" and "1 mask shown, none written." in page.text.text
    assert "Masked training is off" in " ".join(page.text.text.split()) and "written:" not in page.text.text
    assert sorted(path.name for path in folder.iterdir()) == ["a.png", "b-masklabel.png", "b.png"]
    app.update()
    seen = {color for _, color in pixels(page.picture)}
    assert page.picture.winfo_viewable() and {(255, 0, 0), (0, 0, 255)} <= seen, "the pictures keep their colours"
    fill(page, preview="", invert="true")
    work(page)
    assert "1 mask written." in page.text.text and not page.picture.winfo_viewable()
    with Image.open(folder / "a-masklabel.png") as mask:
        assert mask.size == (48, 32) and (mask.getpixel((24, 16)), mask.getpixel((2, 2))) == (0, 255)
    with Image.open(folder / "b-masklabel.png") as mask:
        assert mask.getcolors() == [(48 * 32, 77)]


def test_what_the_calculator_finds_is_taken_into_the_config(app, view, fill, work):
    page = page_of(view, "alpha calculator")
    assert page.hint.winfo_manager() and not page.text.winfo_manager() and not view.take.winfo_manager()
    fill(page, new_alpha=1)
    work(page)
    assert not page.hint.winfo_manager() and re.search(r"learning_rate +0\.01 +0\.02", page.text.text)
    view.take.invoke()
    config = app.form.config
    assert (config.lora_alpha, config.learning_rate, config.lora_init_scale) == (1.0, 0.02, 2.0)
    assert "lora_alpha" in app.problems.news and not view.take.winfo_manager()
    assert page.view.rows["lora_alpha"].control.shown() == "1", "it goes on from there"

    fill(page, new_alpha=2)
    work(page)
    app.form.set_text("lora_init_scale", "5")
    view.take.invoke()
    assert "has changed" in page.note.cget("text") and app.form.config.lora_alpha == 1
    work(page)
    app.form.set_text("lora_rank", "2")
    assert page.hint.winfo_manager() and not view.take.winfo_manager(), "that was for another rank"


def test_the_inspector_shows_every_layer_and_how_long_it_works(view, adapter, fill, work):
    page = page_of(view, "adapter inspector")
    fill(page, adapter=adapter)
    notes = work(page)
    assert {"Working …", "Working … 1 s", "Working … 2 s"} <= set(notes) and page.note.cget("text") == ""
    rows = {line.split()[0]: line.split()[1:] for line in page.text.text.splitlines() if line.startswith("lora_")}
    assert rows.keys() == read_adapter(adapter).layers.keys() and len(rows) > 10
    assert all(row[:2] == ["4", "3"] for row in rows.values())


@pytest.mark.usefixtures("forked_scripts")
def test_the_converter_replaces_a_file_only_when_told_to(view, base, adapter, fill, work, tmp_path):
    page, written = page_of(view, "converter"), tmp_path / "written here.safetensors"
    written.write_bytes(b"precious")
    fill(page, adapter=adapter, output=written, format="COMFY_LORA", base=base.name, rank=0)
    page.button.invoke()
    assert page.process is None and "Rank" in page.note.cget("text"), "nothing is begun with a wrong form"
    fill(page, rank="")
    work(page)
    assert page.note.cget("text") == f"{written} exists. Choose another name, or switch on Overwrite."
    assert str(page.note.cget("style")) == "Error.TLabel" and written.read_bytes() == b"precious"
    fill(page, overwrite="true")
    work(page)
    assert page.note.cget("text") == "" and "COMFY_LORA" in page.text.text
    assert read_adapter(written).format == ModelFormat.COMFY_LORA
    assert load_file(written).keys().isdisjoint(load_file(adapter))
    found, expected = (
        AdapterSet.from_parts("unet", base.components["unet"], file.fit(base.naming, base.components)["unet"])
        for file in map(read_adapter, (written, adapter))
    )
    assert found.adapters.keys() == expected.adapters.keys()
    for name, one in found.adapters.items():
        assert torch.equal(one.merged_delta(), expected.adapters[name].merged_delta()), name


@pytest.mark.usefixtures("forked_scripts")
def test_what_is_merged_is_extracted_again(view, base, adapter, fill, work, tmp_path):
    page, merged = page_of(view, "merge"), tmp_path / "merged model"
    fill(page, adapter=adapter, output=merged)
    work(page)
    assert page.note.cget("text") == "Choose the base model first."
    fill(page, base=base.name)
    work(page)
    assert page.note.cget("text") == "" and (merged / "model_index.json").is_file()
    page, written = page_of(view, "extract"), tmp_path / "extracted.safetensors"
    fill(page, base=base.name, tuned=merged, output=written, rank=RANK)
    work(page)
    assert page.note.cget("text") == ""
    found, expected = (
        AdapterSet.from_parts("unet", base.components["unet"], file.fit(base.naming, base.components)["unet"])
        for file in map(read_adapter, (written, adapter))
    )
    for name, one in expected.adapters.items():
        if one.merged_delta().norm() > 0:
            torch.testing.assert_close(found.adapters[name].merged_delta(), one.merged_delta(), rtol=1e-3, atol=1e-4)


@pytest.mark.usefixtures("forked_scripts")
def test_a_wrong_file_is_told_and_ranks_are_drawn_in_the_theme(app, view, adapter, fill, work, tmp_path):
    page, wrong = page_of(view, "effective rank"), tmp_path / "no adapter.safetensors"
    wrong.write_text("nothing", encoding="utf-8")
    fill(page, adapter=wrong)
    work(page)
    assert "no adapter.safetensors" in page.note.cget("text") and str(page.note.cget("style")) == "Error.TLabel"
    assert page.button.cget("text") == "Plot" and page.button.instate(["!disabled"]) and page.result is None
    fill(page, adapter=adapter)
    work(page)
    assert page.note.cget("text") == "" and f"mean of {len(read_adapter(adapter).layers)}" in page.text.text
    assert "written:" not in page.text.text, "that file is the window's own"

    before = app.settings.theme
    try:
        for theme in ("light", "dark"):
            app.show_theme(theme, 100)
            app.update()
            assert page.picture.winfo_viewable() and page.picture.winfo_width() > 300
            seen = pixels(page.picture)
            assert max(seen)[1] == ImageColor.getrgb(app.theme.color("card"))
            assert len(seen) > 100, "a plot is on it"
            # the line is blue on either
            assert sum(count for count, (red, _, blue) in seen if blue > red + 60) > 50
            assert str(page.text.box.cget("background")) == app.theme.color("field")
    finally:
        app.show_theme(before, 100)


def test_a_coordinate_check_draws_the_config_of_now(app, view, mini_run, fill, work, script_server):
    page, before = page_of(view, "coordinate check"), set(mini_run.root.rglob("*"))
    fill(page, methods="lora oft", ranks="2 8", blocks="2 4", steps="1", batch=2, bound=1)
    app.form.set_text("lora_rank", "2")
    with script_server.used():
        work(page)
    assert page.note.cget("text") == "" and "written:" not in page.text.text
    rows = [line.split()[:3] for line in page.text.text.splitlines() if " block " in line or " rank " in line]
    assert rows[:4] == [["LoRA", "rank", "2"], ["LoRA", "rank", "8"], ["OFT", "block", "2"], ["OFT", "block", "4"]]
    assert "spreads are above the bound of 1" in page.text.text, "which is no error"
    app.update()
    assert page.picture.winfo_viewable() and len(pixels(page.picture)) > 100, "a plot is on it"
    assert set(mini_run.root.rglob("*")) == before, "nothing is written into the run's folders"
    fill(page, methods="lara")
    work(page)
    assert "lara" in page.note.cget("text") and str(page.note.cget("style")) == "Error.TLabel"
    assert "Methods" in page.note.cget("text") and "--methods" not in page.note.cget("text")


@pytest.mark.usefixtures("forked_scripts")
def test_the_estimate_is_for_the_config_of_now(app, view, work):
    page = page_of(view, "memory estimate")
    app.form.set_text("ema", "GPU")
    work(page)
    rows = re.findall(r"^training +(.+?) +\d+\.\d\d$", page.text.text, re.MULTILINE)
    assert rows[0] == "weights of unet" and {"adapters", "optimizer state", "moving average"} <= set(rows)


def test_tensorboard_ends_with_the_window(display, ui_root):
    """A window in a process of its own, as one process has but one."""
    script = (
        "import sys; from pathlib import Path; from modules.ui.App import App\n"
        "app = App(Path(sys.argv[1])); app.show_tab('tools'); app.update()\n"
        "app.views['tools'][1].board.close = lambda: print('closed')\n"
        "app._rebuild(); app.show_tab('tools'); print('another size'); app.destroy()\n"
    )
    run = subprocess.run([sys.executable, "-c", script, str(ui_root)], capture_output=True, text=True, check=False)
    assert run.stdout.split("\n")[:2] == ["another size", "closed"], run.stderr


def test_tensorboard_answers_until_it_is_ended(app, view, work, make_view, mini_run, monkeypatch):
    opened: list[str] = []
    monkeypatch.setattr(webbrowser, "open", lambda address: opened.append(address) or True)
    page = page_of(view, "TensorBoard")
    work(page)
    address = view.board.address
    assert opened == [address] and address in page.text.text
    with urllib.request.urlopen(f"{address}/data/environment", timeout=60) as answer:
        assert Path(json.load(answer)["data_location"]) == mini_run.workspace / "tensorboard"
    process = psutil.Process(view.board.pid)
    work(page)
    assert opened == [address] * 2 and view.board.pid == process.pid, "it is not started twice"
    assert make_view().board is view.board and process.is_running(), "another size of the window does not end it"
    view.board.close()
    assert not process.is_running()
    with pytest.raises(OSError):
        urllib.request.urlopen(address, timeout=5)


@pytest.mark.usefixtures("forked_scripts")
def test_another_size_keeps_what_was_entered_and_waits_for_tools(app, view, adapter, fill, until):
    page = page_of(view, "adapter inspector")
    fill(page, adapter=adapter)
    page.button.invoke()
    until(app, started(page))
    app.show_theme("light", 125)
    assert app.settings.scale == 100 and "adapter inspector is at work" in app.problems.news
    page.button.invoke()
    until(app, lambda: page.process is None)
    app.show_theme("light", 125)
    app.show_tab("tools")
    again = page_of(app.views["tools"][1], "adapter inspector")
    assert again is not page and again.form.config.adapter == str(adapter)
    app.show_theme("light", 100)


@pytest.mark.usefixtures("forked_scripts")
def test_a_tool_is_cancelled_and_works_again(app, view, adapter, fill, until):
    page = page_of(view, "adapter inspector")
    fill(page, adapter=adapter)
    for _ in range(2):
        assert page.button.cget("text") == "Inspect"
        page.button.invoke()
        until(app, started(page))
        process = psutil.Process(page.process.pid)
        assert page.button.cget("text") == "Cancel" and page.button.instate(["!disabled"])
        page.button.invoke()
        until(app, lambda: page.process is None)
        assert not process.is_running() and page.note.cget("text") == "Cancelled."
        assert str(page.note.cget("style")) == "Muted.TLabel" and page.hint.winfo_manager()


@pytest.mark.usefixtures("forked_scripts")
def test_tools_end_with_their_view(app, view, make_view, adapter, fill, until):
    inspector, memory = page_of(view, "adapter inspector"), page_of(view, "memory estimate")
    inspector.form.set_text("adapter", str(adapter))
    for page in (inspector, memory):
        page.button.invoke()
        until(app, started(page))
    processes = [psutil.Process(page.process.pid) for page in (inspector, memory)]
    make_view()
    assert not [process for process in processes if process.is_running()]
    until(app, lambda: not app.worker.busy)


@pytest.mark.usefixtures("forked_scripts")
def test_tools_end_with_the_window(display, ui_root, tmp_path, adapter, until):
    # imported here, as tkinter looks for a display
    from modules.ui.App import App

    (tmp_path / "training_presets").symlink_to((ui_root / "training_presets").resolve())
    window = App(tmp_path)
    window.show_tab("tools")
    view = window.views["tools"][1]
    page = page_of(view, "adapter inspector")
    page.form.set_text("adapter", str(adapter))
    page.button.invoke()
    until(window, started(page))
    process = psutil.Process(page.process.pid)
    window.close()
    assert not process.is_running()
