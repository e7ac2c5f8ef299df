from collections.abc import Mapping
from typing import Any

from scaled_optim.features.moments import FIRST
from scaled_optim.features.normed_momentum import normed_gain
from scaled_optim.rules.Rule import Rule


class NormedRule(Rule):
    """A rule with one running mean, of `momentum`; with `normed_momentum` it is one of normalised gradients."""

    def moments(self, options: Mapping[str, Any]) -> list[str]:
        return [FIRST] if options["momentum"] else []

    def numbers(self, options: Mapping[str, Any], step: int) -> dict[str, Any]:
        return {**super().numbers(options, step), "gain": normed_gain(options)}
