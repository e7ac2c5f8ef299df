import pytest


def _make_pipeline():
    """A two-level Stable Diffusion with random weights, made the same each time."""
    # imported here, because that takes seconds and most tests of the suite do not need them
    import torch

    from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(32, 64),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        norm_num_groups=8,
        cross_attention_dim=32,
        attention_head_dim=4,
    )
    text = CLIPTextConfig(
        vocab_size=50,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=8,
        bos_token_id=48,
        eos_token_id=49,
        pad_token_id=49,
    )
    vae = AutoencoderKL(block_out_channels=(8,), norm_num_groups=4)
    components = {
        "tokenizer": None,
        "safety_checker": None,
        "feature_extractor": None,
        "requires_safety_checker": False,
    }
    return StableDiffusionPipeline(
        vae=vae,
        text_encoder=CLIPTextModel(text).eval(),
        unet=unet.eval(),
        scheduler=DDIMScheduler(steps_offset=1, clip_sample=False),
        **components,
    )


def _predict(pipeline):
    """UNet output and text-encoder output on fixed inputs."""
    import torch

    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(0, 48, (2, 8), generator=generator)
    with torch.no_grad():
        hidden = pipeline.text_encoder(tokens).last_hidden_state
        latents = torch.randn(2, 4, 8, 8, generator=generator)
        return pipeline.unet(latents, torch.tensor([10, 700]), hidden).sample, hidden


@pytest.fixture(scope="session")
def make_pipeline():
    """make_pipeline() -> a two-level Stable Diffusion with random weights, the same each time."""
    return _make_pipeline


@pytest.fixture(scope="session")
def predict():
    """predict(pipeline) -> UNet output and text-encoder output on fixed inputs."""
    return _predict


@pytest.fixture(scope="module")
def base(make_pipeline):
    """Such a pipeline, with the names that files have for its layers as `naming`."""
    from modules.model.unet_keys import unet_adapter_naming

    pipeline = make_pipeline()
    pipeline.naming = unet_adapter_naming(pipeline.unet, {"text_encoder": pipeline.text_encoder})
    return pipeline
