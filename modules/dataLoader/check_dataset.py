"""The dataset check: reads every file before the model is loaded, and says what is wrong with which."""

import hashlib
import logging
import os
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from modules.dataLoader.buckets import enlargement, resolutions_of
from modules.dataLoader.captions import (
    CaptionError,
    check_special_tags,
    few,
    find_captions,
    read_prompt_file,
)
from modules.dataLoader.CheckedImages import CheckedImages, ImageFacts
from modules.dataLoader.Companions import CONDITIONING, OTHER_IMAGE_SUFFIXES, Beside
from modules.dataLoader.DatasetReport import DatasetImage, DatasetReport, RejectedFile
from modules.dataLoader.find_images import list_folder
from modules.dataLoader.findings import ImageFindings, concept_findings, counted
from modules.dataLoader.plan_size import check_plan_size
from modules.dataLoader.progress import Progress, track
from modules.dataLoader.ReadFiles import ReadFiles
from modules.util.config.check_lists import concept_label, folder_problem
from modules.util.config.ConceptConfig import ConceptConfig
from modules.util.config.conditioning import conditioning_problems
from modules.util.config.errors import Problem
from modules.util.config.TrainConfig import TrainConfig
from modules.util.decode_image import LARGEST_FILE, ImageError, same_shape
from modules.util.enum.ConceptType import ConceptType
from modules.util.enum.ConditioningSource import ConditioningSource
from modules.util.found_problems import found, raise_problems
from modules.util.regular_file import read_regular
from modules.util.UserError import UserError

from PIL import Image

logger = logging.getLogger(__name__)

SMALLEST_SIDE = 8
"""Images with a shorter side than this, in pixels, are left out."""

LARGEST_ENLARGEMENT = 8.0
"""Images that would have to be scaled up further than this are left out."""

NEEDED = f"NAME{CONDITIONING}.png beside NAME.png"


@dataclass
class _Found:
    """What became of one file."""

    findings: ImageFindings | None = None
    rejected: RejectedFile | None = None
    enlargement: float = 0.0


@dataclass(frozen=True)
class _BesideFile:
    """A mask or conditioning image that is read; see `ImageFacts`."""

    path: str | None = None
    sha256: str | None = None
    full: float | None = None
    dark: float | None = None
    size: tuple[int, int] | None = None


@dataclass(frozen=True)
class _Task:
    index: int
    concept: ConceptConfig
    name: str
    path: str
    prompts: tuple[str, ...]
    beside: Beside


def check_dataset(
    config: TrainConfig,
    concepts: Sequence[ConceptConfig],
    *,
    conditioning: ConditioningSource = ConditioningSource.NONE,
    warn: Callable[[str], None] = logger.warning,
    progress: Progress | None = None,
    bar: bool = True,
) -> DatasetReport:
    """Decodes every image of the enabled concepts and reads every caption, mask and conditioning image.

    Files that cannot be used are left out and named. Needs no model.

    Args:
        config: the run's config; VALIDATION concepts are read only with `validation` on.
        concepts: all concepts, disabled ones included.
        conditioning: the fact of the family's class.
        warn: gets each rejected file and each warning, one line each.
        progress: is told how many files are done (stage "check").
        bar: whether a progress bar is shown.

    Raises:
        UserError: if a concept's folder or prompt file is missing, an option cannot be used, or no image is left.
    """
    report, tasks, reads = DatasetReport(), [], ReadFiles.of(config, conditioning)
    raise_problems(conditioning_problems(config, conditioning))
    for index, concept in enumerate(concepts):
        if concept.enabled:
            tasks += _list_concept(config, concept, index, report, reads)
    Image.init()  # loads all of Pillow's readers, which is not safe to do in threads
    checked = CheckedImages(config.cache_dir if config.latent_caching else None)
    with warnings.catch_warnings(), ThreadPoolExecutor(config.dataloader_threads) as pool:
        # images near Pillow's limit are large, but ours to judge
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        warnings.filterwarnings("ignore", module="PIL")  # such as broken EXIF data in a sound image
        results = pool.map(lambda task: _check_file(config, task, checked, reads), tasks)
        try:
            found = list(track(results, len(tasks), "check", progress, bar))
        except BaseException:
            # whoever does not want the rest need not wait for it
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    checked.save()
    findings = [result.findings for result in found if result.findings]
    report.images += [one.image for one in findings]
    report.rejected += [result.rejected for result in found if result.rejected]
    report.warnings += _findings(config, concepts, findings, reads)
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


