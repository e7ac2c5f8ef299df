from collections.abc import Sequence
from dataclasses import dataclass

from modules.util.texts import tr
from modules.viewModel.RunModel import RunModel, SamplePicture


@dataclass(frozen=True)
class PictureRow:
    """Pictures that belong together, from left to right.

    Attributes:
        title: of the row: a run, or a prompt.
        pictures: by step.
    """

    title: str
    pictures: Sequence[SamplePicture]


class SampleGrid:
    """Which picture of some rows is looked at. At the end of its row it follows the newest.

    Attributes:
        rows: those that have pictures.
        row, place: of the one that is looked at.
    """

    def __init__(self, rows: Sequence[PictureRow] = ()) -> None:
        self.rows: list[PictureRow] = []
        self.row, self.place = 0, 0
        self._follows = True
        self.show(rows)

    @property
    def picture(self) -> SamplePicture | None:
        """The one that is looked at."""
        return self.rows[self.row].pictures[self.place] if self.rows else None

    @property
    def title(self) -> str:
        """What it is, in one line."""
        if self.picture is None:
            return tr("no picture")
        row = self.rows[self.row]
        where = tr("{place} of {count}", place=self.place + 1, count=len(row.pictures))
        return f"{row.title} · {tr('after step {step}', step=self.picture.step)} · {where}"

    def open(self, picture: SamplePicture) -> None:
        """Looks at a picture of these rows; at the first one if it is not there."""
        for number, row in enumerate(self.rows):
            if picture in row.pictures:
                self.row, self.place = number, list(row.pictures).index(picture)
                self._follows = self.place == len(row.pictures) - 1
                return

    def show(self, rows: Sequence[PictureRow]) -> None:
        """Takes in what rows are now. What is looked at stays, or is the newest where that was looked at."""
        before, title = self.picture, self.rows[self.row].title if self.rows else ""
        self.rows = [row for row in rows if row.pictures]
        if not self.rows:
            self.row = self.place = 0
            return
        self.row = next((number for number, row in enumerate(self.rows) if row.title == title), 0)
        pictures = list(self.rows[self.row].pictures)
        if self._follows or before not in pictures:
            self.place = len(pictures) - 1
        else:
            self.place = pictures.index(before)

    def turn(self, by: int) -> None:
        """To an earlier or a later picture of the row."""
        if self.rows:
            last = len(self.rows[self.row].pictures) - 1
            self.place = max(0, min(last, self.place + by))
            self._follows = self.place == last

    def change_row(self, by: int) -> None:
        """To the picture of another row whose step is nearest."""
        if not self.rows:
            return
        step = self.picture.step
        self.row = max(0, min(len(self.rows) - 1, self.row + by))
        pictures = self.rows[self.row].pictures
        self.place = min(range(len(pictures)), key=lambda place: abs(pictures[place].step - step))
        self._follows = self.place == len(pictures) - 1


def rows_of(model: RunModel) -> list[PictureRow]:
    """The pictures of a run, a row for each prompt."""
    return [PictureRow(prompt, model.pictures(prompt)) for prompt in model.prompts()]
