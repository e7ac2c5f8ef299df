"""How adapter files call the layers of Ideogram 4: every key against ComfyUI's map and diffusers, and what they make of
it.

ComfyUI's map was read from its code (August 2026), and has nothing of its own for this model: every native name after
`diffusion_model.`, and flattened after `lora_unet_`. Queries, keys and values are one layer there, and no name stands
for a share of it.
"""

from functools import partial

from modules.model.ideogram_keys import ideogram_adapter_naming
from modules.model.IdeogramModel import IdeogramModel
from modules.model.unet_keys import flat, layer_paths
from modules.modelSaver.adapter_layout import split_key
from modules.modelSaver.save_adapter import check_joins
from modules.util.enum.ModelFormat import ModelFormat
from modules.util.LayerFilter import LayerFilter
from modules.util.ReferenceModel import ReferenceModel
from modules.util.UserError import UserError
from tests.model.ideogram_base import native_layers, native_tensors
from tests.model.key_checks import (
    comes_back,
    comfy_makes_the_trained_weights,
    diffusers_computes_the_same,
    filter_selects,
    kind_of,
    rank_one_keys,
    tells_its_model,
    trained_adapters,
    written,
)

import torch

import pytest
from diffusers import DiffusionPipeline
from diffusers.loaders.lora_conversion_utils import _convert_non_diffusers_ideogram4_lora_to_diffusers

NATIVE = {
    ModelFormat.KOHYA_LORA: lambda native: f"lora_unet_{flat(native)}",
    ModelFormat.SAFETENSORS: lambda native: f"lora_unet_{flat(native)}",
    ModelFormat.COMFY_LORA: lambda native: f"diffusion_model.{native}",
    ModelFormat.ORIGINAL_LORA: lambda native: native,
}
SPLIT = [ModelFormat(name) for name in ("DIFFUSERS_LORA", "LEGACY_LORA", "INTERNAL")]
JOINED_KINDS = ("LoRA", "DoRA on outputs", "LoHa", "OFT on outputs")
APART_KINDS = ("DoRA on inputs", "LoKr", "OFT")


@pytest.fixture(scope="module")
def standard(full_size_models) -> ReferenceModel:
    return next(model for model in full_size_models if model.name == "Ideogram 4")


def test_every_key_is_one_that_readers_know(standard):
    transformer, naming = standard.components["transformer"], standard.naming
    native = native_layers(transformer)
    paths = set(layer_paths(transformer))
    # 34 blocks of six layers, and seven outside; the published file in 8 bits has 880 tensors, two more for each layer
    assert len(native) == 34 * 6 + 7 and len(native_tensors(transformer)) + 2 * len(native) == 880
    assert {path for members in native.values() for path in members} == paths
    assert naming.write.keys() == {*NATIVE, *SPLIT} and not naming.write_apart
    for model_format, spell in NATIVE.items():
        expected = set(map(spell, native))
        assert naming.written(model_format) == expected
        assert {split_key(key)[0] for key in rank_one_keys(standard, model_format)} == expected, model_format
        # nobody knows bare native names, diffusers apart
        assert (expected <= naming.comfy) == (model_format != ModelFormat.ORIGINAL_LORA)
    for model_format in SPLIT:
        assert naming.written(model_format) == {f"transformer.{path}" for path in paths}
    assert naming.comfy == {spell(name) for name in native for spell in (NATIVE["COMFY_LORA"], NATIVE["KOHYA_LORA"])}


def test_names_of_other_trainers_are_read(standard):
    starts = ("", "diffusion_model.", "transformer.", "conditional_transformer.", "base_model.model.", "lora_unet_")
    for native, paths in native_layers(standard.components["transformer"]).items():
        for start in starts:
            name = start + (flat(native) if start.endswith("_") else native)
            found = standard.naming.fused[name].layers if len(paths) > 1 else (standard.naming.read[name],)
            assert found == tuple(("transformer", path) for path in paths), name
            for path in paths:
                name = start + (flat(path) if start.endswith("_") else path)
                assert standard.naming.read[name] == ("transformer", path)


def test_keys_against_diffusers_converter(standard):
    """It knows the layers of blocks, and refuses files with others."""
    paths = [path for path in layer_paths(standard.components["transformer"]) if path.startswith("layers.")]
    expected = rank_one_keys(standard, ModelFormat.DIFFUSERS_LORA, paths)
    for model_format in ("COMFY_LORA", "ORIGINAL_LORA"):
        ours = {
            key: tensor
            for key, tensor in rank_one_keys(standard, ModelFormat(model_format), paths).items()
            if "lora" in key
        }
        converted = _convert_non_diffusers_ideogram4_lora_to_diffusers(ours)
        assert converted.keys() == {key for key in expected if not key.endswith(".alpha")}


