"""Scaled steps: T(u) gives every role's step one size, so that the learning rate means the same for every shape.

Axes: b parameters of one role and shape, each seen as a matrix; m the shorter of its sides, n the longer; s probes of a
Krylov space; k its depth.

The largest singular value has two estimators, told apart by shape alone, so that the layout of the state does not
depend on the device:

- up to `GRAM_LIMIT` ranks, from powers of the Gram matrix over the shorter side. There is no start vector, so nothing
  can be missed: the error is bounded for every matrix, at the first step as at any other.
- beyond, a few steps of Golub–Kahan bidiagonalisation from `PROBES` start vectors at once. One of them is the direction
  found at the step before, which serves directions that change slowly; the others stay as they were drawn, which serves
  directions that are new at each step. Four probes cost little more than one, as the matrix is read once for all.
"""

import math
from collections.abc import Mapping
from typing import Any

from scaled_optim.arithmetic import product, root, unit_norm, zero_length
from scaled_optim.noise import uniform_bits
from scaled_optim.roles import ROLES, Role
from scaled_optim.StackStep import Slot, StackStep

import torch
from torch import Tensor

# Of `scale_law`: by what a step does to a coherent direction, as gradients of a training are; or by the variance that
# steps of random signs add to the output.
COHERENT, VARIANCE = LAWS = ("coherent", "variance")
# A LoRA's A starts with a variance of 1/(3·in), so it hands on 1/√3 of what it is given.
LORA_GAIN = math.sqrt(3)
# Of an OFT block's effective weights. Measured: 1/2, by which a turn of one plane is η, has a best rate a fifth higher
# than other methods have.
OFT_NORM = 0.6
# Of the model whose trainings gave the law its numbers: there the width changes nothing.
USUAL_WIDTH = 96.0
# Powers of the model's width, measured: of adapters' steps, and of the weights' own.
ADAPTER_POWER, WEIGHT_POWER = 0.25, 0.5
LORA_ROLES = ("LORA_DOWN", "LORA_UP")
ADAPTER_ROLES = frozenset((*LORA_ROLES, "OFT", "DORA_SCALE"))
# Of a LoRA: the rank at which the law got its numbers, and the measured power of others.
USUAL_RANK, RANK_POWER = 16, 1 / 12
NAME = "spectral"
DIRECTIONS = "directions"
# One thread, ns per element: 0.5, 1.9, 3.1 for the Gram matrix of 16, 64, 128 ranks; 0.2 to 0.25 for each product with
# four vectors, of which the other way needs at least six, and its small operations as much again.
GRAM_LIMIT = 64
PROBES = 4
# Largest relative error of a singular value from its Gram matrix, and of the tiny matrix of a Krylov space
GRAM_TOLERANCE, KRYLOV_TOLERANCE = 0.035, 0.003
# Up to here three steps see what four see beyond: the deeper the matrix, the smaller a part of it a probe overlaps
SHALLOW_LIMIT, SHALLOW_STEPS, DEEP_STEPS = 128, 3, 4
# A Krylov vector shorter than this against the first one is rounding noise: it must not be blown up to length 1.
NOISE = 1e-4


def scaling_slots(options: Mapping[str, Any], role: Role, rows: int, cols: int) -> list[Slot]:
    """What scaled steps remember: start vectors of large matrices."""
    if not options["scaled_optm"] or not (role.matrix or role.name == "INPUT") or min(rows, cols) <= GRAM_LIMIT:
        return []
    return [Slot(NAME, create=lambda p, keys: spectral_state(len(p), rows, cols, keys, dtype=p.dtype))]


def scaled_role(role: str, kernel: bool) -> str:
    """The role by which a step is scaled: a first convolution is no table of embeddings, though both are INPUT."""
    return "HIDDEN" if role == "INPUT" and kernel else role


def scaled(s: StackStep, u: Tensor) -> Tensor:
    """T(u) for a step of a stack, in place. The number `forward_scale`, 1 if there is none, is OFT's."""
    role = scaled_role(s.role.name, s.kernel)
    state = s.store(NAME) if s.has(NAME) else None
    return scaled_step(u, role, state, effective_scale=s.n.get("forward_scale", 1.0), law=s.options["scale_law"])


