"""The frozen weight of a layer as plain numbers, whatever it is stored as.

Axes: `o` out, `i` in (per group of a convolution), `h w` kernel, `k` some rows.
"""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

# Elements of a slice that is converted to float32: a megabyte, which a processor's cache holds; on other devices, where
# each operation costs a launch, as few slices as there may be.
SLICE, DEVICE_SLICE = 1 << 18, 1 << 24


def weight_shape(layer: nn.Module) -> torch.Size:
    """`[o, i]` or `[o, i, h, w]`: what the weight stands for, also where it is stored packed."""
    if isinstance(layer, nn.Conv2d):
        return torch.Size((layer.out_channels, layer.in_channels // layer.groups, *layer.kernel_size))
    if isinstance(layer, nn.Linear):
        return torch.Size((layer.out_features, layer.in_features))
    return layer.weight.shape


def is_quantized(layer: nn.Module) -> bool:
    """Whether the weight is stored as something else than floating-point numbers of its own shape."""
    weight = layer.weight
    subclass = isinstance(weight, Tensor) and type(weight) not in (Tensor, nn.Parameter)
    return subclass or not weight.is_floating_point() or weight.shape != weight_shape(layer)


@torch.no_grad()
def dense_weight(layer: nn.Module) -> Tensor:
    """The layer's weight in float32, dequantized if it is quantized; a copy or the weight itself: don't write to it."""
    if is_quantized(layer):
        slices = [rows for _, rows in weight_slices(layer)]
        return torch.cat(slices).view(weight_shape(layer))
    return layer.weight.detach().float()


def weight_slices(layer: nn.Module, small: bool = False) -> Iterator[tuple[slice, Tensor]]:
    """The weight as a matrix in float32, some rows at a time.

    A float32 weight comes in one piece and is not copied, unless `small` slices are asked for. Any other is converted
    slice by slice, so that no float32 copy of it ever exists. What only its maker can unpack is unpacked as a whole, as
    its own forward does: layers with a method `dense`, bitsandbytes' 4 bits, and other subclasses of Tensor.

    Yields:
        The rows' place along `o`, and the rows, `[k, i·h·w]`.
    """
    weight, shape = layer.weight.detach(), weight_shape(layer)
    columns = shape[1:].numel()
    scales = _row_scales(layer)
    if not is_quantized(layer):
        if weight.dtype == torch.float32 and not small:
            yield slice(0, shape[0]), weight.flatten(1)
            return
    elif scales is None:
        weight = _unpacked(layer).reshape(shape)
    size = SLICE if weight.device.type == "cpu" else DEVICE_SLICE
    step = max(1, min(size // columns, (shape[0] + 1) // 2))
    for start in range(0, shape[0], step):
        place = slice(start, min(start + step, shape[0]))
        rows = weight[place].flatten(1).float()
        yield place, rows if scales is None else rows * scales[place, None]


def _row_scales(layer: nn.Module) -> Tensor | None:
    """What each row of a bitsandbytes 8-bit weight is to be multiplied by, None for any other weight."""
    weight = layer.weight
    if weight.dtype != torch.int8:
        return None
    scales = getattr(weight, "SCB", None)
    if scales is None:  # its first forward moves them there
        scales = getattr(getattr(layer, "state", None), "SCB", None)
    return None if scales is None else scales.detach().float().to(weight.device) / 127


def _unpacked(layer: nn.Module) -> Tensor:
    """A quantized weight as a whole, in the dtype that its maker chooses."""
    weight = layer.weight
    if hasattr(layer, "dense"):
        return layer.dense()
    if getattr(weight, "quant_state", None) is not None:
        from bitsandbytes.functional import dequantize_4bit  # present if such a weight is

        return dequantize_4bit(weight.detach(), weight.quant_state)
    return weight.dequantize().detach()
