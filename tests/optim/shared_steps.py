"""Steps of optimizers that several real processes share, or whose weights they hold in parts, beside those of one.

Started by torchrun: `shared_steps.py FOLDER`. Each process writes `told-<rank>.json` there.
"""

import json
import math
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from scaled_optim.batched_optimizer import BatchedOptimizer

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor

STEPS = 4
# those that look at each number by itself are stepped as rows where weights are in parts, all others as whole matrices
OPTIMIZERS: dict[str, dict[str, Any]] = {
    "ADAMW_ADV": {"scaled_optm": True, "weight_decay": 0.01, "kourkoutas_beta": True, "centered_wd": 0.1},
    "ADOPT_ADV": {"state_precision": "int8_sr"},
    "LION_ADV": {"weight_decay": 0.1, "cautious_wd": True},
    "SIGNSGD_ADV": {"scaled_optm": True, "freeze_on_flip": True},
    "MUON_ADV": {"scaled_optm": True},
    "PRODIGY_ADV": {"d0": 1e-3, "slice_p": 3, "fisher_wd": True, "weight_decay": 0.01},
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


def in_parts(own: list[nn.Parameter], mesh: DeviceMesh) -> list[nn.Parameter]:
    """The same parameters, of which each process has some rows."""
    made = []
    for parameter in own:
        part = nn.Parameter(distribute_tensor(parameter.detach(), mesh, [Shard(0)]))
        part.parameter_info = parameter.parameter_info
        made.append(part)
    return made


def give_gradients(own: list[nn.Parameter], step: int) -> None:
    for place, parameter in enumerate(own):
        # the last has none, and one of the pairs misses a step, so that its neighbours are put in another order
        present = place != len(own) - 1 and (place % 5 != 3 or step != 1)
        noise = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(100 * step + place))
        noise = noise.to(parameter.dtype)
        if isinstance(parameter, DTensor):
            noise = distribute_tensor(noise, parameter.device_mesh, [Shard(0)])
        parameter.grad = noise if present else None


def optimizer(own: list[nn.Parameter], rule: str, **options: Any) -> BatchedOptimizer:
    # small stacks, so that each kind has several
    return BatchedOptimizer(own, rule, lr=0.01, chunk=200, **OPTIMIZERS[rule], **options)


def distance(one: list[Tensor], other: list[Tensor]) -> float:
    """The largest difference of two numbers, to the bit; infinite where shapes differ."""
    found, whole = 0.0, [tensor.full_tensor() if isinstance(tensor, DTensor) else tensor for tensor in other]
    for first, second in zip(one, whole, strict=True):
        first, second = first.detach(), second.detach()
        if (first.shape, first.dtype) != (second.shape, second.dtype):
            return math.inf
        if not torch.equal(first, second):
            found = max(found, float((first.double() - second.double()).abs().max()))
    return found


def flat(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    values = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return [tensor for item in values for tensor in flat(item)]


def try_rule(rule: str, mesh: DeviceMesh | None = None) -> dict[str, Any]:
    """How far parameters and state are from those of one process, and how many bytes of state this one holds of all.

    Args:
        rule: a name of `OPTIMIZERS`.
        mesh: of the processes that hold the parameters in parts; None: each has all of them.
    """
    alone, how = parameters(), {} if mesh else {"shared": True}
    shared = in_parts(parameters(), mesh) if mesh else parameters()
    whole, part = optimizer(alone, rule), optimizer(shared, rule, **how)
    whole.watch = part.watch = True
    for step in range(STEPS):
        for own, stepped in ((alone, whole), (shared, part)):
            give_gradients(own, step)
            stepped.step()
    differs = distance(alone, shared)
    expected, found = whole.read_statistics(), part.read_statistics()
    same = expected.keys() == found.keys()
    same &= all(math.isclose(found[key], expected[key], rel_tol=1e-5) for key in found)
    state = part.whole_state_dict()
    if dist.get_rank() == 0:
        expected = whole.state_dict()
        differs = max(differs, distance(flat(expected["state"]), flat(state["state"])))
        same &= [entry["step"] for entry in state["state"].values()] == [
            entry["step"] for entry in expected["state"].values()
        ]
    # what one process has written, all go on from
    found = [state]
    dist.broadcast_object_list(found, 0)
    again = optimizer(shared, rule, **how)
    again.load_state_dict(found[0])
    for own, stepped in ((alone, whole), (shared, again)):
        give_gradients(own, STEPS)
        stepped.step()
    differs = max(differs, distance(alone, shared))
    held = sum(tensor.nbytes for tensor in flat(part.state_dict()["state"]))
    whole_bytes = sum(tensor.nbytes for tensor in flat(whole.state_dict()["state"]))
    return {"differs": differs, "same statistics": same, "held": held, "all": whole_bytes}


def refused(mesh: DeviceMesh) -> list[str]:
    """What is told of what can't be shared."""
    own, told = parameters(), []
    parts = in_parts(own, mesh)
    tries = (
        lambda: optimizer(own, "ADAMW_ADV", shared=True).step_parameter(own[0]),
        lambda: optimizer(own, "ADAMW_ADV", shared=True).__getstate__(),
        lambda: optimizer(parts, "ADAMW_ADV").step_parameter(parts[0]),
        lambda: optimizer([nn.Parameter(distribute_tensor(own[0].detach(), mesh, [Replicate()]))], "ADAMW_ADV"),
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
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    told = {rule: {"shared": try_rule(rule), "in parts": try_rule(rule, mesh)} for rule in OPTIMIZERS} | {
        "refused": refused(mesh)
    }
    rank = dist.get_rank()
    dist.destroy_process_group()
    (folder / f"told-{rank}.json").write_text(json.dumps(told), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
