"""What `scripts/caption.py` does: writes captions beside images that have none, and touches no other one."""

from dataclasses import dataclass, field
from pathlib import Path

from modules.dataLoader.captions import CaptionError, find_captions
from modules.dataLoader.Companions import Beside
from modules.model.hub import Hub
from modules.tool.captioner import Asked, load_captioner
from modules.tool.FolderTool import FolderTool, FolderWishes, LeftOut, Made, Place
from modules.tool.WrittenCaptions import WrittenCaptions
from modules.util.config.ConceptConfig import ConceptConfig

import torch

from PIL import Image


@dataclass(frozen=True)
class CaptionWishes(FolderWishes):
    """What the command line asked for; see `FolderWishes`.

    Attributes:
        asked: of each image.
        start: what each caption begins with, before what the model says.
    """

    asked: Asked = field(default_factory=Asked)
    start: str = ""


class CaptionTool(FolderTool):
    """Writes captions; see `FolderTool`. `wishes` are `CaptionWishes`."""

    picture, what, shown = "image", "caption", "told"
    ending = ".txt"
    kind = WrittenCaptions
    wishes: CaptionWishes

    def existing(self, image: str, beside: Beside) -> Path | None:
        try:
            found = find_captions(ConceptConfig(), image, (), beside).path
        except CaptionError as error:
            raise LeftOut(f"{error}; it is left as it is") from error
        return Path(found) if found else None

    def load(self, device: torch.device, hub: Hub) -> None:
        self.say(f"model: {self.wishes.model} on {device}")
        self._captioner = load_captioner(self.wishes.model, device, hub, self.wishes.asked)

    def make(self, place: Place, image: Image.Image) -> Made:
        text = self._captioner.describe(image)
        if not text:
            raise LeftOut("the model says nothing of it")
        # a line break would make two captions of it, of which one is drawn
        text = " ".join(f"{self.wishes.start} {text}".split())
        return Made(text, f"{text}\n".encode)
