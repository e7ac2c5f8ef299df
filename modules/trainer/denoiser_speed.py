"""What a config says of how the denoiser is run, beside its arithmetic: its attention kernel, and compiled blocks."""

import inspect
import os
import shutil
from importlib.util import find_spec

from modules.model.BaseModel import BaseModel
from modules.trainer.Method import Warn
from modules.util.config.TrainConfig import TrainConfig
from modules.util.enum.AttentionMechanism import AttentionMechanism
from modules.util.UserError import UserError

import torch

from diffusers.models.attention_processor import Attention

# Of one block: sizes of images and of captions, with gradient and without, and once more for averaged weights.
RECOMPILES = 64
# blocks have adapters of their own, which must not count towards the limit of another block
COMPILING = {
    name: value
    for name, value in (("isolate_recompiles", True), ("recompile_limit", RECOMPILES))
    if name in inspect.signature(torch.compile).parameters
}
# of torch's inductor
COMPILERS = ("g++", "clang++", "cl")


def speed_up(model: BaseModel, config: TrainConfig, warn: Warn) -> None:
    """Gives the denoiser the kernel and the compiled blocks of the config. Nothing is compiled before its first call.

    Args:
        model: with everything on it that is trained.
        config: of the run.
        warn: gets a line where blocks stay as they are.
    """
    if config.attention_mechanism == AttentionMechanism.XFORMERS:
        _use_xformers(model.denoiser)
    if not config.compile:
        return
    why = _uncompiled(model, config)
    if why:
        warn(f"compile: {why}, so the denoiser runs uncompiled: slower, with the same result.")
    else:
        model.denoiser.compile_repeated_blocks(**COMPILING)


def _use_xformers(denoiser: torch.nn.Module) -> None:
    try:
        # layers of UNets get another processor, those of transformers another backend of theirs
        if any(isinstance(layer, Attention) for layer in denoiser.modules()):
            denoiser.enable_xformers_memory_efficient_attention()
        else:
            denoiser.set_attention_backend("xformers")
    except (RuntimeError, ValueError, ImportError, NotImplementedError) as error:
        raise UserError(f"attention_mechanism: XFORMERS can't be used here: {error}. Set it to SDP.") from error


def _uncompiled(model: BaseModel, config: TrainConfig) -> str:
    """Why blocks can't be compiled; empty if they can."""
    component = model.trainable_components[0]
    if getattr(config, component).offload_fraction and torch.device(config.temp_device) != model.device:
        return f"blocks that wait elsewhere ({component}.offload_fraction) change places while they are called"
    if not getattr(model.denoiser, "_repeated_blocks", None):
        return f"diffusers names no repeated blocks of {type(model.denoiser).__name__}"
    if model.device.type == "cpu" and not any(map(shutil.which, (os.environ.get("CXX") or "", *COMPILERS))):
        return "torch needs a C++ compiler for that, and finds none"
    if model.device.type == "cuda" and find_spec("triton") is None:
        return "torch needs the library triton for that, which is not installed"
    return ""
