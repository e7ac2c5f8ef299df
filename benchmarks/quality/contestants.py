"""Who takes part: optimizers for LoRA, each with the start and the learning rates of its factors that it needs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from modules.trainer.optimizers import OPTIMIZERS
from modules.util.config.TrainOptimizerConfig import TrainOptimizerConfig
from modules.util.enum.LoRAInit import LoRAInit
from modules.util.enum.Optimizer import Optimizer
from modules.util.enum.ParameterRole import ParameterRole
from modules.util.ParameterInfo import get_parameter_info
from modules.util.UserError import UserError
from scaled_optim.rules.registry import RULES

from torch import nn

LORA_PLUS_RATIO = 16.0
# rule -> how its LoRA must start
STARTS: Mapping[str, LoRAInit] = {"STIEFEL_LORA": LoRAInit.ORTHONORMAL}


@dataclass(frozen=True)
class Contestant:
    """One optimizer of the comparison.

    Attributes:
        name: in tables.
        optimizer: value of the enum `Optimizer`.
        up_ratio: learning rate of up factors over that of down factors, more than 0.
        rates: its own learning rates; none: those of the grid.
        options: of the config's optimizer, by key.
    """

    name: str
    optimizer: Optimizer
    up_ratio: float = 1.0
    rates: tuple[float, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)

    def config_changes(self, rank: int) -> dict[str, Any]:
        """Options of a TrainConfig: optimizer, rank, alpha = rank, start values. No weight decay, for nobody."""
        return {
            "optimizer": TrainOptimizerConfig(optimizer=self.optimizer, **{"weight_decay": 0.0, **self.options}),
            "lora_rank": rank, "lora_alpha": float(rank),
            "lora_init": STARTS.get(str(self.optimizer), LoRAInit.KAIMING),
        }  # fmt: skip

    def groups(self, parameters: Sequence[nn.Parameter], rate: float) -> list[dict[str, Any]]:
        """Parameter groups; two of them only where up has a learning rate of its own."""
        if self.up_ratio == 1:
            return [{"params": list(parameters), "lr": rate, "name": "lora"}]
        ups = [p for p in parameters if is_up(p)]
        rest = [p for p in parameters if not is_up(p)]
        return [
            {"params": rest, "lr": rate, "name": "down"},
            {"params": ups, "lr": rate * self.up_ratio, "name": "up"},
        ]


def is_up(parameter: nn.Parameter) -> bool:
    info = get_parameter_info(parameter)
    return info is not None and info.role == ParameterRole.LORA_UP


BASELINE = Contestant("no adapter", Optimizer.ADAMW, rates=(0.0,))


def contestants() -> dict[str, Contestant]:
    """By name: what stays without an adapter, AdamW, LoRA+ (arXiv 2402.12354), and every rule for pairs."""
    found = [
        BASELINE,
        Contestant("ADAMW", Optimizer.ADAMW),
        Contestant("LoRA+", Optimizer.ADAMW, LORA_PLUS_RATIO),
        *(Contestant(name, Optimizer(name)) for name, rule in RULES.items() if rule.needs_pairs),
    ]
    return {contestant.name: contestant for contestant in found}


def choose(names: Sequence[str]) -> list[Contestant]:
    """Contestants by name, or any other supported optimizer by its name in configs; all contestants for no name.

    Raises:
        UserError: a name that is neither.
    """
    known = contestants()
    for name in names:
        if name not in known and name not in OPTIMIZERS:
            raise UserError(
                f"--optimizers: found {name}, expected some of {', '.join([*known, *(set(OPTIMIZERS) - set(known))])}."
            )
    return [known.get(name) or Contestant(name, Optimizer(name)) for name in names] or list(known.values())
