import gc
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from benchmarks.gpu.Row import NotMeasured, Row, State
from modules.util.UserError import UserError

import torch


@dataclass(frozen=True)
class Bench:
    """Where checks run.

    Attributes:
        device: what is checked.
        quick: small sizes, to see that everything works; on a CPU they are always small.
        folder: for models, caches and runs of all checks; removed afterwards.
        until: `time.monotonic()` from which no further case begins.
    """

    device: torch.device
    quick: bool
    folder: Path
    until: float

    @property
    def small(self) -> bool:
        """Whether sizes are those of a test."""
        return self.quick or self.device.type == "cpu"

    @property
    def is_cuda(self) -> bool:
        """Whether the device counts memory and has streams; ROCm's build of torch calls its devices so, too."""
        return self.device.type == "cuda"

    def wait(self) -> None:
        """Until the device has done everything."""
        if self.is_cuda:
            torch.cuda.synchronize(self.device)
        elif self.device.type == "mps":
            torch.mps.synchronize()
        elif self.device.type == "xpu":
            torch.xpu.synchronize(self.device)

    def seconds(self, function: Callable[[], object], repeats: int = 10, warm_up: int = 3) -> float:
        """Median time of a call, until the device is done."""
        found = []
        for _ in range(warm_up + repeats):
            self.wait()
            start = time.perf_counter()
            function()
            self.wait()
            found.append(time.perf_counter() - start)
        return statistics.median(found[warm_up:])

    def peak_bytes(self, function: Callable[[], object]) -> int:
        """The most memory that a call takes beyond what is held already.

        Raises:
            NotMeasured: on a device that does not count.
        """
        if not self.is_cuda:
            raise NotMeasured(f"{self.device.type} does not count its memory")
        gc.collect()
        torch.cuda.empty_cache()
        self.wait()
        torch.cuda.reset_peak_memory_stats(self.device)
        before = torch.cuda.memory_allocated(self.device)
        function()
        self.wait()
        return torch.cuda.max_memory_allocated(self.device) - before


Found = tuple[State, str, dict[str, float]]
"""State, text and figures of a row."""


def rows_of(check: str, bench: Bench, cases: dict[str, Callable[[], Found]]) -> Iterator[Row]:
    """A row for each case, whatever comes of it.

    Cases that do not begin before `bench.until` have a row that says so.
    """
    for case, measure in cases.items():
        if time.monotonic() > bench.until:
            yield Row(check, case, State.NOT_MEASURED, "no time was left for it")
            continue
        try:
            state, text, figures = measure()
        except NotMeasured as error:
            state, text, figures = State.NOT_MEASURED, str(error), {}
        except UserError as error:
            # what is refused before anything began is `NotMeasured`
            state, text, figures = State.FAILS, str(error), {}
        except torch.OutOfMemoryError as error:
            state, text, figures = State.NOT_MEASURED, f"too little memory: {str(error).splitlines()[0]}", {}
        except Exception as error:  # one fault is a finding, and no reason to lose the other cases
            state, text, figures = State.FAILS, f"{type(error).__name__}: {' '.join(str(error).split())[:400]}", {}
        yield Row(check, case, state, text, figures)


def bounded(value: float, bound: float, text: str, figures: dict[str, float]) -> Found:
    """Holds if a value is finite and at most its bound."""
    return State.HOLDS if value <= bound else State.FAILS, text, figures
