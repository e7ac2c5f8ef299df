"""Training steps of one block of a model with our adapters, peft's, and the textbook's, in turns.

A step is forward and backward through the block, gradient of its input included, as in the middle of a model.
"""

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from benchmarks.adapters.textbook import attach_dora, attach_oft
from benchmarks.measuring import spread
from modules.module.AdapterSet import AdapterSet, adaptable_layers
from modules.util.config.TrainConfig import TrainConfig
from modules.util.enum.PeftType import PeftType
from modules.util.MemoryProbe import MemoryProbe

import torch
from torch import Tensor, nn

from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.resnet import ResnetBlock2D
from peft import LoraConfig, OFTConfig, inject_adapter_in_model

# in turn after so many steps, so that nobody always follows the same other one
WARM_UP = 2
# DESIGN's goals: most that the first may take of the second's time
GOALS = {("oft", "lora"): 1.15, ("dora", "dora peft"): 0.7, ("dora output", "dora peft"): 0.7}


@dataclass(frozen=True)
class Case:
    """A block and its input.

    Attributes:
        name: of the table.
        build: makes block and input; called after seeding.
        oft_block: block size of OFT; LoRA's rank is what gives it as many numbers.
    """

    name: str
    build: Callable[[], tuple[nn.Module, dict[str, Tensor]]]
    oft_block: int


