"""A device that is none: its tensors compute on the CPU, but say they are elsewhere and keep a real device's rules.

No tensor of the CPU beside one of the device, but for numbers; no float64 where the device has none; and each moment in
which a program would wait for the device is counted.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from benchmarks.optimizers.counting import waits_for_numbers

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

NAME = "foreign"
aten = torch.ops.aten
COPIES = {aten._to_copy.default, aten.copy_.default}


class _Backend:
    """What torch asks `torch.foreign` for."""

    def is_initialized(self) -> bool:
        return True

    def is_available(self) -> bool:
        return False

    def current_device(self) -> int:
        return 0

    def device_count(self) -> int:
        return 1

    def _is_in_bad_fork(self) -> bool:
        return False

    def manual_seed_all(self, seed: int) -> None:
        pass

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16, torch.float16]


def _register() -> None:
    """Makes torch know the device, and not take it for an accelerator that is there."""

    class NoHook(torch._C._acc.PrivateUse1Hooks):
        def is_available(self) -> bool:
            return False

        def has_primary_context(self, index: int) -> bool:
            return True

        def is_built(self) -> bool:
            return True

    _setup_privateuseone_for_python_backend(NAME, backend_module=_Backend(), hook=NoHook())


# when tests are collected: autograd counts the devices at the first backward of a process
_register()

# what autocast computes in its dtype, and what in float32, of what models of this repository use (torch's own lists of
# CUDA, ATen/autocast_mode.h)
LOWER = (
    "_convolution", "conv1d", "conv2d", "conv3d", "linear", "addmm", "mm", "bmm", "baddbmm", "matmul", "mv",
    "scaled_dot_product_attention",
)  # fmt: skip
FLOAT_32 = (
    "group_norm", "layer_norm", "rms_norm", "softmax.int", "log_softmax.int", "mse_loss", "l1_loss", "huber_loss",
    "smooth_l1_loss", "exp", "log", "rsqrt", "reciprocal", "pow.Tensor_Scalar", "pow.Tensor_Tensor", "cumsum",
    "upsample_nearest2d.vec", "upsample_bilinear2d.vec",
)  # fmt: skip
_libraries: list[torch.library.Library] = []


def _register_autocast() -> None:
    """Makes `torch.autocast` of the device do what that of CUDA does; a backend of its own has none."""
    key = "AutocastPrivateUse1"
    rest = torch.library.Library("_", "IMPL")
    rest.fallback(torch.library.fallthrough_kernel, key)
    own = torch.library.Library("aten", "IMPL")
    for names, dtype in ((LOWER, None), (FLOAT_32, torch.float32)):
        for name in names:
            packet, _, overload = name.partition(".")
            own.impl(name, _cast(getattr(getattr(aten, packet), overload or "default"), dtype), key)
    # they hold as long as these live
    _libraries.extend((rest, own))


def _cast(operation: Any, dtype: torch.dtype | None) -> Any:
    """The operation on floating point numbers of the device in a dtype; None: that of autocast."""
    without = torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastPrivateUse1)

    def computed(*args: Any, **kwargs: Any) -> Any:
        wanted = dtype or torch.get_autocast_dtype(NAME)

        def cast(own: Any) -> Any:
            narrow = isinstance(own, Tensor) and own.is_floating_point() and own.dtype != torch.float64
            return own.to(wanted) if narrow else own

        with torch._C._ExcludeDispatchKeyGuard(without):
            return operation(*tree_map(cast, args), **tree_map(cast, kwargs))

    return computed


_register_autocast()


def _keeping_notes(apply: Any) -> Any:
    """A module's `_apply` after which parameters still have what was noted on them, as where torch moves their data."""

    def kept(module: nn.Module, *args: Any, **kwargs: Any) -> nn.Module:
        before = dict(module._parameters)
        apply(module, *args, **kwargs)
        for name, own in module._parameters.items():
            if own is not None and own is not before[name]:
                own.__dict__.update({key: note for key, note in vars(before[name]).items() if key not in vars(own)})
        return module

    return kept


