"""The tiny base model's training: resumable, and its latents equalised without changing what is decoded."""

from dataclasses import replace
from pathlib import Path

from benchmarks.tinyBase import build, components
from benchmarks.tinyBase.build import Recipe, equalize_latents

import torch

from diffusers import StableDiffusionPipeline
from safetensors.torch import load_file
from transformers import CLIPTextModel

RECIPE = Recipe(
    vae_steps=3, vae_batch=2, text_steps=3, text_batch=4, scenes=8, unet_steps=4, unet_batch=2, workers=1,
    checkpoint_every=2,
)  # fmt: skip


def test_equalized_autoencoder_decodes_the_same():
    torch.manual_seed(0)
    vae = components.make_vae().eval()
    pixels = torch.rand(2, 3, 64, 64) * 2 - 1
    center, spread = torch.randn(8), torch.rand(8) + 0.1
    with torch.no_grad():
        before = vae.encode(pixels).latent_dist
        decoded = vae.decode(before.mean).sample
        equalize_latents(vae, center, spread)
        after = vae.encode(pixels).latent_dist
        again = vae.decode(after.mean).sample
    # the same numbers in another order: float32 rounding of values around 1, through a few dozen layers
    torch.testing.assert_close(after.mean, (before.mean - center[:, None, None]) / spread[:, None, None])
    torch.testing.assert_close(after.std, before.std / spread[:, None, None])
    torch.testing.assert_close(again, decoded, atol=1e-4, rtol=1e-4)
    assert vae.config.scaling_factor == 1.0


def check_text_encoder(folder: Path):
    """Names as every version of transformers reads them, and a model that holds what the file does."""
    tensors = load_file(folder / "model.safetensors")
    assert tensors and all(name.startswith("text_model.") for name in tensors)
    encoder, report = CLIPTextModel.from_pretrained(folder, output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    loaded = {f"text_model.{name.removeprefix('text_model.')}": tensor for name, tensor in encoder.state_dict().items()}
    assert loaded.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert torch.equal(loaded[name], tensor), name
    assert torch.equal(encoder.get_input_embeddings().weight, tensors["text_model.embeddings.token_embedding.weight"])


def test_every_version_of_transformers_reads_the_names_of_the_text_encoder():
    check_text_encoder(Path(__file__).parents[3] / "models/tiny_sd/text_encoder")


def test_a_stopped_training_ends_as_an_uninterrupted_one(tmp_path, interrupted):
    device = torch.device("cpu")
    build.build(RECIPE, tmp_path / "whole", tmp_path / "model", device)
    interrupted(lambda: build.build(RECIPE, tmp_path / "stopped", tmp_path / "other", device))
    assert not (tmp_path / "other").exists()
    build.build(RECIPE, tmp_path / "stopped", tmp_path / "other", device)

    files = sorted(path.relative_to(tmp_path / "model") for path in (tmp_path / "model").rglob("*.safetensors"))
    assert len(files) == 3
    for file in files:
        assert (tmp_path / "model" / file).read_bytes() == (tmp_path / "other" / file).read_bytes(), file

    check_text_encoder(tmp_path / "model/text_encoder")
    pipeline = StableDiffusionPipeline.from_pretrained(tmp_path / "model")
    assert pipeline.tokenizer.tokenize("a red circle") == ["a</w>", "red</w>", "circle</w>"]
    assert sum(path.stat().st_size for path in (tmp_path / "model").rglob("*")) < 20_000_000


def test_recipe_shares_batches_between_workers():
    assert build._share(replace(RECIPE, workers=2, unet_batch=32), 32) == 16
