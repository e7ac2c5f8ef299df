from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from modules.util.config.TrainOptimizerConfig import TrainOptimizerConfig
from modules.util.enum.LoRAInit import LoRAInit
from modules.util.enum.OFTScaleMode import OFTScaleMode
from modules.util.enum.PeftType import PeftType
from modules.util.enum.TrainingMethod import TrainingMethod
from scaled_optim.rules.registry import RULES

LORA, DORA, OFT, DORA_OFT, FULL = METHODS = ("LoRA", "DoRA", "OFT", "DoRA-OFT", "full")


@dataclass(frozen=True, order=True)
class Setting:
    """What is trained and how, all but its learning rate and seed.

    Attributes:
        task: a key of `tasks.TASKS`.
        width: of the base model, a key of `tasks.WIDTHS`.
        rule: of the engine.
        scaled: whether its steps are scaled. Stiefel-LoRA's always are.
        method: one of `METHODS`.
        size: LoRA rank or OFT block size; 0 for full fine-tuning.
    """

    task: str
    width: str
    rule: str
    scaled: bool
    method: str
    size: int

    def options(self, **changes: Any) -> dict[str, Any]:
        """Options of a `TrainConfig`, by their names: no weight decay, alpha = rank, OFT in its ELEMENTS form.

        Args:
            changes: options of the optimizer, by key.
        """
        always = RULES[self.rule].orthonormal_up
        optimizer: dict[str, Any] = {"optimizer": self.rule, "weight_decay": 0.0}
        if not always:
            optimizer["scaled_optm"] = self.scaled
        options = {
            "optimizer": TrainOptimizerConfig.from_dict({**optimizer, **changes}),
            "training_method": TrainingMethod.FINE_TUNE if self.method == FULL else TrainingMethod.LORA,
            "lora_decompose": self.method in (DORA, DORA_OFT),
            "lora_init": LoRAInit.ORTHONORMAL if always else LoRAInit.KAIMING,
        }
        if self.method in (LORA, DORA):
            options |= {"peft_type": PeftType.LORA, "lora_rank": self.size, "lora_alpha": float(self.size)}
        elif self.method in (OFT, DORA_OFT):
            options |= {
                "peft_type": PeftType.OFT_2, "oft_block_size": self.size, "oft_scaled": True,
                "oft_scale_mode": OFTScaleMode.ELEMENTS,
            }  # fmt: skip
        return options

    def label(self) -> str:
        """The method and its size, as "LoRA 16"."""
        return self.method if self.method == FULL else f"{self.method} {self.size}"

    def to_json(self) -> dict[str, Any]:
        return {field.name: getattr(self, field.name) for field in fields(self)}

    @classmethod
    def of(cls, row: Mapping[str, Any]) -> "Setting":
        """The setting of a row that has more than it."""
        return cls(*(row[field.name] for field in fields(cls)))
