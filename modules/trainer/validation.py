"""Validation loss with fixed noise and timesteps: the same numbers each time, so that only the weights change it."""

from modules.dataLoader.TrainingData import TrainingData
from modules.model.BaseModel import BaseModel
from modules.trainer.loss import image_losses
from modules.util.keyed_random import step_generator

import torch

# Each image is measured at several noise draws; one alone would say more about its noise than about the weights.
DRAWS = 4


@torch.no_grad()
def validation_loss(model: BaseModel, data: TrainingData, seed: int, draws: int = DRAWS) -> float:
    """Mean loss over all validation images and some draws of noise and timestep, the same at every call."""
    config, total, count = model.config, 0.0, 0
    for index, planned in enumerate(data.plan(0)):
        batch = data.load(planned)
        for draw in range(draws):
            generator = step_generator(seed, "validation", index, draw)
            prediction = model.predict_batch(batch, generator)
            losses = image_losses(config, prediction, batch.loss_weight, batch.mask)
            total += losses.sum().item()
            count += len(losses)
    return total / count
