"""The Krea 2 family against diffusers: captions, latents, predictions and samples."""

import json
import math
from functools import cache, partial
from pathlib import Path

from modules.model.BaseModel import family_of
from modules.model.Krea2Model import HIDDEN_LAYERS, Krea2Model
from modules.model.recognize_model import find_model_type
from modules.model.StandardSource import StandardSource
from modules.util.config.SampleConfig import SampleConfig
from modules.util.config.TrainConfig import TrainConfig
from modules.util.enum.ModelType import ModelType
from modules.util.UserError import UserError
from tests.model.family_checks import (
    each_caption_is_as_it_is_alone,
    same_picture,
    target_leads_to_the_clean_latents,
    text_encoder_is_freed_before_the_transformer_comes,
    what_fills_captions_up_changes_nothing,
)
from tests.model.krea2_base import LAYERS

import torch

import pytest
from diffusers import FlowMatchEulerDiscreteScheduler, Krea2Pipeline
from diffusers.pipelines.krea2.pipeline_krea2 import calculate_shift

CPU = torch.device("cpu")
# of different lengths
CAPTIONS = ["a red cat", "a blue dog " * 11, ""]
# float32 through a dozen layers
CLOSE = {"atol": 1e-5, "rtol": 1e-5}
SAMPLE = {"prompt": "a red cat", "negative_prompt": "a blue dog number 1", "width": 32, "height": 24, "seed": 5}


def load(folder: Path, **options) -> Krea2Model:
    config = TrainConfig.from_dict({"base_model_name": str(folder), "model_type": "KREA_2", **options})
    return Krea2Model.load(config, CPU)


@cache
def shared(folder: Path) -> Krea2Model:
    """For tests that leave the model as it is."""
    return load(folder)


def pixels(count: int = 2, height: int = 16, width: int = 24) -> torch.Tensor:
    return torch.rand(count, 3, height, width, generator=torch.Generator().manual_seed(3)) * 2 - 1


def change(path: Path, **options) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | options))


def test_the_family_serves_its_type(krea2_folder):
    assert family_of(TrainConfig.from_dict({"model_type": "KREA_2"})) is Krea2Model
    # whose index names the whole model for images and text
    assert find_model_type(TrainConfig.from_dict({"base_model_name": str(krea2_folder)})) == "KREA_2"


@torch.no_grad()
@pytest.mark.parametrize("length", [None, 20])
def test_captions_are_those_of_the_peer(krea2_folder, krea2_pipeline, length):
    """The peer has the half for images as well, and fills texts up in their middle."""
    model = load(krea2_folder, text_encoder_sequence_length=length)
    expected, masks = krea2_pipeline.encode_prompt(list(CAPTIONS), max_sequence_length=length or 512)
    found = model.encode_captions(CAPTIONS)
    # a caption that is too long loses its end, and not what stands behind it
    assert found["mask"].sum(dim=1).tolist() == masks.sum(dim=1).tolist() == [8, length or 38, 5]
    assert expected.shape[1] == (length or 512) and found["hidden"].shape == (3, length or 38, 2, 16)
    for hidden, mask, other, other_mask in zip(found["hidden"], found["mask"], expected, masks, strict=True):
        torch.testing.assert_close(hidden[mask], other[other_mask], **CLOSE)
        assert not hidden[~mask].any() and not mask.diff().any() or mask.diff().sum() == 1
    assert set(model.components.loaded) == {"text_encoder"}
    # of three layers, without images
    assert len(model.text_encoder.state_dict()) == 3 * 11 + 2


def test_a_batch_of_captions_is_each_of_them_alone(krea2_folder):
    """Also where a tokenizer fills up from the left."""
    model, together = load(krea2_folder), shared(krea2_folder).encode_captions(CAPTIONS)
    model.tokenizer.padding_side = "left"
    each_caption_is_as_it_is_alone(model, together, CAPTIONS)


def test_what_captions_may_have(krea2_folder):
    model = load(krea2_folder, text_encoder_sequence_length=20)
    assert model.text_limits() == {"text_encoder": 15}
    assert model.count_tokens("text_encoder", CAPTIONS) == [3, 33, 0]
    assert model.read_more("text_encoder", 33) == "text_encoder_sequence_length to 38"