def concept_problems(
    config: TrainConfig,
    concepts: Sequence[ConceptConfig],
    conditioning: ConditioningSource = ConditioningSource.NONE,
) -> list[Problem]:
    """What would stop the dataset check before it has read any image, folders apart; see `list_problems`."""
    problems, reads = [], ReadFiles.of(config, conditioning)
    for index, concept in enumerate(concepts):
        if concept.enabled and _is_used(config, concept):
            label = concept_label(concept, index)
            problems += found(_check_mask_options, reads, concept, label, path="concepts")
            problems += found(check_special_tags, concept, label, path="concepts")
            problems += found(read_prompt_file, concept, label, path="concepts")
    return problems


def _is_used(config: TrainConfig, concept: ConceptConfig) -> bool:
    return concept.type != ConceptType.VALIDATION or config.validation


def _list_concept(
    config: TrainConfig, concept: ConceptConfig, index: int, report: DatasetReport, reads: ReadFiles
) -> list[_Task]:
    label = concept_label(concept, index)
    if not _is_used(config, concept):
        report.warnings.append(f"{label}: not used, as its type is VALIDATION and validation is off")
        return []
    report.warnings += _check_mask_options(reads, concept, label)
    check_special_tags(concept, label)
    prompts = read_prompt_file(concept, label)
    if problem := folder_problem(concept, index):
        raise UserError(problem)
    listing = list_folder(concept.path, concept.include_subdirectories)
    for error in listing.errors:
        report.rejected.append(
            RejectedFile(label, str(error.filename), f"the folder cannot be read: {error.strerror or error}")
        )
    report.rejected += [
        RejectedFile(label, path, "it is a folder with the name of an image") for path in listing.folders
    ]
    for what, lonely in (("masks", listing.lonely_masks), ("conditioning images", listing.lonely_conditioning)):
        if lonely:
            names = few(os.path.basename(path) for path in lonely)
            report.warnings.append(f"{label}: no image lies beside {len(lonely)} {what}: {names}")
    if not listing.images:
        hint = "" if concept.include_subdirectories else " itself (include_subdirectories is off)"
        report.warnings.append(f"{label}: no images in {concept.path}{hint}")
    if concept.balancing == 0:
        report.warnings.append(f"{label}: not used, as its balancing is 0")
        return []
    tasks = [_Task(index, concept, name, path, prompts, listing.beside[path]) for name, path in listing.images]
    if reads.source == ConditioningSource.FILE and tasks and not any(task.beside.conditioning for task in tasks):
        raise UserError(
            f"{label}: not one of its {len(tasks)} images has a conditioning image, which {config.model_type} needs; "
            f"expected {NEEDED}. Add them, or disable the concept"
        )
    return tasks


def _check_mask_options(reads: ReadFiles, concept: ConceptConfig, label: str) -> list[str]:
    """Warnings; UserError for what is not supported."""
    warnings = []
    for key in ("enable_random_circular_mask_shrink", "enable_random_mask_rotate_crop"):
        if not getattr(concept.image, key):
            continue
        if not reads.masks:
            warnings.append(f"{label}: image.{key} has no effect, as masked_training is off")
        elif key == "enable_random_mask_rotate_crop":
            raise UserError(f"{label}: image.{key}: found true, but this is not supported yet; set it to false")
    return warnings


def _check_file(config: TrainConfig, task: _Task, checked: CheckedImages, reads: ReadFiles) -> _Found:
    label = concept_label(task.concept, task.index)
    try:
        return _read_file(config, task, checked, reads)
    except (ImageError, CaptionError) as error:
        return _Found(rejected=RejectedFile(label, task.path, str(error)))
    except OSError as error:
        return _Found(rejected=RejectedFile(label, task.path, f"cannot be read: {error.strerror or error}"))


def _read_file(config: TrainConfig, task: _Task, checked: CheckedImages, reads: ReadFiles) -> _Found:
    concept, path = task.concept, task.path
    suffix = os.path.splitext(path)[1].lower()
    if suffix in OTHER_IMAGE_SUFFIXES and suffix not in Image.registered_extensions():
        raise ImageError(f"{suffix} files are not supported; convert it to PNG, JPEG or WebP")
    sha256, facts = _read_image(path, checked)
    width, height = facts.width, facts.height
    factor = _check_size(config, concept, width, height)
    captions = find_captions(concept, path, task.prompts, task.beside)
    beside = task.beside
    if reads.source == ConditioningSource.FILE and not beside.conditioning:
        raise ImageError(f"it has no conditioning image; expected {NEEDED}")
    mask = _check_beside("mask", path, beside.masks if reads.masks else (), facts, checked)
    shown = _check_beside("conditioning image", path, beside.conditioning if reads.conditioning else (), facts, checked)
    if shown.size is not None:
        try:
            _check_size(config, concept, *shown.size)
        except ImageError as error:
            raise ImageError(f"its conditioning image {shown.path}: {error}") from None
    image = DatasetImage(
        task.index, task.name, path, width, height, sha256, captions.texts, mask.path, mask.sha256, facts.full,
        mask.full, captions.path, shown.path, shown.sha256, shown.full,
    )  # fmt: skip
    return _Found(
        ImageFindings(image, captions, beside.masks, facts.dark, mask.dark, beside.conditioning, shown.dark, mask.size),
        enlargement=factor,
    )


