from collections.abc import Mapping
from functools import partial
from typing import Any

from modules.util.config.BaseConfig import BaseConfig
from modules.util.config.option import nested, option
from modules.util.config.QuantizationConfig import QuantizationConfig
from modules.util.config.text_encoder_options import layer_skip, sequence_length
from modules.util.config.TrainModelPartConfig import TrainModelPartConfig
from modules.util.enum.DataType import DataType
from modules.util.enum.ModelFormat import ModelFormat
from modules.util.enum.ModelType import ModelType
from modules.util.enum.OptionGroup import OptionGroup
from modules.util.enum.TimeUnit import TimeUnit
from modules.util.enum.TrainingMethod import TrainingMethod

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
CONDITIONER_FACTS = {"unused": (*OF_TEXT_ENCODERS, "attention_mask", "guidance_scale", *_TRAINING)}
# its layers can wait elsewhere
UNCONDITIONAL_FACTS = {"unused": tuple(key for key in CONDITIONER_FACTS["unused"] if key != "offload_fraction")}
model_option = partial(option, group=OptionGroup.MODEL)


def _component(title: str, help: str, facts: Mapping[str, Any], advanced: bool = False, **sparse: Any) -> Any:
    """Declares a component, whose defaults may differ from its class's in `sparse`."""
    return nested(TrainModelPartConfig, title, help, COMPONENTS, {**facts, "advanced": advanced}, **sparse)


class ModelOptions(BaseConfig):
    """The base model, its components, and the file that the run writes."""

    model_type: ModelType = model_option(
        ModelType.STABLE_DIFFUSION_15, "Model type", "The family of the base model. It must fit the model's weights."
    )
    base_model_name: str = model_option(
        "stable-diffusion-v1-5/stable-diffusion-v1-5",
        "Base model",
        "Folder, single file or hub name of the model to start from.",
        path="model",
    )
    output_model_destination: str = model_option(
        "models/model.safetensors",
        "Output",
        "File, or folder for DIFFUSERS, that the finished model is written to.",
        path="output",
        affects_result=False,
    )
    output_model_format: ModelFormat = model_option(
        ModelFormat.SAFETENSORS,
        "Output format",
        "File layout of the result. KOHYA_LORA and COMFY_LORA load in ComfyUI; "
        "SAFETENSORS picks the usual layout of the training method.",
        affects_result=False,
    )
    output_dtype: DataType = model_option(
        DataType.FLOAT_32,
        "Output dtype",
        "Number format of the saved weights. FLOAT_16 and BFLOAT_16 halve the file.",
        affects_result=False,
    )
    force_circular_padding: bool = model_option(
        False,
        "Circular padding",
        "Lets convolutions wrap around the image's edges, for seamless textures.",
        advanced=True,
    )

    unet: TrainModelPartConfig = _component(
        "U-Net", "The denoiser of SD 1.5, 2.x and SDXL.", UNET_FACTS, stop_training_after=0
    )
    prior: TrainModelPartConfig = _component(
        "Prior", "The denoiser of Würstchen and Stable Cascade.", UNET_FACTS, advanced=True, stop_training_after=0
    )
    transformer: TrainModelPartConfig = _component(
        "Transformer",
        "The denoiser of SD 3, Flux, Chroma, Qwen, Z-Image and other transformers.",
        TRANSFORMER_FACTS,
        stop_training_after=0,
    )
    unconditional_transformer: TrainModelPartConfig = _component(
        "Unconditional transformer",
        "The second denoiser of Ideogram 4, from which samples are steered away. It is not trained, and waits on "
        "`temp_device` between samples.",
        UNCONDITIONAL_FACTS,
        advanced=True,
        train=False,
        gradient_checkpointing=False,
    )
    text_encoder: TrainModelPartConfig = _component(
        "Text encoder", "The first text encoder.", TEXT_ENCODER_FACTS, **TEXT_ENCODER
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
    text_encoder_sequence_length: int | None = sequence_length(
        512,
        "Sequence length",
        "Tokens that the text encoder reads, in families where this can be chosen. null: the model's own.",
        COMPONENTS,
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
    text_encoder_2: TrainModelPartConfig = _component(
        "Text encoder 2", "The second text encoder.", TEXT_ENCODER_FACTS, **TEXT_ENCODER
    )
    text_encoder_2_layer_skip: int = layer_skip(2, COMPONENTS)
    text_encoder_2_sequence_length: int | None = sequence_length(
        77,
        "Sequence length 2",
        "Tokens that text encoder 2 reads, in families where this can be chosen. null: the model's own.",
        COMPONENTS,
    )
    text_encoder_3: TrainModelPartConfig = _component(
        "Text encoder 3", "The third text encoder.", TEXT_ENCODER_FACTS, advanced=True, **TEXT_ENCODER
    )
    text_encoder_3_layer_skip: int = layer_skip(3, COMPONENTS)
    text_encoder_3_sequence_length: int | None = sequence_length(
        None,
        "Sequence length 3",
        "Tokens that text encoder 3 reads, in families where this can be chosen. null: the model's own.",
        COMPONENTS,
    )
    text_encoder_4: TrainModelPartConfig = _component(
        "Text encoder 4", "The fourth text encoder.", TEXT_ENCODER_FACTS, advanced=True, **TEXT_ENCODER
    )
    text_encoder_4_layer_skip: int = layer_skip(4, COMPONENTS)
    text_conditioner: TrainModelPartConfig = _component(
        "Text conditioner",
        "Stands between text encoder and transformer in Anima. It is not trained. Without a `model_name` it comes from "
        "the transformer's file, if that holds it, else from the base model.",
        CONDITIONER_FACTS,
        advanced=True,
        train=False,
        weight_dtype=DataType.NONE,
    )
    vae: TrainModelPartConfig = _component(
        "VAE", "Turns images into latents and back. Trained only by FINE_TUNE_VAE.", IMAGE_FACTS
    )
    effnet_encoder: TrainModelPartConfig = _component(
        "EffNet encoder", "Image encoder of Würstchen and Stable Cascade.", IMAGE_FACTS, advanced=True
    )
    decoder: TrainModelPartConfig = _component(
        "Decoder", "Second stage of Würstchen and Stable Cascade.", UNET_FACTS, advanced=True
    )
    decoder_text_encoder: TrainModelPartConfig = _component(
        "Decoder text encoder", "Text encoder of that second stage.", TEXT_ENCODER_FACTS, advanced=True
    )
    decoder_vqgan: TrainModelPartConfig = _component(
        "Decoder VQGAN", "Image decoder of that second stage.", IMAGE_FACTS, advanced=True
    )
    quantization: QuantizationConfig = nested(
        QuantizationConfig, "Quantization", "Which frozen layers are quantized.", OptionGroup.MEMORY, {"advanced": True}
    )
