"""Stochastic rounding to bfloat16: unbiased, between neighbours, exact where it can be."""

from scaled_optim.noise import uniform_bits
from scaled_optim.rounding import round_to_bfloat16

import torch
from torch import Tensor

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

FLOATS = st.floats(width=32, allow_nan=False, allow_infinity=False, min_value=-(2.0**127), max_value=2.0**127)
ALL_NOISE = torch.arange(1 << 16, dtype=torch.int32)


def from_bits(*bits: int) -> Tensor:
    return torch.tensor([b - (b >> 31 << 32) for b in bits], dtype=torch.int32).view(torch.float32)


@settings(deadline=None, max_examples=40)
@given(FLOATS)
def test_mean_over_all_noise_is_the_value(value):
    """Every noise once, so no tolerance for chance: exact in float64 but for the sum's own rounding."""
    x = torch.full((1 << 16,), value)
    rounded = round_to_bfloat16(x, ALL_NOISE).double()
    lower, upper = rounded.min().item(), rounded.max().item()
    assert lower <= x[0].item() <= upper
    assert rounded.mean().item() == pytest.approx(x[0].item(), rel=1e-12, abs=1e-300)
    # neighbours: nothing lies between them, so bfloat16's own rounding of the value is one of the two
    assert len(rounded.unique()) <= 2 and x[0].bfloat16().double().item() in (lower, upper)


def test_mean_of_many_draws_is_the_value():
    """The law of large numbers, with our own bits: five standard deviations of the mean."""
    x = torch.linspace(-3, 3, 64)
    draws = uniform_bits(torch.arange(1, 4097, dtype=torch.int32) * 7919, 64)
    rounded = round_to_bfloat16(x.expand(4096, 64).contiguous(), draws).double()
    error = (rounded.mean(0) - x).abs()
    # one draw deviates by half the gap at most, and the gap is at most 2⁻⁷ of the value
    assert (error <= 5 * x.abs() * 2**-8 / 4096**0.5).all()
    assert (rounded.std(0) > 0).sum() > 50, "nearest rounding would pass the above for some values only"


@settings(deadline=None, max_examples=100)
@given(st.integers(0, 0xFFFF), st.integers(-(2**31), 2**31 - 1))
def test_what_bfloat16_can_hold_stays(high, bits):
    x = from_bits(high << 16)
    rounded = round_to_bfloat16(x, torch.tensor([bits], dtype=torch.int32)).float()
    assert torch.equal(rounded.view(torch.int32), x.view(torch.int32)) or (x.isnan() & rounded.isnan()).all()


@pytest.mark.parametrize("count", [1, 3, 64])
@pytest.mark.parametrize("pattern", [0x7FC00000, 0xFFC00000, 0x7FFFFFFF, 0xFFFFFFFF, 0x7F800001, 0xFF80FFFF])
def test_nan_survives(pattern, count):
    """0x7FFFFFFF is CUDA's; added to, it overflows."""
    for bits in (0, 1, 0xFFFF, -1):
        x = from_bits(pattern).expand(count).contiguous()
        assert round_to_bfloat16(x, torch.full((count,), bits, dtype=torch.int32)).isnan().all()


def test_infinities_and_the_largest_finite_number_survive():
    largest = torch.finfo(torch.bfloat16).max
    x = torch.tensor([torch.inf, -torch.inf, largest, -largest, 0.0, -0.0])
    for bits in (0, 0xFFFF, -1):
        assert torch.equal(round_to_bfloat16(x, torch.full((6,), bits, dtype=torch.int32)).float(), x)


def test_small_updates_add_up():
    """Why it exists: 1000 updates of 2⁻¹² each are lost one by one at 1 in bfloat16, where the gap is 2⁻⁷."""
    x = torch.ones(512)
    for step in range(1000):
        x = round_to_bfloat16(x + 2**-12, uniform_bits(torch.tensor([step * 7919]), 512)[0]).float()
    # each step's deviation is below √(2⁻¹²·2⁻⁷); means of 512 elements after 1000 steps, five standard deviations
    assert x.mean().item() == pytest.approx(1 + 1000 * 2**-12, abs=5 * (1000 * 2**-19 / 512) ** 0.5)
    assert torch.equal((torch.ones(1).bfloat16() + 2**-12), torch.ones(1).bfloat16())


def test_arguments_are_not_changed():
    x, bits = torch.randn(100), torch.arange(100, dtype=torch.int32) * 99991
    kept = x.clone(), bits.clone()
    round_to_bfloat16(x, bits)
    assert torch.equal(x, kept[0]) and torch.equal(bits, kept[1])
