"""The claims about stability, each measured on small real trainings of the demo concept, and drawn.

a: freeze_on_flip and l1_adaptive of signed rules near convergence   b: factored_2nd over three decades of rates
c: Kourkoutas-β per rank, one rank noisy                             d: OrthoGrad per rank or block, one noisy
e: scaled_eps and eps over ranks                                     f: output variance of one step, DoRA-OFT's 2η²
g: effective rank of B and B·A under four rules

Each training is written at once; a call with the same --output goes on where the last one stopped.
"""

import argparse
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.measurement_command import add_usual_arguments, deadline, parse_usual, run_command, show

PACKAGES = ("torch", "diffusers", "transformers")
LETTERS = "abcdefg"
SEEDS = (0, 1, 2)


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The command line; exits with 2 if it makes no sense."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_usual_arguments(
        parser,
        quick="few, short trainings with the first seed; no results",
        plots="write a picture for each question here",
    )
    parser.add_argument("--questions", nargs="+", choices=LETTERS, default=list(LETTERS), help="all if not given")
    parser.add_argument("--seeds", type=int, nargs="+", default=list(SEEDS), help="0 1 2 if not given")
    args = parse_usual(parser, arguments)
    if args.only_report and not args.output.is_file():
        parser.error(f"--only-report: {args.output} is not there, expected the file of a measurement")
    return args


def main(arguments: list[str] | None = None) -> int:
    """Runs the command line; returns its exit status."""
    return run_command(parse, measure, arguments)


def measure(args: argparse.Namespace) -> int:
    from benchmarks.measuring import environment
    from benchmarks.stability.measurement import draw, report, run
    from benchmarks.stability.Results import Results
    from benchmarks.stability.Trial import Measured, Trial

    import torch

    head = {"script": "scripts/stability.py", **environment(torch.device("cpu"), PACKAGES)}
    results = Results(args.output, args.quick, head)
    until = deadline(args)

    def told(trial: Trial, measured: Measured) -> None:
        print(f"{trial.question} {trial.case} seed {trial.seed} rate {trial.rate:g}: {measured.loss:.4f}", flush=True)

    if not args.only_report:
        seeds = args.seeds[:1] if args.quick else args.seeds
        if not run(args.questions, seeds, results, args.jobs, told, args.quick, until):
            print("stopped at --minutes; the same command goes on from here")
    text = report(results, args.questions, args.quick)
    show(args, text)
    if args.plots:
        draw(results, args.questions, args.plots)
    return 0


if __name__ == "__main__":
    sys.exit(main())
