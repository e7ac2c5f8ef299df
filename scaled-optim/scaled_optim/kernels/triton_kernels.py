"""Every kernel by its name, and the fused step itself."""

from scaled_optim.kernels.triton_elements import (
    ANCHOR_BLOCK,
    PLAIN,
    SMALLEST_DIVISOR,
    WEIGHED,
    ZONE,
    _at,
    _bits,
    _element,
    _encode,
    _nearest,
    _of_unit,
    _rounded,
)
from scaled_optim.kernels.triton_matrices import eigen, spectral_sizes
from scaled_optim.kernels.triton_sums import direction_sums, factor_sums, gradient_sums, units

import torch

import triton
import triton.language as tl

__all__ = [
    "direction_sums", "distances", "eigen", "factor_sums", "gradient_sums", "spectral_sizes", "step", "units",
]  # fmt: skip
FORMATS = {torch.float32: tl.float32, torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}


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
    table, m_at, m_scale, m_sign, v_at, v_scale, slow_at, slow_scale, slow_sign, along, length, weights, d_at,
    keys, factor, fisher, anchor, anchor_step, out, b, N, rows, cols, side, blocks,
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
        table, m_at, m_scale, m_sign, v_at, v_scale, slow_at, slow_scale, slow_sign, along, length, weights, d_at,
        k, i, inside, b, N, rows, cols, side,
        beta1, rest1, beta2, rest2, eps, root, clip, nesterov, ahead, slow_weight, rest3,
        RULE, FIRST, SECOND, SLOW, M, V, NESTEROV, SIMPLIFIED, NORMED, ATAN, GRAMS, ORTHO_UNIT, BETA2_UNIT, P, G,
        ALIGNED, NEEDS_P,
    )  # fmt: skip
    if MASKED:
        u = u * tl.where(u * g > 0, 1.0, 0.0)
    if FACTOR_UNIT:
        u = u * _of_unit(factor, k, i, inside, rows, cols, FACTOR_UNIT)
    if OUT:
        tl.store(out + k.to(tl.int64) * N + i, u, inside)
    if MOVES:
        key = tl.load(keys + k)
        if FIRST:
            _encode(m_at, m_scale, m_sign, m, key, stream_m, step_hash, k, block, i, inside, N, M, True, BLOCK)
        if SECOND:
            _encode(v_at, v_scale, None, v, key, stream_v, step_hash, k, block, i, inside, N, V, False, BLOCK)
        if SLOW:
            _encode(
                slow_at, slow_scale, slow_sign, slow, key, stream_slow, step_hash, k, block, i, inside, N, M, True,
                BLOCK,
            )  # fmt: skip
        share = 1.0
        # decay that goes through the direction is rounded together with the step
        taken = tl.zeros_like(p)
        if DECAY_D:
            share = d
        if DECAY == PLAIN:
            if DECAY_D:
                taken = plain * d * p
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
                amount = plain * share * _pulled(p, pull, u, CAUTIOUS)
                if DECAY_D:
                    taken = amount
                else:
                    p = p - amount
            if ANCHOR:
                away = _away(p, anchor, anchor_step, k, i, inside, N, ANCHOR)
                pull = away
                if FISHER:
                    pull = away / divisor
                amount = centered * share * _pulled(away, pull, u, CAUTIOUS)
                if DECAY_D:
                    taken = taken + amount
                else:
                    p = p - amount
        if DECAY_D:
            p = p - (rate * d * u + taken)
        else:
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
    """Each parameter's share of Prodigy's two sums, as `ProdigyAdv.measure`, from every so many-th of its numbers."""
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
            g = (g - p * _of_unit(along, k, i, inside, rows, cols, ORTHO_UNIT)) * _of_unit(
                length, k, i, inside, rows, cols, ORTHO_UNIT
            )
        at = k.to(tl.int64) * count + j
        known = tl.load(sums + at, inside, 0.0) * beta3 + g * share.to(tl.float32)
        tl.store(sums + at, known, inside)
        moved += (g * (tl.load(start + at, inside, 0.0) - p)).to(tl.float64)
        total += tl.abs(tl.where(inside, known, 0.0)).to(tl.float64)
    place = tl.load(places + k)
    tl.store(numerators + place, weight * rate * tl.sum(moved))
    tl.store(denominators + place, tl.sum(total))
