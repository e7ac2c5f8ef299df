"""Transformer and autoencoder of Flux.2 from files of their own: layouts, formats, and what is told of broken ones."""

from pathlib import Path

from modules.model.Flux2Model import Flux2Model
from modules.util.config.TrainConfig import TrainConfig
from modules.util.UserError import UserError
from tests.model.conftest import ldm_vae

import torch

import pytest
from diffusers import Flux2Transformer2DModel
from safetensors.torch import save_file

# the names of the original autoencoder, written by hand for four levels of one layer
VAE_NAMES = {
    "encoder.quant_conv": "quant_conv",
    "decoder.post_quant_conv": "post_quant_conv",
    "bn": "bn",
    **{f"{side}.{name}": f"{side}.{name}" for side in ("encoder", "decoder") for name in ("conv_in", "conv_out")},
    **{f"{side}.norm_out": f"{side}.conv_norm_out" for side in ("encoder", "decoder")},
    **{f"{side}.mid.block_{i}": f"{side}.mid_block.resnets.{i - 1}" for side in ("encoder", "decoder") for i in (1, 2)},
    **{f"encoder.down.{i}.block.0": f"encoder.down_blocks.{i}.resnets.0" for i in range(4)},
    **{f"encoder.down.{i}.downsample.conv": f"encoder.down_blocks.{i}.downsamplers.0.conv" for i in range(3)},
    **{f"decoder.up.{3 - i}.block.{k}": f"decoder.up_blocks.{i}.resnets.{k}" for i in range(4) for k in range(2)},
    **{f"decoder.up.{3 - i}.upsample.conv": f"decoder.up_blocks.{i}.upsamplers.0.conv" for i in range(3)},
}


@pytest.fixture(params=["dev", "klein"])
def variant(request) -> str:
    return request.param


@pytest.fixture
def transformer(flux2_pipelines, variant):
    return flux2_pipelines[variant].transformer


@pytest.fixture
def native(flux2_tensors, transformer) -> dict[str, torch.Tensor]:
    return {name: tensor.contiguous() for name, tensor in flux2_tensors(transformer).items()}


def load(folder: Path, component: str, file: Path, **options):
    options = {"base_model_name": str(folder), "model_type": "FLUX_2", component: {"model_name": str(file), **options}}
    return Flux2Model.load(TrainConfig.from_dict(options), torch.device("cpu")).components[component]


def write(tensors: dict[str, torch.Tensor], path: Path) -> Path:
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)
    return path


def same(found: torch.nn.Module, expected: torch.nn.Module) -> None:
    state = expected.state_dict()
    assert found.state_dict().keys() == state.keys()
    for name, tensor in found.state_dict().items():
        assert torch.equal(tensor, state[name]), name
    assert not any(parameter.requires_grad for parameter in found.parameters()) and not found.training


@pytest.mark.parametrize("prefix", ["", "model.diffusion_model.", "diffusion_model."])
def test_native_files(flux2_folders, variant, transformer, native, tmp_path, prefix):
    path = write({prefix + name: tensor for name, tensor in native.items()}, tmp_path / "flux2 dev.safetensors")
    same(load(flux2_folders[variant], "transformer", path), transformer)


def test_the_layout_is_the_one_that_diffusers_reads(flux2_folders, variant, transformer, native):
    folder = str(flux2_folders[variant])
    read = Flux2Transformer2DModel.from_single_file(
        dict(native), config=folder, subfolder="transformer", local_files_only=True
    )
    for name, tensor in transformer.state_dict().items():
        assert torch.equal(read.state_dict()[name], tensor), name


def test_a_file_in_diffusers_layout_and_half_precision(flux2_folders, variant, transformer, tmp_path):
    path = write(transformer.state_dict(), tmp_path / "x.safetensors")
    same(load(flux2_folders[variant], "transformer", path), transformer)
    found = load(flux2_folders[variant], "transformer", path, weight_dtype="BFLOAT_16")
    assert {tensor.dtype for tensor in found.state_dict().values()} == {torch.bfloat16}


