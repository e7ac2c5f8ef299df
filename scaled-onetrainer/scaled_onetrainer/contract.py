"""Checks a checkout of OneTrainer against what the plugin takes for granted, by its syntax trees: nothing is run."""

import ast
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from scaled_onetrainer import SWITCH
from scaled_onetrainer.checkout import MARKS, short_commit
from scaled_onetrainer.hook_table import CORE, FEATURE
from scaled_onetrainer.syntax import Look

REMEDY = {
    CORE: f"update OneTrainer or scaled-onetrainer, or run without it: {SWITCH}=0",
    FEATURE: "update OneTrainer or scaled-onetrainer; runs that need it stop or go without",
}
ROWS_ONLY = "update OneTrainer or scaled-onetrainer; set it in a JSON preset meanwhile"


@dataclass(frozen=True)
class Assumption:
    """One thing that has to be so.

    Attributes:
        file: of the checkout; with a `*` every file that fits, and none may fail.
        what: is looked for, in words.
        gives: what people lose without it.
        kind: `CORE`, `FEATURE` or `WINDOW`.
        look: for it.
    """

    file: str
    what: str
    gives: str
    kind: str
    look: Look


@dataclass(frozen=True)
class Finding:
    """What came of one assumption; `line` is None where it does not hold."""

    assumption: Assumption
    file: str
    line: int | None

    def __str__(self) -> str:
        one = self.assumption
        if self.line is not None:
            return f"ok      {self.file}:{self.line}  {one.what} ({one.gives})"
        return f"MISSING {self.file}  {one.what}: this takes {one.gives}; {REMEDY.get(one.kind, ROWS_ONLY)}"


def check(root: Path, assumptions: Iterable[Assumption]) -> Iterator[Finding]:
    """Looks for each assumption.

    Args:
        root: of the checkout.
    """
    trees: dict[str, ast.Module | None] = {}
    for one in assumptions:
        if "*" in one.file:
            yield from _check_all(root, one, trees)
            continue
        tree = _tree(root, one.file, trees)
        yield Finding(one, one.file, None if tree is None else one.look(tree))


def _check_all(root: Path, one: Assumption, trees: dict[str, ast.Module | None]) -> Iterator[Finding]:
    """One finding for a pattern: where it fails, else the first file that it fits."""
    files = sorted(path.relative_to(root).as_posix() for path in root.glob(one.file) if path.is_file())
    lines = {file: one.look(tree) if (tree := _tree(root, file, trees)) is not None else None for file in files}
    failed = [file for file, line in lines.items() if line is None]
    if failed or not files:
        yield from (Finding(one, file, None) for file in failed or [one.file])
    else:
        yield Finding(one, files[0], lines[files[0]])


def _tree(root: Path, file: str, trees: dict[str, ast.Module | None]) -> ast.Module | None:
    if file not in trees:
        try:
            trees[file] = ast.parse((root / file).read_text(encoding="utf-8"))
        except (OSError, SyntaxError, UnicodeDecodeError):
            trees[file] = None
    return trees[file]


def report(root: Path, assumptions: Iterable[Assumption]) -> int:
    """Prints one line for each assumption, and how many there are; 1 if one that is no window's fails, else 0."""
    found = list(check(root, assumptions))
    for finding in found:
        print(finding)
    missing = [finding.assumption for finding in found if finding.line is None]
    grave = [one for one in missing if one.kind in (CORE, FEATURE)]
    print(
        f"{len(found)} assumptions over OneTrainer {short_commit(root)}: {len(found) - len(missing)} hold, "
        f"{len(grave)} of training are missing, {len(missing) - len(grave)} of windows."
    )
    lost = [mark for mark in MARKS if not (root / mark).is_file()]
    if lost:
        print(f"{root} is not recognised as a checkout of OneTrainer, so no hook would run: no {', '.join(lost)}.")
    return 1 if grave or lost else 0
