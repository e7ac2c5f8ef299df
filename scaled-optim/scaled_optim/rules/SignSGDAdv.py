from collections.abc import Mapping
from typing import Any

from scaled_optim.features.cautious import cautious_direction
from scaled_optim.features.moments import FIRST, first_moment
from scaled_optim.rules.Rule import MOMENTUM
from scaled_optim.rules.SignRule import SIGNED, SignRule
from scaled_optim.StackStep import StackStep

import torch
from torch import Tensor


class SignSGDAdv(SignRule):
    """Signed momentum (Signum, arXiv 1802.04434): m ← μ·m + (1 − μ)·g, u = sign(m).

    `normed_momentum`: m averages sign(g), and u = m, whose components are anywhere in [−1, 1].
    """

    name = "SIGNSGD_ADV"
    defaults = {
        **SIGNED,
        **MOMENTUM,
        "momentum": 0.9,
        "normed_momentum": False,
        "Simplified_AdEMAMix": False,
        "alpha_grad": 100.0,
    }

    def check(self, options: Mapping[str, Any]) -> None:
        super().check(options)
        for other in ("freeze_on_flip", "nesterov", "Simplified_AdEMAMix"):
            if options["normed_momentum"] and options[other]:
                raise ValueError(f"{other}: with normed_momentum steps are no signs; expected false.")

    def moments(self, options: Mapping[str, Any]) -> list[str]:
        return [FIRST] if options["momentum"] else []

    def average(self, s: StackStep) -> Tensor:
        return first_moment(s, s.g, s.options["momentum"])

    def direction(self, s: StackStep) -> Tensor:
        if not s.options["normed_momentum"]:
            return super().direction(s)
        return cautious_direction(s, first_moment(s, torch.sign(s.g), s.options["momentum"]).clone())
