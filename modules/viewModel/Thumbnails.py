import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence

from modules.viewModel.read_pictures import small_picture
from modules.viewModel.Worker import Worker

from PIL import Image

THREADS = 2
# seconds that a thread makes pictures before it hands them over
SLICE = 0.08
MOST_BYTES = 128 << 20
Made = list[tuple[str, Image.Image | None]]


class Thumbnails:
    """Small pictures, made on threads when they are wished for. Those not looked at for longest are forgotten.

    Args:
        worker: on whose threads they are made.
        edge: of their longer side, in pixels.
        done: gets the paths of those that have come.
        failed: is told what kept a thread from its work.
        most_bytes: that all of them take together.
        enlarged: see `small_picture`.
    """

    def __init__(
        self, worker: Worker, edge: int, done: Callable[[list[str]], None], failed: Callable[[Exception], None],
        most_bytes: int = MOST_BYTES, enlarged: bool = False,
    ) -> None:  # fmt: skip
        self._worker, self._edge, self._done, self._failed, self._most = worker, edge, done, failed, most_bytes
        self._enlarged = enlarged
        self._known: OrderedDict[str, Image.Image | None] = OrderedDict()
        self._bytes = 0
        self._wished: list[str] = []
        self._making: set[str] = set()
        self._lock = threading.Lock()
        self._threads = 0

    @property
    def bytes(self) -> int:
        """What those that are kept take."""
        return self._bytes

    def has(self, path: str) -> bool:
        """Whether a picture is known, or known not to be readable."""
        return path in self._known

    def get(self, path: str) -> Image.Image | None:
        """A picture, None if it is not there yet or can't be read."""
        if path in self._known:
            self._known.move_to_end(path)
        return self._known.get(path)

    def wish(self, paths: Sequence[str]) -> None:
        """These are wanted, the first ones first; what was wished for before and is not begun is not made."""
        with self._lock:
            self._wished = [path for path in paths if path not in self._known and path not in self._making]
        self._start()

    def forget(self, path: str) -> None:
        """The file is another one by now."""
        image = self._known.pop(path, None)
        self._bytes -= _bytes_of(image)

    def stop(self) -> None:
        """Nothing more is wanted."""
        with self._lock:
            self._wished = []

    def _start(self) -> None:
        while self._threads < THREADS and self._threads < len(self._wished):
            self._threads += 1
            self._worker.run(self._make, self._take, self._give_up)

    def _make(self) -> Made:
        made: Made = []
        end = time.monotonic() + SLICE
        while time.monotonic() < end:
            with self._lock:
                if not self._wished:
                    break
                path = self._wished.pop(0)
                self._making.add(path)
            made.append((path, small_picture(path, self._edge, self._enlarged)))
        return made

    def _take(self, made: Made) -> None:
        self._threads -= 1
        for path, image in made:
            self._making.discard(path)
            self.forget(path)
            self._known[path] = image
            self._bytes += _bytes_of(image)
        while self._bytes > self._most and len(self._known) > 1:
            _, image = self._known.popitem(last=False)
            self._bytes -= _bytes_of(image)
        self._start()
        if made:
            self._done([path for path, _ in made])

    def _give_up(self, error: Exception) -> None:
        self._threads -= 1
        with self._lock:
            # what it was at is not known; asked for again, it is tried again
            self._making.clear()
        self._failed(error)


def _bytes_of(image: Image.Image | None) -> int:
    return image.width * image.height * len(image.getbands()) if image is not None else 0
