"""Draws images with a base model and any number of adapters, of any format and kind.

sample.py --base MODEL --prompt "a red lumo"                            the model alone
sample.py --base MODEL --adapter A.safetensors --prompt "a red lumo"    with an adapter
sample.py --base MODEL --adapter A.safetensors:0.8 --adapter B.safetensors --prompt "a red lumo"
sample.py --base MODEL --embedding E.safetensors:lumo --prompt "a lumo"    with an embedding for the word lumo
sample.py --config preset.json --adapter A.safetensors                  the preset's model and samples
sample.py --config preset.json --adapter A.safetensors --strengths 0 0.5 1    each beside the others, in a grid

MODEL is a folder in diffusers' layout, a single file or a hub name. A number behind an adapter is its strength: the
change of the model times that number; of rotations (OFT) the generator times that number, which is nearly the angle.
Adapters are applied in the order given.

Exit status: 0 all images are written; 1 an error; 3 some images were left out for lack of memory.
"""

import argparse
import math
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from modules.util.openmp import wait_asleep

wait_asleep()

from modules.util.config.errors import ConfigError
from modules.util.enum.DataType import DataType
from modules.util.enum.ModelType import ModelType
from modules.util.enum.NoiseScheduler import NoiseScheduler
from modules.util.UserError import UserError

DTYPES = [DataType.FLOAT_32, DataType.FLOAT_16, DataType.BFLOAT_16]
# key of a sample -> option
SAMPLE_KEYS = {
    "prompt": "prompt", "negative_prompt": "negative", "width": "width", "height": "height",
    "diffusion_steps": "steps", "cfg_scale": "cfg", "seed": "seed", "noise_scheduler": "sampler",
    "base_image_path": "image", "mask_image_path": "mask",
}  # fmt: skip


def adapter(text: str) -> tuple[Path, float]:
    """FILE or FILE:STRENGTH."""
    path, colon, number = text.rpartition(":")
    try:
        strength = float(number)
    except ValueError:
        return Path(text), 1.0
    if not colon or Path(text).is_file():
        return Path(text), 1.0
    if not math.isfinite(strength):
        raise argparse.ArgumentTypeError(f"{text}: found the strength {number}, expected a finite number")
    return Path(path), strength


def embedding(text: str) -> tuple[Path, str]:
    """FILE:WORD, or FILE, whose name is the word then."""
    path, colon, word = text.rpartition(":")
    # a colon may also stand in a path
    if not colon or Path(text).is_file() or "/" in word or "\\" in word:
        return Path(text), Path(text).stem
    return Path(path), word


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The command line; exits with 2 if it makes no sense."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", metavar="MODEL", help="base model; that of --config if not given")
    parser.add_argument("--adapter", action="append", default=[], type=adapter, metavar="FILE[:STRENGTH]")
    parser.add_argument("--embedding", action="append", default=[], type=embedding, metavar="FILE[:WORD]")
    parser.add_argument("--prompt", help="what to draw; the samples of --config if not given")
    parser.add_argument("--negative", metavar="TEXT", help="what to steer away from")
    parser.add_argument("--width", type=int, metavar="PIXELS")
    parser.add_argument("--height", type=int, metavar="PIXELS")
    parser.add_argument("--steps", type=int, metavar="N", help="of the sampler")
    parser.add_argument("--cfg", type=float, metavar="SCALE", help="guidance; 1 switches it off")
    parser.add_argument("--seed", type=int, metavar="N", help="of the first image; random for --prompt without it")
    parser.add_argument("--image", metavar="FILE", help="what to fill in or to edit, in families that do so")
    parser.add_argument("--mask", metavar="FILE", help="white where --image is to be filled in")
    parser.add_argument("--count", type=int, default=1, metavar="N", help="images of a prompt; seeds count up")
    parser.add_argument(
        "--strengths", nargs="+", type=float, default=[], metavar="S",
        help="times those of the adapters; 0 is the model alone; a grid shows them beside one another",
    )  # fmt: skip
    parser.add_argument("--sampler", choices=[str(name) for name in NoiseScheduler])
    parser.add_argument(
        "--prompt-chunks", type=int, metavar="N", help="chunks of 75 tokens that CLIP reads of a prompt"
    )
    parser.add_argument("--output", type=Path, default=Path("workspace/images"), metavar="FOLDER")
    parser.add_argument("--config", type=Path, metavar="JSON", help="a preset or config that describes the model")
    parser.add_argument("--model-type", choices=[str(name) for name in ModelType], help="if the model does not tell")
    parser.add_argument("--dtype", choices=[str(name) for name in DTYPES], help="of weights and arithmetic")
    parser.add_argument("--device", help="cuda, cuda:1, mps, cpu; the best one there is if not given")
    parser.add_argument(
        "--neumann", action="store_true", help="rotations are the Neumann series, as OneTrainer trains them"
    )
    args = parser.parse_args(arguments)
    if args.base is None and args.config is None:
        parser.error("give --base, --config or both")
    if args.prompt is None and args.config is None:
        parser.error("give --prompt, or --config with samples")
    if args.count < 1:
        parser.error(f"--count: found {args.count}, expected at least 1")
    if not all(map(math.isfinite, args.strengths)):
        parser.error(f"--strengths: found {args.strengths}, expected finite numbers")
    if len(set(args.strengths)) < len(args.strengths):
        parser.error("--strengths: one is there twice")
    if args.strengths and not args.adapter:
        parser.error("--strengths: give --adapter, too")
    return args


def run(args: argparse.Namespace) -> int:
    # torch, diffusers and transformers take seconds to load; a wrong command line should not wait for them
    from modules.run.ConsoleProgress import ConsoleProgress
    from modules.tool.sample_tool import Wishes, draw_images

    given = {key: getattr(args, option) for key, option in SAMPLE_KEYS.items()}
    sample = {key: value for key, value in given.items() if value is not None}
    if args.prompt is not None and args.seed is None:
        sample["random_seed"] = True
    if args.mask is not None:
        sample["sample_inpainting"] = True
    console = ConsoleProgress()
    wishes = Wishes(
        base=args.base,
        adapters=args.adapter,
        embeddings=args.embedding,
        sample=sample,
        count=args.count,
        output=args.output,
        config=args.config,
        model_type=args.model_type and ModelType(args.model_type),
        dtype=args.dtype and DataType(args.dtype),
        device=args.device,
        neumann=args.neumann,
        prompt_chunks=args.prompt_chunks,
        factors=args.strengths,
    )
    try:
        left_out = draw_images(wishes, console.note, console.steps("sampling"), console.download)
    finally:
        console.close()
    return 3 if left_out else 0


def main(arguments: list[str] | None = None) -> int:
    """Runs the command line; returns its exit status."""
    args = parse(arguments)
    try:
        return run(args)
    except ConfigError as error:
        text = str(error)
        for key, option in SAMPLE_KEYS.items():
            text = text.replace(f"{key}: ", f"--{option}: ") if getattr(args, option) is not None else text
        print(f"error: {text}", file=sys.stderr)
    except (UserError, OSError) as error:
        # what a config calls so is an option of the command line here
        text = str(error).replace("base_model_name:", "--base:") if args.base else str(error)
        print(f"error: {text}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
