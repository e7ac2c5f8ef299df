"""How adapter files call Krea 2's layers: every key against ComfyUI's map and diffusers, and what they make of it.

ComfyUI's map was read from its code (July 2026) and is written down once more. It knows native names after
`diffusion_model.`, and flattened after `lora_unet_`; and diffusers' names of all layers bare, after `diffusion_model.`
and `transformer.`, and flattened after `lycoris_`.
"""

from modules.model.krea2_keys import krea2_adapter_naming
from modules.model.Krea2Model import Krea2Model
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
from tests.model.krea2_base import native_layers, native_tensors

import torch

import pytest
from diffusers.loaders.lora_conversion_utils import _convert_non_diffusers_krea2_lora_to_diffusers
from diffusers.loaders.single_file_utils import convert_krea2_transformer_checkpoint_to_diffusers

# format -> how it spells a layer, of its path in diffusers and its native one
SPELLINGS = {
    ModelFormat.KOHYA_LORA: lambda path, native: f"lora_unet_{flat(native)}",
    ModelFormat.SAFETENSORS: lambda path, native: f"lora_unet_{flat(native)}",
    ModelFormat.COMFY_LORA: lambda path, native: f"diffusion_model.{native}",
    ModelFormat.ORIGINAL_LORA: lambda path, native: native,
    ModelFormat.DIFFUSERS_LORA: lambda path, native: f"transformer.{path}",
    ModelFormat.LEGACY_LORA: lambda path, native: f"transformer.{path}",
    ModelFormat.INTERNAL: lambda path, native: f"transformer.{path}",
}
FORMATS = [str(model_format) for model_format in SPELLINGS]


@pytest.fixture(scope="module")
def standard(full_size_models) -> ReferenceModel:
    return next(model for model in full_size_models if model.name == "Krea 2")


def comfy_names(path: str, native: str) -> set[str]:
    own = {f"diffusion_model.{native}", f"lora_unet_{flat(native)}"}
    return own | {path, f"diffusion_model.{path}", f"transformer.{path}", f"lycoris_{flat(path)}"}


def test_every_key_is_one_that_readers_know(standard):
    transformer, naming = standard.components["transformer"], standard.naming
    layers = native_layers(transformer)
    # of the published file: 28 blocks and 4 for captions with 8 layers, and eight outside
    assert len(layers) == 32 * 8 + 8 and set(layers.values()) == set(layer_paths(transformer))
    assert SPELLINGS.keys() == naming.write.keys() and not any(naming.write_fused.values())
    for model_format, spell in SPELLINGS.items():
        expected = {spell(path, native) for native, path in layers.items()}
        assert naming.written(model_format) == expected, model_format
        # nobody knows bare native names, OneTrainer apart
        assert (expected <= naming.comfy) == (model_format != ModelFormat.ORIGINAL_LORA)
        assert {split_key(key)[0] for key in rank_one_keys(standard, model_format)} == expected, model_format
    assert naming.comfy == set().union(*(comfy_names(path, native) for native, path in layers.items()))


def test_names_of_other_trainers_are_read(standard):
    for native, path in native_layers(standard.components["transformer"]).items():
        others = {f"{start}.{name}" for start in ("base_model.model", "lora_transformer") for name in (path, native)}
        others |= {f"lora_transformer_{flat(path)}", f"lora_unet_{flat(path)}", native}
        for name in comfy_names(path, native) | others:
            assert standard.naming.read[name] == ("transformer", path)


def test_keys_against_diffusers_converters(standard):
    """It takes native names of LoRA, without alphas; and those of a whole transformer."""
    ours = {key: tensor for key, tensor in rank_one_keys(standard, ModelFormat.COMFY_LORA).items() if "lora_" in key}
    converted = _convert_non_diffusers_krea2_lora_to_diffusers(ours)
    assert converted.keys() == {
        key for key in rank_one_keys(standard, ModelFormat.DIFFUSERS_LORA) if not key.endswith(".alpha")
    }  # fmt: skip
    transformer = standard.components["transformer"]
    state = convert_krea2_transformer_checkpoint_to_diffusers(native_tensors(transformer))
    assert len(state) == 430
    assert {key: tensor.shape for key, tensor in state.items()} == {
        key: tensor.shape for key, tensor in transformer.state_dict().items()
    }


@pytest.mark.parametrize("model_format", FORMATS)
def test_a_file_tells_its_model_by_its_sizes(tmp_path, full_size_models, standard, model_format):
    tells_its_model(tmp_path / "x", rank_one_keys(standard, ModelFormat(model_format)), full_size_models, standard)


@pytest.mark.parametrize(
    ("name", "count"), [("full", 264), ("blocks", 28 * 8), ("attn-mlp", 32 * 8), ("attn-only", 32 * 5)]
)
def test_onetrainer_s_filters(standard, name, count):
    """As its presets of this family have them."""
    filter_selects(Krea2Model, name, standard.components["transformer"], count)


# --- adapters with numbers in them


@pytest.fixture(scope="module")
def transformer(krea2_pipeline):
    return krea2_pipeline.transformer


# the others spell names alike, or flattened like kohya's
@pytest.mark.parametrize("model_format", ["COMFY_LORA", "KOHYA_LORA", "DIFFUSERS_LORA"])
@pytest.mark.parametrize("kind", ADAPTER_KINDS)
def test_every_kind_comes_back_from_every_format(tmp_path, transformer, kind, model_format):
    """No layers are joined, so that none is shut out."""
    naming = krea2_adapter_naming(transformer)
    # it has a single output, which can't be rotated
    comes_back_from(
        model_format,
        kind,
        transformer,
        naming,
        tmp_path / "x.safetensors",
        ["text_fusion.projector"] if kind == "OFT on outputs" else (),
    )


@pytest.mark.parametrize(("model_format", "kind"), COMFY_KINDS)
def test_comfy_makes_the_trained_weights_of_it(tmp_path, transformer, kind, model_format):
    adapters = trained_adapters(transformer, kind)
    file = written(adapters, krea2_adapter_naming(transformer), ModelFormat(model_format), tmp_path / "x")
    path_of = {name: path for native, path in native_layers(transformer).items() for name in comfy_names(path, native)}
    comfy_makes_the_trained_weights(file, path_of, transformer, adapters, kind)


def inputs() -> dict:
    generator = torch.Generator().manual_seed(2)
    return {
        "hidden_states": torch.randn(2, 6, 16, generator=generator),
        "timestep": torch.tensor([0.7, 0.1]),
        "encoder_hidden_states": torch.randn(2, 5, 2, 16, generator=generator),
        "position_ids": torch.randint(0, 4, (11, 3), generator=generator),
        "return_dict": False,
    }


@torch.no_grad()
@pytest.mark.parametrize("kind", ["LoRA", "DoRA on outputs"])
def test_diffusers_loads_the_file(tmp_path, transformer, krea2_folder, kind):
    adapters, path = trained_adapters(transformer, kind), tmp_path / "adapter.safetensors"
    written(adapters, krea2_adapter_naming(transformer), ModelFormat.DIFFUSERS_LORA, path)
    diffusers_computes_the_same(lambda own: own(**inputs())[0], transformer, adapters, krea2_folder, path)
