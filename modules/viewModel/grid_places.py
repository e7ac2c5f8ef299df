"""Where pictures stand in a grid that reflows with its width, in pixels."""

from dataclasses import dataclass


@dataclass(frozen=True)
class GridPlaces:
    """A grid of equal cells, row by row.

    Attributes:
        count: of cells, from 0.
        cell: width and height of one, with the gap behind it.
        width: of the grid.
    """

    count: int
    cell: tuple[int, int]
    width: int

    @property
    def columns(self) -> int:
        """How many cells stand side by side, at least one."""
        return max(1, self.width // self.cell[0])

    @property
    def rows(self) -> int:
        """How many rows there are."""
        return -(-self.count // self.columns)

    @property
    def height(self) -> int:
        """Of all rows."""
        return self.rows * self.cell[1]

    def place(self, index: int) -> tuple[int, int]:
        """Left and top of a cell. What is left of the width stands between the columns."""
        row, column = divmod(index, self.columns)
        return column * self.width // self.columns, row * self.cell[1]

    def at(self, x: int, y: int) -> int | None:
        """The cell at a place, None if there is none."""
        if not (0 <= x < self.width and y >= 0):
            return None
        column = min(self.columns - 1, x * self.columns // self.width)
        index = y // self.cell[1] * self.columns + column
        return index if index < self.count else None

    def seen(self, top: int, height: int) -> range:
        """The cells of which something is seen between two heights."""
        first = max(0, top // self.cell[1]) * self.columns
        behind = max(0, -(-(top + height) // self.cell[1])) * self.columns
        return range(min(first, self.count), min(behind, self.count))

    def moved(self, index: int, key: str, page: int) -> int:
        """The cell that a key leads to: Left, Right, Up, Down, Prior, Next, Home or End.

        Args:
            index: of the cell now; -1 for none, from which every key leads to the first or last.
            key: by its name in Tk.
            page: height of what is seen.
        """
        if index < 0:
            return self.count - 1 if key == "End" else min(0, self.count - 1)
        leap = self.columns * max(1, page // self.cell[1])
        by = {"Left": -1, "Right": 1, "Up": -self.columns, "Down": self.columns, "Prior": -leap, "Next": leap,
              "Home": -self.count, "End": self.count}[key]  # fmt: skip
        return max(0, min(self.count - 1, index + by))
