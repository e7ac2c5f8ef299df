"""The Stable Diffusion family against diffusers: targets, noisy inputs, captions, samples; and broken base models."""

import json
import shutil
from functools import cache
from pathlib import Path

from modules.model.BaseModel import family_of
from modules.model.ScheduledNoise import SCHEDULERS
from modules.model.StableDiffusionModel import StableDiffusionModel
from modules.util.config.SampleConfig import SampleConfig
from modules.util.config.TrainConfig import TrainConfig
from modules.util.enum.DataType import DataType
from modules.util.enum.ModelType import ModelType
from modules.util.enum.NoiseScheduler import NoiseScheduler
from modules.util.UserError import UserError

import torch

import numpy as np
import pytest
from diffusers import DDPMScheduler, StableDiffusionPipeline
from safetensors.torch import load_file, save_file
from transformers import CLIPTextModel

CPU = torch.device("cpu")
CAPTIONS = ["red cat", "a (blue) dog!", ""]


def load(folder: Path, **options) -> StableDiffusionModel:
    model = StableDiffusionModel.load(TrainConfig(base_model_name=str(folder), **options), CPU)
    model.components.load_all()
    return model


# for tests that leave model and folder as they are
shared = cache(load)


@pytest.fixture
def model(small_folder) -> StableDiffusionModel:
    return shared(small_folder)


@pytest.fixture
def own_folder(small_folder, tmp_path) -> Path:
    """A copy of the base model that a test may break."""
    return Path(shutil.copytree(small_folder, tmp_path / "base model"))


@cache
def pipeline_of(folder: Path) -> StableDiffusionPipeline:
    pipeline = StableDiffusionPipeline.from_pretrained(folder, safety_checker=None, requires_safety_checker=False)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def latents(count: int = 6) -> torch.Tensor:
    return torch.randn(count, 4, 8, 8, generator=torch.Generator().manual_seed(5))


def run(model: StableDiffusionModel, monkeypatch, seed: int = 1, conditions: dict | None = None):
    """One prediction; returns it with the noisy latents that the UNet saw."""
    seen, forward = [], model.unet.forward

    def watch(sample, *args, **kwargs):
        seen.append(sample)
        return forward(sample, *args, **kwargs)

    monkeypatch.setattr(model.unet, "forward", watch)
    conditions = conditions or model.encode_captions(CAPTIONS * 2)
    with torch.no_grad():
        prediction = model.predict(latents(), conditions, torch.Generator().manual_seed(seed))
    return prediction, seen[0]


# a schedule that ends without signal implies velocity, as in OneTrainer
@pytest.mark.parametrize(("velocity", "zero_snr"), [(False, False), (True, False), (True, True)])
def test_prediction_against_the_peer(small_folder, monkeypatch, velocity, zero_snr):
    model = shared(
        small_folder,
        force_v_prediction=velocity and not zero_snr,
        rescale_noise_scheduler_to_zero_terminal_snr=zero_snr,
    )
    prediction, noisy = run(model, monkeypatch)
    # first the timesteps are drawn, then the noise
    generator = torch.Generator().manual_seed(1)
    timesteps = (torch.rand(6, generator=generator, dtype=torch.float64) * 1000).long()
    noise = torch.randn(6, 4, 8, 8, generator=generator)
    peer = pipeline_of(small_folder)
    scheduler = DDPMScheduler.from_config(peer.scheduler.config, rescale_betas_zero_snr=zero_snr)
    clean = latents() * peer.vae.config.scaling_factor
    assert torch.equal(prediction.timesteps, timesteps)
    # The same numbers through float32; the peer rescales through a thousand rounded betas.
    close = {"atol": 3e-4, "rtol": 1e-4} if zero_snr else {"atol": 2e-6, "rtol": 1e-6}
    torch.testing.assert_close(noisy, scheduler.add_noise(clean, noise, timesteps), **close)
    target = scheduler.get_velocity(clean, noise, timesteps) if velocity else noise
    torch.testing.assert_close(prediction.target, target, **close)
    with torch.no_grad():
        tokens = peer.tokenizer(CAPTIONS * 2, padding="max_length", return_tensors="pt").input_ids
        expected = peer.unet(noisy, timesteps, peer.text_encoder(tokens).last_hidden_state).sample
    torch.testing.assert_close(prediction.predicted, expected, atol=1e-5, rtol=1e-5)
    share = scheduler.alphas_cumprod[timesteps]
    torch.testing.assert_close(prediction.snr, share / (1 - share), atol=1e-5, rtol=2e-3)
    assert prediction.velocity == velocity


