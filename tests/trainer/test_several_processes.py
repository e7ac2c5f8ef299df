"""One run in 1, 2 and 4 real processes, which have the weights whole or in parts: the same losses, the same output."""

import json
import time
from pathlib import Path
from typing import Any

from modules.run.RunProcess import RunProcess
from modules.util.World import ALONE
from tests.conftest import NO_CHECKPOINTING, MiniRun
from tests.forked_scripts import ScriptServer
from tests.trainer.several_runs import run_job, run_jobs

import torch
from torch import Tensor

import psutil
import pytest
import safetensors.torch

FULL = {"training_method": "FINE_TUNE", "output_model_format": "SAFETENSORS"}
SCALED = {"optimizer": {"optimizer": "ADAMW_ADV", "scaled_optm": True}}
IN_PARTS, IN_PARTS_SUFFIX = {"shard_weights": True}, ", in parts"
MUON = {"optimizer": {"optimizer": "MUON_ADV"}}
KINDS: dict[str, dict[str, Any]] = {
    "LoRA": {},
    "OFT": {"peft_type": "OFT_2", "oft_block_size": 4, **SCALED},
    "DoRA": {"lora_decompose": True, **SCALED},
    "Stiefel": {"optimizer": {"optimizer": "STIEFEL_LORA"}, "lora_init": "ORTHONORMAL"},
    "RITE": {"optimizer": {"optimizer": "LORA_RITE"}},
    "Muon": MUON,
    "full": {**FULL, **SCALED, "ema": "GPU", "clip_grad_norm": 0.01},
    "full, Muon": {**FULL, **MUON},
    # with 3 + 4 images a step, of which the processes' parts cross from one batch to the next
    "accumulated": {
        "gradient_accumulation_steps": 2, "batch_size": 3, "unet": {"gradient_checkpointing": True},
    },
    # captions of different lengths in one batch, and a text encoder that is frozen after the first epoch
    "texts": {
        "text_encoder": {
            "train": True, "stop_training_after": 1, "stop_training_after_unit": "EPOCH", **NO_CHECKPOINTING
        },
        "prompt_chunks": 2, "epochs": 2,
    },
    "cached, dropped": {"prompt_chunks": 2, "text_encoder": {"train": False, "dropout_probability": 0.5}},
}  # fmt: skip
# all of this at once; weights are stepped as rows
KINDS["full, accumulated texts"] = {
    **FULL, **KINDS["accumulated"], **KINDS["texts"], "epochs": 2,
    # where a gradient is zero but for rounding, as that of the biases of keys, a step is none either
    "optimizer": {"optimizer": "ADAMW_ADV", "eps": 1e-5},
}  # fmt: skip
# some images are trained toward what the model predicts, so that not every batch asks it twice
KINDS["validated"] = {
    "concepts": [{"path": "C"}, {"path": "C", "type": "PRIOR_PREDICTION"}, {"path": "C", "type": "VALIDATION"}],
    "validation": True, "validate_after": 2, "validate_after_unit": "STEP",
    "samples": [{"prompt": prompt, "height": 32, "width": 32, "diffusion_steps": 2} for prompt in ("a", "b", "c")],
    "sample_after": 3, "sample_after_unit": "STEP",
}  # fmt: skip
KINDS["quantized"] = {"unet": {"weight_dtype": "INT_8"}}
# what is the same in parts and whole, or differs little, is run once
PARTED = ("LoRA", "DoRA", "full", "full, Muon", "validated", "quantized")
ONCE = ("full, Muon", "full, accumulated texts", "quantized")
OF_TWO = [*(kind for kind in KINDS if kind not in ONCE), *(f"{kind}, in parts" for kind in PARTED)]
OF_FOUR = ("full, accumulated texts, in parts",)

# it divides by roots of eigenvalues that are nearly zero, where a sum in another order counts
TOLERANCES = {"RITE": 3e-6}
EVERY = {"epochs": 1, "batch_size": 4, "learning_rate": 1e-4}
# a backup after each step, so that one that is killed goes on
BACKED_UP = {"epochs": 5, "backup_after": 1, "backup_after_unit": "STEP", "continue_last_backup": True}
RESUMED = {**BACKED_UP, "epochs": 3}
SHARED = {"optimizer": {"optimizer": "ADAMW_ADV", "shared": True}}
TUNED = {**FULL, **SCALED, **IN_PARTS, "ema": "GPU"}
PATIENCE = 400.0


