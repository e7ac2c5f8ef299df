from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from modules.util.enum.ModelFormat import ModelFormat

# (component, module path), for example ("unet", "down_blocks.0.attentions.0.proj_in")
LayerId = tuple[str, str]


@dataclass(frozen=True)
class FusedLayer:
    """One layer of a file that stands for several of the model, stacked on their outputs, such as a fused qkv.

    Attributes:
        layers: the model's layers, in the order of the rows.
        rows: how many outputs each of them has.
        swapped: the file has a single layer's outputs with their first and second half exchanged, such as shift and
            scale of a modulation.
    """

    layers: tuple[LayerId, ...]
    rows: tuple[int, ...]
    swapped: bool = False


@dataclass(frozen=True)
class AdapterNaming:
    """How adapter files call the layers of a model: the family's full key map.

    Attributes:
        write: for each format that the family can write, the one name of every layer that has one.
        read: every name by which a file may call a layer, whatever its format.
        fused: every name by which a file may call several layers at once.
        write_fused: for each format, the names under which layers are written joined; they have none in `write`.
        write_apart: for each format, the names under which layers of fused ones can stand alone, for adapters that
            can't be joined. A swapped layer has its own order of outputs there.
        comfy: every name, of a layer or a fused one, in whose place stock ComfyUI finds a weight.
        kernels: each convolution -> kh·kw.
        in_comfy: whether ComfyUI knows the model at all.
    """

    write: Mapping[ModelFormat, Mapping[LayerId, str]]
    read: Mapping[str, LayerId]
    fused: Mapping[str, FusedLayer] = field(default_factory=dict)
    write_fused: Mapping[ModelFormat, Mapping[str, FusedLayer]] = field(default_factory=dict)
    write_apart: Mapping[ModelFormat, Mapping[LayerId, str]] = field(default_factory=dict)
    comfy: frozenset[str] = frozenset()
    kernels: Mapping[LayerId, int] = field(default_factory=dict)
    in_comfy: bool = True

    def written(self, model_format: ModelFormat) -> set[str]:
        """The names of all layers in files of a format, if each has an adapter and fused layers are joined."""
        return {*self.write[model_format].values(), *self.write_fused.get(model_format, {})}

    @staticmethod
    def build(
        names: Mapping[ModelFormat, Mapping[LayerId, str]],
        aliases: Mapping[str, LayerId],
        fused: Mapping[str, FusedLayer] | None = None,
        write_fused: Mapping[ModelFormat, Mapping[str, FusedLayer]] | None = None,
        write_apart: Mapping[ModelFormat, Mapping[LayerId, str]] | None = None,
        comfy: Iterable[str] = (),
    ) -> "AdapterNaming":
        """A checked naming; `read` holds the written names and `aliases`, `fused` those of `write_fused`, too.

        Raises:
            ValueError: two layers would get the same name, so that a file could not be read back; a fused layer
                without the rows of each slice; a layer that would be written twice.
        """
        read: dict[str, LayerId] = {}
        write_apart = write_apart or {}
        pairs = [(name, layer) for table in (*names.values(), *write_apart.values()) for layer, name in table.items()]
        for name, layer in [*pairs, *aliases.items()]:
            if read.setdefault(name, layer) != layer:
                raise ValueError(f"adapter layer name {name} stands for both {read[name]} and {layer}")
        fused_by_name: dict[str, FusedLayer] = {}
        write_fused = write_fused or {}
        tables = [fused or {}, *write_fused.values()]
        for name, group in [pair for table in tables for pair in table.items()]:
            if name in read or fused_by_name.setdefault(name, group) != group:
                raise ValueError(f"adapter layer name {name} stands for {group.layers} and for other layers")
            if len(group.layers) != len(group.rows) or min(group.rows, default=0) < 1:
                raise ValueError(f"{name}: expected the rows of each of {group.layers}, found {group.rows}")
            if group.swapped and (len(group.rows) != 1 or group.rows[0] % 2):
                raise ValueError(f"{name}: only one layer of an even number of outputs has halves, found {group.rows}")
        for model_format, table in write_fused.items():
            layers = [layer for group in table.values() for layer in group.layers]
            if len(set(layers)) < len(layers) or set(layers) & names.get(model_format, {}).keys():
                raise ValueError(f"{model_format}: a layer of {sorted(table)} would be written twice")
        for model_format, alone in write_apart.items():
            members = {layer for group in write_fused.get(model_format, {}).values() for layer in group.layers}
            if not alone.keys() <= members:
                raise ValueError(f"{model_format}: {sorted(alone.keys() - members)} are of no fused layer")
        return AdapterNaming(names, read, fused_by_name, write_fused, write_apart, frozenset(comfy))

    @staticmethod
    def join(namings: Iterable["AdapterNaming"]) -> "AdapterNaming":
        """The naming of a model from those of its components. Raises ValueError as `build` does."""
        names: dict[ModelFormat, dict[LayerId, str]] = {}
        aliases: dict[str, LayerId] = {}
        fused: dict[str, FusedLayer] = {}
        write_fused: dict[ModelFormat, dict[str, FusedLayer]] = {}
        write_apart: dict[ModelFormat, dict[LayerId, str]] = {}
        comfy: set[str] = set()
        kernels: dict[LayerId, int] = {}
        for naming in namings:
            comfy |= naming.comfy
            kernels |= naming.kernels
            for model_format, alone in naming.write_apart.items():
                write_apart.setdefault(model_format, {}).update(alone)
            for model_format, table in naming.write.items():
                names.setdefault(model_format, {}).update(table)
            for name, layer in naming.read.items():
                if aliases.setdefault(name, layer) != layer:
                    raise ValueError(f"adapter layer name {name} stands for both {aliases[name]} and {layer}")
            for name, group in naming.fused.items():
                if fused.setdefault(name, group) != group:
                    raise ValueError(f"adapter layer name {name} stands for {group.layers} and for other layers")
            for model_format, groups in naming.write_fused.items():
                write_fused.setdefault(model_format, {}).update(groups)
        return replace(AdapterNaming.build(names, aliases, fused, write_fused, write_apart, comfy), kernels=kernels)
