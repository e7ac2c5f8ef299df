"""Samples the tiny base model on a balanced set of prompts and measures what the pictures show."""

import math
import random
import textwrap
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from benchmarks.tinyBase.concept import ConceptImage, concept_caption
from benchmarks.tinyBase.lumo import LUMO_CONCEPT, unseen_ink, unseen_lumos
from benchmarks.tinyBase.scenes import BACKGROUNDS, COLORS, POSITIONS, SHAPES, SIZES, Scene, caption, contrasting
from benchmarks.tinyBase.score import judge_lumo, judge_scene, judge_style
from modules.util.UserError import UserError

import torch

from diffusers import StableDiffusionPipeline
from PIL import Image, ImageDraw, ImageFont
from tqdm import tqdm

LUMO_PROMPTS, STYLE_PROMPTS = 48, 32


@dataclass(frozen=True)
class Sample:
    """A prompt, the scene it stands for, and what of it the picture shows."""

    prompt: str
    scene: Scene
    image: Image.Image
    right: dict[str, bool]


@dataclass(frozen=True)
class Rate:
    """How often something was right, with Wilson's 95 % interval."""

    right: int
    total: int
    rate: float
    low: float
    high: float


class _FixedPhrasing(random.Random):
    """Makes `caption` use its most common phrasing, "a red circle on a blue background"."""

    def random(self) -> float:
        return 0.5


def prompt_of(scene: Scene) -> str:
    """The prompt for a scene, always in the same phrasing."""
    return caption(scene, _FixedPhrasing())


def _balanced(values: list, number: int, rng: random.Random) -> list:
    """`number` values, each about equally often, in random order."""
    repeated = [values[index % len(values)] for index in range(number)]
    rng.shuffle(repeated)
    return repeated


def balanced_scenes(number: int, seed: int) -> list[Scene]:
    """Scenes that hold every shape, colour, background, count, size and position about equally often.

    Of the scenes 70 % hold one object, 18 % two and 12 % three, as in training. Deterministic in `seed`.
    """
    rng = random.Random(f"score {seed}")
    shapes, colors = (_balanced(list(values), number, rng) for values in (SHAPES, COLORS))
    backgrounds = _balanced(list(BACKGROUNDS), number, rng)
    for index in range(number):  # exchange backgrounds until every shape can be seen
        while not contrasting(colors[index], backgrounds[index]):
            if not any(contrasting(colors[index], background) for background in backgrounds):
                # of a few scenes none has one that suits
                backgrounds[index] = rng.choice([b for b in BACKGROUNDS if contrasting(colors[index], b)])
                break
            other = rng.randrange(number)
            if contrasting(colors[index], backgrounds[other]):
                backgrounds[index], backgrounds[other] = backgrounds[other], backgrounds[index]
                if not contrasting(colors[other], backgrounds[other]):
                    backgrounds[other] = rng.choice([b for b in BACKGROUNDS if contrasting(colors[other], b)])
    several = [2] * round(0.18 * number) + [3] * round(0.12 * number)
    counts = several + [1] * (number - len(several))
    rng.shuffle(counts)
    sizes, positions = (_balanced(list(values), number, rng) for values in (SIZES, POSITIONS))
    scenes = [Scene(*choice) for choice in zip(shapes, colors, backgrounds, strict=True)]
    return [
        replace(scene, count=count, size="small")
        if count > 1
        else replace(scene, size=size, position="center" if size == "large" else position)
        for scene, count, size, position in zip(scenes, counts, sizes, positions, strict=True)
    ]


def _concept_scenes(pool: list[Scene], number: int, seed: int) -> list[Scene]:
    rng = random.Random(f"concept {seed}")
    return _balanced(pool, max(number, len(pool)), rng)[:number]


