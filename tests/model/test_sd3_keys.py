"""How adapter files call the layers of Stable Diffusion 3 and 3.5, and what ComfyUI and diffusers make of such files.

The original layout is written down in sd3_models.py, ComfyUI's key map here: it knows each native layer by its name,
each layer of a fused one by diffusers' name, and two modulations by diffusers' name with ΔW's halves exchanged.
"""

from functools import cache

from modules.model.sd3_keys import sd3_adapter_naming, sd3_layout
from modules.model.StableDiffusion3Model import StableDiffusion3Model
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
from tests.model.sd3_models import native_layers, swapped
from tests.model.test_flux1_keys import ALONE, APART, KINDS, NATIVE, spelled
from tests.model.test_flux2_comfy import delta

import torch
from torch import Tensor, nn

import pytest
from diffusers import DiffusionPipeline
from safetensors.torch import load_file, save_file

# as published, without the table of places: 2, 8.1 and 2.5 billion with it
SIZES = {
    "Stable Diffusion 3 medium": (2_028_328_000, 56_623_104),
    "Stable Diffusion 3.5 large": (8_056_627_520, 89_653_248),
    "Stable Diffusion 3.5 medium": (2_243_171_520, 226_492_416),
}
TEXT_TRAINED = ("text_encoder", "text_encoder_2", "text_encoder_3")


@cache
def full_models() -> dict:
    """name -> a full-size model on the meta device."""
    found, encoders = {}, {}
    for name in SIZES:
        source = StandardSource(ModelType.STABLE_DIFFUSION_35 if "3.5" in name else ModelType.STABLE_DIFFUSION_3, name)
        # the same in all of them
        encoders = encoders or {component: source.empty(component) for component in TEXT_TRAINED}
        transformer = source.empty("transformer")
        naming = sd3_adapter_naming(transformer, encoders)
        found[name] = ReferenceModel(name, {"transformer": transformer, **encoders}, naming)
    return found


@pytest.fixture(scope="module", params=SIZES)
def standard(request):
    return full_models()[request.param]


@pytest.fixture(params=["3", "3.5"])
def pipeline(request, sd3_pipelines):
    return sd3_pipelines[request.param]


@pytest.fixture
def transformer(pipeline):
    return pipeline.transformer


def naming_of(transformer):
    return sd3_adapter_naming(transformer, {})


def layers_in(model, components: tuple[str, ...], model_format: ModelFormat) -> set[str]:
    """The layers of a file with an adapter of rank 1 on every layer of some components."""
    layers: dict[str, dict[str, dict[str, Tensor]]] = {}
    for component in components:
        module = model.components[component]
        layers[component] = {
            path: {"lora_down.weight": torch.zeros(1, 1),
                   "lora_up.weight": torch.zeros(len(module.get_submodule(path).weight), 1)}
            for path in layer_paths(module)
        }  # fmt: skip
    file = encode_adapter(layers, model_format, model.naming, DataType.FLOAT_32)
    return {split_key(key)[0] for key in file}


def test_sizes_are_those_of_the_published_models(standard):
    transformer = standard.components["transformer"]
    own = sum(tensor.numel() for tensor in transformer.parameters())
    assert (own, transformer.pos_embed.pos_embed.numel()) == SIZES[standard.name]


def test_every_layer_has_a_key_that_readers_know(standard):
    transformer = standard.components["transformer"]
    native = native_layers(transformer.config)
    paths = {path for members in native.values() for path in members}
    assert paths == set(layer_paths(transformer)) and len(native) < len(paths)
    for model_format, prefix in NATIVE.items():
        found = layers_in(standard, ("transformer",), model_format)
        assert found == {spelled(prefix, name) for name in native}, model_format
    for model_format, prefix in APART.items():
        found = layers_in(standard, ("transformer",), model_format)
        assert found == {spelled(prefix, path) for path in paths}, model_format
    # ComfyUI's map; it knows no names without a prefix
    comfy = standard.naming.comfy
    assert {spelled(prefix, name) for prefix in ("diffusion_model.", "lora_unet_") for name in native} <= comfy
    prefixes = ("transformer.", "base_model.model.", "lora_transformer_", "lycoris_")
    assert {spelled(prefix, path) for prefix in prefixes for path in paths} <= comfy
    assert not (native.keys() | paths) & comfy
    assert standard.naming.kernels == {("transformer", "pos_embed.proj"): 4}


