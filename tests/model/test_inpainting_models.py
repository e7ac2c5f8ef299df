"""Stable Diffusion 1.5, 2.0 and SDXL for inpainting: predictions, samples, files and refusals, against diffusers."""

from functools import cache
from pathlib import Path

from modules.model.BaseModel import BaseModel, family_of
from modules.modelSaver.adapter_metadata import AdapterDescription
from modules.modelSaver.save_adapter import save_adapter
from modules.module.AdapterSet import AdapterSet
from modules.trainer.checks import run_problems
from modules.util.config.load import train_config_from_dict
from modules.util.config.SampleConfig import SampleConfig
from modules.util.config.TrainConfig import TrainConfig
from modules.util.enum.ModelFormat import ModelFormat
from modules.util.enum.ModelType import ModelType
from modules.util.UserError import UserError
from tests.adapters import disturb
from tests.model.conditioned_families import draw_pairs
from tests.model.family_checks import CLOSE, KINDS, SCALED, quantized_base_trains, same_picture
from tests.model.key_checks import ADAPTER_KINDS, diffusers_computes_the_same

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import numpy as np
import pytest
from diffusers import (
    DDPMScheduler,
    DiffusionPipeline,
    StableDiffusionInpaintPipeline,
    StableDiffusionXLInpaintPipeline,
)
from PIL import Image
from safetensors.torch import save_file

CPU = torch.device("cpu")
FAMILIES = {
    "SD 1.5 inpainting": (ModelType.STABLE_DIFFUSION_15_INPAINTING, StableDiffusionInpaintPipeline),
    "SD 2.0 inpainting": (ModelType.STABLE_DIFFUSION_20_INPAINTING, StableDiffusionInpaintPipeline),
    "SDXL inpainting": (ModelType.STABLE_DIFFUSION_XL_10_BASE_INPAINTING, StableDiffusionXLInpaintPipeline),
}
XL = "SDXL inpainting"
SIZES = torch.tensor([[16.0, 24, 0, 0, 16, 24]]).expand(2, -1)
every_family = pytest.mark.parametrize("family", FAMILIES)


@cache
def load(folder: Path, kind: ModelType) -> BaseModel:
    config = TrainConfig(base_model_name=str(folder), model_type=kind)
    return family_of(config).load(config, CPU)


@cache
def peer_of(folder: Path, kind: type[DiffusionPipeline]) -> DiffusionPipeline:
    pipeline = kind.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def picture_and_mask() -> tuple[torch.Tensor, torch.Tensor]:
    """`[2, 3, 16, 24]` in [-1, 1], and masks with the edges of latents, as the pipeline takes one pixel of each."""
    generator = torch.Generator().manual_seed(4)
    mask = (torch.rand(2, 1, 8, 12, generator=generator) > 0.5).float()
    return torch.rand(2, 3, 16, 24, generator=generator) * 2 - 1, F.interpolate(mask, scale_factor=2)


@torch.no_grad()
@every_family
def test_prediction_and_target_are_those_of_the_pipeline(folder_of, family):
    kind, pipeline = FAMILIES[family]
    model, peer = load(folder_of(family), kind), peer_of(folder_of(family), pipeline)
    (pixels, mask), captions = picture_and_mask(), ["red cat", "cat"]
    shown = pixels * (1 - mask)
    conditions = {**model.encode_captions(captions), **model.encode_conditioning(shown, mask), "placement": SIZES}
    prediction = model.predict(model.encode_images(pixels), conditions, torch.Generator().manual_seed(1))

    generator = torch.Generator().manual_seed(1)
    timesteps = (torch.rand(2, generator=generator, dtype=torch.float64) * 1000).long()
    noise = torch.randn(2, 4, 8, 12, generator=generator)
    clean = peer.vae.encode(pixels).latent_dist.mean * peer.vae.config.scaling_factor
    noisy = DDPMScheduler.from_config(peer.scheduler.config).add_noise(clean, noise, timesteps)
    covered = peer.prepare_mask_latents(mask, shown, 2, 16, 24, torch.float32, CPU, generator, False)
    if family == XL:
        hidden, _, pooled, _ = peer.encode_prompt(captions, do_classifier_free_guidance=False, device=CPU)
        added = {"text_embeds": pooled, "time_ids": SIZES}
    else:
        hidden, added = peer.encode_prompt(captions, CPU, 1, False)[0], None
    expected = peer.unet(torch.cat([noisy, *covered], 1), timesteps, hidden, added_cond_kwargs=added).sample
    torch.testing.assert_close(prediction.predicted, expected, **CLOSE)
    torch.testing.assert_close(prediction.target, noise, **CLOSE)
    other = model.predict(model.encode_images(pixels), {**conditions, **model.encode_conditioning(pixels, mask)},
                          torch.Generator().manual_seed(1))  # fmt: skip
    assert (other.predicted - prediction.predicted).abs().max() > 1e-3


