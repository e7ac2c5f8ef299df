"""OneTrainer's run of the comparison of trainers. Prints JSON: the time of each step's end, memory, trained numbers.

    python scaled-onetrainer/checks/timed.py --onetrainer DIR --work FOLDER --config JSON

To be run with the checkout's own Python. Nothing of the plugin is imported here.
"""

import argparse
import json
import resource
import sys
import time
from pathlib import Path
from typing import Any

import torch

from upstream import config_of, enter, train


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--onetrainer", type=Path, required=True, metavar="DIR", help="a checkout of OneTrainer")
    parser.add_argument("--work", type=Path, required=True, metavar="FOLDER", help="for what the run writes")
    parser.add_argument("--config", type=Path, required=True, metavar="JSON", help="options over those of the checks")
    args = parser.parse_args()
    settings, work = json.loads(args.config.read_text(encoding="utf-8")), args.work.resolve()
    torch.set_num_threads(1)
    enter(args.onetrainer.resolve())
    ended: list[float] = []

    def note_steps(trainer: Any) -> None:
        add = trainer.tensorboard.add_scalar

        def add_scalar(tag: str, value: Any, *more: Any, **named: Any) -> None:
            if tag == "loss/train_step":
                ended.append(time.time())
            add(tag, value, *more, **named)

        trainer.tensorboard.add_scalar = add_scalar

    run = train(config_of(work, settings), before_training=note_steps)
    trained = sum(parameter.numel() for parameter in run.trainer.parameters)
    print(json.dumps({"ended": ended, "peak_bytes": peak_bytes(), "trained": trained}))
    return 0


def peak_bytes() -> int:
    """The most memory that this process held so far."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # macOS counts bytes, others KiB
    return peak if sys.platform == "darwin" else 1024 * peak


if __name__ == "__main__":
    sys.exit(main())
