"""Where pictures stand in a grid, and small pictures that are kept within a bound."""

from pathlib import Path

from modules.viewModel.grid_places import GridPlaces
from modules.viewModel.text_lines import wrapped
from modules.viewModel.Thumbnails import Thumbnails
from modules.viewModel.Worker import Worker
from tests.viewModel.finish import finish

import pytest
from PIL import Image


def test_places():
    grid = GridPlaces(10, (100, 50), 330)
    assert (grid.columns, grid.rows, grid.height) == (3, 4, 200)
    assert [grid.place(index) for index in (0, 1, 3, 9)] == [(0, 0), (110, 0), (0, 50), (0, 150)]
    assert all(grid.at(x + 3, y + 3) == index for index in range(10) for x, y in [grid.place(index)])
    assert grid.at(120, 160) is None and grid.at(400, 0) is None and grid.at(5, -3) is None
    assert grid.seen(0, 50) == range(0, 3) and grid.seen(60, 50) == range(3, 9) and grid.seen(900, 50) == range(10, 10)
    narrow = GridPlaces(2, (100, 50), 30)
    assert narrow.columns == 1 and narrow.rows == 2 and GridPlaces(0, (100, 50), 330).seen(0, 500) == range(0, 0)


@pytest.mark.parametrize(
    ("index", "key", "expected"),
    [(4, "Left", 3), (4, "Right", 5), (4, "Up", 1), (4, "Down", 7), (1, "Up", 0), (9, "Down", 9), (4, "Home", 0),
     (4, "End", 9), (9, "Prior", 3), (0, "Next", 6), (-1, "Down", 0), (-1, "End", 9)],
)  # fmt: skip
def test_keys(index, key, expected):
    assert GridPlaces(10, (100, 50), 330).moved(index, key, 120) == expected


def test_wrapped():
    assert wrapped("one two three four", 9, 2, len) == ["one two", "three fo…"]
    assert wrapped("one two", 9, 2, len) == ["one two"] and wrapped("  ", 9, 2, len) == []
    assert wrapped("incomprehensible\nit is", 9, 2, len) == ["incompre…", "it is"]


def make(worker: Worker, thumbnails: Thumbnails, paths: list[str], come: list[str]) -> None:
    thumbnails.wish(paths)
    finish(worker, lambda: set(paths) <= set(come))


def test_small_pictures_are_kept_within_a_bound(tmp_path):
    paths: list[str] = []
    for place in range(30):
        paths.append(str(tmp_path / f"{place}.png"))
        Image.new("RGB", (80, 40), (place, 0, 0)).save(paths[-1])
    Path(paths[29]).write_bytes(b"")
    worker, come, trouble = Worker(), [], []
    thumbnails = Thumbnails(worker, 20, come.extend, trouble.append, 20 * 10 * 3 * 8)
    # one after the other, as two threads do not end in a known order
    for path in paths[:6]:
        make(worker, thumbnails, [path], come)
    assert sorted(come) == sorted(paths[:6]) and thumbnails.get(paths[3]).size == (20, 10)
    assert thumbnails.get(paths[3]).getpixel((5, 5)) == (3, 0, 0)
    make(worker, thumbnails, paths[6:10], come)
    assert thumbnails.bytes <= 20 * 10 * 3 * 8 and thumbnails.has(paths[3]) and not thumbnails.has(paths[0])
    make(worker, thumbnails, paths[28:], come)
    assert thumbnails.has(paths[29]) and thumbnails.get(paths[29]) is None, "what can't be read is not tried again"
    thumbnails.wish(paths)
    thumbnails.stop()
    assert trouble == []


def test_pictures_of_few_pixels_are_enlarged(tmp_path):
    worker, come = Worker(), []
    paths = [str(tmp_path / name) for name in ("tiny.png", "wide.png", "none.png")]
    tiny = Image.new("RGB", (4, 2))
    tiny.putpixel((1, 0), (255, 0, 0))
    tiny.save(paths[0])
    Image.linear_gradient("L").resize((400, 100)).save(paths[1])
    sizes = []
    for enlarged in (False, True):
        thumbnails = Thumbnails(worker, 40, come.extend, come.append, enlarged=enlarged)
        make(worker, thumbnails, paths, come)
        come.clear()
        assert thumbnails.has(paths[2]) and thumbnails.get(paths[2]) is None
        sizes.append([thumbnails.get(path).size for path in paths[:2]])
    assert sizes == [[(4, 2), (40, 10)], [(40, 20), (40, 10)]]
    assert sorted(thumbnails.get(paths[0]).getcolors()) == [(100, (255, 0, 0)), (700, (0, 0, 0))], "pixel by pixel"
