from functools import partial

from modules.util.config.BaseConfig import BaseConfig
from modules.util.config.option import option
from modules.util.enum.DataType import DataType
from modules.util.enum.OptionGroup import OptionGroup

advanced = partial(option, group=OptionGroup.MEMORY, advanced=True)


class QuantizationConfig(BaseConfig):
    """Which frozen layers are quantized, when a component's `weight_dtype` is a quantized one."""

    layer_filter: str = advanced("", "Layers", "Comma-separated parts of layer names to quantize. Empty: all layers.")
    layer_filter_preset: str = advanced(
        "full",
        "Layer preset",
        "The named selection from which `layer_filter` was filled in.",
        affects_result=False,
        choices=("full", "blocks", "attn-mlp", "attn-only", "custom"),
    )
    layer_filter_regex: bool = advanced(False, "Regular expressions", "Reads `layer_filter` as regular expressions.")
    svd_dtype: DataType = advanced(
        DataType.NONE,
        "SVD dtype",
        "Number format of a low-rank correction of the quantization error. NONE: no correction.",
    )
    svd_rank: int = advanced(
        16, "SVD rank", "Rank of that correction. Higher is more exact and takes more memory.", ge=1
    )
    cache_dir: str | None = advanced(
        None,
        "Cache folder",
        "Folder that keeps computed corrections for the next run. null: none.",
        path="folder",
        affects_result=False,
    )
