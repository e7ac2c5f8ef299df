from typing import Any

from modules.util.config.BaseConfig import BaseConfig
from modules.util.config.engine_fields import engine_field, engine_fields
from modules.util.config.option import option
from modules.util.config.topics.OptimizerLibraryOptions import OptimizerLibraryOptions
from modules.util.config.topics.OptimizerRunOptions import OptimizerRunOptions
from modules.util.enum.Optimizer import Optimizer
from modules.util.enum.OptionGroup import OptionGroup
from scaled_optim.options import DECLARED

from pydantic import create_model, field_validator

OFF = (None, False, 0, 0.0, "")
"""Values at which an option is off; it may stand in a config for every optimizer."""

ENGINE: type[BaseConfig] = create_model("EngineOptions", __base__=BaseConfig, __module__=__name__, **engine_fields())


class OptimizerName(BaseConfig):
    """Which optimizer a run has."""

    optimizer: Optimizer = option(
        Optimizer.ADAMW, "Optimizer", "How gradients become steps. ADAMW is the safe choice.", OptionGroup.OPTIMIZER
    )


# pydantic collects fields from the last base to the first
class TrainOptimizerConfig(OptimizerLibraryOptions, OptimizerRunOptions, ENGINE, OptimizerName):
    """The optimizer and its options. An option that is null takes the optimizer's own default."""

    muon_adam_config: "TrainOptimizerConfig | None" = engine_field("muon_adam_config", DECLARED["muon_adam_config"])

    def options(self) -> dict[str, Any]:
        """Every option but the optimizer's name, null where it is left to the optimizer."""
        return {name: getattr(self, name) for name in type(self).model_fields if name != "optimizer"}

    @property
    def resolved_state_precision(self) -> str:
        """The codec for optimizer state: `state_precision`, or `nnmf_factor`, which is its older spelling."""
        if self.state_precision in (None, "auto") and self.nnmf_factor:
            return "factored"
        return self.state_precision or "auto"

    @field_validator("orthogonal_gradient", mode="before")
    @classmethod
    def _accept_switch(cls, value: object) -> object:
        """OneTrainer's files have true and false here."""
        if isinstance(value, bool):
            return "flattened" if value else "disabled"
        return value
