"""Starts the processes of a run on several GPUs of this machine, as torchrun would."""

import os
import signal
import sys
from collections.abc import Callable

import torch
import torch.distributed as dist
import torch.multiprocessing as processes

HOST = "127.0.0.1"
LOGGING = {"TORCH_CPP_LOG_LEVEL": os.environ.get("TORCH_CPP_LOG_LEVEL", "ERROR")}
"""For the environment of the processes, before they load torch: it warns where all parameters are used, and of what
processes that end together can't tell each other."""

GRACE = 10.0
"""Seconds that the others have to end by themselves when one has failed, before they are ended."""


def start_processes(main: Callable[[], int], count: int) -> int:
    """Runs a function in so many new processes, and waits for all; when one fails, the others are ended.

    Ctrl+C reaches them without this one, and SIGTERM is handed on: they end as a run of one process does.

    Args:
        main: of a script; gives its exit status.
        count: how many processes, at least 2.

    Returns:
        the exit status: 0, or that of the process that failed first.
    """
    os.environ |= LOGGING
    # kept here, so that it outlives each of them
    store = dist.TCPStore(HOST, 0, is_master=True, wait_for_workers=False)
    threads = max(1, (os.cpu_count() or 1) // count)
    context = processes.start_processes(
        _run, (main, count, store.port, threads), nprocs=count, join=False, start_method="spawn"
    )

    def hand_on(number: int, frame: object) -> None:
        for process in context.processes:
            process.terminate()

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, hand_on)
    try:
        while not context.join(grace_period=GRACE):
            pass
    except processes.ProcessExitedException as failed:
        return failed.exit_code if failed.exit_code > 0 else 128 - failed.exit_code
    except processes.ProcessRaisedException as failed:
        print(failed, file=sys.stderr)
        return 1
    return 0


def _run(rank: int, main: Callable[[], int], count: int, port: int, threads: int) -> None:
    os.environ |= {
        "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count),
        "MASTER_ADDR": HOST, "MASTER_PORT": str(port), "TORCHELASTIC_USE_AGENT_STORE": "True",
    }  # fmt: skip
    torch.set_num_threads(threads)
    # torch takes a pressed Ctrl+C for the end of its parent, and would call that a success
    sys.exit(main())
