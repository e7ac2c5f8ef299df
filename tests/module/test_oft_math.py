"""From trained numbers to rotations, against formulas written out by loops and in float64."""

from modules.module.block_rotation import rotate
from modules.module.oft_math import (
    block_size_of,
    cayley,
    nearest_block_size,
    neumann_series,
    rotations,
    scale_of,
    skew,
    triangle_size,
    upper,
)
from modules.util.enum.OFTScaleMode import OFTScaleMode

import torch
from torch import Tensor

import pytest
from hypothesis import given
from hypothesis import strategies as st

SIZES = [2, 3, 5, 16, 33]


def numbers_of(blocks: int, size: int, spread: float) -> Tensor:
    generator = torch.Generator().manual_seed(size)
    return torch.randn(blocks, triangle_size(size), generator=generator) * spread


def looped_skew(numbers: Tensor, size: int) -> Tensor:
    """float64, number by number, row by row of the upper triangle."""
    q = torch.zeros(len(numbers), size, size, dtype=torch.float64)
    for block, own in enumerate(numbers.tolist()):
        values = iter(own)
        for row in range(size):
            for column in range(row + 1, size):
                q[block, row, column] = value = next(values)
                q[block, column, row] = -value
    return q


def test_numbers_fill_the_upper_triangle_row_by_row():
    assert torch.equal(skew(torch.tensor([[1.0, 2.0, 3.0]]), 3), torch.tensor([[[0.0, 1, 2], [-1, 0, 3], [-2, -3, 0]]]))
    for size in SIZES:
        numbers = numbers_of(4, size, 1)
        assert torch.equal(skew(numbers, size).double(), looped_skew(numbers, size))
        assert torch.equal(upper(skew(numbers, size)), numbers)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("spread", [1e-3, 0.02, 1.0, 30.0])
def test_cayley_is_exact_and_orthogonal(size, spread):
    numbers = numbers_of(7, size, spread)
    q = looped_skew(numbers, size)
    identity = torch.eye(size, dtype=torch.float64)
    expected = (identity + q) @ torch.linalg.inv(identity - q)
    found = cayley(skew(numbers, size)).double()
    # float32 has 6e-8; solving multiplies it by the condition of I − Q, at most √(1 + ‖Q‖²)
    tolerance = 1e-6 * (1 + torch.linalg.matrix_norm(q, 2).max().item())
    assert (found - expected).abs().max() < tolerance
    assert (found @ found.transpose(1, 2) - identity).abs().max() < 2 * tolerance


def test_both_ways_to_the_inverse_are_taken(monkeypatch):
    calls = []
    original = torch.linalg.inv_ex
    monkeypatch.setattr(torch.linalg, "inv_ex", lambda *a: calls.append(1) or original(*a))
    for spread, expected in ((1e-3, 0), (0.02, 0), (1.0, 1), (float("nan"), 1)):
        calls.clear()
        found = cayley(skew(numbers_of(7, 16, 1) * spread, 16))
        assert len(calls) == expected and found.isfinite().all() == (spread == spread)


def test_zero_gives_the_identity_to_the_bit():
    for function in (cayley, neumann_series):
        assert torch.equal(function(torch.zeros(3, 6, 6)), torch.eye(6).expand(3, -1, -1))


def test_values_of_a_plane():
    t = 0.3
    q = torch.tensor([[[0, t], [-t, 0]]])
    exact = torch.tensor([[1 - t * t, 2 * t], [-2 * t, 1 - t * t]]) / (1 + t * t)
    # Q² = −t²: 1 + 2Q + 2Q² + 2Q³ + Q⁴
    series = torch.tensor([[1 - 2 * t**2 + t**4, 2 * t - 2 * t**3], [2 * t**3 - 2 * t, 1 - 2 * t**2 + t**4]])
    # rounding of float32 numbers of about 1
    assert torch.allclose(cayley(q)[0], exact, atol=2e-7)
    assert torch.allclose(neumann_series(q)[0], series, atol=2e-7)
    assert (exact - series).abs().max() > t**4 / 2


@pytest.mark.parametrize("neumann", [False, True])
@pytest.mark.parametrize("size", [2, 5, 16])
def test_gradients_equal_float64_autograd(neumann, size):
    numbers = numbers_of(6, size, 0.1).requires_grad_()
    grad = torch.randn(6, size, size)
    rotations([numbers], [0.7], size, neumann)[0].backward(grad)

    wide = numbers.detach().double().requires_grad_()
    q = torch.zeros(6, size, size, dtype=torch.float64)
    rows, columns = torch.triu_indices(size, size, 1)
    q = q.index_put((torch.arange(6)[:, None], rows, columns), 0.7 * wide)
    q = q - q.transpose(1, 2)
    identity = torch.eye(size, dtype=torch.float64)
    if neumann:
        reference = identity + 2 * q + 2 * q @ q + 2 * q @ q @ q + q @ q @ q @ q
    else:
        reference = torch.linalg.solve(identity - q, identity + q)  # the factors commute
    reference.backward(grad.double())
    # sums of at most 16² products in float32
    assert (numbers.grad - wide.grad).abs().max() < 3e-6 * wide.grad.abs().max()


