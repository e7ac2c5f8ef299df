"""Stable Diffusion 3 and 3.5 against diffusers: captions, latents, predictions, samples; what is refused."""

import json
import shutil
from functools import cache
from pathlib import Path

from modules.model.BaseModel import family_of
from modules.model.StableDiffusion3Model import StableDiffusion3Model
from modules.util.config.SampleConfig import SampleConfig
from modules.util.config.TrainConfig import TrainConfig
from modules.util.UserError import UserError
from tests.model.family_checks import same_picture

import torch

import numpy as np
import pytest
from diffusers import FlowMatchEulerDiscreteScheduler

CPU = torch.device("cpu")
CAPTIONS = ["a red cat", "a blue dog", ""]
# float32 through some twenty layers
CLOSE = {"atol": 1e-5, "rtol": 1e-5}
TYPES = {"3": "STABLE_DIFFUSION_3", "3.5": "STABLE_DIFFUSION_35"}
ENCODERS = ("text_encoder", "text_encoder_2", "text_encoder_3")


def load(folder: Path, variant: str = "3", **options) -> StableDiffusion3Model:
    options = {"text_encoder_3_sequence_length": 24, "model_type": TYPES[variant], **options}
    return StableDiffusion3Model.load(TrainConfig.from_dict({"base_model_name": str(folder), **options}), CPU)


@cache
def shared(folder: Path, variant: str) -> StableDiffusion3Model:
    """For tests that leave the model as it is."""
    return load(folder, variant)


@pytest.fixture(params=TYPES)
def variant(request) -> str:
    return request.param


@pytest.fixture
def folder(sd3_folders, variant) -> Path:
    return sd3_folders[variant]


@pytest.fixture
def peer(sd3_pipelines, variant):
    return sd3_pipelines[variant]


@pytest.fixture
def own_folder(sd3_folders, tmp_path) -> Path:
    """A copy of a base model that a test may break."""
    return Path(shutil.copytree(sd3_folders["3"], tmp_path / "base model"))


def change_json(path: Path, **changes) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def pixels(count: int = 2, height: int = 32, width: int = 48) -> torch.Tensor:
    return torch.rand(count, 3, height, width, generator=torch.Generator().manual_seed(3)) * 2 - 1


def clean_latents(peer) -> torch.Tensor:
    with torch.no_grad():
        latents = peer.vae.encode(pixels()).latent_dist.mode()
    return (latents - peer.vae.config.shift_factor) * peer.vae.config.scaling_factor


def prompts_of(peer, captions: list[str], length: int = 24, clip_skip: int | None = None):
    """`hidden` and `pooled`."""
    hidden, _, pooled, _ = peer.encode_prompt(
        captions, None, None, do_classifier_free_guidance=False, max_sequence_length=length, clip_skip=clip_skip
    )
    return hidden, pooled


def test_the_family_serves_its_types():
    for kind in TYPES.values():
        assert family_of(TrainConfig.from_dict({"model_type": kind})) is StableDiffusion3Model


@pytest.mark.parametrize("length", [4, 24])
def test_captions_are_those_of_the_peer(folder, peer, variant, length):
    model = load(folder, variant, text_encoder_3_sequence_length=length)
    hidden, pooled = prompts_of(peer, CAPTIONS, length)
    found = model.encode_captions(CAPTIONS)
    # CLIP's 16 tokens, then those of T5
    assert found["hidden"].shape == (3, 16 + length, 64) and found["pooled"].shape == (3, 48)
    torch.testing.assert_close(found["hidden"], hidden, **CLOSE)
    torch.testing.assert_close(found["pooled"], pooled, **CLOSE)
    # captions differ in what each encoder says of them, so that the agreement says something
    for part in (hidden[:, :16, :16], hidden[:, :16, 16:48], hidden[:, 16:], pooled[:, :16], pooled[:, 16:]):
        assert (part[0] - part[1]).abs().max() > 0.05


def test_last_layers_can_be_left_out(folder, peer, variant):
    skips = {"text_encoder_layer_skip": 1, "text_encoder_2_layer_skip": 1}
    hidden, pooled = prompts_of(peer, CAPTIONS, clip_skip=1)
    found = load(folder, variant, **skips).encode_captions(CAPTIONS)
    torch.testing.assert_close(found["hidden"], hidden, **CLOSE)
    torch.testing.assert_close(found["pooled"], pooled, **CLOSE)
    plain = shared(folder, variant).encode_captions(CAPTIONS)["hidden"]
    assert (found["hidden"][:, :16] - plain[:, :16]).abs().max() > 0.05
    # T5's inner layers are normalised by its last norm, as in OneTrainer
    t5 = load(folder, variant, text_encoder_3_layer_skip=1).encode_captions(CAPTIONS)["hidden"][:, 16:]
    encoder = peer.text_encoder_3
    ids = peer.tokenizer_3(CAPTIONS, padding="max_length", max_length=24, return_tensors="pt").input_ids
    with torch.no_grad():
        states = encoder(ids, output_hidden_states=True).hidden_states[1]
        torch.testing.assert_close(t5, encoder.encoder.final_layer_norm(states), **CLOSE)
    assert (t5 - plain[:, 16:]).abs().max() > 0.05


