"""The Ernie-Image family against diffusers: captions, latents, predictions and samples."""

import json
from functools import cache, partial
from pathlib import Path

from modules.model.BaseModel import family_of
from modules.model.ErnieModel import ErnieModel
from modules.model.recognize_model import find_model_type
from modules.util.config.SampleConfig import SampleConfig
from modules.util.config.TrainConfig import TrainConfig
from tests.model.family_checks import (
    checkpoints_give_the_same_gradients,
    same_picture,
    target_leads_to_the_clean_latents,
    text_encoder_is_freed_before_the_transformer_comes,
    what_fills_captions_up_changes_nothing,
)

import torch

import pytest
from diffusers import FlowMatchEulerDiscreteScheduler
from diffusers.pipelines.qwenimage.pipeline_qwenimage import calculate_shift

CPU = torch.device("cpu")
# of different lengths
CAPTIONS = ["a red cat", "a blue dog " * 11, ""]
# float32 through a dozen layers
CLOSE = {"atol": 1e-5, "rtol": 1e-5}
SAMPLE = {"prompt": "a red cat", "negative_prompt": "a blue dog number 1", "width": 32, "height": 24, "seed": 5}


def load(folder: Path, **options) -> ErnieModel:
    config = TrainConfig.from_dict({"base_model_name": str(folder), "model_type": "ERNIE", **options})
    return ErnieModel.load(config, CPU)


@cache
def shared(folder: Path) -> ErnieModel:
    """For tests that leave the model as it is."""
    return load(folder)


def pixels(count: int = 2, height: int = 16, width: int = 24) -> torch.Tensor:
    return torch.rand(count, 3, height, width, generator=torch.Generator().manual_seed(3)) * 2 - 1


def test_the_family_serves_its_type(own_ernie_folder):
    assert family_of(TrainConfig.from_dict({"model_type": "ERNIE"})) is ErnieModel
    # whose index names the whole model for images and text, and, as published, what rewrites prompts
    path = own_ernie_folder / "model_index.json"
    index = json.loads(path.read_text())
    assert index["text_encoder"] == ["transformers", "Mistral3Model"] and index["pe"] == [None, None]
    path.write_text(json.dumps(index | {
        "pe": ["transformers", "Ministral3ForCausalLM"], "pe_tokenizer": ["transformers", "TokenizersBackend"]
    }))  # fmt: skip
    assert find_model_type(TrainConfig.from_dict({"base_model_name": str(own_ernie_folder)})) == "ERNIE"
    # which is never asked for
    assert load(own_ernie_folder).encode_captions(CAPTIONS)["mask"].all(dim=1).tolist() == [False, True, False]


@pytest.mark.parametrize("length", [None, 20])
def test_captions_are_those_of_the_peer(ernie_folder, ernie_pipeline, length):
    """Each alone, as the pipeline reads them; the peer has the half for images as well."""
    model, peer = load(ernie_folder, text_encoder_sequence_length=length), ernie_pipeline
    found, expected = model.encode_captions(CAPTIONS), peer.encode_prompt(CAPTIONS, CPU)
    # with the mark before them; what is too long loses its end
    assert found["mask"].sum(dim=1).tolist() == [4, length or 34, 1] and found["mask"][:, 0].all()
    for place, hidden in enumerate(expected):
        n = int(found["mask"][place].sum())
        torch.testing.assert_close(found["hidden"][place, :n], hidden[:n], **CLOSE)
    assert not found["hidden"][~found["mask"]].any()
    assert set(model.components.loaded) == {"text_encoder"}
    # of three layers, without images
    assert len(model.text_encoder.state_dict()) == 3 * 9 + 2


def test_a_tokenizer_that_marks_no_start(ernie_folder, ernie_pipeline):
    """An empty caption is the mark then, as in the pipeline."""
    model, tokenizer = load(ernie_folder), ernie_pipeline.tokenizer
    model.tokenizer.backend_tokenizer.post_processor = None
    alone = model.encode_captions([""])
    assert model.tokenizer("a red cat")["input_ids"] == tokenizer("a red cat")["input_ids"][1:]
    torch.testing.assert_close(alone["hidden"][0], ernie_pipeline.encode_prompt("", CPU)[0], **CLOSE)


def test_what_captions_may_have(ernie_folder):
    model = load(ernie_folder, text_encoder_sequence_length=20)
    assert model.text_limits() == {"text_encoder": 19}
    assert model.count_tokens("text_encoder", CAPTIONS) == [3, 33, 0]
    assert model.read_more("text_encoder", 33) == "text_encoder_sequence_length to 34"


