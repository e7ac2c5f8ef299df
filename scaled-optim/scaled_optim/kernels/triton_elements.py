"""What the Triton kernels share: random bits, state in every codec, and all that a step does to one element.

A stack is b parameters of N = rows·cols elements. Parameters and gradients are where they are, and `table` holds where
that is: the addresses of the b parameters, then of the b gradients. State is `[b, N]`. Whatever is the same for a whole
unit, a rank, a block or a parameter, comes as a tensor of one number a unit; `…_UNIT` says which: 0 none, 1 the
parameter, 2 a row, 3 a column. The formulas are those of rules and features, in the same order of operations.
"""

import math

from scaled_optim.anchors import HALF_STEP
from scaled_optim.arithmetic import ATAN2_SCALE, _arctangent_series
from scaled_optim.codecs import SMALLEST_SCALE
from scaled_optim.noise import GOLDEN_32, KEY_FACTOR, MULTIPLIER_1, MULTIPLIER_2

import torch

import triton
import triton.language as tl

C0, C1, C2, C3, C4, C5, C6, C7, C8, C9 = (tl.constexpr(c) for c in _arctangent_series(torch.float32))
HALF_PI = tl.constexpr(math.pi / 2)
ATAN2 = tl.constexpr(ATAN2_SCALE)
TINY = tl.constexpr(torch.finfo(torch.float32).tiny)
LARGEST = tl.constexpr(torch.finfo(torch.float32).max)
SMALLEST = tl.constexpr(SMALLEST_SCALE)
FIXED_SCALE = tl.constexpr((1 + 2.0**-8) / 127)
ZONE = tl.constexpr(HALF_STEP)
GOLDEN = tl.constexpr(GOLDEN_32)
FACTOR = tl.constexpr(KEY_FACTOR)
MIX_1 = tl.constexpr(MULTIPLIER_1)
MIX_2 = tl.constexpr(MULTIPLIER_2)
SMALLEST_DIVISOR = tl.constexpr(1e-15)
INT8_BLOCK = tl.constexpr(1024)
ANCHOR_BLOCK = tl.constexpr(128)
ADAMW, ADOPT, PRODIGY, LION, SIGN = (tl.constexpr(k) for k in range(5))
FP32, BF16, INT8, UINT8, FACTORED = (tl.constexpr(k) for k in range(5))
NO_DECAY, PLAIN, WEIGHED = (tl.constexpr(k) for k in range(3))


# -- random numbers, as in `noise` ------------------------------------------------------------------------------------


@triton.jit
def _mixed(x):
    """`noise._mix` of uint32."""
    x = (x ^ (x >> 16)) * tl.full((), MIX_1, tl.uint32)
    x = (x ^ (x >> 15)) * tl.full((), MIX_2, tl.uint32)
    return x ^ (x >> 16)


@triton.jit
def _bits(key, stream, step, i):
    """`noise.uniform_bits` of elements i under a parameter's key, hashed with a stream and a step."""
    key = _mixed(_mixed(key.to(tl.uint32, bitcast=True) ^ stream.to(tl.uint32)) ^ step.to(tl.uint32))
    golden = tl.full((), GOLDEN, tl.uint32)
    block = (i >> 14).to(tl.uint32)
    lane = _mixed(((i & 16383) + 1).to(tl.uint32) * golden)
    key = tl.where(block == 0, key, _mixed(key + block * golden))
    mixed = lane * ((key * tl.full((), FACTOR, tl.uint32)) | 1) + key
    signed = mixed.to(tl.int32, bitcast=True)
    mixed = (signed + (signed >> 15)).to(tl.uint32, bitcast=True) * tl.full((), MIX_2, tl.uint32)
    signed = mixed.to(tl.int32, bitcast=True)
    return signed + (signed >> 16)


