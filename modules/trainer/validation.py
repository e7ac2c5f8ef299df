"""Validation loss with fixed noise and timesteps: the same numbers each time, so that only the weights change it."""

from collections.abc import Mapping

from modules.dataLoader.Feed import Feed
from modules.dataLoader.plan import PlannedBatch
from modules.dataLoader.TrainingData import TrainingData
from modules.model.BaseModel import BaseModel
from modules.trainer.objective import batch_losses
from modules.trainer.TrainedSet import TrainedSet
from modules.util.keyed_random import step_generator
from modules.util.World import ALONE, World

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
    world: World = ALONE,
    in_step: bool = False,
) -> float:
    """Mean loss over all images of `data` and some draws of noise and timestep, the same at every call.

    Args:
        model: that is measured.
        data: the images.
        seed: of the draws.
        draws: for each image.
        trained: what is trained on the model, where images may ask it without; None: nothing.
        world: the processes of the run, each of which takes a part of the batches.
        in_step: whether all have to call the model equally often; who has fewer batches asks for the last once more.
    """
    config, total, count = model.config, 0.0, 0
    planned = data.plan(0)
    threads, own = config.dataloader_threads, list(world.own(range(len(planned))))
    counted = len(own)
    if in_step and counted < -(-len(planned) // world.size):
        own.append(len(planned) - 1)

    asked = set(own)

    def share(index: int) -> PlannedBatch | None:
        return planned[index] if index in asked else None

    with Feed(data, share, len(planned), threads, model.device, world.size) as feed:
        for place, index in enumerate(own):
            # what has to be encoded is kept under a key that says nothing of autocast
            with torch.autocast(model.device.type, enabled=False):
                batch = feed.batch(index)
            for draw in range(draws):
                generator = step_generator(seed, "validation", index, draw)
                losses = batch_losses(config, model, batch, generator, trained or {})
                if place < counted:
                    total += losses.sum().item()
                    count += len(losses)
    total, count = world.sum(torch.tensor([total, count], dtype=torch.float64)).tolist()
    return total / count
