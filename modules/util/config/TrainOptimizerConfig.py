from typing import Any

from modules.util.config.option import option
from modules.util.config.topics.OptimizerFeatureOptions import OptimizerFeatureOptions
from modules.util.config.topics.OptimizerLibraryOptions import OptimizerLibraryOptions
from modules.util.config.topics.OptimizerMuonOptions import OptimizerMuonOptions
from modules.util.enum.OptionGroup import OptionGroup
from modules.util.enum.StatePrecision import StatePrecision

OFF = (None, False, 0, 0.0, "")
"""Values at which an option is off; it may stand in a config for every optimizer."""


# pydantic collects fields from the last base to the first
class TrainOptimizerConfig(OptimizerLibraryOptions, OptimizerMuonOptions, OptimizerFeatureOptions):
    """The optimizer and its options. An option that is null takes the optimizer's own default."""

    muon_adam_config: "TrainOptimizerConfig | None" = option(
        None,
        "Auxiliary Adam options",
        "Options of the Adam that trains what Muon does not. null: its defaults.",
        OptionGroup.OPTIMIZER_MUON,
        advanced=True,
    )

    def options(self) -> dict[str, Any]:
        """Every option but the optimizer's name, null where it is left to the optimizer."""
        return {name: getattr(self, name) for name in type(self).model_fields if name != "optimizer"}

    @property
    def resolved_state_precision(self) -> StatePrecision:
        """The codec for optimizer state: `state_precision`, or `nnmf_factor`, which is its older spelling."""
        if self.state_precision in (None, StatePrecision.AUTO) and self.nnmf_factor:
            return StatePrecision.FACTORED
        return self.state_precision or StatePrecision.AUTO
