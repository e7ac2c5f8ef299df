"""How adapter files call layers in families of which ComfyUI knows the names of diffusers, dotted, as well as its own.

"Native" names are ComfyUI's own.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence

from modules.model.unet_keys import flat
from modules.util.AdapterNaming import AdapterNaming, FusedLayer, LayerId
from modules.util.enum.ModelFormat import ModelFormat


def dotted_naming(
    component: str,
    paths: list[str],
    apart: Mapping[LayerId, str],
    groups: Mapping[str, FusedLayer],
    comfy_bare: bool = True,
    native: bool = False,
    comfy_paths: bool = True,
    prefixes: Sequence[str] = (),
) -> AdapterNaming:
    """The key map of a transformer. See the top of this file.

    Args:
        component: its name in the config.
        paths: of its layers in diffusers.
        apart: layer -> native name, of layers that ComfyUI has one by one.
        groups: native name -> layers that ComfyUI has as one; of these it knows the names of diffusers, too.
        comfy_bare: whether it knows names of diffusers also without a prefix, and flattened after `lycoris_`.
        native: COMFY_LORA and ORIGINAL_LORA have native names, joined as `groups` says.
        comfy_paths: whether ComfyUI knows names of diffusers at all.
        prefixes: what other trainers put before names, beside the usual.

    Raises:
        ValueError: two layers have the same name.
    """

    def split(start: str) -> dict[LayerId, str]:
        return {(component, path): f"{start}{path}" for path in paths}

    def own(start: str) -> dict[LayerId, str]:
        return {layer: f"{start}{name}" for layer, name in apart.items()} if native else split(start)

    def joined(start: str) -> dict[str, FusedLayer]:
        return {f"{start}{name}": group for name, group in groups.items()}

    flattened = {layer: f"lora_unet_{flat(name)}" for layer, name in apart.items()}
    kohya = (ModelFormat.KOHYA_LORA, ModelFormat.SAFETENSORS)
    names = {
        # flattened names of what is joined, one by one, are known to other trainers, and not to ComfyUI
        **dict.fromkeys(kohya, flattened),
        ModelFormat.COMFY_LORA: own("diffusion_model."),
        ModelFormat.ORIGINAL_LORA: own(""),
        ModelFormat.DIFFUSERS_LORA: split("transformer."),
        ModelFormat.LEGACY_LORA: split("transformer."),
        ModelFormat.INTERNAL: split(f"{component}."),
    }
    write_fused = dict.fromkeys(kohya, {f"lora_unet_{flat(name)}": group for name, group in groups.items()})
    if native:
        write_fused |= {ModelFormat.COMFY_LORA: joined("diffusion_model."), ModelFormat.ORIGINAL_LORA: joined("")}
    aliases = {name: layer for layer, name_there in apart.items() for name in _aliases(name_there, prefixes)}
    aliases |= {name: (component, path) for path in paths for name in _aliases(path, prefixes)}
    return AdapterNaming.build(
        names,
        aliases,
        fused={name: group for name_there, group in groups.items() for name in _aliases(name_there, prefixes)},
        write_fused=write_fused,
        comfy=_comfy_names(paths if comfy_paths else (), [*apart.values(), *groups], comfy_bare),
    )


def _comfy_names(paths: Iterable[str], native: Iterable[str], bare: bool) -> Iterator[str]:
    """The names that stock ComfyUI knows: all native ones, and diffusers' with other prefixes."""
    for name in native:
        yield from (f"diffusion_model.{name}", f"lora_unet_{flat(name)}")
    for path in paths:
        yield from (f"diffusion_model.{path}", f"transformer.{path}")
        if bare:
            yield from (path, f"lycoris_{flat(path)}")


def _aliases(name: str, prefixes: Iterable[str]) -> tuple[str, ...]:
    """How trainers call a layer, by its name in diffusers or its native one."""
    return (
        *(f"{prefix}.{name}" for prefix in prefixes),
        *(name, f"diffusion_model.{name}", f"transformer.{name}", f"base_model.model.{name}"),
        *(f"lora_transformer.{name}", f"lora_unet_{flat(name)}", f"lora_transformer_{flat(name)}"),
        f"lycoris_{flat(name)}",
    )
