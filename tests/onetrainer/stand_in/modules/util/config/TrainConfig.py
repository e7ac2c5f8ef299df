from modules.util.config.BaseConfig import BaseConfig
from modules.util.enum.LearningRateScheduler import LearningRateScheduler
from modules.util.enum.ModelType import PeftType
from modules.util.enum.Optimizer import Optimizer
from modules.util.enum.TrainingMethod import TrainingMethod


class TrainOptimizerConfig(BaseConfig):
    @staticmethod
    def default_values():
        fields = {
            "optimizer": (Optimizer.ADAMW, Optimizer, False),
            "beta1": (None, float, True),
            "beta2": (None, float, True),
            "eps": (None, float, True),
            "weight_decay": (None, float, True),
            # a switch here, and a word in ours
            "orthogonal_gradient": (False, bool, False),
            "stochastic_rounding": (False, bool, False),
            "muon_te1_adam_lr": (None, float, True),
            "muon_te2_adam_lr": (None, float, True),
            "muon_adam_config": (None, dict, True),
            "fused_back_pass": (False, bool, False),
            "compile": (False, bool, False),
        }
        return TrainOptimizerConfig([(name, *field) for name, field in fields.items()])


class TrainModelPartConfig(BaseConfig):
    @staticmethod
    def default_values():
        fields = {
            "train": (True, bool, False),
            "learning_rate": (None, float, True),
            "offload_fraction": (0.0, float, False),
        }
        return TrainModelPartConfig([(name, *field) for name, field in fields.items()])


class TrainConfig(BaseConfig):
    def model_part_configs(self):
        return [self.unet]

    def to_settings_dict(self, secrets):
        return {key: value for key, value in self.to_dict().items() if secrets or key != "secrets"}

    def to_pack_dict(self, secrets):
        return {key: value for key, value in self.to_dict().items() if secrets or key != "secrets"}

    @staticmethod
    def default_values():
        fields = {
            "training_method": (TrainingMethod.LORA, TrainingMethod, False),
            "learning_rate": (1e-2, float, False),
            "learning_rate_scheduler": (LearningRateScheduler.CONSTANT, LearningRateScheduler, False),
            "custom_learning_rate_scheduler": (None, str, True),
            "optimizer": (TrainOptimizerConfig.default_values(), TrainOptimizerConfig, False),
            "optimizer_defaults": ({}, dict, False),
            "unet": (TrainModelPartConfig.default_values(), TrainModelPartConfig, False),
            "peft_type": (PeftType.LORA, PeftType, False),
            "lora_rank": (4, int, False),
            "lora_alpha": (4.0, float, False),
            "lora_decompose": (False, bool, False),
            "fused_qkv": (False, bool, False),
            "oft_block_size": (4, int, False),
            "oft_block_share": (False, bool, False),
            "oft_scaled": (False, bool, False),
            "dropout_probability": (0.0, float, False),
            "steps": (4, int, False),
            "gradient_scaler": (False, bool, False),
            "workspace_dir": ("workspace", str, False),
            "continue_last_backup": (False, bool, False),
            "output_model_destination": ("out.safetensors", str, False),
            "tensorboard": (False, bool, False),
            "train_device": ("cpu", str, False),
            "device_indexes": ("", str, False),
            "secrets": (None, str, True),
        }
        return TrainConfig([(name, *field) for name, field in fields.items()])
