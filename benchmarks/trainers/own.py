"""Our run of the comparison, in a process of its own: python -m benchmarks.trainers.own CONFIG. Prints JSON."""

import json
import sys
import time
from pathlib import Path
from typing import Any

from modules.trainer.events import TrainCommands, TrainEvents
from modules.trainer.report import peak_memory_bytes
from modules.trainer.Trainer import Trainer
from modules.util.config.load import load_train_config


def main() -> None:
    """Trains; the last line has the time of each step's end, peak memory and the number of trained numbers."""
    ended: list[float] = []

    def listen(kind: str, values: dict[str, Any]) -> None:
        if kind == "step":
            ended.append(time.time())

    trainer = Trainer(load_train_config(Path(sys.argv[1])), TrainEvents([listen]), TrainCommands())
    trainer.run()
    trained = sum(parameter.numel() for parameter in trainer.parameters)
    print(json.dumps({"ended": ended, "peak_bytes": peak_memory_bytes(trainer.device), "trained": trained}))


if __name__ == "__main__":
    main()
