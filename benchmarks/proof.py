"""The whole proof of what the project claims, as stages: each is a script that goes on where it was stopped."""

import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.measuring import ROOT

COORDINATES = "training_presets/Tiny/#tiny LoRA ADAMW_ADV.json"
# what a script says by its exit status that is no fault
OVER_BOUND = 1


@dataclass(frozen=True)
class Stage:
    """One script of the proof.

    Attributes:
        name: on the command line.
        script: in scripts/, without ending.
        arguments: folder of numbers, folder of pictures -> its arguments.
        timed: whether it takes --minutes, --jobs and --quick.
        made: a file or folder below the repository that makes it needless; empty: none.
        finds: exit statuses by which it tells what it found.
    """

    name: str
    script: str
    arguments: Callable[[Path, Path], Sequence[str]]
    timed: bool = True
    made: str = ""
    finds: Sequence[int] = field(default=())

    def command(self, numbers: Path, pictures: Path, quick: bool, jobs: int, minutes: float | None) -> list[str]:
        """The command line of the script, the interpreter first."""
        command = [sys.executable, f"scripts/{self.script}.py", *self.arguments(numbers, pictures)]
        if self.timed:
            command += ["--jobs", str(jobs)]
            command += ["--quick"] if quick else []
            command += ["--minutes", f"{minutes:g}"] if minutes is not None else []
        return command


def _measurement(name: str, script: str, *more: str) -> Stage:
    """A script with the usual arguments, whose numbers are `<name>.jsonl` and whose tables are `<name>.md`."""

    def arguments(numbers: Path, pictures: Path) -> list[str]:
        own = ["--output", f"{numbers / name}.jsonl", "--tables", f"{numbers / name}.md", "--plots", str(pictures)]
        return [*more, *own]

    return Stage(name, script, arguments)


STAGES: tuple[Stage, ...] = (
    Stage(
        "concept", "make_tiny_concept", lambda numbers, pictures: ["--concept", "boat"], timed=False,
        made="workspace/second_concept.json",
    ),
    Stage(
        "widths", "make_tiny_widths", lambda numbers, pictures: ["--widths", "quarter", "half", "double"], timed=False,
        made="workspace/tiny_widths/double",
    ),
    Stage(
        "coord_check", "coord_check",
        lambda numbers, pictures: [
            COORDINATES, "--json", str(numbers / "coord_check.json"), "--plot", str(pictures / "coord_check.png"),
        ],
        timed=False, finds=(OVER_BOUND,),
    ),
    _measurement("lr_transfer", "lr_transfer"),
    _measurement("forgetting", "forgetting"),
    _measurement("forgetting_prior", "forgetting", "--question", "prior"),
    _measurement("decay_sizes", "forgetting", "--question", "sizes"),
    _measurement("stability", "stability"),
)  # fmt: skip
# the slice needs neither of them
NOT_QUICK = ("concept", "widths")


def run_proof(
    stages: Sequence[Stage],
    numbers: Path,
    pictures: Path,
    *,
    quick: bool,
    jobs: int,
    minutes: float | None,
    tell: Callable[[str], None],
) -> list[str]:
    """Runs stages one after the other; returns the names of those that failed.

    Args:
        stages: of `STAGES`.
        numbers, pictures: folders; made if they are not there.
        quick: a slice of each, within ten minutes on two idle cores.
        jobs: trainings at a time.
        minutes: begin no training after so many; None: never stop.
        tell: gets a line for each stage.
    """
    start, failed = time.monotonic(), []
    for folder in (numbers, pictures):
        folder.mkdir(parents=True, exist_ok=True)
    for stage in stages:
        if (quick and stage.name in NOT_QUICK) or (stage.made and (ROOT / stage.made).exists()):
            continue
        left = None if minutes is None else minutes - (time.monotonic() - start) / 60
        if left is not None and left <= 0:
            tell(f"{stage.name}: not begun, the minutes are over; the same command goes on from here")
            continue
        begun = time.monotonic()
        status = subprocess.run(stage.command(numbers, pictures, quick, jobs, left), cwd=ROOT, check=False).returncode
        if status and status not in stage.finds:
            failed.append(stage.name)
        tell(f"{stage.name}: {(time.monotonic() - begun) / 60:.1f} minutes, exit status {status}")
    return failed
