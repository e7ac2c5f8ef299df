import statistics
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.stability.analysis import best_runs, compare_best, figure_of, measured_of, shown, shown_rate, table
from benchmarks.stability.drawing import draw_bars, draw_rates, panels, save
from benchmarks.stability.NoisyUnit import EVERY, SIZE, NoisyUnit
from benchmarks.stability.Question import Question
from benchmarks.stability.Results import Results
from benchmarks.stability.Trial import Trial
from benchmarks.stability.Watcher import Watcher
from benchmarks.training.sweep import Sweep
from benchmarks.transfer.Setting import LORA, Setting
from benchmarks.transfer.tasks import ONE
from scaled_optim.features.moments import SECOND
from scaled_optim.roles import ROLES, WHOLE

import torch
from torch import Tensor

FIXED, TENSOR, PER_RANK = FORMS = ("fixed", "per tensor", "per rank")
CLEAN, NOISY = GRADIENTS = ("clean", "noisy")
RANK = 16
# what β₂ must differ by
MOVED = 0.002
# who -> when -> name of the figure
FIGURES = {
    ("noisy rank", "after a spike"): "beta2_noisy_after", ("noisy rank", "otherwise"): "beta2_noisy_other",
    ("other ranks", "after a spike"): "beta2_quiet_after", ("other ranks", "otherwise"): "beta2_quiet_other",
}  # fmt: skip


@contextmanager
def whole_units() -> Iterator[None]:
    """The factors of LoRAs have one unit each: every optimizer made in between treats them so.

    A stand-in for features per tensor. The engine has no option for it.
    """
    before = {name: ROLES[name] for name in ("LORA_DOWN", "LORA_UP")}
    ROLES.update({name: replace(role, unit=WHOLE) for name, role in before.items()})
    try:
        yield
    finally:
        ROLES.update(before)


class BetaWatcher(Watcher):
    """β₂ of each rank, as the second moment says it: v ← β₂·v + (1 − β₂)·g², solved for β₂ by least squares."""

    def __init__(self, sweep: Sweep, trial: Trial) -> None:
        super().__init__(sweep, trial)
        self.form, self.gradients = split(trial.case)
        self.found: dict[str, list[float]] = {name: [] for name in FIGURES.values()}

    def training(self) -> Any:
        return whole_units() if self.form == TENSOR else nullcontext()

    def prepare(self) -> None:
        self.noise = NoisyUnit(self.parameters, self.trial.seed, self.gradients == NOISY)

    @contextmanager
    def step(self, index: int) -> Iterator[None]:
        self.noise.coming = index + 1
        # β₂ answers to the norm of the step before
        after_spike = self.noise.spikes_in(index - 1)
        if not after_spike and not any(self.noise.spikes_in(k) for k in range(index + 1)):
            yield
            return
        squares = {p: (self._second(p).clone(), p.grad.double().square()) for p in self.noise.units}
        yield
        when = "after" if after_spike else "other"
        noisy, quiet = [], []
        for parameter, (old, square) in squares.items():
            square = square.view(old.shape)
            betas = solved_beta2(old, self._second(parameter), square, self.noise.units[parameter])
            noisy.append(float(betas[0]))
            quiet.append(float(betas[1:].mean()))
        self.found[f"beta2_noisy_{when}"].append(statistics.fmean(noisy))
        self.found[f"beta2_quiet_{when}"].append(statistics.fmean(quiet))

    def _second(self, parameter: torch.nn.Parameter) -> Tensor:
        return self.optimizer.state[parameter]["slots"][SECOND]["value"].double()

    def figures(self) -> dict[str, Any]:
        return {name: round(statistics.fmean(values), 5) for name, values in self.found.items() if values}


def solved_beta2(old: Tensor, new: Tensor, square: Tensor, dim: int) -> Tensor:
    """β₂ of each unit `[units]` from the second moment before and after a step, `[rows, cols]`, and g².

    Args:
        dim: along which the units lie.
    """
    slope = old - square
    other = 1 - dim
    return ((new - square) * slope).sum(other) / slope.square().sum(other)


