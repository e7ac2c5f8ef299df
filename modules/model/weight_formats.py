"""The number formats in which frozen weights are kept, and how a component is put into one."""

from collections import Counter
from collections.abc import Sequence

from modules.model.ActivationOffload import ActivationOffload
from modules.model.DeviceLink import device_link
from modules.model.LayerOffload import offload, waiting_units
from modules.model.QuantizedLinear import WEIGHT_CODECS, QuantizedLinear
from modules.util.config.TrainConfig import TrainConfig
from modules.util.dtypes import FLOAT_DTYPES, TRAIN_DTYPES
from modules.util.enum.DataType import DataType
from modules.util.enum.TrainingMethod import TrainingMethod
from modules.util.LayerFilter import LayerFilter
from modules.util.UserError import UserError

import torch
from torch import nn

from diffusers import ModelMixin
from transformers import PreTrainedModel

# A layer with fewer numbers saves nothing worth its error: 64 × 64.
SMALLEST = 4096


def is_quantized_format(data_type: DataType) -> bool:
    """Whether weights in it can't be trained, only be frozen below adapters."""
    return data_type in WEIGHT_CODECS


def component_dtype(config: TrainConfig, component: str) -> torch.dtype:
    """The torch dtype of a component's frozen weights.

    Where linear layers are quantized, it is that of all others: the run's `train_dtype`, so that they compute in it.

    Raises:
        UserError: the format is none that frozen weights can have here.
    """
    data_type = config.component_weight_dtype(component)
    if data_type in WEIGHT_CODECS:
        return TRAIN_DTYPES.get(config.train_dtype, torch.bfloat16)
    if data_type not in FLOAT_DTYPES:
        expected = ", ".join(map(str, (*FLOAT_DTYPES, *WEIGHT_CODECS)))
        raise UserError(
            f"{component}.weight_dtype: found {data_type}, which is not supported; expected one of {expected}."
        )
    return FLOAT_DTYPES[data_type]


def float32_layers(module: nn.Module, dtype: torch.dtype) -> frozenset[str]:
    """The last names in the paths of layers that stay in float32, as their class says.

    Of text encoders only in half precision, whose range the sums of T5 leave; of models of diffusers in bfloat16, too:
    a norm that is stored as its distance from 1 would be rounded to a 256th when 1 is added.
    """
    if isinstance(module, PreTrainedModel):
        wanted = dtype == torch.float16
    else:
        wanted = isinstance(module, ModelMixin) and dtype in (torch.float16, torch.bfloat16)
    return frozenset(module._keep_in_fp32_modules or () if wanted else ())


def place_component(module: nn.Module, component: str, config: TrainConfig, device: torch.device) -> nn.Module:
    """Brings a component that was just read to its device and number format.

    Linear layers are quantized one after the other, each on the device and its source freed, so that neither memory
    ever holds the component twice. Everything else keeps floating-point numbers: convolutions, embeddings, norms,
    linear layers below 4096 numbers or with a weight that something else uses, too. Where `temp_device` is another
    one, the share of layers that `offload_fraction` names waits there, and so do activations if they are to.

    Args:
        module: of the component, with its weights; linear layers of it may be replaced.
        component: its name in the config.
        config: read for the component's format and `quantization`.
        device: where it is to work.

    Raises:
        UserError: the format is not supported, or nothing in the component can be quantized.
    """
    dtype, data_type = component_dtype(config, component), config.component_weight_dtype(component)
    home, units = torch.device(config.temp_device), []
    if check_offload(component, config) and home != device:
        units = waiting_units(module, getattr(config, component).offload_fraction)
    if data_type in WEIGHT_CODECS:
        for name in quantized_layers(module, component, config):
            owner, _, leaf = name.rpartition(".")
            layer = QuantizedLinear(module.get_submodule(name), data_type, device)
            setattr(module.get_submodule(owner), leaf, layer.to(home) if _inside(name, units) else layer)
        if device.type == "cpu" or units:
            # what was read is often a view of the file, which stays in memory as long as any of its views does
            for inner in module.modules():
                if not isinstance(inner, QuantizedLinear):
                    inner._apply(torch.clone, recurse=False)
    if home != device and getattr(config, component).activation_offloading:
        ActivationOffload(module, device_link(device, home, config.async_offloading))
    wide = float32_layers(module, dtype)
    if not units and not wide:
        # diffusers' own warns of layers that stay in float32 even where there are none
        return nn.Module.to(module, device=device, dtype=dtype)
    for name, inner in module.named_modules():
        if not _inside(name, units):
            own = torch.float32 if name.rpartition(".")[2] in wide else dtype
            inner._apply(lambda t, own=own: t.to(device, own if t.is_floating_point() else None), recurse=False)
    offload(module, units, device_link(device, home, config.async_offloading))
    return module


def widen_vae(vae: nn.Module) -> nn.Module:
    """Puts a VAE into float32 whose activations overflow in float16, as its own config says."""
    return vae.float() if vae.dtype == torch.float16 and vae.config.force_upcast else vae


def quantized_layers(module: nn.Module, component: str, config: TrainConfig) -> list[str]:
    """The linear layers of a component that its format quantizes.

    `quantization.layer_filter` names layers of the denoiser; text encoders are quantized whole, as they are adapted.

    Raises:
        UserError: there are none, or the filter is wrong.
    """
    data_type, own = config.component_weight_dtype(component), config.quantization
    if own.svd_dtype != DataType.NONE:
        raise UserError(f"quantization.svd_dtype: found {own.svd_dtype}, which is not supported yet; set it to NONE.")
    codec, uses = WEIGHT_CODECS[data_type], _uses(module)
    names = [
        name
        for name, layer in module.named_modules()
        # a subclass may let its weight be read by others, as the one of nn.MultiheadAttention does
        if type(layer) is nn.Linear
        and layer.weight.numel() >= SMALLEST
        and codec.fits(layer.out_features, layer.in_features)
        and uses[id(layer.weight)] == 1
    ]
    if not names:
        raise UserError(
            f"{component}.weight_dtype: found {data_type}, but the {component} has no layer that can be quantized: "
            f"only linear layers of {SMALLEST} numbers and more are, and no convolutions. "
            f"Set it to one of {', '.join(map(str, FLOAT_DTYPES))}."
        )
    if component.startswith("text_encoder"):
        return names
    return LayerFilter.from_config(own, {}, key="quantization.layer_filter").select(names, component)


def check_offload(component: str, config: TrainConfig) -> bool:
    """Whether layers of a component are to wait elsewhere; UserError if they can't."""
    own = getattr(config, component)
    if not own.offload_fraction:
        return False
    found = f"{component}.offload_fraction: found {own.offload_fraction:g}"
    if component == "vae":
        raise UserError(f"{found}, but the VAE waits as a whole while it is not needed. Set it to 0.")
    if own.train and config.training_method == TrainingMethod.FINE_TUNE:
        raise UserError(
            f"{found}, but only frozen layers can wait: set it to 0, train adapters, or freeze the {component}."
        )
    if own.train and not own.gradient_checkpointing:
        raise UserError(
            f"{found}, but without gradient checkpointing the backward pass would keep every layer on the device. "
            f"Set {component}.gradient_checkpointing to true, or this to 0."
        )
    return True


def _inside(name: str, units: Sequence[str]) -> bool:
    return any(name == unit or name.startswith(f"{unit}.") for unit in units)


def _uses(module: nn.Module) -> Counter[int]:
    """By how many modules each parameter is held."""
    return Counter(id(parameter) for submodule in module.modules() for parameter in submodule.parameters(recurse=False))
