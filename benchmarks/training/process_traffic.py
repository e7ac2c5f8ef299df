"""What the processes of a run send each other in a step, counted and by formula, and how long a step takes.

Axes: `n` processes, `p` bytes of the model's weights, `t` bytes of what is trained, `k` backward passes of a process in
a step. Bytes are those that a process receives, in the mean over processes; it sends as many. Sums are taken as those
of a ring, which is what NCCL does.
"""

import json
import math
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.measuring import ROOT, environment
from benchmarks.torture.miniature import draw_images, save_pipeline

import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

FULL = {"training_method": "FINE_TUNE", "output_model_format": "SAFETENSORS"}
SCALED = {"optimizer": {"optimizer": "ADAMW_ADV", "scaled_optm": True}}
ROWS = {"optimizer": {"optimizer": "ADAMW_ADV"}}
SHARED = {"optimizer": {"optimizer": "ADAMW_ADV", "scaled_optm": True, "shared": True}}
PARTS = {"shard_weights": True}
CASES: dict[str, dict[str, Any]] = {
    "LoRA": {**SCALED},
    "LoRA, base in parts": {**SCALED, **PARTS},
    "full": {**FULL, **SCALED},
    "full, optimizer shared": {**FULL, **SHARED},
    "full, in parts, by rows": {**FULL, **ROWS, **PARTS},
    "full, in parts, whole matrices": {**FULL, **SCALED, **PARTS},
    "full, in parts, whole matrices, 2 batches": {
        **FULL, **SCALED, **PARTS, "gradient_accumulation_steps": 2, "batch_size": 4,
    },
}  # fmt: skip
# the first steps make state and buffers
WARM_UP = 2


@dataclass(frozen=True)
class Run:
    """What of a run its traffic depends on; the fields are the module's axes."""

    n: int
    p: float
    t: float
    k: int = 1
    in_parts: bool = False
    tuned: bool = False
    shared: bool = False
    by_rows: bool = False

    @property
    def received(self) -> float:
        """Bytes that a process receives in a step."""
        others = (self.n - 1) / self.n
        # brought together for each pass, forward and backward; gradients of trained weights go back in parts
        found = 2 * self.p * others * self.k if self.in_parts else 0.0
        if not (self.in_parts and self.tuned):
            return found + 2 * self.t * others + (self.t * others if self.shared else 0.0)
        found += self.t * others * self.k
        # weights and gradients go to the owners of the stacks, weights back
        return found if self.by_rows else found + 3 * self.t * others / self.n


class Traffic(TorchDispatchMode):
    """Counts the bytes of all exchanges while it is entered: `received` by the exchange's name."""

    def __init__(self) -> None:
        super().__init__()
        self.received: Counter[str] = Counter()

    def __torch_dispatch__(self, function: Any, types: Any, arguments: Any = (), options: Any = None) -> Any:
        if function.namespace == "c10d":
            name = function._schema.name.partition("::")[2].strip("_")
            self.received[name] += _received(name, arguments)
        return function(*arguments, **(options or {}))


def _received(name: str, arguments: Any) -> float:
    n, rank = dist.get_world_size(), dist.get_rank()
    first, second = (sum(x.nbytes for x in _tensors(argument)) for argument in arguments[:2])
    if name == "allreduce":
        return 2 * first * (n - 1) / n
    if name == "allgather_base":
        return first * (n - 1) / n
    if name == "reduce_scatter_base":
        return second * (n - 1) / n
    if name == "allgather":
        return first * (n - 1) / n
    if name == "gather":
        return first * (n - 1) / n
    if name in ("broadcast", "scatter"):
        root = arguments[3 if name == "scatter" else 2]
        return 0.0 if rank == root else first
    if name == "barrier":
        return 0.0
    raise ValueError(f"found the exchange {name}, whose bytes nobody counts here yet")


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _tensors(item)


def measure(counts: list[int], steps: int, width: int, say: Callable[[str], None] = print) -> dict[str, Any]:
    """Each case with each number of processes, one thread each.

    Args:
        counts: numbers of processes.
        steps: of each run, after those that warm up.
        width: channels of the miniature's first level.
        say: gets a line for each case.
    """
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        save_pipeline(folder, (width, 2 * width), width)
        draw_images(folder / "images")
        for count in counts:
            own = [sys.executable, str(ROOT / "scripts" / "benchmark_processes.py"), "--worker", str(folder)]
            launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(count)]
            command = own if count == 1 else [own[0], *launcher, *own[1:]]
            done = subprocess.run([*command, "--steps", str(steps)], capture_output=True, text=True)
            if done.returncode:
                raise RuntimeError(f"The runs of {count} processes failed:\n{done.stderr[-3000:]}")
            for name, result in json.loads((folder / f"told-{count}.json").read_text(encoding="utf-8")).items():
                found.setdefault(name, {})[str(count)] = result
                say(f"{name}, {count} processes: {result}")
    facts = {"environment": environment(torch.device("cpu"), ["torch", "diffusers"]), "steps": steps, "width": width}
    return {**facts, "cases": found}


