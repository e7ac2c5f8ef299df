import json
from collections.abc import Callable
from dataclasses import dataclass

from modules.util.config.TrainConfig import TrainConfig
from modules.util.enum.OptionGroup import OptionGroup
from modules.util.texts import tr
from modules.util.UserError import UserError
from modules.viewModel.curves import Point
from modules.viewModel.TrainForm import TrainForm
from modules.viewModel.Worker import Worker

# points of a curve, and bars of a density; numbers that are drawn for it
POINTS, BARS, DRAWN = 240, 60, 60_000
# of a run whose length is not known
SOME_STEPS = 1000
SCHEDULE_PATHS = (
    "learning_rate_scheduler", "learning_rate_warmup_steps", "learning_rate_cycles", "learning_rate_min_factor",
    "custom_learning_rate_scheduler", "scheduler_params",
)  # fmt: skip
NOISE_PATHS = (
    "timestep_distribution", "noising_weight", "noising_bias", "min_noising_strength", "max_noising_strength",
    "timestep_shift", "dynamic_timestep_shifting",
)  # fmt: skip


@dataclass(frozen=True)
class PlotKind:
    """What a plot shows of a config.

    Attributes:
        title, x_label: what is drawn upwards, and over what.
        whole: whether x are whole numbers.
        paths: options that it depends on.
        draw: (config, steps of the run) -> points. Loads torch.
        note: config -> what is to be said of the plot; empty: nothing.
        counts_steps: whether it depends on the steps of the run.
    """

    title: str
    x_label: str
    whole: bool
    paths: tuple[str, ...]
    draw: Callable[[TrainConfig, int], list[Point]]
    note: Callable[[TrainConfig], str] = lambda config: ""
    counts_steps: bool = False


class OptionPlot:
    """A curve that follows options while they are changed, drawn by the functions that training uses.

    Args:
        kind: what is drawn.
        form: of the config.
        worker: draws.
        done: called when there is something new to show.

    Attributes:
        points: of the last config that could be drawn.
        note: what to say of it: why it is an older one, or what it does not show.
    """

    def __init__(self, kind: PlotKind, form: TrainForm, worker: Worker, done: Callable[[], None]) -> None:
        self.kind, self._form, self._worker, self._done = kind, form, worker, done
        self.points: list[Point] = []
        self.note = ""
        self._drawn, self._trouble, self._is_drawing, self._steps = "", "", False, 0

    def refresh(self, steps: int) -> None:
        """Draws anew if the options have changed, and torch is there to draw with.

        Args:
            steps: of the run; 0: not known.
        """
        form, kind = self._form, self.kind
        self._steps = steps
        wrong = [path for path in kind.paths if form.error(path)]
        if wrong:
            self._tell(tr("“{title}” is wrong: the plot is as it was before.", title=form.title(wrong[0])))
            return
        if form.checks is None or self._is_drawing:
            # what comes back first asks again
            return
        values = [form.value(path) for path in kind.paths]
        key = json.dumps([values, steps if kind.counts_steps else 0], default=str)
        if key == self._drawn:
            self._tell(self._trouble or self._own_note(form.config, steps))
            return
        self._is_drawing, self._drawn, self._trouble = True, key, ""
        config = form.config.model_copy(deep=True)
        self._worker.run(
            lambda: kind.draw(config, steps or SOME_STEPS), lambda points: self._take(points, config, steps), self._fail
        )

    def _take(self, points: list[Point], config: TrainConfig, steps: int) -> None:
        self._is_drawing, self.points, self.note = False, points, self._own_note(config, steps)
        self._done()
        self.refresh(self._steps)

    def _fail(self, error: Exception) -> None:
        self._is_drawing = False
        reason = self._form.words(str(error)) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
        # said until an option changes
        self._trouble = tr("The plot is as it was before: {reason}", reason=reason)
        self.refresh(self._steps)

    def _own_note(self, config: TrainConfig, steps: int) -> str:
        unknown = ""
        if self.kind.counts_steps and not steps:
            unknown = tr("As if the run had {steps} steps; how many it has is not known.", steps=f"{SOME_STEPS:,}")
        return " ".join(filter(None, (unknown, self.kind.note(config))))

    def _tell(self, note: str) -> None:
        if note != self.note:
            self.note = note
            self._done()


def schedule_points(config: TrainConfig, steps: int) -> list[Point]:
    """(step, factor of the learning rate) over a run, by the function that the trainer calls at each step."""
    from modules.trainer.lr_schedule import schedule_factor

    factor = schedule_factor(config, steps)
    places = {round(place * (steps - 1) / POINTS) for place in range(POINTS + 1)}
    # a short warm-up lies between two of them
    warmup = config.learning_rate_warmup_steps
    end = round(warmup * steps if warmup <= 1 else warmup)
    places |= {place for place in (end - 1, end) if 0 <= place < steps}
    return [(place, factor(place)) for place in sorted(places)]


def timestep_points(config: TrainConfig, _: int = 0) -> list[Point]:
    """(noise, density): how often each level of noise is trained, by the function that draws them in a training.

    Numbers that are spread evenly take the place of the random ones, so that the curve is smooth.
    """
    from modules.model.diffusion_noise import noise_levels_of

    import torch

    shift = 1.0 if config.dynamic_timestep_shifting else None
    levels = noise_levels_of(config, (torch.arange(DRAWN, dtype=torch.float64) + 0.5) / DRAWN, shift)
    counts = torch.histc(levels, BARS, 0, 1).tolist()
    found: list[Point] = []
    for place, count in enumerate(counts):
        density = count * BARS / DRAWN
        found += [(place / BARS, density), ((place + 1) / BARS, density)]
    return found


def _timestep_note(config: TrainConfig) -> str:
    if not config.dynamic_timestep_shifting:
        return ""
    return tr("With the dynamic shift each size of image has a shift of its own: this is the plot without one.")


def plot_kinds() -> dict[str, PlotKind]:
    """Key of a section of the form -> the plot that stands in it."""
    return {
        str(OptionGroup.SCHEDULE): PlotKind(
            tr("Factor of the learning rate"), tr("step"), True, SCHEDULE_PATHS, schedule_points, counts_steps=True
        ),
        str(OptionGroup.NOISE): PlotKind(
            tr("How often each noise is trained (density)"), tr("1: pure noise"), False,
            NOISE_PATHS, timestep_points, _timestep_note,
        ),
    }  # fmt: skip
