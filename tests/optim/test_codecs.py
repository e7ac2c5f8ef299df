"""The codec contract: zeros, error bounds, unbiased rounding, no dependence on the stack, files, sizes."""

import io
import math

from scaled_optim.codecs import BLOCK, CODECS, near_square, pack_bits, unpack_bits
from scaled_optim.noise import base_key, step_keys

import torch
from torch import Tensor

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

# one element; shorter than a block; full blocks; full and a last one; a prime number of elements
SHAPES = [(2, 1, 1), (3, 4, 6), (2, 16, 128), (3, 16, 200), (2, 1, 1031)]
BOTH = [True, False]


def keys_of(count: int, step: int = 1) -> Tensor:
    return step_keys(torch.tensor([base_key(0, i, 0) for i in range(count)], dtype=torch.int32), step)


def values(shape: tuple[int, ...], signed: bool, decades: float = 0.0) -> Tensor:
    """Gaussian numbers, times powers of ten spread evenly over some decades; squared where there is no sign."""
    generator = torch.Generator().manual_seed(len(shape) + shape[-1])
    x = torch.randn(shape, generator=generator) * 1e-4
    x = x * 10 ** (-decades * torch.rand(shape, generator=generator))
    return x if signed else x.square()


def spread(shape: tuple[int, ...], decades: float) -> Tensor:
    """Second moments between 1e-8 and so many decades below; evenly, so that none is nearly 0."""
    return 1e-8 * 10 ** (-decades * torch.rand(shape, generator=torch.Generator().manual_seed(0)))


def round_trip(name: str, x: Tensor, signed: bool, keys: Tensor | None = None) -> Tensor:
    codec = CODECS[name]
    store = codec.create(x.shape, "cpu", signed)
    codec.encode(store, x, keys)
    return codec.decode(store)


@pytest.mark.parametrize("signed", BOTH)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", CODECS)
class TestContract:
    def test_zeros(self, name, shape, signed):
        codec, zeros = CODECS[name], torch.zeros(shape)
        store = codec.create(shape, "cpu", signed)
        assert torch.equal(codec.decode(store), zeros)
        codec.encode(store, torch.ones(shape), keys_of(shape[0]))
        assert not torch.equal(codec.decode(store), zeros)
        codec.encode(store, zeros, keys_of(shape[0]))
        assert torch.equal(codec.decode(store), zeros)

    def test_stack_equals_one_by_one(self, name, shape, signed):
        codec, x, keys = CODECS[name], values(shape, signed, 3), keys_of(shape[0])
        stack = codec.create(shape, "cpu", signed)
        codec.encode(stack, x, keys)
        decoded = codec.decode(stack)
        for i in range(shape[0]):
            one = codec.create((1, *shape[1:]), "cpu", signed)
            codec.encode(one, x[i : i + 1], keys[i : i + 1])
            assert one.keys() == stack.keys()
            for key in one:
                assert torch.equal(one[key], stack[key][i : i + 1]), key
            assert torch.equal(codec.decode(one), decoded[i : i + 1])

    def test_encodes_into_a_slice_and_leaves_the_value(self, name, shape, signed):
        codec, x = CODECS[name], values(shape, signed)
        kept, store = x.clone(), codec.create((shape[0] + 2, *shape[1:]), "cpu", signed)
        part = {key: tensor[1:-1] for key, tensor in store.items()}
        codec.encode(part, x, keys_of(shape[0]))
        assert torch.equal(x, kept)
        x.zero_()
        decoded = codec.decode(store)
        assert torch.equal(decoded[1:-1], round_trip(name, kept, signed, keys_of(shape[0])))
        assert not decoded[0].any() and not decoded[-1].any()

    def test_file_and_size(self, name, shape, signed):
        codec, x, file = CODECS[name], values(shape, signed), io.BytesIO()
        store = codec.create(shape, "cpu", signed)
        codec.encode(store, x, keys_of(shape[0]))
        assert sum(tensor.nbytes for tensor in store.values()) == shape[0] * codec.state_bytes(*shape[1:], signed)
        assert all(len(tensor) == shape[0] for tensor in store.values())
        torch.save(store, file)
        file.seek(0)
        loaded = torch.load(file, weights_only=True)
        assert {key: tensor.dtype for key, tensor in loaded.items()} == {key: t.dtype for key, t in store.items()}
        assert torch.equal(codec.decode(loaded), codec.decode(store))

    def test_float64(self, name, shape, signed):
        codec, x = CODECS[name], values(shape, signed).double()
        store = codec.create(shape, "cpu", signed, torch.float64)
        codec.encode(store, x, keys_of(shape[0]))
        decoded = codec.decode(store, torch.float64)
        assert decoded.dtype == torch.float64 and decoded.shape == x.shape
        assert name != "fp32" or torch.equal(decoded, x)


