"""The Qwen-Image family against diffusers: captions, latents, predictions and samples."""

import json
from functools import cache, partial
from pathlib import Path

from modules.model.BaseModel import family_of
from modules.model.QwenModel import QwenModel
from modules.model.recognize_model import find_model_type
from modules.util.config.SampleConfig import SampleConfig
from modules.util.config.TrainConfig import TrainConfig
from modules.util.UserError import UserError
from tests.model.family_checks import (
    checkpoints_give_the_same_gradients,
    each_caption_is_as_it_is_alone,
    same_picture,
    target_leads_to_the_clean_latents,
    text_encoder_is_freed_before_the_transformer_comes,
    what_fills_captions_up_changes_nothing,
)

import torch

import numpy as np
import pytest
from diffusers import FlowMatchEulerDiscreteScheduler, QwenImagePipeline
from diffusers.pipelines.qwenimage.pipeline_qwenimage import calculate_shift

CPU = torch.device("cpu")
# of different lengths
CAPTIONS = ["a red cat", "a blue dog " * 11, ""]
# float32 through a dozen layers
CLOSE = {"atol": 1e-5, "rtol": 1e-5}
SAMPLE = {"prompt": "a red cat", "negative_prompt": "a blue dog number 1", "width": 32, "height": 24, "seed": 5}


def load(folder: Path, **options) -> QwenModel:
    config = TrainConfig.from_dict({"base_model_name": str(folder), "model_type": "QWEN", **options})
    return QwenModel.load(config, CPU)


@cache
def shared(folder: Path) -> QwenModel:
    """For tests that leave the model as it is."""
    return load(folder)


def pixels(count: int = 2, height: int = 16, width: int = 24) -> torch.Tensor:
    return torch.rand(count, 3, height, width, generator=torch.Generator().manual_seed(3)) * 2 - 1


def change_config(folder: Path, **options) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | options))


def test_the_family_serves_its_type(qwen_folder):
    assert family_of(TrainConfig.from_dict({"model_type": "QWEN"})) is QwenModel
    # whose index names the whole model for images and text
    assert find_model_type(TrainConfig.from_dict({"base_model_name": str(qwen_folder)})) == "QWEN"


@pytest.mark.parametrize("length", [None, 20])
def test_captions_are_those_of_the_peer(qwen_folder, qwen_pipeline, length):
    """The peer has the half for images as well."""
    model = load(qwen_folder, text_encoder_sequence_length=length)
    expected, mask = qwen_pipeline.encode_prompt(list(CAPTIONS), max_sequence_length=length or 512)
    found = model.encode_captions(CAPTIONS)
    # the text before the caption is cut, that behind it is not; what is too long loses its end
    assert found["mask"].sum(dim=1).tolist() == [8, length or 38, 5]
    assert torch.equal(found["mask"], mask.bool())
    torch.testing.assert_close(found["hidden"], expected, **CLOSE)
    assert not found["hidden"][~found["mask"]].any()
    assert set(model.components.loaded) == {"text_encoder"}
    # of three layers, without head and images
    assert len(model.text_encoder.state_dict()) == 3 * 12 + 2


def test_a_batch_of_captions_is_each_of_them_alone(qwen_folder):
    """Also where a tokenizer fills up from the left."""
    model, together = load(qwen_folder), shared(qwen_folder).encode_captions(CAPTIONS)
    model.tokenizer.padding_side = "left"
    each_caption_is_as_it_is_alone(model, together, CAPTIONS)


def test_what_captions_may_have(qwen_folder):
    model = load(qwen_folder, text_encoder_sequence_length=20)
    assert model.text_limits() == {"text_encoder": 15}
    assert model.count_tokens("text_encoder", CAPTIONS) == [3, 33, 0]
    assert model.read_more("text_encoder", 33) == "text_encoder_sequence_length to 38"
    with pytest.raises(UserError, match=r"text_encoder_sequence_length: found 1100, .*at most 1024"):
        load(qwen_folder, text_encoder_sequence_length=1100)
    with pytest.raises(UserError, match=r"text_encoder_1_sequence_length: found 1100, .*at most 1024"):
        model.encode_prompts(SampleConfig(**SAMPLE, text_encoder_1_sequence_length=1100))


