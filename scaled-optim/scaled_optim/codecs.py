"""How optimizer state is stored: one codec for each `state_precision`, all on stacks.

Axes: `b` parameters of one shape, each `[rows, cols]`, N = rows·cols elements; of the factored codec `n` × `m` = N.
A store is a dict of tensors with the leading axis b, so that a parameter's share is a slice of each. Codecs have no
state; what kind of store it is shows in its keys and dtypes. Where a scale is shared, a value that is not finite makes
all that share it NaN or infinite, so that it cannot pass unseen.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from functools import lru_cache

from scaled_optim.noise import uniform_bits
from scaled_optim.rounding import round_to_bfloat16

import torch
from torch import Tensor
from torch.nn import functional as F

Store = dict[str, Tensor]
Shape = tuple[int, int, int]

# Elements that share a scale: as many as keep the state no larger than one float32 scale for 2048 elements does, which
# is what adv_optm stores. The scale is bfloat16.
BLOCK = 1024
# Scales of zeros and of values below; leaves room for the constants that a scale is combined with.
SMALLEST_SCALE = 2.0**-96
EXPONENT_BITS = 0x7F800000

# multiplies eight bytes of 0 or 1 into one byte, which ends up on top: bit i comes from byte i
GATHER_BITS = 0x0102040810204080


class Codec(ABC):
    """One way to store a slot.

    Attributes:
        name: in configs.
        random: whether it rounds stochastically, and so needs keys.
    """

    name: str
    random: bool = False

    @abstractmethod
    def create(
        self, shape: Shape, device: torch.device | str, signed: bool, dtype: torch.dtype = torch.float32
    ) -> Store:
        """Tensors that stand for zeros.

        Args:
            shape: (b, rows, cols).
            device: where.
            signed: False for values that are never negative.
            dtype: of the arithmetic; only "fp32" stores it, the others have a dtype of their own.
        """

    @abstractmethod
    def decode(self, store: Store, dtype: torch.dtype = torch.float32) -> Tensor:
        """The values `[b, rows, cols]`: a new tensor, but for "fp32" the stored one, whatever its dtype."""

    @abstractmethod
    def encode(self, store: Store, value: Tensor, keys: Tensor | None) -> None:
        """Overwrites a store in place. `value` is neither changed nor kept.

        Args:
            store: made by `create`.
            value: `[b, rows, cols]`, contiguous; not negative if the store is unsigned.
            keys: `[b]` of `noise.step_keys`, for codecs that round stochastically; None: they round to nearest.
        """

    @abstractmethod
    def state_bytes(self, rows: int, cols: int, signed: bool) -> int:
        """Bytes for one float32 parameter."""

    def bytes_per_element(self, rows: int, cols: int, signed: bool) -> float:
        return self.state_bytes(rows, cols, signed) / (rows * cols)


class Float32Codec(Codec):
    """As it is; float64 for float64 parameters."""

    name = "fp32"

    def create(
        self, shape: Shape, device: torch.device | str, signed: bool, dtype: torch.dtype = torch.float32
    ) -> Store:
        return {"value": torch.zeros(shape, dtype=dtype, device=device)}

    def decode(self, store: Store, dtype: torch.dtype = torch.float32) -> Tensor:
        return store["value"]

    def encode(self, store: Store, value: Tensor, keys: Tensor | None) -> None:
        if value is not store["value"]:
            store["value"].copy_(value)

    def state_bytes(self, rows: int, cols: int, signed: bool) -> int:
        return 4 * rows * cols


class BFloat16Codec(Codec):
    """bfloat16, stochastically rounded. It has float32's range, so second moments need no care."""

    name = "bf16_sr"
    random = True

    def create(
        self, shape: Shape, device: torch.device | str, signed: bool, dtype: torch.dtype = torch.float32
    ) -> Store:
        return {"value": torch.zeros(shape, dtype=torch.bfloat16, device=device)}

    def decode(self, store: Store, dtype: torch.dtype = torch.float32) -> Tensor:
        return store["value"].to(dtype)

    def encode(self, store: Store, value: Tensor, keys: Tensor | None) -> None:
        if keys is not None:
            value = round_to_bfloat16(value.float(), uniform_bits(keys, _count(value)))
        store["value"].copy_(value)

    def state_bytes(self, rows: int, cols: int, signed: bool) -> int:
        return 2 * rows * cols


