"""Inputs that are nearly sound, made by hypothesis: used or refused in words. With `--long` a hundred times as many."""

from benchmarks.torture.inputs import LONGEST, Inputs
from modules.util.config.errors import ConfigError
from modules.util.UserError import UserError

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

KINDS = ("configs", "adapters and embeddings", "images and captions")
EXAMPLES, MANY = 60, 6000


@pytest.fixture(scope="module")
def inputs(tmp_path_factory, mini_base) -> Inputs:
    return Inputs(tmp_path_factory.mktemp("inputs"), mini_base)


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("kind", KINDS)
def test_no_input_breaks_or_hangs(inputs, kind, long):
    @settings(
        max_examples=MANY if long else EXAMPLES, deadline=LONGEST * 1000,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    )  # fmt: skip
    @given(st.randoms(use_true_random=False))
    def attempt(rng):
        try:
            inputs.kinds[kind](rng)
        except (UserError, ConfigError) as error:
            assert str(error).strip()

    attempt()
