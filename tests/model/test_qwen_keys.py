"""How adapter files call Qwen-Image's layers: every key against ComfyUI's map and diffusers, and what they make of it.

ComfyUI's map was read from its code (May 2026) and is written down once more. Its layers have diffusers' names: bare,
after `diffusion_model.` and `transformer.`, and flattened after `lora_unet_` and `lycoris_`.
"""

from modules.model.qwen_keys import qwen_adapter_naming
from modules.model.QwenModel import QwenModel
from modules.model.reference_naming import ReferenceModel
from modules.model.unet_keys import flat, layer_paths
from modules.modelSaver.adapter_layout import split_key
from modules.util.enum.ModelFormat import ModelFormat
from tests.model.key_checks import (
    ADAPTER_KINDS,
    COMFY_KINDS,
    comes_back_from,
    comfy_makes_the_trained_weights,
    diffusers_computes_the_same,
    filter_selects,
    rank_one_keys,
    tells_its_model,
    trained_adapters,
    written,
)

import torch

import pytest
from diffusers.loaders.lora_conversion_utils import _convert_non_diffusers_qwen_lora_to_diffusers

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
FORMATS = [str(model_format) for model_format in SPELLINGS]


@pytest.fixture(scope="module")
def standard(full_size_models) -> ReferenceModel:
    return next(model for model in full_size_models if model.name == "Qwen-Image")


def some_paths(model: ReferenceModel, outside: bool = True) -> list[str]:
    """The layers of the fourth block, and maybe those outside of blocks."""
    paths = layer_paths(model.components["transformer"])
    start = "transformer_blocks."
    return [path for path in paths if path.startswith(f"{start}3.") or outside and not path.startswith(start)]


def comfy_names(path: str) -> set[str]:
    return {path, f"diffusion_model.{path}", f"transformer.{path}", f"lora_unet_{flat(path)}", f"lycoris_{flat(path)}"}


def test_every_key_is_one_that_readers_know(standard):
    transformer = standard.components["transformer"]
    paths = set(layer_paths(transformer))
    # of the published file: 60 blocks with 14 layers, and six outside
    assert len(paths) == 60 * 14 + 6 and len(transformer.state_dict()) == 1933
    assert SPELLINGS.keys() == standard.naming.write.keys() and not any(standard.naming.write_fused.values())
    for model_format, spell in SPELLINGS.items():
        found = standard.naming.written(model_format)
        assert found == set(map(spell, paths)) and found <= standard.naming.comfy, model_format
        written = {split_key(key)[0] for key in rank_one_keys(standard, model_format, some_paths(standard))}
        assert written == set(map(spell, some_paths(standard))), model_format
    assert standard.naming.comfy == set().union(*map(comfy_names, paths))


def test_names_of_other_trainers_are_read(standard):
    for path in layer_paths(standard.components["transformer"]):
        others = (f"base_model.model.{path}", f"lora_transformer_{flat(path)}", f"lora_transformer.{path}")
        for name in (*comfy_names(path), *others):
            assert standard.naming.read[name] == ("transformer", path)


@pytest.mark.parametrize("model_format", ["KOHYA_LORA", "COMFY_LORA", "ORIGINAL_LORA"])
def test_keys_against_diffusers_converter(standard, model_format):
    paths = some_paths(standard)
    converted = _convert_non_diffusers_qwen_lora_to_diffusers(
        dict(rank_one_keys(standard, ModelFormat(model_format), paths))
    )
    expected = rank_one_keys(standard, ModelFormat.DIFFUSERS_LORA, paths)
    assert converted.keys() == {key for key in expected if not key.endswith(".alpha")}


@pytest.mark.parametrize("model_format", FORMATS)
def test_a_file_tells_its_model_by_its_sizes(tmp_path, full_size_models, standard, model_format):
    tells_its_model(
        tmp_path / "x",
        rank_one_keys(standard, ModelFormat(model_format), some_paths(standard, outside=False)),
        full_size_models,
        standard,
    )


@pytest.mark.parametrize(
    ("name", "count"), [("full", 846), ("blocks", 60 * 14), ("attn-mlp", 60 * 12), ("attn-only", 60 * 8)]
)
def test_onetrainer_s_filters(standard, name, count):
    """As its presets of this family have them."""
    filter_selects(QwenModel, name, standard.components["transformer"], count)


# --- adapters with numbers in them


@pytest.fixture(scope="module")
def transformer(qwen_pipeline):
    return qwen_pipeline.transformer


# the others spell names alike, or flattened like kohya's
@pytest.mark.parametrize("model_format", ["COMFY_LORA", "KOHYA_LORA", "DIFFUSERS_LORA"])
@pytest.mark.parametrize("kind", ADAPTER_KINDS)
def test_every_kind_comes_back_from_every_format(tmp_path, transformer, kind, model_format):
    """No layers are joined, so that none is shut out."""
    naming = qwen_adapter_naming(transformer)
    comes_back_from(model_format, kind, transformer, naming, tmp_path / "x.safetensors")


@pytest.mark.parametrize(("model_format", "kind"), COMFY_KINDS)
def test_comfy_makes_the_trained_weights_of_it(tmp_path, transformer, kind, model_format):
    adapters = trained_adapters(transformer, kind)
    file = written(adapters, qwen_adapter_naming(transformer), ModelFormat(model_format), tmp_path / "x")
    path_of = {name: path for path in layer_paths(transformer) for name in comfy_names(path)}
    comfy_makes_the_trained_weights(file, path_of, transformer, adapters, kind)


def inputs() -> dict:
    generator = torch.Generator().manual_seed(2)
    return {
        "hidden_states": torch.randn(2, 6, 16, generator=generator),
        "timestep": torch.tensor([0.7, 0.1]),
        "encoder_hidden_states": torch.randn(2, 5, 16, generator=generator),
        "img_shapes": [[(1, 2, 3)]] * 2,
        "return_dict": False,
    }


@pytest.mark.parametrize(
    ("model_format", "kind"),
    [("DIFFUSERS_LORA", "LoRA"), ("DIFFUSERS_LORA", "DoRA on outputs"), ("COMFY_LORA", "LoRA"), ("KOHYA_LORA", "LoRA"),
     ("ORIGINAL_LORA", "LoRA")],
)  # fmt: skip
def test_diffusers_loads_the_file(tmp_path, transformer, qwen_folder, model_format, kind):
    adapters, path = trained_adapters(transformer, kind), tmp_path / "adapter.safetensors"
    written(adapters, qwen_adapter_naming(transformer), ModelFormat(model_format), path)
    diffusers_computes_the_same(lambda own: own(**inputs())[0], transformer, adapters, qwen_folder, path)
