from modules.util.config.BaseConfig import BaseConfig
from modules.util.config.option import option
from modules.util.config.SampleConfig import SampleConfig
from modules.util.enum.ImageFormat import ImageFormat
from modules.util.enum.OptionGroup import OptionGroup
from modules.util.enum.TimeUnit import TimeUnit

G = OptionGroup.SAMPLING


class SamplingOptions(BaseConfig):
    """Which images are drawn during training, and when."""

    sample_definition_file_name: str = option(
        "training_samples/samples.json",
        "Sample file",
        "JSON list of samples. Used if `samples` is null.",
        G,
        path="file",
        affects_result=False,
    )
    samples: list[SampleConfig] | None = option(
        None,
        "Samples",
        "The samples themselves. null: those of `sample_definition_file_name`.",
        G,
        affects_result=False,
    )
    sample_after: int = option(
        10,
        "Sample every",
        "Interval between two rounds of samples.",
        G,
        ge=0,
        unit="sample_after_unit",
        affects_result=False,
    )
    sample_after_unit: TimeUnit = option(
        TimeUnit.MINUTE, "Sample unit", "What `sample_after` counts.", G, affects_result=False
    )
    sample_skip_first: int = option(
        0,
        "First sample after",
        "No samples before this much of the run is over.",
        G,
        ge=0,
        unit="sample_after_unit",
        affects_result=False,
        advanced=True,
    )
    sample_image_format: ImageFormat = option(
        ImageFormat.JPG, "Image format", "File format of samples.", G, affects_result=False
    )
    samples_to_tensorboard: bool = option(
        True, "Samples to TensorBoard", "Shows samples in TensorBoard, too.", G, affects_result=False
    )
    non_ema_sampling: bool = option(
        True,
        "Sample without EMA, too",
        "Draws with the last weights beside the averaged ones, if EMA is on.",
        G,
        affects_result=False,
        advanced=True,
    )
