"""How tests share the cores; and what tests of whole runs share: a miniature pipeline, a concept, runs on them."""

import gc
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.torture.miniature import draw_images, save_pipeline
from modules.util.openmp import wait_asleep
from tests.forked_scripts import ScriptServer

import pytest

# tensors this small cost more to share among threads than to compute, and the other cores have workers of their own;
# counts only before torch loads, and in processes that tests start
os.environ.setdefault("OMP_NUM_THREADS", "1")
wait_asleep()
# windows follow the language of the system, and tests read what they show
os.environ["LANGUAGE"] = "en"
# no test's file has to outlive a loss of power, and a disk takes 13 ms for each of a run's fifteen; processes that
# tests start do it
os.fsync = os.fstat

ROOT = Path(__file__).resolve().parent.parent
NO_CHECKPOINTING = {"gradient_checkpointing": False}
# each worker loads torch, diffusers and transformers: about 1 GB
MOST_WORKERS = 8
# of which it is worth a search to leave the objects out of later ones
MANY_MODULES = 50
_frozen_modules = 0


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--long", action="store_true", help="whole proofs, where the suite runs a slice of them")
    parser.addoption("--shuffle", type=int, metavar="SEED", help="another order: finds tests that live on earlier ones")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if (seed := config.getoption("--shuffle")) is not None:
        random.Random(seed).shuffle(items)


@pytest.fixture
def long(request) -> bool:
    """Whether whole proofs were asked for."""
    return request.config.getoption("--long")


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """What `-n auto` means: a worker per core for the suite and for folders, none beside this process for files.

    A few files are done before workers have started, and a debugger or `-s` needs the tests in this process.
    """
    named = config.option.file_or_dir
    if named and all(Path(name.split("::")[0]).suffix == ".py" for name in named):
        return 0
    # a container may give fewer cores than the machine has
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(cores, MOST_WORKERS) if cores > 1 else 0


@pytest.hookimpl(trylast=True)
def pytest_collection_finish() -> None:
    """Each run frees memory by a search of all objects; the libraries' own and the tests are never among the freed."""
    _freeze()


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> None:
    """The same for libraries that tests have loaded since, when nothing of a file's tests is left."""
    if nextitem is not None and nextitem.path != item.path and len(sys.modules) > _frozen_modules + MANY_MODULES:
        _freeze()


def _freeze() -> None:
    global _frozen_modules
    gc.collect()
    gc.freeze()
    _frozen_modules = len(sys.modules)


