"""Times the steps of this checkout's engine and of another one's, case by case in turns, each in a process of its own.

Each process uses its checkout's own rules, options and parameters. Where the engine lies has changed, so both places
are tried.
"""

import json
import os
import statistics
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

WORKER = """
import json, sys, time
try:
    from scaled_optim.batched_optimizer import BatchedOptimizer
    from scaled_optim.rules.registry import RULES
except ImportError:
    from modules.optim.BatchedOptimizer import BatchedOptimizer
    from modules.optim.rules.registry import RULES
import torch
from benchmarks.optimizers.cases import cases
from benchmarks.optimizers.parameter_set import ParameterSet, scaled_down, sdxl_layers

threads, small = map(int, sys.argv[1:])
torch.set_num_threads(threads)
layers = scaled_down(sdxl_layers()) if small else sdxl_layers()
known, sets = {case.name: case for case in cases()}, {}
answer = sys.stdout
sys.stdout = sys.stderr
for line in sys.stdin:
    name = json.loads(line)
    reply = None
    if name == "cases":
        reply = list(known)
    elif name == "step":
        parameter_set.refill()
        started = time.perf_counter()
        optimizer.step()
        reply = time.perf_counter() - started
    else:
        case = known[name]
        optimizer = None
        parameter_set = sets.get(case.dtype)
        if parameter_set is None:
            sets = {case.dtype: ParameterSet(layers, 16, torch.device("cpu"), getattr(torch, case.dtype))}
            parameter_set = sets[case.dtype]
        parameters = parameter_set.parameters(RULES[case.rule].orthonormal_up)
        optimizer = BatchedOptimizer(parameters, case.rule, case.lr, **case.options)
    print(json.dumps(reply), file=answer, flush=True)
"""


class Checkout:
    """A process that steps with the engine of a checkout.

    Args:
        folder: of the checkout.
        threads: of torch.
        small: whether a few small layers stand for all.
    """

    def __init__(self, folder: Path, threads: int, small: bool) -> None:
        path = os.pathsep.join((str(folder / "scaled-optim"), str(folder)))
        self._process = subprocess.Popen(
            [sys.executable, "-c", WORKER, str(threads), str(int(small))],
            # threads that wait must leave the cores to the other process
            cwd=folder, env={**os.environ, "PYTHONPATH": path, "OMP_WAIT_POLICY": "PASSIVE"}, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )  # fmt: skip

    def ask(self, what: str) -> Any:
        """The answer to "cases", to "step" (seconds), or to the name of a case, with which steps go on from then.

        Raises:
            RuntimeError: the process has ended.
        """
        self._process.stdin.write(json.dumps(what) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"{what}: the process of {self._process.args[0]} has ended; its error stands above")
        return json.loads(line)

    def close(self) -> None:
        self._process.stdin.close()
        self._process.wait()


def compared(
    here: Path, there: Path, wanted: Sequence[str], rounds: int, threads: int, small: bool = False
) -> Iterator[dict[str, Any]]:
    """A row for each case that both checkouts have: seconds of every round, and the median of the rounds' ratios.

    Args:
        here, there: folders of checkouts; a ratio above 1 says that `here` is slower.
        wanted: parts of the names of cases; none: all.
        rounds: timed steps of each, after three that are not.
    """
    both = [Checkout(folder, threads, small) for folder in (here, there)]
    try:
        names = [name for name in both[0].ask("cases") if name in both[1].ask("cases")]
        for name in names:
            if wanted and not any(part in name for part in wanted):
                continue
            for one in both:
                one.ask(name)
                for _ in range(3):
                    one.ask("step")
            pairs = []
            for number in range(rounds):
                order = both if number % 2 else both[::-1]
                seconds = {id(one): one.ask("step") for one in order}
                pairs.append([seconds[id(one)] for one in both])
            ratio = statistics.median(ours / theirs for ours, theirs in pairs)
            yield {"name": name, "here": [a for a, _ in pairs], "there": [b for _, b in pairs], "ratio": ratio}
    finally:
        for one in both:
            one.close()
