"""Muon of pytorch_optimizer, with the parameters that are no hidden matrices left to its AdamW."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from scaled_optim.roles import ROLES, default_role, described_role, matrix_shape, parameter_info
from scaled_optim.rules.MuonAdv import MuonAdv

import torch
from torch import Tensor

from pytorch_optimizer.optimizer.muon.muon import Muon


class MuonWithAdam(Muon):
    """Muon for hidden matrices, AdamW for everything else; who goes where is decided as in `MUON_ADV`.

    Args:
        groups: with `params`, `lr` and `name`. Each becomes up to two groups of the same name and learning rate.
        adam_rates: learning rate of AdamW by the name of a group, before the schedule; None: the group's own.
        layers: `MuonWithAuxAdam`, `muon_hidden_layers` and `muon_adam_regex` of a config.
        options: of pytorch_optimizer's `Muon`.
    """

    def __init__(
        self,
        groups: Sequence[Mapping[str, Any]],
        adam_rates: Callable[[str], float | None],
        layers: Mapping[str, Any],
        **options: Any,
    ) -> None:
        split = []
        for group in groups:
            params = list(group["params"])
            hidden = [p for p in params if _is_hidden(p, layers)]
            own = {id(p) for p in hidden}
            others = [p for p in params if id(p) not in own]
            rate, adam_rate = group["lr"], adam_rates(group.get("name", ""))
            share = 1.0 if adam_rate is None else adam_rate / rate if rate else 0.0
            if hidden:
                split.append({**group, "params": hidden, "use_muon": True, "lr_share": 1.0})
            if others:
                split.append({**group, "params": others, "use_muon": False, "lr_share": share})
        super().__init__(split, **options)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        # a run writes the learning rate of its groups before each step, by their names
        rates = [group["lr"] for group in self.param_groups]
        for group in self.param_groups:
            group["lr"] = group["lr"] * group["lr_share"]
        try:
            return super().step(closure)
        finally:
            for group, rate in zip(self.param_groups, rates, strict=True):
                group["lr"] = rate


def _is_hidden(parameter: Tensor, layers: Mapping[str, Any]) -> bool:
    rule, info, shape = MuonAdv(), parameter_info(parameter), tuple(parameter.shape)
    role = ROLES[default_role(shape) if info is None else described_role(info)]
    chosen, _ = rule.for_parameter(role, matrix_shape(shape), info.name if info else "", {**rule.defaults, **layers})
    return chosen is rule
