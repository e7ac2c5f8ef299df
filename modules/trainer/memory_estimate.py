"""Where the memory of a run will go, before any weight is there: its first steps, on tensors without numbers."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from modules.dataLoader.Batch import Batch
from modules.model.BaseModel import BaseModel, family_of
from modules.model.LayerOffload import module_bytes, waiting_units
from modules.model.ModelParts import ModelParts
from modules.model.StandardSource import StandardSource
from modules.model.weight_formats import check_offload, place_part
from modules.trainer.autocast import autocast
from modules.trainer.FusedBackward import FusedBackward
from modules.trainer.loss import image_losses
from modules.trainer.optimizers import create_optimizer
from modules.trainer.trained import make_trained, methods_of
from modules.util.config.resolution import parse_resolutions
from modules.util.config.TrainConfig import TrainConfig
from modules.util.enum.EMAMode import EMAMode
from modules.util.enum.Optimizer import Optimizer
from modules.util.MemoryProbe import MemoryProbe
from modules.util.UserError import UserError

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

CPU = torch.device("cpu")
# states of one byte for each number that bitsandbytes keeps; its kernels take no tensors without numbers
EIGHT_BIT = {Optimizer.ADAMW_8BIT: 2, Optimizer.ADAM_8BIT: 2, Optimizer.LION_8BIT: 1}
EIGHT_BIT_BLOCK = 256


@dataclass
class MemoryEstimate:
    """Bytes on the training device, and beside it.

    Attributes:
        phases: phase -> what -> bytes that it needs on the device at the phase's peak.
        waiting: what -> bytes on the waiting device.
        notes: what the figures leave out.
    """

    phases: dict[str, dict[str, int]] = field(default_factory=dict)
    waiting: dict[str, int] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def total(self, phase: str) -> int:
        """Bytes of a phase."""
        return sum(self.phases[phase].values())

    def to_dict(self) -> dict[str, object]:
        return {"phases": self.phases, "waiting": self.waiting, "notes": self.notes}


class _ReadNumbers(TorchDispatchMode):
    """Where the run reads a number, as a norm, it gets one that is nearly nothing: that of a fresh adapter."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is not torch.ops.aten._local_scalar_dense.default:
            return func(*args, **(kwargs or {}))
        dtype = args[0].dtype
        return 1e-8 if dtype.is_floating_point else (False if dtype == torch.bool else 0)


def load_without_weights(config: TrainConfig, warn: Callable[[str], None]) -> BaseModel:
    """The model of a config for `estimate_memory`; the standard one of its type where its files can't be reached.

    Args:
        config: of the run.
        warn: is told if the standard model takes its place.

    Raises:
        UserError: the model is broken, or neither it nor a description of its type is here.
    """
    family = family_of(config)
    try:
        return family.load(config, CPU)
    except UserError as error:
        if Path(config.base_model_name).expanduser().exists():
            raise
        source = StandardSource(config.model_type)
        warn(f"{error} The estimate is that of {source.name}.")
        return family(config, source, CPU)


def memory_table(estimate: MemoryEstimate) -> str:
    """The estimate for people, in GiB."""
    rows = [("phase", "what", "GiB")]
    for phase, found in estimate.phases.items():
        rows += [(phase, what, f"{size / 2**30:.2f}") for what, size in found.items() if size]
        rows.append((phase, "sum", f"{estimate.total(phase) / 2**30:.2f}"))
    rows += [("waiting elsewhere", what, f"{size / 2**30:.2f}") for what, size in estimate.waiting.items()]
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    lines = [f"{a:{widths[0]}}  {b:{widths[1]}}  {c:>{widths[2]}}" for a, b, c in rows]
    return "\n".join([*lines, *estimate.notes])


