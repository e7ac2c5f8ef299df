"""Two families that take conditioning images: inpainting joins channels, one of these tests alone appends tokens."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from modules.model.BaseModel import model_families
from modules.model.StableDiffusionInpaintingModel import StableDiffusionInpaintingModel
from modules.util.enum.ConditioningSource import ConditioningSource
from modules.util.enum.ModelType import ModelType
from tests.model.test_flow_model import SMALL, PlainFlowModel

import torch
import torch.nn.functional as F
from torch import Tensor

from diffusers import (
    AutoencoderKL,
    DiffusionPipeline,
    FlowMatchEulerDiscreteScheduler,
    FluxKontextPipeline,
    FluxTransformer2DModel,
    UNet2DConditionModel,
)
from PIL import Image, ImageOps

ROOT = Path(__file__).resolve().parents[2]
COLOURS = ["red", "lime", "blue", "yellow", "magenta", "cyan", "white", "black"]
NO_CHECKPOINTING = {"gradient_checkpointing": False}
INPAINTING, EDITING = ModelType.STABLE_DIFFUSION_15_INPAINTING, ModelType.FLUX_DEV_1
ChannelsModel = StableDiffusionInpaintingModel


class TokensModel(PlainFlowModel):
    """A transformer that reads the image it edits, at half the size, as further tokens of a second frame."""

    conditioning = ConditioningSource.FILE

    def half_latents(self, pixels: Tensor) -> Tensor:
        small = F.avg_pool2d(pixels, 2).to(self.device, self.vae.dtype)
        return self.vae.encode(small).latent_dist.mode().float()

    @torch.no_grad()
    def encode_conditioning(self, pixels: Tensor, mask: Tensor | None) -> dict[str, Tensor]:
        return {"shown": self.pack_latents(self.half_latents(pixels))}

    def conditioning_fingerprint(self) -> str:
        return f"{self.image_fingerprint()} half"

    def call_transformer(self, noised: Tensor, level: Tensor, conditions: Mapping[str, Tensor]) -> Tensor:
        frames = noised, conditions["shown"].to(noised.dtype)
        places = [
            torch.cartesian_prod(torch.tensor([time]), torch.arange(frame.shape[2]), torch.arange(frame.shape[3]))
            for time, frame in enumerate(frames)
        ]
        tokens = torch.cat([frame.flatten(2).transpose(1, 2) for frame in frames], 1)
        hidden, pooled = (conditions[name].to(noised.dtype) for name in ("hidden", "pooled"))
        output = self.transformer(
            tokens, hidden, pooled, timestep=level, img_ids=torch.cat(places).to(noised),
            txt_ids=torch.zeros(hidden.shape[1], 3).to(noised), return_dict=False,
        )[0]  # fmt: skip
        h, w = noised.shape[2:]
        return self.image_of_tokens(output[:, : h * w], h, w)

    def pipeline_conditioning(self, pixels: Tensor, mask: Tensor | None) -> dict[str, Any]:
        latents = self.half_latents(pixels) * self.vae.config.scaling_factor
        return {"image": latents, "max_area": pixels.shape[2] * pixels.shape[3], "_auto_resize": False}

    def make_pipeline(self, scheduler: FlowMatchEulerDiscreteScheduler) -> DiffusionPipeline:
        return FluxKontextPipeline(scheduler, self.vae, None, None, None, None, self.transformer)


@torch.no_grad()
def save_vae(place: Path) -> None:
    """The tiny base's trained VAE with 4 of its 8 channels, as many as the pipelines of such models expect."""
    trained = AutoencoderKL.from_pretrained(ROOT / "models" / "tiny_sd" / "vae")
    vae = AutoencoderKL.from_config({**trained.config, "latent_channels": 4, "scaling_factor": 0.5})
    weights = trained.state_dict()
    # means stand before variances
    rows = [0, 1, 2, 3, 8, 9, 10, 11]
    last, mixed = weights["encoder.conv_out.weight"], weights["quant_conv.weight"][rows, :, 0, 0]
    weights["quant_conv.bias"] = mixed @ weights["encoder.conv_out.bias"] + weights["quant_conv.bias"][rows]
    weights["encoder.conv_out.weight"] = torch.einsum("om,mihw->oihw", mixed, last)
    weights["encoder.conv_out.bias"] = torch.zeros(8)
    weights["quant_conv.weight"] = torch.eye(8)[:, :, None, None]
    weights["decoder.conv_in.weight"] = weights["decoder.conv_in.weight"][:, :4]
    weights["post_quant_conv.weight"] = weights["post_quant_conv.weight"][:4, :4]
    weights["post_quant_conv.bias"] = weights["post_quant_conv.bias"][:4]
    vae.load_state_dict(weights)
    vae.save_pretrained(place / "vae")


