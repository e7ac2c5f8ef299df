"""How adapter files call Ernie-Image's layers: every key against ComfyUI's map and diffusers, and what they make of it.

ComfyUI's map was read from its code (August 2026) and is written down once more. Its layers have diffusers' names:
after `diffusion_model.` and `transformer.`, and flattened after `lora_unet_`.
"""

from modules.model.ernie_keys import ernie_adapter_naming
from modules.model.ErnieModel import ErnieModel
from modules.model.reference_naming import ReferenceModel
from modules.model.unet_keys import flat, layer_paths
from modules.modelSaver.adapter_layout import split_key
from modules.modelSaver.save_adapter import encode_adapter
from modules.util.enum.DataType import DataType
from modules.util.enum.ModelFormat import ModelFormat
from tests.model.key_checks import (
    ADAPTER_KINDS,
    COMFY_KINDS,
    comes_back_from,
    comfy_makes_the_trained_weights,
    diffusers_computes_the_same,
    filter_selects,
    tells_its_model,
    trained_adapters,
    written,
)

import torch
from torch import Tensor

import pytest
from diffusers import DiffusionPipeline

# format -> how it spells a layer of diffusers
SPELLINGS = {
    ModelFormat.KOHYA_LORA: lambda path: f"lora_unet_{flat(path)}",
    ModelFormat.SAFETENSORS: lambda path: f"lora_unet_{flat(path)}",
    ModelFormat.COMFY_LORA: lambda path: f"diffusion_model.{path}",
    ModelFormat.ORIGINAL_LORA: lambda path: path,
    ModelFormat.DIFFUSERS_LORA: lambda path: f"transformer.{path}",
    ModelFormat.LEGACY_LORA: lambda path: f"transformer.{path}",
    ModelFormat.INTERNAL: lambda path: f"transformer.{path}",
}


@pytest.fixture(scope="module")
def standard(full_size_models) -> ReferenceModel:
    return next(model for model in full_size_models if model.name == "Ernie-Image")


def keys(model: ReferenceModel, model_format: ModelFormat, paths: list[str]) -> dict[str, Tensor]:
    """The tensors of an adapter of rank 1 on some layers."""
    transformer, parts = model.components["transformer"], {}
    for path in paths:
        weight = transformer.get_submodule(path).weight
        kernel = [1] * (weight.dim() - 2)
        parts[path] = {"lora_down.weight": torch.zeros(1, weight.shape[1], *kernel),
                       "lora_up.weight": torch.zeros(len(weight), 1, *kernel)}  # fmt: skip
    return encode_adapter({"transformer": parts}, model_format, model.naming, DataType.FLOAT_32)


def comfy_names(path: str) -> set[str]:
    return {f"diffusion_model.{path}", f"transformer.{path}", f"lora_unet_{flat(path)}"}


def test_every_key_is_one_that_readers_know(standard):
    transformer = standard.components["transformer"]
    paths = layer_paths(transformer)
    # of the published file: 36 blocks with 7 layers, and seven outside
    assert len(paths) == 36 * 7 + 7 and len(transformer.state_dict()) == 409
    some = [path for path in paths if path.startswith("layers.3.") or not path.startswith("layers.")]
    assert SPELLINGS.keys() == standard.naming.write.keys() and not any(standard.naming.write_fused.values())
    for model_format, spell in SPELLINGS.items():
        found = standard.naming.written(model_format)
        assert found == set(map(spell, paths)), model_format
        # bare names are known to nobody
        assert (found <= standard.naming.comfy) == (model_format != ModelFormat.ORIGINAL_LORA)
        assert {split_key(key)[0] for key in keys(standard, model_format, some)} == set(map(spell, some)), model_format
    assert standard.naming.comfy == set().union(*map(comfy_names, paths))


def test_names_of_other_trainers_are_read(standard):
    for path in layer_paths(standard.components["transformer"]):
        others = (path, f"base_model.model.{path}", f"lora_transformer_{flat(path)}", f"lycoris_{flat(path)}")
        for name in (*comfy_names(path), *others):
            assert standard.naming.read[name] == ("transformer", path)


@pytest.mark.parametrize("model_format", ["KOHYA_LORA", "COMFY_LORA"])
def test_a_file_tells_its_model_by_its_sizes(tmp_path, full_size_models, standard, model_format):
    paths = [path for path in layer_paths(standard.components["transformer"]) if path.startswith("layers.3.")]
    tells_its_model(tmp_path / "x", keys(standard, ModelFormat(model_format), paths), full_size_models, standard)


@pytest.mark.parametrize(
    ("name", "count"), [("full", 259), ("blocks", 36 * 7), ("attn-mlp", 36 * 7), ("attn-only", 36 * 4)]
)
def test_onetrainer_s_filters(standard, name, count):
    """As its presets of this family have them."""
    filter_selects(ErnieModel, name, standard.components["transformer"], count)


# --- adapters with numbers in them


@pytest.fixture(scope="module")
def transformer(ernie_pipeline):
    return ernie_pipeline.transformer


# the others spell names alike, or flattened like kohya's
@pytest.mark.parametrize("model_format", ["COMFY_LORA", "KOHYA_LORA", "DIFFUSERS_LORA"])
@pytest.mark.parametrize("kind", ADAPTER_KINDS)
def test_every_kind_comes_back_from_every_format(tmp_path, transformer, kind, model_format):
    """No layers are joined, so that none is shut out."""
    naming = ernie_adapter_naming(transformer)
    comes_back_from(model_format, kind, transformer, naming, tmp_path / "x.safetensors")


@pytest.mark.parametrize(("model_format", "kind"), COMFY_KINDS)
def test_comfy_makes_the_trained_weights_of_it(tmp_path, transformer, kind, model_format):
    adapters = trained_adapters(transformer, kind)
    file = written(adapters, ernie_adapter_naming(transformer), ModelFormat(model_format), tmp_path / "x")
    path_of = {name: path for path in layer_paths(transformer) for name in comfy_names(path)}
    comfy_makes_the_trained_weights(file, path_of, transformer, adapters, kind)


def inputs() -> dict:
    generator = torch.Generator().manual_seed(2)
    return {
        "hidden_states": torch.randn(2, 16, 2, 3, generator=generator),
        "timestep": torch.tensor([700.0, 100.0]),
        "text_bth": torch.randn(2, 5, 16, generator=generator),
        "text_lens": torch.tensor([5, 3]),
        "return_dict": False,
    }


@pytest.mark.parametrize("kind", ["LoRA", "DoRA on outputs"])
def test_diffusers_loads_the_file(tmp_path, transformer, ernie_folder, kind):
    adapters, path = trained_adapters(transformer, kind), tmp_path / "adapter.safetensors"
    written(adapters, ernie_adapter_naming(transformer), ModelFormat.DIFFUSERS_LORA, path)
    diffusers_computes_the_same(lambda own: own(**inputs())[0], transformer, adapters, ernie_folder, path)


def test_what_diffusers_does_not_load(tmp_path, transformer, ernie_folder):
    """It takes no numbers of alpha for this family, which these formats have."""
    adapters, path = trained_adapters(transformer, "LoRA"), tmp_path / "adapter.safetensors"
    written(adapters, ernie_adapter_naming(transformer), ModelFormat.COMFY_LORA, path)
    with pytest.raises(ValueError, match="Invalid LoRA checkpoint"):
        DiffusionPipeline.from_pretrained(ernie_folder).load_lora_weights(str(path))
