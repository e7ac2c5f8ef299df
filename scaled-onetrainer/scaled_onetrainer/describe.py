"""What the parameters that OneTrainer trains are for their layers, said in a way that our optimizers read."""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from scaled_onetrainer.families import ends_of
from scaled_onetrainer.rotations import row_scale
from scaled_optim.description import Description, describe
from scaled_optim.live_modules import LiveDescriptions
from scaled_optim.roles import default_role, parameter_info

from torch import nn

# What OneTrainer calls the trained tensors of its adapters.
LORA = {"lora_down.weight": "LORA_DOWN", "lora_up.weight": "LORA_UP"}
PARTNERS = {"lora_down.weight": "lora_up.weight", "lora_up.weight": "lora_down.weight"}
FACTOR = re.compile(r"(?:hada|lokr)_[wt]\d(?:_(?P<side>[ab]))?")
ROTATION = "oft_R.weight"


def describe_adapter(adapter: nn.Module, width: float | None = None) -> None:
    """Describes the trained tensors of one adapter of OneTrainer's, by their names.

    Args:
        adapter: with `prefix`, the full path of its layer and a dot.
        width: of the component that it changes, None: not known.
    """
    names = dict(adapter.named_parameters())
    for name, parameter in names.items():
        partner = PARTNERS.get(name)
        pair = f"{adapter.prefix}{partner}" if partner in names else None
        scale = rotation_scale(adapter) if name == ROTATION else 1.0
        role = _role(name, parameter, tucker="lokr_t2" in names)
        parameter.parameter_info = Description(
            role, f"{adapter.prefix}{name}", pair, scale, model_width=width, adapter=True
        )


def _role(name: str, parameter: nn.Parameter, tucker: bool) -> str:
    if name in LORA:
        return LORA[name]
    if name == "dora_scale":
        return "DORA_SCALE"
    if name == ROTATION:
        return "OFT"
    factor = FACTOR.fullmatch(name)
    if factor is None:
        return default_role(tuple(parameter.shape))
    if factor["side"] is None:
        return "HIDDEN"
    # w_a·w_b: ranks are the columns of the first and the rows of the second, of both where a kernel is between them
    return "LORA_DOWN" if factor["side"] == "b" or (tucker and name == "lokr_w2_a") else "LORA_UP"


def rotation_scale(adapter: nn.Module) -> float:
    """What an OFT adapter multiplies its trained numbers by before it makes rotations of them."""
    rotation = adapter.oft_R
    elements = getattr(rotation, "elements_scale", None)
    if elements is not None:
        return elements
    return row_scale(rotation.block_size) if rotation.oft_scaled else 1.0


def describe_component(component: nn.Module, name: str) -> None:
    """Describes the parameters of a component that is trained as a whole, once.

    Args:
        name: of the component, unique in the model.
    """
    ends = ends_of(component)
    if ends is None:
        found = describe(component)
    else:
        found = describe(component, input_layers=ends.first, output_layers=ends.last, guess_ends=False)
    for parameter, info in found.items():
        if parameter_info(parameter) is info:
            continue
        parameter.parameter_info = Description(
            info.role, f"{name}.{info.name}", info.pair and f"{name}.{info.pair}", info.forward_scale, info.matrix,
            getattr(info, "model_width", None), getattr(info, "adapter", False),
        )  # fmt: skip


def describe_rest(groups: Sequence[Mapping[str, Any]], names: Sequence[str]) -> None:
    """Describes what no hook has: embeddings, and components that OneTrainer makes groups of by itself.

    Args:
        groups: as for an optimizer.
        names: unique, one for each group.
    """
    left = [p for group in groups for p in group["params"] if parameter_info(p) is None]
    live = LiveDescriptions()
    live.look_for(left)
    for group, name in zip(groups, names, strict=True):
        _describe_group(group["params"], name, live)


def _describe_group(parameters: Iterable[nn.Parameter], name: str, live: LiveDescriptions) -> None:
    # each model has words of its own before it and after it, and the embedding's own name follows
    embedding = "embeddings" in name.partition("/")[0]
    for place, parameter in enumerate(parameters):
        if parameter_info(parameter) is not None:
            continue
        found = live(parameter)
        if embedding or found is None:
            role = "INPUT" if embedding else default_role(tuple(parameter.shape))
            parameter.parameter_info = Description(role, f"{name}.{place}")
        else:
            parameter.parameter_info = Description(
                found.role, f"{name}.{found.name}", matrix=found.matrix, model_width=found.model_width
            )
