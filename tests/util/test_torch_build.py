"""Which build of torch is suggested for which machine, and what the driver's own tool says of it."""

import sys

from modules.util import torch_build
from modules.util.torch_build import (
    BUILDS,
    CPU,
    CUDA,
    CUDA_OLD,
    LINUX,
    MACOS,
    ROCM,
    USUAL,
    WINDOWS,
    Gpu,
    Machine,
    nvidia_gpus,
    offered,
    suggested,
)

import pytest

PASCAL, AMPERE, BLACKWELL = ("GeForce GTX 1080", 6.1), ("GeForce RTX 3060", 8.6), ("GeForce RTX 5090", 12.0)


def gpu(kind, driver):
    name, capability = kind
    return Gpu(name, driver, capability)


@pytest.mark.parametrize("system, gpus, build, word", [
    (WINDOWS, [gpu(AMPERE, "581.29")], CUDA, "RTX 3060"),
    (LINUX, [gpu(AMPERE, "581.29")], USUAL, "RTX 3060"),
    (WINDOWS, [gpu(BLACKWELL, "590.1")], CUDA, "RTX 5090"),
    (WINDOWS, [gpu(PASCAL, "581.29")], CUDA_OLD, "no code for"),
    (LINUX, [gpu(AMPERE, "550.54")], CUDA_OLD, "580 or newer"),
    (LINUX, [gpu(BLACKWELL, "570.1")], CUDA, "update it"),
    (WINDOWS, [gpu(AMPERE, "472.12")], CUDA_OLD, "update it"),
    (WINDOWS, [Gpu("Quadro", "391.35", 0.0)], CUDA_OLD, "update it"),
    (WINDOWS, [gpu(PASCAL, "581.29"), gpu(AMPERE, "581.29")], CUDA, "RTX 3060"),
    (WINDOWS, [], USUAL, "No GPU of NVIDIA"),
    (LINUX, [], USUAL, "No GPU of NVIDIA"),
    (MACOS, [], USUAL, "No other build"),
])  # fmt: skip
def test_the_build_that_fits(system, gpus, build, word):
    choice = suggested(Machine(system, tuple(gpus)))
    assert choice.build == build and word in choice.why
    assert choice.build in offered(Machine(system))


def test_rocm_is_told_of_and_never_taken_unasked():
    machine = Machine(LINUX, amd=True)
    choice = suggested(machine)
    assert choice.build == USUAL and "rocm" in choice.why and ROCM in offered(machine)
    assert ROCM not in offered(Machine(WINDOWS)) and offered(Machine(MACOS)) == [USUAL]


def test_what_pip_is_asked_for():
    assert USUAL.requirement("2.13.0") == ["torch==2.13.0"]
    assert CPU.requirement("2.13.0")[0] == "torch==2.13.0+cpu"
    assert all(build.requirement("1")[-1].endswith(f"/{build.tag}") for build in BUILDS.values() if build.tag)


@pytest.fixture(autouse=True)
def asked_anew():
    nvidia_gpus.cache_clear()
    yield
    nvidia_gpus.cache_clear()


@pytest.fixture
def driver(tmp_path, monkeypatch):
    """Puts a program in the place of nvidia-smi that answers with the lines it is given for a number of columns."""

    def put(answers: dict[int, str]) -> None:
        program = tmp_path / "nvidia-smi"
        program.write_text(
            f"#!{sys.executable}\nimport sys\nanswers = {answers!r}\ncolumns = sys.argv[1].count(',') + 1\n"
            "sys.exit('unknown field') if columns not in answers else print(answers[columns])\n",
            encoding="utf-8",
        )
        program.chmod(0o755)
        monkeypatch.setattr(torch_build.shutil, "which", lambda name: str(program))

    return put


def test_what_the_driver_tells(driver):
    driver({3: "NVIDIA GeForce RTX 3060, 581.29, 8.6\nNVIDIA GeForce GTX 1080, 581.29, 6.1"})
    assert nvidia_gpus() == (
        Gpu("NVIDIA GeForce RTX 3060", "581.29", 8.6),
        Gpu("NVIDIA GeForce GTX 1080", "581.29", 6.1),
    )


def test_the_driver_is_asked_once(driver, monkeypatch):
    driver({3: "NVIDIA GeForce RTX 3060, 581.29, 8.6"})
    found = nvidia_gpus()
    monkeypatch.setattr(torch_build.shutil, "which", lambda name: None)
    assert nvidia_gpus() == found and len(found) == 1


def test_an_old_driver_tells_less(driver):
    driver({2: "Quadro P400, 391.35"})
    assert nvidia_gpus() == (Gpu("Quadro P400", "391.35", 0.0),)


@pytest.mark.parametrize("answers", [{}, {3: "No devices were found", 2: "No devices were found"}])
def test_a_driver_without_gpus_is_none(driver, answers):
    driver(answers)
    assert nvidia_gpus() == ()


def test_no_driver(monkeypatch):
    monkeypatch.setattr(torch_build.shutil, "which", lambda name: None)
    assert nvidia_gpus() == ()


@pytest.mark.parametrize("counts, found", [(["0"], False), (["0", "64"], True), ([], False)])
def test_amd_has_vector_units(tmp_path, monkeypatch, counts, found):
    for node, count in enumerate(counts):
        (tmp_path / str(node)).mkdir()
        (tmp_path / str(node) / "properties").write_text(f"cpu_cores_count 8\nsimd_count {count}\n", encoding="utf-8")
    monkeypatch.setattr(torch_build, "AMD_NODES", tmp_path)
    assert torch_build._has_amd() is found
