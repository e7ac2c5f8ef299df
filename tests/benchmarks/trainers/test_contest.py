"""The comparison of trainers: runs of the same training, in turns, and what is made of their times."""

import importlib
import json
import sys
import time
from pathlib import Path
from types import SimpleNamespace

from benchmarks.trainers import own, plain
from benchmarks.trainers.contest import (
    FIRST,
    ONETRAINER,
    OURS,
    PLAIN,
    SECOND,
    ContestSettings,
    commands,
    compare,
    run,
    table,
    training,
)
from modules.util.config.load import train_config_from_dict
from tests.load_script import load_script

import pytest

CHECKS = Path(__file__).resolve().parents[3] / "scaled-onetrainer" / "checks"
STAND_IN = """
import json, sys, time
start, step, trained = (float(text) for text in sys.argv[1:])
now = time.time()
print("something else")
print(json.dumps({"ended": [now + start + step * k for k in range(8)], "peak_bytes": 1 << 20, "trained": trained}))
"""


def stand_in(start: float, step: float, trained: int = 7) -> list[str]:
    return [sys.executable, "-c", STAND_IN, str(start), str(step), str(trained)]


def test_a_run_is_timed_from_before_its_process():
    found = run(stand_in(10.0, 0.5))
    assert 10.0 < found["start"] < 20.0 and found["step"] == pytest.approx(0.5, abs=1e-3)
    assert found["steps"] == 8 and found["trained"] == 7
    with pytest.raises(RuntimeError, match="(?s)failed:.*no such thing"):
        run([sys.executable, "-c", "raise SystemExit('no such thing')"])


def test_trainers_take_turns_and_are_compared(tmp_path):
    cache = tmp_path / "own" / "cache"
    cache.mkdir(parents=True)
    said = []
    lines = {OURS: stand_in(1.0, 0.1), ONETRAINER: stand_in(2.0, 0.2)}
    found = compare(ContestSettings(rounds=2), tmp_path, None, None, said.append, lines)
    assert [line.split(":")[0] for line in said] == [OURS, ONETRAINER, ONETRAINER, OURS]
    assert not cache.exists(), "a first start has no cache"
    assert {FIRST, SECOND} == set(found["runs"][OURS][0]) and found["images"] == 24
    text = table(found)
    assert "| a step, ms | 100.0 | 200.0 (2.00×) |" in text and "| peak memory, MiB | 1 | 1 (1.00×) |" in text


def test_other_trainings_are_not_compared(tmp_path):
    lines = {OURS: stand_in(0.0, 0.1), PLAIN: stand_in(0.0, 0.1, trained=8)}
    with pytest.raises(ValueError, match="trained .*8"):
        compare(ContestSettings(rounds=1), tmp_path, None, None, lambda text: None, lines)


def test_our_run_and_the_plain_loop_train_the_same(tmp_path, monkeypatch, capsys):
    settings = ContestSettings(epochs=1)
    lines, found = commands(settings, tmp_path, tmp_path, tmp_path / "python"), {}
    for name, module in ((OURS, own), (PLAIN, plain)):
        monkeypatch.setattr(sys, "argv", lines[name][2:])
        capsys.readouterr()
        began = time.time()
        module.main()
        found[name] = json.loads(capsys.readouterr().out.splitlines()[-1])
        assert began < found[name]["ended"][0] < found[name]["ended"][-1] < time.time()
    assert found[OURS]["trained"] == found[PLAIN]["trained"] > 0
    assert len(found[OURS]["ended"]) == len(found[PLAIN]["ended"]) == 6
    told = json.loads((tmp_path / "onetrainer" / "settings.json").read_text(encoding="utf-8"))
    assert told.items() <= training(settings, tmp_path).items() and "workspace_dir" not in told
    train_config_from_dict(training(settings, tmp_path))


def test_a_checkout_that_is_none_is_refused(tmp_path, capsys):
    with pytest.raises(SystemExit) as stopped:
        load_script("compare_trainers").main(["--onetrainer", str(tmp_path)])
    assert stopped.value.code == 2 and "expected a checkout of OneTrainer" in capsys.readouterr().err


@pytest.mark.parametrize(("platform", "bytes_each"), [("darwin", 1), ("linux", 1024)])
@pytest.mark.parametrize("trainer", [PLAIN, ONETRAINER])
def test_every_system_counts_memory_in_bytes(trainer, platform, bytes_each, monkeypatch):
    resource = pytest.importorskip("resource")
    monkeypatch.syspath_prepend(str(CHECKS))
    peak_bytes = (plain if trainer == PLAIN else importlib.import_module("timed")).peak_bytes
    monkeypatch.setattr(resource, "getrusage", lambda who: SimpleNamespace(ru_maxrss=7))
    monkeypatch.setattr(sys, "platform", platform)
    assert peak_bytes() == 7 * bytes_each