# largest relative error; the fp16 root's doubles by squaring, and its scale costs nothing
@pytest.mark.parametrize(
    "name, signed, decades, bound",
    [
        ("fp32", True, 12, 0.0),
        ("bf16_sr", True, 12, 2**-7),
        ("bf16_sr", False, 12, 2**-7),
        ("fp16", True, 3, 2**-11 * 1.01),
        ("fp16", False, 4, 2**-10 * 1.01),
        ("int8_sr", False, 6, 2**-3),
    ],
)
def test_relative_error(name, signed, decades, bound):
    x = values((4, 16, 200), True, decades) if signed else spread((4, 16, 200), decades)
    error = (round_trip(name, x, signed, keys_of(4)) / x - 1).abs()
    assert error.max() <= bound
    assert bound == 0 or error.max() > bound / 3, "the bound is of the right size"


def test_signed_int8_error_is_below_one_step():
    x = values((3, 16, 200), True)
    steps = torch.cat([block.abs().amax(1, keepdim=True).expand_as(block) for block in x.flatten(1).split(BLOCK, 1)], 1)
    error = (round_trip("int8_sr", x, True, keys_of(3)) - x).abs().flatten(1)
    # the scale is rounded up by 2⁻⁷ at most
    assert (error < steps / 127 * (1 + 2**-7)).all()
    nearest = (round_trip("int8_sr", x, True) - x).abs().flatten(1)
    assert (nearest <= steps / 127 * (1 + 2**-7) / 2 * (1 + 2**-10)).all()


@pytest.mark.parametrize("name, signed", [("bf16_sr", True), ("int8_sr", True), ("bf16_sr", False), ("int8_sr", False)])
def test_stochastic_rounding_is_unbiased(name, signed):
    """Mean of 1024 draws, five and a half standard deviations of it (600 elements); one draw's is ≤ gap/2."""
    x = values((2, 4, 75), signed) if signed else spread((2, 4, 75), 6)
    total = torch.zeros(x.shape, dtype=torch.float64)
    low, high = torch.full_like(x, math.inf), torch.full_like(x, -math.inf)
    codec, store = CODECS[name], CODECS[name].create(x.shape, "cpu", signed)
    for step in range(1024):
        codec.encode(store, x, keys_of(2, step))
        decoded = codec.decode(store)
        total += decoded
        low, high = torch.minimum(low, decoded), torch.maximum(high, decoded)
    # a value next to one neighbour may never have gone to the other
    assert (low <= x).float().mean() > 0.97 and (high >= x).float().mean() > 0.97
    if name == "bf16_sr":
        gap = x.abs() * 2**-7
    else:
        gap = x.abs().amax((1, 2), keepdim=True) / 126 if signed else x / 8
    assert ((total / 1024 - x).abs() <= 5.5 * gap / 2 / 1024**0.5).all()


@settings(deadline=None, max_examples=50)
@given(st.floats(2.0**-90, 2.0**100), st.integers(1, 40), st.integers(-(2**31), 2**31 - 1))
def test_no_second_moment_makes_a_step_explode(largest, decades, key):
    """int8: steps are divided by √v, which is at most 6.1 % too small, and 0 only where v is."""
    v = largest * 10 ** -torch.linspace(0, decades, 2000).double()
    v = v.float().clamp(min=2.0**-126).view(1, 1, 2000)
    v[..., ::7] = 0
    decoded = round_trip("int8_sr", v, False, torch.tensor([key], dtype=torch.int32))
    assert torch.equal(decoded == 0, v == 0)
    positive = v > 0
    assert ((v / decoded).sqrt()[positive] <= (9 / 8) ** 0.5 * (1 + 1e-6)).all()
    # and too large only where it is 2⁻²⁸ of the largest in its block
    assert (decoded <= v * (9 / 8) * (1 + 1e-6))[v > largest * 2.0**-28].all()


