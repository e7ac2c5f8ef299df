"""Tensors that have a shape, a format and a place in memory, but no numbers: what a computation needs, without it."""

import ctypes
import mmap
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from itertools import count
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch._ops import OpOverload
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

CPU, META = torch.device("cpu"), torch.device("meta")
READABLE = 1 << 28  # bytes of memory behind every tensor, so that code that looks at one reads zeros
STEP, PLACES = 64, 1 << 18  # tensors that are there at the same time begin at different places, as real ones do
LARGEST_TABLE = 1 << 20  # elements; what is computed of larger tensors has no numbers in any case
# They make tables of numbers that stand in the code.
_TABLES = {"aten::arange", "aten::full", "aten::linspace", "aten::ones", "aten::scalar_tensor"}
# What they make has another layout, or statistics of another format, on each kind of device.
_OF_DEVICE = {"aten::convolution", "aten::convolution_backward", "aten::native_layer_norm"}
# They look at shapes and devices alone, so that they run as they are.
_HARMLESS = {"aten::_fused_sdp_choice", "aten::is_pinned"}


class HeldMemory:
    """Bytes of the tensors that operations made while it counted, until their memory is given back.

    Attributes:
        held: of those that are still there.
        peak: the most that were held at once; may be set to `held` to begin anew.
    """

    def __init__(self) -> None:
        self.held, self.peak = 0, 0
        self._blocks: dict[int, _Block] = {}

    def add(self, owner: Any, size: int) -> None:
        """Counts `size` bytes as long as `owner` exists."""
        block = _Block(owner, self._gone)
        block.size = size
        self._blocks[id(block)] = block
        self.held += size
        if self.held > self.peak:
            self.peak = self.held

    def _gone(self, block: "_Block") -> None:
        self.held -= block.size
        del self._blocks[id(block)]


class _Block(weakref.ref):
    __slots__ = ("size",)


