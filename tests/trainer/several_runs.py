"""Runs of the miniature in several real processes, one after the other, so that torch is loaded once for all of them.

Each is started with a folder that has `jobs.json`: name -> a config, and what else is asked of the run.
"""

import hashlib
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.forked_scripts import ScriptServer
from tests.torchrun import in_processes

if TYPE_CHECKING:
    from modules.util.World import World


def run_jobs(
    folder: Path, jobs: dict[str, dict[str, Any]], processes: int, server: ScriptServer
) -> list[dict[str, Any]]:
    """What each process says, by its rank: job -> what came of it, and `unused gradients`.

    Args:
        folder: gets the jobs and what came of them.
        jobs: name -> {"config": JSON, "stop_after": a step or None}.
        processes: how many train together.
        server: forks them.
    """
    folder.mkdir()
    (folder / "jobs.json").write_text(json.dumps(jobs), encoding="utf-8")
    return in_processes(Path(__file__), folder, processes, server)


def run_job(job: dict[str, Any], world: "World") -> dict[str, Any]:
    """Losses by step, validation losses, warnings, sha256 of what was trained, and bytes that this process holds."""
    from modules.trainer.events import TrainCommands, TrainEvents
    from modules.trainer.Trainer import Trainer
    from modules.util.config.load import train_config_from_dict
    from scaled_optim.shards import local_part, whole

    commands, found = TrainCommands(), {"losses": {}, "validation": [], "warnings": []}

    def listen(kind: str, values: dict[str, Any]) -> None:
        if kind == "step":
            found["losses"][values["step"]] = values["loss"]
            # asked of one process, whichever
            commands.stop |= values["step"] == job.get("stop_after") and world.rank == world.size - 1
        elif kind == "validation":
            found["validation"].append(values["loss"])
        elif kind == "warning":
            found["warnings"].append(values["text"])

    trainer = Trainer(train_config_from_dict(job["config"]), TrainEvents([listen]), commands, None, world)
    trainer.run()
    digest = hashlib.sha256()
    for parameter in trainer.parameters:
        digest.update(whole(parameter).numpy().tobytes())
    memory = {local_part(p).untyped_storage() for p in trainer.model.denoiser.parameters()}
    weights = sum({storage.data_ptr(): storage.nbytes() for storage in memory}.values())
    state = sum(tensor.nbytes for tensor in tensors_of(trainer.optimizer.state_dict()["state"]))
    return found | {"parameters": digest.hexdigest(), "weights": weights, "state": state}


def tensors_of(value: Any) -> list[Any]:
    """All tensors in dicts."""
    if isinstance(value, dict):
        return [tensor for item in value.values() for tensor in tensors_of(item)]
    return [value] if hasattr(value, "nbytes") else []


def unused_gradients(world: "World") -> list[list[float] | None]:
    """Gradients of three parameters: one that all use, one that the first process uses, one that none does."""
    from modules.trainer.GradientExchange import GradientExchange

    import torch
    from torch import nn

    everywhere, once, never = (nn.Parameter(torch.ones(2)) for _ in range(3))

    def losses(factor: float) -> torch.Tensor:
        return (everywhere * factor).sum() + ((once * 5).sum() if world.leads else 0)

    exchange = GradientExchange(losses, [everywhere, once, never], world)
    for last in (False, True):
        with exchange.step(last):
            (exchange(1.0 + world.rank) * exchange.scale).backward()
    return [None if p.grad is None else p.grad.tolist() for p in (everywhere, once, never)]


def main(folder: Path) -> None:
    from modules.util.World import World

    import torch

    torch.set_num_threads(1)
    world = World.join("cpu")
    told: dict[str, Any] = {"unused gradients": unused_gradients(world)}
    for name, job in json.loads((folder / "jobs.json").read_text(encoding="utf-8")).items():
        told[name] = run_job(job, world)
    world.leave()
    (folder / f"told-{world.rank}.json").write_text(json.dumps(told), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
