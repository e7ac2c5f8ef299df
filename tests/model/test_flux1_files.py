"""Transformer, text encoders and autoencoder of Flux.1 from files of their own, as people download them."""

import shutil
from pathlib import Path

from modules.model.FluxModel import FluxModel
from modules.model.StandardSource import StandardSource
from modules.util.CheckpointTensor import CheckpointTensor
from modules.util.config.TrainConfig import TrainConfig
from modules.util.enum.ModelFormat import ModelFormat
from modules.util.enum.ModelType import ModelType
from modules.util.UserError import UserError
from tests.model.conftest import ldm_vae
from tests.model.flux1_models import native_tensors
from tests.model.test_flux2_files import VAE_NAMES, same, write

import torch
from torch import Tensor

import pytest
from diffusers.loaders.single_file_utils import convert_flux_transformer_checkpoint_to_diffusers

FLUX1_VAE_NAMES = {native: ours for native, ours in VAE_NAMES.items() if "quant" not in native and native != "bn"}
LINEAR1 = "single_blocks.1.linear1.weight"


@pytest.fixture(params=["dev", "schnell"])
def variant(request) -> str:
    return request.param


def model(folder: Path, **components: Path) -> FluxModel:
    options = {name: {"model_name": str(path)} for name, path in components.items()}
    config = TrainConfig.from_dict({"base_model_name": str(folder), "model_type": "FLUX_DEV_1", **options})
    return FluxModel.load(config, torch.device("cpu"))


def load(folder: Path, component: str, path: Path) -> torch.nn.Module:
    return model(folder, **{component: path}).components[component]


def clip_tensors(encoder, prefix: str = "") -> dict[str, Tensor]:
    tensors = {f"{prefix}text_model.{name}": tensor for name, tensor in encoder.state_dict().items()}
    # what such files hold beside it
    return tensors | {f"{prefix}text_projection.weight": torch.ones(2, 2),
                      f"{prefix}text_model.embeddings.position_ids": torch.arange(16)[None]}  # fmt: skip


def t5_tensors(encoder, prefix: str = "", embedding: str = "shared.weight") -> dict[str, Tensor]:
    tensors = {
        f"{prefix}{name}": t for name, t in encoder.state_dict().items() if "embed" not in name and "shared" not in name
    }
    return tensors | {f"{prefix}{embedding}": encoder.shared.weight.detach()}


@pytest.mark.parametrize("prefix", ["", "model.diffusion_model."])
def test_native_transformers(flux1_folders, flux1_pipelines, variant, tmp_path, prefix):
    transformer = flux1_pipelines[variant].transformer
    native = {prefix + name: tensor for name, tensor in native_tensors(transformer).items()}
    path = write(native, tmp_path / "flux1-dev.safetensors")
    same(load(flux1_folders[variant], "transformer", path), transformer)


def test_the_layout_is_the_one_that_diffusers_reads(variant):
    """By its own converter, which knows the published sizes alone: on the meta device."""
    transformer = StandardSource(ModelType.FLUX_DEV_1, variant).empty("transformer")
    read = convert_flux_transformer_checkpoint_to_diffusers(native_tensors(transformer))
    assert {name: tensor.shape for name, tensor in read.items()} == {
        name: tensor.shape for name, tensor in transformer.state_dict().items()
    }


def test_a_trained_transformer_is_written_in_this_layout(flux1_folders, flux1_pipelines, variant):
    transformer = flux1_pipelines[variant].transformer
    state, expected = transformer.state_dict(), native_tensors(transformer)
    made: list[CheckpointTensor] = model(flux1_folders[variant]).checkpoint_tensors(ModelFormat.ORIGINAL_TRANSFORMER)
    found = {one.name: one.join([state[name] for _, name in one.sources]) for one in made}
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


def test_float_8_is_widened(flux1_folders, flux1_pipelines, tmp_path):
    transformer = flux1_pipelines["dev"].transformer
    tensors = native_tensors(transformer)
    scale = tensors[LINEAR1].abs().max() / 448
    tensors |= {LINEAR1: (tensors[LINEAR1] / scale).to(torch.float8_e4m3fn), "scaled_fp8": torch.zeros(0)}
    tensors[LINEAR1.replace("weight", "scale_weight")] = scale
    tensors["img_in.weight"] = tensors["img_in.weight"].to(torch.float8_e4m3fn)
    found = load(flux1_folders["dev"], "transformer", write(tensors, tmp_path / "x.safetensors")).state_dict()
    for name, tensor in transformer.state_dict().items():
        # three digits after the leading one: half a step is 1/16
        assert (found[name] - tensor).abs().max() <= tensor.abs().max() / 16
    name = "single_transformer_blocks.1.proj_mlp.weight"
    assert not torch.equal(found[name], transformer.state_dict()[name])


