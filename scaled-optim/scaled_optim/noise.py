"""Random bits that are a pure function of (seed, step, parameter, slot, element): no generator, no state.

So results do not change with batching, chunk size, device, fused backward or resume.

Everything is 32-bit integer arithmetic modulo 2³². Signed int32 tensors serve, because the low 32 bits of a sum or a
product are the same for signed and unsigned operands, and torch's integer kernels wrap on every device (the tests hold
them against Python integers). The one operation that differs is the right shift, which copies the sign bit; where a
bijection is needed it is masked, and where `x + (x >> s)` is used instead the mask is not needed, see `uniform_bits`.
"""

from functools import lru_cache

import torch
from torch import Tensor

# Length of the table of hashed lanes: 64 KiB, so that it stays in cache, and few tensors are long enough for a second
# block, each of which costs a key of its own.
LANES = 1 << 14

# odd constants with good avalanche for 32-bit finalisers (Prospecting for Hash Functions, C. Wellons, 2018)
MULTIPLIER_1 = 0x7FEB352D
MULTIPLIER_2 = 0x846CA68B
# 2³² and 2⁶⁴ over the golden ratio
GOLDEN_32 = 0x9E3779B9
GOLDEN_64 = 0x9E3779B97F4A7C15
# twice an odd number, below 2³¹
KEY_FACTOR = 0x3C6EF372


def parameter_key(seed: int, step: int, index: int, slot: int) -> int:
    """The key of one draw: one slot of one parameter at one step.

    Args:
        seed: any integer.
        step: at least 0, below 2³².
        index: of the parameter; must stay the same over a run and its resumes.
        slot: tells the draws of one parameter in one step apart.

    Returns:
        a signed 32-bit integer, equal to `step_keys` of `base_key`. Among the few thousand keys of a step two are equal
        about once in a thousand steps; they then share their noise for that step, which no rule depends on.
    """
    return _signed(_mix(base_key(seed, index, slot) ^ _step_hash(step)))


def base_key(seed: int, index: int, slot: int) -> int:
    """The part of `parameter_key` that does not change between steps, for a tensor that is made once.

    Returns:
        a signed 32-bit integer.
    """
    state = 0
    for word in (seed, index, slot):
        state = _splitmix64((state ^ word) & 0xFFFFFFFFFFFFFFFF)
    return _signed(state >> 32)


def step_keys(base: Tensor, step: int | Tensor) -> Tensor:
    """`parameter_key` of many parameters at one step.

    Args:
        base: `[b]` int32, of `base_key`.
        step: a Python integer, or an integer tensor on the device of `base`, of no dimensions or `[b]`, which costs
            neither a host sync nor a recompile.

    Returns:
        `[b]` int32.
    """
    hashed = _mix_tensor(_step_words(step)) if isinstance(step, Tensor) else _signed(_step_hash(step))
    return _mix_tensor(base ^ hashed)