def test_last_step_of_zero_snr_is_pure_noise(small_folder, monkeypatch):
    model = load(
        small_folder,
        rescale_noise_scheduler_to_zero_terminal_snr=True,
        min_noising_strength=0.999,
    )
    prediction, noisy = run(model, monkeypatch)
    assert (prediction.timesteps == 999).all() and (prediction.snr == 0).all()
    generator = torch.Generator().manual_seed(1)
    torch.rand(6, generator=generator, dtype=torch.float64)
    assert torch.equal(noisy, torch.randn(6, 4, 8, 8, generator=generator))
    # velocity at pure noise is the negative image
    torch.testing.assert_close(prediction.target, -latents() * model.vae.config.scaling_factor)


def test_perturbation_reaches_the_input_only(small_folder, model, monkeypatch):
    plain, noisy = run(model, monkeypatch)
    perturbed = load(small_folder, perturbation_noise_weight=0.3)
    prediction, other = run(perturbed, monkeypatch)
    assert torch.equal(prediction.target, plain.target) and not torch.equal(other, noisy)


@pytest.mark.parametrize("zero_snr", [False, True])
def test_generalised_offset_is_finite_at_every_step(small_folder, monkeypatch, zero_snr):
    options = {"offset_noise_weight": 0.1, "generalized_offset_noise": True}
    model = shared(small_folder, rescale_noise_scheduler_to_zero_terminal_snr=zero_snr, **options)
    assert torch.isfinite(model.offset_psi).all() and model.offset_psi.mean() > 0.05
    prediction, noisy = run(model, monkeypatch)
    assert torch.isfinite(prediction.target).all() and torch.isfinite(noisy).all()


def test_prediction_is_keyed_by_the_generator(model, monkeypatch):
    first, second, other = (run(model, monkeypatch, seed)[0] for seed in (1, 1, 2))
    assert torch.equal(first.predicted, second.predicted) and torch.equal(first.target, second.target)
    assert not torch.equal(first.target, other.target)


def test_images_are_encoded_to_the_posterior_mean(small_folder, model):
    pixels = torch.rand(2, 3, 16, 24) * 2 - 1
    with torch.no_grad():
        expected = pipeline_of(small_folder).vae.encode(pixels).latent_dist.mean
    encoded = model.encode_images(pixels)
    assert torch.equal(encoded, expected) and encoded.dtype == torch.float32 and not encoded.requires_grad
    # two levels each: the autoencoder halves once, the UNet once more
    assert model.image_grid == 4


@pytest.mark.parametrize("skip", [0, 1, 2])
def test_layer_skip_is_the_pipelines_clip_skip(small_folder, monkeypatch, skip):
    hidden = shared(small_folder, text_encoder_layer_skip=skip).encode_captions(CAPTIONS)["hidden"]
    peer = pipeline_of(small_folder)
    # diffusers' clip skip asks for a level that transformers 5 no longer has
    monkeypatch.setattr(CLIPTextModel, "text_model", property(lambda encoder: encoder), raising=False)
    expected, _ = peer.encode_prompt(CAPTIONS, CPU, 1, False, clip_skip=skip or None)
    # batched in the same way through the same weights
    torch.testing.assert_close(hidden, expected, atol=1e-6, rtol=1e-6)
    assert hidden.shape == (3, 16, 32)


def test_layer_skip_beyond_the_encoder(small_folder):
    with pytest.raises(UserError, match="text_encoder_layer_skip: found 4.*3 layers"):
        shared(small_folder, text_encoder_layer_skip=4).encode_captions(["cat"])


@pytest.mark.parametrize("length", [None, 7, 512])
def test_sequence_length_ends_at_the_encoders_positions(small_folder, length):
    hidden = shared(small_folder, text_encoder_sequence_length=length).encode_captions(["cat " * 50])["hidden"]
    assert hidden.shape[1] == min(length or 16, 16)


def test_gradient_only_through_a_trained_text_encoder(small_folder):
    model = load(small_folder)
    weight = model.text_encoder.get_input_embeddings().weight.requires_grad_()
    assert not model.encode_captions(["cat"])["hidden"].requires_grad
    model.text_encoder_trained = True
    model.encode_captions(["cat"])["hidden"].square().sum().backward()
    assert weight.grad.abs().sum() > 0


