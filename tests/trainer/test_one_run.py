"""A workspace belongs to one run, and a cache to all that use it."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

from modules.dataLoader.cache_use import FOLDER, other_users, use_cache
from modules.util.HeldFolder import HOLDER, LOCK, HeldFolder
from modules.util.UserError import UserError

import pytest

ROOT = Path(__file__).resolve().parents[2]
HOLD = (
    "import sys, time; from pathlib import Path; from modules.util.HeldFolder import HeldFolder\n"
    "held = HeldFolder(Path(sys.argv[1]), 'workspace_dir', 'Wait.'); print('held', flush=True); time.sleep(120)"
)
USE = (
    "import sys, time; from pathlib import Path; from modules.dataLoader.cache_use import use_cache\n"
    "use_cache(Path(sys.argv[1])); print('held', flush=True); time.sleep(120)"
)


def other(code: str, folder: Path) -> subprocess.Popen:
    """A process that holds a folder, once this returns."""
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(folder)], stdout=subprocess.PIPE, text=True, cwd=ROOT
    )  # fmt: skip
    assert process.stdout.readline() == "held\n"
    return process


def test_the_second_one_is_told_who_holds_it_and_a_kill_frees_it(tmp_path):
    holder = other(HOLD, tmp_path)
    try:
        with pytest.raises(UserError) as found:
            HeldFolder(tmp_path, "workspace_dir", "Wait.")
        pattern = rf"workspace_dir: .* is used by another run \(process {holder.pid} on .+, since 20.*\)\. Wait\."
        assert re.fullmatch(pattern, str(found.value))
        # what it says of itself may be damaged; the lock itself is the system's
        (tmp_path / HOLDER).write_text("[")
        with pytest.raises(UserError, match="is used by another run. Wait."):
            HeldFolder(tmp_path, "workspace_dir", "Wait.")
        # nobody wins it by removing the note
        (tmp_path / HOLDER).unlink()
        with pytest.raises(UserError):
            HeldFolder(tmp_path, "workspace_dir", "Wait.")
    finally:
        holder.send_signal(signal.SIGKILL)
        holder.wait()
    mine = HeldFolder(tmp_path, "workspace_dir", "Wait.")
    assert str(os.getpid()) in (tmp_path / HOLDER).read_text()
    mine.release()
    assert not (tmp_path / HOLDER).exists() and (tmp_path / LOCK).exists()
    HeldFolder(tmp_path, "workspace_dir", "Wait.").release()


def test_a_run_does_not_start_in_anothers_workspace_and_leaves_it_alone(mini_run):
    mini_run.train(stop_after=2, epochs=1)
    torn = mini_run.workspace / "backup" / ".unfinished-of-a-living-run"
    torn.mkdir()
    before = sorted(mini_run.workspace.rglob("*"))
    holder = other(HOLD, mini_run.workspace)
    try:
        with pytest.raises(UserError, match="workspace_dir: .* another run .* or give this run another workspace_dir"):
            mini_run.train(epochs=1, continue_last_backup=True)
        assert set(before) <= set(mini_run.workspace.rglob("*"))
    finally:
        holder.kill()
        holder.wait()
    report = mini_run.train(epochs=1, continue_last_backup=True)
    assert report["finished"]


def test_a_run_lets_go_at_its_end_also_where_it_failed(mini_run):
    with pytest.raises(UserError):
        mini_run.train(layer_filter="no_such_layer", layer_filter_preset="custom")
    mini_run.train(epochs=1)
    HeldFolder(mini_run.workspace, "workspace_dir", "").release()


def test_nothing_is_removed_from_a_cache_that_another_run_uses(make_run, tmp_path):
    run = make_run(own_cache=True)
    run.train(epochs=1)
    entries = set(run.cache.rglob("*.safetensors"))
    options = {"epochs": 1, "resolution": "64", "clear_cache_before_training": True}
    holder = other(USE, run.cache)
    try:
        run.train(**options)
        assert entries < set(run.cache.rglob("*.safetensors"))
        assert any(f"another run uses it (process {holder.pid})" in text for text in run.warnings())
    finally:
        holder.kill()
        holder.wait()
    run.train(**options)
    assert not entries <= set(run.cache.rglob("*.safetensors"))
    (own,) = (run.cache / FOLDER).iterdir()
    assert own.stem.startswith(f"{os.getpid()}-")


def test_what_a_killed_run_left_is_not_taken_for_a_living_one(tmp_path):
    use_cache(tmp_path)
    holder = other(USE, tmp_path)
    assert other_users(tmp_path) == [holder.pid]
    holder.kill()
    holder.wait()
    assert other_users(tmp_path) == [] == other_users(tmp_path)
    (tmp_path / FOLDER / "mine.lock").write_text("")
    # of another container, which may have the same number; the lock of it is not held
    (tmp_path / FOLDER / f"{os.getpid()}-other.lock").write_text("")
    (tmp_path / FOLDER / "notes.txt").write_text("")
    assert other_users(tmp_path) == [] and len(list((tmp_path / FOLDER).iterdir())) == 3


def test_an_older_runs_pictures_and_report_are_kept(mini_run):
    sample = {"prompt": "a red shape", "width": 32, "height": 32, "diffusion_steps": 1}
    options = {"samples": [sample], "sample_after": 1, "sample_after_unit": "EPOCH", "epochs": 1}
    mini_run.train(**options)
    old = {path: path.read_bytes() for path in (mini_run.workspace / "samples").rglob("*.*")}
    (before_after,) = mini_run.workspace.glob("before_after.*")
    picture = before_after.read_bytes()
    report = (mini_run.workspace / "run.json").read_text()
    mini_run.train(**{**options, "seed": 1})
    kept = mini_run.workspace / "samples-1"
    assert old and {path: (kept / path.relative_to(mini_run.workspace / "samples")).read_bytes() for path in old} == old
    assert (mini_run.workspace / "run-1.json").read_text() == report
    assert before_after.with_stem("before_after-1").read_bytes() == picture
    # a run that is resumed writes on
    mini_run.train(stop_after=2, **options)
    mini_run.train(continue_last_backup=True, **options)
    assert sorted(path.name for path in mini_run.workspace.glob("samples*")) == ["samples", "samples-1", "samples-2"]


@pytest.mark.usefixtures("forked_scripts")
def test_two_runs_at_once_in_one_workspace_and_one_cache(make_run):
    run = make_run(own_cache=True)
    run.write(epochs=60, backup_after=1, backup_after_unit="STEP", rolling_backup=True, rolling_backup_count=3)
    first, second = run.start(), run.start()
    deadline = time.monotonic() + 120
    while first.poll() is None and second.poll() is None and time.monotonic() < deadline:
        time.sleep(0.1)
    loser, winner = (first, second) if first.poll() is not None else (second, first)
    assert loser.returncode == 1 and run.log.count("is used by another run (process") == 1, run.log
    assert f"process {winner.pid} on" in run.log and "Traceback" not in run.log
    # in the same cache, with a workspace of its own
    third = run.start(f"workspace_dir={run.root / 'third'}", f"output_model_destination={run.root / 'c.safetensors'}")
    winner.send_signal(signal.SIGINT)
    assert winner.wait(timeout=120) == 0
    third.send_signal(signal.SIGINT) if third.poll() is None else None
    assert third.wait(timeout=120) in (0, 130)
    # what Python itself prints where Ctrl-C comes while an object of a library is taken down
    ignored = re.compile(r"^Exception ignored in: .*?^KeyboardInterrupt: *$", re.MULTILINE | re.DOTALL)
    assert "Traceback" not in ignored.sub("", run.log), run.log
