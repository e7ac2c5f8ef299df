"""Does centered weight decay keep what the base model knows? Trains a concept that pushes it out, and draws the answer.

Every kind of decay is tried at several strengths: how much of the concept is learned, how much of the ordinary scenes
is kept. With --question sizes: which form of decay keeps its best strength over ranks, blocks and widths. With
--question prior: what ordinary scenes beside the concept keep, as prior predictions and as pictures. Each training is
written at once; a call with the same --output goes on where the last one stopped.
"""

import argparse
import sys
import tempfile
from functools import partial
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.measurement_command import add_usual_arguments, deadline, parse_usual, run_command, show

PACKAGES = ("torch", "diffusers", "transformers", "tokenizers")
SEEDS = {"forgetting": (0, 1, 2), "sizes": (0,), "prior": (0, 1, 2)}
QUICK_SEEDS = (0,)


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The command line; exits with 2 if it makes no sense."""
    from benchmarks.forgetting.plan import METHODS
    from benchmarks.forgetting.prior import PRIOR_METHODS
    from benchmarks.forgetting.sizes import SIZE_METHODS
    from benchmarks.forgetting.tasks import FORGETTING, PRIOR, QUESTIONS, SIZES

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_usual_arguments(parser, quick="tiny trainings, to see that everything works", plots="write the pictures here")
    parser.add_argument("--question", choices=QUESTIONS, default=FORGETTING, help="what is measured")
    known = {FORGETTING: METHODS, SIZES: SIZE_METHODS, PRIOR: PRIOR_METHODS}
    offered = list(dict.fromkeys(method for methods in known.values() for method in methods))
    parser.add_argument("--methods", nargs="+", choices=offered, help="all of the question")
    parser.add_argument("--seeds", type=int, nargs="+", help="0 1 2; 0 with --question sizes or --quick")
    args = parse_usual(parser, arguments)
    args.methods = args.methods or list(known[args.question])
    wrong = [method for method in args.methods if method not in known[args.question]]
    if wrong:
        expected = ", ".join(known[args.question])
        parser.error(f"--methods: found {', '.join(wrong)}, expected some of {expected} for {args.question}")
    args.seeds = args.seeds or list(QUICK_SEEDS if args.quick else SEEDS[args.question])
    return args


def main(arguments: list[str] | None = None) -> int:
    """Runs the command line; returns its exit status."""
    return run_command(parse, measure, arguments)


def measure(args: argparse.Namespace) -> int:
    from benchmarks.forgetting.Results import Results
    from benchmarks.measuring import environment

    import torch

    head = {"script": "scripts/forgetting.py", **environment(torch.device("cpu"), PACKAGES)}
    results = Results(args.output, head)
    if not args.only_report and not train(args, results):
        print("stopped at --minutes; the same command goes on from here")
    text = reported(args, results)
    show(args, text)
    return 0


def train(args: argparse.Namespace, results) -> bool:
    """Runs what is missing; returns whether everything is there now."""
    from benchmarks.forgetting import plan
    from benchmarks.forgetting.prior import prior_questions
    from benchmarks.forgetting.sizes import size_questions
    from benchmarks.forgetting.tasks import PRIOR, SIZES
    from benchmarks.forgetting.trade_off import told
    from benchmarks.transfer.runner import run

    until = deadline(args)
    chosen = (args.methods, args.seeds, args.quick)

    def say(trial, measures) -> None:
        base = results.base[trial.setting.task, trial.setting.width]
        print(f"{trial.setting.label()}, seed {trial.seed}: {told(measures, base)}", flush=True)

    with tempfile.TemporaryDirectory() as folder:

        def answered(questions) -> bool:
            return run(questions, results, args.jobs, say, until, partial(plan.train, folder=folder))

        others = {SIZES: size_questions, PRIOR: prior_questions}
        if args.question in others:
            return answered(others[args.question](*chosen))
        # which strengths are sampled is known only when all are trained
        done = answered(plan.forgetting_questions(*chosen))
        return done and answered(plan.picture_questions(results, *chosen))


def reported(args: argparse.Namespace, results) -> str:
    """The tables; the pictures are written where they are wanted."""
    from benchmarks.forgetting.draw import draw_modes, draw_sizes, draw_trade_off
    from benchmarks.forgetting.prior import prior_report
    from benchmarks.forgetting.report import report
    from benchmarks.forgetting.sizes import size_report
    from benchmarks.forgetting.tasks import FORGETTING, PRIOR, SIZES

    pictures = {
        FORGETTING: {"trade_off": draw_trade_off, "modes": draw_modes}, SIZES: {"sizes": draw_sizes}, PRIOR: {},
    }  # fmt: skip
    for name, draw in pictures[args.question].items() if args.plots else ():
        draw(results, args.plots / f"forgetting_{name}.png", args.methods, args.quick)
    reports = {FORGETTING: report, SIZES: size_report, PRIOR: prior_report}
    return reports[args.question](results, args.methods, args.quick)


if __name__ == "__main__":
    sys.exit(main())
