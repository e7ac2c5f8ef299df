import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import partial

from modules.dataLoader.Batch import Batch
from modules.dataLoader.plan import PlannedBatch
from modules.dataLoader.prepare_data import prepare_data
from modules.dataLoader.TrainingData import TrainingData
from modules.model.BaseModel import family_of
from modules.model.hub import Hub, Progress
from modules.module.AdapterModule import AdapterModule
from modules.module.AdapterSet import AdapterSet, adaptable_layers
from modules.module.dense_weight import dense_weight
from modules.module.WeightSet import WeightSet
from modules.tool.coord_check.step_change import MeasuredLayer, StepChange, measure_step, record_inputs
from modules.tool.coord_check.variants import Variant
from modules.trainer.devices import resolve_device
from modules.trainer.loss import loss_scale
from modules.trainer.lr_schedule import scaled_learning_rate
from modules.trainer.Method import check_trained, trained_components
from modules.trainer.objective import batch_losses
from modules.trainer.optimizers import create_optimizer, optimizer_notes
from modules.trainer.trained import make_trained, methods_of, options_of
from modules.trainer.TrainedSet import TrainedSet
from modules.util.config.load import resolve_concepts
from modules.util.config.TrainConfig import TrainConfig
from modules.util.dtypes import autocast
from modules.util.enum.DataType import DataType
from modules.util.enum.TrainingMethod import TrainingMethod
from modules.util.keyed_random import step_generator, step_seed
from modules.util.LayerFilter import LayerFilter
from modules.util.ParameterInfo import layer_path
from modules.util.UserError import UserError

import torch
from torch import Tensor, nn

# The scaler of float16 halves its scale at each overflow: from 2^16 to far below 1
MOST_OVERFLOWS = 32
PROBE = "coordinate check"


class Diverged(Exception):
    """A loss or gradient is not finite."""


class CheckedBase:
    """A base model and a few batches, on which variants of a config are trained for a few steps, each from the start.

    Nothing is written, no cache either. A step has one batch, whatever `gradient_accumulation_steps` says.

    Args:
        config: of the run, see `prepared`.
        steps: of the longest training.
        batch: images of a batch, at least 1.
        warn: gets remarks, one line each.
        on_download: is told of what comes from the hub.

    Attributes:
        width: median of the measured layers' inputs (channels of a convolution).

    Raises:
        UserError: something can't be read, or nothing is trained.
    """

    def __init__(
        self,
        config: TrainConfig,
        steps: int,
        batch: int,
        warn: Callable[[str], None],
        on_download: Progress = lambda stage, done, total: None,
    ) -> None:
        # or the model would not put its components away
        self.config = config = config.model_copy(update={"latent_caching": True})
        self.warn = warn
        family = family_of(config)
        check_trained(config, family.trainable_components)
        self.components = trained_components(config, family.trainable_components)
        self.device = resolve_device(config)
        concepts = resolve_concepts(config, warn=warn)
        self.model = family.load(config, self.device, Hub(config, on_download, warn))
        self.text_trained = any(own.trains_text(config, family.trainable_components) for own in methods_of(config))
        # what is not cached is encoded where it is used, and only that
        data_config = config.model_copy(update={"latent_caching": False, "batch_size": batch})
        data = prepare_data(data_config, concepts, self.model, cache_text=not self.text_trained, warn=warn)
        self.batches = _batches(data, steps)
        # of the second epoch, so that it is the same whatever the number of steps
        self.probe = data.load(_planned(data, 1)[0])
        self.model.text_encoder_trained = self.text_trained
        self.model.rest()
        layers = self._chosen_layers()
        self.inputs = record_inputs(layers, self._predict)
        missed = len(layers) - len(self.inputs)
        if missed:
            warn(f"{missed} of {len(layers)} layers are not called in a prediction; they are not measured.")
        self.width = round(statistics.median(_inputs_of(layers[name]) for name in self.inputs))

    def measure(
        self, variant: Variant, warm: Sequence[int], on_step: Callable[[], None] = lambda: None
    ) -> dict[int, StepChange | None]:
        """Trains a variant and measures single steps.

        Args:
            variant: what is trained.
            warm: numbers of steps before the one that is measured, each at least 0.
            on_step: is told of each step.

        Returns:
            Steps before -> what the next one changed; None if training diverged before its end.

        Raises:
            UserError: the variant can't be trained.
        """
        sets: dict[str, TrainedSet] = {}
        try:
            sets = make_trained(self.model, variant.config, self.warn)
            self.model.text_encoder_trained = self.text_trained
            return self._train(variant.config, sets, warm, on_step)
        except torch.OutOfMemoryError as error:
            raise UserError(
                f"{variant.name}: the memory of {self.device} is too small for {self.config.base_model_name}. Leave "
                "its method out with --methods, take a smaller --batch, or switch gradient_checkpointing on."
            ) from error
        finally:
            for own in sets.values():
                if isinstance(own, AdapterSet):
                    own.unhook()
            if variant.config.training_method == TrainingMethod.FINE_TUNE:
                # the weights themselves have changed: they are read again
                for component in self.components:
                    self.model.components.free(component)

    def _train(
        self, config: TrainConfig, sets: Mapping[str, TrainedSet], warm: Sequence[int], on_step: Callable[[], None]
    ) -> dict[int, StepChange | None]:
        training = _Training(config, sets)
        for note in optimizer_notes(training.optimizer):
            self.warn(note)
        layers = {name: layer for own in sets.values() for name, layer in measured_layers(own).items()}
        found: dict[int, StepChange | None] = dict.fromkeys(warm)

        def step(number: int) -> None:
            for own in sets.values():
                own.train()
            training.step(lambda: self._loss(config, sets, number))
            for own in sets.values():
                own.eval()
            on_step()

        for own in sets.values():
            own.eval()
        try:
            for number in range(max(warm) + 1):
                if number in found:
                    found[number] = measure_step(layers, self.inputs, self._predict, partial(step, number))
                else:
                    step(number)
        except Diverged:
            pass
        return found

    def _loss(self, config: TrainConfig, sets: Mapping[str, TrainedSet], number: int) -> Tensor:
        """Of the batch of one step, scaled as a run scales it."""
        batch = self.batches[number]
        # dropout draws from the global generator
        torch.manual_seed(step_seed(config.seed, "dropout", number))
        generator = step_generator(config.seed, "noise", number)
        return batch_losses(config, self.model, batch, generator, sets).mean() * loss_scale(config)

    @torch.no_grad()
    def _predict(self) -> Tensor:
        """For the probe, with the same noise and timesteps at every call."""
        with self._autocast():
            return self.model.predict_batch(self.probe, step_generator(self.config.seed, PROBE)).predicted

    def _autocast(self) -> AbstractContextManager:
        return autocast(self.config, self.device)

    def _chosen_layers(self) -> dict[str, nn.Module]:
        """Linear layers and convolutions that the config trains, by their whole names."""
        chosen, found = LayerFilter.from_config(self.config, self.model.layer_filter_presets), {}
        for component in self.components:
            layers = adaptable_layers(self.model.components[component])
            # text encoders are trained whole
            names = layers if component.startswith("text_encoder") else chosen.select(layers, component)
            found |= {layer_path(component, name): layers[name] for name in names}
        return found