def test_weights_are_frozen_and_in_the_asked_dtype(small_folder):
    config = TrainConfig(base_model_name=str(small_folder))
    config.unet.weight_dtype = DataType.BFLOAT_16
    model = StableDiffusionModel.load(config, CPU)
    assert model.unet.dtype == torch.bfloat16 and model.vae.dtype == model.text_encoder.dtype == torch.float32
    assert not any(p.requires_grad for component in model.components.values() for p in component.parameters())
    with torch.no_grad():
        conditions = model.encode_captions(["cat"])
        prediction = model.predict(latents(1), conditions, torch.Generator().manual_seed(0))
    assert torch.isfinite(prediction.predicted).all()


# --- sampling


def test_sample_equals_the_plain_pipeline(small_folder, model):
    settings = SampleConfig(
        prompt="red cat", negative_prompt="dog", width=19, height=24, diffusion_steps=4, cfg_scale=3.0
    )
    steps = []
    image = model.sample(settings, 9, lambda step, total: steps.append((step, total)))
    expected = pipeline_of(small_folder)(
        "red cat",
        negative_prompt="dog",
        width=16,
        height=24,
        num_inference_steps=4,
        guidance_scale=3.0,
        generator=torch.Generator().manual_seed(9),
    ).images[0]
    assert image.size == (16, 24) and steps == [(1, 4), (2, 4), (3, 4), (4, 4)]
    # prompts are encoded together here and one by one there: the last bit may differ, which can tip a rounding
    difference = np.abs(np.asarray(image, dtype=int) - np.asarray(expected, dtype=int))
    assert difference.max() <= 1
    assert np.asarray(image).std() > 1
    assert list(model.sample(settings, 10, lambda *_: None).getdata()) != list(image.getdata())


@pytest.mark.parametrize("zero_snr", [False, True])
@pytest.mark.parametrize("scheduler", list(NoiseScheduler))
def test_every_sampler_draws(small_folder, scheduler, zero_snr):
    model = shared(small_folder, rescale_noise_scheduler_to_zero_terminal_snr=zero_snr)
    settings = SampleConfig(prompt="cat", width=8, height=8, diffusion_steps=3, noise_scheduler=scheduler)
    if scheduler not in SCHEDULERS:
        with pytest.raises(UserError, match="noise_scheduler"):
            model.sample(settings, 1, lambda *_: None)
        return
    pixels = np.asarray(model.sample(settings, 1, lambda *_: None))
    # not a number becomes black
    assert pixels.std() > 1


def test_forced_last_timestep(model):
    plain, forced = model.pipeline().scheduler, model.pipeline(last_timestep=True).scheduler
    plain.set_timesteps(10), forced.set_timesteps(10)
    assert plain.timesteps[0] < 999 and forced.timesteps[0] == 999


def test_inpainting_sample_is_refused(model):
    with pytest.raises(UserError, match="sample_inpainting"):
        model.sample(SampleConfig(sample_inpainting=True), 1, lambda *_: None)


# --- fingerprints


def change(file: Path, name: str, value: float) -> None:
    tensors = load_file(file)
    tensors[name].view(-1)[0] = value
    save_file(tensors, file, metadata={"format": "pt"})


def test_fingerprints_follow_what_they_stand_for(small_folder, own_folder, model):
    again = load(own_folder)
    assert again.image_fingerprint() == model.image_fingerprint()
    assert again.text_fingerprint() == model.text_fingerprint()
    change(own_folder / "vae" / "diffusion_pytorch_model.safetensors", "encoder.conv_in.bias", 0.25)
    other = load(own_folder)
    assert other.image_fingerprint() != model.image_fingerprint()
    assert other.text_fingerprint() == model.text_fingerprint()
    file = own_folder / "text_encoder" / "model.safetensors"
    change(file, sorted(load_file(file))[0], 0.25)
    assert load(own_folder).text_fingerprint() != model.text_fingerprint()
    assert shared(small_folder, text_encoder_layer_skip=1).text_fingerprint() != model.text_fingerprint()
    config = TrainConfig(base_model_name=str(small_folder))
    config.vae.weight_dtype = config.text_encoder.weight_dtype = DataType.BFLOAT_16
    half = StableDiffusionModel.load(config, CPU)
    assert half.image_fingerprint() != model.image_fingerprint()
    assert half.text_fingerprint() != model.text_fingerprint()


