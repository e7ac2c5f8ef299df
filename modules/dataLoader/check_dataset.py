"""The dataset check: reads every file before the model is loaded, and says what is wrong with which."""

import hashlib
import logging
import os
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from modules.dataLoader.buckets import enlargement
from modules.dataLoader.captions import CaptionError, check_special_tags, find_captions, read_prompt_file
from modules.dataLoader.CheckedImages import CheckedImages
from modules.dataLoader.DatasetReport import DatasetImage, DatasetReport, RejectedFile
from modules.dataLoader.decode_image import ImageError
from modules.dataLoader.find_images import OTHER_IMAGE_SUFFIXES, companion_path, find_images
from modules.dataLoader.ImageSource import resolutions_of
from modules.dataLoader.plan_size import check_plan_size
from modules.dataLoader.progress import Progress, track
from modules.util.config.check_lists import concept_label, folder_problem
from modules.util.config.ConceptConfig import ConceptConfig
from modules.util.config.errors import Problem, Remedy
from modules.util.config.TrainConfig import TrainConfig
from modules.util.enum.ConceptType import ConceptType
from modules.util.found_problems import found
from modules.util.UserError import UserError

from PIL import Image

logger = logging.getLogger(__name__)

SMALLEST_SIDE = 8
"""Images with a shorter side than this, in pixels, are left out."""

LARGEST_ENLARGEMENT = 8.0
"""Images that would have to be scaled up further than this are left out."""

MASK_ASPECT_TOLERANCE = 0.02
"""A mask may differ from its image in aspect by this share; programs round when they scale."""


@dataclass
class _Found:
    """What became of one file."""

    image: DatasetImage | None = None
    rejected: RejectedFile | None = None
    warnings: list[str] = field(default_factory=list)
    enlargement: float = 0.0


@dataclass(frozen=True)
class _Task:
    index: int
    concept: ConceptConfig
    name: str
    path: str
    prompts: tuple[str, ...]


def check_dataset(
    config: TrainConfig,
    concepts: Sequence[ConceptConfig],
    *,
    warn: Callable[[str], None] = logger.warning,
    progress: Progress | None = None,
    bar: bool = True,
) -> DatasetReport:
    """Decodes every image of the enabled concepts and reads every caption and mask.

    Files that cannot be used are left out and named. Needs no model.

    Args:
        config: the run's config; VALIDATION concepts are read only with `validation` on.
        concepts: all concepts, disabled ones included.
        warn: gets each rejected file and each warning, one line each.
        progress: is told how many files are done (stage "check").
        bar: whether a progress bar is shown.

    Raises:
        UserError: if a concept's folder or prompt file is missing, an option cannot be used, or no image is left.
    """
    report, tasks = DatasetReport(), []
    _check_options(config)
    for index, concept in enumerate(concepts):
        if concept.enabled:
            tasks += _list_concept(config, concept, index, report)
    Image.init()  # loads all of Pillow's readers, which is not safe to do in threads
    checked = CheckedImages(config.cache_dir if config.latent_caching else None)
    with warnings.catch_warnings(), ThreadPoolExecutor(config.dataloader_threads) as pool:
        # images near Pillow's limit are large, but ours to judge
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        warnings.filterwarnings("ignore", module="PIL")  # such as broken EXIF data in a sound image
        results = pool.map(lambda task: _check_file(config, task, checked), tasks)
        found = list(track(results, len(tasks), "check", progress, bar))
    checked.save()
    report.images += [result.image for result in found if result.image]
    report.rejected += [result.rejected for result in found if result.rejected]
    report.warnings += [warning for result in found for warning in result.warnings]
    enlarged = [result.enlargement for result in found if result.enlargement > 1]
    if enlarged:
        report.warnings.append(
            f"{len(enlarged)} of {len(report.images)} images are smaller than the training resolution "
            f"and are scaled up, by {max(enlarged):.1f} at most"
        )
    for line in report.lines()[:-1]:
        warn(line)
    _check_left(config, concepts, report)
    counts = Counter(image.concept for image in report.images)
    check_plan_size(config, concepts, [counts[index] for index in range(len(concepts))])
    return report


def concept_problems(config: TrainConfig, concepts: Sequence[ConceptConfig]) -> list[Problem]:
    """What would stop the dataset check before it has read any image, folders apart; see `list_problems`."""
    problems = found(_check_options, config)
    for index, concept in enumerate(concepts):
        if concept.enabled and _is_used(config, concept):
            label = concept_label(concept, index)
            for check in (_check_type, _check_mask_options):
                problems += found(check, config, concept, label, path="concepts")
            problems += found(check_special_tags, concept, label, path="concepts")
            problems += found(read_prompt_file, concept, label, path="concepts")
    return problems


def _check_options(config: TrainConfig) -> None:
    if config.custom_conditioning_image:
        raise UserError(
            "custom_conditioning_image: found true, but this is not supported yet; set it to false",
            Remedy.of({"custom_conditioning_image": False}),
        )


def _is_used(config: TrainConfig, concept: ConceptConfig) -> bool:
    return concept.type != ConceptType.VALIDATION or config.validation


def _check_type(config: TrainConfig, concept: ConceptConfig, label: str) -> None:
    if concept.type == ConceptType.PRIOR_PREDICTION:
        raise UserError(f"{label}: type PRIOR_PREDICTION is not supported yet; set STANDARD, or disable the concept")


