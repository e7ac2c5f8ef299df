"""Which backups there are, in the order in which they were written. Reads manifests alone, and loads no torch."""

import hashlib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from modules.util.regular_file import read_regular

# 1 had no number, and no checksum of its own
VERSION = 2
MANIFEST = "backup.json"
WEIGHTS, OPTIMIZER, EXTRA, PROGRESS, CONFIG = (
    "weights.safetensors", "optimizer.pt", "extra.pt", "progress.json", "config.json",
)  # fmt: skip
FILES = (WEIGHTS, OPTIMIZER, EXTRA, PROGRESS, CONFIG)
UNFINISHED = ".unfinished-"
UNREADABLE = math.inf
# bytes of a manifest
LARGEST = 1 << 20


def own_checksum(manifest: Mapping[str, Any]) -> str:
    """Of a manifest, without the entry that holds it."""
    rest = {key: value for key, value in manifest.items() if key != "checksum"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def read_manifest(path: Path) -> dict[str, Any]:
    """The manifest of a backup, files not compared; ValueError with the reason if it is not as it was written."""
    try:
        manifest = json.loads(read_regular(path / MANIFEST, LARGEST).decode("utf-8"))
    except FileNotFoundError:
        raise ValueError(f"{MANIFEST} is missing") from None
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{MANIFEST} can't be read ({type(error).__name__})") from error
    if not isinstance(manifest, dict) or not {"version", "run", "step", "files"} <= set(manifest):
        raise ValueError(f"{MANIFEST} lacks what it should hold")
    if manifest["version"] not in (1, VERSION):
        raise ValueError(f"its version is {manifest['version']}, expected {VERSION}")
    if manifest["version"] == VERSION and manifest.get("checksum") != own_checksum(manifest):
        raise ValueError(f"{MANIFEST} was changed")
    files = manifest["files"]
    if not isinstance(manifest["run"], str) or not isinstance(files, dict) or set(files) != set(FILES):
        raise ValueError(f"{MANIFEST} lacks what it should hold")
    return manifest


def list_backups(folder: Path) -> list[Path]:
    """Folders that bear a backup's name: those whose manifest can't be read, then from the last written one on."""
    if not folder.is_dir():
        return []
    found = [path for path in folder.iterdir() if "-backup-" in path.name and not path.name.startswith(UNFINISHED)]
    return sorted(found, key=lambda path: (backup_number(path), *_age_key(path)), reverse=True)


def backup_number(path: Path) -> float:
    """Of a backup; 0 for those of version 1, which have none and are older."""
    try:
        number = read_manifest(path).get("number", 0)
    except ValueError:
        return UNREADABLE
    return number if isinstance(number, int) else 0


def _age_key(path: Path) -> tuple[str, int, str]:
    """By name: it starts with the time, and unlike the file's own time it survives copying."""
    stamp, _, rest = path.name.partition("-backup-")
    step = rest.split("-")[0]
    return stamp, int(step) if step.isascii() and step.isdigit() else -1, path.name
