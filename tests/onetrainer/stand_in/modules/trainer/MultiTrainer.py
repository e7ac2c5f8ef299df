from modules.util.config.TrainConfig import TrainConfig

import torch


class MultiTrainer:
    """Reads the config in a process of its own, as each further device does, and says what it read."""

    def __init__(self, config):
        self.config = config

    @staticmethod
    def _train_process(rank, config_dict):
        config = TrainConfig.default_values().from_dict(config_dict)
        print(f"child {rank}: {config.optimizer.optimizer}", flush=True)

    def train(self):
        packed = self.config.to_pack_dict(secrets=True)
        torch.multiprocessing.spawn(MultiTrainer._train_process, args=(packed,), nprocs=1)
