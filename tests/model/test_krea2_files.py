"""Components of Krea 2 from the files that people have: ComfyUI's, published ones, and those that are refused."""

import json
from pathlib import Path

from modules.model.Krea2Model import Krea2Model
from modules.model.QwenTexts import Qwen3VLText
from modules.model.StandardSource import StandardSource
from modules.util.enum.ModelType import ModelType
from modules.util.UserError import UserError
from tests.model.krea2_base import native_tensors
from tests.model.qwen_base import wan_tensors
from tests.model.test_flux2_files import same
from tests.model.test_krea2_model import CAPTIONS, load, shared

import torch
from torch import Tensor, nn

import pytest
from safetensors.torch import load_file, save_file

WHOLE = "text_encoders.qwen3vl_4b.transformer."
MATRIX = "blocks.1.mlp.up.weight"


def component(folder: Path, name: str, tensors: dict[str, Tensor], path: Path) -> nn.Module:
    save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, path)
    return load(folder, **{name: {"model_name": str(path)}}).components[name]


def text_tensors(encoder: nn.Module, language: str, vision: str) -> dict[str, Tensor]:
    """Tensors of Qwen3-VL with its half for images, by what stands before the names of each half."""
    starts = {"language_model.": language, "visual.": vision}
    return {
        start + name.removeprefix(own): tensor.clone()
        for name, tensor in encoder.state_dict().items()
        for own, start in starts.items()
        if name.startswith(own)
    }


def of_text(encoder: nn.Module) -> nn.Module:
    return encoder.language_model.requires_grad_(False)


def test_all_components_are_described_as_they_were_published():
    source = StandardSource(ModelType.KREA_2)
    counts = {name: sum(p.numel() for p in source.empty(name).parameters()) for name in source.classes}
    # the text encoder has the sizes of Qwen3-4B, whose head is the matrix that reads words
    assert counts == {"transformer": 12_820_073_036, "text_encoder": 4_022_468_096, "vae": 126_892_531}


@pytest.mark.parametrize("start", ["", "model.diffusion_model.", "diffusion_model."])
def test_a_transformer_in_a_native_file(krea2_folder, krea2_pipeline, tmp_path, start):
    """Whose table of a block is one row."""
    transformer = krea2_pipeline.transformer.requires_grad_(False)
    tensors = native_tensors(transformer, start)
    assert tensors[f"{start}blocks.0.mod.lin"].dim() == 1
    same(component(krea2_folder, "transformer", tensors, tmp_path / "krea2_raw_bf16.safetensors"), transformer)


def test_a_transformer_in_diffusers_layout(krea2_folder, krea2_pipeline, tmp_path):
    transformer = krea2_pipeline.transformer.requires_grad_(False)
    same(component(krea2_folder, "transformer", transformer.state_dict(), tmp_path / "x.safetensors"), transformer)


def test_a_transformer_in_8_bits(krea2_folder, krea2_pipeline, tmp_path):
    """With scales of matrices; norms stay as they are, in a model of bfloat16, too."""
    tensors = native_tensors(krea2_pipeline.transformer)
    whole = tensors[MATRIX]
    scale = whole.abs().max() / 448
    tensors[MATRIX] = (whole / scale).to(torch.float8_e4m3fn)
    tensors[MATRIX.replace("weight", "weight_scale")] = scale
    path = tmp_path / "krea2_raw_fp8_scaled.safetensors"
    save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, path)
    options = {"model_name": str(path), "weight_dtype": "BFLOAT_16"}
    block = load(krea2_folder, transformer=options).components["transformer"].transformer_blocks[1]
    # three digits after the leading one: half a step is 1/16
    assert 0 < (block.ff.up.weight - whole).abs().max() <= whole.abs().max() / 16
    assert block.ff.up.weight.dtype == torch.bfloat16
    assert torch.equal(block.norm1.weight, tensors["blocks.1.prenorm.scale"])


