"""Pictures in rows: which is looked at, which part of it, and runs beside each other."""

from pathlib import Path

from modules.viewModel.PictureZoom import PictureZoom
from modules.viewModel.RunModel import picture_of
from modules.viewModel.SampleGallery import gallery, prompts_of
from modules.viewModel.SampleGrid import PictureRow, SampleGrid

import pytest


def pictures(*steps, prompt="0 - cat", end="png"):
    return [picture_of(step, Path(f"/w/samples/{prompt}/step-{step:06d}.{end}")) for step in steps]


def test_the_newest_is_followed_and_an_older_one_stays():
    rows = [PictureRow("one", pictures(0, 10, 20)), PictureRow("none", []), PictureRow("two", pictures(0, 12))]
    grid = SampleGrid(rows)
    assert grid.picture.step == 20 and "step 20" in grid.title and len(grid.rows) == 2
    grid.show([PictureRow("one", pictures(0, 10, 20, 30)), rows[2]])
    assert grid.picture.step == 30
    grid.turn(-2)
    grid.show([PictureRow("one", pictures(0, 10, 20, 30, 40)), rows[2]])
    assert grid.picture.step == 10, "an older one is not left"
    grid.change_row(1)
    assert grid.picture.step == 12 and "two" in grid.title
    grid.turn(5)
    grid.change_row(-1)
    assert grid.picture.step == 10
    grid.open(rows[0].pictures[2])
    assert grid.picture.step == 20
    grid.show([])
    assert grid.picture is None and "no picture" in grid.title


def test_zoom_keeps_what_is_under_the_pointer_and_stays_in_the_picture():
    zoom = PictureZoom()
    zoom.show((100, 50), (200, 200))
    assert zoom.scale == 2 and zoom.box == (0, 0, 100, 50) and zoom.shown == (200, 100)

    def at(x, y):
        left, top, right, bottom = zoom.box
        wide, high = zoom.shown
        return left + (x - (200 - wide) / 2) / zoom.scale, top + (y - (200 - high) / 2) / zoom.scale

    zoom.zoom(8, 100, 100)
    before = at(150, 90)
    zoom.zoom(2, 150, 90)
    assert at(150, 90) == pytest.approx(before) and zoom.scale > 10
    zoom.move(1e6, 1e6)
    assert zoom.box[:2] == (0, 0)
    zoom.show((100, 50), (300, 100))
    assert zoom.scale > 10, "another room keeps the part"
    zoom.zoom(-100, 0, 0)
    assert zoom.box == (0, 0, 100, 50)
    zoom.zoom(3, 0, 0)
    zoom.show((64, 64), (300, 100))
    assert zoom.box == (0, 0, 64, 64), "another picture's size shows all"


def test_prompts_are_matched_by_their_text_and_rounds_by_their_steps():
    one = prompts_of(
        [*pictures(0, prompt="1 - dog"), *pictures(0, 10), *pictures(10, prompt="2 - cat"), *pictures(10, end="jpg")]
    )
    assert list(one) == ["cat", "dog", "cat (2)"] and [p.path.suffix for p in one["cat"]] == [".png", ".jpg"]
    assert not prompts_of([picture_of(3, Path("/w/before_after.png"))])
    table = gallery({"a": pictures(0, 103, 211), "b": pictures(0, 98, 205, 300), "none": []})
    steps = [[cell.step if cell else None for cell in row] for row in table.cells]
    assert steps == [[0, 103, 211, None], [0, 98, 205, 300]] and table.columns == 4
    finer = gallery({"a": pictures(0, 100), "b": pictures(0, 50, 100)})
    assert [[cell.step if cell else None for cell in row] for row in finer.cells] == [[0, None, 100], [0, 50, 100]]
    assert gallery({}).columns == 0
