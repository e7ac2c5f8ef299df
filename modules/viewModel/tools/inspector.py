"""The tool that shows what is in an adapter file."""

from modules.util.config.BaseConfig import BaseConfig
from modules.util.config.option import option
from modules.util.enum.OptionGroup import OptionGroup
from modules.util.texts import later, tr
from modules.viewModel.ToolProcess import ToolProcess
from modules.viewModel.tools.call_script import given, need, run_script
from modules.viewModel.tools.Tool import Tool
from modules.viewModel.tools.ToolResult import ToolResult

INSPECT = later("adapter inspector")
G = OptionGroup.ADAPTER


class InspectInput(BaseConfig):
    """What the inspector reads."""

    adapter: str = option("", "Adapter", "The adapter file.", G, path="file")
    base: str = option(
        "", "Base model", "Folder or file. Only rotations and DoRA need it, for their norms.", G, path="model"
    )


def inspect(wish: InspectInput, process: ToolProcess) -> ToolResult:
    """Kind, rank, alpha, norm and effective rank of each layer of an adapter file."""
    need(wish.adapter, tr("an adapter file"))
    return run_script(process, "convert_adapter.py", wish.adapter, "--info", *given("--base", wish.base))


def tool() -> Tool:
    """What the window needs to know of it."""
    return Tool(
        INSPECT,
        help="What is in an adapter file, layer by layer.",
        do="Inspect",
        promise="Kind, rank and alpha of the adapter, and a table of its layers, appear here.",
        form=lambda _: InspectInput(),
        run=lambda call: inspect(call.wish, call.process),
    )
