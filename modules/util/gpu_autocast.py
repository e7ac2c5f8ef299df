"""Autocast of a GPU, followed on a CPU: the operations of which only a GPU computes in float32."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

# Of torch's list (`AT_FORALL_FP32` in ATen/autocast_mode.h) those that diffusion models use on large tensors.
FLOAT_32 = ("group_norm", "interpolate", "layer_norm", "rms_norm")


@contextmanager
def gpu_autocast() -> Iterator[None]:
    """Meanwhile norms and resizing that run under the CPU's autocast take and give float32, as under that of a GPU.

    Autograd keeps their inputs for the backward, so that a run without gradient checkpointing holds far more than a
    CPU would. Concerns the whole process.
    """
    own = {name: getattr(F, name) for name in FLOAT_32}
    for name, function in own.items():
        setattr(F, name, _in_float32(function))
    try:
        yield
    finally:
        for name, function in own.items():
            setattr(F, name, function)


def _in_float32(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    @wraps(function)
    def computed(*arguments: Any, **options: Any) -> Tensor:
        if not torch.is_autocast_enabled("cpu"):
            return function(*arguments, **options)
        return function(*map(_float32, arguments), **{name: _float32(value) for name, value in options.items()})

    return computed


def _float32(value: Any) -> Any:
    return value.float() if isinstance(value, Tensor) and value.is_floating_point() else value
