"""Every kind of adapter, and every format of frozen weights: the numbers of a CPU, the time, and the memory."""

import copy
from collections.abc import Callable, Iterator
from functools import partial

from benchmarks.gpu.Bench import Bench, Found, bounded, rows_of
from benchmarks.gpu.Row import NotMeasured, Row, State
from modules.model.QuantizedLinear import WEIGHT_CODECS, QuantizedLinear
from modules.module.AdapterSet import AdapterSet
from modules.module.kinds import ADAPTER_CLASSES
from modules.trainer.device_settings import device_settings
from modules.util.config.TrainConfig import TrainConfig
from modules.util.enum.DataType import DataType

import torch
from torch import Tensor, nn

# float32 sums in another order; TF32 is off while numbers are compared
BOUND = 1e-4
# what a device makes of the codes is rounded to bfloat16 once
FORMAT_BOUND = 1e-2


class _Layers(nn.Module):
    """A linear layer behind a convolution, as denoisers have them."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)
        self.linear = nn.Linear(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.conv(x).flatten(2).transpose(1, 2))


def measure(bench: Bench) -> Iterator[Row]:
    """Rows of this check."""
    found: dict[str, Callable[[], Found]] = {}
    for kind, decompose in ADAPTER_CLASSES:
        config = TrainConfig(peft_type=kind, lora_decompose=decompose, lora_rank=16, lora_alpha=16.0)
        name = f"{kind}{', decomposed' if decompose else ''}"
        found[f"{name}: numbers"] = partial(_numbers, bench, config)
        found[f"{name}: time"] = partial(_time, bench, config)
    for data_type in WEIGHT_CODECS:
        found[f"{data_type}: numbers"] = partial(_format_numbers, bench, data_type)
        found[f"{data_type}: time and memory"] = partial(_format_time, bench, data_type)
    return rows_of("adapters", bench, found)


def _made(config: TrainConfig, root: nn.Module) -> AdapterSet:
    """Adapters that have moved from where they began, the same ones on each device."""
    adapters = AdapterSet("unet", root.requires_grad_(False), config, seed=3)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in adapters.parameters():
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=generator).to(parameter))
    adapters.hook()
    return adapters


def _gradients(config: TrainConfig, root: nn.Module, x: Tensor) -> list[Tensor]:
    """Output, and gradients of the input and of what is trained."""
    adapters = _made(config, root)
    x = x.clone().requires_grad_()
    y = root(x)
    (y * torch.linspace(-1, 1, y.shape[-1], device=y.device)).sum().backward()
    return [own.detach().cpu() for own in (y, x.grad, *(parameter.grad for parameter in adapters.parameters()))]


def _numbers(bench: Bench, config: TrainConfig) -> Found:
    if bench.device.type == "cpu":
        raise NotMeasured("a CPU is what devices are compared with")
    torch.manual_seed(0)
    root, x = _Layers(64), torch.randn(2, 64, 16, 16)
    here = _gradients(config, copy.deepcopy(root), x)
    with device_settings(TrainConfig(train_dtype=DataType.FLOAT_32), bench.device):
        there = _gradients(config, root.to(bench.device), x.to(bench.device))
    apart = max(_apart(own, other) for own, other in zip(there, here, strict=True))
    return bounded(apart, BOUND, f"forward and backward {apart:.1e} apart from a CPU's", {"apart": apart})


def _apart(found: Tensor, expected: Tensor) -> float:
    """Largest difference over the largest entry; inf where one of both is not finite, 0 where both are 0."""
    if not (found.isfinite().all() and expected.isfinite().all()):
        return float("inf")
    difference, size = (found - expected).abs().max().item(), expected.abs().max().item()
    if difference == 0:
        return 0.0
    return difference / size if size else float("inf")


def _time(bench: Bench, config: TrainConfig) -> Found:
    channels, side = (32, 16) if bench.small else (640, 64)
    dtype = torch.float32 if bench.small else torch.bfloat16

    def seconds(adapted: bool) -> float:
        torch.manual_seed(0)
        root = _Layers(channels).to(bench.device, dtype)
        held = _made(config, root) if adapted else root.requires_grad_(False)
        x = torch.randn(2, channels, side, side, device=bench.device, dtype=dtype, requires_grad=True)

        def step() -> None:
            with torch.autocast(bench.device.type, dtype, enabled=dtype != torch.float32):
                root(x).float().square().mean().backward()

        found = bench.seconds(step)
        del held
        return found

    own, frozen = seconds(True), seconds(False)
    text = f"{1e3 * own:.2f} ms forward and backward, {own / frozen:.2f}× the frozen layers"
    return State.REPORTED, text, {"seconds": own, "over_frozen": own / frozen}


def _format_numbers(bench: Bench, data_type: DataType) -> Found:
    if bench.device.type == "cpu":
        raise NotMeasured("a CPU is what devices are compared with")
    torch.manual_seed(0)
    layer, x = nn.Linear(128, 192), torch.randn(64, 128)
    packed = QuantizedLinear(layer, data_type)
    expected = nn.functional.linear(x, packed.dense(), packed.bias)
    moved = copy.deepcopy(packed).to(bench.device)
    same = torch.equal(moved.dense().cpu(), packed.dense())
    with torch.autocast(bench.device.type, torch.bfloat16):
        apart = _apart(moved(x.to(bench.device)).detach().float().cpu(), expected.detach())
    weights = "the weights are a CPU's to the bit" if same else "the weights DIFFER from a CPU's"
    return bounded(apart if same else float("inf"), FORMAT_BOUND,
                   f"{weights}, the product in bfloat16 {apart:.1e} apart", {"apart": apart})  # fmt: skip


def _format_time(bench: Bench, data_type: DataType) -> Found:
    features, tokens = (64, 32) if bench.small else (3072, 4096)
    torch.manual_seed(0)
    layer = nn.Linear(features, features).requires_grad_(False).to(bench.device)
    packed = QuantizedLinear(layer, data_type)
    layer = layer.bfloat16()
    x = torch.randn(tokens, features, device=bench.device, dtype=torch.bfloat16, requires_grad=True)

    def stepped(own: nn.Module) -> None:
        with torch.autocast(bench.device.type, torch.bfloat16):
            own(x).sum().backward()
        x.grad = None

    ours, plain = bench.seconds(lambda: stepped(packed)), bench.seconds(lambda: stepped(layer))
    figures = {"seconds": ours, "over_bfloat16": ours / plain}
    text = f"{ours / plain:.2f}× the time of a layer in bfloat16 ({features} features, {tokens} tokens)"
    if bench.is_cuda:
        beside = [bench.peak_bytes(lambda own=own: stepped(own)) for own in (packed, layer)]
        # the layer's weight in bfloat16 is what unpacking has to make at least
        weights = (beside[0] - beside[1]) / layer.weight.nbytes
        figures["temporaries_over_weight"] = weights
        text += f", {weights:.2f}× its weight held for a while"
    return State.REPORTED, text, figures
