"""Counts what a step asks of a GPU, without one: launches, bytes that they move, and waits of the host.

The step runs on fake tensors of a GPU, which have shapes and formats but no numbers. What is counted is what torch is
asked for: a launch for each operation that makes or changes numbers, and for operations on lists of tensors as many as
their kernels need; views, metadata and empty memory are none. Calls of linear algebra libraries count as one launch and
one reading and writing, so what they do inside is not in the figures. Bytes are those that each launch reads and
writes, as if no cache kept anything from one to the next. Kernels of the engine's own report their launches with the
tensors that they touch.
"""

import math
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

from scaled_optim import codecs, noise
from scaled_optim.features import one_pass_adam
from scaled_optim.kernels.Runner import Runner

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

# Of torch's kernels over lists of tensors (ATen/native/cuda/MultiTensorApply.cuh): by the number of lists, the tensors
# that one launch takes; its blocks; and the elements of each.
TENSORS_PER_LAUNCH = {1: 110, 2: 64, 3: 48, 4: 36, 5: 30}
BLOCKS_PER_LAUNCH, BLOCK_ELEMENTS = 320, 1 << 16
# tensors that one launch of `cat` takes (ATen/native/cuda/Shape.cu)
CAT_PER_LAUNCH = 128
# These write without reading what was there.
OVERWRITE = {"copy_", "fill_", "zero_", "_foreach_copy_", "_foreach_zero_"}
# These make nothing but memory or a new name for it.
MEMORY_ONLY = {
    "empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "lift_fresh", "_unsafe_view", "detach",
    "alias", "set_", "resize_",
}  # fmt: skip
# These read of their first argument only what an index names.
BY_INDEX = {"index_select", "gather", "embedding", "index", "take"}
# These look at numbers of the device before they return.
WAITING = {
    "_local_scalar_dense", "is_nonzero", "nonzero", "_linalg_eigh", "_linalg_svd", "linalg_eig", "linalg_cholesky",
    "equal", "_linalg_solve_ex", "linalg_lu_factor", "masked_select", "_unique2", "unique_consecutive", "linalg_lstsq",
}  # fmt: skip
# These change numbers alone, and return their first argument.
SIMPLE_IN_PLACE = {
    "add_", "sub_", "mul_", "div_", "lerp_", "addcmul_", "addcdiv_", "sqrt_", "square_", "copy_", "fill_", "zero_",
    "clamp_", "clamp_min_", "clamp_max_", "neg_", "abs_", "sign_", "copysign_", "gt_", "ge_", "baddbmm_", "round_",
    "bitwise_and_", "bitwise_or_", "bitwise_right_shift_", "random_", "normal_", "uniform_", "bernoulli_", "rsub_",
    "pow_", "atan2_", "logical_not_", "exp_", "log_", "reciprocal_", "maximum_", "hypot_",
}  # fmt: skip
# What the host gets where it wants a number of the device: nearly nothing, so that checks pass.
NUMBERS = {"item": 1e-8, "__float__": 1e-8, "__int__": 0, "__bool__": False}
_HOST_GENERATOR = torch.Generator()
DRAWN = {"rand", "randn", "randint", "random_", "normal_", "uniform_", "bernoulli_"}
DEVICE = "cuda"
DEVICE_OF = Tensor.device.__get__


@dataclass
class Counts:
    """What a step asked for.

    Attributes:
        launches: of kernels.
        bytes: read and written by them.
        waits: of the host for the device.
        operations: launches and bytes by the operation's name.
    """

    launches: int = 0
    bytes: int = 0
    waits: int = 0
    operations: dict[str, list[int]] = field(default_factory=dict)
    waited: Counter = field(default_factory=Counter)

    def launch(self, name: str, moved: int, launches: int = 1) -> None:
        """Notes an operation of so many launches that moves so many bytes together."""
        self.launches += launches
        self.bytes += moved
        entry = self.operations.setdefault(name, [0, 0])
        entry[0] += launches
        entry[1] += moved

    def wait(self, name: str) -> None:
        """Notes that the host waits."""
        self.waits += 1
        self.waited[name] += 1


