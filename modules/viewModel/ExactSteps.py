"""How many steps a run has, with batches of one size each. Loads torch: call it on a worker's thread."""

from collections.abc import Sequence
from pathlib import Path

from modules.dataLoader.DatasetReport import DatasetImage
from modules.dataLoader.plan import PlanRules
from modules.util.config.ConceptConfig import ConceptConfig
from modules.util.config.TrainConfig import TrainConfig
from modules.util.regular_file import is_regular
from modules.viewModel.ConceptModel import grid_of, images_of

from PIL import Image

# how a picture is turned, in its file; from this value on, its sides change places
ORIENTATION, ON_ITS_SIDE = 0x0112, 5

Size = tuple[int, int]


class ImageSizes:
    """Sizes of pictures, read from their files' beginnings, and again only when a file has changed."""

    def __init__(self) -> None:
        self._known: dict[str, tuple[tuple[int, int], Size | None]] = {}

    def of(self, path: str) -> Size | None:
        """(width, height), upright, in pixels; None if the file can't be read."""
        try:
            stat = Path(path).stat()
        except OSError:
            return None
        stamp = stat.st_mtime_ns, stat.st_size
        known = self._known.get(path)
        if known is None or known[0] != stamp:
            known = self._known[path] = stamp, _read_size(path)
        return known[1]


def exact_steps(config: TrainConfig, concepts: Sequence[ConceptConfig], sizes: ImageSizes) -> int:
    """Steps of a whole run, by the bucket of each picture and the counter that the run itself uses.

    Args:
        config: of the run.
        concepts: that it trains on.
        sizes: of their pictures. Those that can't be read are left out, as in the run.
    """
    from modules.dataLoader.ImageSource import ImageSource
    from modules.dataLoader.plan_size import BatchCounter

    images = [
        DatasetImage(index, name, path, *size, "", ("",))
        for index, concept in enumerate(concepts)
        for name, path in images_of(concept)
        if (size := sizes.of(path)) is not None
    ]
    source = ImageSource(config, concepts, images, grid_of(config))
    rules = PlanRules(config.seed, config.batch_size)
    counter = BatchCounter(rules, concepts, images, source.begin_sizes, config.epochs, source.sizes_vary)
    batches = sum(counter.batches(epoch) for epoch in range(config.epochs))
    return -(-batches // config.gradient_accumulation_steps)


def _read_size(path: str) -> Size | None:
    # opening a pipe would wait for who writes to it
    if not is_regular(path):
        return None
    try:
        with Image.open(path) as image:
            wide, high = image.size
            turned = image.getexif().get(ORIENTATION, 1) >= ON_ITS_SIDE
    # Pillow's readers raise almost anything on damaged files; the dataset check says what is wrong
    except Exception:
        return None
    return (high, wide) if turned else (wide, high)
