"""The trainings that a question asks for, in the order in which they are wanted, and how one is run."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path

from benchmarks.forgetting.kinds import (
    CENTERED,
    FISHER,
    FISHER_CENTERED,
    FULL_MODE,
    KINDS,
    MODES,
    NONE,
    RATE,
    STANDARD,
)
from benchmarks.forgetting.Learner import Learner, Measures
from benchmarks.forgetting.Results import Results
from benchmarks.forgetting.Setting import Setting
from benchmarks.forgetting.tasks import FORGETTING, QUICK, TASKS
from benchmarks.forgetting.trade_off import best_strength
from benchmarks.transfer.runner import Trial, Wanted, single
from benchmarks.transfer.Setting import DORA, FULL, LORA, OFT
from benchmarks.transfer.tasks import ONE, base_folder

METHODS = (FULL, DORA, OFT)
# of scaled steps, the best ones of 40 steps by scripts/lr_transfer.py; a longer training forgets at them
RATES: Mapping[str, float] = {FULL: 0.016, DORA: 0.014, OFT: 0.02, LORA: 0.015}
ADAPTER_SIZES: Mapping[str, int] = {FULL: 0, DORA: 16, OFT: 16}
# at which all storage modes are compared
MODE_STRENGTHS: Mapping[str, float] = {FULL: 0.03, DORA: 0.03}
QUICK_STRENGTHS, QUICK_MODES = slice(-3, -1), (FULL_MODE, "int8", "wrapped4")
JUDGED = (NONE, STANDARD, CENTERED, FISHER, FISHER_CENTERED)


def task_of(question: str, quick: bool) -> str:
    return QUICK + question if quick else question


def trial_of(setting: Setting, seed: int) -> Trial:
    """The training of a setting at its method's rate, or at a share of it where a lower rate is what is tried."""
    share = setting.strength if setting.kind == RATE else 1.0
    return Trial(setting, seed, float(f"{share * RATES[setting.method]:.4g}"))


def forgetting_settings(method: str, quick: bool) -> list[Setting]:
    """No decay first, then every kind at every strength, then the storage modes."""
    task = task_of(FORGETTING, quick)
    base = Setting(task, ONE, method, ADAPTER_SIZES[method])
    found = [base]
    for name, kind in KINDS.items():
        strengths = kind.strengths.get(method, ()) if name != NONE else ()
        chosen = strengths[QUICK_STRENGTHS] if quick else strengths
        found += [replace(base, kind=name, strength=own) for own in chosen]
    if method in MODE_STRENGTHS:
        centered = replace(base, kind=CENTERED, strength=MODE_STRENGTHS[method])
        found += [replace(centered, mode=mode) for mode in (QUICK_MODES if quick else MODES)]
    return list(dict.fromkeys(found))


def forgetting_questions(methods: Sequence[str], seeds: Sequence[int], quick: bool) -> list[Wanted]:
    """Everything with the first seed, then with the others."""
    return seed_by_seed(seeds, [setting for method in methods for setting in forgetting_settings(method, quick)])


def seed_by_seed(seeds: Sequence[int], settings: Sequence[Setting]) -> list[Wanted]:
    """A training of each setting with the first seed, then with the others."""
    return [single(trial_of(setting, seed)) for seed in seeds for setting in settings]


def picture_questions(results: Results, methods: Sequence[str], seeds: Sequence[int], quick: bool) -> list[Wanted]:
    """The best strength of each kind once more, to sample pictures; with the first seed only, as sampling is slow."""
    task, found = task_of(FORGETTING, quick), []
    for method in methods:
        for kind in JUDGED:
            setting = best_strength(results, Setting(task, ONE, method, ADAPTER_SIZES[method], kind))
            if setting is not None:
                found.append(single(trial_of(replace(setting, pictures=True), seeds[0])))
    return found


@cache
def _learner(task: str, width: str, beside: str, folder: Path) -> Learner:
    return Learner(base_folder(width), folder, TASKS[task], beside)


def train(trial: Trial, folder: str) -> tuple[Measures, Measures]:
    """What a training came to, and the base model's own losses.

    Args:
        trial: what is trained.
        folder: for drawings and encoded images of this process; they stay there.
    """
    own = trial.setting
    name = f"{own.task} {own.width} {own.beside}".replace("/", "_")
    learner = _learner(own.task, own.width, own.beside, _own_folder(folder) / name)
    return learner.measure(own, trial.rate, trial.seed), learner.base_measures


@cache
def _own_folder(folder: str) -> Path:
    """One for each process: two would write the same files at the same time."""
    return Path(folder) / str(os.getpid())
