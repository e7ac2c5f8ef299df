from functools import partial

from modules.util.config.BaseConfig import BaseConfig
from modules.util.config.option import option
from modules.util.config.SampleConfig import SampleConfig
from modules.util.enum.ImageFormat import ImageFormat
from modules.util.enum.OptionGroup import OptionGroup
from modules.util.enum.TimeUnit import TimeUnit

G = OptionGroup.SAMPLING
# the trained weights do not depend on them
basic = partial(option, group=G, affects_result=False)
advanced = partial(option, group=G, affects_result=False, advanced=True)


class SamplingOptions(BaseConfig):
    """Which images are drawn during training, and when."""

    sample_definition_file_name: str = basic(
        "training_samples/samples.json",
        "Sample file",
        "JSON list of samples. Used if `samples` is null. This one is "
        "made with the first sample; there are none before.",
        path="file",
    )
    samples: list[SampleConfig] | None = advanced(
        None, "Samples", "The samples themselves. null: those of `sample_definition_file_name`."
    )
    sample_after: int = basic(
        10, "Sample every", "Interval between two rounds of samples.", ge=0, unit="sample_after_unit"
    )
    sample_after_unit: TimeUnit = basic(TimeUnit.MINUTE, "Sample unit", "What `sample_after` counts.")
    sample_skip_first: int = advanced(
        0, "First sample after", "No samples before this much of the run is over.", ge=0, unit="sample_after_unit"
    )
    sample_image_format: ImageFormat = basic(ImageFormat.JPG, "Image format", "File format of samples.")
    samples_to_tensorboard: bool = basic(
        True, "Samples to TensorBoard", "Shows samples in TensorBoard, too, and in the `logger` beside it."
    )
    non_ema_sampling: bool = advanced(
        True, "Sample without EMA, too", "Draws with the last weights beside the averaged ones, if EMA is on."
    )
