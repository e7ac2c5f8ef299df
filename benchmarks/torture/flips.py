"""Flipped, cut and emptied files: what is damaged is noticed, and what is intact is used."""

import random
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.torture.MiniatureRun import MiniatureRun
from modules.trainer.backup import newest_backup
from modules.util.UserError import UserError

FLIPPED, CUT, EMPTIED, GONE = DAMAGES = ("flipped", "cut", "emptied", "gone")


@dataclass
class Flips:
    """What came of damaged backups.

    Attributes:
        tried: damages.
        noticed: of which the backup was passed over, and the one before it taken.
        missed: what was taken although it was damaged, as "file, damage at byte n".
        broken: what ended in something else than a passed over backup.
    """

    tried: int
    noticed: int
    missed: Sequence[str]
    broken: Sequence[str]


def flip_backups(root: Path, base: Path, images: Path, count: int, seed: int) -> Flips:
    """Damages one file of the newest of two backups, again and again."""
    run = MiniatureRun(root / "run", base, images, {"epochs": 1})
    run.finish_undisturbed()
    folder = run.workspace / "backup"
    newest = newest_backup(folder, lambda text: None).path
    copy, rng = root / "copy", random.Random(seed)
    missed, broken, noticed = [], [], 0
    for _ in range(count):
        shutil.copytree(folder, copy)
        file = copy / newest.name / rng.choice(sorted(path.name for path in newest.iterdir()))
        what = f"{file.name}, {damage(file, rng)}"
        try:
            found = newest_backup(copy, lambda text: None)
        except UserError as error:
            broken.append(f"{what}: {error}")
        # whatever else is raised is what is looked for
        except Exception as error:
            broken.append(f"{what}: {type(error).__name__}: {error}")
        else:
            if found.path.name == newest.name:
                missed.append(what)
            else:
                noticed += 1
        shutil.rmtree(copy)
    return Flips(count, noticed, missed, broken)


def flip_cache(root: Path, base: Path, images: Path, count: int, seed: int) -> Flips:
    """Damages a third of a cache's entries before each of `count` runs, which must end in the same bytes."""
    rng = random.Random(seed)
    run = MiniatureRun(root / "run", base, images, {"epochs": 1, "backup_after_unit": "NEVER"})
    run.finish_undisturbed()
    whole, missed, broken, noticed = run.digest(), [], [], 0
    for _ in range(count):
        entries = sorted(run.cache.rglob("*.safetensors"))
        chosen = rng.sample(entries, max(1, len(entries) // 3))
        what = "; ".join(f"{path.parent.parent.name}: {damage(path, rng)}" for path in chosen)
        status = run.finish()
        if status != 0:
            broken.append(f"{what}: exit status {status}")
        elif run.digest() != whole:
            missed.append(what)
        else:
            noticed += 1
    return Flips(count, noticed, missed, broken)


def damage(file: Path, rng: random.Random) -> str:
    """Damages a file; says how."""
    data, kind = bytearray(file.read_bytes()), rng.choice(DAMAGES)
    place = rng.randrange(len(data)) if data else 0
    if kind == GONE:
        file.unlink()
        return kind
    if kind == FLIPPED:
        data[place] ^= 1 << rng.randrange(8)
    elif kind == CUT:
        del data[place:]
    else:
        data.clear()
    file.write_bytes(data)
    return f"{kind} at byte {place}"
