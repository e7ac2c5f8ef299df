"""The one list of what is wrong with a run before its base model is opened: for a run, `--validate` and the window."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path

from modules.dataLoader.check_dataset import concept_problems
from modules.dataLoader.plan_size import MOST_STEPS
from modules.model.BaseModel import BaseModel, family_of
from modules.model.diffusion_noise import check_distribution
from modules.model.hub import Hub, check_hub_name
from modules.model.model_name import check_model_name, named_models, read_model_name
from modules.model.ModelSource import check_folder
from modules.model.QuantizedLinear import kernel_note
from modules.model.sample_pictures import picture_problems
from modules.model.weight_formats import check_offload, component_dtype
from modules.trainer.device_settings import device_problems, prepare_process
from modules.trainer.devices import resolve_device, usable_device
from modules.trainer.loggers import logger_problems
from modules.trainer.lr_schedule import scaled_learning_rate, schedule_factor
from modules.trainer.Method import Method
from modules.trainer.optimizer_checks import optimizer_problems
from modules.trainer.preflight import idle_gpu_note
from modules.trainer.several_gpus import several_problems
from modules.trainer.shard_checks import shard_problems
from modules.trainer.trained import METHODS, methods_of, options_of
from modules.trainer.trained_formats import mixed_half_problems
from modules.util.config.check import check_train_config, empty_texts
from modules.util.config.check_lists import Lines, concept_label, list_problems, plain_lines
from modules.util.config.ConceptConfig import ConceptConfig
from modules.util.config.conditioning import conditioning_problems, sample_conditioning_problems, unread_pictures
from modules.util.config.errors import ConfigError, Problem, Remedy
from modules.util.config.load import resolve_concepts, resolve_samples
from modules.util.config.TrainConfig import TrainConfig
from modules.util.config.unread import unread_notes, unread_problems
from modules.util.dtypes import TRAIN_DTYPES
from modules.util.enum.ConceptType import ConceptType
from modules.util.enum.ConditioningSource import ConditioningSource
from modules.util.enum.DataType import DataType
from modules.util.enum.TimeUnit import TimeUnit
from modules.util.found_problems import found, raise_problems
from modules.util.UserError import UserError
from modules.util.write_place import check_folder_place, check_output_place

import torch

Warn = Callable[[str], None]

# steps of the run whose learning rate is asked for, to see whether there is one
TRIAL_STEPS = 8


def run_problems(config: TrainConfig, warn: Warn = lambda _: None, lines: Lines = plain_lines) -> list[Problem]:
    """Every reason why a run would not start, as far as config, lists and folders tell. Nothing is written.

    What only the images or the base model's own files can tell is found by `check_dataset` and `open_model`.

    Args:
        config: of the run.
        warn: gets what a user should know of options that are accepted.
        lines: how problems in lists are told, see `list_problems`.
    """
    problems = [*check_train_config(config), *empty_texts(config), *list_problems(config, lines)]
    problems += _of_concepts(config, warn)
    problems += _of_device(config)
    problems += several_problems(config)
    problems += shard_problems(config)
    if note := idle_gpu_note(config):
        warn(note)
    problems += found(usable_device, "temp_device", config.temp_device)
    warmup = config.learning_rate_warmup_steps
    problems += found(schedule_factor, config, TRIAL_STEPS + (0 if warmup <= 1 else min(round(warmup), MOST_STEPS)))
    problems += found(check_distribution, config)
    problems += _of_places(config)
    problems += logger_problems(config)
    problems += _of_family(config, warn)
    return list(dict.fromkeys(problems))


def check_models(config: TrainConfig) -> None:
    """Asks the hub for the models that are named. Raises UserError if it has them not, or not for this user."""
    names = named_models(config, family_of(config).modules)
    raise_problems([problem for key, name in names.items() for problem in found(check_hub_name, name, key, config)])


def check_sample_pictures(config: TrainConfig) -> None:
    """Reads the pictures from which samples start; UserError names those that can't be used."""
    if config.sample_after_unit != TimeUnit.NEVER:
        family = family_of(config)
        samples = resolve_samples(config, family.sample_defaults, warn=lambda _: None)
        raise_problems(picture_problems(samples, family.conditioning))


def open_model(config: TrainConfig, device: torch.device, warn: Warn, hub: Hub | None = None) -> BaseModel:
    """The base model, none of its weights loaded, and all checks that need its layers' names and sizes.

    Args:
        config: of the run.
        device: where its components will work.
        warn: gets what a user should know.
        hub: of the run; None: one that reports nothing.

    Raises:
        UserError: there is no such model, or it is another one than the config needs.
    """
    model = family_of(config).load(config, device, hub)
    for method in methods_of(config):
        method.check_output(model, config, warn)
    model.check_layers()
    for note in sorted({kernel_note(config.component_weight_dtype(name), device) for name in model.modules} - {""}):
        warn(note)
    return model