@triton.jit
def _rounded(x, bits):
    """`rounding.round_to_bfloat16`."""
    raw = ((bits & 0xFFFF) + x.to(tl.int32, bitcast=True)) & -65536
    return tl.where(x != x, x, raw.to(tl.float32, bitcast=True)).to(tl.bfloat16)


@triton.jit
def _nearest(x):
    """x rounded to the nearest bfloat16, as float32. Triton's interpreter cuts off instead."""
    raw = x.to(tl.int32, bitcast=True)
    raw = (raw + 0x7FFF + ((raw >> 16) & 1)) & -65536
    return tl.where(x != x, x, raw.to(tl.float32, bitcast=True))


# -- arithmetic -------------------------------------------------------------------------------------------------------


@triton.jit
def _lerp(a, b, weight):
    """torch.lerp."""
    return tl.where(weight < 0.5, a + weight * (b - a), b - (b - a) * (1 - weight))


@triton.jit
def _sign(x):
    return tl.where(x > 0, 1.0, tl.where(x < 0, -1.0, x * 0.0))


@triton.jit
def _with_sign_of(x, y):
    negative = y.to(tl.int32, bitcast=True) < 0
    return tl.where(negative, -tl.abs(x), tl.abs(x))


@triton.jit
def _divided(x, divisor, ATAN: tl.constexpr):
    """`AdamWAdv.divided`, with the series of `arithmetic.arctangent`."""
    if ATAN:
        size = tl.abs(x)
        large = tl.maximum(tl.maximum(size, divisor), TINY)
        ratio = tl.minimum(tl.minimum(size, divisor) / tl.minimum(large, LARGEST), 1.0)
        t = ratio * ratio
        angle = t * C0
        angle = (angle + C1) * t
        angle = (angle + C2) * t
        angle = (angle + C3) * t
        angle = (angle + C4) * t
        angle = (angle + C5) * t
        angle = (angle + C6) * t
        angle = (angle + C7) * t
        angle = (angle + C8) * t
        angle = (angle + C9) * ratio
        angle = tl.abs(tl.where(size > divisor, HALF_PI, 0.0) - angle)
        # a maximum passes over NaN
        x = tl.where((x != x) | (divisor != divisor), float("nan"), _with_sign_of(angle, x) * ATAN2)
    else:
        x = x / divisor
    return x


# -- memory -----------------------------------------------------------------------------------------------------------


@triton.jit
def _at(table, index, FORMAT: tl.constexpr, ALIGNED: tl.constexpr):
    """The address of a tensor as a pointer."""
    pointer = tl.load(table + index).to(tl.pointer_type(FORMAT))
    if ALIGNED:
        pointer = tl.multiple_of(pointer, 16)
    return pointer


