"""Whole runs with each option of memory and speed: seconds a step, peak, the loss, and the estimate of the memory."""

import gc
import math
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.gpu.base import config_of
from benchmarks.gpu.Bench import Bench, Found, rows_of
from benchmarks.gpu.Row import NotMeasured, Row, State
from modules.tool.memory_estimate import estimate_memory, load_without_weights
from modules.trainer.events import TrainCommands, TrainEvents
from modules.trainer.Trainer import Trainer
from modules.util.config.TrainConfig import TrainConfig
from modules.util.UserError import UserError

import torch

from safetensors.torch import load_file

FIRST = "plain"
CHECKPOINTING = {"unet": {"gradient_checkpointing": True}}
# name -> (options, largest distance of the losses from those of the plain run, in shares of these; None: other numbers)
CASES: dict[str, tuple[dict[str, Any], float | None]] = {
    FIRST: ({}, 0.0),
    "again, the same bytes?": ({}, 0.0),
    "checkpointing": (CHECKPOINTING, 0.01),
    "half of the layers wait, with checkpointing": (
        {"unet": {"gradient_checkpointing": True, "offload_fraction": 0.5}}, 0.01,
    ),
    "half of the layers wait, one after the other": (
        {"unet": {"gradient_checkpointing": True, "offload_fraction": 0.5}, "async_offloading": False}, 0.01,
    ),
    "activations wait": ({"unet": {"gradient_checkpointing": True, "activation_offloading": True}}, 0.01),
    "compiled": ({"compile": True}, 0.01),
    "compiled, checkpointing": ({"compile": True, **CHECKPOINTING}, 0.01),
    "attention FLASH": ({"attention_mechanism": "FLASH"}, 0.01),
    "attention CUDNN": ({"attention_mechanism": "CUDNN"}, 0.01),
    "attention FLEX": ({"attention_mechanism": "FLEX"}, 0.01),
    "base in FLOAT_8": ({"unet": {"weight_dtype": "FLOAT_8"}}, 0.1),
    "base in INT_8": ({"unet": {"weight_dtype": "INT_8"}}, 0.1),
    "base in NFLOAT_4": ({"unet": {"weight_dtype": "NFLOAT_4"}}, 0.2),
    "FLOAT_16": ({"train_dtype": "FLOAT_16"}, 0.02),
    "FLOAT_32": ({"train_dtype": "FLOAT_32"}, 0.02),
    "TFLOAT_32": ({"train_dtype": "TFLOAT_32"}, 0.02),
    "cuDNN's fastest convolutions": ({"cudnn_benchmark": True}, 0.01),
    "DoRA": ({"lora_decompose": True}, None),
    "OFT": ({"peft_type": "OFT_2", "oft_scaled": True}, None),
    "all weights, checkpointing": ({"training_method": "FINE_TUNE", "learning_rate": 0.001, **CHECKPOINTING}, None),
}  # fmt: skip
SMALL_CASES = (FIRST, "again, the same bytes?", "checkpointing")
WARM_UP = 3  # steps that compile and make state


def measure(bench: Bench) -> Iterator[Row]:
    """Rows of this check."""
    plain: dict[str, Any] = {}
    names = SMALL_CASES if bench.small else tuple(CASES)
    found: dict[str, Callable[[], Found]] = {
        name: partial(_case, bench, plain, f"run {index}", *CASES[name]) for index, name in enumerate(names)
    }
    return rows_of("training", bench, found)


def _case(bench: Bench, plain: dict[str, Any], folder: str, options: dict[str, Any], bound: float | None) -> Found:
    config = config_of(bench, folder, options)
    run = trained(bench, config)
    seconds, losses = run["seconds"], run["losses"]
    figures = {"step_seconds": seconds, "final_loss": losses[-1]}
    text = [f"{1e3 * seconds:.1f} ms a step"]
    if bound == 0.0 and not plain:
        plain.update(run)
    if not plain:
        raise NotMeasured("the plain run, with which this one is compared, failed")
    apart = max(abs(own - other) / abs(other) for own, other in zip(losses, plain["losses"], strict=True))
    if plain["losses"] is not losses:
        figures["over_plain"] = seconds / plain["seconds"]
        text.append(f"{seconds / plain['seconds']:.2f}× plain")
    if bench.is_cuda:
        estimate = estimate_memory(load_without_weights(config, _ignore), config, _ignore)
        figures |= {"peak_bytes": run["peak"], "estimate_over_peak": estimate.peak / run["peak"]}
        text.append(f"peak {run['peak'] / 2**30:.2f} GiB, estimated {estimate.peak / run['peak']:.2f}× that")
    if bound is None:
        ok = all(map(math.isfinite, losses))
    else:
        figures["losses_apart"] = apart
        text.append(f"losses within {apart:.1e} of the plain run's")
        # a GPU promises no bytes: what its sums do is reported
        # the largest of NaN and a number may be the number
        ok = all(map(math.isfinite, losses)) and (apart <= bound or (bound == 0.0 and bench.is_cuda and apart <= 0.01))
    return State.HOLDS if ok else State.FAILS, ", ".join(text), figures


def trained(bench: Bench, config: TrainConfig, stop_after: int | None = None) -> dict[str, Any]:
    """Runs a config.

    Args:
        bench: where.
        config: of the run.
        stop_after: steps after which it is asked to stop; None: to its end.

    Returns:
        `losses` of each step, median `seconds` of a step after the first ones, `peak` bytes of a GPU and the `report`.

    Raises:
        NotMeasured: the run was refused before its first step, or runs uncompiled with `compile`.
        UserError: it ended later.
    """
    times, losses, commands, begun, uncompiled = [], [], TrainCommands(), [], []

    def listen(kind: str, values: dict[str, Any]) -> None:
        if kind == "progress" and values["stage"] == "training":
            begun.append(True)
        if kind == "warning" and values["text"].startswith("compile:"):
            uncompiled.append(values["text"])
            commands.stop = True
        if kind == "step":
            times.append(time.perf_counter())
            losses.append(values["loss"])
            commands.stop = commands.stop or values["step"] == stop_after

    gc.collect()
    if bench.is_cuda:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(bench.device)
    try:
        report = Trainer(config, TrainEvents([listen]), commands).run()
    except UserError as error:
        if begun:
            raise
        raise NotMeasured(f"refused: {error}") from error
    if uncompiled:
        raise NotMeasured(uncompiled[0])
    bench.wait()
    counted = times[min(WARM_UP, len(times) - 2) :]
    seconds = (counted[-1] - counted[0]) / (len(counted) - 1) if len(counted) > 1 else float("nan")
    return {"losses": losses, "seconds": seconds, "peak": report["peak_memory_bytes"], "report": report}


def tensor_bytes(path: Path) -> dict[str, bytes]:
    """What was learned, without the date that a file bears."""
    return {key: own.contiguous().view(torch.uint8).numpy().tobytes() for key, own in load_file(path).items()}


def _ignore(text: str) -> None:
    """Notes of a run that nobody asked for."""
