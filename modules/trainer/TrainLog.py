import contextlib
import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from modules.trainer.StepTimes import StepTimes
from modules.util.config.TrainConfig import TrainConfig

from torch.utils.tensorboard import SummaryWriter

import numpy as np
from PIL import Image

if TYPE_CHECKING:
    from modules.trainer.SampleRounds import SampleRounds

SMOOTHING = 0.99

logger = logging.getLogger(__name__)


class NoLog:
    """In a process that does not lead: what a `TrainLog` is told, and nobody keeps."""

    def scalar(self, name: str, value: float, step: int) -> None:
        pass

    def step(self, *values: Any) -> None:
        pass

    def pictures(self, rounds: "SampleRounds", step: int) -> None:
        pass

    def close(self) -> None:
        pass


class TrainLog:
    """TensorBoard files in `<workspace>/tensorboard/<run>`, and TensorBoard itself if the config asks for it."""

    def __init__(self, workspace: Path, config: TrainConfig, run: str) -> None:
        folder = workspace / "tensorboard"
        self.config, self.broken = config, False
        self.writer = SummaryWriter(str(folder / run))
        self.smooth: float | None = None
        self.server = self._start(folder) if config.tensorboard else None

    def _start(self, folder: Path) -> subprocess.Popen | None:
        command = [sys.executable, "-m", "tensorboard.main", "--logdir", str(folder)]
        command += ["--port", str(self.config.tensorboard_port)]
        if self.config.tensorboard_expose:
            command.append("--bind_all")
        try:
            return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=dict(os.environ))
        except OSError as error:
            logger.warning("TensorBoard could not be started: %s", error)
            return None

    def scalar(self, name: str, value: float, step: int) -> None:
        with self._unharmed():
            self.writer.add_scalar(name, value, step)

    @contextlib.contextmanager
    def _unharmed(self) -> Iterator[None]:
        """A log is never worth a run: where it can't be written, as its folder is gone or the disk full, it ends."""
        try:
            yield
        except (OSError, ValueError, RuntimeError) as error:
            if not self.broken:
                logger.warning("TensorBoard's files can't be written any more, and the run goes on without: %s", error)
            self.broken = True

    def step(
        self,
        step: int,
        loss: float,
        gradient_norm: float,
        rates: dict[str, float],
        optimizer: dict[str, float],
        times: StepTimes,
    ) -> None:
        """What every step logs.

        Args:
            step: its number, from 1.
            loss, gradient_norm: of the step.
            rates: learning rates by trained set.
            optimizer: what it says of itself.
            times: the last is of the step.
        """
        self.smooth = loss if self.smooth is None else SMOOTHING * self.smooth + (1 - SMOOTHING) * loss
        self.scalar("loss/train", loss, step)
        self.scalar("loss/smooth", self.smooth, step)
        self.scalar("gradient_norm", gradient_norm, step)
        for trained_set, rate in rates.items():
            self.scalar(f"learning_rate/{trained_set}", rate, step)
        for name, value in optimizer.items():
            self.scalar(f"optimizer/{name}", value, step)
        self.scalar("seconds/step", times.seconds[-1], step)
        self.scalar("seconds/data_wait", times.waited[-1], step)

    def pictures(self, rounds: "SampleRounds", step: int) -> None:
        """The grid of the round at `step`, if there is one and the config wants it here."""
        grids = [record["grid"] for record in rounds.progress.samples if record["step"] == step]
        if grids and self.config.samples_to_tensorboard:
            with self._unharmed():
                picture = np.asarray(Image.open(grids[0]).convert("RGB"))
                self.writer.add_image("samples", picture, step, dataformats="HWC")

    def close(self) -> None:
        with self._unharmed():
            self.writer.close()
        if self.server is not None:
            self.server.terminate()
