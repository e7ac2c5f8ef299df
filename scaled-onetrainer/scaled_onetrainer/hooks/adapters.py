"""Tells our optimizers what OneTrainer's adapters train, draws start values, and makes OFT in its ELEMENTS form."""

from collections.abc import Callable
from contextvars import ContextVar
from types import ModuleType
from typing import Any

from scaled_onetrainer.describe import describe_adapter
from scaled_onetrainer.fields import SCALE_FORMS, STARTS
from scaled_onetrainer.rotations import elements_rotation
from scaled_onetrainer.run_hook import place
from scaled_optim.description import model_width
from scaled_optim.lora_start import draw_start_values

import torch
from torch import nn

# The config of the wrapper that is making its adapters.
_CONFIG: ContextVar[Any] = ContextVar("config", default=None)
_TOLD: set[str] = set()


def apply(module: ModuleType) -> None:
    """`LoRAModuleWrapper` describes its parameters when they are asked for, which is when groups are made of them.

    `LoRAModule` draws what `lora_init` says, before anything is loaded into it, so files and backups win. `OFTModule`
    gets a rotation that scales by ELEMENTS where `oft_scaled` and `oft_scale_mode` say so.
    """
    wrapper, lora, oft = (place(module, name) for name in ("LoRAModuleWrapper", "LoRAModule", "OFTModule"))
    rotation = elements_rotation(place(module, "OFTRotationModule"))
    _hook_wrapper(wrapper)
    _hook_start(lora)
    _hook_rotation(oft, rotation)


def _hook_wrapper(wrapper: type) -> None:
    make, parameters = place(wrapper, "__init__"), place(wrapper, "parameters")

    def __init__(self: Any, orig_module: nn.Module | None, prefix: str, config: Any, *args: Any, **kwargs: Any) -> None:
        check_adapter_options(config)
        note = without_effect(config)
        # there is a wrapper for each component of a model
        if note is not None and note not in _TOLD:
            _TOLD.add(note)
            print(note)
        before = _CONFIG.set(config)
        if orig_module is not None:
            self.scaled_model_width = model_width(orig_module)
        try:
            make(self, orig_module, prefix, config, *args, **kwargs)
        finally:
            _CONFIG.reset(before)

    def described(self: Any) -> list[nn.Parameter]:
        found = parameters(self)
        for adapter in self.lora_modules.values():
            # a fused one holds the real one
            adapter = adapter if isinstance(adapter, nn.Module) else adapter.module
            describe_adapter(adapter, getattr(self, "scaled_model_width", None))
        return found

    wrapper.__init__, wrapper.parameters = __init__, described


def check_adapter_options(config: Any) -> None:
    """ValueError for a word that is none of those that our adapter options know."""
    for key, known in (("oft_scale_mode", SCALE_FORMS), ("lora_init", STARTS)):
        if getattr(config, key) not in known:
            raise ValueError(f"{key}: found {getattr(config, key)}, expected one of {', '.join(known)}.")


def without_effect(config: Any) -> str | None:
    """One line on an option of ours that does nothing in this config, None if all do something."""
    if str(config.peft_type) == "OFT_2" and config.oft_scale_mode == "ELEMENTS" and not config.oft_scaled:
        return "oft_scale_mode: ELEMENTS has no effect, as oft_scaled is off. Switch Scaled OFT on to use it."
    if str(config.peft_type) != "LORA" and config.lora_init != "KAIMING":
        return f"lora_init: {config.lora_init} has no effect on {config.peft_type}, it is for LoRA and DoRA."
    return None


def _hook_start(lora: type) -> None:
    theirs: Callable[[Any], None] = place(lora, "initialize_weights")

    def initialize_weights(self: Any) -> None:
        config = _CONFIG.get()
        start = "KAIMING" if config is None else config.lora_init
        if start == "ORTHONORMAL":
            _lower_rank(self)
        theirs(self)
        if start != "KAIMING":
            with torch.no_grad():
                down, up = torch.zeros(self.lora_down.weight.shape), torch.zeros(self.lora_up.weight.shape)
                draw_start_values(down, up, start)
                self.lora_down.weight.copy_(down)
                self.lora_up.weight.copy_(up)

    lora.initialize_weights = initialize_weights


def _lower_rank(adapter: Any) -> None:
    """A matrix has at most as many orthonormal columns as rows: fewer ranks, with the same alpha for each."""
    layer = adapter.orig_module
    out = layer.out_features if isinstance(layer, nn.Linear) else layer.out_channels // layer.groups
    if adapter.rank > out:
        print(f"{adapter.prefix[:-1]}: rank {adapter.rank} → {out}, its outputs, as ORTHONORMAL allows no more")
        adapter.alpha.mul_(out / adapter.rank)
        adapter.rank = out


def _hook_rotation(oft: type, rotation: type) -> None:
    theirs: Callable[[Any], None] = place(oft, "initialize_weights")

    def initialize_weights(self: Any) -> None:
        config = _CONFIG.get()
        scaled = config is not None and config.oft_scale_mode == "ELEMENTS" and self.oft_scaled
        if scaled:
            # their division is not done then, and their files do not say that it has to be
            self.oft_scaled = False
        theirs(self)
        if scaled:
            self.oft_R = rotation(
                r=self.oft_R.r,
                n_elements=self.oft_R.n_elements,
                block_size=self.oft_R.block_size,
                in_features=self.oft_R.in_features,
                block_share=self.oft_R.block_share,
                oft_scaled=False,
                use_cayley_neumann=self.oft_R.use_cayley_neumann,
                num_cayley_neumann_terms=self.oft_R.num_cayley_neumann_terms,
                dropout_probability=self.dropout_probability,
            )
            nn.init.zeros_(self.oft_R.weight)

    oft.initialize_weights = initialize_weights