def test_captions_have_as_many_tokens_as_the_published_models(folder, variant):
    model, length = load(folder, variant, text_encoder_3_sequence_length=None), {"3": 77, "3.5": 256}[variant]
    assert model.encode_captions([""])["hidden"].shape[1] == 16 + length
    assert model.text_limits() == {"text_encoder_3": length - 1}
    assert model.count_tokens("text_encoder_3", ["a red cat", ""]) == [3, 0]
    assert model.read_more("text_encoder_3", 600) == "text_encoder_3_sequence_length to 601"


def test_latents_are_those_of_the_peer_and_decode(folder, peer, variant):
    model = shared(folder, variant)
    assert model.image_grid == 16 and model.token_count((1, 4, 8, 6)) == 12
    found = model.encode_images(pixels())
    assert found.shape == (2, 4, 4, 6) and found.dtype == torch.float32
    torch.testing.assert_close(found, clean_latents(peer), **CLOSE)
    with torch.no_grad():
        decoded = peer.vae.decode(peer.vae.encode(pixels()).latent_dist.mode()).sample
    torch.testing.assert_close(model.decode_images(found), decoded, **CLOSE)


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_prediction_against_the_peer(folder, peer, variant, monkeypatch, shift):
    model = load(folder, variant, timestep_distribution="LOGIT_NORMAL", timestep_shift=shift)
    latents, conditions = model.encode_images(pixels()), model.encode_captions(CAPTIONS[:2])
    seen, forward = [], model.transformer.forward

    def watch(*arguments, **options):
        seen.append(arguments)
        return forward(*arguments, **options)

    monkeypatch.setattr(model.transformer, "forward", watch)
    with torch.no_grad():
        prediction = model.predict(latents, conditions, torch.Generator().manual_seed(1))
    # first the noise levels are drawn, then the noise
    generator = torch.Generator().manual_seed(1)
    uniform = torch.rand(2, generator=generator, dtype=torch.float64)
    sigmas = torch.sigmoid(torch.special.ndtri(uniform))
    noise = torch.randn(2, 4, 4, 6, generator=generator)
    level = prediction.sigma
    # as diffusers' scheduler shifts its own levels
    torch.testing.assert_close(level.double(), shift * sigmas / (1 + (shift - 1) * sigmas), atol=1e-6, rtol=0)
    scheduler = FlowMatchEulerDiscreteScheduler.from_config(peer.scheduler.config)
    # the scheduler looks its noise levels up by timestep
    scheduler.sigmas, scheduler.timesteps = level, 1000 * level
    clean = clean_latents(peer)
    noisy = scheduler.scale_noise(clean, 1000 * level, noise)
    hidden, pooled = prompts_of(peer, CAPTIONS[:2])
    with torch.no_grad():
        expected = peer.transformer(
            hidden_states=noisy, timestep=1000 * level, encoder_hidden_states=hidden, pooled_projections=pooled,
            return_dict=False,
        )[0]  # fmt: skip
    torch.testing.assert_close(seen[0][0], noisy, **CLOSE)
    torch.testing.assert_close(prediction.predicted, expected, **CLOSE)
    torch.testing.assert_close(prediction.target, noise - clean, **CLOSE)
    # the scheduler's step to σ = 0 along the target gives the clean latents
    torch.testing.assert_close(noisy - level[:, None, None, None] * prediction.target, clean, **CLOSE)


def test_samples_equal_the_plain_pipeline(folder, peer, variant):
    model, steps = shared(folder, variant), []
    sample = SampleConfig(
        prompt="a red cat", negative_prompt="a dog", width=50, height=32, diffusion_steps=3, cfg_scale=2.0
    )
    found = model.sample(sample, 5, lambda k, n: steps.append((k, n)))
    expected = peer(
        prompt="a red cat", negative_prompt="a dog", height=32, width=48, num_inference_steps=3, guidance_scale=2.0,
        max_sequence_length=24, generator=torch.Generator().manual_seed(5),
    ).images[0]  # fmt: skip
    assert found.size == expected.size == (48, 32) and steps == [(1, 3), (2, 3), (3, 3)]
    same_picture(found, expected)


