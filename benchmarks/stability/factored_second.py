import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.stability.analysis import best_runs, compare_best, rates_within, shown, shown_rate, table
from benchmarks.stability.drawing import draw_rates, panels, save
from benchmarks.stability.Question import Question
from benchmarks.stability.Results import Results
from benchmarks.transfer.search import rate_of
from benchmarks.transfer.Setting import LORA, Setting
from benchmarks.transfer.tasks import ONE

FULL, FACTORED = FORMS = ("full", "factored")
# numbers of rates on the grid, a factor of 2 apart, over three decades
RATES: Mapping[str, range] = {"scaled": range(-2, 20, 2), "plain": range(-8, 14, 2)}
# the part of the best improvement that a rate may lose
LOST = 0.1
RANK = 16


class FactoredSecond(Question):
    """The factored second moment over three decades of learning rates."""

    letter = "b"
    name = "factored_2nd"
    title = "Factored second moment (ADAMW_ADV, LoRA 16) over three decades of rates"

    def cases(self, quick: bool = False) -> Sequence[str]:
        return [f"{steps} {form}" for steps in RATES for form in FORMS]

    def options(self, case: str) -> dict[str, Any]:
        steps, form = case.split()
        setting = Setting("lumo", ONE, "ADAMW_ADV", steps == "scaled", LORA, RANK)
        return setting.options(factored_2nd=form == FACTORED)

    def expected_rate(self, case: str) -> float:
        return rate_of(list(RATES[case.split()[0]])[len(RATES[case.split()[0]]) // 2])

    def next_rates(self, case: str, found: Mapping[float, float]) -> list[float]:
        """All of them: a range is asked for, not the best rate alone."""
        return [rate for k in RATES[case.split()[0]] if (rate := rate_of(k)) not in found]

    def quick_rates(self, case: str) -> list[float]:
        return self.next_rates(case, {})[2::4]

    def report(self, results: Results) -> list[str]:
        rows, sentences = [], []
        for steps in RATES:
            widths = {form: self._widths(results, steps, form) for form in FORMS}
            for form in FORMS:
                best = best_runs(results, self.letter, f"{steps} {form}")
                if best:
                    rows.append([
                        steps, form, shown_rate(best), shown(run.measured.loss for run in best.values()),
                        shown_widths([own for own, _ in widths[form].values()]),
                        shown_widths([shared for _, shared in widths[form].values()]),
                    ])  # fmt: skip
            compared = compare_best(results, self.letter, f"{steps} {FACTORED}", f"{steps} {FULL}")
            if compared is not None:
                told = compared.told(
                    f"{steps.capitalize()} steps, factored at its best rate", "the full moment at its own"
                )
                sentences.append(f"{told} {width_verdict(widths[FACTORED], widths[FULL])}")
        titles = [
            "steps", "second moment", "best rate", "loss there",
            f"rates within {100 * LOST:g} % of its own best improvement",
            f"within {100 * LOST:g} % of the better of both",
        ]  # fmt: skip
        return [table(titles, rows), *sentences] if rows else []

    def _widths(self, results: Results, steps: str, form: str) -> dict[int, tuple["Width", "Width"]]:
        """seed -> (width by the case's own best loss, by the better of both forms)."""
        found = {}
        case = f"{steps} {form}"
        for seed in results.seeds(self.letter, case):
            losses = results.losses(self.letter, case, seed)
            untrained = next(iter(results.rows(self.letter, case, seed).values())).untrained
            both = [loss for own in FORMS for loss in results.losses(self.letter, f"{steps} {own}", seed).values()]
            found[seed] = tuple(
                rates_within(losses, untrained - (1 - LOST) * (untrained - least))
                for least in (min(losses.values()), min(both))
            )
        return found

    def draw(self, results: Results, path: Path) -> None:
        figure, (line,) = panels(1, len(RATES))
        for axes, steps in zip(line, RATES, strict=True):
            cases = {f"{steps} {form}": f"{form} second moment" for form in FORMS}
            draw_rates(axes, results, self.letter, cases, f"ADAMW_ADV, LoRA {RANK}, {steps} steps")
        save(figure, path)


# lowest and highest rate, and whether the range goes on; None: no rate is that good
Width = tuple[float, float, bool] | None


def octaves(width: Width) -> float:
    """How often the lowest rate can be doubled up to the highest; 0 for no range."""
    return math.log2(width[1] / width[0]) if width else 0.0


def shown_widths(widths: Sequence[Width]) -> str:
    """Ratios of highest to lowest rate, mean and range over seeds, and the rates of the first seed."""
    if not widths:
        return "–"
    known = [width for width in widths if width]
    open_ = "at least " if any(width[2] for width in known) else ""
    ratios = [2 ** octaves(width) if width else 0.0 for width in widths]
    first = f"; {known[0][0]:.2g}–{known[0][1]:.2g}" if known else ""
    return f"{open_}{shown(ratios, '.1f')}×{first}"


def width_verdict(own: Mapping[int, tuple[Width, Width]], full: Mapping[int, tuple[Width, Width]]) -> str:
    """Whether the range of rates at the common level is wider, in octaves; it must be by a tenth and at each seed."""
    seeds = sorted(own.keys() & full.keys())
    pairs = [(octaves(own[seed][1]), octaves(full[seed][1])) for seed in seeds]
    if not pairs or not all(there for _, there in pairs):
        return ""
    shares = [here / there - 1 for here, there in pairs]
    mean = statistics.fmean(shares)
    word = "no difference"
    if abs(mean) >= 0.1 and (min(shares) > 0 or max(shares) < 0):
        word = "wider" if mean > 0 else "narrower"
    return (
        f"Its range of rates is **{word}**: {100 * mean:+.0f} % in octaves (at least 10 %, and of one sign at each of "
        f"{len(seeds)} seeds, would count)."
    )
