"""Linear layers whose frozen weight is stored in 8 or 4 bits. Axes: `o` out, `i` in, `n` blocks of a weight."""

from abc import ABC, abstractmethod
from functools import cache
from typing import Any, Self

from modules.model.nf4_kernel import BLOCK, Kernel, nf4_kernel
from modules.util.enum.DataType import DataType

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import Function

# numbers that are packed at once: 16 MB of float32
SLICE = 1 << 22
# the levels of NF4 (QLoRA, arXiv 2305.14314, appendix E): quantiles of a normal distribution, its ends scaled to ±1
NF4_LEVELS = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
)  # fmt: skip
FLOAT_8_MAX = torch.finfo(torch.float8_e4m3fn).max
# the exponent bias of float16 less that of e4m3 (15 − 7), as a factor
BIAS_RATIO = 256.0


class WeightCodec(ABC):
    """One way to store a weight `[o, i]`: int8 codes and bfloat16 scales.

    The scales are rounded before the codes are chosen, so that bfloat16 and float32 arithmetic use the same ones.
    """

    @abstractmethod
    def fits(self, out_features: int, in_features: int) -> bool:
        """Whether a weight of this shape can be stored so."""

    @abstractmethod
    def pack(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """`[o, i]` float32 -> codes, int8, with a row for each output; scales, bfloat16."""

    @abstractmethod
    def unpack(self, codes: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
        """The weight `[o, i]` in `dtype`: a new tensor."""

    def prepare(self, device: torch.device) -> None:  # noqa: B027
        """Is called before codes are unpacked on a device, outside of compiled code."""


class Int8(WeightCodec):
    """q·s with q from −127 to 127 and one scale s for each row."""

    def fits(self, out_features: int, in_features: int) -> bool:
        return True

    def pack(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        scale = _scale(weight, 127)
        return (weight / scale).round_().clamp_(-127, 127).to(torch.int8), scale.bfloat16()

    def unpack(self, codes: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
        if codes.device.type != "cpu":
            # one kernel, which converts the codes as it reads them; on a CPU torch converts them before, to a copy
            return codes * scale.to(dtype)
        return codes.to(dtype).mul_(scale.to(dtype))


class Float8(WeightCodec):
    """float8 with 4 bits of exponent and 3 of mantissa (e4m3), times one scale for each row."""

    def fits(self, out_features: int, in_features: int) -> bool:
        return True

    def pack(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        scale = _scale(weight, FLOAT_8_MAX)
        codes = (weight / scale).clamp_(-FLOAT_8_MAX, FLOAT_8_MAX).to(torch.float8_e4m3fn)
        return codes.view(torch.int8), scale.bfloat16()

    def unpack(self, codes: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
        if codes.device.type != "cpu":
            return codes.view(torch.float8_e4m3fn).to(dtype).mul_(scale.to(dtype))
        # On a CPU torch converts float8 one by one, which takes six times as long as this. The seven bits below the
        # sign are those of a float16 whose exponents are 8 higher; the conversion to int16 repeats the sign above.
        half = codes.to(torch.int16).bitwise_left_shift_(7).bitwise_and_(~0x4000).view(torch.float16)
        return half.to(dtype).mul_(scale.to(dtype) * BIAS_RATIO)


@cache
def _nf4_pairs(device: torch.device, dtype: torch.dtype) -> Tensor:
    """Both numbers of each of the 256 bytes as one word: looked up so they come four times as fast on a CPU.

    Made once: from the host, it would be copied to a GPU for each layer, forward and backward.
    """
    levels = torch.tensor(NF4_LEVELS, device=device, dtype=dtype)
    word = torch.int32 if dtype.itemsize == 2 else torch.int64
    return torch.stack([levels.repeat_interleave(16), levels.repeat(16)], 1).view(word).flatten()


@cache
def _nf4_middles(device: torch.device) -> Tensor:
    """Between two levels each; made once, as `_nf4_pairs`."""
    levels = torch.tensor(NF4_LEVELS, device=device)
    return (levels[1:] + levels[:-1]) / 2


class NFloat4(WeightCodec):
    """NF4 of QLoRA (arXiv 2305.14314): one of 16 levels times the largest of 64 numbers, in bitsandbytes' byte order.

    The scale is bfloat16 where QLoRA has a float32, or 8 bits that are quantized in turn: 4.25 bits for a number.
    """

    def fits(self, out_features: int, in_features: int) -> bool:
        return in_features % BLOCK == 0

    def pack(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        blocks = weight.view(-1, BLOCK)
        scale = _scale(blocks, 1)
        pairs = torch.bucketize(blocks / scale, _nf4_middles(weight.device), out_int32=True).view(len(weight), -1, 2)
        return (pairs[..., 0] * 16 + pairs[..., 1]).to(torch.uint8).view(torch.int8), scale.bfloat16()

    def unpack(self, codes: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
        return _nf4_unpacker(codes.device)(codes, scale, dtype)

    def prepare(self, device: torch.device) -> None:
        _nf4_unpacker(device)


NF4_UNPACKERS: dict[torch.device, Kernel] = {}
"""What unpacks on each device. Compiled code looks it up here, as it would trace the trial of the kernel and break."""


def _nf4_unpacker(device: torch.device) -> Kernel:
    found = NF4_UNPACKERS.get(device)
    if found is None:
        NF4_UNPACKERS[device] = found = nf4_kernel(device, unpacked_nf4)[0] or unpacked_nf4
    return found


def unpacked_nf4(codes: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    """`NFloat4.unpack` in plain torch, on every device. Its only temporary is no larger than the weight in bfloat16."""
    words = _nf4_pairs(codes.device, dtype).index_select(0, codes.view(torch.uint8).flatten().to(torch.int32))
    return words.view(dtype).view(-1, BLOCK).mul_(scale.to(dtype)).view(len(codes), -1)


WEIGHT_CODECS: dict[DataType, WeightCodec] = {
    DataType.FLOAT_8: Float8(),
    DataType.INT_8: Int8(),
    DataType.NFLOAT_4: NFloat4(),
}


class QuantizedLinear(nn.Linear):
    """y = xWᵀ + b with a frozen W that is unpacked for each product, in the forward and again in the backward.

    The arithmetic is that of a layer with the unpacked weight, in the dtype of `x` or of autocast; nothing but the
    codes is kept between the two. Adapters take it for what it is through `modules.module.dense_weight`.

    Args:
        source: the layer to take the weight and bias of; its own tensors are left alone.
        data_type: a key of `WEIGHT_CODECS`, whose codec `fits` the shape.
        device: where it is packed and lives; None: where `source` is.

    Attributes:
        weight: int8, the codes.
        scale: bfloat16.
    """

    def __init__(self, source: nn.Linear, data_type: DataType, device: torch.device | None = None) -> None:
        # not that of nn.Linear, which would make a weight only for it to be replaced
        nn.Module.__init__(self)
        self.in_features, self.out_features, self.data_type = source.in_features, source.out_features, data_type
        codes, scale = _packed(source.weight.detach(), WEIGHT_CODECS[data_type], device or source.weight.device)
        self.weight = nn.Parameter(codes, requires_grad=False)
        self.register_buffer("scale", scale)
        bias = source.bias
        self.bias = None
        if bias is not None:
            self.bias = nn.Parameter(bias.detach().to(device or bias.device, copy=True), requires_grad=False)
        self.train(source.training)
        WEIGHT_CODECS[data_type].prepare(codes.device)

    def dense(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """The weight `[o, i]` as plain numbers."""
        return WEIGHT_CODECS[self.data_type].unpack(self.weight, self.scale, dtype)

    def forward(self, x: Tensor) -> Tensor:
        device = x.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype
        bias = None if self.bias is None else self.bias.to(dtype)
        return _Product.apply(x.to(dtype), self.weight, self.scale, bias, WEIGHT_CODECS[self.data_type])

    def _apply(self, fn: Any, recurse: bool = True) -> Self:
        scale = self.scale
        super()._apply(fn, recurse)
        if self.scale.dtype != scale.dtype:
            # the dtype of a model is that of its arithmetic; to float16 small scales would lose bits
            self.scale = scale.to(self.scale.device)
        WEIGHT_CODECS[self.data_type].prepare(self.weight.device)
        return self

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, {self.data_type}"


def _packed(weight: Tensor, codec: WeightCodec, device: torch.device) -> tuple[Tensor, Tensor]:
    """Codes and scales of a weight. Its rows are packed some at a time: float32 takes more than the layer itself."""
    rows = max(1, SLICE // weight.shape[1])
    parts = [codec.pack(part.to(device).float()) for part in weight.split(rows)]
    return parts[0] if len(parts) == 1 else tuple(map(torch.cat, zip(*parts, strict=True)))


def kernel_note(data_type: DataType, device: torch.device) -> str:
    """What unpacks weights of a format on a device, a line for people; "" where there is no choice."""
    return nf4_kernel(device, unpacked_nf4)[1] if data_type == DataType.NFLOAT_4 else ""


class _Product(Function):
    """xWᵀ + b and its gradient for x alone."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, codes: Tensor, scale: Tensor, bias: Tensor | None, codec: WeightCodec) -> Tensor:
        ctx.save_for_backward(codes, scale)
        ctx.codec = codec
        return F.linear(x, codec.unpack(codes, scale, x.dtype), bias)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, None, None, None, None]:
        codes, scale = ctx.saved_tensors
        own = grad.matmul(ctx.codec.unpack(codes, scale, grad.dtype)) if ctx.needs_input_grad[0] else None
        return own, None, None, None, None


def _scale(rows: Tensor, largest: float) -> Tensor:
    """What a code of `largest` stands for in each row, `[k, 1]` float32 that bfloat16 holds exactly; never 0."""
    scale = rows.abs().amax(1, keepdim=True).div_(largest).bfloat16()
    return scale.clamp_min_(torch.finfo(torch.bfloat16).tiny).float()
