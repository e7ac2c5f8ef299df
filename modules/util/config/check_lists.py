"""What is wrong with a run's concepts and samples, in the config or in files of their own. No image is read."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path

from modules.util.config.ConceptConfig import ConceptConfig
from modules.util.config.errors import ConfigError, Problem, Remedy
from modules.util.config.file_kind import is_missing
from modules.util.config.load import lacks_usual_samples, resolve_concepts, resolve_samples
from modules.util.config.SampleConfig import SampleConfig
from modules.util.config.TrainConfig import TrainConfig
from modules.util.config.unread import sample_problems
from modules.util.enum.ConceptType import ConceptType

Lines = Callable[[str, ConfigError], Sequence[str]]


def plain_lines(key: str, error: ConfigError) -> list[str]:
    """What is wrong with a list in a file of its own, a line for each problem, by the keys of the JSON."""
    where = f"{error.source}: " if error.source else ""
    return [f"{where}{problem}" for problem in error.problems]


def list_problems(config: TrainConfig, lines: Lines = plain_lines) -> list[Problem]:
    """Lists that can't be read, folders that are not there, nothing to train on.

    Args:
        config: of the run.
        lines: "concepts" or "samples", and what reading the list raised -> a line for each problem.
    """
    found = []
    for key, file_key, resolve, first in (
        ("concepts", "concept_file_name", resolve_concepts, "a folder of images in the tab concepts"),
        ("samples", "sample_definition_file_name", resolve_samples, "a sample in the tab sampling"),
    ):
        file = getattr(config, file_key)
        if key == "samples" and lacks_usual_samples(config):
            continue
        if getattr(config, key) is None and file.strip() and is_missing(file):
            text = (
                f"there is no such file yet: '{file}'; add {first} of the window, which makes it, write it (a JSON "
                f"list of {key}), name another, or put the list into the config under {key}"
            )
            empty = (Remedy.of({key: []}),) if key == "samples" else ()
            found.append(Problem(file_key, text, empty))
            continue
        try:
            items = resolve(config, warn=lambda _: None)
        except ConfigError as error:
            found += [Problem(file_key, line) for line in lines(key, error)]
        else:
            found += _concepts(config, items) if key == "concepts" else _samples(items)
    return found


def concept_label(concept: ConceptConfig, index: int) -> str:
    """How a concept is called in messages."""
    return f'concept {index + 1} "{concept.name or Path(concept.path).name}"'


def folder_problem(concept: ConceptConfig, index: int) -> str:
    """What is wrong with the folder of a concept, empty if nothing."""
    label = concept_label(concept, index)
    if not concept.path.strip():
        return f"{label}: path is empty; expected the folder that holds its images"
    try:
        if os.path.isdir(concept.path):
            return ""
        what = "is a file" if os.path.exists(concept.path) else "does not exist"
    except ValueError:
        what = "can't be a path"
    return f"{label}: the folder '{concept.path}' {what}; correct its path, or disable the concept"


def _samples(samples: Sequence[SampleConfig]) -> list[Problem]:
    used = [(index, sample) for index, sample in enumerate(samples) if sample.enabled]
    lines = [line for index, sample in used for line in sample_problems(sample, f"sample {index + 1}")]
    return [Problem("samples", line) for line in lines]


def _concepts(config: TrainConfig, concepts: Sequence[ConceptConfig]) -> list[Problem]:
    used = [(index, concept) for index, concept in enumerate(concepts) if concept.enabled]
    if not any(concept.type != ConceptType.VALIDATION for _, concept in used):
        return [Problem("concepts", "there is nothing to train on; add a folder of images as a concept, or enable one")]
    found = []
    if config.validation and not any(concept.type == ConceptType.VALIDATION for _, concept in used):
        text = "there is no image to validate with: no enabled concept has type VALIDATION"
        found.append(Problem("validation", text, (Remedy.of({"validation": False}),)))
    # those that are used for nothing need not be there
    needed = [(index, own) for index, own in used if own.type != ConceptType.VALIDATION or config.validation]
    texts = [folder_problem(concept, index) for index, concept in needed]
    return found + [Problem("concepts", text) for text in texts if text]
