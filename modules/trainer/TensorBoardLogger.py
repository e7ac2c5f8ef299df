import logging
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from modules.trainer.Logger import DrawnRound, LoggedRun, RunEnd
from modules.util.config.TrainConfig import TrainConfig

from torch.utils.tensorboard import SummaryWriter

import numpy as np
from PIL import Image

logger = logging.getLogger(__name__)


class TensorBoardLogger:
    """TensorBoard's files in `<workspace>/tensorboard/<run>`, and TensorBoard itself if the config asks for it."""

    name = "TensorBoard"

    def __init__(self) -> None:
        self._writer: SummaryWriter | None = None
        self._server: subprocess.Popen | None = None
        self._draws = False

    def begin(self, run: LoggedRun) -> None:
        folder = run.workspace / "tensorboard"
        self._draws = run.config.samples_to_tensorboard
        self._server = _start(folder, run.config) if run.config.tensorboard else None
        self._writer = SummaryWriter(str(folder / run.name))

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def pictures(self, drawn: DrawnRound) -> None:
        if self._draws and drawn.grid is not None and drawn.averaged:
            picture = np.asarray(Image.open(drawn.grid).convert("RGB"))
            self._writer.add_image("samples", picture, drawn.step, dataformats="HWC")

    def kept(self) -> dict[str, Any]:
        return {}

    def end(self, state: RunEnd) -> None:
        try:
            if self._writer is not None:
                self._writer.close()
        finally:
            if self._server is not None:
                self._server.terminate()


def _start(folder: Path, config: TrainConfig) -> subprocess.Popen | None:
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", str(folder)]
    command += ["--port", str(config.tensorboard_port)]
    if config.tensorboard_expose:
        command.append("--bind_all")
    try:
        return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=dict(os.environ))
    except OSError as error:
        logger.warning("TensorBoard could not be started: %s", error)
        return None
