"""Where the memory of a run will go, before any weight is there: its first steps, on tensors without numbers."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from modules.dataLoader.Batch import Batch
from modules.model.ActivationOffload import ActivationOffload
from modules.model.BaseModel import BaseModel, family_of
from modules.model.DeviceLink import DeviceLink, Transfer
from modules.model.hub import Hub
from modules.model.LayerOffload import LayerOffload, module_bytes, waiting_units
from modules.model.ModelComponents import ModelComponents
from modules.model.sample_pictures import blank_pictures
from modules.model.StandardSource import StandardSource
from modules.model.weight_formats import check_offload, place_component
from modules.tool.MemoryEstimate import GIB, MemoryEstimate
from modules.trainer.followed_steps import follow_each_kind_once
from modules.trainer.FusedBackward import FusedBackward
from modules.trainer.objective import batch_losses
from modules.trainer.optimizers import create_optimizer
from modules.trainer.trained import make_trained, methods_of
from modules.util.config.errors import ConfigError
from modules.util.config.load import resolve_samples
from modules.util.config.resolution import parse_resolutions
from modules.util.config.SampleConfig import SampleConfig
from modules.util.config.TrainConfig import TrainConfig
from modules.util.dtypes import autocast
from modules.util.enum.ConceptType import ConceptType
from modules.util.enum.ConditioningSource import ConditioningSource
from modules.util.enum.EMAMode import EMAMode
from modules.util.enum.Optimizer import Optimizer
from modules.util.enum.TimeUnit import TimeUnit
from modules.util.gpu_autocast import gpu_autocast
from modules.util.UserError import UserError
from modules.util.WithoutNumbers import HeldMemory, WithoutNumbers

import torch
from torch import Tensor, nn

CPU = torch.device("cpu")
# states of one byte for each number that bitsandbytes keeps; its kernels take no tensors without numbers
EIGHT_BIT = {Optimizer.ADAMW_8BIT: 2, Optimizer.ADAM_8BIT: 2, Optimizer.LION_8BIT: 1}
EIGHT_BIT_BLOCK = 256


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
        return family.load(config, CPU, Hub(config, warn=warn, settings_only=True))
    except UserError as error:
        if Path(config.base_model_name).expanduser().exists():
            raise
        source = StandardSource(config.model_type, config.base_model_name)
        warn(f"{error} The estimate is that of {source.name}.")
        # with its own components, where those that the config names instead are not here
        parts = {name: getattr(config, name) for name in family.modules}
        described = {
            name: own.model_copy(update={"model_name": ""})
            for name, own in parts.items()
            if own.model_name and not Path(own.model_name).expanduser().exists()
        }
        return family(config.model_copy(update=described), source, CPU)


def estimate_memory(
    model: BaseModel, config: TrainConfig, warn: Callable[[str], None], separate: bool | None = None
) -> MemoryEstimate:
    """What a run of `config` needs while it caches, while it trains and while it draws a sample.

    The run's own code encodes one batch, takes a step and draws an image on tensors that have shapes and formats but
    no numbers, so that every tensor counts that an operation makes, also what gradient checkpointing frees and makes
    anew. They are followed as a CPU computes them, which needs no GPU to be there. Not seen is what kernels need
    inside, what an allocator can't use, and the device's own libraries.

    Args:
        model: of the config, with none of its components loaded. It can't be used for anything else after this.
        config: of the run.
        warn: gets remarks of the adapters and the like.
        separate: whether components wait in another memory than the device's; None: as `config` says.

    Raises:
        UserError: the run could not start with this config.
    """
    if separate is None:
        separate = torch.device(config.temp_device).type != ("cpu" if config.train_device == "cpu" else "cuda")
    space = WithoutNumbers()
    text_trained = any(method.trains_text(config, model.trainable_components) for method in methods_of(config))
    components = {name: space.module(model.layers_of(name)) for name in model.components}
    with space:
        components = {name: _placed(component, name, config) for name, component in components.items()}
    before = model.components
    model.components = ModelComponents(
        list(components), lambda name: components[name].requires_grad_(False).eval(), CPU, torch.device("cpu")
    )
    model.components.take_changes(before)
    model.device, model.pictures = CPU, blank_pictures
    run = _begun(model, config, space, components, text_trained, separate)
    sample = _largest_sample(model, config)
    estimate = MemoryEstimate()
    on_gpu = config.train_device != "cpu"
    with torch.random.fork_rng(devices=[]), space, gpu_autocast() if on_gpu else nullcontext():
        batch = _cache(estimate, run, sample)
        trained = make_trained(model, config, warn)
        model.text_encoder_trained = text_trained
        resident = _resident(estimate, run)
        stays = {f"weights of {name}": size for name, size in resident.items()} | _average(estimate, run, trained)
        with space.counting() as memory:
            training = _step(run, trained, batch, components, memory)
            estimate.phases["training"] = {**stays, **training}
            if sample is not None:
                state = {name: training[name] for name in ("adapters", "optimizer state")}
                _sample(estimate, run, sample, {**stays, **state}, trained)
    estimate.waiting |= {f"activations of {name}": own.moved for name, own in run.activations.items() if own.moved}
    return estimate


@dataclass(frozen=True)
class _Run:
    """What all phases need to know.

    Attributes:
        weights: component -> bytes.
        text_trained: whether text encoders stay and are trained.
        separate: whether components wait in another memory than the device's.
        layers: component -> those of it that wait there.
        activations: component -> what sends them there.
    """

    model: BaseModel
    config: TrainConfig
    space: WithoutNumbers
    weights: Mapping[str, int]
    text_trained: bool
    separate: bool
    layers: Mapping[str, Sequence[nn.Module]]
    activations: Mapping[str, ActivationOffload]


def _begun(
    model: BaseModel,
    config: TrainConfig,
    space: WithoutNumbers,
    components: Mapping[str, nn.Module],
    text_trained: bool,
    separate: bool,
) -> _Run:
    """What phases need to know; layers and activations that are to wait elsewhere do so from now on."""
    own = {name: getattr(config, name) for name in components if separate}
    weights = {name: module_bytes(component) for name, component in components.items()}
    layers = {
        name: _layers_elsewhere(components[name], one.offload_fraction, space)
        for name, one in own.items()
        if one.offload_fraction
    }
    activations = {
        name: ActivationOffload(components[name], _Elsewhere(space, config.async_offloading))
        for name, one in own.items()
        if one.activation_offloading
    }
    return _Run(model, config, space, weights, text_trained, separate, layers, activations)


def _placed(component: nn.Module, name: str, config: TrainConfig) -> nn.Module:
    """A component in its number format; what is to wait elsewhere is told apart later."""
    check_offload(name, config)
    own = getattr(config, name).model_copy(update={"offload_fraction": 0.0, "activation_offloading": False})
    return place_component(component, name, config.model_copy(update={name: own}), CPU)


class _Elsewhere(DeviceLink):
    """A link to memory that is not counted."""

    def __init__(self, space: WithoutNumbers, overlaps: bool) -> None:
        super().__init__(CPU, CPU)
        self.space, self.overlaps = space, overlaps

    def send(self, tensor: Tensor) -> Transfer:
        return Transfer([self.space.like(tensor)], lambda: None, tensor if self.overlaps else None)


def _layers_elsewhere(component: nn.Module, fraction: float, space: WithoutNumbers) -> list[nn.Module]:
    """Lets layers of a component wait in memory that is not counted, as `place_component` would; returns them."""
    units = [component.get_submodule(name) for name in waiting_units(component, fraction)]
    LayerOffload(units, _Elsewhere(space, False))
    return units


def _largest_sample(model: BaseModel, config: TrainConfig) -> SampleConfig | None:
    """One step of the run's largest sample, or of one of the family's usual size; None if the run draws none."""
    if config.sample_after_unit == TimeUnit.NEVER or config.samples == []:
        return None
    try:
        samples = [s for s in resolve_samples(config, model.sample_defaults, warn=lambda text: None) if s.enabled]
    except ConfigError:
        # a file of samples may be written later
        samples = []
    samples = samples or [SampleConfig.from_dict(dict(model.sample_defaults))]
    return max(samples, key=lambda s: s.width * s.height).model_copy(update={"diffusion_steps": 1})


def _cache(estimate: MemoryEstimate, run: _Run, sample: SampleConfig | None) -> Batch:
    """Notes the phase in which images, captions and prompts are encoded, and returns a batch as it gives them."""
    model, config = run.model, run.config
    size = max(config_sizes(config), key=lambda size: size[0] * size[1])
    grid = model.image_grid
    height, width = (max(grid, round(side / grid) * grid) for side in size)
    count = config.batch_size
    # as long as captions may be; one chunk has one length
    chunks = config.prompt_chunks
    captions = ["a photo" if chunks == 1 else "a photo " * 75 * chunks] * count
    with run.space.counting() as images, torch.no_grad():
        # the cache is filled one image at a time
        pixels = torch.zeros(1, 3, height, width)
        latents = model.encode_images(pixels)
        shown = _conditioning(model, pixels)
    text = None
    with run.space.counting() as texts, torch.no_grad():
        if not run.text_trained:
            sees = model.captions_see_conditioning
            text = model.encode_instructions(captions[:1], pixels) if sees else model.encode_captions(captions[:1])
            if sample is not None:
                model.prompts(sample)
    encoders = [name for name in run.weights if name == "vae" or name.startswith("text_encoder")]
    estimate.phases["caching"] = {f"weights of {name}": _staying(run, name) for name in encoders} | {
        "activations": max(images.peak, texts.peak)
    }
    placement = torch.tensor([[height, width, 0, 0, height, width]], dtype=torch.float32).repeat(count, 1)
    mask = torch.ones(count, 1, *latents.shape[2:]) if config.masked_training else None
    return Batch(
        _repeated(latents, count), _all_repeated(text, count), captions, torch.ones(count), mask, placement, [],
        (height, width), [ConceptType.STANDARD] * count, _all_repeated(shown, count),
    )  # fmt: skip


def _conditioning(model: BaseModel, pixels: Tensor) -> dict[str, Tensor] | None:
    """Of one image of this size; None in families that take none."""
    if model.conditioning == ConditioningSource.NONE:
        return None
    masked = model.conditioning == ConditioningSource.MASK
    return model.encode_conditioning(pixels, pixels[:, :1] + 1 if masked else None)


def _repeated(tensor: Tensor, count: int) -> Tensor:
    return tensor.repeat(count, *[1] * (tensor.dim() - 1))


def _all_repeated(tensors: Mapping[str, Tensor] | None, count: int) -> dict[str, Tensor] | None:
    return None if tensors is None else {name: _repeated(tensor, count) for name, tensor in tensors.items()}


def config_sizes(config: TrainConfig) -> list[tuple[int, int]]:
    """(height, width) in pixels of every resolution of the config."""
    return [(size.height, size.width) for size in parse_resolutions(config.resolution)]


def _resident(estimate: MemoryEstimate, run: _Run) -> dict[str, int]:
    """Component -> bytes of it on the device while steps are taken, as `BaseModel.rest` leaves them; notes the rest."""
    resident = dict(run.weights)
    if run.config.latent_caching:
        for name in run.weights:
            if name.startswith("text_encoder") and not run.text_trained:
                del resident[name]
    for name in run.model.resting if run.separate else ():
        if name == "vae" and not run.config.latent_caching:
            continue
        size = resident.pop(name)
        if name in run.model.components.loaded:
            estimate.waiting[name] = size
    for name in resident:
        if name not in run.layers:
            continue
        estimate.waiting[f"layers of {name}"] = sum(map(module_bytes, run.layers[name]))
        resident[name] = _staying(run, name)
    return resident


def _staying(run: _Run, name: str) -> int:
    """Bytes of a component's weights that are on the device while it works; the others wait in another memory."""
    sizes = list(map(module_bytes, run.layers.get(name, ())))
    # those of the call that goes on are counted as operations make them
    return run.weights[name] - sum(sizes) + (max(sizes, default=0) if run.config.async_offloading else 0)


