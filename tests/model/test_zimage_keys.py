"""How adapter files call Z-Image's layers: every key against ComfyUI's map and diffusers, and what they make of it.

ComfyUI's map was read from its code (May 2026) and is written down once more: every native name after
`diffusion_model.`, and flattened after `lora_unet_`; every name of diffusers bare, after `diffusion_model.` and
`transformer.`, and flattened after `lycoris_`, of queries, keys and values as well.
"""

from functools import cache

from modules.model.reference_naming import ReferenceModel
from modules.model.unet_keys import flat, layer_paths
from modules.model.zimage_keys import native_tensor, zimage_adapter_naming
from modules.model.ZImageModel import ZImageModel
from modules.modelSaver.adapter_layout import split_key
from modules.modelSaver.adapter_metadata import AdapterDescription
from modules.modelSaver.AdapterFile import read_adapter
from modules.modelSaver.convert import find_reference
from modules.modelSaver.save_adapter import check_joins, encode_adapter, kind_of_components, save_adapter
from modules.module.AdapterSet import AdapterSet
from modules.util.config.TrainConfig import TrainConfig
from modules.util.enum.DataType import DataType
from modules.util.enum.ModelFormat import ModelFormat
from modules.util.LayerFilter import LayerFilter
from modules.util.UserError import UserError
from tests.adapters import disturb
from tests.model.key_checks import comes_back
from tests.model.test_flux2_comfy import product
from tests.model.zimage_base import comfy_layers

import torch
from torch import Tensor

import pytest
from diffusers import DiffusionPipeline
from diffusers.loaders.lora_conversion_utils import _convert_non_diffusers_z_image_lora_to_diffusers
from safetensors.torch import load_file, save_file

JOINED = [ModelFormat.KOHYA_LORA, ModelFormat.SAFETENSORS]
SPLIT = [ModelFormat(name) for name in ("COMFY_LORA", "ORIGINAL_LORA", "DIFFUSERS_LORA", "LEGACY_LORA", "INTERNAL")]
LOW_RANK = {"lora_rank": 3, "lora_alpha": 5.0}
OUTPUTS = {"lora_decompose": True, "lora_decompose_output_axis": True}
# these can be joined, the others can't
KINDS = {
    "LoRA": LOW_RANK,
    "DoRA on outputs": LOW_RANK | OUTPUTS,
    "LoHa": {"peft_type": "LOHA", "lora_rank": 2, "lora_alpha": 3.0},
    "OFT on outputs": {"peft_type": "OFT_2", "oft_side": "OUTPUT", "oft_block_size": 8},
}
APART = {
    "DoRA on inputs": LOW_RANK | {"lora_decompose": True},
    "OFT": {"peft_type": "OFT_2", "oft_block_size": 8},
    "LoKr": {"peft_type": "LOKR", "lora_alpha": 3.0, "lokr_dim": 2},
}


@pytest.fixture(scope="module")
def standard(full_size_models) -> ReferenceModel:
    return next(model for model in full_size_models if model.name == "Z-Image")


@cache
def linear_layers(transformer: torch.nn.Module) -> dict[str, list[str]]:
    """Native layer -> those of diffusers, without norms."""
    layers = set(layer_paths(transformer))
    return {native: paths for native, paths in comfy_layers(transformer).items() if paths[0] in layers}


def comfy_names(transformer: torch.nn.Module) -> dict[str, tuple[str, int | None]]:
    """ComfyUI's map: name in a file -> native layer, and which third of its rows (None: all of them)."""
    names: dict[str, tuple[str, int | None]] = {}
    for native, paths in linear_layers(transformer).items():
        names |= dict.fromkeys((f"diffusion_model.{native}", f"lora_unet_{flat(native)}"), (native, None))
        for third, path in enumerate(paths):
            place = native, third if len(paths) == 3 else None
            names |= dict.fromkeys(
                (path, f"diffusion_model.{path}", f"transformer.{path}", f"lycoris_{flat(path)}"), place
            )
    return names


def keys(model: ReferenceModel, model_format: ModelFormat, start: str = "") -> dict[str, Tensor]:
    """The tensors of an adapter of rank 1 on every layer whose path starts so."""
    transformer, parts = model.components["transformer"], {}
    for path in (path for path in layer_paths(transformer) if path.startswith(start)):
        layer = transformer.get_submodule(path)
        parts[path] = {"lora_down.weight": torch.zeros(1, layer.in_features),
                       "lora_up.weight": torch.zeros(layer.out_features, 1)}  # fmt: skip
    return encode_adapter({"transformer": parts}, model_format, model.naming, DataType.FLOAT_32)


def test_sizes_are_those_of_the_published_model(standard):
    transformer = standard.components["transformer"]
    assert sum(tensor.numel() for tensor in transformer.parameters()) == 6_154_908_736
    # of the published files: in diffusers' layout, and in ComfyUI's
    assert len(transformer.state_dict()) == 521
    assert len({native_tensor(name).name for name in transformer.state_dict()}) == 453


