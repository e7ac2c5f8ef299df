"""Rotations in files: of a layer's inputs (`oft_R.weight` `[k, n]`) and of its outputs (`oft_blocks` `[k, b, b]`).

Axes: `k` blocks, `b` block size, `n` = b(b−1)/2.
"""

import math
from collections.abc import Sequence

from modules.module.FileKind import ALPHA, FileKind, Layer, PartError, Parts, Sides
from modules.module.kernel_layout import KERNELS, fitting_layouts, misfit
from modules.module.magnitude import DORA_SCALE
from modules.module.oft_math import block_size_of, skew

import torch
from torch import Tensor, nn

# With the marker the weight is still to be divided, as OneTrainer's scaled OFT is
INPUT, OUTPUT, MARKER, RESCALE = "oft_R.weight", "oft_blocks", "oft_R.scaled_oft", "rescale"
_NODE = (
    "Copy this project's comfyui folder into ComfyUI's custom_nodes, choose oft_side OUTPUT without lora_decompose, or "
    "set portable_copy."
)


class InputOFTFileKind(FileKind):
    """OFT on inputs, also with DoRA. A rotation does not tell the size of its layer where it is shared."""

    name = "OFT"
    dora_name = "DoRA-OFT"
    own = frozenset({INPUT, MARKER, KERNELS})
    main_parts = (INPUT,)
    beside = frozenset({DORA_SCALE})
    internal = frozenset({KERNELS})
    whole_numbers = frozenset({MARKER, KERNELS})
    peft_modules = ("oft_R",)
    rotates = True
    size_name = "block size"
    two_layouts = True
    kernel_marks = frozenset({MARKER})
    algorithm = "oft_2"
    size_argument = "block_size"

    def needed(self, parts: Parts) -> list[str]:
        return [INPUT]

    def rank(self, parts: Parts) -> int | None:
        return block_size_of(parts[INPUT].shape[-1])

    def check(self, parts: Parts) -> Sides:
        weight = parts[INPUT]
        if weight.dim() != 2 or block_size_of(weight.shape[1]) is None:
            raise PartError(INPUT, f"has the shape {list(weight.shape)}, expected [blocks, b(b−1)/2].")
        return None, None

    def check_fits(self, parts: Parts, layer: Layer) -> None:
        blocks, size = len(parts[INPUT]), self.rank(parts) or 1
        if not any(fitting_layouts(layer, blocks, size)):
            raise PartError(INPUT, misfit(layer, blocks, size))

    def normal(self, parts: Parts) -> dict[str, Tensor]:
        normal = dict(parts)
        marker = normal.pop(MARKER, None)
        if marker is not None and bool(marker.ne(0).any()):
            size = block_size_of(normal[INPUT].shape[1])
            assert size is not None, "check came first"
            normal[INPUT] = normal[INPUT].float() / (2 * (size - 1) ** 0.5)
        return normal

    def in_layout(self, parts: Parts, layer: Layer, told: bool | None) -> tuple[Parts, bool]:
        by_channels, by_kernels = fitting_layouts(layer, len(parts[INPUT]), self.rank(parts) or 1)
        if by_kernels and (told or not by_channels):
            return {**parts, KERNELS: torch.tensor(True)}, False
        return parts, by_kernels and told is None

    def turns_kernels(self, parts: Parts) -> bool:
        return KERNELS in parts

    def turned_back(self, parts: Parts) -> Parts:
        return {**parts, INPUT: -parts[INPUT]}

    def join(self, pieces: Sequence[Parts | None], rows: Sequence[int]) -> dict[str, Tensor] | None:
        """The layers have one input, so that they must rotate it alike."""
        rotations = [parts[INPUT] for parts in pieces if parts is not None]
        if len(rotations) < len(pieces) or not all(torch.equal(one, rotations[0]) for one in rotations):
            raise PartError(INPUT, "can't be joined: the layers have one input but rotate it differently.")
        return {INPUT: rotations[0]}

    def remark(self, parts: Parts) -> str:
        return _largest_angle(skew(parts[INPUT].float(), self.rank(parts) or 1))

    def comfy_remark(self, dora: str) -> str:
        return f"it does not load oft_R. {_NODE}"

    def known_to_onetrainer(self, dora: str) -> bool:
        return not dora

    def onetrainer_remark(self, dora: str, refused: int) -> str:
        if dora:
            return ""
        more = (
            f" It rotates whole kernels: it refuses {refused} convolutions of this file, or turns them wrongly without "
            "a word where their block is shared. Set oft_kernels."
            if refused
            else ""
        )
        return (
            "only with oft_scaled off there, as the file holds effective weights, and takes rotations for the Neumann "
            f"series (oft_cayley_neumann).{more}"
        )


