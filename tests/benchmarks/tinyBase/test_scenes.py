"""The scenes that the tiny base model learns are drawn as their captions say, the same each time."""

import random

from benchmarks.tinyBase.scenes import (
    BACKGROUNDS,
    COLORS,
    COUNTS,
    POSITIONS,
    SHAPES,
    SIZES,
    Scene,
    caption,
    contrasting,
    draw_scene,
    object_centers,
    random_doodle,
    random_scene,
)

import numpy as np
import pytest


def test_random_scenes_are_valid_and_reach_every_value():
    rng = random.Random(3)
    scenes = [random_scene(rng) for _ in range(2000)]
    for name, table in (
        ("shape", SHAPES),
        ("color", COLORS),
        ("background", BACKGROUNDS),
        ("size", SIZES),
        ("position", POSITIONS),
        ("count", COUNTS),
    ):
        assert {getattr(scene, name) for scene in scenes} == set(table), name
    assert all(contrasting(scene.color, scene.background) for scene in scenes)
    assert all(scene.count == 1 or (scene.size, scene.position) == ("small", "center") for scene in scenes)


def test_caption_names_what_is_drawn():
    rng = random.Random(4)
    for _ in range(500):
        scene = random_scene(rng)
        words = caption(scene, rng).replace(",", "").split()
        assert scene.color in words
        plural = scene.shape + ("es" if scene.shape == "cross" else "s")
        assert (plural if scene.count > 1 else scene.shape) in words
        assert scene.count == 1 or COUNTS[scene.count] in words
        assert scene.position == "center" or scene.position in words
        assert scene.count > 1 or scene.size == "medium" or scene.size in words


def test_caption_uses_the_right_article():
    rng = random.Random(5)
    texts = {caption(Scene("star", "orange", "white"), rng) for _ in range(100)}
    assert all("a orange" not in text for text in texts)
    assert any(text.startswith("an orange star") for text in texts)


def test_drawing_is_repeatable_and_antialiased():
    scene = Scene("heart", "red", "white", "large")
    first = draw_scene(scene, rng=random.Random(1))
    assert first.tobytes() == draw_scene(scene, rng=random.Random(1)).tobytes()
    assert first.tobytes() != draw_scene(scene, rng=random.Random(2)).tobytes()
    assert first.size == (64, 64) and first.mode == "RGB"
    assert len(np.unique(np.asarray(first).reshape(-1, 3), axis=0)) > 10


@pytest.mark.parametrize("shape", SHAPES)
def test_an_object_stands_where_it_is_said(shape):
    for position in POSITIONS:
        scene = Scene(shape, "red", "white", "small", position)
        painted = np.asarray(draw_scene(scene), dtype=int)
        rows, columns = np.nonzero(np.abs(painted - BACKGROUNDS["white"]).sum(axis=2) > 200)
        x, y = (axis.min() + axis.max() + 1 for axis in (columns, rows))
        fx, fy = object_centers(scene)[0]
        assert abs(x / 2 - 64 * fx) < 2 and abs(y / 2 - 64 * fy) < 2.5, position


def test_other_sizes_keep_the_shape_round():
    wide = np.asarray(draw_scene(Scene("circle", "red", "white", "large"), width=96, height=48), dtype=int)
    rows, columns = np.nonzero(np.abs(wide - BACKGROUNDS["white"]).sum(axis=2) > 200)
    assert abs(np.ptp(rows) - np.ptp(columns)) <= 1


def test_doodles_are_repeatable_and_varied():
    pictures = [random_doodle(random.Random(seed)).tobytes() for seed in range(8)]
    assert pictures == [random_doodle(random.Random(seed)).tobytes() for seed in range(8)]
    assert len(set(pictures)) == 8
