"""What adapter files of every family keep to: their keys, and what readers make of them."""

from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

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
from modules.util.LayerFilter import LayerFilter
from modules.util.ReferenceModel import ReferenceModel
from modules.util.UserError import UserError
from tests.adapters import disturb
from tests.model.test_flux2_comfy import delta

import torch
from torch import Tensor, nn

import pytest
from diffusers import DiffusionPipeline
from safetensors.torch import load_file, save_file

LOW_RANK = {"lora_rank": 3, "lora_alpha": 5.0}
ADAPTER_KINDS = {
    "LoRA": LOW_RANK,
    "DoRA on inputs": LOW_RANK | {"lora_decompose": True},
    "DoRA on outputs": LOW_RANK | {"lora_decompose": True, "lora_decompose_output_axis": True},
    "LoHa": {"peft_type": "LOHA", "lora_rank": 2, "lora_alpha": 3.0},
    "LoKr": {"peft_type": "LOKR", "lora_alpha": 3.0, "lokr_dim": 2},
    "OFT": {"peft_type": "OFT_2", "oft_block_size": 8},
    "OFT on outputs": {"peft_type": "OFT_2", "oft_side": "OUTPUT", "oft_block_size": 8},
}
"""Kinds of adapters in files -> their settings."""
# rotations of inputs are no kind of stock ComfyUI, and only its own format is adjusted for its DoRA on outputs
COMFY_KINDS = [
    *(("COMFY_LORA", kind) for kind in ADAPTER_KINDS if kind != "OFT"),
    *(("KOHYA_LORA", kind) for kind in ADAPTER_KINDS if kind not in ("OFT", "DoRA on outputs")),
]
"""(format, kind) of which stock ComfyUI makes the trained weights, where no layers are joined."""


def rank_one_keys(
    model: ReferenceModel, model_format: ModelFormat, paths: Iterable[str] | None = None
) -> dict[str, Tensor]:
    """The tensors of an adapter of rank 1.

    Args:
        model: on the meta device.
        model_format: of the file.
        paths: of the layers that have one; None: all of them.
    """
    transformer, parts = model.components["transformer"], {}
    for path in layer_paths(transformer) if paths is None else paths:
        layer = transformer.get_submodule(path)
        parts[path] = {"lora_down.weight": torch.zeros(1, layer.in_features),
                       "lora_up.weight": torch.zeros(layer.out_features, 1)}  # fmt: skip
    return encode_adapter({"transformer": parts}, model_format, model.naming, DataType.FLOAT_32)


def tells_its_model(path: Path, tensors: Mapping[str, Tensor], models: Collection[ReferenceModel], own: Any) -> None:
    """By the sizes in an adapter file its model is found among those of all families."""
    save_file(dict(tensors), path)
    assert find_reference(read_adapter(path), models) is own


def trained_adapters(transformer: nn.Module, kind: str, layers: LayerFilter | None = None) -> AdapterSet:
    """Adapters of a kind of `ADAPTER_KINDS` that change every chosen layer."""
    config = TrainConfig.from_dict(ADAPTER_KINDS[kind])
    return disturb(AdapterSet("transformer", transformer, config, layers or LayerFilter()), 1)


def written(adapters: AdapterSet, naming: AdapterNaming, model_format: str, path: Path) -> dict[str, Tensor]:
    """The tensors of a file of adapters, which is written."""
    save_adapter(path, {"transformer": adapters}, ModelFormat(model_format), naming, AdapterDescription())
    return load_file(path)


def comes_back_from(
    model_format: str,
    kind: str,
    transformer: nn.Module,
    naming: AdapterNaming,
    path: Path,
    left_out: Collection[str] = (),
) -> None:
    """Adapters of a kind in a family that joins no layers: every format has them, but for kinds that diffusers lacks.

    Args:
        model_format: of the file.
        kind: of `ADAPTER_KINDS`.
        transformer: the base.
        naming: of the family.
        path: the file.
        left_out: see `comes_back`.
    """  # fmt: skip
    adapters = trained_adapters(transformer, kind)
    check_joins(ModelFormat(model_format), naming, kind_of(adapters), lambda _: True)
    if model_format == ModelFormat.DIFFUSERS_LORA and kind not in ("LoRA", "DoRA on outputs"):
        with pytest.raises(UserError, match="diffusers loads only LoRA and DoRA on outputs"):
            written(adapters, naming, model_format, path)
        return
    written(adapters, naming, model_format, path)
    comes_back(path, naming, transformer, adapters, left_out)


