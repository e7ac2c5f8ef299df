"""How adapter files call Flux.2's layers: every key of full-size models against the original layout and diffusers.

The original layout is written down in conftest.py. What ComfyUI accepts was read from its code: every native name after
`diffusion_model.`, and flattened after `lora_unet_`; diffusers' names bare, after `transformer.`, and flattened after
`lora_transformer_` and `lycoris_`, of blocks, the last two layers and what image and text come in by.
"""

import re
from functools import cache

from modules.model.flux2_keys import FLUX_2_LAYOUT, flux2_adapter_naming
from modules.model.unet_keys import layer_paths
from modules.modelSaver.adapter_layout import split_key
from modules.modelSaver.adapter_metadata import AdapterDescription
from modules.modelSaver.AdapterFile import read_adapter
from modules.modelSaver.convert import find_reference
from modules.modelSaver.fused_layers import swap_halves
from modules.modelSaver.save_adapter import check_joins, encode_adapter, kind_of_components, save_adapter
from modules.module.AdapterSet import AdapterSet
from modules.module.FileKind import PartError
from modules.util.CheckpointTensor import THIRDS
from modules.util.config.TrainConfig import TrainConfig
from modules.util.enum.DataType import DataType
from modules.util.enum.ModelFormat import ModelFormat
from modules.util.LayerFilter import LayerFilter
from modules.util.UserError import UserError
from tests.adapters import disturb
from tests.full_size import full_size_models
from tests.model.key_checks import comes_back
from tests.model.test_flux2_comfy import delta

import torch

import pytest
from diffusers import DiffusionPipeline, Flux2Transformer2DModel
from diffusers.loaders.lora_conversion_utils import (
    _convert_kohya_flux2_lora_to_diffusers,
    _convert_non_diffusers_flux2_lora_to_diffusers,
)
from safetensors.torch import load_file, save_file

# as published: in billions they are called 32, 9 and 4
SIZES = {"Flux.2 dev": 32_223_281_152, "Flux.2 Klein 9B": 9_078_581_248, "Flux.2 Klein 4B": 3_875_544_576}
FORMATS = [ModelFormat(name) for name in ("COMFY_LORA", "KOHYA_LORA", "ORIGINAL_LORA", "DIFFUSERS_LORA", "LEGACY_LORA",
                                          "INTERNAL", "SAFETENSORS")]  # fmt: skip
# ComfyUI's own has names for the layers alone, too
JOINED = [kind for kind in FORMATS if kind in ("KOHYA_LORA", "ORIGINAL_LORA", "SAFETENSORS")]
OUTPUTS = {"lora_decompose": True, "lora_decompose_output_axis": True}
KINDS = {
    "LoRA": {"lora_rank": 3, "lora_alpha": 5.0},
    "DoRA on outputs": {"lora_rank": 3, "lora_alpha": 5.0, **OUTPUTS},
    "LoHa": {"peft_type": "LOHA", "lora_rank": 2, "lora_alpha": 3.0},
    "OFT on outputs": {"peft_type": "OFT_2", "oft_side": "OUTPUT", "oft_block_size": 8},
    "OFT shared on outputs": {"peft_type": "OFT_2", "oft_side": "OUTPUT", "oft_block_size": 8, "oft_block_share": True},
}
APART = {
    "DoRA on inputs": {"lora_rank": 3, "lora_alpha": 5.0, "lora_decompose": True},
    "OFT": {"peft_type": "OFT_2", "oft_block_size": 8},
    "LoKr": {"peft_type": "LOKR", "lora_rank": 2, "lora_alpha": 3.0},
}


@cache
def flux2_models() -> dict:
    """name -> a full-size model on the meta device."""
    return {model.name: model for model in full_size_models() if model.name.startswith("Flux.2")}


@pytest.fixture(scope="module", params=SIZES)
def standard(request):
    return flux2_models()[request.param]


def keys(model, model_format: ModelFormat) -> dict[str, torch.Tensor]:
    """The tensors of an adapter of rank 1 on every layer."""
    transformer = model.components["transformer"]
    parts = {}
    for path in layer_paths(transformer):
        rows = transformer.get_submodule(path).out_features
        parts[path] = {"lora_down.weight": torch.zeros(1, 1), "lora_up.weight": torch.zeros(rows, 1)}
    return encode_adapter({"transformer": parts}, model_format, model.naming, DataType.FLOAT_32)