class ForeignTensor(Tensor):
    """A tensor of the device, whose numbers are in `inner`."""

    inner: Tensor
    device_rules: "ForeignDevice"

    @staticmethod
    def __new__(cls, inner: Tensor, rules: "ForeignDevice") -> "ForeignTensor":
        made = torch.Tensor._make_wrapper_subclass(
            cls, inner.size(), strides=inner.stride(), storage_offset=inner.storage_offset(), dtype=inner.dtype,
            device=rules.device, requires_grad=False,
        )  # fmt: skip
        made.inner, made.device_rules = inner, rules
        return made

    def __init__(self, inner: Tensor, rules: "ForeignDevice") -> None:
        pass

    def __repr__(self) -> str:  # noqa: D105
        return f"ForeignTensor({self.inner!r})"

    def data_ptr(self) -> int:
        return self.inner.data_ptr()

    def tolist(self) -> list:
        self.device_rules.waits += 1
        return self.inner.tolist()

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        rules = next(own.device_rules for own in tree_leaves((args, kwargs)) if isinstance(own, ForeignTensor))
        return rules.run(func, args, kwargs or {})


class ForeignDevice(TorchDispatchMode):
    """The device. Inside of `with` it makes tensors where a program asks for them there.

    Args:
        float64: whether it has float64.

    Attributes:
        waits: how often the program had to wait for the device.
        sent: how often numbers of the CPU were copied to it.
    """

    def __init__(self, float64: bool = True) -> None:
        super().__init__()
        self.device, self.float64, self.waits, self.sent = torch.device(NAME, 0), float64, 0, 0

    def __enter__(self) -> "ForeignDevice":
        # torch.tensor(…, device=…) makes a tensor of the CPU first, and the copy comes through here
        self._before = torch._C._only_lift_cpu_tensors()
        torch._C._set_only_lift_cpu_tensors(True)
        # modules that are moved get parameters of another class
        torch.__future__.set_overwrite_module_params_on_conversion(True)
        self._apply = nn.Module._apply
        nn.Module._apply = _keeping_notes(self._apply)
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        torch._C._set_only_lift_cpu_tensors(self._before)
        torch.__future__.set_overwrite_module_params_on_conversion(False)
        nn.Module._apply = self._apply
        super().__exit__(*error)

    def put(self, tensor: Tensor) -> Tensor:
        """A copy of a tensor of the CPU on the device."""
        return self._wrapped(tensor.detach().clone())

    @staticmethod
    def taken(tensor: Tensor) -> Tensor:
        """The numbers of a tensor of the device, without a wait that counts."""
        return tensor.inner if isinstance(tensor, ForeignTensor) else tensor

    @contextmanager
    def no_waits(self, most: int = 0) -> Iterator[None]:
        """AssertionError if the block waits more often."""
        before = self.waits
        yield
        assert self.waits - before <= most, (
            f"waited {self.waits - before} times for the device, at most {most} is right"
        )

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return self.run(func, args, kwargs or {})

    def run(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        """One operation on the CPU, with its results where they belong."""
        leaves = [own for own in tree_leaves((args, kwargs)) if isinstance(own, Tensor)]
        here = [own for own in leaves if isinstance(own, ForeignTensor)]
        asked = kwargs.get("device")
        to_device = torch.device(asked).type == self.device.type if asked is not None else bool(here)
        if here and waits_for_numbers(func._opname, args):
            self.waits += 1
        if func in COPIES:
            to_device = self._copied(func, args, here, to_device, asked)
        elif here:
            for own in leaves:
                if not isinstance(own, ForeignTensor) and own.dim() > 0:
                    raise RuntimeError(f"{func}: a tensor of the CPU {list(own.shape)} beside one of {self.device}")
        if asked is not None and to_device:
            kwargs = {**kwargs, "device": torch.device("cpu")}
        plain_args, plain_kwargs = tree_map(self.taken, args), tree_map(self.taken, kwargs)
        out = func(*plain_args, **plain_kwargs)
        if not to_device:
            return out
        wrapped = tree_map(lambda own: self._wrapped(own) if isinstance(own, Tensor) else own, out)
        return return_and_correct_aliasing(func, args, kwargs, wrapped) if here else wrapped

    def _copied(self, func: Any, args: Any, here: list[ForeignTensor], to_device: bool, asked: Any) -> bool:
        """Counts a copy from or to the CPU, which waits for it; returns whether the copy is on the device."""
        source = args[0]
        if func is aten.copy_.default:
            target, source = args[:2]
            to_device = isinstance(target, ForeignTensor)
        from_device = isinstance(source, ForeignTensor)
        self.waits += from_device and not to_device
        self.sent += to_device and not from_device
        return to_device

    def _wrapped(self, inner: Tensor) -> Tensor:
        if inner.dtype == torch.float64 and not self.float64:
            raise TypeError(f"float64 {list(inner.shape)} on {self.device}, which has none")
        return ForeignTensor(inner, self)
