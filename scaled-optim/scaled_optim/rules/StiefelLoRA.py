import math
from collections.abc import Mapping, Sequence
from typing import Any

from scaled_optim.arithmetic import transposed_product, zero_length
from scaled_optim.features.cautious import cautious_direction
from scaled_optim.features.moments import FIRST, first_moment
from scaled_optim.features.stiefel import TOLERANCES, orthonormality_error, retracted, tangent_, worst
from scaled_optim.roles import Role, Shape
from scaled_optim.rules.AdamWAdv import AdamWAdv
from scaled_optim.rules.Rule import Rule
from scaled_optim.scaling import largest_singular_value, root_of_largest, subspace_gain
from scaled_optim.StackStep import StackStep

import torch
from torch import Tensor

UP = "LORA_UP"
# What divides by a second moment, which a signed momentum has not.
ADAPTIVE_ONLY = ("fisher_wd", "kourkoutas_beta", "factored_2nd", "use_atan2", "scaled_eps", "normed_momentum")


class StiefelLoRA(AdamWAdv):
    """Stiefel-LoRA (arXiv 2508.17901): the up factor B of a LoRA keeps orthonormal columns, so that no rank is lost.

    With u the base rule's direction, η the learning rate, k = max(1, o/r)^(1/4), see `subspace_gain`:
    B ← qf(B − η·k·t/σ₁(t)), t = u − B·sym(Bᵀu), qf the Q of QR with positive diagonal; no decay.
    A ← (1 − wd·η/η₀)·A − η·k·√(o/i)·u/σ₁(u), for W = BA of `[o, i]`: as B is orthonormal, the step of W by A has k
    times the size of `HIDDEN`'s scaled steps. η has the gains of the rank and of the model's width in it, see
    `rank_gain` and `width_gain`. With `scale_law` variance k and both gains are 1.

    B must be orthonormal at the start, A may be zero (`lora_init` ORTHONORMAL), and alpha must be the rank. Other
    parameters, the DoRA scale too, go to the auxiliary AdamW with the same options. `scaled_optm` and its decay matter
    for those alone, as LoRA pairs always have them. Steps differ from the paper's in size, which is the base rule's own
    there.

    `stiefel_base`: ADAMW, or SIGN for the sign of the momentum.
    """

    name = "STIEFEL_LORA"
    elementwise = False
    needs_pairs = True
    orthonormal_up = True
    defaults = {**AdamWAdv.defaults, "stiefel_base": "ADAMW"}

    def check(self, options: Mapping[str, Any]) -> None:
        super().check(options)
        for name in ADAPTIVE_ONLY:
            if options["stiefel_base"] == "SIGN" and options[name]:
                raise ValueError(f"{name}: with stiefel_base SIGN there is no second moment; expected false.")
        if options["stiefel_base"] == "SIGN" and (options["use_AdEMAMix"] or options["Simplified_AdEMAMix"]):
            raise ValueError("stiefel_base: found SIGN, expected ADAMW with a form of AdEMAMix.")

    def for_parameter(
        self, role: Role, shape: Shape, name: str, options: Mapping[str, Any], partner_shape: Shape | None = None
    ) -> tuple[Rule, Mapping[str, Any]]:
        if partner_shape is None:
            return AdamWAdv(), {key: options[key] for key in AdamWAdv.defaults}
        if role.name != UP:
            return self, {**options, "scaled_optm": True, "outputs": partner_shape[0]}
        rows, cols = shape
        if cols > rows:
            raise ValueError(
                f"lora_rank: {name} has {cols} ranks and {rows} outputs; {self.name} needs at most as many ranks as "
                "outputs. Lower lora_rank or leave the layer out."
            )
        return self, {**options, "scaled_optm": True, "weight_decay": 0.0, "centered_wd": 0.0, "orthonormal": True}

    def check_start(
        self, names: Sequence[str], parameters: Sequence[Tensor], options: Mapping[str, Any], role: Role
    ) -> None:
        if role.name != UP or not parameters:
            return
        errors = [orthonormality_error(parameter) for parameter in parameters]
        index = worst(errors)
        # a number, also where only shapes are followed to estimate memory
        error = errors[index].item()
        if not error <= TOLERANCES[parameters[0].dtype]:
            raise ValueError(
                f"lora_init: the columns of {names[index]} are not orthonormal, |BᵀB − 1| is {error:.3g}; "
                f"{self.name} needs an up factor that is. Choose lora_init ORTHONORMAL."
            )

    def moments(self, options: Mapping[str, Any]) -> list[str]:
        if options["stiefel_base"] == "SIGN":
            return [FIRST] if options["beta1"] else []
        return super().moments(options)

    def direction(self, s: StackStep) -> Tensor:
        if s.options["stiefel_base"] == "SIGN":
            return cautious_direction(s, torch.sign(first_moment(s, s.g, s.options["beta1"])))
        return super().direction(s)

    def scaled(self, s: StackStep, u: Tensor) -> Tensor:
        """t with σ₁(t) = 1 for B, u with √(o/i) for A, in place."""
        up, grams = s.role.name == UP, []
        state = s.store("spectral") if s.has("spectral") else None
        for start, stop in s.blocks():
            piece = u[start:stop]
            if up:
                tangent_(s.parameters.slice(start, stop), piece)
            if state is None:
                grams.append(transposed_product(piece, piece, not up))
        largest = largest_singular_value(u, state) if state else root_of_largest(torch.cat(grams))
        size = 1.0 if up else math.sqrt(s.options["outputs"] / u.shape[2])
        size *= _gain(s)
        return u.mul_(size / largest.clamp_(min=zero_length(u.dtype)))

    def descend_(self, s: StackStep, u: Tensor, rate: Any) -> None:
        if s.role.name != UP:
            super().descend_(s, u, rate)
            return
        known = not isinstance(rate, Tensor)
        # without a step there is nothing to bring back, and rounding would move it
        if known and not rate:
            return
        # κ(x)² is at most 1 + length², so with lengths up to 1 one pass leaves 2ε
        passes = 1 if known and rate * _gain(s) <= 1 else 2
        for start, stop in s.blocks():
            b = s.parameters.slice(start, stop)
            x = b.addcmul(u[start:stop], rate.to(u.dtype), value=-1) if not known else b.sub(u[start:stop], alpha=rate)
            s.parameters.assign(start, stop, retracted(x, passes))


def _gain(s: StackStep) -> float:
    """Of the step of either factor; the columns of B are a subspace of the outputs."""
    outputs, ranks = (s.shape[1], s.shape[2]) if s.role.name == UP else (s.options["outputs"], s.shape[1])
    return subspace_gain(outputs, ranks, s.options["scale_law"])
