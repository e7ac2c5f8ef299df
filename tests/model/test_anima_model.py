"""The Anima family against diffusers: captions, latents, predictions and samples."""

import json
from functools import cache, partial
from pathlib import Path

from modules.model.AnimaModel import AnimaModel
from modules.model.BaseModel import family_of
from modules.model.recognize_model import find_model_type
from modules.util.config.SampleConfig import SampleConfig
from modules.util.config.TrainConfig import TrainConfig
from modules.util.UserError import UserError
from tests.model.anima_base import masks_are_scaled
from tests.model.family_checks import (
    each_caption_is_as_it_is_alone,
    same_picture,
    target_leads_to_the_clean_latents,
    what_fills_captions_up_changes_nothing,
)

import torch

import pytest
from diffusers import FlowMatchEulerDiscreteScheduler
from diffusers.modular_pipelines.anima.before_denoise import AnimaTextConditioningStep
from diffusers.modular_pipelines.anima.encoders import AnimaTextEncoderStep, encode_vae_image

CPU = torch.device("cpu")
# of different lengths
CAPTIONS = ["a red cat", "a blue dog " * 11, ""]
# float32 through a dozen layers
CLOSE = {"atol": 1e-5, "rtol": 1e-5}
SAMPLE = {"prompt": "a red cat", "negative_prompt": "a blue dog number 1", "width": 32, "height": 24, "seed": 5}


def load(folder: Path, **options) -> AnimaModel:
    config = TrainConfig.from_dict({"base_model_name": str(folder), "model_type": "ANIMA", **options})
    return AnimaModel.load(config, CPU)


@cache
def shared(folder: Path) -> AnimaModel:
    """For tests that leave the model as it is."""
    return load(folder)


def pixels(count: int = 2, height: int = 16, width: int = 24) -> torch.Tensor:
    return torch.rand(count, 3, height, width, generator=torch.Generator().manual_seed(3)) * 2 - 1


def change(path: Path, **options) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | options))


def peer_captions(pipeline, captions: list[str], length: int = 512) -> torch.Tensor:
    """`[b, 512, d]` of diffusers' blocks."""
    encoded = AnimaTextEncoderStep.encode_prompt(
        pipeline, captions, prepare_unconditional_embeds=False, max_sequence_length=length, device=CPU
    )
    given = {name: tensor for name, tensor in encoded.items() if tensor is not None}
    return AnimaTextConditioningStep._condition_prompt_embeds(
        pipeline, **given, device=CPU, conditioning_dtype=torch.float32, output_dtype=torch.float32
    )


def test_the_family_serves_its_type(anima_folder):
    assert family_of(TrainConfig.from_dict({"model_type": "ANIMA"})) is AnimaModel
    # whose index is that of a modular pipeline
    assert find_model_type(TrainConfig.from_dict({"base_model_name": str(anima_folder)})) == "ANIMA"


@torch.no_grad()
@pytest.mark.parametrize("length", [None, 20])
def test_captions_are_those_of_the_peer(anima_folder, anima_pipeline, length):
    model = load(anima_folder, text_encoder_sequence_length=length)
    expected, found = peer_captions(anima_pipeline, CAPTIONS, length or 512), model.encode_captions(CAPTIONS)
    assert found["mask"].sum(dim=1).tolist() == [4, length or 34, 1]
    # the peer fills captions up with zeros
    assert expected.shape == (3, 512, 16) and not expected[0, 4:].any() and expected[2, 0].any()
    torch.testing.assert_close(found["hidden"], expected[:, : found["hidden"].shape[1]], **CLOSE)
    assert set(model.components.loaded) == {"text_encoder", "text_conditioner"}


@torch.no_grad()
def test_captions_without_a_word(anima_folder, anima_pipeline):
    """Of which Qwen3 reads no token at all."""
    found = shared(anima_folder).encode_captions(["", ""])
    assert found["mask"].shape == (2, 1)
    torch.testing.assert_close(found["hidden"], peer_captions(anima_pipeline, ["", ""])[:, :1], **CLOSE)


