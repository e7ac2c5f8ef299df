from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

from modules.viewModel.fit_picture import fit_picture
from modules.viewModel.Worker import Worker

from PIL import Image

# pictures that are read at once by a thread, and small ones that are kept
PORTION, MOST = 8, 600
Key = tuple[Path, int]


class SampleThumbnails:
    """Small pictures, made where they are wanted, some at a time, by a thread. The last wishes are fulfilled first.

    Args:
        worker: reads them.
        done: called when some more are there.
    """

    def __init__(self, worker: Worker, done: Callable[[], None]) -> None:
        self._worker, self._done = worker, done
        self._made: OrderedDict[Key, Image.Image | None] = OrderedDict()
        self._wanted: list[Key] = []
        self._reading = False

    def of(self, path: Path, edge: int) -> Image.Image | None:
        """A picture of at most `edge` pixels; None as long as it is not there, or where it can't be read."""
        if (path, edge) in self._made:
            self._made.move_to_end((path, edge))
        return self._made.get((path, edge))

    def failed(self, path: Path, edge: int) -> bool:
        """Whether it can't be read."""
        return self._made.get((path, edge), self) is None

    def want(self, paths: list[Path], edge: int) -> None:
        """Makes those that are not there; what was wanted before and is not now is given up."""
        self._wanted = [(path, edge) for path in paths if (path, edge) not in self._made]
        self._read()

    def _read(self) -> None:
        if self._reading or not self._wanted:
            return
        self._reading = True
        portion, self._wanted = self._wanted[:PORTION], self._wanted[PORTION:]

        def take(found: dict[Key, Image.Image | None]) -> None:
            self._reading = False
            self._made |= found
            while len(self._made) > MOST:
                self._made.popitem(last=False)
            self._done()
            self._read()

        def give_up(error: Exception) -> None:
            take(dict.fromkeys(portion))

        self._worker.run(lambda: {key: _small(*key) for key in portion}, take, give_up)


def _small(path: Path, edge: int) -> Image.Image | None:
    try:
        with Image.open(path) as image:
            # a JPEG can be read in an eighth of its size at once
            image.draft("RGB", (edge, edge))
            size, scale = fit_picture(image.size, (edge, edge))
            way = Image.Resampling.NEAREST if scale >= 3 else Image.Resampling.LANCZOS
            return image.convert("RGB").resize(size, way)
    # Pillow's readers raise almost anything on damaged files
    except Exception:
        return None
