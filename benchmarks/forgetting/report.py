"""The tables of a measurement of forgetting in Markdown, with sentences that its figures decide."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from benchmarks.forgetting.kinds import (
    CENTERED,
    FROM_ZERO,
    FULL_MODE,
    KINDS,
    MODES,
    NONE,
    RATE,
    STANDARD,
)
from benchmarks.forgetting.plan import ADAPTER_SIZES, JUDGED, MODE_STRENGTHS, task_of
from benchmarks.forgetting.Results import Results
from benchmarks.forgetting.Setting import Setting
from benchmarks.forgetting.tasks import FORGETTING
from benchmarks.forgetting.trade_off import (
    LEVELS,
    THRESHOLD,
    Spread,
    best_strength,
    difference,
    judged,
    kept_at_level,
    scores,
    strengths_of,
)
from benchmarks.transfer.tasks import ONE

NOTE = (
    "Concept: the share of the base's loss on held-out pictures of the concept that training removed, in brackets on "
    "its training pictures. Kept: what captions of new ordinary scenes still tell, the loss with another scene's "
    "caption less that with the own one, over the same of the base; 100 % forgets nothing. Ordinary: the base's loss "
    "on these scenes over the trained model's; above 100 % where any training still improves how the base denoises. "
    "Drift: ‖W − W₀‖/‖W₀‖ of the trained layers. Means over seeds, with the lowest and highest in brackets."
)


def kind_of(method: str, kind: str, quick: bool) -> Setting:
    """The kind of a method; of which strength is left open."""
    return Setting(task_of(FORGETTING, quick), ONE, method, ADAPTER_SIZES[method], kind)


def report(results: Results, methods: Sequence[str], quick: bool) -> str:
    """Everything that is known of some methods."""
    sections = [NOTE]
    for method in methods:
        if not results.measures(kind_of(method, NONE, quick)):
            continue
        sections += [
            f"**{method}**", _strength_table(results, method, quick), _level_table(results, method, quick),
            _verdicts(results, method, quick), _mode_table(results, method, quick),
            _picture_table(results, method, quick),
        ]  # fmt: skip
    return "\n\n".join(section for section in sections if section)


def _row(results: Results, setting: Setting) -> list[str] | None:
    """Concept score, kept, ordinary loss and drift of a setting; None if no run of it is known."""
    measured = list(results.measures(setting).values())
    if not measured:
        return None
    base = results.base[setting.task, setting.width]
    both = [scores(own, base) for own in measured]
    if None in both:
        return [f"diverges ({both.count(None)} of {len(both)})", "–", "–", "–"]
    held_out, kept, loss = (Spread.of(values) for values in zip(*both, strict=True))
    training = Spread.of([1 - own["training"] / base["training"] for own in measured])
    drift = Spread.of([own["drift"] for own in measured])
    return [f"{held_out.text()} [{100 * training.mean:.1f}]", kept.text(), loss.text(), drift.text()]


def _strength_table(results: Results, method: str, quick: bool) -> str:
    lines = ["| decay | a step | concept, % | kept, % | ordinary, % | drift, % |", "|---|---:|---:|---:|---:|---:|"]
    for kind in KINDS:
        for setting in strengths_of(results, kind_of(method, kind, quick)):
            row = _row(results, setting) if setting.kind == kind else None
            if row:
                shown = f"rate × {setting.strength:g}" if kind == RATE else f"{setting.strength:g}"
                lines.append(f"| {kind} | {shown} | {' | '.join(row)} |")
    return "\n".join(lines)


def _levels(results: Results, method: str, quick: bool) -> dict[str, list[dict[int, float]]]:
    """kind -> for each of `LEVELS` seed -> what it keeps there; kinds without a result are left out."""
    found = {k: [kept_at_level(results, kind_of(method, k, quick), level) for level in LEVELS] for k in KINDS}
    return {kind: own for kind, own in found.items() if any(own)}


def _level_table(results: Results, method: str, quick: bool) -> str:
    found = _levels(results, method, quick)
    heads = " | ".join(f"at {100 * level:g} %" for level in LEVELS)
    lines = [
        "Kept, %, at a share of the concept score without decay, straight lines between strengths:\n",
        f"| decay | {heads} |", "|---|" + "---:|" * len(LEVELS),
    ]  # fmt: skip
    for kind, own in found.items():
        cells = (Spread.of(list(kept.values())).text() if kept else "–" for kept in own)
        lines.append(f"| {kind} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _verdicts(results: Results, method: str, quick: bool) -> str:
    """What keeps more than standard decay, and than a lower rate, at equal concept scores."""
    found = _levels(results, method, quick)
    lines = [
        f"More or less: all seeds agree and the mean differs by over {100 * THRESHOLD:g} points; else no difference."
    ]
    for other, title in ((STANDARD, "standard decay"), (RATE, "a lower learning rate without decay")):
        for kind in found:
            if kind in (NONE, RATE, other) or other not in found:
                continue
            told = [
                f"{judged(own, 'more', 'less', 'no difference')} ({own.text()} points) at {100 * level:g} %"
                for level, one, two in zip(LEVELS, found[kind], found[other], strict=True)
                if (own := difference(one, two)) is not None
            ]
            if told:
                lines.append(f"- {method}, {kind} decay keeps against {title}: {', '.join(told)} of the concept.")
    if method in FROM_ZERO:
        lines.append(f"- {method} starts from zero, so centered decay of it is standard decay, bit for bit.")
    return "\n".join(lines)


def known_modes(results: Results, method: str, quick: bool) -> dict[str, Setting]:
    if method not in MODE_STRENGTHS:
        return {}
    centered = replace(kind_of(method, CENTERED, quick), strength=MODE_STRENGTHS[method])
    found = {mode: replace(centered, mode=mode) for mode in MODES}
    return {mode: setting for mode, setting in found.items() if results.measures(setting)}


def anchor_figures(results: Results, setting: Setting) -> dict[str, Spread]:
    """Of the stored starts, over seeds: `bytes`, `bytes_per_value`, `decode_error`, `pull_error`, `left_range`, and
    `drift` of the model; empty if nothing was stored.
    """
    anchors: list[dict[str, Any]] = []
    for own in results.measures(setting).values():
        if own["anchor"] is not None and own["drift"] is not None:
            anchors.append({**own["anchor"], "drift": own["drift"]})
    if not anchors:
        return {}
    figures = {name: Spread.of([own[name] for own in anchors if own[name] is not None]) for name in (
        "bytes", "decode_error", "pull_error", "drift")}  # fmt: skip
    figures["bytes_per_value"] = Spread.of([own["bytes"] / own["values"] for own in anchors])
    figures["left_range"] = Spread.of([own["left_range"] / own["values"] for own in anchors])
    return figures


def _mode_table(results: Results, method: str, quick: bool) -> str:
    modes = known_modes(results, method, quick)
    if FULL_MODE not in modes:
        return ""
    lines = [
        f"Storage of the start, centered decay of {MODE_STRENGTHS[method]:g} a step:\n",
        "| mode | bytes | a value | error of p₀, % | error of the pull, % | left the range, % | concept, % | kept, % "
        "| ordinary, % | drift, % |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for mode, setting in modes.items():
        own, row = anchor_figures(results, setting), _row(results, setting)
        if own and row:
            figures = [own[name].text(2) for name in ("decode_error", "pull_error", "left_range")]
            size = [f"{own['bytes'].mean:,.0f}", f"{own['bytes_per_value'].mean:.2f}"]
            lines.append(f"| {mode} | {' | '.join([*size, *figures, *row])} |")
    return "\n".join([*lines, "", *_mode_verdicts(results, method, modes)])


def _mode_verdicts(results: Results, method: str, modes: dict[str, Setting]) -> list[str]:
    """Which mode is as good as `full`, in what is learned and what is kept."""
    lines = []
    for mode, setting in modes.items():
        if mode == FULL_MODE:
            continue
        base = results.base[setting.task, setting.width]
        apart = []
        for place in (0, 1):
            one, two = ({seed: both[place] for seed, own in results.measures(s).items() if (both := scores(own, base))}
                        for s in (setting, modes[FULL_MODE]))  # fmt: skip
            apart.append(difference(one, two))
        if None in apart:
            lines.append(f"- {method}, {mode}: nothing to compare, a run diverged.")
            continue
        worse = [name for name, own in zip(("concept", "kept"), apart, strict=True) if judged(own, "", "w", "") == "w"]
        verdict = f"worse than `full` ({' and '.join(worse)})" if worse else "as good as `full`"
        told = ", ".join(f"{name} {own.text(2)}" for name, own in zip(("concept", "kept"), apart, strict=True))
        lines.append(f"- {method}, {mode}: {verdict}; points apart from it: {told}.")
    return lines


def _picture_table(results: Results, method: str, quick: bool) -> str:
    """Of the best strength of each kind: what sampled pictures show."""
    lines = []
    for kind in JUDGED:
        setting = best_strength(results, kind_of(method, kind, quick))
        measured = results.measures(replace(setting, pictures=True)) if setting else {}
        for seed, own in measured.items():
            shown = own.get("pictures")
            if shown is None:
                continue
            if not lines:
                base = own["base_pictures"]
                lines = [
                    "Sampled pictures at each kind's best strength: the concept is seen, and what was asked for in "
                    "ordinary scenes is right.\n",
                    "| decay | a step | seed | concept seen, % | ordinary right, % |", "|---|---:|---:|---:|---:|",
                    f"| base model | – | – | {100 * base['concept']:.1f} | {100 * base['ordinary']:.1f} |",
                ]  # fmt: skip
            figures = f"{100 * shown['concept']:.1f} | {100 * shown['ordinary']:.1f}"
            lines.append(f"| {kind} | {setting.strength:g} | {seed} | {figures} |")
    return "\n".join(lines)
