"""Whether a run's conditioning options fit its family."""

import os
from collections.abc import Sequence

from modules.util.config.errors import Problem, Remedy
from modules.util.config.SampleConfig import SampleConfig
from modules.util.config.TrainConfig import TrainConfig
from modules.util.enum.ConditioningSource import ConditioningSource

KEY = "custom_conditioning_image"


def conditioning_problems(config: TrainConfig, source: ConditioningSource) -> list[Problem]:
    """What is wrong with `custom_conditioning_image`.

    Args:
        config: of the run.
        source: the fact of the family's class.
    """
    if config.custom_conditioning_image and source == ConditioningSource.NONE:
        text = f"found true, but {config.model_type} takes no conditioning image. Set it to false"
        return [Problem(KEY, text, (Remedy.of({KEY: False}),))]
    if not config.custom_conditioning_image and source == ConditioningSource.FILE:
        text = (
            f"found false, but {config.model_type} learns from pairs of images. Put the image that it starts from as "
            "NAME-condlabel.png beside each NAME.png, and set this to true"
        )
        return [Problem(KEY, text, (Remedy.of({KEY: True}),))]
    return []


def sample_conditioning_problems(
    config: TrainConfig, samples: Sequence[SampleConfig], source: ConditioningSource
) -> list[Problem]:
    """What is missing for the conditioning of samples, a problem for each; disabled ones are passed over.

    Args:
        config: of the run.
        samples: of the run.
        source: the fact of the family's class.
    """
    texts = [
        f"sample {index + 1}: {text}"
        for index, sample in enumerate(samples)
        if sample.enabled and (text := sample_conditioning_problem(config, sample, source))
    ]
    return [Problem("samples", text) for text in texts]


def unread_pictures(config: TrainConfig, samples: Sequence[SampleConfig], source: ConditioningSource) -> str | None:
    """One line that names the pictures of samples that are not read, None if there are none.

    Args:
        config: of the run.
        samples: of the run; disabled ones are passed over.
        source: the fact of the family's class.
    """
    read = {"base_image_path": source == ConditioningSource.FILE, "mask_image_path": False}
    found = []
    for number, sample in enumerate(samples, 1):
        # what fills no masks is refused with it
        if sample.enabled and not sample.sample_inpainting:
            found += [f"sample {number} {key}" for key, is_read in read.items() if getattr(sample, key) and not is_read]
    if not found:
        return None
    why = {
        ConditioningSource.NONE: f"{config.model_type} draws from no picture",
        ConditioningSource.FILE: f"{config.model_type} fills no masks",
        ConditioningSource.MASK: "sample_inpainting is off",
    }[source]
    return f"samples: {', '.join(found)}: not read, as {why}"


def sample_conditioning_problem(config: TrainConfig, sample: SampleConfig, source: ConditioningSource) -> str:
    """What is missing for the conditioning of a sample, "" if nothing. No image is read."""
    if sample.sample_inpainting and source != ConditioningSource.MASK:
        return f"sample_inpainting: found true, but {config.model_type} fills no masks. Set it to false"
    needed = {
        "base_image_path": source == ConditioningSource.FILE or sample.sample_inpainting,
        "mask_image_path": sample.sample_inpainting,
    }
    for key, is_needed in needed.items():
        path = getattr(sample, key)
        if not is_needed or os.path.isfile(path):
            continue
        if path:
            return f"{key}: there is no file '{path}'. Correct the path"
        if source == ConditioningSource.FILE:
            return f"{key}: is empty, but {config.model_type} draws from an image. Name a file"
        return f"{key}: is empty, but sample_inpainting is on. Name a file, or set sample_inpainting to false"
    return ""
