"""How adapter files call the layers of PixArt, and what ComfyUI and peft make of such files.

The original layout is written down in pixart_base.py, ComfyUI's key map here, from its source: it knows each native
layer by its name, and each layer of diffusers by that, also as a slice of a fused one. diffusers loads no adapters of
PixArt; peft does.
"""

import copy
from functools import cache

from modules.model.pixart_keys import PIXART_LAYOUT, pixart_adapter_naming
from modules.model.PixArtModel import PixArtModel
from modules.model.StandardSource import StandardSource
from modules.model.unet_keys import layer_paths
from modules.modelSaver.adapter_layout import split_key
from modules.modelSaver.adapter_metadata import AdapterDescription
from modules.modelSaver.AdapterFile import read_adapter
from modules.modelSaver.convert import find_reference
from modules.modelSaver.save_adapter import check_joins, encode_adapter, kind_of_components, save_adapter
from modules.module.AdapterSet import AdapterSet
from modules.util.config.TrainConfig import TrainConfig
from modules.util.enum.DataType import DataType
from modules.util.enum.ModelFormat import ModelFormat
from modules.util.enum.ModelType import ModelType
from modules.util.LayerFilter import LayerFilter
from modules.util.ReferenceModel import ReferenceModel
from modules.util.UserError import UserError
from tests.adapters import disturb
from tests.model.key_checks import ADAPTER_KINDS, comes_back, filter_selects
from tests.model.pixart_base import TYPES, native_layers
from tests.model.test_flux1_keys import ALONE, APART, KINDS, NATIVE, spelled
from tests.model.test_flux2_comfy import delta

import torch
from torch import Tensor, nn

import pytest
from peft import LoraConfig, inject_adapter_in_model, set_peft_model_state_dict
from safetensors.torch import load_file, save_file

# as published: 0.6 billion
SIZES = {"alpha": 611_349_152, "sigma": 610_856_096}
FORMATS = ("KOHYA_LORA", "COMFY_LORA", "DIFFUSERS_LORA", "ORIGINAL_LORA", "LEGACY_LORA", "INTERNAL")


@cache
def full_models() -> dict:
    """name -> a full-size model on the meta device."""
    found, encoder = {}, None
    for name in SIZES:
        source = StandardSource(ModelType(TYPES[name]))
        # the same in both
        encoder = encoder or source.empty("text_encoder")
        components = {"transformer": source.empty("transformer"), "text_encoder": encoder}
        naming = pixart_adapter_naming(components["transformer"], {"text_encoder": encoder})
        found[name] = ReferenceModel(name, components, naming)
    return found


@pytest.fixture(scope="module", params=SIZES)
def standard(request):
    return full_models()[request.param]


@pytest.fixture(params=SIZES)
def transformer(request, pixart_pipelines):
    return pixart_pipelines[request.param].transformer


def layers_in(model, component: str, model_format: ModelFormat) -> set[str]:
    """The layers of a file with an adapter of rank 1 on every layer of a component."""
    module, parts = model.components[component], {}
    for path in layer_paths(module):
        rows = len(module.get_submodule(path).weight)
        parts[path] = {"lora_down.weight": torch.zeros(1, 1), "lora_up.weight": torch.zeros(rows, 1)}
    file = encode_adapter({component: parts}, model_format, model.naming, DataType.FLOAT_32)
    return {split_key(key)[0] for key in file}


def test_sizes_are_those_of_the_published_models(standard):
    assert sum(tensor.numel() for tensor in standard.components["transformer"].parameters()) == SIZES[standard.name]