def test_latents_are_those_that_the_peer_decodes(qwen_folder, qwen_pipeline):
    model, vae = shared(qwen_folder), qwen_pipeline.vae
    assert model.image_grid == 4
    found = model.encode_images(pixels())
    assert found.shape == (2, 16, 4, 6) and found.dtype == torch.float32
    with torch.no_grad():
        raw = vae.encode(pixels()[:, :, None]).latent_dist.mode()
        tokens = found.flatten(2).transpose(1, 2)
        unpacked = qwen_pipeline._unpack_latents(tokens, 16, 24, qwen_pipeline.vae_scale_factor)
        mean, std = (
            torch.tensor(numbers).view(1, 4, 1, 1, 1) for numbers in (vae.config.latents_mean, vae.config.latents_std)
        )
        torch.testing.assert_close(unpacked * std + mean, raw, **CLOSE)
        torch.testing.assert_close(model.decode_images(found), vae.decode(raw).sample[:, :, 0], **CLOSE)


@pytest.mark.parametrize("dynamic", [False, True])
def test_prediction_against_the_peer(qwen_folder, qwen_pipeline, dynamic):
    model = load(qwen_folder, timestep_distribution="LOGIT_NORMAL", dynamic_timestep_shifting=dynamic)
    clean = model.encode_images(pixels())
    with torch.no_grad():
        prediction = model.predict(clean, model.encode_captions(CAPTIONS[:2]), torch.Generator().manual_seed(1))
    # first the noise levels are drawn, then the noise
    generator = torch.Generator().manual_seed(1)
    sigmas = torch.sigmoid(torch.special.ndtri(torch.rand(2, generator=generator, dtype=torch.float64)))
    noise = torch.randn(2, 16, 4, 6, generator=generator)
    scheduler = FlowMatchEulerDiscreteScheduler.from_config(qwen_pipeline.scheduler.config)
    if dynamic:
        # of 4 × 6 patches
        sigmas = torch.from_numpy(scheduler.time_shift(calculate_shift(24, 4, 64, 0.5, 0.9), 1.0, sigmas.numpy()))
    torch.testing.assert_close(prediction.sigma.double(), sigmas, atol=1e-6, rtol=0)
    level = prediction.sigma
    # the scheduler looks its noise levels up by timestep
    scheduler.sigmas, scheduler.timesteps = torch.cat([level, torch.zeros(1)]), 1000 * level
    noisy = scheduler.scale_noise(clean, 1000 * level, noise)
    with torch.no_grad():
        texts, mask = qwen_pipeline.encode_prompt(list(CAPTIONS[:2]))
        # as the pipeline's loop does
        output = qwen_pipeline.transformer(
            hidden_states=noisy.flatten(2).transpose(1, 2), timestep=1000 * level / 1000, guidance=None,
            encoder_hidden_states_mask=mask, encoder_hidden_states=texts, img_shapes=[[(1, 4, 6)]] * 2,
            attention_kwargs={}, return_dict=False,
        )[0]  # fmt: skip
    velocity = output.transpose(1, 2).unflatten(2, (4, 6))
    torch.testing.assert_close(prediction.predicted, velocity, **CLOSE)
    torch.testing.assert_close(prediction.target, noise - clean, **CLOSE)
    target_leads_to_the_clean_latents(scheduler, prediction, noisy, clean)


def test_what_fills_captions_up_changes_nothing(qwen_folder):
    what_fills_captions_up_changes_nothing(shared(qwen_folder), pixels(1), CAPTIONS[:2])