class WithoutNumbers(TorchDispatchMode):
    """While it is open, operations find out the shape and format of what they would make, and compute nothing.

    Its tensors are common ones of the CPU, so that autograd, autocast and modules do with them what they always do;
    only their storages refer to memory that nobody fills. Views share a storage, and it dies with the last of them.
    What an operation makes is asked of torch's meta device, or of its fake tensors where a CPU does otherwise, once for
    each combination of arguments, and remembered: fake tensors alone would take ten times as long.

    Small tensors with numbers, as tables that code makes and keeps, stay what they are: what is computed of them alone
    is really computed. Where code reads a number of a tensor without any, as a norm, it gets one that is nearly
    nothing, which is that of a fresh adapter.

    Raises:
        Exception: of torch, where the shape of a result depends on numbers that are not there.
    """

    # what operations make, by the operation and all that its result depends on
    _results: ClassVar[dict[Any, Any]] = {}
    _actions: ClassVar[dict[int, Any]] = {}
    # of the process: tensors may outlive the mode that made them
    _memory: ClassVar[mmap.mmap | None] = None

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        # nothing of this is ever compiled, and the guard against it takes as long as all the rest
        return False

    def __init__(self) -> None:
        super().__init__()
        if WithoutNumbers._memory is None:
            WithoutNumbers._memory = mmap.mmap(-1, READABLE)
        self._start = ctypes.addressof(ctypes.c_char.from_buffer(WithoutNumbers._memory))
        self._end = self._start + READABLE
        self._places = (self._start + STEP * (index % PLACES) for index in count())
        self._counted: HeldMemory | None = None
        self._fake = FakeTensorMode()
        # what it finds out is remembered here
        self._fake.cache_enabled = False

    @contextmanager
    def counting(self) -> Iterator[HeldMemory]:
        """Meanwhile the memory of what operations make is counted, also after it, until it is given back."""
        before, self._counted = self._counted, HeldMemory()
        try:
            yield self._counted
        finally:
            self._counted = before

    def like(self, tensor: Tensor) -> Tensor:
        """A tensor of the same shape and format on the CPU, without its numbers; it is not counted."""
        size, stride = tensor.shape, tensor.stride()
        reach = 0 if 0 in size else 1 + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
        if not reach:
            return torch.empty_strided(size, stride, dtype=tensor.dtype)
        with torch.no_grad():
            storage = self._block(reach * tensor.itemsize, tensor.dtype)[0].untyped_storage()
            return torch.empty(0, dtype=tensor.dtype).set_(storage, 0, size, stride)

    def module(self, module: nn.Module) -> nn.Module:
        """Turns a module on the meta device into one on the CPU that has no numbers; what is shared stays shared."""
        made: dict[int, Tensor] = {}
        for submodule in module.modules():
            for place in (submodule._parameters, submodule._buffers):
                for name, tensor in place.items():
                    if tensor is None:
                        continue
                    if id(tensor) not in made:
                        own = self.like(tensor)
                        made[id(tensor)] = nn.Parameter(own, False) if isinstance(tensor, nn.Parameter) else own
                    place[name] = made[id(tensor)]
        return module

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        action = self._actions.get(id(func))
        if action is None:
            action = self._actions[id(func)] = _action(func)
        if action == "as it is":
            return func(*args, **(kwargs or {}))
        if action == "number" and self._is_empty(args[0]):
            dtype = args[0].dtype
            return 1e-8 if dtype.is_floating_point else (False if dtype == torch.bool else 0)
        if callable(action):
            changed = action(args, kwargs)
            if isinstance(changed, Tensor) and self._is_empty(changed):
                return changed
        key: list[Any] = [id(func)]
        tensors: list[Tensor] = []
        _describe(args, key, tensors)
        if kwargs:
            key += kwargs
            _describe(kwargs.values(), key, tensors)
        if action == "table" or tensors and not any(map(self._is_empty, tensors)):
            return self._really(func, args, kwargs or {})
        if callable(action):
            return changed
        known = tuple(key)
        made = self._results.get(known)
        if made is None:
            made = self._results[known] = self._ask(func, args, kwargs or {})
        return self._make(made, tensors, {})

    def _is_empty(self, tensor: Tensor) -> bool:
        """Whether it has no numbers, or so many that they are not to be looked at."""
        # a view's own address may be anywhere behind
        return self._start <= tensor.untyped_storage().data_ptr() < self._end or tensor.numel() > LARGEST_TABLE

    def _really(self, func: OpOverload, args: Any, kwargs: Any) -> Any:
        """What the operation makes, with its numbers; counted, if it is new."""
        result = func(*args, **kwargs)
        if self._counted is not None and isinstance(result, Tensor) and not func._schema.is_mutable:
            storage = result.untyped_storage()
            self._counted.add(storage, storage.nbytes())
        return result

    def _ask(self, func: OpOverload, args: Any, kwargs: Any) -> Any:
        """What the operation would make, as `_make` takes it."""
        if not _depends_on_device(func):
            try:
                # takes a quarter of the time that fake tensors take
                return self._asked(func, args, kwargs, META, nullcontext())
            except NotImplementedError:
                pass
        return self._asked(func, args, kwargs, CPU, self._fake)

    def _asked(
        self, func: OpOverload, args: Any, kwargs: Any, device: torch.device, mode: AbstractContextManager
    ) -> Any:
        arguments: dict[int, int] = {}

        def faked(value: Any) -> Any:
            if isinstance(value, Tensor):
                own = torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device=device)
                arguments[own.untyped_storage()._cdata] = len(arguments)
                return own
            return type(value)(map(faked, value)) if type(value) in (list, tuple) else value

        with mode:
            own, named = [faked(value) for value in args], {name: faked(value) for name, value in kwargs.items()}
            if any(argument.name == "device" for argument in func._schema.arguments):
                named["device"] = device
            return _noted(func(*own, **named), arguments, {})

    def _make(self, made: Any, tensors: Sequence[Tensor], storages: dict[int, Tensor]) -> Any:
        kind = made[0]
        if kind is Tensor:
            _, group, length, dtype, size, stride, offset = made
            if not length:
                return torch.empty_strided(size, stride, dtype=dtype)
            flat = storages.get(group)
            if flat is None:
                flat, block = self._block(length, dtype)
                storages[group] = flat
                if self._counted is not None:
                    self._counted.add(block, length)
            return flat.as_strided(size, stride, offset)
        if kind is None:
            return made[1]
        if kind is int:
            _, index, size, stride, offset = made
            return tensors[index].as_strided(size, stride, tensors[index].storage_offset() + offset)
        return kind(self._make(item, tensors, storages) for item in made[1])

    def _block(self, length: int, dtype: torch.dtype) -> tuple[Tensor, Any]:
        """A flat tensor of so many bytes, and the object that exists as long as its storage."""
        block = (ctypes.c_char * length).from_address(next(self._places))
        return torch.frombuffer(block, dtype=dtype), block


