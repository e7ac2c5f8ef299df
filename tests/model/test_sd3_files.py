"""Stable Diffusion 3 and 3.5 from the single files that people download, and as a whole checkpoint that is written."""

import shutil
from pathlib import Path

from modules.model.StableDiffusion3Model import StableDiffusion3Model
from modules.model.StandardSource import StandardSource
from modules.util.config.TrainConfig import TrainConfig
from modules.util.enum.ModelFormat import ModelFormat
from modules.util.enum.ModelType import ModelType
from modules.util.UserError import UserError
from tests.model.conftest import ldm_vae
from tests.model.sd3_models import native_tensors
from tests.model.test_flux1_files import FLUX1_VAE_NAMES as VAE_NAMES
from tests.model.test_flux2_files import same, write
from tests.model.test_sd3_model import TYPES

import torch
from torch import Tensor

import pytest
from diffusers.loaders.single_file_utils import convert_sd3_transformer_checkpoint_to_diffusers

QKV = "joint_blocks.1.x_block.attn.qkv.weight"
COMPONENTS = ("transformer", "text_encoder", "text_encoder_2", "text_encoder_3", "vae")
CLIPS = {"text_encoder": "clip_l", "text_encoder_2": "clip_g"}


@pytest.fixture(params=TYPES)
def variant(request) -> str:
    return request.param


@pytest.fixture
def pipeline(sd3_pipelines, variant):
    return sd3_pipelines[variant]


def model(folder: Path, variant: str = "3.5", **components: Path) -> StableDiffusion3Model:
    options = {name: {"model_name": str(path)} for name, path in components.items()}
    config = TrainConfig.from_dict({"base_model_name": str(folder), "model_type": TYPES[variant], **options})
    return StableDiffusion3Model.load(config, torch.device("cpu"))


def clip_tensors(encoder, start: str = "") -> dict[str, Tensor]:
    """As files have CLIP: the large one with its projection, the small one with another than is used here."""
    tensors = {f"{start}{name}": tensor for name, tensor in encoder.state_dict().items()}
    if encoder.config.hidden_act == "quick_gelu":
        tensors[f"{start}text_projection.weight"] = torch.ones(3, 3)
    return tensors | {f"{start}logit_scale": torch.ones(1)}


def t5_tensors(encoder, start: str = "") -> dict[str, Tensor]:
    return {f"{start}{name}": tensor.clone() for name, tensor in encoder.state_dict().items()}


def whole(pipeline) -> dict[str, Tensor]:
    """A checkpoint with everything in it."""
    tensors = {f"model.diffusion_model.{name}": t for name, t in native_tensors(pipeline.transformer).items()}
    for component, name in CLIPS.items():
        tensors |= clip_tensors(getattr(pipeline, component), f"text_encoders.{name}.transformer.")
    return (
        tensors
        | t5_tensors(pipeline.text_encoder_3, "text_encoders.t5xxl.transformer.")
        | ldm_vae(pipeline.vae, VAE_NAMES)
    )


@pytest.mark.parametrize("prefix", ["", "model.diffusion_model."])
def test_native_transformers(sd3_folders, pipeline, variant, tmp_path, prefix):
    native = {prefix + name: tensor for name, tensor in native_tensors(pipeline.transformer).items()}
    path = write(native, tmp_path / "sd3.safetensors")
    same(model(sd3_folders[variant], variant, transformer=path).components["transformer"], pipeline.transformer)


@pytest.mark.parametrize("name", ["3 medium", "3.5 large", "3.5 medium"])
def test_the_layout_is_the_one_that_diffusers_reads(name):
    """By its own converter, at full size on the meta device; and with numbers for a small one."""
    kind = ModelType.STABLE_DIFFUSION_35 if "3.5" in name else ModelType.STABLE_DIFFUSION_3
    transformer = StandardSource(kind, name).empty("transformer")
    read = convert_sd3_transformer_checkpoint_to_diffusers(native_tensors(transformer))
    assert {name: tensor.shape for name, tensor in read.items()} == {
        name: tensor.shape for name, tensor in transformer.state_dict().items()
    }


def test_diffusers_reads_the_same_numbers(pipeline):
    read = convert_sd3_transformer_checkpoint_to_diffusers(native_tensors(pipeline.transformer))
    state = pipeline.transformer.state_dict()
    assert read.keys() == state.keys() and all(torch.equal(tensor, state[name]) for name, tensor in read.items())


