"""Writes the results of scripts/check_in_onetrainer.sh into docs/onetrainer_plugin.md, as tables.

    python scaled-onetrainer/checks/write_table.py RESULTS --onetrainer DIR

RESULTS is workspace/onetrainer/results.json. It is kept as docs/benchmarks/onetrainer.json, with OneTrainer's commit.
"""

import argparse
import json
import sys
from pathlib import Path

from scaled_onetrainer.checkout import commit_of

ROOT = Path(__file__).resolve().parents[2]
PAGE, KEPT = ROOT / "docs" / "onetrainer_plugin.md", ROOT / "docs" / "benchmarks" / "onetrainer.json"
BEGIN, END = "<!-- results -->", "<!-- end of results -->"


def markdown(commit: str, rows: list[dict[str, object]]) -> str:
    """A table of all checks."""
    failed = sum(not row["passed"] for row in rows)
    lines = [f"OneTrainer {commit}: {len(rows)} checks, {failed} failed.", "", "| check | |", "|---|---|"]
    for row in rows:
        lines.append(f"| {row['check']} | {'' if row['passed'] else 'FAILED: '}{row['result']} |".replace("\n", " "))
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path)
    parser.add_argument("--onetrainer", type=Path, required=True, metavar="DIR")
    args = parser.parse_args()
    rows, commit = json.loads(args.results.read_text(encoding="utf-8")), commit_of(args.onetrainer.resolve())
    kept = {"onetrainer": commit, "checks": rows}
    KEPT.write_text(json.dumps(kept, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    page = PAGE.read_text(encoding="utf-8")
    before, rest = page.split(BEGIN)
    _, after = rest.split(END)
    PAGE.write_text(f"{before}{BEGIN}\n{markdown(commit, rows)}\n{END}{after}", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
