"""What can be done to a whole adapter: find its base, another alpha or rank, other kinds, merging."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

from modules.modelSaver.adapter_kinds import scale_of
from modules.modelSaver.adapter_metadata import AdapterDescription, ComponentLayers
from modules.modelSaver.AdapterFile import AdapterFile
from modules.modelSaver.low_rank_copy import best_lora
from modules.modelSaver.rebase_alpha import rebase_alpha, resize_lora
from modules.module.AdapterSet import AdapterSet
from modules.module.DiffFileKind import DIFF, DIFF_BIAS
from modules.module.FileKind import ALPHA
from modules.module.LoRAFileKind import DOWN, UP
from modules.util.AdapterNaming import AdapterNaming
from modules.util.ParameterInfo import layer_path
from modules.util.ReferenceModel import ReferenceModel
from modules.util.UserError import UserError

import torch
from torch import Tensor, nn

Layers = dict[str, dict[str, dict[str, Tensor]]]


@dataclass(frozen=True)
class Loss:
    """What a lower rank loses.

    Attributes:
        relative: ‖what is lost‖/‖ΔW‖ over all layers, in [0, 1].
        worst_layer: "<component>.<layer>" that loses the largest share of its own ΔW; empty if nothing is lost.
        worst: that share.
    """

    relative: float
    worst_layer: str
    worst: float

    def __str__(self) -> str:
        if not self.worst_layer:
            return "nothing is lost"
        return f"relative error {self.relative:.3g}; most in {self.worst_layer}, {self.worst:.3g}"


def find_reference(file: AdapterFile, candidates: Iterable[ReferenceModel]) -> ReferenceModel:
    """The first model that has all layers of the file, in their sizes; one that the file's metadata name comes first.

    Raises:
        UserError: none of them has; the message says where the nearest one differs.
    """
    told = file.metadata.get("ss_base_model_version", "")
    # a rotation with shared blocks, for one, fits layers of many sizes
    models = sorted(candidates, key=lambda model: not (model.base_version and told.startswith(model.base_version)))
    nearest: tuple[float, str] | None = None
    for model in models:
        known = sum(name in model.naming.read or name in model.naming.fused for name in file.layers)
        try:
            if known == len(file.layers):
                file_without_scales(file).fit(model.naming, model.components)
                return model
            raise UserError(f"it has {known} of the adapter's {len(file.layers)} layers")
        except UserError as error:
            share = known / len(file.layers)
            if nearest is None or share > nearest[0]:
                reason = str(error).removeprefix(f"{file.path}: ").rstrip(".")
                nearest = share, f"{model.name} ({reason})"
    assert nearest is not None, "there is at least one candidate"
    raise UserError(
        f"{file.path}: made for none of {', '.join(model.name for model in models)}; the nearest is {nearest[1]}. "
        "Name its base model's folder by --base."
    )


def file_without_scales(file: AdapterFile) -> AdapterFile:
    """The file as if its scales were plain, so that its shapes can be checked without the base's weights."""
    if not file.base_norm:
        return file
    return AdapterFile(file.path, file.format, file.kind, file.layers, file.keys, file.extra, {})


def names_as_they_are(file: AdapterFile) -> tuple[Layers, AdapterNaming]:
    """The file's layers under its own names, for what needs no model, and the naming that writes them so."""
    layers = {name: dict(parts) for name, parts in file.layers.items()}
    return {"": layers}, AdapterNaming.build({file.format: {("", name): name for name in layers}}, {})


def describe_file(file: AdapterFile, model: ReferenceModel | None = None) -> AdapterDescription:
    """What the file's metadata say, as far as it stays true when it is converted; `model` fills what they leave out."""
    found = file.metadata
    resolution = found.get("modelspec.resolution", "")
    architecture = found.get("modelspec.architecture", "").removesuffix("/lora")
    return AdapterDescription(
        title=found.get("modelspec.title", found.get("ss_output_name", "")),
        architecture=architecture or (model.architecture if model else ""),
        base_version=found.get("ss_base_model_version", "") or (model.base_version if model else ""),
        base_model=found.get("ss_sd_model_name", ""),
        resolution=resolution,
        prediction_type=found.get("modelspec.prediction_type", ""),
        config_hash=found.get("config_hash", ""),
        comment=found.get("ss_training_comment", found.get("modelspec.description", "")),
        neumann=file.neumann,
        kernels=file.kernels,
    )


def with_alpha(components: ComponentLayers, alpha: float) -> Layers:
    """Every layer rebased to `alpha`, for the same ΔW. Raises UserError for kinds without alpha."""
    return _each(components, lambda name, parts: rebase_alpha(parts, alpha))


def with_rank(components: ComponentLayers, rank: int) -> tuple[Layers, Loss]:
    """A LoRA (or DoRA) with another rank; layers whose rank is not above it stay as they are."""
    meter = _LossMeter()

    def resize(name: str, parts: Mapping[str, Tensor]) -> dict[str, Tensor]:
        resized, error = resize_lora(parts, rank)
        kept = torch.linalg.matrix_norm(_product(resized)).item()
        # what is kept and what is lost are orthogonal
        meter.add(name, error, kept / math.sqrt(max(1 - error**2, 1e-12)))
        return resized

    return _each(components, resize), meter.loss()


