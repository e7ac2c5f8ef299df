"""Two runs at once, in one workspace and in one cache."""

from dataclasses import dataclass
from pathlib import Path

from benchmarks.torture.ForkedRun import has_traceback
from benchmarks.torture.MiniatureRun import MiniatureRun


@dataclass(frozen=True)
class PairTrial:
    """What came of two runs that began at the same moment.

    Attributes:
        statuses: exit statuses of both.
        refusals: lines that name the run which holds the workspace.
        clean: whether all that was finished has the bytes of a run that was alone, and nothing printed a traceback.
    """

    statuses: tuple[int | None, int | None]
    refusals: int
    clean: bool


def one_workspace(root: Path, base: Path, images: Path) -> PairTrial:
    """Two processes of the same config. One trains, the other one is told who does."""
    alone, both = (MiniatureRun(root / name, base, images, {}) for name in ("alone", "both"))
    alone.finish_undisturbed()
    first, second = both.start(), both.start()
    statuses = (first.wait(300), second.wait(300))
    words = both.words()
    refusals = words.count("is used by another run")
    same = both.digest() == alone.digest() != ""
    # where the first was over before the second looked, both have trained, one after the other
    sound = sorted(map(str, statuses)) == ["0", "1"] and refusals == 1 or statuses == (0, 0) and refusals == 0
    return PairTrial(statuses, refusals, same and sound and not has_traceback(words))


def one_cache(root: Path, base: Path, images: Path, clear: bool) -> PairTrial:
    """Two runs with workspaces of their own and one new cache, of different resolutions if it is cleared."""
    options = [{"epochs": 3, "clear_cache_before_training": clear}, {"epochs": 3, "clear_cache_before_training": clear}]
    if clear:
        options[1]["resolution"] = "64"
    alone = [MiniatureRun(root / f"alone {n}", base, images, own) for n, own in enumerate(options)]
    both = [MiniatureRun(root / f"both {n}", base, images, own) for n, own in enumerate(options)]
    for run in alone:
        run.finish_undisturbed()
    shared = f"cache_dir={root / 'shared cache'}"
    processes = [run.start(shared) for run in both]
    statuses = (processes[0].wait(300), processes[1].wait(300))
    same = all(run.digest() == own.digest() != "" for run, own in zip(both, alone, strict=True))
    words = "".join(run.words() for run in both)
    return PairTrial(statuses, 0, statuses == (0, 0) and same and not has_traceback(words))
