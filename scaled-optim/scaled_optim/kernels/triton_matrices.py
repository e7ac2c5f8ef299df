"""Kernels for small matrices: the size of scaled steps from Gram matrices, and eigenvalues."""

from scaled_optim.kernels.triton_elements import (
    TINY,
)

import triton
import triton.language as tl


@triton.jit
def spectral_sizes(
    table, grams, sizes, splits, m, wanted, floor, SQUARINGS: tl.constexpr, R: tl.constexpr
):  # fmt: skip
    """wanted/σ₁ of each parameter from partial sums of its direction's Gram matrix, as `scaling.root_of_largest`."""
    k = tl.program_id(0)
    row, col = tl.arange(0, R)[:, None], tl.arange(0, R)[None, :]
    h = tl.zeros((R, R), tl.float32)
    for split in range(splits):
        h += tl.load(grams + (k * splits + split) * R * R + row * R + col)
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