def as_lora(
    components: ComponentLayers, model: ReferenceModel, rank: int, neumann: bool = False
) -> tuple[Layers, Loss]:
    """The best LoRA of `rank` for an adapter of any kind; alpha is the rank. Changes of biases are left out.

    Here and below, `neumann`: rotations are the Neumann series.
    """
    meter, result = _LossMeter(), {}
    for component, layer, delta in deltas(components, model, neumann):
        name = f"{component}.{layer}"
        down, up, error = _best_lora(name, delta, rank)
        meter.add(name, error, torch.linalg.vector_norm(delta).item())
        parts = {DOWN: down, UP: up, ALPHA: torch.tensor(float(down.shape[0]))}
        result.setdefault(component, {})[layer] = parts
    return result, meter.loss()


def as_diff(components: ComponentLayers, model: ReferenceModel, neumann: bool = False) -> Layers:
    """Every layer's ΔW in full; changes of biases stay."""
    result: Layers = {}
    for component, layer, delta in deltas(components, model, neumann):
        bias = {name: tensor for name, tensor in components[component][layer].items() if name == DIFF_BIAS}
        result.setdefault(component, {})[layer] = {DIFF: delta, **bias}
    return result


def deltas(
    components: ComponentLayers, model: ReferenceModel, neumann: bool = False
) -> Iterator[tuple[str, str, Tensor]]:
    """(component, layer, ΔW float32) of every layer, one at a time.

    Args:
        model: with weights where `AdapterKind.needs_weights` says so; otherwise layers without get zeros, which take
            no memory.
    """
    for component, layers in components.items():
        root = model.components[component]
        for name in layers:
            _fill_with_zeros(root.get_submodule(name))
        for name, adapter in AdapterSet.from_parts(component, root, layers, neumann).adapters.items():
            yield component, name, adapter.merged_delta()


def merge_into(components: ComponentLayers, model: ReferenceModel, neumann: bool = False) -> None:
    """Adds the adapter to the weights (and biases) of `model`, in place."""
    for component, layers in components.items():
        AdapterSet.from_parts(component, model.components[component], layers, neumann).merge()


def extract_lora(base: ReferenceModel, tuned: ReferenceModel, rank: int) -> tuple[Layers, Loss, list[str]]:
    """The LoRA that brings `base` nearest to `tuned`: the truncated SVD of each layer's difference.

    Args:
        base, tuned: the same architecture, with weights.
        rank: of every layer.

    Returns:
        The layers that differ; what the rank loses; and the names of other tensors that differ (norms, biases,
        embeddings), which no LoRA can hold.

    Raises:
        UserError: the architectures differ, or the weights do not.
    """
    meter, result, left_out = _LossMeter(), {}, []
    for component, root in base.components.items():
        other = tuned.components.get(component)
        before, after = root.state_dict(), {} if other is None else other.state_dict()
        for name in sorted(before.keys() | after.keys()):
            if name not in before or name not in after or before[name].shape != after[name].shape:
                raise UserError(
                    f"{tuned.name}: {component}.{name} is missing or has another shape than in {base.name}. "
                    "Expected two models of the same architecture."
                )
            delta = after[name].float() - before[name].float()
            if not torch.any(delta):  # NaN counts as something
                continue
            layer = name.removesuffix(".weight")
            if layer == name or not isinstance(root.get_submodule(layer), (nn.Linear, nn.Conv2d)):
                left_out.append(f"{component}.{name}")
                continue
            down, up, error = _best_lora(f"{tuned.name}: {component}.{layer}", delta, rank)
            meter.add(f"{component}.{layer}", error, torch.linalg.vector_norm(delta).item())
            parts = {DOWN: down, UP: up, ALPHA: torch.tensor(float(down.shape[0]))}
            result.setdefault(component, {})[layer] = parts
    if not result:
        raise UserError(f"{tuned.name}: no layer differs from {base.name}, so there is nothing to extract.")
    return result, meter.loss(), left_out


class _LossMeter:
    """Adds up the errors of layers."""

    def __init__(self) -> None:
        self._lost = self._whole = 0.0
        self._worst = ("", 0.0)

    def add(self, name: str, error: float, norm: float) -> None:
        self._lost += (error * norm) ** 2
        self._whole += norm**2
        # what rounding alone loses is not told
        if error > max(1e-6, self._worst[1]):
            self._worst = (name, error)

    def loss(self) -> Loss:
        return Loss(math.sqrt(self._lost / self._whole) if self._whole else 0.0, *self._worst)


def _each(components: ComponentLayers, change: Callable[[str, Mapping[str, Tensor]], dict[str, Tensor]]) -> Layers:
    result: Layers = {}
    for component, layers in components.items():
        for layer, parts in layers.items():
            name = layer_path(component, layer)
            try:
                result.setdefault(component, {})[layer] = change(name, parts)
            except ValueError as error:
                raise UserError(f"{name}: {error}.") from error
    return result


def _best_lora(name: str, delta: Tensor, rank: int) -> tuple[Tensor, Tensor, float]:
    try:
        return best_lora(delta, rank)
    except ValueError as error:
        raise UserError(f"{name}: {error}.") from error


def _product(parts: Mapping[str, Tensor]) -> Tensor:
    """A small matrix with the norm of up·down, from its factors: R of up's QR times down."""
    _, upper = torch.linalg.qr(parts[UP].float().flatten(1))
    return scale_of(parts) * upper @ parts[DOWN].float().flatten(1)


def _fill_with_zeros(layer: nn.Module) -> None:
    """Gives a layer on the meta device weights of zeros that take no memory."""
    for name, tensor in list(layer.named_parameters(recurse=False)):
        if tensor.is_meta:
            zeros = torch.zeros((), dtype=tensor.dtype).expand(tensor.shape)
            setattr(layer, name, nn.Parameter(zeros, requires_grad=False))
