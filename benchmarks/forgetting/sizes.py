"""Which form of weight decay keeps its best strength over LoRA ranks, OFT blocks and widths of the base model?"""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from benchmarks.forgetting.kinds import CENTERED, FISHER, SCALED, STANDARD
from benchmarks.forgetting.plan import task_of, trial_of
from benchmarks.forgetting.Results import Results
from benchmarks.forgetting.Setting import Setting
from benchmarks.forgetting.tasks import SIZES
from benchmarks.training.sweep import best_rate, spread_of
from benchmarks.transfer.runner import Wanted, single
from benchmarks.transfer.Setting import FULL, LORA, OFT
from benchmarks.transfer.tasks import ONE, present_widths

RANKS = BLOCKS = (4, 16, 64)
SIZE_METHODS = (LORA, OFT, FULL)
# Decay a step. The optimum of a search ends where both neighbours are worse, so a grid is wide rather than fine.
GRID = (0.0003, 0.001, 0.003, 0.01, 0.03)
# form -> by what its grid is multiplied, so that all begin near the same decay: `scaled_wd` divides by a width or b/2,
# Fisher's form multiplies by 1/RMS of what decays
FORMS: Mapping[str, Mapping[str, float]] = {
    LORA: {STANDARD: 1.0, SCALED: 128.0, FISHER: 0.03},
    OFT: {STANDARD: 1.0, SCALED: 8.0, FISHER: 0.03},
    FULL: {STANDARD: 0.1, SCALED: 12.8, CENTERED: 1.0, FISHER: 0.003},
}
# less of an improvement than this share of the loss says nothing about a best strength
LEAST_GAIN = 0.005


def size_axis(method: str, quick: bool) -> list[Setting]:
    """The sizes of a method without decay: LoRA ranks, OFT blocks, or widths of fully trained models."""
    task = task_of(SIZES, quick)
    if method == FULL:
        return [Setting(task, width, FULL, 0) for width in ([ONE] if quick else present_widths())]
    return [Setting(task, ONE, method, size) for size in (RANKS if method == LORA else BLOCKS)]


def grid(method: str, form: str, quick: bool = False) -> list[float]:
    """The strengths of a form, increasing."""
    factor = FORMS[method][form]
    return [float(f"{factor * strength:.4g}") for strength in (GRID[1:4] if quick else GRID)]


def size_questions(methods: Sequence[str], seeds: Sequence[int], quick: bool) -> list[Wanted]:
    """No decay and every form at every strength, for each size; method after method, the first seed first."""
    found = []
    for seed in seeds:
        for method in methods:
            for plain in size_axis(method, quick):
                decayed = [
                    replace(plain, kind=form, strength=strength)
                    for form in FORMS[method]
                    for strength in grid(method, form, quick)
                ]
                found += [single(trial_of(setting, seed)) for setting in [plain, *decayed]]
    return found


@dataclass(frozen=True)
class BestStrength:
    """The best strength of a form and size on held-out pictures.

    Attributes:
        strength: median over seeds of the lowest point of a parabola through the best strength and its neighbours.
        gain: median of the share of the loss without decay that it removes; below 0 where decay only harms.
        edge: whether it was at an end of the grid for any seed, so that the best one may lie beyond.
        seeds: how many there are.
    """

    strength: float
    gain: float
    edge: bool
    seeds: int


def held_out_losses(results: Results, plain: Setting, form: str, seed: int) -> dict[float, float]:
    """strength -> loss on held-out pictures, without decay at 0; infinite where a run diverged."""
    found = {}
    for setting in results.settings(plain.task):
        if setting == plain or setting == replace(plain, kind=form, strength=setting.strength):
            own = results.measures(setting).get(seed)
            if own is not None:
                found[setting.strength] = math.inf if own["held_out"] is None else own["held_out"]
    return dict(sorted(found.items()))


def best_of_size(results: Results, plain: Setting, form: str) -> BestStrength | None:
    """None unless no decay and three strengths were trained with one seed at least."""
    strengths, gains, edges = [], [], []
    for seed in results.measures(plain):
        losses = held_out_losses(results, plain, form, seed)
        without = losses.pop(0.0)
        if len(losses) < 3 or not math.isfinite(min(losses.values())) or not math.isfinite(without):
            continue
        tried = list(losses)
        least = min(tried, key=losses.__getitem__)
        strengths.append(best_rate(tried, list(losses.values())))
        gains.append(1 - losses[least] / without)
        edges.append(least in (tried[0], tried[-1]))
    if not strengths:
        return None
    return BestStrength(statistics.median(strengths), statistics.median(gains), any(edges), len(strengths))


def size_spread(results: Results, method: str, form: str, quick: bool) -> float | None:
    """The largest best strength over the smallest, of the sizes where decay gains; None for fewer than two."""
    found = [best_of_size(results, plain, form) for plain in size_axis(method, quick)]
    known = [own.strength for own in found if own is not None and own.gain >= LEAST_GAIN]
    return spread_of(known) if len(known) > 1 else None


def size_label(plain: Setting) -> str:
    """As "LoRA 16" or "full, width 1/2"."""
    return f"{plain.method} {plain.size}" if plain.size else f"{plain.method}, width {plain.width}"


def size_report(results: Results, methods: Sequence[str], quick: bool) -> str:
    """Markdown: best strengths by form and size with their spread, and a verdict for each method."""
    sections = []
    for method in methods:
        axis = size_axis(method, quick)
        shown = {form: [best_of_size(results, plain, form) for plain in axis] for form in FORMS[method]}
        if not any(any(own) for own in shown.values()):
            continue
        lines = [f"| form | {' | '.join(map(size_label, axis))} | spread |", "|---|" + "---:|" * (len(axis) + 1)]
        for form, found in shown.items():
            spread = size_spread(results, method, form, quick)
            last = "–" if spread is None else f"{spread:.2f}"
            lines.append(f"| {form} | {' | '.join(map(_cell, found))} | {last} |")
        sections.append("\n".join([*lines, "", _verdict(results, method, quick)]))
    if not sections:
        return ""
    note = (
        "Best decay a step on held-out pictures of the concept, and the share of the loss without decay that it "
        f"removes (below {100 * LEAST_GAIN:g} % it counts as no gain and stays out of spreads). Centered decay of LoRA "
        "and OFT is standard decay: both start from zero."
    )
    return "\n\n".join([note, *sections])


def _cell(best: BestStrength | None) -> str:
    if best is None:
        return "–"
    end = ", end of the grid" if best.edge else ""
    return f"{best.strength:.3g} ({100 * best.gain:+.1f} %{end})"


def _verdict(results: Results, method: str, quick: bool) -> str:
    spreads = {form: size_spread(results, method, form, quick) for form in FORMS[method]}
    known = {form: spread for form, spread in spreads.items() if spread is not None}
    if not known:
        return f"{method}: decay helps at fewer than two sizes, so nothing is said of which form keeps its strength."
    order = sorted(known, key=known.__getitem__)
    told = ", ".join(f"{form} within {known[form]:.2f}×" for form in order)
    return f"{method}: best strengths of {told}. {order[0]} keeps its best strength most nearly."
