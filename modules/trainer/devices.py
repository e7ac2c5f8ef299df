"""Devices by their names. Quick to load, as tools need no more of the trainer."""

from modules.trainer.several_gpus import device_indexes
from modules.util.config.errors import Remedy
from modules.util.config.TrainConfig import TrainConfig
from modules.util.UserError import UserError
from modules.util.World import ALONE, World

import torch


def resolve_device(config: TrainConfig, world: World = ALONE) -> torch.device:
    """The device of `train_device`; `auto` takes the best one there is. Of several processes each has its own GPU."""
    name = config.train_device
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
        if world.alone or name != "cuda":
            return torch.device(name)
    if name == "cuda" and not world.alone:
        known = device_indexes(config) or list(range(torch.cuda.device_count()))
        name = f"cuda:{known[world.place % len(known)]}" if known else name
    return usable_device("train_device", name)


def usable_device(key: str, name: str) -> torch.device:
    """The device of a name. Raises UserError, which names the option, if nothing can be computed on it here."""
    try:
        device = torch.device(name)
        # there is a device that holds no numbers
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        usual = "cpu" if key == "temp_device" else "auto"
        raise UserError(
            f"{key}: {name!r} is not a usable device here; expected {'' if usual == 'cpu' else 'auto, '}cpu, or cuda "
            "with a GPU and a torch that supports it.",
            Remedy.of({key: usual}),
        ) from error
    return device
