import statistics
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.stability.analysis import NOTHING, shown, table
from benchmarks.stability.drawing import draw_bars, panels, save
from benchmarks.stability.Question import QUICK_STEPS, Question
from benchmarks.stability.Results import Results
from benchmarks.stability.Trial import Measured
from benchmarks.stability.Watcher import Watcher
from benchmarks.transfer.Setting import DORA, DORA_OFT, LORA, OFT, Setting
from benchmarks.transfer.tasks import ONE, WARMUP
from modules.module.dense_weight import dense_weight
from modules.util.enum.ParameterRole import ParameterRole
from modules.util.keyed_random import step_generator
from modules.util.ParameterInfo import get_parameter_info
from scaled_optim.scaling import LAWS, VARIANCE

import torch
from torch import Tensor, nn

METHODS = (LORA, DORA, OFT, DORA_OFT)
BOTH, MAGNITUDE, DIRECTION = PORTIONS = ("whole step", "magnitude", "direction")
# of inputs -> words
INPUTS = {"white": "white inputs", "relative": "white inputs, over the base's output", "real": "the model's own inputs"}
SIZE = 16
RATE = 0.008
# what the variance law promises of the whole step, in units of η²; None: nothing, as its direction is not isotropic
PROMISED: Mapping[str, float | None] = {LORA: None, DORA: None, OFT: 1.0, DORA_OFT: 2.0}


