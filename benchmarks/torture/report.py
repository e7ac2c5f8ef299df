"""What a campaign came to, as JSON and as a Markdown table."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from benchmarks.torture.disks import DiskTrial
from benchmarks.torture.flips import Flips
from benchmarks.torture.ForkedRun import has_traceback
from benchmarks.torture.inputs import Tally
from benchmarks.torture.kills import PHASES, Chain
from benchmarks.torture.pairs import PairTrial


def of_kills(chains: Sequence[Chain]) -> dict[str, Any]:
    """Kills by case and phase, and whose bytes at the end were those of the whole run."""
    kills = [kill for chain in chains for kill in chain.kills]
    return {
        "kills": len(kills),
        "same bytes": sum(len(chain.kills) for chain in chains if chain.same),
        "chains": {chain.case: {"kills": len(chain.kills), "same bytes": chain.same} for chain in chains},
        "phases": {phase: sum(kill.phase == phase for kill in kills) for phase in PHASES},
        "ended before the kill": sum(chain.missed for chain in chains),
        "tracebacks": sum(has_traceback(chain.words) for chain in chains),
    }


def of_disks(trials: Sequence[DiskTrial]) -> dict[str, Any]:
    return {
        "tried": sum(trial.tried for trial in trials), "clean": sum(trial.clean for trial in trials),
        "tracebacks": sum(trial.traceback for trial in trials),
        "trials": {f"{t.place}, {t.trouble}": "clean" if t.clean else asdict(t) for t in trials},
    }  # fmt: skip


def of_flips(found: Mapping[str, Flips]) -> dict[str, Any]:
    return {name: asdict(flips) for name, flips in found.items()}


def of_pairs(found: Mapping[str, PairTrial]) -> dict[str, Any]:
    return {name: asdict(trial) for name, trial in found.items()}


def of_inputs(found: Mapping[str, Tally]) -> dict[str, Any]:
    return {name: {"tried": tally.tried, **asdict(tally)} for name, tally in found.items()}


def is_clean(result: Mapping[str, Any]) -> bool:
    """Whether nothing was lost and nothing broke in any part of a campaign."""
    kills, disks = result.get("kills"), result.get("disks")
    flips, pairs = (result.get(name, {}) for name in ("flips", "pairs"))
    inputs = result.get("inputs", {}) | result.get("runs", {})
    return all((
        kills is None or (kills["kills"] == kills["same bytes"] and not kills["tracebacks"]),
        disks is None or disks["tried"] == disks["clean"],
        not any(own["missed"] or own["broken"] for own in flips.values()),
        all(own["clean"] for own in pairs.values()),
        not any(own["broken"] or own["hangs"] for own in inputs.values()),
    ))  # fmt: skip


def table(result: Mapping[str, Any]) -> str:
    """The counts of a campaign."""
    lines = ["| what | tried | well | else |", "|---|---:|---:|---|"]
    if kills := result.get("kills"):
        where = ", ".join(f"{count} {phase}" for phase, count in kills["phases"].items())
        lines.append(f"| kills, then the bytes of the whole run | {kills['kills']} | {kills['same bytes']} | {where} |")
        lines += [
            f"| – {case} | {own['kills']} | {own['kills'] if own['same bytes'] else 0} | |"
            for case, own in kills["chains"].items()
        ]
    if disks := result.get("disks"):
        names = "; ".join(disks["trials"])
        lines.append(
            f"| disks that fail, told in words, then the same bytes | {disks['tried']} | {disks['clean']} | {names} |"
        )
    for name, own in result.get("flips", {}).items():
        lines.append(
            f"| damaged files: {name} | {own['tried']} | {own['noticed']} | {len(own['missed'])} missed, "
            f"{len(own['broken'])} broken |"
        )
    for name, own in result.get("pairs", {}).items():
        lines.append(f"| two runs at once: {name} | 1 | {int(own['clean'])} | exit statuses {own['statuses']} |")
    for name, own in (result.get("inputs", {}) | result.get("runs", {})).items():
        well, slowest = own["used"] + own["refused"], own["slowest"]
        lines.append(
            f"| hostile {name} | {own['tried']} | {well} | {own['used']} used, {own['refused']} refused in words, "
            f"{len(own['broken'])} broken, {len(own['hangs'])} hangs{f'; slowest {slowest:.1f} s' if slowest else ''} |"
        )
    return "\n".join(lines)
