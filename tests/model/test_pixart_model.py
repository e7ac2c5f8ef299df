"""PixArt alpha and Sigma against diffusers: captions, latents, predictions, samples; what is refused."""

import json
import shutil
from functools import cache, partial
from pathlib import Path

from modules.model.BaseModel import family_of
from modules.model.PixArtModel import PixArtModel
from modules.model.recognize_model import find_model_type
from modules.util.config.SampleConfig import SampleConfig
from modules.util.config.TrainConfig import TrainConfig
from modules.util.UserError import UserError
from tests.model.family_checks import (
    CLOSE,
    each_caption_is_as_it_is_alone,
    same_picture,
    text_encoder_is_freed_before_the_transformer_comes,
    what_fills_captions_up_changes_nothing,
)
from tests.model.pixart_base import SCALES, TYPES

import torch

import diffusers
import pytest
from diffusers import DDIMScheduler, DDPMScheduler

CPU = torch.device("cpu")
# of different lengths, and in letters that become small ones
CAPTIONS = ["a red cat", " A Blue DOG " * 7, ""]


def load(folder: Path, variant: str = "alpha", **options) -> PixArtModel:
    config = {"base_model_name": str(folder), "model_type": TYPES[variant], **options}
    return PixArtModel.load(TrainConfig.from_dict(config), CPU)


@cache
def shared(folder: Path, variant: str) -> PixArtModel:
    """For tests that leave the model as it is."""
    return load(folder, variant)


@pytest.fixture(params=TYPES)
def variant(request) -> str:
    return request.param


@pytest.fixture
def folder(pixart_folders, variant) -> Path:
    return pixart_folders[variant]


@pytest.fixture
def peer(pixart_pipelines, variant):
    return pixart_pipelines[variant]


@pytest.fixture
def own_folder(pixart_folders, tmp_path) -> Path:
    """A copy of a base model that a test may break."""
    return Path(shutil.copytree(pixart_folders["alpha"], tmp_path / "base model"))


def change(path: Path, **options) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | options))


def pixels(count: int = 2, height: int = 32, width: int = 48) -> torch.Tensor:
    return torch.rand(count, 3, height, width, generator=torch.Generator().manual_seed(3)) * 2 - 1