def test_latents_are_those_that_the_peer_decodes(ernie_folder, ernie_pipeline):
    model, vae = shared(ernie_folder), ernie_pipeline.vae
    assert model.image_grid == ernie_pipeline.vae_scale_factor == 4
    found = model.encode_images(pixels())
    assert found.shape == (2, 16, 4, 6) and found.dtype == torch.float32
    with torch.no_grad():
        raw = vae.encode(pixels()).latent_dist.mode()
        # as at the end of the pipeline, with its own number for the config's
        spread = torch.sqrt(vae.bn.running_var.view(1, -1, 1, 1) + 1e-5)
        unpacked = ernie_pipeline._unpatchify_latents(found * spread + vae.bn.running_mean.view(1, -1, 1, 1))
        torch.testing.assert_close(unpacked, raw, **CLOSE)
        torch.testing.assert_close(model.decode_images(found), vae.decode(raw).sample, **CLOSE)


@pytest.mark.parametrize("dynamic", [False, True])
def test_prediction_against_the_peer(ernie_folder, ernie_pipeline, dynamic):
    model = load(ernie_folder, timestep_distribution="LOGIT_NORMAL", dynamic_timestep_shifting=dynamic)
    clean = model.encode_images(pixels())
    with torch.no_grad():
        prediction = model.predict(clean, model.encode_captions(CAPTIONS[:2]), torch.Generator().manual_seed(1))
    # first the noise levels are drawn, then the noise
    generator = torch.Generator().manual_seed(1)
    sigmas = torch.sigmoid(torch.special.ndtri(torch.rand(2, generator=generator, dtype=torch.float64)))
    noise = torch.randn(2, 16, 4, 6, generator=generator)
    scheduler = FlowMatchEulerDiscreteScheduler.from_config(ernie_pipeline.scheduler.config)
    if dynamic:
        # of 4 × 6 patches
        sigmas = torch.from_numpy(scheduler.time_shift(calculate_shift(24, 4, 64, 0.5, 1.15), 1.0, sigmas.numpy()))
    torch.testing.assert_close(prediction.sigma.double(), sigmas, atol=1e-6, rtol=0)
    level = prediction.sigma
    # the scheduler looks its noise levels up by timestep
    scheduler.sigmas, scheduler.timesteps = torch.cat([level, torch.zeros(1)]), 1000 * level
    noisy = scheduler.scale_noise(clean, 1000 * level, noise)
    with torch.no_grad():
        # as the pipeline's loop does
        texts, lengths = ernie_pipeline._pad_text(
            ernie_pipeline.encode_prompt(CAPTIONS[:2], CPU), CPU, torch.float32, 16
        )
        velocity = ernie_pipeline.transformer(
            hidden_states=noisy, timestep=1000 * level, text_bth=texts, text_lens=lengths, return_dict=False
        )[0]
    torch.testing.assert_close(prediction.predicted, velocity, **CLOSE)
    torch.testing.assert_close(prediction.target, noise - clean, **CLOSE)
    target_leads_to_the_clean_latents(scheduler, prediction, noisy, clean)


def test_what_fills_captions_up_changes_nothing(ernie_folder):
    what_fills_captions_up_changes_nothing(shared(ernie_folder), pixels(1), CAPTIONS[:2])


@pytest.mark.parametrize("scale", [1.0, 4.0])
def test_samples_equal_the_plain_pipeline(ernie_folder, ernie_pipeline, scale):
    """With guidance the pipeline reads both prompts at once, of different lengths."""
    model, steps = shared(ernie_folder), []
    sample = SampleConfig(**SAMPLE | {"width": 33}, diffusion_steps=3, cfg_scale=scale)
    found = model.sample(sample, 5, lambda k, n: steps.append((k, n)))
    expected = ernie_pipeline(
        prompt=SAMPLE["prompt"], negative_prompt=SAMPLE["negative_prompt"], height=24, width=32, num_inference_steps=3,
        guidance_scale=scale, generator=torch.Generator().manual_seed(5),
    ).images[0]  # fmt: skip
    assert found.size == expected.size == (32, 24) and steps == [(1, 3), (2, 3), (3, 3)]
    same_picture(found, expected)


@pytest.mark.parametrize("batch_size", [1, 2])
def test_no_kernel_without_masks(ernie_folder, batch_size):
    """Samples need them as well."""
    config = TrainConfig.from_dict({"model_type": "ERNIE", "attention_mechanism": "XFORMERS", "batch_size": batch_size})
    (problem,) = ErnieModel.check_config(config)
    assert problem.path == "attention_mechanism" and len(problem.remedies) == 1
    assert ("two prompts are one batch" if batch_size == 1 else "batches of 2") in problem.text


def test_text_encoder_is_freed_before_the_transformer_comes(ernie_folder):
    sample = SampleConfig(**SAMPLE, diffusion_steps=1)
    text_encoder_is_freed_before_the_transformer_comes(partial(load, ernie_folder), sample, pixels())


def test_fingerprints_follow_what_they_stand_for(ernie_folder):
    model, shorter = shared(ernie_folder), load(ernie_folder, text_encoder_sequence_length=20)
    assert shorter.text_fingerprint() != model.text_fingerprint()
    assert shorter.image_fingerprint() == model.image_fingerprint()


def test_gradient_checkpointing_gives_the_same_gradients(ernie_folder):
    checkpoints_give_the_same_gradients(partial(load, ernie_folder), "text_proj", torch.ones(2, 16, 4, 4))
