"""The settings that the window recommends, as short trainings of the tiny base: are their learning rates good ones?"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from modules.util.config.TrainOptimizerConfig import TrainOptimizerConfig
from modules.util.enum.LoRAInit import LoRAInit
from modules.util.enum.OFTScaleMode import OFTScaleMode
from modules.util.enum.PeftType import PeftType

RANK, BLOCK = 32, 32
LORA: Mapping[str, Any] = {"peft_type": PeftType.LORA, "lora_rank": RANK, "lora_alpha": float(RANK)}
DORA = {**LORA, "lora_decompose": True}
OFT: Mapping[str, Any] = {
    "peft_type": PeftType.OFT_2, "oft_block_size": BLOCK, "oft_scaled": True, "oft_scale_mode": OFTScaleMode.ELEMENTS,
}  # fmt: skip


@dataclass(frozen=True)
class Setting:
    """What is trained, and the learning rates that are tried.

    Attributes:
        name: in the table.
        options: of the config, by their names.
        optimizer: the optimizer's, as JSON.
        rates: in increasing order.
    """

    name: str
    options: Mapping[str, Any]
    optimizer: Mapping[str, Any]
    rates: tuple[float, ...]

    def values(self) -> dict[str, Any]:
        """Options of the config."""
        return {**self.options, "optimizer": TrainOptimizerConfig.from_dict(dict(self.optimizer))}


ADAMW = {"optimizer": "ADAMW"}
SCALED = {"optimizer": "ADAMW_ADV", "scaled_optm": True}

SETTINGS: tuple[Setting, ...] = (
    Setting("LoRA, ADAMW_ADV scaled", LORA, SCALED, (0.001, 0.0085, 0.017, 0.034)),
    Setting("LoRA, ADAMW", LORA, ADAMW, (0.0001, 0.002, 0.006)),
    Setting("DoRA, ADAMW_ADV scaled", DORA, SCALED, (0.0085, 0.017, 0.034)),
    Setting("DoRA, ADAMW", DORA, ADAMW, (0.002, 0.006)),
    Setting("OFT, ADAMW", OFT, ADAMW, (0.001, 0.03)),
    Setting("OFT, ADAMW_ADV scaled", OFT, SCALED, (0.0085, 0.017, 0.034)),
    Setting("DoRA-OFT, ADAMW_ADV scaled", {**OFT, "lora_decompose": True}, SCALED, (0.0085, 0.017)),
    Setting(
        "LoRA, STIEFEL_LORA", {**LORA, "lora_init": LoRAInit.ORTHONORMAL}, {"optimizer": "STIEFEL_LORA"},
        (0.0085, 0.017, 0.034),
    ),
    Setting(
        "LoRA, LORA_RITE scaled", LORA, {"optimizer": "LORA_RITE", "scaled_optm": True}, (0.0085, 0.017, 0.034)
    ),
    Setting("LoRA, LION_ADV scaled", LORA, {"optimizer": "LION_ADV", "scaled_optm": True}, (0.0085, 0.017, 0.034)),
    Setting("LoRA, MUON_ADV scaled", LORA, {"optimizer": "MUON_ADV", "scaled_optm": True}, (0.0085, 0.017)),
    Setting(
        "LoRA, PRODIGY_ADV", LORA, {"optimizer": "PRODIGY_ADV", "safeguard_warmup": True, "d_limiter": True}, (1.0,)
    ),
    Setting("LoRA, ADAMW_ADV scaled, beta2 0.99", LORA, {**SCALED, "beta2": 0.99}, (0.017,)),
    Setting(
        "LoRA, ADAMW_ADV scaled, beta2 0.99, Fisher 1e-6", LORA,
        {**SCALED, "fisher_wd": True, "weight_decay": 1e-6, "beta2": 0.99}, (0.017,),
    ),
    Setting(
        "DoRA, ADAMW_ADV scaled, centered 1e-4 and 1e-6", DORA,
        {**SCALED, "centered_wd": 1e-4, "weight_decay": 1e-6}, (0.017,),
    ),
)  # fmt: skip


def best(rows: list[dict[str, Any]], name: str) -> dict[str, Any] | None:
    """The row of a setting with the least validation loss; None if it has none."""
    own = [row for row in rows if row["name"] == name]
    return min(own, key=lambda row: row["validation"]) if own else None


def table(rows: list[dict[str, Any]]) -> str:
    """Validation loss of each setting and rate, as Markdown; the best rate of each is bold."""
    lines = ["| setting | validation loss at each learning rate |", "|---|---|"]
    for setting in SETTINGS:
        chosen = best(rows, setting.name)
        own = sorted((row for row in rows if row["name"] == setting.name), key=lambda row: row["rate"])
        mark = {id(row): "**" if row is chosen and len(own) > 1 else "" for row in own}
        cells = [f"{mark[id(row)]}{row['rate']:g}: {row['validation']:.3f}{mark[id(row)]}" for row in own]
        if cells:
            lines.append(f"| {setting.name} | {' · '.join(cells)} |")
    return "\n".join(lines)
