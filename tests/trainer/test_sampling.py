"""Sample pictures: names, formats, grids, and what becomes of a failure."""

from contextlib import nullcontext

from modules.trainer.sampling import draw_samples, file_name, make_grid, save_picture
from modules.util.config.SampleConfig import SampleConfig
from modules.util.enum.ImageFormat import ImageFormat

import torch

import pytest
from PIL import Image


def picture(width: int, height: int, colour: str = "red") -> Image.Image:
    return Image.new("RGB", (width, height), colour)


def colours(image: Image.Image) -> set[tuple[int, ...]]:
    return {colour for _, colour in image.getcolors(1 << 24)}


def test_a_grid_holds_every_picture_once():
    rows = [("before", [picture(64, 64, "red"), picture(64, 64, "blue")]), ("after", [picture(64, 64, "lime")] * 2)]
    grid = make_grid(rows, ["one", "two"])
    found = grid.getcolors(1 << 24)
    counts = {colour: count for count, colour in found}
    # 64 px are shown three times as large
    assert counts[255, 0, 0] == counts[0, 0, 255] == 192 * 192 and counts[0, 255, 0] == 2 * 192 * 192
    assert grid.width > 2 * 192 and grid.height > 2 * 192


def test_a_missing_picture_is_a_grey_cell():
    grid = make_grid([("step 1", [picture(64, 64), None])], ["one", "two"])
    assert {(255, 0, 0), (60, 60, 60)} <= colours(grid)
    assert make_grid([("step 1", [None])], ["one"]).width > 192, "even if all are missing"


def test_pictures_keep_their_shape_and_large_ones_are_shrunk():
    grid = make_grid([("", [picture(1024, 512), picture(512, 1024, "blue")])], ["wide", "tall"])
    counts = {colour: count for count, colour in grid.getcolors(1 << 24)}
    assert counts[255, 0, 0] == counts[0, 0, 255] == 512 * 256


def test_long_captions_are_wrapped():
    short, long = (make_grid([("", [picture(64, 64)])], [text]) for text in ("a", "a long prompt of many words " * 5))
    assert long.width == short.width and long.height > short.height


@pytest.mark.parametrize(
    ("prompt", "name"),
    [("a red/blue: shape?", "3 - a redblue shape"), ("", "3"), ("...", "3"), ("x" * 99, "3 - " + "x" * 60)],
)
def test_folder_names_are_safe(prompt, name):
    assert file_name(3, prompt) == name


@pytest.mark.parametrize("kind", ImageFormat)
def test_formats(tmp_path, kind):
    path = save_picture(picture(16, 16).convert("RGBA"), tmp_path / "a folder" / "step-000001.5", kind)
    assert path.name == f"step-000001.5{kind.extension}"
    with Image.open(path) as image:
        assert image.format == kind.pil_format and image.size == (16, 16)


class Painter:
    """Stands in for a model: notes the seeds it was given, and fails for one prompt."""

    device = torch.device("cpu")

    def __init__(self) -> None:
        self.seeds: list[int] = []

    def tiled_decoding(self):
        return nullcontext()

    def sample(self, sample, seed, on_step):
        self.seeds.append(seed)
        if sample.prompt == "huge":
            raise torch.OutOfMemoryError("CUDA out of memory")
        on_step(sample.diffusion_steps, sample.diffusion_steps)
        return picture(8, 8)


def draw(painter: Painter, samples: list[dict], step: int = 1):
    warnings, progress = [], []
    configs = [SampleConfig.from_dict({"diffusion_steps": 5, **sample}) for sample in samples]
    pictures = draw_samples(painter, configs, 42, step, warnings.append, lambda k, n: progress.append((k, n)))
    return pictures, warnings, progress


def test_too_little_memory_is_told_and_never_ends_a_run():
    pictures, warnings, progress = draw(Painter(), [{"prompt": "huge"}, {"prompt": "small"}])
    assert pictures[0] is None and pictures[1] is not None
    assert len(warnings) == 1 and "Too little memory" in warnings[0] and "huge" in warnings[0]
    assert progress[-1] == (10, 10) and sorted(progress) == progress


def test_seeds_are_fixed_or_random_but_never_by_chance():
    painter = Painter()
    samples = [{"seed": 7}, {"random_seed": True}, {"random_seed": True}]
    draw(painter, samples, step=1)
    draw(painter, samples, step=1)
    draw(painter, samples, step=2)
    first, again, later = painter.seeds[:3], painter.seeds[3:6], painter.seeds[6:]
    assert first == again and first[0] == later[0] == 7
    assert len({*first[1:], *later[1:]}) == 4


def test_pictures_come_one_by_one_and_stop_leaves_out_the_rest(make_run):
    sample = {"prompt": "a red shape", "width": 32, "height": 32, "diffusion_steps": 1, "cfg_scale": 1.0}
    options = {"samples": [sample] * 3, "sample_after": 2, "sample_after_unit": "STEP", "epochs": 1}
    whole, stopped = make_run("whole"), make_run("stopped")
    whole.train(**options)
    trainer = stopped.trainer(**options)

    def listen(kind: str, values: dict) -> None:
        if kind == "sample" and values["step"] == 2:
            trainer.asked.stop = True

    trainer.events.listeners.append(listen)
    report = trainer.run()
    assert not report["finished"] and report["steps"] == 2 and stopped.output.is_file()
    assert [one["step"] for one in stopped.of_kind("sample")] == [0, 0, 0, 2], "before the others were drawn"
    assert "2 of 3 samples were left out to stop." in stopped.warnings()
    assert [record["step"] for record in report["samples"]] == [0], "half a round counts as none"
    stopped.train(**options, continue_last_backup=True)
    assert stopped.digest() == whole.digest()
