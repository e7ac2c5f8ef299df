import statistics
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from benchmarks.quality.FactorTrace import FactorTrace
from benchmarks.stability.analysis import best_runs, compare_best, figure_of, measured_of, shown, shown_rate, table
from benchmarks.stability.drawing import COLORS, draw_rates, panels, save
from benchmarks.stability.Question import Question
from benchmarks.stability.Results import Results
from benchmarks.stability.Watcher import Watcher
from benchmarks.transfer.Setting import LORA, Setting
from benchmarks.transfer.tasks import ONE

RULES = ("STIEFEL_LORA", "ADAMW_ADV", "LORA_RITE", "MUON_ADV")
RANK = 16
POINTS = 9
# share of the other's effective rank by which it must differ, at each seed, to count
LARGER = 0.05
FIGURES = {"up_rank": "B", "product_rank": "B·A"}


class RankWatcher(Watcher):
    """Effective rank of B and of B·A, mean over the layers, at some steps."""

    def prepare(self) -> None:
        self.trace = FactorTrace(self.parameters, self.sweep.steps, POINTS)

    def step(self, index: int) -> AbstractContextManager[None]:
        return self.trace.step(index)

    def figures(self) -> dict[str, Any]:
        points = [[point.step, round(point.up_rank, 4), round(point.product_rank, 4)] for point in self.trace.points]
        _, up, product = points[-1]
        return {"up_rank": up, "product_rank": product, "points": points}


class FactorRanks(Question):
    """How many of a LoRA's ranks each rule uses, over a training at its best rate."""

    letter = "g"
    name = "factor_ranks"
    title = f"Effective rank of B and B·A over a training (LoRA {RANK}, scaled steps)"
    steps = 100
    rate = 0.016
    watcher = RankWatcher

    def cases(self, quick: bool = False) -> Sequence[str]:
        return RULES

    def options(self, case: str) -> dict[str, Any]:
        return Setting("lumo", ONE, case, True, LORA, RANK).options()

    def report(self, results: Results) -> list[str]:
        rows, sentences = [], []
        for rule in RULES:
            best = best_runs(results, self.letter, rule)
            if not best:
                continue
            runs = [run.measured for run in best.values()]
            middle = [run.figures["points"][len(run.figures["points"]) // 2] for run in runs]
            rows.append([
                rule, shown_rate(best), shown(run.loss for run in runs),
                *(shown((point[column] for point in middle), ".2f") for column in (1, 2)),
                *(shown(figure_of(runs, name), ".2f") for name in FIGURES),
            ])  # fmt: skip
            if rule != RULES[0]:
                sentences += self._verdicts(results, rule)
        titles = ["rule", "best rate", "loss there", "B, half-way", "B·A, half-way", "B, end", "B·A, end"]
        return [table(titles, rows), *sentences] if rows else []

    def _verdicts(self, results: Results, rule: str) -> list[str]:
        """Stiefel-LoRA against another rule."""
        own, other = (measured_of(best_runs(results, self.letter, name)) for name in (RULES[0], rule))
        seeds = sorted(own.keys() & other.keys())
        if not seeds:
            return []
        told = []
        for name, words in FIGURES.items():
            shares = [own[seed].figures[name] / max(other[seed].figures[name], 1e-9) - 1 for seed in seeds]
            word = "no difference"
            if min(shares) > LARGER or max(shares) < -LARGER:
                word = "higher" if shares[0] > 0 else "lower"
            told.append(f"effective rank of {words} **{word}** ({100 * statistics.fmean(shares):+.0f} %)")
        text = (
            f"{RULES[0]} against {rule}: {', '.join(told)}; more than {100 * LARGER:g} % at each of {len(seeds)} seeds "
            "would count."
        )
        compared = compare_best(results, self.letter, RULES[0], rule)
        return [text if compared is None else f"{text} {compared.told('Its loss', rule)}"]

    def draw(self, results: Results, path: Path) -> None:
        figure, (line,) = panels(1, 3)
        draw_rates(line[0], results, self.letter, {rule: rule for rule in RULES}, "loss")
        for axes, column, words in ((line[1], 1, "B"), (line[2], 2, "B·A")):
            for color, rule in zip(COLORS, RULES, strict=False):
                for place, run in enumerate(measured_of(best_runs(results, self.letter, rule)).values()):
                    points = run.figures["points"]
                    axes.plot(
                        [point[0] for point in points], [point[column] for point in points], color=color,
                        linewidth=1.2, label=None if place else rule,
                    )  # fmt: skip
            axes.set(title=f"effective rank of {words}, mean of the layers", xlabel="step", ylim=(0, None))
            axes.legend(fontsize=7, frameon=False)
        save(figure, path)
