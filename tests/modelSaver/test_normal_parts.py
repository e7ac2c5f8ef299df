"""What other programs write in other forms means the same as before it was put in ours."""

from modules.modelSaver.adapter_kinds import check_parts
from modules.modelSaver.normal_parts import normal_parts
from modules.module.oft_math import block_size_of

import torch
from torch import Tensor

import pytest


def normal(parts: dict[str, Tensor]) -> dict[str, Tensor]:
    made = normal_parts(parts, check_parts(parts))
    again = normal_parts(made, check_parts(made))
    assert made.keys() == again.keys() and all(torch.equal(again[name], made[name]) for name in made)
    return made


@pytest.mark.parametrize(("kernel", "shape"), [((), (6, 1)), ((3, 3), (6, 1, 1, 1))])
def test_magnitudes_of_peft(kernel, shape):
    ones = (1,) * len(kernel)
    lora = {"lora_down.weight": torch.ones(2, 4, *kernel), "lora_up.weight": torch.ones(6, 2, *ones)}
    values = torch.arange(6.0)
    given = values.reshape(1, 6, 1, 1) if kernel else values
    for parts in (lora | {"lora_magnitude_vector": given}, lora | {"dora_scale": values}):
        made = normal(parts)
        assert made["dora_scale"].shape == shape and torch.equal(made["dora_scale"].flatten(), values)
    per_input = normal(lora | {"dora_scale": torch.arange(4.0)})["dora_scale"]
    assert per_input.shape == (1, 4, *ones)


@pytest.mark.parametrize("marker", [torch.tensor(True), torch.tensor(1.0), torch.tensor([1.0])])
def test_onetrainer_s_scaled_rotations(marker):
    weight = torch.randn(3, 28)  # blocks of 8
    expected = weight / (2 * 7**0.5)
    made = normal({"oft_R.weight": weight, "oft_R.scaled_oft": marker})
    assert made.keys() == {"oft_R.weight"} and torch.allclose(made["oft_R.weight"], expected, rtol=1e-6)
    for off in ({}, {"oft_R.scaled_oft": torch.zeros_like(marker)}):
        assert torch.equal(normal({"oft_R.weight": weight} | off)["oft_R.weight"], weight)


def test_kernels_of_loha():
    """OneTrainer keeps w*_b as a convolution to `r` channels and w*_a as a 1 x 1 convolution."""
    torch.manual_seed(0)
    parts = {
        name: torch.randn(6, 2, 1, 1) if name.endswith("a") else torch.randn(2, 4, 3, 3)
        for name in ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b")
    }
    made = normal(parts)
    for n in (1, 2):
        factor = torch.einsum("or,rikl->oikl", parts[f"hada_w{n}_a"].flatten(1), parts[f"hada_w{n}_b"])
        found = made[f"hada_w{n}_a"] @ made[f"hada_w{n}_b"]
        assert torch.allclose(found.view(factor.shape), factor, atol=1e-6)


def test_middle_kernels_of_lora():
    """Down 1 x 1, middle 3 x 3, up 1 x 1: three convolutions one after the other."""
    torch.manual_seed(0)
    parts = {
        "lora_down.weight": torch.randn(2, 4, 1, 1),
        "lora_mid.weight": torch.randn(2, 2, 3, 3),
        "lora_up.weight": torch.randn(6, 2, 1, 1),
    }
    made, x = normal(parts), torch.randn(1, 4, 5, 5)
    expected = x
    for part in ("lora_down.weight", "lora_mid.weight"):
        expected = torch.conv2d(expected, parts[part])
    assert made.keys() == {"lora_down.weight", "lora_up.weight"}
    assert torch.allclose(torch.conv2d(x, made["lora_down.weight"]), expected, atol=1e-5)


def test_bounds_of_rotated_outputs():
    torch.manual_seed(0)
    blocks = torch.randn(3, 4, 4)
    norm = (blocks - blocks.transpose(1, 2)).norm().item()
    for alpha, factor in ((0.0, 1.0), (2 * norm, 1.0), (norm / 2, 0.5)):
        made = normal({"oft_blocks": blocks, "alpha": torch.tensor(alpha), "rescale": torch.ones(12, 1)})
        assert made.keys() == {"oft_blocks"} and torch.allclose(made["oft_blocks"], factor * blocks, rtol=1e-5)


def test_block_sizes():
    assert [block_size_of(size * (size - 1) // 2) for size in range(2, 600)] == list(range(2, 600))
    triangles = {size * (size - 1) // 2 for size in range(2, 60)}
    assert all(block_size_of(n) is None for n in range(1000) if n not in triangles)
