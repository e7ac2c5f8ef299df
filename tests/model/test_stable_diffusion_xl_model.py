"""The SDXL family against diffusers: captions, noisy inputs, targets, predictions, samples; and its options."""

import json
import shutil
from functools import cache
from pathlib import Path

from modules.dataLoader.Encoder import Encoder
from modules.model.BaseModel import family_of
from modules.model.ScheduledNoise import SCHEDULERS
from modules.model.StableDiffusionXLModel import StableDiffusionXLModel
from modules.util.config.SampleConfig import SampleConfig
from modules.util.config.TrainConfig import TrainConfig
from modules.util.enum.DataType import DataType
from modules.util.enum.ModelType import ModelType
from modules.util.UserError import UserError

import torch

import numpy as np
import pytest
from diffusers import DDPMScheduler, StableDiffusionXLPipeline
from safetensors.torch import load_file, save_file

CPU = torch.device("cpu")
XL = ModelType.STABLE_DIFFUSION_XL_10_BASE
CAPTIONS = ["red cat", "a (blue) dog!", ""]
# height and width of the image, top and left of the crop, height and width of what is trained
PLACEMENT = torch.tensor([[512.0, 768, 0, 0, 16, 16], [1023, 1100, 3, 64, 16, 16], [48, 48, 7, 1, 16, 16]])


def load(folder: Path, **options) -> StableDiffusionXLModel:
    config = TrainConfig(base_model_name=str(folder), model_type=XL, **options)
    return StableDiffusionXLModel.load(config, CPU)


# for tests that leave model and folder as they are
shared = cache(load)


@pytest.fixture
def model(xl_folder) -> StableDiffusionXLModel:
    return shared(xl_folder)


@cache
def pipeline_of(folder: Path) -> StableDiffusionXLPipeline:
    pipeline = StableDiffusionXLPipeline.from_pretrained(folder, add_watermarker=False)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def latents(count: int = 3) -> torch.Tensor:
    return torch.randn(count, 4, 8, 8, generator=torch.Generator().manual_seed(5))


def run(model: StableDiffusionXLModel, monkeypatch, placement: torch.Tensor = PLACEMENT):
    """One prediction; returns it with the noisy latents that the UNet saw."""
    seen, forward = [], model.unet.forward

    def watch(sample, *args, **kwargs):
        seen.append(sample)
        return forward(sample, *args, **kwargs)

    monkeypatch.setattr(model.unet, "forward", watch)
    with torch.no_grad():
        conditions = {**model.encode_captions(CAPTIONS), "placement": placement}
        prediction = model.predict(latents(), conditions, torch.Generator().manual_seed(1))
    return prediction, seen[0]