def _average(estimate: MemoryEstimate, run: _Run, trained: Mapping) -> dict[str, int]:
    """The moving average of the weights, if it is on the device; otherwise it is noted as waiting."""
    if run.config.ema == EMAMode.OFF:
        return {}
    size = 4 * sum(p.numel() for own in trained.values() for p in own.parameters())
    if run.config.ema == EMAMode.CPU and run.separate:
        estimate.waiting["moving average"] = size
        return {}
    return {"moving average": size}


def _step(
    run: _Run, trained: Mapping, batch: Batch, components: Mapping[str, nn.Module], memory: HeldMemory
) -> dict[str, int]:
    """Adapters, gradients, optimizer state and the rest at the peak of a step that is not the first."""
    config = run.config
    parameters = [parameter for own in trained.values() for parameter in own.parameters()]
    own = {id(p) for component in components.values() for p in component.parameters()}
    found = {"adapters": sum(p.nbytes for p in parameters if id(p) not in own)}
    eight_bit = config.optimizer.optimizer in EIGHT_BIT
    groups = [{"params": own.parameters(), "lr": 1e-4, "name": name} for name, own in trained.items()]
    optimizer = None if eight_bit else create_optimizer(config.optimizer, groups, config.seed)
    fused = config.optimizer.fused_back_pass and optimizer is not None
    if optimizer is not None:
        follow_each_kind_once(optimizer, memory)
    if fused:
        # the state that steps have from their start is made by the first
        for parameter in parameters:
            parameter.grad = torch.zeros_like(parameter)
            optimizer.step_parameter(parameter)
            parameter.grad = None
        FusedBackward(optimizer, parameters, config.clip_grad_norm)
    memory.peak = memory.held
    if config.gradient_accumulation_steps > 1:
        for parameter in parameters:
            parameter.grad = torch.zeros_like(parameter)
    batch_losses(config, run.model, batch, torch.Generator(), trained).mean().backward()
    before, memory.peak = memory.peak, memory.held
    if optimizer is not None and not fused:
        optimizer.step()
    for parameter in parameters:
        parameter.grad = None
    state = memory.held
    peak = max(before if fused else before + state, memory.peak)
    gradients = [p.nbytes for p in parameters]
    found["gradients"] = max(gradients) if fused else sum(gradients)
    found["optimizer state"] = _eight_bit_state(config, parameters) if eight_bit else state
    found["activations and temporaries"] = max(0, peak - state - found["gradients"])
    return found


