import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from modules.trainer.GenericTrainer import GenericTrainer
from modules.trainer.MultiTrainer import MultiTrainer
from modules.util.args.TrainArgs import TrainArgs
from modules.util.config.TrainConfig import TrainConfig


def main():
    args = TrainArgs.parse_args()
    config = TrainConfig.default_values().from_dict(json.loads(Path(args.config_path).read_text()))
    if config.device_indexes:
        MultiTrainer(config).train()
        return
    trainer = GenericTrainer(config)
    trainer.start()
    trainer.train()
    trainer.end()


if __name__ == "__main__":
    main()
