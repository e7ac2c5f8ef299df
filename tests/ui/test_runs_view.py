"""The tab of all runs, on runs as they lie on a disk; a picture as large as its window; rows of the queue."""

import json

from modules.ui.AskWindow import AskWindow
from modules.viewModel.SampleGrid import PictureRow
from tests.viewModel.written_runs import write_record

import pytest


@pytest.fixture
def view(app, ui_root, until):
    """The tab with four runs, of which the newest is chosen."""
    workspace = ui_root / "workspace"
    write_record(workspace / "first", at=1e9, pictures=(0, 10, 20), learning_rate=0.5)
    # newer than the runs that other tests have left
    write_record(workspace / "second", at=4e9, pictures=(0, 9, 20, 30), level=2.0, lora_rank=77)
    write_record(workspace / "broken", at=4.1e9, steps=0, state="failed")
    app.settings.run_folders[:] = [str(ui_root / "lost")]
    # that of other tests shows fewer samples at once
    app.geometry("1280x740+0+0")
    until(app, lambda: (app.winfo_width(), app.winfo_height()) == (1280, 740))
    app.show_tab("runs")
    made = app.views["runs"][1]
    made.show_page("curves")
    until(app, lambda: len(made.model.rows) >= 4 and not made.model.reads and made.model.data)
    # another test may have chosen others: without any the newest is chosen, as in a window that was just opened
    made.model.choose([])
    until(app, lambda: made.model.chosen and not made.model.reads and not made._paging.waits)
    yield made
    app.settings.run_folders.clear()
    if made.gallery.window is not None:
        made.gallery.window.destroy()


def keys(view, *names: str) -> list[str]:
    return [next(run.key for run in view.model.rows if run.name == name) for name in names]


def choose(app, view, until, *names: str) -> None:
    view.table.tree.selection_set(keys(view, *names))
    until(app, lambda: view.model.chosen == keys(view, *names) and not view.model.reads and not view._paging.waits)
    app.update()


def shown(canvas) -> str:
    return " ".join(canvas.itemcget(item, "text") for item in canvas.find_all() if canvas.type(item) == "text")


def answer(app, text: str) -> None:
    app.after(200, lambda: next(child for child in app.winfo_children() if isinstance(child, AskWindow)).give(text))


def test_runs_are_listed_sorted_and_compared(app, view, until):
    tree = view.table.tree
    rows = {tree.item(key, "text"): tree.item(key, "values") for key in tree.get_children()}
    assert rows["first"][:3] == ("finished", "SDXL", "LoRA") and rows["lost"][0] == "folder gone"
    assert [run.name for run in view.model.runs] == ["second"], "the newest that has steps"
    view.sort_by(0)
    names = [tree.item(key, "text") for key in tree.get_children()]
    assert names == sorted(names)
    view.sort_by(0)
    assert [tree.item(key, "text") for key in tree.get_children()] == names[::-1]
    assert [run.name for run in view.model.runs] == ["second"], "what is chosen stays"

    choose(app, view, until, "second", "first")
    text = shown(view.curves.plot)
    assert "second" in text and "first" in text and "Loss" in text and "steps" in text
    view.curves.kinds.buttons["validation"].invoke()
    view.curves.across.buttons["by time"].invoke()
    assert "Validation loss" in shown(view.curves.plot) and "minutes" in shown(view.curves.plot)
    view.curves.kinds.buttons["loss"].invoke()
    view.curves.across.buttons["by steps"].invoke()

    view.show_page("options that differ")
    table = view.options.table.tree
    until(app, lambda: table.exists("lora_rank"))
    assert table.item("lora_rank", "values") == ("77", "16") and table.item("lora_rank", "text") == "Rank"
    assert table.tag_has("muted", "workspace_dir") and not table.tag_has("muted", "learning_rate")
    choose(app, view, until, "lost")
    assert "disabled" not in view.buttons["forget"].state() and "disabled" in view.buttons["folder"].state()
    before = len(view.model.rows)
    view.buttons["forget"].invoke()
    until(app, lambda: len(view.model.rows) == before - 1)
    assert not app.settings.run_folders


