import sys
from dataclasses import replace
from pathlib import Path

from benchmarks.measuring import ROOT
from benchmarks.proof import NOT_QUICK, STAGES, Stage, run_proof

import pytest


def concept(name: str, *more: str, **options) -> Stage:
    """A stage that takes a second or two: drawing a concept."""
    return Stage(
        name, "make_tiny_concept", lambda numbers, pictures: ["--output", str(numbers / name), *more],
        timed=False, **options,
    )  # fmt: skip


def run(stages, tmp_path: Path, quick: bool = False, minutes: float | None = None) -> tuple[list[str], list[str]]:
    told = []
    failed = run_proof(
        stages, tmp_path / "numbers", tmp_path / "pictures", quick=quick, jobs=1, minutes=minutes, tell=told.append
    )
    return failed, told


def test_stages_run_in_order_and_what_fails_is_named(tmp_path):
    stages = [concept("first"), concept("wrong", "--concept", "nothing"), concept("last", "--concept", "boat")]
    failed, told = run(stages, tmp_path)
    assert failed == ["wrong"]
    assert [line.split(":")[0] for line in told] == ["first", "wrong", "last"] and "exit status 2" in told[1]
    assert (tmp_path / "numbers" / "first.json").is_file() and (tmp_path / "numbers" / "last.json").is_file()
    # what a script found is no fault
    assert run([replace(stages[1], finds=(2,))], tmp_path)[0] == []


def test_what_is_made_already_or_comes_too_late_is_left_out(tmp_path):
    assert run([concept("first", made="README.md")], tmp_path) == ([], [])
    failed, told = run([concept("first")], tmp_path, minutes=0)
    assert not failed and "not begun" in told[0]
    assert not (tmp_path / "numbers" / "first.json").exists()
    assert run([replace(concept(NOT_QUICK[0]))], tmp_path, quick=True) == ([], [])


@pytest.mark.parametrize("stage", STAGES, ids=lambda stage: stage.name)
def test_every_stage_is_a_script_that_goes_on(stage, tmp_path):
    assert (ROOT / "scripts" / f"{stage.script}.py").is_file()
    command = stage.command(tmp_path, tmp_path, False, 3, 12.5)
    assert command[0] == sys.executable
    if stage.timed:
        assert command[command.index("--jobs") + 1] == "3" and command[command.index("--minutes") + 1] == "12.5"
        assert any(part.endswith(".jsonl") for part in command) and "--quick" not in command
        assert "--quick" in stage.command(tmp_path, tmp_path, True, 1, None)
