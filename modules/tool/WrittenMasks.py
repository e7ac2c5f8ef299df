from modules.tool.WrittenFiles import WrittenFiles
from modules.util.decode_image import LARGEST_FILE

MASKS_NAME = ".masks_by_model.jsonl"


class WrittenMasks(WrittenFiles):
    """Which masks of a folder a model has written; see `WrittenFiles`."""

    name, what, largest = MASKS_NAME, "masks", LARGEST_FILE
