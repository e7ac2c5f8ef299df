from collections.abc import Mapping
from functools import partial
from typing import Any

from scaled_optim.features.cautious import cautious_direction
from scaled_optim.features.moments import first_moment
from scaled_optim.features.normed_momentum import check_normed, normed_direction
from scaled_optim.features.sign import signed_pull, signs_of
from scaled_optim.rules.NormedRule import NormedRule
from scaled_optim.rules.Rule import MOMENTUM
from scaled_optim.rules.SignRule import SIGNED, SignRule
from scaled_optim.StackStep import StackStep

from torch import Tensor


class SignSGDAdv(NormedRule, SignRule):
    """Signed momentum (Signum, arXiv 1802.04434): m ← μ·m + (1 − μ)·g, u = sign(m).

    `normed_momentum`: m averages sign(g), and u = m, whose components are anywhere in [−1, 1]. `snr_cond` with it:
    u = (4/π)·atan2(m, √(1 − m₋²)), larger where signs agree.
    """

    name = "SIGNSGD_ADV"
    elementwise = True
    defaults = {
        **SIGNED,
        **MOMENTUM,
        "momentum": 0.9,
        "normed_momentum": False,
        "snr_cond": False,
        "Simplified_AdEMAMix": False,
        "alpha_grad": 100.0,
    }

    def check(self, options: Mapping[str, Any]) -> None:
        super().check(options)
        for other in ("freeze_on_flip", "Simplified_AdEMAMix"):
            if options["normed_momentum"] and options[other]:
                raise ValueError(f"{other}: with normed_momentum steps are no signs; expected false.")
        check_normed(options)

    def average(self, s: StackStep) -> Tensor:
        return first_moment(s, s.g, s.options["momentum"])

    def direction(self, s: StackStep) -> Tensor:
        if not s.options["normed_momentum"]:
            return super().direction(s)
        u, doubt = normed_direction(s, signs_of(s, s.g))
        s.pull = partial(signed_pull, s, doubt=doubt)
        return cautious_direction(s, u)