class Runs:
    """Runs of one number of processes.

    Attributes:
        told: what each process says, by its rank.
    """

    def __init__(self, root: Path, base: Path, concept: Path, processes: int, server: ScriptServer) -> None:
        self.root, self.base, self.concept, self.processes = root, base, concept, processes
        self.server = server
        self.jobs: dict[str, dict[str, Any]] = {}
        self.told: list[dict[str, Any]] = []

    def run(self, name: str) -> MiniRun:
        root = self.root / name
        root.mkdir(exist_ok=True)
        return MiniRun(root, self.base, self.concept, self.root / f"cache of {self.processes}")

    def add(self, name: str, folder: str = "", stop_after: int | None = None, **changes: Any) -> None:
        options = self.run(folder or f"{name}, {self.processes}").options(**{**EVERY, **changes})
        self.jobs[name] = {"config": options, "stop_after": stop_after}

    def add_kind(self, name: str, wide_base: Path) -> None:
        """A kind of `KINDS`, whole or in parts."""
        kind, parted = name.removesuffix(IN_PARTS_SUFFIX), name.endswith(IN_PARTS_SUFFIX)
        changes = {**KINDS[kind], **(IN_PARTS if parted else {})}
        concepts = [{**own, "path": str(self.concept)} for own in changes.get("concepts", [{}])]
        base = {"base_model_name": str(wide_base)} if kind == "quantized" else {}
        self.add(name, **{**changes, **base, "concepts": concepts})

    def start(self) -> None:
        if self.processes > 1:
            self.told = run_jobs(self.root / f"jobs of {self.processes}", self.jobs, self.processes, self.server)
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
def runs(tmp_path_factory, mini_base, wide_base, mini_concept, script_server):
    """Number of processes -> its runs, all done; 0: those that one process begins for others to go on."""
    root = tmp_path_factory.mktemp("several")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    made = {count: Runs(root, mini_base, mini_concept, count, script_server) for count in (2, 4, 1)}
    begun = Runs(root, mini_base, mini_concept, 1, script_server)
    for count, own in made.items():
        for name in {1: list(KINDS), 2: OF_TWO, 4: OF_FOUR}[count]:
            own.add_kind(name, wide_base)
        # one run that goes on with another number of processes
        own.add("resumed", "resumed", stop_after={2: 3, 4: 6}.get(count), **RESUMED, **SHARED)
    for name, first, second in (("to one", made[2], made[1]), ("from one", begun, made[2])):
        first.add(name, name, stop_after=3, **RESUMED, **TUNED)
        second.add(name, name, **RESUMED, **TUNED)
    made[2].add("unkilled", **BACKED_UP)
    made[2].add("killed", "killed", **BACKED_UP)
    made[1].add("whole", **RESUMED, **SHARED)
    made[1].add("whole, in parts", **RESUMED, **TUNED)
    begun.start()
    with script_server.used():
        made[2].how_it_was_killed = kill_one(made[2].run("killed"), BACKED_UP)
    for own in made.values():
        own.start()
    yield made | {0: begun}
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


@pytest.mark.parametrize(("processes", "kind"), [*((2, kind) for kind in OF_TWO), *((4, kind) for kind in OF_FOUR)])
def test_losses_and_what_was_trained_are_those_of_one_process(runs, kind, processes):
    one, several, alone = runs[1], runs[processes], kind.removesuffix(IN_PARTS_SUFFIX)
    # the loss of images that the model is held by begins at zero
    smallest = 1e-6 if alone == "validated" else 0.0
    assert several.losses(kind) == pytest.approx(one.losses(alone), rel=1e-6, abs=smallest)
    expected, found = one.changes(alone), several.changes(kind)
    assert expected.keys() == found.keys()
    for key, value in expected.items():
        torch.testing.assert_close(
            found[key], value, rtol=0, atol=TOLERANCES.get(alone, 1e-6), msg=lambda text, key=key: f"{key}: {text}"
        )
    # every process has the same to the bit, and has heard the same
    assert all(own[kind]["parameters"] == several.told[0][kind]["parameters"] for own in several.told)
    assert all(own[kind]["losses"] == several.told[0][kind]["losses"] for own in several.told)