# --- base models that can't be used


def refuse(folder: Path | str, *expected: str, **options) -> None:
    with pytest.raises(UserError) as caught:
        load(folder, **options)
    assert "\n" not in str(caught.value)
    for text in expected:
        assert text in str(caught.value), str(caught.value)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("component", ["unet", "vae", "text_encoder"])
def test_weights_that_are_no_numbers(own_folder, component, value):
    file = next((own_folder / component).glob("*.safetensors"))
    name = sorted(load_file(file))[-1]
    change(file, name, value)
    refuse(own_folder, component, "NaN", str(own_folder))


def test_missing_model(tmp_path):
    refuse(tmp_path / "nowhere", "nowhere", "does not exist")
    refuse("some/model", "offline_mode", offline_mode=True)
    (tmp_path / "empty").mkdir()
    refuse(tmp_path / "empty", "model_index.json")


@pytest.mark.parametrize("component", ["unet", "vae", "text_encoder", "tokenizer", "scheduler"])
def test_incomplete_folder(own_folder, component):
    shutil.rmtree(own_folder / component)
    refuse(own_folder, "incomplete", component)


@pytest.mark.parametrize("component", ["unet", "vae", "text_encoder"])
def test_folder_without_weights(own_folder, component):
    file = next((own_folder / component).glob("*.safetensors"))
    content = file.read_bytes()
    file.unlink()
    refuse(own_folder, "can't be loaded")
    file.write_bytes(content[: len(content) // 2])
    refuse(own_folder, "can't be loaded")


@pytest.mark.parametrize("component", ["unet", "vae", "text_encoder"])
def test_folder_with_a_tensor_missing(own_folder, component):
    # the libraries would make it up at random, or leave it without a value
    file = next((own_folder / component).glob("*.safetensors"))
    tensors = load_file(file)
    name = sorted(tensors)[-1]
    tensors.pop(name)
    save_file(tensors, file, metadata={"format": "pt"})
    refuse(own_folder, "lacks", component, name.removeprefix("text_model."))


@pytest.mark.parametrize("file", ["model_index.json", "unet/config.json", "scheduler/scheduler_config.json"])
def test_broken_json_in_the_folder(own_folder, file):
    (own_folder / file).write_text("{ no json")
    refuse(own_folder, "can't be loaded")


def test_unknown_prediction_type(own_folder):
    file = own_folder / "scheduler" / "scheduler_config.json"
    config = json.loads(file.read_text())
    file.write_text(json.dumps({**config, "prediction_type": "sample"}))
    refuse(own_folder, "'sample'", "epsilon", "force_epsilon_prediction")
    assert not load(own_folder, force_epsilon_prediction=True).velocity
    file.write_text(json.dumps({**config, "prediction_type": "v_prediction"}))
    assert load(own_folder).velocity


def test_zero_snr_with_noise_prediction(small_folder):
    options = {"rescale_noise_scheduler_to_zero_terminal_snr": True, "force_epsilon_prediction": True}
    refuse(small_folder, "force_epsilon_prediction", "v-prediction", **options)


def test_weight_dtype_that_is_not_supported(small_folder):
    config = TrainConfig(base_model_name=str(small_folder))
    config.unet.weight_dtype = DataType.TFLOAT_32
    with pytest.raises(UserError, match="unet.weight_dtype: found TFLOAT_32"):
        StableDiffusionModel.load(config, CPU).components.load_all()


def test_families_are_found_by_model_type():
    assert family_of(TrainConfig(model_type=ModelType.STABLE_DIFFUSION_21)) is StableDiffusionModel
    with pytest.raises(UserError, match="WUERSTCHEN_2 is not supported yet"):
        family_of(TrainConfig(model_type=ModelType.WUERSTCHEN_2))


def test_single_file_is_the_same_model(small_folder, small_tensors, model, tmp_path, monkeypatch):
    save_file({name: tensor.contiguous() for name, tensor in small_tensors.items()}, tmp_path / "base.safetensors")
    shutil.copytree(small_folder, tmp_path / "base.config")
    single = load(tmp_path / "base.safetensors")
    assert single.image_fingerprint() == model.image_fingerprint()
    assert single.text_fingerprint() == model.text_fingerprint()
    assert torch.equal(run(single, monkeypatch)[0].predicted, run(model, monkeypatch)[0].predicted)
