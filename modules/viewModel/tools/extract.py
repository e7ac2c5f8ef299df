"""The tool that finds the LoRA between two models."""

from pathlib import Path

from modules.util.config.BaseConfig import BaseConfig
from modules.util.config.option import option
from modules.util.enum.OptionGroup import OptionGroup
from modules.util.texts import later, tr
from modules.viewModel.ToolProcess import ToolProcess
from modules.viewModel.tools.adapter_choices import AdapterFormat
from modules.viewModel.tools.call_script import given, need, run_script
from modules.viewModel.tools.Tool import Tool
from modules.viewModel.tools.ToolResult import ToolResult

EXTRACT = later("extract")
G = OptionGroup.ADAPTER


class ExtractInput(BaseConfig):
    """Between which models the change is found."""

    base: str = option("", "Base model", "Folder or file of the model that the other one was made of.", G, path="model")
    tuned: str = option("", "Changed model", "Folder or file of the model whose change is wanted.", G, path="model")
    output: str = option("", "Written file", "The LoRA file to write.", G, path="output")
    rank: int = option(16, "Rank", "Of the LoRA; what a lower rank loses is told.", G, ge=1)
    format: AdapterFormat | None = option(None, "Format", "Names of the weights in the file. null: KOHYA_LORA.", G)
    overwrite: bool = option(False, "Overwrite", "Replaces the written file if it exists.", G)


def extract(wish: ExtractInput, process: ToolProcess) -> ToolResult:
    """Writes the LoRA that lies between two models; nothing is replaced unless `overwrite` says so."""
    need(wish.base, tr("the base model"))
    need(wish.tuned, tr("the changed model"))
    need(wish.output, tr("the file to write"))
    arguments = [wish.output, "--extract", wish.base, wish.tuned, "--rank", str(wish.rank)]
    arguments += [*given("--format", wish.format), *(["--overwrite"] if wish.overwrite else [])]
    return run_script(process, "convert_adapter.py", *arguments, target=Path(wish.output))


def tool() -> Tool:
    """What the window needs to know of it."""
    return Tool(
        EXTRACT,
        help="The LoRA between two models: what a fine-tuned model has learned, as a small file.",
        do="Extract",
        promise="What was written appears here, and what the rank loses.",
        form=lambda _: ExtractInput(),
        run=lambda call: extract(call.wish, call.process),
    )
