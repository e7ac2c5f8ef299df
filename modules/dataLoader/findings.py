"""What the dataset check says of all images of a concept together, one line each."""

import os
from collections.abc import Sequence
from dataclasses import dataclass

from modules.dataLoader.captions import FoundCaptions, few, no_caption, not_read
from modules.dataLoader.Companions import CONDITIONING, MASK
from modules.dataLoader.DatasetReport import DatasetImage
from modules.dataLoader.ReadFiles import ReadFiles
from modules.util.config.ConceptConfig import ConceptConfig
from modules.util.config.TrainConfig import TrainConfig
from modules.util.enum.CaptionLines import CaptionLines
from modules.util.enum.ConditioningSource import ConditioningSource
from modules.util.enum.PromptSource import PromptSource


@dataclass(frozen=True)
class ImageFindings:
    """What was found with one image that can be used.

    Attributes:
        image: itself.
        captions: where its captions come from.
        masks: names of its masks, of which the first one counts; also those that are not used.
        dark: of the image; see `Decoded`.
        mask_dark: of its mask.
        conditioning: names of its conditioning images, as `masks`.
        conditioning_dark: of its conditioning image.
        mask_size: (width, height) of the mask that counts, None if none is read.
    """

    image: DatasetImage
    captions: FoundCaptions
    masks: tuple[str, ...] = ()
    dark: float | None = None
    mask_dark: float | None = None
    conditioning: tuple[str, ...] = ()
    conditioning_dark: float | None = None
    mask_size: tuple[int, int] | None = None


def concept_findings(
    concept: ConceptConfig, label: str, found: Sequence[ImageFindings], config: TrainConfig, reads: ReadFiles
) -> list[str]:
    """Everything worth knowing of a concept's images.

    Args:
        concept: itself.
        label: how it is called.
        found: with each of its images.
        config: of the run.
        reads: which files beside images it reads.
    """
    if not found:
        return []
    lines = _captions(concept, label, found) if concept.text.prompt_source == PromptSource.SAMPLE else []
    lines += _masks(label, found, reads.masks) + _conditioning(label, found, config, reads)
    return lines + _ranges(label, found, config, reads)


def counted(number: int, of: str) -> str:
    """A number with its noun."""
    return f"{number} {of}" if number == 1 else f"{number} {of}s"


def _captions(concept: ConceptConfig, label: str, found: Sequence[ImageFindings]) -> list[str]:
    lines, without = [], [one for one in found if not one.captions.path]
    if len(without) == len(found):
        who = f"none of the {len(found)} images has a caption" if len(found) > 1 else "its only image has no caption"
        example, unread = os.path.basename(found[0].image.path), [n for one in found for n in one.captions.unread]
        lines.append(
            f"{label}: {who}, so all are trained with an empty one; expected a text file beside each image, as "
            f"{os.path.splitext(example)[0]}.txt beside {example}{not_read(unread)}"
        )
    else:
        for one in without:
            lines.append(no_caption(one.image.path, one.captions.unread))
    other = [one for one in found if one.captions.path and not _is_usual(one)]
    if other:
        names = few(os.path.basename(one.captions.path) for one in other)
        verb = "comes from a file" if len(other) == 1 else "come from files"
        lines.append(f"{label}: {counted(len(other), 'caption')} {verb} of another name than NAME.txt: {names}")
    empty = [os.path.basename(one.captions.path) for one in found if one.captions.path and not any(one.captions.texts)]
    if empty:
        verb = "is" if len(empty) == 1 else "are"
        lines.append(f"{label}: {len(empty)} of {counted(len(found), 'caption')} {verb} empty: {few(empty)}")
    passed = [name for one in found for name in one.captions.passed]
    if passed:
        lines.append(
            f"{label}: {counted(len(passed), 'caption file')} not read, as the image has another one that counts: "
            f"{few(dict.fromkeys(passed))}"
        )
    several = [one for one in found if one.captions.lines > 1]
    if several and concept.text.caption_lines == CaptionLines.DRAW:
        most = max(several, key=lambda one: one.captions.lines).captions
        lines.append(
            f"{label}: {len(several)} of {counted(len(found), 'caption')} {_have(several)} several lines, of which one "
            f"is drawn for each of the {concept.text_variations} text_variations; {most.path} has {most.lines} lines. "
            "To train such files whole, set text.caption_lines to JOIN"
        )
    return lines


def _have(found: Sequence) -> str:
    return "has" if len(found) == 1 else "have"


def _is_usual(one: ImageFindings) -> bool:
    return one.captions.path == os.path.splitext(one.image.path)[0] + ".txt"


