"""Writes masks for a folder of pictures by a model: NAME-masklabel.png beside each picture that has none.

mask.py FOLDER --model onnx-community/BiRefNet_lite-ONNX --preview look.png     shows four, writes no mask
mask.py FOLDER --model onnx-community/BiRefNet_lite-ONNX     the subject, without its background
mask.py FOLDER --model CIDAS/clipseg-rd64-refined --prompt "a person, a dog" --threshold 0.35
mask.py FOLDER --model mattmdjaga/segformer_b2_clothes --prompt "hair, face" --grow 10

White is learnt, black is not; masks count with masked_training on. MODEL is a folder, an ONNX file or a hub name:
an ONNX model that removes backgrounds (BiRefNet, IS-Net, U2-Net and the like; OWNER/NAME/FILE.onnx names one of several
files), a CLIPSeg model, which finds what --prompt says, or a model of semantic segmentation (SegFormer, Mask2Former and
the like), which finds labels. Several texts or labels have commas between them.

Masks that exist are left alone. --overwrite makes those anew that this tool wrote and nobody changed since.

Exit status: 0 done; 1 an error; 3 some pictures were left out, as they are broken or nothing was found in them; 130
stopped by Ctrl+C: what is written stays, and the same command goes on.
"""

import argparse
import sys
from contextlib import closing
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from modules.util.openmp import wait_asleep

wait_asleep()

from modules.tool.folder_command import add_machine, folder_parser, run_command, run_tool, shared_wishes, stop_on_term
from modules.tool.mask_names import HOLES, KNOWN_MODELS, MOST_BLUR, MOST_GROWTH, PREVIEW, THRESHOLD


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The command line; exits with 2 if it makes no sense."""
    parser = folder_parser(__doc__, KNOWN_MODELS, "texts or labels that are looked for, see above")
    parser.add_argument(
        "--threshold", type=float, default=THRESHOLD, metavar="P", help="value of the model from which a pixel is white"
    )
    parser.add_argument("--soft", action="store_true", help="greys stay; mid-grey is at the threshold")
    parser.add_argument("--holes", type=float, default=HOLES, metavar="PERCENT", help="smaller ones are filled")
    parser.add_argument("--grow", type=int, default=0, metavar="PIXELS", help="white grows; negative: shrinks")
    parser.add_argument("--blur", type=float, default=0.0, metavar="PIXELS", help="radius of the edge's blur")
    parser.add_argument("--invert", action="store_true", help="black and white change places, at the end")
    parser.add_argument("--limit", type=int, metavar="N", help="pictures at most")
    parser.add_argument(
        "--preview", type=Path, metavar="PNG",
        help=f"draws the first pictures and their masks into this file ({PREVIEW} without --limit), writes no mask",
    )  # fmt: skip
    parser.add_argument("--overwrite", action="store_true", help="also those that this tool wrote and nobody changed")
    parser.add_argument("--subfolders", action="store_true", help="also pictures in folders below")
    add_machine(parser)
    args = parser.parse_args(arguments)
    for name, fits, expected in (
        ("threshold", 0 < args.threshold < 1, "a number between 0 and 1"),
        ("holes", 0 <= args.holes <= 100, "a number from 0 to 100"),
        ("grow", abs(args.grow) <= MOST_GROWTH, f"a number from -{MOST_GROWTH} to {MOST_GROWTH}"),
        ("blur", 0 <= args.blur <= MOST_BLUR, f"a number from 0 to {MOST_BLUR:g}"),
        ("limit", args.limit is None or args.limit >= 1, "at least 1"),
    ):
        if not fits:
            parser.error(f"--{name}: found {getattr(args, name)}, expected {expected}")
    return args


def run(args: argparse.Namespace) -> int:
    # torch and transformers take seconds to load; a wrong command line should not wait for them
    from modules.run.ConsoleProgress import ConsoleProgress
    from modules.tool.mask_shape import MaskShape
    from modules.tool.mask_tool import MaskTool, MaskWishes

    wishes = MaskWishes(
        **shared_wishes(args),
        limit=PREVIEW if args.limit is None and args.preview is not None else args.limit,
        preview=args.preview is not None,
        again=args.overwrite,
        prompt=args.prompt.strip(),
        shape=MaskShape(args.threshold, args.soft, args.holes, args.grow, args.blur, args.invert),
        sheet=args.preview,
    )
    with closing(ConsoleProgress()) as console:
        return run_tool(MaskTool(wishes, console.note, console.steps("masking"), console.download))


def main(arguments: list[str] | None = None) -> int:
    """Runs the command line; returns its exit status."""
    return run_command(run, parse(arguments), "mask")


if __name__ == "__main__":
    stop_on_term()
    sys.exit(main())