@every_family
def test_samples_are_those_of_the_pipeline(folder_of, tmp_path, family):
    kind, pipeline = FAMILIES[family]
    model, peer = load(folder_of(family), kind), peer_of(folder_of(family), pipeline)
    pixels, mask = picture_and_mask()
    image = Image.fromarray(((pixels[0] / 2 + 0.5) * 255).round().byte().movedim(0, -1).numpy())
    covers = Image.fromarray((mask[0, 0] * 255).byte().numpy())
    image.save(tmp_path / "image.png"), covers.save(tmp_path / "mask.png")
    sample = SampleConfig(
        prompt="red cat", negative_prompt="dog", width=24, height=16, diffusion_steps=3, cfg_scale=3.0,
        sample_inpainting=True, base_image_path=str(tmp_path / "image.png"), mask_image_path=str(tmp_path / "mask.png"),
    )  # fmt: skip
    found = model.sample(sample, 5, lambda *_: None)
    kept, peer.scheduler = peer.scheduler, model.pipeline().scheduler
    drawn = {"num_inference_steps": 3, "guidance_scale": 3.0, "strength": 1.0, "height": 16, "width": 24}
    expected = peer(
        "red cat", negative_prompt="dog", image=image, mask_image=covers, generator=torch.Generator().manual_seed(5),
        **drawn,
    ).images[0]  # fmt: skip
    peer.scheduler = kept
    same_picture(found, expected)
    whole = model.sample(sample.model_copy(update={"sample_inpainting": False}), 5, lambda *_: None)
    assert np.abs(np.asarray(whole, int) - np.asarray(found, int)).max() > 1


def settings(folder: Path, place: Path) -> dict:
    """A run of SDXL on 8 pictures of one colour each."""
    quiet = {"text_encoder": {"train": False}, "text_encoder_2": {"train": False}}
    return {
        "base_model_name": str(folder), "model_type": str(FAMILIES[XL][0]), "resolution": "32", "batch_size": 4,
        "concepts": [{"path": str(draw_pairs(place / "pairs", FAMILIES[XL][0]))}], "optimizer": SCALED,
        "unet": {"gradient_checkpointing": False}, "force_v_prediction": True, "learning_rate": 0.03, **quiet,
    }  # fmt: skip


# every way of training, in the larger of the two
@pytest.mark.parametrize("method", KINDS)
def test_it_learns(make_run, xl_inpainting_folder, tmp_path, method):
    full = {"output_model_format": "SAFETENSORS"} if method == "full" else {}
    run = make_run(own_cache=True)
    trainer = run.trainer(**{**settings(xl_inpainting_folder, tmp_path), **KINDS[method], **full, "epochs": 16})
    trainer.run()
    losses = torch.tensor(list(trainer.progress.losses))
    # means of 32 images each
    assert len(losses) == 32 and losses[-8:].mean() < 0.9 * losses[:8].mean()
    assert run.output.is_file()


def test_quantized_base(make_run, wide_xl_inpainting_folder, tmp_path):
    options = settings(wide_xl_inpainting_folder, tmp_path)
    folder = Path(options["concepts"][0]["path"])
    sample = {
        "prompt": "a red cat", "width": 32, "height": 32, "diffusion_steps": 1, "sample_inpainting": True,
        "base_image_path": str(folder / "0.png"), "mask_image_path": str(folder / "0-masklabel.png"),
    }  # fmt: skip
    layers = ("mid_block.attentions.0.transformer_blocks.1.attn2.to_k", "down_blocks.1.resnets.0.time_emb_proj")
    run = make_run(own_cache=True)
    quantized_base_trains(run, {**options, "samples": [sample]}, "FLOAT_8", layers, checkpoints=True)


def output_of(unet: nn.Module) -> Tensor:
    """For inputs that are always the same."""
    generator, config = torch.Generator().manual_seed(2), unet.config
    added = {"text_embeds": torch.ones(2, 20), "time_ids": SIZES} if config.addition_embed_type else None
    text = torch.randn(2, 5, config.cross_attention_dim, generator=generator)
    noised = torch.randn(2, 9, 8, 8, generator=generator)
    return unet(noised, torch.tensor([300, 900]), text, added_cond_kwargs=added).sample


