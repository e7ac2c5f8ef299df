"""The singular value decomposition of a product of two factors, without forming it.

Axes: `o` out, `i` in, `kh kw` kernel, `r` rank.
"""

import torch
from torch import Tensor


@torch.no_grad()
def singular_values(down: Tensor, up: Tensor) -> Tensor:
    """The singular values of up·down from its factors, descending, float64, `[min(r, o, i·kh·kw)]`."""
    return factored_svd(down, up)[2]


def factored_svd(down: Tensor, up: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """up·down = outer·left·diag(sigma)·right·inner, with orthonormal columns and rows around sigma, float64.

    Args:
        down: `[r, i(, kh, kw)]`.
        up: `[o, r(, 1, 1)]`.

    Raises:
        ValueError: NaN or infinite values.
    """
    outer, upper = torch.linalg.qr(up.detach().flatten(1).double())
    inner, lower = torch.linalg.qr(down.detach().flatten(1).double().t())
    core = upper @ lower.t()
    if not torch.isfinite(core).all():
        raise ValueError("the factors hold NaN or infinite values")
    left, sigma, right = torch.linalg.svd(core, full_matrices=False)
    return outer, left, sigma, right, inner.t()