@triton.jit
def _of_unit(values, k, i, inside, rows, cols, UNIT: tl.constexpr):
    """One number for each unit, for elements i of parameter k."""
    if UNIT == 1:
        found = tl.load(values + k)
    elif UNIT == 2:
        found = tl.load(values + k * rows + i // cols, inside, 0.0)
    else:
        found = tl.load(values + k * cols + i % cols, inside, 0.0)
    return found


@triton.jit
def _decoded(values, scales, signs, k, i, inside, N, side, CODEC: tl.constexpr, SIGNED: tl.constexpr):
    """State of elements i of parameter k; of factored state `values` and `scales` are the two factors."""
    at = k.to(tl.int64) * N + i
    if CODEC == FACTORED:
        x = tl.load(values + k * (N // side) + i // side, inside, 0.0)
        if SIGNED:
            byte = tl.load(signs + k.to(tl.int64) * ((N + 7) // 8) + i // 8, inside, 0).to(tl.int32)
            x = ((byte >> (i & 7)) & 1).to(tl.float32) * 2.0 * x - x
        x = x * tl.load(scales + k * side + i % side, inside, 0.0)
    elif CODEC == FP32 or CODEC == BF16:
        x = tl.load(values + at, inside, 0.0).to(tl.float32)
    else:
        scale = tl.load(scales + k * ((N + INT8_BLOCK - 1) // INT8_BLOCK) + i // INT8_BLOCK, inside, 0.0).to(tl.float32)
        code = tl.load(values + at, inside, 0)
        if CODEC == UINT8:
            half = (code.to(tl.int16) << 7).to(tl.float16, bitcast=True)
            x = half.to(tl.float32) * (scale * 0.00006103515625)
        else:
            x = code.to(tl.float32) * scale
    return x


@triton.jit
def _encode(
    values, scales, signs, x, key, stream, step, k, block, i, inside, N, CODEC: tl.constexpr, SIGNED: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """Remembers x, elements i of parameter k, which are block number `block` of an 8-bit state.

    Of factored state the signs alone: the factors are still to be read by others, and `factors` makes them anew.
    """
    at = k.to(tl.int64) * N + i
    if CODEC == FACTORED:
        if SIGNED:
            positive = tl.where(inside & (x < 0), 0, 1)
            positive = tl.where(inside, positive, 0)
            weight = 1 << tl.arange(0, 8)
            byte = tl.sum(tl.reshape(positive, (BLOCK // 8, 8)) * weight[None, :], 1)
            place = block * (BLOCK // 8) + tl.arange(0, BLOCK // 8)
            tl.store(signs + k.to(tl.int64) * ((N + 7) // 8) + place, byte.to(tl.uint8), place < (N + 7) // 8)
    elif CODEC == FP32:
        tl.store(values + at, x, inside)
    elif CODEC == BF16:
        tl.store(values + at, _rounded(x, _bits(key, stream, step, i)), inside)
    else:
        bits = _bits(key, stream, step, i)
        x = tl.where(inside, x, 0.0)
        # a maximum passes over NaN, and what is not finite must be seen
        finite = tl.max((x - x != 0).to(tl.int32), 0) == 0
        largest = tl.max(tl.abs(x), 0)
        scale_at = scales + k * ((N + INT8_BLOCK - 1) // INT8_BLOCK) + block
        if CODEC == UINT8:
            power = (largest.to(tl.int32, bitcast=True) & 0x7F800000).to(tl.float32, bitcast=True)
            scale = tl.where(finite, tl.maximum(power, SMALLEST), float("inf"))
            lowest = tl.where(x > 0, 9.313225746154785e-10, 0.0)
            raw = tl.maximum(x * (0.25 / scale), lowest).to(tl.int32, bitcast=True) + (bits & 0xFFFFF)
            tl.store(values + at, ((raw >> 20) & 0xFF).to(tl.uint8), inside)
        else:
            scale = _nearest(tl.maximum(largest * FIXED_SCALE, SMALLEST))
            scale = tl.where(finite, scale, float("nan"))
            raw = (x / (scale * 1.1920928955078125e-07)).to(tl.int32) + (bits & 0x7FFFFF)
            tl.store(values + at, (raw >> 23).to(tl.int8), inside)
        tl.store(scale_at, scale.to(tl.bfloat16))


# -- one element ------------------------------------------------------------------------------------------------------


@triton.jit
def _directed(
    g, m, v, slow, weight2,
    beta1, rest1, beta2, rest2, eps, root, clip, nesterov, ahead, slow_weight, rest3, d,
    RULE: tl.constexpr, FIRST: tl.constexpr, SLOW: tl.constexpr, NESTEROV: tl.constexpr, SIMPLIFIED: tl.constexpr,
    NORMED: tl.constexpr, ATAN: tl.constexpr, GRAMS: tl.constexpr, BETA2_UNIT: tl.constexpr,
):  # fmt: skip
    """A rule's direction, its moments after the step, and what it divided by."""
    divisor = g * 0.0 + 1.0
    u = g
    if RULE == LION:
        u = _sign(_lerp(g, m, beta1))
        m = _lerp(m, g, rest2)
    else:
        x = g
        if RULE == PRODIGY:
            x = g * d
        if RULE == SIGN:
            if NORMED:
                x = _sign(g)
        else:
            square = x * x
            if BETA2_UNIT:
                fresh = _lerp(v, square, weight2)
            else:
                fresh = v * beta2 + rest2 * square
            if RULE == ADOPT:
                divisor = tl.sqrt(v)
            else:
                divisor = tl.sqrt(fresh) / root
            v = fresh
            if not ATAN:
                divisor = divisor + eps * d
            if RULE == ADOPT or NORMED:
                x = _divided(x, divisor, ATAN)
            if RULE == ADOPT and not ATAN:
                x = tl.where(x != x, x, tl.minimum(tl.maximum(x, -clip), clip))
        u = x
        if FIRST:
            if SIMPLIFIED:
                m = m * beta1 + x
                u = m + ahead * x
            else:
                m = _lerp(m, x, rest1)
                u = m
                if NESTEROV:
                    u = _lerp(x, m, nesterov)
        if SLOW:
            slow = _lerp(slow, x, rest3)
            u = u + slow_weight * slow
        if RULE == SIGN:
            if not NORMED:
                u = _sign(u)
        elif RULE != ADOPT and not NORMED:
            u = _divided(u, divisor, ATAN)
    if GRAMS:
        u = _with_sign_of(u, g)
    return u, m, v, slow, divisor


@triton.jit
def _element(
    table, m_at, m_scale, m_sign, v_at, v_scale, slow_at, slow_scale, slow_sign, along, length, weights, d_at,
    k, i, inside, b, N, rows, cols, side,
    beta1, rest1, beta2, rest2, eps, root, clip, nesterov, ahead, slow_weight, rest3,
    RULE: tl.constexpr, FIRST: tl.constexpr, SECOND: tl.constexpr, SLOW: tl.constexpr, M: tl.constexpr,
    V: tl.constexpr, NESTEROV: tl.constexpr, SIMPLIFIED: tl.constexpr, NORMED: tl.constexpr, ATAN: tl.constexpr,
    GRAMS: tl.constexpr, ORTHO_UNIT: tl.constexpr, BETA2_UNIT: tl.constexpr, P: tl.constexpr, G: tl.constexpr,
    ALIGNED: tl.constexpr, NEEDS_P: tl.constexpr,
):  # fmt: skip
    """Everything of elements i of parameter k before the step: p, g, u, the moments after it, the divisor, and d."""
    g = tl.load(_at(table, b + k, G, ALIGNED) + i, inside, 0.0).to(tl.float32)
    p = g
    if NEEDS_P:
        p = tl.load(_at(table, k, P, ALIGNED) + i, inside, 0.0).to(tl.float32)
    if ORTHO_UNIT:
        share = _of_unit(along, k, i, inside, rows, cols, ORTHO_UNIT)
        g = (g - p * share) * _of_unit(length, k, i, inside, rows, cols, ORTHO_UNIT)
    m, v, slow, weight2 = g, g, g, g
    if FIRST:
        m = _decoded(m_at, m_scale, m_sign, k, i, inside, N, side, M, True)
    if SECOND:
        v = _decoded(v_at, v_scale, None, k, i, inside, N, side, V, False)
    if SLOW:
        slow = _decoded(slow_at, slow_scale, slow_sign, k, i, inside, N, side, M, True)
    if BETA2_UNIT:
        weight2 = _of_unit(weights, k, i, inside, rows, cols, BETA2_UNIT)
    d = 1.0
    if RULE == PRODIGY:
        d = tl.load(d_at).to(tl.float32)
    u, m, v, slow, divisor = _directed(
        g, m, v, slow, weight2, beta1, rest1, beta2, rest2, eps, root, clip, nesterov, ahead, slow_weight, rest3, d,
        RULE, FIRST, SLOW, NESTEROV, SIMPLIFIED, NORMED, ATAN, GRAMS, BETA2_UNIT,
    )  # fmt: skip
    return p, g, u, m, v, slow, divisor, d
