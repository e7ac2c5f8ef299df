"""How adapter files call the layers of diffusers UNets and CLIP text encoders (SD 1.x, SD 2.x, SDXL).

"Native" names are those of the original single-file models: input_blocks, middle_block, output_blocks.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from modules.util.AdapterNaming import AdapterNaming, LayerId
from modules.util.enum.ModelFormat import ModelFormat

from torch import nn

_RESNET_LEAVES = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
# ComfyUI's names for SDXL's text encoders, in the model's order
COMFY_CLIPS = ("clip_l", "clip_g")
_SINGLE_LAYERS = {
    "conv_in": "input_blocks.0.0",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}


def unet_adapter_naming(unet: nn.Module, text_encoders: Mapping[str, nn.Module]) -> AdapterNaming:
    """The key map of a model with a diffusers UNet and any number of CLIP text encoders.

    Args:
        unet: a `UNet2DConditionModel`, may be on the meta device.
        text_encoders: component name -> CLIP text model, in the model's order. A single one is called `lora_te` in
            kohya files, several are `lora_te1`, `lora_te2` and so on.
    """
    namings = [unet_naming("unet", layer_paths(unet), unet.config)]
    if len(text_encoders) == 1:
        ((component, encoder),) = text_encoders.items()
        clip = comfy_clip_name(encoder.config.hidden_size)
        namings.append(clip_naming(component, layer_paths(encoder), "lora_te", clip))
    else:
        for index, (component, encoder) in enumerate(text_encoders.items()):
            namings.append(clip_naming(component, layer_paths(encoder), f"lora_te{index + 1}", COMFY_CLIPS[index]))
    return replace(AdapterNaming.join(namings), kernels=kernel_sizes("unet", unet))


def kernel_sizes(component: str, module: nn.Module) -> dict[LayerId, int]:
    """`AdapterNaming.kernels` of a component, which may be on the meta device."""
    layers = ((path, module.get_submodule(path)) for path in layer_paths(module))
    return {(component, path): math.prod(layer.kernel_size) for path, layer in layers if isinstance(layer, nn.Conv2d)}


def layer_paths(module: nn.Module) -> list[str]:
    """Module paths of all layers that can carry an adapter, in the module's order."""
    return [name for name, layer in module.named_modules() if isinstance(layer, (nn.Linear, nn.Conv2d))]


def unet_naming(component: str, paths: Iterable[str], config: Mapping[str, Any]) -> AdapterNaming:
    """Names of a UNet's layers. `config` is the UNet's own; see `native_blocks` for what is read.

    Raises:
        ValueError: a path has no native name, or two paths would share a name.
    """
    blocks = native_blocks(config)
    native: dict[LayerId, str] = {(component, path): native_unet_path(path, blocks) for path in paths}
    kohya = {layer: f"lora_unet_{flat(layer[1])}" for layer in native}
    aliases: dict[str, LayerId] = {}
    for layer, name in native.items():
        aliases |= {f"lora_unet_{flat(name)}": layer, f"lycoris_{flat(layer[1])}": layer}
        aliases |= {f"lycoris_{flat(name)}": layer, f"diffusion_model.{layer[1]}": layer}
        # OneTrainer's dotted names, for either structure, and what peft writes by itself
        aliases |= {f"unet.{name}": layer, f"lora_unet.{name}": layer, f"lora_unet.{layer[1]}": layer}
        aliases |= {f"base_model.model.{path}": layer for path in (layer[1], name)} | {layer[1]: layer}
    names = {
        ModelFormat.KOHYA_LORA: kohya,
        # what OneTrainer wrote under these names is the same for this family
        ModelFormat.LEGACY_LORA: kohya,
        ModelFormat.SAFETENSORS: kohya,
        ModelFormat.COMFY_LORA: {layer: f"diffusion_model.{name}" for layer, name in native.items()},
        ModelFormat.ORIGINAL_LORA: native,
        ModelFormat.DIFFUSERS_LORA: {layer: f"unet.{layer[1]}" for layer in native},
        ModelFormat.INTERNAL: {layer: f"{component}.{layer[1]}" for layer in native},
    }
    return AdapterNaming.build(names, aliases, comfy=_comfy_unet(native))


def _comfy_unet(native: Mapping[LayerId, str]) -> Iterator[str]:
    """The names that stock ComfyUI knows. It spells diffusers' dotted names of attention as early versions did."""
    for (_, path), name in native.items():
        yield from (f"diffusion_model.{name}", f"lora_unet_{flat(name)}", f"lora_unet_{flat(path)}")
        yield f"lycoris_{flat(path)}"
        old = path.replace(".to_", ".processor.to_")
        old = old.removesuffix(".0") if path.endswith(".to_out.0") else old
        yield from (old, f"unet.{old}")


