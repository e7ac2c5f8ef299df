"""Anchors: how centered weight decay, p ← p − c·(p − p₀), stores a parameter's value p₀ at the start.

Axes: b batch; a parameter is `[rows, cols]` = `[o, i]`; a group (g) is a row or a block of its flattened values, and
has one step s. Everything is one call for a whole stack `[b, rows, cols]`.

**The dead zone.** A stored p₀ is known to half a step only: p₀ is somewhere in q ± s/2. Decaying towards q itself would
move a model that gets no gradient at all by the error of its anchor. So the pull is 0 while p is in that interval, that
is while p cannot be told from p₀, and p − q outside it. `scripts/measure_anchors.py` measures this zone against two
continuous ones; their figures, and the reason for this one, are at `Quantized`.
"""

from abc import ABC, abstractmethod

import torch
from torch import Tensor
from torch.nn import functional as F

Store = dict[str, Tensor]

# Half a step, and what float32 may add to it: p₀/s is at most 2^16 (see LARGEST_CODE), so with 24 bits the quotient is
# off by 2^-9 of a step at most, and its difference from a code by 2^-8.
HALF_STEP = 0.5 + 2.0**-7
# in steps; 2^16 of them are exact multiples of a bfloat16 step, too
LARGEST_CODE = 2.0**16
# Steps of groups that are zeros or as good as zero. It is a power of two, so p/s·s is p, and p₀ = 0 is stored exactly.
ZERO_STEP = 2.0**-80
FLOAT8_MAX = 448.0
FLOAT8_MANTISSA = 3
FLOAT8_SMALLEST = 2.0**-9


class Anchor(ABC):
    """One way to store p₀. Instances have no state; what they store is theirs to make and the caller's to keep.

    `bytes_per_value`: of a large matrix, with the steps of blocks, without those of rows (2 to 4 bytes a row).
    """

    name: str
    bytes_per_value: float

    @abstractmethod
    def create(self, p0: Tensor, dtype: torch.dtype | None = None) -> Store:
        """Stores p₀ `[b, rows, cols]` (finite float32 or float64, below 2^47).

        dtype: of the parameter itself, where `p0` is a float32 copy of bfloat16 or float16 values; None: `p0.dtype`.
        Only `full` uses it. Returns tensors with leading axis b that share no memory with `p0`.
        """

    @abstractmethod
    def pull(self, store: Store, p: Tensor) -> Tensor:
        """p − p₀ as far as it is known, `[b, rows, cols]`, a new tensor; exactly 0 where p is p₀."""

    @abstractmethod
    def decode(self, store: Store, p: Tensor) -> Tensor:
        """The stored p₀, `[b, rows, cols]` in the dtype of p, without the zone; p is the current value."""

    def left_range(self, store: Store, p: Tensor) -> Tensor:
        """How many values of each parameter are decoded wrongly at the current p; int64 `[b]`, no host sync."""
        return torch.zeros(p.shape[0], dtype=torch.int64, device=p.device)


class FullAnchor(Anchor):
    """p₀ itself, in the parameter's own dtype: 4 bytes a value for float32, 2 for bfloat16 and float16."""

    name = "full"
    bytes_per_value = 4.0

    def create(self, p0: Tensor, dtype: torch.dtype | None = None) -> Store:
        return {"value": p0.detach().to(dtype or p0.dtype, copy=True)}

    def pull(self, store: Store, p: Tensor) -> Tensor:
        return p - store["value"].to(p.dtype)

    def decode(self, store: Store, p: Tensor) -> Tensor:
        return store["value"].to(p.dtype, copy=True)


class Quantized(Anchor):
    """pull = d where |d| > z, else 0, with d = p − q and z = s/2 and a margin for rounding.

    The zone is hard. A soft one, sign(d)·max(|d| − z, 0), pulls too little by s/2 at every displacement, and a firm one
    (0 up to z, d from 2z on, linear between) has less pull than this one up to 2z; see docs/benchmarks/anchors.json.
    What the jump at z costs: a step may carry a value past p₀, by at most c·z.
    """

    @abstractmethod
    def locate(self, store: Store, p: Tensor) -> tuple[Tensor, Tensor | float, Tensor]:
        """d/s `[b, g, n]`, new and with padding at the end of the last group if any; z/s; and s, to broadcast."""

    def pull(self, store: Store, p: Tensor) -> Tensor:
        steps, zone, step = self.locate(store, p)
        if isinstance(zone, Tensor):
            steps.mul_(steps.abs().gt_(zone))
        else:
            steps = F.hardshrink(steps, zone)
        return _ungrouped(steps.mul_(step), p.shape)

    def offset(self, store: Store, p: Tensor) -> tuple[Tensor, Tensor]:
        """d and z, both `[b, rows, cols]`: what any other zone would start from."""
        steps, zone, step = self.locate(store, p)
        return _ungrouped(steps * step, p.shape), _ungrouped((zone * step.abs()).expand_as(steps), p.shape)


