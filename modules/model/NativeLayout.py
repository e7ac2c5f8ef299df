import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace

from modules.model.native_file import NativeTensor
from modules.model.unet_keys import flat, kernel_sizes, layer_paths
from modules.util.AdapterNaming import AdapterNaming, FusedLayer, LayerId
from modules.util.CheckpointTensor import Share
from modules.util.enum.ModelFormat import ModelFormat

from torch import nn

# layers of diffusers that stand in one native layer, in the order of its rows -> what share of the rows each has
Stack = Mapping[str, Share]
_IN_BLOCK = re.compile(r"(?P<list>\D+?)\.(?P<number>\d+)(?:\.(?P<inner>.+))?")
_NORM = re.compile(r"_norm$|\.norms\.\d+$")


@dataclass(frozen=True)
class NativeLayout:
    """How the original code of a transformer calls its layers, by the names that diffusers gives them.

    "Native" names are those of the original code, which most single files and ComfyUI have. What adapter files call the
    layers follows from them.

    Attributes:
        model: for messages, "Flux.2".
        outside: path -> native path, of layers outside of blocks.
        swapped: the same of layers, in blocks or not, whose halves of outputs are exchanged there: scale and shift.
        blocks: list of blocks -> native list of blocks.
        inside: list of blocks -> path in a block -> native path in it, of layers and norms; "" is the block itself.
        fused: list of blocks -> native path in a block -> the layers that are stacked in it.
        tensors: name -> native name, of tensors that are no layer's.
        unknown_to_comfy: how names of diffusers begin that ComfyUI does not know.
        file_prefix: what stands before native names in files of the transformer, and in ORIGINAL_LORA.
        comfy_prefixes: what stands before names of diffusers in ComfyUI's map; behind an underscore they are flattened.
    """

    model: str
    outside: Mapping[str, str]
    swapped: Mapping[str, str]
    blocks: Mapping[str, str]
    inside: Mapping[str, Mapping[str, str]]
    fused: Mapping[str, Mapping[str, Stack]]
    tensors: Mapping[str, str] = field(default_factory=dict)
    unknown_to_comfy: tuple[str, ...] = ()
    file_prefix: str = ""
    comfy_prefixes: tuple[str, ...] = ("", "transformer.", "lora_transformer_", "lycoris_")
    _stacked: Mapping[tuple[str, str], tuple[str, Share]] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        stacked = {
            (kind, path): (native, share)
            for kind, stacks in self.fused.items()
            for native, stack in stacks.items()
            for path, share in stack.items()
        }
        object.__setattr__(self, "_stacked", stacked)

    def layer(self, path: str) -> tuple[str, Share | None]:
        """The native path of one module, and which of the native layer's outputs it is (None: all of them).

        Args:
            path: diffusers module path of a layer or norm, for example "transformer_blocks.3.attn.to_k".

        Raises:
            ValueError: it is none of such a transformer's.
        """
        if native := self.swapped.get(path) or self.outside.get(path):
            return native, None
        block = _IN_BLOCK.fullmatch(path)
        if block and block["list"] in self.blocks:
            kind, inner = block["list"], block["inner"] or ""
            native, share = self._stacked.get((kind, inner)) or (self.inside[kind].get(inner), None)
            if native is not None:
                return ".".join(filter(None, (self.blocks[kind], block["number"], native))), share
        raise ValueError(f"{path} has no native name; expected a layer of a {self.model} transformer")

    def tensor(self, name: str) -> NativeTensor:
        """The place of a tensor that diffusers calls `name`. Raises ValueError as `layer` does."""
        if alone := self.tensors.get(name):
            return NativeTensor(alone)
        path, ending = name.rsplit(".", 1)
        native, share = self.layer(path)
        # the original code's norms call their weight so
        ending = "scale" if _NORM.search(native) else ending
        return NativeTensor(f"{native}.{ending}", share, path in self.swapped)

    def adapter_naming(self, transformer: nn.Module, component: str = "transformer") -> AdapterNaming:
        """The key map of a transformer.

        Args:
            transformer: of diffusers, may be on the meta device.
            component: its name in the config.

        Raises:
            ValueError: a layer has no native name.
        """
        paths = layer_paths(transformer)
        apart, groups = native_layers(
            transformer, paths, component, lambda path: NativeTensor(*self.layer(path), path in self.swapped)
        )
        return replace(self._naming(component, paths, apart, groups), kernels=kernel_sizes(component, transformer))

    def _naming(
        self, component: str, paths: list[str], apart: Mapping[LayerId, str], groups: Mapping[str, FusedLayer]
    ) -> AdapterNaming:
        """The naming of layers that files have `apart`, and of those that they have in `groups`, by native names."""
        spellings = {
            ModelFormat.KOHYA_LORA: lambda native: f"lora_unet_{flat(native)}",
            ModelFormat.SAFETENSORS: lambda native: f"lora_unet_{flat(native)}",
            ModelFormat.COMFY_LORA: lambda native: f"diffusion_model.{native}",
            ModelFormat.ORIGINAL_LORA: lambda native: f"{self.file_prefix}{native}",
        }
        names = {
            **{kind: {layer: spell(native) for layer, native in apart.items()} for kind, spell in spellings.items()},
            # these have diffusers' structure
            ModelFormat.LEGACY_LORA: {(component, path): f"lora_transformer_{flat(path)}" for path in paths},
            ModelFormat.DIFFUSERS_LORA: {(component, path): f"transformer.{path}" for path in paths},
            ModelFormat.INTERNAL: {(component, path): f"{component}.{path}" for path in paths},
        }
        aliases: dict[str, LayerId] = {
            name: layer for layer, native in apart.items() for name in _native_aliases(native)
        }
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
            comfy=self._comfy_names(paths, [*apart.values(), *groups]),
        )  # fmt: skip

    def _comfy_names(self, paths: Iterable[str], native: Iterable[str]) -> Iterator[str]:
        """The names that stock ComfyUI knows: all native ones, and diffusers' but for `unknown_to_comfy`."""
        for name in native:
            yield from (f"diffusion_model.{name}", f"lora_unet_{flat(name)}")
        for path in paths:
            if not path.startswith(self.unknown_to_comfy):
                for prefix in self.comfy_prefixes:
                    yield prefix + (flat(path) if prefix.endswith("_") else path)


