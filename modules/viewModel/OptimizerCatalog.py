from typing import Any, Self

from modules.util.config.errors import Problem
from modules.util.config.TrainConfig import TrainConfig
from modules.util.config.TrainOptimizerConfig import TrainOptimizerConfig
from modules.util.enum.Optimizer import Optimizer
from modules.util.UserError import UserError

OFF = (None, False, 0, 0.0, "")
"""Values at which an option is off; it may stand in a config for every optimizer."""
AUX = "muon_adam_config"


class OptimizerCatalog:
    """What each optimizer takes, and whether it would take a config. `load` it off the window's thread.

    Attributes:
        defaults: optimizer -> option -> default, in the optimizer's own order; only those that can be trained with.
        aux_defaults: the same for the Adam beside a Muon.
    """

    def __init__(self, trainer: Any, fused: Any) -> None:
        self._trainer, self._fused = trainer, fused
        self.defaults: dict[Optimizer, dict[str, Any]] = {
            name: dict(entry.defaults) for name, entry in trainer.OPTIMIZERS.items()
        }
        self.aux_defaults: dict[str, Any] = dict(trainer.RULES["ADAMW_ADV"].defaults)

    @classmethod
    def load(cls) -> Self:
        """Reads the trainer's own registry, for which torch is imported."""
        from modules.trainer import FusedBackward, optimizers

        return cls(optimizers, FusedBackward)

    def takers(self, option: str) -> list[str]:
        """The optimizers that have an option."""
        return [str(name) for name, defaults in self.defaults.items() if option in defaults]

    def misfit(self, config: TrainConfig, optimizer: Optimizer) -> str:
        """Why an optimizer is none for the run's training method; empty if it is one."""
        try:
            self._trainer.check_has_pairs(
                config.model_copy(update={"optimizer": TrainOptimizerConfig(optimizer=optimizer)})
            )
        except UserError as error:
            return _problem(str(error), "").text.partition(". ")[0]
        return ""

    def aux_options(self, config: TrainConfig) -> dict[str, Any]:
        """What the Adam beside a Muon works with where its own options are null: some come from Muon's."""
        rule = self._trainer.RULES[str(config.optimizer.optimizer)]
        return dict(rule.adam_options({**self._options(config, rule), AUX: None}))

    def problems(self, config: TrainConfig) -> list[Problem]:
        """What is wrong with the config's optimizer, first of all with each of its options."""
        own, kind = config.optimizer, config.optimizer.optimizer
        if kind not in self.defaults:
            return [Problem("optimizer.optimizer", f"{kind} is not supported yet; choose another optimizer")]
        found = []
        for name, value in given_options(own).items():
            if name not in self.defaults[kind] and value not in OFF:
                takers = self.takers(name)
                who = f"it is an option of {', '.join(takers)}" if takers else "no supported optimizer has it"
                found.append(Problem(f"optimizer.{name}", f"{kind} has no such option; {who}. Reset it"))
        return found + [problem for check in (self._rule, self._run) if (problem := check(config))]

    def _rule(self, config: TrainConfig) -> Problem | None:
        """What the rule says of its options, alone and together."""
        rule = self._trainer.RULES.get(str(config.optimizer.optimizer))
        if rule is None:
            return None
        try:
            rule.check(self._options(config, rule))
        except ValueError as error:
            return _problem(str(error), "optimizer.")
        return None

    def _options(self, config: TrainConfig, rule: Any) -> dict[str, Any]:
        """All options of a rule, as the engine gets them from a config."""
        options = dict(rule.defaults)
        for name, value in given_options(config.optimizer).items():
            if name in options and value is not None:
                options[name] = str(value) if isinstance(value, str) else value
        if isinstance(options.get(AUX), TrainOptimizerConfig):
            options[AUX] = {key: value for key, value in given_options(options[AUX]).items() if value not in OFF}
        return options

    def _run(self, config: TrainConfig) -> Problem | None:
        """What the optimizer and the rest of the run say of each other."""
        try:
            if config.optimizer.fused_back_pass:
                self._fused.check_fused(config)
            self._trainer.check_has_pairs(config)
            self._trainer.check_lora_options(config, lambda _: None)
        except UserError as error:
            return _problem(str(error), "")
        return None


def given_options(config: TrainOptimizerConfig) -> dict[str, Any]:
    """Every option of an optimizer but its name."""
    return {name: getattr(config, name) for name in type(config).model_fields if name != "optimizer"}


def _problem(text: str, prefix: str) -> Problem:
    """Messages of the trainer begin with the option's path."""
    path, _, reason = text.partition(": ")
    return Problem(f"{prefix}{path}", reason.rstrip("."))
