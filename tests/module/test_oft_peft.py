"""peft's OFT layers, value by value.

peft's rotation is (I − Q)(I + Q)⁻¹ when exact, the inverse of ours for the same numbers, and by default the same series
as ours; it applies x·R to a linear layer's input, as we do. A convolution it sees as a matrix of `i·kh·kw` inputs and
rotates in the same direction as a linear layer, so in the opposite direction to OneTrainer's and ours.
"""

from modules.module.OFTModule import OFTModule

import torch
from torch import Tensor, nn

import pytest
from peft import OFTConfig, inject_adapter_in_model


def peft_layer(layer: nn.Module, block_size: int, neumann: bool, share: bool = False) -> tuple[nn.Module, Tensor]:
    """The layer wrapped by peft, and its numbers, which are not zero."""
    model = nn.Sequential(layer)
    config = OFTConfig(
        r=0,
        oft_block_size=block_size,
        target_modules=["0"],
        use_cayley_neumann=neumann,
        block_share=share,
        init_weights=False,
    )
    wrapped = inject_adapter_in_model(config, model)[0]
    return wrapped, wrapped.oft_R["default"].weight


def ours(layer: nn.Module, block_size: int, neumann: bool, share: bool, numbers: Tensor) -> OFTModule:
    adapter = OFTModule(layer, "unet", "a", block_size=block_size, neumann=neumann, share=share)
    adapter.load_parts({"oft_R.weight": numbers})
    return adapter


@pytest.mark.parametrize("share", [False, True])
@pytest.mark.parametrize("neumann", [False, True])
@pytest.mark.parametrize("rows", [5, 50])
def test_linear(neumann, share, rows):
    torch.manual_seed(0)
    layer, x = nn.Linear(24, 20), torch.randn(2, rows, 24)
    wrapped, numbers = peft_layer(layer, 8, neumann, share)
    theirs_x = x.clone().requires_grad_()
    theirs = wrapped(theirs_x)
    grad = torch.randn_like(theirs)
    theirs.backward(grad)

    sign = 1 if neumann else -1
    adapter = ours(layer, 8, neumann, share, sign * numbers.detach())
    adapter.hook()
    own_x = x.clone().requires_grad_()
    own = layer(own_x)
    own.backward(grad)
    # float32, in another order
    assert torch.allclose(own, theirs, atol=1e-5)
    assert torch.allclose(own_x.grad, theirs_x.grad, atol=1e-5)
    assert torch.allclose(sign * adapter.weight.grad, numbers.grad, atol=1e-4)  # sums over 100 rows
    adapter.unhook()
    delta = adapter.merged_delta()
    base = layer.weight.detach().clone()
    wrapped.merge()
    assert torch.allclose(base + delta, layer.weight, atol=1e-6)
    assert not torch.allclose(base, layer.weight, atol=1e-2)


@pytest.mark.parametrize("neumann", [False, True])
def test_pointwise_convolution(neumann):
    torch.manual_seed(0)
    layer, x = nn.Conv2d(12, 10, 1), torch.randn(2, 12, 5, 6)
    wrapped, numbers = peft_layer(layer, 4, neumann)
    theirs = wrapped(x)
    adapter = ours(layer, 4, neumann, False, (-1 if neumann else 1) * numbers.detach())
    adapter.hook()
    assert torch.allclose(layer(x), theirs, atol=1e-5)  # float32
    nn.init.zeros_(adapter.weight)
    assert not torch.allclose(layer(x), theirs, atol=1e-2)


@pytest.mark.parametrize("neumann", [False, True])
def test_convolution_as_a_matrix(neumann):
    """Ours is peft's with blocks of b·kh·kw that leave the kernel's places alone: Q = kron(Q of ours, I)."""
    torch.manual_seed(0)
    layer = nn.Conv2d(8, 6, 3, padding=1)
    adapter = OFTModule(layer, "unet", "a", block_size=4, neumann=neumann)
    nn.init.normal_(adapter.weight, std=0.1)
    wrapped, numbers = peft_layer(layer, 4 * 9, neumann)
    rows, columns = torch.triu_indices(4, 4, 1)
    q = torch.zeros(2, 4, 4)
    q[:, rows, columns] = adapter.weight.detach()
    q = q - q.transpose(1, 2)
    big = torch.stack([torch.kron(block, torch.eye(9)) for block in q])
    rows, columns = torch.triu_indices(36, 36, 1)
    with torch.no_grad():
        numbers.copy_((-1 if neumann else 1) * big[:, rows, columns])
    base = layer.weight.detach().clone()
    expected = base + adapter.merged_delta()
    wrapped.merge()
    assert torch.allclose(layer.weight, expected, atol=1e-6)  # float32 numbers below 1
    assert not torch.allclose(base, expected, atol=1e-2)
