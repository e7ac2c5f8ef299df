"""The checks, in their order: what says most comes first, in case the time is over before the end."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from benchmarks.gpu.Bench import Bench
from benchmarks.gpu.Row import Row


@dataclass(frozen=True)
class Check:
    """A part of the check, run in a process of its own, so that one fault of the device ends nothing else.

    Attributes:
        title: of its table.
        module: in benchmarks.gpu; its `measure` gives the rows.
        seconds: on a GPU, after which its process is ended; from three quarters of them on no further case begins.
    """

    title: str
    module: str
    seconds: float

    def measure(self, bench: Bench) -> Iterator[Row]:
        """Its rows."""
        from importlib import import_module

        function: Callable[[Bench], Iterator[Row]] = import_module(f"benchmarks.gpu.{self.module}").measure
        return function(bench)


# together eight minutes
CHECKS: dict[str, Check] = {
    "machine": Check("The machine", "machine", 40),
    "training": Check("Runs with each option of memory and speed", "training", 150),
    "deterministic": Check("The same bytes with deterministic", "deterministic", 30),
    "resume": Check("Stop and continue", "resume", 40),
    "throughput": Check("Against a plain loop of diffusers and peft", "throughput", 60),
    "rules": Check("Rules of the optimizer", "rules", 100),
    "adapters": Check("Adapters and formats of frozen weights", "adapters", 60),
}
