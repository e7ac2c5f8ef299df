"""The Flux.1 family against diffusers: captions, latents, noisy inputs, predictions, samples; what is refused."""

import json
import math
import shutil
from functools import cache
from pathlib import Path

from modules.model.BaseModel import family_of
from modules.model.FluxModel import FluxModel
from modules.util.config.SampleConfig import SampleConfig
from modules.util.config.TrainConfig import TrainConfig
from modules.util.UserError import UserError
from tests.model.family_checks import same_picture

import torch

import pytest
from diffusers import FlowMatchEulerDiscreteScheduler
from diffusers.pipelines.flux.pipeline_flux import calculate_shift

CPU = torch.device("cpu")
CAPTIONS = ["a red cat", "a blue dog", ""]
# float32 through some forty layers
CLOSE = {"atol": 1e-5, "rtol": 1e-5}


def load(folder: Path, **options) -> FluxModel:
    options = {"text_encoder_2_sequence_length": 24, **options}
    return FluxModel.load(
        TrainConfig.from_dict({"base_model_name": str(folder), "model_type": "FLUX_DEV_1", **options}), CPU
    )


@cache
def shared(folder: Path) -> FluxModel:
    """For tests that leave the model as it is."""
    return load(folder)


@pytest.fixture(params=["dev", "schnell"])
def variant(request) -> str:
    return request.param


@pytest.fixture
def folder(flux1_folders, variant) -> Path:
    return flux1_folders[variant]


@pytest.fixture
def peer(flux1_pipelines, variant):
    return flux1_pipelines[variant]


@pytest.fixture
def own_folder(flux1_folders, tmp_path) -> Path:
    """A copy of a base model that a test may break."""
    return Path(shutil.copytree(flux1_folders["dev"], tmp_path / "base model"))


def pixels(count: int = 2, height: int = 32, width: int = 48) -> torch.Tensor:
    return torch.rand(count, 3, height, width, generator=torch.Generator().manual_seed(3)) * 2 - 1


def packed(peer, latents: torch.Tensor) -> torch.Tensor:
    return peer._pack_latents(latents, *latents.shape)


def clean_latents(peer) -> torch.Tensor:
    with torch.no_grad():
        latents = peer.vae.encode(pixels()).latent_dist.mode()
    return (latents - peer.vae.config.shift_factor) * peer.vae.config.scaling_factor


def test_the_family_serves_its_type():
    assert family_of(TrainConfig.from_dict({"model_type": "FLUX_DEV_1"})) is FluxModel


@pytest.mark.parametrize("length", [4, 24])
def test_captions_are_those_of_the_peer(folder, peer, length):
    model = load(folder, text_encoder_2_sequence_length=length)
    hidden, pooled, _ = peer.encode_prompt(CAPTIONS, max_sequence_length=length)
    found = model.encode_captions(CAPTIONS)
    assert found["hidden"].shape == (3, length, 16) and found["pooled"].shape == (3, 16)
    torch.testing.assert_close(found["hidden"], hidden, **CLOSE)
    torch.testing.assert_close(found["pooled"], pooled, **CLOSE)
    # captions differ, so that the agreement says something
    assert (hidden[0] - hidden[1]).abs().max() > 0.1 and (pooled[0] - pooled[1]).abs().max() > 0.1


def test_captions_have_as_many_tokens_as_the_published_models(folder, variant):
    model = load(folder, text_encoder_2_sequence_length=None)
    assert model.encode_captions([""])["hidden"].shape[1] == {"dev": 512, "schnell": 256}[variant]
    assert model.text_limits() == {"text_encoder_2": {"dev": 511, "schnell": 255}[variant]}
    assert model.count_tokens("text_encoder_2", ["a red cat", ""]) == [3, 0]
    assert model.read_more("text_encoder_2", 600) == "text_encoder_2_sequence_length to 601"


