"""Narrower and wider tiny bases: their sizes, what is left as it is, resuming, and that distillation teaches."""

import json
from dataclasses import asdict, replace
from pathlib import Path

from benchmarks.tinyBase import sample, widths
from benchmarks.tinyBase.training import keyed_generator, noised_batch
from benchmarks.tinyBase.widths import WIDTHS, Distillation, distill, held_out_quality, make_width, training_scenes
from modules.util.UserError import UserError
from tests.load_script import load_script

import torch

import pytest
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from safetensors.torch import load_file

ROOT = Path(__file__).resolve().parents[3]
BASE = ROOT / "models/tiny_sd"
CPU = torch.device("cpu")
RECIPE = Distillation(scenes=6, batch=2, warmup=2, checkpoint_every=2)
# channels of the base (48, 96, 128) times the width
CHANNELS = {"quarter": [12, 24, 32], "half": [24, 48, 64], "double": [96, 192, 256]}


@pytest.fixture(scope="module")
def pipeline() -> StableDiffusionPipeline:
    return sample.load_pipeline(BASE, "cpu")


def make(name: str, folder: Path, output: Path, steps: int = 4, recipe: Distillation = RECIPE):
    return make_width(name, replace(WIDTHS[name], steps=steps), recipe, BASE, folder, output, CPU, held_out=8)


def files_in(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("name", list(WIDTHS))
def test_a_variant_has_its_width_and_the_bases_other_components(name, tmp_path):
    make(name, tmp_path / "work", tmp_path / name, steps=1)
    loaded = StableDiffusionPipeline.from_pretrained(tmp_path / name, local_files_only=True)
    base = UNet2DConditionModel.load_config(BASE / "unet")
    config = json.loads((tmp_path / name / "unet/config.json").read_text(encoding="utf-8"))
    differing = {key for key in base if config[key] != base[key]}
    assert differing == {"block_out_channels", "norm_num_groups"}
    assert config["block_out_channels"] == CHANNELS[name]
    # as many channels a group as the base has
    assert CHANNELS[name][0] / config["norm_num_groups"] == base["block_out_channels"][0] / base["norm_num_groups"]
    assert loaded.unet.conv_in.weight.shape == (CHANNELS[name][0], 8, 3, 3)
    weights = load_file(tmp_path / name / "unet/diffusion_pytorch_model.safetensors")
    assert {tensor.dtype for tensor in weights.values()} == {torch.float16}
    ours, theirs = files_in(tmp_path / name), files_in(BASE)
    assert set(ours) == set(theirs)
    assert all(ours[file] == theirs[file] for file in theirs if not file.startswith("unet/"))
    image = loaded("a red circle", num_inference_steps=2, output_type="np").images[0]
    assert image.shape == (64, 64, 3)


def test_a_stopped_training_ends_as_an_uninterrupted_one(tmp_path, interrupted):
    quality = make("half", tmp_path / "whole", tmp_path / "model")
    interrupted(lambda: make("half", tmp_path / "stopped", tmp_path / "other"))
    assert not (tmp_path / "other").exists()
    assert make("half", tmp_path / "stopped", tmp_path / "other") == quality
    assert files_in(tmp_path / "model") == files_in(tmp_path / "other")


def test_a_checkpoint_refuses_other_settings(tmp_path):
    make("half", tmp_path / "work", tmp_path / "model", steps=2)
    with pytest.raises(UserError, match=r"half\.pt.*steps 2, now 3.*--workspace"):
        make("half", tmp_path / "work", tmp_path / "model", steps=3)
    with pytest.raises(UserError, match="batch 2, now 1"):
        make("half", tmp_path / "work", tmp_path / "model", steps=2, recipe=replace(RECIPE, batch=1))


def test_distillation_comes_nearer_to_the_base(tmp_path, pipeline):
    recipe = Distillation(scenes=16, batch=4, ema_decay=0.9, warmup=5)
    data = training_scenes(pipeline, recipe, BASE, tmp_path, CPU)
    alphas = pipeline.scheduler.alphas_cumprod

    def distance(steps: int) -> float:
        width = replace(WIDTHS["half"], steps=steps)
        (tmp_path / "half.pt").unlink(missing_ok=True)
        unet = distill("half", width, recipe, pipeline.unet, data, alphas, tmp_path)
        return held_out_quality(pipeline, unet, scenes=16).distance

    # measured: 0.79 behind one step, 0.57 behind 25, 0.46 behind 50
    assert distance(40) < 0.75 * distance(1)


def test_the_base_is_as_good_as_itself_and_better_than_nothing(pipeline):
    quality = held_out_quality(pipeline, pipeline.unet, scenes=16)
    assert quality.distance == 0 and quality.loss == quality.base_loss
    assert quality.weighted_loss == quality.base_weighted_loss
    # a prediction of 0 has a loss of 1
    assert 0 < quality.weighted_loss < quality.loss < 0.5


def test_captions_are_encoded_once_as_the_pipeline_does(tmp_path, pipeline):
    data = training_scenes(pipeline, RECIPE, BASE, tmp_path, CPU)
    assert data.latents.shape == (6, 2, 8, 16, 16) and data.embeddings.shape == (6, 24, 96)
    empty, _ = pipeline.encode_prompt("", torch.device("cpu"), 1, False)
    torch.testing.assert_close(data.empty, empty[0])
    assert not torch.equal(data.embeddings[0], data.embeddings[1])
    again = training_scenes(pipeline, RECIPE, BASE, tmp_path, CPU)
    assert all(
        torch.equal(one, other) for one, other in zip(asdict(data).values(), asdict(again).values(), strict=True)
    )


def test_timesteps_of_a_batch_cover_the_range():
    alphas = torch.linspace(0.999, 0.01, 1000)
    latents = torch.stack([torch.ones(8, 8, 4, 4), torch.zeros(8, 8, 4, 4)], dim=1)
    noised = noised_batch(latents, alphas, keyed_generator(0, "test", 0))
    assert [int(t) // 125 for t in noised.timesteps] == list(range(8))
    a = alphas[noised.timesteps][:, None, None, None]
    torch.testing.assert_close(noised.sample, a.sqrt() + (1 - a).sqrt() * noised.noise)


def run_script(arguments: list[str]) -> int:
    return load_script("make_tiny_widths").main(arguments)


def test_script_writes_the_widths_it_is_asked_for(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(torch, "set_num_threads", lambda count: None)
    output = tmp_path / "a folder"
    paths = ["--model", str(BASE), "--output", str(output), "--workspace", str(tmp_path / "work")]
    assert (
        run_script(["--widths", "half", "--steps", "1", "--scenes", "3", "--batch", "2", "--held-out", "4", *paths])
        == 0
    )
    assert {path.name for path in output.iterdir()} == {"half", "half.json"}
    numbers = json.loads((output / "half.json").read_text(encoding="utf-8"))
    assert numbers.keys() == {field for field in widths.Quality.__dataclass_fields__}
    assert f"{numbers['loss']:.4f}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["--steps", "0"], "--steps must be at least 1"), (["--widths", "third"], "invalid choice")],
)
def test_script_refuses_what_makes_no_sense(arguments, message, capsys):
    with pytest.raises(SystemExit):
        run_script(arguments)
    assert message in capsys.readouterr().err


def test_script_says_where_there_is_no_base(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(torch, "set_num_threads", lambda count: None)
    assert run_script(["--model", str(tmp_path), "--output", str(tmp_path), "--workspace", str(tmp_path)]) == 1
    assert "error:" in (error := capsys.readouterr().err) and "model_index.json" in error
