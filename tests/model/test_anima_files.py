"""Components of Anima from the files that people have: ComfyUI's, published ones, and those that are refused."""

import json
from pathlib import Path

from modules.model.AnimaModel import AnimaModel
from modules.model.StandardSource import StandardSource
from modules.util.enum.ModelType import ModelType
from modules.util.UserError import UserError
from tests.model.anima_base import native_tensors
from tests.model.qwen_base import wan_tensors
from tests.model.test_anima_model import CAPTIONS, load, shared
from tests.model.test_flux2_files import same

import torch
from torch import Tensor, nn

import pytest
from safetensors.torch import save_file

WHOLE = "text_encoders.qwen3_06b.transformer."
MATRIX = "net.blocks.1.mlp.layer1.weight"


def component(folder: Path, name: str, tensors: dict[str, Tensor], path: Path) -> nn.Module:
    save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, path)
    return load(folder, **{name: {"model_name": str(path)}}).components[name]


def frozen(module: nn.Module) -> nn.Module:
    return module.requires_grad_(False)


def doubled(conditioner: nn.Module) -> dict[str, Tensor]:
    """Weights that are not the base's."""
    return {name: 2 * tensor for name, tensor in conditioner.state_dict().items()}


def test_all_components_are_described_as_they_were_published():
    source = StandardSource(ModelType.ANIMA)
    counts = {name: sum(p.numel() for p in source.empty(name).parameters()) for name in source.classes}
    # the text encoder has the sizes of Qwen3-0.6B, whose head is the matrix that reads words
    assert counts == {
        "transformer": 1_956_405_248, "text_encoder": 596_049_920, "text_conditioner": 134_663_680, "vae": 126_892_531,
    }  # fmt: skip


@pytest.mark.parametrize("start", ["net.", "", "model.diffusion_model.", "diffusion_model."])
def test_a_transformer_s_file_holds_the_text_conditioner(anima_folder, anima_pipeline, tmp_path, start):
    """Which is taken from there, as both were trained together."""
    transformer, path = anima_pipeline.transformer, tmp_path / "anima_base_v1.0.safetensors"
    tensors = native_tensors(transformer, start)
    tensors |= {f"{start}llm_adapter.{name}": t for name, t in doubled(anima_pipeline.text_conditioner).items()}
    # what its training left, and tables
    tensors |= {f"{start}pos_embedder.seq": torch.zeros(4), f"{start}accum_iteration": torch.zeros(1)}
    save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, path)
    model = load(anima_folder, transformer={"model_name": str(path)})
    same(model.components["transformer"], frozen(transformer))
    conditioner = model.components["text_conditioner"]
    assert all(torch.equal(t, tensors[f"{start}llm_adapter.{name}"]) for name, t in conditioner.state_dict().items())
    assert (
        torch.equal(conditioner.rotary_emb.inv_freq, anima_pipeline.text_conditioner.rotary_emb.inv_freq)
        and not conditioner.rotary_emb.inv_freq.is_meta
    )
    assert model.text_fingerprint() != shared(anima_folder).text_fingerprint()


def test_a_transformer_alone(anima_folder, anima_pipeline, tmp_path):
    """In the original layout, and in that of diffusers: the text conditioner stays that of the base model."""
    transformer, conditioner = frozen(anima_pipeline.transformer), frozen(anima_pipeline.text_conditioner)
    for name, tensors in (("a", native_tensors(transformer)), ("b", transformer.state_dict())):
        path = tmp_path / f"{name}.safetensors"
        save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, path)
        model = load(anima_folder, transformer={"model_name": str(path)})
        same(model.components["transformer"], transformer)
        same(model.components["text_conditioner"], conditioner)


def test_a_text_conditioner_of_its_own(anima_folder, anima_pipeline, tmp_path):
    """Goes before that of the transformer's file."""
    whole = native_tensors(anima_pipeline.transformer, "net.", anima_pipeline.text_conditioner)
    save_file({key: tensor.contiguous() for key, tensor in whole.items()}, tmp_path / "whole.safetensors")
    for start in ("", "net.llm_adapter."):
        path = tmp_path / "conditioner.safetensors"
        save_file({start + name: t for name, t in doubled(anima_pipeline.text_conditioner).items()}, path)
        parts = {"transformer": "whole", "text_conditioner": "conditioner"}
        model = load(
            anima_folder,
            **{name: {"model_name": str(tmp_path / f"{file}.safetensors")} for name, file in parts.items()},
        )
        own = model.components["text_conditioner"].state_dict()
        assert all(torch.equal(t, own[name]) for name, t in doubled(anima_pipeline.text_conditioner).items())