def test_latents_are_those_of_the_peer_and_decode(folder, peer):
    model = shared(folder)
    assert model.image_grid == 16
    found = model.encode_images(pixels())
    assert found.shape == (2, 16, 2, 3) and found.dtype == torch.float32
    torch.testing.assert_close(found.flatten(2).transpose(1, 2), packed(peer, clean_latents(peer)), **CLOSE)
    with torch.no_grad():
        decoded = peer.vae.decode(peer.vae.encode(pixels()).latent_dist.mode()).sample
    torch.testing.assert_close(model.decode_images(found), decoded, **CLOSE)


@pytest.mark.parametrize("dynamic", [False, True])
def test_prediction_against_the_peer(folder, peer, variant, monkeypatch, dynamic):
    options = {"transformer": {"guidance_scale": 3.5}, "dynamic_timestep_shifting": dynamic}
    model = load(folder, timestep_distribution="LOGIT_NORMAL", **options)
    latents, conditions = model.encode_images(pixels()), model.encode_captions(CAPTIONS[:2])
    seen, forward = [], model.transformer.forward

    def watch(**arguments):
        seen.append(arguments)
        return forward(**arguments)

    monkeypatch.setattr(model.transformer, "forward", watch)
    with torch.no_grad():
        prediction = model.predict(latents, conditions, torch.Generator().manual_seed(1))
    # first the noise levels are drawn, then the noise
    generator = torch.Generator().manual_seed(1)
    uniform = torch.rand(2, generator=generator, dtype=torch.float64)
    sigmas = torch.sigmoid(torch.special.ndtri(uniform))
    noise = torch.randn(2, 16, 2, 3, generator=generator)
    scheduler = FlowMatchEulerDiscreteScheduler.from_config(peer.scheduler.config)
    if dynamic:
        mu = calculate_shift(6, 256, 4096, 0.5, 1.15)
        sigmas = torch.from_numpy(scheduler.time_shift(mu, 1.0, sigmas.numpy()))
    level = prediction.sigma
    torch.testing.assert_close(level.double(), sigmas, atol=1e-6, rtol=0)
    # the scheduler looks its noise levels up by timestep
    scheduler.sigmas, scheduler.timesteps = level, 1000 * level
    clean, noise_tokens = packed(peer, clean_latents(peer)), noise.flatten(2).transpose(1, 2)
    noisy = scheduler.scale_noise(clean, 1000 * level, noise_tokens)
    hidden, pooled, text_ids = peer.encode_prompt(CAPTIONS[:2], max_sequence_length=24)
    ids = peer._prepare_latent_image_ids(2, 2, 3, CPU, torch.float32)
    with torch.no_grad():
        expected = peer.transformer(
            hidden_states=noisy, encoder_hidden_states=hidden, pooled_projections=pooled, timestep=level, img_ids=ids,
            txt_ids=text_ids, guidance=torch.full((2,), 3.5) if variant == "dev" else None, return_dict=False,
        )[0]  # fmt: skip
    torch.testing.assert_close(seen[0]["hidden_states"], noisy, **CLOSE)
    assert torch.equal(seen[0]["img_ids"], ids) and torch.equal(seen[0]["txt_ids"], text_ids)
    assert (seen[0]["guidance"] is None) == (variant == "schnell")
    torch.testing.assert_close(prediction.predicted.flatten(2).transpose(1, 2), expected, **CLOSE)
    torch.testing.assert_close(prediction.target.flatten(2).transpose(1, 2), noise_tokens - clean, **CLOSE)
    # the scheduler's step to σ = 0 along the target gives the clean latents
    target = prediction.target.flatten(2).transpose(1, 2)
    torch.testing.assert_close(noisy - level[:, None, None] * target, clean, **CLOSE)


def test_dynamic_shift_follows_the_scheduler(folder):
    for tokens in (256, 1024, 4096, 9000):
        assert math.log(shared(folder).shift_of_size(tokens)) == pytest.approx(
            calculate_shift(tokens, 256, 4096, 0.5, 1.15)
        )


