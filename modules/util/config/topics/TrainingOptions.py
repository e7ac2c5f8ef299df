from functools import partial
from typing import Any

from modules.util.config.BaseConfig import BaseConfig
from modules.util.config.option import option
from modules.util.enum.AttentionMechanism import AttentionMechanism
from modules.util.enum.DataType import DataType
from modules.util.enum.EMAMode import EMAMode
from modules.util.enum.LearningRateScaler import LearningRateScaler
from modules.util.enum.LearningRateScheduler import LearningRateScheduler
from modules.util.enum.OptionGroup import OptionGroup

G = OptionGroup.TRAINING
RATE = OptionGroup.SCHEDULE
MEMORY = OptionGroup.MEMORY
RESTARTS = {
    "learning_rate_scheduler": (
        LearningRateScheduler.COSINE_WITH_RESTARTS,
        LearningRateScheduler.COSINE_WITH_HARD_RESTARTS,
    )
}
CUSTOM_SCHEDULES = tuple(
    f"torch.optim.lr_scheduler.{name}"
    for name in (
        "ConstantLR", "CosineAnnealingLR", "CosineAnnealingWarmRestarts", "CyclicLR", "ExponentialLR", "LinearLR",
        "MultiStepLR", "OneCycleLR", "PolynomialLR", "StepLR",
    )
)  # fmt: skip
CUSTOM = {"learning_rate_scheduler": (LearningRateScheduler.CUSTOM,)}
AVERAGED = {"ema": (EMAMode.GPU, EMAMode.CPU)}
training_option = partial(option, group=G)
schedule_option = partial(option, group=RATE)
advanced_schedule_option = partial(option, group=RATE, advanced=True)
memory_option = partial(option, group=MEMORY)
advanced_memory_option = partial(option, group=MEMORY, advanced=True)