class Float16Codec(Codec):
    """float16, rounded to nearest, with a power of two as scale of each parameter; of second moments the square root.

    Gradients of 1e-8 are common and float16 ends at 6e-8, so without a scale both moments would vanish. With the
    largest value at 2¹⁴ to 2¹⁵, values keep 11 bits down to 2⁻²⁸ of the largest and end at 2⁻³⁸; as roots, second
    moments end at 2⁻⁷⁶ of the largest. Nothing can reach float16's infinity. A scale that is a power of two changes
    no mantissa, so a value that does not change is stored unchanged whatever its neighbours do.

    Rounding to nearest cannot follow changes below 2⁻¹² of a value: β₂ up to 0.999 decays, above it stalls.
    """

    name = "fp16"
    TOP = 2.0**14

    def create(
        self, shape: Shape, device: torch.device | str, signed: bool, dtype: torch.dtype = torch.float32
    ) -> Store:
        return {
            "value" if signed else "root": torch.zeros(shape, dtype=torch.float16, device=device),
            "scale": torch.zeros(shape[0], 1, 1, dtype=torch.bfloat16, device=device),
        }

    def decode(self, store: Store, dtype: torch.dtype = torch.float32) -> Tensor:
        scale = store["scale"].float() / self.TOP
        if "root" in store:
            return store["root"].float().mul_(scale).square_().to(dtype)
        return store["value"].float().mul_(scale).to(dtype)

    def encode(self, store: Store, value: Tensor, keys: Tensor | None) -> None:
        value = value.float().sqrt() if "root" in store else value.float()
        scale = _power_of_two(value.abs().amax((1, 2), keepdim=True))
        store["scale"].copy_(scale)
        store["root" if "root" in store else "value"].copy_(value * (self.TOP / scale))

    def state_bytes(self, rows: int, cols: int, signed: bool) -> int:
        return 2 * rows * cols + 2