def test_text_encoders_have_the_names_that_readers_know(standard):
    """T5 under text_encoder_3 is found by nobody but OneTrainer."""
    t5 = set(layer_paths(standard.components["text_encoder_3"]))
    assert len(t5) == 24 * 7 and "encoder.block.23.layer.1.DenseReluDense.wi_1" in t5
    clips = {"text_encoder": ("clip_l", "lora_te1_", 12), "text_encoder_2": ("clip_g", "lora_te2_", 32)}
    comfy, kohya, internal = set(), set(), set()
    for component, (name, prefix, blocks) in clips.items():
        inner = [f"text_model.encoder.layers.{i}.{layer}" for i in range(blocks) for layer in
                 (*(f"self_attn.{part}_proj" for part in ("q", "k", "v", "out")), "mlp.fc1", "mlp.fc2")]  # fmt: skip
        for path in (*inner, "text_projection"):
            comfy.add(f"text_encoders.{name}.transformer.{path}")
            kohya.add(spelled(prefix, path))
            internal.add(f"{component}.{path}")
    comfy |= {f"text_encoders.t5xxl.transformer.{path}" for path in t5}
    kohya |= {spelled("lora_te3_", path) for path in t5}
    internal |= {f"text_encoder_3.{path}" for path in t5}
    for model_format, expected in (
        (ModelFormat.COMFY_LORA, comfy), (ModelFormat.KOHYA_LORA, kohya), (ModelFormat.LEGACY_LORA, kohya),
        (ModelFormat.DIFFUSERS_LORA, internal), (ModelFormat.INTERNAL, internal),
    ):  # fmt: skip
        assert layers_in(standard, TEXT_TRAINED, model_format) == expected, model_format
    assert comfy | kohya <= standard.naming.comfy
    assert not any(name.startswith("text_encoder_3.") for name in standard.naming.comfy)
    # with no prefix of the component there is no name for it
    with pytest.raises(UserError, match="text_encoder"):
        layers_in(standard, ("text_encoder",), ModelFormat.ORIGINAL_LORA)


def test_native_names_stand_for_the_right_layers(standard):
    transformer = standard.components["transformer"]
    layout = sd3_layout(transformer.config.num_layers)
    for native, paths in native_layers(transformer.config).items():
        assert {layout.layer(path)[0] for path in paths} == {native}
        assert [path for path in paths if path in layout.swapped] == (
            paths if native in swapped(transformer.config) else []
        )
        for prefix in ("", "diffusion_model.", "base_model.model.", "lora_unet_", "lycoris_"):
            name = spelled(prefix, native)
            group = standard.naming.fused.get(name)
            found = [standard.naming.read[name]] if group is None else list(group.layers)
            assert found == [("transformer", path) for path in paths]
    for path in layer_paths(transformer):
        for prefix in ("", "transformer.", "lora_transformer_", "lycoris_", "base_model.model.", "diffusion_model."):
            assert standard.naming.read[spelled(prefix, path)] == ("transformer", path)


def test_a_layer_of_another_model_has_no_native_name():
    for path in ("transformer_blocks.0.attn.to_strange", "x_embedder", "single_transformer_blocks.0.proj_mlp"):
        with pytest.raises(ValueError, match=path):
            sd3_layout(24).layer(path)


def test_a_file_tells_its_model(tmp_path, standard):
    transformer, parts = standard.components["transformer"], {}
    for path in ("context_embedder", "transformer_blocks.3.norm1.linear"):
        layer = transformer.get_submodule(path)
        parts[path] = {"lora_down.weight": torch.ones(1, layer.in_features),
                       "lora_up.weight": torch.ones(layer.out_features, 1)}  # fmt: skip
    file = encode_adapter({"transformer": parts}, ModelFormat.COMFY_LORA, standard.naming, DataType.FLOAT_32)
    save_file(file, tmp_path / "x")
    # in 3.5 medium that modulation is for a second attention, too
    assert find_reference(read_adapter(tmp_path / "x"), full_models().values()) is standard


def test_a_planned_model_has_every_kind_of_layer(standard):
    def kinds(names) -> set[str]:
        return {"".join(letter for letter in name if not letter.isdigit()) for name in names}

    planned = StableDiffusion3Model.planned_naming()
    for model_format, table in standard.naming.write.items():
        assert kinds(table.values()) <= kinds(planned.write[model_format].values())
    assert kinds(standard.naming.fused) <= kinds(planned.fused)


# --- adapters with numbers in them


def trained(transformer, options: dict, layers: LayerFilter | None = None) -> AdapterSet:
    adapters = AdapterSet("transformer", transformer, TrainConfig.from_dict(options), layers or LayerFilter())
    return disturb(adapters, 1)