class _Training:
    """An optimizer on what is trained, at a constant rate, with the clipping and scaling of a run."""

    def __init__(self, config: TrainConfig, sets: Mapping[str, TrainedSet]) -> None:
        rates = {name: scaled_learning_rate(config, options_of(config, name).learning_rate) for name in sets}
        if not any(rates.values()):
            raise UserError("learning_rate: is 0, so a step changes nothing. Give --rate.")
        groups = [{"params": own.parameters(), "lr": rates[name], "name": name} for name, own in sets.items()]
        self.parameters = [parameter for own in sets.values() for parameter in own.parameters()]
        self.optimizer = create_optimizer(config.optimizer, groups, config.seed)
        self.limit = math.inf if config.clip_grad_norm is None else config.clip_grad_norm
        device = self.parameters[0].device.type
        self.scaler = torch.amp.GradScaler(device, enabled=config.train_dtype == DataType.FLOAT_16)

    def step(self, loss_of: Callable[[], Tensor]) -> None:
        """One step. With float16 it is tried again until nothing overflows, as a run does in its first steps.

        Raises:
            Diverged: the loss, or the gradient at any scale, is not finite.
        """
        for _ in range(MOST_OVERFLOWS if self.scaler.is_enabled() else 1):
            loss = loss_of()
            if not math.isfinite(loss.item()):
                break
            self.scaler.scale(loss).backward()
            self.scaler.unscale_(self.optimizer)
            finite = math.isfinite(torch.nn.utils.clip_grad_norm_(self.parameters, self.limit).item())
            if finite or self.scaler.is_enabled():
                self.scaler.step(self.optimizer)
                self.scaler.update()
            self.optimizer.zero_grad(set_to_none=True)
            if finite:
                return
        raise Diverged


def measured_layers(own: TrainedSet) -> dict[str, MeasuredLayer]:
    """Linear layers and convolutions of a trained set, by their whole names, as they work with what is trained now."""
    if isinstance(own, AdapterSet):
        return {
            adapter.full_name: MeasuredLayer(adapter.layer, partial(_adapted_weight, adapter))
            for adapter in own.adapters.values()
        }
    if not isinstance(own, WeightSet):
        return {}
    layers, trained = adaptable_layers(own.root_module), own.named_parameters()
    return {
        layer_path(own.component, name): MeasuredLayer(layer, partial(dense_weight, layer))
        for name, layer in layers.items()
        if f"{name}.weight" in trained
    }


def _adapted_weight(adapter: AdapterModule) -> Tensor:
    delta = adapter.merged_delta()
    return dense_weight(adapter.layer).to(delta.device) + delta


def _batches(data: TrainingData, count: int) -> list[Batch]:
    """The first `count` batches of the run, over as many epochs as they take."""
    found: list[Batch] = []
    epoch = 0
    while len(found) < count:
        found += [data.load(one) for one in _planned(data, epoch)[: count - len(found)]]
        epoch += 1
    return found


def _planned(data: TrainingData, epoch: int) -> list[PlannedBatch]:
    planned = data.plan(epoch)
    if not planned:
        raise UserError("concepts: balancing is 0 for all, so no image is trained. Raise it for one.")
    return planned


def _inputs_of(layer: nn.Module) -> int:
    return layer.in_features if isinstance(layer, nn.Linear) else layer.in_channels
