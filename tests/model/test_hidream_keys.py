"""How adapter files call HiDream's layers: every key against ComfyUI's map and diffusers, and what they make of it.

ComfyUI's map was read from its code and is written down once more. It knows the transformer's names, which are those of
diffusers, after `diffusion_model.` and `transformer.`, and flattened after `lora_unet_` and `lycoris_`.
"""

from modules.model.hidream_keys import hidream_adapter_naming
from modules.model.HiDreamModel import HiDreamModel
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
from diffusers.loaders.lora_conversion_utils import _convert_non_diffusers_hidream_lora_to_diffusers

SPELLINGS = {
    ModelFormat.KOHYA_LORA: lambda path: f"lora_unet_{flat(path)}",
    ModelFormat.SAFETENSORS: lambda path: f"lora_unet_{flat(path)}",
    ModelFormat.COMFY_LORA: lambda path: f"diffusion_model.{path}",
    ModelFormat.ORIGINAL_LORA: lambda path: path,
    ModelFormat.DIFFUSERS_LORA: lambda path: f"transformer.{path}",
    ModelFormat.LEGACY_LORA: lambda path: f"transformer.{path}",
    ModelFormat.INTERNAL: lambda path: f"transformer.{path}",
}
"""Format -> how it spells a layer."""
FORMATS = [str(model_format) for model_format in SPELLINGS]
ATTENTION = ["attn1.to_q", "attn1.to_k", "attn1.to_v", "attn1.to_out"]
FEED_FORWARD = ["w1", "w2", "w3"]


def layers_of_block(double: bool, count: int) -> list[str]:
    """As in the original code."""
    experts = [f"ff_i.experts.{number}.{name}" for number in range(count) for name in FEED_FORWARD]
    image = ["adaLN_modulation.1", *ATTENTION, *experts, *(f"ff_i.shared_experts.{name}" for name in FEED_FORWARD)]
    text = [*(f"{name}_t" for name in ATTENTION), *(f"ff_t.{name}" for name in FEED_FORWARD)]
    return [f"block.{name}" for name in (*image, *(text if double else []))]


def all_layers(double: int, single: int, experts: int = 4) -> list[str]:
    paths = [f"{name}.linear_{number}" for name in ("t_embedder.timestep_embedder", "p_embedder.pooled_embedder")
             for number in (1, 2)]  # fmt: skip
    paths += ["x_embedder.proj", "final_layer.linear", "final_layer.adaLN_modulation.1"]
    paths += [f"caption_projection.{number}.linear" for number in range(double + single + 1)]
    for name, count in (("double", double), ("single", single)):
        paths += [f"{name}_stream_blocks.{number}.{layer}" for number in range(count)
                  for layer in layers_of_block(name == "double", experts)]  # fmt: skip
    return paths


@pytest.fixture(scope="module")
def standard(full_size_models) -> ReferenceModel:
    return next(model for model in full_size_models if model.name == "HiDream-I1")


def keys(model: ReferenceModel, model_format: ModelFormat, component: str = "transformer") -> dict[str, Tensor]:
    """The tensors of an adapter of rank 1 on all layers of a component."""
    module, parts = model.components[component], {}
    for path in layer_paths(module):
        layer = module.get_submodule(path)
        parts[path] = {"lora_down.weight": torch.zeros(1, layer.in_features),
                       "lora_up.weight": torch.zeros(layer.out_features, 1)}  # fmt: skip
    return encode_adapter({component: parts}, model_format, model.naming, DataType.FLOAT_32)


def comfy_names(path: str) -> set[str]:
    return {f"diffusion_model.{path}", f"transformer.{path}", f"lora_unet_{flat(path)}", f"lycoris_{flat(path)}"}


def test_every_key_is_one_that_readers_know(standard):
    """Those of the experts, too."""
    transformer, naming, layers = standard.components["transformer"], standard.naming, all_layers(16, 32)
    assert sum(tensor.numel() for tensor in transformer.parameters()) == 17_105_733_184
    assert len(layers) == 16 * 27 + 32 * 20 + 49 + 7 and set(layers) == set(layer_paths(transformer))
    assert SPELLINGS.keys() == naming.write.keys() and not any(naming.write_fused.values())
    for model_format, spell in SPELLINGS.items():
        expected = {spell(path) for path in layers}
        assert {split_key(key)[0] for key in keys(standard, model_format)} == expected, model_format
        # nobody knows bare names
        assert (expected <= naming.comfy) == (model_format != ModelFormat.ORIGINAL_LORA)
    of_texts = {name for name in naming.comfy if name.startswith(("text_encoder", "lora_te"))}
    assert naming.comfy - of_texts == set().union(*map(comfy_names, layers))