def test_every_layer_has_a_key_that_readers_know(standard):
    transformer, comfy = standard.components["transformer"], standard.naming.comfy
    native = native_layers(transformer)
    paths = {path for members in native.values() for path in members}
    # 28 blocks of ten layers, and those outside
    assert paths == set(layer_paths(transformer)) and len(paths) == 280 + {"alpha": 11, "sigma": 7}[standard.name]
    for model_format, prefix in NATIVE.items():
        assert layers_in(standard, "transformer", model_format) == {spelled(prefix, name) for name in native}
    for model_format, prefix in APART.items():
        assert layers_in(standard, "transformer", model_format) == {spelled(prefix, path) for path in paths}
    # ComfyUI's map; it knows no names without a prefix, and no flattened ones of diffusers
    prefixes = ("transformer.", "base_model.model.", "unet.base_model.model.")
    expected = {spelled(prefix, path) for prefix in prefixes for path in paths}
    expected |= {spelled(prefix, name) for prefix in ("diffusion_model.", "lora_unet_") for name in native}
    of_text = {name for name in comfy if "encoder" in name}
    assert comfy - of_text == expected
    assert standard.naming.kernels == {("transformer", "pos_embed.proj"): 4}


def test_the_text_encoder_has_the_names_that_readers_know(standard):
    """T5 is the first encoder here; under text_encoder it is found by nobody but OneTrainer."""
    t5 = set(layer_paths(standard.components["text_encoder"]))
    assert len(t5) == 24 * 7
    for model_format, prefix in (
        (ModelFormat.COMFY_LORA, "text_encoders.t5xxl.transformer."), (ModelFormat.KOHYA_LORA, "lora_te1_"),
        (ModelFormat.LEGACY_LORA, "lora_te1_"), (ModelFormat.DIFFUSERS_LORA, "text_encoder."),
        (ModelFormat.INTERNAL, "text_encoder."),
    ):  # fmt: skip
        found = layers_in(standard, "text_encoder", model_format)
        assert found == {spelled(prefix, path) for path in t5}
        assert bool(found & standard.naming.comfy) == (prefix != "text_encoder.")


def test_native_names_stand_for_the_right_layers(standard):
    transformer = standard.components["transformer"]
    for native, paths in native_layers(transformer).items():
        assert {PIXART_LAYOUT.layer(path)[0] for path in paths} == {native}
        for prefix in ("", "diffusion_model.", "base_model.model.", "lora_unet_", "lycoris_"):
            name = spelled(prefix, native)
            group = standard.naming.fused.get(name)
            found = [standard.naming.read[name]] if group is None else list(group.layers)
            assert found == [("transformer", path) for path in paths]
    for path in layer_paths(transformer):
        for prefix in ("", "transformer.", "lora_transformer_", "lycoris_", "base_model.model.", "lora_unet_"):
            assert standard.naming.read[spelled(prefix, path)] == ("transformer", path)
    for path in ("transformer_blocks.0.attn1.to_strange", "norm_out.linear", "transformer_blocks.0.norm1.linear"):
        with pytest.raises(ValueError, match=path):
            PIXART_LAYOUT.layer(path)


@pytest.mark.parametrize("model_format", FORMATS)
def test_a_file_tells_its_model(tmp_path, standard, model_format):
    """Alpha by the layers that see sizes."""
    transformer, parts = standard.components["transformer"], {}
    paths = ["caption_projection.linear_1", "transformer_blocks.3.attn1.to_out.0"]
    if standard.name == "alpha":
        paths.append("adaln_single.emb.resolution_embedder.linear_1")
    for path in paths:
        layer = transformer.get_submodule(path)
        parts[path] = {"lora_down.weight": torch.ones(1, layer.in_features),
                       "lora_up.weight": torch.ones(layer.out_features, 1)}  # fmt: skip
    file = encode_adapter({"transformer": parts}, ModelFormat(model_format), standard.naming, DataType.FLOAT_32)
    save_file(file, tmp_path / "x")
    # one without these fits both: the first is taken
    assert find_reference(read_adapter(tmp_path / "x"), full_models().values()).name == "alpha"
    if standard.name == "sigma":
        assert find_reference(read_adapter(tmp_path / "x"), [standard]) is standard


