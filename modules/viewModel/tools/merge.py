"""The tool that merges an adapter into a base model."""

from modules.util.config.BaseConfig import BaseConfig
from modules.util.config.option import option
from modules.util.enum.OptionGroup import OptionGroup
from modules.util.texts import later, tr
from modules.viewModel.ToolProcess import ToolProcess
from modules.viewModel.tools.adapter_choices import WrittenType
from modules.viewModel.tools.call_script import given, need, run_script, switched_on
from modules.viewModel.tools.Tool import Tool
from modules.viewModel.tools.ToolResult import ToolResult

MERGE = later("merge")
G = OptionGroup.ADAPTER


class MergeInput(BaseConfig):
    """What is merged into a base model."""

    adapter: str = option("", "Adapter", "The adapter file.", G, path="file")
    base: str = option("", "Base model", "Folder or file of the model that it was trained for.", G, path="model")
    output: str = option("", "Written folder", "The merged model, a folder in diffusers' layout.", G, path="folder")
    dtype: WrittenType | None = option(None, "Number format", "Of the written weights. null: as it is.", G)
    neumann: bool = option(
        False, "Neumann series", "Rotations are computed as OneTrainer trains them, where the file does not say.", G
    )
    overwrite: bool = option(False, "Overwrite", "Replaces the written folder if it holds a model.", G)


def merge(wish: MergeInput, process: ToolProcess) -> ToolResult:
    """Writes a base model with an adapter in it; nothing is replaced unless `overwrite` says so."""
    need(wish.adapter, tr("an adapter file"))
    need(wish.base, tr("the base model"))
    need(wish.output, tr("the folder to write"))
    arguments = [wish.adapter, wish.output, "--merge", "--base", wish.base, *given("--dtype", wish.dtype)]
    arguments += switched_on(wish, "neumann", "overwrite")
    return run_script(process, "convert_adapter.py", *arguments)


def tool() -> Tool:
    """What the window needs to know of it."""
    return Tool(
        MERGE,
        help="A base model with an adapter in it, for programs that load no adapters. What is read stays as it is.",
        do="Merge",
        promise="What was written appears here.",
        form=lambda _: MergeInput(),
        run=lambda call: merge(call.wish, call.process),
    )
