"""A pipeline and a concept so small that a whole run takes a second."""

from pathlib import Path

from PIL import Image

IMAGE_SIZES = [(48, 48), (48, 48), (48, 48), (64, 48), (64, 48), (48, 80), (48, 80)]


def save_pipeline(folder: Path, channels: tuple[int, int] = (16, 32), width: int = 16) -> Path:
    """Random weights at the smallest size that still has every kind of layer: a step takes milliseconds.

    Args:
        folder: gets the pipeline in `model`, whose path is returned.
        channels: of the UNet's levels.
        width: of the text encoder.
    """
    # imported here, because that takes seconds and most who draw images alone do not need them
    from benchmarks.tinyBase.components import make_tokenizer

    import torch

    from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    torch.manual_seed(0)
    tokenizer = make_tokenizer(folder / "made tokenizer")
    unet = UNet2DConditionModel(
        sample_size=16, block_out_channels=channels, layers_per_block=1, norm_num_groups=8, cross_attention_dim=width,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        attention_head_dim=2,
    )  # fmt: skip
    vae = AutoencoderKL(
        block_out_channels=(8, 16), down_block_types=("DownEncoderBlock2D",) * 2, norm_num_groups=4, sample_size=32,
        up_block_types=("UpDecoderBlock2D",) * 2, mid_block_add_attention=False,
    )  # fmt: skip
    encoder = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer), hidden_size=width, intermediate_size=2 * width, num_hidden_layers=1,
            projection_dim=width,
            num_attention_heads=2, max_position_embeddings=24, bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
        )
    )  # fmt: skip
    scheduler = DDIMScheduler(
        beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, clip_sample=False, set_alpha_to_one=False,
        steps_offset=1,
    )  # fmt: skip
    StableDiffusionPipeline(
        vae=vae, text_encoder=encoder, tokenizer=tokenizer, unet=unet, scheduler=scheduler, safety_checker=None,
        feature_extractor=None, requires_safety_checker=False,
    ).save_pretrained(folder / "model")  # fmt: skip
    return folder / "model"


def draw_images(folder: Path, names: str = "image") -> None:
    """Small pictures of several shapes with captions."""
    folder.mkdir(parents=True, exist_ok=True)
    for index, size in enumerate(IMAGE_SIZES):
        gradient = Image.linear_gradient("L").resize(size).rotate(90 * index).resize(size)
        Image.merge("RGB", [gradient, gradient.point(lambda v, i=index: v * i % 256), gradient]).save(
            folder / f"{names} {index}.png"
        )
        (folder / f"{names} {index}.txt").write_text(f"a red shape number {index}", encoding="utf-8")
