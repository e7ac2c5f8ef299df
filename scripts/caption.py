"""Writes captions for a folder of images by a model: NAME.txt beside each image that has none.

caption.py FOLDER --model florence-community/Florence-2-base --preview 3      shows three captions, writes nothing
caption.py FOLDER --model florence-community/Florence-2-base --start "ohwx, "    writes them
caption.py FOLDER --model Qwen/Qwen2.5-VL-3B-Instruct --prompt "Describe the clothes in one sentence."
caption.py FOLDER --model SmilingWolf/wd-eva02-large-tagger-v3      tags, separated by commas

MODEL is a folder or a hub name of a BLIP, BLIP-2 or Florence-2 model, of a chat model that sees, or of a tagger. What
--prompt means depends on it: BLIP goes on from it, Florence-2 takes <CAPTION>, <DETAILED_CAPTION> or
<MORE_DETAILED_CAPTION> (the default), chat models follow it as an instruction.

Captions that exist are left alone. --redo writes those anew that this tool wrote and nobody changed since.

Exit status: 0 done; 1 an error; 3 some images were left out, as they are broken; 130 stopped by Ctrl+C: what is written
stays, and the same command goes on.
"""

import argparse
import sys
from contextlib import closing
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from modules.util.openmp import wait_asleep

wait_asleep()

from modules.tool.caption_names import KNOWN_MODELS, MOST_TOKENS, THRESHOLD
from modules.tool.folder_command import add_machine, folder_parser, run_command, run_tool, shared_wishes, stop_on_term


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The command line; exits with 2 if it makes no sense."""
    parser = folder_parser(__doc__, KNOWN_MODELS, "what the model is asked, see above")
    parser.add_argument("--start", default="", metavar="TEXT", help="what each caption begins with")
    parser.add_argument("--limit", type=int, metavar="N", help="images at most")
    parser.add_argument("--preview", type=int, metavar="N", help="show those of the first N images, write nothing")
    parser.add_argument("--redo", action="store_true", help="also those that this tool wrote and nobody changed")
    parser.add_argument("--subfolders", action="store_true", help="also images in folders below")
    parser.add_argument("--most-tokens", type=int, default=MOST_TOKENS, metavar="N", help="a longer caption is cut")
    parser.add_argument(
        "--threshold", type=float, default=THRESHOLD, metavar="P", help="of taggers: tags less probable are left out"
    )
    add_machine(parser)
    args = parser.parse_args(arguments)
    for option in ("limit", "preview", "most_tokens"):
        if getattr(args, option) is not None and getattr(args, option) < 1:
            parser.error(f"--{option.replace('_', '-')}: found {getattr(args, option)}, expected at least 1")
    if not 0 <= args.threshold <= 1:
        parser.error(f"--threshold: found {args.threshold}, expected a number from 0 to 1")
    return args


def run(args: argparse.Namespace) -> int:
    # torch and transformers take seconds to load; a wrong command line should not wait for them
    from modules.run.ConsoleProgress import ConsoleProgress
    from modules.tool.caption_tool import CaptionTool, CaptionWishes
    from modules.tool.captioner import Asked

    wishes = CaptionWishes(
        **shared_wishes(args),
        limit=min((number for number in (args.limit, args.preview) if number is not None), default=None),
        preview=args.preview is not None,
        again=args.redo,
        asked=Asked(args.prompt.strip(), args.most_tokens, args.threshold),
        start=args.start,
    )
    with closing(ConsoleProgress()) as console:
        return run_tool(CaptionTool(wishes, console.note, console.steps("captioning"), console.download))


def main(arguments: list[str] | None = None) -> int:
    """Runs the command line; returns its exit status."""
    return run_command(run, parse(arguments), "caption")


if __name__ == "__main__":
    stop_on_term()
    sys.exit(main())
