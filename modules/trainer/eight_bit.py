"""Optimizers whose state is kept in 8 bits between steps, where bitsandbytes has no 8-bit step of their own.

A step takes one parameter at a time: its codes become float32, the 32-bit step runs, and the new state becomes codes
again. So only one parameter's state is whole at a time.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

# `bitsandbytes` writes a line about a package that only its 4-bit layers use
from bitsandbytes import functional
from bitsandbytes.optim import LAMB, LARS
from pytorch_optimizer.optimizer.came import CAME

# numbers that share a scale, as in bitsandbytes' own 8-bit steps
BLOCK = 256


def packed(value: Tensor, code: Tensor, block: int) -> tuple[Tensor, Tensor]:
    """Numbers as 8-bit codes of the same shape, and the float32 scale of each block of them."""
    codes, state = functional.quantize_blockwise(value.float().contiguous(), code=code, blocksize=block)
    return codes, state.absmax


def unpacked(codes: Tensor, scales: Tensor, code: Tensor, block: int) -> Tensor:
    """The float32 numbers of such codes."""
    return functional.dequantize_blockwise(codes, absmax=scales.float(), code=code, blocksize=block)


class _StateIn8Bits:
    """For an optimizer of bitsandbytes that was made with `optim_bits=8`: its 32-bit step on 8-bit state."""

    def update_step(self, group: dict, p: Tensor, gindex: int, pindex: int) -> None:
        state = self.state[p]
        names = [name for name in ("1", "2") if f"state{name}" in state]
        if state["state1"].dtype != torch.uint8:
            super().update_step(group, p, gindex, pindex)
            return
        codes = {name: state[f"state{name}"] for name in names}
        for name in names:
            state[f"state{name}"] = unpacked(codes[name], state[f"absmax{name}"], state[f"qmap{name}"], BLOCK)
        try:
            super().update_step(group, p, gindex, pindex)
            for name in names:
                new, scales = packed(state[f"state{name}"], state[f"qmap{name}"], BLOCK)
                codes[name].copy_(new)
                state[f"absmax{name}"].copy_(scales)
        finally:
            for name in names:
                state[f"state{name}"] = codes[name]


class Lamb8bit(_StateIn8Bits, LAMB):
    """bitsandbytes' LAMB, whose two moments are kept in 8 bits."""

    def __init__(self, params: Any, **options: Any) -> None:
        super().__init__(params, optim_bits=8, **options)


class Lars8bit(_StateIn8Bits, LARS):
    """bitsandbytes' LARS, whose momentum is kept in 8 bits."""

    def __init__(self, params: Any, **options: Any) -> None:
        super().__init__(params, optim_bits=8, **options)


class Came8bit(CAME):
    """CAME (arXiv 2307.02047), whose momentum is kept in 8 bits; its other state is a row and a column of each matrix.

    Args:
        params: groups of parameters.
        smallest: numbers of a parameter from which its momentum is kept so.
        block: numbers that share a scale: 64, 128, 256, 512, 1024, 2048 or 4096.
        options: of pytorch_optimizer's `CAME`.
    """

    BLOCKS = (64, 128, 256, 512, 1024, 2048, 4096)

    def __init__(self, params: Any, smallest: int = 16384, block: int = 2048, **options: Any) -> None:
        if block not in self.BLOCKS:
            raise ValueError(f"quant_block_size: found {block}, expected one of {', '.join(map(str, self.BLOCKS))}")
        super().__init__(params, foreach=False, **options)
        self.smallest, self.block = smallest, block
        self._code = functional.create_dynamic_map()

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        groups = self.param_groups
        try:
            for group in groups:
                for p in group["params"]:
                    if p.grad is not None:
                        self.param_groups = [{**group, "params": [p]}]
                        self._step_one(p)
                group["step"] = group.get("step", 0) + 1
        finally:
            self.param_groups = groups
        return loss

    def _step_one(self, p: Tensor) -> None:
        state = self.state[p]
        scales = state.pop("exp_avg_scales", None)
        self._code = self._code.to(p.device)
        if scales is not None:
            state["exp_avg"] = unpacked(state["exp_avg"], scales, self._code, self.block).to(p.dtype)
        super().step()
        if p.numel() >= self.smallest:
            state["exp_avg"], state["exp_avg_scales"] = packed(state["exp_avg"], self._code, self.block)
