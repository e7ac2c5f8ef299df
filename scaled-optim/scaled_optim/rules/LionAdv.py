from collections.abc import Mapping
from typing import Any

from scaled_optim.arithmetic import unit_norm
from scaled_optim.features.moments import FIRST
from scaled_optim.roles import WHOLE
from scaled_optim.rules.SignRule import SIGNED, SignRule
from scaled_optim.StackStep import StackStep

import torch
from torch import Tensor


class LionAdv(SignRule):
    """Lion (arXiv 2302.06675): u = sign(β₁·m + (1 − β₁)·g), then m ← β₂·m + (1 − β₂)·g.

    `auto_kappa_p`: convolutions step along c/RMS(c) instead of sign(c), Lion-K with the Euclidean norm
    (arXiv 2310.05898).
    """

    name = "LION_ADV"
    elementwise = True
    defaults = {**SIGNED, "beta1": 0.9, "beta2": 0.99, "auto_kappa_p": False}

    def check(self, options: Mapping[str, Any]) -> None:
        super().check(options)
        if options["auto_kappa_p"] and options["freeze_on_flip"]:
            raise ValueError("freeze_on_flip: with auto_kappa_p not every step is a sign; expected false.")

    def moments(self, options: Mapping[str, Any]) -> list[str]:
        return [FIRST]

    def average(self, s: StackStep) -> Tensor:
        m = s.read(FIRST)
        c = torch.lerp(s.g, m, s.options["beta1"])
        m.lerp_(s.g, 1 - s.options["beta2"])
        s.write(FIRST, m)
        return c

    def direction(self, s: StackStep) -> Tensor:
        if not (s.options["auto_kappa_p"] and s.kernel):
            return super().direction(s)
        c = self.average(s)
        return c.div_(unit_norm(c, WHOLE).clamp_(min=1e-12)).mul_((c.shape[1] * c.shape[2]) ** 0.5)