class OutputOFTFileKind(FileKind):
    """OFT on outputs, also with DoRA. Its alpha is a bound on the norm of all blocks together."""

    name = "output-side OFT"
    dora_name = "output-side DoRA-OFT"
    own = frozenset({OUTPUT, RESCALE})
    main_parts = (OUTPUT,)
    beside = frozenset({ALPHA, DORA_SCALE})
    rotates = True
    size_name = "block size"
    joins = True
    turns_outputs = True
    algorithm = "diag-oft"
    size_argument = "block_size"

    def needed(self, parts: Parts) -> list[str]:
        return [OUTPUT]

    def rank(self, parts: Parts) -> int | None:
        return parts[OUTPUT].shape[-1]

    def check(self, parts: Parts) -> Sides:
        blocks = parts[OUTPUT]
        if blocks.dim() != 3 or blocks.shape[1] != blocks.shape[2]:
            more = " Butterfly OFT (BOFT) is not supported." if blocks.dim() == 4 else ""
            raise PartError(OUTPUT, f"has the shape {list(blocks.shape)}, expected [blocks, b, b].{more}")
        return None, None

    def check_fits(self, parts: Parts, layer: Layer) -> None:
        convolution = isinstance(layer, nn.Conv2d)
        channels, groups = (layer.out_channels, layer.groups) if convolution else (layer.out_features, 1)
        blocks, size = len(parts[OUTPUT]), self.rank(parts) or 1
        if channels // groups % size or blocks not in (1, channels // size):
            raise PartError(
                OUTPUT, f"has {blocks} blocks of {size}, which don't make up the layer's {channels} outputs. "
                "It was made for another base model."
            )  # fmt: skip

    def single_on_inputs(self, parts: Parts) -> bool:
        # the rotated side has two channels at least, and magnitudes are on the other one
        return True

    def normal(self, parts: Parts) -> dict[str, Tensor]:
        normal = dict(parts)
        rescale = normal.pop(RESCALE, None)
        if rescale is not None and not torch.all(rescale == 1):
            raise PartError(
                RESCALE, "scales outputs after the rotation, which is not supported. Merge it with its trainer."
            )
        blocks, bound = normal[OUTPUT], normal.pop(ALPHA, None)
        if bound is not None and bound > 0:
            norm = torch.linalg.vector_norm(blocks.float() - blocks.float().transpose(1, 2))
            if norm > bound:
                normal[OUTPUT] = blocks.float() * (bound / norm)
        return normal

    def row_parts(self, parts: Parts) -> list[str]:
        # one block for all outputs is the same for each layer
        return [OUTPUT] if parts[OUTPUT].shape[0] > 1 else []

    def rows_of_unit(self, part: str, parts: Parts) -> int:
        return parts[OUTPUT].shape[1] if part == OUTPUT else 1

    def join(self, pieces: Sequence[Parts | None], rows: Sequence[int]) -> dict[str, Tensor] | None:
        """Block after block. A layer without adapter gets blocks of zeros, which rotate nothing."""
        sizes = {parts[OUTPUT].shape[1] for parts in pieces if parts is not None}
        if len(sizes) > 1 or any(count % max(sizes) for count in rows):
            raise PartError(OUTPUT, f"can't be joined: blocks of {sorted(sizes)} on {list(rows)} outputs.")
        size = sizes.pop()
        blocks = []
        for parts, count in zip(pieces, rows, strict=True):
            own = torch.zeros(1, size, size) if parts is None else parts[OUTPUT].float()
            blocks.append(own.expand(count // size, -1, -1))
        return {OUTPUT: torch.cat(blocks)}

    def tied_outputs(self, parts: Parts) -> int:
        return parts[OUTPUT].shape[1]

    def remark(self, parts: Parts) -> str:
        blocks = parts[OUTPUT].float()
        return _largest_angle(blocks - blocks.transpose(1, 2))

    def comfy_remark(self, dora: str) -> str:
        return f"it drops the rotation and keeps the magnitude. {_NODE}" if dora else ""


def _largest_angle(skewed: Tensor) -> str:
    """How far a rotation turns at most: an eigenvalue ±iq of Q turns by 2·arctan(q)."""
    largest = torch.linalg.matrix_norm(skewed, ord=2).max().item()
    return f"turns by up to {math.degrees(2 * math.atan(largest)):.3g}°"
