"""What stock ComfyUI makes of Flux.2 adapters that can't be joined: its key map and formulas, written down once more.

Its map knows every native layer by its name, each third of a fused projection of a double block by diffusers' name, and
the last modulation by diffusers' name with the halves of ΔW exchanged. The map and the merged weights were compared
with ComfyUI's own code (April 2026): no key of these files is lost, and all weights of a narrow model agree to 1e-6.
"""

from modules.model.flux2_keys import flux2_adapter_naming
from modules.model.unet_keys import layer_paths
from modules.modelSaver.adapter_layout import split_key
from modules.modelSaver.adapter_metadata import AdapterDescription
from modules.modelSaver.AdapterFile import read_adapter
from modules.modelSaver.save_adapter import check_halves, check_joins, kind_of_components, save_adapter
from modules.module.AdapterSet import AdapterSet
from modules.util.config.TrainConfig import TrainConfig
from modules.util.enum.ModelFormat import ModelFormat
from modules.util.LayerFilter import LayerFilter
from modules.util.UserError import UserError
from tests.adapters import disturb

import torch
from torch import Tensor

import pytest
from safetensors.torch import load_file

COMFY = ModelFormat.COMFY_LORA
LOKR = {"peft_type": "LOKR", "lora_alpha": 3.0, "lokr_dim": 2}
LOW_RANK = {"lora_rank": 3, "lora_alpha": 5.0}
OUTPUTS = {"lora_decompose": True, "lora_decompose_output_axis": True}
KINDS = {
    "DoRA on inputs": LOW_RANK | {"lora_decompose": True},
    "DoRA on outputs": LOW_RANK | OUTPUTS,
    "LoRA": LOW_RANK,
    "LoKr": LOKR,
    "LoKr full": LOKR | {"lokr_full_matrix": True},
    "LoKr DoRA on inputs": LOKR | {"lokr_weight_decompose": True, "lokr_dora_on_output": False},
    "LoKr DoRA on outputs": LOKR | {"lokr_weight_decompose": True},
}
# these stand alone; all others are joined, as before
APART = ("DoRA on inputs", "LoKr", "LoKr full", "LoKr DoRA on inputs", "LoKr DoRA on outputs")
THIRDS = {"img_attn.qkv": ("to_q", "to_k", "to_v"), "txt_attn.qkv": ("add_q_proj", "add_k_proj", "add_v_proj")}
LAST = "final_layer.adaLN_modulation.1"


def comfy_names(native: list[str], hidden: int) -> dict[str, tuple[str, slice | None, bool]]:
    """Name of a layer in a file -> native layer, its rows (None: all), whether ΔW's halves are exchanged."""
    names: dict[str, tuple[str, slice | None, bool]] = {
        f"diffusion_model.{name}": (name, None, False) for name in native
    }
    for name in native:
        block, number, inner = (*name.split(".", 2), "", "")[:3]
        if block == "double_blocks" and inner in THIRDS:
            for third, layer in enumerate(THIRDS[inner]):
                rows = slice(third * hidden, (third + 1) * hidden)
                names[f"transformer.transformer_blocks.{number}.attn.{layer}"] = (name, rows, False)
    return names | {"transformer.norm_out.linear": (LAST, None, True)}


def product(parts: dict[str, Tensor], shape: torch.Size) -> Tensor:
    """ΔW."""
    alpha = parts["alpha"].item()
    if "lora_A.weight" in parts:
        return alpha / len(parts["lora_A.weight"]) * parts["lora_B.weight"] @ parts["lora_A.weight"]
    if "lora_down.weight" in parts:
        return alpha / len(parts["lora_down.weight"]) * parts["lora_up.weight"] @ parts["lora_down.weight"]
    factors, scale = [], 1.0
    for name in ("lokr_w1", "lokr_w2"):
        if name not in parts:
            scale = alpha / len(parts[f"{name}_b"])
        factors.append(parts[name] if name in parts else parts[f"{name}_a"] @ parts[f"{name}_b"])
    return scale * torch.kron(*factors).reshape(shape)


def delta(parts: dict[str, Tensor], weight: Tensor) -> Tensor:
    """ΔW without a magnitude, by the formulas that ComfyUI has for these parts."""
    if "oft_blocks" in parts:
        skew = parts["oft_blocks"] - parts["oft_blocks"].transpose(1, 2)
        eye = torch.eye(skew.shape[1])
        rotation = (eye + skew) @ torch.linalg.inv(eye - skew)
        blocks = weight.reshape(len(skew), skew.shape[1], -1)
        return (rotation.transpose(1, 2) @ blocks).reshape(weight.shape) - weight
    if "hada_w1_a" in parts:
        scale = parts["alpha"] / parts["hada_w1_b"].shape[0]
        return scale * (parts["hada_w1_a"] @ parts["hada_w1_b"]) * (parts["hada_w2_a"] @ parts["hada_w2_b"])
    return product(parts, weight.shape)


