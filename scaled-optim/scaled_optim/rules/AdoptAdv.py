from collections.abc import Mapping
from typing import Any

from scaled_optim.features.cautious import cautious_direction
from scaled_optim.features.kourkoutas import kourkoutas_beta2
from scaled_optim.features.moments import SECOND, first_moment, second_moment, with_slow_moment
from scaled_optim.rules.AdamWAdv import AdamWAdv, divided, epsilon
from scaled_optim.StackStep import StackStep

from torch import Tensor


class AdoptAdv(AdamWAdv):
    """ADOPT (arXiv 2411.02853): the gradient is divided by the second moment of the steps before it, then averaged.

    n = clip(g/(√v + ε), k^¼), m ← β₁·m + (1 − β₁)·n, u = m, and only then v ← β₂·v + (1 − β₂)·g²; k is the number of
    steps so far. The first step only sets v = g². `use_atan2`: n = (4/π)·atan2(g, √v) without clipping, which may step
    at once. No bias correction.
    """

    name = "ADOPT_ADV"
    defaults = {
        key: value
        for key, value in {**AdamWAdv.defaults, "beta2": 0.9999, "eps": 1e-6}.items()
        if key not in ("use_bias_correction", "normed_momentum")
    }

    def numbers(self, options: Mapping[str, Any], step: int) -> dict[str, float]:
        numbers = super().numbers({**options, "use_bias_correction": False}, step)
        return {**numbers, "clip": (step - 1) ** 0.25}

    def step_at_once(self, s: StackStep) -> bool:
        return False

    def direction(self, s: StackStep) -> Tensor | None:
        g, atan2 = s.g, s.options["use_atan2"]
        beta2 = kourkoutas_beta2(s)
        if s.first:
            s.write(SECOND, s.read(SECOND).copy_(g).mul_(g))
            if not atan2:
                return None
        divisor = s.read(SECOND).sqrt()
        if not atan2:
            divisor.add_(epsilon(s))
        s.denominator = divisor
        x = divided(s, g, divisor)
        if not atan2:
            x.clamp_(-s.n["clip"], s.n["clip"])
        u = with_slow_moment(s, first_moment(s, x, s.options["beta1"]), x)
        second_moment(s, g, beta2)
        # the momentum may be the state, and scaling works in place
        return cautious_direction(s, u.clone() if s.options["scaled_optm"] else u)
