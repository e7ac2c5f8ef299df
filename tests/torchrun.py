"""Scripts of tests in several real processes, which torchrun starts, or a fork as torchrun would."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from tests.forked_scripts import ScriptServer

ROOT = Path(__file__).resolve().parents[1]
# seconds for all that a call runs, on a machine that is busy
PATIENCE = 1000.0


def in_processes(script: Path, folder: Path, count: int, server: ScriptServer | None = None) -> list[Any]:
    """What each process has told, by its rank: the script gets the folder, and writes `told-<rank>.json` there.

    Args:
        script: is run in each process, with one thread.
        folder: of this call.
        count: how many processes there are.
        server: forks them, so that they need not load the libraries; None: torchrun starts them.
    """
    environment = {
        **os.environ, "OMP_NUM_THREADS": "1", "TORCH_CPP_LOG_LEVEL": "ERROR", "TQDM_DISABLE": "1",
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "scaled-optim")]),
    }  # fmt: skip
    if server is None:
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(count)]
        done = subprocess.run([*command, str(script), str(folder)], env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-3000:]
    else:
        _fork([sys.executable, str(script), str(folder)], folder, count, environment, server)
    return [json.loads((folder / f"told-{rank}.json").read_text(encoding="utf-8")) for rank in range(count)]


def _fork(command: list[str], folder: Path, count: int, environment: dict[str, str], server: ScriptServer) -> None:
    import torch.distributed as dist

    # kept here, as torchrun keeps it, so that it outlives each of them
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    environment |= {
        "WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(store.port), "TORCHELASTIC_USE_AGENT_STORE": "True",
    }  # fmt: skip
    started = []
    with server.used():
        for rank in range(count):
            own = {**environment, "RANK": str(rank), "LOCAL_RANK": str(rank)}
            with (folder / f"log-{rank}.txt").open("wb") as log:
                started.append(subprocess.Popen(command, env=own, stdout=log, stderr=subprocess.STDOUT))
    end = time.monotonic() + PATIENCE
    try:
        # one that fails leaves the others waiting
        while any(process.poll() is None for process in started) and not any(process.poll() for process in started):
            assert time.monotonic() < end, f"{command} has not come to its end in {PATIENCE} s"
            time.sleep(0.05)
    finally:
        for process in started:
            if process.poll() is None:
                process.kill()
            process.wait()
    logs = [(folder / f"log-{rank}.txt").read_text(encoding="utf-8", errors="replace") for rank in range(count)]
    failed = [log[-3000:] for process, log in zip(started, logs, strict=True) if process.returncode]
    assert not failed, "\n".join(failed)