def uniform_bits(keys: Tensor, count: int) -> Tensor:
    """32 random bits for each of `count` elements under each key.

    With the table of hashed lanes T, the element j of a block under the block's key k is mix(T_j·(2ak + 1) + k).
    T_j·odd + k is injective in j and pairwise close to independent over keys; the mixing spreads its high bits, which
    are the good ones, over all 32. The element i is the element i mod LANES of the block i div LANES, so it does not
    depend on `count`.

    Args:
        keys: `[b]` int32 or int64 (then its low 32 bits count), of `parameter_key` or `step_keys`.
        count: elements per key, at least 0.

    Returns:
        `[b, count]` int32, uniform over all 2³² values; the caller owns it.
    """
    full, rest = divmod(count, LANES)
    lanes, block_keys = _lanes(keys.device), keys.to(torch.int32).unsqueeze(1)
    if count > LANES:
        # the first block's key is the parameter's, which is a hash already
        offsets = torch.arange(1, -(-count // LANES), dtype=torch.int32, device=keys.device).mul_(_signed(GOLDEN_32))
        block_keys = torch.cat([block_keys, _mix_tensor(block_keys + offsets)], 1)
    factors = (block_keys * KEY_FACTOR).bitwise_or_(1)

    bits = torch.empty(len(keys), count, dtype=torch.int32, device=keys.device)
    if full:
        head = bits[:, : full * LANES].unflatten(1, (full, LANES))
        head.copy_(lanes).mul_(factors[:, :full, None]).add_(block_keys[:, :full, None])
    if rest:
        bits[:, full * LANES :].copy_(lanes[:rest]).mul_(factors[:, full:]).add_(block_keys[:, full:])

    # x + (x >> s) spreads as well as the usual xor and does without the mask that the arithmetic shift would need
    # there: with the sign copied, an xor would leave the top bit 0 always; the sum stays uniform to 2⁻¹⁶.
    shifted = bits >> 15
    bits.add_(shifted).mul_(_signed(MULTIPLIER_2))
    return bits.add_(torch.bitwise_right_shift(bits, 16, out=shifted))


def centered_lanes(step: int | Tensor, device: torch.device) -> Tensor:
    """`[1, LANES]` or `[b, LANES]` float32, uniform in (−½, ½), the same for all parameters at a step.

    One table whose values are evenly spaced, turned by a hash of the step: no pass over memory, for noise that nobody
    looks at in two parameters at once. Over many steps each lane gets every value as often.

    Args:
        step: a Python integer, or an integer tensor on the device, of no dimensions or `[b]`.
    """
    table = _centered_table(device)
    if not isinstance(step, Tensor):
        begin = _step_hash(step) % LANES
        return table[begin : begin + LANES].unsqueeze(0)
    begin = _mix_tensor(_step_words(step)).bitwise_and(LANES - 1).view(-1, 1)
    return table[begin + torch.arange(LANES, device=device)]


@lru_cache(maxsize=16)
def _centered_table(device: torch.device) -> Tensor:
    """`[2·LANES]`: the centres of LANES equal parts of (−½, ½), in the order of the hashed lanes, twice."""
    places = _lanes(device).sort(stable=True).indices.to(torch.float32)
    return places.add_(0.5).div_(LANES).sub_(0.5).repeat(2)


@lru_cache(maxsize=16)
def _lanes(device: torch.device) -> Tensor:
    """`[LANES]` int32, the hash of 0, 1, 2 …; one table for each device that a process uses."""
    return _mix_tensor(torch.arange(1, LANES + 1, dtype=torch.int32, device=device).mul_(_signed(GOLDEN_32)))


def step_hash(step: int) -> int:
    """What `step_keys` mixes a step or a stream into keys by, as a signed 32-bit integer."""
    return _signed(_step_hash(step))


def _step_words(step: Tensor) -> Tensor:
    return step.to(torch.int32) * _signed(GOLDEN_32) + 1


def _step_hash(step: int) -> int:
    return _mix(step * GOLDEN_32 + 1)


def _splitmix64(state: int) -> int:
    """The 64-bit finaliser of SplitMix (Steele, Lea, Flood 2014) after one step of its Weyl sequence."""
    x = (state + GOLDEN_64) & 0xFFFFFFFFFFFFFFFF
    x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9 & 0xFFFFFFFFFFFFFFFF
    x = (x ^ x >> 27) * 0x94D049BB133111EB & 0xFFFFFFFFFFFFFFFF
    return x ^ x >> 31


def _mix(x: int) -> int:
    """A bijection of 32 bits with full avalanche; unsigned."""
    x &= 0xFFFFFFFF
    x = (x ^ x >> 16) * MULTIPLIER_1 & 0xFFFFFFFF
    x = (x ^ x >> 15) * MULTIPLIER_2 & 0xFFFFFFFF
    return x ^ x >> 16


def _mix_tensor(x: Tensor) -> Tensor:
    """`_mix` of int32. For small tensors: it takes a pass more for each shift than `uniform_bits`."""
    x = (x ^ (x >> 16).bitwise_and_(0xFFFF)) * _signed(MULTIPLIER_1)
    x = (x ^ (x >> 15).bitwise_and_(0x1FFFF)) * _signed(MULTIPLIER_2)
    return x ^ (x >> 16).bitwise_and_(0xFFFF)


def _signed(x: int) -> int:
    """The int32 with the same low 32 bits."""
    x &= 0xFFFFFFFF
    return x - (1 << 32) if x >> 31 else x