def layers_of(tensors) -> set[str]:
    return {split_key(key)[0] for key in tensors}


def test_sizes_are_those_of_the_published_models(standard):
    transformer = standard.components["transformer"]
    assert sum(tensor.numel() for tensor in transformer.parameters()) == SIZES[standard.name]
    assert transformer.out_channels == 128 and transformer.config.attention_head_dim == 128


def test_every_layer_has_a_key_that_readers_know(standard, flux2_layers):
    transformer = standard.components["transformer"]
    native = flux2_layers(transformer.config)
    paths = {path for members in native.values() for path in members}
    assert paths == set(layer_paths(transformer))
    flat = {name: name.replace(".", "_") for name in (*native, *paths)}
    expected = {
        ModelFormat.COMFY_LORA: {f"diffusion_model.{name}" for name in native},
        ModelFormat.KOHYA_LORA: {f"lora_unet_{flat[name]}" for name in native},
        ModelFormat.SAFETENSORS: {f"lora_unet_{flat[name]}" for name in native},
        ModelFormat.ORIGINAL_LORA: set(native),
        ModelFormat.DIFFUSERS_LORA: {f"transformer.{path}" for path in paths},
        ModelFormat.LEGACY_LORA: {f"lora_transformer_{flat[path]}" for path in paths},
        ModelFormat.INTERNAL: {f"transformer.{path}" for path in paths},
    }
    assert expected.keys() == set(FORMATS)
    for model_format, layers in expected.items():
        assert layers_of(keys(standard, model_format)) == layers, model_format


def comfy_map(config) -> dict[str, tuple[str, int | None]]:
    """ComfyUI's map: name of a layer in a file -> native layer, and which third of its rows (None: all of them).

    Read from its code of November 2026; as it is said there, for Flux.1 and Flux.2 alike.
    """
    thirds = {"img_attn.qkv": ("to_q", "to_k", "to_v"), "txt_attn.qkv": ("add_q_proj", "add_k_proj", "add_v_proj")}
    double = {
        "attn.to_out.0": "img_attn.proj", "attn.to_add_out": "txt_attn.proj", "ff.linear_in": "img_mlp.0",
        "ff.linear_out": "img_mlp.2", "ff_context.linear_in": "txt_mlp.0", "ff_context.linear_out": "txt_mlp.2",
    }  # fmt: skip
    of_diffusers: dict[str, tuple[str, int | None]] = {
        "x_embedder": ("img_in", None), "context_embedder": ("txt_in", None), "proj_out": ("final_layer.linear", None),
        "norm_out.linear": ("final_layer.adaLN_modulation.1", None),
    }  # fmt: skip
    for i in range(config.num_layers):
        ours, native = f"transformer_blocks.{i}.", f"double_blocks.{i}."
        of_diffusers |= {ours + path: (native + layer, None) for path, layer in double.items()}
        of_diffusers |= {f"{ours}attn.{path}": (native + layer, third)
                         for layer, paths in thirds.items() for third, path in enumerate(paths)}  # fmt: skip
    for i in range(config.num_single_layers):
        for path, layer in (("to_qkv_mlp_proj", "linear1"), ("to_out", "linear2")):
            of_diffusers[f"single_transformer_blocks.{i}.attn.{path}"] = f"single_blocks.{i}.{layer}", None
    found = {}
    for path, place in of_diffusers.items():
        flat = path.replace(".", "_")
        names = (path, f"transformer.{path}", f"lora_transformer_{flat}", f"lycoris_{flat}")
        found |= dict.fromkeys(names, place)
    return found