class CountingRunner(Runner):
    """Takes the engine's kernels as launched without launching any, and notes them."""

    def __init__(self, counts: Counts | None = None) -> None:
        super().__init__()
        self.counts = counts

    def serves(self, device: torch.device) -> bool:
        return device.type == DEVICE

    def trusted(self, kind: Hashable, check: Callable[[], str | None]) -> bool:
        return True

    def table(self, key: Hashable, tensors: Sequence[Tensor]) -> Tensor:
        """A table that is copied in every step, as if all gradients had moved."""
        if self.counts is not None:
            self.counts.launch("copy of addresses", 8 * len(tensors))
        return torch.empty(len(tensors), dtype=torch.int64, device=tensors[0].device)

    def aligned(self, key: Hashable) -> bool:
        return True

    def launch(
        self, name: str, grid: tuple[int, ...], arguments: dict[str, Any], reads: Iterable[Tensor],
        writes: Iterable[Tensor], more: int = 0,
    ) -> None:  # fmt: skip
        if self.counts is not None:
            self.counts.launch(name, _bytes(reads) + _bytes(writes) + more)


class Operations(TorchDispatchMode):
    """Notes what each operation of torch asks of the GPU, and answers where the host wants a number."""

    def __init__(self, counts: Counts | None) -> None:
        super().__init__()
        self.counts = counts

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        # nothing of this is ever compiled, and the guard against it takes as long as all the rest
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = func.name().split("::")[1].split(".")[0]
        if func.namespace == "prim":
            fake = func is torch.ops.prim.device.default and isinstance(args[0], FakeTensor)
            return args[0].fake_device if fake else func(*args, **kwargs)
        if not any(_on_gpu(leaf) for leaf in tree_leaves((args, kwargs))) and not _makes_on_gpu(kwargs):
            return func(*args, **kwargs)
        if waits_for_numbers(name, args):
            self.wait(name)
        if name == "_local_scalar_dense":
            return NUMBERS["item"] if args[0].dtype.is_floating_point else NUMBERS["__int__"]
        if name == "nonzero":
            # as if there was nothing
            self.launch(name, _bytes([args[0]]))
            return args[0].new_empty((0, args[0].ndim), dtype=torch.int64)
        source = args[0] if args and isinstance(args[0], Tensor) else None
        if (
            name == "_to_copy"
            and source is not None
            and (kwargs.get("device") or source.device).type != source.device.type
        ):
            return self._between(source, kwargs)
        if name in DRAWN and not name.endswith("_"):
            found = torch.empty(
                args[-1] if name == "randint" else args[0], dtype=kwargs.get("dtype"), device=kwargs["device"]
            )
            self.launch(name, _bytes([found]))
            return found
        # what only changes numbers changes nothing here
        in_place = name.endswith("_") and args and not func._schema.returns or name in SIMPLE_IN_PLACE
        if isinstance(kwargs.get("out"), Tensor):
            found = kwargs["out"]
        else:
            found = (args[0] if func._schema.returns else None) if in_place else func(*args, **kwargs)
        if name not in MEMORY_ONLY and not _is_view(func):
            reads, writes = _touched(func, name, args, kwargs, found)
            self.launch(name, _bytes(reads) + _bytes(writes), _launches(func, name, args))
        return found

    def _between(self, source: Tensor, kwargs: dict[str, Any]) -> Tensor:
        """A copy from or to the host; only pinned memory is copied without waiting, and nothing here is pinned."""
        device, dtype = kwargs["device"], kwargs.get("dtype") or source.dtype
        if not kwargs.get("non_blocking"):
            self.wait("copy from the host" if device.type == DEVICE else "copy to the host")
        self.launch("copy between host and device", source.numel() * source.itemsize)
        return torch.empty(source.shape, dtype=dtype, device=device)

    def launch(self, name: str, moved: int, launches: int = 1) -> None:
        if self.counts is not None:
            self.counts.launch(name, moved, launches)

    def wait(self, name: str) -> None:
        if self.counts is not None:
            self.counts.wait(name)


def waits_for_numbers(name: str, args: Sequence[Any]) -> bool:
    """Whether an operation on tensors of a GPU returns only after the host has seen numbers of it.

    Args:
        name: of the operation, without its overload.
        args: its arguments; the mask of an indexed one says how many numbers there are.
    """
    masked = name in ("index", "index_put_", "_index_put_impl_") and any(
        isinstance(own, Tensor) and own.dtype in (torch.bool, torch.uint8) for own in args[1]
    )
    return masked or name in WAITING


