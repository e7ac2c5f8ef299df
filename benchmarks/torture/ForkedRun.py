import gc
import os
import runpy
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
# of a process that broke down by other means than its own exit status
BROKEN = 70


class ForkedRun:
    """A process of its own that begins with everything imported, so that a run takes a second, not ten.

    It shares nothing with this process but what was imported before, and can be killed like any other. Needs a system
    that forks; this process must not have used torch's threads.

    Args:
        work: what the process does; its exit status is 0 where it returns.
        log: file to which it prints.
    """

    def __init__(self, work: Callable[[], None], log: Path) -> None:
        sys.stdout.flush()
        sys.stderr.flush()
        self.started = time.monotonic()
        self.pid = os.fork()
        self._status: int | None = None
        if not self.pid:
            _be_child(work, log)

    def poll(self) -> int | None:
        """Exit status, negative for the signal that ended it; None while it runs."""
        if self._status is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self._status = os.waitstatus_to_exitcode(status) if pid else None
        return self._status

    def wait(self, seconds: float) -> int | None:
        """The same, after at most so many seconds."""
        until = time.monotonic() + seconds
        while self.poll() is None and time.monotonic() < until:
            time.sleep(0.002)
        return self._status

    def kill(self) -> int:
        """Ends it at once; returns its exit status."""
        if self.poll() is None:
            os.kill(self.pid, signal.SIGKILL)
            _, status = os.waitpid(self.pid, 0)
            self._status = os.waitstatus_to_exitcode(status)
        return self._status


def _be_child(work: Callable[[], None], log: Path) -> None:
    """Never returns: nothing of the parent, as its tests or clean-ups, may run twice."""
    status = BROKEN
    try:
        target = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        for stream in (1, 2):
            os.dup2(target, stream)
        work()
        status = 0
    except SystemExit as ended:
        status = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def train_script(config: Path, *arguments: str) -> Callable[[], None]:
    """`scripts/train.py` on a config."""
    return script("train", "--config-path", str(config), *arguments)


def script(name: str, *arguments: str) -> Callable[[], None]:
    """A script as a command line starts it."""
    path = str(ROOT / "scripts" / f"{name}.py")

    def work() -> None:
        sys.argv = [path, *arguments]
        runpy.run_path(path, run_name="__main__")

    return work


def load_libraries() -> None:
    """Imports what a run needs, once for all that are forked afterwards. One thread, as forks can't have torch's."""
    import torch

    torch.set_num_threads(1)
    # the families import theirs when they are asked for
    for module in (
        "modules.trainer.Trainer", "modules.run.ConsoleProgress", "modules.model.StableDiffusionModel", "diffusers",
        "diffusers.models.unets.unet_2d_condition", "transformers.models.clip.modeling_clip",
    ):  # fmt: skip
        __import__(module)
    # a run looks for unused objects several times, which would copy all memory that forks share
    gc.collect()
    gc.freeze()


def has_traceback(words: str) -> bool:
    """Whether what processes have printed tells of a fault of the program."""
    return "Traceback (most recent call last)" in words
