"""The tool that estimates a run's memory."""

from modules.util.config.TrainConfig import TrainConfig
from modules.util.texts import later
from modules.viewModel.ToolProcess import ToolProcess
from modules.viewModel.tools.call_script import config_file, run_script
from modules.viewModel.tools.Tool import Tool
from modules.viewModel.tools.ToolResult import ToolResult

MEMORY = later("memory estimate")


def estimate_memory(config: TrainConfig, process: ToolProcess) -> ToolResult:
    """Where the memory of a run of this config will go. The base model must be there, or its description be known."""
    with config_file(config) as path:
        return run_script(process, "estimate_memory.py", str(path))


def tool() -> Tool:
    """What the window needs to know of it."""
    return Tool(
        MEMORY,
        help="Where the memory of a run of the present config will go, before its base model is loaded.",
        do="Estimate",
        promise="What weights, gradients, optimizer and activations take appears here.",
        form=None,
        run=lambda call: estimate_memory(call.config, call.process),
    )
