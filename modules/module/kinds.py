"""The registry of adapter kinds, from which runs, files, converters and messages take all of them."""

from collections.abc import Mapping

from modules.module.AdapterModule import AdapterModule
from modules.module.DiffModule import DiffModule
from modules.module.DoRAModule import DoRAModule
from modules.module.DoRAOFTModule import DoRAOFTModule
from modules.module.FileKind import FileKind
from modules.module.LoHaModule import LoHaModule
from modules.module.LoKrModule import LoKrModule
from modules.module.LoRAModule import LoRAModule
from modules.module.OFTModule import OFTModule
from modules.util.config.TrainConfig import TrainConfig
from modules.util.enum.PeftType import PeftType
from modules.util.UserError import UserError

from torch import Tensor

# (peft_type, lora_decompose) -> class. A new kind of adapter is one file and one line here; kinds that are recognised
# by more parts stand before those with fewer.
ADAPTER_CLASSES: dict[tuple[PeftType, bool], type[AdapterModule]] = {
    (PeftType.LORA, True): DoRAModule,
    (PeftType.LORA, False): LoRAModule,
    (PeftType.LOHA, False): LoHaModule,
    (PeftType.LOKR, False): LoKrModule,
    (PeftType.OFT_2, True): DoRAOFTModule,
    (PeftType.OFT_2, False): OFTModule,
}
# kinds that no config makes: they come from files
FILE_CLASSES: list[type[AdapterModule]] = [DiffModule]


def adapter_class_of(config: TrainConfig) -> type[AdapterModule]:
    """The class of the config's adapter; UserError if there is none."""
    # kinds without a magnitude leave `lora_decompose` alone, as the GUI does
    key = (config.peft_type, config.lora_decompose and (config.peft_type, True) in ADAPTER_CLASSES)
    if key not in ADAPTER_CLASSES:
        supported = ", ".join(dict.fromkeys(str(kind) for kind, _ in ADAPTER_CLASSES))
        raise UserError(f"peft_type: {key[0]} is not supported; expected one of {supported}.")
    return ADAPTER_CLASSES[key]


def class_of_layers(layers: Mapping[str, Mapping[str, Tensor]]) -> type[AdapterModule]:
    """The class of an adapter by the parts of its layers.

    Raises:
        UserError: parts that make up no adapter, or layers of several kinds.
    """
    found: dict[type[AdapterModule], str] = {}
    for name, parts in layers.items():
        kinds = (*ADAPTER_CLASSES.values(), *FILE_CLASSES)
        kind = next((kind for kind in kinds if kind.recognizes(parts.keys())), None)
        if kind is None:
            raise UserError(f"{name}: the parts {', '.join(sorted(parts))} make up no adapter that is known here.")
        found.setdefault(kind, name)
    if len(found) > 1:
        examples = ", ".join(f"{kind.__name__.removesuffix('Module')} in {name}" for kind, name in found.items())
        raise UserError(
            f"An adapter of several kinds can't be continued: {examples}. Expected one kind for all layers."
        )
    return next(iter(found))


def file_kinds() -> tuple[FileKind, ...]:
    """What files know of all registered kinds, each once, in the registry's order."""
    classes = (*ADAPTER_CLASSES.values(), *FILE_CLASSES)
    return tuple(dict.fromkeys(kind for adapter in classes for kind in adapter.file_kinds))


def file_kind_named(name: str) -> FileKind:
    """The registered kind of a name that files and messages use."""
    return next(kind for kind in file_kinds() if kind.name == name)
