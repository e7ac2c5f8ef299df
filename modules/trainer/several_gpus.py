"""How many processes a run has, and what its config must not ask of several."""

import os

from modules.util.config.errors import Problem, Remedy
from modules.util.config.TrainConfig import TrainConfig
from modules.util.found_problems import problem_of
from modules.util.UserError import UserError
from modules.util.World import started_by_torchrun

import torch


def device_indexes(config: TrainConfig) -> list[int]:
    """The numbers of `device_indexes`; none where it is empty.

    Raises:
        UserError: it is no list of different numbers.
    """
    parts = [part.strip() for part in config.device_indexes.split(",") if part.strip()]
    if not all(part.isdecimal() for part in parts) or len(set(parts)) < len(parts):
        raise UserError(
            f"device_indexes: found {config.device_indexes!r}, expected different numbers of GPUs as 0,1, or nothing "
            "for all of them.",
            Remedy.of({"device_indexes": ""}),
        )
    return [int(part) for part in parts]


def processes_to_start(config: TrainConfig) -> int:
    """How many processes `multi_gpu` asks for; 1 where the run needs no others, or torchrun has started them.

    Raises:
        UserError: `device_indexes` is no list of numbers.
    """
    if not config.multi_gpu or started_by_torchrun():
        return 1
    named = len(device_indexes(config))
    return named or (1 if config.train_device == "cpu" else max(1, torch.cuda.device_count()))


def processes_of(config: TrainConfig) -> int:
    """How many processes a run of this config has.

    Raises:
        UserError: `device_indexes` is no list of numbers.
    """
    return int(os.environ["WORLD_SIZE"]) if started_by_torchrun() else processes_to_start(config)


def several_problems(config: TrainConfig) -> list[Problem]:
    """What keeps a run from several processes; nothing for a run of one."""
    try:
        count = processes_of(config)
    except UserError as error:
        return [problem_of(error)]
    if count == 1:
        return []
    found = []
    if config.train_device not in ("auto", "cuda", "cpu"):
        text = f"found {config.train_device}, but each of the {count} processes has a GPU of its own. Set it to auto"
        found.append(Problem("train_device", text, (Remedy.of({"train_device": "auto"}),)))
    samples = config.batch_size * config.gradient_accumulation_steps
    if samples < count:
        text = (
            f"found {config.batch_size} with gradient_accumulation_steps {config.gradient_accumulation_steps}, but "
            f"{count} processes share the images of a step. Set it to at least "
            f"{-(-count // config.gradient_accumulation_steps)}"
        )
        remedy = Remedy.of({"batch_size": -(-count // config.gradient_accumulation_steps)})
        found.append(Problem("batch_size", text, (remedy,)))
    if config.optimizer.fused_back_pass:
        text = (
            f"found true, but with {count} processes a step needs the gradients of all, which are added up when the "
            "backward pass ends. Set it to false"
        )
        found.append(Problem("optimizer.fused_back_pass", text, (Remedy.of({"optimizer.fused_back_pass": False}),)))
    return found