def clip_naming(component: str, paths: Iterable[str], kohya_prefix: str, comfy_clip: str) -> AdapterNaming:
    """Names of a CLIP text encoder's layers.

    Transformers 5 has no `text_model.` level in `CLIPTextModel`, transformers 4 and all files have: written names
    always hold it, read names may or may not.

    Args:
        component: the encoder's name in the config and in diffusers.
        paths: module paths, with or without `text_model.`.
        kohya_prefix: "lora_te", "lora_te1" …
        comfy_clip: ComfyUI's name for the encoder: "clip_l", "clip_g", "clip_h".
    """
    written: dict[LayerId, str] = {(component, path): clip_file_path(path) for path in paths}
    kohya = {layer: f"{kohya_prefix}_{flat(path)}" for layer, path in written.items()}
    aliases: dict[str, LayerId] = {}
    for layer, path in written.items():
        short = path.removeprefix("text_model.")
        single = kohya_prefix == "lora_te"
        prefixes = {kohya_prefix, "lora_te1"} if single else {kohya_prefix}
        # OneTrainer calls a single encoder clip_l whatever its size
        dotted = {*prefixes, component, comfy_clip, "clip_l"} if single else {*prefixes, component, comfy_clip}
        for spelling in (path, short):
            aliases |= {f"{prefix}_{flat(spelling)}": layer for prefix in prefixes}
            aliases |= {f"{prefix}.{spelling}": layer for prefix in dotted}
            aliases[f"text_encoders.{comfy_clip}.transformer.{spelling}"] = layer
            if single:  # of two, peft's own file does not say which it is
                aliases[f"base_model.model.{spelling}"] = layer
    names = {
        ModelFormat.KOHYA_LORA: kohya,
        ModelFormat.LEGACY_LORA: kohya,
        ModelFormat.SAFETENSORS: kohya,
        ModelFormat.COMFY_LORA: {
            layer: f"text_encoders.{comfy_clip}.transformer.{path}" for layer, path in written.items()
        },
        ModelFormat.DIFFUSERS_LORA: {layer: f"{component}.{path}" for layer, path in written.items()},
        ModelFormat.INTERNAL: {layer: f"{component}.{path}" for layer, path in written.items()},
    }
    inner = [path for path in written.values() if path.startswith("text_model.")]
    comfy = {*names[ModelFormat.COMFY_LORA].values(), *kohya.values(), *(f"{component}.{path}" for path in inner)}
    return AdapterNaming.build(names, aliases, comfy=comfy)


def comfy_clip_name(hidden_size: int) -> str:
    """ComfyUI's name for a CLIP text encoder that is the model's only one: SD 1.x has the small, SD 2.x the wide."""
    return "clip_l" if hidden_size < 1024 else "clip_h"


def clip_file_path(path: str) -> str:
    """The path of a CLIP layer as files call it, with `text_model.`; the projection stands beside that level."""
    return path if path.startswith(("text_model.", "text_projection")) else f"text_model.{path}"


def flat(path: str) -> str:
    """A path in kohya's spelling, underscores for dots."""
    return path.replace(".", "_")


def native_blocks(config: Mapping[str, Any]) -> dict[str, str]:
    """Diffusers path -> native path of every resnet, attention, down- and upsampler of a UNet.

    Args:
        config: read for `down_block_types`, `up_block_types`, `mid_block_type` and `layers_per_block`, as in diffusers.
    """
    down_types, up_types = config["down_block_types"], config["up_block_types"]
    layers = _per_block(config["layers_per_block"], len(down_types))
    blocks: dict[str, str] = {}
    index = 1  # input_blocks.0 is conv_in
    for i, (kind, count) in enumerate(zip(down_types, layers, strict=True)):
        for j in range(count):
            blocks[f"down_blocks.{i}.resnets.{j}"] = f"input_blocks.{index}.0"
            if "Attn" in kind:
                blocks[f"down_blocks.{i}.attentions.{j}"] = f"input_blocks.{index}.1"
            index += 1
        if i < len(down_types) - 1:
            blocks[f"down_blocks.{i}.downsamplers.0.conv"] = f"input_blocks.{index}.0.op"
            index += 1
    # without attention in the middle the resnets follow each other
    second = 2 if "Attn" in (config.get("mid_block_type") or "") else 1
    blocks |= {"mid_block.resnets.0": "middle_block.0", "mid_block.resnets.1": f"middle_block.{second}"}
    if second == 2:
        blocks["mid_block.attentions.0"] = "middle_block.1"
    index = 0
    for i, (kind, count) in enumerate(zip(up_types, reversed(layers), strict=True)):
        for j in range(count + 1):  # one more than on the way down, for conv_in's or the downsampler's skip
            blocks[f"up_blocks.{i}.resnets.{j}"] = f"output_blocks.{index}.0"
            if "Attn" in kind:
                blocks[f"up_blocks.{i}.attentions.{j}"] = f"output_blocks.{index}.1"
            index += 1
        if i < len(up_types) - 1:
            place = 2 if "Attn" in kind else 1
            blocks[f"up_blocks.{i}.upsamplers.0.conv"] = f"output_blocks.{index - 1}.{place}.conv"
    return blocks


def native_unet_path(path: str, blocks: Mapping[str, str]) -> str:
    """The native path of one UNet layer.

    Args:
        path: diffusers module path, for example "mid_block.resnets.0.conv1".
        blocks: from `native_blocks`.

    Raises:
        ValueError: the layer is none of a Stable Diffusion UNet's.
    """
    if path in _SINGLE_LAYERS:
        return _SINGLE_LAYERS[path]
    if path in blocks:
        return blocks[path]
    segments = path.split(".")
    depth = 3 if segments[0] == "mid_block" else 4
    block, leaf = ".".join(segments[:depth]), ".".join(segments[depth:])
    if block in blocks and segments[depth - 2] == "attentions" and leaf:
        return f"{blocks[block]}.{leaf}"
    if block in blocks and segments[depth - 2] == "resnets" and leaf in _RESNET_LEAVES:
        return f"{blocks[block]}.{_RESNET_LEAVES[leaf]}"
    raise ValueError(f"{path} has no native name; expected a layer of a Stable Diffusion UNet")


def _per_block(value: int | Sequence[int], blocks: int) -> list[int]:
    return [value] * blocks if isinstance(value, int) else list(value)
