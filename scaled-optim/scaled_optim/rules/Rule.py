from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from scaled_optim.codecs import CODECS
from scaled_optim.features.decay_portions import NAME as DEBT
from scaled_optim.features.kourkoutas import check_kourkoutas, kourkoutas_share, kourkoutas_slot
from scaled_optim.features.moments import moment_slot
from scaled_optim.features.weight_decay import decay_slots
from scaled_optim.options import check_values
from scaled_optim.roles import Role, Shape
from scaled_optim.scaling import COHERENT, scaled, scaling_slots
from scaled_optim.StackStep import Slot, StackStep

import torch
from torch import Tensor

# Options by config key, with the values that switch them off. A rule lists the sets that it has.
COMMON: Mapping[str, Any] = {
    "weight_decay": 0.0,
    "cautious_wd": False,
    "centered_wd": 0.0,
    "centered_wd_mode": "full",
    "scaled_wd": False,
    "scaled_optm": False,
    "scale_law": COHERENT,
    "orthogonal_gradient": "disabled",
    "stochastic_rounding": True,
    "state_precision": "auto",
    "nnmf_factor": False,
}
MOMENTUM: Mapping[str, Any] = {"nesterov": False, "nesterov_coef": None}
ADAPTIVE: Mapping[str, Any] = {
    "eps": 1e-8,
    "scaled_eps": False,
    "factored_2nd": False,
    "kourkoutas_beta": False,
    "beta2_min": 0.9,
    "ema_alpha": 0.95,
    "tiny_spike": 1e-9,
    "k_warmup_steps": 0,
    "fisher_wd": False,
    "use_atan2": False,
}
# What may be set where a step looks at each number by itself; any other option has the value that switches it off.
ELEMENTWISE = frozenset({
    "Simplified_AdEMAMix", "alpha", "alpha_grad", "beta1", "beta2", "beta2_min", "beta3_ema", "cautious_wd",
    "centered_wd_mode", "ema_alpha", "eps", "k_warmup_steps", "momentum", "nesterov", "nesterov_coef", "scale_law",
    "state_precision", "stochastic_rounding", "tiny_spike", "use_AdEMAMix", "use_atan2", "use_bias_correction",
    "use_grams", "weight_decay",
})  # fmt: skip
# Two ways to say what happens to the same thing.
EXCLUSIVE = (("use_grams", "use_cautious"), ("nnmf_factor", "state_precision"))


