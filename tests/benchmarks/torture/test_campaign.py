"""A slice of the campaign that `scripts/torture.py` runs in full: nothing is lost, and nothing breaks."""

import json
import os
import subprocess
import sys
from pathlib import Path

from benchmarks.torture.disks import BACKUP, FULL, DiskTrial
from benchmarks.torture.flips import Flips
from benchmarks.torture.inputs import Tally, try_input
from benchmarks.torture.kills import Chain, Kill, phases_of
from benchmarks.torture.pairs import PairTrial
from benchmarks.torture.report import is_clean, of_disks, of_flips, of_inputs, of_kills, of_pairs, table
from modules.util.UserError import UserError

import pytest

ROOT = Path(__file__).resolve().parents[3]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the campaign needs a system that forks")
def test_a_slice_of_everything(tmp_path):
    path = tmp_path / "counts.json"
    command = [sys.executable, str(ROOT / "scripts" / "torture.py"), "--quick", "--json", str(path)]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=600, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    assert done.returncode == 0, done.stdout + done.stderr
    counts = json.loads(path.read_text())
    kills = counts["kills"]
    assert 3 <= kills["kills"] == kills["same bytes"] and kills["tracebacks"] == 0
    assert counts["flips"]["backups"]["noticed"] == 25 and counts["pairs"]["one workspace"]["clean"]
    # where the system lets nobody make a small disk, none was tried
    assert counts["disks"]["clean"] == counts["disks"]["tried"]
    assert {name: own["tried"] for name, own in (counts["inputs"] | counts["runs"]).items()} == {
        "configs": 10, "adapters and embeddings": 10, "images and captions": 10, "runs": 2,
    }  # fmt: skip
    assert is_clean(counts)


def chain(same: bool = True, words: str = "") -> Chain:
    return Chain("a", [Kill("a", "saving", 1.0)], 0, same, words)


@pytest.mark.parametrize(
    ("part", "good", "bad"),
    [
        ("kills", of_kills([chain()]), of_kills([chain(same=False)])),
        ("kills", of_kills([chain()]), of_kills([chain(words="Traceback (most recent call last)")])),
        (
            "disks", of_disks([DiskTrial(BACKUP, FULL, True, ("error: full",), False, True)]),
            of_disks([DiskTrial(BACKUP, FULL, True, (), False, True)]),
        ),
        (
            "disks", of_disks([DiskTrial(BACKUP, FULL, False)]),
            of_disks([DiskTrial(BACKUP, FULL, True, ("error: full",), False, False)]),
        ),
        ("flips", of_flips({"a": Flips(1, 1, [], [])}), of_flips({"a": Flips(1, 0, ["x"], [])})),
        ("pairs", of_pairs({"a": PairTrial((0, 1), 1, True)}), of_pairs({"a": PairTrial((1, 1), 2, False)})),
        ("inputs", of_inputs({"a": Tally(used=1)}), of_inputs({"a": Tally(broken=["x"])})),
        ("inputs", of_inputs({"a": Tally(refused=1)}), of_inputs({"a": Tally(hangs=["x"])})),
    ],
)  # fmt: skip
def test_what_went_wrong_is_seen(part, good, bad):
    assert is_clean({part: good}) and not is_clean({part: bad})
    assert table({part: good}).count("\n") >= 2 and table({part: bad})


def test_an_input_that_breaks_is_counted_as_that(monkeypatch):
    monkeypatch.setattr("benchmarks.torture.inputs.LONGEST", 1)

    def raising(error):
        def attempt(rng):
            raise error

        return attempt

    def endless(rng):
        while True:
            pass

    tally = Tally()
    try_input(lambda rng: None, None, tally, "used")
    try_input(raising(UserError("words")), None, tally, "refused")
    try_input(raising(KeyError("x")), None, tally, "broken")
    try_input(raising(UserError(" ")), None, tally, "wordless")
    try_input(endless, None, tally, "endless")
    assert (tally.used, tally.refused, tally.hangs) == (1, 2, ["endless"])
    assert tally.broken == ["broken: KeyError: 'x'", "wordless: a message without words"]


def test_kills_take_every_phase_in_turn():
    found = phases_of(11, 0)
    assert found[:2] == ["caching", "caching"] and len(found) == 11
    assert min(found.count(phase) for phase in set(found)) >= 2 and len(set(found)) == 5
