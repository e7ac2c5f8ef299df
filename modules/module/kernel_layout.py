"""What a rotation of a convolution's inputs turns: its input channels, or whole kernels.

Whole kernels are the i·kh·kw numbers that an output multiplies, flattened, as OneTrainer and peft rotate them. Both
layouts are one and the same for linear layers and for kernels of 1 x 1.

Axes: `i` in, `kh kw` kernel, `k` blocks, `b` block size.
"""

import math

from modules.module.AdapterModule import AdaptedLayer

from torch import nn

# A part inside the program, no tensor of a file: the layer's rotation turns whole kernels
KERNELS = "oft_R.kernels"


def kernel_width(layer: AdaptedLayer) -> int | None:
    """i·kh·kw of a convolution that has two layouts; None for a layer that has one.

    A convolution with groups has only that of its channels: OneTrainer has none for it.
    """
    if isinstance(layer, nn.Linear) or layer.groups > 1 or math.prod(layer.kernel_size) == 1:
        return None
    return layer.in_channels * math.prod(layer.kernel_size)


def fitting_layouts(layer: AdaptedLayer, rows: int, size: int) -> tuple[bool, bool]:
    """Whether blocks make up the layer's input channels, and whether they make up whole kernels.

    Both can be true only of a single row, which may be shared by all blocks.

    Args:
        layer: whose inputs are rotated.
        rows: k, of `oft_R.weight`.
        size: b, at least 2.
    """
    if isinstance(layer, nn.Linear):
        inputs = group = layer.in_features
    else:
        inputs, group = layer.in_channels, layer.in_channels // layer.groups
    width = kernel_width(layer)
    channels = group % size == 0 and rows in (1, inputs // size)
    return channels, width is not None and width % size == 0 and rows in (1, width // size)


def misfit(layer: AdaptedLayer, rows: int, size: int) -> str:
    """What to tell of blocks that fit neither layout: what the layer has, and what the blocks would need."""
    inputs = layer.in_features if isinstance(layer, nn.Linear) else layer.in_channels
    width = kernel_width(layer)
    blocks = f"{rows} block{'s' * (rows != 1)} of {size}"
    if width is None:
        return f"has {blocks}, which don't make up the layer's {inputs} inputs. It was made for another base model."
    return (
        f"has {blocks}, which make up neither the layer's {inputs} input channels nor the {width} numbers of its "
        "kernels. It belongs to a layer of another size."
    )