def spectral_state(
    b: int, rows: int, cols: int, keys: Tensor, *, device: torch.device | None = None, dtype: torch.dtype | None = None
) -> dict[str, Tensor]:
    """Start vectors for `largest_singular_value`, drawn from each parameter's own key.

    Args:
        keys: `[b]` integers, see `noise.uniform_bits`.
        device: of the state; that of the keys if None.
        dtype: that of the directions `u`; float32 if None.

    Returns:
        {"directions": `[b, PROBES, min(rows, cols)]`}, rows of length 1, of which the first is replaced at each step;
        empty for shapes that need none.
    """
    m = min(rows, cols)
    if m <= GRAM_LIMIT:
        return {}
    bits = uniform_bits(keys, PROBES * m).view(b, PROBES, m)
    # from int32 to [-1, 1)
    vectors = bits.to(device=device, dtype=dtype or torch.float32).mul_(2.0**-31)
    return {DIRECTIONS: vectors / unit_norm(vectors, (2,))}


def scaled_step(
    u: Tensor,
    role: str,
    state: dict[str, Tensor] | None = None,
    *,
    effective_scale: float | Tensor = 1.0,
    law: str = COHERENT,
) -> Tensor:
    """T(u), in place: the step is −η·T(u).

    HIDDEN, OUTPUT: u·√(rows/cols)/σ₁(u), RMS→RMS operator norm 1; σ₁ is estimated, which leaves the norm within 5 %, or
    in the first steps of a large matrix with few dominant directions at most 1.2. The others by the law:

    | role | coherent | variance |
    |---|---|---|
    | LORA_DOWN, LORA_UP | √3·√(rows/cols)/σ₁(u), as A starts with 1/√3 | √(rows/cols)/σ₁(u) |
    | OFT | ‖T(u)‖ = 0.6 per block: one plane turns by 1.2·η | ‖T(u)‖ = √(block_size/8) |
    | DORA_SCALE, VECTOR | ‖T(u)‖ = 1 | RMS 1 |

    OFT's in effective weights, that is, divided by `effective_scale`. INPUT: RMS 1 per row, an embedding; rows without
    gradient stay 0. "variance" is the table of OneTrainer's pull request 1344, "coherent" what trainings of one best
    learning rate asked for (docs/results.md).

    A first convolution is to be given as HIDDEN. Directions below the square root of the smallest normal number times
    1000 (1e-16 in float32) shrink toward 0 instead of being scaled up; 0 stays 0 and NaN spreads over its unit.

    Args:
        u: `[b, rows, cols]`, contiguous, float32 or float64. Overwritten.
        role: a key of `ROLES`.
        state: of `spectral_state`, updated in place; may be None where that is empty.
        effective_scale: factor from OFT's weights to its effective weights, above 0, a number or `[b, 1, 1]`.
        law: one of `LAWS`.

    Raises:
        ValueError: OFT rows whose length is no b(b−1)/2.
    """
    rows, cols = u.shape[1:]
    if role in ("OFT", "INPUT"):
        found = unit_norm(u, (2,))
    else:
        found = largest_singular_value(u, state) if ROLES[role].matrix else unit_norm(u, (1, 2))
    return u.mul_(_size(role, rows, cols, found, effective_scale, law))


def step_size(s: StackStep, found: Tensor) -> Tensor:
    """What T(u) multiplies u with, from what was found of it; a fresh tensor, or `found` itself.

    Args:
        found: σ₁ of matrices, the norm of each row of inputs and OFT blocks, or the whole norm; its shape is kept.
    """
    role = scaled_role(s.role.name, s.kernel)
    return _size(role, s.shape[1], s.shape[2], found, s.n.get("forward_scale", 1.0), s.options["scale_law"])


def matrix_size(s: StackStep) -> float:
    """What σ₁ of a matrix is divided into by `step_size`."""
    role = scaled_role(s.role.name, s.kernel)
    return _matrix_size(role, s.shape[1], s.shape[2], s.options["scale_law"])


def _matrix_size(role: str, rows: int, cols: int, law: str) -> float:
    gain = LORA_GAIN if law == COHERENT and role in LORA_ROLES else 1.0
    return math.sqrt(rows / cols) * gain


def _size(role: str, rows: int, cols: int, found: Tensor, effective_scale: float | Tensor, law: str) -> Tensor:
    coherent = law == COHERENT
    if role == "OFT":
        size = block_size(cols)
        wanted = (OFT_NORM if coherent else math.sqrt(size / 8)) / effective_scale
    elif role == "INPUT":
        wanted = math.sqrt(cols)
    elif ROLES[role].matrix:
        wanted = _matrix_size(role, rows, cols, law)
    else:
        wanted = 1.0 if coherent else math.sqrt(rows * cols)
    return wanted / found.clamp_(min=zero_length(found.dtype))


