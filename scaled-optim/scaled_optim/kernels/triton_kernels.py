"""Fused steps in Triton: everything that a stack's step does to one element, and the sums that it needs before.

A stack is b parameters of N = rows·cols elements. Parameters and gradients are where they are, and `table` holds where
that is: the addresses of the b parameters, then of the b gradients. State is `[b, N]`. Whatever is the same for a whole
unit, a rank, a block or a parameter, comes as a tensor of one number a unit; `…_UNIT` says which: 0 none, 1 the
parameter, 2 a row, 3 a column. The formulas are those of rules and features, in the same order of operations.
"""

import math

from scaled_optim.anchors import HALF_STEP
from scaled_optim.arithmetic import _arctangent_series
from scaled_optim.codecs import SMALLEST_SCALE
from scaled_optim.noise import GOLDEN_32, KEY_FACTOR, MULTIPLIER_1, MULTIPLIER_2
from scaled_optim.rules.AdamWAdv import ATAN2_SCALE

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
FP32, BF16, INT8, UINT8 = (tl.constexpr(k) for k in range(4))
FORMATS = {torch.float32: tl.float32, torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}
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
def _of_unit(values, k, i, rows, cols, UNIT: tl.constexpr):
    """One number for each unit, for elements i of parameter k."""
    if UNIT == 1:
        found = tl.load(values + k)
    elif UNIT == 2:
        found = tl.load(values + k * rows + i // cols)
    else:
        found = tl.load(values + k * cols + i % cols)
    return found


@triton.jit
def _decoded(values, scales, k, i, inside, N, CODEC: tl.constexpr):
    """State of elements i of parameter k."""
    at = k.to(tl.int64) * N + i
    if CODEC == FP32 or CODEC == BF16:
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
def _encode(values, scales, x, key, stream, step, k, block, i, inside, N, CODEC: tl.constexpr):
    """Remembers x, elements i of parameter k, which are block number `block` of an 8-bit state."""
    at = k.to(tl.int64) * N + i
    if CODEC == FP32:
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
    table, m_at, m_scale, v_at, v_scale, slow_at, slow_scale, along, length, weights, d_at,
    k, i, inside, b, N, rows, cols,
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
        share = _of_unit(along, k, i, rows, cols, ORTHO_UNIT)
        g = (g - p * share) * _of_unit(length, k, i, rows, cols, ORTHO_UNIT)
    m, v, slow, weight2 = g, g, g, g
    if FIRST:
        m = _decoded(m_at, m_scale, k, i, inside, N, M)
    if SECOND:
        v = _decoded(v_at, v_scale, k, i, inside, N, V)
    if SLOW:
        slow = _decoded(slow_at, slow_scale, k, i, inside, N, M)
    if BETA2_UNIT:
        weight2 = _of_unit(weights, k, i, rows, cols, BETA2_UNIT)
    d = 1.0
    if RULE == PRODIGY:
        d = tl.load(d_at).to(tl.float32)
    u, m, v, slow, divisor = _directed(
        g, m, v, slow, weight2, beta1, rest1, beta2, rest2, eps, root, clip, nesterov, ahead, slow_weight, rest3, d,
        RULE, FIRST, SLOW, NESTEROV, SIMPLIFIED, NORMED, ATAN, GRAMS, BETA2_UNIT,
    )  # fmt: skip
    return p, g, u, m, v, slow, divisor, d


# -- sums over units --------------------------------------------------------------------------------------------------


@triton.jit
def _tile(rows, cols, row_tiles, col_tiles, TR: tl.constexpr, TC: tl.constexpr):
    """The parameter and the place of this program's tile of a matrix, its elements, and which of them are inside."""
    program = tl.program_id(0)
    k, tile = program // (row_tiles * col_tiles), program % (row_tiles * col_tiles)
    r = tile // col_tiles * TR + tl.arange(0, TR)
    c = tile % col_tiles * TC + tl.arange(0, TC)
    return k, tile, r, c, r[:, None] * cols + c[None, :], (r < rows)[:, None] & (c < cols)[None, :]


@triton.jit
def _add_up(sums, x, k, tile, r, c, rows, cols, row_tiles, col_tiles, UNIT: tl.constexpr):
    """Writes a tile's part of the sums of each unit, `[b, tiles beside each other, units]`."""
    if UNIT == 1:
        tl.store(sums + k * (row_tiles * col_tiles) + tile, tl.sum(x))
    elif UNIT == 2:
        tl.store(sums + (k * col_tiles + tile % col_tiles) * rows + r, tl.sum(x, 1), r < rows)
    else:
        tl.store(sums + (k * row_tiles + tile // col_tiles) * cols + c, tl.sum(x, 0), c < cols)


@triton.jit
def gradient_sums(
    table, squares, products, lengths, b, rows, cols, row_tiles, col_tiles,
    P: tl.constexpr, G: tl.constexpr, ALIGNED: tl.constexpr, NEEDS_P: tl.constexpr, UNIT: tl.constexpr,
    TR: tl.constexpr, TC: tl.constexpr,
):  # fmt: skip
    """Of each unit parts of the sums of g², and with NEEDS_P of g·p and p², in float64."""
    k, tile, r, c, i, inside = _tile(rows, cols, row_tiles, col_tiles, TR, TC)
    g = tl.load(_at(table, b + k, G, ALIGNED) + i, inside, 0.0).to(tl.float32).to(tl.float64)
    _add_up(squares, g * g, k, tile, r, c, rows, cols, row_tiles, col_tiles, UNIT)
    if NEEDS_P:
        p = tl.load(_at(table, k, P, ALIGNED) + i, inside, 0.0).to(tl.float32).to(tl.float64)
        _add_up(products, g * p, k, tile, r, c, rows, cols, row_tiles, col_tiles, UNIT)
        _add_up(lengths, p * p, k, tile, r, c, rows, cols, row_tiles, col_tiles, UNIT)


@triton.jit
def direction_sums(
    table, m_at, m_scale, v_at, v_scale, slow_at, slow_scale, along, length, weights, d_at,
    sizes, grams, agreeing, weighed, b, N, rows, cols, row_tiles, col_tiles,
    beta1, rest1, beta2, rest2, eps, root, clip, nesterov, ahead, slow_weight, rest3,
    RULE: tl.constexpr, FIRST: tl.constexpr, SECOND: tl.constexpr, SLOW: tl.constexpr, M: tl.constexpr,
    V: tl.constexpr, NESTEROV: tl.constexpr, SIMPLIFIED: tl.constexpr, NORMED: tl.constexpr, ATAN: tl.constexpr,
    GRAMS: tl.constexpr, ORTHO_UNIT: tl.constexpr, BETA2_UNIT: tl.constexpr, P: tl.constexpr, G: tl.constexpr,
    ALIGNED: tl.constexpr, NEEDS_P: tl.constexpr, MASKED: tl.constexpr, SIZE_UNIT: tl.constexpr, GRAM: tl.constexpr,
    FISHER: tl.constexpr, TR: tl.constexpr, TC: tl.constexpr,
):  # fmt: skip
    """Parts of sums over the direction u that this step will have; no state is changed.

    SIZE_UNIT: u² of each unit. GRAM 1: u·uᵀ, 2: uᵀ·u, of the tile's sides. MASKED: u counts where it agrees with the
    gradient, and how many do. FISHER: (p/divisor)².
    """
    k, tile, r, c, i, inside = _tile(rows, cols, row_tiles, col_tiles, TR, TC)
    p, g, u, m, v, slow, divisor, d = _element(
        table, m_at, m_scale, v_at, v_scale, slow_at, slow_scale, along, length, weights, d_at,
        k, i, inside, b, N, rows, cols,
        beta1, rest1, beta2, rest2, eps, root, clip, nesterov, ahead, slow_weight, rest3,
        RULE, FIRST, SECOND, SLOW, M, V, NESTEROV, SIMPLIFIED, NORMED, ATAN, GRAMS, ORTHO_UNIT, BETA2_UNIT, P, G,
        ALIGNED, NEEDS_P,
    )  # fmt: skip
    u = tl.where(inside, u, 0.0)
    if MASKED:
        agree = tl.where(u * g > 0, 1.0, 0.0)
        u = u * agree
        _add_up(agreeing, agree, k, tile, r, c, rows, cols, row_tiles, col_tiles, 1)
    if SIZE_UNIT:
        _add_up(sizes, u * u, k, tile, r, c, rows, cols, row_tiles, col_tiles, SIZE_UNIT)
    if FISHER:
        ratio = tl.where(inside, p / tl.maximum(divisor, SMALLEST_DIVISOR), 0.0)
        _add_up(weighed, ratio * ratio, k, tile, r, c, rows, cols, row_tiles, col_tiles, 1)
    if GRAM == 1:
        at = (k * col_tiles + tile) * TR * TR + tl.arange(0, TR)[:, None] * TR + tl.arange(0, TR)[None, :]
        tl.store(grams + at, tl.dot(u, tl.trans(u), input_precision="ieee"))
    if GRAM == 2:
        at = (k * row_tiles + tile) * TC * TC + tl.arange(0, TC)[:, None] * TC + tl.arange(0, TC)[None, :]
        tl.store(grams + at, tl.dot(tl.trans(u), u, input_precision="ieee"))


@triton.jit
def units(
    table, squares, products, lengths, along_out, length_out, last, mean, weights_out, splits, count, numel,
    ema, rest_ema, high, span, tiny, least, ORTHO: tl.constexpr, KOURKOUTAS: tl.constexpr, U: tl.constexpr,
):  # fmt: skip
    """What the sums of a parameter's gradient say: as `orthogonal_gradient` and `kourkoutas_beta2`.

    ORTHO 1: one along the whole parameter, 2: along each unit.
    """
    k, u = tl.program_id(0), tl.arange(0, U)
    inside = u < count
    gg = tl.zeros((U,), tl.float64)
    gp = tl.zeros((U,), tl.float64)
    pp = tl.zeros((U,), tl.float64)
    for part in range(splits):
        at = (k * splits + part) * count + u
        gg += tl.load(squares + at, inside, 0.0)
        if ORTHO:
            gp += tl.load(products + at, inside, 0.0)
            pp += tl.load(lengths + at, inside, 0.0)
    norm = gg
    if ORTHO:
        whole_gg, whole_gp, whole_pp = gg, gp, pp
        if ORTHO == 1:
            whole_gg = gg * 0.0 + tl.sum(gg)
            whole_gp = gp * 0.0 + tl.sum(gp)
            whole_pp = pp * 0.0 + tl.sum(pp)
        share = whole_gp / (whole_pp + 1e-30)
        left = tl.sqrt(tl.maximum(whole_gg - 2 * share * whole_gp + share * share * whole_pp, 0.0))
        size = tl.sqrt(whole_gg)
        stretch = tl.where(left <= size * least, 0.0, size / (left + 1e-30))
        norm = tl.maximum(gg - 2 * share * gp + share * share * pp, 0.0) * stretch * stretch
        if ORTHO == 1:
            tl.store(along_out + k + u, share.to(tl.float32), u < 1)
            tl.store(length_out + k + u, stretch.to(tl.float32), u < 1)
        else:
            tl.store(along_out + k * count + u, share.to(tl.float32), inside)
            tl.store(length_out + k * count + u, stretch.to(tl.float32), inside)
    if KOURKOUTAS:
        at = k * count + u
        before = tl.load(last + at, inside, 0.0)
        average = _lerp(tl.load(mean + at, inside, 0.0), before, rest_ema)
        spike = before / (average + tiny)
        tl.store(mean + at, average, inside)
        tl.store(weights_out + at, 1 - (high - span * (spike / (1 + spike))), inside)
        tl.store(last + at, tl.sqrt(norm).to(tl.float32), inside)


@triton.jit
def spectral_sizes(
    table, grams, sizes, splits, m, wanted, floor, SQUARINGS: tl.constexpr, R: tl.constexpr
):  # fmt: skip
    """wanted/σ₁ of each parameter from the parts of its direction's Gram matrix, as `scaling.root_of_largest`."""
    k = tl.program_id(0)
    row, col = tl.arange(0, R)[:, None], tl.arange(0, R)[None, :]
    h = tl.zeros((R, R), tl.float32)
    for part in range(splits):
        h += tl.load(grams + (k * splits + part) * R * R + row * R + col)
    total = tl.sum(tl.where(row == col, h, 0.0))
    largest = total
    h = h / tl.maximum(total, TINY)
    for index in tl.static_range(1, SQUARINGS + 1):
        h = tl.dot(h, h, input_precision="ieee")
        if index % 3 == 0 or index == SQUARINGS:
            total = tl.sum(tl.where(row == col, h, 0.0))
            h = h / tl.maximum(total, TINY)
            for _ in tl.static_range(index):
                total = tl.sqrt(total)
            largest = largest * total
    low = tl.sum(h * h)
    bound = low * (tl.sqrt(tl.maximum((m - 1) * (m * low - 1), 0.0)) + 1) / m
    for _ in tl.static_range(SQUARINGS + 1):
        bound = tl.sqrt(bound)
    found = tl.sqrt(largest * bound)
    # a maximum passes over NaN
    tl.store(sizes + k, tl.where(found != found, found, wanted / tl.maximum(found, floor)))


# -- the step ---------------------------------------------------------------------------------------------------------


@triton.jit
def _pulled(distance, pull, u, CAUTIOUS: tl.constexpr):
    if CAUTIOUS:
        pull = tl.where(u * distance >= 0, 1.0, 0.0) * pull
    return pull


@triton.jit
def _away(p, anchor, anchor_step, k, i, inside, N, ANCHOR: tl.constexpr):
    """p − p₀ as `anchors` has it: 1 full, 2 int8."""
    at = k.to(tl.int64) * N + i
    if ANCHOR == 1:
        away = p - tl.load(anchor + at, inside, 0.0)
    else:
        step = tl.load(anchor_step + k * ((N + ANCHOR_BLOCK - 1) // ANCHOR_BLOCK) + i // ANCHOR_BLOCK, inside, 1.0)
        step = step.to(tl.float32)
        steps = p / step - tl.load(anchor + at, inside, 0).to(tl.float32)
        away = tl.where(tl.abs(steps) <= ZONE, 0.0, steps * step)
    return away


# what differs from step to step must not become part of the code
@triton.jit(do_not_specialize=["stream_m", "stream_v", "stream_slow", "stream_p", "step_hash"])
def step(
    table, m_at, m_scale, v_at, v_scale, slow_at, slow_scale, along, length, weights, d_at,
    keys, factor, fisher, anchor, anchor_step, out, b, N, rows, cols, blocks,
    beta1, rest1, beta2, rest2, eps, root, clip, nesterov, ahead, slow_weight, rest3,
    rate, keep, plain, centered, stream_m, stream_v, stream_slow, stream_p, step_hash,
    RULE: tl.constexpr, FIRST: tl.constexpr, SECOND: tl.constexpr, SLOW: tl.constexpr, M: tl.constexpr,
    V: tl.constexpr, NESTEROV: tl.constexpr, SIMPLIFIED: tl.constexpr, NORMED: tl.constexpr, ATAN: tl.constexpr,
    GRAMS: tl.constexpr, ORTHO_UNIT: tl.constexpr, BETA2_UNIT: tl.constexpr, P: tl.constexpr, G: tl.constexpr,
    ALIGNED: tl.constexpr, NEEDS_P: tl.constexpr, MASKED: tl.constexpr, FACTOR_UNIT: tl.constexpr,
    MOVES: tl.constexpr, DECAY: tl.constexpr, DECAY_D: tl.constexpr, CAUTIOUS: tl.constexpr, FISHER: tl.constexpr,
    TO_ZERO: tl.constexpr, ANCHOR: tl.constexpr, ROUNDS: tl.constexpr, OUT: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The whole step of a block of elements; without MOVES only its direction, and nothing is changed."""
    program = tl.program_id(0)
    k, block = program // blocks, program % blocks
    i = block * BLOCK + tl.arange(0, BLOCK)
    inside = i < N
    p, g, u, m, v, slow, divisor, d = _element(
        table, m_at, m_scale, v_at, v_scale, slow_at, slow_scale, along, length, weights, d_at,
        k, i, inside, b, N, rows, cols,
        beta1, rest1, beta2, rest2, eps, root, clip, nesterov, ahead, slow_weight, rest3,
        RULE, FIRST, SECOND, SLOW, M, V, NESTEROV, SIMPLIFIED, NORMED, ATAN, GRAMS, ORTHO_UNIT, BETA2_UNIT, P, G,
        ALIGNED, NEEDS_P,
    )  # fmt: skip
    if MASKED:
        u = u * tl.where(u * g > 0, 1.0, 0.0)
    if FACTOR_UNIT:
        u = u * _of_unit(factor, k, i, rows, cols, FACTOR_UNIT)
    if OUT:
        tl.store(out + k.to(tl.int64) * N + i, u, inside)
    if MOVES:
        key = tl.load(keys + k)
        if FIRST:
            _encode(m_at, m_scale, m, key, stream_m, step_hash, k, block, i, inside, N, M)
        if SECOND:
            _encode(v_at, v_scale, v, key, stream_v, step_hash, k, block, i, inside, N, V)
        if SLOW:
            _encode(slow_at, slow_scale, slow, key, stream_slow, step_hash, k, block, i, inside, N, M)
        share = 1.0
        if DECAY_D:
            share = d
        if DECAY == PLAIN:
            if DECAY_D:
                p = p * (1.0 - plain * d)
            else:
                p = p * keep
        if DECAY == WEIGHED:
            if FISHER:
                share = share * tl.load(fisher + k)
                divisor = tl.maximum(divisor, SMALLEST_DIVISOR)
            if TO_ZERO:
                pull = p
                if FISHER:
                    pull = p / divisor
                p = p - plain * share * _pulled(p, pull, u, CAUTIOUS)
            if ANCHOR:
                away = _away(p, anchor, anchor_step, k, i, inside, N, ANCHOR)
                pull = away
                if FISHER:
                    pull = away / divisor
                p = p - centered * share * _pulled(away, pull, u, CAUTIOUS)
        p = p - rate * d * u
        at = _at(table, k, P, ALIGNED) + i
        if ROUNDS:
            tl.store(at, _rounded(p, _bits(key, stream_p, step_hash, i)), inside)
        else:
            if P == tl.bfloat16:
                p = _nearest(p)
            tl.store(at, p.to(P), inside)


@triton.jit
def distances(
    table, along, length, d_at, start, sums, places, numerators, denominators, b, rows, cols, count, stride,
    rate, beta3, d0, ORTHO_UNIT: tl.constexpr, SAFEGUARD: tl.constexpr, P: tl.constexpr, G: tl.constexpr,
    ALIGNED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Each parameter's part of Prodigy's two sums, as `ProdigyAdv.measure`, from every so many-th of its numbers."""
    k = tl.program_id(0)
    d = tl.load(d_at)
    weight = d / d0 * d
    share = weight
    if not SAFEGUARD:
        share = weight * rate
    moved = tl.zeros((BLOCK,), tl.float64)
    total = tl.zeros((BLOCK,), tl.float64)
    for first in range(0, count, BLOCK):
        j = first + tl.arange(0, BLOCK)
        inside = j < count
        i = j * stride
        g = tl.load(_at(table, b + k, G, ALIGNED) + i, inside, 0.0).to(tl.float32)
        p = tl.load(_at(table, k, P, ALIGNED) + i, inside, 0.0).to(tl.float32)
        if ORTHO_UNIT:
            g = (g - p * _of_unit(along, k, i, rows, cols, ORTHO_UNIT)) * _of_unit(length, k, i, rows, cols, ORTHO_UNIT)
        at = k.to(tl.int64) * count + j
        known = tl.load(sums + at, inside, 0.0) * beta3 + g * share.to(tl.float32)
        tl.store(sums + at, known, inside)
        moved += (g * (tl.load(start + at, inside, 0.0) - p)).to(tl.float64)
        total += tl.abs(tl.where(inside, known, 0.0)).to(tl.float64)
    place = tl.load(places + k)
    tl.store(numerators + place, weight * rate * tl.sum(moved))
    tl.store(denominators + place, tl.sum(total))


# -- small matrices ---------------------------------------------------------------------------------------------------


@triton.jit
def eigen(table, out_values, out_vectors, r, SWEEPS: tl.constexpr, R: tl.constexpr, VECTORS: tl.constexpr):
    """Eigenvalues, and with VECTORS eigenvectors in columns, of symmetric matrices `[b, r, r]`, ascending,
    by Jacobi's rotations.

    R is even and at least r; what is beyond r is a zero matrix beside, which no rotation mixes in. In each round all
    pairs (2j, 2j + 1) are rotated at once; then every row but the first moves on to the next place, as in a tournament
    where each meets each, and after R − 1 rounds all pairs have met once.
    """
    k = tl.program_id(0)
    row, col = tl.arange(0, R)[:, None], tl.arange(0, R)[None, :]
    inside = (row < r) & (col < r)
    a = tl.load(table + k * r * r + row * r + col, inside, 0.0)
    # NaN and infinity count as zero
    a = tl.where(tl.abs(a) < float("inf"), a, 0.0)
    vectors = tl.where(row == col, 1.0, 0.0)
    # to which place the one at `row` goes: 0 stays; even ones go up by 2, odd ones down by 2, and at the ends they turn
    up = tl.where(row == R - 2, R - 1, row + 2)
    down = tl.where(row == 1, 2, row - 2)
    goal = tl.where(row == 0, 0, tl.where(row % 2 == 0, up, down))
    moves = tl.where(goal == col, 1.0, 0.0)
    partner = row + 1 - 2 * (row % 2)
    for _ in range(SWEEPS * (R - 1)):
        diagonal = tl.sum(tl.where(row == col, a, 0.0), 1)[:, None]
        beside = tl.where(col == partner, a, 0.0)
        # of both, so that rounding can't give the two of a pair different angles
        off = 0.5 * (tl.sum(beside, 1)[:, None] + tl.sum(beside, 0)[:, None])
        across = tl.sum(tl.where(col == partner, tl.sum(tl.where(row == col, a, 0.0), 0)[None, :], 0.0), 1)[:, None]
        even = row % 2 == 0
        first, second = tl.where(even, diagonal, across), tl.where(even, across, diagonal)
        # tan of the angle that makes the pair's own entry zero, the smaller one; what is rounding stays, as turning
        # without need adds up errors
        small = (tl.abs(off) <= 3e-8 * tl.sqrt(tl.abs(first)) * tl.sqrt(tl.abs(second))) | (tl.abs(off) <= 1e-37)
        theta = (second - first) / tl.where(small, 1.0, 2 * off)
        tangent = tl.where(theta >= 0, 1.0, -1.0) / (tl.abs(theta) + tl.sqrt(theta * theta + 1))
        tangent = tl.where(small, 0.0, tangent)
        cosine = 1 / tl.sqrt(tangent * tangent + 1)
        sine = tangent * cosine
        turn = tl.where(row == col, cosine, 0.0) + tl.where(col == partner, tl.where(even, -sine, sine), 0.0)
        # rows of `turn` are the new axes, which then move on
        turn = tl.dot(tl.trans(moves), turn, input_precision="ieee")
        a = tl.dot(tl.dot(turn, a, input_precision="ieee"), tl.trans(turn), input_precision="ieee")
        if VECTORS:
            vectors = tl.dot(turn, vectors, input_precision="ieee")
    # in ascending order, what was filled up first, which is left out
    values = tl.sum(tl.where(row == col, a, 0.0), 1)[:, None]
    values = tl.where(row < r, values, -float("inf"))
    others = tl.max(tl.where(row == col, values, -float("inf")), 0)[None, :]
    rank = tl.sum(((others < values) | ((others == values) & (col < row))).to(tl.int32), 1)[:, None] - (R - r)
    tl.store(out_values + k * r + tl.sum(rank, 1), tl.sum(values, 1), tl.sum(rank, 1) >= 0)
    if VECTORS:
        tl.store(out_vectors + k * r * r + col * r + rank, vectors, (rank >= 0) & (col < r))
