"""Do prior predictions of ordinary scenes keep what the base model knows while it learns a concept beside them?

Every picture of the concept is seen equally often in all trainings; those beside other scenes have twice the steps.
"""

from collections.abc import Mapping, Sequence

from benchmarks.forgetting.Learner import Measures
from benchmarks.forgetting.plan import seed_by_seed, task_of
from benchmarks.forgetting.Results import Results
from benchmarks.forgetting.Setting import Setting
from benchmarks.forgetting.tasks import ALONE, BESIDE, BESIDE_PRIOR, PRIOR
from benchmarks.forgetting.trade_off import Spread, difference, judged, scores
from benchmarks.transfer.runner import Wanted
from benchmarks.transfer.Setting import LORA
from benchmarks.transfer.tasks import ONE

PRIOR_METHODS = (LORA,)
# that of the preset that is trained
RANK = 32
NOTE = (
    "Concept: the share of the base's loss on held-out pictures of the concept that training removed. Kept: what "
    "captions of new ordinary scenes still tell, the loss with another scene's caption less that with the own one, "
    "over the same of the base. Concept seen: the share of sampled pictures of the concept in which it is found. "
    "Scenes right: the share of what was asked for in sampled ordinary scenes that is right. Means over seeds, with "
    "the lowest and highest in brackets."
)


def prior_settings(method: str, quick: bool) -> list[Setting]:
    """The concept alone, and beside ordinary scenes of each type."""
    task = task_of(PRIOR, quick)
    return [Setting(task, ONE, method, RANK, pictures=True, beside=beside) for beside in BESIDE]


def prior_questions(methods: Sequence[str], seeds: Sequence[int], quick: bool) -> list[Wanted]:
    """All trainings with the first seed, then with the others."""
    return seed_by_seed(seeds, [setting for method in methods for setting in prior_settings(method, quick)])


def figures(measures: Measures, base: Measures) -> dict[str, float] | None:
    """The figures of the table, by column; None of a run that diverged."""
    both = scores(measures, base)
    if both is None:
        return None
    concept, kept, _ = both
    pictures = measures["pictures"]
    return {"concept": concept, "kept": kept, "concept seen": pictures["concept"], "scenes right": pictures["ordinary"]}


def figures_of(results: Results, setting: Setting) -> dict[int, Mapping[str, float]]:
    """seed -> figures of the runs that converged."""
    base = results.base.get((setting.task, setting.width))
    found = {seed: figures(own, base) for seed, own in results.measures(setting).items() if base is not None}
    return {seed: own for seed, own in found.items() if own is not None}


def prior_report(results: Results, methods: Sequence[str], quick: bool) -> str:
    """Markdown: a table of the trainings of each method, and what it says."""
    sections = []
    for method in methods:
        known = {setting.beside: figures_of(results, setting) for setting in prior_settings(method, quick)}
        rows = {beside: own for beside, own in known.items() if own}
        if rows:
            sections += [_table(results, method, rows, quick), *_verdicts(method, known)]
    return "\n\n".join([NOTE, *sections]) if sections else ""


def _table(results: Results, method: str, rows: Mapping[str, Mapping[int, Mapping[str, float]]], quick: bool) -> str:
    columns = list(next(iter(next(iter(rows.values())).values())))
    lines = [f"| {method} {RANK} beside | {' | '.join(columns)} |", "|---|" + "---:|" * len(columns)]
    for beside, own in rows.items():
        cells = [Spread.of([figure[name] for figure in own.values()]).text() for name in columns]
        lines.append(f"| {'nothing' if beside == ALONE else beside} | {' | '.join(f'{cell} %' for cell in cells)} |")
    pictures = _base_pictures(results, method, quick)
    cells = [0.0, 1.0, pictures["concept"], pictures["ordinary"]]
    lines.append(f"| (the base model) | {' | '.join(f'{100 * cell:.1f} %' for cell in cells)} |")
    return "\n".join(lines)


def _base_pictures(results: Results, method: str, quick: bool) -> Mapping[str, float]:
    for setting in prior_settings(method, quick):
        for own in results.measures(setting).values():
            return own["base_pictures"]
    raise AssertionError("a table has rows")


def _verdicts(method: str, known: Mapping[str, Mapping[int, Mapping[str, float]]]) -> list[str]:
    """What prior predictions change against the concept alone."""
    found = []
    for name in ("concept", "kept", "concept seen", "scenes right"):
        one, other = ({seed: own[name] for seed, own in known[beside].items()} for beside in (BESIDE_PRIOR, ALONE))
        change = difference(one, other)
        if change is not None:
            verdict = judged(change, "more", "less", "no clear difference")
            found.append(f"{name}: {verdict} ({change.text()} points, {change.seeds} seeds)")
    return [f"{method}, prior predictions against the concept alone: {'; '.join(found)}."] if found else []
