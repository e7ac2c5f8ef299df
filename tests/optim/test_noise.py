"""The counter-based noise: bits as an independent reference has them, good statistics, no dependence on batching.

Draws are fixed, so a statistical test passes always or never; limits are five standard deviations, which sound noise
exceeds once in a million tests.
"""

from scaled_optim.noise import LANES, base_key, parameter_key, step_keys, uniform_bits

import torch
from torch import Tensor

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

WORD = 0xFFFFFFFF
INT32 = st.integers(-(2**31), 2**31 - 1)


def keys_of(*indices: int, step: int = 1, seed: int = 0) -> Tensor:
    return torch.tensor([parameter_key(seed, step, index, 0) for index in indices], dtype=torch.int32)


def mix(x: int) -> int:
    """The finaliser, written again on Python's integers."""
    x &= WORD
    x = ((x ^ (x >> 16)) * 0x7FEB352D) & WORD
    x = ((x ^ (x >> 15)) * 0x846CA68B) & WORD
    return x ^ (x >> 16)


def arithmetic_shift(x: int, places: int) -> int:
    return ((x - (x >> 31 << 32)) >> places) & WORD


def reference_bits(key: int, i: int) -> int:
    block, lane = divmod(i, 1 << 14)
    key = mix(key + block * 0x9E3779B9) if block else key & WORD
    x = mix((lane + 1) * 0x9E3779B9) * ((key * 0x3C6EF372 & WORD) | 1) + key & WORD
    x = (x + arithmetic_shift(x, 15)) * 0x846CA68B & WORD
    return x + arithmetic_shift(x, 16) & WORD


def assert_independent(x: Tensor, y: Tensor) -> None:
    """Every bit of x against every bit of y: of n pairs, half agree, with standard deviation √n/2."""
    planes = torch.arange(32, dtype=torch.int32)
    a, b = (((z.unsqueeze(1) >> planes) & 1).float() * 2 - 1 for z in (x, y))
    correlation = a.T @ b / len(x) ** 0.5
    assert correlation.abs().max() < 5.5, "1024 pairs of bits, so five and a half standard deviations"


@settings(deadline=None, max_examples=30)
@given(INT32, st.integers(0, 3 * LANES))
def test_bits_are_those_of_the_reference(key, i):
    """Which also shows that integers wrap here."""
    bits = uniform_bits(torch.tensor([key], dtype=torch.int32), i + 1)
    assert bits[0, i].item() & WORD == reference_bits(key, i)


@settings(deadline=None, max_examples=50)
@given(st.integers(-(2**70), 2**70), st.integers(0, 2**32 - 1), st.integers(0, 10**6), st.integers(0, 20))
def test_keys_on_the_device_equal_those_on_the_host(seed, step, index, slot):
    base = torch.tensor([base_key(seed, index, slot)] * 2, dtype=torch.int32)
    expected = [parameter_key(seed, step, index, slot)] * 2
    assert step_keys(base, step).tolist() == expected
    assert step_keys(base, torch.tensor(step)).tolist() == expected


@pytest.mark.parametrize("count", [0, 1, 7, 1000, LANES - 1, LANES, LANES + 1, 2 * LANES, 3 * LANES + 5])
def test_an_element_depends_neither_on_count_nor_on_its_stack(count):
    keys = keys_of(3, 4, 5)
    stack = uniform_bits(keys, count)
    assert stack.shape == (3, count) and stack.dtype == torch.int32
    long = uniform_bits(keys, 4 * LANES)
    assert torch.equal(stack, long[:, :count])
    for i in range(3):
        assert torch.equal(stack[i : i + 1], uniform_bits(keys[i : i + 1], count))
    assert torch.equal(stack, uniform_bits(keys.long(), count))


def test_the_caller_owns_the_bits():
    keys = keys_of(0)
    first = uniform_bits(keys, 100).clone()
    uniform_bits(keys, 100).zero_()
    assert torch.equal(uniform_bits(keys, 100), first)


@pytest.mark.parametrize("key", [0, 1, -1, 12345])
def test_all_bytes_are_equally_frequent(key):
    """Chi-square with 255 degrees of freedom, standard deviation √510; for poor keys, too."""
    bits = uniform_bits(torch.tensor([key], dtype=torch.int32), 1 << 18)
    for byte in bits.view(torch.uint8).view(-1, 4).T:
        counts = torch.bincount(byte.int(), minlength=256).double()
        expected = len(byte) / 256
        chi_square = ((counts - expected).square() / expected).sum().item()
        assert abs(chi_square - 255) < 5 * 510**0.5


def test_neighbouring_elements_are_independent():
    bits = uniform_bits(keys_of(0), LANES + (1 << 12))[0]
    for distance in (1, 2, 16, 128):
        assert_independent(bits[:-distance], bits[distance:])
    # the same lane of neighbouring blocks
    bits = uniform_bits(keys_of(1), 2 * LANES)[0]
    assert_independent(bits[:LANES], bits[LANES:])


def test_neighbouring_parameters_steps_seeds_and_slots_are_independent():
    draws = [
        parameter_key(seed, step, index, slot)
        for seed, step, index, slot in [(0, 1, 0, 0), (1, 1, 0, 0), (0, 2, 0, 0), (0, 1, 1, 0), (0, 1, 0, 1)]
    ]
    bits = uniform_bits(torch.tensor(draws, dtype=torch.int32), LANES)
    for i in range(len(draws)):
        for j in range(i):
            assert_independent(bits[i], bits[j])


def test_one_element_over_the_steps_and_over_parameters_is_uniform():
    """What accumulates over a run: the noise of one element at many steps."""
    base = torch.tensor([base_key(0, index, 0) for index in range(4)], dtype=torch.int32)
    over_steps = torch.stack([uniform_bits(step_keys(base, step), 3) for step in range(2048)])
    for column in over_steps.flatten(1).T:
        mean = (column.double() / 2**32).mean().item()
        assert abs(mean) < 5 * (1 / 12 / 2048) ** 0.5
        assert_independent(column[:-1], column[1:])


@pytest.mark.parametrize("bit", range(0, 32, 5))
def test_a_bit_of_a_base_key_changes_half_of_the_bits(bit):
    """With 64 keys. Under one key a bit's flips are not independent of each other, so the limits are wide ones."""
    base = torch.tensor([base_key(0, index, 0) for index in range(64)], dtype=torch.int32)
    changed = uniform_bits(step_keys(base, 1), 256) ^ uniform_bits(step_keys(base ^ (1 << bit), 1), 256)
    flips = ((changed.flatten().unsqueeze(1) >> torch.arange(32, dtype=torch.int32)) & 1).double().mean(0)
    assert flips.min() > 0.4 and flips.max() < 0.6


def test_equal_keys_are_rare():
    """10⁵ hashes of 32 bits have 1.2 equal pairs on average; more than 8 are as rare as 5 standard deviations."""
    keys = {parameter_key(0, step, index, slot) for step in range(10) for index in range(5000) for slot in range(2)}
    assert len(keys) >= 100_000 - 8


if torch.cuda.is_available():  # waits and other kernels are seen on a GPU only

    def test_bits_are_the_same_on_a_gpu():
        keys = keys_of(0, 1, 2)
        assert torch.equal(uniform_bits(keys.cuda(), 2 * LANES + 3).cpu(), uniform_bits(keys, 2 * LANES + 3))