def test_the_layers_of_captions(krea2_folder, krea2_pipeline, own_krea2_folder):
    """Those that the model's index names, else diffusers' own."""
    assert shared(krea2_folder).hidden_layers == LAYERS
    config = TrainConfig.from_dict({"base_model_name": "krea/Krea-2-Raw", "model_type": "KREA_2"})
    standard = Krea2Model(config, StandardSource(ModelType.KREA_2), CPU)
    peer = Krea2Pipeline(krea2_pipeline.scheduler, krea2_pipeline.vae, None, None, krea2_pipeline.transformer)
    assert standard.hidden_layers == HIDDEN_LAYERS == peer.text_encoder_select_layers
    standard.check_layers()
    before = load(own_krea2_folder).text_fingerprint()
    change(own_krea2_folder / "model_index.json", text_encoder_select_layers=[1, 3])
    assert load(own_krea2_folder).text_fingerprint() != before
    change(own_krea2_folder / "model_index.json", text_encoder_select_layers=[1, 4])
    with pytest.raises(UserError, match=r"reads 2 layers of 16 numbers .*the layers 1, 4 of one with 3 layers"):
        load(own_krea2_folder).check_layers()


@torch.no_grad()
def test_latents_are_those_that_the_peer_decodes(krea2_folder, krea2_pipeline):
    model, vae = shared(krea2_folder), krea2_pipeline.vae
    assert model.image_grid == 4
    found = model.encode_images(pixels())
    assert found.shape == (2, 16, 4, 6) and found.dtype == torch.float32
    raw = vae.encode(pixels()[:, :, None]).latent_dist.mode()
    unpacked = krea2_pipeline._unpack_latents(found.flatten(2).transpose(1, 2), 16, 24)
    mean, std = (
        torch.tensor(numbers).view(1, 4, 1, 1, 1) for numbers in (vae.config.latents_mean, vae.config.latents_std)
    )
    torch.testing.assert_close(unpacked * std + mean, raw, **CLOSE)
    torch.testing.assert_close(model.decode_images(found), vae.decode(raw).sample[:, :, 0], **CLOSE)


@torch.no_grad()
@pytest.mark.parametrize("shift", [None, "of the size", "distilled"])
def test_prediction_against_the_peer(own_krea2_folder, krea2_pipeline, shift):
    change(own_krea2_folder / "model_index.json", is_distilled=shift == "distilled")
    model = load(own_krea2_folder, timestep_distribution="LOGIT_NORMAL", dynamic_timestep_shifting=bool(shift))
    clean = model.encode_images(pixels())
    prediction = model.predict(clean, model.encode_captions(CAPTIONS[:2]), torch.Generator().manual_seed(1))
    # first the noise levels are drawn, then the noise
    generator = torch.Generator().manual_seed(1)
    sigmas = torch.sigmoid(torch.special.ndtri(torch.rand(2, generator=generator, dtype=torch.float64)))
    noise = torch.randn(2, 16, 4, 6, generator=generator)
    scheduler = FlowMatchEulerDiscreteScheduler.from_config(krea2_pipeline.scheduler.config)
    if shift:
        # of 4 × 6 patches, or the pipeline's constant
        mu = 1.15 if shift == "distilled" else calculate_shift(24, 4, 64, 0.5, 1.15)
        sigmas = torch.from_numpy(scheduler.time_shift(mu, 1.0, sigmas.numpy()))
    torch.testing.assert_close(prediction.sigma.double(), sigmas, atol=1e-6, rtol=0)
    level = prediction.sigma
    # the scheduler looks its noise levels up by timestep
    scheduler.sigmas, scheduler.timesteps = torch.cat([level, torch.zeros(1)]), 1000 * level
    noisy = scheduler.scale_noise(clean, 1000 * level, noise)
    texts, mask = krea2_pipeline.encode_prompt(list(CAPTIONS[:2]))
    # as the pipeline's loop does, with 512 tokens of text, most of them hidden
    output = krea2_pipeline.transformer(
        hidden_states=noisy.flatten(2).transpose(1, 2), timestep=1000 * level / 1000, encoder_hidden_states=texts,
        encoder_attention_mask=mask, position_ids=krea2_pipeline.prepare_position_ids(512, 4, 6, CPU),
        return_dict=False,
    )[0]  # fmt: skip
    velocity = output.transpose(1, 2).unflatten(2, (4, 6))
    torch.testing.assert_close(prediction.predicted, velocity, **CLOSE)
    torch.testing.assert_close(prediction.target, noise - clean, **CLOSE)
    target_leads_to_the_clean_latents(scheduler, prediction, noisy, clean)


@torch.no_grad()
def test_what_fills_captions_up_changes_nothing(krea2_folder):
    what_fills_captions_up_changes_nothing(shared(krea2_folder), pixels(1), CAPTIONS[:2])


