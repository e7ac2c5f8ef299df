"""The Ideogram 4 family against diffusers: captions, latents, predictions, samples and files."""

import json
import math
from functools import cache, partial
from pathlib import Path

from modules.model.BaseModel import family_of
from modules.model.IdeogramModel import LAYERS, IdeogramModel, noise_levels
from modules.model.recognize_model import find_model_type
from modules.model.StandardSource import StandardSource
from modules.util.config.SampleConfig import SampleConfig
from modules.util.config.TrainConfig import TrainConfig
from modules.util.enum.ModelType import ModelType
from modules.util.UserError import UserError
from tests.model.family_checks import (
    checkpoints_give_the_same_gradients,
    each_caption_is_as_it_is_alone,
    same_picture,
    target_leads_to_the_clean_latents,
    text_encoder_is_freed_before_the_transformer_comes,
    what_fills_captions_up_changes_nothing,
)
from tests.model.ideogram_base import native_tensors
from tests.model.test_flux2_files import same

import torch
from torch import Tensor, nn

import pytest
from diffusers import FlowMatchEulerDiscreteScheduler
from diffusers.pipelines.ideogram4.pipeline_ideogram4 import (
    QWEN3_VL_ACTIVATION_LAYERS,
    _logit_normal_sigmas,
    _resolution_aware_mu,
)
from safetensors.torch import save_file

CPU = torch.device("cpu")
# of different lengths
CAPTIONS = ["a red cat", "a blue dog " * 11, ""]
# float32 through a dozen layers
CLOSE = {"atol": 1e-5, "rtol": 1e-5}
# as the pipeline has it, for these captions
LENGTH = 48
SAMPLE = {"prompt": "a red cat", "width": 32, "height": 24, "seed": 5}
SECOND = "unconditional_transformer"


def load(folder: Path, **options) -> IdeogramModel:
    config = TrainConfig.from_dict({"base_model_name": str(folder), "model_type": "IDEOGRAM_4", **options})
    return IdeogramModel.load(config, CPU)


@cache
def shared(folder: Path) -> IdeogramModel:
    """For tests that leave the model as it is."""
    return load(folder)


def pixels(count: int = 2) -> Tensor:
    return torch.rand(count, 3, 16, 24, generator=torch.Generator().manual_seed(3)) * 2 - 1


def test_the_family_serves_its_type(own_ideogram_folder):
    assert family_of(TrainConfig.from_dict({"model_type": "IDEOGRAM_4"})) is IdeogramModel
    # whose index names the whole model for images and text, and maybe a head that rewrites prompts
    path = own_ideogram_folder / "model_index.json"
    index = json.loads(path.read_text())
    assert index["text_encoder"] == ["transformers", "Qwen3VLModel"] and index["prompt_enhancer_head"] == [None, None]
    path.write_text(json.dumps(index | {"prompt_enhancer_head": ["diffusers", "Ideogram4PromptEnhancerHead"]}))
    assert find_model_type(TrainConfig.from_dict({"base_model_name": str(own_ideogram_folder)})) == "IDEOGRAM_4"


def test_all_components_are_described_as_they_were_published():
    source = StandardSource(ModelType.IDEOGRAM_4)
    counts = {name: sum(p.numel() for p in source.empty(name).parameters()) for name in source.classes}
    # the text encoder has the sizes of Qwen3-8B, without its head
    assert counts == {
        "transformer": 9_279_288_448, "text_encoder": 7_568_405_504, SECOND: 9_279_288_448, "vae": 84_046_115,
    }  # fmt: skip


@torch.no_grad()
def test_captions_are_those_of_the_peer(ideogram_folder, ideogram_pipeline):
    """The peer has the half for images as well, and fills texts up from the left."""
    assert LAYERS == QWEN3_VL_ACTIVATION_LAYERS
    model = load(ideogram_folder)
    expected, _, _, roles = ideogram_pipeline.encode_prompt(CAPTIONS, 2, 3, LENGTH, CPU)
    found = model.encode_captions(CAPTIONS)
    lengths = found["mask"].sum(dim=1)
    assert lengths.tolist() == (roles == 3).sum(dim=1).tolist() == [11, 41, 8]
    assert found["hidden"].shape == (3, 41, 13 * 16) and set(model.components.loaded) == {"text_encoder"}
    for hidden, other, length in zip(found["hidden"], expected, lengths, strict=True):
        torch.testing.assert_close(hidden[:length], other[LENGTH - length : LENGTH], **CLOSE)
        assert not hidden[length:].any()
    each_caption_is_as_it_is_alone(model, found, CAPTIONS)


