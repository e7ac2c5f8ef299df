"""Another alpha for a config, so that training stays what it was.

ΔW = (α/r)·(product of d trained factors), d = 2 for LoRA and 4 for LoHa. With α·k and every factor divided by
c = k^(1/d) the product is the same, and every gradient is c times as large. Training stays the same if steps, too, are
divided by c. For a LoRA, c = √k:

- SGD, whose step grows with the gradient: the learning rate is divided by c², which is k.
- Adam and its kin, sign and orthogonalised steps, whose size does not depend on the gradient's: divided by c, which is
  √k; ε, which is added to gradients' sizes, is multiplied by c.
- Prodigy: unchanged, as it finds the divisor itself; only its first guess d0 is divided by c.

Start values are divided by c, the bound of gradient clipping is multiplied by c, and a weight decay that is multiplied
by the learning rate takes back what the learning rate lost. All of this is exact but for rounding.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from modules.trainer.optimizers import OPTIMIZERS
from modules.util.config.load import load_train_config
from modules.util.config.TrainConfig import TrainConfig
from modules.util.config.TrainModelPartConfig import TrainModelPartConfig
from modules.util.config.TrainOptimizerConfig import TrainOptimizerConfig
from modules.util.enum.Optimizer import Optimizer
from modules.util.enum.PeftType import PeftType
from modules.util.enum.TrainingMethod import TrainingMethod
from modules.util.UserError import UserError

# trained factors in the product that alpha multiplies
FACTORS = {PeftType.LORA: 2, PeftType.LOHA: 4}


@dataclass(frozen=True)
class Law:
    """How the options of an optimizer go with c, the number by which factors become smaller and gradients larger.

    Attributes:
        rate: the learning rate is divided by this power of c.
        options: option -> the power of c by which it is multiplied.
    """

    rate: int
    options: Mapping[str, int] = field(default_factory=dict)


def _engine(rate: int, **options: int) -> Law:
    # decay is rate·learning rate; Prodigy's is also multiplied by its d, which goes with 1/c
    decay = rate or 1
    return Law(rate, {"weight_decay": decay, "centered_wd": decay, **options})


_ADAPTIVE = {"eps": 1, "tiny_spike": 1}
_MUON = {"muon_adam_lr": -1, "muon_te1_adam_lr": -1, "muon_te2_adam_lr": -1}
# Decay that is added to the gradient goes with c², decay of its own with the power of the learning rate.
LAWS: dict[Optimizer, Law] = {
    Optimizer.SGD: Law(2, {"weight_decay": 2}),
    Optimizer.SCHEDULE_FREE_SGD: Law(2, {"weight_decay": 2}),
    Optimizer.ADAM: Law(1, {"eps": 1, "weight_decay": 2}),
    Optimizer.ADAMW: Law(1, {"eps": 1, "weight_decay": 1}),
    Optimizer.ADAGRAD: Law(1, {"eps": 1, "weight_decay": 2, "initial_accumulator_value": 2}),
    Optimizer.RMSPROP: Law(1, {"eps": 1, "weight_decay": 2}),
    # its ε is added to squares
    Optimizer.ADAFACTOR: Law(1, {"eps": 2, "weight_decay": 1}),
    Optimizer.PRODIGY: Law(0, {"eps": 1, "weight_decay": 1, "d0": -1}),
    Optimizer.SCHEDULE_FREE_ADAMW: Law(1, {"eps": 1, "weight_decay": 1}),
    # bitsandbytes decays both in the same way
    Optimizer.ADAMW_8BIT: Law(1, {"eps": 1, "weight_decay": 1}),
    Optimizer.ADAM_8BIT: Law(1, {"eps": 1, "weight_decay": 1}),
    Optimizer.LION_8BIT: Law(1, {"weight_decay": 1}),
    Optimizer.ADAGRAD_8BIT: Law(1, {"eps": 1, "weight_decay": 2}),
    Optimizer.RMSPROP_8BIT: Law(1, {"eps": 1, "weight_decay": 2}),
    Optimizer.SGD_8BIT: Law(2, {"weight_decay": 2}),
    Optimizer.AdEMAMix: Law(1, {"eps": 1, "weight_decay": 1}),
    Optimizer.AdEMAMix_8BIT: Law(1, {"eps": 1, "weight_decay": 1}),
    # the bound is that of the step by the weights: LAMB's step has a size of its own, LARS' goes with the gradient
    **dict.fromkeys((Optimizer.LAMB, Optimizer.LAMB_8BIT), Law(1, {"eps": 1, "weight_decay": 1, "max_unorm": 1})),
    **dict.fromkeys((Optimizer.LARS, Optimizer.LARS_8BIT), Law(2, {"weight_decay": 2, "max_unorm": 2})),
    Optimizer.LION: Law(1, {"weight_decay": 1}),
    Optimizer.TIGER: Law(1, {"weight_decay": 1}),
    Optimizer.ADOPT: Law(1, {"eps": 1, "weight_decay": 1}),
    # ε is added to squares, and the second one to squares of steps
    **dict.fromkeys((Optimizer.CAME, Optimizer.CAME_8BIT), Law(1, {"eps": 2, "weight_decay": 1})),
    Optimizer.MUON: Law(1, {"weight_decay": 1, **_MUON}),
    Optimizer.DADAPT_ADAM: Law(0, {"eps": 1, "weight_decay": 2, "d0": -1}),
    Optimizer.DADAPT_ADAN: Law(0, {"eps": 1, "weight_decay": 1, "d0": -1}),
    Optimizer.DADAPT_LION: Law(0, {"weight_decay": 1, "d0": -1}),
    Optimizer.DADAPT_SGD: Law(0, {"weight_decay": 2, "d0": -1}),
    Optimizer.PRODIGY_PLUS_SCHEDULE_FREE: Law(0, {"eps": 1, "weight_decay": 1, "d0": -1}),
    Optimizer.ADAMW_ADV: _engine(1, **_ADAPTIVE),
    Optimizer.ADOPT_ADV: _engine(1, **_ADAPTIVE),
    Optimizer.PRODIGY_ADV: _engine(0, **_ADAPTIVE, d0=-1),
    Optimizer.LION_ADV: _engine(1),
    Optimizer.SIGNSGD_ADV: _engine(1),
    Optimizer.SINKSGD_ADV: _engine(1),
    Optimizer.MUON_ADV: _engine(1, **_MUON),
    # a factor's step is that of the product divided by its partner, so steps go with c where the product's, which
    # is to go with 1/c², goes with the rate; ε and the bound meet the product's gradient, which goes with c²
    Optimizer.LORA_RITE: _engine(2, eps=2, clip_unmagnified_grad=2),
    # its second moment is that of orthogonalised signs, so ε does not see the gradient's size
    Optimizer.ADAMUON_ADV: _engine(1, **_MUON),
}
# optimizer -> why no alpha but the present one gives the same run
FIXED: dict[Optimizer, str] = {
    Optimizer.STIEFEL_LORA: "its up matrix has orthonormal columns, which can't be made smaller or larger",
    Optimizer.DADAPT_ADA_GRAD: "its sum of squares starts at a fixed number",
    Optimizer.YOGI: "its running means of gradients and of squares start at the same number",
    Optimizer.ADABELIEF: "its epsilon is added to squares and to their roots alike",
    Optimizer.AIDA: "its epsilon is added to squares and to their roots alike",
}
# option -> why with it the run is no longer quite the same
INEXACT = {
    "fisher_wd": "Fisher's weight decay is bounded by a fixed number",
    "scale_parameter": "steps are proportional to the weights, but not below a fixed number",
    "relative_step": "the learning rate is a fixed function of the step",
}


def rebase_config(config: TrainConfig, alpha: float, warn: Callable[[str], None] = lambda _: None) -> TrainConfig:
    """A config with another alpha that trains the same.

    Changed are `lora_alpha`, `lora_init_scale`, every learning rate, `clip_grad_norm`, and those options of the
    optimizer that depend on the size of gradients or weights; see `LAWS`.

    Args:
        config: of LoRA, DoRA or LoHa training; not changed.
        alpha: more than 0.
        warn: gets one line for everything that keeps the run from being the same.

    Raises:
        UserError: the adapter has no alpha, or the optimizer knows no other alpha.
    """
    if not 0 < alpha < float("inf"):
        raise UserError(f"alpha: found {alpha:g}, expected a number above 0.")
    degree = FACTORS.get(config.peft_type) if config.training_method == TrainingMethod.LORA else None
    if degree is None:
        what = config.peft_type if config.training_method == TrainingMethod.LORA else config.training_method
        raise UserError(
            f"peft_type: {what} can't be rebased, as its layers have no alpha or differ in how many factors it "
            f"multiplies. Expected one of {', '.join(FACTORS)}."
        )
    law = _law(config.optimizer, config.peft_type)
    c = (alpha / config.lora_alpha) ** (1 / degree)
    for remark in _remarks(config):
        warn(remark)
    share = c**-law.rate
    changes: dict[str, object] = {
        "lora_alpha": float(alpha),
        "lora_init_scale": config.lora_init_scale / c,
        "learning_rate": config.learning_rate * share,
        "clip_grad_norm": None if config.clip_grad_norm is None else config.clip_grad_norm * c,
        "optimizer": _optimizer(config.optimizer, law, c),
    }
    for name in type(config).model_fields:
        component = getattr(config, name)
        if isinstance(component, TrainModelPartConfig) and component.learning_rate is not None:
            changes[name] = component.model_copy(update={"learning_rate": component.learning_rate * share})
    if config.embedding_learning_rate is None:
        # embeddings are multiplied by no alpha
        changes["embedding_learning_rate"] = config.learning_rate
    return config.model_copy(update=changes, deep=True)


def rebase_preset(
    path: Path, target: Path, *, alpha: float | None, overwrite: bool, say: Callable[[str], None]
) -> None:
    """Reads a preset and writes it with another alpha, with what differs from the defaults only.

    Raises:
        UserError, ConfigError: no alpha is given, the target exists, the preset is wrong or can't be rebased.
    """
    if alpha is None:
        raise UserError(f"{path}: a preset can only get another alpha. Give --alpha, for example --alpha 16.")
    if target.exists() and not overwrite:
        raise UserError(f"{target} exists. Choose another name, or give --overwrite.")

    def warn(text: str) -> None:
        say(f"warning: {text}")

    old = load_train_config(path, warn=warn)
    new = rebase_config(old, alpha, warn)
    new.save(target, sparse=True)
    for name in ("lora_alpha", "learning_rate", "lora_init_scale", "clip_grad_norm"):
        before, after = getattr(old, name), getattr(new, name)
        if before != after:
            say(f"{name}: {before:g} → {after:g}")
    for name in type(new).model_fields:
        before, after = (getattr(getattr(config, name), "learning_rate", None) for config in (old, new))
        if before != after:
            say(f"{name}.learning_rate: {before:g} → {after:g}")
    for name in type(new.optimizer).model_fields:
        if getattr(old.optimizer, name) != getattr(new.optimizer, name) and name != "muon_adam_config":
            say(f"optimizer.{name}: {_shown(getattr(old.optimizer, name))} → {getattr(new.optimizer, name):g}")
    say(f"written: {target}")


def _law(optimizer: TrainOptimizerConfig, peft_type: PeftType) -> Law:
    kind = optimizer.optimizer
    if kind in FIXED:
        raise UserError(f"optimizer.optimizer: {kind} can't be rebased: {FIXED[kind]}. Keep alpha as it is.")
    if kind not in LAWS:
        raise UserError(
            f"optimizer.optimizer: {kind} can't be rebased, as how its steps go with alpha is not known here; "
            f"expected one of {', '.join(LAWS)}."
        )
    law = LAWS[kind]
    if kind == Optimizer.LORA_RITE and peft_type != PeftType.LORA:
        law = _engine(1, eps=1)  # what is no pair of factors goes to AdamW
    if optimizer.l1_adaptive and not optimizer.scaled_optm:
        law = _engine(2)  # signed steps times the mean size of the gradient
    if optimizer.scaled_optm or optimizer.scaled_wd:
        # decay does not go with the learning rate then
        law = Law(law.rate, {name: power for name, power in law.options.items() if name not in _DECAYS})
    if kind == Optimizer.PRODIGY and optimizer.decouple is False:
        law = Law(law.rate, {**law.options, "weight_decay": 2})
    if kind == Optimizer.DADAPT_ADAM and optimizer.decouple:
        law = Law(law.rate, {**law.options, "weight_decay": 1})
    return _with_its_decay(law, optimizer)


def _with_its_decay(law: Law, optimizer: TrainOptimizerConfig) -> Law:
    """The same, for optimizers whose options say how weights decay."""
    defaults = OPTIMIZERS[optimizer.optimizer].defaults
    if "decoupled_decay" not in defaults:
        return law
    apart, fixed = (
        defaults[key] if getattr(optimizer, key) is None else getattr(optimizer, key)
        for key in ("decoupled_decay", "fixed_decay")
    )
    power = 2 if not apart else 0 if fixed else law.rate
    return Law(law.rate, {**law.options, "weight_decay": power})


_DECAYS = ("weight_decay", "centered_wd")


def _optimizer(config: TrainOptimizerConfig, law: Law, c: float) -> TrainOptimizerConfig:
    defaults = OPTIMIZERS[config.optimizer].defaults
    changes: dict[str, object] = {}
    for name, power in law.options.items():
        value = getattr(config, name)
        value = defaults.get(name) if value is None else value
        if name == "tiny_spike" and not config.kourkoutas_beta:
            continue
        if value:  # neither an option that is off nor a zero changes
            changes[name] = value * c**power
    if "muon_adam_config" in defaults:
        own = config.muon_adam_config or TrainOptimizerConfig(optimizer=Optimizer.ADAMW_ADV)
        # decay is Muon's own unless it is set there
        fixed = config.scaled_optm or config.scaled_wd or own.scaled_wd
        options = {**_ADAPTIVE, **{name: 1 for name in _DECAYS if getattr(own, name) and not fixed}}
        changes["muon_adam_config"] = _optimizer(
            own.model_copy(update={"optimizer": Optimizer.ADAMW_ADV}), Law(1, options), c
        ).model_copy(update={"optimizer": own.optimizer})
    return config.model_copy(update=changes)


def _remarks(config: TrainConfig) -> list[str]:
    found = [
        f"optimizer.{name}: the run is not quite the same, as {why}."
        for name, why in INEXACT.items()
        if getattr(config.optimizer, name)
    ]
    if config.lora_decompose and config.peft_type == PeftType.LORA:
        found.append(
            "lora_decompose: the run is not quite the same, as DoRA's magnitude is multiplied by no "
            "alpha and is trained with the same learning rate."
        )
    if config.lora_model_name:
        found.append(
            f"lora_model_name: {config.lora_model_name} brings its own alpha and start values. "
            "Give it the same --alpha."
        )
    return found


def _shown(value: object) -> str:
    return "default" if value is None else f"{value:g}"
