"""Kills at random points: whatever was killed, and in the middle of what, ends in the bytes of the whole run."""

import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from benchmarks.torture.ForkedRun import ForkedRun, train_script
from benchmarks.torture.MiniatureRun import MiniatureRun

TEXT_ENCODER = {"train": True, "learning_rate": 0.002, "gradient_checkpointing": False}
EVERYTHING = {
    "optimizer": "ADAMW_ADV", "scaled_optm": True, "state_precision": "int8_sr", "kourkoutas_beta": True,
    "orthogonal_gradient": "per_rank", "fisher_wd": True, "cautious_wd": True, "weight_decay": 0.01, "nesterov": True,
    "fused_back_pass": True,
}  # fmt: skip
# what is trained, with what
CASES: Mapping[str, Mapping[str, Any]] = {
    "LoRA, AdamW, EMA, text encoder": {"text_encoder": TEXT_ENCODER, "ema": "CPU", "dropout_probability": 0.1},
    "LoRA, ADAMW_ADV with every option": {"lora_weight_dtype": "BFLOAT_16", "optimizer": EVERYTHING},
    "DoRA, LION_ADV, accumulation": {
        "lora_decompose": True, "gradient_accumulation_steps": 2, "epochs": 20,
        "optimizer": {"optimizer": "LION_ADV", "scaled_optm": True, "freeze_on_flip": True},
    },
    "OFT, ADAMW_ADV": {
        "peft_type": "OFT_2", "oft_block_size": 4, "oft_scaled": True,
        "optimizer": {"optimizer": "ADAMW_ADV", "scaled_optm": True},
    },
    "DoRA-OFT on outputs, PRODIGY_ADV": {
        "peft_type": "OFT_2", "oft_block_size": 4, "oft_side": "OUTPUT", "lora_decompose": True, "learning_rate": 1.0,
        "optimizer": {"optimizer": "PRODIGY_ADV", "d0": 1e-3},
    },
    "full fine-tune, ADAMW_ADV centered": {
        "training_method": "FINE_TUNE", "output_model_format": "SAFETENSORS", "learning_rate": 1e-3,
        "optimizer": {
            "optimizer": "ADAMW_ADV", "scaled_optm": True, "centered_wd": 0.1, "centered_wd_mode": "int8",
            "state_precision": "factored",
        },
    },
    "LoRA, LORA_RITE": {"optimizer": {"optimizer": "LORA_RITE", "scaled_optm": True, "fused_back_pass": True}},
    "LoRA, STIEFEL_LORA": {"lora_init": "ORTHONORMAL", "optimizer": {"optimizer": "STIEFEL_LORA"}},
    "LoRA, MUON_ADV, fp16": {
        "train_dtype": "FLOAT_16", "optimizer": {"optimizer": "MUON_ADV", "scaled_optm": True},
    },
    "LoKr, SCHEDULE_FREE_ADAMW": {
        "peft_type": "LOKR", "lokr_dim": 2, "optimizer": {"optimizer": "SCHEDULE_FREE_ADAMW"},
    },
}  # fmt: skip
CACHING, TRAINING, BACKING_UP, SAVING, SAMPLING = PHASES = ("caching", "training", "backing up", "saving", "sampling")
# of a run until something happens
LONGEST = 300.0


@dataclass
class Kill:
    """One kill.

    Attributes:
        case: what was trained.
        phase: in the middle of what.
        at: seconds after the process began.
    """

    case: str
    phase: str
    at: float


@dataclass
class Chain:
    """What came of one run that was killed again and again.

    Attributes:
        kills: that hit a living process.
        missed: processes that ended by themselves before they could be killed.
        same: whether the bytes at the end were those of the whole run.
        words: what all processes printed.
    """

    case: str
    kills: list[Kill]
    missed: int
    same: bool
    words: str


def phases_of(count: int, seed: int) -> list[str]:
    """In which order a chain of so many kills takes the phases: caching first, as everything is cached afterwards."""
    rest = [phase for phase in PHASES if phase != CACHING]
    caching = min(2, count)
    others = [rest[index % len(rest)] for index in range(count - caching)]
    random.Random(f"phases {seed}").shuffle(others)
    return [CACHING] * caching + others


