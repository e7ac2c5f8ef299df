"""The tool that describes images in words."""

from modules.tool.caption_names import KNOWN_MODELS
from modules.util.config.BaseConfig import BaseConfig
from modules.util.config.option import option
from modules.util.config.TrainConfig import TrainConfig
from modules.util.enum.OptionGroup import OptionGroup
from modules.util.texts import later, tr
from modules.viewModel.ToolProcess import ToolProcess
from modules.viewModel.tools.call_script import given, run_on_folder, switched_on
from modules.viewModel.tools.Tool import Tool
from modules.viewModel.tools.ToolResult import ToolResult

CAPTIONS = later("captions")
G = OptionGroup.ADAPTER


class CaptionInput(BaseConfig):
    """What captions are written for, and how."""

    folder: str = option("", "Folder", "Of the images. Captions that are there are left alone.", G, path="folder")
    model: str = option(
        KNOWN_MODELS[0], "Model", "Folder or hub name: BLIP, BLIP-2, Florence-2, a chat model that sees, a tagger.", G,
        choices=KNOWN_MODELS, path="model",
    )  # fmt: skip
    prompt: str = option(
        "", "Prompt",
        "What the model is asked. BLIP goes on from it, Florence-2 takes <CAPTION>, <DETAILED_CAPTION> or "
        "<MORE_DETAILED_CAPTION>, chat models follow it. Empty: as usual for the model.", G,
    )  # fmt: skip
    start: str = option("", "Begins with", "What each caption begins with, such as ohwx and a comma.", G)
    preview: int | None = option(
        3, "Preview", "Shows so many captions and writes nothing. null: all captions are written.", G, ge=1
    )
    subfolders: bool = option(False, "Subfolders", "Images in folders below get captions, too.", G)
    redo: bool = option(
        False, "Write anew", "Captions that a model wrote here and nobody changed since are written anew.", G
    )


def write_captions(config: TrainConfig, wish: CaptionInput, process: ToolProcess) -> ToolResult:
    """Captions of a folder's images by a model, written beside them or, in a preview, only shown.

    Args:
        config: of the run: its device, hub cache, token and offline mode.
        wish: what is described, and how.
        process: unused, for the script.

    Raises:
        UserError: the folder or the model can't be used.
    """
    arguments = [f"--start={wish.start}", *given("--preview", wish.preview), *switched_on(wish, "redo", "subfolders")]
    return run_on_folder(process, "caption.py", config, wish, tr("a folder of images"), *arguments)


def tool() -> Tool:
    """What the window needs to know of it."""
    return Tool(
        CAPTIONS,
        help="Describes the images of a folder by a model. What you wrote yourself is never changed.",
        do="Describe",
        promise="The captions appear here. They are written only where Preview is empty.",
        form=lambda _: CaptionInput(),
        run=lambda call: write_captions(call.config, call.wish, call.process),
    )
