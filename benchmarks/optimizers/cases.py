"""Which rules and options the benchmark measures: every rule alone, every feature alone, and all of them together."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from scaled_optim.rules.registry import RULES
from scaled_optim.rules.Rule import Rule

DECAY = {"weight_decay": 0.01}


def _switched(*names: str, on: bool = True) -> dict[str, dict[str, bool]]:
    """Each of these switches alone, under its own name; under "no" and its name if it is switched off."""
    return {name if on else f"no {name}": {name: on} for name in names}


# name -> options; measured with a rule that has all of them, unless they are its defaults
FEATURES: Mapping[str, Mapping[str, Any]] = {
    "weight_decay": DECAY,
    "cautious_wd": {**DECAY, "cautious_wd": True},
    "centered_wd": {"centered_wd": 0.01},
    "fisher_wd": {**DECAY, "fisher_wd": True},
    "geometric_wd": {**DECAY, "geometric_wd": True},
    "scaled_wd": {**DECAY, "scaled_wd": True},
    "scaled_optm": {"scaled_optm": True},
    "scaled_eps": {"scaled_eps": True, "eps": 1.0},
    "orthogonal_gradient flattened": {"orthogonal_gradient": "flattened"},
    "orthogonal_gradient per_rank": {"orthogonal_gradient": "per_rank"},
    "orthogonal_gradient iterative": {"orthogonal_gradient": "iterative"},
    **_switched("orthogonal_sinkhorn", "stochastic_sign", "kourkoutas_beta", "use_atan2", "nesterov"),
    **_switched("nesterov", on=False),
    **_switched("normed_momentum"),
    "snr_cond": {"normed_momentum": True, "snr_cond": True},
    **_switched("use_bias_correction", on=False),
    **_switched("use_cautious", "use_grams", "use_AdEMAMix", "Simplified_AdEMAMix"),
    **{name: {"state_precision": name} for name in ("bf16_sr", "fp16", "int8_sr", "factored")},
    **_switched("factored_2nd", "freeze_on_flip", "l1_adaptive", "safeguard_warmup", "d_limiter"),
    **_switched("MuonWithAuxAdam", "rms_rescaling", on=False),
    **_switched("normuon_variant", "approx_mars", "accelerated_ns"),
    "low_rank_ortho": {"low_rank_ortho": True, "ortho_rank": 4},
}
# what "all on" is made of: the features that the peer has, too
COMBINED = (
    "fisher_wd", "cautious_wd", "scaled_optm", "scaled_eps", "orthogonal_gradient flattened", "kourkoutas_beta",
    "use_atan2", "nesterov", "normed_momentum", "safeguard_warmup", "d_limiter", "normuon_variant", "approx_mars",
    "accelerated_ns", "low_rank_ortho",
)  # fmt: skip
COSTLY = ("fisher_wd", "scaled_optm", "orthogonal_gradient flattened", "kourkoutas_beta")
STORED = ("bf16_sr", "int8_sr", "factored", "factored_2nd")
# steps of Prodigy's size come from d
LEARNING_RATES = {"PRODIGY_ADV": 1.0}


@dataclass(frozen=True)
class Case:
    """One row of the benchmark.

    Attributes:
        name: begins with the rule's.
        rule: of `RULES`.
        options: of the rule; all others have its defaults.
        dtype: of parameters and gradients, a name of torch's.
    """

    name: str
    rule: str
    options: Mapping[str, Any] = field(default_factory=dict)
    dtype: str = "float32"

    @property
    def lr(self) -> float:
        return LEARNING_RATES.get(self.rule, 1e-4)


def has_feature(rule: Rule, feature: str) -> bool:
    """Whether the rule has all options of a feature, and not as its defaults."""
    options = FEATURES[feature]
    return options.keys() <= rule.defaults.keys() and any(rule.defaults[key] != value for key, value in options.items())


def combined(rule: Rule, features: tuple[str, ...] = COMBINED) -> dict[str, Any]:
    """The options of those features that the rule has, without what it refuses together with the ones before."""
    options: dict[str, Any] = {}
    for feature in features:
        if not has_feature(rule, feature):
            continue
        more = {**options, **FEATURES[feature]}
        try:
            rule.check({**rule.defaults, **more})
        except ValueError:
            continue
        options = more
    return options


def cases(every_rule: bool = False) -> list[Case]:
    """All rows, in the order of the table.

    Args:
        every_rule: each feature with every rule that has it; otherwise with the first one, mostly ADAMW_ADV, as the
            code is the same in all.
    """
    adamw = RULES["ADAMW_ADV"]
    rows = [Case(f"{name} plain", name) for name in RULES]
    for feature, options in FEATURES.items():
        owners = [name for name, rule in RULES.items() if has_feature(rule, feature)]
        rows += [Case(f"{name} {feature}", name, options) for name in (owners if every_rule else owners[:1])]
    rows.append(Case("ADAMW_ADV scaled_optm + kourkoutas_beta + fisher_wd + orthogonal_gradient", "ADAMW_ADV",
                     combined(adamw, COSTLY)))  # fmt: skip
    rows += [Case(f"{name} all on", name, combined(rule)) for name, rule in RULES.items()]
    rows += [
        Case(f"ADAMW_ADV all on, {stored}", "ADAMW_ADV", combined(adamw, (*COMBINED, stored))) for stored in STORED
    ]
    bf16 = {
        "": {},
        ", no stochastic_rounding": {"stochastic_rounding": False},
        ", bf16_sr": FEATURES["bf16_sr"],
        ", int8_sr": FEATURES["int8_sr"],
        ", factored": FEATURES["factored"],
        ", all on": combined(adamw),
        ", all on, bf16_sr": combined(adamw, (*COMBINED, "bf16_sr")),
    }
    return rows + [
        Case(f"ADAMW_ADV bf16 parameters{name}", "ADAMW_ADV", options, "bfloat16") for name, options in bf16.items()
    ]


def matching(rows: list[Case], texts: list[str]) -> list[Case]:
    """The cases whose names contain one of the texts, whatever its case; all of them if there are no texts.

    Raises:
        ValueError: a text that is in no name.
    """
    for text in texts:
        if not any(text.lower() in row.name.lower() for row in rows):
            raise ValueError(f"--cases: found {text!r}, which is in no name; expected a part of one of "
                             f"{', '.join(row.name for row in rows)}")  # fmt: skip
    return [row for row in rows if not texts or any(text.lower() in row.name.lower() for text in texts)]