def test_samples_equal_the_plain_pipeline(folder, peer):
    model, steps = shared(folder), []
    sample = SampleConfig(prompt="a red cat", width=50, height=32, diffusion_steps=3, cfg_scale=2.0, seed=5)
    found = model.sample(sample, 5, lambda k, n: steps.append((k, n)))
    expected = peer(
        prompt="a red cat", height=32, width=48, num_inference_steps=3, guidance_scale=2.0, max_sequence_length=24,
        generator=torch.Generator().manual_seed(5),
    ).images[0]  # fmt: skip
    assert found.size == expected.size == (48, 32) and steps == [(1, 3), (2, 3), (3, 3)]
    same_picture(found, expected)


def test_a_sample_s_own_length_counts(folder):
    model = shared(folder)
    for length, tokens in ((None, 24), (6, 6)):
        prompts = model.encode_prompts(SampleConfig(prompt="a red cat", text_encoder_2_sequence_length=length))
        assert prompts["prompt_embeds"].shape == (1, tokens, 16) and prompts.keys() == {
            "prompt_embeds", "pooled_prompt_embeds",
        }  # fmt: skip


def test_samples_with_a_vae_of_another_format(folder):
    halves = {name: {"weight_dtype": "BFLOAT_16"} for name in ("transformer", "text_encoder", "text_encoder_2")}
    model = load(folder, **halves)
    sample = SampleConfig(prompt="a red cat", width=32, height=32, diffusion_steps=2)
    assert model.sample(sample, 1, lambda *_: None).size == (32, 32)
    assert model.transformer.dtype == torch.bfloat16 and model.vae.dtype == torch.float32


def test_text_encoders_are_freed_before_the_transformer_comes(folder):
    model = load(folder)
    sample = SampleConfig(prompt="a red cat", width=32, height=32, diffusion_steps=1)
    model.prompts(sample)
    model.encode_images(pixels())
    assert set(model.components.loaded) == {"text_encoder", "text_encoder_2", "vae"}
    model.rest()
    model.sample(sample, 1, lambda *_: None)
    assert not {"text_encoder", "text_encoder_2"} & set(model.components.loaded)


def test_fingerprints_follow_what_they_stand_for(own_folder):
    model = load(own_folder)
    before = model.text_fingerprint(), model.image_fingerprint()
    assert (load(own_folder).text_fingerprint(), load(own_folder).image_fingerprint()) == before
    assert load(own_folder, text_encoder_2_sequence_length=20).text_fingerprint() != before[0]
    assert load(own_folder, text_encoder_sequence_length=8).text_fingerprint() != before[0]
    config = own_folder / "vae" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"shift_factor": 0.5}))
    assert load(own_folder).image_fingerprint() != before[1]


# --- what is refused


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"force_v_prediction": True}, "force_v_prediction: has no meaning for FLUX_DEV_1"),
        ({"text_encoder_2_layer_skip": 1}, "text_encoder_2_layer_skip: has no meaning for FLUX_DEV_1"),
        ({"loss_weight_fn": "MIN_SNR_GAMMA"}, "loss_weight_fn: MIN_SNR_GAMMA.*expected CONSTANT or SIGMA"),
        ({"prompt_chunks": 2}, "prompt_chunks: found 2, but FLUX_DEV_1 does not read captions in chunks"),
    ],
)
def test_options_without_meaning_are_named(flux1_folders, options, words):
    with pytest.raises(UserError, match=words):
        load(flux1_folders["dev"], **options)


def test_a_file_as_base_model_is_explained(tmp_path):
    path = tmp_path / "flux1.safetensors"
    path.write_bytes(b"")
    with pytest.raises(UserError, match=r"no tokenizer of T5.*transformer\.model_name"):
        load(path)


def test_a_transformer_that_reads_a_second_image(own_folder):
    load(own_folder).check_layers()
    path = own_folder / "transformer" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"in_channels": 96}))
    with pytest.raises(UserError, match="reads 96 channels, expected 16"):
        load(own_folder).check_layers()


def test_a_scheduler_of_another_kind(own_folder):
    path = own_folder / "scheduler" / "scheduler_config.json"
    path.write_text(json.dumps({"_class_name": "DDPMScheduler"}))
    with pytest.raises(UserError, match="no flow-matching scheduler"):
        load(own_folder)
