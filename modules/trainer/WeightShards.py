import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from modules.model.BaseModel import BaseModel
from modules.module.AdapterSet import AdapterSet
from modules.module.WeightSet import WeightSet
from modules.trainer.TrainedSet import TrainedSet
from modules.util.config.TrainConfig import TrainConfig
from modules.util.World import World
from scaled_optim.shards import is_shard, whole

import torch
from torch import Tensor, nn

from transformers import PreTrainedModel


class WeightShards:
    """The weights of a model, of which each process of a run holds a part: torch's FSDP2.

    A block of a component is brought together when it is called, forward and backward, and given away after. Gradients
    of trained weights are averaged as they come, and each process keeps those of its part. So every process has to
    call a component as often as the others do.

    Args:
        model: with everything on it that is trained.
        trained: what the run trains; of weights their sets go on with the parts.
        names: components that are held in parts.
        world: the processes.
    """

    def __init__(self, model: BaseModel, trained: Mapping[str, TrainedSet], names: list[str], world: World) -> None:
        # they take half a second to load, which runs of one process need not wait for
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        self.model, self.world = model, world
        self._trained = [name for name in names if isinstance(trained.get(name), WeightSet)]
        mesh = init_device_mesh(model.device.type, (world.size,))
        for name in names:
            root = model.components[name]
            # the root, too: it would hold averaged weights of a sample when training goes on
            for module in (*reversed(list(blocks_of(root))), root):
                fully_shard(module, mesh=mesh, reshard_after_forward=True)
            root.set_reduce_scatter_unused_params(True)
        for own in trained.values():
            if isinstance(own, WeightSet):
                own.find_parameters()
            elif isinstance(own, AdapterSet):
                # they were made beside the weights, which were on the host until here
                for adapter in own.adapters.values():
                    adapter.to(model.device)

    @contextmanager
    def whole(self) -> Iterator[None]:
        """Inside the block the components of the process that leads are whole modules of their own, to be saved.

        To be called in all processes. The weights come together one after the other, in the leader's memory.
        """
        with self.model.components.replaced({name: self._whole_of(name) for name in self._trained}):
            yield

    def _whole_of(self, name: str) -> nn.Module:
        state = whole_on_host(self.model.components[name].state_dict(), self.world)
        module = copy.deepcopy(self.model.empty_component(name))
        if self.world.leads:
            module.load_state_dict(state, assign=True)
            if isinstance(module, PreTrainedModel):
                module.tie_weights()
        return module


def sharded_components(model: BaseModel, config: TrainConfig, world: World) -> list[str]:
    """Names of the components whose weights a run holds in parts: the denoiser, and text encoders that are trained."""
    if world.alone or not config.shard_weights:
        return []
    denoiser, *others = model.trainable_components
    return [denoiser, *(name for name in others if getattr(config, name).train)]


def shard_weights(model: BaseModel, trained: Mapping[str, TrainedSet], world: World) -> WeightShards | None:
    """Divides the weights of the components that the model has `in_parts`; None where there are none."""
    return WeightShards(model, trained, list(model.in_parts), world) if model.in_parts else None


def blocks_of(component: nn.Module) -> Iterator[nn.Module]:
    """The repeated blocks of a component, those around others first: as its library says, else what its lists hold."""
    facts = (getattr(component, fact, None) or () for fact in ("_no_split_modules", "_repeated_blocks"))
    named = {name for names in facts for name in names}
    if named:
        yield from (inner for inner in component.modules() if type(inner).__name__ in named and inner is not component)
    else:
        lists = (inner for inner in component.children() if isinstance(inner, nn.ModuleList))
        yield from (block for blocks in lists for block in blocks)


def whole_on_host(value: Any, world: World) -> Any:
    """The same value with whole tensors in the memory of the leader's host, in the place of parts of them.

    To be called in all processes; what the others get holds nothing of what was in parts.

    Args:
        value: a tensor, or dicts of them.
        world: the processes.
    """
    if isinstance(value, Mapping):
        return {key: whole_on_host(item, world) for key, item in value.items()}
    if not (isinstance(value, Tensor) and is_shard(value)):
        return value
    found = whole(value)
    return found.cpu() if world.leads else torch.empty(0)
