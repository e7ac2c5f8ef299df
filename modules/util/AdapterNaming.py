from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from modules.util.enum.ModelFormat import ModelFormat

# (component, module path), for example ("unet", "down_blocks.0.attentions.0.proj_in")
LayerId = tuple[str, str]


@dataclass(frozen=True)
class AdapterNaming:
    """How adapter files call the layers of a model: the family's full key map.

    Attributes:
        write: for each format that the family can write, the one name of every layer that has one.
        read: every name by which a file may call a layer, whatever its format.
    """

    write: Mapping[ModelFormat, Mapping[LayerId, str]]
    read: Mapping[str, LayerId]

    @staticmethod
    def build(names: Mapping[ModelFormat, Mapping[LayerId, str]], aliases: Mapping[str, LayerId]) -> "AdapterNaming":
        """A checked naming; `read` holds the written names and `aliases`.

        Raises:
            ValueError: two layers would get the same name, so that a file could not be read back.
        """
        read: dict[str, LayerId] = {}
        pairs = [(name, layer) for table in names.values() for layer, name in table.items()]
        for name, layer in [*pairs, *aliases.items()]:
            if read.setdefault(name, layer) != layer:
                raise ValueError(f"adapter layer name {name} stands for both {read[name]} and {layer}")
        return AdapterNaming(names, read)

    @staticmethod
    def join(parts: Iterable["AdapterNaming"]) -> "AdapterNaming":
        """The naming of a model from those of its components. Raises ValueError as `build` does."""
        names: dict[ModelFormat, dict[LayerId, str]] = {}
        aliases: dict[str, LayerId] = {}
        for part in parts:
            for model_format, table in part.write.items():
                names.setdefault(model_format, {}).update(table)
            for name, layer in part.read.items():
                if aliases.setdefault(name, layer) != layer:
                    raise ValueError(f"adapter layer name {name} stands for both {aliases[name]} and {layer}")
        return AdapterNaming.build(names, aliases)