def _of_device(config: TrainConfig) -> list[Problem]:
    prepare_process(config)
    return found(resolve_device, config) or device_problems(config, resolve_device(config))


def _of_concepts(config: TrainConfig, warn: Warn) -> list[Problem]:
    try:
        concepts = resolve_concepts(config, warn=lambda _: None)
    except ConfigError:
        # told with the lists
        return []
    conditioning = ConditioningSource.NONE if found(family_of, config) else family_of(config).conditioning
    return [*concept_problems(config, concepts, conditioning), *_of_prior(config, concepts, warn)]


def _of_prior(config: TrainConfig, concepts: Sequence[ConceptConfig], warn: Warn) -> list[Problem]:
    """Concepts that ask the model without what is trained, where there is no such model."""
    own = [concept_label(concept, index) for index, concept in enumerate(concepts) if _is_prior(concept)]
    if not own:
        return []
    if not any(concept.enabled and concept.type == ConceptType.STANDARD for concept in concepts):
        warn("concepts: all that are trained have type PRIOR_PREDICTION, with which nothing new is learned.")
    if found(methods_of, config) or all(method.keeps_model for method in methods_of(config)):
        return []
    able = ", ".join(str(method.training_method) for method in METHODS if method.training_method and method.keeps_model)
    text = (
        f"{own[0]}: type PRIOR_PREDICTION needs the model as it was beside what is trained, which {able} keeps, but "
        f"{config.training_method} does not. Set type to STANDARD, disable the concept, or train with {able}"
    )
    return [Problem("concepts", text)]


def _is_prior(concept: ConceptConfig) -> bool:
    return concept.enabled and concept.type == ConceptType.PRIOR_PREDICTION


# -- places ---------------------------------------------------------------------------------------------------------


def _of_places(config: TrainConfig) -> list[Problem]:
    problems = []
    for key in ("workspace_dir", "cache_dir", "output_model_destination"):
        text = getattr(config, key)
        if text.strip():
            problems += found(check_place, Path(text), key, key != "output_model_destination")
    output = Path(config.output_model_destination)
    if config.prevent_overwrites and not problems and config.output_model_destination.strip() and output.exists():
        text = f"{output} exists and prevent_overwrites is on. Choose another name, or move it"
        problems.append(Problem("output_model_destination", text, (Remedy.of({"prevent_overwrites": False}),)))
    return problems


def check_place(path: Path, key: str, is_folder: bool) -> None:
    """UserError if a file or folder certainly can't be written. Nothing is made, so that a text can be half typed."""
    try:
        # the output's own kind depends on the format; methods look at it
        (check_folder_place if is_folder else check_output_place)(path, key)
        above = next((folder for folder in (path.absolute(), *path.absolute().parents)[1:] if folder.exists()), None)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise UserError(f"{key}: {path} can't be a path: {reason}. Choose another place.") from error
    if above is None:
        raise UserError(f"{key}: nothing of {path} exists. Choose another place.")
    if not above.is_dir():
        raise UserError(f"{key}: {path} can't be written: {above} is no folder. Choose another place.")
    if not os.access(above if not path.exists() else path, os.W_OK):
        raise UserError(f"{key}: {path} can't be written: permission denied. Choose another place.")


# -- what depends on the family --------------------------------------------------------------------------------------


def _of_family(config: TrainConfig, warn: Warn) -> list[Problem]:
    problems = [*found(family_of, config), *found(methods_of, config)]
    if problems:
        return problems
    family, methods = family_of(config), methods_of(config)
    problems += _unsupported(config, family, warn)
    problems += family.check_config(config)
    problems += _of_conditioning(config, family, warn)
    problems += _of_instructions(config, family, methods)
    problems += _of_models(config, family)
    for component in family.modules:
        problems += found(component_dtype, config, component)
        problems += found(check_offload, component, config)
    problems += _of_cpu(config, family, methods)
    for method in methods:
        problems += method.check(config, family, warn)
        problems += found(_check_output_kind, config, method.writes_folder(config))
    sets = [name for method in methods for name in method.planned_sets(config, family)]
    rates = {name: scaled_learning_rate(config, options_of(config, name).learning_rate) for name in sets}
    return problems + optimizer_problems(config, warn, rates)


def _of_cpu(config: TrainConfig, family: type[BaseModel], methods: Sequence[Method]) -> list[Problem]:
    if family.mixes_half_formats or found(resolve_device, config) or resolve_device(config).type != "cpu":
        return []
    denoiser, *encoders = family.trainable_components
    text = any(method.trains_text(config, family.trainable_components) for method in methods)
    return mixed_half_problems(config, [denoiser, *(encoders if text else ())])