def test_split_files(sd3_folders, sd3_pipelines, tmp_path):
    pipeline, folder = sd3_pipelines["3.5"], sd3_folders["3.5"]
    for component, name in CLIPS.items():
        encoder = getattr(pipeline, component)
        path = write(clip_tensors(encoder), tmp_path / f"{name}.safetensors")
        same(model(folder, **{component: path}).components[component], encoder)
    path = write(t5_tensors(pipeline.text_encoder_3), tmp_path / "t5xxl.safetensors")
    same(model(folder, text_encoder_3=path).components["text_encoder_3"], pipeline.text_encoder_3)
    path = write(ldm_vae(pipeline.vae, VAE_NAMES, ""), tmp_path / "vae.safetensors")
    same(model(folder, vae=path).components["vae"], pipeline.vae)


def test_a_whole_checkpoint(sd3_folders, pipeline, variant, tmp_path):
    """Each component takes what is its own, and the base model's folder needs no weights."""
    folder = sd3_folders[variant]
    bare = shutil.copytree(folder, tmp_path / "bare", ignore=shutil.ignore_patterns("*.safetensors"))
    path = write(whole(pipeline), tmp_path / "sd3.safetensors")
    found = model(bare, variant, **dict.fromkeys(COMPONENTS, path))
    for component in COMPONENTS:
        same(found.components[component], getattr(pipeline, component))


def test_a_checkpoint_without_text_encoders(sd3_folders, sd3_pipelines, tmp_path):
    """As sd3.5_large.safetensors is: these come from the base model's folder."""
    tensors = {name: t for name, t in whole(sd3_pipelines["3.5"]).items() if not name.startswith("text_encoders.")}
    path = write(tensors, tmp_path / "sd3.5_large.safetensors")
    found = model(sd3_folders["3.5"], transformer=path, vae=path)
    for component in ("transformer", "text_encoder", "vae"):
        same(found.components[component], getattr(sd3_pipelines["3.5"], component))
    with pytest.raises(UserError, match=r"none of its tensors belongs here.*text_model"):
        model(sd3_folders["3.5"], text_encoder_2=path).components["text_encoder_2"]


@pytest.mark.parametrize("model_format", [ModelFormat.ORIGINAL_SINGLE_FILE, ModelFormat.ORIGINAL_TRANSFORMER])
def test_what_is_written_is_this_layout(sd3_folders, pipeline, variant, model_format):
    made = model(sd3_folders[variant], variant).checkpoint_tensors(model_format)
    states = {component: getattr(pipeline, component).state_dict() for component in COMPONENTS}
    found = {one.name: one.join([states[component][name] for component, name in one.sources]) for one in made}
    if model_format == ModelFormat.ORIGINAL_TRANSFORMER:
        expected = native_tensors(pipeline.transformer)
    else:
        expected = {name: t for name, t in whole(pipeline).items() if not name.endswith("logit_scale")}
        # as the pipeline has it
        expected["text_encoders.clip_l.transformer.text_projection.weight"] = torch.eye(16)
    assert found.keys() == expected.keys() and len(made) == len(found)
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


def test_float_8_is_widened(sd3_folders, sd3_pipelines, tmp_path):
    transformer = sd3_pipelines["3.5"].transformer
    tensors = native_tensors(transformer)
    scale = tensors[QKV].abs().max() / 448
    tensors |= {QKV: (tensors[QKV] / scale).to(torch.float8_e4m3fn), "scaled_fp8": torch.zeros(0)}
    tensors[QKV.replace("weight", "scale_weight")] = scale
    found = model(sd3_folders["3.5"], transformer=write(tensors, tmp_path / "x.safetensors")).components["transformer"]
    name = "transformer_blocks.1.attn.to_v.weight"
    weight = transformer.state_dict()[name]
    # three digits after the leading one: half a step is 1/16
    difference = (found.state_dict()[name] - weight).abs().max()
    assert 0 < difference <= weight.abs().max() / 16


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: t.pop(QKV), rf"lacks 1 of the .* \({QKV}\)"),
        (lambda t: t.update({QKV: t[QKV][:-7]}), rf"{QKV} has shape|of another size"),
        (
            lambda t: [t.pop(name) for name in list(t) if ".ln_" in name],
            "is of Stable Diffusion 3, .*base model is 3.5",
        ),
        (lambda t: t.update({"joint_blocks.7.x_block.attn.qkv.bias": torch.ones(1)}), "1 of its tensors have no place"),
    ],
)
def test_files_that_do_not_fit_are_named(sd3_folders, sd3_pipelines, tmp_path, change, words):
    tensors = native_tensors(sd3_pipelines["3.5"].transformer)
    change(tensors)
    path = write(tensors, tmp_path / "x.safetensors")
    with pytest.raises(UserError, match=words) as error:
        model(sd3_folders["3.5"], transformer=path).components["transformer"]
    assert str(path) in str(error.value) and "\n" not in str(error.value)
