"""Samples as a table: rows are runs or prompts, columns are time."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median

from modules.viewModel.RunModel import SamplePicture
from modules.viewModel.SampleGrid import PictureRow


@dataclass(frozen=True)
class Gallery:
    """A table of pictures.

    Attributes:
        rows: title and pictures.
        cells: row -> column -> picture; None where a row has none at that time.
    """

    rows: list[PictureRow] = field(default_factory=list)
    cells: list[list[SamplePicture | None]] = field(default_factory=list)

    @property
    def columns(self) -> int:
        """How many there are."""
        return max(map(len, self.cells), default=0)


def prompts_of(pictures: Sequence[SamplePicture]) -> dict[str, list[SamplePicture]]:
    """Prompt -> its pictures by step, in the order of the prompts; of a step that was drawn twice the last.

    A prompt's number in its run is left out, so that the same prompt is found in other runs. Where a run has a prompt
    twice, as with another seed, the second one is another prompt here.
    """
    folders: dict[str, dict[int, SamplePicture]] = {}
    for picture in pictures:
        if picture.prompt.split(" ", 1)[0].isdigit():
            folders.setdefault(picture.prompt, {})[picture.step] = picture
    found: dict[str, list[SamplePicture]] = {}
    for folder in sorted(folders, key=lambda name: (int(name.split(" ", 1)[0]), name)):
        text = folder.split(" - ", 1)[-1]
        name, number = text, 2
        while name in found:
            name, number = f"{text} ({number})", number + 1
        found[name] = [folders[folder][step] for step in sorted(folders[folder])]
    return found


def gallery(rows: Mapping[str, Sequence[SamplePicture]]) -> Gallery:
    """Rows beside each other, with what was drawn after about the same step in one column.

    Args:
        rows: title -> pictures by step.
    """
    kept = {title: list(pictures) for title, pictures in rows.items() if pictures}
    columns = _columns(list(kept.values()))
    cells: list[list[SamplePicture | None]] = []
    for pictures in kept.values():
        own = {picture.step: picture for picture in pictures}
        cells.append([next((own[step] for step in steps if step in own), None) for steps in columns])
    return Gallery([PictureRow(title, pictures) for title, pictures in kept.items()], cells)


def _columns(rows: Sequence[Sequence[SamplePicture]]) -> list[list[int]]:
    """Steps that stand in one column: neighbours, of which no row has two, and which are near each other."""
    own = [{picture.step for picture in pictures} for pictures in rows]
    steps = sorted(set().union(*own)) if own else []
    gaps = [b - a for one in own for a, b in zip(sorted(one), sorted(one)[1:], strict=False)]
    near = median(gaps) / 2 if gaps else float("inf")
    columns: list[list[int]] = []
    for step in steps:
        last = columns[-1] if columns else []
        taken = any(step in row and not row.isdisjoint(last) for row in own)
        if last and not taken and step - last[0] <= near:
            last.append(step)
        else:
            columns.append([step])
    return columns