def kill_chain(
    root: Path, base: Path, images: Path, case: str, count: int, seed: int, clock: bool = True, epochs: int = 10
) -> Chain:
    """Trains a case whole, and again with `count` kills.

    Args:
        root: folder for both, not there yet.
        base, images: of `MiniatureRun`.
        case: a key of `CASES`.
        seed: of the moments.
        clock: whether each process finds a clock that was set by up to two days, back or forth.
        epochs: of four batches, if the case does not say; a kill waits for up to four backups, one a step.
    """
    options = {"epochs": epochs, **CASES[case]}
    whole, resumed = (MiniatureRun(root / name, base, images, options) for name in ("whole", "resumed"))
    whole.finish_undisturbed()
    rng = random.Random(f"{case} {seed}")
    kills, missed = [], 0
    for index, phase in enumerate(phases_of(count, seed)):
        run = _start(resumed, rng, clock)
        at = _killed_in(run, resumed, phase, rng, index)
        if at is None:
            missed += 1
        else:
            kills.append(Kill(case, phase, at))
    last = _start(resumed, rng, clock)
    status = last.wait(LONGEST)
    last.kill()
    return Chain(case, kills, missed, status == 0 and resumed.digest() == whole.digest() != "", resumed.words())


def _start(run: MiniatureRun, rng: random.Random, clock: bool) -> ForkedRun:
    shift = timedelta(seconds=rng.uniform(-2, 2) * 86400) if clock else timedelta()
    work = train_script(run.config, "--override", "continue_last_backup=true")
    return ForkedRun(lambda: (_set_clock(shift), work()), run.log)


def _set_clock(shift: timedelta) -> None:
    """For this process, as far as its names and orders of files go."""
    import modules.trainer.backup
    import modules.trainer.Trainer

    class Shifted(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> datetime:
            return datetime.now(tz) + shift

    modules.trainer.backup.datetime = modules.trainer.Trainer.datetime = Shifted


def _killed_in(process: ForkedRun, run: MiniatureRun, phase: str, rng: random.Random, index: int) -> float | None:
    """Kills in the middle of a phase; seconds that the process lived, None if it ended before."""
    old, pause = set(run.backups()), rng.choice((0.0, rng.uniform(0, 0.02)))
    reached = _moment(run, phase, rng, old, index)
    while process.poll() is None:
        lived = time.monotonic() - process.started
        if reached():
            time.sleep(pause)
            return lived + pause if process.kill() == -9 else None
        if lived > LONGEST:
            process.kill()
            raise RuntimeError(f"nothing happened in {LONGEST:.0f} s while waiting for {phase}\n{run.words()}")
        time.sleep(0.0005)
    return None


def _moment(run: MiniatureRun, phase: str, rng: random.Random, old: set[str], index: int) -> Callable[[], bool]:
    backups, seen = rng.randint(0, 3), set(old)

    def new_backups() -> int:
        seen.update(name for name in run.backups() if not name.startswith("."))
        return len(seen - old)

    if phase == CACHING:
        wanted = 2 + 2 * index
        return lambda: len(list((run.cache / "latents").rglob("*.safetensors"))) >= wanted
    if phase == BACKING_UP:
        return lambda: new_backups() >= backups and any(name.startswith(".unfinished") for name in run.backups())
    if phase == SAVING:
        places = (run.output.parent, run.workspace / "save")
        return lambda: any(name.startswith(".") for place in places for name in _names(place))
    if phase == SAMPLING:
        folder = run.workspace / "samples"
        before = _count(folder)
        # a picture that is there while its round's grid is not
        return lambda: _count(folder) % 2 == 1 and _count(folder) != before
    later = rng.uniform(0, 0.1)
    reached: list[float] = []

    def trained() -> bool:
        if new_backups() > backups:
            reached.append(time.monotonic())
        return bool(reached) and time.monotonic() - reached[0] >= later

    return trained


def _names(folder: Path) -> Sequence[str]:
    try:
        return [path.name for path in folder.iterdir()]
    except OSError:
        return ()


def _count(folder: Path) -> int:
    try:
        return sum(path.is_file() for path in folder.rglob("*"))
    except OSError:
        # something in it was renamed meanwhile
        return 0
