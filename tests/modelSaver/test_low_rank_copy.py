"""The best low-rank copy against an exact SVD, and the numbers that tell what a matrix holds."""

import math

from modules.modelSaver.low_rank_copy import best_lora, best_lora_of_factors
from modules.module.factored_svd import singular_values

import torch

import pytest

SHAPES = [(20, 30), (30, 20), (24, 24), (8, 4, 3, 3), (64, 4, 3, 3), (16, 12, 1, 1)]


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def product(down: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    return up.double().flatten(1) @ down.double().flatten(1)


@pytest.mark.parametrize("rank", [1, 3, 8, 100])
@pytest.mark.parametrize("shape", SHAPES)
def test_it_is_the_best_one_and_knows_its_error(shape, rank):
    delta = draw(*shape)
    down, up, error = best_lora(delta, rank)
    matrix = delta.double().flatten(1)
    left, sigma, right = torch.linalg.svd(matrix, full_matrices=False)
    kept = min(rank, *matrix.shape)
    assert down.shape == (kept, *shape[1:]) and up.shape == (shape[0], kept, *(1 for _ in shape[2:]))
    assert down.dtype == up.dtype == torch.float32
    best = (left[:, :kept] * sigma[:kept]) @ right[:kept]
    # float32 factors: 2^-24 each, summed over few ranks
    assert (product(down, up) - best).norm() < 1e-6 * matrix.norm()
    expected = math.sqrt(sigma[kept:].square().sum() / sigma.square().sum())
    # the square root of what float64 leaves of 1 - 1
    assert error == pytest.approx(expected, abs=1e-7)


def test_factors_share_the_singular_values():
    down, up, _ = best_lora(draw(20, 30), 5)
    # √σ on each side: equal norms of every rank, as trained LoRAs are rebased and merged with others
    assert torch.allclose(down.norm(dim=1), up.norm(dim=0), rtol=1e-5)  # float32


def test_zero_and_low_rank_and_odd_dtypes():
    down, up, error = best_lora(torch.zeros(4, 6), 2)
    assert not down.any() and not up.any() and error == 0
    exact = draw(20, 2) @ draw(2, 30, seed=1)
    down, up, error = best_lora(exact, 6)
    # nothing is lost but what float32 had rounded, and the empty ranks hold no rounding noise blown up
    assert error < 1e-6 and (product(down, up) - exact.double()).norm() < 1e-6 * exact.norm()
    assert down.norm(dim=1).max() < 20 and torch.isfinite(down).all() and torch.isfinite(up).all()
    half = best_lora(draw(8, 8).half(), 3)
    assert half[0].dtype == torch.float32


@pytest.mark.parametrize("rank", [1, 2, 5])
@pytest.mark.parametrize("shape", SHAPES)
def test_from_factors_as_from_the_whole(shape, rank):
    down, up = draw(4, *shape[1:]), draw(shape[0], 4, *(1 for _ in shape[2:]), seed=1)
    whole = product(down, up).view(shape)
    by_factors, by_whole = best_lora_of_factors(down, up, rank), best_lora(whole, rank)
    # both are the same truncated SVD up to signs, in float32
    assert (product(*by_factors[:2]) - product(*by_whole[:2])).norm() < 1e-5 * whole.norm()
    assert by_factors[2] == pytest.approx(by_whole[2], abs=1e-6)
    assert by_factors[0].shape[0] == min(rank, 4) and by_factors[1].dim() == len(shape)
    expected = torch.linalg.svdvals(whole.flatten(1))[:4]
    assert torch.allclose(singular_values(down, up), expected, rtol=1e-9)  # both are float64


@pytest.mark.parametrize(
    ("delta", "rank"), [(torch.ones(3), 1), (torch.ones(3, 3), 0), (torch.tensor([[math.nan, 1.0]]), 1)]
)
def test_what_makes_no_sense_is_refused(delta, rank):
    with pytest.raises(ValueError, match="expected|NaN"):
        best_lora(delta, rank)