def subspace_gain(dimensions: int, ranks: int, law: str) -> float:
    """What a step inside a subspace of a factor's ranks is multiplied with: (dimensions/ranks)^(1/4), at least 1.

    A step of H = B·A by one factor alone stays in the space of the other, which holds √(ranks/dimensions) of a coherent
    direction. A step of norm 1 moves it by that little; one that moves it by 1 has the inverse for its norm. Trainings
    lie between the two, and this is the geometric mean. 1 by the law "variance".
    """
    return max(1.0, dimensions / ranks) ** 0.25 if law == COHERENT else 1.0


def width_gain(width: float | None, role: str, law: str, adapter: bool = False) -> float:
    """What scaled steps are multiplied with for the width of a model: (width/96)^(1/4), of the weights' own ^(1/2).

    Trainings of one small model in four widths ask for it (docs/results.md): a wider model learns best from steps that
    change its layers more. 1 for embeddings, where no width is known, and by the law "variance".

    Args:
        width: see `description.model_width`.
        role: a name of `ROLES`, or INPUT_MATRIX.
        adapter: whether it is part of an adapter, as LoKr's whole factors are, whose role is that of weights.
    """
    if law != COHERENT or width is None or role == "INPUT":
        return 1.0
    return (width / USUAL_WIDTH) ** (ADAPTER_POWER if adapter or role in ADAPTER_ROLES else WEIGHT_POWER)


def block_size(elements: int) -> int:
    """b of an OFT block from the b(b−1)/2 elements over its diagonal."""
    size = (1 + math.isqrt(1 + 8 * elements)) // 2
    if size < 2 or size * (size - 1) // 2 != elements:
        raise ValueError(f"OFT: found rows of {elements} elements, expected b·(b-1)/2 for a block size b from 2.")
    return size


def largest_singular_value(u: Tensor, state: dict[str, Tensor] | None = None) -> Tensor:
    """σ₁ `[b, 1, 1]` of `u` `[b, rows, cols]`, estimated.

    Up to `GRAM_LIMIT` ranks within 3.5 % for every matrix. Beyond, within 5 % for dense random matrices of any shape,
    and where the leading direction is the last step's; one that no probe overlaps with may be missed at first, see the
    tests for how far.

    Args:
        state: of `spectral_state`, updated in place; may be None where that is empty.
    """
    wide = u if u.shape[1] <= u.shape[2] else u.mT
    if wide.shape[1] <= GRAM_LIMIT:
        return root_of_largest(product(wide, wide.mT))
    return _krylov_singular_value(wide, state[DIRECTIONS])


def root_of_largest(gram: Tensor) -> Tensor:
    """σ₁ `[b, 1, 1]` within 3.5 % from Gram matrices `[b, m, m]`."""
    return _largest_eigenvalue(gram, GRAM_TOLERANCE)[0].sqrt_()


def squarings_for(m: int, tolerance: float = GRAM_TOLERANCE) -> int:
    """How often a matrix `[m, m]` is squared for a relative error of √λ₁, see `_largest_eigenvalue`."""
    spread = math.log((math.sqrt(m) + 1) / 2)
    return max(0, math.ceil(math.log2(spread / (4 * tolerance)))) if m > 1 else 0


def _largest_eigenvalue(gram: Tensor, tolerance: float) -> tuple[Tensor, Tensor]:
    """λ₁ of symmetric positive semi-definite matrices, by squaring them.

    With H = G^p/tr(G^p) and q = tr(H²), the eigenvalues x of H obey Σx = 1 and Σx² = q, so that
    q ≤ x₁ ≤ (1 + √((m−1)(mq−1)))/m: Σx² ≤ x₁·Σx, and for given x₁ and Σx, Σx² is least where all others are equal. The
    upper bound is Wolkowicz and Styan's (1980). Both are exact when all eigenvalues are equal and when only one is not
    zero; in between they differ by at most (√m + 1)/2, of which the geometric mean takes half, and the p-th root makes
    a few percent.

    Args:
        gram: `[b, m, m]`.
        tolerance: largest relative error of √λ₁; gives p.

    Returns:
        (λ₁ `[b, 1, 1]`, H `[b, m, m]`, whose columns lean toward the leading eigenvector)
    """
    m = gram.shape[-1]
    tiny = torch.finfo(gram.dtype).tiny
    squarings = squarings_for(m, tolerance)

    total = _trace(gram)
    power, largest, h = 1, total, gram / total.clamp(min=tiny)
    for index in range(1, squarings + 1):
        h = product(h, h)
        power *= 2
        # three squarings take 1/m to m⁻⁸, which is still a normal number for all m in use
        if index % 3 == 0 or index == squarings:
            total = _trace(h)
            h = h / total.clamp(min=tiny)
            largest = largest * root(total, power)
    low = unit_norm(h, (1, 2)).square_()
    high = ((m - 1) * (m * low - 1).clamp_(min=0)).sqrt_().add_(1).div_(m)
    return largest * root(low * high, 2 * power), h


