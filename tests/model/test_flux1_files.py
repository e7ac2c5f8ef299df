"""Transformer, text encoders and autoencoder of Flux.1 and Chroma from files of their own, as people download them."""

import shutil
from pathlib import Path

from modules.model.BaseModel import BaseModel, family_of
from modules.model.recognize_model import find_model_type
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
from diffusers.loaders.single_file_utils import (
    convert_chroma_transformer_checkpoint_to_diffusers,
    convert_flux_transformer_checkpoint_to_diffusers,
)

FLUX1_VAE_NAMES = {native: ours for native, ours in VAE_NAMES.items() if "quant" not in native and native != "bn"}
LINEAR1 = "single_blocks.1.linear1.weight"


@pytest.fixture(params=["dev", "schnell", "chroma"])
def variant(request) -> str:
    return request.param


@pytest.fixture
def folder(variant, flux1_folders, chroma_folder) -> Path:
    return chroma_folder if variant == "chroma" else flux1_folders[variant]


@pytest.fixture
def pipeline(variant, flux1_pipelines, chroma_pipeline):
    return chroma_pipeline if variant == "chroma" else flux1_pipelines[variant]


def model(folder: Path, **components: Path) -> BaseModel:
    options = {name: {"model_name": str(path)} for name, path in components.items()}
    return load_model({"base_model_name": str(folder), **options})


def load_model(options: dict) -> BaseModel:
    kind = find_model_type(TrainConfig.from_dict({"base_model_name": options["base_model_name"]}))
    config = TrainConfig.from_dict({"model_type": kind, **options})
    return family_of(config).load(config, torch.device("cpu"))


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


# norms call their weight so in the original code, and otherwise in what newer versions of ComfyUI save
@pytest.mark.parametrize(("prefix", "norms"), [("", ".scale"), ("model.diffusion_model.", ".weight")])
def test_native_transformers(folder, pipeline, tmp_path, prefix, norms):
    tensors = native_tensors(pipeline.transformer)
    native = {prefix + name.replace(".scale", norms): tensor for name, tensor in tensors.items()}
    found = load(folder, "transformer", write(native, tmp_path / "flux1-dev.safetensors"))
    same(found, pipeline.transformer)
    # what is computed, and in no file, is there
    for name, buffer in pipeline.transformer.named_buffers():
        assert torch.equal(found.get_buffer(name), buffer), name


def test_the_layout_is_the_one_that_diffusers_reads(variant):
    """By its own converter, which knows the published sizes alone: on the meta device."""
    chroma = variant == "chroma"
    transformer = StandardSource(ModelType.CHROMA_1 if chroma else ModelType.FLUX_DEV_1, variant).empty("transformer")
    convert = (
        convert_chroma_transformer_checkpoint_to_diffusers
        if chroma
        else convert_flux_transformer_checkpoint_to_diffusers
    )
    read = convert(native_tensors(transformer))
    assert {name: tensor.shape for name, tensor in read.items()} == {
        name: tensor.shape for name, tensor in transformer.state_dict().items()
    }


def test_a_trained_transformer_is_written_in_this_layout(folder, pipeline):
    state, expected = pipeline.transformer.state_dict(), native_tensors(pipeline.transformer)
    made: list[CheckpointTensor] = model(folder).checkpoint_tensors(ModelFormat.ORIGINAL_TRANSFORMER)
    found = {one.name: one.join([state[name] for _, name in one.sources]) for one in made}
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


def test_float_8_is_widened(folder, pipeline, tmp_path):
    transformer = pipeline.transformer
    tensors = native_tensors(transformer)
    scale = tensors[LINEAR1].abs().max() / 448
    tensors |= {LINEAR1: (tensors[LINEAR1] / scale).to(torch.float8_e4m3fn), "scaled_fp8": torch.zeros(0)}
    tensors[LINEAR1.replace("weight", "scale_weight")] = scale
    tensors["img_in.weight"] = tensors["img_in.weight"].to(torch.float8_e4m3fn)
    found = load(folder, "transformer", write(tensors, tmp_path / "x.safetensors")).state_dict()
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
    config = {"base_model_name": str(flux1_folders["dev"]), "text_encoder_2": options}
    encoder = load_model(config).components["text_encoder_2"]
    wide = {name for name, tensor in encoder.named_parameters() if tensor.dtype == torch.float32}
    assert wide == {name for name, _ in encoder.named_parameters() if name.endswith(".wo.weight")}


@pytest.mark.parametrize("prefix", ["", "first_stage_model."])
def test_an_autoencoder(flux1_folders, flux1_pipelines, tmp_path, prefix):
    vae = flux1_pipelines["dev"].vae
    path = write(ldm_vae(vae, FLUX1_VAE_NAMES, prefix), tmp_path / "ae.safetensors")
    same(load(flux1_folders["dev"], "vae", path), vae)


@pytest.mark.parametrize("variant", ["schnell", "chroma"], indirect=True)
def test_all_of_a_whole_checkpoint(folder, pipeline, variant, tmp_path):
    """As ComfyUI has them: each component takes what is its own, and the base model's folder needs no weights."""
    bare = shutil.copytree(folder, tmp_path / "bare", ignore=shutil.ignore_patterns("*.safetensors"))
    native = native_tensors(pipeline.transformer)
    t5, clip = pipeline.text_encoder, {}
    if variant == "schnell":
        t5, clip = pipeline.text_encoder_2, clip_tensors(pipeline.text_encoder, "text_encoders.clip_l.transformer.")
    path = write(
        {
            **{f"model.diffusion_model.{name}": tensor for name, tensor in native.items()},
            **clip,
            **t5_tensors(t5, "text_encoders.t5xxl.transformer."),
            "text_encoders.t5xxl.logit_scale": torch.ones(1),
            **ldm_vae(pipeline.vae, FLUX1_VAE_NAMES, "vae."),
        },
        tmp_path / "all in one.safetensors",
    )
    components = ["transformer", "text_encoder", *(["text_encoder_2"] if clip else []), "vae"]
    whole = model(bare, **dict.fromkeys(components, path))
    for component in components:
        same(whole.components[component], getattr(pipeline, component))
    # a caption of Chroma has as many tokens as it needs
    assert whole.encode_captions(["a red cat"])["hidden"].shape == (1, 77 if clip else 5, 16)


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


def test_a_file_of_the_other_family_is_told_by_name(
    flux1_folders, chroma_folder, flux1_pipelines, chroma_pipeline, tmp_path
):
    chroma = write(native_tensors(chroma_pipeline.transformer), tmp_path / "chroma.safetensors")
    flux = write(native_tensors(flux1_pipelines["schnell"].transformer), tmp_path / "flux.safetensors")
    for folder in flux1_folders.values():
        with pytest.raises(UserError, match=r"chroma\.safetensors is .* of CHROMA_1, but model_type is FLUX_DEV_1"):
            load(folder, "transformer", chroma)
    with pytest.raises(UserError, match=r"flux\.safetensors is .* of FLUX_DEV_1, but model_type is CHROMA_1"):
        load(chroma_folder, "transformer", flux)
