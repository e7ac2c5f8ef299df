"""Adds to the results whether each file equals the next one: same_files.py RESULTS CHECK FILE FILE [FILE FILE ...]."""

import json
import sys
from pathlib import Path


def main() -> int:
    results, name, *files = sys.argv[1:]
    pairs = list(zip(files[::2], files[1::2], strict=True))
    different = [f"{one} and {other}" for one, other in pairs if Path(one).read_bytes() != Path(other).read_bytes()]
    result = f"{', '.join(different)} differ" if different else "they are the same"
    path = Path(results)
    rows = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else []
    rows.append({"check": name, "passed": not different, "result": result})
    path.write_text(json.dumps(rows, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    print(f"{'FAILED' if different else 'ok    '} {name}: {result}")
    return 1 if different else 0


if __name__ == "__main__":
    sys.exit(main())
