from modules.util.config.BaseConfig import BaseConfig
from modules.util.config.option import option
from modules.util.enum.CenteredWDMode import CenteredWDMode
from modules.util.enum.Optimizer import Optimizer
from modules.util.enum.OptionGroup import OptionGroup
from modules.util.enum.OrthogonalGradient import OrthogonalGradient
from modules.util.enum.StatePrecision import StatePrecision
from modules.util.enum.StiefelBase import StiefelBase

from pydantic import field_validator

G = OptionGroup.OPTIMIZER
F = OptionGroup.OPTIMIZER_FEATURES


class OptimizerFeatureOptions(BaseConfig):
    """The optimizer's name and the options that many optimizers share. null: the optimizer's own default."""

    optimizer: Optimizer = option(
        Optimizer.ADAMW, "Optimizer", "How gradients become steps. ADAMW is the safe choice.", G
    )
    beta1: float | None = option(
        None,
        "Beta 1",
        "Share of the running mean of gradients that stays at each step. Higher is smoother.",
        G,
        ge=0,
        lt=1,
    )
    beta2: float | None = option(
        None, "Beta 2", "Share of the running mean of squared gradients that stays at each step.", G, ge=0, lt=1
    )
    beta3: float | None = option(
        None,
        "Beta 3",
        "A third averaging factor: AdEMAMix's slow mean, CAME's confidence, Prodigy's distance.",
        G,
        ge=0,
        lt=1,
        advanced=True,
    )
    momentum: float | None = option(None, "Momentum", "Share of the last steps' direction that stays.", G, ge=0, lt=1)
    eps: float | None = option(
        None, "Epsilon", "Keeps divisions away from zero. Larger values damp the adaptivity.", G, ge=0
    )
    eps2: float | None = option(
        None,
        "Epsilon 2",
        "A second such number: Adafactor's for the parameter scale, CAME's for the confidence.",
        G,
        ge=0,
        advanced=True,
    )
    weight_decay: float | None = option(
        None,
        "Weight decay",
        "Pulls weights toward zero, against overfitting. With scaled steps it does not depend on the learning rate.",
        G,
        ge=0,
    )
    stochastic_rounding: bool | None = option(
        None,
        "Stochastic rounding",
        "Rounds bfloat16 weights up or down at random, so that small steps are not lost.",
        G,
    )
    fused_back_pass: bool | None = option(
        None,
        "Fused backward pass",
        "Steps each parameter as soon as its gradient is there: much less memory. Not with gradient accumulation "
        "or FLOAT_16; clipping then limits each parameter's own gradient.",
        G,
    )
    compile: bool | None = option(None, "Compile optimizer", "Compiles the step with torch.compile.", G, advanced=True)

    scaled_optm: bool | None = option(
        None,
        "Scaled steps",
        "Gives each step a size that does not depend on rank, block size or width, so that a "
        "learning rate can be kept when these change.",
        F,
    )
    scaled_eps: bool | None = option(
        None, "Scaled epsilon", "Divides epsilon by the square root of the parameter's size.", F
    )
    state_precision: StatePrecision | None = option(
        None,
        "State precision",
        "How optimizer state is stored. bf16_sr halves it, int8_sr quarters it, factored keeps almost none.",
        F,
    )
    nnmf_factor: bool | None = option(
        None, "Factored state", "Older spelling of `state_precision` factored.", F, advanced=True
    )
    factored_2nd: bool | None = option(
        None, "Factored second moment", "Stores only the mean of squared gradients in factored form.", F
    )
    centered_wd: float | None = option(
        None, "Centered weight decay", "Pulls weights toward where they started instead of toward zero.", F, ge=0
    )
    centered_wd_mode: CenteredWDMode | None = option(
        None, "Centered storage", "How the starting weights are stored: full is exact, the others need less memory.", F
    )
    cautious_wd: bool | None = option(
        None, "Cautious weight decay", "Decays a weight only where the step has the same direction.", F
    )
    fisher_wd: bool | None = option(
        None, "Fisher weight decay", "Divides the decay by the gradient's running size, as FAdam does.", F
    )
    orthogonal_gradient: OrthogonalGradient | None = option(
        None,
        "Orthogonal gradient",
        "Removes from the gradient what only lengthens the weights: over the whole tensor or "
        "per rank. true means flattened.",
        F,
    )
    kourkoutas_beta: bool | None = option(
        None, "Kourkoutas beta", "Lowers beta 2 while gradients are unusually large.", F
    )
    beta2_min: float | None = option(
        None, "Lowest beta 2", "Beta 2 at the largest gradients, for Kourkoutas beta.", F, ge=0, lt=1, advanced=True
    )
    ema_alpha: float | None = option(
        None,
        "Gradient norm averaging",
        "Averaging factor of the gradient norm, for Kourkoutas beta.",
        F,
        ge=0,
        lt=1,
        advanced=True,
    )
    tiny_spike: float | None = option(
        None, "Tiny spike", "Keeps Kourkoutas beta's ratio away from a division by zero.", F, gt=0, advanced=True
    )
    k_warmup_steps: int | None = option(
        None,
        "Kourkoutas warm-up",
        "Steps with a fixed beta 2 before Kourkoutas beta begins.",
        F,
        ge=0,
        unit="steps",
        advanced=True,
    )
    freeze_on_flip: bool | None = option(
        None, "Freeze on flip", "Sign rules skip a weight in the step in which its sign changes.", F
    )
    l1_adaptive: bool | None = option(
        None, "Projected adaptivity", "Multiplies sign steps by the mean size of the direction.", F
    )
    use_atan2: bool | None = option(
        None, "Use atan2", "Replaces the division by a bounded function that needs no epsilon.", F
    )
    nesterov: bool | None = option(None, "Nesterov", "Looks one step ahead along the momentum.", F)
    nesterov_coef: float | None = option(
        None,
        "Nesterov coefficient",
        "How far it looks ahead. null: the momentum's own factor.",
        F,
        ge=0,
        le=1,
        advanced=True,
    )
    normed_momentum: bool | None = option(
        None, "Normed momentum", "Divides each gradient by its size before it enters the momentum.", F, advanced=True
    )
    use_AdEMAMix: bool | None = option(None, "AdEMAMix", "Adds a second, slow momentum.", F, advanced=True)
    Simplified_AdEMAMix: bool | None = option(
        None,
        "Simplified AdEMAMix",
        "Lets one momentum accumulate and adds the current gradient, enlarged by "
        "`alpha_grad`. Needs a far smaller learning rate.",
        F,
        advanced=True,
    )
    beta3_ema: float | None = option(
        None, "Slow beta", "Averaging factor of AdEMAMix's slow momentum.", F, ge=0, lt=1, advanced=True
    )
    alpha: float | None = option(
        None, "Alpha", "Weight of AdEMAMix's slow momentum; RMSprop's averaging factor.", F, ge=0, advanced=True
    )
    alpha_grad: float | None = option(
        None, "Gradient weight", "Weight of the current gradient in simplified AdEMAMix.", F, ge=0, advanced=True
    )
    auto_kappa_p: bool | None = option(
        None,
        "Automatic kappa",
        "Lets sign rules choose the norm of the step by the shape of the parameter.",
        F,
        advanced=True,
    )

    stiefel_base: StiefelBase | None = option(
        None,
        "Stiefel base",
        "Stiefel-LoRA: takes the direction from AdamW's moments, or from the sign of the momentum, which needs half "
        "the memory.",
        F,
        advanced=True,
    )
    clip_unmagnified_grad: float | None = option(
        None,
        "Clip unmagnified gradient",
        "LoRA-RITE: largest norm of each factor's gradient after the other factor's size has been taken out of it; "
        "0: any.",
        F,
        ge=0,
        advanced=True,
    )

    @field_validator("orthogonal_gradient", mode="before")
    @classmethod
    def _accept_switch(cls, value: object) -> object:
        if isinstance(value, bool):
            return OrthogonalGradient.FLATTENED if value else OrthogonalGradient.DISABLED
        return value
