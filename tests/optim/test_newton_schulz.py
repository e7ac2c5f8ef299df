"""Newton–Schulz in one documented dtype, the same on every device, and what bfloat16 does to small singular values."""

import math

from scaled_optim.batched_optimizer import BatchedOptimizer
from scaled_optim.features.orthogonalization import QUINTIC, cubic_steps, newton_schulz

import torch
from torch import Tensor, nn

import pytest

STEPS = {"quintic": [QUINTIC] * 5, "cubic": cubic_steps(1e-4, 12)}


def gradient(decades: float, rows: int = 128, cols: int = 256) -> tuple[Tensor, Tensor, Tensor]:
    """x = U·S·Vᵀ `[1, rows, cols]` in float64 with singular values that fall over so many decades, U and V."""
    generator = torch.Generator().manual_seed(0)
    u, v = (
        torch.linalg.qr(torch.randn(size, rows, generator=generator, dtype=torch.float64)).Q for size in (rows, cols)
    )
    sizes = 10 ** -torch.linspace(0, decades, rows, dtype=torch.float64)
    return ((u * sizes) @ v.T).unsqueeze(0), u, v


def error(decades: float, steps: str, ns_dtype: str) -> float:
    """Of the lower half of the singular directions, relative to what float64 makes of them."""
    x, u, v = gradient(decades)
    exact, found = newton_schulz(x, STEPS[steps]), newton_schulz(x.float(), STEPS[steps], ns_dtype).double()
    half = slice(len(u) // 2, None)
    seen, true = (u[:, half].T @ y[0] @ v for y in (found, exact))
    return ((seen - true).norm() / true.norm()).item()


@pytest.mark.parametrize("steps", STEPS)
def test_bfloat16_loses_small_singular_values_and_float32_does_not(steps):
    for decades in (0, 2, 4, 6):
        assert error(decades, steps, "float32") <= 1e-3
    assert error(0, steps, "bfloat16") <= 0.05
    assert error(4, steps, "bfloat16") >= 0.1 and error(6, steps, "bfloat16") >= 0.9


class OnGPU(Tensor):
    """Says that it is on a GPU, as do all results with it."""

    is_cuda = property(lambda self: True)


@pytest.mark.parametrize("shape", [(2, 16, 40), (2, 33, 7)], ids=str)
@pytest.mark.parametrize("ns_dtype", ["float32", "bfloat16"])
def test_no_device_has_arithmetic_of_its_own(ns_dtype, shape):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    found = newton_schulz(x.as_subclass(OnGPU), STEPS["quintic"], ns_dtype)
    assert found.is_cuda and not x.is_cuda
    assert torch.equal(found.as_subclass(Tensor), newton_schulz(x, STEPS["quintic"], ns_dtype))


@pytest.mark.parametrize("rule", ["MUON_ADV", "ADAMUON_ADV"])
def test_the_rules_take_it_from_the_option(rule):
    """By default float32: a step is that of float64 to its rounding, times the 3.4445⁵ of the quintic at zero."""
    steps = {}
    for ns_dtype, dtype in ((None, torch.float64), (None, torch.float32), ("bfloat16", torch.float32)):
        p = nn.Parameter(torch.zeros(24, 40, dtype=dtype))
        p.grad = gradient(2, 24, 40)[0][0].to(dtype)
        optimizer = BatchedOptimizer([p], rule, 1.0, **({"ns_dtype": ns_dtype} if ns_dtype else {}))
        for _ in range(2):
            optimizer.step()
        steps[ns_dtype, dtype] = p.detach().double()
    exact = steps[None, torch.float64]
    errors = [((steps[key] - exact).norm() / exact.norm()).item() for key in list(steps)[1:]]
    assert errors[0] <= 485 * 2.0**-23 < 2.0**-9 <= errors[1] <= 0.1
    assert math.isfinite(errors[1])
