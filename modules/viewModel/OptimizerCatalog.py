from typing import Any, Self

from modules.util.config.errors import Problem
from modules.util.config.TrainConfig import TrainConfig
from modules.util.config.TrainOptimizerConfig import TrainOptimizerConfig
from modules.util.enum.Optimizer import Optimizer
from modules.util.found_problems import found

AUX = "muon_adam_config"


class OptimizerCatalog:
    """What each optimizer takes, and whether it would take a config. `load` it off the window's thread.

    Attributes:
        defaults: optimizer -> option -> default, in the optimizer's own order.
        aux_defaults: the same for the Adam beside a Muon.
    """

    def __init__(self, optimizers: Any, checks: Any) -> None:
        self._optimizers, self._checks = optimizers, checks
        self.defaults: dict[Optimizer, dict[str, Any]] = {
            name: dict(entry.defaults) for name, entry in optimizers.OPTIMIZERS.items()
        }
        self.aux_defaults: dict[str, Any] = dict(optimizers.RULES["ADAMW_ADV"].defaults)

    @classmethod
    def load(cls) -> Self:
        """Reads the trainer's own registry, for which torch is imported."""
        from modules.trainer import optimizer_checks, optimizers

        return cls(optimizers, optimizer_checks)

    def takers(self, option: str) -> list[str]:
        """The optimizers that have an option."""
        return [str(name) for name, defaults in self.defaults.items() if option in defaults]

    def misfit(self, config: TrainConfig, optimizer: Optimizer) -> str:
        """Why an optimizer is none for the run's training method; empty if it is one."""
        own = config.model_copy(update={"optimizer": TrainOptimizerConfig(optimizer=optimizer)})
        problems = found(self._checks.check_has_pairs, own)
        return problems[0].text.partition(". ")[0] if problems else ""

    def aux_options(self, config: TrainConfig) -> dict[str, Any]:
        """What the Adam beside a Muon works with where its own options are null: some come from Muon's."""
        rule = self._optimizers.RULES[str(config.optimizer.optimizer)]
        return dict(rule.adam_options({**self._checks.rule_options(config), AUX: None}))

    def problems(self, config: TrainConfig) -> list[Problem]:
        """What is wrong with the config's optimizer, alone and with the rest of the run."""
        return self._checks.optimizer_problems(config, lambda _: None)
