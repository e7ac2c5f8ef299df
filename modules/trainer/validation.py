"""Validation loss with fixed noise and timesteps: the same numbers each time, so that only the weights change it."""

from modules.dataLoader.TrainingData import TrainingData
from modules.model.BaseModel import BaseModel
from modules.trainer.objective import batch_losses
from modules.trainer.randomness import step_generator

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
            # nothing that is measured asks the model without what is trained
            losses = batch_losses(config, model, batch, step_generator(seed, "validation", index, draw), {})
            total += losses.sum().item()
            count += len(losses)
    return total / count
