import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.stability.analysis import (
    THRESHOLD,
    WORSE,
    Comparison,
    best_runs,
    compare_best,
    shown,
    shown_rate,
    table,
)
from benchmarks.stability.drawing import draw_rates, panels, save
from benchmarks.stability.Question import Question
from benchmarks.stability.Results import Results
from benchmarks.transfer.Setting import LORA, Setting
from benchmarks.transfer.tasks import ONE

RANKS = (4, 16, 64)
QUICK_RANK = 16


@dataclass(frozen=True)
class Epsilon:
    """A value of eps, and whether it is divided by the square root of the parameter's size."""

    scaled: bool
    eps: float

    @property
    def name(self) -> str:
        return f"{'scaled' if self.scaled else 'plain'} {self.eps:g}"


EPSILONS = [Epsilon(scaled, eps) for scaled in (False, True) for eps in (1e-8, 1e-10, 1.0)]
DEFAULT = EPSILONS[0]


class ScaledEps(Question):
    """Epsilon and its scaling over ranks, for scaled steps."""

    letter = "e"
    name = "scaled_eps"
    title = "scaled_eps and eps over LoRA ranks (ADAMW_ADV, scaled steps)"
    rate = 0.022

    def cases(self, quick: bool = False) -> Sequence[str]:
        ranks = (QUICK_RANK,) if quick else RANKS
        return [case_name(epsilon, rank) for rank in ranks for epsilon in EPSILONS]

    def options(self, case: str) -> dict[str, Any]:
        kind, eps, rank = case.split()
        setting = Setting("lumo", ONE, "ADAMW_ADV", True, LORA, int(rank))
        return setting.options(scaled_eps=kind == "scaled", eps=float(eps))

    def report(self, results: Results) -> list[str]:
        rows, compared = [], {}
        for epsilon in EPSILONS:
            runs = {rank: best_runs(results, self.letter, case_name(epsilon, rank)) for rank in RANKS}
            if not any(runs.values()):
                continue
            medians = [statistics.median(run.fitted for run in own.values()) for own in runs.values() if own]
            cells = []
            for own in runs.values():
                cells += [shown_rate(own), shown(run.measured.loss for run in own.values())]
            spread = f"{max(medians) / min(medians):.2f}" if len(medians) > 1 else "–"
            rows.append(["on" if epsilon.scaled else "off", f"{epsilon.eps:g}", *cells, spread])
            compared[epsilon] = self._compared(results, epsilon)
        titles = ["scaled_eps", "eps"]
        for rank in RANKS:
            titles += [f"best rate, rank {rank}", f"loss, rank {rank}"]
        if not rows:
            return []
        sentences = [
            own.told(f"scaled_eps {'on' if epsilon.scaled else 'off'}, eps {epsilon.eps:g}, rank {rank}", "the default")
            for epsilon, found in compared.items()
            for rank, own in found.items()
            if epsilon != DEFAULT
        ]
        return [table([*titles, "best rates within"], rows), *sentences, recommendation(compared)]

    def _compared(self, results: Results, epsilon: Epsilon) -> dict[int, Comparison]:
        """rank -> against the default."""
        found = {
            rank: compare_best(results, self.letter, case_name(epsilon, rank), case_name(DEFAULT, rank))
            for rank in RANKS
        }
        return {rank: own for rank, own in found.items() if own is not None}

    def draw(self, results: Results, path: Path) -> None:
        figure, (line,) = panels(1, len(RANKS))
        for axes, rank in zip(line, RANKS, strict=True):
            draw_rates(axes, results, self.letter, {case_name(own, rank): own.name for own in EPSILONS}, f"rank {rank}")
        save(figure, path)


def case_name(epsilon: Epsilon, rank: int) -> str:
    return f"{epsilon.name} {rank}"


def recommendation(compared: dict[Epsilon, dict[int, Comparison]]) -> str:
    """The setting that learns most as a mean over the ranks, if it is worth leaving the default for.

    It must gain `THRESHOLD` of what the default learns, and be worse at no rank.

    Args:
        compared: setting -> rank -> against the default.
    """
    means = {
        epsilon: statistics.fmean(own.mean for own in found.values())
        for epsilon, found in compared.items()
        if epsilon != DEFAULT and all(own.word != WORSE for own in found.values())
    }
    if len(compared) < len(EPSILONS) or not all(len(found) == len(RANKS) for found in compared.values()):
        return "No recommendation: not every setting was trained at every rank."
    best = max(means, key=means.__getitem__, default=None)
    keep = f"scaled_eps off, eps {DEFAULT.eps:g}"
    if best is None or means[best] < THRESHOLD:
        return (
            f"**Recommended: the default, {keep}.** No other setting that is worse at no rank learns "
            f"{100 * THRESHOLD:g} % more, as a mean over the ranks."
        )
    return (
        f"**Recommended: scaled_eps {'on' if best.scaled else 'off'}, eps {best.eps:g}.** As a mean over the ranks it "
        f"learns {100 * means[best]:.1f} % more than the default ({keep}), and it is worse at no rank."
    )