class MiniRun:
    """A run of the miniature in folders of its own, in this process or in one of its own.

    Attributes:
        root: holds the run's workspace and output.
        output: the adapter file.
        events: (kind, values) of all runs in this process so far.
    """

    def __init__(self, root: Path, base: Path, concept: Path, cache: Path) -> None:
        self.root, self.base, self.concept, self.cache = root, base, concept, cache
        self.workspace, self.output = root / "work space", root / "out" / "lora.safetensors"
        self.events: list[tuple[str, dict[str, Any]]] = []

    def options(self, **changes: Any) -> dict[str, Any]:
        """The config as JSON. 7 images in 4 batches an epoch, 12 steps."""
        return {
            "training_method": "LORA", "base_model_name": str(self.base), "model_type": "STABLE_DIFFUSION_15",
            "workspace_dir": str(self.workspace), "cache_dir": str(self.cache),
            "output_model_destination": str(self.output), "output_model_format": "KOHYA_LORA",
            "concepts": [{"path": str(self.concept)}], "samples": [], "sample_after_unit": "NEVER",
            "lora_rank": 4, "lora_alpha": 4.0, "learning_rate": 0.01, "learning_rate_warmup_steps": 0,
            "resolution": "32", "batch_size": 2, "epochs": 3, "train_dtype": "FLOAT_32", "tensorboard": False,
            "train_device": "cpu", "clear_cache_before_training": False, "backup_after_unit": "NEVER",
            "unet": NO_CHECKPOINTING, "text_encoder": {"train": False, **NO_CHECKPOINTING},
            **changes,
        }  # fmt: skip

    def write(self, **changes: Any) -> Path:
        """The config as a file."""
        path = self.root / "config.json"
        path.write_text(json.dumps(self.options(**changes)), encoding="utf-8")
        return path

    def trainer(self, stop_after: int | None = None, **changes: Any):
        """A trainer that stops after a step, if asked to."""
        from modules.trainer.events import TrainCommands, TrainEvents
        from modules.trainer.Trainer import Trainer
        from modules.util.config.load import train_config_from_dict

        commands = TrainCommands()

        def listen(kind: str, values: dict[str, Any]) -> None:
            self.events.append((kind, values))
            if kind == "step" and values["step"] == stop_after:
                commands.stop = True

        config = train_config_from_dict(self.options(**changes))
        return Trainer(config, TrainEvents([listen]), commands)

    def train(self, stop_after: int | None = None, **changes: Any) -> dict[str, Any]:
        """Runs in this process and returns the report."""
        return self.trainer(stop_after, **changes).run()

    def start(self, *overrides: str) -> subprocess.Popen:
        """Runs `scripts/train.py` on the written config in a process of its own, one thread."""
        command = [sys.executable, str(ROOT / "scripts" / "train.py"), "--config-path", str(self.root / "config.json")]
        command += [part for override in overrides for part in ("--override", override)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
        log = (self.root / "log.txt").open("ab")
        return subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=environment, cwd=self.root)

    @property
    def log(self) -> str:
        """What all processes of this run have printed."""
        return (self.root / "log.txt").read_text(encoding="utf-8", errors="replace")

    def backups(self) -> list[Path]:
        folder = self.workspace / "backup"
        return sorted(folder.iterdir()) if folder.is_dir() else []

    def warnings(self) -> list[str]:
        return [values["text"] for kind, values in self.events if kind == "warning"]

    def of_kind(self, kind: str) -> list[dict[str, Any]]:
        return [values for found, values in self.events if found == kind]

    def digest(self) -> str:
        """sha256 of the adapter file."""
        return hashlib.sha256(self.output.read_bytes()).hexdigest()


@pytest.fixture(scope="session")
def mini_base(tmp_path_factory) -> Path:
    """The miniature as a diffusers folder; tests must not change it."""
    folder = tmp_path_factory.mktemp("miniature")
    return save_pipeline(folder)


@pytest.fixture(scope="session")
def wide_base(tmp_path_factory) -> Path:
    """The same with layers that are large enough to be quantized."""
    return save_pipeline(tmp_path_factory.mktemp("wide"), (64, 64), 64)


@pytest.fixture(scope="session")
def mini_concept(tmp_path_factory) -> Path:
    """Seven images with captions; tests must not change it."""
    folder = tmp_path_factory.mktemp("concept") / "images"
    draw_images(folder)
    return folder


@pytest.fixture(scope="session")
def mini_cache(tmp_path_factory) -> Path:
    """A cache that runs share."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def make_run(tmp_path, mini_base, mini_concept, mini_cache):
    """make_run("name") -> a run in folders of its own, with the shared cache or its own."""

    import torch

    # tensors this small cost more to share among threads than to compute
    threads = torch.get_num_threads()
    torch.set_num_threads(1)

    def make(name: str = "run", own_cache: bool = False) -> MiniRun:
        root = tmp_path / name
        root.mkdir()
        return MiniRun(root, mini_base, mini_concept, root / "cache" if own_cache else mini_cache)

    yield make
    torch.set_num_threads(threads)


@pytest.fixture
def mini_run(make_run) -> MiniRun:
    return make_run()


@pytest.fixture(scope="session")
def script_server() -> Iterator[ScriptServer]:
    """Forks this project's scripts from a process that has imported the libraries, while it is `used`."""
    server = ScriptServer()
    yield server
    server.close()


@pytest.fixture
def forked_scripts(script_server) -> Iterator[None]:
    """Scripts that the test starts are forked; for tests of what they do, not of how they start."""
    with script_server.used():
        yield


@pytest.fixture
def draw_concept():
    """draw_concept(folder) draws the concept's images there."""
    return draw_images


@pytest.fixture
def keep_signal_handlers():
    """The script installs handlers of its own; the test run gets its own back."""
    kept = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in kept.items():
        signal.signal(number, handler)
