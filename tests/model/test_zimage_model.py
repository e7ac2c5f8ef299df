"""The Z-Image family against diffusers: captions, latents, predictions, samples; components from files."""

import json
import shutil
from functools import cache, partial
from pathlib import Path

from modules.model.BaseModel import family_of
from modules.model.StandardSource import StandardSource
from modules.model.ZImageModel import ZImageModel
from modules.util.config.SampleConfig import SampleConfig
from modules.util.config.TrainConfig import TrainConfig
from modules.util.enum.ModelType import ModelType
from modules.util.UserError import UserError
from tests.model.conftest import VAE_NAMES as CONFTEST_VAE_NAMES
from tests.model.conftest import ldm_vae
from tests.model.family_checks import (
    checkpoints_give_the_same_gradients,
    each_caption_is_as_it_is_alone,
    same_picture,
    target_leads_to_the_clean_latents,
    text_encoder_is_freed_before_the_transformer_comes,
)
from tests.model.test_flux2_files import same
from tests.model.zimage_base import comfy_tensors

import torch

import pytest
from diffusers import FlowMatchEulerDiscreteScheduler, ZImageTransformer2DModel
from diffusers.pipelines.z_image.pipeline_z_image import calculate_shift
from safetensors.torch import save_file

CPU = torch.device("cpu")
# of different lengths, one of them longer than a multiple of 32
CAPTIONS = ["a red cat", "a blue dog " * 11, ""]
# float32 through a dozen layers
CLOSE = {"atol": 1e-5, "rtol": 1e-5}


def load(folder: Path, **options) -> ZImageModel:
    config = TrainConfig.from_dict({"base_model_name": str(folder), "model_type": "Z_IMAGE", **options})
    return ZImageModel.load(config, CPU)


@cache
def shared(folder: Path) -> ZImageModel:
    """For tests that leave the model as it is."""
    return load(folder)


@pytest.fixture
def own_folder(zimage_folder, tmp_path) -> Path:
    """A copy of a base model that a test may break."""
    return Path(shutil.copytree(zimage_folder, tmp_path / "base model"))


def pixels(count: int = 2, height: int = 16, width: int = 24) -> torch.Tensor:
    return torch.rand(count, 3, height, width, generator=torch.Generator().manual_seed(3)) * 2 - 1


def test_the_family_serves_its_type():
    assert family_of(TrainConfig.from_dict({"model_type": "Z_IMAGE"})) is ZImageModel


@pytest.mark.parametrize("length", [None, 20])
def test_captions_are_those_of_the_peer(zimage_folder, zimage_pipeline, length):
    model = load(zimage_folder, text_encoder_sequence_length=length)
    expected, _ = zimage_pipeline.encode_prompt(list(CAPTIONS), max_sequence_length=length or 512)
    found = model.encode_captions(CAPTIONS)
    # marks of who speaks are before and after each caption; what is too long loses its end
    assert found["mask"].sum(dim=1).tolist() == [5, length or 35, 2] == [len(text) for text in expected]
    for hidden, mask, text in zip(found["hidden"], found["mask"], expected, strict=True):
        torch.testing.assert_close(hidden[mask], text, **CLOSE)
        assert not hidden[~mask].any()
    # another layer's would be other numbers
    last = zimage_pipeline.text_encoder(
        **zimage_pipeline.tokenizer("[user] a red cat [assistant]", return_tensors="pt")
    )
    assert (last.last_hidden_state[0] - expected[0]).abs().max() > 0.1


def test_a_batch_of_captions_is_each_of_them_alone(zimage_folder):
    """Also where a tokenizer fills up from the left."""
    model, together = load(zimage_folder), shared(zimage_folder).encode_captions(CAPTIONS)
    model.tokenizer.padding_side = "left"
    each_caption_is_as_it_is_alone(model, together, CAPTIONS)


