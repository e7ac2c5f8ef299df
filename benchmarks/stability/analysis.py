"""What trainings say: best rates, how two cases compare, and how that is told."""

import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from benchmarks.stability.Results import Results
from benchmarks.stability.Trial import Measured
from benchmarks.transfer.search import best_of, number_of

# share of what the baseline learns that a difference must have to count
THRESHOLD = 0.01
RULE = (
    f"*better* and *worse* mean a difference of at least {100 * THRESHOLD:g} % of what the other case learns (its loss "
    "before training minus its loss after), as a mean over the seeds and with the same sign at each of them; anything "
    "else is *no difference*. Seeds are compared in pairs: they share start values, batches, noise and timesteps."
)
NOTHING = "–"
BETTER, WORSE, SAME = "better", "worse", "no difference"


@dataclass(frozen=True)
class BestRun:
    """The training of least loss among a case's rates, for one seed.

    Attributes:
        rate: that was trained.
        fitted: the best rate by a parabola through it and its neighbours.
        measured: what came of it.
        edge: whether no larger or no smaller rate was tried.
    """

    rate: float
    fitted: float
    measured: Measured
    edge: bool


def best_runs(results: Results, question: str, case: str) -> dict[int, BestRun]:
    """seed -> its best run; seeds of which every run diverged are left out."""
    found = {}
    for seed in results.seeds(question, case):
        rows = results.rows(question, case, seed)
        best = best_of({number_of(rate): measured.loss for rate, measured in rows.items()})
        if best is not None:
            rate = min(rows, key=lambda rate: rows[rate].loss)
            found[seed] = BestRun(rate, best.rate, rows[rate], best.edge)
    return found


def runs_at(results: Results, question: str, case: str, rates: Mapping[int, float]) -> dict[int, Measured]:
    """seed -> what was measured at that seed's rate, where the case was trained at it."""
    return {
        seed: rows[rate]
        for seed, rate in rates.items()
        if rate in (rows := results.rows(question, case, seed))
    }  # fmt: skip


@dataclass(frozen=True)
class Comparison:
    """A case against a baseline, as shares of what the baseline learns; more is better.

    Attributes:
        word: `BETTER`, `WORSE` or `SAME`.
        mean, low, high: over the seeds.
        seeds: that both have.
    """

    word: str
    mean: float
    low: float
    high: float
    seeds: int

    def told(self, what: str, baseline: str) -> str:
        """A sentence."""
        if not math.isfinite(self.mean):
            return f"{what} against {baseline}: **{self.word}**; it diverged at some seed."
        if self.word == SAME:
            amount = f"({100 * self.mean:+.1f} % of what that learns; {self._seeds()})"
        else:
            amount = f"by {100 * abs(self.mean):.1f} % of what that learns ({self._seeds()})"
        return f"{what} against {baseline}: **{self.word}** {amount}."

    def _seeds(self) -> str:
        if self.seeds == 1:
            return "one seed, so its spread is not known"
        return f"{100 * self.low:+.1f} to {100 * self.high:+.1f} % over {self.seeds} seeds"


def compare(own: Mapping[int, Measured], baseline: Mapping[int, Measured]) -> Comparison | None:
    """None if they share no seed, or the baseline learned nothing."""
    shares = []
    for seed in sorted(own.keys() & baseline.keys()):
        gain = baseline[seed].untrained - baseline[seed].loss
        if not gain > 0 or not math.isfinite(gain):
            return None
        shares.append((baseline[seed].loss - own[seed].loss) / gain)
    if not shares:
        return None
    mean, low, high = statistics.fmean(shares), min(shares), max(shares)
    counts = abs(mean) >= THRESHOLD and (low > 0 or high < 0)
    return Comparison((BETTER if mean > 0 else WORSE) if counts else SAME, mean, low, high, len(shares))


def compare_best(results: Results, question: str, case: str, baseline: str) -> Comparison | None:
    """Two cases of a question, each at its own best rate."""
    own, other = (best_runs(results, question, name) for name in (case, baseline))
    return compare(measured_of(own), measured_of(other))


def measured_of(runs: Mapping[int, BestRun]) -> dict[int, Measured]:
    return {seed: run.measured for seed, run in runs.items()}


def shown(values: Iterable[float | None], form: str = ".4f") -> str:
    """Mean, and smallest to largest where there are several, as text."""
    known = [value for value in values if value is not None]
    if not known:
        return NOTHING
    if not all(map(math.isfinite, known)):
        return "diverges"
    mean = f"{statistics.fmean(known):{form}}"
    return mean if len(known) == 1 else f"{mean} ({min(known):{form}}–{max(known):{form}})"


def shown_rate(runs: Mapping[int, BestRun]) -> str:
    """The best rates' median and range."""
    rates = [run.fitted for run in runs.values()]
    if not rates:
        return NOTHING
    text = f"{statistics.median(rates):.4f}"
    text += f" ({min(rates):.4f}–{max(rates):.4f})" if len(rates) > 1 else ""
    return text + (" (end of the search)" if any(run.edge for run in runs.values()) else "")


def figure_of(runs: Iterable[Measured], name: str) -> list[float]:
    """One figure of several trainings; those that have it not, as they diverged, are left out."""
    return [run.figures[name] for run in runs if run.figures.get(name) is not None]


def table(titles: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Markdown."""
    lines = [f"| {' | '.join(titles)} |", "|---" * len(titles) + "|"]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)])


def mean_curve(results: Results, question: str, case: str) -> list[tuple[float, float, float, float]]:
    """(rate, mean, least and largest loss over the seeds) of each rate that most seeds tried, in increasing order.

    Diverged runs are left out.
    """
    losses: dict[float, list[float]] = {}
    for seed in results.seeds(question, case):
        for rate, loss in results.losses(question, case, seed).items():
            losses.setdefault(rate, []).append(loss)
    # a rate that only some seeds tried would put a step into the line
    most = max(map(len, losses.values()), default=0)
    kept = {rate: own for rate, own in losses.items() if len(own) == most and all(map(math.isfinite, own))}
    return sorted((rate, statistics.fmean(own), min(own), max(own)) for rate, own in kept.items())


def rates_within(losses: Mapping[float, float], level: float) -> tuple[float, float, bool] | None:
    """The range of rates around the best one whose loss is at most `level`, log-linear between those that were tried.

    Args:
        losses: rate -> loss; infinite where the run diverged.

    Returns:
        (lowest rate, highest rate, whether the range goes on beyond what was tried); None if no loss is that low.
    """
    rates = sorted(losses)
    best = min(rates, key=losses.__getitem__)
    if not losses[best] <= level:
        return None
    place = rates.index(best)
    low, low_open = _crossing(rates[place::-1], losses.__getitem__, level)
    high, high_open = _crossing(rates[place:], losses.__getitem__, level)
    return low, high, low_open or high_open


def _crossing(rates: Sequence[float], loss: Callable[[float], float], level: float) -> tuple[float, bool]:
    """Where the loss first rises over the level along the rates, and whether it never does."""
    for inner, outer in zip(rates, rates[1:], strict=False):
        if loss(outer) > level:
            if not math.isfinite(loss(outer)):
                return inner, False
            share = (level - loss(inner)) / (loss(outer) - loss(inner))
            return inner * (outer / inner) ** share, False
    return rates[-1], True
