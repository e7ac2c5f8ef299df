from modules.util.config.BaseConfig import BaseConfig
from modules.util.config.option import nested, option
from modules.util.config.QuantizationConfig import QuantizationConfig
from modules.util.config.TrainModelPartConfig import TrainModelPartConfig
from modules.util.enum.DataType import DataType
from modules.util.enum.ModelFormat import ModelFormat
from modules.util.enum.ModelType import ModelType
from modules.util.enum.OptionGroup import OptionGroup
from modules.util.enum.TimeUnit import TimeUnit
from modules.util.enum.TrainingMethod import TrainingMethod

G = OptionGroup.MODEL
COMPONENTS = OptionGroup.COMPONENTS
TEXT_ENCODER = {"stop_training_after": 30, "stop_training_after_unit": TimeUnit.EPOCH}
# what a component of each kind has no use for
OF_TEXT_ENCODERS = ("dropout_probability", "train_embedding")
UNET_FACTS = {"unused": (*OF_TEXT_ENCODERS, "attention_mask", "guidance_scale")}
TRANSFORMER_FACTS = {"unused": OF_TEXT_ENCODERS}
TEXT_ENCODER_FACTS = {"unused": ("guidance_scale",)}
# components that turn images into numbers and back are trained by one method only
_TRAINING = (
    "train", "stop_training_after", "stop_training_after_unit", "learning_rate", "gradient_checkpointing",
    "offload_fraction", "activation_offloading",
)  # fmt: skip
IMAGE_FACTS = {
    **UNET_FACTS,
    "inner_visible_when": {key: {"training_method": (TrainingMethod.FINE_TUNE_VAE,)} for key in _TRAINING},
}


