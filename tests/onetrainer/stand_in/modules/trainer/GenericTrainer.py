from pathlib import Path

from modules.modelLoader.mixin.InternalModelLoaderMixin import InternalModelLoaderMixin
from modules.modelSaver.PairLoRASaver import PairLoRASaver
from modules.modelSetup.PairSetup import PairSetup
from modules.util import create
from modules.util.config.TrainConfig import TrainConfig
from modules.util.CustomGradScaler import CustomGradScaler
from modules.util.enum.ModelFormat import ModelFormat

import torch
from torch import nn


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.to_q, self.to_k, self.to_v = (nn.Linear(8, 8, bias=False) for _ in range(3))

    def forward(self, x):
        return self.to_q(x) * torch.sigmoid(self.to_k(x)) + self.to_v(x)


class Pair(nn.Module):
    """A layer on each side of an attention and a convolution."""

    def __init__(self):
        super().__init__()
        self.first, self.attention = nn.Linear(8, 8), Attention()
        self.conv, self.second = nn.Conv2d(4, 4, (1, 3), padding=(0, 1)), nn.Linear(8, 8)

    def forward(self, x):
        x = self.attention(self.first(x))
        return self.second(self.conv(x.unflatten(-1, (4, 1, 2))).flatten(-3))


class Progress:
    global_step = 0


class Model:
    def __init__(self, config):
        torch.manual_seed(0)
        self.unet, self.train_config, self.train_progress = Pair(), config, Progress()
        self.optimizer_state_dict = self.adapter_state = self.adapter = None


class GenericTrainer:
    def __init__(self, config: TrainConfig, tensorboard=None):
        self.config, self.tensorboard, self.setup = config, tensorboard, PairSetup()
        self.backup_path = Path(config.workspace_dir) / "backup"

    def start(self):
        self.model = Model(self.config)
        if self.config.continue_last_backup:
            InternalModelLoaderMixin()._load_internal_data(self.model, self.backup_path)
        # the same start values whatever was drawn before
        torch.manual_seed(1)
        self.setup.setup_model(self.model, self.config)
        self.lr_scheduler = create.create_lr_scheduler(self.config, self.model.optimizer)
        self.scaler = CustomGradScaler() if self.config.gradient_scaler else None
        self.fused = self.config.optimizer.fused_back_pass
        self.fused = self.fused and self.config.optimizer.optimizer.supports_fused_back_pass()
        if self.fused:
            self._step_in_backward()

    def _step_in_backward(self):
        optimizer = self.model.optimizer

        def hook(tensor, group, i):
            if self.scaler is None:
                optimizer.step_parameter(tensor, group, i)
            else:
                self.scaler.unscale_parameter_(tensor, optimizer)
                self.scaler.maybe_opt_step_parameter(tensor, group, i, optimizer)
            tensor.grad = None

        for group in optimizer.param_groups:
            for i, parameter in enumerate(group["params"]):
                parameter.register_post_accumulate_grad_hook(lambda tensor, g=group, i=i: hook(tensor, g, i))

    def train(self):
        model = self.model
        for _ in range(self.config.steps):
            generator = torch.Generator().manual_seed(model.train_progress.global_step)
            x = torch.randn(16, 8, generator=generator)
            loss = (model.unet(x) - x.flip(-1)).square().mean()
            (loss if self.scaler is None else self.scaler.scale(loss)).backward()
            if self.scaler is None:
                model.optimizer.step()
            model.optimizer.zero_grad(set_to_none=True)
            self.lr_scheduler.step()
            model.train_progress.global_step += 1
            if self.tensorboard is not None:
                self.setup.report_to_tensorboard(model, self.config, self.lr_scheduler, self.tensorboard)
        print(f"step {model.train_progress.global_step}, loss {loss.item():.6f}")

    def end(self):
        saver = PairLoRASaver()
        saver._save_internal_data(self.model, self.backup_path)
        if self.model.adapter is not None:
            saver.save(self.model, ModelFormat.INTERNAL, self.backup_path)
            saver.save(self.model, ModelFormat.SAFETENSORS, self.config.output_model_destination)
