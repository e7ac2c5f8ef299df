"""Validation loss with fixed noise and timesteps: the same numbers each time, so that only the weights change it."""

from collections.abc import Mapping

from modules.dataLoader.Feed import Feed
from modules.dataLoader.TrainingData import TrainingData
from modules.model.BaseModel import BaseModel
from modules.trainer.objective import batch_losses
from modules.trainer.TrainedSet import TrainedSet
from modules.util.keyed_random import step_generator

import torch

# Each image is measured at several noise draws; one alone would say more about its noise than about the weights.
DRAWS = 4


@torch.no_grad()
def validation_loss(
    model: BaseModel,
    data: TrainingData,
    seed: int,
    draws: int = DRAWS,
    trained: Mapping[str, TrainedSet] | None = None,
) -> float:
    """Mean loss over all images of `data` and some draws of noise and timestep, the same at every call.

    Args:
        model: that is measured.
        data: the images.
        seed: of the draws.
        draws: for each image.
        trained: what is trained on the model, where images may ask it without; None: nothing.
    """
    config, total, count = model.config, 0.0, 0
    planned = data.plan(0)
    with Feed(data, planned.__getitem__, len(planned), config.dataloader_threads, model.device) as feed:
        for index in range(len(planned)):
            # what has to be encoded is kept under a key that says nothing of autocast
            with torch.autocast(model.device.type, enabled=False):
                batch = feed.batch(index)
            for draw in range(draws):
                generator = step_generator(seed, "validation", index, draw)
                losses = batch_losses(config, model, batch, generator, trained or {})
                total += losses.sum().item()
                count += len(losses)
    return total / count
