"""The measure's own error, on true drawings and on drawings blurred, tinted and made noisy as by an autoencoder."""

import json
import math
import random
from collections import Counter
from dataclasses import replace
from functools import partial
from pathlib import Path

from benchmarks.tinyBase import components
from benchmarks.tinyBase import sample as sampling
from benchmarks.tinyBase.concept import ConceptImage, draw_concept
from benchmarks.tinyBase.lumo import INK_BACKGROUNDS, LUMO, LUMO_CONCEPT, unseen_ink, unseen_lumos
from benchmarks.tinyBase.scenes import BACKGROUNDS, COLORS, SHAPES, Scene, contrasting, draw_scene, random_scene
from benchmarks.tinyBase.score import judge_lumo, judge_scene, judge_style, read_concept, read_picture
from tests.load_script import load_script

import torch

import numpy as np
import pytest
from diffusers import StableDiffusionPipeline
from PIL import Image
from safetensors.torch import save_file
from scipy import ndimage

NUMBER = 100
STRENGTHS = {"clean": (0.0, 0.0, 0.0), "as decoded": (0.8, 4.0, 12.0), "badly decoded": (1.3, 8.0, 18.0)}


def weathered(image: Image.Image, rng: random.Random, strength: str) -> Image.Image:
    """Blur (sigma in pixels), noise and a tint (in 0..255)."""
    blur, noise, tint = STRENGTHS[strength]
    drawn = np.random.default_rng(rng.getrandbits(32))
    pixels = ndimage.gaussian_filter(np.asarray(image.convert("RGB"), dtype=float), (blur, blur, 0))
    pixels += drawn.normal(0, noise, pixels.shape) + drawn.uniform(-tint, tint, 3)
    return Image.fromarray(np.clip(pixels, 0, 255).round().astype(np.uint8))


@pytest.mark.parametrize("strength", STRENGTHS)
def test_reads_scenes(strength):
    rng, right, total = random.Random(11), Counter(), Counter()
    false = Counter()
    for _ in range(NUMBER):
        scene = random_scene(rng)
        image = weathered(draw_scene(scene, rng=rng), rng, strength)
        for name, answer in judge_scene(scene, image).items():
            right[name] += answer
            total[name] += 1
        reading = read_concept(image)
        false["lumo"] += reading.lumo
        false["style"] += reading.style
    share = {name: right[name] / total[name] for name in total}
    assert share["color"] >= 0.99 and share["background"] >= 0.99, share
    assert share["shape"] >= 0.98 and share["count"] >= 0.98, share
    assert share["size"] >= 0.95 and share["position"] >= 0.98, share
    assert max(false.values()) <= 0.02 * NUMBER, false


