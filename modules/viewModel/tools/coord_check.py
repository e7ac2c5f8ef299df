"""The tool that measures how much one step changes a model, over sizes and methods."""

from collections.abc import Iterable
from pathlib import Path

from modules.tool.coord_check.methods import BATCH, BLOCKS, BOUND, CHECKED, RANKS, USUAL, WARM
from modules.util.config.BaseConfig import BaseConfig
from modules.util.config.option import option
from modules.util.config.TrainConfig import TrainConfig
from modules.util.enum.OptionGroup import OptionGroup
from modules.util.texts import later
from modules.viewModel.ToolProcess import ToolProcess
from modules.viewModel.tools.call_script import config_file, given, run_script
from modules.viewModel.tools.Tool import Tool
from modules.viewModel.tools.ToolResult import ToolResult

COORD = later("coordinate check")
G = OptionGroup.ADAPTER


def _listed(numbers: Iterable[int]) -> str:
    return " ".join(map(str, numbers))


class CoordInput(BaseConfig):
    """What the coordinate check compares."""

    methods: str = option(
        " ".join(USUAL), "Methods", f"Any of {', '.join(CHECKED)}, with spaces between. full takes the most memory.", G
    )
    ranks: str = option(_listed(RANKS), "Ranks", "Of methods with factors, with spaces between. Alpha goes along.", G)
    blocks: str = option(_listed(BLOCKS), "Block sizes", "Of OFT and DoRA-OFT, with spaces between.", G)
    base: str = option(
        "", "Another base model", "Folder, file or hub name of a model of another width. Empty: none.", G, path="model"
    )
    rate: float | None = option(None, "Learning rate", "null: the config's.", G, gt=0)
    steps: str = option(_listed(WARM), "Steps before", "Steps before the one that is measured, with spaces between.", G)
    batch: int = option(BATCH, "Batch", "Images of a batch.", G, ge=1)
    bound: float = option(
        BOUND, "Bound", "The largest change of a step over the smallest that still counts as the same.", G, ge=1
    )


def coord_check(config: TrainConfig, wish: CoordInput, picture: Path, process: ToolProcess) -> ToolResult:
    """A plot and a table of how much one step of this config changes, over sizes and methods.

    Args:
        config: of the run.
        wish: what is compared.
        picture: PNG file that is written.
        process: unused, for the script.
    """
    arguments = ["--batch", str(wish.batch), "--bound", str(wish.bound), "--plot", str(picture)]
    for flag, value in (
        ("--methods", wish.methods), ("--ranks", wish.ranks), ("--blocks", wish.blocks), ("--steps", wish.steps),
    ):  # fmt: skip
        if value.strip():
            arguments += [flag, *value.split()]
    arguments += [*given("--widths", wish.base), *given("--rate", wish.rate)]
    with config_file(config) as path:
        # 1: some spread is above the bound, which the text tells
        return run_script(process, "coord_check.py", str(path), *arguments, accepted=(0, 1), picture=picture)


def tool() -> Tool:
    """What the window needs to know of it."""
    return Tool(
        COORD,
        help="How much one step of the present config changes the model, over ranks, block sizes and methods. Where "
        "it is as much, the learning rate holds for all.",
        do="Measure",
        promise="A plot over sizes, and a table of all variants, appear here. Nothing is trained but a few steps in "
        "memory.",
        form=lambda _: CoordInput(),
        run=lambda call: coord_check(call.config, call.wish, call.folder / "coordinates.png", call.process),
    )
