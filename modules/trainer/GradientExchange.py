from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from modules.util.World import World, exchange
from scaled_optim.shards import is_shard

from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel


class GradientExchange:
    """Gives losses, and after the backward pass of a step every process has the gradients of all.

    With several processes this is torch's DistributedDataParallel: parts of the gradient are averaged while others are
    still computed. A parameter that no process has used gets no gradient, as in a run of one process. Weights that
    processes hold in parts (`WeightShards`) exchange their gradients by themselves.

    Args:
        losses: what is called.
        parameters: all that the run trains.
        world: the processes.
    """

    def __init__(self, losses: Callable[..., Tensor], parameters: Sequence[nn.Parameter], world: World) -> None:
        self._losses, self._parameters, self._world = losses, list(parameters), world
        self._exchanged: list[nn.Parameter] = []
        self._parallel: DistributedDataParallel | None = None

    def __call__(self, *arguments: Any) -> Tensor:
        """What `losses` gives."""
        parallel = None if self._world.alone else self._over_processes()
        return (self._losses if parallel is None else parallel)(*arguments)

    @property
    def scale(self) -> float:
        """What a process' loss is multiplied by, so that the averaged gradient is that of all losses' sum."""
        return float(self._world.size)

    @contextmanager
    def step(self, last: bool) -> Iterator[None]:
        """Around the losses and the backward pass of a batch.

        Args:
            last: of those that this process has in the step. Gradients of the others are only added up.
        """
        if self._world.alone:
            yield
            return
        with exchange():
            parallel = self._over_processes()
            if last or parallel is None:
                yield
            else:
                with parallel.no_sync():
                    yield

    def _over_processes(self) -> DistributedDataParallel | None:
        """Made anew where another set of parameters is trained than before: some may have been frozen."""
        trained = [parameter for parameter in self._parameters if parameter.requires_grad and not is_shard(parameter)]
        if not trained:
            return None
        if self._parallel is None or len(trained) != len(self._exchanged):
            self._exchanged = trained
            # which parameters a batch uses may differ between processes; with this the buckets stay as they are, too,
            # so that sums have the same order in every step and in a resumed run
            self._parallel = DistributedDataParallel(
                _Losses(self._losses, trained), find_unused_parameters=True, gradient_as_bucket_view=True
            )
        return self._parallel


class _Losses(nn.Module):
    """A function as a module that has the parameters on which its result depends."""

    def __init__(self, losses: Callable[..., Tensor], parameters: Sequence[nn.Parameter]) -> None:
        super().__init__()
        self.losses, self.trained = losses, nn.ParameterList(parameters)

    def forward(self, *arguments: Any) -> Tensor:
        return self.losses(*arguments)
