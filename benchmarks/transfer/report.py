"""The tables of a measurement of transfer, in Markdown."""

from collections.abc import Sequence

from benchmarks.transfer.questions import settings_of
from benchmarks.transfer.Results import Results
from benchmarks.transfer.summary import best_rate, rate_table, spread_table, transferred_rate


def report(results: Results, tasks: Sequence[str], rules: Sequence[str]) -> str:
    """Spreads of everything, then for each task and rule the best rates and what the transferred rate costs."""
    sections = [spread_table(results, tasks, rules)]
    for task in tasks:
        for rule in rules:
            for scaled in (True, False):
                settings = settings_of(task, rule, scaled)
                if not any(best_rate(results, setting) for setting in settings):
                    continue
                rate = transferred_rate(results, settings[0])
                kind = "scaled" if scaled else "plain"
                told = "its best rate is not known" if rate is None else f"best for LoRA 16: {rate:g}"
                sections.append(
                    f"**{task}, {rule}, {kind} steps** ({told})\n\n{rate_table(results, task, rule, scaled)}"
                )
    return "\n\n".join(sections)
