"""Components of Qwen-Image from the files that people have: ComfyUI's, published ones, and those that are refused."""

import json
from pathlib import Path

from modules.model.qwen_keys import qwen_vae_name
from modules.model.QwenModel import QwenModel, QwenTextEncoder
from modules.model.StandardSource import StandardSource
from modules.util.enum.ModelType import ModelType
from modules.util.UserError import UserError
from tests.model.family_checks import part_of_text_encoder_is_saved
from tests.model.qwen_base import wan_tensors
from tests.model.test_flux2_files import same
from tests.model.test_qwen_model import CAPTIONS, load, pixels, shared

import torch
from torch import Tensor, nn

import pytest
from diffusers.loaders.single_file_utils import convert_wan_vae_to_diffusers
from safetensors.torch import load_file, save_file

WHOLE = "text_encoders.qwen25_7b.transformer."


def component(folder: Path, name: str, tensors: dict[str, Tensor], path: Path) -> nn.Module:
    save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, path)
    return load(folder, **{name: {"model_name": str(path)}}).components[name]


def text_tensors(encoder: nn.Module, start: str = "", *, new: bool = False) -> dict[str, Tensor]:
    """Tensors of Qwen2.5-VL, with its half for images, as published, or as transformers 5 names them."""
    names = {"model.language_model.": "model.", "model.visual.": "visual."} if not new else {}
    tensors = {}
    for name, tensor in encoder.state_dict().items():
        for old, published in names.items():
            name = name.replace(old, published)
        tensors[start + name] = tensor.clone()
    return tensors


def of_text(encoder: nn.Module) -> nn.Module:
    return encoder.model.language_model.requires_grad_(False)


def test_all_components_are_described_as_they_were_published():
    source = StandardSource(ModelType.QWEN)
    counts = {name: sum(p.numel() for p in source.empty(name).parameters()) for name in source.classes}
    # the text encoder is Qwen2.5-7B without its head of 152,064 words
    assert counts == {
        "transformer": 20_430_401_088, "text_encoder": 7_615_616_512 - 152_064 * 3584, "vae": 126_892_531
    }  # fmt: skip
    # no file has the table of the places, so that it needs its numbers without weights, too
    assert not source.empty("transformer").pos_embed.pos_freqs.is_meta


@pytest.mark.parametrize("start", ["", "model.diffusion_model."])
def test_a_transformer_in_a_file(qwen_folder, qwen_pipeline, tmp_path, start):
    tensors = {start + name: tensor for name, tensor in qwen_pipeline.transformer.state_dict().items()}
    path = tmp_path / "qwen_image_bf16.safetensors"
    same(component(qwen_folder, "transformer", tensors, path), qwen_pipeline.transformer.requires_grad_(False))
    # and what it computes of its options is there, too
    model = load(qwen_folder, transformer={"model_name": str(path)})
    clean, texts = model.encode_images(pixels()), model.encode_captions(CAPTIONS[:2])
    with torch.no_grad():
        found, expected = (
            own.predict(clean, texts, torch.Generator().manual_seed(1)) for own in (model, shared(qwen_folder))
        )
    assert torch.equal(found.predicted, expected.predicted)


@pytest.mark.parametrize(("start", "new"), [("", False), ("", True), (WHOLE, False)])
def test_a_text_encoder_in_a_file(qwen_folder, qwen_pipeline, tmp_path, start, new):
    encoder, path = qwen_pipeline.text_encoder, tmp_path / "qwen_2.5_vl_7b.safetensors"
    same(component(qwen_folder, "text_encoder", text_tensors(encoder, start, new=new), path), of_text(encoder))
    model = load(qwen_folder, text_encoder={"model_name": str(path)})
    found, expected = (own.encode_captions(CAPTIONS)["hidden"] for own in (model, shared(qwen_folder)))
    assert torch.equal(found, expected)


def test_a_text_encoder_in_8_bits(qwen_folder, qwen_pipeline, tmp_path):
    """ComfyUI's qwen_2.5_vl_7b_fp8_scaled: with a mark, and scales of weights and inputs."""
    tensors, weight = text_tensors(qwen_pipeline.text_encoder), "model.layers.0.mlp.up_proj.weight"
    whole = tensors[weight]
    scale = whole.abs().max() / 448
    tensors[weight] = (whole / scale).to(torch.float8_e4m3fn)
    start = weight.removesuffix(".weight")
    tensors |= {f"{start}.scale_weight": scale, f"{start}.scale_input": torch.ones(())}
    tensors["scaled_fp8"] = torch.zeros(2, dtype=torch.float8_e4m3fn)
    found = component(qwen_folder, "text_encoder", tensors, tmp_path / "fp8.safetensors").layers[0].mlp.up_proj.weight
    # three digits after the leading one: half a step is 1/16
    assert 0 < (found - whole).abs().max() <= whole.abs().max() / 16


