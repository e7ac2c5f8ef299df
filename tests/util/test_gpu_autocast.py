"""Autocast of a GPU followed on a CPU."""

from modules.util.gpu_autocast import FLOAT_32, gpu_autocast

import torch
import torch.nn.functional as F
from torch import nn

import pytest

LAYERS = [
    nn.GroupNorm(2, 4),
    nn.LayerNorm(4),
    nn.RMSNorm(4),
    nn.Upsample(scale_factor=2),
]


@pytest.mark.parametrize("layer", LAYERS, ids=lambda layer: type(layer).__name__)
def test_norms_and_resizing_give_float32_under_autocast(layer):
    layer, x = layer.to(torch.bfloat16), torch.randn(1, 4, 4, 4, dtype=torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        plain = layer(x)
        with gpu_autocast():
            seen = layer(x)
        assert torch.equal(layer(x), plain), "it ends with the block"
    assert (plain.dtype, seen.dtype) == (torch.bfloat16, torch.float32)
    assert torch.allclose(seen, plain.float(), rtol=2**-7, atol=2**-7)  # bfloat16 has 8 bits
    with gpu_autocast():
        assert layer(x).dtype == torch.bfloat16, "without autocast there is nothing to do"


def test_functions_are_put_back_after_an_error():
    own = [getattr(F, name) for name in FLOAT_32]
    with pytest.raises(ValueError, match="stop"), gpu_autocast():
        assert F.layer_norm is not own[FLOAT_32.index("layer_norm")]
        raise ValueError("stop")
    assert [getattr(F, name) for name in FLOAT_32] == own