def encoded(peer, captions: list[str], length: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Hidden states and mask of the peer, with as many tokens as it has."""
    hidden, mask, *_ = peer.encode_prompt(captions, do_classifier_free_guidance=False, max_sequence_length=length)
    return hidden, mask.bool()


def test_the_family_serves_its_types(own_folder):
    for kind in TYPES.values():
        assert family_of(TrainConfig.from_dict({"model_type": kind})) is PixArtModel
    assert find_model_type(TrainConfig.from_dict({"base_model_name": str(own_folder)})) == "PIXART_ALPHA"
    # published folders name the class that is now another one
    change(own_folder / "model_index.json", transformer=["diffusers", "Transformer2DModel"])
    change(own_folder / "transformer" / "config.json", _class_name="Transformer2DModel", num_vector_embeds=None)
    assert find_model_type(TrainConfig.from_dict({"base_model_name": str(own_folder)})) == "PIXART_ALPHA"
    assert load(own_folder).transformer.use_additional_conditions


@torch.no_grad()
@pytest.mark.parametrize("length", [None, 12])
def test_captions_are_those_of_the_peer(folder, peer, variant, length):
    """Without what fills them up, and in small letters."""
    model = load(folder, variant, text_encoder_sequence_length=length)
    most = length or {"alpha": 120, "sigma": 300}[variant]
    hidden, mask = encoded(peer, CAPTIONS, most)
    found = model.encode_captions(CAPTIONS)
    # each with its end
    seen = [4, min(most, 22), 1]
    assert found["mask"].sum(dim=1).tolist() == mask.sum(dim=1).tolist() == seen
    assert hidden.shape == (3, most, 16) and found["hidden"].shape == (3, max(seen), 16)
    for own, own_mask, other, other_mask in zip(found["hidden"], found["mask"], hidden, mask, strict=True):
        torch.testing.assert_close(own[own_mask], other[other_mask], **CLOSE)
        assert not own[~own_mask].any()
    # captions differ, so that the agreement says something
    assert (hidden[0, :2] - hidden[1, :2]).abs().max() > 0.1
    each_caption_is_as_it_is_alone(model, found, CAPTIONS)


def test_what_captions_may_have(folder, variant):
    """No more than the published models read: the option's default is that of other families."""
    most = {"alpha": 120, "sigma": 300}[variant]
    model = shared(folder, variant)
    assert model.config.text_encoder_sequence_length == 512
    assert model.text_limits() == {"text_encoder": most - 1}
    assert load(folder, variant, text_encoder_sequence_length=20).text_limits() == {"text_encoder": 19}
    assert model.count_tokens("text_encoder", CAPTIONS) == [3, 21, 0]
    assert model.read_more("text_encoder", 30) == "text_encoder_sequence_length to 31"
    assert model.read_more("text_encoder", most) == ""


@torch.no_grad()
def test_last_layers_can_be_left_out(pixart_folders, pixart_pipelines):
    """T5's inner layers are normalised by its last norm, as in OneTrainer."""
    folder, encoder = pixart_folders["sigma"], pixart_pipelines["sigma"].text_encoder
    model = load(folder, "sigma", text_encoder_layer_skip=1)
    ids = pixart_pipelines["sigma"].tokenizer(["a red cat"], return_tensors="pt").input_ids
    states = encoder(ids, output_hidden_states=True).hidden_states[1]
    expected = encoder.encoder.final_layer_norm(states)
    torch.testing.assert_close(model.encode_captions(["a red cat"])["hidden"], expected, **CLOSE)
    plain = shared(folder, "sigma")
    own = {"prompt": "a red cat", "text_encoder_1_layer_skip": 1}
    torch.testing.assert_close(plain.encode_prompts(SampleConfig(**own))["prompt_embeds"], expected, **CLOSE)
    short = SampleConfig(**own, text_encoder_1_sequence_length=3)
    assert plain.encode_prompts(short)["prompt_embeds"].shape == (1, 3, 16)
    assert (expected - plain.encode_captions(["a red cat"])["hidden"]).abs().max() > 0.05
    with pytest.raises(UserError, match="text_encoder_layer_skip: found 3, .* only 2 layers"):
        load(folder, "sigma", text_encoder_layer_skip=3).check_layers()


@torch.no_grad()
def test_latents_are_those_of_the_peer_and_decode(folder, peer, variant):
    model = shared(folder, variant)
    assert model.image_grid == 16
    found, raw = model.encode_images(pixels()), peer.vae.encode(pixels()).latent_dist.mode()
    assert found.shape == (2, 4, 4, 6) and found.dtype == torch.float32
    torch.testing.assert_close(found, raw * SCALES[variant], **CLOSE)
    torch.testing.assert_close(model.decode_images(found), peer.vae.decode(raw).sample, **CLOSE)


@torch.no_grad()
@pytest.mark.parametrize("velocity", [False, True])
def test_prediction_against_the_peer(folder, peer, variant, velocity):
    model = load(folder, variant, max_noising_strength=0.6, force_v_prediction=velocity)
    clean = model.encode_images(pixels())
    prediction = model.predict(clean, model.encode_captions(CAPTIONS[:2]), torch.Generator().manual_seed(1))
    # first the timesteps are drawn, then the noise
    generator = torch.Generator().manual_seed(1)
    timesteps = (0.6 * torch.rand(2, generator=generator, dtype=torch.float64) * 1000).long()
    noise = torch.randn(2, 4, 4, 6, generator=generator)
    assert prediction.timesteps.tolist() == timesteps.tolist() and len(set(timesteps.tolist())) == 2
    scheduler = DDPMScheduler.from_config(peer.scheduler.config)
    noisy = scheduler.add_noise(clean, noise, timesteps)
    hidden, mask = encoded(peer, CAPTIONS[:2], 120)
    told = {"resolution": None, "aspect_ratio": None}
    if variant == "alpha":
        told = {"resolution": torch.tensor([[32.0, 48.0]] * 2), "aspect_ratio": torch.tensor([[32 / 48]] * 2)}
    # as the pipeline's loop does, with all tokens, of which most are hidden
    output = peer.transformer(
        noisy, encoder_hidden_states=hidden, encoder_attention_mask=mask.long(), timestep=timesteps,
        added_cond_kwargs=told, return_dict=False,
    )[0]  # fmt: skip
    assert output.shape[1] == 8 and prediction.predicted.shape[1] == 4
    torch.testing.assert_close(prediction.predicted, output.chunk(2, dim=1)[0], **CLOSE)
    expected = scheduler.get_velocity(clean, noise, timesteps) if velocity else noise
    torch.testing.assert_close(prediction.target, expected, **CLOSE)
    torch.testing.assert_close(prediction.snr, 1 / (1 / scheduler.alphas_cumprod[timesteps] - 1), rtol=1e-5, atol=0)
    # and the scheduler's own step along the target knows the clean latents; divided by √ᾱ, here at least 0.15
    kind = model.scheduler_config["prediction_type"]
    samples = DDIMScheduler.from_config(peer.scheduler.config, prediction_type=kind, clip_sample=False)
    samples.set_timesteps(1000)
    for place, timestep in enumerate(timesteps):
        step = samples.step(prediction.target[place], timestep, noisy[place])
        torch.testing.assert_close(step.pred_original_sample, clean[place], atol=1e-4, rtol=0)


def test_only_alpha_is_told_sizes(pixart_folders):
    found = {}
    for variant, folder in pixart_folders.items():
        model = shared(folder, variant)
        texts, generator = model.encode_captions(["a red cat"]), torch.Generator().manual_seed(1)
        wide = torch.randn(1, 4, 4, 8, generator=generator)
        with torch.no_grad():
            both = [model.call_transformer(image, torch.tensor([300]), texts) for image in (wide, wide[:, :, :, :4])]
        found[variant] = both
        calls = []
        handle = model.transformer.adaln_single.register_forward_pre_hook(
            lambda module, arguments, calls=calls: calls.append(arguments[1])
        )
        with torch.no_grad():
            model.call_transformer(wide, torch.tensor([300]), texts)
        handle.remove()
        sizes = calls[0]["resolution"]
        assert (sizes is not None) == (variant == "alpha")
        assert sizes is None or (sizes.tolist(), calls[0]["aspect_ratio"].tolist()) == ([[32, 64]], [[0.5]])


@torch.no_grad()
def test_what_fills_captions_up_changes_nothing(folder, variant):
    what_fills_captions_up_changes_nothing(shared(folder, variant), pixels(1), CAPTIONS[:2])


@pytest.mark.parametrize(
    ("variant", "scheduler", "scale"),
    [("alpha", "DPMPP", 3.0), ("alpha", "EULER_A", 1.0), ("sigma", "DDIM", 3.0), ("sigma", "DPMPP", 1.0)],
)
def test_samples_equal_the_plain_pipeline(pixart_folders, pixart_pipelines, variant, scheduler, scale):
    """With prompts of different lengths, where sizes stay as they are asked for.

    The peer fills both up to four tokens: of more, sums are rounded otherwise, and the first step multiplies by 160.
    """
    model, steps = shared(pixart_folders[variant], variant), []
    sample = SampleConfig(
        prompt="a Red cat", negative_prompt="blue", width=50, height=32, diffusion_steps=3, cfg_scale=scale,
        noise_scheduler=scheduler, text_encoder_1_sequence_length=4,
    )  # fmt: skip
    found = model.sample(sample, 5, lambda k, n: steps.append((k, n)))
    own = pixart_pipelines[variant]
    kinds = {"DPMPP": "DPMSolverMultistepScheduler", "EULER_A": "EulerAncestralDiscreteScheduler"}
    kind = getattr(diffusers, kinds.get(scheduler, "DDIMScheduler"))
    options = {"clip_sample": False} if scheduler == "DDIM" else {}
    peer = type(own)(**own.components | {"scheduler": kind.from_config(own.scheduler.config, **options)})
    peer.set_progress_bar_config(disable=True)
    expected = peer(
        prompt="a Red cat", negative_prompt="blue", height=32, width=48, num_inference_steps=3, guidance_scale=scale,
        generator=torch.Generator().manual_seed(5), use_resolution_binning=False, clean_caption=False,
        max_sequence_length=4,
    ).images[0]  # fmt: skip
    assert found.size == expected.size == (48, 32) and steps == [(1, 3), (2, 3), (3, 3)]
    same_picture(found, expected)


@pytest.mark.parametrize("scheduler", ["DPMPP", "UNIPC"])
def test_a_sample_of_one_step(folder, variant, scheduler):
    """Of which alpha's pipeline takes what not every scheduler gives."""
    sample = SampleConfig(prompt="a red cat", width=32, height=32, diffusion_steps=1, noise_scheduler=scheduler)
    assert shared(folder, variant).sample(sample, 1, lambda *_: None).size == (32, 32)


def test_text_encoder_is_freed_before_the_transformer_comes(pixart_folders):
    sample = SampleConfig(prompt="a red cat", width=32, height=32, diffusion_steps=1)
    text_encoder_is_freed_before_the_transformer_comes(partial(load, pixart_folders["alpha"]), sample, pixels())


def test_a_vae_that_overflows_in_half_precision_is_widened(own_folder):
    options = {"vae": {"weight_dtype": "FLOAT_16"}}
    assert load(own_folder, **options).vae.dtype == torch.float32
    change(own_folder / "vae" / "config.json", force_upcast=False)
    assert load(own_folder, **options).vae.dtype == torch.float16


def test_fingerprints_follow_what_they_stand_for(own_folder):
    before = load(own_folder).text_fingerprint(), load(own_folder).image_fingerprint()
    assert (load(own_folder).text_fingerprint(), load(own_folder).image_fingerprint()) == before
    for options in ({"text_encoder_sequence_length": 20}, {"text_encoder_layer_skip": 1}):
        assert load(own_folder, **options).text_fingerprint() != before[0]
    # Sigma reads more of a caption
    assert load(own_folder, "sigma").text_fingerprint() != before[0]
    change(own_folder / "vae" / "config.json", scaling_factor=0.5)
    assert load(own_folder).image_fingerprint() != before[1]


def test_gradient_checkpointing_keeps_the_mask(pixart_folders):
    gradients = []
    for enabled in (False, True):
        model = load(pixart_folders["alpha"])
        model.set_gradient_checkpointing("transformer", enabled)
        weight = model.transformer.caption_projection.linear_1.weight.requires_grad_()
        texts = model.encode_captions(CAPTIONS[:2])
        predicted = model.predict(torch.ones(2, 4, 4, 4), texts, torch.Generator().manual_seed(1)).predicted
        gradients.append(torch.autograd.grad(predicted.square().sum(), weight)[0])
    assert gradients[0].abs().max() > 0
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"loss_weight_fn": "SIGMA"}, "loss_weight_fn: SIGMA has no meaning for PIXART_ALPHA; it is for flow matching"),
        ({"dynamic_timestep_shifting": True}, "PIXART_ALPHA has no shift that depends on an image's size"),
        ({"prompt_chunks": 2}, "prompt_chunks: found 2, but PIXART_ALPHA does not read captions in chunks"),
        ({"text_encoder_2_layer_skip": 1}, None),
        ({"attention_mechanism": "XFORMERS"}, "samples, whose two prompts are one batch, but .* was not tried here"),
    ],
)
def test_options_without_meaning_are_named(pixart_folders, options, words):
    if words is None:
        load(pixart_folders["alpha"], **options)
        return
    with pytest.raises(UserError, match=words):
        load(pixart_folders["alpha"], **options)


def test_a_file_as_base_model_is_explained(tmp_path):
    path = tmp_path / "PixArt-Sigma-XL-2-1024-MS.safetensors"
    path.write_bytes(b"")
    with pytest.raises(UserError, match=r"no tokenizer of T5.*of PixArt here.*model_name of text_encoder and vae as"):
        load(path)
