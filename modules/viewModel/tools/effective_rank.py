"""The tool that plots how many of their ranks layers use."""

from pathlib import Path

from modules.util.config.BaseConfig import BaseConfig
from modules.util.config.option import option
from modules.util.enum.OptionGroup import OptionGroup
from modules.util.texts import later, tr
from modules.viewModel.ToolProcess import ToolProcess
from modules.viewModel.tools.call_script import need, run_script
from modules.viewModel.tools.Tool import Tool
from modules.viewModel.tools.ToolResult import ToolResult

RANK = later("effective rank")
G = OptionGroup.ADAPTER


class RankInput(BaseConfig):
    """What the plot of effective ranks reads."""

    adapter: str = option("", "Adapter", "The adapter file.", G, path="file")
    other: str = option("", "Beside it", "Another adapter file to compare with. Empty: none.", G, path="file")


def effective_rank(wish: RankInput, picture: Path, process: ToolProcess) -> ToolResult:
    """A plot and a table of how many directions each layer of an adapter really uses.

    Args:
        wish: what is read.
        picture: PNG file that is written.
        process: unused, for the script.
    """
    need(wish.adapter, tr("an adapter file"))
    files = [wish.adapter, *([wish.other] if wish.other.strip() else [])]
    return run_script(process, "effective_rank.py", *files, "--plot", str(picture), picture=picture)


def tool() -> Tool:
    """What the window needs to know of it."""
    return Tool(
        RANK,
        help="How many of their ranks the layers of an adapter really use.",
        do="Plot",
        promise="A plot over the layers, and their table, appear here.",
        form=lambda _: RankInput(),
        run=lambda call: effective_rank(call.wish, call.folder / "ranks.png", call.process),
    )
