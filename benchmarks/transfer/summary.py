"""What the trainings say: best rates with their uncertainty, how far they spread, and what a transferred rate costs."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.transfer.questions import AXES, Axis, axis_settings, beside, reference
from benchmarks.transfer.Results import Results
from benchmarks.transfer.search import Best, best_of, nearest_rate
from benchmarks.transfer.Setting import Setting


@dataclass(frozen=True)
class BestRate:
    """The best learning rate of a setting over seeds.

    Attributes:
        median, low, high: of the seeds' best rates.
        seeds: how many there are.
        edge: whether the search of any ended at its last rate.
        regret: median over seeds of the share of the improvement that is lost at the reference's best rate, in [0, 1]
            and above 1 where the model got worse than untrained; None where nothing was trained at that rate.
        gain: median over seeds of what the best rate brings, untrained loss minus least loss.
    """

    median: float
    low: float
    high: float
    seeds: int
    edge: bool
    regret: float | None
    gain: float


def bests(results: Results, setting: Setting) -> dict[int, Best]:
    """seed -> its best rate; seeds that have none are left out."""
    found = {seed: best_of(results.on_grid(setting, seed)) for seed in results.seeds(setting)}
    return {seed: best for seed, best in found.items() if best is not None}


def transferred_rate(results: Results, setting: Setting) -> float | None:
    """The rate of the grid that is nearest to the best one of the setting's reference; None if that is not known."""
    found = bests(results, reference(setting.task, setting.rule, setting.scaled))
    return nearest_rate(statistics.median(best.rate for best in found.values())) if found else None


def best_rate(results: Results, setting: Setting) -> BestRate | None:
    """None if nothing is known of the setting."""
    found = bests(results, setting)
    untrained = results.untrained.get((setting.task, setting.width))
    if not found or untrained is None:
        return None
    rate = transferred_rate(results, setting)
    regrets, gains = [], []
    for seed in found:
        losses = results.losses(setting, seed)
        least = min(losses.values())
        gains.append(untrained - least)
        if rate in losses and untrained > least:
            regrets.append((losses[rate] - least) / (untrained - least))
    rates = [best.rate for best in found.values()]
    return BestRate(
        statistics.median(rates), min(rates), max(rates), len(rates), any(best.edge for best in found.values()),
        statistics.median(regrets) if regrets else None, statistics.median(gains),
    )  # fmt: skip


@dataclass(frozen=True)
class Spread:
    """The largest best rate over the smallest, along an axis.

    Attributes:
        median: of the settings' median rates.
        low, high: smallest and largest of those of single seeds.
        count: how many settings were compared.
    """

    median: float
    low: float
    high: float
    count: int


def spread(results: Results, settings: Sequence[Setting]) -> Spread | None:
    """How far the best rates of settings lie apart; None for fewer than two that are known."""
    known = {setting: bests(results, setting) for setting in settings}
    known = {setting: found for setting, found in known.items() if found}
    if len(known) < 2:
        return None
    medians = [statistics.median(best.rate for best in found.values()) for found in known.values()]
    shared = set.intersection(*(set(found) for found in known.values()))
    single = [_ratio([found[seed].rate for found in known.values()]) for seed in shared] or [_ratio(medians)]
    return Spread(_ratio(medians), min(single), max(single), len(known))


def _ratio(rates: Sequence[float]) -> float:
    return max(rates) / min(rates)


def spread_table(results: Results, tasks: Sequence[str], rules: Sequence[str]) -> str:
    """Markdown: the spread of each axis, task and rule, with scaled steps and without; bold where the goal is met."""
    lines = ["| task | rule | steps | " + " | ".join(f"{axis.name} (≤ {axis.goal:g})" for axis in AXES) + " |"]
    lines.append("|---" * (3 + len(AXES)) + "|")
    for task in tasks:
        for rule in rules:
            for scaled in (True, False):
                cells = [_spread_cell(results, axis, task, rule, scaled) for axis in AXES]
                if any(cell != "–" for cell in cells):
                    lines.append(f"| {task} | {rule} | {'scaled' if scaled else 'plain'} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _spread_cell(results: Results, axis: Axis, task: str, rule: str, scaled: bool) -> str:
    found = spread(results, axis_settings(axis, task, rule, scaled))
    if found is None:
        return "–"
    text = f"{found.median:.2f} ({found.low:.2f}–{found.high:.2f})"
    return f"**{text}**" if found.median <= axis.goal else text


def rate_table(results: Results, task: str, rule: str, scaled: bool) -> str:
    """Markdown: the best rate of each setting, its range over seeds, what it gains, and the regret."""
    settings = [setting for axis in AXES for setting in axis_settings(axis, task, rule, scaled)]
    lines = [
        "| what | width | best rate | seeds | gain | regret at the transferred rate |",
        "|---|---|---:|---|---:|---:|",
    ]
    for setting in dict.fromkeys([*settings, *beside(task, rule, scaled)]):
        own = best_rate(results, setting)
        if own is None:
            continue
        edge = " (end of the search)" if own.edge else ""
        regret = "–" if own.regret is None else shown_share(own.regret)
        lines.append(
            f"| {setting.label()} | {setting.width} | {own.median:.4f}{edge} | {own.low:.4f}–{own.high:.4f} "
            f"({own.seeds}) | {own.gain:.4f} | {regret} |"
        )
    return "\n".join(lines)


def shown_share(share: float) -> str:
    return "diverges" if not math.isfinite(share) else f"{100 * share:.1f} %"
