from collections.abc import Mapping
from typing import Any

from scaled_optim.arithmetic import ordered_sum, widest
from scaled_optim.features.cautious import cautious_direction
from scaled_optim.features.decay_rates import decoupled
from scaled_optim.features.kourkoutas import kourkoutas_beta2
from scaled_optim.features.moments import first_moment, second_moment
from scaled_optim.features.one_pass_adam import fits_one_pass, one_pass_direction
from scaled_optim.roles import Role
from scaled_optim.rules.AdamWAdv import AdamWAdv, divided, epsilon
from scaled_optim.StackStep import Slot, StackStep

import torch
from torch import Tensor

DISTANCE = "distance"
# The limiter lets d grow by at most this factor in a step.
LIMIT = 2**0.25


class ProdigyAdv(AdamWAdv):
    """Prodigy (arXiv 2306.06101): Adam whose learning rate is d·lr, with d estimated from how far the weights went.

    m ← β₁·m + (1 − β₁)·d·g, v ← β₂·v + (1 − β₂)·d²·g², u = m/(√v + d·ε). d grows to
    d_coef·Σ(d/d₀)·d·lr·⟨g, p₀ − p⟩ / ‖s‖₁, both sums kept with β₃. All parameters have one d, computed on the device.
    `slice_p`: the sums take every so many-th number. `prodigy_steps`: d stays as it is after so many steps.
    """

    name = "PRODIGY_ADV"
    rate_found = True
    elementwise = False
    defaults = {
        **{
            key: value
            for key, value in AdamWAdv.defaults.items()
            if key not in ("use_bias_correction", "normed_momentum", "use_AdEMAMix", "beta3_ema", "alpha")
        },
        "beta3": None,
        "d0": 1e-6,
        "d_coef": 1.0,
        "growth_rate": float("inf"),
        "safeguard_warmup": False,
        "slice_p": 11,
        "prodigy_steps": 0,
        "d_limiter": False,
    }

    def moments(self, options: Mapping[str, Any]) -> list[str]:
        return super().moments({**options, "use_AdEMAMix": False})

    def check(self, options: Mapping[str, Any]) -> None:
        super().check({**options, "use_AdEMAMix": False})

    def slots(self, options: Mapping[str, Any], role: Role, rows: int, cols: int) -> list[Slot]:
        stride = options["slice_p"]

        def create(p: Tensor, keys: Tensor) -> dict[str, Tensor]:
            start = p.flatten(1)[:, ::stride].clone(memory_format=torch.contiguous_format)
            return {"start": start, "sum": torch.zeros_like(start)}

        return [*super().slots(options, role, rows, cols), Slot(DISTANCE, create=create)]

    def numbers(self, options: Mapping[str, Any], step: int) -> dict[str, float]:
        numbers = super().numbers({**options, "use_bias_correction": False, "alpha": 0.0}, step)
        return {**numbers, "estimates": self.estimates(options, step)}

    def totals(self, options: Mapping[str, Any], count: int, device: torch.device) -> dict[str, Tensor]:
        """What all parameters share; the last two hold each parameter's share of the sums in one step."""
        d = torch.tensor(options["d0"], dtype=widest(device), device=device)
        shares = torch.zeros(count, dtype=d.dtype, device=device)
        return {
            "d": d, "d_max": d.clone(), "numerator": torch.zeros_like(d),
            "numerators": shares, "denominators": shares.clone(),
        }  # fmt: skip

    def step_at_once(self, s: StackStep) -> bool:
        return False

    def direction(self, s: StackStep) -> Tensor:
        o, d = s.options, s.totals["d"]
        beta2 = kourkoutas_beta2(s)
        if s.n["estimates"]:
            self.measure(s)
        s.n["lr"] = s.n["lr"] * d
        if not decoupled(o):
            s.n["decay"] = s.n["decay"] * d
        if fits_one_pass(s, beta2):
            u, v = one_pass_direction(s, torch._foreach_mul(s.gradients.each(), d.to(s.dtype)), beta2, d * epsilon(s))
            if o["fisher_wd"]:
                s.denominator = v.sqrt().add_(d * epsilon(s))
            return cautious_direction(s, u)
        x = s.g * d
        divisor = second_moment(s, x, beta2).sqrt()
        if not o["use_atan2"]:
            divisor.add_(d * epsilon(s))
        s.denominator = divisor
        return cautious_direction(s, divided(s, first_moment(s, x, o["beta1"]), divisor))

    @staticmethod
    def estimates(options: Mapping[str, Any], step: int) -> bool:
        return not options["prodigy_steps"] or step <= options["prodigy_steps"]

    def measure(self, s: StackStep) -> None:
        """Adds up this stack's share of both sums."""
        o, d, lr = s.options, s.totals["d"], s.n["lr"]
        g, p = (stack.strided(o["slice_p"]) for stack in (s.gradients, s.parameters))
        store = s.store(DISTANCE)
        weight = d / o["d0"] * d
        store["sum"].mul_(beta3(o)).addcmul_(g, weight if o["safeguard_warmup"] else weight * lr)
        moved = ordered_sum(g * (store["start"] - p), 1, d.dtype)[:, 0]
        s.totals["numerators"].index_copy_(0, s.places, weight * lr * moved)
        s.totals["denominators"].index_copy_(0, s.places, ordered_sum(store["sum"].abs(), 1, d.dtype)[:, 0])

    def close(self, totals: dict[str, Tensor], options: Mapping[str, Any], step: int) -> None:
        """The new d, from the sums of all parameters; step counts from 1."""
        if not self.estimates(options, step):
            return
        d, d_max, numerator = totals["d"], totals["d_max"], totals["numerator"]
        numerator.mul_(beta3(options)).add_(totals["numerators"].sum())
        denominator = totals["denominators"].sum()
        found = options["d_coef"] * numerator / denominator
        if options["d_limiter"]:
            found = torch.minimum(found, d * LIMIT)
        first = torch.where(d == options["d0"], torch.maximum(d, found), d)
        largest = torch.maximum(d_max, found)
        grown = torch.minimum(largest, first * options["growth_rate"])
        known = denominator > 0
        d_max.copy_(torch.where(known, largest, d_max))
        d.copy_(torch.where(known, grown, d))
        totals["numerators"].zero_()
        totals["denominators"].zero_()


def beta3(options: Mapping[str, Any]) -> float:
    """With what both sums are kept; by default √β₂."""
    return options["beta2"] ** 0.5 if options["beta3"] is None else options["beta3"]