def kind_of(adapters: AdapterSet) -> Any:
    return kind_of_components({"transformer": adapters.layers()})


def comes_back(
    path: Path, naming: AdapterNaming, transformer: nn.Module, adapters: AdapterSet, left_out: Collection[str] = ()
) -> None:
    """A file holds the adapters of all layers that were written into it.

    Args:
        path: the file.
        naming: of the family.
        transformer: the base.
        adapters: that were written.
        left_out: layers that adapters of this kind can't change, such as a single output, which can't be rotated.
    """
    found = read_adapter(path).fit(naming, {"transformer": transformer})["transformer"]
    assert found.keys() == adapters.adapters.keys() == set(layer_paths(transformer)) - {*left_out}
    for name, adapter in AdapterSet.from_parts("transformer", transformer, found).adapters.items():
        expected = adapters.adapters[name].merged_delta()
        assert expected.abs().max() > 1e-3
        # a few float32 roundings of weights below 1
        torch.testing.assert_close(adapter.merged_delta(), expected, atol=2e-6, rtol=1e-5)


def filter_selects(family: Any, name: str, transformer: nn.Module, count: int) -> None:
    """A filter, as OneTrainer's presets have it, selects so many layers, and nobody is told anything."""
    presets = family.layer_filter_presets
    config = TrainConfig.from_dict({"layer_filter": ",".join(presets[name]), "layer_filter_preset": name})
    chosen = LayerFilter.from_config(config, presets)
    assert not chosen.notes and len(chosen.select(layer_paths(transformer), "transformer")) == count


def comfy_makes_the_trained_weights(
    file: Mapping[str, Tensor],
    stands_for: Mapping[str, str | tuple[str, ...]],
    transformer: nn.Module,
    adapters: AdapterSet,
    kind: str,
) -> None:
    """By ComfyUI's formulas a file changes the base's weights as the adapters do.

    Args:
        file: its tensors.
        stands_for: names that ComfyUI knows -> layer, or several in the order of the rows of one.
        transformer: the base.
        adapters: that were written.
        kind: of `ADAPTER_KINDS`.
    """
    layers: dict[tuple[str, ...], dict[str, Tensor]] = {}
    for key, tensor in file.items():
        name, part = split_key(key)
        own = stands_for[name]
        # convolutions have kernels of one number
        flat = tensor.flatten(1) if tensor.dim() == 4 else tensor
        layers.setdefault((own,) if isinstance(own, str) else own, {})[part] = flat
    assert sorted(path for paths in layers for path in paths) == sorted(adapters.adapters)
    for paths, parts in layers.items():
        weight = torch.cat([transformer.get_submodule(path).weight.detach().flatten(1) for path in paths])
        found, lengths = weight + delta(parts, weight), parts.get("dora_scale")
        if lengths is not None:
            # on outputs by the base's norm
            norm = weight.norm(dim=1, keepdim=True) if "outputs" in kind else found.norm(dim=0, keepdim=True)
            found = found * lengths / norm
        # float32 roundings of weights of size 1
        expected = weight + torch.cat([adapters.adapters[path].merged_delta().flatten(1) for path in paths])
        torch.testing.assert_close(found, expected, atol=5e-6, rtol=1e-5)


@torch.no_grad()
def diffusers_computes_the_same(
    call: Callable[[nn.Module], Tensor],
    denoiser: nn.Module,
    adapters: AdapterSet,
    folder: Path,
    file: Path,
    load: Callable[[Path], Any] = DiffusionPipeline.from_pretrained,
) -> None:
    """A pipeline that loads a file gives the output of the hooked denoiser.

    Args:
        call: denoiser -> its output for inputs that are always the same.
        denoiser: the base.
        adapters: that were written.
        folder: of the base model.
        file: that has the adapters.
        load: folder -> pipeline of diffusers.
    """
    plain = call(denoiser)
    adapters.eval().hook()
    try:
        hooked = call(denoiser)
    finally:
        adapters.unhook()
    assert (hooked - plain).abs().max() > 0.1
    pipeline = load(folder)
    pipeline.load_lora_weights(str(file))
    # sums in another order, in float32, of numbers of size 1
    torch.testing.assert_close(call(getattr(pipeline, adapters.component)), hooked, atol=1e-4, rtol=1e-4)