@pytest.mark.parametrize("model_format", [*NATIVE, *SPLIT])
def test_a_file_tells_its_model_by_its_sizes(tmp_path, full_size_models, standard, model_format):
    paths = [path for path in layer_paths(standard.components["transformer"]) if ".3." in path]
    tells_its_model(tmp_path / "x", rank_one_keys(standard, model_format, paths), full_size_models, standard)


@pytest.mark.parametrize(
    ("name", "count"), [("full", 34 * 8 + 7), ("blocks", 34 * 8), ("attn-mlp", 34 * 7), ("attn-only", 34 * 4)]
)
def test_onetrainer_s_filters(standard, name, count):
    """As its presets of this family have them."""
    filter_selects(IdeogramModel, name, standard.components["transformer"], count)


# --- adapters with numbers in them


@pytest.fixture(scope="module")
def transformer(ideogram_pipeline):
    return ideogram_pipeline.transformer


@pytest.mark.parametrize("kind", [*JOINED_KINDS, *APART_KINDS])
def test_every_kind_comes_back_or_is_refused(tmp_path, transformer, kind):
    """What can't be joined exactly has the formats of diffusers alone; some layers of a joined one are enough."""
    adapters, naming = trained_adapters(transformer, kind), ideogram_adapter_naming(transformer)
    for model_format in [*NATIVE, *SPLIT]:
        path = tmp_path / f"{model_format}.safetensors"
        if model_format in NATIVE and kind in APART_KINDS:
            with pytest.raises(UserError, match="can't be joined exactly. Choose one of (DIFFUSERS|LEGACY)_LORA"):
                check_joins(model_format, naming, kind_of(adapters), lambda _: True)
        elif model_format == ModelFormat.DIFFUSERS_LORA and kind not in ("LoRA", "DoRA on outputs"):
            with pytest.raises(UserError, match="diffusers loads only LoRA and DoRA on outputs"):
                written(adapters, naming, model_format, path)
        else:
            check_joins(model_format, naming, kind_of(adapters), lambda _: True)
            written(adapters, naming, model_format, path)
            comes_back(path, naming, transformer, adapters)


# only ComfyUI's own format is adjusted for its DoRA on outputs
@pytest.mark.parametrize(
    ("model_format", "kind"),
    [("COMFY_LORA", kind) for kind in JOINED_KINDS]
    + [("KOHYA_LORA", kind) for kind in JOINED_KINDS if kind != "DoRA on outputs"],
)
def test_comfy_makes_the_trained_weights_of_it(tmp_path, transformer, kind, model_format):
    adapters = trained_adapters(transformer, kind)
    file = written(adapters, ideogram_adapter_naming(transformer), model_format, tmp_path / "x")
    layers = native_layers(transformer).items()
    stands_for = {NATIVE[ModelFormat(model_format)](native): tuple(paths) for native, paths in layers}
    comfy_makes_the_trained_weights(file, stands_for, transformer, adapters, kind)


def inputs() -> dict:
    generator = torch.Generator().manual_seed(2)
    roles = torch.tensor([[3] * 4 + [2] * 6, [0, 3, 3, 3] + [2] * 6])
    return {
        "hidden_states": torch.randn(2, 10, 16, generator=generator),
        "timestep": torch.tensor([0.7, 0.1]),
        "encoder_hidden_states": torch.randn(2, 10, 13 * 16, generator=generator),
        "position_ids": torch.randint(0, 4, (2, 10, 3), generator=generator),
        "segment_ids": torch.where(roles == 0, -1, 1),
        "indicator": roles,
        "return_dict": False,
    }


@pytest.mark.parametrize(
    ("model_format", "kind"),
    [("DIFFUSERS_LORA", "DoRA on outputs"), ("DIFFUSERS_LORA", "LoRA"), ("COMFY_LORA", "LoRA")],
)
def test_diffusers_loads_the_file(tmp_path, transformer, ideogram_folder, model_format, kind):
    """Its converter of native names knows the layers of blocks."""
    layers = LayerFilter(("layers",)) if model_format != "DIFFUSERS_LORA" else None
    adapters, path = trained_adapters(transformer, kind, layers), tmp_path / "adapter.safetensors"
    written(adapters, ideogram_adapter_naming(transformer), model_format, path)
    bare = partial(DiffusionPipeline.from_pretrained, text_encoder=None, tokenizer=None)
    diffusers_computes_the_same(
        lambda own: own(**inputs())[0][:, 4:], transformer, adapters, ideogram_folder, path, bare
    )
