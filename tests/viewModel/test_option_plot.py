"""Plots of options show what the training does: they are drawn by its own functions."""

from modules.model.diffusion_noise import draw_noise_levels
from modules.trainer.lr_schedule import schedule_factor
from modules.util.config.load import train_config_from_dict
from modules.util.config.TrainConfig import TrainConfig
from modules.util.enum.TimestepDistribution import TimestepDistribution
from modules.util.UserError import UserError
from modules.viewModel.OptionPlot import BARS, SOME_STEPS, OptionPlot, plot_kinds, schedule_points, timestep_points
from modules.viewModel.TrainForm import TrainForm
from modules.viewModel.Worker import Worker
from tests.viewModel.finish import finish

import torch

import pytest


@pytest.mark.parametrize("scheduler", ["CONSTANT", "COSINE_WITH_HARD_RESTARTS", "REX"])
@pytest.mark.parametrize("steps", [1, 7, 5000])
def test_the_schedule_is_the_trainers(scheduler, steps):
    config = TrainConfig.from_dict({
        "learning_rate_scheduler": scheduler, "learning_rate_warmup_steps": 3, "learning_rate_cycles": 2,
    })  # fmt: skip
    factor, points = schedule_factor(config, steps), schedule_points(config, steps)
    assert points[0][0] == 0 and points[-1][0] == steps - 1 and len(points) <= 250
    assert all(value == factor(step) for step, value in points)


@pytest.mark.parametrize("distribution", list(TimestepDistribution))
def test_the_density_is_that_of_what_is_drawn(distribution):
    own = {"BETA": (2.0, 3.0), "HEAVY_TAIL": (0.5, 0.0), "INVERTED_PARABOLA": (4.0, 0.1)}
    weight, bias = own.get(distribution, (1.0, 0.3))
    config = TrainConfig.from_dict({
        "timestep_distribution": distribution, "noising_weight": weight, "noising_bias": bias, "timestep_shift": 2.0,
        "min_noising_strength": 0.1, "max_noising_strength": 0.9,
    })  # fmt: skip
    points = timestep_points(config)
    shares = torch.tensor([value for _, value in points[::2]]) / BARS
    assert shares.sum() == pytest.approx(1, abs=1e-6)
    drawn = draw_noise_levels(config, 40_000, torch.Generator().manual_seed(1))
    found = torch.histc(drawn, BARS, 0, 1) / 40_000
    # five deviations of a share that is drawn so often
    assert (found - shares).abs().max() < 5 * (shares.max() / 40_000).sqrt()


@pytest.fixture
def plot():
    """plot(config) -> the plot of the schedule, the form and the worker."""

    def make(section: str, **options: object):
        form, worker = TrainForm(train_config_from_dict(options)), Worker()
        return OptionPlot(plot_kinds()[section], form, worker, lambda: None), form, worker

    return make


def test_it_waits_for_torch_and_follows_the_options(plot):
    plot, form, worker = plot("Learning rate", learning_rate_scheduler="LINEAR", learning_rate_warmup_steps=0)
    plot.refresh(0)
    assert not worker.busy, "torch is not loaded for it"
    form.checks = lambda config: []
    plot.refresh(0)
    finish(worker)
    assert plot.points[-1][0] == SOME_STEPS - 1 and "how many it has is not known" in plot.note
    plot.refresh(50)
    finish(worker)
    assert plot.points[-1] == (49, pytest.approx(1 / 50)) and plot.note == ""
    plot.refresh(50)
    assert not worker.busy, "nothing has changed"
    form.set_text("learning_rate_min_factor", "0.5")
    plot.refresh(50)
    # what is typed meanwhile is drawn, too
    form.set_text("learning_rate_min_factor", "0.25")
    plot.refresh(50)
    finish(worker)
    assert plot.points[-1][1] == pytest.approx(0.25 + 0.75 / 50)


def test_wrong_options_leave_the_last_plot_and_say_so(plot):
    plot, form, worker = plot("Noise and timesteps", timestep_distribution="INVERTED_PARABOLA", noising_weight=1.0)
    form.checks = lambda config: []
    plot.refresh(0)
    finish(worker)
    before = plot.points
    form.set_text("min_noising_strength", "3")
    plot.refresh(0)
    assert not worker.busy and plot.note == "“Lowest noise” is wrong: the plot is as it was before."
    form.reset("min_noising_strength")
    # each for itself may be so
    form.set_text("noising_weight", "1000")
    form.set_text("noising_bias", "50")
    plot.refresh(0)
    finish(worker)
    assert plot.points == before and "The plot is as it was before" in plot.note and "never draws" in plot.note
    with pytest.raises(UserError):
        timestep_points(form.config)
    form.reset("noising_bias")
    plot.refresh(0)
    finish(worker)
    assert plot.points != before and plot.note == ""
    form.set_text("dynamic_timestep_shifting", "true")
    plot.refresh(0)
    finish(worker)
    assert "a shift of its own" in plot.note
