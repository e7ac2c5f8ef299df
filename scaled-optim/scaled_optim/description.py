"""What the parameters of a model are for their layers, read from the model's structure.

Known are plain torch models, parameters with an attribute `parameter_info`, and the adapters of peft (LoRA, DoRA, OFT,
also inside of diffusers' models) and of kohya's and LyCORIS' networks, by the names that their modules have.
"""

import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from statistics import median
from typing import Any

from scaled_optim.roles import parameter_info

from torch import nn
from torch.nn.modules.conv import _ConvNd

# The two factors of a LoRA by the names of their modules: peft's, peft's for embeddings, kohya's, torchtune's.
PAIRS = {"lora_A": "lora_B", "lora_embedding_A": "lora_embedding_B", "lora_down": "lora_up", "lora_a": "lora_b"}
PARTNERS = PAIRS | {up: down for down, up in PAIRS.items()}
# the middle factor of LyCORIS' LoRA on convolutions
CORE = "lora_mid"
SCALES = ("lora_magnitude_vector", "dora_scale")
ROTATIONS = ("oft_R", "oft_r")
ROLE_OF_PART = (
    dict.fromkeys(PAIRS, "LORA_DOWN")
    | dict.fromkeys(PAIRS.values(), "LORA_UP")
    | dict.fromkeys(SCALES, "DORA_SCALE")
    | dict.fromkeys(ROTATIONS, "OFT")
)
# a layer's path, the part, the adapter's name in peft's files, and what torch calls the tensor in its module
PART = re.compile(rf"(?:(?P<layer>.*)\.)?(?P<part>{'|'.join(ROLE_OF_PART)})(?P<rest>(?:\.[^.]+)?(?:\.weight)?)$")
# what wrappers put before the names of the model inside
WRAPPERS = re.compile(r"^(?:(?:base_model\.model|_orig_mod|_fsdp_wrapped_module|module)\.)+")
# First and last layers by their paths in diffusers' and transformers' models.
INPUT_LAYERS = frozenset(
    (
        "conv_in",
        "x_embedder",
        "context_embedder",
        "proj_in",
        "pos_embed.proj",
        # of the time, and of what is told beside it
        "time_embedding.linear_1",
        "add_embedding.linear_1",
        "time_guidance_embed.timestep_embedder.linear_1",
        "time_guidance_embed.guidance_embedder.linear_1",
    )
)
OUTPUT_LAYERS = frozenset(("conv_out", "proj_out", "lm_head"))


@dataclass(frozen=True)
class Description:
    """What an optimizer may know of a parameter beside its numbers.

    Attributes:
        role: a name of `roles.ROLES`.
        name: unique in the model.
        pair: of a factor of a LoRA, the name of its partner; None: there is none.
        forward_scale: the layer multiplies the parameter by this number before anything else.
        matrix: of an INPUT: true for a matrix that multiplies activations, false for a table of embeddings.
        model_width: of the model that it belongs to, see `model_width`; None: not known.
        adapter: whether it belongs to an adapter, whatever its role.
    """

    role: str
    name: str
    pair: str | None = None
    forward_scale: float = 1.0
    matrix: bool = False
    model_width: float | None = None
    adapter: bool = False


class Descriptions(Mapping[nn.Parameter, Description]):
    """A mapping from parameters to their descriptions, which is also the `describe` of a `BatchedOptimizer`.

    Called with a parameter, it returns the parameter's description, or None.

    Args:
        found: parameter -> description.
    """

    def __init__(self, found: Mapping[nn.Parameter, Any]) -> None:
        self._found = dict(found)

    def __call__(self, parameter: nn.Parameter) -> Any:
        return self._found.get(parameter)

    def __getitem__(self, parameter: nn.Parameter) -> Any:
        return self._found[parameter]

    def __iter__(self) -> Iterator[nn.Parameter]:
        return iter(self._found)

    def __len__(self) -> int:
        return len(self._found)


def describe(
    model: nn.Module,
    *,
    input_layers: Collection[str] = INPUT_LAYERS,
    output_layers: Collection[str] = OUTPUT_LAYERS,
    guess_ends: bool = True,
) -> Descriptions:
    """Finds the role of each parameter of a model. The model stays as it is.

    The first of these that holds decides:

    - the parameter has an attribute `parameter_info`: that is its description;
    - its name is that of an adapter's part: the part's role;
    - it has fewer than two dimensions: VECTOR;
    - it is a table of embeddings: INPUT;
    - it is the weight of a linear layer or a convolution: INPUT with `matrix` for the first layer of the model and
      those in `input_layers`, OUTPUT for the last one and those in `output_layers`, HIDDEN for all others;
    - its name ends with "weight": HIDDEN;
    - otherwise: VECTOR.

    A first or last layer inside a repeated block is HIDDEN, like the same layer of the other blocks. A tensor that
    several layers share counts once, for the first of them.

    Args:
        model: any module; wrappers of peft, torch.compile, FSDP and DDP around it do not count.
        input_layers, output_layers: paths of layers in the model, without the prefixes of wrappers.
        guess_ends: False if these name all of them: then the first and the last layer are like any other.

    Returns:
        The description of every parameter, frozen ones too.
    """
    names = dict(model.named_parameters())
    first, last = _ends(model) if guess_ends else (None, None)
    first_layers, last_layers = {first, *input_layers}, {last, *output_layers}
    found: dict[nn.Parameter, Any] = {}
    widths = _widths(model)
    for full, parameter in names.items():
        info = parameter_info(parameter)
        if info is None:
            part = _adapter_part(full, names)
            info = part or _layer_part(model, full, parameter, first_layers, last_layers)
            info = replace(info, model_width=_width_at(full, widths), adapter=part is not None)
        found[parameter] = info
    return Descriptions(found)


