"""kill -9 in real processes: what is resumed ends with the very bytes of the uninterrupted run.

With `--long` at ten moments, else at the first chain's five. The uninterrupted run and the first of each chain, which
is killed while it imports libraries, are started as users do; the others are forked.
"""

import random
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path

import pytest

# pauses after the moment that is waited for, so that kills fall anywhere in what follows it
RANDOM = random.Random(2026)
LAST_STEP = 12
OPTIONS = {
    "backup_after": 1,
    "backup_after_unit": "STEP",
    "rolling_backup": True,
    "rolling_backup_count": 2,
    "text_encoder": {"train": True, "gradient_checkpointing": False},
    "dropout_probability": 0.1,
    "ema": "CPU",
    "ema_update_step_interval": 2,
}
Moment = Callable[[object, float, set], bool]


def _in_time(share: float) -> tuple[str, Moment]:
    """At a share of the time that a whole run took until its first backup: imports, check, loading.

    A machine that has become less busy since starts faster: then at the first backup, while the run still lives.
    """

    def reached(run, elapsed: float, old: set) -> bool:
        return elapsed > share * run.start_seconds or any(path.name not in old for path in run.backups())

    return f"{share:.0%} of the start", reached


def _cached(count: int) -> tuple[str, Moment]:
    return (
        f"{count} latents cached",
        lambda run, elapsed, old: len(list((run.cache / "latents").rglob("*.safetensors"))) >= count,
    )


def _backups(count: int) -> tuple[str, Moment]:
    """After `count` backups of this process; older ones may have been removed meanwhile."""

    def reached(run, elapsed: float, old: set) -> bool:
        run.seen |= {path.name for path in run.backups() if not path.name.startswith(".")}
        return len(run.seen - old) >= count

    return f"{count} new backups", reached


def _writing() -> tuple[str, Moment]:
    return "a backup half written", lambda run, elapsed, old: any(path.name.startswith(".") for path in run.backups())


def _saving() -> tuple[str, Moment]:
    """The second backup after the last step is the one before saving."""

    def reached(run, elapsed: float, old: set) -> bool:
        run.seen |= {path.name for path in run.backups() if not path.name.startswith(".")}
        return sum(f"-backup-{LAST_STEP}-" in name for name in run.seen - old) >= 2 or run.output.exists()

    return "the end", reached


CHAINS = {
    "first": [_in_time(0.5), _cached(3), _writing(), _backups(2), _saving()],
    "second": [_in_time(RANDOM.uniform(0.7, 0.95)), _backups(1), _writing(), _backups(3), _backups(2)],
}
PAUSES = {name: [RANDOM.choice((0, 0, RANDOM.uniform(0, 0.05))) for _ in chain] for name, chain in CHAINS.items()}


def _kill_at(run, moment: Moment, pause: float) -> bool:
    """Runs until the moment and kills; False if the run was over before."""
    old = {path.name for path in run.backups()}
    run.seen = set(old)
    process = run.start("continue_last_backup=true")
    started = time.monotonic()
    try:
        while process.poll() is None:
            if moment(run, time.monotonic() - started, old):
                time.sleep(pause)
                process.kill()
                return process.wait() == -9
            time.sleep(0.002)
            assert time.monotonic() - started < 240, run.log
        return False
    finally:
        process.kill()
        process.wait()


def _kills(run, name: str, places: slice) -> list[str]:
    """Kills and resumes. Returns the moments of kills that hit a living process."""
    moments = list(zip(CHAINS[name], PAUSES[name], strict=True))[places]
    return [text for (text, moment), pause in moments if _kill_at(run, moment, pause)]


def _resumed_to_the_end(run) -> None:
    process = run.start("continue_last_backup=true")
    assert process.wait(timeout=240) == 0, run.log


def _measured_start(run) -> float:
    """Runs to the end; seconds until the first backup."""
    process, started, first = run.start(), time.monotonic(), None
    while process.poll() is None:
        first = first or (run.backups() and time.monotonic() - started)
        time.sleep(0.01)
    assert process.wait() == 0, run.log
    return first


@pytest.mark.timeout(900)
def test_kills_change_no_byte(make_run, script_server, long):
    whole = make_run("whole", own_cache=True)
    whole.write(**OPTIONS)
    seconds = _measured_start(whole)
    runs = {name: make_run(name, own_cache=True) for name in CHAINS if long or name == "first"}
    for run in runs.values():
        run.write(**OPTIONS)
        run.start_seconds = seconds
    hits = []
    with ThreadPoolExecutor(len(runs)) as pool:
        for started, places in ((nullcontext, slice(1)), (script_server.used, slice(1, None))):
            with started():
                for found in pool.map(lambda name, places=places: _kills(runs[name], name, places), runs):
                    hits += found
        with script_server.used():
            list(pool.map(_resumed_to_the_end, runs.values()))
    assert len(hits) == 5 * len(runs), f"every kill must hit a living run, {hits}"
    for name, run in runs.items():
        assert run.digest() == whole.digest(), f"chain {name}\n{run.log}"
        assert "Traceback" not in run.log
        left = run.backups()
        assert not [path for path in left if path.name.startswith(".")], "torn backups are removed by the next one"
        assert len(left) <= 2, "rolling backups count over resumes"
        assert not _leftovers(run.output.parent)


def _leftovers(folder: Path) -> list[Path]:
    """Files that are neither an adapter nor an older one that was set aside."""
    return [path for path in folder.iterdir() if path.stem not in ("lora", "lora-1", "lora-2")]