def test_what_captions_may_have(ideogram_folder):
    model = load(ideogram_folder, text_encoder_sequence_length=20)
    assert model.text_limits() == {"text_encoder": 12}
    assert model.count_tokens("text_encoder", CAPTIONS) == [3, 33, 0]
    # what is longer loses its end
    assert model.encode_captions(CAPTIONS[1:2])["mask"].shape == (1, 20)
    assert model.text_fingerprint() != shared(ideogram_folder).text_fingerprint()
    with pytest.raises(UserError, match="reads at most 2048 tokens"):
        load(ideogram_folder, text_encoder_sequence_length=2049)


@torch.no_grad()
def test_latents_are_those_that_the_peer_decodes(ideogram_folder, ideogram_pipeline):
    model, vae = shared(ideogram_folder), ideogram_pipeline.vae
    found = model.encode_images(pixels())
    assert model.image_grid == 4 and found.shape == (2, 16, 4, 6) and found.dtype == torch.float32
    # as the pipeline decodes: places, pixels of a patch, channels
    spread = (vae.bn.running_var + vae.config.batch_norm_eps).sqrt()
    patches = (found.permute(0, 2, 3, 1) * spread + vae.bn.running_mean).view(2, 4, 6, 2, 2, 4)
    raw = vae.encode(pixels()).latent_dist.mode()
    torch.testing.assert_close(patches.permute(0, 5, 1, 3, 2, 4).reshape(2, 4, 8, 12), raw, **CLOSE)
    torch.testing.assert_close(model.decode_images(found), vae.decode(raw).sample, **CLOSE)


@torch.no_grad()
@pytest.mark.parametrize("shift", [False, True])
def test_prediction_against_the_peer(ideogram_folder, ideogram_pipeline, shift):
    model = load(ideogram_folder, timestep_distribution="LOGIT_NORMAL", dynamic_timestep_shifting=shift)
    clean = model.encode_images(pixels())
    prediction = model.predict(clean, model.encode_captions(CAPTIONS[:2]), torch.Generator().manual_seed(1))
    # first the noise levels are drawn, then the noise
    generator = torch.Generator().manual_seed(1)
    logits = torch.special.ndtri(torch.rand(2, generator=generator, dtype=torch.float64))
    noise = torch.randn(2, 16, 4, 6, generator=generator)
    mu = _resolution_aware_mu(16, 24, 0.0) if shift else 0.0
    torch.testing.assert_close(prediction.sigma.double(), torch.sigmoid(logits + mu), atol=1e-6, rtol=0)
    level, scheduler = prediction.sigma, FlowMatchEulerDiscreteScheduler()
    # the scheduler looks its noise levels up by timestep
    scheduler.sigmas, scheduler.timesteps = torch.cat([level, torch.zeros(1)]), 1000 * level
    noisy = scheduler.scale_noise(clean, 1000 * level, noise)
    texts, places, segments, roles = ideogram_pipeline.encode_prompt(CAPTIONS[:2], 4, 6, LENGTH, CPU)
    # as the pipeline's loop does
    output = ideogram_pipeline.transformer(
        hidden_states=torch.cat([torch.zeros(2, LENGTH, 16), noisy.flatten(2).transpose(1, 2)], dim=1),
        timestep=1 - 1000 * level / 1000, encoder_hidden_states=texts, position_ids=places, segment_ids=segments,
        indicator=roles, return_dict=False,
    )[0]  # fmt: skip
    velocity = -output[:, LENGTH:].transpose(1, 2).unflatten(2, (4, 6))
    torch.testing.assert_close(prediction.predicted, velocity, **CLOSE)
    torch.testing.assert_close(prediction.target, noise - clean, **CLOSE)
    target_leads_to_the_clean_latents(scheduler, prediction, noisy, clean)


def test_what_fills_captions_up_changes_nothing(ideogram_folder):
    what_fills_captions_up_changes_nothing(shared(ideogram_folder), pixels(1), CAPTIONS[:2])