def estimate_memory(
    model: BaseModel, config: TrainConfig, warn: Callable[[str], None], separate: bool | None = None
) -> MemoryEstimate:
    """What a run of `config` needs while it caches and while it trains.

    The run's own code encodes one batch and takes two steps on tensors that have shapes and formats but no numbers, so
    that every tensor counts that an operation makes, also what gradient checkpointing frees and makes anew. They are
    followed as a CPU computes them, which needs no GPU to be there. Not seen is what kernels need inside, what an
    allocator can't use, and the device's own libraries.

    Args:
        model: of the config, with none of its components loaded. It can't be used for anything else after this.
        config: of the run.
        warn: gets remarks of the adapters and the like.
        separate: whether parts wait in another memory than the device's; None: as `config` says.

    Raises:
        UserError: the run could not start with this config.
    """
    if separate is None:
        separate = torch.device(config.temp_device).type != ("cpu" if config.train_device == "cpu" else "cuda")
    estimate = MemoryEstimate()
    methods = methods_of(config)
    text_trained = any(method.trains_text(config, model.trainable_parts) for method in methods)
    parts = {name: _placed(model, name, config) for name in model.components}
    model.device = CPU
    with torch.random.fork_rng(devices=[]), FakeTensorMode(allow_non_fake_inputs=True), _ReadNumbers():
        empty = {name: _without_numbers(part, {}) for name, part in parts.items()}
        model.components = ModelParts(
            list(empty), lambda name: empty[name].requires_grad_(False).eval(), CPU, torch.device("cpu")
        )
        weights = {name: module_bytes(part) for name, part in empty.items()}
        batch = _cache(estimate, model, config, weights, text_trained)
        trained = make_trained(model, config, warn)
        model.text_encoder_trained = text_trained
        resident = _resident(config, model, weights, text_trained, separate)
        for name in weights.keys() - resident.keys():
            if name == "vae" and config.latent_caching:
                estimate.waiting[name] = weights[name]
        for name in resident if separate else ():
            units = waiting_units(empty[name], getattr(config, name).offload_fraction)
            # one is there while it is called, and the next takes its place
            held = [module_bytes(empty[name].get_submodule(unit)) for unit in units]
            if held:
                estimate.waiting[f"layers of {name}"] = sum(held)
                resident[name] -= sum(held) - max(held)
        training = {f"weights of {name}": size for name, size in resident.items()}
        training |= _step(model, config, trained, batch, empty)
        estimate.phases["training"] = training
    if config.ema != EMAMode.OFF:
        average = 4 * sum(p.numel() for own in trained.values() for p in own.parameters())
        where = estimate.waiting if config.ema == EMAMode.CPU and separate else training
        where["moving average"] = average
    if any(getattr(config, name).activation_offloading for name in model.trainable_parts):
        estimate.notes.append("activation_offloading is not counted: activations are shown as if they stayed.")
    return estimate


def _placed(model: BaseModel, name: str, config: TrainConfig) -> nn.Module:
    """A component in its number format on the meta device; layers that are to wait elsewhere are told apart later."""
    check_offload(name, config)
    own = getattr(config, name).model_copy(update={"offload_fraction": 0.0})
    return place_part(model.layers_of(name), name, config.model_copy(update={name: own}), torch.device("meta"))


def _without_numbers(module: nn.Module, made: dict[int, Tensor]) -> nn.Module:
    """A module on the meta device as one on the CPU, as far as the surrounding mode believes it; shared ones once."""
    for part in module.modules():
        for place in (part._parameters, part._buffers):
            for name, tensor in place.items():
                if tensor is None:
                    continue
                if id(tensor) not in made:
                    own = torch.empty_like(tensor, device=CPU)
                    made[id(tensor)] = nn.Parameter(own, False) if isinstance(tensor, nn.Parameter) else own
                place[name] = made[id(tensor)]
    return module


