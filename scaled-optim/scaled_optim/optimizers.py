"""A class for each rule, with the signature that torch's own optimizers have."""

from collections.abc import Callable, Iterable
from typing import Any, ClassVar

from scaled_optim.batched_optimizer import BatchedOptimizer
from scaled_optim.live_modules import LiveDescriptions
from scaled_optim.options import DECLARED
from scaled_optim.rules.registry import RULES

import torch
from torch import nn


class RuleOptimizer(BatchedOptimizer):
    """A `BatchedOptimizer` of one rule that finds the roles of its parameters by itself.

    A parameter's description is its attribute `parameter_info`. Without one it is read from the structure of the model
    in memory that holds the parameter.

    Args:
        params: parameters, named parameters, or groups, as torch's optimizers take them.
        lr: learning rate, at least 0; None: the class's own.
        betas: β₁ and, where the rule has it, β₂: another spelling of the options `beta1` and `beta2`.
        describe: gives descriptions instead, as `scaled_optim.describe(model)` does; None: as above.
        seed, chunk, compile, kernels, state_device: see `BatchedOptimizer`.
        options: of the rule.

    Raises:
        ValueError: more `betas` than the rule has, or one that `options` has, too; and as `BatchedOptimizer`.
    """

    RULE: ClassVar[str]
    LR: ClassVar[float] = 1e-3

    def __init__(
        self,
        params: Iterable[nn.Parameter] | Iterable[tuple[str, nn.Parameter]] | Iterable[dict[str, Any]],
        lr: float | None = None,
        *,
        betas: tuple[float, ...] | None = None,
        describe: Callable[[nn.Parameter], Any] | None = None,
        seed: int = 0,
        chunk: int | None = None,
        compile: bool = False,
        kernels: str = "auto",
        state_device: torch.device | str | None = None,
        **options: Any,
    ) -> None:
        if betas is not None:
            options = {**_named_betas(self.RULE, betas, options), **options}
        live = LiveDescriptions() if describe is None else None
        rate = self.LR if lr is None else lr
        groups = [
            {**group, "params": _listed(group["params"])} if isinstance(group, dict) else group
            for group in _listed(params)
        ]
        if live is not None:
            live.look_for(_parameters(groups))
        super().__init__(
            groups, self.RULE, rate, describe=live or describe, seed=seed, chunk=chunk, compile=compile,
            kernels=kernels, state_device=state_device, **options,
        )  # fmt: skip

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        if isinstance(self.describe, LiveDescriptions):
            param_group = {**param_group, "params": _listed(param_group["params"])}
            self.describe.look_for(_parameters([param_group]))
        super().add_param_group(param_group)


def _listed(params: Any) -> list[Any]:
    return [params] if isinstance(params, nn.Parameter) else list(params)


def _parameters(given: Iterable[Any]) -> list[nn.Parameter]:
    """The parameters of groups, of named parameters, or as they are."""
    found: list[nn.Parameter] = []
    for item in given:
        if isinstance(item, dict):
            found += _parameters(item["params"])
        else:
            found.append(item[1] if isinstance(item, tuple) else item)
    return found


def _named_betas(rule: str, betas: tuple[float, ...], options: dict[str, Any]) -> dict[str, float]:
    """`betas` as the options `beta1` and `beta2`. ValueError for more than the rule has, or for one given twice."""
    names = [name for name in ("beta1", "beta2") if name in RULES[rule].defaults]
    if len(betas) > len(names):
        expected = f"{len(names)}: {', '.join(names)}" if names else "none, as it has momentum"
        raise ValueError(f"betas: found {len(betas)} numbers, but {rule} has {expected}.")
    for name in names[: len(betas)]:
        if name in options:
            raise ValueError(f"{name}: found in betas, too; expected only one of them.")
    return dict(zip(names, betas, strict=False))


def _class_of(name: str, rule: str, lr: float = 1e-3) -> type[RuleOptimizer]:
    """The class of a rule, whose documentation lists the rule's options."""
    about = (type(RULES[rule]).__doc__ or "").strip()
    lines = [f"    {option} = {default!r}: {DECLARED[option].help}" for option, default in RULES[rule].defaults.items()]
    usage = f"Arguments as in `RuleOptimizer`; lr is {lr:g} by default. Options:"
    text = "\n\n".join((about, usage, "\n".join(lines)))
    return type(name, (RuleOptimizer,), {"RULE": rule, "LR": lr, "__doc__": text, "__module__": __name__})


AdamW = _class_of("AdamW", "ADAMW_ADV")
Adopt = _class_of("Adopt", "ADOPT_ADV")
Prodigy = _class_of("Prodigy", "PRODIGY_ADV", lr=1.0)
Lion = _class_of("Lion", "LION_ADV", lr=1e-4)
SignSGD = _class_of("SignSGD", "SIGNSGD_ADV", lr=1e-4)
SinkSGD = _class_of("SinkSGD", "SINKSGD_ADV")
Muon = _class_of("Muon", "MUON_ADV")
AdaMuon = _class_of("AdaMuon", "ADAMUON_ADV")
StiefelLoRA = _class_of("StiefelLoRA", "STIEFEL_LORA")
LoRARite = _class_of("LoRARite", "LORA_RITE")
OPTIMIZERS: dict[str, type[RuleOptimizer]] = {
    kind.RULE: kind for kind in (AdamW, Adopt, Prodigy, Lion, SignSGD, SinkSGD, Muon, AdaMuon, StiefelLoRA, LoRARite)
}
