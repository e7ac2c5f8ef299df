from functools import partial

from modules.util.config.BaseConfig import BaseConfig
from modules.util.config.option import option
from modules.util.enum.OptionGroup import OptionGroup

G = OptionGroup.OPTIMIZER_LIBRARY
advanced = partial(option, None, group=G, advanced=True)
basic = partial(option, None, group=G)


class OptimizerLibraryOptions(BaseConfig):
    """Options that belong to one or a few optimizers. null: the optimizer's own default."""

    eps2: float | None = advanced(
        "Epsilon 2", "A second such number: Adafactor's for the parameter scale, CAME's for the confidence.", ge=0
    )

    # learning-rate-free optimizers
    decouple: bool | None = basic("Decoupled decay", "Prodigy, D-Adapt Adam: decays weights as AdamW does.")
    use_speed: bool | None = advanced("Speed variant", "Prodigy Plus: its other way to estimate.")
    split_groups: bool | None = advanced("Estimate per group", "Prodigy Plus: one estimate for each parameter group.")
    split_groups_mean: bool | None = advanced(
        "Mean of groups", "Prodigy Plus: all groups use the mean of their estimates."
    )
    weight_decay_by_lr: bool | None = advanced(
        "Decay by learning rate", "Prodigy Plus: multiplies the decay by the learning rate."
    )
    use_stableadamw: bool | None = advanced(
        "StableAdamW", "Prodigy Plus: limits steps that are large for their gradient."
    )
    use_schedulefree: bool | None = advanced(
        "Schedule-free", "Prodigy Plus: averages weights instead of following a schedule."
    )
    schedulefree_c: float | None = advanced(
        "Schedule-free c", "Prodigy Plus: weight of newer steps in that average; 0: the plain method.", ge=0
    )
    use_adopt: bool | None = advanced("ADOPT", "Prodigy Plus: uses ADOPT's order of updates.")
    use_orthograd: bool | None = advanced("OrthoGrad", "Prodigy Plus: its spelling of the orthogonal gradient.")
    factored: bool | None = advanced("Factored", "Prodigy Plus: stores squared gradients in factored form.")
    factored_fp32: bool | None = advanced("Factored in fp32", "Prodigy Plus: stores those factors in float32.")
    log_every: int | None = advanced(
        "Log every", "D-Adaptation: prints its estimate every so many steps; 0: never.", ge=0, unit="steps"
    )
    no_prox: bool | None = advanced("No proximal step", "D-Adapt Adan: decays as AdamW does.")
    fsdp_in_use: bool | None = advanced(
        "FSDP", "Weights are spread over several GPUs. Refused: `shard_weights` of the run says so."
    )

    # schedule-free optimizers
    r: float | None = advanced(
        "Average power",
        "Schedule-free: weight of later steps in the average; AIDA: averaging factor of norms, for AdaNorm.",
        ge=0,
    )
    weight_lr_power: float | None = advanced(
        "Learning rate power", "Schedule-free: weight of a step in the average by its learning rate.", ge=0
    )

    # Adafactor
    clip_threshold: float | None = basic("Clip threshold", "Adafactor, CAME: largest RMS of a step.", gt=0)
    decay_rate: float | None = advanced(
        "Decay rate", "Adafactor: exponent by which squared gradients are averaged longer over time.", le=0
    )
    relative_step: bool | None = advanced("Relative step", "Adafactor: chooses the learning rate itself.")
    scale_parameter: bool | None = advanced(
        "Scale by parameter", "Adafactor: multiplies steps by the RMS of the weights."
    )
    warmup_init: bool | None = advanced(
        "Warm-up start", "Adafactor: lets its own learning rate rise slowly. Needs the relative step."
    )

    # torch
    amsgrad: bool | None = advanced(
        "AMSGrad", "Divides by the largest running mean so far; of torch's Adam and AdamW, and AdaBelief."
    )
    ams_bound: bool | None = advanced("AMS bound", "AIDA: its form of AMSGrad.")
    foreach: bool | None = advanced("Foreach", "Steps many tensors in one call: faster, more memory.")
    fused: bool | None = advanced("Fused kernel", "Uses torch's fused step where there is one.")
    capturable: bool | None = advanced("Capturable", "Allows recording the step in a CUDA graph.")
    differentiable: bool | None = advanced(
        "Differentiable", "Lets gradients flow through the step. Refused: a run takes no gradient of its steps."
    )
    maximize: bool | None = advanced("Maximise", "Climbs instead of descending.")
    dampening: float | None = advanced(
        "Dampening", "SGD: share of each gradient that does not enter the momentum.", ge=0, le=1
    )
    centered: bool | None = advanced("Centered", "RMSprop: divides by the variance instead of the mean square.")
    lr_decay: float | None = advanced("Learning rate decay", "Adagrad: lowers the learning rate with every step.", ge=0)
    initial_accumulator_value: int | None = advanced(
        "Initial sum of squares", "Adagrad: start of its sum of squares.", ge=0
    )
    initial_accumulator: float | None = advanced("Initial accumulator", "Yogi: start of its running means.", ge=0)

    # bitsandbytes and other 8-bit optimizers
    optim_bits: int | None = advanced(
        "State bits", "AdEMAMix: bits of each number of optimizer state, 8 or 32.", ge=8, le=32, unit="bits"
    )
    min_8bit_size: int | None = advanced(
        "Smallest 8-bit tensor", "Smaller tensors keep 32-bit state.", ge=0, unit="elements"
    )
    quant_block_size: int | None = advanced(
        "Quantization block",
        "CAME in 8 bits: elements that share one scale, a power of two from 64 to 4096.",
        ge=1,
        unit="elements",
    )
    percentile_clipping: int | None = advanced(
        "Percentile clipping",
        "Clips gradients at this percentile of the last hundred norms; 100: never. Others are refused, as bitsandbytes "
        "has given it up.",
        ge=1,
        le=100,
        unit="percent",
    )
    block_wise: bool | None = advanced(
        "Block-wise",
        "Quantizes state in blocks, so that outliers stay local. bitsandbytes always does, whatever is set.",
    )
    is_paged: bool | None = advanced("Paged", "Lets state move to CPU memory when the GPU is full.")
    max_unorm: float | None = advanced("Largest update norm", "LAMB, LARS: largest step relative to the weights.", ge=0)

    # LAMB, ADOPT, AdaBelief, AIDA, Yogi, Tiger, Lion
    bias_correction: bool | None = advanced(
        "LAMB bias correction",
        "LAMB: corrects running means in the first steps. bitsandbytes always does, so false is refused.",
    )
    adam_w_mode: bool | None = advanced(
        "AdamW mode", "LAMB: decays weights as AdamW does. bitsandbytes always does, so false is refused."
    )
    decoupled_decay: bool | None = advanced("Decoupled weight decay", "Decays weights apart from the gradient.")
    fixed_decay: bool | None = advanced("Fixed decay", "Does not multiply the decay by the learning rate.")
    cautious: bool | None = advanced("Cautious", "ADOPT: skips weights whose step and gradient disagree.")
    rectify: bool | None = advanced("Rectify", "Rectifies the variance of the first steps, as RAdam does.")
    degenerated_to_sgd: bool | None = advanced(
        "Fall back to SGD", "Uses plain momentum while the variance cannot be rectified."
    )
    n_sma_threshold: int | None = advanced(
        "Rectify threshold", "AIDA, AdaBelief: steps in the average from which they rectify.", ge=0
    )
    k: int | None = advanced("Projections", "AIDA: number of projections in each step.", ge=0)
    xi: float | None = advanced("Xi", "AIDA: keeps its projection away from a division by zero.", ge=0)
    adanorm: bool | None = advanced("AdaNorm", "AIDA: scales gradients by their running norm.")
    adam_debias: bool | None = advanced(
        "Adam debias", "Corrects only the divisor, so that the first steps are not enlarged."
    )
    use_triton: bool | None = advanced("Triton", "Lion: uses its Triton kernel.")
    beta1_warmup: int | None = advanced(
        "Beta 1 warm-up",
        "Steps in which beta 1 rises to its value. Refused: of older versions of adv_optm.",
        ge=0,
        unit="steps",
    )
    min_beta1: float | None = advanced("Lowest beta 1", "Where that rise begins. Refused, too.", ge=0, lt=1)
