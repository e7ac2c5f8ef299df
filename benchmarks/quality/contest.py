"""The comparison: the best learning rate of each optimizer on one grid, then fresh seeds at that rate."""

import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from benchmarks.quality.contestants import Contestant
from benchmarks.quality.Task import Task

# One and the same for every optimizer, each about three times the one before. Steps of fixed spectral norm need rates
# some ten to a hundred times those of Adam, so it is wide.
GRID = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1, 1.0)
TUNING_SEED = 0
# none of them chose the learning rate
SEEDS = (1, 2, 3)

Row = Mapping[str, Any]


def run_contest(
    task: Task,
    contestants: Sequence[Contestant],
    rates: Sequence[float],
    seeds: Sequence[int],
    known: list[dict[str, Any]],
    found: Callable[[dict[str, Any]], None],
) -> None:
    """Trains what is not among the known rows, and hands over each new row at once.

    For every contestant all rates with the seed `TUNING_SEED`; then every other seed at the rate of least tuning loss.

    Args:
        rates: at least one, increasing; a contestant's own take their place.
        seeds: of the runs that count.
        known: rows of an earlier call; `found` may add to them.
        found: gets each row: `optimizer`, `rate`, `seed`, and what a `Result` has.
    """
    have = {_key(row): row for row in known}

    def row_of(contestant: Contestant, rate: float, seed: int) -> Row:
        row: dict[str, Any] = {"optimizer": contestant.name, "rate": rate, "seed": seed}
        if _key(row) not in have:
            have[_key(row)] = row = {**row, **asdict(task.run(contestant, rate, seed))}
            found(row)
        return have[_key(row)]

    for contestant in contestants:
        best = best_row([row_of(contestant, rate, TUNING_SEED) for rate in contestant.rates or rates])
        for seed in seeds if best else ():
            row_of(contestant, best["rate"], seed)


def best_row(rows: Iterable[Row]) -> Row | None:
    """The row of least tuning loss; None if every run diverged."""
    finite = [row for row in rows if math.isfinite(row["tuning"])]
    return min(finite, key=lambda row: row["tuning"], default=None)


def summary(rows: Sequence[Row]) -> dict[str, dict[str, Any]]:
    """By optimizer, what the rows say; optimizers without a finished run at their best rate are left out.

    `rate` the best one, `edge` whether the grid ends there, so that a better one may lie outside; `tried` rate ->
    tuning loss; `validation`, `accuracy`, `training`, `seconds`: mean and standard deviation over the seeds, n − 1 in
    the denominator; `up_rank`, `product_rank`, `down`, `up`: means of the last point of the traces.
    """
    result = {}
    for name in dict.fromkeys(row["optimizer"] for row in rows):
        own = [row for row in rows if row["optimizer"] == name]
        tried = sorted((row for row in own if row["seed"] == TUNING_SEED), key=lambda row: row["rate"])
        best = best_row(tried)
        finals = [row for row in own if best and row["rate"] == best["rate"] and row["seed"] != TUNING_SEED]
        if not finals:
            continue
        result[name] = {
            "rate": best["rate"],
            "edge": len(tried) > 1 and best["rate"] in (tried[0]["rate"], tried[-1]["rate"]),
            "tried": {f"{row['rate']:g}": row["tuning"] for row in tried},
            "seeds": sorted(row["seed"] for row in finals),
            **{field: mean_and_spread(finals, field) for field in ("validation", "accuracy", "training", "seconds")},
            **last_point(finals),
        }
    return result


def mean_and_spread(rows: Sequence[Row], field: str) -> dict[str, float | None] | None:
    """Mean and standard deviation over seeds; the mean is infinite if a seed diverged. None if nothing was measured.

    The deviation is None if there is only one seed, or one diverged.
    """
    values = [row[field] for row in rows]
    if any(value is None for value in values):
        return None
    mean = statistics.fmean(values)
    return {"mean": mean, "spread": statistics.stdev(values) if len(values) > 1 and math.isfinite(mean) else None}


def last_point(rows: Sequence[Row]) -> dict[str, float]:
    """Means over the seeds of what the traces end with."""
    points = [row["trace"][-1] for row in rows if row["trace"]]
    if not points:
        return {}
    return {name: statistics.fmean(point[name] for point in points) for name in ("up_rank", "product_rank")}


def table(found: Mapping[str, Mapping[str, Any]]) -> str:
    """A summary in Markdown, best validation loss first."""
    head = "| optimizer | best rate | validation loss | accuracy, % | training loss | erank B | erank B·A | s/step |"
    lines = [head, "|---|---:|---:|---:|---:|---:|---:|---:|"]
    for name, own in sorted(found.items(), key=lambda entry: entry[1]["validation"]["mean"]):
        edge = " (end of the grid)" if own["edge"] else ""
        ranks = [f"{own[field]:.2f}" if field in own else "–" for field in ("up_rank", "product_rank")]
        cells = [
            name, f"{own['rate']:g}{edge}", shown(own["validation"], 4), shown(own["accuracy"], 2, 100),
            shown(own["training"], 4), *ranks, f"{own['seconds']['mean']:.3f}",
        ]  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def shown(value: Mapping[str, float | None] | None, digits: int, times: float = 1.0) -> str:
    if value is None:
        return "–"
    if not math.isfinite(value["mean"]):
        return "diverged"
    spread = "" if value["spread"] is None else f" ± {times * value['spread']:.{digits}f}"
    return f"{times * value['mean']:.{digits}f}{spread}"


def to_json(value: Any) -> Any:
    """The same for a file: what is infinite, as the loss of a run that diverged, becomes null, as JSON has no word."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: to_json(own) for key, own in value.items()}
    return [to_json(own) for own in value] if isinstance(value, list | tuple) else value


def rows_from_json(rows: Iterable[Row]) -> list[dict[str, Any]]:
    """Rows as they were before `to_json`."""
    losses = ("tuning", "validation", "training")
    return [{**row, **{name: math.inf if row[name] is None else row[name] for name in losses}} for row in rows]


def _key(row: Row) -> tuple[str, float, int]:
    """Rates that were written and read again are the same to six digits."""
    return row["optimizer"], float(f"{row['rate']:.6g}"), row["seed"]
