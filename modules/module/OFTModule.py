from collections.abc import Collection, Mapping, Sequence
from typing import Any, ClassVar, Self

from modules.module.AdapterModule import AdaptedLayer, AdapterModule, UnfitLayerError
from modules.module.block_rotation import (
    Geometry,
    rotate,
    rotated_input,
    rotated_kernel_weight,
    rotated_kernels,
    rotated_output,
    rotated_weight,
    unturned,
)
from modules.module.dense_weight import dense_weight
from modules.module.FileKind import ALPHA
from modules.module.kernel_layout import KERNELS, fitting_layouts, kernel_width, misfit
from modules.module.LoRAModule import padded
from modules.module.oft_math import block_size_of, nearest_block_size, rotations, scale_of, skew, triangle_size, upper
from modules.module.OFTFileKind import INPUT, MARKER, OUTPUT, RESCALE, InputOFTFileKind, OutputOFTFileKind
from modules.module.part_checks import check_names, number
from modules.util.config.TrainConfig import TrainConfig
from modules.util.enum.OFTScaleMode import OFTScaleMode
from modules.util.enum.OFTSide import OFTSide
from modules.util.enum.ParameterRole import ParameterRole
from modules.util.enum.PeftType import PeftType
from modules.util.UserError import UserError

import torch
from torch import Tensor, nn

RAW = "weight"