def test_all_layers_at_once_equal_one_by_one():
    weights = [numbers_of(blocks, 8, 0.1).requires_grad_() for blocks in (3, 1, 5)]
    scales = [1.0, 0.5, 0.25]
    grads = [torch.randn(len(weight), 8, 8) for weight in weights]
    together = rotations(weights, scales, 8)
    torch.autograd.backward(together, grads)
    for weight, scale, grad, rotation in zip(weights, scales, grads, together, strict=True):
        alone = weight.detach().requires_grad_()
        own = rotations([alone], [scale], 8)[0]
        own.backward(grad)
        # the number of factors of the inverse depends on the largest block: rounding
        assert torch.allclose(rotation, own, atol=5e-7)
        assert torch.allclose(weight.grad, alone.grad, atol=1e-6)


def test_the_graph_may_be_walked_layer_by_layer_and_again():
    weights = [numbers_of(2, 4, 0.1).requires_grad_() for _ in range(3)]
    weights[2].requires_grad_(False)
    one, other, _ = rotations(weights, [1.0, 2.0, 1.0], 4)
    one.sum().backward()
    first = weights[0].grad.clone()
    assert first.any() and weights[1].grad is None
    other.sum().backward()
    one.sum().backward()
    assert torch.equal(weights[0].grad, 2 * first) and weights[1].grad.any() and weights[2].grad is None


def test_half_precision_numbers_are_rotated_in_float32_even_under_autocast():
    numbers = numbers_of(3, 8, 0.1).bfloat16().requires_grad_()
    plain = rotations([numbers], [1.0], 8)[0]
    with torch.autocast("cpu", torch.bfloat16):
        found = rotations([numbers], [1.0], 8)[0]
        found.sum().backward()
    assert found.dtype == torch.float32 and torch.equal(found, plain) and numbers.grad.dtype == torch.bfloat16


def test_dropout_leaves_whole_blocks_out():
    numbers = numbers_of(4000, 3, 0.1).requires_grad_()
    torch.manual_seed(3)
    found = rotations([numbers], [1.0], 3, dropout=0.3)[0]
    dropped = (found == torch.eye(3)).flatten(1).all(1)
    # four standard deviations of 4,000 draws
    assert abs(dropped.float().mean() - 0.3) < 4 * (0.21 / 4000) ** 0.5
    assert torch.equal(found[~dropped], rotations([numbers], [1.0], 3)[0][~dropped])
    found.backward(torch.randn_like(found))
    assert torch.equal(~numbers.grad.any(1), dropped)
    torch.manual_seed(3)
    assert torch.equal(rotations([numbers], [1.0], 3, dropout=0.3)[0], found)


@given(asked=st.integers(2, 200), dimension=st.integers(2, 400))
def test_the_nearest_divisor(asked, dimension):
    found = nearest_block_size(asked, dimension)
    assert found >= 2 and dimension % found == 0
    for other in range(2, dimension + 1):
        if dimension % other == 0:
            assert abs(other - asked) >= abs(found - asked) and not (
                other < found and abs(other - asked) == abs(found - asked)
            )


def test_block_sizes():
    assert nearest_block_size(32, 320) == 32 and nearest_block_size(32, 200) == 25
    assert nearest_block_size(5, 24) == 4  # 4 and 6 are equally near
    assert nearest_block_size(8, 37) == 37  # a prime: one block
    assert nearest_block_size(64, 4) == 4
    for size in range(2, 300):
        assert block_size_of(triangle_size(size)) == size
    assert block_size_of(5) is None and block_size_of(0) is None


@pytest.mark.parametrize("size", [4, 8, 32])
def test_output_variance_of_a_sign_step(size):
    """x·R − x for inputs of unit variance, after one sign step of η: ROW η², ELEMENTS 8η²/b."""
    eta = 1e-3
    step = eta * torch.sign(numbers_of(2, size, 1))
    x = torch.randn(20000, 2 * size)
    for mode, expected in ((OFTScaleMode.ROW, 1.0), (OFTScaleMode.ELEMENTS, 8 / size)):
        turned = rotate(x, rotations([step], [scale_of(size, mode)], size)[0], -1)
        # 2 % are three standard errors of 160,000 squares; float32 of x is 1e-7 against 1e-3
        assert abs((turned - x).square().mean().item() / (expected * eta**2) - 1) < 0.02
    assert scale_of(size, None) == 1