@pytest.mark.parametrize(("scale", "distilled"), [(1.0, False), (4.0, False), (1.0, True)])
def test_samples_equal_the_plain_pipeline(own_krea2_folder, krea2_pipeline, scale, distilled):
    """Whose guidance is counted from 0."""
    change(own_krea2_folder / "model_index.json", is_distilled=distilled)
    model, steps = load(own_krea2_folder), []
    sample = SampleConfig(**SAMPLE | {"width": 33}, diffusion_steps=3, cfg_scale=scale)
    found = model.sample(sample, 5, lambda k, n: steps.append((k, n)))
    peer = Krea2Pipeline(**krea2_pipeline.components, text_encoder_select_layers=LAYERS, is_distilled=distilled)
    peer.set_progress_bar_config(disable=True)
    expected = peer(
        prompt=SAMPLE["prompt"], negative_prompt=SAMPLE["negative_prompt"], height=24, width=32, num_inference_steps=3,
        guidance_scale=scale - 1, generator=torch.Generator().manual_seed(5),
    ).images[0]  # fmt: skip
    assert found.size == expected.size == (32, 24) and steps == [(1, 3), (2, 3), (3, 3)]
    same_picture(found, expected)


def test_the_shift_of_a_distilled_model_is_that_of_samples(own_krea2_folder):
    change(own_krea2_folder / "model_index.json", is_distilled=True)
    model = load(own_krea2_folder)
    assert model.shift_of_size(24) == model.shift_of_size(4096) == math.exp(1.15)


def test_text_encoder_is_freed_before_the_transformer_comes(krea2_folder):
    sample = SampleConfig(**SAMPLE, diffusion_steps=1)
    text_encoder_is_freed_before_the_transformer_comes(partial(load, krea2_folder), sample, pixels())


@pytest.mark.parametrize("fraction", [0.0, 0.9])
def test_norms_stay_in_float32(krea2_folder, krea2_pipeline, fraction):
    """They are stored as their distance from 1, as diffusers says of the class; also where layers wait elsewhere."""
    options = {"weight_dtype": "BFLOAT_16", "offload_fraction": fraction}
    method = {"training_method": "LORA", "temp_device": "cpu:0"}
    transformer = load(krea2_folder, transformer=options, **method).transformer
    expected = krea2_pipeline.transformer.state_dict()
    norms = {name: tensor for name, tensor in transformer.state_dict().items() if "norm" in name}
    # four of each of four blocks, and two outside
    assert len(norms) == 4 * 4 + 2
    assert all(torch.equal(tensor, expected[name]) for name, tensor in norms.items())
    others = {tensor.dtype for name, tensor in transformer.state_dict().items() if name not in norms}
    assert others == {torch.bfloat16}


def test_fingerprints_follow_what_they_stand_for(own_krea2_folder):
    before = load(own_krea2_folder).text_fingerprint(), load(own_krea2_folder).image_fingerprint()
    assert load(own_krea2_folder, text_encoder_sequence_length=20).text_fingerprint() != before[0]
    change(own_krea2_folder / "vae" / "config.json", latents_mean=[0.1, -0.2, 0.3, 0.06])
    changed = load(own_krea2_folder)
    assert changed.image_fingerprint() != before[1] and changed.text_fingerprint() == before[0]


def test_gradient_checkpointing_gives_the_same_gradients(krea2_folder):
    """The blocks that join the layers of a caption are computed again, too."""
    gradients, runs = [], []
    for enabled in (False, True):
        model, calls = load(krea2_folder), []
        model.set_gradient_checkpointing("transformer", enabled)
        fusion = model.transformer.text_fusion
        for block in (fusion.layerwise_blocks[0].ff, fusion.refiner_blocks[0].ff, model.transformer.final_layer):
            block.register_forward_pre_hook(lambda module, *_, calls=calls: calls.append(type(module).__name__))
        weights = (fusion.projector.weight, fusion.layerwise_blocks[0].attn.to_q.weight, model.transformer.img_in.bias)
        for weight in weights:
            weight.requires_grad_(True)
        hidden = torch.randn(2, 4, 2, 16, generator=torch.Generator().manual_seed(2))
        conditions = {"hidden": hidden, "mask": torch.tensor([[True] * 4, [True, True, False, False]])}
        prediction = model.predict(torch.ones(2, 16, 4, 4), conditions, torch.Generator().manual_seed(1))
        (prediction.predicted - prediction.target).square().mean().backward()
        gradients.append([weight.grad for weight in weights])
        runs.append(calls.count("Krea2SwiGLU"))
        assert calls.count("Krea2FinalLayer") == 1
    assert runs == [2, 4] and all(gradient.abs().max() > 0 for gradient in gradients[0])
    torch.testing.assert_close(*gradients)
