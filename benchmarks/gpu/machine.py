"""What the machine is: its memory, arithmetic and link, without which no other figure means anything."""

import importlib.util
import platform
from collections.abc import Callable, Iterator
from functools import partial

from benchmarks.gpu.Bench import Bench, Found, rows_of
from benchmarks.gpu.Row import NotMeasured, Row, State

import torch
from torch import Tensor

LIBRARIES = ("triton", "bitsandbytes", "torchao", "flash_attn", "xformers")


def measure(bench: Bench) -> Iterator[Row]:
    """Rows of this check."""
    side = 256 if bench.small else 8192
    size = (1 << 20) if bench.small else (1 << 30)
    cases: dict[str, Callable[[], Found]] = {"device": partial(_device, bench), "libraries": _libraries}
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        cases[f"matrix product, {str(dtype)[6:]}"] = partial(_product, bench, side, dtype, False)
    cases["matrix product, TF32"] = partial(_product, bench, side, torch.float32, True)
    for pinned in (True, False):
        kind = "pinned" if pinned else "pageable"
        cases[f"copy from {kind} memory"] = partial(_copy, bench, size, pinned, True)
        cases[f"copy to {kind} memory"] = partial(_copy, bench, size, pinned, False)
    return rows_of("machine", bench, cases)


def _device(bench: Bench) -> Found:
    facts = [f"torch {torch.__version__}", f"Python {platform.python_version()}", platform.system()]
    figures = {}
    if bench.is_cuda:
        properties = torch.cuda.get_device_properties(bench.device)
        facts = [
            properties.name, f"{properties.total_memory / 2**30:.1f} GiB",
            f"compute capability {properties.major}.{properties.minor}", f"CUDA {torch.version.cuda}", *facts,
        ]  # fmt: skip
        figures = {"memory_bytes": properties.total_memory}
    return State.REPORTED, ", ".join(facts), figures


def _libraries() -> Found:
    there = {name: importlib.util.find_spec(name) is not None for name in LIBRARIES}
    missing = [name for name, found in there.items() if not found]
    text = f"there: {', '.join(name for name, found in there.items() if found) or 'none'}"
    return State.REPORTED, text + (f"; not there: {', '.join(missing)}" if missing else ""), {}


def _product(bench: Bench, side: int, dtype: torch.dtype, tf32: bool) -> Found:
    if tf32 and not bench.is_cuda:
        raise NotMeasured("TF32 is arithmetic of NVIDIA's GPUs")
    a = torch.randn(side, side, device=bench.device, dtype=dtype)
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = tf32
    try:
        seconds = bench.seconds(lambda: a @ a)
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before
    rate = 2 * side**3 / seconds / 1e12
    return State.REPORTED, f"{rate:.3g} TFLOP/s at {side}×{side}", {"tflops": rate}


def _copy(bench: Bench, size: int, pinned: bool, up: bool) -> Found:
    if bench.device.type == "cpu":
        raise NotMeasured("there is no link to a CPU")
    if pinned and not bench.is_cuda:
        raise NotMeasured(f"pinned memory is not used with {bench.device.type}")
    host: Tensor = torch.empty(size, dtype=torch.uint8, pin_memory=pinned)
    there = torch.empty(size, dtype=torch.uint8, device=bench.device)
    seconds = bench.seconds(lambda: there.copy_(host, non_blocking=True) if up else host.copy_(there))
    rate = size / seconds / 1e9
    return State.REPORTED, f"{rate:.3g} GB/s", {"gb_per_s": rate}
