"""Kernels for the sums over units and parameters that a step needs before it."""

from scaled_optim.kernels.triton_elements import (
    FACTORED,
    SMALLEST_DIVISOR,
    _at,
    _element,
    _lerp,
)

import triton
import triton.language as tl


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
    """Writes a tile's share of the sums of each unit, `[b, tiles beside each other, units]`."""
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
    """Of each unit partial sums of g², and with NEEDS_P of g·p and p², in float64."""
    k, tile, r, c, i, inside = _tile(rows, cols, row_tiles, col_tiles, TR, TC)
    g = tl.load(_at(table, b + k, G, ALIGNED) + i, inside, 0.0).to(tl.float32).to(tl.float64)
    _add_up(squares, g * g, k, tile, r, c, rows, cols, row_tiles, col_tiles, UNIT)
    if NEEDS_P:
        p = tl.load(_at(table, k, P, ALIGNED) + i, inside, 0.0).to(tl.float32).to(tl.float64)
        _add_up(products, g * p, k, tile, r, c, rows, cols, row_tiles, col_tiles, UNIT)
        _add_up(lengths, p * p, k, tile, r, c, rows, cols, row_tiles, col_tiles, UNIT)


@triton.jit
def direction_sums(
    table, m_at, m_scale, m_sign, v_at, v_scale, slow_at, slow_scale, slow_sign, along, length, weights, d_at,
    sizes, grams, agreeing, weighed, b, N, rows, cols, side, row_tiles, col_tiles,
    beta1, rest1, beta2, rest2, eps, root, clip, nesterov, ahead, slow_weight, rest3,
    RULE: tl.constexpr, FIRST: tl.constexpr, SECOND: tl.constexpr, SLOW: tl.constexpr, M: tl.constexpr,
    V: tl.constexpr, NESTEROV: tl.constexpr, SIMPLIFIED: tl.constexpr, NORMED: tl.constexpr, ATAN: tl.constexpr,
    GRAMS: tl.constexpr, ORTHO_UNIT: tl.constexpr, BETA2_UNIT: tl.constexpr, P: tl.constexpr, G: tl.constexpr,
    ALIGNED: tl.constexpr, NEEDS_P: tl.constexpr, MASKED: tl.constexpr, SIZE_UNIT: tl.constexpr, GRAM: tl.constexpr,
    FISHER: tl.constexpr, TR: tl.constexpr, TC: tl.constexpr,
):  # fmt: skip
    """Partial sums over the direction u that this step will have; no state is changed.

    SIZE_UNIT: u² of each unit. GRAM 1: u·uᵀ, 2: uᵀ·u, of the tile's sides. MASKED: u counts where it agrees with the
    gradient, and how many do. FISHER: (p/divisor)².
    """
    k, tile, r, c, i, inside = _tile(rows, cols, row_tiles, col_tiles, TR, TC)
    p, g, u, m, v, slow, divisor, d = _element(
        table, m_at, m_scale, m_sign, v_at, v_scale, slow_at, slow_scale, slow_sign, along, length, weights, d_at,
        k, i, inside, b, N, rows, cols, side,
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
    for split in range(splits):
        at = (k * splits + split) * count + u
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
def factor_sums(
    table, m_at, m_scale, m_sign, v_at, v_scale, slow_at, slow_scale, slow_sign, along, length, weights, d_at,
    m_rows, m_cols, v_rows, v_cols, slow_rows, slow_cols, b, N, rows, cols, side, row_tiles, col_tiles,
    beta1, rest1, beta2, rest2, eps, root, clip, nesterov, ahead, slow_weight, rest3,
    RULE: tl.constexpr, FIRST: tl.constexpr, SECOND: tl.constexpr, SLOW: tl.constexpr, M: tl.constexpr,
    V: tl.constexpr, NESTEROV: tl.constexpr, SIMPLIFIED: tl.constexpr, NORMED: tl.constexpr, ATAN: tl.constexpr,
    GRAMS: tl.constexpr, ORTHO_UNIT: tl.constexpr, BETA2_UNIT: tl.constexpr, P: tl.constexpr, G: tl.constexpr,
    ALIGNED: tl.constexpr, NEEDS_P: tl.constexpr, TR: tl.constexpr, TC: tl.constexpr,
):  # fmt: skip
    """Of the moments after this step, seen as `[N/side, side]`, partial sums of |x| in both directions."""
    k, tile, r, c, i, inside = _tile(N // side, side, row_tiles, col_tiles, TR, TC)
    p, g, u, m, v, slow, divisor, d = _element(
        table, m_at, m_scale, m_sign, v_at, v_scale, slow_at, slow_scale, slow_sign, along, length, weights, d_at,
        k, i, inside, b, N, rows, cols, side,
        beta1, rest1, beta2, rest2, eps, root, clip, nesterov, ahead, slow_weight, rest3,
        RULE, FIRST, SECOND, SLOW, M, V, NESTEROV, SIMPLIFIED, NORMED, ATAN, GRAMS, ORTHO_UNIT, BETA2_UNIT, P, G,
        ALIGNED, NEEDS_P,
    )  # fmt: skip
    if FIRST and M == FACTORED:
        m = tl.abs(tl.where(inside, m, 0.0))
        _add_up(m_rows, m, k, tile, r, c, N // side, side, row_tiles, col_tiles, 2)
        _add_up(m_cols, m, k, tile, r, c, N // side, side, row_tiles, col_tiles, 3)
    if SECOND and V == FACTORED:
        v = tl.where(inside, v, 0.0)
        _add_up(v_rows, v, k, tile, r, c, N // side, side, row_tiles, col_tiles, 2)
        _add_up(v_cols, v, k, tile, r, c, N // side, side, row_tiles, col_tiles, 3)
    if SLOW and M == FACTORED:
        slow = tl.abs(tl.where(inside, slow, 0.0))
        _add_up(slow_rows, slow, k, tile, r, c, N // side, side, row_tiles, col_tiles, 2)
        _add_up(slow_cols, slow, k, tile, r, c, N // side, side, row_tiles, col_tiles, 3)