def _depends_on_device(func: OpOverload) -> bool:
    """Whether the layout or format of what the operation makes is another one on the meta device than on a CPU."""
    return func._schema.name in _OF_DEVICE


def _action(func: OpOverload) -> str | Callable[[Any, Any], Any]:
    """What is to be done for an operation: a word, or a function that finds its results among its arguments."""
    schema = func._schema
    if func is torch.ops.aten._local_scalar_dense.default:
        return "number"
    if schema.name in _TABLES or func is torch.ops.aten.lift_fresh.default:
        return "table"
    if schema.name in _HARMLESS or func.namespace == "profiler" or torch.Tag.inplace_view in func.tags or func.is_view:
        return "as it is"
    if not schema.is_mutable:
        return "new"
    if not schema.returns:
        return lambda args, kwargs: None
    written = [_written(schema.arguments, returned) for returned in schema.returns]
    if None in written:
        # it changes an argument, and makes something new besides
        return "new"

    def changed(args: Any, kwargs: Any) -> list[Any]:
        return [kwargs[name] if kwargs and name in kwargs else args[index] for index, name in written]

    return (lambda args, kwargs: changed(args, kwargs)[0]) if len(written) == 1 else changed


def _written(arguments: Sequence[Any], returned: Any) -> tuple[int, str] | None:
    """Place and name of the argument that is returned after it was written to; None if something else is."""
    info = returned.alias_info
    if info is None or not info.is_write:
        return None
    return next(
        (index, argument.name)
        for index, argument in enumerate(arguments)
        if argument.alias_info is not None and argument.alias_info.before_set == info.before_set
    )


def _describe(values: Iterable[Any], key: list[Any], tensors: list[Tensor]) -> None:
    """Adds to `key` all that results depend on, and to `tensors` those among the values."""
    for value in values:
        kind = type(value)
        if kind is Tensor or kind is nn.Parameter:
            key += (value.shape, value.stride(), value.dtype)
            tensors.append(value)
        elif kind is list or kind is tuple:
            key += (kind, len(value))
            if value and type(value[0]) is float:
                # by which sizes are multiplied
                key += value
            else:
                _describe(value, key, tensors)
        elif kind is float or kind is torch.Generator:
            # a factor, which has no say in shapes
            key.append(kind)
        else:
            # 1, 1.0 and True are equal, but make results of different formats
            key += (kind, value)


def _noted(value: Any, arguments: dict[int, int], groups: dict[int, int]) -> Any:
    """A result as `WithoutNumbers._make` takes it.

    Args:
        value: of the operation on fake tensors.
        arguments: storage of an argument -> its place among them.
        groups: numbers the new storages.
    """
    if isinstance(value, Tensor):
        storage, size, stride = value.untyped_storage(), tuple(value.shape), value.stride()
        if storage._cdata in arguments:
            return int, arguments[storage._cdata], size, stride, value.storage_offset()
        group = groups.setdefault(storage._cdata, len(groups))
        return Tensor, group, storage.nbytes(), value.dtype, size, stride, value.storage_offset()
    if type(value) in (list, tuple):
        return type(value), [_noted(item, arguments, groups) for item in value]
    return None, value