def merged(file: dict[str, Tensor], native: dict[str, Tensor], hidden: int) -> dict[str, Tensor]:
    """Native layer -> the patched weight. Every key must be used."""
    names, result = comfy_names(list(native), hidden), {name: weight.clone() for name, weight in native.items()}
    layers: dict[str, dict[str, Tensor]] = {}
    for key, tensor in file.items():
        name = next(name for name in names if key.startswith(f"{name}."))
        layers.setdefault(name, {})[key.removeprefix(f"{name}.")] = tensor
    for name, parts in layers.items():
        place, rows, swapped = names[name]
        weight = result[place] if rows is None else result[place][rows]
        change = product(parts, weight.shape)
        changed = weight + (torch.cat(change.chunk(2)[::-1]) if swapped else change)
        lengths = parts.get("dora_scale")
        if lengths is not None and lengths.shape[0] == len(weight):  # by the base's norm
            changed *= lengths / weight.norm(dim=1, keepdim=True)
        elif lengths is not None:
            changed *= lengths / changed.norm(dim=0, keepdim=True)
        weight.copy_(changed)
    return result


@pytest.fixture(params=["dev", "klein"])
def transformer(request, flux2_pipelines):
    return flux2_pipelines[request.param].transformer


def trained(transformer, options: dict, layers: LayerFilter | None = None) -> AdapterSet:
    adapters = AdapterSet("transformer", transformer, TrainConfig.from_dict(options), layers or LayerFilter())
    return disturb(adapters, 1)


def native_weights(transformer, flux2_layers, adapters: AdapterSet | None = None) -> dict[str, Tensor]:
    """Native layer -> weight, with the adapters in it if they are given."""
    result = {}
    for native, paths in flux2_layers(transformer.config).items():
        weights = []
        for path in paths:
            weight = transformer.get_submodule(path).weight.detach()
            if adapters is not None and path in adapters.adapters:
                weight = weight + adapters.adapters[path].merged_delta()
            weights.append(torch.cat(weight.chunk(2)[::-1]) if native == LAST else weight)
        result[native] = torch.cat(weights)
    return result


def written(adapters: AdapterSet, transformer, path) -> dict[str, Tensor]:
    save_adapter(path, {"transformer": adapters}, COMFY, flux2_adapter_naming(transformer), AdapterDescription())
    return load_file(path)


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor], plain: dict[str, Tensor]) -> None:
    changed = 0
    for name, weight in expected.items():
        change = (weight - plain[name]).norm()
        changed += change > 1e-3
        # float32 rounding of weights that change by a few percent
        assert (found[name] - weight).norm() <= 1e-5 * change + 1e-6, name
    assert changed


@pytest.mark.parametrize("kind", KINDS)
def test_every_weight_is_the_trained_one(tmp_path, transformer, flux2_layers, kind):
    adapters = trained(transformer, KINDS[kind])
    naming, adapter_kind = flux2_adapter_naming(transformer), kind_of_components({"transformer": adapters.layers()})
    check_joins(COMFY, naming, adapter_kind, lambda _: True)
    file = written(adapters, transformer, tmp_path / "x")
    plain = native_weights(transformer, flux2_layers)
    hidden = transformer.config.num_attention_heads * transformer.config.attention_head_dim
    assert_same(merged(file, plain, hidden), native_weights(transformer, flux2_layers, adapters), plain)
    names = {split_key(key)[0] for key in file}
    alone = {name for name in names if name.startswith("transformer.")}
    blocks = transformer.config.num_layers
    assert len(alone) == (6 * blocks if kind in APART else 0)
    # and it is the same adapter when it is read again
    found = read_adapter(tmp_path / "x")
    assert found.format == COMFY and found.kind == adapter_kind
    layers = found.fit(naming, {"transformer": transformer})["transformer"]
    assert layers.keys() == set(layer_paths(transformer))
    for name, adapter in AdapterSet.from_parts("transformer", transformer, layers).adapters.items():
        torch.testing.assert_close(adapter.merged_delta(), adapters.adapters[name].merged_delta(), atol=2e-6, rtol=1e-5)