@pytest.mark.parametrize("scale", [1.0, 4.0])
def test_samples_equal_the_plain_pipeline(qwen_folder, qwen_pipeline, scale):
    """With the norm that the pipeline gives to guided predictions, and the scheduler's last noise level."""
    model, steps = shared(qwen_folder), []
    sample = SampleConfig(**SAMPLE | {"width": 33}, diffusion_steps=3, cfg_scale=scale)
    found = model.sample(sample, 5, lambda k, n: steps.append((k, n)))
    expected = qwen_pipeline(
        prompt=SAMPLE["prompt"], negative_prompt=SAMPLE["negative_prompt"], height=24, width=32, num_inference_steps=3,
        true_cfg_scale=scale, generator=torch.Generator().manual_seed(5),
    ).images[0]  # fmt: skip
    assert found.size == expected.size == (32, 24) and steps == [(1, 3), (2, 3), (3, 3)]
    same_picture(found, expected)


def test_a_single_step_is_a_picture(qwen_folder):
    """The published scheduler divides by zero then: its noise levels have a last one apart from the first."""
    sample = SampleConfig(**SAMPLE, diffusion_steps=1, cfg_scale=1.0)
    assert np.asarray(shared(qwen_folder).sample(sample, 1, lambda *_: None)).std() > 1


def test_large_images_are_decoded_in_tiles(qwen_folder):
    """Of 256 pixels: where they meet, one is blended into the next."""
    model = shared(qwen_folder)
    latents = torch.randn(1, 16, 72, 8, generator=torch.Generator().manual_seed(1))
    whole = model.decode_images(latents)
    with model.tiled_decoding():
        tiles = model.decode_images(latents)
    assert tiles.shape == whole.shape == (1, 3, 288, 32) and torch.equal(model.decode_images(latents), whole)
    assert 0 < (tiles - whole).abs().mean() < 0.1 * whole.std()


def test_long_prompts_are_read_whole(qwen_folder, monkeypatch):
    """The pipeline would cut prompts at 512 tokens."""
    seen = []

    def spy(pipeline, *arguments, **options):
        seen.append(result := read(pipeline, *arguments, **options))
        return result

    read = QwenImagePipeline.encode_prompt
    monkeypatch.setattr(QwenImagePipeline, "encode_prompt", spy)
    sample = SampleConfig(**SAMPLE | {"prompt": "cat " * 600}, diffusion_steps=1, cfg_scale=1.0)
    load(qwen_folder, text_encoder_sequence_length=700).sample(sample, 1, lambda *_: None)
    assert seen[0][0].shape[1] == 605


def test_text_encoder_is_freed_before_the_transformer_comes(qwen_folder):
    sample = SampleConfig(**SAMPLE, diffusion_steps=1)
    text_encoder_is_freed_before_the_transformer_comes(partial(load, qwen_folder), sample, pixels())


def test_fingerprints_follow_what_they_stand_for(own_qwen_folder):
    model = load(own_qwen_folder)
    before = model.text_fingerprint(), model.image_fingerprint()
    assert load(own_qwen_folder, text_encoder_sequence_length=20).text_fingerprint() != before[0]
    change_config(own_qwen_folder / "vae", latents_mean=[0.1, -0.2, 0.3, 0.06])
    assert (
        load(own_qwen_folder).image_fingerprint() != before[1] and load(own_qwen_folder).text_fingerprint() == before[0]
    )


def test_gradient_checkpointing_gives_the_same_gradients(qwen_folder):
    checkpoints_give_the_same_gradients(partial(load, qwen_folder), "txt_in", torch.ones(2, 16, 4, 4))


def test_folders_that_draw_layers_are_refused(own_qwen_folder):
    path = own_qwen_folder / "model_index.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "_class_name": "QwenImageLayeredPipeline"}))
    with pytest.raises(UserError, match="is a model for QwenImageLayeredPipeline, which draws layers and can't be"):
        load(own_qwen_folder)
    # a folder that gives nothing but descriptions
    load(own_qwen_folder, transformer={"model_name": str(own_qwen_folder / "transformer")})


@pytest.mark.parametrize("option", ["zero_cond_t", "use_additional_t_cond", "use_layer3d_rope"])
def test_models_that_read_more_are_refused(own_qwen_folder, option):
    change_config(own_qwen_folder / "transformer", **{option: True})
    with pytest.raises(UserError, match=rf"has {option}.*edit images or draw layers"):
        load(own_qwen_folder).check_layers()
