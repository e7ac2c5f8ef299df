from modules.util.config.BaseConfig import BaseConfig
from modules.util.config.option import option
from modules.util.enum.DataType import DataType
from modules.util.enum.OptionGroup import OptionGroup


class QuantizationConfig(BaseConfig):
    """Which frozen layers are quantized, when a component's `weight_dtype` is a quantized one."""

    layer_filter: str = option(
        "",
        "Layers",
        "Comma-separated parts of layer names to quantize. Empty: all layers.",
        OptionGroup.MEMORY,
        advanced=True,
    )
    layer_filter_preset: str = option(
        "full",
        "Layer preset",
        "The named selection from which `layer_filter` was filled in.",
        OptionGroup.MEMORY,
        advanced=True,
        affects_result=False,
        choices=("full", "blocks", "attn-mlp", "attn-only", "custom"),
    )
    layer_filter_regex: bool = option(
        False, "Regular expressions", "Reads `layer_filter` as regular expressions.", OptionGroup.MEMORY, advanced=True
    )
    svd_dtype: DataType = option(
        DataType.NONE,
        "SVD dtype",
        "Number format of a low-rank correction of the quantization error. NONE: no correction.",
        OptionGroup.MEMORY,
        advanced=True,
    )
    svd_rank: int = option(
        16,
        "SVD rank",
        "Rank of that correction. Higher is more exact and takes more memory.",
        OptionGroup.MEMORY,
        ge=1,
        advanced=True,
    )
    cache_dir: str | None = option(
        None,
        "Cache folder",
        "Folder that keeps computed corrections for the next run. null: none.",
        OptionGroup.MEMORY,
        path="folder",
        advanced=True,
        affects_result=False,
    )
