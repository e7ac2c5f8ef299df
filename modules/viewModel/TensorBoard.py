import socket
import time
from pathlib import Path

from modules.util.texts import tr
from modules.util.UserError import UserError
from modules.viewModel.ToolProcess import ROOT, ToolCancelled, ToolProcess

HOST = "127.0.0.1"


class TensorBoard:
    """TensorBoard on a workspace's logs, in a process of its own that ends with the window.

    Attributes:
        address: where it answers; empty before the first start.
    """

    def __init__(self) -> None:
        self._process = ToolProcess()
        self._folder: Path | None = None
        self.address = ""

    @property
    def running(self) -> bool:
        return self._process.running

    @property
    def pid(self) -> int | None:
        """Number of its process; None before the first start."""
        return self._process.pid

    def open(self, workspace: Path, process: ToolProcess, seconds: float = 60) -> str:
        """Starts it, unless it runs on this folder already; returns its address once it answers. Takes seconds.

        Args:
            workspace: of the runs.
            process: unused, for the start.
            seconds: after which it counts as hung.

        Raises:
            UserError: it does not start.
            ToolCancelled: `process` was ended.
        """
        folder = ROOT / workspace / "tensorboard"
        if self.running and folder == self._folder:
            return self.address
        self.close()
        folder.mkdir(parents=True, exist_ok=True)
        with socket.socket() as free:
            free.bind((HOST, 0))
            port = free.getsockname()[1]
        self._process, self._folder, self.address = process, folder, f"http://{HOST}:{port}"
        process.start("-m", "tensorboard.main", "--logdir", str(folder), "--host", HOST, "--port", str(port))
        end = time.monotonic() + seconds
        while time.monotonic() < end and process.running:
            with socket.socket() as probe:
                if probe.connect_ex((HOST, port)) == 0:
                    return self.address
            time.sleep(0.1)
        if process.cancelled:
            raise ToolCancelled
        process.cancel()
        raise UserError(tr("TensorBoard does not start. Is it installed? pip install tensorboard."))

    def close(self) -> None:
        """Ends it."""
        self._process.cancel()