class Rule(ABC):
    """Makes a direction u of gradients. Everything else of a step is the same for every rule.

    Attributes:
        name: in the config.
        defaults: every option that it supports, by config key. Any other option is refused.
        needs_pairs: whether it steps the factors of LoRAs only, and leaves other parameters to another rule.
        orthonormal_up: whether the up factors of LoRAs must have orthonormal columns.
        paired: whether a factor and its partner are stepped together, each with the other's values as `s.partners`.
        rate_found: whether it multiplies the learning rate by a number that it estimates on the device.
        elementwise: whether a number's direction depends on that number's own gradients alone, as long as of its
            options only those of `ELEMENTWISE` are set.
    """

    name: ClassVar[str]
    defaults: ClassVar[Mapping[str, Any]]
    needs_pairs: ClassVar[bool] = False
    orthonormal_up: ClassVar[bool] = False
    paired: ClassVar[bool] = False
    rate_found: ClassVar[bool] = False
    elementwise: ClassVar[bool] = False

    def check(self, options: Mapping[str, Any]) -> None:
        """ValueError for values that are wrong, alone or together; the message begins with the option's name."""
        check_values(options)
        for first, second in EXCLUSIVE:
            if options.get(first) and options.get(second) not in (None, False, "auto", "factored"):
                raise ValueError(f"{first}: {second} is {options[second]} already; expected only one of them.")
        if "kourkoutas_beta" in options:
            check_kourkoutas(options)

    @abstractmethod
    def moments(self, options: Mapping[str, Any]) -> list[str]:
        """Names of the running means that it keeps."""

    @abstractmethod
    def direction(self, s: StackStep) -> Tensor | None:
        """u `[b, rows, cols]`; the step is −lr·gain·u. A fresh tensor, or state where `advance` only reads it.

        None: this step only gathers state, and the parameters, their decay included, stay as they are.
        """

    def directions(self, steps: Sequence[StackStep]) -> list[Tensor | None]:
        """`direction` of a stack, or of the two stacks of a pair."""
        return [self.direction(s) for s in steps]

    def step_at_once(self, s: StackStep) -> bool:
        """Steps state and parameters, decay included, in one kernel. False if there is none: nothing is done then."""
        return False

    def last_direction(self, s: StackStep) -> Tensor:
        """The direction of the step that `step_at_once` took: that of `direction`, but for rounding."""
        raise NotImplementedError(f"{self.name} takes no step at once")

    def scaled(self, s: StackStep, u: Tensor) -> Tensor:
        """T(u) of `scaled_optm`, in place."""
        return scaled(s, u)

    def descend_(self, s: StackStep, u: Tensor, rate: Any) -> None:
        """p ← p − rate·u, the last thing of a step."""
        s.descend_(u, rate)

    def check_start(  # noqa: B027
        self, names: Sequence[str], parameters: Sequence[Tensor], options: Mapping[str, Any], role: Role
    ) -> None:
        """ValueError, which names the parameter, where it can't be stepped from its value."""

    def for_parameter(
        self, role: Role, shape: Shape, name: str, options: Mapping[str, Any], partner_shape: Shape | None = None
    ) -> tuple["Rule", Mapping[str, Any]]:
        """The rule and the options that step a parameter. An option `own_lr` replaces the group's initial rate.

        Args:
            role: of the parameter.
            shape: `(rows, cols)` of the parameter as a matrix.
            name: of the parameter, for messages and patterns.
            options: of its group.
            partner_shape: `(rows, cols)` of the partner; None: the parameter is no factor of a LoRA pair.

        Returns:
            This rule or another one, and all options of that rule.

        Raises:
            ValueError: the rule can't step it.
        """
        return self, options

    def by_element(self, options: Mapping[str, Any], role: Role, shape: Shape, dtype: torch.dtype) -> bool:
        """Whether some rows of a parameter can be stepped without the others, with the result that they would have.

        Args:
            options: of the parameter.
            role: of it.
            shape: `(rows, cols)` of it as a matrix.
            dtype: of it. What is rounded at random needs its place in the whole.
        """
        # statistics look at whole up factors
        if not self.elementwise or dtype == torch.bfloat16 or role.name == "LORA_UP":
            return False
        if any(options[name] != off for name, off in self.defaults.items() if name not in ELEMENTWISE):
            return False
        slots = self.slots(options, role, *shape)
        return all(slot.codec is CODECS["fp32"] if slot.codec else slot.name == DEBT for slot in slots)

    def totals(self, options: Mapping[str, Any], count: int, device: torch.device) -> dict[str, Tensor]:
        """Tensors that all `count` parameters share; none for most rules."""
        return {}

    def close(self, totals: dict[str, Tensor], options: Mapping[str, Any], step: int) -> None:  # noqa: B027
        """Ends step number `step`, after all parameters have had theirs; may change `totals`."""

    def slots(self, options: Mapping[str, Any], role: Role, rows: int, cols: int) -> list[Slot]:
        """All slots: those of the rule and those of the shared features."""
        slots = [moment_slot(name, options, role, rows, cols) for name in self.moments(options)]
        if options.get("kourkoutas_beta"):
            slots.append(kourkoutas_slot(role))
        return slots + decay_slots(options, role) + scaling_slots(options, role, rows, cols)

    def numbers(self, options: Mapping[str, Any], step: int) -> dict[str, Any]:
        """The numbers that change from step to step. `gain` multiplies the learning rate, unless steps are scaled.

        A float may become a 0-dim tensor in `StackStep.n`. A bool stays a bool, so `direction` may branch on it: a
        compiled step is compiled once for each of its values.

        Args:
            step: its number, from 1.
        """
        numbers = {"gain": 1.0}
        if options.get("kourkoutas_beta"):
            numbers["kourkoutas_share"] = kourkoutas_share(options, step)
        return numbers
