"""Draws the images and captions that teach the tiny base model a new object and a new style."""

import argparse
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.tinyBase.concept import concept_list, write_concept
from benchmarks.tinyBase.concepts import CONCEPTS, FIRST


def main(arguments: list[str] | None = None) -> int:
    """Runs the command line; returns its exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--concept", choices=CONCEPTS, default=FIRST)
    folders = ", ".join(f"{one.folder} for {name}" for name, one in CONCEPTS.items())
    parser.add_argument("--output", type=Path, help=f"folder of images (default: {folders})")
    args = parser.parse_args(arguments)
    concept = CONCEPTS[args.concept]
    output = args.output or Path(concept.folder)
    try:
        files = write_concept(concept, output)
        concepts = output.with_name(output.name + ".json")
        concepts.write_text(json.dumps(concept_list(concept, output.as_posix()), indent=4) + "\n", encoding="utf-8")
    except OSError as error:
        print(f"error: {output}: cannot be written ({error.strerror}); choose another --output", file=sys.stderr)
        return 1
    pictures = sum(path.suffix != ".txt" for path in files)
    size = sum(path.stat().st_size for path in files)
    print(f"{pictures} images with captions ({size / 1000:.0f} kB) in {output}, listed in {concepts}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
