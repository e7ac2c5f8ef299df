from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from modules.util.config.BaseConfig import BaseConfig
from modules.util.config.TrainConfig import TrainConfig
from modules.util.enum.OptionGroup import OptionGroup
from modules.viewModel.FormField import FormSection
from modules.viewModel.FormModel import FormModel
from modules.viewModel.TensorBoard import TensorBoard
from modules.viewModel.ToolProcess import ToolProcess
from modules.viewModel.tools.ToolResult import ToolResult


@dataclass(frozen=True)
class ToolCall:
    """One use of a tool.

    Attributes:
        config: of the run, as it is in the window.
        wish: what the tool's form says; None if it has none.
        process: unused, for its script.
        folder: for pictures that are only shown; it goes with the tab.
        board: TensorBoard.
    """

    config: TrainConfig
    wish: Any
    process: ToolProcess
    folder: Path
    board: TensorBoard


@dataclass(frozen=True)
class Tool:
    """What the window needs to know of a tool.

    Attributes:
        name: on its tab.
        help: what it is for.
        do: what its button says.
        promise: what its results will be.
        form: gives its options for the config of now; None: it has none.
        run: does what it is for, on a worker's thread; raises UserError.
        has_process: whether it works in a process, which can be ended.
    """

    name: str
    help: str
    do: str
    promise: str
    form: Callable[[TrainConfig], BaseConfig] | None
    run: Callable[[ToolCall], ToolResult]
    has_process: bool = True


def tool_section(form: FormModel, title: str, help: str) -> FormSection:
    """All fields of a tool under one heading."""
    return FormSection(title, title, help, OptionGroup.ADAPTER, False, list(form.fields.values()))
