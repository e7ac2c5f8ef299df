from abc import abstractmethod
from collections.abc import Mapping
from functools import partial
from typing import Any

from scaled_optim.features.cautious import cautious_direction
from scaled_optim.features.sign import (
    check_signs,
    last_signs,
    projected_size,
    sign_direction,
    sign_numbers,
    sign_slots,
    signed_pull,
)
from scaled_optim.roles import Role
from scaled_optim.rules.Rule import COMMON, Rule
from scaled_optim.StackStep import Slot, StackStep

from torch import Tensor

SIGNED: Mapping[str, Any] = {
    **COMMON,
    "freeze_on_flip": False,
    "l1_adaptive": False,
    "use_cautious": False,
    "use_grams": False,
    "stochastic_sign": False,
    "geometric_wd": False,
}


class SignRule(Rule):
    """Rules that step by the sign of an average: u = sign(c), every component the same size.

    `stochastic_sign`: each sign is drawn, with a mean that keeps how large c is within its row and column.
    `geometric_wd`: decay goes along sign(p), with the length of p, as the steps do.
    """

    def check(self, options: Mapping[str, Any]) -> None:
        super().check(options)
        check_signs(options)

    @abstractmethod
    def average(self, s: StackStep) -> Tensor:
        """c `[b, rows, cols]`; may be the state itself, so it is not changed."""

    def slots(self, options: Mapping[str, Any], role: Role, rows: int, cols: int) -> list[Slot]:
        slots = super().slots(options, role, rows, cols)
        return slots + sign_slots(options, slots)

    def numbers(self, options: Mapping[str, Any], step: int) -> dict[str, float]:
        # only what is needed: parameters with other numbers of steps are stepped together where theirs are the same
        return {**super().numbers(options, step), **(sign_numbers(step) if options["l1_adaptive"] else {})}

    def direction(self, s: StackStep) -> Tensor:
        last = last_signs(s)
        c = self.average(s)
        if s.options["l1_adaptive"]:
            s.size = projected_size(s, c)
        s.pull = partial(signed_pull, s)
        return cautious_direction(s, sign_direction(s, c, last))
