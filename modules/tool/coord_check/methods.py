"""The methods that a coordinate check compares, and what it does where nothing else is said. Quick to load."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from modules.util.config.TrainConfig import TrainConfig
from modules.util.enum.PeftType import PeftType
from modules.util.enum.TrainingMethod import TrainingMethod

if TYPE_CHECKING:
    from modules.module.AdapterModule import AdapterModule

RANK, BLOCK = "rank", "block"
RANKS, BLOCKS = (4, 16, 64), (4, 16, 64)


@dataclass(frozen=True)
class CheckedMethod:
    """A way to train layers.

    Attributes:
        options: of the config.
    """

    options: Mapping[str, Any]

    @property
    def title(self) -> str:
        """In tables."""
        kind = self._adapter_class()
        if kind is None:
            return "full"
        file_kind = kind.file_kinds[0]
        return file_kind.dora_name if self.options["lora_decompose"] else file_kind.name

    @property
    def size(self) -> str:
        """The option that says how large it is; "" if it has no size."""
        kind = self._adapter_class()
        return "" if kind is None else kind.size_option

    @property
    def size_name(self) -> str:
        """`RANK`, `BLOCK`, or "" if it has no size."""
        kind = self._adapter_class()
        return "" if kind is None else kind.file_kinds[0].size_name.partition(" ")[0]

    def _adapter_class(self) -> "type[AdapterModule] | None":
        """The registered class; None for full fine-tuning."""
        if "peft_type" not in self.options:
            return None
        # here, as the names of methods are needed where torch is not loaded: in the window and for --help
        from modules.module.kinds import ADAPTER_CLASSES

        return ADAPTER_CLASSES[self.options["peft_type"], self.options["lora_decompose"]]


def _methods() -> dict[str, CheckedMethod]:
    """Name on the command line -> method, for all that a config can train; kinds that can be decomposed come first."""
    found: dict[bool, dict[str, CheckedMethod]] = {True: {}, False: {}}
    for kind in PeftType:
        options = {"training_method": TrainingMethod.LORA, "peft_type": kind, "lora_decompose": False}
        name, decomposes = kind.lower().partition("_")[0], TrainConfig(**options).applies("lora_decompose")
        found[decomposes][name] = CheckedMethod(options)
        if decomposes:
            decomposed = "dora" if kind == PeftType.LORA else f"dora-{name}"
            found[True][decomposed] = CheckedMethod(options | {"lora_decompose": True})
    return {**found[True], **found[False], "full": CheckedMethod({"training_method": TrainingMethod.FINE_TUNE})}


CHECKED: Mapping[str, CheckedMethod] = _methods()
# full fine-tuning takes many times their memory, so it is measured only where it is asked for
USUAL = ("lora", "dora", "oft", "dora-oft")
# steps before the one that is measured: the first moves up factors only, which start at zero
WARM = (1, 8)
BATCH = 4
# A step that changes as much at all sizes within this factor is called flat. On the tiny base it lies between the
# spreads of coherent scaled steps (at most 1.61 over three seeds) and those of the prediction under laws that need
# another rate for another size (at least 1.97), see docs/coord_check.md
BOUND = 1.75
