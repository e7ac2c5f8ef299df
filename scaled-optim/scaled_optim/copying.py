"""What `copy.deepcopy` and `pickle` take of an optimizer, and how the copy goes on from it, to the bit."""

from typing import Any

from scaled_optim.description import Description, Descriptions
from scaled_optim.kernels.Runner import runner_of
from scaled_optim.live_modules import LiveDescriptions
from scaled_optim.roles import described_role, parameter_info

import torch

PLAIN = (
    "rule", "describe", "seed", "chunk", "compile", "state_device", "kernels", "watch", "statistics", "defaults",
    "param_groups",
)  # fmt: skip


def packed(optimizer: Any) -> dict[str, Any]:
    """All of a `BatchedOptimizer` but what is made anew when needed; hooks are left out, as torch leaves them out.

    Raises:
        ValueError: it is shared by processes, so that it has a part of its state alone.
    """
    if optimizer.sharing is not None:
        raise ValueError(
            "shared: found an optimizer that several processes share, which can't be copied. Copy whole_state_dict()."
        )
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    places = {parameter: place for place, parameter in enumerate(parameters)}
    batches = [
        {"places": [places[p] for p in batch.parameters], "steps": batch.steps, "stores": batch.stores}
        for batch in optimizer._batches
    ]
    # a function without a place in a module can't be written to a file, and descriptions would bring their parameters
    # along; it has said what it knows of these parameters
    nameless = "<" in getattr(optimizer.describe, "__qualname__", "")
    nameless = nameless or isinstance(optimizer.describe, Descriptions | LiveDescriptions)
    return {
        **{name: getattr(optimizer, name) for name in PLAIN},
        "describe": parameter_info if nameless else optimizer.describe,
        "descriptions": [_description(optimizer._describe(parameter)) for parameter in parameters],
        "batches": batches,
        "closed": optimizer._closed,
        "totals": optimizer._totals,
        "waiting": {places[parameter]: gradient for parameter, gradient in optimizer._waiting.items()},
    }


def _description(info: Any) -> Description | None:
    if info is None:
        return None
    return Description(
        described_role(info), info.name, getattr(info, "pair", None), getattr(info, "forward_scale", 1.0),
        model_width=getattr(info, "model_width", None), adapter=getattr(info, "adapter", False),
    )  # fmt: skip


@torch.no_grad()
def unpack(optimizer: Any, state: dict[str, Any]) -> None:
    """Makes an optimizer that `_begin` has begun go on from what `packed` gave."""
    for name in PLAIN:
        setattr(optimizer, name, state[name])
    optimizer._runner = runner_of(optimizer.kernels)
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    optimizer._descriptions = dict(zip(parameters, state["descriptions"], strict=True))
    optimizer._closed = state["closed"]
    if state["batches"]:
        optimizer._ready()
    for saved in state["batches"]:
        for k, (place, step) in enumerate(zip(saved["places"], saved["steps"], strict=True)):
            slots = {name: {key: x[k] for key, x in store.items()} for name, store in saved["stores"].items()}
            batch, index = optimizer._batch_of[parameters[place]]
            batch.load_state_of(index, {"step": step, "slots": slots})
    for name, own in optimizer._totals.items():
        own.copy_(state["totals"][name])
    optimizer._waiting = {parameters[place]: gradient for place, gradient in state["waiting"].items()}
