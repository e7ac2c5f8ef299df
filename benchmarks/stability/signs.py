import statistics
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.stability.analysis import (
    BETTER,
    BestRun,
    best_runs,
    compare,
    figure_of,
    measured_of,
    runs_at,
    shown,
    shown_rate,
    table,
)
from benchmarks.stability.drawing import draw_bars, draw_rates, panels, save
from benchmarks.stability.Question import Question
from benchmarks.stability.Results import Results
from benchmarks.stability.Trial import Measured
from benchmarks.stability.Watcher import Watcher
from benchmarks.transfer.Setting import LORA, Setting
from benchmarks.transfer.tasks import ONE
from modules.trainer.validation import validation_loss

import torch
from torch import Tensor

RULES = ("LION_ADV", "SIGNSGD_ADV")
PLAIN = "plain"
VARIANTS: Mapping[str, dict[str, bool]] = {
    PLAIN: {},
    "freeze": {"freeze_on_flip": True},
    "l1": {"l1_adaptive": True},
    "freeze + l1": {"freeze_on_flip": True, "l1_adaptive": True},
}
RANK = 16
# of all steps: what counts as near convergence, and how often the loss is measured there
LAST_SHARE, LOOKS = 1 / 3, 12


class SignWatcher(Watcher):
    """Signs that flip, and how much the loss goes up and down, in the last third of the steps.

    A component's sign is that of its step; a step of zero is one that freeze-on-flip took away, so the sign flipped.
    """

    def prepare(self) -> None:
        steps = self.sweep.steps
        self.start = steps - max(3, round(steps * LAST_SHARE))
        every = max(1, (steps - self.start) // LOOKS)
        self.looks = set(range(steps - 1, self.start - 1, -every))
        self.signs: list[Tensor] = []
        self.flips: list[float] = []
        self.losses: list[tuple[int, float]] = []

    @contextmanager
    def step(self, index: int) -> Iterator[None]:
        # the step before the first that counts tells the signs that it may flip
        if index < self.start - 1:
            yield
            return
        before = [parameter.detach().clone() for parameter in self.parameters]
        yield
        steps = [parameter.detach() - old for parameter, old in zip(self.parameters, before, strict=True)]
        if index >= self.start:
            self._count(steps)
        else:
            self.signs = [step.sign() for step in steps]
        if index in self.looks:
            sweep = self.sweep
            self.losses.append((index, validation_loss(sweep.model, sweep.data, sweep.config.seed, draws=1)))

    def _count(self, steps: Sequence[Tensor]) -> None:
        flipped = counted = 0
        signs = []
        for step, last in zip(steps, self.signs, strict=True):
            sign = torch.where(step == 0, -last, step.sign())
            flipped += int((sign * last < 0).sum())
            # a component that was frozen in the very first step has no sign yet
            counted += int((last != 0).sum())
            signs.append(sign)
        self.signs = signs
        self.flips.append(flipped / max(1, counted))

    def figures(self) -> dict[str, Any]:
        losses = [loss for _, loss in self.losses]
        return {
            "flips": statistics.fmean(self.flips),
            "fluctuation": fluctuation(self.losses),
            "last_losses": [round(loss, 6) for loss in losses],
        }


def fluctuation(points: Sequence[tuple[float, float]]) -> float:
    """Standard deviation of losses around their straight line over the steps; 0 for fewer than three points."""
    if len(points) < 3:
        return 0.0
    slope, start = statistics.linear_regression(*zip(*points, strict=True))
    return statistics.pstdev([loss - start - slope * step for step, loss in points])


class Signs(Question):
    """Freeze-on-flip and projected adaptivity of rules of signs, near convergence at a constant rate."""

    letter = "a"
    name = "signs"
    title = "Signed rules near convergence: freeze_on_flip and l1_adaptive"
    steps = 180
    rate = 0.008
    watcher = SignWatcher

    def cases(self, quick: bool = False) -> Sequence[str]:
        return [case_name(rule, variant) for rule in RULES for variant in VARIANTS]

    def options(self, case: str) -> dict[str, Any]:
        rule, _, variant = case.partition(" ")
        return Setting("lumo", ONE, rule, True, LORA, RANK).options(**VARIANTS[variant])

    def report(self, results: Results) -> list[str]:
        rows, sentences = [], []
        for rule in RULES:
            plain = best_runs(results, self.letter, case_name(rule, PLAIN))
            for variant in VARIANTS:
                case = case_name(rule, variant)
                best = best_runs(results, self.letter, case)
                if not best:
                    continue
                runs = [run.measured for run in best.values()]
                other = runs_at(results, self.letter, case, rates_of(plain))
                rows.append([
                    rule, variant, shown_rate(best), shown(run.loss for run in runs),
                    *(shown(run.loss for run in self._beside(results, case, best, by)) for by in (0.5, 2.0)),
                    shown(run.loss for run in other.values()),
                    *(shown(figure_of(own, "fluctuation"), ".5f") for own in (runs, other.values())),
                    shown((100 * share for share in figure_of(runs, "flips")), ".1f"),
                ])  # fmt: skip
                if variant != PLAIN and plain:
                    sentences += self._verdict(results, rule, variant, best, plain)
        titles = [
            "rule", "variant", "best rate", "loss there", "at half of it", "at twice it", "loss at plain's best rate",
            "loss noise", "loss noise at plain's best rate", "signs that flip, % a step",
        ]  # fmt: skip
        return [table(titles, rows), *sentences] if rows else []

    def _beside(self, results: Results, case: str, best: Mapping[int, BestRun], by: float) -> list[Measured]:
        found = []
        for seed, run in best.items():
            rows = results.rows(self.letter, case, seed)
            found += [row for rate, row in rows.items() if abs(rate / (run.rate * by) - 1) < 0.01]
        return found

    def _verdict(
        self,
        results: Results,
        rule: str,
        variant: str,
        best: Mapping[int, BestRun],
        plain: Mapping[int, BestRun],
    ) -> list[str]:
        at_best = compare(measured_of(best), measured_of(plain))
        same = compare(runs_at(results, self.letter, case_name(rule, variant), rates_of(plain)), measured_of(plain))
        if at_best is None:
            return []
        text = [at_best.told(f"{rule} with {variant}, each at its own best rate,", "plain")]
        if same is not None:
            text.append(same.told("At plain's best rate", "plain"))
            if same.word == BETTER and at_best.word != BETTER:
                text.append("That is what a smaller rate brings, too.")
        ratio = noise_ratio(best, plain)
        if ratio is not None:
            text.append(f"Loss noise at the best rates: {ratio:.2f} times plain's.")
        return [" ".join(text)]

    def draw(self, results: Results, path: Path) -> None:
        figure, grid = panels(len(RULES), 3)
        for line, rule in zip(grid, RULES, strict=True):
            cases = {case_name(rule, variant): variant for variant in VARIANTS}
            draw_rates(line[0], results, self.letter, cases, rule)
            best = {name: measured_of(best_runs(results, self.letter, case)) for case, name in cases.items()}
            for axes, figure_name, title in (
                (line[1], "fluctuation", "loss noise at the best rate"),
                (line[2], "flips", "share of signs that flip in a step"),
            ):
                draw_bars(axes, {name: figure_of(runs.values(), figure_name) for name, runs in best.items()}, title)
        save(figure, path)


def case_name(rule: str, variant: str) -> str:
    return f"{rule} {variant}"


def rates_of(runs: Mapping[int, BestRun]) -> dict[int, float]:
    """seed -> best rate of those that were trained."""
    return {seed: run.rate for seed, run in runs.items()}


def noise_ratio(own: Mapping[int, BestRun], plain: Mapping[int, BestRun]) -> float | None:
    """Mean over the seeds of one loss noise over the other; None where plain's is 0 or no seed is shared."""
    ratios = []
    for seed in own.keys() & plain.keys():
        noise = plain[seed].measured.figures.get("fluctuation")
        if noise:
            ratios.append(own[seed].measured.figures["fluctuation"] / noise)
    return statistics.fmean(ratios) if ratios else None
