"""Recognises a checkout of OneTrainer, and reads which commit it is."""

import re
from functools import cache
from pathlib import Path

# Files that a checkout of OneTrainer has, and other programs with a folder `modules` don't have together.
MARKS = (
    "modules/util/NamedParameterGroup.py",
    "modules/util/config/TrainConfig.py",
    "modules/module/LoRAModule.py",
    "modules/trainer/GenericTrainer.py",
    "scripts/train.py",
)
COMMIT = re.compile(r"[0-9a-f]{40}")


def root_of(file: str, module: str) -> Path:
    """The folder that a dotted module name starts from, given the module's file."""
    return Path(file).parents[module.count(".")]


@cache
def is_onetrainer(root: Path) -> bool:
    """Whether a folder is a checkout of OneTrainer."""
    return all((root / mark).is_file() for mark in MARKS)


def commit_of(root: Path) -> str:
    """The commit of a checkout, read from its files; "an unknown commit" where there is none, as in a zip."""
    git = root / ".git"
    try:
        if git.is_file():
            git = (root / git.read_text().partition(":")[2].strip()).resolve()
        head = (git / "HEAD").read_text().strip()
        if head.startswith("ref: "):
            ref = head[5:]
            common = git / "commondir"
            homes = [git] + ([(git / common.read_text().strip()).resolve()] if common.is_file() else [])
            head = next((text for home in homes if (text := _ref(home, ref))), "")
    except OSError:
        head = ""
    return head if COMMIT.fullmatch(head) else "an unknown commit"


def short_commit(root: Path) -> str:
    """The first ten digits of `commit_of`, or its words."""
    found = commit_of(root)
    return found[:10] if COMMIT.fullmatch(found) else found


def _ref(git: Path, ref: str) -> str:
    loose, packed = git / ref, git / "packed-refs"
    if loose.is_file():
        return loose.read_text().strip()
    lines = packed.read_text().splitlines() if packed.is_file() else []
    return next((line.split()[0] for line in lines if line.endswith(f" {ref}")), "")