class HostCalls(TorchFunctionMode):
    """What of torch's functions would want a real GPU before any operation is asked for."""

    def __init__(self, operations: Operations) -> None:
        super().__init__()
        self.operations = operations

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        # asked thousands of times, and dear to ask of a fake tensor
        if func is DEVICE_OF and isinstance(args[0], FakeTensor):
            return args[0].fake_device
        if func is Tensor.detach and not torch.is_grad_enabled():
            return args[0]
        name = getattr(func, "__name__", "")
        if func in (torch.tensor, torch.as_tensor) and not isinstance(args[0], Tensor):
            device = kwargs.get("device")
            if device is not None and torch.device(device).type == DEVICE:
                found = func(*args, **{**kwargs, "device": "cpu"})
                self.operations.wait("numbers of the host")
                self.operations.launch("copy between host and device", found.numel() * found.itemsize)
                return torch.empty(found.shape, dtype=found.dtype, device=device)
        if func is Tensor.copy_ and _on_gpu(args[0]):
            if args[1].device.type != DEVICE and not kwargs.get("non_blocking"):
                self.operations.wait("copy from the host")
            return torch.ops.aten.copy_.default(args[0], args[1])
        if name in NUMBERS and _on_gpu(args[0]):
            self.operations.wait("a number of the device")
            whole = name == "item" and not args[0].dtype.is_floating_point
            return 0 if whole else NUMBERS[name]
        if func is Tensor.contiguous and _on_gpu(args[0]):
            x = args[0]
            return x if x.is_contiguous() else torch.ops.aten.clone.default(x, memory_format=torch.contiguous_format)
        if func is Tensor.nonzero and _on_gpu(args[0]):
            return torch.ops.aten.nonzero.default(args[0])
        if func is Tensor.__invert__ and _on_gpu(args[0]):
            return torch.bitwise_not(args[0])
        if func is Tensor.__getitem__ and _on_gpu(args[0]):
            return _indexed(*args)
        if func is Tensor.__setitem__ and _on_gpu(args[0]):
            return _set_indexed(*args)
        if func is Tensor.to and _on_gpu(args[0]) or func is Tensor.to and kwargs.get("non_blocking"):
            return _moved(self.operations, *args, **kwargs)
        if func is Tensor.tolist and _on_gpu(args[0]):
            self.operations.wait(name)
            return [0] * len(args[0])
        return func(*args, **kwargs)


