"""The tool that opens TensorBoard."""

import webbrowser
from pathlib import Path

from modules.util.texts import later, tr
from modules.viewModel.TensorBoard import TensorBoard
from modules.viewModel.ToolProcess import ToolProcess
from modules.viewModel.tools.Tool import Tool
from modules.viewModel.tools.ToolResult import ToolResult

BOARD = later("TensorBoard")


def open_board(board: TensorBoard, workspace: Path, process: ToolProcess) -> ToolResult:
    """Starts TensorBoard on a workspace, unless it runs there, and opens it in the browser."""
    address = board.open(workspace, process)
    text = tr(
        "TensorBoard shows {folder} at\n{address}\nuntil the window is closed.", folder=workspace, address=address
    )
    if not webbrowser.open(address):
        text += f"\n{tr('No browser could be opened: open this address in one.')}"
    return ToolResult(text)


def tool() -> Tool:
    """What the window needs to know of it."""
    return Tool(
        BOARD,
        help="Shows the curves of all runs in the workspace of the present config in the browser.",
        do="Open",
        promise="The address of TensorBoard appears here. It runs until the window is closed.",
        form=None,
        run=lambda call: open_board(call.board, Path(call.config.workspace_dir), call.process),
    )