@pytest.mark.parametrize("ending", ["weight_scale", "scale_weight"])
def test_float_8_with_one_scale_is_widened(flux2_folders, variant, transformer, native, tmp_path, ending):
    tensors = dict(native)
    for name, tensor in native.items():
        if name.endswith(".weight") and "_blocks." in name:
            layer, scale = name.removesuffix(".weight"), tensor.abs().max() / 448
            tensors[name] = (tensor / scale).to(torch.float8_e4m3fn)
            tensors |= {f"{layer}.{ending}": scale, f"{layer}.input_scale": torch.ones(())}
    path = write(tensors | {"scaled_fp8": torch.zeros(0).to(torch.float8_e4m3fn)}, tmp_path / "x.safetensors")
    found = load(flux2_folders[variant], "transformer", path).state_dict()
    for name, tensor in transformer.state_dict().items():
        # three digits after the leading one: half a step is 1/16
        assert (found[name] - tensor).abs().max() <= tensor.abs().max() / 16
    weight = "transformer_blocks.0.ff.linear_in.weight"
    assert not torch.equal(found[weight], transformer.state_dict()[weight])


def test_plain_float_8_is_widened(flux2_folders, variant, native, tmp_path):
    weight = native["img_in.weight"].to(torch.float8_e4m3fn)
    found = load(
        flux2_folders[variant], "transformer", write(native | {"img_in.weight": weight}, tmp_path / "x.safetensors")
    )
    assert torch.equal(found.x_embedder.weight, weight.float())


BLOCK = "double_blocks.0.img_mlp.0.weight"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: t.pop(BLOCK), rf"lacks 1 of the .* \({BLOCK}\).*incomplete, or of another size"),
        (lambda t: t.update({"double_blocks.7.img_mlp.0.weight": t[BLOCK].clone()}), "1 of its tensors have no place"),
        (lambda t: t.update({BLOCK: t[BLOCK][:-2]}), rf"{BLOCK} has shape \[190, 32\], expected \[192, 32\]"),
        (lambda t: t.update({"double_blocks.0.img_attn.qkv.weight": torch.ones(90, 32)}), "qkv.weight has shape"),
        (lambda t: t.update({BLOCK: t[BLOCK].to(torch.int8)}), rf"{BLOCK} is quantized \(torch.int8\).*BF16"),
        (
            lambda t: t.update({BLOCK: t[BLOCK].to(torch.float8_e4m3fn),
                                BLOCK.replace("weight", "weight_scale"): torch.ones(96, 2)}),
            "quantized in blocks",
        ),
        (lambda t: t.update({BLOCK.replace("weight", "weight_scale_2"): torch.ones(1)}), "quantized format"),
        (lambda t: [t.update({f"unet.{name}": t.pop(name)}) for name in list(t)], "none of its tensors belongs here"),
    ],
)  # fmt: skip
def test_files_that_do_not_fit_are_named(flux2_folders, variant, native, tmp_path, change, words):
    tensors = dict(native)
    change(tensors)
    with pytest.raises(UserError, match=words) as error:
        load(flux2_folders[variant], "transformer", write(tensors, tmp_path / "x.safetensors"))
    assert str(tmp_path / "x.safetensors") in str(error.value) and "\n" not in str(error.value)


def test_files_that_are_none(flux2_folders, tmp_path):
    for name, content, words in (("x.safetensors", b"<html>", "web page"), ("x.sft", b"", "found a .sft")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError, match=words):
            load(flux2_folders["klein"], "transformer", tmp_path / name)
    with pytest.raises(UserError, match=r"text_encoder\.model_name.*expected the folder"):
        load(flux2_folders["klein"], "text_encoder", tmp_path / "x.safetensors")


@pytest.mark.parametrize("prefix", ["", "first_stage_model."])
def test_an_autoencoder_in_a_file(flux2_folders, flux2_pipelines, tmp_path, prefix):
    vae = flux2_pipelines["klein"].vae
    tensors = ldm_vae(vae, VAE_NAMES, prefix)
    # a count that some files leave out
    tensors.pop(f"{prefix}bn.num_batches_tracked")
    same(load(flux2_folders["klein"], "vae", write(tensors, tmp_path / "ae.safetensors")), vae)
