"""How adapter files call Anima's layers: every key against ComfyUI's map and diffusers, and what they make of it.

ComfyUI's map was read from its code (its copy of November 2026) and is written down once more: it knows native names
after `diffusion_model.`, and flattened after `lora_unet_`. It knows none of diffusers' names.
"""

from modules.model.anima_keys import anima_adapter_naming
from modules.model.AnimaModel import AnimaModel
from modules.model.reference_naming import ReferenceModel
from modules.model.unet_keys import flat, layer_paths
from modules.modelSaver.adapter_layout import split_key
from modules.modelSaver.AdapterFile import read_adapter
from modules.util.enum.ModelFormat import ModelFormat
from modules.util.UserError import UserError
from tests.model.anima_base import loaded_anima, native_layers, native_tensors
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
from torch import Tensor

import pytest
from diffusers.loaders.lora_conversion_utils import _convert_non_diffusers_anima_lora_to_diffusers
from diffusers.loaders.single_file_utils import convert_cosmos_transformer_checkpoint_to_diffusers
from safetensors.torch import save_file

# format -> how it spells a layer, of its path in diffusers and its native one
SPELLINGS = {
    ModelFormat.KOHYA_LORA: lambda path, native: f"lora_unet_{flat(native)}",
    ModelFormat.SAFETENSORS: lambda path, native: f"lora_unet_{flat(native)}",
    ModelFormat.COMFY_LORA: lambda path, native: f"diffusion_model.{native}",
    ModelFormat.ORIGINAL_LORA: lambda path, native: f"net.{native}",
    ModelFormat.DIFFUSERS_LORA: lambda path, native: f"transformer.{path}",
    ModelFormat.LEGACY_LORA: lambda path, native: f"lora_transformer_{flat(path)}",
    ModelFormat.INTERNAL: lambda path, native: f"transformer.{path}",
}
FORMATS = [str(model_format) for model_format in SPELLINGS]
OF_COMFY = (ModelFormat.KOHYA_LORA, ModelFormat.SAFETENSORS, ModelFormat.COMFY_LORA)


@pytest.fixture(scope="module")
def standard(full_size_models) -> ReferenceModel:
    return next(model for model in full_size_models if model.name == "Anima")


def comfy_names(native: str) -> set[str]:
    return {f"diffusion_model.{native}", f"lora_unet_{flat(native)}"}


def test_every_key_is_one_that_readers_know(standard):
    transformer, naming = standard.components["transformer"], standard.naming
    layers = native_layers(transformer)
    # 28 blocks with 16 layers, and six outside
    assert len(layers) == 28 * 16 + 6 and set(layers.values()) == set(layer_paths(transformer))
    assert SPELLINGS.keys() == naming.write.keys() and not any(naming.write_fused.values())
    for model_format, spell in SPELLINGS.items():
        expected = {spell(path, native) for native, path in layers.items()}
        assert naming.written(model_format) == expected, model_format
        assert (expected <= naming.comfy) == (model_format in OF_COMFY)
        assert {split_key(key)[0] for key in rank_one_keys(standard, model_format)} == expected, model_format
    assert naming.comfy == set().union(*map(comfy_names, layers))


def test_names_of_other_trainers_are_read(standard):
    for native, path in native_layers(standard.components["transformer"]).items():
        others = {f"{start}.{name}" for start in ("base_model.model", "lora_transformer") for name in (path, native)}
        others |= {f"lora_transformer_{flat(path)}", f"lora_unet_{flat(path)}", native, path, f"transformer.{path}"}
        for name in comfy_names(native) | others:
            assert standard.naming.read[name] == ("transformer", path)


def test_keys_against_diffusers_converters(standard):
    """It takes native names of LoRA, without alphas; and those of a whole transformer."""
    ours = {key: tensor for key, tensor in rank_one_keys(standard, ModelFormat.COMFY_LORA).items() if "lora_" in key}
    converted = _convert_non_diffusers_anima_lora_to_diffusers(ours)
    assert converted.keys() == {
        key for key in rank_one_keys(standard, ModelFormat.DIFFUSERS_LORA) if not key.endswith(".alpha")
    }  # fmt: skip
    transformer = standard.components["transformer"]
    state = convert_cosmos_transformer_checkpoint_to_diffusers(native_tensors(transformer))
    assert {key: tensor.shape for key, tensor in state.items()} == {
        key: tensor.shape for key, tensor in transformer.state_dict().items()
    }