def test_the_folder_s_text_encoder_is_read_without_its_half_for_images(own_qwen_folder, qwen_pipeline):
    """In the published layout of tensors and options, and nobody is told of what is left in the file."""
    place, encoder = own_qwen_folder / "text_encoder", qwen_pipeline.text_encoder
    save_file(text_tensors(encoder), place / "model.safetensors", {"format": "pt"})
    assert any(name.startswith("visual.") for name in load_file(place / "model.safetensors"))
    options = json.loads((place / "config.json").read_text())
    (place / "config.json").write_text(json.dumps(options["text_config"] | options))
    same(load(own_qwen_folder).components["text_encoder"], of_text(encoder))
    _, told = QwenTextEncoder.from_pretrained(place, output_loading_info=True)
    assert not told["unexpected_keys"] and not told["missing_keys"]


@pytest.mark.parametrize("start", ["", "vae."])
def test_an_autoencoder_in_a_file(qwen_folder, qwen_pipeline, tmp_path, start):
    vae = qwen_pipeline.vae.requires_grad_(False)
    same(component(qwen_folder, "vae", wan_tensors(vae, start), tmp_path / "qwen_image_vae.safetensors"), vae)


def test_names_of_the_autoencoder_against_diffusers_converter():
    """Of the full size, with four levels."""
    vae = StandardSource(ModelType.QWEN).empty("vae")
    state = dict(vae.state_dict())
    converted = convert_wan_vae_to_diffusers({qwen_vae_name(name, vae.config): state[name] for name in state})
    assert len(state) == 194 and converted.keys() == state.keys()
    assert all(converted[name] is tensor for name, tensor in state.items())


def test_a_saved_text_encoder_is_one_of_diffusers(qwen_folder, qwen_pipeline, tmp_path):
    """It is saved as what was loaded of it, and the index names that."""
    file = tmp_path / "qwen_2.5_vl_7b.safetensors"
    save_file(text_tensors(qwen_pipeline.text_encoder), file)
    saved = part_of_text_encoder_is_saved(QwenModel, qwen_folder, file, tmp_path / "saved", CAPTIONS)
    found, expected = (own.encode_prompt(list(CAPTIONS))[0] for own in (saved, qwen_pipeline))
    torch.testing.assert_close(found, expected)


def test_a_folder_without_weights_is_enough_for_a_whole_checkpoint(own_qwen_folder, qwen_pipeline, tmp_path):
    """ComfyUI's, with all three components in one file."""
    for weights in own_qwen_folder.rglob("*.safetensors"):
        weights.unlink()
    path, transformer = tmp_path / "qwen_aio.safetensors", qwen_pipeline.transformer
    tensors = {f"model.diffusion_model.{name}": tensor for name, tensor in transformer.state_dict().items()}
    tensors |= text_tensors(qwen_pipeline.text_encoder, WHOLE) | wan_tensors(qwen_pipeline.vae, "vae.")
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)
    model = load(own_qwen_folder, **{name: {"model_name": str(path)} for name in QwenModel.modules})
    same(model.components["transformer"], transformer.requires_grad_(False))
    same(model.components["text_encoder"], of_text(qwen_pipeline.text_encoder))
    same(model.components["vae"], qwen_pipeline.vae.requires_grad_(False))


def test_files_that_are_refused(qwen_folder, qwen_pipeline, tmp_path):
    state, weight = qwen_pipeline.transformer.state_dict(), "transformer_blocks.0.img_mod.1.weight"
    with pytest.raises(UserError, match=r"img_mod\.1\.weight is quantized .*Expected the BF16 or FP8 file"):
        component(
            qwen_folder, "transformer", state | {weight: state[weight].to(torch.int8)}, tmp_path / "a.safetensors"
        )
    # the mark of the model that edits images, in ComfyUI's file of it
    with pytest.raises(UserError, match=r"1 of its tensors have no place .*__index_timestep_zero__"):
        component(
            qwen_folder, "transformer", state | {"__index_timestep_zero__": torch.ones(1)}, tmp_path / "b.safetensors"
        )
    del state[weight]
    with pytest.raises(UserError, match=r"lacks 1 of the .*img_mod\.1\.weight"):
        component(qwen_folder, "transformer", state, tmp_path / "c.safetensors")


def test_a_file_as_base_model_is_explained(tmp_path):
    path = tmp_path / "qwen_image_bf16.safetensors"
    path.write_bytes(b"")
    with pytest.raises(UserError, match=r"has no tokenizer.*transformer\.model_name"):
        load(path)