@pytest.mark.parametrize("kind", ["validated", "validated, in parts"])
def test_validation_and_samples_are_those_of_one_process(runs, kind):
    expected = runs[1].told[0]["validated"]["validation"]
    assert len(expected) == 3
    assert runs[2].told[-1][kind]["validation"] == pytest.approx(expected, rel=1e-6)

    def drawn(own: Runs, name: str) -> dict[str, bytes]:
        folder = Path(own.jobs[name]["config"]["workspace_dir"]) / "samples"
        return {str(path.relative_to(folder)): path.read_bytes() for path in folder.glob("*/*")}

    alone, several = drawn(runs[1], "validated"), drawn(runs[2], kind)
    # three prompts and their grid, before the first step, after the third and at the end
    assert len(alone) == 4 * 3 and alone.keys() == several.keys()
    assert all(several[name] == picture for name, picture in alone.items() if "step-000000" in name)


@pytest.mark.parametrize("kind", ["full", "full, Muon"])
def test_each_process_holds_its_part_of_weights_and_state(runs, kind):
    alone = runs[1].told[0][kind]
    for what in ("weights", "state"):
        held = [own[f"{kind}, in parts"][what] for own in runs[2].told]
        assert alone[what] <= sum(held) < 1.01 * alone[what], what
        assert max(held) < 0.52 * alone[what], what
    frozen = [own["LoRA, in parts"]["weights"] for own in runs[2].told]
    assert max(frozen) < 0.52 * runs[1].told[0]["LoRA"]["weights"]
    quantized = [own["quantized, in parts"]["weights"] for own in runs[2].told]
    assert max(quantized) < 0.52 * runs[1].told[0]["quantized"]["weights"]


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

    expected, found = entries(1), entries(processes)
    assert len(found) > processes
    # four processes run fewer kinds
    assert found.keys() == expected.keys() if processes == 2 else found.keys() < expected.keys()
    torch.testing.assert_close(found, {name: expected[name] for name in found}, rtol=0, atol=0)


def test_the_process_that_leads_alone_writes_the_record(runs):
    for own, name in ((runs[1], "whole"), (runs[2], "whole")):
        (folder,) = (Path(own.jobs[name]["config"]["workspace_dir"]) / "record").iterdir()
        lines = [json.loads(line) for line in (folder / "events.jsonl").read_text("utf-8").splitlines()]
        steps = [line["step"] for line in lines if line["kind"] == "scalars" and "loss/train" in line["values"]]
        assert steps == sorted(set(steps)) and len(steps) == len(own.losses(name))
        assert [line["kind"] for line in lines if line["kind"] in ("begin", "end")] == ["begin", "end"]


def test_a_run_goes_on_with_another_number_of_processes(runs):
    steps = [list(runs[count].told[0]["resumed"]["losses"]) for count in (2, 4, 1)]
    assert steps == [["1", "2", "3"], ["4", "5", "6"], list(range(7, 10))]
    found = [loss for count in (2, 4, 1) for loss in runs[count].losses("resumed")]
    assert found == pytest.approx(runs[1].losses("whole"), rel=1e-6)


def test_a_run_in_parts_goes_on_in_one_process_and_the_other_way_round(runs):
    expected = runs[1].losses("whole, in parts")
    for name, first, second in (("to one", runs[2], runs[1]), ("from one", runs[0], runs[2])):
        assert list(map(int, first.told[0][name]["losses"])) == [1, 2, 3]
        found = [*first.losses(name), *second.losses(name)]
        assert found == pytest.approx(expected, rel=1e-6), name


def test_when_one_is_killed_all_end_and_the_run_goes_on_to_the_same_bytes(runs):
    seconds, (status, error), log = runs[2].how_it_was_killed
    assert seconds < 30 and status == "failed"
    assert "One of the 2 processes of the run has ended without a word" in error and "backup" in error
    assert error in log and "Traceback" not in log
    assert runs[2].told[0]["killed"]["parameters"] == runs[2].told[0]["unkilled"]["parameters"]
    assert min(map(int, runs[2].told[0]["killed"]["losses"])) > 3