@pytest.mark.parametrize(
    ("language", "vision"),
    [("model.", "visual."), ("model.language_model.", "model.visual."), ("language_model.", "visual."),
     (f"{WHOLE}model.", f"{WHOLE}visual.")],
)  # fmt: skip
def test_a_text_encoder_in_a_file(krea2_folder, krea2_pipeline, tmp_path, language, vision):
    encoder, path = krea2_pipeline.text_encoder, tmp_path / "qwen3vl_4b_bf16.safetensors"
    tensors = text_tensors(encoder, language, vision)
    assert len(tensors) == len(encoder.state_dict())
    same(component(krea2_folder, "text_encoder", tensors, path), of_text(encoder))
    model = load(krea2_folder, text_encoder={"model_name": str(path)})
    found, expected = (own.encode_captions(CAPTIONS)["hidden"] for own in (model, shared(krea2_folder)))
    assert torch.equal(found, expected)


@pytest.mark.parametrize("start", ["", "model."])
def test_the_folder_s_text_encoder_is_read_without_its_half_for_images(own_krea2_folder, krea2_pipeline, start):
    """Of the class that the folder names, and of the one with a head; nobody is told of what is left in the file."""
    place, encoder = own_krea2_folder / "text_encoder", krea2_pipeline.text_encoder
    tensors = text_tensors(encoder, f"{start}language_model.", f"{start}visual.")
    save_file(tensors, place / "model.safetensors", {"format": "pt"})
    assert any("visual." in name for name in load_file(place / "model.safetensors"))
    same(load(own_krea2_folder).components["text_encoder"], of_text(encoder))
    _, told = Qwen3VLText.from_pretrained(place, output_loading_info=True)
    assert not told["unexpected_keys"] and not told["missing_keys"]


def test_a_folder_without_weights_is_enough_for_a_whole_checkpoint(own_krea2_folder, krea2_pipeline, tmp_path):
    """ComfyUI's, with all three components in one file."""
    for weights in own_krea2_folder.rglob("*.safetensors"):
        weights.unlink()
    path, transformer = tmp_path / "krea2_aio.safetensors", krea2_pipeline.transformer
    tensors = native_tensors(transformer, "model.diffusion_model.") | wan_tensors(krea2_pipeline.vae, "vae.")
    tensors |= text_tensors(krea2_pipeline.text_encoder, f"{WHOLE}model.", f"{WHOLE}visual.")
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)
    model = load(own_krea2_folder, **{name: {"model_name": str(path)} for name in Krea2Model.modules})
    same(model.components["transformer"], transformer.requires_grad_(False))
    same(model.components["text_encoder"], of_text(krea2_pipeline.text_encoder))
    same(model.components["vae"], krea2_pipeline.vae.requires_grad_(False))


def test_files_that_are_refused(krea2_folder, krea2_pipeline, tmp_path):
    tensors = native_tensors(krea2_pipeline.transformer)
    with pytest.raises(UserError, match=r"mlp\.up\.weight is quantized .*Expected the BF16 or FP8 file"):
        component(
            krea2_folder, "transformer", tensors | {MATRIX: tensors[MATRIX].to(torch.int8)}, tmp_path / "a.safetensors"
        )
    table = {"blocks.0.mod.lin": tensors["blocks.0.mod.lin"][:-1]}
    with pytest.raises(UserError, match=r"mod\.lin has shape \[191\], expected \[192\]. It is of another size"):
        component(krea2_folder, "transformer", tensors | table, tmp_path / "b.safetensors")
    with pytest.raises(UserError, match=r"is a model of QWEN, but model_type is KREA_2"):
        component(
            krea2_folder,
            "transformer",
            {"transformer_blocks.0.txt_mod.1.bias": torch.ones(1)},
            tmp_path / "d.safetensors",
        )
    del tensors[MATRIX]
    with pytest.raises(UserError, match=r"lacks 1 of the .*mlp\.up\.weight"):
        component(krea2_folder, "transformer", tensors, tmp_path / "c.safetensors")


def test_a_file_as_base_model_is_explained(tmp_path):
    path = tmp_path / "krea2_raw_bf16.safetensors"
    path.write_bytes(b"")
    with pytest.raises(UserError, match=r"has no tokenizer.*transformer\.model_name"):
        load(path)


def test_a_text_encoder_of_another_size_is_refused(own_krea2_folder):
    path = own_krea2_folder / "text_encoder" / "config.json"
    options = json.loads(path.read_text())
    options["text_config"]["hidden_size"] = 32
    path.write_text(json.dumps(options))
    with pytest.raises(UserError, match=r"reads 2 layers of 16 numbers .*3 layers of 32 numbers"):
        load(own_krea2_folder).check_layers()
