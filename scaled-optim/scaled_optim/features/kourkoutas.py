from collections.abc import Mapping
from typing import Any

from scaled_optim.arithmetic import Number, unit_norm
from scaled_optim.roles import Role
from scaled_optim.StackStep import Slot, StackStep

from torch import Tensor

NAME = "kourkoutas"


def kourkoutas_slot(role: Role) -> Slot:
    """The last gradient norm and its running mean, one of each for every unit."""

    def create(p: Tensor, keys: Tensor) -> dict[str, Tensor]:
        b, rows, cols = p.shape
        zeros = p.new_zeros(b, *role.unit_shape(rows, cols))
        return {"last_norm": zeros, "mean_norm": zeros.clone()}

    return Slot(NAME, create=create)


def check_kourkoutas(options: Mapping[str, Any]) -> None:
    if options["kourkoutas_beta"] and not options["beta2_min"] < options["beta2"]:
        raise ValueError(
            f"beta2_min: found {options['beta2_min']}, expected less than beta2, which is {options['beta2']}."
        )


def kourkoutas_beta2(s: StackStep) -> Number:
    """β₂ for this step: the option, or Kourkoutas-β's own for every unit (arXiv 2508.12996).

    From the norm n of the step before and its mean r ← αr + (1−α)n: x = n/(r + tiny), s = x/(1 + x),
    β₂ = max − (max − min)·s, blended in over `k_warmup_steps`. One value per LoRA rank or OFT block, one per tensor
    otherwise.
    """
    o = s.options
    if not o["kourkoutas_beta"]:
        return o["beta2"]
    store, high, low = s.store(NAME), o["beta2"], o["beta2_min"]
    last, mean = store["last_norm"], store["mean_norm"]
    mean.lerp_(last, 1 - o["ema_alpha"])
    spike = last / (mean + o["tiny_spike"])
    beta2 = high - (high - low) * s.n["kourkoutas_share"] * (spike / (1 + spike))
    last.copy_(unit_norm(s.g, s.role.unit))
    s.beta2 = beta2
    return beta2


def kourkoutas_share(options: Mapping[str, Any], step: int) -> float:
    """How far the warm-up has come at step number `step`, from 0 to 1."""
    warmup = options["k_warmup_steps"]
    return min(1.0, (step - 1) / warmup) if warmup else 1.0
