"""Random numbers keyed by (seed, purpose, place), so that batching, sampling and resuming never change them."""

import hashlib

import torch


def step_seed(seed: int, purpose: str, *numbers: int) -> int:
    """A seed for one purpose at one place of the run; what is drawn there does not depend on what was drawn before."""
    text = f"{seed} {purpose} {' '.join(map(str, numbers))}"
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little") >> 1


def step_generator(seed: int, purpose: str, *numbers: int) -> torch.Generator:
    """A CPU generator seeded by `step_seed`."""
    return torch.Generator().manual_seed(step_seed(seed, purpose, *numbers))
