from collections.abc import Callable, Hashable, Iterable, Sequence
from functools import cache
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

AGAIN = "it steps by single operations instead"


@cache
def _has_triton() -> bool:
    return find_spec("triton") is not None


def runner_of(kernels: "str | Runner") -> "Runner | None":
    """What launches kernels, by the argument of the optimizer.

    Raises:
        ValueError: it is neither "auto" nor "never".
    """
    if isinstance(kernels, Runner):
        return kernels
    if kernels not in ("auto", "never"):
        raise ValueError(f'kernels: found {kernels!r}, expected "auto" or "never".')
    return Runner() if kernels == "auto" else None


class Runner:
    """Launches the engine's own kernels where Triton is installed, after each kind has shown that it is right.

    Args:
        devices: types of devices that it serves. A CPU needs Triton's interpreter.

    Attributes:
        notes: one line for each kind of kernel that is not used, and why.
    """

    def __init__(self, devices: Sequence[str] = ("cuda",)) -> None:
        self.devices = tuple(devices)
        self.notes: list[str] = []
        self._verdicts: dict[Hashable, bool] = {}
        self._tables: dict[Hashable, tuple[list[int], Tensor]] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {"devices": self.devices, "notes": [], "_verdicts": {}, "_tables": {}}

    def serves(self, device: torch.device) -> bool:
        """Whether there may be kernels for a device."""
        return device.type in self.devices and _has_triton()

    def trusted(self, kind: Hashable, check: Callable[[], str | None]) -> bool:
        """Whether a kind of kernel may be used, which is found out once.

        Args:
            check: runs it beside the single operations; returns what was wrong, or None.
        """
        if kind not in self._verdicts:
            try:
                wrong = check()
            except Exception as error:  # whatever a compiler or a driver fails with: there is another way
                wrong = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
            self._verdicts[kind] = wrong is None
            if wrong is not None:
                note = f"the fused kernel of {kind[0]} is not used, {AGAIN}: {wrong}"
                self.notes += [note] if note not in self.notes else []
        return self._verdicts[kind]

    def table(self, key: Hashable, tensors: Sequence[Tensor]) -> Tensor:
        """Where tensors begin, int64 on their device; copied only if it has changed since the last call with this key.

        Nothing waits for the device: the copy comes from pinned memory.
        """
        found = [tensor.data_ptr() for tensor in tensors]
        known = self._tables.get(key)
        if known is None or known[0] != found:
            device = tensors[0].device
            host = torch.tensor(found, dtype=torch.int64, pin_memory=device.type == "cuda")
            known = self._tables[key] = found, host.to(device, non_blocking=True)
        return known[1]

    def aligned(self, key: Hashable) -> bool:
        """Whether all tensors of the last table of this key begin at multiples of 16 bytes."""
        return not any(address % 16 for address in self._tables[key][0])

    def launch(
        self, name: str, grid: tuple[int, ...], arguments: dict[str, Any], reads: Iterable[Tensor],
        writes: Iterable[Tensor], more: int = 0,
    ) -> None:  # fmt: skip
        """Launches a kernel.

        Args:
            name: of the kernel in `kernels.triton_kernels`.
            grid: programs.
            arguments: of the kernel, by name.
            reads, writes: the tensors that it reads and writes all of, for those who count bytes.
            more: bytes that it reads and writes beside.
        """
        # Triton takes a second to load, and is needed only here
        from scaled_optim.kernels import triton_kernels

        kernel = getattr(triton_kernels, name)
        formats = {key: triton_kernels.FORMATS[arguments[key]] for key in ("P", "G") if key in arguments}
        arguments = {**arguments, **formats}
        device = arguments["table"].device
        if device.type != "cuda":
            kernel[grid](**arguments)
            return
        with torch.cuda.device(device):
            kernel[grid](**arguments)
