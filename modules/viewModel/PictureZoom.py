from modules.viewModel.fit_picture import fit_picture

# of a pixel of the picture on the screen
LARGEST = 32.0
STEP = 1.25


class PictureZoom:
    """Which part of a picture is seen, and how large. At first all of it, as large as there is room for.

    Attributes:
        scale: pixels of the screen for one of the picture.
    """

    def __init__(self) -> None:
        self._size, self._room = (1, 1), (1, 1)
        self._center = (0.5, 0.5)
        self.scale, self._fits = 1.0, True

    def show(self, size: tuple[int, int], room: tuple[int, int]) -> None:
        """Takes a picture's size and the room for it, in pixels. All of another size is shown."""
        if size != self._size:
            self._fits = True
        self._size, self._room = size, (max(1, room[0]), max(1, room[1]))
        if self._fits or self.scale < self._fit():
            self.fit()
        self._keep_inside()

    def fit(self) -> None:
        """All of it."""
        self.scale, self._center, self._fits = self._fit(), (self._size[0] / 2, self._size[1] / 2), True

    def zoom(self, steps: int, x: float, y: float) -> None:
        """Larger by some steps, smaller for negative ones; what is at a place of the room stays there."""
        before = self.scale
        self.scale = max(self._fit(), min(max(LARGEST, self._fit()), self.scale * STEP**steps))
        self._fits = self.scale <= self._fit()
        if self._fits:
            self.fit()
            return
        nearer = 1 / before - 1 / self.scale
        self._center = (
            self._center[0] + (x - self._room[0] / 2) * nearer,
            self._center[1] + (y - self._room[1] / 2) * nearer,
        )
        self._keep_inside()

    def move(self, x: float, y: float) -> None:
        """Moves what is seen by pixels of the screen."""
        self._center = (self._center[0] - x / self.scale, self._center[1] - y / self.scale)
        self._keep_inside()

    @property
    def box(self) -> tuple[float, float, float, float]:
        """Left, top, right and bottom of what is seen, in pixels of the picture."""
        half = [min(size, room / self.scale) / 2 for size, room in zip(self._size, self._room, strict=True)]
        (x, y), (wide, high) = self._center, half
        return x - wide, y - high, x + wide, y + high

    @property
    def shown(self) -> tuple[int, int]:
        """Width and height of that on the screen."""
        left, top, right, bottom = self.box
        return max(1, round((right - left) * self.scale)), max(1, round((bottom - top) * self.scale))

    def _fit(self) -> float:
        return fit_picture(self._size, self._room)[1]

    def _keep_inside(self) -> None:
        center = []
        for place, size, room in zip(self._center, self._size, self._room, strict=True):
            half = min(size, room / self.scale) / 2
            center.append(max(half, min(size - half, place)))
        self._center = (center[0], center[1])
