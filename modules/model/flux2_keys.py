"""How files call the layers of Flux.2: adapter files, and the single files that hold the transformer alone.

"Native" names are those of the original code, which most single files and ComfyUI have: double_blocks, single_blocks.
There the attention of a double block has one layer for query, key and value, and the last modulation gives shift before
scale; in diffusers they are three layers, and scale comes first.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

from modules.model.unet_keys import flat, layer_paths
from modules.util.AdapterNaming import AdapterNaming, FusedLayer, LayerId
from modules.util.enum.ModelFormat import ModelFormat

from torch import Tensor, nn

_SINGLE_LAYERS = {
    "x_embedder": "img_in",
    "context_embedder": "txt_in",
    "time_guidance_embed.timestep_embedder.linear_1": "time_in.in_layer",
    "time_guidance_embed.timestep_embedder.linear_2": "time_in.out_layer",
    "time_guidance_embed.guidance_embedder.linear_1": "guidance_in.in_layer",
    "time_guidance_embed.guidance_embedder.linear_2": "guidance_in.out_layer",
    "double_stream_modulation_img.linear": "double_stream_modulation_img.lin",
    "double_stream_modulation_txt.linear": "double_stream_modulation_txt.lin",
    "single_stream_modulation.linear": "single_stream_modulation.lin",
    "proj_out": "final_layer.linear",
}
# scale and shift of the output, see above
_SWAPPED = {"norm_out.linear": "final_layer.adaLN_modulation.1"}
_BLOCK_LAYERS = {
    "transformer_blocks": {
        "attn.to_out.0": "img_attn.proj",
        "attn.to_add_out": "txt_attn.proj",
        "ff.linear_in": "img_mlp.0",
        "ff.linear_out": "img_mlp.2",
        "ff_context.linear_in": "txt_mlp.0",
        "ff_context.linear_out": "txt_mlp.2",
        "attn.norm_q": "img_attn.norm.query_norm",
        "attn.norm_k": "img_attn.norm.key_norm",
        "attn.norm_added_q": "txt_attn.norm.query_norm",
        "attn.norm_added_k": "txt_attn.norm.key_norm",
    },
    "single_transformer_blocks": {
        "attn.to_qkv_mlp_proj": "linear1",
        "attn.to_out": "linear2",
        "attn.norm_q": "norm.query_norm",
        "attn.norm_k": "norm.key_norm",
    },
}
_BLOCKS = {"transformer_blocks": "double_blocks", "single_transformer_blocks": "single_blocks"}
# Flux.1 has nothing under these names, and ComfyUI does not know them
_NEW_IN_FLUX2 = ("time_guidance_embed.", "double_stream_modulation_", "single_stream_modulation.")
# fused layer of a double block -> the layers that are stacked in it, in order
_FUSED = {
    "img_attn.qkv": ("attn.to_q", "attn.to_k", "attn.to_v"),
    "txt_attn.qkv": ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
}
_FUSED_OF = {path: (fused, index) for fused, paths in _FUSED.items() for index, path in enumerate(paths)}
_BLOCK = re.compile(r"(transformer_blocks|single_transformer_blocks)\.(\d+)\.(.+)")


def native_layer(path: str) -> tuple[str, int | None]:
    """The native path of one module, and which third of the native layer's outputs it is (None: all of them).

    Args:
        path: diffusers module path of a layer or norm, for example "transformer_blocks.3.attn.to_k".

    Raises:
        ValueError: it is none of a Flux.2 transformer's.
    """
    block = _BLOCK.fullmatch(path)
    if not block and (native := (_SINGLE_LAYERS | _SWAPPED).get(path)):
        return native, None
    if block:
        kind, number, inner = block.groups()
        if kind == "transformer_blocks" and inner in _FUSED_OF:
            fused, third = _FUSED_OF[inner]
            return f"{_BLOCKS[kind]}.{number}.{fused}", third
        if inner in _BLOCK_LAYERS[kind]:
            return f"{_BLOCKS[kind]}.{number}.{_BLOCK_LAYERS[kind][inner]}", None
    raise ValueError(f"{path} has no native name; expected a layer of a Flux.2 transformer")


class NativeTensor(NamedTuple):
    """Where a native file holds a tensor.

    Attributes:
        name: in the file.
        third: which third of that tensor's rows it is; None: all of it.
        swapped: the first and second half of its rows are exchanged.
    """

    name: str
    third: int | None = None
    swapped: bool = False

    def piece(self, tensor: Tensor) -> Tensor:
        """The tensor out of the file's."""
        rows = tensor if self.third is None else tensor.chunk(3)[self.third]
        return rows.roll(len(rows) // 2, 0) if self.swapped else rows


def native_tensor(name: str) -> NativeTensor:
    """The place of a tensor that diffusers calls `name`. Raises ValueError as `native_layer` does."""
    path, ending = name.rsplit(".", 1)
    native, third = native_layer(path)
    # the original code's norms call their weight so
    ending = "scale" if native.endswith("_norm") else ending
    return NativeTensor(f"{native}.{ending}", third, path in _SWAPPED)


def flux2_adapter_naming(
    transformer: nn.Module, text_encoders: Mapping[str, nn.Module] | None = None, component: str = "transformer"
) -> AdapterNaming:
    """The key map of a Flux.2 model. Its text encoder carries no adapters.

    Args:
        transformer: a `Flux2Transformer2DModel`, may be on the meta device.
        text_encoders: there are none that could be named.
        component: the transformer's name in the config.

    Raises:
        ValueError: a layer has no native name.
    """
    paths = layer_paths(transformer)
    apart: dict[LayerId, str] = {}
    stacked: dict[str, dict[int, str]] = {}
    for path in paths:
        native, third = native_layer(path)
        if third is None and path not in _SWAPPED:
            apart[component, path] = native
        else:
            stacked.setdefault(native, {})[third or 0] = path
    groups: dict[str, FusedLayer] = {}
    for native, thirds in stacked.items():
        members = [thirds[third] for third in sorted(thirds)]
        rows = tuple(transformer.get_submodule(path).out_features for path in members)
        groups[native] = FusedLayer(tuple((component, path) for path in members), rows, members[0] in _SWAPPED)
    return _naming(component, paths, apart, groups)


def _naming(
    component: str, paths: list[str], apart: Mapping[LayerId, str], groups: Mapping[str, FusedLayer]
) -> AdapterNaming:
    """The naming of layers that files have `apart`, and of those that they have in `groups`, by native names."""
    spellings = {
        ModelFormat.KOHYA_LORA: lambda native: f"lora_unet_{flat(native)}",
        ModelFormat.SAFETENSORS: lambda native: f"lora_unet_{flat(native)}",
        ModelFormat.COMFY_LORA: lambda native: f"diffusion_model.{native}",
        ModelFormat.ORIGINAL_LORA: lambda native: native,
    }
    names = {
        **{kind: {layer: spell(native) for layer, native in apart.items()} for kind, spell in spellings.items()},
        # these have diffusers' structure
        ModelFormat.LEGACY_LORA: {(component, path): f"lora_transformer_{flat(path)}" for path in paths},
        ModelFormat.DIFFUSERS_LORA: {(component, path): f"transformer.{path}" for path in paths},
        ModelFormat.INTERNAL: {(component, path): f"{component}.{path}" for path in paths},
    }
    aliases: dict[str, LayerId] = {name: layer for layer, native in apart.items() for name in _native_aliases(native)}
    for path in paths:
        own = (path, f"diffusion_model.{path}", f"base_model.model.{path}", f"lycoris_{flat(path)}")
        aliases |= dict.fromkeys((*own, f"lora_transformer.{path}", f"lora_unet_{flat(path)}"), (component, path))
    return AdapterNaming.build(
        names,
        aliases,
        fused={name: group for native, group in groups.items() for name in _native_aliases(native)},
        write_fused={kind: {spell(native): group for native, group in groups.items()}
                     for kind, spell in spellings.items()},
        # ComfyUI knows diffusers' names of the blocks and of the last layers as well
        write_apart={ModelFormat.COMFY_LORA: {
            layer: names[ModelFormat.DIFFUSERS_LORA][layer] for group in groups.values() for layer in group.layers
        }},
        comfy=_comfy_names(paths, [*apart.values(), *groups]),
    )  # fmt: skip


def _comfy_names(paths: Iterable[str], native: Iterable[str]) -> Iterator[str]:
    """The names that stock ComfyUI knows: all native ones, and diffusers' of those layers that Flux.1 has, too."""
    for name in native:
        yield from (f"diffusion_model.{name}", f"lora_unet_{flat(name)}")
    for path in paths:
        if not path.startswith(_NEW_IN_FLUX2):
            yield from (path, f"transformer.{path}", f"lora_transformer_{flat(path)}", f"lycoris_{flat(path)}")


def _native_aliases(native: str) -> tuple[str, ...]:
    """How other trainers call a native layer: peft, ai-toolkit's older files, and tools that flatten names."""
    return (
        *(f"base_model.model.{native}", f"transformer.{native}", f"lora_transformer.{native}"),
        *(f"lycoris_{flat(native)}", f"lora_transformer_{flat(native)}"),
    )