@pytest.mark.parametrize(("steps", "height", "width"), [(1, 512, 512), (25, 1024, 768)])
def test_noise_levels_of_samples_are_the_peer_s(steps, height, width):
    expected = _logit_normal_sigmas(steps, _resolution_aware_mu(height, width, 0.0), std=1.5)
    found = noise_levels(steps, math.sqrt(height * width / 512**2))
    torch.testing.assert_close(torch.tensor(found), expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_samples_equal_the_plain_pipeline(ideogram_folder, ideogram_pipeline, scale):
    """Without guidance the second transformer is not even loaded."""
    model, steps = load(ideogram_folder), []
    sample = SampleConfig(**SAMPLE | {"width": 33}, diffusion_steps=3, cfg_scale=scale)
    found = model.sample(sample, 5, lambda k, n: steps.append((k, n)))
    expected = ideogram_pipeline(
        SAMPLE["prompt"], height=24, width=32, num_inference_steps=3, guidance_scale=scale, guidance_schedule=None,
        max_sequence_length=LENGTH, generator=torch.Generator().manual_seed(5),
    ).images[0]  # fmt: skip
    assert found.size == expected.size == (32, 24) and steps == [(1, 3), (2, 3), (3, 3)]
    same_picture(found, expected)
    assert (SECOND in model.components.loaded) == (scale > 1)


def test_the_second_transformer_waits_while_steps_are_taken(ideogram_folder):
    """Also where the VAE has another format, and without a cache."""
    sample = SampleConfig(**SAMPLE, diffusion_steps=1, cfg_scale=3.0)
    text_encoder_is_freed_before_the_transformer_comes(partial(load, ideogram_folder), sample, pixels())
    for cached in (True, False):
        model = load(ideogram_folder, temp_device="meta", latent_caching=cached)
        first = model.sample(sample, 1, lambda *_: None)
        # where tensors have no numbers
        model.rest()
        waiting = {name for name in ("transformer", SECOND, "vae")
                   if next(model.components.loaded[name].parameters()).is_meta}  # fmt: skip
        assert waiting == ({SECOND, "vae"} if cached else {SECOND}) and first.size == (32, 24)


def test_gradient_checkpointing_gives_the_same_gradients(ideogram_folder):
    latents = torch.ones(2, 16, 4, 4)
    checkpoints_give_the_same_gradients(partial(load, ideogram_folder), "llm_cond_proj", latents, width=13 * 16)


# --- files


def component(folder: Path, name: str, tensors: dict[str, Tensor], path: Path) -> nn.Module:
    save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, path)
    return load(folder, **{name: {"model_name": str(path)}}).components[name]


@pytest.mark.parametrize(("name", "start"), [("transformer", ""), (SECOND, "diffusion_model.")])
def test_a_transformer_in_a_native_file(ideogram_folder, ideogram_pipeline, tmp_path, name, start):
    """Each of the two; and with the scales of rows that the published FP8 files have."""
    expected = getattr(ideogram_pipeline, name).requires_grad_(False)
    tensors = native_tensors(expected, start)
    assert tensors[f"{start}layers.0.attention.qkv.weight"].shape == (3 * 32, 32)
    same(component(ideogram_folder, name, tensors, tmp_path / "ideogram4.safetensors"), expected)
    matrix = f"{start}layers.1.attention.qkv.weight"
    scale = tensors[matrix].abs().amax(dim=1) / 448
    tensors[matrix.replace("weight", "weight_scale")] = scale
    tensors[matrix] = (tensors[matrix] / scale[:, None]).to(torch.float8_e4m3fn)
    found = component(ideogram_folder, name, tensors, tmp_path / "ideogram4_fp8.safetensors").layers[1].attention
    for layer in ("to_q", "to_k", "to_v"):
        weight = getattr(expected.layers[1].attention, layer).weight
        error = (getattr(found, layer).weight - weight).abs()
        # three digits after the leading one, of each row
        assert error.max() > 0 and (error <= weight.abs().amax(dim=1, keepdim=True) / 16).all()


@pytest.mark.parametrize("start", ["model.", "text_encoders.qwen3vl_8b.transformer.model."])
def test_a_text_encoder_in_a_file(ideogram_folder, ideogram_pipeline, tmp_path, start):
    encoder = ideogram_pipeline.text_encoder
    tensors = {
        f"{start}{name.removeprefix('language_model.')}": tensor for name, tensor in encoder.state_dict().items()
    }
    found = component(ideogram_folder, "text_encoder", tensors, tmp_path / "qwen3vl_8b.safetensors")
    same(found, encoder.language_model.requires_grad_(False))


def test_what_is_refused(own_ideogram_folder, ideogram_pipeline, tmp_path):
    path = tmp_path / "flux2-vae.safetensors"
    with pytest.raises(UserError, match="statistics of Flux.2's latents"):
        component(own_ideogram_folder, "vae", ideogram_pipeline.vae.state_dict(), path)
    with pytest.raises(UserError, match="A file of Ideogram 4 holds one component"):
        load(path)
    with pytest.raises(UserError, match=f"{SECOND}.model_name: .*is a model of KREA_2, but model_type is IDEOGRAM_4"):
        component(
            own_ideogram_folder, SECOND, {"txtfusion.projector.weight": torch.ones(1)}, tmp_path / "x.safetensors"
        )
    blocks = native_tensors(ideogram_pipeline.transformer)
    blocks["layers.0.attention.o.weight_scale"] = torch.ones(2, 2)
    with pytest.raises(UserError, match="attention.o.weight is quantized in blocks"):
        component(own_ideogram_folder, "transformer", blocks, tmp_path / "y.safetensors")
    own = own_ideogram_folder / "text_encoder" / "config.json"
    options = json.loads(own.read_text())
    for changed, words in (({"num_hidden_layers": 35}, "has 35 layers"), ({"hidden_size": 32}, "13 layers of 32")):
        own.write_text(json.dumps(options | {"text_config": options["text_config"] | changed}))
        with pytest.raises(UserError, match=words):
            load(own_ideogram_folder).check_layers()