def _list_concept(config: TrainConfig, concept: ConceptConfig, index: int, report: DatasetReport) -> list[_Task]:
    label = concept_label(concept, index)
    _check_type(config, concept, label)
    if not _is_used(config, concept):
        report.warnings.append(f"{label}: not used, as its type is VALIDATION and validation is off")
        return []
    report.warnings += _check_mask_options(config, concept, label)
    check_special_tags(concept, label)
    prompts = read_prompt_file(concept, label)
    if problem := folder_problem(concept, index):
        raise UserError(problem)
    files, errors = find_images(concept.path, concept.include_subdirectories)
    for error in errors:
        report.rejected.append(
            RejectedFile(label, str(error.filename), f"the folder cannot be read: {error.strerror or error}")
        )
    if not files:
        hint = "" if concept.include_subdirectories else " itself (include_subdirectories is off)"
        report.warnings.append(f"{label}: no images in {concept.path}{hint}")
    if concept.balancing == 0:
        report.warnings.append(f"{label}: not used, as its balancing is 0")
        return []
    return [_Task(index, concept, name, path, prompts) for name, path in files]


def _check_mask_options(config: TrainConfig, concept: ConceptConfig, label: str) -> list[str]:
    """Warnings; UserError for what is not supported."""
    warnings = []
    for key in ("enable_random_circular_mask_shrink", "enable_random_mask_rotate_crop"):
        if not getattr(concept.image, key):
            continue
        if not config.masked_training:
            warnings.append(f"{label}: image.{key} has no effect, as masked_training is off")
        elif key == "enable_random_mask_rotate_crop":
            raise UserError(f"{label}: image.{key}: found true, but this is not supported yet; set it to false")
    return warnings


def _check_file(config: TrainConfig, task: _Task, checked: CheckedImages) -> _Found:
    label = concept_label(task.concept, task.index)
    try:
        return _read_file(config, task, checked)
    except (ImageError, CaptionError) as error:
        return _Found(rejected=RejectedFile(label, task.path, str(error)))
    except OSError as error:
        return _Found(rejected=RejectedFile(label, task.path, f"cannot be read: {error.strerror or error}"))


def _read_file(config: TrainConfig, task: _Task, checked: CheckedImages) -> _Found:
    concept, path = task.concept, task.path
    suffix = os.path.splitext(path)[1].lower()
    if suffix in OTHER_IMAGE_SUFFIXES and suffix not in Image.registered_extensions():
        raise ImageError(f"{suffix} files are not supported; convert it to PNG, JPEG or WebP")
    sha256, width, height = _read_image(Path(path), checked)
    if min(width, height) < SMALLEST_SIDE:
        raise ImageError(f"{width}x{height} px is too small; the shorter side must have at least {SMALLEST_SIDE} px")
    factor = max(
        enlargement(width, height, resolution, config.aspect_ratio_bucketing)
        for resolution in resolutions_of(config, concept)
    )
    if factor > LARGEST_ENLARGEMENT:
        raise ImageError(
            f"{width}x{height} px is too small for the training resolution: it would be scaled up by {factor:.1f}, "
            f"the limit is {LARGEST_ENLARGEMENT:g}"
        )
    captions, warning = find_captions(concept, path, task.prompts)
    mask_path, mask_sha256 = _check_mask(path, width, height, checked) if config.masked_training else (None, None)
    image = DatasetImage(task.index, task.name, path, width, height, sha256, captions, mask_path, mask_sha256)
    return _Found(image=image, warnings=[warning] if warning else [], enlargement=factor)


def _read_image(path: Path, checked: CheckedImages) -> tuple[str, int, int]:
    data = path.read_bytes()
    sha256 = hashlib.sha256(data).hexdigest()
    return sha256, *checked.size(sha256, data)


def _check_mask(path: str, width: int, height: int, checked: CheckedImages) -> tuple[str | None, str | None]:
    mask_path = companion_path(path, "-masklabel")
    try:
        sha256, mask_width, mask_height = _read_image(Path(mask_path), checked)
    except FileNotFoundError:
        return None, None
    except OSError as error:
        raise ImageError(f"its mask {mask_path} cannot be read: {error.strerror or error}") from None
    except ImageError as error:
        raise ImageError(f"its mask {mask_path}: {error}") from None
    if abs(mask_width * height / (mask_height * width) - 1) > MASK_ASPECT_TOLERANCE:
        raise ImageError(
            f"its mask {mask_path} has {mask_width}x{mask_height} px, which is another shape than the image's "
            f"{width}x{height} px"
        )
    return mask_path, sha256


def _check_left(config: TrainConfig, concepts: Sequence[ConceptConfig], report: DatasetReport) -> None:
    for kind, needed in ((ConceptType.STANDARD, True), (ConceptType.VALIDATION, config.validation)):
        if not needed or any(concepts[image.concept].type == kind for image in report.images):
            continue
        if not any(concept.enabled and concept.type == kind for concept in concepts):
            why = f"no enabled concept has type {kind}"
        elif report.rejected:
            why = f"{len(report.rejected)} files are left out, the first one is {report.rejected[0]}"
        else:
            why = "the folders of its concepts hold none"
        purpose = "train on" if kind == ConceptType.STANDARD else "validate with (validation is on)"
        raise UserError(f"there is no image to {purpose}: {why}")
