"""Compiles the engine's kernels for a GPU that is not there, and reads how many registers each of them takes."""

import os
import re
import subprocess
import tempfile
from collections.abc import Hashable, Iterable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from scaled_optim.batched_optimizer import BatchedOptimizer
from scaled_optim.kernels.Runner import Runner

import torch
from torch import Tensor, nn

# compute capability 9.0 of Hopper; threads that run in step
ARCHITECTURE, WARP = 90, 32
TYPES = {torch.float32: "*fp32", torch.bfloat16: "*bf16", torch.int32: "*i32", torch.int64: "*i64",
         torch.float64: "*fp64", torch.int8: "*i8", torch.uint8: "*u8"}  # fmt: skip
SIZES = (("LORA_DOWN", (16, 1280)), ("LORA_UP", (1280, 16)))


class Recorder(Runner):
    """Keeps what kernels would have been launched with; nothing is stepped."""

    def __init__(self) -> None:
        super().__init__(("cpu",))
        self.launches: list[tuple[str, dict[str, Any]]] = []

    def trusted(self, kind: Hashable, check: Any) -> bool:
        return True

    def launch(
        self, name: str, grid: tuple[int, ...], arguments: dict[str, Any], reads: Iterable[Tensor],
        writes: Iterable[Tensor], more: int = 0,
    ) -> None:  # fmt: skip
        self.launches.append((name, arguments))


def compiled(rule: str, options: Mapping[str, Any], dtype: torch.dtype = torch.float32) -> list[dict[str, Any]]:
    """Every kernel of a step of LoRA factors of rank 16: name, registers of a thread, bytes spilled, and warps.

    Raises:
        subprocess.CalledProcessError: the assembler refused it.
    """
    recorder, parameters = Recorder(), []
    for index in range(2):
        for role, shape in SIZES:
            pair = {"LORA_DOWN": "LORA_UP", "LORA_UP": "LORA_DOWN"}[role]
            parameters.append(nn.Parameter(torch.zeros(shape, dtype=dtype)))
            parameters[-1].parameter_info = SimpleNamespace(role=role, name=f"{role}{index}", pair=f"{pair}{index}")
            parameters[-1].grad = torch.zeros(shape, dtype=dtype)
    optimizer = BatchedOptimizer(parameters, rule, kernels=recorder, **options)
    # the first step of ADOPT is none
    for _ in range(2):
        recorder.launches.clear()
        optimizer.step()
    return [{"kernel": name, **_assembled(name, arguments)} for name, arguments in recorder.launches]


def _assembled(name: str, arguments: Mapping[str, Any]) -> dict[str, int]:
    from scaled_optim.kernels import triton_kernels

    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    kernel = getattr(triton_kernels, name)
    given = {key: triton_kernels.FORMATS[value] if key in ("P", "G") else value for key, value in arguments.items()}
    types, constants, facts = {}, {}, {}
    for place, parameter in enumerate(kernel.params):
        value = given[parameter.name]
        whole = isinstance(value, int) and not value % 16 and not parameter.do_not_specialize
        if parameter.is_constexpr or value is None:
            types[parameter.name], constants[parameter.name] = "constexpr", value
        elif isinstance(value, Tensor):
            types[parameter.name] = TYPES[value.dtype]
        else:
            types[parameter.name] = "i32" if isinstance(value, int) else "fp32"
        if types[parameter.name] != "constexpr" and (isinstance(value, Tensor) or whole):
            facts[place,] = [["tt.divisibility", 16]]
    made = triton.compile(
        ASTSource(kernel, types, constants, facts), GPUTarget("cuda", ARCHITECTURE, WARP),
        {"num_warps": arguments["num_warps"]},
    )  # fmt: skip
    assembler = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "ptxas"
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "kernel.ptx"
        source.write_text(made.asm["ptx"], encoding="utf-8")
        target = re.search(r"\.target (\w+)", made.asm["ptx"]).group(1)
        said = subprocess.run(
            [assembler, "-v", "--gpu-name", target, source, "-o", os.devnull],
            capture_output=True,
            text=True,
            check=True,
        ).stderr
    spilled = re.search(r"(\d+) bytes spill stores, (\d+) bytes spill loads", said)
    return {
        "registers": int(re.search(r"Used (\d+) registers", said).group(1)),
        "spilled": sum(map(int, spilled.groups())),
        "warps": arguments["num_warps"],
    }