def test_a_transformer_in_8_bits(anima_folder, anima_pipeline, tmp_path):
    tensors = native_tensors(anima_pipeline.transformer)
    whole = tensors[MATRIX]
    scale = whole.abs().max() / 448
    tensors[MATRIX] = (whole / scale).to(torch.float8_e4m3fn)
    tensors[MATRIX.replace("weight", "weight_scale")] = scale
    found = component(anima_folder, "transformer", tensors, tmp_path / "anima_fp8.safetensors")
    layer = found.transformer_blocks[1].ff.net[0].proj
    # three digits after the leading one: half a step is 1/16
    assert 0 < (layer.weight - whole).abs().max() <= whole.abs().max() / 16 and layer.weight.dtype == torch.float32


@pytest.mark.parametrize("start", ["model.", "", f"{WHOLE}model."])
def test_a_text_encoder_in_a_file(anima_folder, anima_pipeline, tmp_path, start):
    encoder, path = anima_pipeline.text_encoder, tmp_path / "qwen_3_06b_base.safetensors"
    tensors = {f"{start}{name}": tensor for name, tensor in encoder.state_dict().items()}
    # some files have the head, which is the matrix that reads words
    tensors[f"{start.removesuffix('model.')}lm_head.weight"] = encoder.embed_tokens.weight.detach().clone()
    same(component(anima_folder, "text_encoder", tensors, path), frozen(encoder))
    model = load(anima_folder, text_encoder={"model_name": str(path)})
    found, expected = (own.encode_captions(CAPTIONS)["hidden"] for own in (model, shared(anima_folder)))
    assert torch.equal(found, expected)


def test_a_folder_without_weights_is_enough_for_a_whole_checkpoint(own_anima_folder, anima_pipeline, tmp_path):
    """ComfyUI's, with all components in one file."""
    for weights in own_anima_folder.rglob("*.safetensors"):
        weights.unlink()
    path, transformer = tmp_path / "anima_aio.safetensors", anima_pipeline.transformer
    tensors = native_tensors(transformer, "model.diffusion_model.", anima_pipeline.text_conditioner)
    tensors |= wan_tensors(anima_pipeline.vae, "vae.")
    tensors |= {f"{WHOLE}model.{name}": tensor for name, tensor in anima_pipeline.text_encoder.state_dict().items()}
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)
    names = [name for name in AnimaModel.modules if name != "text_conditioner"]
    model = load(own_anima_folder, **{name: {"model_name": str(path)} for name in names})
    for name in AnimaModel.modules:
        same(model.components[name], frozen(getattr(anima_pipeline, name)))


def test_files_that_are_refused(anima_folder, anima_pipeline, tmp_path):
    tensors = native_tensors(anima_pipeline.transformer)
    with pytest.raises(UserError, match=r"layer1\.weight is quantized .*Expected the BF16 or FP8 file"):
        component(
            anima_folder, "transformer", tensors | {MATRIX: tensors[MATRIX].to(torch.int8)}, tmp_path / "a.safetensors"
        )
    with pytest.raises(UserError, match=r"layer1\.weight has shape .*It is of another size"):
        component(anima_folder, "transformer", tensors | {MATRIX: tensors[MATRIX][1:]}, tmp_path / "b.safetensors")
    with pytest.raises(UserError, match=r"is a model of QWEN, but model_type is ANIMA"):
        foreign = {"transformer_blocks.0.txt_mod.1.bias": torch.ones(1)}
        component(anima_folder, "transformer", foreign, tmp_path / "c.safetensors")
    with pytest.raises(UserError, match=r"lacks \d+ of the \d+ tensors of this AnimaTextConditioner"):
        component(anima_folder, "text_conditioner", tensors, tmp_path / "d.safetensors")


def test_a_file_as_base_model_is_explained(tmp_path):
    path = tmp_path / "anima_base.safetensors"
    path.write_bytes(b"")
    with pytest.raises(UserError, match=r"has no tokenizer.*transformer\.model_name"):
        load(path)


def test_an_index_that_names_other_places(own_anima_folder, anima_folder):
    """As a folder has that was fetched: its own components count."""
    index = own_anima_folder / "modular_model_index.json"
    listed = json.loads(index.read_text())
    for entry in listed.values():
        if isinstance(entry, list):
            entry[2]["pretrained_model_name_or_path"] = "somebody/else"
    index.write_text(json.dumps(listed))
    found, expected = (
        own.encode_captions(CAPTIONS)["hidden"] for own in (load(own_anima_folder), shared(anima_folder))
    )
    assert torch.equal(found, expected)
    (own_anima_folder / "text_conditioner").rename(own_anima_folder / "other")
    with pytest.raises(UserError, match="missing folders: text_conditioner"):
        load(own_anima_folder)