def _of_conditioning(config: TrainConfig, family: type[BaseModel], warn: Warn) -> list[Problem]:
    problems = conditioning_problems(config, family.conditioning)
    if config.sample_after_unit == TimeUnit.NEVER:
        return problems
    try:
        samples = resolve_samples(config, family.sample_defaults, warn=lambda _: None)
    except ConfigError:
        # told with the lists
        return problems
    if note := unread_pictures(config, samples, family.conditioning):
        warn(note)
    return problems + sample_conditioning_problems(config, samples, family.conditioning)


def _of_instructions(config: TrainConfig, family: type[BaseModel], methods: Sequence[Method]) -> list[Problem]:
    """Captions that are encoded in each step, where they would have to be read together with pixels."""
    if family.conditioning == ConditioningSource.NONE or not family.captions_see_conditioning:
        return []
    if not any(method.trains_text(config, family.trainable_components) for method in methods):
        return []
    why = (
        f"{config.model_type} reads captions together with the conditioning image, which is not at hand in training "
        "steps, so its text encoders are not trained"
    )
    sets = [name for method in methods for name in method.planned_sets(config, family)]
    encoders = [name for name in sets if name in family.trainable_components and name.startswith("text_encoder")]
    if not encoders:
        return [Problem("", f"trained embeddings: {why}. Set train of each embedding to false, or train adapters")]
    return [
        Problem(f"{name}.train", f"found true, but {why}. Set it to false", (Remedy.of({f"{name}.train": False}),))
        for name in encoders
    ]


def _check_output_kind(config: TrainConfig, folder: bool) -> None:
    """UserError if a folder stands where a file is to be written."""
    path = Path(config.output_model_destination)
    if not folder and config.output_model_destination.strip() and path.is_dir():
        better = path / "lora.safetensors"
        raise UserError(
            f"output_model_destination: {path} is a folder, expected a file name such as {better}.",
            Remedy.of({"output_model_destination": better.as_posix()}),
        )


def _of_models(config: TrainConfig, family: type[BaseModel]) -> list[Problem]:
    """Base model and components from elsewhere that are not there."""
    problems = found(_check_base, config, family) if config.base_model_name.strip() else []
    for key, name in named_models(config, family.modules).items():
        if key != "base_model_name":
            problems += found(check_model_name, name, key, config)
    return problems


def _check_base(config: TrainConfig, family: type[BaseModel]) -> None:
    check_model_name(config.base_model_name, "base_model_name", config)
    path = read_model_name(config.base_model_name)
    if isinstance(path, Path) and path.is_dir():
        check_folder(path, [*family.needed_folders(config), "scheduler"], family.brought)


def _unsupported(config: TrainConfig, family: type[BaseModel], warn: Warn) -> list[Problem]:
    """Options without code are refused; those that would change nothing but speed are told in one line."""
    problems, trainable = [], family.trainable_components
    if config.train_dtype not in TRAIN_DTYPES:
        text = f"found {config.train_dtype}, expected one of {', '.join(TRAIN_DTYPES)}"
        remedies = tuple(Remedy.of({"train_dtype": str(dtype)}) for dtype in (DataType.FLOAT_32, DataType.BFLOAT_16))
        problems.append(Problem("train_dtype", text, remedies))
    components = [name for name in family.modules if name in TrainConfig.model_fields]
    problems += unread_problems(config, components)
    if note := unread_notes(config, components):
        warn(note)
    _tell_dropout(config, trainable, warn)
    _tell_untrained(config, components, trainable, warn)
    return problems


def _tell_untrained(config: TrainConfig, components: Sequence[str], trainable: Sequence[str], warn: Warn) -> None:
    """Text encoders that a file asks to train in a family that can't; the option's default asks for nothing."""
    for component in components:
        own = getattr(config, component)
        asked = own.train and "train" in own.model_fields_set
        if asked and component.startswith("text_") and component not in trainable:
            warn(f"{component}.train has no effect: this trainer trains no text encoder of {config.model_type}.")


def _tell_dropout(config: TrainConfig, trainable: Sequence[str], warn: Warn) -> None:
    dropout = config.text_encoder.dropout_probability
    for component in trainable:
        own = getattr(config, component)
        if component.startswith("text_encoder_") and own.dropout_probability != dropout:
            warn(
                f"{component}.dropout_probability {own.dropout_probability:g} has no effect: a caption is dropped for "
                f"all text encoders at once, by text_encoder.dropout_probability, which is {dropout:g}."
            )
