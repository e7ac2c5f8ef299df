"""Draws the images and captions that teach the tiny base model a new object and a new style."""

import argparse
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from modules.tinyBase.concept import concept_list, write_concept


def main(arguments: list[str] | None = None) -> int:
    """Runs the command line; returns its exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=Path("training_concepts/tiny_concept"), help="folder of images")
    args = parser.parse_args(arguments)
    try:
        files = write_concept(args.output)
        concepts = args.output.with_name(args.output.name + ".json")
        concepts.write_text(json.dumps(concept_list(args.output.as_posix()), indent=4) + "\n", encoding="utf-8")
    except OSError as error:
        print(f"error: {args.output}: cannot be written ({error.strerror}); choose another --output", file=sys.stderr)
        return 1
    pictures = sum(path.suffix != ".txt" for path in files)
    size = sum(path.stat().st_size for path in files)
    print(f"{pictures} images with captions ({size / 1000:.0f} kB) in {args.output}, listed in {concepts}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