def split(case: str) -> tuple[str, str]:
    """(form, gradients)"""
    form, _, gradients = case.rpartition(" ")
    return form, gradients


class Kourkoutas(Question):
    """Kourkoutas-β per rank against per tensor, with one noisy rank.

    Steps are not scaled and gradients not clipped, so that nothing but β₂ couples the ranks.
    """

    letter = "c"
    name = "kourkoutas"
    title = f"Kourkoutas-β with one noisy rank (ADAMW_ADV, LoRA {RANK}, spikes {SIZE:g} times the gradient)"
    rate = 0.003
    watcher = BetaWatcher

    def cases(self, quick: bool = False) -> Sequence[str]:
        return [f"{form} {gradients}" for gradients in GRADIENTS for form in FORMS]

    def options(self, case: str) -> dict[str, Any]:
        form, _ = split(case)
        setting = Setting("lumo", ONE, "ADAMW_ADV", False, LORA, RANK)
        return {**setting.options(kourkoutas_beta=form != FIXED), "clip_grad_norm": None}

    def report(self, results: Results) -> list[str]:
        rows, sentences = [], []
        for gradients in GRADIENTS:
            for form in FORMS:
                best = best_runs(results, self.letter, f"{form} {gradients}")
                if not best:
                    continue
                runs = [run.measured for run in best.values()]
                betas = [shown(figure_of(runs, name)) for name in FIGURES.values()]
                rows.append([form, gradients, shown_rate(best), shown(run.loss for run in runs), *betas])
            for form, baseline in ((PER_RANK, TENSOR), (PER_RANK, FIXED), (TENSOR, FIXED)):
                compared = compare_best(results, self.letter, f"{form} {gradients}", f"{baseline} {gradients}")
                if compared is not None:
                    sentences.append(compared.told(f"{gradients.capitalize()} gradients, β₂ {form}", f"β₂ {baseline}"))
        sentences += [moved for form in (TENSOR, PER_RANK) if (moved := self._moved(results, form))]
        titles = ["β₂", "gradients", "best rate", "loss there", *(f"β₂ of {who} {when}" for who, when in FIGURES)]
        note = (
            f"Spikes come every {EVERY} steps, in the first row of A and the first column of B. A β₂ of the other "
            "ranks that answers to the spikes is one that one noisy rank moves for all."
        )
        return [table(titles, rows), note, *sentences] if rows else []

    def _moved(self, results: Results, form: str) -> str:
        """How far one noisy rank moves the β₂ of the others."""
        betas = {}
        for gradients in GRADIENTS:
            best = measured_of(best_runs(results, self.letter, f"{form} {gradients}"))
            betas[gradients] = figure_of(best.values(), "beta2_quiet_after")
        if not all(betas.values()):
            return ""
        clean, noisy = (statistics.fmean(betas[gradients]) for gradients in GRADIENTS)
        return (
            f"β₂ {form}: after a spike the other ranks have {noisy:.4f}, at the same steps without noise {clean:.4f}: "
            f"one noisy rank {'moves them' if abs(noisy - clean) > MOVED else 'does not move them'} "
            f"(more than {MOVED:g} would count)."
        )

    def draw(self, results: Results, path: Path) -> None:
        figure, (line,) = panels(1, 3)
        for axes, gradients in zip(line, GRADIENTS, strict=False):
            labels = {f"{form} {gradients}": f"β₂ {form}" for form in FORMS}
            draw_rates(axes, results, self.letter, labels, f"{gradients} gradients")
        draw_bars(line[2], self._bars(results), "β₂ in the step after a spike")
        line[2].set_ylim(0.88, 1.0)
        save(figure, path)

    def _bars(self, results: Results) -> Mapping[str, list[float]]:
        bars = {}
        for form in FORMS:
            runs = measured_of(best_runs(results, self.letter, f"{form} {NOISY}")).values()
            bars[f"{form}: noisy"] = figure_of(runs, "beta2_noisy_after")
            bars[f"{form}: others"] = figure_of(runs, "beta2_quiet_after")
        return bars
