"""`run.json`: what a run was and what came of it, for scripts."""

import platform
import statistics
import sys
from pathlib import Path
from typing import Any

from modules.trainer.StepTimes import StepTimes
from modules.trainer.TrainProgress import TrainProgress
from modules.util.config.load import pack
from modules.util.config.TrainConfig import TrainConfig

import torch


def peak_memory_bytes(device: torch.device) -> int:
    """The most memory that this process held: on the GPU where there is one, else in RAM."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if sys.platform == "win32":
        import psutil

        return psutil.Process().memory_info().peak_wset
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def mean_loss(losses: list[float], end: bool) -> float | None:
    """Mean of the first or last tenth of the steps; one step alone says mostly which timesteps it drew."""
    count = max(1, len(losses) // 10)
    return statistics.fmean(losses[-count:] if end else losses[:count]) if losses else None


def run_report(
    config: TrainConfig,
    progress: TrainProgress,
    device: torch.device,
    times: StepTimes,
    output: Path | None,
    finished: bool,
) -> dict[str, Any]:
    """The content of `run.json`.

    Args:
        config: the run's config.
        progress: where it ended.
        device: where it ran.
        times: of this session's steps.
        output: the saved adapter, if it was saved.
        finished: False for a run that was stopped.
    """
    return {
        "finished": finished,
        "steps": progress.step,
        "epochs": progress.epoch,
        "first_loss": mean_loss(progress.losses, end=False),
        "final_loss": mean_loss(progress.losses, end=True),
        "validation": [{"step": step, "loss": loss} for step, loss in progress.validation],
        "seconds_per_step": statistics.median(times.seconds) if times.seconds else None,
        "data_wait_seconds": sum(times.waited),
        "data_wait_share": times.waiting_share,
        "training_seconds": progress.seconds,
        "peak_memory_bytes": peak_memory_bytes(device),
        "output": str(output) if output else None,
        "samples": progress.samples,
        "config_hash": pack(config).config_hash(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or "cpu",
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
    }
