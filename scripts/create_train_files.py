"""Writes default config, concept and sample files in which every option carries a comment, and renews what is made
from the code: tables in docs/, and the texts that catalogues in modules/languages/ translate."""

import argparse
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from modules.util.config.document import (
    commented_concepts,
    commented_config,
    commented_samples,
    update_document,
)
from modules.util.config.errors import ConfigError
from modules.util.config.write_json import write_json
from modules.viewModel.catalogue import update_all
from scaled_optim.document import rules_markdown


def main(arguments: list[str] | None = None) -> int:
    """Runs the command line; returns its exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config-output-destination", metavar="FILE", help="write a default config here")
    parser.add_argument(
        "--concepts-output-destination", metavar="FILE", help="write a list with a default concept here"
    )
    parser.add_argument("--samples-output-destination", metavar="FILE", help="write a list with a default sample here")
    parser.add_argument("--overwrite", action="store_true", help="replace files that exist")
    parser.add_argument(
        "--update-docs",
        action="store_true",
        help="renew docs/ and modules/languages/ from the code",
    )
    args = parser.parse_args(arguments)

    files = [
        (path, content)
        for path, content in (
            (args.config_output_destination, commented_config),
            (args.concepts_output_destination, commented_concepts),
            (args.samples_output_destination, commented_samples),
        )
        if path
    ]
    if not files and not args.update_docs:
        parser.error("say which file to write, for example --config-output-destination config.json")
    existing = [path for path, _ in files if Path(path).exists()]
    if existing and not args.overwrite:
        print(f"error: {', '.join(existing)}: exists already; pass --overwrite to replace it", file=sys.stderr)
        return 1
    try:
        for path, content in files:
            write_json(path, content())
            print(f"written: {path}")
        if args.update_docs:
            for name, tables in (("config.md", None), ("optimizers.md", rules_markdown())):
                changed = update_document(ROOT / "docs" / name, tables)
                print(f"docs/{name}: {'updated' if changed else 'up to date'}")
            for name, changed in update_all(ROOT).items():
                print(f"modules/languages/{name}: {'updated' if changed else 'up to date'}")
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