class OFTModule(AdapterModule):
    """OFT: the layer's channels are rotated in blocks (arXiv 2306.07280; on inputs, arXiv 2506.19847).

    R = (I + Q)(I − Q)⁻¹ with Q skew-symmetric from the effective weights, raw weight·forward_scale.

    - Input side: Linear W' = W·Rᵀ, Conv2d W' = W·R on its input channels. The opposite directions are OneTrainer's.
    - Input side with `kernels`: a convolution's W' = W·R on the in·kh·kw numbers of each output's kernel, as OneTrainer
      rotates them; see `kernel_layout.py`.
    - Output side: W' = Rᵀ·W on output channels; the bias is not rotated.

    Blocks start as the identity. Groups of a convolution are never mixed: the block size divides the channels of a
    group. The rotations of all layers of a component are made together, once per forward of the component (`prepare`).

    Files hold effective weights, `oft_R.weight` `[k, n]` or `oft_blocks` `[k, b, b]` (strictly upper triangular), so no
    reader needs to know the scale; `state` holds the raw ones. Shared output blocks are written out one by one, as
    other programs expect.

    Args:
        layer: the frozen layer.
        component: the layer's, for names.
        layer_name: module path inside the component.
        block_size: at least 2; replaced by the nearest divisor of the rotated dimension, and noted.
        side: of the layer.
        share: one rotation for all blocks.
        neumann: five terms of a series instead of the exact rotation, which is then off by about ‖Q‖⁴.
        scaled: what the weights are divided by, None for nothing.
        dropout: in [0, 1), probability with which each block is left out of a training step.
        kernels: rotates whole kernels; means nothing for layers in which these are the channels, for outputs, and for
            convolutions with groups, which is noted.
        dtype: of the trained weights; rotations are made in float32.

    Raises:
        UnfitLayerError: a side of one channel, which can't be rotated.
    """

    file_kinds = (InputOFTFileKind(), OutputOFTFileKind())
    size_option = "oft_block_size"
    part_names = {RAW: "weight"}
    strength_parts = (INPUT, OUTPUT)
    decomposes: ClassVar[bool] = False

    def __init__(
        self,
        layer: AdaptedLayer,
        component: str,
        layer_name: str,
        *,
        block_size: int,
        side: OFTSide = OFTSide.INPUT,
        share: bool = False,
        neumann: bool = False,
        scaled: OFTScaleMode | None = None,
        dropout: float = 0.0,
        kernels: bool = False,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__(layer, component, layer_name)
        if block_size < 2 or not 0 <= dropout < 1:
            raise ValueError(f"expected block_size >= 2 and 0 <= dropout < 1, found {block_size} and {dropout}")
        self._linear = isinstance(layer, nn.Linear)
        self.side, self.neumann, self.dropout = side, neumann, dropout
        self._output = side == OFTSide.OUTPUT
        channels, width = _channels(layer, side)
        what = "outputs" if self._output else "inputs"
        self.kernels = kernels and not self._output and kernel_width(layer) is not None
        if self.kernels:
            channels = width = kernel_width(layer)
            what = "numbers of a kernel"
        elif kernels and not self._linear and not self._output and layer.groups > 1:
            self.notes["kernels"] = (
                f"oft_kernels: {self.full_name} has groups; its input channels are rotated instead of whole kernels"
            )
        if width < 2:
            raise UnfitLayerError(
                f"oft_side: {self.full_name} has one of {what} per group, which can't be rotated",
                "Choose the other oft_side, or other layers.",
            )
        self.block_size = nearest_block_size(block_size, width)
        if self.block_size != block_size:
            self.notes["block size"] = (
                f"{self.full_name}: block size {block_size} → {self.block_size}, the nearest divisor of its "
                f"{width} {what}"
            )
        self.blocks = channels // self.block_size
        self.share = share and self.blocks > 1
        self.forward_scale = scale_of(self.block_size, scaled)
        shape = (1 if self.share else self.blocks, triangle_size(self.block_size))
        self.weight = nn.Parameter(torch.zeros(shape, device=layer.weight.device, dtype=dtype))
        self._stored: Tensor | None = None
        self._stored_as: tuple[int, bool] = (0, False)
        self.describe(self.weight, ParameterRole.OFT, RAW, forward_scale=self.forward_scale)

    @classmethod
    def own_arguments(cls, layer: AdaptedLayer, config: TrainConfig, seed: int) -> dict[str, Any]:
        return {
            "block_size": config.oft_block_size,
            "side": config.oft_side,
            "share": config.oft_block_share,
            "neumann": config.oft_cayley_neumann,
            "scaled": config.oft_scale_mode if config.oft_scaled else None,
            "kernels": config.oft_kernels,
        }

    @classmethod
    def recognizes(cls, names: Collection[str]) -> bool:
        return INPUT in names or OUTPUT in names

    @classmethod
    def options_of(cls, parts: Mapping[str, Tensor], layer: AdaptedLayer) -> dict[str, Any]:
        """Side, block size, sharing and layout from the shapes; how weights are scaled stays the config's.

        A single row can fit both layouts of a convolution. It turns whole kernels if `KERNELS` or OneTrainer's marker
        is there, else channels.
        """
        side = OFTSide.INPUT if INPUT in parts else OFTSide.OUTPUT
        name = INPUT if INPUT in parts else OUTPUT
        shape = list(parts[name].shape)
        size = block_size_of(shape[1]) if len(shape) == 2 else shape[-1] if len(shape) == 3 else None
        wanted = "[blocks, b(b−1)/2]" if INPUT in parts else "[blocks, b, b]"
        if size is None or (name == OUTPUT and (len(shape) != 3 or shape[1] != size)):
            raise UserError(f"{name} has the shape {shape}, expected {wanted}. The file is damaged; save it again.")
        channels, width = _channels(layer, side)
        options: dict[str, Any] = {}
        if side == OFTSide.INPUT:
            by_channels, by_kernels = fitting_layouts(layer, shape[0], size) if size >= 2 else (False, False)
            if not by_channels and not by_kernels:
                raise UserError(f"{name} {misfit(layer, shape[0], size)}")
            if kernel_width(layer) is not None:
                told = KERNELS in parts or MARKER in parts
                options["oft_kernels"] = by_kernels and (told or not by_channels)
                channels = kernel_width(layer) if options["oft_kernels"] else channels
        elif size < 2 or width % size or shape[0] not in (1, channels // size):
            raise UserError(
                f"{name} has the shape {shape}, which does not divide {width} channels into {shape[0]} blocks of "
                f"{size}. It was made for another base model."
            )
        return {
            "peft_type": PeftType.OFT_2,
            "lora_decompose": cls.decomposes,
            "oft_side": side,
            "oft_block_size": size,
            "oft_block_share": channels != size and (shape[0] == 1 or name == OUTPUT and _all_alike(parts[name])),
        } | options

    @classmethod
    def prepare(cls, adapters: Sequence[Self]) -> None:
        """Makes all rotations of one block size, dtype and device in one call, and draws their dropout."""
        groups: dict[tuple[Any, ...], list[OFTModule]] = {}
        for adapter in adapters:
            weight = adapter.weight
            key = (adapter.block_size, adapter.neumann, adapter._dropped(), weight.dtype, weight.device)
            groups.setdefault(key, []).append(adapter)
        for group in groups.values():
            for adapter, rotation in zip(group, _rotations(group), strict=True):
                adapter._stored = rotation
                adapter._stored_as = (adapter.weight._version, adapter.training)

    def rotation(self) -> Tensor:
        """R, `[k, b, b]` (`[1, b, b]` where shared) in float32: the prepared one if it is good for this call."""
        stored = self._stored
        if stored is not None:
            # a dropout that was drawn for training is none for sampling
            mode = self.training if self.dropout else self._stored_as[1]
            needs_graph = torch.is_grad_enabled() and self.weight.requires_grad
            if self._stored_as == (self.weight._version, mode) and (stored.requires_grad or not needs_graph):
                return stored
        return _rotations([self])[0]

    def forward(self, x: Tensor) -> Tensor:
        before, after = self._factors()
        x = x.to(self.compute_dtype(x))
        if before is not None:
            x = _multiplied(x, before, self._linear)
        if self.kernels:
            return self._kernel_forward(x, after)
        if not self._plain:
            return self._general_forward(x, after)
        layer = self.layer
        weight, bias = layer._parameters["weight"], layer._parameters["bias"]
        if weight.dtype != x.dtype and torch.is_autocast_enabled(x.device.type):
            weight, bias = weight.to(x.dtype), None if bias is None else bias.to(x.dtype)
        geometry: Geometry | None = None
        if not self._linear:
            x, shape = padded(x, layer)
            geometry = (*shape, layer.groups)
        if self._output:
            return rotated_output(x, weight, bias, self._matrix(), geometry)
        y = rotated_input(x, weight, bias, self._matrix(), geometry, not self.neumann)
        return y if after is None else self._lengthened(y, after, bias)

    def _general_forward(self, x: Tensor, after: Tensor | None) -> Tensor:
        """Around a layer that is not torch's own, by its own forward; its bias is part of what comes out."""
        axis = -1 if self._linear else 1
        matrix = self._matrix()
        bias = getattr(self.layer, "bias", None)
        if self._output:
            y = rotate(self._original_forward(x), matrix, axis)
            return y if bias is None else y + unturned(bias.detach().to(y.dtype), matrix, axis)
        y = self._original_forward(rotate(x, matrix, axis))
        return y if after is None else self._lengthened(y, after, bias)

    def _kernel_forward(self, x: Tensor, after: Tensor | None) -> Tensor:
        """With whole kernels rotated; a layer that is not torch's own is called, and the change added."""
        layer, matrix = self.layer, self._matrix()
        inner, shape = padded(x, layer)
        geometry = (*shape, 1)
        if self._plain:
            bias = layer._parameters["bias"]
            y = rotated_kernels(inner, layer._parameters["weight"], bias, matrix, geometry)
        else:
            bias = getattr(layer, "bias", None)
            y = self._original_forward(x)
            y = y + rotated_kernels(inner, dense_weight(layer), None, matrix, geometry, whole=False).to(y.dtype)
        return y if after is None else self._lengthened(y, after, bias)

    def _lengthened(self, y: Tensor, after: Tensor, bias: Tensor | None) -> Tensor:
        """(y − bias)·(1 + after) + bias."""
        y = _multiplied(y, after, self._linear)
        if bias is None:
            return y
        excess = bias.detach() * -after.to(bias.dtype)
        return y.add_((excess if self._linear else excess.view(-1, 1, 1)).to(y.dtype))

    def delta_weight(self) -> Tensor:
        weight = dense_weight(self.layer).to(self.weight.device)
        return self._turned(weight) - weight

    def _turned(self, weight: Tensor) -> Tensor:
        """The layer's weight with the rotation in it."""
        if self.kernels:
            return rotated_kernel_weight(weight, self._matrix())
        groups = 1 if self._linear else self.layer.groups
        return rotated_weight(weight, self._matrix(), self._output, groups)

    @torch.no_grad()
    def load_parts(self, parts: Mapping[str, Tensor]) -> None:
        """Takes over `oft_R.weight`, with or without OneTrainer's marker, or `oft_blocks`, any square blocks B with
        Q = B − Bᵀ; their alpha, a bound on the norm of all blocks together, is worked in.
        """
        self._check_parts(parts)
        if self._output:
            numbers = self._numbers_of_blocks(parts)
        else:
            numbers = parts[INPUT].to(self.weight.device, torch.float32)
            if number(parts, MARKER, 0):
                numbers = numbers * scale_of(self.block_size, OFTScaleMode.ROW)
        if self.share and numbers.dim() > 1 and len(numbers) > 1 and not (numbers != numbers[:1]).any():
            numbers = numbers[:1]
        if numbers.shape != self.weight.shape:
            raise self.part_error(
                f"{OUTPUT if self._output else INPUT} holds {list(numbers.shape)} blocks and numbers, "
                f"expected {list(self.weight.shape)}. Set oft_block_size and oft_block_share as it was trained."
            )
        self.weight.copy_(numbers / self.forward_scale)

    def _numbers_of_blocks(self, parts: Mapping[str, Tensor]) -> Tensor:
        blocks = parts[OUTPUT].to(self.weight.device, torch.float32)
        if blocks.dim() != 3 or blocks.shape[1] != blocks.shape[2]:
            raise self.part_error(f"{OUTPUT} has the shape {list(blocks.shape)}, expected [blocks, b, b].")
        if RESCALE in parts and not (parts[RESCALE] == 1).all():
            raise self.part_error(f"{RESCALE} is not 1 everywhere, which is not supported. Save it without rescale.")
        q = blocks - blocks.transpose(1, 2)
        bound, norm = number(parts, ALPHA, 0), q.norm().item()
        return upper(q) * (bound / norm if 0 < bound < norm else 1.0)

    def _check_parts(self, parts: Mapping[str, Tensor]) -> None:
        if self._output:
            check_names(self, parts, (OUTPUT,), (OUTPUT, ALPHA, RESCALE), "OFT on outputs")
        else:
            check_names(self, parts, (INPUT,), (INPUT, MARKER, KERNELS), "OFT on inputs")
            if KERNELS in parts and not self.kernels:
                raise self.part_error("it rotates whole kernels, and the adapter here channels. Set oft_kernels.")

    def parts(self) -> dict[str, Tensor]:
        numbers = self.weight.detach().float() * self.forward_scale
        if not self._output:
            return {INPUT: numbers} | ({KERNELS: torch.tensor(True)} if self.kernels else {})
        return {OUTPUT: skew(numbers, self.block_size).triu(1).expand(self.blocks, -1, -1).contiguous()}

    @torch.no_grad()
    def load_state(self, state: Mapping[str, Tensor]) -> None:
        for part, attribute in self.part_names.items():
            own = getattr(self, attribute)
            if part not in state or state[part].shape != own.shape:
                found = list(state[part].shape) if part in state else "nothing"
                raise self.part_error(f"{part} of the saved state: found {found}, expected {list(own.shape)}.")
            own.copy_(state[part])

    def unhook(self) -> None:
        self._stored = None
        super().unhook()

    def _apply(self, fn: Any, recurse: bool = True) -> Self:
        self._stored = None  # it would stay where it is
        return super()._apply(fn, recurse)

    def _matrix(self) -> Tensor:
        """What a row of channels, or of a weight whose kernels are rotated, is multiplied by: R or Rᵀ."""
        rotation = self.rotation()
        return rotation if self._linear or self._output or self.kernels else rotation.transpose(1, 2)

    def _dropped(self) -> float:
        return self.dropout if self.training else 0.0

    def _factors(self) -> tuple[Tensor | None, Tensor | None]:
        """What a weight decomposition multiplies inputs and outputs by, each less 1; None where there is none."""
        return None, None


def _channels(layer: AdaptedLayer, side: OFTSide) -> tuple[int, int]:
    """Channels on the side, and those among them that may be mixed."""
    output = side == OFTSide.OUTPUT
    if isinstance(layer, nn.Linear):
        channels = layer.out_features if output else layer.in_features
        return channels, channels
    channels = layer.out_channels if output else layer.in_channels
    return channels, channels // layer.groups


def _rotations(adapters: Sequence[OFTModule]) -> tuple[Tensor, ...]:
    """The rotations of adapters of one block size, dtype, device, series and dropout."""
    first = adapters[0]
    dropped = first._dropped()
    # a shared block is dropped place by place, so it is drawn as many times
    rows = [a.weight.expand(a.blocks, -1) if dropped else a.weight for a in adapters]
    return rotations(rows, [a.forward_scale for a in adapters], first.block_size, first.neumann, dropped)


def _multiplied(x: Tensor, excess: Tensor, linear: bool) -> Tensor:
    """x·(1 + excess) along the channels; small changes survive half precision better than factors near 1 do."""
    excess = excess.to(x.dtype)
    return torch.addcmul(x, x, excess if linear else excess.view(-1, 1, 1))


def _all_alike(blocks: Tensor) -> bool:
    """Whether shared blocks were written out one by one; zeros tell nothing."""
    return bool((blocks == blocks[:1]).all() and blocks.any())
