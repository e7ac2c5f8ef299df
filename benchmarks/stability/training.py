"""One training of the measurement, in a process of the pool."""

import math
from functools import cache

from benchmarks.pool import cache_folder
from benchmarks.stability.registry import QUESTIONS
from benchmarks.stability.Trial import Measured, Trial
from benchmarks.training.sweep import Sweep
from benchmarks.transfer.tasks import ONE, ROOT, WIDTHS, DiffusionLearner

CONCEPT = "training_concepts/tiny_concept.json"


@cache
def _learner(steps: int) -> DiffusionLearner:
    """The demo concept on the tiny base, at a constant rate after a short warm-up."""
    return DiffusionLearner(ROOT / WIDTHS[ONE], ROOT / CONCEPT, cache_folder(), steps)


def train_trial(trial: Trial) -> Measured:
    """For `pool.answer`."""
    learner = _learner(trial.steps)
    return measured(learner.sweep, trial)


def measured(sweep: Sweep, trial: Trial) -> Measured:
    """Trains, with the question's watcher looking on."""
    question = QUESTIONS[trial.question]
    watcher = question.watcher(sweep, trial)
    options = {**question.options(trial.case), "seed": trial.seed}
    with watcher.training():
        outcome = sweep.run(options, trial.rate, observe=watcher.observe, started=watcher.started)
    diverged = not math.isfinite(outcome.training)
    return Measured(outcome.training, sweep.untrained[0], {} if diverged else watcher.figures())
