"""The laws of aspect buckets."""

import math

from modules.dataLoader.buckets import bucket_sizes, choose_bucket, enlargement, quantise
from modules.util.config.resolution import Resolution, parse_resolutions

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st


def square(resolution: int) -> Resolution:
    return parse_resolutions(str(resolution))[0]


@pytest.mark.parametrize(
    ("resolution", "grid"), [(512, 64), (768, 64), (1024, 64), (64, 16), (64, 8), (500, 64), (64, 64)]
)
def test_grid_area_and_range(resolution, grid):
    sizes = bucket_sizes(resolution, grid)
    for width, height in sizes:
        assert width % grid == 0 and height % grid == 0
        # rounding two sides to the grid; small resolutions have few grid cells
        assert abs(width * height / resolution**2 - 1) <= (0.15 if resolution >= 512 else 0.3)
        # rounding may lead a little beyond 4:1
        assert 1 / 4.5 <= width / height <= 4.5
        assert (height, width) in sizes
    assert (quantise(resolution, grid),) * 2 in sizes


def test_sizes_that_users_know():
    assert (512, 512) in bucket_sizes(512, 64) and (1024, 256) in bucket_sizes(512, 64)
    assert (448, 576) in bucket_sizes(512, 64)


@settings(max_examples=50, deadline=None)
@given(st.integers(8, 6000), st.integers(8, 6000), st.sampled_from([64, 512, 768]))
def test_nearest_aspect(width, height, resolution):
    grid = 16 if resolution == 64 else 64
    chosen = choose_bucket(width, height, square(resolution), grid, True)
    distance = abs(math.log(chosen[0] / chosen[1]) - math.log(width / height))
    others = [abs(math.log(w / h) - math.log(width / height)) for w, h in bucket_sizes(resolution, grid)]
    assert distance == pytest.approx(min(others))
    turned = choose_bucket(height, width, square(resolution), grid, True)
    # halfway between two buckets either may win
    if sorted(others)[:2] != pytest.approx([min(others)] * 2):
        assert turned == chosen[::-1]


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 6000), st.integers(1, 6000), st.integers(16, 2048), st.sampled_from([8, 16, 32, 64]))
def test_the_nearest_is_found_without_a_look_at_all(width, height, resolution, grid):
    """By the definition, ties included: of equal distances the smallest size."""
    aspect = math.log(width / height)
    sizes = bucket_sizes(resolution, grid)
    expected = min(sizes, key=lambda size: (abs(math.log(size[0] / size[1]) - aspect), size))
    assert choose_bucket(width, height, Resolution(resolution, resolution, False), grid, True) == expected
    for size in sizes:
        assert choose_bucket(*size, Resolution(resolution, resolution, False), grid, True) == min(
            other for other in sizes if other[0] * size[1] == other[1] * size[0]
        )


def test_exact_and_square():
    exact = parse_resolutions("500x770")[0]
    assert choose_bucket(100, 900, exact, 64, True) == (512, 768)
    assert choose_bucket(100, 900, exact, 64, False) == (512, 768)
    assert choose_bucket(100, 900, square(512), 64, False) == (512, 512)


def test_enlargement():
    assert enlargement(64, 64, square(512), True) == 8
    assert enlargement(64, 128, square(512), False) == 8
    assert enlargement(256, 1024, square(512), True) == pytest.approx(1)
    assert enlargement(256, 256, parse_resolutions("512x256")[0], True) == 2
