from functools import partial

from modules.util.config.BaseConfig import BaseConfig
from modules.util.config.option import option
from modules.util.enum.DataType import DataType
from modules.util.enum.OptionGroup import OptionGroup
from modules.util.enum.TimeUnit import TimeUnit

basic = partial(option, group=OptionGroup.COMPONENTS)
advanced = partial(option, group=OptionGroup.COMPONENTS, advanced=True)


class TrainModelPartConfig(BaseConfig):
    """One component of the model: denoiser, text encoder, VAE …"""

    model_name: str = basic(
        "",
        "Model",
        "Takes this component from another file, folder or hub name. Empty: from the base model.",
        path="model",
    )
    include: bool = advanced(
        True, "Include", "Loads the component. Switch off a text encoder that the run can do without to save memory."
    )
    train: bool = basic(True, "Train", "Trains this component; otherwise it stays frozen.")
    stop_training_after: int | None = advanced(
        None,
        "Stop training after",
        "Freezes the component when this much of the run is over. "
        "Text encoders overfit sooner than the denoiser. null, or the unit NEVER: trained to the end.",
        ge=0,
        unit="stop_training_after_unit",
    )
    stop_training_after_unit: TimeUnit = advanced(
        TimeUnit.NEVER, "Stop training unit", "What `stop_training_after` counts."
    )
    learning_rate: float | None = basic(
        None, "Learning rate", "Learning rate of this component alone. null: the run's `learning_rate`.", ge=0
    )
    weight_dtype: DataType = basic(
        DataType.FLOAT_32,
        "Weight dtype",
        "Number format in which weights are kept. Smaller formats save memory; FINE_TUNE trains weights in FLOAT_32, "
        "or in BFLOAT_16 with stochastic rounding; "
        "NONE takes the run's `weight_dtype`.",
    )
    dropout_probability: float = advanced(
        0.0,
        "Caption dropout",
        "Share of steps in which this text encoder sees an empty caption, so that guidance "
        "without a caption keeps working.",
        ge=0,
        le=1,
    )
    train_embedding: bool = advanced(True, "Train embedding", "Trains additional embeddings in this text encoder.")
    attention_mask: bool = advanced(
        False, "Attention mask", "Hides padding tokens from attention. Switch it on only for models trained that way."
    )
    guidance_scale: float = advanced(
        1.0, "Guidance scale", "The guidance value told to a guidance-distilled model during training.", ge=0
    )
    gradient_checkpointing: bool = basic(
        True,
        "Gradient checkpointing",
        "Computes activations again in the backward pass: much less memory, "
        "roughly a third more time. Switch it off if the run fits without.",
    )
    offload_fraction: float = advanced(
        0.0, "Offloaded fraction", "Share of the layers that wait in CPU memory until they are needed.", ge=0, le=1
    )
    activation_offloading: bool = advanced(
        False, "Offload activations", "Moves checkpointed activations to CPU memory: less GPU memory, slower steps."
    )
