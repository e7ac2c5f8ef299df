import gc

import torch


def release_memory(device: torch.device) -> None:
    """Frees what only circles of references hold, and gives memory that a device's allocator keeps back to others."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    elif device.type == "mps":
        torch.mps.empty_cache()