def test_comfyui_finds_every_layer_that_stands_alone(standard, flux2_layers):
    """Of kinds that can't be joined, at full size: each third of a fused layer, and layers of single blocks."""
    transformer, known = standard.components["transformer"], comfy_map(standard.components["transformer"].config)
    native = flux2_layers(transformer.config)
    for name in native:
        known |= dict.fromkeys((f"diffusion_model.{name}", f"lora_unet_{name.replace('.', '_')}"), (name, None))
    assert standard.naming.comfy == known.keys()
    parts = {}
    for path in layer_paths(transformer):
        layer = transformer.get_submodule(path)
        parts[path] = {"lora_down.weight": torch.zeros(1, layer.in_features), "alpha": torch.ones(()),
                       "lora_up.weight": torch.zeros(layer.out_features, 1),
                       "dora_scale": torch.ones(1, layer.in_features)}  # fmt: skip
    file = encode_adapter({"transformer": parts}, ModelFormat.COMFY_LORA, standard.naming, DataType.FLOAT_32)
    met: dict[str, list[int | None]] = {}
    for key, tensor in file.items():
        name, part = split_key(key)
        layer, third = known[name]
        if part in ("lora_up.weight", "lora_B.weight"):
            rows = sum(transformer.get_submodule(path).out_features for path in native[layer])
            assert len(tensor) * (1 if third is None else 3) == rows, name
            met.setdefault(layer, []).append(third)
    assert met == {name: [None] if len(paths) == 1 else [0, 1, 2] for name, paths in native.items()}


def test_native_names_stand_for_the_right_layers(standard, flux2_layers):
    for native, paths in flux2_layers(standard.components["transformer"].config).items():
        places = [FLUX_2_LAYOUT.layer(path) for path in paths]
        assert places == ([(native, third) for third in THIRDS] if len(paths) == 3 else [(native, None)])
        for name in (native, f"diffusion_model.{native}", f"base_model.model.{native}",
                     f"lora_unet_{native.replace('.', '_')}"):  # fmt: skip
            group = standard.naming.fused.get(name)
            found = [standard.naming.read[name]] if group is None else list(group.layers)
            assert found == [("transformer", path) for path in paths]


def test_native_keys_against_diffusers_converter(standard):
    """Which native layer is which of diffusers', by its own converter of adapters."""
    native = keys(standard, ModelFormat.COMFY_LORA)
    converted = _convert_non_diffusers_flux2_lora_to_diffusers({k: v for k, v in native.items() if "alpha" not in k})
    assert converted.keys() == keys(standard, ModelFormat.DIFFUSERS_LORA).keys()


def test_kohya_keys_against_diffusers_converter(standard):
    kohya = dict(keys(standard, ModelFormat.KOHYA_LORA))
    converted = _convert_kohya_flux2_lora_to_diffusers(kohya)
    expected = keys(standard, ModelFormat.DIFFUSERS_LORA).keys()
    assert converted.keys() <= expected
    # what that converter does not know, it leaves: no layer of a block is among it
    left = {key for key in expected if key not in converted}
    assert layers_of(left) <= {f"transformer.{name}" for name in (
        "double_stream_modulation_img.linear", "double_stream_modulation_txt.linear", "norm_out.linear",
        "single_stream_modulation.linear", "time_guidance_embed.guidance_embedder.linear_1",
        "time_guidance_embed.guidance_embedder.linear_2",
    )}  # fmt: skip
    assert layers_of(kohya) and not any("blocks" in name for name in kohya)


def test_every_program_s_spelling_is_read(standard):
    read = standard.naming.read
    for path in layer_paths(standard.components["transformer"]):
        flat = path.replace(".", "_")
        for name in (path, f"transformer.{path}", f"lora_transformer_{flat}", f"lycoris_{flat}",
                     f"base_model.model.{path}", f"diffusion_model.{path}"):  # fmt: skip
            assert read[name] == ("transformer", path)
            assert split_key(f"{name}.lora_down.weight") == (name, "lora_down.weight")


@pytest.mark.parametrize("model_format", FORMATS)
def test_a_file_tells_its_model_by_its_sizes(tmp_path, standard, model_format):
    save_file(_with_inputs(standard, model_format), tmp_path / "x")
    assert find_reference(read_adapter(tmp_path / "x"), flux2_models().values()) is standard


def _with_inputs(model, model_format: ModelFormat) -> dict[str, torch.Tensor]:
    transformer, parts = model.components["transformer"], {}
    for path in ("context_embedder", "transformer_blocks.0.attn.to_q", "transformer_blocks.0.attn.to_k",
                 "transformer_blocks.0.attn.to_v", "norm_out.linear"):  # fmt: skip
        layer = transformer.get_submodule(path)
        parts[path] = {"lora_down.weight": torch.ones(1, layer.in_features),
                       "lora_up.weight": torch.ones(layer.out_features, 1)}  # fmt: skip
    return encode_adapter({"transformer": parts}, model_format, model.naming, DataType.FLOAT_32)


