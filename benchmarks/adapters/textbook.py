"""OFT and DoRA as their papers' equations stand: the changed weight is made for each layer in each forward pass.

`attach_…` puts them on a block and returns what is trained.
"""

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize


class _Rotated(nn.Module):
    """W' = W·Rᵀ, R block-diagonal of Cayley rotations (arXiv 2306.07280), on a layer's input."""

    def __init__(self, inputs: int, size: int) -> None:
        super().__init__()
        self.size, self.blocks = size, inputs // size
        self.weight = nn.Parameter(torch.zeros(self.blocks, size * (size - 1) // 2))
        self.register_buffer("places", torch.triu_indices(size, size, 1), persistent=False)

    def forward(self, weight: Tensor) -> Tensor:
        upper = weight.new_zeros(self.blocks, self.size**2)
        upper = upper.index_copy(1, self.places[0] * self.size + self.places[1], self.weight).unflatten(
            1, (self.size, -1)
        )
        skew, one = upper - upper.mT, torch.eye(self.size)
        rotation = torch.block_diag(*((one + q) @ torch.linalg.inv(one - q) for q in skew))
        if weight.dim() == 2:
            return weight @ rotation.t()
        return torch.einsum("oihw,ij->ojhw", weight, rotation)


class _Decomposed(nn.Module):
    """W' = m·(W + BA)/‖W + BA‖ over each output's weights (arXiv 2402.09353), the norm without gradient."""

    def __init__(self, weight: Tensor, rank: int) -> None:
        super().__init__()
        out, inputs = weight.flatten(1).shape
        self.down = nn.Parameter(torch.randn(rank, inputs) / inputs**0.5)
        self.up = nn.Parameter(torch.zeros(out, rank))
        self.magnitude = nn.Parameter(weight.flatten(1).norm(dim=1, keepdim=True))

    def forward(self, weight: Tensor) -> Tensor:
        changed = weight.flatten(1) + self.up @ self.down
        return (changed * (self.magnitude / changed.norm(dim=1, keepdim=True).detach())).view(weight.shape)


def attach_oft(block: nn.Module, size: int) -> list[nn.Parameter]:
    """OFT on every linear layer and convolution; blocks of the largest divisor up to `size`."""
    return _attach(block, lambda weight: _Rotated(weight.shape[1], _divisor(weight.shape[1], size)))


def attach_dora(block: nn.Module, rank: int) -> list[nn.Parameter]:
    """DoRA on every linear layer and convolution."""
    return _attach(block, lambda weight: _Decomposed(weight, rank))


def _attach(block: nn.Module, make) -> list[nn.Parameter]:
    trained = []
    for layer in [m for m in block.modules() if isinstance(m, (nn.Linear, nn.Conv2d))]:
        change = make(layer.weight.detach())
        trained += change.parameters()
        parametrize.register_parametrization(layer, "weight", change)
        layer.parametrizations.weight.original.requires_grad_(False)
    return trained


def _divisor(number: int, most: int) -> int:
    return max(k for k in range(1, most + 1) if number % k == 0)