def test_every_key_is_one_that_readers_know(standard):
    transformer = standard.components["transformer"]
    native, known = linear_layers(transformer), comfy_names(transformer)
    paths = [path for members in native.values() for path in members]
    assert sorted(paths) == sorted(layer_paths(transformer)) and len(paths) == 276
    expected = {
        ModelFormat.KOHYA_LORA: {f"lora_unet_{flat(name)}" for name in native},
        ModelFormat.SAFETENSORS: {f"lora_unet_{flat(name)}" for name in native},
        ModelFormat.COMFY_LORA: {f"diffusion_model.{path}" for path in paths},
        ModelFormat.ORIGINAL_LORA: set(paths),
        # as diffusers' own savers, and OneTrainer's older files, have them
        ModelFormat.DIFFUSERS_LORA: {f"transformer.{path}" for path in paths},
        ModelFormat.LEGACY_LORA: {f"transformer.{path}" for path in paths},
        ModelFormat.INTERNAL: {f"transformer.{path}" for path in paths},
    }
    assert expected.keys() == {*JOINED, *SPLIT} == standard.naming.write.keys()
    for model_format, layers in expected.items():
        found = {split_key(key)[0] for key in keys(standard, model_format)}
        assert found == layers and found <= known.keys(), model_format
    assert standard.naming.comfy == known.keys()


def test_native_names_stand_for_the_right_layers(standard):
    for name, (native, third) in comfy_names(standard.components["transformer"]).items():
        paths = linear_layers(standard.components["transformer"])[native]
        group = standard.naming.fused.get(name)
        found = [standard.naming.read[name]] if group is None else list(group.layers)
        assert found == [("transformer", path) for path in (paths if third is None else [paths[third]])]


def test_names_of_other_trainers_are_read(standard):
    """musubi-tuner and OneTrainer flatten the layers apart, which ComfyUI does not know."""
    for path in layer_paths(standard.components["transformer"]):
        for name in (f"lora_unet_{flat(path)}", f"lora_transformer_{flat(path)}", f"base_model.model.{path}"):
            assert standard.naming.read[name] == ("transformer", path)


def test_comfy_s_keys_against_diffusers_converter(standard):
    converted = _convert_non_diffusers_z_image_lora_to_diffusers(dict(keys(standard, ModelFormat.COMFY_LORA)))
    expected = keys(standard, ModelFormat.DIFFUSERS_LORA)
    assert converted.keys() == {key for key in expected if not key.endswith(".alpha")}


@pytest.mark.parametrize("model_format", [*JOINED, *SPLIT])
def test_a_file_tells_its_model_by_its_sizes(tmp_path, full_size_models, standard, model_format):
    save_file(keys(standard, model_format, "layers.3."), tmp_path / "x")
    assert find_reference(read_adapter(tmp_path / "x"), full_size_models) is standard


@pytest.mark.parametrize(
    ("name", "count"), [("full", 276), ("blocks", 30 * 8), ("attn-mlp", 30 * 7), ("attn-only", 30 * 4)]
)
def test_onetrainer_s_filters(standard, name, count):
    """As its presets of this family have them."""
    patterns = ZImageModel.layer_filter_presets[name]
    config = TrainConfig.from_dict({
        "layer_filter": ",".join(patterns), "layer_filter_preset": name, "layer_filter_regex": "attn" in name
    })  # fmt: skip
    chosen, paths = (
        LayerFilter.from_config(config, ZImageModel.layer_filter_presets),
        layer_paths(standard.components["transformer"]),
    )
    assert not chosen.notes and len(chosen.select(paths, "transformer")) == count


def test_a_layer_of_another_model_has_no_native_name():
    for path in ("transformer_blocks.0.attn.to_q", "siglip_embedder.1", "time_embed.linear_1"):
        with pytest.raises(ValueError, match=path):
            native_tensor(path)


# --- adapters with numbers in them


@pytest.fixture(scope="module")
def transformer(zimage_pipeline):
    return zimage_pipeline.transformer


def trained(transformer, options: dict, layers: LayerFilter | None = None) -> AdapterSet:
    return disturb(AdapterSet("transformer", transformer, TrainConfig.from_dict(options), layers or LayerFilter()), 1)


def written(adapters: AdapterSet, transformer, model_format: ModelFormat, path) -> dict[str, Tensor]:
    naming = zimage_adapter_naming(transformer)
    save_adapter(path, {"transformer": adapters}, model_format, naming, AdapterDescription())
    return load_file(path)


@pytest.mark.parametrize("model_format", [*JOINED, *SPLIT])
@pytest.mark.parametrize("kind", [*KINDS, *APART])
def test_split_and_joined_exactly(tmp_path, transformer, kind, model_format):
    adapters, naming = trained(transformer, (KINDS | APART)[kind]), zimage_adapter_naming(transformer)
    adapter_kind, path = kind_of_components({"transformer": adapters.layers()}), tmp_path / "adapter.safetensors"
    if kind in APART and model_format in JOINED:
        with pytest.raises(UserError, match=r"to_q, .*to_k, .*to_v as one layer.*COMFY_LORA"):
            check_joins(model_format, naming, adapter_kind, lambda _: True)
        return
    check_joins(model_format, naming, adapter_kind, lambda _: True)
    if model_format == ModelFormat.DIFFUSERS_LORA and kind not in ("LoRA", "DoRA on outputs"):
        with pytest.raises(UserError, match="diffusers loads only LoRA and DoRA on outputs"):
            written(adapters, transformer, model_format, path)
        return
    written(adapters, transformer, model_format, path)
    comes_back(path, naming, transformer, adapters)


