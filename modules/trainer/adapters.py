"""The adapters that a run trains."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from modules.model.BaseModel import BaseModel
from modules.modelSaver.AdapterFile import read_adapter
from modules.module.AdapterModule import AdaptedLayer
from modules.module.AdapterSet import AdapterSet, adaptable_layers, adapter_class_of, class_of_layers, usual_options
from modules.module.layer_notes import summarized
from modules.module.LoRAModule import DOWN, FEWER_RANKS, without_extra_ranks
from modules.util.config.errors import Remedy
from modules.util.config.TrainConfig import TrainConfig
from modules.util.enum.PeftType import PeftType
from modules.util.LayerFilter import LayerFilter
from modules.util.ParameterInfo import layer_path
from modules.util.UserError import UserError
from scaled_optim.rules.registry import RULES

from torch import Tensor

# component -> layer -> part -> tensor
ComponentLayers = Mapping[str, Mapping[str, Mapping[str, Tensor]]]


def make_adapters(
    model: BaseModel, config: TrainConfig, components: Sequence[str], warn: Callable[[str], None]
) -> dict[str, AdapterSet]:
    """Hooked adapters of each component, in training mode; with the weights of `lora_model_name` if it names a file.

    Args:
        model: loaded; its components get gradient checkpointing as the config says.
        config: kind of adapter, layers, seed.
        components: of the model.
        warn: gets remarks, one line each.
    """
    chosen = LayerFilter.from_config(config, model.layer_filter_presets)
    for note in chosen.notes:
        warn(note)
    start: ComponentLayers = {}
    notes: list[tuple[str, str]] = []
    if config.lora_model_name:
        start, options = read_start(config, components, model, warn)
        # components that the file lacks get fresh adapters of its kind, as a file holds one kind
        config = config.model_copy(update=options)
        rule = RULES.get(str(config.optimizer.optimizer))
        if rule is not None and rule.orthonormal_up:
            start, narrowed = narrow_start(start)
            notes += narrowed
    sets: dict[str, AdapterSet] = {}
    for component in components:
        # the filter names layers of the denoiser; text encoders are adapted whole, as OneTrainer does
        own = None if component.startswith("text_encoder") else chosen
        adapters = AdapterSet(component, model.components[component], config, own, config.seed, start.get(component))
        notes += adapters.layer_notes
        adapters.to(model.device).train()
        adapters.hook()
        model.set_gradient_checkpointing(component, getattr(config, component).gradient_checkpointing)
        sets[component] = adapters
    options_told = dict.fromkeys(note for adapters in sets.values() for note in adapters.option_notes)
    for note in [*options_told, *summarized(notes)]:
        warn(note)
    model.text_encoder_trained = any(component.startswith("text_encoder") for component in components)
    return sets


def check_layers(model: BaseModel, config: TrainConfig, components: Sequence[str]) -> None:
    """UserError if no layers are there that the config names, or the adapter to continue is none of this model.

    Args:
        model: none of its weights need be there.
        config: of the run.
        components: of the model that are trained.
    """
    chosen = LayerFilter.from_config(config, model.layer_filter_presets)
    for component in components:
        if not component.startswith("text_encoder"):
            chosen.select(adaptable_layers(model.layers_of(component)), component)
    _check_rank(model, config, components)
    if config.lora_model_name:
        _check_components(
            config.lora_model_name, read_adapter(config.lora_model_name).resolve(model.adapter_naming()), components
        )


def _check_rank(model: BaseModel, config: TrainConfig, components: Sequence[str]) -> None:
    """UserError for more ranks than the largest layer can have: they add nothing, and may not fit into memory."""
    if config.peft_type not in (PeftType.LORA, PeftType.LOHA) or config.lora_model_name:
        return
    layers = (layer for component in components for layer in adaptable_layers(model.layers_of(component)).values())
    most = max((min(layer.weight.shape[0], layer.weight[0].numel()) for layer in layers), default=config.lora_rank)
    if config.lora_rank > most:
        raise UserError(
            f"lora_rank: found {config.lora_rank}, expected at most {most}, which is the full rank of this model's "
            "largest layers.",
            Remedy.of({"lora_rank": most}),
        )


def _check_components(path: str, layers: Mapping[str, object], components: Sequence[str]) -> None:
    for component in layers:
        if component not in components:
            raise UserError(
                f"lora_model_name: {path} adapts the {component}, which this run does not train. Train it, too."
            )


def read_start(
    config: TrainConfig, components: Sequence[str], model: BaseModel, warn: Callable[[str], None]
) -> tuple[ComponentLayers, dict[str, Any]]:
    """The adapter of `lora_model_name`, of any readable format.

    Args:
        config: its options give way to the file's; where they differ, `warn` is told.
        components: that the run trains.
        model: loaded.
        warn: gets one line at most.

    Returns:
        component -> layer -> part of the adapter -> tensor; and the options that most layers have, kind included.

    Raises:
        UserError: the file is none, does not fit the model, or adapts a component that is not trained.
    """
    path = config.lora_model_name
    file = read_adapter(path)
    if file.kind.base == "diff":
        raise UserError(
            f"lora_model_name: {path} holds whole weight differences, which is no adapter that can be trained. "
            "Make a LoRA of it with scripts/convert_adapter.py."
        )
    start = file.fit(model.adapter_naming(), model.components, warn)
    every: list[dict[str, Any]] = []
    differences: dict[str, dict[Any, Any]] = {}
    _check_components(path, start, components)
    for component, layers in start.items():
        for name, tensors in layers.items():
            try:
                options, others = _options(
                    tensors, model.components[component].get_submodule(name), component, name, config
                )
            except UserError as error:
                raise UserError(f"lora_model_name: {path}: {component}.{name}: {error}") from error
            every.append(options)
            for option, own in others.items():
                differences.setdefault(option, {})[options[option]] = own
    usual = usual_options(every)
    if file.neumann is not None:
        usual["oft_cayley_neumann"] = file.neumann
        if config.oft_cayley_neumann != file.neumann:
            differences["oft_cayley_neumann"] = {file.neumann: config.oft_cayley_neumann}
    changes = [_change(option, values) for option, values in differences.items()]
    if changes:
        warn(f"lora_model_name: the options of {path} count, not the config's: {'; '.join(changes)}.")
    return start, usual


def narrow_start(start: ComponentLayers) -> tuple[ComponentLayers, list[tuple[str, str]]]:
    """The adapter of a file with at most as many ranks as each layer has outputs, for the same change of the weights.

    Returns:
        As `read_start`; and a note for each layer that changed, see `summarized`.
    """
    result: dict[str, dict[str, Mapping[str, Tensor]]] = {}
    notes = []
    for component, layers in start.items():
        for name, tensors in layers.items():
            narrow = without_extra_ranks(tensors)
            result.setdefault(component, {})[name] = narrow
            if narrow is not tensors:
                ranks = f"rank {len(tensors[DOWN])} → {len(narrow[DOWN])}"
                notes.append((FEWER_RANKS, f"{layer_path(component, name)}: {ranks}, its outputs, for the same change"))
    return result, notes


def _options(
    tensors: Mapping[str, Tensor], layer: AdaptedLayer, component: str, name: str, config: TrainConfig
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The options of an adapter that was read; and the config's own values of those that differ."""
    kind = class_of_layers({name: tensors})
    options = kind.options_of(tensors, layer)
    others = {name: getattr(config, name) for name, value in options.items() if getattr(config, name) != value}
    if others and adapter_class_of(config) is kind:
        # sizes that the config leaves to the layer differ in words only: compare with what it would make here
        own = kind.options_of(kind.create(layer, component, name, config, config.seed).parts(), layer)
        others = {name: value for name, value in others.items() if options[name] != own.get(name, value)}
    return options, others


def _change(option: str, values: Mapping[Any, Any]) -> str:
    """`values`: of the file -> of the config, which is one and the same."""
    found = [_shown(value) for value in values]
    more = " …" if len(found) > 3 else ""
    return f"{option} {', '.join(found[:3])}{more} instead of {_shown(next(iter(values.values())))}"


def _shown(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