def work(folder: Path, steps: int) -> None:
    """All cases in this process and those beside it; the leader writes `told-<n>.json`."""
    from modules.util.World import World

    torch.set_num_threads(1)
    world = World.join("cpu")
    told = {}
    for name, options in CASES.items():
        told[name] = _case(folder / f"{name} {world.size}", folder, options, steps, world)
    world.leave()
    if world.leads:
        (folder / f"told-{world.size}.json").write_text(json.dumps(told), encoding="utf-8")


def _case(place: Path, folder: Path, options: dict[str, Any], steps: int, world: Any) -> dict[str, Any]:
    from modules.trainer.events import TrainCommands, TrainEvents
    from modules.trainer.Trainer import Trainer
    from modules.util.config.load import train_config_from_dict

    ending = {"output_model_destination": str(place / "out.safetensors")}
    # eight images a step, whatever the batches are
    config = {
        "training_method": "LORA", "base_model_name": str(folder / "model"), "model_type": "STABLE_DIFFUSION_15",
        "workspace_dir": str(place), "cache_dir": str(folder / f"cache {world.size}"), "samples": [],
        "sample_after_unit": "NEVER", "backup_after_unit": "NEVER", "tensorboard": False, "train_device": "cpu",
        "concepts": [{"path": str(folder / "images"), "balancing": 8.0, "balancing_strategy": "SAMPLES"}],
        "resolution": "64", "batch_size": 8, "epochs": steps + WARM_UP, "train_dtype": "FLOAT_32", "lora_rank": 16,
        "learning_rate": 1e-5, "unet": {"gradient_checkpointing": False}, "text_encoder": {"train": False},
        **ending, **options,
    }  # fmt: skip
    world.from_leader(lambda: place.mkdir(parents=True))
    trainer = Trainer(train_config_from_dict(config), TrainEvents([]), TrainCommands(), None, world)
    traffic: list[Counter[str]] = []
    seconds: list[float] = []
    with _watched(trainer, traffic, seconds):
        trainer.run()
    parameters = list(trainer.model.denoiser.parameters())
    tuned, parts = config["training_method"] == "FINE_TUNE", trainer.shards is not None
    run = Run(
        world.size, sum(p.numel() * p.element_size() for p in parameters),
        sum(p.numel() * p.element_size() for p in trainer.parameters), config.get("gradient_accumulation_steps", 1),
        parts, tuned, bool(config["optimizer"].get("shared")), not config["optimizer"].get("scaled_optm"),
    )  # fmt: skip
    mean = {name: sum(own[name] for own in traffic) / len(traffic) for name in {key for own in traffic for key in own}}
    every = world.gather(mean)
    names = sorted({name for own in every for name in own})
    by_name = {name: round(sum(own.get(name, 0.0) for own in every) / world.size) for name in names}
    return {
        "received": sum(by_name.values()), "by formula": round(run.received if world.size > 1 else 0.0),
        "by exchange": by_name, "seconds": statistics.median(seconds), "p": round(run.p), "t": round(run.t),
    }  # fmt: skip


@contextmanager
def _watched(trainer: Any, traffic: list[Counter[str]], seconds: list[float]) -> Iterator[None]:
    """Every other step of a run after the first ones counts bytes, the rest is timed, as counting takes time."""
    step = trainer._step

    def watched() -> None:
        number = trainer.progress.step - WARM_UP
        if number >= 0 and number % 2:
            with Traffic() as counted:
                step()
            traffic.append(counted.received)
            return
        start = time.perf_counter()
        step()
        if number >= 0:
            seconds.append(time.perf_counter() - start)

    trainer._step = watched
    yield


SIZES = {
    "SD 1.5": 0.86e9, "SDXL": 2.57e9, "Z-Image": 6.15e9, "Flux.1": 11.9e9, "HiDream": 17.1e9, "Qwen-Image": 20.4e9,
}  # fmt: skip
"""Parameters of the denoisers of some families."""
ADAM_BYTES = 8
# Of parameters in a stack on a GPU (`scaled_optim.batching.GPU_CHUNK`): so much state stays together.
STACK = 1 << 25


def table(counts: tuple[int, ...] = (1, 2, 8, 64, 1024), weight_bytes: int = 4) -> str:
    """GB on each GPU and GB received in a step by formula, for full fine-tuning in parts with whole matrices."""
    lines = [
        "| model | " + " | ".join(f"{n} GPUs" if n > 1 else "1 GPU" for n in counts) + " |",
        "|---" * (len(counts) + 1) + "|",
    ]
    for name, size in SIZES.items():
        cells = []
        for n in counts:
            state = min(size, math.ceil(math.ceil(size / STACK) / n) * STACK)
            held = size * 2 * weight_bytes / n + state * ADAM_BYTES
            run = Run(n, size * weight_bytes, size * weight_bytes, in_parts=n > 1, tuned=True)
            received = run.received if n > 1 else 0.0
            cells.append(f"{held / 1e9:.3g} + {received / 1e9:.3g}")
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)