def load_pipeline(model: Path, device: str) -> StableDiffusionPipeline:
    """The model in float32, silent. A directory in diffusers' layout."""
    if not (model / "model_index.json").is_file():
        raise UserError(
            f"{model}: no model here (model_index.json is missing); "
            "make it with scripts/make_tiny_base.py or name another with --model"
        )
    pipeline = StableDiffusionPipeline.from_pretrained(
        model, dtype=torch.float32, safety_checker=None, requires_safety_checker=False, local_files_only=True
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline.to(device)


def load_adapter(pipeline: StableDiffusionPipeline, file: Path) -> None:
    """Loads a LoRA file through diffusers, as any other program would."""
    try:
        pipeline.load_lora_weights(file.parent, weight_name=file.name, local_files_only=True)
    except (ValueError, RuntimeError, OSError, KeyError) as error:
        raise UserError(f"{file}: diffusers cannot load it as a LoRA of this model ({str(error)[:200]})") from error
    if not pipeline.get_list_adapters():
        raise UserError(f"{file}: holds no LoRA weights for this model; name a file that was trained on it")


def sample(
    pipeline: StableDiffusionPipeline,
    prompts: list[str],
    *,
    steps: int,
    guidance: float,
    seed: int,
    batch: int,
    label: str = "sampling",
) -> list[Image.Image]:
    """One picture a prompt. Each has its own generator, so that the batch size changes nothing but speed."""
    images: list[Image.Image] = []
    with tqdm(total=len(prompts), desc=label, unit="image") as progress:
        for start in range(0, len(prompts), batch):
            chunk = prompts[start : start + batch]
            generators = [
                torch.Generator().manual_seed(seed * 1_000_003 + start + index) for index in range(len(chunk))
            ]
            images += pipeline(chunk, num_inference_steps=steps, guidance_scale=guidance, generator=generators).images
            progress.update(len(chunk))
    return images


def _judged(
    pipeline: StableDiffusionPipeline,
    scenes: list[Scene],
    prompts: list[str],
    judge: Callable[[Scene, Image.Image], dict[str, bool]],
    **settings,
) -> list[Sample]:
    images = sample(pipeline, prompts, **settings)
    return [
        Sample(prompt, scene, image, judge(scene, image))
        for prompt, scene, image in zip(prompts, scenes, images, strict=True)
    ]


def score_scenes(pipeline: StableDiffusionPipeline, number: int, **settings) -> list[Sample]:
    """Samples and judges `number` ordinary scenes; `settings` are those of `sample`."""
    scenes = balanced_scenes(number, settings["seed"])
    return _judged(pipeline, scenes, [prompt_of(scene) for scene in scenes], judge_scene, **settings)


def score_concept(
    pipeline: StableDiffusionPipeline, lumos: int = LUMO_PROMPTS, styles: int = STYLE_PROMPTS, **settings
) -> tuple[list[Sample], list[Sample]]:
    """Samples and judges lumos and pictures in vintage, in combinations that no training image shows."""
    results = []
    for pool, number, judge, ink in (
        (unseen_lumos(), lumos, judge_lumo, False),
        (unseen_ink(), styles, judge_style, True),
    ):
        scenes = _concept_scenes(pool, number, settings["seed"])
        prompts = [concept_caption(LUMO_CONCEPT, ConceptImage(scene, styled=ink)) for scene in scenes]
        results.append(_judged(pipeline, scenes, prompts, judge, **settings))
    return results[0], results[1]


def wilson(right: int, total: int, z: float = 1.96) -> Rate:
    """A proportion with its 95 % interval, which stays inside 0..1 for small counts and extreme rates."""
    if total == 0:
        return Rate(0, 0, math.nan, 0.0, 1.0)
    p, spread = right / total, z * z / total
    middle = (p + spread / 2) / (1 + spread)
    half = z * math.sqrt(p * (1 - p) / total + spread / total / 4) / (1 + spread)
    return Rate(right, total, p, max(0.0, middle - half), min(1.0, middle + half))


def rates(samples: list[Sample]) -> dict[str, Rate]:
    """The rate of each thing that was judged, over the samples in which it was asked for."""
    names = list(dict.fromkeys(name for one in samples for name in one.right))
    answers = {name: [one.right[name] for one in samples if name in one.right] for name in names}
    return {name: wilson(sum(given), len(given)) for name, given in answers.items()}


def table(title: str, after: dict[str, Rate], before: dict[str, Rate] | None = None) -> str:
    """The rates as text in columns; with `before` also the change in points."""
    lines = [title]
    for name, rate in after.items():
        line = (
            f"  {name:<12} {100 * rate.rate:5.1f} %  ({100 * rate.low:.1f} to {100 * rate.high:.1f} %, "
            f"{rate.right} of {rate.total})"
        )
        if before is not None:
            line += f"  before {100 * before[name].rate:5.1f} %, {100 * (rate.rate - before[name].rate):+.1f} points"
        lines.append(line)
    return "\n".join(lines)


def to_json(samples: list[Sample]) -> dict:
    """Rates and each sample's answers."""
    return {
        "rates": {name: asdict(rate) for name, rate in rates(samples).items()},
        "samples": [{"prompt": one.prompt, **one.right} for one in samples],
    }


def grid(
    samples: list[Sample],
    before: list[Sample] | None = None,
    columns: int = 8,
    scale: int = 2,
    decisive: tuple[str, ...] | None = None,
) -> Image.Image:
    """The pictures with their prompts; a red frame where one of the `decisive` answers (default: any) is no.

    With `before`, each cell shows the picture of the same prompt and noise before and after.
    """
    width, height = (side * scale for side in samples[0].image.size)
    across, gap, text = (2 if before else 1), 4, 38
    cell_width, cell_height = across * width + 2 * gap, height + 2 * gap + text
    rows = math.ceil(len(samples) / columns)
    sheet = Image.new("RGB", (columns * cell_width, rows * cell_height), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=10)
    letters = int(cell_width / 5.3)
    for index, one in enumerate(samples):
        x, y = index % columns * cell_width, index // columns * cell_height
        if not all(one.right[name] for name in decisive or one.right):
            draw.rectangle((x + 1, y + 1, x + cell_width - 2, y + height + 2 * gap - 2), fill=(220, 30, 30))
        pictures = ([before[index].image] if before else []) + [one.image]
        for place, picture in enumerate(pictures):
            large = picture.convert("RGB").resize((width, height), Image.Resampling.BICUBIC)
            sheet.paste(large, (x + gap + place * width, y + gap))
        lines = textwrap.wrap(one.prompt, letters)[:3]
        draw.multiline_text(
            (x + gap, y + height + 2 * gap - 1), "\n".join(lines), fill=(40, 40, 40), font=font, spacing=1
        )
    return sheet
