"""The search for the best learning rate of one setting and seed, on a grid of rates that all settings share."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

# rates are BASE·2^(k/2)
BASE = 0.001
MOST_COARSE = 9
# above the least loss, as a share of it
FAR = 0.05


def rate_of(k: int) -> float:
    """Rate number k of the grid, each √2 times the one before; k = 0 is `BASE`."""
    return float(f"{BASE * 2 ** (k / 2):.4g}")


def nearest_rate(rate: float) -> float:
    """The rate of the grid that is nearest, as a ratio."""
    return rate_of(round(2 * math.log2(rate / BASE)))


def number_of(rate: float) -> int | None:
    """The number of a rate of the grid, None for any other rate."""
    k = round(2 * math.log2(rate / BASE))
    return k if math.isclose(rate_of(k), rate, rel_tol=1e-6) else None


def next_rates(found: Mapping[int, float], expected: float, *, fine: bool = True) -> list[int]:
    """Which rates to try next; none when the best one is known.

    First three around the expected one, each twice the one before; while the best lies at an end, one beyond it; then
    what is missing of the two rates at either side of the best, at √2 and 2.

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
    if best in (coarse[0], coarse[-1]):
        return [best - 2 if best == coarse[0] else best + 2] if len(coarse) < MOST_COARSE else []
    if not fine:
        return []
    best = min(found, key=found.__getitem__)
    return [k for k in (best - 1, best + 1, best - 2, best + 2) if k not in found]


@dataclass(frozen=True)
class Best:
    """The best learning rate of one seed.

    Attributes:
        rate: the lowest point of a parabola in log(rate), fitted to the best rate that was tried and two on each side.
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
    if best in (order[0], order[-1]):
        return Best(rate_of(best), found[best], True)
    return Best(BASE * 2 ** (_lowest(found, best) / 2), found[best], False)


def _lowest(found: Mapping[int, float], best: int) -> float:
    """Where a parabola by least squares is lowest, at most one number off the best.

    Trainings at neighbouring rates differ by chance, too, which five points even out. Those far above the best, where
    the loss rises ever faster toward divergence, count as if they lay at `FAR`.
    """
    near = [k for k in sorted(found) if abs(k - best) <= 2]
    if len(near) < 3:
        # a coarse grid says no more than its best rate
        return best
    losses = [min(found[k], found[best] * (1 + FAR)) for k in near]
    bend, slope, _ = np.polyfit(np.array(near) - best, losses, 2)
    return best + float(np.clip(-slope / (2 * bend), -1, 1)) if bend > 0 else best
