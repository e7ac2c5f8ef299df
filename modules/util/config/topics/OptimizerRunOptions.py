from modules.util.config.BaseConfig import BaseConfig
from modules.util.config.option import option
from modules.util.enum.OptionGroup import OptionGroup

G = OptionGroup.OPTIMIZER


class OptimizerRunOptions(BaseConfig):
    """What the trainer does around the optimizer's step. null: the optimizer's own default."""

    fused_back_pass: bool | None = option(
        None,
        "Fused backward pass",
        "Steps each parameter as soon as its gradient is there: much less memory. Not with gradient accumulation "
        "or FLOAT_16; clipping then limits each parameter's own gradient.",
        G,
    )
    compile: bool | None = option(None, "Compile optimizer", "Compiles the step with torch.compile.", G, advanced=True)
    fused_kernels: bool | None = option(
        None,
        "Fused kernels",
        "On a GPU with Triton: steps by kernels of our own, each tried beside torch's operations first. Off: torch's "
        "operations.",
        G,
        advanced=True,
    )
    muon_te1_adam_lr: float | None = option(
        None,
        "Adam learning rate, text encoder 1",
        "Learning rate of the auxiliary Adam in text encoder 1.",
        OptionGroup.OPTIMIZER_MUON,
        ge=0,
        advanced=True,
    )
    muon_te2_adam_lr: float | None = option(
        None,
        "Adam learning rate, text encoder 2",
        "Learning rate of the auxiliary Adam in text encoder 2.",
        OptionGroup.OPTIMIZER_MUON,
        ge=0,
        advanced=True,
    )