def test_a_sample_s_own_options_count(folder, peer, variant):
    model = shared(folder, variant)
    own = {"text_encoder_3_sequence_length": 6, "text_encoder_1_layer_skip": 1, "text_encoder_2_layer_skip": 1}
    found = model.encode_prompts(SampleConfig(prompt="a red cat", negative_prompt="a dog", **own))
    for prefix, text in (("", "a red cat"), ("negative_", "a dog")):
        hidden, pooled = prompts_of(peer, [text], 6, clip_skip=1)
        torch.testing.assert_close(found[f"{prefix}prompt_embeds"], hidden, **CLOSE)
        torch.testing.assert_close(found[f"{prefix}pooled_prompt_embeds"], pooled, **CLOSE)
    short = {"text_encoder_1_sequence_length": 8, "text_encoder_2_sequence_length": 8}
    assert model.encode_prompts(SampleConfig(**short))["prompt_embeds"].shape == (1, 8 + 24, 64)


def test_text_encoders_are_freed_before_the_transformer_comes(sd3_folders):
    halves = {name: {"weight_dtype": "BFLOAT_16"} for name in ("transformer", *ENCODERS)}
    model = load(sd3_folders["3.5"], "3.5", **halves)
    sample = SampleConfig(prompt="a red cat", width=32, height=32, diffusion_steps=1)
    model.prompts(sample)
    model.encode_images(pixels())
    assert set(model.components.loaded) == {*ENCODERS, "vae"}
    model.rest()
    # with a VAE of another format
    assert model.sample(sample, 1, lambda *_: None).size == (32, 32)
    assert model.transformer.dtype == torch.bfloat16 and model.vae.dtype == torch.float32
    assert not {*ENCODERS} & set(model.components.loaded)


def test_fingerprints_follow_what_they_stand_for(own_folder):
    model = load(own_folder)
    before = model.text_fingerprint(), model.image_fingerprint()
    assert (load(own_folder).text_fingerprint(), load(own_folder).image_fingerprint()) == before
    for option, value in (
        *((f"{name}_layer_skip", 1) for name in ENCODERS),
        *((f"{name}_sequence_length", 8) for name in ENCODERS),
    ):
        assert load(own_folder, **{option: value}).text_fingerprint() != before[0], option
    change_json(own_folder / "vae" / "config.json", shift_factor=0.5)
    assert load(own_folder).image_fingerprint() != before[1]


# --- what is refused


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"force_v_prediction": True}, "force_v_prediction: has no meaning for STABLE_DIFFUSION_3"),
        ({"loss_weight_fn": "MIN_SNR_GAMMA"}, "loss_weight_fn: MIN_SNR_GAMMA.*expected CONSTANT or SIGMA"),
        ({"prompt_chunks": 2}, "prompt_chunks: found 2, but STABLE_DIFFUSION_3 does not read captions in chunks"),
        ({"dynamic_timestep_shifting": True}, "dynamic_timestep_shifting: .* sizes by 3. .*timestep_shift to 3"),
        ({"text_encoder_layer_skip": 2}, "text_encoder_layer_skip: found 2, .* only 2 layers, of which the last 1"),
        ({"text_encoder_3_layer_skip": 3}, "text_encoder_3_layer_skip: found 3, .* only 2 layers"),
    ],
)
def test_options_without_meaning_are_named(sd3_folders, options, words):
    with pytest.raises(UserError, match=words):
        load(sd3_folders["3"], **options).check_layers()


def test_a_scheduler_whose_shift_follows_the_size(own_folder):
    change_json(own_folder / "scheduler" / "scheduler_config.json", use_dynamic_shifting=True)
    assert load(own_folder, dynamic_timestep_shifting=True).shift_of_size(256) == pytest.approx(np.exp(0.5))


def test_both_clips_read_as_many_tokens(sd3_folders):
    with pytest.raises(UserError, match="found 8 and 16 tokens, but Stable Diffusion 3 needs as many"):
        load(sd3_folders["3"], text_encoder_sequence_length=8).encode_captions(["a"])


def test_images_larger_than_there_are_places_for(sd3_folders):
    assert load(sd3_folders["3"]).encode_images(torch.zeros(1, 3, 128, 16)).shape == (1, 4, 16, 2)
    with pytest.raises(UserError, match="an image of 16 x 144 pixels is too large.* up to 128 pixels"):
        load(sd3_folders["3"]).encode_images(torch.zeros(1, 3, 144, 16))


def test_a_file_as_base_model_is_explained(tmp_path):
    path = tmp_path / "sd3.5_large.safetensors"
    path.write_bytes(b"")
    with pytest.raises(UserError, match=r"no tokenizer of T5.*Stable Diffusion 3 here.*text_encoder_3 and vae"):
        load(path)
