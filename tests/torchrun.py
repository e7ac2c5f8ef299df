"""Scripts of tests in several real processes, as torchrun starts them."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]


def in_processes(script: Path, folder: Path, count: int) -> list[Any]:
    """What each process has told, by its rank: the script gets the folder, and writes `told-<rank>.json` there.

    Args:
        script: is run in each process, with one thread.
        folder: of this call.
        count: how many processes there are.
    """
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(count)]
    environment = {
        **os.environ, "OMP_NUM_THREADS": "1", "TORCH_CPP_LOG_LEVEL": "ERROR", "TQDM_DISABLE": "1",
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "scaled-optim")]),
    }  # fmt: skip
    done = subprocess.run([*command, str(script), str(folder)], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads((folder / f"told-{rank}.json").read_text(encoding="utf-8")) for rank in range(count)]
