"""From a batch to one loss per image: the same way for training, validation, estimates and measurements."""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import ClassVar

from modules.dataLoader.Batch import Batch
from modules.model.BaseModel import BaseModel
from modules.model.Draw import Draw
from modules.model.Prediction import Prediction
from modules.trainer.loss import image_losses
from modules.trainer.TrainedSet import TrainedSet
from modules.util.config.TrainConfig import TrainConfig
from modules.util.dtypes import autocast
from modules.util.enum.ConceptType import ConceptType
from modules.util.World import ALONE, World

import torch
from torch import Tensor


@dataclass(frozen=True)
class DrawnBatch:
    """A batch with the noise and the timesteps that a step has drawn for it.

    Attributes:
        model: that is asked.
        batch: wherever it lies.
        draw: of the step.
        trained: what the run trains, by name.
    """

    model: BaseModel
    batch: Batch
    draw: Draw
    trained: Mapping[str, TrainedSet]

    @torch.no_grad()
    def untrained(self, images: list[int]) -> Tensor:
        """What the model predicts for some images of the batch, with the same draw, without what the run trains."""
        with ExitStack() as stack:
            for trained_set in self.trained.values():
                stack.enter_context(trained_set.left_out())
            # of all captions, as the batch says in how many chunks they are read
            conditions = self.model.conditions_of(self.batch)
            chosen = {name: value[images] for name, value in conditions.items()}
            return self.model.predict_drawn(self.batch.latents[images], chosen, self.draw.of(images)).predicted


class Objective:
    """What images are trained toward, and how far the model is from it: here as diffusion models are trained.

    Another objective is a subclass, and a line in `OBJECTIVES`.

    Attributes:
        asks_model: whether `target` calls the model, once.
    """

    asks_model: ClassVar[bool] = False

    def target(self, batch: DrawnBatch, images: list[int]) -> Tensor | None:
        """What the model should predict, without gradient; None: the family's own target.

        Called before anything is computed with gradient, so that the memory of both is not held at once, and adapters
        keep what they have prepared for the backward pass.

        Args:
            batch: that the step trains.
            images: those of this objective, by their places in the batch.
        """
        return None

    def losses(self, config: TrainConfig, prediction: Prediction, weight: Tensor, mask: Tensor | None) -> Tensor:
        """Loss of each image, `[b]`; see `image_losses`."""
        return image_losses(config, prediction, weight, mask)


class PriorPrediction(Objective):
    """Toward what the model predicts without what is trained, with the same draw: such images change nothing.

    They hold the model where it is while other images pull (prior preservation of arXiv 2208.12242, whose images are
    the model's own; here they may be any, as the target is a prediction, not the image).
    """

    asks_model = True

    def target(self, batch: DrawnBatch, images: list[int]) -> Tensor:
        return batch.untrained(images)


OBJECTIVES: dict[ConceptType, Objective] = {
    ConceptType.STANDARD: Objective(),
    ConceptType.VALIDATION: Objective(),
    ConceptType.PRIOR_PREDICTION: PriorPrediction(),
}


def batch_losses(
    config: TrainConfig,
    model: BaseModel,
    batch: Batch,
    generator: torch.Generator,
    trained: Mapping[str, TrainedSet],
    in_step: World = ALONE,
) -> Tensor:
    """Loss of each image of a batch, `[b]`, each by the objective of its concept's type.

    Args:
        config: loss strengths, weights and number format.
        model: that is trained.
        batch: of the data room, wherever it lies.
        generator: noise and timesteps are drawn from it, on the CPU.
        trained: what the run trains, by name; see `make_trained`.
        in_step: the processes that have to call the model as often as this one.
    """
    places = _places(batch.types)
    with autocast(config, model.device):
        drawn = DrawnBatch(model, batch, _draw(model, batch, generator), trained)
        targets = _targets(drawn, places, in_step)
        prediction = model.predict_drawn(batch.latents, model.conditions_of(batch), drawn.draw)
    losses = [
        OBJECTIVES[kind].losses(config, *_chosen(prediction, targets[kind], batch, images))
        for kind, images in places.items()
    ]
    if len(losses) == 1:
        return losses[0]
    order = torch.tensor([image for images in places.values() for image in images])
    return torch.cat(losses)[order.argsort().to(losses[0].device)]


def _targets(
    drawn: DrawnBatch, places: Mapping[ConceptType, list[int]], world: World
) -> dict[ConceptType, Tensor | None]:
    """The target of each objective whose images the batch has; the model is called as often in all processes."""
    known = list(OBJECTIVES)
    asked = world.any_of([kind in places and OBJECTIVES[kind].asks_model for kind in known])
    targets = {}
    for kind, anywhere in zip(known, asked, strict=True):
        if kind in places:
            targets[kind] = OBJECTIVES[kind].target(drawn, places[kind])
        elif anywhere:
            drawn.untrained([0])
    return targets


def _draw(model: BaseModel, batch: Batch, generator: torch.Generator) -> Draw:
    """What the step draws for these images; the same for an image, whatever part of its batch they are."""
    own, *shape = batch.latents.shape
    whole = batch.whole or own
    draw = model.draw(torch.Size((whole, *shape)), generator)
    return draw if own == whole else draw.of(list(range(batch.first, batch.first + own)))


def _places(types: Sequence[ConceptType]) -> dict[ConceptType, list[int]]:
    """Type -> places of its images in the batch."""
    places: dict[ConceptType, list[int]] = {}
    for place, kind in enumerate(types):
        places.setdefault(kind, []).append(place)
    return places


def _chosen(
    prediction: Prediction, target: Tensor | None, batch: Batch, images: list[int]
) -> tuple[Prediction, Tensor, Tensor | None]:
    """Prediction, concept weights and masks of some images, which are cut out only where they are not all."""
    weight, mask = batch.loss_weight, batch.mask
    if len(images) < len(batch.types):
        prediction, weight = prediction.of(images), weight[images]
        mask = None if mask is None else mask[images]
    return prediction if target is None else replace(prediction, target=target), weight, mask