class TrainingOptions(BaseConfig):
    """Length of the run, batch, learning rate, averaging, precision and memory."""

    epochs: int = training_option(100, "Epochs", "Passes over all concepts.", ge=1, le=1_000_000, unit="epochs")
    batch_size: int = training_option(
        1, "Batch size", "Images in one forward pass. Larger is steadier and needs more memory.", ge=1, unit="images"
    )
    gradient_accumulation_steps: int = training_option(
        1,
        "Gradient accumulation",
        "Batches whose gradients are averaged into one step: a larger batch without its memory.",
        ge=1,
        le=1_000_000,
        unit="batches",
    )
    clip_grad_norm: float | None = training_option(
        1.0,
        "Gradient clipping",
        "Largest norm of the whole gradient; longer ones are shortened. null: no clipping.",
        gt=0,
    )
    ema: EMAMode = training_option(
        EMAMode.OFF,
        "EMA",
        "Keeps a running average of the weights, which is saved instead of the last ones. "
        "On the CPU it takes no GPU memory.",
    )
    ema_decay: float = training_option(
        0.999,
        "EMA decay",
        "Share of the average that stays at each update. Nearer to 1 averages longer.",
        ge=0,
        le=1,
        visible_when=AVERAGED,
    )
    ema_update_step_interval: int = training_option(
        5, "EMA interval", "Steps between two updates of the average.", ge=1, unit="steps", visible_when=AVERAGED
    )

    learning_rate: float = schedule_option(
        3e-6,
        "Learning rate",
        "Size of a step, before schedule and scaler. The most important number of a run. The default is OneTrainer's. "
        "diffusers' example scripts take 1e-4 for a LoRA on SDXL and 1e-5 for full fine-tuning of SD 1.x, both with "
        "AdamW; Prodigy's paper takes 1. What was measured here is in docs/recommended.md.",
        ge=0,
    )
    learning_rate_scheduler: LearningRateScheduler = schedule_option(
        LearningRateScheduler.CONSTANT, "Schedule", "How the learning rate runs after the warm-up."
    )
    learning_rate_warmup_steps: float = schedule_option(
        200.0,
        "Warm-up",
        "Steps in which the learning rate rises from zero. A number up to 1 is a share of the run.",
        ge=0,
        unit="steps or share",
    )
    learning_rate_cycles: float = schedule_option(
        1.0, "Cycles", "Cycles of a schedule with restarts.", gt=0, unit="cycles", visible_when=RESTARTS
    )
    learning_rate_min_factor: float = schedule_option(
        0.0, "Lowest factor", "The schedule never falls below this share of the learning rate.", ge=0, le=1
    )
    learning_rate_scaler: LearningRateScaler = advanced_schedule_option(
        LearningRateScaler.NONE,
        "Scaler",
        "Multiplies the learning rate by the square root of the batch size, the accumulation steps, or both.",
    )
    custom_learning_rate_scheduler: str | None = advanced_schedule_option(
        None,
        "Custom schedule",
        "Scheduler class of torch, as torch.optim.lr_scheduler.StepLR. Only with the schedule CUSTOM.",
        choices=CUSTOM_SCHEDULES,
        visible_when=CUSTOM,
    )
    scheduler_params: list[dict[str, Any]] | None = advanced_schedule_option(
        list,
        "Custom schedule arguments",
        'Arguments of the custom schedule: a list of {"key": …, "value": …}.',
        visible_when=CUSTOM,
    )

    train_dtype: DataType = memory_option(
        DataType.FLOAT_16,
        "Train dtype",
        "Number format of the arithmetic. BFLOAT_16 is the safe choice on recent GPUs; "
        "FLOAT_16 needs loss scaling; FLOAT_32 is exact and slow. TFLOAT_32 is FLOAT_32 whose products have 10 bits on "
        "GPUs that can.",
    )
    fallback_train_dtype: DataType = advanced_memory_option(
        DataType.BFLOAT_16, "Fallback dtype", "Used where FLOAT_16 would overflow, as in some text encoders."
    )
    weight_dtype: DataType = advanced_memory_option(
        DataType.FLOAT_32,
        "Weight dtype",
        "Number format of frozen weights in components whose own `weight_dtype` is NONE.",
    )
    enable_autocast_cache: bool = advanced_memory_option(
        True, "Autocast cache", "Keeps converted weights during a step: faster, more memory."
    )
    async_offloading: bool = advanced_memory_option(
        True,
        "Asynchronous offloading",
        "Moves offloaded layers and activations on a CUDA GPU while others compute: as fast as the slower of both, for "
        "the memory of one more layer.",
        affects_result=False,
    )
    attention_mechanism: AttentionMechanism = advanced_memory_option(
        AttentionMechanism.SDP,
        "Attention",
        "Kernel that computes attention. SDP runs everywhere and takes the best one that fits. FLASH and CUDNN try "
        "theirs first; XFORMERS needs that library.",
    )
    compile: bool = memory_option(
        False,
        "Compile",
        "Compiles the denoiser's repeated blocks with torch.compile: a slow start, then faster steps. Needs a C++ "
        "compiler on a CPU, and triton on a GPU.",
    )
    deterministic: bool = advanced_memory_option(
        False,
        "Deterministic",
        "Same bytes in each run on the same GPU: kernels whose sums have one order, no TF32. Slower. On a CPU runs are "
        "so anyway.",
    )
    cudnn_benchmark: bool = advanced_memory_option(
        False,
        "Fastest convolutions",
        "Lets cuDNN try its convolutions for each size of image and take the fastest. Runs may differ in rounding.",
    )
    train_device: str = memory_option(
        "auto",
        "Train device",
        "Device of the training: cuda, cuda:1, mps, cpu. auto takes the best one there is.",
        choices=("auto", "cuda", "mps", "cpu"),
    )
    multi_gpu: bool = memory_option(
        False,
        "Several GPUs",
        "Trains on several GPUs of this machine, a process on each. batch_size stays that of all together, so the same "
        "run on one GPU has the same losses.",
        affects_result=False,
    )
    device_indexes: str = memory_option(
        "",
        "GPUs",
        "Numbers of the GPUs that are used, as 0,1. Empty: all there are. With train_device cpu: as many processes as "
        "there are numbers.",
        visible_when={"multi_gpu": (True,)},
        affects_result=False,
    )
    shard_weights: bool = memory_option(
        False,
        "Weights in parts",
        "With several GPUs: each holds a part of the weights of the denoiser, and of text encoders that are trained, "
        "and gets the rest block by block as it is needed (FSDP). Models fit that are too large for one GPU; steps are "
        "slower. Of weights that are trained, gradients and the optimizer's state are in parts, too.",
        affects_result=False,
    )
    temp_device: str = advanced_memory_option(
        "cpu",
        "Waiting device",
        "Device on which components wait that are not in use.",
        choices=("cpu", "cuda"),
        affects_result=False,
    )
