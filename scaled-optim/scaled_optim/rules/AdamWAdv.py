import math
from collections.abc import Mapping
from typing import Any

from scaled_optim.arithmetic import ATAN2_SCALE, arctangent
from scaled_optim.features.cautious import cautious_direction
from scaled_optim.features.kourkoutas import kourkoutas_beta2
from scaled_optim.features.moments import FIRST, SECOND, SLOW, first_moment, second_moment, with_slow_moment
from scaled_optim.features.one_pass_adam import fits_one_pass, one_pass_direction, one_pass_step_
from scaled_optim.features.weight_decay import decay_, plain_decay
from scaled_optim.rules.Rule import ADAPTIVE, COMMON, MOMENTUM, Rule
from scaled_optim.StackStep import StackStep

from torch import Tensor

# atan2 of equal arguments is π/4; with this factor it is 1, as m/√v is.


class AdamWAdv(Rule):
    """AdamW (arXiv 1711.05101): u = m̂/(√v̂ + ε), with every feature of the family.

    `use_atan2`: u = (4/π)·atan2(m, √v̂)/(1 − β₁^t), which needs no ε (arXiv 2407.05872). `normed_momentum`: the
    gradient is divided before it enters the momentum. `scaled_eps`: ε/√numel. `use_AdEMAMix` adds a slow momentum,
    `Simplified_AdEMAMix` accumulates.
    """

    name = "ADAMW_ADV"
    elementwise = True
    defaults = {
        **COMMON,
        **MOMENTUM,
        **ADAPTIVE,
        "beta1": 0.9,
        "beta2": 0.999,
        "use_bias_correction": True,
        "normed_momentum": False,
        "use_cautious": False,
        "use_grams": False,
        "use_AdEMAMix": False,
        "beta3_ema": 0.9999,
        "alpha": 5.0,
        "Simplified_AdEMAMix": False,
        "alpha_grad": 100.0,
    }

    def check(self, options: Mapping[str, Any]) -> None:
        super().check(options)
        if options["use_AdEMAMix"] and options["Simplified_AdEMAMix"]:
            raise ValueError("Simplified_AdEMAMix: it takes the place of use_AdEMAMix; expected only one of them.")
        if options["Simplified_AdEMAMix"] and options["nesterov"]:
            raise ValueError("nesterov: Simplified_AdEMAMix looks ahead by alpha_grad; expected false.")

    def moments(self, options: Mapping[str, Any]) -> list[str]:
        first = [FIRST] if options["beta1"] else []
        return first + ([SLOW] if options["use_AdEMAMix"] else []) + [SECOND]

    def numbers(self, options: Mapping[str, Any], step: int) -> dict[str, float]:
        numbers = super().numbers(options, step)
        correct = options["use_bias_correction"]
        first = 1 - options["beta1"] ** step if correct and not options["Simplified_AdEMAMix"] else 1.0
        root = math.sqrt(1 - options["beta2"] ** step) if correct else 1.0
        return {**numbers, "gain": 1 / first, "root": root, "slow_weight": options["alpha"] * first}

    def direction(self, s: StackStep) -> Tensor:
        o = s.options
        beta2 = kourkoutas_beta2(s)
        if fits_one_pass(s, beta2):
            u, v = one_pass_direction(s, s.gradients.each(), beta2, epsilon(s), s.n["root"])
            if o["fisher_wd"]:
                s.denominator = divisor_of(s, v)
            return cautious_direction(s, u)
        g = s.g
        divisor = s.denominator = divisor_of(s, second_moment(s, g, beta2))
        x = divided(s, g, divisor) if o["normed_momentum"] else g
        u = with_slow_moment(s, first_moment(s, x, o["beta1"]), x)
        # a momentum of normed gradients may be the state itself
        u = u.clone() if o["normed_momentum"] else divided(s, u, divisor)
        return cautious_direction(s, u)

    def step_at_once(self, s: StackStep) -> bool:
        o, beta2 = s.options, s.options["beta2"]
        decay = plain_decay(s)
        shaped = o["scaled_optm"] or o["kourkoutas_beta"] or o["use_cautious"] or o["use_grams"]
        if shaped or decay is None or not s.parameters.direct or not fits_one_pass(s, beta2):
            return False
        if s.n["portions"]:
            decay_(s, None)
            decay = 0.0
        one_pass_step_(s, beta2, epsilon(s), s.n["root"], s.n["lr"] * s.n["gain"], decay)
        return True

    def last_direction(self, s: StackStep) -> Tensor:
        return s.read(FIRST) / divisor_of(s, s.read(SECOND))


def divisor_of(s: StackStep, v: Tensor) -> Tensor:
    """√v̂ + ε, without ε for atan2; a fresh tensor."""
    divisor = v.sqrt().div_(s.n["root"])
    return divisor if s.options["use_atan2"] else divisor.add_(epsilon(s))


def epsilon(s: StackStep) -> float:
    """ε, or ε/√numel with `scaled_eps`."""
    eps = s.options["eps"]
    return eps / math.sqrt(s.elements) if s.options["scaled_eps"] else eps


def divided(s: StackStep, x: Tensor, divisor: Tensor) -> Tensor:
    """x/divisor, or the bounded (4/π)·atan2(x, divisor); a fresh tensor."""
    if s.options["use_atan2"]:
        return arctangent(x, divisor).mul_(ATAN2_SCALE)
    return x / divisor