class Float8Anchor(Quantized):
    """p₀/s in e4m3 with a power of two s per row, so that s only moves the exponents and costs no precision.

    The half step is half a unit in the last place of the stored number, so small values have small zones.
    """

    name = "float8"
    bytes_per_value = 1.0

    def create(self, p0: Tensor, dtype: torch.dtype | None = None) -> Store:
        largest = p0.abs().amax(2, keepdim=True).to(torch.float32)
        step = _rounded_up(largest / FLOAT8_MAX, bits=23).clamp_(min=ZERO_STEP)
        return {"code": (p0 / step).to(torch.float8_e4m3fn), "step": step[:, :, 0].to(torch.bfloat16)}

    def locate(self, store: Store, p: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        code = store["code"].to(torch.float32)
        step = store["step"].to(p.dtype)[:, :, None]
        # the exponent's bits alone are the power of two at or below the number
        last_place = (code.view(torch.int32) & 0x7F800000).view(torch.float32).mul_(2.0**-FLOAT8_MANTISSA)
        zone = last_place.clamp_(min=FLOAT8_SMALLEST).mul_(HALF_STEP)
        return (p / step).sub_(code), zone, step

    def decode(self, store: Store, p: Tensor) -> Tensor:
        return store["code"].to(p.dtype) * store["step"].to(p.dtype)[:, :, None]


class BlockAnchor(Quantized):
    """round(p₀/s) in 8 or 4 bits, one bfloat16 step s per block of the flattened parameter.

    A b-bit code reaches from −2^(b−1) to 2^(b−1) − 1, and half a step further on both sides. The larger of the block's
    two extremes gets the longer side: s is negative where that is the positive one. So
    |s| = max(larger / (2^(b−1) + ½), smaller / (2^(b−1) − ½)), which is 7 to 18 % finer than max|p₀|/7 in 4 bits. Zero
    is stored exactly.
    """

    def __init__(self, bits: int, block: int) -> None:
        self.name, self.bits, self.block = f"int{bits}", bits, block
        self.bytes_per_value = bits / 8 + 2 / block

    def create(self, p0: Tensor, dtype: torch.dtype | None = None) -> Store:
        groups = _blocks(p0, self.block)
        low, high = (extreme.to(torch.float32).clamp_(min=0) for extreme in (-groups.amin(2), groups.amax(2)))
        long_side, short_side = torch.maximum(low, high), torch.minimum(low, high)
        half = 2.0 ** (self.bits - 1)
        size = torch.maximum(long_side / (half + 0.5), short_side / (half - 0.5))
        step = torch.where(high > low, -1.0, 1.0) * _rounded_up(size, bits=16).clamp_(min=ZERO_STEP)
        code = (groups / step[:, :, None]).round_().clamp_(-half, half - 1)
        code = code.flatten(1)[:, : p0[0].numel()].to(torch.int8)
        return {"code": code.contiguous() if self.bits == 8 else _packed(code), "step": step.to(torch.bfloat16)}

    def locate(self, store: Store, p: Tensor) -> tuple[Tensor, float, Tensor]:
        step = store["step"].to(p.dtype)[:, :, None]
        return (_blocks(p, self.block) / step).sub_(_blocks(self._code(store, p), self.block)), HALF_STEP, step

    def decode(self, store: Store, p: Tensor) -> Tensor:
        code = _blocks(self._code(store, p).to(p.dtype), self.block)
        return _ungrouped(code * store["step"].to(p.dtype)[:, :, None], p.shape)

    def _code(self, store: Store, p: Tensor) -> Tensor:
        if self.bits == 8:
            return store["code"]
        code = _unpacked(store["code"], p[0].numel())
        return code - ((code & 8) << 1)  # two's complement of 4 bits


class WrappedAnchor(Quantized):
    """The lowest bits of round(p₀/s) only; the current p tells the rest. One bfloat16 step per row, s = rms/k.

    q is the value ≡ code·s (mod 2^bits·s) that is nearest to p: right, to s/2, while |p − p₀| < (2^(bits−1) − ½)·s.
    Beyond, q is a whole period 2^bits·s away from p₀, and so is where the value is pulled to.

    `steps_per_rms` k trades precision, s/(√12·rms) = 1/(k·√12), for range, 2^(bits−1)/k·rms. A row with one very large
    value has a larger step, so that no value exceeds 2^16 steps. Rows of zeros are stored exactly and never wrap.

    `left_range` reads a sketch, 2 bytes a row: the sum over the row of random signs times the number of periods in p₀.
    Its change squared is an unbiased estimate of how many values of the row are off by one period, exact if there are
    none or one, with a spread of √2 times the number otherwise; sums over many rows are sharp. Without it nobody could
    tell, as a value that left looks like one near another anchor (Alon, Matias, Szegedy 1996, "The space complexity of
    approximating the frequency moments").
    """

    def __init__(self, bits: int, steps_per_rms: float) -> None:
        self.name, self.bits, self.steps_per_rms = f"wrapped{bits}", bits, steps_per_rms
        self.bytes_per_value = bits / 8

    def create(self, p0: Tensor, dtype: torch.dtype | None = None) -> Store:
        largest = p0.abs().amax(2).to(torch.float32)
        rms = p0.square().mean(2).sqrt_().to(torch.float32)
        wanted = torch.minimum(torch.maximum(rms / self.steps_per_rms, largest / LARGEST_CODE), largest)
        # rows of zeros are told from others by their step; what else is in such rows rounds to code 0
        step = torch.where(largest <= ZERO_STEP / 2, ZERO_STEP, _rounded_up(wanted, bits=16).clamp_(min=2 * ZERO_STEP))
        code = (p0 / step[:, :, None]).round_().to(torch.int32).bitwise_and_(2**self.bits - 1).to(torch.uint8)
        store = {"code": code if self.bits == 8 else _packed(code.flatten(1)), "step": step.to(torch.bfloat16)}
        return store | {"sketch": self._sketch(store, p0)}

    def locate(self, store: Store, p: Tensor) -> tuple[Tensor, float, Tensor]:
        steps, period, step = self._steps(store, p)
        return steps.sub_((steps / period).round_().mul_(period)), HALF_STEP, step

    def decode(self, store: Store, p: Tensor) -> Tensor:
        steps, period, step = self._steps(store, p)
        return (steps.div_(period).round_().mul_(period) + self._code(store, p)).mul_(step)

    def left_range(self, store: Store, p: Tensor) -> Tensor:
        # int16 wraps, so the difference is right however large the sums are
        return (self._sketch(store, p) - store["sketch"]).to(torch.int64).square_().sum(1)

    def _steps(self, store: Store, p: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """p/s − code, the period in steps, and s."""
        step = store["step"].to(p.dtype)[:, :, None]
        code = self._code(store, p)
        # a row of zeros never wraps: its period is beyond every float32 that p/s can be
        period = torch.where(step == ZERO_STEP, 2.0**127, 2.0**self.bits)
        return (p / step).sub_(code), period, step

    def _code(self, store: Store, p: Tensor) -> Tensor:
        return store["code"] if self.bits == 8 else _unpacked(store["code"], p[0].numel()).view(p.shape)

    def _sketch(self, store: Store, p: Tensor) -> Tensor:
        steps, period, _ = self._steps(store, p)
        periods = steps.div_(period).round_().to(torch.int32)
        return (periods * _signs(p.shape[1:], p.device)).sum(2).to(torch.int16)


def _rounded_up(x: Tensor, bits: int) -> Tensor:
    """The least float32 ≥ x ≥ 0 that has zeros in the lowest `bits` of its 23 mantissa bits; 16: a bfloat16."""
    return ((x.view(torch.int32) + (2**bits - 1)) & -(2**bits)).view(torch.float32)


def _blocks(x: Tensor, block: int) -> Tensor:
    """`[b, …]` → `[b, g, block]`, filled with zeros at the end; a view where nothing has to be filled."""
    flat = x.flatten(1)
    missing = -flat.shape[1] % block
    return (F.pad(flat, (0, missing)) if missing else flat).unflatten(1, (-1, block))


def _ungrouped(groups: Tensor, shape: torch.Size) -> Tensor:
    """`[b, g, n]` → `[b, rows, cols]`, without what filled the last group."""
    return groups.reshape(shape[0], -1)[:, : shape[1] * shape[2]].view(shape)


def _packed(code: Tensor) -> Tensor:
    """The low 4 bits of integers `[b, n]`, two to a byte, the first in the low half: uint8 `[b, ⌈n/2⌉]`."""
    code = F.pad(code, (0, code.shape[1] % 2)).to(torch.uint8)
    return (code[:, 0::2] & 15) | (code[:, 1::2] << 4)


def _unpacked(packed: Tensor, n: int) -> Tensor:
    """int8 `[b, n]` of 0 to 15."""
    return torch.stack((packed & 15, packed >> 4), dim=2).flatten(1)[:, :n].to(torch.int8)


def _signs(shape: torch.Size, device: torch.device) -> Tensor:
    """Random +1 and −1, int32, the same for the same place: a multiplicative hash of the flat index."""
    index = torch.arange(shape.numel(), dtype=torch.int64, device=device).view(shape)
    # odd constants of 63 bits; integers wrap
    mixed = index * 0x1E3779B97F4A7C15
    mixed = (mixed ^ (mixed >> 29)) * 0x3F58476D1CE4E5B9
    return (1 - ((mixed >> 39) & 2)).to(torch.int32)


ANCHORS: dict[str, Anchor] = {
    anchor.name: anchor
    for anchor in (
        FullAnchor(),
        Float8Anchor(),
        BlockAnchor(bits=8, block=128),
        BlockAnchor(bits=4, block=32),
        WrappedAnchor(bits=8, steps_per_rms=64),
        WrappedAnchor(bits=4, steps_per_rms=8),
    )
}