@pytest.mark.parametrize("model_format", FORMATS)
def test_a_file_tells_its_model_by_its_sizes(tmp_path, full_size_models, standard, model_format):
    tells_its_model(tmp_path / "x", rank_one_keys(standard, ModelFormat(model_format)), full_size_models, standard)


@pytest.mark.parametrize(
    ("name", "count"), [("full", 454), ("blocks", 28 * 16), ("attn-mlp", 28 * 10), ("attn-only", 28 * 8)]
)
def test_onetrainer_s_filters(standard, name, count):
    """As its presets of this family have them."""
    filter_selects(AnimaModel, name, standard.components["transformer"], count)


# --- adapters with numbers in them


@pytest.fixture(scope="module")
def transformer(anima_pipeline):
    return anima_pipeline.transformer


# the others spell names alike, or flattened like kohya's
@pytest.mark.parametrize("model_format", ["COMFY_LORA", "KOHYA_LORA", "DIFFUSERS_LORA"])
@pytest.mark.parametrize("kind", ADAPTER_KINDS)
def test_every_kind_comes_back_from_every_format(tmp_path, transformer, kind, model_format):
    """No layers are joined, so that none is shut out."""
    naming = anima_adapter_naming(transformer)
    comes_back_from(model_format, kind, transformer, naming, tmp_path / "x.safetensors")


@pytest.mark.parametrize(("model_format", "kind"), COMFY_KINDS)
def test_comfy_makes_the_trained_weights_of_it(tmp_path, transformer, kind, model_format):
    adapters = trained_adapters(transformer, kind)
    file = written(adapters, anima_adapter_naming(transformer), ModelFormat(model_format), tmp_path / "x")
    path_of = {name: path for native, path in native_layers(transformer).items() for name in comfy_names(native)}
    comfy_makes_the_trained_weights(file, path_of, transformer, adapters, kind)


def call(transformer) -> Tensor:
    generator = torch.Generator().manual_seed(2)
    noised = torch.randn(2, 4, 1, 8, 12, generator=generator)
    transformer.register_to_config(concat_padding_mask=False)
    return transformer(
        noised, torch.tensor([0.7, 0.1]), torch.randn(2, 5, 16, generator=generator),
        condition_mask=torch.zeros(2, 1, 1, 8, 12), return_dict=False,
    )[0]  # fmt: skip


@torch.no_grad()
@pytest.mark.parametrize("kind", ["LoRA", "DoRA on outputs"])
def test_diffusers_loads_the_file(tmp_path, anima_folder, kind):
    transformer = loaded_anima(anima_folder).transformer
    adapters, path = trained_adapters(transformer, kind), tmp_path / "adapter.safetensors"
    written(adapters, anima_adapter_naming(transformer), ModelFormat.DIFFUSERS_LORA, path)
    diffusers_computes_the_same(call, transformer, adapters, anima_folder, path, loaded_anima)


def test_what_diffusers_makes_of_other_files(tmp_path, transformer, anima_folder):
    """It refuses the alphas of dotted names, and passes over flattened ones."""
    adapters, path = trained_adapters(transformer, "LoRA"), tmp_path / "adapter.safetensors"
    pipeline = loaded_anima(anima_folder)
    for model_format in (ModelFormat.COMFY_LORA, ModelFormat.ORIGINAL_LORA):
        written(adapters, anima_adapter_naming(transformer), model_format, path)
        with pytest.raises(ValueError, match="Invalid LoRA checkpoint"):
            pipeline.load_lora_weights(str(path))
    written(adapters, anima_adapter_naming(transformer), ModelFormat.KOHYA_LORA, path)
    pipeline.load_lora_weights(str(path))
    assert not getattr(pipeline.transformer, "peft_config", None)


def test_layers_of_the_text_conditioner_are_refused_by_name(tmp_path, transformer):
    """Which other trainers can train."""
    file = written(
        trained_adapters(transformer, "LoRA"),
        anima_adapter_naming(transformer),
        ModelFormat.COMFY_LORA,
        tmp_path / "x.safetensors",
    )
    name = "diffusion_model.llm_adapter.blocks.0.cross_attn.q_proj"
    file |= {f"{name}.lora_A.weight": torch.ones(3, 16), f"{name}.lora_B.weight": torch.ones(16, 3)}
    save_file(file, tmp_path / "x.safetensors")
    with pytest.raises(UserError, match=r"llm_adapter\.blocks\.0\.cross_attn\.q_proj"):
        read_adapter(tmp_path / "x.safetensors").fit(anima_adapter_naming(transformer), {"transformer": transformer})