class Int8Codec(Codec):
    """One byte for each element, blocks of 1024 along the rows with a bfloat16 scale, stochastically rounded.

    Signed: q·s with q from −127 to 127 and s = max|x|/127, rounded up.

    Unsigned (second moments): a small float with 5 bits of exponent and 3 of mantissa, times a power of two that takes
    the block's largest value to the upper end. Equal steps would not do: of values that spread over six decades most
    would round to 0, and the step of Adam, which is divided by their root, would explode. Here all values down to 2⁻²⁸
    of the block's largest have a relative error below 1/8; smaller ones become 2⁻²⁸, which makes steps smaller, not
    larger. Only 0 becomes 0. Measured on values spread evenly over the decades from 1e-14 to 1e-8: no zeros, steps at
    most 1.061 times too large. 255 equal steps of v make 53 % of them 0; of √v 9 %, and other steps twice too large.

    The scale is a power of two, so that the levels are the same at every step and a value that does not change is
    not rounded anew. With β₂ = 0.999 the root of the average is off by 0.104 rms after 2000 steps; by 0.115 with levels
    that follow the block's largest value.
    """

    name = "int8_sr"
    random = True

    def create(
        self, shape: Shape, device: torch.device | str, signed: bool, dtype: torch.dtype = torch.float32
    ) -> Store:
        b, rows, cols = shape
        return {
            "code": torch.zeros(shape, dtype=torch.int8 if signed else torch.uint8, device=device),
            "scale": torch.zeros(b, -(-rows * cols // BLOCK), dtype=torch.bfloat16, device=device),
        }

    def decode(self, store: Store, dtype: torch.dtype = torch.float32) -> Tensor:
        code, scale = store["code"], store["scale"].float()
        if code.dtype == torch.uint8:
            # the eight bits are those of a float16 below its sign; its exponents are 16 higher than the code's
            value = code.to(torch.int16).mul_(1 << 7).view(torch.float16).float()
            scale = scale * 2.0**-14
        else:
            value = code.float()
        flat = value.view(len(value), -1)
        for begin, end, first, last in _blocks(flat.shape[1]):
            flat[:, begin:end].unflatten(1, (last - first, -1)).mul_(scale[:, first:last, None])
        return value.to(dtype)

    def encode(self, store: Store, value: Tensor, keys: Tensor | None) -> None:
        unsigned = store["code"].dtype == torch.uint8
        lost = 20 if unsigned else 23
        value, code = value.float().flatten(1), store["code"].view(len(value), -1)
        bits = None if keys is None else uniform_bits(keys, value.shape[1]).bitwise_and_((1 << lost) - 1)
        for begin, end, first, last in _blocks(value.shape[1]):
            block = value[:, begin:end].unflatten(1, (last - first, -1))
            fixed, scale = (_small_floats if unsigned else _fixed_points)(block)
            store["scale"][:, first:last] = scale
            fixed = fixed.view(len(value), end - begin).add_(1 << (lost - 1) if bits is None else bits[:, begin:end])
            # the conversion keeps the low eight bits
            code[:, begin:end] = fixed.bitwise_right_shift_(lost)

    def state_bytes(self, rows: int, cols: int, signed: bool) -> int:
        return rows * cols + 2 * -(-rows * cols // BLOCK)


class FactoredCodec(Codec):
    """Rank-1 non-negative factors of |x| (SMMF, arXiv 2412.08894), and a bit for the sign where there is one.

    The N elements are seen as the matrix n × m, n ≥ m, nearest to a square. |x| ≈ u·vᵀ with u its row sums, and v its
    column sums over their total; it has the row and column sums of |x|. v is the one to be normalised, as the shorter.
    """

    name = "factored"

    def create(
        self, shape: Shape, device: torch.device | str, signed: bool, dtype: torch.dtype = torch.float32
    ) -> Store:
        b, rows, cols = shape
        n, m = near_square(rows * cols)
        store = {
            "rows": torch.zeros(b, n, device=device),
            "cols": torch.zeros(b, m, device=device),
            # holds no bytes, but the shape, which n and m do not tell
            "shape": torch.zeros(b, rows, cols, 0, device=device),
        }
        if signed:
            store["sign"] = pack_bits(torch.zeros(1, rows, cols, device=device)).repeat(b, 1)
        return store

    def decode(self, store: Store, dtype: torch.dtype = torch.float32) -> Tensor:
        u, v, shape = store["rows"].unsqueeze(2), store["cols"].unsqueeze(1), store["shape"].shape[:3]
        if "sign" not in store:
            return torch.mul(u, v).view(shape).to(dtype)
        signs = unpack_bits(store["sign"], u.expand(-1, -1, v.shape[2]))
        return signs.mul_(u).mul_(v).view(shape).to(dtype)

    def encode(self, store: Store, value: Tensor, keys: Tensor | None) -> None:
        if "sign" in store:
            store["sign"].copy_(pack_bits(value))
            value = value.abs()
        matrix = value.float().view(len(value), store["rows"].shape[1], store["cols"].shape[1])
        self.renew(store, matrix.sum(2), matrix.sum(1))

    @staticmethod
    def renew(store: Store, rows: Tensor, sums: Tensor) -> None:
        """Overwrites the factors from the sums of |x| over the columns `[b, n]` and over the rows `[b, m]`."""
        store["rows"].copy_(rows)
        # of zeros, 0/tiny
        total = sums.sum(1, keepdim=True).clamp_(min=torch.finfo(torch.float32).tiny)
        store["cols"].copy_(sums.div_(total))

    def state_bytes(self, rows: int, cols: int, signed: bool) -> int:
        return 4 * sum(near_square(rows * cols)) + (-(-rows * cols // 8) if signed else 0)


CODECS: dict[str, Codec] = {
    codec.name: codec for codec in (Float32Codec(), BFloat16Codec(), Float16Codec(), Int8Codec(), FactoredCodec())
}


def pack_bits(x: Tensor) -> Tensor:
    """One bit for each element: whether it is not negative, or of a bool tensor whether it is True.

    Args:
        x: `[b, …]`, any numbers or bool; −0 and NaN count as not negative.

    Returns:
        `[b, ⌈N/8⌉]` uint8; element i is bit i mod 8, from the lowest, of byte i div 8. Bits beyond N are 0. (The bytes
        are gathered as 64-bit words, which takes a little-endian machine: all that torch's devices are.)
    """
    flags = x.view(torch.int8) if x.dtype == torch.bool else x.sign().to(torch.int8).bitwise_right_shift_(7).add_(1)
    flags = flags.flatten(1)
    missing = -flags.shape[1] % 8
    if missing:
        flags = F.pad(flags, (0, missing))
    words = flags.contiguous().view(torch.int64)
    return words.mul(GATHER_BITS).bitwise_right_shift_(56).to(torch.uint8)


def unpack_bits(packed: Tensor, like: Tensor) -> Tensor:
    """+1 where `pack_bits` found a bit, else −1.

    Args:
        packed: `[b, ⌈N/8⌉]` uint8.
        like: `[b, …]` with N elements each; gives shape and dtype.

    Returns:
        a new contiguous tensor.
    """
    signs = _byte_signs(packed.device).index_select(0, packed.flatten().to(torch.int32)).view(torch.int8)
    return signs.view(len(packed), -1)[:, : _count(like)].to(like.dtype, copy=True).view(like.shape)


@lru_cache(maxsize=4096)
def near_square(numel: int) -> tuple[int, int]:
    """The factors n ≥ m of `numel` nearest to its root."""
    m = math.isqrt(numel)
    while numel % m:
        m -= 1
    return numel // m, m


@lru_cache(maxsize=16)
def _byte_signs(device: torch.device) -> Tensor:
    """`[256]` int64: for each byte the eight signs that it stands for, as the eight bytes of one word."""
    bits = torch.arange(256, device=device).unsqueeze(1) >> torch.arange(8, device=device)
    return bits.bitwise_and_(1).mul_(2).sub_(1).to(torch.int8).view(torch.int64).view(256)


def _count(x: Tensor) -> int:
    """Elements of each parameter of a stack."""
    return math.prod(x.shape[1:])


def _blocks(count: int) -> Iterator[tuple[int, int, int, int]]:
    """At most two ranges of equal blocks, the full ones and the shorter last: elements from, to; blocks from, to."""
    full = count // BLOCK
    if full:
        yield 0, full * BLOCK, 0, full
    if count % BLOCK:
        yield full * BLOCK, count, full, full + 1


def _power_of_two(x: Tensor) -> Tensor:
    """The largest power of two ≤ x, at least SMALLEST_SCALE; infinite for what is not finite. x ≥ 0, float32."""
    return x.view(torch.int32).bitwise_and(EXPONENT_BITS).view(torch.float32).clamp_(min=SMALLEST_SCALE)


def _fixed_points(block: Tensor) -> tuple[Tensor, Tensor]:
    """`[b, blocks, length]` as int32 multiples of 2⁻²³ steps, and the steps `[b, blocks]`."""
    scale = block.abs().amax(2).mul_((1 + 2.0**-8) / 127).clamp_(min=SMALLEST_SCALE)
    # the factor is more than bfloat16 can round down by, so no quotient passes 127
    scale = scale.to(torch.bfloat16).float()
    return block.div(scale.mul(2.0**-23).unsqueeze(2)).to(torch.int32), scale


def _small_floats(block: Tensor) -> tuple[Tensor, Tensor]:
    """Non-negative `[b, blocks, length]` as the int32 bits of floats from 2⁻³⁰ to 2⁻¹, and the scales `[b, blocks]`.

    Bits 20 to 27 are the code: the exponents −30 to −1 are 97 to 126 in a float32, and 1 to 30 modulo 32.
    """
    scale = _power_of_two(block.amax(2))
    scaled = block * (0.25 / scale).unsqueeze(2)
    lowest = block.sign().mul_(2.0**-30)
    return torch.maximum(scaled, lowest, out=lowest).view(torch.int32), scale
