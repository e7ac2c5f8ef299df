"""SIGTERM to a real run: the step in flight is finished, everything is written, exit 0."""

import json
import signal
import time

from modules.trainer.backup import newest_backup

import pytest


@pytest.mark.usefixtures("forked_scripts")
def test_sigterm_backs_up_saves_and_ends_well(mini_run):
    mini_run.write(epochs=5000, backup_after=3, backup_after_unit="STEP")
    process = mini_run.start()
    try:
        deadline = time.monotonic() + 240
        while not mini_run.backups() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.02)
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=60) == 0, mini_run.log
    finally:
        process.kill()
        process.wait()
    report = json.loads((mini_run.workspace / "run.json").read_text(encoding="utf-8"))
    assert not report["finished"] and 0 < report["steps"] < 20000
    assert mini_run.output.is_file() and report["output"] == str(mini_run.output)
    backup = newest_backup(mini_run.workspace / "backup", warn=lambda text: None)
    assert backup.progress["step"] == report["steps"], "the backup holds the last finished step"
    assert "Stopping after this step" in mini_run.log and "Traceback" not in mini_run.log
