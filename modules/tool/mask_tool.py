"""What `scripts/mask.py` does: writes masks beside pictures that have none, and touches no other one."""

import io
import os
from dataclasses import dataclass, field
from pathlib import Path

from modules.dataLoader.Companions import MASK, Beside
from modules.model.hub import Hub
from modules.tool.FolderTool import FolderTool, FolderWishes, LeftOut, Made, Place
from modules.tool.mask_preview import Shown, draw_sheet
from modules.tool.mask_shape import MaskShape, is_empty, shape_mask, white_share
from modules.tool.masker import load_masker
from modules.tool.WrittenMasks import WrittenMasks
from modules.util.atomic_file import write_bytes
from modules.util.config.TrainConfig import TrainConfig
from modules.util.decode_image import LARGEST_FILE
from modules.util.regular_file import read_regular
from modules.util.UserError import UserError

import torch

from PIL import Image, PngImagePlugin

MARK = "masks over pictures", "preview of scripts/mask.py"
"""Text in a preview's PNG, by which the next one may replace it."""


@dataclass(frozen=True)
class MaskWishes(FolderWishes):
    """What the command line asked for; see `FolderWishes`.

    Attributes:
        prompt: what is looked for; see `load_masker`.
        shape: what is made of the model's values.
        sheet: PNG file that shows the pictures with their masks; None: there is none.
    """

    prompt: str = ""
    shape: MaskShape = field(default_factory=MaskShape)
    sheet: Path | None = None


class MaskTool(FolderTool):
    """Writes masks; see `FolderTool`. `wishes` are `MaskWishes`."""

    what = "mask"
    ending = f"{MASK}.png"
    kind = WrittenMasks
    wishes: MaskWishes

    def run(self) -> None:
        if self.wishes.sheet is not None:
            check_preview(self.wishes.sheet)
        self._shown: list[Shown] = []
        super().run()

    def existing(self, image: str, beside: Beside) -> Path | None:
        return Path(image).with_name(beside.masks[0]) if beside.masks else None

    def load(self, device: torch.device, hub: Hub) -> None:
        self.say(f"model: {self.wishes.model}")
        self._masker = load_masker(self.wishes.model, device, hub, self.wishes.prompt)

    def make(self, place: Place, image: Image.Image) -> Made:
        mask = shape_mask(self._masker.segment(image), image.size, self.wishes.shape)
        if is_empty(mask):
            # with it nothing would be learnt of the picture
            raise LeftOut("the mask would be black, as nothing was found that is to be white; try a lower threshold")
        told = f"{100 * white_share(mask):.0f} % white"
        if self.wishes.sheet is not None:
            self._shown.append(Shown.of(f"{place.name}: {told}", image, mask))
        told += "" if self.wishes.preview else f", {place.file.name}"
        return Made(told, lambda: _png(Image.fromarray(mask)))

    def end(self, config: TrainConfig) -> None:
        if self._shown:
            _write_sheet(self.wishes.sheet, self._shown)
            self.say(f"written: {self.wishes.sheet}")
        super().end(config)
        if self.wishes.config is not None and not config.masked_training:
            self.say("note: masked_training is off. Switch it on, or the masks are not used.")


def _png(image: Image.Image, info: PngImagePlugin.PngInfo | None = None) -> bytes:
    with io.BytesIO() as file:
        image.save(file, "PNG", pnginfo=info)
        return file.getvalue()


def check_preview(path: Path) -> None:
    """UserError if a file stands there that is no earlier preview."""
    if path.suffix.lower() != ".png":
        raise UserError(f"--preview: {path} is no name of a PNG file; expected one that ends with .png.")
    if not os.path.lexists(path):
        return
    try:
        with Image.open(io.BytesIO(read_regular(path, LARGEST_FILE)), formats=["PNG"]) as image:
            image.load()
            known = image.info.get(MARK[0]) == MARK[1]
    # as `decode_image`: Pillow's readers raise almost anything
    except Exception:
        known = False
    if not known:
        raise UserError(f"--preview: {path} exists and is no preview of masks. Choose another name.")


def _write_sheet(path: Path, shown: list[Shown]) -> None:
    info = PngImagePlugin.PngInfo()
    info.add_text(*MARK)
    write_bytes(path, _png(draw_sheet(shown), info))
