"""The tool that draws a prompt with and without an adapter."""

from pathlib import Path

from modules.util.config.BaseConfig import BaseConfig
from modules.util.config.option import option
from modules.util.config.TrainConfig import TrainConfig
from modules.util.enum.OptionGroup import OptionGroup
from modules.util.texts import later, tr
from modules.util.UserError import UserError
from modules.viewModel.ToolProcess import ToolProcess
from modules.viewModel.tools.call_script import config_file, given, run_script
from modules.viewModel.tools.Tool import Tool
from modules.viewModel.tools.ToolResult import ToolResult

TRY = later("try a prompt")
G = OptionGroup.ADAPTER


class TryInput(BaseConfig):
    """What is drawn with an adapter."""

    adapter: str = option("", "Adapter", "The adapter file. Empty: the base model alone.", G, path="file")
    prompt: str = option("", "Prompt", "What to draw.", G)
    negative: str = option("", "Negative prompt", "What guidance steers away from.", G)
    strengths: str = option(
        "0 1", "Strengths", "Of the adapter, with spaces between; 0 is the base model alone. One picture each.", G
    )
    seed: int = option(42, "Seed", "The noise that each picture starts from.", G)
    count: int = option(1, "Pictures", "With each strength; seeds count up.", G, ge=1)
    width: int | None = option(None, "Width", "null: as the model is usually drawn.", G, ge=8)
    height: int | None = option(None, "Height", "null: as the model is usually drawn.", G, ge=8)
    steps: int | None = option(None, "Steps", "Of the sampler. null: as usual.", G, ge=1)
    cfg: float | None = option(None, "Guidance", "null: as usual.", G, ge=0)


def try_prompt(config: TrainConfig, wish: TryInput, process: ToolProcess) -> ToolResult:
    """Draws a prompt with the base model of a config and an adapter, at each strength, into the workspace's `images`.

    Args:
        config: of the run: its base model, number formats and device.
        wish: what is drawn.
        process: unused, for the script.

    Raises:
        UserError: something can't be read, or does not fit.
    """
    if not wish.prompt.strip():
        raise UserError(tr("Write a prompt first."))
    folder = Path(config.workspace_dir) / "images"
    # with = a text may begin with a dash
    arguments = [f"--prompt={wish.prompt}", "--seed", str(wish.seed), "--count", str(wish.count)]
    arguments += ["--output", str(folder), *([f"--negative={wish.negative}"] if wish.negative.strip() else [])]
    for flag in ("width", "height", "steps", "cfg"):
        arguments += given(f"--{flag}", getattr(wish, flag))
    if wish.adapter.strip():
        arguments += ["--adapter", wish.adapter, "--strengths", *(wish.strengths.split() or ["0", "1"])]
    with config_file(config) as path:
        # 3: memory was too little for some, which the text tells
        found = run_script(process, "sample.py", "--config", str(path), *arguments, accepted=(0, 3))
    written = [line.removeprefix("written: ") for line in found.text.splitlines() if line.startswith("written: ")]
    return ToolResult(found.text, Path(written[-1]) if written else None, plot=False)


def tool() -> Tool:
    """What the window needs to know of it."""
    return Tool(
        TRY,
        help="Draws a prompt with the base model of the present config, alone and with an adapter. Nothing is trained.",
        do="Draw",
        promise="The pictures appear here, beside one another. They are kept in the workspace, in images.",
        form=lambda _: TryInput(),
        run=lambda call: try_prompt(call.config, call.wish, call.process),
    )