def _native_aliases(native: str) -> tuple[str, ...]:
    """How other trainers call a native layer: peft, ai-toolkit's older files, and tools that flatten names."""
    return (
        *(native, f"base_model.model.{native}", f"transformer.{native}", f"lora_transformer.{native}"),
        *(f"lycoris_{flat(native)}", f"lora_transformer_{flat(native)}"),
    )


def native_layers(
    transformer: nn.Module, paths: Iterable[str], component: str, place: Callable[[str], NativeTensor]
) -> tuple[dict[LayerId, str], dict[str, FusedLayer]]:
    """Layers that a native file has apart, with their names there, and those that it joins or swaps, by these names.

    Args:
        transformer: of diffusers, may be on the meta device.
        paths: of its layers.
        component: its name in the config.
        place: path of a layer -> where a native file has it.
    """
    apart: dict[LayerId, str] = {}
    stacked: dict[str, dict[Share, tuple[str, bool]]] = {}
    for path in paths:
        there = place(path)
        if there.share is None and not there.swapped:
            apart[component, path] = there.name
        else:
            stacked.setdefault(there.name, {})[there.share or Share(0, 1, 1)] = path, there.swapped
    groups: dict[str, FusedLayer] = {}
    for native, shares in stacked.items():
        members = [shares[share] for share in sorted(shares)]
        rows = tuple(transformer.get_submodule(path).out_features for path, _ in members)
        groups[native] = FusedLayer(tuple((component, path) for path, _ in members), rows, members[0][1])
    return apart, groups
