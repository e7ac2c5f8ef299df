import torch


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that there was too little memory, by its type or, where libraries have none, its words."""
    words = ("out of memory", "can't allocate memory", "not enough memory", "ALLOC_FAILED")
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or (
        isinstance(error, RuntimeError) and any(word in str(error) for word in words)
    )
