import statistics
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.stability.analysis import best_runs, compare_best, figure_of, measured_of, shown, shown_rate, table
from benchmarks.stability.drawing import draw_bars, draw_rates, panels, save
from benchmarks.stability.NoisyUnit import SIZE, NoisyUnit
from benchmarks.stability.Question import Question
from benchmarks.stability.Results import Results
from benchmarks.stability.Trial import Trial
from benchmarks.stability.Watcher import Watcher
from benchmarks.training.sweep import Sweep
from benchmarks.transfer.Setting import LORA, OFT, Setting
from benchmarks.transfer.tasks import ONE
from modules.util.ParameterInfo import get_parameter_info
from scaled_optim.arithmetic import unit_norm
from scaled_optim.features.orthogonal_gradient import across
from scaled_optim.roles import ROLES, WHOLE, matrix_shape

from torch import Tensor, nn

DISABLED, FLATTENED, PER_RANK = MODES = ("disabled", "flattened", "per_rank")
CLEAN, NOISY = GRADIENTS = ("clean", "noisy")
METHODS = {LORA: 0.003, OFT: 0.04}
UNITS = {LORA: "rank", OFT: "block"}
SIZE_OF = 16


class ProjectionWatcher(Watcher):
    """What OrthoGrad makes of the gradients of the quiet units, at steps with spikes, or at the same without them."""

    def __init__(self, sweep: Sweep, trial: Trial) -> None:
        super().__init__(sweep, trial)
        _, self.mode, self.gradients = trial.case.split()
        self.changed: list[float] = []
        self.disturbed: list[float] = []

    def prepare(self) -> None:
        self.noise = NoisyUnit(self.parameters, self.trial.seed, self.gradients == NOISY)

    @contextmanager
    def step(self, index: int) -> Iterator[None]:
        if self.noise.spikes_in(index):
            for parameter, dim in self.noise.units.items():
                self._look(parameter, dim)
        self.noise.coming = index + 1
        yield

    def _look(self, parameter: nn.Parameter, dim: int) -> None:
        rows, cols = matrix_shape(tuple(parameter.shape))
        p, given, clean = (
            tensor.detach().double().reshape(1, rows, cols)
            for tensor in (parameter, parameter.grad, self.noise.clean[parameter])
        )
        role = ROLES[str(get_parameter_info(parameter).role)]

        def quiet(gradient: Tensor) -> Tensor:
            return gradient.narrow(dim + 1, 1, gradient.shape[dim + 1] - 1)

        def used(gradient: Tensor) -> Tensor:
            if self.mode == DISABLED:
                return gradient
            dims = role.unit if self.mode == PER_RANK else WHOLE
            return across(gradient, p, dims, unit_norm(gradient, dims))

        wanted, found = quiet(used(clean)), quiet(used(given))
        if wanted.norm() > 0:
            self.disturbed.append(float((found - wanted).norm() / wanted.norm()))
            self.changed.append(float((found - quiet(given)).norm() / quiet(given).norm()))

    def figures(self) -> dict[str, Any]:
        if not self.changed:
            return {}
        return {
            "changed": statistics.median(self.changed),
            "disturbed": statistics.median(self.disturbed),
            "disturbed_most": max(self.disturbed),
        }


class OrthoGrad(Question):
    """OrthoGrad per rank or block against flattened, with one noisy rank or block.

    Steps are not scaled and gradients not clipped, so that nothing but the projection couples the units.
    """

    letter = "d"
    name = "orthograd"
    title = f"OrthoGrad with one noisy rank or block (ADAMW_ADV, size {SIZE_OF}, spikes {SIZE:g} times the gradient)"
    watcher = ProjectionWatcher

    def cases(self, quick: bool = False) -> Sequence[str]:
        gradients = (NOISY,) if quick else GRADIENTS
        return [f"{method} {mode} {own}" for method in METHODS for own in gradients for mode in MODES]

    def options(self, case: str) -> dict[str, Any]:
        method, mode, _ = case.split()
        setting = Setting("lumo", ONE, "ADAMW_ADV", False, method, SIZE_OF)
        return {**setting.options(orthogonal_gradient=mode), "clip_grad_norm": None}

    def expected_rate(self, case: str) -> float:
        return METHODS[case.split()[0]]

    def report(self, results: Results) -> list[str]:
        rows, sentences = [], []
        for method in METHODS:
            for gradients in GRADIENTS:
                for mode in MODES:
                    best = best_runs(results, self.letter, f"{method} {mode} {gradients}")
                    if not best:
                        continue
                    runs = [run.measured for run in best.values()]
                    rows.append([
                        method, mode, gradients, shown_rate(best), shown(run.loss for run in runs),
                        *(shown((100 * share for share in figure_of(runs, name)), ".2f")
                          for name in ("changed", "disturbed", "disturbed_most")),
                    ])  # fmt: skip
                for mode, baseline in ((PER_RANK, FLATTENED), (PER_RANK, DISABLED), (FLATTENED, DISABLED)):
                    cases = (f"{method} {own} {gradients}" for own in (mode, baseline))
                    compared = compare_best(results, self.letter, *cases)
                    if compared is not None:
                        sentences.append(compared.told(f"{method}, {gradients} gradients, {mode}", baseline))
        titles = [
            "method", "OrthoGrad", "gradients", "best rate", "loss there", "quiet gradient changed by it, %",
            "changed by the noise alone, %", "at most, %",
        ]  # fmt: skip
        note = (
            "The quiet gradient is that of all other ranks or blocks, at the steps with spikes (the same steps where "
            "there is no noise): medians over steps and parameters. *Changed by the noise alone* is how far what "
            "OrthoGrad makes of it lies from what it would have made of it without the spike."
        )
        return [table(titles, rows), note, *sentences] if rows else []

    def draw(self, results: Results, path: Path) -> None:
        figure, grid = panels(len(METHODS), 3)
        for line, method in zip(grid, METHODS, strict=True):
            for axes, gradients in zip(line, GRADIENTS, strict=False):
                labels = {f"{method} {mode} {gradients}": mode for mode in MODES}
                draw_rates(axes, results, self.letter, labels, f"{method}, {gradients} gradients")
            bars = {}
            for mode in MODES:
                best = best_runs(results, self.letter, f"{method} {mode} {NOISY}")
                bars[mode] = [100 * share for share in figure_of(measured_of(best).values(), "disturbed_most")]
            title = f"largest change of quiet {UNITS[method]}s by the noise, %"
            draw_bars(line[2], bars, title)
        save(figure, path)
