"""What a coordinate check found: rows, how far they spread over sizes and widths, and the table."""

import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from modules.tool.coord_check.methods import CHECKED
from modules.tool.coord_check.step_change import StepChange
from modules.tool.coord_check.variants import Variant
from modules.util.config.read_json import read_json
from modules.util.UserError import UserError

WIDTH = "width"
QUANTITIES = {"median": "layers", "prediction": "prediction"}
# what tables have in place of an infinite number
DIVERGED, INFINITE = "diverged", "infinite"


@dataclass(frozen=True)
class Row:
    """One measured step of one variant.

    Attributes:
        base: name of the base model.
        width: of it, see `CheckedBase`.
        variant: what was trained.
        warm: steps before the measured one.
        change: what the step changed; None: training diverged.
    """

    base: str
    width: int
    variant: Variant
    warm: int
    change: StepChange | None

    @property
    def layers(self) -> list[float]:
        """Changes of all layers of which one is known, increasing."""
        if self.change is None:
            return []
        return sorted(value for value in self.change.layers.values() if not math.isnan(value))

    @property
    def median(self) -> float:
        """Over the layers; infinite if training diverged."""
        return _finite(statistics.median(self.layers)) if self.layers else math.inf

    @property
    def prediction(self) -> float:
        """Change of the prediction; infinite if training diverged."""
        return math.inf if self.change is None else _finite(self.change.prediction)

    def to_json(self) -> dict[str, Any]:
        """Every number; null where there is none."""
        changes = {} if self.change is None else self.change.layers
        layers = self.layers or [math.inf]
        numbers = {"median": self.median, "min": layers[0], "max": layers[-1], "prediction": self.prediction}
        return {
            "base": self.base, "width": self.width, "method": self.variant.method, "size": self.variant.size,
            "reference": self.variant.is_reference, "warm_steps": self.warm,
            **{name: _json_number(value) for name, value in numbers.items()},
            "layers": {name: _json_number(value) for name, value in changes.items()},
        }  # fmt: skip


@dataclass(frozen=True)
class Spread:
    """How far one number differs between variants that differ in one thing alone.

    Attributes:
        over: what they differ in: rank, block or width.
        of: what they have in common.
        quantity: key of `QUANTITIES`.
        least, most: (variant, number).
    """

    over: str
    of: str
    quantity: str
    least: tuple[str, float]
    most: tuple[str, float]

    @property
    def value(self) -> float:
        """The largest over the smallest, at least 1; infinite if one diverged, or moved nothing."""
        if math.isinf(self.most[1]) or not self.least[1]:
            return math.inf
        return self.most[1] / self.least[1]

    def __str__(self) -> str:
        (low, least), (high, most) = self.least, self.most
        return (
            f"{self.of}: {QUANTITIES[self.quantity]} spread by {_number(self.value, INFINITE)} over {self.over} "
            f"({low}: {_number(least)}, {high}: {_number(most)})"
        )

    def to_json(self) -> dict[str, Any]:
        (low, least), (high, most) = self.least, self.most
        return {
            "over": self.over, "of": self.of, "quantity": self.quantity, "spread": _json_number(self.value),
            "least": {"variant": low, "change": _json_number(least)},
            "most": {"variant": high, "change": _json_number(most)},
        }  # fmt: skip


def spreads(rows: Sequence[Row]) -> list[Spread]:
    """Spreads of layers and prediction over the sizes of each method, and over the widths of each variant.

    Only rows of the same number of steps are compared; a method of one size, or a variant on one base model, has none.
    """
    several = len({row.base for row in rows}) > 1
    found = []

    def compare(groups: Mapping[Any, list[Row]], over: Callable[[Row], str], name: Callable[[Row], str]) -> None:
        for (of, _), own in groups.items():
            for quantity in QUANTITIES:
                numbers = sorted(((name(row), getattr(row, quantity)) for row in own), key=lambda pair: pair[1])
                if len(numbers) > 1:
                    found.append(Spread(over(own[0]), of, quantity, numbers[0], numbers[-1]))

    def after(row: Row) -> str:
        return f"step {row.warm + 1}"

    def size_group(row: Row) -> tuple[str, tuple]:
        on = f" on {row.base}" if several else ""
        return f"{CHECKED[row.variant.method].title}{on}, {after(row)}", (row.base, row.variant.method, row.warm)

    def width_group(row: Row) -> tuple[str, tuple]:
        return f"{row.variant.name}, {after(row)}", (row.variant.method, row.variant.size, row.warm)

    compare(
        _grouped(rows, size_group),
        lambda row: CHECKED[row.variant.method].size_name,
        lambda row: str(row.variant.size),
    )
    if several:
        compare(_grouped(rows, width_group), lambda row: WIDTH, lambda row: f"{row.base}, width {row.width}")
    return found


