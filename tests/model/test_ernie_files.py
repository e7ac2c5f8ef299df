"""Components of Ernie-Image from the files that people have: ComfyUI's, published ones, and those that are refused."""

from pathlib import Path

from modules.model.ErnieModel import ErnieModel, ErnieTextEncoder
from modules.model.ldm_keys import vae_name
from modules.model.StandardSource import StandardSource
from modules.util.enum.ModelType import ModelType
from modules.util.UserError import UserError
from tests.model.family_checks import part_of_text_encoder_is_saved
from tests.model.test_ernie_model import CAPTIONS, load, shared
from tests.model.test_flux2_files import same

import torch
from torch import Tensor, nn

import pytest
from safetensors.torch import load_file, save_file

WHOLE = "text_encoders.ministral3_3b.transformer."


def component(folder: Path, name: str, tensors: dict[str, Tensor], path: Path) -> nn.Module:
    save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, path)
    return load(folder, **{name: {"model_name": str(path)}}).components[name]


def text_tensors(encoder: nn.Module, start: str) -> dict[str, Tensor]:
    """Tensors of Mistral 3 with its half for images; `start` is that of its language model."""
    return {name.replace("language_model.", start): tensor.clone() for name, tensor in encoder.state_dict().items()} | {
        "tekken_model": torch.zeros(8, dtype=torch.uint8)
    }


def comfy_vae(vae: nn.Module, start: str = "") -> dict[str, Tensor]:
    """The VAE as flux2-vae.safetensors has it."""
    places = {"quant_conv": "encoder.quant_conv", "post_quant_conv": "decoder.post_quant_conv"}
    written = {}
    for name, tensor in vae.state_dict().items():
        layer, ending = name.rsplit(".", 1)
        native = f"{places[layer]}.{ending}" if layer in places else vae_name(name, vae.config, "")
        written[start + (name if layer == "bn" else native)] = tensor
    return written


def test_all_components_are_described_as_they_were_published():
    source = StandardSource(ModelType.ERNIE)
    counts = {name: sum(p.numel() for p in source.empty(name).parameters()) for name in source.classes}
    # the text encoder: 26 layers and words of 3072 numbers; the VAE is Flux.2's
    layer = 2 * 3072 * 4096 + 2 * 3072 * 1024 + 3 * 3072 * 9216 + 2 * 3072
    assert counts["text_encoder"] == 131_072 * 3072 + 26 * layer + 3072
    assert counts["vae"] == sum(p.numel() for p in StandardSource(ModelType.FLUX_2, "dev").empty("vae").parameters())
    # 14.96 GiB in bfloat16, as the published file
    assert counts["transformer"] == 8_033_490_048
    assert source.scheduler_config()["shift"] == 4 and source.empty("text_encoder").config.head_dim == 128


@pytest.mark.parametrize("start", ["", "model.diffusion_model."])
def test_a_transformer_in_a_file(ernie_folder, ernie_pipeline, tmp_path, start):
    tensors = {start + name: tensor for name, tensor in ernie_pipeline.transformer.state_dict().items()}
    found = component(ernie_folder, "transformer", tensors, tmp_path / "ernie-image.safetensors")
    same(found, ernie_pipeline.transformer.requires_grad_(False))


# ComfyUI's file, the published one, newer names of transformers, and a whole checkpoint
@pytest.mark.parametrize("start", ["model.", "language_model.", "language_model.model.", f"{WHOLE}model."])
def test_a_text_encoder_in_a_file(ernie_folder, ernie_pipeline, tmp_path, start):
    encoder, path = ernie_pipeline.text_encoder, tmp_path / "ministral-3-3b.safetensors"
    found = component(ernie_folder, "text_encoder", text_tensors(encoder, start), path)
    same(found, encoder.language_model.requires_grad_(False))
    model = load(ernie_folder, text_encoder={"model_name": str(path)})
    # with its table of frequencies, which no file has
    assert torch.equal(
        model.encode_captions(CAPTIONS)["hidden"], shared(ernie_folder).encode_captions(CAPTIONS)["hidden"]
    )


