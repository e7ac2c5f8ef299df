import torch
from torch import Tensor


def to_device(tensor: Tensor, device: torch.device, dtype: torch.dtype | None = None) -> Tensor:
    """A tensor on a device. The program waits for the copy only where the memory that is read could be lost before.

    CUDA's driver has read common memory when the call returns, and torch keeps pinned memory until a device has read
    it. Other devices may read common memory later, when it belongs to another tensor.

    Args:
        tensor: on the CPU, or already there.
        device: where it is used.
        dtype: that it gets; None: its own.
    """
    at_once = device.type == "cuda" or tensor.is_pinned()
    return tensor.to(device, dtype or tensor.dtype, non_blocking=at_once)
