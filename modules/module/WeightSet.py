from collections.abc import Collection, Mapping

from modules.util.enum.ParameterRole import ParameterRole
from modules.util.LayerFilter import LayerFilter
from modules.util.ParameterInfo import ParameterInfo, get_parameter_info, set_parameter_info
from modules.util.UserError import UserError
from scaled_optim.shards import local_part, part_of

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

# half precision has no room for small steps, and quantized weights no gradient
TRAINABLE_DTYPES = (torch.float32, torch.bfloat16)


class WeightSet:
    """The weights of one component of a model that full fine-tuning trains.

    Each gets a `ParameterInfo`: `INPUT` for embeddings and first layers, `OUTPUT` for last layers, `HIDDEN` for the
    weights of all other layers, `VECTOR` for everything else: biases, norms, and tables that
    are added to activations. A tensor that several layers share counts once, for the first of them.

    Building a set changes nothing about the component: call `requires_grad_()`.

    Args:
        component: its name in the config, for example "unet".
        root_module: the component itself.
        layer_filter: the layers whose weights are trained, norms included; None: all.
        input_layers: module paths of the component's first layers; such as it lacks are passed over.
        output_layers: the same of the last ones.

    Attributes:
        notes: remarks for the user; there are none so far.

    Raises:
        UserError: a filter that selects nothing, or a number format that can't be trained.
    """

    def __init__(
        self,
        component: str,
        root_module: nn.Module,
        layer_filter: LayerFilter | None = None,
        input_layers: Collection[str] = (),
        output_layers: Collection[str] = (),
    ) -> None:
        self.component, self.root_module = component, root_module
        self.notes: list[str] = []
        chosen = set((layer_filter or LayerFilter()).select(weight_layers(root_module), component))
        self._parameters: dict[str, nn.Parameter] = {}
        for name, parameter in root_module.named_parameters():
            layer = name.rpartition(".")[0]
            if layer not in chosen:
                continue
            self._check_dtype(name, parameter)
            role = role_of(root_module.get_submodule(layer), parameter, layer, input_layers, output_layers)
            # embeddings are looked up row by row; the weight of a first layer is a matrix
            matrix = role == ParameterRole.INPUT and not isinstance(root_module.get_submodule(layer), nn.Embedding)
            set_parameter_info(parameter, ParameterInfo(role, component, layer, f"{component}.{name}", matrix=matrix))
            self._parameters[name] = parameter

    def _check_dtype(self, name: str, parameter: nn.Parameter) -> None:
        if parameter.dtype not in TRAINABLE_DTYPES:
            raise UserError(
                f"{self.component}.weight_dtype: {self.component}.{name} is held in {parameter.dtype}, which can't be "
                "trained. Set it to FLOAT_32 or BFLOAT_16."
            )

    def named_parameters(self) -> dict[str, nn.Parameter]:
        """Trained tensors by their names in the component, in its order."""
        return dict(self._parameters)

    def parameters(self) -> list[nn.Parameter]:
        """Trained tensors, in the component's order; each carries a `ParameterInfo`."""
        return list(self._parameters.values())

    def find_parameters(self) -> None:
        """Goes on with the parameters that have the names now, as where processes hold parts of those it had."""
        for name, known in self._parameters.items():
            own = self.root_module.get_parameter(name)
            if own is not known:
                set_parameter_info(own, get_parameter_info(known))
                self._parameters[name] = own

    def train(self, mode: bool = True) -> "WeightSet":
        """Nothing to do: what is trained draws nothing. The component's own mode belongs to its checkpointing."""
        return self

    def eval(self) -> "WeightSet":
        """See `train`."""
        return self

    def requires_grad_(self, requires_grad: bool = True) -> "WeightSet":
        """Starts or stops training of the whole set."""
        for parameter in self._parameters.values():
            parameter.requires_grad_(requires_grad)
        return self

    def state_dict(self) -> dict[str, Tensor]:
        """The trained tensors by "<component>.<name>", for resuming; not copied."""
        return {f"{self.component}.{name}": parameter.detach() for name, parameter in self._parameters.items()}

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Takes over what `state_dict` gave, to the bit.

        Raises:
            UserError: keys, shapes or number formats differ; then nothing changed.
        """
        own = self.state_dict()
        for key in sorted(own.keys() ^ state.keys()):
            where = "is missing in the backup" if key in own else "is in the backup, but is not trained here"
            raise UserError(f"{key} {where}. Restore the config with which it was written, or start anew.")
        for key, value in state.items():
            if (value.shape, value.dtype) != (own[key].shape, own[key].dtype):
                raise UserError(
                    f"{key}: the backup holds {list(value.shape)} {value.dtype}, expected {list(own[key].shape)} "
                    f"{own[key].dtype}. Restore the config with which it was written, or start anew."
                )
        for key, value in state.items():
            local_part(own[key]).copy_(part_of(value, own[key]))


def weight_layers(root_module: nn.Module) -> list[str]:
    """Module paths of everything that has weights of its own, in the module's order; shared weights count once."""
    return list(dict.fromkeys(name.rpartition(".")[0] for name, _ in root_module.named_parameters()))


def role_of(
    owner: nn.Module,
    parameter: nn.Parameter,
    layer: str,
    input_layers: Collection[str] = (),
    output_layers: Collection[str] = (),
) -> ParameterRole:
    """What a weight is for its layer.

    Args:
        owner: the module that holds it.
        parameter: the weight.
        layer: path of `owner` in the component.
        input_layers: paths of the component's first layers.
        output_layers: paths of its last layers.
    """
    if parameter.dim() < 2:
        return ParameterRole.VECTOR
    if isinstance(owner, nn.Embedding):
        return ParameterRole.INPUT
    if not isinstance(owner, (nn.Linear, _ConvNd)):
        # as the engine has it: of a gate that chooses experts the weight is a matrix, a table that is added has a name
        return ParameterRole.HIDDEN if getattr(owner, "weight", None) is parameter else ParameterRole.VECTOR
    if layer in input_layers:
        return ParameterRole.INPUT
    return ParameterRole.OUTPUT if layer in output_layers else ParameterRole.HIDDEN