def _masks(label: str, found: Sequence[ImageFindings], masked: bool) -> list[str]:
    having = [one for one in found if one.masks]
    if not masked and having:
        names = few(one.masks[0] for one in having)
        verb = "is not used" if len(having) == 1 else "are not used"
        return [
            f"{label}: {counted(len(having), 'mask')} beside images {verb}, as masked_training is off, and no mask "
            f"is trained as an image: {names}"
        ]
    lines = _names(label, "mask", MASK, [(one.image.path, one.masks) for one in having])
    other = [one for one in having if one.mask_size not in (None, (one.image.width, one.image.height))]
    if other:
        sizes = few(f"{one.masks[0]} ({'x'.join(map(str, one.mask_size))} px)" for one in other)
        verb, whose, they = ("has", "its image", "it is") if len(other) == 1 else ("have", "their images", "they are")
        lines.append(
            f"{label}: {counted(len(other), 'mask')} {verb} not the size of {whose}, to which {they} scaled: {sizes}"
        )
    return lines


def _conditioning(label: str, found: Sequence[ImageFindings], config: TrainConfig, reads: ReadFiles) -> list[str]:
    having = [one for one in found if one.conditioning]
    if not reads.conditioning:
        if not having:
            return []
        none = reads.source == ConditioningSource.NONE
        why = f"{config.model_type} takes none" if none else "custom_conditioning_image is off"
        verb = "is not used" if len(having) == 1 else "are not used"
        names = few(one.conditioning[0] for one in having)
        return [f"{label}: {counted(len(having), 'conditioning image')} {verb}, as {why}: {names}"]
    lines = []
    without = [one for one in found if not one.conditioning]
    if without:
        # a family that needs a file has none of these images
        lines.append(
            f"{label}: {len(without)} of {counted(len(found), 'image')} {_have(without)} no conditioning image, "
            f"so it is made of image and mask; expected NAME{CONDITIONING}.png beside NAME.png"
        )
    same = [one.conditioning[0] for one in having if one.image.conditioning_sha256 == one.image.sha256]
    if same:
        verb = "is" if len(same) == 1 else "are"
        lines.append(
            f"{label}: {counted(len(same), 'conditioning image')} {verb} the very file that is learned, from which "
            f"nothing but copying is learned: {few(same)}"
        )
    pairs = [(one.image.path, one.conditioning) for one in having]
    return lines + _names(label, "conditioning image", CONDITIONING, pairs)


def _names(label: str, what: str, ending: str, having: Sequence[tuple[str, tuple[str, ...]]]) -> list[str]:
    """Files under other names than the usual one, and those that are not read; of (image, its files)."""
    lines = []
    usual = [f"{os.path.splitext(os.path.basename(path))[0]}{ending}.png" for path, _ in having]
    other = [names[0] for name, (_, names) in zip(usual, having, strict=True) if names[0] != name]
    if other:
        verb = "is taken" if len(other) == 1 else "are taken"
        lines.append(
            f"{label}: {counted(len(other), what)} of another name than NAME{ending}.png {verb}, and not trained as "
            f"an image: {few(other)}"
        )
    passed = [name for _, names in having for name in names[1:]]
    if passed:
        lines.append(
            f"{label}: {counted(len(passed), what)} not read, as the image has another one that counts: "
            f"{few(dict.fromkeys(passed))}"
        )
    return lines


def _ranges(label: str, found: Sequence[ImageFindings], config: TrainConfig, reads: ReadFiles) -> list[str]:
    lines, images = [], [one.image for one in found]
    pairs = [(one.image.path, one.dark) for one in found if one.dark is not None]
    pairs += [(one.image.conditioning_path, dark) for one in found if (dark := one.conditioning_dark) is not None]
    if pairs:
        names = few(f"{os.path.basename(path)} ({share:.2g} of it)" for path, share in pairs)
        lines.append(
            f"{label}: in {counted(len(pairs), 'picture')} of more than 8 bits the brightest value is far below the "
            f"full range, so that they are trained nearly black: {names}. Save them with 8 bit, or write their largest "
            "possible value into the TIFF tag SMaxSampleValue"
        )
    pairs = [(one.image.mask_path, one.mask_dark) for one in found if one.mask_dark is not None]
    if pairs:
        names = few(f"{os.path.basename(path)} ({share:.2g} of white)" for path, share in pairs)
        uses = {"learnt": config.masked_training, "filled": reads.source == ConditioningSource.MASK}
        use = " and ".join(name for name, is_meant in uses.items() if is_meant)
        lines.append(
            f"{label}: {counted(len(pairs), 'mask')} {'is' if len(pairs) == 1 else 'are'} black or nearly black "
            f"everywhere, so that hardly anything is {use}; expected white where an image is to be {use}: {names}"
        )
    said = [(one.image.path, one.image.full) for one in found if one.image.full is not None]
    said += [(one.image.mask_path, one.image.mask_full) for one in found if one.image.mask_full is not None]
    said += [(own.conditioning_path, own.conditioning_full) for own in images if own.conditioning_full is not None]
    if said:
        names = few(f"{os.path.basename(path)} ({full:g})" for path, full in said)
        lines.append(f"{label}: white is the value that the file says in {counted(len(said), 'picture')}: {names}")
    return lines
