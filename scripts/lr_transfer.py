"""Does a learning rate that was tuned once fit everywhere? Trains small models again and again, and draws the answer.

For every task, rule and size it searches the best learning rate with several seeds, then trains everything at the rate
that is best for a LoRA of rank 16, and tells what that costs. Each training is written at once; a call with the same
--output goes on where the last one stopped.
"""

import argparse
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.measurement_command import add_usual_arguments, deadline, parse_usual, run_command, show

PACKAGES = ("torch", "diffusers", "transformers", "tokenizers")


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The command line; exits with 2 if it makes no sense."""
    from benchmarks.transfer.questions import AXES, RULE_NAMES, SEEDS
    from benchmarks.transfer.tasks import TASKS

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_usual_arguments(
        parser,
        quick="a slice: one task, rule and seed, few sizes, scaled steps",
        plots="write a picture for each task here",
    )
    parser.add_argument("--tasks", nargs="+", choices=list(TASKS), default=list(TASKS), help="what is learned")
    parser.add_argument("--rules", nargs="+", choices=RULE_NAMES, default=list(RULE_NAMES), help="optimizers")
    parser.add_argument("--axes", nargs="+", choices=[axis.name for axis in AXES], metavar="AXIS",
                        help="over what: rank, 'block size', width, method; all")  # fmt: skip
    parser.add_argument("--seeds", type=int, nargs="+", default=list(SEEDS), help="of scaled steps")
    parser.add_argument("--plain-seeds", type=int, nargs="*", default=[SEEDS[0]], help="of plain steps; none at all")
    args = parse_usual(parser, arguments)
    if args.quick:
        args.tasks, args.rules, args.seeds, args.plain_seeds = ["lumo"], ["ADAMW_ADV"], [SEEDS[0]], []
    return args


def main(arguments: list[str] | None = None) -> int:
    """Runs the command line; returns its exit status."""
    return run_command(parse, measure, arguments)


def measure(args: argparse.Namespace) -> int:
    from benchmarks.measuring import environment
    from benchmarks.transfer.draw import draw_transfer
    from benchmarks.transfer.overview import draw_overview
    from benchmarks.transfer.plan import questions, transfer_questions
    from benchmarks.transfer.report import report
    from benchmarks.transfer.Results import Results
    from benchmarks.transfer.runner import Trial, run

    import torch

    head = {"script": "scripts/lr_transfer.py", **environment(torch.device("cpu"), PACKAGES)}
    results = Results(args.output, head)
    until = deadline(args)

    def told(trial: Trial, loss: float) -> None:
        own = trial.setting
        kind = "scaled" if own.scaled else "plain"
        name = f"{own.task} {own.width} {own.rule} {kind} {own.label()}"
        print(f"{name} seed {trial.seed} rate {trial.rate:g}: {loss:.4f}", flush=True)

    if not args.only_report:
        seeds = {True: args.seeds, False: args.plain_seeds}
        chosen = args.tasks, args.rules, seeds, args.axes, args.quick
        done = run(questions(*chosen), results, args.jobs, told, until)
        # the rate to transfer is known only now
        done = done and run(transfer_questions(results, *chosen), results, args.jobs, told, until)
        if not done:
            print("stopped at --minutes; the same command goes on from here")
    text = report(results, args.tasks, args.rules)
    show(args, text)
    for task in args.tasks if args.plots else ():
        draw_transfer(results, args.plots / f"lr_transfer_{task}.png", task, args.rules)
    if args.plots:
        draw_overview(results, args.plots / "transfer.png", args.tasks[0], args.rules[0])
    return 0


if __name__ == "__main__":
    sys.exit(main())
