from modules.util.config.BaseConfig import BaseConfig
from modules.util.config.option import option
from modules.util.enum.OptionGroup import OptionGroup

G = OptionGroup.OPTIMIZER_LIBRARY


class OptimizerLibraryOptions(BaseConfig):
    """Options that belong to one or a few optimizers. null: the optimizer's own default."""

    eps2: float | None = option(
        None,
        "Epsilon 2",
        "A second such number: Adafactor's for the parameter scale, CAME's for the confidence.",
        G,
        ge=0,
        advanced=True,
    )

    # learning-rate-free optimizers
    decouple: bool | None = option(None, "Decoupled decay", "Prodigy, D-Adapt Adam: decays weights as AdamW does.", G)
    use_speed: bool | None = option(None, "Speed variant", "Prodigy Plus: its other way to estimate.", G, advanced=True)
    split_groups: bool | None = option(
        None, "Estimate per group", "Prodigy Plus: one estimate for each parameter group.", G, advanced=True
    )
    split_groups_mean: bool | None = option(
        None, "Mean of groups", "Prodigy Plus: all groups use the mean of their estimates.", G, advanced=True
    )
    weight_decay_by_lr: bool | None = option(
        None, "Decay by learning rate", "Prodigy Plus: multiplies the decay by the learning rate.", G, advanced=True
    )
    use_stableadamw: bool | None = option(
        None, "StableAdamW", "Prodigy Plus: limits steps that are large for their gradient.", G, advanced=True
    )
    use_schedulefree: bool | None = option(
        None, "Schedule-free", "Prodigy Plus: averages weights instead of following a schedule.", G, advanced=True
    )
    schedulefree_c: float | None = option(
        None,
        "Schedule-free c",
        "Prodigy Plus: weight of newer steps in that average; 0: the plain method.",
        G,
        ge=0,
        advanced=True,
    )
    use_adopt: bool | None = option(None, "ADOPT", "Prodigy Plus: uses ADOPT's order of updates.", G, advanced=True)
    use_orthograd: bool | None = option(
        None, "OrthoGrad", "Prodigy Plus: its spelling of the orthogonal gradient.", G, advanced=True
    )
    factored: bool | None = option(
        None, "Factored", "Prodigy Plus: stores squared gradients in factored form.", G, advanced=True
    )
    factored_fp32: bool | None = option(
        None, "Factored in fp32", "Prodigy Plus: stores those factors in float32.", G, advanced=True
    )
    log_every: int | None = option(
        None,
        "Log every",
        "D-Adaptation: prints its estimate every so many steps; 0: never.",
        G,
        ge=0,
        unit="steps",
        advanced=True,
    )
    no_prox: bool | None = option(None, "No proximal step", "D-Adapt Adan: decays as AdamW does.", G, advanced=True)
    fsdp_in_use: bool | None = option(
        None, "FSDP", "Weights are spread over several GPUs. Refused: they never are.", G, advanced=True
    )

    # schedule-free optimizers
    r: float | None = option(
        None,
        "Average power",
        "Schedule-free: weight of later steps in the average; AIDA: averaging factor of norms, for AdaNorm.",
        G,
        ge=0,
        advanced=True,
    )
    weight_lr_power: float | None = option(
        None,
        "Learning rate power",
        "Schedule-free: weight of a step in the average by its learning rate.",
        G,
        ge=0,
        advanced=True,
    )

    # Adafactor
    clip_threshold: float | None = option(None, "Clip threshold", "Adafactor, CAME: largest RMS of a step.", G, gt=0)
    decay_rate: float | None = option(
        None,
        "Decay rate",
        "Adafactor: exponent by which squared gradients are averaged longer over time.",
        G,
        le=0,
        advanced=True,
    )
    relative_step: bool | None = option(
        None, "Relative step", "Adafactor: chooses the learning rate itself.", G, advanced=True
    )
    scale_parameter: bool | None = option(
        None, "Scale by parameter", "Adafactor: multiplies steps by the RMS of the weights.", G, advanced=True
    )
    warmup_init: bool | None = option(
        None,
        "Warm-up start",
        "Adafactor: lets its own learning rate rise slowly. Needs the relative step.",
        G,
        advanced=True,
    )

    # torch
    amsgrad: bool | None = option(
        None,
        "AMSGrad",
        "Divides by the largest running mean so far; of torch's Adam and AdamW, and AdaBelief.",
        G,
        advanced=True,
    )
    ams_bound: bool | None = option(None, "AMS bound", "AIDA: its form of AMSGrad.", G, advanced=True)
    foreach: bool | None = option(
        None, "Foreach", "Steps many tensors in one call: faster, more memory.", G, advanced=True
    )
    fused: bool | None = option(None, "Fused kernel", "Uses torch's fused step where there is one.", G, advanced=True)
    capturable: bool | None = option(None, "Capturable", "Allows recording the step in a CUDA graph.", G, advanced=True)
    differentiable: bool | None = option(
        None,
        "Differentiable",
        "Lets gradients flow through the step. Refused: a run takes no gradient of its steps.",
        G,
        advanced=True,
    )
    maximize: bool | None = option(None, "Maximise", "Climbs instead of descending.", G, advanced=True)
    dampening: float | None = option(
        None,
        "Dampening",
        "SGD: share of each gradient that does not enter the momentum.",
        G,
        ge=0,
        le=1,
        advanced=True,
    )
    centered: bool | None = option(
        None, "Centered", "RMSprop: divides by the variance instead of the mean square.", G, advanced=True
    )
    lr_decay: float | None = option(
        None, "Learning rate decay", "Adagrad: lowers the learning rate with every step.", G, ge=0, advanced=True
    )
    initial_accumulator_value: int | None = option(
        None, "Initial sum of squares", "Adagrad: start of its sum of squares.", G, ge=0, advanced=True
    )
    initial_accumulator: float | None = option(
        None, "Initial accumulator", "Yogi: start of its running means.", G, ge=0, advanced=True
    )

    # bitsandbytes and other 8-bit optimizers
    optim_bits: int | None = option(
        None,
        "State bits",
        "AdEMAMix: bits of each number of optimizer state, 8 or 32.",
        G,
        ge=8,
        le=32,
        unit="bits",
        advanced=True,
    )
    min_8bit_size: int | None = option(
        None, "Smallest 8-bit tensor", "Smaller tensors keep 32-bit state.", G, ge=0, unit="elements", advanced=True
    )
    quant_block_size: int | None = option(
        None,
        "Quantization block",
        "CAME in 8 bits: elements that share one scale, a power of two from 64 to 4096.",
        G,
        ge=1,
        unit="elements",
        advanced=True,
    )
    percentile_clipping: int | None = option(
        None,
        "Percentile clipping",
        "Clips gradients at this percentile of the last hundred norms; 100: never. Others are refused, as bitsandbytes "
        "has given it up.",
        G,
        ge=1,
        le=100,
        unit="percent",
        advanced=True,
    )
    block_wise: bool | None = option(
        None,
        "Block-wise",
        "Quantizes state in blocks, so that outliers stay local. bitsandbytes always does, whatever is set.",
        G,
        advanced=True,
    )
    is_paged: bool | None = option(
        None, "Paged", "Lets state move to CPU memory when the GPU is full.", G, advanced=True
    )
    max_unorm: float | None = option(
        None, "Largest update norm", "LAMB, LARS: largest step relative to the weights.", G, ge=0, advanced=True
    )

    # LAMB, ADOPT, AdaBelief, AIDA, Yogi, Tiger, Lion
    bias_correction: bool | None = option(
        None,
        "LAMB bias correction",
        "LAMB: corrects running means in the first steps. bitsandbytes always does, so false is refused.",
        G,
        advanced=True,
    )
    adam_w_mode: bool | None = option(
        None,
        "AdamW mode",
        "LAMB: decays weights as AdamW does. bitsandbytes always does, so false is refused.",
        G,
        advanced=True,
    )
    decoupled_decay: bool | None = option(
        None, "Decoupled weight decay", "Decays weights apart from the gradient.", G, advanced=True
    )
    fixed_decay: bool | None = option(
        None, "Fixed decay", "Does not multiply the decay by the learning rate.", G, advanced=True
    )
    cautious: bool | None = option(
        None, "Cautious", "ADOPT: skips weights whose step and gradient disagree.", G, advanced=True
    )
    rectify: bool | None = option(
        None, "Rectify", "Rectifies the variance of the first steps, as RAdam does.", G, advanced=True
    )
    degenerated_to_sgd: bool | None = option(
        None, "Fall back to SGD", "Uses plain momentum while the variance cannot be rectified.", G, advanced=True
    )
    n_sma_threshold: int | None = option(
        None,
        "Rectify threshold",
        "AIDA, AdaBelief: steps in the average from which they rectify.",
        G,
        ge=0,
        advanced=True,
    )
    k: int | None = option(None, "Projections", "AIDA: number of projections in each step.", G, ge=0, advanced=True)
    xi: float | None = option(
        None, "Xi", "AIDA: keeps its projection away from a division by zero.", G, ge=0, advanced=True
    )
    adanorm: bool | None = option(None, "AdaNorm", "AIDA: scales gradients by their running norm.", G, advanced=True)
    adam_debias: bool | None = option(
        None, "Adam debias", "Corrects only the divisor, so that the first steps are not enlarged.", G, advanced=True
    )
    use_triton: bool | None = option(None, "Triton", "Lion: uses its Triton kernel.", G, advanced=True)
    beta1_warmup: int | None = option(
        None,
        "Beta 1 warm-up",
        "Steps in which beta 1 rises to its value. Refused: of older versions of adv_optm.",
        G,
        ge=0,
        unit="steps",
        advanced=True,
    )
    min_beta1: float | None = option(
        None, "Lowest beta 1", "Where that rise begins. Refused, too.", G, ge=0, lt=1, advanced=True
    )
