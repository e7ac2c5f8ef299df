"""How adapter files call the layers of Flux.1 and of Chroma, and what ComfyUI and diffusers make of such files.

The original layout is written down in flux1_models.py, ComfyUI's key map here: it knows each native layer by its name,
each layer of a fused one by diffusers' name, and the last modulation by diffusers' name with ΔW's halves exchanged. To
it Chroma is a Flux.1; what gives the modulations there has native names alone.
"""

from functools import cache

from modules.model.chroma_keys import CHROMA_LAYOUT, chroma_adapter_naming
from modules.model.flux1_keys import FLUX_1_LAYOUT, flux1_adapter_naming
from modules.model.StandardSource import StandardSource
from modules.model.unet_keys import layer_paths
from modules.modelSaver.adapter_layout import split_key
from modules.modelSaver.adapter_metadata import AdapterDescription
from modules.modelSaver.AdapterFile import read_adapter
from modules.modelSaver.convert import find_reference
from modules.modelSaver.save_adapter import check_joins, encode_adapter, kind_of_components, save_adapter
from modules.module.AdapterSet import AdapterSet
from modules.util.AdapterNaming import AdapterNaming
from modules.util.config.TrainConfig import TrainConfig
from modules.util.enum.DataType import DataType
from modules.util.enum.ModelFormat import ModelFormat
from modules.util.enum.ModelType import ModelType
from modules.util.LayerFilter import LayerFilter
from modules.util.ReferenceModel import ReferenceModel
from modules.util.UserError import UserError
from tests.adapters import disturb
from tests.model.flux1_models import LAST, is_chroma, native_layers
from tests.model.test_flux2_comfy import delta, native_weights

import torch
from torch import Tensor

import pytest
from diffusers import DiffusionPipeline
from diffusers.loaders.lora_conversion_utils import _convert_kohya_flux_lora_to_diffusers
from safetensors.torch import load_file, save_file

# as published: in billions they are called 12 and 8.9
SIZES = {
    "Flux.1 dev": 11_901_408_320,
    "Flux.1 schnell": 11_891_178_560,
    "Flux.1 Fill dev": 11_902_391_360,
    "Chroma": 8_899_983_424,
}
NATIVE = {
    ModelFormat.COMFY_LORA: "diffusion_model.",
    ModelFormat.KOHYA_LORA: "lora_unet_",
    ModelFormat.SAFETENSORS: "lora_unet_",
    ModelFormat.ORIGINAL_LORA: "",
}
APART = {
    ModelFormat.DIFFUSERS_LORA: "transformer.",
    ModelFormat.LEGACY_LORA: "lora_transformer_",
    ModelFormat.INTERNAL: "transformer.",
}
LOW_RANK = {"lora_rank": 3, "lora_alpha": 5.0}
OUTPUTS = {"lora_decompose": True, "lora_decompose_output_axis": True}
KINDS = {
    "LoRA": LOW_RANK,
    "DoRA on inputs": LOW_RANK | {"lora_decompose": True},
    "DoRA on outputs": LOW_RANK | OUTPUTS,
    "LoHa": {"peft_type": "LOHA", "lora_rank": 2, "lora_alpha": 3.0},
    "LoKr": {"peft_type": "LOKR", "lora_alpha": 3.0, "lokr_dim": 2},
    "OFT on outputs": {"peft_type": "OFT_2", "oft_side": "OUTPUT", "oft_block_size": 8},
}
# of these the layers of a fused one stand alone
ALONE = ("DoRA on inputs", "LoKr")


def naming_of(transformer) -> AdapterNaming:
    return (chroma_adapter_naming if is_chroma(transformer.config) else flux1_adapter_naming)(transformer)


@cache
def full_models() -> dict:
    """name -> a full-size model on the meta device."""
    found = {}
    for name in SIZES:
        # the layers of Kontext are those of dev
        kinds = {"Chroma": ModelType.CHROMA_1, "Flux.1 Fill dev": ModelType.FLUX_FILL_DEV_1}
        transformer = StandardSource(kinds.get(name, ModelType.FLUX_DEV_1), name).empty("transformer")
        version = "chroma" if name == "Chroma" else "flux1"
        found[name] = ReferenceModel(name, {"transformer": transformer}, naming_of(transformer), base_version=version)
    return found


@pytest.fixture(scope="module", params=SIZES)
def standard(request):
    return full_models()[request.param]


@pytest.fixture(params=["Flux.1", "Chroma"])
def pipeline(request, flux1_pipelines, chroma_pipeline):
    return chroma_pipeline if request.param == "Chroma" else flux1_pipelines["dev"]


