"""From long series of numbers to what a plot of a few hundred pixels can show."""

import math
from collections.abc import Sequence

Point = tuple[float, float]


def decimate(points: Sequence[Point], most: int) -> list[Point]:
    """At most about `most` points that draw the same line: of each stretch the smallest and the largest value.

    Args:
        points: (x, y), by growing x.
        most: at least 4. The first and the last point stay.
    """
    if len(points) <= most:
        return list(points)
    found, stretches = [points[0]], max(1, (most - 2) // 2)
    inner = len(points) - 2
    for place in range(stretches):
        stretch = points[1 + inner * place // stretches : 1 + inner * (place + 1) // stretches]
        if stretch:
            ends = {min(stretch, key=lambda point: point[1]), max(stretch, key=lambda point: point[1])}
            found += sorted(ends)
    return [*found, points[-1]]


def ticks(low: float, high: float, most: int = 5) -> list[float]:
    """Round numbers between two bounds, at most `most` and one more, in steps of 1, 2 or 5 times a power of ten."""
    if not (math.isfinite(low) and math.isfinite(high)) or high <= low:
        return [low] if math.isfinite(low) else []
    rough = (high - low) / most
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * (1 - 1e-9))
    first = math.ceil(low / step - 1e-9)
    return [place * step for place in range(first, math.floor(high / step + 1e-9) + 1)]


def tick_text(value: float) -> str:
    """A round number, short: 0.05, 1000, 2e-4."""
    return _exponential(value) if value and not 1e-3 <= abs(value) < 1e5 else f"{value:.6g}"


def tick_texts(values: Sequence[float]) -> list[str]:
    """The same for all of an axis, in one way of writing."""
    found = [tick_text(value) for value in values]
    return [_exponential(value) for value in values] if any("e" in text for text in found) else found


def _exponential(value: float) -> str:
    digits, _, exponent = f"{value:.2e}".partition("e")
    return f"{digits.rstrip('0').rstrip('.')}e{int(exponent)}" if value else "0"


def bounds(series: Sequence[Sequence[Point]], spikes: bool = False) -> tuple[float, float]:
    """Smallest and largest finite y, a little apart even where all are equal; (0, 1) for nothing.

    A few spikes do not flatten the rest: of a series with 50 values and more, the highest hundredth is cut off; with
    `spikes` nothing is.
    """
    lows, highs = [], []
    for points in series:
        values = sorted(y for _, y in points if math.isfinite(y))
        if values:
            lows.append(values[0])
            highs.append(values[-1 - len(values) // 100 if len(values) >= 50 and not spikes else -1])
    if not lows:
        return 0.0, 1.0
    low, high = min(lows), max(highs)
    room = (high - low) * 0.05 or abs(high) * 0.1 or 1.0
    return low - room, high + room
