"""What is kept for what is learned: the line of each kind of decay, read at equal concept scores."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace

from benchmarks.forgetting.kinds import FULL_MODE, NONE, RATE
from benchmarks.forgetting.Learner import Measures
from benchmarks.forgetting.Results import Results
from benchmarks.forgetting.Setting import Setting

# of the concept score without decay, at which kinds are compared
LEVELS = (0.95, 0.9, 0.75)
# the level at which the strength of a kind is chosen for pictures
CHOSEN_LEVEL = 0.9
# a smaller difference of two scores is called none
THRESHOLD = 0.02


@dataclass(frozen=True)
class Point:
    """A trained model.

    Attributes:
        strength: of its decay.
        score: concept score, the share of the base's loss on held-out pictures of the concept that training removed.
        kept: what captions of ordinary scenes still tell: how much lower the loss is with a scene's own caption than
            with another one's, over the same of the base; 1: nothing is forgotten.
        loss: the base's loss on ordinary scenes over that of the trained model. Above 1 where training on anything
            still improves how the base denoises, whatever becomes of its words.
    """

    strength: float
    score: float
    kept: float
    loss: float


def scores(measures: Measures, base: Measures) -> tuple[float, float, float] | None:
    """`score`, `kept` and `loss` of a `Point`; None of a run that diverged."""
    if None in (measures["held_out"], measures["ordinary"], measures["exchanged"]):
        return None
    told, told_before = (own["exchanged"] - own["ordinary"] for own in (measures, base))
    return 1 - measures["held_out"] / base["held_out"], told / told_before, base["ordinary"] / measures["ordinary"]


def told(measures: Measures, base: Measures) -> str:
    """One line about a training."""
    both = scores(measures, base)
    if both is None:
        return "diverged"
    return "concept {:.3f}, kept {:.3f}, ordinary loss {:.3f}".format(*both) + f", drift {measures['drift']:.3f}"


def strengths_of(results: Results, kind: Setting) -> list[Setting]:
    """The settings of a kind that were trained, weakest first; begun with no decay.

    Args:
        kind: its strength and its pictures are left aside.
    """
    plain = replace(kind, kind=NONE, strength=0.0, mode=FULL_MODE, pictures=False)
    own = [
        s for s in results.settings(kind.task) if replace(s, strength=kind.strength) == replace(kind, pictures=False)
    ]
    return [plain, *sorted((s for s in own if s != plain), key=held_back)]


def held_back(setting: Setting) -> float:
    """What strengths are ordered by: a lower rate holds back more."""
    return -setting.strength if setting.kind == RATE else setting.strength


def line(results: Results, kind: Setting, seed: int) -> list[Point]:
    """From no decay to the strongest, of one seed; diverged runs left out. Empty if no decay was not trained."""
    base = results.base.get((kind.task, kind.width))
    found = []
    for setting in strengths_of(results, kind):
        own = results.measures(setting).get(seed)
        both = scores(own, base) if own and base else None
        if both is not None:
            found.append(Point(setting.strength, *both))
        elif not found:
            return []
    return found


def kept_at(points: Sequence[Point], score: float) -> float | None:
    """The most that is kept on a line at this concept score or a higher one; None if the line stays below.

    Between two strengths the line is straight.
    """
    kept = [point.kept for point in points if point.score >= score]
    for one, other in zip(points, points[1:], strict=False):
        low, high = sorted((one, other), key=lambda point: point.score)
        if low.score < score <= high.score:
            share = (score - low.score) / (high.score - low.score)
            kept.append(low.kept + share * (high.kept - low.kept))
    return max(kept, default=None)


@dataclass(frozen=True)
class Spread:
    """A figure over seeds."""

    mean: float
    low: float
    high: float
    seeds: int

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        return cls(statistics.fmean(values), min(values), max(values), len(values))

    def text(self, digits: int = 1, times: float = 100.0) -> str:
        """As "93.1 (92.8–93.5)"."""
        shown = [f"{times * value:.{digits}f}" for value in (self.mean, self.low, self.high)]
        return shown[0] if self.seeds == 1 else f"{shown[0]} ({shown[1]}–{shown[2]})"


def kept_at_level(results: Results, kind: Setting, level: float) -> dict[int, float]:
    """seed -> what a kind keeps at a share of the concept score that the seed has without decay."""
    found = {}
    for seed in results.measures(strengths_of(results, kind)[0]):
        points = line(results, kind, seed)
        kept = kept_at(points, level * points[0].score) if len(points) > 1 or kind.kind == NONE and points else None
        if kept is not None:
            found[seed] = kept
    return found


def difference(one: dict[int, float], other: dict[int, float]) -> Spread | None:
    """One less the other, over the seeds that both have; None if there are none."""
    shared = one.keys() & other.keys()
    return Spread.of([one[seed] - other[seed] for seed in shared]) if shared else None


def judged(found: Spread, more: str, less: str, same: str) -> str:
    """`more` or `less` where all seeds agree and the mean exceeds `THRESHOLD`, else `same`."""
    if found.mean > THRESHOLD and found.low > 0:
        return more
    return less if found.mean < -THRESHOLD and found.high < 0 else same


def mean_point(results: Results, setting: Setting) -> Point | None:
    """Means over the seeds; None if no run converged."""
    base = results.base.get((setting.task, setting.width))
    both = [own for measures in results.measures(setting).values() if base and (own := scores(measures, base))]
    if not both:
        return None
    return Point(setting.strength, *(statistics.fmean(values) for values in zip(*both, strict=True)))


def best_strength(results: Results, kind: Setting) -> Setting | None:
    """The strength that keeps most at `CHOSEN_LEVEL` of the score without decay, or that comes nearest to it.

    None if the kind, or no decay, was not trained.
    """
    plain, *own = strengths_of(results, kind)
    without = mean_point(results, plain)
    if kind.kind == NONE or without is None:
        return plain if without is not None else None
    points = {setting: point for setting in own if (point := mean_point(results, setting)) is not None}
    enough = {s: point for s, point in points.items() if point.score >= CHOSEN_LEVEL * without.score}
    if enough:
        return max(enough, key=lambda setting: enough[setting].kept)
    return max(points, key=lambda setting: points[setting].score, default=None)