def model_width(model: nn.Module) -> float | None:
    """The width of a model: the median, over its layers, of the smaller one of inputs and outputs.

    It is 320 to 1280 for the UNets of Stable Diffusion, and 4096 for a transformer whose blocks are as wide.

    Args:
        model: its layers are linear ones and convolutions, quantized ones too; those of adapters do not count.

    Returns:
        A number of channels; None for a model without layers.
    """
    widths = []
    for name, module in model.named_modules():
        # an adapter's own layers, and peft's wrapper of a layer, which has its sizes once more
        own = PART.match(f"{name}.weight") or name.rpartition(".")[2] == CORE
        if own or isinstance(getattr(module, "base_layer", None), nn.Module):
            continue
        if isinstance(module, _ConvNd):
            widths.append(min(module.in_channels, module.out_channels))
        # quantized layers of every library keep the names of `nn.Linear`
        elif isinstance(getattr(module, "in_features", None), int) and isinstance(
            getattr(module, "out_features", None), int
        ):
            widths.append(min(module.in_features, module.out_features))
    return median(widths) if widths else None


def _widths(model: nn.Module) -> dict[str, float | None]:
    """Path of each component -> its width: of the models of diffusers and transformers inside, and of the whole."""
    found = {"": model_width(model)}
    for name, module in model.named_modules():
        # asked of the class and of the module itself, as wrappers answer for what they wrap
        whole = "config" in vars(module) or hasattr(type(module), "config")
        if whole and not name:
            break
        if whole and not any(name.startswith(f"{path}.") for path in found if path):
            found[name] = model_width(module)
    return found


def _width_at(full: str, widths: Mapping[str, float | None]) -> float | None:
    """The width of the component that a parameter is in."""
    return next((width for path, width in widths.items() if path and full.startswith(f"{path}.")), widths[""])


def param_groups(model: nn.Module, **options: Any) -> list[dict[str, Any]]:
    """One group of the model's parameters that require gradients, for programs that only hand on groups.

    Each parameter gets its description as an attribute `parameter_info`. Every optimizer of this package reads it
    there, even if the program makes other groups of the parameters.

    Args:
        model: as for `describe`.
        options: of the group, such as `lr`.

    Returns:
        A list with one group: `params`, `param_names` and the options.

    Raises:
        ValueError: the model has no parameter that requires gradients.
    """
    found = {parameter: info for parameter, info in describe(model).items() if parameter.requires_grad}
    if not found:
        raise ValueError(
            "param_groups: found no parameter that requires gradients. Add the adapter, or call requires_grad_() on "
            "what is to be trained, first."
        )
    for parameter, info in found.items():
        parameter.parameter_info = info
    return [{"params": list(found), "param_names": [info.name for info in found.values()], **options}]


def _adapter_part(full: str, names: Mapping[str, nn.Parameter]) -> Description | None:
    """The description of a part of an adapter, None for other parameters."""
    match = PART.match(full)
    if match is None or match["rest"] == ".bias":
        return None
    part, rest = match["part"], match["rest"]
    prefix = f"{match['layer']}." if match["layer"] else ""
    pair = f"{prefix}{PARTNERS[part]}{rest}" if part in PARTNERS else None
    return Description(ROLE_OF_PART[part], full, pair if pair in names else None)


def _layer_part(
    model: nn.Module, full: str, parameter: nn.Parameter, first: Collection[str | None], last: Collection[str | None]
) -> Description:
    """The description of a layer's own weight; `first` and `last` are paths of the model's first and last layers."""
    layer, _, leaf = full.rpartition(".")
    owner = model.get_submodule(layer)
    if parameter.dim() < 2:
        return Description("VECTOR", full)
    if isinstance(owner, nn.Embedding | nn.EmbeddingBag):
        return Description("INPUT", full)
    if not isinstance(owner, nn.Linear | _ConvNd):
        return Description("HIDDEN" if leaf.endswith("weight") else "VECTOR", full)
    path = WRAPPERS.sub("", layer)
    if path in first:
        return Description("INPUT", full, matrix=True)
    return Description("OUTPUT" if path in last else "HIDDEN", full)


def _ends(model: nn.Module) -> tuple[str | None, str | None]:
    """Paths of the first and the last layer; None where that is an embedding, an only layer, or part of a block."""
    layers = [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | _ConvNd | nn.Embedding | nn.EmbeddingBag) and not PART.match(f"{name}.weight")
    ]
    if len(layers) < 2:
        return None, None
    ends = []
    for name in (layers[0], layers[-1]):
        table = isinstance(model.get_submodule(name), nn.Embedding | nn.EmbeddingBag)
        ends.append(None if table or _repeated(model, name) else WRAPPERS.sub("", name))
    return ends[0], ends[1]


def _repeated(model: nn.Module, path: str) -> bool:
    """Whether a layer lies inside one of several like blocks: modules with children, of one class, side by side."""
    segments = path.split(".")
    for depth in range(1, len(segments)):
        block = model.get_submodule(".".join(segments[:depth]))
        beside = model.get_submodule(".".join(segments[: depth - 1])).children()
        composed = any(True for _ in block.children())
        if composed and sum(type(other) is type(block) for other in beside) > 1 and type(block) is not nn.Sequential:
            return True
    return False