def peers_prediction(peer: StableDiffusionXLPipeline, noisy: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
    """What diffusers' own components make of the captions and placements."""
    with torch.no_grad():
        hidden, _, pooled, _ = peer.encode_prompt(CAPTIONS, device=CPU, do_classifier_free_guidance=False)
        ids = [
            peer._get_add_time_ids((h, w), (top, left), (height, width), torch.float32, 20)
            for h, w, top, left, height, width in PLACEMENT.tolist()
        ]
        added = {"text_embeds": pooled, "time_ids": torch.cat(ids)}
        return peer.unet(noisy, timesteps, hidden, added_cond_kwargs=added).sample


@pytest.mark.parametrize("velocity", [False, True])
def test_prediction_against_the_peer(xl_folder, monkeypatch, velocity):
    prediction, noisy = run(shared(xl_folder, force_v_prediction=velocity), monkeypatch)
    # first the timesteps are drawn, then the noise
    generator = torch.Generator().manual_seed(1)
    timesteps = (torch.rand(3, generator=generator, dtype=torch.float64) * 1000).long()
    noise = torch.randn(3, 4, 8, 8, generator=generator)
    peer = pipeline_of(xl_folder)
    scheduler = DDPMScheduler.from_config(peer.scheduler.config)
    clean = latents() * peer.vae.config.scaling_factor
    # the same numbers through float32
    close = {"atol": 2e-6, "rtol": 1e-6}
    torch.testing.assert_close(noisy, scheduler.add_noise(clean, noise, timesteps), **close)
    target = scheduler.get_velocity(clean, noise, timesteps) if velocity else noise
    torch.testing.assert_close(prediction.target, target, **close)
    expected = peers_prediction(peer, noisy, timesteps)
    torch.testing.assert_close(prediction.predicted, expected, atol=1e-5, rtol=1e-5)
    assert torch.equal(prediction.timesteps, timesteps) and prediction.velocity == velocity
    share = scheduler.alphas_cumprod[timesteps]
    torch.testing.assert_close(prediction.snr, share / (1 - share), atol=1e-5, rtol=2e-3)


@pytest.mark.parametrize("column", range(6))
def test_each_number_of_the_placement_matters(model, monkeypatch, column):
    plain = run(model, monkeypatch)[0].predicted
    moved = PLACEMENT.clone()
    moved[1, column] += 37
    other = run(model, monkeypatch, placement=moved)[0].predicted
    assert torch.equal(plain[[0, 2]], other[[0, 2]]) and not torch.allclose(plain[1], other[1], atol=1e-4)


def test_images_are_encoded_to_the_posterior_mean(xl_folder, model):
    pixels = torch.rand(2, 3, 16, 24) * 2 - 1
    with torch.no_grad():
        expected = pipeline_of(xl_folder).vae.encode(pixels).latent_dist.mean
    assert torch.equal(model.encode_images(pixels), expected)
    assert model.image_grid == 4


# --- captions


@pytest.mark.parametrize("skip", [0, 1, 2])
def test_layer_skip_counts_from_the_last_but_one_as_the_pipelines_clip_skip(xl_folder, skip):
    options = {"text_encoder_layer_skip": skip, "text_encoder_2_layer_skip": skip}
    found = shared(xl_folder, **options).encode_captions(CAPTIONS)
    hidden, _, pooled, _ = pipeline_of(xl_folder).encode_prompt(
        CAPTIONS, device=CPU, do_classifier_free_guidance=False, clip_skip=skip or None
    )
    assert found["hidden"].shape == (3, 16, 16 + 24) and found["pooled"].shape == (3, 20)
    # batched in the same way through the same weights
    torch.testing.assert_close(found["hidden"], hidden, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(found["pooled"], pooled, atol=1e-6, rtol=1e-6)


def test_each_encoder_has_its_own_skip(xl_folder, model):
    plain = model.encode_captions(CAPTIONS)
    for option, changed, kept in (
        ("text_encoder_layer_skip", slice(0, 16), slice(16, 40)),
        ("text_encoder_2_layer_skip", slice(16, 40), slice(0, 16)),
    ):
        other = shared(xl_folder, **{option: 1}).encode_captions(CAPTIONS)
        assert torch.equal(other["pooled"], plain["pooled"])
        assert torch.equal(other["hidden"][..., kept], plain["hidden"][..., kept])
        assert not torch.allclose(other["hidden"][..., changed], plain["hidden"][..., changed])


@pytest.mark.parametrize(("option", "layers"), [("text_encoder_layer_skip", 3), ("text_encoder_2_layer_skip", 4)])
def test_layer_skip_beyond_the_encoder(xl_folder, option, layers):
    with pytest.raises(UserError, match=f"{option}: found {layers},.* only {layers} layers"):
        shared(xl_folder, **{option: layers}).encode_captions(["cat"])


def test_sequence_lengths(xl_folder):
    def encode(first, second):
        options = {"text_encoder_sequence_length": first, "text_encoder_2_sequence_length": second}
        return shared(xl_folder, **options).encode_captions(["cat " * 50])["hidden"].shape[1]

    # what is longer than the encoders' positions means all of them
    assert encode(None, None) == encode(512, 77) == 16 and encode(7, 7) == 7
    with pytest.raises(UserError, match="found 7 and 16 tokens"):
        encode(7, 16)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_gradient_only_through_trained_text_encoders(xl_folder, checkpointing):
    model = load(xl_folder)
    components = ("text_encoder", "text_encoder_2")
    weights = {
        component: model.components[component].get_input_embeddings().weight.requires_grad_()
        for component in components
    }
    assert not model.encode_captions(["cat"])["hidden"].requires_grad
    model.text_encoder_trained = True
    for component in components:
        model.set_gradient_checkpointing(component, checkpointing)
    encoded = model.encode_captions(["red cat"])
    (encoded["hidden"].square().sum() + encoded["pooled"].square().sum()).backward()
    peer = pipeline_of(xl_folder)
    for component in components:
        peers = getattr(peer, component).get_input_embeddings().weight
        peers.grad = None
    hidden, _, pooled, _ = peer.encode_prompt(["red cat"], device=CPU, do_classifier_free_guidance=False)
    (hidden.square().sum() + pooled.square().sum()).backward()
    for component in components:
        expected = getattr(peer, component).get_input_embeddings().weight.grad
        assert expected.abs().sum() > 0
        torch.testing.assert_close(weights[component].grad, expected, atol=1e-5, rtol=1e-5)


# --- sampling


@pytest.mark.parametrize("negative", ["dog", ""])
def test_sample_equals_the_plain_pipeline(xl_folder, model, negative):
    settings = SampleConfig(
        prompt="red cat", negative_prompt=negative, width=19, height=24, diffusion_steps=4, cfg_scale=3.0
    )
    steps = []
    image = model.sample(settings, 9, lambda step, total: steps.append((step, total)))
    peer = pipeline_of(xl_folder)
    kept, peer.scheduler = peer.scheduler, model.pipeline().scheduler
    expected = peer(
        "red cat", negative_prompt=negative, width=16, height=24, num_inference_steps=4, guidance_scale=3.0,
        generator=torch.Generator().manual_seed(9),
    ).images[0]  # fmt: skip
    peer.scheduler = kept
    assert image.size == (16, 24) and steps == [(1, 4), (2, 4), (3, 4), (4, 4)]
    # prompts are encoded together here and one by one there: the last bit may differ, which can tip a rounding
    difference = np.abs(np.asarray(image, dtype=int) - np.asarray(expected, dtype=int))
    assert difference.max() <= 1
    assert np.asarray(image).std() > 1
    assert list(model.sample(settings, 10, lambda *_: None).getdata()) != list(image.getdata())


@pytest.mark.parametrize("scheduler", list(SCHEDULERS))
def test_every_sampler_draws(model, scheduler):
    settings = SampleConfig(prompt="cat", width=8, height=8, diffusion_steps=3, noise_scheduler=scheduler)
    # not a number becomes black
    assert np.asarray(model.sample(settings, 1, lambda *_: None)).std() > 1


def test_encoders_are_not_needed_for_remembered_prompts(xl_folder):
    model = load(xl_folder)
    settings = SampleConfig(prompt="cat", width=8, height=8, diffusion_steps=1)
    model.prompts(settings)
    assert model.components.loaded.keys() == {"text_encoder", "text_encoder_2"}
    model.rest()
    assert not model.components.loaded
    model.sample(settings, 1, lambda *_: None)
    assert model.components.loaded.keys() == {"unet", "vae"}


# --- the VAE in half precision


def overflowing(folder: Path, target: Path) -> Path:
    """A copy whose VAE has activations beyond float16's range, as SDXL's own; its weights are not."""
    shutil.copytree(folder, target)
    file = target / "vae" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(file)
    for name in ("encoder.conv_in.bias", "encoder.down_blocks.0.resnets.0.conv2.bias"):
        tensors[name].fill_(6e4)
    save_file(tensors, file, metadata={"format": "pt"})
    return target


def half_vae(folder: Path) -> StableDiffusionXLModel:
    config = TrainConfig(base_model_name=str(folder), model_type=XL)
    config.vae.weight_dtype = config.unet.weight_dtype = DataType.FLOAT_16
    return StableDiffusionXLModel.load(config, CPU)


def test_vae_that_asks_for_it_works_in_float32(xl_folder, tmp_path):
    folder = overflowing(xl_folder, tmp_path / "base")
    model = half_vae(folder)
    assert model.vae.dtype == torch.float32 and model.unet.dtype == torch.float16
    pixels = torch.rand(3, 16, 16)
    assert torch.isfinite(Encoder(model).image(pixels, "a.png")).all()
    # without that word in its config it stays as the user wished, and the error says what to do
    config = folder / "vae" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "force_upcast": False}))
    other = half_vae(folder)
    assert other.vae.dtype == torch.float16
    with pytest.raises(UserError, match="a.png: .*vae.weight_dtype to FLOAT_32"):
        Encoder(other).image(pixels, "a.png")


