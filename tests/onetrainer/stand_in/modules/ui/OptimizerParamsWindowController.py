from modules.util.config.TrainConfig import TrainOptimizerConfig


class OptimizerParamsWindowController:
    def __init__(self, config):
        self.config = config

    def on_close(self):
        self.config.optimizer_defaults[str(self.config.optimizer.optimizer)] = self.config.optimizer

    def prepare_muon_adam_config(self):
        return TrainOptimizerConfig.default_values(), self.config.optimizer.optimizer

    def save_muon_adam_config(self, adam_config):
        self.config.optimizer.muon_adam_config = adam_config.to_dict()