def test_what_captions_may_have(zimage_folder):
    model = load(zimage_folder, text_encoder_sequence_length=20)
    assert model.text_limits() == {"text_encoder": 18}
    assert model.count_tokens("text_encoder", CAPTIONS) == [3, 33, 0]
    assert model.read_more("text_encoder", 33) == "text_encoder_sequence_length to 35"


def test_latents_are_those_that_the_peer_decodes(zimage_folder, zimage_pipeline):
    model, vae = shared(zimage_folder), zimage_pipeline.vae
    assert model.image_grid == 4
    found = model.encode_images(pixels())
    assert found.shape == (2, 4, 8, 12) and found.dtype == torch.float32
    with torch.no_grad():
        raw = vae.encode(pixels()).latent_dist.mode()
        torch.testing.assert_close(found / vae.config.scaling_factor + vae.config.shift_factor, raw, **CLOSE)
        torch.testing.assert_close(model.decode_images(found), vae.decode(raw).sample, **CLOSE)


@pytest.mark.parametrize("dynamic", [False, True])
def test_prediction_against_the_peer(zimage_folder, zimage_pipeline, dynamic):
    model = load(zimage_folder, timestep_distribution="LOGIT_NORMAL", dynamic_timestep_shifting=dynamic)
    clean = model.encode_images(pixels())
    with torch.no_grad():
        prediction = model.predict(clean, model.encode_captions(CAPTIONS[:2]), torch.Generator().manual_seed(1))
    # first the noise levels are drawn, then the noise
    generator = torch.Generator().manual_seed(1)
    sigmas = torch.sigmoid(torch.special.ndtri(torch.rand(2, generator=generator, dtype=torch.float64)))
    noise = torch.randn(2, 4, 8, 12, generator=generator)
    scheduler = FlowMatchEulerDiscreteScheduler.from_config(zimage_pipeline.scheduler.config)
    if dynamic:
        # of 4 × 6 patches
        sigmas = torch.from_numpy(scheduler.time_shift(calculate_shift(24), 1.0, sigmas.numpy()))
    torch.testing.assert_close(prediction.sigma.double(), sigmas, atol=1e-6, rtol=0)
    level = prediction.sigma
    # the scheduler looks its noise levels up by timestep
    scheduler.sigmas, scheduler.timesteps = torch.cat([level, torch.zeros(1)]), 1000 * level
    noisy = scheduler.scale_noise(clean, 1000 * level, noise)
    texts, _ = zimage_pipeline.encode_prompt(list(CAPTIONS[:2]))
    with torch.no_grad():
        # as the pipeline's loop does
        output = zimage_pipeline.transformer(
            list(noisy.unsqueeze(2).unbind(dim=0)), (1000 - 1000 * level) / 1000, texts, return_dict=False
        )[0]
    velocity = -torch.stack(output).squeeze(2)
    torch.testing.assert_close(prediction.predicted, velocity, **CLOSE)
    torch.testing.assert_close(prediction.target, noise - clean, **CLOSE)
    target_leads_to_the_clean_latents(scheduler, prediction, noisy, clean)


@pytest.mark.parametrize(("scale", "peer_scale"), [(0.0, 0.0), (1.0, 0.0), (4.0, 3.0)])
def test_samples_equal_the_plain_pipeline(zimage_folder, zimage_pipeline, scale, peer_scale):
    """`cfg_scale` 1 is no guidance, which the pipeline calls 0."""
    model, steps = shared(zimage_folder), []
    sample = SampleConfig(
        prompt="a red cat", negative_prompt="a blue dog number 1", width=25, height=16, diffusion_steps=3,
        cfg_scale=scale, seed=5,
    )  # fmt: skip
    found = model.sample(sample, 5, lambda k, n: steps.append((k, n)))
    expected = zimage_pipeline(
        prompt="a red cat", negative_prompt="a blue dog number 1", height=16, width=24, num_inference_steps=3,
        guidance_scale=peer_scale, generator=torch.Generator().manual_seed(5),
    ).images[0]  # fmt: skip
    assert found.size == expected.size == (24, 16) and steps == [(1, 3), (2, 3), (3, 3)]
    same_picture(found, expected)


