from modules.util.config.BaseConfig import BaseConfig
from modules.util.config.option import option
from modules.util.enum.Optimizer import Optimizer
from modules.util.enum.OptionGroup import OptionGroup


class OptimizerName(BaseConfig):
    """Which optimizer a run has."""

    optimizer: Optimizer = option(
        Optimizer.ADAMW, "Optimizer", "How gradients become steps. ADAMW is the safe choice.", OptionGroup.OPTIMIZER
    )
