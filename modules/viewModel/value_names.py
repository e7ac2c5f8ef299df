"""What a form calls the values of a config whose own names are for programs; the values themselves stay beside them."""

from collections.abc import Mapping
from typing import Any

from modules.util.enum.ModelFormat import ModelFormat
from modules.util.enum.ModelType import ModelType
from modules.util.enum.PeftType import PeftType
from modules.util.enum.RunLogger import RunLogger
from modules.util.enum.TrainingMethod import TrainingMethod
from modules.util.texts import tr

NAMES: Mapping[type, Mapping[str, str]] = {
    ModelType: {
        ModelType.STABLE_DIFFUSION_15: "Stable Diffusion 1.5",
        ModelType.STABLE_DIFFUSION_15_INPAINTING: "Stable Diffusion 1.5 inpainting",
        ModelType.STABLE_DIFFUSION_20: "Stable Diffusion 2.0, 768 pixels",
        ModelType.STABLE_DIFFUSION_20_BASE: "Stable Diffusion 2.0, 512 pixels",
        ModelType.STABLE_DIFFUSION_20_INPAINTING: "Stable Diffusion 2.0 inpainting",
        ModelType.STABLE_DIFFUSION_20_DEPTH: "Stable Diffusion 2.0 depth",
        ModelType.STABLE_DIFFUSION_21: "Stable Diffusion 2.1, 768 pixels",
        ModelType.STABLE_DIFFUSION_21_BASE: "Stable Diffusion 2.1, 512 pixels",
        ModelType.STABLE_DIFFUSION_3: "Stable Diffusion 3",
        ModelType.STABLE_DIFFUSION_35: "Stable Diffusion 3.5",
        ModelType.STABLE_DIFFUSION_XL_10_BASE: "SDXL",
        ModelType.STABLE_DIFFUSION_XL_10_BASE_INPAINTING: "SDXL inpainting",
        ModelType.WUERSTCHEN_2: "Würstchen 2",
        ModelType.STABLE_CASCADE_1: "Stable Cascade",
        ModelType.PIXART_ALPHA: "PixArt alpha",
        ModelType.PIXART_SIGMA: "PixArt Sigma",
        ModelType.FLUX_DEV_1: "Flux.1 dev, schnell",
        ModelType.FLUX_FILL_DEV_1: "Flux.1 Fill",
        ModelType.FLUX_KONTEXT_DEV_1: "Flux.1 Kontext",
        ModelType.FLUX_2: "Flux.2 dev, Klein",
        ModelType.SANA: "Sana",
        ModelType.HUNYUAN_VIDEO: "Hunyuan Video",
        ModelType.HI_DREAM_FULL: "HiDream",
        ModelType.CHROMA_1: "Chroma",
        ModelType.QWEN: "Qwen-Image",
        ModelType.QWEN_EDIT: "Qwen-Image-Edit",
        ModelType.ANIMA: "Anima",
        ModelType.KREA_2: "Krea 2",
        ModelType.Z_IMAGE: "Z-Image",
        ModelType.ERNIE: "Ernie-Image",
        ModelType.IDEOGRAM_4: "Ideogram 4",
    },
    TrainingMethod: {
        TrainingMethod.FINE_TUNE: "Full fine-tuning",
        TrainingMethod.LORA: "Adapter (LoRA, OFT …)",
        TrainingMethod.EMBEDDING: "Embedding",
        TrainingMethod.FINE_TUNE_VAE: "VAE",
    },
    PeftType: {PeftType.LORA: "LoRA", PeftType.LOHA: "LoHa", PeftType.OFT_2: "OFT", PeftType.LOKR: "LoKr"},
    RunLogger: {RunLogger.NONE: "none", RunLogger.WANDB: "Weights & Biases (wandb)", RunLogger.TRACKIO: "trackio"},
    ModelFormat: {
        ModelFormat.DIFFUSERS: "diffusers folder",
        ModelFormat.SAFETENSORS: "one file",
        ModelFormat.ORIGINAL_SINGLE_FILE: "one file, original names",
        ModelFormat.ORIGINAL_TRANSFORMER: "transformer alone, original names",
        ModelFormat.COMFY_TRANSFORMER: "transformer alone, for ComfyUI",
        ModelFormat.LEGACY_SAFETENSORS: "one file, as OneTrainer had it",
        ModelFormat.KOHYA_LORA: "kohya: ComfyUI and most others",
        ModelFormat.COMFY_LORA: "ComfyUI",
        ModelFormat.DIFFUSERS_LORA: "diffusers",
        ModelFormat.ORIGINAL_LORA: "original names",
        ModelFormat.LEGACY_LORA: "OneTrainer",
        ModelFormat.INTERNAL: "OneTrainer, internal",
    },
}


def value_name(kind: Any, text: str) -> str:
    """What a form calls a value; the value itself where it has no other name.

    Args:
        kind: class of the option's values.
        text: the value, as it stands in a field; may be anything.
    """
    names = NAMES.get(kind) if isinstance(kind, type) else None
    return tr((names or {}).get(text, text))