def written(adapters: AdapterSet, transformer, path, model_format=ModelFormat.COMFY_LORA) -> dict[str, Tensor]:
    naming = naming_of(transformer)
    save_adapter(path, {"transformer": adapters}, model_format, naming, AdapterDescription())
    return load_file(path)


def native_weights(transformer, adapters: AdapterSet | None = None) -> dict[str, Tensor]:
    """Native layer -> weight, with the adapters in it if they are given."""
    result = {}
    for native, paths in native_layers(transformer.config).items():
        weights = []
        for path in paths:
            weight = transformer.get_submodule(path).weight.detach()
            if adapters is not None and path in adapters.adapters:
                weight = weight + adapters.adapters[path].merged_delta()
            turned = native in swapped(transformer.config)
            weights.append(torch.cat(weight.chunk(2)[::-1]) if turned else weight)
        result[native] = torch.cat(weights)
    return result


def comfy_map(transformer) -> dict[str, tuple[str, slice, bool]]:
    """Name of a layer in a file -> native layer, its rows, whether ΔW's halves are exchanged."""
    names: dict[str, tuple[str, slice, bool]] = {}
    for native, paths in native_layers(transformer.config).items():
        names[f"diffusion_model.{native}"] = native, slice(None), False
        start = 0
        for path in paths:
            rows = len(transformer.get_submodule(path).weight)
            turned = native in swapped(transformer.config)
            names[f"transformer.{path}"] = native, slice(start, start + rows), turned
            start += rows
    return names


def merged(file: dict[str, Tensor], transformer) -> dict[str, Tensor]:
    """Native layer -> the weight that ComfyUI makes of a file. Every key must be used."""
    names, result = comfy_map(transformer), native_weights(transformer)
    layers: dict[str, dict[str, Tensor]] = {}
    for key, tensor in file.items():
        layers.setdefault(split_key(key)[0], {})[key.removeprefix(f"{split_key(key)[0]}.")] = tensor
    for name, parts in layers.items():
        native, rows, turned = names[name]
        weight = result[native][rows]
        # matrices of convolutions: kernels are inputs
        flat = {part: tensor.flatten(1) if tensor.dim() == 4 else tensor for part, tensor in parts.items()}
        own = delta(flat, weight.flatten(1)).view_as(weight)
        changed = weight + (torch.cat(own.chunk(2)[::-1]) if turned else own)
        lengths = parts.get("dora_scale")
        if lengths is not None and lengths.shape[0] == len(weight):  # by the base's norm
            changed *= lengths / weight.flatten(1).norm(dim=1).view_as(lengths)
        elif lengths is not None:
            changed *= lengths / changed.transpose(0, 1).flatten(1).norm(dim=1).view_as(lengths)
        weight.copy_(changed)
    return result


@pytest.mark.parametrize("layers", [(), ("to_q", "norm1_context")])
@pytest.mark.parametrize("kind", KINDS)
def test_every_weight_in_comfyui_is_the_trained_one(tmp_path, transformer, kind, layers):
    if layers and kind == "OFT on outputs":
        layers = ("attn", "norm1_context")  # not joined with layers that have none
    adapters = trained(transformer, KINDS[kind], LayerFilter(layers))
    file = written(adapters, transformer, tmp_path / "x")
    plain, expected = native_weights(transformer), native_weights(transformer, adapters)
    found = merged(file, transformer)
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


def answer(transformer: nn.Module) -> Tensor:
    generator = torch.Generator().manual_seed(2)
    inputs = (torch.randn(2, *sides, generator=generator) for sides in ((4, 4, 6), (5, 64), (48,)))
    return transformer(*inputs, timestep=torch.tensor([300.0, 900.0]), return_dict=False)[0]


# diffusers 0.42.1 knows its own names alone
@pytest.mark.parametrize("kind", ["LoRA", "DoRA on outputs"])
def test_diffusers_loads_the_file(tmp_path, transformer, sd3_folders, kind):
    folder = sd3_folders["3.5" if transformer.config.qk_norm else "3"]
    adapters, path = trained(transformer, KINDS[kind]), tmp_path / "adapter.safetensors"
    written(adapters, transformer, path, ModelFormat.DIFFUSERS_LORA)
    pipeline = DiffusionPipeline.from_pretrained(folder)
    pipeline.load_lora_weights(str(path))
    plain = answer(transformer)
    adapters.eval().hook()
    try:
        hooked = answer(transformer)
    finally:
        adapters.unhook()
    assert (hooked - plain).abs().max() > 0.1
    torch.testing.assert_close(answer(pipeline.transformer), hooked, atol=1e-4, rtol=1e-4)
