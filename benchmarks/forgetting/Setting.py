from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from benchmarks.forgetting.kinds import FULL_MODE, KINDS, NONE
from benchmarks.forgetting.tasks import ALONE
from benchmarks.transfer.Setting import Setting as Trained
from modules.util.config.TrainOptimizerConfig import TrainOptimizerConfig

RULE = "ADAMW_ADV"


@dataclass(frozen=True, order=True)
class Setting:
    """What is trained and how it decays, all but its learning rate and seed.

    Attributes:
        task: a key of `tasks.TASKS`.
        width: of the base model, a key of the transfer measurement's `WIDTHS`.
        method: how is trained, as "full" or "DoRA".
        size: LoRA rank or OFT block size; 0 for full fine-tuning.
        kind: a key of `KINDS`.
        strength: decay a step, `weight_decay` or `centered_wd`; of a lower rate its share.
        mode: how centered decay stores the start.
        pictures: whether the trained model is sampled, too.
        beside: what is trained beside the concept, a key of `BESIDE`.
    """

    task: str
    width: str
    method: str
    size: int
    kind: str = NONE
    strength: float = 0.0
    mode: str = FULL_MODE
    pictures: bool = False
    beside: str = ALONE

    def options(self) -> dict[str, Any]:
        """Options of a `TrainConfig`: those of the method with scaled steps, so that decay is free of the rate."""
        optimizer = {"optimizer": RULE, "scaled_optm": True, "weight_decay": 0.0}
        optimizer |= KINDS[self.kind].options(self.strength, self.mode)
        method = Trained(self.task, self.width, RULE, True, self.method, self.size).options()
        return method | {"optimizer": TrainOptimizerConfig.from_dict(optimizer)}

    def label(self) -> str:
        """As "full, centered 0.01, int8"."""
        words = [self.method if not self.size else f"{self.method} {self.size}", self.kind]
        if self.strength:
            words[-1] += f" {self.strength:g}"
        if self.mode != FULL_MODE:
            words.append(self.mode)
        if self.beside != ALONE:
            words.append(f"beside {self.beside}")
        return ", ".join([*words, "pictures"] if self.pictures else words)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def of(cls, row: Mapping[str, Any]) -> "Setting":
        return cls(**row)
