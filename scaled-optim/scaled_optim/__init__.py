"""Optimizers for any torch program, whose hyperparameters transfer: see the README of the distribution.

Names are loaded when they are first asked for, so that what only describes options does not load torch.
"""

from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import Any

_HOME = {
    **dict.fromkeys(
        (
            "AdamW", "Adopt", "Prodigy", "Lion", "SignSGD", "SinkSGD", "Muon", "AdaMuon", "StiefelLoRA", "LoRARite",
            "RuleOptimizer",
        ),
        "optimizers",
    ),
    "BatchedOptimizer": "batched_optimizer",
    "Description": "description",
    "Descriptions": "description",
    "describe": "description",
    "param_groups": "description",
    "RULES": "rules.registry",
    "DECLARED": "options",
}  # fmt: skip
__all__ = sorted(_HOME)

try:
    __version__ = version("scaled-optim")
except PackageNotFoundError:
    # read from a folder that was not installed
    __version__ = "unknown"


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'scaled_optim' has no attribute {name!r}; it has {', '.join(__all__)}")
    found = getattr(import_module(f"scaled_optim.{_HOME[name]}"), name)
    # a submodule of the same name would be found first from now on
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
