"""Which build of torch fits this machine, without torch: the standard library alone, as nothing is installed yet.

What PyTorch publishes for 2.13, by its release matrix: where pip looks first, Linux finds CUDA 13.0 and Windows none;
PyTorch's own index has the others. CUDA 13.0 serves GPUs from compute capability 7.5 on, CUDA 12.6 those from 5.0 to
9.0; ROCm is 7.2 and exists for Linux only.
"""

import csv
import platform
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

INDEX = "https://download.pytorch.org/whl/"
LINUX, WINDOWS, MACOS = SYSTEMS = ("Linux", "Windows", "Darwin")
# what AMD's driver tells of each processor that it can compute on
AMD_NODES = Path("/sys/class/kfd/kfd/topology/nodes")
SECONDS = 20


@dataclass(frozen=True)
class TorchBuild:
    """A build of torch.

    Attributes:
        name: by which it is asked for and remembered.
        about: for people.
        tag: what its versions end with, and the folder of PyTorch's index that has it; empty: the usual index.
        systems: where it exists.
    """

    name: str
    about: str
    tag: str
    systems: Sequence[str]

    def requirement(self, version: str) -> list[str]:
        """Arguments of pip for a version of torch."""
        if not self.tag:
            return [f"torch=={version}"]
        return [f"torch=={version}+{self.tag}", "--extra-index-url", f"{INDEX}{self.tag}"]


USUAL, CUDA, CUDA_OLD, ROCM, CPU = ALL = (
    TorchBuild("usual", "as pip finds it: CUDA 13.0 on Linux, Apple's GPU on macOS, the CPU elsewhere", "", SYSTEMS),
    TorchBuild("cuda", "CUDA 13.0, for NVIDIA's GPUs from Turing on (GTX 16, RTX 20)", "cu130", (LINUX, WINDOWS)),
    TorchBuild("cuda126", "CUDA 12.6, for NVIDIA's older GPUs and drivers", "cu126", (LINUX, WINDOWS)),
    TorchBuild("rocm", "ROCm 7.2, for AMD's GPUs", "rocm7.2", (LINUX,)),
    TorchBuild("cpu", "no GPU", "cpu", (LINUX, WINDOWS)),
)
BUILDS = {build.name: build for build in ALL}
# of NVIDIA: the first compute capability of CUDA 13, the last of 12.6, and the first drivers that run each
TURING, HOPPER = 7.5, 9.0
DRIVER_13, DRIVER_12 = 580, 525


@dataclass(frozen=True)
class Gpu:
    """A GPU of NVIDIA, as its driver tells.

    Attributes:
        name: as "NVIDIA GeForce RTX 3060".
        driver: its version, such as 581.29.
        capability: compute capability, such as 8.6; 0 if the driver is too old to tell.
    """

    name: str
    driver: str
    capability: float

    @property
    def driver_number(self) -> int:
        first = self.driver.partition(".")[0]
        return int(first) if first.isdecimal() else 0


@dataclass(frozen=True)
class Machine:
    """What matters of a computer: its system, NVIDIA's GPUs, and whether AMD's driver has one."""

    system: str
    gpus: tuple[Gpu, ...] = ()
    amd: bool = False


@dataclass(frozen=True)
class Choice:
    """A build, and a sentence that says why."""

    build: TorchBuild
    why: str


def this_machine() -> Machine:
    """What is found here. No GPU where the driver's own tool is missing or fails."""
    return Machine(platform.system(), nvidia_gpus(), _has_amd())


@cache
def nvidia_gpus() -> tuple[Gpu, ...]:
    """NVIDIA's GPUs, by their driver's own tool; asked once, as the window checks a config at each change."""
    for columns in ("name,driver_version,compute_cap", "name,driver_version"):
        rows = _told_by_nvidia(columns)
        if rows:
            return tuple(Gpu(row[0], row[1], _number(row[2]) if len(row) > 2 else 0.0) for row in rows)
    return ()


def _told_by_nvidia(columns: str) -> list[list[str]]:
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return []
    command = [tool, f"--query-gpu={columns}", "--format=csv,noheader"]
    try:
        told = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return []
    rows = [[cell.strip() for cell in row] for row in csv.reader(told.splitlines())]
    return [row for row in rows if len(row) == columns.count(",") + 1]


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return 0.0


def _has_amd() -> bool:
    """Whether AMD's driver lists a processor with vector units."""
    for node in AMD_NODES.glob("*/properties"):
        try:
            words = node.read_text().split()
        except OSError:
            continue
        facts = dict(zip(words[::2], words[1::2], strict=False))
        if facts.get("simd_count", "0") != "0":
            return True
    return False


def suggested(machine: Machine) -> Choice:
    """The build for a machine; ROCm is never chosen unasked."""
    if machine.system not in (LINUX, WINDOWS):
        return Choice(USUAL, "No other build exists for this system.")
    if not machine.gpus:
        if machine.amd:
            return Choice(USUAL, "AMD's GPU is used only by the build rocm, which has to be asked for.")
        return Choice(USUAL, "No GPU of NVIDIA was found: nvidia-smi, which its driver brings, is missing or fails.")
    gpu = max(machine.gpus, key=lambda own: own.capability)
    told = f"{gpu.name} (driver {gpu.driver}) was found"
    if gpu.driver_number < DRIVER_12:
        return Choice(CUDA_OLD, f"{told}. CUDA needs a driver of {DRIVER_12} or newer: update it, or the CPU is used.")
    if gpu.capability < TURING:
        return Choice(CUDA_OLD, f"{told}, which CUDA 13 has no code for.")
    if gpu.driver_number < DRIVER_13:
        if gpu.capability > HOPPER:
            return Choice(CUDA, f"{told}. It needs a driver of {DRIVER_13} or newer: update it, or the CPU is used.")
        return Choice(CUDA_OLD, f"{told}. A driver of {DRIVER_13} or newer could run CUDA 13.")
    return Choice(CUDA if machine.system == WINDOWS else USUAL, f"{told}.")


def offered(machine: Machine) -> list[TorchBuild]:
    """The builds that exist for a machine's system."""
    return [build for build in ALL if machine.system in build.systems]
