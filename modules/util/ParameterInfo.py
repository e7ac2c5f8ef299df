from collections.abc import Iterable
from dataclasses import dataclass, replace

from modules.util.enum.ParameterRole import ParameterRole

from torch import nn

_ATTRIBUTE = "parameter_info"


@dataclass(frozen=True)
class ParameterInfo:
    """What an optimizer may know about a trainable tensor beside its numbers.

    Attributes:
        role: what the tensor is for its layer.
        component: the one it belongs to, such as "unet".
        layer: module path of the layer inside the component.
        name: the parameter's own full name, unique in a run: "<component>.<layer>.<part>".
        pair: full name of the partner (down <-> up), None where there is none.
        forward_scale: number by which the layer multiplies the tensor before anything else; that of scaled OFT.
        matrix: of an INPUT, whether it multiplies activations, as a first layer does, and is no table of embeddings.
        model_width: of the component, see `scaled_optim.description.model_width`; None: not known.
        adapter: whether it is part of an adapter, whatever its role; not of one that holds ΔW itself.
    """

    role: ParameterRole
    component: str
    layer: str
    name: str
    pair: str | None = None
    forward_scale: float = 1.0
    matrix: bool = False
    model_width: float | None = None
    adapter: bool = False


def set_parameter_info(parameter: nn.Parameter, info: ParameterInfo) -> None:
    """Attaches `info`. It stays with the object: `.to()` keeps it, `copy.deepcopy` does not."""
    setattr(parameter, _ATTRIBUTE, info)


def get_parameter_info(parameter: nn.Parameter) -> ParameterInfo | None:
    """The attached information, or None for a parameter that nobody described."""
    return getattr(parameter, _ATTRIBUTE, None)


def set_model_width(parameters: Iterable[nn.Parameter], width: float | None) -> None:
    """Tells optimizers the width of the component whose layers these described parameters serve."""
    for parameter in parameters:
        set_parameter_info(parameter, replace(getattr(parameter, _ATTRIBUTE), model_width=width))


def layer_path(component: str, layer: str) -> str:
    """ "<component>.<layer>", or the one of them that is not empty.

    Args:
        component: of the model, for example "unet"; empty where layers have a file's own names.
        layer: module path inside the component; empty where the component itself is the layer.
    """
    return ".".join(filter(None, (component, layer)))