@pytest.mark.parametrize(("family", "method"), [("SD 2.0 inpainting", "LoRA"), (XL, "DoRA on outputs")])
def test_diffusers_loads_the_file(folder_of, tmp_path, family, method):
    """With the layer that reads the mask."""
    kind, pipeline = FAMILIES[family]
    unet, path = load(folder_of(family), kind).unet, tmp_path / "adapter.safetensors"
    adapters = disturb(AdapterSet("unet", unet, TrainConfig.from_dict(ADAPTER_KINDS[method])), 1)
    naming = load(folder_of(family), kind).adapter_naming()
    save_adapter(path, {"unet": adapters}, ModelFormat.DIFFUSERS_LORA, naming, AdapterDescription())
    diffusers_computes_the_same(output_of, unet, adapters, folder_of(family), path, pipeline.from_pretrained)


def test_another_unet_is_told(folder_of):
    pairs = (("SD 1.5 inpainting", "STABLE_DIFFUSION_15"), ("SDXL", "STABLE_DIFFUSION_XL_10_BASE_INPAINTING"))
    for family, kind in pairs:
        with pytest.raises(UserError, match=r"the UNet of .* reads \d channels, expected \d.*_INPAINTING"):
            load(folder_of(family), ModelType(kind)).check_layers()
    for family, (kind, _) in FAMILIES.items():
        load(folder_of(family), kind).check_layers()


@pytest.mark.parametrize("channels", [4, 9])
def test_a_file_of_the_other_kind_is_told(small_tensors, small_folder, inpainting_folder, tmp_path, channels):
    path, first = tmp_path / "model.safetensors", "model.diffusion_model.input_blocks.0.0.weight"
    tensors = {**small_tensors, first: torch.zeros(32, channels, 3, 3)}
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)
    # describes the small sizes, with a UNet as the type has it
    (tmp_path / "model").symlink_to(small_folder if channels == 9 else inpainting_folder)
    kind = "STABLE_DIFFUSION_15" if channels == 9 else "STABLE_DIFFUSION_15_INPAINTING"
    config = TrainConfig(base_model_name=str(path), model_type=kind)
    with pytest.raises(UserError, match=f"It is {'an' if channels == 9 else 'no'} inpainting model: set model_type"):
        family_of(config).load(config, CPU)


# as OneTrainer's presets have them (August 2026)
ONETRAINER = {
    "#sd 1.5 inpaint masked": {
        "base_model_name": "stable-diffusion-v1-5/stable-diffusion-inpainting", "batch_size": 4,
        "masked_training": True, "model_type": "STABLE_DIFFUSION_15_INPAINTING", "normalize_masked_area_loss": True,
        "output_model_format": "ORIGINAL_SINGLE_FILE", "resolution": "512", "training_method": "FINE_TUNE",
        "vae": {"weight_dtype": "FLOAT_32"},
    },
    "#sd 2.0 inpaint LoRA": {
        "backup_after": 10, "base_model_name": "stabilityai/stable-diffusion-2-inpainting", "batch_size": 4,
        "learning_rate": 0.0003, "model_type": "STABLE_DIFFUSION_20_INPAINTING", "output_model_format": "SAFETENSORS",
        "resolution": "512", "train_text_encoder_epochs": 30, "train_unet_epochs": 100000, "training_method": "LORA",
        "vae_weight_dtype": "FLOAT_16", "weight_dtype": "FLOAT_16",
    },
    "#sdxl 1.0 inpaint LoRA": {
        "backup_after": 10, "base_model_name": "diffusers/stable-diffusion-xl-1.0-inpainting-0.1", "batch_size": 4,
        "learning_rate": 0.0003, "model_type": "STABLE_DIFFUSION_XL_10_BASE_INPAINTING", "resolution": "1024",
        "output_model_format": "KOHYA_LORA", "text_encoder": {"train": False, "weight_dtype": "FLOAT_16"},
        "text_encoder_2": {"train": False, "weight_dtype": "FLOAT_16"}, "unet": {"weight_dtype": "FLOAT_16"},
        "training_method": "LORA", "vae": {"weight_dtype": "FLOAT_32"}, "layer_filter_preset": "attn-mlp",
    },
}  # fmt: skip


@pytest.mark.parametrize("name", ONETRAINER)
def test_onetrainer_s_presets(make_run, name):
    run = make_run()
    places = {"workspace_dir": str(run.workspace), "output_model_destination": str(run.output), "concepts": [
        {"path": str(run.concept)}], "train_device": "cpu", "temp_device": "cpu"}  # fmt: skip
    config = train_config_from_dict({**ONETRAINER[name], **places}, warn=lambda text: None)
    assert [str(problem) for problem in run_problems(config, lambda text: None)] == []
