"""Samples during training: one picture for each prompt, a grid of each round, a before/after picture at the end."""

import re
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path

from modules.model.BaseModel import BaseModel
from modules.util.config.SampleConfig import SampleConfig
from modules.util.enum.ImageFormat import ImageFormat
from modules.util.keyed_random import step_seed
from modules.util.out_of_memory import is_out_of_memory
from modules.util.release_memory import release_memory
from modules.util.UserError import UserError

from PIL import Image, ImageDraw, ImageFont

MARGIN = 8
# small pictures are enlarged by a whole factor until they can be seen
SMALLEST_CELL = 192
# characters of a prompt that are written under a picture
LONGEST_CAPTION = 2000


def draw_samples(
    model: BaseModel,
    samples: Sequence[SampleConfig],
    seed: int,
    step: int,
    warn: Callable[[str], None],
    on_progress: Callable[[int, int], None],
    numbers: Sequence[int] | None = None,
    at_once: bool = False,
    take: Callable[[int, Image.Image], None] = lambda index, picture: None,
    stopped: Callable[[], bool] = lambda: False,
) -> list[Image.Image | None]:
    """One picture for each sample; None where it can't be drawn, which is told and never ends a run.

    There may be too little memory, or a picture from which it starts may be gone.

    Args:
        model: draws.
        samples: what to draw.
        seed: of those that have none of their own.
        step: of the run.
        warn: is told of those that can't be drawn.
        on_progress: gets how many steps of how many are done.
        numbers: of the samples among all of the run; None: these are all.
        at_once: too little memory is raised, as what the model's part is in other processes waits for this one.
        take: gets the number and the picture of each sample as soon as it is drawn.
        stopped: asked before each sample but the first; from True on none is drawn.
    """
    pictures: list[Image.Image | None] = []
    total = sum(sample.diffusion_steps for sample in samples)
    done = 0
    for index, sample in zip(range(len(samples)) if numbers is None else numbers, samples, strict=True):
        if pictures and stopped():
            pictures += [None] * (len(samples) - len(pictures))
            warn(f"{sum(picture is None for picture in pictures)} of {len(samples)} samples were left out to stop.")
            break
        own_seed = step_seed(seed, "sample", step, index) if sample.random_seed else sample.seed
        before = done
        try:
            picture = draw_sample(
                model, sample, own_seed, warn, lambda k, n, start=before: on_progress(start + k, total), at_once
            )
        except UserError as error:
            warn(f"The sample {sample.prompt[:LONGEST_CAPTION]!r} is left out: {error}")
            picture = None
        pictures.append(picture)
        if picture is not None:
            take(index, picture)
        done = before + sample.diffusion_steps
        on_progress(done, total)
    return pictures


def draw_sample(
    model: BaseModel,
    sample: SampleConfig,
    seed: int,
    warn: Callable[[str], None],
    on_step: Callable[[int, int], None],
    at_once: bool = False,
) -> Image.Image | None:
    """One picture; None if there is too little memory for it, even when the VAE decodes in tiles. `warn` is told.

    Args:
        model: draws.
        sample: what to draw.
        seed: of the noise.
        warn: gets a line.
        on_step: gets how many steps of how many are done.
        at_once: there is one try, whose failure is raised.
    """
    what = f"Too little memory for the sample {sample.prompt[:LONGEST_CAPTION]!r} at {sample.width}x{sample.height}"
    for attempt, decoding in enumerate((nullcontext, model.tiled_decoding)):
        try:
            with decoding():
                picture = model.sample(sample, seed, on_step)
        except (RuntimeError, MemoryError) as error:
            if at_once or not is_out_of_memory(error):
                raise
        else:
            if attempt:
                warn(f"{what}; its second try, which decodes it in tiles, went well.")
            return picture
        # only now does nothing hold the failed attempt's tensors any more
        release_memory(model.device)
    warn(f"{what}; it is left out.")
    return None


def file_name(index: int, prompt: str) -> str:
    """A folder name for a prompt that every file system takes."""
    words = re.sub(r"[^\w\- ,.]", "", prompt[:LONGEST_CAPTION])[:60].strip(" .")
    return f"{index} - {words}" if words else str(index)


def save_picture(picture: Image.Image, path: Path, kind: ImageFormat) -> Path:
    """Writes a picture in the configured format and returns its path."""
    path = path.with_name(path.name + kind.extension)
    path.parent.mkdir(parents=True, exist_ok=True)
    options = {"quality": 95} if kind == ImageFormat.JPG else {}
    picture.convert("RGB").save(path, **options)
    return path


def _cell(picture: Image.Image | None, size: tuple[int, int]) -> Image.Image:
    cell = Image.new("RGB", size, (60, 60, 60))
    if picture is not None:
        factor = min(size[0] / picture.width, size[1] / picture.height)
        scaled = picture.convert("RGB").resize(
            (round(picture.width * factor), round(picture.height * factor)),
            Image.Resampling.NEAREST if factor >= 2 else Image.Resampling.LANCZOS,
        )
        cell.paste(scaled, ((size[0] - scaled.width) // 2, (size[1] - scaled.height) // 2))
    return cell


def _wrapped(text: str, font: ImageFont.ImageFont, width: int) -> list[str]:
    lines = [""]
    shown = text if len(text) <= LONGEST_CAPTION else f"{text[:LONGEST_CAPTION]} …"
    for word in shown.split():
        longer = f"{lines[-1]} {word}".strip()
        if font.getlength(longer) <= width or not lines[-1]:
            lines[-1] = longer
        else:
            lines.append(word)
    return lines


def make_grid(rows: Sequence[tuple[str, Sequence[Image.Image | None]]], captions: Sequence[str]) -> Image.Image:
    """A picture of named rows of pictures, with a caption under each column."""
    pictures = [picture for _, row in rows for picture in row if picture is not None]
    largest = max((max(picture.size) for picture in pictures), default=SMALLEST_CELL)
    side = largest * max(1, round(SMALLEST_CELL / largest)) if largest < SMALLEST_CELL else min(largest, 512)
    font = ImageFont.load_default(15)
    wrapped = [_wrapped(caption, font, side) for caption in captions]
    line = 19
    foot = line * max(len(lines) for lines in wrapped) + MARGIN
    label = max((int(font.getlength(name)) for name, _ in rows), default=0)
    label += 2 * MARGIN if label else 0
    width = label + len(captions) * (side + MARGIN) + MARGIN
    grid = Image.new("RGB", (width, len(rows) * (side + MARGIN) + MARGIN + foot), "white")
    draw = ImageDraw.Draw(grid)
    for y, (name, row) in enumerate(rows):
        top = MARGIN + y * (side + MARGIN)
        draw.text((MARGIN, top + side // 2 - line // 2), name, fill="black", font=font)
        for x, picture in enumerate(row):
            grid.paste(_cell(picture, (side, side)), (label + MARGIN + x * (side + MARGIN), top))
    for x, lines in enumerate(wrapped):
        for k, text in enumerate(lines):
            position = (label + MARGIN + x * (side + MARGIN), grid.height - foot + k * line)
            draw.text(position, text, fill="black", font=font)
    return grid