def test_a_long_average_in_int8_keeps_near_the_exact_one():
    """β₂ = 0.999 after 2000 steps. Var(log v) ≈ gap/2·E|g²/v − 1| ≈ 0.09/2·0.97, so √v is off by 0.11 rms."""
    generator = torch.Generator().manual_seed(0)
    codec, shape = CODECS["int8_sr"], (1, 16, 64)
    size = 10 ** (-3 * torch.rand(shape, generator=generator))
    store, exact = codec.create(shape, "cpu", False), torch.zeros(shape)
    for step in range(2000):
        square = (torch.randn(shape, generator=generator) * size).square_()
        exact.lerp_(square, 0.001)
        codec.encode(store, codec.decode(store).lerp_(square, 0.001), keys_of(1, step))
    ratio = codec.decode(store) / exact
    assert ratio.mean().item() == pytest.approx(1, abs=0.035), "unbiased; 0.2/√1024 is one standard deviation"
    assert ratio.sqrt().log().square().mean().sqrt() < 0.15


@pytest.mark.parametrize("name", ["fp16", "int8_sr"])
@pytest.mark.parametrize("signed", BOTH)
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_what_is_not_finite_shows(name, signed, bad):
    x = values((2, 16, 100), signed)
    x[0, 3, 4] = bad
    decoded = round_trip(name, x, signed, keys_of(2))
    assert not decoded[0, 3, 4].isfinite() and decoded[1].isfinite().all()


@pytest.mark.parametrize("size", [1e-25, 1e-8, 1e8, 1e30])
@pytest.mark.parametrize("signed", BOTH)
def test_fp16_neither_vanishes_nor_overflows(signed, size):
    x = torch.tensor([1.0, 0.1, 1e-3]).mul(size).view(1, 1, 3)
    torch.testing.assert_close(round_trip("fp16", x, signed), x, rtol=2**-10, atol=0.0)


@pytest.mark.parametrize("shape", SHAPES)
def test_factors_keep_sums_and_signs(shape):
    x = values(shape, True)
    decoded = round_trip("factored", x, True)
    assert torch.equal(decoded.sign(), x.sign())
    n, m = near_square(shape[1] * shape[2])
    seen, expected = (t.abs().double().view(shape[0], n, m) for t in (decoded, x))
    # float32 sums of up to n terms
    for dim in (1, 2):
        torch.testing.assert_close(seen.sum(dim), expected.sum(dim), rtol=1e-5, atol=0.0)


@settings(deadline=None, max_examples=50)
@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 2**31))
def test_a_rank_one_moment_is_kept(n, m, seed):
    generator = torch.Generator().manual_seed(seed)
    n, m = near_square(n * m)
    x = torch.rand(1, n, 1, generator=generator) @ torch.rand(1, 1, m, generator=generator) + 0.0
    torch.testing.assert_close(round_trip("factored", x, False), x, rtol=1e-5, atol=1e-30)


@settings(deadline=None, max_examples=100)
@given(st.integers(1, 5000))
def test_near_square(numel):
    n, m = near_square(numel)
    assert n * m == numel and n >= m
    assert not any(numel % k == 0 for k in range(m + 1, math.isqrt(numel) + 1))


@settings(deadline=None, max_examples=50)
@given(st.integers(1, 3), st.integers(1, 70), st.sampled_from([torch.float32, torch.float64, torch.bfloat16]))
def test_bits(b, n, dtype):
    x = torch.randn(b, n, generator=torch.Generator().manual_seed(n)).to(dtype)
    packed = pack_bits(x)
    assert packed.dtype == torch.uint8 and packed.shape == (b, -(-n // 8))
    assert torch.equal(unpack_bits(packed, x), torch.where(x >= 0, 1.0, -1.0).to(dtype))
    assert torch.equal(pack_bits(x >= 0), packed)
    # the layout, in Python
    for row, found in zip((x >= 0).tolist(), packed.tolist(), strict=True):
        assert found == [sum(bit << i for i, bit in enumerate(row[j : j + 8])) for j in range(0, n, 8)]


def test_bits_of_zero_and_nan():
    x = torch.tensor([[0.0, -0.0, math.nan, -math.inf, math.inf, -1e-45]])
    assert pack_bits(x).tolist() == [[0b010111]]


def test_state_is_no_larger_than_the_peers():
    """adv_optm 2.5.16: int8 with a float32 for each 2048 elements; factors, and sign rows that fill whole bytes."""
    for rows, cols in [(1, 10), (16, 40), (16, 320), (1280, 16), (16, 1281), (7, 33), (640, 2560)]:
        numel = rows * cols
        n, m = near_square(numel)
        for signed in BOTH:
            assert CODECS["int8_sr"].state_bytes(rows, cols, signed) <= numel + 4 * -(-numel // 2048)
            peer = 4 * (n + m) + (n * -(-m // 8) if signed else 0)
            assert CODECS["factored"].state_bytes(rows, cols, signed) <= peer
        assert CODECS["bf16_sr"].bytes_per_element(rows, cols, True) == 2
