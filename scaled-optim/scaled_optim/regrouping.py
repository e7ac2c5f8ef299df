"""Stacks that must change after their state was made: launches that grew, options, dtypes and devices that changed."""

from collections.abc import Mapping, Sequence
from typing import Any

from scaled_optim.ParameterBatch import ParameterBatch, equal_runs
from scaled_optim.rules.Rule import Rule

Case = Any
# Launches that another order would have saved before a stack is copied into it: copying costs about as much as a few.
PATIENCE = 8
ANCHOR_MODE = "centered_wd_mode"


def runs_of(halves: Sequence[ParameterBatch], cases: list[Case], at_once: bool) -> tuple[list[tuple[int, int]], bool]:
    """Ranges of neighbours of the same case, None left out, and whether it is time to put them in another order.

    Args:
        halves: a batch, or the two of a pair.
        cases: of each parameter or pair.
        at_once: whether all are stepped now, so that the launches count.
    """
    runs = list(equal_runs(cases))
    fewest = len(set(cases) - {None})
    if not at_once or len(runs) <= fewest:
        return runs, False
    halves[0].excess += len(runs) - fewest
    return runs, halves[0].excess >= PATIENCE


def better_order(cases: Sequence[Case]) -> list[int]:
    """Indices with equal cases side by side, in their present order otherwise; those without a gradient last."""
    place = {case: number for number, case in enumerate(dict.fromkeys(case for case in cases if case is not None))}
    return sorted(range(len(cases)), key=lambda index: place.get(cases[index], len(place)))


def joined_counts(
    counts: Sequence[int | None], rule: Rule, options: Mapping[str, Any], period: int = 1
) -> list[int | None]:
    """The counts, with one in the place of all to which the rule gives the same numbers: they are one launch.

    A first step is never joined with a later one, as rules may branch on it, nor one that pays decay with one that
    does not.

    Args:
        period: of the decay, see `decay_period`.
    """
    known: list[tuple[dict[str, Any], int]] = []
    joined: dict[int | None, int | None] = {None: None}
    for count in dict.fromkeys(counts):
        if count is None:
            continue
        numbers = {"first": count == 0, "pays": (count + 1) % period == 0, **rule.numbers(options, count + 1)}
        joined[count] = next((other for same, other in known if same == numbers), count)
        if joined[count] == count:
            known.append((numbers, count))
    return [joined[count] for count in counts]


def check_carried(old: ParameterBatch, new: ParameterBatch) -> None:
    """ValueError where an option was changed that says how something is stored that can't be stored anew."""
    if old.sharded and (old.owner is None) != (new.owner is None):
        raise ValueError(
            "an option was changed after the first step by which weights that processes hold in parts are stepped as "
            "whole matrices, or no longer. Set it back, or make a new optimizer."
        )
    before, after = (batch.layout[ANCHOR_MODE] if "anchor" in batch.stores else None for batch in (old, new))
    if None not in (before, after) and before != after:
        raise ValueError(
            f"{ANCHOR_MODE}: changed from {before} to {after} after the first step, but where the weights started is "
            f"kept as {before} only. Set it back, or make a new optimizer."
        )