def _krylov_singular_value(u: Tensor, directions: Tensor) -> Tensor:
    """σ₁ from k steps of Golub–Kahan bidiagonalisation, run from each of the probes; the largest finding counts.

    x₁·U = α₁z₁, z_j·Uᵀ = α_j·x_j + β_j·x_{j+1}, x_j·U = β_{j−1}·z_{j−1} + α_j·z_j. In these bases Uᵀ is a bidiagonal
    matrix M, whose norm is the largest there is on the Krylov space, so it errs downward only. `_dense_share` tells how
    far it does on a dense random matrix; half of that is put on top, so that such matrices and those that are found
    exactly err by the same, in opposite directions.

    Vectors are rows and multiply from the left, which batched products do several times faster than from the right.

    Args:
        u: `[b, m, n]`, m ≤ n; a transposed view will do.
        directions: `[b, s, m]` start vectors of length 1. Afterwards the first is the leading direction found, unless
            that is not a number or there is none.

    Returns:
        `[b, 1, 1]`
    """
    m, n = u.shape[1:]
    steps = SHALLOW_STEPS if m <= SHALLOW_LIMIT else DEEP_STEPS
    tiny = zero_length(u.dtype)
    basis, alphas, betas = [directions], [], []
    z = floor = None
    for _ in range(steps):
        image = product(basis[-1], u)
        if betas:
            image.addcmul_(betas[-1], z, value=-1)
        alphas.append(unit_norm(image, (2,)))
        if floor is None:
            floor = (alphas[0] * NOISE).clamp_(min=tiny)
        z = image.div_(torch.maximum(alphas[-1], floor))
        image = product(z, u.mT).addcmul_(alphas[-1], basis[-1], value=-1)
        betas.append(unit_norm(image, (2,)))
        basis.append(image.div_(torch.maximum(betas[-1], floor)))

    alpha, beta = torch.cat(alphas, 2), torch.cat(betas, 2)
    coupling = beta[..., :-1] * alpha[..., 1:]
    gram = torch.diag_embed(alpha.square() + beta.square())
    gram = gram + torch.diag_embed(coupling, 1) + torch.diag_embed(coupling, -1)
    eigenvalue, h = _largest_eigenvalue(gram.flatten(0, 1), KRYLOV_TOLERANCE)
    found, best = eigenvalue.sqrt_().view(-1, PROBES, 1).max(dim=1, keepdim=True)

    # the leading vector in the basis z is a column of H; one more product with M, and it is one of the basis x
    lead = h[..., 0].view(alpha.shape)
    weights = torch.nn.functional.pad(alpha * lead, (0, 1)) + torch.nn.functional.pad(beta * lead, (1, 0))
    vectors = sum(weights[..., j : j + 1] * x for j, x in enumerate(basis))
    vector = vectors.gather(1, best.expand(-1, 1, m))
    length = unit_norm(vector, (2,))
    usable = (length > tiny) & torch.isfinite(length)
    directions[:, :1].copy_(torch.where(usable, vector / length, directions[:, :1]))
    return found / math.sqrt(_dense_share(m, n, steps))


def _dense_share(m: int, n: int, steps: int) -> float:
    """The part of σ₁ that k steps find in a large Gaussian matrix.

    There α_j → √n and β_j → √m, so M·Mᵀ is tridiagonal with n + m and √(mn), and its largest eigenvalue is
    n + m + 2√(mn)·cos(π/(k+1)) instead of (√n + √m)².
    """
    return math.sqrt(m + n + 2 * math.sqrt(m * n) * math.cos(math.pi / (steps + 1))) / (math.sqrt(m) + math.sqrt(n))


def _trace(x: Tensor) -> Tensor:
    return x.diagonal(dim1=1, dim2=2).sum(1)[:, None, None]


def rank_gain(role: str, rows: int, cols: int, law: str) -> float:
    """What scaled steps of a LoRA's factors are multiplied with for its rank: (rank/16)^(1/12).

    Trainings of ranks 1 to 128 on three tasks ask for it (docs/results.md). A step of one rank moves all inputs along
    one direction; of many ranks it moves them apart, and each less. 1 for other roles, and by the law "variance".

    Args:
        role: a name of `ROLES`.
        rows, cols: of the factor, seen as a matrix.
    """
    if law != COHERENT or role not in LORA_ROLES:
        return 1.0
    return ((rows if role == LORA_ROLES[0] else cols) / USUAL_RANK) ** RANK_POWER