@pytest.mark.parametrize("kind", ["DoRA on inputs", "DoRA on outputs", "LoKr"])
@pytest.mark.parametrize("layers", [("to_q",), ("to_k", "add_v_proj", "linear"), ("norm_out",)])
def test_some_of_the_fused_layers(tmp_path, transformer, flux2_layers, kind, layers):
    adapters = trained(transformer, KINDS[kind], LayerFilter(layers))
    file = written(adapters, transformer, tmp_path / "x")
    plain = native_weights(transformer, flux2_layers)
    hidden = transformer.config.num_attention_heads * transformer.config.attention_head_dim
    assert_same(merged(file, plain, hidden), native_weights(transformer, flux2_layers, adapters), plain)


def test_a_modulation_whose_halves_are_tied_keeps_diffusers_order(tmp_path, transformer, flux2_layers):
    """One row of w1 for all outputs: no exchange of halves can be written, so ComfyUI does it."""
    layers = LayerFilter(("norm_out",))
    adapters = trained(transformer, LOKR | {"lokr_decompose_factor": 1}, layers)
    file = written(adapters, transformer, tmp_path / "x")
    assert {split_key(key)[0] for key in file} == {"transformer.norm_out.linear"}
    plain = native_weights(transformer, flux2_layers)
    assert_same(merged(file, plain, 32), native_weights(transformer, flux2_layers, adapters), plain)
    found = read_adapter(tmp_path / "x").fit(flux2_adapter_naming(transformer), {"transformer": transformer})
    (adapter,) = AdapterSet.from_parts("transformer", transformer, found["transformer"]).adapters.values()
    assert torch.equal(adapter.merged_delta(), adapters.adapters["norm_out.linear"].merged_delta())
    # a magnitude of outputs would stay as it is when ComfyUI exchanges the halves
    tied = trained(transformer, LOKR | {"lokr_decompose_factor": 1, "lokr_weight_decompose": True}, layers)
    with pytest.raises(UserError, match="can't be divided between the layer's two halves"):
        written(tied, transformer, tmp_path / "y")


@pytest.mark.parametrize("decompose", [False, True])
def test_rotations_of_both_halves_together_are_never_left_in_diffusers_order(tmp_path, transformer, decompose):
    """ComfyUI would rotate the outputs in its own order, and exchange the halves of the change."""
    width = transformer.get_submodule("norm_out.linear").out_features
    options = {"peft_type": "OFT_2", "oft_side": "OUTPUT", "oft_block_size": width, "lora_decompose": decompose}
    adapters = trained(transformer, options, LayerFilter(("norm_out",)))
    with pytest.raises(UserError, match="turns outputs of both halves together"):
        written(adapters, transformer, tmp_path / "x")
    with pytest.raises(UserError, match="Choose one of LEGACY_LORA, INTERNAL, or leave norm_out.linear out"):
        check_halves(COMFY, flux2_adapter_naming(transformer), {"transformer": adapters})
    half = trained(transformer, options | {"oft_block_size": width // 2}, LayerFilter(("norm_out",)))
    check_halves(COMFY, flux2_adapter_naming(transformer), {"transformer": half})
    assert {split_key(key)[0] for key in written(half, transformer, tmp_path / "x")} == {f"diffusion_model.{LAST}"}


@pytest.mark.parametrize("kind", [{"peft_type": "OFT_2", "oft_block_size": 8}, KINDS["LoKr"]])
def test_other_formats_name_comfyui_s(transformer, kind):
    adapters = trained(transformer, kind)
    adapter_kind = kind_of_components({"transformer": adapters.layers()})
    for model_format in (ModelFormat.KOHYA_LORA, ModelFormat.ORIGINAL_LORA):
        with pytest.raises(UserError, match="Choose one of COMFY_LORA, LEGACY_LORA, INTERNAL"):
            check_joins(model_format, flux2_adapter_naming(transformer), adapter_kind, lambda _: True)


def test_rotations_of_inputs_stand_alone_for_the_node(tmp_path, transformer):
    adapters = trained(transformer, {"peft_type": "OFT_2", "oft_block_size": 8})
    names = {split_key(key)[0] for key in written(adapters, transformer, tmp_path / "x")}
    # the last modulation's rows may be exchanged whatever rotates its inputs
    assert f"diffusion_model.{LAST}" in names and "transformer.transformer_blocks.0.attn.add_k_proj" in names
    found = read_adapter(tmp_path / "x").fit(flux2_adapter_naming(transformer), {"transformer": transformer})
    for name, parts in found["transformer"].items():
        assert torch.equal(parts["oft_R.weight"], adapters.layers()[name]["oft_R.weight"])