class VarianceWatcher(Watcher):
    """How much single steps of a training change the outputs of the adapted layers, in units of η².

    For inputs x of covariance C the variance that a change ΔW adds is tr(ΔW·C·ΔWᵀ)/outputs. White inputs have C = I;
    the model's own are those of the first batch, brought to a mean square of 1.
    """

    def prepare(self) -> None:
        self.adapters = {
            name: adapter
            for name, adapter in self.trained.adapters.items()
            # of larger kernels the inputs are not vectors
            if adapter.layer.weight[0, 0].numel() == 1
        }
        self.moments = self._second_moments()
        self.base = {name: dense_weight(own.layer).flatten(1).double() for name, own in self.adapters.items()}
        is_magnitude = {p: get_parameter_info(p).role == ParameterRole.DORA_SCALE for p in self.parameters}
        self.magnitudes = [p for p, own in is_magnitude.items() if own]
        self.directions = [p for p, own in is_magnitude.items() if not own]
        steps = self.sweep.steps
        self.looks = {min(WARMUP, steps - 1), steps // 2, steps - 1}
        self.points: list[dict[str, Any]] = []

    @torch.no_grad()
    def _second_moments(self) -> dict[str, Tensor]:
        """Layer -> second moments of its inputs `[i, i]`, with a mean square of 1."""
        found: dict[str, Tensor] = {}

        def note(name: str) -> Any:
            def hook(layer: nn.Module, arguments: tuple[Tensor, ...]) -> None:
                x = arguments[0].detach()
                rows = x.movedim(1, -1).flatten(0, -2) if isinstance(layer, nn.Conv2d) else x.flatten(0, -2)
                moment = rows.double().t() @ rows.double()
                found[name] = moment / moment.diagonal().mean()

            return hook

        hooks = [own.layer.register_forward_pre_hook(note(name)) for name, own in self.adapters.items()]
        batch = self.sweep.data.load(next(iter(self.sweep.data.plan(0))))
        self.sweep.model.predict_batch(batch, step_generator(self.trial.seed, "inputs", 0))
        for hook in hooks:
            hook.remove()
        return found

    @contextmanager
    def step(self, index: int) -> Iterator[None]:
        if index not in self.looks:
            yield
            return
        old = {p: p.detach().clone() for p in self.parameters}
        before = self._changes()
        yield
        rate = float(self.optimizer.param_groups[0]["lr"])
        portions = {BOTH: self._changes()}
        if self.magnitudes:
            with swapped(self.directions, old):
                portions[MAGNITUDE] = self._changes()
            with swapped(self.magnitudes, old):
                portions[DIRECTION] = self._changes()
        self.points.append({
            "step": index + 1,
            **{portion: self._variances(before, after, rate) for portion, after in portions.items()},
        })  # fmt: skip

    def _changes(self) -> dict[str, Tensor]:
        """Layer -> what its adapter adds to its weight `[o, i]`."""
        return {name: own.merged_delta().flatten(1).double() for name, own in self.adapters.items()}

    def _variances(self, before: Mapping[str, Tensor], after: Mapping[str, Tensor], rate: float) -> dict[str, float]:
        """Inputs -> variance over η², mean over the layers."""
        found: dict[str, list[float]] = {name: [] for name in INPUTS}
        for name, moment in self.moments.items():
            change = after[name] - before[name]
            squares, outputs = float(change.square().sum()), len(change)
            found["white"].append(squares / outputs)
            found["relative"].append(squares / float(self.base[name].square().sum()))
            found["real"].append(float(((change @ moment) * change).sum()) / outputs)
        return {name: statistics.fmean(values) / rate**2 for name, values in found.items()}

    def figures(self) -> dict[str, Any]:
        """Means over the steps that were looked at, and each of them."""
        means = {
            f"{portion}, {name}": statistics.fmean(point[portion][name] for point in self.points)
            for portion in PORTIONS
            for name in INPUTS
            if portion in self.points[0]
        }
        norms = statistics.fmean(float(own.square().sum()) / len(own) for own in self.base.values())
        return {**means, "base_variance": norms, "layers": len(self.moments), "points": self.points}


@contextmanager
def swapped(parameters: Sequence[nn.Parameter], values: Mapping[nn.Parameter, Tensor]) -> Iterator[None]:
    """Gives parameters other values in between."""
    own = [p.detach().clone() for p in parameters]
    with torch.no_grad():
        for parameter in parameters:
            parameter.copy_(values[parameter])
        try:
            yield
        finally:
            for parameter, value in zip(parameters, own, strict=True):
                parameter.copy_(value)


class OutputVariance(Question):
    """The output variance of one step, beside the promise that DoRA-OFT's is 2η²."""

    letter = "f"
    name = "output_variance"
    title = f"Output variance of one step, in η² (ADAMW_ADV, scaled, size {SIZE})"
    rate = RATE
    watcher = VarianceWatcher

    def cases(self, quick: bool = False) -> Sequence[str]:
        return [f"{method} {law}" for method in METHODS for law in LAWS]

    def options(self, case: str) -> dict[str, Any]:
        method, law = case.split()
        return Setting("lumo", ONE, "ADAMW_ADV", True, method, SIZE).options(scale_law=law)

    def next_rates(self, case: str, found: Mapping[float, float]) -> list[float]:
        """One: the variance over η² does not depend on it while steps are small."""
        return [] if RATE in found else [RATE]

    def quick_rates(self, case: str) -> list[float]:
        return [RATE]

    def _runs(self, results: Results, method: str, law: str) -> list[Measured]:
        case = f"{method} {law}"
        rows = [results.rows(self.letter, case, seed) for seed in results.seeds(self.letter, case)]
        return [measured for row in rows for measured in row.values() if measured.figures]

    def report(self, results: Results) -> list[str]:
        rows, sentences = [], []
        for law in LAWS:
            for method in METHODS:
                runs = self._runs(results, method, law)
                for portion in PORTIONS if runs else ():
                    values = [shown(figures(runs, portion, name), ".3g") for name in INPUTS]
                    if values[0] != NOTHING:
                        rows.append([law, method, portion, *values])
                if runs:
                    sentences += verdict(method, law, runs)
        if not rows:
            return []
        base = shown([run.figures["base_variance"] for run in self._runs(results, OFT, VARIANCE)])
        note = (
            "Means over the layers and over the first step after the warm-up, the middle one and the last. Seeds "
            "in brackets. A layer of the base gives white inputs an output variance of "
            f"{base} (mean over the layers); the promises assume 1."
        )
        return [table(["law", "method", "portion", *INPUTS.values()], rows), note, *sentences]

    def draw(self, results: Results, path: Path) -> None:
        figure, grid = panels(len(LAWS), len(INPUTS))
        for line, law in zip(grid, LAWS, strict=True):
            for axes, (name, words) in zip(line, INPUTS.items(), strict=True):
                groups = {method: figures(self._runs(results, method, law), BOTH, name) for method in METHODS}
                draw_bars(axes, groups, f"{law}: {words}")
                axes.set_ylabel("variance of a step / η²")
                if law == VARIANCE:
                    axes.axhline(1, color="#999999", linewidth=1, linestyle=":")
                    axes.axhline(2, color="#999999", linewidth=1, linestyle=":")
        save(figure, path)


def figures(runs: Sequence[Measured], portion: str, inputs: str) -> list[float]:
    """Of each run that has it."""
    name = f"{portion}, {inputs}"
    return [run.figures[name] for run in runs if name in run.figures]


def verdict(method: str, law: str, runs: Sequence[Measured]) -> list[str]:
    """Whether a promise holds, within a tenth, and whether the two portions add up."""
    told = []
    promised = PROMISED[method] if law == VARIANCE else None
    if promised is not None:
        whole, relative = (statistics.fmean(figures(runs, BOTH, name)) for name in ("white", "relative"))
        holds = abs(whole / promised - 1) <= 0.1
        told.append(
            f"{method}, {law}: {promised:g}η² is promised for white inputs, {whole:.3g}η² was found: the promise "
            f"**{'holds' if holds else 'does not hold'}** (within 10 %). Over the output variance of the base itself "
            f"it is {relative:.3g}η²."
        )
    if figures(runs, MAGNITUDE, "white"):
        both, *portions = (statistics.fmean(figures(runs, portion, "white")) for portion in PORTIONS)
        told.append(
            f"{method}, {law}: magnitude and direction alone add up to {sum(portions):.3g}η², the whole step is "
            f"{both:.3g}η²; the magnitude's share is {100 * portions[0] / sum(portions):.3g} %."
        )
    return told


assert QUICK_STEPS > WARMUP, "a quick measurement looks at steps after the warm-up, too"
