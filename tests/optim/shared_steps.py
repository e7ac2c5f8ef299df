"""Steps of optimizers that several real processes share, beside those of processes that do all the work each.

Started by torchrun: `shared_steps.py FOLDER`. Each process writes `told-<rank>.json` there.
"""

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from scaled_optim.batched_optimizer import BatchedOptimizer

import torch
import torch.distributed as dist
from torch import Tensor, nn

STEPS = 4
OPTIMIZERS: dict[str, dict[str, Any]] = {
    "ADAMW_ADV": {"scaled_optm": True, "weight_decay": 0.01, "kourkoutas_beta": True, "centered_wd": 0.1},
    "ADOPT_ADV": {"state_precision": "int8_sr"},
    "LION_ADV": {"scaled_optm": True, "freeze_on_flip": True},
    "MUON_ADV": {"scaled_optm": True},
    "STIEFEL_LORA": {},
    "LORA_RITE": {"scaled_optm": True},
}
SHAPES = [("LORA_DOWN", (4, 20)), ("LORA_UP", (24, 4)), ("OFT", (6, 28)), ("HIDDEN", (12, 16)), ("VECTOR", (16,))]


def parameters() -> list[nn.Parameter]:
    """Five of each role. One of them is bfloat16, and one never has a gradient."""
    generator, made = torch.Generator().manual_seed(5), []
    for role, shape in SHAPES:
        for index in range(5):
            value = torch.randn(shape, generator=generator) * 0.1
            if role == "LORA_UP":
                value = torch.linalg.qr(value).Q
            own = nn.Parameter(value.to(torch.bfloat16 if (role, index) == ("HIDDEN", 2) else torch.float32))
            partner = {"LORA_DOWN": "LORA_UP", "LORA_UP": "LORA_DOWN"}.get(role)
            pair = partner and f"{partner}.{index}"
            own.parameter_info = SimpleNamespace(role=role, name=f"{role}.{index}", pair=pair)
            made.append(own)
    return made


def give_gradients(own: list[nn.Parameter], step: int) -> None:
    for place, parameter in enumerate(own):
        # the last has none, and one of the pairs misses a step, so that its neighbours are put in another order
        present = place != len(own) - 1 and (place % 5 != 3 or step != 1)
        noise = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(100 * step + place))
        parameter.grad = noise.to(parameter.dtype) if present else None


def optimizer(own: list[nn.Parameter], rule: str, **options: Any) -> BatchedOptimizer:
    # small stacks, so that each kind has several
    return BatchedOptimizer(own, rule, lr=0.01, chunk=200, **OPTIMIZERS[rule], **options)


def bytes_of(tensors: list[Tensor]) -> list[str]:
    return [tensor.detach().contiguous().view(torch.uint8).numpy().tobytes().hex() for tensor in tensors]


def flat(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    values = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return [tensor for item in values for tensor in flat(item)]


def try_rule(rule: str) -> dict[str, Any]:
    """Whether parameters and state are those of one process, and how many bytes of state this one holds of all."""
    alone, shared = parameters(), parameters()
    whole, part = optimizer(alone, rule), optimizer(shared, rule, shared=True)
    for step in range(STEPS):
        for own, stepped in ((alone, whole), (shared, part)):
            give_gradients(own, step)
            stepped.step()
    same = bytes_of(alone) == bytes_of(shared)
    state = part.whole_state_dict()
    if dist.get_rank() == 0:
        expected = whole.state_dict()
        same &= bytes_of(flat(state["state"])) == bytes_of(flat(expected["state"]))
        same &= [entry["step"] for entry in state["state"].values()] == [
            entry["step"] for entry in expected["state"].values()
        ]
    # what one process has written, all go on from
    found = [state]
    dist.broadcast_object_list(found, 0)
    again = optimizer(shared, rule, shared=True)
    again.load_state_dict(found[0])
    for own, stepped in ((alone, whole), (shared, again)):
        give_gradients(own, STEPS)
        stepped.step()
    same &= bytes_of(alone) == bytes_of(shared)
    held = sum(tensor.nbytes for tensor in flat(part.state_dict()["state"]))
    return {"same": same, "held": held, "all": sum(tensor.nbytes for tensor in flat(whole.state_dict()["state"]))}


def refused() -> list[str]:
    """What is told of what can't be shared."""
    own, told = parameters(), []
    tries = (
        lambda: BatchedOptimizer(own, "PRODIGY_ADV", shared=True).step(),
        lambda: optimizer(own, "ADAMW_ADV", shared=True).step_parameter(own[0]),
        lambda: optimizer(own, "ADAMW_ADV", shared=True).__getstate__(),
    )
    for attempt in tries:
        give_gradients(own, 0)
        try:
            attempt()
        except ValueError as error:
            told.append(str(error))
    return told


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    told = {rule: try_rule(rule) for rule in OPTIMIZERS} | {"refused": refused()}
    rank = dist.get_rank()
    dist.destroy_process_group()
    (folder / f"told-{rank}.json").write_text(json.dumps(told), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
