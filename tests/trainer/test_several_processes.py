"""One run in 1, 2 and 4 real processes: the same losses, the same adapters, and an end that all of them come to."""

import time
from pathlib import Path
from typing import Any

from modules.run.RunProcess import RunProcess
from modules.util.World import ALONE
from tests.conftest import NO_CHECKPOINTING, MiniRun
from tests.trainer.several_runs import run_job, run_jobs

import torch
from torch import Tensor

import psutil
import pytest
import safetensors.torch

FULL = {"training_method": "FINE_TUNE", "output_model_format": "SAFETENSORS"}
SCALED = {"optimizer": {"optimizer": "ADAMW_ADV", "scaled_optm": True}}
KINDS: dict[str, dict[str, Any]] = {
    "LoRA": {},
    "OFT": {"peft_type": "OFT_2", "oft_block_size": 4, **SCALED},
    "DoRA": {"lora_decompose": True, **SCALED},
    "Stiefel": {"optimizer": {"optimizer": "STIEFEL_LORA"}, "lora_init": "ORTHONORMAL"},
    "RITE": {"optimizer": {"optimizer": "LORA_RITE"}},
    "Muon": {"optimizer": {"optimizer": "MUON_ADV"}},
    "full": {**FULL, **SCALED},
    # with 3 + 4 images a step, of which the processes' parts cross from one batch to the next
    "accumulated": {
        "gradient_accumulation_steps": 2, "batch_size": 3, "unet": {"gradient_checkpointing": True},
    },
    # captions of different lengths in one batch, and a text encoder that is frozen after the first epoch
    "texts": {
        "text_encoder": {
            "train": True, "stop_training_after": 1, "stop_training_after_unit": "EPOCH", **NO_CHECKPOINTING
        },
        "prompt_chunks": 2,
    },
    "cached, dropped": {"prompt_chunks": 2, "text_encoder": {"train": False, "dropout_probability": 0.5}},
}  # fmt: skip

# it divides by roots of eigenvalues that are nearly zero, where a sum in another order counts
TOLERANCES = {"RITE": 3e-6}
EVERY = {"epochs": 2, "batch_size": 4, "learning_rate": 1e-4}
# a backup after each step, so that one that is killed goes on
BACKED_UP = {"epochs": 5, "backup_after": 1, "backup_after_unit": "STEP", "continue_last_backup": True}
PATIENCE = 400.0


class Runs:
    """Runs of one number of processes.

    Attributes:
        told: what each process says, by its rank.
    """

    def __init__(self, root: Path, base: Path, concept: Path, processes: int) -> None:
        self.root, self.base, self.concept, self.processes = root, base, concept, processes
        self.jobs: dict[str, dict[str, Any]] = {}
        self.told: list[dict[str, Any]] = []

    def run(self, name: str) -> MiniRun:
        root = self.root / name
        root.mkdir(exist_ok=True)
        return MiniRun(root, self.base, self.concept, self.root / f"cache of {self.processes}")

    def add(self, name: str, folder: str = "", stop_after: int | None = None, **changes: Any) -> None:
        options = self.run(folder or f"{name}, {self.processes}").options(**{**EVERY, **changes})
        self.jobs[name] = {"config": options, "stop_after": stop_after}

    def start(self) -> None:
        if self.processes > 1:
            self.told = run_jobs(self.root / f"jobs of {self.processes}", self.jobs, self.processes)
        else:
            self.told = [{name: run_job(job, ALONE) for name, job in self.jobs.items()}]

    def losses(self, name: str) -> list[float]:
        return list(self.told[0][name]["losses"].values())

    def changes(self, name: str) -> dict[str, Tensor]:
        """What was trained; of a LoRA's factors their product, which is all that counts."""
        saved = safetensors.torch.load_file(self.jobs[name]["config"]["output_model_destination"])
        products = {}
        for key, up in saved.items():
            if key.endswith("lora_up.weight"):
                down = saved[key.replace("lora_up", "lora_down")]
                products[key] = up.double().flatten(1) @ down.double().flatten(1)
        return products | {key: value.double() for key, value in saved.items() if ".lora_" not in key}


@pytest.fixture(scope="module")
def runs(tmp_path_factory, mini_base, mini_concept):
    """Number of processes -> its runs, all done."""
    root = tmp_path_factory.mktemp("several")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    made = {count: Runs(root, mini_base, mini_concept, count) for count in (2, 4, 1)}
    for count, own in made.items():
        for name, changes in KINDS.items():
            own.add(name, **changes)
        own.add("validated", concepts=[
            {"path": str(mini_concept)}, {"path": str(mini_concept), "type": "VALIDATION"},
        ], validation=True, validate_after=2, validate_after_unit="STEP")  # fmt: skip
        # one run that goes on with another number of processes
        shared = {"optimizer": {"optimizer": "ADAMW_ADV", "shared": True}}
        own.add("resumed", "resumed", stop_after={2: 3, 4: 6}.get(count), **BACKED_UP, **shared)
    made[2].add("unkilled", **BACKED_UP)
    made[2].add("killed", "killed", **BACKED_UP)
    made[1].add("whole", **BACKED_UP, **shared)
    made[2].how_it_was_killed = kill_one(made[2].run("killed"), BACKED_UP)
    for own in made.values():
        own.start()
    yield made
    torch.set_num_threads(threads)