@pytest.fixture
def transformer(pipeline):
    return pipeline.transformer


def spelled(prefix: str, name: str) -> str:
    return prefix + (name.replace(".", "_") if prefix.endswith("_") else name)


def layers_in(model, model_format: ModelFormat) -> set[str]:
    """The layers of a file with an adapter of rank 1 on every layer of the model."""
    transformer, parts = model.components["transformer"], {}
    for path in layer_paths(transformer):
        rows = transformer.get_submodule(path).out_features
        parts[path] = {"lora_down.weight": torch.zeros(1, 1), "lora_up.weight": torch.zeros(rows, 1)}
    file = encode_adapter({"transformer": parts}, model_format, model.naming, DataType.FLOAT_32)
    return {split_key(key)[0] for key in file}


def test_sizes_are_those_of_the_published_models(standard):
    transformer = standard.components["transformer"]
    assert sum(tensor.numel() for tensor in transformer.parameters()) == SIZES[standard.name]


def test_every_layer_has_a_key_that_readers_know(standard):
    transformer = standard.components["transformer"]
    native = native_layers(transformer.config)
    paths = {path for members in native.values() for path in members}
    assert paths == set(layer_paths(transformer)) and len(native) < len(paths)
    for model_format, prefix in NATIVE.items():
        assert layers_in(standard, model_format) == {spelled(prefix, name) for name in native}, model_format
    for model_format, prefix in APART.items():
        assert layers_in(standard, model_format) == {spelled(prefix, path) for path in paths}, model_format
    # ComfyUI's map, from which nothing of these formats is missing but names without a prefix
    comfy = standard.naming.comfy
    assert {spelled(prefix, name) for prefix in ("diffusion_model.", "lora_unet_") for name in native} <= comfy
    prefixes = ("transformer.", "lora_transformer_", "lycoris_")
    unknown = {path for path in paths if path.startswith("distilled_guidance_layer.")}
    assert {spelled(prefix, path) for prefix in prefixes for path in paths - unknown} <= comfy
    assert not {spelled(prefix, path) for prefix in prefixes for path in unknown} & comfy
    assert not native.keys() & comfy - {"proj_out"}


def test_native_names_stand_for_the_right_layers(standard):
    layout = CHROMA_LAYOUT if standard.name == "Chroma" else FLUX_1_LAYOUT
    for native, paths in native_layers(standard.components["transformer"].config).items():
        assert {layout.layer(path)[0] for path in paths} == {native}
        for prefix in ("", "diffusion_model.", "base_model.model.", "lora_unet_", "lycoris_"):
            name = spelled(prefix, native)
            group = standard.naming.fused.get(name)
            found = [standard.naming.read[name]] if group is None else list(group.layers)
            assert found == [("transformer", path) for path in paths]
    for path in layer_paths(standard.components["transformer"]):
        for prefix in ("", "transformer.", "lora_transformer_", "lycoris_", "base_model.model.", "diffusion_model."):
            assert standard.naming.read[spelled(prefix, path)] == ("transformer", path)


def test_a_layer_of_another_model_has_no_native_name():
    for path in ("transformer_blocks.0.attn.to_strange", "time_guidance_embed.linear", "single_transformer_blocks.x.y"):
        for layout in (FLUX_1_LAYOUT, CHROMA_LAYOUT):
            with pytest.raises(ValueError, match=path):
                layout.layer(path)
    for path in ("norm_out.linear", "transformer_blocks.0.norm1.linear", "distilled_guidance_layer.layers.0"):
        with pytest.raises(ValueError, match=path):
            CHROMA_LAYOUT.layer(path)


def test_a_file_tells_its_model(tmp_path, standard):
    transformer, parts = standard.components["transformer"], {}
    own = {
        "Flux.1 dev": ["norm_out.linear", "time_text_embed.guidance_embedder.linear_1"],
        "Flux.1 schnell": ["norm_out.linear"],
        "Flux.1 Fill dev": ["x_embedder"],
        "Chroma": ["distilled_guidance_layer.in_proj"],
    }
    for path in ("context_embedder", "single_transformer_blocks.3.proj_mlp", *own[standard.name]):
        layer = transformer.get_submodule(path)
        parts[path] = {"lora_down.weight": torch.ones(1, layer.in_features),
                       "lora_up.weight": torch.ones(layer.out_features, 1)}  # fmt: skip
    file = encode_adapter({"transformer": parts}, ModelFormat.COMFY_LORA, standard.naming, DataType.FLOAT_32)
    save_file(file, tmp_path / "x")
    # one without a layer for guidance fits both: the first is taken
    expected = "Flux.1 dev" if standard.name == "Flux.1 schnell" else standard.name
    assert find_reference(read_adapter(tmp_path / "x"), full_models().values()).name == expected