@pytest.mark.parametrize(("name", "count"), [("full", 287), ("blocks", 280), ("attn-mlp", 280), ("attn-only", 224)])
def test_onetrainer_s_filters(name, count):
    filter_selects(PixArtModel, name, full_models()["sigma"].components["transformer"], count)


# --- adapters with numbers in them


def trained(transformer, options: dict, layers: LayerFilter | None = None) -> AdapterSet:
    adapters = AdapterSet("transformer", transformer, TrainConfig.from_dict(options), layers or LayerFilter())
    return disturb(adapters, 1)


def written(adapters: AdapterSet, transformer, path, model_format=ModelFormat.COMFY_LORA) -> dict[str, Tensor]:
    naming = pixart_adapter_naming(transformer, {})
    save_adapter(path, {"transformer": adapters}, model_format, naming, AdapterDescription())
    return load_file(path)


def native_weights(transformer, adapters: AdapterSet | None = None) -> dict[str, Tensor]:
    """Native layer -> weight, with the adapters in it if they are given."""
    changes = {} if adapters is None else {path: own.merged_delta() for path, own in adapters.adapters.items()}
    return {
        native: torch.cat([transformer.get_submodule(path).weight.detach() + changes.get(path, 0) for path in paths])
        for native, paths in native_layers(transformer).items()
    }


def merged(file: dict[str, Tensor], transformer) -> dict[str, Tensor]:
    """Native layer -> the weight that ComfyUI makes of a file. Every key must be used."""
    names: dict[str, tuple[str, slice]] = {}
    for native, paths in native_layers(transformer).items():
        names[f"diffusion_model.{native}"] = native, slice(None)
        start = 0
        for path in paths:
            rows = len(transformer.get_submodule(path).weight)
            names[f"transformer.{path}"] = native, slice(start, start + rows)
            start += rows
    layers: dict[str, dict[str, Tensor]] = {}
    for key, tensor in file.items():
        name, part = split_key(key)
        layers.setdefault(name, {})[part] = tensor.flatten(1) if tensor.dim() == 4 else tensor
    result = native_weights(transformer)
    for name, parts in layers.items():
        native, rows = names[name]
        weight = result[native][rows].flatten(1)
        changed, lengths = weight + delta(parts, weight), parts.get("dora_scale")
        if lengths is not None and lengths.shape[0] == len(weight):  # by the base's norm
            changed *= lengths / weight.norm(dim=1, keepdim=True)
        elif lengths is not None:
            # of a convolution each input has a row of numbers
            kernel = weight.shape[1] // lengths.shape[1]
            norm = changed.unflatten(1, (-1, kernel)).norm(dim=(0, 2))[None]
            changed *= (lengths / norm).repeat_interleave(kernel, dim=1)
        result[native][rows] = changed.view_as(result[native][rows])
    return result


@pytest.mark.parametrize("layers", [(), ("to_q", "attn2.to_v")], ids=["all", "some"])
@pytest.mark.parametrize("kind", KINDS)
def test_every_weight_in_comfyui_is_the_trained_one(tmp_path, transformer, kind, layers):
    if layers and kind == "OFT on outputs":
        layers = ("attn1", "ff.net")  # a rotation is not joined with layers that have none
    adapters = trained(transformer, KINDS[kind], LayerFilter(layers))
    file = written(adapters, transformer, tmp_path / "x")
    plain, expected = native_weights(transformer), native_weights(transformer, adapters)
    found = merged(file, transformer)
    for name, weight in expected.items():
        change = (weight - plain[name]).norm()
        # float32 rounding of weights that change by a few percent
        assert (found[name] - weight).norm() <= 1e-5 * change + 1e-6, name
    alone = {split_key(key)[0] for key in file if key.startswith("transformer.")}
    fused = [path for paths in native_layers(transformer).values() if len(paths) > 1 for path in paths]
    assert bool(alone) == (kind in ALONE or (bool(layers) and kind == "DoRA on outputs"))
    assert alone <= {f"transformer.{path}" for path in fused}