def table(rows: Sequence[Row]) -> str:
    """A row for each measured step, step by step; `*` marks the config as it is, to which ratios are."""
    several = len({row.base for row in rows}) > 1
    references: dict[int, Row] = {}
    for row in rows:
        if row.variant.is_reference:
            references.setdefault(row.warm, row)
    head = [*(["base", "width"] if several else []), "variant", "step", "median", "min", "max", "ratio", "prediction",
            "ratio"]  # fmt: skip
    body = []
    for row in sorted(rows, key=lambda row: row.warm):
        reference, layers = references[row.warm], row.layers or [math.inf]
        mark = " *" if row.variant.is_reference else ""
        cells = [row.base, str(row.width)] if several else []
        cells += [f"{row.variant.name}{mark}", str(row.warm + 1)]
        cells += [_number(value) for value in (row.median, layers[0], layers[-1])]
        cells += [_ratio(row.median, reference.median), _number(row.prediction)]
        body.append([*cells, _ratio(row.prediction, reference.prediction)])
    return _aligned([head, *body], {"base", "variant"})


def spread_table(found: Sequence[Spread]) -> str:
    """A line for each group of variants: by what factor layers and prediction differ over its sizes or widths."""
    lines: dict[tuple[str, str], list[str]] = {}
    for one in found:
        lines.setdefault((f"spread over {one.over}", one.of), []).append(_number(one.value, INFINITE))
    head = ["spread", "of", *QUANTITIES.values()]
    return _aligned([head, *([*names, *numbers] for names, numbers in lines.items())], {"spread", "of"})


def read_result(path: Path) -> dict[str, Any]:
    """What an earlier check wrote.

    Raises:
        UserError: it is something else.
        ConfigError: it is no JSON, or can't be read.
    """
    result = read_json(path)
    rows = result.get("rows")
    needed = {"base", "width", "method", "size", "warm_steps", *QUANTITIES}
    sound = isinstance(result.get("title"), str) and isinstance(rows, list) and rows
    if not sound or not all(isinstance(row, dict) and needed <= row.keys() for row in rows):
        raise UserError(f"--beside: {path} is no result of scripts/coord_check.py. Make one with --json.")
    return result


def _aligned(lines: Sequence[Sequence[str]], left: Iterable[str]) -> str:
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    is_left = [title in left for title in lines[0]]

    def line(cells: Sequence[str]) -> str:
        padded = [
            cell.ljust(width) if text else cell.rjust(width)
            for cell, width, text in zip(cells, widths, is_left, strict=True)
        ]
        return "  ".join(padded).rstrip()

    return "\n".join(map(line, lines))


def _grouped(rows: Sequence[Row], key: Callable[[Row], tuple[str, tuple]]) -> dict[tuple[str, tuple], list[Row]]:
    groups: dict[tuple[str, tuple], list[Row]] = {}
    for row in rows:
        groups.setdefault(key(row), []).append(row)
    return groups


def _finite(value: float) -> float:
    return value if math.isfinite(value) else math.inf


def _number(value: float, infinite: str = DIVERGED) -> str:
    return infinite if math.isinf(value) else f"{value:.3g}"


def _ratio(value: float, reference: float) -> str:
    return "–" if math.isinf(value) or math.isinf(reference) or not reference else f"{value / reference:.2f}"


def _json_number(value: float) -> float | None:
    return value if math.isfinite(value) else None