def test_the_page_of_a_run_is_written_and_replaced_only_after_a_question(app, view, until, ui_root):
    choose(app, view, until, "second", "first")
    assert "disabled" in view.buttons["page"].state(), "a page is of one run"
    choose(app, view, until, "first")
    page = ui_root / "workspace" / "first" / "first run.html"
    view.buttons["page"].invoke()
    until(app, lambda: "Written:" in app.problems.news)
    assert "Finished." in page.read_text(encoding="utf-8")
    page.write_text("mine", encoding="utf-8")
    answer(app, "Cancel")
    view.buttons["page"].invoke()
    assert page.read_text(encoding="utf-8") == "mine"
    answer(app, "Replace it")
    view.buttons["page"].invoke()
    until(app, lambda: page.read_text(encoding="utf-8") != "mine")
    page.unlink()


def test_samples_of_runs_stand_beside_each_other_and_are_enlarged(app, view, until):
    choose(app, view, until, "first")
    view.show_page("samples")
    until(app, lambda: len(view.gallery._photos) == 6)
    assert [row.title for row in view.gallery.gallery.rows] == ["a red shape", "a blue shape"]
    choose(app, view, until, "second", "first")
    until(app, lambda: len(view.gallery._photos) == 7)
    assert view.gallery.gallery.columns == 4, "9 and 10 stand in one column"
    view.gallery.choose("a blue shape")
    until(app, lambda: "a blue" in str(view.gallery._places[1][2].path))
    left, top, picture = view.gallery._places[1]
    view.gallery.canvas.event_generate("<Button-1>", x=left + 5, y=top + 5)
    app.update()
    window = view.gallery.window
    assert window.grid_model.picture == picture and "step 9" in window.title() and "1 - a blue" in str(picture.path)

    until(app, lambda: window._photo is not None)
    for key in ("<Right>", "<Down>"):
        window.focus_force()
        app.update()
        window.event_generate(key)
        app.update()
    assert (window.grid_model.picture.step, window.grid_model.rows[window.grid_model.row].title) == (20, "first")
    before = window.zoom.scale
    window.canvas.event_generate("<Button-4>", x=10, y=10)
    until(app, lambda: window.zoom.scale > before)
    window.show_all()
    until(app, lambda: window.zoom.scale == before)
    # the newest is followed
    newer = [*window.grid_model.rows[1].pictures, window.grid_model.rows[0].pictures[-1]]
    window.show([window.grid_model.rows[0], PictureRow("first", newer)])
    assert window.grid_model.picture.step == 30
    window.focus_force()
    app.update()
    window.event_generate("<Escape>")
    until(app, lambda: not window.winfo_exists())


def test_the_config_of_a_run_is_opened_after_asking(app, view, until):
    choose(app, view, until, "second")
    app.form.set_text("lora_rank", "5")
    answer(app, "Cancel")
    view.buttons["config"].invoke()
    assert app.form.config.lora_rank == 5
    answer(app, "Open")
    view.buttons["config"].invoke()
    assert app.form.config.lora_rank == 77 and "config of second" in app.problems.news
    assert app.session.name == "no preset" and not app.session.is_modified and not app.presets.can_save


def test_a_row_of_the_queue_says_what_it_is(app):
    app.show_tab("run")
    view, queue = app.views["run"][1], app.runs.controller.queue
    view.show_foot("queue")
    item = queue.add("a long name", app.form.config.to_dict(), "about 720 steps")
    try:
        view.queue.refresh()
        line = view.queue.lines[-1]
        assert line["about"].full.startswith(
            "Stable Diffusion 1.5 · LoRA · about 720 steps · models/lora.safetensors · added 2"
        )
        # one that an older program has kept
        file = queue.folder / "queue.json"
        kept = json.loads(file.read_text("utf-8"))
        kept["items"] = [{key: one[key] for key in ("name", "config", "state")} for one in kept["items"]]
        file.write_text(json.dumps(kept), "utf-8")
        assert type(queue)(queue.folder).items[-1].about == "Stable Diffusion 1.5 · LoRA · models/lora.safetensors"
    finally:
        queue.remove(item)
        view.queue.refresh()
