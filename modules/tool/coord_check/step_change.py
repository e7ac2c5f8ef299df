"""How far one optimizer step moves a model: each layer's output for the same input, and the model's prediction.

Axes: `b` batch, `i` in, `o` out, `h w` positions, `n` rows of inputs.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

from modules.module.AdapterModule import AdaptedLayer
from modules.module.LoRAModule import padded

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# of a layer's inputs that are kept; more would not change an RMS by much, and a model has hundreds of layers
MOST_ROWS = 256
MOST_SIDE = 16


@dataclass(frozen=True)
class MeasuredLayer:
    """A layer, and the weight with which it works now.

    Attributes:
        layer: its geometry, and its bias as it is at each use.
        weight: gives `[o, i]` or `[o, i/groups, kh, kw]`, float32, with what is trained in it.
    """

    layer: AdaptedLayer
    weight: Callable[[], Tensor]


@dataclass(frozen=True)
class StepChange:
    """What one step changed; see `relative_change`.

    Attributes:
        layers: layer name -> change of its output for the same input.
        prediction: change of the model's prediction.
    """

    layers: Mapping[str, float]
    prediction: float


def relative_change(before: Tensor, after: Tensor) -> float:
    """RMS(after − before)/RMS(before), at least 0.

    Args:
        before, after: of one shape; compared in float32.

    Returns:
        NaN where `before` is zero everywhere, as nothing can be said then.
    """
    before, after = before.float(), after.float()
    size = torch.linalg.vector_norm(before).item()
    return torch.linalg.vector_norm(after - before).item() / size if size else math.nan


def kept_inputs(layer: nn.Module, inputs: Tensor) -> Tensor:
    """The share of a layer's inputs that is measured, a copy in float32.

    Args:
        layer: Linear or Conv2d.
        inputs: `[..., i]` of a linear layer, `[b, i, h, w]` of a convolution.

    Returns:
        `[n, i]`, at most `MOST_ROWS` evenly spaced rows; or the middle `MOST_SIDE` positions of each side.
    """
    inputs = inputs.detach()
    if isinstance(layer, nn.Linear):
        rows = inputs.flatten(0, -2)
        picked = torch.linspace(0, len(rows) - 1, min(len(rows), MOST_ROWS), device=rows.device).round().long()
        return rows[picked].float()
    for dim in (2, 3):
        side = min(inputs.shape[dim], MOST_SIDE)
        inputs = inputs.narrow(dim, (inputs.shape[dim] - side) // 2, side)
    return inputs.float().clone()


@torch.no_grad()
def record_inputs(layers: Mapping[str, nn.Module], forward: Callable[[], object]) -> dict[str, Tensor]:
    """What each layer gets in one forward pass; see `kept_inputs`.

    Args:
        layers: by name.
        forward: runs the model once.

    Returns:
        By name. A layer that is called several times has the inputs of the first call, one that is not called is
        missing.
    """
    found: dict[str, Tensor] = {}

    def keep(name: str, layer: nn.Module, arguments: tuple[Any, ...], options: dict[str, Any]) -> None:
        if name not in found:
            found[name] = kept_inputs(layer, arguments[0] if arguments else next(iter(options.values())))

    hooks = [layer.register_forward_pre_hook(partial(keep, name), with_kwargs=True) for name, layer in layers.items()]
    try:
        forward()
    finally:
        for hook in hooks:
            hook.remove()
    return found


def layer_output(measured: MeasuredLayer, inputs: Tensor) -> Tensor:
    """What the layer returns for these inputs, computed in float32 whatever the run computes in.

    A step may change an output by less than bfloat16 can tell, so the layer itself is not called.

    Args:
        measured: the layer and its weight.
        inputs: `[n, i]` or `[b, i, h, w]`, float32.
    """
    layer, weight = measured.layer, measured.weight().to(inputs.device)
    bias = None if layer.bias is None else layer.bias.detach().to(inputs)
    if isinstance(layer, nn.Linear):
        return F.linear(inputs, weight, bias)
    inputs, geometry = padded(inputs, layer)
    return F.conv2d(inputs, weight, bias, *geometry, layer.groups)


def measure_step(
    layers: Mapping[str, MeasuredLayer],
    inputs: Mapping[str, Tensor],
    predict: Callable[[], Tensor],
    step: Callable[[], object],
) -> StepChange:
    """Takes one step and says what it changed.

    Args:
        layers: by name.
        inputs: of these layers, see `record_inputs`; layers without inputs are passed over.
        predict: the model's prediction for inputs that are always the same.
        step: changes weights in place.
    """
    known = [name for name in layers if name in inputs]
    with torch.no_grad():
        prediction = predict().float()
        with exact_arithmetic():
            outputs = {name: layer_output(layers[name], inputs[name]) for name in known}
    step()
    with torch.no_grad():
        moved = relative_change(prediction, predict())
        with exact_arithmetic():
            changes = {
                name: relative_change(outputs.pop(name), layer_output(layers[name], inputs[name])) for name in known
            }
    return StepChange(changes, moved)


@contextmanager
def exact_arithmetic() -> Iterator[None]:
    """Meanwhile a GPU does not round float32 to the 10 bits of TF32, which would hide small steps."""
    matrix, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = matrix.allow_tf32, cudnn.allow_tf32
    matrix.allow_tf32 = cudnn.allow_tf32 = False
    try:
        yield
    finally:
        matrix.allow_tf32, cudnn.allow_tf32 = before
