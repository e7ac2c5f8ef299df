from modules.util.config.BaseConfig import BaseConfig
from modules.util.config.option import option
from modules.util.enum.DataType import DataType
from modules.util.enum.OptionGroup import OptionGroup
from modules.util.enum.TimeUnit import TimeUnit


class TrainModelPartConfig(BaseConfig):
    """One component of the model: denoiser, text encoder, VAE …"""

    model_name: str = option(
        "",
        "Model",
        "Takes this component from another file, folder or hub name. Empty: from the base model.",
        OptionGroup.COMPONENTS,
        path="model",
    )
    include: bool = option(
        True,
        "Include",
        "Loads the component. Switch off a text encoder that the run can do without to save memory.",
        OptionGroup.COMPONENTS,
        advanced=True,
    )
    train: bool = option(True, "Train", "Trains this component; otherwise it stays frozen.", OptionGroup.COMPONENTS)
    stop_training_after: int | None = option(
        None,
        "Stop training after",
        "Freezes the component when this much of the run is over. "
        "Text encoders overfit sooner than the denoiser. null, or the unit NEVER: trained to the end.",
        OptionGroup.COMPONENTS,
        ge=0,
        unit="stop_training_after_unit",
        advanced=True,
    )
    stop_training_after_unit: TimeUnit = option(
        TimeUnit.NEVER,
        "Stop training unit",
        "What `stop_training_after` counts.",
        OptionGroup.COMPONENTS,
        advanced=True,
    )
    learning_rate: float | None = option(
        None,
        "Learning rate",
        "Learning rate of this component alone. null: the run's `learning_rate`.",
        OptionGroup.COMPONENTS,
        ge=0,
    )
    weight_dtype: DataType = option(
        DataType.FLOAT_32,
        "Weight dtype",
        "Number format in which weights are kept. Smaller formats save memory; FINE_TUNE trains weights in FLOAT_32, "
        "or in BFLOAT_16 with stochastic rounding; "
        "NONE takes the run's `weight_dtype`.",
        OptionGroup.COMPONENTS,
    )
    dropout_probability: float = option(
        0.0,
        "Caption dropout",
        "Share of steps in which this text encoder sees an empty caption, so that guidance "
        "without a caption keeps working.",
        OptionGroup.COMPONENTS,
        ge=0,
        le=1,
        advanced=True,
    )
    train_embedding: bool = option(
        True,
        "Train embedding",
        "Trains additional embeddings in this text encoder.",
        OptionGroup.COMPONENTS,
        advanced=True,
    )
    attention_mask: bool = option(
        False,
        "Attention mask",
        "Hides padding tokens from attention. Switch it on only for models trained that way.",
        OptionGroup.COMPONENTS,
        advanced=True,
    )
    guidance_scale: float = option(
        1.0,
        "Guidance scale",
        "The guidance value told to a guidance-distilled model during training.",
        OptionGroup.COMPONENTS,
        ge=0,
        advanced=True,
    )
    gradient_checkpointing: bool = option(
        True,
        "Gradient checkpointing",
        "Computes activations again in the backward pass: much less memory, "
        "roughly a third more time. Switch it off if the run fits without.",
        OptionGroup.COMPONENTS,
    )
    offload_fraction: float = option(
        0.0,
        "Offloaded fraction",
        "Share of the layers that wait in CPU memory until they are needed.",
        OptionGroup.COMPONENTS,
        ge=0,
        le=1,
        advanced=True,
    )
    activation_offloading: bool = option(
        False,
        "Offload activations",
        "Moves checkpointed activations to CPU memory: less GPU memory, slower steps.",
        OptionGroup.COMPONENTS,
        advanced=True,
    )
