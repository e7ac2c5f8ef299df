"""PixArt's components from the files that people have, and the file that is written; which files are refused."""

import shutil
from pathlib import Path

from modules.model.PixArtModel import PixArtModel
from modules.util.CheckpointTensor import CheckpointTensor
from modules.util.enum.ModelFormat import ModelFormat
from modules.util.UserError import UserError
from tests.model.conftest import ldm_vae
from tests.model.pixart_base import TYPES, native_tensors
from tests.model.test_flux1_files import FLUX1_VAE_NAMES
from tests.model.test_flux2_files import same, write
from tests.model.test_pixart_model import load

import torch
from torch import Tensor

import pytest

VAE_NAMES = {**FLUX1_VAE_NAMES, "quant_conv": "quant_conv", "post_quant_conv": "post_quant_conv"}
QKV, KV = "blocks.1.attn.qkv.weight", "blocks.1.cross_attn.kv_linear.weight"
# as the published files have them beside the transformer
BESIDE = {"pos_embed": torch.ones(1, 16, 48), "y_embedder.y_embedding": torch.ones(120, 16)}
WHOLE_T5 = "text_encoders.t5xxl.transformer."


@pytest.fixture(params=TYPES)
def variant(request) -> str:
    return request.param


@pytest.fixture
def pipeline(pixart_pipelines, variant):
    return pixart_pipelines[variant]


def model(folder: Path, variant: str = "alpha", **components: Path) -> PixArtModel:
    return load(folder, variant, **{name: {"model_name": str(path)} for name, path in components.items()})


def t5_tensors(encoder, start: str = "") -> dict[str, Tensor]:
    return {f"{start}{name}": tensor.clone() for name, tensor in encoder.state_dict().items()}


@pytest.mark.parametrize("form", ["published", "comfyui", "diffusers"])
def test_a_transformer_in_a_file(pixart_folders, pipeline, variant, tmp_path, form):
    """Native or not, pickled as it was published or not; places are computed as the folder's model has them."""
    transformer = pipeline.transformer
    if form == "published":
        path = tmp_path / "PixArt-XL-2-1024-MS.pth"
        torch.save({"state_dict": native_tensors(transformer) | BESIDE}, path)
    elif form == "comfyui":
        tensors = native_tensors(transformer, "model.diffusion_model.")
        path = write(
            tensors | {f"model.diffusion_model.{name}": t for name, t in BESIDE.items()}, tmp_path / "x.safetensors"
        )
    else:
        tensors = dict(transformer.state_dict()) | {"caption_projection.y_embedding": torch.ones(120, 16)}
        path = write(tensors, tmp_path / "diffusion_pytorch_model.safetensors")
    found = model(pixart_folders[variant], variant, transformer=path).components["transformer"]
    same(found, transformer)
    assert torch.equal(found.pos_embed.pos_embed, transformer.pos_embed.pos_embed)


def test_what_is_written_is_this_layout(pixart_folders, pipeline, variant):
    made: list[CheckpointTensor] = model(pixart_folders[variant], variant).checkpoint_tensors(
        ModelFormat.ORIGINAL_TRANSFORMER
    )
    state = pipeline.transformer.state_dict()
    found = {one.name: one.join([state[name] for _, name in one.sources]) for one in made}
    expected = native_tensors(pipeline.transformer)
    assert found.keys() == expected.keys() and len(made) == len(found)
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


def test_a_whole_checkpoint(pixart_folders, pixart_pipelines, tmp_path):
    """Each component takes what is its own, and the base model's folder needs no weights."""
    pipeline = pixart_pipelines["sigma"]
    ignored = shutil.ignore_patterns("*.safetensors")
    bare = shutil.copytree(pixart_folders["sigma"], tmp_path / "bare", ignore=ignored)
    tensors = native_tensors(pipeline.transformer, "model.diffusion_model.")
    tensors |= t5_tensors(pipeline.text_encoder, WHOLE_T5) | ldm_vae(pipeline.vae, VAE_NAMES, "vae.")
    path = write(tensors, tmp_path / "pixart.safetensors")
    found = model(bare, "sigma", **dict.fromkeys(PixArtModel.modules, path))
    for component in PixArtModel.modules:
        same(found.components[component], getattr(pipeline, component))


def test_split_files(pixart_folders, pixart_pipelines, tmp_path):
    pipeline, folder = pixart_pipelines["alpha"], pixart_folders["alpha"]
    path = write(t5_tensors(pipeline.text_encoder), tmp_path / "t5xxl_fp16.safetensors")
    same(model(folder, text_encoder=path).components["text_encoder"], pipeline.text_encoder)
    path = write(ldm_vae(pipeline.vae, VAE_NAMES, ""), tmp_path / "vae.safetensors")
    same(model(folder, vae=path).components["vae"], pipeline.vae)


def test_float_8_is_widened(pixart_folders, pixart_pipelines, tmp_path):
    transformer = pixart_pipelines["alpha"].transformer
    tensors = native_tensors(transformer)
    scale = tensors[KV].abs().max() / 448
    tensors |= {KV: (tensors[KV] / scale).to(torch.float8_e4m3fn), KV.replace("weight", "scale_weight"): scale}
    path = write(tensors, tmp_path / "pixart_fp8.safetensors")
    found = model(pixart_folders["alpha"], transformer=path).components["transformer"]
    name = "transformer_blocks.1.attn2.to_v.weight"
    weight = transformer.state_dict()[name]
    # three digits after the leading one: half a step is 1/16
    assert 0 < (found.state_dict()[name] - weight).abs().max() <= weight.abs().max() / 16


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: t.pop(QKV), rf"lacks 1 of the .* \({QKV}\)"),
        (lambda t: t.update({QKV: t[QKV][:-3]}), rf"{QKV} has shape|of another size"),
        (lambda t: [t.pop(name) for name in list(t) if "_embedder.mlp" in name and name[0] in "ca"], "lacks 8 of the"),
        (lambda t: t.update({"blocks.7.attn.qkv.bias": torch.ones(1)}), "1 of its tensors have no place"),
        (lambda t: t.update({"cap_pad_token": torch.ones(1)}), "is a model of Z_IMAGE, but model_type is PIXART_ALPHA"),
    ],
)
def test_files_that_do_not_fit_are_named(pixart_folders, pixart_pipelines, tmp_path, change, words):
    """Also one of Sigma, which is told no sizes, for a folder of alpha."""
    tensors = native_tensors(pixart_pipelines["alpha"].transformer)
    change(tensors)
    path = write(tensors, tmp_path / "x.safetensors")
    with pytest.raises(UserError, match=words) as error:
        assert model(pixart_folders["alpha"], transformer=path).transformer
    assert str(path) in str(error.value) and "\n" not in str(error.value)
