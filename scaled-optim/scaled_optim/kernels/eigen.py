"""Eigenvalues and eigenvectors of small matrices by a kernel of our own, so that nobody waits for the device."""

from scaled_optim.kernels.Runner import Runner

import torch
from torch import Tensor

# Larger ones fill more than the registers of a program. A sweep meets every pair of rows once; the error is that of
# rounding after 4 sweeps for 3 rows, 5 for 16 and 6 for 20.
LARGEST = 64
SWEEPS = {16: 6, 32: 7, 64: 8}
KIND = ("LORA_RITE", "eigen")
# of the largest eigenvalue: some units of rounding for each row
TOLERANCE = 1e-4


def has_kernel(x: Tensor, runner: Runner | None) -> bool:
    """Whether the kernel serves matrices `[b, r, r]`, and may be trusted on their device."""
    if runner is None or x.dtype != torch.float32 or x.shape[1] > LARGEST or not runner.serves(x.device):
        return False
    side = _side(x.shape[1])
    return runner.trusted((*KIND, side), lambda: _trial(side, x.device, runner))


def eigen_by_kernel(x: Tensor, runner: Runner, vectors: bool) -> tuple[Tensor, Tensor | None]:
    """Eigenvalues `[b, r]`, ascending, and eigenvectors in columns `[b, r, r]` of symmetric matrices.

    By Jacobi's method. NaN and infinity count as zero.
    """
    x = x.contiguous()
    b, r, _ = x.shape
    side = _side(r)
    values, basis = x.new_empty(b, r), torch.empty_like(x) if vectors else None
    arguments = {
        "table": x, "out_values": values, "out_vectors": basis, "r": r, "SWEEPS": SWEEPS[side], "R": side,
        "VECTORS": vectors, "num_warps": 4,
    }  # fmt: skip
    runner.launch("eigen", (b,), arguments, [x], [values, *([basis] if vectors else [])])
    return values, basis


def _side(r: int) -> int:
    return max(16, 1 << (r - 1).bit_length())


def _trial(side: int, device: torch.device, runner: Runner) -> str | None:
    """What is wrong with the kernel, if anything: it is run on random matrices, one of them without full rank."""
    x = torch.randn(2, side - 1, 2 * side, generator=torch.Generator().manual_seed(1)).to(device)
    x[1, :, side // 2 :] = 0
    gram = x @ x.mT
    values, vectors = eigen_by_kernel(gram, runner, vectors=True)
    alone, _ = eigen_by_kernel(gram, runner, vectors=False)
    expected = torch.linalg.eigvalsh(gram)
    size = expected[:, -1:]
    ones = torch.eye(side - 1, device=device)
    errors = {
        "eigenvalues": (values - expected) / size,
        "eigenvalues alone": (alone - expected) / size,
        "product": (vectors * values[:, None] @ vectors.mT - gram) / size[:, :, None],
        "orthogonality": vectors.mT @ vectors - ones,
    }
    for name, error in errors.items():
        worst = float(error.abs().max())
        if not worst < TOLERANCE:
            return f"{name} are off by {worst:.1e}"
    return None