def test_the_folder_s_text_encoder_is_read_without_its_half_for_images(own_ernie_folder, ernie_pipeline):
    """Nobody is told of what is left in the file; both spellings of its tensors are read."""
    place, encoder = own_ernie_folder / "text_encoder", ernie_pipeline.text_encoder
    for start in ("language_model.", "language_model.model."):
        tensors = text_tensors(encoder, start)
        del tensors["tekken_model"]
        save_file(tensors, place / "model.safetensors", {"format": "pt"})
        assert any(name.startswith("vision_tower.") for name in load_file(place / "model.safetensors"))
        same(load(own_ernie_folder).components["text_encoder"], encoder.language_model.requires_grad_(False))
        _, told = ErnieTextEncoder.from_pretrained(place, output_loading_info=True)
        assert not told["unexpected_keys"] and not told["missing_keys"]


def test_a_saved_text_encoder_is_one_of_diffusers(ernie_folder, ernie_pipeline, tmp_path):
    """It is saved as what was loaded of it, and the index names that."""
    file = tmp_path / "ministral-3-3b.safetensors"
    save_file(text_tensors(ernie_pipeline.text_encoder, "model."), file)
    saved = part_of_text_encoder_is_saved(ErnieModel, ernie_folder, file, tmp_path / "saved", CAPTIONS)
    for found, expected in zip(*(own.encode_prompt(CAPTIONS, "cpu") for own in (saved, ernie_pipeline)), strict=True):
        assert torch.equal(found, expected)


def test_a_folder_without_weights_is_enough_for_a_whole_checkpoint(own_ernie_folder, ernie_pipeline, tmp_path):
    """ComfyUI's, with all three components in one file; it holds the text encoder without images."""
    for weights in own_ernie_folder.rglob("*.safetensors"):
        weights.unlink()
    path, transformer = tmp_path / "ernie_aio.safetensors", ernie_pipeline.transformer
    language = ernie_pipeline.text_encoder.language_model
    tensors = {f"model.diffusion_model.{name}": tensor for name, tensor in transformer.state_dict().items()}
    tensors |= {f"{WHOLE}model.{name}": tensor for name, tensor in language.state_dict().items()}
    tensors |= comfy_vae(ernie_pipeline.vae, "vae.")
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)
    model = load(own_ernie_folder, **{name: {"model_name": str(path)} for name in ErnieModel.modules})
    same(model.components["transformer"], transformer.requires_grad_(False))
    same(model.components["text_encoder"], language.requires_grad_(False))
    same(model.components["vae"], ernie_pipeline.vae.requires_grad_(False))


def test_files_that_are_refused(ernie_folder, ernie_pipeline, tmp_path):
    state, weight = ernie_pipeline.transformer.state_dict(), "layers.0.mlp.up_proj.weight"
    with pytest.raises(UserError, match=r"up_proj\.weight is quantized .*Expected the BF16 or FP8 file"):
        component(
            ernie_folder, "transformer", state | {weight: state[weight].to(torch.int8)}, tmp_path / "a.safetensors"
        )
    del state[weight]
    with pytest.raises(UserError, match=r"lacks 1 of the .*up_proj\.weight"):
        component(ernie_folder, "transformer", state, tmp_path / "b.safetensors")
    # the prompt enhancer, in ComfyUI's file
    enhancer = ernie_pipeline.text_encoder.language_model.state_dict()
    enhancer = {f"model.{name}": tensor for name, tensor in enhancer.items()}
    with pytest.raises(UserError, match=r"no half for images, as Ernie-Image's prompt enhancer"):
        component(ernie_folder, "text_encoder", enhancer, tmp_path / "c.safetensors")
    with pytest.raises(UserError, match=r"A file of Ernie-Image holds one component.*transformer\.model_name"):
        load(tmp_path / "a.safetensors")
