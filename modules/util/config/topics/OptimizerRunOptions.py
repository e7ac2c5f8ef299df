from functools import partial

from modules.util.config.BaseConfig import BaseConfig
from modules.util.config.option import option
from modules.util.enum.OptionGroup import OptionGroup

G = OptionGroup.OPTIMIZER
run_option = partial(option, None, group=G)
advanced_run_option = partial(option, None, group=G, advanced=True)
advanced_muon_option = partial(option, None, group=OptionGroup.OPTIMIZER_MUON, advanced=True)


class OptimizerRunOptions(BaseConfig):
    """What the trainer does around the optimizer's step. null: the optimizer's own default."""

    fused_back_pass: bool | None = run_option(
        "Fused backward pass",
        "Steps each parameter as soon as its gradient is there: much less memory. Not with gradient accumulation "
        "or FLOAT_16; clipping then limits each parameter's own gradient.",
    )
    compile: bool | None = advanced_run_option("Compile optimizer", "Compiles the step with torch.compile.")
    shared: bool | None = advanced_run_option(
        "Share out",
        "With several GPUs each steps a part of the parameters and holds the state of that part alone; the results are "
        "the same. Saves memory where all weights are trained.",
        affects_result=False,
    )
    fused_kernels: bool | None = advanced_run_option(
        "Fused kernels",
        "On a GPU with Triton: steps by kernels of our own, each tried beside torch's operations first. Off: torch's "
        "operations.",
    )
    muon_te1_adam_lr: float | None = advanced_muon_option(
        "Adam learning rate, text encoder 1", "Learning rate of the auxiliary Adam in text encoder 1.", ge=0
    )
    muon_te2_adam_lr: float | None = advanced_muon_option(
        "Adam learning rate, text encoder 2", "Learning rate of the auxiliary Adam in text encoder 2.", ge=0
    )
