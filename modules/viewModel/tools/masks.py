"""The tool that makes masks by a model."""

from pathlib import Path

from modules.tool.mask_names import HOLES, KNOWN_MODELS, MOST_BLUR, MOST_GROWTH, PREVIEW, THRESHOLD
from modules.util.config.BaseConfig import BaseConfig
from modules.util.config.option import option
from modules.util.config.TrainConfig import TrainConfig
from modules.util.enum.OptionGroup import OptionGroup
from modules.util.texts import later, tr
from modules.viewModel.ToolProcess import ToolProcess
from modules.viewModel.tools.call_script import NOTE_WIDTH, run_on_folder, switched_on
from modules.viewModel.tools.Tool import Tool
from modules.viewModel.tools.ToolResult import ToolResult

MASKS = later("masks")
G = OptionGroup.ADAPTER
# short lines stand beside the form also in a small window, and leave the pictures more room
PREVIEW_WIDTH = 38
WORDS = {"--prompt:": later("What to find:"), "masked_training is off": later("Masked training is off")}


class MaskInput(BaseConfig):
    """What masks are made for, and how."""

    folder: str = option("", "Folder", "Of the pictures. Masks that are there are left alone.", G, path="folder")
    model: str = option(
        KNOWN_MODELS[0], "Model",
        "Folder, .onnx file or hub name: one that removes backgrounds (BiRefNet, IS-Net, U2-Net), CLIPSeg, or one that "
        "finds labels (SegFormer, Mask2Former).", G, choices=KNOWN_MODELS, path="model",
    )  # fmt: skip
    prompt: str = option(
        "", "What to find",
        "For CLIPSeg a text, such as a person; for models of labels a label. Several with commas between. Empty for "
        "models that remove backgrounds.", G,
    )  # fmt: skip
    preview: int | None = option(
        PREVIEW, "Preview", "Shows so many pictures with their masks and writes nothing. null: all masks are written.",
        G, ge=1,
    )  # fmt: skip
    threshold: float = option(
        THRESHOLD, "Threshold",
        "From this value of the model on a pixel is white. Lower finds more. CLIPSeg often needs 0.3 to 0.4.",
        G, gt=0, lt=1,
    )  # fmt: skip
    grow: int = option(
        0, "Grow", "White grows by so many pixels; negative: it shrinks. A rim around the subject does no harm.", G,
        ge=-MOST_GROWTH, le=MOST_GROWTH,
    )  # fmt: skip
    blur: float = option(0.0, "Blur", "Radius in pixels by which the edge is blurred.", G, ge=0, le=MOST_BLUR)
    holes: float = option(
        HOLES, "Fill holes", "Black spots inside that take less than so many percent of the picture become white.", G,
        ge=0, le=100,
    )  # fmt: skip
    soft: bool = option(
        False, "Soft", "Greys stay, with mid-grey at the threshold. Off: everything is black or white.", G
    )
    invert: bool = option(False, "Invert", "What was found is black, and all else is learnt.", G)
    subfolders: bool = option(False, "Subfolders", "Pictures in folders below get masks, too.", G)
    overwrite: bool = option(
        False, "Write anew", "Masks that a model wrote here and nobody changed since are made anew.", G
    )


def write_masks(config: TrainConfig, wish: MaskInput, picture: Path, process: ToolProcess) -> ToolResult:
    """Masks of a folder's pictures by a model, written beside them or, in a preview, shown over some of them.

    Args:
        config: of the run: its device, hub cache, token and offline mode.
        wish: what is found, and what is made of it.
        picture: PNG file of the preview.
        process: unused, for the script.

    Raises:
        UserError: the folder or the model can't be used.
    """
    arguments = [f"--{name}={getattr(wish, name)}" for name in ("grow", "threshold", "blur", "holes")]
    arguments += switched_on(wish, "soft", "invert", "subfolders", "overwrite")
    if wish.preview is not None:
        arguments += ["--preview", str(picture), "--limit", str(wish.preview)]
    width = NOTE_WIDTH if wish.preview is None else PREVIEW_WIDTH
    what = tr("a folder of pictures")
    return run_on_folder(process, "mask.py", config, wish, what, *arguments, words=WORDS, picture=picture, width=width)


def tool() -> Tool:
    """What the window needs to know of it."""
    return Tool(
        MASKS,
        help=tr(
            "Lets a model say what of each picture in a folder is learnt: what is white in its mask. Masks that you "
            "made are never changed."
        ),
        do=tr("Make masks"),
        promise=tr("Pictures with their masks over them appear here. Masks are written only where Preview is empty."),
        form=lambda _: MaskInput(),
        run=lambda call: write_masks(call.config, call.wish, call.folder / "masks.png", call.process),
    )