def test_samples_are_decoded_outside_a_runs_autocast(xl_folder):
    model = load(xl_folder)
    seen, decode = [], model.vae.decode
    model.vae.decode = lambda latents, **options: seen.append(torch.is_autocast_enabled("cpu")) or decode(latents)
    with torch.autocast("cpu", torch.bfloat16):
        model.sample(SampleConfig(prompt="cat", width=8, height=8, diffusion_steps=1), 1, lambda *_: None)
    assert seen == [False]


# --- what it says of itself, and its fingerprints


def test_family_and_file_description(xl_folder, model):
    assert family_of(TrainConfig(model_type=XL)) is StableDiffusionXLModel
    assert model.file_description() == {
        "architecture": "stable-diffusion-xl-v1-base", "base_version": "sdxl_base_v1-0", "prediction_type": "epsilon",
    }  # fmt: skip
    assert shared(xl_folder, force_v_prediction=True).file_description()["prediction_type"] == "v"


def test_text_fingerprint_follows_both_encoders(xl_folder, tmp_path, model):
    folder = Path(shutil.copytree(xl_folder, tmp_path / "base"))
    assert load(folder).text_fingerprint() == model.text_fingerprint()
    for component in ("text_encoder", "text_encoder_2"):
        file = folder / component / "model.safetensors"
        tensors = load_file(file)
        tensors[sorted(tensors)[0]].view(-1)[0] = 0.25
        save_file(tensors, file, metadata={"format": "pt"})
        before = model.text_fingerprint()
        model = load(folder)
        assert model.text_fingerprint() != before
        assert shared(xl_folder, **{f"{component}_layer_skip": 1}).text_fingerprint() != before


def test_folder_of_another_family(small_folder, xl_folder):
    with pytest.raises(UserError, match="incomplete; missing folders: text_encoder_2, tokenizer_2"):
        load(small_folder)