def test_metadata_tell_families_apart_whose_blocks_are_alike(tmp_path):
    """Layers in blocks have the same names and sizes in Flux.1 and Chroma."""
    models = full_models()
    path = "single_transformer_blocks.3.proj_mlp"
    layer = models["Chroma"].components["transformer"].get_submodule(path)
    parts = {"lora_down.weight": torch.ones(1, layer.in_features), "lora_up.weight": torch.ones(layer.out_features, 1)}
    file = encode_adapter(
        {"transformer": {path: parts}}, ModelFormat.DIFFUSERS_LORA, models["Chroma"].naming, DataType.FLOAT_32
    )
    for told, name in (("chroma", "Chroma"), ("flux1", "Flux.1 dev"), ("", "Flux.1 dev")):
        save_file(file, tmp_path / "x", {"ss_base_model_version": told})
        assert find_reference(read_adapter(tmp_path / "x"), models.values()).name == name


# --- adapters with numbers in them


def trained(transformer, options: dict, layers: LayerFilter | None = None) -> AdapterSet:
    adapters = AdapterSet("transformer", transformer, TrainConfig.from_dict(options), layers or LayerFilter())
    return disturb(adapters, 1)


def written(adapters: AdapterSet, transformer, path, model_format=ModelFormat.COMFY_LORA) -> dict[str, Tensor]:
    naming = naming_of(transformer)
    save_adapter(path, {"transformer": adapters}, model_format, naming, AdapterDescription())
    return load_file(path)


def comfy_map(transformer) -> dict[str, tuple[str, slice]]:
    """Name of a layer in a file -> native layer, its rows. Names of diffusers are those of layers in fused ones."""
    names: dict[str, tuple[str, slice]] = {}
    for native, paths in native_layers(transformer.config).items():
        names[f"diffusion_model.{native}"] = native, slice(None)
        start = 0
        for path in paths:
            rows = transformer.get_submodule(path).out_features
            names[f"transformer.{path}"] = native, slice(start, start + rows)
            start += rows
    return names


def merged(file: dict[str, Tensor], transformer) -> dict[str, Tensor]:
    """Native layer -> the weight that ComfyUI makes of a file. Every key must be used."""
    names, result = comfy_map(transformer), native_weights(transformer, native_layers)
    layers: dict[str, dict[str, Tensor]] = {}
    for key, tensor in file.items():
        layers.setdefault(split_key(key)[0], {})[key.removeprefix(f"{split_key(key)[0]}.")] = tensor
    for name, parts in layers.items():
        native, rows = names[name]
        weight = result[native][rows]
        own = delta(parts, weight)
        swapped = native == LAST and name.startswith("transformer.")
        changed = weight + (torch.cat(own.chunk(2)[::-1]) if swapped else own)
        lengths = parts.get("dora_scale")
        if lengths is not None and lengths.shape[0] == len(weight):  # by the base's norm
            changed *= lengths / weight.norm(dim=1, keepdim=True)
        elif lengths is not None:
            changed *= lengths / changed.norm(dim=0, keepdim=True)
        weight.copy_(changed)
    return result


@pytest.mark.parametrize("layers", [(), ("to_q", "proj_mlp")])
@pytest.mark.parametrize("kind", KINDS)
def test_every_weight_in_comfyui_is_the_trained_one(tmp_path, transformer, kind, layers):
    if layers and kind == "OFT on outputs":
        layers = ("attn.to", "add_", "proj_mlp")  # a rotation is not joined with layers that have none
    adapters = trained(transformer, KINDS[kind], LayerFilter(layers))
    file = written(adapters, transformer, tmp_path / "x")
    plain, expected, found = (
        native_weights(transformer, native_layers),
        native_weights(transformer, native_layers, adapters),
        merged(file, transformer),
    )
    for name, weight in expected.items():
        change = (weight - plain[name]).norm()
        # float32 rounding of weights that change by a few percent
        assert (found[name] - weight).norm() <= 1e-5 * change + 1e-6, name
    alone = {split_key(key)[0] for key in file if key.startswith("transformer.")}
    fused = [path for paths in native_layers(transformer.config).values() if len(paths) > 1 for path in paths]
    assert bool(alone) == (kind in ALONE or (bool(layers) and kind == "DoRA on outputs"))
    assert alone <= {f"transformer.{path}" for path in fused}
    # and it is the same adapter when it is read again
    layers_again = read_adapter(tmp_path / "x").fit(naming_of(transformer), {"transformer": transformer})
    again = AdapterSet.from_parts("transformer", transformer, layers_again["transformer"]).adapters
    for name, adapter in adapters.adapters.items():
        torch.testing.assert_close(again[name].merged_delta(), adapter.merged_delta(), atol=2e-6, rtol=1e-5)