def test_text_encoders(flux1_folders, flux1_pipelines, tmp_path):
    pipeline, folder = flux1_pipelines["dev"], flux1_folders["dev"]
    clip = load(folder, "text_encoder", write(clip_tensors(pipeline.text_encoder), tmp_path / "clip_l.safetensors"))
    same(clip, pipeline.text_encoder)
    ids = torch.tensor([[1, 2, 3]])
    assert torch.equal(clip(ids).pooler_output, pipeline.text_encoder(ids).pooler_output)
    for embedding in ("shared.weight", "encoder.embed_tokens.weight"):
        path = write(t5_tensors(pipeline.text_encoder_2, "", embedding), tmp_path / "t5xxl.safetensors")
        t5 = load(folder, "text_encoder_2", path)
        same(t5, pipeline.text_encoder_2)
        # one matrix, not two
        assert t5.shared.weight is t5.encoder.embed_tokens.weight


def test_t5_keeps_the_layer_that_needs_range_in_half_precision(flux1_folders, flux1_pipelines, tmp_path):
    path = write(t5_tensors(flux1_pipelines["dev"].text_encoder_2), tmp_path / "t5xxl.safetensors")
    options = {"model_name": str(path), "weight_dtype": "FLOAT_16"}
    config = {"base_model_name": str(flux1_folders["dev"]), "model_type": "FLUX_DEV_1", "text_encoder_2": options}
    encoder = FluxModel.load(TrainConfig.from_dict(config), torch.device("cpu")).components["text_encoder_2"]
    wide = {name for name, tensor in encoder.named_parameters() if tensor.dtype == torch.float32}
    assert wide == {name for name, _ in encoder.named_parameters() if name.endswith(".wo.weight")}


@pytest.mark.parametrize("prefix", ["", "first_stage_model."])
def test_an_autoencoder(flux1_folders, flux1_pipelines, tmp_path, prefix):
    vae = flux1_pipelines["dev"].vae
    path = write(ldm_vae(vae, FLUX1_VAE_NAMES, prefix), tmp_path / "ae.safetensors")
    same(load(flux1_folders["dev"], "vae", path), vae)


def test_all_of_a_whole_checkpoint(flux1_folders, flux1_pipelines, tmp_path):
    """As ComfyUI has them: each component takes what is its own, and the base model's folder needs no weights."""
    bare = shutil.copytree(flux1_folders["schnell"], tmp_path / "bare", ignore=shutil.ignore_patterns("*.safetensors"))
    pipeline = flux1_pipelines["schnell"]
    native = native_tensors(pipeline.transformer)
    path = write(
        {
            **{f"model.diffusion_model.{name}": tensor for name, tensor in native.items()},
            **clip_tensors(pipeline.text_encoder, "text_encoders.clip_l.transformer."),
            **t5_tensors(pipeline.text_encoder_2, "text_encoders.t5xxl.transformer."),
            "text_encoders.t5xxl.logit_scale": torch.ones(1),
            **ldm_vae(pipeline.vae, FLUX1_VAE_NAMES, "vae."),
        },
        tmp_path / "flux1-schnell.safetensors",
    )
    components = ("transformer", "text_encoder", "text_encoder_2", "vae")
    whole = model(bare, **dict.fromkeys(components, path))
    for component in components:
        same(whole.components[component], getattr(pipeline, component))
    assert whole.encode_captions(["a red cat"])["hidden"].shape == (1, 77, 16)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: t.pop(LINEAR1), rf"lacks 1 of the .* \({LINEAR1}\)"),
        (lambda t: t.update({LINEAR1: t[LINEAR1][:-7]}), rf"{LINEAR1} has shape|of another size"),
        (
            lambda t: [t.pop(name) for name in list(t) if "guidance" in name],
            "is of Flux.1 schnell, .*base model is dev",
        ),
        (lambda t: t.update({"double_blocks.7.img_mod.lin.bias": torch.ones(1)}), "1 of its tensors have no place"),
    ],
)
def test_files_that_do_not_fit_are_named(flux1_folders, flux1_pipelines, tmp_path, change, words):
    tensors = native_tensors(flux1_pipelines["dev"].transformer)
    change(tensors)
    path = write(tensors, tmp_path / "x.safetensors")
    with pytest.raises(UserError, match=words) as error:
        load(flux1_folders["dev"], "transformer", path)
    assert str(path) in str(error.value) and "\n" not in str(error.value)


def test_gguf_is_refused_by_name(flux1_folders, tmp_path):
    (tmp_path / "flux1-dev-Q4_0.gguf").write_bytes(b"GGUF")
    with pytest.raises(UserError, match=r"found a \.gguf"):
        load(flux1_folders["dev"], "transformer", tmp_path / "flux1-dev-Q4_0.gguf")