@pytest.mark.parametrize("model_format", FORMATS)
@pytest.mark.parametrize("kind", ADAPTER_KINDS)
def test_every_kind_comes_back_from_every_format_or_is_refused(tmp_path, pixart_pipelines, kind, model_format):
    transformer, model_format = pixart_pipelines["alpha"].transformer, ModelFormat(model_format)
    adapters, naming, path = trained(transformer, ADAPTER_KINDS[kind]), pixart_adapter_naming(transformer, {}), None
    adapter_kind, path = kind_of_components({"transformer": adapters.layers()}), tmp_path / "x.safetensors"
    if model_format == ModelFormat.DIFFUSERS_LORA and kind not in ("LoRA", "DoRA on outputs"):
        with pytest.raises(UserError, match="only LoRA and DoRA on outputs"):
            written(adapters, transformer, path, model_format)
        return
    if model_format in (ModelFormat.KOHYA_LORA, ModelFormat.ORIGINAL_LORA) and kind in (*ALONE, "OFT"):
        with pytest.raises(UserError, match="Choose one of COMFY_LORA, LEGACY_LORA, INTERNAL"):
            check_joins(model_format, naming, adapter_kind, lambda _: True)
        # layers that stand alone can be written there, too
        check_joins(model_format, naming, adapter_kind, LayerFilter(("ff.net",)).matches)
        return
    check_joins(model_format, naming, adapter_kind, lambda _: True)
    written(adapters, transformer, path, model_format)
    comes_back(path, naming, transformer, adapters)


# --- peft


def with_peft(transformer: nn.Module, path, decomposed: bool = False) -> nn.Module:
    """A copy of a transformer into which peft has put the adapters of a file with diffusers' names."""
    file = {name.removeprefix("transformer."): tensor for name, tensor in load_file(path).items()}
    ranks = {name.removesuffix(".lora_A.weight"): len(tensor) for name, tensor in file.items() if "lora_A" in name}
    alphas = {file.pop(name).item() for name in list(file) if name.endswith(".alpha")}
    # its one number for all layers
    config = LoraConfig(r=max(ranks.values()), lora_alpha=max(alphas, default=max(ranks.values())), rank_pattern=ranks,
                        target_modules=sorted(ranks), use_dora=decomposed)  # fmt: skip
    own = inject_adapter_in_model(config, copy.deepcopy(transformer)).eval()
    assert not set_peft_model_state_dict(own, file).unexpected_keys
    return own


def answer(transformer: nn.Module) -> Tensor:
    generator = torch.Generator().manual_seed(2)
    told = {"resolution": torch.tensor([[32.0, 48.0]] * 2), "aspect_ratio": torch.tensor([[0.7], [0.7]])}
    sizes = told if transformer.use_additional_conditions else dict.fromkeys(told)
    with torch.no_grad():
        return transformer(
            torch.randn(2, 4, 4, 6, generator=generator), torch.randn(2, 5, 16, generator=generator),
            torch.tensor([100, 700]), sizes, return_dict=False,
        )[0]  # fmt: skip


@pytest.mark.parametrize("kind", ["LoRA", "DoRA on outputs"])
def test_peft_makes_the_same_of_a_file(tmp_path, transformer, kind):
    adapters, path = trained(transformer, ADAPTER_KINDS[kind]), tmp_path / "adapter.safetensors"
    written(adapters, transformer, path, ModelFormat.DIFFUSERS_LORA)
    plain = answer(transformer)
    adapters.eval().hook()
    try:
        hooked = answer(transformer)
    finally:
        adapters.unhook()
    assert (hooked - plain).abs().max() > 0.1
    # sums in another order, in float32, of numbers of size 1
    found = answer(with_peft(transformer, path, kind != "LoRA"))
    torch.testing.assert_close(found, hooked, atol=1e-4, rtol=1e-4)
