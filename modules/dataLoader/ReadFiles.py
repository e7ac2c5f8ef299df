from dataclasses import dataclass
from typing import Self

from modules.util.config.TrainConfig import TrainConfig
from modules.util.enum.ConditioningSource import ConditioningSource


@dataclass(frozen=True)
class ReadFiles:
    """Which files beside images a run reads.

    Attributes:
        source: of the family's conditioning images.
        masks: whether mask files are read.
        conditioning: whether files of conditioning images are read.
    """

    source: ConditioningSource = ConditioningSource.NONE
    masks: bool = False
    conditioning: bool = False

    @classmethod
    def of(cls, config: TrainConfig, source: ConditioningSource) -> Self:
        """Of a run: a family that conditions on masked images needs masks, also where the loss has none."""
        masked = source == ConditioningSource.MASK
        own_files = masked and config.custom_conditioning_image
        return cls(source, config.masked_training or masked, own_files or source == ConditioningSource.FILE)