# --- adapters with numbers in them


def trained(transformer, options: dict, layers: LayerFilter | None = None) -> AdapterSet:
    adapters = AdapterSet("transformer", transformer, TrainConfig.from_dict(options), layers or LayerFilter())
    return disturb(adapters, 1)


def hooked_output(transformer, adapters: AdapterSet, arguments: dict) -> torch.Tensor:
    """What the transformer gives with the adapters, which is not what it gives without."""
    plain = transformer(**arguments)[0]
    adapters.eval().hook()
    try:
        hooked = transformer(**arguments)[0]
    finally:
        adapters.unhook()
    assert (hooked - plain).abs().max() > 0.1
    return hooked


def written(adapters: AdapterSet, transformer, model_format: ModelFormat, path) -> None:
    naming = flux2_adapter_naming(transformer)
    save_adapter(path, {"transformer": adapters}, model_format, naming, AdapterDescription())


@pytest.fixture(params=["dev", "klein"])
def transformer(request, flux2_pipelines):
    return flux2_pipelines[request.param].transformer


@pytest.mark.parametrize("model_format", FORMATS)
@pytest.mark.parametrize("kind", [*KINDS, *APART])
def test_split_and_joined_exactly(tmp_path, transformer, kind, model_format):
    adapters = trained(transformer, (KINDS | APART)[kind])
    naming = flux2_adapter_naming(transformer)
    adapter_kind = kind_of_components({"transformer": adapters.layers()})
    if kind in APART and model_format in JOINED:
        with pytest.raises(UserError, match=r"to_q, .*to_k, .*to_v as one layer.*COMFY_LORA, LEGACY_LORA, INTERNAL"):
            check_joins(model_format, naming, adapter_kind, lambda _: True)
        # alone in its single blocks it can be written
        check_joins(model_format, naming, adapter_kind, LayerFilter(("single_transformer",)).matches)
        return
    path = tmp_path / "adapter.safetensors"
    check_joins(model_format, naming, adapter_kind, lambda _: True)
    if model_format == ModelFormat.DIFFUSERS_LORA and kind not in ("LoRA", "DoRA on outputs"):
        with pytest.raises(UserError, match="diffusers loads only LoRA and DoRA on outputs"):
            written(adapters, transformer, model_format, path)
        return
    written(adapters, transformer, model_format, path)
    comes_back(path, naming, transformer, adapters)


@pytest.mark.parametrize(("kind", "joins"), [("LoRA", True), ("DoRA on outputs", False)])
def test_one_slice_of_a_fused_layer(tmp_path, transformer, kind, joins):
    """Rows without adapter stay as they are; a magnitude would be needed for them, too."""
    only_q = LayerFilter(("to_q",))
    adapters = trained(transformer, KINDS[kind], only_q)
    adapter_kind = kind_of_components({"transformer": adapters.layers()})
    naming = flux2_adapter_naming(transformer)
    if not joins:
        with pytest.raises(UserError, match="of layers that are not trained together can't be joined"):
            check_joins(ModelFormat.KOHYA_LORA, naming, adapter_kind, only_q.matches)
    check_joins(ModelFormat.COMFY_LORA, naming, adapter_kind, only_q.matches)
    written(adapters, transformer, ModelFormat.COMFY_LORA, tmp_path / "x")
    found = read_adapter(tmp_path / "x").fit(naming, {"transformer": transformer})["transformer"]
    for name, adapter in AdapterSet.from_parts("transformer", transformer, found).adapters.items():
        expected = adapters.adapters[name].merged_delta() if name in adapters.adapters else torch.zeros(32, 32)
        torch.testing.assert_close(adapter.merged_delta(), expected, atol=2e-6, rtol=1e-5)


@pytest.mark.parametrize(
    ("parts", "rows"),
    [
        ({"lokr_w1": torch.ones(3, 2), "lokr_w2": torch.ones(2, 2)}, 6),  # a row of w1 in both halves
        ({"oft_blocks": torch.zeros(3, 4, 4)}, 12),
        ({"oft_blocks": torch.zeros(1, 4, 4)}, 12),  # shared by three blocks
    ],
)
def test_halves_that_are_tied_can_t_be_exchanged(parts, rows):
    with pytest.raises(PartError):
        swap_halves(parts, rows)