def test_a_batch_of_captions_is_each_of_them_alone(anima_folder):
    """Also where tokenizers fill up from the left."""
    model, together = load(anima_folder), shared(anima_folder).encode_captions(CAPTIONS)
    for tokenizer in model.tokenizer_of.values():
        tokenizer.padding_side = "left"
    each_caption_is_as_it_is_alone(model, together, CAPTIONS)


def test_what_captions_may_have(anima_folder):
    model = load(anima_folder, text_encoder_sequence_length=20)
    # the tokens of T5 end with one that says so
    assert model.text_limits() == {"text_encoder": 20, "text_conditioner": 19}
    assert (
        model.count_tokens("text_encoder", CAPTIONS) == model.count_tokens("text_conditioner", CAPTIONS) == [3, 33, 0]
    )
    assert model.read_more("text_encoder", 33) == "text_encoder_sequence_length to 33"
    assert model.read_more("text_conditioner", 33) == "text_encoder_sequence_length to 34"
    assert model.read_more("text_conditioner", 512) == "" != model.read_more("text_encoder", 512)
    with pytest.raises(UserError, match="text_encoder_sequence_length: found 513, but ANIMA reads at most 512"):
        load(anima_folder, text_encoder_sequence_length=513)


@torch.no_grad()
def test_latents_are_those_of_the_peer(anima_folder, anima_pipeline):
    model, vae = shared(anima_folder), anima_pipeline.vae
    assert model.image_grid == 4
    found = model.encode_images(pixels())
    assert found.shape == (2, 4, 8, 12) and found.dtype == torch.float32
    expected = encode_vae_image(pixels(), vae, None, CPU, torch.float32, latent_channels=4)
    torch.testing.assert_close(found, expected[:, :, 0], **CLOSE)
    raw = vae.encode(pixels()[:, :, None]).latent_dist.mode()
    torch.testing.assert_close(model.decode_images(found), vae.decode(raw).sample[:, :, 0], **CLOSE)


@torch.no_grad()
def test_prediction_against_the_peer(anima_folder, anima_pipeline):
    model = load(anima_folder, timestep_distribution="LOGIT_NORMAL")
    clean = model.encode_images(pixels())
    prediction = model.predict(clean, model.encode_captions(CAPTIONS[:2]), torch.Generator().manual_seed(1))
    # first the noise levels are drawn, then the noise
    generator = torch.Generator().manual_seed(1)
    sigmas = torch.sigmoid(torch.special.ndtri(torch.rand(2, generator=generator, dtype=torch.float64)))
    noise = torch.randn(2, 4, 8, 12, generator=generator)
    torch.testing.assert_close(prediction.sigma.double(), sigmas, atol=1e-6, rtol=0)
    scheduler = FlowMatchEulerDiscreteScheduler.from_config(anima_pipeline.scheduler.config)
    level = prediction.sigma
    # the scheduler looks its noise levels up by timestep
    scheduler.sigmas, scheduler.timesteps = torch.cat([level, torch.zeros(1)]), 1000 * level
    noisy = scheduler.scale_noise(clean, 1000 * level, noise)
    with masks_are_scaled():
        # as the blocks' loop does: the mask has the image's size in pixels
        velocity = anima_pipeline.transformer(
            hidden_states=noisy[:, :, None], timestep=1000 * level / 1000,
            encoder_hidden_states=peer_captions(anima_pipeline, CAPTIONS[:2]),
            padding_mask=torch.zeros(1, 1, 16, 24), return_dict=False,
        )[0][:, :, 0]  # fmt: skip
    torch.testing.assert_close(prediction.predicted, velocity, **CLOSE)
    torch.testing.assert_close(prediction.target, noise - clean, **CLOSE)
    target_leads_to_the_clean_latents(scheduler, prediction, noisy, clean)


def test_the_shift_is_that_of_the_scheduler(anima_folder):
    with pytest.raises(UserError, match=r"shifts images of all sizes by 3\. Set it to false, and timestep_shift to 3"):
        load(anima_folder, dynamic_timestep_shifting=True)


