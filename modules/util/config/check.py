"""Rules that hold between several options, checked when a file is loaded."""

import re
from collections.abc import Callable, Iterator

from modules.util.config.ConceptConfig import ConceptConfig
from modules.util.config.errors import Problem, Remedy, show_value
from modules.util.config.file_kind import name_problem
from modules.util.config.patterns import PatternError, find_pattern, split_patterns
from modules.util.config.TrainConfig import TrainConfig
from modules.util.enum.DataType import DataType
from modules.util.enum.LearningRateScheduler import LearningRateScheduler

# keys that can't be empty, and what they hold
TEXT_FORMATS = (DataType.NONE, DataType.BFLOAT_16, DataType.FLOAT_16)
NEEDED = {
    "base_model_name": "a folder, a file or a hub name",
    "output_model_destination": "the file to write",
    "workspace_dir": "a folder",
    "cache_dir": "a folder",
}


def check_train_config(config: TrainConfig) -> list[Problem]:
    """Every problem that no single option shows."""
    return [problem for rule in RULES for problem in rule(config)]


def empty_texts(config: TrainConfig) -> list[Problem]:
    """Texts that a run can't do without."""
    return [
        Problem(key, f"is empty, expected {what}") for key, what in NEEDED.items() if not getattr(config, key).strip()
    ]


def check_concept(concept: ConceptConfig) -> list[Problem]:
    """The same for a concept."""
    text = concept.text
    if text.tag_dropout_special_tags_regex and not text.tag_dropout_special_tags.endswith((".txt", ".csv")):
        return list(
            _broken_patterns("text.tag_dropout_special_tags", text.tag_dropout_special_tags, text.tag_delimiter or ",")
        )
    return []


def _noise_range(config: TrainConfig) -> Iterator[Problem]:
    if config.min_noising_strength >= config.max_noising_strength:
        yield Problem(
            "min_noising_strength",
            f"found {config.min_noising_strength:g}, expected less than "
            f"max_noising_strength, which is {config.max_noising_strength:g}",
        )


def _one_target(config: TrainConfig) -> Iterator[Problem]:
    if config.force_v_prediction and config.force_epsilon_prediction:
        yield Problem("force_v_prediction", "found true, expected false, as force_epsilon_prediction is true")


def _some_loss(config: TrainConfig) -> Iterator[Problem]:
    names = ("mse_strength", "mae_strength", "log_cosh_strength", "huber_strength")
    if not any(getattr(config, name) for name in names):
        yield Problem("mse_strength", f"found 0, expected at least one of {', '.join(names)} above 0")


def _custom_schedule(config: TrainConfig) -> Iterator[Problem]:
    for index, entry in enumerate(config.scheduler_params or []):
        if not isinstance(entry.get("key"), str) or "value" not in entry:
            yield Problem(f"scheduler_params.{index}", 'expected an object with "key" (a text) and "value"')
    name = config.custom_learning_rate_scheduler
    if config.learning_rate_scheduler == LearningRateScheduler.CUSTOM and not re.fullmatch(
        r"[^\W\d]\w*(\.[^\W\d]\w*)+", name or ""
    ):
        yield Problem(
            "custom_learning_rate_scheduler",
            f"found {show_value(name)}, expected module.Class, as learning_rate_scheduler is CUSTOM",
        )


def _patterns(config: TrainConfig) -> Iterator[Problem]:
    if config.layer_filter_regex:
        yield from _broken_patterns("layer_filter", config.layer_filter)
    if config.quantization.layer_filter_regex:
        yield from _broken_patterns("quantization.layer_filter", config.quantization.layer_filter)
    if config.optimizer.muon_adam_regex:
        yield from _broken_patterns("optimizer.muon_hidden_layers", config.optimizer.muon_hidden_layers or "")


def _broken_patterns(path: str, patterns: str, delimiter: str = ",") -> Iterator[Problem]:
    for pattern in split_patterns(patterns, delimiter):
        try:
            find_pattern(pattern)
        except PatternError as error:
            yield Problem(path, f"found {show_value(pattern)}, expected a regular expression: {error}")


def _file_names(config: TrainConfig) -> Iterator[Problem]:
    if reason := name_problem(config.save_filename_prefix):
        yield Problem("save_filename_prefix", f"found {show_value(config.save_filename_prefix)}: {reason}")


def _text_format(config: TrainConfig) -> Iterator[Problem]:
    if config.text_cache_dtype not in TEXT_FORMATS:
        text = f"found {config.text_cache_dtype}, expected one of {', '.join(TEXT_FORMATS)}"
        yield Problem("text_cache_dtype", text, (Remedy.of({"text_cache_dtype": "BFLOAT_16"}),))


RULES: tuple[Callable[[TrainConfig], Iterator[Problem]], ...] = (
    _noise_range,
    _one_target,
    _some_loss,
    _custom_schedule,
    _patterns,
    _file_names,
    _text_format,
)
