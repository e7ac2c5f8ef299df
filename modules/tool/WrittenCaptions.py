from modules.dataLoader.captions import LARGEST_CAPTION
from modules.tool.WrittenFiles import WrittenFiles

NAME = ".captions_by_model.jsonl"


class WrittenCaptions(WrittenFiles):
    """Which captions of a folder a model has written; see `WrittenFiles`."""

    name, what, largest = NAME, "captions", LARGEST_CAPTION