@torch.no_grad()
def test_what_fills_captions_up_changes_nothing(anima_folder):
    what_fills_captions_up_changes_nothing(shared(anima_folder), pixels(1), CAPTIONS[:2])


@pytest.mark.parametrize("scale", [1.0, 4.0])
def test_samples_equal_the_peer_s(anima_folder, anima_pipeline, scale):
    steps = []
    sample = SampleConfig(**SAMPLE | {"width": 33}, diffusion_steps=3, cfg_scale=scale)
    found = load(anima_folder).sample(sample, 5, lambda k, n: steps.append((k, n)))
    anima_pipeline.guider.guidance_scale = scale
    with masks_are_scaled():
        expected = anima_pipeline(
            prompt=SAMPLE["prompt"], negative_prompt=SAMPLE["negative_prompt"], height=24, width=32,
            num_inference_steps=3, generator=torch.Generator().manual_seed(5), output="images",
        )[0]  # fmt: skip
    assert found.size == expected.size == (32, 24) and steps == [(1, 3), (2, 3), (3, 3)]
    same_picture(found, expected)


def test_text_encoder_is_freed_before_the_transformer_comes(anima_folder):
    sample, load_one = SampleConfig(**SAMPLE, diffusion_steps=1), partial(load, anima_folder)
    model = load_one()
    model.prompts(sample)
    model.rest()
    assert not model.components.loaded
    model = load_one(vae={"weight_dtype": "FLOAT_32"}, transformer={"weight_dtype": "BFLOAT_16"})
    model.prompts(sample)
    model.rest()
    assert model.sample(sample, 1, lambda *_: None).size == (32, 24)
    assert set(model.components.loaded) == {"transformer", "vae"} and model.transformer.dtype == torch.bfloat16


def test_frequencies_of_the_conditioner_are_exact(anima_folder, anima_pipeline):
    """Also in 16 bits."""
    model = load(anima_folder, text_conditioner={"weight_dtype": "BFLOAT_16"})
    conditioner = model.components["text_conditioner"]
    assert conditioner.dtype == torch.bfloat16
    assert torch.equal(conditioner.rotary_emb.inv_freq, anima_pipeline.text_conditioner.rotary_emb.inv_freq)


def test_components_that_do_not_fit(own_anima_folder):
    change(own_anima_folder / "text_conditioner" / "config.json", source_dim=24)
    with pytest.raises(UserError, match=r"text conditioner gives 16 and reads 24 of the text encoder's 16"):
        load(own_anima_folder).check_layers()


def test_fingerprints_follow_what_they_stand_for(own_anima_folder):
    before = load(own_anima_folder).text_fingerprint(), load(own_anima_folder).image_fingerprint()
    assert load(own_anima_folder, text_encoder_sequence_length=20).text_fingerprint() != before[0]
    model = load(own_anima_folder)
    # of the text conditioner as well
    next(model.components["text_conditioner"].parameters()).data.mul_(2)
    assert model.text_fingerprint() != before[0]
    change(own_anima_folder / "vae" / "config.json", latents_mean=[0.1, -0.2, 0.3, 0.06])
    changed = load(own_anima_folder)
    assert changed.image_fingerprint() != before[1] and changed.text_fingerprint() == before[0]


def test_gradient_checkpointing_gives_the_same_gradients(anima_folder):
    gradients = []
    for enabled in (False, True):
        model = load(anima_folder)
        model.set_gradient_checkpointing("transformer", enabled)
        weight = model.transformer.transformer_blocks[0].attn2.to_k.weight.requires_grad_(True)
        hidden = torch.randn(2, 4, 16, generator=torch.Generator().manual_seed(2))
        prediction = model.predict(torch.ones(2, 4, 8, 8), {"hidden": hidden}, torch.Generator().manual_seed(1))
        (prediction.predicted - prediction.target).square().mean().backward()
        gradients.append(weight.grad)
        assert model.transformer.config.concat_padding_mask
    assert gradients[0].abs().max() > 0
    torch.testing.assert_close(*gradients)
