"""The search for the best learning rate of one setting and seed, on a grid of rates that all settings share."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

# rates are BASE·2^(k/2)
BASE = 0.001
MOST_COARSE = 9


def rate_of(k: int) -> float:
    """Rate number k of the grid, each √2 times the one before; k = 0 is `BASE`."""
    return float(f"{BASE * 2 ** (k / 2):.4g}")


def number_of(rate: float) -> int | None:
    """The number of a rate of the grid, None for any other rate."""
    k = round(2 * math.log2(rate / BASE))
    return k if math.isclose(rate_of(k), rate, rel_tol=1e-6) else None


def next_rates(found: Mapping[int, float], expected: float, *, fine: bool = True) -> list[int]:
    """Which rates to try next; none when the best one is known.

    First three around the expected one, each twice the one before; while the best lies at an end, one beyond it; then
    its two neighbours at √2.

    Args:
        found: number of a rate -> its loss, infinite where the run diverged.
        expected: a rate near the best.
        fine: whether those neighbours are wanted; otherwise the best rate is known within √2.
    """
    if not found:
        middle = 2 * round(math.log2(expected / BASE))
        return [middle - 2, middle, middle + 2]
    coarse = sorted(k for k in found if k % 2 == 0)
    best = min(coarse, key=found.__getitem__)
    if not math.isfinite(found[best]):
        return [coarse[0] - 2] if len(coarse) < MOST_COARSE else []
    if best in (coarse[0], coarse[-1]) and len(coarse) < MOST_COARSE:
        return [best - 2 if best == coarse[0] else best + 2]
    return [k for k in (best - 1, best + 1) if k not in found] if fine else []


@dataclass(frozen=True)
class Best:
    """The best learning rate of one seed.

    Attributes:
        rate: the lowest point of the parabola in log(rate) through the best rate that was tried and its neighbours.
        loss: the least that was found.
        edge: whether the search ended at its last rate, so that the best one may lie beyond.
    """

    rate: float
    loss: float
    edge: bool


def best_of(found: Mapping[int, float]) -> Best | None:
    """What a search found; None if nothing was tried, or every run diverged."""
    order = sorted(found)
    if not order:
        return None
    best = min(order, key=found.__getitem__)
    if not math.isfinite(found[best]):
        return None
    place = order.index(best)
    if place in (0, len(order) - 1):
        return Best(rate_of(best), found[best], True)
    left, right = order[place - 1], order[place + 1]
    return Best(BASE * 2 ** (_lowest(found, left, best, right) / 2), found[best], False)


def _lowest(found: Mapping[int, float], left: int, best: int, right: int) -> float:
    """Where a parabola through three points is lowest; a diverged neighbour counts as if the loss rose tenfold there.

    Loss bends more and more towards divergence, so where one neighbour is far worse, the parabola leans away from it:
    its lowest point never leaves the half way to either neighbour.
    """
    y0, y1, y2 = (found[k] for k in (left, best, right))
    rise = max(y0 - y1 if math.isfinite(y0) else 0.0, y2 - y1 if math.isfinite(y2) else 0.0)
    y0, y2 = (y if math.isfinite(y) else y1 + 10 * rise for y in (y0, y2))
    slope_left, slope_right = (y1 - y0) / (best - left), (y2 - y1) / (right - best)
    if slope_right <= slope_left:
        return best
    middle_left, middle_right = (left + best) / 2, (best + right) / 2
    lowest = middle_left - slope_left * (middle_right - middle_left) / (slope_right - slope_left)
    return min(max(lowest, middle_left), middle_right)