def save_channels(mini_base: Path, place: Path) -> Path:
    """The miniature with a UNet of 9 channels and a VAE that tells pictures apart."""
    shutil.copytree(mini_base, place)
    save_vae(place)
    settings = json.loads((place / "unet" / "config.json").read_text(encoding="utf-8"))
    torch.manual_seed(0)
    UNet2DConditionModel.from_config({**settings, "in_channels": 9}).save_pretrained(place / "unet")
    return place


def save_tokens(mini_base: Path, place: Path) -> Path:
    """A small transformer of Flux's blocks with the miniature's text encoder, and the same VAE."""
    for part in ("text_encoder", "tokenizer"):
        shutil.copytree(mini_base / part, place / part)
    save_vae(place)
    torch.manual_seed(0)
    FluxTransformer2DModel(**SMALL).save_pretrained(place / "transformer")
    FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True).save_pretrained(place / "scheduler")
    kinds = {**TokensModel.modules, **TokensModel.tokenizers, "scheduler": FlowMatchEulerDiscreteScheduler}
    index = {name: [kind.__module__.split(".")[0], kind.__name__] for name, kind in kinds.items()}
    (place / "model_index.json").write_text(json.dumps(index), encoding="utf-8")
    return place


def know_families(monkeypatch) -> None:
    """The second is known as long as a test runs."""
    monkeypatch.setitem(model_families(), EDITING, TokensModel)


def draw_pairs(folder: Path, kind) -> Path:
    """Pictures of one colour each under one caption: only the conditioning tells which."""
    folder.mkdir()
    for number, colour in enumerate(COLOURS):
        picture = Image.new("RGB", (32, 32), colour)
        picture.save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text("a colour", encoding="utf-8")
        if kind == EDITING:
            ImageOps.invert(picture).save(folder / f"{number}-condlabel.png")
        else:
            mask = Image.new("L", (32, 32), 0)
            mask.paste(255, (0, 0, 16, 32))
            mask.save(folder / f"{number}-masklabel.png")
    return folder


def run_options(kind: ModelType, mini_base: Path, folder: Path) -> dict[str, Any]:
    """A run of the family; 8 images in 2 batches an epoch."""
    images = draw_pairs(folder / "pairs", kind)
    common = {
        "model_type": str(kind), "batch_size": 4, "epochs": 2, "lora_rank": 16, "lora_alpha": 16.0,
        "learning_rate": 0.03, "optimizer": {"optimizer": "ADAMW_ADV", "scaled_optm": True},
        "concepts": [{"path": str(images)}], "text_encoder": {"train": False, **NO_CHECKPOINTING},
    }  # fmt: skip
    base = (save_channels if kind == INPAINTING else save_tokens)(mini_base, folder / "base")
    if kind == INPAINTING:
        # the velocity is nearly the picture where noise hides it, which only the conditioning can tell
        return {**common, "base_model_name": str(base), "force_v_prediction": True}
    return {
        **common, "base_model_name": str(base), "unet": {},
        "transformer": NO_CHECKPOINTING, "custom_conditioning_image": True, "text_encoder_sequence_length": 16,
    }  # fmt: skip


def sample_of(kind, options: dict[str, Any], number: int) -> dict[str, Any]:
    """A sample that starts from one of the pictures."""
    folder = Path(options["concepts"][0]["path"])
    own = {"prompt": "a colour", "width": 32, "height": 32, "diffusion_steps": 3, "cfg_scale": 1.0}
    if kind == EDITING:
        return {**own, "base_image_path": str(folder / f"{number}-condlabel.png")}
    return {
        **own, "sample_inpainting": True, "base_image_path": str(folder / f"{number}.png"),
        "mask_image_path": str(folder / f"{number}-masklabel.png"),
    }  # fmt: skip