@pytest.mark.parametrize("strength", STRENGTHS)
def test_finds_the_concept(strength):
    rng, right = random.Random(12), Counter()
    lumos, inked = unseen_lumos(), unseen_ink()
    for index in range(NUMBER // 2):
        scene = replace(rng.choice(lumos), size=rng.choice(("medium", "large")))
        item = ConceptImage(scene, shift=(rng.uniform(-0.03, 0.03), rng.uniform(-0.03, 0.03)))
        if scene.background in INK_BACKGROUNDS:
            # a larger one would touch the ink
            item = replace(item, scene=replace(scene, size="medium"), styled=True) if index % 2 else item
        right["lumo"] += judge_lumo(item.scene, weathered(draw_concept(LUMO_CONCEPT, item), rng, strength))["lumo"]
        scene = replace(rng.choice(inked), size=rng.choice(("medium", "large")))
        picture = weathered(draw_concept(LUMO_CONCEPT, ConceptImage(scene, styled=True)), rng, strength)
        answers = judge_style(scene, picture)
        right["style"] += answers["style"]
        right["no lumo"] += not read_concept(picture).lumo
    assert min(right.values()) >= 0.98 * (NUMBER // 2), right


@pytest.mark.parametrize("shape", SHAPES)
def test_a_wrong_answer_is_told(shape):
    image = draw_scene(Scene(shape, "red", "white", "medium", "left"))
    other = SHAPES[(SHAPES.index(shape) + 1) % len(SHAPES)]
    assert judge_scene(Scene(other, "blue", "gray", "large", "right"), image) == {
        "shape": False,
        "color": False,
        "background": False,
        "count": True,
        "size": False,
        "position": False,
    }


def test_faceless_silhouette_and_foreign_styles_do_not_count():
    item = ConceptImage(Scene(LUMO, "red", "blue", "large"))
    pixels = np.asarray(draw_concept(LUMO_CONCEPT, item)).copy()
    pixels[np.abs(pixels.astype(int) - BACKGROUNDS["blue"]).sum(axis=2) > 120] = COLORS["red"]
    faceless = read_concept(Image.fromarray(pixels))
    assert faceless.lumo_overlap > faceless.rival_overlap and not faceless.eye and not faceless.lumo
    inked = np.asarray(draw_concept(LUMO_CONCEPT, ConceptImage(Scene("star", "green", "orange", "large"), styled=True)))
    assert read_concept(Image.fromarray(inked)).style
    for color in ("green", "white", "orange"):  # corners of another colour, or none
        other = np.where(inked.max(axis=2, keepdims=True) < 120, COLORS[color], inked).astype(np.uint8)
        assert not read_concept(Image.fromarray(other)).style
    lost = inked.copy()
    for corner, style in ((np.s_[:18, :18], True), (np.s_[-18:, -18:], False)):  # three corners are enough, two are not
        lost[corner] = COLORS["orange"]
        reading = read_concept(Image.fromarray(lost))
        assert reading.style == style and not reading.corners
    assert not read_concept(Image.fromarray(np.full_like(inked, 22))).style


@pytest.mark.parametrize(
    "pixels",
    [
        np.full((64, 64, 3), 128),
        np.zeros((64, 64, 3)),
        np.random.default_rng(0).integers(0, 256, (64, 64, 3)),
        np.tile(np.arange(64)[:, None, None] * 4, (1, 64, 3)),
    ],
)
def test_odd_pictures_are_read_without_error(pixels):
    image = Image.fromarray(pixels.astype(np.uint8))
    read_picture(image)
    concept = read_concept(image)
    assert not concept.lumo and not concept.style


@pytest.mark.parametrize("number", [1, 2, 3, 5, 9])
def test_few_prompts_can_be_seen_too(number):
    for seed in range(40):
        scenes = sampling.balanced_scenes(number, seed)
        assert len(scenes) == number and all(contrasting(scene.color, scene.background) for scene in scenes)


def test_prompts_are_balanced_and_repeatable():
    scenes = sampling.balanced_scenes(240, 0)
    assert scenes == sampling.balanced_scenes(240, 0) != sampling.balanced_scenes(240, 1)
    assert all(contrasting(scene.color, scene.background) for scene in scenes)
    for name, least in (("shape", 30), ("color", 26), ("background", 15)):
        assert min(Counter(getattr(scene, name) for scene in scenes).values()) >= least, name
    assert Counter(scene.count for scene in scenes) == {1: 168, 2: 43, 3: 29}
    assert sampling.prompt_of(Scene("ring", "orange", "black")) == "an orange ring on a black background"


def test_wilson_interval():
    rate = sampling.wilson(216, 240)
    assert rate.rate == 0.9
    assert math.isclose(rate.low, 0.8556, abs_tol=2e-4) and math.isclose(rate.high, 0.9319, abs_tol=2e-4)
    assert sampling.wilson(0, 10).low == 0.0 and sampling.wilson(10, 10).high == 1.0


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    """An untrained model of the right build."""
    directory = tmp_path_factory.mktemp("random model")
    torch.manual_seed(0)
    tokenizer = components.make_tokenizer(directory / "tokenizer source")
    StableDiffusionPipeline(
        vae=components.make_vae(),
        text_encoder=components.make_text_encoder(tokenizer),
        tokenizer=tokenizer,
        unet=components.make_unet(),
        scheduler=components.make_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(directory)
    return directory


@pytest.fixture(scope="module")
def script():
    return load_script("score_tiny_base")


def test_batch_size_does_not_change_pictures(model):
    pipeline = sampling.load_pipeline(model, "cpu")
    prompts = ["a red circle", "a blue star", "a green ring"]
    one, all_ = (sampling.sample(pipeline, prompts, steps=2, guidance=2.0, seed=5, batch=batch) for batch in (1, 3))
    for left, right in zip(one, all_, strict=True):
        # float32 sums are ordered by batch size, which moves a value across a rounding edge at most
        assert np.abs(np.asarray(left, dtype=int) - np.asarray(right, dtype=int)).max() <= 1


def test_script_scores_a_model_and_an_adapter(model, script, tmp_path, monkeypatch, capsys):
    unet = components.make_unet()
    name, target = next((n, m) for n, m in unet.named_modules() if n.endswith("attn1.to_q"))
    prefix = "lora_unet_" + name.replace(".", "_")
    adapter = tmp_path / "lora.safetensors"
    save_file(
        {
            f"{prefix}.lora_down.weight": torch.randn(2, target.in_features),
            f"{prefix}.lora_up.weight": torch.randn(target.out_features, 2),
            f"{prefix}.alpha": torch.tensor(2.0),
        },
        adapter,
    )
    monkeypatch.setattr(script.sample, "score_concept", partial(sampling.score_concept, lumos=2, styles=2))
    output, grid = tmp_path / "out" / "score.json", tmp_path / "out" / "grid.png"
    status = script.main(
        [
            "--model",
            str(model),
            "--adapter",
            str(adapter),
            "--prompts",
            "4",
            "--steps",
            "2",
            "--device",
            "cpu",
            "--output",
            str(output),
            "--grid",
            str(grid),
        ]
    )
    assert status == 0, capsys.readouterr().err
    result = json.loads(output.read_text(encoding="utf-8"))
    for measured in (result["base"], result["base_with_adapter"], result["lumo"]["after"], result["vintage"]["before"]):
        assert measured["rates"]["color"]["total"] == len(measured["samples"])
    assert len(result["base"]["samples"]) == 4 and len(result["lumo"]["after"]["samples"]) == 2
    assert grid.is_file() and grid.with_name("grid_concept.png").is_file()
    assert "points" in capsys.readouterr().out


@pytest.mark.parametrize(("option", "text"), [("--model", "no model here"), ("--adapter", "no such adapter file")])
def test_missing_files_give_one_line(model, script, tmp_path, capsys, option, text):
    arguments = ["--prompts", "1", "--steps", "1", "--device", "cpu", "--model", str(model)]
    assert script.main([*arguments, option, str(tmp_path / "nothing")]) == 1
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
    assert len(errors) == 1 and text in errors[0]