def test_text_encoder_is_freed_before_the_transformer_comes(zimage_folder):
    sample = SampleConfig(prompt="a red cat", width=16, height=16, diffusion_steps=1)
    text_encoder_is_freed_before_the_transformer_comes(partial(load, zimage_folder), sample, pixels())


def test_fingerprints_follow_what_they_stand_for(own_folder):
    model = load(own_folder)
    before = model.text_fingerprint(), model.image_fingerprint()
    assert load(own_folder, text_encoder_sequence_length=20).text_fingerprint() != before[0]
    config = own_folder / "vae" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"shift_factor": 0.5}))
    assert load(own_folder).image_fingerprint() != before[1] and load(own_folder).text_fingerprint() == before[0]


def test_gradient_checkpointing_gives_the_same_gradients(zimage_folder):
    checkpoints_give_the_same_gradients(partial(load, zimage_folder), "cap_embedder.1", torch.ones(2, 4, 4, 4))


# --- components from files


# written by hand from the layout of the original code, for two levels of one layer
VAE_NAMES = {name: path for name, path in CONFTEST_VAE_NAMES.items() if "quant_conv" not in name}


def component(folder: Path, name: str, tensors: dict[str, torch.Tensor], path: Path) -> torch.nn.Module:
    save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, path)
    return load(folder, **{name: {"model_name": str(path)}}).components[name]


@pytest.mark.parametrize("layout", ["comfy", "comfy whole", "original"])
def test_a_transformer_in_a_file(zimage_folder, zimage_pipeline, tmp_path, layout):
    transformer = zimage_pipeline.transformer
    tensors = transformer.state_dict() if layout == "original" else comfy_tensors(transformer)
    # which no layer reads
    tensors["norm_final.weight"] = torch.ones(32)
    start = "model.diffusion_model." if layout == "comfy whole" else ""
    tensors = {start + name: tensor for name, tensor in tensors.items()}
    same(component(zimage_folder, "transformer", tensors, tmp_path / "z_image_turbo_bf16.safetensors"), transformer)


def test_the_layout_is_the_one_that_diffusers_reads(zimage_folder, zimage_pipeline):
    read = ZImageTransformer2DModel.from_single_file(
        comfy_tensors(zimage_pipeline.transformer), config=str(zimage_folder), subfolder="transformer",
        local_files_only=True,
    )  # fmt: skip
    same(read.eval().requires_grad_(False), zimage_pipeline.transformer.requires_grad_(False))


@pytest.mark.parametrize("start", ["model.", "", "text_encoders.qwen3_4b.transformer.model."])
def test_a_text_encoder_in_a_file(zimage_folder, zimage_pipeline, tmp_path, start):
    encoder = zimage_pipeline.text_encoder
    tensors = {start + name: tensor for name, tensor in encoder.state_dict().items()}
    if start == "model.":
        # of files that have the whole language model
        tensors["lm_head.weight"] = torch.ones(2, 2)
    save_file(tensors, tmp_path / "qwen_3_4b.safetensors")
    model = load(zimage_folder, text_encoder={"model_name": str(tmp_path / "qwen_3_4b.safetensors")})
    same(model.components["text_encoder"], encoder.requires_grad_(False))
    # what it computes of its config is there, too
    found, expected = (own.encode_captions(CAPTIONS)["hidden"] for own in (model, shared(zimage_folder)))
    assert torch.equal(found, expected)


def test_the_published_folder_has_the_whole_language_model(own_folder, zimage_pipeline):
    """Its index names the model without head, and its files are those of the one with it."""
    place, encoder = own_folder / "text_encoder", zimage_pipeline.text_encoder.requires_grad_(False)
    save_file({f"model.{name}": tensor for name, tensor in encoder.state_dict().items()}, place / "model.safetensors")
    config = json.loads((place / "config.json").read_text())
    (place / "config.json").write_text(json.dumps(config | {"architectures": ["Qwen3ForCausalLM"]}))
    same(load(own_folder).components["text_encoder"], encoder)


