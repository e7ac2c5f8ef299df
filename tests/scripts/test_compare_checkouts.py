"""A checkout against itself, on small layers."""

import json
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "scripts"))

import compare_checkouts  # noqa: E402


def test_a_checkout_beside_itself(tmp_path, capsys):
    out = tmp_path / "ratios.json"
    cases = ["ADAMW_ADV plain", "LION_ADV bf16"]
    status = compare_checkouts.main(
        ["--other", str(ROOT), "--small", "--rounds", "3", "--threads", "1", "--json", str(out), "--cases", *cases]
    )
    assert status in (0, 1)
    found = json.loads(out.read_text(encoding="utf-8"))
    names = [row["name"] for row in found["cases"]]
    assert "ADAMW_ADV plain" in names and all(name.startswith(tuple(cases)) for name in names)
    assert all(len(row["here"]) == len(row["there"]) == 3 and row["ratio"] > 0 for row in found["cases"])
    assert "ADAMW_ADV plain" in capsys.readouterr().out


def test_another_folder_is_refused(tmp_path, capsys):
    assert compare_checkouts.main(["--other", str(tmp_path)]) == 2
    assert "is no checkout of the trainer" in capsys.readouterr().err