def _moved(operations: Operations, source: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    target = next((torch.device(a) for a in (*args, kwargs.get("device")) if isinstance(a, str | torch.device)), None)
    dtype = next((a for a in (*args, kwargs.get("dtype")) if isinstance(a, torch.dtype)), source.dtype)
    if target is None or target.type == source.device.type:
        copied = dtype != source.dtype or kwargs.get("copy")
        return torch.ops.aten._to_copy.default(source, dtype=dtype) if copied else source
    if not kwargs.get("non_blocking"):
        operations.wait("copy between host and device")
    operations.launch("copy between host and device", source.numel() * source.itemsize)
    return torch.empty(source.shape, dtype=dtype, device=target)


def _indexed(x: Tensor, index: Any) -> Tensor:
    """x[index], which torch itself would want a real GPU for."""
    index = list(index) if isinstance(index, tuple) else [index]
    if Ellipsis in [i for i in index if not isinstance(i, Tensor)]:
        at = next(place for place, i in enumerate(index) if i is Ellipsis)
        missing = x.ndim - sum(i is not None for i in index) + 1
        index[at : at + 1] = [slice(None)] * missing
    chosen: list[Tensor | None] = []
    dim = 0
    for i in index:
        if i is None:
            x = x.unsqueeze(dim)
        elif isinstance(i, slice):
            if (i.start, i.stop, i.step) != (None, None, None):
                x = torch.ops.aten.slice.Tensor(x, dim, i.start, i.stop, i.step or 1)
        elif isinstance(i, Tensor):
            chosen += [None] * (dim - len(chosen)) + [i]
        else:
            x = x.select(dim, i)
            continue
        dim += 1
    return torch.ops.aten.index.Tensor(x, chosen) if chosen else x


def _set_indexed(x: Tensor, index: Any, value: Any) -> None:
    parts = index if isinstance(index, tuple) else (index,)
    if any(isinstance(i, Tensor) for i in parts):
        value = value if isinstance(value, Tensor) else torch.full((), value, dtype=x.dtype, device=x.device)
        torch.ops.aten.index_put_.default(x, list(parts), value)
        return
    part = _indexed(x, index)
    torch.ops.aten.copy_.default(part, value) if isinstance(value, Tensor) else part.fill_(value)


@contextmanager
def fake_gpu() -> Iterator[Operations]:
    """Meanwhile tensors on "cuda" have shapes and no numbers; the operations' `counts` are for the caller to set."""
    operations = Operations(None)
    try:
        # a generator of a GPU can't be made without one; nothing is drawn
        generator = mock.patch.object(torch, "Generator", lambda device=None: _HOST_GENERATOR)
        with generator, FakeTensorMode(allow_non_fake_inputs=True), operations, HostCalls(operations):
            yield operations
    finally:
        # tables that are made once for each device must not outlive it
        for table in (noise._lanes, codecs._byte_signs, one_pass_adam._endless):
            table.cache_clear()


def list_launches(sizes: Iterable[int], depth: int) -> int:
    """Launches of torch's kernels over lists of tensors.

    Args:
        sizes: elements of each tensor.
        depth: how many lists there are, from 1 to 5.
    """
    launches = tensors = blocks = 0
    for size in sizes:
        left = -(-size // BLOCK_ELEMENTS)
        tensors += left > 0
        while left:
            taken = min(left, BLOCKS_PER_LAUNCH - blocks)
            left, blocks = left - taken, blocks + taken
            if blocks == BLOCKS_PER_LAUNCH or (tensors == TENSORS_PER_LAUNCH[depth] and not left):
                launches, blocks = launches + 1, 0
                # a tensor that goes on takes a place in the next launch, too
                tensors = int(left > 0)
    return launches + (blocks > 0)


def _launches(func: Any, name: str, args: Sequence[Any]) -> int:
    if name.startswith(("_foreach_", "_fused_")):
        lists = [value for value in args if isinstance(value, list | tuple) and value and isinstance(value[0], Tensor)]
        # the numbers of steps go along with the launches
        lists = [values for values in lists if name.startswith("_foreach_") or values[0].ndim or lists[0][0].ndim == 0]
        first = lists[0]
        if any(value.shape != other.shape for values in lists[1:] for value, other in zip(values, first, strict=True)):
            # lists that don't fit each other go one tensor at a time
            return len(first)
        made = 0 if func._schema.name.endswith("_") else 1
        return list_launches([tensor.numel() for tensor in first], min(5, len(lists) + made))
    if name in ("cat", "stack"):
        return math.ceil(len(args[0]) / CAT_PER_LAUNCH)
    return 1


def _touched(
    func: Any, name: str, args: Sequence[Any], kwargs: dict[str, Any], found: Any
) -> tuple[list[Tensor], list[Tensor]]:
    """What an operation reads and what it writes."""
    reads, writes, made = [], [], tree_leaves(found)
    for place, argument in enumerate(func._schema.arguments):
        value = args[place] if place < len(args) else kwargs.get(argument.name)
        tensors = [leaf for leaf in tree_leaves(value) if isinstance(leaf, Tensor)]
        written = argument.alias_info is not None and argument.alias_info.is_write
        if written:
            writes += tensors
        if not written or not (name in OVERWRITE or argument.is_out or name == "index_copy_"):
            if name in BY_INDEX and place == 0:
                # as many as come out
                tensors = [leaf for leaf in made if isinstance(leaf, Tensor)]
            reads += tensors
    if name == "index_copy_":
        writes = [args[3]]
    if not writes:
        writes = [leaf for leaf in made if isinstance(leaf, Tensor)]
    return reads, writes


def _is_view(func: Any) -> bool:
    return any(r.alias_info is not None and not r.alias_info.is_write for r in func._schema.returns)


def _on_gpu(leaf: Any) -> bool:
    return isinstance(leaf, FakeTensor) and leaf.fake_device.type == DEVICE


def _makes_on_gpu(kwargs: dict[str, Any]) -> bool:
    device = kwargs.get("device")
    return device is not None and torch.device(device).type == DEVICE


def _bytes(tensors: Iterable[Tensor]) -> int:
    """Of the memory on the GPU that tensors refer to, each place once."""
    places = {}
    for tensor in tensors:
        if not _on_gpu(tensor):
            continue
        count = math.prod(size for size, stride in zip(tensor.shape, tensor.stride(), strict=True) if stride)
        place = tensor.untyped_storage()._cdata, tensor.storage_offset(), count, tensor.dtype
        places[place] = count * tensor.itemsize if 0 not in tensor.shape else 0
    return sum(places.values())
