"""What nobody has trained on: scenes that the base model knows, and the concept in combinations that are new to it."""

import random
from collections.abc import Iterable, Sequence
from pathlib import Path

from benchmarks.tinyBase.concept import ConceptImage, concept_caption, draw_concept, encode
from benchmarks.tinyBase.lumo import LUMO_CONCEPT, unseen_ink, unseen_lumos
from benchmarks.tinyBase.scenes import Scene, caption, draw_scene, random_scene

# another seed than that of the base's own training and of the demo's ordinary scenes
ORDINARY_SEED = "held out for forgetting"


def write_ordinary(folder: Path, count: int, exchanged: bool = False) -> None:
    """Draws `count` scenes as the base model's training drew them, each with its caption, into a folder.

    Args:
        folder: of pictures and captions.
        count: the same scenes come first for every count.
        exchanged: whether each picture has the caption of the next one in the place of its own.
    """
    rng = random.Random(ORDINARY_SEED)
    pictures, captions = zip(*(_ordinary(rng) for _ in range(count)), strict=True)
    if exchanged:
        captions = (*captions[1:], captions[0])
    _write(folder, zip(pictures, captions, strict=True))


def _ordinary(rng: random.Random) -> tuple[bytes, str]:
    scene = random_scene(rng)
    return encode(draw_scene(scene, rng=rng), ConceptImage(scene)), caption(scene, rng)


def write_unseen_concept(folder: Path, count: int) -> None:
    """Draws `count` pictures of the concept into a folder: the validation images first, then new combinations.

    Of the new ones half are lumos and half are vintage, in colours and shapes that no training image combines.
    """
    rng = random.Random("unseen concept")
    new = [
        ConceptImage(scene, styled=styled)
        for pair in zip(_shuffled(unseen_lumos(), rng), _shuffled(unseen_ink(), rng), strict=False)
        for scene, styled in zip(pair, (False, True), strict=True)
    ]
    _write(folder, map(_concept, [*LUMO_CONCEPT.validation, *new][:count]))


def _concept(item: ConceptImage) -> tuple[bytes, str]:
    return encode(draw_concept(LUMO_CONCEPT, item), item), concept_caption(LUMO_CONCEPT, item)


def _shuffled(scenes: Sequence[Scene], rng: random.Random) -> list[Scene]:
    return rng.sample(scenes, len(scenes))


def _write(folder: Path, pictures: Iterable[tuple[bytes, str]]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for number, (content, words) in enumerate(pictures):
        (folder / f"{number:03d}.png").write_bytes(content)
        (folder / f"{number:03d}.txt").write_text(f"{words}\n", encoding="utf-8")