class ModelOptions(BaseConfig):
    """The base model, its components, and the file that the run writes."""

    model_type: ModelType = option(
        ModelType.STABLE_DIFFUSION_15, "Model type", "The family of the base model. It must fit the model's weights.", G
    )
    base_model_name: str = option(
        "stable-diffusion-v1-5/stable-diffusion-v1-5",
        "Base model",
        "Folder, single file or hub name of the model to start from.",
        G,
        path="model",
    )
    output_model_destination: str = option(
        "models/model.safetensors",
        "Output",
        "File, or folder for DIFFUSERS, that the finished model is written to.",
        G,
        path="output",
        affects_result=False,
    )
    output_model_format: ModelFormat = option(
        ModelFormat.SAFETENSORS,
        "Output format",
        "File layout of the result. KOHYA_LORA and COMFY_LORA load in ComfyUI; "
        "SAFETENSORS picks the usual layout of the training method.",
        G,
        affects_result=False,
    )
    output_dtype: DataType = option(
        DataType.FLOAT_32,
        "Output dtype",
        "Number format of the saved weights. FLOAT_16 and BFLOAT_16 halve the file.",
        G,
        affects_result=False,
    )
    force_circular_padding: bool = option(
        False,
        "Circular padding",
        "Lets convolutions wrap around the image's edges, for seamless textures.",
        G,
        advanced=True,
    )

    unet: TrainModelPartConfig = nested(
        TrainModelPartConfig,
        "U-Net",
        "The denoiser of SD 1.5, 2.x and SDXL.",
        COMPONENTS,
        UNET_FACTS,
        stop_training_after=0,
    )
    prior: TrainModelPartConfig = nested(
        TrainModelPartConfig,
        "Prior",
        "The denoiser of Würstchen and Stable Cascade.",
        COMPONENTS,
        {"advanced": True, **UNET_FACTS},
        stop_training_after=0,
    )
    transformer: TrainModelPartConfig = nested(
        TrainModelPartConfig,
        "Transformer",
        "The denoiser of SD 3, Flux, Chroma, Qwen, Z-Image and other transformers.",
        COMPONENTS,
        TRANSFORMER_FACTS,
        stop_training_after=0,
    )
    unconditional_transformer: TrainModelPartConfig = nested(
        TrainModelPartConfig,
        "Unconditional transformer",
        "A second denoiser for guidance, in families that have one.",
        COMPONENTS,
        {"advanced": True, **TRANSFORMER_FACTS},
        train=False,
        gradient_checkpointing=False,
    )
    text_encoder: TrainModelPartConfig = nested(
        TrainModelPartConfig, "Text encoder", "The first text encoder.", COMPONENTS, TEXT_ENCODER_FACTS, **TEXT_ENCODER
    )
    text_encoder_layer_skip: int = option(
        0,
        "Layer skip",
        "Last layers of the text encoder that are left out; 1 is often called clip skip 2.",
        COMPONENTS,
        ge=0,
        unit="layers",
        advanced=True,
    )
    text_encoder_sequence_length: int | None = option(
        512,
        "Sequence length",
        "Tokens that the text encoder reads, in families where this can be chosen. null: the model's own.",
        COMPONENTS,
        ge=1,
        le=4096,
        unit="tokens",
        advanced=True,
    )
    prompt_chunks: int = option(
        1,
        "Long prompts",
        "Chunks of 75 tokens that CLIP text encoders read of a caption or prompt, in training and samples. 1: what "
        "comes behind is cut. 2 and 3 read as much as `max_token_length` 150 and 225 in kohya's trainers.",
        COMPONENTS,
        ge=1,
        le=32,
        unit="chunks",
    )
    text_encoder_2: TrainModelPartConfig = nested(
        TrainModelPartConfig,
        "Text encoder 2",
        "The second text encoder.",
        COMPONENTS,
        TEXT_ENCODER_FACTS,
        **TEXT_ENCODER,
    )
    text_encoder_2_layer_skip: int = option(
        0,
        "Layer skip 2",
        "Last layers of text encoder 2 that are left out.",
        COMPONENTS,
        ge=0,
        unit="layers",
        advanced=True,
    )
    text_encoder_2_sequence_length: int | None = option(
        77,
        "Sequence length 2",
        "Tokens that text encoder 2 reads, in families where this can be chosen. null: the model's own.",
        COMPONENTS,
        ge=1,
        le=4096,
        unit="tokens",
        advanced=True,
    )
    text_encoder_3: TrainModelPartConfig = nested(
        TrainModelPartConfig,
        "Text encoder 3",
        "The third text encoder.",
        COMPONENTS,
        {"advanced": True, **TEXT_ENCODER_FACTS},
        **TEXT_ENCODER,
    )
    text_encoder_3_layer_skip: int = option(
        0,
        "Layer skip 3",
        "Last layers of text encoder 3 that are left out.",
        COMPONENTS,
        ge=0,
        unit="layers",
        advanced=True,
    )
    text_encoder_4: TrainModelPartConfig = nested(
        TrainModelPartConfig,
        "Text encoder 4",
        "The fourth text encoder.",
        COMPONENTS,
        {"advanced": True, **TEXT_ENCODER_FACTS},
        **TEXT_ENCODER,
    )
    text_encoder_4_layer_skip: int = option(
        0,
        "Layer skip 4",
        "Last layers of text encoder 4 that are left out.",
        COMPONENTS,
        ge=0,
        unit="layers",
        advanced=True,
    )
    vae: TrainModelPartConfig = nested(
        TrainModelPartConfig,
        "VAE",
        "Turns images into latents and back. Trained only by FINE_TUNE_VAE.",
        COMPONENTS,
        IMAGE_FACTS,
    )
    effnet_encoder: TrainModelPartConfig = nested(
        TrainModelPartConfig,
        "EffNet encoder",
        "Image encoder of Würstchen and Stable Cascade.",
        COMPONENTS,
        {"advanced": True, **IMAGE_FACTS},
    )
    decoder: TrainModelPartConfig = nested(
        TrainModelPartConfig,
        "Decoder",
        "Second stage of Würstchen and Stable Cascade.",
        COMPONENTS,
        {"advanced": True, **UNET_FACTS},
    )
    decoder_text_encoder: TrainModelPartConfig = nested(
        TrainModelPartConfig,
        "Decoder text encoder",
        "Text encoder of that second stage.",
        COMPONENTS,
        {"advanced": True, **TEXT_ENCODER_FACTS},
    )
    decoder_vqgan: TrainModelPartConfig = nested(
        TrainModelPartConfig,
        "Decoder VQGAN",
        "Image decoder of that second stage.",
        COMPONENTS,
        {"advanced": True, **IMAGE_FACTS},
    )
    quantization: QuantizationConfig = nested(
        QuantizationConfig, "Quantization", "Which frozen layers are quantized.", OptionGroup.MEMORY, {"advanced": True}
    )
