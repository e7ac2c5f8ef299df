"""Random numbers that depend on a key alone: not on threads, on the order of calls, on what else is drawn, or on the
machine. So batching, sampling and resuming never change them."""

import hashlib
import random
from typing import TYPE_CHECKING

from modules.util.keyed_choices import key_text

# captions and the plan are drawn where torch is not loaded: in the window
if TYPE_CHECKING:
    import torch


def keyed_random(*key: str | int) -> random.Random:
    """A generator of Python's for a key of words and numbers. Many choices at once: `keyed_choices`."""
    return random.Random(int.from_bytes(_digest(key_text(key)), "big"))


def step_seed(seed: int, purpose: str, *numbers: int) -> int:
    """A seed for one purpose at one place of the run."""
    return _torch_seed(f"{seed} {purpose} {' '.join(map(str, numbers))}")


def step_generator(seed: int, purpose: str, *numbers: int) -> "torch.Generator":
    """A CPU generator seeded by `step_seed`."""
    import torch

    return torch.Generator().manual_seed(step_seed(seed, purpose, *numbers))


def layer_generator(seed: int, full_name: str) -> "torch.Generator":
    """A CPU generator for a layer, whatever other layers there are."""
    import torch

    return torch.Generator().manual_seed(_torch_seed(f"{seed}:{full_name}"))


def _torch_seed(text: str) -> int:
    # torch takes seeds below 2^63 on every platform
    return int.from_bytes(_digest(text)[:8], "little") >> 1


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()