def test_all_components_are_described_as_they_were_published():
    source = StandardSource(ModelType.Z_IMAGE)
    counts = {name: sum(p.numel() for p in source.empty(name).parameters()) for name in source.classes}
    assert counts == {"transformer": 6_154_908_736, "text_encoder": 4_022_468_096, "vae": 83_819_683}
    tokens = source.tokenizer("tokenizer").apply_chat_template([[], []], max_length=512)
    assert tokens.input_ids.shape == tokens.attention_mask.shape == (2, 512) and tokens.attention_mask.all()


@pytest.mark.parametrize("start", ["", "vae."])
def test_an_autoencoder_in_a_file(zimage_folder, zimage_pipeline, tmp_path, start):
    vae = zimage_pipeline.vae.requires_grad_(False)
    same(component(zimage_folder, "vae", ldm_vae(vae, VAE_NAMES, start), tmp_path / "ae.safetensors"), vae)


def test_a_folder_without_weights_is_enough_for_a_whole_checkpoint(own_folder, zimage_pipeline, tmp_path):
    """ComfyUI's, with all three components in one file."""
    for weights in own_folder.rglob("*.safetensors"):
        weights.unlink()
    encoder, path = zimage_pipeline.text_encoder.state_dict(), tmp_path / "z_image_aio.safetensors"
    tensors = {f"model.diffusion_model.{name}": t for name, t in comfy_tensors(zimage_pipeline.transformer).items()}
    tensors |= {f"text_encoders.qwen3_4b.transformer.model.{name}": tensor for name, tensor in encoder.items()}
    tensors |= ldm_vae(zimage_pipeline.vae, VAE_NAMES, "vae.")
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)
    model = load(own_folder, **{name: {"model_name": str(path)} for name in ZImageModel.modules})
    for name in ZImageModel.modules:
        same(model.components[name], getattr(zimage_pipeline, name).requires_grad_(False))


def test_float_8_is_widened_and_other_formats_are_named(zimage_folder, zimage_pipeline, tmp_path):
    weight = "layers.0.feed_forward.w1.weight"
    tensors = comfy_tensors(zimage_pipeline.transformer)
    scale = tensors[weight].abs().max() / 448
    small = {weight: (tensors[weight] / scale).to(torch.float8_e4m3fn), weight.replace("weight", "weight_scale"): scale}
    found = component(zimage_folder, "transformer", tensors | small, tmp_path / "fp8.safetensors").state_dict()[weight]
    # three digits after the leading one: half a step is 1/16
    assert 0 < (found - tensors[weight]).abs().max() <= tensors[weight].abs().max() / 16
    tensors[weight] = tensors[weight].to(torch.int8)
    with pytest.raises(UserError, match=r"w1\.weight is quantized .*Expected the BF16 or FP8 file"):
        component(zimage_folder, "transformer", tensors, tmp_path / "int8.safetensors")


def test_a_transformer_of_another_size_is_named(zimage_folder, zimage_pipeline, tmp_path):
    tensors = comfy_tensors(zimage_pipeline.transformer)
    tensors["layers.7.attention.out.weight"] = torch.ones(2, 2)
    with pytest.raises(UserError, match=r"1 of its tensors have no place in this ZImageTransformer2DModel"):
        component(zimage_folder, "transformer", tensors, tmp_path / "x.safetensors")
    del tensors["layers.7.attention.out.weight"], tensors["noise_refiner.0.attention.qkv.weight"]
    with pytest.raises(UserError, match=r"lacks 1 of the .*noise_refiner\.0\.attention\.qkv\.weight"):
        component(zimage_folder, "transformer", tensors, tmp_path / "y.safetensors")


def test_a_file_as_base_model_is_explained(tmp_path):
    path = tmp_path / "z_image_turbo_bf16.safetensors"
    path.write_bytes(b"")
    with pytest.raises(UserError, match=r"holds one component.*transformer\.model_name"):
        load(path)
