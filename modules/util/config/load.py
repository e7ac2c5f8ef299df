"""From files to validated configs."""

import copy
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from modules.util.config.BaseConfig import VERSION_KEY
from modules.util.config.check import check_concept, check_train_config
from modules.util.config.ConceptConfig import ConceptConfig
from modules.util.config.errors import ConfigError, Problem, join_path
from modules.util.config.field_type import default_of
from modules.util.config.file_kind import is_missing
from modules.util.config.override import apply_overrides
from modules.util.config.read_json import read_json
from modules.util.config.SampleConfig import SampleConfig
from modules.util.config.TrainConfig import TrainConfig
from modules.util.config.unknown import unknown_keys_warning

logger = logging.getLogger(__name__)


def load_train_config(
    path: str | Path,
    overrides: Sequence[str] = (),
    *,
    warn: Callable[[str], None] = logger.warning,
    pipes: bool = False,
) -> TrainConfig:
    """Reads a preset or a full config; what it does not mention has its default.

    Args:
        path: a JSON file.
        overrides: texts `path=value` that are set before validation, see `apply_overrides`.
        warn: gets one line if there are keys without effect.
        pipes: whether the file may be a pipe, see `read_json`.

    Raises:
        ConfigError: naming every wrong key or value, or why the file cannot be read.
    """
    source = str(path)
    return train_config_from_dict(read_json(path, pipes=pipes), source, overrides, warn=warn)


def train_config_from_dict(
    data: Mapping[str, Any],
    source: str = "config",
    overrides: Sequence[str] = (),
    *,
    warn: Callable[[str], None] = logger.warning,
) -> TrainConfig:
    """The same from parsed JSON, as that in a backup or in a model file's metadata."""
    version = data.get(VERSION_KEY)
    try:
        data = TrainConfig.upgrade(copy.deepcopy(dict(data)))
    except ConfigError as error:
        raise error.within(source) from None
    apply_overrides(data, TrainConfig, overrides)
    config = TrainConfig.from_dict(data, source + (" with overrides" if overrides else ""))
    problems = check_train_config(config)
    problems += [
        Problem(join_path("concepts", index, problem.path), problem.text)
        for index, concept in enumerate(config.concepts or [])
        for problem in check_concept(concept)
    ]
    if problems:
        raise ConfigError(problems, source)
    if version is not None and version > TrainConfig.FORMAT_VERSION:
        warn(
            f"{source}: written by a newer program (format {version}, this one knows {TrainConfig.FORMAT_VERSION}); "
            "options may have another meaning there"
        )
    if message := unknown_keys_warning(config, source):
        warn(message)
    return config


def resolve_concepts(config: TrainConfig, *, warn: Callable[[str], None] = logger.warning) -> list[ConceptConfig]:
    """The run's concepts: those in the config, or those of its `concept_file_name`, disabled ones included.

    Paths are relative to the working directory, as they are in OneTrainer.

    Raises:
        ConfigError: naming file and key.
    """
    if config.concepts is not None:
        return list(config.concepts)
    return load_concepts(_listed_file(config, "concept_file_name", "concepts"), warn=warn)


def resolve_samples(
    config: TrainConfig, defaults: Mapping[str, Any] | None = None, *, warn: Callable[[str], None] = logger.warning
) -> list[SampleConfig]:
    """The run's samples: those in the config, or those of its `sample_definition_file_name`.

    The usual file need not be there: a run without it has no samples.

    Args:
        config: the run's config.
        defaults: values for keys that a sample does not mention, as a model family's usual size. Samples that stand in
            the config itself have the general defaults instead.
        warn: gets one line if there are keys without effect.
    """
    if config.samples is not None:
        return list(config.samples)
    if lacks_usual_samples(config):
        return []
    return load_samples(_listed_file(config, "sample_definition_file_name", "samples"), defaults, warn=warn)


def lacks_usual_samples(config: TrainConfig) -> bool:
    """Whether the samples are those of the usual file, which is not there before the first sample is added."""
    usual = default_of(TrainConfig, "sample_definition_file_name")
    return config.samples is None and config.sample_definition_file_name == usual and is_missing(usual)


def load_concepts(path: str | Path, *, warn: Callable[[str], None] = logger.warning) -> list[ConceptConfig]:
    """Reads a JSON list of concepts."""
    concepts = _load_list(path, ConceptConfig, {}, warn)
    problems = [
        Problem(join_path(index, problem.path), problem.text)
        for index, concept in enumerate(concepts)
        for problem in check_concept(concept)
    ]
    if problems:
        raise ConfigError(problems, str(path))
    return concepts


def load_samples(
    path: str | Path, defaults: Mapping[str, Any] | None = None, *, warn: Callable[[str], None] = logger.warning
) -> list[SampleConfig]:
    """Reads a JSON list of samples."""
    return _load_list(path, SampleConfig, defaults or {}, warn)


def pack(config: TrainConfig) -> TrainConfig:
    """A copy that holds its concepts and samples itself, so that it means the same without their files."""
    packed = TrainConfig.from_dict(config)
    packed.concepts = resolve_concepts(config, warn=lambda _: None)
    packed.samples = resolve_samples(config, warn=lambda _: None)
    return packed


def _listed_file(config: TrainConfig, key: str, inline: str) -> str:
    path = getattr(config, key)
    if not path.strip():
        raise ConfigError(Problem(key, f"found an empty text, expected a file, as {inline} is null"))
    if is_missing(path):
        raise ConfigError(
            f"there is no such file. Make it (a JSON list of the {inline}), set {key} to another one, or put the list "
            f"into the config under {inline}",
            path,
        )
    return path


def _load_list(path: str | Path, config_class: type, defaults: Mapping[str, Any], warn: Callable[[str], None]) -> list:
    configs, problems = [], []
    for index, item in enumerate(read_json(path, list)):
        try:
            configs.append(config_class.from_dict({**defaults, **item} if isinstance(item, dict) else item))
        except ConfigError as error:
            problems += error.within("", str(index)).problems
    if problems:
        raise ConfigError(problems, str(path))
    if message := unknown_keys_warning(configs, str(path)):
        warn(message)
    return configs
