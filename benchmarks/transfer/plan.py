"""The trainings of a measurement, in the order in which they are wanted."""

from collections.abc import Mapping, Sequence

from benchmarks.transfer.questions import (
    AXES,
    QUICK_SIZES,
    axis_settings,
    expected_rate,
    reference,
    settings_of,
)
from benchmarks.transfer.Results import Results
from benchmarks.transfer.runner import Trial, Wanted, search, single
from benchmarks.transfer.Setting import Setting
from benchmarks.transfer.summary import transferred_rate
from benchmarks.transfer.tasks import ONE

# scaled -> seeds
Seeds = Mapping[bool, Sequence[int]]


def chosen_settings(task: str, rule: str, scaled: bool, axes: Sequence[str] | None, quick: bool) -> list[Setting]:
    """The settings of a task and rule, the reference first; only those of some axes, by name, if they are given.

    Args:
        quick: only the sizes of `QUICK_SIZES`.
    """
    settings = settings_of(task, rule, scaled)
    if quick:
        # the bases of other widths have to be made first, which takes longer
        settings = [s for s in settings if s.width == ONE and s.size in QUICK_SIZES.get(s.method, ())]
    if axes is None:
        return settings
    wanted = {s for axis in AXES if axis.name in axes for s in axis_settings(axis, task, rule, scaled)}
    return [s for s in settings if s in wanted or s == reference(task, rule, scaled)] if wanted else []


def questions(
    tasks: Sequence[str], rules: Sequence[str], seeds: Seeds, axes: Sequence[str] | None = None, quick: bool = False
) -> list[Wanted]:
    """The searches for best rates: all scaled settings with their first seed, then with the others, then plain ones."""
    return [
        search(setting, seed, expected_rate(setting))
        for scaled in (True, False)
        for seed in seeds[scaled]
        for task in tasks
        for rule in rules
        for setting in chosen_settings(task, rule, scaled, axes, quick)
    ]


def transfer_questions(
    results: Results,
    tasks: Sequence[str],
    rules: Sequence[str],
    seeds: Seeds,
    axes: Sequence[str] | None = None,
    quick: bool = False,
) -> list[Wanted]:
    """Each setting at the rate that is best for its reference; for rules whose reference's is not known, none."""
    found = []
    for scaled in (True, False):
        for task in tasks:
            for rule in rules:
                settings = chosen_settings(task, rule, scaled, axes, quick)
                rate = transferred_rate(results, settings[0]) if settings else None
                if rate is not None:
                    found += [single(Trial(own, seed, rate)) for own in settings for seed in seeds[scaled]]
    return found
