"""The tool that writes an adapter in another form."""

from pathlib import Path

from modules.util.config.BaseConfig import BaseConfig
from modules.util.config.option import option
from modules.util.enum.OptionGroup import OptionGroup
from modules.util.texts import later, tr
from modules.viewModel.ToolProcess import ToolProcess
from modules.viewModel.tools.adapter_choices import AdapterFormat, AdapterShape, WrittenType
from modules.viewModel.tools.call_script import given, need, run_script, switched_on
from modules.viewModel.tools.Tool import Tool
from modules.viewModel.tools.ToolResult import ToolResult

CONVERT = later("converter")
G = OptionGroup.ADAPTER


class ConvertInput(BaseConfig):
    """What the converter reads and writes."""

    adapter: str = option("", "Adapter", "The adapter file that is read.", G, path="file")
    output: str = option("", "Written file", "The file to write.", G, path="output")
    format: AdapterFormat | None = option(None, "Format", "Names of the weights in the file. null: as it is.", G)
    kind: AdapterShape | None = option(
        None, "Kind", "lora: of the rank below; diff: the whole change of each layer. null: as it is.", G
    )
    rank: int | None = option(None, "Rank", "Of the written LoRA. null: as it is.", G, ge=1)
    alpha: float | None = option(None, "Alpha", "For the same change of the model. null: as it is.", G, gt=0)
    dtype: WrittenType | None = option(None, "Number format", "Of the written weights. null: as it is.", G)
    base: str = option(
        "", "Base model", "Folder or file. Needed for rotations and DoRA, and for diff.", G, path="model"
    )
    neumann: bool = option(
        False, "Neumann series", "Rotations are computed as OneTrainer trains them, where the file does not say.", G
    )
    overwrite: bool = option(False, "Overwrite", "Replaces the written file if it exists.", G)


def convert(wish: ConvertInput, process: ToolProcess) -> ToolResult:
    """Writes an adapter in another form; nothing is replaced unless `overwrite` says so."""
    need(wish.adapter, tr("an adapter file"))
    need(wish.output, tr("the file to write"))
    arguments = [wish.adapter, wish.output]
    for flag, value in (
        ("--format", wish.format), ("--to", wish.kind), ("--rank", wish.rank), ("--alpha", wish.alpha),
        ("--dtype", wish.dtype), ("--base", wish.base),
    ):  # fmt: skip
        arguments += given(flag, value)
    arguments += switched_on(wish, "neumann", "overwrite")
    return run_script(process, "convert_adapter.py", *arguments, target=Path(wish.output))


def tool() -> Tool:
    """What the window needs to know of it."""
    return Tool(
        CONVERT,
        help="Another format, rank, alpha or kind. The read file stays as it is.",
        do="Convert",
        promise="What was written appears here, and what a lower rank loses.",
        form=lambda _: ConvertInput(),
        run=lambda call: convert(call.wish, call.process),
    )