def transformer(width: int, tokens: int, context: int) -> tuple[nn.Module, dict[str, Tensor]]:
    """A transformer block of a UNet: self attention, cross attention to 77 tokens, a gated feed-forward."""
    block = BasicTransformerBlock(width, width // 64, 64, cross_attention_dim=context)
    inputs = {"hidden_states": torch.randn(1, tokens, width), "encoder_hidden_states": torch.randn(1, 77, context)}
    return block, inputs


def resnet(channels: int, side: int) -> tuple[nn.Module, dict[str, Tensor]]:
    """A residual block of a UNet: two 3 x 3 convolutions and the time embedding's layer."""
    block = ResnetBlock2D(in_channels=channels, temb_channels=1280)
    return block, {"input_tensor": torch.randn(1, channels, side, side), "temb": torch.randn(1, 1280)}


CASES = (
    Case("transformer block, 640 wide, 1024 tokens (SDXL at 512 px)", lambda: transformer(640, 1024, 2048), 32),
    Case("transformer block, 1280 wide, 1024 tokens (SDXL at 1024 px)", lambda: transformer(1280, 1024, 2048), 32),
    Case("residual block, 320 channels, 64 x 64", lambda: resnet(320, 64), 32),
)
SMALL = (Case("small transformer block", lambda: transformer(64, 32, 32), 8),)


def contestants(case: Case) -> dict[str, Callable[[nn.Module], list[nn.Parameter]]]:
    """Name -> puts that kind of adapter on a block and returns what is trained."""
    size = case.oft_block
    rank = equal_rank(case)
    oft = {"peft_type": PeftType.OFT_2, "oft_block_size": size}
    lora = {"lora_rank": rank, "lora_alpha": float(rank)}
    dora = {"lora_rank": 16, "lora_alpha": 16.0, "lora_decompose": True}
    return {
        "lora": lambda block: _ours(block, lora),
        "lora peft": lambda block: _peft(block, LoraConfig(r=rank, lora_alpha=rank, target_modules=_names(block))),
        "oft": lambda block: _ours(block, oft),
        "oft neumann": lambda block: _ours(block, {**oft, "oft_cayley_neumann": True}),
        "oft output": lambda block: _ours(block, {**oft, "oft_side": "OUTPUT"}),
        "oft peft": lambda block: _peft(
            block, OFTConfig(r=0, oft_block_size=size, target_modules=_names(block), use_cayley_neumann=True)
        ),
        "oft textbook": lambda block: attach_oft(block, size),
        "dora": lambda block: _ours(block, dora),
        "dora output": lambda block: _ours(block, {**dora, "lora_decompose_output_axis": True}),
        "dora peft": lambda block: _peft(
            block, LoraConfig(r=16, lora_alpha=16, use_dora=True, target_modules=_names(block))
        ),
        "dora textbook": lambda block: attach_dora(block, 16),
    }


def equal_rank(case: Case) -> int:
    """LoRA's rank that trains about as many numbers as OFT of the case's block size, on the whole block."""
    shapes = [tuple(layer.weight.shape) for layer in adaptable_layers(case.build()[0]).values()]
    ours = sum(shape[1] * (case.oft_block - 1) / 2 for shape in shapes)
    per_rank = sum(shape[0] + shape[1] * (shape[2] * shape[3] if len(shape) == 4 else 1) for shape in shapes)
    return max(1, round(ours / per_rank))


def measure(case: Case, rounds: int, only: tuple[str, ...] = ()) -> dict[str, Any]:
    """One case: seconds of every round, largest temporary, peak memory and trained numbers of each contestant."""
    steps, rows = {}, {}
    for name, attach in contestants(case).items():
        if only and name not in only:
            continue
        torch.manual_seed(0)
        block, inputs = case.build()
        block.requires_grad_(False)
        weight = max(layer.weight.numel() for layer in adaptable_layers(block).values())
        parameters = attach(block)
        steps[name] = _step(block, inputs, parameters)
        for _ in range(WARM_UP):
            steps[name]()
        with MemoryProbe() as probe:
            steps[name]()
        rows[name] = {
            "trained": sum(parameter.numel() for parameter in parameters),
            "largest_temporary": probe.largest,
            "largest_weight": weight,
            "peak_bytes": probe.peak,
        }
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    names = list(steps)
    for k in range(rounds):
        for name in names[k % len(names) :] + names[: k % len(names)]:
            start = time.perf_counter()
            steps[name]()
            seconds[name].append(time.perf_counter() - start)
    for name, values in seconds.items():
        rows[name] |= {"seconds": spread(values), "rounds": values}
    return {"name": case.name, "rank": equal_rank(case), "oft_block": case.oft_block, "contestants": rows}


def ratio(case: Mapping[str, Any], above: str, below: str) -> float | None:
    """Median over the rounds of the time of one over that of another."""
    rows = case["contestants"]
    if above not in rows or below not in rows:
        return None
    pairs = zip(rows[above]["rounds"], rows[below]["rounds"], strict=True)
    return statistics.median(a / b for a, b in pairs)


def table(case: Mapping[str, Any]) -> str:
    """A case as a markdown table; times over those of our LoRA."""
    lines = [
        f"{case['name']}: LoRA rank {case['rank']}, OFT blocks of {case['oft_block']}, DoRA rank 16",
        "",
        "| adapter | trained | step, ms | / our LoRA | peak, MB | largest temporary / largest weight |",
        "|---|---|---|---|---|---|",
    ]
    for name, row in case["contestants"].items():
        times = ratio(case, name, "lora")
        cells = [
            name,
            f"{row['trained']:,}",
            f"{row['seconds']['median'] * 1e3:.0f}",
            f"{times:.2f}" if times else "–",
            f"{row['peak_bytes'] / 1e6:.0f}",
            f"{row['largest_temporary'] / row['largest_weight']:.2f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _step(block: nn.Module, inputs: Mapping[str, Tensor], parameters: list[nn.Parameter]) -> Callable[[], None]:
    inputs = {name: value.requires_grad_() for name, value in inputs.items()}

    def step() -> None:
        for parameter in (*parameters, *inputs.values()):
            parameter.grad = None
        out = block(**inputs)
        out.backward(torch.ones_like(out))

    return step


def _ours(block: nn.Module, options: Mapping[str, Any]) -> list[nn.Parameter]:
    adapters = AdapterSet("unet", block, TrainConfig(**options)).to("cpu").train()
    adapters.hook()
    # the block keeps what belongs to it
    block.adapters_of_benchmark = (adapters,)
    return adapters.parameters()


def _peft(block: nn.Module, config: Any) -> list[nn.Parameter]:
    inject_adapter_in_model(config, block)
    trained = [parameter for parameter in block.parameters() if parameter.requires_grad]
    assert trained, "peft trains nothing"
    return trained


def _names(block: nn.Module) -> list[str]:
    return list(adaptable_layers(block))