def _eight_bit_state(config: TrainConfig, parameters: list[nn.Parameter]) -> int:
    """Bytes that bitsandbytes keeps: of small parameters float32, of others a byte and its share of a scale."""
    smallest = config.optimizer.min_8bit_size or 4096
    size = sum(
        p.numel() * 4 if p.numel() < smallest else p.numel() + 4 * -(-p.numel() // EIGHT_BIT_BLOCK) for p in parameters
    )
    return EIGHT_BIT[config.optimizer.optimizer] * size


def _sample(estimate: MemoryEstimate, run: _Run, sample: SampleConfig, stays: dict[str, int], trained: Mapping) -> None:
    """Notes the phase in which a sample is drawn, between two steps.

    Args:
        estimate: gets it.
        run: of the estimate.
        sample: with one step, as all are alike.
        stays: what -> bytes that are there all the time.
        trained: what the run trains.
    """
    if run.config.ema == EMAMode.GPU:
        # the average takes their place meanwhile
        stays["weights set aside"] = sum(p.nbytes for own in trained.values() for p in own.parameters())
    with run.space.counting() as memory, torch.no_grad(), autocast(run.config, CPU):
        denoising, whole, tiles = _drawn(run.model, sample, memory)
    drawing = [name for name in run.model.resting if name in run.model.components.loaded]
    stays |= {f"weights of {name}": _staying(run, name) for name in drawing}
    if run.separate:
        # what only samples need waits between them
        estimate.waiting |= {name: run.weights[name] for name in drawing if name != "vae"}
    estimate.phases["sampling"] = {**stays, "activations and temporaries": max(denoising, tiles)}
    estimate.whole_decoding = sum(stays.values()) + max(denoising, whole)
    if estimate.whole_decoding > estimate.peak:
        estimate.notes.append(
            f"Decoding a sample of {sample.width}x{sample.height} in one piece would need "
            f"{estimate.whole_decoding / GIB:.1f} GB in all; a run that has not as much tries again and decodes it in "
            "tiles, which is what sampling counts here."
        )


def _drawn(model: BaseModel, sample: SampleConfig, memory: HeldMemory) -> tuple[int, int, int]:
    """Peaks of the denoiser, of the VAE's decoding in one piece, and of that in tiles."""
    vae = model.components["vae"]
    decode, peaks = vae.decode, []

    def both_ways(*arguments: Any, **options: Any) -> Any:
        peaks.append(memory.peak)
        memory.peak = memory.held
        decode(*arguments, **options)
        peaks.append(memory.peak)
        memory.peak = memory.held
        with model.tiled_decoding():
            return decode(*arguments, **options)

    vae.decode = both_ways
    try:
        model.sample(sample, 0, lambda step, steps: None)
    finally:
        del vae.decode
    denoising, whole = peaks
    return denoising, whole, memory.peak
