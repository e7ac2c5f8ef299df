"""Older spellings of OneTrainer's config files, and what they are called today."""

import copy
from collections.abc import Callable

COMPONENTS = (
    "unet",
    "prior",
    "transformer",
    "text_encoder",
    "text_encoder_2",
    "text_encoder_3",
    "text_encoder_4",
    "vae",
    "effnet_encoder",
    "decoder",
    "decoder_text_encoder",
    "decoder_vqgan",
)
TRAINED_COMPONENTS = ("unet", "prior", "text_encoder", "text_encoder_2")
NAMED_COMPONENTS = ("prior", "vae", "effnet_encoder", "decoder")
CASCADES = ("WUERSTCHEN_2", "STABLE_CASCADE_1")

FLAT_COMPONENT_KEYS = {
    **{f"train_{component}": f"{component}.train" for component in TRAINED_COMPONENTS},
    **{f"train_{component}_epochs": f"{component}.stop_training_after" for component in TRAINED_COMPONENTS},
    **{f"{component}_learning_rate": f"{component}.learning_rate" for component in TRAINED_COMPONENTS},
    **{f"{component}_weight_dtype": f"{component}.weight_dtype" for component in COMPONENTS},
    **{f"{component}_model_name": f"{component}.model_name" for component in NAMED_COMPONENTS},
    "token_count": "embedding.token_count",
    "initial_embedding_text": "embedding.initial_embedding_text",
}
LAYER_KEYS = {
    "lora_layers": "layer_filter",
    "lora_layer_preset": "layer_filter_preset",
    "lora_layers_regex": "layer_filter_regex",
}
SAVE_KEYS = {"save_after": "save_every", "save_after_unit": "save_every_unit"}
CONCEPT_KEYS = {"repeats": "balancing", "validation_concept": "type"}

OLD_SPELLINGS = (
    FLAT_COMPONENT_KEYS
    | LAYER_KEYS
    | SAVE_KEYS
    | CONCEPT_KEYS
    | {
        "min_snr_gamma": "loss_weight_fn",
        "embedding_model_names": "embedding.model_name",
        "gradient_checkpointing": "unet.gradient_checkpointing (one for each component)",
        "enable_activation_offloading": "unet.activation_offloading (one for each component)",
        "layer_offload_fraction": "unet.offload_fraction (one for each component)",
        "enable_async_offloading": "async_offloading",
    }
)
"""Old key -> today's, for hints about keys in files that carry no version."""


def _renamed(data: dict, names: dict[str, str]) -> dict:
    return {names.get(key, key): value for key, value in data.items()}


def _component(data: dict, name: str) -> dict | None:
    """The object of a component, copied so that it can be changed, or None if there is none."""
    if isinstance(data.get(name), dict):
        data[name] = dict(data[name])
        return data[name]
    return None


def _nest_optimizer(data: dict) -> dict:
    if not isinstance(data.get("optimizer", ""), str):
        return data
    options = {key.removeprefix("optimizer_"): value for key, value in data.items() if key.startswith("optimizer")}
    data = {key: value for key, value in data.items() if not key.startswith("optimizer")}
    if options:
        data["optimizer"] = options
    if "optimizer" in options:
        data["optimizer_defaults"] = {options["optimizer"]: copy.deepcopy(options)}
    return data


def _nest_components(data: dict) -> dict:
    nested = {}
    for key, value in data.items():
        if key in FLAT_COMPONENT_KEYS:
            component, name = FLAT_COMPONENT_KEYS[key].split(".")
            nested.setdefault(component, {})[name] = value
            if name == "stop_training_after":
                nested[component]["stop_training_after_unit"] = "EPOCH"
        elif key == "embedding_model_names":
            if isinstance(value, list) and value:
                nested.setdefault("embedding", {})["model_name"] = value[0]
        else:
            nested[key] = value
    return nested


def _name_loss_weight(data: dict) -> dict:
    gamma = data.pop("min_snr_gamma", 0)
    if gamma:
        data |= {"loss_weight_fn": "MIN_SNR_GAMMA", "loss_weight_strength": gamma}
    elif data.get("model_type") in CASCADES:
        data |= {"loss_weight_fn": "P2", "loss_weight_strength": 1.0}
    return data


def _name_timestep_distribution(data: dict) -> dict:
    weight, bias = data.get("noising_weight", 0), data.get("noising_bias", 0.5)
    if not weight:
        return data | {"timestep_distribution": "UNIFORM", "noising_weight": 0.0, "noising_bias": 0.0}
    data["timestep_distribution"] = "SIGMOID"
    # the bias used to be a position in the schedule, today it is a distance from its middle
    if isinstance(bias, (int, float)) and not isinstance(bias, bool):
        data["noising_bias"] = bias - 0.5
    return data


def _name_checkpointing(data: dict) -> dict:
    return data | {"gradient_checkpointing": "ON" if data.get("gradient_checkpointing", True) else "OFF"}


def _fill_layer_preset(data: dict) -> dict:
    if data.get("lora_layer_preset", "") is None:
        data["lora_layer_preset"] = "full"
    return data


def _name_transformer(data: dict) -> dict:
    if data.get("model_type") not in CASCADES and "prior" in data:
        data["transformer"] = copy.deepcopy(data["prior"])
    return data


def _fill_weight_dtypes(data: dict) -> dict:
    common = data.pop("weight_dtype", None)
    for name in COMPONENTS:
        component = _component(data, name)
        if common is not None and component is not None and component.get("weight_dtype") == "NONE":
            component["weight_dtype"] = common
    return data


def _spread_memory_options(data: dict) -> dict:
    mode = data.pop("gradient_checkpointing", "ON")
    offload_activations = data.pop("enable_activation_offloading", True)
    fraction = data.pop("layer_offload_fraction", 0.0)
    data["async_offloading"] = data.pop("enable_async_offloading", True)
    offload = mode == "CPU_OFFLOADED"
    for name in COMPONENTS:
        component = _component(data, name) if name in data else data.setdefault(name, {})
        if component is None:
            continue
        component |= {
            "gradient_checkpointing": mode != "OFF",
            "activation_offloading": offload and bool(offload_activations),
            "offload_fraction": fraction if offload else 0.0,
        }
    if data.get("output_model_format") == "SAFETENSORS" and data.get("training_method") != "EMBEDDING":
        data["output_model_format"] = "LEGACY_LORA" if data.get("training_method") == "LORA" else "LEGACY_SAFETENSORS"
    return data


def _name_concept_type(data: dict) -> dict:
    if "validation_concept" in data:
        data["type"] = "VALIDATION" if data.pop("validation_concept") else "STANDARD"
    return data


TRAIN_MIGRATIONS: dict[int, Callable[[dict], dict]] = {
    0: _nest_optimizer,
    1: _nest_components,
    2: _name_loss_weight,
    3: _name_timestep_distribution,
    4: _name_checkpointing,
    5: lambda data: _renamed(data, SAVE_KEYS),
    6: _fill_layer_preset,
    7: lambda data: _renamed(data, LAYER_KEYS),
    8: _name_transformer,
    9: _fill_weight_dtypes,
    10: _spread_memory_options,
}
"""Version of a OneTrainer config -> function to the next version. Each may change the dict that it gets."""

CONCEPT_MIGRATIONS: dict[int, Callable[[dict], dict]] = {
    0: lambda data: _renamed(data, {"repeats": "balancing"}),
    1: _name_concept_type,
}
"""The same for concepts."""