def _check_size(config: TrainConfig, concept: ConceptConfig, width: int, height: int) -> float:
    """By how much a picture is scaled up at most; ImageError if it is too small."""
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
    return factor


def _read_image(path: str, checked: CheckedImages, mask: bool = False) -> tuple[str, ImageFacts]:
    data = read_regular(path, LARGEST_FILE)
    sha256 = hashlib.sha256(data).hexdigest()
    return sha256, checked.facts(sha256, data, mask)


def _check_beside(
    what: str, image_path: str, names: Sequence[str], image: ImageFacts, checked: CheckedImages
) -> _BesideFile:
    """The first of the masks or conditioning images of an image; nothing if there are none."""
    if not names:
        return _BesideFile()
    path = os.path.join(os.path.dirname(image_path), names[0])
    try:
        sha256, facts = _read_image(path, checked, mask=what == "mask")
    except OSError as error:
        raise ImageError(f"its {what} {path} cannot be read: {error.strerror or error}") from None
    except ImageError as error:
        raise ImageError(f"its {what} {path}: {error}") from None
    if not same_shape((facts.width, facts.height), (image.width, image.height)):
        raise ImageError(
            f"its {what} {path} has {facts.width}x{facts.height} px, which is another shape than the image's "
            f"{image.width}x{image.height} px"
        )
    return _BesideFile(path, sha256, facts.full, facts.dark, (facts.width, facts.height))


def _findings(
    config: TrainConfig, concepts: Sequence[ConceptConfig], found: Sequence[ImageFindings], reads: ReadFiles
) -> list[str]:
    """What there is to say of all images of each concept, and of all concepts."""
    lines = []
    for index, concept in enumerate(concepts):
        own = [one for one in found if one.image.concept == index]
        lines += concept_findings(concept, concept_label(concept, index), own, config, reads)
        lines += _without_masks(concept, concept_label(concept, index), own, found, reads)
    circles = any(concepts[one.image.concept].image.enable_random_circular_mask_shrink for one in found)
    if not found or not reads.masks or circles or any(one.masks for one in found):
        return lines
    fills = reads.source == ConditioningSource.MASK
    start = "masked_training is on, but " if config.masked_training else ""
    results = ["nothing is masked"] if config.masked_training else []
    results += [f"{config.model_type} learns to fill the whole of each"] if fills else []
    lines.append(
        f"{start}not one of {len(found)} images has a mask, so {', and '.join(results)}; expected NAME-masklabel.png "
        f"beside NAME.png{', white where it is to be filled' if fills else ''}"
    )
    return lines


def _without_masks(
    concept: ConceptConfig,
    label: str,
    own: Sequence[ImageFindings],
    found: Sequence[ImageFindings],
    reads: ReadFiles,
) -> list[str]:
    """How many of a concept's images are filled as a whole; told in another line if no concept has any mask."""
    without = [one for one in own if not one.masks]
    fills = reads.source == ConditioningSource.MASK and not concept.image.enable_random_circular_mask_shrink
    if not fills or not without or not any(one.masks for one in found):
        return []
    one = len(without) == 1
    return [
        f"{label}: {len(without)} of {counted(len(own), 'image')} {'has' if one else 'have'} no mask, so "
        f"{'it is' if one else 'each is'} filled as a whole: {few(os.path.basename(one.image.path) for one in without)}"
    ]


def _check_left(config: TrainConfig, concepts: Sequence[ConceptConfig], report: DatasetReport) -> None:
    trained = [kind for kind in ConceptType if kind != ConceptType.VALIDATION]
    for kinds, needed in ((trained, True), ([ConceptType.VALIDATION], config.validation)):
        if not needed or any(concepts[image.concept].type in kinds for image in report.images):
            continue
        if not any(concept.enabled and concept.type in kinds for concept in concepts):
            why = f"no enabled concept has type {' or '.join(kinds)}"
        elif report.rejected:
            why = f"{len(report.rejected)} files are left out, the first one is {report.rejected[0]}"
        else:
            why = "the folders of its concepts hold none"
        purpose = "train on" if kinds == trained else "validate with (validation is on)"
        raise UserError(f"there is no image to {purpose}: {why}")
