"""Cholesky factors of Gram matrices `[b, r, r]`, the same to the bit whatever stack a matrix is in."""

from scaled_optim.arithmetic import ALIGNMENT

import torch
from torch import Tensor
from torch.nn import functional as F


def cholesky(gram: Tensor, raised: bool = False) -> tuple[Tensor, Tensor, Tensor]:
    """L, L⁻¹ `[b, r, r]` of L·Lᵀ, and whether there is none `[b]` bool. Nothing waits for the device.

    Args:
        gram: `[b, r, r]`, symmetric.
        raised: where there is none, raises the diagonal by the size of rounding first, 8ε of the trace.
    """
    r = gram.shape[1]
    # matrices begin at multiples of 64 bytes, see `product`; beside the ones on the diagonal are zeros
    missing = -r % 4 if r * r % ALIGNMENT else 0
    if missing:
        gram = F.pad(gram, (0, missing, 0, missing))
        gram.diagonal(dim1=1, dim2=2)[:, r:] = 1
    factor, info = torch.linalg.cholesky_ex(gram)
    failed = info > 0
    identity = torch.eye(gram.shape[1], dtype=gram.dtype, device=gram.device)
    if raised:
        trace = gram.diagonal(dim1=1, dim2=2).sum(1)[:, None, None]
        higher, _ = torch.linalg.cholesky_ex(gram + identity * (trace * (8 * torch.finfo(gram.dtype).eps)))
        factor = torch.where(failed[:, None, None], higher, factor)
    inverse = torch.linalg.solve_triangular(factor, identity.expand_as(gram), upper=False)
    return factor[:, :r, :r].contiguous(), inverse[:, :r, :r].contiguous(), failed