@pytest.mark.parametrize("kind", ["DoRA on inputs", "LoKr"])
def test_kinds_that_can_t_be_joined_are_refused_where_layers_are_joined(transformer, kind):
    adapter_kind = kind_of_components({"transformer": trained(transformer, KINDS[kind]).layers()})
    naming = naming_of(transformer)
    for model_format in NATIVE.keys() - {ModelFormat.COMFY_LORA}:
        with pytest.raises(UserError, match="Choose one of COMFY_LORA, LEGACY_LORA, INTERNAL"):
            check_joins(model_format, naming, adapter_kind, lambda _: True)
    check_joins(ModelFormat.KOHYA_LORA, naming, adapter_kind, LayerFilter(("ff.net",)).matches)


# --- diffusers


def inputs(chroma: bool) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(2)
    found = {
        "hidden_states": torch.randn(2, 6, 16, generator=generator),
        "encoder_hidden_states": torch.randn(2, 4, 16, generator=generator),
        "pooled_projections": torch.randn(2, 16, generator=generator),
        "timestep": torch.tensor([0.3, 0.9]),
        "guidance": torch.full((2,), 3.0),
        "img_ids": torch.tensor([[0.0, row, column] for row in range(2) for column in range(3)]),
        "txt_ids": torch.zeros(4, 3),
        "return_dict": False,
    }
    return {name: value for name, value in found.items() if not (chroma and name in ("pooled_projections", "guidance"))}


# diffusers 0.42.1 takes its own names wholly; of native ones, kohya's spelling of those in blocks. That of the layer in
# which four are stacked is read in the published size alone, see below.
@pytest.mark.parametrize(
    ("kind", "model_format", "layers"),
    [
        ("LoRA", ModelFormat.DIFFUSERS_LORA, ""),
        ("DoRA on outputs", ModelFormat.DIFFUSERS_LORA, ""),
        ("LoRA", ModelFormat.KOHYA_LORA, r"^transformer_blocks|^single_transformer_blocks.*(norm|proj_out)"),
    ],
)
def test_diffusers_loads_the_file(tmp_path, pipeline, flux1_folders, chroma_folder, kind, model_format, layers):
    transformer, chroma = pipeline.transformer, is_chroma(pipeline.transformer.config)
    adapters = trained(transformer, KINDS[kind], LayerFilter((layers,), regex=True) if layers else None)
    path = tmp_path / "adapter.safetensors"
    written(adapters, transformer, path, model_format)
    other = DiffusionPipeline.from_pretrained(chroma_folder if chroma else flux1_folders["dev"])
    other.load_lora_weights(str(path))
    plain = transformer(**inputs(chroma))[0]
    adapters.eval().hook()
    try:
        hooked = transformer(**inputs(chroma))[0]
    finally:
        adapters.unhook()
    assert (hooked - plain).abs().max() > 0.1
    torch.testing.assert_close(other.transformer(**inputs(chroma))[0], hooked, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", ["Flux.1 schnell", "Chroma"])
def test_kohya_files_against_diffusers_converter(name):
    """Which native layer is which of diffusers', of all those in blocks, with the numbers of each."""
    model, generator = full_models()[name], torch.Generator().manual_seed(0)
    transformer, parts, expected = model.components["transformer"], {}, {}
    for path in layer_paths(transformer):
        if "blocks.0." in path:
            # inputs don't matter here: one of them is enough
            down, rows = torch.randn(1, 1, generator=generator), transformer.get_submodule(path).out_features
            parts[path] = {"lora_down.weight": down, "lora_up.weight": torch.randn(rows, 1, generator=generator)}
            expected[f"transformer.{path}"] = parts[path]["lora_up.weight"] @ down
    file = encode_adapter({"transformer": parts}, ModelFormat.KOHYA_LORA, model.naming, DataType.FLOAT_32)
    converted = _convert_kohya_flux_lora_to_diffusers(file)
    assert {key.rpartition(".lora_")[0] for key in converted} == expected.keys()
    for name, product_of_layer in expected.items():
        found = converted[f"{name}.lora_B.weight"] @ converted[f"{name}.lora_A.weight"]
        torch.testing.assert_close(found, product_of_layer)