@pytest.mark.parametrize("kind", ["LoRA", "LoHa", "OFT on outputs"])
def test_a_native_file_is_right_for_the_original_model(tmp_path, transformer, flux2_tensors, flux2_folders, kind):
    """Merged into the original checkpoint, as ComfyUI does it, and that read by diffusers: the hooked model."""
    adapters = trained(transformer, KINDS[kind])
    path = tmp_path / "adapter.safetensors"
    written(adapters, transformer, ModelFormat.ORIGINAL_LORA, path)
    native = {name: tensor.clone() for name, tensor in flux2_tensors(transformer).items()}
    file = load_file(path)
    for layer in {split_key(key)[0] for key in file}:
        own = {split_key(key)[1]: file[key] for key in file if split_key(key)[0] == layer}
        native[f"{layer}.weight"] += delta(own, native[f"{layer}.weight"])
    folder = flux2_folders["dev" if transformer.config.guidance_embeds else "klein"]
    merged = Flux2Transformer2DModel.from_single_file(
        native, config=str(folder), subfolder="transformer", local_files_only=True
    )
    arguments = inputs(transformer)
    hooked = hooked_output(transformer, adapters, arguments)
    # sums in another order, in float32, of numbers of size 1
    torch.testing.assert_close(merged(**arguments)[0], hooked, atol=1e-4, rtol=1e-4)


def inputs(transformer) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(2)
    places = torch.tensor([[0, row, column, 0] for row in range(2) for column in range(3)])
    return {
        "hidden_states": torch.randn(2, 6, 16, generator=generator),
        "encoder_hidden_states": torch.randn(2, 4, 48, generator=generator),
        "timestep": torch.tensor([0.3, 0.9]),
        "guidance": torch.full((2,), 3.0) if transformer.config.guidance_embeds else None,
        "img_ids": places,
        "txt_ids": torch.tensor([[0, 0, 0, place] for place in range(4)]),
        "return_dict": False,
    }


def _stripped(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {key: tensor for key, tensor in tensors.items() if not key.endswith(".alpha")}


# What diffusers 0.42.1 takes: its own names wholly; native ones without alpha, whose scale it would not use, and with
# the halves of the last modulation the wrong way round; of kohya's names those in blocks and few others.
@pytest.mark.parametrize(
    ("model_format", "layers"),
    [
        (ModelFormat.DIFFUSERS_LORA, ""),
        (ModelFormat.COMFY_LORA, r"^(?!norm_out)"),
        (ModelFormat.KOHYA_LORA, r"transformer_blocks|timestep_embedder|x_embedder|context_embedder|proj_out"),
    ],
)
def test_diffusers_loads_the_file(tmp_path, transformer, flux2_folders, model_format, layers):
    variant = "dev" if transformer.config.guidance_embeds else "klein"
    chosen = LayerFilter((layers,), regex=True) if layers else LayerFilter()
    adapters = trained(transformer, {"lora_rank": 3, "lora_alpha": 9.0 if "COMFY" not in model_format else 3.0}, chosen)
    path = tmp_path / "adapter.safetensors"
    written(adapters, transformer, model_format, path)
    tensors = load_file(path)
    if model_format == ModelFormat.COMFY_LORA:
        # alpha is the rank: it changes nothing, also where three of them are joined
        ranks = {split_key(key)[0]: len(tensor) for key, tensor in tensors.items() if "lora_A" in key}
        assert all(tensors[f"{layer}.alpha"] == rank for layer, rank in ranks.items())
        save_file(_stripped(tensors), path)
    pipeline = DiffusionPipeline.from_pretrained(flux2_folders[variant])
    pipeline.load_lora_weights(str(path))
    arguments = inputs(transformer)
    hooked = hooked_output(transformer, adapters, arguments)
    torch.testing.assert_close(pipeline.transformer(**arguments)[0], hooked, atol=1e-4, rtol=1e-4)


def test_a_layer_of_another_model_has_no_native_name():
    for path in ("transformer_blocks.0.attn.to_strange", "time_text_embed.linear", "single_transformer_blocks.0.proj"):
        with pytest.raises(ValueError, match=re.escape(path)):
            FLUX_2_LAYOUT.layer(path)