def test_text_encoders_have_the_names_of_comfyui(standard):
    """Its HiDream has clip_l, clip_g and t5xxl, as its Stable Diffusion 3 has."""
    assert list(standard.components) == ["transformer", "text_encoder", "text_encoder_2", "text_encoder_3"]
    starts = {"text_encoder": "clip_l", "text_encoder_2": "clip_g", "text_encoder_3": "t5xxl"}
    for number, (component, name) in enumerate(starts.items(), 1):
        comfy = {split_key(key)[0] for key in keys(standard, ModelFormat.COMFY_LORA, component)}
        kohya = {split_key(key)[0] for key in keys(standard, ModelFormat.KOHYA_LORA, component)}
        assert all(key.startswith(f"text_encoders.{name}.transformer.") for key in comfy)
        assert all(key.startswith(f"lora_te{number}_") for key in kohya)
        assert comfy | kohya <= standard.naming.comfy and len(comfy) == len(kohya) > 70


def test_names_of_other_trainers_are_read(standard):
    for path in all_layers(16, 32):
        others = {path, f"base_model.model.{path}", f"lora_transformer.{path}", f"lora_transformer_{flat(path)}"}
        for name in comfy_names(path) | others:
            assert standard.naming.read[name] == ("transformer", path)


def test_keys_against_diffusers_converter(standard):
    """It takes names after `diffusion_model.`, without alphas."""
    ours = {key: tensor for key, tensor in keys(standard, ModelFormat.COMFY_LORA).items() if "lora_" in key}
    assert _convert_non_diffusers_hidream_lora_to_diffusers(ours).keys() == {
        key for key in keys(standard, ModelFormat.DIFFUSERS_LORA) if not key.endswith(".alpha")
    }


@pytest.mark.parametrize("model_format", ["COMFY_LORA", "KOHYA_LORA"])
def test_a_file_tells_its_model_by_its_sizes(tmp_path, full_size_models, standard, model_format):
    tells_its_model(tmp_path / "x", keys(standard, ModelFormat(model_format)), full_size_models, standard)


@pytest.mark.parametrize(
    ("name", "count"),
    [("full", 1128), ("blocks", 16 * 27 + 32 * 20), ("attn-mlp", 16 * 23 + 32 * 19), ("attn-only", 16 * 8 + 32 * 4)],
)
def test_onetrainer_s_filters(standard, name, count):
    """As its presets of this family have them."""
    filter_selects(HiDreamModel, name, standard.components["transformer"], count)


def test_a_planned_model_has_every_kind_of_layer(standard):
    def kinds(names) -> set[str]:
        return {"".join(letter for letter in name if not letter.isdigit()) for name in names}

    for model_format, table in standard.naming.write.items():
        assert kinds(table.values()) == kinds(HiDreamModel.planned_naming().write[model_format].values())


# --- adapters with numbers in them


@pytest.fixture(scope="module")
def transformer(hidream_pipeline):
    return hidream_pipeline.transformer


# the others spell names alike, or flattened like kohya's
@pytest.mark.parametrize("model_format", ["COMFY_LORA", "KOHYA_LORA", "DIFFUSERS_LORA"])
@pytest.mark.parametrize("kind", ADAPTER_KINDS)
def test_every_kind_comes_back_from_every_format(tmp_path, transformer, kind, model_format):
    """No layers are joined, so that none is shut out."""
    naming = hidream_adapter_naming(transformer, {})
    comes_back_from(model_format, kind, transformer, naming, tmp_path / "x.safetensors")


@pytest.mark.parametrize(("model_format", "kind"), COMFY_KINDS)
def test_comfy_makes_the_trained_weights_of_it(tmp_path, transformer, kind, model_format):
    adapters = trained_adapters(transformer, kind)
    file = written(adapters, hidream_adapter_naming(transformer, {}), ModelFormat(model_format), tmp_path / "x")
    path_of = {name: path for path in all_layers(1, 1, 3) for name in comfy_names(path)}
    comfy_makes_the_trained_weights(file, path_of, transformer, adapters, kind)


def answer(transformer: torch.nn.Module) -> Tensor:
    generator = torch.Generator().manual_seed(2)
    latents, hidden, states, pooled = (
        torch.randn(sides, generator=generator) for sides in ((2, 4, 4, 4), (2, 5, 16), (3, 2, 5, 16), (2, 48))
    )
    return transformer(
        latents, timesteps=torch.tensor([700.0, 100.0]), encoder_hidden_states_t5=hidden,
        encoder_hidden_states_llama3=states, pooled_embeds=pooled, return_dict=False,
    )[0]  # fmt: skip


@pytest.mark.parametrize("kind", ["LoRA", "DoRA on outputs"])
def test_diffusers_loads_the_file(tmp_path, transformer, hidream_folder, kind):
    adapters, path = trained_adapters(transformer, kind), tmp_path / "adapter.safetensors"
    written(adapters, hidream_adapter_naming(transformer, {}), ModelFormat.DIFFUSERS_LORA, path)
    diffusers_computes_the_same(answer, transformer, adapters, hidream_folder, path)