def kill_one(run: MiniRun, changes: dict[str, Any]) -> tuple[float, tuple[str, str], str]:
    """Starts a run on two devices as a user does, and kills one of its processes in the midst.

    Returns:
        seconds until all had ended, outcome, what was printed.
    """
    config = run.write(**{**EVERY, **changes, "epochs": 500}, multi_gpu=True, device_indexes="0, 1")
    started, steps, end = RunProcess.start(config, run.root / "control"), 0, time.monotonic() + PATIENCE
    try:
        while steps < 4:
            assert started.running and time.monotonic() < end, "\n".join(started.log())
            steps += sum(kind == "step" for kind, _ in started.events())
            time.sleep(0.05)
        children = psutil.Process(started._process.pid).children()
        trainers = [child for child in children if "spawn_main" in " ".join(child.cmdline())]
        assert len(trainers) == 2
        killed = time.monotonic()
        trainers[1].kill()
        while started.running or any(child.is_running() for child in trainers):
            assert time.monotonic() < end, "\n".join(started.log())
            time.sleep(0.05)
        started.events()
        return time.monotonic() - killed, started.outcome(), "\n".join(started.log())
    finally:
        started.kill()


@pytest.mark.parametrize("kind", [*KINDS, "validated"])
@pytest.mark.parametrize("processes", [2, 4])
def test_losses_and_adapters_are_those_of_one_process(runs, kind, processes):
    one, several = runs[1], runs[processes]
    assert several.losses(kind) == pytest.approx(one.losses(kind), rel=1e-6)
    expected, found = one.changes(kind), several.changes(kind)
    assert expected.keys() == found.keys()
    for key, value in expected.items():
        torch.testing.assert_close(
            found[key], value, rtol=0, atol=TOLERANCES.get(kind, 1e-6), msg=lambda text, key=key: f"{key}: {text}"
        )
    # every process has the same to the bit, and has heard the same
    assert all(own[kind]["parameters"] == several.told[0][kind]["parameters"] for own in several.told)
    assert all(own[kind]["losses"] == several.told[0][kind]["losses"] for own in several.told)


@pytest.mark.parametrize("processes", [2, 4])
def test_the_validation_loss_is_that_of_all_images(runs, processes):
    expected = runs[1].told[0]["validated"]["validation"]
    assert len(expected) == 4
    assert runs[processes].told[-1]["validated"]["validation"] == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("processes", [2, 4])
def test_a_parameter_that_one_process_alone_uses_has_the_same_gradient_in_all(runs, processes):
    # all use the first twice, the leader the second twice, nobody the third
    factors = sum(1.0 + rank for rank in range(processes))
    expected = [[2 * factors] * 2, [10.0] * 2, None]
    assert [own["unused gradients"] for own in runs[processes].told] == [expected] * processes


@pytest.mark.parametrize("processes", [2, 4])
def test_the_cache_is_shared_out_and_whole(runs, processes):
    def entries(count: int) -> dict[str, dict[str, Tensor]]:
        folder = runs[count].root / f"cache of {count}"
        files = [*folder.glob("latents/*/*.safetensors"), *folder.glob("captions/*/*.safetensors")]
        return {path.name: safetensors.torch.load_file(path) for path in files}

    expected = entries(1)
    assert len(expected) > processes
    torch.testing.assert_close(entries(processes), expected, rtol=0, atol=0)


def test_a_run_goes_on_with_another_number_of_processes(runs):
    steps = [list(runs[count].told[0]["resumed"]["losses"]) for count in (2, 4, 1)]
    assert steps == [["1", "2", "3"], ["4", "5", "6"], list(range(7, 16))]
    found = [loss for count in (2, 4, 1) for loss in runs[count].losses("resumed")]
    assert found == pytest.approx(runs[1].losses("whole"), rel=1e-6)


def test_when_one_is_killed_all_end_and_the_run_goes_on_to_the_same_bytes(runs):
    seconds, (status, error), log = runs[2].how_it_was_killed
    assert seconds < 30 and status == "failed"
    assert "One of the 2 processes of the run has ended without a word" in error and "backup" in error
    assert error in log and "Traceback" not in log
    assert runs[2].told[0]["killed"]["parameters"] == runs[2].told[0]["unkilled"]["parameters"]
    assert min(map(int, runs[2].told[0]["killed"]["losses"])) > 3