def changed(parts: dict[str, Tensor], weight: Tensor) -> Tensor:
    """A weight with an adapter in it, by the formulas that ComfyUI has for these parts."""
    if "oft_blocks" in parts:
        skew = parts["oft_blocks"] - parts["oft_blocks"].transpose(1, 2)
        eye = torch.eye(skew.shape[1])
        blocks = weight.reshape(len(skew), skew.shape[1], -1)
        rotation = (eye + skew) @ torch.linalg.inv(eye - skew)
        return (rotation.transpose(1, 2) @ blocks).reshape(weight.shape)
    if "hada_w1_a" in parts:
        scale = parts["alpha"] / parts["hada_w1_b"].shape[0]
        return weight + scale * (parts["hada_w1_a"] @ parts["hada_w1_b"]) * (parts["hada_w2_a"] @ parts["hada_w2_b"])
    if "lora_up.weight" in parts:
        parts = parts | {"lora_A.weight": parts["lora_down.weight"], "lora_B.weight": parts["lora_up.weight"]}
    new, lengths = weight + product(parts, weight.shape), parts.get("dora_scale")
    if lengths is None:
        return new
    if lengths.shape[0] == len(weight):  # by the base's norm
        return new * lengths / weight.norm(dim=1, keepdim=True)
    return new * lengths / new.norm(dim=0, keepdim=True)


# rotations of inputs are no kind of stock ComfyUI, and only its own format is adjusted for its DoRA on outputs
@pytest.mark.parametrize(
    ("model_format", "kind"),
    [("COMFY_LORA", kind) for kind in KINDS | APART if kind != "OFT"]
    + [("KOHYA_LORA", kind) for kind in KINDS if kind != "DoRA on outputs"],
)
@pytest.mark.parametrize("chosen", [LayerFilter(), LayerFilter(("to_k", "feed_forward"))])
def test_comfy_makes_the_trained_weights_of_it(tmp_path, transformer, kind, model_format, chosen):
    adapters = trained(transformer, (KINDS | APART)[kind], chosen)
    file, names = written(adapters, transformer, ModelFormat(model_format), tmp_path / "x"), comfy_names(transformer)
    layers: dict[str, dict[str, Tensor]] = {}
    for key, tensor in file.items():
        name, part = split_key(key)
        layers.setdefault(name, {})[part] = tensor
    weights = {}
    for native, paths in linear_layers(transformer).items():
        weights[native] = torch.cat([transformer.get_submodule(path).weight.detach() for path in paths])
    for name, parts in layers.items():
        native, third = names[name]
        rows = weights[native] if third is None else weights[native].chunk(3)[third]
        rows.copy_(changed(parts, rows))
    for native, paths in linear_layers(transformer).items():
        pieces = weights[native].chunk(len(paths))
        for path, piece in zip(paths, pieces, strict=True):
            own = adapters.adapters.get(path)
            expected = 0 if own is None else own.merged_delta()
            # float32 roundings of weights of size 1
            torch.testing.assert_close(
                piece, transformer.get_submodule(path).weight.detach() + expected, atol=5e-6, rtol=1e-5
            )


def inputs() -> dict:
    generator = torch.Generator().manual_seed(2)
    return {
        "x": list(torch.randn(2, 4, 1, 4, 6, generator=generator)),
        "t": torch.tensor([0.7, 0.1]),
        "cap_feats": [torch.randn(length, 16, generator=generator) for length in (5, 9)],
        "return_dict": False,
    }


@pytest.mark.parametrize(
    ("model_format", "kind"),
    [("DIFFUSERS_LORA", "LoRA"), ("DIFFUSERS_LORA", "DoRA on outputs"), ("COMFY_LORA", "LoRA"), ("COMFY_LORA", "LoKr"),
     ("ORIGINAL_LORA", "LoRA")],
)  # fmt: skip
def test_diffusers_loads_the_file(tmp_path, transformer, zimage_folder, model_format, kind):
    adapters, path = trained(transformer, (KINDS | APART)[kind]), tmp_path / "adapter.safetensors"
    written(adapters, transformer, ModelFormat(model_format), path)
    with torch.no_grad():
        plain = torch.stack(transformer(**inputs())[0])
        adapters.eval().hook()
        try:
            hooked = torch.stack(transformer(**inputs())[0])
        finally:
            adapters.unhook()
        assert (hooked - plain).abs().max() > 0.1
        pipeline = DiffusionPipeline.from_pretrained(zimage_folder)
        pipeline.load_lora_weights(str(path))
        # sums in another order, in float32, of numbers of size 1
        torch.testing.assert_close(torch.stack(pipeline.transformer(**inputs())[0]), hooked, atol=1e-4, rtol=1e-4)