def _cache(
    estimate: MemoryEstimate, model: BaseModel, config: TrainConfig, weights: Mapping[str, int], text_trained: bool
) -> Batch:
    """Notes the phase in which images and captions are encoded, and returns a batch as it gives them."""
    size = max(config_sizes(config), key=lambda size: size[0] * size[1])
    grid = model.image_grid
    height, width = (max(grid, round(side / grid) * grid) for side in size)
    count = config.batch_size
    captions = ["a photo"] * count
    with MemoryProbe() as images, torch.no_grad():
        # the cache is filled one image at a time
        latents = model.encode_images(torch.zeros(1, 3, height, width))
    text = None
    with MemoryProbe() as texts:
        if not text_trained:
            with torch.no_grad():
                text = model.encode_captions(captions[:1])
    encoders = [name for name in weights if name == "vae" or name.startswith("text_encoder")]
    estimate.phases["caching"] = {f"weights of {name}": weights[name] for name in encoders} | {
        "activations": max(images.peak, texts.peak)
    }
    repeated = (
        None if text is None else {name: value.repeat(count, *[1] * (value.ndim - 1)) for name, value in text.items()}
    )
    placement = torch.tensor([[height, width, 0, 0, height, width]], dtype=torch.float32).repeat(count, 1)
    mask = torch.ones(count, 1, *latents.shape[2:]) if config.masked_training else None
    return Batch(
        latents.repeat(count, 1, 1, 1), repeated, captions, torch.ones(count), mask, placement, [], (height, width)
    )


def config_sizes(config: TrainConfig) -> list[tuple[int, int]]:
    """(height, width) in pixels of every resolution of the config."""
    return [(size.height, size.width) for size in parse_resolutions(config.resolution)]


def _resident(
    config: TrainConfig, model: BaseModel, weights: Mapping[str, int], text_trained: bool, separate: bool
) -> dict[str, int]:
    """The components that are on the device while steps are taken, as `BaseModel.rest` leaves them."""
    if not config.latent_caching:
        return dict(weights)
    stay = {name for name in weights if not name.startswith("text_encoder") or text_trained}
    return {name: size for name, size in weights.items() if name in stay and not (name == "vae" and separate)}


def _step(
    model: BaseModel, config: TrainConfig, trained: Mapping, batch: Batch, components: Mapping[str, nn.Module]
) -> dict[str, int]:
    """Adapters, gradients, optimizer state and the rest at the peak of a step that is not the first."""
    parameters = [parameter for own in trained.values() for parameter in own.parameters()]
    own = {id(p) for part in components.values() for p in part.parameters()}
    found = {"adapters": sum(p.nbytes for p in parameters if id(p) not in own)}
    eight_bit = config.optimizer.optimizer in EIGHT_BIT
    groups = [{"params": own.parameters(), "lr": 1e-4, "name": name} for name, own in trained.items()]
    optimizer = None if eight_bit else create_optimizer(config.optimizer, groups, config.seed)
    fused = config.optimizer.fused_back_pass and optimizer is not None
    if fused:
        FusedBackward(optimizer, parameters, config.clip_grad_norm)
    gradients = [p.nbytes for p in parameters]
    with MemoryProbe() as probe:
        # the first step makes the state that later ones have from their start
        for _ in range(2 if fused else 1):
            probe.peak = probe.held
            for _ in range(min(2, config.gradient_accumulation_steps)):
                _backward(model, config, batch)
            before, probe.peak = probe.peak, probe.held
            if optimizer is not None and not fused:
                optimizer.step()
            for parameter in parameters:
                parameter.grad = None
        state = probe.held
    peak = max(before if fused else before + state, probe.peak)
    found["gradients"] = max(gradients) if fused else sum(gradients)
    found["optimizer state"] = _eight_bit_state(config, parameters) if eight_bit else state
    found["activations and temporaries"] = max(0, peak - state - found["gradients"])
    return found


def _backward(model: BaseModel, config: TrainConfig, batch: Batch) -> None:
    """As a step of the run does it."""
    with autocast(config, CPU):
        prediction = model.predict_batch(batch, torch.Generator())
    image_losses(config, prediction, batch.loss_weight, batch.mask).mean().backward()


def _eight_bit_state(config: TrainConfig, parameters: list[nn.Parameter]) -> int:
    """Bytes that bitsandbytes keeps: of small parameters float32, of others a byte and its share of a scale."""
    smallest = config.optimizer.min_8bit_size or 4096
    size = sum(
        p.numel() * 4 if p.numel() < smallest else p.numel() + 4 * -(-p.numel() // EIGHT_BIT_BLOCK) for p in parameters
    )
    return EIGHT_BIT[config.optimizer.optimizer] * size
