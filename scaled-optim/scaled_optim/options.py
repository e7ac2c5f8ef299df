"""What each option of a rule may be. Its default stands with the rules that have it."""

from collections.abc import Mapping
from dataclasses import dataclass
from numbers import Real
from typing import Any

from scaled_optim.anchors import ANCHORS
from scaled_optim.codecs import CODECS
from scaled_optim.features.orthogonal_gradient import MODES


@dataclass(frozen=True)
class Numbers:
    """Numbers from `low` to `high`.

    Attributes:
        above, below: whether the limit itself is excluded.
        whole: only integers.
        optional: None is a value, too.
    """

    low: float = 0
    high: float = float("inf")
    above: bool = False
    below: bool = False
    whole: bool = False
    optional: bool = False

    def allows(self, value: Any) -> bool:
        if value is None:
            return self.optional
        if isinstance(value, bool) or not isinstance(value, int if self.whole else Real):
            return False
        # NaN compares false
        over = value > self.low if self.above else value >= self.low
        under = value < self.high if self.below else value <= self.high
        return over and under

    def __str__(self) -> str:
        low = f"above {self.low}" if self.above else f"at least {self.low}"
        high = f" and {'below' if self.below else 'at most'} {self.high}" if self.high < float("inf") else ""
        return f"{'null or ' * self.optional}{'an integer' if self.whole else 'a number'} {low}{high}"


@dataclass(frozen=True)
class Choice:
    """One of a few values."""

    values: tuple[Any, ...]

    def allows(self, value: Any) -> bool:
        return any(type(value) is type(choice) and value == choice for choice in self.values)

    def __str__(self) -> str:
        return f"one of {', '.join(map(_json, self.values))}"


@dataclass(frozen=True)
class Options:
    """Options of another rule, or None; the rule that takes them checks what they hold."""

    def allows(self, value: Any) -> bool:
        return value is None or isinstance(value, Mapping)

    def __str__(self) -> str:
        return "null or a set of options"


@dataclass(frozen=True)
class Text:
    """Any text, or None."""

    def allows(self, value: Any) -> bool:
        return value is None or isinstance(value, str)

    def __str__(self) -> str:
        return "null or a text"


SHARE = Numbers(high=1, below=True)
POSITIVE = Numbers(high=float("inf"), above=True, below=True)
FINITE = Numbers(below=True)
COUNT = Numbers(whole=True)
FROM_ONE = Numbers(low=1, whole=True)
BOOLEAN = Choice((False, True))

# All that are not true or false.
ALLOWED: Mapping[str, Numbers | Choice | Options | Text] = {
    "weight_decay": FINITE,
    "centered_wd": FINITE,
    "centered_wd_mode": Choice(tuple(ANCHORS)),
    "orthogonal_gradient": Choice(MODES),
    "state_precision": Choice(("auto", *CODECS)),
    "nesterov_coef": Numbers(high=1, optional=True),
    "momentum": SHARE,
    "beta1": SHARE,
    "beta2": SHARE,
    "beta2_min": SHARE,
    "beta2_normuon": SHARE,
    "beta3": Numbers(high=1, below=True, optional=True),
    "beta3_ema": SHARE,
    "ema_alpha": SHARE,
    "eps": FINITE,
    "tiny_spike": FINITE,
    "k_warmup_steps": COUNT,
    "alpha": FINITE,
    "alpha_grad": FINITE,
    "d0": POSITIVE,
    "d_coef": POSITIVE,
    "growth_rate": Numbers(low=1),
    "slice_p": FROM_ONE,
    "prodigy_steps": COUNT,
    "ns_steps": FROM_ONE,
    "sinkhorn_iterations": FROM_ONE,
    "ortho_rank": FROM_ONE,
    "rms_rescaling": Choice((None, False, True)),
    "clip_unmagnified_grad": FINITE,
    "stiefel_base": Choice(("ADAMW", "SIGN")),
    "muon_adam_config": Options(),
    "muon_adam_lr": Numbers(below=True, optional=True),
    "muon_hidden_layers": Text(),
}


def check_values(options: Mapping[str, Any]) -> None:
    """ValueError for the first value that is not allowed: option, value and what is."""
    for name, value in options.items():
        allowed = ALLOWED.get(name, BOOLEAN)
        if not allowed.allows(value):
            raise ValueError(f"{name}: found {_json(value)}, expected {allowed}.")


def _json(value: Any) -> str:
    """As a config would write it."""
    if value is None or isinstance(value, bool):
        return {None: "null", False: "false", True: "true"}[value]
    return repr(value) if isinstance(value, float) else str(value)
