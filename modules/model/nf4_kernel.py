"""bitsandbytes' CUDA kernel that unpacks NF4, where it is installed and gives the numbers of our own arithmetic."""

from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor

Kernel = Callable[[Tensor, Tensor, torch.dtype], Tensor]
"""codes `[o, i/2]` int8, scales `[o·i/64, 1]` bfloat16, dtype -> the weight `[o, i]`; as `WeightCodec.unpack`."""

BLOCK = 64
# Relative: ours rounds levels, scales' conversion and their product to the dtype, the kernel the product alone.
LIMITS = {torch.float32: 2.0**-22, torch.bfloat16: 2.0**-7, torch.float16: 2.0**-9}
# of products, as a share of their norm: four roundings of the weights, or those of TF32 to which a GPU may be set
PRODUCTS = {dtype: max(4 * limit, 2.0**-9) for dtype, limit in LIMITS.items()}
# of the weight and the input that are tried
OUT, IN, TOKENS = 64, 256, 16


def bitsandbytes_kernel(codes: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    """A `Kernel`. Its only temporary are the scales in float32, a 16th of a bfloat16 weight at most."""
    from bitsandbytes.functional import QuantState, dequantize_4bit

    shape = torch.Size((len(codes), 2 * codes.shape[1]))
    state = QuantState(scale.float().flatten(), shape=shape, blocksize=BLOCK, quant_type="nf4", dtype=dtype)
    return dequantize_4bit(codes.view(torch.uint8).view(-1, 1), state)


def kernel_problem(kernel: Kernel, own: Kernel, device: torch.device) -> str:
    """Why a kernel can't take the place of another one on a device; "" if it can.

    Both unpack a small weight in every dtype, and it is multiplied with an input as in the forward and the backward.
    Weights may differ by `LIMITS`, products by `PRODUCTS`.
    """
    generator = torch.Generator().manual_seed(0)
    codes = torch.randint(-128, 128, (OUT, IN // 2), generator=generator, dtype=torch.int8).to(device)
    scale = torch.rand(OUT * IN // BLOCK, 1, generator=generator).add(0.1).bfloat16().to(device)
    x = torch.randn(TOKENS, IN, generator=generator).to(device)
    for dtype, limit in LIMITS.items():
        try:
            found, expected = kernel(codes, scale, dtype), own(codes, scale, dtype)
        # libraries fail in many ways where they were built for another device
        except Exception as error:
            return f"it failed with {type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no reason'}"
        if found.shape != expected.shape or found.dtype != dtype:
            return f"it gave {list(found.shape)} of {found.dtype}, expected {list(expected.shape)} of {dtype}"
        if not _near(found, expected, limit):
            return f"its numbers differ by more than {limit:.1g} in {dtype}"
        wide, other = x.to(dtype) @ found.t(), x.to(dtype) @ expected.t()
        limit = PRODUCTS[dtype]
        if not _close(wide, other, limit) or not _close(wide @ found, other @ expected, limit):
            return f"products with it differ by more than {limit:.1g} in {dtype}"
    return ""


@cache
def nf4_kernel(device: torch.device, own: Kernel) -> tuple[Kernel | None, str]:
    """The kernel for a device, and a line that says what it is; None where our own arithmetic is to be used.

    Tried once for each device. Only CUDA has a kernel that is faster than ours; elsewhere there is nothing to say.
    """
    if device.type != "cuda":
        return None, ""
    problem = kernel_problem(bitsandbytes_kernel, own, device)
    if problem:
        return None, f"NFLOAT_4 weights are unpacked in plain torch, as bitsandbytes' kernel can't be used: {problem}."
    return bitsandbytes_kernel, "NFLOAT_4 weights are unpacked by bitsandbytes' kernel, whose numbers were compared."


def _near(found: Tensor, expected: Tensor, limit: float) -> bool:
    """Number for number; float16 has steps of 2⁻²⁴ near zero."""
    found, expected = found.float(), expected.float()
    return bool(((found - expected).abs() <= limit * expected.abs() + 2.0**-24).all())


def _close(found: Tensor, expected: Tensor, limit: float) -> bool:
    """As a whole, relative to the norm."""
    found, expected = found.float(), expected.float()
    return bool((found - expected).norm() <= limit * expected.norm())
